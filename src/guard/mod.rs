//! The guard: the process that the caller started, the supervisor's parent.
//!
//! It stays in the caller's process group, owns the terminal, passes signals on, and sleeps. If the
//! supervisor dies, it is the next subreaper: the whole tree falls to it, and it ends the run itself.
//!
//! Who gets Ctrl-C: while the leader has the terminal, the leader, and we learn only that it died of it.
//! Otherwise our group does; the first press is passed on to the tree, the second one means SIGKILL.

mod keeper;
mod takeover;

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

pub use keeper::Keeper;
use keeper::Reaction;

use crate::control::link::{Heard, Link, ToGuard, ToSupervisor};
use crate::ending::Events;
use crate::exit::Ending;
use crate::registry::store::LiveRun;
use crate::run::RunSpec;
use crate::sys::children::{self, Change};
use crate::sys::clock::{BootTime, Timer};
use crate::sys::fault;
use crate::sys::process::{self, Pid};
use crate::sys::signal::{self, Signal, SignalQueue};
use crate::sys::tcp::Reservation;
use crate::sys::waits;
use crate::teardown::prey::Bounds;
use crate::teardown::progress::KILL_FOR;

/// How much longer than the lease, its grace and its kill time a supervisor may take before the guard
/// takes it for hung and ends the run itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// Signals that the guard reads.
const HEEDED: [Signal; 9] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::CHLD,
    Signal::CONT,
    Signal::TSTP,
    Signal::USR1,
    Signal::USR2,
];

/// All that the guard holds.
#[derive(Debug)]
pub struct Guard {
    /// What was asked for.
    pub spec: RunSpec,
    /// The run, locked.
    pub run: LiveRun,
    /// The channel to the supervisor.
    pub link: Link,
    /// The supervisor.
    pub supervisor: Pid,
    /// The terminal, if there is one.
    pub keeper: Option<Keeper>,
    /// What holds the tree together, beside us.
    pub bounds: Bounds,
    /// The ports, held so that they are until both of us are dead.
    pub claims: Vec<Reservation>,
    /// The file of `--events`.
    pub events: Events,
}

/// What the guard waits by. Opened before the supervisor is forked: afterwards nothing may fail.
#[derive(Debug)]
pub struct Senses {
    queue: SignalQueue,
    timer: Timer,
}

impl Senses {
    /// Opens them.
    pub fn open() -> io::Result<Senses> {
        Ok(Senses { queue: SignalQueue::open(&HEEDED)?, timer: Timer::new()? })
    }
}

/// What the supervisor said last.
#[derive(Debug)]
struct Over {
    ending: Ending,
    message: Option<String>,
    restore_modes: bool,
}

/// What the loop remembers.
#[derive(Debug, Default)]
struct Seen {
    leader: Option<Pid>,
    over: Option<Over>,
    /// The supervisor has been reaped.
    supervisor_gone: bool,
    /// The terminal sent this to the leader's group, which died of it.
    from_terminal: Option<Signal>,
    terminal_gone: bool,
    /// The teardown has begun.
    ending: bool,
}

impl Guard {
    /// Guards the run to its end, and returns how this process has to end.
    pub fn watch(mut self, Senses { queue, timer }: Senses) -> io::Result<Ending> {
        let mut seen = Seen::default();
        while seen.over.is_none() && !seen.supervisor_gone {
            let ready = self.wait(&queue, &timer, &seen)?;
            self.listen(&timer, &mut seen);
            if ready[0] {
                self.take_signals(&queue, &mut seen);
            }
            if ready[2] && !seen.supervisor_gone {
                // Reaping its end is the next thing that happens.
                let _ = process::signal_own_child(self.supervisor, Signal::KILL);
                timer.set(None)?;
            }
            if ready.get(3) == Some(&true) {
                seen.terminal_gone = true;
                self.terminal_gone();
            }
        }
        // Its last word may have come between our last look and its end.
        self.listen(&timer, &mut seen);
        match seen.over.take() {
            Some(over) => Ok(self.finish(over, &seen)),
            None => Ok(self.take_over(&queue, &timer, &seen)),
        }
    }

