//! What the fields of a hello mean, and what happens to those that mean nothing.

use proptest::prelude::*;
use tollgate_wire::tls::{Ech, HelloAnomaly, HelloError, parse_client_hello};

use crate::builder::{
    HelloBuilder, alpn, complete, ech_outer, handshake, host_name, key_share, records, server_name,
    u16s, vec8, vec16,
};

#[test]
fn every_field_of_a_browser_hello() {
    let builder = HelloBuilder::browser();
    let hello = builder.parse();
    assert_eq!(hello.legacy_version, 0x0303);
    assert_eq!(hello.random.to_vec(), (0..32).collect::<Vec<u8>>());
    assert_eq!(hello.session_id, [0xee; 32]);
    assert_eq!(hello.cipher_suites, [0x1a1a, 0x1301, 0x1302, 0xc02b]);
    assert_eq!(hello.compression_methods, [0]);
    let types = builder.extensions.iter().flatten().map(|(kind, _)| *kind);
    assert_eq!(hello.extensions, types.collect::<Vec<u16>>());
    assert_eq!(hello.server_name.as_deref(), Some("example.com"));
    assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert!(hello.offers_alpn(b"h2") && hello.offers_alpn(b"http/1.1"));
    assert!(!hello.offers_alpn(b"h3") && !hello.offers_alpn(b""));
    assert_eq!(hello.supported_versions, [0x4a4a, 0x0304, 0x0303]);
    assert_eq!(hello.max_version(), 0x0304);
    assert_eq!(hello.groups, [0x3a3a, 0x11ec, 0x001d, 0x0017]);
    assert_eq!(hello.signature_algorithms, [0x0403, 0x0804, 0x0401]);
    assert_eq!(hello.point_formats, [0]);
    assert_eq!(hello.key_share_groups, [0x3a3a, 0x001d]);
    assert!(hello.psk && hello.early_data);
    let expected = Ech::Offered {
        config_id: 0x7f,
        kdf_id: 1,
        aead_id: 3,
    };
    assert_eq!(hello.ech, expected);
    assert_eq!(hello.compress_certificate, [2]);
    assert_eq!(hello.anomalies, []);
    assert_eq!(hello.raw_len, builder.record().len());
}

#[test]
fn a_hello_may_end_before_its_extensions() {
    let builder = HelloBuilder {
        extensions: None,
        ..HelloBuilder::new()
    };
    let hello = builder.parse();
    assert!(hello.extensions.is_empty());
    assert_eq!(hello.max_version(), 0x0303);
    assert!(HelloBuilder::new().parse().extensions.is_empty());
}

#[test]
fn a_server_name_that_is_no_dns_name_is_flagged() {
    let two = vec16(&[host_name(b"a.example"), host_name(b"b.example")].concat());
    for body in [
        server_name(b""),
        server_name(b"::1"),
        server_name(b"a b"),
        server_name(b"\xff\xfe"),
        two,
    ] {
        let hello = HelloBuilder::new().with(0, &body).parse();
        assert_eq!(hello.server_name, None);
        assert!(hello.has_extension(0));
        assert_eq!(
            hello.anomalies,
            [HelloAnomaly::InvalidServerName],
            "{body:?}"
        );
    }
}

#[test]
fn other_types_of_name_are_passed_over() {
    let other = [vec![9], vec16(b"what")].concat();
    let body = vec16(&[other.clone(), host_name(b"a.example")].concat());
    let hello = HelloBuilder::new().with(0, &body).parse();
    assert_eq!(hello.server_name.as_deref(), Some("a.example"));
    let hello = HelloBuilder::new().with(0, &vec16(&other)).parse();
    assert_eq!(hello.server_name, None);
    assert_eq!(hello.anomalies, []);
}

#[test]
fn a_malformed_extension_leaves_its_field_empty() {
    let share_without_key = vec16(&[key_share(29, 32), key_share(23, 0)].concat());
    for (kind, body) in [
        (0, vec![]),
        (0, vec16(&[])),
        (0, vec16(&[0, 0, 9, b'a'])),
        (0, [server_name(b"a.example"), vec![0]].concat()),
        (10, vec16(&[0])),
        (10, vec16(&[])),
        (11, vec8(&[])),
        (13, vec![0, 4, 4, 3]),
        (16, vec16(&[])),
        (16, alpn(&[b"h2", b""])),
        (16, vec16(b"\x03h2")),
        (27, vec8(&[2])),
        (43, vec8(&[])),
        (43, vec16(&u16s(&[0x0304]))),
        (51, share_without_key),
        (0xfe0d, vec![]),
        (0xfe0d, vec![2]),
        (0xfe0d, vec![1, 0]),
        (0xfe0d, ech_outer(1)[..9].to_vec()),
    ] {
        let hello = HelloBuilder::new().with(kind, &body).parse();
        let expected = [HelloAnomaly::MalformedExtension(kind)];
        assert_eq!(hello.anomalies, expected, "{kind} {body:?}");
        let mut empty = HelloBuilder::new().parse();
        empty.extensions.push(kind);
        empty.anomalies = hello.anomalies.clone();
        empty.raw_len = hello.raw_len;
        assert_eq!(hello, empty);
    }
}

