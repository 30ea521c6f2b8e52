//! Starting a run that nobody waits for.

use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, OwnedFd};

use super::{FATAL, LaunchError, guard, system, take};
use crate::control::link::ToLauncher;
use crate::exit::{Ending, OWN_FAILURE};
use crate::port::claim::Person;
use crate::registry::RegistryError;
use crate::run::{RunId, RunSpec};
use crate::sys::children::{self, Change};
use crate::sys::process::{self, Pid};
use crate::sys::signal::{self, SignalQueue};
use crate::sys::spawn::{self, Forked};
use crate::sys::{inherit, waits};

/// Starts `spec` with a guard in a session of its own, which has nothing of the caller's but its environment and working
/// directory, and returns when the command has been started. `person` is asked before somebody is displaced; `turn`,
/// a lock, is not handed on. Afterwards [`FATAL`] is blocked, so that whoever waits for more can heed it; not if there is
/// an error. This process must have one thread.
pub fn in_background(mut spec: RunSpec, person: &dyn Person, turn: File) -> Result<RunId, LaunchError> {
    spec.background = true;
    let (answer, tell) = io::pipe().map_err(system("make a pipe"))?;
    let tell = File::from(OwnedFd::from(tell));
    let report = tell.try_clone().map_err(system("copy a descriptor"))?;
    let given = take(&mut spec, Some(tell), person)?;
    signal::block(&FATAL);
    let forked = spawn::fork().map_err(system("fork")).inspect_err(|_| signal::unblock(&FATAL))?;
    match forked {
        Forked::Child => {
            drop((answer, turn));
            signal::block_all();
            // Whoever looks for the command by its words means the command, and not us.
            let name = spec.name.as_deref().unwrap_or_default();
            inherit::rename_process(c"agent-run", &format!("agent-run: {} {name}", spec.kind.word()));
            let ended =
                spawn::detach().map_err(system("leave the terminal")).and_then(|()| guard(spec, given));
            let code = match ended {
                Ok(Ending::Code(code)) => code,
                Ok(Ending::DieOf(_)) => 0,
                Err(error) => {
                    failed(error).send(&report);
                    OWN_FAILURE
                }
            };
            signal::exit_now(i32::from(code))
        }
        Forked::Parent(guard) => {
            drop((given, report));
            listen(guard, answer).inspect_err(|_| signal::unblock(&FATAL))
        }
    }
}

/// Hears what becomes of the launch; a signal that comes meanwhile is the guard's too, and then nothing is left.
fn listen(guard: Pid, answer: PipeReader) -> Result<RunId, LaunchError> {
    let mut interrupted = None;
    // Without a queue (out of descriptors) a signal waits until the launch is over.
    if let Ok(queue) = SignalQueue::open(&FATAL) {
        // Where there is no waiting for both, the launch is waited for.
        while waits::any(&[(answer.as_fd(), true), (queue.as_fd(), true)], None).is_ok_and(|ready| !ready[0])
        {
            while let Some(signal) = queue.next() {
                interrupted = interrupted.or(Some(signal));
                let _ = process::signal_own_child(guard, signal);
            }
        }
    }
    let answer = ToLauncher::receive(answer);
    let Some(signal) = interrupted else { return started(answer) };
    while !matches!(children::wait_for(guard), Ok(Change::Ended(_)) | Err(_)) {}
    Err(LaunchError::Interrupted(signal))
}

fn started(answer: Option<ToLauncher>) -> Result<RunId, LaunchError> {
    match answer {
        Some(ToLauncher::Started(id)) => Ok(id),
        Some(ToLauncher::Failed { code, message }) => Err(LaunchError::NotStarted { code, message }),
        Some(ToLauncher::NameTaken { name, holder }) => Err(RegistryError::NameTaken { name, holder }.into()),
        None => Err(LaunchError::NotStarted {
            code: OWN_FAILURE,
            message: "guard and supervisor were killed before the command was started".to_owned(),
        }),
    }
}

fn failed(error: LaunchError) -> ToLauncher {
    match error {
        LaunchError::Registry(RegistryError::NameTaken { name, holder }) => {
            ToLauncher::NameTaken { name, holder }
        }
        error => ToLauncher::Failed { code: OWN_FAILURE, message: error.to_string() },
    }
}
