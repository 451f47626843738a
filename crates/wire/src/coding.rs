//! `Content-Encoding` as incremental decoders with a bound on what comes out.
//!
//! [`Decoder`] undoes a whole `Content-Encoding` value (RFC 9110 §8.4), piece by piece: whatever
//! can be decoded from the bytes so far is handed out at once, so that an event inside a compressed
//! stream is seen as soon as it has arrived. [`Encoder`] applies one coding again after an edit.
//!
//! ```
//! use tollgate_wire::coding::{Coding, Decoder, Encoder, OutputLimit};
//!
//! let mut packed = Vec::new();
//! let mut encoder = Encoder::new(Coding::Gzip).unwrap();
//! encoder.feed(b"hello", &mut packed).unwrap();
//! encoder.finish(&mut packed).unwrap();
//!
//! let mut decoder = Decoder::new([&b"gzip"[..]].into_iter(), OutputLimit::default())?.unwrap();
//! let mut plain = Vec::new();
//! decoder.feed(&packed, &mut plain)?;
//! decoder.finish(&mut plain)?;
//! assert_eq!(plain, b"hello");
//! # Ok::<(), tollgate_wire::coding::CodingError>(())
//! ```

use std::fmt;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Operation};

/// The most codings one message may be wrapped in; more is [`CodingError::TooManyCodings`].
pub const MAX_CODINGS: usize = 4;

/// A content coding (RFC 9110 §8.4.1, RFC 7932, RFC 8878).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Coding {
    /// `gzip` or its alias `x-gzip` (RFC 1952).
    Gzip,
    /// `deflate`: DEFLATE in the zlib wrapping (RFC 1950), or bare (RFC 1951) as some servers send
    /// it.
    Deflate,
    /// `br` (RFC 7932).
    Br,
    /// `zstd` (RFC 8878) with a window of at most 8 MiB (RFC 9659).
    Zstd,
    /// `identity`: nothing to undo.
    Identity,
}

impl Coding {
    /// Reads one coding name, ASCII case-insensitive.
    ///
    /// # Errors
    /// [`CodingError::Unknown`] for any name that is not listed on [`Coding`].
    pub fn parse(name: &[u8]) -> Result<Self, CodingError> {
        const NAMES: [(&str, Coding); 6] = [
            ("gzip", Coding::Gzip),
            ("x-gzip", Coding::Gzip),
            ("deflate", Coding::Deflate),
            ("br", Coding::Br),
            ("zstd", Coding::Zstd),
            ("identity", Coding::Identity),
        ];
        NAMES
            .iter()
            .find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()))
            .map(|&(_, coding)| coding)
            .ok_or_else(|| CodingError::unknown(name))
    }

    /// The registered name, as it stands in a header.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Deflate => "deflate",
            Coding::Br => "br",
            Coding::Zstd => "zstd",
            Coding::Identity => "identity",
        }
    }
}

impl fmt::Display for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a body could not be decoded. Every error of a [`Decoder`] is sticky.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodingError {
    /// The header names a coding that is not known here (the name is cut to 32 bytes and made
    /// printable).
    #[error("unknown content coding {0:?}")]
    Unknown(String),
    /// The header stacks more than [`MAX_CODINGS`] codings.
    #[error("more than {MAX_CODINGS} content codings on one message")]
    TooManyCodings,
    /// The bytes are not a valid stream of this coding; a checksum that doesn't match counts.
    #[error("invalid {coding} data: {reason}")]
    Corrupt {
        /// The coding that refused.
        coding: Coding,
        /// What the decoder had to say.
        reason: String,
    },
    /// The body ended before the coding's own end mark.
    #[error("{coding} data ends too early")]
    Truncated {
        /// The coding that was still waiting for bytes.
        coding: Coding,
    },
    /// More came out than the [`OutputLimit`] allows.
    #[error("decoded body exceeds its limit")]
    LimitExceeded,
    /// An [`Encoder`] failed inside its library, or was used after its end.
    #[error("cannot encode {coding}: {reason}")]
    Encode {
        /// The coding asked for.
        coding: Coding,
        /// What the encoder had to say.
        reason: String,
    },
}

