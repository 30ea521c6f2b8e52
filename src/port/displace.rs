//! Making room on a port: who holds it is asked to end, has a grace, and is killed; then it is looked again.
//!
//! Each signal goes through a pidfd to a process that has just been seen with a socket on the port. One that
//! lets go of it is spared the rest. A port may be taken anew by a process that a parent starts again: then that
//! parent is the one to end, or to name.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::holders::{self, Holder, Process, Search};
use super::verdict::{Context, Spared, Verdict, judge, refusal};
use crate::owner;
use crate::programs;
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::run::RunId;
use crate::rundir;
use crate::stop::{self, Wish};
use crate::sys::clock::BootTime;
use crate::sys::descriptors::{self, Kind};
use crate::sys::process::{self, Pid, Pidfd, ProcessRef, Stat};
use crate::sys::signal::Signal;
use crate::sys::sockets::State;
use crate::sys::{sockets, waits};
use crate::teardown::progress::{Due, Progress};

/// How room is made.
#[derive(Clone, Debug)]
pub struct Means {
    /// Between SIGTERM and SIGKILL; a run's own for `None`.
    pub grace: Option<Duration>,
    /// Whether a parent that starts a server again is ended too.
    pub end_watchers: bool,
    /// Whether runs of other living owners are ended.
    pub steal: bool,
    /// Names that are protected.
    pub protected: Vec<String>,
    /// Those alone that a person has agreed to; whoever comes later is left alone.
    pub agreed: Option<Agreed>,
}

/// Whom a person has agreed to end.
#[derive(Clone, Debug, Default)]
pub struct Agreed {
    processes: Vec<ProcessRef>,
    runs: Vec<RunId>,
}

impl Agreed {
    /// Agrees to all that `verdicts` end.
    pub fn to<'a>(verdicts: impl Iterator<Item = &'a Verdict>) -> Agreed {
        let mut agreed = Agreed::default();
        for verdict in verdicts {
            match verdict {
                Verdict::End(process) => agreed.processes.push(process.process.clone()),
                Verdict::EndRun(run) => agreed.runs.push(run.clone()),
                Verdict::Spare(..) => {}
            }
        }
        agreed
    }

    fn has(&self, verdict: &Verdict) -> bool {
        match verdict {
            Verdict::End(process) => self.processes.contains(&process.process),
            Verdict::EndRun(run) => self.runs.contains(run),
            Verdict::Spare(..) => true,
        }
    }
}

/// How a holder ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// After SIGTERM.
    Gracefully,
    /// By SIGKILL.
    ByForce,
    /// With its run.
    WithRun {
        /// The run.
        run: RunId,
        /// Whether something of it needed SIGKILL.
        by_force: bool,
    },
    /// It has let go of the port, and lives.
    LetGo,
}

/// What was done, and what is left.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Who was ended, and how; of a run that only claimed the port no process.
    pub ended: Vec<(Option<Process>, How)>,
    /// Who should have been, and was not.
    pub failed: Vec<Failed>,
    /// Who was left alone, and why.
    pub spared: Vec<(Option<Process>, Spared)>,
    /// Who holds the port now.
    pub remaining: Vec<Holder>,
    /// Who starts it again, or does so by trade, and was not ended.
    pub watcher: Option<Process>,
    /// Whether that one may be ended.
    pub watcher_may_end: bool,
}

/// Somebody who could not be ended.
#[derive(Debug)]
pub struct Failed {
    /// The process; of a run one that holds the port, if any does.
    pub process: Option<Process>,
    /// The run.
    pub run: Option<RunId>,
    /// Why not.
    pub why: String,
}

/// Grace of a process that is no run of ours.
pub const FOREIGN_GRACE: Duration = Duration::from_secs(5);

/// How many looks a server may take between its bind and its listen.
const PATIENCE_BETWEEN: usize = 10;

/// A port that is taken again so often is not to be had this way.
const ROUNDS: usize = 6;

/// How long a parent may take to start a server again.
const RETURN_WITHIN: Duration = Duration::from_millis(1500);

/// The state directory, if there is one, as far as ports are concerned with it.
#[derive(Debug)]
pub struct Registry(Option<Root>);

impl Registry {
    /// Opens it; one that is not there is an empty one.
    pub fn open() -> Registry {
        Registry(Root::open_existing().ok().flatten())
    }

    /// Returns the unfinished runs.
    pub fn runs(&self) -> Vec<SeenRun> {
        self.0.as_ref().map(seen::runs).unwrap_or_default()
    }
}

