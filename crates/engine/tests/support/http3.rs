//! Both ends of HTTP/3: an origin and a client on the `h3` crate, which has nothing in common with
//! the engine's own codec.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::{Buf, Bytes};
use h3::client::SendRequest;
use h3::error::StreamError;
use h3_quinn::{BidiStream, OpenStreams, RecvStream, SendStream};
use http::{HeaderMap, Request, request};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Endpoint, EndpointConfig, TokioRuntime, TransportConfig};
use tokio::sync::oneshot;
use tollgate_engine::{Config, Endpoint as Listening, Listen, Mode, Reverse, ReverseScheme};
use tollgate_flow::Target;

use super::http2::{Answer, response};
use super::proxy::{TestProxy, block_on};
use super::tls::{Identity, client_config_with, server_config};

type Stream = h3::server::RequestStream<BidiStream<Bytes>, Bytes>;
/// The half of a client's stream that is written.
pub type Upload = h3::client::RequestStream<SendStream<Bytes>, Bytes>;
/// The half of a client's stream that is read.
pub type Download = h3::client::RequestStream<RecvStream, Bytes>;

/// An origin that speaks HTTP/3, on a thread of its own.
pub struct H3Origin {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    /// Ends the thread when it is dropped.
    _stop: oneshot::Sender<()>,
}

/// A request as an origin gets it.
pub struct Call {
    /// Its head.
    pub head: request::Parts,
    /// Its stream.
    pub stream: Stream,
}

impl H3Origin {
    /// Runs `handler` for each request, all at once. An error in it ends only that one.
    pub fn serve<F>(handler: impl Fn(Call) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), StreamError>> + Send + 'static,
    {
        Self::serve_as(Identity::Good, handler)
    }

