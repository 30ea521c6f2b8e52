//! `agent-run session`: interactive programs in the background that answer messages.

pub(super) mod args;
mod close;
mod health;
mod send;
mod start;

use std::process::ExitCode;

use super::finish;
use super::printer::Printer;
use super::root;
use crate::control::Request;
use crate::control::client::ask;
use crate::exit;
use crate::failure::Failure;
use crate::registry::RegistryError;
use crate::registry::record::State;
use crate::registry::seen::{self, SeenRun};
use crate::session::{is_session, living};
use crate::settings::nearest;
use args::{InterruptArgs, SessionVerb};

pub(super) fn run(verb: SessionVerb, printer: &Printer) -> ExitCode {
    let done = match verb {
        SessionVerb::Start(args) => start::run(*args, printer),
        SessionVerb::Send(args) => send::run(&args, printer),
        SessionVerb::List(_) => health::list(printer),
        SessionVerb::Close(args) => close::run(&args, printer),
        SessionVerb::Interrupt(args) => interrupt(&args, printer),
        SessionVerb::Health(args) => health::run(&args, printer),
    };
    finish(done, printer)
}

/// Finds the session that `selector` means, of all that are or were.
fn find(selector: &str) -> Result<SeenRun, Failure> {
    let unknown = || Failure::from(RegistryError::Unknown(selector.to_owned()));
    let root = root()?.ok_or_else(unknown)?;
    let run = seen::find(&root, selector).map_err(|error| {
        let known = living(&root);
        let near = nearest(selector, known.iter().filter_map(SeenRun::name));
        let failure = Failure::from(error);
        let list = || "agent-run session list shows those that live".to_owned();
        let hint = near.map_or_else(list, |near| format!("did you mean '{near}'?"));
        Failure { hint: Some(hint), ..failure }
    })?;
    if !is_session(&run) {
        let name = run.name().unwrap_or(run.id.as_str());
        return Err(Failure::usage(format!("{name} is no session"), "agent-run session list shows them"));
    }
    Ok(run)
}

/// Finds a living one; the error says how a finished one ended.
fn find_living(selector: &str) -> Result<SeenRun, Failure> {
    let run = find(selector)?;
    if run.state != State::Finished && run.is_supervised() {
        return Ok(run);
    }
    let end = run.record.as_ref().ok().and_then(|record| record.end.as_ref());
    let how = end.map_or("it was lost".to_owned(), |end| format!("{}, code {}", end.reason.word(), end.code));
    let message = format!("session {} has ended ({how})", run.name().unwrap_or(run.id.as_str()));
    Err(Failure::new("died", message, Some("agent-run session start starts another one"), exit::NOT_RUNNING))
}

fn interrupt(args: &InterruptArgs, printer: &Printer) -> Result<u8, Failure> {
    let run = find_living(&args.session)?;
    ask(&run.directory, Request::Interrupt)?;
    if printer.is_json() {
        printer.document("run", super::view::json(&run, None, None));
    }
    Ok(0)
}
