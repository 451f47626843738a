//! `Alt-Svc` (RFC 7838) without the alternatives that a proxy on TCP would never see again: HTTP/3 and QUIC.
//!
//! ```
//! use tollgate_wire::alt_svc::{Stripped, strip_h3};
//!
//! let value = br#"h3=":443"; ma=86400, h2="alt.example:8443", h3-29=":443""#;
//! assert_eq!(strip_h3(value), Stripped::Changed(br#"h2="alt.example:8443""#.to_vec()));
//! assert_eq!(strip_h3(br#"h3=":443""#), Stripped::Empty);
//! assert_eq!(strip_h3(b"clear"), Stripped::Unchanged);
//! ```

/// Removes the alternatives that stand for HTTP/3 or another protocol over QUIC: `h3`, `h3-…`, `quic`, `hq…`.
///
/// Takes the value of one field line; several lines are one list, and each can be stripped by itself. The alternatives that
/// stay keep their bytes and their order.
///
/// A value that breaks the syntax of RFC 7838 is dropped whole if one of those names stands anywhere in it: what a client
/// makes of it can't be known. Without such a name it stays as it is.
#[must_use]
pub fn strip_h3(value: &[u8]) -> Stripped {
    let Some(alternatives) = parse(value) else {
        let has_name = value.split(|byte| !is_token(*byte)).any(is_over_quic);
        return if has_name {
            Stripped::Empty
        } else {
            Stripped::Unchanged
        };
    };
    let (gone, kept): (Vec<_>, Vec<_>) = alternatives
        .into_iter()
        .partition(|alternative| is_over_quic(alternative.protocol));
    match (gone.is_empty(), kept.is_empty()) {
        (true, _) => Stripped::Unchanged,
        (false, true) => Stripped::Empty,
        (false, false) => {
            let kept: Vec<_> = kept.iter().map(|alternative| alternative.text).collect();
            Stripped::Changed(kept.join(&b", "[..]))
        }
    }
}

/// What [`strip_h3`] made of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stripped {
    /// Nothing was to be removed.
    Unchanged,
    /// The value without what was removed.
    Changed(Vec<u8>),
    /// Nothing is left: the field line is to be removed.
    Empty,
}

/// One alternative service.
struct Alternative<'a> {
    /// Its ALPN name, percent-encoded.
    protocol: &'a [u8],
    /// All of it: name, authority, parameters.
    text: &'a [u8],
}

/// The alternatives of a value; none in `clear`. `None` if it breaks the syntax.
fn parse(value: &[u8]) -> Option<Vec<Alternative<'_>>> {
    if value.trim_ascii() == b"clear" {
        return Some(Vec::new());
    }
    let mut alternatives = Vec::new();
    let mut rest = value;
    loop {
        skip_space(&mut rest);
        // Empty elements are allowed in a list (RFC 9110 section 5.6.1.2).
        if !matches!(rest.first(), None | Some(b',')) {
            alternatives.push(take_alternative(&mut rest)?);
            skip_space(&mut rest);
        }
        match rest.split_first() {
            None => return Some(alternatives),
            Some((b',', after)) => rest = after,
            Some(_) => return None,
        }
    }
}

fn take_alternative<'a>(rest: &mut &'a [u8]) -> Option<Alternative<'a>> {
    let start = *rest;
    let protocol = take_token(rest)?;
    *rest = rest.strip_prefix(b"=")?;
    take_quoted(rest)?;
    loop {
        let end = *rest;
        skip_space(rest);
        let Some(after) = rest.strip_prefix(b";") else {
            let len = start.len().checked_sub(end.len())?;
            let (text, _) = start.split_at_checked(len)?;
            return Some(Alternative { protocol, text });
        };
        *rest = after;
        skip_space(rest);
        take_token(rest)?;
        *rest = rest.strip_prefix(b"=")?;
        if rest.first() == Some(&b'"') {
            take_quoted(rest)?;
        } else {
            take_token(rest)?;
        }
    }
}

fn take_token<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = rest.iter().take_while(|byte| is_token(**byte)).count();
    let (token, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(token).filter(|token| !token.is_empty())
}

/// Takes a `quoted-string` (RFC 9110 section 5.6.4).
fn take_quoted(rest: &mut &[u8]) -> Option<()> {
    let mut after = rest.strip_prefix(b"\"")?;
    loop {
        let (byte, next) = after.split_first()?;
        after = match byte {
            b'"' => break *rest = next,
            b'\\' => next.split_first()?.1,
            _ => next,
        };
    }
    Some(())
}

fn skip_space(rest: &mut &[u8]) {
    while let [b' ' | b'\t', after @ ..] = *rest {
        *rest = after;
    }
}

/// Whether a percent-encoded ALPN name stands for a protocol over QUIC. Its case is not looked at, although it counts: a
/// client that doesn't care must not get past.
fn is_over_quic(protocol: &[u8]) -> bool {
    let name = percent_decode(protocol).to_ascii_lowercase();
    is_h3_alpn(&name) || name == b"quic"
}

