//! `agent-run ps`: the runs, from their records, locks and /proc. Never waits for a supervisor.

use std::io::{IsTerminal, stdout};

use serde_json::Value;

use super::args::PsArgs;
use super::printer::Printer;
use super::select::{self, Filter};
use super::{root, table, view};
use crate::failure::Failure;
use crate::limits::format_size;
use crate::registry::record::State;
use crate::registry::seen::{self, SeenRun};
use crate::registry::store;
use crate::sys::tty;
use crate::usage::{Census, Usage};

/// A longer name is cut, so that it does not push the rest out of sight; `status` and `--json` have all of it.
const LONGEST_NAME: usize = 20;

pub(super) fn run(args: &PsArgs, printer: &Printer) -> Result<u8, Failure> {
    let filter = Filter::of(&args.common)?;
    let live = select::live(&filter)?;
    let supervised = || live.iter().filter(|run| run.state != State::Orphaned);
    let census =
        (!live.is_empty()).then(|| Census::take(supervised().filter_map(|run| run.record.as_ref().ok())));
    let usage = |run: &SeenRun| match run.state {
        State::Orphaned => view::usage_of_orphan(run),
        _ => Some(census.as_ref()?.usage(run.record.as_ref().ok()?)),
    };
    let mut rows: Vec<(SeenRun, Option<Usage>)> = live
        .into_iter()
        .map(|run| {
            let usage = usage(&run);
            (run, usage)
        })
        .collect();
    if args.all
        && let Some(root) = root()?
    {
        store::prune_ended(&root);
        rows.extend(seen::ended(&root).into_iter().filter(|run| filter.fits(run)).map(|run| (run, None)));
    }
    if printer.is_json() {
        let runs: Vec<Value> = rows.iter().map(|(run, usage)| view::json(run, *usage, None)).collect();
        printer.document("runs", Value::Array(runs));
    } else {
        print(&rows, printer);
    }
    Ok(0)
}

fn print(rows: &[(SeenRun, Option<Usage>)], printer: &Printer) {
    let header = ["ID", "NAME", "STATE", "AGE", "LEFT", "MEMORY", "PROCS", "PORT", "COMMAND"];
    let cells: Vec<Vec<String>> = rows.iter().map(|(run, usage)| row(run, usage.as_ref())).collect();
    let width = if stdout().is_terminal() { tty::width() } else { None };
    printer.answer(&table::layout(&header, &cells, width));
}

fn row(run: &SeenRun, usage: Option<&Usage>) -> Vec<String> {
    let none = || "-".to_owned();
    let Ok(record) = &run.record else {
        let why = run.record.as_ref().err().map(ToString::to_string).unwrap_or_default();
        return vec![
            run.id.to_string(),
            none(),
            run.state.word().to_owned(),
            none(),
            none(),
            none(),
            none(),
            none(),
            why,
        ];
    };
    vec![
        run.id.to_string(),
        record.name.as_deref().map_or_else(none, |name| table::shorten(name, LONGEST_NAME)),
        record
            .end
            .as_ref()
            .map_or(run.state.word().to_owned(), |end| format!("{} {}", end.reason.word(), end.code)),
        view::brief(record.started_at.age()),
        record.time_left().filter(|_| record.end.is_none()).map_or_else(none, view::brief),
        usage.map_or_else(none, |usage| format_size(usage.rss_bytes)),
        usage.map_or_else(none, |usage| usage.pids.to_string()),
        record.ports.first().map_or_else(none, u16::to_string),
        view::command_line(record),
    ]
}