impl Means {
    /// Looks at who we are, and whose the runs are that hold something.
    pub fn context(&self, holders: &[Holder], runs: &[SeenRun]) -> Context {
        let holding: HashSet<&RunId> = holders.iter().filter_map(|holder| holder.run.as_ref()).collect();
        let records =
            runs.iter().filter(|run| holding.contains(&run.id)).filter_map(|run| run.record.as_ref().ok());
        let strangers = records
            .filter_map(|record| Some((record.id.clone(), owner::title(&owner::stranger_of(record)?))));
        let ours: HashSet<Pid> = process::own_line();
        // Whose guard stands above us; the environment may have been cleared on the way.
        let around = runs.iter().filter(|run| holders::is_around(run, &ours)).map(|run| run.id.clone());
        let within = around.chain(rundir::parents_from_environment()).collect();
        Context {
            uid: process::own_uid(),
            ours,
            within,
            protected: self.protected.clone(),
            strangers: strangers.collect(),
            steal: self.steal,
        }
    }
}

/// Ends who holds `port`, as far as that may be.
pub fn make_room(port: u16, means: &Means, registry: &Registry) -> io::Result<Outcome> {
    let ports = BTreeSet::from([port]);
    let mut outcome = Outcome::default();
    let mut watchers = Watchers::default();
    let (mut round, mut between) = (0, 0);
    while round < ROUNDS {
        let mut runs = registry.runs();
        let search = if round == 0 { Search::Enough } else { Search::Everywhere };
        let holders = holders::find(Some(&ports), &runs, search)?;
        let context = means.context(&holders, &runs);
        let plan = Plan::of(&holders, &context, means, &outcome);
        outcome.spared = plan.spared;
        if plan.processes.is_empty() && plan.runs.is_empty() {
            if holders.iter().any(is_between) && between < PATIENCE_BETWEEN {
                between += 1;
                waits::any(&[], Some(Duration::from_millis(20)))?;
                continue;
            }
            if !holders.is_empty() || !watchers.start_it_again(port)? {
                break;
            }
            // One that comes and goes must not keep us for ever.
            round += 1;
            continue;
        }
        round += 1;
        let again = watchers.watcher_of(&plan.processes);
        let came_back = again.is_some();
        watchers.note(&plan.processes, &context);
        if let Some(watcher) = again.or_else(|| watchers.by_trade()) {
            outcome.watcher_may_end = may_end_watcher(&watcher, &context);
            if means.end_watchers && outcome.watcher_may_end {
                // First, or it would start another one.
                outcome.note(end_processes(&[watcher], None, means.grace));
            } else {
                outcome.watcher = Some(watcher);
                if came_back {
                    break;
                }
            }
        }
        watchers.asked_at = process::now_in_ticks();
        outcome.note(end_processes(&plan.processes, Some(port), means.grace));
        for (run, first) in plan.runs {
            let Some(seen) = runs.iter_mut().find(|seen| seen.id == run) else { continue };
            match stop::stop(seen, means.grace, Wish::Displace) {
                Ok(()) => {
                    let end = seen.record.as_ref().ok().and_then(|record| record.end.as_ref());
                    let by_force = end.is_some_and(|end| end.killed > 0);
                    outcome.ended.push((first, How::WithRun { run, by_force }));
                }
                Err(error) => {
                    let why = format!("run {run}: {error}");
                    outcome.failed.push(Failed { process: first, run: Some(run), why });
                }
            }
        }
    }
    outcome.remaining = holders::find(Some(&ports), &registry.runs(), Search::Everywhere)?;
    if outcome.remaining.is_empty() {
        // Who was seen in the act of ending.
        outcome.spared.clear();
    }
    // What is claimed for the run that we are in ourselves is as free as it can be.
    let around = |(_, why): &(Option<Process>, Spared)| *why == Spared::AroundUs;
    if outcome.spared.iter().any(around) {
        outcome.remaining.retain(|holder| !holder.is_claim);
        outcome.spared.retain(|spared| !around(spared));
    }
    Ok(outcome)
}

/// A server is for a moment bound without listening.
fn is_between(holder: &Holder) -> bool {
    holder.socket.state == State::Bound && !holder.is_claim && !holder.processes.is_empty()
}

impl Outcome {
    fn note(&mut self, (ended, failed): (Vec<(Process, How)>, Vec<Process>)) {
        self.ended.extend(ended.into_iter().map(|(process, how)| (Some(process), how)));
        self.failed.extend(failed.into_iter().map(|process| Failed {
            process: Some(process),
            run: None,
            why: "it could not be ended".to_owned(),
        }));
    }
}

