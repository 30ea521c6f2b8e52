//! The supervisor's loop: waits for what happens, hands it to the machine, carries out what that says.
//!
//! Signals are blocked since before the fork and read as data. SIGCHLD may stand for many children, so
//! every look asks the kernel for all of them. Nothing here polls: without an idle time or a teardown the
//! loop sleeps until something happens or the lease ends.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::checker::{Checker, Told};
use super::lookout::Lookout;
use super::machine::{Action, Event, Machine, Policy, Verdict};
use super::meter::{Excess, Meter};
use super::outputs::Outputs;
use super::requests::{self, Asked};
use super::talker::{Door, Pipes};
use super::talking::{self, Talking};
use super::{Claims, Handover, Supervised};
use crate::control::link::{Heard, Link, ToGuard, ToSupervisor};
use crate::control::{Answer, Request};
use crate::ending::{Events, Outcome, conclude};
use crate::exit::Reason;
use crate::lease;
use crate::registry::record::{Exceeded, State};
use crate::registry::seen;
use crate::registry::store::LiveRun;
use crate::run::RunSpec;
use crate::sys::children::{self, Change, Ended};
use crate::sys::clock::{BootTime, Timer};
use crate::sys::fault;
use crate::sys::namespace::Lifeline;
use crate::sys::process::{self, Pid, Pidfd};
use crate::sys::readiness::Readiness;
use crate::sys::signal::{Signal, SignalQueue};
use crate::sys::tree::{self, Descend};
use crate::sys::tty::Terminal;
use crate::teardown::prey::{Bounds, ProcessTree};
use crate::teardown::progress::KILL_FOR;

/// Supervises the command to its end, and returns the channel with the last word for the guard.
pub(super) fn drive(handover: Handover, supervised: Supervised) -> (Link, ToGuard) {
    let Supervised { leader, control, outputs, pipes, lease, namespace } = supervised;
    let mut driver = Driver::new(handover, leader, outputs, lease, namespace);
    // A short command may be over before there is anything to wait by.
    driver.look_at_children();
    if driver.machine.verdict().is_none() || pipes.is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // Without a runtime or queue (out of descriptors) we cannot know when to act: the run ends now.
        let watched = runtime.and_then(|runtime| runtime.block_on(driver.watch(control, pipes)));
        if watched.is_err() {
            driver.end_blindly();
        }
    }
    driver.conclude()
}

pub(super) struct Driver {
    pub(super) spec: RunSpec,
    pub(super) run: LiveRun,
    pub(super) link: Link,
    pub(super) events: Events,
    pub(super) outputs: Outputs,
    pub(super) leader: Pid,
    pub(super) machine: Machine,
    pub(super) tree: ProcessTree,
    callers: super::CallersTerminal,
    owner: Option<Pidfd>,
    /// Held until the run is over.
    pub(super) claims: Claims,
    /// Whether the kernel holds the limits of the tree.
    pub(super) limited: bool,
    lookout: Option<Lookout>,
    pub(super) meter: Option<Meter>,
    pub(super) exceeded: Option<Exceeded>,
    pub(super) checker: Option<Checker>,
    /// What the checker says, and how.
    pub(super) told: mpsc::UnboundedReceiver<Told>,
    /// When the record is to be written again.
    save_at: Option<BootTime>,
    /// Commands of checks that run.
    pub(super) probes: HashMap<Pid, oneshot::Sender<Ended>>,
    /// The way to who talks with a session's program.
    pub(super) door: Option<Door>,
    /// Whether that deals with a message, and how many it has had.
    pub(super) talked: (bool, u64),
    /// When somebody took it, who has not said anything yet.
    pub(super) taken_at: Option<BootTime>,
    guard_lost: bool,
    /// It had it when the guard was lost.
    leader_had_terminal: bool,
    /// The tree's bytes and processes at the last sample of the idle time.
    sampled: Option<(u64, usize)>,
}

