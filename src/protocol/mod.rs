//! How the program of a session is spoken to: what is written to it for a message, and how it is known that its reply is
//! complete. Pure: bytes in, bytes out; no clock and no I/O.

mod acp;
mod claude;
mod codex;
mod lines;
mod ndjson;
mod rpc;
mod text;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::lease;
use crate::service::Pattern;

/// How a program is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Claude Code: `--input-format stream-json --output-format stream-json`.
    Claude,
    /// Codex: `codex app-server`, JSON-RPC a line.
    Codex,
    /// The Agent Client Protocol, version 1, over stdio.
    Acp,
    /// JSON-RPC 2.0, a line each: the message is a request.
    JsonRpc,
    /// A line of JSON in, lines of JSON out until one has this field with this value.
    Ndjson {
        /// Names with dots between them.
        field: String,
        /// A string, or another JSON value as it is written.
        value: String,
    },
    /// The command is started anew for each message; its end is the reply's.
    Oneshot,
    /// Made of the message by this template; the reply ends where the program prints the marker.
    Marker(String),
    /// The reply ends where the last line is one like this.
    Prompt(Pattern),
    /// The reply ends when nothing has come for this time.
    Quiet(Duration),
}

/// Text that is no protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' {why}", text = text.escape_debug())]
pub struct BadProtocol {
    text: String,
    why: String,
}

/// What a protocol's name may be.
pub const FORMS: &str = "claude, codex, acp, jsonrpc, ndjson:FIELD=VALUE, oneshot, marker:TEMPLATE, prompt:REGEX or quiet:DURATION";

/// Reads one of [`FORMS`].
pub fn parse(text: &str) -> Result<Protocol, BadProtocol> {
    let bad = |why: &str| BadProtocol { text: text.to_owned(), why: why.to_owned() };
    let (form, rest) = text.split_once(':').map_or((text, None), |(form, rest)| (form, Some(rest)));
    match (form, rest) {
        ("claude", None) => Ok(Protocol::Claude),
        ("codex", None) => Ok(Protocol::Codex),
        ("acp", None) => Ok(Protocol::Acp),
        ("jsonrpc", None) => Ok(Protocol::JsonRpc),
        ("oneshot", None) => Ok(Protocol::Oneshot),
        ("ndjson", Some(rest)) => match rest.split_once('=') {
            Some((field, value)) if !field.is_empty() && !value.is_empty() => {
                Ok(Protocol::Ndjson { field: field.to_owned(), value: value.to_owned() })
            }
            _ => Err(bad("names no field and value: write it like ndjson:type=result")),
        },
        ("marker", Some(rest)) if rest.matches("{marker}").count() == 1 => {
            Ok(Protocol::Marker(rest.to_owned()))
        }
        ("marker", Some(_)) => Err(bad("must have {marker} once: write it like marker:'echo {marker}'")),
        ("prompt", Some(rest)) if !rest.is_empty() => {
            let pattern =
                Pattern::parse(rest).map_err(|error| bad(&format!("has a bad pattern: {error}")))?;
            Ok(Protocol::Prompt(pattern))
        }
        ("quiet", Some(rest)) => match lease::parse_duration(rest) {
            Ok(span) if !span.is_zero() => Ok(Protocol::Quiet(span)),
            Ok(_) => Err(bad("would end every reply before it begins: write it like quiet:500ms")),
            Err(error) => Err(bad(&format!("has a bad duration: {error}"))),
        },
        _ => Err(bad(&format!("is no protocol: write {FORMS}"))),
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protocol::Claude => f.write_str("claude"),
            Protocol::Codex => f.write_str("codex"),
            Protocol::Acp => f.write_str("acp"),
            Protocol::JsonRpc => f.write_str("jsonrpc"),
            Protocol::Ndjson { field, value } => write!(f, "ndjson:{field}={value}"),
            Protocol::Oneshot => f.write_str("oneshot"),
            Protocol::Marker(template) => write!(f, "marker:{template}"),
            Protocol::Prompt(pattern) => write!(f, "prompt:{pattern}"),
            Protocol::Quiet(span) => write!(f, "quiet:{}", humantime::format_duration(*span)),
        }
    }
}

/// What a program that asks whether it may do something is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approvals {
    /// No.
    #[default]
    Decline,
    /// Yes, this time.
    Accept,
}

/// By what it was known that a reply is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompleteBy {
    /// The event that gives the result.
    ResultEvent,
    /// The notification that the turn is over.
    TurnCompleted,
    /// The response to the request.
    RpcResponse,
    /// The end of the process.
    ProcessExit,
    /// The marker.
    Marker,
    /// The prompt.
    Prompt,
    /// Silence.
    Quiet,
    /// Nothing: the time had run out, and it goes on.
    Timeout,
}

