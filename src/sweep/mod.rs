//! Finding and removing what no living supervisor answers for.
//!
//! [`snapshot`] looks at every process once; [`evidence`] judges (pure) what each tells of itself; [`plan`] puts
//! together what is to go and what stays, with the reason; [`apply`] ends and removes it, looking at each
//! again just before. `--list` prints the plan.

pub mod apply;
mod clients;
mod directories;
pub mod evidence;
pub mod plan;
pub mod snapshot;

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::ports::{DEFAULT_RANGE, PortRange};
use crate::run::RunId;
use crate::sys::process::Pid;

/// Whose leftovers are swept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Those of agents that are gone.
    #[default]
    Gone,
    /// Those of living agents too.
    All,
    /// What this living agent has started: by its process, and by its session if that is known.
    Process(Pid, Option<String>),
    /// The same by its session's id.
    Session(String),
}

/// What is found and how it is ended.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is younger is spared.
    pub older_than: Duration,
    /// Kinds that are swept; all if empty.
    pub only: Vec<plan::Kind>,
    /// Runs that are spared.
    pub except_runs: Vec<RunId>,
    /// Processes that are spared, with all below them.
    pub except_pids: Vec<Pid>,
    /// Whether suspects are ended too.
    pub suspects: bool,
    /// Whose leftovers.
    pub scope: Scope,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Where agents put what they serve, as globs.
    pub places: Vec<String>,
    /// The ports of development servers.
    pub ports: PortRange,
    /// Words of a command that serves.
    pub commands: Vec<String>,
    /// Names of programs that are never ended.
    pub protected: Vec<String>,
}

/// Commands that serve, unless the settings say otherwise: each is one or more words in a row.
const COMMANDS: [&str; 22] = [
    "http.server",
    "flask run",
    "flask",
    "uvicorn",
    "gunicorn",
    "hypercorn",
    "vite",
    "next dev",
    "next start",
    "next-server",
    "nuxt",
    "webpack serve",
    "webpack-dev-server",
    "react-scripts",
    "http-server",
    "live-server",
    "serve",
    "nodemon",
    "streamlit",
    "app.py",
    "server.py",
    "manage.py runserver",
];

impl Default for Options {
    fn default() -> Options {
        Options {
            older_than: Duration::ZERO,
            only: Vec::new(),
            except_runs: Vec::new(),
            except_pids: Vec::new(),
            suspects: false,
            scope: Scope::Gone,
            grace: Duration::from_secs(2),
            places: vec!["/tmp/web_*".to_owned()],
            ports: DEFAULT_RANGE,
            commands: COMMANDS.map(str::to_owned).to_vec(),
            protected: Vec::new(),
        }
    }
}

/// Looks, and returns what is to be done. This process must have one thread.
pub fn look(options: &Options) -> plan::Plan {
    // As the kernel names what processes use.
    let places = options.places.iter().map(|pattern| resolved(pattern)).collect();
    plan::Plan::of(&snapshot::Snapshot::take(), &Options { places, ..options.clone() })
}

/// Returns `pattern` with the links resolved in front of what is to be matched.
fn resolved(pattern: &str) -> String {
    let is_plain = |part: &Component| !part.as_os_str().to_string_lossy().contains(['*', '?', '[']);
    let parts: Vec<Component> = Path::new(pattern).components().collect();
    // The last part may be a link itself, and is not followed.
    let known = parts.iter().take(parts.len().saturating_sub(1)).take_while(|part| is_plain(part)).count();
    let rest: PathBuf = parts[known..].iter().collect();
    match parts[..known].iter().collect::<PathBuf>().canonicalize() {
        Ok(place) => format!(
            "{}/{}",
            glob::Pattern::escape(place.to_string_lossy().trim_end_matches('/')),
            rest.display()
        ),
        Err(_) => pattern.to_owned(),
    }
}

/// Directories that are swept once nothing uses them.
pub(crate) fn places(options: &Options) -> Vec<PathBuf> {
    let paths = options.places.iter().filter_map(|pattern| glob::glob(pattern).ok());
    // As the kernel names them: what processes use is told by those names. The last part may be a link, and is not followed.
    let resolved = |path: PathBuf| Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    paths.flatten().flatten().filter_map(resolved).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_front_of_a_place_are_resolved() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink(base.join("real"), base.join("link")).unwrap();
        let text = |name: &str| base.join(name).display().to_string();
        for (pattern, expected) in [
            (text("link/web_*"), text("real/web_*")),
            (text("link/*/x"), text("real/*/x")),
            (text("real"), text("real")),
            // The last part is not followed: it is what would be removed.
            (text("link"), text("link")),
            (text("missing/web_*"), text("missing/web_*")),
            ("/web_*".to_owned(), "/web_*".to_owned()),
        ] {
            assert_eq!(resolved(&pattern), expected);
        }
    }
}