impl CodingError {
    fn unknown(name: &[u8]) -> Self {
        let shown = name.iter().take(32).copied();
        CodingError::Unknown(
            shown
                .flat_map(std::ascii::escape_default)
                .map(char::from)
                .collect(),
        )
    }

    fn corrupt(coding: Coding, reason: impl Into<String>) -> Self {
        CodingError::Corrupt {
            coding,
            reason: reason.into(),
        }
    }
}

/// How much a [`Decoder`] may produce. The same numbers hold for each coding of a stack on its own,
/// so that no inner layer can burn time that the outer one doesn't show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputLimit {
    /// Bytes over the whole body.
    pub total: u64,
    /// Bytes that a single [`Decoder::feed`] may add.
    pub per_feed: usize,
}

impl Default for OutputLimit {
    /// 256 MiB a body, 32 MiB a feed.
    fn default() -> Self {
        OutputLimit {
            total: 256 << 20,
            per_feed: 32 << 20,
        }
    }
}

/// Undoes a `Content-Encoding`, outermost coding first.
///
/// Memory: 16 KiB of scratch for each coding, and the window of the format: 32 KiB for gzip and
/// deflate, 8 MiB for zstd, 16 MiB for brotli. All of it is released at the first error.
///
/// What common clients tolerate is tolerated: an empty body under any coding, several gzip members or
/// zstd frames in a row, anything at all after the end of a gzip, deflate or brotli stream, and
/// bare DEFLATE under the name `deflate`.
pub struct Decoder {
    slots: Vec<Slot>,
    limit: OutputLimit,
    total_out: u64,
    failed: Option<CodingError>,
}

