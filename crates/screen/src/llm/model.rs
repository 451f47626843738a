//! The neutral model: what every provider's format comes down to.

use std::ops::Range;

/// The number of a tool call within one response stream, counted from 0 in order of appearance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u32);

/// Where a piece of text belongs: deltas of one block join to one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId {
    /// The choice or candidate; 0 where a format has only one.
    pub choice: u32,
    /// The block within it, as the format numbers them.
    pub index: u32,
    /// What kind of text it is.
    pub kind: TextKind,
}

/// What a text of a model's answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TextKind {
    /// The answer.
    Answer,
    /// Thinking, or a summary of it.
    Thinking,
    /// The model declines.
    Refusal,
    /// The client was sent something that has no place in the model: a part of a stream in a shape
    /// that isn't known. The text is the raw message.
    Unknown,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The operator: system and developer messages, instructions.
    System,
    /// The user.
    User,
    /// The model, in earlier turns.
    Assistant,
    /// A tool.
    Tool,
}

/// One request to a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The model's name, where the request says it.
    pub model: Option<String>,
    /// Whether the answer is asked for as a stream.
    pub stream: bool,
    /// The response that this one continues, where the provider keeps the history
    /// (`previous_response_id`).
    pub previous: Option<String>,
    /// Everything that was said, in order.
    pub parts: Vec<Part>,
    /// The tools that the model may call.
    pub tools: Vec<ToolDefinition>,
}

impl Conversation {
    /// The tool results, in order. Above all others, this is where untrusted text enters.
    pub fn tool_results(&self) -> impl Iterator<Item = &ToolResult> {
        self.parts.iter().filter_map(|part| match part {
            Part::Result(result) => Some(result),
            _ => None,
        })
    }

    /// The texts of one role, in order.
    pub fn texts(&self, role: Role) -> impl Iterator<Item = &TextBlock> {
        self.parts.iter().filter_map(move |part| match part {
            Part::Text(text) if text.role == role => Some(text),
            _ => None,
        })
    }
}

/// A part of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Somebody said something.
    Text(TextBlock),
    /// The model called a tool in an earlier turn.
    Call(ToolCall),
    /// What a tool answered.
    Result(ToolResult),
    /// An image, a file: not read as text.
    Media(Media),
}

/// A text in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextBlock {
    /// Who said it.
    pub role: Role,
    /// The text, unescaped.
    pub text: String,
    /// The bytes of the request body that hold the JSON string, quotes included: what to cut out to
    /// redact it, and what to hash to recognise a block that was seen before.
    pub span: Range<usize>,
}

/// What a tool answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolResult {
    /// The provider's identifier of the call, if it has one.
    pub call_id: String,
    /// Every text in the result, joined by LF.
    pub text: String,
    /// The tool says that it failed.
    pub is_error: bool,
    /// The bytes of the body that hold the result.
    pub span: Range<usize>,
}

/// A tool that a model may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolDefinition {
    /// Its name.
    pub name: String,
    /// Every text of its description and schema, joined by LF: where poisoned descriptions hide.
    pub text: String,
    /// The bytes of the body that hold the definition.
    pub span: Range<usize>,
}

/// Something that is not text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Media {
    /// Its media type, where it is said.
    pub media_type: Option<String>,
    /// The bytes of the body that hold it, still in their coding (base64).
    pub span: Range<usize>,
}

/// A model wants a tool to run.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Its number in the stream, or among the calls of one request.
    pub call: CallId,
    /// The provider's identifier; empty where there is none.
    pub id: String,
    /// The tool.
    pub name: String,
    /// What it is called with.
    pub arguments: Arguments,
    /// Who runs it.
    pub runs_at: RunsAt,
}

/// The arguments of a tool call.
#[derive(Debug, Clone, PartialEq)]
pub enum Arguments {
    /// A JSON value.
    Json(serde_json::Value),
    /// Free text (custom tools).
    Text(String),
    /// Arguments that two programs could read differently, or that none can read: text that isn't
    /// JSON, the same member twice, a name in several pieces, over the limit.
    Malformed {
        /// What came.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Arguments {
    /// The arguments as one text: compact JSON, or the text itself.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Arguments::Json(value) => value.to_string(),
            Arguments::Text(text) | Arguments::Malformed { text, .. } => text.clone(),
        }
    }
}

/// Who runs a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunsAt {
    /// The client: the call can be stopped.
    Client,
    /// The provider, before the answer arrives here: it has already run.
    Provider,
}

/// Tokens that the provider counted, in one way of adding them up for all: what was read anew doesn't include what came
/// from a cache, and the answer includes its thinking. Each figure is the latest that it said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the request that were read anew.
    pub input: Option<u64>,
    /// Tokens of the answer, thinking included.
    pub output: Option<u64>,
    /// Tokens of the request that came from the provider's cache.
    pub cache_read: Option<u64>,
    /// Tokens of the request that were put into it.
    pub cache_write: Option<u64>,
    /// Of these, those that were thinking.
    pub thinking: Option<u64>,
}

/// What a response says, piece by piece.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The answer begins.
    Start {
        /// The provider's identifier of the answer.
        id: Option<String>,
        /// The model that answers.
        model: Option<String>,
    },
    /// More text of a block.
    TextDelta {
        /// Which block.
        block: BlockId,
        /// The text, unescaped.
        text: String,
    },
    /// A tool call begins.
    ToolCallStart {
        /// Which.
        call: CallId,
        /// The tool, as far as it is known.
        name: String,
        /// Who runs it.
        runs_at: RunsAt,
    },
    /// More of a call's arguments.
    ToolCallDelta {
        /// Which call.
        call: CallId,
        /// The text, unescaped from the stream's JSON; itself a piece of JSON text.
        text: String,
    },
    /// A tool call is complete.
    ToolCallEnd(ToolCall),
    /// What a tool answered, where the answer comes from the other side: tools that the provider
    /// runs, and MCP servers.
    ToolResult(ToolResult),
    /// The tools that an MCP server offers.
    Tools(Vec<ToolDefinition>),
    /// Tokens so far.
    Usage(Usage),
    /// Why the model stopped, in the provider's own word.
    Stop {
        /// The choice or candidate.
        choice: u32,
        /// The reason.
        reason: String,
    },
    /// The provider reports an error within the stream.
    Error {
        /// Its message.
        message: String,
    },
    /// The answer has ended.
    End,
}
