//! JA3 and JA4 against published fingerprints: the JA3 README, and the JA4 specification and test data.

use tollgate_wire::tls::ClientHello;

use crate::builder::{HelloBuilder, alpn, ech_outer, key_share, server_name, u16s, vec8, vec16};

/// The two examples of the JA3 README, and GREASE in every list that JA3 reads.
#[test]
fn ja3_published() {
    for (string, digest) in [
        (
            "769,47-53-5-10-49161-49162-49171-49172-50-56-19-4,0-10-11,23-24-25,0",
            "ada70206e40642a3e4461f35503241d5",
        ),
        (
            "769,4-5-10-9-100-98-3-6-19-18-99,,,",
            "de350869b8c85de67a350c8d186f11e6",
        ),
    ] {
        for grease in [false, true] {
            let hello = from_ja3(string, grease);
            assert_eq!(hello.ja3_string(), string);
            assert_eq!(hello.ja3(), digest);
        }
    }
}

/// The example of the JA4 specification in all four forms, and captures published with it: other browsers, TLS 1.2, no ALPN, a
/// repeated signature algorithm, an ALPN that is not ASCII, no extension but SNI.
#[test]
fn ja4_published() {
    const CHROME_R: &str = "002f,0035,009c,009d,1301,1302,1303,c013,c014,c02b,c02c,c02f,c030,cca8,cca9_0005,000a,000b,000d,0012,0015,0017,001b,0023,002b,002d,0033,4469,ff01_0403,0804,0401,0503,0805,0501,0806,0601";
    for (ja4, ja4_r, ja4_o, ja4_ro, first_alpn) in [
        (
            "t13d1516h2_8daaf6152771_e5627efa2ab1",
            CHROME_R,
            "t13d1516h2_acb858a92679_18f69afefd3d",
            "1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035_001b,0000,0033,0010,4469,0017,002d,000d,0005,0023,0012,002b,ff01,000b,000a,0015_0403,0804,0401,0503,0805,0501,0806,0601",
            &b"h2"[..],
        ),
        (
            // Published as 99 by an implementation older than the rule for names that are not ASCII, which gives bd.
            "t13d1516bd_8daaf6152771_e5627efa2ab1",
            CHROME_R,
            "t13d1516bd_acb858a92679_8fc3c02244b2",
            "1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035_ff01,0033,002d,0005,4469,000d,0010,0023,001b,002b,0000,0012,000a,0017,000b,0015_0403,0804,0401,0503,0805,0501,0806,0601",
            &[0xba, 0xad],
        ),
        (
            "t13d1517h2_8daaf6152771_cb7bf5808d99",
            "002f,0035,009c,009d,1301,1302,1303,c013,c014,c02b,c02c,c02f,c030,cca8,cca9_0005,000a,000b,000d,0012,0017,001b,0023,002b,002d,0033,44cd,ca34,fe0d,ff01_0904,0905,0906,0403,0804,0401,0503,0805,0501,0806,0601",
            "t13d1517h2_acb858a92679_88bf22a3e888",
            "1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035_fe0d,0010,0017,0033,44cd,ff01,000a,000d,0023,002b,000b,ca34,002d,0000,0005,001b,0012_0904,0905,0906,0403,0804,0401,0503,0805,0501,0806,0601",
            b"h2",
        ),
        (
            "t13d1517h1_8daaf6152771_6cdcb247c39b",
            "002f,0035,009c,009d,1301,1302,1303,c013,c014,c02b,c02c,c02f,c030,cca8,cca9_0005,000a,000b,000d,0012,0015,0017,001b,0023,0029,002b,002d,0033,4469,ff01_0403,0804,0401,0503,0805,0501,0806,0601",
            "t13d1517h1_acb858a92679_98b2855b1dea",
            "1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035_0000,0017,0005,002b,0012,0023,000a,0033,0010,002d,001b,4469,000b,000d,ff01,0015,0029_0403,0804,0401,0503,0805,0501,0806,0601",
            b"http/1.1",
        ),
        (
            "t13d151400_8daaf6152771_de4a06bb82e3",
            "002f,0035,009c,009d,1301,1302,1303,c013,c014,c02b,c02c,c02f,c030,cca8,cca9_0005,000a,000b,000d,0012,0015,0017,001b,0023,002b,002d,0033,ff01_0403,0804,0401,0503,0805,0501,0806,0601",
            "t13d151400_acb858a92679_2f4561be1d1f",
            "1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035_0033,002b,001b,0000,0012,002d,000d,000a,0005,0023,0017,ff01,000b,0015_0403,0804,0401,0503,0805,0501,0806,0601",
            b"",
        ),
        (
            "t13d1715h2_5b57614c22b0_3d5424432f57",
            "002f,0035,009c,009d,1301,1302,1303,c009,c00a,c013,c014,c02b,c02c,c02f,c030,cca8,cca9_0005,000a,000b,000d,0015,0017,001c,0022,0023,002b,002d,0033,ff01_0403,0503,0603,0804,0805,0806,0401,0501,0601,0203,0201",
            "t13d1715h2_5b234860e130_014157ec0da2",
            "1301,1303,1302,c02b,c02f,cca9,cca8,c02c,c030,c00a,c009,c013,c014,009c,009d,002f,0035_0000,0017,ff01,000a,000b,0023,0010,0005,0022,0033,002b,000d,002d,001c,0015_0403,0503,0603,0804,0805,0806,0401,0501,0601,0203,0201",
            b"h2",
        ),
        (
            "t13d2613h2_2802a3db6c62_845d286b0d67",
            "000a,002f,0035,003c,003d,009c,009d,1301,1302,1303,c008,c009,c00a,c012,c013,c014,c023,c024,c027,c028,c02b,c02c,c02f,c030,cca8,cca9_0005,000a,000b,000d,0012,0015,0017,002b,002d,0033,ff01_0403,0804,0401,0503,0203,0805,0805,0501,0806,0601,0201",
            "t13d2613h2_78a7dc604b78_93870a65b655",
            "1301,1302,1303,c02c,c02b,c024,c023,c00a,c009,cca9,c030,c02f,c028,c027,c014,c013,cca8,009d,009c,003d,003c,0035,002f,c008,c012,000a_ff01,0000,0017,000d,0005,0012,0010,000b,0033,002d,002b,000a,0015_0403,0804,0401,0503,0203,0805,0805,0501,0806,0601,0201",
            b"h2",
        ),
        (
            "t12d4605h2_85626a9a5f7f_aaf95bb78ec9",
            "0004,0005,000a,0016,002f,0033,0035,0039,003c,003d,0041,0045,0067,006b,0081,0084,0088,009c,009d,009e,009f,00ba,00be,00c0,00c4,00ff,c007,c008,c009,c00a,c011,c012,c013,c014,c023,c024,c027,c028,c02b,c02c,c02f,c030,cca8,cca9,ccaa,ff85_000a,000b,000d_0601,0603,efef,0501,0503,0401,0403,eeee,eded,0301,0303,0201,0203",
            "t12d4605h2_644f5d117d98_094daec7ec8d",
            "c030,c02c,c028,c024,c014,c00a,009f,006b,0039,cca9,cca8,ccaa,ff85,00c4,0088,0081,009d,003d,0035,00c0,0084,c02f,c02b,c027,c023,c013,c009,009e,0067,0033,00be,0045,009c,003c,002f,00ba,0041,c011,c007,0005,0004,c012,c008,0016,000a,00ff_0000,000b,000a,000d,0010_0601,0603,efef,0501,0503,0401,0403,eeee,eded,0301,0303,0201,0203",
            b"h2",
        ),
        (
            "t12d190800_d83cc789557e_7af1ed941c26",
            "000a,002f,0035,003c,003d,009c,009d,c009,c00a,c013,c014,c023,c024,c027,c028,c02b,c02c,c02f,c030_0005,000a,000b,000d,0017,0023,ff01_0804,0805,0806,0401,0501,0201,0403,0503,0203,0202,0601,0603",
            "t12d190800_e8d5f427a2c5_5e98404dd3cc",
            "c02c,c02b,c030,c02f,c024,c023,c028,c027,c00a,c009,c014,c013,009d,009c,003d,003c,0035,002f,000a_0000,0005,000a,000b,000d,0023,0017,ff01_0804,0805,0806,0401,0501,0201,0403,0503,0203,0202,0601,0603",
            b"",
        ),
        (
            "t10d230100_6a57a6f57151_000000000000",
            "0003,0004,0005,0006,0008,0009,000a,0011,0012,0013,0014,0015,0016,002f,0032,0033,0035,0038,0039,0096,0099,009a,00ff_",
            "t10d230100_ce175d585f73_000000000000",
            "0039,0038,0035,0016,0013,000a,0033,0032,002f,009a,0099,0096,0005,0004,0015,0012,0009,0014,0011,0008,0006,0003,00ff_0000",
            b"",
        ),
    ] {
        let (readable, _) = ja4.split_once('_').unwrap();
        for grease in [false, true] {
            let hello = from_ja4_ro(readable, ja4_ro, first_alpn, grease);
            assert_eq!(hello.anomalies, [], "{ja4}");
            assert_eq!(hello.ja4(), ja4);
            assert_eq!(hello.ja4_raw(), format!("{readable}_{ja4_r}"));
            assert_eq!(hello.ja4_o(), ja4_o);
            assert_eq!(hello.ja4_ro(), format!("{readable}_{ja4_ro}"));
        }
    }
}

