//! `agent-run server`: named servers in the background.

pub(super) mod args;
mod logs;
pub(super) mod progress;
mod restart;
mod start;
mod status;
mod stop;

use std::process::ExitCode;

use super::finish;
use super::printer::Printer;
use crate::exit::Ending;
use crate::failure::Failure;
use crate::lease::parse_duration;
use crate::registry::RegistryError;
use crate::registry::root::Root;
use crate::registry::seen::{self, SeenRun};
use crate::run::Kind;
use crate::settings::nearest;
use crate::sys::signal;
pub(super) use progress::Spinner;

use args::ServerVerb;

pub(super) fn run(verb: ServerVerb, printer: &Printer) -> ExitCode {
    let done = match verb {
        ServerVerb::Start(args) if args.foreground => match start::in_foreground(*args, printer) {
            Ok(Ending::Code(code)) => return ExitCode::from(code),
            Ok(Ending::DieOf(signal)) => signal::die_of(signal),
            Err(failure) => Err(failure),
        },
        ServerVerb::Start(args) => start::start(*args, printer),
        ServerVerb::Ensure(args) => start::ensure(*args, printer),
        ServerVerb::Stop(args) => stop::run(&args, printer),
        ServerVerb::Restart(args) => restart::run(&args, printer),
        ServerVerb::Status(args) => status::run(&args, printer),
        ServerVerb::Logs(args) => logs::run(&args, printer),
    };
    finish(done, printer)
}

/// Returns the name that a server has if none is given: that of the directory, as far as it can be one.
fn default_name() -> Result<String, Failure> {
    let here = std::env::current_dir().unwrap_or_default();
    let name = here.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name.chars().map(|c| if fits(c) { c } else { '-' }).take(40).collect();
    let name = name.trim_matches(['-', '.', '_']).to_owned();
    if name.is_empty() {
        return Err(Failure::usage("this directory's name is no name for a server", "name one"));
    }
    Ok(name)
}

/// Finds the server that `selector` means, of all that are or were; the error says what else there is.
fn find(root: &Root, selector: &str) -> Result<SeenRun, Failure> {
    let run = seen::find(root, selector).map_err(|error| match error {
        RegistryError::Unknown(_) => with_nearest(root, selector, error.into()),
        error => error.into(),
    })?;
    is_server(&run).then_some(()).ok_or_else(|| {
        let name = run.name().unwrap_or(run.id.as_str());
        Failure::usage(format!("{name} is a run, no server"), "the same verb without 'server' is for runs")
    })?;
    Ok(run)
}

/// Adds the name that was most likely meant.
fn with_nearest(root: &Root, selector: &str, failure: Failure) -> Failure {
    let known: Vec<SeenRun> =
        seen::runs(root).into_iter().chain(seen::ended(root)).filter(is_server).collect();
    match nearest(selector, known.iter().filter_map(SeenRun::name)) {
        Some(name) => Failure { hint: Some(format!("did you mean '{name}'?")), ..failure },
        None => failure,
    }
}

fn is_server(run: &SeenRun) -> bool {
    run.record.as_ref().is_ok_and(|record| record.kind == Kind::Server)
}

/// The living servers, oldest first.
fn living(root: Option<&Root>) -> Vec<SeenRun> {
    let runs = root.map(seen::runs).unwrap_or_default();
    runs.into_iter().filter(is_server).collect()
}

fn unknown(selector: &str) -> Failure {
    RegistryError::Unknown(selector.to_owned()).into()
}

/// Reads `--grace`; `--force` is none.
fn grace(force: bool, text: Option<&str>) -> Result<Option<std::time::Duration>, Failure> {
    if force {
        return Ok(Some(std::time::Duration::ZERO));
    }
    let grace = text.map(parse_duration).transpose();
    grace.map_err(|error| Failure::usage(format!("--grace: {error}"), "nothing was ended"))
}
