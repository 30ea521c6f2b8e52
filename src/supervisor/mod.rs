//! The supervisor: the leader's parent, a subreaper in a process group of its own.
//!
//! It starts the command, lets go of the caller's descriptors, and from then on waits: for
//! children, the guard, the clock and requests. [`machine`] decides, the driver waits and carries out.

mod checker;
mod driver;
mod init;
mod lookout;
pub mod machine;
mod meter;
mod outputs;
mod passing;
mod probe;
mod relay;
mod requests;
mod scan;
mod serving;
mod start;
mod talker;
mod talking;

use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;

use serde_json::json;

use outputs::Outputs;
use start::{LaunchFailure, leader_setup, not_executed, not_started, program};
use talker::Pipes;

use crate::containment::Cell;
use crate::control::link::{Link, ToGuard, ToLauncher};
use crate::ending::{Events, Outcome, conclude};
use crate::exit::{Ending, Reason};
use crate::lease::Lease;
use crate::ports::ClaimMode;
use crate::registry::record::State;
use crate::registry::store::{LiveRun, SOCKET};
use crate::run::{Conversation, RunSpec};
use crate::sys::children;
use crate::sys::clock::BootTime;
use crate::sys::leader;
use crate::sys::namespace::{self, Lifeline, Lifelines};
use crate::sys::process::{self, Pid, Pidfd, ProcessRef};
use crate::sys::signal::Signal;
use crate::sys::spawn;
use crate::sys::tcp::Reservation;
use crate::sys::tty::{Modes, Terminal};
use crate::sys::{fault, files, inherit, net, signal};

/// What the guard hands to the supervisor by forking it.
#[derive(Debug)]
pub struct Handover {
    /// What was asked for.
    pub spec: RunSpec,
    /// The run, locked.
    pub run: LiveRun,
    /// The channel to the guard.
    pub link: Link,
    /// The terminal that the leader gets at once, and the guard's process group that has it.
    pub terminal: Option<(Terminal, Pid)>,
    /// What the terminal goes back to if the guard cannot do it.
    pub callers: CallersTerminal,
    /// The file of `--log`.
    pub log: Option<File>,
    /// The file of `--events`.
    pub events: Events,
    /// Whose death ends the run.
    pub owner: Option<Pidfd>,
    /// The run's cgroup.
    pub cell: Option<Cell>,
    /// The pipes into the init of the run's pid namespace, if it gets one.
    pub lifelines: Option<Lifelines>,
    /// The ports of the run.
    pub claims: Claims,
    /// Gets the run's id when the command has been started.
    pub started: Option<File>,
}

/// The ports of the run, and how they are kept.
#[derive(Debug)]
pub struct Claims {
    /// Until when, and how.
    pub mode: ClaimMode,
    /// The sockets; the guard has them too.
    pub ports: Vec<Reservation>,
    /// Ends when the guard has let go of what is to be let go.
    pub guard_let_go: Option<PipeReader>,
}

impl Claims {
    /// Returns the sockets that the command gets.
    fn passed_on(&self) -> Vec<RawFd> {
        let passed = self.ports.iter().filter(|_| self.mode == ClaimMode::ListenFd);
        passed.map(Reservation::descriptor).collect()
    }

    /// Makes them ready for the command, which is executed next.
    fn make_ready(&mut self) -> io::Result<()> {
        match self.mode {
            ClaimMode::Hold => Ok(()),
            ClaimMode::ListenFd => self.ports.iter().try_for_each(Reservation::listen),
            ClaimMode::Release => {
                self.ports.clear();
                // A guard that dies now lets go of them too.
                self.guard_let_go.as_mut().map_or(Ok(()), |end| end.read(&mut [0]).map(drop))
            }
        }
    }
}

/// The terminal as the caller had it.
#[derive(Debug)]
pub struct CallersTerminal {
    /// The caller's process group, which is the guard's.
    pub group: Pid,
    /// The modes.
    pub modes: Option<Modes>,
}

/// Runs the supervisor in this process, which was forked for it, and ends the process.
pub fn run(mut handover: Handover) -> ! {
    // Neither has a way to fail here: we lead no session, and the prctl exists since Linux 3.4.
    let _ = spawn::lead_own_group();
    let _ = children::become_subreaper();
    inherit::rename_process(c"arun-supervisor", &format!("arun-supervisor {}", handover.run.id()));
    let over = match Supervised::start(&mut handover) {
        Ok(supervised) => driver::drive(handover, supervised),
        Err(failure) => launch_failed(handover, failure),
    };
    let (link, over) = over;
    link.send(&over);
    signal::exit_now(0)
}

/// For the runtime, the signals, the timer, and a connection or two.
const DESCRIPTORS_AFTERWARDS: usize = 10;

/// The started command, and what was set up for it.
struct Supervised {
    leader: Pid,
    control: Option<UnixListener>,
    outputs: Outputs,
    /// Our ends of a session's pipes.
    pipes: Option<Pipes>,
    lease: Option<Lease>,
    namespace: Option<(Pid, Lifeline)>,
}

