//! The command's output on its way: to the caller with a copy to the file of `--log`, or to the log of a run in the
//! background; and past whoever waits for a line of it.
//!
//! Each stream has a thread of its own that reads and writes in the ordinary blocking way: the caller's
//! descriptors are shared with others, so they must not be made non-blocking.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::scan::Scanner;
use crate::output::{self, Stream as Source};
use crate::sys::waits;

/// The streams between the command and where its output goes.
#[derive(Debug)]
pub(super) struct Relay {
    moved: Arc<AtomicU64>,
    /// Closed to tell the threads that the leader has ended.
    leader_lives: Option<io::PipeWriter>,
    done: Receiver<()>,
}

/// The ends that the command gets.
#[derive(Debug)]
pub(super) struct CommandEnds {
    /// For its stdin, if that is not the caller's.
    pub(super) stdin: Option<OwnedFd>,
    /// For its stdout.
    pub(super) stdout: OwnedFd,
    /// For its stderr.
    pub(super) stderr: OwnedFd,
}

/// Where the output goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// To the caller, and to this file if there is one.
    Caller(Option<File>),
    /// To the log of a run in the background.
    Log(Arc<Mutex<output::Writer>>),
}

/// Where one stream goes.
enum Target {
    Caller { to: File, copy: Option<File> },
    Log(Arc<Mutex<output::Writer>>, Source),
}

impl Sink {
    fn target(&self, source: Source) -> io::Result<Target> {
        let log = match self {
            Sink::Log(log) => return Ok(Target::Log(Arc::clone(log), source)),
            Sink::Caller(copy) => copy,
        };
        let callers = match source {
            Source::Stdout => io::stdout().as_fd().try_clone_to_owned()?,
            _ => io::stderr().as_fd().try_clone_to_owned()?,
        };
        Ok(Target::Caller { to: callers.into(), copy: log.as_ref().map(File::try_clone).transpose()? })
    }
}

/// Makes the pipes and starts the threads, before the command is there: what can fail must not fail
/// afterwards. Its parent is the first thread all the same (PR_SET_PDEATHSIG is per thread).
pub(super) fn start(sink: &Sink, scanner: Option<&Scanner>) -> io::Result<(Relay, CommandEnds)> {
    let (stdout, stdout_end) = io::pipe()?;
    let (stderr, stderr_end) = io::pipe()?;
    let moved = Arc::new(AtomicU64::new(0));
    let (signal, leader_lives) = io::pipe()?;
    let (finished, done) = channel();
    for (from, source) in [(stdout, Source::Stdout), (stderr, Source::Stderr)] {
        let stream = Stream {
            from,
            target: sink.target(source)?,
            scanner: scanner.cloned(),
            leader_ended: signal.try_clone()?,
            left: None,
            moved: Arc::clone(&moved),
            finished: finished.clone(),
        };
        thread::Builder::new().name("relay".to_owned()).spawn(move || stream.run())?;
    }
    let relay = Relay { moved, leader_lives: Some(leader_lives), done };
    Ok((relay, CommandEnds { stdin: None, stdout: stdout_end.into(), stderr: stderr_end.into() }))
}

impl Relay {
    /// Tells the threads that the leader has ended: they pass on what is in the pipes and let go.
    pub(super) fn leader_ended(&mut self) {
        self.leader_lives = None;
    }

    /// Waits until all has been passed on, as long as the reader takes something at least every
    /// `patience`.
    pub(super) fn finish(mut self, patience: Duration) {
        self.leader_ended();
        let mut seen = self.moved.load(Ordering::Relaxed);
        loop {
            match self.done.recv_timeout(patience) {
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => {
                    let now = self.moved.load(Ordering::Relaxed);
                    if now == seen {
                        return;
                    }
                    seen = now;
                }
            }
        }
    }
}

struct Stream {
    from: io::PipeReader,
    target: Target,
    scanner: Option<Scanner>,
    leader_ended: io::PipeReader,
    /// What was in the pipe when the leader had ended; somebody outside might fill it for ever.
    left: Option<usize>,
    moved: Arc<AtomicU64>,
    /// Its drop is the message.
    finished: Sender<()>,
}

impl Stream {
    fn run(mut self) {
        let mut buffer = vec![0; 64 * 1024];
        // Leaving the loop closes our end, so that the command learns that nobody reads, as without us.
        while let Ok(length) = self.read(&mut buffer) {
            self.left = self.left.map(|left| left.saturating_sub(length));
            if length == 0 || self.target.take(&buffer[..length]).is_err() {
                break;
            }
            self.scanner.iter_mut().for_each(|scanner| scanner.take(&buffer[..length]));
            self.moved.fetch_add(length as u64, Ordering::Relaxed);
        }
        let _ = self.finished.send(());
    }

    /// Reads what there is; 0 at the end, or when the leader has ended and what was in the pipe then has been read.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.is_none() {
            let ready = waits::any(&[(self.from.as_fd(), true), (self.leader_ended.as_fd(), true)], None)?;
            if ready[1] {
                self.left = Some(waits::bytes_to_read(self.from.as_fd())?);
            }
        }
        let most = self.left.map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 { Ok(0) } else { self.from.read(&mut buffer[..most]) }
    }
}

impl Target {
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Target::Caller { to, copy } => {
                pass_on(to, bytes)?;
                // A full disk must not stop the output.
                let _ = copy.as_mut().map(|copy| copy.write_all(bytes));
            }
            // Whoever panicked while it wrote has left whole entries at worst.
            Target::Log(log, source) => {
                log.lock().unwrap_or_else(PoisonError::into_inner).write(*source, bytes);
            }
        }
        Ok(())
    }
}

/// Writes all of `bytes` to the caller, whose descriptor somebody may have made non-blocking.
fn pass_on(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                waits::writable(to.as_fd(), None);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
