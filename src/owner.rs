//! The owner: whose death ends the run. Found by what coding agents put into the environment of what they
//! start, and by who among our ancestors has put it there.

use std::collections::HashSet;
use std::env;
use std::ffi::OsString;
use std::path::Path;

use crate::programs;
use crate::registry::record::{Owner, Record};
use crate::run::OwnerChoice;
use crate::sys::process::{self, Environment, Pid, Pidfd, ProcessRef, Stat};

/// A coding agent, by what it sets for its commands (presence counts, not the value) and by its program.
struct Agent {
    name: &'static str,
    markers: &'static [&'static str],
    session: Option<&'static str>,
    pid: Option<&'static str>,
    programs: &'static [&'static str],
}

const fn agent(
    name: &'static str,
    markers: &'static [&'static str],
    programs: &'static [&'static str],
) -> Agent {
    Agent { name, markers, session: None, pid: None, programs }
}

/// The first that matches counts, so the generic ones come last.
const AGENTS: [Agent; 17] = [
    Agent {
        name: "claude-code",
        markers: &["CLAUDECODE", "CLAUDE_CODE_SESSION_ID"],
        session: Some("CLAUDE_CODE_SESSION_ID"),
        pid: Some("CLAUDE_PID"),
        programs: &["claude"],
    },
    Agent {
        session: Some("CODEX_THREAD_ID"),
        ..agent("codex", &["CODEX_THREAD_ID", "CODEX_CI", "CODEX_SANDBOX"], &["codex"])
    },
    agent("gemini", &["GEMINI_CLI"], &["gemini"]),
    agent("cursor", &["CURSOR_AGENT"], &["cursor-agent"]),
    Agent { pid: Some("OPENCODE_PID"), ..agent("opencode", &["OPENCODE"], &["opencode"]) },
    agent("copilot", &["COPILOT_CLI"], &["copilot"]),
    agent("cline", &["CLINE_ACTIVE"], &[]),
    agent("augment", &["AUGMENT_AGENT"], &["auggie"]),
    agent("qwen", &["QWEN_CODE"], &["qwen"]),
    agent("goose", &["GOOSE_TERMINAL"], &["goose"]),
    Agent { session: Some("AMP_CURRENT_THREAD_ID"), ..agent("amp", &["AMP_CURRENT_THREAD_ID"], &["amp"]) },
    agent("antigravity", &["ANTIGRAVITY_AGENT"], &[]),
    agent("crush", &["CRUSH"], &["crush"]),
    agent("pi", &["PI_CODING_AGENT"], &[]),
    agent("openclaw", &["OPENCLAW_SHELL"], &["openclaw"]),
    agent("agent", &["AI_AGENT"], &[]),
    agent("agent", &["AGENT"], &[]),
];

/// The owner that was asked for is not there.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// No such process.
    #[error("the owner, pid {0}, is not running")]
    Gone(Pid),
    /// Its death would be ours, or the machine's.
    #[error("pid {0} cannot be the owner: it is this very agent-run")]
    Own(Pid),
}

/// An owner, and the descriptor that tells of its end.
#[derive(Debug)]
pub struct Pinned {
    /// What the record says of it.
    pub owner: Owner,
    /// Readable when it has ended.
    pub handle: Pidfd,
}

/// Finds the owner by `choice`; `None` if there is none. To be called by the process that the caller
/// started: the caller is its parent.
pub fn find(choice: OwnerChoice) -> Result<Option<Pinned>, OwnerError> {
    let known = |pid: Pid| {
        let (agent, session) = detected().map_or((None, None), |agent| (Some(agent.name), session_of(agent)));
        let (process, handle) = ProcessRef::observe(pid).ok_or(OwnerError::Gone(pid))?;
        let owner = Owner { agent: agent.map(str::to_owned), session, process };
        Ok(Some(Pinned { owner, handle }))
    };
    match choice {
        OwnerChoice::None => Ok(None),
        OwnerChoice::Parent => known(process::parent_pid()),
        OwnerChoice::Pid(pid) if pid == process::own_pid() => Err(OwnerError::Own(pid)),
        OwnerChoice::Pid(pid) => known(pid),
        OwnerChoice::Auto => Ok(nearest_agent()),
    }
}

