//! The person at the terminal, who may be asked.

use std::io::{BufRead, IsTerminal, Write, stderr, stdin};

use crate::guard::say;
use crate::owner;
use crate::port::claim::Person;
use crate::run::Verbosity;
use crate::sys::tty::{self, Terminal};

/// Whoever sits there. Nobody does unless stdin and stderr are terminals and we are in the foreground (a job in the
/// background that reads is stopped), and nobody says no.
pub(super) struct AtTerminal {
    /// How much is told.
    pub(super) verbosity: Verbosity,
}

impl AtTerminal {
    pub(super) fn is_there() -> bool {
        let in_front = || Terminal::open().is_some_and(|it| it.foreground() == Some(tty::own_group()));
        // An agent may have given us a terminal that nobody looks at.
        stdin().is_terminal() && stderr().is_terminal() && in_front() && !owner::is_agents()
    }
}

impl Person for AtTerminal {
    fn agrees(&self, question: &str) -> bool {
        if !AtTerminal::is_there() {
            return false;
        }
        let mut answer = String::new();
        let asked = write!(stderr(), "agent-run: {question} [y/N] ").and_then(|()| stderr().flush());
        let read = asked.and_then(|()| stdin().lock().read_line(&mut answer));
        if !answer.ends_with('\n') {
            // Ctrl-D leaves us in the question's line.
            let _ = writeln!(stderr());
        }
        read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
    }

    fn hears(&self, line: &str) {
        if self.verbosity > Verbosity::Quiet {
            say(line);
        }
    }

    fn hears_details(&self, line: &str) {
        if self.verbosity == Verbosity::Verbose {
            say(line);
        }
    }
}
