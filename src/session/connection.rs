//! An open connection to a session: one message after the other, each with its reply.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::control::Request;
use crate::control::client::{ControlError, connect};
use crate::control::frames::{
    FromSession, Head, LONGEST_MESSAGE, Received, Refusal, RefusedFor, Reply, ToSession,
};
use crate::registry::seen::SeenRun;

/// A message was not answered.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// There is no talking with it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// It was not dealt with.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The connection ended in the middle of the reply: guard and supervisor were killed.
    #[error("its supervisor was lost in the middle of the reply")]
    Lost,
    /// A system call failed.
    #[error("cannot talk with it: {0}")]
    Io(#[from] io::Error),
}

/// How a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// How long its reply is waited for; for ever if `None`. Afterwards the session still deals with it.
    pub timeout: Option<Duration>,
    /// Whether what the program says is wanted as it comes, and not its last word alone.
    pub stream: bool,
    /// Whether it waits for its turn.
    pub wait: bool,
}

impl Default for Sending {
    fn default() -> Sending {
        Sending { timeout: None, stream: false, wait: true }
    }
}

/// What has come of a reply.
#[derive(Debug)]
pub enum Heard {
    /// More of its text.
    Text(Vec<u8>),
    /// It is over.
    Over(Box<Reply>),
}

/// As much is received at once.
const AT_ONCE: usize = 64 * 1024;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    received: Received,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens one to `run`.
    pub fn open(run: &SeenRun) -> Result<Connection, TalkError> {
        let stream = connect(&run.directory, Request::Talk)?;
        Ok(Connection { stream, received: Received::default(), buffer: vec![0; AT_ONCE] })
    }

    /// Sends a message; [`Connection::hear`] gives what comes of it.
    pub fn send(&mut self, text: &str, sending: Sending) -> Result<(), TalkError> {
        if text.len() > LONGEST_MESSAGE {
            let message = format!("the message is longer than {} MiB", LONGEST_MESSAGE >> 20);
            return Err(TalkError::Refused(Refusal { kind: RefusedFor::Protocol, message }));
        }
        let timeout_s = sending.timeout.map(|span| span.as_secs_f64());
        let head = Head { timeout_s, stream: sending.stream, wait: sending.wait };
        // What has become of one that does not take it, reading tells.
        match self.stream.write_all(&ToSession::Send(head, text.to_owned()).encode()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Asks for the end of the reply.
    pub fn interrupt(&mut self) -> Result<(), TalkError> {
        Ok(self.stream.write_all(&ToSession::Interrupt.encode())?)
    }

    /// Waits for more of the reply.
    pub fn hear(&mut self) -> Result<Heard, TalkError> {
        loop {
            match self.take()? {
                Some(heard) => return Ok(heard),
                None => self.receive()?,
            }
        }
    }

    /// Takes what has been received of the reply; `None` if that is nothing whole.
    pub fn take(&mut self) -> Result<Option<Heard>, TalkError> {
        match self.received.from_session().map_err(io::Error::other)? {
            Some(FromSession::Text(text)) => Ok(Some(Heard::Text(text))),
            Some(FromSession::Over(reply)) => Ok(Some(Heard::Over(reply))),
            Some(FromSession::Refused(refusal)) => Err(TalkError::Refused(refusal)),
            None => Ok(None),
        }
    }

    /// Waits until something has come, and receives it.
    pub fn receive(&mut self) -> Result<(), TalkError> {
        let (room, most) = self.received.room();
        let most = most.min(self.buffer.len());
        match self.stream.read(&mut self.buffer[..most]) {
            Ok(0) => Err(TalkError::Lost),
            Ok(length) => {
                room.extend_from_slice(&self.buffer[..length]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(TalkError::Lost),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
