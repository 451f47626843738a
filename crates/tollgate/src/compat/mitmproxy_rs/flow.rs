//! What interceptors see.

use std::time::UNIX_EPOCH;

use aws_lc_rs::digest;
use tollgate_flow::{Bytes, Flow, HeaderList, Response};

use crate::compat::message::{Content, decode, text};

/// A request and its response.
#[derive(Clone, Debug, PartialEq)]
pub struct HTTPFlow {
    /// Identifies the flow: a UUID of version 7.
    pub id: String,
    /// The request, as it was sent to the origin.
    pub request: HTTPRequest,
    /// The response.
    pub response: HTTPResponse,
}

/// A request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HTTPRequest {
    /// The method.
    pub method: String,
    /// `http` or `https`.
    pub scheme: String,
    /// Where the request goes.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2.0`.
    pub http_version: String,
    /// The headers in their order; values that aren't UTF-8 are read as latin-1.
    pub headers: Vec<(String, String)>,
    /// The body, its content coding undone. `None` where it is longer than
    /// [`Config::max_body_bytes`](super::Config::max_body_bytes), damaged, or has not ended yet.
    pub content: Option<Vec<u8>>,
    /// Its length on the wire.
    pub content_length: Option<usize>,
    /// When the request head came, in seconds since 1970.
    pub timestamp_start: f64,
    /// When the request ended.
    pub timestamp_end: Option<f64>,
    /// The host as the client named it: the `Host` header, or else `host`.
    pub pretty_host: String,
}

/// A response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HTTPResponse {
    /// The version that the origin spoke.
    pub http_version: String,
    /// The status code.
    pub status_code: u16,
    /// The reason phrase; empty on HTTP/2.
    pub reason: String,
    /// The headers in their order; values that aren't UTF-8 are read as latin-1. Changes of
    /// `Content-Length` and `Transfer-Encoding` have no effect: framing follows the content.
    pub headers: Vec<(String, String)>,
    /// The body, its content coding undone where that is known. When it is changed, the client gets it as it
    /// is then, and `Content-Encoding` is removed. `None` for a body that passes in pieces.
    pub content: Option<Vec<u8>>,
    /// The body's length on the wire, where it is known.
    pub content_length: Option<usize>,
    /// When the response head came, in seconds since 1970.
    pub timestamp_start: Option<f64>,
    /// When the response ended.
    pub timestamp_end: Option<f64>,
    /// The trailers.
    pub trailers: Option<Vec<(String, String)>>,
}

impl HTTPRequest {
    /// The absolute URL.
    pub fn url(&self) -> String {
        let default = if self.scheme == "https" { 443 } else { 80 };
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.port == default {
            format!("{}://{host}{}", self.scheme, self.path)
        } else {
            format!("{}://{host}:{}{}", self.scheme, self.port, self.path)
        }
    }

    /// The value of the first header with this name.
    pub fn get_header(&self, name: &str) -> Option<&str> {
        get(&self.headers, name)
    }

    /// SHA-256 of the content, hex.
    pub fn content_hash(&self) -> Option<String> {
        self.content.as_deref().map(sha256)
    }
}

impl HTTPResponse {
    /// The value of the first header with this name.
    pub fn get_header(&self, name: &str) -> Option<&str> {
        get(&self.headers, name)
    }

