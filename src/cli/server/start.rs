//! `server start` and `server ensure`.

use std::ffi::OsString;
use std::time::Duration;

use serde_json::Value;

use super::super::options::RunOptions;
use super::super::person::AtTerminal;
use super::super::printer::Printer;
use super::super::run::{checks, complete, layer, spec as spec_of};
use super::super::view;
use super::args::StartArgs;
use super::default_name;
use super::progress::Spinner;
use crate::exit::Ending;
use crate::failure::Failure;
use crate::launch;
use crate::lease::format_duration;
use crate::ports;
use crate::readiness::NotReady;
use crate::registry::seen::SeenRun;
use crate::run::{Isolation, Kind, RunSpec, Verbosity};
use crate::server::{self, Found, ServerError};
use crate::service::{Check, Restart};
use crate::settings::definition::{self, Definition};
use crate::settings::{self, Layer, Origin};
use crate::sys::signal;

pub(super) fn start(args: StartArgs, printer: &Printer) -> Result<u8, Failure> {
    let quiet = args.options.quiet;
    let all = args.all;
    let mut specs = specs(args)?;
    let spinner = Spinner::new(quiet || printer.is_json());
    let person = AtTerminal { verbosity: verbosity(quiet) };
    let Some(last) = specs.pop() else {
        return Err(Failure::usage(
            "no server is described",
            "describe one in agent-run.toml: [server.NAME]",
        ));
    };
    let mut started = Vec::new();
    // What others need is only seen to; with --all, what runs already is no error either.
    for spec in specs {
        started
            .push(server::ensure(spec, &person, &spinner).map_err(|error| left(error, &started, printer))?);
    }
    let done = match all {
        true => server::ensure(last, &person, &spinner),
        false => server::start(last, &person, &spinner).map(|run| (run, Found::Started)),
    };
    started.push(done.map_err(|error| left(error, &started, printer))?);
    report(&started, all, quiet, printer);
    Ok(0)
}

pub(super) fn ensure(args: StartArgs, printer: &Printer) -> Result<u8, Failure> {
    if args.foreground {
        return Err(Failure::usage("ensure: there is no --foreground", "use server start --foreground"));
    }
    let (quiet, all) = (args.options.quiet, args.all);
    let spinner = Spinner::new(quiet || printer.is_json());
    let person = AtTerminal { verbosity: verbosity(quiet) };
    let mut found = Vec::new();
    for spec in specs(args)? {
        found.push(server::ensure(spec, &person, &spinner).map_err(|error| left(error, &found, printer))?);
    }
    report(&found, all, quiet, printer);
    Ok(0)
}

/// Runs the server as a command in the foreground is run.
pub(super) fn in_foreground(args: StartArgs, _: &Printer) -> Result<Ending, Failure> {
    let quiet = args.options.quiet;
    let mut specs = specs(args)?;
    let Some(mut spec) = specs.pop() else {
        return Err(Failure::usage("no server is described", "give it a command after --"));
    };
    let person = AtTerminal { verbosity: verbosity(quiet) };
    let spinner = Spinner::new(quiet);
    for needed in specs {
        server::ensure(needed, &person, &spinner).map_err(interrupted)?;
    }
    (spec.background, spec.verbosity, spec.service.restart) = (false, verbosity(quiet), Restart::Never);
    match launch::here(spec, None, &person) {
        Err(launch::LaunchError::Interrupted(signal)) => Ok(Ending::DieOf(signal)),
        result => Ok(result?),
    }
}

fn verbosity(quiet: bool) -> Verbosity {
    if quiet { Verbosity::Quiet } else { Verbosity::Normal }
}

/// Tells of what was started for a server that could not be: it runs.
fn left(error: ServerError, started: &[(SeenRun, Found)], printer: &Printer) -> Failure {
    let others = started.iter().filter(|(_, found)| *found != Found::There);
    for name in others.filter_map(|(run, _)| run.name()) {
        printer.note(&format!("{name} was started before and runs on (agent-run server stop {name})"));
    }
    interrupted(error)
}

/// A signal ends us as it would have ended a command.
fn interrupted(error: ServerError) -> Failure {
    if let ServerError::NotReady(NotReady::Interrupted(signal)) = error {
        signal::die_of(signal);
    }
    error.into()
}

/// Returns what is to be started, in this order: what was asked for comes last.
fn specs(mut args: StartArgs) -> Result<Vec<RunSpec>, Failure> {
    let flags = flags(&mut args);
    let command = std::mem::take(&mut args.command);
    if !command.is_empty() {
        let name = match args.server.take().or(args.options.name.take()) {
            Some(name) => name,
            None => default_name()?,
        };
        let given = Definition { name, command, ..Definition::default() };
        return Ok(vec![spec(&given, args.options, flags)?]);
    }
    // What else is wrong in the file is told first: perhaps that is why nothing is found.
    settings::resolve(Layer::new())?;
    let all = definition::definitions()?;
    let wanted = wanted(&args, &all)?;
    let mut ordered = definition::in_order(&all, &wanted.iter().map(String::as_str).collect::<Vec<_>>())?;
    if args.all {
        // The flags are for each of them.
        return ordered.iter().map(|it| spec(it, args.options.clone(), flags.clone())).collect();
    }
    let Some(last) = ordered.pop() else { return Ok(Vec::new()) };
    let mut specs: Vec<RunSpec> =
        ordered.iter().map(|it| spec(it, RunOptions::default(), Layer::new())).collect::<Result<_, _>>()?;
    specs.push(spec(&last, args.options, flags)?);
    Ok(specs)
}

