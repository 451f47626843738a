//! DNS messages (RFC 1035), as far as a proxy for HTTP has to know them: the question, for the record, and HTTPS and SVCB
//! records (RFC 9460) without what would take a client out of its sight.
//!
//! A message is what one UDP datagram or one DoH body holds; over TCP its two bytes of length stand before it.
//!
//! # How a record is changed
//!
//! Names in a message point back to earlier names by their offset, also from within records whose type nobody knows here.
//! If a record became shorter, every pointer past it would be wrong, and not all could be found. So the length of nothing
//! changes, and neither does the length of the message:
//!
//! * `ech` becomes a parameter of as many bytes, all zero, with a key of the private-use range. RFC 9460 section 8 has
//!   clients ignore keys that they don't know. If `ech` was `mandatory`, it isn't any more, and the filler has the bytes.
//! * `h3` and its like in `alpn` become names of the same length that RFC 8701 reserves to stand for nothing (longer ones are
//!   made the same way). `no-default-alpn` stays: a server that can do nothing but HTTP/3 is one that the client can't use
//!   then, and it goes on without the record, as RFC 9460 section 3 says.
//!
//! The AD bit is taken back, because what it vouches for has changed. An RRSIG over the record stays and no longer
//! verifies: a client that verifies signatures itself notices the change with or without it.
//!
//! ```
//! use tollgate_wire::dns::{self, Strip};
//!
//! // An HTTPS record of the root: priority 1, target ".", alpn=h3,h2.
//! let mut answer = *b"\0\0\x80\0\0\0\0\x01\0\0\0\0\0\0\x41\0\x01\0\0\x0e\x10\0\x0d\0\x01\0\0\x01\0\x06\x02h3\x02h2";
//! assert!(dns::strip(&mut answer, Strip::ALL)?);
//! assert!(answer.ends_with(b"\x02\x0a\x0a\x02h2"));
//! # Ok::<(), tollgate_wire::dns::DnsError>(())
//! ```

use std::fmt;

use thiserror::Error;

use crate::alt_svc::is_h3_alpn;
use crate::reader::Reader;

/// The longest message: what the length before a message over TCP can say.
pub const MAX_MESSAGE_LEN: usize = 65_535;

const SVCB: u16 = 64;
const HTTPS: u16 = 65;

/// Parameters of a service (RFC 9460 section 14.3.2).
const KEY_MANDATORY: u16 = 0;
const KEY_ALPN: u16 = 1;
const KEY_ECH: u16 = 5;
/// The keys for private use.
const PRIVATE_KEYS: std::ops::RangeInclusive<u16> = 65_280..=65_534;

/// What [`strip`] takes out of HTTPS and SVCB records. Address hints and everything else stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Strip {
    /// The keys of Encrypted Client Hello.
    pub ech: bool,
    /// `h3`, `h3-…` and `hq…` among the protocols.
    pub h3: bool,
}

impl Strip {
    /// Everything.
    pub const ALL: Self = Self {
        ech: true,
        h3: true,
    };
}

