//! Where a setting comes from: flag, then environment, then `agent-run.toml` in the working directory or
//! above, then the user's `config.toml`, then the default. Resolved here and nowhere else.

pub mod definition;
mod launch_json;
pub mod provider;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use values::{
    globs, names, parse_claim, parse_count, parse_interval, parse_isolation, parse_keep, parse_log_size,
    parse_memory, parse_owner, parse_polite_signal, parse_restart, parse_truth,
};

use crate::env as vars;
use crate::lease::{parse_duration, parse_limit};
use crate::limits::{Bound, Limits, Unit, parse_bound, parse_percent};
use crate::ports::{DEFAULT_FREED, PortRange, parse_list, parse_range};
use crate::run::{Kind, RunSpec, Verbosity};
use crate::service::Service;
use crate::sweep;

/// The file that a project may have.
pub const PROJECT_FILE: &str = "agent-run.toml";
/// The user's file, below `~/.config`.
pub const USER_FILE: &str = "agent-run/config.toml";

/// Every setting, as it stands in a file. The flag has `-` for `_`, the variable is `AGENT_RUN_` and
/// the name in capitals.
pub const KEYS: [&str; 39] = [
    "ttl",
    "idle",
    "grace",
    "signal",
    "keep",
    "owner",
    "isolate",
    "cgroup",
    "memory",
    "cpu",
    "pids",
    "scratch",
    "preserve_status",
    "quiet",
    "nofile",
    "fsize",
    "data",
    "core",
    "cpu_time",
    "claim",
    "fallback",
    "port_range",
    "free_ports",
    "protect",
    "sweep_places",
    "sweep_ports",
    "sweep_commands",
    "sweep_grace",
    "ready_timeout",
    "health_interval",
    "restart",
    "max_restarts",
    "log_size",
    "server_ttl",
    "session_idle",
    "max_runs",
    "max_servers",
    "max_sessions",
    "wait",
];

/// Tables that other readers of the file understand.
const TABLES: [&str; 2] = ["server", "provider"];

/// How long a server may live unless something else is asked for.
const SERVER_TTL: &str = "24h";

/// How long a session may have nothing to do unless something else is asked for.
const SESSION_IDLE: &str = "5m";
/// How many sessions may live at once.
const MAX_SESSIONS: u32 = 20;

/// Those of more than one value.
const LISTS: [&str; 4] = ["free_ports", "protect", "sweep_places", "sweep_commands"];

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// The environment.
    Variable,
    /// A file, at this line.
    File(PathBuf, usize),
    /// Nobody has said anything.
    Default,
}

