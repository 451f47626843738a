//! A connection: a socket, and TLS over it where there is any.
//!
//! Reading decrypts into a [`Buffer`] that is borrowed from the worker only while it holds bytes;
//! writing seals straight from the caller's slice into the worker's scratch and sends that. What
//! the socket doesn't take is kept, at most [`WRITE_CHUNK`] bytes and their overhead. An idle
//! connection holds no buffer at all.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ExtractedSecrets, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpStream, tcp};

use crate::tls::record::{
    ALERT, APPLICATION_DATA, HANDSHAKE, MAX_OVERHEAD, MAX_PLAINTEXT, Opener, RecordError, Sealer,
    record_length,
};

/// The most that one read takes from a socket.
pub(crate) const READ_CHUNK: usize = 128 * 1024;
/// The most plaintext that one write seals.
pub(crate) const WRITE_CHUNK: usize = 4 * MAX_PLAINTEXT;
/// A head and the start of its body up to this size are sealed as one record.
const COALESCE: usize = 4096;
/// Buffers come in three sizes: for a head or a small message, for a record, for bulk.
const TINY_BUFFER: usize = 4 * 1024;
const SMALL_BUFFER: usize = 20 * 1024;
const LARGE_BUFFER: usize = READ_CHUNK + 32 * 1024;
/// How many free buffers of each size a worker keeps: about 10 MiB in all.
const POOLED: [usize; 3] = [512, 128, 32];
/// Largest post-handshake message; a session ticket is a few hundred bytes.
const MAX_POST_HANDSHAKE: usize = 64 * 1024;
/// Records without application data that are tolerated in a row.
const MAX_EMPTY_RECORDS: u32 = 64;

thread_local! {
    /// Where ciphertext lands before it is opened, and where it is sealed before it is sent. Only
    /// used within one poll, so a worker needs one of each however many connections it has.
    static READ_SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_CHUNK + 24 * 1024]);
    static WRITE_SCRATCH: RefCell<Vec<u8>> =
        RefCell::new(vec![0; 2 * WRITE_CHUNK + 16 * MAX_OVERHEAD]);
    static POOLS: [RefCell<Vec<Vec<u8>>>; 3] =
        const { [const { RefCell::new(Vec::new()) }; 3] };
}

/// A connection to a client or to an origin.
pub(crate) struct Conn {
    pub rd: ReadHalf,
    pub wr: WriteHalf,
}

impl Conn {
    /// Takes a connected TCP socket; turns Nagle's algorithm off.
    pub fn tcp(stream: TcpStream) -> Self {
        // Fails only on a socket that is already dead; the first read says so.
        let _ = stream.set_nodelay(true);
        let (rd, wr) = stream.into_split();
        Self::new(ReadSocket::Tcp(rd), WriteSocket::Tcp(wr))
    }

    /// Takes a connected Unix socket.
    #[cfg(unix)]
    pub fn unix(stream: tokio::net::UnixStream) -> Self {
        let (rd, wr) = stream.into_split();
        Self::new(ReadSocket::Unix(rd), WriteSocket::Unix(wr))
    }

    /// Takes one end of a pipe in memory.
    pub fn memory(stream: DuplexStream) -> Self {
        let (rd, wr) = tokio::io::split(stream);
        Self::new(ReadSocket::Memory(rd), WriteSocket::Memory(wr))
    }

    fn new(rd: ReadSocket, wr: WriteSocket) -> Self {
        Self {
            rd: ReadHalf {
                socket: rd,
                tls: None,
                buffer: Buffer::default(),
                ciphertext: Vec::new(),
                end: None,
                received: 0,
            },
            wr: WriteHalf {
                socket: wr,
                tls: None,
                pending: Vec::new(),
                sent_pending: 0,
                sent: 0,
                closed: false,
            },
        }
    }

    /// Puts the record layer of a finished handshake over the connection. What the socket gave
    /// beyond the handshake is still ciphertext; `early` is what the handshake already opened.
    pub fn start_tls(
        &mut self,
        secrets: ExtractedSecrets,
        kernel: Kernel,
        early: &[u8],
    ) -> Result<(), RecordError> {
        let version = kernel.protocol_version();
        let shared = Arc::new(Shared {
            kernel: Mutex::new(kernel),
            rekey: AtomicBool::new(false),
        });
        self.rd.tls = Some(Box::new(TlsRead {
            opener: Opener::new(version, secrets.rx)?,
            shared: Arc::clone(&shared),
            handshake: Vec::new(),
            empty_records: 0,
        }));
        self.wr.tls = Some(Box::new(TlsWrite {
            sealer: Sealer::new(version, secrets.tx)?,
            shared,
        }));
        self.rd.ciphertext = self.rd.buffer.data().to_vec();
        self.rd.buffer.clear();
        if !early.is_empty() {
            self.rd.buffer.append(early);
        }
        Ok(())
    }

