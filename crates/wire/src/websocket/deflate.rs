//! The compression of messages (RFC 7692 section 7.2).

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{PermessageDeflate, Sender, WebSocketError};

/// What a sender takes off the end of each compressed message, and a receiver puts back.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// How much is decompressed at a time.
const STEP: usize = 16 * 1024;

/// Decompresses the messages of one sender.
#[derive(Debug)]
pub struct Inflater {
    /// Made when it is first needed: it holds about 40 KiB, and many connections agree on
    /// compression that is hardly used.
    inflate: Option<Decompress>,
    keeps_context: bool,
}

impl Inflater {
    /// For the messages of `sender`, as the handshake agreed.
    #[must_use]
    pub fn new(agreed: &PermessageDeflate, sender: Sender) -> Self {
        Self {
            inflate: None,
            keeps_context: agreed.context_takeover(sender),
        }
    }

    /// Decompresses a piece of a message and appends it to `out`, which may grow to `limit` bytes.
    ///
    /// # Errors
    /// [`WebSocketError::InvalidDeflate`], [`WebSocketError::TooLarge`]. Nothing can be read after
    /// an error.
    pub fn feed(
        &mut self,
        mut input: &[u8],
        out: &mut Vec<u8>,
        limit: usize,
    ) -> Result<(), WebSocketError> {
        // The largest window reads what any smaller one wrote.
        let inflate = self.inflate.get_or_insert_with(|| Decompress::new(false));
        loop {
            // One byte more than the limit shows that it is passed.
            let room = limit.saturating_add(1).saturating_sub(out.len()).min(STEP);
            let (read, written, len) = (inflate.total_in(), inflate.total_out(), out.len());
            out.resize(len.saturating_add(room), 0);
            let free = out.get_mut(len..).unwrap_or_default();
            let status = inflate.decompress(input, free, FlushDecompress::Sync);
            let read = usize::try_from(inflate.total_in() - read).unwrap_or(usize::MAX);
            let written = usize::try_from(inflate.total_out() - written).unwrap_or(usize::MAX);
            // Also after an error: what came before it is the same however the input was cut.
            out.truncate(len.saturating_add(written));
            if out.len() > limit {
                return Err(WebSocketError::TooLarge { limit });
            }
            let status = status.map_err(|_| WebSocketError::InvalidDeflate)?;
            input = input.get(read..).unwrap_or_default();
            if status == Status::StreamEnd {
                // A block marked as the last one (RFC 7692 section 7.2.3.4): what follows begins anew.
                inflate.reset(false);
                if input.is_empty() {
                    return Ok(());
                }
                continue;
            }
            if input.is_empty() && written < room {
                return Ok(());
            }
            if read == 0 && written == 0 {
                return Err(WebSocketError::InvalidDeflate);
            }
        }
    }

    /// Ends a message.
    ///
    /// # Errors
    /// As [`Inflater::feed`].
    pub fn finish(&mut self, out: &mut Vec<u8>, limit: usize) -> Result<(), WebSocketError> {
        self.feed(&TAIL, out, limit)?;
        if let (false, Some(inflate)) = (self.keeps_context, &mut self.inflate) {
            inflate.reset(false);
        }
        Ok(())
    }
}

/// Compresses messages that are sent in a sender's place.
#[derive(Debug)]
pub struct Deflater {
    /// Made when it is first needed: it holds a quarter of a megabyte. `None` for a window of 256
    /// bytes, which the library can't do.
    deflate: Option<Box<Compress>>,
    window_bits: u8,
    keeps_context: bool,
}

impl Deflater {
    /// For messages in the name of `sender`, as the handshake agreed.
    #[must_use]
    pub fn new(agreed: &PermessageDeflate, sender: Sender) -> Self {
        Self {
            deflate: None,
            window_bits: agreed.window_bits(sender),
            keeps_context: agreed.context_takeover(sender),
        }
    }

