//! Chunked bodies (RFC 9112 section 7.1).

use std::ops::Deref;

use super::scan::{HeadScan, Kind};
use super::{Anomaly, HeadLimits};
use crate::headers::{HeaderList, Known};

/// The longest chunk line, extensions included and CRLF excluded, in bytes.
pub const MAX_CHUNK_LINE: usize = 4096;

/// Follows a chunked body and tells payload from framing, so that the caller can forward the raw bytes verbatim.
///
/// Holds no payload; what it keeps is bounded by the trailer limit. After an error every further call answers
/// the same error.
///
/// ```
/// use tollgate_wire::http1::ChunkedDecoder;
///
/// let wire = b"5;ext=1\r\nhello\r\n0\r\nChecksum: 1\r\n\r\nGET / HTTP/1.1";
/// let mut body = Vec::new();
/// let mut decoder = ChunkedDecoder::new(8192);
/// let progress = decoder.feed(wire, |piece| body.extend_from_slice(piece))?;
/// assert!(progress.done);
/// assert_eq!(body, b"hello");
/// assert_eq!(&wire[progress.consumed..], b"GET / HTTP/1.1");
/// assert_eq!(decoder.trailers().and_then(|list| list.get("checksum")), Some(&b"1"[..]));
/// # Ok::<(), tollgate_wire::http1::Anomaly>(())
/// ```
#[derive(Clone)]
pub struct ChunkedDecoder {
    state: State,
    /// In a chunk line: the size so far. In data: the bytes still to come.
    remaining: u64,
    /// Bytes of the current chunk line.
    line_len: usize,
    /// Whether the last chunk line had the extension `ieof`.
    ieof: Ieof,
    trailer_limit: usize,
    /// The trailer section as far as it has come.
    trailer_bytes: Vec<u8>,
    scan: HeadScan,
    trailers: Option<HeaderList>,
}

/// How far [`ChunkedDecoder::feed`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input that belong to the body. All of them, unless the body is done.
    pub consumed: usize,
    /// Whether the body, trailers included, is complete.
    pub done: bool,
}

impl ChunkedDecoder {
    /// A decoder for one body whose trailer section may take `trailer_limit` bytes, the empty line that ends it not
    /// counted. Allocates nothing until a trailer comes.
    pub fn new(trailer_limit: usize) -> Self {
        Self {
            state: State::Size { digits: 0 },
            remaining: 0,
            line_len: 0,
            ieof: Ieof::No,
            trailer_limit,
            trailer_bytes: Vec::new(),
            scan: HeadScan::default(),
            trailers: None,
        }
    }

    /// Consumes as much of `input` as belongs to the body, and calls `payload` for each piece of chunk data in it.
    /// Pieces are as long as the input and the chunks allow, never empty.
    ///
    /// Chunk extensions are tolerated up to [`MAX_CHUNK_LINE`], and so is white space between the size and the line
    /// end, which old servers send.
    ///
    /// # Errors
    /// The [`Anomaly`] of the framing or the trailers. Payload before it has been delivered; the message must not be
    /// completed.
    pub fn feed<'a>(
        &mut self,
        input: &'a [u8],
        mut payload: impl FnMut(&'a [u8]),
    ) -> Result<Progress, Anomaly> {
        match self.run(input, &mut payload) {
            Ok(rest) => Ok(Progress {
                consumed: input.len() - rest.len(),
                done: self.is_done(),
            }),
            Err(anomaly) => {
                self.state = State::Failed(anomaly);
                Err(anomaly)
            }
        }
    }

    /// The trailers, once the body is done; `None` if there were none.
    pub fn trailers(&self) -> Option<&HeaderList> {
        self.trailers.as_ref()
    }

    /// Whether the body, trailers included, is complete.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the line of the chunk that came last had the extension `ieof`, with which ICAP says that a preview is all
    /// there is (RFC 3507 section 4.5).
    pub fn has_ieof(&self) -> bool {
        matches!(self.ieof, Ieof::Word(IEOF_LEN) | Ieof::Found)
    }

