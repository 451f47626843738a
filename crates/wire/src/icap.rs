//! ICAP/1.0 (RFC 3507), both sides: how a proxy shows HTTP messages to a service that may change them.
//!
//! A request is an ICAP head, then the heads of the HTTP messages it is about, then a chunked body. The head's
//! `Encapsulated` says where each part begins:
//!
//! | part | read by | written by |
//! |---|---|---|
//! | ICAP head | [`RequestHead::parse`], [`ResponseHead::parse`] | `write_to` |
//! | which parts follow | [`Encapsulated::parse`] | its `Display` |
//! | HTTP heads | [`HttpHeads::parse`] | [`HttpHeads::write_to`] |
//! | body, and where its preview ends | [`BodyReader`] | [`encode_chunk`](crate::http1::encode_chunk), [`LAST`], [`LAST_OF_ALL`] |
//!
//! Heads of requests are read as strictly as those of HTTP. Answers may have folded lines, because `X-Violations-Found`
//! is one in the wild.
//!
//! ```
//! use tollgate_wire::http1::{HeadLimits, Parsed};
//! use tollgate_wire::icap::{BodyReader, BodyState, HttpHeads, RequestHead, Shape};
//!
//! let input = b"REQMOD icap://localhost/reqmod ICAP/1.0\r\nHost: localhost\r\nPreview: 4\r\nAllow: 204\r\n\
//!     Encapsulated: req-hdr=0, req-body=38\r\n\r\n\
//!     POST / HTTP/1.1\r\nHost: example.com\r\n\r\n4\r\nabcd\r\n0; ieof\r\n\r\n";
//! let limits = HeadLimits::default();
//! let mut head = RequestHead::new();
//! let Parsed::Complete { len } = head.parse(input, &limits)? else { panic!("read on") };
//! assert_eq!((head.method(), head.service()), (&b"REQMOD"[..], Some("reqmod")));
//! let shape = Shape::of(&head)?;
//! assert!(shape.allow_204);
//!
//! let (heads, body) = input[len..].split_at(shape.encapsulated.heads_len());
//! let heads = HttpHeads::parse(heads, &shape.encapsulated, &limits)?;
//! assert_eq!(heads.request.unwrap().method(), b"POST");
//! let mut reader = BodyReader::new(shape.preview);
//! let progress = reader.feed(body, |piece| assert_eq!(piece, b"abcd"))?;
//! assert_eq!(progress.state, BodyState::End);
//! # Ok::<(), tollgate_wire::icap::IcapError>(())
//! ```

use std::fmt;

use crate::headers::{HeaderList, InvalidHeader, elements, is_field_value, is_token};
use crate::http1::scan::{HeadScan, Kind};
use crate::http1::{self, Anomaly, ChunkedDecoder, HeadLimits, Parsed, standard_reason};

/// The largest preview that anybody may announce.
pub const MAX_PREVIEW: u64 = 1 << 20;

/// The end of a body, and of a preview that has more behind it.
pub const LAST: &[u8] = b"0\r\n\r\n";

/// The end of a preview that is all there is.
pub const LAST_OF_ALL: &[u8] = b"0; ieof\r\n\r\n";

/// The answer to a preview that asks for the rest.
pub const CONTINUE: &[u8] = b"ICAP/1.0 100 Continue\r\n\r\n";

/// What trailers of a body may take.
const MAX_TRAILERS: usize = 16 << 10;
/// The encapsulated heads, together.
const MAX_HEADS: usize = 1 << 20;
const VERSION: &[u8] = b"ICAP/1.0";

