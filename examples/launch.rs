//! The library launching a run and waiting for it.
//!
//! ```sh
//! cargo build && AGENT_RUN_BIN=target/*/debug/agent-run cargo run --example launch -- sleep 60
//! ```

#![allow(clippy::print_stderr, reason = "it is a program of its own")]

use std::time::Duration;

use agent_run::{RunSpec, launch_run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut command: Vec<String> = std::env::args().skip(1).collect();
    if command.is_empty() {
        command = vec!["sleep".into(), "60".into()];
    }
    let mut spec = RunSpec::new(command);
    spec.ttl = Some(Duration::from_secs(2));
    spec.labels.push(("started-by".into(), "example".into()));

    let run = launch_run(&spec)?;
    eprintln!("run {} began as pid {}", run.id(), run.record()?.leader.map_or(0, |leader| leader.pid));
    let ended = run.wait()?;
    eprintln!("it ended: {}, code {}", ended.reason.word(), ended.code);
    Ok(())
}
