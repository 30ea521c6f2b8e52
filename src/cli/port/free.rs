//! `agent-run port free`: ends who listens on ports.

use std::collections::BTreeSet;
use std::io::{IsTerminal, stdout};

use serde_json::{Value, json};

use super::super::args::PortFreeArgs;
use super::super::person::AtTerminal;
use super::super::printer::Printer;
use super::super::table;
use super::{blind, finding_json, means, ports, process_json};
use crate::exit;
use crate::failure::Failure;
use crate::lease::parse_duration;
use crate::port::claim::Person;
use crate::port::diagnose::diagnose;
use crate::port::displace::{Agreed, Failed, How, Means, Outcome, Registry};
use crate::port::free::{Freed, Status, free};
use crate::port::holders::{self, Holder, Process, Search};
use crate::port::verdict::{Spared, Verdict, judge};
use crate::port::words;
use crate::run::Verbosity;
use crate::settings;
use crate::sys::sockets::State;
use crate::sys::tty;

pub(super) fn run(args: &PortFreeArgs, printer: &Printer) -> Result<u8, Failure> {
    let settings = settings::resolve(settings::Layer::new())?;
    let wanted = match args.ports.as_slice() {
        [all] if all == "all" => settings.freed_ports()?,
        words => ports(words)?,
    };
    let grace = args.grace.as_deref().map(parse_duration).transpose();
    let grace = grace.map_err(|error| Failure::usage(format!("--grace: {error}"), "nothing was ended"))?;
    let means = Means { grace, end_watchers: args.force, steal: args.steal, ..means(&settings)? };
    let registry = Registry::open();
    let plan = Plan::look(&wanted, &means, &registry)?;
    let speaks = !args.quiet && !printer.is_json();
    let asks = !args.yes && !args.dry_run && AtTerminal::is_there() && plan.ends() > 0;
    if speaks && !plan.is_empty() {
        printer.answer(&plan.table());
    } else if asks {
        // Nobody is asked about what was not shown.
        plan.table().lines().for_each(|line| printer.note(line));
    }
    if args.dry_run {
        return Ok(dry(&plan, &wanted, printer));
    }
    let agreed = asks.then(|| Agreed::to(plan.0.iter().flat_map(|(_, verdicts)| verdicts)));
    let means = Means { agreed, ..means };
    let person = AtTerminal { verbosity: Verbosity::Normal };
    if asks && !person.agrees(&format!("end {}?", processes(plan.ends()))) {
        if printer.is_json() {
            dry(&plan, &wanted, printer);
        }
        return Ok(exit::SOMETHING_REMAINS);
    }
    let mut freed = Vec::new();
    for port in &wanted {
        // Nobody was there, so there is nothing to do; the rest is looked at again by itself.
        freed.push(match plan.holds(*port) {
            true => free(*port, &means, &registry).map_err(|error| blind(&error))?,
            false => nobody(*port),
        });
    }
    // Some may have been taken while others were freed.
    let now = Plan::look(&wanted, &means, &registry)?;
    for late in freed.iter_mut().filter(|freed| freed.status == Status::Free && now.holds(freed.port)) {
        late.status = Status::Stuck;
        late.diagnostics = diagnose(late.port, &means, &registry);
    }
    if printer.is_json() {
        printer.document("ports", Value::Array(freed.iter().map(document).collect()));
    } else if speaks {
        printer.answer(&freed.iter().map(line).chain([summary(&freed)]).collect::<Vec<_>>().join("\n"));
    }
    let all_free = freed.iter().all(|it| matches!(it.status, Status::Free | Status::Cleaned));
    Ok(if all_free { 0 } else { exit::SOMETHING_REMAINS })
}

fn nobody(port: u16) -> Freed {
    Freed { port, status: Status::Free, outcome: Outcome::default(), diagnostics: Vec::new() }
}

/// Who holds the ports, and what is to become of each.
struct Plan(Vec<(Holder, Vec<Verdict>)>);

