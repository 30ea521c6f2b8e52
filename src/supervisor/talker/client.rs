//! Who waits for a reply: what is on its way to there, and what it hears last.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::buffers::Buffer;
use crate::control::frames::{FromSession, Refusal, RefusedFor};

/// A part of a reply's text.
#[derive(Debug)]
pub(in crate::supervisor) enum Part {
    /// All of it.
    Text(Vec<u8>),
    /// So many bytes at the beginning of a buffer.
    Chunk(Buffer, usize),
}

impl Part {
    pub(super) fn length(&self) -> usize {
        match self {
            Part::Text(text) => text.len(),
            Part::Chunk(_, length) => *length,
        }
    }
}

/// A message that somebody sends.
#[derive(Debug)]
pub(in crate::supervisor) struct Job {
    /// A number of its own.
    pub(in crate::supervisor) id: u64,
    pub(in crate::supervisor) text: String,
    pub(in crate::supervisor) stream: bool,
    /// Whether it waits for its turn.
    pub(in crate::supervisor) wait: bool,
    pub(in crate::supervisor) timeout: Option<Duration>,
    /// Where its reply goes.
    pub(in crate::supervisor) client: Client,
}

/// The ways to a client: for parts of the text, and for the last word, which never waits.
#[derive(Debug)]
pub(in crate::supervisor) struct Client {
    parts: mpsc::Sender<Part>,
    last: oneshot::Sender<FromSession>,
    /// Parts that it has no room for.
    pending: VecDeque<Part>,
    /// Since when it has taken nothing.
    stuck_since: Instant,
}

/// As much of a reply is on its way to a client, in parts.
const ON_ITS_WAY: usize = 2;
/// A client that has taken nothing for so long is not waited for any more.
const STUCK: Duration = Duration::from_secs(30);
/// No part is longer, in bytes: a frame has a limit.
const LONGEST_PART: usize = 1 << 20;

impl Client {
    /// Makes the ways, and their other ends.
    pub(in crate::supervisor) fn new() -> (Client, mpsc::Receiver<Part>, oneshot::Receiver<FromSession>) {
        let ((parts, taken), (last, heard)) = (mpsc::channel(ON_ITS_WAY), oneshot::channel());
        let client = Client { parts, last, pending: VecDeque::new(), stuck_since: Instant::now() };
        (client, taken, heard)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.parts.is_closed()
    }

    /// Whether it has taken all that there is for it.
    pub(super) fn has_all(&self) -> bool {
        self.pending.is_empty()
    }

    /// When it is not waited for any more.
    pub(super) fn gives_up_at(&self) -> Option<Instant> {
        (!self.has_all()).then(|| self.stuck_since + STUCK)
    }

    /// Gives it `part`, at once or when it has room.
    pub(super) fn give(&mut self, part: Part) {
        if self.has_all() {
            self.stuck_since = Instant::now();
        }
        match part {
            Part::Text(text) if text.len() > LONGEST_PART => {
                self.pending.extend(text.chunks(LONGEST_PART).map(|piece| Part::Text(piece.to_vec())));
            }
            part => self.pending.push_back(part),
        }
        while let Some(part) = self.pending.pop_front() {
            match self.parts.try_send(part) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(part)) => return self.pending.push_front(part),
                // Nobody wants the rest.
                Err(mpsc::error::TrySendError::Closed(_)) => self.pending.clear(),
            }
        }
    }

    /// Waits until it takes more, and gives it that; false if it has gone. Nothing is lost if this is dropped.
    pub(super) async fn take(&mut self) -> bool {
        let Ok(room) = self.parts.reserve().await else {
            self.pending.clear();
            return false;
        };
        self.stuck_since = Instant::now();
        if let Some(part) = self.pending.pop_front() {
            room.send(part);
        }
        true
    }

    /// Gives it the last word. What it has no room for is dropped.
    pub(super) fn end(self, word: FromSession) {
        // Who has gone hears nothing.
        let _ = self.last.send(word);
    }

    /// Gives it all that there is, as long as it takes something every `patience`, and the last word.
    pub(super) async fn end_patiently(mut self, word: FromSession, patience: Duration) {
        while !self.has_all() && timeout(patience, self.take()).await == Ok(true) {}
        self.end(word);
    }

    /// Says that there will be no reply.
    pub(super) fn refuse(self, kind: RefusedFor, why: &str) {
        self.end(FromSession::Refused(Refusal { kind, message: why.to_owned() }));
    }
}
