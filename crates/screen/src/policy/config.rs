//! A policy in a file: TOML, a list of `[[rule]]`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tollgate_flow::filter::Filter;
use tollgate_flow::{closest, with_suggestion};
use toml::Spanned;

use super::glob::{Globs, Over, Pattern};
use super::{Action, CommandRule, HoldFor, Rule};
use crate::interceptor::Place;
use crate::scan::{Category, Confidence, Severity};

/// The largest policy.
const MAX_FILE: u64 = 1 << 20;
/// The longest name, and the longest message, of a rule.
const MAX_TEXT: usize = 1000;
/// The longest time that a person may have.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);
/// How long a person has, unless the rule says.
const WAIT: Duration = Duration::from_secs(120);

const ACTIONS: [&str; 5] = ["allow", "warn", "redact", "block", "hold"];
const SEVERITIES: [Severity; 4] = [
    Severity::Low,
    Severity::Medium,
    Severity::High,
    Severity::Critical,
];
const CONFIDENCES: [Confidence; 3] = [Confidence::Low, Confidence::Medium, Confidence::High];
const CATEGORIES: [Category; 8] = [
    Category::Secret,
    Category::KnownSecret,
    Category::PersonalData,
    Category::Exfiltration,
    Category::Destination,
    Category::Injection,
    Category::HiddenText,
    Category::Command,
];

/// A policy that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PolicyError {
    /// The file.
    pub file: String,
    /// The line, from 1; 0 where none is known.
    pub line: usize,
    /// What is wrong, and what to do.
    pub message: String,
}

impl PolicyError {
    pub(super) fn new(file: &str, line: usize, message: String) -> Self {
        Self {
            file: file.to_owned(),
            line,
            message,
        }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}: {}", self.file, self.message),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Spanned<RawRule>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: Option<String>,
    when: Option<Spanned<String>>,
    finding: Option<Spanned<Several>>,
    category: Option<Spanned<Several>>,
    severity: Option<Spanned<String>>,
    confidence: Option<Spanned<String>>,
    place: Option<Spanned<Several>>,
    destination: Option<Spanned<Several>>,
    process: Option<Spanned<Several>>,
    tainted: Option<bool>,
    method: Option<Spanned<Several>>,
    tool: Option<Spanned<Several>>,
    argument: Option<Spanned<BTreeMap<String, Wanted>>>,
    command: Option<Spanned<RawCommand>>,
    path: Option<Spanned<Several>>,
    url: Option<Spanned<Several>>,
    host: Option<Spanned<Several>>,
    action: Option<Spanned<String>>,
    restore: Option<bool>,
    #[serde(rename = "for")]
    deadline: Option<Spanned<String>>,
    then: Option<Spanned<String>>,
    message: Option<String>,
}

/// A word, or a list of words.
struct Several(Vec<String>);

