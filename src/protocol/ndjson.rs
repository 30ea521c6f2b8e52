//! Lines of JSON: the reply is every line up to the one that has a certain field.

use serde_json::Value;

use super::lines::{Lines, read_json};
use super::{CompleteBy, Done, Message, Out, Talk};

/// A conversation.
#[derive(Debug)]
pub(super) struct Ndjson {
    field: Vec<String>,
    value: String,
    lines: Lines,
    goes_on: bool,
}

impl Ndjson {
    pub(super) fn new(field: &str, value: &str) -> Ndjson {
        let field = field.split('.').map(str::to_owned).collect();
        Ndjson { field, value: value.to_owned(), lines: Lines::default(), goes_on: false }
    }
}

impl Talk for Ndjson {
    fn open(&mut self, _out: &mut Out) {}

    fn is_open(&self) -> bool {
        true
    }

    fn send(&mut self, message: Message, out: &mut Out) -> Result<(), String> {
        let text = message.text.trim_end_matches('\n');
        match serde_json::from_str::<Value>(text) {
            Ok(value) if text.contains('\n') => out.line(&value),
            Err(_) if text.contains('\n') => {
                return Err("the message has several lines and is no JSON".to_owned());
            }
            _ => {
                out.write.extend_from_slice(text.as_bytes());
                out.write.push(b'\n');
            }
        }
        self.goes_on = true;
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], out: &mut Out) {
        let Ndjson { field, value, lines, goes_on } = self;
        let fed = lines.feed(bytes, &mut |line| {
            if !*goes_on {
                return;
            }
            out.text.extend_from_slice(line);
            out.text.push(b'\n');
            if read_json(line).is_some_and(|it| has(&it, field, value)) {
                *goes_on = false;
                out.done = Some(Done::well(CompleteBy::ResultEvent));
            }
        });
        out.broken = fed.err().map(|error| error.why());
    }
}

fn has(line: &Value, field: &[String], wanted: &str) -> bool {
    let found = field.iter().try_fold(line, |value, name| value.get(name));
    found.is_some_and(|found| match found.as_str() {
        Some(text) => text == wanted,
        None => serde_json::from_str::<Value>(wanted).is_ok_and(|wanted| wanted == *found),
    })
}