/// Something in an ICAP message that is invalid, or that two implementations could read differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum IcapError {
    /// The first line isn't `METHOD SP URI SP ICAP/1.0`, or `ICAP/1.0 SP status`.
    #[error("the first line is not one of ICAP")]
    StartLine,
    /// Another version of ICAP, or HTTP.
    #[error("the version is not ICAP/1.0")]
    Version,
    /// A head, or a part of the framing, is wrong.
    #[error("{0}")]
    Http(#[from] Anomaly),
    /// `Encapsulated` is missing where it must be, or there more than once.
    #[error("the Encapsulated header is missing, or there more than once")]
    EncapsulatedMissing,
    /// `Encapsulated` isn't a list of parts in their order with growing offsets from 0 on, a body last.
    #[error("the Encapsulated header is invalid")]
    EncapsulatedInvalid,
    /// The parts aren't those that the method goes with.
    #[error("the encapsulated parts don't fit the method")]
    PartsDontFit,
    /// An encapsulated head doesn't end where `Encapsulated` says.
    #[error("an encapsulated head has another length than Encapsulated says")]
    HeadLength,
    /// The encapsulated heads are larger than 1 MiB.
    #[error("the encapsulated heads are too large")]
    HeadsTooLarge,
    /// `Preview` isn't a number up to [`MAX_PREVIEW`], or is there more than once.
    #[error("the Preview header is invalid")]
    Preview,
    /// A preview is longer than was announced.
    #[error("the preview is longer than announced")]
    PreviewTooLong,
}

impl IcapError {
    /// The status of the answer to a request that has it.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Version => 505,
            _ => 400,
        }
    }
}

/// The head of an ICAP request.
#[derive(Clone, Default)]
pub struct RequestHead {
    /// The header lines.
    pub headers: HeaderList,
    method: Vec<u8>,
    uri: String,
    /// Length of the start line with its CRLF, once it was read.
    start: usize,
    scan: HeadScan,
}

impl RequestHead {
    /// An empty head to parse into.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A head without headers.
    ///
    /// # Errors
    /// [`InvalidHeader::Method`] or [`InvalidHeader::Target`].
    pub fn build(method: &str, uri: &str) -> Result<Self, InvalidHeader> {
        if !is_token(method.as_bytes()) {
            return Err(InvalidHeader::Method);
        }
        if !is_uri(uri.as_bytes()) {
            return Err(InvalidHeader::Target);
        }
        Ok(Self {
            method: method.into(),
            uri: uri.to_owned(),
            ..Self::default()
        })
    }

    /// Parses the head at the beginning of `input`. On [`Parsed::Partial`] call again with the same bytes and more behind
    /// them.
    ///
    /// # Errors
    /// [`IcapError::StartLine`], [`IcapError::Version`], [`IcapError::Http`] with the first anomaly of the lines.
    pub fn parse(&mut self, input: &[u8], limits: &HeadLimits) -> Result<Parsed, IcapError> {
        self.headers.reset();
        if self.start == 0 || input.len() < self.start {
            self.start = 0;
            self.scan.restart();
            let Some(line) = start_line(input, limits)? else {
                return Ok(Parsed::Partial);
            };
            let mut words = line.split(|&byte| byte == b' ');
            let (Some(method), Some(uri), Some(version), None) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                return Err(IcapError::StartLine);
            };
            check_version(version)?;
            if !is_token(method) || !is_uri(uri) {
                return Err(IcapError::StartLine);
            }
            self.method = method.to_vec();
            self.uri = String::from_utf8_lossy(uri).into_owned();
            self.start = line.len() + 2;
        }
        let fields = input.get(self.start..).unwrap_or_default();
        let parsed = field_lines(
            &mut self.scan,
            &mut self.headers,
            fields,
            self.start,
            limits,
        );
        if !matches!(parsed, Ok(Parsed::Partial)) {
            self.start = 0;
        }
        parsed
    }

    /// The method as sent.
    #[must_use]
    pub fn method(&self) -> &[u8] {
        &self.method
    }

    /// The URI as sent: `icap://host/service`, or a path.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The path of the URI without its slashes and query: the service. `None` for a URI of another scheme.
    #[must_use]
    pub fn service(&self) -> Option<&str> {
        let path = match self.uri.split_once("://") {
            Some((scheme, rest)) => {
                let known = ["icap", "icaps"]
                    .iter()
                    .any(|name| scheme.eq_ignore_ascii_case(name));
                if !known {
                    return None;
                }
                rest.split_once('/').map_or("", |(_, path)| path)
            }
            None => self.uri.strip_prefix('/')?,
        };
        Some(path.split('?').next().unwrap_or_default().trim_matches('/'))
    }

    /// Whether the client wants the connection kept.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        !self.headers.has_token("connection", "close")
    }

    /// Appends the head to `out`, including the empty line.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        for part in [
            &self.method[..],
            b" ",
            self.uri.as_bytes(),
            b" ",
            VERSION,
            b"\r\n",
        ] {
            out.extend_from_slice(part);
        }
        self.headers.write_to(out);
        out.extend_from_slice(b"\r\n");
    }
}

