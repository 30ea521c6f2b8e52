//! Bad and good habits with ports.

use std::io::{Read, Write};
use std::iter;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
};

/// Carries out `verb`, if it is one of these; returns how many words it took.
pub(super) fn one(verb: &str, after: &[String]) -> Option<usize> {
    match verb {
        // As nearly every server does: SO_REUSEADDR, and one socket.
        "listen" => std::mem::forget(TcpListener::bind(&after[0]).unwrap_or_else(|error| fail(&error))),
        // Waits until nobody else has the port.
        "takeover" => std::mem::forget(
            iter::repeat_with(|| TcpListener::bind(&after[0]))
                .inspect(|_| thread::yield_now())
                .find_map(Result::ok),
        ),
        // Without SO_REUSEADDR.
        "listen_plain" => keep(open(&after[0], true, |_| {})),
        "reuseport" => keep(open(&after[0], true, |it| setsockopt(it, sockopt::ReusePort, &true).unwrap())),
        "v6only" => keep(open(&after[0], true, |it| setsockopt(it, sockopt::Ipv6V6Only, &true).unwrap())),
        "bind" => keep(open(&after[0], false, |_| {})),
        // A client whose own port is the second word's.
        "connect" => {
            let client = open(&after[1], false, |it| setsockopt(it, sockopt::ReuseAddr, &true).unwrap());
            let server: SocketAddr = after[0].parse().expect("an address");
            socket::connect(client.as_raw_fd(), &SockaddrStorage::from(server)).unwrap();
            keep(client);
            return Some(2);
        }
        // Answers each connection with its pid and closes it first, so that it stays in TIME_WAIT.
        "answer" => {
            let server = TcpListener::bind(&after[0]).unwrap_or_else(|error| fail(&error));
            std::thread::spawn(move || server.incoming().flatten().for_each(greet));
        }
        // A web server: / is well as long as the second word's file exists, /ws shakes hands with one key.
        "http" => {
            let server = TcpListener::bind(&after[0]).unwrap_or_else(|error| fail(&error));
            let file = after[1].clone();
            thread::spawn(move || server.incoming().flatten().for_each(|client| serve(client, &file)));
            return Some(2);
        }
        // The same on the socket that it was given (sd_listen_fds(3)).
        "answer_given" => {
            let of = |name: &str| std::env::var(name).unwrap_or_default();
            assert_eq!(of("LISTEN_PID"), std::process::id().to_string());
            assert_eq!(of("LISTEN_FDS"), after[0]);
            let server = unsafe { TcpListener::from_raw_fd(3) };
            std::thread::spawn(move || server.incoming().flatten().for_each(greet));
        }
        // Its first thread ends, another one has the socket.
        "headless" => {
            let server = TcpListener::bind(&after[0]).unwrap_or_else(|error| fail(&error));
            let rest = after[1..].to_vec();
            std::thread::spawn(move || {
                std::mem::forget(server);
                super::carry_out(&rest);
            });
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        }
        // From now on making a socket of this family is refused with this error, also below.
        "refuse" => {
            refuse(after[0].parse().expect("a family"), after[1].parse().expect("an error"));
            return Some(2);
        }
        "exec" => {
            use std::os::unix::process::CommandExt;
            panic!("{}", std::process::Command::new(&after[0]).args(&after[1..]).exec());
        }
        _ => return None,
    }
    Some(1)
}

/// As a server does that finds its port taken.
fn fail(error: &std::io::Error) -> ! {
    super::print(&format!("{error}\n"));
    super::leave(98)
}

fn keep(socket: OwnedFd) {
    std::mem::forget(socket);
}

fn open(address: &str, listens: bool, set: impl Fn(&OwnedFd)) -> OwnedFd {
    let address: SocketAddr = address.parse().expect("an address");
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let opened = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    set(&opened);
    let bound = socket::bind(opened.as_raw_fd(), &SockaddrStorage::from(address));
    let done = bound.and_then(|()| if listens { socket::listen(&opened, Backlog::new(8)?) } else { Ok(()) });
    if let Err(error) = done {
        fail(&error.into());
    }
    opened
}

fn greet(mut client: TcpStream) {
    let _ = client.write_all(format!("{}\n", std::process::id()).as_bytes());
    let _ = client.shutdown(std::net::Shutdown::Write);
    let _ = client.read_to_end(&mut Vec::new());
}

fn serve(mut client: TcpStream, file: &str) {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match client.read(&mut buffer) {
            Ok(length) if length > 0 => request.extend(&buffer[..length]),
            _ => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let well = std::path::Path::new(file).exists();
    let answer = match request.split(' ').nth(1) {
        Some("/") if well => "200 OK\r\nContent-Length: 2\r\n\r\nhi",
        Some("/") => "503 Service Unavailable\r\n\r\n",
        Some("/ws") if request.contains("dGhlIHNhbXBsZSBub25jZQ==") => {
            "101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        }
        Some("/wrong") => "101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n",
        _ => "404 Not Found\r\n\r\n",
    };
    let _ = client.write_all(format!("HTTP/1.1 {answer}").as_bytes());
}

/// A seccomp filter (`seccomp(2)`): socket(family, ...) fails with `errno`.
fn refuse(family: u32, errno: u32) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump = |k: u32, jf: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf,
        k,
    };
    let load = |offset: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let give = |value: u32| statement(libc::BPF_RET | libc::BPF_K, value);
    // The call's number is at 0, its first argument at 16 (struct seccomp_data).
    let mut filter = [
        load(0),
        jump(libc::SYS_socket as u32, 3),
        load(16),
        jump(family, 1),
        give(libc::SECCOMP_RET_ERRNO | errno),
        give(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program), 0);
    }
}
