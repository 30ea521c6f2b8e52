//! `session start`.

use std::ffi::OsString;

use serde_json::Value;

use super::super::person::AtTerminal;
use super::super::printer::Printer;
use super::super::run::{complete, layer, spec as spec_of};
use super::super::server::Spinner;
use super::super::view;
use super::args::StartArgs;
use crate::failure::Failure;
use crate::lease::format_duration;
use crate::protocol::{self, Protocol};
use crate::readiness::NotReady;
use crate::registry::seen::SeenRun;
use crate::run::{Conversation, Isolation, Kind, RunSpec, Verbosity};
use crate::session::{self, SessionError};
use crate::settings::provider::{self, Provider};
use crate::settings::{self, Layer, Origin};
use crate::sys::signal;

pub(super) fn run(args: StartArgs, printer: &Printer) -> Result<u8, Failure> {
    let (quiet, reuse) = (args.options.quiet, args.reuse);
    let spec = spec(args)?;
    if reuse && let Some(run) = session::idle_one_like(&spec)? {
        report(&run, true, quiet, printer);
        return Ok(0);
    }
    let person = AtTerminal { verbosity: if quiet { Verbosity::Quiet } else { Verbosity::Normal } };
    let spinner = Spinner::new(quiet || printer.is_json());
    match session::start(spec, &person, &spinner) {
        Ok(run) => report(&run, false, quiet, printer),
        Err(SessionError::NotReady(NotReady::Interrupted(signal))) => signal::die_of(signal),
        Err(error) => return Err(error.into()),
    }
    Ok(0)
}

fn report(run: &SeenRun, reused: bool, quiet: bool, printer: &Printer) {
    let how = if reused { "is there" } else { "is ready" };
    if printer.is_json() {
        let mut value: Value = view::json(run, None, None);
        value["reused"] = reused.into();
        return printer.document("run", value);
    }
    if let (Ok(record), false) = (&run.record, quiet) {
        let pid = record.leader.as_ref().map_or(String::new(), |leader| format!("pid {}, ", leader.pid));
        let protocol = record.protocol.as_deref().unwrap_or_default();
        let protocol = protocol.split(':').next().unwrap_or_default();
        let idle = record.idle_timeout_s.and_then(|span| std::time::Duration::try_from_secs_f64(span).ok());
        let idle =
            idle.map_or("no idle time".to_owned(), |span| format!("idle time {}", format_duration(span)));
        printer.answer(&format!("{} {how} ({pid}{protocol}, {idle})", record.title()));
    }
}

/// What is started, and how it is spoken to.
struct Program {
    command: Vec<OsString>,
    conversation: Conversation,
    layer: Layer,
    needs: Option<u64>,
}

fn spec(mut args: StartArgs) -> Result<RunSpec, Failure> {
    let mut flags = layer(&mut args.options);
    let own = [("wait", &mut args.wait), ("max_sessions", &mut args.max_sessions)];
    flags.extend(own.into_iter().filter_map(|(key, value)| Some((key, (value.take()?, Origin::Flag)))));
    let program = program(&mut args)?;
    let resolved = settings::resolve_session(flags, program.layer)?;
    for (flag, given) in [
        ("--log", args.options.log.is_some()),
        ("--ready", !args.options.ready.is_empty()),
        ("--health", !args.options.health.is_empty()),
    ] {
        if given {
            let why = format!("{flag}: a session is ready when it takes messages, and has a log of its own");
            return Err(Failure::usage(why, "leave it out"));
        }
    }
    let provider = program.conversation.provider.clone();
    if args.session.is_some() && args.options.name.is_some() {
        return Err(Failure::usage("the session has two names", "leave NAME or --name out"));
    }
    // Which of several it is, who reuses one without a name does not say.
    let any_name = args.reuse && args.session.is_none() && args.options.name.is_none();
    args.options.name = args.session.take().or(args.options.name.take()).or(provider.filter(|_| !any_name));
    let verbose = std::mem::take(&mut args.options.verbose);
    let mut spec = spec_of(args.options, program.command)?;
    (spec.kind, spec.background, spec.verbosity) = (Kind::Session, true, Verbosity::Quiet);
    spec.session = Some(program.conversation);
    resolved.apply(&mut spec)?;
    resolved.apply_pool(&mut spec)?;
    spec.verbosity = Verbosity::Quiet;
    spec.pool.needs = program.needs;
    if verbose {
        resolved.explain().iter().for_each(|line| crate::guard::say(line));
    }
    if spec.isolation == Isolation::Pid {
        return Err(Failure::usage("--isolate pid: not for sessions", "leave it out"));
    }
    complete(&mut spec)?;
    Ok(spec)
}

/// Finds out what is to be started: by `--provider`, the command's file name, or a name that is a provider's; a command and
/// `--protocol` count more than what the provider says.
fn program(args: &mut StartArgs) -> Result<Program, Failure> {
    let known = provider::providers()?;
    let command = std::mem::take(&mut args.command);
    let by_name = |name: &Option<String>| known.iter().find(|it| Some(&it.name) == name.as_ref()).cloned();
    let program = command.first().map(|word| word.to_string_lossy().into_owned());
    let found = match (&args.provider, &program) {
        (Some(name), _) => Some(provider::find(name, &known)?),
        (None, Some(program)) => provider::named_like(program, &known),
        (None, None) => by_name(&args.session),
    };
    let asked = args.protocol.as_deref().map(protocol::parse).transpose();
    let asked =
        asked.map_err(|error| Failure::usage(format!("--protocol: {error}"), "nothing was started"))?;
    let approvals = args.approvals.as_deref().map(provider::parse_approvals).transpose();
    let approvals = approvals.map_err(|why| Failure::usage(format!("--{why}"), "nothing was started"))?;
    let found = match (found, &asked, command.len()) {
        (Some(it), Some(Protocol::Oneshot), 0 | 1) if it.protocol != Protocol::Oneshot => {
            Some(it.into_oneshot()?)
        }
        (found, ..) => found,
    };
    let Some(Provider { name, args: own, protocol, approvals: usual, needs, layer, .. }) = found.clone()
    else {
        let Some(protocol) = asked else { return Err(unknown(program.as_deref())) };
        if command.is_empty() {
            return Err(Failure::usage("there is no command", "write it after --, or name a --provider"));
        }
        let conversation = Conversation {
            protocol,
            approvals: approvals.unwrap_or_default(),
            terminal: args.pty,
            provider: None,
        };
        return Ok(Program { command, conversation, layer: Layer::new(), needs: None });
    };
    let command = match command.len() {
        0 => found.map(|it| it.command()).unwrap_or_default(),
        // The program alone: it is called as the provider calls it.
        1 => command.into_iter().chain(own.into_iter().map(OsString::from)).collect(),
        _ => command,
    };
    let protocol = asked.unwrap_or(protocol);
    let approvals = approvals.unwrap_or(usual);
    let conversation = Conversation { protocol, approvals, terminal: args.pty, provider: Some(name) };
    Ok(Program { command, conversation, layer, needs })
}

fn unknown(program: Option<&str>) -> Failure {
    match program {
        Some(program) => Failure::usage(
            format!("nobody knows how '{}' is spoken to", program.escape_debug()),
            format!("say it with --protocol: {}", protocol::FORMS),
        ),
        None => Failure::usage(
            "there is no command, and no provider is named",
            format!("write --provider with one of {}, or -- COMMAND", provider::BUILT_IN.join(", ")),
        ),
    }
}
