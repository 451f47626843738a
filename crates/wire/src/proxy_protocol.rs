//! The PROXY protocol, versions 1 (text) and 2 (binary): who really connected, said by a load balancer before the first
//! byte of the connection.
//!
//! Anybody can write such a header. Read one only on a connection from a peer that is listed as allowed to send it, and
//! there insist on one: [`parse`] never says "no header, go on", it says [`ProxyError::NotProxy`].
//!
//! Format: "The PROXY protocol, Versions 1 & 2" (HAProxy), sections 2.1 and 2.2.
//!
//! ```
//! use tollgate_wire::proxy_protocol::{self, Endpoints, Parsed};
//!
//! let input = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\nGET / HTTP/1.1\r\n";
//! let Parsed::Complete { value: header, consumed } = proxy_protocol::parse(input)? else { panic!("read on") };
//! let Endpoints::Ip { source, destination, .. } = header.endpoints else { panic!("no addresses") };
//! assert_eq!(source, "192.0.2.1:56324".parse()?);
//! assert!(input[consumed..].starts_with(b"GET "));
//!
//! let mut out = Vec::new();
//! proxy_protocol::write_v1(Some((source, destination)), &mut out);
//! assert_eq!(out, &input[..consumed]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

pub use crate::reader::Parsed;
use crate::reader::Reader;

/// The longest header of version 1, with its CRLF: the format's own limit.
pub const MAX_V1_LEN: usize = 107;

/// The longest header of version 2 that is read. The format would allow 64 KiB; what senders put into a header (a name, a
/// certificate's subject, an identifier) takes some hundred bytes.
pub const MAX_V2_LEN: usize = 4096;

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length of the rest.
const V2_FIXED_LEN: usize = 16;
/// Each of the two address fields of a Unix socket.
const UNIX_ADDRESS_LEN: usize = 108;
/// The type of the TLV that holds a checksum.
const TLV_CRC32C: u8 = 0x03;

/// Reads the header at the start of `input`, the bytes of a connection so far.
///
/// # Errors
///
/// [`ProxyError`], as soon as the bytes can't become a header any more.
pub fn parse(input: &[u8]) -> Result<Parsed<Header>, ProxyError> {
    if input.starts_with(V1_SIGNATURE) {
        parse_v1(input)
    } else if input.starts_with(V2_SIGNATURE) {
        parse_v2(input)
    } else if V1_SIGNATURE.starts_with(input) || V2_SIGNATURE.starts_with(input) {
        Ok(Parsed::Partial)
    } else {
        Err(ProxyError::NotProxy)
    }
}

/// Writes a header of version 1 for a TCP connection from a source to a destination, or `UNKNOWN` for a connection
/// that has no IP addresses.
///
/// An IPv4 address beside an IPv6 address is written as IPv4-mapped, because both have to be of one family.
pub fn write_v1(addresses: Option<(SocketAddr, SocketAddr)>, out: &mut Vec<u8>) {
    let line = match addresses.map(same_family) {
        None => "PROXY UNKNOWN\r\n".to_owned(),
        Some((source, destination)) => format!(
            "PROXY {} {} {} {} {}\r\n",
            if source.is_ipv4() { "TCP4" } else { "TCP6" },
            source.ip(),
            destination.ip(),
            source.port(),
            destination.port()
        ),
    };
    out.extend_from_slice(line.as_bytes());
}

/// Writes a header of version 2 for a TCP connection from a source to a destination, or `LOCAL` for a connection that has
/// no IP addresses. Families as in [`write_v1`].
pub fn write_v2(addresses: Option<(SocketAddr, SocketAddr)>, out: &mut Vec<u8>) {
    out.extend_from_slice(V2_SIGNATURE);
    match addresses.map(same_family) {
        None => out.extend([0x20, 0, 0, 0]),
        Some((source, destination)) => {
            out.extend([0x21, if source.is_ipv4() { 0x11 } else { 0x21 }]);
            out.extend(if source.is_ipv4() { [0, 12] } else { [0, 36] });
            for address in [source, destination] {
                match address.ip() {
                    IpAddr::V4(ip) => out.extend(ip.octets()),
                    IpAddr::V6(ip) => out.extend(ip.octets()),
                }
            }
            out.extend(source.port().to_be_bytes());
            out.extend(destination.port().to_be_bytes());
        }
    }
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The version of its format.
    pub version: Version,
    /// The ends of the connection that it stands for.
    pub endpoints: Endpoints,
    tlvs: Vec<u8>,
}

