//! Codex's app-server: JSON-RPC without the `jsonrpc` member, a line a message.

use std::time::Duration;

use serde_json::{Value, json};

use super::lines::{Lines, read_json};
use super::rpc::{Heard, NO_METHOD, error_text, hear};
use super::{Approvals, CompleteBy, Done, Message, Out, Talk};

/// It has too much to do just now, and is to be asked again.
const OVERLOADED: i64 = -32001;
const MOST_TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// A conversation with `codex app-server`.
#[derive(Debug)]
pub(super) struct Codex {
    lines: Lines,
    state: State,
}

#[derive(Debug)]
struct State {
    approvals: Approvals,
    directory: String,
    last: u64,
    phase: Phase,
    current: Option<Current>,
}

#[derive(Debug)]
enum Phase {
    Initializing(u64),
    StartingThread(u64),
    Open(String),
}

#[derive(Debug)]
struct Current {
    text: String,
    stream: bool,
    request: u64,
    tries: u32,
    /// It is to be asked again after a pause.
    again: bool,
    turn: Option<String>,
    /// What was told of turns before the number of its own was.
    early: Vec<(String, Value)>,
    interrupted: bool,
    last_word: String,
    /// The item whose pieces come.
    item: Option<String>,
    streamed: bool,
}

impl Codex {
    pub(super) fn new(approvals: Approvals, directory: &str) -> Codex {
        let phase = Phase::Initializing(0);
        let directory = directory.to_owned();
        Codex {
            lines: Lines::default(),
            state: State { approvals, directory, last: 0, phase, current: None },
        }
    }
}

impl Talk for Codex {
    fn open(&mut self, out: &mut Out) {
        let info = json!({ "name": "agent-run", "title": "agent-run", "version": env!("CARGO_PKG_VERSION") });
        let id = self.state.ask("initialize", json!({ "clientInfo": info }), out);
        self.state.phase = Phase::Initializing(id);
    }

    fn is_open(&self) -> bool {
        matches!(self.state.phase, Phase::Open(_))
    }

    fn send(&mut self, message: Message, out: &mut Out) -> Result<(), String> {
        if !self.is_open() {
            return Err("it is not open yet".to_owned());
        }
        self.state.current = Some(Current {
            text: message.text.to_owned(),
            stream: message.stream,
            request: 0,
            tries: 0,
            again: false,
            turn: None,
            early: Vec::new(),
            interrupted: false,
            last_word: String::new(),
            item: None,
            streamed: false,
        });
        self.state.start_turn(out);
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], out: &mut Out) {
        let (lines, state) = (&mut self.lines, &mut self.state);
        let fed = lines.feed(bytes, &mut |line| {
            let Some(message) = read_json(line) else { return };
            match hear(&message) {
                Some(Heard::Request { id, method, params }) => state.answer(id, method, params, out),
                Some(Heard::Response { id, result }) => state.response(id, result, out),
                Some(Heard::Notification { method, params }) => state.notified(method, params, out),
                None => {}
            }
        });
        if let Err(error) = fed {
            out.broken = Some(error.why());
        }
    }

    fn cut_off(&mut self, out: &mut Out) {
        let current = self.state.current.take().filter(|current| !current.stream);
        out.text.extend_from_slice(current.map(|current| current.last_word).unwrap_or_default().as_bytes());
    }

    fn interrupt(&mut self, out: &mut Out) -> bool {
        if let Some(current) = &mut self.state.current {
            current.interrupted = true;
            self.state.interrupt_turn(out);
        }
        true
    }

    fn pause(&self) -> Option<Duration> {
        let current = self.state.current.as_ref().filter(|current| current.again)?;
        Some(FIRST_PAUSE * 2u32.pow(current.tries - 1))
    }

    fn still(&mut self, out: &mut Out) {
        if self.state.current.as_ref().is_some_and(|current| current.again) {
            self.state.start_turn(out);
        }
    }
}

impl State {
    fn ask(&mut self, method: &str, params: Value, out: &mut Out) -> u64 {
        self.last += 1;
        out.line(&json!({ "id": self.last, "method": method, "params": params }));
        self.last
    }

    fn start_turn(&mut self, out: &mut Out) {
        let (Phase::Open(thread), Some(current)) = (&self.phase, &self.current) else { return };
        let input = json!([{ "type": "text", "text": current.text }]);
        let params = json!({ "threadId": thread, "input": input });
        let request = self.ask("turn/start", params, out);
        if let Some(current) = &mut self.current {
            (current.request, current.again) = (request, false);
            current.tries += 1;
        }
    }

    fn interrupt_turn(&mut self, out: &mut Out) {
        let (Phase::Open(thread), Some(current)) = (&self.phase, &self.current) else { return };
        if let Some(turn) = current.turn.as_ref().filter(|_| current.interrupted) {
            let params = json!({ "threadId": thread, "turnId": turn });
            self.ask("turn/interrupt", params, out);
        }
    }