impl Plan {
    fn look(wanted: &BTreeSet<u16>, means: &Means, registry: &Registry) -> Result<Plan, Failure> {
        let runs = registry.runs();
        let found = holders::find(Some(wanted), &runs, Search::Enough).map_err(|error| blind(&error))?;
        let context = means.context(&found, &runs);
        // The claim of a run that listens goes with it.
        let listens = |claim: &Holder| {
            let same =
                |it: &&Holder| it.run == claim.run && it.socket.local.port() == claim.socket.local.port();
            found.iter().filter(same).any(|it| !it.is_claim)
        };
        let told = found.iter().filter(|it| !it.is_claim || !listens(it));
        Ok(Plan(told.map(|holder| (holder.clone(), judge(holder, &context))).collect()))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn holds(&self, port: u16) -> bool {
        let around = |verdicts: &[Verdict]| matches!(verdicts, [Verdict::Spare(_, Spared::AroundUs)]);
        self.0.iter().any(|(holder, verdicts)| holder.socket.local.port() == port && !around(verdicts))
    }

    /// Counts the processes that are to be ended, of runs those that hold the port.
    fn ends(&self) -> usize {
        let pids = |(holder, verdicts): &(Holder, Vec<Verdict>)| -> Vec<i32> {
            let ended = verdicts.iter().filter_map(|verdict| match verdict {
                Verdict::End(process) => Some(process.process.pid),
                _ => None,
            });
            let of_run = verdicts.iter().any(|verdict| matches!(verdict, Verdict::EndRun(_)));
            let members = holder.processes.iter().filter(|_| of_run).map(|process| process.process.pid);
            // A claim on which nobody listens yet is one run all the same.
            let claim =
                (of_run && holder.processes.is_empty()).then_some(-i32::from(holder.socket.local.port()));
            ended.chain(members).chain(claim).collect()
        };
        self.0.iter().flat_map(pids).collect::<BTreeSet<i32>>().len()
    }

    fn table(&self) -> String {
        let row = |port: u16, process: Option<&Process>, fate: String| {
            let none = || "-".to_owned();
            vec![
                port.to_string(),
                process.map_or_else(none, |process| process.process.pid.to_string()),
                process.map_or_else(none, |process| process.name.escape_debug().to_string()),
                fate,
                process.map_or_else(none, words::command_or_name),
            ]
        };
        let rows: Vec<Vec<String>> = self
            .0
            .iter()
            .flat_map(|(holder, verdicts)| {
                let port = holder.socket.local.port();
                verdicts.iter().map(move |verdict| match verdict {
                    Verdict::End(process) => row(port, Some(process), "end".to_owned()),
                    Verdict::EndRun(run) => row(port, holder.processes.first(), format!("end run {run}")),
                    Verdict::Spare(process, _) => row(port, process.as_ref(), "leave".to_owned()),
                })
            })
            .collect();
        let width = if stdout().is_terminal() { tty::width() } else { None };
        table::layout(&["PORT", "PID", "NAME", "PLAN", "COMMAND"], &rows, width)
    }
}

fn dry(plan: &Plan, wanted: &BTreeSet<u16>, printer: &Printer) -> u8 {
    if printer.is_json() {
        let of_port = |port: &u16| {
            let here = plan.0.iter().filter(|(holder, _)| holder.socket.local.port() == *port);
            let planned: Vec<Value> = here.flat_map(|(_, verdicts)| verdicts.iter().map(planned)).collect();
            json!({ "port": port, "plan": planned })
        };
        printer.document("ports", Value::Array(wanted.iter().map(of_port).collect()));
    } else {
        let spared = plan.0.iter().flat_map(|(holder, verdicts)| verdicts.iter().map(move |it| (holder, it)));
        let mut lines: Vec<String> = spared
            .filter_map(|(holder, verdict)| match verdict {
                Verdict::Spare(_, why) => Some(format!("{} left alone: {why}", holder.socket.local.port())),
                _ => None,
            })
            .collect();
        lines.dedup();
        lines.extend(wanted.iter().filter(|port| !plan.holds(**port)).map(|port| format!("{port} free")));
        if !lines.is_empty() {
            printer.answer(&lines.join("\n"));
        }
    }
    0
}

fn planned(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::End(process) => json!({ "action": "end", "process": process_json(process) }),
        Verdict::EndRun(run) => json!({ "action": "end_run", "run": run }),
        Verdict::Spare(process, why) => json!({
            "action": "leave",
            "process": process.as_ref().map(process_json),
            "why": why.to_string(),
        }),
    }
}

