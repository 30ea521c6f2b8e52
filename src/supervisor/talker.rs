//! Talking with the program of a session: one message after the other goes to its stdin, its output is the reply, and the
//! protocol knows where that ends.
//!
//! A task of its own beside the driver. It never waits for the program to read or to write alone: whatever can happen
//! next is waited for at once. For a client that reads slowly it does wait, so that the program is slowed down with it,
//! but not for ever.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::relay::CommandEnds;
use crate::control::frames::{FromSession, Refusal, RefusedFor, Reply};
use crate::output;
use crate::protocol::{self, CompleteBy, Done, Message, Out, Talk};
use crate::run::Conversation;
use crate::sys::readiness::End;
use crate::sys::{files, tty};

/// A message that somebody sends.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) text: String,
    pub(super) stream: bool,
    /// Whether it waits for its turn.
    pub(super) wait: bool,
    pub(super) timeout: Option<Duration>,
    /// Where its reply goes.
    pub(super) to: mpsc::Sender<ToClient>,
}

/// What goes to a client.
#[derive(Debug)]
pub(super) enum ToClient {
    /// A frame.
    Frame(FromSession),
    /// So many bytes of text at the beginning of a buffer, which is wanted back.
    Chunk(Vec<u8>, usize),
}

/// What is asked of the talker.
#[derive(Debug)]
pub(super) enum Asked {
    /// This message.
    Job(Job),
    /// The end of the reply.
    Interrupt,
}

/// What the talker tells the driver.
#[derive(Debug)]
pub(super) enum Word {
    /// Messages can be sent.
    Open,
    /// There is no talking with it, and why.
    Broken(String),
    /// It deals with a message, or not any more.
    Busy(bool),
    /// As the key would.
    CtrlC,
}

/// The ends of the pipes that are ours.
#[derive(Debug)]
pub(super) struct Pipes {
    stdin: OwnedFd,
    stdout: OwnedFd,
    /// With a terminal, it is stdout.
    stderr: Option<OwnedFd>,
}

impl Pipes {
    /// Makes a terminal, and the ends of it that are the command's.
    pub(super) fn of_terminal() -> io::Result<(Pipes, CommandEnds)> {
        let (ours, theirs) = tty::for_program()?;
        let pipes = Pipes { stdin: ours.try_clone()?, stdout: ours, stderr: None };
        let (stdin, stdout) = (Some(theirs.try_clone()?), theirs.try_clone()?);
        Ok((pipes, CommandEnds { stdin, stdout, stderr: theirs }))
    }

    /// Makes them, and those of the command.
    pub(super) fn new() -> io::Result<(Pipes, CommandEnds)> {
        let (stdin, ours_in) = io::pipe()?;
        let (ours_out, stdout) = io::pipe()?;
        let (ours_err, stderr) = io::pipe()?;
        files::enlarge_pipe(&ours_out);
        let pipes = Pipes { stdin: ours_in.into(), stdout: ours_out.into(), stderr: Some(ours_err.into()) };
        let ends = CommandEnds { stdin: Some(stdin.into()), stdout: stdout.into(), stderr: stderr.into() };
        Ok((pipes, ends))
    }
}

/// How to reach the talker.
#[derive(Clone, Debug)]
pub(super) struct Door {
    /// What is asked of it.
    pub(super) asked: mpsc::Sender<Asked>,
    /// Whoever still passes a reply on has a weak one of it.
    pub(super) passing: Arc<()>,
    /// Where buffers go that are not needed any more.
    pub(super) give_back: mpsc::UnboundedSender<Vec<u8>>,
}

/// A reply that goes on.
struct Current {
    to: Option<mpsc::Sender<ToClient>>,
    begun: Instant,
    deadline: Option<Instant>,
    bytes: u64,
    stderr: VecDeque<u8>,
    /// When Ctrl-C follows, if the protocol's own way did not help.
    ctrl_c_at: Option<Instant>,
    /// It has timed out.
    late: bool,
    /// Its end was asked for.
    interrupted: bool,
}

