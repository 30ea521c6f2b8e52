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
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::run::RunId;
use crate::rundir;
use crate::stop::{self, Wish};
use crate::sys::clock::BootTime;
use crate::sys::process::{self, Pid, Pidfd, ProcessRef, Stat};
use crate::sys::signal::Signal;
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
}

/// How a holder ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// After SIGTERM.
    Gracefully,
    /// By SIGKILL.
    ByForce,
    /// With its run.
    WithRun(RunId),
}

/// What was done, and what is left.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Who was ended, and how.
    pub ended: Vec<(Process, How)>,
    /// Who should have been, and why not.
    pub failed: Vec<(Option<Process>, String)>,
    /// Who was left alone, and why.
    pub spared: Vec<(Option<Process>, Spared)>,
    /// Who holds the port now.
    pub remaining: Vec<Holder>,
    /// Who starts it again.
    pub watcher: Option<Process>,
}

/// Grace of a process that is no run of ours.
pub const FOREIGN_GRACE: Duration = Duration::from_secs(5);

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
        Context {
            uid: process::own_uid(),
            ours: process::ancestors().into_iter().chain([process::own_pid()]).collect(),
            within: rundir::parents_from_environment().into_iter().collect(),
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
    let mut parents = Parents::default();
    for round in 0..ROUNDS {
        let mut runs = registry.runs();
        let search = if round == 0 { Search::Enough } else { Search::Everywhere };
        let holders = holders::find(Some(&ports), &runs, search)?;
        let context = means.context(&holders, &runs);
        let plan = Plan::of(&holders, &context, &outcome);
        outcome.spared = plan.spared;
        outcome.remaining = holders.clone();
        if plan.processes.is_empty() && plan.runs.is_empty() {
            if !holders.is_empty() || !parents.start_it_again(port)? {
                break;
            }
            continue;
        }
        if let Some(watcher) = parents.watcher_of(&plan.processes) {
            let may_end =
                means.end_watchers && refusal(&watcher, &context).is_none() && !has_terminal(&watcher);
            outcome.watcher = Some(watcher.clone());
            if !may_end {
                break;
            }
            // First, or it would start another one.
            outcome.ended.extend(end_processes(&[watcher], None, means.grace).0);
        }
        parents.note(&plan.processes, &context);
        let (ended, failed) = end_processes(&plan.processes, Some(port), means.grace);
        outcome.ended.extend(ended);
        outcome
            .failed
            .extend(failed.into_iter().map(|process| (Some(process), "it outlived SIGKILL".to_owned())));
        for (run, first) in plan.runs {
            let Some(seen) = runs.iter_mut().find(|seen| seen.id == run) else { continue };
            match stop::stop(seen, means.grace, Wish::Displace) {
                Ok(()) => outcome.ended.extend(first.map(|process| (process, How::WithRun(run)))),
                Err(error) => outcome.failed.push((first, format!("run {run}: {error}"))),
            }
        }
    }
    outcome.remaining = holders::find(Some(&ports), &registry.runs(), Search::Everywhere)?;
    Ok(outcome)
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
    fn of(holders: &[Holder], context: &Context, before: &Outcome) -> Plan {
        let mut plan = Plan::default();
        let failed = |process: &Process| {
            before
                .failed
                .iter()
                .any(|(other, _)| other.as_ref().is_some_and(|it| it.process == process.process))
        };
        for holder in holders {
            for verdict in judge(holder, context) {
                match verdict {
                    Verdict::End(process) if failed(&process) || plan.processes.contains(&process) => {}
                    Verdict::End(process) => plan.processes.push(process),
                    Verdict::EndRun(run) => {
                        let first = holder.processes.first().cloned();
                        let tried = before.failed.iter().any(|(_, why)| why.contains(run.as_str()));
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
        ended.extend(gone.into_iter().map(|(process, _)| {
            let how = if killed.contains(&process.process.pid) { How::ByForce } else { How::Gracefully };
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

fn still_holds(pid: Pid, port: u16) -> bool {
    // If the kernel cannot be asked any more, the process is the one that was seen all the same.
    let Ok(now) = sockets::list(&holders::HOLDING, Some(port)) else { return true };
    let inodes: HashSet<u32> = now.iter().map(|socket| socket.inode).collect();
    !inodes.is_empty() && !sockets::held_by(pid, &inodes).is_empty()
}

/// The living parents of what was ended, who may start it again.
#[derive(Default)]
struct Parents(HashMap<Pid, ProcessRef>);

impl Parents {
    fn note(&mut self, processes: &[Process], context: &Context) {
        let ended: HashSet<Pid> = processes.iter().map(|process| process.process.pid).collect();
        let parents = processes.iter().map(|process| process.parent);
        for parent in parents.filter(|pid| *pid > 1 && !context.ours.contains(pid) && !ended.contains(pid)) {
            let reaper = Stat::read(parent).is_none_or(|stat| stat.comm == "systemd" || stat.comm == "init");
            if let Some((identity, _)) = ProcessRef::observe(parent).filter(|_| !reaper) {
                self.0.insert(parent, identity);
            }
        }
    }

    /// Waits a little, as long as one of them lives; returns whether the port is taken again.
    fn start_it_again(&self, port: u16) -> io::Result<bool> {
        let pinned: Vec<Pidfd> = self.0.values().filter_map(ProcessRef::pin).collect();
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

    /// Returns the parent that has started one of `processes` after it had lost another.
    fn watcher_of(&self, processes: &[Process]) -> Option<Process> {
        let parent = processes.iter().find_map(|process| self.0.get(&process.parent))?;
        parent.pin().and_then(|_| Process::look(parent.pid))
    }
}

/// A shell that somebody sits at starts nothing by itself again, and is not ended for a port.
fn has_terminal(process: &Process) -> bool {
    let stat = Stat::read(process.process.pid);
    stat.is_some_and(|stat| stat.session == stat.pid && stat.terminal != 0)
}
