//! What it takes to start the command, and why it could not be started.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Claims;
use super::relay::CommandEnds;
use crate::exit;
use crate::oneshot;
use crate::owner;
use crate::protocol::Protocol;
use crate::registry::store::LiveRun;
use crate::run::{Conversation, Isolation, RunSpec};
use crate::rundir;
use crate::sys::cgroup::Entrance;
use crate::sys::files;
use crate::sys::leader::{LeaderSetup, Program, StartError};
use crate::sys::process::Pid;
use crate::sys::spawn::{self, Rlimit};
use crate::sys::tty::Terminal;

/// `getrlimit(2)`.
const RLIMIT_LOCKS: u32 = 10;

/// The command was not started.
pub(super) struct LaunchFailure {
    pub(super) code: u8,
    pub(super) message: String,
}

impl LaunchFailure {
    pub(super) fn own(what: &str) -> impl FnOnce(io::Error) -> LaunchFailure {
        move |error| LaunchFailure { code: exit::OWN_FAILURE, message: format!("{what}: {error}") }
    }
}

pub(super) fn program(spec: &RunSpec, run: &LiveRun) -> io::Result<Program> {
    let mut variables = rundir::environment(&run.record, &run.managed_path());
    variables.extend(spec.env.iter().cloned());
    if spec.session.as_ref().is_some_and(|session| session.terminal) {
        // Nobody looks at it, so nothing is to be drawn.
        variables.insert(0, ("TERM".into(), "dumb".into()));
    }
    let directory = if spec.scratch { Some(run.managed_path()) } else { spec.chdir.clone() };
    let words = match &spec.session {
        // Whoever starts a command for each message is ourselves; what is missing is told now.
        Some(Conversation { protocol: Protocol::Oneshot, .. }) if !is_there(spec) => &spec.command,
        Some(Conversation { protocol: Protocol::Oneshot, .. }) => &oneshot::words(&spec.command),
        _ => &spec.command,
    };
    Program::new(words, owner::not_for(&spec.command), variables, directory)
}

fn is_there(spec: &RunSpec) -> bool {
    let program = Path::new(&spec.command[0]);
    let named = spec.command[0].as_bytes().contains(&b'/');
    if named { program.exists() } else { is_on_path(program, spec) }
}

/// Prepares `command` for `sh`, as the command of the run was prepared.
pub(super) fn shell(command: &str, spec: &RunSpec, run: &LiveRun) -> io::Result<Program> {
    let words = ["sh", "-c", command].map(Into::into).to_vec();
    program(&RunSpec { command: words, ..spec.clone() }, run)
}

pub(super) fn leader_setup(
    spec: &RunSpec,
    run: &mut LiveRun,
    terminal: Option<(Terminal, Pid)>,
    entrance: Option<Entrance>,
    claims: &Claims,
    ends: Option<CommandEnds>,
) -> io::Result<LeaderSetup> {
    let mut rlimits = spec.limits.rlimits();
    let known = run.record.mark.map(of_mark);
    if let Some(mark) = known.map_or_else(mark, |known| Ok(Some(known)))? {
        run.record.mark = mark.soft;
        rlimits.insert(0, mark);
    }
    let (input, outputs) = match ends {
        Some(CommandEnds { stdin, stdout, stderr }) => (stdin, Some((stdout, stderr))),
        None => (None, None),
    };
    Ok(LeaderSetup {
        on_supervisor_death: spec.signal,
        rlimits,
        terminal,
        tree_lock: None,
        cgroup: entrance,
        isolated: spec.isolation == Isolation::Pid,
        sockets: claims.passed_on(),
        input,
        owns_terminal: spec.session.as_ref().is_some_and(|session| session.terminal),
        outputs,
    })
}

/// Draws the mark: a soft RLIMIT_LOCKS, which the kernel ignores since 2.4.25 (`getrlimit(2)`) and every
/// descendant inherits, whatever it does to its environment and descriptors.
fn mark() -> io::Result<Option<Rlimit>> {
    let (_, hard) = spawn::current_rlimit(RLIMIT_LOCKS)?;
    let mut bytes = [0; 8];
    files::fill_random(&mut bytes);
    // Large, so that no human chose it; within the hard limit, which stays.
    let mark = u64::from_le_bytes(bytes) >> 2 | 1 << 61;
    Ok((mark < hard).then_some(of_mark(mark)))
}

fn of_mark(mark: u64) -> Rlimit {
    Rlimit { resource: RLIMIT_LOCKS, soft: Some(mark), hard: None }
}

/// Says why the command did not start, with the code that `env(1)` and `timeout(1)` would return.
pub(super) fn not_started(spec: &RunSpec, error: &StartError) -> LaunchFailure {
    match error {
        StartError::Execute(error) => not_executed(spec, error),
        StartError::Prepare { .. } => {
            let message = format!("{error}; '{}' was not started", shown(&spec.command[0]));
            LaunchFailure { code: exit::OWN_FAILURE, message }
        }
    }
}

pub(super) fn not_executed(spec: &RunSpec, error: &io::Error) -> LaunchFailure {
    let program = Path::new(&spec.command[0]);
    let named = spec.command[0].as_bytes().contains(&b'/');
    let (code, why) = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) if named => {
            (exit::NOT_FOUND, "no such file (or its interpreter is missing); check the path".to_owned())
        }
        // execvp(3) says EACCES too if only a directory of PATH cannot be searched.
        Some(libc::EACCES) if !named && !is_on_path(program, spec) => not_found(),
        Some(libc::ENOENT | libc::ENOTDIR) => not_found(),
        Some(libc::EACCES) if program.is_dir() => {
            (exit::NOT_EXECUTABLE, "it is a directory; name a program".to_owned())
        }
        Some(libc::EACCES) => {
            (exit::NOT_EXECUTABLE, "permission denied; is it executable (chmod +x)?".to_owned())
        }
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => {
            (exit::OWN_FAILURE, format!("the system is out of resources: {error}"))
        }
        _ => (exit::NOT_EXECUTABLE, error.to_string()),
    };
    LaunchFailure { code, message: format!("cannot run '{}': {why}", shown(&spec.command[0])) }
}

fn shown(word: &OsStr) -> String {
    let beginning: String = word.to_string_lossy().chars().take(200).collect();
    beginning.escape_debug().to_string()
}

fn not_found() -> (u8, String) {
    (exit::NOT_FOUND, "command not found; check the spelling and PATH".to_owned())
}

fn is_on_path(program: &Path, spec: &RunSpec) -> bool {
    let given = spec.env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
    let path = given.or_else(|| std::env::var_os("PATH")).unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}
