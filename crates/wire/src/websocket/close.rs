//! Close frames.

use super::{MAX_CONTROL_PAYLOAD, WebSocketError};

/// What a close frame says (RFC 6455 section 5.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close<'a> {
    /// Why; `None` where the frame says nothing.
    pub code: Option<u16>,
    /// The same in words, for a log.
    pub reason: &'a str,
}

impl<'a> Close<'a> {
    /// Reads the payload of a close frame.
    ///
    /// # Errors
    /// [`WebSocketError::InvalidClose`] for half a code and for one that may not be sent,
    /// [`WebSocketError::InvalidUtf8`] for a reason that is no text.
    pub fn parse(payload: &'a [u8]) -> Result<Self, WebSocketError> {
        let Some((code, reason)) = payload.split_first_chunk::<2>() else {
            return if payload.is_empty() {
                Ok(Self {
                    code: None,
                    reason: "",
                })
            } else {
                Err(WebSocketError::InvalidClose)
            };
        };
        let code = u16::from_be_bytes(*code);
        if !is_valid_close_code(code) {
            return Err(WebSocketError::InvalidClose);
        }
        let reason = std::str::from_utf8(reason).map_err(|_| WebSocketError::InvalidUtf8)?;
        Ok(Self {
            code: Some(code),
            reason,
        })
    }
}

/// Whether a close frame may carry this code: those of RFC 6455 section 7.4.1 and of the registry
/// that may stand in a frame, and those for libraries (3000 to 3999) and applications (4000 to 4999).
#[must_use]
pub fn is_valid_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// The payload of a close frame with this code and reason; the reason is cut to what fits.
#[must_use]
pub fn write_close(code: u16, reason: &str) -> Vec<u8> {
    let mut end = reason.len().min(MAX_CONTROL_PAYLOAD - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(reason.as_bytes().get(..end).unwrap_or_default());
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_that_may_be_sent_are_read() {
        let parse = |code: u16| Close::parse(&code.to_be_bytes()).map(|c| c.code);
        for code in [1000, 1001, 1003, 1007, 1011, 1012, 1014, 3000, 4999] {
            assert_eq!(parse(code), Ok(Some(code)));
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
            assert_eq!(parse(code), Err(WebSocketError::InvalidClose));
        }
        assert_eq!(Close::parse(b"").map(|c| c.code), Ok(None));
        assert_eq!(Close::parse(&[3]), Err(WebSocketError::InvalidClose));
        assert_eq!(
            Close::parse(&[3, 232, 0xff]),
            Err(WebSocketError::InvalidUtf8)
        );
    }

    #[test]
    fn a_reason_is_cut_at_a_character() {
        let payload = write_close(1000, &"ü".repeat(100));
        assert_eq!(payload.len(), 124);
        assert_eq!(
            Close::parse(&payload).unwrap().reason,
            "ü".repeat(61).as_str()
        );
    }
}
