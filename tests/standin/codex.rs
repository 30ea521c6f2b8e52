//! Plays Codex: `codex app-server` (JSON-RPC lines without a "jsonrpc" field) and `codex exec`.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::Args;
use crate::script::Script;
use crate::stage::{End, Stage, one_shot, refuse, send, uuid, with};

/// The real server answers -32600 here, with the same words, and asks for `initialize` only.
const NOT_INITIALIZED: i64 = -32002;
const INVALID_REQUEST: i64 = -32600;
const OVERLOADED: i64 = -32001;

pub(crate) fn run(args: &Args) {
    match args.0.first().map(String::as_str) {
        Some("app-server") => Server::open().serve(),
        Some("exec") => exec(Args(args.0[1..].to_vec())),
        _ => refuse("of codex, app-server and exec are played"),
    }
}

fn exec(mut args: Args) {
    args.0.retain(|arg| arg != "-");
    one_shot(&args.prompt(), |pieces| {
        let text = pieces.concat();
        if !args.has("--json") {
            return [vec![], vec![json!(text)], vec![]];
        }
        let thread = json!({"type": "thread.started", "thread_id": uuid()});
        let before = vec![thread, json!({"type": "turn.started"})];
        let item = json!({"id": "item_0", "type": "agent_message", "text": text});
        let usage = json!({"input_tokens": 1, "cached_input_tokens": 0, "output_tokens": 1});
        if pieces.is_empty() {
            return [before, vec![], vec![json!({"type": "turn.failed", "error": failure()})]];
        }
        let item = json!({"type": "item.completed", "item": item});
        [before, vec![item], vec![json!({"type": "turn.completed", "usage": usage})]]
    })
}

struct Server {
    stage: Stage,
    /// Whether `initialize` was answered, and whether `initialized` followed.
    greeted: bool,
    ready: bool,
    threads: HashMap<String, u64>,
    was_overloaded: bool,
}

impl Server {
    fn open() -> Server {
        Server {
            stage: Stage::open(false),
            greeted: false,
            ready: false,
            threads: HashMap::new(),
            was_overloaded: false,
        }
    }

    fn serve(mut self) {
        loop {
            let message = self.stage.next();
            let (id, params) = (&message["id"], &message["params"]);
            match message["method"].as_str().unwrap_or_default() {
                "initialized" => self.ready = self.greeted,
                method if id.is_null() || method.is_empty() => {}
                "initialize" => self.initialize(id, &params["clientInfo"]),
                _ if !self.ready => self.stage.error(id, NOT_INITIALIZED, "Not initialized"),
                "thread/start" => self.start_thread(id),
                "turn/start" => self.start_turn(id, params),
                "turn/interrupt" => self.refuse(id, "no active turn to interrupt"),
                method => self.refuse(id, &format!("Invalid request: unknown variant `{method}`")),
            }
        }
    }

    fn initialize(&mut self, id: &Value, client: &Value) {
        if self.greeted {
            return self.refuse(id, "Already initialized");
        }
        if !client["name"].is_string() || !client["version"].is_string() {
            return self.refuse(id, "Invalid request: clientInfo needs name and version");
        }
        self.greeted = true;
        send!(self.stage, {"id": id, "result": {"userAgent": "standin/0.169.0", "codexHome": "/nowhere",
            "platformFamily": "unix", "platformOs": std::env::consts::OS}});
    }

    fn start_thread(&mut self, id: &Value) {
        let thread = uuid();
        self.threads.insert(thread.clone(), 0);
        let thread = json!({"id": thread, "sessionId": thread, "preview": "", "ephemeral": false, "turns": [],
            "modelProvider": "openai", "createdAt": 0, "updatedAt": 0, "status": {"type": "idle"},
            "path": null, "cwd": "/", "cliVersion": "0.169.0", "source": "appServer", "name": null});
        send!(self.stage, {"id": id, "result": {"thread": thread, "model": "standin", "cwd": "/",
            "modelProvider": "openai", "approvalPolicy": "never", "sandbox": {"type": "dangerFullAccess"}}});
        send!(self.stage, {"method": "thread/started", "params": {"thread": thread}});
    }

    fn start_turn(&mut self, id: &Value, params: &Value) {
        let script = Script::parse(&params["input"]);
        let thread = params["threadId"].as_str().unwrap_or_default();
        if script.has("overloaded") && !std::mem::replace(&mut self.was_overloaded, true) {
            let why = "Server overloaded; retry later.";
            return self.stage.error(id, OVERLOADED, why);
        }
        let Some(count) = self.threads.get_mut(thread) else {
            return self.refuse(id, &format!("thread not found: {thread}"));
        };
        *count += 1;
        let count = *count;
        if script.has("silence") {
            return self.stage.silence();
        }
        let turn = Turn(thread.to_owned(), uuid());
        self.stage.current = turn.1.clone();
        send!(self.stage, {"id": id, "result": {"turn": turn.object("inProgress")}});
        turn.announce(&self.stage, &params["input"]);
        self.stage.begin(&script);
        if script.has("foreign") {
            Turn(uuid(), uuid()).play_foreign(&self.stage);
        }
        self.play(&script, &turn, count);
        self.stage.current.clear();
    }

