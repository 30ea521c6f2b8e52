//! Talking with the program of a session: one message after the other goes to its stdin, its output is the reply, and the
//! protocol knows where that ends.
//!
//! A task of its own beside the driver. It waits for one thing never: whatever can happen next is waited for at once. A
//! program whose client reads slowly is slowed down with it, but not for ever.

mod buffers;
mod client;
mod program;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

pub(super) use buffers::{Buffer, CHUNK, SLOTS};
pub(super) use client::{Client, Job, Part};
pub(super) use program::Pipes;

use program::{Program, READS_AT_ONCE};

use crate::control::frames::{FromSession, RefusedFor, Reply};
use crate::output;
use crate::protocol::{self, CompleteBy, Done, Message, Out, Talk};
use crate::run::Conversation;
use crate::sys::files;

/// What is asked of the talker.
#[derive(Debug)]
pub(super) enum Asked {
    /// This message.
    Job(Job),
    /// The end of the reply to this message, or to the one that is dealt with.
    Interrupt(Option<u64>),
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
    /// Nobody waits for the reply that goes on; the program said something just now.
    Abandoned,
    /// As the key would.
    CtrlC,
}

/// How to reach the talker.
#[derive(Clone, Debug)]
pub(super) struct Door {
    /// What is asked of it.
    pub(super) asked: mpsc::Sender<Asked>,
    /// Whoever still passes a reply on has a weak one of it.
    pub(super) passing: Arc<()>,
    /// The number of the last message.
    pub(super) count: Arc<AtomicU64>,
}

/// A reply that goes on.
struct Current {
    id: u64,
    /// Who waits for it; nobody if its time is over or the client has gone.
    client: Option<Client>,
    begun: Instant,
    deadline: Option<Instant>,
    bytes: u64,
    stderr: VecDeque<u8>,
    /// When Ctrl-C follows, if the protocol's own way did not help.
    ctrl_c_at: Option<Instant>,
    /// It is complete, and the client has yet to take the rest of it.
    done: Option<Done>,
    /// When its end was asked for last.
    interrupted: Option<Instant>,
    /// When it was last told that nobody waits for it.
    told: Option<Instant>,
}

/// The talker.
pub(super) struct Talker {
    talk: Box<dyn Talk>,
    program: Program,
    /// Its stdin is a terminal.
    has_terminal: bool,
    queue: VecDeque<(Job, Instant)>,
    current: Option<Current>,
    broken: Option<String>,
    last_output: Instant,
    was_open: bool,
    tell: mpsc::UnboundedSender<Word>,
    asked: mpsc::Receiver<Asked>,
    ended: watch::Receiver<Option<String>>,
    log: Option<output::Writer>,
    /// What was done since others had their turn.
    spent: usize,
    /// The session has ended.
    leaves: bool,
}

/// So many small things are done before others have their turn, or one large.
const MOST_SPENT: usize = 16;

