//! PROXY protocol headers from arbitrary bytes: answers that stand whatever follows, within their bounds,
//! and endpoints that come back when they are written. No mutation finds a CRC-32C, so that the input is
//! also read as the TLVs behind a good header.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use tollgate_wire::proxy_protocol::{
    self, Endpoints, Header, MAX_V1_LEN, MAX_V2_LEN, Parsed, Transport, Version,
};

fuzz_target!(|input: &[u8]| {
    check(input);
    if let Ok(len) = u16::try_from(12 + input.len()) {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
        header.extend(len.to_be_bytes());
        header.extend(b"\x7f\0\0\x01\x7f\0\0\x02\0\x50\x01\xbb");
        header.extend_from_slice(input);
        check(&header);
    }
});

fn check(input: &[u8]) {
    let whole = proxy_protocol::parse(input);
    let mut settled = false;
    for len in 0..input.len().min(MAX_V2_LEN + 16) {
        let part = proxy_protocol::parse(&input[..len]);
        settled |= part != Ok(Parsed::Partial);
        assert!(
            !settled || part == whole,
            "another answer after {len} bytes"
        );
        assert!(
            settled || len < MAX_V2_LEN,
            "asks for more than a header can hold"
        );
    }
    let Ok(Parsed::Complete {
        value: header,
        consumed,
    }) = whole
    else {
        return;
    };
    assert_eq!(
        proxy_protocol::parse(&input[..consumed - 1]),
        Ok(Parsed::Partial)
    );
    match header.version {
        Version::V1 => assert!(consumed <= MAX_V1_LEN && header.tlvs().next().is_none()),
        Version::V2 => assert!(consumed <= MAX_V2_LEN),
    }
    let tlv_bytes: usize = header.tlvs().map(|(_, value)| 3 + value.len()).sum();
    match header.endpoints {
        Endpoints::Local | Endpoints::Unknown => assert_eq!(tlv_bytes, 0),
        Endpoints::Ip {
            transport,
            source,
            destination,
        } => {
            if header.version == Version::V2 {
                let addresses = if source.is_ipv4() { 12 } else { 36 };
                assert_eq!(16 + addresses + tlv_bytes, consumed);
            }
            let written = write(header.version, source, destination);
            if transport == Transport::Stream && header.version == Version::V2 && tlv_bytes == 0 {
                let mapped = source.ip().to_canonical().is_ipv4() && source.is_ipv6();
                assert!(mapped || written == input[..consumed]);
            }
            reads_back(&written, source, destination);
        }
        Endpoints::Unix { .. } => assert_eq!(16 + 216 + tlv_bytes, consumed),
    }
}

fn write(version: Version, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut written = Vec::new();
    match version {
        Version::V1 => proxy_protocol::write_v1(Some((source, destination)), &mut written),
        Version::V2 => proxy_protocol::write_v2(Some((source, destination)), &mut written),
    }
    written
}

/// Written addresses are the same, but for the form of IPv4-mapped ones.
fn reads_back(written: &[u8], source: SocketAddr, destination: SocketAddr) {
    let Ok(Parsed::Complete { value, .. }) = proxy_protocol::parse(written) else {
        panic!("a header of our own that doesn't parse");
    };
    let Header {
        endpoints:
            Endpoints::Ip {
                source: s,
                destination: d,
                ..
            },
        ..
    } = value
    else {
        panic!("a header of our own without addresses");
    };
    for (read, written) in [(s, source), (d, destination)] {
        assert_eq!(read.ip().to_canonical(), written.ip().to_canonical());
        assert_eq!(read.port(), written.port());
    }
}
