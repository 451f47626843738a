//! Why a rule is none.

use std::fmt;

pub use tollgate_flow::closest;

/// A rule that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct RuleError {
    /// Where it stands.
    pub place: Place,
    /// What is wrong with it, and what to do.
    pub message: String,
}

/// Where a rule stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file: its name, and the line from 1; 0 where no line is known.
    File(String, usize),
    /// In an option of mitmproxy's: its name, and the value.
    Option(&'static str, String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file, 0) => f.write_str(file),
            Self::File(file, line) => write!(f, "{file}:{line}"),
            Self::Option(name, value) if value.is_empty() => f.write_str(name),
            Self::Option(name, value) => write!(f, "{name} '{value}'"),
        }
    }
}
