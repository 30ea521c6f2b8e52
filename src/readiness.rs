//! Waiting until a run in the background is ready.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::launch::FATAL;
use crate::output;
use crate::registry::record::State;
use crate::registry::seen::SeenRun;
use crate::run::RunId;
use crate::stop::{self, StopError, Wish};
use crate::sys::files::Changes;
use crate::sys::process::Pidfd;
use crate::sys::signal::{self, Signal, SignalQueue};
use crate::sys::waits;

/// So much of the log is told of a server that did not get ready.
const LAST_LINES: usize = 20;
/// And of each line, in characters.
const LONGEST_LINE: usize = 500;

/// It is not ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// It did not get ready.
    #[error("{name} {why}")]
    Became {
        /// Its name.
        name: String,
        /// The run.
        run: RunId,
        /// What became of it.
        why: String,
        /// The last lines of its output.
        log: Vec<String>,
    },
    /// A signal ended the wait, and what was being started.
    #[error("interrupted by {0}")]
    Interrupted(Signal),
    /// A signal ended the wait, and what was being started could not be ended.
    #[error("{name} is to be ended: {source}")]
    NotEnded {
        /// Its name.
        name: String,
        /// Why not.
        source: StopError,
    },
    /// Waiting failed.
    #[error("cannot wait for it: {0}")]
    Wait(#[from] io::Error),
}

/// Who watches a server getting ready.
pub trait Progress {
    /// It is not ready after `waited`.
    fn waits(&self, run: &SeenRun, waited: Duration);
    /// How often that is to be told; `None` for never.
    fn interval(&self) -> Option<Duration>;
    /// There is nothing more to be told.
    fn over(&self);
}

/// Waits for a run that this process has started: a signal ends it too.
pub fn of_own(mut run: SeenRun, progress: &dyn Progress) -> Result<SeenRun, NotReady> {
    match of(&mut run, 0, None, progress) {
        Err(NotReady::Interrupted(signal)) => {
            let name = title(&run);
            stop::stop(&mut run, None, Wish::Stop).map_err(|source| NotReady::NotEnded { name, source })?;
            Err(NotReady::Interrupted(signal))
        }
        result => result.map(|()| run),
    }
}

/// Waits until `run` is ready, at least `restarts` times started again; its supervisor ends it if that takes too long.
pub fn of(
    run: &mut SeenRun,
    restarts: u32,
    limit: Option<Duration>,
    progress: &dyn Progress,
) -> Result<(), NotReady> {
    signal::block(&FATAL);
    let waited = wait(run, restarts, limit, progress);
    signal::unblock(&FATAL);
    progress.over();
    waited
}

fn wait(
    run: &mut SeenRun,
    restarts: u32,
    limit: Option<Duration>,
    progress: &dyn Progress,
) -> Result<(), NotReady> {
    let begun = Instant::now();
    let (queue, changes) = (SignalQueue::open(&FATAL)?, Changes::within(&run.directory)?);
    loop {
        // Who is dead before the lock is asked after needs no more waiting for.
        let supervised = run.is_supervised();
        run.reread();
        if let Ok(record) = &run.record {
            run.state = record.state;
            if [State::Ready, State::Unhealthy].contains(&record.state) && record.restarts >= restarts {
                return Ok(());
            }
        }
        if !supervised {
            run.state = State::Finished;
            return Err(not_ready(run, what_became(run)));
        }
        if limit.is_some_and(|limit| begun.elapsed() > limit) {
            return Err(not_ready(run, "does not get ready".to_owned()));
        }
        progress.waits(run, begun.elapsed());
        let keepers = run.record.iter().flat_map(|record| [&record.guard, &record.supervisor]).flatten();
        let pinned: Vec<Pidfd> = keepers.filter_map(|keeper| keeper.pin()).collect();
        let mut fds = vec![(queue.as_fd(), true), (changes.as_fd(), true)];
        fds.extend(pinned.iter().map(|pidfd| (pidfd.as_fd(), true)));
        // Another pid namespace's are not seen.
        let unseen = pinned.is_empty().then_some(Duration::from_millis(100));
        let pause = [progress.interval(), unseen, limit].into_iter().flatten().min();
        waits::any(&fds, pause)?;
        if let Some(signal) = queue.next() {
            return Err(NotReady::Interrupted(signal));
        }
        changes.clear();
    }
}

fn not_ready(run: &SeenRun, why: String) -> NotReady {
    let log = output::last_lines(&run.directory, LAST_LINES);
    let log = log.iter().map(|line| line.text().chars().take(LONGEST_LINE).collect());
    NotReady::Became { name: title(run), run: run.id.clone(), why, log: log.collect() }
}

fn what_became(run: &SeenRun) -> String {
    use crate::exit::Reason;
    let Ok(record) = &run.record else { return "was lost before it was ready".to_owned() };
    let trouble = record.trouble.as_ref().map_or(String::new(), |why| format!(": {why}"));
    match record.end.as_ref().map(|end| (end.reason, end.signal, end.code)) {
        Some((Reason::ReadyTimeout, ..)) => format!("did not get ready in time{trouble}"),
        Some((Reason::Exit | Reason::Signal | Reason::CpuTime, Some(signal), _)) => {
            format!("died of {signal} before it was ready")
        }
        Some((Reason::Exit, None, code)) => format!("ended with code {code} before it was ready"),
        Some((Reason::LaunchFailed, ..)) => format!("could not be started{trouble}"),
        Some((reason, ..)) => format!("was ended before it was ready ({})", reason.word()),
        None => "was lost before it was ready: guard and supervisor were killed".to_owned(),
    }
}

fn title(run: &SeenRun) -> String {
    run.name().map_or_else(|| run.id.to_string(), str::to_owned)
}