    /// Whether an idle connection is still good: nothing has arrived and it isn't closed. Does not
    /// wait. Session tickets that arrived meanwhile are taken in.
    pub fn is_idle_alive(&mut self) -> bool {
        if !self.rd.data().is_empty() {
            return false;
        }
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.rd.poll_fill(&mut cx).is_pending()
    }
}

/// How the peer ended its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By the protocol: a FIN on plaintext, a close_notify on TLS.
    Clean,
    /// A FIN without close_notify on TLS.
    Truncated,
}

/// The reading half.
pub(crate) struct ReadHalf {
    socket: ReadSocket,
    tls: Option<Box<TlsRead>>,
    buffer: Buffer,
    /// The start of a record whose end has not arrived.
    ciphertext: Vec<u8>,
    end: Option<End>,
    received: u64,
}

struct TlsRead {
    opener: Opener,
    shared: Arc<Shared>,
    /// A post-handshake message that spans records.
    handshake: Vec<u8>,
    empty_records: u32,
}

impl ReadHalf {
    /// What has been read and not consumed.
    pub fn data(&self) -> &[u8] {
        self.buffer.data()
    }

    /// The same, to be worked on in place (the TLS handshake decrypts there).
    pub fn data_mut(&mut self) -> &mut [u8] {
        self.buffer.data_mut()
    }

    /// Drops the first `n` bytes of [`ReadHalf::data`].
    pub fn consume(&mut self, n: usize) {
        self.buffer.consume(n);
    }

    /// How the peer ended, once [`ReadHalf::fill`] answered 0.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Bytes taken from the socket since the last call.
    pub fn take_received(&mut self) -> u64 {
        std::mem::take(&mut self.received)
    }