/// Values as text, with where they came from.
pub type Layer = BTreeMap<&'static str, (String, Origin)>;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// Its value is wrong.
    #[error("{}: {why}", place(key, origin))]
    Value {
        /// The setting.
        key: &'static str,
        /// Where it stands.
        origin: Origin,
        /// What is wrong.
        why: String,
    },
    /// There is no such setting.
    #[error("{path}:{line}: unknown setting '{key}'; known are {known}", path = path.display(), key = key.escape_debug(), known = KEYS.join(", "))]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What stands there.
        key: String,
    },
    /// The file cannot be read.
    #[error("{path}:{line}: {why}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// A server is described wrongly.
    #[error("{place}: {why}")]
    Server {
        /// File and line.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// A provider is described wrongly, or not at all.
    #[error("{place}: {why}")]
    Provider {
        /// File and line, or the flag.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// Servers wait for each other.
    #[error("{place}: depends_on goes in a circle: {}", names.join(" -> "))]
    Circle {
        /// File and line.
        place: String,
        /// The circle.
        names: Vec<String>,
    },
    /// No server is described under this name.
    #[error("there is no server '{}' and no description of one{}", name.escape_debug(), nearest.as_ref().map_or(String::new(), |near| format!("; did you mean '{near}'?")))]
    NoServer {
        /// The name.
        name: String,
        /// One that is much like it.
        nearest: Option<String>,
        /// All that are described.
        known: Vec<String>,
    },
    /// The file cannot be opened.
    #[error("cannot read {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn variable(key: &str) -> String {
    format!("{}{}", vars::SETTING_PREFIX, key.to_ascii_uppercase())
}

fn place(key: &str, origin: &Origin) -> String {
    match origin {
        Origin::Flag => format!("--{}", key.replace('_', "-")),
        Origin::Variable => variable(key),
        Origin::File(path, line) => format!("{}:{line}: {key}", path.display()),
        Origin::Default => format!("the default of {key}"),
    }
}

/// What was resolved, and how.
#[derive(Debug)]
pub struct Resolved {
    /// All that is set, in the form of text.
    layer: Layer,
}

/// Resolves `flags` over the environment and the files.
pub fn resolve(flags: Layer) -> Result<Resolved, SettingError> {
    resolve_over(flags, Layer::new())
}

/// Resolves the settings of a server: `flags`, then the environment, then its own `table`, then the files. Its lease is
/// that of `server_ttl` if none of the first three says more.
pub fn resolve_server(flags: Layer, table: Layer) -> Result<Resolved, SettingError> {
    let own = flags.contains_key("ttl") || table.contains_key("ttl");
    let own = own || env::var_os(variable("ttl")).is_some_and(|value| !value.is_empty());
    let mut resolved = resolve_over(flags, table)?;
    if !own {
        let general = resolved.layer.get("server_ttl").or(resolved.layer.get("ttl")).cloned();
        resolved.layer.insert("ttl", general.unwrap_or((SERVER_TTL.to_owned(), Origin::Default)));
    }
    // It has an owner if there is one to find, as nobody sits before it.
    resolved.layer.entry("owner").or_insert(("auto".to_owned(), Origin::Default));
    Ok(resolved)
}

/// Resolves the settings of a session: `flags`, then the environment, then its provider's `table`, then the files. Its idle
/// time is that of `session_idle` if none of the first three says more.
pub fn resolve_session(flags: Layer, table: Layer) -> Result<Resolved, SettingError> {
    let own = flags.contains_key("idle") || table.contains_key("idle");
    let own = own || env::var_os(variable("idle")).is_some_and(|value| !value.is_empty());
    let mut resolved = resolve_over(flags, table)?;
    if !own {
        let general = resolved.layer.get("session_idle").or(resolved.layer.get("idle")).cloned();
        resolved.layer.insert("idle", general.unwrap_or((SESSION_IDLE.to_owned(), Origin::Default)));
    }
    resolved.layer.entry("owner").or_insert(("auto".to_owned(), Origin::Default));
    Ok(resolved)
}

fn resolve_over(flags: Layer, table: Layer) -> Result<Resolved, SettingError> {
    let mut layer = flags;
    for key in KEYS {
        if let Some(value) = env::var_os(variable(key)).filter(|value| !value.is_empty()) {
            layer.entry(key).or_insert_with(|| (value.to_string_lossy().into_owned(), Origin::Variable));
        }
    }
    for (key, value) in table {
        layer.entry(key).or_insert(value);
    }
    for path in project_file().into_iter().chain(user_file()) {
        for (key, value) in read_file(&path)? {
            layer.entry(key).or_insert(value);
        }
    }
    Ok(Resolved { layer })
}

/// Returns the project's file: that of the working directory, or of the nearest one above that has one.
pub fn project_file() -> Option<PathBuf> {
    let here = env::current_dir().ok()?;
    here.ancestors().map(|directory| directory.join(PROJECT_FILE)).find(|path| path.exists())
}

fn user_file() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
    let base = set(vars::CONFIG_HOME).or_else(|| Some(set(vars::HOME)?.join(".config")))?;
    Some(base.join(USER_FILE)).filter(|path| path.exists())
}

fn read_file(path: &Path) -> Result<Layer, SettingError> {
    let text =
        fs::read_to_string(path).map_err(|source| SettingError::File { path: path.to_owned(), source })?;
    parse_file(path, &text)
}

/// Returns the line of the byte at `offset`, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

fn parse_toml<'a>(path: &Path, text: &'a str) -> Result<Spanned<DeTable<'a>>, SettingError> {
    DeTable::parse(text).map_err(|error| SettingError::Syntax {
        path: path.to_owned(),
        line: line_of(text, error.span().map_or(0, |span| span.start)),
        why: error.message().replace('\n', " "),
    })
}

/// Returns the one of `known` that `word` is most likely meant for.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    const LIKE: f64 = 0.75;
    let scored = known.map(|name| (strsim::jaro_winkler(word, name), name));
    let best = scored.max_by(|one, other| one.0.total_cmp(&other.0));
    best.filter(|(score, _)| *score >= LIKE).map(|(_, name)| name.to_owned())
}

fn parse_file(path: &Path, text: &str) -> Result<Layer, SettingError> {
    let table = parse_toml(path, text)?;
    let mut layer = Layer::new();
    for (name, value) in table.into_inner() {
        let line = line_of(text, name.span().start);
        if TABLES.contains(&name.get_ref().as_ref()) && matches!(value.get_ref(), DeValue::Table(_)) {
            continue;
        }
        let Some(key) = KEYS.into_iter().find(|key| *key == name.get_ref().as_ref()) else {
            let key = name.get_ref().to_string();
            return Err(SettingError::Unknown { path: path.to_owned(), line, key });
        };
        let origin = Origin::File(path.to_owned(), line);
        let read = if LISTS.contains(&key) { list } else { scalar };
        let Some(text) = read(value.get_ref()) else {
            let why = "write one value, as in \"1h\" or 1024".to_owned();
            return Err(SettingError::Value { key, origin, why });
        };
        layer.insert(key, (text, origin));
    }
    Ok(layer)
}