/// Returns whose `record`'s run is, if that is somebody alive who is not us: its owner, else the coding agent that
/// started it. Two agents must not end each other's servers in turn.
pub fn stranger_of(record: &Record) -> Option<Owner> {
    let theirs = of_run(record)?;
    let ours = nearest_agent().map(|found| found.owner);
    let same = |ours: &Owner| {
        ours.process == theirs.process || (ours.session.is_some() && ours.session == theirs.session)
    };
    let above_us = || process::ancestors().contains(&theirs.process.pid);
    // Two agents that were started from one shell are two all the same.
    let named = |owner: &Owner| owner.agent.clone().filter(|name| name != "agent");
    let another =
        ours.as_ref().and_then(named).zip(named(&theirs)).is_some_and(|(ours, theirs)| ours != theirs);
    let is_ours = !another && (above_us() || ours.as_ref().is_some_and(same));
    (!is_ours).then_some(theirs)
}

/// What an agent has put into the environment of something that it started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The agent.
    pub agent: &'static str,
    /// Its session.
    pub session: Option<String>,
    /// Its process.
    pub pid: Option<Pid>,
}

/// Reads the mark of an agent from an environment.
pub fn mark_in(variable: &dyn Fn(&str) -> Option<String>) -> Option<Mark> {
    let agent = AGENTS.iter().find(|agent| agent.markers.iter().any(|marker| variable(marker).is_some()))?;
    Some(Mark {
        agent: agent.name,
        session: agent.session.and_then(variable),
        pid: agent.pid.and_then(variable).and_then(|text| text.parse().ok()),
    })
}

/// Returns the agent whose program `pid` runs, by its names.
pub fn agent_running_as(pid: Pid) -> Option<&'static str> {
    agent_named(&process::command_line(pid), Stat::read(pid).map(|stat| stat.comm))
}

/// Returns the agent whose program runs as `command`, in a process of the name `comm`.
pub fn agent_named(command: &[String], comm: Option<String>) -> Option<&'static str> {
    let names = names_in(command, comm);
    let named = |agent: &&Agent| names.iter().any(|name| agent.programs.contains(&name.as_str()));
    AGENTS.iter().find(named).map(|agent| agent.name)
}

/// What agents put into the environment for themselves: an agent that is started within another one takes it for its own
/// (Claude Code refuses to start, or is left out of the list of sessions).
const SESSION_MARKERS: [&str; 10] = [
    "CLAUDECODE",
    "CLAUDE_CODE_CHILD_SESSION",
    "CLAUDE_CODE_ENTRYPOINT",
    "CLAUDE_CODE_SESSION_ID",
    "CLAUDE_PID",
    "AI_AGENT",
    "CODEX_THREAD_ID",
    "CODEX_SANDBOX",
    "CODEX_SANDBOX_NETWORK_DISABLED",
    "CODEX_CI",
];

/// Returns the variables that `command` must not inherit: those of the agent's session that we are in, if it is an
/// agent itself.
pub fn not_for(command: &[OsString]) -> &'static [&'static str] {
    let name = command.first().and_then(|word| program_name(&word.to_string_lossy()));
    let is_agent = name.is_some_and(|name| AGENTS.iter().any(|it| it.programs.contains(&name.as_str())));
    if is_agent { &SESSION_MARKERS } else { &[] }
}

/// Returns whether a coding agent has started this process: nobody sits at its terminal.
pub fn is_agents() -> bool {
    detected().is_some()
}

