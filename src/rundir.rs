//! The managed directory: what is copied into it, what the command is told of it, and how it goes.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::env as vars;
use crate::exit::Ending;
use crate::registry::record::Record;
use crate::registry::store::LiveRun;
use crate::run::{Keep, RunId};

/// The managed directory could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file could not be copied.
    #[error("cannot copy {path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A signal came.
    #[error("interrupted")]
    Interrupted,
}

/// Copies `sources` into `directory`, each under its own name: files with their modes, directories
/// with all that is in them, links as links. Stops if `interrupted`.
pub fn copy_into(
    directory: &Path,
    sources: &[PathBuf],
    interrupted: &dyn Fn() -> bool,
) -> Result<(), CopyError> {
    if sources.is_empty() {
        return Ok(());
    }
    let managed =
        fs::canonicalize(directory).map_err(|source| CopyError::Io { path: directory.to_owned(), source })?;
    for source in sources {
        // A path like `.` or `..` has no name of its own until it is resolved.
        let resolved = fs::canonicalize(source)
            .map_err(|error| CopyError::Io { path: source.clone(), source: error })?;
        let name = resolved.file_name().unwrap_or(OsStr::new("root"));
        copy(&resolved, &managed.join(name), &managed, interrupted)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, managed: &Path, interrupted: &dyn Fn() -> bool) -> Result<(), CopyError> {
    if interrupted() {
        return Err(CopyError::Interrupted);
    }
    if from == managed {
        // It lies within what is copied, and must not meet itself.
        return Ok(());
    }
    let failed = |source| CopyError::Io { path: from.to_owned(), source };
    let kind = fs::symlink_metadata(from).map_err(failed)?;
    if kind.is_symlink() {
        return fs::read_link(from).and_then(|target| symlink(target, to)).map_err(failed);
    }
    if kind.is_dir() {
        let entries = fs::read_dir(from).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed)?;
        fs::DirBuilder::new().mode(0o700).create(to).map_err(failed)?;
        for entry in entries {
            copy(&entry.path(), &to.join(entry.file_name()), managed, interrupted)?;
        }
        return fs::set_permissions(to, kind.permissions()).map_err(failed);
    }
    if kind.is_file() {
        return fs::copy(from, to).map(drop).map_err(failed);
    }
    Err(failed(io::Error::other("it is neither a file nor a directory nor a link")))
}

/// Returns the variables that the command gets, beside the caller's.
pub fn environment(record: &Record, managed: &Path) -> Vec<(OsString, OsString)> {
    let mut set: Vec<(OsString, OsString)> = vec![
        (vars::ID.into(), record.id.as_str().into()),
        (vars::DIR.into(), managed.into()),
        (vars::TMPDIR.into(), managed.into()),
    ];
    if let Some(first) = record.ports.first() {
        set.push((vars::PORT.into(), first.to_string().into()));
        // Its own machine's: what an agent starts is not for the network, unless --env says so.
        set.push((vars::HOST.into(), "127.0.0.1".into()));
    }
    for (index, port) in record.ports.iter().enumerate() {
        set.push((format!("{}{index}", vars::PORT).into(), port.to_string().into()));
    }
    if !record.parents.is_empty() {
        let parents: Vec<&str> = record.parents.iter().map(RunId::as_str).collect();
        set.push((vars::PARENTS.into(), parents.join(",").into()));
    }
    set
}

/// Returns the runs that this process runs in, outermost first.
pub fn parents_from_environment() -> Vec<RunId> {
    let text = |name| std::env::var(name).unwrap_or_default();
    let mut parents: Vec<RunId> = text(vars::PARENTS).split(',').filter_map(RunId::parse).collect();
    parents.extend(RunId::parse(&text(vars::ID)));
    parents
}

/// Gives the managed directory back, or keeps it; the record says which. Returns where it was kept.
pub fn give_back(run: &mut LiveRun, ending: Ending) -> Option<PathBuf> {
    let keeps = match run.record.keep {
        Keep::Never => false,
        Keep::OnFailure => ending != Ending::Code(0),
        Keep::Always => true,
    };
    let given = if keeps { run.keep_managed().map(Some) } else { run.remove_managed().map(|()| None) };
    match given {
        Ok(kept) => {
            run.record.dir = kept.as_ref().map(|place| place.to_string_lossy().into_owned());
            kept
        }
        Err(error) => {
            if let Some(end) = &mut run.record.end {
                end.dir_error = Some(error.to_string());
            }
            None
        }
    }
}

/// Returns whether `path` is a directory that can be entered.
pub fn check_directory(path: &Path) -> io::Result<()> {
    let seen = fs::metadata(path)?;
    if !seen.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory));
    }
    if seen.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_keep_modes_and_links() {
        let place = tempfile::tempdir().unwrap();
        let source = place.path().join("source");
        fs::create_dir_all(source.join("inner")).unwrap();
        fs::write(source.join("inner/tool"), "#!").unwrap();
        fs::set_permissions(source.join("inner/tool"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("inner/tool", source.join("link")).unwrap();
        fs::set_permissions(source.join("inner"), fs::Permissions::from_mode(0o555)).unwrap();
        let target = place.path().join("target");
        fs::create_dir(&target).unwrap();
        copy_into(&target, std::slice::from_ref(&source), &|| false).unwrap();
        let copied = target.join("source");
        assert_eq!(fs::read_link(copied.join("link")).unwrap(), Path::new("inner/tool"));
        assert_eq!(fs::metadata(copied.join("inner/tool")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::metadata(copied.join("inner")).unwrap().permissions().mode() & 0o777, 0o555);
        fs::set_permissions(copied.join("inner"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(source.join("inner"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_copy_into_itself_ends() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("file"), "x").unwrap();
        let target = place.path().join("target");
        fs::create_dir(&target).unwrap();
        copy_into(&target, &[place.path().to_owned()], &|| false).unwrap();
        let copied = target.join(place.path().file_name().unwrap());
        assert!(copied.join("file").exists());
        assert!(!copied.join("target").exists());
    }

    #[test]
    fn what_cannot_be_copied_is_named() {
        let place = tempfile::tempdir().unwrap();
        let error = copy_into(place.path(), &["/nonexistent/x".into()], &|| false).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x"));
        let interrupted = copy_into(place.path(), &["/etc/hostname".into()], &|| true);
        assert!(matches!(interrupted, Err(CopyError::Interrupted)));
    }
}