impl Driver {
    fn new(
        handover: Handover,
        leader: Pid,
        outputs: Outputs,
        lease: Option<lease::Lease>,
        namespace: Option<(Pid, Lifeline)>,
    ) -> Driver {
        let Handover { spec, run, link, events, callers, owner, cell, claims, .. } = handover;
        let now = BootTime::now();
        let lookout = Lookout::of(&claims, now);
        let machine = Machine::new(Policy::of(&spec), lease, now);
        let meter = Meter::of(&spec.limits, cell.as_ref(), now);
        let (init, lifeline) = namespace.unzip();
        // Each checker makes its own; without one, nobody speaks.
        let (_, told) = mpsc::unbounded_channel();
        let limited = cell.as_ref().is_some_and(|cell| cell.limited);
        let tree = ProcessTree::new(
            Some(leader),
            Bounds {
                leaf: cell.map(|cell| cell.leaf),
                freezes: spec.limits.cpu_percent.is_some(),
                lifeline,
                init,
            },
        );
        Driver {
            spec,
            run,
            link,
            events,
            outputs,
            leader,
            machine,
            tree,
            callers,
            owner,
            claims,
            limited,
            checker: None,
            told,
            save_at: None,
            probes: HashMap::new(),
            door: None,
            talked: (false, 0),
            taken_at: None,
            lookout,
            meter,
            exceeded: None,
            guard_lost: false,
            leader_had_terminal: false,
            sampled: None,
        }
    }

    async fn watch(&mut self, control: Option<UnixListener>, pipes: Option<Pipes>) -> io::Result<()> {
        let queue = SignalQueue::open(&[Signal::CHLD, Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT])?;
        let timer = Timer::new()?;
        let (signals, ticks) = (Readiness::of(&queue)?, Readiness::of(&timer)?);
        let guard = Readiness::of(&self.link.0)?;
        let owner = self.owner.as_ref().map(Readiness::of).transpose()?;
        let (asked, mut requests) = mpsc::channel(8);
        // Held here too, so that the channel stays open where nobody serves.
        let _asked = asked.clone();
        let mut talking = pipes.map(|pipes| Talking::begin(pipes, &self.spec, &self.run)).transpose()?;
        self.door = talking.as_ref().map(Talking::door);
        if let Some(control) = control {
            let listener = tokio::net::UnixListener::from_std(control)?;
            tokio::spawn(requests::serve(listener, asked, self.door.clone()));
        }
        self.check();
        // What happened before the queue was open.
        self.look_at_children();
        while self.machine.verdict().is_none() {
            timer.set(self.wake_at())?;
            tokio::select! {
                biased;
                ready = signals.wait() => { ready?; self.take_signals(&queue); }
                ready = guard.wait(), if !self.guard_lost => { ready?; self.listen_to_guard(); }
                ready = ticks.wait() => { ready?; timer.clear(); self.tick(); }
                ready = gone(owner.as_ref()), if self.machine.goes_on() => { ready?; self.take_in(Event::OwnerGone); }
                Some(asked) = requests.recv() => self.answer(asked),
                Some(told) = self.told.recv() => self.hear(told),
                Some(word) = talking::next(&mut talking) => self.hear_word(word),
            }
        }
        self.door = None;
        if let (Some(talking), Some(verdict)) = (talking, self.machine.verdict()) {
            talking.end(&verdict).await;
        }
        Ok(())
    }

    fn wake_at(&self) -> Option<BootTime> {
        let running = self.machine.is_running();
        let meter = self.meter.as_ref().filter(|_| running).and_then(Meter::next);
        let lookout = self.lookout.as_ref().filter(|_| running).and_then(Lookout::next);
        self.machine.wake_at().into_iter().chain(meter).chain(lookout).chain(self.save_at).min()
    }

    /// Writes the record, and tries again later if that is not possible: somebody may wait for what it says.
    pub(super) fn save(&mut self) {
        const AGAIN: Duration = Duration::from_secs(1);
        self.save_at = self.run.save().err().map(|_| BootTime::now() + AGAIN);
    }

