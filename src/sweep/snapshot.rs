//! Every process at one moment, as far as it tells of itself, with what it has open.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use crate::owner::Mark;
use crate::programs;
use crate::run::RunId;
use crate::sys::process::{Pid, ProcessRef, Stat};

/// One process of our user.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its entry.
    pub stat: Stat,
    /// Which one it is.
    pub identity: ProcessRef,
    /// Its command line, invalid UTF-8 replaced.
    pub command: Vec<String>,
    /// How long it has run.
    pub age: Duration,
    /// The run that it says it is of.
    pub run: Option<RunId>,
    /// Where that run's managed directory is.
    pub run_directory: Option<PathBuf>,
    /// What an agent has put into its environment.
    pub mark: Option<Mark>,
    /// Where it works.
    pub cwd: Option<PathBuf>,
    /// Whether that place does not exist any more.
    pub cwd_deleted: bool,
    /// The service that a service manager runs it as.
    pub unit: Option<String>,
    /// Whether it is in a pid namespace below ours, as in a container.
    pub in_container: bool,
    /// The agent whose program it is.
    pub agent: Option<&'static str>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Of our user, by pid.
    pub processes: BTreeMap<Pid, Process>,
    /// The parent of each process, of other users too.
    pub parents: HashMap<Pid, Pid>,
    /// The name of each.
    pub names: HashMap<Pid, String>,
    /// We and our ancestors.
    pub ours: HashSet<Pid>,
    /// Those that adopt orphans.
    pub reapers: HashSet<Pid>,
    /// Those of them that are known to be nothing else.
    pub inits: HashSet<Pid>,
    /// The session of each process.
    pub sessions: HashMap<Pid, Pid>,
    /// What each init of a container has started first: what the container is for.
    pub first_children: HashSet<Pid>,
    /// Agents of which a process lives.
    pub living_agents: HashSet<&'static str>,
    /// Our user's processes by parent.
    pub(super) children: HashMap<Pid, Vec<Pid>>,
    /// The service that we run in ourselves.
    pub own_unit: Option<String>,
    /// Ports on which each listens.
    pub listening: HashMap<Pid, BTreeSet<u16>>,
    /// Connections that each has.
    pub connections: HashMap<Pid, usize>,
    /// What stdin and stdout are of those of which that was asked, where both are pipes or sockets.
    pub stdio: HashMap<Pid, [End; 2]>,
    /// Who has the pipes and sockets of which somebody's stdio is one end.
    pub holders: HashMap<End, Vec<Pid>>,
    /// The other ends of Unix sockets, by inode; `None` for one that is closed.
    pub peers: HashMap<u32, Option<u32>>,
    /// Who works in a directory, runs a program from there or has something in it open: of those that were asked for.
    pub users: HashMap<PathBuf, Vec<Pid>>,
}

/// One end of a pipe or of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// A pipe, both ends of which have this inode.
    Pipe(u32),
    /// A socket with this inode.
    Socket(u32),
}

impl Snapshot {
    /// Returns the ancestors of `pid`, nearest first, without reapers.
    pub fn ancestors(&self, pid: Pid) -> Vec<Pid> {
        let parent =
            |pid: &Pid| self.parents.get(pid).copied().filter(|it| *it > 0 && !self.reapers.contains(it));
        std::iter::successors(parent(&pid), parent).take(MOST_ANCESTORS).collect()
    }

    /// Returns the topmost of those that only wrap `pid`, as `sh -c` and `npm run` do; `pid` itself if there is none.
    pub fn wrapped(&self, pid: Pid) -> Pid {
        // One that has started something else too is answerable for that.
        let alone = |pid: &Pid| self.children.get(pid).is_some_and(|children| children.len() == 1);
        let wraps = |pid: &Pid| {
            let wrapper = self.processes.get(pid).is_some_and(|it| programs::is_wrapper(&it.command));
            wrapper && alone(pid) && !self.ours.contains(pid)
        };
        self.ancestors(pid).into_iter().take_while(wraps).last().unwrap_or(pid)
    }

    /// Returns the other end of a pipe or of a Unix socket that is open.
    pub(super) fn other_end(&self, end: End) -> Option<End> {
        match end {
            End::Pipe(_) => Some(end),
            End::Socket(inode) => self.peers.get(&inode).copied().flatten().map(End::Socket),
        }
    }

    /// Returns `pid` and all of our user's below it.
    pub fn tree(&self, pid: Pid) -> Vec<&Process> {
        let mut found: Vec<&Process> = self.processes.get(&pid).into_iter().collect();
        let mut next = 0;
        while let Some(parent) = found.get(next).map(|process| process.stat.pid) {
            let children = self.children.get(&parent).into_iter().flatten().filter(|child| **child != parent);
            found.extend(children.filter_map(|child| self.processes.get(child)));
            next += 1;
        }
        found
    }
}

/// A table that was read while processes came and went might have a circle.
const MOST_ANCESTORS: usize = 10_000;

impl Process {
    /// Returns its command line, or its name if it has cleared that.
    pub(super) fn shown_command(&self) -> Vec<String> {
        if self.command.is_empty() { vec![self.stat.comm.clone()] } else { self.command.clone() }
    }
}
