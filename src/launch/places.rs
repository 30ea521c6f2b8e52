//! What a run takes that others may have: its ports, its name. Whatever refuses does so before somebody is
//! ended for it.

use super::LaunchError;
use crate::owner;
use crate::port::claim::{self, Person, Policy};
use crate::port::displace::Means;
use crate::port::holders;
use crate::ports;
use crate::registry::record::State;
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::run::RunSpec;
use crate::rundir;
use crate::stop::{self, Wish};
use crate::sys::process;
use crate::sys::tcp::Reservation;

/// Takes the ports, and makes room for the name.
pub(super) fn take(
    root: &Root,
    spec: &mut RunSpec,
    person: &dyn Person,
) -> Result<Vec<Reservation>, LaunchError> {
    let mut in_the_way = named_run(root, spec);
    if let Some(run) = &in_the_way {
        may_displace(spec, run, person)?;
    }
    // What is left of it may have the port too, and nobody answers for it.
    if let Some(mut orphan) = in_the_way.take_if(|run| run.state == State::Orphaned) {
        make_way(&mut orphan, spec)?;
    }
    let policy = Policy {
        force: spec.force,
        fallback: spec.fallback,
        range: spec.port_range,
        means: Means {
            grace: None,
            end_watchers: spec.force,
            steal: spec.steal,
            protected: spec.protect.clone(),
            agreed: None,
        },
    };
    let claims = claim::claim(&spec.ports, &policy, person)?;
    if let Some(mut run) = in_the_way {
        make_way(&mut run, spec)?;
    }
    if !claims.is_empty() {
        let ports: Vec<u16> = claims.iter().map(Reservation::port).collect();
        spec.command = spec.command.iter().map(|word| ports::substitute(word, &ports)).collect();
    }
    Ok(claims)
}

fn make_way(run: &mut SeenRun, spec: &RunSpec) -> Result<(), LaunchError> {
    stop::stop(run, None, Wish::Displace).map_err(|source| LaunchError::NameNotFreed {
        name: spec.name.clone().unwrap_or_default(),
        run: run.id.clone(),
        source,
    })
}

fn named_run(root: &Root, spec: &RunSpec) -> Option<SeenRun> {
    let name = spec.name.as_deref()?;
    seen::runs(root).into_iter().find(|run| run.name() == Some(name))
}

/// Refuses unless the run that has the name may be ended, and whoever can say so has.
fn may_displace(spec: &RunSpec, run: &SeenRun, person: &dyn Person) -> Result<(), LaunchError> {
    let name = || spec.name.clone().unwrap_or_default();
    let ours = process::own_line();
    if holders::is_around(run, &ours) || rundir::parents_from_environment().contains(&run.id) {
        return Err(LaunchError::OwnName { name: name(), run: run.id.clone() });
    }
    // What nobody answers for any more is not in the way: it is ended first.
    if run.state == State::Orphaned {
        return Ok(());
    }
    let stranger = run.record.as_ref().ok().and_then(owner::stranger_of).filter(|_| !spec.steal);
    if let Some(owner) = stranger {
        return Err(LaunchError::OthersName {
            name: name(),
            run: run.id.clone(),
            owner: owner::title(&owner),
        });
    }
    let agreed =
        spec.force || person.agrees(&format!("the name {} is that of run {}; end it?", name(), run.id));
    match agreed {
        true => Ok(()),
        false => Err(LaunchError::NameHeld { name: name(), run: run.id.clone() }),
    }
}
