//! Which flows: mitmproxy's filter language.
//!
//! An expression is compiled once and then asked about flows, live ones ([`Flow`](crate::Flow)) and recorded ones
//! ([`Record`](crate::record::Record)), or anything else that is a [`Subject`]:
//!
//! ```
//! use tollgate_flow::filter::Filter;
//! use tollgate_flow::record::{HttpExchange, HttpRequest, Record};
//!
//! let filter: Filter = "~m post & ~d example.com | ~c 500".parse()?;
//! let request = HttpRequest::new("POST", "https", "example.com", 443, "/login");
//! let record = Record::http("id", HttpExchange::new(request));
//! assert!(filter.matches(&record));
//!
//! let error = "~m post & (~d x".parse::<Filter>().unwrap_err();
//! assert_eq!(error.to_string(), "column 11: this parenthesis is never closed");
//! # Ok::<(), tollgate_flow::filter::FilterError>(())
//! ```
//!
//! What mitmproxy accepts means the same here, its precedence included: `!` binds tightest, then `&`, then `|`, and
//! last, two expressions beside each other, which both have to match. What it refuses for want of a space, such as
//! `(~q)` or `~q&~s`, is accepted. Regular expressions are those of Python, matched in time linear in the text, so
//! look-around, back-references and possessive quantifiers are refused. [`OPERATORS`] lists every operator.

mod matching;
mod operators;
mod parse;
mod pattern;
mod range;
mod subject;

use std::fmt;
use std::str::FromStr;

pub use operators::{Argument, OPERATORS, Operator};
pub use pattern::python_regex;
pub use subject::{Field, Property, Subject};

use operators::{Numbers, Texts};
use pattern::Pattern;
use range::Range;

/// A compiled filter expression.
#[derive(Clone, Debug)]
pub struct Filter {
    source: String,
    root: Node,
}

impl Filter {
    /// Compiles an expression whose regular expressions don't look at case, as is mitmproxy's default.
    ///
    /// # Errors
    /// [`FilterError`], with the column of what is wrong.
    pub fn new(expression: &str) -> Result<Self, FilterError> {
        Self::with_options(expression, &FilterOptions::default())
    }

    /// Compiles an expression.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_options(expression: &str, options: &FilterOptions) -> Result<Self, FilterError> {
        Ok(Self {
            source: expression.to_owned(),
            root: parse::parse(expression, options)?,
        })
    }

    /// Whether a flow is one of those that the expression means.
    ///
    /// A typical expression on a head takes less than a microsecond. Operators for bodies take the time to decode and
    /// search them, and see what the subject has kept of them.
    pub fn matches<S: Subject + ?Sized>(&self, subject: &S) -> bool {
        self.root.matches(subject)
    }

    /// The expression as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the answer may change after the request head has come: it looks at the response, at bodies or messages,
    /// at sizes and times, or at what other parts of the proxy note of the flow.
    pub fn looks_beyond_request_head(&self) -> bool {
        self.root.any_test(&|test| match test {
            Test::All => false,
            Test::Asset | Test::Code(_) => true,
            Test::Number(_, _) => true,
            Test::Is(property) => !matches!(
                property,
                Property::Http | Property::Tcp | Property::Udp | Property::Dns
            ),
            Test::Text(texts, _) => !matches!(
                texts,
                Texts::ContentTypeRequest
                    | Texts::Domain
                    | Texts::Destination
                    | Texts::HeaderRequest
                    | Texts::Method
                    | Texts::Source
                    | Texts::Url
                    | Texts::Process
                    | Texts::Ja3
                    | Texts::Ja4
                    | Texts::Sni
                    | Texts::Version
                    | Texts::Id
            ),
        })
    }

    /// Whether the answer may depend on the request's body, or on what other parts of the proxy note of the flow.
    pub fn looks_at_request_bodies(&self) -> bool {
        self.root.any_test(&|test| {
            matches!(
                test,
                Test::Text(
                    Texts::Body | Texts::BodyRequest | Texts::Metadata | Texts::Finding,
                    _
                ) | Test::Number(Numbers::Size | Numbers::SizeRequest, _)
            )
        })
    }

    /// Whether the answer may depend on a response.
    pub fn looks_at_responses(&self) -> bool {
        self.root.any_test(&|test| match test {
            Test::Asset | Test::Code(_) => true,
            Test::Number(numbers, _) => !matches!(numbers, Numbers::Size | Numbers::SizeRequest),
            Test::Is(property) => matches!(property, Property::Response | Property::Error),
            Test::Text(texts, _) => matches!(
                texts,
                Texts::BodyResponse | Texts::ContentTypeResponse | Texts::HeaderResponse
            ),
            Test::All => false,
        })
    }

    /// Whether the answer needs no more than a connection: its addresses, hosts, fingerprints and process.
    pub fn is_about_connections(&self) -> bool {
        !self.root.any_test(&|test| match test {
            Test::All => false,
            Test::Text(texts, _) => !matches!(
                texts,
                Texts::Domain
                    | Texts::Destination
                    | Texts::Source
                    | Texts::Process
                    | Texts::Ja3
                    | Texts::Ja4
                    | Texts::Sni
            ),
            _ => true,
        })
    }

    /// Whether the answer may depend on bodies or messages: who has none kept needn't ask.
    pub fn looks_at_bodies(&self) -> bool {
        self.root.any_test(&|test| {
            matches!(
                test,
                Test::Text(Texts::Body | Texts::BodyRequest | Texts::BodyResponse, _)
            )
        })
    }
}

