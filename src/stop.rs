//! Ending somebody's run and seeing that nothing of it is left: by its supervisor while it lives, else by its
//! marks.

use std::time::Duration;

use crate::control::Request;
use crate::control::client::{ControlError, ask_until_released, wait_until_released};
use crate::recover;
use crate::registry::RegistryError;
use crate::registry::record::{Record, RecordError, State};
use crate::registry::root::Root;
use crate::registry::seen::SeenRun;
use crate::sys::signal::Signal;

/// A run that was not ended.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// Its supervisor does not do it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The state directory cannot be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Its entry cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Something of it lives on.
    #[error("could not be ended: {0}")]
    Survivors(String),
    /// It is an orphan of which somebody else takes care.
    #[error("nobody supervises it, and it could not be taken over; try again")]
    NotTakenOver,
    /// Waiting failed.
    #[error("cannot wait for its end: {0}")]
    Wait(#[from] std::io::Error),
}

/// Why it is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Somebody asked for it.
    Stop,
    /// Somebody wants its port or its name.
    Displace,
}

/// Asks for the end of `run`, with `grace` in place of its own; what is over needs no asking.
pub fn ask(run: &mut SeenRun, grace: Option<Duration>, wish: Wish) -> Result<(), StopError> {
    if run.state == State::Finished {
        return Ok(());
    }
    let displaced = wish == Wish::Displace;
    let request = Request::Stop { grace_s: grace.map(|span| span.as_secs_f64()), displaced };
    match ask_until_released(run, &request) {
        Ok(_) => Ok(()),
        // It is ending already; the lock tells when it has.
        Err(ControlError::NoAnswer(_)) if is_ending(run) || ask_by_signal(run) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_ending(run: &SeenRun) -> bool {
    run.record.as_ref().is_ok_and(Record::is_ending) || !run.is_supervised()
}

/// A supervisor that could make no socket (no inode left) heeds a signal as well.
fn ask_by_signal(run: &SeenRun) -> bool {
    let supervisor = run.record.as_ref().ok().and_then(|record| record.supervisor.as_ref()?.pin());
    supervisor.is_some_and(|supervisor| supervisor.send(Signal::TERM).is_ok())
}

/// Waits for the end of `run`, which was asked for, and ends itself what nobody stands above. Afterwards
/// `run.state` is finished, or the error tells what is left.
pub fn settle(run: &mut SeenRun, grace: Option<Duration>) -> Result<(), StopError> {
    if run.state == State::Finished {
        return Ok(());
    }
    wait_until_released(run, None)?;
    run.reread();
    match &run.record {
        Ok(record) if record.end.is_none() => {
            // Both of its keepers are dead: we end what they left.
            run.state = State::Orphaned;
            recover::recover(Root::open()?, run, grace);
            run.reread();
        }
        Err(_) if recover::remove_broken(&Root::open()?, run, grace) => {
            run.state = State::Finished;
            return Ok(());
        }
        _ => {}
    }
    let end = run.record.as_ref().map(|record| record.end.as_ref()).map_err(Clone::clone)?;
    match end {
        Some(end) if end.verified => {
            run.state = State::Finished;
            Ok(())
        }
        Some(end) => {
            let left: Vec<String> =
                end.survivors.iter().map(|left| format!("pid {} ({})", left.pid, left.command)).collect();
            Err(StopError::Survivors(left.join(", ")))
        }
        None => Err(StopError::NotTakenOver),
    }
}

/// Ends `run`: [`ask`] and [`settle`].
pub fn stop(run: &mut SeenRun, grace: Option<Duration>, wish: Wish) -> Result<(), StopError> {
    ask(run, grace, wish)?;
    settle(run, grace)
}