impl<'de> Deserialize<'de> for Several {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl<'de> Visitor<'de> for Words {
            type Value = Several;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E>(self, word: &str) -> Result<Several, E> {
                Ok(Several(vec![word.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<Several, A::Error> {
                let mut all = Vec::new();
                while let Some(word) = words.next_element()? {
                    all.push(word);
                }
                Ok(Several(all))
            }
        }
        deserializer.deserialize_any(Words)
    }
}

/// Globs, or a regular expression.
enum Wanted {
    Globs(Vec<String>),
    Regex(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRegex {
    regex: String,
}

impl<'de> Deserialize<'de> for Wanted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Patterns;
        impl<'de> Visitor<'de> for Patterns {
            type Value = Wanted;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a glob, a list of globs, or { regex = \"…\" }")
            }

            fn visit_str<E>(self, glob: &str) -> Result<Wanted, E> {
                Ok(Wanted::Globs(vec![glob.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut globs: A) -> Result<Wanted, A::Error> {
                let mut all = Vec::new();
                while let Some(glob) = globs.next_element()? {
                    all.push(glob);
                }
                Ok(Wanted::Globs(all))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Wanted, A::Error> {
                let raw = RawRegex::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Wanted::Regex(raw.regex))
            }
        }
        deserializer.deserialize_any(Patterns)
    }
}

/// Globs for a command's line, or a table of what to look at.
#[derive(Default)]
struct RawCommand {
    line: Option<Several>,
    parts: RawParts,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawParts {
    program: Option<Several>,
    subcommand: Option<Several>,
    argument: Option<Several>,
    path: Option<Several>,
    host: Option<Several>,
    elevated: Option<bool>,
}

impl<'de> Deserialize<'de> for RawCommand {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Command;
        impl<'de> Visitor<'de> for Command {
            type Value = RawCommand;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a glob, a list of globs, or a table such as { program = \"git\" }")
            }

            fn visit_str<E>(self, glob: &str) -> Result<RawCommand, E> {
                Ok(RawCommand {
                    line: Some(Several(vec![glob.to_owned()])),
                    ..RawCommand::default()
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut globs: A) -> Result<RawCommand, A::Error> {
                let mut all = Vec::new();
                while let Some(glob) = globs.next_element()? {
                    all.push(glob);
                }
                Ok(RawCommand {
                    line: Some(Several(all)),
                    ..RawCommand::default()
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawCommand, A::Error> {
                Ok(RawCommand {
                    line: None,
                    parts: RawParts::deserialize(MapAccessDeserializer::new(map))?,
                })
            }
        }
        deserializer.deserialize_any(Command)
    }
}

/// Reads a file. Blocks.
pub(super) fn load(path: &Path) -> Result<Vec<Rule>, PolicyError> {
    let shown = path.display().to_string();
    let failed = |message: String| PolicyError::new(&shown, 0, message);
    let cant = |error: std::io::Error| failed(format!("can't be read: {error}"));
    if std::fs::metadata(path).map_err(cant)?.len() > MAX_FILE {
        return Err(failed(
            "is larger than 1 MiB, which no policy is".to_owned(),
        ));
    }
    let text = std::fs::read_to_string(path).map_err(cant)?;
    parse(&text, &shown)
}

/// Reads rules from text.
pub(super) fn parse(text: &str, shown: &str) -> Result<Vec<Rule>, PolicyError> {
    let line_of = |offset: usize| {
        let before = text.get(..offset.min(text.len())).unwrap_or(text);
        before.bytes().filter(|b| *b == b'\n').count() + 1
    };
    let file: File = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(0, |span| line_of(span.start));
        PolicyError::new(shown, line, with_suggestion(error.message()))
    })?;
    let file_name: Arc<str> = shown.into();
    let mut rules = Vec::with_capacity(file.rule.len());
    for raw in file.rule {
        let line = line_of(raw.span().start);
        let read = rule(raw.into_inner(), Arc::clone(&file_name), line);
        rules.push(read.map_err(|problem| {
            let line = problem.at.map_or(line, line_of);
            PolicyError::new(shown, line, problem.message)
        })?);
    }
    Ok(rules)
}

/// What is wrong, and where in the text.
struct Problem {
    at: Option<usize>,
    message: String,
}

impl From<String> for Problem {
    fn from(message: String) -> Self {
        Self { at: None, message }
    }
}

fn problem<T>(at: &Spanned<T>, message: String) -> Problem {
    Problem {
        at: Some(at.span().start),
        message,
    }
}

fn rule(raw: RawRule, file: Arc<str>, line: usize) -> Result<Rule, Problem> {
    for (what, text) in [("name", &raw.name), ("message", &raw.message)] {
        let long = text.as_ref().is_some_and(|text| text.len() > MAX_TEXT);
        if long || text.as_ref().is_some_and(|t| t.contains(char::is_control)) {
            return Err(format!("{what} is one line of at most {MAX_TEXT} bytes").into());
        }
    }
    let when = match &raw.when {
        None => None,
        Some(when) => {
            let text = when.get_ref();
            let filter = Filter::new(text).map_err(|error| {
                problem(
                    when,
                    format!("the filter is none: {}", error.pointed_at(text)),
                )
            })?;
            if filter.looks_at_responses() {
                return Err(problem(
                    when,
                    "the filter looks at the response, and the policy decides before there is one"
                        .to_owned(),
                ));
            }
            Some(filter)
        }
    };
    let about_calls = raw.tool.is_some()
        || raw.argument.is_some()
        || raw.command.is_some()
        || raw.path.is_some()
        || raw.url.is_some()
        || raw.host.is_some();
    let about_findings = raw.finding.is_some()
        || raw.category.is_some()
        || raw.severity.is_some()
        || raw.confidence.is_some();
    let places = words(raw.place.as_ref(), "place", Place::KINDS, |kind| *kind)?;
    if let (true, Some(place), Some(at)) = (about_calls, &places, &raw.place)
        && !place
            .iter()
            .any(|kind| ["tool-call", "request-body", "message"].contains(kind))
    {
        return Err(problem(
            at,
            "tool calls stand in the places tool-call, request-body and message (MCP)".to_owned(),
        ));
    }
    let action = action(&raw)?;
    if let (Action::Redact { .. }, Some(at), false) = (action, &raw.tool, about_findings) {
        return Err(problem(
            at,
            "redact takes out what was found: name a finding, a category or a severity".to_owned(),
        ));
    }
    if let (Action::Redact { .. } | Action::Hold(_), Some(at)) = (action, &raw.place)
        && at.get_ref().0.iter().any(|kind| kind == "answer-text")
    {
        return Err(problem(
            at,
            "the text of an answer has passed when it is judged: there, a rule can allow, warn or block".to_owned(),
        ));
    }
    let argument = match &raw.argument {
        None => Vec::new(),
        Some(all) if all.get_ref().is_empty() => {
            return Err(problem(all, "there is no argument in it".to_owned()));
        }
        Some(all) => {
            let mut read = Vec::new();
            for (at, wanted) in all.get_ref() {
                let pattern = match wanted {
                    Wanted::Globs(globs) => Globs::new(globs, Over::Text).map(Pattern::Globs),
                    Wanted::Regex(regex) => Pattern::regex(regex),
                };
                let pattern = pattern.map_err(|message| problem(all, message))?;
                read.push((pointer(at), pattern));
            }
            read
        }
    };
    Ok(Rule {
        when,
        finding: globs(raw.finding.as_ref(), Over::Text)?,
        category: words(raw.category.as_ref(), "category", CATEGORIES, |c| {
            c.as_str()
        })?,
        severity: word(raw.severity.as_ref(), "severity", SEVERITIES, |s| {
            s.as_str()
        })?,
        confidence: word(raw.confidence.as_ref(), "confidence", CONFIDENCES, |c| {
            c.as_str()
        })?,
        place: places,
        destination: globs(raw.destination.as_ref(), Over::Caseless)?,
        process: globs(raw.process.as_ref(), Over::Text)?,
        tainted: raw.tainted,
        method: globs(raw.method.as_ref(), Over::Text)?,
        tool: globs(raw.tool.as_ref(), Over::Caseless)?,
        argument,
        command: command(raw.command.as_ref())?,
        path: globs(raw.path.as_ref(), Over::Path)?,
        url: globs(raw.url.as_ref(), Over::Text)?,
        host: globs(raw.host.as_ref(), Over::Caseless)?,
        action,
        message: raw.message.map(Arc::from),
        name: raw.name,
        file,
        line,
    })
}

fn action(raw: &RawRule) -> Result<Action, Problem> {
    let Some(named) = &raw.action else {
        return Err(format!("the rule has no action: {}", ACTIONS.join(", ")).into());
    };
    let name = named.get_ref().as_str();
    if raw.restore.is_some() && name != "redact" {
        return Err(problem(
            named,
            "restore says what redact does with the answer".to_owned(),
        ));
    }
    if (raw.deadline.is_some() || raw.then.is_some()) && name != "hold" {
        return Err(problem(
            named,
            "for and then say how long hold waits, and what follows".to_owned(),
        ));
    }
    Ok(match name {
        "allow" => Action::Allow,
        "warn" => Action::Warn,
        "redact" => Action::Redact {
            restore: raw.restore.unwrap_or(false),
        },
        "block" => Action::Block,
        "hold" => {
            let deadline = match &raw.deadline {
                None => WAIT,
                Some(text) => duration(text.get_ref()).map_err(|e| problem(text, e))?,
            };
            let then = word(raw.then.as_ref(), "then", ["allow", "block"], |w| *w)?;
            Action::Hold(HoldFor {
                deadline,
                then_allow: then == Some("allow"),
            })
        }
        other => return Err(problem(named, unknown("action", other, ACTIONS))),
    })
}

fn command(raw: Option<&Spanned<RawCommand>>) -> Result<Option<CommandRule>, Problem> {
    let Some(at) = raw else {
        return Ok(None);
    };
    let raw = at.get_ref();
    let read = |words: &Option<Several>, over| match words {
        None => Ok(None),
        Some(words) => Globs::new(&words.0, over)
            .map(Some)
            .map_err(|message| problem(at, message)),
    };
    let rule = CommandRule {
        line: read(&raw.line, Over::Text)?,
        program: read(&raw.parts.program, Over::Text)?,
        subcommand: read(&raw.parts.subcommand, Over::Text)?,
        argument: read(&raw.parts.argument, Over::Text)?,
        path: read(&raw.parts.path, Over::Path)?,
        host: read(&raw.parts.host, Over::Caseless)?,
        elevated: raw.parts.elevated,
    };
    let empty = rule.line.is_none()
        && rule.program.is_none()
        && rule.subcommand.is_none()
        && rule.argument.is_none()
        && rule.path.is_none()
        && rule.host.is_none()
        && rule.elevated.is_none();
    if empty {
        return Err(problem(
            at,
            "a command has program, subcommand, argument, path, host or elevated".to_owned(),
        ));
    }
    Ok(Some(rule))
}

fn globs(raw: Option<&Spanned<Several>>, over: Over) -> Result<Option<Globs>, Problem> {
    raw.map(|words| Globs::new(&words.get_ref().0, over).map_err(|message| problem(words, message)))
        .transpose()
}

/// A list of words that are known.
fn words<T: Copy, const N: usize>(
    raw: Option<&Spanned<Several>>,
    what: &str,
    known: [T; N],
    name: impl Fn(&T) -> &'static str,
) -> Result<Option<Vec<T>>, Problem> {
    let Some(at) = raw else {
        return Ok(None);
    };
    let mut found = Vec::new();
    for word in &at.get_ref().0 {
        match known.iter().find(|known| name(known) == word) {
            Some(known) => found.push(*known),
            None => {
                return Err(problem(
                    at,
                    unknown(what, word, known.each_ref().map(&name)),
                ));
            }
        }
    }
    match found.is_empty() {
        true => Err(problem(at, format!("there is no {what} in it"))),
        false => Ok(Some(found)),
    }
}

/// A word that is known.
fn word<T: Copy, const N: usize>(
    raw: Option<&Spanned<String>>,
    what: &str,
    known: [T; N],
    name: impl Fn(&T) -> &'static str,
) -> Result<Option<T>, Problem> {
    let Some(at) = raw else {
        return Ok(None);
    };
    let word = at.get_ref();
    match known.iter().find(|known| name(known) == word) {
        Some(known) => Ok(Some(*known)),
        None => Err(problem(
            at,
            unknown(what, word, known.each_ref().map(&name)),
        )),
    }
}

fn unknown<const N: usize>(what: &str, word: &str, known: [&str; N]) -> String {
    match closest(word, known) {
        Some(meant) => format!("'{word}' is no {what}; did you mean '{meant}'?"),
        None => format!("'{word}' is no {what}; there are {}", known.join(", ")),
    }
}

/// A JSON pointer (RFC 6901); a name without a slash is a member of the arguments.
fn pointer(text: &str) -> Vec<String> {
    match text.strip_prefix('/') {
        None if text.is_empty() => Vec::new(),
        None => vec![text.to_owned()],
        Some(rest) => rest
            .split('/')
            .map(|segment| segment.replace("~1", "/").replace("~0", "~"))
            .collect(),
    }
}

/// A time with a unit: `30s`, `2min`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end).unwrap_or((text, ""));
    let scale = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let time = digits.parse::<u64>().ok();
    let time = time.and_then(|number| number.checked_mul(scale));
    time.map(Duration::from_millis)
        .filter(|time| !time.is_zero() && *time <= MAX_WAIT)
        .ok_or_else(|| format!("'{text}' is no time such as 30s, 2min or 1h, up to 24h"))
}
