//! Both ends of an exchange as plain bytes inside TLS.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};

use crate::LIMIT;
use crate::pki::Pki;

/// The most that [`read_head`] reads.
const HEAD_LIMIT: usize = 64 * 1024;

/// The origin's end of a connection.
pub type OriginStream = StreamOwned<ServerConnection, TcpStream>;

/// The client's end of a connection.
pub type ClientStream = StreamOwned<ClientConnection, TcpStream>;

/// A TLS server (HTTP/1.1 only) that serves one connection with a function.
pub struct RawOrigin<T> {
    address: SocketAddr,
    result: Receiver<T>,
}

impl<T: Send + 'static> RawOrigin<T> {
    /// Listens on a free port; the first connection is `serve`'s.
    ///
    /// # Panics
    /// If it can't listen.
    pub fn start(pki: &Pki, serve: impl FnOnce(&mut OriginStream) -> T + Send + 'static) -> Self {
        let chain = CertificateDer::pem_file_iter(pki.cert())
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_file(pki.key()).unwrap();
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connection = ServerConnection::new(Arc::new(config)).unwrap();
        Self::listen(move |tcp| {
            let mut stream = StreamOwned::new(connection, tcp);
            let result = serve(&mut stream);
            stream.conn.send_close_notify();
            let _ = stream.flush();
            result
        })
    }
}

impl<T: Send + 'static> RawOrigin<T> {
    /// The same without TLS.
    ///
    /// # Panics
    /// If it can't listen.
    pub fn start_plain(serve: impl FnOnce(&mut TcpStream) -> T + Send + 'static) -> Self {
        Self::listen(move |mut tcp| serve(&mut tcp))
    }

    fn listen(serve: impl FnOnce(TcpStream) -> T + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, result) = mpsc::channel();
        thread::spawn(move || {
            let (tcp, _) = listener.accept().unwrap();
            bound(&tcp);
            // Nobody listens any more when the test has failed elsewhere.
            let _ = tell.send(serve(tcp));
        });
        Self { address, result }
    }

    /// `localhost:PORT`.
    pub fn authority(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// Waits for the end of the function, and gives what it gave.
    ///
    /// # Panics
    /// If the function panicked, or nobody connected in time.
    pub fn finish(self) -> T {
        self.result
            .recv_timeout(LIMIT)
            .expect("the origin ends in time")
    }
}

/// Opens a tunnel to `authority` through a proxy, and TLS (HTTP/1.1) in it, trusting the authority in the file `ca` alone.
///
/// # Panics
/// If the proxy refuses, or its certificate can't be verified.
pub fn through(proxy: SocketAddr, authority: &str, ca: &Path) -> ClientStream {
    let mut tcp = TcpStream::connect(proxy).unwrap();
    bound(&tcp);
    tcp.write_all(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes())
        .unwrap();
    let head = read_head(&mut tcp);
    assert!(
        head.starts_with(b"HTTP/1.1 200 "),
        "{}",
        String::from_utf8_lossy(&head)
    );
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&fs::read(ca).unwrap()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (host, _) = authority.rsplit_once(':').expect("host:port");
    let name = ServerName::try_from(host.to_owned()).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), tcp)
}

/// Reads up to and with the empty line that ends a head, and not a byte more.
///
/// # Panics
/// If the stream ends before, or the head has more than 64 KiB.
pub fn read_head(stream: &mut impl Read) -> Vec<u8> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        assert!(head.len() < HEAD_LIMIT, "a head without an end");
        stream
            .read_exact(&mut byte)
            .unwrap_or_else(|error| panic!("after {:?}: {error}", String::from_utf8_lossy(&head)));
        head.extend_from_slice(&byte);
    }
    head
}

/// Reads exactly as many bytes.
///
/// # Panics
/// If the stream ends before.
pub fn read_exactly(stream: &mut impl Read, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// No test waits for ever.
fn bound(tcp: &TcpStream) {
    tcp.set_read_timeout(Some(LIMIT)).unwrap();
    tcp.set_write_timeout(Some(LIMIT)).unwrap();
}
