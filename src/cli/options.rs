//! What may be typed for a run, in the run form and elsewhere.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser};

const VERBS_HELP: &str = "\
Verbs (as the first argument):
  ps                   list the runs
  status RUN           tell all about one run
  stop RUN...          end runs, and wait until nothing of them is left
  renew RUN DURATION   grant the lease anew, from now on
  logs RUN [-f]        show the output of a run that has a --log
  wait RUN             wait for the end, and return the run's code
  port                 show, free, pick and diagnose ports
  sweep                find and remove what is left over of runs and of coding agents
  server               start, ensure, stop, restart, watch named servers in the background
  session              start, send, list, close interactive programs that answer messages
  doctor               tell what holds runs together on this machine
  run                  the same as no verb
RUN is an id, a unique beginning of one (three letters at least), a name, or a port (:8080). A verb's own options: agent-run VERB --help.

Settings also come from AGENT_RUN_TTL and so on, from agent-run.toml in this directory or above, and from
~/.config/agent-run/config.toml.

Exit code: the command's own; 124 if the lease or idle time ended it, 125 if agent-run itself failed, 126 not
executable, 127 not found, 128+N killed by signal N.";

/// The run form.
#[derive(Debug, Parser)]
#[command(
    name = "agent-run",
    version,
    about = "Runs a command; when it ends, for whatever reason, all that it started is gone",
    override_usage = "agent-run [OPTIONS] [--] COMMAND [ARG]...",
    after_help = VERBS_HELP,
    disable_help_subcommand = true
)]
pub(super) struct RunCli {
    #[command(flatten)]
    pub(super) options: RunOptions,
    /// Used by the library: the descriptor to write the run's id to
    #[arg(long, hide = true, value_name = "N")]
    pub(super) started_fd: Option<i32>,
    /// Used by the library: nothing but the flags counts
    #[arg(long, hide = true)]
    pub(super) flags_alone: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

/// What may be said of any run.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct RunOptions {
    /// End the run after this time (90s, 1h30m, 0 for none)
    #[arg(long, value_name = "D", allow_hyphen_values = true)]
    pub(super) ttl: Option<String>,
    /// End the run after this time without input or output
    #[arg(long, value_name = "D", allow_hyphen_values = true)]
    pub(super) idle: Option<String>,
    /// Time between the polite signal and SIGKILL [default: 5s]
    #[arg(short = 'k', long, value_name = "D", allow_hyphen_values = true)]
    pub(super) grace: Option<String>,
    /// The polite signal [default: TERM]
    #[arg(short, long, value_name = "S", allow_hyphen_values = true)]
    pub(super) signal: Option<String>,
    /// A name, unique among live runs
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(super) name: Option<String>,
    /// A label, for the verbs to select by; repeatable
    #[arg(long = "label", value_name = "K=V")]
    pub(super) labels: Vec<String>,
    /// Start in the managed directory
    #[arg(long)]
    pub(super) scratch: bool,
    /// Copy this into the managed directory and start there; repeatable
    #[arg(long = "copy", value_name = "PATH", allow_hyphen_values = true)]
    pub(super) copies: Vec<PathBuf>,
    /// What becomes of the managed directory: never, on-failure, always [default: never]
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub(super) keep: Option<String>,
    /// Set a variable for the command; repeatable
    #[arg(long = "env", value_name = "K=V", allow_hyphen_values = true)]
    pub(super) env: Vec<OsString>,
    /// Start in this directory
    #[arg(long, value_name = "DIR", conflicts_with_all = ["scratch", "copies"], allow_hyphen_values = true)]
    pub(super) chdir: Option<PathBuf>,
    /// Write a copy of the output to this file
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub(super) log: Option<PathBuf>,
    /// Append what happens to this file, one JSON object a line
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub(super) events: Option<PathBuf>,
    /// When it counts as ready: port, log:REGEX, http:PATH[=STATUS], ws:PATH, cmd:COMMAND; repeatable, all must hold
    #[arg(long, value_name = "CHECK")]
    pub(super) ready: Vec<String>,
    /// End what does not get ready in this time (0 for none) [default: 60s]
    #[arg(long, value_name = "D", allow_hyphen_values = true)]
    pub(super) ready_timeout: Option<String>,
    /// What is looked at once it is ready: the same forms as --ready, but log; repeatable
    #[arg(long, value_name = "CHECK")]
    pub(super) health: Vec<String>,
    /// Between two looks at its health [default: 10s]
    #[arg(long, value_name = "D", allow_hyphen_values = true)]
    pub(super) health_interval: Option<String>,
    /// Claim a port for the life of the run: P, LO-HI, auto; in PORT, HOST and {port}; repeatable
    #[arg(long = "port", value_name = "P", allow_hyphen_values = true)]
    pub(super) ports: Vec<String>,
    /// How the port is kept until the command binds it: hold, release, listen-fd [default: hold]
    #[arg(long, value_name = "HOW", allow_hyphen_values = true)]
    pub(super) claim: Option<String>,
    /// End who holds the port or the name, without asking
    #[arg(long)]
    pub(super) force: bool,
    /// With --force: also a run of another owner who is alive
    #[arg(long, requires = "force")]
    pub(super) steal: bool,
    /// If the port is held, take the next free one
    #[arg(long)]
    pub(super) fallback: bool,
    /// Where auto looks for a port [default: 8080-9500]
    #[arg(long, value_name = "LO-HI", allow_hyphen_values = true)]
    pub(super) port_range: Option<String>,
    /// Programs that are never ended for a port, with commas
    #[arg(long, value_name = "NAMES", allow_hyphen_values = true)]
    pub(super) protect: Option<String>,
    /// Whose death ends the run: auto (the nearest coding agent), parent, none, PID [default: none]
    #[arg(long, value_name = "WHO", allow_hyphen_values = true)]
    pub(super) owner: Option<String>,
    /// Let nothing outlive the run whatever is killed: pid (a pid namespace), none [default: none]
    #[arg(long, value_name = "HOW", allow_hyphen_values = true)]
    pub(super) isolate: Option<String>,
    /// Whether the run gets a cgroup where one can be made: true, false [default: true]
    #[arg(long, value_name = "BOOL", allow_hyphen_values = true)]
    pub(super) cgroup: Option<String>,
    /// Memory of the whole tree; above it the run is killed
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(super) memory: Option<String>,
    /// CPU of the whole tree, in percent of one core
    #[arg(long, value_name = "PCT", allow_hyphen_values = true)]
    pub(super) cpu: Option<String>,
    /// Processes of the whole tree; above it the run is killed
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(super) pids: Option<String>,
    /// Open descriptors of each process (soft[:hard])
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(super) nofile: Option<String>,
    /// Size of each file that is written
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(super) fsize: Option<String>,
    /// Memory of each process: heap and private mappings
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(super) data: Option<String>,
    /// Size of a core dump
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(super) core: Option<String>,
    /// CPU time of each process
    #[arg(long, value_name = "D", allow_hyphen_values = true)]
    pub(super) cpu_time: Option<String>,
    /// Return the command's own code even if the lease or idle time ended it
    #[arg(long)]
    pub(super) preserve_status: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Say where each setting came from, and how the run ended
    #[arg(short, long, conflicts_with = "quiet")]
    pub(super) verbose: bool,
}
