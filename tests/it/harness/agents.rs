//! A place in which stand-ins for coding agents can be started as sessions.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::Value;

use super::{Done, Place, Running, finish, standin, wait_until};

/// A place with stand-ins for coding agents on its PATH.
pub(crate) struct Agents(pub(crate) Place);

impl Agents {
    pub(crate) fn new() -> Agents {
        let place = Place::new();
        fs::create_dir(place.path("bin")).unwrap();
        for name in ["claude", "codex", "gemini", "acp-agent"] {
            symlink(standin(), place.path("bin").join(name)).unwrap();
        }
        Agents(place)
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.0.command(words);
        command.env("PATH", self.path());
        command
    }

    pub(crate) fn path(&self) -> String {
        format!("{}:{}", self.0.text("bin"), std::env::var("PATH").unwrap())
    }

    #[track_caller]
    pub(crate) fn run(&self, words: &[&str]) -> Done {
        finish(self.command(words))
    }

    #[track_caller]
    pub(crate) fn start(&self, words: &[&str]) -> Value {
        let all = [&["session", "start", "--json"], words].concat();
        self.run(&all).expect_code(0).json()["run"].clone()
    }

    #[track_caller]
    pub(crate) fn send(&self, words: &[&str]) -> Done {
        self.run(&[&["session", "send"], words].concat())
    }

    #[track_caller]
    pub(crate) fn reply(&self, session: &str, text: &str) -> Value {
        let done = self.send(&[session, "--json", text]);
        done.json()["reply"].clone()
    }

    /// Sends, and does not wait for the reply.
    #[track_caller]
    pub(crate) fn send_in_background(&self, words: &[&str]) -> Running {
        let mut command = self.command(&[&["session", "send"], words].concat());
        command.stdin(std::process::Stdio::null());
        Running::spawn(command)
    }

    #[track_caller]
    pub(crate) fn until_busy(&self, session: &str) {
        wait_until("it deals with a message", || {
            let health = self.run(&["session", "health", session, "--json"]).json();
            health["processes"][0]["busy"] == true
        });
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.run(&["session", "close", "--all"]).expect_code(0);
            self.0.expect_nothing_left();
        } else {
            let _ = self.command(&["session", "close", "--all", "--force"]).output();
        }
    }
}