/// The talker.
pub(super) struct Talker {
    talk: Box<dyn Talk>,
    stdin: Option<End>,
    stdout: Option<End>,
    stderr: Option<End>,
    /// Its stdin is a terminal.
    has_terminal: bool,
    outgoing: Vec<u8>,
    written: usize,
    queue: VecDeque<(Job, Instant)>,
    current: Option<Current>,
    broken: Option<String>,
    /// When a closed stdout or stdin counts: it may just be dying.
    closed: Option<(Instant, &'static str)>,
    last_output: Instant,
    was_open: bool,
    tell: mpsc::UnboundedSender<Word>,
    asked: mpsc::Receiver<Asked>,
    ended: watch::Receiver<Option<String>>,
    log: Option<output::Writer>,
    buffer: Vec<u8>,
    /// Buffers that clients have given back.
    spare: mpsc::UnboundedReceiver<Vec<u8>>,
}

/// What is less is copied.
const WORTH_HANDING_ON: usize = 32 * 1024;
/// As much is read at once.
const CHUNK: usize = 256 * 1024;
/// Of stderr so much is kept for the reply.
const STDERR_KEPT: usize = 64 * 1024;
/// A client that has taken nothing for so long is not waited for any more.
const STUCK: Duration = Duration::from_secs(30);
/// The protocol's own interrupt has so long to help.
const INTERRUPT_PATIENCE: Duration = Duration::from_secs(3);
/// Whoever closes its descriptors mostly dies next, and that is the better news.
const DYING: Duration = Duration::from_millis(500);
/// So many messages wait for their turn.
const MOST_WAITING: usize = 64;

impl Talker {
    /// Begins to talk as `conversation` says, with a program that works in `directory`.
    pub(super) fn new(
        conversation: &Conversation,
        directory: &str,
        pipes: Pipes,
        log: Option<output::Writer>,
        tell: mpsc::UnboundedSender<Word>,
        ended: watch::Receiver<Option<String>>,
    ) -> io::Result<(Talker, Door)> {
        let (ask, asked) = mpsc::channel(16);
        let (give_back, spare) = mpsc::unbounded_channel();
        let talker = Talker {
            talk: protocol::talk(
                &conversation.protocol,
                conversation.approvals,
                directory,
                conversation.terminal,
            ),
            has_terminal: conversation.terminal,
            stdin: Some(End::of(pipes.stdin)?),
            stdout: Some(End::of(pipes.stdout)?),
            stderr: pipes.stderr.map(End::of).transpose()?,
            outgoing: Vec::new(),
            written: 0,
            queue: VecDeque::new(),
            current: None,
            broken: None,
            closed: None,
            last_output: Instant::now(),
            was_open: false,
            tell,
            asked,
            ended,
            log,
            buffer: vec![0; CHUNK],
            spare,
        };
        Ok((talker, Door { asked: ask, passing: Arc::new(()), give_back }))
    }

    /// Talks until the session has ended.
    pub(super) async fn run(mut self) {
        let mut out = Out::default();
        self.talk.open(&mut out);
        self.follow(out).await;
        loop {
            let wake = self.wake_at();
            tokio::select! {
                biased;
                _ = self.ended.changed() => break,
                Some(asked) = self.asked.recv() => self.hear(asked).await,
                ready = writable(self.stdin.as_ref(), self.written < self.outgoing.len()) => match ready {
                    Ok(()) => self.write(),
                    Err(_) => self.lose_stdin(),
                },
                _ = readable(self.stdout.as_ref()) => self.listen().await,
                _ = readable(self.stderr.as_ref()) => self.listen_to_stderr(),
                () = until(wake) => self.tick().await,
            }
        }
        self.take_leave().await;
    }

    fn wake_at(&self) -> Option<Instant> {
        let current = self.current.iter().flat_map(|it| [it.deadline.filter(|_| !it.late), it.ctrl_c_at]);
        let waiting = self.queue.iter().filter_map(|(job, since)| Some(*since + job.timeout?));
        let pause = self.talk.pause().map(|pause| self.last_output + pause);
        let closed = self.closed.as_ref().map(|(at, _)| *at);
        current.flatten().chain(waiting).chain(pause).chain(closed).min()
    }

