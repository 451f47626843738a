use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::Bytes;

use super::Timestamp;
use crate::value::Value;

/// A DNS query and its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsExchange {
    /// The query.
    pub request: DnsMessage,
    /// The answer.
    pub response: Option<DnsMessage>,
}

/// A DNS message (RFC 1035 section 4).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DnsMessage {
    /// The id.
    pub id: u16,
    /// Whether it is a query.
    pub query: bool,
    /// The kind of query.
    pub op_code: u16,
    /// AA.
    pub authoritative_answer: bool,
    /// TC.
    pub truncation: bool,
    /// RD.
    pub recursion_desired: bool,
    /// RA.
    pub recursion_available: bool,
    /// Z.
    pub reserved: u16,
    /// RCODE.
    pub response_code: u16,
    /// What is asked.
    pub questions: Vec<Question>,
    /// The answers.
    pub answers: Vec<ResourceRecord>,
    /// Who has authority.
    pub authorities: Vec<ResourceRecord>,
    /// What may help.
    pub additionals: Vec<ResourceRecord>,
    /// When it passed.
    pub timestamp: Option<Timestamp>,
}

/// What a DNS message asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The name.
    pub name: String,
    /// The type, such as 1 for A.
    pub kind: u16,
    /// The class, mostly 1 for IN.
    pub class: u16,
}

/// A DNS resource record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceRecord {
    /// The name.
    pub name: String,
    /// The type, such as 1 for A.
    pub kind: u16,
    /// The class, mostly 1 for IN.
    pub class: u16,
    /// Seconds that it may be kept.
    pub ttl: u32,
    /// The data, names in it uncompressed.
    pub data: Bytes,
}

impl DnsMessage {
    /// All questions and records as text, one a line: what mitmproxy's body operators look at.
    pub fn write_text(&self, out: &mut String) {
        let records = [&self.answers, &self.authorities, &self.additionals];
        let mut separator = "";
        for question in &self.questions {
            out.push_str(separator);
            out.push_str(&question.name);
            separator = "\r\n";
        }
        for record in records.into_iter().flatten() {
            out.push_str(separator);
            record.write_text(out);
            separator = "\r\n";
        }
    }
}

const A: u16 = 1;
const NS: u16 = 2;
const CNAME: u16 = 5;
const PTR: u16 = 12;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const HTTPS: u16 = 65;

impl ResourceRecord {
    /// The data as text: an address, a name, text, the parameters of an HTTPS record (RFC 9460), or hexadecimal.
    pub fn write_text(&self, out: &mut String) {
        let known = match self.kind {
            A => <[u8; 4]>::try_from(&self.data[..])
                .ok()
                .map(|octets| Ipv4Addr::from(octets).to_string()),
            AAAA => <[u8; 16]>::try_from(&self.data[..])
                .ok()
                .map(|octets| Ipv6Addr::from(octets).to_string()),
            NS | CNAME | PTR => read_name(&self.data)
                .filter(|(_, rest)| rest.is_empty())
                .map(|(name, _)| name),
            TXT => std::str::from_utf8(&self.data).ok().map(str::to_owned),
            HTTPS => https_text(&self.data),
            _ => return self.write_hex(out),
        };
        match known {
            Some(text) => out.push_str(&text),
            None => {
                self.write_hex(out);
                let name = match self.kind {
                    A => "A",
                    AAAA => "AAAA",
                    NS => "NS",
                    CNAME => "CNAME",
                    PTR => "PTR",
                    TXT => "TXT",
                    _ => "HTTPS",
                };
                // Writing to a string can't fail.
                let _ = write!(out, " (invalid {name} data)");
            }
        }
    }

    fn write_hex(&self, out: &mut String) {
        out.push_str("0x");
        for byte in &self.data {
            let _ = write!(out, "{byte:02x}");
        }
    }
}

/// A name of labels without compression, and what follows it.
fn read_name(mut data: &[u8]) -> Option<(String, &[u8])> {
    let mut name = String::new();
    loop {
        let (&length, rest) = data.split_first()?;
        if length == 0 {
            return Some((name, rest));
        }
        if length >= 64 {
            return None;
        }
        let (label, rest) = rest.split_at_checked(length.into())?;
        if !name.is_empty() {
            name.push('.');
        }
        let label = std::str::from_utf8(label).ok().filter(|l| l.is_ascii())?;
        name.push_str(&crate::url::to_unicode(label));
        data = rest;
    }
}

fn https_text(data: &[u8]) -> Option<String> {
    let (priority, data) = data.split_first_chunk::<2>()?;
    let (target, mut data) = read_name(data)?;
    let mut entries = vec![
        ("target_name".into(), Value::Str(target)),
        (
            "priority".into(),
            Value::Int(i16::from_be_bytes(*priority).into()),
        ),
    ];
    while !data.is_empty() {
        let (key, rest) = data.split_first_chunk::<2>()?;
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (value, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        let key = match u16::from_be_bytes(*key) {
            0 => "mandatory".into(),
            1 => "alpn".into(),
            2 => "no_default_alpn".into(),
            3 => "port".into(),
            4 => "ipv4hint".into(),
            5 => "ech".into(),
            6 => "ipv6hint".into(),
            other => Value::Int(other.into()),
        };
        entries.push((key, Value::Str(escaped(value))));
        data = rest;
    }
    let mut text = String::new();
    Value::Dict(entries).write_repr(&mut text);
    Some(text)
}

/// Bytes as Python's literal shows them, without the quotes.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b'\t' => text.push_str("\\t"),
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => drop(write!(text, "\\x{byte:02x}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: u16, data: &[u8]) -> String {
        let record = ResourceRecord {
            name: "x".to_owned(),
            kind,
            class: 1,
            ttl: 1,
            data: Bytes::copy_from_slice(data),
        };
        let mut out = String::new();
        record.write_text(&mut out);
        out
    }

    #[test]
    fn data_is_shown_by_type() {
        assert_eq!(text(A, &[8, 8, 4, 4]), "8.8.4.4");
        assert_eq!(text(A, &[8, 8]), "0x0808 (invalid A data)");
        assert_eq!(text(AAAA, &[0; 16]), "::");
        assert_eq!(text(CNAME, b"\x01a\x02bc\x00"), "a.bc");
        assert_eq!(text(NS, b"\x01a\xc0\x01"), "0x0161c001 (invalid NS data)");
        assert_eq!(text(NS, b"\x01a\x00x"), "0x01610078 (invalid NS data)");
        assert_eq!(text(TXT, "ü".as_bytes()), "ü");
        assert_eq!(text(15, &[1, 2]), "0x0102");
        assert_eq!(
            text(HTTPS, b"\x00\x01\x00\x00\x01\x00\x03\x02h2\x00\x09\x00\x00"),
            r"{'target_name': '', 'priority': 1, 'alpn': '\\x02h2', 9: ''}"
        );
        assert!(text(HTTPS, b"\x00").ends_with("(invalid HTTPS data)"));
    }
}