    /// Answers what is left of `rest`: nothing, unless the body is done.
    fn run<'a>(
        &mut self,
        mut rest: &'a [u8],
        payload: &mut impl FnMut(&'a [u8]),
    ) -> Result<&'a [u8], Anomaly> {
        loop {
            match self.state {
                State::Done => return Ok(rest),
                State::Failed(anomaly) => return Err(anomaly),
                State::Data => {
                    let take = usize::try_from(self.remaining)
                        .map_or(rest.len(), |remaining| remaining.min(rest.len()));
                    let (data, after) = rest.split_at_checked(take).unwrap_or((rest, &[]));
                    if !data.is_empty() {
                        payload(data);
                    }
                    self.remaining = self.remaining.saturating_sub(take as u64);
                    rest = after;
                    if self.remaining > 0 {
                        return Ok(rest);
                    }
                    self.state = State::DataCr;
                }
                State::Trailers => {
                    if rest.is_empty() {
                        return Ok(rest);
                    }
                    rest = self.trailer_section(rest)?;
                }
                _ => {
                    let Some((&byte, after)) = rest.split_first() else {
                        return Ok(rest);
                    };
                    rest = after;
                    self.state = self.framing_byte(byte)?;
                }
            }
        }
    }

    fn framing_byte(&mut self, byte: u8) -> Result<State, Anomaly> {
        let in_line = matches!(
            self.state,
            State::Size { .. } | State::AfterSize | State::Extension
        );
        if in_line && byte != b'\r' {
            self.line_len += 1;
            if self.line_len > MAX_CHUNK_LINE {
                return Err(Anomaly::ChunkLineTooLong);
            }
        }
        match (self.state, byte) {
            (State::Size { digits: 0 }, b';' | b' ' | b'\t' | b'\r' | b'\n') => {
                Err(Anomaly::InvalidChunkSize)
            }
            (State::Size { .. } | State::AfterSize, b';') => {
                self.ieof = Ieof::Word(0);
                Ok(State::Extension)
            }
            (State::Size { .. } | State::AfterSize, b' ' | b'\t') => Ok(State::AfterSize),
            (State::Size { .. } | State::AfterSize | State::Extension, b'\r') => Ok(State::LineLf),
            (State::Size { .. } | State::AfterSize | State::Extension, b'\n') => {
                Err(Anomaly::BareLf)
            }
            (State::Size { digits }, _) => {
                self.ieof = Ieof::No;
                self.size_digit(digits, byte)
            }
            (State::Extension, 0) => Err(Anomaly::InvalidChunkExtension),
            (State::Extension, _) => {
                self.ieof = self.ieof.after(byte);
                Ok(State::Extension)
            }
            (State::LineLf, b'\n') => {
                self.line_len = 0;
                Ok(if self.remaining == 0 {
                    State::Trailers
                } else {
                    State::Data
                })
            }
            (State::LineLf, _) => Err(Anomaly::BareCr),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size { digits: 0 }),
            (State::DataCr | State::DataLf, _) => Err(Anomaly::InvalidChunkTerminator),
            (
                State::AfterSize | State::Data | State::Trailers | State::Done | State::Failed(_),
                _,
            ) => Err(Anomaly::InvalidChunkSize),
        }
    }

    fn size_digit(&mut self, digits: u8, byte: u8) -> Result<State, Anomaly> {
        let digit = char::from(byte)
            .to_digit(16)
            .ok_or(Anomaly::InvalidChunkSize)?;
        // Peers that hold sizes in an `i64` would see something else above its range.
        const LARGEST: u64 = i64::MAX as u64;
        if digits >= 16 || self.remaining > LARGEST >> 4 {
            return Err(Anomaly::InvalidChunkSize);
        }
        self.remaining = self.remaining << 4 | u64::from(digit);
        Ok(State::Size { digits: digits + 1 })
    }

    /// Collects lines until the empty one, and answers what follows.
    fn trailer_section<'a>(&mut self, input: &'a [u8]) -> Result<&'a [u8], Anomaly> {
        const EMPTY_LINE: &[u8] = b"\r\n";
        if self.trailer_bytes.is_empty()
            && let Some(rest) = input.strip_prefix(EMPTY_LINE)
        {
            self.state = State::Done;
            return Ok(rest);
        }
        let limits = HeadLimits {
            bytes: self.trailer_limit.saturating_add(EMPTY_LINE.len()),
            ..HeadLimits::default()
        };
        let room = limits.bytes.saturating_sub(self.trailer_bytes.len());
        let line = input
            .iter()
            .position(|&byte| byte == b'\n')
            .map_or(input.len(), |at| at + 1);
        let (taken, rest) = input
            .split_at_checked(line.min(room))
            .unwrap_or((input, &[]));
        self.trailer_bytes.extend_from_slice(taken);
        let end = self
            .scan
            .advance(Kind::Trailers, &self.trailer_bytes, &limits)
            .map_err(|anomaly| match anomaly {
                Anomaly::HeadTooLarge | Anomaly::TooManyHeaders => Anomaly::TrailersTooLarge,
                other => other,
            })?;
        let Some(end) = end else { return Ok(rest) };
        let mut trailers = HeaderList::new();
        self.scan.finish(&self.trailer_bytes, end, &mut trailers);
        if [Known::ContentLength, Known::TransferEncoding, Known::Host]
            .iter()
            .any(|&name| trailers.has_known(name))
        {
            return Err(Anomaly::ForbiddenTrailer);
        }
        self.trailers = Some(trailers).filter(|trailers| !trailers.is_empty());
        self.trailer_bytes = Vec::new();
        self.state = State::Done;
        Ok(rest)
    }
}

