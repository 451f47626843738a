//! The messages inside bodies that are streams by their type.

use tollgate_flow::{Direction, Flow, HeaderList, Message, MessageKind};
use tollgate_wire::coding::{Decoder, OutputLimit};
use tollgate_wire::framing::{self, FramingError, StreamKind, StreamMessage, StreamSplitter};

/// Splits one body for observers.
pub(super) struct Messages {
    splitter: StreamSplitter,
    direction: Direction,
    /// How single messages are compressed (gRPC, Connect), where they are.
    coding: Option<Vec<u8>>,
    limit: usize,
}

impl Messages {
    /// For a body of a flow; `None` if it is no stream. A message may have `limit` bytes.
    pub fn of(flow: &Flow, direction: Direction, limit: usize) -> Option<Self> {
        let headers = headers(flow, direction)?;
        let content_type = headers.get("content-type")?;
        // Any JSON may be an array that arrives in pieces; the first byte tells.
        let kind = StreamKind::of_content_type(content_type)
            .or_else(|| StreamKind::of_json(content_type))?;
        let coding = match kind {
            StreamKind::Grpc | StreamKind::GrpcWeb | StreamKind::GrpcWebText => "grpc-encoding",
            StreamKind::Connect => "connect-content-encoding",
            _ => "",
        };
        Some(Self {
            splitter: StreamSplitter::with_limit(kind, limit),
            direction,
            coding: headers.get(coding).map(<[u8]>::to_vec),
            limit,
        })
    }

    /// Takes the next bytes of the body, and with `last` its end. An error is the end of it.
    pub fn feed(
        &mut self,
        data: &[u8],
        last: bool,
        offer: &mut dyn FnMut(Message<'_>),
    ) -> Result<(), FramingError> {
        let Self {
            splitter,
            direction,
            coding,
            limit,
        } = self;
        let kind = splitter.kind();
        let mut show = |found: StreamMessage<'_>| {
            let plain = found
                .compressed
                .then(|| decompressed(coding.as_deref()?, found.data, *limit))
                .flatten();
            offer(Message {
                direction: *direction,
                sequence: found.sequence,
                kind: kind_of(kind, &found, found.compressed && plain.is_none()),
                data: plain.as_deref().unwrap_or(found.data),
                injected: false,
            });
        };
        splitter.feed(data, &mut show)?;
        if last {
            splitter.finish(&mut show)?;
        }
        Ok(())
    }
}

/// The head that says what a body is.
pub(super) fn headers(flow: &Flow, direction: Direction) -> Option<&HeaderList> {
    match direction {
        Direction::Request => Some(flow.request.headers()),
        Direction::Response => flow.response.as_ref().map(|r| r.headers()),
    }
}

/// `None` where it can't be done, or not within the bound.
fn decompressed(coding: &[u8], data: &[u8], limit: usize) -> Option<Vec<u8>> {
    let limit = OutputLimit {
        total: limit as u64,
        per_feed: limit,
    };
    let mut decoder = Decoder::new([coding].into_iter(), limit).ok()??;
    let mut out = Vec::new();
    decoder.feed(data, &mut out).ok()?;
    decoder.finish(&mut out).ok()?;
    Some(out)
}

fn kind_of<'a>(stream: StreamKind, found: &StreamMessage<'a>, compressed: bool) -> MessageKind<'a> {
    match found.kind {
        framing::MessageKind::Event { event_type, id, .. } => {
            MessageKind::ServerSentEvent { event_type, id }
        }
        framing::MessageKind::Grpc if found.end_of_stream => MessageKind::GrpcTrailers,
        framing::MessageKind::Grpc => MessageKind::Grpc { compressed },
        framing::MessageKind::Connect if found.end_of_stream => MessageKind::ConnectEnd,
        framing::MessageKind::Connect => MessageKind::Connect { compressed },
        framing::MessageKind::AwsEvent { headers } => MessageKind::AwsEvent { headers },
        _ => match stream {
            StreamKind::Ndjson => MessageKind::JsonLine,
            StreamKind::JsonSeq => MessageKind::JsonText,
            _ => MessageKind::JsonElement,
        },
    }
}
