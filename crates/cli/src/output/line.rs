//! A flow as mitmdump's lines: request, response, error.

use std::fmt::Write as _;

use serde_json::Value;
use tollgate_flow::record::USAGE;
use tollgate_flow::{Flow, FlowKind, HeaderList, HttpVersion, Outcome};
use tollgate_wire::http1;

use super::style::{Colour, Style, harmless};

/// Appends the request line: `127.0.0.1:1234: GET https://host/path HTTP/2.0`. A URL longer than `url_width` characters is cut.
pub fn request_line(out: &mut String, flow: &Flow, style: Style, url_width: Option<usize>) {
    let method = match flow.kind {
        FlowKind::Tcp => "TCP".into(),
        FlowKind::Udp => "UDP".into(),
        _ => String::from_utf8_lossy(flow.request.method()),
    };
    let colour = match &*method {
        "GET" => Colour::Green,
        "DELETE" => Colour::Red,
        _ => Colour::Magenta,
    };
    let mut url = match flow.kind {
        FlowKind::Http => flow.url(),
        _ => flow.request.target.to_string(),
    };
    if let Some(width) = url_width
        && let Some((end, _)) = url.char_indices().nth(width)
    {
        url.truncate(end);
        url.push('…');
    }
    let _ = write!(out, "{}: ", flow.connection.client);
    style.bold(out, &harmless(&method, false), Some(colour));
    out.push(' ');
    style.bold(out, &harmless(&url, false), None);
    if shows_versions(flow) {
        let _ = write!(out, " {}", flow.request.version.as_str());
    }
    out.push('\n');
}

/// Appends the response line: ` << HTTP/2.0 200 OK 17.5k`; nothing without a response. `aligned` puts the status below the
/// method of the request line.
pub fn response_line(out: &mut String, flow: &Flow, style: Style, aligned: bool) {
    let Some(response) = &flow.response else {
        return;
    };
    if flow.kind != FlowKind::Http {
        return stream_line(out, flow, style, aligned);
    }
    let status = response.status();
    let colour = status_colour(status);
    let version = if shows_versions(flow) {
        format!("{} ", response.version.as_str())
    } else {
        String::new()
    };
    if aligned {
        let client = flow.connection.client.to_string();
        let pad = client.len().saturating_sub(2 + version.len());
        let _ = write!(out, "{:pad$}", "");
    }
    style.bold(out, " <<", None);
    let _ = write!(out, " {version}");
    style.bold(out, &status.to_string(), colour);
    out.push(' ');
    let reason = match response.version {
        HttpVersion::Http2 | HttpVersion::Http3 => http1::standard_reason(status).into(),
        _ => String::from_utf8_lossy(response.reason()),
    };
    if !reason.is_empty() {
        style.bold(out, &harmless(&reason, false), colour);
        out.push(' ');
    }
    style.bold(out, &pretty_size(response.body_size), None);
    out.push('\n');
}

/// Appends the response line of what is not HTTP: ` << 1.2k sent, 17.5k received`.
fn stream_line(out: &mut String, flow: &Flow, style: Style, aligned: bool) {
    if aligned {
        let pad = flow.connection.client.to_string().len().saturating_sub(2);
        let _ = write!(out, "{:pad$}", "");
    }
    let received = flow.response.as_ref().map_or(0, |r| r.body_size);
    style.bold(out, " <<", None);
    let _ = writeln!(
        out,
        " {} sent, {} received",
        pretty_size(flow.request.body_size),
        pretty_size(received)
    );
}

/// The colour of a status code.
pub fn status_colour(status: u16) -> Option<Colour> {
    match status {
        200..=299 => Some(Colour::Green),
        300..=399 => Some(Colour::Magenta),
        400..=599 => Some(Colour::Red),
        _ => None,
    }
}

/// Appends the line of what a model used to answer: ` << m: 1.2k tokens in (9k cached), 345 out, cost 0.0123`; nothing
/// for a flow without.
pub fn usage_line(out: &mut String, flow: &Flow, style: Style) {
    let note = flow.metadata.iter().find(|(name, _)| name == USAGE);
    let Some(used) = note.and_then(|(_, note)| serde_json::from_str::<Value>(note).ok()) else {
        return;
    };
    let number = |name: &str| used.get(name).and_then(Value::as_u64).unwrap_or(0);
    style.bold(out, " <<", None);
    let model = used.get("model").and_then(Value::as_str);
    if let Some(model) = model.filter(|model| !model.is_empty()) {
        let _ = write!(out, " {}:", harmless(model, false));
    }
    let input = number("input").saturating_add(number("cache_write"));
    let _ = write!(out, " {} tokens in", pretty_count(input));
    if number("cache_read") > 0 {
        let _ = write!(out, " ({} cached)", pretty_count(number("cache_read")));
    }
    let _ = write!(out, ", {} out", pretty_count(number("output")));
    if let Some(cost) = used.get("cost").and_then(Value::as_f64) {
        let _ = write!(out, ", cost {}", pretty_cost(cost));
    }
    if used.get("estimated").and_then(Value::as_bool) == Some(true) {
        out.push_str(" (estimated)");
    }
    out.push('\n');
}

