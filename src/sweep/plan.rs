//! What is to go and what stays. Pure: from what was observed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use super::evidence::Evidence;
use super::leftovers::leftovers;
use super::observe::{Observation, SeenOfRun};
use super::snapshot::{Process, Snapshot};
use super::{Options, Scope};
use crate::programs;
use crate::registry::record::State;
use crate::run::RunId;
use crate::sys::process::{self, Pid, ProcessRef};

/// The kinds of what is swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A living run of the session that is swept.
    Run,
    /// A run of ours whose guard and supervisor are gone.
    Orphan,
    /// A process of a run that has no entry any more.
    Survivor,
    /// An agent's server that we did not start.
    Leftover,
    /// The same with less evidence.
    Suspect,
    /// A directory that nothing uses.
    Directory,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] =
        [Kind::Run, Kind::Orphan, Kind::Survivor, Kind::Leftover, Kind::Suspect, Kind::Directory];

    /// Returns the word that stands in answers and that `--only` takes.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Run => "run",
            Kind::Orphan => "orphan",
            Kind::Survivor => "survivor",
            Kind::Leftover => "leftover",
            Kind::Suspect => "suspect",
            Kind::Directory => "directory",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// The run that it is of.
    pub run: Option<RunId>,
    /// The topmost process.
    pub root: Option<ProcessRef>,
    /// All of its processes.
    pub pids: Vec<Pid>,
    /// The same, each so that it can be told from others.
    pub members: Vec<ProcessRef>,
    /// Device and inode of the directory that it is.
    pub inode: Option<(u64, u64)>,
    /// Whether it need not be an orphan: it was started by the session that is swept.
    pub by_session: bool,
    /// How old it is.
    pub age: Duration,
    /// Resident memory in bytes, shared pages counted for each.
    pub memory_bytes: u64,
    /// Ports on which it listens.
    pub ports: BTreeSet<u16>,
    /// Connections that it has.
    pub connections: usize,
    /// Where it works, or the directory that it is.
    pub directory: Option<PathBuf>,
    /// Why it is taken for what it is.
    pub evidence: Vec<Evidence>,
    /// The command, as words.
    pub command: Vec<String>,
    /// Why it stays; `None` if it goes.
    pub spared: Option<String>,
}

impl Item {
    /// One of which nothing is known yet.
    pub(super) fn of(kind: Kind) -> Item {
        Item {
            kind,
            run: None,
            root: None,
            pids: Vec::new(),
            members: Vec::new(),
            inode: None,
            by_session: false,
            age: Duration::ZERO,
            memory_bytes: 0,
            ports: BTreeSet::new(),
            connections: 0,
            directory: None,
            evidence: Vec::new(),
            command: Vec::new(),
            spared: None,
        }
    }

    /// All that is below `top`, as something of `kind`.
    pub(super) fn of_tree(kind: Kind, top: Pid, snapshot: &Snapshot) -> Option<Item> {
        let members = snapshot.tree(top);
        let first = *members.first()?;
        let pids: Vec<Pid> = members.iter().map(|process| process.stat.pid).collect();
        let serves = |process: &&&Process| snapshot.listening.contains_key(&process.stat.pid);
        let shown = members.iter().find(serves).copied().unwrap_or(first);
        Some(Item {
            root: Some(first.identity.clone()),
            members: members.iter().map(|process| process.identity.clone()).collect(),
            age: first.age,
            memory_bytes: members.iter().map(|it| it.stat.resident_pages * process::page_size()).sum(),
            ports: pids.iter().filter_map(|pid| snapshot.listening.get(pid)).flatten().copied().collect(),
            connections: pids.iter().filter_map(|pid| snapshot.connections.get(pid)).sum(),
            directory: shown.cwd.clone(),
            command: first.shown_command(),
            pids,
            ..Item::of(kind)
        })
    }
}

/// All that was found.
#[derive(Debug, Default)]
pub struct Plan {
    /// What goes and what stays.
    pub items: Vec<Item>,
}

impl Plan {
    /// Returns what is to go.
    pub fn to_go(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.spared.is_none())
    }
}

/// Makes the plan from what was seen. Looks at nothing itself.
pub fn plan(seen: &Observation, options: &Options) -> Plan {
    let snapshot = &seen.processes;
    let orphaned = |run: &&SeenOfRun| run.state == State::Orphaned;
    let mut items: Vec<Item> =
        seen.runs.iter().filter(orphaned).map(|run| of_run(Kind::Orphan, run)).collect();
    items.extend(seen.runs.iter().filter_map(|run| of_session(run, snapshot, &options.scope)));
    items.extend(survivors(seen));
    let taken: HashSet<Pid> = items.iter().flat_map(|item| item.pids.iter().copied()).collect();
    let untaken = |item: &Item| !item.pids.iter().any(|it| taken.contains(it));
    items.extend(leftovers(seen, options).into_iter().filter(untaken));
    let goes = |it: &&Item| left_out(it, snapshot, options).is_none() && it.spared.is_none();
    let going = items.iter().filter(goes).flat_map(|it| it.pids.clone()).collect();
    items.extend(seen.directories.iter().map(|directory| directory.judge(snapshot, &going)));
    for item in &mut items {
        item.spared = item.spared.take().or_else(|| left_out(item, snapshot, options));
    }
    items.sort_by_key(|item| (item.spared.is_some(), item.kind, item.root.as_ref().map(|it| it.pid)));
    Plan { items }
}

