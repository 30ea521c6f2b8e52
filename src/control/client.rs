//! Talking to a living run, and waiting for its end.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{Answer, LONGEST_LINE, Request, decode, encode};
use crate::registry::record::Record;
use crate::registry::seen::SeenRun;
use crate::registry::store::SOCKET;
use crate::sys::{net, process, waits};

/// How long a supervisor may take to answer: it only has to read a line.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A request that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody answers.
    #[error("its supervisor does not answer: {0}")]
    NoAnswer(#[from] io::Error),
    /// The socket is another user's.
    #[error("its control socket belongs to user {0}")]
    Stranger(u32),
    /// The supervisor said no.
    #[error("{0}")]
    Refused(String),
}

/// Tells the supervisor of the run in `directory`, and does not wait for its answer.
pub fn tell(directory: &File, request: Request) -> Result<(), ControlError> {
    Ok(connect(directory)?.write_all(&encode(request))?)
}

/// Asks the supervisor of the run in `directory`.
pub fn ask(directory: &File, request: Request) -> Result<Answer, ControlError> {
    let mut stream = connect(directory)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(&encode(request))?;
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST_LINE)).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    match decode(&line).map_err(ControlError::Refused)? {
        Answer::Refused { message } => Err(ControlError::Refused(message)),
        answer => Ok(answer),
    }
}

/// Asks to talk with the session of the run in `directory`: frames follow, also in answer.
pub fn connect_to_talk(directory: &File) -> Result<UnixStream, ControlError> {
    let mut stream = connect(directory)?;
    stream.write_all(&encode(Request::Talk))?;
    Ok(stream)
}

fn connect(directory: &File) -> Result<UnixStream, ControlError> {
    let stream = net::connect_in(directory, SOCKET)?;
    let uid = net::peer_uid(stream.as_fd())?;
    if uid != process::own_uid() && uid != 0 {
        return Err(ControlError::Stranger(uid));
    }
    Ok(stream)
}

/// Asks as [`ask`] does; a run that is just beginning or ending has no socket for a while, so whoever does
/// not answer is asked again until `run` is not supervised any more. Returns whether it was asked.
pub fn ask_until_released(run: &mut SeenRun, request: &Request) -> Result<bool, ControlError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    const AGAIN: Duration = Duration::from_millis(20);
    let begun = Instant::now();
    while run.is_supervised() {
        match ask(&run.directory, request.clone()) {
            Err(ControlError::NoAnswer(error))
                if begun.elapsed() < PATIENCE && !goes_on_without(run, &error) =>
            {
                wait_for_a_death(run, Some(AGAIN))?;
            }
            result => return result.map(|_| true),
        }
    }
    Ok(false)
}

/// True if `run` goes on without a socket: it is made before the record says that the command runs, and
/// goes after the record says that it ends.
fn goes_on_without(run: &mut SeenRun, error: &io::Error) -> bool {
    run.reread();
    let lives = |record: &Record| record.supervisor.as_ref().is_some_and(|it| it.pin().is_some());
    let runs = run
        .record
        .as_ref()
        .is_ok_and(|record| record.leader.is_some() && !record.is_ending() && lives(record));
    runs && error.kind() == io::ErrorKind::NotFound
}

/// Blocks until nobody supervises `run` any more, at most for `timeout`; returns whether that is so.
pub fn wait_until_released(run: &mut SeenRun, timeout: Option<Duration>) -> io::Result<bool> {
    let until = timeout.and_then(|span| Instant::now().checked_add(span));
    while run.is_supervised() {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
        run.reread();
        wait_for_a_death(run, left)?;
    }
    Ok(true)
}

/// Blocks until guard or supervisor has died. Whoever cannot be seen (another pid namespace) is
/// asked after by the lock alone, ten times a second.
fn wait_for_a_death(run: &SeenRun, timeout: Option<Duration>) -> io::Result<()> {
    const UNSEEN: Duration = Duration::from_millis(100);
    let keepers = run.record.iter().flat_map(|record| [&record.guard, &record.supervisor]);
    let pinned: Vec<_> = keepers.flatten().filter_map(|keeper| keeper.pin()).collect();
    let polled: Vec<_> = pinned.iter().map(|pidfd| (pidfd.as_fd(), true)).collect();
    let span = if pinned.is_empty() { Some(timeout.unwrap_or(UNSEEN).min(UNSEEN)) } else { timeout };
    waits::any(&polled, span)?;
    Ok(())
}
