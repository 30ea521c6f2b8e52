//! Runs in the registry as somebody else sees them: looked at, found, never changed.

use std::cmp::Reverse;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::path::Path;

use super::RegistryError;
use super::entry::read_record;
use super::record::{Record, RecordError, State};
use super::root::Root;
use crate::run::RunId;
use crate::sys::files;
use crate::sys::process::Pid;

/// A run as somebody else sees it.
#[derive(Debug)]
pub struct SeenRun {
    /// The run.
    pub id: RunId,
    /// Where it stands: [`State::Orphaned`] if nobody holds its lock.
    pub state: State,
    /// Its entry.
    pub record: Result<Record, RecordError>,
    /// Its directory.
    pub directory: File,
}

impl SeenRun {
    /// Returns its name, if it has one and its entry can be read.
    pub fn name(&self) -> Option<&str> {
        self.record.as_ref().ok()?.name.as_deref()
    }

    /// Returns whether guard or supervisor live.
    pub fn is_supervised(&self) -> bool {
        is_locked(&self.directory)
    }

    /// Reads its entry again: it may have moved on.
    pub fn reread(&mut self) {
        self.record = read_record(&self.directory);
    }
}

fn is_locked(directory: &File) -> bool {
    // The shared lock goes when this descriptor's last copy does, or at once here.
    match directory.try_lock_shared() {
        Ok(()) => directory.unlock().is_err(),
        Err(TryLockError::WouldBlock) => true,
        // Whoever cannot ask must not take it for free.
        Err(TryLockError::Error(_)) => true,
    }
}

/// Returns the unfinished runs, oldest first.
pub fn runs(root: &Root) -> Vec<SeenRun> {
    let ids = ids(&root.path.join("runs"));
    let mut found: Vec<SeenRun> = ids.into_iter().filter_map(|id| look(root, id, false)).collect();
    found.sort_by_key(|run| run.record.as_ref().ok().map(|record| record.started_at));
    found
}

/// Returns runs that nobody supervises, of at most `most` that are looked at: another time it is others, so that of many
/// each has its turn. A run that lives costs a look at its lock and nothing more.
pub fn dead(root: &Root, most: usize) -> Vec<SeenRun> {
    let mut ids = ids(&root.path.join("runs"));
    if ids.len() > most {
        let mut bytes = [0; 8];
        files::fill_random(&mut bytes);
        let turn = u64::from_ne_bytes(bytes) as usize % ids.len();
        ids.rotate_left(turn);
        ids.truncate(most);
    }
    ids.into_iter().filter_map(|id| look(root, id, true)).collect()
}

/// Looks at the unfinished run `id`; `None` if it is not there, or lives although only the dead are looked for.
fn look(root: &Root, id: RunId, only_dead: bool) -> Option<SeenRun> {
    let directory = files::open_directory_in(&root.runs, OsStr::new(id.as_str())).ok()?;
    // The lock first: a record that is read after it was seen free is the last one.
    let locked = is_locked(&directory);
    if locked && only_dead {
        return None;
    }
    let record = read_record(&directory);
    let state = match &record {
        Ok(record) if locked => record.state,
        Err(_) if locked => State::Running,
        _ => State::Orphaned,
    };
    // It may have finished while we looked: then it is found among the finished. One that is finished
    // and still here lost its supervisor just before it was moved.
    let over = record.as_ref().map_or(true, |record| record.state == State::Finished);
    let gone = over && files::open_directory_in(&root.runs, OsStr::new(id.as_str())).is_err();
    (!gone && state != State::Finished).then_some(SeenRun { id, state, record, directory })
}

/// Returns the guards of the live runs within the run `outer`.
pub fn guards_within(root: &Root, outer: &RunId) -> Vec<Pid> {
    let records = runs(root).into_iter().filter_map(|run| run.record.ok());
    let within = records.filter(|record| record.parents.contains(outer));
    // A number that belongs to somebody else by now would hide what is below it.
    within
        .filter_map(|record| record.guard)
        .filter(|guard| guard.pin().is_some())
        .map(|guard| guard.pid)
        .collect()
}

/// Returns the finished runs, the one that ended last first.
pub fn ended(root: &Root) -> Vec<SeenRun> {
    let mut found: Vec<SeenRun> = ids(&root.path.join("ended"))
        .into_iter()
        .filter_map(|id| {
            let directory = files::open_directory_in(&root.ended, OsStr::new(id.as_str())).ok()?;
            let record = read_record(&directory);
            Some(SeenRun { id, state: State::Finished, record, directory })
        })
        .collect();
    let ended_at = |run: &SeenRun| Some(run.record.as_ref().ok()?.end.as_ref()?.at);
    found.sort_by_key(|run| Reverse(ended_at(run)));
    found
}

/// Finds the run that `selector` means: an id, a unique beginning of one with three letters
/// at least, a name, or the `:PORT` that it has.
/// Unfinished runs go before finished ones, which have no port any more; of finished ones with the same name the last is
/// meant.
pub fn find(root: &Root, selector: &str) -> Result<SeenRun, RegistryError> {
    if let Some(port) = selector.strip_prefix(':').and_then(|text| text.parse().ok()) {
        let has_it = |run: &SeenRun| run.record.as_ref().is_ok_and(|record| record.ports.contains(&port));
        return runs(root)
            .into_iter()
            .find(has_it)
            .ok_or_else(|| RegistryError::Unknown(selector.to_owned()));
    }
    let unfinished = runs(root);
    let is_it = |run: &SeenRun| run.name() == Some(selector) || run.id.as_str() == selector;
    let exact = unfinished.iter().any(is_it);
    let mut finished = if exact { Vec::new() } else { ended(root) };
    // Who means one that has ended by its name must not hit another one whose id happens to begin so.
    if let Some(index) = finished.iter().position(is_it) {
        return Ok(finished.swap_remove(index));
    }
    if let Some(run) = pick(unfinished, selector)? {
        return Ok(run);
    }
    pick(finished, selector)?.ok_or_else(|| RegistryError::Unknown(selector.to_owned()))
}

fn pick(runs: Vec<SeenRun>, selector: &str) -> Result<Option<SeenRun>, RegistryError> {
    let exact = |run: &SeenRun| run.name() == Some(selector) || run.id.as_str() == selector;
    // One or two letters are a slip, and some id begins with them.
    const SHORTEST: usize = 3;
    let begins = |run: &SeenRun| selector.len() >= SHORTEST && run.id.as_str().starts_with(selector);
    let (mut exact, rest): (Vec<_>, Vec<_>) = runs.into_iter().partition(exact);
    let mut fitting: Vec<_> =
        if exact.is_empty() { rest.into_iter().filter(begins).collect() } else { vec![exact.remove(0)] };
    if fitting.len() > 1 {
        let candidates = fitting
            .iter()
            .map(|run| match run.name() {
                Some(name) => format!("{} ({name})", run.id),
                None => run.id.to_string(),
            })
            .collect();
        return Err(RegistryError::Ambiguous { selector: selector.to_owned(), candidates });
    }
    Ok(fitting.pop())
}

/// Returns the names in `directory` that have the form of an id: nothing else there is ours.
pub(super) fn ids(directory: &Path) -> Vec<RunId> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| RunId::parse(entry.file_name().to_str()?)).collect()
}
