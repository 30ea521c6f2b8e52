//! Starting a run: from what was asked for to a guard and a supervisor.
//!
//! [`here`] makes this process the guard. That needs a process without other threads and children, so a
//! library's host cannot do it: it uses [`crate::client`], which starts the `agent-run` binary.

mod background;
mod places;

pub use background::in_background;

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::containment::{Cell, Plan};
use crate::control::link::Link;
use crate::ending::Events;
use crate::exit::Ending;
use crate::guard::{self, Guard, Keeper, Senses};
use crate::limits::Limits;
use crate::output;
use crate::owner::{self, OwnerError, Pinned};
use crate::pool::{self, PoolError};
use crate::port::claim::{ClaimError, Person};
use crate::ports::ClaimMode;
use crate::recover;
use crate::registry::RegistryError;
use crate::registry::root::Root;
use crate::registry::store::LiveRun;
use crate::run::{Isolation, RunId, RunSpec};
use crate::rundir::{self, CopyError};
use crate::stop::StopError;
use crate::supervisor::{self, CallersTerminal, Claims, Handover};
use crate::sys::children::{self, Change};
use crate::sys::namespace::{self, Lifelines};
use crate::sys::process::{self, Pid, Pidfd};
use crate::sys::signal::{self, Signal, SignalQueue};
use crate::sys::spawn::{self, Forked};
use crate::sys::tcp::Reservation;
use crate::sys::{fault, inherit, tty, waits};
use crate::teardown::prey::Bounds;