impl Header {
    /// The type-length-value fields of version 2 in their order: type and value. A checksum among them is verified.
    ///
    /// ```
    /// use tollgate_wire::proxy_protocol::{self, Parsed};
    ///
    /// let input = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11\x7f\0\0\x01\x7f\0\0\x02\0\x50\x01\xbb\x01\0\x02h2";
    /// let Parsed::Complete { value: header, .. } = proxy_protocol::parse(input)? else { panic!("read on") };
    /// assert_eq!(header.tlvs().collect::<Vec<_>>(), [(1, &b"h2"[..])]);
    /// # Ok::<(), tollgate_wire::proxy_protocol::ProxyError>(())
    /// ```
    pub fn tlvs(&self) -> impl Iterator<Item = (u8, &[u8])> {
        let mut reader = Reader::new(&self.tlvs);
        std::iter::from_fn(move || Some((reader.byte()?, reader.sized_u16()?)))
    }
}

/// The version of a header's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// The ends of the connection that a header stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoints {
    /// Version 2 `LOCAL`: the sender speaks for itself, as in a health check. The connection's own addresses count.
    Local,
    /// `UNKNOWN`, or version 2 `UNSPEC`: the sender won't or can't say. The connection's own addresses count.
    Unknown,
    /// IP addresses and ports, both of the same family.
    Ip {
        /// What is spoken over them.
        transport: Transport,
        /// The client.
        source: SocketAddr,
        /// Where the client connected to.
        destination: SocketAddr,
    },
    /// Unix socket paths without their trailing NULs; an abstract name begins with a NUL. Often empty.
    Unix {
        /// What is spoken over them.
        transport: Transport,
        /// The client's.
        source: Vec<u8>,
        /// The one that the client connected to.
        destination: Vec<u8>,
    },
}

/// What is spoken between two endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP, or a Unix stream socket.
    Stream,
    /// UDP, or a Unix datagram socket.
    Datagram,
}

/// Why the first bytes of a connection are not a PROXY header that can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// The connection begins with something else.
    #[error("the connection does not begin with a PROXY protocol header")]
    NotProxy,
    /// No line end within [`MAX_V1_LEN`], or a version 2 header that announces more than [`MAX_V2_LEN`].
    #[error("the PROXY protocol header is longer than {limit} bytes")]
    TooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// A version 1 line that isn't exactly what the format asks for.
    #[error("malformed PROXY protocol line")]
    MalformedLine,
    /// A version 2 header with a version or command that doesn't exist.
    #[error("unknown PROXY protocol version and command {0:#04x}")]
    Command(u8),
    /// A version 2 header with an address family or transport that doesn't exist.
    #[error("unknown PROXY protocol address family {0:#04x}")]
    Family(u8),
    /// A version 2 header too short for its addresses, or with TLVs that don't fill it.
    #[error("PROXY protocol header whose length doesn't fit its content")]
    Length,
    /// A CRC-32C that doesn't match.
    #[error("PROXY protocol header checksum does not match")]
    Checksum,
}

/// The line of version 1. [`MAX_V1_LEN`] bounds the search for its end, and with it every later look.
fn parse_v1(input: &[u8]) -> Result<Parsed<Header>, ProxyError> {
    let window = input.get(..MAX_V1_LEN).unwrap_or(input);
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        return match input.len() {
            MAX_V1_LEN.. => Err(ProxyError::TooLong { limit: MAX_V1_LEN }),
            _ => Ok(Parsed::Partial),
        };
    };
    let (line, _) = window.split_at_checked(end).unwrap_or_default();
    let endpoints = line
        .strip_suffix(b"\r")
        .and_then(|line| std::str::from_utf8(line).ok())
        .and_then(read_line)
        .ok_or(ProxyError::MalformedLine)?;
    Ok(Parsed::Complete {
        value: Header {
            version: Version::V1,
            endpoints,
            tlvs: Vec::new(),
        },
        consumed: end.saturating_add(1),
    })
}

