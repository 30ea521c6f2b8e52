//! Unix sockets: reached by directory descriptor, so that a long path works, and with the
//! peer's user checked (`unix(7)`).

use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, getsockopt,
    recvmsg, sendmsg, socketpair, sockopt::PeerCredentials,
};

/// `sun_path` has 108 bytes; this name for the directory is always short (`proc_pid_fd(5)`).
fn short_path(directory: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

/// Binds a socket `name` in `directory`, mode 0600, and listens.
pub fn listen_in(directory: &File, name: &str) -> io::Result<UnixListener> {
    let path = short_path(directory, name);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects to the socket `name` in `directory`.
pub fn connect_in(directory: &File, name: &str) -> io::Result<UnixStream> {
    UnixStream::connect(short_path(directory, name))
}

/// Returns the user id of the process at the other end, as it was when it connected.
pub fn peer_uid(stream: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(getsockopt(&stream, PeerCredentials)?.uid())
}

/// Sends `bytes` with a descriptor that goes along with the first of them (`SCM_RIGHTS`, unix(7)); returns how many of them
/// were taken.
pub fn send_with(stream: BorrowedFd<'_>, bytes: &[u8], file: BorrowedFd<'_>) -> io::Result<usize> {
    let files = [file.as_raw_fd()];
    let along = [ControlMessage::ScmRights(&files)];
    let sent =
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &along, MsgFlags::MSG_NOSIGNAL, None);
    Ok(sent?)
}

/// Receives what has come, and the descriptor that has come along; returns how many bytes.
pub fn receive_with(stream: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; 1]);
    let mut pieces = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let got = recvmsg::<()>(stream.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
    let mut file = None;
    // Whoever has no descriptor left gets none: that is no error (MSG_CTRUNC), and the bytes have come.
    for along in got.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(files) = along {
            for number in files {
                // SAFETY: the kernel has just made it for us, and nobody else knows of it.
                file = Some(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
    Ok((got.bytes, file))
}

/// One end of a channel that keeps messages apart and tells when the other end has died
/// (`SOCK_SEQPACKET`: a zero-length read is the end).
#[derive(Debug)]
pub struct Packets(OwnedFd);

/// What [`Packets::receive`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A message.
    Message(Vec<u8>),
    /// Nothing yet.
    Nothing,
    /// The other end is closed.
    Closed,
}

impl Packets {
    /// Creates both ends.
    pub fn pair() -> io::Result<(Packets, Packets)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Packets(one), Packets(other)))
    }

    /// Sends one message. A closed other end is no error here: reading tells it.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        match socket::send(self.0.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes one message, without waiting.
    pub fn receive(&self) -> Received {
        let mut buffer = vec![0; MAX_PACKET];
        match socket::recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => Received::Closed,
            Ok(length) => {
                buffer.truncate(length);
                Received::Message(buffer)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Received::Nothing,
            Err(_) => Received::Closed,
        }
    }
}

/// Longer than any message between guard and supervisor.
const MAX_PACKET: usize = 16 * 1024;

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Packets {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
