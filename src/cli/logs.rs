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
use crate::registry::store::SeenRun;
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
    print_rest(&mut file, printer).map_err(unreadable)?;
    if args.follow && run.state != State::Finished {
        follow(&run, Path::new(&path), &mut file, printer).map_err(unreadable)?;
    }
    Ok(0)
}

/// Prints what there is to read; returns false if nobody takes it.
fn print_rest(file: &mut File, printer: &Printer) -> std::io::Result<bool> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(true);
        }
        if !printer.raw(&buffer[..length]) {
            return Ok(false);
        }
    }
}

/// Prints what is added until nobody supervises the run; sleeps until the file or a keeper changes.
fn follow(run: &SeenRun, path: &Path, file: &mut File, printer: &Printer) -> std::io::Result<()> {
    let changes = files::Changes::of(path)?;
    let record = run.record.as_ref().ok();
    let keepers = record.into_iter().flat_map(|record| [&record.guard, &record.supervisor]).flatten();
    let mut pinned: Vec<_> = keepers.filter_map(|keeper| keeper.pin()).collect();
    loop {
        // Who is dead before the lock is asked after needs no more waiting for.
        pinned.retain(Pidfd::is_alive);
        let over = !run.is_supervised();
        if !print_rest(file, printer)? || over {
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