    /// The same with a certificate of the test's own.
    pub fn serve_as<F>(
        identity: Identity,
        handler: impl Fn(Call) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), StreamError>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        Self::script(identity, move |connection| {
            let handler = Arc::clone(&handler);
            async move {
                let quic = h3_quinn::Connection::new(connection);
                let Ok(mut http) = h3::server::Connection::<_, Bytes>::new(quic).await else {
                    return;
                };
                while let Ok(Some(resolver)) = http.accept().await {
                    let handler = Arc::clone(&handler);
                    tokio::spawn(async move {
                        let Ok((request, stream)) = resolver.resolve_request().await else {
                            return;
                        };
                        let call = Call {
                            head: request.into_parts().0,
                            stream,
                        };
                        let _ = handler(call).await;
                    });
                }
            }
        })
    }

    /// Answers each request with its path.
    pub fn echo_path() -> Self {
        Self::serve(|mut call| async move {
            let path = call.head.uri.path().to_owned();
            call.answer(200, path).await
        })
    }

    /// Runs `script` on each connection of QUIC.
    pub fn script<F>(
        identity: Identity,
        script: impl Fn(quinn::Connection) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut config = server_config(identity);
        config.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = QuicServerConfig::try_from(config).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        let script = Arc::new(script);
        let accepting = async move {
            let runtime = Arc::new(TokioRuntime);
            let endpoint =
                Endpoint::new(EndpointConfig::default(), Some(config), socket, runtime).unwrap();
            while let Some(incoming) = endpoint.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let script = Arc::clone(&script);
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        script(connection).await;
                    }
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
            accepted,
            _stop: stop,
        }
    }

    /// `localhost:port`.
    pub fn authority(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Call {
    /// Answers with a body.
    pub async fn answer(&mut self, status: u16, body: impl Into<Bytes>) -> Result<(), StreamError> {
        self.stream.send_response(response(status, &[])).await?;
        self.stream.send_data(body.into()).await?;
        self.stream.finish().await
    }

    /// Takes the whole body of the request.
    pub async fn body(&mut self) -> Result<(Vec<u8>, Option<HeaderMap>), StreamError> {
        let mut whole = Vec::new();
        while let Some(mut piece) = self.stream.recv_data().await? {
            whole.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
        }
        Ok((whole, self.stream.recv_trailers().await?))
    }
}

/// The configuration of a proxy that serves HTTP/3 in front of an origin.
pub fn in_front_of(mut config: Config, authority: &str) -> Config {
    let reverse = Reverse {
        scheme: ReverseScheme::Http3,
        credentials: None,
        target: Target::parse(authority, None).unwrap(),
    };
    config.listen.push(Listening {
        mode: Mode::Reverse(reverse),
        at: Listen::Tcp("127.0.0.1:0".parse().unwrap()),
    });
    config
}

/// A client with one connection.
pub struct H3Client {
    /// Opens streams.
    pub send: Mutex<SendRequest<OpenStreams, Bytes>>,
    /// The connection underneath.
    pub quic: quinn::Connection,
    authority: String,
    _endpoint: Endpoint,
}

impl TestProxy {
    /// A client's endpoint and connection of QUIC to the listener for HTTP/3.
    pub async fn quic(&self) -> (Endpoint, quinn::Connection) {
        let root = self.handle.authority().cert_der().clone();
        let (endpoint, connecting) = self.quic_with(root, TransportConfig::default());
        let connection = connecting.await.unwrap();
        (endpoint, connection)
    }

    /// The same for a client that trusts another authority, or speaks QUIC another way.
    pub fn quic_with(
        &self,
        root: rustls::pki_types::CertificateDer<'static>,
        transport: TransportConfig,
    ) -> (Endpoint, quinn::Connecting) {
        let mut tls = client_config_with(&[root], &[&rustls::version::TLS13]);
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = QuicClientConfig::try_from(tls).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = *self.handle.local_addrs().last().unwrap();
        let connecting = endpoint.connect_with(config, address, "localhost").unwrap();
        (endpoint, connecting)
    }

    /// A client of HTTP/3.
    pub async fn h3(&self, authority: &str) -> H3Client {
        let (endpoint, quic) = self.quic().await;
        let (mut driver, send) = h3::client::new(h3_quinn::Connection::new(quic.clone()))
            .await
            .unwrap();
        tokio::spawn(async move {
            std::future::poll_fn(|cx| driver.poll_close(cx)).await;
        });
        H3Client {
            send: Mutex::new(send),
            quic,
            authority: authority.to_owned(),
            _endpoint: endpoint,
        }
    }
}

impl H3Client {
    /// A request for a path, to build on.
    pub fn request(&self, method: &str, path: &str) -> request::Builder {
        let uri = format!("https://{}{path}", self.authority);
        Request::builder().method(method).uri(uri)
    }

    /// Sends the head of a request.
    pub async fn begin(
        &self,
        request: request::Builder,
    ) -> Result<(Upload, Download), StreamError> {
        let mut send = self.send.lock().unwrap().clone();
        let stream = send.send_request(request.body(()).unwrap()).await?;
        Ok(stream.split())
    }

    /// Sends a request and takes the whole response.
    pub async fn call(
        &self,
        request: request::Builder,
        body: impl Into<Bytes>,
    ) -> Result<Answer, StreamError> {
        let body = body.into();
        let (mut upload, download) = self.begin(request).await?;
        let upload = async {
            // What comes of it is seen in the response.
            if !body.is_empty() {
                let _ = upload.send_data(body).await;
            }
            let _ = upload.finish().await;
        };
        tokio::join!(answer(download), upload).0
    }

    /// Sends a GET.
    pub async fn get(&self, path: &str) -> Result<Answer, StreamError> {
        self.call(self.request("GET", path), "").await
    }
}

/// Takes a whole response.
pub async fn answer(mut download: Download) -> Result<Answer, StreamError> {
    let (head, ()) = download.recv_response().await?.into_parts();
    rest(head, download).await
}

/// Takes what follows the head of a response.
pub async fn rest(
    head: http::response::Parts,
    mut download: Download,
) -> Result<Answer, StreamError> {
    let mut body = Vec::new();
    while let Some(mut piece) = download.recv_data().await? {
        body.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
    }
    let trailers = download.recv_trailers().await?;
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        head_only: body.is_empty() && trailers.is_none(),
        body,
        trailers,
    })
}