/// Takes `what` out of every HTTPS and SVCB record of a response, in place; the module's text says how. Whether
/// anything was taken out. Queries, and messages with another opcode than QUERY, are left alone.
///
/// # Errors
///
/// [`DnsError`]; the message is then unchanged. A truncated response (TC) normally ends behind a whole record and is no
/// error. A caller who must be sure that nothing gets past drops a message that is one.
pub fn strip(message: &mut [u8], what: Strip) -> Result<bool, DnsError> {
    let mut edits = Vec::new();
    let mut reader = Reader::new(message);
    let header = Header::read(&mut reader, message)?;
    if !header.is_response() || header.opcode() != 0 {
        return Ok(false);
    }
    for _ in 0..header.questions {
        skip_name(&mut reader)?;
        reader.array::<4>().ok_or(DnsError::Truncated)?;
    }
    for _ in 0..header.records {
        skip_name(&mut reader)?;
        let kind = reader.u16().ok_or(DnsError::Truncated)?;
        // Class and time to live.
        reader.array::<6>().ok_or(DnsError::Truncated)?;
        let data = reader.sized_u16().ok_or(DnsError::Truncated)?;
        if kind == SVCB || kind == HTTPS {
            let parameters = service_parameters(data)?;
            if let Some(stripped) = strip_parameters(parameters, what)? {
                // The parameters are the last thing in their record.
                let end = message.len().saturating_sub(reader.rest().len());
                edits.push((end, stripped));
            }
        }
    }
    for (end, stripped) in &edits {
        let start = end.saturating_sub(stripped.len());
        if let Some(parameters) = message.get_mut(start..*end)
            && parameters.len() == stripped.len()
        {
            parameters.copy_from_slice(stripped);
        }
    }
    if !edits.is_empty()
        && let Some(flags) = message.get_mut(3)
    {
        *flags &= !AUTHENTIC_DATA;
    }
    Ok(!edits.is_empty())
}

/// Reads the first question of a query or response; `None` if it has none.
///
/// ```
/// use tollgate_wire::dns;
///
/// let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\0\0\x41\0\x01";
/// let question = dns::first_question(query)?.expect("a question");
/// assert_eq!(question.to_string(), "www.example HTTPS");
/// # Ok::<(), tollgate_wire::dns::DnsError>(())
/// ```
///
/// # Errors
///
/// [`DnsError`]. What follows the question is not looked at.
pub fn first_question(message: &[u8]) -> Result<Option<Question>, DnsError> {
    let mut reader = Reader::new(message);
    if Header::read(&mut reader, message)?.questions == 0 {
        return Ok(None);
    }
    let name = read_name(&mut reader)?;
    let (Some(kind), Some(class)) = (reader.u16(), reader.u16()) else {
        return Err(DnsError::Truncated);
    };
    Ok(Some(Question { name, kind, class }))
}

/// What a message asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// The name as RFC 1035 section 5.1 writes it, in the sender's case, without the dot at its end (the root is `.`): a
    /// dot or backslash within a label has a backslash before it, bytes that aren't printable ASCII are `\DDD`. At most
    /// 1012 bytes.
    pub name: String,
    /// The type of the records, as its number: 1 is A, 28 AAAA, 65 HTTPS.
    pub kind: u16,
    /// The class; 1 is the Internet.
    pub class: u16,
}

/// Name and type: `example.com AAAA`. A type that has no name here is `TYPE123` (RFC 3597).
impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            1 => "A",
            2 => "NS",
            5 => "CNAME",
            6 => "SOA",
            12 => "PTR",
            15 => "MX",
            16 => "TXT",
            28 => "AAAA",
            33 => "SRV",
            35 => "NAPTR",
            39 => "DNAME",
            43 => "DS",
            46 => "RRSIG",
            47 => "NSEC",
            48 => "DNSKEY",
            50 => "NSEC3",
            52 => "TLSA",
            SVCB => "SVCB",
            HTTPS => "HTTPS",
            252 => "AXFR",
            255 => "ANY",
            257 => "CAA",
            other => return write!(f, "{} TYPE{other}", self.name),
        };
        write!(f, "{} {kind}", self.name)
    }
}

/// Why a DNS message can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DnsError {
    /// More than [`MAX_MESSAGE_LEN`] bytes.
    #[error("the DNS message is longer than {MAX_MESSAGE_LEN} bytes")]
    TooLong,
    /// The message ends before the questions and records that it announces.
    #[error("the DNS message ends too early")]
    Truncated,
    /// A name with a label of an unknown kind, or of more than 255 bytes.
    #[error("invalid name in a DNS message")]
    Name,
    /// The data of an HTTPS or SVCB record breaks RFC 9460.
    #[error("malformed HTTPS or SVCB record")]
    Service,
}

/// In the fourth byte of the header.
const AUTHENTIC_DATA: u8 = 0x20;

