//! What can be wrong with an HTTP/1 message.

/// Something in an HTTP/1 message that is invalid, too large, or that two implementations could read
/// differently. None of them is repaired: the caller refuses the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Anomaly {
    /// `Transfer-Encoding` together with `Content-Length`, the classic of request smuggling (RFC 9112 section 6.1).
    #[error("both Transfer-Encoding and Content-Length are present")]
    BothTransferEncodingAndContentLength,
    /// Several `Content-Length` values that aren't the same bytes. Identical ones are tolerated (RFC 9112 section 6.3).
    #[error("several Content-Length values differ")]
    DifferingContentLengths,
    /// A `Content-Length` that isn't digits only: signs, white space inside, a list, nothing, or more than 2^63 - 1.
    #[error("the Content-Length is not a plain number")]
    InvalidContentLength,
    /// A `Transfer-Encoding` other than `chunked` alone. Bodies under a further transfer coding couldn't be looked
    /// into, so that the registered ones are refused as well.
    #[error("the Transfer-Encoding is not supported")]
    UnknownTransferCoding,
    /// `Transfer-Encoding` doesn't end with `chunked`: the end of the body can't be known.
    #[error("chunked is not the last transfer coding")]
    ChunkedNotLast,
    /// `chunked` is named more than once.
    #[error("chunked is named more than once")]
    RepeatedChunked,
    /// `Transfer-Encoding` in an HTTP/1.0 message, where it has no meaning (RFC 9112 section 6.1).
    #[error("an HTTP/1.0 message has a Transfer-Encoding")]
    TransferEncodingInHttp10,
    /// A line ends with LF instead of CRLF.
    #[error("a line ends with a bare LF")]
    BareLf,
    /// CR without LF behind it.
    #[error("a CR stands without its LF")]
    BareCr,
    /// A header line begins with white space, continuing the one before (RFC 9112 section 5.2).
    #[error("a header line is folded")]
    ObsFold,
    /// White space behind a header name, before its colon or inside the name (RFC 9112 section 5.1).
    #[error("white space stands between a header name and its colon")]
    SpaceBeforeColon,
    /// White space between the start line and the first header (RFC 9112 section 2.2).
    #[error("white space stands before the first header")]
    SpaceBeforeFirstHeader,
    /// More empty lines before a request than a robust parser skips.
    #[error("too many empty lines before the request")]
    LeadingEmptyLines,
    /// A header line begins with its colon.
    #[error("a header has no name")]
    EmptyHeaderName,
    /// A header name holds a byte that can't stand in one.
    #[error("a header name is not a token")]
    InvalidHeaderName,
    /// A header line has no colon.
    #[error("a header line has no colon")]
    MissingColon,
    /// A header value holds NUL.
    #[error("a header value holds NUL")]
    InvalidHeaderValue,
    /// The method is empty or holds a byte that can't stand in one.
    #[error("the request method is not a token")]
    InvalidMethod,
    /// The request target is missing or holds control characters.
    #[error("the request target is invalid")]
    InvalidTarget,
    /// No `HTTP/` and a version where it belongs, which is also what white space in a request target comes to.
    #[error("the HTTP version is missing or malformed")]
    InvalidVersion,
    /// A well-formed version other than 1.0 and 1.1.
    #[error("the HTTP version is not supported")]
    UnsupportedVersion,
    /// The status is not three digits from 100 to 999.
    #[error("the response status is invalid")]
    InvalidStatus,
    /// The reason phrase holds NUL.
    #[error("the reason phrase holds NUL")]
    InvalidReason,
    /// More than one `Host` header.
    #[error("more than one Host header")]
    MultipleHosts,
    /// An HTTP/1.1 request without `Host`.
    #[error("the Host header is missing")]
    MissingHost,
    /// A `Host` header that is no `uri-host [":" port]` (RFC 9112 section 3.2).
    #[error("the Host header is invalid")]
    InvalidHost,
    /// The head is larger than [`HeadLimits::bytes`](super::HeadLimits::bytes).
    #[error("the head is too large")]
    HeadTooLarge,
    /// The head has more lines than [`HeadLimits::lines`](super::HeadLimits::lines).
    #[error("the head has too many headers")]
    TooManyHeaders,
    /// A chunk size that isn't 1 to 16 hexadecimal digits, or is more than 2^63 - 1.
    #[error("a chunk size is invalid")]
    InvalidChunkSize,
    /// A chunk extension holds NUL.
    #[error("a chunk extension is invalid")]
    InvalidChunkExtension,
    /// A chunk line with its extensions is longer than [`MAX_CHUNK_LINE`](super::MAX_CHUNK_LINE).
    #[error("a chunk line is too long")]
    ChunkLineTooLong,
    /// The data of a chunk is not followed by CRLF.
    #[error("a chunk is not followed by CRLF")]
    InvalidChunkTerminator,
    /// The trailer section is larger than the decoder's limit.
    #[error("the trailers are too large")]
    TrailersTooLarge,
    /// `Content-Length`, `Transfer-Encoding` or `Host` in the trailers (RFC 9110 section 6.5.1).
    #[error("a trailer changes the framing or the routing of the message")]
    ForbiddenTrailer,
}

