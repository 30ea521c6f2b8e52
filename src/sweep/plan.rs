//! What is to go and what stays.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use super::clients::ClientsGone;
use super::directories::directories;
use super::evidence::{self, Evidence, looked_after};
use super::snapshot::{Process, Snapshot};
use super::{Options, Scope};
use crate::containment::LEAF_PREFIX;
use crate::owner::Mark;
use crate::port::verdict;
use crate::programs;
use crate::registry::record::State;
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::run::RunId;
use crate::sys::cgroup::{self, Leaf};
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

/// All that was found.
#[derive(Debug, Default)]
pub struct Plan {
    /// What goes and what stays.
    pub items: Vec<Item>,
}

impl Plan {
    /// Makes the plan from what was seen.
    pub fn of(snapshot: &Snapshot, options: &Options) -> Plan {
        let root = Root::open_existing().ok().flatten();
        let runs = root.as_ref().map(seen::runs).unwrap_or_default();
        let mut items: Vec<Item> =
            runs.iter().filter(|run| run.state == State::Orphaned).map(orphan).collect();
        items.extend(runs.iter().filter_map(|run| of_session(run, snapshot, &options.scope)));
        items.extend(survivors(snapshot, root.as_ref(), &runs));
        let taken: HashSet<Pid> = items.iter().flat_map(|item| item.pids.iter().copied()).collect();
        items.extend(
            leftovers(snapshot, options)
                .into_iter()
                .filter(|item| !item.pids.iter().any(|it| taken.contains(it))),
        );
        let goes = |it: &&Item| left_out(it, snapshot, options).is_none() && it.spared.is_none();
        let going = items.iter().filter(goes).flat_map(|it| it.pids.clone()).collect();
        items.extend(directories(options, &going));
        for item in &mut items {
            item.spared = item.spared.take().or_else(|| left_out(item, snapshot, options));
        }
        items.sort_by_key(|item| (item.spared.is_some(), item.kind, item.root.as_ref().map(|it| it.pid)));
        Plan { items }
    }

    /// Returns what is to go.
    pub fn to_go(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.spared.is_none())
    }
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
fn of_session(run: &SeenRun, snapshot: &Snapshot, scope: &Scope) -> Option<Item> {
    let record = run.record.as_ref().ok().filter(|_| run.state != State::Orphaned)?;
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
    let around = crate::port::holders::is_around(run, &snapshot.ours);
    is_theirs.then(|| Item {
        kind: Kind::Run,
        by_session: true,
        spared: around.then(|| "we are within it ourselves".to_owned()),
        ..orphan(run)
    })
}

fn orphan(run: &SeenRun) -> Item {
    let record = run.record.as_ref().ok();
    let began = run.directory.metadata().ok().and_then(|it| it.modified().ok()?.elapsed().ok());
    let within = crate::rundir::parents_from_environment().contains(&run.id);
    let newer = matches!(&run.record, Err(crate::registry::record::RecordError::Newer(_)));
    let marks = record.and_then(|record| crate::teardown::marks::Marks::of(record, None));
    let living = marks.map(|marks| marks.living()).unwrap_or_default();
    Item {
        kind: Kind::Orphan,
        run: Some(run.id.clone()),
        root: None,
        pids: living.iter().map(|stat| stat.pid).collect(),
        members: Vec::new(),
        inode: None,
        by_session: false,
        age: record.map_or_else(|| began.unwrap_or_default(), |record| record.started_at.age()),
        memory_bytes: living.iter().map(|stat| stat.resident_pages * process::page_size()).sum(),
        ports: record.map(|record| record.ports.iter().copied().collect()).unwrap_or_default(),
        connections: 0,
        directory: record.and_then(|record| record.dir.as_ref().map(PathBuf::from)),
        evidence: Vec::new(),
        command: record.map(|record| record.command.clone()).unwrap_or_default(),
        spared: within
            .then(|| "we are within it ourselves".to_owned())
            .or_else(|| newer.then(|| "a newer agent-run made it".to_owned())),
    }
}

/// Processes that say that they are of a run of this registry that is not there any more, or that are in the
/// cgroup of such a one.
fn survivors(snapshot: &Snapshot, root: Option<&Root>, runs: &[SeenRun]) -> Vec<Item> {
    let Some(root) = root else { return Vec::new() };
    let unfinished: HashSet<&RunId> = runs.iter().map(|run| &run.id).collect();
    let leaves = our_leaves();
    let run_of = |process: &Process| {
        let place = root.path().join("runs");
        let is_ours = process.run_directory.as_ref().is_some_and(|path| path.starts_with(&place));
        let marked = process.run.clone().filter(|_| is_ours);
        marked
            .or_else(|| leaves.get(&process.stat.pid).filter(|id| is_ended_here(root, id)).cloned())
            .filter(|id| !unfinished.contains(id))
    };
    // Below a living keeper they are looked after, whoever's registry that is in.
    let is_kept = |pid: Pid| {
        snapshot
            .ancestors(pid)
            .iter()
            .any(|it| snapshot.names.get(it).is_some_and(|name| programs::is_keeper(name)))
    };
    let found: HashMap<Pid, RunId> = snapshot
        .processes
        .values()
        .filter(|process| !snapshot.ours.contains(&process.stat.pid) && !is_kept(process.stat.pid))
        .filter(|process| !programs::is_keeper(&process.stat.comm))
        .filter_map(|process| Some((process.stat.pid, run_of(process)?)))
        .collect();
    let is_topmost = |pid: &Pid| snapshot.parents.get(pid).is_none_or(|parent| !found.contains_key(parent));
    let tops = found.iter().filter(|(pid, _)| is_topmost(pid));
    tops.filter_map(|(pid, run)| {
        let mut item = of_processes(*pid, snapshot)?;
        (item.kind, item.run) = (Kind::Survivor, Some(run.clone()));
        Some(item)
    })
    .collect()
}

