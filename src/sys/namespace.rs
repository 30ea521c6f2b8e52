//! Pid namespaces (`pid_namespaces(7)`, `user_namespaces(7)`): when their first process ends, the kernel kills
//! all others, whoever else has been killed.
//!
//! The supervisor unshares, so that what it forks next is in the new namespace; it stays outside itself, and
//! the leader is its own child as ever. Without CAP_SYS_ADMIN a user namespace comes first, with
//! nobody but the user in it: `sudo` does not work inside.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::spawn::{self, Forked};
use super::{children, process};

/// Enters a user namespace if this process could not make others otherwise. It must have one thread.
pub fn gain_rights() -> io::Result<()> {
    // The cheapest question for CAP_SYS_ADMIN: a host name of our own, which nobody sees.
    if unshare(CloneFlags::CLONE_NEWUTS).is_ok() {
        return Ok(());
    }
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    // Without this the map of groups may not be written (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))
}

/// Puts what this process forks from now on into a new pid namespace; the first of them is its init. It can
/// start no thread afterwards (`clone(2)`, EINVAL).
pub fn unshare_pids() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWPID)?)
}

/// Gives this process a /proc of its own pid namespace, seen by nobody else; async-signal-safe.
pub(super) fn mount_own_proc() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is mounted outside later still comes in; what is mounted here does not go out.
    mount(None::<&str>, c"/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some(c"proc"), c"/proc", Some(c"proc"), flags, None::<&str>)?)
}

/// Two pipes into the init: from the guard and from the supervisor. Each end that is written to is held by
/// one of them alone, so that its closing is that one's death.
#[derive(Debug)]
pub struct Lifelines {
    readers: [File; 2],
    guards: File,
    supervisors: File,
}

/// The end that guard or supervisor keeps.
#[derive(Debug)]
pub struct Lifeline(File);

impl Lifeline {
    /// Tells the init that the leader has ended.
    pub fn leader_ended(&self) {
        // An init that has ended needs no telling.
        let _ = (&self.0).write_all(b"e");
    }
}

impl Lifelines {
    /// Makes both.
    pub fn new() -> io::Result<Lifelines> {
        let ((one, guards), (other, supervisors)) = (io::pipe()?, io::pipe()?);
        let file = |end: OwnedFd| File::from(end);
        Ok(Lifelines {
            readers: [file(one.into()), file(other.into())],
            guards: file(guards.into()),
            supervisors: file(supervisors.into()),
        })
    }

    /// Keeps the guard's end.
    pub fn for_guard(self) -> Lifeline {
        Lifeline(self.guards)
    }

    /// Keeps the supervisor's end.
    pub fn for_supervisor(self) -> Lifeline {
        Lifeline(self.supervisors)
    }

    /// Keeps the ends that are read.
    pub fn for_init(self) -> [File; 2] {
        self.readers
    }
}

/// Tries all of it in a process that ends at once. Errors as the kernel refuses.
pub fn probe() -> io::Result<()> {
    match spawn::fork()? {
        Forked::Child => {
            let tried = gain_rights().and_then(|()| unshare_pids()).and_then(|()| match spawn::fork()? {
                Forked::Child => super::signal::exit_now(code_of(mount_own_proc())),
                Forked::Parent(init) => result_of(init),
            });
            super::signal::exit_now(code_of(tried))
        }
        Forked::Parent(child) => result_of(child),
    }
}

/// An error number fits into an exit code.
fn code_of(result: io::Result<()>) -> i32 {
    result.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EINVAL))
}

fn result_of(child: process::Pid) -> io::Result<()> {
    loop {
        match children::wait_for(child)? {
            children::Change::Ended(children::Ended::Exited(0)) => return Ok(()),
            children::Change::Ended(children::Ended::Exited(code)) => {
                return Err(io::Error::from_raw_os_error(code));
            }
            children::Change::Ended(_) => return Err(io::Error::other("the probe was killed")),
            _ => {}
        }
    }
}
