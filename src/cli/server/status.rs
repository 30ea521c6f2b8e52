//! `server status`: all servers, or one. Nobody is waited for: what is shown is in records, in /proc, and whether each port
//! takes a connection.

use std::collections::{HashMap, HashSet};
use std::io::{IsTerminal, Write, stdout};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::printer::Printer;
use super::super::{root, table, view};
use super::args::StatusArgs;
use super::{find, living, unknown};
use crate::exit;
use crate::failure::Failure;
use crate::lease::parse_duration;
use crate::limits::format_size;
use crate::owner;
use crate::registry::record::{Record, State};
use crate::registry::seen::SeenRun;
use crate::server::takes_connections;
use crate::sys::descriptors::{self, Kind as Descriptor};
use crate::sys::process::Stat;
use crate::sys::signal::{self, Signal, SignalQueue};
use crate::sys::sockets::{self, State as SocketState};
use crate::sys::{tty, waits};
use crate::usage::{Census, Usage};

const FATAL: [Signal; 4] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];

/// A server, with what a look at the moment tells.
struct Seen {
    run: SeenRun,
    usage: Option<Usage>,
    /// Whether its first port takes connections; `None` if it has none, or does not run.
    answers: Option<bool>,
    /// Somebody else listens on its port.
    conflict: bool,
}

pub(super) fn run(args: &StatusArgs, printer: &Printer) -> Result<u8, Failure> {
    if !args.watch {
        let seen = look(args)?;
        show(&seen, args, printer);
        return Ok(code(&seen, args));
    }
    let interval = args.interval.as_deref().map_or(Ok(Duration::from_secs(2)), parse_duration);
    let interval =
        interval.map_err(|error| Failure::usage(format!("--interval: {error}"), "write it like 2s"))?;
    watch(args, interval.max(Duration::from_millis(100)), printer)
}

fn watch(args: &StatusArgs, interval: Duration, printer: &Printer) -> Result<u8, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new("system", format!("cannot wait: {error}"), None, exit::SOMETHING_REMAINS)
    };
    signal::block(&FATAL);
    let queue = SignalQueue::open(&FATAL).map_err(failed)?;
    let draws = stdout().is_terminal() && !printer.is_json();
    loop {
        let seen = look(args)?;
        if draws {
            // From the top, each line erased to its end, and what is below erased.
            let text = text(&seen, args).replace('\n', "\x1b[K\n");
            let _ = write!(stdout(), "\x1b[H{text}\x1b[K\n\x1b[J");
            let _ = stdout().flush();
        } else {
            show(&seen, args, printer);
        }
        let out = stdout();
        let ready =
            waits::any(&[(queue.as_fd(), true), (out.as_fd(), false)], Some(interval)).map_err(failed)?;
        if let Some(signal) = queue.next() {
            return match signal {
                Signal::INT => Ok(0),
                signal => signal::die_of(signal),
            };
        }
        if ready[1] {
            return Ok(0);
        }
    }
}

fn look(args: &StatusArgs) -> Result<Vec<Seen>, Failure> {
    let root = root()?;
    let runs = match &args.server {
        Some(selector) => vec![find(root.as_ref().ok_or_else(|| unknown(selector))?, selector)?],
        None => living(root.as_ref()),
    };
    let supervised = || runs.iter().filter(|run| lives(run)).filter_map(|run| run.record.as_ref().ok());
    let census = (!runs.is_empty()).then(|| Census::take(supervised()));
    let listeners = Listeners::look(&runs);
    // A port that is filtered makes a connection wait, so all are asked at once.
    let ports: Vec<Option<u16>> =
        runs.iter().map(|run| Some(run).filter(|it| lives(it)).and_then(port)).collect();
    let answers: Vec<Option<bool>> = thread::scope(|scope| {
        let asked: Vec<_> =
            ports.iter().map(|port| port.map(|port| scope.spawn(move || takes_connections(port)))).collect();
        asked.into_iter().map(|it| it.and_then(|it| it.join().ok())).collect()
    });
    let seen = runs.into_iter().zip(answers).map(|(run, answers)| {
        let record = run.record.as_ref().ok();
        let usage = match run.state {
            State::Orphaned => view::usage_of_orphan(&run),
            State::Finished => None,
            _ => census.as_ref().zip(record).map(|(census, record)| census.usage_with_fds(record)),
        };
        let members = census.as_ref().zip(record).map(|(census, record)| census.members(record));
        let conflict = lives(&run) && listeners.are_others(port(&run), members.unwrap_or_default());
        Seen { usage, answers, conflict, run }
    });
    Ok(seen.collect())
}

fn lives(run: &SeenRun) -> bool {
    !matches!(run.state, State::Orphaned | State::Finished)
}

fn port(run: &SeenRun) -> Option<u16> {
    run.record.as_ref().ok()?.ports.first().copied()
}

/// Who listens on the servers' ports, by inode.
struct Listeners(HashMap<u16, HashSet<u32>>);

impl Listeners {
    fn look(runs: &[SeenRun]) -> Listeners {
        let ports: HashSet<u16> = runs.iter().filter_map(port).collect();
        let mut found: HashMap<u16, HashSet<u32>> = HashMap::new();
        if ports.is_empty() {
            return Listeners(found);
        }
        // Where the kernel cannot be asked, no conflict is seen.
        for socket in sockets::list(&[SocketState::Listening], None).unwrap_or_default() {
            let port = socket.local.port();
            if ports.contains(&port) {
                found.entry(port).or_default().insert(socket.inode);
            }
        }
        Listeners(found)
    }

