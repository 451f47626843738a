//! Content codings: every format, every split, every bound.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use proptest::prelude::*;
use tollgate_wire::coding::{Coding, CodingError, Decoder, Encoder, OutputLimit};

const NO_LIMIT: OutputLimit = OutputLimit {
    total: u64::MAX,
    per_feed: usize::MAX,
};

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut e = GzEncoder::new(Vec::new(), Compression::default());
    e.write_all(data).unwrap();
    e.finish().unwrap()
}

fn zlib(data: &[u8]) -> Vec<u8> {
    let mut e = ZlibEncoder::new(Vec::new(), Compression::default());
    e.write_all(data).unwrap();
    e.finish().unwrap()
}

fn raw_deflate(data: &[u8]) -> Vec<u8> {
    let mut e = DeflateEncoder::new(Vec::new(), Compression::default());
    e.write_all(data).unwrap();
    e.finish().unwrap()
}

fn brotli(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let params = brotli::enc::BrotliEncoderParams {
        quality: 5,
        ..Default::default()
    };
    brotli::BrotliCompress(&mut &*data, &mut out, &params).unwrap();
    out
}

fn zstd_frame(data: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(data, 3).unwrap()
}

fn decoder(header: &str, limit: OutputLimit) -> Decoder {
    Decoder::new([header.as_bytes()].into_iter(), limit)
        .unwrap()
        .unwrap()
}

/// Decodes `pieces` one feed each; what came out, and how it ended.
fn decode<'a>(
    header: &str,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    limit: OutputLimit,
) -> (Vec<u8>, Result<(), CodingError>) {
    let mut decoder = decoder(header, limit);
    let mut out = Vec::new();
    for piece in pieces {
        if let Err(error) = decoder.feed(piece, &mut out) {
            return (out, Err(error));
        }
    }
    assert_eq!(decoder.total_out(), out.len() as u64);
    let end = decoder.finish(&mut out);
    (out, end)
}

fn decode_whole(header: &str, packed: &[u8]) -> (Vec<u8>, Result<(), CodingError>) {
    decode(header, [packed], NO_LIMIT)
}

fn sample() -> Vec<u8> {
    (0u32..131_072)
        .flat_map(|i| [(i % 251) as u8, (i / 7 % 13) as u8])
        .collect()
}

/// Each coding's name with a packer for it.
type Packer = fn(&[u8]) -> Vec<u8>;
const CODINGS: [(&str, Packer); 5] = [
    ("gzip", gzip),
    ("deflate", zlib),
    ("deflate", raw_deflate),
    ("br", brotli),
    ("zstd", zstd_frame),
];

#[test]
fn every_coding_round_trips_whole_and_byte_by_byte() {
    let data = sample();
    for (header, pack) in CODINGS {
        let packed = pack(&data);
        assert_eq!(
            decode_whole(header, &packed),
            (data.clone(), Ok(())),
            "{header}"
        );
        assert_eq!(
            decode(header, packed.chunks(1), NO_LIMIT),
            (data.clone(), Ok(())),
            "{header} by the byte"
        );
    }
}

/// Output that fills the decoder's buffers exactly must not be taken for an unfinished stream.
#[test]
fn bodies_of_round_sizes_are_complete() {
    for size in [4 << 10, 16 << 10, 32 << 10, 128 << 10, 256 << 10] {
        let data = &sample()[..size];
        for (header, pack) in CODINGS {
            let (out, end) = decode_whole(header, &pack(data));
            assert!(out == data && end == Ok(()), "{header} of {size}: {end:?}");
        }
    }
}

#[test]
fn header_values_are_read_as_one_list() {
    let none = |values: &[&str]| {
        Decoder::new(values.iter().map(|v| v.as_bytes()), NO_LIMIT)
            .unwrap()
            .is_none()
    };
    assert!(none(&[]));
    assert!(none(&["", " , "]));
    assert!(none(&["identity", "Identity"]));
    assert_eq!(Coding::parse(b"X-GZIP"), Ok(Coding::Gzip));

    let error = |value: &str| Decoder::new([value.as_bytes()].into_iter(), NO_LIMIT).unwrap_err();
    assert_eq!(
        error("gzip, compress"),
        CodingError::Unknown("compress".into())
    );
    assert_eq!(error("gz\u{1}ip"), CodingError::Unknown("gz\\x01ip".into()));
    assert_eq!(error("gzip,br,gzip,br,gzip"), CodingError::TooManyCodings);
    assert!(Decoder::new([&b"gzip,identity,br,gzip,br"[..]].into_iter(), NO_LIMIT).is_ok());

    let packed = brotli(&gzip(b"twice"));
    let mut two_lines = Decoder::new([&b"gzip"[..], b" br "].into_iter(), NO_LIMIT)
        .unwrap()
        .unwrap();
    let mut out = Vec::new();
    two_lines.feed(&packed, &mut out).unwrap();
    two_lines.finish(&mut out).unwrap();
    assert_eq!(out, b"twice");
}

