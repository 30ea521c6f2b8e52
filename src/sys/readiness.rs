//! Waiting for a descriptor within tokio, and reading and writing without waiting.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells when a descriptor can be read.
#[derive(Debug)]
pub struct Readiness(AsyncFd<OwnedFd>);

impl Readiness {
    /// Watches `fd`, through a copy of its own. To be called within a runtime.
    pub fn of(fd: impl AsFd) -> io::Result<Readiness> {
        let copy = fd.as_fd().try_clone_to_owned()?;
        // SAFETY: the copy is valid, owned by the AsyncFd alone, and neither replaced nor closed before it.
        let watched = unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE) };
        Ok(Readiness(watched.map_err(io::Error::from)?))
    }

    /// Waits until there is something to read. The caller then reads all there is: what comes after this
    /// has returned wakes again, what was there before does not.
    pub async fn wait(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

/// One end of a pipe or of a terminal that is our own.
#[derive(Debug)]
pub struct End(AsyncFd<File>);

impl End {
    /// Takes `fd`, which is made non-blocking. To be called within a runtime.
    pub fn of(fd: OwnedFd) -> io::Result<End> {
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let both = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: the descriptor is valid, owned by the AsyncFd alone, and neither replaced nor closed before it.
        let watched = unsafe { AsyncFd::register_with_interest(File::from(fd), both) };
        Ok(End(watched.map_err(io::Error::from)?))
    }

    /// Waits until there is something to read, or its end.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await?.retain_ready();
        Ok(())
    }

    /// Waits until there is room to write. Errors if nobody will ever read.
    pub async fn writable(&self) -> io::Result<()> {
        let ready = self.0.writable().await?.ready();
        if ready.is_write_closed() { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }

    /// Reads what there is; `WouldBlock` if that is nothing, 0 at the end.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_io(Interest::READABLE, |mut file| file.read(buffer))
    }

    /// Reads what there is although nobody has told that there is something: what came just before the end has not been
    /// told perhaps.
    pub fn read_untold(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.get_ref().read(buffer)
    }

    /// Writes what there is room for; `WouldBlock` if that is nothing.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_io(Interest::WRITABLE, |mut file| file.write(bytes))
    }
}