/// The extension hash that the specification gives for its example without signature algorithms.
#[test]
fn ja4_without_signature_algorithms() {
    let ro = "1301_0005,000a,000b,000d,0012,0015,0017,001b,0023,002b,002d,0033,4469,ff01_0403";
    let mut hello = from_ja4_ro("t13i0114", ro, b"", true);
    for only_grease in [vec![], vec![0x0a0a]] {
        hello.signature_algorithms = only_grease;
        assert!(hello.ja4().ends_with("_6d807ffa2a79"), "{}", hello.ja4());
        assert!(hello.ja4_raw().ends_with(",ff01"));
    }
}

/// `d` tells that a server_name extension is there, even when its name is none.
#[test]
fn ja4_counts_a_server_name_that_cannot_be_read() {
    let hello = HelloBuilder::new().with(0, &server_name(b"::1")).parse();
    assert_eq!(hello.server_name, None);
    assert!(hello.ja4().starts_with("t12d020100_"));
    let without = HelloBuilder::new().parse();
    assert!(without.ja4().starts_with("t12i020000_"));
    assert!(without.ja4().ends_with("_000000000000"));
}

/// A hello with the lists of a JA3 string.
fn from_ja3(string: &str, grease: bool) -> ClientHello {
    let lists: Vec<Vec<u16>> = string
        .split(',')
        .map(|list| list.split('-').filter_map(|v| v.parse().ok()).collect())
        .collect();
    let [version, ciphers, extensions, groups, formats] = lists.as_slice() else {
        panic!("{string}");
    };
    let formats: Vec<u8> = formats.iter().map(|f| u8::try_from(*f).unwrap()).collect();
    let mut builder = HelloBuilder {
        version: version[0],
        cipher_suites: greased(ciphers, grease),
        extensions: None,
    };
    for kind in greased(extensions, grease && !extensions.is_empty()) {
        builder = match kind {
            0 => builder.with(kind, &server_name(b"example.com")),
            10 => builder.with(kind, &vec16(&u16s(&greased(groups, grease)))),
            11 => builder.with(kind, &vec8(&formats)),
            _ => builder.with(kind, &[]),
        };
    }
    builder.parse()
}