struct Header {
    /// The first byte of the flags.
    flags: u8,
    questions: u16,
    /// Answers, authorities and additional records: at most three times 65 535.
    records: u32,
}

impl Header {
    fn read(reader: &mut Reader<'_>, message: &[u8]) -> Result<Self, DnsError> {
        if message.len() > MAX_MESSAGE_LEN {
            return Err(DnsError::TooLong);
        }
        let Some([_, _, flags, _, q1, q2, a1, a2, n1, n2, x1, x2]) = reader.array() else {
            return Err(DnsError::Truncated);
        };
        let sections = [[a1, a2], [n1, n2], [x1, x2]];
        let counts = sections.map(|count| u32::from(u16::from_be_bytes(count)));
        Ok(Self {
            flags,
            questions: u16::from_be_bytes([q1, q2]),
            records: counts.into_iter().fold(0, u32::saturating_add),
        })
    }

    fn is_response(&self) -> bool {
        self.flags & 0x80 != 0
    }

    fn opcode(&self) -> u8 {
        self.flags >> 3 & 0x0f
    }
}

/// The next label of a name.
enum Label<'a> {
    Text(&'a [u8]),
    /// Two bytes that stand for the rest of the name.
    Pointer,
    /// The end of the name.
    Root,
}

fn next_label<'a>(reader: &mut Reader<'a>) -> Result<Label<'a>, DnsError> {
    match reader.rest().first() {
        None => Err(DnsError::Truncated),
        Some(0xc0..) => match reader.take(2) {
            Some(_) => Ok(Label::Pointer),
            None => Err(DnsError::Truncated),
        },
        Some(0x40..) => Err(DnsError::Name),
        Some(_) => match reader.sized_u8() {
            Some([]) => Ok(Label::Root),
            Some(label) => Ok(Label::Text(label)),
            None => Err(DnsError::Truncated),
        },
    }
}

/// Skips a name. A pointer ends it where it stands, wherever it leads.
fn skip_name(reader: &mut Reader<'_>) -> Result<(), DnsError> {
    let mut len = 0usize;
    while let Label::Text(label) = next_label(reader)? {
        // With the length before each label, and the root's.
        len = len.saturating_add(label.len()).saturating_add(1);
        if len >= 255 {
            return Err(DnsError::Name);
        }
    }
    Ok(())
}

/// Reads a name that nothing stands before: a pointer could lead nowhere.
fn read_name(reader: &mut Reader<'_>) -> Result<String, DnsError> {
    let mut ahead = *reader;
    skip_name(&mut ahead)?;
    let mut name = String::new();
    loop {
        match next_label(reader)? {
            Label::Pointer => return Err(DnsError::Name),
            Label::Root if name.is_empty() => return Ok(".".to_owned()),
            Label::Root => return Ok(name),
            Label::Text(label) => {
                if !name.is_empty() {
                    name.push('.');
                }
                for byte in label {
                    match byte {
                        b'.' | b'\\' => name.extend(['\\', char::from(*byte)]),
                        0x21..=0x7e => name.push(char::from(*byte)),
                        _ => name.push_str(&format!("\\{byte:03}")),
                    }
                }
            }
        }
    }
}

/// The parameters of an HTTPS or SVCB record: what stands behind its priority and target name.
fn service_parameters(data: &[u8]) -> Result<&[u8], DnsError> {
    let mut reader = Reader::new(data);
    reader.u16().ok_or(DnsError::Service)?;
    skip_name(&mut reader).map_err(|_| DnsError::Service)?;
    Ok(reader.rest())
}

