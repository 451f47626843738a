//! Reads requests: who said what, what tools answered, which tools there are.

use std::ops::Range;

use super::assembler::{some_text, text, text_arguments, value_arguments};
use super::dialect::Dialect;
use super::gemini;
use super::json::{JsonError, Kind, Tape, Value};
use super::model::{
    Arguments, CallId, Conversation, Media, Part, Role, RunsAt, TextBlock, ToolCall,
    ToolDefinition, ToolResult,
};

/// Reads the body of a request.
///
/// What a format has and the model hasn't is left out, except that texts in places which aren't
/// known count as the text of whoever's turn it is.
///
/// # Errors
/// [`JsonError`] if the body isn't one JSON value.
///
/// ```
/// use tollgate_screen::llm::{Dialect, Role, read_request};
///
/// let body = br#"{"model":"m","max_tokens":9,"system":"be brief","messages":[
///     {"role":"user","content":"hi"},
///     {"role":"assistant","content":[{"type":"tool_use","id":"t1","name":"bash","input":{"command":"ls"}}]},
///     {"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":"a.txt"}]}]}"#;
/// let conversation = read_request(Dialect::AnthropicMessages, body)?;
/// assert_eq!(conversation.texts(Role::System).next().unwrap().text, "be brief");
/// assert_eq!(conversation.tool_results().next().unwrap().text, "a.txt");
/// # Ok::<(), tollgate_screen::llm::json::JsonError>(())
/// ```
pub fn read_request(dialect: Dialect, body: &[u8]) -> Result<Conversation, JsonError> {
    let mut tape = Tape::default();
    let root = tape.read(body)?;
    // Gemini CLI wraps the request; on a WebSocket, `response.create` may.
    let wrapper = match dialect {
        Dialect::Gemini => Some("request"),
        Dialect::OpenAiResponses => Some("response"),
        _ => None,
    };
    let root = wrapper
        .and_then(|name| root.get(name))
        .filter(|inner| inner.is_object())
        .unwrap_or(root);
    let mut reader = Reader::default();
    reader.conversation.model = some_text(root, "model");
    reader.conversation.stream = root.get("stream").is_some_and(Value::is_true);
    reader.conversation.previous = some_text(root, "previous_response_id");
    for name in [
        "system",
        "instructions",
        "systemInstruction",
        "system_instruction",
        "preamble",
    ] {
        if let Some(system) = root.get(name) {
            reader.content(Role::System, system);
        }
    }
    for name in ["messages", "contents", "input"] {
        match root.get(name) {
            Some(list) if list.kind() == Kind::Array => {
                list.items().for_each(|item| reader.message(item));
            }
            Some(text) => reader.content(Role::User, text),
            None => {}
        }
    }
    for name in ["prompt", "documents", "suffix"] {
        if let Some(value) = root.get(name) {
            let role = if name == "documents" {
                Role::Tool
            } else {
                Role::User
            };
            reader.content(role, value);
        }
    }
    let tools = [
        root.get("tools"),
        root.path(&["toolConfig", "tools"]),
        root.get("functions"),
    ];
    for tool in tools.into_iter().flatten().flat_map(Value::items) {
        reader.tool(tool);
    }
    Ok(reader.conversation)
}

#[derive(Default)]
struct Reader {
    conversation: Conversation,
    /// The media data found last: not text.
    opaque: Option<Range<usize>>,
    calls: u32,
}

impl Reader {
    /// An element of `messages`, `contents` or `input`.
    fn message(&mut self, item: Value<'_>) {
        let role = match text(item, "role").as_str() {
            "system" | "developer" => Role::System,
            "assistant" | "model" | "chatbot" => Role::Assistant,
            "tool" | "function" => Role::Tool,
            _ => Role::User,
        };
        if role == Role::Tool && item.get("parts").is_none() {
            let id = some_text(item, "tool_call_id").unwrap_or_else(|| {
                some_text(item, "tool_name").unwrap_or_else(|| text(item, "name"))
            });
            self.result(id, item.get("content").unwrap_or(item), item);
            return;
        }
        if self.item(role, item) {
            return;
        }
        for name in ["content", "parts"] {
            if let Some(content) = item.get(name) {
                self.content(role, content);
            }
        }
        if let Some(call) = item.get("function_call").filter(|call| call.is_object()) {
            self.call(call, call);
        }
        for call in item.get("tool_calls").into_iter().flat_map(Value::items) {
            let function = call.get("function").or_else(|| call.get("custom"));
            self.call(call, function.unwrap_or(call));
        }
    }

