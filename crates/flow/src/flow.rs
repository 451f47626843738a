//! One recorded exchange.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tollgate_wire::headers::{HeaderList, InvalidHeader};
use tollgate_wire::http1::{RequestHead, ResponseHead};

use crate::connection::{ConnectionInfo, Target, UpstreamInfo};
use crate::record::Replay;
use crate::upstream_proxy::Via;
use crate::websocket::WebSocket;

/// Identifies a flow: sortable by time, unique across proxies (a UUID of version 7, RFC 9562).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FlowId(pub u128);

impl FlowId {
    /// Builds an id from a time, and 74 bits that the caller vouches are unique within that
    /// millisecond (a random node part and a counter, say).
    pub fn new(time: SystemTime, unique: u128) -> Self {
        let millis = time
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() & 0xffff_ffff_ffff);
        let high12 = (unique >> 62) & 0xfff;
        let low62 = unique & ((1 << 62) - 1);
        Self((millis << 80) | (7 << 76) | (high12 << 64) | (0b10 << 62) | low62)
    }

    /// Reads a UUID of any version in its usual form, 8-4-4-4-12 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let groups = text.split('-').map(str::len);
        if !groups.eq([8, 4, 4, 4, 12]) || text.contains('+') {
            return None;
        }
        u128::from_str_radix(&text.replace('-', ""), 16)
            .ok()
            .map(Self)
    }
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            (v >> 96) as u32,
            (v >> 80) as u16,
            (v >> 64) as u16,
            (v >> 48) as u16,
            v & 0xffff_ffff_ffff
        )
    }
}

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum FlowKind {
    /// A request and its response.
    #[default]
    Http,
    /// A stream of bytes each way, of a protocol that is not HTTP. The request holds the target,
    /// and its scheme tells whether TLS was opened; both heads are empty, and the bodies' sizes
    /// are what has passed.
    /// Only [`interest`](crate::Interceptor::interest), [`data`](crate::Interceptor::data) and
    /// [`end`](crate::Interceptor::end) are called.
    Tcp,
    /// Datagrams to one destination; otherwise like [`FlowKind::Tcp`]. A piece is a datagram.
    Udp,
}

/// One exchange: a request, its response, and everything known around them.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Identifies the flow.
    pub id: FlowId,
    /// What it carries.
    pub kind: FlowKind,
    /// The client's connection.
    pub connection: Arc<ConnectionInfo>,
    /// The connection to the origin, once there is one.
    pub upstream: Option<Arc<UpstreamInfo>>,
    /// The request.
    pub request: Request,
    /// The final response, once its head was read (or the proxy's own reply).
    pub response: Option<Box<Response>>,
    /// The WebSocket that it became, where an interceptor asked for its messages.
    pub websocket: Option<Box<WebSocket>>,
    /// When things happened.
    pub timing: Timing,
    /// Whether, and what of it, is a replay.
    pub replay: Option<Replay>,
    /// Notes that interceptors leave for each other and for who records the flow.
    pub metadata: Vec<(String, String)>,
}

impl Flow {
    /// An empty flow on a connection; the engine fills it in and uses it again for the next request.
    pub fn new(connection: Arc<ConnectionInfo>) -> Self {
        Self {
            id: FlowId::default(),
            kind: FlowKind::default(),
            connection,
            upstream: None,
            request: Request::default(),
            response: None,
            websocket: None,
            timing: Timing::default(),
            replay: None,
            metadata: Vec::new(),
        }
    }

    /// The absolute URL of the request, lossily decoded.
    pub fn url(&self) -> String {
        self.request.url()
    }

    /// The absolute URL with the host that the request names, where it names one: mitmproxy's `pretty_url`, which is
    /// what people write patterns for.
    pub fn pretty_url(&self) -> Vec<u8> {
        let mut url = Vec::with_capacity(64);
        self.url_parts().write_pretty_url(&mut url);
        url
    }
}

/// `http` or `https`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Scheme {
    /// Plaintext HTTP.
    #[default]
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// 80 or 443.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// The HTTP version of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum HttpVersion {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
    /// HTTP/3.
    Http3,
}

