//! Reading fields off the front of bytes that may not all be there yet.

/// What a parser made of the bytes so far.
///
/// Nothing is remembered between calls: after [`Parsed::Partial`], call again with the same bytes and more behind them. Any
/// other answer stands, whatever follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<T> {
    /// The whole message.
    Complete {
        /// What the message says.
        value: T,
        /// Bytes of the input that it took; what follows is the next message or the tunnel.
        consumed: usize,
    },
    /// The beginning of what may become a message.
    Partial,
}

impl<T> Parsed<T> {
    /// The same answer about another value.
    pub fn map<U>(self, convert: impl FnOnce(T) -> U) -> Parsed<U> {
        match self {
            Self::Complete { value, consumed } => Parsed::Complete {
                value: convert(value),
                consumed,
            },
            Self::Partial => Parsed::Partial,
        }
    }
}

/// The rest of an input. `None` from a method means that the input ends too early; nothing is taken then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// A length of one byte, and as many bytes.
    pub(crate) fn sized_u8(&mut self) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let len = usize::from(ahead.byte()?);
        let taken = ahead.take(len)?;
        *self = ahead;
        Some(taken)
    }

    /// A length of two bytes, and as many bytes.
    pub(crate) fn sized_u16(&mut self) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let len = usize::from(ahead.u16()?);
        let taken = ahead.take(len)?;
        *self = ahead;
        Some(taken)
    }

    /// [`Parsed::Complete`] for a message of `input`, whose rest this is.
    pub(crate) fn complete<T>(&self, input: &[u8], value: T) -> Parsed<T> {
        Parsed::Complete {
            value,
            consumed: input.len().saturating_sub(self.rest.len()),
        }
    }
}
