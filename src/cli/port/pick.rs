//! `agent-run port pick`: free ports.

use std::ffi::OsString;

use serde_json::{Value, json};

use super::super::args::PortPickArgs;
use super::super::printer::Printer;
use super::bad;
use crate::failure::Failure;
use crate::port::claim;
use crate::ports::{DEFAULT_RANGE, PortRange, parse_range};
use crate::settings;
use crate::sys::tcp::Reservation;

pub(super) fn run(args: &PortPickArgs, printer: &Printer) -> Result<u8, Failure> {
    let range = args.range.as_deref().map(parse_range).transpose().map_err(|error| bad(&error))?;
    if args.number == 0 {
        return Err(Failure::usage("-n: 0 ports are none", "ask for one at least"));
    }
    if args.hold {
        return Err(Failure::usage("--hold: there is no command to run", "write port pick --hold COMMAND"));
    }
    // All are held until all are found: none is told twice.
    let place = range.map_or_else(default_range, Ok)?;
    let taken: Vec<Reservation> = claim::several(usize::from(args.number), place, range.is_some())?;
    let ports: Vec<u16> = taken.iter().map(Reservation::port).collect();
    if printer.is_json() {
        let values: Vec<Value> = ports.iter().map(|port| json!({ "port": port, "status": "free" })).collect();
        printer.document("ports", Value::Array(values));
    } else {
        printer.answer(&ports.iter().map(u16::to_string).collect::<Vec<_>>().join("\n"));
    }
    Ok(0)
}

fn default_range() -> Result<PortRange, Failure> {
    Ok(settings::resolve(settings::Layer::new())?.port_range()?.unwrap_or(DEFAULT_RANGE))
}

/// Returns the words of the run form that `--hold` stands for, if it is asked for.
pub(in crate::cli) fn command_to_hold(args: &PortPickArgs) -> Option<Vec<OsString>> {
    let ports = (0..args.number).flat_map(|_| {
        let choice = args.range.clone().unwrap_or_else(|| "auto".to_owned());
        [OsString::from("--port"), choice.into()]
    });
    let words = [OsString::from("agent-run")].into_iter().chain(ports).chain(["--".into()]);
    (args.hold && args.number > 0 && !args.command.is_empty())
        .then(|| words.chain(args.command.iter().cloned()).collect())
}
