//! The last steps of a run, the same whoever takes them: the managed directory goes, the record is
//! written for the last time and moves to the finished ones, the person is told.

use std::fs::File;
use std::io::Write;

use serde_json::{Value, json};

use crate::exit::{Ending, Reason};
use crate::lease::format_duration;
use crate::limits::format_size;
use crate::output;
use crate::registry::record::{End, Exceeded, Record, Survivor, Timestamp};
use crate::registry::store::LiveRun;
use crate::run::{RunSpec, Verbosity};
use crate::rundir;
use crate::sys::children::Ended;
use crate::sys::fault;
use crate::sys::signal::Signal;

/// How a run ended, with all that the record tells of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why.
    pub reason: Reason,
    /// How the leader ended.
    pub leader: Option<Ended>,
    /// How `agent-run` ends.
    pub ending: Ending,
    /// Whether nothing is left.
    pub verified: bool,
    /// How many processes needed SIGKILL.
    pub killed: u32,
    /// The limit that ended it.
    pub exceeded: Option<Exceeded>,
    /// A port that was held for the command, on which it was never seen to listen.
    pub never_listened: Option<u16>,
    /// What is left.
    pub survivors: Vec<Survivor>,
}

/// Ends `run` on disk and returns what the person is told, if anything. Can be repeated: whoever takes
/// over from a dead supervisor may find any of it done.
pub fn conclude(run: &mut LiveRun, spec: &RunSpec, outcome: &Outcome, events: &mut Events) -> Option<String> {
    run.record.end = Some(End {
        reason: outcome.reason,
        code: outcome.ending.code(),
        signal: match outcome.leader {
            Some(Ended::Signaled(signal)) => Some(signal),
            _ => None,
        },
        at: Timestamp::now(),
        verified: outcome.verified,
        killed: outcome.killed,
        exceeded: outcome.exceeded.clone(),
        survivors: outcome.survivors.clone(),
        dir_error: None,
    });
    // A tree that is not gone may still use the directory; both wait for the next sweep.
    let kept = if outcome.verified { rundir::give_back(run, outcome.ending) } else { None };
    fault::step();
    let dir_error = run.record.end.as_ref().and_then(|end| end.dir_error.clone());
    events.write("ended", &run.record, json!({ "end": run.record.end }));
    let is_done = outcome.verified && dir_error.is_none();
    let root = run.root().path().to_owned();
    if is_done && run.record.log == Some(output::path_of(&root, "runs", run.id(), output::LOG)) {
        // What cannot be cut stays whole, a day long.
        let left = output::keep_tail(run.directory()).unwrap_or(output::LOG);
        run.record.log = Some(output::path_of(&root, "ended", run.id(), left));
    }
    let saved = if is_done { run.finish() } else { run.save() };
    let mut lines: Vec<String> = message(&run.record, spec, outcome).into_iter().collect();
    lines.extend(
        kept.map(|place| format!("kept {}", place.display())).filter(|_| spec.verbosity > Verbosity::Quiet),
    );
    lines.extend(
        dir_error.map(|why| {
            format!("could not remove {}: {why}; remove it by hand", run.managed_path().display())
        }),
    );
    lines.extend(saved.err().map(|why| format!("could not write the record of run {}: {why}", run.id())));
    (!lines.is_empty()).then(|| lines.join("; "))
}

