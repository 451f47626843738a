//! The surface of soth-mitm, end to end over real TLS.
#![cfg(test)]

mod support;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use support::{Client, Origin, TlsClient, Trace, blocking, chunk, reply, root, start_chunked};
use tollgate::compat::soth_mitm::{
    ConnectionMeta, HandlerDecision, InterceptHandler, MitmConfig, MitmError, MitmProxyBuilder,
    MitmProxyHandle, ProcessInfo, RawRequest, RawResponse, SocketFamily, StreamChunk, Uuid,
    generate_ca,
};

const SECOND: Duration = Duration::from_secs(1);

/// The README's code.
#[path = "../examples/soth_mitm_readme.rs"]
#[expect(dead_code, reason = "its `main` binds a fixed port")]
mod readme;

/// Writes down every call.
struct Recorder {
    trace: Trace,
    ids: std::sync::Mutex<Vec<Uuid>>,
}

impl Recorder {
    fn new(trace: &Trace) -> Self {
        Self {
            trace: trace.clone(),
            ids: std::sync::Mutex::default(),
        }
    }

    /// Connections by the order in which they were opened.
    fn number(&self, id: Uuid) -> usize {
        let mut ids = self.ids.lock().unwrap();
        ids.iter()
            .position(|known| *known == id)
            .unwrap_or_else(|| {
                ids.push(id);
                ids.len() - 1
            })
    }
}

impl InterceptHandler for Recorder {
    fn should_intercept_tls(&self, host: &str, _: Option<&ProcessInfo>) -> bool {
        self.trace.add(format!("tls {host}"));
        true
    }

    fn on_tls_failure(&self, host: &str, error: &str) {
        self.trace.add(format!("tls_failure {host}: {error}"));
    }

    async fn on_request(&self, request: &RawRequest) -> HandlerDecision {
        let n = self.number(request.connection_meta.connection_id);
        self.trace
            .add(format!("{n} request {} {}", request.method, request.path));
        match request.path.as_str() {
            "/blocked" => HandlerDecision::Block {
                status: 451,
                body: Bytes::from_static(b"no"),
            },
            // Without the backtrace that `panic!` prints: finding its symbols can take longer than the timeout.
            "/panic" => std::panic::resume_unwind(Box::new("as asked")),
            "/slow" => pending().await,
            _ => HandlerDecision::Allow,
        }
    }

    async fn on_stream_chunk(&self, chunk: &StreamChunk) {
        let n = self.number(chunk.connection_id);
        let payload = String::from_utf8_lossy(&chunk.payload);
        self.trace.add(format!(
            "{n} chunk {} {} {payload}",
            chunk.sequence,
            chunk.frame_kind.as_str(),
        ));
    }

    async fn on_stream_end(&self, id: Uuid) {
        self.trace.add(format!("{} stream_end", self.number(id)));
    }

    async fn on_response(&self, response: &RawResponse) {
        let n = self.number(response.connection_meta.connection_id);
        let flags: String = ["x-soth-body-truncated", "x-soth-encoding-error"]
            .iter()
            .filter(|flag| response.headers.contains_key(**flag))
            .map(|flag| format!(" {flag}"))
            .collect();
        self.trace.add(format!(
            "{n} response {} {}{flags}",
            response.status,
            String::from_utf8_lossy(&response.body)
        ));
        if response.headers.contains_key("x-panic") {
            panic!("as asked");
        }
    }

    fn on_connection_open(&self, connection: &ConnectionMeta) {
        let n = self.number(connection.connection_id);
        assert!(connection.tls_info.is_none());
        let SocketFamily::TcpV4 { local, remote } = connection.socket_family else {
            panic!("{connection:?}");
        };
        assert!(local.port() != 0 && remote.port() != 0 && local != remote);
        self.trace.add(format!("{n} open"));
    }

    fn on_connection_close(&self, id: Uuid) {
        self.trace.add(format!("{} close", self.number(id)));
    }
}

