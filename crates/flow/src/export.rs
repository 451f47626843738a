//! A recorded flow as a command, or as the bytes of HTTP/1: what mitmproxy's `export` writes.
//!
//! ```
//! use tollgate_flow::export::{ExportFormat, export};
//! use tollgate_flow::record::{Body, HttpExchange, HttpRequest, Record};
//!
//! let mut request = HttpRequest::new("POST", "https", "example.com", 443, "/login");
//! request.message.headers.push("Accept-Encoding", "gzip");
//! request.message.body = Body::whole("it's me");
//! let record = Record::http("id", HttpExchange::new(request));
//! assert_eq!(
//!     export(&record, ExportFormat::Curl, &Default::default())?,
//!     br#"curl --compressed -X POST https://example.com/login -d 'it'"'"'s me'"#
//! );
//! # Ok::<(), tollgate_flow::export::ExportError>(())
//! ```

use std::fmt;
use std::io::Write as _;
use std::str::FromStr;

use bytes::Bytes;

use crate::record::{Body, HttpMessage, HttpRequest, HttpResponse, Record};

/// A form to export in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// A command for curl.
    Curl,
    /// A command for HTTPie.
    Httpie,
    /// The request and the response as HTTP/1, or what there is of them.
    Raw,
    /// The request as HTTP/1.
    RawRequest,
    /// The response as HTTP/1.
    RawResponse,
}

impl ExportFormat {
    /// Every form.
    pub const ALL: [Self; 5] = [
        Self::Curl,
        Self::Httpie,
        Self::Raw,
        Self::RawRequest,
        Self::RawResponse,
    ];

    /// mitmproxy's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Curl => "curl",
            Self::Httpie => "httpie",
            Self::Raw => "raw",
            Self::RawRequest => "raw_request",
            Self::RawResponse => "raw_response",
        }
    }

    /// Whether it is a line of text rather than bytes.
    pub fn is_command(self) -> bool {
        matches!(self, Self::Curl | Self::Httpie)
    }
}

impl fmt::Display for ExportFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ExportFormat {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        let found = Self::ALL.into_iter().find(|format| format.as_str() == name);
        found.ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}

/// There is no such form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no export format {0:?}; there are curl, httpie, raw, raw_request and raw_response"
)]
pub struct UnknownFormat(pub String);

/// How to export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportOptions {
    /// Let curl connect to the address that the flow was connected to, whatever the name resolves to now (`--resolve`):
    /// mitmproxy's `export_preserve_original_ip`.
    pub preserve_original_ip: bool,
}

