//! What a supervisor decides. Pure: events and the clock go in, actions come out.

mod serving;

use std::time::Duration;

use serving::Standing;

use crate::exit::{self, Ending, Facts, Reason};
use crate::lease::Lease;
use crate::registry::record::State;
use crate::run::RunSpec;
use crate::service::Restart;
use crate::sys::children::Ended;
use crate::sys::clock::BootTime;
use crate::sys::signal::Signal;
use crate::teardown::progress::{Due, Progress, look_after};

/// A signal that comes again within this time is the same press, told twice: `timeout -s INT` signals the
/// process and then its group, npm repeats to its child what the terminal has sent to both.
const SAME_PRESS: Duration = Duration::from_millis(200);

/// Something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The leader has ended.
    LeaderEnded(Ended),
    /// Something else of the tree has ended.
    SomethingEnded,
    /// Nothing of the tree lives.
    TreeEmpty,
    /// The instant of [`Machine::wake_at`] has come.
    Tick,
    /// A signal to guard or supervisor asks for the end.
    Signalled(Signal),
    /// The guard is dead, or we cannot go on ourselves.
    GuardLost,
    /// The owner has gone.
    OwnerGone,
    /// A limit of the tree was exceeded: this one.
    Exceeded(Reason),
    /// Somebody asked for the end.
    Stop {
        /// In place of the run's own grace.
        grace: Option<Duration>,
        /// What the record will say.
        reason: Reason,
    },
    /// Somebody asked for a new lease; `None` for none.
    Renew(Option<Duration>),
    /// The tree has read or written, or somebody asked for something.
    Activity,
    /// A message was sent to it, or its reply is complete.
    Busy(bool),
    /// All that makes it ready is true.
    Ready,
    /// What makes it healthy was found true, or false.
    Health(bool),
    /// Somebody asked for another start.
    Restart {
        /// In place of the run's own.
        grace: Option<Duration>,
    },
    /// The command was started again.
    Started,
    /// It could not be, and this is the code for that.
    StartFailed(u8),
}

/// Something is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Enter that the teardown has begun, and tell the guard.
    EnterTeardown {
        /// How long the polite phase may take.
        grace: Duration,
    },
    /// Ask the tree to end: this signal for the leader's group, that one for the rest.
    Ask {
        /// For the leader's process group.
        group: Signal,
        /// For every other process.
        rest: Signal,
    },
    /// Ask what is left again, by this signal.
    AskAgain(Signal),
    /// Ask whoever has come since.
    AskNew {
        /// For every process that has not been asked.
        rest: Signal,
    },
    /// Send SIGKILL to what is there; `first` if the grace has just ended.
    Kill {
        /// The grace has just ended.
        first: bool,
    },
    /// Enter the new deadline, and tell the guard.
    EnterDeadline,
    /// Look if the tree has read or written.
    Sample,
    /// Enter the state, and tell who listens.
    EnterState,
    /// Nothing is left, and the command is to be started again: tidy up, enter the state, tell the guard.
    EnterPause,
    /// Start the command again; [`Event::Started`] or [`Event::StartFailed`] follows.
    Start,
}

/// How the run ended, as far as decisions go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Why.
    pub reason: Reason,
    /// How the leader ended.
    pub leader: Option<Ended>,
    /// Whether nothing is left.
    pub verified: bool,
    /// How `agent-run` ends.
    pub ending: Ending,
}

/// The limits and manners of one run.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The polite signal.
    pub signal: Signal,
    /// Between it and SIGKILL.
    pub grace: Duration,
    /// How long nothing may happen.
    pub idle: Option<Duration>,
    /// Whether the leader's code is kept when time has run out.
    pub preserve_status: bool,
    /// Whether SIGXCPU means our own limit.
    pub cpu_time_limited: bool,
    /// Whether somebody waits until it is ready.
    pub gets_ready: bool,
    /// How long that may take.
    pub ready_timeout: Option<Duration>,
    /// Whether it is started again.
    pub restart: Restart,
    /// How often in a row.
    pub max_restarts: Option<u32>,
    /// Whether it answers messages.
    pub is_session: bool,
}

impl Policy {
    /// Takes from `spec` what decides.
    pub fn of(spec: &RunSpec) -> Policy {
        Policy {
            signal: spec.signal,
            grace: spec.grace,
            idle: spec.idle,
            preserve_status: spec.preserve_status,
            cpu_time_limited: spec.limits.cpu_time.is_some(),
            gets_ready: spec.gets_ready(),
            ready_timeout: spec.service.ready_timeout,
            restart: spec.service.restart,
            max_restarts: spec.service.max_restarts,
            is_session: spec.session.is_some(),
        }
    }
}