    fn are_others(&self, port: Option<u16>, members: Vec<&Stat>) -> bool {
        let Some(inodes) = port.and_then(|port| self.0.get(&port)) else { return false };
        let held = |stat: &&Stat| !descriptors::held_by(stat.pid, Descriptor::Socket, inodes).is_empty();
        !members.iter().any(held)
    }
}

fn code(seen: &[Seen], args: &StatusArgs) -> u8 {
    match seen.first().filter(|_| args.server.is_some()).map(|seen| seen.run.state) {
        Some(State::Finished) => exit::NOT_RUNNING,
        Some(State::Orphaned) => exit::DEAD_WITH_REMAINS,
        _ => 0,
    }
}

fn show(seen: &[Seen], args: &StatusArgs, printer: &Printer) {
    if !printer.is_json() {
        return printer.answer(&text(seen, args));
    }
    let mut values: Vec<Value> = seen.iter().map(document).collect();
    match args.server {
        Some(_) => printer.document("run", values.remove(0)),
        None => printer.document("runs", Value::Array(values)),
    }
}

fn document(seen: &Seen) -> Value {
    let mut value = view::json(&seen.run, seen.usage, None);
    value["answers"] = json!(seen.answers);
    value["port_conflict"] = json!(seen.conflict);
    value
}

fn text(seen: &[Seen], args: &StatusArgs) -> String {
    if args.server.is_some() {
        return seen.iter().map(block).collect::<Vec<_>>().join("\n\n");
    }
    if seen.is_empty() {
        return "no servers run".to_owned();
    }
    const HEADER: [&str; 12] = [
        "NAME", "STATE", "PORT", "ANSWERS", "HEALTH", "AGE", "LEFT", "MEMORY", "CPU", "RESTARTS", "OWNER",
        "COMMAND",
    ];
    let rows: Vec<Vec<String>> = seen.iter().map(row).collect();
    let width = if stdout().is_terminal() { tty::width() } else { None };
    let mut lines = vec![table::layout(&HEADER, &rows, width)];
    lines.extend(seen.iter().filter_map(remark));
    lines.join("\n")
}

fn none() -> String {
    "-".to_owned()
}

fn row(seen: &Seen) -> Vec<String> {
    const LONGEST_NAME: usize = 20;
    let run = &seen.run;
    let Ok(record) = &run.record else {
        let mut cells = vec![run.id.to_string(), run.state.word().to_owned()];
        cells.resize_with(11, none);
        cells.push(run.record.as_ref().err().map(ToString::to_string).unwrap_or_default());
        return cells;
    };
    vec![
        table::shorten(record.title(), LONGEST_NAME),
        run.state.word().to_owned(),
        port(run).map_or_else(none, |port| port.to_string()),
        seen.answers.map_or_else(none, |yes| if yes { "yes" } else { "no" }.to_owned()),
        health(record).unwrap_or_else(none),
        view::brief(record.started_at.age()),
        record.time_left().map_or_else(none, view::brief),
        seen.usage.map_or_else(none, |usage| format_size(usage.rss_bytes)),
        seen.usage.map_or_else(none, |usage| format!("{:.1}s", usage.cpu_s)),
        record.restarts.to_string(),
        record.owner.as_ref().and_then(|owner| owner.agent.clone()).unwrap_or_else(none),
        view::command_line(record),
    ]
}

/// Returns the result of the last look, and how long it took.
fn health(record: &Record) -> Option<String> {
    let health = record.health.as_ref()?;
    Some(format!("{} {} ms", if health.ok { "ok" } else { "bad" }, health.latency_ms))
}

/// Returns what a person should know of a server, on a line of its own.
fn remark(seen: &Seen) -> Option<String> {
    let record = seen.run.record.as_ref().ok()?;
    let name = record.title();
    match seen.run.state {
        State::Orphaned => {
            Some(format!("{name}: nobody supervises it any more; agent-run sweep ends what is left"))
        }
        _ if seen.conflict => {
            let port = port(&seen.run).unwrap_or_default();
            Some(format!("{name}: somebody else listens on port {port} (agent-run port show {port})"))
        }
        State::Starting | State::Unhealthy | State::Restarting => {
            record.trouble.as_ref().map(|why| format!("{name}: {why}"))
        }
        _ => None,
    }
}

fn block(seen: &Seen) -> String {
    let mut lines = view::lines(&seen.run, seen.usage, None);
    if let Ok(record) = &seen.run.record {
        lines.extend(seen.answers.map(|yes| ("answers", if yes { "yes" } else { "no" }.to_owned())));
        let checked = record.health.as_ref().zip(health(record));
        lines.extend(
            checked.map(|(it, text)| ("health", format!("{text}, {} ago", view::brief(it.at.age())))),
        );
        let last =
            record.restarted_for.as_ref().map_or(String::new(), |why| format!(", the last one since {why}"));
        lines.push(("restarts", format!("{}{last}", record.restarts)));
        lines.push(("restart", record.restart.word().to_owned()));
        lines.extend(record.owner.as_ref().map(|owner| ("owner", owner::title(owner))));
    }
    lines.dedup_by(|one, other| one.0 == other.0);
    lines.extend(remark(seen).map(|text| ("note", text)));
    lines.iter().map(|(key, value)| format!("{key:<10} {value}")).collect::<Vec<_>>().join("\n")
}
