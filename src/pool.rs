//! How many runs of a kind live at once. A place is taken by a living guard or supervisor, never by a record alone.

use std::fs::{self, File};
use std::io;
use std::time::{Duration, Instant};

use crate::control::client::ask;
use crate::control::{Answer, Request};
use crate::lease::format_duration;
use crate::limits::format_size;
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::run::{Kind, RunSpec};
use crate::stop::{self, Wish};
use crate::sys::waits;

/// There is no place.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// So many live already.
    #[error("process limit reached ({there} of {most} {kind}s){}", longest.as_ref().map_or(String::new(), |longest| format!("; longest idle is {longest}")))]
    Full {
        /// What they are.
        kind: &'static str,
        /// How many there are.
        there: usize,
        /// How many there may be.
        most: u32,
        /// The one that has had nothing to do for the longest time.
        longest: Option<String>,
    },
    /// None may live at all.
    #[error("no {0} may be started: the limit is 0")]
    Zero(&'static str),
    /// There is not enough memory.
    #[error("it will need {} of memory, and the machine has {} to give", format_size(*needs), format_size(*available))]
    Memory {
        /// What it will need.
        needs: u64,
        /// What there is.
        available: u64,
    },
    /// Nobody else may count meanwhile, and that cannot be seen to.
    #[error("cannot lock the pool: {0}")]
    Lock(#[from] io::Error),
}

/// Waits for a place for `spec`, and returns what keeps others from taking it until the run is entered.
pub fn admit(root: &Root, spec: &RunSpec) -> Result<Option<File>, PoolError> {
    const AGAIN: Duration = Duration::from_millis(50);
    if let Some((needs, available)) =
        spec.pool.needs.zip(available_memory()).filter(|(needs, has)| needs > has)
    {
        return Err(PoolError::Memory { needs, available });
    }
    let Some(most) = spec.pool.most else { return Ok(None) };
    let kind = spec.kind.word();
    if most == 0 {
        return Err(PoolError::Zero(kind));
    }
    // One that is too long to be added is for ever.
    let until = Instant::now().checked_add(spec.pool.wait);
    loop {
        let turn = root.turn_of(&format!("all {kind}s"))?;
        // Whose name is taken over makes room for it.
        let is_other =
            |run: &SeenRun| spec.name.is_none() || !spec.force || run.name() != spec.name.as_deref();
        let living: Vec<SeenRun> =
            seen::runs(root).into_iter().filter(|run| is_of(run, spec.kind) && is_other(run)).collect();
        if living.len() < most as usize {
            return Ok(Some(turn));
        }
        let mut idle = idle_of(living);
        if end_overdue(&mut idle) {
            continue;
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            let longest = idle.first().map(|it| format!("{} ({})", it.title(), format_duration(it.idle)));
            return Err(PoolError::Full { kind, there: idle.len(), most, longest });
        }
        drop(turn);
        let _ = waits::any(&[], Some(AGAIN));
    }
}

fn is_of(run: &SeenRun, kind: Kind) -> bool {
    run.is_supervised() && run.record.as_ref().is_ok_and(|record| record.kind == kind && record.end.is_none())
}

/// A run, and how long it has had nothing to do.
struct Idle {
    run: SeenRun,
    idle: Duration,
    busy: bool,
}

impl Idle {
    fn title(&self) -> String {
        self.run.record.as_ref().map_or_else(|_| self.run.id.to_string(), |record| record.title().to_owned())
    }

    fn is_overdue(&self) -> bool {
        let limit = self.run.record.as_ref().ok().and_then(|record| record.idle_timeout_s);
        !self.busy && limit.is_some_and(|limit| self.idle.as_secs_f64() >= limit)
    }
}

/// The longest idle first.
fn idle_of(living: Vec<SeenRun>) -> Vec<Idle> {
    let look = |run: SeenRun| {
        let (idle, busy) = match ask(&run.directory, Request::Live) {
            Ok(Answer::Live { idle_s, busy, .. }) => (idle_s.unwrap_or_default(), busy),
            _ => (0.0, true),
        };
        Idle { run, idle: Duration::try_from_secs_f64(idle).unwrap_or_default(), busy }
    };
    let mut found: Vec<Idle> = living.into_iter().map(look).collect();
    found.sort_by_key(|it| (it.busy, std::cmp::Reverse(it.idle)));
    found
}

/// Ends what has been idle past its time; returns whether there was something.
fn end_overdue(found: &mut [Idle]) -> bool {
    let mut any = false;
    for it in found.iter_mut().filter(|it| it.is_overdue()) {
        any |= stop::stop(&mut it.run, None, Wish::Stop).is_ok();
    }
    any
}

/// `MemAvailable` (proc_meminfo(5), Linux 3.14) in bytes.
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