/// The state of one run.
#[derive(Debug)]
pub struct Machine {
    policy: Policy,
    lease: Option<Lease>,
    idle: Option<IdleWatch>,
    leader: Option<Ended>,
    /// The leader ended while nobody had asked for it.
    by_itself: bool,
    /// The key that ended the grace.
    pressed: Option<Signal>,
    standing: Standing,
    /// It got ready once: before that a failure is the end.
    was_ready: bool,
    /// Restarts since it was well for long.
    in_a_row: u32,
    phase: Phase,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Running,
    Ending {
        reason: Reason,
        first: Signal,
        progress: Progress,
        ask_at: Option<BootTime>,
        begun: BootTime,
        /// What comes when nothing is left.
        then: Then,
    },
    /// Nothing of it lives until it is started again.
    Waiting {
        until: BootTime,
        /// Why it was ended.
        reason: Reason,
    },
    Over(Verdict),
}

/// What follows a teardown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Nothing.
    Over,
    /// Another start: it has failed.
    Retry,
    /// Another start: somebody wants it.
    Again,
}

/// The idle time, looked at in samples.
#[derive(Clone, Copy, Debug)]
struct IdleWatch {
    limit: Duration,
    last: BootTime,
    next_look: BootTime,
    /// A message is being answered.
    busy: bool,
}

impl IdleWatch {
    /// Eight looks in the idle time, so that it is overdrawn by an eighth at most; none more often
    /// than twenty times a second nor more rarely than every five seconds.
    fn pause(limit: Duration) -> Duration {
        (limit / 8).clamp(Duration::from_millis(50), Duration::from_secs(5))
    }

    fn begin(limit: Duration, now: BootTime) -> IdleWatch {
        IdleWatch { limit, last: now, next_look: now + Self::pause(limit), busy: false }
    }
}

impl Machine {
    /// A run whose leader has just been started.
    pub fn new(policy: Policy, lease: Option<Lease>, now: BootTime) -> Machine {
        let idle = policy.idle.map(|limit| IdleWatch::begin(limit, now));
        Machine {
            policy,
            lease,
            idle,
            leader: None,
            by_itself: false,
            pressed: None,
            standing: Standing::begin(&policy, now),
            was_ready: false,
            in_a_row: 0,
            phase: Phase::Running,
        }
    }

    /// Returns when a [`Event::Tick`] is wanted.
    pub fn wake_at(&self) -> Option<BootTime> {
        match &self.phase {
            Phase::Running => {
                let lease = self.lease.map(|lease| lease.deadline());
                let look = self.idle.map(|idle| idle.next_look);
                let ready = match self.standing {
                    Standing::Starting { until } => until,
                    _ => None,
                };
                lease.into_iter().chain(look).chain(ready).min()
            }
            Phase::Waiting { until, .. } => {
                Some(self.lease.map_or(*until, |lease| lease.deadline().min(*until)))
            }
            Phase::Ending { progress, ask_at, .. } => {
                Some(ask_at.map_or(progress.wake_at(), |at| at.min(progress.wake_at())))
            }
            Phase::Over(_) => None,
        }
    }

    /// Returns the lease.
    pub fn lease(&self) -> Option<Lease> {
        self.lease
    }

    /// Returns how long nothing has happened, if the run has an idle time.
    pub fn idle_for(&self, now: BootTime) -> Option<Duration> {
        self.idle.map(|idle| now.saturating_since(idle.last))
    }

    /// Returns whether the command runs and nobody has asked for its end.
    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// Returns why the command was ended, and how long nothing lives, if it is to be started again.
    pub fn pause(&self, now: BootTime) -> Option<(Reason, Duration)> {
        match self.phase {
            Phase::Waiting { until, reason } => Some((reason, until.saturating_since(now))),
            _ => None,
        }
    }

    /// Returns whether a teardown goes on.
    pub fn is_tearing_down(&self) -> bool {
        matches!(self.phase, Phase::Ending { .. })
    }

    /// Returns whether the run goes on, perhaps after another start: a lease that has ended is not renewed.
    pub fn goes_on(&self) -> bool {
        match self.phase {
            Phase::Running | Phase::Waiting { .. } => true,
            Phase::Ending { then, .. } => then != Then::Over,
            Phase::Over(_) => false,
        }
    }

    /// Returns where the run stands, for its record.
    pub fn state(&self) -> State {
        match (self.phase, self.standing) {
            (Phase::Running, Standing::Plain) => State::Running,
            (Phase::Running, Standing::Starting { .. }) if self.was_ready => State::Restarting,
            (Phase::Running, Standing::Starting { .. }) => State::Starting,
            (Phase::Running, Standing::Ready { .. }) => State::Ready,
            (Phase::Running, Standing::Unhealthy) => State::Unhealthy,
            (Phase::Ending { then: Then::Over, .. }, _) => State::Stopping,
            (Phase::Ending { .. } | Phase::Waiting { .. }, _) => State::Restarting,
            (Phase::Over(_), _) => State::Finished,
        }
    }

