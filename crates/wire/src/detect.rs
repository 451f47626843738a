//! What arrived: the protocol of a connection, from its first bytes.
//!
//! [`detect`] looks and never takes. It answers as soon as the bytes can be only one thing, and the answer does not change
//! when more follow. [`Protocol::Unknown`] is an answer too: the bytes may be relayed as they are. Where the choice is between
//! calling something HTTP and relaying it unseen, it is called HTTP if a common server would serve it as HTTP: a client must not
//! be able to step out of view with an empty line or an odd method.

/// Names the protocol that `prefix`, the bytes of a connection so far, begins.
///
/// [`Detected::NeedMore`] asks for the same bytes and more. A server-first protocol never sends them, and an odd request line
/// may be as long as its sender likes, so a caller sets a deadline and a limit, and takes `Unknown` for the answer there.
pub fn detect(prefix: &[u8]) -> Detected {
    let signatures = SIGNATURES.map(|(signature, protocol)| {
        let begins = prefix.starts_with(signature);
        (begins, !begins && signature.starts_with(prefix), protocol)
    });
    for (begins, _, protocol) in signatures {
        if begins {
            return Detected::Known(protocol);
        }
    }
    if signatures.iter().any(|(_, may_become, _)| *may_become) {
        return Detected::NeedMore;
    }
    match *prefix {
        [TLS_HANDSHAKE, ref version @ ..] => match *version {
            [] | [3] => Detected::NeedMore,
            [3, 0..=4, ..] => Detected::Known(Protocol::Tls),
            _ => Detected::Known(Protocol::Unknown),
        },
        [SOCKS5_VERSION, ref methods @ ..] => match *methods {
            [] => Detected::NeedMore,
            [0, ..] => Detected::Known(Protocol::Unknown),
            _ => Detected::Known(Protocol::Socks5),
        },
        [SOCKS4_VERSION, ref command @ ..] => match *command {
            [] => Detected::NeedMore,
            [SOCKS4_CONNECT | SOCKS4_BIND, ..] => Detected::Known(Protocol::Socks4),
            _ => Detected::Known(Protocol::Unknown),
        },
        _ => detect_http1(prefix),
    }
}

/// The answer of [`detect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    /// This protocol, whatever follows.
    Known(Protocol),
    /// Too few bytes to tell.
    NeedMore,
}

/// A protocol that a connection can begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// A TLS (or SSLv3) handshake record. Whether a ClientHello is in it, [`crate::tls::parse_client_hello`] tells.
    Tls,
    /// An HTTP/1 request line (RFC 9112), or what a server may take for one.
    Http1,
    /// The HTTP/2 connection preface: prior knowledge (RFC 9113 section 3.4).
    Http2,
    /// A SOCKS4 or SOCKS4a request.
    Socks4,
    /// A SOCKS5 greeting (RFC 1928).
    Socks5,
    /// A PROXY protocol header, version 1 (text).
    ProxyV1,
    /// A PROXY protocol header, version 2 (binary).
    ProxyV2,
    /// Nothing of the above, an SSLv2-compatible hello and SSH among it.
    Unknown,
}

/// Protocols that begin with fixed bytes. These come first: all of them could otherwise pass for an HTTP/1 request.
const SIGNATURES: [(&[u8], Protocol); 5] = [
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Protocol::Http2),
    (b"PROXY TCP4 ", Protocol::ProxyV1),
    (b"PROXY TCP6 ", Protocol::ProxyV1),
    (b"PROXY UNKNOWN", Protocol::ProxyV1),
    (b"\r\n\r\n\0\r\nQUIT\n", Protocol::ProxyV2),
];

const TLS_HANDSHAKE: u8 = 0x16;
const SOCKS4_VERSION: u8 = 4;
const SOCKS4_CONNECT: u8 = 1;
const SOCKS4_BIND: u8 = 2;
const SOCKS5_VERSION: u8 = 5;

