//! The command line: what was typed goes in, one answer and an exit code come out. One file a verb.

mod args;
mod logs;
mod printer;
mod ps;
mod renew;
mod run;
mod select;
mod status;
mod stop;
mod table;
mod view;
mod wait;

use std::env;
use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::exit::Ending;
use crate::failure::Failure;
use crate::registry::RegistryError;
use crate::registry::root::Root;
use crate::sys::signal;
use args::{RunCli, Verb, VerbCli};
use printer::Printer;

/// Words that are verbs as the very first argument. Those of `LATER` are kept for what is to come, so
/// that a command of that name does not change its meaning one day.
const VERBS: [&str; 7] = ["run", "ps", "status", "stop", "renew", "logs", "wait"];
const LATER: [&str; 6] = ["server", "session", "port", "sweep", "doctor", "mcp"];

/// Reads the arguments and does what they say.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = env::args_os().collect();
    let first = words.get(1).and_then(|word| word.to_str());
    let verb = first.filter(|word| VERBS.contains(word) || *word == "help");
    match (verb, first) {
        (Some("run"), _) => run_form([&words[..1], &words[2..]].concat()),
        (Some(_), _) => verb_form(words),
        (None, Some(word)) if LATER.contains(&word) => {
            let message = format!("'{word}' is not there yet");
            let hint = format!("to run a command of that name: agent-run -- {word}");
            fail(&Failure::usage(message, hint))
        }
        _ => run_form(words),
    }
}

fn run_form(words: Vec<OsString>) -> ExitCode {
    match RunCli::try_parse_from(words) {
        Err(error) => explain(&error, true),
        Ok(cli) => match run::run(cli) {
            Ok(Ending::Code(code)) => ExitCode::from(code),
            Ok(Ending::DieOf(signal)) => signal::die_of(signal),
            Err(failure) => fail(&failure),
        },
    }
}

fn verb_form(words: Vec<OsString>) -> ExitCode {
    let json = words.iter().any(|word| word == OsStr::new("--json"));
    let verb = match VerbCli::try_parse_from(words) {
        Err(error) => return explain(&error, false),
        Ok(cli) => cli.verb,
    };
    let printer = Printer::new(json);
    let done = match verb {
        Verb::Ps(args) => ps::run(&args, &printer),
        Verb::Status(args) => status::run(&args, &printer),
        Verb::Stop(args) => stop::run(&args, &printer),
        Verb::Renew(args) => renew::run(&args, &printer),
        Verb::Logs(args) => logs::run(&args, &printer),
        Verb::Wait(args) => wait::run(&args, &printer),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            printer.failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}

fn fail(failure: &Failure) -> ExitCode {
    Printer::new(false).failure(failure);
    ExitCode::from(failure.code)
}

/// Help and version go to stdout as clap writes them; an error becomes one line.
fn explain(error: &clap::Error, run_form: bool) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        Printer::new(false).answer(error.render().to_string().trim_end());
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let message = text
        .lines()
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .trim_end_matches(':')
        .to_owned();
    let missing: Vec<&str> = text
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with("  ") && !line.trim().is_empty())
        .map(str::trim)
        .collect();
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    let message = match (error.kind(), missing.is_empty()) {
        (ErrorKind::MissingRequiredArgument, _) if run_form => "there is no command to run".to_owned(),
        (_, false) => format!("{message}: {}", missing.join(" ")),
        _ => message,
    };
    let hint = match (tip, run_form) {
        (Some(tip), _) => tip.to_owned(),
        (None, true) => "write agent-run [OPTIONS] COMMAND [ARG]..., or see agent-run --help".to_owned(),
        (None, false) => "see agent-run VERB --help".to_owned(),
    };
    let failure = Failure::usage(message, hint);
    fail(&if run_form { failure.of_run_form() } else { failure })
}

/// Opens the registry for a verb; a registry that is not there is an empty one.
fn root() -> Result<Option<Root>, Failure> {
    Ok(Root::open_existing()?)
}

/// Opens the registry for a verb that needs the run `selector`.
fn root_for(selector: &str) -> Result<Root, Failure> {
    Ok(root()?.ok_or_else(|| RegistryError::Unknown(selector.to_owned()))?)
}
