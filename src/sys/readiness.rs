//! Waiting for a descriptor within tokio.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

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
