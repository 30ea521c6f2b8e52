//! Ports taken and given back (`socket(7)`, SO_REUSEADDR; `ip(7)`).
//!
//! A reservation is a socket that is bound and never listens. It is bound *without* SO_REUSEADDR, so that the
//! kernel refuses it if anybody has the port, a second reserver included; then the option is set, and a server
//! that sets it too may bind over it. The kernel gives a bound port to nobody who asks for any port. The
//! reservation goes with its last descriptor, however its process ends.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, getsockname, setsockopt,
    sockopt::{Ipv6V6Only, ReuseAddr},
};

/// A port that is ours, on every address of both families.
#[derive(Debug)]
pub struct Reservation {
    socket: OwnedFd,
    port: u16,
}

impl Reservation {
    /// Takes `port`, or any for 0. Errors: EADDRINUSE if anybody has it on any address, in TIME_WAIT too; EACCES
    /// below `ip_unprivileged_port_start`; EPERM where a sandbox forbids sockets.
    pub fn take(port: u16) -> io::Result<Reservation> {
        Reservation::bind(port, false)
    }

    /// As [`Reservation::take`], over connections that are in TIME_WAIT. A socket that is bound with SO_REUSEADDR
    /// and does not listen is not noticed either.
    pub fn take_over_closed(port: u16) -> io::Result<Reservation> {
        Reservation::bind(port, true)
    }

    fn bind(port: u16, over_closed: bool) -> io::Result<Reservation> {
        let socket = match socket_of(AddressFamily::Inet6) {
            Ok(socket) => {
                setsockopt(&socket, Ipv6V6Only, &false)?;
                setsockopt(&socket, ReuseAddr, &over_closed)?;
                let any = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
                bind(socket.as_raw_fd(), &any)?;
                socket
            }
            Err(Errno::EAFNOSUPPORT) => {
                let socket = socket_of(AddressFamily::Inet)?;
                setsockopt(&socket, ReuseAddr, &over_closed)?;
                bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
                socket
            }
            Err(error) => return Err(error.into()),
        };
        setsockopt(&socket, ReuseAddr, &true)?;
        let port = if port == 0 { port_of(&socket)? } else { port };
        Ok(Reservation { socket: out_of_the_way(socket)?, port })
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes it a listener, for a command that takes one over. Errors with EADDRINUSE if somebody else listens by now.
    pub fn listen(&self) -> io::Result<()> {
        Ok(socket::listen(&self.socket, Backlog::MAXCONN)?)
    }

    /// Returns the descriptor, which is close-on-exec.
    pub fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn socket_of(family: AddressFamily) -> nix::Result<OwnedFd> {
    socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

fn port_of(socket: &OwnedFd) -> io::Result<u16> {
    let v6 = getsockname::<SockaddrIn6>(socket.as_raw_fd()).map(|address| address.port());
    Ok(v6.or_else(|_| getsockname::<SockaddrIn>(socket.as_raw_fd()).map(|address| address.port()))?)
}

/// Moves `socket` up: numbers from 3 on are where a command expects the sockets that it is given.
fn out_of_the_way(socket: OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let mut last = Errno::EMFILE;
    // With a small limit of descriptors (ulimit -n) the higher ones cannot be had.
    for lowest in [100, 50, 20] {
        match fcntl(&socket, FcntlArg::F_DUPFD_CLOEXEC(lowest)) {
            // SAFETY: a fresh descriptor that nobody else owns.
            Ok(copy) => return Ok(unsafe { OwnedFd::from_raw_fd(copy) }),
            Err(error) => last = error,
        }
    }
    Err(if last == Errno::EINVAL { Errno::EMFILE } else { last }.into())
}

/// Returns the first port that needs no privilege (`ip_unprivileged_port_start`, Linux 4.11).
pub fn first_unprivileged() -> u16 {
    const USUAL: u16 = 1024;
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    text.trim().parse().unwrap_or(USUAL)
}

/// Returns the ports that the administrator keeps from automatic use, as ranges (`ip_local_reserved_ports`).
pub fn reserved() -> Vec<(u16, u16)> {
    ranges(&fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default())
}

/// Returns the ports that the kernel gives to outgoing connections (`ip_local_port_range`).
pub fn ephemeral() -> Option<(u16, u16)> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut numbers = text.split_whitespace().filter_map(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

fn ranges(text: &str) -> Vec<(u16, u16)> {
    let range = |part: &str| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        Some((low.parse().ok()?, high.parse().ok()?))
    };
    text.trim().split(',').filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_reservation_keeps_out_others_and_lets_a_server_in() {
        let taken = Reservation::take(0).unwrap();
        let port = taken.port();
        assert_eq!(Reservation::take(port).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
        // std sets SO_REUSEADDR, as nearly every server does.
        for address in ["127.0.0.1", "0.0.0.0", "::1", "::"] {
            let server = TcpListener::bind((address, port));
            assert!(server.is_ok(), "{address}: {server:?}");
        }
        drop(taken);
        assert_eq!(Reservation::take(port).unwrap().port(), port);
    }

    #[test]
    fn every_kind_of_listener_keeps_a_reservation_out() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let server = TcpListener::bind(address).unwrap();
            let port = server.local_addr().unwrap().port();
            assert!(Reservation::take(port).is_err(), "{address}");
            assert!(Reservation::take_over_closed(port).is_err(), "{address}");
        }
    }

    #[test]
    fn a_reservation_can_become_the_listener() {
        let taken = Reservation::take(0).unwrap();
        taken.listen().unwrap();
        TcpStream::connect(("127.0.0.1", taken.port())).unwrap();
        assert!(taken.descriptor() >= 3);
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(ranges("8080,9000-9010\n"), vec![(8080, 8080), (9000, 9010)]);
        assert_eq!(ranges("\n"), vec![]);
    }
}
