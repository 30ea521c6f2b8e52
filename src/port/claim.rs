//! Taking ports for a run. The kernel is the arbiter: what two ask for at once, one gets.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use super::displace::{self, Agreed, Failed, Means, Outcome, Registry};
use super::holders::{self, Holder, Search};
use super::verdict::{Spared, Verdict, judge};
use super::words;
use crate::ports::{PortChoice, PortRange};
use crate::registry::record;
use crate::registry::seen::SeenRun;
use crate::sys::sockets::{self, State};
use crate::sys::tcp::{self, Reservation};

/// What may be done about a port that is held.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its holder is ended without asking.
    pub force: bool,
    /// The next free one is taken.
    pub fallback: bool,
    /// Where any port is looked for.
    pub range: PortRange,
    /// How its holder is ended.
    pub means: Means,
}

/// The person, if there is one.
pub trait Person {
    /// Asks; no is the answer of nobody.
    fn agrees(&self, question: &str) -> bool;
    /// Tells one line.
    fn hears(&self, line: &str);
    /// Tells one line to whoever wants to know all.
    fn hears_details(&self, line: &str);
}

/// A port that was not taken. Nothing was, then.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Somebody has it.
    #[error("port {port} is held by {who}")]
    Held {
        /// The port.
        port: u16,
        /// In words.
        who: String,
        /// Why it may not be ended, if so.
        why: Option<Spared>,
    },
    /// Somebody has it who may not be ended.
    #[error("port {port} is held by {who}, which may not be ended: {why}")]
    Spared {
        /// The port.
        port: u16,
        /// In words.
        who: String,
        /// Why not.
        why: Spared,
    },
    /// Who had it was ended, or tried to, and it is held again or still.
    #[error("port {port} could not be freed: {why}")]
    NotFreed {
        /// The port.
        port: u16,
        /// What happened.
        why: String,
    },
    /// Every port of the range is held.
    #[error("no free port is left in {0}")]
    NoneFree(PortRange),
    /// The same port is asked for twice.
    #[error("port {0} is asked for twice")]
    Twice(u16),
    /// No listener, but connections that use the number.
    #[error("port {0} is the local port of a connection; it is free when that ends")]
    Connection(u16),
    /// Below the first port that needs no privilege.
    #[error("port {0} is privileged: those below {first} are for root here", first = tcp::first_unprivileged())]
    Privileged(u16),
    /// Not in use, but forbidden.
    #[error("this process may not bind ports (a sandbox?): {0}")]
    Sandbox(io::Error),
    /// The kernel refuses.
    #[error("cannot take port {port}: {source}")]
    System {
        /// The port; 0 for any.
        port: u16,
        /// Why not.
        source: io::Error,
    },
}

/// Takes a port for each of `choices`, all or none.
pub fn claim(
    choices: &[PortChoice],
    policy: &Policy,
    person: &dyn Person,
) -> Result<Vec<Reservation>, ClaimError> {
    let mut named = BTreeSet::new();
    for choice in choices {
        if let PortChoice::One(port) = choice
            && !named.insert(*port)
        {
            return Err(ClaimError::Twice(*port));
        }
    }
    // Those that must be one certain port come first, so that another choice does not take it away; and nobody is ended
    // before it is clear that all can be had.
    let mut taken: Vec<Option<Reservation>> = choices.iter().map(|_| None).collect();
    let mut fights = Vec::new();
    for (index, choice) in choices.iter().enumerate() {
        let PortChoice::One(port) = choice else { continue };
        match one(*port, policy, person)? {
            Step::Taken(reservation) => taken[index] = Some(reservation),
            Step::Fight(fight) => fights.push((index, fight)),
        }
    }
    for (index, choice) in choices.iter().enumerate() {
        taken[index] = match (taken[index].take(), choice) {
            (None, PortChoice::Range(range)) => Some(first_of(*range)?),
            (None, PortChoice::Auto) => Some(any(&mut policy.range.ports())?),
            (before, _) => before,
        };
    }
    for (index, fight) in fights {
        taken[index] = Some(fight.win(policy, person)?);
    }
    Ok(taken.into_iter().flatten().collect())
}

/// Takes the first free port of `range`.
fn first_of(range: PortRange) -> Result<Reservation, ClaimError> {
    first_free(range.ports())?.ok_or(ClaimError::NoneFree(range))
}

/// Takes the first free port of `ports` that the administrator has not kept from automatic use, else any that the kernel
/// has.
fn any(ports: &mut dyn Iterator<Item = u16>) -> Result<Reservation, ClaimError> {
    let kept = tcp::reserved();
    let is_kept = |port: u16| kept.iter().any(|(low, high)| (*low..=*high).contains(&port));
    match first_free(ports.filter(|port| !is_kept(*port)))? {
        Some(taken) => Ok(taken),
        None => Reservation::take(0).map_err(|error| refused(0, error)),
    }
}

