//! `session list` and `session health`.

use std::io::IsTerminal;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::printer::Printer;
use super::super::{root, table, view};
use super::args::HealthArgs;
use super::find;
use crate::control::client::ask;
use crate::control::{Answer, Request};
use crate::failure::Failure;
use crate::limits::format_size;
use crate::registry::record::Record;
use crate::registry::seen::SeenRun;
use crate::session::living;
use crate::sys::tty;
use crate::usage::{Census, Usage};

/// A session with what only a look at the moment tells.
struct Seen {
    run: SeenRun,
    alive: bool,
    idle_s: Option<f64>,
    busy: bool,
    messages: u64,
    usage: Option<Usage>,
}

fn look(runs: Vec<SeenRun>) -> Vec<Seen> {
    let alive: Vec<bool> = runs.iter().map(SeenRun::is_supervised).collect();
    let records =
        runs.iter().zip(&alive).filter(|(_, alive)| **alive).filter_map(|(run, _)| run.record.as_ref().ok());
    let census = Census::take(records);
    let look = |(run, alive): (SeenRun, bool)| {
        let (idle_s, busy, messages) = match alive.then(|| ask(&run.directory, Request::Live)) {
            Some(Ok(Answer::Live { idle_s, busy, messages })) => (idle_s, busy, messages),
            _ => (None, false, 0),
        };
        let usage = run.record.as_ref().ok().filter(|_| alive).map(|record| census.usage_with_fds(record));
        Seen { run, alive, idle_s, busy, messages, usage }
    };
    runs.into_iter().zip(alive).map(look).collect()
}

fn sessions() -> Result<Vec<SeenRun>, Failure> {
    Ok(root()?.map(|root| living(&root)).unwrap_or_default())
}

pub(super) fn list(printer: &Printer) -> Result<u8, Failure> {
    let seen = look(sessions()?);
    if printer.is_json() {
        printer.document("runs", seen.iter().map(document).collect());
        return Ok(0);
    }
    if seen.is_empty() {
        printer.answer("no session lives");
        return Ok(0);
    }
    let width = if std::io::stdout().is_terminal() { tty::width() } else { None };
    let rows: Vec<Vec<String>> = seen.iter().map(row).collect();
    let header = ["NAME", "ID", "PROVIDER", "PROTOCOL", "STATE", "IDLE", "MESSAGES", "MEMORY", "DIRECTORY"];
    printer.answer(&table::layout(&header, &rows, width));
    Ok(0)
}

/// The record, and what is known of the moment.
fn document(seen: &Seen) -> Value {
    let mut value = view::json(&seen.run, seen.usage, seen.idle_s);
    (value["busy"], value["messages"]) = (json!(seen.busy), json!(seen.messages));
    value
}

fn row(seen: &Seen) -> Vec<String> {
    let record = seen.run.record.as_ref().ok();
    let text = |of: fn(&Record) -> Option<String>| record.and_then(of).unwrap_or_else(|| "-".to_owned());
    let idle = seen.idle_s.and_then(|idle| Duration::try_from_secs_f64(idle).ok());
    let state = match (seen.alive, seen.busy) {
        (true, true) => "busy",
        _ => seen.run.state.word(),
    };
    let shown = |text: String| table::shorten(&view::shown_words(&[text]), 40);
    vec![
        text(|record| record.name.clone()),
        seen.run.id.to_string(),
        text(|record| record.provider.clone()),
        shown(text(|record| record.protocol.clone().map(|it| it.split(':').next().unwrap_or("").to_owned()))),
        state.to_owned(),
        idle.filter(|_| !seen.busy).map_or_else(|| "-".to_owned(), view::brief),
        seen.messages.to_string(),
        seen.usage.map_or_else(|| "-".to_owned(), |usage| format_size(usage.rss_bytes)),
        shown(text(|record| Some(record.cwd.clone()))),
    ]
}

pub(super) fn run(args: &HealthArgs, printer: &Printer) -> Result<u8, Failure> {
    let runs = match &args.session {
        Some(name) => vec![find(name)?],
        None => sessions()?,
    };
    let seen = look(runs);
    let alive = seen.iter().filter(|it| it.alive).count();
    let dead = seen.len() - alive;
    if printer.is_json() {
        let processes: Vec<Value> = seen.iter().map(process).collect();
        printer.fields(&[
            ("total_processes", json!(seen.len())),
            ("alive_processes", json!(alive)),
            ("dead_processes", json!(dead)),
            ("processes", json!(processes)),
        ]);
    } else {
        let lines = seen.iter().map(line);
        let first = format!("{} sessions: {alive} alive, {dead} dead", seen.len());
        printer.answer(&[first].into_iter().chain(lines).collect::<Vec<_>>().join("\n"));
    }
    Ok(u8::from(dead > 0))
}

fn process(seen: &Seen) -> Value {
    let record = seen.run.record.as_ref().ok();
    let oneshot = record.and_then(|record| record.protocol.as_deref()) == Some("oneshot");
    json!({
        "id": seen.run.id,
        "name": seen.run.name(),
        "provider": record.and_then(|record| record.provider.clone()),
        "alive": seen.alive,
        "busy": seen.busy,
        "messages": seen.messages,
        "idle_time": seen.idle_s,
        "session_mode": !oneshot,
        "resource_usage": {
            "memory_mb": seen.usage.map(|usage| usage.rss_bytes as f64 / f64::from(1 << 20)),
            "cpu_percent": cpu_percent(seen),
            "num_fds": seen.usage.and_then(|usage| usage.fds),
        },
        "run": document(seen),
    })
}

/// Over its whole life, in percent of one core.
fn cpu_percent(seen: &Seen) -> Option<f64> {
    let age = seen.run.record.as_ref().ok()?.started_at.age().as_secs_f64();
    Some(seen.usage?.cpu_s / age.max(0.01) * 100.0)
}

fn line(seen: &Seen) -> String {
    let name = seen.run.name().unwrap_or(seen.run.id.as_str());
    let memory = seen.usage.map_or_else(String::new, |usage| format!(", {}", format_size(usage.rss_bytes)));
    let cpu = cpu_percent(seen).map_or_else(String::new, |percent| format!(", {percent:.1} % of a core"));
    let state = if seen.busy { "busy" } else { seen.run.state.word() };
    format!("{name}: {state}{memory}{cpu}, {} messages", seen.messages)
}
