//! Directories that agents have left.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::plan::{Item, Kind};
use super::snapshot::Snapshot;
use crate::sys::files;
use crate::sys::process::{self, Pid};

/// A directory where agents put what they serve, or a link to one, as it was seen.
#[derive(Clone, Debug)]
pub struct Directory {
    /// Where.
    pub path: PathBuf,
    /// Device and inode.
    pub inode: (u64, u64),
    /// Whether it is a link. What is behind one is not looked at.
    pub is_link: bool,
    /// Whose it is, if another user's.
    pub belongs_to: Option<String>,
    /// How long ago something in it was changed last.
    pub age: Duration,
}

/// One in which somebody is just about to start something.
const FRESH: Duration = Duration::from_secs(600);

impl Directory {
    /// Looks at `path`; `None` if it is neither a directory nor a link.
    pub(super) fn look(path: PathBuf) -> Option<Directory> {
        let seen = std::fs::symlink_metadata(&path).ok()?;
        let newest = if seen.is_dir() { newest_in(&path) } else { seen.modified().ok() };
        let stranger = seen.uid() != process::own_uid();
        (seen.is_dir() || seen.is_symlink()).then_some(Directory {
            inode: (seen.dev(), seen.ino()),
            is_link: seen.is_symlink(),
            belongs_to: stranger.then(|| files::user_name(seen.uid()).unwrap_or_default()),
            age: newest?.elapsed().unwrap_or_default(),
            path,
        })
    }

    /// Judges whether it may go once `going`, who are swept, are gone.
    pub(super) fn judge(&self, snapshot: &Snapshot, going: &HashSet<Pid>) -> Item {
        let users = snapshot.users.get(&self.path).map(Vec::as_slice).unwrap_or_default();
        let spared = if self.is_link {
            Some("it is a link".to_owned())
        } else if let Some(name) = &self.belongs_to {
            Some(format!("it belongs to {name}"))
        } else if let Some(user) = users.iter().find(|pid| !going.contains(pid)) {
            Some(format!("process {user} uses it"))
        } else {
            (users.is_empty() && self.age < FRESH).then(|| "it was changed a moment ago".to_owned())
        };
        Item {
            inode: Some(self.inode),
            by_session: !users.is_empty(),
            age: self.age,
            directory: Some(self.path.clone()),
            spared,
            ..Item::of(Kind::Directory)
        }
    }
}

/// Returns when something in `path` was changed last; `None` if there is too much to look at.
fn newest_in(path: &Path) -> Option<SystemTime> {
    const MOST: usize = 20_000;
    let mut waiting = vec![path.to_owned()];
    let mut newest = None;
    let mut seen = 0;
    while let Some(place) = waiting.pop() {
        let Ok(entry) = std::fs::symlink_metadata(&place) else { continue };
        newest = newest.max(entry.modified().ok());
        seen += 1;
        if seen > MOST {
            // It goes when it has not been touched for long itself.
            return newest;
        }
        if entry.is_dir() {
            waiting.extend(std::fs::read_dir(&place).into_iter().flatten().flatten().map(|it| it.path()));
        }
    }
    newest
}
