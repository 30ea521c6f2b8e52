//! Servers of coding agents that we did not start. Pure: from what was observed.

use std::collections::{BTreeMap, HashSet};

use super::clients::{self, Client};
use super::evidence::{self, Evidence, looked_after};
use super::observe::Observation;
use super::plan::{Item, Kind};
use super::snapshot::{Process, Snapshot};
use super::{Options, Scope};
use crate::owner::Mark;
use crate::port::verdict;
use crate::programs;
use crate::sys::process::Pid;

/// Servers of agents that we did not start, each with what only wraps it, as `sh -c` does. Those that look like one but
/// have somebody are told too.
pub(super) fn leftovers(seen: &Observation, options: &Options) -> Vec<Item> {
    let snapshot = &seen.processes;
    let mut found: BTreeMap<Pid, Vec<(&Process, Vec<Evidence>)>> = BTreeMap::new();
    for (process, mut told) in candidates(seen, options) {
        told.extend(
            (clients::of(process.stat.pid, snapshot) == Client::Gone).then_some(Evidence::ClientGone),
        );
        if !told.is_empty() {
            found.entry(snapshot.wrapped(process.stat.pid)).or_default().push((process, told));
        }
    }
    // What is below another one goes or stays with that.
    let roots: HashSet<Pid> = found.keys().copied().collect();
    let is_below = |pid: &Pid| snapshot.ancestors(*pid).iter().any(|it| roots.contains(it));
    let tops = roots.iter().filter(|root| !is_below(root));
    tops.filter_map(|root| leftover(*root, &found[root], snapshot, options)).collect()
}

/// Those that something speaks for, or all if the session's are looked for. That its client is gone makes nothing of a
/// process by itself.
fn candidates<'a>(
    seen: &'a Observation,
    options: &Options,
) -> impl Iterator<Item = (&'a Process, Vec<Evidence>)> {
    let of_session = !matches!(options.scope, Scope::Gone | Scope::All);
    let processes = seen.processes.processes.values();
    processes
        .filter(|process| may_be_one(process, &seen.processes))
        .map(move |process| (process, evidence::of(process, seen, options)))
        .filter(move |(_, told)| !told.is_empty() || of_session)
}

/// Returns of whom it is worth knowing on which ports they listen, with all below them: not of those who have somebody and
/// for whom nothing else speaks.
pub(super) fn worth_looking_into(seen: &Observation, options: &Options) -> HashSet<Pid> {
    let snapshot = &seen.processes;
    let of_session = !matches!(options.scope, Scope::Gone | Scope::All);
    let is_worth = |process: &Process| {
        let root = snapshot.wrapped(process.stat.pid);
        let is_alone = || snapshot.processes.get(&root).is_none_or(|it| looked_after(it, snapshot).is_none());
        let of_run = process.run.is_some() || seen.in_cgroups.contains_key(&process.stat.pid);
        let may_be = || may_be_one(process, snapshot);
        of_run || may_be() && (of_session || is_alone() || !evidence::of(process, seen, options).is_empty())
    };
    let mut found = HashSet::new();
    for process in snapshot.processes.values().filter(|process| is_worth(process)) {
        let root = snapshot.wrapped(process.stat.pid);
        if !found.contains(&root) {
            found.extend(snapshot.tree(root).iter().map(|member| member.stat.pid));
        }
    }
    found
}

/// Returns of whom it is worth knowing who talks to them: those of whom the plan will ask that.
pub(super) fn worth_a_closer_look(seen: &Observation, options: &Options) -> HashSet<Pid> {
    let pids = candidates(seen, options).map(|(process, _)| process.stat.pid);
    pids.flat_map(|pid| [pid, seen.processes.wrapped(pid)]).collect()
}

/// Neither one of those that we belong to, nor a guard (an orphan by trade), nor an agent, nor below a guard.
fn may_be_one(process: &Process, snapshot: &Snapshot) -> bool {
    let pid = process.stat.pid;
    let kept = |pid: &Pid| snapshot.names.get(pid).is_some_and(|name| programs::is_keeper(name));
    let taboo = snapshot.ours.contains(&pid) || snapshot.reapers.contains(&pid) || process.agent.is_some();
    !taboo && !kept(&pid) && !snapshot.ancestors(pid).iter().any(kept)
}

