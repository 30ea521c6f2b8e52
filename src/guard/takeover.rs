//! The supervisor is dead: the guard ends the run.
//!
//! The tree has fallen to us, since we are the next subreaper. The kernel has sent the leader the run's
//! own signal (PR_SET_PDEATHSIG); all others get it from here, with the same grace.

use std::os::fd::AsFd;
use std::time::Duration;

use super::{Guard, Keeper, Seen, say};
use crate::ending::{Outcome, conclude};
use crate::exit::{self, Ending, Facts, Reason};
use crate::registry::record::{End, State};
use crate::registry::seen;
use crate::sys::children;
use crate::sys::clock::{BootTime, Timer};
use crate::sys::signal::{Signal, SignalQueue};
use crate::sys::waits;
use crate::teardown::prey::ProcessTree;
use crate::teardown::progress::{Due, Progress, look_after};

impl Guard {
    /// Ends the run in the supervisor's place.
    pub(super) fn take_over(mut self, queue: &SignalQueue, timer: &Timer, seen: &Seen) -> Ending {
        self.run.reload();
        if let Some(end) = self.run.record.end.clone().filter(|_| self.run.record.state == State::Finished) {
            // It died after its work was done; only the last line of it may be missing.
            let _ = self.run.finish();
            self.give_terminal_back(true);
            return ending_of(&end);
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.take_back();
        }
        // A leader that the supervisor has reaped is nobody's any more.
        let leader = seen.leader.or(self.run.record.leader.as_ref().map(|leader| leader.pid));
        let leader = leader.filter(|leader| children::is_own_child(*leader));
        let bounds = std::mem::take(&mut self.bounds);
        if let Some(lifeline) = bounds.lifeline.as_ref().filter(|_| leader.is_none()) {
            // The supervisor has reaped it and died before it could say so.
            lifeline.leader_ended();
        }
        let mut tree = ProcessTree::new(leader, bounds);
        let verified = self.end_tree(&mut tree, queue, timer);
        let survivors = if verified { Vec::new() } else { tree.survivors() };
        if verified {
            tree.bury();
        }
        let reason = Reason::SupervisorLost;
        let leader = tree.leader_ended();
        let ending = exit::ending(&Facts { reason, leader, verified, preserve_status: false });
        let outcome = Outcome {
            reason,
            leader,
            ending,
            verified,
            killed: tree.killed(),
            exceeded: None,
            never_listened: None,
            survivors,
        };
        let message = conclude(&mut self.run, &self.spec, &outcome, &mut self.events);
        self.give_terminal_back(true);
        message.iter().for_each(|message| say(message));
        ending
    }

    /// Returns whether nothing is left.
    fn end_tree(&mut self, tree: &mut ProcessTree, queue: &SignalQueue, timer: &Timer) -> bool {
        let signal = self.spec.signal;
        let mut progress = Progress::begin(self.spec.grace, BootTime::now());
        tree.set_nested(seen::guards_within(self.run.root(), self.run.id()));
        let pause = look_after(self.spec.grace);
        let (mut ask_at, mut first) = (Some(BootTime::now()), true);
        // What ended before we took over has been told already, and is not told again.
        tree.reap();
        while !tree.is_empty() {
            if ask_at.is_some_and(|at| at <= BootTime::now()) {
                // The leader may have been told by the kernel already (PR_SET_PDEATHSIG), or not: a change of user
                // clears that. Twice is better than never.
                tree.ask(signal, signal);
                ask_at = first.then(|| BootTime::now() + pause);
                first = false;
            }
            match progress.due(BootTime::now()) {
                Due::Nothing => {}
                Due::Kill { .. } => {
                    ask_at = None;
                    tree.kill();
                }
                Due::GiveUp => return false,
            }
            // A timer that cannot be set costs at most the poll's own ceiling.
            let wake_at = ask_at.map_or(progress.wake_at(), |at| at.min(progress.wake_at()));
            let _ = timer.set(Some(wake_at));
            let _ = waits::any(&[(queue.as_fd(), true), (timer.as_fd(), true)], Some(Duration::from_secs(1)));
            timer.clear();
            if self.heed(queue, tree, &mut progress) && !progress.is_killing() {
                // There may be newcomers.
                ask_at = ask_at.or(Some(BootTime::now() + pause));
            }
        }
        true
    }

    /// Returns whether something has ended in the polite phase.
    fn heed(&mut self, queue: &SignalQueue, tree: &mut ProcessTree, progress: &mut Progress) -> bool {
        let now = BootTime::now();
        let mut ended = false;
        while let Some(signal) = queue.next() {
            match signal {
                Signal::INT | Signal::QUIT => progress.kill_now(now),
                Signal::CHLD => {
                    tree.reap();
                    if tree.leader_was_stopped() && self.keeper.as_mut().is_some_and(Keeper::lend) {
                        tree.signal_group(Signal::CONT);
                    }
                    progress.hurry(now);
                    ended = true;
                }
                _ => {}
            }
        }
        ended
    }
}

fn ending_of(end: &End) -> Ending {
    match end.signal {
        Some(signal) if signal.is_mirrored() && Ending::DieOf(signal).code() == end.code => {
            Ending::DieOf(signal)
        }
        _ => Ending::Code(end.code),
    }
}
