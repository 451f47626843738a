use std::borrow::Cow;

use bytes::Bytes;
use tollgate_wire::coding::{CodingError, Decoder, OutputLimit};

use super::{HeaderFields, Timestamp};
use crate::url::UrlParts;

/// A request, its response, and the WebSocket that it opened.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpExchange {
    /// The request.
    pub request: HttpRequest,
    /// The final response.
    pub response: Option<HttpResponse>,
    /// What passed after an upgrade to WebSocket.
    pub websocket: Option<WebSocketData>,
}

impl HttpExchange {
    /// A request without a response.
    pub fn new(request: HttpRequest) -> Self {
        Self {
            request,
            response: None,
            websocket: None,
        }
    }
}

/// A recorded request.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRequest {
    /// The method, as it was spelled.
    pub method: Bytes,
    /// `http` or `https`; empty for CONNECT.
    pub scheme: Bytes,
    /// `:authority` (HTTP/2, HTTP/3), or the authority of a target in absolute or authority form; empty for others.
    pub authority: Bytes,
    /// Path and query; `*` for `OPTIONS *`.
    pub path: Bytes,
    /// The host that the request went to.
    pub host: String,
    /// The port that the request went to.
    pub port: u16,
    /// Version, headers, body.
    pub message: HttpMessage,
}

/// A recorded response.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// The reason phrase.
    pub reason: Bytes,
    /// Version, headers, body.
    pub message: HttpMessage,
}