    /// Reads more; 0 at the end of the stream.
    pub async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Like [`ReadHalf::fill`].
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.end.is_some() {
            return Poll::Ready(Ok(0));
        }
        if self.tls.is_some() {
            self.poll_fill_tls(cx)
        } else {
            self.poll_fill_plain(cx)
        }
    }

    fn poll_fill_plain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let free = self.buffer.reserve(TINY_BUFFER / 2);
        let mut read = ReadBuf::new(free);
        let result = self.socket.poll_read(cx, &mut read);
        let n = read.filled().len();
        let full = read.remaining() == 0;
        match result {
            Poll::Ready(Ok(())) if n == 0 => {
                self.buffer.release_if_empty();
                self.end = Some(End::Clean);
                Poll::Ready(Ok(0))
            }
            Poll::Ready(Ok(())) => {
                self.buffer.extend_filled(n);
                self.received += n as u64;
                if full {
                    // A bulk transfer: the next read gets a large buffer.
                    self.buffer.prefer_large();
                }
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(e)) => {
                self.buffer.release_if_empty();
                Poll::Ready(Err(e))
            }
            Poll::Pending => {
                self.buffer.release_if_empty();
                Poll::Pending
            }
        }
    }

    fn poll_fill_tls(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        READ_SCRATCH.with_borrow_mut(|scratch| {
            loop {
                let before = self.buffer.len();
                // What is left of the last read comes first. After a handshake that may be whole
                // records.
                let mut filled = self.ciphertext.len();
                if let Some(start) = scratch.get_mut(..filled) {
                    start.copy_from_slice(&self.ciphertext);
                } else {
                    return Poll::Ready(Err(tls_error(RecordError::Oversized)));
                }
                let whole = match record_length(&self.ciphertext) {
                    Ok(length) => length.is_some_and(|l| l <= filled),
                    Err(e) => return Poll::Ready(Err(tls_error(e))),
                };
                if !whole {
                    let limit = (filled + READ_CHUNK).min(scratch.len());
                    let free = scratch.get_mut(filled..limit).unwrap_or_default();
                    let mut read = ReadBuf::new(free);
                    ready!(self.socket.poll_read(cx, &mut read))?;
                    let n = read.filled().len();
                    if n == 0 {
                        self.end = Some(End::Truncated);
                        return Poll::Ready(Ok(0));
                    }
                    self.received += n as u64;
                    filled += n;
                }
                self.ciphertext.clear();
                let input = scratch.get(..filled).unwrap_or_default();
                let used = self.open_records(input)?;
                let rest = input.get(used..).unwrap_or_default();
                if !rest.is_empty() {
                    self.ciphertext.extend_from_slice(rest);
                } else if self.ciphertext.capacity() > 0 {
                    self.ciphertext = Vec::new();
                }
                let got = self.buffer.len() - before;
                if got > 0 {
                    return Poll::Ready(Ok(got));
                }
                if self.end.is_some() {
                    return Poll::Ready(Ok(0));
                }
            }
        })
    }

    /// Opens the whole records at the start of `input` and answers how many bytes they took.
    fn open_records(&mut self, input: &[u8]) -> io::Result<usize> {
        let Some(tls) = self.tls.as_mut() else {
            return Ok(0);
        };
        let mut used = 0;
        while self.end.is_none() {
            let rest = input.get(used..).unwrap_or_default();
            let Some(length) = record_length(rest).map_err(tls_error)? else {
                break;
            };
            let Some(record) = rest.get(..length) else {
                break;
            };
            let free = self.buffer.reserve(rest.len().max(length));
            let opened = tls.opener.open(record, free).map_err(tls_error)?;
            used += length;
            match opened.typ {
                APPLICATION_DATA if opened.len > 0 => {
                    tls.empty_records = 0;
                    self.buffer.extend_filled(opened.len);
                }
                ALERT => {
                    let alert = free.get(..opened.len).unwrap_or_default();
                    match alert {
                        [_, 0] => self.end = Some(End::Clean),
                        [_, 90] => {}
                        [_, code] => {
                            return Err(io::Error::new(
                                io::ErrorKind::ConnectionAborted,
                                TlsAlert(*code),
                            ));
                        }
                        _ => return Err(tls_error(RecordError::Malformed)),
                    }
                }
                HANDSHAKE => {
                    let message = free.get(..opened.len).unwrap_or_default();
                    tls.handshake_record(message)?;
                }
                APPLICATION_DATA | 20 => {}
                _ => return Err(tls_error(RecordError::Malformed)),
            }
            if opened.typ != APPLICATION_DATA || opened.len == 0 {
                tls.empty_records += 1;
                if tls.empty_records > MAX_EMPTY_RECORDS {
                    return Err(tls_error(RecordError::Malformed));
                }
            }
        }
        self.buffer.release_if_empty();
        Ok(used)
    }

    /// Peeks whether the socket has something for us, without waiting for it: registers the
    /// task's interest. Used to notice a client that goes away while its response is awaited.
    pub fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // What a client pipelines meanwhile is read ahead, up to one buffer.
        if self.buffer.len() >= SMALL_BUFFER {
            return Poll::Pending;
        }
        self.poll_fill(cx)
    }
}

impl TlsRead {
    /// Takes a record of handshake messages after the handshake: tickets and key updates.
    fn handshake_record(&mut self, record: &[u8]) -> io::Result<()> {
        self.handshake.extend_from_slice(record);
        let mut used = 0;
        while let Some(&[typ, l1, l2, l3]) = self
            .handshake
            .get(used..)
            .and_then(|m| m.first_chunk::<4>())
        {
            let length = u32::from_be_bytes([0, l1, l2, l3]) as usize;
            if length > MAX_POST_HANDSHAKE {
                return Err(tls_error(RecordError::Oversized));
            }
            let Some(body) = self.handshake.get(used + 4..used + 4 + length) else {
                break;
            };
            let mut kernel = self
                .shared
                .kernel
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match (typ, body) {
                // new_session_ticket; a ticket that rustls can't use is no reason to end the connection.
                (4, ticket) => kernel.new_session_ticket(ticket),
                // key_update
                (24, &[request @ 0..=1]) => {
                    let secrets = kernel.update_rx().map_err(io::Error::other)?;
                    self.opener =
                        Opener::new(ProtocolVersion::TLSv1_3, secrets).map_err(tls_error)?;
                    if request == 1 {
                        self.shared.rekey.store(true, Ordering::Relaxed);
                    }
                }
                // hello_request of TLS 1.2: ignored, as RFC 5246 section 7.4.1.1 allows.
                (0, []) => {}
                _ => return Err(tls_error(RecordError::Malformed)),
            }
            used += 4 + length;
        }
        self.handshake.drain(..used.min(self.handshake.len()));
        if self.handshake.is_empty() {
            self.handshake = Vec::new();
        }
        Ok(())
    }
}