/// Another registry's runs are not ours to tidy up after.
pub(super) fn is_ended_here(root: &Root, id: &RunId) -> bool {
    root.path().join("ended").join(id.as_str()).exists()
}

/// The processes in cgroups that are named like leaves of ours.
fn our_leaves() -> HashMap<Pid, RunId> {
    let Ok(parent) = cgroup::parent_with(&[]) else { return HashMap::new() };
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let leaves = entries.filter_map(|entry| {
        let id = RunId::parse(entry.file_name().to_str()?.strip_prefix(LEAF_PREFIX)?)?;
        Some((id, Leaf::open(&entry.path()).ok()?))
    });
    leaves.flat_map(|(id, leaf)| leaf.processes().into_iter().map(move |pid| (pid, id.clone()))).collect()
}

fn of_processes(top: Pid, snapshot: &Snapshot) -> Option<Item> {
    let members = snapshot.tree(top);
    let first = *members.first()?;
    let pids: Vec<Pid> = members.iter().map(|process| process.stat.pid).collect();
    let shown = serving_member(&members, snapshot).unwrap_or(first);
    Some(Item {
        kind: Kind::Leftover,
        run: None,
        root: Some(first.identity.clone()),
        members: members.iter().map(|process| process.identity.clone()).collect(),
        inode: None,
        by_session: false,
        age: first.age,
        memory_bytes: members.iter().map(|it| it.stat.resident_pages * process::page_size()).sum(),
        ports: pids.iter().filter_map(|pid| snapshot.listening.get(pid)).flatten().copied().collect(),
        connections: pids.iter().filter_map(|pid| snapshot.connections.get(pid)).sum(),
        directory: shown.cwd.clone(),
        evidence: Vec::new(),
        command: if first.command.is_empty() { vec![first.stat.comm.clone()] } else { first.command.clone() },
        spared: None,
        pids,
    })
}

fn serving_member<'a>(members: &[&'a Process], snapshot: &Snapshot) -> Option<&'a Process> {
    members.iter().find(|process| snapshot.listening.contains_key(&process.stat.pid)).copied()
}

/// Servers of agents that we did not start, each with what only wraps it, as `sh -c` does. Those that look like one but
/// have somebody are told too.
fn leftovers(snapshot: &Snapshot, options: &Options) -> Vec<Item> {
    let of_session = !matches!(options.scope, Scope::Gone | Scope::All);
    let candidates: Vec<(&Process, Vec<Evidence>)> = snapshot
        .processes
        .values()
        .filter(|process| may_be_one(process, snapshot))
        .map(|process| (process, evidence::of(process, snapshot, options)))
        // That its client is gone makes nothing of a process by itself, unless it is of the session.
        .filter(|(_, told)| !told.is_empty() || of_session)
        .collect();
    let pids = candidates.iter().flat_map(|(it, _)| [it.stat.pid, snapshot.wrapped(it.stat.pid)]);
    let clients = ClientsGone::look(snapshot, &pids.collect());
    let mut found: BTreeMap<Pid, Vec<(&Process, Vec<Evidence>)>> = BTreeMap::new();
    for (process, mut told) in candidates {
        told.extend(clients.is_gone_for(process).then_some(Evidence::ClientGone));
        if !told.is_empty() {
            found.entry(snapshot.wrapped(process.stat.pid)).or_default().push((process, told));
        }
    }
    // What is below another one goes or stays with that.
    let roots: HashSet<Pid> = found.keys().copied().collect();
    let is_below = |pid: &Pid| snapshot.ancestors(*pid).iter().any(|it| roots.contains(it));
    let tops = roots.iter().filter(|root| !is_below(root));
    tops.filter_map(|root| leftover(*root, &found[root], snapshot, options, &clients)).collect()
}

/// Neither one of those that we belong to, nor a guard (an orphan by trade), nor an agent, nor below a guard.
fn may_be_one(process: &Process, snapshot: &Snapshot) -> bool {
    let pid = process.stat.pid;
    let kept = |pid: &Pid| snapshot.names.get(pid).is_some_and(|name| programs::is_keeper(name));
    let taboo = snapshot.ours.contains(&pid) || snapshot.reapers.contains(&pid) || process.agent.is_some();
    !taboo && !kept(&pid) && !snapshot.ancestors(pid).iter().any(kept)
}

