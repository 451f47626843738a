//! A recorded flow as lines, and as one line of JSON with the names of `--json`.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use tollgate_flow::record::{
    Address, Content, DnsMessage, HttpExchange, HttpMessage, Record, StreamMessage, Timestamp,
};

use super::json::timestamp;
use super::line::{pretty_size, status_colour};
use super::style::{Colour, Style, harmless};

/// Appends a flow as mitmdump shows it: a line for the request, one for the response, one for an error.
pub fn record_lines(out: &mut String, record: &Record, style: Style) {
    let client = address(record.client.common.peername.as_ref());
    let server = address(record.server.address.as_ref());
    let client = harmless(&client, false);
    let server = harmless(&server, false);
    match &record.content {
        Content::Http(http) => http_lines(out, http, &client, style),
        Content::Tcp(messages) | Content::Udp(messages) => {
            let kind = record.flow_type().as_str();
            let _ = write!(out, "{client} <-> {kind} <-> {server}  ");
            let (count, bytes) = totals(messages);
            let messages = if count == 1 { "message" } else { "messages" };
            style.bold(
                out,
                &format!("{count} {messages}, {}", pretty_size(bytes)),
                None,
            );
            out.push('\n');
        }
        Content::Dns(dns) => {
            let names: Vec<_> = dns
                .request
                .questions
                .iter()
                .map(|q| q.name.as_str())
                .collect();
            let _ = write!(out, "{client}: DNS ");
            style.bold(out, &harmless(&names.join(", "), false), None);
            out.push('\n');
            if let Some(response) = &dns.response {
                style.bold(out, " <<", None);
                let _ = writeln!(out, " {}", harmless(&answers(response).join(", "), false));
            }
        }
    }
    if let Some(error) = &record.error {
        let text = format!(" << {}", error.message);
        style.bold(out, &harmless(&text, false), Some(Colour::Red));
        out.push('\n');
    }
}

fn http_lines(out: &mut String, http: &HttpExchange, client: &str, style: Style) {
    let request = &http.request;
    let method = lossy(&request.method);
    let colour = match method.as_str() {
        "GET" => Colour::Green,
        "DELETE" => Colour::Red,
        _ => Colour::Magenta,
    };
    let _ = write!(out, "{client}: ");
    style.bold(out, &harmless(&method, false), Some(colour));
    out.push(' ');
    style.bold(out, &harmless(&request.pretty_url(), false), None);
    let is_plain = |message: &HttpMessage| message.version.starts_with(b"HTTP/1");
    let response = http.response.as_ref();
    let shows_versions = !is_plain(&request.message)
        || response.is_some_and(|response| response.message.version != request.message.version);
    if shows_versions {
        let _ = write!(
            out,
            " {}",
            harmless(&lossy(&request.message.version), false)
        );
    }
    out.push('\n');
    if let Some(response) = response {
        style.bold(out, " <<", None);
        out.push(' ');
        if shows_versions {
            let _ = write!(
                out,
                "{} ",
                harmless(&lossy(&response.message.version), false)
            );
        }
        let colour = status_colour(response.status);
        style.bold(out, &response.status.to_string(), colour);
        out.push(' ');
        if !response.reason.is_empty() {
            style.bold(out, &harmless(&lossy(&response.reason), false), colour);
            out.push(' ');
        }
        let size = match response.message.body.size() {
            Some(size) => pretty_size(size),
            None => "(content missing)".to_owned(),
        };
        style.bold(out, &size, None);
        out.push('\n');
    }
    if let Some(websocket) = &http.websocket {
        let bytes = websocket
            .messages
            .iter()
            .map(|message| message.content.len() as u64)
            .sum();
        let count = websocket.messages.len();
        let messages = if count == 1 { "message" } else { "messages" };
        style.bold(out, " <-> WebSocket", None);
        let _ = writeln!(out, " {count} {messages}, {}", pretty_size(bytes));
    }
}

