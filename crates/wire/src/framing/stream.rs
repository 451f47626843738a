use super::{
    AwsEventStreamSplitter, ConnectSplitter, FramingError, GrpcMessage, GrpcSplitter,
    GrpcWebTextSplitter, HeaderValue, JsonArraySplitter, JsonSeqSplitter, NdjsonSplitter,
};
use crate::sse::{DEFAULT_MAX_EVENT_BYTES, SseEvent, SseParser};

/// How a body is divided into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StreamKind {
    /// Server-sent events: `text/event-stream`.
    Sse,
    /// One JSON text a line: `application/x-ndjson`, `ndjson`, `jsonl`, `jsonlines`, `x-jsonlines`.
    Ndjson,
    /// JSON text sequences (RFC 7464, RFC 8091): `application/json-seq` and types that end in `+json-seq`.
    JsonSeq,
    /// The elements of one JSON array.
    JsonArray,
    /// gRPC: `application/grpc` and `application/grpc+proto` (or another suffix).
    Grpc,
    /// gRPC-Web in its binary form: `application/grpc-web`, with a suffix or without.
    GrpcWeb,
    /// gRPC-Web in base64: `application/grpc-web-text`, with a suffix or without.
    GrpcWebText,
    /// The streams of the Connect protocol: `application/connect+proto` (or another suffix).
    Connect,
    /// `application/vnd.amazon.eventstream`.
    AwsEventStream,
}

impl StreamKind {
    /// What a `Content-Type` stands for: letter case and parameters don't matter. `None` for a body that is no stream of
    /// messages, and for `application/json`, which most often isn't one (see [`of_json`](Self::of_json)).
    ///
    /// The body has to be free of its `Content-Encoding`.
    #[must_use]
    pub fn of_content_type(content_type: &[u8]) -> Option<Self> {
        let media_type = media_type(content_type);
        let starts = |prefix: &[u8]| {
            let start = media_type.get(..prefix.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        // A type may stand by itself or with a suffix.
        let is_or_has_suffix =
            |name: &[u8]| starts(name) && matches!(media_type.get(name.len()), None | Some(b'+'));
        const NDJSON: [&[u8]; 5] = [
            b"application/x-ndjson",
            b"application/ndjson",
            b"application/jsonl",
            b"application/jsonlines",
            b"application/x-jsonlines",
        ];
        Some(if media_type.eq_ignore_ascii_case(b"text/event-stream") {
            Self::Sse
        } else if NDJSON
            .iter()
            .any(|name| media_type.eq_ignore_ascii_case(name))
        {
            Self::Ndjson
        } else if media_type.eq_ignore_ascii_case(b"application/json-seq")
            || ends_with(media_type, b"+json-seq")
        {
            Self::JsonSeq
        } else if is_or_has_suffix(b"application/grpc") {
            Self::Grpc
        } else if is_or_has_suffix(b"application/grpc-web") {
            Self::GrpcWeb
        } else if is_or_has_suffix(b"application/grpc-web-text") {
            Self::GrpcWebText
        } else if starts(b"application/connect+") {
            Self::Connect
        } else if media_type.eq_ignore_ascii_case(b"application/vnd.amazon.eventstream") {
            Self::AwsEventStream
        } else {
            return None;
        })
    }

    /// [`JsonArray`](Self::JsonArray) if a `Content-Type` is `application/json`: for a caller who knows that this server
    /// streams its arrays. Every other JSON body then fails with [`FramingError::NotAnArray`], at its first byte.
    #[must_use]
    pub fn of_json(content_type: &[u8]) -> Option<Self> {
        media_type(content_type)
            .eq_ignore_ascii_case(b"application/json")
            .then_some(Self::JsonArray)
    }
}

/// One message of a stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StreamMessage<'a> {
    /// What it is, with what only this kind of stream says about a message.
    pub kind: MessageKind<'a>,
    /// Its place in the stream: 0, 1, 2 ….
    pub sequence: u64,
    /// What it carries: the `data` of an event (UTF-8), a JSON text without the spaces around it, a payload. Still
    /// compressed where [`compressed`](Self::compressed) says so.
    pub data: &'a [u8],
    /// The message itself is compressed, as a header of the exchange says (`grpc-encoding`, `connect-content-encoding`).
    pub compressed: bool,
    /// Not a message of the application, but how the stream ended: gRPC-Web trailers (an HTTP/1 header block), or the
    /// last message of Connect (JSON).
    pub end_of_stream: bool,
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum MessageKind<'a> {
    /// A server-sent event.
    Event {
        /// The `event` field, `message` unless given.
        event_type: &'a str,
        /// The last event ID in force.
        id: Option<&'a str>,
        /// The `retry` field, in milliseconds.
        retry: Option<u64>,
    },
    /// A JSON text. Whether it is JSON has not been checked.
    Json,
    /// A message of gRPC or gRPC-Web.
    Grpc,
    /// A message of Connect.
    Connect,
    /// A message of an AWS event stream, its checksums verified.
    AwsEvent {
        /// The headers in their order.
        headers: &'a [(String, HeaderValue)],
    },
}

/// Splits a body of any [`StreamKind`] into its messages.
///
/// Like every splitter of this module it gives the same messages for every cut, and its first error is final; a caller
/// that only observes lets the bytes pass on then, and says that it saw no more. A message is bounded by the default of
/// its splitter, or by [`with_limit`](Self::with_limit).
///
/// ```
/// use tollgate_wire::framing::{MessageKind, StreamSplitter};
///
/// let mut splitter = StreamSplitter::for_content_type(b"text/event-stream; charset=utf-8").expect("a stream");
/// let mut events = Vec::new();
/// splitter.feed(b"event: greeting\ndata: hello\n\nda", &mut |message| {
///     if let MessageKind::Event { event_type, .. } = message.kind {
///         events.push((message.sequence, event_type.to_owned(), message.data.to_vec()));
///     }
/// })?;
/// assert_eq!(events, [(0, "greeting".to_owned(), b"hello".to_vec())]);
///
/// assert!(StreamSplitter::for_content_type(b"text/html").is_none());
/// # Ok::<(), tollgate_wire::framing::FramingError>(())
/// ```
#[derive(Debug, Clone)]
pub struct StreamSplitter {
    kind: StreamKind,
    inner: Inner,
    next_sequence: u64,
    failed: Option<FramingError>,
}

#[derive(Debug, Clone)]
enum Inner {
    Sse {
        parser: SseParser,
        limit: usize,
    },
    Ndjson(NdjsonSplitter),
    JsonSeq(JsonSeqSplitter),
    JsonArray(JsonArraySplitter),
    Grpc(GrpcSplitter),
    GrpcWebText(GrpcWebTextSplitter),
    Connect(ConnectSplitter),
    AwsEventStream(AwsEventStreamSplitter),
    /// After an error: nothing is kept any more.
    Failed,
}

impl StreamSplitter {
    /// The splitter for a `Content-Type`, as [`StreamKind::of_content_type`] reads it.
    #[must_use]
    pub fn for_content_type(content_type: &[u8]) -> Option<Self> {
        StreamKind::of_content_type(content_type).map(Self::new)
    }