impl CompleteBy {
    /// Returns the word that stands in answers.
    pub fn word(self) -> &'static str {
        match self {
            CompleteBy::ResultEvent => "result_event",
            CompleteBy::TurnCompleted => "turn_completed",
            CompleteBy::RpcResponse => "rpc_response",
            CompleteBy::ProcessExit => "process_exit",
            CompleteBy::Marker => "marker",
            CompleteBy::Prompt => "prompt",
            CompleteBy::Quiet => "quiet",
            CompleteBy::Timeout => "timeout",
        }
    }
}

/// How a reply ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// By what that was known.
    pub by: CompleteBy,
    /// Why the message was not dealt with as it should have been.
    pub failed: Option<String>,
    /// The status that the program gave: 0 if all was well.
    pub status: Option<i32>,
    /// What the program said of it, without the text.
    pub details: Option<Value>,
}

impl Done {
    fn well(by: CompleteBy) -> Done {
        Done { by, failed: None, status: None, details: None }
    }

    fn failed(by: CompleteBy, why: impl Into<String>) -> Done {
        Done { failed: Some(why.into()), ..Done::well(by) }
    }
}

/// A message to the program.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// What it says.
    pub text: &'a str,
    /// Whether what the program says is wanted as it comes, and not its last word alone.
    pub stream: bool,
    /// A number that nobody can guess.
    pub token: u128,
}

/// What follows from something that was taken in.
#[derive(Debug, Default)]
pub struct Out {
    /// To be written to the program.
    pub write: Vec<u8>,
    /// More of the reply.
    pub text: Vec<u8>,
    /// The reply is complete, with `text` at its end.
    pub done: Option<Done>,
    /// There is no talking with it (any more), and why.
    pub broken: Option<String>,
}

impl Out {
    fn line(&mut self, value: &Value) {
        // Serialising a value into memory has no way to fail.
        let _ = serde_json::to_writer(&mut self.write, value);
        self.write.push(b'\n');
    }
}

/// One conversation with one program.
pub trait Talk: Send {
    /// Begins: what is to be said before the first message.
    fn open(&mut self, out: &mut Out);

    /// Whether messages can be sent.
    fn is_open(&self) -> bool;

    /// Says `message`; errors with the reason why it cannot be one, and then nothing was said. The reply before
    /// must be complete.
    fn send(&mut self, message: Message, out: &mut Out) -> Result<(), String>;

    /// Takes in what the program has written. Once `done` is there, the rest of `bytes` was not the reply's.
    fn take(&mut self, bytes: &[u8], out: &mut Out);

    /// Returns whether all of `bytes`, which the program has written next, is text of the reply as it is: then they are not
    /// taken in, and need not be copied.
    fn is_text(&self, _bytes: &[u8]) -> bool {
        false
    }

    /// Asks for the end of the reply; returns whether the protocol knows how to.
    fn interrupt(&mut self, _out: &mut Out) -> bool {
        false
    }

    /// The program has ended in the middle of a reply: gives what was kept for its end.
    fn cut_off(&mut self, _out: &mut Out) {}

    /// After how long without anything from the program [`Talk::still`] is to be called.
    fn pause(&self) -> Option<Duration> {
        None
    }

    /// Nothing has come for so long.
    fn still(&mut self, _out: &mut Out) {}
}

/// Begins to speak `protocol` in `directory`; `echoes` tells that the program may repeat what it is told.
pub fn talk(protocol: &Protocol, approvals: Approvals, directory: &str, echoes: bool) -> Box<dyn Talk> {
    match protocol {
        Protocol::Claude => Box::new(claude::Claude::default()),
        Protocol::Codex => Box::new(codex::Codex::new(approvals, directory)),
        Protocol::Acp => Box::new(acp::Acp::new(approvals, directory)),
        Protocol::JsonRpc => Box::new(rpc::JsonRpc::default()),
        Protocol::Ndjson { field, value } => Box::new(ndjson::Ndjson::new(field, value)),
        Protocol::Oneshot => Box::new(text::Marker::new(ONESHOT, CompleteBy::ProcessExit)),
        Protocol::Marker(template) => Box::new(text::Marker::new(template, CompleteBy::Marker)),
        Protocol::Prompt(pattern) => Box::new(text::Prompt::new(pattern.clone(), echoes)),
        Protocol::Quiet(span) => Box::new(text::Quiet::new(*span)),
    }
}

/// What the process that starts a command for each message is told.
pub const ONESHOT: &str = "{marker}{nul}{text}{nul}";

#[cfg(test)]
mod tests;
