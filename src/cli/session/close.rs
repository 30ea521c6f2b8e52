//! `session close`: the verified teardown; none is success.

use serde_json::Value;

use super::super::printer::Printer;
use super::super::stop::{end, finish, outcome, title};
use super::super::{root, view};
use super::args::CloseArgs;
use super::{find, living};
use crate::failure::Failure;
use crate::lease::parse_duration;
use crate::registry::record::State;
use crate::registry::seen::SeenRun;

pub(super) fn run(args: &CloseArgs, printer: &Printer) -> Result<u8, Failure> {
    let grace = match args.force {
        true => Some(std::time::Duration::ZERO),
        false => args
            .grace
            .as_deref()
            .map(parse_duration)
            .transpose()
            .map_err(|error| Failure::usage(format!("--grace: {error}"), "nothing was closed"))?,
    };
    let mut runs = selected(args)?;
    if args.dry_run {
        report(&runs, printer, |run| format!("would close {}", title(run)));
        return Ok(0);
    }
    let all_gone = end(&mut runs, grace, printer);
    report(&runs, printer, outcome);
    finish(all_gone)
}

/// Returns the living sessions that are meant; all names are looked at before one is touched.
fn selected(args: &CloseArgs) -> Result<Vec<SeenRun>, Failure> {
    let Some(root) = root()? else { return Ok(Vec::new()) };
    if args.all || args.provider.is_some() {
        let is_meant = |run: &SeenRun| {
            let provider = run.record.as_ref().ok().and_then(|record| record.provider.clone());
            args.all || args.provider == provider
        };
        return Ok(living(&root).into_iter().filter(is_meant).collect());
    }
    if args.sessions.is_empty() {
        return Err(Failure::usage("no session is named", "name one, or use --all or --provider"));
    }
    let mut found: Vec<SeenRun> = Vec::new();
    for name in &args.sessions {
        match find(name) {
            Ok(run) if run.state != State::Finished && found.iter().all(|other| other.id != run.id) => {
                found.push(run);
            }
            Ok(_) => {}
            // Nothing of that name lives, which is what is wanted.
            Err(failure) if failure.kind == "unknown_run" => {}
            Err(failure) => {
                let hint = failure.hint.as_deref().unwrap_or("check the name");
                return Err(Failure { hint: Some(format!("nothing was closed; {hint}")), ..failure });
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
        printer.answer("no such session lives");
    } else {
        printer.answer(&runs.iter().map(line).collect::<Vec<_>>().join("\n"));
    }
}