    /// A splitter with the limits that its kind has by default: 1 MiB for an event, 16 MiB for an AWS message, 4 MiB for
    /// every other.
    #[must_use]
    pub fn new(kind: StreamKind) -> Self {
        Self::with_inner(
            kind,
            match kind {
                StreamKind::Sse => Inner::Sse {
                    parser: SseParser::new(),
                    limit: DEFAULT_MAX_EVENT_BYTES,
                },
                StreamKind::Ndjson => Inner::Ndjson(NdjsonSplitter::new()),
                StreamKind::JsonSeq => Inner::JsonSeq(JsonSeqSplitter::new()),
                StreamKind::JsonArray => Inner::JsonArray(JsonArraySplitter::new()),
                StreamKind::Grpc | StreamKind::GrpcWeb => Inner::Grpc(GrpcSplitter::new()),
                StreamKind::GrpcWebText => Inner::GrpcWebText(GrpcWebTextSplitter::new()),
                StreamKind::Connect => Inner::Connect(ConnectSplitter::new()),
                StreamKind::AwsEventStream => Inner::AwsEventStream(AwsEventStreamSplitter::new()),
            },
        )
    }

    /// A splitter for messages of at most `limit` bytes. What counts is said at the splitter of each kind.
    #[must_use]
    pub fn with_limit(kind: StreamKind, limit: usize) -> Self {
        Self::with_inner(
            kind,
            match kind {
                StreamKind::Sse => Inner::Sse {
                    parser: SseParser::with_limit(limit),
                    limit,
                },
                StreamKind::Ndjson => Inner::Ndjson(NdjsonSplitter::with_limit(limit)),
                StreamKind::JsonSeq => Inner::JsonSeq(JsonSeqSplitter::with_limit(limit)),
                StreamKind::JsonArray => Inner::JsonArray(JsonArraySplitter::with_limit(limit)),
                StreamKind::Grpc | StreamKind::GrpcWeb => {
                    Inner::Grpc(GrpcSplitter::with_limit(limit))
                }
                StreamKind::GrpcWebText => {
                    Inner::GrpcWebText(GrpcWebTextSplitter::with_limit(limit))
                }
                StreamKind::Connect => Inner::Connect(ConnectSplitter::with_limit(limit)),
                StreamKind::AwsEventStream => {
                    Inner::AwsEventStream(AwsEventStreamSplitter::with_limit(limit))
                }
            },
        )
    }

