//! The operators: their names, what they take, and what they look at.

use super::subject::Property;

/// An operator of the language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Its name, without the tilde.
    pub code: &'static str,
    /// What follows it.
    pub argument: Argument,
    /// What it is for.
    pub help: &'static str,
    /// Whether mitmproxy has it, too.
    pub in_mitmproxy: bool,
    pub(super) kind: Kind,
}

/// What follows an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// Nothing.
    None,
    /// A regular expression.
    Regex,
    /// An integer.
    Integer,
    /// A number of bytes, or a range of them: `>10k`, `1m..2m`.
    Size,
    /// A time, or a range of them: `>=500ms`, `<2s`.
    Duration,
    /// A status code, a class or a range of them: `404`, `5xx`, `>=400`.
    Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    All,
    Asset,
    Is(Property),
    Code,
    Text(Texts),
    Number(Numbers),
}

/// What a regular expression is matched with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Texts {
    Body,
    BodyRequest,
    BodyResponse,
    ContentType,
    ContentTypeRequest,
    ContentTypeResponse,
    Domain,
    Destination,
    Header,
    HeaderRequest,
    HeaderResponse,
    Method,
    Source,
    Url,
    Metadata,
    Marker,
    Comment,
    Finding,
    Process,
    Ja3,
    Ja4,
    Sni,
    Version,
    Id,
}

impl Texts {
    /// As mitmproxy words it, for its own.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Body => "body",
            Self::BodyRequest => "body request",
            Self::BodyResponse => "body response",
            Self::ContentType => "content type",
            Self::ContentTypeRequest => "req. content type",
            Self::ContentTypeResponse => "resp. content type",
            Self::Domain => "domain",
            Self::Destination => "destination address",
            Self::Header => "header",
            Self::HeaderRequest => "req. header",
            Self::HeaderResponse => "resp. header",
            Self::Method => "method",
            Self::Source => "source address",
            Self::Url => "url",
            Self::Metadata => "flow metadata",
            Self::Marker => "marker",
            Self::Comment => "comment",
            Self::Finding => "finding",
            Self::Process => "client process",
            Self::Ja3 => "JA3",
            Self::Ja4 => "JA4",
            Self::Sni => "server name",
            Self::Version => "HTTP version",
            Self::Id => "flow id",
        }
    }

    /// How mitmproxy compiles the regular expression: over bytes or over text, and with which flags.
    pub fn flavour(self) -> Flavour {
        use Texts as T;
        match self {
            T::Body | T::BodyRequest | T::BodyResponse => Flavour::BYTES.dot_all(),
            T::Header | T::HeaderRequest | T::HeaderResponse => Flavour::BYTES.multi_line(),
            T::ContentType | T::ContentTypeRequest | T::ContentTypeResponse | T::Method => {
                Flavour::BYTES
            }
            T::Metadata | T::Comment => Flavour::TEXT.multi_line(),
            _ => Flavour::TEXT,
        }
    }
}

/// How a regular expression is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flavour {
    /// Over bytes: classes and case are those of ASCII.
    pub bytes: bool,
    pub multi_line: bool,
    pub dot_all: bool,
}

impl Flavour {
    const BYTES: Self = Self {
        bytes: true,
        multi_line: false,
        dot_all: false,
    };
    const TEXT: Self = Self {
        bytes: false,
        multi_line: false,
        dot_all: false,
    };

    const fn multi_line(self) -> Self {
        Self {
            multi_line: true,
            ..self
        }
    }

    const fn dot_all(self) -> Self {
        Self {
            dot_all: true,
            ..self
        }
    }
}

/// What a range is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbers {
    Size,
    SizeRequest,
    SizeResponse,
    Duration,
    Status,
}

impl Numbers {
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::SizeRequest => "request size",
            Self::SizeResponse => "response size",
            Self::Duration => "duration",
            Self::Status => "status",
        }
    }
}

