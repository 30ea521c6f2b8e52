//! What a run is: its id, its name, and all that was asked for.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::ports::{self, ClaimMode, PortChoice, PortRange};
use crate::protocol::{Approvals, Protocol};
use crate::service::Service;
use crate::sys::process::Pid;
use crate::sys::signal::Signal;

/// Time between the polite signal and SIGKILL unless something else is asked for.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);

/// The name of one run for all time: eight characters, any unique beginning of which will do from three on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(String);

/// Crockford's base 32: no letters that read like digits.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ID_LENGTH: usize = 8;

impl RunId {
    /// Draws a new id: 40 random bits (`getrandom(2)`). That it is not in use is for the
    /// registry to see.
    pub fn random() -> RunId {
        let mut bytes = [0u8; ID_LENGTH];
        crate::sys::files::fill_random(&mut bytes);
        RunId(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect())
    }

    /// Takes `text` if it has the form of an id.
    pub fn parse(text: &str) -> Option<RunId> {
        let fits = text.len() == ID_LENGTH && text.bytes().all(|byte| ALPHABET.contains(&byte));
        fits.then(|| RunId(text.to_owned()))
    }

    /// Returns the 40 bits that the id stands for.
    pub fn number(&self) -> u64 {
        let digit = |byte| ALPHABET.iter().position(|known| *known == byte).unwrap_or_default() as u64;
        self.0.bytes().fold(0, |number, byte| number << 5 | digit(byte))
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{name}' cannot be a name: {why}; use letters, digits, '.', '_' and '-'", name = name.escape_debug())]
pub struct BadName {
    name: String,
    why: &'static str,
}

/// Checks a run's name: it is typed by people, shown in tables and used beside ids and ports.
pub fn parse_name(text: &str) -> Result<String, BadName> {
    let bad = |why| Err(BadName { name: text.to_owned(), why });
    if text.is_empty() {
        return bad("it is empty");
    }
    if text.len() > 64 {
        return bad("it is longer than 64 bytes");
    }
    if text.contains('/') {
        return bad("it has a '/'");
    }
    if !text.starts_with(|c: char| c.is_alphanumeric()) {
        return bad("it does not begin with a letter or digit");
    }
    if !text.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-')) {
        return bad("it has other characters");
    }
    Ok(text.to_owned())
}

/// What becomes of the managed directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// It goes with the run.
    #[default]
    Never,
    /// It stays if the run did not end with code 0.
    OnFailure,
    /// It stays.
    Always,
}

impl Keep {
    /// Returns the word that the command line takes.
    pub fn word(self) -> &'static str {
        match self {
            Keep::Never => "never",
            Keep::OnFailure => "on-failure",
            Keep::Always => "always",
        }
    }
}

/// What a run is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A command in the foreground.
    #[default]
    Run,
    /// A named server in the background.
    Server,
    /// An interactive program in the background that answers messages.
    Session,
}

impl Kind {
    /// Returns the word that stands in records.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Run => "run",
            Kind::Server => "server",
            Kind::Session => "session",
        }
    }
}

/// How the program of a session is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// The protocol.
    pub protocol: Protocol,
    /// What it is answered when it asks whether it may do something.
    pub approvals: Approvals,
    /// Whether it gets a terminal, and not pipes.
    pub terminal: bool,
    /// What the command is, for whoever looks for a session like this one.
    pub provider: Option<String>,
}

/// How many runs of a kind may live at once, and what is done when there are so many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// So many of this kind; any number if `None`.
    pub most: Option<u32>,
    /// How long a place is waited for.
    pub wait: Duration,
    /// The memory that it will need, in bytes: refused where the machine has not so much to give.
    pub needs: Option<u64>,
}

/// Whose death ends the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnerChoice {
    /// Nobody's.
    #[default]
    None,
    /// The nearest ancestor that is a coding agent; nobody's if there is none.
    Auto,
    /// The process that starts `agent-run`.
    Parent,
    /// This process's.
    Pid(Pid),
}

/// Whether the kernel keeps the run in a world of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// No.
    #[default]
    None,
    /// A pid namespace: nothing outlives it, whatever is killed; process ids look different inside.
    Pid,
}

/// How much `agent-run` says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors.
    Quiet,
    /// One line if `agent-run` ended the run.
    #[default]
    Normal,
    /// Also where each setting came from, and how each run ended.
    Verbose,
}

