use super::{DEFAULT_MAX_MESSAGE_BYTES, FramingError, Partial};

const PREFIX: usize = 5;
const COMPRESSED: u8 = 0x01;
const TRAILERS: u8 = 0x80;

/// One length-prefixed message of gRPC or gRPC-Web.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcMessage<'a> {
    /// The payload is compressed as the `grpc-encoding` header says.
    pub compressed: bool,
    /// A gRPC-Web trailers frame: the payload is an HTTP/1 header block, not a message.
    pub trailers: bool,
    /// The payload, as sent.
    pub payload: &'a [u8],
}

/// gRPC's length-prefixed messages, and gRPC-Web's in its binary form.
///
/// A message is a flags byte, a length of four bytes (big-endian), and the payload.
#[derive(Debug, Clone)]
pub struct GrpcSplitter {
    limit: usize,
    prefix: Partial,
    /// Flags and length of the message whose payload is awaited.
    current: Option<(u8, usize)>,
    payload: Partial,
    failed: Option<FramingError>,
}

impl Default for GrpcSplitter {
    fn default() -> Self {
        Self::new()
    }
}

impl GrpcSplitter {
    /// A splitter for payloads of at most [`DEFAULT_MAX_MESSAGE_BYTES`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(DEFAULT_MAX_MESSAGE_BYTES)
    }

    /// A splitter for payloads of at most `limit` bytes.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        GrpcSplitter {
            limit,
            prefix: Partial::default(),
            current: None,
            payload: Partial::default(),
            failed: None,
        }
    }

    /// Takes the next bytes; `on_message` gets each message that they complete.
    ///
    /// # Errors
    /// [`FramingError::TooLarge`] as soon as a length over the limit is announced,
    /// [`FramingError::InvalidFlags`].
    pub fn feed(
        &mut self,
        input: &[u8],
        on_message: impl FnMut(GrpcMessage<'_>),
    ) -> Result<(), FramingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.split(input, on_message)
            .inspect_err(|&error| self.fail(error))
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`FramingError::Truncated`] within a message; the error of an earlier [`feed`](Self::feed).
    pub fn finish(&mut self) -> Result<(), FramingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.current.is_some() || self.prefix.len() > 0 {
            self.fail(FramingError::Truncated);
            return Err(FramingError::Truncated);
        }
        Ok(())
    }

    fn fail(&mut self, error: FramingError) {
        self.failed = Some(error);
        self.payload = Partial::default();
    }

    fn split(
        &mut self,
        mut input: &[u8],
        mut on_message: impl FnMut(GrpcMessage<'_>),
    ) -> Result<(), FramingError> {
        loop {
            let (flags, length) = match self.current {
                Some(current) => current,
                None => {
                    if !self.prefix.fill(&mut input, PREFIX) {
                        return Ok(());
                    }
                    let current = self.parse_prefix()?;
                    self.prefix.clear();
                    *self.current.insert(current)
                }
            };
            let missing = length.saturating_sub(self.payload.len());
            let Some((piece, rest)) = input.split_at_checked(missing) else {
                return self.payload.push(input, self.limit);
            };
            input = rest;
            self.payload.complete(piece, self.limit, |payload| {
                on_message(GrpcMessage {
                    compressed: flags & COMPRESSED != 0,
                    trailers: flags & TRAILERS != 0,
                    payload,
                });
            })?;
            self.current = None;
        }
    }

    fn parse_prefix(&self) -> Result<(u8, usize), FramingError> {
        let &[flags, a, b, c, d] = self.prefix.bytes.as_slice() else {
            return Err(FramingError::InvalidLength);
        };
        if flags & !(COMPRESSED | TRAILERS) != 0 {
            return Err(FramingError::InvalidFlags(flags));
        }
        match usize::try_from(u32::from_be_bytes([a, b, c, d])) {
            Ok(length) if length <= self.limit => Ok((flags, length)),
            _ => Err(FramingError::TooLarge { limit: self.limit }),
        }
    }
}
