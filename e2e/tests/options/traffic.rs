//! A client and an origin that speak HTTP/1.1, the same within TLS, and HTTP/2, and keep what they get in one form.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::HeaderMap;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tollgate_e2e::{LIMIT, Pki, noise};
use tollgate_wire::coding::{Coding, Decoder, Encoder, OutputLimit};

/// What client and origin speak; a proxy has the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// HTTP/1.1 without TLS.
    Plain,
    /// HTTP/1.1 within TLS.
    Tls,
    /// HTTP/2 within TLS.
    Http2,
}

impl Transport {
    pub const ALL: [Self; 3] = [Self::Plain, Self::Tls, Self::Http2];

    fn scheme(self) -> &'static str {
        match self {
            Self::Plain => "http",
            Self::Tls | Self::Http2 => "https",
        }
    }
}

/// A message in one form: its first line, its fields in order of their names, its trailers, and its body.
pub type Lines = Vec<String>;

/// What belongs to the hop, and may differ.
const HOP: [&str; 6] = [
    "content-length",
    "transfer-encoding",
    "connection",
    "proxy-connection",
    "content-encoding",
    "server",
];

/// A request to send.
#[derive(Clone, Debug)]
pub struct Request {
    method: &'static str,
    path: String,
    fields: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Whether the body's length is not told.
    is_chunked: bool,
}

pub fn get(path: &str) -> Request {
    Request {
        method: "GET",
        path: path.to_owned(),
        fields: Vec::new(),
        body: Vec::new(),
        is_chunked: false,
    }
}

pub fn post(path: &str, body: impl Into<Vec<u8>>) -> Request {
    Request {
        method: "POST",
        body: body.into(),
        ..get(path)
    }
}

impl Request {
    pub fn method(self, method: &'static str) -> Self {
        Self { method, ..self }
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.fields.push((name, value.to_owned()));
        self
    }

    pub fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(known, _)| *known == name)
    }

    pub fn chunked(self) -> Self {
        Self {
            is_chunked: true,
            ..self
        }
    }

    /// As it goes over HTTP/1.1, to a target in the form that the way asks for.
    fn write(&self, target: &str, host: &str) -> Vec<u8> {
        let mut out = format!("{} {target} HTTP/1.1\r\n", self.method);
        let mut put = |name: &str, value: &str| out.push_str(&format!("{name}: {value}\r\n"));
        if !self.has("Host") {
            put("Host", host);
        }
        put("User-Agent", "test");
        put("Accept", "*/*");
        for (name, value) in &self.fields {
            put(name, value);
        }
        match (self.is_chunked, self.body.len()) {
            (true, _) => put("Transfer-Encoding", "chunked"),
            (false, 0) => {}
            (false, length) => put("Content-Length", &length.to_string()),
        }
        put("Connection", "close");
        out.push_str("\r\n");
        let mut out = out.into_bytes();
        if self.is_chunked {
            for piece in self.body.chunks(700) {
                out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                out.extend_from_slice(piece);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\n\r\n");
        } else {
            out.extend_from_slice(&self.body);
        }
        out
    }
}

/// Who asks: where the proxy is, whom it lets vouch, and whether it knows of the proxy.
#[derive(Clone, Debug)]
pub struct Client {
    pub proxy: SocketAddr,
    pub ca: Option<Arc<RootCertStore>>,
    /// Whether the proxy stands in the origin's place.
    pub is_reverse: bool,
    /// For `CONNECT`.
    pub authorization: Option<String>,
}

impl Client {
    pub fn new(proxy: SocketAddr) -> Self {
        Self {
            proxy,
            ca: None,
            is_reverse: false,
            authorization: None,
        }
    }

