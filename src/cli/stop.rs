//! `agent-run stop`: asks for the end and waits until nothing is left.

use std::time::Duration;

use serde_json::Value;

use super::args::StopArgs;
use super::printer::Printer;
use super::select::{self, Filter};
use super::{root, root_for, view};
use crate::exit;
use crate::failure::Failure;
use crate::lease::parse_duration;
use crate::recover;
use crate::registry::record::State;
use crate::registry::seen::{self, SeenRun};
use crate::run::RunId;
use crate::stop::{self, StopError, Wish};

pub(super) fn run(args: &StopArgs, printer: &Printer) -> Result<u8, Failure> {
    let grace = args.grace.as_deref().map(parse_duration).transpose();
    let grace = grace.map_err(|error| Failure::usage(format!("--grace: {error}"), "nothing was stopped"))?;
    let mut runs = selected(args)?;
    if args.dry_run {
        runs.retain(|run| run.state != State::Finished);
        report(&runs, printer, "", |run| format!("would stop {}", title(run)));
        return Ok(0);
    }
    let finished: Vec<RunId> =
        runs.iter().filter(|run| run.state == State::Finished).map(|run| run.id.clone()).collect();
    let all_gone = end(&mut runs, grace, printer);
    report(&runs, printer, "", |run| match finished.contains(&run.id) {
        true => format!("{} had ended already", title(run)),
        false => outcome(run),
    });
    finish(all_gone)
}

/// Ends `runs`, and tells what could not be; returns whether nothing is left.
pub(super) fn end(runs: &mut [SeenRun], grace: Option<Duration>, printer: &Printer) -> bool {
    // All are asked before one is waited for, so that their graces pass together.
    let asked: Vec<Result<(), StopError>> =
        runs.iter_mut().map(|run| stop::ask(run, grace, Wish::Stop)).collect();
    let mut all_gone = true;
    for (run, asked) in runs.iter_mut().zip(asked) {
        if let Err(why) = asked.and_then(|()| stop::settle(run, grace)) {
            all_gone = false;
            printer.note(&format!("{}: {why}", title(run)));
        }
    }
    all_gone
}

/// Has what others have left behind ended too, in a process of its own, and returns the code.
pub(super) fn finish(all_gone: bool) -> Result<u8, Failure> {
    if let Some(root) = root()? {
        recover::recover_all_now_and_then(&root);
    }
    Ok(if all_gone { 0 } else { exit::SOMETHING_REMAINS })
}

/// Returns the runs that are meant; all are found before one is touched.
fn selected(args: &StopArgs) -> Result<Vec<SeenRun>, Failure> {
    if !args.runs.is_empty() {
        let filter = Filter::of(&args.common)?;
        let root = root_for(&args.runs[0])?;
        let mut found: Vec<SeenRun> = Vec::new();
        for selector in &args.runs {
            let run = seen::find(&root, selector).map_err(|error| {
                let failure = Failure::from(error);
                let hint = failure.hint.as_deref().unwrap_or("check the name");
                Failure { hint: Some(format!("nothing was stopped; {hint}")), ..failure }
            })?;
            if filter.fits(&run) && found.iter().all(|other| other.id != run.id) {
                found.push(run);
            }
        }
        return Ok(found);
    }
    if !args.all && args.common.labels.is_empty() {
        return Err(Failure::usage("no run is named", "name one, or use --all or --label"));
    }
    select::live(&Filter::of(&args.common)?)
}

pub(super) fn title(run: &SeenRun) -> String {
    match run.record.as_ref().ok().and_then(|record| record.name.as_ref()) {
        Some(name) => format!("{name} ({})", run.id),
        None => run.id.to_string(),
    }
}

pub(super) fn outcome(run: &SeenRun) -> String {
    let end = run.record.as_ref().ok().and_then(|record| record.end.as_ref());
    match end {
        Some(end) if end.verified && end.killed > 0 => {
            format!("stopped {} ({} needed SIGKILL)", title(run), end.killed)
        }
        Some(end) if end.verified => format!("stopped {}", title(run)),
        None if run.state == State::Finished => format!("removed {}, whose record could not be read", run.id),
        _ => format!("not stopped {}", title(run)),
    }
}

/// Tells of `runs`, each by `line`; of none by `none`.
pub(super) fn report(runs: &[SeenRun], printer: &Printer, none: &str, line: impl Fn(&SeenRun) -> String) {
    if printer.is_json() {
        let values: Vec<Value> = runs.iter().map(|run| view::json(run, None, None)).collect();
        printer.document("runs", Value::Array(values));
    } else if !runs.is_empty() {
        printer.answer(&runs.iter().map(line).collect::<Vec<_>>().join("\n"));
    } else if !none.is_empty() {
        printer.answer(none);
    }
}

/// Returns what lives of `names`, found by `find`; that nothing of a name lives is what is wanted. All are looked at before
/// one is touched.
pub(super) fn living(
    names: &[String],
    printer: &Printer,
    find: impl Fn(&str) -> Result<SeenRun, Failure>,
) -> Result<Vec<SeenRun>, Failure> {
    let mut found: Vec<SeenRun> = Vec::new();
    for name in names {
        match find(name) {
            Ok(run) if run.state != State::Finished && found.iter().all(|other| other.id != run.id) => {
                found.push(run);
            }
            Ok(_) => {}
            // Perhaps it is misspelt.
            Err(failure) if failure.kind == "unknown_run" && names.len() > 1 => {
                printer.note(&format!("nothing of the name '{}' lives", name.escape_debug()));
            }
            Err(failure) if failure.kind == "unknown_run" => {}
            Err(failure) => {
                let hint = failure.hint.as_deref().unwrap_or("check the name");
                return Err(Failure { hint: Some(format!("nothing was stopped; {hint}")), ..failure });
            }
        }
    }
    Ok(found)
}
