//! An orchestrator that gives up the start of a session, and lives on until its stdin ends.

use std::io::{Read, stdin};
use std::path::Path;
use std::time::Duration;

use agent_run::manager::{Manager, ManagerConfig, SessionSpec};

pub(super) fn run() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let manager = Manager::new(ManagerConfig::default());
        let script = "touch ../begun; until [ -e ../go ]; do sleep 0.01; done; exec cat";
        let begun = async {
            while !Path::new("../begun").exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            session = manager.spawn(SessionSpec::command(["sh", "-c", script], "marker:{marker}")) => {
                println!("it was started: {session:?}");
            }
            () = begun => println!("given up"),
        }
        stdin().read_to_end(&mut Vec::new()).expect("stdin");
    });
}