/// Nothing was started, and nothing is left.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The registry refuses.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A path that was named cannot be used.
    #[error("{what} {path}: {source}", path = path.display())]
    Path {
        /// What was attempted.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The managed directory could not be filled.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// A limit is above what this process may grant.
    #[error("--{0} is above the hard limit of this process, which only root may raise")]
    Limit(&'static str),
    /// There is no such owner.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// No pid namespace can be made.
    #[error("--isolate pid cannot be had here: {0}")]
    Isolation(io::Error),
    /// What /proc says is not about our processes.
    #[error("/proc is missing or belongs to another pid namespace")]
    ForeignProc,
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A port cannot be had.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Too many of its kind live, or there is too little memory.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A live run has the name.
    #[error("the name '{name}' is taken by run {run}")]
    NameHeld {
        /// The name.
        name: String,
        /// The run.
        run: RunId,
    },
    /// The run that has the name is one that this command is in.
    #[error("the name '{name}' is that of run {run}, in which this command runs")]
    OwnName {
        /// The name.
        name: String,
        /// The run.
        run: RunId,
    },
    /// The name is that of a run that may not be ended.
    #[error("the name {name} is that of run {run} of {owner}, who is alive")]
    OthersName {
        /// The name.
        name: String,
        /// The run.
        run: RunId,
        /// Whose.
        owner: String,
    },
    /// The run that has the name could not be ended.
    #[error("run {run}, which has the name {name}: {source}")]
    NameNotFreed {
        /// The name.
        name: String,
        /// The run.
        run: RunId,
        /// Why not.
        source: StopError,
    },
    /// It was not started in the background.
    #[error("{message}")]
    NotStarted {
        /// What `agent-run` returns.
        code: u8,
        /// Why not.
        message: String,
    },
    /// A signal came before the command was started.
    #[error("interrupted by {0}")]
    Interrupted(Signal),
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::System { what, source }
}

/// Runs `spec` with this process as its guard, and returns how this process has to end. When the command
/// has been started, the run's id is written to `started`. `person` is asked before somebody is displaced. This
/// process must have one thread.
pub fn here(mut spec: RunSpec, started: Option<File>, person: &dyn Person) -> Result<Ending, LaunchError> {
    let given = take(&mut spec, started, person)?;
    // From here on nothing interrupts: what has come is looked at where it can be answered.
    signal::block_all();
    // "No child left" is our proof that the tree is gone, so we must not have had children before
    // (`sleep 9 & exec agent-run ...`) nor be the one that orphans of others come to.
    if process::own_pid() == 1 || children::any_child_exists() {
        return mirror(spec, given);
    }
    guard(spec, given)
}

/// Finds what is wrong, and takes what others may have.
fn take(spec: &mut RunSpec, started: Option<File>, person: &dyn Person) -> Result<Given, LaunchError> {
    signal::expect_children();
    check(spec)?;
    if !process::proc_is_ours() {
        return Err(LaunchError::ForeignProc);
    }
    // Before a fork could change whose child we are.
    let owner = owner::find(spec.owner)?;
    let log = spec.log.as_deref().map(open_named).transpose()?;
    let events = Events::new(spec.events.as_deref().map(open_named).transpose()?);
    let root = Root::open()?;
    // Before the ports are taken: it goes on for a while, and what is forked has all that we have. Whoever starts
    // servers holds a lock by now, and has looked before.
    if !spec.background {
        recover::recover_all_now_and_then(&root);
    }
    let place = pool::admit(&root, spec)?;
    // Nothing is made yet, so a Ctrl-C at a question just ends us.
    let claims = places::take(&root, spec, person)?;
    Ok(Given { owner, claims, root, place, files: Files { log, events, started } })
}

/// What was opened and taken before anything was made.
struct Given {
    owner: Option<Pinned>,
    claims: Vec<Reservation>,
    root: Root,
    /// Keeps others from the place in the pool until the run is entered.
    place: Option<File>,
    files: Files,
}

/// Finds what is wrong before anything is made.
fn check(spec: &RunSpec) -> Result<(), LaunchError> {
    let refuse = |what, path: &Path| {
        let path = path.to_owned();
        move |source| LaunchError::Path { what, path, source }
    };
    if let Some(directory) = &spec.chdir {
        rundir::check_directory(directory).map_err(refuse("cannot start in", directory))?;
    }
    for source in &spec.copies {
        std::fs::symlink_metadata(source).map_err(refuse("cannot copy", source))?;
    }
    if spec.isolation == Isolation::Pid {
        namespace::probe().map_err(LaunchError::Isolation)?;
    }
    match Limits::first_not_grantable(&spec.limits) {
        Some(name) => Err(LaunchError::Limit(name)),
        None => Ok(()),
    }
}

fn guard(spec: RunSpec, given: Given) -> Result<Ending, LaunchError> {
    let Given { owner, claims, root, place: turn, files } = given;
    children::become_subreaper().map_err(system("become a subreaper"))?;
    let plan = Plan::of(&spec);
    let (owner, pinned) = owner.map(|found| (found.owner, found.handle)).unzip();
    let place = root.path().to_owned();
    let mut run = LiveRun::create(root, &spec, &start_directory(&spec), &|record| {
        if spec.background {
            record.log = Some(output::path_of(&place, "runs", &record.id, output::LOG));
        }
        record.parents = rundir::parents_from_environment();
        record.owner = owner.clone();
        record.ports = claims.iter().map(Reservation::port).collect();
        record.claim = (!claims.is_empty()).then_some(spec.claim);
        record.cgroup = plan.leaf_path(&record.id).map(|path| path.to_string_lossy().into_owned());
        record.containment = containment(&spec, record.cgroup.is_some());
    })?;
    drop(turn);
    fault::step();
    let cell = plan.make(run.id(), &spec.limits);
    fault::step();
    if cell.is_none() {
        run.record.cgroup = None;
        run.record.containment = containment(&spec, false);
    }
    let prepared = match prepare(&spec, &run, files.log.as_ref()) {
        Ok(prepared) => prepared,
        Err(error) => {
            forget(run, cell);
            return Err(error);
        }
    };
    start(spec, run, prepared, Held { owner: pinned, cell, claims }, files)
}

/// Returns the strongest rung that holds the run, in the words of [`crate::containment::rungs`].
fn containment(spec: &RunSpec, has_cgroup: bool) -> String {
    let rung = match spec.isolation {
        Isolation::Pid => "pid_namespace",
        Isolation::None if has_cgroup => "cgroup",
        Isolation::None => "subreaper",
    };
    rung.to_owned()
}

/// What is made for a run, beside its place in the registry.
struct Prepared {
    links: (Link, Link),
    senses: Senses,
    lifelines: Option<Lifelines>,
    keeper: Option<Keeper>,
    /// Ends when the guard has let go of the claims; where it is to do that.
    letting_go: Option<(PipeReader, PipeWriter)>,
}

/// What the run holds beyond its directory.
struct Held {
    owner: Option<Pidfd>,
    cell: Option<Cell>,
    claims: Vec<Reservation>,
}

/// Undoes what was made for a run that never began.
fn forget(run: LiveRun, cell: Option<Cell>) {
    if let Some(cell) = cell {
        let _ = cell.leaf.remove();
    }
    run.forget();
}

/// Files that the caller named.
struct Files {
    log: Option<File>,
    events: Events,
    started: Option<File>,
}

/// Signals that end what is being started.
pub const FATAL: [Signal; 4] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];

fn prepare(spec: &RunSpec, run: &LiveRun, log: Option<&File>) -> Result<Prepared, LaunchError> {
    let heeded: Vec<Signal> = FATAL.into_iter().filter(|signal| !inherit::ignored(*signal)).collect();
    let interrupting = || signal::pending(&heeded);
    match rundir::copy_into(&run.managed_path(), &spec.copies, &|| interrupting().is_some()) {
        Err(CopyError::Interrupted) => {
            return Err(LaunchError::Interrupted(interrupting().unwrap_or(Signal::TERM)));
        }
        result => result?,
    }
    if let Some(log) = log.filter(|log| log.metadata().is_ok_and(|seen| seen.is_file())) {
        // Only now that the run is ours: a launch that is refused must not cost another run its log.
        log.set_len(0).map_err(system("empty the log"))?;
    }
    let links = Link::pair().map_err(system("make a socket pair"))?;
    let senses = Senses::open().map_err(system("open a signal queue"))?;
    let isolated = spec.isolation == Isolation::Pid;
    let lifelines = isolated.then(Lifelines::new).transpose().map_err(system("make a pipe"))?;
    let lets_go = !spec.ports.is_empty() && spec.claim == ClaimMode::Release;
    let letting_go = lets_go.then(io::pipe).transpose().map_err(system("make a pipe"))?;
    Ok(Prepared { links, senses, lifelines, keeper: Keeper::open(), letting_go })
}

