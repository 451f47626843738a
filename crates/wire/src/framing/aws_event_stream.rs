use flate2::Crc;

use super::{FramingError, Partial};

/// Total length, length of the headers, CRC-32 of these two: four bytes each, big-endian.
const PRELUDE: usize = 12;
/// The CRC-32 of everything before it.
const MESSAGE_CRC: usize = 4;
/// The format's own limit on the headers of one message.
const MAX_HEADERS: usize = 128 * 1024;
/// The format's own limit on the payload of one message is 16 MiB; with headers and framing.
const DEFAULT_MAX_TOTAL: usize = 16 * 1024 * 1024 + MAX_HEADERS + PRELUDE + MESSAGE_CRC;

/// The value of an event-stream header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderValue {
    /// Types 0 (true) and 1 (false).
    Bool(bool),
    /// Type 2.
    Byte(i8),
    /// Type 3.
    Short(i16),
    /// Type 4.
    Int(i32),
    /// Type 5.
    Long(i64),
    /// Type 6.
    Bytes(Vec<u8>),
    /// Type 7.
    String(String),
    /// Type 8: milliseconds since the Unix epoch.
    Timestamp(i64),
    /// Type 9.
    Uuid([u8; 16]),
}

impl HeaderValue {
    /// The text of a [`HeaderValue::String`].
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            HeaderValue::String(text) => Some(text),
            _ => None,
        }
    }
}

/// One message of an event stream, its checksums verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsEventStreamMessage<'a> {
    /// The headers in their order. Names are case-sensitive; `:event-type`, `:content-type` and
    /// `:message-type` say what the payload is.
    pub headers: Vec<(String, HeaderValue)>,
    /// The payload.
    pub payload: &'a [u8],
}

impl AwsEventStreamMessage<'_> {
    /// The first header of this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&HeaderValue> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value)
    }

    /// Appends the message as it goes over the wire, with lengths and both checksums made anew.
    ///
    /// A message that was read is written back byte for byte.
    ///
    /// # Errors
    /// [`FramingError::InvalidHeaders`] if a name is empty or over 255 bytes, a value over 65 535, or
    /// all headers over 128 KiB; [`FramingError::InvalidLength`] if the message is over 4 GiB.
    /// Nothing is appended then.
    pub fn write_to(&self, out: &mut Vec<u8>) -> Result<(), FramingError> {
        let start = out.len();
        self.try_write(out).inspect_err(|_| out.truncate(start))
    }

    fn try_write(&self, out: &mut Vec<u8>) -> Result<(), FramingError> {
        let mut block = Vec::new();
        for (name, value) in &self.headers {
            put_header(&mut block, name, value).ok_or(FramingError::InvalidHeaders)?;
        }
        if block.len() > MAX_HEADERS {
            return Err(FramingError::InvalidHeaders);
        }
        let total = (PRELUDE + MESSAGE_CRC + block.len()).saturating_add(self.payload.len());
        let lengths = [total, block.len()].map(u32::try_from);
        let [Ok(total), Ok(headers)] = lengths else {
            return Err(FramingError::InvalidLength);
        };
        let mut message = Vec::with_capacity(block.len() + self.payload.len() + 16);
        message.extend_from_slice(&total.to_be_bytes());
        message.extend_from_slice(&headers.to_be_bytes());
        message.extend_from_slice(&crc32(&message).to_be_bytes());
        message.extend_from_slice(&block);
        message.extend_from_slice(self.payload);
        message.extend_from_slice(&crc32(&message).to_be_bytes());
        out.extend_from_slice(&message);
        Ok(())
    }
}

/// `application/vnd.amazon.eventstream`, the framing of streamed AWS answers (Bedrock, Transcribe,
/// S3 Select).
#[derive(Debug, Clone)]
pub struct AwsEventStreamSplitter {
    limit: usize,
    message: Partial,
    /// Total length and length of the headers, once the prelude is in and verified.
    lengths: Option<(usize, usize)>,
    failed: Option<FramingError>,
}

impl Default for AwsEventStreamSplitter {
    fn default() -> Self {
        Self::new()
    }
}

