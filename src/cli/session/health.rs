//! `session list` and `session health`.

use std::io::IsTerminal;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::printer::Printer;
use super::super::{root, table, view};
use super::args::HealthArgs;
use super::find;
use crate::failure::Failure;
use crate::limits::format_size;
use crate::registry::record::Record;
use crate::registry::seen::SeenRun;
use crate::session::health::{Health, ProcessHealth, Seen, look};
use crate::session::living;
use crate::sys::tty;

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
    let health = Health::of(&seen);
    if printer.is_json() {
        let processes = health.processes.iter().zip(&seen).map(|(process, seen)| {
            let mut value = serde_json::to_value(process).unwrap_or_default();
            value["run"] = document(seen);
            value
        });
        printer.fields(&[
            ("total_processes", json!(health.total_processes)),
            ("alive_processes", json!(health.alive_processes)),
            ("dead_processes", json!(health.dead_processes)),
            ("processes", processes.collect()),
        ]);
    } else {
        let (alive, dead) = (health.alive_processes, health.dead_processes);
        let first = format!("{} sessions: {alive} alive, {dead} dead", health.total_processes);
        let lines = health.processes.iter().zip(&seen).map(|(process, seen)| line(process, seen));
        printer.answer(&[first].into_iter().chain(lines).collect::<Vec<_>>().join("\n"));
    }
    Ok(u8::from(health.dead_processes > 0))
}

fn line(process: &ProcessHealth, seen: &Seen) -> String {
    let name = process.name.as_deref().unwrap_or(process.id.as_str());
    let memory = seen.usage.map_or_else(String::new, |usage| format!(", {}", format_size(usage.rss_bytes)));
    let percent = process.resource_usage.cpu_percent;
    let cpu = percent.map_or_else(String::new, |percent| format!(", {percent:.1} % of a core"));
    let state = if seen.busy { "busy" } else { seen.run.state.word() };
    format!("{name}: {state}{memory}{cpu}, {} messages", seen.messages)
}
