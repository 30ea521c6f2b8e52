//! Whether anybody is left at the other end of a process's stdin and stdout. Pure: from what was seen.

use std::collections::HashSet;

use super::snapshot::{End, Snapshot};
use crate::sys::process::Pid;

/// Who is at the other end of a process's stdin and stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// Nobody, of either.
    Gone,
    /// Somebody else, of both.
    There,
    /// They are neither pipes nor sockets, or of one alone.
    Unknown,
}

/// Who talks to `pid`: somebody who is not below it.
pub(super) fn of(pid: Pid, snapshot: &Snapshot) -> Client {
    let Some(stdio) = snapshot.stdio.get(&pid) else { return Client::Unknown };
    let own: HashSet<Pid> = snapshot.tree(pid).iter().map(|it| it.stat.pid).collect();
    match stdio.map(|end| at(end, &own, snapshot)) {
        // From outside of this pid namespace nobody is seen.
        [Client::Gone, Client::Gone] if snapshot.parents.get(&pid) != Some(&0) => Client::Gone,
        [Client::There, Client::There] => Client::There,
        _ => Client::Unknown,
    }
}

fn at(end: End, own: &HashSet<Pid>, snapshot: &Snapshot) -> Client {
    let other = match (snapshot.other_end(end), end) {
        (Some(other), _) => other,
        (None, End::Socket(inode)) if snapshot.peers.contains_key(&inode) => return Client::Gone,
        // One of the network, or the kernel does not tell: as if there were somebody.
        (None, _) => return Client::There,
    };
    let holders = snapshot.holders.get(&other).map(Vec::as_slice).unwrap_or_default();
    match (holders.iter().any(|pid| !own.contains(pid)), end) {
        (true, _) => Client::There,
        (false, End::Pipe(_)) => Client::Gone,
        // The kernel says that the other end is open: somebody has it who hides that.
        (false, End::Socket(_)) if holders.is_empty() => Client::There,
        (false, End::Socket(_)) => Client::Gone,
    }
}
