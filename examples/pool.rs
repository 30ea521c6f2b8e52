//! Limits of a pool of sessions, and using an idle one again.
//!
//! ```sh
//! cargo build && cargo run --example pool
//! ```

#![allow(clippy::print_stdout, reason = "it is a program of its own")]

use std::time::Duration;

use agent_run::manager::{Manager, ManagerConfig, ManagerError, SessionSpec};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ManagerError> {
    let config = ManagerConfig { max_processes: 2, ..ManagerConfig::default() };
    let manager = Manager::new(config);
    let shell = || SessionSpec { reuse: true, ..SessionSpec::command(["cat"], "marker:{marker}") };

    let first = manager.spawn(shell()).await?;
    let again = manager.spawn(shell()).await?;
    println!("an idle session is used again: {}", first == again);

    let second = manager.spawn(SessionSpec::command(["cat"], "marker:{marker}")).await?;
    match manager.spawn(SessionSpec::command(["cat"], "marker:{marker}")).await {
        Err(ManagerError::ProcessLimit(message)) => println!("a third one: {message}"),
        other => println!("a third one: {other:?}"),
    }

    manager.terminate(&second).await?;
    let third = manager.spawn(SessionSpec::command(["cat"], "marker:{marker}")).await?;
    println!("there is a place again: {}", manager.send(&third, "hello").await?.text.trim());
    manager.shutdown(Duration::from_secs(5)).await
}
