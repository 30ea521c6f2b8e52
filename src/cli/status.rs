//! `agent-run status`: all about a run, by the exit codes that init scripts use.

use serde_json::Value;

use super::args::StatusArgs;
use super::printer::Printer;
use super::{select, view};
use crate::control::client::ask;
use crate::control::{Answer, Request};
use crate::exit;
use crate::failure::Failure;
use crate::registry::record::State;
use crate::registry::seen::SeenRun;
use crate::usage::{Census, Usage};

pub(super) fn run(args: &StatusArgs, printer: &Printer) -> Result<u8, Failure> {
    let runs = select::runs(args.run.as_deref(), &args.common)?;
    let seen: Vec<_> = runs.iter().map(|run| (run, usage(run), idle(run))).collect();
    if printer.is_json() {
        let mut values: Vec<Value> =
            seen.iter().map(|(run, usage, idle)| view::json(run, *usage, *idle)).collect();
        match args.run {
            Some(_) => printer.document("run", values.remove(0)),
            None => printer.document("runs", Value::Array(values)),
        }
    } else {
        let blocks: Vec<String> = seen.iter().map(|(run, usage, idle)| block(run, *usage, *idle)).collect();
        printer.answer(&blocks.join("\n\n"));
    }
    let worst = runs.iter().map(code).max_by_key(|code| {
        [0, exit::NOT_RUNNING, exit::DEAD_WITH_REMAINS].iter().position(|known| known == code)
    });
    Ok(worst.unwrap_or(exit::NOT_RUNNING))
}

fn code(run: &SeenRun) -> u8 {
    match run.state {
        State::Orphaned => exit::DEAD_WITH_REMAINS,
        State::Finished => exit::NOT_RUNNING,
        State::Starting
        | State::Running
        | State::Ready
        | State::Unhealthy
        | State::Restarting
        | State::Stopping => 0,
    }
}

fn usage(run: &SeenRun) -> Option<Usage> {
    if run.state == State::Orphaned {
        return view::usage_of_orphan(run);
    }
    let record = run.record.as_ref().ok()?;
    record.end.is_none().then(|| Census::take([record]).usage_with_fds(record))
}

/// Asks the supervisor how long nothing has happened; one that does not answer leaves it unknown.
fn idle(run: &SeenRun) -> Option<f64> {
    run.record.as_ref().ok()?.idle_timeout_s?;
    match ask(&run.directory, Request::Live) {
        Ok(Answer::Live { idle_s, .. }) => idle_s,
        _ => None,
    }
}

fn block(run: &SeenRun, usage: Option<Usage>, idle: Option<f64>) -> String {
    let lines = view::lines(run, usage, idle);
    lines.iter().map(|(key, value)| format!("{key:<10} {value}")).collect::<Vec<_>>().join("\n")
}