struct Running {
    handle: MitmProxyHandle,
    root: rustls::pki_types::CertificateDer<'static>,
}

impl Running {
    async fn start(
        origin: &Origin,
        handler: impl InterceptHandler,
        change: impl FnOnce(&mut MitmConfig),
    ) -> Self {
        let ca = generate_ca().unwrap();
        let root = root(&ca.cert_pem);
        let mut config = MitmConfig {
            bind: "127.0.0.1:0".parse().unwrap(),
            ..MitmConfig::default()
        };
        config.interception.destinations = vec![origin.authority()];
        config.upstream.verify_upstream_tls = false;
        change(&mut config);
        let proxy = MitmProxyBuilder::new(config, handler)
            .with_ca(ca)
            .build()
            .unwrap();
        Self {
            handle: proxy.start().await.unwrap(),
            root,
        }
    }

    /// A client's connection to the origin.
    async fn client(&self, origin: &Origin) -> TlsClient {
        let (proxy, authority, root) = (
            self.handle.local_addr(),
            origin.authority(),
            self.root.clone(),
        );
        blocking(move || TlsClient::tls(proxy, &authority, &root)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_runs() {
    let origin = Origin::echo();
    let proxy = Running::start(&origin, readme::Gate, |_| {}).await;
    let mut client = proxy.client(&origin).await;
    let (fine, blocked) = blocking(move || (client.get("/fine"), client.get("/blocked/x"))).await;
    assert_eq!((fine.status(), fine.text()), (200, "/fine"));
    assert_eq!(
        (blocked.status(), blocked.text()),
        (403, "blocked by policy")
    );
    assert_eq!(origin.requests().len(), 1);
    assert_eq!(proxy.handle.metrics().total_connections, 1);
    proxy.handle.shutdown(Duration::from_secs(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_come_in_order_and_once() {
    let origin = Origin::echo();
    let trace = Trace::default();
    let proxy = Running::start(&origin, Recorder::new(&trace), |_| {}).await;
    let mut client = proxy.client(&origin).await;
    let wait = trace.clone();
    blocking(move || {
        client.get("/one");
        wait.wait_for("0 response 200 /one");
        client.get("/two");
    })
    .await;
    let calls = trace.wait_for("0 close");
    assert_eq!(
        calls,
        [
            "0 open",
            "tls localhost",
            "0 request GET /one",
            "0 response 200 /one",
            "0 request GET /two",
            "0 response 200 /two",
            "0 close",
        ]
    );
    proxy.handle.shutdown(SECOND).await.unwrap();
    assert_eq!(trace.calls().len(), calls.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_request_never_reaches_the_origin() {
    let origin = Origin::echo();
    let trace = Trace::default();
    let proxy = Running::start(&origin, Recorder::new(&trace), |_| {}).await;
    let mut client = proxy.client(&origin).await;
    let blocked = blocking(move || {
        let blocked = client.post("/blocked", &[b'x'; 100_000]);
        assert_eq!(origin.requests(), []);
        blocked
    })
    .await;
    assert_eq!((blocked.status(), blocked.text()), (451, "no"));
    let calls = trace.wait_for("0 close");
    assert_eq!(
        calls,
        [
            "0 open",
            "tls localhost",
            "0 request POST /blocked",
            "0 close"
        ]
    );
    proxy.handle.shutdown(SECOND).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_plain_request_is_not_even_dialled() {
    let origin = Origin::plain(|_, out| reply(out, 200, &[], b"fine"));
    let proxy = Running::start(&origin, Recorder::new(&Trace::default()), |_| {}).await;
    let address = proxy.handle.local_addr();
    blocking(move || {
        let url = format!("http://{}", origin.authority());
        let blocked = Client::plain(address).get(&format!("{url}/blocked"));
        assert_eq!(blocked.status(), 451);
        assert_eq!(origin.connections(), 0);
        assert_eq!(
            Client::plain(address).get(&format!("{url}/x")).text(),
            "fine"
        );
    })
    .await;
    proxy.handle.shutdown(SECOND).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_come_message_by_message_and_undelayed() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let origin = Origin::tls(move |request, out| {
        let (kind, first, second): (_, &[u8], &[u8]) = match request.path() {
            "/sse" => (
                "text/event-stream",
                b"event: a\ndata: on",
                b"e\n\ndata: two\ndata: lines\n\ndata: [DONE]\n\ndata: tail\n",
            ),
            "/ndjson" => (
                "application/x-ndjson",
                b"{\"a\":1}\n{\"b\"",
                b":2}\n{\"c\":3}",
            ),
            _ => (
                "application/grpc",
                b"\0\0\0\0\x03abc\0\0\0",
                b"\0\x02de\0\0\0\0\0",
            ),
        };
        start_chunked(out, kind)?;
        chunk(out, first)?;
        // The rest only comes once the client has the beginning.
        wait.lock().unwrap().recv().unwrap();
        chunk(out, second)?;
        chunk(out, b"")
    });
    let trace = Trace::default();
    let proxy = Running::start(&origin, Recorder::new(&trace), |_| {}).await;
    let mut client = proxy.client(&origin).await;
    let seen = trace.clone();
    blocking(move || {
        for (n, path) in ["/sse", "/ndjson", "/grpc"].into_iter().enumerate() {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            assert_eq!(client.head().unwrap().status(), 200);
            assert!(client.chunk().unwrap().is_some());
            seen.wait(|calls| calls.iter().filter(|c| c.contains("response")).count() == n + 1);
            go.send(()).unwrap();
            while client.chunk().unwrap().is_some() {}
            seen.wait(|calls| calls.iter().filter(|c| c.contains("end")).count() == n + 1);
        }
    })
    .await;
    let calls = trace.wait_for("0 close");
    assert_eq!(
        calls,
        [
            "0 open",
            "tls localhost",
            "0 request GET /sse",
            "0 response 200 ",
            "0 chunk 0 sse_data one",
            "0 chunk 1 sse_data two\nlines",
            "0 chunk 2 sse_data [DONE]",
            "0 chunk 3 sse_data tail",
            "0 stream_end",
            "0 request GET /ndjson",
            "0 response 200 ",
            "0 chunk 0 ndjson_line {\"a\":1}",
            "0 chunk 1 ndjson_line {\"b\":2}",
            "0 chunk 2 ndjson_line {\"c\":3}",
            "0 stream_end",
            "0 request GET /grpc",
            "0 response 200 ",
            "0 chunk 0 grpc_message abc",
            "0 chunk 1 grpc_message de",
            "0 chunk 2 grpc_message ",
            "0 stream_end",
            "0 close",
        ]
    );
    proxy.handle.shutdown(SECOND).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_ends_too() {
    let origin = Origin::tls(|_, out| {
        start_chunked(out, "text/event-stream")?;
        chunk(out, b"data: 1\n\ndata: 2")?;
        Err(std::io::ErrorKind::Other.into())
    });
    let trace = Trace::default();
    let proxy = Running::start(&origin, Recorder::new(&trace), |_| {}).await;
    let mut client = proxy.client(&origin).await;
    blocking(move || assert!(client.try_get("/").is_err())).await;
    let calls = trace.wait_for("0 close");
    assert_eq!(
        calls[2..],
        [
            "0 request GET /",
            "0 response 200 ",
            "0 chunk 0 sse_data 1",
            "0 stream_end",
            "0 close"
        ]
    );
    proxy.handle.shutdown(SECOND).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panicking_or_slow_handler_fails_closed() {
    let origin = Origin::echo();
    let trace = Trace::default();
    let proxy = Running::start(&origin, Recorder::new(&trace), |config| {
        config.handler.request_timeout_ms = 500;
    })
    .await;
    let mut client = proxy.client(&origin).await;
    let statuses =
        blocking(move || ["/panic", "/slow", "/fine"].map(|path| client.get(path).status())).await;
    assert_eq!(statuses, [502, 504, 200]);
    assert_eq!(origin.requests().len(), 1);
    let metrics = proxy.handle.metrics();
    assert_eq!(metrics.handler_panic_count, 1);
    assert_eq!(metrics.handler_timeout_count, 1);
    proxy.handle.shutdown(SECOND).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_recovery_a_panic_costs_the_connection() {
    let origin = Origin::tls(|request, out| {
        let headers: &[_] = if request.path() == "/late" {
            &[("X-Panic", "1")]
        } else {
            &[]
        };
        reply(out, 200, headers, b"")
    });
    let trace = Trace::default();
    let proxy = Running::start(&origin, Recorder::new(&trace), |config| {
        config.handler.recover_from_panics = false;
    })
    .await;
    // In `on_request`: closed without an answer.
    let mut client = proxy.client(&origin).await;
    blocking(move || assert!(client.try_get("/panic").is_err())).await;
    assert_eq!(origin.requests(), []);
    trace.wait_for("0 close");
    // In `on_response`, which nothing waits for: the next request finds out.
    let mut client = proxy.client(&origin).await;
    let seen = trace.clone();
    let counted = Arc::new(proxy);
    let count = Arc::clone(&counted);
    blocking(move || {
        assert_eq!(client.get("/late").status(), 200);
        seen.wait_for("1 response 200 ");
        support::eventually("the panic is counted", || {
            count.handle.metrics().handler_panic_count == 2
        });
        assert!(client.try_get("/next").is_err());
    })
    .await;
    assert_eq!(origin.requests().len(), 1);
    let proxy = Arc::into_inner(counted).unwrap();
    proxy.handle.shutdown(SECOND).await.unwrap();
}

/// Panics in its synchronous methods.
struct Nervous;

impl InterceptHandler for Nervous {
    fn should_intercept_tls(&self, _: &str, _: Option<&ProcessInfo>) -> bool {
        panic!("as asked");
    }

    fn on_connection_close(&self, _: Uuid) {
        panic!("as asked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_does_not_turn_interception_off() {
    for recover in [true, false] {
        let origin = Origin::echo();
        let proxy = Running::start(&origin, Nervous, |config| {
            config.handler.recover_from_panics = recover;
        })
        .await;
        let (address, authority, root) = (
            proxy.handle.local_addr(),
            origin.authority(),
            proxy.root.clone(),
        );
        // Trusting the proxy's authority alone, so that a tunnel would fail.
        blocking(move || {
            let client = TlsClient::try_tls(address, &authority, &root, rustls::ALL_VERSIONS);
            assert_eq!(client.is_ok(), recover);
            if let Ok(mut client) = client {
                assert_eq!(client.get("/x").text(), "/x");
            }
        })
        .await;
        proxy.handle.shutdown(SECOND).await.unwrap();
    }
}

/// Never gets done with a response.
struct Stuck(Trace);

impl InterceptHandler for Stuck {
    async fn on_response(&self, _: &RawResponse) {
        self.0.add("response");
        pending().await
    }

    fn on_connection_close(&self, _: Uuid) {
        self.0.add("close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_does_not_keep_up_delays_nothing() {
    let origin = Origin::echo();
    let trace = Trace::default();
    let proxy = Running::start(&origin, Stuck(trace.clone()), |config| {
        config.handler.response_timeout_ms = 600_000;
    })
    .await;
    let mut client = proxy.client(&origin).await;
    blocking(move || {
        for _ in 0..300 {
            assert_eq!(client.get("/x").status(), 200);
        }
    })
    .await;
    // 256 wait, and one is being handled.
    support::eventually("all others are dropped", || {
        proxy.handle.metrics().dropped_dispatch_work_count == 300 - 257
    });
    let end = proxy.handle.shutdown(Duration::from_millis(50)).await;
    assert!(matches!(end, Err(MitmError::Io(e)) if e.kind() == std::io::ErrorKind::TimedOut));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_call_is_cancelled() {
    let origin = Origin::echo();
    let trace = Trace::default();
    let proxy = Running::start(&origin, Stuck(trace.clone()), |config| {
        config.handler.response_timeout_ms = 10;
    })
    .await;
    let mut client = proxy.client(&origin).await;
    blocking(move || {
        client.get("/x");
        client.get("/y");
    })
    .await;
    assert_eq!(trace.wait_for("close"), ["response", "response", "close"]);
    assert_eq!(proxy.handle.metrics().handler_timeout_count, 2);
    proxy.handle.shutdown(SECOND).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_distrusts_us_is_reported_once_and_changes_nothing() {
    let origin = Origin::echo();
    let trace = Trace::default();
    let proxy = Running::start(&origin, Recorder::new(&trace), |_| {}).await;
    let (address, authority, root) = (
        proxy.handle.local_addr(),
        origin.authority(),
        proxy.root.clone(),
    );
    blocking(move || {
        let other = support::root(&generate_ca().unwrap().cert_pem);
        let distrusts = TlsClient::try_tls(address, &authority, &other, rustls::ALL_VERSIONS);
        // In TLS 1.3 the client may learn of nothing, and simply goes.
        drop(distrusts);
        assert_eq!(
            TlsClient::tls(address, &authority, &root).get("/x").text(),
            "/x"
        );
    })
    .await;
    trace.wait_for("1 close");
    let calls = trace.wait_for("0 close");
    let failures: Vec<_> = calls
        .iter()
        .filter(|c| c.starts_with("tls_failure"))
        .collect();
    assert_eq!(failures.len(), 1, "{calls:#?}");
    assert!(failures[0].starts_with("tls_failure localhost: "));
    proxy.handle.shutdown(SECOND).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_an_error_of_start() {
    let origin = Origin::echo();
    let mut config = MitmConfig {
        bind: origin.address,
        ..MitmConfig::default()
    };
    config.interception.destinations.push("a.test:443".into());
    let proxy = MitmProxyBuilder::new(config, readme::Gate)
        .with_ca(generate_ca().unwrap())
        .build()
        .unwrap();
    assert!(matches!(
        proxy.start().await,
        Err(MitmError::Io(e)) if e.kind() == std::io::ErrorKind::AddrInUse
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn reload_changes_what_comes_and_keeps_what_is() {
    let origin = Origin::echo();
    let trace = Trace::default();
    let proxy = Running::start(&origin, Recorder::new(&trace), |_| {}).await;
    let mut before = proxy.client(&origin).await;

    let mut config = proxy.handle.current_config().await;
    config.interception.destinations = vec!["elsewhere.test:443".into()];
    config.interception.passthrough_unlisted = false;
    proxy.handle.reload(config.clone()).await.unwrap();
    assert_eq!(proxy.handle.current_config().await, config);

    let mut wrong = config.clone();
    wrong.bind.set_port(1);
    assert!(matches!(
        proxy.handle.reload(wrong).await,
        Err(MitmError::InvalidConfig(_))
    ));
    let mut wrong = config.clone();
    wrong.tls.ca_cert_path = "other.pem".into();
    assert!(proxy.handle.reload(wrong).await.is_err());
    assert_eq!(proxy.handle.current_config().await, config);

    let (address, authority) = (proxy.handle.local_addr(), origin.authority());
    blocking(move || {
        assert_eq!(before.get("/before").text(), "/before");
        assert_eq!(Client::plain(address).connect(&authority).status(), 403);
    })
    .await;
    trace.wait_for("0 response 200 /before");
    proxy.handle.shutdown(SECOND).await.unwrap();
}
