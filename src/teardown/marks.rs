//! Finding what a run has left when nobody stands above it any more.
//!
//! Every process of a run bears marks that it inherits: `AGENT_RUN_ID` in its environment, the open and
//! locked tree lock, a random soft RLIMIT_LOCKS, and the run's cgroup where it has one. A program can lose one or another (`env -i`, closing
//! all descriptors), hardly all. Each alone is enough; what descends from a marked process belongs to it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::env as vars;
use crate::registry::record::{Record, Survivor};
use crate::registry::store::TreeLock;
use crate::run::RunId;
use crate::sys::cgroup::{self, Leaf};
use crate::sys::clock::BootTime;
use crate::sys::process::{self, Pid, Pidfd, Stat};
use crate::sys::signal::Signal;
use crate::sys::{tree, waits};
use crate::teardown::progress::{Due, Progress};

/// The marks of one run.
#[derive(Debug)]
pub struct Marks {
    variable: Vec<u8>,
    rlimit: Option<u64>,
    lock: Option<TreeLock>,
    leader: Option<process::ProcessRef>,
    leaf: Option<Leaf>,
}

/// A process of the run, pinned before it was seen to be one.
#[derive(Debug)]
struct Marked {
    stat: Stat,
    pidfd: Pidfd,
}

impl Marks {
    /// Returns the marks of a run whose record cannot be read: what its id alone tells.
    pub fn of_id(id: &RunId, lock: Option<TreeLock>) -> Marks {
        let variable = format!("{}={id}", vars::ID).into_bytes();
        Marks { variable, rlimit: None, lock, leader: None, leaf: None }
    }

    /// Returns the marks of `record`'s run; `None` if it ran before the last boot, when nothing can be left.
    pub fn of(record: &Record, lock: Option<TreeLock>) -> Option<Marks> {
        (record.boot_id == process::boot_id()).then(|| Marks {
            variable: format!("{}={}", vars::ID, record.id).into_bytes(),
            rlimit: record.mark,
            lock,
            leader: record.leader.clone(),
            leaf: record.cgroup.as_deref().and_then(|path| Leaf::open(Path::new(path)).ok()),
        })
    }

    /// Adds every living process of the run to `found`, and drops the dead; ourselves and our ancestors are never
    /// among them. Who was found once stays: the parent by whom it was known may die first.
    fn find(&self, found: &mut HashMap<Pid, Marked>) {
        let mut ours = process::ancestors();
        ours.push(process::own_pid());
        let all: Vec<Stat> =
            tree::all_processes().filter_map(Stat::read).filter(|stat| !stat.is_dead()).collect();
        let inside: HashSet<Pid> = self.leaf.iter().flat_map(Leaf::processes).collect();
        let locked = self.lock.as_ref().is_some_and(TreeLock::is_held);
        let candidates = all.iter().filter(|stat| stat.pid != 1 && !ours.contains(&stat.pid));
        for stat in candidates.clone() {
            if found.get(&stat.pid).is_some_and(|known| known.pidfd.is_alive()) {
                continue;
            }
            // Pinned first: what is read afterwards is this process's if it still lives then.
            let Ok(pidfd) = Pidfd::open(stat.pid) else { continue };
            let is_inside =
                |leaf: &Leaf| inside.contains(&stat.pid) && cgroup::is_within(stat.pid, leaf.path());
            let bears = self.leaf.as_ref().is_some_and(is_inside) || self.bears(stat.pid, locked);
            if bears && pidfd.is_alive() {
                found.insert(stat.pid, Marked { stat: stat.clone(), pidfd });
            }
        }
        while let Some(heir) = candidates
            .clone()
            .filter(|stat| !found.contains_key(&stat.pid))
            .find_map(|stat| heir(stat, found))
        {
            found.insert(heir.stat.pid, heir);
        }
        found.retain(|_, marked| marked.pidfd.is_alive());
    }

    fn bears(&self, pid: Pid, locked: bool) -> bool {
        let environment = || fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        self.is_leader(pid)
            || environment().split(|byte| *byte == 0).any(|entry| entry == self.variable)
            || self.bears_rlimit(pid)
            || (locked && self.lock.as_ref().is_some_and(|lock| lock.is_held_by(pid)))
    }

