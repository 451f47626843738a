//! What tools were, to be compared with what they are.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use super::MAX_TOOLS;
use crate::llm::json::Value;

/// Members of a tool's description that say nothing about what it does.
const PASSED_OVER: [&str; 2] = ["_meta", "icons"];

/// What a tool is: the SHA-256 of each member of its description but its name, in canonical JSON.
pub(super) type Print = BTreeMap<String, String>;

/// The tools of a server, as they were when they were trusted.
///
/// ```
/// use tollgate_screen::mcp::Pins;
///
/// let pins = Pins::parse(r#"{"version": 1, "tools": {"search": {"description": "5f70bf18a0…"}}}"#)?;
/// assert_eq!(pins.names().collect::<Vec<_>>(), ["search"]);
/// assert!(Pins::parse("{}").is_err());
/// # Ok::<(), tollgate_screen::mcp::PinError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    tools: BTreeMap<String, Print>,
}

/// Why a file of pins can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// It is no JSON.
    #[error("no file of pins: {0}")]
    Json(#[from] serde_json::Error),
    /// It is JSON, but not such a file.
    #[error("no file of pins of version 1: {0}")]
    Shape(&'static str),
}

impl Pins {
    /// Reads what [`to_text`](Self::to_text) writes.
    ///
    /// # Errors
    /// [`PinError`].
    pub fn parse(text: &str) -> Result<Self, PinError> {
        let root: Json = serde_json::from_str(text)?;
        if root.get("version") != Some(&json!(1)) {
            return Err(PinError::Shape("`version` is not 1"));
        }
        let tools = root.get("tools").and_then(Json::as_object);
        let tools = tools.ok_or(PinError::Shape("`tools` is no object"))?;
        if tools.len() > MAX_TOOLS {
            return Err(PinError::Shape("it has too many tools"));
        }
        let mut pins = Self::default();
        for (name, members) in tools {
            let members = members
                .as_object()
                .ok_or(PinError::Shape("a tool is no object"))?;
            let mut print = Print::new();
            for (member, hash) in members {
                let hash = hash.as_str();
                let hash = hash.ok_or(PinError::Shape("a hash is no string"))?;
                print.insert(member.clone(), hash.to_owned());
            }
            pins.tools.insert(name.clone(), print);
        }
        Ok(pins)
    }

    /// The text of a file: JSON with a line for each member, in order, so that two of them can be compared.
    #[must_use]
    pub fn to_text(&self) -> String {
        // `{:#}` is the indented form.
        format!("{:#}\n", json!({ "version": 1, "tools": self.tools }))
    }

    /// The names of the tools, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tools.keys().map(String::as_str)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Print> {
        self.tools.get(name)
    }
}

impl FromIterator<(String, Print)> for Pins {
    fn from_iter<I: IntoIterator<Item = (String, Print)>>(tools: I) -> Self {
        Self {
            tools: tools.into_iter().collect(),
        }
    }
}

pub(super) fn print_of(tool: Value<'_>) -> Print {
    let mut print = Print::new();
    for (key, value) in tool.members() {
        let key = key.string();
        if key == "name" || PASSED_OVER.contains(&key.as_str()) {
            continue;
        }
        let hash = match serde_json::from_slice::<Json>(value.raw()) {
            Ok(json) => {
                let mut text = String::new();
                canonical(&json, &mut text);
                Sha256::digest(text.as_bytes())
            }
            // Nested too deep, or half of a pair: as it stands there.
            Err(_) => Sha256::digest(value.raw()),
        };
        let mut hex = String::with_capacity(64);
        for byte in hash {
            // Writing to memory can't fail.
            let _ = write!(hex, "{byte:02x}");
        }
        print.insert(key, hex);
    }
    print
}

/// JSON with the members of objects in order, and no white space. It is as deep as serde_json reads, 128 levels.
fn canonical(value: &Json, out: &mut String) {
    match value {
        Json::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (key, member) in members {
                out.push_str(&crate::llm::json::quoted(key));
                out.push(':');
                canonical(member, out);
                out.push(',');
            }
            out.push('}');
        }
        Json::Array(items) => {
            out.push('[');
            for item in items {
                canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

/// The members that differ, with what became of them.
pub(super) fn changed_members(before: &Print, now: &Print) -> String {
    let mut parts = Vec::new();
    for (member, hash) in before {
        match now.get(member) {
            None => parts.push(format!("{} gone", shown(member))),
            Some(other) if other != hash => parts.push(shown(member)),
            Some(_) => {}
        }
    }
    for member in now.keys().filter(|member| !before.contains_key(*member)) {
        parts.push(format!("{} new", shown(member)));
    }
    parts.truncate(8);
    parts.join(", ")
}

/// A name that a server chose, safe to show.
fn shown(member: &str) -> String {
    let safe = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '$');
    member.chars().filter(safe).take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::json::Tape;

    fn print(text: &str) -> Print {
        print_of(Tape::default().read(text.as_bytes()).unwrap())
    }

    #[test]
    fn a_print_depends_on_what_is_said_and_not_on_how_it_is_written() {
        let one = print(r#"{"name":"a","description":"x","inputSchema":{"type":"object","b":1}}"#);
        let other = print(
            r#"{"inputSchema": {"b":1, "type":"object"}, "_meta":{"t":1}, "description":"\u0078","name":"a"}"#,
        );
        assert_eq!(one, other);
        let changed =
            print(r#"{"name":"a","description":"y","inputSchema":{"type":"object"},"title":"A"}"#);
        assert_eq!(
            changed_members(&one, &changed),
            "description, inputSchema, title new"
        );
    }

    #[test]
    fn pins_are_read_as_they_were_written() {
        let pins: Pins = [
            ("b".to_owned(), print(r#"{"description":"x"}"#)),
            ("a".to_owned(), Print::new()),
        ]
        .into_iter()
        .collect();
        assert_eq!(Pins::parse(&pins.to_text()).unwrap(), pins);
        for text in [
            "",
            "[]",
            r#"{"version":2,"tools":{}}"#,
            r#"{"version":1,"tools":[]}"#,
            r#"{"version":1,"tools":{"a":1}}"#,
        ] {
            assert!(Pins::parse(text).is_err(), "{text}");
        }
    }
}
