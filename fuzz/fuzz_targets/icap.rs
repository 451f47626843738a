//! ICAP messages from arbitrary bytes: the same for every cut, within their bounds, and written back as they were read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_fuzz::cuts;
use tollgate_wire::http1::{HeadLimits, Parsed};
use tollgate_wire::icap::{
    BodyReader, BodyState, Encapsulated, HttpHeads, IcapError, RequestHead, ResponseHead, Shape,
};

const LIMITS: HeadLimits = HeadLimits {
    bytes: 2048,
    lines: 16,
};

#[derive(Debug, PartialEq)]
struct Request {
    method: Vec<u8>,
    uri: String,
    shape: Shape,
    heads: HttpHeads,
    body: Vec<u8>,
    taken: usize,
}

fuzz_target!(|input: &[u8]| {
    let whole = request(&[input]);
    for pieces in cuts(input) {
        assert_eq!(request(&pieces), whole);
    }
    if let Ok(Some(request)) = &whole {
        assert!(request.taken <= input.len());
        let encapsulated = request.shape.encapsulated;
        assert_eq!(Encapsulated::parse(encapsulated.to_string().as_bytes()), Ok(encapsulated));
        let mut written = Vec::new();
        assert_eq!(request.heads.write_to(encapsulated.body(), &mut written), encapsulated);
        assert_eq!(HttpHeads::parse(&written, &encapsulated, &LIMITS).as_ref(), Ok(&request.heads));
    }
    let mut head = ResponseHead::default();
    let whole = head.parse(input, &LIMITS);
    if let Ok(Parsed::Complete { len }) = whole {
        assert!(len <= LIMITS.bytes);
        let mut written = Vec::new();
        head.write_to(&mut written);
        let mut again = ResponseHead::default();
        let roomy = HeadLimits { bytes: 2 * LIMITS.bytes, ..LIMITS };
        assert_eq!(again.parse(&written, &roomy), Ok(Parsed::Complete { len: written.len() }));
        assert_eq!(again.status(), head.status());
        assert!(again.headers.iter().eq(head.headers.iter()));
    }
    for len in 0..input.len().min(256) {
        let early = head.parse(&input[..len], &LIMITS);
        assert!(early == Ok(Parsed::Partial) || early == whole);
    }
});

/// A request that arrives in these pieces; `None` if more bytes are needed.
fn request(pieces: &[&[u8]]) -> Result<Option<Request>, IcapError> {
    let mut head = RequestHead::new();
    let mut arrived = Vec::new();
    let mut from = 0;
    let mut parts: Option<(Shape, HttpHeads, BodyReader)> = None;
    let mut body = Vec::new();
    for piece in pieces {
        arrived.extend_from_slice(piece);
        if parts.is_none() {
            let Parsed::Complete { len } = head.parse(&arrived, &LIMITS)? else {
                continue;
            };
            assert!(len <= LIMITS.bytes);
            let shape = Shape::of(&head)?;
            from = len + shape.encapsulated.heads_len();
            let Some(heads) = arrived.get(len..from) else {
                continue;
            };
            let heads = HttpHeads::parse(heads, &shape.encapsulated, &LIMITS)?;
            parts = Some((shape, heads, BodyReader::new(shape.preview)));
        }
        let Some((shape, _, reader)) = &mut parts else { continue };
        while shape.encapsulated.has_body() {
            let progress = reader.feed(&arrived[from..], |piece| body.extend_from_slice(piece))?;
            from += progress.consumed;
            if progress.state != BodyState::Preview {
                break;
            }
            if let Some(preview) = shape.preview {
                assert!(body.len() as u64 <= preview);
            }
            reader.go_on();
        }
    }
    let Some((shape, heads, reader)) = parts else { return Ok(None) };
    if shape.encapsulated.has_body() && reader.state() != BodyState::End {
        return Ok(None);
    }
    Ok(Some(Request {
        method: head.method().to_vec(),
        uri: head.uri().to_owned(),
        shape,
        heads,
        body,
        taken: from,
    }))
}
