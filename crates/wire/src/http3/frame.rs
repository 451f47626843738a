//! Frames (RFC 9114 section 7).

use super::code;
use super::varint::{read_varint, write_varint};

/// Most bytes of a frame that is neither DATA nor HEADERS: SETTINGS and the like are small.
const SMALL_FRAME: u64 = 4096;

/// The kinds of frames that mean something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Bytes of a body.
    Data,
    /// A field section.
    Headers,
    /// A push is not wanted.
    CancelPush,
    /// What the peer says of itself.
    Settings,
    /// A push is announced.
    PushPromise,
    /// The connection is about to close.
    Goaway,
    /// Pushes are allowed.
    MaxPushId,
}

impl FrameKind {
    /// The type's number.
    pub fn number(self) -> u64 {
        match self {
            Self::Data => 0x00,
            Self::Headers => 0x01,
            Self::CancelPush => 0x03,
            Self::Settings => 0x04,
            Self::PushPromise => 0x05,
            Self::Goaway => 0x07,
            Self::MaxPushId => 0x0d,
        }
    }

    fn of(number: u64) -> Result<Option<Self>, FrameError> {
        Ok(Some(match number {
            0x00 => Self::Data,
            0x01 => Self::Headers,
            0x03 => Self::CancelPush,
            0x04 => Self::Settings,
            0x05 => Self::PushPromise,
            0x07 => Self::Goaway,
            0x0d => Self::MaxPushId,
            // RFC 9114 section 7.2.8: types of HTTP/2 that have no meaning any more.
            0x02 | 0x06 | 0x08 | 0x09 => return Err(FrameError::Reserved(number)),
            _ => return Ok(None),
        }))
    }
}

/// Appends the head of a frame whose payload of `length` bytes follows.
pub fn frame_header(kind: FrameKind, length: u64, out: &mut Vec<u8>) {
    write_varint(kind.number(), out);
    write_varint(length, out);
}

/// Why a stream's frames can't be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A frame that would have to be held and is larger than its bound.
    #[error("a frame of {length} bytes, where {limit} are allowed")]
    TooLarge {
        /// What its head says.
        length: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A frame type that belongs to HTTP/2.
    #[error("a frame of HTTP/2's type {0:#x}")]
    Reserved(u64),
    /// The stream ended in the middle of a frame.
    #[error("the stream ended in the middle of a frame")]
    Truncated,
}

impl FrameError {
    /// The code that the connection (or the stream, for [`FrameError::TooLarge`]) is closed with.
    pub fn code(self) -> u64 {
        match self {
            Self::TooLarge { .. } => code::EXCESSIVE_LOAD,
            Self::Reserved(_) => code::FRAME_UNEXPECTED,
            Self::Truncated => code::FRAME_ERROR,
        }
    }
}

/// What a look at a stream's bytes brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// All of the input was taken, and more is needed.
    More,
    /// `length` bytes of a body stand in the input after `skip` others. Both are taken.
    Data {
        /// Bytes before it.
        skip: usize,
        /// Bytes of it; not 0.
        length: usize,
    },
    /// A frame that was held until it was whole. `used` bytes of the input are taken.
    Frame {
        /// Bytes of the input.
        used: usize,
        /// Its kind; not DATA.
        kind: FrameKind,
        /// Its payload.
        payload: Vec<u8>,
    },
}

/// Follows the frames of one stream.
///
/// DATA is not held; other frames that are known are, up to a bound; unknown ones are skipped as
/// they come.
#[derive(Debug)]
pub struct FrameDecoder {
    state: State,
    headers_limit: u64,
}

#[derive(Debug)]
enum State {
    /// In the head of a frame: at most two integers.
    Head(Vec<u8>),
    Data(u64),
    Held {
        kind: FrameKind,
        left: u64,
        payload: Vec<u8>,
    },
    Skipped(u64),
}