#[test]
fn an_inner_hello_and_an_empty_key_share_are_legal() {
    let hello = HelloBuilder::new()
        .with(0xfe0d, &[1])
        .with(51, &vec16(&[]))
        .parse();
    assert_eq!(hello.ech, Ech::Inner);
    assert!(hello.key_share_groups.is_empty());
    assert_eq!(hello.anomalies, []);
}

#[test]
fn of_two_extensions_the_first_counts() {
    let hello = HelloBuilder::new()
        .with(0, &server_name(b"first.example"))
        .with(0x1234, &[])
        .with(0, &server_name(b"second.example"))
        .with(0x1234, &[])
        .parse();
    assert_eq!(hello.server_name.as_deref(), Some("first.example"));
    assert_eq!(hello.extensions, [0, 0x1234, 0, 0x1234]);
    let expected = [0, 0x1234].map(HelloAnomaly::DuplicateExtension);
    assert_eq!(hello.anomalies, expected);
}

#[test]
fn a_message_that_contradicts_itself_is_malformed() {
    let message = HelloBuilder::new().message();
    let body = &message[4..];
    let start = [&u16s(&[0x0303])[..], &[0; 32]].concat();
    let after_session = [&start[..], &[0]].concat();
    let after_ciphers = [&after_session[..], &vec16(&u16s(&[1]))].concat();
    let after_compression = [&after_ciphers[..], &[1, 0]].concat();
    for bad in [
        vec![],
        body[..20].to_vec(),
        [&start[..], &vec8(&[0; 33])].concat(),
        [&after_session[..], &vec16(&[])].concat(),
        [&after_session[..], &vec16(&[1, 2, 3])].concat(),
        [&after_ciphers[..], &vec8(&[])].concat(),
        [&after_compression[..], &[0]].concat(),
        [&after_compression[..], &[0, 1]].concat(),
        [&after_compression[..], &[0, 0, 0]].concat(),
        [&after_compression[..], &vec16(&[0, 0, 0])].concat(),
        [&after_compression[..], &vec16(&[0, 0, 0, 1])].concat(),
    ] {
        let input = records(&handshake(1, &bad), &[]);
        let answer = parse_client_hello(&input);
        assert!(
            matches!(answer, Err(HelloError::Malformed(_))),
            "{answer:?}"
        );
    }
}

proptest! {
    /// A framed hello with anything in its extensions is read, and says nothing about a field that it could not read.
    #[test]
    fn extension_bodies_may_hold_anything(
        extensions in prop::collection::vec(
            (
                prop::sample::select(vec![0_u16, 10, 11, 13, 16, 27, 41, 42, 43, 51, 0xfe0d, 0x0a0a, 99]),
                prop::collection::vec(prop_oneof![0..8_u8, any::<u8>()], 0..24),
            ),
            0..8,
        ),
    ) {
        let mut builder = HelloBuilder::new();
        builder.extensions = Some(extensions.clone());
        let hello = builder.parse();
        let types: Vec<u16> = extensions.iter().map(|(kind, _)| *kind).collect();
        prop_assert_eq!(&hello.extensions, &types);
        if let Some(name) = &hello.server_name {
            prop_assert!(!name.is_empty() && !name.ends_with('.'));
            prop_assert_eq!(name, &name.to_ascii_lowercase());
        }
        prop_assert!(hello.alpn.iter().all(|name| !name.is_empty()));
        for text in [hello.ja3(), hello.ja3_string(), hello.ja4(), hello.ja4_raw(), hello.ja4_o(), hello.ja4_ro()] {
            prop_assert!(text.is_ascii());
        }
        prop_assert_eq!(hello.ja3().len(), 32);
        prop_assert_eq!(hello.ja4().len(), 36);
    }

    /// Bytes changed anywhere in a valid hello: never a panic, and whatever is read is consistent with the input.
    #[test]
    fn mutations_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut input = HelloBuilder::browser().record();
        for (index, byte) in changes {
            let index = index.index(input.len());
            input[index] = byte;
        }
        if let Ok(tollgate_wire::tls::HelloStatus::Complete(hello)) = parse_client_hello(&input) {
            prop_assert!(hello.raw_len <= input.len());
            prop_assert_eq!(&complete(&input[..hello.raw_len]), &*hello);
            let _ = (hello.ja3(), hello.ja4());
        }
        let _ = parse_client_hello(&input[..cut.index(input.len())]);
    }
}
