//! Carrying a plan out, and saying what came of it.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::Options;
use super::evidence::looked_after;
use super::observe::is_ended_here;
use super::opened::users_of;
use super::plan::{Item, Kind, Plan};
use super::snapshot::Snapshot;
use crate::containment::LEAF_PREFIX;
use crate::recover;
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::registry::store;
use crate::run::RunId;
use crate::stop::{self, Wish};
use crate::sys::cgroup::{self, Leaf};
use crate::sys::files;
use crate::sys::signal::Signal;
use crate::sys::sockets::{self, State};
use crate::teardown::pursuit::end_trees;

/// What came of one item.
#[derive(Clone, Debug)]
pub struct Done {
    /// The item.
    pub item: Item,
    /// How many of its processes needed SIGKILL.
    pub killed: u32,
    /// Bytes of what was removed.
    pub removed_bytes: u64,
    /// Why it is still there; `None` if it is gone.
    pub remains: Option<String>,
}

/// What came of a sweep.
#[derive(Debug, Default)]
pub struct Report {
    /// One by one.
    pub done: Vec<Done>,
    /// Ports that nobody listens on any more.
    pub freed: BTreeSet<u16>,
}

impl Report {
    /// Returns what is gone.
    pub fn gone(&self) -> impl Iterator<Item = &Done> {
        self.done.iter().filter(|done| done.remains.is_none())
    }

    /// Returns what is still there.
    pub fn remaining(&self) -> impl Iterator<Item = &Done> {
        self.done.iter().filter(|done| done.remains.is_some())
    }
}

/// Ends and removes what `plan` says. May be called from any thread; waits for the graces.
pub fn apply(plan: &Plan, options: &Options) -> Report {
    let mut report = Report::default();
    // Processes first: what they use can be removed then. Their graces pass together.
    let trees: Vec<Item> = plan.to_go().filter(|item| item.root.is_some()).cloned().collect();
    report.done.extend(end_all(trees, options.grace));
    let others = || plan.to_go().filter(|item| item.root.is_none());
    let runs: Vec<Item> = others().filter(|item| item.kind != Kind::Directory).cloned().collect();
    report.done.extend(end_runs(&runs, options.grace));
    report.done.extend(remove_directories(others().filter(|item| item.kind == Kind::Directory)));
    let ports: BTreeSet<u16> = report.gone().flat_map(|done| done.item.ports.iter().copied()).collect();
    let listening = sockets::list(&[State::Listening], None).unwrap_or_default();
    let is_free = |port: &u16| !listening.iter().any(|socket| socket.local.port() == *port);
    report.freed = ports.into_iter().filter(is_free).collect();
    tidy();
    report
}

fn end_all(items: Vec<Item>, grace: Duration) -> Vec<Done> {
    if items.is_empty() {
        return Vec::new();
    }
    let later = Snapshot::take();
    let (there, gone): (Vec<Item>, Vec<Item>) = items.into_iter().partition(|item| still_holds(item, &later));
    let roots: Vec<_> = there.iter().flat_map(|item| item.members.iter().cloned()).collect();
    let (survivors, killed) = end_trees(&roots, Signal::TERM, grace);
    let mut survivors = survivors;
    let mut done: Vec<Done> = Vec::new();
    let count = there.len();
    let all: HashSet<i32> = there.iter().flat_map(|item| item.pids.iter().copied()).collect();
    for (index, item) in there.into_iter().enumerate() {
        // Who was forked later, or became another user's, is told with the last.
        let known = |pid: &i32| all.contains(pid);
        let is_its = |pid: &i32| item.pids.contains(pid) || index + 1 == count && !known(pid);
        let (its, others): (Vec<_>, Vec<_>) = survivors.into_iter().partition(|left| is_its(&left.pid));
        survivors = others;
        let left: Vec<String> =
            its.iter().map(|left| format!("pid {} ({})", left.pid, left.command.escape_debug())).collect();
        let remains = (!left.is_empty()).then(|| format!("could not be ended: {}", left.join(", ")));
        let by_force = killed.iter().filter(|pid| is_its(pid)).count() as u32;
        done.push(Done { item, killed: by_force, removed_bytes: 0, remains });
    }
    let changed = |item: Item| {
        let remains = Some("it is not what it was any more, and was left alone".to_owned());
        Done { item, killed: 0, removed_bytes: 0, remains }
    };
    done.extend(gone.into_iter().map(changed));
    done
}

