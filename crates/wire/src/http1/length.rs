//! The framing rules that requests and responses share (RFC 9112 section 6).

use super::{Anomaly, Framing, Version};
use crate::headers::{HeaderList, Known, decimal_length, elements};

/// What `Transfer-Encoding` and `Content-Length` say about the body, `None` when neither is there.
pub(super) fn declared(headers: &HeaderList, version: Version) -> Result<Option<Framing>, Anomaly> {
    let has_length = headers.has_known(Known::ContentLength);
    if headers.has_known(Known::TransferEncoding) {
        if has_length {
            return Err(Anomaly::BothTransferEncodingAndContentLength);
        }
        if version == Version::Http10 {
            return Err(Anomaly::TransferEncodingInHttp10);
        }
        return transfer_coding(headers).map(Some);
    }
    if has_length {
        return content_length(headers).map(|length| Some(Framing::Length(length)));
    }
    Ok(None)
}

/// Whether the sender wants the connection kept after this message (RFC 9112 section 9.3).
pub(super) fn keep_alive(headers: &HeaderList, version: Version) -> bool {
    match version {
        Version::Http11 => !headers.known_has_token(Known::Connection, b"close"),
        Version::Http10 => {
            headers.known_has_token(Known::Connection, b"keep-alive")
                && !headers.known_has_token(Known::Connection, b"close")
        }
    }
}

/// The value of `Upgrade` when `Connection` names it. HTTP/1.0 has no upgrades (RFC 9110 section 7.8).
pub(super) fn upgrade(headers: &HeaderList, version: Version) -> Option<&[u8]> {
    if version == Version::Http10 || !headers.known_has_token(Known::Connection, b"upgrade") {
        return None;
    }
    headers.known_values(Known::Upgrade).next()
}

/// Accepts `chunked` alone, and finds the word for anything else.
fn transfer_coding(headers: &HeaderList) -> Result<Framing, Anomaly> {
    let (mut chunked, mut last_is_chunked, mut registered, mut unknown) =
        (0u32, false, false, false);
    for coding in headers
        .known_values(Known::TransferEncoding)
        .flat_map(elements)
    {
        last_is_chunked = coding.eq_ignore_ascii_case(b"chunked");
        if last_is_chunked {
            chunked = chunked.saturating_add(1);
        } else if is_registered(coding) {
            registered = true;
        } else {
            unknown = true;
        }
    }
    match chunked {
        2.. => Err(Anomaly::RepeatedChunked),
        1 if !last_is_chunked => Err(Anomaly::ChunkedNotLast),
        1 if !registered && !unknown => Ok(Framing::Chunked),
        0 if registered && !unknown => Err(Anomaly::ChunkedNotLast),
        _ => Err(Anomaly::UnknownTransferCoding),
    }
}

fn is_registered(coding: &[u8]) -> bool {
    const REGISTERED: [&[u8]; 5] = [b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress"];
    REGISTERED
        .iter()
        .any(|name| coding.eq_ignore_ascii_case(name))
}

fn content_length(headers: &HeaderList) -> Result<u64, Anomaly> {
    let mut values = headers.known_values(Known::ContentLength);
    let first = values.next().ok_or(Anomaly::InvalidContentLength)?;
    let length = decimal_length(first).ok_or(Anomaly::InvalidContentLength)?;
    for value in values {
        decimal_length(value).ok_or(Anomaly::InvalidContentLength)?;
        if value != first {
            return Err(Anomaly::DifferingContentLengths);
        }
    }
    Ok(length)
}