/// Returns whether it is known what program the agent of this name is.
pub fn has_known_program(name: &str) -> bool {
    AGENTS.iter().any(|agent| agent.name == name && !agent.programs.is_empty())
}

/// Returns the agent that this process works for, if one is alive above it.
pub fn ours() -> Option<Owner> {
    nearest_agent().map(|found| found.owner)
}

/// Returns the living owner of `record`'s run, else the living agent that has started it.
pub fn of_run(record: &Record) -> Option<Owner> {
    match &record.owner {
        Some(owner) => Some(owner.clone()).filter(|owner| owner.process.pin().is_some()),
        None => agent_above(record.guard.as_ref()?),
    }
}

/// Returns what a person calls `owner`.
pub fn title(owner: &Owner) -> String {
    let agent = owner.agent.as_deref().unwrap_or("process");
    let session =
        owner.session.as_ref().map_or(String::new(), |it| format!(", session {}", it.escape_debug()));
    format!("{agent}, pid {}{session}", owner.process.pid)
}

/// Returns the agent that has started the living process `guard`.
fn agent_above(guard: &ProcessRef) -> Option<Owner> {
    let pinned = guard.pin()?;
    let line: Vec<Ancestor> = process::ancestors_of(guard.pid).into_iter().map(Ancestor::look).collect();
    let variables = Ancestor::look(guard.pid).variables.unwrap_or_default();
    let marked = AGENTS.iter().find(|agent| agent.markers.iter().any(|marker| variables.contains(*marker)));
    let (pid, agent) = choose(&line, marked, None)?;
    let (process, _) = ProcessRef::observe(pid).filter(|_| pinned.is_alive())?;
    Some(Owner { agent: Some(agent.name.to_owned()), session: None, process })
}

fn detected() -> Option<&'static Agent> {
    AGENTS.iter().find(|agent| agent.markers.iter().any(|marker| env::var_os(marker).is_some()))
}

fn session_of(agent: &Agent) -> Option<String> {
    env::var(agent.session?).ok()
}

/// Returns the nearest ancestor that is an agent; one that dies while we look is no owner.
fn nearest_agent() -> Option<Pinned> {
    let line: Vec<Ancestor> = process::ancestors().into_iter().map(Ancestor::look).collect();
    let stated = detected().and_then(|agent| env::var(agent.pid?).ok()?.parse().ok());
    let (pid, agent) = choose(&line, detected(), stated)?;
    let (process, handle) = ProcessRef::observe(pid)?;
    let owner = Owner { agent: Some(agent.name.to_owned()), session: session_of(agent), process };
    Some(Pinned { owner, handle })
}

/// What can be seen of an ancestor.
struct Ancestor {
    pid: Pid,
    /// The names of its program: of the process, of its file, of the script that it runs.
    names: Vec<String>,
    /// The variables that it was started with; `None` if they cannot be seen.
    variables: Option<HashSet<String>>,
}

impl Ancestor {
    fn names_of(pid: Pid) -> Vec<String> {
        names_in(&process::command_line(pid), Stat::read(pid).map(|stat| stat.comm))
    }

    fn look(pid: Pid) -> Ancestor {
        let name_of = |entry: &[u8]| {
            let name = entry.split(|byte| *byte == b'=').next().unwrap_or_default();
            String::from_utf8_lossy(name).into_owned()
        };
        let variables = Environment::of(pid).map(|all| all.entries().map(name_of).collect());
        Ancestor { pid, names: Ancestor::names_of(pid), variables }
    }

    fn is_reaper(&self) -> bool {
        self.pid == 1 || self.names.iter().any(|name| programs::is_reaper(name))
    }
}

/// The program, and the script that it runs: `node --no-warnings /x/agent`.
fn names_in(command: &[String], comm: Option<String>) -> Vec<String> {
    let words = command.iter().take(8).enumerate().filter(|(at, word)| *at == 0 || !word.starts_with('-'));
    let mut names: Vec<String> = words.take(2).filter_map(|(_, word)| program_name(word)).collect();
    names.extend(comm);
    names
}