impl Decoder {
    /// Makes the decoders for all `Content-Encoding` values of a message, in header order. `None`:
    /// nothing to undo.
    ///
    /// # Errors
    /// [`CodingError::Unknown`] for a coding not known here, [`CodingError::TooManyCodings`] beyond
    /// [`MAX_CODINGS`].
    pub fn new<'a>(
        content_encoding_values: impl Iterator<Item = &'a [u8]>,
        limit: OutputLimit,
    ) -> Result<Option<Self>, CodingError> {
        let mut codings = Vec::new();
        for name in content_encoding_values
            .flat_map(|value| value.split(|&b| b == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|name| !name.is_empty())
        {
            let coding = Coding::parse(name)?;
            if coding == Coding::Identity {
                continue;
            }
            if codings.len() == MAX_CODINGS {
                return Err(CodingError::TooManyCodings);
            }
            codings.push(coding);
        }
        if codings.is_empty() {
            return Ok(None);
        }
        // The header lists codings in the order they were applied (RFC 9110 §8.4); they come off in
        // reverse.
        let slots = codings
            .into_iter()
            .rev()
            .filter_map(|coding| Slot::new(coding).transpose());
        Ok(Some(Decoder {
            slots: slots.collect::<Result<_, _>>()?,
            limit,
            total_out: 0,
            failed: None,
        }))
    }

    /// Decodes `input` and appends everything that the bytes so far allow to `out`.
    ///
    /// # Errors
    /// [`CodingError::Corrupt`], or [`CodingError::LimitExceeded`] when more than the limit would
    /// come out. `out` then holds what could be decoded before, never more than
    /// [`OutputLimit::per_feed`] bytes of this call. Later calls return the same error.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), CodingError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        for slot in &mut self.slots {
            slot.this_feed = 0;
        }
        let mut sink = Sink {
            out,
            left: self.limit.left(self.total_out, 0),
            added: 0,
        };
        let result = pump(&mut self.slots, input, &self.limit, &mut sink);
        self.total_out = self.total_out.saturating_add(sink.added);
        result.map_err(|error| self.fail(error))
    }

    /// Says that the body has ended. Nothing is left to append to `out`, because
    /// [`feed`](Self::feed) never holds back decoded bytes.
    ///
    /// # Errors
    /// [`CodingError::Truncated`] when a coding still waits for bytes. A body without a single byte
    /// is complete.
    pub fn finish(&mut self, _out: &mut Vec<u8>) -> Result<(), CodingError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self
            .slots
            .iter()
            .find(|slot| slot.fed && !slot.stage.is_complete())
        {
            Some(slot) => Err(self.fail(CodingError::Truncated {
                coding: slot.coding,
            })),
            None => Ok(()),
        }
    }

    /// How many decoded bytes have been handed out.
    #[must_use]
    pub fn total_out(&self) -> u64 {
        self.total_out
    }

    fn fail(&mut self, error: CodingError) -> CodingError {
        self.slots = Vec::new();
        self.failed = Some(error.clone());
        error
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder")
            .field(
                "codings",
                &self
                    .slots
                    .iter()
                    .map(|slot| slot.coding)
                    .collect::<Vec<_>>(),
            )
            .field("total_out", &self.total_out)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

/// Applies one coding. Each [`feed`](Self::feed) is flushed, so that the reader can decode
/// everything that was fed.
///
/// There is no brotli encoder: re-encode such a body as gzip, or send it as `identity`.
pub struct Encoder {
    coding: Coding,
    kind: EncoderKind,
}

impl Encoder {
    /// An encoder for `coding`, at the coding's default level; `None` for [`Coding::Br`].
    #[must_use]
    pub fn new(coding: Coding) -> Option<Self> {
        let level = flate2::Compression::default();
        let kind = match coding {
            Coding::Gzip => EncoderKind::Gzip(flate2::write::GzEncoder::new(Vec::new(), level)),
            Coding::Deflate => {
                EncoderKind::Deflate(flate2::write::ZlibEncoder::new(Vec::new(), level))
            }
            // Level 3 has a window of 2 MiB, within the 8 MiB that RFC 9659 lets a reader insist
            // on.
            Coding::Zstd => {
                EncoderKind::Zstd(zstd::stream::write::Encoder::new(Vec::new(), 3).ok()?)
            }
            Coding::Identity => EncoderKind::Identity,
            Coding::Br => return None,
        };
        Some(Encoder { coding, kind })
    }

    /// Encodes `input` and appends the result to `out`, flushed to a byte boundary.
    ///
    /// # Errors
    /// [`CodingError::Encode`] when the library refuses.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), CodingError> {
        let result = match &mut self.kind {
            EncoderKind::Identity => {
                out.extend_from_slice(input);
                return Ok(());
            }
            EncoderKind::Gzip(e) => e
                .write_all(input)
                .and_then(|()| e.flush())
                .map(|()| out.append(e.get_mut())),
            EncoderKind::Deflate(e) => e
                .write_all(input)
                .and_then(|()| e.flush())
                .map(|()| out.append(e.get_mut())),
            EncoderKind::Zstd(e) => e
                .write_all(input)
                .and_then(|()| e.flush())
                .map(|()| out.append(e.get_mut())),
        };
        result.map_err(|error| encode_error(self.coding, &error))
    }

    /// Ends the stream and appends its end mark and checksum to `out`.
    ///
    /// # Errors
    /// [`CodingError::Encode`] when the library refuses.
    pub fn finish(self, out: &mut Vec<u8>) -> Result<(), CodingError> {
        let rest = match self.kind {
            EncoderKind::Identity => Ok(Vec::new()),
            EncoderKind::Gzip(e) => e.finish(),
            EncoderKind::Deflate(e) => e.finish(),
            EncoderKind::Zstd(e) => e.finish(),
        };
        out.append(&mut rest.map_err(|error| encode_error(self.coding, &error))?);
        Ok(())
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder")
            .field("coding", &self.coding)
            .finish_non_exhaustive()
    }
}

