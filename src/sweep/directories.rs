//! Directories that agents have left.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::plan::{Item, Kind};
use super::{Options, places};
use crate::sys::process::{self, Pid};
use crate::sys::{files, tree};

/// Returns agents' directories that nothing uses, or nobody but `going`, who are swept.
pub(super) fn directories(options: &Options, going: &HashSet<Pid>) -> Vec<Item> {
    // One in which somebody is just about to start something.
    const FRESH: Duration = Duration::from_secs(600);
    let places = places(options);
    let used = users_of(&places);
    let item = |path: PathBuf| {
        let seen = std::fs::symlink_metadata(&path).ok()?;
        let users = used.get(&path).map(Vec::as_slice).unwrap_or_default();
        // A link is left alone whatever is behind it.
        let newest = if seen.is_dir() { newest_in(&path) } else { seen.modified().ok() };
        let age = newest?.elapsed().unwrap_or_default();
        let spared = if seen.is_symlink() {
            Some("it is a link".to_owned())
        } else if !seen.is_dir() {
            return None;
        } else if seen.uid() != process::own_uid() {
            Some(format!("it belongs to {}", files::user_name(seen.uid()).unwrap_or_default()))
        } else if let Some(user) = users.iter().find(|pid| !going.contains(pid)) {
            Some(format!("process {user} uses it"))
        } else {
            (users.is_empty() && age < FRESH).then(|| "it was changed a moment ago".to_owned())
        };
        Some(Item {
            kind: Kind::Directory,
            run: None,
            root: None,
            pids: Vec::new(),
            members: Vec::new(),
            inode: Some((seen.dev(), seen.ino())),
            by_session: !users.is_empty(),
            age,
            memory_bytes: 0,
            ports: BTreeSet::new(),
            connections: 0,
            directory: Some(path),
            evidence: Vec::new(),
            command: Vec::new(),
            spared,
        })
    };
    places.into_iter().filter_map(item).collect()
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

/// Returns who works in one of `places`, runs a program from there or has something in it open. One look at all
/// processes for all places: there may be ten thousand of them.
pub(super) fn users_of(places: &[PathBuf]) -> HashMap<PathBuf, Vec<Pid>> {
    let known: HashSet<&Path> = places.iter().map(PathBuf::as_path).collect();
    let mut users: HashMap<PathBuf, Vec<Pid>> = HashMap::new();
    let pids: Vec<Pid> = if places.is_empty() { Vec::new() } else { tree::all_processes().collect() };
    for pid in pids {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links =
            ["cwd", "exe", "root"].map(|name| PathBuf::from(format!("/proc/{pid}/{name}"))).into_iter();
        for target in
            links.chain(open.map(|entry| entry.path())).filter_map(|link| std::fs::read_link(link).ok())
        {
            if let Some(place) = target.ancestors().find(|it| known.contains(it)) {
                users.entry(place.to_owned()).or_default().push(pid);
            }
        }
    }
    users
}