impl HttpVersion {
    /// As mitmproxy spells it: `HTTP/1.1`, `HTTP/2.0`, `HTTP/3`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2.0",
            Self::Http3 => "HTTP/3",
        }
    }
}

/// A request. The method, target and headers live in `head`, whatever the HTTP version.
#[derive(Clone, Debug)]
pub struct Request {
    /// The head. For HTTP/2 and HTTP/3 the target is `:path`, and `Host` stands for `:authority` where the
    /// client sent it.
    pub head: RequestHead,
    /// The version that the client spoke.
    pub version: HttpVersion,
    /// The scheme.
    pub scheme: Scheme,
    /// Where the request goes. Changing it changes the route.
    pub target: Target,
    /// Which way it leaves: an interceptor may send it through a proxy, or past one.
    pub via: Via,
    /// `:authority` as the client sent it (HTTP/2 and HTTP/3), or the authority of an
    /// absolute-form target.
    pub authority: Option<Vec<u8>>,
    /// Trailers, once the body has ended.
    pub trailers: Option<HeaderList>,
    /// The whole body, where an interceptor asked for it.
    body: Option<Bytes>,
    body_edited: bool,
    /// Body bytes received so far, as on the wire without framing.
    pub body_size: u64,
    hidden: Hidden,
}

/// Header fields that only the origin sees.
#[derive(Clone, Default)]
struct Hidden(Vec<(Vec<u8>, Vec<u8>)>);

/// How many there are, and nothing of them.
impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hidden", self.0.len())
    }
}

impl Default for Request {
    fn default() -> Self {
        Self {
            head: RequestHead::new(),
            version: HttpVersion::default(),
            scheme: Scheme::default(),
            target: Target {
                host: Arc::from(""),
                port: 0,
            },
            via: Via::default(),
            authority: None,
            trailers: None,
            body: None,
            body_edited: false,
            body_size: 0,
            hidden: Hidden::default(),
        }
    }
}

impl Request {
    /// Makes it ready for the next request on the connection; keeps buffers and the target.
    pub fn reset(&mut self) {
        self.via = Via::default();
        self.authority = None;
        self.trailers = None;
        self.body = None;
        self.body_edited = false;
        self.body_size = 0;
        self.hidden.0.clear();
    }