/// Appends a flow as an object and a line end.
pub fn record_json(out: &mut String, record: &Record) {
    let mut line = Map::new();
    let mut put = |name: &str, value: Value| line.insert(name.to_owned(), value);
    put("id", json!(record.id));
    put("type", json!(record.flow_type().as_str()));
    put("started", time(record.created));
    put(
        "client",
        json!(
            record
                .client
                .common
                .peername
                .as_ref()
                .map(|a| address(Some(a)))
        ),
    );
    put(
        "server",
        json!(record.server.address.as_ref().map(|a| address(Some(a)))),
    );
    match &record.content {
        Content::Http(http) => {
            let request = &http.request;
            let response = http.response.as_ref();
            put("method", json!(lossy(&request.method)));
            put("url", json!(request.pretty_url()));
            put("version", json!(lossy(&request.message.version)));
            put("request_bytes", json!(request.message.body.size()));
            put("status", json!(response.map(|response| response.status)));
            put(
                "response_version",
                json!(response.map(|r| lossy(&r.message.version))),
            );
            put(
                "response_bytes",
                json!(response.and_then(|r| r.message.body.size())),
            );
            let content_type = response.and_then(|r| r.message.headers.get("content-type"));
            put("content_type", json!(content_type.map(lossy)));
            let since = |moment: Option<Timestamp>| {
                moment
                    .and_then(|moment| moment.since(request.message.started))
                    .map(millis)
            };
            put(
                "durations_ms",
                json!({
                    "request": since(request.message.ended),
                    "response_start": since(response.map(|r| r.message.started)),
                    "total": since(response.and_then(|r| r.message.ended)),
                }),
            );
            if let Some(websocket) = &http.websocket {
                put("messages", json!(websocket.messages.len()));
            }
        }
        Content::Tcp(messages) | Content::Udp(messages) => {
            let (count, bytes) = totals(messages);
            put("messages", json!(count));
            put("bytes", json!(bytes));
        }
        Content::Dns(dns) => {
            let names: Vec<_> = dns.request.questions.iter().map(|q| &q.name).collect();
            put("questions", json!(names));
            put("answers", json!(dns.response.as_ref().map(answers)));
        }
    }
    let client = &record.client.common;
    if client.tls {
        put(
            "tls",
            json!({
                "sni": client.sni,
                "alpn": client.alpn.as_deref().map(lossy),
                "version": client.tls_version,
                "ja3": record.facts.ja3,
                "ja4": record.facts.ja4,
            }),
        );
    }
    put(
        "outcome",
        json!(record.facts.outcome.map(|outcome| outcome.as_str())),
    );
    put(
        "error",
        json!(record.error.as_ref().map(|error| &error.message)),
    );
    put("marked", json!(record.marked));
    put("comment", json!(record.comment));
    let _ = writeln!(out, "{}", Value::Object(line));
}

fn answers(response: &DnsMessage) -> Vec<String> {
    let text = |record: &tollgate_flow::record::ResourceRecord| {
        let mut text = String::new();
        record.write_text(&mut text);
        text
    };
    response.answers.iter().map(text).collect()
}

fn totals(messages: &[StreamMessage]) -> (usize, u64) {
    let bytes = messages
        .iter()
        .map(|message| message.content.len() as u64)
        .sum();
    (messages.len(), bytes)
}

fn address(address: Option<&Address>) -> String {
    match address {
        None => "?".to_owned(),
        Some(address) if address.host.contains(':') => {
            format!("[{}]:{}", address.host, address.port)
        }
        Some(address) => format!("{}:{}", address.host, address.port),
    }
}

fn time(moment: Timestamp) -> Value {
    let since = Duration::try_from_secs_f64(moment.seconds()).ok();
    json!(
        since
            .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since))
            .map(timestamp)
    )
}

fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_flow::record::{Body, HttpRequest, HttpResponse, RecordError};

    fn record() -> Record {
        let mut request = HttpRequest::new("GET", "https", "a.example", 443, "/\x1b[2J");
        request.message.started = Timestamp::new(1700000000.5);
        let mut exchange = HttpExchange::new(request);
        let mut response = HttpResponse::new(404, "Not Found");
        response.message.started = Timestamp::new(1700000001.0);
        response.message.body = Body::kept("ab", 2048);
        exchange.response = Some(response);
        Record::http("an id", exchange)
    }

    #[test]
    fn lines_can_do_no_harm_to_a_terminal() {
        let mut record = record();
        record.error = Some(RecordError {
            message: "reset".to_owned(),
            timestamp: Timestamp::default(),
        });
        let mut out = String::new();
        record_lines(&mut out, &record, Style::PLAIN);
        assert_eq!(
            out,
            ":0: GET https://a.example/␛[2J\n << 404 Not Found 2.0k\n << reset\n"
        );
    }

    #[test]
    fn json_has_the_names_of_live_flows() {
        let mut out = String::new();
        record_json(&mut out, &record());
        let line: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(line["started"], "2023-11-14T22:13:20.500Z");
        assert_eq!(line["status"], 404);
        assert_eq!(line["response_bytes"], 2048);
        assert_eq!(line["durations_ms"]["response_start"], 500.0);
        assert_eq!(out.lines().count(), 1);
    }
}
