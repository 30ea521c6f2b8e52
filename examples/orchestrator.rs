//! The library talking with several interactive programs at once.
//!
//! ```sh
//! cargo build && cargo run --example orchestrator -- "what is in this directory?" claude codex gemini bash python
//! ```

#![allow(clippy::print_stdout, reason = "it is a program of its own")]

use std::sync::Arc;
use std::time::Duration;

use agent_run::manager::{Manager, ManagerConfig, ManagerError, SessionSpec};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ManagerError> {
    let mut words = std::env::args().skip(1);
    let message = words.next().unwrap_or_else(|| "1 + 1".to_owned());
    let mut providers: Vec<String> = words.collect();
    if providers.is_empty() {
        providers = ["claude", "codex", "gemini", "bash", "python"].map(str::to_owned).to_vec();
    }

    let timeout = Some(Duration::from_secs(120));
    let manager = Arc::new(Manager::new(ManagerConfig { timeout, ..ManagerConfig::default() }));
    let tasks: Vec<_> = providers
        .into_iter()
        .map(|provider| {
            let (manager, message) = (Arc::clone(&manager), message.clone());
            tokio::spawn(async move {
                let asked = async {
                    let session = manager.spawn(SessionSpec::provider(&provider)).await?;
                    manager.send(&session, &message).await
                };
                (provider.clone(), asked.await)
            })
        })
        .collect();
    for task in tasks {
        match task.await {
            Ok((provider, Ok(answer))) => {
                let by = answer.reply.complete_by.map_or("-", |by| by.word());
                println!("{provider} ({by}): {}", answer.text.trim());
            }
            Ok((provider, Err(error))) => println!("{provider} failed: {error}"),
            Err(error) => println!("a task was lost: {error}"),
        }
    }
    let health = manager.health().await;
    println!("{} of {} sessions are alive", health.alive_processes, health.total_processes);
    manager.shutdown(Duration::from_secs(5)).await
}
