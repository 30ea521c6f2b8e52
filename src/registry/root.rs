//! Where the registry is, and whether it can be trusted.
//!
//! The place is the same whatever `TMPDIR` a shell has, else two shells would not see each other's
//! runs. `/var/tmp` is a disk on most systems, `/tmp` often memory.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::RegistryError;
use crate::env as vars;
use crate::sys::{files, process};

/// The registry's root directory, checked and open.
#[derive(Debug)]
pub struct Root {
    pub(super) path: PathBuf,
    pub(super) directory: File,
    pub(super) runs: File,
    pub(super) ended: File,
}

impl Root {
    /// Opens the root, and makes it if it is not there.
    pub fn open() -> Result<Root, RegistryError> {
        let mut refused = None;
        for path in places() {
            match Root::open_at(&path) {
                Ok(root) => return Ok(root),
                // A place that somebody prepared for us is not passed over in silence.
                Err(error @ RegistryError::Root { .. }) => return Err(error),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| refuse(Path::new("/var/tmp"), "there is no place for it")))
    }

    /// Opens the root if it is there: whoever only looks makes nothing.
    pub fn open_existing() -> Result<Option<Root>, RegistryError> {
        let named = env::var_os(vars::STATE_DIR).is_some_and(|place| !place.is_empty());
        if let Some(path) = places().into_iter().next().filter(|_| named) {
            // What was named and cannot be looked into is not empty.
            return match fs::symlink_metadata(path.join("runs")) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                _ => Root::open_at(&path).map(Some),
            };
        }
        match places().into_iter().find(|path| fs::symlink_metadata(path.join("runs")).is_ok()) {
            Some(path) => Root::open_at(&path).map(Some),
            None => Ok(None),
        }
    }

    /// Opens the root at `path`, and makes it if it is not there.
    pub fn open_at(path: &Path) -> Result<Root, RegistryError> {
        let failed = |what| move |source| RegistryError::Io { what, path: path.to_owned(), source };
        let directory = open_or_make(path)?;
        check(path, &directory)?;
        let runs = open_or_make_in(&directory, "runs").map_err(failed("make 'runs'"))?;
        let ended = open_or_make_in(&directory, "ended").map_err(failed("make 'ended'"))?;
        Ok(Root { path: path.to_owned(), directory, runs, ended })
    }

    /// Waits until nobody else starts a server called `name`; as long as what is returned lives, nobody does.
    pub fn turn_of(&self, name: &str) -> io::Result<File> {
        let file = files::open_shared_in(&self.directory, "servers.lock")?;
        // Two names with one number only wait for each other.
        while !files::wait_for_byte(&file, super::fingerprint(name.as_bytes()) >> 2)? {}
        Ok(file)
    }

    /// Returns whether nobody has looked for orphans within `span`, and notes that we do now.
    pub(crate) fn is_time_to_look(&self, span: Duration) -> bool {
        let stamp = self.path.join("looked");
        let looked = fs::metadata(&stamp).and_then(|seen| seen.modified()).ok();
        // A stamp from the future (a clock that was set back) counts as old.
        let recent = looked.and_then(|at| at.elapsed().ok()).is_some_and(|age| age < span);
        !recent && File::create(stamp).and_then(|file| file.set_modified(SystemTime::now())).is_ok()
    }

    /// Returns whether it is not where other shells look first.
    pub fn is_fallback(&self) -> bool {
        places().first() != Some(&self.path)
    }

    /// Returns where the root is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Returns the places for the root, best first.
fn places() -> Vec<PathBuf> {
    if let Some(place) = env::var_os(vars::STATE_DIR).filter(|place| !place.is_empty()) {
        return vec![std::path::absolute(&place).unwrap_or_else(|_| place.into())];
    }
    let name = format!("agent-run-{}", process::own_uid());
    let mut places = vec![Path::new("/var/tmp").join(&name)];
    places.extend(
        env::var_os(vars::TMPDIR)
            .filter(|place| !place.is_empty())
            .map(|place| Path::new(&place).join(&name)),
    );
    places.push(Path::new("/tmp").join(&name));
    places
}

fn refuse(path: &Path, why: &str) -> RegistryError {
    RegistryError::Root { path: path.to_owned(), why: why.to_owned() }
}

fn open_or_make(path: &Path) -> Result<File, RegistryError> {
    let failed =
        |source| RegistryError::Io { what: "make the state directory", path: path.to_owned(), source };
    match files::open_directory(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match DirBuilder::new().mode(0o700).recursive(true).create(path) {
                Ok(()) => files::open_directory(path).map_err(failed),
                Err(error) => Err(failed(error)),
            }
        }
        Err(error) => Err(explain(path, error)),
        Ok(directory) => Ok(directory),
    }
}

fn explain(path: &Path, error: io::Error) -> RegistryError {
    match fs::symlink_metadata(path) {
        Ok(seen) if seen.is_symlink() => refuse(path, "it is a symbolic link"),
        Ok(seen) if !seen.is_dir() => refuse(path, "it is not a directory"),
        Ok(seen) if seen.uid() != process::own_uid() => refuse(path, "it belongs to another user"),
        _ => refuse(path, &error.to_string()),
    }
}

/// Nobody but us may write where we remove things by name and believe what we read.
fn check(path: &Path, directory: &File) -> Result<(), RegistryError> {
    let seen = directory.metadata().map_err(|error| refuse(path, &error.to_string()))?;
    if seen.uid() != process::own_uid() {
        return Err(refuse(path, "it belongs to another user"));
    }
    if seen.mode() & 0o077 != 0 {
        return Err(refuse(path, &format!("it is open to others (mode {:o})", seen.mode() & 0o7777)));
    }
    Ok(())
}

fn open_or_make_in(parent: &File, name: &str) -> io::Result<File> {
    let name = OsStr::new(name);
    match files::open_directory_in(parent, name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match files::make_directory_in(parent, name) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => files::open_directory_in(parent, name),
            }
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn refusal(path: &Path) -> String {
        Root::open_at(path).expect_err("a refusal").to_string()
    }

    #[test]
    fn a_root_is_made_for_us_alone() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("deep/root");
        Root::open_at(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        Root::open_at(&path).unwrap();
    }

    #[test]
    fn a_root_that_others_could_change_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let real = place.path().join("real");
        Root::open_at(&real).unwrap();
        let link = place.path().join("link");
        symlink(&real, &link).unwrap();
        assert!(refusal(&link).contains("symbolic link"));
        fs::set_permissions(&real, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(refusal(&real).contains("open to others (mode 770)"));
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(refusal(&file).contains("not a directory"));
    }
}