/// A count in three digits or so: `345`, `1.2k`, `34.5k`, `2.1m`.
pub fn pretty_count(count: u64) -> String {
    match count {
        0..=999 => count.to_string(),
        1000..=999_949 => format!("{:.1}k", count as f64 / 1e3),
        _ => format!("{:.1}m", count as f64 / 1e6),
    }
}

/// A sum of money, to the hundredth of a hundredth.
pub fn pretty_cost(cost: f64) -> String {
    format!("{cost:.4}")
}

/// Appends the error line: ` << upstream: connection refused`; nothing for a flow without one.
pub fn error_line(out: &mut String, outcome: &Outcome, style: Style) {
    if let Some(error) = &outcome.error {
        let text = format!(" << {error}");
        style.bold(out, &harmless(&text, false), Some(Colour::Red));
        out.push('\n');
    }
}

/// Appends header lines, indented by four.
pub fn headers(out: &mut String, headers: &HeaderList, style: Style) {
    for (name, value) in headers.iter() {
        out.push_str("    ");
        let name = format!("{}:", String::from_utf8_lossy(name));
        style.colour(out, &harmless(&name, false), Colour::Blue);
        out.push(' ');
        out.push_str(&harmless(&String::from_utf8_lossy(value), false));
        out.push('\n');
    }
}

/// A size as mitmproxy writes it, in five characters at most up to 999 t: `7b`, `17.5k`, `120m`.
pub fn pretty_size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes}b");
    }
    let mut size = bytes as f64;
    for unit in ["k", "m", "g"] {
        size /= 1024.0;
        if size < 99.95 {
            return format!("{size:.1}{unit}");
        }
        if size < 1023.5 {
            return format!("{size:.0}{unit}");
        }
    }
    size /= 1024.0;
    if size < 99.95 {
        format!("{size:.1}t")
    } else {
        format!("{size:.0}t")
    }
}

/// Versions go without saying where both sides speak the same HTTP/1.
fn shows_versions(flow: &Flow) -> bool {
    let request = flow.request.version;
    let response = flow
        .response
        .as_ref()
        .map_or(request, |response| response.version);
    request >= HttpVersion::Http2 || request != response
}

#[cfg(test)]
mod tests {
    use super::super::flows::tests::{failed, flow};
    use super::*;

    #[test]
    fn sizes_are_mitmproxys() {
        let cases = [
            (0, "0b"),
            (1023, "1023b"),
            (1024, "1.0k"),
            (17_920, "17.5k"),
            (102_348, "99.9k"),
            (102_400, "100k"),
            (1_048_575, "1.0m"),
            (1_258_291, "1.2m"),
            (5 << 30, "5.0g"),
            (1 << 40, "1.0t"),
        ];
        for (bytes, text) in cases {
            assert_eq!(pretty_size(bytes), text);
        }
        assert_eq!(pretty_size(u64::MAX), "16777216t");
    }

    #[test]
    fn lines_are_mitmdumps() {
        let mut out = String::new();
        let mut flow = flow("http://example.com/a?b", 200, b"OK", 17_920);
        request_line(&mut out, &flow, Style::PLAIN, Some(80));
        response_line(&mut out, &flow, Style::PLAIN, true);
        assert_eq!(
            out,
            "127.0.0.1:1234: GET http://example.com/a?b\n             << 200 OK 17.5k\n"
        );

        out.clear();
        flow.request.version = HttpVersion::Http2;
        flow.response.as_mut().unwrap().version = HttpVersion::Http2;
        request_line(&mut out, &flow, Style::PLAIN, Some(12));
        response_line(&mut out, &flow, Style::PLAIN, true);
        assert_eq!(
            out,
            "127.0.0.1:1234: GET http://examp… HTTP/2.0\n    << HTTP/2.0 200 OK 17.5k\n"
        );
    }

    #[test]
    fn an_error_is_a_line_of_its_own() {
        let mut out = String::new();
        error_line(&mut out, &failed("no route\x1b[2J"), Style::PLAIN);
        assert_eq!(out, " << upstream: no route␛[2J\n");
        out.clear();
        error_line(&mut out, &Outcome::COMPLETED, Style::PLAIN);
        assert_eq!(out, "");
    }
}
