//! The library finding what is left over and, with `--yes`, ending it: from a host with threads.
//!
//! ```sh
//! cargo run --example sweep
//! ```

#![allow(clippy::print_stdout, reason = "it is a program of its own")]

use std::thread;

use agent_run::sweep::{Options, apply, observe, plan};

fn main() {
    let yes = std::env::args().any(|word| word == "--yes");
    let sweeps = move || {
        let options = Options::default();
        let plan = plan(&observe(&options), &options);
        for item in &plan.items {
            let why = item.spared.as_deref().unwrap_or("goes");
            println!("{} {:?} {}: {why}", item.kind.word(), item.pids, item.command.join(" "));
        }
        if yes {
            let report = apply(&plan, &options);
            println!("{} gone, {} remain", report.gone().count(), report.remaining().count());
        }
    };
    if thread::spawn(sweeps).join().is_err() {
        println!("the sweep failed");
    }
}
