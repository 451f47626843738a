use super::{DEFAULT_MAX_MESSAGE_BYTES, FramingError, Nesting, Partial, trim_json_space};

/// The record separator that stands before each text.
const RS: u8 = 0x1e;

/// JSON text sequences (RFC 7464): each JSON text stands between an RS and an LF, and may be spread
/// over lines.
///
/// A text is handed out at the LF that follows its last bracket or quote, without waiting for the
/// next RS. A text that is cut off or isn't JSON is handed out as it stands when the next RS comes,
/// so that nothing passes unseen; the same goes for bytes before the first RS.
#[derive(Debug, Clone)]
pub struct JsonSeqSplitter {
    limit: usize,
    text: Partial,
    nesting: Nesting,
    failed: Option<FramingError>,
}

impl Default for JsonSeqSplitter {
    fn default() -> Self {
        Self::new()
    }
}

impl JsonSeqSplitter {
    /// A splitter for texts of at most [`DEFAULT_MAX_MESSAGE_BYTES`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(DEFAULT_MAX_MESSAGE_BYTES)
    }

    /// A splitter for texts of at most `limit` bytes, spaces around them included.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        JsonSeqSplitter {
            limit,
            text: Partial::default(),
            nesting: Nesting::default(),
            failed: None,
        }
    }

    /// Takes the next bytes; `on_text` gets each text that they complete, without the spaces around
    /// it.
    ///
    /// # Errors
    /// [`FramingError::TooLarge`].
    pub fn feed(&mut self, input: &[u8], on_text: impl FnMut(&[u8])) -> Result<(), FramingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.split(input, on_text).inspect_err(|&error| {
            self.failed = Some(error);
            self.text = Partial::default();
        })
    }

    /// Ends the stream and yields the text that no LF or RS has ended, if there is one. A number or
    /// literal may be cut off there (RFC 7464 §2.4).
    ///
    /// # Errors
    /// The error of an earlier [`feed`](Self::feed).
    pub fn finish(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.nesting = Nesting::default();
        let tail = std::mem::take(&mut self.text.bytes);
        Ok(Some(trim_json_space(&tail))
            .filter(|tail| !tail.is_empty())
            .map(<[u8]>::to_vec))
    }

    fn split(
        &mut self,
        mut input: &[u8],
        mut on_text: impl FnMut(&[u8]),
    ) -> Result<(), FramingError> {
        let nesting = &mut self.nesting;
        // JSON has no unescaped control characters in strings: an RS separates wherever it stands.
        while let Some(end) = input.iter().position(|&byte| {
            let ends = byte == RS || (byte == b'\n' && nesting.is_closed());
            nesting.take(byte);
            ends
        }) {
            *nesting = Nesting::default();
            let (piece, rest) = input.split_at_checked(end).unwrap_or((input, &[]));
            input = rest.get(1..).unwrap_or_default();
            self.text
                .complete(piece, self.limit, |text| match trim_json_space(text) {
                    [] => {}
                    text => on_text(text),
                })?;
        }
        self.text.push(input, self.limit)
    }
}
