//! How each format says that a call was refused, or says other arguments.

mod anthropic;
mod bedrock;
mod chat;
mod cohere;
mod gemini;
mod responses;

use serde_json::json;

use super::calls::Verdict;
use super::edit::FrameEdit;
use crate::llm::Dialect;
use crate::llm::assembler::Phase;

/// Decides what leaves in the place of a message.
pub(super) fn edit(dialect: Dialect, frame: &mut FrameEdit<'_>) {
    match dialect {
        Dialect::AnthropicMessages => anthropic::edit(frame),
        Dialect::OpenAiChat => chat::edit(frame),
        Dialect::OpenAiResponses => responses::edit(frame),
        Dialect::Gemini => gemini::edit(frame),
        Dialect::BedrockConverse => bedrock::edit(frame),
        Dialect::Ollama => chat::edit_ollama(frame),
        Dialect::CohereChat => cohere::edit(frame),
        Dialect::BedrockInvoke | Dialect::Mcp => frame.keep(),
    }
}

/// Whether a message that belongs to a call carries nothing else.
pub(super) fn one_call_a_message(dialect: Dialect) -> bool {
    matches!(
        dialect,
        Dialect::AnthropicMessages
            | Dialect::OpenAiResponses
            | Dialect::BedrockConverse
            | Dialect::CohereChat
    )
}

/// What becomes of one part of a call.
enum Fate {
    Keep,
    /// The first part of a refused call: the text goes in its place.
    Text(String),
    /// Another part of a refused call.
    Drop,
    /// The part of a call whose arguments are replaced by this JSON text.
    Arguments(String),
}

fn fate(frame: &FrameEdit<'_>, call: crate::llm::CallId, phase: Phase) -> Fate {
    match frame.call(call).map(|call| &call.verdict) {
        Some(Verdict::Block(text)) => match phase {
            Phase::Start | Phase::Whole | Phase::Echo => Fate::Text(text.clone()),
            Phase::Delta | Phase::End => Fate::Drop,
        },
        Some(Verdict::Redact(arguments)) => Fate::Arguments(arguments.to_text()),
        _ => Fate::Keep,
    }
}

/// A whole answer that says nothing but this text, in a format's own shape, as JSON. For answers
/// that can't be read, and for requests that are refused before they reach the provider.
///
/// Without a dialect it is an object with an `error`.
///
/// ```
/// use tollgate_screen::{gate::refusal_body, llm::Dialect};
///
/// let body = refusal_body(Some(Dialect::Ollama), "no");
/// assert!(body.contains(r#""content":"no""#));
/// ```
#[must_use]
pub fn refusal_body(dialect: Option<Dialect>, text: &str) -> String {
    let text_block = json!([{"type": "text", "text": text}]);
    let body = match dialect {
        Some(Dialect::AnthropicMessages | Dialect::BedrockInvoke) => json!({
            "id": "msg_tollgate", "type": "message", "role": "assistant", "model": "tollgate",
            "content": text_block, "stop_reason": "end_turn", "stop_sequence": null,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }),
        Some(Dialect::OpenAiChat) => json!({
            "id": "chatcmpl-tollgate", "object": "chat.completion", "created": 0, "model": "tollgate",
            "choices": [{"index": 0, "finish_reason": "stop",
                         "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }),
        Some(Dialect::OpenAiResponses) => json!({
            "id": "resp_tollgate", "object": "response", "created_at": 0, "status": "completed",
            "error": null, "incomplete_details": null, "instructions": null, "metadata": {},
            "model": "tollgate", "parallel_tool_calls": true, "temperature": null,
            "tool_choice": "auto", "tools": [], "top_p": null,
            "output": [{
                "id": "msg_tollgate", "type": "message", "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "annotations": [], "text": text}],
            }],
        }),
        Some(Dialect::Gemini) => json!({
            "candidates": [{"index": 0, "finishReason": "STOP",
                            "content": {"role": "model", "parts": [{"text": text}]}}],
        }),
        Some(Dialect::BedrockConverse) => json!({
            "output": {"message": {"role": "assistant", "content": [{"text": text}]}},
            "stopReason": "end_turn", "metrics": {"latencyMs": 0},
            "usage": {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0},
        }),
        Some(Dialect::Ollama) => json!({
            "model": "tollgate", "created_at": "1970-01-01T00:00:00Z", "done": true,
            "done_reason": "stop", "message": {"role": "assistant", "content": text},
        }),
        Some(Dialect::CohereChat) => json!({
            "id": "tollgate", "finish_reason": "COMPLETE",
            "message": {"role": "assistant", "content": text_block},
        }),
        Some(Dialect::Mcp) => json!({
            "jsonrpc": "2.0", "id": null, "error": {"code": -32000, "message": text},
        }),
        None => json!({"error": {"type": "blocked", "message": text}}),
    };
    body.to_string()
}
