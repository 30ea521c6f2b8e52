//! What may be typed. Values stay text here; what they mean is for `settings` and the verbs.

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand};

use super::server::args::{LineArgs, ServerVerb};
use super::session::args::SessionVerb;

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
    /// Show the output of a server, or of a run that has a --log
    Logs(LogsArgs),
    /// Wait for the end, and return the run's code
    Wait(WaitArgs),
    /// Show who holds ports, free them, pick free ones, and say what is wrong with one
    #[command(subcommand)]
    Port(PortVerb),
    /// Named servers in the background: start, ensure, stop, restart, look after them
    #[command(subcommand)]
    Server(ServerVerb),
    /// Interactive programs in the background that answer messages: start, send, list, close, interrupt, health
    #[command(subcommand)]
    Session(SessionVerb),
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
    #[command(flatten)]
    pub(super) lines: LineArgs,
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