    fn with_inner(kind: StreamKind, inner: Inner) -> Self {
        Self {
            kind,
            inner,
            next_sequence: 0,
            failed: None,
        }
    }

    /// What the stream is taken for.
    #[must_use]
    pub fn kind(&self) -> StreamKind {
        self.kind
    }

    /// How many messages there have been.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.next_sequence
    }

    /// Takes the next bytes; `on_message` gets each message that they complete.
    ///
    /// # Errors
    /// [`FramingError`], as the splitter of this kind says; [`FramingError::TooLarge`] also for an event of an event
    /// stream.
    pub fn feed(
        &mut self,
        input: &[u8],
        on_message: &mut dyn FnMut(StreamMessage<'_>),
    ) -> Result<(), FramingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let mut count = Numbered {
            next_sequence: &mut self.next_sequence,
            on_message,
        };
        let json = plain(MessageKind::Json);
        let result = match &mut self.inner {
            Inner::Sse { parser, limit } => feed_events(parser, *limit, input, &mut count),
            Inner::Ndjson(splitter) => splitter.feed(input, |data| count.give(json, data)),
            Inner::JsonSeq(splitter) => splitter.feed(input, |data| count.give(json, data)),
            Inner::JsonArray(splitter) => splitter.feed(input, |data| count.give(json, data)),
            Inner::Grpc(splitter) => splitter.feed(input, |message| count.give_grpc(&message)),
            Inner::GrpcWebText(splitter) => {
                splitter.feed(input, |message| count.give_grpc(&message))
            }
            Inner::Connect(splitter) => splitter.feed(input, |message| {
                let about = About {
                    kind: MessageKind::Connect,
                    compressed: message.compressed,
                    end_of_stream: message.end_stream,
                };
                count.give(about, message.payload);
            }),
            Inner::AwsEventStream(splitter) => splitter.feed(input, |message| {
                let headers = &message.headers;
                count.give(plain(MessageKind::AwsEvent { headers }), message.payload);
            }),
            Inner::Failed => Ok(()),
        };
        result.inspect_err(|&error| self.fail(error))
    }

    /// Ends the stream. `on_message` gets the message that only its end is missing from: a line without its line end, a
    /// JSON text in a sequence, an event without its empty line (which browsers drop and other clients don't).
    ///
    /// # Errors
    /// [`FramingError::Truncated`] within a message of another kind; the error of an earlier [`feed`](Self::feed).
    pub fn finish(
        &mut self,
        on_message: &mut dyn FnMut(StreamMessage<'_>),
    ) -> Result<(), FramingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let mut count = Numbered {
            next_sequence: &mut self.next_sequence,
            on_message,
        };
        let tail = match &mut self.inner {
            Inner::Sse { parser, limit } => {
                finish_events(parser, *limit, &mut count).map(|()| None)
            }
            Inner::Ndjson(splitter) => splitter.finish(),
            Inner::JsonSeq(splitter) => splitter.finish(),
            Inner::JsonArray(splitter) => splitter.finish().map(|()| None),
            Inner::Grpc(splitter) => splitter.finish().map(|()| None),
            Inner::GrpcWebText(splitter) => splitter.finish().map(|()| None),
            Inner::Connect(splitter) => splitter.finish().map(|()| None),
            Inner::AwsEventStream(splitter) => splitter.finish().map(|()| None),
            Inner::Failed => Ok(None),
        };
        match tail {
            Ok(Some(data)) => count.give(plain(MessageKind::Json), &data),
            Ok(None) => {}
            Err(error) => {
                self.fail(error);
                return Err(error);
            }
        }
        Ok(())
    }

    fn fail(&mut self, error: FramingError) {
        self.failed = Some(error);
        self.inner = Inner::Failed;
    }
}

/// Gives events up to the first one that was too large.
fn feed_events(
    parser: &mut SseParser,
    limit: usize,
    mut input: &[u8],
    count: &mut Numbered<'_>,
) -> Result<(), FramingError> {
    loop {
        let event = parser.next_event(&mut input);
        if parser.overflowed() > 0 {
            return Err(FramingError::TooLarge { limit });
        }
        match event {
            Some(event) => count.give_event(&event),
            None => return Ok(()),
        }
    }
}

fn finish_events(
    parser: &mut SseParser,
    limit: usize,
    count: &mut Numbered<'_>,
) -> Result<(), FramingError> {
    let event = parser.flush();
    if parser.overflowed() > 0 {
        return Err(FramingError::TooLarge { limit });
    }
    if let Some(event) = event {
        count.give_event(&event);
    }
    Ok(())
}

