//! What the runs use now, from one look at /proc.

use std::collections::{HashMap, HashSet};
use std::fs;

use serde::Serialize;

use crate::registry::record::Record;
use crate::sys::process::{self, Pid, Stat};
use crate::sys::tree;

/// What a run's processes use; guard and supervisor are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Resident memory in bytes, shared pages counted for each.
    pub rss_bytes: u64,
    /// CPU time of the living processes in seconds.
    pub cpu_s: f64,
    /// Processes.
    pub pids: u32,
    /// Open descriptors; null where it was not asked for or cannot be seen.
    pub fds: Option<u64>,
}

impl Usage {
    /// Adds up what `members` use.
    pub fn of<'a>(members: impl IntoIterator<Item = &'a Stat>) -> Usage {
        let (mut pages, mut ticks, mut pids) = (0, 0, 0);
        for stat in members {
            (pages, ticks, pids) = (pages + stat.resident_pages, ticks + stat.cpu_ticks, pids + 1);
        }
        let cpu_s = ticks as f64 / process::ticks_per_second() as f64;
        Usage { rss_bytes: pages * process::page_size(), cpu_s, pids, fds: None }
    }
}

fn keepers(record: &Record) -> impl Iterator<Item = Pid> {
    [&record.guard, &record.supervisor].into_iter().flatten().map(|keeper| keeper.pid)
}

/// All processes by parent, at one moment.
#[derive(Debug)]
pub struct Census {
    children: HashMap<Pid, Vec<Stat>>,
}

impl Census {
    /// Looks at every process but the guards and supervisors of `runs`, which must be supervised: they are not
    /// counted, and with many runs most of what there is.
    pub fn take<'a>(runs: impl IntoIterator<Item = &'a Record>) -> Census {
        let keepers: HashSet<Pid> = runs.into_iter().flat_map(keepers).collect();
        let mut children: HashMap<Pid, Vec<Stat>> = HashMap::new();
        let others = tree::all_processes().filter(|pid| !keepers.contains(pid));
        for stat in others.filter_map(Stat::read) {
            children.entry(stat.parent).or_default().push(stat);
        }
        Census { children }
    }

    /// Returns the living processes of `record`'s run.
    pub fn members(&self, record: &Record) -> Vec<&Stat> {
        let keepers: Vec<Pid> = keepers(record).collect();
        let mut found = Vec::new();
        let mut waiting = keepers.clone();
        while let Some(parent) = waiting.pop() {
            for stat in
                self.children.get(&parent).into_iter().flatten().filter(|stat| !keepers.contains(&stat.pid))
            {
                waiting.push(stat.pid);
                if !stat.is_dead() {
                    found.push(stat);
                }
            }
        }
        found
    }

    /// Returns what `record`'s run uses.
    pub fn usage(&self, record: &Record) -> Usage {
        Usage::of(self.members(record))
    }

    /// As [`Census::usage`], with the open descriptors counted.
    pub fn usage_with_fds(&self, record: &Record) -> Usage {
        let open = |stat: &&Stat| {
            fs::read_dir(format!("/proc/{}/fd", stat.pid)).ok().map(|entries| entries.count() as u64)
        };
        let fds = self.members(record).iter().map(open).sum();
        Usage { fds, ..self.usage(record) }
    }
}
