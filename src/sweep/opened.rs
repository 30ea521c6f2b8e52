//! What processes have open: the ports on which they listen, the other ends of their stdin and stdout, files in agents'
//! directories.
//!
//! To look at every descriptor of every process takes longer than all else, so it is done only where there is
//! something that cannot be known without.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::snapshot::{End, Snapshot};
use crate::sys::descriptors::{self, Kind};
use crate::sys::process::Pid;
use crate::sys::sockets::{self, State};
use crate::sys::{crew, tree};

/// What was found.
#[derive(Default)]
struct Opened {
    holders: HashMap<End, Vec<Pid>>,
    users: HashMap<PathBuf, Vec<Pid>>,
}

/// Completes `seen` by the ports and connections of the processes `asked`.
pub(super) fn note_sockets(seen: &mut Snapshot, asked: &HashSet<Pid>) {
    let states = [State::Listening, State::Established];
    // Where the kernel cannot be asked, there is less evidence.
    let found = sockets::list(&states, None).unwrap_or_default();
    let wanted = found.iter().map(|socket| End::Socket(socket.inode)).collect();
    let owners = search(asked.iter().copied().collect(), &wanted, &[]).holders;
    for socket in &found {
        for pid in owners.get(&End::Socket(socket.inode)).into_iter().flatten() {
            match socket.state {
                State::Listening => {
                    seen.listening.entry(*pid).or_default().insert(socket.local.port());
                }
                _ => *seen.connections.entry(*pid).or_default() += 1,
            }
        }
    }
}

/// Completes `seen` by who talks to the processes `asked` over their stdin and stdout.
pub(super) fn note_clients(seen: &mut Snapshot, asked: &HashSet<Pid>) {
    let both = |pid: Pid| {
        let end = |fd| end_of(&descriptors::behind(pid, fd)?);
        Some((pid, [end(0)?, end(1)?]))
    };
    seen.stdio = asked.iter().copied().filter_map(both).collect();
    let has_socket = |stdio: &[End; 2]| stdio.iter().any(|end| matches!(end, End::Socket(_)));
    if seen.stdio.values().any(has_socket) {
        seen.peers = sockets::unix_peers().unwrap_or_default();
    }
    let wanted: HashSet<End> = seen.stdio.values().flatten().filter_map(|end| seen.other_end(*end)).collect();
    if !wanted.is_empty() {
        seen.holders = search(tree::all_processes().collect(), &wanted, &[]).holders;
    }
}

/// Returns who uses `places`.
pub(super) fn users_of(places: &[PathBuf]) -> HashMap<PathBuf, Vec<Pid>> {
    if places.is_empty() {
        return HashMap::new();
    }
    search(tree::all_processes().collect(), &HashSet::new(), places).users
}

fn end_of(link: &[u8]) -> Option<End> {
    let socket = || descriptors::inode_in(link, Kind::Socket).map(End::Socket);
    descriptors::inode_in(link, Kind::Pipe).map(End::Pipe).or_else(socket)
}

/// Looks at everything that `pids` have open, for the ends `wanted` and for files in `places`.
fn search(pids: Vec<Pid>, wanted: &HashSet<End>, places: &[PathBuf]) -> Opened {
    if wanted.is_empty() && places.is_empty() {
        return Opened::default();
    }
    let places: HashSet<&Path> = places.iter().map(PathBuf::as_path).collect();
    let found = Mutex::new(Opened::default());
    crew::share(pids.len(), &|first, step| {
        for pid in pids.iter().skip(first).step_by(step) {
            let (ends, uses) = open_in(*pid, wanted, &places);
            // Nothing can panic while it is held.
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            ends.into_iter().for_each(|end| found.holders.entry(end).or_default().push(*pid));
            uses.into_iter().for_each(|place| found.users.entry(place).or_default().push(*pid));
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn open_in(pid: Pid, wanted: &HashSet<End>, places: &HashSet<&Path>) -> (HashSet<End>, HashSet<PathBuf>) {
    let (mut ends, mut uses) = (HashSet::new(), HashSet::new());
    let place = |path: &Path| path.ancestors().find(|it| places.contains(it)).map(Path::to_owned);
    descriptors::each(pid, &mut |_, link| {
        if let Some(end) = end_of(link) {
            ends.extend(Some(end).filter(|end| wanted.contains(end)));
        } else if !places.is_empty() && link.first() == Some(&b'/') {
            uses.extend(place(Path::new(OsStr::from_bytes(link))));
        }
    });
    let links = if places.is_empty() { &[][..] } else { &["cwd", "exe", "root"] };
    let paths = links.iter().filter_map(|name| fs::read_link(format!("/proc/{pid}/{name}")).ok());
    uses.extend(paths.filter_map(|path| place(&path)));
    (ends, uses)
}
