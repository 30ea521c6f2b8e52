//! Programs that print plain text: the reply ends at a marker, at a prompt or in silence.

use std::collections::VecDeque;
use std::time::Duration;

use memchr::memmem;

use super::{CompleteBy, Done, Message, Out, Talk};
use crate::service::Pattern;

/// After the marker come a space and a status at most, and the line's end.
const LONGEST_STATUS: usize = " -2147483648\r\n".len();

/// A conversation in which the program is made to print a marker after each reply.
#[derive(Debug)]
pub(super) struct Marker {
    template: String,
    by: CompleteBy,
    /// The marker of the reply that goes on.
    marker: Option<Vec<u8>>,
    /// What may be the beginning of it.
    held: Vec<u8>,
    /// It has printed a marker: it listens.
    open: bool,
}

/// The marker that is asked for before the first message.
const OPENING: &str = "agent-run-ready-";

impl Marker {
    pub(super) fn new(template: &str, by: CompleteBy) -> Marker {
        Marker { template: template.to_owned(), by, marker: None, held: Vec::new(), open: false }
    }

    fn ask(&mut self, text: &str, marker: String, out: &mut Out) {
        out.write.extend(filled(&self.template, text, &marker));
        if !self.template.ends_with("{nul}") {
            out.write.push(b'\n');
        }
        (self.marker, self.held) = (Some(marker.into_bytes()), Vec::new());
    }
}

impl Talk for Marker {
    /// A program that is just starting would die of an interrupt, and might not be one that prints a marker at all. What is
    /// started anew for each message is not bothered.
    fn open(&mut self, out: &mut Out) {
        self.open = self.by == CompleteBy::ProcessExit;
        if !self.open {
            self.ask("", OPENING.to_owned(), out);
        }
    }

    fn is_open(&self) -> bool {
        self.open
    }

    fn send(&mut self, message: Message, out: &mut Out) -> Result<(), String> {
        if !self.open {
            return Err("it is not open yet".to_owned());
        }
        let marker = format!("agent-run-{:020x}-", message.token >> 48);
        if self.template.contains("{nul}") && message.text.contains('\0') {
            return Err("the message has a NUL in it".to_owned());
        }
        let takes_text = ["{text}", "{quoted}", "{json}"].iter().any(|it| self.template.contains(it));
        if !takes_text {
            out.write.extend_from_slice(message.text.as_bytes());
            if !message.text.ends_with('\n') {
                out.write.push(b'\n');
            }
        }
        self.ask(message.text, marker, out);
        Ok(())
    }

    fn cut_off(&mut self, out: &mut Out) {
        out.text.append(&mut self.held);
        self.marker = None;
    }

    fn is_text(&self, bytes: &[u8]) -> bool {
        let has_none =
            |marker: &Vec<u8>| memmem::find(bytes, marker).is_none() && beginning_at_end(bytes, marker) == 0;
        self.open && self.held.is_empty() && self.marker.as_ref().is_some_and(has_none)
    }

    fn take(&mut self, bytes: &[u8], out: &mut Out) {
        // What nobody waits for is nobody's.
        let Some(marker) = &self.marker else { return };
        let joined;
        let mut rest = match self.held.is_empty() {
            true => bytes,
            false => {
                self.held.extend_from_slice(bytes);
                joined = std::mem::take(&mut self.held);
                &joined
            }
        };
        while let Some(at) = memmem::find(rest, marker) {
            let after = &rest[at + marker.len()..];
            match status(after) {
                Status::Unfinished => {
                    out.text.extend_from_slice(&rest[..at]);
                    self.held = rest[at..].to_vec();
                    return;
                }
                Status::Is(_) if !self.open => {
                    (self.open, self.marker) = (true, None);
                    // What it has printed until now is nobody's.
                    out.text.clear();
                    return;
                }
                Status::Is(status) => {
                    out.text.extend_from_slice(&rest[..at]);
                    self.marker = None;
                    out.done = Some(Done { status, ..Done::well(self.by) });
                    return;
                }
                // An echo of what was written.
                Status::IsNone => {
                    let (text, others) = rest.split_at(at + marker.len());
                    out.text.extend_from_slice(text);
                    rest = others;
                }
            }
        }
        let kept = beginning_at_end(rest, marker);
        out.text.extend_from_slice(&rest[..rest.len() - kept]);
        self.held = rest[rest.len() - kept..].to_vec();
    }
}

fn filled(template: &str, text: &str, marker: &str) -> Vec<u8> {
    let quoted = || format!("'{}'", text.replace('\'', r"'\''"));
    let json = || serde_json::Value::from(text).to_string();
    let mut filled = Vec::new();
    let mut rest = template;
    // One pass: what is in the text is not taken for a place.
    while let Some(at) = rest.find('{') {
        filled.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at..];
        let end = rest.find('}').map_or(1, |end| end + 1);
        match &rest[..end] {
            "{marker}" => filled.extend_from_slice(marker.as_bytes()),
            "{text}" => filled.extend_from_slice(text.as_bytes()),
            "{quoted}" => filled.extend_from_slice(quoted().as_bytes()),
            "{json}" => filled.extend_from_slice(json().as_bytes()),
            "{nul}" => filled.push(0),
            _ => {
                filled.push(b'{');
                rest = &rest[1..];
                continue;
            }
        }
        rest = &rest[end..];
    }
    filled.extend_from_slice(rest.as_bytes());
    filled
}

/// What stands between a marker and the end of its line.
enum Status {
    /// It is not all there yet.
    Unfinished,
    /// A number, or nothing.
    Is(Option<i32>),
    /// Something else.
    IsNone,
}

