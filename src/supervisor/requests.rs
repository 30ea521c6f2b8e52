//! The control socket's server side: one request a connection, except for those that talk with a session.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::passing;
use super::talker::Door;
use crate::control::frames::{FromSession, Received, Refusal, RefusedFor};
use crate::control::{Answer, LONGEST_LINE, Request, decode, encode};
use crate::sys::{net, process};

/// A request, and where its answer goes.
pub(super) type Asked = (Request, oneshot::Sender<Answer>);

/// As many connections at once; more wait in the socket's queue.
const AT_ONCE: usize = 64;
/// Whoever connects and says nothing is let go.
const PATIENCE: Duration = Duration::from_secs(5);
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
                    let answered = timeout(PATIENCE, answer(stream, asked, talkers, door.is_some())).await;
                    // Whoever talks must not keep others from asking.
                    drop(place);
                    if let (Ok(Ok(Some(talker))), Some(door)) = (answered, door) {
                        // Its end is the connection's; there is nobody to tell.
                        let _ = passing::talk(talker.stream, talker.received, &door).await;
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
    is_session: bool,
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
        Ok(Request::Talk) => return let_in(stream, asked, talkers, is_session).await,
        Ok(request) => pass_on(request, &asked).await,
        Err(message) => Answer::Refused { message },
    };
    stream.get_mut().write_all(&encode(answer)).await.map(|()| None)
}

async fn let_in(
    stream: BufReader<UnixStream>,
    asked: mpsc::Sender<Asked>,
    talkers: Arc<Semaphore>,
    is_session: bool,
) -> std::io::Result<Option<Talker>> {
    // A session refuses whoever comes when it ends.
    let kind = if is_session { RefusedFor::Died } else { RefusedFor::Protocol };
    let received = Received::beginning_with(stream.buffer());
    let mut stream = stream.into_inner();
    let refusal = match talkers.try_acquire_owned() {
        Ok(place) => match pass_on(Request::Talk, &asked).await {
            Answer::Refused { message } => Refusal { kind, message },
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