#[test]
fn an_event_comes_out_with_its_last_byte() {
    let events = [&b"data: one\n\n"[..], b"data: two\n\n", b"data: three\n\n"];
    for header in ["gzip", "deflate", "zstd"] {
        let mut encoder = Encoder::new(Coding::parse(header.as_bytes()).unwrap()).unwrap();
        let mut decoder = decoder(header, NO_LIMIT);
        for event in events {
            let (mut packed, mut out) = (Vec::new(), Vec::new());
            encoder.feed(event, &mut packed).unwrap();
            decoder.feed(&packed, &mut out).unwrap();
            assert_eq!(out, event, "{header}");
        }
        let (mut packed, mut out) = (Vec::new(), Vec::new());
        encoder.finish(&mut packed).unwrap();
        decoder.feed(&packed, &mut out).unwrap();
        decoder.finish(&mut out).unwrap();
        assert!(out.is_empty());
    }

    let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
    let mut decoder = decoder("br", NO_LIMIT);
    for event in events {
        encoder.write_all(event).unwrap();
        encoder.flush().unwrap();
        let packed = std::mem::take(encoder.get_mut());
        let mut out = Vec::new();
        decoder.feed(&packed, &mut out).unwrap();
        assert_eq!(out, event, "br");
    }
}

#[test]
fn a_gzip_member_may_have_every_optional_field() {
    let mut e = flate2::GzBuilder::new()
        .filename("name")
        .comment("comment")
        .extra(vec![7; 300])
        .write(Vec::new(), Compression::default());
    e.write_all(b"fields").unwrap();
    let packed = e.finish().unwrap();
    assert_eq!(
        decode("gzip", packed.chunks(1), NO_LIMIT),
        (b"fields".to_vec(), Ok(()))
    );
}

#[test]
fn gzip_members_padding_and_garbage_follow_each_other() {
    let cases: [(&str, Vec<u8>, &[u8]); 6] = [
        ("two members", [gzip(b"a"), gzip(b"b")].concat(), b"ab"),
        (
            "zeros between",
            [gzip(b"a"), vec![0; 9], gzip(b"b")].concat(),
            b"ab",
        ),
        ("garbage", [gzip(b"a"), b"garbage".to_vec()].concat(), b"a"),
        ("half a magic", [gzip(b"a"), vec![0x1f]].concat(), b"a"),
        (
            "false magic",
            [gzip(b"a"), vec![0x1f, 0x1f, 0x8b]].concat(),
            b"a",
        ),
        (
            "empty members",
            [gzip(b""), gzip(b""), gzip(b"c")].concat(),
            b"c",
        ),
    ];
    for (name, packed, plain) in cases {
        assert_eq!(
            decode_whole("gzip", &packed),
            (plain.to_vec(), Ok(())),
            "{name}"
        );
        assert_eq!(
            decode("gzip", packed.chunks(1), NO_LIMIT),
            (plain.to_vec(), Ok(())),
            "{name} by the byte"
        );
    }
    let cut = [gzip(b"a"), gzip(b"b")[..12].to_vec()].concat();
    assert_eq!(
        decode_whole("gzip", &cut).1,
        Err(CodingError::Truncated {
            coding: Coding::Gzip
        })
    );
}

#[test]
fn what_follows_a_finished_deflate_or_brotli_stream_is_ignored() {
    for (header, pack) in CODINGS {
        if header != "zstd" {
            let packed = [pack(b"text"), b"\xffjunk".to_vec()].concat();
            assert_eq!(
                decode(header, packed.chunks(2), NO_LIMIT),
                (b"text".to_vec(), Ok(())),
                "{header}"
            );
        }
    }
}

#[test]
fn checksums_are_verified() {
    let mut wrong_crc = gzip(b"checked");
    let at = wrong_crc.len() - 8;
    wrong_crc[at] ^= 1;
    let mut wrong_size = gzip(b"checked");
    let at = wrong_size.len() - 1;
    wrong_size[at] ^= 1;
    let mut wrong_adler = zlib(b"checked");
    let at = wrong_adler.len() - 1;
    wrong_adler[at] ^= 1;
    for (header, packed) in [
        ("gzip", wrong_crc),
        ("gzip", wrong_size),
        ("deflate", wrong_adler),
    ] {
        let (out, end) = decode_whole(header, &packed);
        assert!(
            matches!(end, Err(CodingError::Corrupt { .. })),
            "{header}: {end:?}"
        );
        assert_eq!(out, b"checked", "what came before the error is kept");
    }
}

