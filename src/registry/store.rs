//! Runs in the registry: made, changed, finished, removed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::RegistryError;
use super::entry::{RECORD, read_record, to_line, write_record};
use super::record::{Record, State};
use super::root::Root;
use super::seen::{ids, runs};
use crate::run::{RunId, RunSpec};
use crate::sys::process::Pid;
use crate::sys::{fault, files};

/// The control socket's name in a run's directory.
pub const SOCKET: &str = "control.sock";
/// The managed directory's name in a run's directory.
pub const MANAGED: &str = "tmp";
/// Its name while it is being removed.
const LEAVING: &str = "tmp.leaving";
/// The file that every command inherits open, one byte of it locked: that of its run's number. One file for
/// all runs, since a file of its own would be a large part of what a short run costs.
const TREE_LOCKS: &str = "tree.locks";

/// How long the entries of finished runs are kept.
const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// How many entries of finished runs are kept, and how many of them stay when there are more.
const KEPT_AT_MOST: usize = 1_000;
const KEPT_WHEN_PRUNED: usize = 900;
/// How many ids are drawn before we say that something is wrong.
const ID_TRIES: usize = 16;

/// A run that this process answers for: its directory is locked as long as this lives, in a forked
/// copy of this process too.
#[derive(Debug)]
pub struct LiveRun {
    /// The run's entry; [`LiveRun::save`] writes it.
    pub record: Record,
    directory: File,
    root: Root,
}

impl LiveRun {
    /// Enters a new run, state `starting`, with what `fill` knows of it. On an error nothing is left.
    pub fn create(
        root: Root,
        spec: &RunSpec,
        cwd: &Path,
        fill: &dyn Fn(&mut Record),
    ) -> Result<LiveRun, RegistryError> {
        // Held until the run can be seen, so that of two launches with one name one loses.
        let _names = match &spec.name {
            Some(name) => Some(reserve_name(&root, name)?),
            None => None,
        };
        let mut last = None;
        for _ in 0..ID_TRIES {
            let id = RunId::random();
            let hidden = format!(".new-{id}");
            let mut record = Record::starting(id, spec, cwd);
            fill(&mut record);
            match enter(&root, &hidden, record) {
                Ok((record, directory)) => return Ok(LiveRun { record, directory, root }),
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => last = Some(error),
                Err(error) => {
                    last = Some(error);
                    break;
                }
            }
        }
        let source = last.unwrap_or_else(|| io::ErrorKind::Other.into());
        Err(RegistryError::Io { what: "enter the run", path: root.path, source })
    }

    /// Takes over the unfinished run `id` that nobody answers for; `None` if somebody does, if it is gone or
    /// if its entry cannot be understood.
    pub fn adopt(root: Root, id: &RunId) -> Option<LiveRun> {
        let name = OsStr::new(id.as_str());
        let directory = files::open_directory_in(&root.runs, name).ok()?;
        directory.try_lock().ok()?;
        // It may have been finished and moved before we had the lock.
        let still_there =
            files::open_directory_in(&root.runs, name).is_ok_and(|now| files::is_same(&now, &directory));
        let record = read_record(&directory).ok()?;
        still_there.then_some(LiveRun { record, directory, root })
    }

    /// Returns the run's id.
    pub fn id(&self) -> &RunId {
        &self.record.id
    }

    /// Returns the registry that the run is in.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Returns the run's directory.
    pub fn directory(&self) -> &File {
        &self.directory
    }

    /// Returns where the managed directory is.
    pub fn managed_path(&self) -> PathBuf {
        self.root.path.join("runs").join(self.id().as_str()).join(MANAGED)
    }

    /// Writes the entry.
    pub fn save(&self) -> io::Result<()> {
        write_record(&self.directory, &self.record)
    }

    /// Returns the tree lock, to ask who holds it.
    pub fn open_tree_lock(&self) -> io::Result<TreeLock> {
        tree_lock_of(&self.root, self.id())
    }

    /// Opens the tree lock: whoever inherits the descriptor keeps it held.
    pub fn tree_lock(&self) -> io::Result<File> {
        let file = files::open_shared_in(&self.root.directory, TREE_LOCKS)?;
        files::lock_byte(&file, self.id().number())?;
        Ok(file)
    }

