//! The start of a TLS connection, read without taking it: records, the ClientHello, and its fingerprints.
//!
//! [`parse_client_hello`] looks at the first bytes of a connection and says what the client asked for, before anything
//! decides whether the connection is intercepted, tunnelled or blocked. It never consumes: a tunnel forwards the very same
//! bytes, and an interception feeds them to the TLS library. The parser is therefore an observer, not a gatekeeper: it
//! refuses what cannot be framed, and reports what is framed but odd in [`ClientHello::anomalies`].
//!
//! Formats: RFC 8446 (TLS 1.3, sections 4.1.2, 4.2 and 5.1), RFC 5246 (TLS 1.2), RFC 6066 (server_name), RFC 7301 (ALPN),
//! RFC 8701 (GREASE), RFC 8879 (compress_certificate), RFC 9849 (Encrypted Client Hello).
//!
//! ```
//! use tollgate_wire::tls::{HelloStatus, parse_client_hello};
//!
//! // The first three bytes of a handshake record: it may become a ClientHello, so the caller reads on.
//! assert!(matches!(parse_client_hello(&[0x16, 0x03, 0x01]), Ok(HelloStatus::Partial)));
//! assert!(parse_client_hello(b"GET / HTTP/1.1\r\n").is_err());
//! ```

mod fingerprint;

use std::collections::HashSet;

use thiserror::Error;

/// The longest ClientHello that is read, in bytes of the handshake message with its four-byte header.
///
/// The largest seen in practice, with two post-quantum key shares and session tickets, stay under 8 KiB.
pub const MAX_HELLO_LEN: usize = 64 * 1024;

/// The largest number of TLS records over which a ClientHello may be spread.
///
/// It admits one byte per record for any hello that a client really sends, and bounds the work of looking again at a
/// prefix that grows byte by byte.
pub const MAX_HELLO_RECORDS: usize = 4096;

/// The most bytes of a connection that [`parse_client_hello`] can ask for before it answers something other than
/// [`HelloStatus::Partial`].
pub const MAX_HELLO_INPUT: usize = MAX_HELLO_LEN + MAX_HELLO_RECORDS * RECORD_HEADER_LEN;

/// Reads the ClientHello at the start of `input`, the bytes of a connection so far, however it is fragmented: one handshake
/// message over several records, one record over several segments.
///
/// Nothing is consumed and nothing is remembered: when the answer is [`HelloStatus::Partial`], call again with the same
/// bytes and more behind them. A prefix costs a walk over its record headers; the hello itself is read once, when it is all
/// there. An answer other than `Partial` stays the same whatever follows: bytes behind the hello are not looked at.
///
/// # Errors
///
/// [`HelloError`], as soon as the bytes cannot become a ClientHello any more.
pub fn parse_client_hello(input: &[u8]) -> Result<HelloStatus, HelloError> {
    let Some(extent) = locate(input)? else {
        return Ok(HelloStatus::Partial);
    };
    let message = reassemble(input, &extent);
    let body = message.get(HANDSHAKE_HEADER_LEN..).unwrap_or_default();
    let mut hello = parse_body(body)?;
    hello.raw_len = extent.raw_len;
    Ok(HelloStatus::Complete(Box::new(hello)))
}

/// What [`parse_client_hello`] found in the bytes so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HelloStatus {
    /// The whole ClientHello.
    Complete(Box<ClientHello>),
    /// The beginning of what may be a ClientHello: more bytes are needed. At most [`MAX_HELLO_INPUT`] in all.
    Partial,
}

/// Why the first bytes of a connection are not a ClientHello that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HelloError {
    /// The connection does not begin with a TLS handshake record. An SSLv2-compatible hello is not one either.
    #[error("not TLS: the connection does not begin with a handshake record")]
    NotTls,
    /// The first handshake message is something other than a ClientHello.
    #[error("not a ClientHello: the connection begins with another handshake message")]
    NotClientHello,
    /// The message announces more than [`MAX_HELLO_LEN`] bytes.
    #[error("the ClientHello is longer than {MAX_HELLO_LEN} bytes")]
    TooLarge,
    /// The message is spread over more than [`MAX_HELLO_RECORDS`] records.
    #[error("the ClientHello is spread over more than {MAX_HELLO_RECORDS} TLS records")]
    TooManyRecords,
    /// A length or a vector inside the records or the message contradicts RFC 8446; the text says which.
    #[error("malformed ClientHello: {0}")]
    Malformed(&'static str),
}

