//! A reply as it comes.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net;
use std::sync::{Arc, PoisonError};

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{ManagerError, Session};
use crate::control::client::ANSWER_WITHIN;
use crate::control::frames::Reply;
use crate::protocol::CompleteBy;
use crate::session::connection::{Exchange, Heard, Sending, TalkError, message, unless_closed};

/// A connection to a session.
pub(super) struct Link {
    stream: UnixStream,
    exchange: Exchange,
}

impl Link {
    /// Takes one that was just opened.
    pub(super) fn of((stream, exchange): (net::UnixStream, Exchange)) -> Result<Link, ManagerError> {
        stream.set_nonblocking(true)?;
        Ok(Link { stream: UnixStream::from_std(stream)?, exchange })
    }

    /// Returns whether the session is still at the other end.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    async fn send(&mut self, text: &str, sending: Sending) -> Result<(), TalkError> {
        let bytes = message(text, sending)?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let written = timeout(ANSWER_WITHIN, self.stream.write(rest)).await;
            match written.map_err(|_| TalkError::unanswered())? {
                Ok(length) => rest = &rest[length..],
                Err(error) => {
                    unless_closed(Err(error))?;
                    break;
                }
            }
        }
        self.exchange.sent();
        Ok(())
    }

    async fn next(&mut self) -> Result<Heard, TalkError> {
        loop {
            let heard = self.exchange.take()?;
            self.reply();
            if let Some(heard) = heard {
                return Ok(heard);
            }
            let writes = !self.exchange.replies().is_empty();
            let wanted = if writes { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            match self.exchange.patience() {
                Some(patience) => {
                    let there = timeout(patience, self.stream.ready(wanted)).await;
                    there.map_err(|_| TalkError::unanswered())??;
                }
                None => drop(self.stream.ready(wanted).await?),
            }
            let Link { stream, exchange } = self;
            match stream.try_io(Interest::READABLE, || exchange.receive(stream.as_fd())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => result.map_err(|error| self.exchange.failure(error))?,
            }
        }
    }

    /// Says what is to be said of the session's memory, as far as there is room.
    fn reply(&mut self) {
        let replies = self.exchange.replies();
        while !replies.is_empty() {
            match self.stream.try_write(replies) {
                Ok(length) => drop(replies.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // What has become of the other end reading tells.
                Err(_) => replies.clear(),
            }
        }
    }
}

/// A part of a reply.
#[derive(Debug)]
pub enum Piece {
    /// More of its text; a character may be split between two.
    Text(Vec<u8>),
    /// It is over, and nothing more comes.
    End(Box<Reply>),
}

/// A reply as it comes. Dropped before its end, the session still deals with it.
pub struct ReplyStream {
    link: Option<Link>,
    session: Arc<Session>,
}

impl ReplyStream {
    pub(super) async fn begin(
        mut link: Link,
        session: Arc<Session>,
        text: &str,
        sending: Sending,
    ) -> Result<ReplyStream, ManagerError> {
        link.send(text, sending).await?;
        Ok(ReplyStream { link: Some(link), session })
    }

    /// Waits for more of the reply. Errors: [`ManagerError::Busy`], [`ManagerError::Timeout`], [`ManagerError::Died`],
    /// [`ManagerError::Protocol`]; afterwards nothing more comes.
    pub async fn next(&mut self) -> Result<Piece, ManagerError> {
        let over = || ManagerError::Protocol("the reply is over".to_owned());
        let link = self.link.as_mut().ok_or_else(over)?;
        let heard = link.next().await;
        if let Ok(Heard::Text(text)) = heard {
            return Ok(Piece::Text(text));
        }
        let link = self.link.take();
        match heard {
            Ok(Heard::Text(text)) => Ok(Piece::Text(text)),
            Err(TalkError::Refused(refusal)) => {
                self.keep(link);
                Err(refusal.into())
            }
            Err(error) => Err(error.into()),
            Ok(Heard::Over(reply)) => {
                self.keep(link);
                match reply.died {
                    Some(reason) => Err(ManagerError::died(reason)),
                    None if reply.complete_by == Some(CompleteBy::Timeout) => Err(ManagerError::Timeout),
                    None => Ok(Piece::End(reply)),
                }
            }
        }
    }

    /// The next message goes the same way.
    fn keep(&self, link: Option<Link>) {
        *self.session.link.lock().unwrap_or_else(PoisonError::into_inner) = link;
    }
}
