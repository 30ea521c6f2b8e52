//! The library's way to runs: started through the `agent-run` binary, then asked by their control socket.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::Duration;

use crate::control::Request;
use crate::control::client::{ControlError, ask, wait_until_released};
use crate::control::link::ToLauncher;
use crate::env as vars;
use crate::exit::SIGNAL_BASE;
use crate::limits::{Bound, Limits};
use crate::ports::PortChoice;
use crate::registry::RegistryError;
use crate::registry::record::{End, Record, RecordError};
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::run::{Isolation, OwnerChoice, RunId, RunSpec, Verbosity};
use crate::sys::spawn;

/// The flag, not shown in the help, that names a descriptor to write the run's id to when the command has
/// been started.
pub const STARTED_FD: &str = "started-fd";

/// A run could not be launched, found or asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no binary to launch with.
    #[error(
        "cannot find the agent-run binary; set AGENT_RUN_BIN or install it beside this program or on PATH"
    )]
    NoBinary,
    /// The binary is of another version than this library.
    #[error("{path} is '{found}', this library needs {wanted}; install that version", path = path.display(), wanted = env!("CARGO_PKG_VERSION"))]
    Version {
        /// The binary.
        path: PathBuf,
        /// What it says of itself.
        found: String,
    },
    /// The binary started no run; what it had to say is on stderr.
    #[error("agent-run started nothing and returned {0}; it said why on stderr")]
    NotStarted(u8),
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The registry refuses.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The run's record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The supervisor refuses.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// A run that this process launched. Dropping it leaves the run alone: its lease, its guard and
/// `agent-run stop` still end it.
#[derive(Debug)]
pub struct Run {
    id: RunId,
    guard: Child,
}

/// Launches `spec` with this process's stdin, stdout, stderr and environment, and returns when the command
/// has been started. Errors if there is no binary of this version, or if nothing was started.
pub fn launch_run(spec: &RunSpec) -> Result<Run, ClientError> {
    let binary = binary()?;
    let (started, writer) = io::pipe()?;
    let mut command = Command::new(binary);
    command.args(arguments(spec, writer.as_raw_fd()));
    spawn::inherit_descriptor(&mut command, writer.as_raw_fd());
    let mut guard = command.spawn()?;
    drop((command, writer));
    match ToLauncher::receive(started) {
        Some(ToLauncher::Started(id)) => Ok(Run { id, guard }),
        _ => Err(ClientError::NotStarted(code_of(guard.wait()?))),
    }
}

fn code_of(status: std::process::ExitStatus) -> u8 {
    let signal = status.signal().map(|signal| i32::from(SIGNAL_BASE) + signal);
    status.code().or(signal).unwrap_or_default() as u8
}

impl Run {
    /// Returns the run's id.
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// Returns the run's record as it is now.
    pub fn record(&self) -> Result<Record, ClientError> {
        Ok(self.seen()?.record?)
    }

    /// Blocks until the run is over and nothing of it is left, and returns how it ended.
    pub fn wait(mut self) -> Result<End, ClientError> {
        let code = code_of(self.guard.wait()?);
        // A guard that was killed leaves the end to the supervisor.
        let mut run = self.seen()?;
        wait_until_released(&mut run, None)?;
        run.reread();
        run.record?.end.ok_or(ClientError::NotStarted(code))
    }

    /// Asks for the end, with `grace` in place of the run's own; [`Run::wait`] tells when it is over.
    pub fn stop(&self, grace: Option<Duration>) -> Result<(), ClientError> {
        self.ask(Request::Stop { grace_s: grace.map(|span| span.as_secs_f64()), displaced: false })
    }

    /// Grants the lease anew: `ttl` from now on, `None` for no lease.
    pub fn renew(&self, ttl: Option<Duration>) -> Result<(), ClientError> {
        self.ask(Request::Renew { ttl_s: ttl.map(|span| span.as_secs_f64()) })
    }

    fn ask(&self, request: Request) -> Result<(), ClientError> {
        ask(&self.seen()?.directory, request)?;
        Ok(())
    }

    fn seen(&self) -> Result<SeenRun, ClientError> {
        Ok(seen::find(&Root::open()?, self.id.as_str())?)
    }
}

/// Returns the binary to launch with, checked once a process.
pub(crate) fn binary() -> Result<&'static Path, ClientError> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = FOUND.get() {
        return Ok(path);
    }
    let path = find_binary().ok_or(ClientError::NoBinary)?;
    let output = Command::new(&path).arg("--version").output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if said != format!("agent-run {}", env!("CARGO_PKG_VERSION")) {
        return Err(ClientError::Version { path, found: said });
    }
    Ok(FOUND.get_or_init(|| path))
}

