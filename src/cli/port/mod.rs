//! `agent-run port ...`: one file a verb.

mod diagnose;
mod free;
mod pick;
mod show;

use std::collections::BTreeSet;
use std::io;

use serde_json::{Value, json};

use super::args::PortVerb;
use super::printer::Printer;
use crate::exit;
use crate::failure::Failure;
use crate::port::diagnose::Finding;
use crate::port::displace::Means;
use crate::port::holders::Process;
use crate::ports::{BadPort, parse_list};
use crate::settings::Resolved;

pub(super) use pick::command_to_hold;

pub(super) fn run(verb: &PortVerb, printer: &Printer) -> Result<u8, Failure> {
    match verb {
        PortVerb::Show(args) => show::run(args, printer),
        PortVerb::Free(args) => free::run(args, printer),
        PortVerb::Pick(args) => pick::run(args, printer),
        PortVerb::Diagnose(args) => diagnose::run(args, printer),
    }
}

fn bad(error: &BadPort) -> Failure {
    Failure::usage(error.to_string(), "nothing was done")
}

/// Reads ports and ranges, each once.
fn ports(words: &[String]) -> Result<BTreeSet<u16>, Failure> {
    let lists = words.iter().map(|word| if word.is_empty() { parse_list("-") } else { parse_list(word) });
    Ok(lists.collect::<Result<Vec<_>, _>>().map_err(|error| bad(&error))?.into_iter().flatten().collect())
}

/// The kernel does not say who has which socket.
fn blind(error: &io::Error) -> Failure {
    Failure {
        kind: "sandbox",
        message: format!("the kernel does not say who holds ports: {error}"),
        hint: Some("run outside of the sandbox".to_owned()),
        code: exit::SOMETHING_REMAINS,
        log: Vec::new(),
    }
}

fn means(settings: &Resolved) -> Result<Means, Failure> {
    Ok(Means {
        grace: None,
        end_watchers: false,
        steal: false,
        protected: settings.protected()?,
        agreed: None,
    })
}

fn process_json(process: &Process) -> Value {
    json!({
        "pid": process.process.pid,
        "name": process.name,
        "command": process.command,
        "uid": process.uid,
        "age_s": process.age.as_secs_f64(),
    })
}

fn finding_json(finding: &Finding) -> Value {
    let Finding { kind, finding, advice } = finding;
    json!({ "kind": kind, "finding": finding, "advice": advice })
}