impl Supervised {
    fn start(handover: &mut Handover) -> Result<Supervised, LaunchFailure> {
        let Handover { spec, run, link, terminal, log, events, started, cell, claims, .. } = handover;
        let lifelines = handover.lifelines.take();
        if lifelines.is_some() {
            namespace::gain_rights().map_err(LaunchFailure::own("cannot make a user namespace"))?;
        }
        run.record.supervisor = ProcessRef::of_own(process::own_pid());
        fault::step();
        let mut outputs = Outputs::new(spec, run, log.take())
            .map_err(LaunchFailure::own("cannot write the log of the output"))?;
        let mut ends = outputs.open().map_err(LaunchFailure::own("cannot pass the output on"))?;
        let make = |it: &Conversation| if it.terminal { Pipes::of_terminal() } else { Pipes::new() };
        let pipes = spec.session.as_ref().map(make).transpose();
        let (pipes, theirs) = pipes.map_err(LaunchFailure::own("cannot make a pipe"))?.unzip();
        ends = theirs.or(ends);
        let entrance = cell.as_ref().map(Cell::entrance).transpose();
        let entrance = entrance.map_err(LaunchFailure::own("cannot open the cgroup"))?;
        let mut setup = leader_setup(spec, run, terminal.take(), entrance, claims, ends)
            .map_err(LaunchFailure::own("cannot read the limits"))?;
        setup.tree_lock = Some(run.tree_lock().map_err(LaunchFailure::own("cannot make the tree lock"))?);
        claims.make_ready().map_err(LaunchFailure::own("cannot hand the port over"))?;
        let namespace = lifelines.map(|lifelines| enter_namespace(lifelines, spec, claims)).transpose();
        let namespace = namespace.map_err(LaunchFailure::own("cannot make a pid namespace"))?;
        // Nothing may fail once the command is there, so what is opened then has its descriptors now.
        let reserve = files::reserve_descriptors(DESCRIPTORS_AFTERWARDS)
            .map_err(LaunchFailure::own("there are too few descriptors (ulimit -n)"))?;
        fault::step();
        let program = program(spec, run).map_err(|error| not_executed(spec, &error))?;
        let leader = leader::start(&program, &setup).map_err(|error| {
            if let Some((init, _)) = &namespace {
                let _ = process::signal_own_child(*init, Signal::KILL);
                let _ = children::wait_for(*init);
            }
            not_started(spec, &error)
        })?;
        // What was for the leader alone: the writing ends of its outputs, too.
        drop((setup, program));
        fault::step();
        drop(reserve);
        let now = BootTime::now();
        let lease = spec.ttl.map(|ttl| Lease::grant(ttl, now));
        let init = namespace.as_ref().map(|(init, _)| *init);
        link.send(&ToGuard::Spawned { leader, init, deadline: lease.map(|lease| lease.deadline()) });
        // Only /dev/null is opened for it; without, we hold on to what the caller gave.
        let _ = spawn::let_go_of(&[0, 1, 2]);
        inherit::close_callers_others();
        fault::step();
        // Made while the command is on its way: it is the dearest part of a launch. Without it (no inode left) the
        // run can be ended by a signal all the same, which is what `stop` does then.
        let control = net::listen_in(run.directory(), SOCKET).ok();
        run.record.leader = ProcessRef::of_own(leader);
        if !spec.gets_ready() {
            run.record.state = State::Running;
        }
        run.record.set_deadline(lease.map(|lease| lease.deadline()), spec.ttl);
        events.write(
            "started",
            &run.record,
            json!({ "leader": run.record.leader, "command": run.record.command }),
        );
        // The entry says "starting" if this fails (a full disk); the run goes on and is found by its lock.
        let _ = run.save();
        fault::step();
        if let Some(started) = started.take() {
            ToLauncher::Started(run.id().clone()).send(&started);
        }
        Ok(Supervised { leader, control, outputs, pipes, lease, namespace })
    }
}

/// Makes the namespace; the relay's threads must run by then.
fn enter_namespace(lifelines: Lifelines, spec: &RunSpec, claims: &mut Claims) -> io::Result<(Pid, Lifeline)> {
    namespace::unshare_pids()?;
    init::start(lifelines, spec.signal, spec.grace, &mut claims.ports)
}

fn launch_failed(handover: Handover, failure: LaunchFailure) -> (Link, ToGuard) {
    let Handover { spec, mut run, link, mut events, cell, started, .. } = handover;
    let ending = Ending::Code(failure.code);
    run.record.trouble = Some(failure.message.clone());
    if let Some(cell) = cell {
        // Nothing has entered it.
        let _ = cell.leaf.remove();
    }
    // Nothing ran, so nothing is worth keeping.
    run.record.keep = crate::run::Keep::Never;
    let outcome = Outcome {
        reason: Reason::LaunchFailed,
        leader: None,
        ending,
        verified: !children::any_child_lives(),
        killed: 0,
        exceeded: None,
        never_listened: None,
        survivors: Vec::new(),
    };
    let more = conclude(&mut run, &spec, &outcome, &mut events);
    let message = more.map_or(failure.message.clone(), |more| format!("{}; {more}", failure.message));
    if let Some(started) = started {
        ToLauncher::Failed { code: failure.code, message: message.clone() }.send(&started);
    }
    (link, ToGuard::Over { ending, message: Some(message), by_itself: None, restore_modes: false })
}
