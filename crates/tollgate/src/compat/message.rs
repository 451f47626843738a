//! What both adapters need of messages: decoded copies of bodies, and kinds of streams.

use std::borrow::Cow;

use tollgate_flow::{Bytes, HeaderList};
use tollgate_wire::coding::{Decoder, OutputLimit};

/// How much of a body is decoded at a time; bounds what one step may blow up to.
const STEP: usize = 16 * 1024;

/// A body as a handler shall see it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// There is no content coding: the bytes are those on the wire.
    AsSent,
    /// The coding was undone.
    Decoded(Bytes),
    /// The coding is unknown, the body is damaged, or decodes to more than the limit.
    Undecodable,
}

/// Undoes `Content-Encoding` where it is known; at most `limit` bytes.
pub(super) fn decode(headers: &HeaderList, body: &[u8], limit: usize) -> Content {
    let limits = OutputLimit {
        total: limit as u64,
        per_feed: limit,
    };
    let mut decoder = match Decoder::new(headers.get_all("content-encoding"), limits) {
        Ok(None) => return Content::AsSent,
        Ok(Some(decoder)) => decoder,
        Err(_) => return Content::Undecodable,
    };
    if body.is_empty() {
        return Content::AsSent;
    }
    let mut out = Vec::new();
    let fed = body
        .chunks(STEP)
        .try_for_each(|piece| decoder.feed(piece, &mut out));
    match fed.and_then(|()| decoder.finish(&mut out)) {
        Ok(()) => Content::Decoded(out.into()),
        Err(_) => Content::Undecodable,
    }
}

/// The kinds of response that are streams of messages and may never end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamKind {
    Sse,
    Ndjson,
    Grpc,
}

impl StreamKind {
    /// Tells by `Content-Type`.
    pub fn of(headers: &HeaderList) -> Option<Self> {
        let value = headers.get("content-type")?;
        let essence = value.split(|&b| b == b';').next()?.trim_ascii();
        let is = |name: &str| essence.eq_ignore_ascii_case(name.as_bytes());
        let grpc = b"application/grpc";
        if is("text/event-stream") {
            Some(Self::Sse)
        } else if [
            "application/x-ndjson",
            "application/ndjson",
            "application/jsonl",
            "application/x-jsonlines",
        ]
        .into_iter()
        .any(is)
        {
            Some(Self::Ndjson)
        } else if essence
            .get(..grpc.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(grpc))
        {
            match essence.get(grpc.len()) {
                None | Some(b'+') => Some(Self::Grpc),
                // gRPC-Web in its binary form has the same frames; the text form is base64.
                Some(b'-') if is("application/grpc-web") || is("application/grpc-web+proto") => {
                    Some(Self::Grpc)
                }
                Some(_) => None,
            }
        } else {
            None
        }
    }
}

/// Text of bytes that are UTF-8, or else latin-1 (as old servers send header values).
pub(super) fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(bytes.iter().map(|&b| char::from(b)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use tollgate_wire::coding::{Coding, Encoder};

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderList {
        let mut list = HeaderList::new();
        for (name, value) in lines {
            list.append(name.as_bytes(), value.as_bytes()).unwrap();
        }
        list
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(Coding::Gzip).unwrap();
        encoder.feed(data, &mut out).unwrap();
        encoder.finish(&mut out).unwrap();
        out
    }

    #[test]
    fn bodies_decode_within_the_limit() {
        let plain = headers(&[]);
        let coded = headers(&[("Content-Encoding", "gzip")]);
        let odd = headers(&[("Content-Encoding", "rot13")]);
        let data = vec![b'x'; 100_000];
        let packed = gzip(&data);
        assert_eq!(decode(&plain, b"abc", 1), Content::AsSent);
        assert_eq!(
            decode(&coded, &packed, 100_000),
            Content::Decoded(data.into())
        );
        assert_eq!(decode(&coded, &packed, 99_999), Content::Undecodable);
        assert_eq!(decode(&coded, b"not gzip", 100), Content::Undecodable);
        assert_eq!(decode(&odd, b"abc", 100), Content::Undecodable);
        assert_eq!(decode(&coded, b"", 100), Content::AsSent);
    }

    #[test]
    fn streams_are_known_by_their_type() {
        let cases = [
            ("text/event-stream", Some(StreamKind::Sse)),
            ("Text/Event-Stream; charset=utf-8", Some(StreamKind::Sse)),
            ("application/x-ndjson", Some(StreamKind::Ndjson)),
            ("application/jsonl", Some(StreamKind::Ndjson)),
            ("application/grpc", Some(StreamKind::Grpc)),
            ("application/grpc+proto", Some(StreamKind::Grpc)),
            ("application/grpc-web", Some(StreamKind::Grpc)),
            ("application/grpc-web-text", None),
            ("application/grpcish", None),
            ("application/json", None),
            ("", None),
        ];
        for (value, expected) in cases {
            let got = StreamKind::of(&headers(&[("content-type", value)]));
            assert_eq!(got, expected, "{value}");
        }
        assert_eq!(StreamKind::of(&headers(&[])), None);
    }

    #[test]
    fn text_is_utf8_or_latin1() {
        assert_eq!(text("é".as_bytes()), "é");
        assert_eq!(text(b"caf\xe9"), "café");
    }
}