    /// Reads the entry again, as the other of guard and supervisor may have written it.
    pub fn reload(&mut self) {
        if let Ok(record) = read_record(&self.directory) {
            self.record = record;
        }
    }

    /// Removes the managed directory.
    pub fn remove_managed(&self) -> io::Result<()> {
        // What an earlier attempt could not remove.
        files::remove_tree_in(&self.directory, OsStr::new(LEAVING))?;
        if files::remove_empty_in(&self.directory, MANAGED)? {
            return Ok(());
        }
        // Whoever still writes to it from outside does so by its path, and finds nothing there from now on.
        files::rename_between(&self.directory, OsStr::new(MANAGED), &self.directory, OsStr::new(LEAVING))?;
        const TRIES: u32 = 20;
        let mut removed = Ok(());
        for _ in 0..TRIES {
            removed = files::remove_tree_in(&self.directory, OsStr::new(LEAVING));
            // One that was already within may have made something behind us.
            let again = |error: &io::Error| error.kind() == io::ErrorKind::DirectoryNotEmpty;
            if !removed.as_ref().is_err_and(again) {
                break;
            }
        }
        removed
    }

    /// Moves the managed directory to where it may stay, and returns that place.
    pub fn keep_managed(&self) -> io::Result<PathBuf> {
        let kept = self.root.path.join("kept");
        match fs::create_dir(&kept) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let place = kept.join(self.id().as_str());
        files::rename_between(
            &self.directory,
            OsStr::new(MANAGED),
            &files::open_directory(&kept)?,
            OsStr::new(self.id().as_str()),
        )?;
        Ok(place)
    }

    /// Writes the entry for the last time and moves it to the finished ones.
    pub fn finish(&mut self) -> io::Result<()> {
        self.record.state = State::Finished;
        fault::step();
        // Whoever finds the socket gone reads why.
        let saved = self.save();
        fault::step();
        files::remove_file_in(&self.directory, SOCKET)?;
        fault::step();
        // Moved even if the disk is too full to say more: what is over must not look like an orphan.
        let name = OsStr::new(self.record.id.as_str());
        match files::rename_between(&self.root.runs, name, &self.root.ended, name) {
            // Whoever died before us had moved it already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result?,
        }
        fault::step();
        saved?;
        if ended_need_pruning(&self.root) {
            prune_ended(&self.root);
        }
        Ok(())
    }

    /// Removes the run without a trace: it never began.
    pub fn forget(self) {
        // What cannot be removed now is an orphan without processes, which the next sweep removes.
        let _ = files::remove_tree_in(&self.root.runs, OsStr::new(self.record.id.as_str()));
    }
}

/// Removes the entry `id` with all that is in it.
pub fn remove_entry(root: &Root, id: &RunId) -> io::Result<()> {
    files::remove_tree_in(&root.runs, OsStr::new(id.as_str()))
}

/// Returns the tree lock of run `id`, to ask who holds it.
pub fn tree_lock_of(root: &Root, id: &RunId) -> io::Result<TreeLock> {
    let file = files::open_shared_in(&root.directory, TREE_LOCKS)?;
    Ok(TreeLock { file, offset: id.number() })
}

/// A run's tree lock, as somebody else sees it.
#[derive(Debug)]
pub struct TreeLock {
    file: File,
    offset: u64,
}

impl TreeLock {
    /// Returns whether any process holds it.
    pub fn is_held(&self) -> bool {
        files::is_byte_locked(&self.file, self.offset).unwrap_or(false)
    }

    /// Returns whether `pid` has a descriptor through which it is held.
    pub fn is_held_by(&self, pid: Pid) -> bool {
        files::holds_byte(pid, &self.file, self.offset)
    }
}

