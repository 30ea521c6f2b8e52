//! Passing the messages of one connection on to the talker, and their replies back.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::WriteHalf;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

use super::talker::{self, Buffer, CHUNK, Client, Door, Job, Part, SLOTS};
use crate::control::frames::{FromSession, Head, Received, ToSession};
use crate::sys::net;
use crate::sys::shared::Slot;

/// Whoever hears nothing for longer takes the session for dead.
const SAYS_SO_AFTER: Duration = Duration::from_secs(1);
/// What is more than this is not gathered.
const LARGE: usize = 256 * 1024;
/// So many slots one client reads at once.
const MOST_LENT: usize = 2;

/// Passes messages of one connection on, and their replies back.
pub(super) async fn talk(mut stream: UnixStream, mut received: Received, door: &Door) -> std::io::Result<()> {
    let lent = Lent::default();
    loop {
        match receive(&mut stream, &mut received).await? {
            None => return Ok(()),
            // Between two messages there is nothing to interrupt.
            Some(ToSession::Interrupt) => {}
            Some(ToSession::Mapped) => lent.begin(),
            Some(ToSession::Returned(index)) => lent.take_back(index),
            Some(ToSession::Send(head, text)) => {
                let passing = Arc::downgrade(&door.passing);
                let (client, parts, last) = Client::new();
                let job = job(head, text, client, door);
                let id = job.id;
                let asked = door.asked.send(talker::Asked::Job(job)).await;
                let reply = Reply { id, parts, last };
                if asked.is_err() || !pass_back(&mut stream, &mut received, reply, &lent, door).await? {
                    return Ok(());
                }
                drop(passing);
            }
        }
    }
}

fn job(head: Head, text: String, client: Client, door: &Door) -> Job {
    // More than that is for ever, and cannot be added to an instant.
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    let timeout = head.timeout_s.and_then(|span| Duration::try_from_secs_f64(span).ok());
    Job {
        id: door.count.fetch_add(1, Ordering::Relaxed),
        text,
        stream: head.stream,
        wait: head.wait,
        timeout: timeout.map(|span| span.min(LONGEST)),
        client,
    }
}

/// What comes of one message.
struct Reply {
    id: u64,
    parts: mpsc::Receiver<Part>,
    last: oneshot::Receiver<FromSession>,
}

/// Passes one reply back; returns whether the client is still there. What it says meanwhile is an interrupt, or
/// nothing.
async fn pass_back(
    stream: &mut UnixStream,
    received: &mut Received,
    mut reply: Reply,
    lent: &Lent,
    door: &Door,
) -> std::io::Result<bool> {
    let (mut reads, mut writes) = stream.split();
    let passes = async {
        // Small things go together: a short reply is one packet.
        let mut small = Vec::new();
        let mut part = match timeout(SAYS_SO_AFTER, reply.parts.recv()).await {
            Ok(part) => part,
            Err(_) => {
                small.extend(FromSession::Here.encode());
                next(&mut reply.parts, &mut writes, &mut small).await?
            }
        };
        while let Some(this) = part {
            match this {
                Part::Text(text) => small.extend(FromSession::Text(text).encode()),
                Part::Chunk(buffer, length) if lent.can_have(&buffer) => {
                    lent.lend(buffer, length, &mut writes, &mut small).await?;
                }
                Part::Chunk(buffer, length) => {
                    lent.offer(&buffer, &mut writes, &mut small).await?;
                    small.extend(FromSession::text_header(length));
                    writes.write_all(&small).await?;
                    small.clear();
                    writes.write_all(&buffer[..length]).await?;
                }
            }
            part = next(&mut reply.parts, &mut writes, &mut small).await?;
        }
        let Ok(word) = reply.last.await else { return Ok(false) };
        small.extend(word.encode());
        writes.write_all(&small).await.map(|()| true)
    };
    let listens = async {
        loop {
            match receive(&mut reads, received).await? {
                Some(ToSession::Interrupt) => {
                    let _ = door.asked.send(talker::Asked::Interrupt(Some(reply.id))).await;
                }
                Some(ToSession::Mapped) => lent.begin(),
                Some(ToSession::Returned(index)) => lent.take_back(index),
                // The next message comes after the reply.
                Some(ToSession::Send(..)) | None => return Ok(false),
            }
        }
    };
    tokio::select! {
        biased;
        gone = listens => gone,
        passed = passes => passed,
    }
}