fn leftover(
    root: Pid,
    cores: &[(&Process, Vec<Evidence>)],
    snapshot: &Snapshot,
    options: &Options,
) -> Option<Item> {
    let members = snapshot.tree(root);
    if members.iter().any(|member| snapshot.ours.contains(&member.stat.pid)) {
        return None;
    }
    let mut told: Vec<Evidence> = Vec::new();
    for piece in cores.iter().flat_map(|(_, pieces)| pieces) {
        if told.iter().all(|known| std::mem::discriminant(known) != std::mem::discriminant(piece)) {
            told.push(piece.clone());
        }
    }
    if matches!(told[..], [Evidence::ClientGone]) {
        // Half of all daemons are like that.
        return None;
    }
    let by_session = is_of_session(&members, snapshot, &options.scope);
    // That the session started it is a kind of evidence like the mark of an agent.
    let is_mark = |piece: &Evidence| matches!(piece, Evidence::Agent { .. });
    let kinds_of =
        |pieces: &[Evidence]| pieces.len() + usize::from(by_session && !pieces.iter().any(is_mark));
    // What two processes tell is not added up, and a leftover is a server: where something works says nothing of that.
    let serves = |piece: &Evidence| {
        matches!(piece, Evidence::Port { .. } | Evidence::Command { .. } | Evidence::ClientGone)
    };
    let is_one = |pieces: &Vec<Evidence>| kinds_of(pieces) > 1 && pieces.iter().any(serves);
    let mut item = Item::of_tree(Kind::Leftover, root, snapshot)?;
    item.kind = match cores.iter().any(|(_, pieces)| is_one(pieces)) {
        true => Kind::Leftover,
        false => Kind::Suspect,
    };
    item.by_session = by_session && item.kind == Kind::Leftover;
    // The one that tells most is shown.
    if let Some((core, _)) = cores.iter().max_by_key(|(_, pieces)| pieces.len()) {
        item.directory = core.cwd.clone();
        item.command = core.shown_command();
    }
    let pieces = || cores.iter().flat_map(|(_, pieces)| pieces);
    let lives = pieces().any(|piece| matches!(piece, Evidence::Agent { alive: true, .. }));
    let terminal = || {
        let with = members.iter().find(|member| member.stat.terminal != 0);
        with.filter(|_| !item.by_session).map(|_| "it has a terminal".to_owned())
    };
    let agent = || {
        let agent = members.iter().find_map(|member| member.agent);
        agent.map(|agent| format!("{agent} is part of it"))
    };
    let in_use = || {
        let used = item.by_session && clients::of(root, snapshot) == Client::There;
        used.then(|| "somebody talks to it over its stdin and stdout".to_owned())
    };
    item.spared = protected(&members, options)
        .or_else(agent)
        .or_else(in_use)
        .or_else(terminal)
        .or_else(|| if item.by_session { None } else { looked_after(members[0], snapshot) })
        .or_else(|| {
            let asked = item.by_session || options.scope == Scope::All;
            (lives && !asked).then(|| "its agent may be alive; --all takes it".to_owned())
        });
    // What has somebody and tells little is not even worth a line.
    if item.kind == Kind::Suspect && item.spared.is_some() {
        return None;
    }
    item.evidence = told;
    Some(item)
}

fn protected(members: &[&Process], options: &Options) -> Option<String> {
    let is_protected = |process: &&&Process| {
        verdict::is_protected_name(
            &process.stat.comm,
            process.command.first().map(String::as_str),
            &options.protected,
        )
    };
    members.iter().find(is_protected).map(|it| format!("{} is protected", it.stat.comm.escape_debug()))
}

/// Whether the living agent that is meant has started it.
fn is_of_session(members: &[&Process], snapshot: &Snapshot, scope: &Scope) -> bool {
    match scope {
        Scope::Gone | Scope::All => false,
        Scope::Session(id) => {
            members.iter().any(|it| it.mark.as_ref().is_some_and(|mark| mark.session.as_ref() == Some(id)))
        }
        Scope::Process(pid, session) => members.iter().any(|it| {
            let marked =
                |mark: &Mark| mark.pid == Some(*pid) || session.is_some() && mark.session == *session;
            it.mark.as_ref().is_some_and(marked) || snapshot.ancestors(it.stat.pid).contains(pid)
        }),
    }
}