/// Takes a line without its CRLF apart: single spaces, plain decimals, nothing behind.
fn read_line(line: &str) -> Option<Endpoints> {
    let mut words = line.split(' ');
    let (_proxy, family) = (words.next()?, words.next()?);
    if family == "UNKNOWN" {
        // What follows has no meaning (section 2.1).
        return Some(Endpoints::Unknown);
    }
    let (source, destination) = (words.next()?, words.next()?);
    let (source, destination): (IpAddr, IpAddr) = match family {
        "TCP4" => (
            source.parse::<Ipv4Addr>().ok()?.into(),
            destination.parse::<Ipv4Addr>().ok()?.into(),
        ),
        "TCP6" => (
            source.parse::<Ipv6Addr>().ok()?.into(),
            destination.parse::<Ipv6Addr>().ok()?.into(),
        ),
        _ => return None,
    };
    let (source_port, destination_port) = (read_port(words.next()?)?, read_port(words.next()?)?);
    if words.next().is_some() {
        return None;
    }
    Some(Endpoints::Ip {
        transport: Transport::Stream,
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    })
}

/// A decimal without a sign or leading zeros.
fn read_port(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.parse().ok().filter(|_| plain)?;
    (digits == "0" || !digits.starts_with('0')).then_some(port)
}

fn parse_v2(input: &[u8]) -> Result<Parsed<Header>, ProxyError> {
    let mut reader = Reader::new(input);
    let _ = reader.take(V2_SIGNATURE.len());
    let local = match reader.byte() {
        None => return Ok(Parsed::Partial),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(other) => return Err(ProxyError::Command(other)),
    };
    let Some(family) = reader.byte() else {
        return Ok(Parsed::Partial);
    };
    // `LOCAL` and everything in its block, the family too, is to be skipped (section 2.2).
    if !local && !matches!(family, 0x00 | 0x11 | 0x12 | 0x21 | 0x22 | 0x31 | 0x32) {
        return Err(ProxyError::Family(family));
    }
    let Some(len) = reader.u16().map(usize::from) else {
        return Ok(Parsed::Partial);
    };
    if V2_FIXED_LEN.saturating_add(len) > MAX_V2_LEN {
        return Err(ProxyError::TooLong { limit: MAX_V2_LEN });
    }
    let Some(block) = reader.take(len) else {
        return Ok(Parsed::Partial);
    };
    let mut block = Reader::new(block);
    let endpoints = match family {
        _ if local => Some(Endpoints::Local),
        0x00 => Some(Endpoints::Unknown),
        _ => read_addresses(&mut block, family),
    };
    let endpoints = endpoints.ok_or(ProxyError::Length)?;
    // Without an address family nothing says where TLVs would begin.
    let tlvs = match endpoints {
        Endpoints::Local | Endpoints::Unknown => &[],
        Endpoints::Ip { .. } | Endpoints::Unix { .. } => block.rest(),
    };
    let header_len = V2_FIXED_LEN.saturating_add(len);
    check_tlvs(input.get(..header_len).unwrap_or_default(), tlvs)?;
    let header = Header {
        version: Version::V2,
        endpoints,
        tlvs: tlvs.to_vec(),
    };
    Ok(reader.complete(input, header))
}

/// The addresses of a version 2 header: both hosts, then both ports.
fn read_addresses(block: &mut Reader<'_>, family: u8) -> Option<Endpoints> {
    let transport = match family & 0x0f {
        1 => Transport::Stream,
        _ => Transport::Datagram,
    };
    let (source, destination): (IpAddr, IpAddr) = match family >> 4 {
        1 => (
            Ipv4Addr::from(block.array::<4>()?).into(),
            Ipv4Addr::from(block.array::<4>()?).into(),
        ),
        2 => (
            Ipv6Addr::from(block.array::<16>()?).into(),
            Ipv6Addr::from(block.array::<16>()?).into(),
        ),
        _ => {
            let (source, destination) =
                (block.take(UNIX_ADDRESS_LEN)?, block.take(UNIX_ADDRESS_LEN)?);
            return Some(Endpoints::Unix {
                transport,
                source: trim_end_nuls(source).to_vec(),
                destination: trim_end_nuls(destination).to_vec(),
            });
        }
    };
    Some(Endpoints::Ip {
        transport,
        source: SocketAddr::new(source, block.u16()?),
        destination: SocketAddr::new(destination, block.u16()?),
    })
}

/// Checks that `tlvs`, the end of `header`, are whole, and verifies the checksum if one is among them.
fn check_tlvs(header: &[u8], tlvs: &[u8]) -> Result<(), ProxyError> {
    let mut reader = Reader::new(tlvs);
    let mut verified = false;
    while !reader.is_empty() {
        let (Some(kind), Some(value)) = (reader.byte(), reader.sized_u16()) else {
            return Err(ProxyError::Length);
        };
        if kind != TLV_CRC32C {
            continue;
        }
        // The checksum is that of the whole header with its own field as zeros.
        let expected: [u8; 4] = value.try_into().map_err(|_| ProxyError::Length)?;
        let after = reader.rest();
        let before_len = header.len().checked_sub(after.len().saturating_add(4));
        let before = before_len
            .and_then(|len| header.get(..len))
            .unwrap_or_default();
        let checksum = crc32c([before, &[0; 4], after]);
        if std::mem::replace(&mut verified, true) || checksum != u32::from_be_bytes(expected) {
            return Err(ProxyError::Checksum);
        }
    }
    Ok(())
}

