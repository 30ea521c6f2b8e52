//! `agent-run logs`: the output of a run that has a log.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::args::LogsArgs;
use super::lines;
use super::printer::Printer;
use super::select;
use crate::exit;
use crate::failure::Failure;
use crate::registry::record::State;
use crate::sys::files;

pub(super) fn run(args: &LogsArgs, printer: &Printer) -> Result<u8, Failure> {
    let mut runs = select::runs(args.run.as_deref(), &args.common)?;
    if runs.len() > 1 {
        return Err(Failure::usage(format!("{} runs have that label", runs.len()), "name one of them"));
    }
    let Some(run) = runs.pop() else {
        return Err(Failure::usage(
            "no live run has that label",
            "agent-run ps --all lists the finished ones too",
        ));
    };
    let record = run.record.as_ref().map_err(|error| Failure::from(error.clone()))?;
    let Some(path) = record.log.clone() else {
        let message = format!("run {} has no log", run.id);
        return Err(Failure::new("no_log", message, Some("start it with --log FILE"), exit::USAGE));
    };
    if lines::has_some(&run) {
        return lines::show(&run, &args.lines, printer);
    }
    if args.lines.chooses() {
        let hint = "it is a file as any other: use tail and grep";
        return Err(Failure::usage(format!("the log of run {} has no times and streams", run.id), hint));
    }
    let unreadable = |error: std::io::Error| {
        let message = format!("cannot read {path}: {error}");
        Failure::new("no_log", message, Some("was it moved?"), exit::SOMETHING_REMAINS)
    };
    let mut file = File::open(&path).map_err(unreadable)?;
    let mut output = Output { printer, begun: Vec::new() };
    let mut more = || print_rest(&mut file, &mut output);
    more().map_err(unreadable)?;
    if args.lines.follow && run.state != State::Finished {
        let changes = files::Changes::of(Path::new(&path)).map_err(unreadable)?;
        lines::follow(&run, &changes, &mut more).map_err(unreadable)?;
    }
    output.finish();
    Ok(0)
}

/// Where the log goes: as it is, or one JSON object a line.
struct Output<'a> {
    printer: &'a Printer,
    /// The beginning of a line whose end has not come yet.
    begun: Vec<u8>,
}

impl Output<'_> {
    /// Returns false if nobody takes it.
    fn take(&mut self, bytes: &[u8]) -> bool {
        if !self.printer.is_json() {
            return self.printer.raw(bytes);
        }
        self.begun.extend(bytes);
        while let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.begun.drain(..=end).collect();
            self.line(&line[..end]);
        }
        true
    }

    fn line(&self, line: &[u8]) {
        self.printer.document("line", String::from_utf8_lossy(line).into());
    }

    /// The last line may lack its end.
    fn finish(&self) {
        if !self.begun.is_empty() {
            self.line(&self.begun);
        }
    }
}

/// Prints what there is to read; returns false if nobody takes it.
fn print_rest(file: &mut File, output: &mut Output<'_>) -> std::io::Result<bool> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(true);
        }
        if !output.take(&buffer[..length]) {
            return Ok(false);
        }
    }
}
