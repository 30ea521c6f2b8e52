//! Looking: at every process, at the registry, at the directories where agents work.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::directories::Directory;
use super::snapshot::Snapshot;
use super::{Options, leftovers, opened};
use crate::containment::LEAF_PREFIX;
use crate::port::holders;
use crate::registry::record::{Record, RecordError, State};
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::run::RunId;
use crate::rundir;
use crate::sys::cgroup::{self, Leaf};
use crate::sys::process::{Pid, Stat};
use crate::teardown::marks::Marks;

/// What was seen, all of it before anything is decided.
#[derive(Debug, Default)]
pub struct Observation {
    /// Every process.
    pub processes: Snapshot,
    /// Where the registry is; `None` if there is none.
    pub registry: Option<PathBuf>,
    /// The unfinished runs.
    pub runs: Vec<SeenOfRun>,
    /// Processes in cgroups of runs of this registry that have ended.
    pub in_cgroups: HashMap<Pid, RunId>,
    /// The globs of the options, links in front of what is to be matched resolved.
    pub places: Vec<String>,
    /// The directories that these mean.
    pub directories: Vec<Directory>,
}

/// An unfinished run, as it was seen.
#[derive(Clone, Debug)]
pub struct SeenOfRun {
    /// Which.
    pub id: RunId,
    /// Where it stands: [`State::Orphaned`] if nobody holds its lock.
    pub state: State,
    /// Its entry, if it can be read.
    pub record: Option<Record>,
    /// Whether a newer program made the entry.
    pub is_newer: bool,
    /// Whether this very process is of the run.
    pub is_around_us: bool,
    /// Its living guard and supervisor.
    pub keepers: Vec<Pid>,
    /// What lives of an orphaned one.
    pub living: Vec<Stat>,
    /// How long ago it began.
    pub age: Duration,
}

/// Looks at everything. May be called from any thread; a child of a moment is forked once, to learn who adopts orphans.
pub fn observe(options: &Options) -> Observation {
    // As the kernel names what processes use.
    let places: Vec<String> = options.places.iter().map(|pattern| resolved(pattern)).collect();
    let paths = meant_by(&places);
    let root = Root::open_existing().ok().flatten();
    let within = rundir::parents_from_environment();
    let runs = root.as_ref().map(seen::runs).unwrap_or_default();
    let mut seen = Observation {
        processes: Snapshot::take(),
        runs: runs.iter().map(|run| SeenOfRun::of(run, &within)).collect(),
        in_cgroups: root.as_ref().map(in_cgroups_of_ended).unwrap_or_default(),
        registry: root.map(|root| root.path().to_owned()),
        places,
        directories: Vec::new(),
    };
    let asked = leftovers::worth_looking_into(&seen, options);
    opened::note_sockets(&mut seen.processes, &asked);
    let asked = leftovers::worth_a_closer_look(&seen, options);
    opened::note_clients(&mut seen.processes, &asked);
    seen.processes.users = opened::users_of(&paths);
    seen.directories = paths.into_iter().filter_map(Directory::look).collect();
    seen
}

impl SeenOfRun {
    fn of(run: &SeenRun, within: &[RunId]) -> SeenOfRun {
        let record = run.record.as_ref().ok();
        let began = || run.directory.metadata().ok().and_then(|it| it.modified().ok()?.elapsed().ok());
        let marks = record.filter(|_| run.state == State::Orphaned).and_then(|it| Marks::of(it, None));
        SeenOfRun {
            id: run.id.clone(),
            state: run.state,
            is_newer: matches!(&run.record, Err(RecordError::Newer(_))),
            is_around_us: within.contains(&run.id),
            keepers: holders::keepers_of(run).collect(),
            living: marks.map(|marks| marks.living()).unwrap_or_default(),
            age: record.map_or_else(|| began().unwrap_or_default(), |record| record.started_at.age()),
            record: record.cloned(),
        }
    }
}

/// The processes in cgroups that are named like leaves of ours, if those runs have ended here. Another registry's runs
/// are not ours to tidy up after.
fn in_cgroups_of_ended(root: &Root) -> HashMap<Pid, RunId> {
    let Ok(parent) = cgroup::parent_with(&[]) else { return HashMap::new() };
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let leaves = entries.filter_map(|entry| {
        let id = RunId::parse(entry.file_name().to_str()?.strip_prefix(LEAF_PREFIX)?)?;
        is_ended_here(root, &id).then_some((Leaf::open(&entry.path()).ok()?, id))
    });
    leaves.flat_map(|(leaf, id)| leaf.processes().into_iter().map(move |pid| (pid, id.clone()))).collect()
}

pub(super) fn is_ended_here(root: &Root, id: &RunId) -> bool {
    root.path().join("ended").join(id.as_str()).exists()
}

/// Returns what the globs mean, each once.
fn meant_by(places: &[String]) -> Vec<PathBuf> {
    let paths = places.iter().filter_map(|pattern| glob::glob(pattern).ok()).flatten().flatten();
    // Where a glob has links in its middle. The last part may be one itself, and is not followed.
    let named = |path: PathBuf| Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    let mut seen = HashSet::new();
    paths.filter_map(named).filter(|path| seen.insert(path.clone())).collect()
}

/// Returns `pattern` with the links resolved in front of what is to be matched.
fn resolved(pattern: &str) -> String {
    let is_plain = |part: &Component| !part.as_os_str().to_string_lossy().contains(['*', '?', '[']);
    let parts: Vec<Component> = Path::new(pattern).components().collect();
    // The last part may be a link itself, and is not followed.
    let known = parts.iter().take(parts.len().saturating_sub(1)).take_while(|part| is_plain(part)).count();
    let rest: PathBuf = parts[known..].iter().collect();
    match parts[..known].iter().collect::<PathBuf>().canonicalize() {
        Ok(place) => format!(
            "{}/{}",
            glob::Pattern::escape(place.to_string_lossy().trim_end_matches('/')),
            rest.display()
        ),
        Err(_) => pattern.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_front_of_a_place_are_resolved() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink(base.join("real"), base.join("link")).unwrap();
        let text = |name: &str| base.join(name).display().to_string();
        for (pattern, expected) in [
            (text("link/web_*"), text("real/web_*")),
            (text("link/*/x"), text("real/*/x")),
            (text("real"), text("real")),
            // The last part is not followed: it is what would be removed.
            (text("link"), text("link")),
            (text("missing/web_*"), text("missing/web_*")),
            ("/web_*".to_owned(), "/web_*".to_owned()),
        ] {
            assert_eq!(resolved(&pattern), expected);
        }
    }
}
