//! An open connection to a session: one message after the other, each with its reply.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::control::client::{ANSWER_WITHIN, ControlError, connect_to_talk};
use crate::control::frames::{
    FromSession, Head, LONGEST_MESSAGE, NoFrame, Received, Refusal, RefusedFor, Reply, ToSession,
};
use crate::registry::seen::SeenRun;
use crate::sys::shared::View;
use crate::sys::{net, waits};

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

/// The client's side of a connection without its I/O: what to send, and what has come of it.
#[derive(Debug)]
pub(crate) struct Exchange {
    received: Received,
    /// Since when nothing at all has been heard of a message.
    unheard_since: Option<Instant>,
    buffer: Vec<u8>,
    /// What has come along and is not looked at yet.
    file: Option<OwnedFd>,
    /// What the session lends slots of.
    memory: Option<View>,
    /// What is to be said of that memory.
    replies: Vec<u8>,
}

impl Exchange {
    /// Connects to `run`, and asks to talk.
    pub(crate) fn open(run: &SeenRun) -> Result<(UnixStream, Exchange), TalkError> {
        Ok((connect_to_talk(&run.directory)?, Exchange::new()))
    }

    fn new() -> Exchange {
        Exchange {
            received: Received::default(),
            unheard_since: None,
            buffer: vec![0; AT_ONCE],
            file: None,
            memory: None,
            replies: Vec::new(),
        }
    }

    /// The message is sent; from now on something is to be heard.
    pub(crate) fn sent(&mut self) {
        self.unheard_since = Some(Instant::now());
    }

    /// Receives what has come on `stream`.
    pub(crate) fn receive(&mut self, stream: BorrowedFd<'_>) -> io::Result<()> {
        let (room, most) = self.received.room();
        let most = most.min(self.buffer.len());
        let (length, file) = net::receive_with(stream, &mut self.buffer[..most])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        room.extend_from_slice(&self.buffer[..length]);
        self.unheard_since = None;
        self.file = file.or(self.file.take());
        Ok(())
    }

    /// What is to be sent before anything is waited for. Whoever has sent some of it takes that out.
    pub(crate) fn replies(&mut self) -> &mut Vec<u8> {
        &mut self.replies
    }

    /// What a failed receiving means.
    pub(crate) fn failure(&self, error: io::Error) -> TalkError {
        match error.kind() {
            // It closed the connection without a word.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset if self.unheard_since.is_some() => {
                let message = "the session has just ended".to_owned();
                TalkError::Refused(Refusal { kind: RefusedFor::Died, message })
            }
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => TalkError::Lost,
            _ => error.into(),
        }
    }

    /// How long the first sign of life may still take; `None` if there was one.
    pub(crate) fn patience(&self) -> Option<Duration> {
        Some(ANSWER_WITHIN.saturating_sub(self.unheard_since?.elapsed()))
    }

    /// Takes what has come of the reply; `None` if that is nothing whole.
    pub(crate) fn take(&mut self) -> Result<Option<Heard>, TalkError> {
        loop {
            return match self.received.from_session().map_err(io::Error::other)? {
                Some(FromSession::Here) => continue,
                Some(FromSession::Memory(count, size)) => {
                    // Without it the session goes on to send everything.
                    self.memory = self.file.take().and_then(|file| View::of(file, count, size as usize).ok());
                    if self.memory.is_some() {
                        self.replies.extend(ToSession::Mapped.encode());
                    }
                    continue;
                }
                Some(FromSession::Lent(index, length)) => {
                    let memory = self.memory.as_ref();
                    let text = memory.and_then(|memory| memory.copy(index, length as usize));
                    self.replies.extend(ToSession::Returned(index).encode());
                    text.map(|text| Some(Heard::Text(text))).ok_or_else(|| io::Error::other(NoFrame).into())
                }
                Some(FromSession::Text(text)) => Ok(Some(Heard::Text(text))),
                Some(FromSession::Over(reply)) => Ok(Some(Heard::Over(reply))),
                Some(FromSession::Refused(refusal)) => Err(TalkError::Refused(refusal)),
                None => Ok(None),
            };
        }
    }
}

