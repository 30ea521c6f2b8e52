//! All that descends from this process, each with a handle that proves it.
//!
//! The proof goes from parent to child. Our own unreaped children are ours by definition. Any
//! other process is taken if its parent was proved, its entry names that parent, and both were
//! still alive, pinned by pidfd, after the entry was read: then the entry is that process's
//! and not that of a stranger who was given the number.

use std::fs;
use std::io;

use super::process::{self, Pid, Pidfd, Stat};
use super::signal::Signal;

/// A proved descendant.
#[derive(Debug)]
pub struct Member {
    /// What its entry in /proc said.
    pub stat: Stat,
    handle: Handle,
}

#[derive(Debug)]
enum Handle {
    OwnChild(Pid),
    Pinned(Pidfd),
}

impl Member {
    /// Sends `signal` to this process and no other.
    pub fn send(&self, signal: Signal) -> io::Result<()> {
        match &self.handle {
            Handle::OwnChild(pid) => process::signal_own_child(*pid, signal),
            Handle::Pinned(pidfd) => pidfd.send(signal),
        }
    }

    fn lives(&self) -> bool {
        match &self.handle {
            // Unreaped, so the number is its own whether it lives or not.
            Handle::OwnChild(_) => true,
            Handle::Pinned(pidfd) => pidfd.is_alive(),
        }
    }
}

/// What to do below a member that was visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descend {
    /// Visit its descendants too.
    Yes,
    /// Leave its descendants to it.
    No,
}

/// Visits every living descendant of this process, parents before children. Must not be called
/// while another thread reaps. A process that loses its parent during the walk may be missed: it
/// is our child then, and the next walk finds it.
pub fn walk(visit: &mut dyn FnMut(&Member) -> Descend) {
    let parents = ParentTable::read();
    let own = process::own_pid();
    // The path from the top to where we are, each with the children still to be visited. Only the
    // path's pidfds are held, so a wide tree costs few descriptors.
    let mut path: Vec<(Option<Member>, Vec<Pid>)> = vec![(None, parents.children(own))];
    while let Some((parent, waiting)) = path.last_mut() {
        let Some(pid) = waiting.pop() else {
            path.pop();
            continue;
        };
        let Some(member) = prove(pid, own, parent.as_ref()) else { continue };
        if visit(&member) == Descend::Yes {
            let children = parents.children(pid);
            if !children.is_empty() {
                path.push((Some(member), children));
            }
        }
    }
}

/// Returns every living descendant's entry. For reports, not for signals.
pub fn list() -> Vec<Stat> {
    let mut found = Vec::new();
    walk(&mut |member| {
        found.push(member.stat.clone());
        Descend::Yes
    });
    found
}

/// Returns our own children, zombies included.
pub fn own_children() -> Vec<Pid> {
    ParentTable::read().children(process::own_pid())
}

/// Returns the children of `pid` as they are now. For a look, not for signals; none where the kernel does not tell
/// (CONFIG_PROC_CHILDREN).
pub fn children_of(pid: Pid) -> Vec<Pid> {
    children_by_kernel(pid)
}

fn prove(pid: Pid, own: Pid, parent: Option<&Member>) -> Option<Member> {
    let Some(parent) = parent else {
        let stat = Stat::read(pid)?;
        let ours = stat.parent == own && !stat.is_dead();
        return ours.then_some(Member { stat, handle: Handle::OwnChild(pid) });
    };
    let pidfd = Pidfd::open(pid).ok()?;
    let stat = Stat::read(pid)?;
    if stat.parent != parent.stat.pid || stat.is_dead() {
        return None;
    }
    let member = Member { stat, handle: Handle::Pinned(pidfd) };
    (parent.lives() && member.lives()).then_some(member)
}

/// Where the kernel tells who is whose child.
enum ParentTable {
    /// `/proc/PID/task/TID/children` (Linux 4.2 without checkpointing support; needs
    /// CONFIG_PROC_CHILDREN): asked for each process.
    Kernel,
    /// A scan of all of /proc, where that file is missing.
    Scanned(Vec<(Pid, Pid)>),
}

impl ParentTable {
    fn read() -> ParentTable {
        let own = process::own_pid();
        if fs::exists(format!("/proc/{own}/task/{own}/children")).unwrap_or(false) {
            return ParentTable::Kernel;
        }
        let pairs = all_processes().filter_map(|pid| Some((Stat::read(pid)?.parent, pid)));
        ParentTable::Scanned(pairs.collect())
    }

    fn children(&self, parent: Pid) -> Vec<Pid> {
        match self {
            ParentTable::Kernel => children_by_kernel(parent),
            ParentTable::Scanned(pairs) => {
                pairs.iter().filter(|(of, _)| *of == parent).map(|(_, pid)| *pid).collect()
            }
        }
    }
}

/// A child belongs to the thread that forked it, so every thread is asked.
fn children_by_kernel(parent: Pid) -> Vec<Pid> {
    let mut found = Vec::new();
    let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { return found };
    for thread in threads.flatten() {
        let Ok(text) = fs::read_to_string(thread.path().join("children")) else { continue };
        found.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<Pid>().ok()));
    }
    found
}

/// Returns the pid of every process that can be seen.
pub fn all_processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
