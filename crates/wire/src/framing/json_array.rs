use super::{DEFAULT_MAX_MESSAGE_BYTES, FramingError, Nesting, Partial, is_json_space};

/// The elements of one top-level JSON array that arrives in pieces (as Gemini streams its answers).
///
/// An object, array or string is handed out with its last byte, without waiting for the comma.
/// Commas and brackets of the outer array are checked; the inside of an element is not, beyond
/// finding its end.
///
/// ```
/// use tollgate_wire::framing::JsonArraySplitter;
///
/// let mut splitter = JsonArraySplitter::new();
/// let mut elements = Vec::new();
/// splitter.feed(b"[{\"a\": \"]\"}\n, 1", |element| elements.push(element.to_vec()))?;
/// assert_eq!(elements, [b"{\"a\": \"]\"}"]);
/// splitter.feed(b"2]", |element| elements.push(element.to_vec()))?;
/// assert_eq!(elements[1], b"12");
/// splitter.finish()?;
/// # Ok::<(), tollgate_wire::framing::FramingError>(())
/// ```
#[derive(Debug, Clone)]
pub struct JsonArraySplitter {
    limit: usize,
    place: Place,
    nesting: Nesting,
    element: Partial,
    failed: Option<FramingError>,
}

impl Default for JsonArraySplitter {
    fn default() -> Self {
        Self::new()
    }
}

impl JsonArraySplitter {
    /// A splitter for elements of at most [`DEFAULT_MAX_MESSAGE_BYTES`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(DEFAULT_MAX_MESSAGE_BYTES)
    }

    /// A splitter for elements of at most `limit` bytes. The array as a whole has no limit.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        JsonArraySplitter {
            limit,
            place: Place::Outside,
            nesting: Nesting::default(),
            element: Partial::default(),
            failed: None,
        }
    }

    /// Takes the next bytes; `on_element` gets each element that they complete.
    ///
    /// # Errors
    /// [`FramingError::NotAnArray`] when something else than `[` comes first,
    /// [`FramingError::MalformedArray`], [`FramingError::TooLarge`].
    pub fn feed(
        &mut self,
        input: &[u8],
        on_element: impl FnMut(&[u8]),
    ) -> Result<(), FramingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.split(input, on_element).inspect_err(|&error| {
            self.failed = Some(error);
            self.element = Partial::default();
        })
    }

    /// Whether the closing bracket has come.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.place == Place::Done
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`FramingError::Truncated`] unless the array has been closed; the error of an earlier
    /// [`feed`](Self::feed).
    pub fn finish(&mut self) -> Result<(), FramingError> {
        match self.failed {
            Some(error) => Err(error),
            None if self.is_done() => Ok(()),
            None => {
                self.failed = Some(FramingError::Truncated);
                self.element = Partial::default();
                Err(FramingError::Truncated)
            }
        }
    }

    fn split(
        &mut self,
        mut input: &[u8],
        mut on_element: impl FnMut(&[u8]),
    ) -> Result<(), FramingError> {
        while let Some((&byte, rest)) = input.split_first() {
            match self.place {
                Place::Brackets => {
                    let end = input.iter().position(|&byte| {
                        self.nesting.take(byte);
                        self.nesting.is_closed()
                    });
                    let length = end.map_or(input.len(), |end| end.saturating_add(1));
                    input = self.take_element(input, length, end.is_some(), &mut on_element)?;
                    continue;
                }
                Place::Scalar => {
                    // The delimiter isn't part of the element: it is looked at again in the next
                    // place.
                    let end = input
                        .iter()
                        .position(|&b| is_json_space(b) || matches!(b, b',' | b']'));
                    input = self.take_element(
                        input,
                        end.unwrap_or(input.len()),
                        end.is_some(),
                        &mut on_element,
                    )?;
                    continue;
                }
                _ if is_json_space(byte) => {}
                Place::Outside if byte == b'[' => self.place = Place::First,
                Place::Outside => return Err(FramingError::NotAnArray),
                Place::First | Place::AfterElement if byte == b']' => self.place = Place::Done,
                Place::AfterElement if byte == b',' => self.place = Place::AfterComma,
                Place::First | Place::AfterComma if !matches!(byte, b',' | b']' | b'}' | b':') => {
                    self.nesting = Nesting::default();
                    let bracketed = matches!(byte, b'{' | b'[' | b'"');
                    self.place = if bracketed {
                        Place::Brackets
                    } else {
                        Place::Scalar
                    };
                    continue;
                }
                Place::First | Place::AfterComma | Place::AfterElement | Place::Done => {
                    return Err(FramingError::MalformedArray);
                }
            }
            input = rest;
        }
        Ok(())
    }

    /// Takes `length` bytes off `input` for the current element, which they complete or not;
    /// returns the rest.
    fn take_element<'a>(
        &mut self,
        input: &'a [u8],
        length: usize,
        complete: bool,
        on_element: &mut impl FnMut(&[u8]),
    ) -> Result<&'a [u8], FramingError> {
        let (piece, rest) = input.split_at_checked(length).unwrap_or((input, &[]));
        if complete {
            self.element.complete(piece, self.limit, on_element)?;
            self.place = Place::AfterElement;
        } else {
            self.element.push(piece, self.limit)?;
        }
        Ok(rest)
    }
}

/// Where in the array the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the opening bracket.
    Outside,
    /// After the opening bracket.
    First,
    /// In an object, array or string.
    Brackets,
    /// In a number or literal.
    Scalar,
    AfterElement,
    AfterComma,
    /// After the closing bracket.
    Done,
}