/// What a client says first (RFC 8446 section 4.1.2), in the client's order and with GREASE values left in.
///
/// An extension that is absent leaves its field empty, and so does one whose body breaks its own syntax
/// ([`HelloAnomaly::MalformedExtension`]); [`has_extension`](Self::has_extension) tells them apart. Of an extension that is
/// sent twice, the first counts ([`HelloAnomaly::DuplicateExtension`]).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientHello {
    /// `legacy_version`: 0x0303 for TLS 1.2 and for everything later, which says so in `supported_versions`.
    pub legacy_version: u16,
    /// The client's random.
    pub random: [u8; 32],
    /// The session to resume (TLS 1.2) or the echo of middlebox compatibility (TLS 1.3); at most 32 bytes.
    pub session_id: Vec<u8>,
    /// Cipher suites, best first.
    pub cipher_suites: Vec<u16>,
    /// Compression methods; `[0]` in every current client.
    pub compression_methods: Vec<u8>,
    /// Extension types in the order sent.
    pub extensions: Vec<u16>,
    /// The `host_name` of server_name (RFC 6066): lower case, without its trailing dot, at most 253 bytes of letters,
    /// digits, `-`, `_` and `.`. A name in any other shape is [`HelloAnomaly::InvalidServerName`] and `None`. An IPv4
    /// literal, which RFC 6066 forbids and some clients send, passes as it is.
    pub server_name: Option<String>,
    /// Protocol names of the ALPN offer (RFC 7301), best first; never an empty name.
    pub alpn: Vec<Vec<u8>>,
    /// supported_versions.
    pub supported_versions: Vec<u16>,
    /// supported_groups (elliptic_curves, before RFC 7919).
    pub groups: Vec<u16>,
    /// signature_algorithms.
    pub signature_algorithms: Vec<u16>,
    /// ec_point_formats.
    pub point_formats: Vec<u8>,
    /// The groups for which key_share carries a share.
    pub key_share_groups: Vec<u16>,
    /// Whether pre_shared_key is there: the client resumes a TLS 1.3 session, or knows an external key.
    pub psk: bool,
    /// Whether early_data is there: 0-RTT application data follows the hello.
    pub early_data: bool,
    /// Encrypted Client Hello.
    pub ech: Ech,
    /// Algorithms of compress_certificate (RFC 8879).
    pub compress_certificate: Vec<u16>,
    /// Everything about this hello that a server need not accept, in the order found.
    pub anomalies: Vec<HelloAnomaly>,
    /// Length in bytes of the records that carry the hello, headers included: where the rest of the input begins.
    pub raw_len: usize,
}

/// What a hello says about Encrypted Client Hello (RFC 9849).
///
/// A GREASE offer is made to look like a real one, and cannot be told from it without the server's key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ech {
    /// No encrypted_client_hello extension, or one that cannot be read.
    #[default]
    None,
    /// An outer hello, real or GREASE: the name in `server_name` may not be the one that the client wants.
    Offered {
        /// The key of the ECHConfig that the client used.
        config_id: u8,
        /// HPKE key derivation function.
        kdf_id: u16,
        /// HPKE authenticated encryption.
        aead_id: u16,
    },
    /// The marker of an inner hello, which belongs behind a server that has already decrypted it.
    Inner,
}

/// Something about a ClientHello that can be read past, but not relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HelloAnomaly {
    /// The server_name extension holds a name that is not a DNS name, or more than one (RFC 6066 section 3).
    InvalidServerName,
    /// The body of a known extension breaks its syntax; its field is empty.
    MalformedExtension(u16),
    /// An extension of a type already seen (RFC 8446 section 4.2 forbids it); one entry for each repetition.
    DuplicateExtension(u16),
}