/// The writing half.
pub(crate) struct WriteHalf {
    socket: WriteSocket,
    tls: Option<Box<TlsWrite>>,
    /// What the socket has not taken yet, as on the wire.
    pending: Vec<u8>,
    sent_pending: usize,
    sent: u64,
    /// Our direction has ended: nothing may follow a close_notify.
    closed: bool,
}

struct TlsWrite {
    sealer: Sealer,
    shared: Arc<Shared>,
}

impl WriteHalf {
    /// Writes all of `data` to the socket.
    pub async fn write_all(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let n = poll_fn(|cx| self.poll_write(cx, data)).await?;
            data = data.get(n..).unwrap_or_default();
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        self.flush().await
    }

    /// Writes two slices one after the other, in one system call where they fit.
    pub async fn write_all2(&mut self, first: &[u8], second: &[u8]) -> io::Result<()> {
        if second.is_empty() {
            return self.write_all(first).await;
        }
        if first.is_empty() {
            return self.write_all(second).await;
        }
        let n = poll_fn(|cx| self.poll_write2(cx, first, second)).await?;
        if let Some(first) = first.get(n..).filter(|f| !f.is_empty()) {
            self.write_all(first).await?;
            self.write_all(second).await
        } else {
            let n = n.saturating_sub(first.len());
            self.write_all(second.get(n..).unwrap_or_default()).await
        }
    }

