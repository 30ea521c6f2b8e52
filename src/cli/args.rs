//! What may be typed. Values stay text here; what they mean is for `settings` and the verbs.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

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
  doctor               tell what holds runs together on this machine
  run                  the same as no verb
RUN is an id, a unique beginning of one, a name, or a port (:8080). A verb's own options: agent-run VERB --help.

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

/// The verbs.
#[derive(Debug, Parser)]
#[command(name = "agent-run", version, disable_help_subcommand = false)]
pub(super) struct VerbCli {
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the runs
    Ps(PsArgs),
    /// Tell all about a run: exit code 0 running, 3 not running, 1 dead with something left, 4 unknown
    Status(StatusArgs),
    /// End runs, and wait until nothing of them is left
    Stop(StopArgs),
    /// Grant the lease anew, from now on (0 for no lease)
    Renew(RenewArgs),
    /// Show the output of a run that has a --log
    Logs(LogsArgs),
    /// Wait for the end, and return the run's code
    Wait(WaitArgs),
    /// Show who holds ports, free them, pick free ones, and say what is wrong with one
    #[command(subcommand)]
    Port(PortVerb),
    /// Find and remove what is left over: dead runs, and servers that coding agents have left behind
    Sweep(SweepArgs),
    /// Tell which rungs of containment can be had here, and what to do about the others
    Doctor(DoctorArgs),
}

#[derive(Debug, Subcommand)]
pub(super) enum PortVerb {
    /// Show who holds these ports, or every port that somebody listens on
    Show(PortShowArgs),
    /// End who listens on these ports: politely, then by force; exit code 0 if all are free in the end
    Free(PortFreeArgs),
    /// Print free ports
    Pick(PortPickArgs),
    /// Tell all that can be known of one port, and what to do about it
    Diagnose(PortDiagnoseArgs),
}

#[derive(Debug, Args)]
pub(super) struct PortShowArgs {
    /// Ports or ranges
    #[arg(value_name = "PORT")]
    pub(super) ports: Vec<String>,
    /// Answer with one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct PortFreeArgs {
    /// Ports or ranges; all for those of the setting free_ports (8000 8080 3000)
    #[arg(value_name = "PORT", required = true)]
    pub(super) ports: Vec<String>,
    /// Do not ask (nothing is asked without a terminal)
    #[arg(short, long)]
    pub(super) yes: bool,
    /// Say what would be ended, and end nothing
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Time between SIGTERM and SIGKILL [default: 5s]
    #[arg(short = 'k', long, value_name = "D", allow_hyphen_values = true)]
    pub(super) grace: Option<String>,
    /// Also end a parent that starts a server again
    #[arg(long)]
    pub(super) force: bool,
    /// Also end runs of other owners who are alive
    #[arg(long)]
    pub(super) steal: bool,
    /// Answer with one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct PortPickArgs {
    /// Where to look [default: 8080-9500]
    #[arg(long, value_name = "LO-HI", allow_hyphen_values = true)]
    pub(super) range: Option<String>,
    /// How many
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    pub(super) number: u16,
    /// Run COMMAND with the port claimed, as agent-run --port does
    #[arg(long)]
    pub(super) hold: bool,
    /// Answer with one JSON document
    #[arg(long)]
    pub(super) json: bool,
    /// For --hold: the command and its arguments
    #[arg(trailing_var_arg = true, requires = "hold", value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct PortDiagnoseArgs {
    /// The port
    #[arg(value_name = "PORT")]
    pub(super) port: String,
    /// Answer with one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// Show what would go and what stays, and why; end nothing
    #[arg(short, long)]
    pub(super) list: bool,
    /// The same as --list
    #[arg(short = 'n', long, conflicts_with = "list")]
    pub(super) dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(super) yes: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Spare what is younger [default: 0; with --monitor and --install-timer 24h]
    #[arg(long, value_name = "D", allow_hyphen_values = true)]
    pub(super) older_than: Option<String>,
    /// Only this kind: run, orphan, survivor, leftover, suspect, directory; repeatable
    #[arg(long, value_name = "KIND")]
    pub(super) only: Vec<String>,
    /// Spare this run or process; repeatable
    #[arg(long, value_name = "RUN|PID")]
    pub(super) except: Vec<String>,
    /// Also end what there is one kind of evidence for alone
    #[arg(long)]
    pub(super) suspects: bool,
    /// Also end leftovers of agents that may be alive
    #[arg(long, conflicts_with = "session")]
    pub(super) all: bool,
    /// End what this living agent session has started, whatever its age: self, a pid, a session's id
    #[arg(long, value_name = "WHO")]
    pub(super) session: Option<String>,
    /// Time between SIGTERM and SIGKILL [default: 2s]
    #[arg(short = 'k', long, value_name = "D", allow_hyphen_values = true)]
    pub(super) grace: Option<String>,
    /// Stay, and sweep again and again
    #[arg(long, conflicts_with_all = ["list", "dry_run"])]
    pub(super) monitor: bool,
    /// With --monitor and --install-timer: how often [default: 1h]
    #[arg(long, value_name = "D", allow_hyphen_values = true)]
    pub(super) interval: Option<String>,
    /// Have systemd sweep in the background; without systemd, print a line for crontab
    #[arg(long, conflicts_with_all = [
        "list", "dry_run", "monitor", "only", "except", "suspects", "all", "session", "grace",
    ])]
    pub(super) install_timer: bool,
    /// Undo --install-timer
    #[arg(long, conflicts_with_all = ["list", "dry_run", "monitor", "install_timer"])]
    pub(super) uninstall_timer: bool,
    /// Answer with one JSON document (with --monitor, one a line)
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Answer with one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Common {
    /// Answer with one JSON document
    #[arg(long)]
    pub(super) json: bool,
    /// Only runs with this label; repeatable
    #[arg(long = "label", value_name = "K=V")]
    pub(super) labels: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct PsArgs {
    #[command(flatten)]
    pub(super) common: Common,
    /// Finished runs too
    #[arg(short, long)]
    pub(super) all: bool,
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) common: Common,
    /// Id, beginning of one, name, or :PORT
    #[arg(value_name = "RUN")]
    pub(super) run: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct StopArgs {
    #[command(flatten)]
    pub(super) common: Common,
    /// Ids, beginnings of them, names, or :PORTs
    #[arg(value_name = "RUN")]
    pub(super) runs: Vec<String>,
    /// All live runs
    #[arg(short, long, conflicts_with = "runs")]
    pub(super) all: bool,
    /// Time between the polite signal and SIGKILL, in place of the run's own
    #[arg(short = 'k', long, value_name = "D", allow_hyphen_values = true)]
    pub(super) grace: Option<String>,
    /// Say what would be ended, and end nothing
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct RenewArgs {
    #[command(flatten)]
    pub(super) common: Common,
    /// Id, beginning of one, name, or :PORT (none with --label), then the time from now on
    #[arg(value_name = "RUN DURATION", required = true, num_args = 1..=2)]
    pub(super) words: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    #[command(flatten)]
    pub(super) common: Common,
    /// Id, beginning of one, name, or :PORT
    #[arg(value_name = "RUN")]
    pub(super) run: Option<String>,
    /// Go on until the run ends
    #[arg(short, long)]
    pub(super) follow: bool,
}

#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    #[command(flatten)]
    pub(super) common: Common,
    /// Id, beginning of one, name, or :PORT
    #[arg(value_name = "RUN")]
    pub(super) run: Option<String>,
    /// Give up after this time, with code 124
    #[arg(long, value_name = "D", allow_hyphen_values = true)]
    pub(super) timeout: Option<String>,
}