impl std::fmt::Debug for ChunkedDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkedDecoder")
            .field("state", &self.state)
            .field("remaining", &self.remaining)
            .field("trailers", &self.trailers)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// In the chunk size, with so many digits read.
    Size {
        digits: u8,
    },
    /// In white space behind the size.
    AfterSize,
    Extension,
    /// Behind the CR of a chunk line.
    LineLf,
    Data,
    /// At the CR behind chunk data.
    DataCr,
    /// At the LF behind chunk data.
    DataLf,
    Trailers,
    Done,
    Failed(Anomaly),
}

const IEOF_LEN: u8 = 4;

/// Looks for `ieof` among the extensions of a chunk line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ieof {
    /// This extension isn't it.
    No,
    /// So many of its letters were read.
    Word(u8),
    /// One before was it.
    Found,
}

impl Ieof {
    fn after(self, byte: u8) -> Self {
        match (self, byte.to_ascii_lowercase()) {
            (Self::Found | Self::Word(IEOF_LEN), b';') => Self::Found,
            (Self::Found, _) => Self::Found,
            (_, b';') => Self::Word(0),
            (Self::Word(0 | IEOF_LEN), b' ' | b'\t') => self,
            (Self::Word(0), b'i') => Self::Word(1),
            (Self::Word(1), b'e') => Self::Word(2),
            (Self::Word(2), b'o') => Self::Word(3),
            (Self::Word(3), b'f') => Self::Word(IEOF_LEN),
            _ => Self::No,
        }
    }
}

/// Appends `data` as one chunk. Empty data writes nothing, since an empty chunk would end the body.
pub fn encode_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    out.extend_from_slice(&chunk_header(data.len()));
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Appends the last chunk, the trailers if there are any, and the empty line: the end of a chunked body.
pub fn encode_last(out: &mut Vec<u8>, trailers: Option<&HeaderList>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        trailers.write_to(out);
    }
    out.extend_from_slice(b"\r\n");
}

/// The line before `len` bytes of chunk data, for a vectored write: [`ChunkHeader`], the data, CRLF. A length of zero
/// gives the last chunk.
///
/// ```
/// assert_eq!(&*tollgate_wire::http1::chunk_header(255), b"ff\r\n");
/// ```
pub fn chunk_header(len: usize) -> ChunkHeader {
    let mut bytes = [0; ChunkHeader::CAPACITY];
    let mut start = ChunkHeader::CAPACITY;
    let mut left = len;
    for (index, slot) in bytes.iter_mut().enumerate().rev() {
        *slot = match index {
            ChunkHeader::LF => b'\n',
            ChunkHeader::CR => b'\r',
            _ => {
                let digit = (left & 0xF) as u8;
                left >>= 4;
                if digit < 10 {
                    b'0' + digit
                } else {
                    b'a' + digit - 10
                }
            }
        };
        start = index;
        if left == 0 && index < ChunkHeader::CR {
            break;
        }
    }
    ChunkHeader { bytes, start }
}

/// A chunk size in hexadecimal with its CRLF; derefs to the bytes.
#[derive(Debug, Clone, Copy)]
pub struct ChunkHeader {
    bytes: [u8; Self::CAPACITY],
    start: usize,
}

impl ChunkHeader {
    /// Sixteen digits, CR and LF.
    const CAPACITY: usize = 18;
    const CR: usize = 16;
    const LF: usize = 17;
}