    /// The same, trusting the certificates in these files.
    pub fn trusting<P: AsRef<Path>>(self, files: &[P]) -> Self {
        let mut roots = RootCertStore::empty();
        for file in files {
            let pem = fs::read(file).unwrap();
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                roots.add(certificate.unwrap()).unwrap();
            }
        }
        Self {
            ca: Some(Arc::new(roots)),
            ..self
        }
    }

    /// The same, in front of a reverse proxy.
    pub fn in_place(self) -> Self {
        Self {
            is_reverse: true,
            ..self
        }
    }

    /// The same, with a value for `Proxy-Authorization` where it asks for a tunnel.
    pub fn authorized(self, value: Option<&str>) -> Self {
        Self {
            authorization: value.map(str::to_owned),
            ..self
        }
    }

    /// What the client gets: `None` where it is cut off, or its handshake fails.
    pub fn ask(&self, transport: Transport, origin: &Origin, request: &Request) -> Option<Lines> {
        runtime().block_on(async {
            let authority = origin.authority(transport);
            let asked = self.ask_async(transport, &authority, request);
            tokio::time::timeout(LIMIT, asked)
                .await
                .expect("an answer, or an end, in time")
        })
    }

    async fn ask_async(
        &self,
        transport: Transport,
        authority: &str,
        request: &Request,
    ) -> Option<Lines> {
        let tcp = TcpStream::connect(self.proxy).await.unwrap();
        if transport == Transport::Plain {
            let target = match self.is_reverse {
                true => request.path.clone(),
                false => format!("http://{authority}{}", request.path),
            };
            return over_h1(tcp, request, &request.write(&target, authority)).await;
        }
        let mut tcp = BufReader::new(tcp);
        if !self.is_reverse {
            let authorization = self.authorization.iter();
            let authorization: String = authorization
                .map(|value| format!("Proxy-Authorization: {value}\r\n"))
                .collect();
            let connect =
                format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{authorization}\r\n");
            tcp.write_all(connect.as_bytes()).await.ok()?;
            let (lines, _) = read_head(&mut tcp).await?;
            if !lines.first()?.contains(" 200 ") {
                return Some(normalised(&lines));
            }
        }
        let tcp = tcp.into_inner();
        let alpn: &[u8] = match transport {
            Transport::Http2 => b"h2",
            _ => b"http/1.1",
        };
        let mut offers = vec![alpn.to_vec()];
        if transport == Transport::Http2 {
            offers.push(b"http/1.1".to_vec());
        }
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.ca.clone().expect("somebody to trust"))
            .with_no_client_auth();
        config.alpn_protocols = offers;
        let name = ServerName::try_from("localhost").unwrap();
        let tls = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .ok()?;
        match tls.get_ref().1.alpn_protocol() {
            Some(b"h2") => over_h2(tls, authority, request).await,
            _ => over_h1(tls, request, &request.write(&request.path, authority)).await,
        }
    }
}

/// What came of a request: at the client, and at the origin.
pub type Came = (Option<Lines>, Vec<Lines>);

/// Sends each request over a transport, one after the other.
pub fn send(
    client: &Client,
    transport: Transport,
    origin: &Origin,
    requests: &[Request],
) -> Vec<Came> {
    origin.take();
    requests
        .iter()
        .map(|request| (client.ask(transport, origin, request), origin.take()))
        .collect()
}

async fn over_h1(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &Request,
    bytes: &[u8],
) -> Option<Lines> {
    // A proxy may answer before it has all, and close.
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    let mut stream = BufReader::new(stream);
    let (lines, body) = read_message(&mut stream, request.method == "HEAD").await?;
    Some(whole(normalised(&lines), &body))
}

async fn over_h2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    authority: &str,
    request: &Request,
) -> Option<Lines> {
    let (send, connection) = h2::client::handshake(stream).await.ok()?;
    let connection = tokio::spawn(connection);
    let mut send = send.ready().await.ok()?;
    let mut head = http::Request::builder()
        .method(request.method)
        .uri(format!("https://{authority}{}", request.path))
        .header("user-agent", "test")
        .header("accept", "*/*");
    for (name, value) in &request.fields {
        head = head.header(*name, value);
    }
    let has_body = !request.body.is_empty();
    if has_body && !request.is_chunked {
        head = head.header("content-length", request.body.len());
    }
    let (response, mut body) = send.send_request(head.body(()).unwrap(), !has_body).ok()?;
    if has_body {
        // The window of a stream is more than what is sent here.
        let _ = body.send_data(Bytes::from(request.body.clone()), true);
    }
    let response = response.await.ok()?;
    let (head, body) = response.into_parts();
    let lines = fields(&head.headers);
    let first = format!("HTTP/2 {}", head.status.as_u16());
    let body = read_h2(body).await;
    connection.abort();
    let (body, trailers) = body.unwrap_or_else(|| (b"(cut)".to_vec(), Vec::new()));
    let body = decoded(&lines, body);
    let lines: Lines = std::iter::once(first).chain(lines).collect();
    let mut lines = normalised(&lines);
    lines.extend(trailers);
    Some(whole(lines, &body))
}

