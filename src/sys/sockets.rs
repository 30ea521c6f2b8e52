//! TCP sockets of our network namespace as the kernel lists them (`sock_diag(7)`), and which process has a
//! descriptor of one (`proc_pid_fd(5)`).
//!
//! The kernel knows a socket by its inode, not by a process: several may have it, or none (in flight over a
//! Unix socket, the kernel's own, one whose process we may not look into).

use std::collections::HashSet;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirEntryExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use nix::sys::stat::Mode;

use super::process::{Pid, Stat};

/// Where a socket stands (tcp_states.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names of RFC 9293")]
pub enum State {
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    CloseWait,
    LastAck,
    Listening,
    Closing,
    /// Bound to its port, and neither listening nor connected (listed since Linux 6.8).
    Bound,
}

/// Every state, with the kernel's number of it.
const STATES: [(u8, State); 13] = [
    (1, State::Established),
    (2, State::SynSent),
    (3, State::SynReceived),
    (4, State::FinWait1),
    (5, State::FinWait2),
    (6, State::TimeWait),
    (7, State::Bound),
    (8, State::CloseWait),
    (9, State::LastAck),
    (10, State::Listening),
    (11, State::Closing),
    (12, State::SynReceived),
    (13, State::Bound),
];

impl State {
    /// Returns the word that stands in answers.
    pub fn word(self) -> &'static str {
        match self {
            State::Established => "established",
            State::SynSent => "syn_sent",
            State::SynReceived => "syn_received",
            State::FinWait1 => "fin_wait_1",
            State::FinWait2 => "fin_wait_2",
            State::TimeWait => "time_wait",
            State::CloseWait => "close_wait",
            State::LastAck => "last_ack",
            State::Listening => "listening",
            State::Closing => "closing",
            State::Bound => "bound",
        }
    }
}

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Where it stands.
    pub state: State,
    /// Its own address.
    pub local: SocketAddr,
    /// The other end's, if it is connected.
    pub remote: SocketAddr,
    /// An IPv6 socket that takes no IPv4 connections; told of listening ones alone.
    pub v6only: bool,
    /// Who made it.
    pub uid: u32,
    /// Its number in sockfs; 0 if no process can have it (TIME_WAIT).
    pub inode: u32,
    /// The id of the cgroup v2 that it was made in (Linux 5.9).
    pub cgroup: Option<u64>,
    /// What is left of TIME_WAIT.
    pub expires: Duration,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// `struct nlmsghdr`, `struct inet_diag_req_v2`, `struct inet_diag_msg`, in bytes.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const MESSAGE: usize = 72;

/// Lists the sockets in one of `states`, IPv4 and IPv6, those with the local `port` or all. Errors if the kernel
/// cannot be asked (EPERM or EACCES in a sandbox, ENOENT without `CONFIG_INET_DIAG`).
pub fn list(states: &[State], port: Option<u16>) -> io::Result<Vec<Socket>> {
    let bits =
        STATES.iter().filter(|(_, state)| states.contains(state)).fold(0, |bits, (n, _)| bits | 1 << n);
    let flags = SockFlag::SOCK_CLOEXEC;
    let netlink =
        socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        socket::send(netlink.as_raw_fd(), &request(family as u8, bits, port), MsgFlags::empty())?;
        match receive(&netlink, &mut found) {
            // A host without IPv6 knows no such sockets.
            Err(error) if family == libc::AF_INET6 && error.raw_os_error() == Some(libc::ENOENT) => {}
            result => result?,
        }
    }
    found.retain(|socket| {
        states.contains(&socket.state) && port.is_none_or(|port| socket.local.port() == port)
    });
    Ok(found)
}

fn request(family: u8, states: u32, port: Option<u16>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend(port.unwrap_or(0).to_be_bytes());
    bytes.resize(HEADER + REQUEST, 0);
    bytes
}

/// Takes the answer to one request, to its end.
fn receive(netlink: &OwnedFd, found: &mut Vec<Socket>) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = socket::recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, body, after)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let errno = word(body, 0).map_or(libc::EINVAL, |number| -(number as i32));
                    return Err(io::Error::from_raw_os_error(errno));
                }
                _ => found.extend(parse(body)),
            }
            rest = after;
        }
    }
}

