//! Making processes of ours: guard, supervisor, and those that work apart.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::children;
use super::inherit;
use super::process::{self, Pid};
use super::signal::{self, Signal};

/// Which side of a fork we are on.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The old one; the new one bears this pid.
    Parent(Pid),
}

/// Forks this process, which must have one thread.
pub fn fork() -> io::Result<Forked> {
    debug_assert_eq!(std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count), 1);
    // SAFETY: single-threaded (the caller's duty, checked above in debug builds), so the child may use all
    // of the library, not only what is async-signal-safe.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

/// Forks this process, which may have threads; the child has one. Besides allocating, the child must call only what is
/// async-signal-safe, unless the other threads only copy bytes.
pub fn fork_beside_threads() -> io::Result<Forked> {
    // SAFETY: the child may allocate: glibc makes its allocator fit for use in the child of a process with
    // threads (fork(3), glibc manual). Of other locks that threads take it uses none (the caller's duty).
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

/// Carries `work` out in a process of its own, in a new session and away from the caller's descriptors, which
/// is nobody's child here. Returns when it has begun. This process must have one thread.
pub fn detached(name: &CStr, work: impl FnOnce()) -> io::Result<()> {
    let Forked::Parent(first) = fork()? else {
        // SAFETY: no memory is passed; a process that was just forked leads no group, so it cannot fail.
        unsafe { libc::setsid() };
        if let Ok(Forked::Child) = fork() {
            inherit::rename_process(name, &name.to_string_lossy());
            // Within another run it is ended with that, and whoever comes next goes on.
            signal::be_mortal();
            let _ = let_go_of(&[0, 1, 2]);
            inherit::close_callers_others();
            work();
        }
        signal::exit_now(0)
    };
    children::wait_for(first).map(drop)
}

/// Leads a session of its own (`setsid(2)`), away from the caller's terminal and descriptors.
/// To be called in a process that was just forked: one that leads a group already cannot.
pub fn detach() -> io::Result<()> {
    // SAFETY: no memory is passed.
    if unsafe { libc::setsid() } < 0 {
        return Err(io::Error::last_os_error());
    }
    let_go_of(&[0, 1, 2])?;
    inherit::close_callers_others();
    inherit::forget_closed();
    Ok(())
}

/// Finds who adopts what loses its parent here (`PR_SET_CHILD_SUBREAPER`, prctl(2)): pid 1 or a subreaper. May be
/// called beside threads: the children of a moment only ask for pids and write one.
pub fn who_adopts() -> io::Result<Pid> {
    let (mut answer, mut tell) = io::pipe()?;
    let Forked::Parent(first) = fork_beside_threads()? else {
        let parent = process::own_pid();
        if let Ok(Forked::Child) = fork_beside_threads() {
            while process::parent_pid() == parent {
                std::thread::yield_now();
            }
            let _ = tell.write_all(&process::parent_pid().to_ne_bytes());
        }
        signal::exit_now(0)
    };
    drop(tell);
    children::wait_for(first)?;
    let mut pid = [0; 4];
    answer.read_exact(&mut pid)?;
    Ok(Pid::from_ne_bytes(pid))
}

/// Puts this process into a process group of its own (`setpgid(2)`).
pub fn lead_own_group() -> io::Result<()> {
    // SAFETY: no memory is passed.
    if unsafe { libc::setpgid(0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Leads a session of its own (`setsid(2)`), which has no terminal yet.
pub fn lead_own_session() -> io::Result<()> {
    // SAFETY: no memory is passed.
    if unsafe { libc::setsid() } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Has the kernel send us `signal` when our parent, `parent`, ends (`PR_SET_PDEATHSIG`). The parent must
/// have one thread.
pub fn end_with_parent(parent: Pid, signal: Signal) {
    // SAFETY: a prctl without pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal.number()) };
    if process::parent_pid() != parent {
        let _ = process::signal_own_child(process::own_pid(), signal);
    }
}

/// One rlimit to set: resource, soft and hard value; `None` leaves that one as it is.
#[derive(Clone, Copy, Debug)]
pub struct Rlimit {
    /// `RLIMIT_*`.
    pub resource: u32,
    /// The soft limit.
    pub soft: Option<u64>,
    /// The hard limit.
    pub hard: Option<u64>,
}

impl Rlimit {
    /// Sets it for this process; async-signal-safe.
    pub(super) fn apply(&self) -> io::Result<()> {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a valid resource (a wrong one is EINVAL) and a valid place.
        if unsafe { libc::getrlimit(self.resource, &mut limit) } < 0 {
            return Err(io::Error::last_os_error());
        }
        limit.rlim_max = self.hard.unwrap_or(limit.rlim_max);
        limit.rlim_cur = self.soft.unwrap_or(limit.rlim_cur).min(limit.rlim_max);
        // SAFETY: as above.
        if unsafe { libc::setrlimit(self.resource, &limit) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Returns the current soft and hard values of `resource`.
pub fn current_rlimit(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid place for the answer.
    if unsafe { libc::getrlimit(resource, &mut limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Lets `command` inherit `fd`, which stays close-on-exec for every other process that we start.
pub fn inherit_descriptor(command: &mut Command, fd: RawFd) {
    let keep_open = move || {
        // SAFETY: F_SETFD changes only this descriptor's flag, in the child; async-signal-safe.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure makes one async-signal-safe call and does not allocate.
    unsafe { command.pre_exec(keep_open) };
}

/// Points the descriptors in `which` (0 to 2) at /dev/null, so that nobody who reads or writes
/// the other end waits for us.
pub fn let_go_of(which: &[RawFd]) -> io::Result<()> {
    let null: OwnedFd = File::options().read(true).write(true).open("/dev/null")?.into();
    for fd in which {
        // SAFETY: both are descriptors of ours; dup2 closes the target and cannot leave it closed.
        if unsafe { libc::dup2(null.as_raw_fd(), *fd) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
