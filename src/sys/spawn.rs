//! Making processes: the fork of guard and supervisor, and the command's first process.
//!
//! command-group is not used: of what it offers only the group's creation is right under a
//! subreaper (its waits lose the leader's status there), std has that, and it would bring a second nix.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use super::cgroup::Entrance;
use super::inherit;
use super::namespace;
use super::process::{self, Pid};
use super::signal::Signal;
use super::tty::{self, Terminal};

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

/// Forks this process, which may have threads that only copy bytes; the child has one.
pub fn fork_beside_threads() -> io::Result<Forked> {
    // SAFETY: the child may allocate: glibc makes its allocator fit for use in the child of a process with
    // threads (fork(3), glibc manual). No other lock that those threads take is used by the child.
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
            let _ = let_go_of(&[0, 1, 2]);
            inherit::close_callers_others();
            work();
        }
        super::signal::exit_now(0)
    };
    process::wait_for(first).map(drop)
}

/// Puts this process into a process group of its own (`setpgid(2)`).
pub fn lead_own_group() -> io::Result<()> {
    // SAFETY: no memory is passed.
    if unsafe { libc::setpgid(0, 0) } < 0 {
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
    fn apply(&self) -> io::Result<()> {
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

/// What the command's first process does between fork and exec, beside what std does.
#[derive(Debug)]
pub struct LeaderSetup {
    /// Sent to the leader by the kernel if the supervisor dies (`PR_SET_PDEATHSIG`).
    pub on_supervisor_death: Signal,
    /// Limits, in this order.
    pub rlimits: Vec<Rlimit>,
    /// Given to the leader if the group named with it has it now.
    pub terminal: Option<(Terminal, Pid)>,
    /// The only descriptor of ours that the command inherits: held open as long as something of the
    /// run lives.
    pub tree_lock: Option<File>,
    /// The cgroup that it enters.
    pub cgroup: Option<Entrance>,
    /// Whether it is in a pid namespace that we are not in.
    pub isolated: bool,
}

/// Starts `command` as the leader of its own process group, with what the caller of
/// `agent-run` had: mask, dispositions, closed descriptors. Returns after its exec; an error
/// with a raw OS code is the exec's own.
pub fn leader(mut command: Command, setup: LeaderSetup) -> io::Result<Child> {
    let supervisor = process::own_pid();
    command.process_group(0);
    // SAFETY: the closure makes only async-signal-safe calls and does not allocate.
    unsafe { command.pre_exec(move || prepare_leader(&setup, supervisor)) };
    command.spawn()
}

/// Runs in the child. Everything here is async-signal-safe (`signal-safety(7)`).
fn prepare_leader(setup: &LeaderSetup, supervisor: Pid) -> io::Result<()> {
    // SAFETY: a prctl without pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, setup.on_supervisor_death.number()) };
    // From within a namespace, a parent outside has no number.
    if process::parent_pid() != if setup.isolated { 0 } else { supervisor } {
        // The supervisor died before the line above could count.
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // std has emptied the mask; the terminal may only be moved from the background with TTOU blocked.
    super::signal::block_all();
    if let Some(cgroup) = &setup.cgroup {
        cgroup.pass()?;
    }
    if let Some((terminal, group)) = &setup.terminal
        && terminal.foreground() == Some(if setup.isolated { 0 } else { *group })
    {
        // Refused only if the terminal has gone, and then the guard sees that.
        let _ = terminal.give_to(tty::own_group());
    }
    if setup.isolated {
        namespace::mount_own_proc()?;
    }
    for limit in &setup.rlimits {
        limit.apply()?;
    }
    if let Some(lock) = &setup.tree_lock {
        inherit_high(lock.as_raw_fd());
    }
    inherit::restore();
    Ok(())
}

/// Leaves a copy of `fd` open across exec, far above the numbers that programs use by convention
/// (LISTEN_FDS, make's jobserver).
fn inherit_high(fd: RawFd) {
    for lowest in [900, 200, 60, 3] {
        // SAFETY: F_DUPFD makes a copy and touches nothing else; without room at or above `lowest`
        // it fails with EINVAL or EMFILE.
        if unsafe { libc::fcntl(fd, libc::F_DUPFD, lowest) } >= 0 {
            return;
        }
    }
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
