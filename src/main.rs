//! The `agent-run` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    agent_run::cli::main()
}
