//! The process tree below this process, as something to end.

use std::collections::HashSet;

use crate::registry::record::Survivor;
use crate::sys::cgroup::{self, Leaf};
use crate::sys::children::{self, Change, Ended, Whom};
use crate::sys::namespace::Lifeline;
use crate::sys::process::{self, Pid, ProcessRef, Stat};
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
    /// When the leader's process group was asked, in ticks since boot.
    group_asked: Option<u64>,
    killed: HashSet<(Pid, u64)>,
    bounds: Bounds,
}

/// What else holds the tree together.
#[derive(Debug, Default)]
pub struct Bounds {
    /// The run's cgroup.
    pub leaf: Option<Leaf>,
    /// Whether the supervisor freezes it now and then, to hold a limit.
    pub freezes: bool,
    /// The way to the init of the run's pid namespace.
    pub lifeline: Option<Lifeline>,
    /// That init.
    pub init: Option<Pid>,
}

impl ProcessTree {
    /// The tree whose leader is `leader`, if one was started.
    pub fn new(leader: Option<Pid>, bounds: Bounds) -> ProcessTree {
        ProcessTree {
            leader,
            leader_ended: None,
            nested: HashSet::new(),
            asked: HashSet::new(),
            group_asked: None,
            killed: HashSet::new(),
            bounds,
        }
    }

    /// Returns the run's cgroup.
    pub fn leaf(&self) -> Option<&Leaf> {
        self.bounds.leaf.as_ref()
    }

    /// Lets a frozen tree go on, so that it can heed a signal.
    fn thaw(&self) {
        if let Some(leaf) = self.bounds.leaf.as_ref().filter(|_| self.bounds.freezes) {
            let _ = leaf.freeze(false);
        }
    }

    /// Names the guards of runs within this one. They get the polite signal, what is below them does
    /// not: they pass it on.
    pub fn set_nested(&mut self, guards: impl IntoIterator<Item = Pid>) {
        self.nested.extend(guards);
    }

    /// Reaps what has ended, except the leader, whose end is noted; returns who had, and how.
    pub fn reap(&mut self) -> Vec<(Pid, Ended)> {
        let mut found = Vec::new();
        while self.leader_ended.is_none() || self.leader.is_none() {
            let Some((pid, ended)) = children::peek_ended(Whom::Any) else { return found };
            found.push((pid, ended));
            if Some(pid) == self.leader {
                self.leader_ended = Some(ended);
                self.let_init_go();
            } else {
                children::reap(pid);
            }
        }
        // A dead leader would be found first for ever, so from here on each child is asked for by name.
        found
    }

    /// Tells the init of the namespace that it may end when it has no child left. The kernel does not let it
    /// end before the leader is reaped (`zap_pid_ns_processes`), so that happens now.
    fn let_init_go(&mut self) {
        if let Some(lifeline) = &self.bounds.lifeline {
            lifeline.leader_ended();
            self.leader.take().map(children::reap);
        }
    }

    /// Reaps ended children one by one, where the leader's zombie hides them from [`Self::reap`].
    fn reap_behind_leader(&self) {
        if self.leader_ended.is_some() && self.leader.is_some() {
            for child in tree::own_children() {
                if Some(child) != self.leader {
                    children::reap(child);
                }
            }
        }
    }

    /// Returns how the leader ended, if it has.
    pub fn leader_ended(&self) -> Option<Ended> {
        self.leader_ended
    }

    /// Returns whether there is no leader that lives.
    pub fn is_leaderless(&self) -> bool {
        self.leader.is_none() || self.leader_ended.is_some()
    }

    /// Returns whether the leader has been stopped since the last question.
    pub fn leader_was_stopped(&self) -> bool {
        let leader = self.leader.filter(|_| self.leader_ended.is_none());
        leader.is_some_and(|leader| matches!(children::job_change(leader), Some(Change::Stopped(_))))
    }

    /// Returns whether nothing of the tree lives: the kernel's answer, not a scan's.
    pub fn is_empty(&self) -> bool {
        !children::any_child_lives() && !self.bounds.leaf.as_ref().is_some_and(Leaf::is_populated)
    }

