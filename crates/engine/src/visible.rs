//! Keeps clients where they are seen: takes out of what passes what would lead them to HTTP/3 beside
//! us, or hide from us whom they talk to.
//!
//! That is `h3` and its like in `Alt-Svc`, and in the HTTPS and SVCB records of DNS over HTTPS, with
//! the keys of Encrypted Client Hello there. It is done before interceptors see the response: to the
//! client, and to them, it looks as if the origin had none of it.

use std::borrow::Cow;

use bytes::Bytes;
#[cfg(feature = "http2")]
use http::header::{self, HeaderMap, HeaderValue};
use tollgate_flow::Target;
use tollgate_wire::alt_svc::{Stripped, strip_h3};
use tollgate_wire::coding::{Decoder, OutputLimit};
use tollgate_wire::dns::{self, MAX_MESSAGE_LEN, Strip};
use tollgate_wire::headers::HeaderList;

use crate::config::Config;
use crate::metrics::{Counters, count};

/// Most bytes of a response that are taken for a message of DNS. What is longer is none.
pub(crate) const DNS_BYTES: usize = MAX_MESSAGE_LEN;

/// Whether anything is to be taken out of what comes from a destination.
pub(crate) fn applies(config: &Config, target: &Target) -> bool {
    config.hide_http3 && !config.show_http3.iter().any(|p| p.matches(target))
}

/// Takes HTTP/3 out of the `Alt-Svc` of a response. A head that names none stays as it came.
pub(crate) fn strip_list(headers: &mut HeaderList, counters: &Counters) {
    let Some(kept) = strip(headers.get_all("alt-svc")) else {
        return;
    };
    count(&counters.http3_hidden);
    if kept.is_empty() {
        headers.remove("alt-svc");
    } else {
        // What was kept of a valid value is one.
        let _ = headers.set(b"alt-svc", &kept);
    }
}

/// The same for a head of HTTP/2 or HTTP/3.
#[cfg(feature = "http2")]
pub(crate) fn strip_map(headers: &mut HeaderMap, counters: &Counters) {
    let values = headers.get_all(header::ALT_SVC).iter();
    let Some(kept) = strip(values.map(HeaderValue::as_bytes)) else {
        return;
    };
    count(&counters.http3_hidden);
    match HeaderValue::from_bytes(&kept) {
        Ok(kept) if !kept.is_empty() => {
            headers.insert(header::ALT_SVC, kept);
        }
        _ => {
            headers.remove(header::ALT_SVC);
        }
    }
}

/// What is left of a list that may stand in several lines. `None`: all of it.
fn strip<'a>(values: impl Iterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let mut changed = false;
    let mut kept: Vec<Cow<'a, [u8]>> = Vec::new();
    for value in values {
        match strip_h3(value) {
            Stripped::Unchanged => kept.push(value.into()),
            Stripped::Changed(value) => {
                changed = true;
                kept.push(value.into());
            }
            Stripped::Empty => changed = true,
        }
    }
    changed.then(|| kept.join(&b", "[..]))
}

/// Whether a response is an answer of DNS over HTTPS (RFC 8484).
pub(crate) fn is_dns(status: u16, content_type: Option<&[u8]>) -> bool {
    let media = content_type
        .and_then(|value| value.split(|b| *b == b';').next())
        .unwrap_or_default();
    (200..300).contains(&status)
        && media
            .trim_ascii()
            .eq_ignore_ascii_case(b"application/dns-message")
}

/// An answer of DNS without what leads away from us.
pub(crate) struct Answer {
    pub body: Bytes,
    /// It is no longer coded as `Content-Encoding` says, and has another length.
    pub is_decoded: bool,
}

/// Takes ECH and HTTP/3 out of an answer of DNS. `None`: it stays as it came.
pub(crate) fn strip_answer<'a>(
    body: &[u8],
    codings: impl Iterator<Item = &'a [u8]>,
    counters: &Counters,
) -> Option<Answer> {
    let limit = OutputLimit {
        total: DNS_BYTES as u64,
        per_feed: DNS_BYTES,
    };
    let mut message = Vec::new();
    let is_decoded = match Decoder::new(codings, limit).ok()? {
        Some(mut decoder) => {
            decoder.feed(body, &mut message).ok()?;
            decoder.finish(&mut message).ok()?;
            true
        }
        None => {
            message.extend_from_slice(body);
            false
        }
    };
    // What we can't read, clients can't either.
    if !dns::strip(&mut message, Strip::ALL).ok()? {
        return None;
    }
    count(&counters.http3_hidden);
    Some(Answer {
        body: message.into(),
        is_decoded,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(values: &[&str]) -> HeaderList {
        let mut list = HeaderList::new();
        list.append(b"Server", b"s").unwrap();
        for value in values {
            list.append(b"Alt-Svc", value.as_bytes()).unwrap();
        }
        list
    }

    #[test]
    fn several_lines_are_one_list() {
        let cases: [(&[&str], &[&str], u64); 6] = [
            (&[], &[], 0),
            (&["clear"], &["clear"], 0),
            (&["h2=\":1\"", "h2=\":2\""], &["h2=\":1\"", "h2=\":2\""], 0),
            (&["h3=\":443\""], &[], 1),
            (&["h3=\":443\"", "h3-29=\":443\""], &[], 1),
            (
                &["h2=\":1\"", "h3=\":2\"", "h2=\":3\", h3=\":4\""],
                &["h2=\":1\", h2=\":3\""],
                1,
            ),
        ];
        for (given, expected, counted) in cases {
            let counters = Counters::default();
            let mut headers = list(given);
            strip_list(&mut headers, &counters);
            let left: Vec<_> = headers.get_all("alt-svc").collect();
            let expected: Vec<_> = expected.iter().map(|v| v.as_bytes()).collect();
            assert_eq!(left, expected, "{given:?}");
            let n = counters
                .http3_hidden
                .load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(n, counted);
        }
    }

    #[test]
    fn answers_of_dns_are_told_by_their_type() {
        let is = |status, value: &str| is_dns(status, Some(value.as_bytes()));
        assert!(is(200, "application/dns-message"));
        assert!(is(200, "Application/DNS-Message; charset=utf-8"));
        assert!(!is(404, "application/dns-message"));
        assert!(!is(200, "application/dns-json"));
        assert!(!is_dns(200, None));
    }
}
