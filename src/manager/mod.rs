//! Sessions for orchestrators: a [`Manager`] starts interactive programs, talks with them and ends them.
//!
//! Each session is a run with a guard and a supervisor of its own, started through the `agent-run` binary, whose owner
//! is this process: dropping the manager ends its sessions, and so does SIGKILL of this process. A manager can be used from
//! many tasks at once; each session deals with one message after the other.
//!
//! ```no_run
//! # async fn example() -> Result<(), agent_run::manager::ManagerError> {
//! use agent_run::manager::{Manager, ManagerConfig, SessionSpec};
//!
//! let manager = Manager::new(ManagerConfig::default());
//! let shell = manager.spawn(SessionSpec::provider("bash")).await?;
//! let answer = manager.send(&shell, "echo $((6 * 7))").await?;
//! assert_eq!((answer.text.as_str(), answer.reply.status), ("42\n", Some(0)));
//! manager.shutdown(std::time::Duration::from_secs(5)).await
//! # }
//! ```

mod error;
mod launch;
mod stream;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

pub use error::ManagerError;
pub use stream::{Piece, ReplyStream};

use crate::control::Request;
use crate::control::client::{ask, tell};
use crate::control::frames::Reply;
use crate::limits::Limits;
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::run::RunId;
use crate::session::connection::{Exchange, Sending};
use crate::session::health::{Health, ProcessHealth, look};
use crate::stop::{self, Wish};
use launch::launch;
use stream::Link;

/// What holds for all sessions of a manager.
#[derive(Clone, Debug)]
pub struct ManagerConfig {
    /// So many sessions of the user may live at once, those of others included.
    pub max_processes: u32,
    /// How long a place is waited for.
    pub wait: Duration,
    /// A session that has had nothing to do for so long ends; never if `None`.
    pub idle_timeout: Option<Duration>,
    /// How long a reply is waited for; for ever if `None`.
    pub timeout: Option<Duration>,
    /// A reply that [`Manager::send`] gives is never larger, in bytes.
    pub max_reply: usize,
}

impl Default for ManagerConfig {
    fn default() -> ManagerConfig {
        ManagerConfig {
            max_processes: 20,
            wait: Duration::ZERO,
            idle_timeout: Some(Duration::from_secs(300)),
            timeout: None,
            max_reply: 64 << 20,
        }
    }
}

/// What is to be started.
#[derive(Clone, Debug, Default)]
pub struct SessionSpec {
    /// A provider: `claude`, `codex`, `gemini`, `bash`, `python`, `node`, or one of `agent-run.toml`.
    pub provider: Option<String>,
    /// The command, in place of the provider's.
    pub command: Vec<OsString>,
    /// The protocol, in place of the provider's; see [`crate::protocol::parse`].
    pub protocol: Option<String>,
    /// A name, unique among live runs.
    pub name: Option<String>,
    /// Whether an idle session of the same provider, directory and settings will do.
    pub reuse: bool,
    /// Whether the program may do what it asks for.
    pub approve: bool,
    /// Where it starts.
    pub directory: Option<PathBuf>,
    /// Variables added to this process's.
    pub env: Vec<(OsString, OsString)>,
    /// The lease.
    pub ttl: Option<Duration>,
    /// Limits of each process and of the tree.
    pub limits: Limits,
}

impl SessionSpec {
    /// One of a provider.
    pub fn provider(name: &str) -> SessionSpec {
        SessionSpec { provider: Some(name.to_owned()), ..SessionSpec::default() }
    }

    /// One of a command and a protocol.
    pub fn command<I, S>(command: I, protocol: &str) -> SessionSpec
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        let command = command.into_iter().map(Into::into).collect();
        SessionSpec { command, protocol: Some(protocol.to_owned()), ..SessionSpec::default() }
    }
}

/// A whole reply.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its text, invalid UTF-8 replaced.
    pub text: String,
    /// How it ended.
    pub reply: Reply,
}

/// A session of a manager.
struct Session {
    /// A connection that nobody uses just now.
    link: Mutex<Option<Link>>,
}

