//! What is asked of a command that serves: when it counts as ready, whether it is well, and what becomes of it
//! when it ends.

use std::fmt;
use std::time::Duration;

use regex_lite::Regex;
use serde::{Deserialize, Serialize};

/// How long a command may take to get ready unless something else is asked for.
pub const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at its health.
pub const HEALTH_INTERVAL: Duration = Duration::from_secs(10);
/// How much output is kept while it runs, in bytes.
pub const LOG_SIZE: u64 = 10 << 20;

/// Something that is true of a command that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It listens on its first port.
    Port,
    /// It has printed a line like this.
    Log(Pattern),
    /// It answers a request for this path with this status; without one, with 200 to 399.
    Http {
        /// With its slash.
        path: String,
        /// The status.
        status: Option<u16>,
    },
    /// It takes a websocket connection at this path (RFC 6455).
    Ws {
        /// With its slash.
        path: String,
    },
    /// This command, given to `sh -c` in its place and environment, returns 0.
    Cmd(String),
}

/// A regular expression, with the text that it was made of.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// Reads a regular expression.
    pub fn parse(text: &str) -> Result<Pattern, BadCheck> {
        let bad = |error: regex_lite::Error| BadCheck {
            text: text.to_owned(),
            why: format!("is no regular expression: {error}"),
        };
        Regex::new(text).map(Pattern).map_err(bad)
    }

    /// Returns where it is found in `line` first.
    pub fn place_in(&self, line: &str) -> Option<usize> {
        self.0.find(line).map(|found| found.start())
    }

    /// Returns whether it is found in `line`.
    pub fn is_in(&self, line: &str) -> bool {
        self.0.is_match(line)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

/// Text that is no check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' {why}", text = text.escape_debug())]
pub struct BadCheck {
    text: String,
    why: String,
}

/// Reads `port`, `log:REGEX`, `http:PATH[=STATUS]`, `ws:PATH` or `cmd:COMMAND`.
pub fn parse_check(text: &str) -> Result<Check, BadCheck> {
    let bad = |why: &str| BadCheck { text: text.to_owned(), why: why.to_owned() };
    let (form, rest) = text.split_once(':').unwrap_or((text, ""));
    let path = |path: &str| match path {
        "" => Err(bad("names no path: write it like http:/health")),
        _ if !path.starts_with('/') => Err(bad("has a path that does not begin with '/'")),
        _ if !path.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(bad("has a path with other characters than a URL has"))
        }
        _ => Ok(path.to_owned()),
    };
    match form {
        "port" if text == "port" => Ok(Check::Port),
        "log" if rest.is_empty() => Err(bad("matches every line: write it like log:listening")),
        "log" => Pattern::parse(rest).map(Check::Log),
        "http" => {
            let (place, status) = match rest.rsplit_once('=') {
                // A query has '=' too.
                Some((place, status))
                    if status.bytes().all(|byte| byte.is_ascii_digit()) && !place.contains('?') =>
                {
                    (place, Some(status))
                }
                _ => (rest, None),
            };
            let status = status.map(|text| text.parse().ok().filter(|status| (100..600).contains(status)));
            let status =
                status.map(|it| it.ok_or_else(|| bad("has a status that is none: they go from 100 to 599")));
            Ok(Check::Http { path: path(place)?, status: status.transpose()? })
        }
        "ws" => Ok(Check::Ws { path: path(rest)? }),
        "cmd" if rest.trim().is_empty() => Err(bad("names no command: write it like cmd:'pg_isready -q'")),
        "cmd" => Ok(Check::Cmd(rest.to_owned())),
        _ => Err(bad("is no check: write port, log:REGEX, http:PATH[=STATUS], ws:PATH or cmd:COMMAND")),
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Check::Port => f.write_str("port"),
            Check::Log(pattern) => write!(f, "log:{}", pattern.0.as_str()),
            Check::Http { path, status: Some(status) } => write!(f, "http:{path}={status}"),
            Check::Http { path, status: None } => write!(f, "http:{path}"),
            Check::Ws { path } => write!(f, "ws:{path}"),
            Check::Cmd(command) => write!(f, "cmd:{command}"),
        }
    }
}

