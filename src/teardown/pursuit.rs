//! Ending processes that are not below us: each is pinned before it is known for what it is sought for, and its
//! descendants with it, as long as one is left or patience lasts.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::Duration;

use crate::registry::record::Survivor;
use crate::sys::clock::BootTime;
use crate::sys::process::{self, Pid, Pidfd, ProcessRef, Stat};
use crate::sys::signal::Signal;
use crate::sys::{tree, waits};
use crate::teardown::progress::{Due, Progress};

/// Those that were found.
#[derive(Debug, Default)]
pub struct Found(HashMap<Pid, Pinned>);

#[derive(Debug)]
struct Pinned {
    stat: Stat,
    pidfd: Pidfd,
}

impl Found {
    /// Adds every living process for which `is_sought` holds, with all that descends from those, and drops the
    /// dead; pid 1, ourselves and our ancestors are never among them. Who was found once stays: the parent by whom it was
    /// known may die first.
    pub fn search(&mut self, is_sought: &dyn Fn(Pid) -> bool) {
        let mut ours = process::ancestors();
        ours.push(process::own_pid());
        let all: Vec<Stat> =
            tree::all_processes().filter_map(Stat::read).filter(|stat| !stat.is_dead()).collect();
        let candidates = all.iter().filter(|stat| stat.pid != 1 && !ours.contains(&stat.pid));
        for stat in candidates.clone() {
            if self.0.get(&stat.pid).is_some_and(|known| known.pidfd.is_alive()) {
                continue;
            }
            // Pinned first: what is read afterwards is this process's if it still lives then.
            let Ok(pidfd) = Pidfd::open(stat.pid) else { continue };
            if is_sought(stat.pid) && pidfd.is_alive() {
                self.0.insert(stat.pid, Pinned { stat: stat.clone(), pidfd });
            }
        }
        // One generation after the other: each is found by the one before.
        loop {
            let unknown = candidates.clone().filter(|stat| !self.0.contains_key(&stat.pid));
            let heirs: Vec<Pinned> = unknown.filter_map(|stat| self.heir(stat)).collect();
            if heirs.is_empty() {
                break;
            }
            self.0.extend(heirs.into_iter().map(|heir| (heir.stat.pid, heir)));
        }
        self.0.retain(|_, pinned| pinned.pidfd.is_alive());
    }

    /// Takes `stat`'s process if its parent was found, both alive after its entry was read again.
    fn heir(&self, stat: &Stat) -> Option<Pinned> {
        let parent = self.0.get(&stat.parent)?;
        let pidfd = Pidfd::open(stat.pid).ok()?;
        let stat = Stat::read(stat.pid).filter(|stat| stat.parent == parent.stat.pid && !stat.is_dead())?;
        (parent.pidfd.is_alive() && pidfd.is_alive()).then_some(Pinned { stat, pidfd })
    }

    /// Returns them as they were when they were found.
    pub fn into_stats(self) -> Vec<Stat> {
        self.0.into_values().map(|pinned| pinned.stat).collect()
    }

    fn send_once(&self, done: &mut Vec<(Pid, u64)>, signals: &[Signal]) {
        for pinned in self.0.values() {
            let identity = (pinned.stat.pid, pinned.stat.start_time);
            if !done.contains(&identity) {
                done.push(identity);
                // EPERM for a process that became another user's: it is reported if it stays.
                signals.iter().for_each(|signal| drop(pinned.pidfd.send(*signal)));
            }
        }
    }

    /// Sleeps until one of them dies or `until`, and returns after a while in any case: there may be new ones.
    fn wait_for_a_death(&self, until: BootTime) {
        const LOOK_AGAIN: Duration = Duration::from_millis(100);
        let span = until.saturating_since(BootTime::now()).min(LOOK_AGAIN);
        let fds: Vec<_> = self.0.values().map(|pinned| (pinned.pidfd.as_fd(), true)).collect();
        let _ = waits::any(&fds, Some(span));
    }

    fn survivors(&self) -> Vec<Survivor> {
        let survivor = |pinned: &Pinned| {
            let Stat { pid, comm, state, .. } = &pinned.stat;
            Survivor { pid: *pid, command: comm.clone(), state: char::from(*state) }
        };
        self.0.values().map(survivor).collect()
    }
}

/// Ends whom `find` finds, again and again: politely with `signal`, after `grace` by SIGKILL and by `kill`, whatever that
/// does at once. Returns what is left, and who needed SIGKILL.
pub fn pursue(
    find: &dyn Fn(&mut Found),
    kill: &dyn Fn(),
    signal: Signal,
    grace: Duration,
) -> (Vec<Survivor>, Vec<Pid>) {
    let mut progress = Progress::begin(grace, BootTime::now());
    let (mut asked, mut killed) = (Vec::new(), Vec::new());
    let mut found = Found::default();
    loop {
        find(&mut found);
        if found.0.is_empty() {
            return (Vec::new(), pids(killed));
        }
        match progress.due(BootTime::now()) {
            Due::Nothing if !progress.is_killing() => found.send_once(&mut asked, &[signal, Signal::CONT]),
            Due::Nothing => {}
            Due::Kill { .. } => {
                found.send_once(&mut killed, &[Signal::KILL]);
                kill();
            }
            Due::GiveUp => return (found.survivors(), pids(killed)),
        }
        found.wait_for_a_death(progress.wake_at());
    }
}

fn pids(identities: Vec<(Pid, u64)>) -> Vec<Pid> {
    identities.into_iter().map(|(pid, _)| pid).collect()
}

/// Ends the processes `roots`, each only if it is still the one that is meant, and all that descends from them.
pub fn end_trees(roots: &[ProcessRef], signal: Signal, grace: Duration) -> (Vec<Survivor>, Vec<Pid>) {
    let is_root = |pid: Pid| roots.iter().any(|root| root.pid == pid && root.pin().is_some());
    pursue(&|found| found.search(&is_root), &|| (), signal, grace)
}