/// Starts sessions, talks with them, and ends them when it is dropped.
pub struct Manager {
    config: ManagerConfig,
    sessions: Mutex<HashMap<RunId, Arc<Session>>>,
}

impl Manager {
    /// Makes one without sessions.
    pub fn new(config: ManagerConfig) -> Manager {
        Manager { config, sessions: Mutex::new(HashMap::new()) }
    }

    /// Starts a session, and returns when it takes messages; dropped before that, the session ends. Errors: [`ManagerError::ProcessLimit`],
    /// [`ManagerError::ResourceLimit`], and [`ManagerError::Spawn`] for all else that keeps it from starting.
    pub async fn spawn(&self, spec: SessionSpec) -> Result<RunId, ManagerError> {
        let config = self.config.clone();
        let (give, given) = oneshot::channel();
        // Whoever has given up the start takes nothing, and what was started ends.
        drop(spawn_blocking(move || drop(give.send(launch(&config, &spec)))));
        let id = given.await.unwrap_or_else(|_| Err(task_lost()))?.keep();
        self.sessions().entry(id.clone()).or_insert_with(|| Arc::new(Session { link: Mutex::new(None) }));
        Ok(id)
    }

    /// Sends a message, and returns the whole reply.
    pub async fn send(&self, id: &RunId, text: &str) -> Result<Answer, ManagerError> {
        let sending = Sending { timeout: self.config.timeout, ..Sending::default() };
        let mut stream = self.start(id, text, sending).await?;
        let mut bytes = Vec::new();
        loop {
            let piece = stream.next().await.map_err(|error| match error {
                ManagerError::Died { reason, .. } => {
                    ManagerError::Died { reason, partial: String::from_utf8_lossy(&bytes).into_owned() }
                }
                error => error,
            })?;
            match piece {
                Piece::Text(more) if bytes.len() + more.len() > self.config.max_reply => {
                    let most = self.config.max_reply;
                    return Err(ManagerError::ResourceLimit(format!(
                        "the reply is larger than {most} bytes"
                    )));
                }
                Piece::Text(more) => bytes.extend_from_slice(&more),
                Piece::End(reply) => {
                    return Ok(Answer { text: String::from_utf8_lossy(&bytes).into_owned(), reply: *reply });
                }
            }
        }
    }

    /// Sends a message, and returns its reply as it comes. Dropped before its end, the session still deals with it.
    pub async fn stream(&self, id: &RunId, text: &str) -> Result<ReplyStream, ManagerError> {
        let sending = Sending { timeout: self.config.timeout, stream: true, ..Sending::default() };
        self.start(id, text, sending).await
    }

    /// As [`Manager::send`] and [`Manager::stream`], with all that can be said of how: the reply as it comes.
    pub async fn start(&self, id: &RunId, text: &str, sending: Sending) -> Result<ReplyStream, ManagerError> {
        let session = self.session(id)?;
        let kept = session.link.lock().unwrap_or_else(PoisonError::into_inner).take();
        let link = match kept {
            Some(link) if link.is_open() => link,
            _ => {
                let id = id.clone();
                Link::of(blocking(move || Ok(Exchange::open(&living(&id)?)?)).await?)?
            }
        };
        ReplyStream::begin(link, session, text, sending).await
    }

    /// Asks for the end of the reply that goes on: by the protocol, then by Ctrl-C.
    pub async fn interrupt(&self, id: &RunId) -> Result<(), ManagerError> {
        self.session(id)?;
        let id = id.clone();
        blocking(move || Ok(ask(&living(&id)?.directory, Request::Interrupt).map(drop)?)).await
    }

    /// Ends a session; returns when nothing of it is left.
    pub async fn terminate(&self, id: &RunId) -> Result<(), ManagerError> {
        self.session(id)?;
        let id = id.clone();
        blocking({
            let id = id.clone();
            move || end(&id, None)
        })
        .await?;
        self.sessions().remove(&id);
        Ok(())
    }

    /// Returns how a session is; `None` if this manager has none of that id, or if it has ended.
    pub async fn get(&self, id: &RunId) -> Option<ProcessHealth> {
        self.session(id).ok()?;
        self.health().await.processes.into_iter().find(|process| process.id == *id)
    }

