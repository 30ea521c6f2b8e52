//! Named servers in the background: started, found again, started anew. A server is a run; what is here is that
//! whoever starts one waits until it serves, and that of many who want the same server one starts it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::control::Request;
use crate::control::client::{ControlError, ask, ask_until_released};
use crate::launch::{self, LaunchError};
use crate::owner;
use crate::port::claim::Person;
use crate::ports::{self, PortChoice};
use crate::readiness::{self, NotReady, Progress};
use crate::recover;
use crate::registry::RegistryError;
use crate::registry::record::{self, Record, State};
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::run::{Kind, RunId, RunSpec};
use crate::service::Check;
use crate::stop::{self, StopError, Wish};
use crate::sys::sockets::{self, Socket};

/// How long a server that was there already may take to be ready, beyond its own time: the longest pause between two
/// starts.
const PATIENCE: Duration = Duration::from_secs(35);
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
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// Nobody else may start it meanwhile, and that cannot be seen to.
    #[error("cannot lock the name: {0}")]
    Lock(#[from] io::Error),
}

impl From<LaunchError> for ServerError {
    fn from(error: LaunchError) -> ServerError {
        match error {
            LaunchError::Interrupted(signal) => ServerError::NotReady(NotReady::Interrupted(signal)),
            error => ServerError::Launch(error),
        }
    }
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
    Ok(readiness::of_own(seen::find(&root, id.as_str())?, progress)?)
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
    Ok((readiness::of_own(seen::find(&root, id.as_str())?, progress)?, found))
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
    Ok(readiness::of(run, before + 1, None, progress)?)
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
    readiness::of(run, 0, limit, progress)?;
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

fn title(run: &SeenRun) -> String {
    run.name().map_or_else(|| run.id.to_string(), str::to_owned)
}
