//! The messages of one direction.

use super::frame::{FrameHeader, MAX_HEADER, Opcode, apply_mask};
use super::{Close, Inflater, PermessageDeflate, Sender, Utf8, WebSocketError};

/// Capacity that is kept for the next message; more is given back.
const KEEP: usize = 64 * 1024;

/// What has been read of a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole text: its fragments joined, its compression undone.
    Text(&'a str),
    /// The same of binary data.
    Binary(&'a [u8]),
    /// A ping, with what its pong must carry.
    Ping(&'a [u8]),
    /// A pong.
    Pong(&'a [u8]),
    /// The close frame. Nothing is read after it.
    Close(Close<'a>),
    /// A frame of a message that goes on.
    Fragment,
}

/// Reads the messages of one direction from bytes that arrive in pieces.
///
/// The messages are the same however the bytes are cut. One that lies whole and unmasked in one
/// piece is lent from it without copying. Memory is bounded by twice the limit of a message. The
/// first error is final: the reader lets go of its memory, and every later call returns the same
/// error.
#[derive(Debug)]
pub struct MessageReader {
    sender: Sender,
    limit: usize,
    inflater: Option<Box<Inflater>>,
    header: [u8; MAX_HEADER],
    header_len: usize,
    /// The frame whose payload is awaited, and how much of it has come.
    frame: Option<(FrameHeader, u64)>,
    control: Vec<u8>,
    message: Option<Kind>,
    payload: Vec<u8>,
    /// Unmasked bytes on their way into the inflater.
    scratch: Vec<u8>,
    utf8: Utf8,
    state: State,
}

/// The message that has begun.
#[derive(Debug, Clone, Copy)]
struct Kind {
    is_text: bool,
    compressed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    /// What lies in `payload` or `control` has been lent out, and goes at the next call.
    Lent,
    Closed,
    Failed(WebSocketError),
}

impl MessageReader {
    /// Reads the frames of `sender`; a message may have `limit` bytes, also decompressed. `deflate`
    /// is what the handshake agreed on.
    #[must_use]
    pub fn new(sender: Sender, limit: usize, deflate: Option<&PermessageDeflate>) -> Self {
        Self {
            sender,
            limit,
            inflater: deflate.map(|agreed| Box::new(Inflater::new(agreed, sender))),
            header: [0; MAX_HEADER],
            header_len: 0,
            frame: None,
            control: Vec::new(),
            message: None,
            payload: Vec::new(),
            scratch: Vec::new(),
            utf8: Utf8::default(),
            state: State::Reading,
        }
    }

    /// Takes bytes off `input` up to the end of a frame, and answers what that frame completes.
    /// `None`: all has been taken, and more is needed. After a close frame everything is taken and
    /// ignored.
    ///
    /// # Errors
    /// What is wrong with the bytes, as soon as they show it. Those before the error have been
    /// taken off `input`.
    pub fn next<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Event<'a>>, WebSocketError> {
        match self.state {
            State::Failed(error) => return Err(error),
            State::Closed => {
                *input = &[];
                return Ok(None);
            }
            State::Lent => self.take_back(),
            State::Reading => {}
        }
        let read = match self.read_frame(input) {
            Ok(read) => read,
            Err(error) => {
                self.fail(error);
                return Err(error);
            }
        };
        let Some(read) = read else {
            return Ok(None);
        };
        // What was checked above is lent from here on.
        let text = |payload: &'a [u8]| std::str::from_utf8(payload).map(Event::Text);
        let event = match read {
            Read::Fragment => Ok(Event::Fragment),
            Read::Lent(true, payload) => text(payload),
            Read::Lent(false, payload) => Ok(Event::Binary(payload)),
            Read::Joined(true) => text(&self.payload),
            Read::Joined(false) => Ok(Event::Binary(&self.payload)),
            Read::Ping => Ok(Event::Ping(&self.control)),
            Read::Pong => Ok(Event::Pong(&self.control)),
            Read::Close => {
                self.state = State::Closed;
                return match Close::parse(&self.control) {
                    Ok(close) => Ok(Some(Event::Close(close))),
                    Err(error) => {
                        self.state = State::Failed(error);
                        Err(error)
                    }
                };
            }
        };
        match event {
            Ok(event) => {
                self.state = State::Lent;
                Ok(Some(event))
            }
            Err(_) => {
                self.state = State::Failed(WebSocketError::InvalidUtf8);
                Err(WebSocketError::InvalidUtf8)
            }
        }
    }

    /// Whether the close frame has been read.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    fn fail(&mut self, error: WebSocketError) {
        self.state = State::Failed(error);
        self.payload = Vec::new();
        self.scratch = Vec::new();
        self.inflater = None;
    }

    fn take_back(&mut self) {
        self.state = State::Reading;
        self.control.clear();
        if self.message.is_none() {
            if self.payload.capacity() > KEEP {
                self.payload = Vec::new();
            } else {
                self.payload.clear();
            }
        }
    }

    fn read_frame<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Read<'a>>, WebSocketError> {
        let (frame, taken) = match self.frame {
            Some(frame) => frame,
            None => match self.read_header(input)? {
                Some(header) => (header, 0),
                None => return Ok(None),
            },
        };
        let missing = usize::try_from(frame.length - taken).unwrap_or(usize::MAX);
        let (piece, rest) = input.split_at_checked(missing).unwrap_or((*input, &[]));
        *input = rest;
        let whole = piece.len() == missing;
        self.frame = (!whole).then_some((frame, taken + piece.len() as u64));
        if frame.opcode.is_control() {
            return Ok(self.control_payload(&frame, taken, piece, whole));
        }
        let Some(kind) = self.message else {
            return Err(WebSocketError::UnexpectedContinuation);
        };
        if whole && frame.fin && taken == 0 && self.payload.is_empty() && !kind.compressed {
            // The common case: the message lies here whole.
            self.message = None;
            if let Some(key) = frame.mask {
                self.payload.extend_from_slice(piece);
                apply_mask(&mut self.payload, key, 0);
                return Ok(Some(Read::Joined(kind.is_text)));
            }
            return Ok(Some(Read::Lent(kind.is_text, piece)));
        }
        self.data_payload(kind, &frame, taken, piece)?;
        if !whole {
            return Ok(None);
        }
        if !frame.fin {
            return Ok(Some(Read::Fragment));
        }
        if kind.compressed {
            let before = self.payload.len();
            let inflater = self.inflater.as_mut().ok_or(WebSocketError::ReservedBits)?;
            let finished = inflater.finish(&mut self.payload, self.limit);
            if kind.is_text {
                let tail = self.payload.get(before..).unwrap_or_default();
                self.utf8.feed(tail)?;
            }
            finished?;
        }
        if kind.is_text {
            self.utf8.finish()?;
        }
        self.message = None;
        Ok(Some(Read::Joined(kind.is_text)))
    }

    fn read_header(&mut self, input: &mut &[u8]) -> Result<Option<FrameHeader>, WebSocketError> {
        let header = if self.header_len == 0
            && let Some((header, len)) = FrameHeader::parse(input)?
        {
            *input = input.get(len..).unwrap_or_default();
            header
        } else {
            loop {
                let Some((&next, rest)) = input.split_first() else {
                    return Ok(None);
                };
                *input = rest;
                if let Some(free) = self.header.get_mut(self.header_len) {
                    *free = next;
                }
                self.header_len += 1;
                let start = self.header.get(..self.header_len).unwrap_or_default();
                if let Some((header, _)) = FrameHeader::parse(start)? {
                    self.header_len = 0;
                    break header;
                }
            }
        };
        self.check(&header)?;
        Ok(Some(header))
    }

    /// Checks a header against what came before it and what was agreed on, and begins a message.
    fn check(&mut self, header: &FrameHeader) -> Result<(), WebSocketError> {
        if header.mask.is_some() != (self.sender == Sender::Client) {
            return Err(WebSocketError::Masking);
        }
        let begins = matches!(header.opcode, Opcode::Text | Opcode::Binary);
        let may_be_compressed = begins && self.inflater.is_some();
        if header.rsv2 || header.rsv3 || (header.rsv1 && !may_be_compressed) {
            return Err(WebSocketError::ReservedBits);
        }
        match (header.opcode, self.message) {
            (Opcode::Continuation, None) => return Err(WebSocketError::UnexpectedContinuation),
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(WebSocketError::ExpectedContinuation);
            }
            (Opcode::Text | Opcode::Binary, None) => {
                self.message = Some(Kind {
                    is_text: header.opcode == Opcode::Text,
                    compressed: header.rsv1,
                });
            }
            _ => {}
        }
        let compressed = self.message.is_some_and(|m| m.compressed);
        if !header.opcode.is_control() && !compressed {
            let total = header.length.saturating_add(self.payload.len() as u64);
            if total > self.limit as u64 {
                return Err(WebSocketError::TooLarge { limit: self.limit });
            }
        }
        Ok(())
    }

    fn control_payload(
        &mut self,
        frame: &FrameHeader,
        taken: u64,
        piece: &[u8],
        whole: bool,
    ) -> Option<Read<'static>> {
        let at = self.control.len();
        self.control.extend_from_slice(piece);
        if let (Some(key), Some(piece)) = (frame.mask, self.control.get_mut(at..)) {
            apply_mask(piece, key, taken);
        }
        whole.then_some(match frame.opcode {
            Opcode::Ping => Read::Ping,
            Opcode::Pong => Read::Pong,
            _ => Read::Close,
        })
    }

    /// Takes a piece of a message's payload: unmasks, decompresses and checks it.
    fn data_payload(
        &mut self,
        kind: Kind,
        frame: &FrameHeader,
        taken: u64,
        piece: &[u8],
    ) -> Result<(), WebSocketError> {
        let before = self.payload.len();
        let mut inflated = Ok(());
        if kind.compressed {
            let inflater = self.inflater.as_mut().ok_or(WebSocketError::ReservedBits)?;
            let mut offset = taken;
            for piece in piece.chunks(KEEP) {
                self.scratch.clear();
                self.scratch.extend_from_slice(piece);
                if let Some(key) = frame.mask {
                    apply_mask(&mut self.scratch, key, offset);
                }
                offset += piece.len() as u64;
                inflated = inflater.feed(&self.scratch, &mut self.payload, self.limit);
                if inflated.is_err() {
                    break;
                }
            }
        } else {
            self.payload.extend_from_slice(piece);
            if let (Some(key), Some(piece)) = (frame.mask, self.payload.get_mut(before..)) {
                apply_mask(piece, key, taken);
            }
        }
        // First what came before an error: so it is the same one for every cut.
        if kind.is_text {
            self.utf8
                .feed(self.payload.get(before..).unwrap_or_default())?;
        }
        inflated
    }
}

/// What a frame completed; the flag says whether it is text.
enum Read<'a> {
    Fragment,
    /// A message that lies in the input.
    Lent(bool, &'a [u8]),
    /// A message that lies in the reader.
    Joined(bool),
    Ping,
    Pong,
    Close,
}
