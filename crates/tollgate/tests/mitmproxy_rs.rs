//! The surface of mitmproxy-rs, end to end over real TLS.
#![cfg(test)]

mod support;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{Origin, TlsClient, Trace, blocking, chunk, reply, root, start_chunked};
use tollgate::Handle;
use tollgate::compat::mitmproxy_rs::{
    CertificateAuthority, Config, HTTPFlow, HTTPRequest, HTTPResponse, ProxyBuilder, ProxyServer,
    ResponseInterceptor,
};
use tollgate::wire::coding::{Coding, Encoder};

const SECOND: Duration = Duration::from_secs(1);

/// The README's code.
#[path = "../examples/mitmproxy_rs_readme.rs"]
#[expect(dead_code, reason = "its `main` binds a fixed port")]
mod readme;

/// The README's words about flows.
fn flow_data(flow: &HTTPFlow) -> (String, u16, usize) {
    // Access request details
    let method = &flow.request.method;
    let host = &flow.request.host;
    let headers = &flow.request.headers;

    // Access response details
    let status = flow.response.status_code;
    let body = &flow.response.content;

    assert!(!headers.is_empty());
    (
        format!("{method} {host}"),
        status,
        body.as_ref().map_or(0, Vec::len),
    )
}

/// An interceptor from two closures.
struct Fn2<F, G>(F, G);

impl<F, G> ResponseInterceptor for Fn2<F, G>
where
    F: Fn(&mut HTTPFlow) + Send + Sync + 'static,
    G: Fn(&HTTPFlow, &[u8]) + Send + Sync + 'static,
{
    fn on_response(&self, flow: &mut HTTPFlow) {
        self.0(flow);
    }

    fn on_response_chunk(&self, flow: &HTTPFlow, chunk: &[u8]) {
        self.1(flow, chunk);
    }
}

/// An interceptor from one closure.
fn intercept(f: impl Fn(&mut HTTPFlow) + Send + Sync + 'static) -> impl ResponseInterceptor {
    Fn2(f, |_: &HTTPFlow, _: &[u8]| {})
}

fn local(certs: &Path) -> ProxyBuilder {
    ProxyBuilder::new()
        .listen_host("127.0.0.1")
        .listen_port(0)
        .cert_store_path(certs)
        .ssl_insecure(true)
}