/// What is to be done in one round.
#[derive(Default)]
struct Plan {
    processes: Vec<Process>,
    runs: Vec<(RunId, Option<Process>)>,
    spared: Vec<(Option<Process>, Spared)>,
}

impl Plan {
    /// Whom we have failed to end once, we do not try again.
    fn of(holders: &[Holder], context: &Context, means: &Means, before: &Outcome) -> Plan {
        let mut plan = Plan::default();
        let failed = |process: &Process| before.failed.iter().any(|it| it.process.as_ref() == Some(process));
        for holder in holders {
            let verdicts = judge(holder, context).into_iter();
            for verdict in verdicts.filter(|it| means.agreed.as_ref().is_none_or(|agreed| agreed.has(it))) {
                match verdict {
                    Verdict::End(process) if failed(&process) || plan.processes.contains(&process) => {}
                    Verdict::End(process) => plan.processes.push(process),
                    Verdict::EndRun(run) => {
                        let first = holder.processes.first().cloned();
                        let tried = before.failed.iter().any(|it| it.run.as_ref() == Some(&run));
                        match plan.runs.iter_mut().find(|(known, _)| *known == run) {
                            Some((_, known)) => *known = known.take().or(first),
                            None if !tried => plan.runs.push((run, first)),
                            None => {}
                        }
                    }
                    Verdict::Spare(process, why) => {
                        if !plan.spared.contains(&(process.clone(), why.clone())) {
                            plan.spared.push((process, why));
                        }
                    }
                }
            }
        }
        plan
    }
}

/// Ends `processes`, those alone that still have a socket on `port` if one is given. Returns who ended, and who did not.
fn end_processes(
    processes: &[Process],
    port: Option<u16>,
    grace: Option<Duration>,
) -> (Vec<(Process, How)>, Vec<Process>) {
    let holds = |pid: Pid| port.is_none_or(|port| still_holds(pid, port));
    let pin = |process: &Process| Some((process.clone(), process.process.pin()?));
    let mut waiting: Vec<(Process, Pidfd)> =
        processes.iter().filter_map(pin).filter(|(process, _)| holds(process.process.pid)).collect();
    let mut progress = Progress::begin(grace.unwrap_or(FOREIGN_GRACE), BootTime::now());
    let mut ended = Vec::new();
    let mut killed = HashSet::new();
    for (_, pidfd) in &waiting {
        // Whoever cannot be signalled is still there in the end.
        let _ = pidfd.send(Signal::TERM).and_then(|()| pidfd.send(Signal::CONT));
    }
    loop {
        let (there, gone): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(process, pidfd)| pidfd.is_alive() && holds(process.process.pid));
        ended.extend(gone.into_iter().map(|(process, pidfd)| {
            let how = match killed.contains(&process.process.pid) {
                true => How::ByForce,
                false if pidfd.is_alive() && !ends_soon(&pidfd) => How::LetGo,
                false => How::Gracefully,
            };
            (process, how)
        }));
        waiting = there;
        if waiting.is_empty() {
            return (ended, Vec::new());
        }
        match progress.due(BootTime::now()) {
            Due::GiveUp => return (ended, waiting.into_iter().map(|(process, _)| process).collect()),
            Due::Kill { .. } => {
                for (process, pidfd) in &waiting {
                    killed.insert(process.process.pid);
                    let _ = pidfd.send(Signal::KILL);
                }
            }
            Due::Nothing => {}
        }
        rest(&waiting);
    }
}

/// Waits for the end of one of them, or a moment: a server may let go of its port long before it ends.
fn rest(waiting: &[(Process, Pidfd)]) {
    const LOOK_AGAIN: Duration = Duration::from_millis(20);
    let polled: Vec<_> = waiting.iter().map(|(_, pidfd)| (pidfd.as_fd(), true)).collect();
    let _ = waits::any(&polled, Some(LOOK_AGAIN));
}

/// A server lets go of its port before it ends, most of them at once.
fn ends_soon(pidfd: &Pidfd) -> bool {
    waits::readable(pidfd.as_fd(), Some(Duration::from_millis(500))).unwrap_or(false)
}

/// What cannot be looked at again is not signalled.
fn still_holds(pid: Pid, port: u16) -> bool {
    let now = sockets::list(&holders::HOLDING, Some(port)).unwrap_or_default();
    let inodes: HashSet<u32> = now.iter().map(|socket| socket.inode).collect();
    !inodes.is_empty() && !descriptors::held_by(pid, Kind::Socket, &inodes).is_empty()
}