impl FrameDecoder {
    /// A decoder that takes field sections of at most so many bytes, encoded.
    pub fn new(headers_limit: usize) -> Self {
        Self {
            state: State::Head(Vec::new()),
            headers_limit: headers_limit as u64,
        }
    }

    /// Looks at what has arrived. The caller drops what a [`Step`] says was taken, and asks again
    /// until it gets [`Step::More`].
    pub fn next(&mut self, input: &[u8]) -> Result<Step, FrameError> {
        let mut used = 0;
        loop {
            let rest = input.get(used..).unwrap_or_default();
            match &mut self.state {
                State::Head(head) => {
                    let whole_here = match head.is_empty() {
                        true => read_head(rest),
                        false => None,
                    };
                    let (number, length) = match whole_here {
                        Some((number, length, taken)) => {
                            used += taken;
                            (number, length)
                        }
                        None => {
                            let Some(byte) = rest.first() else {
                                return Ok(Step::More);
                            };
                            used += 1;
                            head.push(*byte);
                            let Some((number, length, _)) = read_head(head) else {
                                continue;
                            };
                            (number, length)
                        }
                    };
                    self.state = self.begin(number, length)?;
                    // A frame may be empty: then it is whole without a further byte.
                    if let Some(frame) = self.whole(used) {
                        return Ok(frame);
                    }
                }
                State::Data(left) => {
                    if *left == 0 {
                        self.state = State::Head(Vec::new());
                        continue;
                    }
                    let length = clamp(*left, rest.len());
                    if length == 0 {
                        return Ok(Step::More);
                    }
                    *left -= length as u64;
                    return Ok(Step::Data { skip: used, length });
                }
                State::Held { left, payload, .. } => {
                    let n = clamp(*left, rest.len());
                    if n == 0 {
                        return Ok(Step::More);
                    }
                    payload.extend_from_slice(rest.get(..n).unwrap_or_default());
                    *left -= n as u64;
                    used += n;
                    if let Some(frame) = self.whole(used) {
                        return Ok(frame);
                    }
                }
                State::Skipped(left) => {
                    if *left == 0 {
                        self.state = State::Head(Vec::new());
                        continue;
                    }
                    let n = clamp(*left, rest.len());
                    if n == 0 {
                        return Ok(Step::More);
                    }
                    *left -= n as u64;
                    used += n;
                }
            }
        }
    }

    /// The stream has ended: fails if that was in the middle of a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        match &self.state {
            State::Head(head) if head.is_empty() => Ok(()),
            State::Data(0) | State::Skipped(0) => Ok(()),
            _ => Err(FrameError::Truncated),
        }
    }

    fn begin(&self, number: u64, length: u64) -> Result<State, FrameError> {
        let Some(kind) = FrameKind::of(number)? else {
            return Ok(State::Skipped(length));
        };
        let limit = match kind {
            FrameKind::Data => return Ok(State::Data(length)),
            FrameKind::Headers => self.headers_limit,
            _ => SMALL_FRAME,
        };
        if length > limit {
            return Err(FrameError::TooLarge { length, limit });
        }
        Ok(State::Held {
            kind,
            left: length,
            payload: Vec::new(),
        })
    }

    /// The frame that is held, once it is whole.
    fn whole(&mut self, used: usize) -> Option<Step> {
        match &mut self.state {
            State::Held {
                kind,
                left: 0,
                payload,
            } => {
                let frame = Step::Frame {
                    used,
                    kind: *kind,
                    payload: std::mem::take(payload),
                };
                self.state = State::Head(Vec::new());
                Some(frame)
            }
            _ => None,
        }
    }
}

/// Type, length, and how many bytes they took.
fn read_head(input: &[u8]) -> Option<(u64, u64, usize)> {
    let (number, first) = read_varint(input)?;
    let (length, second) = read_varint(input.get(first..)?)?;
    Some((number, length, first + second))
}