    /// Text, or a list of blocks, or one block.
    fn content(&mut self, role: Role, value: Value<'_>) {
        match value.kind() {
            Kind::String => self.text(role, value),
            Kind::Array => value.items().for_each(|item| self.content(role, item)),
            Kind::Object => {
                if let Some(parts) = value.get("parts") {
                    self.content(role, parts);
                } else if !self.item(role, value) {
                    self.block(role, value);
                }
            }
            Kind::Scalar => {}
        }
    }

    fn text(&mut self, role: Role, value: Value<'_>) {
        let text = value.string();
        if !text.is_empty() && self.opaque.as_ref() != Some(&value.span()) {
            self.conversation.parts.push(Part::Text(TextBlock {
                role,
                text,
                span: value.span(),
            }));
        }
    }

    /// A block of a message that isn't known to be a call or a result.
    fn block(&mut self, role: Role, value: Value<'_>) {
        if let Some(media) = media(value)
            && self.opaque.as_ref() != Some(&media.span)
        {
            self.opaque = Some(media.span.clone());
            self.conversation.parts.push(Part::Media(media));
        }
        for (name, member) in value.members() {
            match name.str().unwrap_or_default().as_ref() {
                "type" | "id" | "role" | "status" | "signature" | "thoughtSignature"
                | "encrypted_content" | "cache_control" | "format" | "media_type" | "mimeType"
                | "mime_type" | "detail" => {}
                _ => self.content(role, member),
            }
        }
    }

    /// A call or a result, in any format's shape; whether it was one.
    fn item(&mut self, role: Role, value: Value<'_>) -> bool {
        let kind = text(value, "type");
        if let Some(call) = value.get("functionCall") {
            let number = self.number();
            let call = gemini::call_in_history(call, number);
            self.conversation.parts.push(Part::Call(call));
        } else if let Some(call) = value.get("toolUse") {
            self.call(call, call);
        } else if let Some(result) = value.get("functionResponse") {
            let id = some_text(result, "id").unwrap_or_else(|| text(result, "name"));
            self.result(id, result.get("response").unwrap_or(result), value);
        } else if let Some(result) = value.get("toolResult") {
            let id = text(result, "toolUseId");
            self.result(id, result.get("content").unwrap_or(result), value);
        } else if kind.ends_with("tool_use") || kind == "function" && role == Role::Assistant {
            self.call(value, value);
        } else if kind.ends_with("tool_result") {
            let id = text(value, "tool_use_id");
            self.result(id, value.get("content").unwrap_or(value), value);
        } else if kind.ends_with("_call_output") || kind == "mcp_list_tools" {
            let id = text(value, "call_id");
            self.result(id, value.get("output").unwrap_or(value), value);
        } else if kind.ends_with("_call") {
            self.call(value, value);
        } else {
            return false;
        }
        true
    }

    fn number(&mut self) -> CallId {
        let number = CallId(self.calls);
        self.calls = self.calls.saturating_add(1);
        number
    }

    /// `outer` has the identifier, `inner` name and arguments.
    fn call(&mut self, outer: Value<'_>, inner: Value<'_>) {
        let arguments = ["arguments", "input", "action", "operation"]
            .into_iter()
            .find_map(|name| inner.get(name));
        let free = text(outer, "type").starts_with("custom");
        let arguments = match arguments {
            Some(value) if value.kind() == Kind::String && free => Arguments::Text(value.string()),
            Some(value) if value.kind() == Kind::String => text_arguments(value.string()),
            Some(value) => value_arguments(value),
            None => text_arguments(String::new()),
        };
        let id = ["call_id", "toolUseId", "id"]
            .into_iter()
            .find_map(|name| some_text(outer, name));
        let call = ToolCall {
            call: self.number(),
            id: id.unwrap_or_default(),
            name: some_text(inner, "name").unwrap_or_else(|| text(outer, "type")),
            arguments,
            runs_at: RunsAt::Client,
        };
        self.conversation.parts.push(Part::Call(call));
    }

