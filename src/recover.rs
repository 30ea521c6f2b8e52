//! Runs whose guard and supervisor were killed in the same instant: the one hole that they cannot close
//! themselves. Whoever comes next does it: a launch, `stop`, or a look at the registry.

use std::time::Duration;

use crate::ending::{Events, Outcome, conclude};
use crate::exit::{Ending, OWN_FAILURE, Reason};
use crate::registry::record::{End, State};
use crate::registry::root::Root;
use crate::registry::store::{self, LiveRun, SeenRun};
use crate::run::{RunSpec, Verbosity};
use crate::rundir;
use crate::teardown::marks::Marks;

/// Launches look for orphans at most this often, all together: with hundreds of runs a look is not free.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
        survivors,
    };
    // What it says is for the run's own person, who is not here.
    let mut spec = RunSpec::new(run.record.command.clone());
    spec.verbosity = Verbosity::Quiet;
    conclude(&mut run, &spec, &outcome, &mut Events::new(None));
    run.record.end.clone()
}

/// Ends all orphaned runs, if nobody has looked just now. Returns how many there were.
pub fn recover_all_now_and_then(root: &Root) -> usize {
    if !root.is_time_to_look(LOOK_EVERY) {
        return 0;
    }
    store::remove_unfinished_entries(root);
    let orphans: Vec<SeenRun> =
        store::runs(root).into_iter().filter(|run| run.state == State::Orphaned).collect();
    let recovered = orphans.iter().filter_map(|run| recover(Root::open_at(root.path()).ok()?, run, None));
    recovered.count()
}