enum EncoderKind {
    Identity,
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Deflate(flate2::write::ZlibEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

fn encode_error(coding: Coding, error: &io::Error) -> CodingError {
    CodingError::Encode {
        coding,
        reason: error.to_string(),
    }
}

/// Bytes that one step of a coding may produce. Small enough to stay in the first-level cache
/// between two codings.
const SCRATCH: usize = 16 * 1024;

/// The largest zstd window that is accepted: 2^23 bytes (RFC 9659 §3).
const ZSTD_WINDOW_LOG: u32 = 23;

/// One coding of the stack, with its own accounts.
struct Slot {
    coding: Coding,
    stage: Stage,
    scratch: Box<[u8]>,
    fed: bool,
    total: u64,
    this_feed: usize,
}

impl Slot {
    /// `Ok(None)` for [`Coding::Identity`].
    fn new(coding: Coding) -> Result<Option<Self>, CodingError> {
        let stage = match coding {
            Coding::Gzip => Stage::Gzip(Gzip::Member(gzip_member())),
            Coding::Deflate => Stage::Deflate(Deflate::Unknown { first: None }),
            Coding::Br => Stage::Br(Br::new()),
            Coding::Zstd => Stage::Zstd(Zstd::new()?),
            Coding::Identity => return Ok(None),
        };
        Ok(Some(Slot {
            coding,
            stage,
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            fed: false,
            total: 0,
            this_feed: 0,
        }))
    }
}

/// Where the innermost coding's output goes. Takes what is left of the limit, then refuses.
struct Sink<'a> {
    out: &'a mut Vec<u8>,
    left: u64,
    added: u64,
}

impl Sink<'_> {
    fn push(&mut self, data: &[u8]) -> Result<(), CodingError> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let (fits, over) = data.split_at_checked(room).unwrap_or((data, &[]));
        self.out.extend_from_slice(fits);
        self.left = self.left.saturating_sub(fits.len() as u64);
        self.added = self.added.saturating_add(fits.len() as u64);
        if over.is_empty() {
            Ok(())
        } else {
            Err(CodingError::LimitExceeded)
        }
    }
}

impl OutputLimit {
    /// What may still come out after `total` bytes of the body, `this_feed` of them in the running
    /// feed.
    fn left(&self, total: u64, this_feed: usize) -> u64 {
        let per_feed = self.per_feed.saturating_sub(this_feed) as u64;
        self.total.saturating_sub(total).min(per_feed)
    }
}

/// Runs `input` through the codings in order, a scratch buffer at a time, into the sink.
fn pump(
    slots: &mut [Slot],
    mut input: &[u8],
    limit: &OutputLimit,
    sink: &mut Sink<'_>,
) -> Result<(), CodingError> {
    let Some((slot, inner)) = slots.split_first_mut() else {
        return sink.push(input);
    };
    if input.is_empty() {
        return Ok(());
    }
    slot.fed = true;
    loop {
        let step = slot.stage.step(input, &mut slot.scratch);
        input = input.get(step.read..).unwrap_or_default();
        let produced = slot.scratch.get(..step.written).unwrap_or_default();
        pump(inner, produced, limit, sink)?;
        // After the inner codings had their share, so that the sink is filled up to its limit
        // exactly.
        if step.written as u64 > limit.left(slot.total, slot.this_feed) {
            return Err(CodingError::LimitExceeded);
        }
        slot.total = slot.total.saturating_add(step.written as u64);
        slot.this_feed = slot.this_feed.saturating_add(step.written);
        if let Some(error) = step.error {
            return Err(error);
        }
        // A full scratch buffer means that the coding may have more to say without new input.
        let more = step.written == slot.scratch.len();
        if input.is_empty() && !more {
            return Ok(());
        }
        if step.read == 0 && step.written == 0 {
            return Err(CodingError::corrupt(slot.coding, "no progress"));
        }
    }
}

/// What one call of a coding did. Output that came before an error is kept.
struct Step {
    read: usize,
    written: usize,
    error: Option<CodingError>,
}

