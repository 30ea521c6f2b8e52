//! Which processes have certain sockets: a search through every descriptor of every process, which takes
//! longer than all else together on a large machine.
//!
//! So they are looked for where they probably are: in the runs that claim the port, in the cgroup that the socket was
//! made in, then everywhere, the newest and the oldest processes first. The search ends when every socket has
//! somebody, with a look at the relatives of those, since the processes of a prefork server share one socket.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::holders::keepers_of;
use crate::registry::record::Record;
use crate::registry::seen::SeenRun;
use crate::sys::cgroup::{self, Leaf};
use crate::sys::crew;
use crate::sys::descriptors::{self, Kind};
use crate::sys::process::{Pid, Stat};
use crate::sys::sockets::Socket;
use crate::sys::tree;

/// How hard processes are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Until each socket has somebody, and among the relatives of those.
    Enough,
    /// Everywhere.
    Everywhere,
}

/// Returns who has each of `sockets`, by inode.
pub fn who_has(sockets: &[Socket]) -> HashMap<u32, Vec<Pid>> {
    owners_of(sockets, &[], Search::Everywhere)
}

/// Returns who has each of `sockets`, by inode, with the help of `runs`.
pub(super) fn owners_of(sockets: &[Socket], runs: &[SeenRun], search: Search) -> HashMap<u32, Vec<Pid>> {
    let wanted = sockets.iter().map(|socket| socket.inode).filter(|inode| *inode != 0).collect();
    let mut hunt = Hunt { wanted, found: HashMap::new(), asked: HashSet::new() };
    if search == Search::Everywhere {
        hunt.everywhere(search);
        return hunt.found;
    }
    let claiming = runs.iter().filter(|run| claims_one_of(run, sockets));
    hunt.among(claiming.flat_map(processes_of));
    if hunt.is_over() {
        return hunt.found;
    }
    let missing = sockets.iter().filter(|socket| !hunt.found.contains_key(&socket.inode));
    let cgroups: BTreeSet<u64> = missing.filter_map(|socket| socket.cgroup).collect();
    hunt.among(cgroups.into_iter().filter_map(small_cgroup).flatten());
    if !hunt.is_over() {
        hunt.everywhere(search);
        hunt.among_relatives();
    }
    hunt.found
}

struct Hunt {
    wanted: HashSet<u32>,
    found: HashMap<u32, Vec<Pid>>,
    asked: HashSet<Pid>,
}

impl Hunt {
    fn is_over(&self) -> bool {
        self.found.len() == self.wanted.len()
    }

    fn among(&mut self, pids: impl IntoIterator<Item = Pid>) {
        for pid in pids {
            if self.asked.insert(pid) {
                let held = descriptors::held_by(pid, Kind::Socket, &self.wanted);
                self.note(pid, held);
            }
        }
    }

    fn note(&mut self, pid: Pid, held: Vec<u32>) {
        for inode in held {
            self.found.entry(inode).or_default().push(pid);
        }
    }

    /// Asks every process that was not asked yet, by a thread for each CPU if they are many.
    fn everywhere(&mut self, search: Search) {
        let pids = from_both_ends(tree::all_processes().filter(|pid| !self.asked.contains(pid)).collect());
        let over = AtomicBool::new(self.is_over());
        let wanted = self.wanted.clone();
        let shared = Mutex::new(&mut *self);
        let part = |first: usize, step: usize| {
            for pid in pids.iter().skip(first).step_by(step) {
                if search == Search::Enough && over.load(Ordering::Relaxed) {
                    return;
                }
                let held = descriptors::held_by(*pid, Kind::Socket, &wanted);
                if held.is_empty() {
                    continue;
                }
                let Ok(mut hunt) = shared.lock() else { return };
                hunt.note(*pid, held);
                over.store(hunt.is_over(), Ordering::Relaxed);
            }
        };
        crew::share(pids.len(), &part);
    }

    /// Asks parents, siblings and descendants of who was found.
    fn among_relatives(&mut self) {
        let holders: BTreeSet<Pid> = self.found.values().flatten().copied().collect();
        let known = |hunt: &Hunt, pid: Pid| hunt.found.values().flatten().any(|holder| *holder == pid);
        self.asked.extend(&holders);
        for pid in holders {
            let parents = std::iter::successors(Stat::read(pid), |stat| Stat::read(stat.parent));
            for parent in parents.map(|stat| stat.parent).take_while(|parent| *parent > 0) {
                self.among([parent]);
                self.among(descendants(parent, 1));
                if !known(self, parent) {
                    break;
                }
            }
            self.among(descendants(pid, usize::MAX));
        }
    }
}

/// The newest process first, then the oldest, and so on to the middle: what is looked for is rarely there.
fn from_both_ends(mut pids: Vec<Pid>) -> Vec<Pid> {
    pids.sort_unstable();
    let half = pids.len() / 2;
    let (old, new) = pids.split_at(half);
    let mut order = Vec::with_capacity(pids.len());
    for (index, pid) in new.iter().rev().enumerate() {
        order.push(*pid);
        order.extend(old.get(index));
    }
    order
}

fn claims_one_of(run: &SeenRun, sockets: &[Socket]) -> bool {
    let claims = |record: &Record| sockets.iter().any(|socket| record.ports.contains(&socket.local.port()));
    run.record.as_ref().is_ok_and(claims)
}

/// The processes of a run: its keepers and all below them.
fn processes_of(run: &SeenRun) -> Vec<Pid> {
    let keepers: Vec<Pid> = keepers_of(run).collect();
    keepers.iter().flat_map(|keeper| [vec![*keeper], descendants(*keeper, usize::MAX)].concat()).collect()
}

/// What is below `pid`, so many generations of it.
fn descendants(pid: Pid, generations: usize) -> Vec<Pid> {
    let mut found = Vec::new();
    let mut youngest = vec![pid];
    for _ in 0..generations {
        youngest = youngest.into_iter().flat_map(tree::children_of).collect();
        if youngest.is_empty() {
            break;
        }
        found.extend(&youngest);
    }
    found
}

/// The processes of the cgroup with this id, unless it is one that half of the machine is in.
fn small_cgroup(id: u64) -> Option<Vec<Pid>> {
    const LARGE: usize = 200;
    let leaf = Leaf::open(&cgroup::directory_of(id)?).ok()?;
    let processes = leaf.own_processes();
    (processes.len() <= LARGE).then_some(processes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_come_first() {
        assert_eq!(from_both_ends(vec![3, 1, 4, 2, 5]), [5, 1, 4, 2, 3]);
        assert_eq!(from_both_ends(vec![1, 2]), [2, 1]);
        assert_eq!(from_both_ends(Vec::new()), Vec::<Pid>::new());
    }
}
