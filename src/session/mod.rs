//! Sessions: interactive programs in the background that answer messages. A session is a run; what is here is how one is
//! started or found again, and how messages reach it.

pub mod connection;
pub mod health;

use std::io;
use std::path::Path;

use crate::control::client::ask;
use crate::control::{Answer, Request};
use crate::launch::{self, LaunchError};
use crate::owner;
use crate::port::claim::Person;
use crate::readiness::{self, NotReady, Progress};
use crate::recover;
use crate::registry::RegistryError;
use crate::registry::record::{self, Record, State};
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::run::{Kind, OwnerChoice, RunSpec};

/// A session was not started.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// It was not launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The state directory cannot be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It did not get ready.
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// Nobody else may start it meanwhile, and that cannot be seen to.
    #[error("cannot lock the name: {0}")]
    Lock(#[from] io::Error),
}

/// Starts the session `spec`, and returns when it takes messages. On an error nothing of it is left. This process must
/// have one thread.
pub fn start(spec: RunSpec, person: &dyn Person, progress: &dyn Progress) -> Result<SeenRun, SessionError> {
    let root = Root::open()?;
    recover::recover_all_now_and_then(&root);
    let turn = root.turn_of(spec.name.as_deref().unwrap_or_default())?;
    let id = launch::in_background(spec, person, turn)?;
    Ok(readiness::of_own(seen::find(&root, id.as_str())?, progress)?)
}

/// Takes a session like `spec` that has nothing to do, if there is one: of the same command, protocol, directory, limits,
/// variables and owner.
pub fn idle_one_like(spec: &RunSpec) -> Result<Option<SeenRun>, SessionError> {
    let Some(root) = Root::open_existing()? else { return Ok(None) };
    let is_like = |run: &SeenRun| {
        let named = spec.name.is_none() || run.name() == spec.name.as_deref();
        named && run.state == State::Ready && run.record.as_ref().is_ok_and(|record| fits(record, spec))
    };
    // Of two who want it at once one gets it.
    let is_given = |run: &SeenRun| matches!(ask(&run.directory, Request::Take), Ok(Answer::Done));
    Ok(seen::runs(&root).into_iter().find(|run| is_like(run) && is_given(run)))
}

fn fits(record: &Record, spec: &RunSpec) -> bool {
    let protocol = spec.session.as_ref().map(|session| session.protocol.to_string());
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    record.kind == Kind::Session
        && record.protocol == protocol
        && record
            .command
            .iter()
            .map(String::as_str)
            .eq(spec.command.iter().map(|word| word.to_string_lossy()))
        && real(Path::new(&record.cwd)) == real(&launch::start_directory(spec))
        && record.env_mark == Some(record::env_mark(&spec.env))
        && record.limits == spec.limits
        && spec.session.as_ref().is_some_and(|session| {
            record.approvals == Some(session.approvals) && record.terminal == session.terminal
        })
        && match spec.owner {
            // Another one's would end with that one.
            OwnerChoice::Pid(pid) => record.owner.as_ref().is_some_and(|owner| owner.process.pid == pid),
            OwnerChoice::None => record.owner.is_none(),
            OwnerChoice::Auto | OwnerChoice::Parent => owner::stranger_of(record).is_none(),
        }
}

/// Returns the living sessions, oldest first.
pub fn living(root: &Root) -> Vec<SeenRun> {
    seen::runs(root).into_iter().filter(is_session).collect()
}

/// Returns whether `run` is a session.
pub fn is_session(run: &SeenRun) -> bool {
    run.record.as_ref().is_ok_and(|record| record.kind == Kind::Session)
}