/// Why the person does not want it swept now.
fn left_out(item: &Item, snapshot: &Snapshot, options: &Options) -> Option<String> {
    let is_excepted = |pid: &Pid| {
        options.except_pids.contains(pid)
            || snapshot.ancestors(*pid).iter().any(|it| options.except_pids.contains(it))
    };
    if item.run.as_ref().is_some_and(|run| options.except_runs.contains(run))
        || item.pids.iter().any(is_excepted)
    {
        return Some("it is excepted".to_owned());
    }
    if !options.only.is_empty() && !options.only.contains(&item.kind) {
        return Some("--only names other kinds".to_owned());
    }
    if options.scope != Scope::Gone && options.scope != Scope::All && !item.by_session {
        return Some("it is not of the session that is swept".to_owned());
    }
    if item.age < options.older_than && !item.by_session {
        return Some("it is younger than --older-than".to_owned());
    }
    if item.kind == Kind::Suspect && !options.suspects {
        return Some("there is one kind of evidence alone; --suspects takes it too".to_owned());
    }
    None
}

/// A living run that the session has started: by its owner, else by who stands above its guard.
fn of_session(run: &SeenOfRun, snapshot: &Snapshot, scope: &Scope) -> Option<Item> {
    let record = run.record.as_ref().filter(|_| run.state != State::Orphaned)?;
    let owner = record.owner.as_ref();
    let is_theirs = match scope {
        Scope::Gone | Scope::All => false,
        Scope::Session(id) => owner.is_some_and(|owner| owner.session.as_ref() == Some(id)),
        Scope::Process(pid, session) => {
            let guard = record.guard.as_ref();
            owner.is_some_and(|it| it.process.pid == *pid || session.is_some() && it.session == *session)
                || guard.is_some_and(|guard| snapshot.ancestors(guard.pid).contains(pid))
        }
    };
    let around = run.keepers.iter().any(|keeper| snapshot.ours.contains(keeper));
    is_theirs.then(|| Item {
        by_session: true,
        spared: around.then(|| WITHIN.to_owned()),
        ..of_run(Kind::Run, run)
    })
}

const WITHIN: &str = "we are within it ourselves";

fn of_run(kind: Kind, run: &SeenOfRun) -> Item {
    let record = run.record.as_ref();
    Item {
        run: Some(run.id.clone()),
        pids: run.living.iter().map(|stat| stat.pid).collect(),
        age: run.age,
        memory_bytes: run.living.iter().map(|stat| stat.resident_pages * process::page_size()).sum(),
        ports: record.map(|record| record.ports.iter().copied().collect()).unwrap_or_default(),
        directory: record.and_then(|record| record.dir.as_ref().map(PathBuf::from)),
        command: record.map(|record| record.command.clone()).unwrap_or_default(),
        spared: run
            .is_around_us
            .then(|| WITHIN.to_owned())
            .or_else(|| run.is_newer.then(|| "a newer agent-run made it".to_owned())),
        ..Item::of(kind)
    }
}

/// Processes that say that they are of a run of this registry that is not there any more, or that are in the
/// cgroup of such a one.
fn survivors(seen: &Observation) -> Vec<Item> {
    let snapshot = &seen.processes;
    let Some(root) = &seen.registry else { return Vec::new() };
    let (place, unfinished) =
        (root.join("runs"), seen.runs.iter().map(|run| &run.id).collect::<HashSet<_>>());
    let run_of = |process: &Process| {
        let is_ours = process.run_directory.as_ref().is_some_and(|path| path.starts_with(&place));
        let marked = process.run.clone().filter(|_| is_ours);
        marked
            .or_else(|| seen.in_cgroups.get(&process.stat.pid).cloned())
            .filter(|id| !unfinished.contains(id))
    };
    // Below a living keeper they are looked after, whoever's registry that is in.
    let keeps = |pid: &Pid| snapshot.names.get(pid).is_some_and(|name| programs::is_keeper(name));
    let is_kept = |pid: Pid| keeps(&pid) || snapshot.ancestors(pid).iter().any(keeps);
    let found: HashMap<Pid, RunId> = snapshot
        .processes
        .values()
        .filter(|process| !snapshot.ours.contains(&process.stat.pid) && !is_kept(process.stat.pid))
        .filter_map(|process| Some((process.stat.pid, run_of(process)?)))
        .collect();
    let is_topmost = |pid: &Pid| snapshot.parents.get(pid).is_none_or(|parent| !found.contains_key(parent));
    let tops = found.iter().filter(|(pid, _)| is_topmost(pid));
    let item = |(pid, run): (&Pid, &RunId)| {
        Some(Item { run: Some(run.clone()), ..Item::of_tree(Kind::Survivor, *pid, snapshot)? })
    };
    tops.filter_map(item).collect()
}
