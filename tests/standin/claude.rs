//! Plays Claude Code's print mode: `claude -p`, one-shot or with `--input-format stream-json`.

use serde_json::{Value, json};

use crate::Args;
use crate::script::Script;
use crate::stage::{End, Stage, one_shot, refuse, send, uuid, with};

pub(crate) fn run(args: &Args) {
    let format = args.value("--output-format").unwrap_or("text");
    let talks = args.value("--input-format") == Some("stream-json");
    if !args.has("-p") && !args.has("--print") {
        refuse("claude is played in print mode only");
    }
    if format == "stream-json" && !args.has("--verbose") || format != "stream-json" && talks {
        refuse("stream-json input needs stream-json output, and that needs --verbose");
    }
    let session = args.value("--session-id").or(args.value("--resume"));
    let session = Session(session.map_or_else(uuid, str::to_owned));
    if !talks {
        one_shot(&args.prompt(), |pieces| session.answer_once(format, pieces));
    }
    let partial = args.has("--include-partial-messages");
    let (stage, count) = (Stage::open(false), 0);
    Claude { stage, session, partial, count }.converse();
}

struct Claude {
    stage: Stage,
    session: Session,
    partial: bool,
    count: u64,
}

impl Claude {
    fn converse(mut self) {
        loop {
            let message = self.stage.next();
            match message["type"].as_str() {
                Some("user") => self.turn(&message),
                Some("control_request") => self.control(&message),
                _ => {}
            }
        }
    }

    fn control(&self, message: &Value) {
        let subtype = message["request"]["subtype"].as_str().unwrap_or_default();
        let error = format!("Unsupported control request subtype: {subtype}");
        let response = match subtype {
            "interrupt" => json!({"subtype": "success", "response": {"still_queued": []}}),
            "initialize" => json!({"subtype": "success", "response": {"commands": [], "models": []}}),
            _ => json!({"subtype": "error", "error": error}),
        };
        let response = with(response, json!({"request_id": message["request_id"]}));
        send!(self.stage, {"type": "control_response", "response": response});
    }

    fn turn(&mut self, message: &Value) {
        let script = Script::parse(&message["message"]["content"]);
        self.count += 1;
        if script.has("silence") {
            return self.stage.silence();
        }
        self.stage.begin(&script);
        self.stage.line(&self.session.init());
        self.foreign(&script);
        let speak = |stage: &Stage, text: &str| self.session.speak(stage, &script, text, self.partial);
        match self.stage.play(&script, self.count, ("", Value::Null), speak) {
            Ok(End::Done(text)) => self.complete(&script, &text, &message["uuid"]),
            Ok(End::Failed) => self.stage.line(&self.session.failure()),
            Ok(End::Open) => {}
            Err(interrupt) => self.aborted(&interrupt),
        }
    }

    fn complete(&self, script: &Script, text: &str, uuid: &Value) {
        let mut result = self.session.success(text);
        if !uuid.is_null() && !script.has("no_uuid") {
            let mine = json!({"user_message_uuid": uuid, "user_message_uuids": [uuid]});
            result = with(result, mine);
        }
        if script.has("api_error") {
            result = with(result, json!({"is_error": true, "terminal_reason": "api_error"}));
        }
        if script.has("max_turns") {
            let errors = ["Reached maximum number of turns (1)"];
            let why = json!({"terminal_reason": "max_turns", "errors": errors});
            result = self.session.result("error_max_turns", why);
        }
        self.stage.line(&result);
    }

    fn foreign(&self, script: &Script) {
        let other = self.session.success("not yours");
        if script.has("foreign") {
            let origin = json!({"origin": {"kind": "task-notification"}, "num_turns": 0});
            self.stage.line(&self.session.assistant("msg_other", "not yours"));
            self.stage.line(&with(other.clone(), origin));
        }
        if script.has("foreign_uuid") {
            let other = with(other, json!({"user_message_uuid": uuid()}));
            self.stage.line(&other);
        }
    }

