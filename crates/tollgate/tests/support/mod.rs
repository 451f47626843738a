//! A small origin and a small client, blocking, on threads: independent of the proxy's own code.
#![allow(dead_code, reason = "each test file uses another part of what is here")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};
use tollgate_ca::{Authority, AuthorityParams, LeafRequest};

/// Longer than anything takes that is going to happen.
pub const LONG: Duration = Duration::from_secs(20);

/// Who signs the origins. No proxy trusts it unless told to.
static ORIGIN_AUTHORITY: LazyLock<Authority> =
    LazyLock::new(|| Authority::generate(&AuthorityParams::default()).unwrap());

pub fn origin_authority_pem() -> String {
    ORIGIN_AUTHORITY.cert_pem()
}

/// An HTTP/1 message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// Start line and headers.
    pub head: String,
    pub body: Vec<u8>,
}

impl Message {
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (n, value) = line.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Reads messages from a stream.
pub struct Reader {
    buffer: Vec<u8>,
}

impl Reader {
    pub fn new() -> Self {
        Self { buffer: Vec::new() }
    }

    fn fill(&mut self, stream: &mut impl Read) -> io::Result<()> {
        let mut piece = [0; 16 * 1024];
        let n = stream.read(&mut piece)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&piece[..n]);
        Ok(())
    }

    pub fn head(&mut self, stream: &mut impl Read) -> io::Result<Message> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = self.buffer.drain(..end + 4).collect::<Vec<u8>>();
                return Ok(Message {
                    head: head.iter().map(|&b| char::from(b)).collect(),
                    body: Vec::new(),
                });
            }
            self.fill(stream)?;
        }
    }

    fn line(&mut self, stream: &mut impl Read) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8(line).unwrap().trim().to_owned());
            }
            self.fill(stream)?;
        }
    }

    fn exactly(&mut self, stream: &mut impl Read, n: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < n {
            self.fill(stream)?;
        }
        Ok(self.buffer.drain(..n).collect())
    }

    /// The next chunk of a chunked body; `None` after the last.
    pub fn chunk(&mut self, stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
        let size = usize::from_str_radix(&self.line(stream)?, 16).unwrap();
        let data = self.exactly(stream, size)?;
        self.line(stream)?;
        Ok((size > 0).then_some(data))
    }

    pub fn message(&mut self, stream: &mut impl Read, bodiless: bool) -> io::Result<Message> {
        let mut message = self.head(stream)?;
        if bodiless {
            return Ok(message);
        }
        if let Some(length) = message.header("content-length") {
            let length = length.parse().unwrap();
            message.body = self.exactly(stream, length)?;
        } else if message.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk(stream)? {
                message.body.extend(chunk);
            }
        }
        Ok(message)
    }
}

/// What an origin does with a request: writes its answer. An error closes the connection.
pub type Respond = dyn Fn(&Message, &mut dyn Write) -> io::Result<()> + Send + Sync;

/// An HTTP/1 origin on a free port of this machine.
pub struct Origin {
    pub address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<Message>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

impl Origin {
    /// Over TLS, with a certificate for whatever name is asked for.
    pub fn tls(
        respond: impl Fn(&Message, &mut dyn Write) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(AnyName));
        Self::start(Some(Arc::new(config)), Arc::new(respond))
    }

    pub fn plain(
        respond: impl Fn(&Message, &mut dyn Write) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::start(None, Arc::new(respond))
    }

    /// Answers every request with 200 and its path.
    pub fn echo() -> Self {
        Self::tls(|request, out| reply(out, 200, &[], request.path().as_bytes()))
    }

    fn start(tls: Option<Arc<ServerConfig>>, respond: Arc<Respond>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let all = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                all.connections.fetch_add(1, Ordering::SeqCst);
                let (tls, respond, seen) = (tls.clone(), Arc::clone(&respond), Arc::clone(&all));
                thread::spawn(move || {
                    let open = seen.open.fetch_add(1, Ordering::SeqCst) + 1;
                    seen.most_open.fetch_max(open, Ordering::SeqCst);
                    // How a connection ends is the test's business, not the origin's.
                    let _ = match tls {
                        Some(config) => {
                            let tls = ServerConnection::new(config).unwrap();
                            serve(StreamOwned::new(tls, stream), &respond, &seen)
                        }
                        None => serve(stream, &respond, &seen),
                    };
                    seen.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, seen }
    }

    pub fn requests(&self) -> Vec<Message> {
        self.seen.requests.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub fn open_connections(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }

    pub fn most_open(&self) -> usize {
        self.seen.most_open.load(Ordering::SeqCst)
    }

    /// `localhost:port`
    pub fn authority(&self) -> String {
        format!("localhost:{}", self.address.port())
    }
}

fn serve(mut stream: impl Read + Write, respond: &Arc<Respond>, seen: &Seen) -> io::Result<()> {
    let mut reader = Reader::new();
    loop {
        let request = reader.message(&mut stream, false)?;
        seen.requests.lock().unwrap().push(request.clone());
        respond(&request, &mut stream)?;
        stream.flush()?;
    }
}

/// Writes an answer with a length.
pub fn reply(
    out: &mut dyn Write,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} Because\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    out.write_all(&[head.as_bytes(), body].concat())
}

/// Writes the head of a chunked answer.
pub fn start_chunked(out: &mut dyn Write, content_type: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    out.write_all(head.as_bytes())?;
    out.flush()
}

/// Writes a chunk; an empty one ends the body.
pub fn chunk(out: &mut dyn Write, data: &[u8]) -> io::Result<()> {
    out.write_all(format!("{:x}\r\n", data.len()).as_bytes())?;
    out.write_all(data)?;
    out.write_all(b"\r\n")?;
    out.flush()
}

#[derive(Debug)]
struct AnyName;

impl ResolvesServerCert for AnyName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or("127.0.0.1");
        Some(
            ORIGIN_AUTHORITY
                .mint(&LeafRequest::new(name))
                .ok()?
                .certified,
        )
    }
}

