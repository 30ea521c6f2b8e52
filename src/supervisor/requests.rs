//! The control socket's server side: one request a connection, except for those that talk with a session.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::talker::{self, Door, Job, ToClient};
use crate::control::frames::{FromSession, Head, Received, ToSession};
use crate::control::{Answer, LONGEST_LINE, Request, decode, encode};
use crate::sys::{net, process};

/// A request, and where its answer goes.
pub(super) type Asked = (Request, oneshot::Sender<Answer>);

/// As many connections at once; more wait in the socket's queue.
const AT_ONCE: usize = 64;
/// Whoever connects and says nothing is let go.
const PATIENCE: Duration = Duration::from_secs(5);
/// As much of a reply is on its way to a client, in frames.
const ON_ITS_WAY: usize = 2;

/// Accepts connections for ever and passes their requests on; those to talk go to `door`.
pub(super) async fn serve(listener: UnixListener, asked: mpsc::Sender<Asked>, door: Option<Door>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (asked, door) = (asked.clone(), door.clone());
                tokio::spawn(async move {
                    if let Ok(Ok(Some(stream))) = tokio::time::timeout(PATIENCE, answer(stream, asked)).await
                        && let Some(door) = door
                    {
                        // Its end is the connection's; there is nobody to tell.
                        let _ = talk(stream, &door).await;
                    }
                    drop(place);
                });
            }
            // Out of descriptors or memory: nothing is lost by trying again a little later.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Answers one request; returns the connection if it is to talk.
async fn answer(stream: UnixStream, asked: mpsc::Sender<Asked>) -> std::io::Result<Option<UnixStream>> {
    let uid = net::peer_uid(stream.as_fd())?;
    if uid != process::own_uid() && uid != 0 {
        // The directory's mode keeps others out already.
        return Ok(None);
    }
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    (&mut stream).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
    let request = decode::<Request>(&line);
    let talks = request == Ok(Request::Talk);
    let answer = match request {
        Ok(request) => pass_on(request, &asked).await,
        Err(message) => Answer::Refused { message },
    };
    stream.get_mut().write_all(&encode(answer.clone())).await?;
    // Nobody sends a frame before the answer is there.
    Ok((talks && answer == Answer::Done).then(|| stream.into_inner()))
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
async fn talk(mut stream: UnixStream, door: &Door) -> std::io::Result<()> {
    let mut received = Received::default();
    loop {
        match receive(&mut stream, &mut received).await? {
            None => return Ok(()),
            Some(ToSession::Interrupt) => drop(door.asked.send(talker::Asked::Interrupt).await),
            Some(ToSession::Send(head, text)) => {
                let passing = Arc::downgrade(&door.passing);
                let (to, reply) = mpsc::channel(ON_ITS_WAY);
                let asked = door.asked.send(talker::Asked::Job(job(head, text, to))).await;
                if asked.is_err() || !pass_back(&mut stream, &mut received, reply, door).await? {
                    return Ok(());
                }
                drop(passing);
            }
        }
    }
}

fn job(head: Head, text: String, to: mpsc::Sender<ToClient>) -> Job {
    let timeout = head.timeout_s.and_then(|span| Duration::try_from_secs_f64(span).ok());
    Job { text, stream: head.stream, wait: head.wait, timeout, to }
}

/// Passes one reply back; returns whether the client is still there. What it says meanwhile is an interrupt, or
/// nothing.
async fn pass_back(
    stream: &mut UnixStream,
    received: &mut Received,
    mut reply: mpsc::Receiver<ToClient>,
    door: &Door,
) -> std::io::Result<bool> {
    loop {
        tokio::select! {
            biased;
            frame = reply.recv() => {
                let Some(frame) = frame else { return Ok(false) };
                if send(stream, frame, &mut reply, door).await? {
                    return Ok(true);
                }
            }
            heard = receive(stream, received) => match heard? {
                Some(ToSession::Interrupt) => drop(door.asked.send(talker::Asked::Interrupt).await),
                // The next message comes after the reply.
                Some(ToSession::Send(..)) | None => return Ok(false),
            }
        }
    }
}

/// Sends what there is of a reply, small things together; returns whether that was its end.
async fn send(
    stream: &mut UnixStream,
    first: ToClient,
    more: &mut mpsc::Receiver<ToClient>,
    door: &Door,
) -> std::io::Result<bool> {
    let (mut bytes, mut next, mut over) = (Vec::new(), Some(first), false);
    while let Some(it) = next {
        match it {
            ToClient::Frame(frame) => {
                over = !matches!(frame, FromSession::Text(_));
                bytes.extend(frame.encode());
            }
            ToClient::Chunk(buffer, length) => {
                bytes.extend(FromSession::text_header(length));
                stream.write_all(&bytes).await?;
                stream.write_all(&buffer[..length]).await?;
                bytes.clear();
                // Without a talker nobody wants it.
                let _ = door.give_back.send(buffer);
            }
        }
        next = if over { None } else { more.try_recv().ok() };
    }
    stream.write_all(&bytes).await?;
    Ok(over)
}

/// Receives the next frame; `None` at the end. May be dropped while it waits, nothing is lost.
async fn receive(stream: &mut UnixStream, received: &mut Received) -> std::io::Result<Option<ToSession>> {
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
