//! What Tollgate knows and mitmproxy has no field for: the entry `tollgate` of a flow's metadata.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::connection::ProcessInfo;
use crate::outcome::OutcomeKind;
use crate::record::{Body, HttpExchange, Record};
use crate::step::PieceMark;
use crate::value::Value;

const KEY: &str = "tollgate";

/// What goes into the metadata of a record under [`KEY`]: its facts, the marks of cut bodies, and what was there and is
/// not understood.
pub(super) fn entry(record: &Record) -> Option<Value> {
    let mut entries = Vec::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            entries.push((key.into(), value));
        }
    };
    let facts = &record.facts;
    put("ja3", facts.ja3.clone().map(Value::from));
    put("ja4", facts.ja4.clone().map(Value::from));
    put("outcome", facts.outcome.map(|kind| kind.as_str().into()));
    put("process", facts.process.as_deref().map(process));
    let pieces = &facts.response_pieces;
    put(
        "response_pieces",
        (!pieces.is_empty()).then(|| write_pieces(pieces).into()),
    );
    let (request, response) = match record.as_http() {
        Some(http) => bodies(http),
        None => (None, None),
    };
    put(
        "request_bytes",
        request.and_then(|body| body.cut_from).map(Value::from),
    );
    put(
        "response_bytes",
        response.and_then(|body| body.cut_from).map(Value::from),
    );
    for (_, rest) in record.metadata.0.iter().filter(|entry| is_ours(entry)) {
        if let Value::Dict(rest) = rest {
            entries.extend(rest.iter().cloned());
        }
    }
    (!entries.is_empty()).then_some(Value::Dict(entries))
}

/// The metadata without the entry, which is written by itself.
pub(super) fn others(record: &Record) -> impl Iterator<Item = &(Value, Value)> {
    record.metadata.0.iter().filter(|entry| !is_ours(entry))
}

fn is_ours((key, value): &(Value, Value)) -> bool {
    key.as_str() == Some(KEY) && matches!(value, Value::Dict(_))
}

/// Moves what is understood of the entry to where it belongs.
pub(super) fn take(record: &mut Record) {
    let mut entries = Vec::new();
    record.metadata.0.retain_mut(|entry| {
        let is_ours = is_ours(entry);
        if is_ours && let Value::Dict(found) = &mut entry.1 {
            entries.append(found);
        }
        !is_ours
    });
    let mut rest = Vec::new();
    for (key, value) in entries {
        let understood = match (key.as_str().unwrap_or_default(), &value) {
            ("ja3", Value::Str(text)) => {
                record.facts.ja3 = Some(text.clone());
                true
            }
            ("ja4", Value::Str(text)) => {
                record.facts.ja4 = Some(text.clone());
                true
            }
            ("outcome", Value::Str(text)) => {
                record.facts.outcome = OutcomeKind::parse(text);
                record.facts.outcome.is_some()
            }
            ("process", value) => {
                record.facts.process = read_process(value).map(Arc::new);
                record.facts.process.is_some()
            }
            ("response_pieces", Value::Str(text)) => match read_pieces(text) {
                Some(pieces) => {
                    record.facts.response_pieces = pieces;
                    true
                }
                None => false,
            },
            ("request_bytes", value) => cut(
                record
                    .as_http_mut()
                    .map(|http| &mut http.request.message.body),
                value,
            ),
            ("response_bytes", value) => {
                let response = record.as_http_mut().and_then(|http| http.response.as_mut());
                cut(response.map(|response| &mut response.message.body), value)
            }
            _ => false,
        };
        if !understood {
            rest.push((key, value));
        }
    }
    if !rest.is_empty() {
        record.metadata.0.push((KEY.into(), Value::Dict(rest)));
    }
}

fn bodies(http: &HttpExchange) -> (Option<&Body>, Option<&Body>) {
    let response = http
        .response
        .as_ref()
        .map(|response| &response.message.body);
    (Some(&http.request.message.body), response)
}

fn cut(body: Option<&mut Body>, size: &Value) -> bool {
    let (Some(body), Some(size)) = (body, size.as_u64()) else {
        return false;
    };
    let kept = body.data.as_ref().map_or(0, |data| data.len() as u64);
    if size <= kept {
        return false;
    }
    body.cut_from = Some(size);
    true
}

/// `bytes@microseconds`, divided by blanks.
fn write_pieces(pieces: &[PieceMark]) -> String {
    let mut text = String::with_capacity(pieces.len() * 12);
    for piece in pieces {
        if !text.is_empty() {
            text.push(' ');
        }
        // Writing to a string doesn't fail.
        let _ = write!(text, "{}@{}", piece.bytes, piece.at.as_micros());
    }
    text
}

fn read_pieces(text: &str) -> Option<Vec<PieceMark>> {
    text.split(' ')
        .map(|piece| {
            let (bytes, at) = piece.split_once('@')?;
            Some(PieceMark {
                bytes: bytes.parse().ok()?,
                at: Duration::from_micros(at.parse().ok()?),
            })
        })
        .collect()
}

fn process(process: &ProcessInfo) -> Value {
    let mut entries: Vec<(Value, Value)> = vec![("pid".into(), process.pid.into())];
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            entries.push((key.into(), value));
        }
    };
    put("name", process.name.clone().map(Value::from));
    let executable = process.executable.as_ref();
    put(
        "executable",
        executable.map(|path| path.to_string_lossy().into_owned().into()),
    );
    let command: Vec<Value> = process
        .command
        .iter()
        .map(|word| word.as_str().into())
        .collect();
    put(
        "command",
        (!command.is_empty()).then_some(Value::List(command)),
    );
    put("parent_pid", process.parent_pid.map(Value::from));
    put("parent_name", process.parent_name.clone().map(Value::from));
    Value::Dict(entries)
}

fn read_process(value: &Value) -> Option<ProcessInfo> {
    let number = |key| u32::try_from(value.get(key)?.as_u64()?).ok();
    let text = |key| value.get(key)?.as_str().map(str::to_owned);
    Some(ProcessInfo {
        pid: number("pid")?,
        parent_pid: number("parent_pid"),
        parent_name: text("parent_name"),
        executable: text("executable").map(PathBuf::from),
        name: text("name"),
        command: match value.get("command") {
            Some(Value::List(words)) => words
                .iter()
                .filter_map(|word| word.as_str().map(str::to_owned))
                .collect(),
            _ => Vec::new(),
        },
    })
}
