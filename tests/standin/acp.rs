//! Plays an agent of the Agent Client Protocol, version 1, over stdio: `acp-agent` and `gemini --acp`.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::script::Script;
use crate::stage::{End, Stage, send, switch, uuid};

const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const INTERNAL_ERROR: i64 = -32603;
const AUTH_REQUIRED: i64 = -32000;

pub(crate) fn run() {
    let (stage, sessions) = (Stage::open(true), HashMap::new());
    let mut agent = Agent { stage, sessions };
    loop {
        let message = agent.stage.next();
        agent.handle(&message);
    }
}

struct Agent {
    stage: Stage,
    sessions: HashMap<String, u64>,
}

impl Agent {
    fn handle(&mut self, message: &Value) {
        let (id, params) = (&message["id"], &message["params"]);
        match message["method"].as_str().unwrap_or_default() {
            method if id.is_null() || method.is_empty() => {}
            _ if message["jsonrpc"] != "2.0" => self.stage.error(id, INVALID_REQUEST, "no jsonrpc 2.0"),
            "initialize" => self.initialize(id, params),
            "authenticate" => send!(self.stage, {"id": id, "result": {}}),
            "session/new" => self.start_session(id, params),
            "session/prompt" => self.prompt(id, params),
            _ => self.stage.error(id, METHOD_NOT_FOUND, "Method not found"),
        }
    }

    fn initialize(&self, id: &Value, params: &Value) {
        let info = json!({"name": "standin", "title": "Standin", "version": "0.0.0"});
        let capabilities = json!({"loadSession": false, "mcpCapabilities": {"http": false, "sse": false},
            "promptCapabilities": {"image": false, "audio": false, "embeddedContext": false}});
        if !params["protocolVersion"].is_u64() {
            self.stage.error(id, INVALID_PARAMS, "Invalid params: protocolVersion");
        } else if switch("v2").is_some() {
            let result = json!({"protocolVersion": 2, "capabilities": {"session": {}}, "info": info});
            send!(self.stage, {"id": id, "result": result});
        } else {
            send!(self.stage, {"id": id, "result": {"protocolVersion": 1, "agentCapabilities": capabilities,
                "agentInfo": info, "authMethods": [{"id": "standin-login", "name": "Log in"}]}});
        }
    }

    fn start_session(&mut self, id: &Value, params: &Value) {
        let absolute = params["cwd"].as_str().is_some_and(|cwd| cwd.starts_with('/'));
        if !absolute || !params["mcpServers"].is_array() {
            let why = "Invalid params: cwd (absolute), mcpServers";
            return self.stage.error(id, INVALID_PARAMS, why);
        }
        if switch("ask_auth").is_some() {
            let why = "Authentication required";
            return self.stage.error(id, AUTH_REQUIRED, why);
        }
        let session = uuid();
        send!(self.stage, {"id": id, "result": {"sessionId": session}});
        let commands = json!({"sessionUpdate": "available_commands_update", "availableCommands": []});
        self.stage.line(&update(&session, commands));
        self.sessions.insert(session, 0);
    }

    fn prompt(&mut self, id: &Value, params: &Value) {
        let script = Script::parse(&params["prompt"]);
        let session = params["sessionId"].as_str().unwrap_or_default();
        let Some(count) = self.sessions.get_mut(session) else {
            return self.stage.error(id, INVALID_PARAMS, "Invalid params: sessionId");
        };
        *count += 1;
        let count = *count;
        if script.has("silence") {
            return self.stage.silence();
        }
        self.stage.current = session.to_owned();
        self.stage.begin(&script);
        if script.has("foreign") {
            self.stage.line(&update(&uuid(), text("not yours")));
            send!(self.stage, {"id": 987_654_321, "result": {"stopReason": "end_turn"}});
        }
        let speak = |stage: &Stage, text: &str| speak(stage, &script, session, text);
        match self.stage.play(&script, count, permission(session), speak) {
            Ok(End::Done(_)) => send!(self.stage, {"id": id, "result": {"stopReason": "end_turn"}}),
            Ok(End::Failed) => self.stage.error(id, INTERNAL_ERROR, "standin was told to fail"),
            Ok(End::Open) => {}
            Err(_) => send!(self.stage, {"id": id, "result": {"stopReason": "cancelled"}}),
        }
        self.stage.current.clear();
    }
}

fn permission(session: &str) -> (&'static str, Value) {
    let call =
        json!({"toolCallId": "call_1", "title": "rm -r build", "kind": "execute", "status": "pending"});
    let options = json!([
        {"optionId": "yes-always", "name": "Always allow", "kind": "allow_always"},
        {"optionId": "yes-once", "name": "Allow once", "kind": "allow_once"},
        {"optionId": "no-once", "name": "Reject", "kind": "reject_once"}
    ]);
    let params = json!({"sessionId": session, "toolCall": call, "options": options});
    ("session/request_permission", params)
}

fn speak(stage: &Stage, script: &Script, session: &str, reply: &str) {
    let pieces = script.pieces(reply, 2);
    let chunks: Vec<Value> = pieces.iter().map(|piece| update(session, text(piece))).collect();
    stage.say(script, &chunks, |at| update(session, aside(at)));
}

fn update(session: &str, update: Value) -> Value {
    json!({"method": "session/update", "params": {"sessionId": session, "update": update}})
}

fn text(text: &str) -> Value {
    json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}})
}

fn aside(at: usize) -> Value {
    let entries = json!([{"content": "not yours", "priority": "low", "status": "pending"}]);
    match at % 2 {
        0 => json!({"sessionUpdate": "tool_call", "toolCallId": "call_9", "title": "other", "kind": "read"}),
        _ => json!({"sessionUpdate": "plan", "entries": entries}),
    }
}
