//! One end of a connection: plain TCP or TLS, client or server.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use socket2::SockRef;

use super::PATIENCE;

/// A connection with what was read and not yet taken.
pub struct Wire {
    io: Io,
    buffer: Vec<u8>,
    /// Gets a copy of every byte received (after decryption).
    log: Option<Arc<Mutex<Vec<u8>>>>,
}

enum Io {
    Plain(TcpStream),
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
}

/// How the peer ended its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A FIN on plain TCP, a close_notify on TLS.
    Clean,
    /// A FIN on TLS without close_notify.
    Truncated,
    /// A reset, or a TLS alert.
    Reset,
}

/// An HTTP/1 message as it was on the wire.
#[derive(Clone, Debug)]
pub struct Message {
    /// Start line, fields and the empty line.
    pub head: Vec<u8>,
    /// The body without framing.
    pub body: Vec<u8>,
    /// The body with its framing and trailers.
    pub raw_body: Vec<u8>,
}

impl Wire {
    /// Takes a connected socket.
    pub fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            io: Io::Plain(stream),
            buffer: Vec::new(),
            log: None,
        }
    }

    /// Connects by TCP.
    pub fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).unwrap())
    }

    /// Copies what is received from now on.
    pub fn log_to(&mut self, log: Arc<Mutex<Vec<u8>>>) {
        log.lock().unwrap().extend_from_slice(&self.buffer);
        self.log = Some(log);
    }

    /// Makes the client's side of a TLS handshake.
    pub fn tls_client(self, config: Arc<ClientConfig>, host: &str) -> io::Result<Self> {
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let log = self.log.clone();
        let mut stream = StreamOwned::new(connection, self.into_tcp());
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self {
            io: Io::Client(Box::new(stream)),
            buffer: Vec::new(),
            log,
        })
    }

    /// Makes the server's side of a TLS handshake.
    pub fn tls_server(self, config: Arc<ServerConfig>) -> io::Result<Self> {
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        let log = self.log.clone();
        let mut stream = StreamOwned::new(connection, self.into_tcp());
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self {
            io: Io::Server(Box::new(stream)),
            buffer: Vec::new(),
            log,
        })
    }

    fn into_tcp(self) -> TcpStream {
        assert!(self.buffer.is_empty(), "bytes before the handshake");
        match self.io {
            Io::Plain(stream) => stream,
            _ => panic!("TLS within TLS"),
        }
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        match &self.io {
            Io::Plain(stream) => stream,
            Io::Client(stream) => &stream.sock,
            Io::Server(stream) => &stream.sock,
        }
    }

    /// The address of this end.
    pub fn local_addr(&self) -> SocketAddr {
        self.tcp().local_addr().unwrap()
    }

    /// What TLS knows of the connection.
    pub fn tls(&self) -> &rustls::CommonState {
        match &self.io {
            Io::Plain(_) => panic!("not TLS"),
            Io::Client(stream) => &stream.conn,
            Io::Server(stream) => &stream.conn,
        }
    }

    /// The certificate that the peer showed.
    pub fn peer_certificate(&self) -> CertificateDer<'static> {
        let certificates = self.tls().peer_certificates().unwrap();
        certificates.first().unwrap().clone().into_owned()
    }

    /// Changes the keys of this direction and asks the peer for the same (RFC 8446 section 4.6.3).
    pub fn refresh_traffic_keys(&mut self) {
        match &mut self.io {
            Io::Plain(_) => panic!("not TLS"),
            Io::Client(stream) => stream.conn.refresh_traffic_keys().unwrap(),
            Io::Server(stream) => stream.conn.refresh_traffic_keys().unwrap(),
        }
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let bytes = bytes.as_ref();
        match &mut self.io {
            Io::Plain(stream) => stream.write_all(bytes),
            Io::Client(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
            Io::Server(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    /// Reads once; 0 at a clean end.
    pub fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 32 * 1024];
        let n = match &mut self.io {
            Io::Plain(stream) => stream.read(&mut chunk),
            Io::Client(stream) => stream.read(&mut chunk),
            Io::Server(stream) => stream.read(&mut chunk),
        }
        .inspect_err(|e| {
            let late = matches!(
                e.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            );
            assert!(!late, "nothing came for {PATIENCE:?}");
        })?;
        self.buffer.extend_from_slice(&chunk[..n]);
        if let Some(log) = &self.log {
            log.lock().unwrap().extend_from_slice(&chunk[..n]);
        }
        Ok(n)
    }

    fn fill_some(&mut self) -> io::Result<()> {
        match self.fill()? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Takes exactly `n` bytes.
    pub fn read_exact(&mut self, n: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < n {
            self.fill_some()?;
        }
        Ok(self.buffer.drain(..n).collect())
    }

    /// Takes everything up to and including `end`.
    pub fn read_until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        let mut from = 0;
        loop {
            let window = self.buffer.get(from..).unwrap_or_default();
            if let Some(at) = window.windows(end.len()).position(|w| w == end) {
                return Ok(self.buffer.drain(..from + at + end.len()).collect());
            }
            from = self.buffer.len().saturating_sub(end.len());
            self.fill_some()?;
        }
    }

    /// Takes a head with its empty line.
    pub fn read_head(&mut self) -> io::Result<Vec<u8>> {
        self.read_until(b"\r\n\r\n")
    }

    /// Takes a request with its body.
    pub fn read_request(&mut self) -> io::Result<Message> {
        let head = self.read_head()?;
        self.read_body(head, false)
    }

    /// Takes the final response to a request of this method. Interim ones are passed over.
    pub fn read_response(&mut self, method: &str) -> io::Result<Message> {
        loop {
            let head = self.read_head()?;
            let message = Message {
                head,
                body: Vec::new(),
                raw_body: Vec::new(),
            };
            let status = message.status();
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            return self.read_rest_of(message.head, method);
        }
    }

    /// Takes what follows the head of a final response to a request of this method.
    pub fn read_rest_of(&mut self, head: Vec<u8>, method: &str) -> io::Result<Message> {
        let message = Message {
            head,
            body: Vec::new(),
            raw_body: Vec::new(),
        };
        let status = message.status();
        let tunnel = method == "CONNECT" && (200..300).contains(&status);
        if method == "HEAD" || tunnel || matches!(status, 101 | 204 | 304) {
            return Ok(message);
        }
        self.read_body(message.head, true)
    }

    /// Sends a request and takes its response.
    pub fn exchange(&mut self, request: impl AsRef<[u8]>) -> io::Result<Message> {
        let request = request.as_ref();
        self.send(request)?;
        let method = request.split(|b| *b == b' ').next().unwrap();
        self.read_response(std::str::from_utf8(method).unwrap())
    }

    fn read_body(&mut self, head: Vec<u8>, until_close: bool) -> io::Result<Message> {
        let mut message = Message {
            head,
            body: Vec::new(),
            raw_body: Vec::new(),
        };
        if message.header("transfer-encoding").is_some() {
            loop {
                let line = self.read_until(b"\r\n")?;
                message.raw_body.extend_from_slice(&line);
                let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
                let size = std::str::from_utf8(&line[..digits]).unwrap();
                let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
                if size == 0 {
                    loop {
                        let line = self.read_until(b"\r\n")?;
                        message.raw_body.extend_from_slice(&line);
                        if line == b"\r\n" {
                            return Ok(message);
                        }
                    }
                }
                let chunk = self.read_exact(size + 2)?;
                message.body.extend_from_slice(&chunk[..size]);
                message.raw_body.extend_from_slice(&chunk);
            }
        }
        message.body = match message.header("content-length") {
            Some(length) => self.read_exact(length.parse().unwrap())?,
            None if until_close => self.read_to_end().0,
            None => Vec::new(),
        };
        message.raw_body.clone_from(&message.body);
        Ok(message)
    }

    /// Takes everything up to the end, and says how that came.
    pub fn read_to_end(&mut self) -> (Vec<u8>, Ending) {
        let ending = loop {
            match self.fill() {
                Ok(0) => break Ending::Clean,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break Ending::Truncated,
                Err(_) => break Ending::Reset,
            }
        };
        (std::mem::take(&mut self.buffer), ending)
    }

    /// Ends this direction: close_notify on TLS, then a FIN.
    pub fn finish(&mut self) {
        match &mut self.io {
            Io::Plain(_) => {}
            Io::Client(stream) => {
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
            Io::Server(stream) => {
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
        let _ = self.tcp().shutdown(Shutdown::Write);
    }

    /// Ends this direction without close_notify.
    pub fn finish_truncated(&mut self) {
        let _ = self.tcp().shutdown(Shutdown::Write);
    }

    /// Closes with a reset.
    pub fn reset(self) {
        SockRef::from(self.tcp())
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
    }
}

impl Message {
    /// Method, target and version, or version, status and reason.
    pub fn start_line(&self) -> String {
        let end = self.head.windows(2).position(|w| w == b"\r\n").unwrap();
        String::from_utf8_lossy(&self.head[..end]).into_owned()
    }

    /// The status of a response.
    #[track_caller]
    pub fn status(&self) -> u16 {
        let line = self.start_line();
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        status.unwrap_or_else(|| panic!("not a response: {line}"))
    }

    /// The path of a request.
    pub fn path(&self) -> String {
        self.start_line().split(' ').nth(1).unwrap().to_owned()
    }

    /// The value of the first field with this name.
    pub fn header(&self, name: &str) -> Option<String> {
        self.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found
                .eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    }

    /// The field lines, lossily decoded.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let head = String::from_utf8_lossy(&self.head).into_owned();
        let lines: Vec<_> = head.split("\r\n").skip(1).map(str::to_owned).collect();
        lines.into_iter().filter(|line| !line.is_empty())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
