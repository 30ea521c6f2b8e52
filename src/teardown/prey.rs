//! The process tree below this process, as something to end.

use std::collections::HashSet;

use crate::registry::record::Survivor;
use crate::sys::process::{self, Ended, Pid, Whom};
use crate::sys::signal::Signal;
use crate::sys::tree::{self, Descend, Member};

/// All that descends from this process, which must be a subreaper. The leader is told apart: it is
/// reaped last, so that its process group's number cannot be used again while we signal it.
#[derive(Debug)]
pub struct ProcessTree {
    leader: Option<Pid>,
    leader_ended: Option<Ended>,
    /// Other runs' guards: they end their own trees.
    nested: HashSet<Pid>,
    asked: HashSet<(Pid, u64)>,
    killed: HashSet<(Pid, u64)>,
}

impl ProcessTree {
    /// The tree whose leader is `leader`, if one was started.
    pub fn new(leader: Option<Pid>) -> ProcessTree {
        ProcessTree {
            leader,
            leader_ended: None,
            nested: HashSet::new(),
            asked: HashSet::new(),
            killed: HashSet::new(),
        }
    }

    /// Names the guards of runs within this one. They get the polite signal, what is below them does
    /// not: they pass it on.
    pub fn set_nested(&mut self, guards: impl IntoIterator<Item = Pid>) {
        self.nested.extend(guards);
    }

    /// Reaps what has ended, except the leader, whose end is noted; returns whether anything had.
    pub fn reap(&mut self) -> bool {
        let mut any = false;
        while self.leader_ended.is_none() {
            let Some((pid, ended)) = process::peek_ended(Whom::Any) else { return any };
            any = true;
            if Some(pid) == self.leader {
                self.leader_ended = Some(ended);
            } else {
                process::reap(pid);
            }
        }
        // A dead leader would be found first for ever, so from here on each child is asked for by name.
        any
    }

    /// Reaps ended children one by one, where the leader's zombie hides them from [`Self::reap`].
    fn reap_behind_leader(&self) {
        if self.leader_ended.is_some() {
            for child in tree::own_children() {
                if Some(child) != self.leader {
                    process::reap(child);
                }
            }
        }
    }

    /// Returns how the leader ended, if it has.
    pub fn leader_ended(&self) -> Option<Ended> {
        self.leader_ended
    }

    /// Returns whether nothing of the tree lives: the kernel's answer, not a scan's.
    pub fn is_empty(&self) -> bool {
        !process::any_child_lives()
    }

    /// Reaps all that is left of an empty tree. Nothing of it lives, so nothing is signalled any more and
    /// the order is free.
    pub fn bury(&mut self) {
        if let Some(leader) = self.leader.take() {
            self.leader_ended = process::reap(leader).or(self.leader_ended);
        }
        while let Some((pid, _)) = process::peek_ended(Whom::Any) {
            if process::reap(pid).is_none() {
                return;
            }
        }
    }

    /// Asks all that has not been asked yet to end: `to_group` goes to the leader's process group
    /// at once, `to_rest` to every other process, SIGCONT to both.
    pub fn ask(&mut self, to_group: Signal, to_rest: Signal) {
        self.reap_behind_leader();
        let group = self.pinned_group();
        if let Some(group) = group.filter(|_| self.asked.is_empty()) {
            // Members are noted first: who joins the group later is asked by the walk.
            self.note_group(group);
            // ESRCH only: the group has just emptied itself.
            let _ = process::signal_group_of_own_child(group, to_group);
            let _ = process::signal_group_of_own_child(group, Signal::CONT);
        }
        // A process whose parent dies during the walk is missed by it and found by the next.
        const WALKS: u32 = 4;
        for _ in 0..WALKS {
            if !self.ask_new(to_rest) {
                return;
            }
        }
    }

    /// Forgets who was asked outside of `to`: after the leader's end the others are asked by another signal.
    pub fn ask_again(&mut self, signal: Signal) {
        self.asked.clear();
        self.ask_new(signal);
    }

    fn note_group(&mut self, group: Pid) {
        let asked = &mut self.asked;
        walk_runs(&self.nested, &mut |member| {
            if member.stat.group == group {
                asked.insert((member.stat.pid, member.stat.start_time));
            }
        });
    }

    fn ask_new(&mut self, signal: Signal) -> bool {
        let mut any = false;
        let asked = &mut self.asked;
        walk_runs(&self.nested, &mut |member| {
            if asked.insert((member.stat.pid, member.stat.start_time)) {
                any = true;
                // EPERM for a process that became another user's: it is reported if it stays.
                let _ = member.send(signal);
                let _ = member.send(Signal::CONT);
            }
        });
        any
    }

    /// Sends SIGKILL to all that is there now.
    pub fn kill(&mut self) {
        self.reap_behind_leader();
        let killed = &mut self.killed;
        tree::walk(&mut |member| {
            killed.insert((member.stat.pid, member.stat.start_time));
            let _ = member.send(Signal::KILL);
            Descend::Yes
        });
        if let Some(group) = self.pinned_group() {
            let _ = process::signal_group_of_own_child(group, Signal::KILL);
        }
    }

    /// Sends `signal` to the leader's process group, while its number is certain.
    pub fn signal_group(&self, signal: Signal) {
        if let Some(group) = self.pinned_group() {
            let _ = process::signal_group_of_own_child(group, signal);
        }
    }

    /// Sends `signal` to the leader alone.
    pub fn signal_leader(&self, signal: Signal) {
        if let Some(leader) = self.leader {
            let _ = process::signal_own_child(leader, signal);
        }
    }

    fn pinned_group(&self) -> Option<Pid> {
        self.leader
    }

    /// Returns how many processes SIGKILL was sent to.
    pub fn killed(&self) -> u32 {
        self.killed.len() as u32
    }

    /// Returns what lives.
    pub fn survivors(&self) -> Vec<Survivor> {
        let alive = tree::list().into_iter();
        alive
            .map(|stat| Survivor { pid: stat.pid, command: stat.comm, state: char::from(stat.state) })
            .collect()
    }
}

/// Walks the tree down to the guards of nested runs.
fn walk_runs(nested: &HashSet<Pid>, visit: &mut dyn FnMut(&Member)) {
    tree::walk(&mut |member| {
        visit(member);
        if nested.contains(&member.stat.pid) { Descend::No } else { Descend::Yes }
    });
}
