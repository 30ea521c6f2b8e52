//! `agent-run port show`: who holds which port.

use std::io::{IsTerminal, stdout};

use serde_json::{Value, json};

use super::super::args::PortShowArgs;
use super::super::printer::Printer;
use super::super::table;
use super::{blind, ports, process_json};
use crate::failure::Failure;
use crate::port::displace::Registry;
use crate::port::holders::{self, Holder, Process, Search};
use crate::port::words;
use crate::registry::seen::SeenRun;
use crate::sys::sockets::State;
use crate::sys::{files, tty};

pub(super) fn run(args: &PortShowArgs, printer: &Printer) -> Result<u8, Failure> {
    let wanted = ports(&args.ports)?;
    let runs = Registry::open().runs();
    let only = (!args.ports.is_empty()).then_some(&wanted);
    let search = if only.is_some() { Search::Enough } else { Search::Everywhere };
    let mut found = holders::find(only, &runs, search).map_err(|error| blind(&error))?;
    if only.is_none() {
        // Of all ports, those at which somebody answers, and our claims.
        found.retain(|holder| holder.socket.state == State::Listening || holder.is_claim);
    }
    if printer.is_json() {
        let mut values: Vec<Value> = found.iter().map(|holder| document(holder, &runs)).collect();
        let is_free = |port: &&u16| !found.iter().any(|holder| holder.socket.local.port() == **port);
        values.extend(wanted.iter().filter(is_free).map(|port| json!({ "port": port, "state": "free" })));
        printer.document("ports", Value::Array(values));
        return Ok(0);
    }
    // For a person, a claim is told only as long as its run does not listen.
    let listens = |port: u16, run: &Holder| {
        let same = |other: &&Holder| other.run == run.run && other.socket.local.port() == port;
        found.iter().filter(same).any(|other| other.socket.state == State::Listening)
    };
    let told = |holder: &&Holder| !holder.is_claim || !listens(holder.socket.local.port(), holder);
    let mut rows: Vec<Vec<String>> =
        found.iter().filter(told).flat_map(|holder| rows(holder, &runs)).collect();
    let has = |port: &u16| found.iter().any(|holder| holder.socket.local.port() == *port);
    rows.extend(
        wanted.iter().filter(|port| !has(port)).map(|port| row(port.to_string(), "-", "free", None, "-")),
    );
    rows.sort_by_key(|row| row[0].parse::<u16>().unwrap_or_default());
    let header = ["PORT", "ADDRESS", "STATE", "PID", "USER", "RUN", "COMMAND"];
    let width = if stdout().is_terminal() { tty::width() } else { None };
    printer.answer(&table::layout(&header, &rows, width));
    Ok(0)
}

fn name_of(holder: &Holder, runs: &[SeenRun]) -> Option<String> {
    let id = holder.run.as_ref()?;
    let record = runs.iter().find(|run| run.id == *id).and_then(|run| run.record.as_ref().ok());
    Some(record.map_or(id.to_string(), |record| record.title().to_owned()))
}

fn rows(holder: &Holder, runs: &[SeenRun]) -> Vec<Vec<String>> {
    let port = holder.socket.local.port().to_string();
    let mut address = holder.socket.local.ip().to_string();
    if holder.socket.v6only {
        address.push_str(" (v6 only)");
    }
    let state = if holder.is_claim { "claimed" } else { holder.socket.state.word() };
    let run = name_of(holder, runs).unwrap_or_else(|| "-".to_owned());
    if holder.processes.is_empty() {
        let mut ghost = row(port, &address, state, None, &run);
        ghost[4] = user(holder.socket.uid);
        return vec![ghost];
    }
    let one = |process: &Process| row(port.clone(), &address, state, Some(process), &run);
    holder.processes.iter().map(one).collect()
}

fn row(port: String, address: &str, state: &str, process: Option<&Process>, run: &str) -> Vec<String> {
    let none = || "-".to_owned();
    vec![
        port,
        address.to_owned(),
        state.to_owned(),
        process.map_or_else(none, |process| process.process.pid.to_string()),
        process.map_or_else(none, |process| user(process.uid)),
        run.to_owned(),
        process.map_or_else(none, words::command_or_name),
    ]
}

fn user(uid: u32) -> String {
    files::user_name(uid).unwrap_or_else(|| uid.to_string())
}

fn document(holder: &Holder, runs: &[SeenRun]) -> Value {
    let socket = &holder.socket;
    json!({
        "port": socket.local.port(),
        "address": socket.local.ip().to_string(),
        "family": if socket.local.is_ipv4() { "ipv4" } else { "ipv6" },
        "v6only": socket.v6only,
        "state": socket.state.word(),
        "claimed": holder.is_claim,
        "ghost": holder.is_ghost(),
        "inode": socket.inode,
        "uid": socket.uid,
        "user": files::user_name(socket.uid),
        "run": holder.run,
        "name": name_of(holder, runs).filter(|name| holder.run.as_ref().is_none_or(|id| id.as_str() != name)),
        "processes": holder.processes.iter().map(process_json).collect::<Vec<_>>(),
    })
}