/// Every operator, mitmproxy's first. `!`, `&`, `|`, parentheses and bare words aren't among them.
pub const OPERATORS: &[Operator] = &[
    flag("all", Kind::All, "every flow"),
    flag(
        "a",
        Kind::Asset,
        "response with the type of an asset: CSS, JavaScript, image, font",
    ),
    regex(
        "b",
        Texts::Body,
        "body of request or response, decoded; WebSocket, TCP, UDP messages; DNS records",
    ),
    regex("bq", Texts::BodyRequest, "the same, from the client"),
    regex("bs", Texts::BodyResponse, "the same, from the origin"),
    mitm(
        "c",
        Argument::Integer,
        Kind::Code,
        "status code, equal to the number",
    ),
    regex("comment", Texts::Comment, "comment"),
    regex(
        "d",
        Texts::Domain,
        "host that the request went to, or that it names",
    ),
    flag("dns", Kind::Is(Property::Dns), "DNS flow"),
    regex("dst", Texts::Destination, "host:port of the origin"),
    flag("e", Kind::Is(Property::Error), "has an error"),
    regex(
        "h",
        Texts::Header,
        "header line `name: value` of request or response; ^ and $ match at lines",
    ),
    regex("hq", Texts::HeaderRequest, "header line of the request"),
    regex("hs", Texts::HeaderResponse, "header line of the response"),
    flag("http", Kind::Is(Property::Http), "HTTP flow"),
    regex("m", Texts::Method, "method"),
    flag("marked", Kind::Is(Property::Marked), "marked by a person"),
    regex("marker", Texts::Marker, "name of the mark"),
    regex("meta", Texts::Metadata, "metadata, as lines `key: value`"),
    flag(
        "q",
        Kind::Is(Property::NoResponse),
        "request without a response (HTTP, DNS)",
    ),
    flag(
        "replay",
        Kind::Is(Property::Replayed),
        "replayed, either way",
    ),
    flag(
        "replayq",
        Kind::Is(Property::RequestReplayed),
        "replayed request",
    ),
    flag(
        "replays",
        Kind::Is(Property::ResponseReplayed),
        "replayed response",
    ),
    flag(
        "s",
        Kind::Is(Property::Response),
        "has a response (HTTP, DNS)",
    ),
    regex("src", Texts::Source, "address:port of the client"),
    regex(
        "t",
        Texts::ContentType,
        "content type of request or response",
    ),
    flag("tcp", Kind::Is(Property::Tcp), "TCP flow"),
    regex(
        "tq",
        Texts::ContentTypeRequest,
        "content type of the request",
    ),
    regex(
        "ts",
        Texts::ContentTypeResponse,
        "content type of the response",
    ),
    regex(
        "u",
        Texts::Url,
        "URL with the host that the request names; name that a DNS query asks",
    ),
    flag("udp", Kind::Is(Property::Udp), "UDP flow"),
    flag(
        "websocket",
        Kind::Is(Property::WebSocket),
        "HTTP flow that became a WebSocket",
    ),
    // Ours. mitmproxy's codes are short or its own words; these are words of ours, or names that a standard gave.
    ours(
        "duration",
        Argument::Duration,
        Kind::Number(Numbers::Duration),
        "time from the request to the end of the response",
    ),
    ours(
        "finding",
        Argument::Regex,
        Kind::Text(Texts::Finding),
        "what screening found",
    ),
    ours(
        "id",
        Argument::Regex,
        Kind::Text(Texts::Id),
        "the flow's id",
    ),
    ours(
        "ja3",
        Argument::Regex,
        Kind::Text(Texts::Ja3),
        "JA3 fingerprint of the client's hello",
    ),
    ours(
        "ja4",
        Argument::Regex,
        Kind::Text(Texts::Ja4),
        "JA4 fingerprint of the client's hello",
    ),
    ours(
        "process",
        Argument::Regex,
        Kind::Text(Texts::Process),
        "name, path or command line of the client's process",
    ),
    ours(
        "size",
        Argument::Size,
        Kind::Number(Numbers::Size),
        "bytes of both bodies, or of all messages",
    ),
    ours(
        "sizeq",
        Argument::Size,
        Kind::Number(Numbers::SizeRequest),
        "bytes from the client",
    ),
    ours(
        "sizes",
        Argument::Size,
        Kind::Number(Numbers::SizeResponse),
        "bytes from the origin",
    ),
    ours(
        "sni",
        Argument::Regex,
        Kind::Text(Texts::Sni),
        "server name in the client's hello",
    ),
    ours(
        "status",
        Argument::Status,
        Kind::Number(Numbers::Status),
        "status code, class or range",
    ),
    ours(
        "version",
        Argument::Regex,
        Kind::Text(Texts::Version),
        "HTTP version of the request",
    ),
];

/// The operator of a name.
pub(super) fn find(code: &str) -> Option<&'static Operator> {
    OPERATORS.iter().find(|operator| operator.code == code)
}

const fn mitm(code: &'static str, argument: Argument, kind: Kind, help: &'static str) -> Operator {
    Operator {
        code,
        argument,
        help,
        in_mitmproxy: true,
        kind,
    }
}

const fn flag(code: &'static str, kind: Kind, help: &'static str) -> Operator {
    mitm(code, Argument::None, kind, help)
}

const fn regex(code: &'static str, texts: Texts, help: &'static str) -> Operator {
    mitm(code, Argument::Regex, Kind::Text(texts), help)
}

const fn ours(code: &'static str, argument: Argument, kind: Kind, help: &'static str) -> Operator {
    Operator {
        in_mitmproxy: false,
        ..mitm(code, argument, kind, help)
    }
}
