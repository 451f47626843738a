//! AWS event streams from arbitrary bytes: the same messages for every split, none over its limit, and errors
//! that stay.
//!
//! No mutation finds a CRC-32, so that the input is also wrapped as messages with good checksums: as headers,
//! as payload, and as lengths.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_fuzz::split;
use tollgate_fuzz::split::{Split, check, check_stream};
use tollgate_wire::framing::{AwsEventStreamMessage, AwsEventStreamSplitter, StreamKind};

fuzz_target!(|input: &[u8]| {
    for limit in [1 << 20, 20] {
        check(input, limit, aws);
    }
    let as_headers = aws_message(input, b"payload");
    check(&as_headers, 1 << 20, aws);
    check_stream(&as_headers, 1 << 20, StreamKind::AwsEventStream);
    let as_payload = aws_message(b"\x01a\x00", input);
    assert_eq!(check(&as_payload, 1 << 20, aws).len(), 1);
    if let Some((lengths, rest)) = input.split_first_chunk::<8>() {
        let mut as_lengths = [lengths, &crc32(lengths)[..], rest].concat();
        as_lengths.extend(crc32(&as_lengths));
        check(&as_lengths, 1 << 20, aws);
    }
});

fn aws(pieces: &[&[u8]], limit: usize) -> Split {
    let whole = |message: AwsEventStreamMessage<'_>| {
        assert!(message.payload.len() <= limit);
        for (name, _) in &message.headers {
            assert!(!name.is_empty() && message.header(name).is_some());
        }
        [format!("{:?}", message.headers).as_bytes(), message.payload].concat()
    };
    let end = |end: Result<(), _>| end.map(|()| None);
    split!(
        AwsEventStreamSplitter::with_limit(limit),
        pieces,
        whole,
        end
    )
}

/// A message with these headers and this payload, and checksums that match.
fn aws_message(headers: &[u8], payload: &[u8]) -> Vec<u8> {
    let total = u32::try_from(16 + headers.len() + payload.len()).expect("short");
    let mut message = total.to_be_bytes().to_vec();
    message.extend(u32::try_from(headers.len()).expect("short").to_be_bytes());
    message.extend(crc32(&message));
    message.extend_from_slice(headers);
    message.extend_from_slice(payload);
    message.extend(crc32(&message));
    message
}

fn crc32(bytes: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().to_be_bytes()
}
