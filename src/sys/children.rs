//! Our own children: what became of them (`waitid(2)`), and that none is left.

use std::io;
use std::mem::MaybeUninit;

use super::process::Pid;
use super::signal::Signal;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this code.
    Exited(i32),
    /// Of this signal.
    Signaled(Signal),
}

/// One change of a child, as `waitid(2)` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It ended.
    Ended(Ended),
    /// It was stopped by this signal.
    Stopped(Signal),
    /// It goes on.
    Continued,
}

/// Returns whether `pid` is a child of ours that we have not reaped.
pub fn is_own_child(pid: Pid) -> bool {
    !wait_now(Whom::Child(pid), libc::WEXITED | libc::WNOWAIT)
        .is_err_and(|error| error.raw_os_error() == Some(libc::ECHILD))
}

/// Which child is asked about.
#[derive(Clone, Copy, Debug)]
pub enum Whom {
    /// Any child.
    Any,
    /// This one.
    Child(Pid),
}

/// Returns a child that has ended, without reaping it: until [`reap`] its number stays its own.
pub fn peek_ended(whom: Whom) -> Option<(Pid, Ended)> {
    let (pid, change) = wait_now(whom, libc::WEXITED | libc::WNOWAIT).ok()??;
    match change {
        Change::Ended(ended) => Some((pid, ended)),
        Change::Stopped(_) | Change::Continued => None,
    }
}

/// Reaps `child` if it has ended.
pub fn reap(child: Pid) -> Option<Ended> {
    match wait_now(Whom::Child(child), libc::WEXITED).ok()?? {
        (_, Change::Ended(ended)) => Some(ended),
        _ => None,
    }
}

/// Returns whether `child` was stopped or went on since the last question.
pub fn job_change(child: Pid) -> Option<Change> {
    let (_, change) = wait_now(Whom::Child(child), libc::WSTOPPED | libc::WCONTINUED).ok()??;
    Some(change)
}

/// Returns whether a child of ours still lives, zombies not counted: the kernel's own answer,
/// without a look at /proc. Under `PR_SET_CHILD_SUBREAPER` a false means that no descendant
/// lives either, since whoever loses his parent becomes our child before that parent is a zombie.
///
/// Asked for stops alone, `waitid(2)` reports ECHILD exactly if every child is a zombie that could
/// be reaped (`wait_consider_task` in kernel/exit.c, the same since 2.6.30); a dead leader of
/// living threads counts as alive.
pub fn any_child_lives() -> bool {
    match wait_now(Whom::Any, libc::WSTOPPED | libc::WNOWAIT) {
        Err(error) => error.raw_os_error() != Some(libc::ECHILD),
        Ok(_) => true,
    }
}

/// Returns whether we have any child at all, zombies included.
pub fn any_child_exists() -> bool {
    !wait_now(Whom::Any, libc::WEXITED | libc::WNOWAIT)
        .is_err_and(|error| error.raw_os_error() == Some(libc::ECHILD))
}

/// Blocks until `child` changes, and returns how; its end reaps it.
pub fn wait_for(child: Pid) -> io::Result<Change> {
    loop {
        let all = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED;
        match wait(Whom::Child(child), all) {
            Ok(Some((_, change))) => return Ok(change),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn wait_now(whom: Whom, flags: i32) -> io::Result<Option<(Pid, Change)>> {
    wait(whom, flags | libc::WNOHANG)
}

fn wait(whom: Whom, flags: i32) -> io::Result<Option<(Pid, Change)>> {
    let (kind, id) = match whom {
        Whom::Any => (libc::P_ALL, 0),
        Whom::Child(pid) => (libc::P_PID, pid as libc::id_t),
    };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` is a valid place for the answer. nix's wrapper is not used since it fails
    // for a child that died of a real-time signal.
    if unsafe { libc::waitid(kind, id, info.as_mut_ptr(), flags | libc::__WALL) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed and then perhaps written; si_pid stays 0 if nothing was found (waitid(2)).
    let (pid, code, status) = unsafe {
        let info = info.assume_init();
        (info.si_pid(), info.si_code, info.si_status())
    };
    Ok((pid != 0).then(|| (pid, change_of(code, status))))
}

fn change_of(code: i32, status: i32) -> Change {
    // A status of 0 cannot come with these codes; KILL is the harmless reading of nonsense.
    let signal = Signal::from_number(status).unwrap_or(Signal::KILL);
    match code {
        libc::CLD_EXITED => Change::Ended(Ended::Exited(status)),
        libc::CLD_STOPPED | libc::CLD_TRAPPED => Change::Stopped(signal),
        libc::CLD_CONTINUED => Change::Continued,
        _ => Change::Ended(Ended::Signaled(signal)),
    }
}

/// Makes this process the one that orphaned descendants come back to
/// (`PR_SET_CHILD_SUBREAPER`, Linux 3.4).
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: a prctl without pointers.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