    /// Sends what is pending.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Ends our direction: close_notify on TLS, then a FIN.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.queue_close_notify();
        poll_fn(|cx| self.poll_flush(cx)).await?;
        poll_fn(|cx| self.socket.poll_shutdown(cx)).await
    }

    /// Like [`WriteHalf::shutdown`].
    #[cfg(feature = "http2")]
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.queue_close_notify();
        ready!(self.poll_flush(cx))?;
        self.socket.poll_shutdown(cx)
    }

    /// Ends our direction without close_notify: passes on a truncated stream as truncated.
    pub async fn shutdown_truncated(&mut self) -> io::Result<()> {
        self.closed = true;
        poll_fn(|cx| self.poll_flush(cx)).await?;
        poll_fn(|cx| self.socket.poll_shutdown(cx)).await
    }

    /// Bytes given to the socket since the last call.
    pub fn take_sent(&mut self) -> u64 {
        std::mem::take(&mut self.sent)
    }

    /// Adds bytes that go out before anything else, as they are on the wire (the end of a
    /// handshake's flight).
    pub fn queue_raw(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    fn queue_close_notify(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        if let Some(tls) = self.tls.as_mut() {
            let mut record = [0; 64];
            if let Ok(n) = tls.sealer.seal(ALERT, &[1, 0], &mut record) {
                self.pending
                    .extend_from_slice(record.get(..n).unwrap_or_default());
            }
        }
    }

    /// Takes some of `data` (at most [`WRITE_CHUNK`]); what the socket doesn't take at once is
    /// kept and goes out before anything else.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write2(cx, data, &[])
    }

    /// Like [`WriteHalf::poll_write`], of two slices.
    pub fn poll_write2(
        &mut self,
        cx: &mut Context<'_>,
        first: &[u8],
        second: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.pending.len() - self.sent_pending > MAX_PLAINTEXT {
            ready!(self.poll_flush(cx))?;
        }
        if self.tls.is_none() {
            ready!(self.poll_flush(cx))?;
            let n = if second.is_empty() {
                ready!(self.socket.poll_write(cx, first))?
            } else {
                let slices = [io::IoSlice::new(first), io::IoSlice::new(second)];
                ready!(self.socket.poll_write_vectored(cx, &slices))?
            };
            self.sent += n as u64;
            return Poll::Ready(match n {
                0 => Err(io::ErrorKind::WriteZero.into()),
                n => Ok(n),
            });
        }
        WRITE_SCRATCH.with_borrow_mut(|scratch| {
            let queued = self.pending.get(self.sent_pending..).unwrap_or_default();
            let mut end = queued.len();
            scratch
                .get_mut(..end)
                .ok_or(io::ErrorKind::OutOfMemory)?
                .copy_from_slice(queued);
            let Some(tls) = self.tls.as_mut() else {
                return Poll::Ready(Ok(0));
            };
            end += tls.rekey(scratch.get_mut(end..).unwrap_or_default())?;
            let mut taken = 0;
            let total = first.len() + second.len();
            if !second.is_empty() && total <= COALESCE {
                let mut both = [0; COALESCE];
                let (a, rest) = both.split_at_mut(first.len());
                a.copy_from_slice(first);
                if let Some(b) = rest.get_mut(..second.len()) {
                    b.copy_from_slice(second);
                }
                let data = both.get(..total).unwrap_or_default();
                let out = scratch.get_mut(end..).unwrap_or_default();
                end += tls
                    .sealer
                    .seal(APPLICATION_DATA, data, out)
                    .map_err(tls_error)?;
                taken = total;
            } else {
                for part in [first, second] {
                    let part = part
                        .get(..part.len().min(WRITE_CHUNK - taken))
                        .unwrap_or_default();
                    for data in part.chunks(MAX_PLAINTEXT) {
                        let out = scratch.get_mut(end..).unwrap_or_default();
                        end += tls
                            .sealer
                            .seal(APPLICATION_DATA, data, out)
                            .map_err(tls_error)?;
                    }
                    taken += part.len();
                    if taken == WRITE_CHUNK {
                        break;
                    }
                }
            }
            let sealed = scratch.get(..end).unwrap_or_default();
            let n = match self.socket.poll_write(cx, sealed) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => 0,
            };
            self.sent += n as u64;
            self.sent_pending = 0;
            self.pending.clear();
            let rest = sealed.get(n..).unwrap_or_default();
            if !rest.is_empty() {
                self.pending.extend_from_slice(rest);
            } else if self.pending.capacity() > 0 {
                self.pending = Vec::new();
            }
            Poll::Ready(Ok(taken))
        })
    }

    /// Sends what is pending.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent_pending < self.pending.len() {
            let rest = self.pending.get(self.sent_pending..).unwrap_or_default();
            let n = ready!(self.socket.poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent_pending += n;
            self.sent += n as u64;
        }
        if self.pending.capacity() > 0 {
            self.pending = Vec::new();
            self.sent_pending = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl TlsWrite {
    /// Sends a key_update and changes the key when the peer asked for one or the key is worn.
    fn rekey(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let asked = self.shared.rekey.load(Ordering::Relaxed);
        let worn = self.sealer.wants_new_key() && self.sealer.is_tls13();
        if !asked && !worn {
            return Ok(0);
        }
        self.shared.rekey.store(false, Ordering::Relaxed);
        let n = self
            .sealer
            .seal(HANDSHAKE, &[24, 0, 0, 1, 0], out)
            .map_err(tls_error)?;
        let secrets = self
            .shared
            .kernel
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .update_tx()
            .map_err(io::Error::other)?;
        self.sealer = Sealer::new(ProtocolVersion::TLSv1_3, secrets).map_err(tls_error)?;
        Ok(n)
    }
}

/// What both halves of a TLS connection need of each other: only for tickets and key updates.
struct Shared {
    kernel: Mutex<Kernel>,
    rekey: AtomicBool,
}

/// rustls' key schedule of a finished handshake.
pub(crate) enum Kernel {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Kernel {
    fn protocol_version(&self) -> ProtocolVersion {
        match self {
            Self::Client(k) => k.protocol_version(),
            Self::Server(k) => k.protocol_version(),
        }
    }

    fn new_session_ticket(&mut self, ticket: &[u8]) {
        if let Self::Client(k) = self {
            let _ = k.handle_new_session_ticket(ticket);
        }
    }

    fn update_rx(&mut self) -> Result<(u64, rustls::ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Self::Client(k) => k.update_rx_secret(),
            Self::Server(k) => k.update_rx_secret(),
        }
    }

    fn update_tx(&mut self) -> Result<(u64, rustls::ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Self::Client(k) => k.update_tx_secret(),
            Self::Server(k) => k.update_tx_secret(),
        }
    }
}

/// A fatal alert after the handshake.
#[derive(Debug, thiserror::Error)]
#[error("the peer sent TLS alert {0}")]
pub(crate) struct TlsAlert(pub u8);

fn tls_error(e: RecordError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e)
}

enum ReadSocket {
    Tcp(tcp::OwnedReadHalf),
    #[cfg(unix)]
    Unix(tokio::net::unix::OwnedReadHalf),
    Memory(tokio::io::ReadHalf<DuplexStream>),
}

