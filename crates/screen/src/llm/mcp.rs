//! The Model Context Protocol: JSON-RPC messages over HTTP, SSE or WebSocket.

use super::assembler::{Reading, text, text_arguments, unknown, value_arguments};
use super::json::{Kind, Tape, Value, quote};
use super::model::{CallId, Event, RunsAt, ToolCall, ToolDefinition, ToolResult};
use super::request::{all_text, definition};

/// What a client sent to an MCP server.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct McpRequest {
    /// The method: `tools/call`, `resources/read` …; empty for a response.
    pub method: String,
    /// The request's `id` as JSON text; `None` for a notification.
    pub id: Option<String>,
    /// The call, if the method is `tools/call`.
    pub call: Option<ToolCall>,
    /// Every text of the parameters, joined by LF.
    pub text: String,
}

/// Reads what a client sends: one message, or a batch.
///
/// Empty if it isn't JSON-RPC.
///
/// ```
/// use tollgate_screen::llm::mcp;
///
/// let body = br#"{"jsonrpc":"2.0","id":7,"method":"tools/call",
///                 "params":{"name":"bash","arguments":{"command":"ls"}}}"#;
/// let requests = mcp::read_requests(body);
/// let call = requests[0].call.as_ref().unwrap();
/// assert_eq!(call.name, "bash");
/// let refusal = mcp::refusal(requests[0].id.as_deref().unwrap(), "not allowed here");
/// assert!(refusal.starts_with(br#"{"jsonrpc":"2.0","id":7,"result":"#));
/// ```
#[must_use]
pub fn read_requests(body: &[u8]) -> Vec<McpRequest> {
    let mut tape = Tape::default();
    let Ok(root) = tape.read(body) else {
        return Vec::new();
    };
    messages(root)
        .filter(|message| message.get("jsonrpc").is_some())
        .enumerate()
        .map(|(at, message)| {
            let method = text(message, "method");
            let params = message.get("params");
            let call = params
                .filter(|_| method == "tools/call")
                .map(|params| ToolCall {
                    call: CallId(super::assembler::position(at)),
                    id: String::new(),
                    name: text(params, "name"),
                    arguments: params
                        .get("arguments")
                        .map_or_else(|| text_arguments(String::new()), value_arguments),
                    runs_at: RunsAt::Client,
                });
            McpRequest {
                id: message
                    .get("id")
                    .map(|id| String::from_utf8_lossy(id.raw()).into_owned()),
                call,
                text: params.map(all_text).unwrap_or_default(),
                method,
            }
        })
        .collect()
}

/// The answer to a `tools/call` that was refused: a result that says so, not a protocol error, so
/// that the model reads it and goes on.
///
/// `id` is the request's, as JSON text.
#[must_use]
pub fn refusal(id: &str, reason: &str) -> Vec<u8> {
    let mut out = b"{\"jsonrpc\":\"2.0\",\"id\":".to_vec();
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(b",\"result\":{\"content\":[{\"type\":\"text\",\"text\":");
    quote(reason, &mut out);
    // `resultType` is demanded since protocol version 2026-07-28, and passed over before.
    out.extend_from_slice(b"}],\"isError\":true,\"resultType\":\"complete\"}}");
    out
}

fn messages<'t>(root: Value<'t>) -> impl Iterator<Item = Value<'t>> {
    let single = (root.kind() != Kind::Array).then_some(root);
    single.into_iter().chain(root.items())
}

/// Reads what a server sends.
pub(super) fn read(root: Value<'_>, reading: &mut Reading) {
    for message in messages(root) {
        if let Some(error) = message.get("error") {
            reading.events.push(Event::Error {
                message: text(error, "message"),
            });
        }
        let Some(result) = message.get("result") else {
            if message.get("method").is_some() {
                // Sampling, elicitation, notifications: text that a server chose.
                unknown(message.raw(), reading);
            }
            continue;
        };
        if let Some(tools) = result.get("tools") {
            reading
                .events
                .push(Event::Tools(tools.items().map(tool).collect()));
        } else {
            reading.events.push(Event::ToolResult(ToolResult {
                call_id: message
                    .get("id")
                    .map(|id| String::from_utf8_lossy(id.raw()).into_owned())
                    .unwrap_or_default(),
                text: all_text(result),
                is_error: result.get("isError").is_some_and(Value::is_true),
                span: result.span(),
            }));
        }
    }
}

fn tool(value: Value<'_>) -> ToolDefinition {
    definition(value, text(value, "name"))
}