impl ClientHello {
    /// Whether `protocol` (`b"h2"`, `b"http/1.1"` …) is in the ALPN offer.
    pub fn offers_alpn(&self, protocol: &[u8]) -> bool {
        self.alpn.iter().any(|name| name == protocol)
    }

    /// Whether an extension of this type is there, readable or not.
    pub fn has_extension(&self, extension_type: u16) -> bool {
        self.extensions.contains(&extension_type)
    }

    /// The highest version in supported_versions, GREASE aside, or `legacy_version` where that extension names none.
    ///
    /// Drafts of TLS 1.3 (0x7fXX) are higher than its final number, 0x0304; only ancient clients offer them.
    pub fn max_version(&self) -> u16 {
        let offered = self.supported_versions.iter().copied();
        offered
            .filter(|version| !Self::is_grease(*version))
            .max()
            .unwrap_or(self.legacy_version)
    }

    /// Whether a value is one of the sixteen that RFC 8701 reserves to keep servers tolerant: 0x0a0a, 0x1a1a … 0xfafa.
    pub const fn is_grease(value: u16) -> bool {
        let [high, low] = value.to_be_bytes();
        high == low && low & 0x0f == 0x0a
    }
}

const RECORD_HEADER_LEN: usize = 5;
const HANDSHAKE_HEADER_LEN: usize = 4;
const RECORD_TYPE_HANDSHAKE: u8 = 22;
const HANDSHAKE_TYPE_CLIENT_HELLO: u8 = 1;
/// TLSPlaintext.length (RFC 8446 section 5.1).
const MAX_RECORD_LEN: usize = 1 << 14;

/// Extension types (IANA, "TLS ExtensionType Values").
mod extension {
    pub const SERVER_NAME: u16 = 0;
    pub const SUPPORTED_GROUPS: u16 = 10;
    pub const EC_POINT_FORMATS: u16 = 11;
    pub const SIGNATURE_ALGORITHMS: u16 = 13;
    pub const ALPN: u16 = 16;
    pub const COMPRESS_CERTIFICATE: u16 = 27;
    pub const PRE_SHARED_KEY: u16 = 41;
    pub const EARLY_DATA: u16 = 42;
    pub const SUPPORTED_VERSIONS: u16 = 43;
    pub const KEY_SHARE: u16 = 51;
    pub const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
}

/// Where a complete handshake message lies.
struct Extent {
    /// Length of the message, header included.
    message_len: usize,
    /// Length of the records that carry it.
    raw_len: usize,
}

/// Walks the records until the whole first handshake message is there. Judges bytes in the order in which they arrive, so
/// that an answer does not depend on how much of the input is there already.
fn locate(input: &[u8]) -> Result<Option<Extent>, HelloError> {
    let mut header = [0; HANDSHAKE_HEADER_LEN];
    let mut gathered = 0_usize;
    let mut rest = input;
    for record in 0..MAX_HELLO_RECORDS {
        let Some((len, after)) = record_header(rest, record == 0)? else {
            return Ok(None);
        };
        let (fragment, tail) = after.split_at_checked(len).unwrap_or((after, &[]));
        for (slot, byte) in header.iter_mut().skip(gathered).zip(fragment) {
            *slot = *byte;
        }
        let announced = gathered.saturating_add(len);
        gathered = gathered.saturating_add(fragment.len());
        if let Some(message_len) = message_len(header, gathered)? {
            // Nothing may follow a ClientHello under the same keys, so nothing may share its last record.
            if announced > message_len {
                return Err(HelloError::Malformed(
                    "its last record holds more than the message",
                ));
            }
            if gathered == message_len {
                let raw_len = input.len().saturating_sub(tail.len());
                return Ok(Some(Extent {
                    message_len,
                    raw_len,
                }));
            }
        }
        if fragment.len() < len {
            return Ok(None);
        }
        rest = tail;
    }
    if rest.is_empty() {
        return Ok(None);
    }
    Err(HelloError::TooManyRecords)
}

