//! One run's entry on disk: versioned JSON, which is also what `--json` shows.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::exit::{Ending, Reason};
use crate::limits::Limits;
use crate::ports::ClaimMode;
use crate::protocol::Approvals;
use crate::run::{Keep, Kind, RunId, RunSpec};
use crate::service::Restart;
use crate::sys::clock::BootTime;
use crate::sys::process::{self, Pid, ProcessRef};
use crate::sys::signal::Signal;

/// The version that this program writes. Fields are added without a new one.
pub const VERSION: u32 = 1;

/// An instant in wall time, on disk as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub SystemTime);

impl Timestamp {
    /// Returns the present instant.
    pub fn now() -> Timestamp {
        Timestamp(SystemTime::now())
    }

    /// Returns how long ago it was; zero if the clock says that it is still to come.
    pub fn age(self) -> Duration {
        SystemTime::now().duration_since(self.0).unwrap_or_default()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(self.0).fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map(Timestamp).map_err(serde::de::Error::custom)
    }
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing has been started yet.
    Starting,
    /// The leader lives; of a server, it is not ready yet as long as it is `starting`.
    Running,
    /// It serves.
    Ready,
    /// It was ready, and does not answer as it should.
    Unhealthy,
    /// It has ended and is started again.
    Restarting,
    /// The teardown goes on.
    Stopping,
    /// Nobody supervises it any more. Never on disk: it is seen by the lock.
    Orphaned,
    /// It is over.
    Finished,
}

impl State {
    /// Returns the word that stands in records and tables.
    pub fn word(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Running => "running",
            State::Ready => "ready",
            State::Unhealthy => "unhealthy",
            State::Restarting => "restarting",
            State::Stopping => "stopping",
            State::Orphaned => "orphaned",
            State::Finished => "finished",
        }
    }
}

/// A process that was still there when the teardown gave up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survivor {
    /// The process.
    pub pid: Pid,
    /// Its name.
    pub command: String,
    /// Its state, as in `/proc/PID/stat`.
    pub state: char,
}

/// Whose death ends the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The coding agent that started it.
    pub agent: Option<String>,
    /// The agent's session.
    pub session: Option<String>,
    /// The process.
    #[serde(flatten)]
    pub process: ProcessRef,
}

/// The last look at a server's health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether it was as it should be.
    pub ok: bool,
    /// When.
    pub at: Timestamp,
    /// How long it took to answer, in milliseconds.
    pub latency_ms: u64,
    /// What was wrong.
    pub why: Option<String>,
}

/// A limit of the tree, and how far it was exceeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exceeded {
    /// Bytes or processes.
    pub limit: u64,
    /// The most that was seen.
    pub peak: u64,
}

/// How the run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Why.
    pub reason: Reason,
    /// What `agent-run` returned, as a shell shows it.
    pub code: u8,
    /// The signal that the leader died of.
    pub signal: Option<Signal>,
    /// When the teardown was over.
    pub at: Timestamp,
    /// Whether nothing was left.
    pub verified: bool,
    /// How many processes needed SIGKILL.
    pub killed: u32,
    /// The limit that ended it.
    #[serde(default)]
    pub exceeded: Option<Exceeded>,
    /// What was left.
    pub survivors: Vec<Survivor>,
    /// Why the managed directory could not be removed.
    pub dir_error: Option<String>,
}

impl End {
    /// Returns the ending again, as far as it matters for what is kept.
    pub fn code_as_ending(&self) -> Ending {
        Ending::Code(self.code)
    }
}

