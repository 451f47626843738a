use super::{DEFAULT_MAX_MESSAGE_BYTES, FramingError, Partial, trim_json_space};

/// Newline-delimited JSON (also called JSON Lines): one message a line, ended by LF or CRLF. Blank
/// lines are skipped.
///
/// The lines are not checked to be JSON.
///
/// ```
/// use tollgate_wire::framing::NdjsonSplitter;
///
/// let mut splitter = NdjsonSplitter::new();
/// let mut lines = Vec::new();
/// splitter.feed(b"{\"a\":1}\r\n\n{\"a\"", |line| lines.push(line.to_vec()))?;
/// assert_eq!(lines, [b"{\"a\":1}"]);
/// assert_eq!(splitter.finish()?.as_deref(), Some(&b"{\"a\""[..]));
/// # Ok::<(), tollgate_wire::framing::FramingError>(())
/// ```
#[derive(Debug, Clone)]
pub struct NdjsonSplitter {
    limit: usize,
    line: Partial,
    failed: Option<FramingError>,
}

impl Default for NdjsonSplitter {
    fn default() -> Self {
        Self::new()
    }
}

impl NdjsonSplitter {
    /// A splitter for lines of at most [`DEFAULT_MAX_MESSAGE_BYTES`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(DEFAULT_MAX_MESSAGE_BYTES)
    }

    /// A splitter for lines of at most `limit` bytes, without the LF.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        NdjsonSplitter {
            limit,
            line: Partial::default(),
            failed: None,
        }
    }

    /// Takes the next bytes; `on_line` gets each line that they complete, without its line end and
    /// outer spaces.
    ///
    /// # Errors
    /// [`FramingError::TooLarge`].
    pub fn feed(&mut self, input: &[u8], on_line: impl FnMut(&[u8])) -> Result<(), FramingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.split(input, on_line).inspect_err(|&error| {
            self.failed = Some(error);
            self.line = Partial::default();
        })
    }

    /// Ends the stream and yields the line that has no line end, if there is one.
    ///
    /// # Errors
    /// The error of an earlier [`feed`](Self::feed).
    pub fn finish(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let tail = std::mem::take(&mut self.line.bytes);
        Ok(Some(trim_json_space(&tail))
            .filter(|tail| !tail.is_empty())
            .map(<[u8]>::to_vec))
    }

    fn split(
        &mut self,
        mut input: &[u8],
        mut on_line: impl FnMut(&[u8]),
    ) -> Result<(), FramingError> {
        while let Some(end) = input.iter().position(|&b| b == b'\n') {
            let (piece, rest) = input.split_at_checked(end).unwrap_or((input, &[]));
            input = rest.get(1..).unwrap_or_default();
            self.line
                .complete(piece, self.limit, |line| match trim_json_space(line) {
                    [] => {}
                    line => on_line(line),
                })?;
        }
        self.line.push(input, self.limit)
    }
}
