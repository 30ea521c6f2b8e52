//! Named servers in the background: started, found again, started anew. A server is a run; what is here is that
//! whoever starts one waits until it serves, and that of many who want the same server one starts it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::control::Request;
use crate::control::client::{ControlError, ask, ask_until_released};
use crate::launch::{self, FATAL, LaunchError};
use crate::output;
use crate::owner;
use crate::port::claim::Person;
use crate::ports::{self, PortChoice};
use crate::recover;
use crate::registry::RegistryError;
use crate::registry::record::{self, Record, State};
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::run::{Kind, RunId, RunSpec};
use crate::service::Check;
use crate::stop::{self, StopError, Wish};
use crate::sys::files::Changes;
use crate::sys::process::Pidfd;
use crate::sys::signal::{self, Signal, SignalQueue};
use crate::sys::sockets::{self, Socket};
use crate::sys::waits;

/// How long a server that was there already may take to be ready, beyond its own time: the longest pause between two
/// starts.
const PATIENCE: Duration = Duration::from_secs(35);
/// So much of the log is told of a server that did not get ready.
const LAST_LINES: usize = 20;
/// And of each line, in characters.
const LONGEST_LINE: usize = 500;

/// The server does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It was not started.
    #[error(transparent)]
    Launch(LaunchError),
    /// The state directory cannot be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The name is that of a run that is no server.
    #[error("'{name}' is run {run}, which is no server")]
    NotAServer {
        /// The name.
        name: String,
        /// The run.
        run: RunId,
    },
    /// One that is to be replaced could not be ended.
    #[error("{name} is to be replaced: {source}")]
    NotReplaced {
        /// Its name.
        name: String,
        /// Why not.
        source: StopError,
    },
    /// Its supervisor does not do it.
    #[error("{name}: {source}")]
    Control {
        /// Its name.
        name: String,
        /// Why not.
        source: ControlError,
    },
    /// It did not get ready.
    #[error("{name} {why}")]
    NotReady {
        /// Its name.
        name: String,
        /// The run.
        run: RunId,
        /// What became of it.
        why: String,
        /// The last lines of its output.
        log: Vec<String>,
    },
    /// A signal ended the wait, and the server that was being started.
    #[error("interrupted by {0}")]
    Interrupted(Signal),
    /// Waiting failed.
    #[error("cannot wait for the server: {0}")]
    Wait(#[from] io::Error),
}

impl From<LaunchError> for ServerError {
    fn from(error: LaunchError) -> ServerError {
        match error {
            LaunchError::Interrupted(signal) => ServerError::Interrupted(signal),
            error => ServerError::Launch(error),
        }
    }
}

/// Who watches a server getting ready.
pub trait Progress {
    /// It is not ready after `waited`.
    fn waits(&self, run: &SeenRun, waited: Duration);
    /// How often that is to be told; `None` for never.
    fn interval(&self) -> Option<Duration>;
    /// There is nothing more to be told.
    fn over(&self);
}

/// How a server was found by [`ensure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It was there.
    There,
    /// It was started.
    Started,
    /// It was started in the place of another one.
    Replaced,
}

/// Starts the server `spec`, and returns when it is ready. On an error nothing of it is left. This process must have
/// one thread.
pub fn start(spec: RunSpec, person: &dyn Person, progress: &dyn Progress) -> Result<SeenRun, ServerError> {
    let root = Root::open()?;
    recover::recover_all_now_and_then(&root);
    let turn = root.turn_of(spec.name.as_deref().unwrap_or_default())?;
    let id = launch::in_background(spec, person, turn)?;
    wait_for_own(seen::find(&root, id.as_str())?, progress)
}

/// Sees that the server `spec` runs: one of its name, command and directory that is well is left alone, another one is
/// replaced, a missing one is started. This process must have one thread.
pub fn ensure(
    mut spec: RunSpec,
    person: &dyn Person,
    progress: &dyn Progress,
) -> Result<(SeenRun, Found), ServerError> {
    let root = Root::open()?;
    recover::recover_all_now_and_then(&root);
    let name = spec.name.clone().unwrap_or_default();
    let turn = root.turn_of(&name)?;
    let there = seen::runs(&root).into_iter().find(|run| run.name() == Some(&name));
    let mut found = Found::Started;
    if let Some(mut run) = there {
        match why_not(&run, &spec)? {
            None => {
                drop(turn);
                keep(&mut run, &spec, person, progress)?;
                return Ok((run, Found::There));
            }
            // What is left of it is ended by the launch.
            Some(_) if run.state == State::Orphaned => {}
            Some(why) => {
                replace(&mut run, &spec, &why, person)?;
                found = Found::Replaced;
            }
        }
        // Whoever asks for any port is served best by the one that is known already.
        keep_ports(&mut spec, &run);
    }
    let id = launch::in_background(spec, person, turn)?;
    Ok((wait_for_own(seen::find(&root, id.as_str())?, progress)?, found))
}