impl Anomaly {
    /// A short name for logs, metrics and configuration. It never changes.
    pub fn code(self) -> &'static str {
        match self {
            Self::BothTransferEncodingAndContentLength => "te-and-cl",
            Self::DifferingContentLengths => "cl-differ",
            Self::InvalidContentLength => "cl-invalid",
            Self::UnknownTransferCoding => "te-unknown",
            Self::ChunkedNotLast => "te-chunked-not-last",
            Self::RepeatedChunked => "te-chunked-repeated",
            Self::TransferEncodingInHttp10 => "te-in-http10",
            Self::BareLf => "bare-lf",
            Self::BareCr => "bare-cr",
            Self::ObsFold => "obs-fold",
            Self::SpaceBeforeColon => "space-before-colon",
            Self::SpaceBeforeFirstHeader => "space-before-first-header",
            Self::LeadingEmptyLines => "leading-empty-lines",
            Self::EmptyHeaderName => "header-name-empty",
            Self::InvalidHeaderName => "header-name-invalid",
            Self::MissingColon => "header-colon-missing",
            Self::InvalidHeaderValue => "header-value-invalid",
            Self::InvalidMethod => "method-invalid",
            Self::InvalidTarget => "target-invalid",
            Self::InvalidVersion => "version-invalid",
            Self::UnsupportedVersion => "version-unsupported",
            Self::InvalidStatus => "status-invalid",
            Self::InvalidReason => "reason-invalid",
            Self::MultipleHosts => "host-multiple",
            Self::MissingHost => "host-missing",
            Self::InvalidHost => "host-invalid",
            Self::HeadTooLarge => "head-too-large",
            Self::TooManyHeaders => "headers-too-many",
            Self::InvalidChunkSize => "chunk-size-invalid",
            Self::InvalidChunkExtension => "chunk-extension-invalid",
            Self::ChunkLineTooLong => "chunk-line-too-long",
            Self::InvalidChunkTerminator => "chunk-terminator-invalid",
            Self::TrailersTooLarge => "trailers-too-large",
            Self::ForbiddenTrailer => "trailer-forbidden",
        }
    }

    /// The status to refuse a request with: 400, or 431 for a head or trailers over their limit, 501 for a transfer
    /// coding, 505 for a version. An anomaly in a response is the origin's fault: 502 whatever this says.
    pub fn status(self) -> u16 {
        match self {
            Self::HeadTooLarge | Self::TooManyHeaders | Self::TrailersTooLarge => 431,
            Self::UnknownTransferCoding => 501,
            Self::UnsupportedVersion => 505,
            _ => 400,
        }
    }
}