    /// Reaps all that is left of an empty tree. Nothing of it lives, so nothing is signalled any more and
    /// the order is free.
    pub fn bury(&mut self) {
        self.reap_all();
        if let Some(leaf) = &self.bounds.leaf {
            // What is empty can be removed, but for a cgroup that somebody else is just making in it.
            let _ = leaf.remove();
        }
    }

    /// Reaps all that is left of an empty tree, so that another one can grow in its place.
    pub fn clear(&mut self) {
        self.reap_all();
        self.thaw();
        (self.leader, self.leader_ended, self.group_asked) = (None, None, None);
        self.asked.clear();
        self.killed.clear();
        self.nested.clear();
    }

    /// Begins anew with `leader`, after [`Self::clear`].
    pub fn grow(&mut self, leader: Pid) {
        self.leader = Some(leader);
    }

    fn reap_all(&mut self) {
        if let Some(leader) = self.leader.take() {
            self.leader_ended = children::reap(leader).or(self.leader_ended);
        }
        while let Some((pid, _)) = children::peek_ended(Whom::Any) {
            if children::reap(pid).is_none() {
                break;
            }
        }
    }

    /// Asks to end: first the leader's process group, by `to_group` and in one call that no fork escapes; at the
    /// next call, or if there is no group, all that has not been asked, by `to_rest`. Most trees end at the
    /// first, and nobody needs to look for the others. SIGCONT goes to all.
    pub fn ask(&mut self, to_group: Signal, to_rest: Signal) {
        self.thaw();
        self.reap_behind_leader();
        if let Some(group) = self.leader.filter(|_| self.group_asked.is_none()) {
            self.group_asked = Some(process::now_in_ticks());
            // ESRCH only: the group has just emptied itself.
            let _ = process::signal_group_of_own_child(group, to_group);
            let _ = process::signal_group_of_own_child(group, Signal::CONT);
            return;
        }
        // A process whose parent dies during the walk is missed by it and found by the next.
        const WALKS: u32 = 4;
        for _ in 0..WALKS {
            if !self.ask_new(to_rest) {
                break;
            }
        }
        self.ask_strangers(to_rest);
    }

    /// Asks those in the run's cgroup that do not descend from us: somebody has put them there.
    fn ask_strangers(&mut self, signal: Signal) {
        let Some(leaf) = &self.bounds.leaf else { return };
        let asked: HashSet<Pid> = self.asked.iter().map(|(pid, _)| *pid).collect();
        for pid in leaf.processes().into_iter().filter(|pid| !asked.contains(pid)) {
            // Pinned, then seen to be in there, then signalled.
            let Some((found, pidfd)) = ProcessRef::observe(pid) else { continue };
            if cgroup::is_within(pid, leaf.path()) && pidfd.is_alive() && !self.is_below_nested(pid) {
                self.asked.insert((pid, found.start_time));
                let _ = pidfd.send(signal);
                let _ = pidfd.send(Signal::CONT);
            }
        }
    }

    fn is_below_nested(&self, pid: Pid) -> bool {
        !self.nested.is_empty() && process::ancestors_of(pid).iter().any(|above| self.nested.contains(above))
    }

    /// Forgets who was asked outside of `to`: after the leader's end the others are asked by another signal.
    pub fn ask_again(&mut self, signal: Signal) {
        self.asked.clear();
        // Of the group too.
        self.group_asked = Some(0);
        self.ask_new(signal);
    }

    fn ask_new(&mut self, signal: Signal) -> bool {
        let mut any = false;
        let (group, since) = (self.leader, self.group_asked);
        let asked = &mut self.asked;
        walk_runs(&self.nested, &mut |member| {
            let stat = &member.stat;
            // Who was in the group when it was asked has been asked with it; who came later has not.
            let with_group = Some(stat.group) == group && since.is_some_and(|since| stat.start_time <= since);
            if asked.insert((stat.pid, stat.start_time)) && !with_group {
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
        if let Some(leaf) = &self.bounds.leaf {
            self.killed.extend(
                leaf.processes().into_iter().filter_map(|pid| Some((pid, Stat::read(pid)?.start_time))),
            );
            let _ = leaf.kill();
        }
        let (killed, init) = (&mut self.killed, self.bounds.init);
        tree::walk(&mut |member| {
            if Some(member.stat.pid) != init {
                killed.insert((member.stat.pid, member.stat.start_time));
            }
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