impl Step {
    fn ok(read: usize, written: usize) -> Self {
        Step {
            read,
            written,
            error: None,
        }
    }
}

enum Stage {
    Gzip(Gzip),
    Deflate(Deflate),
    Br(Br),
    Zstd(Zstd),
}

impl Stage {
    /// Decodes until `input` is used up or `output` is full.
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Step {
        match self {
            Stage::Gzip(stage) => stage.step(input, output),
            Stage::Deflate(stage) => stage.step(input, output),
            Stage::Br(stage) => stage.step(input, output),
            Stage::Zstd(stage) => stage.step(input, output),
        }
    }

    /// Whether the body may end here.
    fn is_complete(&self) -> bool {
        match self {
            Stage::Gzip(stage) => !matches!(stage, Gzip::Member(_)),
            Stage::Deflate(stage) => matches!(stage, Deflate::Done),
            Stage::Br(stage) => stage.done,
            Stage::Zstd(stage) => stage.between_frames,
        }
    }
}

/// A series of gzip members (RFC 1952 §2.2).
enum Gzip {
    /// Inside a member, header and trailer included.
    Member(Decompress),
    /// After a member: another one, or zero padding as `gzip` accepts it, or garbage. `magic`: the
    /// first of the two magic bytes has been seen.
    Between { magic: bool },
    /// After a member came something else: ignored to the end.
    Garbage,
}

fn gzip_member() -> Decompress {
    Decompress::new_gzip(15)
}

impl Gzip {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Step {
        match self {
            Gzip::Garbage => Step::ok(input.len(), 0),
            Gzip::Member(member) => {
                let (step, end) = inflate(member, Coding::Gzip, input, output);
                if end {
                    *self = Gzip::Between { magic: false };
                }
                step
            }
            Gzip::Between { magic: false } => {
                let padding = input.iter().take_while(|&&b| b == 0).count();
                match input.get(padding) {
                    None => Step::ok(padding, 0),
                    Some(0x1f) => {
                        *self = Gzip::Between { magic: true };
                        Step::ok(padding.saturating_add(1), 0)
                    }
                    Some(_) => {
                        *self = Gzip::Garbage;
                        Step::ok(input.len(), 0)
                    }
                }
            }
            Gzip::Between { magic: true } => match input.first() {
                None => Step::ok(0, 0),
                Some(0x8b) => {
                    let mut member = gzip_member();
                    let (head, _) = inflate(&mut member, Coding::Gzip, &[0x1f, 0x8b], output);
                    *self = Gzip::Member(member);
                    Step { read: 1, ..head }
                }
                Some(_) => {
                    *self = Gzip::Garbage;
                    Step::ok(input.len(), 0)
                }
            },
        }
    }
}

/// DEFLATE with or without the zlib wrapping: told apart by the first two bytes, as browsers do.
enum Deflate {
    Unknown { first: Option<u8> },
    Running(Decompress),
    Done,
}

impl Deflate {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Step {
        match self {
            Deflate::Unknown { first: None } => match input.first() {
                Some(&byte) => {
                    *self = Deflate::Unknown { first: Some(byte) };
                    Step::ok(1, 0)
                }
                None => Step::ok(0, 0),
            },
            Deflate::Unknown { first: Some(first) } => {
                let Some(&second) = input.first() else {
                    return Step::ok(0, 0);
                };
                let mut running = Decompress::new(is_zlib_header(*first, second));
                let (head, end) = inflate(&mut running, Coding::Deflate, &[*first, second], output);
                *self = if end {
                    Deflate::Done
                } else {
                    Deflate::Running(running)
                };
                Step { read: 1, ..head }
            }
            Deflate::Running(running) => {
                let (step, end) = inflate(running, Coding::Deflate, input, output);
                if end {
                    *self = Deflate::Done;
                }
                step
            }
            Deflate::Done => Step::ok(input.len(), 0),
        }
    }
}

