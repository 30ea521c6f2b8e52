//! Plays the Gemini CLI: `gemini -p PROMPT` as a one-shot, `gemini --acp` as an ACP agent.

use serde_json::{Value, json};

use crate::Args;
use crate::stage::{one_shot, uuid, with};

pub(crate) fn run(args: &Args) {
    if args.has("--acp") || args.has("--experimental-acp") {
        return crate::acp::run();
    }
    let given = args.value("-p").or(args.value("--prompt"));
    let prompt = given.map_or_else(|| args.prompt(), str::to_owned);
    let format = args.value("--output-format").or(args.value("-o"));
    one_shot(&prompt, |pieces| match format {
        Some("stream-json") => stream(&prompt, pieces),
        Some("json") => [vec![], vec![whole(pieces)], vec![]],
        _ => [vec![], vec![json!(pieces.concat())], vec![]],
    })
}

fn whole(pieces: &[String]) -> Value {
    let error = json!({"type": "Error", "message": "standin was told to fail", "code": 3});
    match pieces {
        [] => json!({"session_id": uuid(), "error": error}),
        _ => json!({"session_id": uuid(), "response": pieces.concat(), "stats": {"models": {}}}),
    }
}

fn stream(prompt: &str, pieces: &[String]) -> [Vec<Value>; 3] {
    let said = |piece| event("message", json!({"role": "assistant", "content": piece, "delta": true}));
    let error = json!({"type": "Error", "message": "standin was told to fail"});
    let end = match pieces {
        [] => json!({"status": "error", "error": error}),
        _ => json!({"status": "success", "stats": {"total_tokens": 2, "duration_ms": 1, "tool_calls": 0}}),
    };
    let init = event("init", json!({"session_id": uuid(), "model": "standin"}));
    let asked = event("message", json!({"role": "user", "content": prompt}));
    let reply = pieces.iter().map(said).collect();
    [vec![init, asked], reply, vec![event("result", end)]]
}

fn event(kind: &str, fields: Value) -> Value {
    with(json!({"type": kind, "timestamp": "2026-01-01T00:00:00.000Z"}), fields)
}
