//! The command line: what was typed goes in, one answer and an exit code come out. One file a verb.

mod args;
mod doctor;
mod lines;
mod logs;
mod options;
mod person;
mod port;
mod printer;
mod ps;
mod renew;
mod run;
mod select;
mod server;
mod session;
mod status;
mod stop;
mod sweep;
mod table;
mod view;
mod wait;

use std::env;
use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::env as vars;
use crate::exit::{Ending, SOMETHING_REMAINS};
use crate::failure::Failure;
use crate::oneshot;
use crate::registry::RegistryError;
use crate::registry::root::Root;
use crate::sys::signal;
use args::{PortVerb, Verb, VerbCli};
use options::RunCli;
use printer::Printer;
use session::args::{SendCli, SessionVerb};

/// Words that are verbs as the very first argument. Those of `LATER` are kept for what is to come, so
/// that a command of that name does not change its meaning one day.
const VERBS: [&str; 12] =
    ["run", "ps", "status", "stop", "renew", "logs", "wait", "port", "server", "session", "sweep", "doctor"];
const LATER: [&str; 1] = ["mcp"];

/// Reads the arguments and does what they say.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = env::args_os().collect();
    if words.get(1).is_some_and(|word| word == oneshot::HOST) {
        return ExitCode::from(oneshot::run(&words[2..]));
    }
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
        Err(error) => explain(&error, Form::Run),
        Ok(cli) => match run::run(cli) {
            Ok(Ending::Code(code)) => ExitCode::from(code),
            Ok(Ending::DieOf(signal)) => signal::die_of(signal),
            Err(failure) => fail(&failure),
        },
    }
}

fn verb_form(words: Vec<OsString>) -> ExitCode {
    let json = asks_for_json(&words);
    let verb =
        match parse_message(&words).map_or_else(|| VerbCli::try_parse_from(words).map(|cli| cli.verb), Ok) {
            Err(error) => return explain(&error, Form::Verb { json }),
            Ok(verb) => verb,
        };
    if let Verb::Port(PortVerb::Pick(args)) = &verb
        && let Some(words) = port::command_to_hold(args)
    {
        return run_form(words);
    }
    let printer = Printer::new(json);
    let done = match verb {
        Verb::Ps(args) => ps::run(&args, &printer),
        Verb::Status(args) => status::run(&args, &printer),
        Verb::Stop(args) => stop::run(&args, &printer),
        Verb::Renew(args) => renew::run(&args, &printer),
        Verb::Logs(args) => logs::run(&args, &printer),
        Verb::Port(verb) => port::run(&verb, &printer),
        Verb::Server(verb) => return server::run(verb, &printer),
        Verb::Session(verb) => return session::run(verb, &printer),
        Verb::Sweep(args) => sweep::run(&args, &printer),
        Verb::Doctor(args) => doctor::run(&args, &printer),
        Verb::Wait(args) => wait::run(&args, &printer),
    };
    finish(done, &printer)
}

/// Parses the verb that is called again and again by itself: the definition of all verbs takes longer than the message.
/// `None` if it is another one, or has a mistake, which the whole definition explains better.
fn parse_message(words: &[OsString]) -> Option<Verb> {
    let [_, session, send, arguments @ ..] = words else { return None };
    let is_it = session == "session" && send == "send";
    let parsed = is_it.then(|| SendCli::try_parse_from(arguments))?;
    Some(Verb::Session(SessionVerb::Send(parsed.ok()?.args)))
}

fn finish(done: Result<u8, Failure>, printer: &Printer) -> ExitCode {
    match done {
        Ok(0) if Printer::has_lost_something() => ExitCode::from(SOMETHING_REMAINS),
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            printer.failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// What follows `--` is a command's.
fn asks_for_json(words: &[OsString]) -> bool {
    let own = words.iter().take_while(|word| *word != OsStr::new("--"));
    let variable = env::var_os(vars::JSON).is_some_and(|value| !value.is_empty() && value != *"0");
    variable || own.into_iter().any(|word| word == OsStr::new("--json"))
}

fn fail(failure: &Failure) -> ExitCode {
    Printer::new(false).failure(failure);
    ExitCode::from(failure.code)
}

/// How the program was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `agent-run [OPTIONS] COMMAND`.
    Run,
    /// `agent-run VERB`.
    Verb {
        /// The answer is for a program.
        json: bool,
    },
}

/// Help and version go to stdout as clap writes them; an error becomes one line.
fn explain(error: &clap::Error, form: Form) -> ExitCode {
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        Printer::new(false).answer(text.trim_end());
        return ExitCode::SUCCESS;
    }
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    let message = one_line(error, &text, form);
    let nth = |place| env::args_os().nth(place).unwrap_or_default();
    let starts = ["start", "ensure"].iter().any(|verb| nth(2) == **verb);
    let is_server = starts && (nth(1) == *"server" || nth(1) == *"session");
    let tip = tip.or_else(|| {
        let misses_dashes =
            is_server && error.kind() == ErrorKind::UnknownArgument && !env::args_os().any(|it| it == *"--");
        misses_dashes.then_some("put -- before the command, as in agent-run server start NAME -- COMMAND")
    });
    match form {
        Form::Run => {
            let hint = tip.unwrap_or("write agent-run [OPTIONS] COMMAND [ARG]..., or see agent-run --help");
            fail(&Failure::usage(message, hint).of_run_form())
        }
        Form::Verb { json } => {
            let failure = Failure::usage(message, tip.unwrap_or("--help tells how it is called"));
            Printer::new(json).failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// Takes from clap's page what is wrong: its first line, and the names that are listed below it.
fn one_line(error: &clap::Error, text: &str, form: Form) -> String {
    if error.kind() == ErrorKind::MissingRequiredArgument && form == Form::Run && text.contains("<COMMAND>") {
        return "there is no command to run".to_owned();
    }
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default().trim_start_matches("error: ").trim_end_matches(':');
    let listed: Vec<&str> = lines.take_while(|line| line.starts_with("  ")).map(str::trim).collect();
    if listed.is_empty() { first.to_owned() } else { format!("{first}: {}", listed.join(" ")) }
}

/// Opens the registry for a verb; a registry that is not there is an empty one.
fn root() -> Result<Option<Root>, Failure> {
    Ok(Root::open_existing()?)
}

/// Opens the registry for a verb that needs the run `selector`.
fn root_for(selector: &str) -> Result<Root, Failure> {
    Ok(root()?.ok_or_else(|| RegistryError::Unknown(selector.to_owned()))?)
}