    fn wait(&self, queue: &SignalQueue, timer: &Timer, seen: &Seen) -> io::Result<Vec<bool>> {
        let mut fds = vec![(queue.as_fd(), true), (self.link.0.as_fd(), true), (timer.as_fd(), true)];
        let keeper = self.keeper.as_ref().filter(|_| !seen.terminal_gone);
        fds.extend(keeper.map(|keeper| (keeper.as_fd(), false)));
        waits::any(&fds, None)
    }

    /// Takes all messages. The channel's end is the supervisor's: then it is reaped.
    fn listen(&mut self, timer: &Timer, seen: &mut Seen) {
        loop {
            match self.link.receive() {
                Heard::Nothing => return,
                Heard::Message(message) => self.hear(message, timer, seen),
                Heard::Closed => {
                    if !seen.supervisor_gone {
                        // Nobody else holds that end, so it is dead, or hung in a way that nothing else ends.
                        let _ = process::signal_own_child(self.supervisor, Signal::KILL);
                        while !matches!(children::wait_for(self.supervisor), Ok(Change::Ended(_)) | Err(_)) {}
                        seen.supervisor_gone = true;
                    }
                    return;
                }
            }
        }
    }

    fn hear(&mut self, message: ToGuard, timer: &Timer, seen: &mut Seen) {
        match message {
            ToGuard::Spawned { leader, init, deadline } => {
                seen.leader = Some(leader);
                self.bounds.init = init;
                self.keeper.iter_mut().for_each(|keeper| keeper.leader_started(leader));
                self.arm(timer, deadline, self.spec.grace + KILL_FOR);
            }
            ToGuard::Deadline(deadline) => self.arm(timer, deadline, self.spec.grace + KILL_FOR),
            ToGuard::Ending { within } => {
                seen.ending = true;
                fault::step();
                self.keeper.iter_mut().for_each(Keeper::take_back);
                self.arm(timer, Some(BootTime::now()), within);
            }
            // We do not stop with it any more. A full-screen program that wants to put the terminal right before it
            // goes gets it back for that.
            ToGuard::LeaderStopped(_) if seen.ending => {
                if self.keeper.as_mut().is_some_and(Keeper::lend) {
                    self.link.send(&ToSupervisor::Continue);
                }
            }
            ToGuard::LeaderStopped(signal) => self.leader_stopped(signal),
            ToGuard::LeaderEnded { by_itself } => self.leader_ended(by_itself, seen),
            ToGuard::Finishing => self.arm(timer, None, Duration::ZERO),
            ToGuard::Over { ending, message, by_itself, restore_modes } => {
                self.leader_ended(by_itself, seen);
                seen.over = Some(Over { ending, message, restore_modes });
            }
        }
    }

    /// Takes the terminal back. If the leader died of a key while it had it, that is noted: the caller's group
    /// would have got the signal too.
    fn leader_ended(&mut self, signal: Option<Signal>, seen: &mut Seen) {
        let had_terminal = self.keeper.as_ref().is_some_and(Keeper::leader_had_terminal);
        let from_key = signal.filter(|signal| had_terminal && [Signal::INT, Signal::QUIT].contains(signal));
        seen.from_terminal = seen.from_terminal.or(from_key);
        self.keeper.iter_mut().for_each(Keeper::take_back);
    }

    /// Makes the timer end a supervisor that does not end the run by itself. A timer that cannot be
    /// armed leaves us without that second line, and nothing else.
    fn arm(&self, timer: &Timer, deadline: Option<BootTime>, within: Duration) {
        let _ = timer.set(deadline.map(|deadline| deadline + within + PATIENCE));
    }

