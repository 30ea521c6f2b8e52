//! Sockets of our network namespace as the kernel lists them (`sock_diag(7)`): those of TCP, and who is at the other end of
//! Unix ones.
//!
//! The kernel knows a socket by its inode, not by a process: several may have it, or none (in flight over a
//! Unix socket, the kernel's own, one whose process we may not look into).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};

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
    /// All of them, each once.
    pub const ALL: [State; 11] = [
        State::Established,
        State::SynSent,
        State::SynReceived,
        State::FinWait1,
        State::FinWait2,
        State::TimeWait,
        State::CloseWait,
        State::LastAck,
        State::Listening,
        State::Closing,
        State::Bound,
    ];

    /// Returns those of connections, closed ones too: neither listening nor only bound.
    pub fn of_connections() -> Vec<State> {
        let connects = |state: &State| !matches!(state, State::Listening | State::Bound);
        State::ALL.into_iter().filter(connects).collect()
    }

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

impl Socket {
    /// Returns where this machine reaches it, if it listens: any address means this machine's own, and one for IPv6 is
    /// one for IPv4 as well, unless it says otherwise.
    pub fn reachable_at(&self) -> Vec<SocketAddr> {
        let at = |ip: IpAddr| SocketAddr::new(ip, self.local.port());
        match self.local.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => vec![at(Ipv4Addr::LOCALHOST.into())],
            IpAddr::V6(ip) if ip.is_unspecified() && self.v6only => vec![at(Ipv6Addr::LOCALHOST.into())],
            IpAddr::V6(ip) if ip.is_unspecified() => {
                vec![at(Ipv4Addr::LOCALHOST.into()), at(Ipv6Addr::LOCALHOST.into())]
            }
            _ => vec![self.local],
        }
    }
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
/// `struct unix_diag_req` and `struct unix_diag_msg` (unix_diag.h), in bytes.
const UNIX_REQUEST: usize = 24;
const UNIX_MESSAGE: usize = 16;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;

/// Lists the sockets in one of `states`, IPv4 and IPv6, those with the local `port` or all. Errors if the kernel
/// cannot be asked (EPERM or EACCES in a sandbox, ENOENT without `CONFIG_INET_DIAG`).
pub fn list(states: &[State], port: Option<u16>) -> io::Result<Vec<Socket>> {
    let bits =
        STATES.iter().filter(|(_, state)| states.contains(state)).fold(0, |bits, (n, _)| bits | 1 << n);
    let netlink = netlink()?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        socket::send(netlink.as_raw_fd(), &request(family as u8, bits, port), MsgFlags::empty())?;
        match receive(&netlink, &mut |body| found.extend(parse(body))) {
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

/// Lists the Unix sockets of our network namespace: by the inode of each that of its other end; `None` if that is closed
/// or there is none. Errors as for [`list`].
pub fn unix_peers() -> io::Result<HashMap<u32, Option<u32>>> {
    let netlink = netlink()?;
    socket::send(netlink.as_raw_fd(), &unix_request(), MsgFlags::empty())?;
    let mut found = HashMap::new();
    receive(&netlink, &mut |body| found.extend(unix_peer(body)))?;
    Ok(found)
}

fn netlink() -> io::Result<OwnedFd> {
    let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
    Ok(socket::socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkSockDiag)?)
}

/// Begins a request whose body has so many bytes.
fn header(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + length);
    bytes.extend(((HEADER + length) as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes
}

/// `struct unix_diag_req`: all states, with the other ends.
fn unix_request() -> Vec<u8> {
    let mut bytes = header(UNIX_REQUEST);
    bytes.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(UDIAG_SHOW_PEER.to_ne_bytes());
    bytes.resize(HEADER + UNIX_REQUEST, 0);
    bytes
}

/// Reads one `struct unix_diag_msg` with its attributes. A peer that is closed has no inode any more.
fn unix_peer(body: &[u8]) -> Option<(u32, Option<u32>)> {
    let rest = body.get(UNIX_MESSAGE..)?;
    let peer =
        attributes(rest).find(|(kind, _)| *kind == UNIX_DIAG_PEER).and_then(|(_, value)| word(value, 0));
    Some((word(body, 4)?, peer.filter(|inode| *inode != 0)))
}

/// Splits netlink attributes (`struct nlattr`): the kind and the value of each.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(rest, 0)?);
        let found = (half(rest, 2)?, rest.get(4..length)?);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    })
}