/// What requests and responses have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpMessage {
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2.0`, `HTTP/3`.
    pub version: Bytes,
    /// The header fields.
    pub headers: HeaderFields,
    /// The body, without framing, still content-coded.
    pub body: Body,
    /// The trailer fields.
    pub trailers: Option<HeaderFields>,
    /// When the head was there.
    pub started: Timestamp,
    /// When the last byte was there.
    pub ended: Option<Timestamp>,
}

/// A body, as far as it was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// The bytes that were kept, from the first; `None` when nothing was to be kept, which is not an empty body.
    pub data: Option<Bytes>,
    /// How many bytes passed, if that is more than what was kept: the mark of a cut body.
    pub cut_from: Option<u64>,
}

impl Body {
    /// A body that was kept whole.
    pub fn whole(data: impl Into<Bytes>) -> Self {
        Self {
            data: Some(data.into()),
            cut_from: None,
        }
    }

    /// What was kept of a body of `size` bytes.
    pub fn kept(data: impl Into<Bytes>, size: u64) -> Self {
        let data = data.into();
        Self {
            cut_from: (size > data.len() as u64).then_some(size),
            data: Some(data),
        }
    }

    /// A body of `size` bytes of which nothing was to be kept.
    pub fn not_kept(size: u64) -> Self {
        Self {
            data: None,
            cut_from: (size > 0).then_some(size),
        }
    }

    /// How many bytes passed; `None` when the body was not kept and its size isn't known.
    pub fn size(&self) -> Option<u64> {
        self.cut_from
            .or(self.data.as_ref().map(|data| data.len() as u64))
    }

    /// Whether bytes passed that were not kept.
    pub fn is_cut(&self) -> bool {
        self.cut_from.is_some()
    }
}

impl HttpRequest {
    /// A request of HTTP/1.1 without headers or body.
    pub fn new(method: &str, scheme: &str, host: &str, port: u16, path: &str) -> Self {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        Self {
            method: bytes(method),
            scheme: bytes(scheme),
            authority: Bytes::new(),
            path: bytes(path),
            host: host.to_owned(),
            port,
            message: HttpMessage::default(),
        }
    }

    /// The absolute URL of where the request went.
    pub fn url(&self) -> String {
        let mut url = Vec::new();
        self.url_parts().write_url(&mut url);
        lossy(url)
    }

    /// The absolute URL with the host that the request names: in `Host`, or in `:authority`.
    ///
    /// It is what a person thinks of, but it is the client's word: don't base decisions on it.
    pub fn pretty_url(&self) -> String {
        let mut url = Vec::new();
        self.url_parts().write_pretty_url(&mut url);
        lossy(url)
    }

    /// The host that the request names, else the one that it went to.
    pub fn pretty_host(&self) -> String {
        String::from_utf8_lossy(&self.url_parts().pretty_host()).into_owned()
    }

    pub(crate) fn url_parts(&self) -> UrlParts<'_> {
        let mut hosts = self.message.headers.get_all("host");
        let host_header = hosts.next().map(|first| match hosts.next() {
            None => Cow::Borrowed(first),
            Some(_) => Cow::Owned(self.message.headers.joined("host").unwrap_or_default()),
        });
        UrlParts {
            method: &self.method,
            scheme: &self.scheme,
            host: &self.host,
            port: self.port,
            path: &self.path,
            authority: &self.authority,
            host_header,
            has_authority: matches!(&self.message.version[..], b"HTTP/2.0" | b"HTTP/3"),
        }
    }
}

impl HttpResponse {
    /// A response of HTTP/1.1 without headers or body.
    pub fn new(status: u16, reason: &str) -> Self {
        Self {
            status,
            reason: Bytes::copy_from_slice(reason.as_bytes()),
            message: HttpMessage::default(),
        }
    }
}

impl Default for HttpMessage {
    /// HTTP/1.1 with an empty body.
    fn default() -> Self {
        Self {
            version: Bytes::from_static(b"HTTP/1.1"),
            headers: HeaderFields::new(),
            body: Body::whole(Bytes::new()),
            trailers: None,
            started: Timestamp::default(),
            ended: None,
        }
    }
}

impl HttpMessage {
    /// The body without its content coding: what could be decoded of it, or the bytes as they are where the coding is
    /// unknown or the body is not what its header says. `None` when the body was not kept.
    pub fn content(&self) -> Option<Cow<'_, [u8]>> {
        let data = self.body.data.as_deref()?;
        let codings = self.headers.get_all("content-encoding");
        Some(match decode(data, codings) {
            Ok(content) => content,
            Err(_) => Cow::Borrowed(data),
        })
    }

    /// The same, but an error where the body is not what its header says.
    ///
    /// # Errors
    /// [`CodingError`].
    pub fn strict_content(&self) -> Result<Option<Cow<'_, [u8]>>, CodingError> {
        match self.body.data.as_deref() {
            Some(data) => decode(data, self.headers.get_all("content-encoding")).map(Some),
            None => Ok(None),
        }
    }
}

/// Undoes content codings. A body that ends too early, or would grow too large, gives what came out until then.
pub(crate) fn decode<'a, 'b>(
    data: &'a [u8],
    codings: impl Iterator<Item = &'b [u8]>,
) -> Result<Cow<'a, [u8]>, CodingError> {
    let Some(mut decoder) = Decoder::new(codings, OutputLimit::default())? else {
        return Ok(Cow::Borrowed(data));
    };
    let mut out = Vec::new();
    // In pieces, so that the limit on one feed is none on the body.
    for piece in data.chunks(64 * 1024) {
        match decoder.feed(piece, &mut out) {
            Ok(()) => {}
            Err(CodingError::LimitExceeded) => return Ok(Cow::Owned(out)),
            Err(error) => return Err(error),
        }
    }
    match decoder.finish(&mut out) {
        Err(CodingError::Truncated { .. }) if out.is_empty() => Ok(Cow::Borrowed(data)),
        Ok(()) | Err(CodingError::Truncated { .. }) => Ok(Cow::Owned(out)),
        Err(error) => Err(error),
    }
}

/// What passed over a WebSocket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WebSocketData {
    /// The messages, whole, in the order in which they came.
    pub messages: Vec<WebSocketMessage>,
    /// Who closed it; `None` while it is open.
    pub closed_by_client: Option<bool>,
    /// The close code (RFC 6455 section 7.4).
    pub close_code: Option<u16>,
    /// The close reason.
    pub close_reason: Option<String>,
    /// When it was closed.
    pub timestamp_end: Option<Timestamp>,
}

/// One WebSocket message.
#[derive(Clone, Debug, PartialEq)]
pub struct WebSocketMessage {
    /// 1 for text, 2 for binary.
    pub opcode: u8,
    /// Whether the client sent it.
    pub from_client: bool,
    /// The content.
    pub content: Bytes,
    /// When it came.
    pub timestamp: Timestamp,
    /// Whether it was held back from the other side.
    pub dropped: bool,
    /// Whether the proxy made it up.
    pub injected: bool,
}

impl WebSocketMessage {
    /// Whether it is text.
    pub fn is_text(&self) -> bool {
        self.opcode == 1
    }
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_wire::coding::{Coding, Encoder};

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(Coding::Gzip).unwrap();
        encoder.feed(content, &mut out).unwrap();
        encoder.finish(&mut out).unwrap();
        out
    }

    fn message(coding: &'static str, body: &[u8]) -> HttpMessage {
        let mut message = HttpMessage::default();
        message.headers.push("Content-Encoding", coding);
        message.body = Body::whole(body.to_vec());
        message
    }

    #[test]
    fn content_is_decoded_or_left_alone() {
        let coded = gzip(&b"hello ".repeat(1000));
        let whole = message("gzip", &coded);
        assert_eq!(whole.content().unwrap().len(), 6000);
        let wrong = message("br", b"\xff\xff\xff\xff");
        assert_eq!(wrong.content().unwrap(), &b"\xff\xff\xff\xff"[..]);
        assert!(wrong.strict_content().is_err());
        let unknown = message("utf-8", b"x");
        assert_eq!(unknown.content().unwrap(), &b"x"[..]);
        // A cut body shows what is there of it.
        let cut = message("gzip", &coded[..coded.len() - 9]);
        assert!(cut.content().unwrap().starts_with(b"hello hello"));
        let mut missing = message("gzip", b"");
        assert_eq!(missing.content().unwrap(), &b""[..]);
        missing.body = Body::not_kept(3);
        assert_eq!(missing.content(), None);
        assert_eq!(missing.strict_content(), Ok(None));
    }

    #[test]
    fn bodies_know_what_was_cut() {
        assert!(!Body::kept("abc", 3).is_cut());
        let cut = Body::kept("abc", 10);
        assert!(cut.is_cut());
        assert_eq!(cut.size(), Some(10));
        assert_eq!(Body::not_kept(0).size(), None);
        assert_eq!(Body::whole("ab").size(), Some(2));
    }
}
