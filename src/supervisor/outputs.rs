//! Where the command's output goes, from one start of it to the next.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::relay::{self, CommandEnds, Relay, Sink};
use super::scan::Scanner;
use crate::output;
use crate::registry::store::LiveRun;
use crate::run::RunSpec;
use crate::service::Check;

/// The way of the output; `None` where the command has the caller's own descriptors.
#[derive(Debug)]
pub(super) struct Outputs {
    sink: Option<Sink>,
    checks: Vec<Check>,
    /// What looks for lines of the command that runs now.
    pub(super) scanner: Option<Scanner>,
    relay: Option<Relay>,
}

impl Outputs {
    /// Opens the log of a run in the background, and takes that of `--log`.
    pub(super) fn new(spec: &RunSpec, run: &LiveRun, copy: Option<File>) -> io::Result<Outputs> {
        let checks = spec.service.ready.clone();
        let scans = Scanner::of(&checks).is_some();
        let sink = if spec.session.is_some() {
            // Its output is its replies; only stderr is written down, by whoever talks with it.
            None
        } else if spec.background {
            let writer = output::Writer::open(run.directory(), spec.service.log_size)?;
            Some(Sink::Log(Arc::new(Mutex::new(writer))))
        } else {
            (copy.is_some() || scans).then_some(Sink::Caller(copy))
        };
        Ok(Outputs { sink, checks, scanner: None, relay: None })
    }

    /// Opens the way for a command that is to be started.
    pub(super) fn open(&mut self) -> io::Result<Option<CommandEnds>> {
        self.scanner = Scanner::of(&self.checks);
        let started = self.sink.as_ref().map(|sink| relay::start(sink, self.scanner.as_ref())).transpose()?;
        let (relay, ends) = started.unzip();
        self.relay = relay;
        Ok(ends)
    }

    /// The leader has ended: nobody who reads the caller's pipes waits for what it has left behind. In the
    /// background, what the others say on their way out is kept.
    pub(super) fn leader_ended(&mut self) {
        if let (Some(relay), Some(Sink::Caller(_))) = (&mut self.relay, &self.sink) {
            relay.leader_ended();
        }
    }

    /// Returns whether something may still be on its way.
    pub(super) fn is_open(&self) -> bool {
        self.relay.is_some()
    }

    /// Passes on what is left, see [`Relay::finish`].
    pub(super) fn finish(&mut self, patience: Duration) {
        if let Some(relay) = self.relay.take() {
            relay.finish(patience);
        }
    }

    /// Writes a remark of ours between two lives of a command in the background; a line that the first has begun ends there.
    pub(super) fn remark(&self, text: &str) {
        if let Some(Sink::Log(log)) = &self.sink {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.end_lines();
            log.write(output::Stream::Note, format!("{text}\n").as_bytes());
        }
    }
}