    async fn tick(&mut self) {
        let now = Instant::now();
        let is_over = |(job, since): &(Job, Instant)| job.timeout.is_some_and(|span| *since + span <= now);
        while let Some(at) = self.queue.iter().position(is_over) {
            if let Some((job, _)) = self.queue.remove(at) {
                refuse(&job, RefusedFor::Busy, "it waited for its turn until its time was over");
            }
        }
        if self.current.as_ref().is_some_and(|it| !it.late && it.deadline.is_some_and(|at| at <= now)) {
            self.time_over().await;
        }
        if self.current.as_ref().is_some_and(|it| it.ctrl_c_at.is_some_and(|at| at <= now)) {
            self.ctrl_c();
        }
        if let Some((_, what)) = self.closed.take_if(|(at, _)| *at <= now) {
            self.break_off(format!("the program has closed its {what}")).await;
        }
        if self.talk.pause().is_some_and(|pause| self.last_output + pause <= now) {
            let mut out = Out::default();
            self.talk.still(&mut out);
            self.last_output = now;
            self.follow(out).await;
        }
    }

    async fn hear(&mut self, asked: Asked) {
        let job = match asked {
            Asked::Job(job) => job,
            Asked::Interrupt => return self.interrupt().await,
        };
        if let Some(why) = &self.broken {
            return refuse(&job, RefusedFor::Protocol, why);
        }
        match &self.current {
            // One whose end was asked for is over soon.
            Some(current) if current.late && !current.interrupted => {
                let since = current.begun.elapsed().as_secs();
                let why = format!("it is still busy with a message of {since} s ago, whose time is over");
                refuse(&job, RefusedFor::Busy, &why);
            }
            Some(_) if !job.wait => refuse(&job, RefusedFor::Busy, "it is busy with another message"),
            _ if self.queue.len() >= MOST_WAITING => {
                refuse(&job, RefusedFor::Busy, "too many messages wait for their turn");
            }
            _ => {
                self.queue.push_back((job, Instant::now()));
                self.go_on().await;
            }
        }
    }

    /// Sends the next message, if it is time for that.
    async fn go_on(&mut self) {
        while self.current.is_none() && self.talk.is_open() && self.broken.is_none() {
            let Some((job, since)) = self.queue.pop_front() else { return };
            if job.to.is_closed() {
                continue;
            }
            self.forget_old_output();
            let mut bytes = [0; 16];
            files::fill_random(&mut bytes);
            let token = u128::from_ne_bytes(bytes);
            let mut out = Out::default();
            let message = Message { text: &job.text, stream: job.stream, token };
            if let Err(why) = self.talk.send(message, &mut out) {
                refuse(&job, RefusedFor::Protocol, &why);
                continue;
            }
            self.last_output = Instant::now();
            self.current = Some(Current {
                deadline: job.timeout.map(|span| since + span),
                to: Some(job.to),
                begun: Instant::now(),
                bytes: 0,
                stderr: VecDeque::new(),
                ctrl_c_at: None,
                late: false,
                interrupted: false,
            });
            let _ = self.tell.send(Word::Busy(true));
            self.outgoing.append(&mut out.write);
            self.write();
        }
    }

    /// What the program has said since the last reply is nobody's.
    fn forget_old_output(&mut self) {
        let mut out = Out::default();
        while let Some(length) = self.read_some() {
            self.talk.take(&self.buffer[..length], &mut out);
        }
        self.listen_to_stderr();
        self.outgoing.append(&mut out.write);
    }

    /// Reads what there is, without waiting.
    fn read_some(&mut self) -> Option<usize> {
        let length = self.stdout.as_ref()?.read(&mut self.buffer).ok()?;
        (length > 0).then_some(length)
    }

