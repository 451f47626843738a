//! Flow after flow from a file.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read};

use bytes::Bytes;

use super::decode::{Decoder, Invalid};
use super::item::{Dict, Item, Items, MAX_LENGTH_DIGITS, Malformed};
use super::upgrade::{Upgraded, Upgrader};
use super::{FORMAT_VERSION, OLDEST_VERSION};
use crate::record::Record;

/// The largest flow that is read unless something else is said: 1 GiB.
pub const DEFAULT_MAX_FLOW_BYTES: u64 = 1 << 30;

/// How many different unknown keys are remembered.
const MAX_UNKNOWN_KEYS: usize = 16;

/// Reads a flow file.
///
/// It holds one flow at a time, and for files of mitmproxy 6 and older up to 256 WebSocket handshakes whose messages come
/// later. Keys that the format does not know are passed over, and named by [`unknown_keys`](Self::unknown_keys).
///
/// As an iterator it yields every flow up to the end or the first error that ends the file. An error that concerns one
/// flow ([`ReadError::is_about_one_flow`]) is yielded in its place, and reading goes on behind it.
#[derive(Debug)]
pub struct FlowReader<R> {
    input: BufReader<R>,
    offset: u64,
    flows: u64,
    max_flow_bytes: u64,
    upgrader: Upgrader,
    unknown: BTreeSet<String>,
    ended: bool,
}

impl<R: Read> FlowReader<R> {
    /// A reader at the beginning of a file. It has a buffer of its own.
    pub fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(128 * 1024, input),
            offset: 0,
            flows: 0,
            max_flow_bytes: DEFAULT_MAX_FLOW_BYTES,
            upgrader: Upgrader::default(),
            unknown: BTreeSet::new(),
            ended: false,
        }
    }

    /// The largest flow to read, in bytes of the file; a larger one ends it.
    #[must_use]
    pub fn max_flow_bytes(mut self, bytes: u64) -> Self {
        self.max_flow_bytes = bytes;
        self
    }

    /// How many bytes have been read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many flows have been read.
    pub fn flows(&self) -> u64 {
        self.flows
    }

    /// Keys that the format does not know and whose values were passed over: the first 16 by their path.
    pub fn unknown_keys(&self) -> impl Iterator<Item = &str> {
        self.unknown.iter().map(String::as_str)
    }

    fn next_flow(&mut self) -> Result<Option<Record>, ReadError> {
        let begin = self.offset;
        let fail = |flows, offset, kind| ReadError {
            offset,
            flows,
            kind,
        };
        loop {
            let (payload, tag, at) = match self.frame() {
                Ok(None) => return Ok(None),
                Ok(Some(frame)) => frame,
                Err(kind) => {
                    self.ended = true;
                    return Err(fail(self.flows, begin, kind));
                }
            };
            return match self.flow(&payload, tag) {
                Ok(Some(record)) => {
                    self.flows += 1;
                    Ok(Some(record))
                }
                // One that waits for what comes later, and stands for itself as well.
                Ok(None) => continue,
                Err(Problem::Syntax(malformed)) => Err(fail(
                    self.flows,
                    at + malformed.offset as u64,
                    ReadErrorKind::Malformed(malformed.what),
                )),
                Err(Problem::Kind(kind)) => Err(fail(self.flows, begin, kind)),
            };
        }
    }

    fn flow(&mut self, payload: &Bytes, tag: u8) -> Result<Option<Record>, Problem> {
        let mut dict = dictionary(Item::parse_shallow(payload, tag))?;
        let version = match dict.get("version") {
            Some(Item::Int(version)) => *version,
            Some(Item::RawList(parts)) => {
                let parts: Vec<_> = Items::Raw(parts)
                    .map(|part| match part {
                        Ok(Item::Int(number)) => number.to_string(),
                        _ => "?".to_owned(),
                    })
                    .collect();
                return Err(Problem::Kind(ReadErrorKind::TooOld(parts.join("."))));
            }
            _ => return Err(Problem::Kind(ReadErrorKind::NoVersion)),
        };
        if version > FORMAT_VERSION {
            return Err(Problem::Kind(ReadErrorKind::TooNew(version)));
        }
        if version < OLDEST_VERSION {
            return Err(Problem::Kind(ReadErrorKind::TooOld(version.to_string())));
        }
        if version < FORMAT_VERSION {
            // Its upgrade moves things about.
            dict = dictionary(Item::parse(payload, tag))?;
        }
        let stored;
        let dict = match self.upgrader.upgrade(dict, version, payload) {
            Upgraded::Flow(dict) => dict,
            Upgraded::WebSocket {
                messages,
                handshake,
            } => {
                stored = handshake;
                Upgrader::merge(messages, &stored)
            }
        };
        let unknown = &mut self.unknown;
        let mut decoder = Decoder::new(payload, |key: &str| {
            if unknown.len() < MAX_UNKNOWN_KEYS && !unknown.contains(key) {
                unknown.insert(key.to_owned());
            }
        });
        decoder.record(dict).map(Some).map_err(|error| match error {
            Invalid::Syntax(Malformed { offset, what }) => Problem::Syntax(Malformed {
                offset: offset.saturating_sub(payload.as_ptr() as usize),
                what,
            }),
            Invalid::Type(name) => Problem::Kind(ReadErrorKind::UnknownType(name)),
            Invalid::Key {
                key,
                expected,
                found,
            } => Problem::Kind(ReadErrorKind::Invalid {
                key,
                expected,
                found,
            }),
        })
    }

    /// The payload of the next tnetstring, its tag, and where the payload begins. `None` at the end.
    fn frame(&mut self) -> Result<Option<(Bytes, u8, u64)>, ReadErrorKind> {
        let mut length: u64 = 0;
        for digits in 0.. {
            match self.byte()? {
                None if digits == 0 => return Ok(None),
                None => return Err(self.truncated()),
                Some(byte @ b'0'..=b'9') if digits < MAX_LENGTH_DIGITS => {
                    length = length * 10 + u64::from(byte - b'0');
                }
                Some(b':') if digits > 0 => break,
                Some(_) => {
                    return Err(match self.flows {
                        0 => ReadErrorKind::NotAFlowFile,
                        _ => ReadErrorKind::NoFlow,
                    });
                }
            }
        }
        if length > self.max_flow_bytes {
            return Err(ReadErrorKind::TooLarge {
                size: length,
                limit: self.max_flow_bytes,
            });
        }
        let begin = self.offset;
        // What the file claims is not reserved before it has shown that much.
        let mut payload = Vec::with_capacity(length.min(1 << 20) as usize);
        let mut left = length;
        while left > 0 {
            let buffer = fill(&mut self.input)?;
            let wanted = usize::try_from(left).unwrap_or(usize::MAX);
            let piece = buffer.get(..wanted).unwrap_or(buffer);
            if piece.is_empty() {
                return Err(self.truncated());
            }
            let taken = piece.len();
            payload.extend_from_slice(piece);
            self.input.consume(taken);
            self.offset += taken as u64;
            left -= taken as u64;
        }
        let tag = self.byte()?.ok_or_else(|| self.truncated())?;
        Ok(Some((Bytes::from(payload), tag, begin)))
    }

    fn byte(&mut self) -> Result<Option<u8>, ReadErrorKind> {
        let byte = fill(&mut self.input)?.first().copied();
        if byte.is_some() {
            self.input.consume(1);
            self.offset += 1;
        }
        Ok(byte)
    }

    fn truncated(&self) -> ReadErrorKind {
        ReadErrorKind::Truncated { end: self.offset }
    }
}