/// A body and its trailers.
async fn read_h2(mut body: h2::RecvStream) -> Option<(Vec<u8>, Lines)> {
    let mut data = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.ok()?;
        let _ = body.flow_control().release_capacity(piece.len());
        data.extend_from_slice(&piece);
    }
    let trailers = body.trailers().await.ok()?;
    let trailers = trailers.iter().flat_map(fields);
    Some((
        data,
        trailers.map(|line| format!("trailer {line}")).collect(),
    ))
}

fn fields(headers: &HeaderMap) -> Lines {
    headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect()
}

/// A server that keeps what it gets, refuses to be a tunnel, and answers everything else with a text, two cookies and
/// headers of its own. What is in the path says what else:
///
/// * `gzip`: the body is coded;
/// * `large`: it has 300 KiB;
/// * `unsized`: its length is not told;
/// * `dated`: it has dates, and cookies that expire.
pub struct Origin {
    plain: SocketAddr,
    tls: SocketAddr,
    seen: Arc<Mutex<Vec<Lines>>>,
    peers: Arc<Mutex<Vec<IpAddr>>>,
    pki: Pki,
    _dir: TempDir,
}

impl Origin {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::create(dir.path());
        let chain = CertificateDer::pem_file_iter(pki.cert())
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_file(pki.key()).unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (tell, addresses) = mpsc::channel();
        let log = Arc::clone(&seen);
        let peers = Arc::<Mutex<Vec<IpAddr>>>::default();
        let came = Arc::clone(&peers);
        // It ends with the test.
        thread::spawn(move || {
            runtime().block_on(async move {
                let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let tls = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send((plain.local_addr().unwrap(), tls.local_addr().unwrap()))
                    .unwrap();
                loop {
                    tokio::select! {
                        Ok((stream, peer)) = plain.accept() => {
                            came.lock().unwrap().push(peer.ip());
                            tokio::spawn(serve_h1(stream, Arc::clone(&log)));
                        }
                        Ok((stream, peer)) = tls.accept() => {
                            came.lock().unwrap().push(peer.ip());
                            let (acceptor, log) = (acceptor.clone(), Arc::clone(&log));
                            tokio::spawn(async move {
                                let stream = acceptor.accept(stream).await.ok()?;
                                match stream.get_ref().1.alpn_protocol() {
                                    Some(b"h2") => serve_h2(stream, log).await,
                                    _ => serve_h1(stream, log).await,
                                }
                            });
                        }
                    }
                }
            });
        });
        let (plain, tls) = addresses.recv().unwrap();
        Self {
            plain,
            tls,
            seen,
            peers,
            pki,
            _dir: dir,
        }
    }

    pub fn address(&self, transport: Transport) -> SocketAddr {
        match transport {
            Transport::Plain => self.plain,
            Transport::Tls | Transport::Http2 => self.tls,
        }
    }

    /// What stands in a URL; the certificate is for `localhost`.
    pub fn authority(&self, transport: Transport) -> String {
        match transport {
            Transport::Plain => self.plain.to_string(),
            Transport::Tls | Transport::Http2 => format!("localhost:{}", self.tls.port()),
        }
    }

    pub fn url(&self, transport: Transport, path: &str) -> String {
        format!(
            "{}://{}{path}",
            transport.scheme(),
            self.authority(transport)
        )
    }

    /// The certificate of the authority that signed the origin's.
    pub fn ca(&self) -> std::path::PathBuf {
        self.pki.ca()
    }

    /// Where the connections came from that were opened since this was asked last.
    pub fn peers(&self) -> Vec<IpAddr> {
        std::mem::take(&mut self.peers.lock().unwrap())
    }

    /// The requests that have come since this was asked last.
    pub fn take(&self) -> Vec<Lines> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

