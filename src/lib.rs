//! `agent-run`: a supervising launcher. Whatever it starts is gone when its run ends.
//!
//! # Theory of operation
//!
//! A *run* is one supervised execution of one command. Two processes of ours stand above it:
//!
//! ```text
//! shell or agent
//!   └─ agent-run            guard: no runtime, sleeps in poll(2); in the caller's process group; owns the terminal
//!        └─ supervisor      own process group; deadline, control socket, teardown
//!             └─ COMMAND    leader of its own process group
//!                  └─ ...   whatever it forks; orphans come back to the supervisor, then to the guard
//! ```
//!
//! Both are subreapers, so a process that loses its parent, new session or not, becomes a child of the
//! supervisor; "no child lives" is then the kernel's proof that nothing of the run does. Who dies:
//!
//! - *the leader*: the supervisor ends what it left behind, gives the directory back, writes the record;
//! - *the supervisor*: the tree falls to the guard, which does the same;
//! - *the guard*, alone or with its whole process group: the supervisor sees their channel close, and does it;
//! - *both at once*: the run is an orphan. Its lock is free, its record and marks remain.
//!
//! # Modules
//!
//! From the top; each imports only from those below it, and a test holds that: [`cli`] → [`manager`] → [`client`],
//! [`settings`], [`failure`] → [`server`], [`session`], [`sweep`] → [`readiness`] → [`launch`] → [`port`], [`pool`] → [`stop`] → [`guard`], [`supervisor`], [`recover`] → [`ending`], [`oneshot`] → [`teardown`],
//! [`rundir`], [`control`], [`owner`], [`containment`], [`usage`], [`output`] → [`registry`] → [`run`] → [`protocol`] → [`exit`], [`limits`], [`ports`], [`programs`], [`service`], [`lease`], [`mod@env`] → [`sys`].
//!
//! # As a library
//!
//! A host with threads cannot fork safely, so the library launches through the `agent-run` binary:
//!
//! ```no_run
//! use std::time::Duration;
//! use agent_run::{RunSpec, launch_run};
//!
//! let mut spec = RunSpec::new(["npm", "run", "dev"]);
//! spec.ttl = Some(Duration::from_secs(3600));
//! let run = launch_run(&spec)?;
//! println!("run {} began", run.id());
//! let ended = run.wait()?;
//! println!("it ended with code {}", ended.code);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cli;
pub mod client;
pub mod containment;
pub mod control;
pub mod ending;
pub mod env;
pub mod exit;
pub mod failure;
pub mod guard;
pub mod launch;
pub mod lease;
pub mod limits;
pub mod manager;
pub mod oneshot;
pub mod output;
pub mod owner;
pub mod pool;
pub mod port;
pub mod ports;
pub mod programs;
pub mod protocol;
pub mod readiness;
pub mod recover;
pub mod registry;
pub mod run;
pub mod rundir;
pub mod server;
pub mod service;
pub mod session;
pub mod settings;
pub mod stop;
pub mod supervisor;
pub mod sweep;
pub mod sys;
pub mod teardown;
pub mod usage;

pub use client::{ClientError, Run, launch_run};
pub use exit::{Ending, Reason};
pub use limits::{Bound, Limits};
pub use manager::{Manager, ManagerConfig, ManagerError, SessionSpec};
pub use registry::record::{End, Record};
pub use run::{Isolation, Keep, OwnerChoice, RunId, RunSpec};
pub use sys::signal::Signal;
