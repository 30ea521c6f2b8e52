//! `session close`: the verified teardown; none is success.

use super::super::printer::Printer;
use super::super::root;
use super::super::stop::{end, finish, outcome, report, title};
use super::args::CloseArgs;
use super::{find, living};
use crate::failure::Failure;
use crate::lease::parse_duration;
use crate::registry::seen::SeenRun;

const NONE: &str = "no such session lives";

pub(super) fn run(args: &CloseArgs, printer: &Printer) -> Result<u8, Failure> {
    let grace = match args.force {
        true => Some(std::time::Duration::ZERO),
        false => args
            .grace
            .as_deref()
            .map(parse_duration)
            .transpose()
            .map_err(|error| Failure::usage(format!("--grace: {error}"), "nothing was closed"))?,
    };
    let mut runs = selected(args, printer)?;
    if args.dry_run {
        report(&runs, printer, NONE, |run| format!("would close {}", title(run)));
        return Ok(0);
    }
    let all_gone = end(&mut runs, grace, printer);
    report(&runs, printer, NONE, outcome);
    finish(all_gone)
}

/// Returns the living sessions that are meant; all names are looked at before one is touched.
fn selected(args: &CloseArgs, printer: &Printer) -> Result<Vec<SeenRun>, Failure> {
    let Some(root) = root()? else { return Ok(Vec::new()) };
    if args.all || args.provider.is_some() {
        let is_meant = |run: &SeenRun| {
            let provider = run.record.as_ref().ok().and_then(|record| record.provider.clone());
            args.all || args.provider == provider
        };
        return Ok(living(&root).into_iter().filter(is_meant).collect());
    }
    if args.sessions.is_empty() {
        return Err(Failure::usage("no session is named", "name one, or use --all or --provider"));
    }
    super::super::stop::living(&args.sessions, printer, find)
}