fn request(family: u8, states: u32, port: Option<u16>) -> Vec<u8> {
    let mut bytes = header(REQUEST);
    bytes.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend(port.unwrap_or(0).to_be_bytes());
    bytes.resize(HEADER + REQUEST, 0);
    bytes
}

/// Takes the answer to one request, to its end.
fn receive(netlink: &OwnedFd, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = socket::recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, body, after)) = message(rest) {
            match kind {
                // A dump that fails says so in its last message.
                NLMSG_DONE | NLMSG_ERROR => {
                    let code = word(body, 0).map_or(0, |number| number as i32);
                    return if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(()) };
                }
                _ => take(body),
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
    for (kind, value) in attributes(body.get(MESSAGE..)?) {
        match kind {
            INET_DIAG_SKV6ONLY => v6only = value.first() == Some(&1),
            INET_DIAG_CGROUP_ID => cgroup = value.try_into().ok().map(u64::from_ne_bytes),
            _ => {}
        }
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

#[cfg(test)]
mod tests {
    use super::super::descriptors::{self, Kind};
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn any_address_means_this_machine() {
        let table: [(&str, bool, &[&str]); 5] = [
            ("0.0.0.0:80", false, &["127.0.0.1:80"]),
            ("[::]:80", false, &["127.0.0.1:80", "[::1]:80"]),
            ("[::]:80", true, &["[::1]:80"]),
            ("127.0.0.2:80", false, &["127.0.0.2:80"]),
            ("[::1]:80", false, &["[::1]:80"]),
        ];
        for (local, v6only, expected) in table {
            let local: SocketAddr = local.parse().unwrap();
            let state = State::Listening;
            let (uid, inode, cgroup, expires) = (0, 1, None, Duration::ZERO);
            let socket = Socket { state, local, remote: local, v6only, uid, inode, cgroup, expires };
            let found: Vec<String> = socket.reachable_at().iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{local}");
        }
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
        let wanted = std::collections::HashSet::from([found[0].inode]);
        let own = super::super::process::own_pid();
        assert_eq!(descriptors::held_by(own, Kind::Socket, &wanted), vec![found[0].inode]);
        assert!(descriptors::held_by(own, Kind::Socket, &Default::default()).is_empty());
        let clients = client.local_addr().unwrap().port();
        assert!(list(&[State::Listening], Some(clients)).unwrap().is_empty());
        let seen = list(&[State::Established], Some(clients)).unwrap();
        assert_eq!(seen[0].remote.port(), port);
        drop((client, listener));
        assert!(list(&[State::Listening], Some(port)).unwrap().is_empty());
    }

    #[test]
    fn the_other_end_of_a_unix_socket_is_told_until_it_is_closed() {
        use std::os::unix::net::UnixStream;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let inode = |socket: &UnixStream| {
            let mut found = None;
            descriptors::each(super::super::process::own_pid(), &mut |fd, link| {
                found = found.or_else(|| {
                    descriptors::inode_in(link, Kind::Socket).filter(|_| fd == socket.as_raw_fd())
                });
            });
            found.unwrap()
        };
        let (our_end, their_end) = (inode(&ours), inode(&theirs));
        assert_eq!(unix_peers().unwrap()[&our_end], Some(their_end));
        let copy = theirs.try_clone().unwrap();
        drop(theirs);
        assert_eq!(unix_peers().unwrap()[&our_end], Some(their_end));
        drop(copy);
        assert_eq!(unix_peers().unwrap()[&our_end], None);
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
