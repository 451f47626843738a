//! Request heads.

use std::fmt;

use super::scan::{HeadScan, Kind};
use super::{Anomaly, Framing, HeadLimits, Parsed, Version, length};
use crate::headers::{HeaderList, InvalidHeader, Known, is_token};

/// The head of a request: method, target, version and headers.
///
/// Made for reuse: one value per connection parses head after head into the same buffers. Replace it by
/// [`RequestHead::new`] to give the memory of an unusually large head back.
///
/// ```
/// use tollgate_wire::http1::{RequestHead, Version};
///
/// let mut head = RequestHead::build(b"GET", b"/", Version::Http11)?;
/// head.headers.append(b"Host", b"example.com")?;
/// let mut out = Vec::new();
/// head.write_to(&mut out);
/// assert_eq!(out, b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n");
/// # Ok::<(), tollgate_wire::headers::InvalidHeader>(())
/// ```
#[derive(Clone, Default)]
pub struct RequestHead {
    /// The header lines.
    pub headers: HeaderList,
    /// `method SP target SP version CRLF`; strict parsing leaves only this one form.
    start: Vec<u8>,
    method_len: usize,
    version: Version,
    scan: HeadScan,
}

/// ` HTTP/1.1` and CRLF.
const VERSION_LEN: usize = 11;

impl RequestHead {
    /// An empty head to parse into. Allocates nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Parses the head at the beginning of `input`, replacing what was here before.
    ///
    /// On [`Parsed::Partial`] call again with the same bytes and more behind them; lines already seen aren't read
    /// again. Until the head is complete, this value is an empty head. Up to four empty lines before the request
    /// line are skipped (RFC 9112 section 2.2): they count in the length but aren't part of the head.
    ///
    /// # Errors
    /// The first [`Anomaly`] of the start line or the header lines, whatever pieces the input comes in. Framing and
    /// `Host` are checked by [`framing`](Self::framing) and [`check_host`](Self::check_host).
    pub fn parse(&mut self, input: &[u8], limits: &HeadLimits) -> Result<Parsed, Anomaly> {
        self.headers.reset();
        self.start.clear();
        self.method_len = 0;
        let Some(len) = self.scan.advance(Kind::Request, input, limits)? else {
            return Ok(Parsed::Partial);
        };
        let (start, bytes) = self.scan.finish(input, len, &mut self.headers);
        self.start.extend_from_slice(bytes);
        self.method_len = start.detail;
        self.version = start.version;
        Ok(Parsed::Complete { len })
    }

    /// Forgets everything, including a head that was begun; for a new connection.
    pub fn clear(&mut self) {
        self.headers.reset();
        self.start.clear();
        self.method_len = 0;
        self.version = Version::default();
        self.scan.restart();
    }

    /// A head that didn't come from the wire, without headers.
    ///
    /// # Errors
    /// [`InvalidHeader::Method`] or [`InvalidHeader::Target`].
    pub fn build(method: &[u8], target: &[u8], version: Version) -> Result<Self, InvalidHeader> {
        let mut head = Self {
            version,
            ..Self::default()
        };
        head.set_start(method, target)?;
        Ok(head)
    }

    /// The method as sent. Methods are case-sensitive. Empty before anything was parsed.
    pub fn method(&self) -> &[u8] {
        self.start.get(..self.method_len).unwrap_or_default()
    }

