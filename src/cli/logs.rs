//! `agent-run logs`: the output of a run that has a log.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use super::args::LogsArgs;
use super::printer::Printer;
use super::select;
use crate::exit;
use crate::failure::Failure;
use crate::registry::record::State;
use crate::registry::seen::SeenRun;
use crate::sys::process::Pidfd;
use crate::sys::{files, waits};

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
        return Err(Failure {
            kind: "no_log",
            message,
            hint: Some("start it with --log FILE".to_owned()),
            code: exit::USAGE,
        });
    };
    let unreadable = |error: std::io::Error| Failure {
        kind: "no_log",
        message: format!("cannot read {path}: {error}"),
        hint: Some("was it moved?".to_owned()),
        code: exit::SOMETHING_REMAINS,
    };
    let mut file = File::open(&path).map_err(unreadable)?;
    let mut output = Output { printer, begun: Vec::new() };
    print_rest(&mut file, &mut output).map_err(unreadable)?;
    if args.follow && run.state != State::Finished {
        follow(&run, Path::new(&path), &mut file, &mut output).map_err(unreadable)?;
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

/// Prints what is added until nobody supervises the run; sleeps until the file or a keeper changes.
fn follow(run: &SeenRun, path: &Path, file: &mut File, output: &mut Output<'_>) -> std::io::Result<()> {
    let changes = files::Changes::of(path)?;
    let record = run.record.as_ref().ok();
    let keepers = record.into_iter().flat_map(|record| [&record.guard, &record.supervisor]).flatten();
    let mut pinned: Vec<_> = keepers.filter_map(|keeper| keeper.pin()).collect();
    loop {
        // Who is dead before the lock is asked after needs no more waiting for.
        pinned.retain(Pidfd::is_alive);
        let over = !run.is_supervised();
        if !print_rest(file, output)? || over {
            return Ok(());
        }
        // A reader that has gone (`| head`) is seen by the hang-up of stdout.
        let stdout = std::io::stdout();
        let mut fds = vec![(stdout.as_fd(), false), (changes.as_fd(), true)];
        fds.extend(pinned.iter().map(|pidfd| (pidfd.as_fd(), true)));
        let unseen = pinned.is_empty().then_some(Duration::from_millis(100));
        if waits::any(&fds, unseen)?[0] {
            return Ok(());
        }
        changes.clear();
    }
}