/// The parameters without `what`, in as many bytes; `None` if there is nothing to take out.
fn strip_parameters(parameters: &[u8], what: Strip) -> Result<Option<Vec<u8>>, DnsError> {
    let mut kept = read_parameters(parameters)?;
    let mut changed = false;
    if what.h3
        && let Some((_, alpn)) = kept.iter_mut().find(|(key, _)| *key == KEY_ALPN)
        && let Some(stripped) = strip_alpn(alpn)?
    {
        *alpn = stripped;
        changed = true;
    }
    if what.ech && kept.iter().any(|(key, _)| *key == KEY_ECH) {
        kept.retain(|(key, _)| *key != KEY_ECH);
        strip_mandatory(&mut kept)?;
        add_filler(&mut kept, parameters.len())?;
        changed = true;
    }
    if !changed {
        return Ok(None);
    }
    let mut stripped = Vec::with_capacity(parameters.len());
    for (key, value) in &kept {
        let len = u16::try_from(value.len()).map_err(|_| DnsError::Service)?;
        stripped.extend(key.to_be_bytes());
        stripped.extend(len.to_be_bytes());
        stripped.extend_from_slice(value);
    }
    // Holds by construction; a record of another length would break the message.
    if stripped.len() == parameters.len() {
        Ok(Some(stripped))
    } else {
        Err(DnsError::Service)
    }
}

/// Keys in strictly ascending order, with their values.
type Parameters = Vec<(u16, Vec<u8>)>;

/// What a parameter has before its value: key and length.
const PARAMETER_HEAD: usize = 4;

fn read_parameters(bytes: &[u8]) -> Result<Parameters, DnsError> {
    let mut reader = Reader::new(bytes);
    let mut parameters = Parameters::new();
    while !reader.is_empty() {
        let (Some(key), Some(value)) = (reader.u16(), reader.sized_u16()) else {
            return Err(DnsError::Service);
        };
        if parameters.last().is_some_and(|(last, _)| *last >= key) {
            return Err(DnsError::Service);
        }
        parameters.push((key, value.to_vec()));
    }
    Ok(parameters)
}

/// A list of protocols with a reserved name in the place of each that stands for HTTP/3; `None` if there is none.
fn strip_alpn(alpn: &[u8]) -> Result<Option<Vec<u8>>, DnsError> {
    let mut reader = Reader::new(alpn);
    let mut stripped = Vec::with_capacity(alpn.len());
    let mut reserved = RESERVED_ALPN.iter().cycle();
    let mut changed = false;
    while !reader.is_empty() {
        let rest = reader.rest();
        let name = reader.sized_u8().filter(|name| !name.is_empty());
        let name = name.ok_or(DnsError::Service)?;
        stripped.extend(rest.first());
        if is_h3_alpn(&name.to_ascii_lowercase()) {
            let filler = reserved.next().copied().unwrap_or_default();
            stripped.extend(name.iter().map(|_| filler));
            changed = true;
        } else {
            stripped.extend_from_slice(name);
        }
    }
    Ok(changed.then_some(stripped))
}

/// Two of any of these are a protocol name that RFC 8701 reserves.
const RESERVED_ALPN: [u8; 16] = [
    0x0a, 0x1a, 0x2a, 0x3a, 0x4a, 0x5a, 0x6a, 0x7a, 0x8a, 0x9a, 0xaa, 0xba, 0xca, 0xda, 0xea, 0xfa,
];

/// Takes `ech` off the list of keys that a client has to know; a list that is empty then goes.
fn strip_mandatory(parameters: &mut Parameters) -> Result<(), DnsError> {
    let Some((KEY_MANDATORY, mandatory)) = parameters.first_mut() else {
        return Ok(());
    };
    if mandatory.is_empty() || !mandatory.len().is_multiple_of(2) {
        return Err(DnsError::Service);
    }
    let keys = mandatory.chunks_exact(2);
    let kept = keys.filter(|key| *key != KEY_ECH.to_be_bytes());
    *mandatory = kept.flatten().copied().collect();
    if mandatory.is_empty() {
        parameters.remove(0);
    }
    Ok(())
}

