//! A scripted origin.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustls::ServerConfig;

use super::tls::{Identity, server_config};
use super::wire::{Message, Wire};

type Log = Arc<Mutex<Vec<u8>>>;

/// Accepts connections, does on each what its script says, and keeps every byte that it received.
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    accepted: AtomicUsize,
    handshakes: AtomicUsize,
    logs: Mutex<Vec<Log>>,
    stop: AtomicBool,
}

impl Origin {
    /// Runs `script` on each connection, with its number from 0. A script ends by returning; an
    /// error in it (the proxy closed, say) only ends that connection.
    pub fn script(
        identity: Identity,
        script: impl Fn(&mut Wire, usize) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let config = (identity != Identity::Plain).then(|| Arc::new(server_config(identity)));
        Self::start(config, script)
    }

    /// The same with a TLS configuration of the test's own.
    pub fn with_tls(
        config: ServerConfig,
        script: impl Fn(&mut Wire, usize) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::start(Some(Arc::new(config)), script)
    }

    /// Answers each request with what `reply` makes of it, until the proxy closes.
    pub fn http(
        identity: Identity,
        reply: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::script(identity, move |wire, _| {
            loop {
                let request = wire.read_request()?;
                wire.send(reply(&request))?;
            }
        })
    }

    /// Answers each request with its path as the body.
    pub fn echo_path(identity: Identity) -> Self {
        Self::http(identity, |request| ok(request.path()))
    }

    fn start(
        config: Option<Arc<ServerConfig>>,
        script: impl Fn(&mut Wire, usize) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let script = Arc::new(script);
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                if accepting.stop.load(Ordering::SeqCst) {
                    return;
                }
                accepting.accepted.fetch_add(1, Ordering::SeqCst);
                let log = Log::default();
                accepting.logs.lock().unwrap().push(Arc::clone(&log));
                let (config, script) = (config.clone(), Arc::clone(&script));
                let shared = Arc::clone(&accepting);
                thread::spawn(move || {
                    let mut wire = Wire::new(stream);
                    if let Some(config) = config {
                        wire = wire.tls_server(config)?;
                        shared.handshakes.fetch_add(1, Ordering::SeqCst);
                    }
                    wire.log_to(log);
                    script(&mut wire, number)
                });
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `localhost:port`.
    pub fn authority(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// How many TCP connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many TLS handshakes it has completed.
    pub fn handshakes(&self) -> usize {
        self.shared.handshakes.load(Ordering::SeqCst)
    }

    /// What it has received on its connections so far, in the order in which it accepted them.
    pub fn received(&self) -> Vec<Vec<u8>> {
        let logs = self.shared.logs.lock().unwrap();
        logs.iter().map(|log| log.lock().unwrap().clone()).collect()
    }

    /// The same in one piece, for an origin with one connection.
    pub fn received_all(&self) -> Vec<u8> {
        self.received().concat()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

/// A response with a length.
pub fn ok(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A port that nobody listens on.
pub fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