    /// The request target as sent: origin form, absolute form, authority form or `*` (RFC 9112 section 3.2).
    pub fn target(&self) -> &[u8] {
        let end = self.start.len().saturating_sub(VERSION_LEN);
        self.start.get(self.method_len + 1..end).unwrap_or_default()
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Replaces the method.
    ///
    /// # Errors
    /// [`InvalidHeader::Method`] when it is no token.
    pub fn set_method(&mut self, method: &[u8]) -> Result<(), InvalidHeader> {
        let target = self.target().to_vec();
        self.set_start(method, &target)
    }

    /// Replaces the target.
    ///
    /// # Errors
    /// [`InvalidHeader::Target`] when it is empty or holds white space or control characters.
    pub fn set_target(&mut self, target: &[u8]) -> Result<(), InvalidHeader> {
        let method = self.method().to_vec();
        self.set_start(&method, target)
    }

    /// Where the body ends. A request without `Transfer-Encoding` and `Content-Length` has none.
    ///
    /// # Errors
    /// The anomalies of the two headers; such a request must not be forwarded.
    pub fn framing(&self) -> Result<Framing, Anomaly> {
        Ok(length::declared(&self.headers, self.version)?.unwrap_or(Framing::None))
    }

    /// Checks the `Host` header (RFC 9112 section 3.2): exactly one in HTTP/1.1, at most one in HTTP/1.0, and a valid
    /// (possibly empty) `uri-host [":" port]`.
    ///
    /// # Errors
    /// [`Anomaly::MissingHost`], [`Anomaly::MultipleHosts`] or [`Anomaly::InvalidHost`].
    pub fn check_host(&self) -> Result<(), Anomaly> {
        let mut hosts = self.headers.known_values(Known::Host);
        match (hosts.next(), hosts.next()) {
            (None, _) if self.version == Version::Http11 => Err(Anomaly::MissingHost),
            (None, _) => Ok(()),
            (Some(_), Some(_)) => Err(Anomaly::MultipleHosts),
            (Some(host), None) if is_host(host) => Ok(()),
            (Some(_), None) => Err(Anomaly::InvalidHost),
        }
    }

    /// Whether the client wants the connection kept after this exchange (RFC 9112 section 9.3).
    pub fn keep_alive(&self) -> bool {
        length::keep_alive(&self.headers, self.version)
    }

    /// Whether the client waits for `100 Continue` before it sends the body. Never in HTTP/1.0 (RFC 9110 section 10.1.1).
    pub fn expects_continue(&self) -> bool {
        self.version == Version::Http11
            && self.headers.known_has_token(Known::Expect, b"100-continue")
    }

    /// The value of `Upgrade`, when `Connection` names it.
    pub fn upgrade(&self) -> Option<&[u8]> {
        length::upgrade(&self.headers, self.version)
    }

    /// Whether [`write_to`](Self::write_to) writes anything else than the bytes that were parsed. True for a head
    /// that never was on the wire.
    pub fn is_edited(&self) -> bool {
        self.as_raw().is_none()
    }

    /// Appends the head to `out`, including the empty line. What wasn't edited is written byte for byte.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        match self.as_raw() {
            Some(raw) => out.extend_from_slice(raw),
            None => {
                out.extend_from_slice(&self.start);
                self.headers.write_to(out);
                out.extend_from_slice(b"\r\n");
            }
        }
    }

    /// The original bytes including the empty line, while neither start line nor headers were edited.
    pub fn as_raw(&self) -> Option<&[u8]> {
        // The list keeps the start line it came with: comparing it holds even when lists were swapped between heads.
        let (start, _) = self.headers.original_block()?;
        if start == self.start {
            self.headers.original_bytes()
        } else {
            None
        }
    }

    fn set_start(&mut self, method: &[u8], target: &[u8]) -> Result<(), InvalidHeader> {
        if !is_token(method) {
            return Err(InvalidHeader::Method);
        }
        if target.is_empty() || target.iter().any(|&byte| byte <= b' ' || byte == 0x7F) {
            return Err(InvalidHeader::Target);
        }
        self.start.clear();
        self.method_len = method.len();
        for part in [
            method,
            b" ",
            target,
            b" ",
            self.version.as_str().as_bytes(),
            b"\r\n",
        ] {
            self.start.extend_from_slice(part);
        }
        Ok(())
    }
}

/// Shows the target without its query and user information, which may hold credentials.
impl fmt::Debug for RequestHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (target, hidden) = without_secrets(self.target());
        f.debug_struct("RequestHead")
            .field("method", &format_args!("{}", self.method().escape_ascii()))
            .field(
                "target",
                &format_args!("{}{}", target.escape_ascii(), if hidden { "…" } else { "" }),
            )
            .field("version", &self.version)
            .field("headers", &self.headers)
            .finish()
    }
}

/// Equal in start line and headers.
impl PartialEq for RequestHead {
    fn eq(&self, other: &Self) -> bool {
        self.start == other.start && self.headers == other.headers
    }
}

impl Eq for RequestHead {}

/// The part of a target up to its query, without user information, and whether something was left out.
fn without_secrets(target: &[u8]) -> (&[u8], bool) {
    let shown = target
        .split(|&byte| byte == b'?')
        .next()
        .unwrap_or_default();
    let authority = match shown.windows(3).position(|window| window == b"://") {
        Some(at) => at + 3,
        None => 0,
    };
    let end = shown
        .iter()
        .skip(authority)
        .position(|&byte| byte == b'/')
        .map_or(shown.len(), |at| authority + at);
    match shown
        .get(..end)
        .and_then(|origin| origin.iter().rposition(|&byte| byte == b'@'))
    {
        Some(at) => (shown.get(at + 1..).unwrap_or_default(), true),
        None => (shown, shown.len() < target.len()),
    }
}

