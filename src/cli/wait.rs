//! `agent-run wait`: blocks until a run is over, and returns its code.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::args::WaitArgs;
use super::printer::Printer;
use super::{select, view};
use crate::control::client::wait_until_released;
use crate::exit;
use crate::failure::Failure;
use crate::lease::parse_limit;
use crate::registry::record::State;
use crate::registry::seen::SeenRun;

pub(super) fn run(args: &WaitArgs, printer: &Printer) -> Result<u8, Failure> {
    let timeout = args.timeout.as_deref().map(parse_limit).transpose();
    let timeout =
        timeout.map_err(|error| Failure::usage(format!("--timeout: {error}"), "nothing was waited for"))?;
    let until = timeout.flatten().and_then(|span| Instant::now().checked_add(span));
    let mut runs = select::runs(args.run.as_deref(), &args.common)?;
    let mut code = 0;
    for run in &mut runs {
        // Of several the first that failed tells.
        let one = wait(run, until.map(|until| until.saturating_duration_since(Instant::now())))?;
        code = if code == 0 { one } else { code };
    }
    if printer.is_json() {
        let mut values: Vec<Value> = runs.iter().map(|run| view::json(run, None, None)).collect();
        match args.run {
            Some(_) => printer.document("run", values.remove(0)),
            None => printer.document("runs", Value::Array(values)),
        }
    }
    Ok(code)
}

fn wait(run: &mut SeenRun, timeout: Option<Duration>) -> Result<u8, Failure> {
    let waited = |error: std::io::Error| Failure::usage(format!("cannot wait: {error}"), "try again");
    if run.state != State::Finished && !wait_until_released(run, timeout).map_err(waited)? {
        return Ok(exit::TIMED_OUT);
    }
    run.reread();
    match &run.record {
        Ok(record) => match &record.end {
            Some(end) => {
                run.state = if end.verified { State::Finished } else { State::Orphaned };
                Ok(end.code)
            }
            None => Err(Failure {
                kind: "orphaned",
                message: format!("run {} is not supervised any more and its end is not known", run.id),
                hint: Some("agent-run status tells what is left".to_owned()),
                code: exit::SOMETHING_REMAINS,
                log: Vec::new(),
            }),
        },
        Err(error) => Err(error.clone().into()),
    }
}
