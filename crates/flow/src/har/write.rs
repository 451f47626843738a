//! Flows to a HAR file.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::cookies;
use super::json::{Json, Number};
use super::time::iso_format;
use crate::record::{HeaderFields, HttpExchange, HttpMessage, HttpRequest, HttpResponse, Record};
use crate::text::is_mostly_binary;

/// How many connections are remembered, so that their setup is counted once. Beyond that, remembering begins anew.
const MAX_CONNECTIONS: usize = 1 << 20;

/// Writes a HAR file, one entry at a time, in the shape and layout of mitmproxy's.
///
/// `headersSize` is the real size, where mitmproxy has the length of a representation in Python. A response whose body was
/// not kept whole says so in its content's `comment`.
#[derive(Debug)]
pub struct HarWriter<W> {
    output: W,
    entries: u64,
    connections: HashSet<u64>,
}

impl<W: Write> HarWriter<W> {
    /// A writer; nothing is written yet.
    pub fn new(output: W) -> Self {
        Self {
            output,
            entries: 0,
            connections: HashSet::new(),
        }
    }

    /// Writes an entry. Answers false for a flow that is no HTTP, which HAR has no place for.
    ///
    /// # Errors
    /// What the output says.
    pub fn write(&mut self, record: &Record) -> io::Result<bool> {
        let Some(http) = record.as_http() else {
            return Ok(false);
        };
        let (connect, tls) = self.setup_times(record);
        let mut json = Json::at_depth(3);
        if self.entries == 0 {
            json.out.extend_from_slice(HEAD.as_bytes());
            json.out.extend_from_slice(b"[\n            ");
        } else {
            json.out.extend_from_slice(b",\n            ");
        }
        entry(&mut json, record, http, connect, tls);
        self.entries += 1;
        self.output.write_all(&json.out)?;
        Ok(true)
    }

    /// Writes the end of the file, flushes, and gives the output back.
    ///
    /// # Errors
    /// What the output says.
    pub fn finish(mut self) -> io::Result<W> {
        let end = match self.entries {
            0 => [HEAD, "[]\n    }\n}"].concat(),
            _ => "\n        ]\n    }\n}".to_owned(),
        };
        self.output.write_all(end.as_bytes())?;
        self.output.flush()?;
        Ok(self.output)
    }

    /// How many entries there are.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Milliseconds for TCP and TLS, at a connection's first flow; -1 for what doesn't apply.
    fn setup_times(&mut self, record: &Record) -> (Number, Number) {
        let not_applicable = Number::Float(-1.0);
        let server = &record.server;
        let mut hasher = DefaultHasher::new();
        server.common.id.hash(&mut hasher);
        let id = hasher.finish();
        let Some(connected) = server
            .timestamp_tcp_setup
            .filter(|_| !self.connections.contains(&id))
        else {
            return (not_applicable, not_applicable);
        };
        if self.connections.len() >= MAX_CONNECTIONS {
            self.connections.clear();
        }
        self.connections.insert(id);
        let from_connected = |end| Number::millis_between(connected, end);
        let start = server.common.timestamp_start.unwrap_or(connected);
        let tls = server.common.timestamp_tls_setup;
        (
            Number::millis_between(start, connected),
            tls.map_or(not_applicable, from_connected),
        )
    }
}

const HEAD: &str = concat!(
    "{\n    \"log\": {\n        \"version\": \"1.2\",\n        \"creator\": {\n            \"name\": \"Tollgate\",\n",
    "            \"version\": \"",
    env!("CARGO_PKG_VERSION"),
    "\",\n            \"comment\": \"\"\n        },\n        \"pages\": [],\n        \"entries\": "
);

