//! Every SOCKS5 message from arbitrary bytes: answers that stand whatever follows, within the format's
//! bound, and what was read is written back as it came.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use tollgate_wire::socks5::{
    self, Address, Credentials, MAX_MESSAGE_LEN, Method, Parsed, ReplyCode, Request, SocksError,
};

const OFFERED: [Method; 2] = [Method::NoAuthentication, Method::UsernamePassword];

fuzz_target!(|input: &[u8]| {
    let greeting = |bytes: &[u8]| {
        let parsed = socks5::parse_greeting(bytes)?;
        Ok(parsed.map(|greeting| greeting.methods.to_vec()))
    };
    if let Some((methods, taken)) = check(input, greeting) {
        assert_eq!(taken[2..], methods);
    }
    if let Some((method, taken)) = check(input, |bytes| socks5::parse_method(bytes, &OFFERED)) {
        let mut written = Vec::new();
        socks5::write_method(method, &mut written);
        assert_eq!(written, taken);
    }
    if let Some((credentials, taken)) = check(input, socks5::parse_credentials) {
        let credentials: Credentials = credentials;
        let mut written = Vec::new();
        credentials.write(&mut written);
        assert_eq!(written, taken);
    }
    check(input, socks5::parse_status);
    if let Some((request, taken)) = check(input, socks5::parse_request) {
        let request: Request = request;
        let mut written = Vec::new();
        request.write(&mut written);
        assert_eq!(written[..2], taken[..2]);
        assert_same_address(&written[3..], &taken[3..]);
    }
    if let Some((bound, taken)) = check(input, socks5::parse_reply) {
        let mut written = Vec::new();
        socks5::write_reply(ReplyCode::Succeeded, &bound, &mut written);
        assert_eq!(written[..2], taken[..2]);
        assert_same_address(&written[3..], &taken[3..]);
    }
    if let Ok((address, payload)) = socks5::parse_datagram(input) {
        let mut written = Vec::new();
        socks5::write_datagram_header(&address, &mut written);
        let taken = &input[..input.len() - payload.len()];
        assert_same_address(&written[3..], &taken[3..]);
        for len in 0..taken.len() {
            assert_eq!(
                socks5::parse_datagram(&input[..len]),
                Err(SocksError::Truncated)
            );
        }
    }
});

/// Checks that the answer stands from the byte on that settles it; answers the message and the bytes it took.
fn check<T: PartialEq + Debug>(
    input: &[u8],
    parse: impl Fn(&[u8]) -> Result<Parsed<T>, SocksError>,
) -> Option<(T, &[u8])> {
    let whole = parse(input);
    let mut settled = false;
    for len in 0..input.len().min(2 * MAX_MESSAGE_LEN) {
        let part = parse(&input[..len]);
        assert!(
            !settled || part == whole,
            "another answer after {len} bytes"
        );
        settled |= part != Ok(Parsed::Partial);
        assert!(
            !settled || part == whole,
            "another answer after {len} bytes"
        );
        assert!(
            settled || len < MAX_MESSAGE_LEN,
            "asks for more than a message can hold"
        );
    }
    match whole {
        Ok(Parsed::Complete { value, consumed }) => {
            assert!(
                consumed <= MAX_MESSAGE_LEN && parse(&input[..consumed - 1]) == Ok(Parsed::Partial)
            );
            Some((value, &input[..consumed]))
        }
        _ => None,
    }
}

/// Written addresses are those read, but for an IP address that came as a name.
fn assert_same_address(written: &[u8], taken: &[u8]) {
    const DOMAIN: u8 = 3;
    if taken[0] == DOMAIN && written[0] != DOMAIN {
        let name = std::str::from_utf8(&taken[2..taken.len() - 2]).expect("a name");
        assert!(matches!(Address::new(name, 0), Ok(Address::Ip(_))));
    } else {
        assert_eq!(written, taken);
    }
}
