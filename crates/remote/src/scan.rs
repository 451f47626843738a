//! `POST /scan`: one JSON object in, one JSON object out. No sockets: whoever has a listener calls [`answer`].
//!
//! | `kind` | what it has | judged as |
//! |---|---|---|
//! | `text`, `outbound` | `text`, or `body_b64` with `content_encoding` | what leaves |
//! | `inbound` | the same | what comes in: reported, never blocked |
//! | `command` | the same | a shell command |
//! | `url` | `url`, `method` | a request without a body |
//! | `tool_call` | `name`, `arguments` (an object, or a string of JSON) | a call in a model's answer |
//! | `request` | `method`, `url`, `headers`, and `text` or `body_b64` | a request that leaves |
//! | `response` | `status`, `headers`, and `text` or `body_b64`; `method` and `url` of its request | an answer |
//!
//! The answer has `verdict` (`allow` or `block`), `findings`, and `id` if there was one. A body of a `request` or `response`
//! is as it was on the wire: its headers say how it is coded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::error::Category;
use serde_json::{Map, Value, json};
use tollgate_flow::{Bytes, Direction};
use tollgate_screen::Verdict;
use tollgate_screen::scan::{Finding, Kind};
use tollgate_wire::coding::{Decoder, OutputLimit};
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http1::{RequestHead, ResponseHead, Version, standard_reason};

use crate::judge::{Exchange, Judge, Said};

/// What a body may decode to.
const MAX_DECODED: u64 = 64 << 20;
/// Findings that are named one by one.
const MAX_FINDINGS: usize = 1000;

/// What to answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// 200, or 400 for what can't be understood.
    pub status: u16,
    /// The JSON.
    pub body: Value,
}

/// Judges what is asked.
///
/// ```
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// # runtime.block_on(async {
/// use std::sync::Arc;
/// use tollgate_remote::{Judge, scan};
/// use tollgate_screen::scan::Scanner;
/// use tollgate_screen::{Screen, ScreenConfig};
///
/// let scanner = Scanner::builtin();
/// let screen = Screen::new(scanner.clone(), ScreenConfig::default());
/// let judge = Judge::new(screen, scanner, Arc::new(|_| ()));
/// let answer = scan::answer(&judge, br#"{"id": 7, "kind": "text", "text": "hello"}"#).await;
/// assert_eq!(answer.body, serde_json::json!({ "id": 7, "verdict": "allow", "findings": [] }));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
pub async fn answer(judge: &Judge, body: &[u8]) -> Answer {
    let asked: Asked = match serde_json::from_slice(body) {
        Ok(asked) => asked,
        Err(error) => {
            let at = format!("at line {} column {}", error.line(), error.column());
            let why = match (error.classify(), error.to_string()) {
                // What is missing, or isn't known. A value of the client's stands only in what serde calls invalid.
                (Category::Data, words) if !words.starts_with("invalid") => words,
                (Category::Data, _) => format!("a field's value is of another type, {at}"),
                _ => format!("the body is not JSON, {at}"),
            };
            return refused(None, &why);
        }
    };
    match judged(judge, &asked).await {
        Ok(outcome) => {
            let mut object = Map::new();
            if let Some(id) = asked.id {
                object.insert("id".to_owned(), id);
            }
            let verdict = if outcome.blocked { "block" } else { "allow" };
            object.insert("verdict".to_owned(), json!(verdict));
            if let Some(reason) = outcome.reason.filter(|_| outcome.blocked) {
                object.insert("reason".to_owned(), json!(reason));
            }
            if outcome.findings.len() > MAX_FINDINGS {
                object.insert(
                    "more".to_owned(),
                    json!(outcome.findings.len() - MAX_FINDINGS),
                );
            }
            let findings = outcome.findings.iter().take(MAX_FINDINGS);
            let findings: Vec<Value> = findings
                .map(|(place, finding)| shown(place, finding))
                .collect();
            object.insert("findings".to_owned(), json!(findings));
            Answer {
                status: 200,
                body: Value::Object(object),
            }
        }
        Err(why) => refused(asked.id, &why),
    }
}

/// What is asked. An unknown field is an error: it would be one that isn't looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    id: Option<Value>,
    kind: String,
    text: Option<String>,
    body_b64: Option<String>,
    content_encoding: Option<String>,
    method: Option<String>,
    url: Option<String>,
    headers: Option<Headers>,
    status: Option<u16>,
    name: Option<String>,
    arguments: Option<Value>,
}

/// Header lines in their order, or an object of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Headers {
    Lines(Vec<(String, String)>),
    Object(Map<String, Value>),
}

#[derive(Default)]
struct Outcome {
    blocked: bool,
    reason: Option<String>,
    findings: Vec<(Option<String>, Finding)>,
}