impl ReadSocket {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            #[cfg(unix)]
            Self::Unix(s) => Pin::new(s).poll_read(cx, buf),
            Self::Memory(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

enum WriteSocket {
    Tcp(tcp::OwnedWriteHalf),
    #[cfg(unix)]
    Unix(tokio::net::unix::OwnedWriteHalf),
    Memory(tokio::io::WriteHalf<DuplexStream>),
}

impl WriteSocket {
    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(s) => Pin::new(s).poll_write(cx, data),
            #[cfg(unix)]
            Self::Unix(s) => Pin::new(s).poll_write(cx, data),
            Self::Memory(s) => Pin::new(s).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(s) => Pin::new(s).poll_write_vectored(cx, data),
            #[cfg(unix)]
            Self::Unix(s) => Pin::new(s).poll_write_vectored(cx, data),
            Self::Memory(s) => Pin::new(s).poll_write_vectored(cx, data),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            #[cfg(unix)]
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Self::Memory(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

/// Bytes that were read and not yet consumed, in memory borrowed from the worker.
#[derive(Default)]
pub(crate) struct Buffer {
    /// All of it initialised: its length is its capacity.
    memory: Vec<u8>,
    start: usize,
    end: usize,
    large: bool,
}

impl Buffer {
    fn len(&self) -> usize {
        self.end - self.start
    }

    pub fn data(&self) -> &[u8] {
        self.memory.get(self.start..self.end).unwrap_or_default()
    }

    fn data_mut(&mut self) -> &mut [u8] {
        self.memory
            .get_mut(self.start..self.end)
            .unwrap_or_default()
    }

    pub fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        self.release_if_empty();
    }

    fn clear(&mut self) {
        self.start = self.end;
        self.release_if_empty();
    }

    /// The free space behind the data: at least `n` bytes.
    fn reserve(&mut self, n: usize) -> &mut [u8] {
        if self.memory.len() - self.end < n {
            self.grow(n);
        }
        self.memory.get_mut(self.end..).unwrap_or_default()
    }

    #[cold]
    fn grow(&mut self, n: usize) {
        let len = self.len();
        let needed = len + n;
        if needed <= self.memory.len() {
            self.memory.copy_within(self.start..self.end, 0);
        } else {
            let mut memory = acquire(needed, self.large);
            if let (Some(to), from) = (memory.get_mut(..len), self.data()) {
                to.copy_from_slice(from);
            }
            release(std::mem::replace(&mut self.memory, memory));
        }
        self.start = 0;
        self.end = len;
    }

    fn extend_filled(&mut self, n: usize) {
        self.end = (self.end + n).min(self.memory.len());
    }

    pub fn append(&mut self, data: &[u8]) {
        let free = self.reserve(data.len());
        if let Some(to) = free.get_mut(..data.len()) {
            to.copy_from_slice(data);
        }
        self.extend_filled(data.len());
    }

    fn prefer_large(&mut self) {
        self.large = true;
    }

    fn release_if_empty(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            if !self.memory.is_empty() {
                release(std::mem::take(&mut self.memory));
            }
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        release(std::mem::take(&mut self.memory));
    }
}

/// Borrows memory of at least `needed` bytes.
fn acquire(needed: usize, large: bool) -> Vec<u8> {
    let (class, size) = if needed > LARGE_BUFFER {
        return vec![0; needed.next_power_of_two()];
    } else if large || needed > SMALL_BUFFER {
        (2, LARGE_BUFFER)
    } else if needed > TINY_BUFFER {
        (1, SMALL_BUFFER)
    } else {
        (0, TINY_BUFFER)
    };
    POOLS
        .with(|pools| pools.get(class).and_then(|pool| pool.borrow_mut().pop()))
        .unwrap_or_else(|| vec![0; size])
}

/// Gives memory back. What the pool has no room for is freed.
fn release(memory: Vec<u8>) {
    let class = match memory.len() {
        TINY_BUFFER => 0,
        SMALL_BUFFER => 1,
        LARGE_BUFFER => 2,
        _ => return,
    };
    // The pools are gone when a thread ends while it drops its last connections.
    let _ = POOLS.try_with(|pools| {
        if let (Some(pool), Some(limit)) = (pools.get(class), POOLED.get(class)) {
            let mut pool = pool.borrow_mut();
            if pool.len() < *limit {
                pool.push(memory);
            }
        }
    });
}
