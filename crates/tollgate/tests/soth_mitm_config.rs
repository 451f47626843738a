//! Every field of `MitmConfig` does something that can be seen: each is set both ways.
#![cfg(test)]

mod support;

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use support::{Client, LONG, Origin, TlsClient, Trace, blocking, eventually, reply, root};
use tollgate::compat::soth_mitm::{
    ConnectionMeta, HandlerDecision, InterceptHandler, MitmConfig, MitmError, MitmProxyBuilder,
    MitmProxyHandle, RawRequest, RawResponse, SocketFamily, TlsVersion, generate_ca,
    load_ca_from_files,
};
use tollgate::wire::coding::{Coding, Encoder};

/// Keeps what it is given.
#[derive(Clone, Default)]
struct Keep(Arc<Kept>);

#[derive(Default)]
struct Kept {
    requests: Mutex<Vec<RawRequest>>,
    responses: Mutex<Vec<RawResponse>>,
    opened: Mutex<Vec<ConnectionMeta>>,
    trace: Trace,
}

impl InterceptHandler for Keep {
    fn on_tls_failure(&self, host: &str, _: &str) {
        self.0.trace.add(format!("tls_failure {host}"));
    }

    async fn on_request(&self, request: &RawRequest) -> HandlerDecision {
        self.0.requests.lock().unwrap().push(request.clone());
        HandlerDecision::Allow
    }

    async fn on_response(&self, response: &RawResponse) {
        self.0.responses.lock().unwrap().push(response.clone());
        self.0.trace.add("response");
    }

    fn on_connection_open(&self, connection: &ConnectionMeta) {
        self.0.opened.lock().unwrap().push(connection.clone());
    }
}

impl Keep {
    fn request(&self) -> RawRequest {
        self.0.requests.lock().unwrap().last().unwrap().clone()
    }

    /// The first response; it is told of a little after it has passed.
    fn response(&self) -> RawResponse {
        self.0.trace.wait_for("response");
        self.0.responses.lock().unwrap().first().unwrap().clone()
    }
}

struct Running {
    handle: MitmProxyHandle,
    keep: Keep,
    root: CertificateDer<'static>,
    authority: String,
}

async fn start(origin: &Origin, change: impl FnOnce(&mut MitmConfig)) -> Running {
    let ca = generate_ca().unwrap();
    let root = root(&ca.cert_pem);
    let keep = Keep::default();
    let mut config = MitmConfig {
        bind: "127.0.0.1:0".parse().unwrap(),
        ..MitmConfig::default()
    };
    config.interception.destinations = vec![origin.authority()];
    config.upstream.verify_upstream_tls = false;
    change(&mut config);
    let handle = MitmProxyBuilder::new(config, keep.clone())
        .with_ca(ca)
        .build()
        .unwrap()
        .start()
        .await
        .unwrap();
    Running {
        handle,
        keep,
        root,
        authority: origin.authority(),
    }
}

