//! Errors as a person and a program get them: message, hint, kind and exit code, given here alone.

use crate::control::client::ControlError;
use crate::exit;
use crate::launch::LaunchError;
use crate::pool::PoolError;
use crate::port::claim::ClaimError;
use crate::port::verdict::Spared;
use crate::readiness::NotReady;
use crate::registry::RegistryError;
use crate::registry::record::RecordError;
use crate::server::ServerError;
use crate::session::SessionError;
use crate::settings::SettingError;

/// What went wrong, for the printer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One word of a fixed list, for programs.
    pub kind: &'static str,
    /// What happened, to what.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// What `agent-run` returns.
    pub code: u8,
    /// The last lines of the output of what has failed.
    pub log: Vec<String>,
}

impl Failure {
    /// A wrong call.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure {
            kind: "usage",
            message: message.into(),
            hint: Some(hint.into()),
            code: exit::USAGE,
            log: Vec::new(),
        }
    }

    /// Something that was tried and could not be done.
    pub fn new(kind: &'static str, message: String, hint: Option<&str>, code: u8) -> Failure {
        failure(kind, message, hint, code)
    }

    /// Makes it one of the run form, in which the command's codes are not taken.
    #[must_use]
    pub fn of_run_form(self) -> Failure {
        Failure { code: exit::OWN_FAILURE, ..self }
    }

    /// Returns the one line for a person.
    pub fn line(&self) -> String {
        let text = match &self.hint {
            Some(hint) => format!("{}; {hint}", self.message),
            None => self.message.clone(),
        };
        text.replace('\n', " ")
    }
}

