//! Follows the framing of an HTTP/1 body.

use tollgate_wire::headers::HeaderList;
use tollgate_wire::http1::{Anomaly, ChunkedDecoder, Framing};

/// What is left of a body.
pub(crate) enum Body {
    /// Nothing (any more).
    Done,
    /// So many bytes.
    Length(u64),
    /// Chunks, as far as the decoder says.
    Chunked(Box<ChunkedDecoder>),
    /// Everything up to the end of the connection.
    UntilClose,
}

impl Body {
    pub fn new(framing: Framing, trailer_bytes: usize) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Done,
            Framing::Length(n) => Self::Length(n),
            Framing::Chunked => Self::Chunked(Box::new(ChunkedDecoder::new(trailer_bytes))),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    pub fn is_done(&self) -> bool {
        match self {
            Self::Done => true,
            Self::Chunked(decoder) => decoder.is_done(),
            _ => false,
        }
    }

    /// Takes what belongs to the body from `input`, hands its payload to `payload` and answers how
    /// many bytes of `input` that was, framing included.
    pub fn advance<'a>(
        &mut self,
        input: &'a [u8],
        mut payload: impl FnMut(&'a [u8]),
    ) -> Result<usize, Anomaly> {
        match self {
            Self::Done => Ok(0),
            Self::Length(left) => {
                let n = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(input.len());
                *left -= n as u64;
                if n > 0 {
                    payload(input.get(..n).unwrap_or_default());
                }
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(n)
            }
            Self::Chunked(decoder) => Ok(decoder.feed(input, payload)?.consumed),
            Self::UntilClose => {
                if !input.is_empty() {
                    payload(input);
                }
                Ok(input.len())
            }
        }
    }

    /// The connection ended. True when the body may end so.
    pub fn end_of_stream(&mut self) -> bool {
        match self {
            Self::UntilClose => {
                *self = Self::Done;
                true
            }
            other => other.is_done(),
        }
    }

    /// Trailers, once a chunked body has ended.
    pub fn trailers(&self) -> Option<&HeaderList> {
        match self {
            Self::Chunked(decoder) => decoder.trailers(),
            _ => None,
        }
    }
}
