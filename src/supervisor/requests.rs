//! The control socket's server side: one request a connection.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::control::{Answer, LONGEST_LINE, Request, decode, encode};
use crate::sys::{net, process};

/// A request, and where its answer goes.
pub(super) type Asked = (Request, oneshot::Sender<Answer>);

/// As many connections at once; more wait in the socket's queue.
const AT_ONCE: usize = 32;
/// Whoever connects and says nothing is let go.
const PATIENCE: Duration = Duration::from_secs(5);

/// Accepts connections for ever and passes their requests on.
pub(super) async fn serve(listener: UnixListener, asked: mpsc::Sender<Asked>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let asked = asked.clone();
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(PATIENCE, answer(stream, asked)).await;
                    drop(place);
                });
            }
            // Out of descriptors or memory: nothing is lost by trying again a little later.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn answer(stream: UnixStream, asked: mpsc::Sender<Asked>) -> std::io::Result<()> {
    let uid = net::peer_uid(stream.as_fd())?;
    if uid != process::own_uid() && uid != 0 {
        // The directory's mode keeps others out already.
        return Ok(());
    }
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    (&mut stream).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
    let answer = match decode::<Request>(&line) {
        Ok(request) => pass_on(request, &asked).await,
        Err(message) => Answer::Refused { message },
    };
    stream.get_mut().write_all(&encode(answer)).await
}

async fn pass_on(request: Request, asked: &mpsc::Sender<Asked>) -> Answer {
    let (reply, answer) = oneshot::channel();
    let gone = || Answer::Refused { message: "the run has just ended".to_owned() };
    if asked.send((request, reply)).await.is_err() {
        return gone();
    }
    answer.await.unwrap_or_else(|_| gone())
}