/// CRC-32C (Castagnoli), bit by bit: it is needed once a connection at most, over [`MAX_V2_LEN`] bytes.
fn crc32c(parts: [&[u8]; 3]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let crc = parts.into_iter().flatten().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg())
        })
    });
    !crc
}

fn trim_end_nuls(mut path: &[u8]) -> &[u8] {
    while let [rest @ .., 0] = path {
        path = rest;
    }
    path
}

/// The pair in one address family: IPv4 if both are that, also where one stands for IPv4 as a mapped address.
fn same_family((source, destination): (SocketAddr, SocketAddr)) -> (SocketAddr, SocketAddr) {
    let canonical =
        |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (source, destination) = (canonical(source), canonical(destination));
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    (mapped(source), mapped(destination))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every proper prefix asks for more; the whole is complete and takes all of it, whatever follows.
    fn complete(input: &[u8]) -> Header {
        for len in 0..input.len() {
            assert_eq!(parse(&input[..len]), Ok(Parsed::Partial), "{len} bytes");
        }
        let answer = parse(input).unwrap();
        assert_eq!(parse(&[input, b"PROXY \r\n"].concat()), Ok(answer.clone()));
        match answer {
            Parsed::Complete { value, consumed } => {
                assert_eq!(consumed, input.len());
                value
            }
            Parsed::Partial => panic!("partial: {}", input.escape_ascii()),
        }
    }

    /// The error comes with some byte and stays, whatever follows.
    fn fails(input: &[u8], error: ProxyError) {
        let first = (0..=input.len()).find(|len| parse(&input[..*len]) != Ok(Parsed::Partial));
        let first = first.unwrap_or_else(|| panic!("partial: {}", input.escape_ascii()));
        for len in first..=input.len() {
            assert_eq!(
                parse(&input[..len]),
                Err(error),
                "{} at {len}",
                input.escape_ascii()
            );
        }
        assert_eq!(parse(&[input, b"\r\n"].concat()), Err(error));
    }

    fn tcp(source: &str, destination: &str) -> Endpoints {
        Endpoints::Ip {
            transport: Transport::Stream,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let mut header = V2_SIGNATURE.to_vec();
        header.extend([command, family]);
        header.extend(u16::try_from(block.len()).unwrap().to_be_bytes());
        header.extend(block);
        header
    }

    const LOOPBACK_V4: &[u8] = b"\x7f\0\0\x01\x7f\0\0\x02\0\x50\x01\xbb";

    #[test]
    fn the_lines_of_version_1_are_read() {
        let line = complete(b"PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n");
        assert_eq!(line.version, Version::V1);
        assert_eq!(line.endpoints, tcp("255.255.255.255:65535", "0.0.0.0:0"));
        assert_eq!(line.tlvs().count(), 0);
        let line = complete(b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 1 443\r\n");
        assert_eq!(
            line.endpoints,
            tcp("[2001:db8::1]:1", "[::ffff:192.0.2.1]:443")
        );
        for unknown in [
            &b"PROXY UNKNOWN\r\n"[..],
            b"PROXY UNKNOWN whatever  it says\r\n",
            b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
        ] {
            assert_eq!(complete(unknown).endpoints, Endpoints::Unknown);
        }
    }

    #[test]
    fn a_line_is_exact_or_refused() {
        for line in [
            "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\n",
            "PROXY TCP4 127.0.0.1 127.0.0.1 1 2 \r\n",
            "PROXY TCP4 127.0.0.1 127.0.0.1 1 2 3\r\n",
            "PROXY TCP4  127.0.0.1 127.0.0.1 1 2\r\n",
            "PROXY TCP4 127.0.0.1 127.0.0.1 1\r\n",
            "PROXY TCP4 127.0.0.1 127.0.0.1 1 65536\r\n",
            "PROXY TCP4 127.0.0.1 127.0.0.1 +1 2\r\n",
            "PROXY TCP4 127.0.0.1 127.0.0.1 01 2\r\n",
            "PROXY TCP4 127.0.0.1 127.0.0.1 1 00\r\n",
            "PROXY TCP4 127.0.0.01 127.0.0.1 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 127.0.0.1 127.0.0.1 1 2\r\n",
            "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
            "PROXY UDP4 127.0.0.1 127.0.0.1 1 2\r\n",
            "PROXY tcp4 127.0.0.1 127.0.0.1 1 2\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY \r\n",
            "PROXY TCP4 127.0.0.1\t127.0.0.1 1 2\r\n",
        ] {
            fails(line.as_bytes(), ProxyError::MalformedLine);
        }
        fails(b"PROXY TCP4 \xff\r\n", ProxyError::MalformedLine);
        fails(b"PROXY / HTTP/1.1\r\n", ProxyError::MalformedLine);
    }

    #[test]
    fn a_line_has_at_most_107_bytes() {
        let line = |len: usize| format!("{:1$}\r\n", "PROXY UNKNOWN", len - 2).into_bytes();
        assert_eq!(complete(&line(MAX_V1_LEN)).endpoints, Endpoints::Unknown);
        fails(&line(MAX_V1_LEN + 1), ProxyError::TooLong { limit: 107 });
        fails(&line(400), ProxyError::TooLong { limit: 107 });
    }

    #[test]
    fn something_else_is_known_by_its_first_wrong_byte() {
        for input in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01",
            b"PRO ",
            b"PROXY\r\n",
            b"\r\n\r\n\0\r\nQUIP",
            b"\n",
        ] {
            fails(input, ProxyError::NotProxy);
        }
    }

    #[test]
    fn each_family_of_version_2_is_read() {
        let header = complete(&v2(0x21, 0x11, LOOPBACK_V4));
        assert_eq!(header.version, Version::V2);
        assert_eq!(header.endpoints, tcp("127.0.0.1:80", "127.0.0.2:443"));

        let mut block = [0; 36];
        (block[15], block[31], block[33], block[35]) = (1, 2, 80, 81);
        let header = complete(&v2(0x21, 0x21, &block));
        assert_eq!(header.endpoints, tcp("[::1]:80", "[::2]:81"));

        let datagrams = complete(&v2(0x21, 0x12, LOOPBACK_V4)).endpoints;
        assert!(matches!(
            datagrams,
            Endpoints::Ip {
                transport: Transport::Datagram,
                ..
            }
        ));

        let mut block = [0; 216];
        block[..9].copy_from_slice(b"/run/a.so");
        block[108..112].copy_from_slice(b"\0abs");
        for (family, transport) in [(0x31, Transport::Stream), (0x32, Transport::Datagram)] {
            let unix = Endpoints::Unix {
                transport,
                source: b"/run/a.so".to_vec(),
                destination: b"\0abs".to_vec(),
            };
            assert_eq!(complete(&v2(0x21, family, &block)).endpoints, unix);
        }
    }

    #[test]
    fn local_and_unspecified_skip_what_they_carry() {
        for family in [0x00, 0x11, 0xff] {
            let header = complete(&v2(0x20, family, b"anything"));
            assert_eq!(header.endpoints, Endpoints::Local);
            assert_eq!(header.tlvs().count(), 0);
        }
        assert_eq!(
            complete(&v2(0x21, 0, b"anything")).endpoints,
            Endpoints::Unknown
        );
        assert_eq!(complete(&v2(0x20, 0, b"")).endpoints, Endpoints::Local);
    }

    #[test]
    fn tlvs_are_kept_in_their_order() {
        let block = [LOOPBACK_V4, b"\x02\0\x01a\x04\0\0\xe0\0\x02bc"].concat();
        let header = complete(&v2(0x21, 0x11, &block));
        let tlvs: Vec<_> = header.tlvs().collect();
        assert_eq!(tlvs, [(2, &b"a"[..]), (4, b""), (0xe0, b"bc")]);
        for tlvs in [&b"\x02"[..], b"\x02\0", b"\x02\0\x02a", b"\x03\0\x03abc"] {
            fails(
                &v2(0x21, 0x11, &[LOOPBACK_V4, tlvs].concat()),
                ProxyError::Length,
            );
        }
    }

    #[test]
    fn a_checksum_is_verified() {
        // The check value of CRC-32C.
        assert_eq!(crc32c([b"123", b"456", b"789"]), 0xe306_9283);

        let empty = [LOOPBACK_V4, b"\x02\0\x01a\x03\0\x04\0\0\0\0\x04\0\x01z"].concat();
        let mut header = v2(0x21, 0x11, &empty);
        let checksum = crc32c([&header, &[], &[]]).to_be_bytes();
        let field = header.len() - 8..header.len() - 4;
        header[field].copy_from_slice(&checksum);
        assert_eq!(complete(&header).tlvs().nth(1), Some((3, &checksum[..])));
        for at in [17, header.len() - 1, header.len() - 5] {
            let mut header = header.clone();
            header[at] ^= 1;
            fails(&header, ProxyError::Checksum);
        }
        // A second one can't be right: the first was computed with zeros in its place.
        let twice = [LOOPBACK_V4, b"\x03\0\x04\0\0\0\0\x03\0\x04\0\0\0\0"].concat();
        fails(&v2(0x21, 0x11, &twice), ProxyError::Checksum);
    }

    #[test]
    fn a_bad_header_of_version_2_is_refused_early() {
        fails(&v2(0x11, 0x11, LOOPBACK_V4), ProxyError::Command(0x11));
        fails(&v2(0x22, 0x11, LOOPBACK_V4), ProxyError::Command(0x22));
        fails(&v2(0x21, 0x13, LOOPBACK_V4), ProxyError::Family(0x13));
        fails(&v2(0x21, 0x10, LOOPBACK_V4), ProxyError::Family(0x10));
        fails(&v2(0x21, 0x41, LOOPBACK_V4), ProxyError::Family(0x41));
        fails(&v2(0x21, 0x11, &LOOPBACK_V4[1..]), ProxyError::Length);
        fails(&v2(0x21, 0x21, LOOPBACK_V4), ProxyError::Length);
        fails(&v2(0x21, 0x31, &[0; 215]), ProxyError::Length);

        let limit = MAX_V2_LEN;
        let largest = v2(0x20, 0, &vec![0; limit - V2_FIXED_LEN]);
        assert_eq!(complete(&largest).endpoints, Endpoints::Local);
        let larger = v2(0x20, 0, &vec![0; limit - V2_FIXED_LEN + 1]);
        fails(&larger[..V2_FIXED_LEN], ProxyError::TooLong { limit });
    }

    #[test]
    fn without_addresses_the_receiver_is_told_so() {
        let mut out = Vec::new();
        write_v1(None, &mut out);
        assert_eq!(complete(&out).endpoints, Endpoints::Unknown);
        out.clear();
        write_v2(None, &mut out);
        assert_eq!(complete(&out).endpoints, Endpoints::Local);
    }

    #[test]
    fn mixed_families_are_written_as_one() {
        let (v4, v6, mapped) = ("192.0.2.1:1", "[2001:db8::1]:2", "[::ffff:192.0.2.1]:1");
        for (source, destination, read) in [
            (v4, v6, tcp(mapped, v6)),
            (v6, v4, tcp(v6, mapped)),
            (mapped, v4, tcp(v4, v4)),
            (mapped, mapped, tcp(v4, v4)),
        ] {
            let addresses = Some((source.parse().unwrap(), destination.parse().unwrap()));
            for write in [write_v1, write_v2] {
                let mut out = Vec::new();
                write(addresses, &mut out);
                assert_eq!(complete(&out).endpoints, read);
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            v4 in any::<([u8; 4], u16, [u8; 4], u16)>(),
            v6 in any::<([u8; 16], u16, [u8; 16], u16)>(),
        ) {
            let pairs = [
                (SocketAddr::from((v4.0, v4.1)), SocketAddr::from((v4.2, v4.3))),
                (SocketAddr::from((v6.0, v6.1)), SocketAddr::from((v6.2, v6.3))),
            ];
            for (source, destination) in pairs {
                for write in [write_v1, write_v2] {
                    let mut out = Vec::new();
                    write(Some((source, destination)), &mut out);
                    let transport = Transport::Stream;
                    prop_assert_eq!(complete(&out).endpoints, Endpoints::Ip { transport, source, destination });
                }
            }
        }

        #[test]
        fn an_answer_stands_whatever_follows(
            start in prop::sample::select(vec![&b"PROXY TCP4 127.0.0.1 127.0.0.1 "[..], b"PROXY UNKNOWN", b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n\x21"]),
            tail in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"\r\n 01\0\x11\x21".to_vec())], 0..150),
        ) {
            let input = [start, &tail].concat();
            let mut answer = Ok(Parsed::Partial);
            for len in 0..=input.len() {
                let now = parse(&input[..len]);
                prop_assert!(answer == Ok(Parsed::Partial) || now == answer);
                answer = now;
            }
        }
    }
}
