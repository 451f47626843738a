//! HTTP/3: the same frames however a stream is cut, bounds, field sections that are read back as they
//! were written, and settings.
//!
//! An input is read as the bytes of a stream, as a field section and as settings.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_fuzz::Random;
use tollgate_wire::http3::qpack::{self, Limits};
use tollgate_wire::http3::{FrameDecoder, FrameError, FrameKind, Settings, Step};

const HEADERS: usize = 4096;

fuzz_target!(|input: &[u8]| {
    let whole = read(input, usize::MAX);
    let mut random = Random::of(input);
    assert_eq!(read(input, 1), whole);
    assert_eq!(read(input, 1 + random.below(40)), whole);

    let limits = Limits {
        bytes: 8192,
        lines: 64,
    };
    if let Ok(fields) = qpack::decode(input, &limits) {
        assert!(fields.len() <= limits.lines);
        let size: usize = fields.iter().map(|f| f.name.len() + f.value.len() + 32).sum();
        assert!(size <= limits.bytes);
        let mut block = Vec::new();
        qpack::encode(fields.iter().map(|f| (&*f.name, &*f.value)), &mut block);
        assert_eq!(qpack::decode(&block, &limits).as_ref(), Ok(&fields));
    }
    if let Ok(settings) = Settings::parse(input) {
        let mut payload = Vec::new();
        settings.write_to(&mut payload);
        assert_eq!(Settings::parse(&payload), Ok(settings));
    }
});

/// The frames of a stream that comes in pieces of this length; the bytes of a body are joined.
fn read(input: &[u8], piece: usize) -> Result<Vec<(FrameKind, Vec<u8>)>, FrameError> {
    let mut decoder = FrameDecoder::new(HEADERS);
    let mut out: Vec<(FrameKind, Vec<u8>)> = Vec::new();
    for mut piece in input.chunks(piece.max(1)) {
        loop {
            match decoder.next(piece)? {
                Step::More => break,
                Step::Data { skip, length } => {
                    assert!(length > 0);
                    let data = &piece[skip..skip + length];
                    match out.last_mut() {
                        Some((FrameKind::Data, body)) => body.extend_from_slice(data),
                        _ => out.push((FrameKind::Data, data.to_vec())),
                    }
                    piece = &piece[skip + length..];
                }
                Step::Frame {
                    used,
                    kind,
                    payload,
                } => {
                    assert!(payload.len() <= HEADERS);
                    assert!(kind != FrameKind::Data);
                    out.push((kind, payload));
                    piece = &piece[used..];
                }
            }
        }
    }
    decoder.finish()?;
    Ok(out)
}