    /// Returns how the run ended, when it has.
    pub fn verdict(&self) -> Option<Verdict> {
        match self.phase {
            Phase::Over(verdict) => Some(verdict),
            _ => None,
        }
    }

    /// Returns the signal that the leader died of before any teardown had begun.
    pub fn died_by_itself_of(&self) -> Option<Signal> {
        match self.leader {
            Some(Ended::Signaled(signal)) if self.by_itself => Some(signal),
            _ => None,
        }
    }

    /// Notes how the leader ended before an event that may end the run at once.
    pub fn note_leader(&mut self, ended: Ended) {
        self.leader = Some(ended);
    }

    /// Takes `event` in at `now`, and returns what is to be done, in this order.
    pub fn step(&mut self, event: Event, now: BootTime) -> Vec<Action> {
        match event {
            Event::LeaderEnded(ended) => self.leader_ended(ended, now),
            Event::SomethingEnded => self.something_ended(now),
            Event::TreeEmpty => self.tree_empty(now),
            Event::Tick => self.tick(now),
            Event::Signalled(signal) => self.signalled(signal, now),
            Event::GuardLost => self.end(Reason::SupervisorLost, self.policy.signal, None, now),
            Event::OwnerGone => self.end(Reason::OwnerGone, self.policy.signal, None, now),
            // As the kernel would: what is out of bounds gets no time to go further.
            Event::Exceeded(reason) => self.fail(reason, Some(Duration::ZERO), now),
            Event::Busy(busy) => {
                if let Some(idle) = &mut self.idle {
                    (idle.last, idle.busy) = (now, busy);
                }
                Vec::new()
            }
            Event::Ready => self.ready(now),
            Event::Health(ok) => self.health(ok, now),
            Event::Restart { grace } => self.restart(grace, now),
            Event::Started => self.started(now),
            Event::StartFailed(code) => self.start_failed(code, now),
            Event::Stop { grace, reason } => self.stop(grace, reason, now),
            Event::Renew(ttl) => self.renew(ttl, now),
            Event::Activity => {
                if let Some(idle) = &mut self.idle {
                    idle.last = now;
                }
                Vec::new()
            }
        }
    }

    fn leader_ended(&mut self, ended: Ended, now: BootTime) -> Vec<Action> {
        self.leader = Some(ended);
        self.by_itself = self.is_running();
        match self.phase {
            Phase::Running => {
                let reason = match ended {
                    Ended::Exited(_) => Reason::Exit,
                    Ended::Signaled(Signal::XCPU) if self.policy.cpu_time_limited => Reason::CpuTime,
                    Ended::Signaled(_) => Reason::Signal,
                };
                self.fail(reason, None, now)
            }
            // The rest was asked by the leader's signal, which it may be deaf to by custom: a shell's
            // background jobs ignore INT.
            Phase::Ending { first, progress, .. }
                if first != self.policy.signal && !progress.is_killing() =>
            {
                vec![Action::AskAgain(self.policy.signal)]
            }
            _ => self.something_ended(now),
        }
    }

