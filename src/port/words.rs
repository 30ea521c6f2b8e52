//! Holders in words.

use super::holders::{Holder, Process};
use crate::lease::format_duration;
use crate::owner;
use crate::registry::record::Record;
use crate::registry::seen::SeenRun;
use crate::sys::files;
use crate::sys::sockets::State;
use std::time::Duration;

/// A command line is cut to so many characters in a sentence.
const LONGEST_COMMAND: usize = 60;

/// Returns who has `holder`'s socket, for a sentence: process, user, command, age, and the run that it belongs to.
pub fn who(holder: &Holder, runs: &[SeenRun]) -> String {
    let record =
        holder.run.as_ref().and_then(|id| runs.iter().find(|run| run.id == *id)?.record.as_ref().ok());
    let process = holder.processes.first().map(process);
    match (record, process) {
        (Some(record), Some(process)) => format!("{process}, of {}", run(record)),
        (Some(record), None) => format!("{} (its claim)", run(record)),
        (None, Some(process)) if holder.socket.state == State::Bound => {
            format!("{process}, which does not listen")
        }
        (None, Some(process)) => process,
        (None, None) => {
            let user = files::user_name(holder.socket.uid).unwrap_or_else(|| holder.socket.uid.to_string());
            format!("a process of user {user} that cannot be seen from here")
        }
    }
}

/// Returns who holds a port, for a question: the first, and how many more there are.
pub fn all(holders: &[Holder], runs: &[SeenRun]) -> String {
    let Some(first) = holders.first() else { return "nobody".to_owned() };
    let mut pids: Vec<i32> =
        holders.iter().flat_map(|holder| &holder.processes).map(|it| it.process.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    match pids.len() {
        0 | 1 => who(first, runs),
        many => format!("{} and {} more", who(first, runs), many - 1),
    }
}

/// Returns a process for a sentence.
pub fn process(process: &Process) -> String {
    let user = files::user_name(process.uid).unwrap_or_else(|| process.uid.to_string());
    let age = format_duration(Duration::from_secs(process.age.as_secs()));
    let Process { process: identity, name, .. } = process;
    let name = name.escape_debug();
    format!("{name} (pid {}, user {user}, '{}', for {age})", identity.pid, command(process))
}

/// Returns a process for a list.
pub fn brief(process: &Process) -> String {
    format!("{} (pid {})", process.name.escape_debug(), process.process.pid)
}

/// Returns the command line, cut, without anything that a terminal would obey.
pub fn command(process: &Process) -> String {
    let line = process.command.join(" ");
    let shown = plain(&line);
    match shown.char_indices().nth(LONGEST_COMMAND) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}

/// Returns `text` without what a terminal would obey.
fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Returns the command line as [`command`] does, or the name of a process that has cleared it.
pub fn command_or_name(process: &Process) -> String {
    let line = plain(&process.command.join(" "));
    if line.is_empty() { format!("[{}]", process.name.escape_debug()) } else { line }
}

fn run(record: &Record) -> String {
    let name = record.name.as_ref().map_or(String::new(), |name| format!(" {name}"));
    let owner = owner::of_run(record).map_or(String::new(), |it| format!(", owner {}", owner::title(&it)));
    let left = record.time_left().map(|left| Duration::from_secs(left.as_secs()));
    let lease = left.map_or(String::new(), |left| format!(", lease {} left", format_duration(left)));
    format!("run {}{name}{owner}{lease}", record.id)
}
