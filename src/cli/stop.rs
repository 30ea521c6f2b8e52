//! `agent-run stop`: asks for the end and waits until nothing is left.

use std::time::Duration;

use serde_json::Value;

use super::args::StopArgs;
use super::printer::Printer;
use super::select::{self, Filter};
use super::{root_for, view};
use crate::control::Request;
use crate::control::client::{ControlError, ask_until_released, wait_until_released};
use crate::exit;
use crate::failure::Failure;
use crate::lease::parse_duration;
use crate::recover;
use crate::registry::record::State;
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::run::RunId;
use crate::sys::signal::Signal;

pub(super) fn run(args: &StopArgs, printer: &Printer) -> Result<u8, Failure> {
    let grace = args.grace.as_deref().map(parse_duration).transpose();
    let grace = grace.map_err(|error| Failure::usage(format!("--grace: {error}"), "nothing was stopped"))?;
    let mut runs = selected(args)?;
    if args.dry_run {
        runs.retain(|run| run.state != State::Finished);
        report(&runs, printer, |run| format!("would stop {}", title(run)));
        return Ok(0);
    }
    let finished: Vec<RunId> =
        runs.iter().filter(|run| run.state == State::Finished).map(|run| run.id.clone()).collect();
    // All are asked before one is waited for, so that their graces pass together.
    let asked: Vec<Result<(), String>> = runs.iter_mut().map(|run| request(run, grace)).collect();
    let mut remains = false;
    for (run, asked) in runs.iter_mut().zip(asked) {
        if let Err(why) = settle(run, asked, grace) {
            remains = true;
            printer.note(&format!("{}: {why}", title(run)));
        }
    }
    report(&runs, printer, |run| match finished.contains(&run.id) {
        true => format!("{} had ended already", title(run)),
        false => outcome(run),
    });
    Ok(if remains { exit::SOMETHING_REMAINS } else { 0 })
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

fn request(run: &mut SeenRun, grace: Option<Duration>) -> Result<(), String> {
    if run.state == State::Finished {
        return Ok(());
    }
    let request = Request::Stop { grace_s: grace.map(|span| span.as_secs_f64()) };
    match ask_until_released(run, &request) {
        Ok(_) => Ok(()),
        // It is ending already; the lock tells when it has.
        Err(ControlError::NoAnswer(_)) if has_ended(run) || ask_by_signal(run) || !run.is_supervised() => {
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// A supervisor that could make no socket (no inode left) heeds a signal as well.
fn ask_by_signal(run: &SeenRun) -> bool {
    let supervisor = run.record.as_ref().ok().and_then(|record| record.supervisor.as_ref()?.pin());
    supervisor.is_some_and(|supervisor| supervisor.send(Signal::TERM).is_ok())
}

fn has_ended(run: &SeenRun) -> bool {
    run.record.as_ref().is_ok_and(|record| record.end.is_some() || record.state == State::Stopping)
}

/// Waits for the end; tells what is left.
fn settle(run: &mut SeenRun, asked: Result<(), String>, grace: Option<Duration>) -> Result<(), String> {
    if run.state == State::Finished {
        return Ok(());
    }
    asked?;
    wait_until_released(run, None).map_err(|error| error.to_string())?;
    run.reread();
    match &run.record {
        Ok(record) if record.end.is_none() => recover_orphan(run, grace)?,
        Err(_) => {
            let root = Root::open().map_err(|error| error.to_string())?;
            if recover::remove_broken(&root, run, grace) {
                run.state = State::Finished;
                return Ok(());
            }
        }
        Ok(_) => {}
    }
    match run.record.as_ref().map(|record| record.end.as_ref()) {
        Ok(Some(end)) if end.verified => {
            run.state = State::Finished;
            Ok(())
        }
        Ok(Some(end)) => {
            let left: Vec<String> =
                end.survivors.iter().map(|left| format!("pid {} ({})", left.pid, left.command)).collect();
            Err(format!("could not be ended: {}", left.join(", ")))
        }
        Ok(None) => Err("nobody supervises it, and it could not be taken over; try again".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Both of its keepers are dead: we end what they left.
fn recover_orphan(run: &mut SeenRun, grace: Option<Duration>) -> Result<(), String> {
    run.state = State::Orphaned;
    let root = Root::open().map_err(|error| error.to_string())?;
    recover::recover(root, run, grace);
    run.reread();
    Ok(())
}

fn title(run: &SeenRun) -> String {
    match run.record.as_ref().ok().and_then(|record| record.name.as_ref()) {
        Some(name) => format!("{name} ({})", run.id),
        None => run.id.to_string(),
    }
}

fn outcome(run: &SeenRun) -> String {
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

fn report(runs: &[SeenRun], printer: &Printer, line: impl Fn(&SeenRun) -> String) {
    if printer.is_json() {
        let values: Vec<Value> = runs.iter().map(|run| view::json(run, None, None)).collect();
        printer.document("runs", Value::Array(values));
    } else if !runs.is_empty() {
        printer.answer(&runs.iter().map(line).collect::<Vec<_>>().join("\n"));
    }
}
