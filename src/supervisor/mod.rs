//! The supervisor: the leader's parent, a subreaper in a process group of its own.
//!
//! It starts the command, lets go of the caller's descriptors, and from then on waits: for
//! children, the guard, the clock and requests. [`machine`] decides, the driver waits and carries out.

mod driver;
mod init;
mod lookout;
pub mod machine;
mod meter;
mod relay;
mod requests;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use serde_json::json;

use crate::containment::Cell;
use crate::control::link::{Link, ToGuard};
use crate::ending::{Events, Outcome, conclude};
use crate::exit::{self, Ending, Reason};
use crate::lease::Lease;
use crate::ports::ClaimMode;
use crate::registry::record::State;
use crate::registry::store::{LiveRun, SOCKET};
use crate::run::{Isolation, RunSpec};
use crate::rundir;
use crate::sys::children;
use crate::sys::clock::BootTime;
use crate::sys::leader::{self, LeaderSetup, Program, StartError};
use crate::sys::namespace::{self, Lifeline, Lifelines};
use crate::sys::process::{self, Pid, Pidfd, ProcessRef};
use crate::sys::signal::Signal;
use crate::sys::spawn::{self, Rlimit};
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
    relay: Option<relay::Relay>,
    lease: Option<Lease>,
    namespace: Option<(Pid, Lifeline)>,
}

/// The command was not started.
struct LaunchFailure {
    code: u8,
    message: String,
}

impl LaunchFailure {
    fn own(what: &str) -> impl FnOnce(io::Error) -> LaunchFailure {
        move |error| LaunchFailure { code: exit::OWN_FAILURE, message: format!("{what}: {error}") }
    }
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
        let relay = log.take().map(|log| relay::start(&log)).transpose();
        let (relay, ends) = relay.map_err(LaunchFailure::own("cannot pass the output on"))?.unzip();
        let setup = leader_setup(spec, run, terminal.take(), cell.as_ref(), claims, ends)
            .map_err(LaunchFailure::own("cannot make the tree lock"))?;
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
        run.record.state = State::Running;
        run.record.set_deadline(lease.map(|lease| lease.deadline()), spec.ttl);
        events.write(
            "started",
            &run.record,
            json!({ "leader": run.record.leader, "command": run.record.command }),
        );
        // The entry says "starting" if this fails (a full disk); the run goes on and is found by its lock.
        let _ = run.save();
        fault::step();
        if let Some(mut started) = started.take() {
            // Whoever wanted to know may have gone.
            let _ = writeln!(started, "{}", run.id());
        }
        Ok(Supervised { leader, control, relay, lease, namespace })
    }
}

fn program(spec: &RunSpec, run: &LiveRun) -> io::Result<Program> {
    let mut variables = rundir::environment(&run.record, &run.managed_path());
    variables.extend(spec.env.iter().cloned());
    let directory = if spec.scratch { Some(run.managed_path()) } else { spec.chdir.clone() };
    Program::new(&spec.command, variables, directory)
}

fn leader_setup(
    spec: &RunSpec,
    run: &mut LiveRun,
    terminal: Option<(Terminal, Pid)>,
    cell: Option<&Cell>,
    claims: &Claims,
    ends: Option<relay::CommandEnds>,
) -> io::Result<LeaderSetup> {
    let tree_lock = run.tree_lock()?;
    let mut rlimits = spec.limits.rlimits();
    if let Some(mark) = mark()? {
        run.record.mark = mark.soft;
        rlimits.insert(0, mark);
    }
    Ok(LeaderSetup {
        on_supervisor_death: spec.signal,
        rlimits,
        terminal,
        tree_lock: Some(tree_lock),
        cgroup: cell.map(Cell::entrance).transpose()?,
        isolated: spec.isolation == Isolation::Pid,
        sockets: claims.passed_on(),
        outputs: ends.map(|relay::CommandEnds { stdout, stderr }| (stdout, stderr)),
    })
}

/// Makes the namespace; the relay's threads must run by then.
fn enter_namespace(lifelines: Lifelines, spec: &RunSpec, claims: &mut Claims) -> io::Result<(Pid, Lifeline)> {
    namespace::unshare_pids()?;
    init::start(lifelines, spec.signal, spec.grace, &mut claims.ports)
}

/// Draws the mark: a soft RLIMIT_LOCKS, which the kernel ignores since 2.4.25 (`getrlimit(2)`) and every
/// descendant inherits, whatever it does to its environment and descriptors.
fn mark() -> io::Result<Option<Rlimit>> {
    const RLIMIT_LOCKS: u32 = 10;
    let (_, hard) = spawn::current_rlimit(RLIMIT_LOCKS)?;
    let mut bytes = [0; 8];
    files::fill_random(&mut bytes);
    // Large, so that no human chose it; within the hard limit, which stays.
    let mark = u64::from_le_bytes(bytes) >> 2 | 1 << 61;
    Ok((mark < hard).then_some(Rlimit { resource: RLIMIT_LOCKS, soft: Some(mark), hard: None }))
}

/// Says why the command did not start, with the code that `env(1)` and `timeout(1)` would return.
fn not_started(spec: &RunSpec, error: &StartError) -> LaunchFailure {
    match error {
        StartError::Execute(error) => not_executed(spec, error),
        StartError::Prepare { .. } => {
            let message = format!("{error}; '{}' was not started", shown(&spec.command[0]));
            LaunchFailure { code: exit::OWN_FAILURE, message }
        }
    }
}

fn not_executed(spec: &RunSpec, error: &io::Error) -> LaunchFailure {
    let program = Path::new(&spec.command[0]);
    let named = spec.command[0].as_bytes().contains(&b'/');
    let (code, why) = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) if named => {
            (exit::NOT_FOUND, "no such file (or its interpreter is missing); check the path".to_owned())
        }
        // execvp(3) says EACCES too if only a directory of PATH cannot be searched.
        Some(libc::EACCES) if !named && !is_on_path(program, spec) => not_found(),
        Some(libc::ENOENT | libc::ENOTDIR) => not_found(),
        Some(libc::EACCES) if program.is_dir() => {
            (exit::NOT_EXECUTABLE, "it is a directory; name a program".to_owned())
        }
        Some(libc::EACCES) => {
            (exit::NOT_EXECUTABLE, "permission denied; is it executable (chmod +x)?".to_owned())
        }
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => {
            (exit::OWN_FAILURE, format!("the system is out of resources: {error}"))
        }
        _ => (exit::NOT_EXECUTABLE, error.to_string()),
    };
    LaunchFailure { code, message: format!("cannot run '{}': {why}", shown(&spec.command[0])) }
}

fn shown(word: &OsStr) -> String {
    let beginning: String = word.to_string_lossy().chars().take(200).collect();
    beginning.escape_debug().to_string()
}

fn not_found() -> (u8, String) {
    (exit::NOT_FOUND, "command not found; check the spelling and PATH".to_owned())
}

fn is_on_path(program: &Path, spec: &RunSpec) -> bool {
    let given = spec.env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
    let path = given.or_else(|| std::env::var_os("PATH")).unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

fn launch_failed(handover: Handover, failure: LaunchFailure) -> (Link, ToGuard) {
    let Handover { spec, mut run, link, mut events, cell, .. } = handover;
    let ending = Ending::Code(failure.code);
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
    (link, ToGuard::Over { ending, message: Some(message), by_itself: None, restore_modes: false })
}
