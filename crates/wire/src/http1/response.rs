//! Response heads.

use std::fmt;

use super::scan::{HeadScan, Kind};
use super::{Anomaly, Framing, HeadLimits, Parsed, Version, length};
use crate::headers::{HeaderList, InvalidHeader, is_field_value};

/// The head of a response: version, status, reason phrase and headers. Made for reuse as
/// [`RequestHead`](super::RequestHead) is.
///
/// ```
/// use tollgate_wire::http1::{Framing, HeadLimits, ResponseHead};
///
/// let mut head = ResponseHead::new();
/// head.parse(b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n", &HeadLimits::default())?;
/// assert_eq!((head.status(), head.reason()), (200, &b""[..]));
/// assert_eq!(head.framing(b"GET")?, Framing::Chunked);
/// assert_eq!(head.framing(b"HEAD")?, Framing::None);
/// # Ok::<(), tollgate_wire::http1::Anomaly>(())
/// ```
#[derive(Clone, Default)]
pub struct ResponseHead {
    /// The header lines.
    pub headers: HeaderList,
    /// The status line with its CRLF, as it came.
    start: Vec<u8>,
    status: u16,
    version: Version,
    scan: HeadScan,
}

/// `HTTP/1.1 200`; a space and the reason phrase may follow.
const STATUS_END: usize = 12;

impl ResponseHead {
    /// An empty head to parse into. Allocates nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Parses the head at the beginning of `input`, replacing what was here before. Works as
    /// [`RequestHead::parse`](super::RequestHead::parse) does, except that empty lines before the head are refused.
    /// The reason phrase may be empty, missing together with its space, or hold latin-1.
    ///
    /// # Errors
    /// The first [`Anomaly`] of the status line or the header lines, whatever pieces the input comes in.
    pub fn parse(&mut self, input: &[u8], limits: &HeadLimits) -> Result<Parsed, Anomaly> {
        self.headers.reset();
        self.start.clear();
        self.status = 0;
        let Some(len) = self.scan.advance(Kind::Response, input, limits)? else {
            return Ok(Parsed::Partial);
        };
        let (start, bytes) = self.scan.finish(input, len, &mut self.headers);
        self.start.extend_from_slice(bytes);
        self.status = u16::try_from(start.detail).map_err(|_| Anomaly::InvalidStatus)?;
        self.version = start.version;
        Ok(Parsed::Complete { len })
    }

    /// Forgets everything, including a head that was begun; for a new connection.
    pub fn clear(&mut self) {
        self.headers.reset();
        self.start.clear();
        self.status = 0;
        self.version = Version::default();
        self.scan.restart();
    }

    /// An HTTP/1.1 head that didn't come from the wire, without headers.
    ///
    /// # Errors
    /// [`InvalidHeader::Status`] or [`InvalidHeader::Reason`].
    pub fn build(status: u16, reason: &[u8]) -> Result<Self, InvalidHeader> {
        let mut head = Self::default();
        head.set_status(status, reason)?;
        Ok(head)
    }

    /// The status, 100 to 999. Zero before anything was parsed.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The reason phrase as sent; may be empty.
    pub fn reason(&self) -> &[u8] {
        let end = self.start.len().saturating_sub(2);
        self.start.get(STATUS_END + 1..end).unwrap_or_default()
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether this is a 1xx response other than 101: another response to the same request follows.
    pub fn is_interim(&self) -> bool {
        matches!(self.status, 100 | 102..=199)
    }

    /// Replaces status and reason phrase.
    ///
    /// # Errors
    /// [`InvalidHeader::Status`] outside 100..=999, [`InvalidHeader::Reason`] for CR, LF or NUL.
    pub fn set_status(&mut self, status: u16, reason: &[u8]) -> Result<(), InvalidHeader> {
        if !(100..=999).contains(&status) {
            return Err(InvalidHeader::Status);
        }
        if !is_field_value(reason) {
            return Err(InvalidHeader::Reason);
        }
        if (status, reason) == (self.status, self.reason()) {
            return Ok(());
        }
        self.status = status;
        self.start.clear();
        let digits = [status / 100, status / 10 % 10, status % 10].map(|digit| b'0' + digit as u8);
        for part in [
            self.version.as_str().as_bytes(),
            b" ",
            &digits,
            b" ",
            reason,
            b"\r\n",
        ] {
            self.start.extend_from_slice(part);
        }
        Ok(())
    }

    /// Where the body ends, which depends on the request's method (RFC 9112 section 6.3): responses to `HEAD`, 1xx, 204
    /// and 304 have none whatever their headers say, and a 2xx to `CONNECT` begins a tunnel.
    ///
    /// # Errors
    /// The anomalies of `Transfer-Encoding` and `Content-Length`; the connection to the origin can't be used further.
    pub fn framing(&self, request_method: &[u8]) -> Result<Framing, Anomaly> {
        if request_method == b"HEAD" || matches!(self.status, 100..=199 | 204 | 304) {
            return Ok(Framing::None);
        }
        if request_method == b"CONNECT" && (200..=299).contains(&self.status) {
            return Ok(Framing::None);
        }
        Ok(length::declared(&self.headers, self.version)?.unwrap_or(Framing::UntilClose))
    }

    /// Whether the origin keeps the connection after this exchange (RFC 9112 section 9.3). A body that lasts
    /// [until close](Framing::UntilClose) ends it in any case.
    pub fn keep_alive(&self) -> bool {
        length::keep_alive(&self.headers, self.version)
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

    /// The original bytes including the empty line, while neither status line nor headers were edited.
    pub fn as_raw(&self) -> Option<&[u8]> {
        let (start, _) = self.headers.original_block()?;
        if start == self.start {
            self.headers.original_bytes()
        } else {
            None
        }
    }
}

impl fmt::Debug for ResponseHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseHead")
            .field("version", &self.version)
            .field("status", &self.status)
            .field("reason", &format_args!("{}", self.reason().escape_ascii()))
            .field("headers", &self.headers)
            .finish()
    }
}

