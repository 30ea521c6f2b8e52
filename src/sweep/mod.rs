//! Finding and removing what no living supervisor answers for.
//!
//! [`snapshot`] looks at every process once; [`evidence`] judges (pure) what each tells of itself; [`plan`] puts
//! together what is to go and what stays, with the reason; [`apply`] ends and removes it, looking at each
//! again just before. `--list` prints the plan.

pub mod apply;
pub mod evidence;
pub mod plan;
pub mod snapshot;

use std::path::PathBuf;
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
    plan::Plan::of(&snapshot::Snapshot::take(), options)
}

/// Directories that are swept once nothing uses them.
pub(crate) fn places(options: &Options) -> Vec<PathBuf> {
    let paths = options.places.iter().filter_map(|pattern| glob::glob(pattern).ok());
    // As the kernel names them: what processes use is told by those names. The last part may be a link, and is not followed.
    let resolved = |path: PathBuf| Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    paths.flatten().flatten().filter_map(resolved).collect()
}