fn enter(root: &Root, hidden: &str, mut record: Record) -> io::Result<(Record, File)> {
    let name = OsStr::new(hidden);
    files::make_directory_in(&root.runs, name)?;
    fault::step();
    let entered = (|| {
        let directory = files::open_directory_in(&root.runs, name)?;
        directory.try_lock().map_err(|error| io::Error::other(error.to_string()))?;
        fault::step();
        files::make_directory_in(&directory, OsStr::new(MANAGED))?;
        fault::step();
        let managed = root.path.join("runs").join(record.id.as_str()).join(MANAGED);
        record.dir = Some(managed.to_string_lossy().into_owned());
        // Nobody can see it yet, so it needs no rename.
        files::create_file_in(&directory, RECORD)?.write_all(&to_line(&record)?)?;
        fault::step();
        files::rename_between(&root.runs, name, &root.runs, OsStr::new(record.id.as_str()))?;
        Ok(directory)
    })();
    match entered {
        Ok(directory) => Ok((record, directory)),
        Err(error) => {
            // The first error counts; what cannot be removed has no id and is swept.
            let _ = files::remove_tree_in(&root.runs, name);
            Err(error)
        }
    }
}

/// Refuses a name that a live run has. The file that is returned keeps others out while it lives.
fn reserve_name(root: &Root, name: &str) -> Result<File, RegistryError> {
    let failed = |source| RegistryError::Io { what: "lock the names", path: root.path.clone(), source };
    let lock = files::create_file_in(&root.directory, "names.lock").map_err(failed)?;
    lock.lock().map_err(failed)?;
    let taken = runs(root).into_iter().find(|run| run.name() == Some(name));
    match taken {
        Some(run) => Err(RegistryError::NameTaken { name: name.to_owned(), holder: run.id }),
        None => Ok(lock),
    }
}

/// Removes what was being entered when its launcher was killed: it has no id yet and nobody has it locked.
pub fn remove_unfinished_entries(root: &Root) {
    let entries = fs::read_dir(root.path.join("runs")).into_iter().flatten().flatten();
    for name in
        entries.map(|entry| entry.file_name()).filter(|name| name.as_encoded_bytes().starts_with(b".new-"))
    {
        let Ok(directory) = files::open_directory_in(&root.runs, &name) else { continue };
        // Between its making and its locking there is a moment; older than that it is nobody's.
        let age =
            directory.metadata().and_then(|seen| seen.modified()).ok().and_then(|made| made.elapsed().ok());
        if age.is_some_and(|age| age > Duration::from_secs(60)) && directory.try_lock().is_ok() {
            let _ = files::remove_tree_in(&root.runs, &name);
        }
    }
}

/// Cheap, since it is asked after each run: most file systems count a directory's subdirectories as
/// links. One that does not (btrfs says 1) is pruned by chance.
fn ended_need_pruning(root: &Root) -> bool {
    use std::os::unix::fs::MetadataExt;
    let links = root.ended.metadata().map_or(0, |seen| seen.nlink());
    let by_chance = root.ended.metadata().map_or(0, |seen| seen.mtime_nsec()) % 64 == 0;
    links > KEPT_AT_MOST as u64 + 2 || by_chance
}

