//! `agent-run COMMAND`: from what was typed to a run.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::options::{RunCli, RunOptions};
use super::person::AtTerminal;
use crate::exit::Ending;
use crate::failure::Failure;
use crate::guard::say;
use crate::launch::{self, LaunchError};
use crate::ports;
use crate::run::{RunSpec, Verbosity, parse_name};
use crate::service::{Check, parse_check};
use crate::settings::{self, Layer, Origin, Resolved, SettingError};
use crate::sys::files;

pub(super) fn run(mut cli: RunCli) -> Result<Ending, Failure> {
    let flags = layer(&mut cli.options);
    let resolved =
        if cli.flags_alone { Resolved::of(flags) } else { settings::resolve(flags).map_err(of_run)? };
    let started = cli.started_fd.and_then(files::take_descriptor);
    let mut spec = spec(cli.options, cli.command).map_err(Failure::of_run_form)?;
    resolved.apply(&mut spec).and_then(|()| resolved.apply_pool(&mut spec)).map_err(of_run)?;
    complete(&mut spec).map_err(Failure::of_run_form)?;
    if spec.verbosity == Verbosity::Verbose {
        resolved.explain().iter().for_each(|line| say(line));
    }
    let person = AtTerminal { verbosity: spec.verbosity };
    match launch::here(spec, started, &person) {
        // A signal before the start: as without us.
        Err(LaunchError::Interrupted(signal)) => Ok(Ending::DieOf(signal)),
        result => Ok(result?),
    }
}

fn of_run(error: SettingError) -> Failure {
    Failure::from(error).of_run_form()
}

/// Takes the flags that are settings too.
pub(super) fn layer(cli: &mut RunOptions) -> Layer {
    let values = [
        ("ttl", &mut cli.ttl),
        ("idle", &mut cli.idle),
        ("grace", &mut cli.grace),
        ("signal", &mut cli.signal),
        ("keep", &mut cli.keep),
        ("owner", &mut cli.owner),
        ("isolate", &mut cli.isolate),
        ("cgroup", &mut cli.cgroup),
        ("claim", &mut cli.claim),
        ("port_range", &mut cli.port_range),
        ("protect", &mut cli.protect),
        ("ready_timeout", &mut cli.ready_timeout),
        ("health_interval", &mut cli.health_interval),
        ("memory", &mut cli.memory),
        ("cpu", &mut cli.cpu),
        ("pids", &mut cli.pids),
        ("nofile", &mut cli.nofile),
        ("fsize", &mut cli.fsize),
        ("data", &mut cli.data),
        ("core", &mut cli.core),
        ("cpu_time", &mut cli.cpu_time),
    ];
    let switches = [
        ("scratch", cli.scratch),
        ("preserve_status", cli.preserve_status),
        ("quiet", cli.quiet),
        ("fallback", cli.fallback),
    ];
    let typed = values.into_iter().filter_map(|(key, value)| Some((key, (value.take()?, Origin::Flag))));
    let switched =
        switches.into_iter().filter(|(_, on)| *on).map(|(key, _)| (key, ("true".to_owned(), Origin::Flag)));
    typed.chain(switched).collect()
}

/// Takes the flags that are of one run alone.
pub(super) fn spec(cli: RunOptions, command: Vec<OsString>) -> Result<RunSpec, Failure> {
    let mut spec = RunSpec::new(command);
    if spec.command.first().is_some_and(|program| program.is_empty()) {
        return Err(Failure::usage("the command is an empty word", "name a program"));
    }
    let name = cli.name.map(|name| parse_name(&name)).transpose();
    spec.name = name.map_err(|error| Failure::usage(format!("--name: {error}"), "nothing was started"))?;
    spec.labels = cli.labels.iter().map(|label| parse_label(label)).collect::<Result<_, _>>()?;
    spec.env = cli.env.into_iter().map(parse_variable).collect::<Result<_, _>>()?;
    let choices = cli.ports.iter().map(|text| ports::parse_choice(text)).collect::<Result<_, _>>();
    spec.ports =
        choices.map_err(|error| Failure::usage(format!("--port: {error}"), "nothing was started"))?;
    spec.service.ready = checks("--ready", &cli.ready)?;
    spec.service.health = checks("--health", &cli.health)?;
    spec.force = cli.force;
    spec.steal = cli.steal;
    spec.copies = cli.copies;
    spec.chdir = cli.chdir;
    spec.log = cli.log.map(absolute);
    spec.events = cli.events;
    if cli.verbose {
        spec.verbosity = Verbosity::Verbose;
    }
    Ok(spec)
}

/// Puts what follows from one thing into another, and finds what cannot go together.
pub(super) fn complete(spec: &mut RunSpec) -> Result<(), Failure> {
    spec.scratch |= !spec.copies.is_empty();
    match spec.service.fault(!spec.ports.is_empty()) {
        Some(fault) => Err(Failure::usage(fault, "nothing was started")),
        None => Ok(()),
    }
}

pub(super) fn checks(flag: &str, texts: &[String]) -> Result<Vec<Check>, Failure> {
    let parsed = texts.iter().map(|text| parse_check(text)).collect::<Result<_, _>>();
    parsed.map_err(|error| Failure::usage(format!("{flag}: {error}"), "nothing was started"))
}

fn absolute(path: std::path::PathBuf) -> std::path::PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// Reads `K=V`, where K is not empty.
pub(super) fn parse_label(text: &str) -> Result<(String, String), Failure> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty() && !text.chars().any(char::is_control));
    pair.map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| {
        Failure::usage(format!("--label: '{}' is not a label", text.escape_debug()), "write it like team=web")
    })
}

fn parse_variable(text: OsString) -> Result<(OsString, OsString), Failure> {
    let bytes = text.into_vec();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(split) if split > 0 => {
            let (name, value) = (OsStr::from_bytes(&bytes[..split]), OsStr::from_bytes(&bytes[split + 1..]));
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => {
            let shown = String::from_utf8_lossy(&bytes).escape_debug().to_string();
            Err(Failure::usage(format!("--env: '{shown}' sets no variable"), "write it like NAME=value"))
        }
    }
}
