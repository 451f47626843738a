//! What a provider that keeps the history must be told about calls that the client never saw.

use std::collections::VecDeque;

use super::Blocked;
use super::edit::Splice;
use crate::llm::Dialect;
use crate::llm::json::{Kind, Tape, Value, quoted};

/// Calls that were refused, by the answer that they were in: bounded, the oldest go first.
#[derive(Debug, Clone, Default)]
pub struct BlockedCalls {
    calls: VecDeque<(String, Blocked)>,
}

impl BlockedCalls {
    /// How many calls are remembered.
    pub const MAX: usize = 1024;

    /// Remembers a call, if its answer has an identifier to continue from.
    pub fn remember(&mut self, blocked: Blocked) {
        let Some(response) = blocked.response_id.clone() else {
            return;
        };
        if self.calls.len() >= Self::MAX {
            self.calls.pop_front();
        }
        self.calls.push_back((response, blocked));
    }

    /// The calls that were refused in this answer, in order.
    pub fn of_response<'a>(&'a self, response: &'a str) -> impl Iterator<Item = &'a Blocked> {
        self.calls
            .iter()
            .filter(move |(id, _)| id == response)
            .map(|(_, blocked)| blocked)
    }

    /// How many calls are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }
}

/// The body of a request that continues an answer in which calls were refused, with what the provider
/// needs to go on. `None` if the request is good as it is.
///
/// Where the client resends the whole history (every format but Responses with
/// `previous_response_id`), it resends the refusal, and nothing is missing. Where the provider keeps
/// the history, it waits for the outputs of calls that the client never saw, and answers 400 without
/// them: they are put in front of `input`. Formats that sign their bodies are never rewritten.
///
/// The body may be that of an HTTP request, or a `response.create` message on a WebSocket.
///
/// ```
/// use tollgate_screen::gate::{Blocked, BlockedCalls, repair_request};
/// use tollgate_screen::llm::{CallId, Dialect};
///
/// let mut blocked = BlockedCalls::default();
/// blocked.remember(Blocked {
///     call: CallId(0),
///     id: "call_a".into(),
///     name: "bash".into(),
///     response_id: Some("resp_1".into()),
///     reason: "no shell".into(),
///     free_text: false,
///     by_failure: false,
/// });
/// let body = br#"{"model":"m","previous_response_id":"resp_1","input":"go on"}"#;
/// let repaired = repair_request(Dialect::OpenAiResponses, body, &blocked).unwrap();
/// let repaired: serde_json::Value = serde_json::from_slice(&repaired).unwrap();
/// assert_eq!(repaired["input"][0]["type"], "function_call_output");
/// assert_eq!(repaired["input"][0]["call_id"], "call_a");
/// assert_eq!(repaired["input"][1]["content"], "go on");
/// ```
#[must_use]
pub fn repair_request(dialect: Dialect, body: &[u8], blocked: &BlockedCalls) -> Option<Vec<u8>> {
    if dialect != Dialect::OpenAiResponses || blocked.is_empty() {
        return None;
    }
    let mut tape = Tape::default();
    let message = tape.read(body).ok()?;
    let root = message
        .get("response")
        .filter(|inner| inner.is_object())
        .unwrap_or(message);
    let previous = root.get("previous_response_id")?.str()?;
    let input = root.get("input");
    let items = || input.into_iter().flat_map(Value::items);
    let answered =
        |id: &str| items().any(|item| item.get("call_id").is_some_and(|call_id| call_id.is(id)));
    let outputs: Vec<String> = blocked
        .of_response(&previous)
        .filter(|call| !answered(&call.id))
        .map(|call| {
            let output = format!(
                "The call was blocked by policy and did not run: {}",
                call.reason
            );
            format!(
                r#"{{"type":"{}","call_id":{},"output":{}}}"#,
                if call.free_text {
                    "custom_tool_call_output"
                } else {
                    "function_call_output"
                },
                quoted(&call.id),
                quoted(&output)
            )
        })
        .collect();
    if outputs.is_empty() {
        return None;
    }
    let outputs = outputs.join(",");
    let mut edits = Splice::default();
    match input {
        Some(list) if list.kind() == Kind::Array => {
            let start = list.span().start + 1;
            let comma = if list.items().next().is_some() {
                ","
            } else {
                ""
            };
            edits.replace(start..start, format!("{outputs}{comma}"));
        }
        Some(text) if text.kind() == Kind::String => {
            let text = String::from_utf8_lossy(text.raw());
            edits.replace(
                input?.span(),
                format!(r#"[{outputs},{{"type":"message","role":"user","content":{text}}}]"#),
            );
        }
        Some(other) => edits.replace(other.span(), format!("[{outputs}]")),
        None => {
            let start = root.span().start + 1;
            edits.replace(start..start, format!(r#""input":[{outputs}],"#));
        }
    }
    Some(edits.apply(body))
}
