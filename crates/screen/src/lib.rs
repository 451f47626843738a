//! Screening of what agents send and receive: secrets, dangerous commands, injection, exfiltration.
//!
//! Nothing here opens a socket or knows a connection. [`scan`] finds things in logical text; what
//! follows from a finding is for others to decide.
#![forbid(unsafe_code)]

pub mod gate;
pub mod llm;
pub mod scan;
pub mod shell;
