use super::{FramingError, Partial};

const PREFIX: usize = 5;

/// The envelope that gRPC, gRPC-Web and Connect share: a byte of flags, a length of four bytes (big-endian), the payload.
#[derive(Debug, Clone)]
pub(super) struct EnvelopeSplitter {
    limit: usize,
    /// The flags that have a meaning.
    known_flags: u8,
    prefix: Partial,
    /// Flags and length of the message whose payload is awaited.
    current: Option<(u8, usize)>,
    payload: Partial,
    failed: Option<FramingError>,
}

impl EnvelopeSplitter {
    /// A splitter for payloads of at most `limit` bytes, whose flags are among `known_flags`.
    pub(super) fn new(limit: usize, known_flags: u8) -> Self {
        Self {
            limit,
            known_flags,
            prefix: Partial::default(),
            current: None,
            payload: Partial::default(),
            failed: None,
        }
    }

    /// Takes the next bytes; `on_message` gets flags and payload of each message that they complete.
    pub(super) fn feed(
        &mut self,
        input: &[u8],
        on_message: impl FnMut(u8, &[u8]),
    ) -> Result<(), FramingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.split(input, on_message)
            .inspect_err(|&error| self.fail(error))
    }

    pub(super) fn finish(&mut self) -> Result<(), FramingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.current.is_some() || self.prefix.len() > 0 {
            self.fail(FramingError::Truncated);
            return Err(FramingError::Truncated);
        }
        Ok(())
    }

    /// Lets go of what has been kept; every later call answers `error`.
    pub(super) fn fail(&mut self, error: FramingError) {
        self.failed = Some(error);
        self.payload = Partial::default();
    }

    fn split(
        &mut self,
        mut input: &[u8],
        mut on_message: impl FnMut(u8, &[u8]),
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
            self.payload
                .complete(piece, self.limit, |payload| on_message(flags, payload))?;
            self.current = None;
        }
    }

    fn parse_prefix(&self) -> Result<(u8, usize), FramingError> {
        let &[flags, a, b, c, d] = self.prefix.bytes.as_slice() else {
            return Err(FramingError::InvalidLength);
        };
        if flags & !self.known_flags != 0 {
            return Err(FramingError::InvalidFlags(flags));
        }
        match usize::try_from(u32::from_be_bytes([a, b, c, d])) {
            Ok(length) if length <= self.limit => Ok((flags, length)),
            _ => Err(FramingError::TooLarge { limit: self.limit }),
        }
    }
}
