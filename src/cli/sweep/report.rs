//! What was found and what came of it, as a table and as a document.

use std::io::{IsTerminal, stdout};

use serde_json::{Value, json};

use super::super::{table, view};
use crate::limits::format_size;
use crate::sweep::apply::{Done, Report};
use crate::sweep::plan::{Item, Kind, Plan};
use crate::sys::tty;

/// A column is cut to so many characters, so that hostile names leave the table a table.
const LONGEST_CELL: usize = 40;

/// Returns the plan as a table: what goes, then what stays and why.
pub(super) fn table(plan: &Plan) -> String {
    let width = if stdout().is_terminal() { tty::width() } else { None };
    let rows: Vec<Vec<String>> = plan.to_go().map(row).collect();
    let mut text = match rows.is_empty() {
        true => "nothing is left over".to_owned(),
        false => table::layout(
            &["KIND", "PID", "AGE", "MEMORY", "PORT", "DIRECTORY", "EVIDENCE", "COMMAND"],
            &rows,
            width,
        ),
    };
    let stays: Vec<Vec<String>> =
        plan.items.iter().filter_map(|item| Some(spared(item, item.spared.as_ref()?))).collect();
    if !stays.is_empty() {
        let header = ["KIND", "PID", "AGE", "WHY", "EVIDENCE", "WHAT"];
        text.push_str(&format!("\n\nleft alone:\n{}", table::layout(&header, &stays, width)));
    }
    text
}

fn shown(text: &str) -> String {
    let plain: String = text
        .chars()
        .flat_map(|c| if view::is_unseen(c) { c.escape_default().collect() } else { vec![c] })
        .collect();
    table::shorten(&plain, LONGEST_CELL)
}

fn pid(item: &Item) -> String {
    let pid = item.root.as_ref().map(|root| root.pid).or(item.pids.first().copied());
    pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())
}

fn evidence(item: &Item) -> String {
    let told: Vec<String> = item.evidence.iter().map(|it| shown(&it.brief())).collect();
    let run = item.run.as_ref().map(|run| format!("run {run}"));
    let connected = (item.connections > 0).then(|| format!("{} connections", item.connections));
    let all: Vec<String> = run.into_iter().chain(told).chain(connected).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

fn what(item: &Item) -> String {
    match (&item.directory, item.kind) {
        (Some(directory), Kind::Directory) => shown(&directory.display().to_string()),
        _ => view::shown_words(&item.command),
    }
}

fn row(item: &Item) -> Vec<String> {
    let none = || "-".to_owned();
    let ports: Vec<String> = item.ports.iter().map(u16::to_string).collect();
    vec![
        item.kind.word().to_owned(),
        pid(item),
        view::brief(item.age),
        if item.memory_bytes > 0 { format_size(item.memory_bytes) } else { none() },
        if ports.is_empty() { none() } else { shown(&ports.join(" ")) },
        item.directory.as_ref().map_or_else(none, |path| shown(&path.display().to_string())),
        evidence(item),
        view::shown_words(&item.command),
    ]
}

fn spared(item: &Item, why: &str) -> Vec<String> {
    vec![
        item.kind.word().to_owned(),
        pid(item),
        view::brief(item.age),
        why.to_owned(),
        evidence(item),
        what(item),
    ]
}

/// Returns what came of it, for a person.
pub(super) fn lines(plan: &Plan, report: &Report) -> String {
    let mut lines: Vec<String> = report.done.iter().map(line).collect();
    let count = |directories: bool| {
        report.gone().filter(|it| (it.item.kind == Kind::Directory) == directories).count()
    };
    let killed: u32 = report.done.iter().map(|done| done.killed).sum();
    let memory: u64 = report.gone().map(|done| done.item.memory_bytes).sum();
    let bytes: u64 = report.done.iter().map(|done| done.removed_bytes).sum();
    let ports: Vec<String> = report.freed.iter().map(u16::to_string).collect();
    let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(" ") };
    lines.push(format!(
        "{} ended ({killed} processes needed SIGKILL), {} directories removed ({}); freed: memory {}, ports {ports}",
        count(false),
        count(true),
        format_size(bytes),
        format_size(memory),
    ));
    let refused = plan.items.iter().filter(|item| item.spared.is_some()).count();
    if refused > 0 {
        lines.push(format!("{refused} left alone; agent-run sweep --list says why"));
    }
    lines.join("\n")
}

fn line(done: &Done) -> String {
    let Done { item, remains, .. } = done;
    let name = match item.kind {
        Kind::Directory => what(item),
        Kind::Run | Kind::Orphan => format!("run {}", item.run.as_ref().map_or("", |run| run.as_str())),
        _ => {
            format!("pid {} ({})", pid(item), table::shorten(&view::shown_words(&item.command), LONGEST_CELL))
        }
    };
    match (remains, item.kind) {
        (Some(why), _) => format!("still there: {name}: {}", why),
        (None, Kind::Directory) => format!("removed {name} ({})", format_size(done.removed_bytes)),
        (None, _) if done.killed > 0 => {
            format!("ended {name} by force ({} needed SIGKILL), {} old", done.killed, view::brief(item.age))
        }
        (None, _) => format!("ended {name}, {} old", view::brief(item.age)),
    }
}

/// Returns the same as a document.
pub(super) fn document(plan: &Plan, report: &Report) -> Value {
    let found: Vec<Value> = plan.items.iter().map(item_json).collect();
    let of = |directories: bool| -> Vec<Value> {
        report.gone().filter(|it| (it.item.kind == Kind::Directory) == directories).map(done_json).collect()
    };
    let refused: Vec<Value> = plan.items.iter().filter(|item| item.spared.is_some()).map(item_json).collect();
    json!({
        "found": found,
        "ended": of(false),
        "removed": of(true),
        "freed": {
            "ports": report.freed,
            "memory_bytes": report.gone().map(|done| done.item.memory_bytes).sum::<u64>(),
            "disk_bytes": report.done.iter().map(|done| done.removed_bytes).sum::<u64>(),
        },
        "killed": report.done.iter().map(|done| done.killed).sum::<u32>(),
        "refused": refused,
        "remaining": report.remaining().map(done_json).collect::<Vec<_>>(),
    })
}

fn item_json(item: &Item) -> Value {
    json!({
        "kind": item.kind.word(),
        "run": item.run,
        "pid": item.root.as_ref().map(|root| root.pid),
        "pids": item.pids,
        "age_s": item.age.as_secs_f64(),
        "memory_bytes": item.memory_bytes,
        "ports": item.ports,
        "connections": item.connections,
        "directory": item.directory.as_ref().map(|path| path.to_string_lossy()),
        "evidence": item.evidence,
        "command": item.command,
        "spared": item.spared,
    })
}

fn done_json(done: &Done) -> Value {
    let mut value = item_json(&done.item);
    value["killed"] = json!(done.killed);
    value["removed_bytes"] = json!(done.removed_bytes);
    value["remains"] = json!(done.remains);
    value
}