/// Why a flow can't be exported in a form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// It is no HTTP flow.
    #[error("the flow has no request: it is not HTTP")]
    NoRequest,
    /// It has no response.
    #[error("the flow has no response")]
    NoResponse,
    /// The body of the request or response was not kept.
    #[error("the body of the {0} was not kept")]
    BodyMissing(&'static str),
    /// Only a part of the body was kept.
    #[error("only {kept} of {size} bytes of the {whose}'s body were kept")]
    BodyCut {
        /// `request` or `response`.
        whose: &'static str,
        /// Bytes that were kept.
        kept: u64,
        /// Bytes that passed.
        size: u64,
    },
    /// A command can't carry a body that is no text.
    #[error("the request's body is not text, which a command line can't carry")]
    NotText,
    /// HTTP/1 has trailers with chunked framing only.
    #[error("HTTP/1 can't say the trailers of the {0}: its body is not chunked")]
    Trailers(&'static str),
}

/// Exports a flow. Bodies are without their content coding, and headers say so.
///
/// The result has no line end behind it. Where mitmproxy's command would not do what it says, this one does: `%` and `\` in
/// a body with control characters, and a body that begins with `@`.
///
/// # Errors
/// [`ExportError`].
pub fn export(
    record: &Record,
    format: ExportFormat,
    options: &ExportOptions,
) -> Result<Vec<u8>, ExportError> {
    let http = record.as_http().ok_or(ExportError::NoRequest)?;
    let response = || http.response.as_ref().ok_or(ExportError::NoResponse);
    match format {
        ExportFormat::Curl => curl(record, &http.request, options),
        ExportFormat::Httpie => httpie(&http.request),
        ExportFormat::RawRequest => raw_request(&http.request),
        ExportFormat::RawResponse => raw_response(response()?),
        ExportFormat::Raw => {
            let has_request = http.request.message.body.data.is_some();
            let response = http.response.as_ref();
            let response = response.filter(|response| response.message.body.data.is_some());
            match (has_request, response) {
                (true, None) => raw_request(&http.request),
                (false, Some(response)) => raw_response(response),
                (false, None) => Err(ExportError::BodyMissing("request")),
                (true, Some(response)) => {
                    let mut raw = raw_request(&http.request)?;
                    raw.extend_from_slice(b"\r\n\r\n");
                    raw.append(&mut raw_response(response)?);
                    if let Some(websocket) = &http.websocket {
                        raw.extend_from_slice(b"\r\n\r\n");
                        for (i, message) in websocket.messages.iter().enumerate() {
                            if i > 0 {
                                raw.push(b'\n');
                            }
                            raw.extend_from_slice(match message.from_client {
                                true => b"[OUTGOING] ",
                                false => b"[INCOMING] ",
                            });
                            raw.extend_from_slice(&message.content);
                        }
                    }
                    Ok(raw)
                }
            }
        }
    }
}

fn curl(
    record: &Record,
    request: &HttpRequest,
    options: &ExportOptions,
) -> Result<Vec<u8>, ExportError> {
    let request = for_a_command(request)?;
    let mut words: Vec<Vec<u8>> = vec![b"curl".to_vec()];
    if options.preserve_original_ip
        && let Some(peer) = &record.server.common.peername
        && request.pretty_host() != peer.host
    {
        words.push(b"--resolve".to_vec());
        let place = format!("{}:{}:[{}]", request.pretty_host(), request.port, peer.host);
        words.push(place.into_bytes());
    }
    for (name, value) in request.message.headers.iter() {
        if name.eq_ignore_ascii_case(b"accept-encoding") {
            words.push(b"--compressed".to_vec());
        } else {
            words.push(b"-H".to_vec());
            words.push([name, b": ", value].concat());
        }
    }
    let body = request.message.body.data.clone().unwrap_or_default();
    let method = request.method.to_ascii_uppercase();
    if method != b"GET" {
        if body.is_empty() {
            // Else curl says no length, which some servers want for a POST.
            words.push(b"-H".to_vec());
            words.push(b"content-length: 0".to_vec());
        }
        words.push(b"-X".to_vec());
        words.push(method);
    }
    words.push(pretty_url(&request));
    let mut command = shell_words(&words);
    if !body.is_empty() {
        // Behind -d an @ would name a file.
        let flag: &[u8] = match body.first() {
            Some(b'@') => b" --data-raw ",
            _ => b" -d ",
        };
        command.extend_from_slice(flag);
        command.append(&mut body_word(&request.message)?);
    }
    Ok(command)
}

fn httpie(request: &HttpRequest) -> Result<Vec<u8>, ExportError> {
    let request = for_a_command(request)?;
    let mut words = vec![
        b"http".to_vec(),
        request.method.to_ascii_uppercase(),
        pretty_url(&request),
    ];
    for (name, value) in request.message.headers.iter() {
        words.push([name, b": ", value].concat());
    }
    let mut command = shell_words(&words);
    if request
        .message
        .body
        .data
        .as_ref()
        .is_some_and(|body| !body.is_empty())
    {
        command.extend_from_slice(b" <<< ");
        command.append(&mut body_word(&request.message)?);
    }
    Ok(command)
}

/// Without content coding, and without headers that the command makes itself.
fn for_a_command(request: &HttpRequest) -> Result<HttpRequest, ExportError> {
    let mut request = request.clone();
    check_not_cut("request", &request.message)?;
    undo_coding(&mut request.message);
    let headers = &mut request.message.headers;
    headers.remove("content-length");
    for name in ["host", ":authority"] {
        if headers
            .joined(name)
            .is_some_and(|value| value == request.host.as_bytes())
        {
            headers.remove(name);
        }
    }
    Ok(request)
}

fn check_not_cut(whose: &'static str, message: &HttpMessage) -> Result<(), ExportError> {
    match (message.body.cut_from, &message.body.data) {
        (Some(size), Some(data)) => Err(ExportError::BodyCut {
            whose,
            kept: data.len() as u64,
            size,
        }),
        (Some(_), None) => Err(ExportError::BodyMissing(whose)),
        (None, _) => Ok(()),
    }
}

/// Takes the content coding off the body, and says so in the headers.
pub(crate) fn undo_coding(message: &mut HttpMessage) {
    let Some(content) = message.content().map(|content| content.into_owned()) else {
        return;
    };
    if message.body.data.as_ref().is_none_or(Bytes::is_empty) {
        return;
    }
    message.headers.remove("content-encoding");
    set_length(message, content.len());
    message.body = Body::whole(content);
}

/// `Content-Length`, unless the framing is said by `Transfer-Encoding`.
pub(crate) fn set_length(message: &mut HttpMessage, length: usize) {
    if message.headers.get("transfer-encoding").is_none() {
        message.headers.set("content-length", length.to_string());
    }
}

fn raw_request(request: &HttpRequest) -> Result<Vec<u8>, ExportError> {
    let mut message = request.message.clone();
    check_not_cut("request", &message)?;
    undo_coding(&mut message);
    let version = &message.version[..];
    let mut out = request.method.to_vec();
    out.push(b' ');
    if request.method.eq_ignore_ascii_case(b"CONNECT") {
        out.extend_from_slice(&request.authority);
    } else {
        if !request.authority.is_empty() {
            out.extend_from_slice(&request.scheme);
            out.extend_from_slice(b"://");
            out.extend_from_slice(&request.authority);
        }
        out.extend_from_slice(&request.path);
    }
    out.push(b' ');
    out.extend_from_slice(version);
    out.extend_from_slice(b"\r\n");
    raw_message("request", &message, &mut out)?;
    Ok(out)
}

fn raw_response(response: &HttpResponse) -> Result<Vec<u8>, ExportError> {
    let mut message = response.message.clone();
    check_not_cut("response", &message)?;
    undo_coding(&mut message);
    let mut out = message.version.to_vec();
    // Writing to memory can't fail.
    let _ = write!(out, " {} ", response.status);
    out.extend_from_slice(&response.reason);
    out.extend_from_slice(b"\r\n");
    raw_message("response", &message, &mut out)?;
    Ok(out)
}

/// Everything behind the first line.
fn raw_message(
    whose: &'static str,
    message: &HttpMessage,
    out: &mut Vec<u8>,
) -> Result<(), ExportError> {
    let body = message
        .body
        .data
        .as_ref()
        .ok_or(ExportError::BodyMissing(whose))?;
    message.headers.write_block(out);
    out.extend_from_slice(b"\r\n");
    let coding = message
        .headers
        .joined("transfer-encoding")
        .unwrap_or_default();
    let is_chunked = coding
        .to_ascii_lowercase()
        .windows(7)
        .any(|window| window == b"chunked");
    let trailers = message
        .trailers
        .as_ref()
        .filter(|trailers| !trailers.is_empty());
    if !is_chunked {
        if trailers.is_some() {
            return Err(ExportError::Trailers(whose));
        }
        out.extend_from_slice(body);
        return Ok(());
    }
    if !body.is_empty() {
        let _ = write!(out, "{:x}\r\n", body.len());
        out.extend_from_slice(body);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        trailers.write_block(out);
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn pretty_url(request: &HttpRequest) -> Vec<u8> {
    let mut url = Vec::new();
    request.url_parts().write_pretty_url(&mut url);
    url
}

/// The body as one word of a shell; with `printf` where it has control characters.
fn body_word(message: &HttpMessage) -> Result<Vec<u8>, ExportError> {
    let text = message
        .strict_text()
        .map_err(|_| ExportError::NotText)?
        .unwrap_or_default();
    if !text.iter().any(|b| *b < 32) {
        return Ok(shell_word(&text));
    }
    let mut escaped = Vec::with_capacity(text.len());
    for &byte in text.iter() {
        match byte {
            0..32 => drop(write!(escaped, "\\x{byte:02x}")),
            b'%' | b'\\' => escaped.extend_from_slice(&[byte, byte]),
            _ => escaped.push(byte),
        }
    }
    Ok([b"\"$(printf ", &shell_word(&escaped)[..], b")\""].concat())
}

fn shell_words(words: &[Vec<u8>]) -> Vec<u8> {
    let quoted: Vec<_> = words.iter().map(|word| shell_word(word)).collect();
    quoted.join(&b' ')
}

/// Quoted where a shell would read it otherwise.
fn shell_word(word: &[u8]) -> Vec<u8> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(byte);
    if !word.is_empty() && word.iter().all(plain) {
        return word.to_vec();
    }
    let mut quoted = vec![b'\''];
    for &byte in word {
        match byte {
            b'\'' => quoted.extend_from_slice(br#"'"'"'"#),
            _ => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Address, HeaderFields, HttpExchange, WebSocketData, WebSocketMessage};

    fn record(body: &'static [u8]) -> Record {
        let mut request = HttpRequest::new("post", "http", "a.example", 80, "/p?q=1");
        request.message.headers.push("Host", "a.example");
        request.message.headers.push("Content-Length", "0");
        request.message.headers.push("X", "it's");
        request.message.body = Body::whole(body);
        Record::http("id", HttpExchange::new(request))
    }

    fn text(record: &Record, format: &str) -> Result<String, ExportError> {
        let format = format.parse().unwrap();
        let bytes = export(record, format, &ExportOptions::default())?;
        Ok(String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn commands_are_what_a_shell_reads() {
        let url = "http://a.example/p?q=1";
        let head = format!("curl -H 'X: it'\"'\"'s' -X POST '{url}'");
        assert_eq!(
            text(&record(b"a b"), "curl").unwrap(),
            format!("{head} -d 'a b'")
        );
        assert_eq!(
            text(&record(b"a\n50%\\"), "curl").unwrap(),
            format!("{head} -d \"$(printf 'a\\x0a50%%\\\\')\"")
        );
        assert_eq!(
            text(&record(b"@file"), "curl").unwrap(),
            format!("{head} --data-raw @file")
        );
        assert_eq!(
            text(&record(b""), "curl").unwrap(),
            format!("curl -H 'X: it'\"'\"'s' -H 'content-length: 0' -X POST '{url}'")
        );
        assert_eq!(
            text(&record(b"a b"), "httpie").unwrap(),
            format!("http POST '{url}' 'X: it'\"'\"'s' <<< 'a b'")
        );
        let mut wrong = record(b"\xff");
        let headers = &mut wrong.as_http_mut().unwrap().request.message.headers;
        headers.set("content-type", "application/json");
        assert_eq!(text(&wrong, "curl"), Err(ExportError::NotText));
    }

    #[test]
    fn curl_can_be_told_the_original_address() {
        let mut record = record(b"");
        record.server.common.peername = Some(Address::new("192.0.2.1", 80));
        let options = ExportOptions {
            preserve_original_ip: true,
        };
        let command = export(&record, ExportFormat::Curl, &options).unwrap();
        assert!(command.starts_with(b"curl --resolve 'a.example:80:[192.0.2.1]' "));
    }

    #[test]
    fn raw_messages_have_their_framing() {
        let mut record = record(b"body");
        assert_eq!(
            text(&record, "raw_request").unwrap(),
            "post /p?q=1 HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nX: it's\r\n\r\nbody"
        );
        assert_eq!(text(&record, "raw_response"), Err(ExportError::NoResponse));
        assert_eq!(
            text(&record, "raw").unwrap(),
            text(&record, "raw_request").unwrap()
        );
        let http = record.as_http_mut().unwrap();
        let mut response = HttpResponse::new(200, "OK");
        response
            .message
            .headers
            .push("Transfer-Encoding", "Chunked");
        response.message.body = Body::whole("0123456789abcdefg");
        let mut trailers = HeaderFields::new();
        trailers.push("T", "1");
        response.message.trailers = Some(trailers);
        http.response = Some(response);
        http.websocket = Some(WebSocketData {
            messages: vec![WebSocketMessage {
                opcode: 1,
                from_client: true,
                content: "hi".into(),
                timestamp: Default::default(),
                dropped: false,
                injected: false,
            }],
            ..WebSocketData::default()
        });
        let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n11\r\n0123456789abcdefg\r\n0\r\nT: 1\r\n\r\n";
        assert_eq!(text(&record, "raw_response").unwrap(), response);
        let request = text(&record, "raw_request").unwrap();
        assert_eq!(
            text(&record, "raw").unwrap(),
            format!("{request}\r\n\r\n{response}\r\n\r\n[OUTGOING] hi")
        );
    }

    #[test]
    fn what_was_not_kept_is_not_made_up() {
        let mut cut = record(b"body");
        cut.as_http_mut().unwrap().request.message.body = Body::kept("bo", 4);
        for format in ["curl", "httpie", "raw_request", "raw"] {
            let error = text(&cut, format).unwrap_err();
            assert_eq!(
                error.to_string(),
                "only 2 of 4 bytes of the request's body were kept"
            );
        }
        cut.as_http_mut().unwrap().request.message.body = Body::not_kept(4);
        assert_eq!(text(&cut, "curl"), Err(ExportError::BodyMissing("request")));
        cut.as_http_mut().unwrap().request.message.body = Body::default();
        assert_eq!(
            text(&cut, "raw_request"),
            Err(ExportError::BodyMissing("request"))
        );
        assert!(
            "x".parse::<ExportFormat>()
                .unwrap_err()
                .to_string()
                .contains("raw_request")
        );
    }
}