fn failure(kind: &'static str, message: String, hint: Option<&str>, code: u8) -> Failure {
    Failure { kind, message, hint: hint.map(str::to_owned), code, log: Vec::new() }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Failure {
        let message = error.to_string();
        match error {
            RegistryError::Unknown(_) => {
                failure("unknown_run", message, Some("agent-run ps --all lists them"), exit::UNKNOWN_RUN)
            }
            RegistryError::Ambiguous { .. } => {
                failure("ambiguous_run", message, Some("write more of the id"), exit::USAGE)
            }
            RegistryError::NameTaken { name, .. } => {
                let hint = format!("end it first (agent-run stop {name}) or choose another name");
                failure("name_taken", message, Some(&hint), exit::USAGE)
            }
            RegistryError::Root { .. } => {
                let hint = "set AGENT_RUN_STATE_DIR to a directory that is yours alone (chmod 700)";
                failure("state_dir", message, Some(hint), exit::USAGE)
            }
            RegistryError::Io { source, .. } => {
                let hint = match source.raw_os_error() {
                    Some(libc::ENOSPC | libc::EDQUOT) => {
                        "make room, or set AGENT_RUN_STATE_DIR to another disk"
                    }
                    _ => "set AGENT_RUN_STATE_DIR to a directory that you can write",
                };
                failure("state_dir", message, Some(hint), exit::USAGE)
            }
        }
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Failure {
        let message = error.to_string();
        let failed = match error {
            LaunchError::Registry(error) => error.into(),
            LaunchError::Path { .. } => failure("path", message, Some("check the path"), exit::OWN_FAILURE),
            LaunchError::Copy(_) => failure("copy", message, Some("nothing was started"), exit::OWN_FAILURE),
            LaunchError::Limit(_) => failure("limit", message, Some("ask for less"), exit::OWN_FAILURE),
            LaunchError::Owner(_) => {
                failure("owner", message, Some("nothing was started"), exit::OWN_FAILURE)
            }
            LaunchError::Isolation(_) => {
                failure("isolation", message, Some("agent-run doctor says what to do"), exit::OWN_FAILURE)
            }
            LaunchError::ForeignProc => {
                let hint = "mount the right one, as in unshare --pid --fork --mount-proc";
                failure("foreign_proc", message, Some(hint), exit::OWN_FAILURE)
            }
            LaunchError::System { .. } => {
                failure("system", message, Some("nothing was started"), exit::OWN_FAILURE)
            }
            LaunchError::Claim(error) => error.into(),
            LaunchError::Pool(PoolError::Memory { .. }) => failure(
                "resource_limit",
                message,
                Some("end something, or ask for less"),
                exit::SOMETHING_REMAINS,
            ),
            LaunchError::Pool(PoolError::Lock(_)) => {
                failure("system", message, None, exit::SOMETHING_REMAINS)
            }
            LaunchError::Pool(_) => {
                let hint =
                    "close one, wait for a place with --wait, or raise the limit (max_sessions and so on)";
                failure("process_limit", message, Some(hint), exit::SOMETHING_REMAINS)
            }
            LaunchError::NameHeld { ref name, .. } => {
                let hint = format!(
                    "end it first (agent-run stop {name}), take it with --force, or choose another name"
                );
                failure("name_taken", message, Some(&hint), exit::OWN_FAILURE)
            }
            LaunchError::OwnName { .. } => {
                failure("name_taken", message, Some("choose another name"), exit::OWN_FAILURE)
            }
            LaunchError::OthersName { .. } => failure(
                "other_owner",
                message,
                Some("choose another name, or take it with --steal"),
                exit::OWN_FAILURE,
            ),
            LaunchError::NameNotFreed { .. } => {
                failure("name_taken", message, Some("nothing was started"), exit::OWN_FAILURE)
            }
            LaunchError::NotStarted { code, .. } => {
                return failure("launch_failed", message, None, code);
            }
            LaunchError::Interrupted(_) => failure("interrupted", message, None, exit::OWN_FAILURE),
        };
        failed.of_run_form()
    }
}

impl From<ClaimError> for Failure {
    fn from(error: ClaimError) -> Failure {
        let message = error.to_string();
        let (kind, hint) = match error {
            ClaimError::Held { port, why: Some(_), .. } => {
                ("port_held", format!("--fallback takes the next free port (agent-run port diagnose {port})"))
            }
            ClaimError::Held { port, .. } => (
                "port_held",
                format!(
                    "--force ends it, --fallback takes the next free port (agent-run port diagnose {port})"
                ),
            ),
            ClaimError::Spared { why: Spared::OtherOwner { .. }, .. } => {
                ("other_owner", "or take another port (--fallback)".to_owned())
            }
            ClaimError::Spared { port, .. } => (
                "port_held",
                format!("take another port (--fallback), or see agent-run port diagnose {port}"),
            ),
            ClaimError::NotFreed { port, .. } => ("port_held", format!("see agent-run port diagnose {port}")),
            ClaimError::NoneFree(_) => {
                ("port_held", "widen the range, or see agent-run port show who has them".to_owned())
            }
            ClaimError::Twice(_) => ("usage", "name it once".to_owned()),
            ClaimError::Connection(port) => ("port_held", format!("see agent-run port diagnose {port}")),
            ClaimError::Privileged(_) => ("port_privileged", "take a higher one, like 8080".to_owned()),
            ClaimError::Sandbox(_) => {
                ("sandbox", "allow network access, or run outside of the sandbox".to_owned())
            }
            ClaimError::System { source, .. } if source.raw_os_error() == Some(libc::EMFILE) => {
                ("port", "ask for fewer, or raise ulimit -n".to_owned())
            }
            ClaimError::System { .. } => ("port", "nothing was started".to_owned()),
        };
        failure(kind, message, Some(&hint), exit::SOMETHING_REMAINS)
    }
}

impl From<SettingError> for Failure {
    fn from(error: SettingError) -> Failure {
        let message = error.to_string();
        match error {
            SettingError::NoServer { known, .. } if !known.is_empty() => {
                let hint = format!("described are {}; or give it a command after --", known.join(", "));
                failure("unknown_server", message, Some(&hint), exit::UNKNOWN_RUN)
            }
            SettingError::NoServer { .. } => {
                let hint = "give it a command after --, or describe it in agent-run.toml";
                failure("unknown_server", message, Some(hint), exit::UNKNOWN_RUN)
            }
            _ => failure("setting", message, None, exit::USAGE),
        }
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Failure {
        let message = error.to_string();
        let remains = exit::SOMETHING_REMAINS;
        match error {
            ServerError::Launch(error) => of_server(error.into()),
            ServerError::Registry(error) => of_server(error.into()),
            ServerError::NotAServer { .. } => {
                failure("name_taken", message, Some("choose another name, or stop it first"), remains)
            }
            ServerError::NotReplaced { .. } => {
                failure("not_ended", message, Some("agent-run status says more"), remains)
            }
            ServerError::Control { source, .. } => Failure { message, ..source.into() },
            ServerError::NotReady(error) => error.into(),
            ServerError::Lock(_) => failure("system", message, None, remains),
        }
    }
}

impl From<NotReady> for Failure {
    fn from(error: NotReady) -> Failure {
        let message = error.to_string();
        let remains = exit::SOMETHING_REMAINS;
        match error {
            NotReady::Became { run, log, .. } => {
                let hint = format!("agent-run logs {run} has all of its output");
                Failure { log, ..failure("not_ready", message, Some(&hint), remains) }
            }
            NotReady::Interrupted(signal) => {
                let code = exit::Ending::DieOf(signal).code();
                failure("interrupted", message, Some("what was being started was ended"), code)
            }
            NotReady::NotEnded { .. } => {
                failure("not_ended", message, Some("agent-run status says more"), remains)
            }
            NotReady::Wait(_) => failure("system", message, None, remains),
        }
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Failure {
        let message = error.to_string();
        match error {
            SessionError::Launch(error) => of_session(error.into()),
            SessionError::Registry(error) => of_session(error.into()),
            SessionError::NotReady(error) => error.into(),
            SessionError::Lock(_) => failure("system", message, None, exit::SOMETHING_REMAINS),
        }
    }
}

fn of_session(failed: Failure) -> Failure {
    let taken = failed.kind == "name_taken";
    let hint = taken
        .then(|| "--reuse takes the one that lives, --force replaces it; or choose another name".to_owned());
    Failure { code: exit::SOMETHING_REMAINS, hint: hint.or(failed.hint), ..failed }
}

/// The codes of the run form are not those of a verb.
fn of_server(failed: Failure) -> Failure {
    let taken = failed.kind == "name_taken";
    let hint = taken.then(|| {
        "agent-run server ensure takes the one that runs, --force replaces it; or choose another name"
            .to_owned()
    });
    Failure { code: exit::SOMETHING_REMAINS, hint: hint.or(failed.hint), ..failed }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Failure {
        let hint = match error {
            ControlError::NoAnswer(_) => Some("agent-run status shows if it is still there"),
            _ => None,
        };
        failure("control", error.to_string(), hint, exit::SOMETHING_REMAINS)
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Failure {
        failure("record", error.to_string(), None, exit::SOMETHING_REMAINS)
    }
}
