//! What is measured: one list of [`CASES`], which `benches/cases.rs` times and `src/bin/icount.rs` counts.
//!
//! A case is one operation of one part, on an input such as the proxy meets. The relay of a whole
//! exchange, which needs sockets and threads, is `benches/relay.rs`; whole proxies beside each other are
//! measured by `run-lab.sh`.
#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark whose input doesn't work has nothing to say, and stops"
)]

use std::hint::black_box;
use std::sync::Arc;

use tollgate_ca::{Authority, AuthorityParams, LeafCache, LeafRequest};
use tollgate_wire::coding::{Coding, Decoder, Encoder, OutputLimit};
use tollgate_wire::http1::{
    ChunkedDecoder, HeadLimits, Parsed, RequestHead, ResponseHead, encode_chunk, encode_last,
};
use tollgate_wire::sse::SseParser;
use tollgate_wire::tls::{ClientHello, HelloStatus, parse_client_hello};
use tollgate_wire::websocket::{
    Deflater, MessageReader, Opcode, PermessageDeflate, Sender, write_message_frame,
};

/// One operation that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// `part/operation`. It never changes: `icount.baseline` and criterion's history go by it.
    pub name: &'static str,
    /// Bytes that one operation reads or, for a content coding, gives out; 0 where bytes say nothing.
    pub bytes: u64,
    /// How many operations `icount` runs, and then twice as many.
    pub count: u64,
    /// Prepares the input and answers the operation.
    pub prepare: fn() -> Operation,
}

/// One call is one operation.
pub type Operation = Box<dyn FnMut()>;

/// Everything that is measured.
pub const CASES: &[Case] = &[
    case("http1/request-head", REQUEST.len(), 2000, request_head),
    case("http1/response-head", RESPONSE.len(), 2000, response_head),
    case("http1/chunked", LISTING_LEN, 200, chunked),
    case("tls/client-hello", HELLO.len(), 2000, client_hello),
    case("tls/ja4", 0, 500, ja4),
    case("ca/mint-p256", 0, 50, mint),
    case("ca/cache-hit", 0, 2000, cache_hit),
    case("coding/gzip", LISTING_LEN, 40, || coding(Coding::Gzip)),
    case("coding/deflate", LISTING_LEN, 40, || {
        coding(Coding::Deflate)
    }),
    case("coding/br", LISTING_LEN, 40, || coding(Coding::Br)),
    case("coding/zstd", LISTING_LEN, 40, || coding(Coding::Zstd)),
    case("sse/split", LISTING_LEN, 40, sse),
    case("websocket/masked", MESSAGES * MESSAGE, 1000, || {
        websocket(false)
    }),
    case("websocket/deflated", MESSAGES * MESSAGE, 40, || {
        websocket(true)
    }),
];

const fn case(name: &'static str, bytes: usize, count: u64, prepare: fn() -> Operation) -> Case {
    Case {
        name,
        bytes: bytes as u64,
        count,
        prepare,
    }
}

/// A browser's request for a page.
const REQUEST: &[u8] = b"GET /v1/projects/7/items?page=2&per_page=50 HTTP/1.1\r\n\
Host: api.example.com\r\n\
Connection: keep-alive\r\n\
sec-ch-ua: \"Chromium\";v=\"142\", \"Not_A Brand\";v=\"99\"\r\n\
sec-ch-ua-mobile: ?0\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36\r\n\
Accept: application/json, text/plain, */*\r\n\
Origin: https://app.example.com\r\n\
Sec-Fetch-Site: same-site\r\n\
Sec-Fetch-Mode: cors\r\n\
Sec-Fetch-Dest: empty\r\n\
Referer: https://app.example.com/\r\n\
Accept-Encoding: gzip, deflate, br, zstd\r\n\
Accept-Language: en-GB,en;q=0.9\r\n\
Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\r\n";