/// A list is its values with commas between, as in a variable.
fn list(value: &DeValue<'_>) -> Option<String> {
    let DeValue::Array(values) = value else { return scalar(value) };
    let words: Option<Vec<String>> = values.iter().map(|value| scalar(value.get_ref())).collect();
    Some(words?.join(","))
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    }
}

impl Resolved {
    /// Takes `layer` and nothing else.
    pub fn of(layer: Layer) -> Resolved {
        Resolved { layer }
    }

    /// Puts the settings into `spec`.
    pub fn apply(&self, spec: &mut RunSpec) -> Result<(), SettingError> {
        self.take("ttl", &mut spec.ttl, |text| parse_limit(text).map_err(|error| error.to_string()))?;
        self.take("idle", &mut spec.idle, |text| parse_limit(text).map_err(|error| error.to_string()))?;
        self.take("grace", &mut spec.grace, |text| parse_duration(text).map_err(|error| error.to_string()))?;
        self.take("signal", &mut spec.signal, parse_polite_signal)?;
        self.take("keep", &mut spec.keep, parse_keep)?;
        self.take("owner", &mut spec.owner, parse_owner)?;
        self.take("isolate", &mut spec.isolation, parse_isolation)?;
        self.take("cgroup", &mut spec.cgroup, parse_truth)?;
        self.take("scratch", &mut spec.scratch, parse_truth)?;
        self.take("preserve_status", &mut spec.preserve_status, parse_truth)?;
        self.take("claim", &mut spec.claim, parse_claim)?;
        self.take("fallback", &mut spec.fallback, parse_truth)?;
        self.take("port_range", &mut spec.port_range, |text| parse_range(text).map_err(|it| it.to_string()))?;
        self.take("protect", &mut spec.protect, |text| Ok(names(text)))?;
        self.apply_service(&mut spec.service)?;
        let mut quiet = false;
        self.take("quiet", &mut quiet, parse_truth)?;
        if quiet && spec.verbosity == Verbosity::Normal {
            spec.verbosity = Verbosity::Quiet;
        }
        self.apply_limits(&mut spec.limits)
    }

    /// Puts the limits of how many runs of its kind live at once into `spec`.
    pub fn apply_pool(&self, spec: &mut RunSpec) -> Result<(), SettingError> {
        let key = match spec.kind {
            Kind::Run => "max_runs",
            Kind::Server => "max_servers",
            Kind::Session => "max_sessions",
        };
        spec.pool.most = (spec.kind == Kind::Session).then_some(MAX_SESSIONS);
        self.take(key, &mut spec.pool.most, |text| match text {
            "none" => Ok(None),
            text => text.parse().map(Some).map_err(|_| format!("'{}' is not a number", text.escape_debug())),
        })?;
        self.take("wait", &mut spec.pool.wait, |text| parse_duration(text).map_err(|error| error.to_string()))
    }

    fn apply_service(&self, service: &mut Service) -> Result<(), SettingError> {
        self.take("ready_timeout", &mut service.ready_timeout, |text| {
            parse_limit(text).map_err(|error| error.to_string())
        })?;
        self.take("health_interval", &mut service.health_interval, parse_interval)?;
        self.take("restart", &mut service.restart, parse_restart)?;
        self.take("max_restarts", &mut service.max_restarts, |text| {
            let most = text.parse().map_err(|_| format!("'{}' is not a number", text.escape_debug()))?;
            Ok(Some(most))
        })?;
        self.take("log_size", &mut service.log_size, parse_log_size)
    }

    /// Returns the names of programs that are never ended for a port.
    pub fn protected(&self) -> Result<Vec<String>, SettingError> {
        let mut protected = Vec::new();
        self.take("protect", &mut protected, |text| Ok(names(text)))?;
        Ok(protected)
    }

    /// Returns where any port is looked for.
    pub fn port_range(&self) -> Result<Option<PortRange>, SettingError> {
        let mut range = None;
        self.take("port_range", &mut range, |text| parse_range(text).map(Some).map_err(|it| it.to_string()))?;
        Ok(range)
    }

    /// Returns the ports that `port free all` means.
    pub fn freed_ports(&self) -> Result<BTreeSet<u16>, SettingError> {
        let mut ports = DEFAULT_FREED.into_iter().collect();
        self.take("free_ports", &mut ports, |text| parse_list(text).map_err(|error| error.to_string()))?;
        Ok(ports)
    }