/// The payload length of the record that `bytes` begins with, and what follows its header; `None` when there is no whole
/// header yet.
fn record_header(bytes: &[u8], is_first: bool) -> Result<Option<(usize, &[u8])>, HelloError> {
    let wrong = |reason| match is_first {
        true => HelloError::NotTls,
        false => HelloError::Malformed(reason),
    };
    if bytes.first().is_some_and(|t| *t != RECORD_TYPE_HANDSHAKE) {
        return Err(wrong("a record of another type interrupts it"));
    }
    // legacy_record_version is to be ignored (RFC 8446 section 5.1), within what anything that calls itself TLS has used.
    if bytes.get(1).is_some_and(|major| *major != 3) || bytes.get(2).is_some_and(|minor| *minor > 4)
    {
        return Err(wrong("a record of another protocol version interrupts it"));
    }
    let Some((&[_, _, _, high, low], after)) = bytes.split_first_chunk::<RECORD_HEADER_LEN>()
    else {
        return Ok(None);
    };
    match usize::from(u16::from_be_bytes([high, low])) {
        0 => Err(HelloError::Malformed("an empty handshake record")),
        len if len > MAX_RECORD_LEN => {
            Err(HelloError::Malformed("a record longer than 2^14 bytes"))
        }
        len => Ok(Some((len, after))),
    }
}

/// The length of the handshake message with its header, once `gathered` bytes of it are enough to tell.
fn message_len(
    header: [u8; HANDSHAKE_HEADER_LEN],
    gathered: usize,
) -> Result<Option<usize>, HelloError> {
    let [message_type, a, b, c] = header;
    if gathered > 0 && message_type != HANDSHAKE_TYPE_CLIENT_HELLO {
        return Err(HelloError::NotClientHello);
    }
    if gathered < HANDSHAKE_HEADER_LEN {
        return Ok(None);
    }
    // 24 bits, so the sum fits even where usize has 32.
    let body_len = u32::from_be_bytes([0, a, b, c]) as usize;
    match body_len.saturating_add(HANDSHAKE_HEADER_LEN) {
        len if len > MAX_HELLO_LEN => Err(HelloError::TooLarge),
        len => Ok(Some(len)),
    }
}

/// Joins the payloads of the records that [`locate`] has walked.
fn reassemble(input: &[u8], extent: &Extent) -> Vec<u8> {
    let mut message = Vec::with_capacity(extent.message_len);
    let mut rest = input.get(..extent.raw_len).unwrap_or_default();
    while let Some((&[_, _, _, high, low], after)) = rest.split_first_chunk::<RECORD_HEADER_LEN>() {
        let len = usize::from(u16::from_be_bytes([high, low]));
        let (fragment, tail) = after.split_at_checked(len).unwrap_or((after, &[]));
        message.extend_from_slice(fragment);
        rest = tail;
    }
    message
}

fn parse_body(body: &[u8]) -> Result<ClientHello, HelloError> {
    use HelloError::Malformed;

    let mut reader = Reader(body);
    let mut hello = ClientHello {
        legacy_version: reader.u16().ok_or(Malformed("no version"))?,
        random: reader.array().ok_or(Malformed("no random"))?,
        ..ClientHello::default()
    };
    hello.session_id = reader
        .vec8()
        .filter(|id| id.len() <= 32)
        .ok_or(Malformed("session_id"))?
        .to_vec();
    hello.cipher_suites = reader
        .vec16()
        .and_then(u16_list)
        .ok_or(Malformed("cipher_suites"))?;
    hello.compression_methods = reader
        .vec8()
        .filter(|methods| !methods.is_empty())
        .ok_or(Malformed("compression_methods"))?
        .to_vec();
    // Before TLS 1.2 a hello may end here, without so much as an empty list of extensions.
    if reader.is_empty() {
        return Ok(hello);
    }
    let extensions = reader.vec16().filter(|_| reader.is_empty());
    let mut extensions = Reader(extensions.ok_or(Malformed("length of the extensions"))?);
    let mut seen = HashSet::new();
    while !extensions.is_empty() {
        let (extension_type, data) = extensions
            .u16()
            .and_then(|kind| Some((kind, extensions.vec16()?)))
            .ok_or(Malformed("length of an extension"))?;
        hello.extensions.push(extension_type);
        if !seen.insert(extension_type) {
            let anomaly = HelloAnomaly::DuplicateExtension(extension_type);
            hello.anomalies.push(anomaly);
        } else if read_extension(&mut hello, extension_type, data).is_none() {
            let anomaly = HelloAnomaly::MalformedExtension(extension_type);
            hello.anomalies.push(anomaly);
        }
    }
    Ok(hello)
}