/// Shows no URI: services may have a key in theirs.
impl fmt::Debug for RequestHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", &format_args!("{}", self.method.escape_ascii()))
            .field("service", &self.service())
            .field("headers", &self.headers)
            .finish()
    }
}

/// The head of an ICAP answer.
#[derive(Clone, Default, Debug, PartialEq)]
pub struct ResponseHead {
    /// The header lines; folded ones as one.
    pub headers: HeaderList,
    /// Written as `X-Violations-Found`. What was parsed stands in the headers.
    pub violations: Vec<Violation>,
    status: u16,
}

/// What was found in a message, for `X-Violations-Found`, which antivirus services and their clients have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The file or place.
    pub file: String,
    /// The name of what was found.
    pub threat: String,
    /// 0: not fixed, 1: repaired, 2: blocked.
    pub resolution: u8,
}

impl ResponseHead {
    /// A head without headers. A status outside 100 to 999 becomes 500.
    #[must_use]
    pub fn new(status: u16) -> Self {
        Self {
            status: if (100..=999).contains(&status) {
                status
            } else {
                500
            },
            ..Self::default()
        }
    }

    /// Parses the head at the beginning of `input`. On [`Parsed::Partial`] call again with the same bytes and more behind
    /// them.
    ///
    /// # Errors
    /// As for [`RequestHead::parse`].
    pub fn parse(&mut self, input: &[u8], limits: &HeadLimits) -> Result<Parsed, IcapError> {
        const END: &[u8] = b"\r\n\r\n";
        *self = Self::default();
        let Some(line) = start_line(input, limits)? else {
            return Ok(Parsed::Partial);
        };
        let (version, rest) = line
            .split_at_checked(VERSION.len())
            .ok_or(IcapError::StartLine)?;
        check_version(version)?;
        let status = match rest {
            [b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => [a, b, c],
            [
                b' ',
                a @ b'1'..=b'9',
                b @ b'0'..=b'9',
                c @ b'0'..=b'9',
                b' ',
                ..,
            ] => [a, b, c],
            _ => return Err(IcapError::StartLine),
        };
        let view = input.get(..limits.bytes).unwrap_or(input);
        let Some(end) = view.windows(END.len()).position(|window| window == END) else {
            return if view.len() < input.len() || view.len() == limits.bytes {
                Err(Anomaly::HeadTooLarge.into())
            } else {
                Ok(Parsed::Partial)
            };
        };
        let len = end + END.len();
        let fields = unfold(view.get(line.len() + 2..len).unwrap_or_default());
        let mut scan = HeadScan::default();
        let parsed = field_lines(&mut scan, &mut self.headers, &fields, 0, limits)?;
        if parsed == Parsed::Partial {
            return Err(Anomaly::MissingColon.into());
        }
        self.status = status
            .iter()
            .fold(0, |sum, digit| sum * 10 + u16::from(**digit - b'0'));
        Ok(Parsed::Complete { len })
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether the server keeps the connection.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        !self.headers.has_token("connection", "close")
    }

    /// Appends the head to `out`, including the empty line.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let reason = match self.status {
            204 => "No Modifications Needed",
            404 => "ICAP Service Not Found",
            405 => "Method Not Allowed For Service",
            status => standard_reason(status),
        };
        let line = format!("ICAP/1.0 {} {reason}\r\n", self.status);
        out.extend_from_slice(line.as_bytes());
        self.headers.write_to(out);
        if !self.violations.is_empty() {
            let count = format!("X-Violations-Found: {}\r\n", self.violations.len());
            out.extend_from_slice(count.as_bytes());
            for violation in &self.violations {
                for text in [&violation.file, &violation.threat] {
                    let plain = text.bytes().map(|byte| match byte {
                        b' '..=b'~' => byte,
                        _ => b'?',
                    });
                    out.push(b'\t');
                    out.extend(plain);
                    out.extend_from_slice(b"\r\n");
                }
                let numbers = format!("\t0\r\n\t{}\r\n", violation.resolution);
                out.extend_from_slice(numbers.as_bytes());
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// A part that `Encapsulated` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// `req-hdr`: the head of an HTTP request.
    RequestHead,
    /// `res-hdr`: the head of an HTTP response.
    ResponseHead,
    /// `req-body`.
    RequestBody,
    /// `res-body`.
    ResponseBody,
    /// `opt-body`.
    OptionsBody,
    /// `null-body`: there is none.
    NoBody,
}

impl Part {
    const ALL: [Self; 6] = [
        Self::RequestHead,
        Self::ResponseHead,
        Self::RequestBody,
        Self::ResponseBody,
        Self::OptionsBody,
        Self::NoBody,
    ];

    /// As it stands in `Encapsulated`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequestHead => "req-hdr",
            Self::ResponseHead => "res-hdr",
            Self::RequestBody => "req-body",
            Self::ResponseBody => "res-body",
            Self::OptionsBody => "opt-body",
            Self::NoBody => "null-body",
        }
    }