    /// Compresses a whole message and appends it to `out`. False where it can't (a window of 256
    /// bytes was agreed on): the message is then sent as it is, which is always allowed.
    #[must_use]
    pub fn message(&mut self, message: &[u8], out: &mut Vec<u8>) -> bool {
        if self.window_bits < 9 {
            return false;
        }
        let bits = self.window_bits.min(15);
        let deflate = self.deflate.get_or_insert_with(|| {
            let level = Compression::fast();
            Box::new(Compress::new_with_window_bits(level, false, bits))
        });
        let start = out.len();
        let mut input = message;
        loop {
            out.reserve(input.len() / 2 + 64);
            let read = deflate.total_in();
            if deflate
                .compress_vec(input, out, FlushCompress::Sync)
                .is_err()
            {
                // Doesn't happen with a state and parameters that are valid.
                out.truncate(start);
                self.deflate = None;
                return false;
            }
            let read = usize::try_from(deflate.total_in() - read).unwrap_or(usize::MAX);
            input = input.get(read..).unwrap_or_default();
            if input.is_empty() && out.len() < out.capacity() {
                break;
            }
        }
        if out.get(start..).is_some_and(|m| m.ends_with(&TAIL)) {
            out.truncate(out.len() - TAIL.len());
        }
        if out.len() == start {
            // RFC 7692 section 7.2.3.6: an empty message is one empty block.
            out.push(0);
        }
        if !self.keeps_context {
            deflate.reset();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inflater() -> Inflater {
        Inflater::new(&PermessageDeflate::default(), Sender::Server)
    }

    #[test]
    fn the_examples_of_rfc_7692_section_7_2_3() {
        let mut inflater = inflater();
        let mut read = |payload: &[u8]| {
            let mut out = Vec::new();
            inflater.feed(payload, &mut out, 100).unwrap();
            inflater.finish(&mut out, 100).unwrap();
            String::from_utf8(out).unwrap()
        };
        let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        assert_eq!(read(&hello), "Hello");
        assert_eq!(read(&[0xf2, 0x00, 0x11, 0x00, 0x00]), "Hello");
        assert_eq!(
            read(&[
                0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00
            ]),
            "Hello"
        );
        // A block with BFINAL.
        assert_eq!(
            read(&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00]),
            "Hello"
        );
        // Two blocks in one message.
        assert_eq!(
            read(&[
                0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00
            ]),
            "Hello"
        );
        assert_eq!(read(&[0x00]), "");
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let mut deflater = Deflater::new(&PermessageDeflate::default(), Sender::Server);
        let mut bomb = Vec::new();
        assert!(deflater.message(&vec![0; 10 << 20], &mut bomb));
        assert!(bomb.len() < 128 * 1024);
        let mut out = Vec::new();
        let error = inflater().feed(&bomb, &mut out, 1 << 20).unwrap_err();
        assert_eq!(error, WebSocketError::TooLarge { limit: 1 << 20 });
        assert!(out.capacity() < 3 << 20);
        let mut out = Vec::new();
        let mut inflater = inflater();
        inflater.feed(&bomb, &mut out, 10 << 20).unwrap();
        inflater.finish(&mut out, 10 << 20).unwrap();
        assert_eq!(out.len(), 10 << 20);
    }

    #[test]
    fn the_context_is_kept_or_forgotten_as_agreed() {
        for forgets in [false, true] {
            let agreed = PermessageDeflate {
                server_no_context_takeover: forgets,
                ..PermessageDeflate::default()
            };
            let mut deflater = Deflater::new(&agreed, Sender::Server);
            let message = b"the same words, and the same words again, are said twice over";
            let (mut first, mut second) = (Vec::new(), Vec::new());
            assert!(deflater.message(message, &mut first));
            assert!(deflater.message(message, &mut second));
            assert_eq!(first == second, forgets);
            assert_eq!(second.len() < first.len() / 2, !forgets);
            let mut inflater = Inflater::new(&agreed, Sender::Server);
            for payload in [&first, &second] {
                let mut out = Vec::new();
                inflater.feed(payload, &mut out, 1000).unwrap();
                inflater.finish(&mut out, 1000).unwrap();
                assert_eq!(out, message);
            }
        }
    }

    #[test]
    fn a_window_of_256_bytes_is_left_alone() {
        let agreed = PermessageDeflate {
            server_max_window_bits: 8,
            ..PermessageDeflate::default()
        };
        let mut out = Vec::new();
        assert!(!Deflater::new(&agreed, Sender::Server).message(b"abc", &mut out));
        assert!(out.is_empty());
    }
}