/// What a message is, apart from its data.
#[derive(Clone, Copy)]
struct About<'a> {
    kind: MessageKind<'a>,
    compressed: bool,
    end_of_stream: bool,
}

/// A message that has no flags.
fn plain(kind: MessageKind<'_>) -> About<'_> {
    About {
        kind,
        compressed: false,
        end_of_stream: false,
    }
}

/// Numbers the messages that it passes on.
struct Numbered<'a> {
    next_sequence: &'a mut u64,
    on_message: &'a mut dyn FnMut(StreamMessage<'_>),
}

impl Numbered<'_> {
    fn give(&mut self, about: About<'_>, data: &[u8]) {
        let sequence = *self.next_sequence;
        *self.next_sequence = sequence.saturating_add(1);
        (self.on_message)(StreamMessage {
            kind: about.kind,
            sequence,
            data,
            compressed: about.compressed,
            end_of_stream: about.end_of_stream,
        });
    }

    fn give_grpc(&mut self, message: &GrpcMessage<'_>) {
        let about = About {
            kind: MessageKind::Grpc,
            compressed: message.compressed,
            end_of_stream: message.trailers,
        };
        self.give(about, message.payload);
    }

    fn give_event(&mut self, event: &SseEvent) {
        let kind = MessageKind::Event {
            event_type: &event.event_type,
            id: event.id.as_deref(),
            retry: event.retry,
        };
        self.give(plain(kind), event.data.as_bytes());
    }
}

/// A `Content-Type` without its parameters and the spaces around it.
fn media_type(content_type: &[u8]) -> &[u8] {
    let end = content_type.iter().position(|byte| *byte == b';');
    let media_type = end.and_then(|end| content_type.get(..end));
    media_type.unwrap_or(content_type).trim_ascii()
}

fn ends_with(media_type: &[u8], suffix: &[u8]) -> bool {
    let start = media_type.len().checked_sub(suffix.len());
    let end = start.and_then(|start| media_type.get(start..));
    end.is_some_and(|end| end.eq_ignore_ascii_case(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_content_type_has_its_kind() {
        let cases = [
            ("text/event-stream", StreamKind::Sse),
            (" Text/Event-Stream ; charset=utf-8", StreamKind::Sse),
            ("application/x-ndjson", StreamKind::Ndjson),
            ("application/ndjson", StreamKind::Ndjson),
            ("application/JSONL;x=y", StreamKind::Ndjson),
            ("application/x-jsonlines", StreamKind::Ndjson),
            ("application/jsonlines", StreamKind::Ndjson),
            ("application/json-seq", StreamKind::JsonSeq),
            ("application/geo+JSON-seq", StreamKind::JsonSeq),
            ("application/grpc", StreamKind::Grpc),
            ("application/grpc+proto", StreamKind::Grpc),
            ("application/GRPC+json; x", StreamKind::Grpc),
            ("application/grpc-web", StreamKind::GrpcWeb),
            ("application/grpc-web+proto", StreamKind::GrpcWeb),
            ("application/grpc-web-text", StreamKind::GrpcWebText),
            ("application/grpc-web-text+proto", StreamKind::GrpcWebText),
            ("application/connect+json", StreamKind::Connect),
            ("application/connect+proto", StreamKind::Connect),
            (
                "application/vnd.amazon.eventstream",
                StreamKind::AwsEventStream,
            ),
        ];
        for (content_type, kind) in cases {
            let splitter = StreamSplitter::for_content_type(content_type.as_bytes());
            assert_eq!(
                splitter.map(|splitter| splitter.kind()),
                Some(kind),
                "{content_type}"
            );
        }
        for other in [
            "",
            ";",
            "text/html",
            "application/json",
            "application/grpcx",
            "application/grpc-webx",
            "application/connect",
            "text/event-streams",
            "x; text/event-stream",
        ] {
            assert_eq!(
                StreamKind::of_content_type(other.as_bytes()),
                None,
                "{other}"
            );
        }
    }

    #[test]
    fn a_json_array_is_split_on_request_only() {
        let kind = StreamKind::of_json(b"Application/JSON; charset=UTF-8");
        assert_eq!(kind, Some(StreamKind::JsonArray));
        assert_eq!(StreamKind::of_json(b"application/problem+json"), None);
        let mut splitter = StreamSplitter::new(StreamKind::JsonArray);
        let result = splitter.feed(b"{}", &mut |_| panic!("not an element"));
        assert_eq!(result, Err(FramingError::NotAnArray));
    }
}