/// Adds a parameter that means nothing, so that all together have `len` bytes again.
fn add_filler(parameters: &mut Parameters, len: usize) -> Result<(), DnsError> {
    let used = parameters
        .iter()
        .map(|(_, value)| PARAMETER_HEAD.saturating_add(value.len()))
        .fold(0, usize::saturating_add);
    let missing = len
        .checked_sub(used.saturating_add(PARAMETER_HEAD))
        .ok_or(DnsError::Service)?;
    // The highest key that is free. That all 255 are taken does not happen in earnest.
    let free = PRIVATE_KEYS
        .rev()
        .find(|candidate| !parameters.iter().any(|(key, _)| key == candidate))
        .ok_or(DnsError::Service)?;
    let place = parameters.partition_point(|(key, _)| *key < free);
    parameters.insert(place, (free, vec![0; missing]));
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUESTION: &[u8] = b"\x07example\x03com\0\0\x41\0\x01";

    fn message(flags: [u8; 2], sections: [&[Vec<u8>]; 3]) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, flags[0], flags[1], 0, 1];
        for records in sections {
            message.extend(u16::try_from(records.len()).unwrap().to_be_bytes());
        }
        message.extend(QUESTION);
        message.extend(sections.concat().concat());
        message
    }

    fn response(records: &[Vec<u8>]) -> Vec<u8> {
        message([0x81, 0xa0], [records, &[], &[]])
    }

    /// A record whose name is a pointer to the question's.
    fn record(kind: u16, data: &[u8]) -> Vec<u8> {
        let mut record = vec![0xc0, 12];
        record.extend(kind.to_be_bytes());
        record.extend(*b"\0\x01\0\0\x01\x2c");
        record.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        record.extend(data);
        record
    }

    fn parameter(key: u16, value: &[u8]) -> Vec<u8> {
        let mut parameter = key.to_be_bytes().to_vec();
        parameter.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
        parameter.extend(value);
        parameter
    }

    /// Priority 1, target ".", and these parameters.
    fn https(parameters: &[Vec<u8>]) -> Vec<u8> {
        record(HTTPS, &[&b"\0\x01\0"[..], &parameters.concat()].concat())
    }

    fn stripped(records: &[Vec<u8>]) -> Vec<u8> {
        let mut message = response(records);
        assert_eq!(strip(&mut message, Strip::ALL), Ok(true));
        message
    }

    /// What stripping makes of a record is this one, and AD is gone.
    fn becomes(before: &[Vec<u8>], after: &[Vec<u8>]) {
        let expected = message([0x81, 0x80], [&[https(after)], &[], &[]]);
        assert_eq!(
            stripped(&[https(before)]).escape_ascii().to_string(),
            expected.escape_ascii().to_string()
        );
    }

    const HINTS: &[u8] = b"\xc0\x00\x02\x01";

    #[test]
    fn ech_becomes_a_parameter_without_a_meaning() {
        becomes(
            &[
                parameter(1, b"\x02h2"),
                parameter(4, HINTS),
                parameter(5, b"config"),
                parameter(6, &[1; 16]),
            ],
            &[
                parameter(1, b"\x02h2"),
                parameter(4, HINTS),
                parameter(6, &[1; 16]),
                parameter(65_534, &[0; 6]),
            ],
        );
        becomes(&[parameter(5, b"")], &[parameter(65_534, b"")]);
        becomes(
            &[
                parameter(5, b"ab"),
                parameter(65_280, b"x"),
                parameter(65_534, b"y"),
            ],
            &[
                parameter(65_280, b"x"),
                parameter(65_533, b"\0\0"),
                parameter(65_534, b"y"),
            ],
        );
    }

    #[test]
    fn what_was_mandatory_is_so_no_more() {
        becomes(
            &[
                parameter(0, b"\0\x01\0\x05"),
                parameter(1, b"\x02h2"),
                parameter(5, b"ab"),
            ],
            &[
                parameter(0, b"\0\x01"),
                parameter(1, b"\x02h2"),
                parameter(65_534, &[0; 4]),
            ],
        );
        becomes(
            &[parameter(0, b"\0\x05"), parameter(5, b"ab")],
            &[parameter(65_534, &[0; 8])],
        );
    }

    #[test]
    fn h3_becomes_a_reserved_protocol() {
        becomes(
            &[parameter(1, b"\x02h3\x02h2\x05h3-29\x08http/1.1\x02hq")],
            &[parameter(
                1,
                b"\x02\x0a\x0a\x02h2\x05\x1a\x1a\x1a\x1a\x1a\x08http/1.1\x02\x2a\x2a",
            )],
        );
        // Nothing but HTTP/3: no client can use the record any more.
        becomes(
            &[parameter(1, b"\x02h3"), parameter(2, b"")],
            &[parameter(1, b"\x02\x0a\x0a"), parameter(2, b"")],
        );
    }

    #[test]
    fn each_can_be_taken_out_alone() {
        let both = response(&[https(&[parameter(1, b"\x02h3"), parameter(5, b"x")])]);
        let (ech, h3) = (
            Strip {
                ech: true,
                h3: false,
            },
            Strip {
                ech: false,
                h3: true,
            },
        );
        let mut message = both.clone();
        assert_eq!(strip(&mut message, ech), Ok(true));
        assert_eq!(strip(&mut message, ech), Ok(false));
        assert_eq!(strip(&mut message, h3), Ok(true));
        let mut at_once = both;
        assert_eq!(strip(&mut at_once, Strip::ALL), Ok(true));
        assert_eq!(message, at_once);
    }

    #[test]
    fn records_in_every_section_are_found_and_others_stay() {
        let record_of = |kind| record(kind, b"\0\x01\x01a\x02bc\0\0\x01\0\x03\x02h3");
        let svcb = record_of(SVCB);
        // A mail exchanger whose name points past the changed record, and EDNS.
        let mx = record(15, b"\0\x0a\xc0\x29");
        let opt = b"\0\0\x29\x10\0\0\0\x80\0\0\0".to_vec();
        let a = record(1, b"\x7f\0\0\x01");
        let other = record_of(66);
        let sections: [&[Vec<u8>]; 3] = [
            &[svcb.clone(), mx.clone()],
            &[a.clone(), other.clone()],
            &[svcb, opt.clone()],
        ];
        let before = message([0x84, 0], sections);
        let mut after = before.clone();
        assert_eq!(strip(&mut after, Strip::ALL), Ok(true));
        let changed = record(SVCB, b"\0\x01\x01a\x02bc\0\0\x01\0\x03\x02\x0a\x0a");
        let expected = message(
            [0x84, 0],
            [&[changed.clone(), mx], &[a, other], &[changed, opt]],
        );
        assert_eq!(after, expected);
    }

    #[test]
    fn what_has_nothing_to_take_out_stays() {
        for records in [
            &[][..],
            &[https(&[])],
            &[https(&[parameter(1, b"\x02h2"), parameter(4, HINTS)])],
            &[record(1, b"\x7f\0\0\x01")],
        ] {
            let mut message = response(records);
            let before = message.clone();
            assert_eq!(strip(&mut message, Strip::ALL), Ok(false));
            assert_eq!(message, before);
        }
        let records = [https(&[parameter(5, b"x")])];
        // A query, a dynamic update, and its response.
        for flags in [[0x01, 0], [0x28, 0], [0xa8, 0]] {
            let mut message = message(flags, [&records, &[], &[]]);
            assert_eq!(strip(&mut message, Strip::ALL), Ok(false));
        }
    }

    #[test]
    fn a_truncated_message_is_an_error_and_unchanged() {
        let whole = response(&[https(&[parameter(5, b"x")]), record(1, b"\x7f\0\0\x01")]);
        for len in 0..whole.len() {
            let mut message = whole[..len].to_vec();
            let result = strip(&mut message, Strip::ALL);
            assert_eq!(result, Err(DnsError::Truncated), "{len} bytes");
            assert_eq!(message, whole[..len]);
        }
        let mut long = vec![0; MAX_MESSAGE_LEN + 1];
        assert_eq!(strip(&mut long, Strip::ALL), Err(DnsError::TooLong));
        assert_eq!(first_question(&long), Err(DnsError::TooLong));
        // The server has left records out, and says so: the header counts those that are there.
        let mut message = message([0x83, 0x80], [&[https(&[parameter(5, b"x")])], &[], &[]]);
        assert_eq!(strip(&mut message, Strip::ALL), Ok(true));
    }

    #[test]
    fn a_malformed_record_is_an_error_and_leaves_all_unchanged() {
        let good = https(&[parameter(5, b"x")]);
        for bad in [
            record(HTTPS, b""),
            record(HTTPS, b"\0\x01"),
            record(HTTPS, b"\0\x01\x05abc"),
            record(HTTPS, b"\0\x01\0\0"),
            record(HTTPS, b"\0\x01\0\0\x01\0\x04\x02h3"),
            https(&[parameter(1, b"\x03h3")]),
            https(&[parameter(1, b"\x02h3\0")]),
            https(&[parameter(5, b"x"), parameter(1, b"\x02h3")]),
            https(&[parameter(5, b"x"), parameter(5, b"x")]),
            https(&[parameter(0, b"\x05"), parameter(5, b"x")]),
            https(&[parameter(0, b""), parameter(5, b"x")]),
        ] {
            let mut message = response(&[good.clone(), bad]);
            let before = message.clone();
            assert_eq!(strip(&mut message, Strip::ALL), Err(DnsError::Service));
            assert_eq!(message, before);
        }
        let all_keys: Vec<_> = PRIVATE_KEYS.map(|key| parameter(key, b"")).collect();
        let mut message = response(&[https(&[&[parameter(5, b"x")], &all_keys[..]].concat())]);
        assert_eq!(strip(&mut message, Strip::ALL), Err(DnsError::Service));
    }

    #[test]
    fn a_question_is_shown() {
        let query = |name: &[u8], kind: u16| {
            let mut query = b"\0\0\x01\0\0\x01\0\0\0\0\0\0".to_vec();
            query.extend(name);
            query.extend(kind.to_be_bytes());
            query.extend([0, 1]);
            query
        };
        let shown = |name, kind| {
            first_question(&query(name, kind))
                .unwrap()
                .unwrap()
                .to_string()
        };
        assert_eq!(shown(b"\x03wWw\x07example\0", 1), "wWw.example A");
        assert_eq!(shown(b"\0", 2), ". NS");
        assert_eq!(
            shown(b"\x03a.b\x04\\\x00\xff \0", 999),
            r"a\.b.\\\000\255\032 TYPE999"
        );
        let longest = [&[63; 64][..], &[63; 64], &[63; 64], &[61; 62], &[0]].concat();
        let question = first_question(&query(&longest, 28)).unwrap().unwrap();
        assert_eq!((question.kind, question.class), (28, 1));

        let longer = [&[63; 64][..], &[63; 64], &[63; 64], &[62; 63], &[0]].concat();
        for bad in [&longer[..], b"\xc0\x0c", b"\x01a\xc0\x0c", b"\x40", b"\x80"] {
            assert_eq!(first_question(&query(bad, 1)), Err(DnsError::Name));
        }
        let whole = query(b"\x03www\x07example\0", 1);
        for len in 0..whole.len() {
            assert_eq!(first_question(&whole[..len]), Err(DnsError::Truncated));
        }
        assert_eq!(first_question(&[0; 12]), Ok(None));
    }

    proptest! {
        #[test]
        fn nothing_else_changes(
            records in prop::collection::vec((
                prop::sample::select(vec![1, 46, SVCB, HTTPS, HTTPS]),
                prop::collection::btree_map(
                    prop_oneof![2u16..10, 65_530u16..=65_535],
                    prop::collection::vec(any::<u8>(), 0..12),
                    0..5,
                ),
                prop::collection::vec(prop::sample::select(vec!["h2", "h3", "h3-29", "http/1.1"]), 0..4),
            ), 0..5),
        ) {
            let build = |(kind, parameters, alpn): &(u16, std::collections::BTreeMap<u16, Vec<u8>>, Vec<&str>)| {
                let mut data = b"\0\x01\x03svc\0".to_vec();
                if !alpn.is_empty() {
                    let names: Vec<u8> = alpn.iter().flat_map(|name| [&[name.len() as u8], name.as_bytes()].concat()).collect();
                    data.extend(parameter(1, &names));
                }
                data.extend(parameters.iter().flat_map(|(key, value)| parameter(*key, value)));
                record(*kind, &data)
            };
            let records: Vec<_> = records.iter().map(build).collect();
            let before = response(&records);
            let mut after = before.clone();
            let changed = strip(&mut after, Strip::ALL).unwrap();
            prop_assert_eq!(changed, before != after);
            prop_assert_eq!(strip(&mut after, Strip::ALL), Ok(false));
            prop_assert_eq!(first_question(&before), first_question(&after));

            // Record by record: the heads are the same, and so is every parameter but those that were to go.
            let mut at = 12 + QUESTION.len();
            for record in &records {
                let (was, is) = (&before[at..at + record.len()], &after[at..at + record.len()]);
                at += record.len();
                let kind = u16::from_be_bytes([was[2], was[3]]);
                if kind != SVCB && kind != HTTPS {
                    prop_assert_eq!(was, is);
                    continue;
                }
                let head = 12 + b"\0\x01\x03svc\0".len();
                prop_assert_eq!(&was[..head], &is[..head]);
                let mut was = read_parameters(&was[head..]).unwrap();
                let mut is = read_parameters(&is[head..]).unwrap();
                if was.iter().any(|(key, _)| *key == KEY_ECH) {
                    let new = |(key, value): &(u16, Vec<u8>)| {
                        PRIVATE_KEYS.contains(key) && value.iter().all(|byte| *byte == 0) && !was.contains(&(*key, value.clone()))
                    };
                    let filler = is.iter().position(new).unwrap();
                    is.remove(filler);
                    was.retain(|(key, _)| *key != KEY_ECH);
                }
                let is_alpn = |(key, _): &mut (u16, Vec<u8>)| *key == KEY_ALPN;
                let alpns = [was.extract_if(.., is_alpn).collect::<Vec<_>>(), is.extract_if(.., is_alpn).collect()];
                prop_assert_eq!(was, is);
                if let [[(_, was)], [(_, is)]] = [&alpns[0][..], &alpns[1][..]] {
                    prop_assert_eq!(was.len(), is.len());
                    prop_assert!(!is.windows(2).any(|pair| pair == b"h3"));
                    prop_assert_eq!(was.windows(2).any(|pair| pair == b"h2"), is.windows(2).any(|pair| pair == b"h2"));
                }
            }
        }

        #[test]
        fn an_error_changes_nothing(
            damage in prop::collection::vec((any::<usize>(), any::<u8>()), 0..4),
            cut in 0usize..20,
        ) {
            let mut message = response(&[
                https(&[parameter(0, b"\0\x01\0\x05"), parameter(1, b"\x02h3\x02h2"), parameter(5, b"config")]),
                record(SVCB, b"\0\x01\x01a\0\0\x05\0\x01x"),
            ]);
            message.truncate(message.len() - cut.saturating_sub(10));
            let len = message.len();
            for (at, byte) in damage {
                message[at % len] = byte;
            }
            let before = message.clone();
            match strip(&mut message, Strip::ALL) {
                Ok(changed) => prop_assert_eq!(changed, message != before),
                Err(_) => prop_assert_eq!(&message, &before),
            }
            prop_assert_eq!(message.len(), before.len());
        }
    }
}