async fn judged(judge: &Judge, asked: &Asked) -> Result<Outcome, String> {
    let kind = match &*asked.kind {
        "text" => Some(Kind::Outbound),
        other => Kind::parse(other),
    };
    if let Some(kind) = kind {
        only(asked, &["text", "body_b64", "content_encoding"])?;
        return text(judge, kind, asked).await;
    }
    match &*asked.kind {
        "url" => {
            only(asked, &["url", "method"])?;
            let head = request_head(asked, 0)?;
            request(judge, head, Bytes::new()).await
        }
        "tool_call" => {
            only(asked, &["name", "arguments"])?;
            tool_call(judge, asked).await
        }
        "request" => {
            only(asked, &["method", "url", "headers", "text", "body_b64"])?;
            let body = body(asked)?.unwrap_or_default();
            let head = request_head(asked, body.len())?;
            request(judge, head, body).await
        }
        "response" => {
            only(
                asked,
                &["method", "url", "headers", "status", "text", "body_b64"],
            )?;
            let body = body(asked)?.unwrap_or_default();
            let status = asked.status.ok_or("a response needs its status")?;
            let reason = standard_reason(status);
            let mut head = ResponseHead::build(status, reason.as_bytes())
                .map_err(|error| error.to_string())?;
            put_headers(&asked.headers, &mut head.headers, body.len())?;
            let method = asked.method.as_deref().unwrap_or("GET");
            let url = asked.url.as_deref().unwrap_or("http://unknown/");
            let request = RequestHead::build(method.as_bytes(), url.as_bytes(), Version::Http11)
                .map_err(|error| error.to_string())?;
            response(judge, request, head, &body).await
        }
        other => Err(format!(
            "the kind {other:?} is none of text, outbound, inbound, command, url, tool_call, request, response"
        )),
    }
}

/// Refuses fields that mean nothing for a kind.
fn only(asked: &Asked, known: &[&str]) -> Result<(), String> {
    let given = [
        ("text", asked.text.is_some()),
        ("body_b64", asked.body_b64.is_some()),
        ("content_encoding", asked.content_encoding.is_some()),
        ("method", asked.method.is_some()),
        ("url", asked.url.is_some()),
        ("headers", asked.headers.is_some()),
        ("status", asked.status.is_some()),
        ("name", asked.name.is_some()),
        ("arguments", asked.arguments.is_some()),
    ];
    match given
        .iter()
        .find(|(name, given)| *given && !known.contains(name))
    {
        Some((name, _)) => Err(format!("{name} means nothing for the kind {}", asked.kind)),
        None => Ok(()),
    }
}

/// What is found is told whole; what follows is what would follow where such a text stands.
async fn text(judge: &Judge, kind: Kind, asked: &Asked) -> Result<Outcome, String> {
    let coded = body(asked)?.ok_or("neither text nor body_b64")?;
    let limit = OutputLimit {
        total: MAX_DECODED,
        per_feed: 64 << 20,
    };
    let coding = asked.content_encoding.as_deref().unwrap_or_default();
    let decoder = Decoder::new(std::iter::once(coding.as_bytes()), limit)
        .map_err(|error| error.to_string())?;
    let plain = match decoder {
        None => coded,
        Some(mut decoder) => {
            let mut plain = Vec::new();
            decoder
                .feed(&coded, &mut plain)
                .map_err(|error| error.to_string())?;
            decoder
                .finish(&mut plain)
                .map_err(|error| error.to_string())?;
            Bytes::from(plain)
        }
    };
    let findings = judge.scan(kind, &plain);
    let outcome = match kind {
        Kind::Inbound => Outcome::default(),
        Kind::Outbound => {
            let url = b"http://scan.invalid/";
            let mut head = RequestHead::build(b"POST", url, Version::Http11)
                .map_err(|error| error.to_string())?;
            put_headers(&None, &mut head.headers, plain.len())?;
            request(judge, head, plain).await?
        }
        Kind::Command => {
            let command = String::from_utf8_lossy(&plain);
            call(judge, "bash", &json!({ "command": command }).to_string()).await?
        }
    };
    Ok(Outcome {
        findings: findings
            .into_iter()
            .map(|finding| (None, finding))
            .collect(),
        ..outcome
    })
}

async fn tool_call(judge: &Judge, asked: &Asked) -> Result<Outcome, String> {
    let name = asked.name.as_deref().ok_or("a tool_call needs its name")?;
    let arguments = match &asked.arguments {
        None => "{}".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    call(judge, name, &arguments).await
}

/// A call is judged where it stands in a model's answer, so that whatever decides about calls decides about this one.
async fn call(judge: &Judge, name: &str, arguments: &str) -> Result<Outcome, String> {
    let body = json!({
        "object": "chat.completion",
        "choices": [{
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": null,
                "tool_calls": [{
                    "id": "call_1",
                    "type": "function",
                    "function": { "name": name, "arguments": arguments },
                }],
            },
        }],
    })
    .to_string();
    let built = |error: tollgate_wire::headers::InvalidHeader| error.to_string();
    let url = b"http://tool-call.invalid/v1/chat/completions";
    let request = RequestHead::build(b"POST", url, Version::Http11).map_err(built)?;
    let mut head = ResponseHead::build(200, b"OK").map_err(built)?;
    head.headers
        .append(b"Content-Type", b"application/json")
        .map_err(built)?;
    response(judge, request, head, body.as_bytes()).await
}

