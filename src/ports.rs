//! Port numbers as they are asked for: one, one of a range, any.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::ops::RangeInclusive;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::{Deserialize, Serialize};

/// Where a port is looked for if any will do: what development servers use by habit.
pub const DEFAULT_RANGE: PortRange = PortRange { first: 8080, last: 9500 };

/// What `port free all` means unless the settings say otherwise.
pub const DEFAULT_FREED: [u16; 3] = [8000, 8080, 3000];

/// A range of ports that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Returns the ports, lowest first.
    pub fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Which port a run wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortChoice {
    /// Any that is free.
    Auto,
    /// This one.
    One(u16),
    /// The first free one of these.
    Range(PortRange),
}

/// How a port is kept for the command until that binds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimMode {
    /// By a socket that a server with SO_REUSEADDR can bind over, for the whole run.
    #[default]
    Hold,
    /// Let go just before the command is executed.
    Release,
    /// Passed on as a listening socket (`sd_listen_fds(3)`).
    ListenFd,
}

impl ClaimMode {
    /// Returns the word that the command line takes.
    pub fn word(self) -> &'static str {
        match self {
            ClaimMode::Hold => "hold",
            ClaimMode::Release => "release",
            ClaimMode::ListenFd => "listen-fd",
        }
    }
}

/// Text that means no port.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{text}' {why}", text = text.escape_debug())]
pub struct BadPort {
    text: String,
    why: &'static str,
}

/// Reads a port, 1 to 65535.
pub fn parse_port(text: &str) -> Result<u16, BadPort> {
    let bad = |why| BadPort { text: text.to_owned(), why };
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad("is not a port: write a number from 1 to 65535"));
    }
    text.parse().ok().filter(|port| *port > 0).ok_or(bad("is not a port: they go from 1 to 65535"))
}

/// Reads `LO-HI`.
pub fn parse_range(text: &str) -> Result<PortRange, BadPort> {
    let bad = |why| BadPort { text: text.to_owned(), why };
    let (first, last) = text.split_once('-').ok_or(bad("is not a range: write it like 8000-8999"))?;
    let (first, last) = (parse_port(first)?, parse_port(last)?);
    if last < first {
        return Err(bad("is an empty range: the lower port comes first"));
    }
    Ok(PortRange { first, last })
}

/// Reads `P`, `LO-HI` or `auto`.
pub fn parse_choice(text: &str) -> Result<PortChoice, BadPort> {
    match text {
        "auto" => Ok(PortChoice::Auto),
        _ if text.get(1..).is_some_and(|rest| rest.contains('-')) => parse_range(text).map(PortChoice::Range),
        _ => parse_port(text).map(PortChoice::One).map_err(|error| BadPort {
            why: if error.why.contains("number") {
                "is not a port: write a number from 1 to 65535, a range like 8000-8999, or auto"
            } else {
                error.why
            },
            ..error
        }),
    }
}

/// Reads ports and ranges apart by spaces or commas, each once, in order.
pub fn parse_list(text: &str) -> Result<BTreeSet<u16>, BadPort> {
    let mut ports = BTreeSet::new();
    for word in text.split([' ', ',']).filter(|word| !word.is_empty()) {
        match word.contains('-') {
            true => ports.extend(parse_range(word)?.ports()),
            false => drop(ports.insert(parse_port(word)?)),
        }
    }
    Ok(ports)
}

/// Puts ports in the place of `{port}` (the first), `{port0}`, `{port1}`... in `word`.
pub fn substitute(word: &OsString, ports: &[u16]) -> OsString {
    let mut bytes = word.as_bytes().to_owned();
    let first = ports.first().map(|port| ("{port}".to_owned(), port));
    let numbered = ports.iter().enumerate().map(|(index, port)| (format!("{{port{index}}}"), port));
    for (name, port) in first.into_iter().chain(numbered) {
        bytes = replace(&bytes, name.as_bytes(), port.to_string().as_bytes());
    }
    OsString::from_vec(bytes)
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        result.extend(&rest[..at]);
        result.extend(to);
        rest = &rest[at + from.len()..];
    }
    result.extend(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_or_refused_with_a_reason() {
        assert_eq!(parse_choice("auto"), Ok(PortChoice::Auto));
        assert_eq!(parse_choice("8080"), Ok(PortChoice::One(8080)));
        assert_eq!(parse_choice("65535"), Ok(PortChoice::One(65535)));
        let range = PortRange { first: 9000, last: 9000 };
        assert_eq!(parse_choice("9000-9000"), Ok(PortChoice::Range(range)));
        for text in
            ["", "0", "65536", "80a", "-1", "+80", " 80", "9000-8000", "8000-", "-", "1-2-3", "any", "0-5"]
        {
            let error = parse_choice(text).expect_err(text).to_string();
            assert!(error.contains("is not a port") || error.contains("empty range"), "{error}");
        }
    }

    #[test]
    fn lists_have_each_port_once() {
        let ports = parse_list("8080 3000,8000-8002 8001").unwrap();
        assert_eq!(ports.into_iter().collect::<Vec<_>>(), [3000, 8000, 8001, 8002, 8080]);
        assert!(parse_list("").unwrap().is_empty());
        assert!(parse_list("8080 x").is_err());
    }

    #[test]
    fn ports_are_put_into_words() {
        let table = [
            ("{port}", "81"),
            ("--port={port}", "--port=81"),
            ("{port}:{port}", "81:81"),
            ("{port0}-{port1}", "81-82"),
            ("{port2} {ports} ${port}", "{port2} {ports} $81"),
            ("none", "none"),
        ];
        for (word, expected) in table {
            assert_eq!(substitute(&word.into(), &[81, 82]), OsString::from(expected), "{word}");
        }
        assert_eq!(substitute(&"{port}".into(), &[]), OsString::from("{port}"));
    }
}