fn pids<'a>(processes: impl Iterator<Item = &'a Process>) -> Vec<i32> {
    processes.map(|process| process.process.pid).collect()
}

fn document(freed: &Freed) -> Value {
    let Freed { port, status, outcome, diagnostics } = freed;
    let ended = outcome.ended.iter().map(|(process, how)| {
        let run = if let How::WithRun { run, .. } = how { Some(run) } else { None };
        let mut value = process.as_ref().map_or_else(|| json!({}), process_json);
        value["how"] = json!(if *how == How::LetGo {
            "let_go"
        } else if is_forced(how) {
            "by_force"
        } else {
            "gracefully"
        });
        value["run"] = json!(run);
        value
    });
    let dead = outcome.ended.iter().filter(|(_, how)| *how != How::LetGo);
    json!({
        "port": port,
        "status": status.word(),
        "killed": pids(dead.filter_map(|(process, _)| process.as_ref())),
        "failed": pids(outcome.failed.iter().filter_map(|failed| failed.process.as_ref())),
        "ghost": outcome.remaining.iter().any(Holder::is_ghost),
        "still_listening": outcome.remaining.iter().any(|it| it.socket.state == State::Listening),
        "remaining_pids": pids(outcome.remaining.iter().flat_map(|holder| &holder.processes)),
        "diagnostics": diagnostics.iter().map(finding_json).collect::<Vec<_>>(),
        "ended": ended.collect::<Vec<_>>(),
        "watcher": outcome.watcher.as_ref().map(process_json),
    })
}

/// Returns what came of one port, for a person.
fn line(freed: &Freed) -> String {
    let Freed { port, status, outcome, diagnostics } = freed;
    let mut text = format!("{port} {}", status.word());
    for Failed { process, why, .. } in &outcome.failed {
        let who = process.as_ref().map_or(String::new(), |process| format!("{}: ", words::process(process)));
        text.push_str(&format!("\n     {who}{why}"));
    }
    for (process, why) in &outcome.spared {
        let who = process.as_ref().map_or(String::new(), |process| format!("{}: ", words::process(process)));
        text.push_str(&format!("\n     left alone: {who}{why}"));
    }
    if let Some(watcher) = &outcome.watcher {
        let how = if outcome.watcher_may_end { ", or use --force" } else { "" };
        let when = if outcome.remaining.is_empty() { "may start it again" } else { "starts it again" };
        text.push_str(&format!("\n     {} {when}; end that first{how}", words::process(watcher)));
    }
    for finding in
        diagnostics.iter().filter(|finding| finding.kind == "container" || finding.kind == "systemd")
    {
        text.push_str(&format!("\n     {}", finding.finding));
        text.extend(finding.advice.iter().map(|advice| format!(" -> {advice}")));
    }
    text
}

fn is_forced(how: &How) -> bool {
    matches!(how, How::ByForce | How::WithRun { by_force: true, .. })
}

fn summary(freed: &[Freed]) -> String {
    let ended = freed.iter().flat_map(|freed| &freed.outcome.ended).filter(|(_, how)| *how != How::LetGo);
    // A process that held several of the ports ended once; a run that only claimed one counts as one.
    let key = |process: &Option<Process>, how: &How| match (process, how) {
        (Some(process), _) => process.process.pid.to_string(),
        (None, How::WithRun { run, .. }) => run.to_string(),
        (None, _) => String::new(),
    };
    let ended: BTreeSet<(String, bool)> =
        ended.map(|(process, how)| (key(process, how), is_forced(how))).collect();
    let forced = ended.iter().filter(|(_, by_force)| *by_force).count();
    format!("{} ended gracefully, {forced} killed by force, {} in total", ended.len() - forced, ended.len())
}

fn processes(count: usize) -> String {
    match count {
        1 => "this process".to_owned(),
        many => format!("these {many} processes"),
    }
}