    async fn listen(&mut self) {
        let Some(stdout) = &self.stdout else { return };
        match stdout.read(&mut self.buffer) {
            Ok(0) => {
                self.stdout = None;
                self.closed.get_or_insert((Instant::now() + DYING, "stdout"));
            }
            Ok(length) => {
                self.last_output = Instant::now();
                if length >= WORTH_HANDING_ON && self.talk.is_text(&self.buffer[..length]) {
                    let next = self.spare.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
                    let full = std::mem::replace(&mut self.buffer, next);
                    return self.pass_on(ToClient::Chunk(full, length), length).await;
                }
                let mut out = Out::default();
                self.talk.take(&self.buffer[..length], &mut out);
                self.follow(out).await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Of a terminal, EIO is the end.
            Err(_) => {
                self.stdout = None;
                self.closed.get_or_insert((Instant::now() + DYING, "stdout"));
            }
        }
    }

    fn listen_to_stderr(&mut self) {
        let mut buffer = [0; 16 * 1024];
        while let Some(stderr) = &self.stderr {
            match stderr.read(&mut buffer) {
                Ok(length) if length > 0 => {
                    self.log.iter_mut().for_each(|log| log.write(output::Stream::Stderr, &buffer[..length]));
                    let Some(current) = &mut self.current else { continue };
                    current.stderr.extend(&buffer[..length]);
                    let more = current.stderr.len().saturating_sub(STDERR_KEPT);
                    current.stderr.drain(..more);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => self.stderr = None,
            }
        }
    }

    fn write(&mut self) {
        while let Some(stdin) = self.stdin.as_ref().filter(|_| self.written < self.outgoing.len()) {
            match stdin.write(&self.outgoing[self.written..]) {
                Ok(length) => self.written += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.lose_stdin(),
            }
        }
        self.outgoing.clear();
        self.written = 0;
    }

    fn lose_stdin(&mut self) {
        self.stdin = None;
        self.closed.get_or_insert((Instant::now() + DYING, "stdin"));
    }

    /// Does what follows from something that the program has said.
    async fn follow(&mut self, mut out: Out) {
        self.outgoing.append(&mut out.write);
        self.write();
        if !out.text.is_empty() {
            let text = std::mem::take(&mut out.text);
            let length = text.len();
            self.pass_on(ToClient::Frame(FromSession::Text(text)), length).await;
        }
        if let Some(done) = out.done {
            self.complete(done).await;
        }
        if let Some(why) = out.broken {
            return self.break_off(why).await;
        }
        if !self.was_open && self.talk.is_open() {
            self.was_open = true;
            let _ = self.tell.send(Word::Open);
        }
        self.go_on().await;
    }

    /// Passes text on to who waits for it; who has gone or is stuck is forgotten, and the reply goes on.
    async fn pass_on(&mut self, text: ToClient, length: usize) {
        let Some(current) = self.current.as_mut().filter(|current| !current.late) else { return };
        current.bytes += length as u64;
        let Some(to) = &current.to else { return };
        let patience = current.deadline.map_or(STUCK, |at| (at - Instant::now().min(at)).min(STUCK));
        let sent = tokio::select! {
            biased;
            sent = timeout(patience, to.send(text)) => matches!(sent, Ok(Ok(()))),
            _ = self.ended.wait_for(Option::is_some) => true,
        };
        if !sent {
            current.to = None;
        }
    }

    async fn complete(&mut self, done: Done) {
        // It comes by another way, and may be a little later than what it belongs to.
        self.listen_to_stderr();
        let Some(current) = self.current.take() else { return };
        let _ = self.tell.send(Word::Busy(false));
        if current.late {
            return;
        }
        let Done { by, failed, status, details } = done;
        let reply = Reply { failed, status, details, ..reply_of(&current, Some(by)) };
        tell_client(&current, FromSession::Over(Box::new(reply))).await;
    }

    async fn time_over(&mut self) {
        self.listen_to_stderr();
        let Some(current) = &mut self.current else { return };
        current.late = true;
        let reply = reply_of(current, Some(CompleteBy::Timeout));
        tell_client(current, FromSession::Over(Box::new(reply))).await;
        current.to = None;
    }

    async fn interrupt(&mut self) {
        let Some(current) = &mut self.current else { return };
        current.interrupted = true;
        let mut out = Out::default();
        if !self.talk.interrupt(&mut out) {
            return self.ctrl_c();
        }
        if let Some(current) = &mut self.current {
            // Asked for a second time, it is not waited for.
            let patience = if current.ctrl_c_at.is_some() { Duration::ZERO } else { INTERRUPT_PATIENCE };
            current.ctrl_c_at = Some(Instant::now() + patience);
        }
        self.follow(out).await;
    }

    fn ctrl_c(&mut self) {
        const KEY: u8 = 3;
        if self.has_terminal {
            // Whoever reads keys itself gets it as one.
            self.outgoing.push(KEY);
            self.write();
        } else {
            let _ = self.tell.send(Word::CtrlC);
        }
        if let Some(current) = &mut self.current {
            current.ctrl_c_at = None;
        }
    }

    /// There is no talking with it any more.
    async fn break_off(&mut self, why: String) {
        if let Some(current) = self.current.take() {
            let _ = self.tell.send(Word::Busy(false));
            let refusal = Refusal { kind: RefusedFor::Protocol, message: why.clone() };
            tell_client(&current, FromSession::Refused(refusal)).await;
        }
        for (job, _) in self.queue.drain(..) {
            refuse(&job, RefusedFor::Protocol, &why);
        }
        let _ = self.tell.send(Word::Broken(why.clone()));
        self.broken = Some(why);
    }

    /// The session has ended: what has come is passed on, and how it ended.
    async fn take_leave(&mut self) {
        let why = self.ended.borrow().clone().unwrap_or_default();
        // At most what a pipe holds, and a little: somebody outside might write for ever.
        for _ in 0..64 {
            let Some(length) = self.read_some() else { break };
            let mut out = Out::default();
            self.talk.take(&self.buffer[..length], &mut out);
            if let Some(current) = &mut self.current {
                current.bytes += out.text.len() as u64;
                if !out.text.is_empty() {
                    tell_client(current, FromSession::Text(out.text)).await;
                }
            }
            if let Some(done) = out.done {
                self.complete(done).await;
            }
        }
        self.listen_to_stderr();
        if let Some(mut current) = self.current.take() {
            let mut out = Out::default();
            self.talk.cut_off(&mut out);
            if !out.text.is_empty() {
                current.bytes += out.text.len() as u64;
                tell_client(&current, FromSession::Text(out.text)).await;
            }
            let reply = Reply { died: Some(why.clone()), ..reply_of(&current, None) };
            tell_client(&current, FromSession::Over(Box::new(reply))).await;
        }
        self.asked.close();
        while let Some(asked) = self.asked.recv().await {
            if let Asked::Job(job) = asked {
                refuse(&job, RefusedFor::Died, &why);
            }
        }
        for (job, _) in self.queue.drain(..) {
            refuse(&job, RefusedFor::Died, &why);
        }
    }
}

fn reply_of(current: &Current, by: Option<CompleteBy>) -> Reply {
    let stderr: Vec<u8> = current.stderr.iter().copied().collect();
    Reply {
        complete_by: by,
        duration_s: current.begun.elapsed().as_secs_f64(),
        bytes: current.bytes,
        failed: None,
        status: None,
        details: None,
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        died: None,
    }
}

async fn tell_client(current: &Current, frame: FromSession) {
    if let Some(to) = &current.to {
        // Who takes nothing is not waited for.
        let _ = timeout(Duration::from_secs(1), to.send(ToClient::Frame(frame))).await;
    }
}

fn refuse(job: &Job, kind: RefusedFor, why: &str) {
    // There is room: it is the first thing that it hears.
    let _ = job.to.try_send(ToClient::Frame(FromSession::Refused(Refusal { kind, message: why.to_owned() })));
}

async fn readable(pipe: Option<&End>) -> io::Result<()> {
    match pipe {
        Some(pipe) => pipe.readable().await,
        None => pending().await,
    }
}

async fn writable(pipe: Option<&End>, wanted: bool) -> io::Result<()> {
    match pipe.filter(|_| wanted) {
        Some(pipe) => pipe.writable().await,
        None => pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
