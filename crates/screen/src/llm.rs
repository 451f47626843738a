//! The wire formats of language-model APIs, read into one neutral model.
//!
//! [`Dialect`] names a format, by path and shape. [`read_request`] reads a request into a
//! [`Conversation`]; [`ResponseReader`] reads a response, whole or streamed, into [`Event`]s, the
//! same ones however the bytes are cut. [`mcp`] reads the Model Context Protocol.
//!
//! What isn't known passes and is offered as text ([`TextKind::Unknown`]). Nothing here decides:
//! that is the [`gate`](crate::gate)'s, which uses the same readers.

mod anthropic;
pub(crate) mod assembler;
mod bedrock;
mod cohere;
mod dialect;
mod facets;
pub(crate) mod frame;
mod gemini;
pub mod json;
pub mod mcp;
mod model;
mod ollama;
pub(crate) mod openai_chat;
mod openai_responses;
mod reader;
pub(crate) mod request;
pub(crate) mod skim;

pub use dialect::Dialect;
pub use facets::Facets;
pub use frame::{Fault, Framing};
pub use model::{
    Arguments, BlockId, CallId, Conversation, Event, Media, Part, Role, RunsAt, TextBlock,
    TextKind, ToolCall, ToolDefinition, ToolResult, Usage,
};
pub use reader::ResponseReader;
pub use request::read_request;
