//! JSON-RPC, a line a message: what requests, responses and notifications have in common, and the plain protocol, in
//! which a message is a request.

use serde_json::{Value, json};

use super::lines::{Lines, read_json};
use super::{CompleteBy, Done, Message, Out, Talk};

/// The code for a method that is not there (JSON-RPC 2.0, section 5.1).
pub(super) const NO_METHOD: i64 = -32601;

/// One message of the other side.
#[derive(Debug)]
pub(super) enum Heard<'a> {
    /// It asks something, and waits for the answer.
    Request { id: &'a Value, method: &'a str, params: &'a Value },
    /// It tells something.
    Notification { method: &'a str, params: &'a Value },
    /// It answers the request with this number.
    Response { id: u64, result: Result<&'a Value, &'a Value> },
}

/// Reads one; `None` for anything else.
pub(super) fn hear(message: &Value) -> Option<Heard<'_>> {
    let params = &message["params"];
    // Some write null for what is not there.
    let given = |name: &str| message.get(name).filter(|value| !value.is_null());
    match (message["method"].as_str(), given("id")) {
        // Their numbers and ours overlap, so a method decides.
        (Some(method), Some(id)) => Some(Heard::Request { id, method, params }),
        (Some(method), None) => Some(Heard::Notification { method, params }),
        (None, Some(id)) => {
            let result = given("error").map_or(Ok(&message["result"]), Err);
            Some(Heard::Response { id: id.as_u64()?, result })
        }
        (None, None) => None,
    }
}

/// Returns what an `error` says.
pub(super) fn error_text(error: &Value) -> String {
    let message = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
    match error["code"].as_i64() {
        Some(code) => format!("{message} ({code})"),
        None => message,
    }
}

/// A conversation in plain JSON-RPC 2.0.
#[derive(Debug, Default)]
pub(super) struct JsonRpc {
    lines: Lines,
    last: u64,
    current: Option<u64>,
}

impl Talk for JsonRpc {
    fn open(&mut self, _out: &mut Out) {}

    fn is_open(&self) -> bool {
        true
    }

    fn send(&mut self, message: Message, out: &mut Out) -> Result<(), String> {
        let mut request: Value = match serde_json::from_str(message.text) {
            Ok(Value::String(method)) => json!({ "method": method }),
            Ok(request) => request,
            Err(_)
                if !message.text.is_empty() && message.text.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                json!({ "method": message.text })
            }
            Err(error) => {
                return Err(format!("the message is neither a method nor a request in JSON: {error}"));
            }
        };
        if !request["method"].is_string() {
            return Err("the message has no \"method\"".to_owned());
        }
        self.last += 1;
        request["jsonrpc"] = json!("2.0");
        request["id"] = json!(self.last);
        self.current = Some(self.last);
        out.line(&request);
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], out: &mut Out) {
        let (lines, current) = (&mut self.lines, &mut self.current);
        let fed = lines.feed(bytes, &mut |line| {
            let Some(message) = read_json(line) else { return };
            match hear(&message) {
                Some(Heard::Request { id, .. }) => {
                    let error = json!({ "code": NO_METHOD, "message": "agent-run answers no requests" });
                    out.line(&json!({ "jsonrpc": "2.0", "id": id, "error": error }));
                }
                Some(Heard::Response { id, result }) if *current == Some(id) => {
                    *current = None;
                    out.text.extend_from_slice(result.unwrap_or_else(|error| error).to_string().as_bytes());
                    let failed = result.err().map(error_text);
                    out.done = Some(Done { failed, ..Done::well(CompleteBy::RpcResponse) });
                }
                _ => {}
            }
        });
        out.broken = fed.err().map(|error| error.why());
    }
}