    fn aborted(&self, interrupt: &Value) {
        self.control(interrupt);
        let text = json!([{"type": "text", "text": "[Request interrupted by user]"}]);
        let note = json!({"type": "user", "message": {"role": "user", "content": text}});
        self.stage.line(&self.session.event(note));
        let why = json!({"terminal_reason": "aborted_streaming", "errors": [
            "[ede_diagnostic] result_type=user last_content_type=n/a stop_reason=null"]});
        let result = self.session.result("error_during_execution", why);
        self.stage.line(&result);
    }
}

/// The session's id, of which every event is marked.
struct Session(String);

impl Session {
    fn answer_once(&self, format: &str, pieces: &[String]) -> [Vec<Value>; 3] {
        let text = pieces.concat();
        let fails = pieces.is_empty();
        match format {
            "text" => [vec![], vec![json!(text)], vec![]],
            "json" if fails => [vec![], vec![self.failure()], vec![]],
            "json" => [vec![], vec![self.success(&text)], vec![]],
            _ if fails => [vec![self.init()], vec![], vec![self.failure()]],
            _ => {
                let spoken = vec![self.assistant("msg_1", &text)];
                [vec![self.init()], spoken, vec![self.success(&text)]]
            }
        }
    }

    /// The text: with `partial` as deltas and one `assistant` event, without as such an event for each piece.
    fn speak(&self, stage: &Stage, script: &Script, text: &str, partial: bool) {
        let id = format!("msg_{}", uuid());
        let pieces = script.pieces(text, if partial { 2 } else { 1 });
        let part = |piece: &String| {
            if partial {
                return self.delta(piece);
            }
            self.assistant(&id, piece)
        };
        let parts: Vec<Value> = pieces.iter().map(part).collect();
        stage.say(script, &parts, |at| self.aside(at));
        if partial {
            stage.line(&self.assistant(&id, text));
        }
    }

    fn aside(&self, at: usize) -> Value {
        let aside = match at % 3 {
            0 => json!({"subtype": "hook_started", "hook_name": "Stop", "hook_event": "Stop"}),
            1 => json!({"subtype": "task_notification", "task_id": "b1", "status": "completed"}),
            _ => json!({"subtype": "status", "status": "requesting"}),
        };
        self.event(with(json!({"type": "system"}), aside))
    }

    fn init(&self) -> Value {
        let event = json!({"type": "system", "subtype": "init", "cwd": "/", "model": "standin", "tools": [],
            "mcp_servers": [], "permissionMode": "default", "slash_commands": [], "apiKeySource": "none",
            "claude_code_version": "2.1.263", "output_style": "default", "plugins": [], "skills": [],
            "capabilities": ["interrupt_receipt_v1", "interrupt_cancel_queued_v1", "msg_lifecycle_v1"]});
        self.event(event)
    }

    fn assistant(&self, id: &str, text: &str) -> Value {
        let content = json!([{"type": "text", "text": text}]);
        let message = json!({"id": id, "type": "message", "role": "assistant", "model": "standin",
            "content": content, "stop_reason": null});
        self.event(json!({"type": "assistant", "message": message}))
    }

    fn delta(&self, text: &str) -> Value {
        let delta = json!({"type": "text_delta", "text": text});
        let event = json!({"type": "content_block_delta", "index": 0, "delta": delta});
        self.event(json!({"type": "stream_event", "event": event}))
    }

    fn success(&self, text: &str) -> Value {
        let extra = json!({"result": text, "stop_reason": "end_turn", "terminal_reason": "completed"});
        self.result("success", extra)
    }

    fn failure(&self) -> Value {
        let extra = json!({"terminal_reason": "model_error", "errors": ["standin was told to fail"]});
        self.result("error_during_execution", extra)
    }

    fn result(&self, subtype: &str, extra: Value) -> Value {
        let base = json!({"type": "result", "subtype": subtype, "is_error": subtype != "success",
            "duration_ms": 1, "duration_api_ms": 1, "num_turns": 1, "stop_reason": null,
            "total_cost_usd": 0.001, "usage": {"input_tokens": 1, "output_tokens": 1}, "modelUsage": {},
            "permission_denials": [], "session_id": self.0, "uuid": uuid()});
        with(base, extra)
    }

    fn event(&self, event: Value) -> Value {
        let mark = json!({"session_id": self.0, "uuid": uuid(), "parent_tool_use_id": null});
        with(event, mark)
    }
}
