//! `--log`: the command's output on its way to the caller, with a copy to a file.
//!
//! Each stream has a thread of its own that reads and writes in the ordinary blocking way: the caller's
//! descriptors are shared with others, so they must not be made non-blocking.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::sys::waits;

/// The streams between the command and the caller.
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
    /// For its stdout.
    pub(super) stdout: OwnedFd,
    /// For its stderr.
    pub(super) stderr: OwnedFd,
}

/// Makes the pipes and starts the threads, before the command is there: what can fail must not fail
/// afterwards. Its parent is the first thread all the same (PR_SET_PDEATHSIG is per thread).
pub(super) fn start(log: &File) -> io::Result<(Relay, CommandEnds)> {
    let (stdout, stdout_end) = io::pipe()?;
    let (stderr, stderr_end) = io::pipe()?;
    let callers_out = io::stdout().as_fd().try_clone_to_owned()?;
    let callers_err = io::stderr().as_fd().try_clone_to_owned()?;
    let moved = Arc::new(AtomicU64::new(0));
    let (signal, leader_lives) = io::pipe()?;
    let (finished, done) = channel();
    for (from, to) in [(stdout, callers_out), (stderr, callers_err)] {
        let stream = Stream {
            from,
            to: to.into(),
            log: log.try_clone()?,
            leader_ended: signal.try_clone()?,
            moved: Arc::clone(&moved),
            finished: finished.clone(),
        };
        thread::Builder::new().name("relay".to_owned()).spawn(move || stream.run())?;
    }
    let relay = Relay { moved, leader_lives: Some(leader_lives), done };
    Ok((relay, CommandEnds { stdout: stdout_end.into(), stderr: stderr_end.into() }))
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
    to: File,
    log: File,
    leader_ended: io::PipeReader,
    moved: Arc<AtomicU64>,
    /// Its drop is the message.
    finished: Sender<()>,
}

impl Stream {
    fn run(mut self) {
        let mut buffer = vec![0; 64 * 1024];
        // Leaving the loop closes our end, so that the command learns that nobody reads, as without us.
        while let Ok(length) = self.read(&mut buffer) {
            if length == 0 || self.pass_on(&buffer[..length]).is_err() {
                break;
            }
            // A full disk must not stop the output.
            let _ = self.log.write_all(&buffer[..length]);
            self.moved.fetch_add(length as u64, Ordering::Relaxed);
        }
        let _ = self.finished.send(());
    }

    /// Writes all of `bytes` to the caller, whose descriptor somebody may have made non-blocking.
    fn pass_on(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.to.write(bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    waits::writable(self.to.as_fd(), None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what there is; 0 at the end, or when the leader has ended and the pipe is empty.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = waits::any(&[(self.from.as_fd(), true), (self.leader_ended.as_fd(), true)], None)?;
        if !ready[0] && !waits::readable(self.from.as_fd(), Some(Duration::ZERO))? {
            return if ready[1] { Ok(0) } else { self.read(buffer) };
        }
        self.from.read(buffer)
    }
}
