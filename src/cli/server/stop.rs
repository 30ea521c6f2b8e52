//! `server stop`: the verified teardown; none is success.

use std::time::Instant;

use super::super::printer::Printer;
use super::super::root;
use super::super::stop::{end, finish, outcome, report, title};
use super::args::StopArgs;
use super::{default_name, find, grace, living};
use crate::failure::Failure;
use crate::lease::format_duration;
use crate::registry::seen::SeenRun;

const NONE: &str = "no such server runs";

pub(super) fn run(args: &StopArgs, printer: &Printer) -> Result<u8, Failure> {
    let grace = grace(args.force, args.grace.as_deref())?;
    let mut runs = selected(args, printer)?;
    if args.dry_run {
        report(&runs, printer, NONE, |run| format!("would stop {}", title(run)));
        return Ok(0);
    }
    let begun = Instant::now();
    let all_gone = end(&mut runs, grace, printer);
    let took = format_duration(begun.elapsed());
    report(&runs, printer, NONE, |run| format!("{} in {took}", outcome(run)));
    finish(all_gone)
}

/// Returns the living servers that are meant; all names are looked at before one is touched.
fn selected(args: &StopArgs, printer: &Printer) -> Result<Vec<SeenRun>, Failure> {
    let Some(root) = root()? else { return Ok(Vec::new()) };
    if args.all {
        return Ok(living(Some(&root)));
    }
    let names = if args.servers.is_empty() { vec![default_name()?] } else { args.servers.clone() };
    super::super::stop::living(&names, printer, |name| find(&root, name))
}
