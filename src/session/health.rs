//! What sessions do and use at the moment.

use serde::Serialize;

use crate::control::client::ask;
use crate::control::{Answer, Request};
use crate::registry::seen::SeenRun;
use crate::run::RunId;
use crate::usage::{Census, Usage};

/// A session with what only a look at the moment tells.
#[derive(Debug)]
pub struct Seen {
    /// The run.
    pub run: SeenRun,
    /// Whether guard or supervisor live.
    pub alive: bool,
    /// Seconds since it had something to do.
    pub idle_s: Option<f64>,
    /// Whether it deals with a message.
    pub busy: bool,
    /// How many it has had.
    pub messages: u64,
    /// What its processes use.
    pub usage: Option<Usage>,
}

/// Looks at `runs`: at all processes once, and asks each supervisor.
pub fn look(runs: Vec<SeenRun>) -> Vec<Seen> {
    let alive: Vec<bool> = runs.iter().map(SeenRun::is_supervised).collect();
    let living = runs.iter().zip(&alive).filter(|(_, alive)| **alive);
    let census = Census::take(living.filter_map(|(run, _)| run.record.as_ref().ok()));
    let look = |(run, alive): (SeenRun, bool)| {
        let (idle_s, busy, messages) = match alive.then(|| ask(&run.directory, Request::Live)) {
            Some(Ok(Answer::Live { idle_s, busy, messages })) => (idle_s, busy, messages),
            _ => (None, false, 0),
        };
        let usage = run.record.as_ref().ok().filter(|_| alive).map(|record| census.usage_with_fds(record));
        Seen { run, alive, idle_s, busy, messages, usage }
    };
    runs.into_iter().zip(alive).map(look).collect()
}

/// The health of all, as `session health --json` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// How many sessions there are.
    pub total_processes: usize,
    /// Of those that live.
    pub alive_processes: usize,
    /// Of those that have lost guard and supervisor.
    pub dead_processes: usize,
    /// One by one.
    pub processes: Vec<ProcessHealth>,
}

/// The health of one.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessHealth {
    /// The run.
    pub id: RunId,
    /// Its name.
    pub name: Option<String>,
    /// What it is.
    pub provider: Option<String>,
    /// Whether guard or supervisor live.
    pub alive: bool,
    /// Whether it deals with a message.
    pub busy: bool,
    /// How many it has had.
    pub messages: u64,
    /// Seconds since it had something to do.
    pub idle_time: Option<f64>,
    /// Whether one process answers all messages, and not one each.
    pub session_mode: bool,
    /// What its processes use.
    pub resource_usage: ResourceUsage,
}

/// What the processes of a session use.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ResourceUsage {
    /// Resident memory, in MiB.
    pub memory_mb: Option<f64>,
    /// CPU time over the session's whole life, in percent of one core.
    pub cpu_percent: Option<f64>,
    /// Open descriptors.
    pub num_fds: Option<u64>,
}

impl Health {
    /// Puts together what was seen.
    pub fn of(seen: &[Seen]) -> Health {
        let alive = seen.iter().filter(|it| it.alive).count();
        Health {
            total_processes: seen.len(),
            alive_processes: alive,
            dead_processes: seen.len() - alive,
            processes: seen.iter().map(ProcessHealth::of).collect(),
        }
    }
}

impl ProcessHealth {
    /// Puts together what was seen of one.
    pub fn of(seen: &Seen) -> ProcessHealth {
        let record = seen.run.record.as_ref().ok();
        let age = record.map_or(0.0, |record| record.started_at.age().as_secs_f64());
        ProcessHealth {
            id: seen.run.id.clone(),
            name: seen.run.name().map(str::to_owned),
            provider: record.and_then(|record| record.provider.clone()),
            alive: seen.alive,
            busy: seen.busy,
            messages: seen.messages,
            idle_time: seen.idle_s,
            session_mode: record.and_then(|record| record.protocol.as_deref()) != Some("oneshot"),
            resource_usage: ResourceUsage {
                memory_mb: seen.usage.map(|usage| usage.rss_bytes as f64 / f64::from(1 << 20)),
                cpu_percent: seen.usage.map(|usage| usage.cpu_s / age.max(0.01) * 100.0),
                num_fds: seen.usage.and_then(|usage| usage.fds),
            },
        }
    }
}