/// Reads an extension into its field; `None`, and the field untouched, when its body breaks its syntax.
fn read_extension(hello: &mut ClientHello, extension_type: u16, data: &[u8]) -> Option<()> {
    match extension_type {
        extension::SERVER_NAME => match host_names(data)?.as_slice() {
            [] => {}
            [name] if let Some(name) = dns_name(name) => hello.server_name = Some(name),
            _ => hello.anomalies.push(HelloAnomaly::InvalidServerName),
        },
        extension::SUPPORTED_GROUPS => hello.groups = u16_list(Reader::only_vec16(data)?)?,
        extension::EC_POINT_FORMATS => hello.point_formats = Reader::only_vec8(data)?.to_vec(),
        extension::SIGNATURE_ALGORITHMS => {
            hello.signature_algorithms = u16_list(Reader::only_vec16(data)?)?;
        }
        extension::ALPN => hello.alpn = protocol_names(data)?,
        extension::COMPRESS_CERTIFICATE => {
            hello.compress_certificate = u16_list(Reader::only_vec8(data)?)?;
        }
        extension::PRE_SHARED_KEY => hello.psk = true,
        extension::EARLY_DATA => hello.early_data = true,
        extension::SUPPORTED_VERSIONS => {
            hello.supported_versions = u16_list(Reader::only_vec8(data)?)?;
        }
        extension::KEY_SHARE => hello.key_share_groups = key_share_groups(data)?,
        extension::ENCRYPTED_CLIENT_HELLO => hello.ech = encrypted_client_hello(data)?,
        _ => {}
    }
    Some(())
}

/// The names of type host_name in a ServerNameList (RFC 6066 section 3).
fn host_names(data: &[u8]) -> Option<Vec<&[u8]>> {
    const HOST_NAME: u8 = 0;
    let mut list = Reader(Reader::only_vec16(data)?);
    let mut names = Vec::new();
    // `ServerName server_name_list<1..2^16-1>`
    loop {
        let (name_type, name) = (list.u8()?, list.vec16()?);
        if name_type == HOST_NAME {
            names.push(name);
        }
        if list.is_empty() {
            return Some(names);
        }
    }
}

/// A DNS name in the form in which names are compared: lower case, no trailing dot. `None` for anything else.
fn dns_name(name: &[u8]) -> Option<String> {
    const MAX_NAME_LEN: usize = 253;
    const MAX_LABEL_LEN: usize = 63;
    let name = name.strip_suffix(b".").unwrap_or(name);
    let valid = name.len() <= MAX_NAME_LEN
        && name.split(|byte| *byte == b'.').all(|label| {
            // An underscore is no host name, but is in use, and harmless.
            let valid = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=MAX_LABEL_LEN).contains(&label.len()) && label.iter().all(valid)
        });
    valid.then(|| {
        name.iter()
            .map(|byte| char::from(byte.to_ascii_lowercase()))
            .collect()
    })
}

/// ProtocolNameList (RFC 7301 section 3.1): at least one name, none of them empty.
fn protocol_names(data: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut list = Reader(Reader::only_vec16(data)?);
    let mut names = Vec::new();
    loop {
        let name = list.vec8().filter(|name| !name.is_empty())?;
        names.push(name.to_vec());
        if list.is_empty() {
            return Some(names);
        }
    }
}

/// KeyShareClientHello (RFC 8446 section 4.2.8). No share at all is a request for a HelloRetryRequest, and legal.
fn key_share_groups(data: &[u8]) -> Option<Vec<u16>> {
    let mut list = Reader(Reader::only_vec16(data)?);
    let mut groups = Vec::new();
    while !list.is_empty() {
        groups.push(list.u16()?);
        list.vec16().filter(|share| !share.is_empty())?;
    }
    Some(groups)
}

