//! Runs whose guard and supervisor were killed in the same instant: the one hole that they cannot close
//! themselves. Whoever comes next does it: a launch or `stop`.

use std::time::Duration;

use crate::containment;
use crate::ending::{Events, Outcome, conclude};
use crate::exit::{Ending, OWN_FAILURE, Reason};
use crate::registry::record::{End, RecordError, State};
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::registry::store::{self, LiveRun};
use crate::run::{DEFAULT_GRACE, RunSpec, Verbosity};
use crate::rundir;
use crate::sys::signal::Signal;
use crate::sys::spawn;
use crate::teardown::marks::Marks;

/// Launches look for orphans at most this often, all together: with hundreds of runs a look is not free.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// And at so many runs each time.
const LOOKED_AT: usize = 100;

/// Ends the orphaned run `seen`: its processes, its directory, its entry. Returns how it ended; `None` if
/// it is not an orphan (any more), cannot be understood, or if we are within it ourselves.
pub fn recover(root: Root, seen: &SeenRun, grace: Option<Duration>) -> Option<End> {
    if seen.state != State::Orphaned
        || seen.record.is_err()
        || rundir::parents_from_environment().contains(&seen.id)
    {
        return None;
    }
    let mut run = LiveRun::adopt(root, &seen.id)?;
    if let Some(end) = run.record.end.clone().filter(|end| end.verified) {
        return Some(finish_again(&mut run, end));
    }
    let own_grace = Duration::try_from_secs_f64(run.record.grace_s).unwrap_or_default();
    let marks = Marks::of(&run.record, run.open_tree_lock().ok());
    let (survivors, killed) =
        marks.map_or((Vec::new(), 0), |marks| marks.end(run.record.signal, grace.unwrap_or(own_grace)));
    let outcome = Outcome {
        reason: Reason::SupervisorLost,
        leader: None,
        ending: Ending::Code(OWN_FAILURE),
        verified: survivors.is_empty(),
        killed,
        exceeded: None,
        never_listened: None,
        survivors,
    };
    // What it says is for the run's own person, who is not here.
    let mut spec = RunSpec::new(run.record.command.clone());
    spec.verbosity = Verbosity::Quiet;
    conclude(&mut run, &spec, &outcome, &mut Events::new(None));
    run.record.end.clone()
}

/// Removes an entry that cannot be read, and ends what its id alone finds. Returns whether it is gone; one of a
/// newer version is left to the newer program.
pub fn remove_broken(root: &Root, seen: &SeenRun, grace: Option<Duration>) -> bool {
    if !matches!(seen.record, Err(RecordError::Broken(_))) || seen.directory.try_lock().is_err() {
        return false;
    }
    let lock = store::tree_lock_of(root, &seen.id).ok();
    let marks = Marks::of_id(&seen.id, lock, containment::leaf_of(&seen.id));
    let (survivors, _) = marks.end(Signal::TERM, grace.unwrap_or(DEFAULT_GRACE));
    survivors.is_empty() && store::remove_entry(root, &seen.id).is_ok()
}

/// Nothing of the run lives; only the directory could not be removed, or the last line was not reached.
fn finish_again(run: &mut LiveRun, end: End) -> End {
    if let Some(end) = &mut run.record.end {
        end.dir_error = None;
    }
    if run.record.dir.is_some() {
        rundir::give_back(run, end.code_as_ending());
    }
    let done = run.record.end.as_ref().is_none_or(|end| end.dir_error.is_none());
    // What does not work now is tried again by whoever comes next.
    let _ = if done { run.finish() } else { run.save() };
    run.record.end.clone().unwrap_or(end)
}

/// Ends all orphaned runs if nobody has looked just now, in a process of its own: nobody waits for their
/// graces. This process must have one thread, and not be a subreaper yet.
pub fn recover_all_now_and_then(root: &Root) {
    if !root.is_time_to_look(LOOK_EVERY) {
        return;
    }
    store::remove_unfinished_entries(root);
    let mut orphans = seen::dead(root, LOOKED_AT);
    orphans.retain(|run| run.record.is_ok());
    if !orphans.is_empty() {
        // If the fork fails, the next launch tries.
        let _ = spawn::detached(c"arun-recover", || {
            for orphan in &orphans {
                Root::open_at(root.path()).ok().and_then(|root| recover(root, orphan, None));
            }
        });
    }
}
