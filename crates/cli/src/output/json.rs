//! A flow as one line of JSON: `--json`.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use tollgate_flow::record::{FINDING, USAGE};
use tollgate_flow::{Flow, FlowKind, Outcome};

/// Appends the object and a line end. `process` looks the client's process up.
///
/// Names are stable; members may be added. Times are RFC 3339 in UTC, durations milliseconds, sizes bytes.
pub fn flow_line(out: &mut String, flow: &Flow, outcome: &Outcome, process: bool) {
    let connection = &flow.connection;
    let is_http = flow.kind == FlowKind::Http;
    let response = flow.response.as_deref().filter(|_| is_http);
    let line = Line {
        id: flow.id.to_string(),
        r#type: match flow.kind {
            FlowKind::Tcp => "tcp",
            FlowKind::Udp => "udp",
            _ => "http",
        },
        started: timestamp(flow.timing.started),
        connection: connection.id.0,
        client: connection.client.to_string(),
        mode: connection.mode().to_owned(),
        user: connection.user().map(ToString::to_string),
        method: is_http.then(|| lossy(flow.request.method())),
        url: is_http.then(|| flow.url()),
        target: flow.request.target.to_string(),
        version: is_http.then(|| flow.request.version.as_str()),
        request_bytes: flow.request.body_size,
        status: response.map(|response| response.status()),
        response_version: response.map(|response| response.version.as_str()),
        response_bytes: flow.response.as_ref().map(|response| response.body_size),
        content_type: flow
            .response
            .as_ref()
            .and_then(|response| response.headers().get("content-type").map(lossy)),
        durations: Durations {
            request: flow.timing.request_end.map(millis),
            response_start: flow.timing.response_start.map(millis),
            total: flow.timing.response_end.map(millis),
        },
        tls: connection.tls().map(|tls| Tls {
            sni: tls.hello.server_name.clone(),
            alpn: tls.alpn().map(lossy),
            version: tls.version().map(|version| version.to_string()),
            ja3: tls.hello.ja3(),
            ja4: tls.hello.ja4(),
        }),
        upstream: flow.upstream.as_ref().map(|upstream| Upstream {
            address: upstream.address.to_string(),
            via: upstream.via.as_ref().map(ToString::to_string),
            tls: upstream.tls_version.map(|version| version.to_string()),
            alpn: upstream.alpn.as_deref().map(lossy),
            unverified: upstream.unverified,
            connect: millis(upstream.connect_time),
            handshake: millis(upstream.handshake_time),
        }),
        websocket: flow.websocket.as_ref().map(|websocket| WebSocket {
            client_messages: websocket.client_messages,
            origin_messages: websocket.origin_messages,
            closed_by: websocket.close.as_ref().map(|close| close.by.to_string()),
            close_code: websocket.close.as_ref().and_then(|close| close.code),
        }),
        outcome: outcome.kind.as_str(),
        findings: flow
            .metadata
            .iter()
            .filter(|(name, _)| name == FINDING)
            .map(|(_, note)| note.clone())
            .collect(),
        usage: flow
            .metadata
            .iter()
            .find(|(name, _)| name == USAGE)
            .and_then(|(_, note)| serde_json::from_str(note).ok()),
        error: outcome.error.as_ref().map(|error| Error {
            side: error.side.to_string(),
            class: error.class.code(),
            message: error.message.to_string(),
        }),
        process: process
            .then(|| connection.process())
            .flatten()
            .map(|process| Process {
                pid: process.pid,
                name: process.name.clone(),
                executable: process
                    .executable
                    .as_ref()
                    .map(|path| path.display().to_string()),
                command: process.command.clone(),
                parent_pid: process.parent_pid,
                parent_name: process.parent_name.clone(),
            }),
    };
    // Nothing in it can fail to become JSON: no map keys, no foreign types.
    if let Ok(text) = serde_json::to_string(&line) {
        out.push_str(&text);
        out.push('\n');
    }
}

#[derive(Serialize)]
struct Line {
    id: String,
    r#type: &'static str,
    started: String,
    connection: u64,
    client: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Process>,
    mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    target: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    request_bytes: u64,
    status: Option<u16>,
    response_version: Option<&'static str>,
    response_bytes: Option<u64>,
    content_type: Option<String>,
    #[serde(rename = "durations_ms")]
    durations: Durations,
    tls: Option<Tls>,
    upstream: Option<Upstream>,
    #[serde(skip_serializing_if = "Option::is_none")]
    websocket: Option<WebSocket>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    findings: Vec<String>,
    /// What a model used to answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<serde_json::Value>,
    error: Option<Error>,
}

/// What the flow was upgraded to.
#[derive(Serialize)]
struct WebSocket {
    client_messages: u64,
    origin_messages: u64,
    closed_by: Option<String>,
    close_code: Option<u16>,
}

/// Since the request head had been read.
#[derive(Serialize)]
struct Durations {
    request: Option<f64>,
    response_start: Option<f64>,
    total: Option<f64>,
}

#[derive(Serialize)]
struct Tls {
    sni: Option<String>,
    alpn: Option<String>,
    version: Option<String>,
    ja3: String,
    ja4: String,
}

#[derive(Serialize)]
struct Upstream {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    via: Option<String>,
    tls: Option<String>,
    alpn: Option<String>,
    unverified: bool,
    #[serde(rename = "connect_ms")]
    connect: f64,
    #[serde(rename = "handshake_ms")]
    handshake: f64,
}

#[derive(Serialize)]
struct Error {
    side: String,
    class: &'static str,
    message: String,
}

#[derive(Serialize)]
struct Process {
    pid: u32,
    name: Option<String>,
    executable: Option<String>,
    command: Vec<String>,
    parent_pid: Option<u32>,
    parent_name: Option<String>,
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// To the microsecond.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// RFC 3339 in UTC, to the millisecond.
pub fn timestamp(time: SystemTime) -> String {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_millis()
    )
}

/// The date of a day since 1970, by Howard Hinnant's `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::super::flows::tests::{failed, flow};
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        let at = |seconds, millis| {
            timestamp(
                SystemTime::UNIX_EPOCH
                    + Duration::from_secs(seconds)
                    + Duration::from_millis(millis),
            )
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(1_767_225_599, 999), "2025-12-31T23:59:59.999Z");
    }

    #[test]
    fn a_flow_is_one_object_on_one_line() {
        let mut out = String::new();
        let flow = flow("http://example.com/a", 404, b"Not Found", 9);
        flow_line(&mut out, &flow, &Outcome::COMPLETED, false);
        assert!(out.ends_with("}\n") && out.lines().count() == 1);
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(value["method"], "GET");
        assert_eq!(value["url"], "http://example.com/a");
        assert_eq!(value["status"], 404);
        assert_eq!(value["response_bytes"], 9);
        assert_eq!(value["outcome"], "completed");
        assert!(value["error"].is_null() && value["tls"].is_null());
        assert!(value.get("process").is_none());

        assert!(value.get("usage").is_none());

        out.clear();
        let mut flow = flow;
        let used = r#"{"model":"m","input":7,"output":2,"estimated":false}"#;
        flow.metadata.push((USAGE.to_owned(), used.to_owned()));
        flow_line(&mut out, &flow, &failed("refused"), false);
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(value["usage"]["input"], 7);
        assert_eq!(
            value["error"],
            serde_json::json!({"side": "upstream", "class": "connect", "message": "refused"})
        );
    }
}