/// ECHClientHello (RFC 9849 section 5).
fn encrypted_client_hello(data: &[u8]) -> Option<Ech> {
    const OUTER: u8 = 0;
    const INNER: u8 = 1;
    let mut reader = Reader(data);
    let ech = match reader.u8()? {
        OUTER => {
            let (kdf_id, aead_id) = (reader.u16()?, reader.u16()?);
            let config_id = reader.u8()?;
            let _encapsulated_key = reader.vec16()?;
            let _payload = reader.vec16().filter(|payload| !payload.is_empty())?;
            Ech::Offered {
                config_id,
                kdf_id,
                aead_id,
            }
        }
        INNER => Ech::Inner,
        _ => return None,
    };
    reader.is_empty().then_some(ech)
}

/// A vector of 16-bit values: not empty, as every one in a ClientHello has at least one element.
fn u16_list(data: &[u8]) -> Option<Vec<u16>> {
    let (pairs, odd) = data.as_chunks::<2>();
    if pairs.is_empty() || !odd.is_empty() {
        return None;
    }
    Some(pairs.iter().copied().map(u16::from_be_bytes).collect())
}

/// Takes TLS presentation-language items (RFC 8446 section 3) from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The contents of a vector with an 8-bit length that fills all of `data`, and is not empty.
    fn only_vec8(data: &'a [u8]) -> Option<&'a [u8]> {
        let mut reader = Self(data);
        let vector = reader.vec8()?;
        (reader.is_empty() && !vector.is_empty()).then_some(vector)
    }

    /// The contents of a vector with a 16-bit length that fills all of `data`.
    fn only_vec16(data: &'a [u8]) -> Option<&'a [u8]> {
        let mut reader = Self(data);
        let vector = reader.vec16()?;
        reader.is_empty().then_some(vector)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn vec8(&mut self) -> Option<&'a [u8]> {
        let len = self.u8()?;
        self.take(usize::from(len))
    }

    fn vec16(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }
}

// The rest of the tests, which build whole hellos, are in `tests/tls_hello`.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grease_is_sixteen_values() {
        let grease: Vec<u16> = (0..=u16::MAX)
            .filter(|v| ClientHello::is_grease(*v))
            .collect();
        let expected: Vec<u16> = (0..16).map(|n| n * 0x1010 + 0x0a0a).collect();
        assert_eq!(grease, expected);
    }

    #[test]
    fn dns_names_are_normalised_or_refused() {
        let long_label = "a".repeat(63);
        let longest = [long_label.as_str(); 4].join(".");
        let longest = longest.get(..253).unwrap();
        for (name, expected) in [
            ("example.com", Some("example.com")),
            ("EXAMPLE.Com.", Some("example.com")),
            ("_dmarc.example-1.com", Some("_dmarc.example-1.com")),
            ("localhost", Some("localhost")),
            ("192.0.2.1", Some("192.0.2.1")),
            (longest, Some(longest)),
            ("", None),
            (".", None),
            ("a..b", None),
            (".a", None),
            ("a.b..", None),
            ("::1", None),
            ("exa mple.com", None),
            ("a/b", None),
            ("a\0.com", None),
            ("bücher.example", None),
            (&format!("{long_label}a.com"), None),
            (&format!("{longest}a"), None),
        ] {
            assert_eq!(dns_name(name.as_bytes()).as_deref(), expected, "{name:?}");
        }
    }

    #[test]
    fn max_version_ignores_grease_and_falls_back() {
        let mut hello = ClientHello {
            legacy_version: 0x0303,
            ..ClientHello::default()
        };
        assert_eq!(hello.max_version(), 0x0303);
        hello.supported_versions = vec![0xdada, 0x0303, 0x0304, 0x0302];
        assert_eq!(hello.max_version(), 0x0304);
        hello.supported_versions = vec![0xdada];
        assert_eq!(hello.max_version(), 0x0303);
    }
}
