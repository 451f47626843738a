//! A client's connection: bytes that have come and weren't used, and a limit on every wait.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tollgate_wire::http1::Parsed;

/// Read at once, and written at once.
const CHUNK: usize = 64 << 10;
/// What is read and thrown away of a client that was answered before it had sent all.
const LINGER_BYTES: usize = 8 << 20;
const LINGER_TIME: Duration = Duration::from_secs(5);

/// Why a request goes no further.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The connection is closed or broken, or its client takes nothing.
    Connection,
    /// The client gets a status, and the connection is closed.
    Answer(u16, &'static str),
}

/// What a parser says of a head, for [`Connection::take`].
pub(crate) fn whole(parsed: Parsed) -> Option<(usize, ())> {
    match parsed {
        Parsed::Complete { len } => Some((len, ())),
        Parsed::Partial => None,
    }
}

pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What was used of the buffer.
    used: usize,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        // Small answers shall not wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        Self {
            stream,
            buffer: Vec::new(),
            used: 0,
        }
    }

    /// What has come and wasn't used.
    pub(crate) fn unread(&self) -> &[u8] {
        self.buffer.get(self.used..).unwrap_or_default()
    }

    /// So many bytes of it are used now.
    pub(crate) fn use_up(&mut self, count: usize) {
        self.used = self.used.saturating_add(count).min(self.buffer.len());
        if self.used == self.buffer.len() {
            self.buffer.clear();
            self.used = 0;
            // A large head was an exception.
            self.buffer.shrink_to(2 * CHUNK);
        }
    }

    /// Waits for the first byte of a request. `false`: none comes, because the client is gone or idle for too long, or the
    /// server ends.
    pub(crate) async fn begins(
        &mut self,
        idle: Duration,
        phase: &mut watch::Receiver<bool>,
    ) -> bool {
        while self.unread().is_empty() {
            let ended = tokio::select! {
                biased;
                _ = phase.wait_for(|ending| *ending) => true,
                filled = timeout(idle, self.fill()) => !matches!(filled, Ok(Ok(()))),
            };
            if ended {
                return false;
            }
        }
        true
    }

    /// Reads until `part` finds what it looks for in the unread bytes, and says how many that are: they are used. After
    /// `limit` the client is answered 408, and `late` is why.
    pub(crate) async fn take<T>(
        &mut self,
        limit: Duration,
        late: &'static str,
        mut part: impl FnMut(&[u8]) -> Result<Option<(usize, T)>, Trouble>,
    ) -> Result<T, Trouble> {
        let read = async {
            loop {
                if let Some((used, found)) = part(self.unread())? {
                    self.use_up(used);
                    return Ok(found);
                }
                self.fill().await?;
            }
        };
        let late = Err(Trouble::Answer(408, late));
        timeout(limit, read).await.unwrap_or(late)
    }

    /// Waits for more bytes of a body. If none come for so long, the client is answered 408.
    pub(crate) async fn more(&mut self, limit: Duration) -> Result<(), Trouble> {
        let late = Err(Trouble::Answer(408, "the body makes no progress"));
        timeout(limit, self.fill()).await.unwrap_or(late)
    }

    async fn fill(&mut self) -> Result<(), Trouble> {
        if self.used > 0 {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
        self.buffer.reserve(CHUNK);
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => Err(Trouble::Connection),
        }
    }

    /// Writes all; `limit` is for each 64 KiB of it.
    pub(crate) async fn write(&mut self, bytes: &[u8], limit: Duration) -> Result<(), Trouble> {
        for chunk in bytes.chunks(CHUNK) {
            let written = timeout(limit, self.stream.write_all(chunk)).await;
            if !matches!(written, Ok(Ok(()))) {
                return Err(Trouble::Connection);
            }
        }
        Ok(())
    }

    /// Closes it so that the client can read what it was sent: a connection with unread bytes would be reset.
    pub(crate) async fn close(mut self) {
        if self.stream.shutdown().await.is_err() {
            return;
        }
        let mut left = LINGER_BYTES;
        let drain = async {
            let mut waste = vec![0; CHUNK];
            while left > 0 {
                match self.stream.read(&mut waste).await {
                    Ok(count @ 1..) => left = left.saturating_sub(count),
                    _ => return,
                }
            }
        };
        let _ = timeout(LINGER_TIME, drain).await;
    }
}