fn leftover(
    root: Pid,
    cores: &[(&Process, Vec<Evidence>)],
    snapshot: &Snapshot,
    options: &Options,
    clients: &ClientsGone,
) -> Option<Item> {
    let members = snapshot.tree(root);
    if members.iter().any(|member| snapshot.ours.contains(&member.stat.pid)) {
        return None;
    }
    let mut told: Vec<Evidence> = Vec::new();
    for piece in cores.iter().flat_map(|(_, pieces)| pieces) {
        if told.iter().all(|known| std::mem::discriminant(known) != std::mem::discriminant(piece)) {
            told.push(piece.clone());
        }
    }
    if matches!(told[..], [Evidence::ClientGone]) {
        // Half of all daemons are like that.
        return None;
    }
    let by_session = is_of_session(&members, snapshot, &options.scope);
    // That the session started it is a kind of evidence like the mark of an agent.
    let is_mark = |piece: &Evidence| matches!(piece, Evidence::Agent { .. });
    let kinds_of =
        |pieces: &[Evidence]| pieces.len() + usize::from(by_session && !pieces.iter().any(is_mark));
    // What two processes tell is not added up, and a leftover is a server: where something works says nothing of that.
    let serves = |piece: &Evidence| {
        matches!(piece, Evidence::Port { .. } | Evidence::Command { .. } | Evidence::ClientGone)
    };
    let is_one = |pieces: &Vec<Evidence>| kinds_of(pieces) > 1 && pieces.iter().any(serves);
    let mut item = of_processes(root, snapshot)?;
    item.kind = match cores.iter().any(|(_, pieces)| is_one(pieces)) {
        true => Kind::Leftover,
        false => Kind::Suspect,
    };
    item.by_session = by_session && item.kind == Kind::Leftover;
    // The one that tells most is shown.
    if let Some((core, _)) = cores.iter().max_by_key(|(_, pieces)| pieces.len()) {
        item.directory = core.cwd.clone();
        item.command =
            if core.command.is_empty() { vec![core.stat.comm.clone()] } else { core.command.clone() };
    }
    let pieces = || cores.iter().flat_map(|(_, pieces)| pieces);
    let lives = pieces().any(|piece| matches!(piece, Evidence::Agent { alive: true, .. }));
    let terminal = || {
        let with = members.iter().find(|member| member.stat.terminal != 0);
        with.filter(|_| !item.by_session).map(|_| "it has a terminal".to_owned())
    };
    let agent = || {
        let agent = members.iter().find_map(|member| member.agent);
        agent.map(|agent| format!("{agent} is part of it"))
    };
    let in_use = || {
        let used = item.by_session && clients.is_there_for(members[0]);
        used.then(|| "somebody talks to it over its stdin and stdout".to_owned())
    };
    item.spared = protected(&members, options)
        .or_else(agent)
        .or_else(in_use)
        .or_else(terminal)
        .or_else(|| if item.by_session { None } else { looked_after(members[0], snapshot) })
        .or_else(|| {
            let asked = item.by_session || options.scope == Scope::All;
            (lives && !asked).then(|| "its agent may be alive; --all takes it".to_owned())
        });
    // What has somebody and tells little is not even worth a line.
    if item.kind == Kind::Suspect && item.spared.is_some() {
        return None;
    }
    item.evidence = told;
    Some(item)
}

fn protected(members: &[&Process], options: &Options) -> Option<String> {
    let is_protected = |process: &&&Process| {
        verdict::is_protected_name(
            &process.stat.comm,
            process.command.first().map(String::as_str),
            &options.protected,
        )
    };
    members.iter().find(is_protected).map(|it| format!("{} is protected", it.stat.comm.escape_debug()))
}

/// Whether the living agent that is meant has started it.
fn is_of_session(members: &[&Process], snapshot: &Snapshot, scope: &Scope) -> bool {
    match scope {
        Scope::Gone | Scope::All => false,
        Scope::Session(id) => {
            members.iter().any(|it| it.mark.as_ref().is_some_and(|mark| mark.session.as_ref() == Some(id)))
        }
        Scope::Process(pid, session) => members.iter().any(|it| {
            let marked =
                |mark: &Mark| mark.pid == Some(*pid) || session.is_some() && mark.session == *session;
            it.mark.as_ref().is_some_and(marked) || snapshot.ancestors(it.stat.pid).contains(pid)
        }),
    }
}

/// Returns whether `item`'s topmost process is, by a later look, still what it was taken for.
pub(super) fn still_holds(item: &Item, later: &Snapshot) -> bool {
    let Some(root) = &item.root else { return true };
    let Some(now) = later.processes.get(&root.pid).filter(|now| now.identity == *root) else {
        // A wrapper that has ended meanwhile leaves the rest of the tree to us.
        return root.pin().is_none();
    };
    item.by_session || item.kind == Kind::Survivor || evidence::looked_after(now, later).is_none()
}