/// Removes the entries of finished runs that are too old or too many.
pub fn prune_ended(root: &Root) {
    let age = |id: &RunId| {
        let seen = fs::symlink_metadata(root.path.join("ended").join(id.as_str())).ok()?;
        SystemTime::now().duration_since(seen.modified().ok()?).ok()
    };
    let mut aged: Vec<(Duration, RunId)> =
        ids(&root.path.join("ended")).into_iter().map(|id| (age(&id).unwrap_or_default(), id)).collect();
    aged.sort();
    let kept = if aged.len() > KEPT_AT_MOST { KEPT_WHEN_PRUNED } else { KEPT_AT_MOST };
    let young = aged.iter().take(kept).take_while(|(age, _)| *age <= KEPT_FOR).count();
    for (_, id) in &aged[young..] {
        // Another run may be removing the same one.
        let _ = files::remove_tree_in(&root.ended, OsStr::new(id.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::LONG_RECORD;
    use super::super::seen::{ended, find};
    use super::*;

    fn place() -> (tempfile::TempDir, impl Fn() -> Root) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state");
        (place, move || Root::open_at(&path).unwrap())
    }

    fn create(root: Root, name: Option<&str>) -> Result<LiveRun, RegistryError> {
        let mut spec = RunSpec::new(["true"]);
        spec.name = name.map(str::to_owned);
        LiveRun::create(root, &spec, Path::new("/"), &|_| {})
    }

    #[test]
    fn the_lock_tells_supervised_from_orphaned() {
        let (_place, root) = place();
        let run = create(root(), None).unwrap();
        assert_eq!(runs(&root())[0].state, State::Starting);
        drop(run);
        assert_eq!(runs(&root())[0].state, State::Orphaned);
    }

    #[test]
    fn a_name_is_free_again_when_its_run_has_ended() {
        let (_place, root) = place();
        let mut run = create(root(), Some("web")).unwrap();
        let error = create(root(), Some("web")).unwrap_err();
        assert!(error.to_string().contains(run.id().as_str()), "{error}");
        run.remove_managed().unwrap();
        run.finish().unwrap();
        assert!(runs(&root()).is_empty());
        create(root(), Some("web")).unwrap();
        assert_eq!(ended(&root()).len(), 1);
    }

    #[test]
    fn runs_are_found_by_id_beginning_and_name() {
        let (_place, root) = place();
        let web = create(root(), Some("web")).unwrap();
        let other = create(root(), None).unwrap();
        let found = |selector: &str| find(&root(), selector).map(|run| run.id);
        assert_eq!(found("web").unwrap(), *web.id());
        assert_eq!(found(other.id().as_str()).unwrap(), *other.id());
        assert!(matches!(found("nobody"), Err(RegistryError::Unknown(_))));
        assert!(matches!(found(""), Err(RegistryError::Unknown(_))));
    }

    #[test]
    fn a_broken_record_hides_nothing_else() {
        let (_place, root) = place();
        let broken = create(root(), None).unwrap();
        let sound = create(root(), None).unwrap();
        fs::write(broken.managed_path().with_file_name(RECORD), "{\"version\":1,").unwrap();
        let seen = runs(&root());
        assert_eq!(seen.len(), 2);
        assert_eq!(seen.iter().filter(|run| run.record.is_ok()).count(), 1);
        assert!(find(&root(), sound.id().as_str()).unwrap().record.is_ok());
    }

    #[test]
    fn the_last_whole_line_of_a_record_counts() {
        let (_place, root) = place();
        let mut run = create(root(), None).unwrap();
        run.record.cwd = "1".to_owned();
        run.save().unwrap();
        let path = run.managed_path().with_file_name(RECORD);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        fs::write(&path, format!("{text}{}", &text[..text.len() / 4])).unwrap();
        assert_eq!(read_record(&run.directory).unwrap().cwd, "1");
        // What is written after a half line is read again.
        fs::write(&path, format!("{text}{{\"half\n")).unwrap();
        run.record.cwd = "2".to_owned();
        run.save().unwrap();
        assert_eq!(read_record(&run.directory).unwrap().cwd, "2");
    }

    #[test]
    fn a_record_that_has_grown_long_is_written_anew() {
        let (_place, root) = place();
        let run = create(root(), None).unwrap();
        for _ in 0..200 {
            run.save().unwrap();
        }
        let path = run.managed_path().with_file_name(RECORD);
        assert!(fs::metadata(path).unwrap().len() <= LONG_RECORD + 2_000);
        assert_eq!(read_record(&run.directory).unwrap().id, *run.id());
    }

    #[test]
    fn finished_runs_are_forgotten_in_time() {
        let (_place, root) = place();
        for _ in 0..3 {
            let mut run = create(root(), None).unwrap();
            run.remove_managed().unwrap();
            run.finish().unwrap();
        }
        let old = ended(&root())[1].id.clone();
        let past = SystemTime::now() - KEPT_FOR - Duration::from_secs(60);
        File::open(root().path.join("ended").join(old.as_str())).unwrap().set_modified(past).unwrap();
        prune_ended(&root());
        assert_eq!(ended(&root()).len(), 2);
        assert!(ended(&root()).iter().all(|run| run.id != old));
    }
}
