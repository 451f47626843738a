//! HTTP/1 heads from arbitrary bytes, read as a request and as a response: the same answer for every
//! split, nothing ambiguous accepted, and what nobody edited written back byte for byte.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use tollgate_fuzz::Random;
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http1::{
    Anomaly, Framing, HeadLimits, Parsed, RequestHead, ResponseHead, Version,
};

fuzz_target!(|input: &[u8]| {
    for limits in [HeadLimits::default(), small()] {
        check::<RequestHead>(input, &limits);
        check::<ResponseHead>(input, &limits);
    }
});

/// Limits that short inputs reach.
fn small() -> HeadLimits {
    HeadLimits {
        bytes: 64,
        lines: 3,
    }
}

/// What the two heads have in common, and what differs between them.
trait Head: Default + Clone + PartialEq + Debug {
    /// Empty lines that may stand before the head.
    const EMPTY_LINES: usize;
    fn parse(&mut self, input: &[u8], limits: &HeadLimits) -> Result<Parsed, Anomaly>;
    fn headers(&mut self) -> &mut HeaderList;
    fn as_raw(&self) -> Option<&[u8]>;
    fn is_edited(&self) -> bool;
    fn write_to(&self, out: &mut Vec<u8>);
    /// Asks for everything that is derived from the head, and checks it against the header lines.
    fn check_meaning(&self) -> String;
}

fn check<H: Head>(input: &[u8], limits: &HeadLimits) {
    let mut whole = H::default();
    let answer = whole.parse(input, limits);

    let mut grown = H::default();
    for len in 0..=input.len() {
        let now = grown.parse(&input[..len], limits);
        match now {
            Ok(Parsed::Partial) => {
                assert_eq!(grown, H::default(), "a partial head shows something")
            }
            settled => {
                assert_eq!(settled, answer, "another answer after {len} bytes");
                if let Ok(Parsed::Complete { len: used }) = settled {
                    assert_eq!(used, len, "complete later than it could be");
                }
                break;
            }
        }
        assert!(
            len < input.len() || answer == Ok(Parsed::Partial),
            "the whole settles, its pieces don't"
        );
    }
    assert_eq!(grown, whole);

    // A fresh reader, and one that has seen something else, start from the same place.
    let at = Random::of(input).below(input.len() + 1);
    let mut jumped = H::default();
    if jumped.parse(&input[..at], limits) == Ok(Parsed::Partial) {
        assert_eq!(jumped.parse(input, limits), answer);
        assert_eq!(jumped, whole);
    }

    if let Ok(Parsed::Complete { len }) = answer {
        check_complete(whole, &input[..len], limits);
    }
}

/// `bytes` are those that the head took.
fn check_complete<H: Head>(mut head: H, bytes: &[u8], limits: &HeadLimits) {
    assert!(bytes.len() <= limits.bytes && head.headers().len() <= limits.lines);

    let raw = head
        .as_raw()
        .expect("an unedited head has its bytes")
        .to_vec();
    let before = bytes
        .strip_suffix(&raw[..])
        .expect("the raw bytes end the head");
    assert_eq!(before, b"\r\n".repeat(before.len() / 2));
    assert!(before.len() / 2 <= H::EMPTY_LINES && !head.is_edited());
    let mut out = b"before".to_vec();
    head.write_to(&mut out);
    assert_eq!(out, [b"before", &raw[..]].concat());

    check_unambiguous(&raw);
    let lines: Vec<_> = raw.split(|b| *b == b'\n').skip(1).collect();
    assert_eq!(
        lines.len(),
        head.headers().len() + 2,
        "every line but the start is a field or the end"
    );

    let meaning = head.check_meaning();
    let original = head.clone();
    head.headers()
        .append(b"X-Fuzz", b"1")
        .expect("a valid line");
    assert!(head.is_edited());
    assert_eq!(head.check_meaning(), meaning);
    let mut edited = Vec::new();
    head.write_to(&mut edited);
    let mut again = H::default();
    let room = HeadLimits {
        bytes: 1 << 20,
        lines: limits.lines + 1,
    };
    assert_eq!(
        again.parse(&edited, &room),
        Ok(Parsed::Complete { len: edited.len() })
    );
    assert_eq!(again, head, "an edited head reads back as something else");
    assert_eq!(again.check_meaning(), meaning);
    if !original.clone().headers().contains("x-fuzz") {
        assert_eq!(head.headers().remove("x-fuzz"), 1);
        assert_eq!(head, original);
    }
}

