//! Every process at one moment, as far as it tells of itself.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::env as vars;
use crate::owner::{self, Mark};
use crate::port::holders::who_has;
use crate::programs;
use crate::run::RunId;
use crate::sys::process::{self, Environment, Pid, ProcessRef, Stat};
use crate::sys::sockets::{self, State};
use crate::sys::{crew, spawn, tree};

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
    children: HashMap<Pid, Vec<Pid>>,
    /// The service that we run in ourselves.
    pub own_unit: Option<String>,
    /// Ports on which each listens.
    pub listening: HashMap<Pid, BTreeSet<u16>>,
    /// Connections that each has.
    pub connections: HashMap<Pid, usize>,
}

impl Snapshot {
    /// Looks at all. This process must have one thread.
    pub fn take() -> Snapshot {
        let mut seen = Snapshot::default();
        // Asked once: each time leaves a zombie where pid 1 does not reap.
        static ADOPTER: OnceLock<Option<Pid>> = OnceLock::new();
        let adopter = *ADOPTER.get_or_init(|| spawn::who_adopts().ok());
        // They may be hidden (hidepid, proc(5)), and adopt all the same.
        seen.reapers.insert(1);
        seen.reapers.extend(adopter);
        let mut oldest: HashMap<Pid, (u64, Pid)> = HashMap::new();
        for (stat, process) in look_at_all() {
            let pid = stat.pid;
            seen.parents.insert(pid, stat.parent);
            seen.names.insert(pid, stat.comm.clone());
            seen.sessions.insert(pid, stat.session);
            let first = oldest.entry(stat.parent).or_insert((stat.start_time, pid));
            *first = (*first).min((stat.start_time, pid));
            if programs::is_reaper(&stat.comm) {
                seen.inits.insert(pid);
                seen.reapers.insert(pid);
            }
            if let Some(process) = process {
                seen.children.entry(process.stat.parent).or_default().push(pid);
                seen.living_agents.extend(process.agent);
                seen.processes.insert(pid, process);
            }
        }
        let of_container = |pid: &Pid| {
            seen.inits.contains(pid)
                && seen.names.get(pid).is_some_and(|name| programs::is_container_init(name))
        };
        seen.first_children =
            oldest.iter().filter(|(parent, _)| of_container(parent)).map(|(_, (_, first))| *first).collect();
        // A supervisor adopts too, but what it has adopted is supervised.
        seen.reapers.retain(|pid| !seen.names.get(pid).is_some_and(|name| programs::is_keeper(name)));
        seen.ours = process::own_line();
        seen.own_unit = unit_of(process::own_pid());
        seen.note_sockets();
        seen
    }

    fn note_sockets(&mut self) {
        let states = [State::Listening, State::Established];
        // Where the kernel cannot be asked, there is less evidence.
        let found = sockets::list(&states, None).unwrap_or_default();
        let owners = who_has(&found);
        for socket in found {
            for pid in owners.get(&socket.inode).into_iter().flatten() {
                match socket.state {
                    State::Listening => {
                        self.listening.entry(*pid).or_default().insert(socket.local.port());
                    }
                    _ => *self.connections.entry(*pid).or_default() += 1,
                }
            }
        }
    }

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

/// Reads the entry of every living process, and looks at those of our user.
fn look_at_all() -> Vec<(Stat, Option<Process>)> {
    let (own, now) = (process::own_uid(), process::now_in_ticks());
    let is_ours = |pid: Pid| fs::metadata(format!("/proc/{pid}")).is_ok_and(|seen| seen.uid() == own);
    let look = |pid: Pid| {
        let stat = Stat::read(pid).filter(|stat| !stat.is_dead())?;
        let process = is_ours(pid).then(|| Process::look(pid, now)).flatten();
        Some((stat, process))
    };
    let pids: Vec<Pid> = tree::all_processes().collect();
    let seen = Mutex::new(Vec::with_capacity(pids.len()));
    crew::share(pids.len(), &|first, step| {
        let part: Vec<_> = pids.iter().skip(first).step_by(step).filter_map(|pid| look(*pid)).collect();
        // Nothing can panic while it is held.
        seen.lock().unwrap_or_else(PoisonError::into_inner).extend(part);
    });
    seen.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// A table that was read while processes came and went might have a circle.
const MOST_ANCESTORS: usize = 10_000;

/// Returns the service in whose cgroup `pid` is, if a service manager has put it there.
fn unit_of(pid: Pid) -> Option<String> {
    let text = process::cgroups(pid)?;
    let path =
        text.lines().find_map(|line| line.strip_prefix("0::").or(line.strip_prefix("1:name=systemd:")))?;
    let last = path.rsplit('/').find(|part| part.ends_with(".service"))?;
    (!last.starts_with("user@")).then(|| last.to_owned())
}

/// Our own pid namespace.
fn own_namespace() -> Option<&'static PathBuf> {
    static OWN: OnceLock<Option<PathBuf>> = OnceLock::new();
    OWN.get_or_init(|| fs::read_link("/proc/self/ns/pid").ok()).as_ref()
}

impl Process {
    fn look(pid: Pid, now: u64) -> Option<Process> {
        let (identity, _, stat) = ProcessRef::observe_with_entry(pid)?;
        let command = process::command_line(pid);
        let environment = Environment::of(pid).unwrap_or_default();
        let variable = |name: &str| environment.text(name);
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).ok();
        let text = cwd.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let named = text.strip_suffix(" (deleted)");
        Some(Process {
            identity,
            age: stat.age(now),
            run: variable(vars::ID).and_then(|text| RunId::parse(&text)),
            run_directory: variable(vars::DIR).map(PathBuf::from),
            mark: owner::mark_in(&variable),
            // The kernel's own words; a directory of that name would be there.
            cwd_deleted: named.is_some() && !PathBuf::from(&text).exists(),
            cwd: named.map(PathBuf::from).or(cwd),
            unit: unit_of(pid),
            in_container: fs::read_link(format!("/proc/{pid}/ns/pid"))
                .is_ok_and(|theirs| own_namespace().is_some_and(|own| *own != theirs)),
            agent: owner::agent_named(&command, Some(stat.comm.clone())),
            command,
            stat,
        })
    }
}
