//! What may be typed after `agent-run session`.

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand};

use super::super::options::RunOptions;

const DEFAULTS: &str = "\
A provider names a program with its protocol and arguments: claude, codex, gemini, bash, python, node, and those of
[provider.NAME] in agent-run.toml. Without --provider the COMMAND's file name tells it.

Protocols: claude, codex, acp, jsonrpc, ndjson:FIELD=VALUE (the reply's last line has this), oneshot (the command is started anew
for each message, which stands for {prompt} or goes to its stdin), marker:TEMPLATE ({marker} is printed after the reply, {text} {quoted}
{json} is the message), prompt:REGEX, quiet:D.

Of a session the idle time is 5m unless something else is said (--idle, session_idle), the owner is the nearest coding agent (--owner
auto), and at most 20 live at once (max_sessions).";

const CODES: &str = "\
The exit code is the status that the program gives: of bash that of the last command, of python and node 1 for an exception, of agents
1 if they have failed. 124 if the time runs out, 130 if the reply was interrupted; 1 too if the message was not dealt with (busy,
refused) or the program died in the middle of the reply, 3 if the session has ended before, 4 if there is none.

The first Ctrl-C asks for the end of the reply, the second leaves it to itself. What the program writes to stderr comes after the reply.";

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum SessionVerb {
    /// Start an interactive program in the background, and return when it takes messages
    #[command(override_usage = "agent-run session start [NAME] [OPTIONS] [-- COMMAND [ARG]...]", after_help = DEFAULTS)]
    Start(Box<StartArgs>),
    /// Send a message, and print the reply
    #[command(after_help = CODES)]
    Send(SendArgs),
    /// List the sessions
    List(ListArgs),
    /// End sessions, and wait until nothing of them is left; none is success
    Close(CloseArgs),
    /// Ask for the end of the reply that goes on: by the protocol, then by Ctrl-C
    Interrupt(InterruptArgs),
    /// Tell what the sessions do and use
    Health(HealthArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StartArgs {
    /// Its name [default: the provider's]
    #[arg(value_name = "NAME")]
    pub(super) session: Option<String>,
    /// What it is: claude, codex, gemini, bash, python, node, or one of agent-run.toml
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub(super) provider: Option<String>,
    /// How it is spoken to, see below
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub(super) protocol: Option<String>,
    /// What it is answered when it asks whether it may do something: decline, accept [default: decline]
    #[arg(long, value_name = "A", allow_hyphen_values = true)]
    pub(super) approvals: Option<String>,
    /// Give it a terminal, and not pipes: for programs that behave otherwise without one
    #[arg(long)]
    pub(super) pty: bool,
    /// Take an idle session of the same provider, directory and settings (and NAME, if one is given), if there is one
    #[arg(long)]
    pub(super) reuse: bool,
    /// How long a place is waited for if there are too many sessions
    #[arg(long, value_name = "D", allow_hyphen_values = true)]
    pub(super) wait: Option<String>,
    /// So many sessions may live at once [default: 20]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(super) max_sessions: Option<String>,
    /// Answer with one JSON document
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) options: RunOptions,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

/// `session send` by itself.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
pub(in crate::cli) struct SendCli {
    #[command(flatten)]
    pub(in crate::cli) args: SendArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SendArgs {
    /// Name or id
    #[arg(value_name = "NAME")]
    pub(super) session: String,
    /// The message; - or nothing for stdin
    #[arg(value_name = "TEXT", allow_hyphen_values = true)]
    pub(super) text: Option<String>,
    /// How long the reply is waited for; afterwards the session still deals with it
    #[arg(long, value_name = "D", allow_hyphen_values = true)]
    pub(super) timeout: Option<String>,
    /// Print what the program says as it comes, and not its last word alone
    #[arg(long)]
    pub(super) stream: bool,
    /// If it deals with another message, do not wait for the turn
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Answer with one JSON document (with --stream, one a line)
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    /// Answer with one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct CloseArgs {
    /// Names or ids
    #[arg(value_name = "NAME")]
    pub(super) sessions: Vec<String>,
    /// All sessions
    #[arg(short, long, conflicts_with = "sessions")]
    pub(super) all: bool,
    /// All sessions of this provider
    #[arg(long, value_name = "P", conflicts_with_all = ["sessions", "all"], allow_hyphen_values = true)]
    pub(super) provider: Option<String>,
    /// SIGKILL at once
    #[arg(short, long, conflicts_with = "grace")]
    pub(super) force: bool,
    /// Time between the polite signal and SIGKILL, in place of the session's own
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
pub(in crate::cli) struct InterruptArgs {
    /// Name or id
    #[arg(value_name = "NAME")]
    pub(super) session: String,
    /// Answer with one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct HealthArgs {
    /// Name or id; without, all sessions
    #[arg(value_name = "NAME")]
    pub(super) session: Option<String>,
    /// Answer with one JSON document
    #[arg(long)]
    pub(super) json: bool,
}