/// Slots that a client reads. They come back when it says so, or goes.
#[derive(Default)]
struct Lent {
    slots: Mutex<Vec<Buffer>>,
    returned: Notify,
    /// The memory's descriptor was sent.
    is_offered: AtomicBool,
    /// The client has mapped it.
    is_mapped: AtomicBool,
}

impl Lent {
    /// Whether the client can read `buffer` where it is.
    fn can_have(&self, buffer: &Buffer) -> bool {
        buffer.slot().is_some() && self.is_mapped.load(Ordering::Relaxed)
    }

    /// The client has the memory.
    fn begin(&self) {
        self.is_mapped.store(true, Ordering::Relaxed);
    }

    /// Gives the client the memory that `buffer` is a slot of, once. If it cannot be given, all is sent.
    async fn offer(
        &self,
        buffer: &Buffer,
        to: &mut WriteHalf<'_>,
        gathered: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        let Some(slot) = buffer.slot().filter(|_| !self.is_offered.swap(true, Ordering::Relaxed)) else {
            return Ok(());
        };
        to.write_all(gathered).await?;
        gathered.clear();
        let frame = FromSession::Memory(SLOTS, CHUNK as u32).encode();
        let stream: &UnixStream = to.as_ref();
        let send = || net::send_with(stream.as_fd(), &frame, slot.file());
        // An error of the connection's the next writing tells.
        if let Ok(sent) = stream.async_io(Interest::WRITABLE, send).await {
            gathered.extend_from_slice(&frame[sent..]);
        }
        Ok(())
    }

    /// Lets the client read the first `length` bytes of `buffer`, which is a slot, when it has returned others.
    async fn lend(
        &self,
        buffer: Buffer,
        length: usize,
        to: &mut WriteHalf<'_>,
        gathered: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        while self.slots().len() >= MOST_LENT {
            to.write_all(gathered).await?;
            gathered.clear();
            self.returned.notified().await;
        }
        let index = buffer.slot().map_or(0, Slot::index);
        gathered.extend(FromSession::Lent(index, length as u32).encode());
        self.slots().push(buffer);
        Ok(())
    }

    fn take_back(&self, index: u32) {
        self.slots().retain(|buffer| buffer.slot().is_none_or(|slot| slot.index() != index));
        self.returned.notify_one();
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Buffer>> {
        // Nothing can panic while it is held.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the next part; before it is waited for, what has been gathered is sent.
async fn next(
    parts: &mut mpsc::Receiver<Part>,
    to: &mut WriteHalf<'_>,
    gathered: &mut Vec<u8>,
) -> std::io::Result<Option<Part>> {
    match parts.try_recv() {
        Ok(part) if gathered.len() < LARGE => return Ok(Some(part)),
        Err(TryRecvError::Disconnected) => return Ok(None),
        found => {
            to.write_all(gathered).await?;
            gathered.clear();
            if let Ok(part) = found {
                return Ok(Some(part));
            }
        }
    }
    Ok(parts.recv().await)
}

/// Receives the next frame; `None` at the end. May be dropped while it waits, nothing is lost.
async fn receive(
    stream: &mut (impl AsyncRead + Unpin),
    received: &mut Received,
) -> std::io::Result<Option<ToSession>> {
    loop {
        if let Some(frame) = received.to_session().map_err(std::io::Error::other)? {
            return Ok(Some(frame));
        }
        let (room, most) = received.room();
        if (&mut *stream).take(most as u64).read_buf(room).await? == 0 {
            return Ok(None);
        }
    }
}
