//! UTF-8 that arrives in pieces.

use super::WebSocketError;

/// Checks text that arrives in pieces, which may cut a character.
///
/// ```
/// use tollgate_wire::websocket::Utf8;
///
/// let mut utf8 = Utf8::default();
/// utf8.feed(b"gr\xc3")?;
/// utf8.feed(b"\xbc\xc3\x9f")?;
/// utf8.finish()?;
/// # Ok::<(), tollgate_wire::websocket::WebSocketError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Utf8 {
    /// The start of a character whose end has not arrived.
    cut: [u8; 4],
    len: usize,
}

impl Utf8 {
    /// Takes the next piece.
    ///
    /// # Errors
    /// [`WebSocketError::InvalidUtf8`] as soon as the bytes can't be the start of any text.
    pub fn feed(&mut self, mut piece: &[u8]) -> Result<(), WebSocketError> {
        while self.len > 0 {
            let Some((&next, rest)) = piece.split_first() else {
                return Ok(());
            };
            piece = rest;
            if let Some(free) = self.cut.get_mut(self.len) {
                *free = next;
            }
            self.len += 1;
            let start = self.cut.get(..self.len).unwrap_or_default();
            match std::str::from_utf8(start) {
                Ok(_) => self.len = 0,
                Err(e) if e.error_len().is_none() => {}
                Err(_) => return Err(WebSocketError::InvalidUtf8),
            }
        }
        match std::str::from_utf8(piece) {
            Ok(_) => Ok(()),
            Err(e) if e.error_len().is_none() => {
                let cut = piece.get(e.valid_up_to()..).unwrap_or_default();
                if let Some(to) = self.cut.get_mut(..cut.len()) {
                    to.copy_from_slice(cut);
                    self.len = cut.len();
                }
                Ok(())
            }
            Err(_) => Err(WebSocketError::InvalidUtf8),
        }
    }

    /// Ends the text, and makes ready for the next one.
    ///
    /// # Errors
    /// [`WebSocketError::InvalidUtf8`] where the text ends within a character.
    pub fn finish(&mut self) -> Result<(), WebSocketError> {
        if std::mem::take(&mut self.len) > 0 {
            return Err(WebSocketError::InvalidUtf8);
        }
        Ok(())
    }
}