    fn is_head(self) -> bool {
        matches!(self, Self::RequestHead | Self::ResponseHead)
    }
}

/// Where the parts of a message begin, in bytes after the ICAP head (RFC 3507 section 4.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encapsulated {
    /// Length of the request head.
    request: Option<usize>,
    /// Length of the response head.
    response: Option<usize>,
    /// What follows them.
    body: Part,
}

impl Encapsulated {
    /// Nothing at all: `null-body=0`.
    pub const NOTHING: Self = Self {
        request: None,
        response: None,
        body: Part::NoBody,
    };

    /// Parts of these lengths; `body` says what follows. A `body` that is a head counts as none.
    #[must_use]
    pub fn new(request: Option<usize>, response: Option<usize>, body: Part) -> Self {
        Self {
            request,
            response,
            body: if body.is_head() { Part::NoBody } else { body },
        }
    }

    /// Reads the header's value.
    ///
    /// # Errors
    /// [`IcapError::EncapsulatedInvalid`], [`IcapError::HeadsTooLarge`].
    pub fn parse(value: &[u8]) -> Result<Self, IcapError> {
        let mut found = Self::NOTHING;
        let mut open: Option<(Part, usize)> = None;
        for element in elements(value) {
            let mut words = element.splitn(2, |&byte| byte == b'=');
            let name = words.next().unwrap_or_default();
            let part = Part::ALL
                .into_iter()
                .find(|part| name.eq_ignore_ascii_case(part.as_str().as_bytes()))
                .ok_or(IcapError::EncapsulatedInvalid)?;
            let offset = words.next().unwrap_or_default();
            let offset = number(offset).ok_or(IcapError::EncapsulatedInvalid)?;
            let offset = usize::try_from(offset).map_err(|_| IcapError::HeadsTooLarge)?;
            if offset > MAX_HEADS {
                return Err(IcapError::HeadsTooLarge);
            }
            match open {
                None if offset == 0 => {}
                Some((before, begin)) if before.is_head() && before < part && begin < offset => {
                    let length = Some(offset - begin);
                    match before {
                        Part::RequestHead => found.request = length,
                        _ => found.response = length,
                    }
                }
                _ => return Err(IcapError::EncapsulatedInvalid),
            }
            open = Some((part, offset));
        }
        match open {
            Some((body, _)) if !body.is_head() => Ok(Self { body, ..found }),
            _ => Err(IcapError::EncapsulatedInvalid),
        }
    }