/// Ends runs, several at once: each may take its grace.
fn end_runs(runs: &[Item], grace: Duration) -> Vec<Done> {
    const AT_ONCE: usize = 16;
    let done = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let end_some = || {
        while let Some(item) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let ended = end_orphan(item.clone(), grace);
            done.lock().unwrap_or_else(PoisonError::into_inner).push(ended);
        }
    };
    thread::scope(|scope| {
        for _ in 1..runs.len().min(AT_ONCE) {
            // Where no thread can be made, the others do its part.
            let _ = thread::Builder::new().spawn_scoped(scope, end_some);
        }
        end_some();
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn end_orphan(item: Item, grace: Duration) -> Done {
    let done = |item: Item, killed, remains| Done { item, killed, removed_bytes: 0, remains };
    let root = || Root::open_existing().ok().flatten();
    let find = |root: &Root| -> Option<SeenRun> {
        seen::runs(root).into_iter().find(|run| Some(&run.id) == item.run.as_ref())
    };
    let Some((registry, mut run)) = root().and_then(|root| find(&root).map(|run| (root, run))) else {
        // Somebody else was faster.
        return done(item, 0, None);
    };
    if item.kind == Kind::Run {
        let stopped = stop::stop(&mut run, None, Wish::Stop);
        let killed = run.record.as_ref().ok().and_then(|it| it.end.as_ref()).map_or(0, |end| end.killed);
        return done(item, killed, stopped.err().map(|error| error.to_string()));
    }
    if run.record.is_err() {
        let gone = recover::remove_broken(&registry, &run, Some(grace));
        let why = (!gone).then(|| "its entry could not be removed".to_owned());
        return done(item, 0, why);
    }
    let end = recover::recover(registry, &run, Some(grace));
    match end {
        Some(end) if end.verified && end.dir_error.is_none() => done(item, end.killed, None),
        Some(end) => {
            let left: Vec<String> =
                end.survivors.iter().map(|it| format!("pid {} ({})", it.pid, it.command)).collect();
            let why =
                end.dir_error.clone().unwrap_or_else(|| format!("could not be ended: {}", left.join(", ")));
            done(item, end.killed, Some(why))
        }
        None if root().is_none_or(|root| find(&root).is_none()) => done(item, 0, None),
        None => done(item, 0, Some("somebody else is ending it".to_owned())),
    }
}

/// Removes directories, looked at again: real ones, that nothing uses.
fn remove_directories<'a>(items: impl Iterator<Item = &'a Item>) -> Vec<Done> {
    let items: Vec<&Item> = items.collect();
    let places: Vec<PathBuf> = items.iter().filter_map(|item| item.directory.clone()).collect();
    let used = users_of(&places);
    let done = |item: &Item| {
        let path = item.directory.clone().unwrap_or_default();
        let (removed_bytes, remains) = match used.get(&path).and_then(|users| users.first()) {
            Some(user) => (0, Some(format!("process {user} uses it"))),
            None => match remove(&path, item.inode) {
                Ok(bytes) => (bytes, None),
                Err(error) => (0, Some(error.to_string())),
            },
        };
        Done { item: item.clone(), killed: 0, removed_bytes, remains }
    };
    items.into_iter().map(done).collect()
}

fn remove(path: &Path, expected: Option<(u64, u64)>) -> std::io::Result<u64> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let parent = files::open_directory(parent)?;
    // Opened without following a link, or not at all; and it must be the one that was looked at.
    let seen = files::open_directory_in(&parent, OsStr::new(name))?.metadata()?;
    if expected != Some((seen.dev(), seen.ino())) {
        return Err(std::io::Error::other("it was made anew meanwhile"));
    }
    let bytes = size_of(path);
    files::remove_tree_in(&parent, name)?;
    Ok(bytes)
}

/// Bytes on disk below `path`, links not followed.
fn size_of(path: &Path) -> u64 {
    let mut waiting: Vec<PathBuf> = vec![path.to_owned()];
    let mut bytes = 0;
    while let Some(place) = waiting.pop() {
        let Ok(seen) = std::fs::symlink_metadata(&place) else { continue };
        bytes += seen.blocks() * 512;
        if seen.is_dir() {
            waiting
                .extend(std::fs::read_dir(&place).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    bytes
}

/// What a dead launcher left half made, and what is kept too long.
fn tidy() {
    if let Ok(Some(root)) = Root::open_existing() {
        store::remove_unfinished_entries(&root);
        remove_empty_leaves(&root);
        store::prune_ended(&root);
    }
}

/// Cgroups of runs that are not there any more; one with something in it cannot be removed.
fn remove_empty_leaves(root: &Root) {
    let Ok(parent) = cgroup::parent_with(&[]) else { return };
    let unfinished: Vec<RunId> = seen::runs(root).into_iter().map(|run| run.id).collect();
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| RunId::parse(name.strip_prefix(LEAF_PREFIX)?));
        // One that is just being made is entered in the registry before.
        if id.is_some_and(|id| !unfinished.contains(&id) && is_ended_here(root, &id)) {
            let _ = Leaf::open(&entry.path()).map(|leaf| leaf.remove());
        }
    }
}

/// Returns whether `item`'s topmost process is, by a later look, still what it was taken for.
fn still_holds(item: &Item, later: &Snapshot) -> bool {
    let Some(root) = &item.root else { return true };
    let Some(now) = later.processes.get(&root.pid).filter(|now| now.identity == *root) else {
        // A wrapper that has ended meanwhile leaves the rest of the tree to us.
        return root.pin().is_none();
    };
    item.by_session || item.kind == Kind::Survivor || looked_after(now, later).is_none()
}
