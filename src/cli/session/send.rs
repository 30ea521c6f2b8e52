//! `session send`: one message, and its reply.

use std::io::{IsTerminal, Read, Write, stdin};
use std::os::fd::AsFd;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::printer::Printer;
use super::args::SendArgs;
use super::find_living;
use crate::control::frames::{RefusedFor, Reply};
use crate::exit;
use crate::failure::Failure;
use crate::lease::parse_limit;
use crate::protocol::CompleteBy;
use crate::registry::seen::SeenRun;
use crate::session::connection::{Connection, Heard, Sending, TalkError};
use crate::sys::signal::{self, Signal, SignalQueue};

pub(super) fn run(args: &SendArgs, printer: &Printer) -> Result<u8, Failure> {
    let timeout = args.timeout.as_deref().map(parse_limit).transpose();
    let timeout =
        timeout.map_err(|error| Failure::usage(format!("--timeout: {error}"), "nothing was sent"))?.flatten();
    let run = find_living(&args.session)?;
    let text = message(args)?;
    let sending = Sending { timeout, stream: args.stream, wait: !args.no_wait };
    let mut shown = Shown::new(args, &run, *printer);
    match talk(&run, &text, sending, &mut shown) {
        Ok(Some(reply)) => {
            shown.end(&reply);
            outcome(&args.session, &reply, timeout, printer)
        }
        // Nobody reads what we print.
        Ok(None) => Ok(exit::SIGNAL_BASE + Signal::PIPE.number() as u8),
        Err(error) => {
            let failure = refused(&args.session, error);
            if !shown.break_off(&failure.message) {
                return Err(failure);
            }
            printer.note(&failure.line());
            Ok(failure.code)
        }
    }
}

/// Returns the message: the argument, else all of stdin.
fn message(args: &SendArgs) -> Result<String, Failure> {
    let given = args.text.as_deref().filter(|text| *text != "-");
    if let Some(text) = given {
        return Ok(text.to_owned());
    }
    if args.text.is_none() && stdin().is_terminal() {
        return Err(Failure::usage("there is no message", "write it as an argument, or - for stdin"));
    }
    let mut bytes = Vec::new();
    let read = stdin().read_to_end(&mut bytes);
    read.map_err(|error| Failure::usage(format!("cannot read the message: {error}"), "nothing was sent"))?;
    String::from_utf8(bytes).map_err(|_| Failure::usage("the message is no UTF-8", "nothing was sent"))
}

/// Sends, and waits for the end of the reply. The first Ctrl-C interrupts that, the second ends us.
/// `None` if nobody reads what we print.
fn talk(run: &SeenRun, text: &str, sending: Sending, shown: &mut Shown) -> Result<Option<Reply>, TalkError> {
    let mut connection = Connection::open(run)?;
    signal::block(&[Signal::INT]);
    let queue = SignalQueue::open(&[Signal::INT])?;
    let mut interrupted = false;
    connection.send(text, sending)?;
    loop {
        match connection.take()? {
            Some(Heard::Text(text)) if !shown.text(&text) => return Ok(None),
            Some(Heard::Text(_)) => {}
            Some(Heard::Over(mut reply)) => {
                // A program that says nothing of its status: it was not carried out all the same.
                reply.status = reply.status.or(interrupted.then_some(INTERRUPTED));
                return Ok(Some(*reply));
            }
            None => {
                connection.wait(&[queue.as_fd()])?;
                if queue.next().is_some() {
                    if interrupted {
                        signal::die_of(Signal::INT);
                    }
                    interrupted = true;
                    shown.printer.note("asked for the end of the reply; Ctrl-C again leaves it to itself");
                    connection.interrupt()?;
                }
            }
        }
    }
}

/// As of whoever dies of SIGINT.
const INTERRUPTED: i32 = 130;

/// Where the reply goes.
struct Shown {
    printer: Printer,
    stream: bool,
    session: Value,
    /// Ends a last line that the program has not ended: what it says is a text, and not somebody's output.
    ends_line: bool,
    begun: bool,
    last: u8,
    /// The beginning of a character that has not come to its end.
    half: Vec<u8>,
}

impl Shown {
    fn new(args: &SendArgs, run: &SeenRun, printer: Printer) -> Shown {
        let protocol =
            run.record.as_ref().ok().and_then(|record| record.protocol.clone()).unwrap_or_default();
        let is_text = ["claude", "codex", "acp", "jsonrpc"].contains(&protocol.as_str());
        let terminal = std::io::stdout().is_terminal();
        Shown {
            printer,
            stream: args.stream,
            session: json!(run.name().unwrap_or(run.id.as_str())),
            ends_line: is_text || terminal,
            begun: false,
            last: b'\n',
            half: Vec::new(),
        }
    }