    /// Bytes that the heads take together.
    #[must_use]
    pub fn heads_len(&self) -> usize {
        let (request, response) = (self.request.unwrap_or(0), self.response.unwrap_or(0));
        request.saturating_add(response)
    }

    /// What follows the heads; [`Part::NoBody`] for nothing.
    #[must_use]
    pub fn body(&self) -> Part {
        self.body
    }

    /// Whether a chunked body follows the heads.
    #[must_use]
    pub fn has_body(&self) -> bool {
        self.body != Part::NoBody
    }

    /// Whether there is the head of a request, or of a response.
    #[must_use]
    pub fn has_head(&self, part: Part) -> bool {
        match part {
            Part::RequestHead => self.request.is_some(),
            Part::ResponseHead => self.response.is_some(),
            _ => false,
        }
    }
}

/// The header's value.
impl fmt::Display for Encapsulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut offset = 0;
        for (part, length) in [
            (Part::RequestHead, self.request),
            (Part::ResponseHead, self.response),
        ] {
            if let Some(length) = length {
                write!(f, "{}={offset}, ", part.as_str())?;
                offset += length;
            }
        }
        write!(f, "{}={offset}", self.body.as_str())
    }
}

/// What the head of a request says about the rest of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// The parts that follow.
    pub encapsulated: Encapsulated,
    /// The length of the preview; `None` without one, and where there is no body.
    pub preview: Option<u64>,
    /// Whether 204 may be the answer to the whole message, not to its preview only.
    pub allow_204: bool,
}

impl Shape {
    /// Reads `Encapsulated`, `Preview` and `Allow`. REQMOD must bring the head of a request, RESPMOD that of a response;
    /// other methods need no `Encapsulated`.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn of(head: &RequestHead) -> Result<Self, IcapError> {
        let mut values = head.headers.get_all("encapsulated");
        let encapsulated = match (values.next(), values.next()) {
            (Some(value), None) => Encapsulated::parse(value)?,
            (None, _) if !matches!(head.method(), b"REQMOD" | b"RESPMOD") => Encapsulated::NOTHING,
            _ => return Err(IcapError::EncapsulatedMissing),
        };
        let fits = match head.method() {
            b"REQMOD" => {
                encapsulated.request.is_some()
                    && encapsulated.response.is_none()
                    && matches!(encapsulated.body, Part::RequestBody | Part::NoBody)
            }
            b"RESPMOD" => {
                encapsulated.response.is_some()
                    && matches!(encapsulated.body, Part::ResponseBody | Part::NoBody)
            }
            _ => {
                encapsulated.heads_len() == 0
                    && matches!(encapsulated.body, Part::OptionsBody | Part::NoBody)
            }
        };
        if !fits {
            return Err(IcapError::PartsDontFit);
        }
        let has_preview = head.headers.contains("preview");
        let mut values = head.headers.get_all("preview");
        let preview = match (values.next(), values.next()) {
            (None, _) => None,
            (Some(value), None) => Some(
                number(value)
                    .filter(|&length| length <= MAX_PREVIEW)
                    .ok_or(IcapError::Preview)?,
            ),
            (Some(_), Some(_)) => return Err(IcapError::Preview),
        };
        Ok(Self {
            encapsulated,
            preview: preview.filter(|_| encapsulated.has_body()),
            allow_204: head.headers.has_token("allow", "204")
                || (has_preview && !encapsulated.has_body()),
        })
    }
}

