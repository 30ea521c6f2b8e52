//! `agent-run renew`: a new lease, from now on.

use serde_json::Value;

use super::args::RenewArgs;
use super::printer::Printer;
use super::{select, view};
use crate::control::Request;
use crate::control::client::ask;
use crate::exit;
use crate::failure::Failure;
use crate::lease::{format_duration, parse_limit};
use crate::registry::record::State;

pub(super) fn run(args: &RenewArgs, printer: &Printer) -> Result<u8, Failure> {
    let (selector, text) = match args.words.as_slice() {
        [run, text] => (Some(run.as_str()), text),
        [text] if !args.common.labels.is_empty() => (None, text),
        _ => return Err(Failure::usage("run or duration is missing", "write agent-run renew RUN DURATION")),
    };
    let ttl = parse_limit(text).map_err(|error| Failure::usage(error.to_string(), "nothing was renewed"))?;
    let mut runs = select::runs(selector, &args.common)?;
    if let Some(run) = runs.iter().find(|run| [State::Finished, State::Orphaned].contains(&run.state)) {
        let title = run.record.as_ref().map_or(run.id.as_str(), |record| record.title());
        let message = match run.state {
            State::Finished => format!("run {title} has ended"),
            _ => format!("nobody supervises run {title} any more"),
        };
        let hint = Some("nothing was renewed".to_owned());
        return Err(Failure { kind: "not_running", message, hint, code: exit::NOT_RUNNING, log: Vec::new() });
    }
    for run in &mut runs {
        ask(&run.directory, Request::Renew { ttl_s: ttl.map(|span| span.as_secs_f64()) })?;
        run.reread();
    }
    if printer.is_json() {
        let mut values: Vec<Value> = runs.iter().map(|run| view::json(run, None, None)).collect();
        match selector {
            Some(_) => printer.document("run", values.remove(0)),
            None => printer.document("runs", Value::Array(values)),
        }
        return Ok(0);
    }
    let lease = ttl.map_or("without a lease".to_owned(), |span| format!("for {}", format_duration(span)));
    for run in &runs {
        let title = run.record.as_ref().map_or(run.id.as_str(), |record| record.title());
        printer.answer(&format!("{title} may go on {lease}"));
    }
    Ok(0)
}
