//! The one door for words: answers on stdout, everything else on stderr with our name before it.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::guard::say;

/// The version of every `--json` answer.
const ANSWER_VERSION: u32 = 1;

/// Prints answers in the form that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Printer {
    json: bool,
}

impl Printer {
    pub(super) fn new(json: bool) -> Printer {
        Printer { json }
    }

    /// Returns whether the answer is for a program.
    pub(super) fn is_json(self) -> bool {
        self.json
    }

    /// Prints an answer for a person.
    pub(super) fn answer(self, text: &str) {
        self.raw(format!("{text}\n").as_bytes());
    }

    /// Prints one versioned document, with `value` under `key`.
    pub(super) fn document(self, key: &'static str, value: Value) {
        // The version comes first, so that a reader of the beginning knows what follows.
        self.answer(&format!("{{\"version\":{ANSWER_VERSION},\"{key}\":{value}}}"));
    }

    /// Prints bytes as they are. A reader that has gone (`| head`) is no error of ours; false tells of it.
    pub(super) fn raw(self, bytes: &[u8]) -> bool {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).is_ok()
    }

    /// Tells the person something that is no answer.
    pub(super) fn note(self, line: &str) {
        say(line);
    }

    /// Tells what went wrong: a line for the person, and for a program a document too.
    pub(super) fn failure(self, failure: &Failure) {
        if self.json {
            let Failure { kind, message, hint, .. } = failure;
            self.document("error", json!({ "kind": kind, "message": message, "hint": hint }));
        }
        say(&failure.line());
    }
}
