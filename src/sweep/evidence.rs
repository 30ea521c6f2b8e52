//! What speaks for a process being an agent's leftover. Pure: from what was seen.
//!
//! First it must be an orphan. Then kinds of evidence are counted: two make a leftover, one a suspect. No name
//! alone is enough.

use std::path::Path;

use serde::Serialize;

use super::Options;
use super::observe::Observation;
use super::snapshot::{Process, Snapshot};
use crate::owner;
use crate::sys::process::Pid;

/// One piece of evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Evidence {
    /// An agent's variables are in its environment.
    Agent {
        /// Which agent.
        agent: &'static str,
        /// Its session.
        session: Option<String>,
        /// Whether it, or one like it, is still there.
        alive: bool,
    },
    /// It works in an agent's place.
    Place {
        /// Where.
        path: String,
    },
    /// It works in a directory that does not exist any more.
    DeletedPlace {
        /// Where that was.
        path: String,
    },
    /// It listens on a port of development servers.
    Port {
        /// Which.
        port: u16,
    },
    /// Its command is one that serves.
    Command {
        /// The words that say so.
        words: String,
    },
    /// Nobody is at the other end of its stdin and stdout.
    ClientGone,
}

impl Evidence {
    /// Returns what a table shows.
    pub fn brief(&self) -> String {
        match self {
            Evidence::Agent { agent, alive: false, .. } => format!("{agent} gone"),
            Evidence::Agent { agent, .. } => format!("{agent} alive"),
            Evidence::Place { .. } => "place of agents".to_owned(),
            Evidence::DeletedPlace { .. } => "directory gone".to_owned(),
            Evidence::Port { port } => format!("port {port}"),
            Evidence::Command { words } => words.clone(),
            Evidence::ClientGone => "client gone".to_owned(),
        }
    }
}

/// What `process` tells: each kind once. Ports of what is below it count if its command is one that serves: a
/// terminal multiplexer or an editor is not answerable for what runs in it.
pub fn of(process: &Process, seen: &Observation, options: &Options) -> Vec<Evidence> {
    let snapshot = &seen.processes;
    let command = serving_words(&process.command, &options.commands).map(|words| Evidence::Command { words });
    let members = if command.is_some() { snapshot.tree(process.stat.pid) } else { vec![process] };
    let port = members.iter().find_map(|member| {
        let ports = snapshot.listening.get(&member.stat.pid)?;
        ports.iter().find(|port| options.ports.ports().contains(port)).copied()
    });
    let mut found: Vec<Evidence> = of_agent(process, snapshot).into_iter().collect();
    found.extend(of_place(process, &seen.places));
    found.extend(port.map(|port| Evidence::Port { port }));
    found.extend(command);
    found
}

fn of_agent(process: &Process, snapshot: &Snapshot) -> Option<Evidence> {
    let mark = process.mark.clone()?;
    // An agent that says its pid is gone when that is, or is somebody younger by now. Of the others any one that lives might
    // be it, and of those whose program nobody knows nobody can say.
    let may_be = |pid: Pid| {
        snapshot.ours.contains(&pid)
            || snapshot.processes.get(&pid).is_some_and(|it| it.stat.start_time <= process.stat.start_time)
    };
    let alive = match mark.pid {
        Some(pid) => may_be(pid),
        None => snapshot.living_agents.contains(mark.agent) || !owner::has_known_program(mark.agent),
    };
    Some(Evidence::Agent { agent: mark.agent, session: mark.session, alive })
}

fn of_place(process: &Process, places: &[String]) -> Option<Evidence> {
    let cwd = process.cwd.as_ref()?;
    let path = cwd.display().to_string();
    if process.cwd_deleted {
        return Some(Evidence::DeletedPlace { path });
    }
    is_in_place(cwd, places).then_some(Evidence::Place { path })
}

/// Returns whether `path` or a directory above it is one that the globs `places` mean.
pub fn is_in_place(path: &Path, places: &[String]) -> bool {
    let options = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
    let patterns = places.iter().filter_map(|place| glob::Pattern::new(place).ok());
    patterns.into_iter().any(|pattern| path.ancestors().any(|it| pattern.matches_path_with(it, options)))
}