/// One run's entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// The run.
    pub id: RunId,
    /// Unique among live runs.
    pub name: Option<String>,
    /// What it is for.
    pub kind: Kind,
    /// Where it stands.
    pub state: State,
    /// The command and its arguments, invalid UTF-8 replaced.
    pub command: Vec<String>,
    /// Where the command started.
    pub cwd: String,
    /// For filters.
    pub labels: BTreeMap<String, String>,
    /// The runs that it runs in, outermost first.
    pub parents: Vec<RunId>,
    /// The command's first process.
    pub leader: Option<ProcessRef>,
    /// The process that the caller started.
    pub guard: Option<ProcessRef>,
    /// The leader's parent.
    pub supervisor: Option<ProcessRef>,
    /// Whose death ends it.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// Of which boot the processes are.
    pub boot_id: String,
    /// When the run was entered here.
    pub started_at: Timestamp,
    /// When the lease ends, by the wall clock.
    pub expires_at: Option<Timestamp>,
    /// When the lease ends, in seconds after boot; this one counts.
    pub deadline_boot_s: Option<f64>,
    /// The lease that was asked for last, in seconds.
    pub ttl_s: Option<f64>,
    /// The idle time that was asked for, in seconds.
    pub idle_timeout_s: Option<f64>,
    /// Between the polite signal and SIGKILL, in seconds.
    pub grace_s: f64,
    /// The polite signal.
    pub signal: Signal,
    /// Limits of each process.
    pub limits: Limits,
    /// How its processes are held together.
    pub containment: String,
    /// Its cgroup.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// Its ports, in the order in which they were asked for.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// How they are kept until the command binds them.
    #[serde(default)]
    pub claim: Option<ClaimMode>,
    /// When it got ready, the last time that it was started.
    #[serde(default)]
    pub ready_at: Option<Timestamp>,
    /// What makes it ready.
    #[serde(default)]
    pub ready: Vec<String>,
    /// What makes it healthy.
    #[serde(default)]
    pub health_checks: Vec<String>,
    /// The last look at its health.
    #[serde(default)]
    pub health: Option<Health>,
    /// Whether it is started again.
    #[serde(default)]
    pub restart: Restart,
    /// How often it was.
    #[serde(default)]
    pub restarts: u32,
    /// Why it is not ready, or not well.
    #[serde(default)]
    pub trouble: Option<String>,
    /// Why it was started again the last time.
    #[serde(default)]
    pub restarted_for: Option<String>,
    /// The address at which it was seen to listen.
    #[serde(default)]
    pub host: Option<String>,
    /// A number for the variables that were asked for: another one for others.
    #[serde(default)]
    pub env_mark: Option<u64>,
    /// How a session's program is spoken to.
    #[serde(default)]
    pub protocol: Option<String>,
    /// What a session's program is answered when it asks whether it may do something.
    #[serde(default)]
    pub approvals: Option<Approvals>,
    /// Whether a session's program has a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// What a session's program is.
    #[serde(default)]
    pub provider: Option<String>,
    /// The managed directory; null once it has been removed.
    pub dir: Option<String>,
    /// What becomes of it.
    pub keep: Keep,
    /// The file that has the output.
    pub log: Option<String>,
    /// The random soft RLIMIT_LOCKS that marks the run's processes.
    pub mark: Option<u64>,
    /// How it ended.
    pub end: Option<End>,
}

impl Record {
    /// Returns the entry that is written before anything is started.
    pub fn starting(id: RunId, spec: &RunSpec, cwd: &Path) -> Record {
        Record {
            version: VERSION,
            id,
            name: spec.name.clone(),
            kind: spec.kind,
            state: State::Starting,
            command: spec.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            cwd: cwd.to_string_lossy().into_owned(),
            labels: spec.labels.iter().cloned().collect(),
            parents: Vec::new(),
            leader: None,
            guard: ProcessRef::of_own(process::own_pid()),
            supervisor: None,
            owner: None,
            boot_id: process::boot_id(),
            started_at: Timestamp::now(),
            expires_at: None,
            deadline_boot_s: None,
            ttl_s: spec.ttl.map(|span| span.as_secs_f64()),
            idle_timeout_s: spec.idle.map(|span| span.as_secs_f64()),
            grace_s: spec.grace.as_secs_f64(),
            signal: spec.signal,
            limits: spec.limits.clone(),
            containment: "subreaper".to_owned(),
            cgroup: None,
            ports: Vec::new(),
            claim: None,
            ready_at: None,
            ready: spec.service.ready.iter().map(ToString::to_string).collect(),
            health_checks: spec.service.health.iter().map(ToString::to_string).collect(),
            health: None,
            restart: spec.service.restart,
            restarts: 0,
            trouble: None,
            restarted_for: None,
            host: None,
            env_mark: Some(env_mark(&spec.env)),
            protocol: spec.session.as_ref().map(|session| session.protocol.to_string()),
            approvals: spec.session.as_ref().map(|session| session.approvals),
            terminal: spec.session.as_ref().is_some_and(|session| session.terminal),
            provider: spec.session.as_ref().and_then(|session| session.provider.clone()),
            dir: None,
            keep: spec.keep,
            log: spec.log.as_ref().map(|path| path.to_string_lossy().into_owned()),
            mark: None,
            end: None,
        }
    }

    /// Returns whether its end has begun, or is over.
    pub fn is_ending(&self) -> bool {
        self.end.is_some() || matches!(self.state, State::Stopping | State::Finished)
    }