/// RFC 1950 §2.2: method 8, a window of at most 32 KiB, and a check over both bytes.
fn is_zlib_header(cmf: u8, flg: u8) -> bool {
    cmf & 0x0f == 8 && cmf >> 4 <= 7 && u16::from_be_bytes([cmf, flg]).is_multiple_of(31)
}

/// One call of zlib; the flag tells that the stream has ended.
fn inflate(z: &mut Decompress, coding: Coding, input: &[u8], output: &mut [u8]) -> (Step, bool) {
    let (read, written) = (z.total_in(), z.total_out());
    let result = z.decompress(input, output, FlushDecompress::None);
    let mut step = Step::ok(
        (z.total_in() - read) as usize,
        (z.total_out() - written) as usize,
    );
    let end = match result {
        Ok(status) => status == Status::StreamEnd,
        Err(error) => {
            let reason = match error.needs_dictionary() {
                Some(_) => "needs a preset dictionary",
                None => error.message().unwrap_or("deflate stream is damaged"),
            };
            step.error = Some(CodingError::corrupt(coding, reason));
            false
        }
    };
    (step, end)
}

/// Brotli through the state interface of its crate.
struct Br {
    /// `None` after the decoder panicked.
    state: Option<Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>>,
    done: bool,
}

impl Br {
    fn new() -> Self {
        let alloc = StandardAlloc::default;
        // "Strict" refuses the large-window extension, whose windows reach 1 GiB and which `br`
        // doesn't include.
        let state = BrotliState::new_strict(alloc(), alloc(), alloc());
        Br {
            state: Some(Box::new(state)),
            done: false,
        }
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Step {
        if self.done {
            return Step::ok(input.len(), 0);
        }
        let (mut to_read, mut read) = (input.len(), 0);
        let (mut room, mut written, mut total) = (output.len(), 0, 0);
        // The decoder stays memory-safe by bounds checks and asserts. Malformed streams are
        // reported to reach some of them, and the 5.x series lacks the repair
        // (dropbox/rust-brotli-decompressor#64). Such a stream is corrupt, not a reason to unwind
        // into the caller. Builds with `panic = "abort"` have no such net.
        let result = catch_unwind(AssertUnwindSafe(|| {
            let state = self.state.as_mut()?;
            Some(BrotliDecompressStream(
                &mut to_read,
                &mut read,
                input,
                &mut room,
                &mut written,
                output,
                &mut total,
                state,
            ))
        }));
        let mut step = Step::ok(read, written);
        match result {
            Ok(Some(BrotliResult::ResultSuccess)) => self.done = true,
            Ok(Some(BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput)) => {}
            Ok(Some(BrotliResult::ResultFailure)) => {
                step.error = Some(CodingError::corrupt(Coding::Br, "brotli stream is damaged"));
            }
            Ok(None) | Err(_) => {
                self.state = None;
                step.error = Some(CodingError::corrupt(
                    Coding::Br,
                    "brotli stream upsets its decoder",
                ));
            }
        }
        step
    }
}

/// A series of zstd frames (RFC 8878 §3).
struct Zstd {
    decoder: zstd::stream::raw::Decoder<'static>,
    between_frames: bool,
}

impl Zstd {
    fn new() -> Result<Self, CodingError> {
        let library = |error: io::Error| CodingError::corrupt(Coding::Zstd, error.to_string());
        let mut decoder = zstd::stream::raw::Decoder::new().map_err(library)?;
        decoder
            .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))
            .map_err(library)?;
        Ok(Zstd {
            decoder,
            between_frames: true,
        })
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Step {
        // Without input the library would take a finished frame for the start of the next one.
        if input.is_empty() && self.between_frames {
            return Step::ok(0, 0);
        }
        match self.decoder.run_on_buffers(input, output) {
            Ok(status) => {
                self.between_frames = status.remaining == 0;
                Step::ok(status.bytes_read, status.bytes_written)
            }
            Err(error) => Step {
                error: Some(CodingError::corrupt(Coding::Zstd, error.to_string())),
                ..Step::ok(0, 0)
            },
        }
    }
}