async fn serve_h1(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    log: Arc<Mutex<Vec<Lines>>>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (lines, body) = read_message(&mut stream, false).await?;
        let first = lines.first()?.clone();
        log.lock().unwrap().push(whole(normalised(&lines), &body));
        let mut words = first.split(' ');
        let (method, path) = (words.next()?, words.next()?.to_owned());
        let (status, fields, body) = answer(method, &path);
        let mut out = format!("HTTP/1.1 {status} OK\r\n");
        for (name, value) in fields {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
        let is_unsized = path.contains("unsized");
        match is_unsized {
            true => out.push_str("Transfer-Encoding: chunked\r\n\r\n"),
            false => out.push_str(&format!("Content-Length: {}\r\n\r\n", body.len())),
        }
        stream.write_all(out.as_bytes()).await.ok()?;
        if method == "HEAD" {
        } else if is_unsized {
            for piece in body.chunks(700) {
                let size = format!("{:x}\r\n", piece.len());
                let chunk = [size.as_bytes(), piece, b"\r\n"].concat();
                stream.write_all(&chunk).await.ok()?;
            }
            stream.write_all(b"0\r\n\r\n").await.ok()?;
        } else {
            stream.write_all(&body).await.ok()?;
        }
        stream.flush().await.ok()?;
    }
}

async fn serve_h2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    log: Arc<Mutex<Vec<Lines>>>,
) -> Option<()> {
    let mut connection = h2::server::handshake(stream).await.ok()?;
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(serve_stream(request, respond, Arc::clone(&log)));
    }
    Some(())
}

async fn serve_stream(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    log: Arc<Mutex<Vec<Lines>>>,
) -> Option<()> {
    let (head, body) = request.into_parts();
    let (body, trailers) = read_h2(body).await?;
    let path = head.uri.path_and_query()?.as_str().to_owned();
    let lines = fields(&head.headers);
    let body = decoded(&lines, body);
    let first = format!("{} {} HTTP/2", head.method, head.uri);
    let lines: Lines = std::iter::once(first).chain(lines).collect();
    let mut lines = normalised(&lines);
    lines.extend(trailers);
    log.lock().unwrap().push(whole(lines, &body));
    let method = head.method.as_str();
    let (status, fields, body) = answer(method, &path);
    let mut head = http::Response::builder().status(status);
    for (name, value) in fields {
        head = head.header(name, value);
    }
    if !path.contains("unsized") {
        head = head.header("content-length", body.len());
    }
    let is_empty = method == "HEAD" || body.is_empty();
    let mut send = respond
        .send_response(head.body(()).unwrap(), is_empty)
        .ok()?;
    if !is_empty {
        // The library keeps what there is no window for.
        send.send_data(Bytes::from(body), true).ok()?;
    }
    Some(())
}

type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

fn answer(method: &str, path: &str) -> Answer {
    if method == "CONNECT" {
        // As a proxy that lets nobody through. Behind a 200 the body would be what comes out of the tunnel.
        return (403, Vec::new(), b"not through here".to_vec());
    }
    let mut body = format!("one secret at {path}\nand another secret\n").into_bytes();
    let mut fields: Vec<(&'static str, String)> = vec![
        ("Content-Type", "text/plain".into()),
        ("X-One", "1".into()),
        ("X-Two", "2".into()),
        ("X-Method", method.into()),
    ];
    if path.contains("dated") {
        let now = SystemTime::now();
        let date = |ago: u64| httpdate(now - Duration::from_secs(ago));
        fields.push(("Date", date(0)));
        fields.push(("Last-Modified", date(86_400)));
        fields.push(("Expires", httpdate(now + Duration::from_secs(7200))));
    }
    fields.push(("Set-Cookie", "a=1; Path=/".into()));
    fields.push(("Set-Cookie", "b=\"x y\"; Path=/deep".into()));
    if path.contains("large") {
        body = noise(300 << 10)
            .iter()
            .map(|byte| b'a' + byte % 26)
            .collect();
    }
    if path.contains("gzip") {
        let mut encoder = Encoder::new(Coding::Gzip).unwrap();
        let mut packed = Vec::new();
        encoder.feed(&body, &mut packed).unwrap();
        encoder.finish(&mut packed).unwrap();
        body = packed;
        fields.push(("Content-Encoding", "gzip".into()));
    }
    (200, fields, body)
}

