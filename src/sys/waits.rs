//! Blocking until a descriptor has something to say (`poll(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Returns how many bytes a pipe has for its reader (`FIONREAD`, ioctl_tty(2)).
pub fn bytes_to_read(pipe: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    if unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut count) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(count).unwrap_or_default())
}

/// Blocks until one of `fds` is readable, hung up or broken, or `timeout` is over; returns
/// which are. A descriptor that is given with `false` is watched for hang-up alone.
pub fn any(fds: &[(BorrowedFd<'_>, bool)], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|(fd, reads)| {
            let wanted = if *reads { PollFlags::POLLIN } else { PollFlags::empty() };
            PollFd::new(*fd, wanted)
        })
        .collect();
    match poll(&mut polled, milliseconds(timeout)) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(vec![false; fds.len()]),
        Err(error) => return Err(error.into()),
    }
    Ok(polled.iter().map(|fd| fd.any().unwrap_or(true)).collect())
}

/// Blocks until `fd` is readable or `timeout` is over; returns whether it is.
pub fn readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
    Ok(any(&[(fd, true)], timeout)?[0])
}

/// Blocks until `fd` takes bytes or `timeout` is over; returns whether it does.
pub fn writable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> bool {
    let mut polled = [PollFd::new(fd, PollFlags::POLLOUT)];
    let ready = poll(&mut polled, milliseconds(timeout));
    ready.is_ok() && polled[0].revents().is_some_and(|seen| seen == PollFlags::POLLOUT)
}

/// Rounds up, so that nobody wakes just before the instant and spins.
fn milliseconds(timeout: Option<Duration>) -> PollTimeout {
    match timeout {
        None => PollTimeout::NONE,
        Some(span) => {
            let rounded = span.as_nanos().div_ceil(1_000_000);
            PollTimeout::from(u16::try_from(rounded).unwrap_or(u16::MAX))
        }
    }
}