/// Returns the line for a person: why it is over, if that is not plain from the command itself.
fn message(record: &Record, spec: &RunSpec, outcome: &Outcome) -> Option<String> {
    if !outcome.verified {
        const NAMED: usize = 8;
        let left: Vec<String> = outcome
            .survivors
            .iter()
            .take(NAMED)
            .map(|left| format!("pid {} ({}, state {})", left.pid, left.command, left.state))
            .collect();
        return Some(format!(
            "run {} could not be ended, {} still there: {}",
            record.title(),
            outcome.survivors.len(),
            left.join(", ")
        ));
    }
    let seconds =
        |span: Option<f64>| format_duration(std::time::Duration::from_secs_f64(span.unwrap_or_default()));
    let command = record.command.first().map_or("the command", String::as_str);
    let (limit, peak) = outcome.exceeded.as_ref().map_or((0, 0), |figures| (figures.limit, figures.peak));
    let told = match outcome.reason {
        Reason::Ttl => format!("the lease of {} ended, so '{command}' was stopped", seconds(record.ttl_s)),
        Reason::Idle => {
            format!("nothing happened for {}, so '{command}' was stopped", seconds(record.idle_timeout_s))
        }
        Reason::Stop => format!("'{command}' was stopped on request"),
        Reason::Displaced => format!("'{command}' was displaced: somebody wanted its port or its name"),
        Reason::OwnerGone => {
            let owner = record.owner.as_ref();
            let who = owner.and_then(|owner| owner.agent.as_deref()).unwrap_or("a process");
            let pid = owner.map(|owner| owner.process.pid).unwrap_or_default();
            format!("its owner ({who}, pid {pid}) has ended, so '{command}' was stopped")
        }
        Reason::Memory => format!(
            "'{command}' had {} of memory, more than the {} of --memory, and was killed",
            format_size(peak),
            format_size(limit)
        ),
        Reason::Pids => {
            format!(
                "'{command}' had {peak} processes and wanted more than the {limit} of --pids, and was killed"
            )
        }
        // As a shell would say it of the bare command; it sees an exit code alone. A closed pipe is no news.
        Reason::Signal if let Some(signal) = crashed(outcome) => {
            format!("'{command}' died of {signal}")
        }
        Reason::CpuTime => format!("'{command}' used up its CPU time (--cpu-time)"),
        Reason::ReadyTimeout => {
            let why = record.trouble.as_ref().map_or(String::new(), |why| format!(": {why}"));
            format!("'{command}' did not get ready in time{why}; it was stopped")
        }
        Reason::Unhealthy => {
            let why = record.trouble.as_ref().map_or(String::new(), |why| format!(": {why}"));
            format!("'{command}' was unhealthy{why}; it was stopped")
        }
        Reason::SupervisorLost => format!("the supervisor was killed, so '{command}' was stopped"),
        Reason::Exit
            if let Some(port) = outcome.never_listened.filter(|_| outcome.ending != Ending::Code(0)) =>
        {
            format!(
                "'{command}' was not seen to listen on port {port}, which is held for it; if it cannot bind a port \
                 that is held (it sets no SO_REUSEADDR), use --claim release or --claim listen-fd"
            )
        }
        _ if spec.verbosity == Verbosity::Verbose => format!("'{command}' ended: {}", outcome.reason.word()),
        _ => return None,
    };
    let killed = match outcome.killed {
        0 => String::new(),
        1 => " (1 process needed SIGKILL)".to_owned(),
        many => format!(" ({many} processes needed SIGKILL)"),
    };
    (spec.verbosity > Verbosity::Quiet).then(|| format!("{told}{killed}"))
}

/// Returns the signal that the leader died of, if that is not passed on to who started us.
fn crashed(outcome: &Outcome) -> Option<Signal> {
    let by_us = |signal| signal == Signal::KILL && outcome.killed > 0;
    match outcome.leader? {
        Ended::Signaled(signal) if by_us(signal) => None,
        Ended::Signaled(signal) if !signal.is_mirrored() && signal != Signal::PIPE => Some(signal),
        _ => None,
    }
}

/// The file of `--events`: one JSON object a line. Without one, nothing is written.
#[derive(Debug)]
pub struct Events(Option<File>);

impl Events {
    /// Writes to `file`, which was opened for appending: guard and supervisor share it.
    pub fn new(file: Option<File>) -> Events {
        Events(file)
    }

    /// Writes one event, with `more` fields of its own.
    pub fn write(&mut self, event: &str, record: &Record, more: Value) {
        let Some(file) = &mut self.0 else { return };
        let mut line = json!({ "version": 1, "event": event, "at": Timestamp::now(), "id": record.id, "name": record.name });
        if let (Value::Object(line), Value::Object(more)) = (&mut line, more) {
            line.extend(more);
        }
        // A full disk must not end the run; the record tells the end all the same.
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}
