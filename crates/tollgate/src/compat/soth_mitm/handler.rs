//! The trait to implement.

use std::future::{Future, ready};

use uuid::Uuid;

use super::types::{
    ConnectionMeta, HandlerDecision, ProcessInfo, RawRequest, RawResponse, StreamChunk,
};

/// Watches what passes, and decides about requests. Every method has a default.
///
/// The order for one connection:
///
/// 1. `on_connection_open`
/// 2. `should_intercept_tls`, and `on_tls_failure` if a handshake fails
/// 3. for each request `on_request`, then `on_response`; for a streamed response (SSE, NDJSON, gRPC)
///    `on_response` with an empty body at once, then `on_stream_chunk` for each message, and
///    `on_stream_end` once
/// 4. `on_connection_close`, exactly once, after everything else
///
/// `on_request` is waited for. `on_response`, `on_stream_chunk`, `on_stream_end` and
/// `on_connection_close` run one after the other for each connection, off the path of the data: they
/// never delay a byte, and the next request may be decided before they are done with the last response.
/// What has not been handled yet is bounded (256 calls a connection, 64 MiB or twice
/// `body.max_size_bytes` in all); beyond that, calls are left out and counted in
/// `dropped_dispatch_work_count`. A stream whose `on_response` was left out is left out altogether, and
/// `on_stream_end` is never left out for one that was not.
///
/// The synchronous methods run on a thread of the proxy: they must not block.
pub trait InterceptHandler: Send + Sync + 'static {
    /// Whether to open the TLS of a client who wants to talk to `host`. If not, the bytes pass unopened.
    fn should_intercept_tls(&self, host: &str, process_info: Option<&ProcessInfo>) -> bool {
        let _ = (host, process_info);
        true
    }

    /// A TLS handshake failed, with the client or with the origin.
    fn on_tls_failure(&self, host: &str, error: &str) {
        let _ = (host, error);
    }

    /// Decides about a request. Nothing of it has gone to the origin, and nothing will if the answer is
    /// [`HandlerDecision::Block`].
    fn on_request(&self, request: &RawRequest) -> impl Future<Output = HandlerDecision> + Send {
        let _ = request;
        ready(HandlerDecision::Allow)
    }

    /// A message of a streamed response has passed.
    fn on_stream_chunk(&self, chunk: &StreamChunk) -> impl Future<Output = ()> + Send {
        let _ = chunk;
        ready(())
    }

    /// A streamed response has ended, in good order or not.
    fn on_stream_end(&self, connection_id: Uuid) -> impl Future<Output = ()> + Send {
        let _ = connection_id;
        ready(())
    }

    /// A response has passed; of a streamed one, the head has come.
    fn on_response(&self, response: &RawResponse) -> impl Future<Output = ()> + Send {
        let _ = response;
        ready(())
    }

    /// A client has connected.
    fn on_connection_open(&self, connection: &ConnectionMeta) {
        let _ = connection;
    }

    /// A client's connection has ended. The last call for it.
    fn on_connection_close(&self, connection_id: Uuid) {
        let _ = connection_id;
    }
}