fn clamp(left: u64, here: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(here)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a whole stream says: frames, and each body's bytes joined.
    fn read(pieces: &[&[u8]], limit: usize) -> Result<Vec<(FrameKind, Vec<u8>)>, FrameError> {
        let mut decoder = FrameDecoder::new(limit);
        let mut out: Vec<(FrameKind, Vec<u8>)> = Vec::new();
        for piece in pieces {
            let mut input = *piece;
            loop {
                match decoder.next(input)? {
                    Step::More => break,
                    Step::Data { skip, length } => {
                        let data = &input[skip..skip + length];
                        match out.last_mut() {
                            Some((FrameKind::Data, body)) => body.extend_from_slice(data),
                            _ => out.push((FrameKind::Data, data.to_vec())),
                        }
                        input = &input[skip + length..];
                    }
                    Step::Frame {
                        used,
                        kind,
                        payload,
                    } => {
                        out.push((kind, payload));
                        input = &input[used..];
                    }
                }
            }
        }
        decoder.finish()?;
        Ok(out)
    }

    fn frame(number: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_varint(number, &mut out);
        write_varint(payload.len() as u64, &mut out);
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn a_message_is_read() {
        let stream = [
            frame(1, b"head"),
            frame(0, b""),
            frame(0, b"body "),
            frame(0x21, b"grease that is skipped"),
            frame(0, b"and more"),
            frame(1, b""),
        ]
        .concat();
        assert_eq!(
            read(&[&stream], 100).unwrap(),
            [
                (FrameKind::Headers, b"head".to_vec()),
                (FrameKind::Data, b"body and more".to_vec()),
                (FrameKind::Headers, b"".to_vec()),
            ]
        );
    }

    #[test]
    fn what_must_be_held_has_a_bound() {
        let error = read(&[&frame(1, &[0; 101])], 100).unwrap_err();
        assert_eq!(
            error,
            FrameError::TooLarge {
                length: 101,
                limit: 100
            }
        );
        // The head alone is enough to refuse it.
        let mut head = Vec::new();
        frame_header(FrameKind::Settings, 1 << 40, &mut head);
        assert!(matches!(
            read(&[&head], 100),
            Err(FrameError::TooLarge { .. })
        ));
        // What is skipped or passed on needs none.
        let mut head = Vec::new();
        write_varint(0x21, &mut head);
        write_varint(1 << 40, &mut head);
        assert_eq!(read(&[&head], 100), Err(FrameError::Truncated));
    }

    #[test]
    fn frames_of_http2_are_refused() {
        for number in [0x02, 0x06, 0x08, 0x09] {
            assert_eq!(
                read(&[&frame(number, b"")], 100),
                Err(FrameError::Reserved(number))
            );
        }
    }

    #[test]
    fn an_end_inside_a_frame_is_none() {
        let whole = [frame(1, b"head"), frame(0, b"body")].concat();
        for cut in 0..whole.len() {
            let at_a_boundary = cut == 0 || cut == 6;
            assert_eq!(read(&[&whole[..cut]], 100).is_ok(), at_a_boundary, "{cut}");
        }
    }

    proptest! {
        #[test]
        fn the_same_for_every_split(
            frames in prop::collection::vec(
                (
                    prop::sample::select(vec![0_u64, 0, 1, 3, 4, 7, 0xd, 0x21, 0x40, 0x1234]),
                    prop::collection::vec(any::<u8>(), 0..80),
                ),
                0..6,
            ),
            cut in any::<prop::sample::Index>(),
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(|(n, p)| frame(*n, p)).collect();
            let whole = read(&[&stream], 100);
            prop_assert!(whole.is_ok());
            let at = cut.index(stream.len() + 1);
            prop_assert_eq!(&read(&[&stream[..at], &stream[at..]], 100), &whole);
            let bytes: Vec<&[u8]> = stream.chunks(1).collect();
            prop_assert_eq!(&read(&bytes, 100), &whole);
        }

        #[test]
        fn nothing_panics(stream in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&[&stream], 100);
        }
    }
}
