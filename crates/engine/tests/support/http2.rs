//! Both ends of HTTP/2: an origin and a client on the `h2` crate, and the steps that tests of
//! streams are made of.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, request};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::PATIENCE;
use super::proxy::{TestProxy, block_on};
use super::tls::{Identity, server_config};
use super::wire::Wire;

/// Runs a test that waits in many places; if it hangs it fails.
#[track_caller]
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let within = async { tokio::time::timeout(2 * PATIENCE, test).await };
    block_on(within).expect("the test hangs")
}

/// Waits for a condition that nobody announces, while the tasks of the test go on.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        while !condition() {
            tick.tick().await;
        }
    });
    assert!(waited.await.is_ok(), "never happened: {what}");
}

/// The origin's end of a connection.
pub type OriginConnection =
    h2::server::Connection<tokio_rustls::server::TlsStream<TcpStream>, Bytes>;

/// An origin that speaks HTTP/2, on a thread of its own.
pub struct H2Origin {
    address: SocketAddr,
    log: Arc<Log>,
    /// Ends the thread when it is dropped.
    _stop: oneshot::Sender<()>,
}

#[derive(Default)]
struct Log {
    accepted: AtomicUsize,
    ended: AtomicUsize,
    heads: Mutex<Vec<request::Parts>>,
}

/// A stream as an origin gets it.
pub struct Call {
    /// Its request.
    pub head: request::Parts,
    /// The body of the request.
    pub body: RecvStream,
    /// Takes the response.
    pub respond: SendResponse<Bytes>,
    /// The connection it came on, from 0.
    pub connection: usize,
}

impl H2Origin {
    /// Runs `handler` for each stream, all at once. An error in it ends only that stream.
    pub fn serve<F>(handler: impl Fn(Call) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), h2::Error>> + Send + 'static,
    {
        Self::serve_with(Identity::Good, &h2::server::Builder::new(), handler)
    }

    /// The same with a certificate and settings of the test's own.
    pub fn serve_with<F>(
        identity: Identity,
        settings: &h2::server::Builder,
        handler: impl Fn(Call) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), h2::Error>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        Self::start(identity, settings, move |connection, number, log| {
            let handler = Arc::clone(&handler);
            async move { serve_streams(connection, number, &log, &*handler).await }
        })
    }

    /// Answers each request with its path.
    pub fn echo_path() -> Self {
        Self::serve(|mut call| async move {
            let path = call.head.uri.path().to_owned();
            call.answer(200, path).await
        })
    }

    /// Runs `script` on each connection, with its number from 0.
    pub fn script<F>(script: impl Fn(OriginConnection, usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let settings = h2::server::Builder::new();
        Self::start(Identity::Good, &settings, move |connection, number, _| {
            script(connection, number)
        })
    }

    fn start<F>(
        identity: Identity,
        settings: &h2::server::Builder,
        script: impl Fn(OriginConnection, usize, Arc<Log>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut config = server_config(identity);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let settings = settings.clone();
        let script = Arc::new(script);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let log = Arc::new(Log::default());
        let shared = Arc::clone(&log);
        let accepting = async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
                let tls = acceptor.accept(stream);
                let (settings, script) = (settings.clone(), Arc::clone(&script));
                let log = Arc::clone(&shared);
                tokio::spawn(async move {
                    if let Ok(tls) = tls.await
                        && let Ok(connection) = settings.handshake(tls).await
                    {
                        script(connection, number, Arc::clone(&log)).await;
                    }
                    log.ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        };
        thread::spawn(move || {
            block_on(async {
                tokio::select! {
                    () = accepting => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            log,
            _stop: stop,
        }
    }

    /// `localhost:port`.
    pub fn authority(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// How many TCP connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.log.accepted.load(Ordering::SeqCst)
    }

    /// How many of them have ended.
    pub fn ended(&self) -> usize {
        self.log.ended.load(Ordering::SeqCst)
    }

    /// The heads of the requests that it has got.
    pub fn heads(&self) -> Vec<request::Parts> {
        self.log.heads.lock().unwrap().clone()
    }
}

async fn serve_streams<F>(
    mut connection: OriginConnection,
    number: usize,
    log: &Log,
    handler: &(impl Fn(Call) -> F + Send + Sync),
) where
    F: Future<Output = Result<(), h2::Error>> + Send + 'static,
{
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (head, body) = request.into_parts();
        log.heads.lock().unwrap().push(head.clone());
        tokio::spawn(handler(Call {
            head,
            body,
            respond,
            connection: number,
        }));
    }
}

impl Call {
    /// Answers with a body.
    pub async fn answer(&mut self, status: u16, body: impl Into<Bytes>) -> Result<(), h2::Error> {
        let body = body.into();
        let mut stream = self.respond.send_response(response(status, &[]), false)?;
        send(&mut stream, body, true).await
    }

    /// Begins a response.
    pub fn begin(&mut self, response: Response<()>) -> Result<SendStream<Bytes>, h2::Error> {
        self.respond.send_response(response, false)
    }

    /// Takes the whole body of the request.
    pub async fn body(&mut self) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
        read(&mut self.body).await
    }
}

/// A response head.
pub fn response(status: u16, fields: &[(&str, &str)]) -> Response<()> {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(()).unwrap()
}

/// Fields as a map.
pub fn fields(list: &[(&str, &str)]) -> HeaderMap {
    response(200, list).headers().clone()
}

/// Sends bytes as fast as the receiver's window lets them go.
pub async fn send(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    end: bool,
) -> Result<(), h2::Error> {
    if data.is_empty() {
        return stream.send_data(data, end);
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = poll_fn(|cx| stream.poll_capacity(cx)).await;
        let room = room.unwrap_or(Err(Reason::CANCEL.into()))?;
        let piece = data.split_to(room.min(data.len()));
        stream.send_data(piece, end && data.is_empty())?;
    }
    Ok(())
}

/// Takes a body up to its end.
pub async fn read(body: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut whole = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        whole.extend_from_slice(&piece);
    }
    Ok((whole, body.trailers().await?))
}

/// Takes bytes until there are `n`.
pub async fn read_exact(body: &mut RecvStream, n: usize) -> Result<Vec<u8>, h2::Error> {
    let mut taken = Vec::new();
    while taken.len() < n {
        let piece = body.data().await.expect("the body ended")?;
        body.flow_control().release_capacity(piece.len())?;
        taken.extend_from_slice(&piece);
    }
    assert_eq!(taken.len(), n, "more than was asked for");
    Ok(taken)
}

/// Waits until the peer resets a stream.
pub async fn reset_of(stream: &mut SendStream<Bytes>) -> Result<Reason, h2::Error> {
    poll_fn(|cx| stream.poll_reset(cx)).await
}

/// The task of a client's connection.
type Driver = JoinHandle<Result<(), h2::Error>>;

/// A client with one connection.
#[derive(Clone)]
pub struct H2Client {
    /// Opens streams.
    pub send: SendRequest<Bytes>,
    connection: Arc<Mutex<Option<Driver>>>,
    authority: String,
}

/// A response as a client gets it.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
    /// Its trailers.
    pub trailers: Option<HeaderMap>,
    /// Whether the head ended the stream.
    pub head_only: bool,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A field as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }
}

impl H2Client {
    /// A request for a path, to build on.
    pub fn request(&self, method: &str, path: &str) -> request::Builder {
        let uri = format!("https://{}{path}", self.authority);
        Request::builder().method(method).uri(uri)
    }

    /// Sends the head of a request.
    pub async fn begin(
        &self,
        request: request::Builder,
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut send = self.send.clone().ready().await?;
        send.send_request(request.body(()).unwrap(), end)
    }

    /// Sends a request and takes the whole response.
    pub async fn call(
        &self,
        request: request::Builder,
        body: impl Into<Bytes>,
    ) -> Result<Answer, h2::Error> {
        let body = body.into();
        let (response, mut stream) = self.begin(request, body.is_empty()).await?;
        if body.is_empty() {
            return answer(response).await;
        }
        let upload = async {
            // What comes of it is seen in the response.
            let _ = send(&mut stream, body, true).await;
        };
        let (answer, ()) = tokio::join!(answer(response), upload);
        answer
    }

    /// Sends a GET.
    pub async fn get(&self, path: &str) -> Result<Answer, h2::Error> {
        self.call(self.request("GET", path), "").await
    }

    /// Waits for the end of the connection. Whether it was a clean one can't be told from here: this
    /// side's own GOAWAY may meet a socket that the proxy has closed by then.
    pub async fn ended(&self) {
        let connection = self.connection.lock().unwrap().take();
        let _ = connection.expect("asked once").await.unwrap();
    }

    /// Cuts the connection.
    pub fn abort(&self) {
        let connection = self.connection.lock().unwrap().take();
        connection.expect("not yet ended").abort();
    }
}

/// Takes a whole response.
pub async fn answer(response: h2::client::ResponseFuture) -> Result<Answer, h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    let head_only = body.is_end_stream();
    let (whole, trailers) = read(&mut body).await?;
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: whole,
        trailers,
        head_only,
    })
}

