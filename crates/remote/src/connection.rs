//! A client's connection: bytes that have come and weren't used, and a limit on every wait.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Read at once, and written at once.
const CHUNK: usize = 64 << 10;
/// What is read and thrown away of a client that was answered before it had sent all.
const LINGER_BYTES: usize = 8 << 20;
const LINGER_TIME: Duration = Duration::from_secs(5);

/// Why a connection can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is closed, or broken.
    Gone,
    /// Nothing moved for too long.
    Timeout,
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

    /// Waits for more bytes. `false`: there will be none.
    pub(crate) async fn fill(&mut self, limit: Duration) -> Result<bool, Fault> {
        if self.used > 0 {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
        self.buffer.reserve(CHUNK);
        match timeout(limit, self.stream.read_buf(&mut self.buffer)).await {
            Ok(Ok(count)) => Ok(count > 0),
            Ok(Err(_)) => Err(Fault::Gone),
            Err(_) => Err(Fault::Timeout),
        }
    }

    /// Writes all; `limit` is for each 64 KiB of it.
    pub(crate) async fn write(&mut self, bytes: &[u8], limit: Duration) -> Result<(), Fault> {
        for chunk in bytes.chunks(CHUNK) {
            match timeout(limit, self.stream.write_all(chunk)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Fault::Gone),
                Err(_) => return Err(Fault::Timeout),
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