fn program_name(word: &str) -> Option<String> {
    let name = Path::new(word).file_name()?.to_str()?;
    Some([".js", ".mjs", ".cjs"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned())
}

/// Chooses from `line`, nearest first: the process that the agent names, one that bears its name, or the
/// first that was started without the agent's marker, since that one has set it.
fn choose(
    line: &[Ancestor],
    detected: Option<&'static Agent>,
    stated: Option<Pid>,
) -> Option<(Pid, &'static Agent)> {
    line.iter().find_map(|ancestor| {
        let named =
            |agent: &&Agent| ancestor.names.iter().any(|name| agent.programs.contains(&name.as_str()));
        let Some(agent) = detected else {
            return Some((ancestor.pid, AGENTS.iter().find(named)?));
        };
        let variables = ancestor.variables.as_ref().filter(|_| !ancestor.is_reaper());
        let set_it =
            variables.is_some_and(|known| !agent.markers.iter().any(|marker| known.contains(*marker)));
        (stated == Some(ancestor.pid) || named(&agent) || set_it).then_some((ancestor.pid, agent))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ancestor(pid: Pid, name: &str, variables: Option<&[&str]>) -> Ancestor {
        let variables = variables.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        Ancestor { pid, names: vec![name.to_owned()], variables }
    }

    fn by_name(name: &str) -> Option<&'static Agent> {
        AGENTS.iter().find(|agent| agent.name == name)
    }

    #[test]
    fn the_agent_is_who_set_the_marker() {
        let marked: Option<&[&str]> = Some(&["PATH", "CLAUDECODE"]);
        let bare: Option<&[&str]> = Some(&["PATH"]);
        let claude = by_name("claude-code");
        type Row<'a> = (&'a [Ancestor], Option<&'static Agent>, Option<Pid>, Option<Pid>);
        let table: [Row; 8] = [
            (
                &[ancestor(9, "bash", marked), ancestor(8, "node", bare), ancestor(7, "zsh", bare)],
                claude,
                None,
                Some(8),
            ),
            (&[ancestor(9, "bash", marked), ancestor(8, "claude", marked)], claude, None, Some(8)),
            (&[ancestor(9, "bash", marked), ancestor(8, "node", marked)], claude, Some(8), Some(8)),
            // Orphaned: whoever adopted us has not set it.
            (&[ancestor(9, "bash", marked), ancestor(1, "bash", bare)], claude, None, None),
            (&[ancestor(9, "bash", marked), ancestor(8, "systemd", bare)], claude, None, None),
            // What cannot be seen proves nothing.
            (&[ancestor(9, "bash", marked), ancestor(8, "node", None)], claude, None, None),
            // No marker: by name alone.
            (&[ancestor(9, "bash", bare), ancestor(8, "codex", bare)], None, None, Some(8)),
            (&[ancestor(9, "bash", bare), ancestor(8, "tmux", bare)], None, None, None),
        ];
        for (index, (line, detected, stated, expected)) in table.into_iter().enumerate() {
            assert_eq!(choose(line, detected, stated).map(|(pid, _)| pid), expected, "row {index}");
        }
    }

    #[test]
    fn an_agent_within_an_agent_gets_no_session() {
        for (program, expected) in
            [("/usr/bin/claude", true), ("codex", true), ("gemini.js", true), ("npm", false)]
        {
            assert_eq!(!not_for(&[program.into(), "-p".into()]).is_empty(), expected, "{program}");
        }
        assert!(not_for(&[]).is_empty());
    }

    #[test]
    fn scripts_are_named_without_their_ending() {
        for (word, expected) in
            [("/usr/bin/node", "node"), ("/opt/gemini.js", "gemini"), ("claude", "claude")]
        {
            assert_eq!(program_name(word).as_deref(), Some(expected));
        }
    }
}