/// The longest method that is recognised; the longest registered one has 17 characters.
const MAX_METHOD_LEN: usize = 32;

/// HTTP/1, or nothing that is known.
///
/// mitmproxy's rule, tightened where it can be: a method is a token (RFC 9110 section 5.6.2) and a space, and its first three
/// characters are letters. Text protocols whose words look otherwise (`0032git-upload-pack …`) have to show an HTTP version at the
/// end of the line, and so does a method such as `M-SEARCH`. SSH announces itself with a token and a space, too.
fn detect_http1(prefix: &[u8]) -> Detected {
    const UNKNOWN: Detected = Detected::Known(Protocol::Unknown);

    // A server skips empty lines before a request (RFC 9112 section 2.2), and so a client could hide behind one.
    let line = trim_start_newlines(prefix);
    let method_len = line.iter().take_while(|byte| is_token(**byte)).count();
    let (method, rest) = line.split_at_checked(method_len).unwrap_or((line, &[]));
    if method.starts_with(b"SSH-") || method.len() > MAX_METHOD_LEN {
        return UNKNOWN;
    }
    match rest.first() {
        None => Detected::NeedMore,
        Some(b' ') if method.is_empty() => UNKNOWN,
        Some(b' ') => match method.first_chunk::<3>() {
            Some(start) if start.iter().all(u8::is_ascii_alphabetic) => {
                Detected::Known(Protocol::Http1)
            }
            _ => detect_http1_version(rest),
        },
        Some(_) => UNKNOWN,
    }
}

