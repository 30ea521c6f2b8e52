//! `server restart`.

use super::super::printer::Printer;
use super::super::{root, view};
use super::args::RestartArgs;
use super::progress::Spinner;
use super::{default_name, find, grace, unknown};
use crate::exit;
use crate::failure::Failure;
use crate::readiness::NotReady;
use crate::registry::record::State;
use crate::server::{self, ServerError};
use crate::sys::signal;

pub(super) fn run(args: &RestartArgs, printer: &Printer) -> Result<u8, Failure> {
    let grace = grace(args.force, args.grace.as_deref())?;
    let name = args.server.clone().map_or_else(default_name, Ok)?;
    let root = root()?.ok_or_else(|| unknown(&name))?;
    let mut run = find(&root, &name)?;
    if [State::Finished, State::Orphaned, State::Stopping].contains(&run.state) {
        let hint = "agent-run server start starts it (with its command, if it is not described)";
        return Err(Failure::new(
            "not_running",
            format!("{name} is not running"),
            Some(hint),
            exit::NOT_RUNNING,
        ));
    }
    let spinner = Spinner::new(printer.is_json());
    // What is started again is not ours to end: Ctrl-C ends the wait alone.
    if let Err(error) = server::restart(&mut run, grace, &spinner) {
        if let ServerError::NotReady(NotReady::Interrupted(signal)) = error {
            printer.note(&format!("{name} goes on being restarted"));
            signal::die_of(signal);
        }
        return Err(error.into());
    }
    if printer.is_json() {
        printer.document("run", view::json(&run, None, None));
    } else {
        let record = run.record.as_ref().map_err(|error| Failure::from(error.clone()))?;
        let url = record.url().map_or(String::new(), |url| format!(": {url}"));
        let pid = record.leader.as_ref().map_or(0, |leader| leader.pid);
        printer.answer(&format!("{} was restarted and is ready{url} (pid {pid})", record.title()));
    }
    Ok(0)
}
