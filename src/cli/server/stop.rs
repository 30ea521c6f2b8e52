//! `server stop`: the verified teardown; none is success.

use std::time::Instant;

use serde_json::Value;

use super::super::printer::Printer;
use super::super::stop::{end, finish, outcome, title};
use super::super::{root, view};
use super::args::StopArgs;
use super::{default_name, find, grace, living};
use crate::failure::Failure;
use crate::lease::format_duration;
use crate::registry::record::State;
use crate::registry::seen::SeenRun;

pub(super) fn run(args: &StopArgs, printer: &Printer) -> Result<u8, Failure> {
    let grace = grace(args.force, args.grace.as_deref())?;
    let mut runs = selected(args)?;
    if args.dry_run {
        report(&runs, printer, |run| format!("would stop {}", title(run)));
        return Ok(0);
    }
    let begun = Instant::now();
    let all_gone = end(&mut runs, grace, printer);
    let took = format_duration(begun.elapsed());
    report(&runs, printer, |run| format!("{} in {took}", outcome(run)));
    finish(all_gone)
}

/// Returns the living servers that are meant; all names are looked at before one is touched.
fn selected(args: &StopArgs) -> Result<Vec<SeenRun>, Failure> {
    let Some(root) = root()? else { return Ok(Vec::new()) };
    if args.all {
        return Ok(living(Some(&root)));
    }
    let names = if args.servers.is_empty() { vec![default_name()?] } else { args.servers.clone() };
    let mut found: Vec<SeenRun> = Vec::new();
    for name in names {
        match find(&root, &name) {
            Ok(run) if run.state != State::Finished && found.iter().all(|other| other.id != run.id) => {
                found.push(run);
            }
            Ok(_) => {}
            // Nothing of that name runs, which is what is wanted.
            Err(failure) if failure.kind == "unknown_run" => {}
            Err(failure) => {
                let hint = failure.hint.as_deref().unwrap_or("check the name");
                return Err(Failure { hint: Some(format!("nothing was stopped; {hint}")), ..failure });
            }
        }
    }
    Ok(found)
}

fn report(runs: &[SeenRun], printer: &Printer, line: impl Fn(&SeenRun) -> String) {
    if printer.is_json() {
        let values: Vec<Value> = runs.iter().map(|run| view::json(run, None, None)).collect();
        printer.document("runs", Value::Array(values));
    } else if runs.is_empty() {
        printer.answer("no such server runs");
    } else {
        printer.answer(&runs.iter().map(line).collect::<Vec<_>>().join("\n"));
    }
}