/// Returns the names of the described servers that are meant.
fn wanted(args: &StartArgs, all: &[Definition]) -> Result<Vec<String>, Failure> {
    if args.all {
        return Ok(all.iter().map(|it| it.name.clone()).collect());
    }
    let named = args.server.clone().or_else(|| args.options.name.clone());
    match (named, all) {
        (Some(name), _) => Ok(vec![name]),
        // The only one needs no name.
        (None, [only]) => Ok(vec![only.name.clone()]),
        (None, []) => Err(Failure::usage(
            "there is no command, and no server is described",
            "write agent-run server start NAME -- COMMAND, or describe it in agent-run.toml",
        )),
        (None, _) => default_name().map(|name| vec![name]),
    }
}

/// Takes the flags that are settings.
fn flags(args: &mut StartArgs) -> Layer {
    let mut flags = layer(&mut args.options);
    let own = [
        ("restart", &mut args.restart),
        ("max_restarts", &mut args.max_restarts),
        ("log_size", &mut args.log_size),
    ];
    flags.extend(own.into_iter().filter_map(|(key, value)| Some((key, (value.take()?, Origin::Flag)))));
    flags
}

fn spec(definition: &Definition, mut options: RunOptions, flags: Layer) -> Result<RunSpec, Failure> {
    let resolved = settings::resolve_server(flags, definition.layer.clone())?;
    options.name = Some(definition.name.clone());
    let verbose = std::mem::take(&mut options.verbose);
    let has_directory = options.chdir.is_some();
    if options.log.is_some() {
        return Err(Failure::usage("--log: a server has a log of its own", "agent-run server logs shows it"));
    }
    let mut spec = spec_of(options, definition.command.clone())?;
    let described =
        |error: String| Failure::usage(format!("{}: {error}", definition.place), "nothing was started");
    if spec.ports.is_empty() {
        let choices = definition.ports.iter().map(|text| ports::parse_choice(text)).collect::<Result<_, _>>();
        spec.ports = choices.map_err(|error| described(error.to_string()))?;
    }
    if spec.service.ready.is_empty() {
        spec.service.ready = checks("ready", &definition.ready).map_err(|it| described(it.message))?;
    }
    if spec.service.health.is_empty() {
        spec.service.health = checks("health", &definition.health).map_err(|it| described(it.message))?;
    }
    let given: Vec<(OsString, OsString)> = std::mem::take(&mut spec.env);
    spec.env = definition.env.iter().cloned().chain(given).collect();
    let labels = definition.labels.iter().map(|(key, value)| (key.clone(), value.clone()));
    spec.labels = labels.chain(std::mem::take(&mut spec.labels)).collect();
    if !has_directory && !definition.cwd.as_os_str().is_empty() {
        spec.chdir = Some(definition.cwd.clone());
    }
    resolved.apply(&mut spec)?;
    if verbose {
        resolved.explain().iter().for_each(|line| crate::guard::say(line));
    }
    (spec.kind, spec.background, spec.verbosity) = (Kind::Server, true, Verbosity::Quiet);
    resolved.apply_pool(&mut spec)?;
    if spec.service.ready.is_empty() && !spec.ports.is_empty() {
        spec.service.ready = vec![Check::Port];
    }
    if spec.service.restart != Restart::Never && spec.isolation == Isolation::Pid {
        return Err(Failure::usage(
            "--restart: a pid namespace ends with what it was made for",
            "leave --isolate pid or --restart out",
        ));
    }
    complete(&mut spec)?;
    let wants_port = |word: &OsString| word.to_string_lossy().contains("{port}");
    if spec.ports.is_empty() && spec.command.iter().any(wants_port) {
        return Err(Failure::usage("'{port}' stands for a port, and there is none", "add --port auto"));
    }
    Ok(spec)
}

fn report(found: &[(SeenRun, Found)], all: bool, quiet: bool, printer: &Printer) {
    if printer.is_json() {
        let mut values: Vec<Value> = found.iter().map(|(run, _)| view::json(run, None, None)).collect();
        match values.pop() {
            Some(value) if !all => printer.document("run", value),
            value => printer.document("runs", values.into_iter().chain(value).collect()),
        }
    } else if !quiet {
        found.iter().for_each(|(run, found)| printer.answer(&line(run, *found)));
    }
}

fn line(run: &SeenRun, found: Found) -> String {
    let Ok(record) = &run.record else { return run.id.to_string() };
    let how = match found {
        Found::There => "is there",
        Found::Started => "is ready",
        Found::Replaced => "was replaced and is ready",
    };
    let pid = record.leader.as_ref().map_or(String::new(), |leader| format!("pid {}, ", leader.pid));
    let lease = match record.time_left() {
        // Rounded, so that a lease of a day reads so a moment later.
        Some(left) => format!("lease {}", format_duration(left + Duration::from_millis(500))),
        None => "no lease".to_owned(),
    };
    let url = record.url().map_or(String::new(), |url| format!(": {url}"));
    let log = record.log.as_deref().unwrap_or("none");
    format!("{} {how}{url} ({pid}log {log}, {lease})", record.title())
}