/// Takes `count` free ports of `range`; above them any that the kernel has, unless they must be `within`.
pub fn several(count: usize, range: PortRange, within: bool) -> Result<Vec<Reservation>, ClaimError> {
    let mut ports = range.ports();
    let mut next = || match within {
        true => first_free(&mut ports)?.ok_or(ClaimError::NoneFree(range)),
        false => any(&mut ports),
    };
    (0..count).map(|_| next()).collect()
}

fn first_free(ports: impl Iterator<Item = u16>) -> Result<Option<Reservation>, ClaimError> {
    let (mut privileged, mut in_use) = (None, false);
    for port in ports {
        match Reservation::take(port) {
            Ok(taken) => return Ok(Some(taken)),
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => in_use = true,
            Err(error) if error.raw_os_error() == Some(libc::EACCES) && port < tcp::first_unprivileged() => {
                privileged = privileged.or(Some(port));
            }
            Err(error) => return Err(refused(port, error)),
        }
    }
    match privileged.filter(|_| !in_use) {
        Some(port) => Err(ClaimError::Privileged(port)),
        None => Ok(None),
    }
}

/// Tells apart what must not look like "in use".
fn refused(port: u16, error: io::Error) -> ClaimError {
    match error.raw_os_error() {
        Some(libc::EACCES) if port != 0 && port < tcp::first_unprivileged() => ClaimError::Privileged(port),
        Some(libc::EPERM | libc::EACCES) => ClaimError::Sandbox(error),
        _ => ClaimError::System { port, source: error },
    }
}

/// Where a port stands after a look.
enum Step {
    Taken(Reservation),
    Fight(Fight),
}

/// A port whose holders are to be ended.
struct Fight {
    port: u16,
    agreed: Option<Agreed>,
}

fn one(port: u16, policy: &Policy, person: &dyn Person) -> Result<Step, ClaimError> {
    let looked = match Reservation::take(port) {
        Ok(taken) => Ok(Step::Taken(taken)),
        Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => contested(port, policy, person),
        Err(error) => Err(refused(port, error)),
    };
    match looked {
        Err(error) if policy.fallback && !matches!(error, ClaimError::Sandbox(_)) => {
            fall_back(port, &error, policy, person).map(Step::Taken)
        }
        result => result,
    }
}

fn fall_back(
    port: u16,
    why: &ClaimError,
    policy: &Policy,
    person: &dyn Person,
) -> Result<Reservation, ClaimError> {
    let next = any(&mut (port.saturating_add(1)..=u16::MAX).chain(policy.range.ports()))?;
    person.hears(&format!("{why}; port {} was taken instead", next.port()));
    Ok(next)
}

fn contested(port: u16, policy: &Policy, person: &dyn Person) -> Result<Step, ClaimError> {
    let runs = Registry::open().runs();
    let ports = BTreeSet::from([port]);
    let look = holders::find(Some(&ports), &runs, Search::Enough);
    let holders = look.map_err(|error| held(port, &format!("somebody ({error})")))?;
    let Some(first) = holders.first() else { return over_closed(port, &runs, person).map(Step::Taken) };
    if holders.iter().all(Holder::is_ghost)
        && let Ok(taken) = Reservation::take(port)
    {
        // Whoever had it was just going.
        return Ok(Step::Taken(taken));
    }
    let who = words::all(&holders, &runs);
    let context = policy.means.context(&holders, &runs);
    let verdicts: Vec<Verdict> = holders.iter().flat_map(|holder| judge(holder, &context)).collect();
    let spared = verdicts.iter().find_map(|verdict| match verdict {
        // A server that is just about to listen is looked at again.
        Verdict::Spare(_, Spared::NotListening) if policy.force => None,
        Verdict::Spare(_, why) => Some(why.clone()),
        _ => None,
    });
    if let Some(why) = spared {
        let who = words::who(first, &runs);
        return Err(match policy.force {
            true => ClaimError::Spared { port, who, why },
            false => ClaimError::Held { port, who, why: Some(why) },
        });
    }
    // Whoever wants another port rather than a fight is not asked.
    let asks = !policy.force && !policy.fallback;
    let agreed = policy.force || asks && person.agrees(&format!("port {port} is held by {who}; end it?"));
    if agreed {
        return Ok(Step::Fight(Fight { port, agreed: asks.then(|| Agreed::to(verdicts.iter())) }));
    }
    // It may have ended while somebody was asked.
    Reservation::take(port).map(Step::Taken).map_err(|_| held(port, &who))
}