/// Equal in start line and headers.
impl PartialEq for ResponseHead {
    fn eq(&self, other: &Self) -> bool {
        self.start == other.start && self.headers == other.headers
    }
}

impl Eq for ResponseHead {}

/// The reason phrase of a status code, which HTTP/2 and HTTP/3 leave out (RFC 9110 section 15, and
/// the registry); empty for a code that has none.
///
/// ```
/// use tollgate_wire::http1::standard_reason;
///
/// assert_eq!((standard_reason(404), standard_reason(299)), ("Not Found", ""));
/// ```
pub fn standard_reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(input: &[u8]) -> ResponseHead {
        let mut head = ResponseHead::new();
        assert_eq!(
            head.parse(input, &HeadLimits::default()),
            Ok(Parsed::Complete { len: input.len() })
        );
        assert_eq!(head.as_raw(), Some(input));
        head
    }

    #[test]
    fn reasons() {
        for (line, reason) in [
            (&b"HTTP/1.1 200 OK"[..], &b"OK"[..]),
            (b"HTTP/1.1 200 ", b""),
            (b"HTTP/1.1 200", b""),
            (b"HTTP/1.1 200  two  spaces ", b" two  spaces "),
            (b"HTTP/1.0 200 d\xE9j\xE0 vu\t!", b"d\xE9j\xE0 vu\t!"),
        ] {
            let head = parsed(&[line, b"\r\n\r\n"].concat());
            assert_eq!(
                (head.status(), head.reason()),
                (200, reason),
                "{}",
                line.escape_ascii()
            );
        }
    }

    #[test]
    fn set_status_rewrites_only_the_line() {
        let mut head = parsed(b"HTTP/1.0 200\r\nA:b\r\n\r\n");
        head.set_status(200, b"").unwrap();
        assert!(!head.is_edited());
        head.set_status(404, b"Not Found").unwrap();
        let mut out = Vec::new();
        head.write_to(&mut out);
        assert_eq!(out, b"HTTP/1.0 404 Not Found\r\nA:b\r\n\r\n");
        assert_eq!(head.set_status(99, b""), Err(InvalidHeader::Status));
        assert_eq!(head.set_status(1000, b""), Err(InvalidHeader::Status));
        assert_eq!(head.set_status(200, b"a\r\nb"), Err(InvalidHeader::Reason));
    }

    #[test]
    fn framing_by_method_and_status() {
        use Framing::{Chunked, Length, None, UntilClose};
        for (line, headers, method, expected) in [
            ("200", "", "GET", UntilClose),
            ("200", "Content-Length: 0\r\n", "GET", Length(0)),
            ("200", "Content-Length: 5\r\n", "HEAD", None),
            ("200", "Content-Length: 5\r\n", "head", Length(5)),
            ("200", "Transfer-Encoding: Chunked\r\n", "GET", Chunked),
            (
                "200",
                "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
                "HEAD",
                None,
            ),
            ("200", "", "CONNECT", None),
            ("299", "Content-Length: 5\r\n", "CONNECT", None),
            ("407", "Content-Length: 5\r\n", "CONNECT", Length(5)),
            ("101", "Content-Length: 5\r\n", "GET", None),
            ("103", "", "GET", None),
            ("204", "Content-Length: 5\r\n", "GET", None),
            ("304", "Content-Length: 5\r\n", "GET", None),
            ("205", "", "GET", UntilClose),
        ] {
            let head = parsed(format!("HTTP/1.1 {line} x\r\n{headers}\r\n").as_bytes());
            assert_eq!(
                head.framing(method.as_bytes()),
                Ok(expected),
                "{line} {headers:?} {method}"
            );
        }
    }

    #[test]
    fn interim() {
        for (status, interim) in [("100", true), ("103", true), ("101", false), ("200", false)] {
            assert_eq!(
                parsed(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).is_interim(),
                interim
            );
        }
    }

    #[test]
    fn built() {
        let mut head = ResponseHead::build(502, b"Bad Gateway").unwrap();
        head.headers.append(b"Content-Length", b"0").unwrap();
        let mut out = Vec::new();
        head.write_to(&mut out);
        assert_eq!(
            out,
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
        );
        assert!(head.is_edited());
    }
}
