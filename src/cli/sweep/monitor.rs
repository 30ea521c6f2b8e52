//! `sweep --monitor`: stays, and sweeps again and again.

use std::os::fd::AsFd;
use std::time::Duration;

use super::super::printer::Printer;
use super::report;
use crate::exit::Ending;
use crate::failure::Failure;
use crate::sweep::{self, Options};
use crate::sys::clock::BootTime;
use crate::sys::signal::{self, Signal, SignalQueue};
use crate::sys::waits;

/// The signals that end it, between two passes.
const FATAL: [Signal; 4] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];

pub(super) fn run(
    options: &Options,
    interval: Duration,
    quiet: bool,
    printer: &Printer,
) -> Result<u8, Failure> {
    if interval < Duration::from_secs(1) {
        return Err(Failure::usage("--interval: less than a second is no pause", "write one like 10m"));
    }
    signal::block_all();
    let queue = SignalQueue::open(&FATAL).map_err(|error| Failure {
        kind: "system",
        message: format!("cannot open a signal queue: {error}"),
        hint: None,
        code: crate::exit::SOMETHING_REMAINS,
        log: Vec::new(),
    })?;
    loop {
        let plan = sweep::plan(&sweep::observe(options), options);
        if plan.to_go().next().is_some() {
            let done = sweep::apply(&plan, options);
            if printer.is_json() {
                printer.document("sweep", report::document(&plan, &done));
            } else if !quiet {
                printer.answer(&report::lines(&plan, &done).replace('\n', "; "));
            }
        }
        let next = BootTime::now() + interval;
        while BootTime::now() < next {
            // One wait lasts a minute at most.
            let left = next.saturating_since(BootTime::now()).min(Duration::from_secs(60));
            if waits::readable(queue.as_fd(), Some(left)).is_err() {
                // Out of memory, for a moment: no reason to spin.
                let _ = waits::any(&[], Some(Duration::from_secs(1)));
            }
            if let Some(signal) = queue.next() {
                let code = Ending::DieOf(signal).code();
                return Ok(if signal == Signal::TERM { 0 } else { code });
            }
        }
    }
}