    /// Enters when the lease ends.
    pub fn set_deadline(&mut self, deadline: Option<BootTime>, ttl: Option<Duration>) {
        let now = BootTime::now();
        self.deadline_boot_s = deadline.map(|at| at.since_boot().as_secs_f64());
        self.expires_at = deadline.map(|at| Timestamp(SystemTime::now() + at.saturating_since(now)));
        self.ttl_s = ttl.map(|span| span.as_secs_f64());
    }

    /// Returns what is left of the lease; zero if it is over.
    pub fn time_left(&self) -> Option<Duration> {
        let deadline = Duration::try_from_secs_f64(self.deadline_boot_s?).ok()?;
        Some(BootTime::from_boot(deadline).saturating_since(BootTime::now()))
    }

    /// Returns where its first port answers, if it is a web server.
    pub fn url(&self) -> Option<String> {
        let host = self.host.as_deref().and_then(|host| host.parse().ok());
        let host = host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        self.ports.first().map(|port| format!("http://{}", SocketAddr::new(host, *port)))
    }

    /// Returns what a person calls the run: its name, else its id.
    pub fn title(&self) -> &str {
        self.name.as_deref().unwrap_or(self.id.as_str())
    }

    /// Reads an entry, and refuses what it cannot understand without loss.
    pub fn parse(text: &[u8]) -> Result<Record, RecordError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        // Most are ours, so the version is looked at alone only if the whole is not understood.
        let read: Result<Record, _> = serde_json::from_slice(text);
        let head = || serde_json::from_slice(text).ok().map(|head: Head| head.version);
        match read {
            Ok(record) if record.version <= VERSION => Ok(record),
            Ok(record) => Err(RecordError::Newer(record.version)),
            Err(_) if head().is_some_and(|version| version > VERSION) => {
                Err(RecordError::Newer(head().unwrap_or_default()))
            }
            Err(error) => Err(RecordError::Broken(error.to_string())),
        }
    }
}

/// Returns a number for `variables`: their values are no business of a file's.
pub fn env_mark(variables: &[(OsString, OsString)]) -> u64 {
    let mut sorted: Vec<_> = variables.iter().collect();
    sorted.sort();
    let words = sorted.into_iter().flat_map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes(), b"\0"]);
    super::fingerprint(words.flatten())
}

/// An entry that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A newer `agent-run` wrote it.
    #[error("its record has version {0}, which a newer agent-run wrote; use that one")]
    Newer(u32),
    /// It is cut off or no record at all.
    #[error("its record cannot be read: {0}")]
    Broken(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Record {
        let mut spec = RunSpec::new(["sleep", "5"]);
        spec.labels = vec![("team".into(), "web".into())];
        spec.ttl = Some(Duration::from_secs(60));
        Record::starting(RunId::random(), &spec, Path::new("/somewhere"))
    }

    #[test]
    fn a_record_survives_the_disk() {
        let record = example();
        let text = serde_json::to_vec(&record).unwrap();
        let read = Record::parse(&text).unwrap();
        assert_eq!(read.id, record.id);
        assert_eq!(read.labels, record.labels);
        // Milliseconds are kept, what is finer is not.
        assert_eq!(read.started_at.to_string(), record.started_at.to_string());
    }

    #[test]
    fn what_cannot_be_read_is_told_apart() {
        let text = serde_json::to_string(&example()).unwrap();
        for length in [0, 1, text.len() / 2, text.len() - 1] {
            let cut = Record::parse(&text.as_bytes()[..length]);
            assert!(matches!(cut, Err(RecordError::Broken(_))), "{length}");
        }
        assert!(matches!(Record::parse(b"\0\xff"), Err(RecordError::Broken(_))));
        let newer = text.replacen("\"version\":1", "\"version\":2", 1);
        assert_eq!(Record::parse(newer.as_bytes()), Err(RecordError::Newer(2)));
        let more = text.replacen('{', "{\"added_later\":true,", 1);
        assert!(Record::parse(more.as_bytes()).is_ok());
    }

    #[test]
    fn the_deadline_counts_by_the_boot_clock() {
        let mut record = example();
        let ttl = Duration::from_secs(60);
        record.set_deadline(Some(BootTime::now() + ttl), Some(ttl));
        let left = record.time_left().unwrap();
        assert!(left <= ttl && left > Duration::from_secs(50));
        record.expires_at = None;
        assert!(record.time_left().is_some());
    }
}