impl AwsEventStreamSplitter {
    /// A splitter with the format's own limits: 16 MiB of payload, 128 KiB of headers.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(DEFAULT_MAX_TOTAL)
    }

    /// A splitter for messages of at most `limit` bytes, framing included. Headers have their 128
    /// KiB in any case.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        AwsEventStreamSplitter {
            limit,
            message: Partial::default(),
            lengths: None,
            failed: None,
        }
    }

    /// Takes the next bytes; `on_message` gets each message that they complete.
    ///
    /// # Errors
    /// [`FramingError::PreludeChecksum`], [`FramingError::MessageChecksum`],
    /// [`FramingError::InvalidLength`], [`FramingError::InvalidHeaders`] (a string that isn't UTF-8
    /// counts), and [`FramingError::TooLarge`] as soon as a length over the limit is announced.
    pub fn feed(
        &mut self,
        input: &[u8],
        on_message: impl FnMut(AwsEventStreamMessage<'_>),
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
        if self.message.len() > 0 {
            self.fail(FramingError::Truncated);
            return Err(FramingError::Truncated);
        }
        Ok(())
    }

    fn fail(&mut self, error: FramingError) {
        self.failed = Some(error);
        self.message = Partial::default();
    }

    fn split(
        &mut self,
        mut input: &[u8],
        mut on_message: impl FnMut(AwsEventStreamMessage<'_>),
    ) -> Result<(), FramingError> {
        loop {
            let (total, headers) = match self.lengths {
                Some(lengths) => lengths,
                None => {
                    if !self.message.fill(&mut input, PRELUDE) {
                        return Ok(());
                    }
                    *self
                        .lengths
                        .insert(parse_prelude(&self.message.bytes, self.limit)?)
                }
            };
            if !self.message.fill(&mut input, total) {
                return Ok(());
            }
            on_message(parse_message(&self.message.bytes, headers)?);
            self.message.clear();
            self.lengths = None;
        }
    }
}

/// Verifies the prelude before its lengths are believed; returns total length and length of the
/// headers.
fn parse_prelude(mut prelude: &[u8], limit: usize) -> Result<(usize, usize), FramingError> {
    let lengths = prelude.get(..8).ok_or(FramingError::InvalidLength)?;
    let checksum = crc32(lengths);
    let total = u32::from_be_bytes(take_array(&mut prelude).ok_or(FramingError::InvalidLength)?);
    let headers = u32::from_be_bytes(take_array(&mut prelude).ok_or(FramingError::InvalidLength)?);
    if take_array(&mut prelude).map(u32::from_be_bytes) != Some(checksum) {
        return Err(FramingError::PreludeChecksum);
    }
    let total = usize::try_from(total).map_err(|_| FramingError::TooLarge { limit })?;
    let headers = usize::try_from(headers).map_err(|_| FramingError::InvalidLength)?;
    if total > limit {
        return Err(FramingError::TooLarge { limit });
    }
    match total.checked_sub(PRELUDE + MESSAGE_CRC) {
        Some(room) if headers <= room && headers <= MAX_HEADERS => Ok((total, headers)),
        _ => Err(FramingError::InvalidLength),
    }
}

/// Takes a whole message apart, whose prelude has been verified.
fn parse_message(
    message: &[u8],
    headers: usize,
) -> Result<AwsEventStreamMessage<'_>, FramingError> {
    let body = message
        .len()
        .checked_sub(MESSAGE_CRC)
        .and_then(|end| message.split_at_checked(end));
    let (covered, mut checksum) = body.ok_or(FramingError::InvalidLength)?;
    if take_array(&mut checksum).map(u32::from_be_bytes) != Some(crc32(covered)) {
        return Err(FramingError::MessageChecksum);
    }
    let parts = covered
        .get(PRELUDE..)
        .and_then(|rest| rest.split_at_checked(headers));
    let (mut block, payload) = parts.ok_or(FramingError::InvalidLength)?;
    let mut headers = Vec::new();
    while !block.is_empty() {
        headers.push(take_header(&mut block).ok_or(FramingError::InvalidHeaders)?);
    }
    Ok(AwsEventStreamMessage { headers, payload })
}

/// Name length (one byte, not zero), name, type, value.
fn take_header(block: &mut &[u8]) -> Option<(String, HeaderValue)> {
    let [length] = take_array(block)?;
    if length == 0 {
        return None;
    }
    let name = String::from_utf8(take(block, usize::from(length))?.to_vec()).ok()?;
    let [kind] = take_array(block)?;
    let value = match kind {
        0 => HeaderValue::Bool(true),
        1 => HeaderValue::Bool(false),
        2 => HeaderValue::Byte(i8::from_be_bytes(take_array(block)?)),
        3 => HeaderValue::Short(i16::from_be_bytes(take_array(block)?)),
        4 => HeaderValue::Int(i32::from_be_bytes(take_array(block)?)),
        5 => HeaderValue::Long(i64::from_be_bytes(take_array(block)?)),
        6 => HeaderValue::Bytes(take_sized(block)?.to_vec()),
        7 => HeaderValue::String(String::from_utf8(take_sized(block)?.to_vec()).ok()?),
        8 => HeaderValue::Timestamp(i64::from_be_bytes(take_array(block)?)),
        9 => HeaderValue::Uuid(take_array(block)?),
        _ => return None,
    };
    Some((name, value))
}

/// The inverse of [`take_header`]; `None` if a length doesn't fit its field.
fn put_header(block: &mut Vec<u8>, name: &str, value: &HeaderValue) -> Option<()> {
    let length = u8::try_from(name.len()).ok().filter(|length| *length > 0)?;
    block.push(length);
    block.extend_from_slice(name.as_bytes());
    let mut put = |kind: u8, bytes: &[u8]| {
        block.push(kind);
        block.extend_from_slice(bytes);
    };
    match value {
        HeaderValue::Bool(true) => put(0, &[]),
        HeaderValue::Bool(false) => put(1, &[]),
        HeaderValue::Byte(value) => put(2, &value.to_be_bytes()),
        HeaderValue::Short(value) => put(3, &value.to_be_bytes()),
        HeaderValue::Int(value) => put(4, &value.to_be_bytes()),
        HeaderValue::Long(value) => put(5, &value.to_be_bytes()),
        HeaderValue::Bytes(value) => {
            put(6, &u16::try_from(value.len()).ok()?.to_be_bytes());
            block.extend_from_slice(value);
        }
        HeaderValue::String(value) => {
            put(7, &u16::try_from(value.len()).ok()?.to_be_bytes());
            block.extend_from_slice(value.as_bytes());
        }
        HeaderValue::Timestamp(value) => put(8, &value.to_be_bytes()),
        HeaderValue::Uuid(value) => put(9, value),
    }
    Some(())
}

fn take<'a>(from: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(taken)
}

fn take_array<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    take(from, N)?.try_into().ok()
}

/// A length of two bytes and as many bytes.
fn take_sized<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u16::from_be_bytes(take_array(from)?);
    take(from, usize::from(length))
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}