impl Running {
    /// Runs a client's side; it gets a way to connect.
    async fn with<T: Send + 'static>(
        &self,
        client: impl FnOnce(&dyn Fn() -> TlsClient) -> T + Send + 'static,
    ) -> T {
        let (address, authority, root) = (
            self.handle.local_addr(),
            self.authority.clone(),
            self.root.clone(),
        );
        blocking(move || client(&|| TlsClient::tls(address, &authority, &root))).await
    }

    async fn stop(self) {
        self.handle.shutdown(LONG).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bind_is_where_it_listens() {
    let origin = Origin::echo();
    for host in ["127.0.0.1", "127.0.0.2"] {
        let proxy = start(&origin, |c| c.bind = format!("{host}:0").parse().unwrap()).await;
        assert_eq!(proxy.handle.local_addr().ip().to_string(), host);
        proxy.stop().await;
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn unix_socket_path_is_listened_at_as_well() {
    let origin = Origin::plain(|_, out| reply(out, 200, &[], b"fine"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("proxy.sock");
    let with = path.clone();
    let proxy = start(&origin, |c| c.unix_socket_path = Some(with)).await;
    let (url, at) = (format!("http://{}/", origin.authority()), path.clone());
    blocking(move || {
        let mut client = Client::over(std::os::unix::net::UnixStream::connect(at).unwrap());
        assert_eq!(client.get(&url).text(), "fine");
    })
    .await;
    let family = proxy.keep.request().connection_meta.socket_family.clone();
    assert_eq!(
        family,
        SocketFamily::UnixDomain {
            path: Some(path.clone())
        }
    );
    proxy.stop().await;
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn destinations_are_opened_and_others_tunnelled_or_refused() {
    let port = |origin: &Origin| origin.address.port();
    type Change = fn(&mut MitmConfig, u16);
    let cases: [(Change, &str); 5] = [
        (|_, _| {}, "opened"),
        (
            |c, port| c.interception.destinations = vec![format!("*:{port}")],
            "opened",
        ),
        (
            |c, port| c.interception.destinations = vec![format!("local*:{port}")],
            "opened",
        ),
        (
            |c, _| c.interception.destinations = vec!["other.test:443".into()],
            "tunnelled",
        ),
        (
            |c, _| {
                c.interception.destinations = vec!["other.test:443".into()];
                c.interception.passthrough_unlisted = false;
            },
            "refused",
        ),
    ];
    for (n, (change, expected)) in cases.into_iter().enumerate() {
        let origin = Origin::echo();
        let port = port(&origin);
        let proxy = start(&origin, |c| change(c, port)).await;
        let (address, authority, ours) = (
            proxy.handle.local_addr(),
            origin.authority(),
            proxy.root.clone(),
        );
        blocking(move || match expected {
            "refused" => {
                assert_eq!(Client::plain(address).connect(&authority).status(), 403);
                let url = format!("http://{authority}/");
                assert_eq!(Client::plain(address).get(&url).status(), 403);
                assert_eq!(origin.connections(), 0);
            }
            _ => {
                let theirs = root(support::origin_authority_pem().as_bytes());
                let trusted = if expected == "opened" { ours } else { theirs };
                let mut client = TlsClient::tls(address, &authority, &trusted);
                assert_eq!(client.get("/x").text(), "/x");
            }
        })
        .await;
        let seen = proxy.keep.0.requests.lock().unwrap().len();
        assert_eq!(seen, usize::from(expected == "opened"), "case {n}");
        proxy.stop().await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn process_attribution_names_the_client() {
    let origin = Origin::echo();
    for enabled in [true, false] {
        let proxy = start(&origin, |c| c.process_attribution.enabled = enabled).await;
        proxy.with(|connect| connect().get("/x")).await;
        let process = proxy.keep.request().connection_meta.process_info.clone();
        assert_eq!(
            process.as_ref().map(|p| p.pid),
            enabled.then(std::process::id)
        );
        let opened = proxy.keep.0.opened.lock().unwrap()[0].clone();
        assert_eq!(opened.process_info, process);
        proxy.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn authority_files_are_made_and_used_again() {
    let origin = Origin::echo();
    let dir = tempfile::tempdir().unwrap();
    let build = |dir: &Path| {
        let mut config = MitmConfig {
            bind: "127.0.0.1:0".parse().unwrap(),
            ..MitmConfig::default()
        };
        config.interception.destinations = vec![origin.authority()];
        config.upstream.verify_upstream_tls = false;
        config.tls.ca_cert_path = dir.join("sub/ca.pem");
        config.tls.ca_key_path = dir.join("sub/key.pem");
        MitmProxyBuilder::new(config, Keep::default()).build()
    };
    drop(build(dir.path()).unwrap());
    let made = load_ca_from_files(
        dir.path().join("sub/ca.pem"),
        dir.path().join("sub/key.pem"),
    )
    .unwrap();
    let handle = build(dir.path()).unwrap().start().await.unwrap();
    let (address, authority) = (handle.local_addr(), origin.authority());
    blocking(move || {
        let mut client = TlsClient::tls(address, &authority, &root(&made.cert_pem));
        assert_eq!(client.get("/x").status(), 200);
    })
    .await;
    handle.shutdown(LONG).await.unwrap();
    std::fs::remove_file(dir.path().join("sub/key.pem")).unwrap();
    assert!(matches!(build(dir.path()), Err(MitmError::CaLoadFailed(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn min_version_refuses_older_clients() {
    for (version, accepted) in [(TlsVersion::Tls12, true), (TlsVersion::Tls13, false)] {
        let origin = Origin::echo();
        let proxy = start(&origin, |c| c.tls.min_version = version).await;
        let (address, authority, root) = (
            proxy.handle.local_addr(),
            origin.authority(),
            proxy.root.clone(),
        );
        let ok = blocking(move || {
            TlsClient::try_tls(address, &authority, &root, &[&rustls::version::TLS12]).is_ok()
        })
        .await;
        assert_eq!(ok, accepted);
        proxy.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn capture_fingerprint_fills_in_ja4() {
    let origin = Origin::echo();
    for capture in [true, false] {
        let proxy = start(&origin, |c| c.tls.capture_fingerprint = capture).await;
        proxy.with(|connect| connect().get("/x")).await;
        let meta = proxy.keep.request().connection_meta;
        let tls = meta.tls_info.as_ref().unwrap();
        assert_eq!(tls.sni.as_deref(), Some("localhost"));
        assert_eq!(tls.tls_version, Some(TlsVersion::Tls13));
        assert_eq!(
            tls.ja4_hash.as_ref().map(|ja4| ja4.starts_with("t13d")),
            capture.then_some(true)
        );
        proxy.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_silent_too_long_is_a_504() {
    for (timeout_ms, status) in [(50, 504), (30_000, 200)] {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let origin = Origin::tls(move |_, out| {
            let _ = wait.lock().unwrap().recv();
            reply(out, 200, &[], b"")
        });
        let proxy = start(&origin, |c| c.upstream.timeout_ms = timeout_ms).await;
        if status == 200 {
            go.send(()).unwrap();
        }
        let got = proxy.with(|connect| connect().get("/x").status()).await;
        assert_eq!(got, status);
        let timeouts = u64::from(status == 504);
        eventually("the timeout is counted", || {
            proxy.handle.metrics().upstream_timeout_count == timeouts
        });
        drop(go);
        proxy.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_connection_is_tried_again_when_told_so() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let origin = Origin::echo();
    for (retry, delay) in [(false, 60_000), (true, 300)] {
        let proxy = start(&origin, |c| {
            c.interception.destinations = vec![closed.to_string()];
            c.upstream.retry_on_failure = retry;
            c.upstream.retry_delay_ms = delay;
        })
        .await;
        let address = proxy.handle.local_addr();
        let took = blocking(move || {
            let started = Instant::now();
            let answer = Client::plain(address).get(&format!("http://{closed}/"));
            assert_eq!(answer.status(), 502);
            started.elapsed()
        })
        .await;
        if retry {
            assert!(took >= Duration::from_millis(delay), "{took:?}");
        } else {
            assert!(took < Duration::from_millis(delay), "{took:?}");
        }
        // The flow ends after its answer has been sent.
        eventually("the failure is counted", || {
            proxy.handle.metrics().upstream_connect_error_count == 1
        });
        proxy.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_upstream_tls_refuses_unknown_authorities() {
    for (verify, status) in [(true, 502), (false, 200)] {
        let origin = Origin::echo();
        let proxy = start(&origin, |c| c.upstream.verify_upstream_tls = verify).await;
        let got = proxy.with(|connect| connect().get("/x").status()).await;
        assert_eq!(got, status);
        let failures = if verify {
            vec!["tls_failure localhost"]
        } else {
            Vec::new()
        };
        let mut calls = proxy.keep.0.trace.calls();
        calls.retain(|c| c != "response");
        assert_eq!(calls, failures);
        assert_eq!(origin.requests().is_empty(), verify);
        proxy.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_kept_as_many_as_said() {
    for (max_idle, connections) in [(8, 1), (0, 2)] {
        let origin = Origin::echo();
        let proxy = start(&origin, |c| {
            // One worker, so that one pool serves both clients.
            c.connection_pool.max_connections_per_host = 1;
            c.connection_pool.max_idle_per_host = max_idle;
        })
        .await;
        for n in 0..2 {
            proxy.with(|connect| connect().get("/x")).await;
            eventually("the client has gone", || {
                proxy.handle.metrics().active_connections == 0
            });
            assert_eq!(origin.requests().len(), n + 1);
        }
        assert_eq!(origin.connections(), connections, "{max_idle}");
        proxy.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_kept_as_long_as_said() {
    let origin = Origin::echo();
    let proxy = start(&origin, |c| c.connection_pool.idle_timeout_ms = 1).await;
    proxy.with(|connect| connect().get("/x")).await;
    blocking(move || eventually("it is closed", || origin.open_connections() == 0)).await;
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_per_host_are_bounded() {
    for bound in [1, 8] {
        let origin = Origin::echo();
        let proxy = start(&origin, |c| {
            c.connection_pool.max_connections_per_host = bound;
        })
        .await;
        let done = proxy
            .with(|connect| {
                // Both clients stay: with a bound of one, the second waits until the first is idle.
                let mut first = connect();
                assert_eq!(first.get("/1").status(), 200);
                let mut second = connect();
                let status = second.get("/2").status();
                drop(first);
                status
            })
            .await;
        assert_eq!(done, 200);
        assert_eq!(origin.most_open(), bound.min(2));
        proxy.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_bodies_are_buffered_when_told_so() {
    let origin = Origin::echo();
    let mut packed = Vec::new();
    let mut encoder = Encoder::new(Coding::Gzip).unwrap();
    encoder.feed(b"hello", &mut packed).unwrap();
    encoder.finish(&mut packed).unwrap();
    for buffer in [true, false] {
        let proxy = start(&origin, |c| c.body.buffer_request_bodies = buffer).await;
        let packed = packed.clone();
        proxy
            .with(move |connect| {
                let mut client = connect();
                client.send(format!(
                    "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n\
                     Content-Length: {}\r\n\r\n",
                    packed.len()
                ));
                client.send(&packed);
                assert_eq!(client.receive().unwrap().status(), 200);
                // The origin gets what was sent, not what the handler got.
                packed
            })
            .await;
        let expected: &[u8] = if buffer { b"hello" } else { b"" };
        assert_eq!(proxy.keep.request().body, expected);
        proxy.stop().await;
    }
    assert!(origin.requests().iter().all(|r| r.body == packed));
}

#[tokio::test(flavor = "multi_thread")]
async fn max_size_bounds_what_a_handler_gets() {
    for (max, status, cut) in [(1000, 413, true), (100_000, 200, false)] {
        let origin = Origin::tls(|_, out| reply(out, 200, &[], &[b'y'; 5000]));
        let proxy = start(&origin, |c| {
            c.body.max_size_bytes = max;
            c.body.buffer_request_bodies = true;
        })
        .await;
        let (long, whole) = proxy
            .with(|connect| {
                let whole = connect().get("/whole").body.len();
                (connect().post("/", &[b'x'; 5000]).status(), whole)
            })
            .await;
        assert_eq!((long, whole), (status, 5000));
        let response = proxy.keep.response();
        assert_eq!(response.body.len(), 5000.min(max));
        assert_eq!(response.headers.contains_key("x-soth-body-truncated"), cut);
        proxy.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_are_decoded_for_the_handler_alone() {
    let mut packed = Vec::new();
    let mut encoder = Encoder::new(Coding::Gzip).unwrap();
    encoder.feed(b"hello", &mut packed).unwrap();
    encoder.finish(&mut packed).unwrap();
    for (coding, seen, flagged) in [("gzip", &b"hello"[..], false), ("rot13", b"", true)] {
        let body = packed.clone();
        let origin = Origin::tls(move |_, out: &mut dyn Write| {
            reply(out, 200, &[("Content-Encoding", coding)], &body)
        });
        let proxy = start(&origin, |_| {}).await;
        let got = proxy.with(|connect| connect().get("/x")).await;
        assert_eq!(got.body, packed);
        let response = proxy.keep.response();
        assert_eq!(response.body, seen);
        assert_eq!(
            response.headers.contains_key("x-soth-encoding-error"),
            flagged
        );
        proxy.stop().await;
    }
}
