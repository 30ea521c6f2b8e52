//! Claude Code's stream-json: which result answers which message.

use serde_json::{Value, json};

use super::lines::{Lines, read_json};
use super::{CompleteBy, Done, Message, Out, Talk};

/// A conversation with `claude -p --input-format stream-json --output-format stream-json --verbose`.
#[derive(Debug, Default)]
pub(super) struct Claude {
    lines: Lines,
    current: Option<Current>,
    interrupts: u64,
}

#[derive(Debug)]
struct Current {
    uuid: String,
    stream: bool,
    /// Texts come in pieces, so whole ones repeat them.
    in_pieces: bool,
    streamed: bool,
    /// What it has said, kept in case that the result never comes.
    said: String,
}

impl Talk for Claude {
    fn open(&mut self, _out: &mut Out) {}

    /// It says nothing before the first message.
    fn is_open(&self) -> bool {
        true
    }

    fn send(&mut self, message: Message, out: &mut Out) -> Result<(), String> {
        let uuid = uuid(message.token);
        out.line(&json!({
            "type": "user",
            "uuid": uuid,
            "message": { "role": "user", "content": [{ "type": "text", "text": message.text }] },
            "parent_tool_use_id": null,
        }));
        self.current = Some(Current {
            uuid,
            stream: message.stream,
            in_pieces: false,
            streamed: false,
            said: String::new(),
        });
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], out: &mut Out) {
        let (lines, current) = (&mut self.lines, &mut self.current);
        let fed = lines.feed(bytes, &mut |line| {
            // A line that is not JSON is somebody else's word.
            if let Some(event) = read_json(line) {
                hear(&event, current, out);
            }
        });
        out.broken = fed.err().map(|error| error.why());
    }

    fn cut_off(&mut self, out: &mut Out) {
        let said = self.current.take().map(|current| current.said).unwrap_or_default();
        out.text.extend_from_slice(said.as_bytes());
    }

    fn interrupt(&mut self, out: &mut Out) -> bool {
        self.interrupts += 1;
        let id = format!("interrupt-{}", self.interrupts);
        out.line(
            &json!({ "type": "control_request", "request_id": id, "request": { "subtype": "interrupt" } }),
        );
        true
    }
}

/// A version 4 UUID (RFC 9562) of random bits.
fn uuid(token: u128) -> String {
    let bits = token & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn hear(event: &Value, current: &mut Option<Current>, out: &mut Out) {
    match event["type"].as_str() {
        Some("control_request") => refuse(event, out),
        Some("result") => {
            if let Some(mine) = current.take_if(|current| is_answer(event, &current.uuid)) {
                finish(event, &mine, out);
            }
        }
        // What its own agents say is not for whoever asked it.
        Some("stream_event") if event["parent_tool_use_id"].is_null() => {
            let delta = &event["event"]["delta"];
            if let Some((current, text)) = current.as_mut().zip(delta["text"].as_str()) {
                current.in_pieces = true;
                current.say(text, out);
            }
        }
        Some("assistant") if event["parent_tool_use_id"].is_null() => {
            let Some(current) = current.as_mut().filter(|current| !current.in_pieces) else { return };
            for block in event["message"]["content"].as_array().into_iter().flatten() {
                current.say(block["text"].as_str().unwrap_or_default(), out);
            }
        }
        _ => {}
    }
}

impl Current {
    fn say(&mut self, text: &str, out: &mut Out) {
        if self.stream {
            self.streamed |= !text.is_empty();
            out.text.extend_from_slice(text.as_bytes());
        } else {
            self.said.push_str(text);
        }
    }
}

/// Nobody is here to allow anything or to run hooks; unanswered, it would wait for ever.
fn refuse(event: &Value, out: &mut Out) {
    let error = "agent-run answers no such request";
    out.line(&json!({
        "type": "control_response",
        "response": { "subtype": "error", "request_id": event["request_id"], "error": error },
    }));
}

/// Whether the result `event` is the one for the message `uuid`: it names that (since 2.1.216), or is not that of a
/// background task.
fn is_answer(event: &Value, uuid: &str) -> bool {
    let named = event["user_message_uuids"].as_array();
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        return named.iter().any(|it| it == uuid);
    }
    if let Some(named) = event["user_message_uuid"].as_str() {
        return named == uuid;
    }
    let of_task = event["origin"]["kind"] == "task-notification";
    let of_nothing = event["num_turns"] == 0 && event["subtype"] == "success";
    !of_task && !of_nothing
}

fn finish(event: &Value, mine: &Current, out: &mut Out) {
    if !(mine.stream && mine.streamed) {
        out.text.extend_from_slice(event["result"].as_str().unwrap_or_default().as_bytes());
    }
    let mut details = event.clone();
    details.as_object_mut().and_then(|details| details.remove("result"));
    let failed = why_failed(event);
    out.done = Some(Done { failed, details: Some(details), ..Done::well(CompleteBy::ResultEvent) });
}

/// Returns why a result is none: `subtype`, `is_error`, `terminal_reason` and `stop_reason` can each say so.
fn why_failed(event: &Value) -> Option<String> {
    let text = |name: &str| event[name].as_str();
    let errors = event["errors"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let errors: Vec<&str> = errors.collect();
    let why = match (text("subtype"), text("terminal_reason"), text("stop_reason")) {
        (Some(subtype), reason, _) if subtype != "success" => {
            reason.filter(|reason| *reason != "completed").unwrap_or(subtype)
        }
        (_, Some(reason), _) if reason != "completed" => reason,
        (_, _, Some(reason @ ("tool_use" | "pause_turn"))) => reason,
        _ if event["is_error"] == true => text("result").unwrap_or("error"),
        _ => return None,
    };
    Some(if errors.is_empty() { why.to_owned() } else { format!("{why}: {}", errors.join("; ")) })
}