/// The heads of the HTTP messages that an ICAP message is about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HttpHeads {
    /// The request.
    pub request: Option<http1::RequestHead>,
    /// The response.
    pub response: Option<http1::ResponseHead>,
}

impl HttpHeads {
    /// Reads them: `bytes` are the [`heads_len`](Encapsulated::heads_len) bytes behind the ICAP head.
    ///
    /// # Errors
    /// [`IcapError::HeadLength`], or [`IcapError::Http`] with what is wrong in a head.
    pub fn parse(
        bytes: &[u8],
        encapsulated: &Encapsulated,
        limits: &HeadLimits,
    ) -> Result<Self, IcapError> {
        let mut heads = Self::default();
        let mut rest = bytes;
        let mut next = |length: usize| {
            let (head, after) = rest.split_at_checked(length).ok_or(IcapError::HeadLength)?;
            rest = after;
            Ok::<_, IcapError>(head)
        };
        if let Some(length) = encapsulated.request {
            let bytes = next(length)?;
            let mut head = http1::RequestHead::new();
            // An empty line before it isn't part of the head.
            complete(head.parse(bytes, limits)?, length)?;
            if head.as_raw().map(<[u8]>::len) != Some(length) {
                return Err(IcapError::HeadLength);
            }
            heads.request = Some(head);
        }
        if let Some(length) = encapsulated.response {
            let bytes = next(length)?;
            let mut head = http1::ResponseHead::new();
            complete(head.parse(bytes, limits)?, length)?;
            heads.response = Some(head);
        }
        match rest {
            [] => Ok(heads),
            _ => Err(IcapError::HeadLength),
        }
    }

    /// Appends the heads to `out`, and says where they stand there; `body` is what follows.
    pub fn write_to(&self, body: Part, out: &mut Vec<u8>) -> Encapsulated {
        let begin = out.len();
        let request = self.request.as_ref().map(|head| {
            head.write_to(out);
            out.len() - begin
        });
        let begin = out.len();
        let response = self.response.as_ref().map(|head| {
            head.write_to(out);
            out.len() - begin
        });
        Encapsulated::new(request, response, body)
    }
}

/// Follows the body of an ICAP message, and the end of its preview.
#[derive(Debug, Clone)]
pub struct BodyReader {
    decoder: ChunkedDecoder,
    /// What the preview may still bring; `None` behind it.
    preview: Option<u64>,
    state: BodyState,
}

/// Where a [`BodyReader`] stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyState {
    /// More bytes are needed.
    More,
    /// The preview has ended, and there is more of the body: it comes after `100 Continue`. Call
    /// [`BodyReader::go_on`] when it was asked for.
    Preview,
    /// The body has ended.
    End,
}

/// How far [`BodyReader::feed`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyProgress {
    /// Bytes of the input that belong to the body.
    pub consumed: usize,
    /// Where it stands now.
    pub state: BodyState,
}

impl BodyReader {
    /// A reader for one body, of which `preview` bytes come first.
    #[must_use]
    pub fn new(preview: Option<u64>) -> Self {
        Self {
            decoder: ChunkedDecoder::new(MAX_TRAILERS),
            preview,
            state: BodyState::More,
        }
    }

