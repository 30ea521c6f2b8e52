//! The person at the terminal, who may be asked.

use std::io::{BufRead, IsTerminal, Write, stderr, stdin};

use crate::guard::say;
use crate::port::claim::Person;

/// Whoever sits there. Nobody does unless stdin and stderr are terminals, and nobody says no.
pub(super) struct AtTerminal;

impl AtTerminal {
    pub(super) fn is_there() -> bool {
        stdin().is_terminal() && stderr().is_terminal()
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
        read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
    }

    fn hears(&self, line: &str) {
        say(line);
    }
}
