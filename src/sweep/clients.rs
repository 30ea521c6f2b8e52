//! Whether anybody is left at the other end of a process's stdin and stdout.

use std::collections::{HashMap, HashSet};

use super::snapshot::{Process, Snapshot};
use crate::sys::descriptors::{self, Kind as Descriptor};
use crate::sys::process::Pid;
use crate::sys::tree;

/// Who is at the other end of the stdin and stdout of processes that have pipes or sockets there.
pub(super) struct ClientsGone {
    gone: HashSet<Pid>,
    there: HashSet<Pid>,
}

impl ClientsGone {
    /// Looks at `asked`: each costs little, and one of them that has pipes a look at what everybody has open.
    pub(super) fn look(snapshot: &Snapshot, asked: &HashSet<Pid>) -> ClientsGone {
        let both =
            |pid: Pid, kind| Some([descriptors::behind(pid, 0, kind)?, descriptors::behind(pid, 1, kind)?]);
        let pids = || asked.iter().copied();
        let candidates: HashMap<Pid, [u32; 2]> =
            pids().filter_map(|pid| Some((pid, both(pid, Descriptor::Pipe)?))).collect();
        let wanted: HashSet<u32> = candidates.values().flatten().copied().collect();
        let mut holders: HashMap<u32, Vec<Pid>> = HashMap::new();
        let others = (!wanted.is_empty()).then(tree::all_processes);
        for pid in others.into_iter().flatten() {
            for inode in descriptors::held_by(pid, Descriptor::Pipe, &wanted) {
                holders.entry(inode).or_default().push(pid);
            }
        }
        // Of sockets it is not known who has the other end.
        let mut there: HashSet<Pid> = pids().filter(|pid| both(*pid, Descriptor::Socket).is_some()).collect();
        let mut gone = HashSet::new();
        for (pid, pipes) in &candidates {
            let own: HashSet<Pid> = snapshot.tree(*pid).iter().map(|it| it.stat.pid).collect();
            let other =
                |pipe: &u32| holders.get(pipe).into_iter().flatten().any(|holder| !own.contains(holder));
            match [other(&pipes[0]), other(&pipes[1])] {
                // From outside of this pid namespace nobody is seen.
                [false, false] if snapshot.parents.get(pid) != Some(&0) => {
                    gone.insert(*pid);
                }
                [true, true] => {
                    there.insert(*pid);
                }
                _ => {}
            }
        }
        ClientsGone { gone, there }
    }

    pub(super) fn is_gone_for(&self, process: &Process) -> bool {
        self.gone.contains(&process.stat.pid)
    }

    pub(super) fn is_there_for(&self, process: &Process) -> bool {
        self.there.contains(&process.stat.pid)
    }
}
