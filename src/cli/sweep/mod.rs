//! `agent-run sweep`: finds and removes what is left over.

mod monitor;
mod report;
mod timer;

use std::time::Duration;

use super::args::SweepArgs;
use super::person::AtTerminal;
use super::printer::Printer;
use super::root_for;
use crate::exit;
use crate::failure::Failure;
use crate::lease::parse_duration;
use crate::owner;
use crate::port::claim::Person;
use crate::registry::seen;
use crate::run::Verbosity;
use crate::settings;
use crate::sweep::plan::{Kind, Plan};
use crate::sweep::{self, Options, Scope, apply};
use crate::sys::process::{Pid, ProcessRef};
use crate::sys::signal;

/// What a monitor and a timer leave alone unless something else is said: nobody watches what they do.
const UNWATCHED_AGE: Duration = Duration::from_secs(24 * 60 * 60);
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60 * 60);

pub(super) fn run(args: &SweepArgs, printer: &Printer) -> Result<u8, Failure> {
    // Whoever called us may have ignored SIGCHLD; we wait for children.
    signal::expect_children();
    let options = options(args)?;
    let interval = duration("--interval", args.interval.as_deref())?.unwrap_or(DEFAULT_INTERVAL);
    if args.uninstall_timer {
        return timer::uninstall(printer);
    }
    if args.install_timer {
        return timer::install(interval, options.older_than, printer);
    }
    if args.monitor {
        return monitor::run(&options, interval, args.quiet, printer);
    }
    let plan = sweep::plan(&sweep::observe(&options), &options);
    let lists = args.list || args.dry_run;
    if lists || !args.yes {
        show(&plan, args, printer);
    }
    if lists {
        return Ok(0);
    }
    let count = plan.to_go().count();
    if count == 0 && !args.yes {
        return Ok(0);
    }
    let agreed = args.yes
        || AtTerminal::is_there() && AtTerminal { verbosity: Verbosity::Normal }.agrees(&question(&plan));
    if !agreed {
        if !args.quiet && !AtTerminal::is_there() {
            printer.note("nothing was ended: there is nobody to ask; use --yes");
        }
        if printer.is_json() && AtTerminal::is_there() {
            printer.document("sweep", report::document(&plan, &apply::Report::default()));
        }
        return Ok(exit::SOMETHING_REMAINS);
    }
    let done = sweep::apply(&plan, &options);
    if printer.is_json() {
        printer.document("sweep", report::document(&plan, &done));
    } else if !args.quiet {
        printer.answer(&report::lines(&plan, &done));
    }
    Ok(if done.remaining().next().is_some() { exit::SOMETHING_REMAINS } else { 0 })
}

fn show(plan: &Plan, args: &SweepArgs, printer: &Printer) {
    let asks = !args.list && !args.dry_run && plan.to_go().next().is_some() && AtTerminal::is_there();
    if printer.is_json() && !asks {
        printer.document("sweep", report::document(plan, &apply::Report::default()));
    } else if printer.is_json() {
        // The document follows, when it is known what has become of all this.
        report::table(plan).lines().for_each(|line| printer.note(line));
    } else if !args.quiet || asks {
        printer.answer(&report::table(plan));
    }
}

fn question(plan: &Plan) -> String {
    let count =
        |directories: bool| plan.to_go().filter(|it| (it.kind == Kind::Directory) == directories).count();
    match (count(false), count(true)) {
        (ended, 0) => format!("end these {ended}?"),
        (0, removed) => format!("remove these {removed}?"),
        (ended, removed) => format!("end {ended} and remove {removed} directories?"),
    }
}

fn duration(flag: &str, text: Option<&str>) -> Result<Option<Duration>, Failure> {
    let parsed = text.map(parse_duration).transpose();
    parsed.map_err(|error| Failure::usage(format!("{flag}: {error}"), "nothing was swept"))
}

fn options(args: &SweepArgs) -> Result<Options, Failure> {
    let mut options = Options::default();
    settings::resolve(settings::Layer::new())?.apply_to_sweep(&mut options)?;
    let unwatched = args.monitor || args.install_timer;
    let oldest = duration("--older-than", args.older_than.as_deref())?;
    options.older_than = oldest.unwrap_or(if unwatched { UNWATCHED_AGE } else { Duration::ZERO });
    if let Some(grace) = duration("--grace", args.grace.as_deref())? {
        options.grace = grace;
    }
    options.only = args.only.iter().map(|word| kind(word)).collect::<Result<_, _>>()?;
    for word in &args.except {
        match word.parse::<Pid>() {
            // Digits may be the beginning of an id as well.
            Ok(pid) => {
                options.except_pids.push(pid);
                options
                    .except_runs
                    .extend(root_for(word).and_then(|root| Ok(seen::find(&root, word)?)).map(|run| run.id));
            }
            Err(_) => options.except_runs.push(seen::find(&root_for(word)?, word)?.id),
        }
    }
    options.suspects = args.suspects || options.only.contains(&Kind::Suspect);
    options.scope = match &args.session {
        Some(who) => scope(who)?,
        None if args.all => Scope::All,
        None => Scope::Gone,
    };
    Ok(options)
}

fn kind(word: &str) -> Result<Kind, Failure> {
    Kind::ALL.into_iter().find(|kind| kind.word() == word).ok_or_else(|| {
        let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.word()).collect();
        Failure::usage(
            format!("--only: '{}' is no kind", word.escape_debug()),
            format!("write one of {}", known.join(", ")),
        )
    })
}

fn scope(who: &str) -> Result<Scope, Failure> {
    match (who, who.parse::<Pid>()) {
        ("self", _) => {
            let ours = owner::ours().ok_or_else(|| {
                Failure::usage(
                    "--session self: no coding agent is found above this process",
                    "name its pid or its session",
                )
            })?;
            Ok(Scope::Process(ours.process.pid, ours.session))
        }
        (_, Ok(pid)) if ProcessRef::observe(pid).is_none() || pid <= 1 => Err(Failure::usage(
            format!("--session: there is no process {pid}"),
            "without --session, the leftovers of agents that are gone are swept",
        )),
        (_, Ok(pid)) => Ok(Scope::Process(pid, None)),
        ("", _) => Err(Failure::usage("--session: it is empty", "write self, a pid or a session's id")),
        _ => Ok(Scope::Session(who.to_owned())),
    }
}