/// Returns what a message is on the wire.
pub(crate) fn message(text: &str, sending: Sending) -> Result<Vec<u8>, TalkError> {
    if text.len() > LONGEST_MESSAGE {
        let message = format!("the message is longer than {} MiB", LONGEST_MESSAGE >> 20);
        return Err(TalkError::Refused(Refusal { kind: RefusedFor::Protocol, message }));
    }
    let timeout_s = sending.timeout.map(|span| span.as_secs_f64());
    let head = Head { timeout_s, stream: sending.stream, wait: sending.wait };
    Ok(ToSession::Send(head, text.to_owned()).encode())
}

/// What a sending means. If the other end has closed, reading tells why; nothing taken in time is no answer.
pub(crate) fn unless_closed(sent: io::Result<()>) -> Result<(), TalkError> {
    let Err(error) = sent else { return Ok(()) };
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Ok(()),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Err(TalkError::unanswered()),
        _ => Err(error.into()),
    }
}

impl TalkError {
    /// Nothing has been heard for longer than a session that lives takes.
    pub(crate) fn unanswered() -> TalkError {
        ControlError::NoAnswer(io::ErrorKind::TimedOut.into()).into()
    }
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    exchange: Exchange,
}

impl Connection {
    /// Opens one to `run`.
    pub fn open(run: &SeenRun) -> Result<Connection, TalkError> {
        let (stream, exchange) = Exchange::open(run)?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        Ok(Connection { stream, exchange })
    }

    /// Sends a message; [`Connection::take`] gives what has come of it.
    pub fn send(&mut self, text: &str, sending: Sending) -> Result<(), TalkError> {
        let bytes = message(text, sending)?;
        unless_closed(self.stream.write_all(&bytes))?;
        self.exchange.sent();
        Ok(())
    }

    /// Asks for the end of the reply.
    pub fn interrupt(&mut self) -> Result<(), TalkError> {
        unless_closed(self.stream.write_all(&ToSession::Interrupt.encode()))
    }

    /// Takes what has been received of the reply; `None` if that is nothing whole.
    pub fn take(&mut self) -> Result<Option<Heard>, TalkError> {
        let heard = self.exchange.take()?;
        unless_closed(self.stream.write_all(&std::mem::take(self.exchange.replies())))?;
        Ok(heard)
    }

    /// Waits until something has come, or one of `others` can be read, and receives what has come.
    pub fn wait(&mut self, others: &[BorrowedFd<'_>]) -> Result<(), TalkError> {
        let own = self.stream.as_fd();
        let watched: Vec<_> = [&[own], others].concat().into_iter().map(|fd| (fd, true)).collect();
        let ready = waits::any(&watched, self.exchange.patience())?;
        let is_over = self.exchange.patience().is_some_and(|patience| patience.is_zero());
        match ready[0] {
            true => self.exchange.receive(own).map_err(|error| self.exchange.failure(error)),
            false if is_over => Err(TalkError::unanswered()),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::shared;

    fn text(exchange: &mut Exchange) -> Option<Vec<u8>> {
        match exchange.take().unwrap()? {
            Heard::Text(text) => Some(text),
            Heard::Over(reply) => panic!("{reply:?}"),
        }
    }

    #[test]
    fn what_is_lent_is_read_and_returned() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut slots = shared::slots(2, 4096).unwrap();
        slots[1][..5].copy_from_slice(b"hello");
        let memory = FromSession::Memory(2, 4096).encode();
        assert_eq!(net::send_with(theirs.as_fd(), &memory, slots[1].file()).unwrap(), memory.len());
        let mut exchange = Exchange::new();
        exchange.receive(ours.as_fd()).unwrap();
        assert_eq!(text(&mut exchange), None);
        assert_eq!(std::mem::take(exchange.replies()), ToSession::Mapped.encode());
        (&theirs).write_all(&FromSession::Lent(1, 5).encode()).unwrap();
        exchange.receive(ours.as_fd()).unwrap();
        assert_eq!(text(&mut exchange).unwrap(), b"hello");
        assert_eq!(*exchange.replies(), ToSession::Returned(1).encode());
    }

    #[test]
    fn without_the_memory_all_is_sent() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (memory, sent) = (FromSession::Memory(2, 4096), FromSession::Text(b"hello".to_vec()));
        (&theirs).write_all(&[memory.encode(), sent.encode()].concat()).unwrap();
        let mut exchange = Exchange::new();
        exchange.receive(ours.as_fd()).unwrap();
        assert_eq!(text(&mut exchange).unwrap(), b"hello");
        assert!(exchange.replies().is_empty(), "it must not be lent anything");
    }
}