#[test]
fn every_cut_is_noticed() {
    let data = b"the quick brown fox jumps over the lazy dog, and over the lazy dog again";
    for (header, pack) in CODINGS {
        let packed = pack(data);
        for length in 1..packed.len() {
            let (_, end) = decode_whole(header, &packed[..length]);
            assert!(
                matches!(end, Err(CodingError::Truncated { .. })),
                "{header} cut to {length} of {}: {end:?}",
                packed.len()
            );
        }
        assert_eq!(decode(header, [], NO_LIMIT), (Vec::new(), Ok(())));
        assert_eq!(decode_whole(header, b""), (Vec::new(), Ok(())));
    }
}

#[test]
fn errors_are_sticky() {
    let mut decoder = decoder("gzip", NO_LIMIT);
    let mut out = Vec::new();
    let first = decoder.feed(b"not gzip at all", &mut out).unwrap_err();
    assert!(matches!(
        first,
        CodingError::Corrupt {
            coding: Coding::Gzip,
            ..
        }
    ));
    assert_eq!(decoder.feed(&gzip(b"fine"), &mut out), Err(first.clone()));
    assert_eq!(decoder.finish(&mut out), Err(first));
    assert!(out.is_empty());
}

#[test]
fn zstd_reads_frame_after_frame_and_skippable_frames() {
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
    let packed = [zstd_frame(b"one "), skippable, zstd_frame(b"two")].concat();
    assert_eq!(decode_whole("zstd", &packed), (b"one two".to_vec(), Ok(())));
    assert_eq!(
        decode("zstd", packed.chunks(1), NO_LIMIT),
        (b"one two".to_vec(), Ok(()))
    );
}

#[test]
fn zstd_windows_over_8_mib_are_refused() {
    // Magic, no single segment, then the window descriptor (exponent in the upper five bits, from 1
    // KiB), an empty last block.
    let frame = |exponent: u8| {
        [
            0x28,
            0xb5,
            0x2f,
            0xfd,
            0x00,
            exponent << 3,
            0x01,
            0x00,
            0x00,
        ]
    };
    assert_eq!(decode_whole("zstd", &frame(13)), (Vec::new(), Ok(())));
    assert!(matches!(
        decode_whole("zstd", &frame(14)).1,
        Err(CodingError::Corrupt {
            coding: Coding::Zstd,
            ..
        })
    ));
}

#[test]
fn the_large_window_extension_of_brotli_is_refused() {
    let params = brotli::enc::BrotliEncoderParams {
        large_window: true,
        lgwin: 28,
        quality: 5,
        ..Default::default()
    };
    let mut packed = Vec::new();
    brotli::BrotliCompress(&mut &b"large"[..], &mut packed, &params).unwrap();
    assert!(matches!(
        decode_whole("br", &packed).1,
        Err(CodingError::Corrupt {
            coding: Coding::Br,
            ..
        })
    ));
}

/// 200 MiB of zeros against a limit of 1 MiB.
#[test]
fn a_bomb_stays_within_its_bounds() {
    let zeros = vec![0u8; 1 << 20];
    let mut gzip_bomb = GzEncoder::new(Vec::new(), Compression::default());
    let mut zstd_bomb = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    for _ in 0..200 {
        gzip_bomb.write_all(&zeros).unwrap();
        zstd_bomb.write_all(&zeros).unwrap();
    }
    let bombs = [
        ("gzip", gzip_bomb.finish().unwrap()),
        ("zstd", zstd_bomb.finish().unwrap()),
    ];
    let limit = OutputLimit {
        total: 1 << 20,
        per_feed: usize::MAX,
    };
    for (header, bomb) in &bombs {
        for size in [bomb.len(), 1500] {
            let (out, end) = decode(header, bomb.chunks(size), limit);
            assert_eq!(end, Err(CodingError::LimitExceeded), "{header}");
            assert_eq!(out.len(), 1 << 20, "{header}");
            assert!(out.capacity() <= 2 << 20, "{header}: {}", out.capacity());
        }
    }
    // The outer layers hide how much the inner one produces; the inner one is stopped nonetheless.
    let nested = gzip(&gzip(&bombs[0].1));
    let (out, end) = decode("gzip, gzip, gzip", [&nested[..]], limit);
    assert_eq!(end, Err(CodingError::LimitExceeded));
    assert_eq!(out.len(), 1 << 20);
}

