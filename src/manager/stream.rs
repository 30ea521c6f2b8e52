//! A reply as it comes.

use std::io;
use std::sync::{Arc, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{ManagerError, Session};
use crate::control::Request;
use crate::control::client::connect;
use crate::control::frames::{FromSession, Head, LONGEST_MESSAGE, Received, Reply, ToSession};
use crate::protocol::CompleteBy;
use crate::registry::seen::SeenRun;
use crate::session::connection::Sending;

/// A connection to a session.
pub(super) struct Link {
    stream: UnixStream,
    received: Received,
}

impl Link {
    pub(super) fn open(run: &SeenRun) -> Result<Link, ManagerError> {
        let stream = connect(&run.directory, Request::Talk)?;
        stream.set_nonblocking(true)?;
        Ok(Link { stream: UnixStream::from_std(stream)?, received: Received::default() })
    }

    /// Returns whether the session is still at the other end.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    async fn next(&mut self) -> Result<FromSession, ManagerError> {
        loop {
            if let Some(frame) = self.received.from_session().map_err(io::Error::other)? {
                return Ok(frame);
            }
            let (room, most) = self.received.room();
            let lost = || ManagerError::died("its supervisor was lost in the middle of the reply");
            match (&mut self.stream).take(most as u64).read_buf(room).await {
                Ok(0) => return Err(lost()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(lost()),
                result => result?,
            };
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
        if text.len() > LONGEST_MESSAGE {
            return Err(ManagerError::Protocol(format!(
                "the message is longer than {} MiB",
                LONGEST_MESSAGE >> 20
            )));
        }
        let timeout_s = sending.timeout.map(|span| span.as_secs_f64());
        let head = Head { timeout_s, stream: sending.stream, wait: sending.wait };
        // What has become of one that does not take it, reading tells.
        match link.stream.write_all(&ToSession::Send(head, text.to_owned()).encode()).await {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
        Ok(ReplyStream { link: Some(link), session })
    }

    /// Waits for more of the reply. Errors: [`ManagerError::Busy`], [`ManagerError::Timeout`], [`ManagerError::Died`],
    /// [`ManagerError::Protocol`]; afterwards nothing more comes.
    pub async fn next(&mut self) -> Result<Piece, ManagerError> {
        let over = || ManagerError::Protocol("the reply is over".to_owned());
        let link = self.link.as_mut().ok_or_else(over)?;
        let frame = link.next().await;
        if let Ok(FromSession::Text(text)) = frame {
            return Ok(Piece::Text(text));
        }
        let link = self.link.take();
        match frame? {
            FromSession::Text(text) => Ok(Piece::Text(text)),
            FromSession::Refused(refusal) => {
                self.keep(link);
                Err(refusal.into())
            }
            FromSession::Over(reply) => {
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
