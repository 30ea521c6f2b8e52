//! The controlling terminal: whose it is, and its modes (`termios(3)`, `tcsetpgrp(3)`).
//!
//! Callers have SIGTTOU blocked, so that a background process may change the terminal
//! (`tcsetpgrp(3)`).

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{self, Pid as NixPid};

use super::process::Pid;

/// The terminal that controls this session.
#[derive(Debug)]
pub struct Terminal(File);

/// A terminal's modes, as they were at one moment.
#[derive(Clone, Debug)]
pub struct Modes(Termios);

impl Modes {
    /// Returns whether Ctrl-C and Ctrl-Z make signals (ISIG).
    pub fn make_signals(&self) -> bool {
        self.0.local_flags.contains(LocalFlags::ISIG)
    }
}

impl Terminal {
    /// Opens the controlling terminal; `None` if the session has none.
    pub fn open() -> Option<Terminal> {
        let flags = libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
        OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/tty").ok().map(Terminal)
    }

    /// Returns the process group that the terminal listens to; `None` once it has hung up.
    pub fn foreground(&self) -> Option<Pid> {
        unistd::tcgetpgrp(&self.0).ok().map(NixPid::as_raw)
    }

    /// Makes `group` the one that reads the keyboard and gets Ctrl-C.
    pub fn give_to(&self, group: Pid) -> io::Result<()> {
        Ok(unistd::tcsetpgrp(&self.0, NixPid::from_raw(group))?)
    }

    /// Returns the modes.
    pub fn modes(&self) -> Option<Modes> {
        tcgetattr(&self.0).ok().map(Modes)
    }

    /// Puts `modes` back, at once: to wait until what was written has been drawn could be for ever (Ctrl-S).
    pub fn set_modes(&self, modes: &Modes) {
        // Fails only for a terminal that has hung up, and then there is nothing to restore.
        let _ = tcsetattr(&self.0, SetArg::TCSANOW, &modes.0);
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Terminal {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Returns our own process group.
pub fn own_group() -> Pid {
    unistd::getpgrp().as_raw()
}

/// Returns whether stdin and stdout both are terminals: then a person sits in front of the command.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Returns the width of the terminal that stdout is, in columns.
pub fn width() -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize.
    let result = unsafe { libc::ioctl(1, libc::TIOCGWINSZ, &mut size) };
    (result == 0 && size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Makes the terminal `fd` that of our session (`TIOCSCTTY`, ioctl_tty(2)), which we lead and which has none.
pub fn take_as_own(fd: RawFd) -> io::Result<()> {
    // SAFETY: an ioctl that takes a number.
    if unsafe { libc::ioctl(fd, libc::TIOCSCTTY, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes a terminal for a program: our end and its own. What is written to it comes as it is, a line may be of any
/// length and is not echoed; Ctrl-C is a signal (`termios(3)`).
pub fn for_program() -> io::Result<(OwnedFd, OwnedFd)> {
    const SIZE: Winsize = Winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
    let OpenptyResult { master, slave } = openpty(&SIZE, None)?;
    for end in [&master, &slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    let mut modes = tcgetattr(&slave)?;
    cfmakeraw(&mut modes);
    modes.local_flags.insert(LocalFlags::ISIG);
    tcsetattr(&slave, SetArg::TCSANOW, &modes)?;
    Ok((master, slave))
}