fn entry(json: &mut Json, record: &Record, http: &HttpExchange, connect: Number, tls: Number) {
    let request = &http.request;
    let response = http.response.as_ref();
    let sent = request.message.ended;
    let send = sent.map_or(Number::Int(0), |end| {
        Number::millis_between(request.message.started, end)
    });
    let wait = match (response, sent) {
        (Some(response), Some(end)) => Number::millis_between(end, response.message.started),
        _ => Number::Int(0),
    };
    let receive = match response.and_then(|r| r.message.ended.map(|end| (r.message.started, end))) {
        Some((start, end)) => Number::millis_between(start, end),
        None => Number::Int(0),
    };
    json.object(|json| {
        json.key("startedDateTime")
            .string(iso_format(request.message.started.seconds()).as_bytes());
        let timings = [connect, tls, send, receive, wait];
        json.key("time").number(Number::sum_of_positive(&timings));
        json.key("request")
            .object(|json| write_request(json, request));
        json.key("response").object(|json| match response {
            Some(response) => write_response(json, response),
            None => no_response(json, record),
        });
        json.key("cache").object(|_| {});
        json.key("timings").object(|json| {
            for (name, number) in ["connect", "ssl", "send", "receive", "wait"]
                .iter()
                .zip(timings)
            {
                json.key(name).number(number);
            }
        });
        if let Some(peer) = &record.server.common.peername {
            json.key("serverIPAddress").string(peer.host.as_bytes());
        }
        if let Some(websocket) = &http.websocket {
            json.key("_resourceType").string(b"websocket");
            json.key("_webSocketMessages")
                .list(websocket.messages.iter(), |json, message| {
                    json.object(|json| {
                        let kind: &[u8] = if message.from_client {
                            b"send"
                        } else {
                            b"receive"
                        };
                        json.key("type").string(kind);
                        json.key("time").number(message.timestamp.into());
                        json.key("opcode").integer(message.opcode.into());
                        if message.is_text() {
                            json.key("data").string(&message.content);
                        } else {
                            json.key("data")
                                .string(STANDARD.encode(&message.content).as_bytes());
                        }
                    });
                });
        }
    });
}

fn write_request(json: &mut Json, request: &HttpRequest) {
    let message = &request.message;
    let method = request.method.to_ascii_uppercase();
    json.key("method").string(&method);
    let mut url = Vec::new();
    request.url_parts().write_pretty_url(&mut url);
    if method == b"CONNECT" {
        url = [b"https://", &url[..], b"/"].concat();
    }
    json.key("url").string(&url);
    json.key("httpVersion").string(&message.version);
    let cookies = message
        .headers
        .get_all("cookie")
        .flat_map(cookies::of_request);
    json.key("cookies")
        .list(cookies, |json, (name, value)| pair(json, &name, &value));
    headers(json, &message.headers);
    let query = query_of(&request.path);
    json.key("queryString")
        .list(form(query).into_iter(), |json, (name, value)| {
            pair(json, &name, &value);
        });
    let line = request.method.len() + request.path.len() + message.version.len() + 4;
    json.key("headersSize")
        .integer(head_size(line, &message.headers));
    json.key("bodySize").integer(body_size(message));
    if matches!(&method[..], b"POST" | b"PUT" | b"PATCH") {
        let text = message.lenient_text();
        let content_type = message.headers.joined("content-type").unwrap_or_default();
        json.key("postData").object(|json| {
            json.key("mimeType").string(&content_type);
            json.key("text");
            match &text {
                Some(text) => json.string(text),
                None => json.null(),
            }
            let is_form = content_type
                .to_ascii_lowercase()
                .windows(FORM.len())
                .any(|window| window == FORM);
            let params = match &text {
                Some(text) if is_form => form(text),
                _ => Vec::new(),
            };
            json.key("params")
                .list(params.into_iter(), |json, (name, value)| {
                    pair(json, &name, &value)
                });
        });
    }
}

const FORM: &[u8] = b"application/x-www-form-urlencoded";

