//! Which format a request or a message is in: by path and shape, with the host as a hint only,
//! because compatible gateways are everywhere.

use super::json::{Kind, Tape, Value};

/// A wire format of a language-model API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// Anthropic Messages, also on Vertex AI and compatible gateways.
    AnthropicMessages,
    /// OpenAI Chat Completions and everything compatible: Azure, Mistral, OpenRouter, vLLM …
    OpenAiChat,
    /// OpenAI Responses, over HTTP or WebSocket.
    OpenAiResponses,
    /// Gemini and Vertex AI `generateContent`.
    Gemini,
    /// Amazon Bedrock Converse.
    BedrockConverse,
    /// Amazon Bedrock InvokeModel: another format inside, found by its shape.
    BedrockInvoke,
    /// Ollama's own API.
    Ollama,
    /// Cohere Chat, version 2.
    CohereChat,
    /// The Model Context Protocol (JSON-RPC).
    Mcp,
}

impl Dialect {
    /// A short name for logs, rules and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AnthropicMessages => "anthropic_messages",
            Self::OpenAiChat => "openai_chat",
            Self::OpenAiResponses => "openai_responses",
            Self::Gemini => "gemini",
            Self::BedrockConverse => "bedrock_converse",
            Self::BedrockInvoke => "bedrock_invoke",
            Self::Ollama => "ollama",
            Self::CohereChat => "cohere_chat",
            Self::Mcp => "mcp",
        }
    }

    /// Whether requests are signed over their body, so that they can be refused but not rewritten.
    #[must_use]
    pub fn signs_body(self) -> bool {
        matches!(self, Self::BedrockConverse | Self::BedrockInvoke)
    }

    /// The format that a response to this path is expected in.
    ///
    /// `path` may carry a query.
    ///
    /// ```
    /// use tollgate_screen::llm::Dialect;
    ///
    /// let azure = "/openai/deployments/gpt/chat/completions?api-version=2024-10-21";
    /// assert_eq!(Dialect::of_path(azure), Some(Dialect::OpenAiChat));
    /// assert_eq!(Dialect::of_path("/v1beta/models/gemini-2:streamGenerateContent?alt=sse"),
    ///            Some(Dialect::Gemini));
    /// assert_eq!(Dialect::of_path("/index.html"), None);
    /// ```
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let path = path.trim_end_matches('/');
        let ends = |end: &str| path.ends_with(end);
        if ends("/messages") && !ends("/threads/messages") || ends("/v1/complete") {
            return Some(Self::AnthropicMessages);
        }
        if ends(":rawPredict") || ends(":streamRawPredict") {
            // Anthropic and Mistral on Vertex AI.
            return if path.contains("/publishers/mistralai/") {
                Some(Self::OpenAiChat)
            } else {
                Some(Self::AnthropicMessages)
            };
        }
        if ends("/chat/completions")
            || ends("/fim/completions")
            || ends("/agents/completions")
            || ends("/v1/completions")
        {
            return Some(Self::OpenAiChat);
        }
        if ends("/responses") {
            return Some(Self::OpenAiResponses);
        }
        // An answer that is asked for again: one made in the background, one that was stored.
        let stored = path.strip_suffix("/cancel").unwrap_or(path);
        if let Some((collection, id)) = stored.rsplit_once('/') {
            if collection.ends_with("/responses") && id.starts_with("resp_") {
                return Some(Self::OpenAiResponses);
            }
            if collection.ends_with("/chat/completions") && !id.is_empty() {
                return Some(Self::OpenAiChat);
            }
        }
        if ends("enerateContent") && path.contains(':') {
            return Some(Self::Gemini);
        }
        if path.starts_with("/model/") {
            if ends("/converse") || ends("/converse-stream") {
                return Some(Self::BedrockConverse);
            }
            if ends("/invoke") || ends("/invoke-with-response-stream") {
                return Some(Self::BedrockInvoke);
            }
        }
        if ends("/api/chat") || ends("/api/generate") {
            return Some(Self::Ollama);
        }
        if ends("/v2/chat") {
            return Some(Self::CohereChat);
        }
        if ends("/mcp") {
            return Some(Self::Mcp);
        }
        None
    }

    /// The format of a request: by its path, else by the shape of its body.
    ///
    /// `host` settles only what path and shape leave open.
    #[must_use]
    pub fn of_request(host: &str, path: &str, body: &[u8]) -> Option<Self> {
        if let Some(dialect) = Self::of_path(path) {
            return Some(dialect);
        }
        let mut tape = Tape::default();
        let root = tape.read(body).ok()?;
        let first = root.items().next().unwrap_or(root);
        if first
            .get("jsonrpc")
            .is_some_and(|version| version.is("2.0"))
        {
            return first.get("method").map(|_| Self::Mcp);
        }
        let model = root.get("model").is_some();
        if root
            .get("contents")
            .is_some_and(|v| v.kind() == Kind::Array)
            || root.path(&["request", "contents"]).is_some()
        {
            return Some(Self::Gemini);
        }
        if root
            .get("messages")
            .is_some_and(|v| v.kind() == Kind::Array)
        {
            if root.get("anthropic_version").is_some() {
                return Some(Self::AnthropicMessages);
            }
            if root.get("inferenceConfig").is_some() || root.get("toolConfig").is_some() {
                return Some(Self::BedrockConverse);
            }
            let tool = root.get("tools").and_then(|tools| tools.item(0));
            let anthropic = root.get("system").is_some()
                || tool.is_some_and(|tool| tool.get("input_schema").is_some())
                || host.ends_with("anthropic.com");
            return if anthropic {
                Some(Self::AnthropicMessages)
            } else {
                model.then_some(Self::OpenAiChat)
            };
        }
        (model && root.get("input").is_some() && !path.contains("embedding"))
            .then_some(Self::OpenAiResponses)
    }

    /// The format of one message of a response, by its shape. `name` is the event's name where the
    /// framing has one.
    pub(crate) fn of_message(root: Value<'_>, name: &str) -> Option<Self> {
        if let Some(kind) = root.get("type").and_then(Value::str) {
            let kind = kind.as_ref();
            if kind.starts_with("response.") {
                return Some(Self::OpenAiResponses);
            }
            if kind.starts_with("content_block_")
                || kind.starts_with("message_")
                || kind == "message" && root.get("content").is_some()
            {
                return Some(Self::AnthropicMessages);
            }
            if kind.starts_with("content-")
                || kind.starts_with("tool-call-")
                || kind.starts_with("message-")
                || kind.starts_with("tool-plan-")
                || kind.starts_with("citation-")
            {
                return Some(Self::CohereChat);
            }
        }
        if root.get("jsonrpc").is_some() {
            return Some(Self::Mcp);
        }
        if root.get("choices").is_some_and(|v| v.kind() == Kind::Array) {
            return Some(Self::OpenAiChat);
        }
        if root
            .get("object")
            .is_some_and(|object| object.is("response"))
            && root.get("output").is_some()
        {
            return Some(Self::OpenAiResponses);
        }
        let inner = root.get("response").filter(|inner| inner.is_object());
        let gemini = inner.unwrap_or(root);
        if gemini.get("candidates").is_some() || gemini.get("usageMetadata").is_some() {
            return Some(Self::Gemini);
        }
        if matches!(
            name,
            "messageStart"
                | "contentBlockStart"
                | "contentBlockDelta"
                | "contentBlockStop"
                | "messageStop"
                | "metadata"
        ) || root.path(&["output", "message"]).is_some()
        {
            return Some(Self::BedrockConverse);
        }
        if root.get("done").is_some() {
            return Some(Self::Ollama);
        }
        if root.path(&["message", "role"]).is_some() && root.get("finish_reason").is_some() {
            return Some(Self::CohereChat);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_every_provider() {
        for (path, dialect) in [
            ("/v1/messages?beta=true", Dialect::AnthropicMessages),
            (
                "/v1/projects/p/locations/l/publishers/anthropic/models/c:streamRawPredict",
                Dialect::AnthropicMessages,
            ),
            ("/v1/chat/completions", Dialect::OpenAiChat),
            ("/api/v1/chat/completions", Dialect::OpenAiChat),
            (
                "/openai/v1/responses?api-version=preview",
                Dialect::OpenAiResponses,
            ),
            ("/backend-api/codex/responses", Dialect::OpenAiResponses),
            (
                "/v1beta/models/gemini-2.5-pro:generateContent",
                Dialect::Gemini,
            ),
            ("/v1internal:streamGenerateContent?alt=sse", Dialect::Gemini),
            (
                "/model/anthropic.claude-v2%3A1/converse-stream",
                Dialect::BedrockConverse,
            ),
            (
                "/model/x/invoke-with-response-stream",
                Dialect::BedrockInvoke,
            ),
            ("/api/chat", Dialect::Ollama),
            ("/v2/chat", Dialect::CohereChat),
            ("/mcp/", Dialect::Mcp),
        ] {
            assert_eq!(Dialect::of_path(path), Some(dialect), "{path}");
        }
        for path in [
            "/",
            "/v1/messages/count_tokens",
            "/v1/models",
            "/v1/embeddings",
            "/responses/x",
        ] {
            assert_eq!(Dialect::of_path(path), None, "{path}");
        }
    }

    #[test]
    fn shapes_where_the_path_says_nothing() {
        for (body, dialect) in [
            (r#"{"model":"m","messages":[]}"#, Some(Dialect::OpenAiChat)),
            (
                r#"{"model":"m","system":"s","messages":[]}"#,
                Some(Dialect::AnthropicMessages),
            ),
            (
                r#"{"model":"m","input":"hi"}"#,
                Some(Dialect::OpenAiResponses),
            ),
            (r#"{"contents":[]}"#, Some(Dialect::Gemini)),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#,
                Some(Dialect::Mcp),
            ),
            (r#"{"messages":"no"}"#, None),
            ("not json", None),
        ] {
            assert_eq!(
                Dialect::of_request("gw.example", "/x", body.as_bytes()),
                dialect,
                "{body}"
            );
        }
    }
}