impl Deref for ChunkHeader {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds everything at once, and byte by byte; both must agree.
    fn decode(input: &[u8]) -> Result<(Vec<u8>, Progress, Option<HeaderList>), Anomaly> {
        let mut body = Vec::new();
        let mut decoder = ChunkedDecoder::new(64);
        let whole = decoder.feed(input, |piece| body.extend_from_slice(piece));

        let mut slow_body = Vec::new();
        let mut slow = ChunkedDecoder::new(64);
        let mut slow_result = Ok(Progress {
            consumed: 0,
            done: false,
        });
        let mut consumed = 0;
        for byte in input.chunks(1) {
            slow_result = slow.feed(byte, |piece| slow_body.extend_from_slice(piece));
            let Ok(progress) = slow_result else { break };
            consumed += progress.consumed;
        }
        let slow_result = slow_result.map(|progress| Progress {
            consumed,
            ..progress
        });
        assert_eq!(
            (whole, &body),
            (slow_result, &slow_body),
            "{}",
            input.escape_ascii()
        );
        assert_eq!(decoder.trailers(), slow.trailers());
        if let Err(anomaly) = whole {
            assert_eq!(
                decoder.feed(b"0\r\n\r\n", |_| ()),
                Err(anomaly),
                "an error lasts"
            );
        }
        whole.map(|progress| (body, progress, decoder.trailers().cloned()))
    }

    #[test]
    fn accepted() {
        for (wire, body) in [
            ("0\r\n\r\n", ""),
            ("000\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello"),
            ("00000A\r\n0123456789\r\n1\r\n!\r\n0\r\n\r\n", "0123456789!"),
            ("1;a;b=c;d=\"e;\x7f\"\r\nx\r\n0;last\r\n\r\n", "x"),
            ("1 \t ; a\r\nx\r\n0  \r\n\r\n", "x"),
            ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
        ] {
            let (got, progress, trailers) = decode(wire.as_bytes()).unwrap();
            assert_eq!(got, body.as_bytes(), "{wire:?}");
            assert_eq!(
                progress,
                Progress {
                    consumed: wire.len(),
                    done: true
                }
            );
            assert_eq!(trailers, None);
        }
    }

    #[test]
    fn refused() {
        let long_line = format!("1;{}\r\n", "x".repeat(MAX_CHUNK_LINE));
        let many_trailers = format!("0\r\n{}\r\n", "A: 1234567890\r\n".repeat(5));
        for (wire, anomaly) in [
            ("\r\n", Anomaly::InvalidChunkSize),
            (";x\r\n", Anomaly::InvalidChunkSize),
            (" 5\r\n", Anomaly::InvalidChunkSize),
            ("-5\r\n", Anomaly::InvalidChunkSize),
            ("+5\r\n", Anomaly::InvalidChunkSize),
            ("0x5\r\n", Anomaly::InvalidChunkSize),
            ("5 5\r\n", Anomaly::InvalidChunkSize),
            ("5_0\r\n", Anomaly::InvalidChunkSize),
            ("g\r\n", Anomaly::InvalidChunkSize),
            ("8000000000000000\r\n", Anomaly::InvalidChunkSize),
            ("FFFFFFFFFFFFFFFFF\r\n", Anomaly::InvalidChunkSize),
            ("00000000000000005\r\n", Anomaly::InvalidChunkSize),
            ("5\nhello", Anomaly::BareLf),
            ("5;a\nhello", Anomaly::BareLf),
            ("5;a\rb\r\n", Anomaly::BareCr),
            ("5\rhello", Anomaly::BareCr),
            ("5;\0\r\n", Anomaly::InvalidChunkExtension),
            ("5\r\nhello!\r\n", Anomaly::InvalidChunkTerminator),
            ("5\r\nhello\n0\r\n", Anomaly::InvalidChunkTerminator),
            ("5\r\nhello\r0\r\n", Anomaly::InvalidChunkTerminator),
            (&long_line, Anomaly::ChunkLineTooLong),
            (&many_trailers, Anomaly::TrailersTooLarge),
            ("0\r\nContent-Length: 5\r\n\r\n", Anomaly::ForbiddenTrailer),
            (
                "0\r\nA: b\r\ntransfer-ENCODING: chunked\r\n\r\n",
                Anomaly::ForbiddenTrailer,
            ),
            ("0\r\nHost: a\r\n\r\n", Anomaly::ForbiddenTrailer),
            ("0\r\nA: b\n\r\n", Anomaly::BareLf),
            ("0\r\n\n", Anomaly::BareLf),
            ("0\r\nA: b\r\n c\r\n\r\n", Anomaly::ObsFold),
            ("0\r\n A: b\r\n\r\n", Anomaly::SpaceBeforeFirstHeader),
            ("0\r\nA : b\r\n\r\n", Anomaly::SpaceBeforeColon),
            ("0\r\nGET / HTTP/1.1\r\n\r\n", Anomaly::SpaceBeforeColon),
        ] {
            assert_eq!(
                decode(wire.as_bytes()).map(|_| ()),
                Err(anomaly),
                "{wire:?}"
            );
        }
    }