/// The living ancestors of what was ended, who may start it again.
#[derive(Default)]
struct Watchers {
    known: HashMap<Pid, ProcessRef>,
    /// When the last ones were asked to end, in clock ticks after boot.
    asked_at: u64,
}

impl Watchers {
    /// Notes those above `processes`, up to who adopts orphans or has started us too.
    fn note(&mut self, processes: &[Process], context: &Context) {
        let ended: HashSet<Pid> = processes.iter().map(|process| process.process.pid).collect();
        for pid in processes.iter().flat_map(|process| {
            let is_end = |pid: &Pid| *pid <= 1 || context.ours.contains(pid) || adopts(*pid);
            process::ancestors_of(process.process.pid).into_iter().take_while(move |pid| !is_end(pid))
        }) {
            if let Some((identity, _)) = ProcessRef::observe(pid).filter(|_| !ended.contains(&pid)) {
                self.known.insert(pid, identity);
            }
        }
    }

    /// Returns one of them that starts what has ended again by trade, perhaps only when a file has changed.
    fn by_trade(&self) -> Option<Process> {
        self.known.values().find_map(|known| {
            let process = Process::look(known.pid).filter(|process| process.process == *known)?;
            programs::is_watcher(&process.command).then_some(process)
        })
    }

    /// Waits a little, as long as one of them lives; returns whether the port is taken again.
    fn start_it_again(&self, port: u16) -> io::Result<bool> {
        let pinned: Vec<Pidfd> = self.known.values().filter_map(ProcessRef::pin).collect();
        let until = Instant::now() + RETURN_WITHIN;
        while pinned.iter().any(Pidfd::is_alive) && Instant::now() < until {
            if !sockets::list(&holders::HOLDING, Some(port))?.is_empty() {
                return Ok(true);
            }
            let living: Vec<_> =
                pinned.iter().filter(|it| it.is_alive()).map(|it| (it.as_fd(), true)).collect();
            waits::any(&living, Some(Duration::from_millis(20)))?;
        }
        Ok(!sockets::list(&holders::HOLDING, Some(port))?.is_empty())
    }

    /// Returns the nearest of them that stands above one of `processes` which began after another one was asked to end.
    fn watcher_of(&self, processes: &[Process]) -> Option<Process> {
        // One that was there before was only waiting for the port.
        let is_new = |process: &&Process| self.asked_at > 0 && process.process.start_time >= self.asked_at;
        let above = |process: &Process| {
            let ancestors = process::ancestors_of(process.process.pid).into_iter();
            ancestors.filter_map(|pid| self.known.get(&pid)).find(|known| known.pin().is_some()).cloned()
        };
        let watcher = processes.iter().filter(is_new).find_map(above)?;
        Process::look(watcher.pid).filter(|process| process.process == watcher)
    }
}

fn adopts(pid: Pid) -> bool {
    Stat::read(pid).is_none_or(|stat| programs::is_reaper(&stat.comm))
}

/// A shell that somebody sits at starts nothing by itself again, and an agent is not ended for a port.
fn may_end_watcher(watcher: &Process, context: &Context) -> bool {
    let pid = watcher.process.pid;
    let at_terminal = Stat::read(pid).is_some_and(|stat| stat.terminal != 0);
    let command = &watcher.command;
    let is_interactive =
        at_terminal && programs::is_shell(command) && !programs::is_shell_with_script(command);
    refusal(watcher, context).is_none() && !is_interactive && owner::agent_running_as(pid).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_the_number_by_now_is_not_signalled() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let seen = Process::look(child.id() as Pid).unwrap();
        let identity = &seen.process;
        let another = ProcessRef {
            start_time: identity.start_time + 1,
            inode: identity.inode.map(|inode| inode + 1),
            pid: identity.pid,
        };
        let stranger = Process { process: another, ..seen.clone() };
        let (ended, failed) = end_processes(&[stranger], None, Some(Duration::ZERO));
        assert!(ended.is_empty() && failed.is_empty());
        assert!(child.try_wait().unwrap().is_none());
        // Nor one that does not hold the port any more.
        let (ended, _) = end_processes(std::slice::from_ref(&seen), Some(1), Some(Duration::ZERO));
        assert!(ended.is_empty() && child.try_wait().unwrap().is_none());
        let (ended, _) = end_processes(&[seen], None, Some(Duration::ZERO));
        assert_eq!(ended.len(), 1);
        child.wait().unwrap();
    }
}
