//! What can go wrong with sessions of a manager.

use std::io;

use crate::control::client::ControlError;
use crate::control::frames::{Refusal, RefusedFor};
use crate::registry::RegistryError;
use crate::run::RunId;
use crate::session::connection::TalkError;

/// A session was not started, or a message not answered.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// As many sessions as may live do.
    #[error("{0}")]
    ProcessLimit(String),
    /// The reply is not complete in time, and the session still deals with it; or the message's turn did not come.
    #[error("the reply is not complete in time, and goes on")]
    Timeout,
    /// There is too little memory, or a limit cannot be had.
    #[error("{0}")]
    ResourceLimit(String),
    /// It deals with another message.
    #[error("{0}")]
    Busy(String),
    /// It has ended, perhaps in the middle of the reply.
    #[error("the session has ended: {reason}")]
    Died {
        /// How.
        reason: String,
        /// What had come of the reply.
        partial: String,
    },
    /// It was not started.
    #[error("{0}")]
    Spawn(String),
    /// There is no talking with it, or the message cannot be one.
    #[error("{0}")]
    Protocol(String),
    /// This manager has no such session.
    #[error("there is no session {0}")]
    Unknown(RunId),
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ManagerError {
    pub(super) fn died(reason: impl ToString) -> ManagerError {
        ManagerError::Died { reason: reason.to_string(), partial: String::new() }
    }
}

impl From<RegistryError> for ManagerError {
    fn from(error: RegistryError) -> ManagerError {
        match error {
            // The last trace of it is a day old at least.
            RegistryError::Unknown(_) => ManagerError::died("nothing is known of it any more"),
            error => ManagerError::Spawn(error.to_string()),
        }
    }
}

impl From<ControlError> for ManagerError {
    fn from(error: ControlError) -> ManagerError {
        match error {
            ControlError::NoAnswer(_) => ManagerError::died(error),
            ControlError::Stranger(_) | ControlError::Refused(_) => ManagerError::Protocol(error.to_string()),
        }
    }
}

impl From<TalkError> for ManagerError {
    fn from(error: TalkError) -> ManagerError {
        match error {
            TalkError::Control(error) => error.into(),
            TalkError::Refused(refusal) => refusal.into(),
            TalkError::Lost => ManagerError::died(error),
            TalkError::Io(error) => error.into(),
        }
    }
}

impl From<Refusal> for ManagerError {
    fn from(refusal: Refusal) -> ManagerError {
        match refusal.kind {
            RefusedFor::Timeout => ManagerError::Timeout,
            RefusedFor::Busy => ManagerError::Busy(refusal.message),
            RefusedFor::Protocol => ManagerError::Protocol(refusal.message),
            RefusedFor::Died => ManagerError::died(refusal.message),
        }
    }
}