fn write_response(json: &mut Json, response: &HttpResponse) {
    let message = &response.message;
    json.key("status").integer(response.status.into());
    let reason: String = response.reason.iter().map(|b| char::from(*b)).collect();
    json.key("statusText").string(reason.as_bytes());
    json.key("httpVersion").string(&message.version);
    let set = message
        .headers
        .get_all("set-cookie")
        .flat_map(cookies::of_response);
    json.key("cookies").list(set, |json, cookie| {
        json.object(|json| {
            json.key("name").string(&cookie.name);
            json.key("value");
            optional(json, cookie.value.as_deref());
            json.key("path");
            optional(json, cookie.attribute("path").unwrap_or(Some(b"/")));
            json.key("domain");
            optional(json, cookie.attribute("domain").unwrap_or(Some(b"")));
            json.key("httpOnly")
                .boolean(cookie.attribute("httponly").is_some());
            json.key("secure")
                .boolean(cookie.attribute("secure").is_some());
            if let Some(same_site) = cookie.attribute("samesite") {
                json.key("sameSite");
                optional(json, same_site);
            }
        });
    });
    headers(json, &message.headers);
    let content = message.content();
    let raw_size = body_size(message);
    let kept = message
        .body
        .data
        .as_ref()
        .map_or(0, |data| data.len() as i64);
    let decoded = content.as_ref().map_or(0, |content| content.len() as i64);
    json.key("content").object(|json| {
        json.key("size").integer(raw_size);
        json.key("compression").integer(decoded - kept);
        let content_type = message.headers.joined("content-type");
        json.key("mimeType")
            .string(&content_type.unwrap_or_default());
        match &content {
            Some(content) if is_mostly_binary(content) => {
                json.key("text").string(STANDARD.encode(content).as_bytes());
                json.key("encoding").string(b"base64");
            }
            _ => json
                .key("text")
                .string(&message.lenient_text().unwrap_or_default()),
        }
        if message.body.is_cut() {
            let comment = format!("the first {kept} of {raw_size} bytes were kept");
            json.key("comment").string(comment.as_bytes());
        }
    });
    let location = message.headers.joined("location");
    json.key("redirectURL")
        .string(&location.unwrap_or_default());
    let line = message.version.len() + response.reason.len() + 7;
    json.key("headersSize")
        .integer(head_size(line, &message.headers));
    json.key("bodySize").integer(raw_size);
}

fn no_response(json: &mut Json, record: &Record) {
    json.key("status").integer(0);
    json.key("statusText").string(b"");
    json.key("httpVersion").string(b"");
    json.key("headers")
        .list([].into_iter(), |json, ()| json.null());
    json.key("cookies")
        .list([].into_iter(), |json, ()| json.null());
    json.key("content").object(|_| {});
    json.key("redirectURL").string(b"");
    json.key("headersSize").integer(-1);
    json.key("bodySize").integer(-1);
    json.key("_transferSize").integer(0);
    json.key("_error");
    optional(
        json,
        record.error.as_ref().map(|error| error.message.as_bytes()),
    );
}

fn headers(json: &mut Json, headers: &HeaderFields) {
    json.key("headers")
        .list(headers.iter(), |json, (name, value)| {
            pair(json, name, value)
        });
}

fn pair(json: &mut Json, name: &[u8], value: &[u8]) {
    json.object(|json| {
        json.key("name").string(name);
        json.key("value").string(value);
    });
}

fn optional(json: &mut Json, text: Option<&[u8]>) {
    match text {
        Some(text) => json.string(text),
        None => json.null(),
    }
}

/// Bytes that passed, whether they were kept or not.
fn body_size(message: &HttpMessage) -> i64 {
    i64::try_from(message.body.size().unwrap_or(0)).unwrap_or(i64::MAX)
}

/// With the first line, and the empty line at the end.
fn head_size(first_line: usize, headers: &HeaderFields) -> i64 {
    let lines = headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + 4);
    (first_line + lines.sum::<usize>() + 2) as i64
}

/// What stands behind the first `?`, up to a `#`.
fn query_of(path: &[u8]) -> &[u8] {
    let path = path.split(|b| *b == b'#').next().unwrap_or_default();
    let mut parts = path.splitn(2, |b| *b == b'?');
    parts.nth(1).unwrap_or_default()
}

/// Pairs of a query or a form, decoded.
fn form(text: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    text.split(|b| *b == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let mut parts = pair.splitn(2, |b| *b == b'=').map(percent_decoded);
            (
                parts.next().unwrap_or_default(),
                parts.next().unwrap_or_default(),
            )
        })
        .collect()
}

fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digit = |at: usize| after.get(at).and_then(|b| char::from(*b).to_digit(16));
                match (digit(0), digit(1)) {
                    (Some(high), Some(low)) => {
                        out.push((high * 16 + low) as u8);
                        rest = after.get(2..).unwrap_or_default();
                    }
                    _ => out.push(b'%'),
                }
            }
            _ => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let pairs = form(query_of(b"/a?x=1+2&y=%41%4&&z&=%c3%bc#f?g=1"));
        let show: Vec<_> = pairs
            .iter()
            .map(|(name, value)| {
                (
                    String::from_utf8_lossy(name),
                    String::from_utf8_lossy(value),
                )
            })
            .collect();
        assert_eq!(
            show,
            [
                ("x".into(), "1 2".into()),
                ("y".into(), "A%4".into()),
                ("z".into(), "".into()),
                ("".into(), "ü".into())
            ]
        );
        assert_eq!(query_of(b"/"), b"");
    }
}