fn httpdate(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap().as_secs();
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// A message's lines, and its body without framing and coding.
async fn read_message<S: AsyncRead + Unpin>(
    stream: &mut BufReader<S>,
    is_head: bool,
) -> Option<(Lines, Vec<u8>)> {
    let (lines, is_interim) = read_head(stream).await?;
    if is_interim {
        return Box::pin(read_message(stream, is_head)).await;
    }
    let mut body = Vec::new();
    if is_head {
        return Some((lines, body));
    }
    let length = field(&lines, "content-length");
    let is_answer = lines.first()?.starts_with("HTTP/");
    let mut is_whole = true;
    if field(&lines, "transfer-encoding").is_some() {
        is_whole = read_chunks(stream, &mut body).await.is_some();
    } else if let Some(length) = length {
        let length: u64 = length.parse().ok()?;
        // An abrupt end is the end.
        let _ = stream.take(length).read_to_end(&mut body).await;
        is_whole = body.len() as u64 == length;
    } else if is_answer {
        let _ = stream.read_to_end(&mut body).await;
    }
    if !is_whole {
        body = b"(cut)".to_vec();
        return Some((lines, body));
    }
    let body = decoded(&lines, body);
    Some((lines, body))
}

async fn read_chunks<S: AsyncRead + Unpin>(
    stream: &mut BufReader<S>,
    body: &mut Vec<u8>,
) -> Option<()> {
    loop {
        let line = read_line(stream).await?;
        let length = u64::from_str_radix(line.trim(), 16).ok()?;
        let before = body.len() as u64;
        stream.take(length).read_to_end(body).await.ok()?;
        if body.len() as u64 != before + length {
            return None;
        }
        read_line(stream).await?;
        if length == 0 {
            return Some(());
        }
    }
}

/// A head's lines, and whether another one follows.
async fn read_head<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<(Lines, bool)> {
    let mut lines = Vec::new();
    loop {
        let line = read_line(stream).await?;
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let is_interim = lines.first()?.starts_with("HTTP/1.1 1");
    Some((lines, is_interim))
}

async fn read_line<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<String> {
    let mut line = Vec::new();
    let read = stream.read_until(b'\n', &mut line).await.ok()?;
    if read == 0 {
        return None;
    }
    Some(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn field(lines: &[String], name: &str) -> Option<String> {
    lines.iter().find_map(|line| {
        let (known, value) = line.split_once(':')?;
        known
            .eq_ignore_ascii_case(name)
            .then(|| value.trim().to_owned())
    })
}

fn decoded(lines: &[String], body: Vec<u8>) -> Vec<u8> {
    let Some(coding) = field(lines, "content-encoding") else {
        return body;
    };
    let decoder = Decoder::new(std::iter::once(coding.as_bytes()), OutputLimit::default());
    let Ok(Some(mut decoder)) = decoder else {
        return body;
    };
    let mut out = Vec::new();
    match decoder
        .feed(&body, &mut out)
        .and_then(|()| decoder.finish(&mut out))
    {
        Ok(()) => out,
        Err(_) => body,
    }
}

/// The first line, and the fields in order of their names.
fn normalised(lines: &[String]) -> Lines {
    let (first, fields) = lines.split_first().unwrap();
    let mut fields: Lines = fields
        .iter()
        .filter(|line| {
            let name = line.split(':').next().unwrap_or_default();
            !HOP.contains(&&*name.to_ascii_lowercase())
        })
        .map(|line| match line.split_once(':') {
            Some((name, value)) => format!("{}:{value}", name.to_ascii_lowercase()),
            None => line.clone(),
        })
        .collect();
    fields.sort();
    fields.insert(0, first.clone());
    fields
}

fn whole(mut lines: Lines, body: &[u8]) -> Lines {
    lines.push(match body.len() {
        0..=4096 => String::from_utf8_lossy(body).into_owned(),
        // Enough to tell them apart, and to read in a failure.
        length => {
            let sum = body.iter().fold(0_u64, |sum, byte| {
                sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
            });
            format!("{length} bytes, {sum:x}")
        }
    });
    lines
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