    fn play(&mut self, script: &Script, turn: &Turn, count: u64) {
        let approval = turn.about(json!({"itemId": "call_1", "reason": "a test", "command": "rm -r build",
            "cwd": "/", "availableDecisions": ["accept", "acceptForSession", "decline", "cancel"]}));
        let ask = ("item/commandExecution/requestApproval", approval);
        let speak = |stage: &Stage, text: &str| turn.speak(stage, script, text);
        match self.stage.play(script, count, ask, speak) {
            Ok(End::Done(_)) => turn.complete(&self.stage, "completed"),
            Ok(End::Failed) => {
                let error = turn.about(json!({"error": failure(), "willRetry": false}));
                send!(self.stage, {"method": "error", "params": error});
                turn.complete(&self.stage, "failed");
            }
            Ok(End::Open) => {}
            Err(interrupt) => {
                send!(self.stage, {"id": interrupt["id"], "result": {}});
                turn.complete(&self.stage, "interrupted");
            }
        }
    }

    fn refuse(&self, id: &Value, why: &str) {
        self.stage.error(id, INVALID_REQUEST, why);
    }
}

/// A turn, by its thread's id and its own.
struct Turn(String, String);

impl Turn {
    fn announce(&self, stage: &Stage, input: &Value) {
        self.status(stage, json!({"type": "active", "activeFlags": []}));
        let turn = self.object("inProgress");
        send!(stage, {"method": "turn/started", "params": {"threadId": self.0, "turn": turn}});
        let item = json!({"type": "userMessage", "id": uuid(), "content": input});
        self.item(stage, "started", &item);
        self.item(stage, "completed", &item);
    }

    fn speak(&self, stage: &Stage, script: &Script, text: &str) {
        let id = format!("msg_{}", uuid());
        self.item(stage, "started", &message(&id, ""));
        let pieces = script.pieces(text, 2);
        let deltas: Vec<Value> = pieces.iter().map(|piece| self.delta(&id, piece)).collect();
        stage.say(script, &deltas, |at| self.aside(at));
        self.item(stage, "completed", &message(&id, text));
    }

    fn complete(&self, stage: &Stage, status: &str) {
        self.status(stage, json!({"type": "idle"}));
        let turn = self.object(status);
        send!(stage, {"method": "turn/completed", "params": {"threadId": self.0, "turn": turn}});
    }

    fn play_foreign(&self, stage: &Stage) {
        stage.line(&self.delta("msg_other", "not yours"));
        self.item(stage, "completed", &message("msg_other", "not yours"));
        self.complete(stage, "completed");
    }

    fn aside(&self, at: usize) -> Value {
        let limits = json!({"primary": {"usedPercent": 1, "windowDurationMins": 300, "resetsAt": null}});
        let status = json!({"threadId": self.0, "status": {"type": "active", "activeFlags": []}});
        match at % 2 {
            0 => json!({"method": "account/rateLimits/updated", "params": {"rateLimits": limits}}),
            _ => json!({"method": "thread/status/changed", "params": status}),
        }
    }

    fn status(&self, stage: &Stage, status: Value) {
        let params = json!({"threadId": self.0, "status": status});
        send!(stage, {"method": "thread/status/changed", "params": params});
    }

    fn item(&self, stage: &Stage, step: &str, item: &Value) {
        let params = self.about(json!({"item": item}));
        send!(stage, {"method": format!("item/{step}"), "params": params});
    }

    fn delta(&self, item: &str, text: &str) -> Value {
        let params = self.about(json!({"itemId": item, "delta": text}));
        json!({"method": "item/agentMessage/delta", "params": params})
    }

    fn object(&self, status: &str) -> Value {
        let error = (status == "failed").then(failure);
        json!({"id": self.1, "items": [], "status": status, "error": error, "startedAt": null,
            "completedAt": null, "durationMs": null})
    }

    /// The parameters of a message about this turn.
    fn about(&self, params: Value) -> Value {
        with(params, json!({"threadId": self.0, "turnId": self.1}))
    }
}

fn message(id: &str, text: &str) -> Value {
    json!({"type": "agentMessage", "id": id, "text": text, "phase": "final_answer"})
}

fn failure() -> Value {
    json!({"message": "standin was told to fail", "codexErrorInfo": "other", "additionalDetails": null})
}
