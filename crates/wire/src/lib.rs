//! Sans-io codecs for everything an intercepting proxy meets: bytes in, meaning out.
//!
//! Nothing in this crate opens a socket, reads a clock, spawns a task or writes a log line. A codec is
//! fed the bytes that arrived, in whatever pieces they arrived, and answers what they mean; the caller
//! keeps the bytes and can forward them verbatim. Three rules hold in every module:
//!
//! * **Same meaning for every split.** Feeding a byte at a time gives the same result as one feed.
//! * **Bounded.** Whatever a peer sends, memory stays under a limit that the documentation names.
//! * **Strict where it is dangerous.** Input that two implementations could read differently is a typed
//!   error (see [`http1::Anomaly`]), never a guess.
//!
//! | module | what it reads |
//! |---|---|
//! | [`detect`] | which protocol a connection starts with |
//! | [`alt_svc`] | `Alt-Svc`, to take HTTP/3 out of it |
//! | [`dns`] | DNS messages, to take ECH and HTTP/3 out of HTTPS records |
//! | [`proxy_protocol`] | PROXY protocol headers, versions 1 and 2 |
//! | [`socks5`] | SOCKS5 with user name and password, both sides |
//! | [`tls`] | TLS records and the ClientHello, JA3 and JA4 |
//! | [`headers`] | the header list shared by the HTTP versions |
//! | [`http1`] | HTTP/1 heads and chunked bodies |
//! | [`http3`] | HTTP/3's frames and QPACK |
//! | [`icap`] | ICAP/1.0, both sides |
//! | [`coding`] | `Content-Encoding` |
//! | [`sse`] | `text/event-stream` |
//! | [`framing`] | streams of messages by content type: SSE, NDJSON, JSON sequences and arrays, gRPC, gRPC-Web, Connect, AWS |
//! | [`websocket`] | WebSocket frames and messages, permessage-deflate |
#![forbid(unsafe_code)]

pub mod address;
pub mod alt_svc;
pub mod coding;
pub mod detect;
pub mod dns;
pub mod framing;
pub mod headers;
pub mod http1;
pub mod http3;
pub mod icap;
pub mod proxy_protocol;
mod reader;
pub mod socks5;
pub mod sse;
pub mod tls;
pub mod websocket;