/// Splits one netlink message off: its type, its body, and what follows.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = word(bytes, 0)? as usize;
    let kind = half(bytes, 4)?;
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Reads one `struct inet_diag_msg` with its attributes.
fn parse(body: &[u8]) -> Option<Socket> {
    let (family, state) = (*body.first()?, *body.get(1)?);
    let state = STATES.iter().find(|(number, _)| *number == state)?.1;
    let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    let local = SocketAddr::new(address(family, body.get(8..24)?)?, port(4)?);
    let remote = SocketAddr::new(address(family, body.get(24..40)?)?, port(6)?);
    let (mut v6only, mut cgroup) = (false, None);
    let mut rest = body.get(MESSAGE..)?;
    while let (Some(length), Some(kind)) = (half(rest, 0), half(rest, 2)) {
        let Some(value) = rest.get(4..usize::from(length)) else { break };
        match kind {
            INET_DIAG_SKV6ONLY => v6only = value.first() == Some(&1),
            INET_DIAG_CGROUP_ID => cgroup = value.try_into().ok().map(u64::from_ne_bytes),
            _ => {}
        }
        rest = rest.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Socket {
        state,
        local,
        remote,
        v6only,
        uid: word(body, 64)?,
        inode: word(body, 68)?,
        cgroup,
        expires: Duration::from_millis(u64::from(word(body, 52)?)),
    })
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    let v6: [u8; 16] = bytes.try_into().ok()?;
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::new(v6[0], v6[1], v6[2], v6[3]).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(v6).into()),
        _ => None,
    }
}

/// Returns which of the sockets `wanted`, by inode, `pid` has a descriptor of; none if its descriptors may not
/// be looked at. Of a process whose first thread has ended while others go on, only these tell.
pub fn held_by(pid: Pid, wanted: &HashSet<u32>) -> Vec<u32> {
    match held_in(&format!("/proc/{pid}/fd"), wanted) {
        Some(held) => held,
        None => held_by_threads(pid, wanted),
    }
}

fn held_by_threads(pid: Pid, wanted: &HashSet<u32>) -> Vec<u32> {
    let is_headless = Stat::read(pid).is_some_and(|stat| stat.state == b'Z' && stat.threads > 1);
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let held = |thread: fs::DirEntry| held_in(&format!("{}/fd", thread.path().display()), wanted);
    threads.filter(|_| is_headless).filter_map(held).find(|held| !held.is_empty()).unwrap_or_default()
}

/// Looks at the descriptors in `directory`; `None` if there are none.
fn held_in(directory: &str, wanted: &HashSet<u32>) -> Option<Vec<u32>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut opened = Dir::open(directory, flags, Mode::empty()).ok()?;
    let at = opened.as_raw_fd();
    let (mut held, mut any) = (Vec::new(), false);
    for entry in opened.iter().flatten() {
        let name = entry.file_name();
        if name.to_bytes()[0] != b'.' {
            any = true;
            held.extend(socket_behind(at, name).filter(|inode| wanted.contains(inode)));
        }
    }
    held.sort_unstable();
    held.dedup();
    any.then_some(held)
}

/// Reads a link like `socket:[123]`. Without an allocation: there may be tens of thousands.
fn socket_behind(directory: RawFd, name: &CStr) -> Option<u32> {
    let mut link = [0u8; 32];
    // SAFETY: a path that ends with a NUL, and a buffer as long as said.
    let length = unsafe { libc::readlinkat(directory, name.as_ptr(), link.as_mut_ptr().cast(), link.len()) };
    let inode = link.get(..usize::try_from(length).ok()?)?.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(inode).ok()?.parse().ok()
}

/// Finds the directory of the cgroup v2 with this id: its inode there (`cgroup_id(2)` does not exist; kernfs
/// uses one number for both).
pub fn cgroup_directory(id: u64) -> Option<PathBuf> {
    let mount = super::cgroup::mount()?;
    let mut waiting = vec![mount.clone()];
    if fs::metadata(&mount).is_ok_and(|seen| std::os::unix::fs::MetadataExt::ino(&seen) == id) {
        return Some(mount);
    }
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.ino() == id {
                return Some(entry.path());
            }
            waiting.push(entry.path());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn own() -> Pid {
        super::super::process::own_pid()
    }

    #[test]
    fn a_listener_is_found_with_its_process_and_a_client_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let found = list(&[State::Listening], Some(port)).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].local, listener.local_addr().unwrap());
        assert_eq!(found[0].uid, super::super::process::own_uid());
        let wanted = HashSet::from([found[0].inode]);
        assert_eq!(held_by(own(), &wanted), vec![found[0].inode]);
        assert!(held_by(own(), &HashSet::new()).is_empty());
        let clients = client.local_addr().unwrap().port();
        assert!(list(&[State::Listening], Some(clients)).unwrap().is_empty());
        let seen = list(&[State::Established], Some(clients)).unwrap();
        assert_eq!(seen[0].remote.port(), port);
        drop((client, listener));
        assert!(list(&[State::Listening], Some(port)).unwrap().is_empty());
    }

    #[test]
    fn half_messages_are_no_sockets() {
        assert!(message(&[]).is_none());
        assert!(message(&[255; 20]).is_none());
        for length in 0..MESSAGE {
            assert_eq!(parse(&vec![2; length]), None);
        }
        let mut body = vec![0; MESSAGE + 3];
        (body[0], body[1]) = (2, 10);
        assert_eq!(parse(&body).unwrap().state, State::Listening);
    }
}