fn status(after: &[u8]) -> Status {
    let end = after.iter().take(LONGEST_STATUS).position(|byte| *byte == b'\n');
    let text = &after[..end.unwrap_or(after.len().min(LONGEST_STATUS))];
    let text = std::str::from_utf8(text).unwrap_or("x").trim_matches([' ', '\r']);
    let fits = text.is_empty() || text == "-" || text.parse::<i32>().is_ok();
    match (end, fits) {
        (_, false) => Status::IsNone,
        (Some(_), true) => Status::Is(text.parse().ok()),
        (None, true) if after.len() >= LONGEST_STATUS => Status::IsNone,
        (None, true) => Status::Unfinished,
    }
}

/// Returns how many bytes at the end of `bytes` are a beginning of `wanted`.
fn beginning_at_end(bytes: &[u8], wanted: &[u8]) -> usize {
    let most = bytes.len().min(wanted.len() - 1);
    (1..=most).rev().find(|length| wanted.starts_with(&bytes[bytes.len() - length..])).unwrap_or(0)
}

/// No prompt is longer, in bytes.
const LONGEST_PROMPT: usize = 4096;

/// A conversation in which the program prints a prompt when it has done.
#[derive(Debug)]
pub(super) struct Prompt {
    pattern: Pattern,
    open: bool,
    goes_on: bool,
    /// The line that is not ended yet.
    line: Vec<u8>,
    echoes: bool,
    /// The lines of the message that are still to be repeated.
    echo: VecDeque<Vec<u8>>,
}

impl Prompt {
    pub(super) fn new(pattern: Pattern, echoes: bool) -> Prompt {
        Prompt { pattern, open: false, goes_on: false, line: Vec::new(), echoes, echo: VecDeque::new() }
    }

    /// Takes whole lines of the reply, without what repeats the message.
    fn lines(&mut self, mut lines: &[u8], out: &mut Out) {
        while let Some(expected) = self.echo.front() {
            let end = memchr::memchr(b'\n', lines).map_or(lines.len(), |at| at + 1);
            if lines.is_empty() {
                return;
            }
            let (line, rest) = lines.split_at(end);
            if line.trim_ascii_end() != expected.trim_ascii_end() {
                self.echo.clear();
                break;
            }
            self.echo.pop_front();
            lines = rest;
        }
        out.text.extend_from_slice(lines);
    }

    /// Returns how much of the last line stands before the prompt, if that is there.
    fn before_prompt(&self) -> Option<usize> {
        let plain = strip_ansi_escapes::strip(&self.line);
        let at = self.pattern.place_in(&String::from_utf8_lossy(&plain)).filter(|_| !plain.is_empty())?;
        // In a line with colours nobody knows where it begins.
        Some(if plain == self.line { at } else { 0 })
    }
}

impl Talk for Prompt {
    fn open(&mut self, _out: &mut Out) {}

    fn is_open(&self) -> bool {
        self.open
    }

    fn send(&mut self, message: Message, out: &mut Out) -> Result<(), String> {
        if !self.open {
            return Err("it is not open yet".to_owned());
        }
        send_line(message.text, out);
        self.line.clear();
        self.goes_on = true;
        let lines = message.text.lines().filter(|_| self.echoes).map(|line| line.as_bytes().to_vec());
        self.echo = lines.collect();
        Ok(())
    }

    fn cut_off(&mut self, out: &mut Out) {
        if std::mem::take(&mut self.goes_on) {
            out.text.append(&mut self.line);
        }
    }

    fn take(&mut self, bytes: &[u8], out: &mut Out) {
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole > 0 {
            let mut lines = std::mem::take(&mut self.line);
            lines.extend_from_slice(&bytes[..whole]);
            if self.goes_on {
                self.lines(&lines, out);
            }
        }
        self.line.extend_from_slice(&bytes[whole..]);
        if self.line.len() > LONGEST_PROMPT {
            if self.goes_on {
                out.text.append(&mut self.line);
            }
            self.line.clear();
        }
        let Some(before) = self.before_prompt() else { return };
        self.open = true;
        if std::mem::take(&mut self.goes_on) {
            let line = std::mem::take(&mut self.line);
            out.text.extend_from_slice(line.get(..before).unwrap_or_default());
            out.done = Some(Done::well(CompleteBy::Prompt));
        }
    }
}

/// A conversation in which silence is the end.
#[derive(Debug)]
pub(super) struct Quiet {
    span: Duration,
    goes_on: bool,
    /// Something of the reply has come.
    begun: bool,
}

/// As many times the span is a program quiet that has nothing to say at all: one that is slow would answer the next message.
const SLOW: u32 = 10;

impl Quiet {
    pub(super) fn new(span: Duration) -> Quiet {
        Quiet { span, goes_on: false, begun: false }
    }
}

impl Talk for Quiet {
    fn open(&mut self, _out: &mut Out) {}

    fn is_open(&self) -> bool {
        true
    }

    fn send(&mut self, message: Message, out: &mut Out) -> Result<(), String> {
        send_line(message.text, out);
        (self.goes_on, self.begun) = (true, false);
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], out: &mut Out) {
        if self.goes_on {
            self.begun = true;
            out.text.extend_from_slice(bytes);
        }
    }

    fn pause(&self) -> Option<Duration> {
        self.goes_on.then_some(if self.begun { self.span } else { self.span * SLOW })
    }

    fn still(&mut self, out: &mut Out) {
        if std::mem::take(&mut self.goes_on) {
            out.done = Some(Done::well(CompleteBy::Quiet));
        }
    }
}

fn send_line(text: &str, out: &mut Out) {
    out.write.extend_from_slice(text.as_bytes());
    if !text.ends_with('\n') {
        out.write.push(b'\n');
    }
}