/// What is less is copied.
const WORTH_HANDING_ON: usize = 32 * 1024;
/// Of stderr so much is kept for the reply.
const STDERR_KEPT: usize = 64 * 1024;
/// The protocol's own interrupt has so long to help.
const INTERRUPT_PATIENCE: Duration = Duration::from_secs(3);
/// As long as a wait can be, in practice.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
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
        let talker = Talker {
            talk: protocol::talk(
                &conversation.protocol,
                conversation.approvals,
                directory,
                conversation.terminal,
            ),
            has_terminal: conversation.terminal,
            program: Program::new(pipes)?,
            queue: VecDeque::new(),
            current: None,
            broken: None,
            last_output: Instant::now(),
            was_open: false,
            tell,
            asked,
            ended,
            log,
            spent: 0,
            leaves: false,
        };
        Ok((talker, Door { asked: ask, passing: Arc::new(()), count: Arc::default() }))
    }

    /// Talks until the session has ended.
    pub(super) async fn run(mut self) {
        let mut out = Out::default();
        self.talk.open(&mut out);
        self.follow(out);
        loop {
            // Descriptors that are always ready must not keep the clock, or anybody else, from their turn.
            self.spent += 1;
            if self.spent >= MOST_SPENT {
                self.spent = 0;
                tokio::task::yield_now().await;
            }
            let wake = self.wake_at();
            if wake.is_some_and(|at| at <= Instant::now()) {
                self.tick();
                continue;
            }
            let client = self.current.as_mut().and_then(|it| it.client.as_mut());
            let is_behind = client.as_ref().is_some_and(|client| !client.has_all());
            tokio::select! {
                biased;
                _ = self.ended.changed() => break,
                Some(asked) = self.asked.recv() => self.hear(asked),
                ready = self.program.listens() => match ready {
                    Ok(()) => self.program.write(),
                    Err(_) => self.program.lose_stdin(),
                },
                there = taken(client.filter(|_| is_behind)) => self.taken(there),
                // The program is slowed down with its reader.
                () = self.program.speaks(!is_behind) => self.listen(),
                () = self.program.complains() => self.listen_to_stderr(),
                () = until(wake) => {}
            }
        }
        self.take_leave().await;
    }

    fn wake_at(&self) -> Option<Instant> {
        let current = self.current.iter().flat_map(|it| {
            let client = it.client.as_ref();
            [it.deadline.filter(|_| client.is_some()), it.ctrl_c_at, client.and_then(Client::gives_up_at)]
        });
        let waiting = self.queue.iter().filter_map(|(job, since)| Some(*since + job.timeout?));
        let pause = self.talk.pause().map(|pause| self.last_output + pause.min(FOR_EVER));
        current.flatten().chain(waiting).chain(pause).chain(self.program.closed_at()).min()
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let is_over = |(job, since): &(Job, Instant)| job.timeout.is_some_and(|span| *since + span <= now);
        while let Some(at) = self.queue.iter().position(is_over) {
            if let Some((job, _)) = self.queue.remove(at) {
                job.client.refuse(RefusedFor::Timeout, "it waited for its turn until its time was over");
            }
        }
        if self
            .current
            .as_ref()
            .is_some_and(|it| it.client.is_some() && it.deadline.is_some_and(|at| at <= now))
        {
            self.time_over();
        }
        self.give_up_stuck_client(now);
        if self.current.as_ref().is_some_and(|it| it.ctrl_c_at.is_some_and(|at| at <= now)) {
            self.ctrl_c();
        }
        if let Some(what) = self.program.take_closed(now) {
            self.break_off(format!("the program has closed its {what}"));
        }
        if self.talk.pause().is_some_and(|pause| self.last_output + pause.min(FOR_EVER) <= now) {
            let mut out = Out::default();
            self.talk.still(&mut out);
            self.last_output = now;
            self.follow(out);
        }
    }

    fn hear(&mut self, asked: Asked) {
        let job = match asked {
            Asked::Job(job) => job,
            Asked::Interrupt(whose) => return self.interrupt(whose),
        };
        if let Some(why) = &self.broken {
            return job.client.refuse(RefusedFor::Protocol, why);
        }
        match &self.current {
            Some(current) if current.client.is_none() && !current.ends_soon() => {
                let since = current.begun.elapsed().as_secs();
                let why = format!("it is still busy with a message of {since} s ago, which nobody waits for");
                job.client.refuse(RefusedFor::Busy, &why);
            }
            Some(_) if !job.wait => job.client.refuse(RefusedFor::Busy, "it is busy with another message"),
            _ if self.queue.len() >= MOST_WAITING => {
                job.client.refuse(RefusedFor::Busy, "too many messages wait for their turn");
            }
            _ => {
                self.queue.push_back((job, Instant::now()));
                self.go_on();
            }
        }
    }

    /// Sends the next message, if it is time for that.
    fn go_on(&mut self) {
        while self.current.is_none() && self.talk.is_open() && self.broken.is_none() {
            let Some((job, since)) = self.queue.pop_front() else { return };
            if job.client.is_gone() {
                continue;
            }
            self.forget_old_output();
            let mut bytes = [0; 16];
            files::fill_random(&mut bytes);
            let token = u128::from_ne_bytes(bytes);
            let mut out = Out::default();
            let message = Message { text: &job.text, stream: job.stream, token };
            if let Err(why) = self.talk.send(message, &mut out) {
                job.client.refuse(RefusedFor::Protocol, &why);
                continue;
            }
            self.last_output = Instant::now();
            self.current = Some(Current {
                id: job.id,
                deadline: job.timeout.map(|span| since + span),
                client: Some(job.client),
                begun: Instant::now(),
                bytes: 0,
                stderr: VecDeque::new(),
                ctrl_c_at: None,
                done: None,
                interrupted: None,
                told: None,
            });
            let _ = self.tell.send(Word::Busy(true));
            self.say(&mut out.write);
        }
    }

    /// What the program has said since the last reply is nobody's.
    fn forget_old_output(&mut self) {
        let mut out = Out::default();
        for _ in 0..READS_AT_ONCE {
            let Some(length) = self.read_some() else { break };
            self.talk.take(self.program.heard(length), &mut out);
            out.text.clear();
        }
        self.listen_to_stderr();
        self.say(&mut out.write);
    }

    /// Reads what there is, without waiting.
    fn read_some(&mut self) -> Option<usize> {
        let length = self.program.hear_untold()?;
        self.log_stdout(length);
        Some(length)
    }

    /// What it says before it takes messages is no reply; perhaps it is why it takes none.
    fn log_stdout(&mut self, length: usize) {
        if let Some(log) = self.log.as_mut().filter(|_| !self.was_open) {
            log.write(output::Stream::Stdout, self.program.heard(length));
        }
    }

    fn listen(&mut self) {
        let Some(length) = self.program.hear() else { return };
        self.last_output = Instant::now();
        self.log_stdout(length);
        self.spent += if length >= WORTH_HANDING_ON { MOST_SPENT } else { 0 };
        if length >= WORTH_HANDING_ON && self.talk.is_text(self.program.heard(length)) {
            let full = self.program.hand_over();
            return self.pass_on(Part::Chunk(full, length));
        }
        let mut out = Out::default();
        self.talk.take(self.program.heard(length), &mut out);
        self.follow(out);
    }

    fn listen_to_stderr(&mut self) {
        self.spent += MOST_SPENT / 4;
        let Talker { program, log, current, .. } = self;
        program.hear_stderr(self.leaves, |bytes| {
            log.iter_mut().for_each(|log| log.write(output::Stream::Stderr, bytes));
            let Some(current) = current else { return };
            current.stderr.extend(bytes);
            let more = current.stderr.len().saturating_sub(STDERR_KEPT);
            current.stderr.drain(..more);
        });
    }

    /// Says `bytes` to the program, as soon as it reads.
    fn say(&mut self, bytes: &mut Vec<u8>) {
        if self.program.say(bytes).is_err() {
            self.break_off("the program does not read what it is told".to_owned());
        }
    }

    /// Does what follows from something that the program has said.
    fn follow(&mut self, mut out: Out) {
        self.say(&mut out.write);
        if !out.text.is_empty() {
            self.pass_on(Part::Text(std::mem::take(&mut out.text)));
        }
        if let Some(done) = out.done {
            self.complete(done);
        }
        if let Some(why) = out.broken {
            return self.break_off(why);
        }
        if !self.was_open && self.talk.is_open() {
            self.was_open = true;
            let _ = self.tell.send(Word::Open);
        }
        self.go_on();
    }

    /// Passes text on to who waits for it.
    fn pass_on(&mut self, part: Part) {
        const TOLD_EVERY: Duration = Duration::from_secs(1);
        let Some(current) = &mut self.current else { return };
        if let Some(client) = &mut current.client {
            current.bytes += part.length() as u64;
            client.give(part);
            if !client.is_gone() {
                return;
            }
            current.client = None;
        }
        // Nobody wants it, but the program lives.
        if current.told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            current.told = Some(Instant::now());
            let _ = self.tell.send(Word::Abandoned);
        }
    }

    /// The client has taken something, or has gone.
    fn taken(&mut self, there: bool) {
        let Some(current) = &mut self.current else { return };
        if !there {
            current.client = None;
            let _ = self.tell.send(Word::Abandoned);
        }
        if current.client.as_ref().is_none_or(Client::has_all)
            && let Some(done) = current.done.take()
        {
            self.finish(done);
            self.go_on();
        }
    }

    /// The reply is complete; it is over when the client has all of it.
    fn complete(&mut self, done: Done) {
        // It comes by another way, and may be a little later than what it belongs to.
        self.listen_to_stderr();
        match &mut self.current {
            Some(current) if current.client.as_ref().is_some_and(|client| !client.has_all()) => {
                current.done = Some(done);
            }
            _ => self.finish(done),
        }
    }

    fn finish(&mut self, done: Done) {
        let Some(mut current) = self.current.take() else { return };
        let _ = self.tell.send(Word::Busy(false));
        let Done { by, failed, status, details } = done;
        let reply = Reply { failed, status, details, ..reply_of(&current, Some(by)) };
        if let Some(client) = current.client.take() {
            client.end(FromSession::Over(Box::new(reply)));
        }
    }

    fn time_over(&mut self) {
        self.listen_to_stderr();
        let Some(current) = &mut self.current else { return };
        let reply = reply_of(current, Some(CompleteBy::Timeout));
        if let Some(client) = current.client.take() {
            client.end(FromSession::Over(Box::new(reply)));
        }
        self.nobody_waits();
    }

    /// A client that has taken nothing for long is told so, if it ever looks.
    fn give_up_stuck_client(&mut self, now: Instant) {
        let Some(current) = &mut self.current else { return };
        let is_stuck = |client: &mut Client| client.gives_up_at().is_some_and(|at| at <= now);
        if let Some(client) = current.client.take_if(is_stuck) {
            let why = "nothing of the reply was taken for 30 s, and the rest of it was dropped";
            client.refuse(RefusedFor::Protocol, why);
            self.nobody_waits();
        }
    }

    /// A complete reply that nobody waits for is over.
    fn nobody_waits(&mut self) {
        let _ = self.tell.send(Word::Abandoned);
        if let Some(done) = self.current.as_mut().and_then(|current| current.done.take()) {
            self.finish(done);
            self.go_on();
        }
    }

    fn interrupt(&mut self, whose: Option<u64>) {
        if let Some(at) = self.queue.iter().position(|(job, _)| Some(job.id) == whose) {
            if let Some((job, _)) = self.queue.remove(at) {
                job.client.refuse(RefusedFor::Busy, "it was interrupted before its turn came");
            }
            return;
        }
        // Of a complete one nothing is left to end but its way to the client.
        let is_meant =
            |current: &&mut Current| current.done.is_none() && whose.is_none_or(|id| id == current.id);
        let Some(current) = self.current.as_mut().filter(is_meant) else { return };
        current.interrupted = Some(Instant::now());
        let mut out = Out::default();
        if !self.talk.interrupt(&mut out) {
            return self.ctrl_c();
        }
        // Asked for a second time, it is not waited for.
        let patience = if current.ctrl_c_at.is_some() { Duration::ZERO } else { INTERRUPT_PATIENCE };
        current.ctrl_c_at = Some(Instant::now() + patience);
        self.follow(out);
    }

    fn ctrl_c(&mut self) {
        const KEY: u8 = 3;
        if let Some(current) = &mut self.current {
            current.ctrl_c_at = None;
        }
        if self.has_terminal {
            // Whoever reads keys itself gets it as one; what it has not read yet must not come first.
            self.program.forget_outgoing();
            self.say(&mut vec![KEY]);
            if self.program.has_heard_all() {
                return;
            }
            // A terminal that is full takes no keys.
        }
        let _ = self.tell.send(Word::CtrlC);
    }

    /// There is no talking with it any more.
    fn break_off(&mut self, why: String) {
        if let Some(mut current) = self.current.take() {
            let _ = self.tell.send(Word::Busy(false));
            if let Some(client) = current.client.take() {
                client.refuse(RefusedFor::Protocol, &why);
            }
        }
        for (job, _) in self.queue.drain(..) {
            job.client.refuse(RefusedFor::Protocol, &why);
        }
        self.program.forget_outgoing();
        let _ = self.tell.send(Word::Broken(why.clone()));
        self.broken = Some(why);
    }

    /// The session has ended: what has come is passed on, and how it ended.
    async fn take_leave(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        self.leaves = true;
        let why = self.ended.borrow().clone().unwrap_or_default();
        // At most what a pipe holds, and a little: somebody outside might write for ever.
        const MOST_READS: usize = 64;
        for _ in 0..MOST_READS {
            let Some(length) = self.read_some() else { break };
            let mut out = Out::default();
            self.talk.take(self.program.heard(length), &mut out);
            if !out.text.is_empty() {
                self.pass_on(Part::Text(out.text));
            }
            if let Some(done) = out.done {
                self.complete(done);
            }
        }
        for _ in 0..MOST_READS {
            self.listen_to_stderr();
        }
        self.log.iter_mut().for_each(output::Writer::end_lines);
        self.asked.close();
        let mut waiting: Vec<Job> = self.queue.drain(..).map(|(job, _)| job).collect();
        while let Ok(asked) = self.asked.try_recv() {
            if let Asked::Job(job) = asked {
                waiting.push(job);
            }
        }
        waiting.into_iter().for_each(|job| job.client.refuse(RefusedFor::Died, &why));
        let Some(mut current) = self.current.take() else { return };
        let mut reply = match current.done.take() {
            Some(Done { by, failed, status, details }) => {
                Reply { failed, status, details, ..reply_of(&current, Some(by)) }
            }
            None => Reply { died: Some(why), ..reply_of(&current, None) },
        };
        let Some(mut client) = current.client.take() else { return };
        if reply.died.is_some() {
            let mut out = Out::default();
            self.talk.cut_off(&mut out);
            reply.bytes += out.text.len() as u64;
            client.give(Part::Text(out.text));
        }
        client.end_patiently(FromSession::Over(Box::new(reply)), PATIENCE).await;
    }
}

impl Current {
    /// One whose end was asked for just now is worth waiting for; later, that did not help.
    fn ends_soon(&self) -> bool {
        self.interrupted.is_some_and(|at| at.elapsed() < INTERRUPT_PATIENCE * 2)
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

/// Gives the client what it has room for next; without one for ever.
async fn taken(client: Option<&mut Client>) -> bool {
    match client {
        Some(client) => client.take().await,
        None => pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