/// Finds words like `next dev` in a row in `command`, the program's and a script's name without their directories.
fn serving_words(command: &[String], known: &[String]) -> Option<String> {
    const LOOKED_AT: usize = 8;
    let name = |word: &String| {
        let last = word.rsplit('/').next().unwrap_or(word);
        last.trim_end_matches(".js").trim_end_matches(".mjs").to_owned()
    };
    let words: Vec<String> = command.iter().take(LOOKED_AT).map(name).collect();
    let fits = |wanted: &&String| {
        let wanted: Vec<&str> = wanted.split_whitespace().collect();
        !wanted.is_empty()
            && words.windows(wanted.len()).any(|window| window.iter().zip(&wanted).all(|(a, b)| a == b))
    };
    let mcp = || command.iter().take(LOOKED_AT).find(|word| word.contains("mcp")).map(|_| "mcp".to_owned());
    known.iter().find(fits).cloned().or_else(mcp)
}

/// Why a process is no orphan, or is one that somebody else looks after.
pub fn looked_after(process: &Process, snapshot: &Snapshot) -> Option<String> {
    let pid = process.stat.pid;
    if process.stat.terminal != 0 {
        return Some("it has a terminal".to_owned());
    }
    if process.in_container {
        return Some("it is in a container".to_owned());
    }
    if snapshot.parents.get(&pid) == Some(&0) && pid != 1 {
        return Some("its parent is outside of this pid namespace".to_owned());
    }
    if snapshot.first_children.contains(&pid) {
        return Some("it is what this container is for".to_owned());
    }
    // What an agent has started from within our own service is no part of that; and in a container of our own all is.
    let shares = |unit: &String| {
        Some(unit) == snapshot.own_unit.as_ref() && (process.mark.is_some() || unit.ends_with(".scope"))
    };
    if let Some(unit) = process.unit.as_ref().filter(|unit| !shares(unit)) {
        return Some(format!("it is the service {unit}"));
    }
    // What pid 1 of a container has started itself is in its session; who was adopted rarely is.
    let own_child_of = |parent: &Pid| {
        let session = |pid: &Pid| snapshot.sessions.get(pid).copied();
        !snapshot.inits.contains(parent) && session(parent) == session(&pid)
    };
    let starter = snapshot.parents.get(&pid).copied().filter(own_child_of);
    let parent = snapshot.ancestors(pid).first().copied().or(starter)?;
    let name = snapshot.names.get(&parent).map_or("", String::as_str).escape_debug().to_string();
    Some(format!("its parent {name} (pid {parent}) lives"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_serve_are_known_by_whole_words() {
        let known = Options::default().commands;
        let table: [(&[&str], Option<&str>); 12] = [
            (&["python3", "-m", "http.server", "8080"], Some("http.server")),
            (&["/usr/bin/python3", "/srv/app.py"], Some("app.py")),
            (&["node", "/x/node_modules/.bin/vite", "--port", "1"], Some("vite")),
            (&["node", "/x/node_modules/vite/bin/vite.js"], Some("vite")),
            (&["npx", "next", "dev"], Some("next dev")),
            (&["npx", "next", "build"], None),
            (&["python", "manage.py", "runserver"], Some("manage.py runserver")),
            (&["python", "manage.py", "migrate"], None),
            (&["node", "/x/mcp-server-git/index.js"], Some("mcp")),
            (&["vim", "notes about vite"], None),
            (&["bash"], None),
            (&[], None),
        ];
        for (words, expected) in table {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(serving_words(&words, &known).as_deref(), expected, "{words:?}");
        }
    }

    #[test]
    fn places_are_those_of_the_globs_and_below() {
        let places = vec!["/tmp/web_*".to_owned()];
        for (path, expected) in [
            ("/tmp/web_x", true),
            ("/tmp/web_x/sub/dir", true),
            ("/tmp/web", false),
            ("/tmp/other/web_x", false),
            ("/home/tmp/web_x", false),
            ("/", false),
        ] {
            assert_eq!(is_in_place(Path::new(path), &places), expected, "{path}");
        }
    }
}