#[test]
fn a_layer_that_shows_nothing_is_limited_too() {
    // The inner coding ignores what follows its end: the outer one could inflate forever without
    // any output.
    let inner = [gzip(b"x"), vec![b'!'; 4 << 20]].concat();
    let limit = OutputLimit {
        total: 1 << 20,
        per_feed: usize::MAX,
    };
    let (out, end) = decode("gzip, gzip", [&gzip(&inner)[..]], limit);
    assert_eq!(
        (out.as_slice(), end),
        (&b"x"[..], Err(CodingError::LimitExceeded))
    );
}

#[test]
fn limits_are_exact() {
    let data = vec![b'z'; 100_000];
    let at = |total, per_feed| OutputLimit { total, per_feed };
    for (header, pack) in CODINGS {
        let packed = pack(&data);
        let run = |limit| decode(header, [&packed[..]], limit);
        assert_eq!(
            run(at(100_000, 100_000)),
            (data.clone(), Ok(())),
            "{header}"
        );
        for limit in [at(99_999, usize::MAX), at(u64::MAX, 99_999)] {
            let (out, end) = run(limit);
            assert_eq!(
                (out.len(), end),
                (99_999, Err(CodingError::LimitExceeded)),
                "{header}"
            );
        }
    }
    // What one feed may add starts anew with the next.
    let packed = [gzip(&data), gzip(&data)];
    let pieces = packed.iter().map(Vec::as_slice);
    let (out, end) = decode("gzip", pieces, at(u64::MAX, 100_000));
    assert_eq!((out.len(), end), (200_000, Ok(())));
}

/// The input of dropbox/rust-brotli-decompressor#24, which made an old release overflow.
#[test]
fn a_hostile_brotli_stream_is_an_error() {
    let stream = [
        17, 27, 17, 17, 17, 17, 149, 149, 37, 208, 17, 17, 149, 149, 236, 234, 0, 0, 0, 8, 0, 0,
        32, 44, 32, 44, 255, 255, 255, 255, 61, 4, 103, 122, 0, 0, 247, 115, 105, 114, 0, 0, 8, 0,
        0, 0, 0, 0, 0, 0, 252, 0, 0, 32, 0, 0, 0, 0, 33, 225, 252,
    ];
    for size in [1, 7, stream.len()] {
        assert!(decode("br", stream.chunks(size), NO_LIMIT).1.is_err());
    }
}

#[test]
fn a_decoder_can_move_between_threads() {
    fn assert_send<T: Send>() {}
    assert_send::<Decoder>();
    assert_send::<Encoder>();
}

fn pieces<'a>(data: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut % (data.len() + 1)).collect();
    at.extend([0, data.len()]);
    at.sort_unstable();
    at.windows(2).map(|w| &data[w[0]..w[1]]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same(
        data in proptest::collection::vec(0u8..5, 0..3000),
        which in 0..CODINGS.len(),
        outer in 0..CODINGS.len(),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        let packed = CODINGS[outer].1(&CODINGS[which].1(&data));
        let header = format!("{}, {}", CODINGS[which].0, CODINGS[outer].0);
        prop_assert_eq!(decode(&header, pieces(&packed, &cuts), NO_LIMIT), (data, Ok(())));
    }

    #[test]
    fn damage_never_panics_nor_breaks_the_limit(
        data in proptest::collection::vec(0u8..5, 0..3000),
        which in 0..CODINGS.len(),
        damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6),
        cuts in proptest::collection::vec(any::<usize>(), 0..4),
    ) {
        let (header, pack) = CODINGS[which];
        let mut packed = pack(&data);
        for (at, byte) in damage {
            let at = at % packed.len();
            packed[at] = byte;
        }
        let limit = OutputLimit { total: 2000, per_feed: 1000 };
        let (out, _) = decode(header, pieces(&packed, &cuts), limit);
        prop_assert!(out.len() <= 2000);
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        data in proptest::collection::vec(any::<u8>(), 0..300),
        which in 0..CODINGS.len(),
    ) {
        let limit = OutputLimit { total: 10_000, per_feed: 10_000 };
        let (out, _) = decode(CODINGS[which].0, [&data[..]], limit);
        prop_assert!(out.len() <= 10_000);
    }

    #[test]
    fn encoders_and_decoders_agree(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..5),
    ) {
        for coding in [Coding::Gzip, Coding::Deflate, Coding::Zstd] {
            let mut encoder = Encoder::new(coding).unwrap();
            let mut packed = Vec::new();
            for part in &parts {
                encoder.feed(part, &mut packed).unwrap();
            }
            encoder.finish(&mut packed).unwrap();
            prop_assert_eq!(decode_whole(coding.as_str(), &packed), (parts.concat(), Ok(())));
        }
    }
}