/// Ends the command of `run` and starts it again, on the same port and with the same lease; returns when it is ready.
pub fn restart(
    run: &mut SeenRun,
    grace: Option<Duration>,
    progress: &dyn Progress,
) -> Result<(), ServerError> {
    let before = run.record.as_ref().map_or(0, |record| record.restarts);
    let request = Request::Restart { grace_s: grace.map(|span| span.as_secs_f64()) };
    let asked = ask_until_released(run, &request);
    asked.map_err(|source| ServerError::Control { name: title(run), source })?;
    wait_until_ready(run, before + 1, None, progress)
}

/// Returns why `run` is not the server that `spec` describes, or cannot be expected to serve.
fn why_not(run: &SeenRun, spec: &RunSpec) -> Result<Option<String>, ServerError> {
    let Ok(record) = &run.record else { return Ok(Some("has a record that cannot be read".to_owned())) };
    if record.kind != Kind::Server {
        let name = record.name.clone().unwrap_or_default();
        return Err(ServerError::NotAServer { name, run: run.id.clone() });
    }
    let ill = match run.state {
        State::Ready | State::Running if !answers(record) => Some("takes no connections".to_owned()),
        State::Ready | State::Running | State::Starting | State::Restarting => None,
        State::Unhealthy => {
            let why = record.trouble.as_ref().map_or(String::new(), |why| format!(" ({why})"));
            Some(format!("is unhealthy{why}"))
        }
        State::Stopping | State::Orphaned | State::Finished => Some(format!("is {}", run.state.word())),
    };
    let differs = || difference(record, spec);
    let settings = || {
        let names = other_settings(record, spec);
        (spec.force && !names.is_empty()).then(|| format!("has another {}", names.join(", ")))
    };
    Ok(ill.or_else(differs).or_else(settings))
}

/// Returns what `record` has another one of than `spec`: command, directory or ports.
fn difference(record: &Record, spec: &RunSpec) -> Option<String> {
    let words = spec.command.iter().map(|word| ports::substitute(word, &record.ports));
    if !words.map(|word| word.to_string_lossy().into_owned()).eq(record.command.iter().cloned()) {
        return Some("runs another command".to_owned());
    }
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if real(Path::new(&record.cwd)) != real(&launch::start_directory(spec)) {
        return Some(format!("runs in {}", record.cwd));
    }
    let fits = |(choice, port): (&PortChoice, &u16)| match choice {
        PortChoice::Auto => true,
        PortChoice::One(wanted) => wanted == port || spec.fallback,
        PortChoice::Range(range) => range.ports().contains(port) || spec.fallback,
    };
    let same = spec.ports.len() == record.ports.len() && spec.ports.iter().zip(&record.ports).all(fits);
    (!same).then(|| "has other ports".to_owned())
}

/// Returns the settings that differ and do not make it another server.
fn other_settings(record: &Record, spec: &RunSpec) -> Vec<&'static str> {
    let texts = |checks: &[Check]| checks.iter().map(ToString::to_string).collect::<Vec<_>>();
    let table = [
        ("env", record.env_mark.is_some_and(|mark| mark != record::env_mark(&spec.env))),
        ("limits", record.limits != spec.limits),
        ("ready", record.ready != texts(&spec.service.ready)),
        ("health", record.health_checks != texts(&spec.service.health)),
        ("restart", record.restart != spec.service.restart),
        ("grace", record.grace_s != spec.grace.as_secs_f64()),
    ];
    table.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

/// Lets `run` go on: its lease is granted anew, and what it has otherwise than it was asked for is told.
fn keep(
    run: &mut SeenRun,
    spec: &RunSpec,
    person: &dyn Person,
    progress: &dyn Progress,
) -> Result<(), ServerError> {
    let others = run.record.as_ref().map(|record| other_settings(record, spec)).unwrap_or_default();
    if !others.is_empty() {
        let names = others.join(", ");
        person.hears(&format!("{} runs with another {names}; --force replaces it", title(run)));
    }
    let limit = spec.service.ready_timeout.map(|span| span + PATIENCE);
    wait_until_ready(run, 0, limit, progress)?;
    // One that is ending just now is found out by whoever uses it.
    let renewal = Request::Renew { ttl_s: spec.ttl.map(|ttl| ttl.as_secs_f64()) };
    if ask(&run.directory, renewal).is_ok() {
        run.reread();
    }
    Ok(())
}

/// Returns whether the first port of `record` takes connections, if it had to for the server to be ready.
pub fn answers(record: &Record) -> bool {
    let listens = |check: &String| ["port", "http:", "ws:"].iter().any(|it| check.starts_with(it));
    let asked = record.ready.iter().any(listens);
    record.ports.first().filter(|_| asked).is_none_or(|port| takes_connections(*port))
}

/// Returns whether somebody takes connections to `port` on this machine.
pub fn takes_connections(port: u16) -> bool {
    const PATIENCE: Duration = Duration::from_millis(500);
    let local: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let places = match sockets::list(&[sockets::State::Listening], Some(port)) {
        Ok(found) => found.iter().flat_map(Socket::reachable_at).collect(),
        // Where the kernel cannot be asked.
        Err(_) => local.map(|ip| SocketAddr::new(ip, port)).to_vec(),
    };
    places.iter().any(|place| TcpStream::connect_timeout(place, PATIENCE).is_ok())
}