    fn result(&mut self, call_id: String, content: Value<'_>, whole: Value<'_>) {
        let is_error = whole.get("is_error").is_some_and(Value::is_true)
            || whole
                .path(&["toolResult", "status"])
                .is_some_and(|status| status.is("error"));
        self.conversation.parts.push(Part::Result(ToolResult {
            call_id,
            text: all_text(content),
            is_error,
            span: content.span(),
        }));
    }

    fn tool(&mut self, tool: Value<'_>) {
        let declarations = ["functionDeclarations", "function_declarations"]
            .into_iter()
            .find_map(|name| tool.get(name));
        if let Some(declarations) = declarations {
            declarations.items().for_each(|tool| self.tool(tool));
            return;
        }
        let inner = ["function", "toolSpec", "custom"]
            .into_iter()
            .find_map(|name| tool.get(name));
        let inner = inner.filter(|inner| inner.is_object()).unwrap_or(tool);
        let name = some_text(inner, "name").unwrap_or_else(|| text(tool, "type"));
        self.conversation.tools.push(definition(inner, name));
    }
}

/// A block that holds bytes instead of text.
fn media(value: Value<'_>) -> Option<Media> {
    let source = [
        "source",
        "inlineData",
        "inline_data",
        "image",
        "document",
        "input_audio",
    ]
    .into_iter()
    .find_map(|name| value.get(name))
    .filter(|source| source.is_object())
    .unwrap_or(value);
    let source = source
        .get("source")
        .filter(|v| v.is_object())
        .unwrap_or(source);
    let media_type = ["media_type", "mimeType", "mime_type"]
        .into_iter()
        .find_map(|name| some_text(source, name));
    let data = source.get("data").or_else(|| source.get("bytes"));
    // Without a word that it is media, it is text: documents have their text in `data`, too.
    let binary = match &media_type {
        Some(media) => !media.starts_with("text/"),
        None => source.get("bytes").is_some() || source.get("format").is_some(),
    };
    if let Some(data) = data.filter(|data| data.kind() == Kind::String && binary) {
        return Some(Media {
            media_type,
            span: data.span(),
        });
    }
    let url = value.get("image_url")?;
    let url = url.get("url").unwrap_or(url);
    let text = url.str()?;
    let media = text.strip_prefix("data:")?.split([';', ',']).next()?;
    Some(Media {
        media_type: Some(media.to_owned()),
        span: url.span(),
    })
}

/// A tool's definition: all its texts, names of parameters included.
pub(crate) fn definition(value: Value<'_>, name: String) -> ToolDefinition {
    ToolDefinition {
        name,
        text: gather(value, true, true),
        span: value.span(),
    }
}

/// Every text in a value, in order, joined by LF. Media in base64 and signatures are left out.
pub(crate) fn all_text(value: Value<'_>) -> String {
    gather(value, false, false)
}

/// Every text in a value whose form is its sender's own, such as what a tool answered: names of members included, and
/// nothing left out but media in base64.
pub(crate) fn free_text(value: Value<'_>) -> String {
    gather(value, true, false)
}

/// `keys`: names of members, and the members in which an API of a model has no text.
fn gather(value: Value<'_>, keys: bool, with_media: bool) -> String {
    let mut text = String::new();
    // The media data found last.
    let mut opaque = None;
    let mut stack = vec![value];
    while let Some(value) = stack.pop() {
        match value.kind() {
            Kind::String if opaque.as_ref() == Some(&value.span()) => {}
            Kind::String => {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(&value.str().unwrap_or_default());
            }
            Kind::Array => {
                let from = stack.len();
                stack.extend(value.items());
                stack.get_mut(from..).unwrap_or_default().reverse();
            }
            Kind::Object => {
                if !with_media && let Some(media) = media(value) {
                    opaque = Some(media.span);
                }
                let from = stack.len();
                for (name, member) in value.members() {
                    if keys {
                        stack.push(name);
                    } else if name.is("type")
                        || name.is("signature")
                        || name.is("encrypted_content")
                    {
                        continue;
                    }
                    stack.push(member);
                }
                stack.get_mut(from..).unwrap_or_default().reverse();
            }
            Kind::Scalar => {}
        }
    }
    text
}
