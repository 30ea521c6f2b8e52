//! `server logs`.

use super::super::printer::Printer;
use super::super::{lines, root};
use super::args::LogsArgs;
use super::{default_name, find, unknown};
use crate::exit;
use crate::failure::Failure;

pub(super) fn run(args: &LogsArgs, printer: &Printer) -> Result<u8, Failure> {
    let name = args.server.clone().map_or_else(default_name, Ok)?;
    let root = root()?.ok_or_else(|| unknown(&name))?;
    let run = find(&root, &name)?;
    if !lines::has_some(&run) {
        let message = format!("{name} has no log");
        return Err(Failure::new("no_log", message, Some("it runs in the foreground"), exit::USAGE));
    }
    lines::show(&run, &args.lines, printer)
}
