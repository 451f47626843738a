//! Screening of what agents send and receive: secrets, dangerous commands, injection, exfiltration.
//!
//! Nothing here opens a socket or knows a connection. [`scan`] finds things in logical text, [`llm`]
//! reads what language models are told and answer, [`gate`] holds their tool calls, [`mcp`] judges what an MCP client and
//! its server say, and [`Screen`] puts these into a proxy, as an interceptor.
#![forbid(unsafe_code)]

pub mod audit;
pub mod gate;
mod interceptor;
pub mod llm;
pub mod mcp;
pub mod policy;
pub mod redact;
pub mod scan;
pub mod shell;
pub mod usage;

pub use interceptor::{
    Enforcement, HistoryStats, KEEP_ALIVE, MODEL_COLLECT, OnVerdict, Place, PolicyInForce, Screen,
    ScreenConfig, Verdict, WARNING_HEADER,
};