/// The characters of `uri-host [":" port]` (RFC 3986 section 3.2.2). The parts are checked where an address is needed.
fn is_host(host: &[u8]) -> bool {
    host.iter()
        .all(|&byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(input: &str) -> RequestHead {
        let mut head = RequestHead::new();
        assert_eq!(
            head.parse(input.as_bytes(), &HeadLimits::default()),
            Ok(Parsed::Complete { len: input.len() })
        );
        head
    }

    fn with(headers: &str) -> RequestHead {
        parsed(&format!("GET / HTTP/1.1\r\n{headers}\r\n"))
    }

    #[test]
    fn edits_of_the_start_line() {
        let mut head = with("Host:  a\r\n");
        assert!(!head.is_edited());
        head.set_target(b"/b?c").unwrap();
        head.set_method(b"POST").unwrap();
        assert!(head.is_edited() && !head.headers.is_edited());
        let mut out = Vec::new();
        head.write_to(&mut out);
        assert_eq!(out, b"POST /b?c HTTP/1.1\r\nHost:  a\r\n\r\n");
        head.set_target(b"/").unwrap();
        head.set_method(b"GET").unwrap();
        assert_eq!(
            head.as_raw(),
            Some(&b"GET / HTTP/1.1\r\nHost:  a\r\n\r\n"[..])
        );
        assert_eq!(head.set_method(b""), Err(InvalidHeader::Method));
        assert_eq!(head.set_target(b"/ x"), Err(InvalidHeader::Target));
        assert_eq!(head.set_target(b""), Err(InvalidHeader::Target));
    }

    #[test]
    fn swapped_header_lists_are_noticed() {
        let mut a = with("A: 1\r\n");
        let mut b = parsed("PUT /b HTTP/1.0\r\nB: 2\r\n\r\n");
        std::mem::swap(&mut a.headers, &mut b.headers);
        assert!(a.is_edited() && b.is_edited());
        let mut out = Vec::new();
        a.write_to(&mut out);
        b.write_to(&mut out);
        assert_eq!(
            out,
            b"GET / HTTP/1.1\r\nB: 2\r\n\r\nPUT /b HTTP/1.0\r\nA: 1\r\n\r\n"
        );
        std::mem::swap(&mut a.headers, &mut b.headers);
        assert!(!a.is_edited());
    }

    #[test]
    fn connection_semantics() {
        assert!(with("").keep_alive());
        assert!(!with("Connection: x, Close\r\n").keep_alive());
        assert!(!parsed("GET / HTTP/1.0\r\n\r\n").keep_alive());
        assert!(parsed("GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n").keep_alive());
        assert!(with("Expect: 100-Continue\r\n").expects_continue());
        assert!(!parsed("PUT / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expects_continue());
        assert_eq!(
            with("Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n").upgrade(),
            Some(&b"websocket"[..])
        );
        assert_eq!(with("Upgrade: websocket\r\n").upgrade(), None);
        assert_eq!(
            parsed("GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n").upgrade(),
            None
        );
    }

    #[test]
    fn hosts() {
        for (headers, expected) in [
            ("Host: example.com:80\r\n", Ok(())),
            ("Host: [::1]:80\r\n", Ok(())),
            ("Host:\r\n", Ok(())),
            ("", Err(Anomaly::MissingHost)),
            ("Host: a\r\nhost: a\r\n", Err(Anomaly::MultipleHosts)),
            ("Host: a b\r\n", Err(Anomaly::InvalidHost)),
            ("Host: user@a\r\n", Err(Anomaly::InvalidHost)),
            ("Host: a/b\r\n", Err(Anomaly::InvalidHost)),
        ] {
            assert_eq!(with(headers).check_host(), expected, "{headers:?}");
        }
        assert_eq!(parsed("GET / HTTP/1.0\r\n\r\n").check_host(), Ok(()));
    }

    #[test]
    fn reuse_leaves_nothing_behind() {
        let mut head = with("A: 1\r\nContent-Length: 3\r\n");
        assert_eq!(
            head.parse(b"GET", &HeadLimits::default()),
            Ok(Parsed::Partial)
        );
        assert!(head.method().is_empty() && head.target().is_empty() && head.headers.is_empty());
        let next = b"PUT /x HTTP/1.0\r\n\r\n";
        head.clear();
        assert_eq!(
            head.parse(next, &HeadLimits::default()),
            Ok(Parsed::Complete { len: next.len() })
        );
        assert_eq!(
            (head.method(), head.target(), head.version()),
            (&b"PUT"[..], &b"/x"[..], Version::Http10)
        );
        assert_eq!(head.framing(), Ok(Framing::None));
    }

    #[test]
    fn a_shorter_input_begins_anew() {
        let mut head = RequestHead::new();
        let limits = HeadLimits::default();
        assert_eq!(
            head.parse(b"POST /a/long/target HTTP/1.1\r\nHost: a", &limits),
            Ok(Parsed::Partial)
        );
        let next = b"GET / HTTP/1.1\r\n\r\n";
        assert_eq!(
            head.parse(next, &limits),
            Ok(Parsed::Complete { len: next.len() })
        );
        assert_eq!(head.method(), b"GET");
    }

    #[test]
    fn debug_hides_credentials() {
        for target in [
            "/a?key=s3cret",
            "http://me:s3cret@host/a",
            "me:s3cret@host:443",
        ] {
            let head = RequestHead::build(b"GET", target.as_bytes(), Version::Http11).unwrap();
            let shown = format!("{head:?}");
            assert!(!shown.contains("s3cret") && shown.contains('…'), "{shown}");
        }
        let head = RequestHead::build(b"GET", b"/@scope/pkg", Version::Http11).unwrap();
        assert!(format!("{head:?}").contains("/@scope/pkg"));
    }
}