    /// Sets a header field that only the origin sees: it replaces fields of that name where the head is written, and
    /// stands in no hook, record or log. For credentials that clients don't have.
    ///
    /// # Errors
    /// A name or value that can't stand in a header.
    pub fn put_hidden_header(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidHeader> {
        HeaderList::new().append(name, value)?;
        self.hidden
            .0
            .retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.hidden.0.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    /// The head as the origin gets it: with the hidden header fields.
    pub fn wire_head(&self) -> Cow<'_, RequestHead> {
        if self.hidden.0.is_empty() {
            return Cow::Borrowed(&self.head);
        }
        let mut head = self.head.clone();
        for (name, value) in &self.hidden.0 {
            // Looked at when they were put in.
            let _ = head.headers.set(name, value);
        }
        Cow::Owned(head)
    }

    /// The method, e.g. `GET`.
    pub fn method(&self) -> &[u8] {
        self.head.method()
    }

    /// Path and query, e.g. `/a?b=1` (for `OPTIONS *`: `*`).
    pub fn path(&self) -> &[u8] {
        self.head.target()
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderList {
        &self.head.headers
    }

    /// The headers, to change them.
    pub fn headers_mut(&mut self) -> &mut HeaderList {
        &mut self.head.headers
    }

    /// The absolute URL, lossily decoded; the port only where it isn't the scheme's.
    pub fn url(&self) -> String {
        let mut url = String::with_capacity(64);
        url.push_str(self.scheme.as_str());
        url.push_str("://");
        if self.target.port == self.scheme.default_port() {
            if self.target.host.contains(':') {
                url.push('[');
                url.push_str(&self.target.host);
                url.push(']');
            } else {
                url.push_str(&self.target.host);
            }
        } else {
            url.push_str(&self.target.to_string());
        }
        let path = String::from_utf8_lossy(self.path());
        if !path.starts_with('/') {
            url.push('/');
        }
        url.push_str(&path);
        url
    }

    /// The whole body as it is on the wire (still content-coded), where it was collected.
    pub fn body(&self) -> Option<&Bytes> {
        self.body.as_ref()
    }

    /// Replaces the body: plain bytes, no content coding. Framing headers are put right.
    /// Has an effect in the `request` hook with [`Interest::REQUEST_BODY`](crate::Interest::REQUEST_BODY).
    pub fn set_body(&mut self, body: impl Into<Bytes>) {
        self.body = Some(body.into());
        self.body_edited = true;
        self.head.headers.remove("content-encoding");
    }

    /// Hands over a collected body (the engine's side of [`Request::body`]).
    pub fn put_collected_body(&mut self, body: Bytes) {
        self.body = Some(body);
        self.body_edited = false;
    }

    /// Whether [`Request::set_body`] was called since the body was collected.
    pub fn is_body_edited(&self) -> bool {
        self.body_edited
    }
}

/// A response.
#[derive(Clone, Debug)]
pub struct Response {
    /// The head. For HTTP/2 the reason is empty.
    pub head: ResponseHead,
    /// The version that the origin spoke.
    pub version: HttpVersion,
    /// Trailers, once the body has ended.
    pub trailers: Option<HeaderList>,
    body: Option<Bytes>,
    body_edited: bool,
    /// Body bytes received so far, as on the wire without framing.
    pub body_size: u64,
}

impl Default for Response {
    fn default() -> Self {
        Self {
            head: ResponseHead::new(),
            version: HttpVersion::default(),
            trailers: None,
            body: None,
            body_edited: false,
            body_size: 0,
        }
    }
}

impl Response {
    /// Makes it ready for the next response; keeps buffers.
    pub fn reset(&mut self) {
        self.trailers = None;
        self.body = None;
        self.body_edited = false;
        self.body_size = 0;
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    /// The reason phrase.
    pub fn reason(&self) -> &[u8] {
        self.head.reason()
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderList {
        &self.head.headers
    }

    /// The headers, to change them.
    pub fn headers_mut(&mut self) -> &mut HeaderList {
        &mut self.head.headers
    }

    /// The whole body as it is on the wire (still content-coded), where it was collected.
    pub fn body(&self) -> Option<&Bytes> {
        self.body.as_ref()
    }

    /// Replaces the body: plain bytes, no content coding. Framing headers are put right.
    /// Has an effect in the `response` hook with [`Interest::RESPONSE_BODY`](crate::Interest::RESPONSE_BODY).
    pub fn set_body(&mut self, body: impl Into<Bytes>) {
        self.body = Some(body.into());
        self.body_edited = true;
        self.head.headers.remove("content-encoding");
    }

    /// Hands over a collected body (the engine's side of [`Response::body`]).
    pub fn put_collected_body(&mut self, body: Bytes) {
        self.body = Some(body);
        self.body_edited = false;
    }

    /// Whether [`Response::set_body`] was called since the body was collected.
    pub fn is_body_edited(&self) -> bool {
        self.body_edited
    }
}

/// When things happened to a flow.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// When the request head had been read, by the wall clock.
    pub started: SystemTime,
    /// The same moment, by the monotonic clock: what the durations count from.
    pub start: Instant,
    /// From start to the end of the request body.
    pub request_end: Option<Duration>,
    /// From start to the response head.
    pub response_start: Option<Duration>,
    /// From start to the end of the response.
    pub response_end: Option<Duration>,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            started: UNIX_EPOCH,
            start: Instant::now(),
            request_end: None,
            response_start: None,
            response_end: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flow_id_is_a_version_7_uuid() {
        let id = FlowId::new(
            UNIX_EPOCH + Duration::from_millis(0x0123_4567_89ab),
            u128::MAX,
        );
        assert_eq!(id.to_string(), "01234567-89ab-7fff-bfff-ffffffffffff");
        let later = FlowId::new(UNIX_EPOCH + Duration::from_millis(0x0123_4567_89ac), 0);
        assert!(later > id);
        assert_eq!(FlowId::parse(&id.to_string()), Some(id));
        for wrong in [
            "",
            "0123456789ab7fffbfffffffffffffff",
            "+1234567-89ab-7fff-bfff-ffffffffffff",
        ] {
            assert_eq!(FlowId::parse(wrong), None);
        }
    }
}
