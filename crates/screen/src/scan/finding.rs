//! What a scanner saw, and how much it matters.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value, json};

/// Which way the text goes; decides which rules look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Leaves the machine: a request, a prompt, a tool call's arguments.
    Outbound,
    /// Comes in: a tool result, a fetched page, a model's answer.
    Inbound,
    /// A shell command that a tool call wants to run.
    Command,
}

impl Kind {
    /// Reads `outbound`, `inbound` or `command`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "outbound" => Some(Kind::Outbound),
            "inbound" => Some(Kind::Inbound),
            "command" => Some(Kind::Command),
            _ => None,
        }
    }

    /// The name that [`parse`](Self::parse) reads.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Outbound => "outbound",
            Kind::Inbound => "inbound",
            Kind::Command => "command",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How bad it is if the finding is what it looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Worth a line in a log.
    Low,
    /// Worth a look.
    Medium,
    /// A credential, a destructive command.
    High,
    /// Immediate loss: a private key leaves, a reverse shell opens.
    Critical,
}

impl Severity {
    /// `low`, `medium`, `high` or `critical`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How sure the scanner is that the finding is what the rule names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Confidence {
    /// The surroundings suggest it.
    Low,
    /// The shape is right.
    Medium,
    /// The shape is right and a checksum or a structure inside agrees, or the value is known.
    High,
}

impl Confidence {
    /// `low`, `medium` or `high`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Confidence::Low => "low",
            Confidence::Medium => "medium",
            Confidence::High => "high",
        }
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What kind of thing was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Category {
    /// A credential by its shape or its surroundings.
    Secret,
    /// A credential that the scanner was told about, or a canary.
    KnownSecret,
    /// Data about a person or an account: card numbers, bank accounts, wallets.
    PersonalData,
    /// A link, a host name or a path that carries data out.
    Exfiltration,
    /// An address that no agent should be sent to: metadata services, private networks.
    Destination,
    /// Text that gives orders to a model.
    Injection,
    /// Text that a person doesn't see: invisible characters, terminal escapes.
    HiddenText,
    /// A dangerous shell command.
    Command,
}

impl Category {
    /// The name in kebab case, as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Category::Secret => "secret",
            Category::KnownSecret => "known-secret",
            Category::PersonalData => "personal-data",
            Category::Exfiltration => "exfiltration",
            Category::Destination => "destination",
            Category::Injection => "injection",
            Category::HiddenText => "hidden-text",
            Category::Command => "command",
        }
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that a scanner saw.
///
/// A finding never holds the secret itself: [`excerpt`](Self::excerpt) is redacted when it is made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Finding {
    /// Where it stands in the logical text, in bytes from the start of the stream. What was found
    /// inside an encoded stretch has the range of that stretch.
    pub range: Range64,
    /// The rule's id.
    pub rule: Arc<str>,
    /// What kind of thing it is.
    pub category: Category,
    /// How bad it is.
    pub severity: Severity,
    /// How sure the scanner is.
    pub confidence: Confidence,
    /// A redacted description of the place: for secrets at most the token's public prefix and its
    /// length. At most 120 bytes.
    pub excerpt: String,
    /// The decodings it took to see it, outermost first: `base64`, `hex`, `percent` …
    pub via: Vec<&'static str>,
    /// 0 to 100, for scored findings (injection).
    pub score: Option<u8>,
}

impl Finding {
    /// As JSON: rule, category, severity, confidence, the range, the redacted excerpt; `via` and `score` where there are any.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "rule": &*self.rule,
            "category": self.category.as_str(),
            "severity": self.severity.as_str(),
            "confidence": self.confidence.as_str(),
            "start": self.range.start,
            "end": self.range.end,
            "excerpt": self.excerpt,
        });
        if let Some(map) = object.as_object_mut() {
            if !self.via.is_empty() {
                map.insert("via".to_owned(), json!(self.via));
            }
            if let Some(score) = self.score {
                map.insert("score".to_owned(), json!(score));
            }
        }
        object
    }

    /// What an operator can do to let this pass: one sentence.
    #[must_use]
    pub fn allow_hint(&self) -> String {
        match self.category {
            Category::KnownSecret => format!(
                "remove the value from the known secrets, or allow the rule `{}` for this destination",
                self.rule
            ),
            _ => format!(
                "allow the rule `{0}`, or add an allowlist for `{0}` with a regex for the value",
                self.rule
            ),
        }
    }
}

/// A half-open range of byte offsets in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range64 {
    /// The first byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl From<Range<u64>> for Range64 {
    fn from(range: Range<u64>) -> Self {
        Range64 {
            start: range.start,
            end: range.end,
        }
    }
}
