//! Starting a session by the binary.

use std::ffi::OsString;
use std::process::{self, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{ManagerConfig, ManagerError, SessionSpec, ask_to_end};
use crate::client;
use crate::run::{Kind, RunId};

/// A session that was started, and ends if nobody keeps it.
pub(super) struct Started {
    id: RunId,
    /// It was there before, and is perhaps somebody's.
    kept: bool,
}

impl Started {
    pub(super) fn keep(mut self) -> RunId {
        self.kept = true;
        self.id.clone()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if !self.kept {
            ask_to_end(&self.id);
        }
    }
}

/// Starts a session by the binary, and reads what that answers.
pub(super) fn launch(config: &ManagerConfig, spec: &SessionSpec) -> Result<Started, ManagerError> {
    let binary = client::binary().map_err(|error| ManagerError::Spawn(error.to_string()))?;
    let mut command = Command::new(binary);
    command.args(words(config, spec)).stdin(Stdio::null());
    let output = command.output().map_err(|error| ManagerError::Spawn(error.to_string()))?;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if let Some(id) = answer["run"]["id"].as_str().and_then(RunId::parse) {
        return Ok(Started { id, kept: answer["run"]["reused"] == true });
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let message = answer["error"]["message"].as_str().map_or(said, str::to_owned);
    Err(match answer["error"]["kind"].as_str() {
        Some("process_limit") => ManagerError::ProcessLimit(message),
        Some("resource_limit" | "limit") => ManagerError::ResourceLimit(message),
        _ => ManagerError::Spawn(message),
    })
}

fn words(config: &ManagerConfig, spec: &SessionSpec) -> Vec<OsString> {
    let seconds =
        |span: Option<Duration>| span.map_or("0".to_owned(), |span| format!("{}s", span.as_secs_f64()));
    let mut words: Vec<OsString> = ["session", "start", "--json"].map(OsString::from).to_vec();
    let mut add = |flag: &str, value: OsString| {
        let mut word = OsString::from(format!("--{flag}="));
        word.push(value);
        words.push(word);
    };
    add("owner", process::id().to_string().into());
    add("idle", seconds(config.idle_timeout).into());
    add("max-sessions", config.max_processes.to_string().into());
    add("wait", seconds(Some(config.wait)).into());
    let name = spec.name.clone().or_else(|| (!spec.reuse).then(unique_name));
    name.into_iter().for_each(|name| add("name", name.into()));
    spec.provider.iter().for_each(|name| add("provider", name.into()));
    spec.protocol.iter().for_each(|protocol| add("protocol", protocol.into()));
    spec.directory.iter().for_each(|path| add("chdir", path.into()));
    spec.ttl.iter().for_each(|ttl| add("ttl", seconds(Some(*ttl)).into()));
    for (name, value) in &spec.env {
        let mut pair = name.clone();
        pair.push("=");
        pair.push(value);
        add("env", pair);
    }
    add("approvals", if spec.approve { "accept" } else { "decline" }.into());
    words.extend(client::limit_words(&spec.limits));
    words.extend(spec.reuse.then(|| "--reuse".into()));
    words.push("--".into());
    words.extend(spec.command.iter().cloned());
    words
}

/// Names are unique among live runs, and several of one provider are what a manager is for.
fn unique_name() -> String {
    format!("{}-{}", Kind::Session.word(), RunId::random())
}