    /// Consumes as much of `input` as belongs to the preview or the body, and gives `payload` each piece of it.
    ///
    /// # Errors
    /// [`IcapError::Http`] for the framing, [`IcapError::PreviewTooLong`].
    pub fn feed<'a>(
        &mut self,
        input: &'a [u8],
        mut payload: impl FnMut(&'a [u8]),
    ) -> Result<BodyProgress, IcapError> {
        if self.state != BodyState::More {
            return Ok(BodyProgress {
                consumed: 0,
                state: self.state,
            });
        }
        let left = &mut self.preview;
        let mut fits = true;
        let progress = self.decoder.feed(input, |piece| {
            if let Some(left) = left {
                match left.checked_sub(piece.len() as u64) {
                    Some(less) => *left = less,
                    None => fits = false,
                }
            }
            if fits {
                payload(piece);
            }
        });
        if !fits {
            return Err(IcapError::PreviewTooLong);
        }
        let progress = progress?;
        if progress.done {
            self.state = match self.preview.take() {
                Some(_) if !self.decoder.has_ieof() => BodyState::Preview,
                _ => BodyState::End,
            };
        }
        Ok(BodyProgress {
            consumed: progress.consumed,
            state: self.state,
        })
    }

    /// The rest of the body was asked for.
    pub fn go_on(&mut self) {
        if self.state == BodyState::Preview {
            self.decoder = ChunkedDecoder::new(MAX_TRAILERS);
            self.state = BodyState::More;
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> BodyState {
        self.state
    }

    /// Trailers of the body, once it has ended.
    #[must_use]
    pub fn trailers(&self) -> Option<&HeaderList> {
        self.decoder.trailers()
    }
}

/// The first line without its CRLF; `None` until it is there.
fn start_line<'a>(input: &'a [u8], limits: &HeadLimits) -> Result<Option<&'a [u8]>, IcapError> {
    let view = input.get(..limits.bytes).unwrap_or(input);
    let Some(at) = view.iter().position(|&byte| byte < b' ' || byte == 0x7F) else {
        return match view.len() < limits.bytes {
            true => Ok(None),
            false => Err(Anomaly::HeadTooLarge.into()),
        };
    };
    let (line, end) = view.split_at_checked(at).unwrap_or((view, &[]));
    match end {
        [b'\r', b'\n', ..] => Ok(Some(line)),
        [b'\r'] if view.len() < limits.bytes => Ok(None),
        [b'\r'] => Err(Anomaly::HeadTooLarge.into()),
        [b'\r', ..] => Err(Anomaly::BareCr.into()),
        [b'\n', ..] => Err(Anomaly::BareLf.into()),
        _ => Err(IcapError::StartLine),
    }
}

/// Field lines up to the empty one. `before` bytes of the head stand in front of `fields`.
fn field_lines(
    scan: &mut HeadScan,
    headers: &mut HeaderList,
    fields: &[u8],
    before: usize,
    limits: &HeadLimits,
) -> Result<Parsed, IcapError> {
    let limits = HeadLimits {
        bytes: limits.bytes.saturating_sub(before),
        ..*limits
    };
    let Some(len) = scan.advance(Kind::Trailers, fields, &limits)? else {
        return Ok(Parsed::Partial);
    };
    scan.finish(fields, len, headers);
    Ok(Parsed::Complete { len: before + len })
}

/// Joins folded lines (RFC 9112 section 5.2).
fn unfold(fields: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(fields.len());
    let mut rest = fields;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'\r', [b'\n', b' ' | b'\t', ..]) if !out.is_empty() => {
                out.push(b' ');
                rest = after.get(2..).unwrap_or_default();
            }
            _ => out.push(byte),
        }
    }
    out
}

fn check_version(version: &[u8]) -> Result<(), IcapError> {
    match version {
        VERSION => Ok(()),
        [b'I', b'C', b'A', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => Err(IcapError::Version),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => Err(IcapError::Version),
        _ => Err(IcapError::StartLine),
    }
}

fn is_uri(uri: &[u8]) -> bool {
    !uri.is_empty() && is_field_value(uri) && uri.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

fn complete(parsed: Parsed, length: usize) -> Result<(), IcapError> {
    match parsed {
        Parsed::Complete { len } if len == length => Ok(()),
        _ => Err(IcapError::HeadLength),
    }
}

/// Digits only.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 18 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = text.iter().map(|digit| u64::from(digit - b'0'));
    Some(digits.fold(0, |sum, digit| sum * 10 + digit))
}