/// Whether a line (without its method) ends in an HTTP/1 version.
fn detect_http1_version(line: &[u8]) -> Detected {
    // A text line has no control characters, so a binary protocol is told without waiting for the end of its "line".
    let is_text = |byte: u8| !byte.is_ascii_control() || matches!(byte, b'\t' | b'\r');
    let line_len = line.iter().take_while(|byte| is_text(**byte)).count();
    let (line, rest) = line.split_at_checked(line_len).unwrap_or((line, &[]));
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match rest.first() {
        None => Detected::NeedMore,
        Some(b'\n')
            if matches!(
                line,
                [.., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', _]
            ) =>
        {
            Detected::Known(Protocol::Http1)
        }
        Some(_) => Detected::Known(Protocol::Unknown),
    }
}

fn trim_start_newlines(bytes: &[u8]) -> &[u8] {
    let is_newline = |byte: &&u8| matches!(**byte, b'\r' | b'\n');
    let newlines = bytes.iter().take_while(is_newline).count();
    bytes.get(newlines..).unwrap_or_default()
}

/// `tchar` (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn known(prefix: &[u8]) -> Option<Protocol> {
        match detect(prefix) {
            Detected::Known(protocol) => Some(protocol),
            Detected::NeedMore => None,
        }
    }

    /// Every proper prefix of `bytes` asks for more, and `bytes` itself is `protocol`.
    fn settles_at_the_end(bytes: &[u8], protocol: Protocol) {
        for (len, _) in bytes.iter().enumerate() {
            assert_eq!(known(&bytes[..len]), None, "{:?}", &bytes[..len]);
        }
        assert_eq!(known(bytes), Some(protocol), "{bytes:?}");
    }

    #[test]
    fn each_protocol_is_known_as_early_as_it_can_be() {
        for version in 0..=4 {
            settles_at_the_end(&[0x16, 3, version], Protocol::Tls);
        }
        settles_at_the_end(b"GET ", Protocol::Http1);
        settles_at_the_end(b"CONNECT ", Protocol::Http1);
        settles_at_the_end(b"UPDATEREDIRECTREF ", Protocol::Http1);
        settles_at_the_end(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Protocol::Http2);
        settles_at_the_end(&[4, 1], Protocol::Socks4);
        settles_at_the_end(&[4, 2], Protocol::Socks4);
        settles_at_the_end(&[5, 1], Protocol::Socks5);
        settles_at_the_end(&[5, 255], Protocol::Socks5);
        settles_at_the_end(b"PROXY TCP4 ", Protocol::ProxyV1);
        settles_at_the_end(b"PROXY TCP6 ", Protocol::ProxyV1);
        settles_at_the_end(b"PROXY UNKNOWN", Protocol::ProxyV1);
        settles_at_the_end(b"\r\n\r\n\0\r\nQUIT\n", Protocol::ProxyV2);
    }

    #[test]
    fn near_misses_are_unknown_at_the_first_wrong_byte() {
        for bytes in [
            &[0x16, 2][..],
            &[0x16, 3, 5],
            &[0x15, 3],
            // An SSLv2-compatible ClientHello.
            &[0x80, 0x2e, 0x01, 0x03, 0x01],
            &[5, 0],
            &[4, 3],
            &[0],
            &[0xff],
            b" ",
            b"SSH-",
            b"\r\n\r\n\0\r\nQUIP",
            b"GET/",
            b"GET\r",
            b"EHLO\r",
            b"abc\0",
            b"(",
            b"\x13BitTorrent protocol",
            b"AVERYLONGMETHODNAMETHATNOBODYUSES",
            b"0032git-upload-pack /project.git\0",
            b"a1 LOGIN joe secret\r\n",
            b"* OK ready\n",
        ] {
            assert_eq!(known(bytes), Some(Protocol::Unknown), "{bytes:?}");
        }
        settles_at_the_end(b"SSH-", Protocol::Unknown);
    }

    #[test]
    fn what_shares_its_beginning_with_a_signature_can_still_be_http() {
        for bytes in [
            &b"PRI / "[..],
            b"PROXY / ",
            b"PROXY TCP5 ",
            b"PRINT /",
            b"PRI * HTTP/1.1\r\n",
        ] {
            assert_eq!(known(bytes), Some(Protocol::Http1), "{bytes:?}");
        }
    }

    #[test]
    fn empty_lines_do_not_hide_a_request() {
        for bytes in [
            &b"\r\nGET / HTTP/1.1"[..],
            b"\nGET / HTTP/1.1",
            b"\r\n\r\n\r\n\r\nPOST /",
        ] {
            assert_eq!(known(bytes), Some(Protocol::Http1), "{bytes:?}");
        }
        assert_eq!(known(b"\r\n"), None);
        assert_eq!(known(b"\r\n\r\n\r\n"), None);
    }

    #[test]
    fn odd_methods_are_known_by_their_version() {
        for bytes in [
            &b"M-SEARCH * HTTP/1.1\r\n"[..],
            b"A / HTTP/1.1\n",
            b"X1 / HTTP/1.0\r\n",
            b"GE / HTTP/1.1\r\n",
        ] {
            settles_at_the_end(bytes, Protocol::Http1);
        }
        assert_eq!(known(b"A / RTSP/1.0\r\n"), Some(Protocol::Unknown));
        assert_eq!(known(b"A HTTP/1.12\r\n"), Some(Protocol::Unknown));
    }

    proptest! {
        #[test]
        fn an_answer_stands_whatever_follows(
            start in prop::sample::select(vec![
                &b""[..], b"\x16\x03", b"\x05", b"\x04", b"\r\n", b"GET", b"PRI * HTTP/2.0\r\n\r\nSM", b"PROXY ", b"SSH", b"M-",
                b"A / HTTP/1.1", b"\r\n\r\n\0\r\nQUIT",
            ]),
            tail in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b" \r\n\0/AZaz19HTP.-".to_vec())], 0..48),
        ) {
            let bytes = [start, &tail].concat();
            let mut answer = None;
            for len in 0..=bytes.len() {
                let now = known(&bytes[..len]);
                prop_assert!(answer.is_none() || now == answer, "{:?} then {:?} at {}", answer, now, len);
                answer = now;
            }
        }
    }
}