    #[test]
    fn trailers_are_kept_as_they_came() {
        let (body, progress, trailers) =
            decode(b"1\r\nx\r\n0\r\nGrpc-Status:0\r\nB:  \xE9 \r\n\r\nrest").unwrap();
        assert_eq!((body.as_slice(), progress.done), (&b"x"[..], true));
        let mut out = Vec::new();
        trailers.unwrap().write_to(&mut out);
        assert_eq!(out, b"Grpc-Status:0\r\nB:  \xE9 \r\n");
    }

    #[test]
    fn ieof_is_an_extension_of_the_last_chunk() {
        for (wire, expected) in [
            ("0; ieof\r\n\r\n", true),
            ("0;IEOF\r\n\r\n", true),
            ("0 ; ieof \t\r\n\r\n", true),
            ("0;a=b; ieof;c\r\n\r\n", true),
            ("2\r\nab\r\n0; ieof\r\n\r\n", true),
            ("0\r\n\r\n", false),
            ("2; ieof\r\nab\r\n0\r\n\r\n", false),
            ("0; ieofs\r\n\r\n", false),
            ("0; xieof\r\n\r\n", false),
            ("0; i eof\r\n\r\n", false),
            ("0; ieof x\r\n\r\n", false),
        ] {
            for piece in [1, 2, wire.len()] {
                let mut decoder = ChunkedDecoder::new(64);
                for part in wire.as_bytes().chunks(piece) {
                    decoder.feed(part, |_| ()).unwrap();
                }
                assert!(decoder.is_done());
                assert_eq!(decoder.has_ieof(), expected, "{wire:?}");
            }
        }
    }

    #[test]
    fn trailers_up_to_the_limit() {
        let wire = format!("0\r\nA: {}\r\n\r\n", "x".repeat(64 - 5));
        assert!(decode(wire.as_bytes()).unwrap().1.done);
        let wire = format!("0\r\nA: {}\r\n\r\n", "x".repeat(64 - 4));
        assert_eq!(
            decode(wire.as_bytes()).map(|_| ()),
            Err(Anomaly::TrailersTooLarge)
        );
    }

    #[test]
    fn no_more_than_the_limit_is_kept_of_trailers() {
        let mut decoder = ChunkedDecoder::new(64);
        let wire = [b"0\r\nA: ", &[b'x'; 10_000][..]].concat();
        assert_eq!(decoder.feed(&wire, |_| ()), Err(Anomaly::TrailersTooLarge));
        assert!(decoder.trailer_bytes.len() <= 64 + 2);
    }

    #[test]
    fn the_limit_of_a_chunk_line_is_exact_and_per_line() {
        let chunk = |len: usize| format!("1;{}\r\nx\r\n", "e".repeat(len - 2));
        let wire = chunk(MAX_CHUNK_LINE).repeat(3) + "0\r\n\r\n";
        assert_eq!(decode(wire.as_bytes()).unwrap().0, b"xxx");
        let wire = chunk(MAX_CHUNK_LINE + 1);
        assert_eq!(
            decode(wire.as_bytes()).map(|_| ()),
            Err(Anomaly::ChunkLineTooLong)
        );
    }

    #[test]
    fn headers_of_chunks() {
        for len in [0, 1, 9, 10, 15, 16, 255, 256, 4096, 65_535, usize::MAX] {
            assert_eq!(&*chunk_header(len), format!("{len:x}\r\n").as_bytes());
        }
    }

    #[test]
    fn encoded_bodies_decode() {
        let mut trailers = HeaderList::new();
        trailers.append(b"A", b"b").unwrap();
        let mut wire = Vec::new();
        encode_chunk(&mut wire, b"hello ");
        encode_chunk(&mut wire, b"");
        encode_chunk(&mut wire, b"world");
        encode_last(&mut wire, Some(&trailers));
        assert_eq!(wire, b"6\r\nhello \r\n5\r\nworld\r\n0\r\nA: b\r\n\r\n");
        let (body, progress, got) = decode(&wire).unwrap();
        assert_eq!(
            (body.as_slice(), progress.done, got),
            (&b"hello world"[..], true, Some(trailers))
        );
    }
}