/// No byte of an accepted head may end a line, a name or a value for another reader and not for us.
fn check_unambiguous(raw: &[u8]) {
    assert!(raw.ends_with(b"\r\n") && !raw.contains(&0));
    for (at, byte) in raw.iter().enumerate() {
        match byte {
            b'\r' => assert_eq!(raw.get(at + 1), Some(&b'\n'), "a bare CR"),
            b'\n' => {
                assert_eq!(
                    at.checked_sub(1).map(|at| raw[at]),
                    Some(b'\r'),
                    "a bare LF"
                );
                let next = raw.get(at + 1);
                assert!(
                    !matches!(next, Some(b' ' | b'\t' | b':')),
                    "a folded or nameless line"
                );
            }
            _ => {}
        }
    }
}

/// The values of a header, found without the list's own index.
fn values<'a>(headers: &'a HeaderList, name: &str) -> Vec<&'a [u8]> {
    let named = headers
        .iter()
        .filter(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes()));
    named.map(|(_, value)| value).collect()
}

/// What the framing must agree with, whatever the message is.
fn check_framing(headers: &HeaderList, version: Version, framing: Result<Framing, Anomaly>) {
    let codings = values(headers, "transfer-encoding");
    let lengths = values(headers, "content-length");
    match framing {
        Ok(Framing::Chunked) => {
            assert!(lengths.is_empty() && version == Version::Http11);
            let spelled = codings.join(&b","[..]).to_ascii_lowercase();
            let without: Vec<u8> = spelled
                .into_iter()
                .filter(|b| !matches!(b, b',' | b' ' | b'\t'))
                .collect();
            assert_eq!(without, b"chunked");
        }
        Ok(Framing::Length(length)) => {
            assert!(codings.is_empty() && !lengths.is_empty());
            for value in lengths {
                let text = std::str::from_utf8(value).expect("digits");
                assert!(text.bytes().all(|b| b.is_ascii_digit()));
                assert_eq!(text.parse(), Ok(length));
            }
        }
        Ok(Framing::None | Framing::UntilClose) | Err(_) => {}
    }
}

impl Head for RequestHead {
    const EMPTY_LINES: usize = 4;

    fn parse(&mut self, input: &[u8], limits: &HeadLimits) -> Result<Parsed, Anomaly> {
        RequestHead::parse(self, input, limits)
    }
    fn headers(&mut self) -> &mut HeaderList {
        &mut self.headers
    }
    fn as_raw(&self) -> Option<&[u8]> {
        RequestHead::as_raw(self)
    }
    fn is_edited(&self) -> bool {
        RequestHead::is_edited(self)
    }
    fn write_to(&self, out: &mut Vec<u8>) {
        RequestHead::write_to(self, out);
    }
    fn check_meaning(&self) -> String {
        let framing = self.framing();
        check_framing(&self.headers, self.version(), framing);
        let declared = ["transfer-encoding", "content-length"]
            .iter()
            .any(|name| !values(&self.headers, name).is_empty());
        assert_eq!(framing == Ok(Framing::None), !declared);
        let host = self.check_host();
        if host.is_ok() && self.version() == Version::Http11 {
            assert_eq!(values(&self.headers, "host").len(), 1);
        }
        let mut start = [self.method(), b" ", self.target(), b" "].concat();
        start.extend_from_slice(self.version().as_str().as_bytes());
        let mut out = Vec::new();
        self.write_to(&mut out);
        assert!(out.starts_with(&[&start[..], b"\r\n"].concat()));
        let upgrade = self.upgrade().map(<[u8]>::to_vec);
        format!(
            "{start:?} {framing:?} {host:?} {} {} {upgrade:?}",
            self.keep_alive(),
            self.expects_continue()
        )
    }
}

impl Head for ResponseHead {
    const EMPTY_LINES: usize = 0;

    fn parse(&mut self, input: &[u8], limits: &HeadLimits) -> Result<Parsed, Anomaly> {
        ResponseHead::parse(self, input, limits)
    }
    fn headers(&mut self) -> &mut HeaderList {
        &mut self.headers
    }
    fn as_raw(&self) -> Option<&[u8]> {
        ResponseHead::as_raw(self)
    }
    fn is_edited(&self) -> bool {
        ResponseHead::is_edited(self)
    }
    fn write_to(&self, out: &mut Vec<u8>) {
        ResponseHead::write_to(self, out);
    }
    fn check_meaning(&self) -> String {
        let methods: [&[u8]; 4] = [b"GET", b"HEAD", b"CONNECT", b"get"];
        let framing = methods.map(|method| self.framing(method));
        for framing in framing {
            check_framing(&self.headers, self.version(), framing);
        }
        assert!((100..=999).contains(&self.status()));
        assert_eq!(
            framing[1],
            Ok(Framing::None),
            "a response to HEAD has no body"
        );
        let upgrade = self.upgrade().map(<[u8]>::to_vec);
        format!(
            "{} {:?} {:?} {framing:?} {} {upgrade:?}",
            self.status(),
            self.reason(),
            self.version(),
            self.keep_alive()
        )
    }
}
