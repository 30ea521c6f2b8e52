//! Starting a run that nobody waits for.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use super::{FATAL, LaunchError, guard, system, take};
use crate::control::link::ToLauncher;
use crate::exit::{Ending, OWN_FAILURE};
use crate::port::claim::Person;
use crate::registry::RegistryError;
use crate::run::{RunId, RunSpec};
use crate::sys::signal;
use crate::sys::spawn::{self, Forked};

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
        Forked::Parent(_) => {
            drop((given, report));
            let answer = started(ToLauncher::receive(answer));
            answer.inspect_err(|_| signal::unblock(&FATAL))
        }
    }
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
