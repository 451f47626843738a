//! One keep-alive exchange through a real proxy: client and origin are blocking rustls threads on
//! loopback, and the proxy between them opens TLS on both sides.
//!
//! The time is that of the whole round: three parties, four kernel crossings each way. It shows a
//! regression of the relay, not what the proxy alone costs; that is measured by `run-lab.sh`.
#![forbid(unsafe_code)]
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::panic,
    reason = "criterion's macros make public functions; a benchmark that can't run stops"
)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use rustls::{ConnectionCommon, SideData, StreamOwned};
use rustls_pki_types::ServerName;
use tollgate_ca::{Authority, AuthorityParams, LeafRequest};
use tollgate_engine::{Config, Handle, Listen, Proxy, Roots};

fn relay(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut group = criterion.benchmark_group("relay");
    for (name, body_len) in [("h1-tls-1k", 1 << 10), ("h1-tls-64k", 64 << 10)] {
        let origin_ca = authority();
        let origin = start_origin(&origin_ca, body_len);
        let proxy = runtime.block_on(start_proxy(&origin_ca));
        let mut client = connect(&proxy, origin);
        let mut answer = vec![0; response(body_len).len()];

        group.throughput(Throughput::Bytes(body_len as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                client.write_all(REQUEST).expect("the proxy reads");
                client.flush().expect("the proxy reads");
                client.read_exact(&mut answer).expect("the proxy answers");
            });
        });
        assert!(
            answer == response(body_len),
            "another answer than the origin gave"
        );
        drop(client);
        runtime.block_on(proxy.shutdown(Duration::from_secs(5)));
    }
    group.finish();
}

const REQUEST: &[u8] = b"GET /item HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n";

fn response(body_len: usize) -> Vec<u8> {
    let mut response =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {body_len}\r\n\r\n").into_bytes();
    response.resize(response.len() + body_len, b'x');
    response
}

fn authority() -> Arc<Authority> {
    Arc::new(Authority::generate(&AuthorityParams::default()).expect("an authority"))
}

/// An origin that gives every request the same answer. It ends with the process.
fn start_origin(authority: &Authority, body_len: usize) -> SocketAddr {
    let leaf = authority
        .mint(&LeafRequest::new("127.0.0.1"))
        .expect("a leaf");
    let certificate = SingleCertAndKey::from(Arc::clone(&leaf.certified));
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificate));
    let config = Arc::new(config);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let tls = ServerConnection::new(Arc::clone(&config)).expect("a connection");
            let response = response(body_len);
            // A connection that breaks is the end of its client, not of the benchmark.
            thread::spawn(move || serve(stream(tls, socket), &response));
        }
    });
    address
}

/// Answers each request head until the client closes. A request never comes in two pieces here.
fn serve(mut client: impl Read + Write, response: &[u8]) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    while client.read(&mut buffer)? > 0 {
        client.write_all(response)?;
        client.flush()?;
    }
    Ok(())
}

async fn start_proxy(origin_ca: &Authority) -> Handle {
    let roots = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(roots.path(), origin_ca.cert_pem()).expect("a file");
    let mut config = Config::default();
    config.listen = vec![Listen::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).into()];
    config.workers = 1;
    config.tls.roots = Roots::Files(vec![roots.path().to_owned()]);
    let proxy = Proxy::builder().authority(authority()).config(config);
    proxy
        .build()
        .expect("a proxy")
        .start()
        .await
        .expect("a listener")
}

/// A connection to the origin, through a tunnel that the proxy opens.
fn connect(proxy: &Handle, origin: SocketAddr) -> impl Read + Write {
    let mut socket = TcpStream::connect(proxy.local_addr()).expect("the proxy listens");
    let connect = format!("CONNECT {origin} HTTP/1.1\r\nHost: {origin}\r\n\r\n");
    socket
        .write_all(connect.as_bytes())
        .expect("the proxy reads");
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).expect("the proxy answers");
        answer.extend_from_slice(&byte);
    }
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        answer.escape_ascii()
    );

    let mut roots = RootCertStore::empty();
    roots
        .add(proxy.authority().cert_der().clone())
        .expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::from(origin.ip());
    stream(
        ClientConnection::new(Arc::new(config), name).expect("a connection"),
        socket,
    )
}

fn stream<C, S>(tls: C, socket: TcpStream) -> StreamOwned<C, TcpStream>
where
    C: std::ops::DerefMut + std::ops::Deref<Target = ConnectionCommon<S>>,
    S: SideData,
{
    socket.set_nodelay(true).expect("a TCP socket");
    StreamOwned::new(tls, socket)
}

criterion_group!(benches, relay);
criterion_main!(benches);
