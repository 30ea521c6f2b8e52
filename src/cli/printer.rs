//! The one door for words: answers on stdout, everything else on stderr with our name before it.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::view::is_unseen;
use crate::failure::Failure;
use crate::guard::say;

/// A part of an answer could not be written, although somebody takes it.
static LOST: AtomicBool = AtomicBool::new(false);

/// The version of every `--json` answer.
const ANSWER_VERSION: u32 = 1;

/// Prints answers in the form that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Printer {
    json: bool,
}

/// Nothing in somebody's output may move the cursor of who only reads of it.
fn shown(line: &str) -> String {
    strip_ansi_escapes::strip_str(line).chars().filter(|c| !is_unseen(*c) || *c == '\t').collect()
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
        self.fields(&[(key, value)]);
    }

    /// Prints one versioned document with these fields.
    pub(super) fn fields(self, fields: &[(&str, Value)]) {
        let fields: String = fields.iter().map(|(key, value)| format!(",\"{key}\":{value}")).collect();
        self.answer(&format!("{{\"version\":{ANSWER_VERSION}{fields}}}"));
    }

    /// Prints bytes as they are. A reader that has gone (`| head`) is no error of ours; false tells of it.
    pub(super) fn raw(self, bytes: &[u8]) -> bool {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
        if let Some(error) = written.as_ref().err().filter(|error| error.kind() != io::ErrorKind::BrokenPipe)
            && !LOST.swap(true, Ordering::Relaxed)
        {
            say(&format!("cannot write the answer: {error}"));
        }
        written.is_ok()
    }

    /// Returns whether something of an answer could not be written.
    pub(super) fn has_lost_something() -> bool {
        LOST.load(Ordering::Relaxed)
    }

    /// Tells the person something that is no answer.
    pub(super) fn note(self, line: &str) {
        say(line);
    }

    /// Tells what went wrong: a line for the person, and for a program a document too.
    pub(super) fn failure(self, failure: &Failure) {
        if self.json {
            let Failure { kind, message, hint, log, .. } = failure;
            let mut error = json!({ "kind": kind, "message": message, "hint": hint });
            if !log.is_empty() {
                error["log"] = json!(log);
            }
            self.document("error", error);
        } else {
            failure.log.iter().for_each(|line| say(&format!("| {}", shown(line))));
        }
        say(&failure.line());
    }
}