fn fill<R: Read>(input: &mut BufReader<R>) -> Result<&[u8], ReadErrorKind> {
    // The borrow checker wants the retry apart from the answer.
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ReadErrorKind::Io(error)),
        }
    }
    Ok(input.buffer())
}

impl<R: Read> Iterator for FlowReader<R> {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_flow().transpose();
        self.ended |= next.is_none();
        next
    }
}

fn dictionary(parsed: Result<Item<'_>, Malformed>) -> Result<Dict<'_>, Problem> {
    match parsed {
        Ok(Item::Dict(dict)) => Ok(dict),
        Ok(_) => Err(Problem::Kind(ReadErrorKind::NoDictionary)),
        Err(malformed) => Err(Problem::Syntax(malformed)),
    }
}

enum Problem {
    Syntax(Malformed),
    Kind(ReadErrorKind),
}

/// Why a flow could not be read.
#[derive(Debug, thiserror::Error)]
#[error("byte {offset}: {kind}")]
pub struct ReadError {
    /// Where the flow begins that can't be read, or where in it the syntax breaks; in bytes from the start of the file.
    pub offset: u64,
    /// How many flows were good before.
    pub flows: u64,
    /// What is wrong.
    #[source]
    pub kind: ReadErrorKind,
}

impl ReadError {
    /// Whether only this flow is lost, and reading goes on behind it.
    pub fn is_about_one_flow(&self) -> bool {
        !matches!(
            self.kind,
            ReadErrorKind::Io(_)
                | ReadErrorKind::Truncated { .. }
                | ReadErrorKind::NotAFlowFile
                | ReadErrorKind::NoFlow
                | ReadErrorKind::TooLarge { .. }
        )
    }
}

/// What is wrong with a flow file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadErrorKind {
    /// It could not be read.
    #[error("can't read: {0}")]
    Io(#[from] io::Error),
    /// It ends in the middle of a flow.
    #[error("the flow that begins here is cut off: the file ends at byte {end}")]
    Truncated {
        /// How many bytes the file has.
        end: u64,
    },
    /// It does not begin as a flow file does.
    #[error("this is not a flow file of mitmproxy")]
    NotAFlowFile,
    /// Something else than a flow follows one.
    #[error("what begins here is not a flow")]
    NoFlow,
    /// A flow is larger than the limit.
    #[error("the flow that begins here has {size} bytes; the limit is {limit}")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The syntax of a flow is broken.
    #[error("the file is damaged here: {0}")]
    Malformed(&'static str),
    /// What stands in place of a flow is no dictionary.
    #[error("what begins here is no flow, but something else that mitmproxy could have written")]
    NoDictionary,
    /// A dictionary is no flow: it has no format version.
    #[error("what begins here is no flow: it has no format version")]
    NoVersion,
    /// The flow was written by a newer mitmproxy.
    #[error("the flow has format version {0}; Tollgate reads versions 7 to 21")]
    TooNew(i64),
    /// The flow was written before 2019.
    #[error(
        "the flow has format version {0}; Tollgate reads versions 7 to 21 (mitmproxy 5 and later can upgrade it)"
    )]
    TooOld(String),
    /// A type of flow is unknown.
    #[error("the flow is of an unknown type, {0:?}")]
    UnknownType(String),
    /// Something that a flow must have is missing, or not what it must be.
    #[error("`{key}` in the flow: expected {expected}, found {found}")]
    Invalid {
        /// Its path, such as `request.port`.
        key: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
}
