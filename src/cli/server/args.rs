//! What may be typed after `agent-run server`.

use std::ffi::OsString;

use clap::{Args, Subcommand};

use super::super::options::RunOptions;

const DEFAULTS: &str = "\
Of a server the lease is 24h unless something else is said (--ttl, server_ttl), the owner is the nearest coding agent (--owner
auto), and it is ready when it listens on its --port, or without one when it has lived for 300 ms.";

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ServerVerb {
    /// Start a server in the background, and return when it is ready
    #[command(override_usage = "agent-run server start [NAME] [OPTIONS] [-- COMMAND [ARG]...]", after_help = DEFAULTS)]
    Start(Box<StartArgs>),
    /// See that a server runs: start it if it is not there, replace it if it is not well or another one
    #[command(override_usage = "agent-run server ensure [NAME] [OPTIONS] [-- COMMAND [ARG]...]", after_help = DEFAULTS)]
    Ensure(Box<StartArgs>),
    /// End servers, and wait until nothing of them is left; none is success
    Stop(StopArgs),
    /// End a server's command and start it again on the same port; return when it is ready
    Restart(RestartArgs),
    /// Show the servers, or all about one: exit code 0 running, 3 not running, 4 unknown
    Status(StatusArgs),
    /// Show the output of a server, after its end too
    Logs(LogsArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StartArgs {
    /// Its name: of a server in agent-run.toml or .claude/launch.json, or any with a COMMAND [default: the directory's]
    #[arg(value_name = "NAME", conflicts_with = "all")]
    pub(super) server: Option<String>,
    /// All servers that are described, in the order of their dependencies
    #[arg(short, long, conflicts_with = "command")]
    pub(super) all: bool,
    /// Stay in the foreground
    #[arg(long, conflicts_with_all = ["all", "restart", "json"])]
    pub(super) foreground: bool,
    /// Start it again when it ends: never, on-failure, always [default: never]
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub(super) restart: Option<String>,
    /// How often in a row; it begins anew after a minute of health [default: for ever]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(super) max_restarts: Option<String>,
    /// How much of its output is kept [default: 10M]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(super) log_size: Option<String>,
    /// In the background, which is the default
    #[arg(long, conflicts_with = "foreground")]
    pub(super) background: bool,
    /// Answer with one JSON document
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) options: RunOptions,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StopArgs {
    /// Names, ids, or :PORTs [default: the directory's name]
    #[arg(value_name = "NAME")]
    pub(super) servers: Vec<String>,
    /// All servers, of whatever project
    #[arg(short, long, conflicts_with = "servers")]
    pub(super) all: bool,
    /// SIGKILL at once
    #[arg(short, long, conflicts_with = "grace")]
    pub(super) force: bool,
    /// Time between the polite signal and SIGKILL, in place of the server's own
    #[arg(short = 'k', long, value_name = "D", allow_hyphen_values = true)]
    pub(super) grace: Option<String>,
    /// Say what would be ended, and end nothing
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
    /// Answer with one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RestartArgs {
    /// Name, id, or :PORT [default: the directory's name]
    #[arg(value_name = "NAME")]
    pub(super) server: Option<String>,
    /// SIGKILL at once
    #[arg(short, long, conflicts_with = "grace")]
    pub(super) force: bool,
    /// Time between the polite signal and SIGKILL, in place of the server's own
    #[arg(short = 'k', long, value_name = "D", allow_hyphen_values = true)]
    pub(super) grace: Option<String>,
    /// Answer with one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StatusArgs {
    /// Name, id, or :PORT; without, all servers
    #[arg(value_name = "NAME")]
    pub(super) server: Option<String>,
    /// Stay, and look again and again
    #[arg(short, long)]
    pub(super) watch: bool,
    /// With --watch: how often [default: 2s]
    #[arg(long, value_name = "D", allow_hyphen_values = true, requires = "watch")]
    pub(super) interval: Option<String>,
    /// Answer with one JSON document (with --watch, one a line)
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct LogsArgs {
    /// Name, id, or :PORT [default: the directory's name]
    #[arg(value_name = "NAME")]
    pub(super) server: Option<String>,
    #[command(flatten)]
    pub(super) lines: LineArgs,
    /// Answer with one JSON document a line
    #[arg(long)]
    pub(super) json: bool,
}

/// Which lines of a log.
#[derive(Debug, Default, Args)]
pub(in crate::cli) struct LineArgs {
    /// Go on until the run ends
    #[arg(short, long)]
    pub(in crate::cli) follow: bool,
    /// The last N lines alone
    #[arg(short = 'n', long, value_name = "N")]
    pub(in crate::cli) lines: Option<usize>,
    /// What was written in the last D alone
    #[arg(long, value_name = "D", allow_hyphen_values = true)]
    pub(in crate::cli) since: Option<String>,
    /// Lines in which this regular expression is found alone
    #[arg(long, value_name = "RE", allow_hyphen_values = true)]
    pub(in crate::cli) grep: Option<String>,
    /// The output as it was, without time and stream
    #[arg(long)]
    pub(in crate::cli) raw: bool,
}

impl LineArgs {
    /// Returns whether they want something that a file without times does not tell.
    pub(in crate::cli) fn chooses(&self) -> bool {
        self.lines.is_some() || self.since.is_some() || self.grep.is_some()
    }
}