/// An API's answer, as it comes through a content delivery network.
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
Date: Fri, 02 Jan 2026 03:04:05 GMT\r\n\
Content-Type: application/json; charset=utf-8\r\n\
Transfer-Encoding: chunked\r\n\
Connection: keep-alive\r\n\
Cache-Control: private, max-age=0, must-revalidate\r\n\
ETag: W/\"0123456789abcdef0123456789abcdef\"\r\n\
Vary: Origin, Accept-Encoding\r\n\
Strict-Transport-Security: max-age=31536000; includeSubDomains; preload\r\n\
X-Request-Id: 01234567-89ab-cdef-0123-456789abcdef\r\n\
Content-Encoding: br\r\n\
Server: cdn\r\n\r\n";

/// The ClientHello of OpenSSL 3, with a name and two ALPN protocols.
const HELLO: &[u8] = include_bytes!("../fixtures/client_hello.bin");

/// [`listing`] in brotli, for which the wire crate has no encoder.
const LISTING_BR: &[u8] = include_bytes!("../fixtures/listing.json.br");

const LISTING_LEN: usize = 64 * 1024;

/// How much the proxy reads at a time.
const READ: usize = 16 * 1024;

fn request_head() -> Operation {
    let mut head = RequestHead::new();
    Box::new(move || {
        let parsed = head.parse(black_box(REQUEST), &HeadLimits::default());
        assert_eq!(parsed, Ok(Parsed::Complete { len: REQUEST.len() }));
        black_box(head.framing()).expect("no anomaly");
    })
}

fn response_head() -> Operation {
    let mut head = ResponseHead::new();
    Box::new(move || {
        let parsed = head.parse(black_box(RESPONSE), &HeadLimits::default());
        assert_eq!(
            parsed,
            Ok(Parsed::Complete {
                len: RESPONSE.len()
            })
        );
        black_box(head.framing(b"GET")).expect("no anomaly");
    })
}

/// A body in chunks of 4 KiB, which a read of 16 KiB cuts anywhere.
fn chunked() -> Operation {
    let mut wire = Vec::new();
    for chunk in listing().chunks(4096) {
        encode_chunk(&mut wire, chunk);
    }
    encode_last(&mut wire, None);
    Box::new(move || {
        let mut decoder = ChunkedDecoder::new(READ);
        let mut payload = 0;
        for read in wire.chunks(READ) {
            let fed = decoder.feed(black_box(read), |piece| payload += black_box(piece).len());
            fed.expect("no anomaly");
        }
        assert!(decoder.is_done() && payload == LISTING_LEN);
    })
}

fn client_hello() -> Operation {
    Box::new(|| {
        black_box(parsed_hello());
    })
}

fn ja4() -> Operation {
    let hello = parsed_hello();
    Box::new(move || {
        black_box(black_box(&hello).ja4());
    })
}

fn parsed_hello() -> Box<ClientHello> {
    match parse_client_hello(black_box(HELLO)) {
        Ok(HelloStatus::Complete(hello)) => hello,
        other => panic!("the fixture is no ClientHello: {other:?}"),
    }
}

/// A leaf for a host that was not asked for before, signed with P-256.
fn mint() -> Operation {
    let authority = authority();
    let mut host: u32 = 0;
    Box::new(move || {
        host += 1;
        let request = LeafRequest::new(format!("host-{host}.example.com"));
        black_box(authority.mint(&request)).expect("a leaf");
    })
}

fn cache_hit() -> Operation {
    let leaves = LeafCache::new(authority(), LeafCache::DEFAULT_CAPACITY);
    let request = LeafRequest::new("api.example.com").with_server_name("api.example.com");
    leaves.get_or_mint(&request).expect("a leaf");
    Box::new(move || {
        black_box(leaves.get_or_mint(black_box(&request))).expect("a leaf");
    })
}

fn authority() -> Arc<Authority> {
    Arc::new(Authority::generate(&AuthorityParams::default()).expect("an authority"))
}