fn replace(run: &mut SeenRun, spec: &RunSpec, why: &str, person: &dyn Person) -> Result<(), ServerError> {
    let name = title(run);
    let stranger = run.record.as_ref().ok().and_then(owner::stranger_of).filter(|_| !spec.steal);
    if let Some(owner) = stranger {
        let owner = owner::title(&owner);
        return Err(LaunchError::OthersName { name, run: run.id.clone(), owner }.into());
    }
    person.hears(&format!("{name} {why}, and is replaced"));
    stop::stop(run, None, Wish::Displace).map_err(|source| ServerError::NotReplaced { name, source })
}

fn keep_ports(spec: &mut RunSpec, before: &SeenRun) {
    let Ok(record) = &before.record else { return };
    for (choice, port) in spec.ports.iter_mut().zip(&record.ports) {
        if *choice == PortChoice::Auto {
            *choice = PortChoice::One(*port);
            spec.fallback = true;
        }
    }
}

/// Waits for a server that this process has started: a signal ends it too.
fn wait_for_own(mut run: SeenRun, progress: &dyn Progress) -> Result<SeenRun, ServerError> {
    match wait_until_ready(&mut run, 0, None, progress) {
        Err(ServerError::Interrupted(signal)) => {
            let name = title(&run);
            stop::stop(&mut run, None, Wish::Stop)
                .map_err(|source| ServerError::NotReplaced { name, source })?;
            Err(ServerError::Interrupted(signal))
        }
        result => result.map(|()| run),
    }
}

/// Waits until `run` is ready, at least `restarts` times started again; its supervisor ends it if that takes too long.
fn wait_until_ready(
    run: &mut SeenRun,
    restarts: u32,
    limit: Option<Duration>,
    progress: &dyn Progress,
) -> Result<(), ServerError> {
    signal::block(&FATAL);
    let waited = wait(run, restarts, limit, progress);
    signal::unblock(&FATAL);
    progress.over();
    waited
}

fn wait(
    run: &mut SeenRun,
    restarts: u32,
    limit: Option<Duration>,
    progress: &dyn Progress,
) -> Result<(), ServerError> {
    let begun = Instant::now();
    let (queue, changes) = (SignalQueue::open(&FATAL)?, Changes::within(&run.directory)?);
    loop {
        // Who is dead before the lock is asked after needs no more waiting for.
        let supervised = run.is_supervised();
        run.reread();
        if let Ok(record) = &run.record {
            run.state = record.state;
            if [State::Ready, State::Unhealthy].contains(&record.state) && record.restarts >= restarts {
                return Ok(());
            }
        }
        if !supervised {
            run.state = State::Finished;
            return Err(not_ready(run, what_became(run)));
        }
        if limit.is_some_and(|limit| begun.elapsed() > limit) {
            return Err(not_ready(run, "does not get ready".to_owned()));
        }
        progress.waits(run, begun.elapsed());
        let keepers = run.record.iter().flat_map(|record| [&record.guard, &record.supervisor]).flatten();
        let pinned: Vec<Pidfd> = keepers.filter_map(|keeper| keeper.pin()).collect();
        let mut fds = vec![(queue.as_fd(), true), (changes.as_fd(), true)];
        fds.extend(pinned.iter().map(|pidfd| (pidfd.as_fd(), true)));
        // Another pid namespace's are not seen.
        let unseen = pinned.is_empty().then_some(Duration::from_millis(100));
        let pause = [progress.interval(), unseen, limit].into_iter().flatten().min();
        waits::any(&fds, pause)?;
        if let Some(signal) = queue.next() {
            return Err(ServerError::Interrupted(signal));
        }
        changes.clear();
    }
}

fn not_ready(run: &SeenRun, why: String) -> ServerError {
    let log = output::last_lines(&run.directory, LAST_LINES);
    let log = log.iter().map(|line| line.text().chars().take(LONGEST_LINE).collect());
    ServerError::NotReady { name: title(run), run: run.id.clone(), why, log: log.collect() }
}

fn what_became(run: &SeenRun) -> String {
    use crate::exit::Reason;
    let Ok(record) = &run.record else { return "was lost before it was ready".to_owned() };
    let trouble = record.trouble.as_ref().map_or(String::new(), |why| format!(": {why}"));
    match record.end.as_ref().map(|end| (end.reason, end.signal, end.code)) {
        Some((Reason::ReadyTimeout, ..)) => format!("did not get ready in time{trouble}"),
        Some((Reason::Exit | Reason::Signal | Reason::CpuTime, Some(signal), _)) => {
            format!("died of {signal} before it was ready")
        }
        Some((Reason::Exit, None, code)) => format!("ended with code {code} before it was ready"),
        Some((Reason::LaunchFailed, ..)) => format!("could not be started{trouble}"),
        Some((reason, ..)) => format!("was ended before it was ready ({})", reason.word()),
        None => "was lost before it was ready: guard and supervisor were killed".to_owned(),
    }
}

fn title(run: &SeenRun) -> String {
    run.name().map_or_else(|| run.id.to_string(), str::to_owned)
}