async fn client(handle: &Handle, origin: &Origin) -> TlsClient {
    let (address, authority) = (handle.local_addr(), origin.authority());
    let root = handle.authority().cert_der().clone();
    blocking(move || TlsClient::tls(address, &authority, &root)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_runs() {
    let origin = Origin::echo();
    let certs = tempfile::tempdir().unwrap();
    let proxy = ProxyBuilder::new()
        .listen_port(0)
        .interceptor(readme::MyInterceptor)
        .cert_store_path(certs.path())
        .ssl_insecure(true)
        .build()
        .unwrap();
    let handle = proxy.start().await.unwrap();
    let mut client = client(&handle, &origin).await;
    let answer = blocking(move || client.get("/hello")).await;
    assert_eq!((answer.status(), answer.text()), (200, "/hello"));
    assert!(handle.shutdown(SECOND).await.drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_has_what_the_readme_names() {
    let origin = Origin::echo();
    let certs = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(None));
    let to = Arc::clone(&seen);
    let handle = local(certs.path())
        .interceptor(intercept(move |flow| {
            *to.lock().unwrap() = Some(flow.clone());
        }))
        .build()
        .unwrap()
        .start()
        .await
        .unwrap();
    let mut client = client(&handle, &origin).await;
    blocking(move || client.post("/a?b=1", b"question")).await;
    let flow: HTTPFlow = seen.lock().unwrap().take().unwrap();
    assert_eq!(flow_data(&flow), ("POST localhost".into(), 200, 6));
    let HTTPFlow {
        request, response, ..
    } = flow;
    let (request, response): (HTTPRequest, HTTPResponse) = (request, response);
    assert_eq!(
        request.url(),
        format!("https://{}/a?b=1", origin.authority())
    );
    assert_eq!(request.content.as_deref(), Some(&b"question"[..]));
    assert_eq!(request.get_header("HOST"), Some("localhost"));
    assert_eq!(response.content.as_deref(), Some(&b"/a?b=1"[..]));
    assert_eq!(response.content_length, Some(6));
    assert_eq!(response.reason, "Because");
    assert_eq!(response.http_version, "HTTP/1.1");
    assert!(request.timestamp_start > 1e9);
    assert!(response.timestamp_start.unwrap() >= request.timestamp_start);
    assert!(handle.shutdown(SECOND).await.drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_reach_the_client_with_framing_put_right() {
    let mut packed = Vec::new();
    let mut encoder = Encoder::new(Coding::Gzip).unwrap();
    encoder.feed(b"secret", &mut packed).unwrap();
    encoder.finish(&mut packed).unwrap();
    let body = packed.clone();
    let origin = Origin::tls(move |request, out| match request.path() {
        "/chunked" => {
            start_chunked(out, "text/plain")?;
            chunk(out, b"sec")?;
            chunk(out, b"ret")?;
            chunk(out, b"")
        }
        _ => reply(
            out,
            200,
            &[("Content-Encoding", "gzip"), ("X-A", "1")],
            &body,
        ),
    });
    let certs = tempfile::tempdir().unwrap();
    let handle = local(certs.path())
        .interceptor(intercept(|flow| {
            assert_eq!(flow.response.content.as_deref(), Some(&b"secret"[..]));
            match flow.request.path.as_str() {
                "/untouched" => {}
                "/headers" => {
                    flow.response.set_header("x-a", "2");
                    flow.response.headers.push(("X-B".into(), "3".into()));
                }
                _ => {
                    flow.response.status_code = 418;
                    flow.response.set_content("a longer text than it was");
                }
            }
        }))
        .build()
        .unwrap()
        .start()
        .await
        .unwrap();
    let mut client = client(&handle, &origin).await;
    let answers = blocking(move || {
        // All on one connection: framing that is wrong would break the next.
        [
            "/untouched",
            "/headers",
            "/content",
            "/chunked",
            "/untouched",
        ]
        .map(|p| client.get(p))
    })
    .await;
    let [untouched, headers, content, chunked, again] = answers;
    assert_eq!(untouched, again);
    assert_eq!((untouched.status(), &untouched.body), (200, &packed));
    assert_eq!(untouched.header("content-encoding"), Some("gzip"));
    assert_eq!(headers.header("x-a"), Some("2"));
    assert_eq!(headers.header("x-b"), Some("3"));
    assert_eq!(headers.body, packed);
    for edited in [content, chunked] {
        assert_eq!(edited.status(), 418);
        assert_eq!(edited.text(), "a longer text than it was");
        assert_eq!(edited.header("content-encoding"), None);
    }
    assert!(handle.shutdown(SECOND).await.drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_pass_in_pieces_and_undelayed() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let origin = Origin::tls(move |_, out| {
        start_chunked(out, "text/event-stream")?;
        chunk(out, b"data: one\n\n")?;
        wait.lock().unwrap().recv().unwrap();
        chunk(out, b"data: two\n\n")?;
        chunk(out, b"")
    });
    let certs = tempfile::tempdir().unwrap();
    let trace = Trace::default();
    let (head, piece) = (trace.clone(), trace.clone());
    let handle = local(certs.path())
        .interceptor(Fn2(
            move |flow: &mut HTTPFlow| {
                assert!(flow.response.content.is_none());
                flow.response.set_header("x-seen", "1");
                head.add("head");
            },
            move |flow: &HTTPFlow, chunk: &[u8]| {
                assert_eq!(flow.response.get_header("x-seen"), Some("1"));
                piece.add(String::from_utf8_lossy(chunk));
            },
        ))
        .build()
        .unwrap()
        .start()
        .await
        .unwrap();
    let mut client = client(&handle, &origin).await;
    blocking(move || {
        client.send("GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
        assert_eq!(client.head().unwrap().header("x-seen"), Some("1"));
        assert_eq!(client.chunk().unwrap().unwrap(), b"data: one\n\n");
        go.send(()).unwrap();
        assert_eq!(client.chunk().unwrap().unwrap(), b"data: two\n\n");
        assert_eq!(client.chunk().unwrap(), None);
    })
    .await;
    assert_eq!(trace.calls(), ["head", "data: one\n\n", "data: two\n\n"]);
    assert!(handle.shutdown(SECOND).await.drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_bodies_pass_in_pieces_and_can_be_replaced() {
    let origin = Origin::tls(|_, out| reply(out, 200, &[], &[b'x'; 1_000_000]));
    let certs = tempfile::tempdir().unwrap();
    let config = Config {
        proxy_port: 0,
        cert_store_path: certs.path().to_owned(),
        ssl_insecure: true,
        max_body_bytes: 10_000,
        ..Config::default()
    };
    let seen = Arc::new(Mutex::new(0));
    let sum = Arc::clone(&seen);
    let server = ProxyServer::new(config).interceptor(Fn2(
        |flow: &mut HTTPFlow| {
            assert!(flow.response.content.is_none());
            if flow.request.path == "/replace" {
                flow.response.set_content("short");
            }
        },
        move |_: &HTTPFlow, chunk: &[u8]| *sum.lock().unwrap() += chunk.len(),
    ));
    let handle = server.start().await.unwrap();
    let mut client = client(&handle, &origin).await;
    let (passed, replaced) = blocking(move || (client.get("/pass"), client.get("/replace"))).await;
    assert_eq!(passed.body.len(), 1_000_000);
    assert_eq!(*seen.lock().unwrap(), 1_000_000);
    assert_eq!(replaced.text(), "short");
    assert!(handle.shutdown(SECOND).await.drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panicking_interceptor_fails_closed() {
    let origin = Origin::echo();
    let certs = tempfile::tempdir().unwrap();
    let handle = local(certs.path())
        .interceptor(intercept(|flow| assert_ne!(flow.request.path, "/panic")))
        .build()
        .unwrap()
        .start()
        .await
        .unwrap();
    let mut one = client(&handle, &origin).await;
    let mut two = client(&handle, &origin).await;
    let (panicked, fine) = blocking(move || (one.get("/panic"), two.get("/fine"))).await;
    assert_eq!(panicked.status(), 502);
    assert_eq!(fine.text(), "/fine");
    handle.shutdown(SECOND).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_the_configuration_does_something() {
    let origin = Origin::tls(|request, out| {
        let got = |name| request.header(name).unwrap_or("-").to_owned();
        let body = format!("{} {}", got("if-none-match"), got("accept-encoding"));
        reply(out, 200, &[], body.as_bytes())
    });
    let certs = tempfile::tempdir().unwrap();
    type Change = fn(&mut Config);
    let cases: [(Change, u16, &str); 4] = [
        (|_| {}, 200, "\"1\" br"),
        (|c| c.anticache = true, 200, "- br"),
        (|c| c.anticomp = true, 200, "\"1\" identity"),
        (|c| c.ssl_insecure = false, 502, ""),
    ];
    let mut authorities = Vec::new();
    for (change, status, expected) in cases {
        let mut config = Config {
            proxy_host: "localhost".into(),
            proxy_port: 0,
            cert_store_path: certs.path().to_owned(),
            ssl_insecure: true,
            ..Config::default()
        };
        change(&mut config);
        let handle = ProxyServer::new(Arc::new(config)).start().await.unwrap();
        authorities.push(handle.authority().fingerprint_hex());
        let mut client = client(&handle, &origin).await;
        let answer = blocking(move || {
            client.send(
                "GET / HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: \"1\"\r\n\
                 Accept-Encoding: br\r\n\r\n",
            );
            client.receive().unwrap()
        })
        .await;
        assert_eq!(answer.status(), status);
        if status == 200 {
            assert_eq!(answer.text(), expected);
        }
        handle.shutdown(SECOND).await;
    }
    // A restart keeps the authority.
    authorities.dedup();
    assert_eq!(authorities.len(), 1);
    let config = Config {
        proxy_host: "nowhere".into(),
        ..Config::default()
    };
    assert!(ProxyBuilder::new().config(config).build().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_an_error_of_run() {
    let origin = Origin::echo();
    let certs = tempfile::tempdir().unwrap();
    let proxy = local(certs.path())
        .listen_port(origin.address.port())
        .build()
        .unwrap();
    let error = proxy.run().await.unwrap_err();
    assert!(error.to_string().contains("listen"), "{error}");
}

#[test]
fn the_authority_makes_certificates_for_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let make = || -> Result<String, Box<dyn std::error::Error>> {
        let ca = CertificateAuthority::new(dir.path())?;
        let cert = ca.get_cert_for_host("api.anthropic.com")?;
        root(cert.cert_pem.as_bytes());
        assert!(cert.key_pem.contains("PRIVATE KEY"));
        Ok(ca.cert_pem())
    };
    assert_eq!(make().unwrap(), make().unwrap());
}

#[cfg(feature = "sse-parsing")]
#[test]
fn the_readme_reads_streams() {
    use tollgate::compat::mitmproxy_rs::sse::SseParser;

    let response_body: &[u8] = b"event: content_block_delta\n\
        data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"Hel\"}}\n\n\
        event: ping\ndata: {}\n\n\
        event: content_block_delta\n\
        data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"lo\"}}\n\n";
    let mut whole = String::new();

    // Parse Claude/OpenAI streaming responses
    let parser = SseParser::new();
    for event in parser.parse(response_body) {
        if event.event_type == "content_block_delta" {
            let text = event.get_text();
            // Process streaming text
            whole.extend(text);
        }
    }
    assert_eq!(whole, "Hello");

    let mut parser = SseParser::new();
    let mut events: Vec<_> = response_body
        .iter()
        .flat_map(|byte| parser.parse_chunk([*byte]))
        .collect();
    events.extend(parser.flush());
    assert_eq!(events, SseParser::new().parse(response_body));
}
