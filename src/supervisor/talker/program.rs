//! The program's ends of a conversation: what it is told, and what it says.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::time::Instant;

use super::super::relay::CommandEnds;
use super::buffers::{Buffer, Buffers};
use crate::sys::readiness::End;
use crate::sys::{files, tty};

/// A program that reads nothing is told no more, in bytes.
const MOST_OUTGOING: usize = 256 << 20;
/// So often at once stderr is read, before something else has its turn.
pub(super) const READS_AT_ONCE: usize = 4;
/// Whoever closes its descriptors mostly dies next, and that is the better news.
const DYING: Duration = Duration::from_millis(500);

/// The ends of the pipes that are ours.
#[derive(Debug)]
pub(in crate::supervisor) struct Pipes {
    stdin: OwnedFd,
    stdout: OwnedFd,
    /// With a terminal, it is stdout.
    stderr: Option<OwnedFd>,
}

impl Pipes {
    /// Makes a terminal, and the ends of it that are the command's.
    pub(in crate::supervisor) fn of_terminal() -> io::Result<(Pipes, CommandEnds)> {
        let (ours, theirs) = tty::for_program()?;
        let pipes = Pipes { stdin: ours.try_clone()?, stdout: ours, stderr: None };
        let (stdin, stdout) = (Some(theirs.try_clone()?), theirs.try_clone()?);
        Ok((pipes, CommandEnds { stdin, stdout, stderr: theirs }))
    }

    /// Makes them, and those of the command.
    pub(in crate::supervisor) fn new() -> io::Result<(Pipes, CommandEnds)> {
        let (stdin, ours_in) = io::pipe()?;
        let (ours_out, stdout) = io::pipe()?;
        let (ours_err, stderr) = io::pipe()?;
        files::enlarge_pipe(&ours_out);
        let pipes = Pipes { stdin: ours_in.into(), stdout: ours_out.into(), stderr: Some(ours_err.into()) };
        let ends = CommandEnds { stdin: Some(stdin.into()), stdout: stdout.into(), stderr: stderr.into() };
        Ok((pipes, ends))
    }
}

/// The program reads nothing, or too little.
#[derive(Debug)]
pub(super) struct Deaf;

/// The pipes, with what is on its way through them.
#[derive(Debug)]
pub(super) struct Program {
    stdin: Option<End>,
    stdout: Option<End>,
    stderr: Option<End>,
    outgoing: Vec<u8>,
    written: usize,
    buffer: Buffer,
    buffers: Buffers,
    /// When a closed stdout or stdin counts: it may just be dying.
    closed: Option<(Instant, &'static str)>,
}

impl Program {
    pub(super) fn new(pipes: Pipes) -> io::Result<Program> {
        let (buffers, buffer) = Buffers::new();
        Ok(Program {
            stdin: Some(End::of(pipes.stdin)?),
            stdout: Some(End::of(pipes.stdout)?),
            stderr: pipes.stderr.map(End::of).transpose()?,
            outgoing: Vec::new(),
            written: 0,
            buffer,
            buffers,
            closed: None,
        })
    }

    /// Waits until it can be told more, if there is more.
    pub(super) async fn listens(&self) -> io::Result<()> {
        match self.stdin.as_ref().filter(|_| self.written < self.outgoing.len()) {
            Some(stdin) => stdin.writable().await,
            None => pending().await,
        }
    }

    /// Waits until it has said something, if that is wanted.
    pub(super) async fn speaks(&self, wanted: bool) {
        match self.stdout.as_ref().filter(|_| wanted) {
            Some(stdout) => drop(stdout.readable().await),
            None => pending().await,
        }
    }

    /// Waits until there is something on stderr.
    pub(super) async fn complains(&self) {
        match &self.stderr {
            Some(stderr) => drop(stderr.readable().await),
            None => pending().await,
        }
    }

    /// Says `bytes` to it, as soon as it reads.
    pub(super) fn say(&mut self, bytes: &mut Vec<u8>) -> Result<(), Deaf> {
        if self.outgoing.len() + bytes.len() > MOST_OUTGOING {
            return Err(Deaf);
        }
        self.outgoing.append(bytes);
        self.write();
        Ok(())
    }

    /// Writes what there is room for.
    pub(super) fn write(&mut self) {
        while let Some(stdin) = self.stdin.as_ref().filter(|_| self.written < self.outgoing.len()) {
            match stdin.write(&self.outgoing[self.written..]) {
                Ok(length) => self.written += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.lose_stdin(),
            }
        }
        self.forget_outgoing();
    }

    /// Drops what it has not been told yet.
    pub(super) fn forget_outgoing(&mut self) {
        self.outgoing.clear();
        self.written = 0;
    }

    /// Whether it has been told all.
    pub(super) fn has_heard_all(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// It reads no more.
    pub(super) fn lose_stdin(&mut self) {
        self.stdin = None;
        self.closed.get_or_insert((Instant::now() + DYING, "stdin"));
    }

    /// When a closed end counts.
    pub(super) fn closed_at(&self) -> Option<Instant> {
        self.closed.map(|(at, _)| at)
    }

    /// Takes the end that has been closed for long enough.
    pub(super) fn take_closed(&mut self, now: Instant) -> Option<&'static str> {
        self.closed.take_if(|(at, _)| *at <= now).map(|(_, what)| what)
    }

    /// Reads what it has said; returns how much, `None` if that is nothing yet or never again.
    pub(super) fn hear(&mut self) -> Option<usize> {
        match self.stdout.as_ref()?.read(&mut self.buffer) {
            Ok(length) if length > 0 => Some(length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            // Of a terminal, EIO is the end.
            _ => {
                self.stdout = None;
                self.closed.get_or_insert((Instant::now() + DYING, "stdout"));
                None
            }
        }
    }

    /// Reads what it has said although nobody has told of it.
    pub(super) fn hear_untold(&mut self) -> Option<usize> {
        let length = self.stdout.as_ref()?.read_untold(&mut self.buffer).ok()?;
        (length > 0).then_some(length)
    }

    /// The first `length` bytes that were read last.
    pub(super) fn heard(&self, length: usize) -> &[u8] {
        &self.buffer[..length]
    }

    /// Gives what was read last away.
    pub(super) fn hand_over(&mut self) -> Buffer {
        let next = self.buffers.take();
        std::mem::replace(&mut self.buffer, next)
    }

    /// Reads some of stderr into `to`; with `untold`, although nobody has told of it.
    pub(super) fn hear_stderr(&mut self, untold: bool, mut to: impl FnMut(&[u8])) {
        let mut buffer = [0; 16 * 1024];
        for _ in 0..READS_AT_ONCE {
            let Some(stderr) = &self.stderr else { return };
            match if untold { stderr.read_untold(&mut buffer) } else { stderr.read(&mut buffer) } {
                Ok(length) if length > 0 => to(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => self.stderr = None,
            }
        }
    }
}