fn start(
    spec: RunSpec,
    run: LiveRun,
    prepared: Prepared,
    held: Held,
    files: Files,
) -> Result<Ending, LaunchError> {
    let Files { log, events, started } = files;
    let Held { owner, cell, mut claims } = held;
    let Prepared { links: (guards_link, supervisors_link), senses, lifelines, keeper, letting_go } = prepared;
    let (guard_let_go, released) = letting_go.unzip();
    let spec_claim = spec.claim;
    let forked = match spawn::fork() {
        Ok(forked) => forked,
        Err(error) => {
            forget(run, cell);
            return Err(system("fork")(error));
        }
    };
    match forked {
        Forked::Child => {
            drop((guards_link, senses, released));
            fault::become_role("supervisor");
            fault::step();
            let group = tty::own_group();
            let modes = keeper.as_ref().and_then(Keeper::callers_modes);
            let terminal = keeper.filter(Keeper::gives_at_once).map(|keeper| (keeper.into_terminal(), group));
            let callers = CallersTerminal { group, modes };
            supervisor::run(Handover {
                spec,
                run,
                link: supervisors_link,
                terminal,
                callers,
                log,
                events,
                owner,
                cell,
                lifelines,
                claims: Claims { mode: spec_claim, ports: claims, guard_let_go },
                started,
            })
        }
        Forked::Parent(supervisor) => {
            drop((supervisors_link, log, started, owner, guard_let_go));
            // A claim that is to be let go is so when nobody has it; its end tells that we have not.
            if spec.claim == ClaimMode::Release {
                claims.clear();
            }
            drop(released);
            // What we hold would keep readers and writers of the caller's pipes waiting. stderr stays, for a
            // last word.
            let _ = spawn::let_go_of(&[0, 1]);
            inherit::close_callers_others();
            fault::step();
            let lifeline = lifelines.map(Lifelines::for_guard);
            let freezes = spec.limits.cpu_percent.is_some();
            let bounds = Bounds { leaf: cell.map(|cell| cell.leaf), freezes, lifeline, init: None };
            let guard = Guard { spec, run, link: guards_link, supervisor, keeper, bounds, claims, events };
            guard.watch(senses).map_err(system("watch the supervisor"))
        }
    }
}

/// Returns where the command of `spec` starts, unless that is the managed directory.
pub fn start_directory(spec: &RunSpec) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    match &spec.chdir {
        Some(directory) => here.join(directory),
        None => here,
    }
}

/// Opens a file that is written to, without waiting for anybody: a FIFO that nobody reads is an error.
fn open_named(path: &Path) -> Result<File, LaunchError> {
    let opened = OpenOptions::new().create(true).append(true).custom_flags(libc::O_NONBLOCK).open(path);
    opened.map_err(|source| LaunchError::Path { what: "cannot write", path: path.to_owned(), source })
}

/// Forks a guard that has no children, passes signals on to it, and ends as it does.
fn mirror(spec: RunSpec, given: Given) -> Result<Ending, LaunchError> {
    let mirror = process::own_pid();
    match spawn::fork().map_err(system("fork"))? {
        Forked::Child => {
            // Our death is then a TERM to the guard, which ends the run.
            spawn::end_with_parent(mirror, Signal::TERM);
            let code = match guard(spec, given) {
                Ok(Ending::DieOf(signal)) => signal::die_of(signal),
                Ok(Ending::Code(code)) => code,
                Err(error) => {
                    guard::say(&error.to_string());
                    crate::exit::OWN_FAILURE
                }
            };
            signal::exit_now(i32::from(code))
        }
        Forked::Parent(guard) => {
            drop(given);
            watch_guard(guard).map_err(system("watch the guard"))
        }
    }
}

fn watch_guard(guard: Pid) -> io::Result<Ending> {
    use std::os::fd::AsFd;
    let queue = SignalQueue::open(&[&FATAL[..], &[Signal::CHLD, Signal::USR1, Signal::USR2]].concat())?;
    let _ = spawn::let_go_of(&[0, 1]);
    inherit::close_callers_others();
    loop {
        waits::readable(queue.as_fd(), None)?;
        while let Some((signal, from_terminal)) = queue.next_from() {
            // What the terminal sends, the guard gets itself: it is in our process group.
            if signal != Signal::CHLD && !from_terminal {
                let _ = process::signal_own_child(guard, signal);
            }
        }
        if let Some(ended) = children::reap(guard) {
            return Ok(crate::exit::mirror(ended));
        }
        if let Some(Change::Stopped(signal)) = children::job_change(guard) {
            signal::suffer(signal);
            let _ = process::signal_own_child(guard, Signal::CONT);
        }
        if process::own_pid() == 1 {
            reap_strangers(guard);
        }
    }
}

/// As pid 1 we inherit what nobody else waits for.
fn reap_strangers(guard: Pid) {
    while let Some((pid, _)) = children::peek_ended(children::Whom::Any) {
        if pid == guard || children::reap(pid).is_none() {
            return;
        }
    }
}
