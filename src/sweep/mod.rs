//! Finding and removing what no living supervisor answers for.
//!
//! [`observe()`] looks at everything: each process once ([`snapshot`]), the registry, the directories. [`plan()`] is pure:
//! it judges what each process tells of itself ([`evidence`]) and puts together what is to go and what stays, with the
//! reason. [`apply()`] ends and removes it, looking at each again just before. `--list` prints the plan.
//!
//! ```no_run
//! use agent_run::sweep::{Options, apply, observe, plan};
//!
//! let options = Options::default();
//! let plan = plan(&observe(&options), &options);
//! for item in plan.to_go() {
//!     println!("{}: {:?} because of {:?}", item.kind.word(), item.pids, item.evidence);
//! }
//! let report = apply(&plan, &options);
//! println!("{} are gone, {} remain", report.gone().count(), report.remaining().count());
//! ```

pub mod apply;
mod clients;
pub mod directories;
pub mod evidence;
mod leftovers;
mod look;
pub mod observe;
mod opened;
pub mod plan;
pub mod snapshot;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use apply::apply;
pub use observe::observe;
pub use plan::plan;

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