    fn response(&mut self, id: u64, result: Result<&Value, &Value>, out: &mut Out) {
        match (&self.phase, result) {
            (Phase::Initializing(asked), Ok(_)) if *asked == id => {
                out.line(&json!({ "method": "initialized" }));
                let id = self.ask("thread/start", json!({ "cwd": self.directory }), out);
                self.phase = Phase::StartingThread(id);
            }
            (Phase::StartingThread(asked), Ok(result)) if *asked == id => {
                match result["thread"]["id"].as_str() {
                    Some(thread) => self.phase = Phase::Open(thread.to_owned()),
                    None => out.broken = Some("it named no thread".to_owned()),
                }
            }
            (Phase::Initializing(asked) | Phase::StartingThread(asked), Err(error)) if *asked == id => {
                out.broken = Some(error_text(error));
            }
            (Phase::Open(_), result) if self.current.as_ref().is_some_and(|it| it.request == id) => {
                self.turn_started(result, out);
            }
            _ => {}
        }
    }

    fn turn_started(&mut self, result: Result<&Value, &Value>, out: &mut Out) {
        let Some(current) = &mut self.current else { return };
        match result {
            Ok(result) => {
                let Some(turn) = result["turn"]["id"].as_str() else {
                    out.done = Some(Done::failed(CompleteBy::RpcResponse, "it named no turn"));
                    self.current = None;
                    return;
                };
                current.turn = Some(turn.to_owned());
                for (method, params) in std::mem::take(&mut current.early) {
                    self.notified(&method, &params, out);
                }
                self.interrupt_turn(out);
            }
            Err(error) if error["code"] == OVERLOADED && current.tries < MOST_TRIES => current.again = true,
            Err(error) => {
                out.done = Some(Done::failed(CompleteBy::RpcResponse, error_text(error)));
                self.current = None;
            }
        }
    }

    fn notified(&mut self, method: &str, params: &Value, out: &mut Out) {
        let Phase::Open(thread) = &self.phase else { return };
        if params["threadId"] != thread.as_str() {
            return;
        }
        let Some(current) = &mut self.current else { return };
        let Some(mine) = &current.turn else {
            return current.early.push((method.to_owned(), params.clone()));
        };
        if method == "turn/completed" {
            return self.turn_completed(&params["turn"], out);
        }
        if params["turnId"].as_str().is_some_and(|turn| turn != mine) {
            return;
        }
        match (method, params["delta"].as_str()) {
            ("item/agentMessage/delta", Some(delta)) => current.piece(&params["itemId"], delta, out),
            ("item/completed", _) if params["item"]["type"] == "agentMessage" => {
                current.word(&params["item"], out);
            }
            _ => {}
        }
    }

    fn turn_completed(&mut self, turn: &Value, out: &mut Out) {
        let Some(current) = &mut self.current else { return };
        if turn["id"].as_str() != current.turn.as_deref() {
            return;
        }
        let failed = match turn["status"].as_str() {
            Some("completed") => None,
            Some(status) => {
                let error = turn["error"].as_object().map(|_| error_text(&turn["error"]));
                Some(error.map_or_else(|| status.to_owned(), |error| format!("{status}: {error}")))
            }
            None => Some("it did not say how the turn ended".to_owned()),
        };
        if !(current.stream && current.streamed) {
            out.text.extend_from_slice(current.last_word.as_bytes());
        }
        let details = Some(json!({ "turn": turn }));
        out.done = Some(Done { failed, details, ..Done::well(CompleteBy::TurnCompleted) });
        self.current = None;
    }

    /// Answers what it asks: nobody is here who could.
    fn answer(&self, id: &Value, method: &str, params: &Value, out: &mut Out) {
        let may = self.approvals == Approvals::Accept;
        let word = |yes: &str, no: &str| json!({ "decision": if may { yes } else { no } });
        let result = match method {
            "item/commandExecution/requestApproval" | "item/fileChange/requestApproval" => {
                word("accept", "decline")
            }
            "execCommandApproval" | "applyPatchApproval" => word("approved", "denied"),
            "item/permissions/requestApproval" => {
                let granted = if may { params["permissions"].clone() } else { json!({}) };
                json!({ "permissions": granted, "scope": "turn" })
            }
            "mcpServer/elicitation/request" => json!({ "action": "decline", "content": null }),
            "item/tool/requestUserInput" => json!({ "answers": {} }),
            _ => {
                let error = json!({ "code": NO_METHOD, "message": "agent-run answers no such request" });
                return out.line(&json!({ "id": id, "error": error }));
            }
        };
        out.line(&json!({ "id": id, "result": result }));
    }
}

impl Current {
    fn piece(&mut self, item: &Value, delta: &str, out: &mut Out) {
        if self.stream {
            self.begin_item(item, out);
            out.text.extend_from_slice(delta.as_bytes());
        } else {
            if self.item.as_deref() != item.as_str() {
                self.item = item.as_str().map(str::to_owned);
                self.last_word.clear();
            }
            self.last_word.push_str(delta);
        }
    }

    fn word(&mut self, item: &Value, out: &mut Out) {
        let text = item["text"].as_str().unwrap_or_default();
        self.last_word = text.to_owned();
        if self.stream && self.item.as_deref() != item["id"].as_str() {
            self.begin_item(&item["id"], out);
            out.text.extend_from_slice(text.as_bytes());
        }
    }

    /// What it says in one turn may be several things.
    fn begin_item(&mut self, item: &Value, out: &mut Out) {
        if self.item.as_deref() != item.as_str() {
            if self.streamed {
                out.text.push(b'\n');
            }
            self.item = item.as_str().map(str::to_owned);
        }
        self.streamed = true;
    }
}