impl Check {
    /// Returns whether it can only be asked with a port.
    pub fn needs_port(&self) -> bool {
        matches!(self, Check::Port | Check::Http { .. } | Check::Ws { .. })
    }
}

/// Whether a command that has ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// No.
    #[default]
    Never,
    /// If it has failed: by its code, a signal, a limit or its health.
    OnFailure,
    /// Unless somebody asked for its end.
    Always,
}

impl Restart {
    /// Returns the word that the command line takes.
    pub fn word(self) -> &'static str {
        match self {
            Restart::Never => "never",
            Restart::OnFailure => "on-failure",
            Restart::Always => "always",
        }
    }
}

/// How a command serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// All of these make it ready.
    pub ready: Vec<Check>,
    /// How long that may take.
    pub ready_timeout: Option<Duration>,
    /// All of these make it healthy, once it is ready.
    pub health: Vec<Check>,
    /// Between two looks.
    pub health_interval: Duration,
    /// Whether it is started again.
    pub restart: Restart,
    /// How often in a row; it begins anew after a minute of health.
    pub max_restarts: Option<u32>,
    /// How much output is kept while it runs, in bytes.
    pub log_size: u64,
}

impl Default for Service {
    fn default() -> Service {
        Service {
            ready: Vec::new(),
            ready_timeout: Some(READY_TIMEOUT),
            health: Vec::new(),
            health_interval: HEALTH_INTERVAL,
            restart: Restart::Never,
            max_restarts: None,
            log_size: LOG_SIZE,
        }
    }
}

impl Service {
    /// Returns what is wrong with it for a run with or without ports.
    pub fn fault(&self, has_port: bool) -> Option<String> {
        let portless = |check: &&Check| check.needs_port() && !has_port;
        let asked = self.ready.iter().chain(&self.health);
        if let Some(check) = asked.clone().find(portless) {
            return Some(format!("'{check}' can never be true: there is no --port"));
        }
        let log = self.health.iter().find(|check| matches!(check, Check::Log(_)));
        log.map(|check| format!("'{check}' tells nothing of health: a line that was printed stays printed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_read_and_written() {
        let http = |path: &str, status| Check::Http { path: path.into(), status };
        for (text, expected) in [
            ("port", Check::Port),
            ("log:ready in \\d+", Check::Log(Pattern::parse("ready in \\d+").unwrap())),
            ("http:/", http("/", None)),
            ("http:/health=204", http("/health", Some(204))),
            ("http:/a?b=204", http("/a?b=204", None)),
            ("http:/a=b", http("/a=b", None)),
            ("ws:/socket", Check::Ws { path: "/socket".into() }),
            ("cmd:test -e x: y", Check::Cmd("test -e x: y".into())),
        ] {
            let check = parse_check(text).unwrap();
            assert_eq!(check, expected);
            assert_eq!(check.to_string(), text);
        }
        for text in [
            "",
            "Port",
            "port:80",
            "log:",
            "log:(",
            "http:",
            "http:health",
            "http:/=999",
            "http:/a b",
            "ws:",
            "cmd: ",
            "tcp",
        ] {
            let error = parse_check(text).expect_err(text).to_string();
            assert!(error.starts_with(&format!("'{text}")) || text == "log:(", "{error}");
        }
    }

    #[test]
    fn what_can_never_be_true_is_told_before() {
        let service = |ready: &[&str], health: &[&str]| Service {
            ready: ready.iter().map(|text| parse_check(text).unwrap()).collect(),
            health: health.iter().map(|text| parse_check(text).unwrap()).collect(),
            ..Service::default()
        };
        for (ready, health, has_port, fits) in [
            (&["port"][..], &[][..], true, true),
            (&["port"], &[], false, false),
            (&["log:x", "cmd:y"], &[], false, true),
            (&[], &["ws:/"], false, false),
            (&[], &["log:x"], true, false),
        ] {
            assert_eq!(service(ready, health).fault(has_port).is_none(), fits, "{ready:?} {health:?}");
        }
    }
}
