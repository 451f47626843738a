//! A stored flow as a line of a table, whole with its bodies, and both as JSON.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use tollgate_flow::record::{
    Body, Content, HeaderFields, HttpMessage, Record, StreamMessage, Timestamp,
};
use tollgate_store::Summary;

use super::detail;
use super::json::timestamp;
use super::line::{pretty_size, status_colour};
use super::record::{record_json, record_lines};
use super::style::{Colour, Style, harmless};

/// Appends a stored flow as a line: number, time, status, method, URL, size, duration.
pub fn summary_line(out: &mut String, row: &Summary, style: Style) {
    let _ = write!(out, "{:>6}  {}  ", row.seq, when(row.created));
    let status = match (row.status, &row.error) {
        (Some(status), _) => status.to_string(),
        (None, Some(_)) => "err".to_owned(),
        (None, None) => "-".to_owned(),
    };
    let colour = match row.status {
        Some(status) => status_colour(status),
        None => row.error.as_ref().map(|_| Colour::Red),
    };
    style.bold(out, &format!("{status:>3}"), colour);
    let kind = row.flow_type.as_str();
    let method = match (&row.method, row.websocket) {
        (_, true) => "WS".to_owned(),
        (Some(method), false) => method.clone(),
        (None, false) => kind.to_ascii_uppercase(),
    };
    let what = row.url.as_ref().or(row.server.as_ref());
    let what = what.map_or("?", String::as_str);
    let _ = write!(
        out,
        "  {:<6} {}",
        harmless(&method, false),
        harmless(what, false)
    );
    let bytes = row.request_bytes.unwrap_or(0) + row.response_bytes.unwrap_or(0);
    let _ = write!(out, "  {}", pretty_size(bytes));
    if row.is_cut {
        style.colour(out, " (cut)", Colour::Blue);
    }
    if let Some(duration) = row.duration {
        let _ = write!(out, "  {}", pretty_millis(duration));
    }
    if let Some(error) = &row.error {
        out.push_str("  ");
        style.colour(out, &harmless(error, false), Colour::Red);
    }
    out.push('\n');
}

/// Appends a stored flow as an object and a line end.
pub fn summary_json(out: &mut String, row: &Summary) {
    let _ = writeln!(out, "{}", Value::Object(summary_object(row)));
}