fn find_binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(vars::BIN).filter(|named| !named.is_empty()) {
        return Some(named.into());
    }
    let beside = std::env::current_exe().ok().and_then(|host| Some(host.parent()?.join("agent-run")));
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|path| {
        std::env::split_paths(&path).map(|directory| directory.join("agent-run")).collect::<Vec<_>>()
    });
    beside.into_iter().chain(on_path).find(|candidate| candidate.is_file())
}

/// Returns the command line for `spec`. All is said by flags, so that no file or variable changes it.
fn arguments(spec: &RunSpec, started: i32) -> Vec<OsString> {
    let mut words: Vec<OsString> =
        vec!["run".into(), "--flags-alone".into(), word(STARTED_FD, started.to_string())];
    let seconds = |span: Option<Duration>| span.map_or("0".to_owned(), |span| span.as_secs_f64().to_string());
    words.push(word("ttl", seconds(spec.ttl)));
    words.push(word("idle", seconds(spec.idle)));
    words.push(word("grace", seconds(Some(spec.grace))));
    words.push(word("signal", spec.signal.number().to_string()));
    words.push(word("keep", spec.keep.word()));
    words.push(word(
        "owner",
        match spec.owner {
            OwnerChoice::None => "none".to_owned(),
            OwnerChoice::Auto => "auto".to_owned(),
            // The binary's parent is this process.
            OwnerChoice::Parent => "parent".to_owned(),
            OwnerChoice::Pid(pid) => pid.to_string(),
        },
    ));
    words.push(word("isolate", if spec.isolation == Isolation::Pid { "pid" } else { "none" }));
    words.push(word("cgroup", spec.cgroup.to_string()));
    words.extend(spec.events.iter().map(|path| word("events", path)));
    words.extend(spec.name.iter().map(|name| word("name", name)));
    words.extend(spec.labels.iter().map(|(key, value)| word("label", format!("{key}={value}"))));
    words.extend(spec.copies.iter().map(|path| word("copy", path)));
    words.extend(spec.chdir.iter().map(|path| word("chdir", path)));
    words.extend(spec.log.iter().map(|path| word("log", path)));
    words.extend(spec.env.iter().map(|(name, value)| {
        let mut pair = word("env", name);
        pair.push("=");
        pair.push(value);
        pair
    }));
    words.extend(port_words(spec));
    words.extend(limit_words(&spec.limits));
    words.extend(spec.scratch.then(|| "--scratch".into()));
    words.extend(spec.preserve_status.then(|| "--preserve-status".into()));
    words.extend((spec.verbosity == Verbosity::Quiet).then(|| "--quiet".into()));
    words.extend((spec.verbosity == Verbosity::Verbose).then(|| "--verbose".into()));
    words.push("--".into());
    words.extend(spec.command.iter().cloned());
    words
}

/// Joins flag and value by `=`, so that no value is taken for a flag.
fn word(flag: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut word = OsString::from(format!("--{flag}="));
    word.push(value);
    word
}

fn port_words(spec: &RunSpec) -> Vec<OsString> {
    let text = |choice: &PortChoice| match choice {
        PortChoice::Auto => "auto".to_owned(),
        PortChoice::One(port) => port.to_string(),
        PortChoice::Range(range) => range.to_string(),
    };
    let mut words: Vec<OsString> = spec.ports.iter().map(|choice| word("port", text(choice))).collect();
    words.push(word("claim", spec.claim.word()));
    words.push(word("port-range", spec.port_range.to_string()));
    words.extend((!spec.protect.is_empty()).then(|| word("protect", spec.protect.join(","))));
    let switches = [("--force", spec.force), ("--steal", spec.steal), ("--fallback", spec.fallback)];
    words.extend(switches.into_iter().filter(|(_, on)| *on).map(|(switch, _)| switch.into()));
    words
}

pub(crate) fn limit_words(limits: &Limits) -> impl Iterator<Item = OsString> {
    let table = [
        ("nofile", limits.nofile),
        ("fsize", limits.fsize),
        ("data", limits.data),
        ("core", limits.core),
        ("cpu-time", limits.cpu_time),
    ];
    let of_tree = [("memory", limits.memory), ("cpu", limits.cpu_percent), ("pids", limits.pids)];
    let of_tree = of_tree.into_iter().filter_map(|(name, limit)| Some(word(name, limit?.to_string())));
    table.into_iter().filter_map(|(name, bound)| Some(word(name, bound_text(bound?)))).chain(of_tree)
}

fn bound_text(bound: Bound) -> String {
    let side = |value: Option<u64>| match value {
        Some(u64::MAX) => "unlimited".to_owned(),
        Some(value) => value.to_string(),
        None => String::new(),
    };
    format!("{}:{}", side(bound.soft), side(bound.hard))
}