/// One supervised execution, as asked for. [`RunSpec::new`] gives the defaults of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSpec {
    /// The command and its arguments; not empty.
    pub command: Vec<OsString>,
    /// What it is for.
    pub kind: Kind,
    /// Whether nobody waits for it: its output goes to a log, its stdin is /dev/null.
    pub background: bool,
    /// How it is spoken to, if it is a session.
    pub session: Option<Conversation>,
    /// When it is ready, whether it is well, and whether it is started again.
    pub service: Service,
    /// Unique among live runs.
    pub name: Option<String>,
    /// For filters; each key once.
    pub labels: Vec<(String, String)>,
    /// The lease.
    pub ttl: Option<Duration>,
    /// How long nothing may happen.
    pub idle: Option<Duration>,
    /// Between the polite signal and SIGKILL.
    pub grace: Duration,
    /// The polite signal.
    pub signal: Signal,
    /// Whether the command starts in the managed directory.
    pub scratch: bool,
    /// What is copied into the managed directory first.
    pub copies: Vec<PathBuf>,
    /// What becomes of the managed directory.
    pub keep: Keep,
    /// Variables added to the caller's environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where the command starts.
    pub chdir: Option<PathBuf>,
    /// A file that gets a copy of the output.
    pub log: Option<PathBuf>,
    /// A file that gets one JSON object a line for what happens to the run.
    pub events: Option<PathBuf>,
    /// Whether the lease and the idle time leave the leader's own exit code.
    pub preserve_status: bool,
    /// Whose death ends the run.
    pub owner: OwnerChoice,
    /// Whether the kernel keeps the run in a world of its own.
    pub isolation: Isolation,
    /// Whether the run gets a cgroup where one can be made.
    pub cgroup: bool,
    /// Limits of each process and of the tree.
    pub limits: Limits,
    /// The ports that are claimed for the run.
    pub ports: Vec<PortChoice>,
    /// How they are kept until the command binds them.
    pub claim: ClaimMode,
    /// Whether who holds the port or the name is ended, without asking.
    pub force: bool,
    /// Whether that goes for a run of another living owner too.
    pub steal: bool,
    /// Whether the next free port is taken if one is held.
    pub fallback: bool,
    /// Where any port is looked for.
    pub port_range: PortRange,
    /// Names of programs that are never ended for a port.
    pub protect: Vec<String>,
    /// How many others of its kind may live.
    pub pool: Pool,
    /// How much is said on stderr.
    pub verbosity: Verbosity,
}

impl RunSpec {
    /// Returns the defaults for `command`.
    pub fn new<I, S>(command: I) -> RunSpec
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        RunSpec {
            command: command.into_iter().map(Into::into).collect(),
            kind: Kind::Run,
            background: false,
            session: None,
            service: Service::default(),
            name: None,
            labels: Vec::new(),
            ttl: None,
            idle: None,
            grace: DEFAULT_GRACE,
            signal: Signal::TERM,
            scratch: false,
            copies: Vec::new(),
            keep: Keep::Never,
            env: Vec::new(),
            chdir: None,
            log: None,
            events: None,
            preserve_status: false,
            owner: OwnerChoice::None,
            isolation: Isolation::None,
            cgroup: true,
            limits: Limits::default(),
            ports: Vec::new(),
            claim: ClaimMode::Hold,
            force: false,
            steal: false,
            fallback: false,
            port_range: ports::DEFAULT_RANGE,
            protect: Vec::new(),
            pool: Pool::default(),
            verbosity: Verbosity::Normal,
        }
    }

    /// Returns whether the run gets ready, and is not just running.
    pub fn gets_ready(&self) -> bool {
        self.kind != Kind::Run || !self.service.ready.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_are_read_back() {
        let (one, other) = (RunId::random(), RunId::random());
        assert_ne!(one, other);
        assert_ne!(one.number(), other.number());
        assert_eq!(RunId::parse("0000000z").unwrap().number(), 31);
        assert_eq!(RunId::parse(one.as_str()), Some(one));
        for text in ["", "abc", "ABCDEFGH", "abcdefgh9", "../../..", "iloulilo"] {
            assert_eq!(RunId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn names_are_for_people() {
        for name in ["web", "api-2", "a.b_c", "été", "9"] {
            assert_eq!(parse_name(name).as_deref(), Ok(name));
        }
        for name in ["", "a/b", "..", "-x", ".x", "a b", "a\nb", "a\u{1b}[0m", &"x".repeat(65), ":80"] {
            let error = parse_name(name).expect_err(name).to_string();
            assert!(!error.chars().any(char::is_control), "{error}");
        }
    }
}