/// What it means in words, in mitmproxy's wording: `url matches /a/i or response code is 200`.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.fmt(f)
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(expression: &str) -> Result<Self, FilterError> {
        Self::new(expression)
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// How to compile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterOptions {
    /// Whether regular expressions look at case: mitmproxy's `MITMPROXY_CASE_SENSITIVE_FILTERS=1`.
    pub case_sensitive: bool,
}

/// Why an expression is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}")]
pub struct FilterError {
    /// Where, in characters from 1.
    pub column: usize,
    /// What is wrong there.
    pub message: String,
}

impl FilterError {
    /// Three lines for a terminal: the message, the expression, and a caret below the column.
    pub fn pointed_at(&self, expression: &str) -> String {
        let before: String = expression
            .chars()
            .take(self.column.saturating_sub(1))
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        format!("{self}\n  {expression}\n  {before}^")
    }
}

#[derive(Clone, Debug)]
enum Node {
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    Test(Test),
}

#[derive(Clone, Debug)]
enum Test {
    All,
    Asset,
    Is(Property),
    Code(u64),
    Text(Texts, Pattern),
    Number(Numbers, Range),
}

impl Node {
    fn any_test(&self, is: &dyn Fn(&Test) -> bool) -> bool {
        match self {
            Self::And(nodes) | Self::Or(nodes) => nodes.iter().any(|node| node.any_test(is)),
            Self::Not(node) => node.any_test(is),
            Self::Test(test) => is(test),
        }
    }

    fn is_compound(&self) -> bool {
        matches!(self, Self::And(_) | Self::Or(_))
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nodes, between) = match self {
            Self::And(nodes) => (nodes.as_slice(), " and "),
            Self::Or(nodes) => (nodes.as_slice(), " or "),
            Self::Not(node) => {
                f.write_str("not ")?;
                (std::slice::from_ref(&**node), "")
            }
            Self::Test(test) => return test.fmt(f),
        };
        for (i, node) in nodes.iter().enumerate() {
            if i > 0 {
                f.write_str(between)?;
            }
            if node.is_compound() {
                write!(f, "({node})")?;
            } else {
                node.fmt(f)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all flows"),
            Self::Asset => f.write_str("is asset"),
            Self::Is(property) => f.write_str(property.in_words()),
            Self::Code(code) => write!(f, "response code is {code}"),
            Self::Text(texts, pattern) => write!(f, "{} matches {pattern}", texts.in_words()),
            Self::Number(numbers, range) => write!(f, "{} is {range}", numbers.in_words()),
        }
    }
}