/// A client's connection through a proxy.
pub struct Client<S> {
    stream: S,
    reader: Reader,
}

pub type TlsClient = Client<StreamOwned<ClientConnection, TcpStream>>;

impl Client<TcpStream> {
    /// Talks to the proxy itself.
    pub fn plain(proxy: SocketAddr) -> Self {
        let stream = TcpStream::connect(proxy).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self {
            stream,
            reader: Reader::new(),
        }
    }

    /// Asks for a tunnel and answers the proxy's status.
    pub fn connect(&mut self, authority: &str) -> Message {
        self.send(format!(
            "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"
        ));
        let head = self.reader.head(&mut self.stream).unwrap();
        let body = head.header("content-length").map(|n| n.parse().unwrap());
        let body = self
            .reader
            .exactly(&mut self.stream, body.unwrap_or(0))
            .unwrap();
        Message {
            head: head.head,
            body,
        }
    }
}

impl TlsClient {
    /// Through a tunnel to `authority`, trusting `root` alone.
    pub fn tls(proxy: SocketAddr, authority: &str, root: &CertificateDer<'_>) -> Self {
        Self::try_tls(proxy, authority, root, rustls::ALL_VERSIONS).unwrap()
    }

    pub fn try_tls(
        proxy: SocketAddr,
        authority: &str,
        root: &CertificateDer<'_>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> io::Result<Self> {
        let mut plain = Client::plain(proxy);
        let answer = plain.connect(authority);
        assert_eq!(answer.status(), 200, "{}", answer.head);
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned()).unwrap();
        let config = ClientConfig::builder_with_protocol_versions(versions)
            .with_root_certificates(roots)
            .with_no_client_auth();
        let host = authority.rsplit_once(':').unwrap().0.to_owned();
        let name = ServerName::try_from(host).unwrap();
        let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut plain.stream)?;
        }
        Ok(Self {
            stream: StreamOwned::new(tls, plain.stream),
            reader: Reader::new(),
        })
    }
}

impl<S: Read + Write> Client<S> {
    pub fn over(stream: S) -> Self {
        Self {
            stream,
            reader: Reader::new(),
        }
    }

    pub fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).unwrap();
        self.stream.flush().unwrap();
    }

    pub fn head(&mut self) -> io::Result<Message> {
        self.reader.head(&mut self.stream)
    }

    pub fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.reader.chunk(&mut self.stream)
    }

    pub fn receive(&mut self) -> io::Result<Message> {
        self.reader.message(&mut self.stream, false)
    }

    pub fn try_get(&mut self, path: &str) -> io::Result<Message> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        self.receive()
    }

    pub fn get(&mut self, path: &str) -> Message {
        self.try_get(path).unwrap()
    }

    pub fn post(&mut self, path: &str, body: &[u8]) -> Message {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.send([head.as_bytes(), body].concat());
        self.receive().unwrap()
    }
}

/// Calls of hooks, in their order; a test waits for what it expects.
#[derive(Clone, Default)]
pub struct Trace(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Trace {
    pub fn add(&self, call: impl Into<String>) {
        self.0.0.lock().unwrap().push(call.into());
        self.0.1.notify_all();
    }

    pub fn calls(&self) -> Vec<String> {
        self.0.0.lock().unwrap().clone()
    }

    /// Waits until `done` says so, and answers the calls up to then.
    pub fn wait(&self, done: impl Fn(&[String]) -> bool) -> Vec<String> {
        let mut calls = self.0.0.lock().unwrap();
        let end = Instant::now() + LONG;
        while !done(&calls) {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "still waiting; calls so far: {calls:#?}");
            calls = self.0.1.wait_timeout(calls, left).unwrap().0;
        }
        calls.clone()
    }

    pub fn wait_for(&self, call: &str) -> Vec<String> {
        self.wait(|calls| calls.iter().any(|c| c == call))
    }
}

/// Waits until something holds that no hook tells of.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        thread::yield_now();
    }
}

pub fn root(pem: &[u8]) -> CertificateDer<'static> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem).unwrap()
}

/// Runs a blocking part of a test while the runtime goes on.
pub async fn blocking<T: Send + 'static>(part: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(part).await.unwrap()
}