    /// Prints a part of the text; returns whether somebody reads that.
    fn text(&mut self, bytes: &[u8]) -> bool {
        if !self.printer.is_json() {
            self.last = bytes.last().copied().unwrap_or(self.last);
            return self.printer.raw(bytes);
        }
        let text = self.whole_characters(bytes);
        if self.stream {
            return self.printer.raw(format!("{{\"version\":1,\"text\":{}}}\n", json!(text)).as_bytes());
        }
        let quoted = json!(text).to_string();
        let inner = &quoted[1..quoted.len() - 1];
        let begin = if self.begun { String::new() } else { self.beginning() };
        self.begun = true;
        self.printer.raw(format!("{begin}{inner}").as_bytes())
    }

    /// Ends a document that has begun, if there is one: the reply will not be.
    fn break_off(&mut self, why: &str) -> bool {
        if self.begun {
            let end = json!({ "complete_by": null, "failed": why }).to_string();
            self.printer.raw(format!("\",{}}}\n", &end[1..]).as_bytes());
        }
        self.begun
    }

    /// A document of which the text comes as it does: it may be larger than the memory.
    fn beginning(&self) -> String {
        format!("{{\"version\":1,\"reply\":{{\"session\":{},\"text\":\"", self.session)
    }

    /// Joins what came before, and keeps a character that is not whole yet; what is none at all is replaced.
    fn whole_characters(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.half);
        all.extend_from_slice(bytes);
        let end = match std::str::from_utf8(&all) {
            Ok(_) => all.len(),
            // In the middle there may be bytes that are no characters; at its end at most three that may become one.
            Err(_) => all.len() - incomplete(&all),
        };
        self.half = all.split_off(end);
        String::from_utf8_lossy(&all).into_owned()
    }

    fn end(&mut self, reply: &Reply) {
        if !self.printer.is_json() {
            if self.ends_line && self.last != b'\n' {
                self.printer.raw(b"\n");
            }
            let _ = std::io::stderr().write_all(reply.stderr.as_bytes());
            return;
        }
        let rest = String::from_utf8_lossy(&std::mem::take(&mut self.half)).into_owned();
        let mut value = serde_json::to_value(reply).unwrap_or_default();
        if self.stream {
            value["session"] = self.session.clone();
            if !rest.is_empty() {
                self.printer.fields(&[("text", json!(rest))]);
            }
            self.printer.document("reply", value);
            return;
        }
        let begin = if self.begun { String::new() } else { self.beginning() };
        let rest = json!(rest).to_string();
        let fields = value.to_string();
        self.printer.raw(format!("{begin}{}\",{}}}\n", &rest[1..rest.len() - 1], &fields[1..]).as_bytes());
    }
}

/// Returns how many bytes at the end of `bytes` may be the beginning of a character.
fn incomplete(bytes: &[u8]) -> usize {
    let tail = bytes.iter().rev().take(3).position(|byte| *byte >= 0xc0).map_or(0, |at| at + 1);
    let (_, rest) = bytes.split_at(bytes.len() - tail);
    if std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none()) { tail } else { 0 }
}

fn refused(session: &str, error: TalkError) -> Failure {
    let message = format!("{session}: {error}");
    match error {
        TalkError::Control(error) => error.into(),
        TalkError::Refused(refusal) => match refusal.kind {
            RefusedFor::Timeout => Failure::new("timeout", message, None, exit::TIMED_OUT),
            RefusedFor::Busy => {
                let hint = format!("wait, or agent-run session interrupt {session}");
                Failure::new("busy", message, Some(&hint), exit::SOMETHING_REMAINS)
            }
            RefusedFor::Protocol => {
                let hint = format!("agent-run logs {session} may say more");
                Failure::new("protocol", message, Some(&hint), exit::SOMETHING_REMAINS)
            }
            RefusedFor::Died => Failure::new("died", message, None, exit::NOT_RUNNING),
        },
        TalkError::Lost => Failure::new("died", message, None, exit::NOT_RUNNING),
        TalkError::Io(_) => Failure::new("system", message, None, exit::SOMETHING_REMAINS),
    }
}

/// Tells what was wrong, and returns the code.
fn outcome(
    session: &str,
    reply: &Reply,
    timeout: Option<Duration>,
    printer: &Printer,
) -> Result<u8, Failure> {
    if let Some(how) = &reply.died {
        printer.note(&format!("{session}: the session ended in the middle of the reply: {how}"));
        return Ok(exit::SOMETHING_REMAINS);
    }
    if reply.complete_by == Some(CompleteBy::Timeout) {
        let span = timeout.map_or_else(String::new, crate::lease::format_duration);
        let hint = format!("agent-run session interrupt {session} ends it");
        printer.note(&format!("{session}: the reply is not complete after {span}, and goes on; {hint}"));
        return Ok(exit::TIMED_OUT);
    }
    let code = reply.status.map_or(0, |status| u8::try_from(status).unwrap_or(exit::SOMETHING_REMAINS));
    if let Some(why) = &reply.failed {
        printer.note(&format!("{session}: {why}"));
        return Ok(if code == 0 { exit::SOMETHING_REMAINS } else { code });
    }
    Ok(code)
}