    /// Puts the settings into what a sweep looks for.
    pub fn apply_to_sweep(&self, options: &mut sweep::Options) -> Result<(), SettingError> {
        self.take("sweep_places", &mut options.places, globs)?;
        self.take("sweep_ports", &mut options.ports, |text| parse_range(text).map_err(|it| it.to_string()))?;
        self.take("sweep_commands", &mut options.commands, |text| Ok(names(text)))?;
        self.take("sweep_grace", &mut options.grace, |text| {
            parse_duration(text).map_err(|it| it.to_string())
        })?;
        options.protected = self.protected()?;
        Ok(())
    }

    fn apply_limits(&self, limits: &mut Limits) -> Result<(), SettingError> {
        let take = |key, slot: &mut Option<Bound>, unit| {
            self.take(key, slot, |text| parse_bound(text, unit).map(Some).map_err(|error| error.to_string()))
        };
        take("nofile", &mut limits.nofile, Unit::Count)?;
        take("fsize", &mut limits.fsize, Unit::Bytes)?;
        take("data", &mut limits.data, Unit::Bytes)?;
        take("core", &mut limits.core, Unit::Bytes)?;
        take("cpu_time", &mut limits.cpu_time, Unit::Seconds)?;
        self.take("memory", &mut limits.memory, parse_memory)?;
        self.take("cpu", &mut limits.cpu_percent, |text| {
            parse_percent(text).map(Some).map_err(|error| error.to_string())
        })?;
        self.take("pids", &mut limits.pids, parse_count)
    }

    fn take<T>(
        &self,
        key: &'static str,
        slot: &mut T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<(), SettingError> {
        if let Some((text, origin)) = self.layer.get(key) {
            *slot = parse(text).map_err(|why| SettingError::Value { key, origin: origin.clone(), why })?;
        }
        Ok(())
    }

    /// Returns each setting that is not the default, and where it came from.
    pub fn explain(&self) -> Vec<String> {
        let lines =
            self.layer.iter().map(|(key, (text, origin))| Explanation { key, text, origin }.to_string());
        lines.collect()
    }
}

struct Explanation<'a> {
    key: &'a str,
    text: &'a str,
    origin: &'a Origin,
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Explanation { key, text, origin } = self;
        match origin {
            Origin::File(path, line) => write!(f, "{key} = {text} (from {}:{line})", path.display()),
            _ => write!(f, "{key} = {text} (from {})", place(key, origin)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::signal::Signal;

    fn parse(text: &str) -> Result<Layer, String> {
        parse_file(Path::new("agent-run.toml"), text).map_err(|error| error.to_string())
    }

    fn applied(text: &str) -> Result<RunSpec, String> {
        let mut spec = RunSpec::new(["true"]);
        Resolved { layer: parse(text)? }.apply(&mut spec).map_err(|error| error.to_string())?;
        Ok(spec)
    }

    #[test]
    fn a_file_sets_what_flags_set() {
        let spec = applied(
            "ttl = \"1h\"\ngrace = 2\nsignal = \"INT\"\nnofile = \"64:128\"\npreserve_status = true\n",
        )
        .unwrap();
        assert_eq!(spec.ttl, Some(std::time::Duration::from_secs(3600)));
        assert_eq!(spec.grace, std::time::Duration::from_secs(2));
        assert_eq!(spec.signal, Signal::INT);
        assert_eq!(spec.limits.nofile, Some(Bound { soft: Some(64), hard: Some(128) }));
        assert!(spec.preserve_status);
    }

    #[test]
    fn errors_name_file_and_line() {
        let table = [
            ("ttl = \"1h\"\nttll = \"2h\"\n", "agent-run.toml:2: unknown setting 'ttll'"),
            ("\n\nttl = \"5x\"\n", "agent-run.toml:3: ttl: '5x' is not a duration"),
            ("ttl = [1]\n", "agent-run.toml:1: ttl: write one value"),
            ("ttl = \n", "agent-run.toml:1: "),
            ("[section]\n", "agent-run.toml:1: unknown setting 'section'"),
            ("keep = \"sometimes\"", "agent-run.toml:1: keep: 'sometimes' is not one of"),
        ];
        for (text, expected) in table {
            let error = applied(text).expect_err(text);
            assert!(error.starts_with(expected), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn origins_are_explained() {
        let mut layer = parse("ttl = 90").unwrap();
        layer.insert("grace", ("1s".to_owned(), Origin::Flag));
        layer.insert("idle", ("1s".to_owned(), Origin::Variable));
        let lines = Resolved { layer }.explain();
        assert_eq!(
            lines,
            [
                "grace = 1s (from --grace)",
                "idle = 1s (from AGENT_RUN_IDLE)",
                "ttl = 90 (from agent-run.toml:1)",
            ]
        );
    }
}
