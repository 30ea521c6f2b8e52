//! What a person sees while a server gets ready: what is awaited, and its last line when that takes long.

use std::cell::Cell;
use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use super::super::table::shorten;
use super::super::view::is_unseen;
use crate::output;
use crate::owner;
use crate::readiness::Progress;
use crate::registry::seen::SeenRun;
use crate::sys::tty;

/// A line of its own on stderr, if that is a terminal.
pub(in crate::cli) struct Spinner {
    is_there: bool,
    turns: Cell<usize>,
}

impl Spinner {
    pub(in crate::cli) fn new(quiet: bool) -> Spinner {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        // An agent may have given us a terminal that nobody looks at.
        let is_there = !quiet && !dumb && stderr().is_terminal() && !owner::is_agents();
        Spinner { is_there, turns: Cell::new(0) }
    }

    fn show(&self, line: &str) {
        let width = tty::width().unwrap_or(80).saturating_sub(1);
        // Erased to its end, and the cursor goes back to its beginning.
        let _ = write!(stderr(), "\r{}\x1b[K", shorten(line, width));
        let _ = stderr().flush();
    }
}

impl Progress for Spinner {
    fn waits(&self, run: &SeenRun, waited: Duration) {
        const SIGNS: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
        // What takes no longer needs no line.
        const AT_ONCE: Duration = Duration::from_millis(300);
        const LONG: Duration = Duration::from_secs(5);
        if !self.is_there || waited < AT_ONCE {
            return;
        }
        self.turns.set(self.turns.get() + 1);
        let name = run.name().unwrap_or(run.id.as_str());
        let record = run.record.as_ref().ok();
        let why =
            record.and_then(|record| record.trouble.clone()).unwrap_or_else(|| "is starting".to_owned());
        let mut line =
            format!("{} {name}: {why} ({} s)", SIGNS[self.turns.get() % SIGNS.len()], waited.as_secs());
        if waited > LONG
            && let Some(last) = output::last_lines(&run.directory, 1).first()
        {
            line.push_str(" | ");
            line.push_str(&strip_ansi_escapes::strip_str(last.text()));
        }
        let line: String = line.chars().filter(|c| !is_unseen(*c)).collect();
        self.show(&line);
    }

    fn interval(&self) -> Option<Duration> {
        self.is_there.then_some(Duration::from_millis(100))
    }

    fn over(&self) {
        if self.turns.replace(0) > 0 {
            self.show("");
        }
    }
}