    /// Gives a header one value; others with the name are removed.
    pub fn set_header(&mut self, name: &str, value: &str) {
        let mut lines = self
            .headers
            .iter_mut()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        match lines.next() {
            Some((_, first)) => {
                value.clone_into(first);
                let mut seen = false;
                self.headers.retain(|(n, _)| {
                    !n.eq_ignore_ascii_case(name) || !std::mem::replace(&mut seen, true)
                });
            }
            None => self.headers.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Replaces the content.
    pub fn set_content(&mut self, content: impl Into<Vec<u8>>) {
        self.content = Some(content.into());
    }

    /// SHA-256 of the content, hex.
    pub fn content_hash(&self) -> Option<String> {
        self.content.as_deref().map(sha256)
    }
}

impl HTTPFlow {
    /// A copy of what the engine has; `request_body` is what was collected of the request.
    pub(super) fn new(
        flow: &Flow,
        response: &Response,
        request_body: Option<Vec<u8>>,
        limit: usize,
    ) -> Self {
        let started = flow
            .timing
            .started
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |d| d.as_secs_f64());
        let request = &flow.request;
        let at = |elapsed: Option<std::time::Duration>| elapsed.map(|d| started + d.as_secs_f64());
        Self {
            id: flow.id.to_string(),
            request: HTTPRequest {
                method: text(request.method()).into_owned(),
                scheme: request.scheme.as_str().to_owned(),
                host: request.target.host.to_string(),
                port: request.target.port,
                path: text(request.path()).into_owned(),
                http_version: request.version.as_str().to_owned(),
                headers: lines(request.headers()),
                content_length: usize::try_from(request.body_size).ok(),
                content: request_body,
                timestamp_start: started,
                timestamp_end: at(flow.timing.request_end),
                pretty_host: request
                    .headers()
                    .get("host")
                    .or(request.authority.as_deref())
                    .map(text)
                    .and_then(|host| tollgate_flow::Target::parse(&host, Some(1)))
                    .map_or_else(|| request.target.host.to_string(), |t| t.host.to_string()),
            },
            response: HTTPResponse {
                http_version: response.version.as_str().to_owned(),
                status_code: response.status(),
                reason: text(response.reason()).into_owned(),
                headers: lines(response.headers()),
                content: response
                    .body()
                    .map(|body| content(response.headers(), body, limit)),
                content_length: response.body().map(Bytes::len),
                timestamp_start: at(flow.timing.response_start),
                timestamp_end: at(flow.timing.response_end),
                trailers: response.trailers.as_ref().map(lines),
            },
        }
    }
}

/// What an interceptor changed, put into the response. `before` is what it was given.
///
/// True when the content of a response that passes in pieces was set: then the response must be replaced.
pub(super) fn apply(before: &HTTPResponse, after: &HTTPResponse, response: &mut Response) -> bool {
    if (before.status_code, &before.reason) != (after.status_code, &after.reason) {
        // With a new status goes its own reason, unless one was given.
        let reason = if before.reason == after.reason {
            ""
        } else {
            &after.reason
        };
        if response
            .head
            .set_status(after.status_code, reason.as_bytes())
            .is_err()
        {
            tracing::warn!(
                status = after.status_code,
                "an interceptor set a status that can't be sent: ignored"
            );
        }
    }
    if before.headers != after.headers {
        put_headers(&before.headers, &after.headers, response.headers_mut());
    }
    if before.content != after.content {
        let new = after.content.clone().unwrap_or_default();
        if response.body().is_none() {
            return true;
        }
        response.set_body(new);
    }
    false
}

/// Writes edited headers. Lines that were not edited keep their bytes, framing keeps its lines.
fn put_headers(before: &[(String, String)], after: &[(String, String)], list: &mut HeaderList) {
    let raw: Vec<(Vec<u8>, Vec<u8>)> = list
        .iter()
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .collect();
    let mut unused: Vec<usize> = (0..before.len()).collect();
    let is_framing = |name: &str| {
        ["content-length", "transfer-encoding"]
            .iter()
            .any(|framing| name.eq_ignore_ascii_case(framing))
    };
    list.clear();
    for line in after.iter().filter(|(name, _)| !is_framing(name)) {
        let same = unused
            .iter()
            .position(|&i| before.get(i) == Some(line))
            .map(|position| unused.remove(position));
        let written = match same.and_then(|i| raw.get(i)) {
            Some((name, value)) => list.append(name, value),
            None => list.append(line.0.as_bytes(), line.1.as_bytes()),
        };
        if let Err(error) = written {
            tracing::warn!(header = line.0, %error, "an interceptor set a header that can't be sent: left out");
        }
    }
    for (name, value) in &raw {
        if is_framing(&text(name)) {
            // It stood in the list before.
            let _ = list.append(name, value);
        }
    }
}

fn content(headers: &HeaderList, body: &Bytes, limit: usize) -> Vec<u8> {
    match decode(headers, body, limit) {
        Content::Decoded(body) => body.into(),
        Content::AsSent | Content::Undecodable => body.to_vec(),
    }
}

fn lines(list: &HeaderList) -> Vec<(String, String)> {
    list.iter()
        .map(|(name, value)| (text(name).into_owned(), text(value).into_owned()))
        .collect()
}

fn get<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

fn sha256(data: &[u8]) -> String {
    digest::digest(&digest::SHA256, data)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(lines: &[(&[u8], &[u8])]) -> Response {
        let mut response = Response::default();
        response.head.set_status(200, b"Fine").unwrap();
        for (name, value) in lines {
            response.headers_mut().append(name, value).unwrap();
        }
        response
    }

    fn view(response: &Response) -> HTTPResponse {
        HTTPResponse {
            status_code: response.status(),
            reason: text(response.reason()).into_owned(),
            headers: lines(response.headers()),
            content: response.body().map(|b| b.to_vec()),
            ..HTTPResponse::default()
        }
    }

    #[test]
    fn what_was_not_edited_keeps_its_bytes() {
        let mut response = response(&[
            (b"Content-Length", b"3"),
            (b"X-Old", b"caf\xe9"),
            (b"x-two", b"1"),
        ]);
        response.put_collected_body(Bytes::from_static(b"abc"));
        let before = view(&response);
        let mut after = before.clone();
        assert!(!apply(&before, &after, &mut response));
        assert!(!response.is_body_edited());
        after.set_header("X-Two", "2");
        after.headers.push(("X-New".into(), "é".into()));
        after.headers.push(("Content-Length".into(), "77".into()));
        after.headers.push(("X-Bad".into(), "a\r\nb".into()));
        assert!(!apply(&before, &after, &mut response));
        let got: Vec<_> = response.headers().iter().collect();
        assert_eq!(
            got,
            [
                (&b"X-Old"[..], &b"caf\xe9"[..]),
                (b"x-two", b"2"),
                (b"X-New", "é".as_bytes()),
                (b"Content-Length", b"3"),
            ]
        );
        assert!(!response.is_body_edited());
    }

    #[test]
    fn status_and_content_are_taken_over() {
        let mut response = response(&[(b"Content-Encoding", b"gzip")]);
        response.put_collected_body(Bytes::from_static(b"abc"));
        let before = view(&response);
        let mut after = before.clone();
        after.status_code = 404;
        after.set_content("new");
        assert!(!apply(&before, &after, &mut response));
        assert_eq!((response.status(), response.reason()), (404, &b""[..]));
        assert_eq!(response.body().unwrap(), "new");
        assert!(response.is_body_edited());
        assert!(!response.headers().contains("content-encoding"));
    }

    #[test]
    fn content_for_a_stream_replaces_it() {
        let mut response = response(&[]);
        let before = view(&response);
        let mut after = before.clone();
        after.set_content("x");
        assert!(apply(&before, &after, &mut response));
    }

    #[test]
    fn headers_can_be_set_and_urls_read() {
        let mut response = HTTPResponse {
            headers: vec![
                ("A".into(), "1".into()),
                ("b".into(), "2".into()),
                ("a".into(), "3".into()),
            ],
            ..HTTPResponse::default()
        };
        response.set_header("a", "9");
        assert_eq!(
            response.headers,
            [("A".into(), "9".into()), ("b".into(), "2".into())]
        );
        response.set_content("abc");
        assert!(response.content_hash().unwrap().starts_with("ba7816bf"));
        let request = HTTPRequest {
            scheme: "https".into(),
            host: "::1".into(),
            port: 8443,
            path: "/a?b".into(),
            ..HTTPRequest::default()
        };
        assert_eq!(request.url(), "https://[::1]:8443/a?b");
    }
}