impl TestProxy {
    /// TLS to an origin through CONNECT, with these protocols offered.
    pub async fn open(
        &self,
        authority: &str,
        alpn: &[&str],
    ) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut stream = TcpStream::connect(self.handle.local_addr()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let connect = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        stream.write_all(connect.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(
            head.starts_with(b"HTTP/1.1 200 "),
            "{}",
            head.escape_ascii()
        );
        let mut config = (*self.client_config()).clone();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap()
    }

    /// An HTTP/2 client of an origin.
    pub async fn h2(&self, authority: &str) -> H2Client {
        self.h2_with(authority, &h2::client::Builder::new()).await
    }

    /// The same with settings of the test's own.
    pub async fn h2_with(&self, authority: &str, settings: &h2::client::Builder) -> H2Client {
        let stream = self.open(authority, &["h2", "http/1.1"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (send, connection) = settings.handshake(stream).await.unwrap();
        H2Client {
            send,
            connection: Arc::new(Mutex::new(Some(tokio::spawn(connection)))),
            authority: authority.to_owned(),
        }
    }
}

// Frames by hand, for what a proper implementation does not send.

/// What a client says first, with empty SETTINGS.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame (RFC 9113 section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = length[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// A frame as it arrived.
#[derive(Debug)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its stream.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Takes a frame.
pub fn read_frame(wire: &mut Wire) -> std::io::Result<Frame> {
    let head = wire.read_exact(9)?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    Ok(Frame {
        kind: head[3],
        stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
        payload: wire.read_exact(length)?,
    })
}

/// Takes frames up to the first of a stream.
pub fn read_frame_of(wire: &mut Wire, stream: u32) -> Frame {
    loop {
        let frame = read_frame(wire).unwrap();
        if frame.stream == stream {
            return frame;
        }
    }
}

impl TestProxy {
    /// A connection that agreed on HTTP/2 and has sent its preface.
    pub fn raw_h2(&self, authority: &str) -> Wire {
        let mut config = (*self.client_config()).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let mut wire = self
            .tunnel(authority)
            .tls_client(Arc::new(config), "localhost")
            .unwrap();
        wire.send(PREFACE).unwrap();
        wire
    }
}