fn held(port: u16, who: &str) -> ClaimError {
    ClaimError::Held { port, who: who.to_owned(), why: None }
}

impl Fight {
    fn win(self, policy: &Policy, person: &dyn Person) -> Result<Reservation, ClaimError> {
        let Fight { port, agreed } = self;
        let registry = Registry::open();
        let means = Means { agreed, ..policy.means.clone() };
        let failed = |error: io::Error| ClaimError::NotFreed { port, why: error.to_string() };
        let outcome = displace::make_room(port, &means, &registry).map_err(failed)?;
        let ended: Vec<String> =
            outcome.ended.iter().filter_map(|(process, _)| process.as_ref().map(words::brief)).collect();
        if !ended.is_empty() {
            person.hears(&format!("ended {} to free port {port}", ended.join(", ")));
        }
        match take_when_free(port, &outcome, &registry, person) {
            Err(error) if policy.fallback => fall_back(port, &error, policy, person),
            result => result,
        }
    }
}

/// After its holder has ended, a port may be in use for another moment: of dying processes, of connections.
fn take_when_free(
    port: u16,
    outcome: &Outcome,
    registry: &Registry,
    person: &dyn Person,
) -> Result<Reservation, ClaimError> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let begun = Instant::now();
    loop {
        match Reservation::take(port) {
            Ok(taken) => return Ok(taken),
            Err(error) if error.raw_os_error() != Some(libc::EADDRINUSE) => return Err(refused(port, error)),
            Err(_) => {}
        }
        if sockets::list(&holders::HOLDING, Some(port)).is_ok_and(|holders| holders.is_empty()) {
            return over_closed(port, &registry.runs(), person);
        }
        let came_back = outcome.watcher.is_some() && !outcome.remaining.is_empty();
        if begun.elapsed() > PATIENCE || came_back {
            return Err(ClaimError::NotFreed { port, why: why_not(outcome) });
        }
        let _ = crate::sys::waits::any(&[], Some(Duration::from_millis(10)));
    }
}

fn why_not(outcome: &Outcome) -> String {
    if let Some(watcher) = outcome.watcher.as_ref().filter(|_| !outcome.remaining.is_empty()) {
        return format!("{} starts its holder again; end that first", words::process(watcher));
    }
    if let Some((process, why)) = outcome.spared.first() {
        let who = process.as_ref().map_or("its holder".to_owned(), words::process);
        return format!("{who} is left alone: {why}");
    }
    if let Some(Failed { process, why, .. }) = outcome.failed.first() {
        return process.as_ref().map_or(why.clone(), |process| format!("{}: {why}", words::process(process)));
    }
    "it was taken again at once".to_owned()
}

/// Takes a port on which nobody listens any more but whose number is in use by what was connected to it. It must be
/// plain that nothing else keeps it: bound this way, it does not keep out another one that does the same, and before
/// Linux 6.8 a claim that does not listen yet is not listed.
fn over_closed(port: u16, runs: &[SeenRun], person: &dyn Person) -> Result<Reservation, ClaimError> {
    // Whose keepers are dead, that claims nothing any more.
    let claims = |run: &SeenRun| {
        run.state != record::State::Orphaned
            && run.record.as_ref().is_ok_and(|record| record.ports.contains(&port))
    };
    if let Some(run) = runs.iter().find(|run| claims(run)) {
        return Err(held(port, &format!("run {} (its claim)", run.id)));
    }
    let connections = sockets::list(&State::of_connections(), Some(port));
    let connections = connections.map_err(|error| held(port, &format!("somebody ({error})")))?;
    if connections.is_empty() {
        // Whoever had it has gone while we looked, or cannot be listed.
        return Reservation::take(port).map_err(|_| held(port, "somebody who cannot be seen from here"));
    }
    let taken = match Reservation::take_over_closed(port) {
        Ok(taken) => taken,
        Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {
            return Err(ClaimError::Connection(port));
        }
        Err(error) => return Err(refused(port, error)),
    };
    let bound = sockets::list(&[State::Bound], Some(port))
        .map_err(|error| held(port, &format!("somebody ({error})")))?;
    if bound.len() > 1 {
        return Err(held(port, "another run that has just claimed it"));
    }
    let waits = connections.iter().filter(|socket| socket.state == State::TimeWait);
    if let Some(left) = waits.map(|socket| socket.expires).max() {
        let seconds = left.as_secs().max(1);
        person.hears_details(&format!(
            "port {port} has closed connections in TIME_WAIT: a server that does not set SO_REUSEADDR cannot bind it for {seconds}s"
        ));
    }
    Ok(taken)
}