    fn take_signals(&mut self, queue: &SignalQueue, seen: &mut Seen) {
        while let Some(signal) = queue.next() {
            match signal {
                Signal::CHLD => self.look_at_supervisor(seen),
                Signal::CONT => self.resume(),
                Signal::TSTP => self.link.send(&ToSupervisor::ForwardToGroup(signal)),
                Signal::USR1 | Signal::USR2 => self.link.send(&ToSupervisor::ForwardToLeader(signal)),
                _ => self.link.send(&ToSupervisor::Signal(signal)),
            }
        }
    }

    fn look_at_supervisor(&self, seen: &mut Seen) {
        if children::reap(self.supervisor).is_some() {
            seen.supervisor_gone = true;
        } else if let Some(Change::Stopped(_)) = children::job_change(self.supervisor) {
            // A supervisor is not to be stopped: leases run on.
            let _ = process::signal_own_child(self.supervisor, Signal::CONT);
        }
    }

    fn leader_stopped(&mut self, signal: Signal) {
        let Some(keeper) = &mut self.keeper else { return };
        let stopped = match keeper.leader_stopped(signal) {
            Reaction::Nothing => return,
            Reaction::Continue => true,
            Reaction::StopAlone => stop_self(signal),
            Reaction::StopGroup => {
                signal::send_to_own_group(signal);
                let stopped = stop_self(signal);
                // Whoever woke us alone (the supervisor, at the end of the run) means the group.
                signal::send_to_own_group(Signal::CONT);
                stopped
            }
        };
        let given = self.keeper.as_mut().is_some_and(Keeper::resumed);
        if !stopped && !given && [Signal::TTIN, Signal::TTOU].contains(&signal) {
            // Our group is orphaned and in the background: nobody can bring us to the front, and it would stop
            // again at once, for ever. As the kernel does with stopped orphans, it is told of a hang-up.
            self.link.send(&ToSupervisor::ForwardToGroup(Signal::HUP));
        }
        self.link.send(&ToSupervisor::Continue);
    }

    fn resume(&mut self) {
        self.keeper.as_mut().map(Keeper::resumed);
        self.link.send(&ToSupervisor::Continue);
    }

    fn terminal_gone(&self) {
        if !crate::sys::inherit::ignored(Signal::HUP) {
            self.link.send(&ToSupervisor::Signal(Signal::HUP));
        }
    }

    fn finish(mut self, over: Over, seen: &Seen) -> Ending {
        if !seen.supervisor_gone {
            while !matches!(children::wait_for(self.supervisor), Ok(Change::Ended(_)) | Err(_)) {
                // Stopped in its last moment.
                let _ = process::signal_own_child(self.supervisor, Signal::CONT);
            }
        }
        fault::step();
        self.give_terminal_back(over.restore_modes);
        fault::step();
        over.message.iter().for_each(|message| say(message));
        pass_on(over.ending, seen.from_terminal);
        over.ending
    }

    fn give_terminal_back(&mut self, restore_modes: bool) {
        if let Some(keeper) = &mut self.keeper {
            keeper.take_back();
            if restore_modes {
                keeper.restore_modes();
            }
        }
    }
}

/// Stops this process by `signal` until somebody continues it. Returns false if the kernel did not stop it,
/// since our process group is orphaned: then nobody sent a SIGCONT either.
fn stop_self(signal: Signal) -> bool {
    signal::suffer(signal);
    signal::pending(&[Signal::CONT]).is_some()
}

/// Gives the caller's group what the terminal gave the leader's: without us both were one, and a script's
/// loop ends because the shell got the signal too.
fn pass_on(ending: Ending, from_terminal: Option<Signal>) {
    if let (Ending::DieOf(signal), Some(sent)) = (ending, from_terminal)
        && signal == sent
    {
        signal::send_to_own_group(signal);
    }
}

/// Tells the person one line. A stderr that nobody reads must not keep us.
pub fn say(message: &str) {
    const PATIENCE: Duration = Duration::from_millis(200);
    let stderr = io::stderr();
    if waits::writable(stderr.as_fd(), Some(PATIENCE)) {
        let _ = writeln!(stderr.lock(), "agent-run: {message}");
    }
}
