//! The part of the machine that is for commands that serve: ready, healthy, started again.

use std::time::Duration;

use super::{Action, IdleWatch, Machine, Phase, Policy, Then, Verdict};
use crate::exit::{Ending, Reason};
use crate::service::Restart;
use crate::sys::children::Ended;
use crate::sys::clock::BootTime;

/// A failure after this time of health is the first one again.
const HEALTHY_FOR: Duration = Duration::from_secs(60);
/// Before the first restart in a row; before each other one twice the time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How a command that runs serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nobody asked.
    Plain,
    /// Not yet.
    Starting { until: Option<BootTime> },
    /// Since then.
    Ready { since: BootTime },
    /// Not any more.
    Unhealthy,
}

impl Standing {
    pub(super) fn begin(policy: &Policy, now: BootTime) -> Standing {
        match policy.gets_ready {
            true => Standing::Starting { until: policy.ready_timeout.map(|span| now + span) },
            false => Standing::Plain,
        }
    }
}

impl Machine {
    pub(super) fn tree_empty(&mut self, now: BootTime) -> Vec<Action> {
        let Phase::Ending { reason, then, .. } = self.phase else { return Vec::new() };
        match then {
            Then::Over => {
                self.phase = Phase::Over(self.judge(reason, true));
                return Vec::new();
            }
            Then::Retry => self.wait(reason, now),
            Then::Again => self.phase = Phase::Waiting { until: now, reason },
        }
        vec![Action::EnterPause]
    }

    fn wait(&mut self, reason: Reason, now: BootTime) {
        let pause = FIRST_PAUSE.saturating_mul(2u32.saturating_pow(self.in_a_row)).min(LONGEST_PAUSE);
        self.in_a_row += 1;
        self.phase = Phase::Waiting { until: now + pause, reason };
    }

    /// The command has ended by itself, or must for a fault of its own: perhaps it is started again.
    pub(super) fn fail(&mut self, reason: Reason, grace: Option<Duration>, now: BootTime) -> Vec<Action> {
        self.forget_old_failures(now);
        let failed = reason != Reason::Exit || self.leader != Some(Ended::Exited(0));
        let wanted = match self.policy.restart {
            Restart::Never => false,
            Restart::OnFailure => failed,
            Restart::Always => true,
        };
        let again = wanted && self.was_ready && self.may_try();
        let then = if again { Then::Retry } else { Then::Over };
        self.tear_down(reason, self.policy.signal, grace, then, now)
    }

    fn forget_old_failures(&mut self, now: BootTime) {
        if matches!(self.standing, Standing::Ready { since } if now.saturating_since(since) >= HEALTHY_FOR) {
            self.in_a_row = 0;
        }
    }

    fn may_try(&self) -> bool {
        self.policy.max_restarts.is_none_or(|most| self.in_a_row < most)
    }

    pub(super) fn ready(&mut self, now: BootTime) -> Vec<Action> {
        if !self.is_running() || !matches!(self.standing, Standing::Starting { .. }) {
            return Vec::new();
        }
        self.was_ready = true;
        self.standing = Standing::Ready { since: now };
        vec![Action::EnterState]
    }

    pub(super) fn health(&mut self, ok: bool, now: BootTime) -> Vec<Action> {
        self.forget_old_failures(now);
        match (self.standing, ok) {
            _ if !self.is_running() => Vec::new(),
            (Standing::Ready { .. }, false) if self.policy.restart != Restart::Never && self.may_try() => {
                self.fail(Reason::Unhealthy, None, now)
            }
            (Standing::Ready { .. }, false) => {
                self.standing = Standing::Unhealthy;
                vec![Action::EnterState]
            }
            (Standing::Unhealthy, true) => {
                self.standing = Standing::Ready { since: now };
                vec![Action::EnterState]
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn restart(&mut self, grace: Option<Duration>, now: BootTime) -> Vec<Action> {
        match &mut self.phase {
            Phase::Running => {
                let grace = grace.unwrap_or(self.policy.grace);
                self.tear_down(Reason::Stop, self.policy.signal, Some(grace), Then::Again, now)
            }
            Phase::Ending { then, .. } if *then == Then::Retry => {
                *then = Then::Again;
                Vec::new()
            }
            Phase::Waiting { until, .. } => {
                *until = now;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn started(&mut self, now: BootTime) -> Vec<Action> {
        self.leader = None;
        self.by_itself = false;
        self.pressed = None;
        self.phase = Phase::Running;
        self.standing = Standing::begin(&self.policy, now);
        if let Some(idle) = &mut self.idle {
            *idle = IdleWatch::begin(idle.limit, now);
        }
        vec![Action::EnterState]
    }

    pub(super) fn start_failed(&mut self, code: u8, now: BootTime) -> Vec<Action> {
        if self.policy.restart == Restart::Never || !self.may_try() {
            let verdict = self.judge(Reason::LaunchFailed, true);
            self.phase = Phase::Over(Verdict { ending: Ending::Code(code), ..verdict });
            return Vec::new();
        }
        self.wait(Reason::LaunchFailed, now);
        vec![Action::EnterPause]
    }

    /// What would have been started again is not.
    pub(super) fn give_up_restart(&mut self, why: Reason, now: BootTime) -> Vec<Action> {
        match &mut self.phase {
            Phase::Ending { reason, then, .. } if *then != Then::Over => {
                (*reason, *then) = (why, Then::Over);
                vec![Action::EnterState]
            }
            // Nothing of it should live; that is seen to, as at any end.
            Phase::Waiting { .. } => self.begin_teardown(why, self.policy.signal, None, Then::Over, now),
            _ => Vec::new(),
        }
    }
}
