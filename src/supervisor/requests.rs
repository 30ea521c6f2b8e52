//! The control socket's server side: one request a connection, except for those that talk with a session.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::WriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::talker::{self, Client, Door, Job, Part};
use crate::control::frames::{FromSession, Head, Received, Refusal, RefusedFor, ToSession};
use crate::control::{Answer, LONGEST_LINE, Request, decode, encode};
use crate::sys::{net, process};

/// A request, and where its answer goes.
pub(super) type Asked = (Request, oneshot::Sender<Answer>);

/// As many connections at once; more wait in the socket's queue.
const AT_ONCE: usize = 64;
/// Whoever connects and says nothing is let go.
const PATIENCE: Duration = Duration::from_secs(5);
/// Whoever hears nothing for longer takes the session for dead.
const SAYS_SO_AFTER: Duration = Duration::from_secs(1);
/// What is more than this is not gathered.
const LARGE: usize = 256 * 1024;
/// As many talk at once, beside those who ask.
const TALK_AT_ONCE: usize = 256;

/// Accepts connections for ever and passes their requests on; those to talk go to `door`.
pub(super) async fn serve(listener: UnixListener, asked: mpsc::Sender<Asked>, door: Option<Door>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let talkers = Arc::new(Semaphore::new(TALK_AT_ONCE));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (asked, door, talkers) = (asked.clone(), door.clone(), Arc::clone(&talkers));
                tokio::spawn(async move {
                    let answered = timeout(PATIENCE, answer(stream, asked, talkers)).await;
                    // Whoever talks must not keep others from asking.
                    drop(place);
                    if let (Ok(Ok(Some(talker))), Some(door)) = (answered, door) {
                        // Its end is the connection's; there is nobody to tell.
                        let _ = talk(talker.stream, talker.received, &door).await;
                    }
                });
            }
            // Out of descriptors or memory: nothing is lost by trying again a little later.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A connection that talks.
struct Talker {
    stream: UnixStream,
    /// What has come behind the request.
    received: Received,
    _place: OwnedSemaphorePermit,
}

/// Answers one request; returns the connection if it is to talk.
async fn answer(
    stream: UnixStream,
    asked: mpsc::Sender<Asked>,
    talkers: Arc<Semaphore>,
) -> std::io::Result<Option<Talker>> {
    let uid = net::peer_uid(stream.as_fd())?;
    if uid != process::own_uid() && uid != 0 {
        // The directory's mode keeps others out already.
        return Ok(None);
    }
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    (&mut stream).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
    let answer = match decode::<Request>(&line) {
        Ok(Request::Talk) => return let_in(stream, asked, talkers).await,
        Ok(request) => pass_on(request, &asked).await,
        Err(message) => Answer::Refused { message },
    };
    stream.get_mut().write_all(&encode(answer)).await.map(|()| None)
}

async fn let_in(
    stream: BufReader<UnixStream>,
    asked: mpsc::Sender<Asked>,
    talkers: Arc<Semaphore>,
) -> std::io::Result<Option<Talker>> {
    let received = Received::beginning_with(stream.buffer());
    let mut stream = stream.into_inner();
    let refusal = match talkers.try_acquire_owned() {
        Ok(place) => match pass_on(Request::Talk, &asked).await {
            Answer::Refused { message } => Refusal { kind: RefusedFor::Protocol, message },
            _ => return Ok(Some(Talker { stream, received, _place: place })),
        },
        Err(_) => Refusal { kind: RefusedFor::Busy, message: "too many talk with it already".to_owned() },
    };
    stream.write_all(&FromSession::Refused(refusal).encode()).await.map(|()| None)
}

async fn pass_on(request: Request, asked: &mpsc::Sender<Asked>) -> Answer {
    let (reply, answer) = oneshot::channel();
    let gone = || Answer::Refused { message: "the run has just ended".to_owned() };
    if asked.send((request, reply)).await.is_err() {
        return gone();
    }
    answer.await.unwrap_or_else(|_| gone())
}

/// Passes messages of one connection on, and their replies back.
async fn talk(mut stream: UnixStream, mut received: Received, door: &Door) -> std::io::Result<()> {
    loop {
        match receive(&mut stream, &mut received).await? {
            None => return Ok(()),
            // Between two messages there is nothing to interrupt.
            Some(ToSession::Interrupt) => {}
            Some(ToSession::Send(head, text)) => {
                let passing = Arc::downgrade(&door.passing);
                let (client, parts, last) = Client::new();
                let job = job(head, text, client, door);
                let id = job.id;
                let asked = door.asked.send(talker::Asked::Job(job)).await;
                let reply = Reply { id, parts, last };
                if asked.is_err() || !pass_back(&mut stream, &mut received, reply, door).await? {
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
                Part::Chunk(buffer, length) => {
                    small.extend(FromSession::text_header(length));
                    writes.write_all(&small).await?;
                    small.clear();
                    writes.write_all(&buffer[..length]).await?;
                    // Without a talker nobody wants it.
                    let _ = door.give_back.send(buffer);
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