    fn something_ended(&mut self, now: BootTime) -> Vec<Action> {
        match &mut self.phase {
            Phase::Ending { progress, .. } if progress.is_killing() => {
                progress.hurry(now);
                self.teardown_due(now)
            }
            Phase::Ending { ask_at, .. } => {
                ask_at.get_or_insert(now + look_after(self.policy.grace));
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn judge(&self, reason: Reason, verified: bool) -> Verdict {
        let facts =
            Facts { reason, leader: self.leader, verified, preserve_status: self.policy.preserve_status };
        let ending = match self.pressed {
            // Whatever the command made of it, the person wants the script to end too.
            Some(signal) if verified => Ending::DieOf(signal),
            _ => exit::ending(&facts),
        };
        Verdict { reason, leader: self.leader, verified, ending }
    }

    fn tick(&mut self, now: BootTime) -> Vec<Action> {
        if matches!(self.phase, Phase::Ending { .. }) {
            return self.teardown_due(now);
        }
        if self.lease.is_some_and(|lease| lease.is_over(now)) {
            return self.end(Reason::Ttl, self.policy.signal, None, now);
        }
        if let Phase::Waiting { until, .. } = self.phase {
            return if now >= until { vec![Action::Start] } else { Vec::new() };
        }
        if matches!(self.standing, Standing::Starting { until: Some(until) } if now >= until) {
            return self.fail(Reason::ReadyTimeout, None, now);
        }
        let Some(idle) = &mut self.idle else { return Vec::new() };
        if now < idle.next_look {
            return Vec::new();
        }
        idle.next_look = now + IdleWatch::pause(idle.limit);
        // What a session's program does without being asked keeps nobody waiting.
        if self.policy.is_session { Vec::new() } else { vec![Action::Sample] }
    }

    /// To be called after [`Action::Sample`] was carried out and its [`Event::Activity`], if any, taken in.
    pub fn judge_idleness(&mut self, now: BootTime) -> Vec<Action> {
        let is_over = |idle: IdleWatch| !idle.busy && now.saturating_since(idle.last) >= idle.limit;
        let over = self.idle.is_some_and(is_over);
        if over && self.is_running() {
            self.end(Reason::Idle, self.policy.signal, None, now)
        } else {
            Vec::new()
        }
    }

    fn teardown_due(&mut self, now: BootTime) -> Vec<Action> {
        let Phase::Ending { reason, progress, ask_at, .. } = &mut self.phase else { return Vec::new() };
        let reason = *reason;
        match progress.due(now) {
            Due::Nothing if ask_at.is_some_and(|at| now >= at) => {
                *ask_at = None;
                vec![Action::AskNew { rest: self.policy.signal }]
            }
            Due::Nothing => Vec::new(),
            Due::Kill { first } => {
                *ask_at = None;
                vec![Action::Kill { first }]
            }
            Due::GiveUp => {
                self.phase = Phase::Over(self.judge(reason, false));
                Vec::new()
            }
        }
    }

    fn signalled(&mut self, signal: Signal, now: BootTime) -> Vec<Action> {
        let mut actions = self.give_up_restart(Reason::Signal, now);
        actions.extend(self.heed(signal, now));
        actions
    }

    fn heed(&mut self, signal: Signal, now: BootTime) -> Vec<Action> {
        match &mut self.phase {
            Phase::Running => self.end(Reason::Signal, signal, None, now),
            // A second Ctrl-C, or the first during a teardown, is impatience. Others are repeated by
            // harnesses as a matter of course.
            Phase::Ending { progress, begun, .. } if [Signal::INT, Signal::QUIT].contains(&signal) => {
                if now.saturating_since(*begun) < SAME_PRESS {
                    return Vec::new();
                }
                progress.kill_now(now);
                self.pressed = Some(signal);
                self.teardown_due(now)
            }
            _ => Vec::new(),
        }
    }

    fn stop(&mut self, grace: Option<Duration>, reason: Reason, now: BootTime) -> Vec<Action> {
        let mut actions = self.give_up_restart(reason, now);
        if let Phase::Ending { progress, .. } = &mut self.phase {
            if let Some(grace) = grace {
                progress.shorten(grace, now);
            }
            actions.extend(self.teardown_due(now));
            return actions;
        }
        self.end(reason, self.policy.signal, grace, now)
    }

    fn renew(&mut self, ttl: Option<Duration>, now: BootTime) -> Vec<Action> {
        if !self.goes_on() {
            return Vec::new();
        }
        self.lease = ttl.map(|ttl| Lease::grant(ttl, now));
        vec![Action::EnterDeadline]
    }

    /// The run is to end, and not to be started again.
    fn end(&mut self, reason: Reason, first: Signal, grace: Option<Duration>, now: BootTime) -> Vec<Action> {
        let mut actions = self.give_up_restart(reason, now);
        actions.extend(self.tear_down(reason, first, grace, Then::Over, now));
        actions
    }

    fn tear_down(
        &mut self,
        reason: Reason,
        first: Signal,
        grace: Option<Duration>,
        then: Then,
        now: BootTime,
    ) -> Vec<Action> {
        match self.is_running() {
            true => self.begin_teardown(reason, first, grace, then, now),
            false => Vec::new(),
        }
    }

    fn begin_teardown(
        &mut self,
        reason: Reason,
        first: Signal,
        grace: Option<Duration>,
        then: Then,
        now: BootTime,
    ) -> Vec<Action> {
        let grace = grace.unwrap_or(self.policy.grace);
        let mut progress = Progress::begin(grace, now);
        let mut actions = vec![Action::EnterTeardown { grace }];
        match progress.due(now) {
            Due::Kill { first } => actions.push(Action::Kill { first }),
            _ => actions.push(Action::Ask { group: first, rest: self.policy.signal }),
        }
        let ask_at = (!progress.is_killing()).then_some(now + look_after(grace));
        self.phase = Phase::Ending { reason, first, progress, ask_at, begun: now, then };
        actions
    }
}

#[cfg(test)]
mod tests;