/// Undoes a content coding, a read at a time, into one buffer.
fn coding(coding: Coding) -> Operation {
    let packed = match Encoder::new(coding) {
        Some(mut encoder) => {
            let mut packed = Vec::new();
            encoder.feed(&listing(), &mut packed).expect("encodes");
            encoder.finish(&mut packed).expect("ends");
            packed
        }
        None => LISTING_BR.to_vec(),
    };
    let mut out = Vec::with_capacity(LISTING_LEN);
    Box::new(move || {
        out.clear();
        let header = [coding.as_str().as_bytes()].into_iter();
        let decoder = Decoder::new(header, OutputLimit::default()).expect("a known coding");
        let mut decoder = decoder.expect("something to undo");
        for read in black_box(&packed).chunks(READ) {
            decoder.feed(read, &mut out).expect("decodes");
        }
        decoder.finish(&mut out).expect("is complete");
        assert_eq!(out.len(), LISTING_LEN);
    })
}

/// An answer that a model streams, token by token.
fn sse() -> Operation {
    let mut stream = Vec::new();
    for token in listing().chunks(8) {
        let token: String = token.escape_ascii().map(char::from).collect();
        let event = format!(
            "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\
             \"delta\":{{\"type\":\"text_delta\",\"text\":\"{token}\"}}}}\n\n"
        );
        if stream.len() + event.len() > LISTING_LEN {
            break;
        }
        stream.extend_from_slice(event.as_bytes());
    }
    stream.resize(LISTING_LEN, b'\n');
    Box::new(move || {
        let mut parser = SseParser::new();
        let mut events = 0_u32;
        for read in black_box(&stream).chunks(READ) {
            parser.feed(read, |event| {
                black_box(event);
                events += 1;
            });
        }
        assert!(events > 100);
    })
}

/// How many messages a WebSocket carries here, and their size.
const MESSAGES: usize = 16;
const MESSAGE: usize = 1024;

/// The frames of a client, a message in each read, as an observer reads them.
fn websocket(deflated: bool) -> Operation {
    let agreed = PermessageDeflate::default();
    let mut deflater = Deflater::new(&agreed, Sender::Client);
    let mut reads = Vec::new();
    for message in listing().chunks(MESSAGE).take(MESSAGES) {
        let mut packed = Vec::new();
        let compressed = deflated && deflater.message(message, &mut packed);
        let payload = if compressed { &packed } else { message };
        let mut frame = Vec::new();
        let mask = Some([0x12, 0x34, 0x56, 0x78]);
        write_message_frame(&mut frame, Opcode::Text, mask, compressed, payload);
        reads.push(frame);
    }
    Box::new(move || {
        let mut reader = MessageReader::new(Sender::Client, 1 << 20, Some(&agreed));
        let mut messages = 0;
        for read in black_box(&reads) {
            let mut rest = read.as_slice();
            while let Some(event) = reader.next(&mut rest).expect("a frame") {
                black_box(event);
                messages += 1;
            }
        }
        assert_eq!(messages, MESSAGES);
    })
}

/// JSON as an API lists things; `fixtures/listing.json.br` holds the same.
fn listing() -> Vec<u8> {
    let mut text = "[\n".to_owned();
    for i in 0_u32.. {
        if text.len() >= LISTING_LEN {
            break;
        }
        text += &format!(
            "{{\"id\":{i},\"name\":\"item-{}\",\"price\":{}.{},\"tags\":[\"a{}\",\"b{}\"]}},\n",
            i * 7919 % 1000,
            i * 31 % 977,
            i % 10,
            i % 13,
            i % 7
        );
    }
    text.truncate(LISTING_LEN);
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_and_repeats() {
        for case in CASES {
            let mut operation = (case.prepare)();
            operation();
            operation();
            assert!(case.count > 0, "{}", case.name);
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CASES.len());
    }

    #[test]
    fn the_brotli_fixture_is_the_listing() {
        let header = [&b"br"[..]].into_iter();
        let mut decoder = Decoder::new(header, OutputLimit::default())
            .unwrap()
            .unwrap();
        let mut out = Vec::new();
        decoder.feed(LISTING_BR, &mut out).unwrap();
        decoder.finish(&mut out).unwrap();
        assert!(out == listing());
    }
}