    /// Returns the ids of the sessions that were started and not terminated.
    pub fn list(&self) -> Vec<RunId> {
        self.sessions().keys().cloned().collect()
    }

    /// Returns how the sessions are. Those that have ended are told as dead once, and forgotten.
    pub async fn health(&self) -> Health {
        let ids = self.list();
        let look_at_all = move || {
            let root = Root::open_existing().ok().flatten();
            let found = ids.iter().filter_map(|id| seen::find(root.as_ref()?, id.as_str()).ok()).collect();
            Ok(Health::of(&look(found)))
        };
        let none =
            Health { total_processes: 0, alive_processes: 0, dead_processes: 0, processes: Vec::new() };
        let health = blocking(look_at_all).await.unwrap_or(none);
        let mut sessions = self.sessions();
        health.processes.iter().filter(|it| !it.alive).for_each(|it| drop(sessions.remove(&it.id)));
        health
    }

    /// Ends the sessions that have had nothing to do for longer than `idle_timeout`, and returns their ids. They would end by
    /// themselves a little later.
    pub async fn cleanup_idle(&self) -> Vec<RunId> {
        let Some(limit) = self.config.idle_timeout else { return Vec::new() };
        let is_idle = |it: &ProcessHealth| {
            it.alive && !it.busy && it.idle_time.is_some_and(|idle| idle >= limit.as_secs_f64())
        };
        let idle: Vec<RunId> =
            self.health().await.processes.into_iter().filter(is_idle).map(|it| it.id).collect();
        let mut ended = Vec::new();
        for id in idle {
            if self.terminate(&id).await.is_ok() {
                ended.push(id);
            }
        }
        ended
    }

    /// Ends all sessions at once: politely, by force after `timeout`. Returns when nothing of them is left.
    pub async fn shutdown(&self, timeout: Duration) -> Result<(), ManagerError> {
        let ids: Vec<RunId> = self.sessions().drain().map(|(id, _)| id).collect();
        let ends: Vec<_> =
            ids.into_iter().map(|id| spawn_blocking(move || end(&id, Some(timeout)))).collect();
        let mut result = Ok(());
        for ended in ends {
            result = result.and(ended.await.unwrap_or_else(|_| Err(task_lost())));
        }
        result
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, Arc<Session>>> {
        // Nothing can panic while it is held.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, id: &RunId) -> Result<Arc<Session>, ManagerError> {
        self.sessions().get(id).cloned().ok_or_else(|| ManagerError::Unknown(id.clone()))
    }
}

impl Drop for Manager {
    /// Asks for the end of what is left; it is not waited for.
    fn drop(&mut self) {
        self.list().iter().for_each(ask_to_end);
    }
}

/// Who cannot be asked ends with this process.
fn ask_to_end(id: &RunId) {
    if let Ok(run) = living(id) {
        let _ = tell(&run.directory, Request::Stop { grace_s: None, displaced: false });
    }
}

fn task_lost() -> ManagerError {
    ManagerError::Spawn("the task was lost".to_owned())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ManagerError> + Send + 'static,
) -> Result<T, ManagerError> {
    spawn_blocking(work).await.unwrap_or_else(|_| Err(task_lost()))
}

fn find(id: &RunId) -> Result<SeenRun, ManagerError> {
    Ok(seen::find(&Root::open()?, id.as_str())?)
}

/// Finds a session that lives; the error says how it has ended.
fn living(id: &RunId) -> Result<SeenRun, ManagerError> {
    let run = find(id)?;
    if run.is_supervised() {
        return Ok(run);
    }
    let end = run.record.as_ref().ok().and_then(|record| record.end.as_ref());
    let reason =
        end.map_or("it was lost".to_owned(), |end| format!("{}, code {}", end.reason.word(), end.code));
    Err(ManagerError::died(reason))
}

fn end(id: &RunId, grace: Option<Duration>) -> Result<(), ManagerError> {
    stop::stop(&mut find(id)?, grace, Wish::Stop).map_err(|error| ManagerError::Spawn(error.to_string()))
}
