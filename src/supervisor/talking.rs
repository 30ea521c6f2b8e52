//! What the driver does for a session: it hears the talker, and tells it how the session ended.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::driver::Driver;
use super::machine::{Event, Verdict};
use super::talker::{self, Door, Pipes, Talker, Word};
use crate::control::Answer;
use crate::exit::Reason;
use crate::output;
use crate::registry::record::Timestamp;
use crate::registry::store::LiveRun;
use crate::run::RunSpec;
use crate::sys::children::Ended;
use crate::sys::clock::BootTime;
use crate::sys::signal::Signal;

/// Who talks with the program, and the ways to and from there.
pub(super) struct Talking {
    task: JoinHandle<()>,
    words: mpsc::UnboundedReceiver<Word>,
    door: Door,
    ended: watch::Sender<Option<String>>,
}

impl Talking {
    /// Begins to talk.
    pub(super) fn begin(pipes: Pipes, spec: &RunSpec, run: &LiveRun) -> io::Result<Talking> {
        let (tell, words) = mpsc::unbounded_channel();
        let (ended, end) = watch::channel(None);
        let conversation = spec.session.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
        // Without a log (a full disk) there is less to look at.
        let log = output::Writer::open(run.directory(), spec.service.log_size).ok();
        let cwd = run.record.cwd.clone();
        let (talker, door) = Talker::new(conversation, &cwd, pipes, log, tell, end)?;
        let task = tokio::spawn(talker.run());
        Ok(Talking { task, words, door, ended })
    }

    /// Returns the way to it.
    pub(super) fn door(&self) -> Door {
        self.door.clone()
    }

    /// Passes on what has come of the last reply, and how the session ended.
    pub(super) async fn end(self, verdict: &Verdict) {
        const PATIENCE: Duration = Duration::from_secs(2);
        const LOOK_AGAIN: Duration = Duration::from_millis(1);
        let Talking { task, door, ended, .. } = self;
        let _ = ended.send(Some(how(verdict)));
        let passed_on = async {
            let _ = task.await;
            while Arc::weak_count(&door.passing) > 0 {
                sleep(LOOK_AGAIN).await;
            }
        };
        // A client that does not read must not hold the end up.
        let _ = timeout(PATIENCE, passed_on).await;
    }
}

fn how(verdict: &Verdict) -> String {
    match (verdict.reason, verdict.leader) {
        (Reason::Exit, Some(Ended::Exited(code))) => format!("it ended with code {code}"),
        (Reason::Exit | Reason::Signal | Reason::CpuTime, Some(Ended::Signaled(signal))) => {
            format!("it died of {signal}")
        }
        (reason, _) => format!("it was ended ({})", reason.word()),
    }
}

/// Waits for the next word; without a session for ever.
pub(super) async fn next(talking: &mut Option<Talking>) -> Option<Word> {
    match talking {
        Some(talking) => talking.words.recv().await,
        None => std::future::pending().await,
    }
}

impl Driver {
    pub(super) fn hear_word(&mut self, word: Word) {
        match word {
            Word::Open => {
                (self.run.record.ready_at, self.run.record.trouble) = (Some(Timestamp::now()), None);
                self.take_in(Event::Ready);
            }
            Word::Busy(busy) => {
                self.talked.0 = busy;
                self.talked.1 += u64::from(busy);
                self.taken_at = None;
                self.take_in(Event::Busy(busy));
            }
            Word::Abandoned => self.take_in(Event::Busy(false)),
            Word::CtrlC => self.tree.signal_group(Signal::INT),
            Word::Broken(why) => {
                let was_ready = self.run.record.ready_at.is_some();
                self.run.record.trouble = Some(why);
                self.save();
                // Nothing makes it well again, and it has a place that others wait for.
                let reason = if was_ready { Reason::Unhealthy } else { Reason::LaunchFailed };
                self.take_in(Event::Stop { grace: None, reason });
            }
        }
    }

    /// Somebody wants it for itself.
    pub(super) fn take(&mut self) -> Answer {
        const TAKEN_FOR: Duration = Duration::from_secs(30);
        let now = BootTime::now();
        let is_taken = self.taken_at.is_some_and(|at| now.saturating_since(at) < TAKEN_FOR);
        if self.talked.0 || is_taken || self.door.is_none() || !self.machine.goes_on() {
            return Answer::Refused { message: "it is in use".to_owned() };
        }
        self.taken_at = Some(now);
        Answer::Done
    }

    /// Somebody asks for the end of the reply.
    pub(super) fn interrupt(&self) -> Answer {
        let refused = |message: &str| Answer::Refused { message: message.to_owned() };
        let Some(door) = &self.door else { return refused("it is no session") };
        if !self.talked.0 {
            return refused("it deals with no message");
        }
        match door.asked.try_send(talker::Asked::Interrupt(None)) {
            Ok(()) => Answer::Done,
            Err(_) => refused("it has too much to do; try again"),
        }
    }

    /// Somebody wants to talk.
    pub(super) fn let_in(&self) -> Answer {
        match &self.door {
            Some(_) if self.machine.goes_on() => Answer::Done,
            Some(_) => Answer::Refused { message: "the session is ending".to_owned() },
            None => Answer::Refused { message: "it is no session".to_owned() },
        }
    }
}