async fn request(judge: &Judge, head: RequestHead, body: Bytes) -> Result<Outcome, String> {
    let mut exchange = judge
        .request(head, !body.is_empty())
        .map_err(|_| "the URL is none of http or https with a host")?;
    if exchange.collects() || body.is_empty() {
        let said = exchange.judge_request(Some(body)).await;
        return Ok(outcome(judge, &exchange, &said));
    }
    let mut said = exchange.judge_request(None).await;
    for piece in [Some(&body[..]), None] {
        if matches!(said, Said::Pass | Said::Replace(_)) {
            said = exchange.judge_piece(Direction::Request, piece).await;
        }
    }
    Ok(outcome(judge, &exchange, &said))
}

async fn response(
    judge: &Judge,
    request: RequestHead,
    head: ResponseHead,
    body: &[u8],
) -> Result<Outcome, String> {
    let mut exchange = judge
        .request(request, false)
        .map_err(|_| "the URL is none of http or https with a host")?;
    let (mut said, gated) = exchange.judge_answer(head).await;
    for piece in [Some(body), None] {
        if !matches!(said, Said::Pass | Said::Replace(_)) {
            break;
        }
        if gated {
            said = exchange.judge_piece(Direction::Response, piece).await;
        } else if exchange.is_text() {
            exchange.read_inbound(piece);
        }
    }
    Ok(outcome(judge, &exchange, &said))
}

fn outcome(judge: &Judge, exchange: &Exchange, said: &Said) -> Outcome {
    let verdicts = exchange.verdicts();
    // There is no way to give back what was redacted.
    let refused: Option<&Verdict> = verdicts.iter().find(|verdict| judge.counts(verdict));
    let blocked = refused.is_some() || matches!(said, Said::Reply(_) | Said::Close(_));
    let reason = match (refused, said) {
        (Some(verdict), _) => Some(format!("{} in {}", verdict.reason, verdict.place)),
        (None, Said::Close(reason)) => Some(reason.clone()),
        _ => None,
    };
    let findings = verdicts.iter().flat_map(|verdict| {
        let place = verdict.place.path();
        verdict
            .findings
            .iter()
            .map(move |finding| (Some(place.clone()), finding.clone()))
    });
    Outcome {
        blocked,
        reason,
        findings: findings.collect(),
    }
}

fn request_head(asked: &Asked, length: usize) -> Result<RequestHead, String> {
    let url = asked.url.as_deref().ok_or("there is no url")?;
    let method = asked.method.as_deref().unwrap_or("GET");
    let mut head = RequestHead::build(method.as_bytes(), url.as_bytes(), Version::Http11)
        .map_err(|error| error.to_string())?;
    put_headers(&asked.headers, &mut head.headers, length)?;
    Ok(head)
}

/// The header lines, with a length that is true: what says how a body was framed is no part of it here.
fn put_headers(given: &Option<Headers>, to: &mut HeaderList, length: usize) -> Result<(), String> {
    let mut put = |name: &str, value: &str| {
        to.append(name.as_bytes(), value.as_bytes())
            .map_err(|error| format!("the header {name:?}: {error}"))
    };
    match given {
        None => {}
        Some(Headers::Lines(lines)) => {
            for (name, value) in lines {
                put(name, value)?;
            }
        }
        Some(Headers::Object(object)) => {
            for (name, value) in object {
                match value {
                    Value::String(value) => put(name, value)?,
                    Value::Array(values) => {
                        for value in values {
                            let value = value.as_str().ok_or("a header's value is no string")?;
                            put(name, value)?;
                        }
                    }
                    _ => return Err("a header's value is no string".to_owned()),
                }
            }
        }
    }
    to.remove("transfer-encoding");
    to.set(b"Content-Length", length.to_string().as_bytes())
        .map_err(|error| error.to_string())
}

fn body(asked: &Asked) -> Result<Option<Bytes>, String> {
    match (&asked.text, &asked.body_b64) {
        (Some(text), None) => Ok(Some(Bytes::copy_from_slice(text.as_bytes()))),
        (None, Some(coded)) => match STANDARD.decode(coded) {
            Ok(bytes) => Ok(Some(Bytes::from(bytes))),
            Err(_) => Err("body_b64 is not base64".to_owned()),
        },
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err("both text and body_b64".to_owned()),
    }
}

fn shown(place: &Option<String>, finding: &Finding) -> Value {
    let mut value = finding.to_json();
    if let Some(map) = value.as_object_mut() {
        map.insert("allow".to_owned(), json!(finding.allow_hint()));
        if let Some(place) = place {
            map.insert("place".to_owned(), json!(place));
        }
    }
    value
}

fn refused(id: Option<Value>, why: &str) -> Answer {
    let mut object = Map::new();
    if let Some(id) = id {
        object.insert("id".to_owned(), id);
    }
    object.insert("error".to_owned(), json!(why));
    Answer {
        status: 400,
        body: Value::Object(object),
    }
}