    /// Looks at the limits of the tree.
    fn measure(&mut self) {
        if self.machine.is_running()
            && let Some(meter) = &mut self.meter
            && let Some(excess) = meter.look(self.tree.leaf(), &self.probes, BootTime::now())
        {
            self.exceed(excess);
        }
    }

    fn exceed(&mut self, Excess { reason, figures }: Excess) {
        self.exceeded = Some(figures);
        self.take_in(Event::Exceeded(reason));
    }

    /// Takes `event` in and carries out what follows. An empty tree is noticed first: then nothing of it
    /// needs doing, and a run of one process ends without a look at /proc.
    pub(super) fn take_in(&mut self, event: Event) {
        let actions = self.machine.step(event, BootTime::now());
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        if self.machine.is_tearing_down() && self.tree.is_leaderless() && self.tree.is_empty() {
            // Either it is over, or it is started again.
            for action in self.machine.step(Event::TreeEmpty, BootTime::now()) {
                self.act(action);
            }
            return;
        }
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::EnterTeardown { grace } => self.enter_teardown(grace),
            Action::Ask { group, rest } => {
                fault::step();
                self.events.write("signal", &self.run.record, json!({ "signal": group.to_string() }));
                self.tree.ask(group, rest);
                fault::step();
            }
            Action::AskAgain(signal) => self.tree.ask_again(signal),
            Action::AskNew { rest } => self.tree.ask(rest, rest),
            Action::Kill { first } => {
                if first {
                    self.events.write("escalated", &self.run.record, json!({ "signal": "SIGKILL" }));
                }
                fault::step();
                self.tree.kill();
                fault::step();
            }
            Action::EnterDeadline => {
                let lease = self.machine.lease();
                let deadline = lease.map(|lease| lease.deadline());
                self.run.record.set_deadline(deadline, lease.map(|lease| lease.ttl()));
                self.save();
                // Of a teardown that goes on the guard knows more.
                if !self.machine.is_tearing_down() {
                    self.link.send(&ToGuard::Deadline(deadline));
                }
            }
            Action::Sample => self.sample(),
            Action::EnterState => self.enter_state(),
            Action::EnterPause => self.enter_pause(),
            Action::Start => self.start_again(),
        }
    }

    fn enter_teardown(&mut self, grace: Duration) {
        self.checker = None;
        self.run.record.state = match self.machine.state() {
            State::Restarting => State::Restarting,
            _ => State::Stopping,
        };
        fault::step();
        // The lock says who lives; an entry that could not be written is only less exact.
        self.save();
        fault::step();
        self.link.send(&ToGuard::Ending { within: grace + KILL_FOR });
        fault::step();
        self.tree.set_nested(seen::guards_within(self.run.root(), self.run.id()));
    }

    fn take_signals(&mut self, queue: &SignalQueue) {
        while let Some(signal) = queue.next() {
            if signal != Signal::CHLD {
                self.take_in(Event::Signalled(signal));
            }
        }
        self.look_at_children();
    }

    pub(super) fn look_at_children(&mut self) {
        let had_ended = self.tree.leader_ended();
        let reaped = self.tree.reap();
        self.tell_probes(&reaped);
        let any = !reaped.is_empty();
        match self.tree.leader_ended() {
            Some(ended) if had_ended.is_none() => self.leader_ended(ended),
            _ if any || had_ended.is_some() => self.take_in(Event::SomethingEnded),
            _ => {}
        }
        if !self.meter.as_ref().is_some_and(Meter::holds_the_tree)
            && self.tree.leader_ended().is_none()
            && let Some(Change::Stopped(signal)) = children::job_change(self.leader)
        {
            self.leader_stopped(signal);
        }
    }

    fn leader_stopped(&self, signal: Signal) {
        if !self.guard_lost {
            return self.link.send(&ToGuard::LeaderStopped(signal));
        }
        // Nobody else can give it back to a program that wants to put it right before it goes.
        if self.leader_had_terminal
            && let Some(terminal) = Terminal::open()
            && terminal.foreground() == Some(self.callers.group)
            && terminal.give_to(self.leader).is_ok()
        {
            self.tree.signal_group(Signal::CONT);
        }
    }

    fn leader_ended(&mut self, ended: Ended) {
        self.outputs.leader_ended();
        let refused = self.meter.as_ref().and_then(|meter| meter.refused_by_kernel(self.tree.leaf()));
        if let Some(excess) = refused.filter(|_| self.machine.is_running()) {
            // The kernel may have killed all of the tree, and then the run is over with this.
            self.machine.note_leader(ended);
            self.exceed(excess);
        }
        self.take_in(Event::LeaderEnded(ended));
        if self.machine.verdict().is_none() {
            self.link.send(&ToGuard::LeaderEnded { by_itself: self.machine.died_by_itself_of() });
        }
    }

    fn listen_to_guard(&mut self) {
        loop {
            match self.link.receive() {
                Heard::Nothing => return,
                Heard::Message(ToSupervisor::Signal(signal)) => self.take_in(Event::Signalled(signal)),
                Heard::Message(ToSupervisor::ForwardToLeader(signal)) => self.tree.signal_leader(signal),
                Heard::Message(ToSupervisor::ForwardToGroup(signal)) => self.tree.signal_group(signal),
                Heard::Message(ToSupervisor::Continue) => self.tree.signal_group(Signal::CONT),
                Heard::Closed => {
                    self.guard_lost = true;
                    self.restore_terminal();
                    return self.take_in(Event::GuardLost);
                }
            }
        }
    }

    fn tick(&mut self) {
        // Nothing is given up before a last look.
        self.carry_out(Vec::new());
        self.measure();
        if self.save_at.is_some_and(|at| at <= BootTime::now()) {
            self.save();
        }
        if let Some(port) = self.lookout.as_mut().and_then(|lookout| lookout.look(BootTime::now())) {
            self.events.write("listening", &self.run.record, json!({ "port": port }));
        }
        self.take_in(Event::Tick);
        let actions = self.machine.judge_idleness(BootTime::now());
        self.carry_out(actions);
    }

    fn sample(&mut self) {
        let mut seen = (0u64, 0usize);
        tree::walk(&mut |member| {
            if self.probes.contains_key(&member.stat.pid) {
                return Descend::No;
            }
            seen.0 = seen.0.wrapping_add(process::bytes_moved(member.stat.pid).unwrap_or(0));
            seen.1 += 1;
            Descend::Yes
        });
        if self.sampled.replace(seen).is_some_and(|before| before != seen) {
            self.machine.step(Event::Activity, BootTime::now());
        }
    }

    fn answer(&mut self, (request, reply): Asked) {
        let seconds = |span: f64| Duration::try_from_secs_f64(span).ok();
        let answer = match request {
            Request::Stop { grace_s, displaced } => {
                let reason = if displaced { Reason::Displaced } else { Reason::Stop };
                self.take_in(Event::Stop { grace: grace_s.and_then(seconds), reason });
                Answer::Done
            }
            Request::Renew { .. } if !self.machine.goes_on() => {
                Answer::Refused { message: "the run is ending".to_owned() }
            }
            Request::Renew { ttl_s } => {
                self.take_in(Event::Renew(ttl_s.and_then(seconds)));
                Answer::Done
            }
            Request::Restart { grace_s } => self.restart(grace_s.and_then(seconds)),
            Request::Live => {
                let idle = self.machine.idle_for(BootTime::now());
                let (busy, messages) = self.talked;
                Answer::Live { idle_s: idle.map(|span| span.as_secs_f64()), busy, messages }
            }
            Request::Take => self.take(),
            Request::Interrupt => self.interrupt(),
            Request::Talk => self.let_in(),
        };
        if request_counts(&answer) {
            self.machine.step(Event::Activity, BootTime::now());
        }
        // Whoever asked may have gone.
        let _ = reply.send(answer);
    }

    /// The loop could not run: ends the tree all the same, with grace, looking a hundred times a second.
    fn end_blindly(&mut self) {
        self.take_in(Event::GuardLost);
        while self.machine.verdict().is_none() {
            self.look_at_children();
            self.tick();
            let _ = crate::sys::waits::any(&[], Some(Duration::from_millis(10)));
        }
    }

    fn conclude(mut self) -> (Link, ToGuard) {
        let Some(verdict) = self.machine.verdict() else {
            // `watch` and `end_blindly` return with one; without, the guard takes over.
            crate::sys::signal::exit_now(1)
        };
        self.checker = None;
        if self.outputs.is_open() {
            self.link.send(&ToGuard::Finishing);
            self.outputs.finish(self.spec.grace.max(Duration::from_secs(1)));
        }
        let survivors = if verdict.verified { Vec::new() } else { self.tree.survivors() };
        fault::step();
        if verdict.verified {
            self.tree.bury();
        }
        fault::step();
        if self.guard_lost {
            self.restore_terminal();
        }
        let Verdict { reason, leader, verified, ending, .. } = verdict;
        let outcome = Outcome {
            reason,
            leader,
            ending,
            verified,
            killed: self.tree.killed(),
            exceeded: self.exceeded.take(),
            never_listened: self.lookout.as_ref().and_then(Lookout::never_listened),
            survivors,
        };
        let message = conclude(&mut self.run, &self.spec, &outcome, &mut self.events);
        fault::step();
        if !self.guard_lost {
            self.wake_guard();
        }
        let by_itself = self.machine.died_by_itself_of();
        let restore_modes = matches!(leader, Some(Ended::Signaled(_))) || reason == Reason::SupervisorLost;
        (self.link, ToGuard::Over { ending, message: message.map(shorten), by_itself, restore_modes })
    }

    /// A guard that was stopped with its shell's job must run to take the end in.
    fn wake_guard(&self) {
        let Some(guard) = &self.run.record.guard else { return };
        if process::Stat::read(guard.pid).is_some_and(|stat| stat.is_stopped())
            && let Some(guard) = guard.pin()
        {
            let _ = guard.send(Signal::CONT);
        }
    }

    /// The guard moves the terminal; if it is dead, what the leader holds goes back to the group that the
    /// guard was in, so that a script that goes on can use it. Once a shell has taken it, it is the shell's;
    /// but one that does not put the modes right (dash) gets them from us. That it has not is told by ISIG:
    /// full-screen programs switch it off, line editors need it.
    fn restore_terminal(&mut self) {
        let Some(terminal) = Terminal::open() else { return };
        let Some(modes) = &self.callers.modes else { return };
        let leader_has_it = terminal.foreground() == Some(self.leader);
        self.leader_had_terminal |= leader_has_it;
        if leader_has_it {
            // Refused if that group is gone too: then a shell takes the terminal itself.
            let _ = terminal.give_to(self.callers.group);
        }
        let deaf = terminal.modes().is_some_and(|now| !now.make_signals()) && modes.make_signals();
        if leader_has_it || deaf {
            terminal.set_modes(modes);
        }
    }
}

/// Waits for the owner's end; without an owner for ever.
async fn gone(owner: Option<&Readiness>) -> io::Result<()> {
    match owner {
        Some(owner) => owner.wait().await,
        None => std::future::pending().await,
    }
}

/// A packet has room for a line, not for a page.
fn shorten(message: String) -> String {
    const LONGEST: usize = 4_000;
    if message.len() <= LONGEST {
        message
    } else {
        message.chars().take(LONGEST / 4).chain(['…']).collect()
    }
}

/// Looking at a run does not keep it busy.
fn request_counts(answer: &Answer) -> bool {
    matches!(answer, Answer::Done)
}