/// A hello with the lists of a JA4_ro string, `readable` being the part before the first underscore.
fn from_ja4_ro(readable: &str, lists: &str, first_alpn: &[u8], grease: bool) -> ClientHello {
    let hex = |list: &str| -> Vec<u16> {
        let values = list.split(',').filter(|value| !value.is_empty());
        values
            .map(|value| u16::from_str_radix(value, 16).unwrap())
            .collect()
    };
    let mut lists = lists.split('_').map(hex);
    let mut next = || lists.next().unwrap_or_default();
    let (ciphers, extensions, algorithms) = (next(), next(), next());
    let version = match readable.get(1..3) {
        Some("13") => 0x0304,
        Some("12") => 0x0303,
        Some("10") => 0x0301,
        other => panic!("{other:?}"),
    };
    let mut builder = HelloBuilder {
        version: version.min(0x0303),
        cipher_suites: greased(&ciphers, grease),
        extensions: Some(Vec::new()),
    };
    for kind in greased(&extensions, grease) {
        let body = match kind {
            0x0000 => server_name(b"example.com"),
            0x000a => vec16(&u16s(&greased(&[29, 23, 24], grease))),
            0x000b => vec8(&[0]),
            0x000d => vec16(&u16s(&greased(&algorithms, grease))),
            0x0010 => alpn(&[first_alpn, b"http/1.1"]),
            0x001b => vec8(&u16s(&[2])),
            0x002b => vec8(&u16s(&greased(&[version, 0x0303], grease))),
            0x0033 => vec16(&key_share(29, 32)),
            0xfe0d => ech_outer(1),
            _ => Vec::new(),
        };
        builder = builder.with(kind, &body);
    }
    builder.parse()
}

/// The list, with GREASE at both ends if it is asked for.
fn greased(list: &[u16], grease: bool) -> Vec<u16> {
    match grease {
        true => [&[0x2a2a], list, &[0xfafa]].concat(),
        false => list.to_vec(),
    }
}
