//! Finding what a run has left when nobody stands above it any more.
//!
//! Every process of a run bears marks that it inherits: `AGENT_RUN_ID` in its environment, the open and
//! locked tree lock, a random soft RLIMIT_LOCKS, and the run's cgroup where it has one. A program can lose one or another (`env -i`, closing
//! all descriptors), hardly all. Each alone is enough; what descends from a marked process belongs to it.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::env as vars;
use crate::registry::record::{Record, Survivor};
use crate::registry::store::TreeLock;
use crate::run::RunId;
use crate::sys::cgroup::{self, Leaf};
use crate::sys::process::{self, Environment, Pid, Stat};
use crate::sys::signal::Signal;
use crate::teardown::pursuit::{Found, pursue};

/// The marks of one run.
#[derive(Debug)]
pub struct Marks {
    variable: Vec<u8>,
    rlimit: Option<u64>,
    lock: Option<TreeLock>,
    leader: Option<process::ProcessRef>,
    leaf: Option<Leaf>,
}

impl Marks {
    /// Returns the marks of a run whose record cannot be read: what its id alone tells, the cgroup `leaf` of that name too.
    pub fn of_id(id: &RunId, lock: Option<TreeLock>, leaf: Option<Leaf>) -> Marks {
        let variable = format!("{}={id}", vars::ID).into_bytes();
        Marks { variable, rlimit: None, lock, leader: None, leaf }
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

    /// Adds every living process of the run to `found`; ourselves and our ancestors are never among them.
    fn find(&self, found: &mut Found) {
        let inside: HashSet<Pid> = self.leaf.iter().flat_map(Leaf::processes).collect();
        let locked = self.lock.as_ref().is_some_and(TreeLock::is_held);
        let is_inside = |pid: Pid, leaf: &Leaf| inside.contains(&pid) && cgroup::is_within(pid, leaf.path());
        found.search(&|pid| {
            self.leaf.as_ref().is_some_and(|leaf| is_inside(pid, leaf)) || self.bears(pid, locked)
        });
    }

    fn bears(&self, pid: Pid, locked: bool) -> bool {
        let environment = || Environment::of(pid).unwrap_or_default();
        self.is_leader(pid)
            || environment().entries().any(|entry| entry == self.variable)
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
        let mut found = Found::default();
        self.find(&mut found);
        found.into_stats()
    }

    /// Ends all that bears the marks: politely, then not. Returns what is left, and how many needed SIGKILL.
    pub fn end(&self, signal: Signal, grace: Duration) -> (Vec<Survivor>, u32) {
        // What was stopped by us must be able to heed a signal.
        let _ = self.leaf.as_ref().map(|leaf| leaf.freeze(false));
        let kill = || drop(self.leaf.as_ref().map(Leaf::kill));
        let (survivors, killed) = pursue(&|found| self.find(found), &kill, signal, grace);
        if survivors.is_empty() {
            // Empty, so it can go; if something has just been put in there, the next one removes it.
            let _ = self.leaf.as_ref().map(Leaf::remove);
        }
        (survivors, killed.len() as u32)
    }
}