    fn is_leader(&self, pid: Pid) -> bool {
        self.leader.as_ref().is_some_and(|leader| leader.pid == pid && leader.pin().is_some())
    }

    /// The number is random, so it is evidence together with the user that drew it.
    fn bears_rlimit(&self, pid: Pid) -> bool {
        let Some(mark) = self.rlimit else { return false };
        let same_user =
            fs::metadata(format!("/proc/{pid}")).is_ok_and(|seen| seen.uid() == process::own_uid());
        let limits = || fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        let soft = |text: String| {
            let line = text.lines().find_map(|line| line.strip_prefix("Max file locks"))?.to_owned();
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        same_user && soft(limits()) == Some(mark)
    }

    /// Returns what lives of the run, for a report.
    pub fn living(&self) -> Vec<Stat> {
        let mut found = HashMap::new();
        self.find(&mut found);
        found.into_values().map(|marked| marked.stat).collect()
    }

    /// Ends all that bears the marks: politely, then not. Returns what is left, and how many needed SIGKILL.
    pub fn end(&self, signal: Signal, grace: Duration) -> (Vec<Survivor>, u32) {
        let mut progress = Progress::begin(grace, BootTime::now());
        // What was stopped by us must be able to heed a signal.
        let _ = self.leaf.as_ref().map(|leaf| leaf.freeze(false));
        let (mut asked, mut killed) = (Vec::new(), Vec::new());
        let mut found = HashMap::new();
        loop {
            self.find(&mut found);
            if found.is_empty() {
                // Empty, so it can go; if something has just been put in there, the next one removes it.
                let _ = self.leaf.as_ref().map(Leaf::remove);
                return (Vec::new(), killed.len() as u32);
            }
            match progress.due(BootTime::now()) {
                Due::Nothing if !progress.is_killing() => {
                    send_once(&found, &mut asked, &[signal, Signal::CONT])
                }
                Due::Nothing => {}
                Due::Kill { .. } => {
                    send_once(&found, &mut killed, &[Signal::KILL]);
                    let _ = self.leaf.as_ref().map(Leaf::kill);
                }
                Due::GiveUp => return (found.values().map(survivor).collect(), killed.len() as u32),
            }
            wait_for_a_death(&found, progress.wake_at());
        }
    }
}

fn send_once(found: &HashMap<Pid, Marked>, done: &mut Vec<(Pid, u64)>, signals: &[Signal]) {
    for marked in found.values() {
        let identity = (marked.stat.pid, marked.stat.start_time);
        if !done.contains(&identity) {
            done.push(identity);
            // EPERM for a process that became another user's: it is reported if it stays.
            signals.iter().for_each(|signal| drop(marked.pidfd.send(*signal)));
        }
    }
}

/// Sleeps until one of them dies or `until`, and looks again after a while in any case: there may be new ones.
fn wait_for_a_death(found: &HashMap<Pid, Marked>, until: BootTime) {
    const LOOK_AGAIN: Duration = Duration::from_millis(100);
    let span = until.saturating_since(BootTime::now()).min(LOOK_AGAIN);
    let fds: Vec<_> = found.values().map(|marked| (std::os::fd::AsFd::as_fd(&marked.pidfd), true)).collect();
    let _ = waits::any(&fds, Some(span));
}

/// Takes `stat`'s process if its parent is one of `found`, both alive after its entry was read again.
fn heir(stat: &Stat, found: &HashMap<Pid, Marked>) -> Option<Marked> {
    let parent = found.get(&stat.parent)?;
    let pidfd = Pidfd::open(stat.pid).ok()?;
    let stat = Stat::read(stat.pid).filter(|stat| stat.parent == parent.stat.pid && !stat.is_dead())?;
    (parent.pidfd.is_alive() && pidfd.is_alive()).then_some(Marked { stat, pidfd })
}

fn survivor(marked: &Marked) -> Survivor {
    let Stat { pid, comm, state, .. } = &marked.stat;
    Survivor { pid: *pid, command: comm.clone(), state: char::from(*state) }
}
