//! Who holds a port: the kernel's sockets, the processes that have them, the runs that these belong to.
//!
//! The kernel tells a socket's inode at once; which process has it is a search, see the module `hunt`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::hunt;
pub use super::hunt::{Search, who_has};
use crate::env as vars;
use crate::registry::seen::SeenRun;
use crate::run::RunId;
use crate::sys::process::{self, Environment, Pid, ProcessRef, Stat};
use crate::sys::sockets::{self, Socket, State};
use crate::sys::tree;

/// The states that keep a server from the port.
pub const HOLDING: [State; 2] = [State::Listening, State::Bound];

/// A process that has a socket on the port, as it was when it was looked at.
#[derive(Clone, Debug)]
pub struct Process {
    /// Which one.
    pub process: ProcessRef,
    /// Whose.
    pub uid: u32,
    /// Who started it, or adopted it.
    pub parent: Pid,
    /// Its name.
    pub name: String,
    /// Its command line, invalid UTF-8 replaced; empty if it has cleared it.
    pub command: Vec<String>,
    /// How long it has run.
    pub age: Duration,
    /// Whether its first thread has ended while others go on.
    pub is_zombie: bool,
}

/// Two looks at one process are equal, however old it was at each.
impl PartialEq for Process {
    fn eq(&self, other: &Process) -> bool {
        self.process == other.process
    }
}

impl Eq for Process {}

/// A socket on the port, with who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The socket.
    pub socket: Socket,
    /// Those who have it, keepers of runs excepted; empty if nobody can be seen.
    pub processes: Vec<Process>,
    /// The run that it belongs to.
    pub run: Option<RunId>,
    /// Whether it is the reservation of that run.
    pub is_claim: bool,
}

impl Holder {
    /// Returns whether nobody can be seen who has it; who passes a container's port on only stands in for somebody
    /// else.
    pub fn is_ghost(&self) -> bool {
        const PROXIES: [&str; 5] = ["docker-proxy", "rootlessport", "rootlesskit", "slirp4netns", "pasta"];
        let unseen = |process: &Process| process.is_zombie || PROXIES.contains(&process.name.as_str());
        self.run.is_none() && self.processes.iter().all(unseen)
    }
}

/// Returns who holds one of `ports`, or any port at all. `runs` are the unfinished ones.
pub fn find(ports: Option<&BTreeSet<u16>>, runs: &[SeenRun], search: Search) -> io::Result<Vec<Holder>> {
    let one = ports.filter(|ports| ports.len() == 1).and_then(|ports| ports.first().copied());
    let mut sockets = sockets::list(&HOLDING, one)?;
    sockets.retain(|socket| ports.is_none_or(|ports| ports.contains(&socket.local.port())));
    // Who listens comes before who only keeps the port.
    let waits = |socket: &Socket| socket.state != State::Listening;
    sockets.sort_by_key(|socket| (socket.local.port(), waits(socket), socket.local, socket.inode));
    if sockets.is_empty() {
        return Ok(Vec::new());
    }
    let owners = hunt::owners_of(&sockets, runs, search);
    let family = Family::of(runs);
    Ok(sockets.into_iter().map(|socket| holder(socket, &owners, &family)).collect())
}

fn holder(socket: Socket, owners: &HashMap<u32, Vec<Pid>>, family: &Family<'_>) -> Holder {
    let pids = owners.get(&socket.inode).map(Vec::as_slice).unwrap_or_default();
    let claimed = pids.iter().find_map(|pid| family.kept_by(*pid));
    let others = pids.iter().filter(|pid| family.kept_by(**pid).is_none());
    let processes: Vec<Process> = others.filter_map(|pid| Process::look(*pid)).collect();
    let within = || processes.iter().find_map(|process| family.run_of(process.process.pid));
    let run = claimed.cloned().or_else(within);
    // One that was passed on listens, and is the command's as well.
    let is_claim = claimed.is_some() && socket.state != State::Listening;
    Holder { socket, is_claim, processes, run }
}

impl Process {
    /// Looks at `pid`; `None` if it has gone.
    pub fn look(pid: Pid) -> Option<Process> {
        let (identity, pinned) = ProcessRef::observe(pid)?;
        let stat = Stat::read(pid)?;
        let uid = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
        let command = process::command_line(pid);
        let age = stat.age(process::now_in_ticks());
        let is_zombie = stat.state == b'Z';
        pinned.is_alive().then_some(Process {
            process: identity,
            uid,
            parent: stat.parent,
            name: stat.comm,
            command,
            age,
            is_zombie,
        })
    }
}

/// The living runs by their processes.
struct Family<'a> {
    keepers: HashMap<Pid, &'a RunId>,
    ids: HashSet<&'a RunId>,
}

impl<'a> Family<'a> {
    fn of(runs: &'a [SeenRun]) -> Family<'a> {
        let keepers = runs.iter().flat_map(|run| keepers_of(run).map(|keeper| (keeper, &run.id))).collect();
        Family { keepers, ids: runs.iter().map(|run| &run.id).collect() }
    }

    fn kept_by(&self, pid: Pid) -> Option<&'a RunId> {
        self.keepers.get(&pid).copied()
    }

    /// Returns the innermost run that `pid` belongs to: by who stands above it, else by its environment.
    fn run_of(&self, pid: Pid) -> Option<RunId> {
        let above = process::ancestors_of(pid).into_iter().find_map(|ancestor| self.kept_by(ancestor));
        let marked = || {
            let id = Environment::of(pid)?.text(vars::ID)?;
            RunId::parse(&id).filter(|id| self.ids.contains(id))
        };
        above.cloned().or_else(marked)
    }
}

/// Returns whether one of `pids` is the living guard or supervisor of `run`.
pub fn is_around(run: &SeenRun, pids: &HashSet<Pid>) -> bool {
    keepers_of(run).any(|keeper| pids.contains(&keeper))
}

/// The living guard and supervisor of a run.
pub fn keepers_of(run: &SeenRun) -> impl Iterator<Item = Pid> + use<> {
    let keepers = run.record.iter().flat_map(|record| [&record.guard, &record.supervisor]).flatten();
    let mut alive: Vec<Pid> =
        keepers.filter(|keeper| keeper.pin().is_some()).map(|keeper| keeper.pid).collect();
    if run.record.as_ref().is_ok_and(|record| record.supervisor.is_none()) {
        // Not entered yet: it is the guard's only child.
        alive.extend(alive.first().map(|guard| tree::children_of(*guard)).unwrap_or_default());
    }
    alive.into_iter()
}