/// Whether an ALPN name stands for HTTP/3 or a draft of it; `hq` is HTTP/0.9 over QUIC.
pub(crate) fn is_h3_alpn(name: &[u8]) -> bool {
    name == b"h3" || name.starts_with(b"h3-") || name.starts_with(b"hq")
}

fn percent_decode(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, mut after)) = rest.split_first() {
        let escaped = match (byte, after) {
            (b'%', [high, low, then @ ..]) => {
                hex(*high).zip(hex(*low)).map(|digits| (digits, then))
            }
            _ => None,
        };
        decoded.push(match escaped {
            Some(((high, low), then)) => {
                after = then;
                high << 4 | low
            }
            None => byte,
        });
        rest = after;
    }
    decoded
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

/// `tchar` (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn changed(value: &str) -> String {
        match strip_h3(value.as_bytes()) {
            Stripped::Changed(value) => String::from_utf8(value).unwrap(),
            other => panic!("{value}: {other:?}"),
        }
    }

    #[test]
    fn what_is_not_over_quic_stays_byte_for_byte() {
        for value in [
            "",
            "clear",
            "h2=\":443\"",
            "h2=\"alt.example:443\"; ma=60;persist=1 , http%2F1.1=\":80\"",
            "h2=\"h3, h3=\"; v=\"h3\"",
            "h2=\":1\", , \t,",
            "h30=\":1\"",
            "w=\":1\"; x=\"\\\"; h3=\"",
            // Broken, but nothing in it is removed.
            "h2",
            "h2=:443",
            "clear, h2=\":1\"",
        ] {
            assert_eq!(strip_h3(value.as_bytes()), Stripped::Unchanged, "{value}");
        }
    }

    #[test]
    fn alternatives_over_quic_are_removed() {
        for value in [
            "h3=\":443\"",
            "h3=\":443\"; ma=2592000,h3-29=\":443\"; ma=2592000",
            "quic=\":443\"; ma=2592000; v=\"46,43\"",
            "hq=\":1\", hq-interop=\":1\"",
            "H3=\":443\", h3-Q050=\":443\"",
            "h%33=\":443\"",
            "%683%2d29=\":443\"",
            ", h3=\"x,\\\"y\" ,",
        ] {
            assert_eq!(strip_h3(value.as_bytes()), Stripped::Empty, "{value}");
        }
        assert_eq!(
            changed("h3=\":443\"; ma=1, h2=\"a:1\" ; ma=2 ,h3-29=\":2\",x=\":3\""),
            "h2=\"a:1\" ; ma=2, x=\":3\""
        );
    }

    #[test]
    fn a_broken_value_with_h3_in_it_is_dropped_whole() {
        for value in [
            "h3",
            "h3=:443",
            "h3 =\":443\"",
            "h2=\":1\"; h3=\":443\" x",
            "h2=\":1\" h3=\":443\"",
            "h2=\":1, h3=\":443\"",
            "\"h3\"=\":443\"",
            "h2=\":1\"; ma, h3-29=\":443\"",
            "clear, h3=\":443\"",
            "h2=\"\\",
            "h3=\"",
        ] {
            let expected = if value.contains("h3") {
                Stripped::Empty
            } else {
                Stripped::Unchanged
            };
            assert_eq!(strip_h3(value.as_bytes()), expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn nothing_over_quic_is_left(
            tokens in prop::collection::vec(prop::sample::select(vec![
                "h3", "h2", "quic", "h3-29", "%", "33", "=", "\":443\"", "\"", "\\", ";", ",", " ", "\t", "ma=1", "clear", "hq", "x", "\u{e9}",
            ]), 0..20),
        ) {
            if let Stripped::Changed(value) = strip_h3(tokens.concat().as_bytes()) {
                prop_assert_eq!(strip_h3(&value), Stripped::Unchanged);
                prop_assert!(parse(&value).is_some_and(|kept| !kept.is_empty()));
            }
        }

        #[test]
        fn exactly_the_others_are_kept(
            alternatives in prop::collection::vec((
                prop::sample::select(vec!["h3", "h2", "quic", "h3-29", "http%2F1.1", "h33"]),
                "[a-z.,;= h3]{0,8}:[0-9]{1,4}",
                prop::sample::select(vec!["", "; ma=3600", ";persist=1", " ; v=\"1,2\""]),
            ), 1..6),
        ) {
            let text = |(protocol, authority, parameters): &(&str, String, &str)| {
                format!("{protocol}=\"{authority}\"{parameters}")
            };
            let gone = ["h3", "quic", "h3-29"];
            let kept: Vec<_> = alternatives.iter().filter(|(protocol, ..)| !gone.contains(protocol)).map(text).collect();
            let expected = match kept.len() {
                0 => Stripped::Empty,
                len if len == alternatives.len() => Stripped::Unchanged,
                _ => Stripped::Changed(kept.join(", ").into_bytes()),
            };
            let value: Vec<_> = alternatives.iter().map(text).collect();
            prop_assert_eq!(strip_h3(value.join(",").as_bytes()), expected);
        }
    }
}
