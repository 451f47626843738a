//! Protocol detection from arbitrary bytes: an answer stands once it is given, and what our own parsers
//! read as a protocol is detected as that protocol, so that no client steps out of view.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_wire::detect::{Detected, Protocol, detect};
use tollgate_wire::http1::{HeadLimits, Parsed, RequestHead};
use tollgate_wire::tls::{HelloStatus, parse_client_hello};

fuzz_target!(|input: &[u8]| {
    let whole = detect(input);
    for len in 0..input.len() {
        match detect(&input[..len]) {
            Detected::NeedMore => {}
            known => {
                assert_eq!(known, whole, "another answer after {len} bytes");
                break;
            }
        }
    }

    if let Ok(HelloStatus::Complete(_)) = parse_client_hello(input) {
        assert_eq!(whole, Detected::Known(Protocol::Tls));
    }

    let mut head = RequestHead::new();
    if let Ok(Parsed::Complete { .. }) = head.parse(input, &HeadLimits::default()) {
        // The two kinds of request line that `detect` documents as not HTTP.
        let excepted = head.method().len() > 32 || head.method().starts_with(b"SSH-");
        match whole {
            Detected::Known(Protocol::Unknown) => {
                assert!(excepted, "a request that is relayed unseen")
            }
            Detected::Known(Protocol::Http1 | Protocol::ProxyV1) => {}
            other => panic!("a whole HTTP/1 request is {other:?}"),
        }
    }
});
