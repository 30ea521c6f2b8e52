//! The Agent Client Protocol, version 1: the response to `session/prompt` is the reply's end.

use serde_json::{Value, json};

use super::lines::{Lines, read_json};
use super::rpc::{Heard, NO_METHOD, error_text, hear};
use super::{Approvals, CompleteBy, Done, Message, Out, Talk};

/// The version that is spoken here.
const VERSION: u64 = 1;

/// A conversation with an agent.
#[derive(Debug)]
pub(super) struct Acp {
    lines: Lines,
    state: State,
}

#[derive(Debug)]
struct State {
    approvals: Approvals,
    directory: String,
    last: u64,
    phase: Phase,
    /// The request of the prompt that is dealt with.
    current: Option<u64>,
    cancelled: bool,
}

#[derive(Debug)]
enum Phase {
    Initializing(u64),
    StartingSession(u64),
    Open(String),
}

impl Acp {
    pub(super) fn new(approvals: Approvals, directory: &str) -> Acp {
        let (phase, directory) = (Phase::Initializing(0), directory.to_owned());
        let state = State { approvals, directory, last: 0, phase, current: None, cancelled: false };
        Acp { lines: Lines::default(), state }
    }
}

impl Talk for Acp {
    fn open(&mut self, out: &mut Out) {
        let capabilities =
            json!({ "fs": { "readTextFile": false, "writeTextFile": false }, "terminal": false });
        let info = json!({ "name": "agent-run", "version": env!("CARGO_PKG_VERSION") });
        let params =
            json!({ "protocolVersion": VERSION, "clientCapabilities": capabilities, "clientInfo": info });
        let id = self.state.ask("initialize", params, out);
        self.state.phase = Phase::Initializing(id);
    }

    fn is_open(&self) -> bool {
        matches!(self.state.phase, Phase::Open(_))
    }

    fn send(&mut self, message: Message, out: &mut Out) -> Result<(), String> {
        let Phase::Open(session) = &self.state.phase else { return Err("it is not open yet".to_owned()) };
        let prompt = json!([{ "type": "text", "text": message.text }]);
        let params = json!({ "sessionId": session, "prompt": prompt });
        let id = self.state.ask("session/prompt", params, out);
        (self.state.current, self.state.cancelled) = (Some(id), false);
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], out: &mut Out) {
        let (lines, state) = (&mut self.lines, &mut self.state);
        let fed = lines.feed(bytes, &mut |line| {
            let Some(message) = read_json(line) else { return };
            match hear(&message) {
                Some(Heard::Request { id, method, params }) => state.answer(id, method, params, out),
                Some(Heard::Response { id, result }) => state.response(id, result, out),
                Some(Heard::Notification { method: "session/update", params }) => state.update(params, out),
                _ => {}
            }
        });
        if let Err(error) = fed {
            out.broken = Some(error.why());
        }
    }

    fn interrupt(&mut self, out: &mut Out) -> bool {
        if let (Phase::Open(session), Some(_)) = (&self.state.phase, self.state.current) {
            self.state.cancelled = true;
            let params = json!({ "sessionId": session });
            out.line(&json!({ "jsonrpc": "2.0", "method": "session/cancel", "params": params }));
        }
        true
    }
}

impl State {
    fn ask(&mut self, method: &str, params: Value, out: &mut Out) -> u64 {
        self.last += 1;
        out.line(&json!({ "jsonrpc": "2.0", "id": self.last, "method": method, "params": params }));
        self.last
    }

    fn response(&mut self, id: u64, result: Result<&Value, &Value>, out: &mut Out) {
        match (&self.phase, result) {
            (Phase::Initializing(asked), Ok(result)) if *asked == id => {
                if result["protocolVersion"] != VERSION {
                    let theirs = &result["protocolVersion"];
                    out.broken = Some(format!("it speaks version {theirs} of the protocol, not {VERSION}"));
                    return;
                }
                let params = json!({ "cwd": self.directory, "mcpServers": [] });
                let id = self.ask("session/new", params, out);
                self.phase = Phase::StartingSession(id);
            }
            (Phase::StartingSession(asked), Ok(result)) if *asked == id => {
                match result["sessionId"].as_str() {
                    Some(session) => self.phase = Phase::Open(session.to_owned()),
                    None => out.broken = Some("it named no session".to_owned()),
                }
            }
            (Phase::Initializing(asked) | Phase::StartingSession(asked), Err(error)) if *asked == id => {
                out.broken = Some(error_text(error));
            }
            (Phase::Open(_), result) if self.current == Some(id) => {
                self.current = None;
                let stop = |result: &Value| match result["stopReason"].as_str() {
                    Some("end_turn") => None,
                    Some(reason) => Some(reason.to_owned()),
                    None => Some("it did not say why it stopped".to_owned()),
                };
                let failed = result.map_or_else(|error| Some(error_text(error)), stop);
                let details = result.ok().cloned();
                out.done = Some(Done { failed, details, ..Done::well(CompleteBy::RpcResponse) });
            }
            _ => {}
        }
    }

    fn update(&self, params: &Value, out: &mut Out) {
        let Phase::Open(session) = &self.phase else { return };
        let update = &params["update"];
        let is_mine = params["sessionId"] == session.as_str() && self.current.is_some();
        if is_mine && update["sessionUpdate"] == "agent_message_chunk" {
            out.text.extend_from_slice(update["content"]["text"].as_str().unwrap_or_default().as_bytes());
        }
    }

    /// Answers what it asks: nobody is here who could. Once cancelled, every question is (ACP, "Cancellation").
    fn answer(&self, id: &Value, method: &str, params: &Value, out: &mut Out) {
        if method != "session/request_permission" {
            let error = json!({ "code": NO_METHOD, "message": "agent-run answers no such request" });
            return out.line(&json!({ "jsonrpc": "2.0", "id": id, "error": error }));
        }
        let wanted = match self.approvals {
            Approvals::Accept => ["allow_once", "allow_always"],
            Approvals::Decline => ["reject_once", "reject_always"],
        };
        let options = || params["options"].as_array().into_iter().flatten();
        let chosen = wanted.iter().find_map(|kind| options().find(|option| option["kind"] == *kind));
        let outcome = match chosen.filter(|_| !self.cancelled) {
            Some(option) => json!({ "outcome": "selected", "optionId": option["optionId"] }),
            None => json!({ "outcome": "cancelled" }),
        };
        out.line(&json!({ "jsonrpc": "2.0", "id": id, "result": { "outcome": outcome } }));
    }
}
