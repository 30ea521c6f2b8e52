//! `standin` plays four coding-agent CLIs in tests, `claude`, `codex`, `gemini` and `acp-agent`, and an orchestrator
//! that gives up, `host`.
//!
//! Which one is told by the file name it was started as or, when that is `standin`, by the first argument.
//! The message steers the reply (see `script`), the environment variable STANDIN the process (see `stage`).

#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::exit,
    reason = "a test helper"
)]

mod acp;
mod claude;
mod codex;
mod gemini;
mod host;
mod script;
mod stage;

/// Options whose next argument is their value, and so not the prompt.
const VALUED: &str = "--output-format -o --input-format --model -m --permission-mode --resume --session-id \
    --settings --max-turns --allowedTools --append-system-prompt --mcp-config -c -s --sandbox -C --cd \
    --approval-mode";

fn main() {
    let mut args: Vec<String> = std::env::args().collect();
    let called = args.remove(0);
    let mut name = called.rsplit('/').next().unwrap_or_default().to_owned();
    if name == "standin" && !args.is_empty() {
        name = args.remove(0);
    }
    stage::apply_switches();
    match name.as_str() {
        "claude" => claude::run(&Args(args)),
        "codex" => codex::run(&Args(args)),
        "gemini" => gemini::run(&Args(args)),
        "acp-agent" => acp::run(),
        "host" => host::run(),
        other => stage::refuse(&format!("there is no program {other:?} to play")),
    }
}

struct Args(Vec<String>);

impl Args {
    fn has(&self, option: &str) -> bool {
        self.0.iter().any(|arg| arg == option)
    }

    /// The value of an option, given as `--option VALUE` or `--option=VALUE`.
    fn value(&self, option: &str) -> Option<&str> {
        let mut pairs = self.0.windows(2).map(|pair| (&pair[0], &pair[1]));
        let apart = pairs.find_map(|(name, value)| (name == option).then_some(value.as_str()));
        let mut joined = self.0.iter().filter_map(|arg| arg.strip_prefix(option));
        apart.or_else(|| joined.find_map(|rest| rest.strip_prefix('=')))
    }

    /// The last argument that is neither an option nor an option's value, or else all of stdin.
    fn prompt(&self) -> String {
        let is_value = |at: usize| at > 0 && VALUED.split(' ').any(|option| option == self.0[at - 1]);
        let mut places = (0..self.0.len()).rev();
        let free = places.find(|&at| !self.0[at].starts_with('-') && !is_value(at));
        free.map_or_else(stage::read_all, |at| self.0[at].clone())
    }
}