fn summary_object(row: &Summary) -> Map<String, Value> {
    let value = json!({
        "number": row.seq,
        "id": row.id,
        "type": row.flow_type.as_str(),
        "started": started(row.created).map(timestamp),
        "client": row.client,
        "server": row.server,
        "method": row.method,
        "url": row.url,
        "version": row.version,
        "status": row.status,
        "request_type": row.request_type,
        "content_type": row.response_type,
        "request_bytes": row.request_bytes,
        "response_bytes": row.response_bytes,
        "duration_ms": row.duration.map(|d| d.as_micros() as f64 / 1000.0),
        "websocket": row.websocket,
        "cut": row.is_cut,
        "error": row.error,
    });
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

/// Appends a flow with headers and bodies, as mitmdump does at detail 3.
pub fn record_detail(out: &mut String, record: &Record, style: Style) {
    let mut lines = String::new();
    record_lines(&mut lines, record, style);
    let mut lines = lines.split_inclusive('\n');
    out.push_str(lines.next().unwrap_or_default());
    match &record.content {
        Content::Http(http) => {
            message(out, &http.request.message, style);
            if let Some(response) = &http.response {
                out.push('\n');
                out.push_str(lines.next().unwrap_or_default());
                message(out, &response.message, style);
            }
            out.extend(lines);
            for message in http.websocket.iter().flat_map(|socket| &socket.messages) {
                direction(out, message.from_client, message.content.len(), style);
                detail::body(out, &message.content, true, false, style);
            }
        }
        Content::Tcp(messages) | Content::Udp(messages) => {
            for StreamMessage {
                from_client,
                content,
                ..
            } in messages
            {
                direction(out, *from_client, content.len(), style);
                detail::body(out, content, true, false, style);
            }
            out.extend(lines);
        }
        Content::Dns(_) => out.extend(lines),
    }
    let notes = record.metadata.0.iter();
    for (key, value) in notes.filter_map(|(key, value)| Some((key.as_str()?, value.as_str()?))) {
        let _ = writeln!(out, " {}: {}", harmless(key, false), harmless(value, false));
    }
}

fn direction(out: &mut String, from_client: bool, bytes: usize, style: Style) {
    let arrow = if from_client { " ->" } else { " <-" };
    out.push('\n');
    style.bold(out, arrow, None);
    let _ = writeln!(out, " {}", pretty_size(bytes as u64));
}

fn message(out: &mut String, message: &HttpMessage, style: Style) {
    fields(out, &message.headers, style);
    match (message.content(), message.body.size()) {
        (Some(content), _) => {
            detail::body(out, &content, !message.body.is_cut(), false, style);
        }
        (None, Some(size)) => {
            let _ = writeln!(out, "\n    ({} that were not kept)", pretty_size(size));
        }
        (None, None) => out.push_str("\n    (content missing)\n"),
    }
    if let Some(trailers) = &message.trailers {
        out.push('\n');
        fields(out, trailers, style);
    }
}

fn fields(out: &mut String, fields: &HeaderFields, style: Style) {
    for (name, value) in fields.iter() {
        out.push_str("    ");
        let name = format!("{}:", String::from_utf8_lossy(name));
        style.colour(out, &harmless(&name, false), Colour::Blue);
        out.push(' ');
        out.push_str(&harmless(&String::from_utf8_lossy(value), false));
        out.push('\n');
    }
}

/// Appends a flow as an object with headers and bodies, and a line end.
pub fn record_detail_json(out: &mut String, row: &Summary, record: &Record) {
    let mut line = String::new();
    record_json(&mut line, record);
    let mut object: Map<String, Value> = serde_json::from_str(&line).unwrap_or_default();
    object.insert("number".to_owned(), json!(row.seq));
    match &record.content {
        Content::Http(http) => {
            let response = http.response.as_ref().map(|r| message_json(&r.message));
            object.insert("request".to_owned(), message_json(&http.request.message));
            object.insert("response".to_owned(), json!(response));
            if let Some(socket) = &http.websocket {
                let messages = socket.messages.iter();
                let messages = messages.map(|m| content_json(m.from_client, &m.content));
                object.insert("messages".to_owned(), messages.collect());
            }
        }
        Content::Tcp(messages) | Content::Udp(messages) => {
            let messages = messages.iter();
            let messages = messages.map(|m| content_json(m.from_client, &m.content));
            object.insert("messages".to_owned(), messages.collect());
        }
        Content::Dns(_) => {}
    }
    let _ = writeln!(out, "{}", Value::Object(object));
}

fn message_json(message: &HttpMessage) -> Value {
    let fields = |fields: &HeaderFields| -> Value {
        let pair = |(name, value): (&[u8], &[u8])| json!([lossy(name), lossy(value)]);
        fields.iter().map(pair).collect()
    };
    let Body { cut_from, .. } = message.body;
    json!({
        "headers": fields(&message.headers),
        "body": message.content().map(|content| text_or_base64(&content)),
        "cut_from": cut_from,
        "trailers": message.trailers.as_ref().map(fields),
    })
}

fn content_json(from_client: bool, content: &[u8]) -> Value {
    json!({"from_client": from_client, "content": text_or_base64(content)})
}

/// Text as it is; `{"base64": …}` for anything else.
fn text_or_base64(content: &[u8]) -> Value {
    match std::str::from_utf8(content) {
        Ok(text) => json!(text),
        Err(_) => json!({"base64": STANDARD.encode(content)}),
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn started(created: Timestamp) -> Option<SystemTime> {
    let since = Duration::try_from_secs_f64(created.seconds()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(since)
}

/// To the second, UTC.
fn when(created: Timestamp) -> String {
    let text = started(created).map(timestamp).unwrap_or_default();
    let (to_the_second, _) = text.split_once('.').unwrap_or((&text, ""));
    to_the_second.replacen('T', " ", 1)
}

fn pretty_millis(duration: Duration) -> String {
    match duration.as_millis() {
        0 => format!("{}us", duration.as_micros()),
        millis @ 1..10_000 => format!("{millis}ms"),
        _ => format!("{:.1}s", duration.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_flow::record::{HttpExchange, HttpRequest, HttpResponse};
    use tollgate_store::{Place, Query, Store, StoreConfig};

    fn stored() -> (Summary, Record) {
        let mut request = HttpRequest::new("POST", "https", "a.example", 443, "/\x1b[2J");
        request.message.headers.push("Host", "a.example");
        request.message.body = Body::kept("{\"a\":1}", 4096);
        let mut exchange = HttpExchange::new(request);
        let mut response = HttpResponse::new(404, "Not Found");
        response.message.headers.push("X-A", "1");
        response.message.body = Body::whole(&b"\xff\x00"[..]);
        exchange.response = Some(response);
        let mut record = Record::http("an id", exchange);
        record.created = Timestamp::new(1_700_000_000.5);
        let store = Store::open(StoreConfig {
            max_age: None,
            ..StoreConfig::new(Place::Memory)
        })
        .unwrap();
        store.sink().record(record.clone()).unwrap();
        store.flush();
        let row = store.flows().list(&Query::newest(1)).unwrap().remove(0);
        (row, record)
    }

    #[test]
    fn a_line_can_do_no_harm_and_has_everything() {
        let (row, _) = stored();
        let mut line = String::new();
        summary_line(&mut line, &row, Style::PLAIN);
        assert_eq!(
            line,
            "     1  2023-11-14 22:13:20  404  POST   https://a.example/␛[2J  4.0k (cut)\n"
        );
    }

    #[test]
    fn a_flow_is_shown_with_headers_and_bodies() {
        let (_, record) = stored();
        let mut text = String::new();
        record_detail(&mut text, &record, Style::PLAIN);
        for part in [
            "POST https://a.example/␛[2J\n    Host: a.example\n",
            "(cut off)",
            " << 404 Not Found 2b\n    X-A: 1\n",
            "ff 00",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn json_has_bodies_as_text_or_base64() {
        let (row, record) = stored();
        let mut text = String::new();
        record_detail_json(&mut text, &row, &record);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["number"], 1);
        assert_eq!(value["request"]["body"], "{\"a\":1}");
        assert_eq!(value["request"]["cut_from"], 4096);
        assert_eq!(value["response"]["body"]["base64"], "/wA=");
        assert_eq!(value["response"]["headers"][0], json!(["X-A", "1"]));
        text.clear();
        summary_json(&mut text, &row);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["status"], 404);
        assert_eq!(value["cut"], true);
    }
}
