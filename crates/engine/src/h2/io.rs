//! What h2 reads and writes.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tollgate_flow::ConnectionInfo;

use crate::io::{Buffer, Conn};
use crate::metrics::add_to;
use crate::proxy::Worker;

/// A connection that h2 reads and writes.
///
/// h2 flushes after nearly every frame of data. Here frames are gathered, and leave when the task
/// that drives the connection has had its turn: in full TLS records, and in one system call.
/// That task has the other [`Outlet`].
pub(super) struct Io(pub(super) Outlet);

/// Sends what h2 has written.
#[derive(Clone)]
pub(super) struct Outlet(pub(super) Arc<Mutex<Gathering>>);

pub(super) struct Gathering {
    pub(super) conn: Conn,
    /// Frames that wait for the end of the turn.
    pub(super) gathered: Buffer,
    pub(super) worker: Arc<Worker>,
    /// The client's connection; `None` on an upstream one.
    pub(super) client: Option<Arc<ConnectionInfo>>,
    /// Whether the first bytes that came can be HTTP/2; and who waits to know.
    first: Option<bool>,
    waits: Option<Waker>,
}

/// Most bytes that are gathered before they leave in the middle of a turn.
pub(super) const GATHER: usize = 4 * 16 * 1024;

/// A write of this size is worth a record of its own, and is not copied.
pub(super) const LARGE_WRITE: usize = 12 * 1024;

impl Io {
    pub(super) fn new(
        conn: Conn,
        worker: &Arc<Worker>,
        client: Option<&Arc<ConnectionInfo>>,
    ) -> (Self, Outlet) {
        let outlet = Outlet(Arc::new(Mutex::new(Gathering {
            conn,
            gathered: Buffer::default(),
            worker: Arc::clone(worker),
            client: client.map(Arc::clone),
            first: None,
            waits: None,
        })));
        (Self(outlet.clone()), outlet)
    }
}

impl Outlet {
    pub(super) fn lock(&self) -> MutexGuard<'_, Gathering> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the peer speaks HTTP/2, as its first bytes show; false where it closes instead.
    pub(super) async fn first_bytes(&self) -> bool {
        poll_fn(|cx| {
            let mut io = self.lock();
            match io.first {
                Some(speaks) => Poll::Ready(speaks),
                None => {
                    io.waits = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Sends what was gathered in this turn. A socket that is full wakes the task; one that failed
    /// is noticed by h2's next read.
    pub(super) fn end_turn(&self, cx: &mut Context<'_>) {
        let mut io = self.lock();
        if let Poll::Ready(Ok(())) = io.poll_drain(cx) {
            let _ = io.conn.wr.poll_flush(cx);
        }
        io.count();
    }
}

impl Gathering {
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.data().is_empty() {
            let n = ready!(self.conn.wr.poll_write(cx, self.gathered.data()))?;
            self.gathered.consume(n);
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn count(&mut self) {
        let (read, sent) = (self.conn.rd.take_received(), self.conn.wr.take_sent());
        let counters = &self.worker.counters;
        let (read_counter, sent_counter) = match &self.client {
            Some(info) => {
                info.count_bytes(read, sent);
                (&counters.client_bytes_in, &counters.client_bytes_out)
            }
            None => (&counters.upstream_bytes_in, &counters.upstream_bytes_out),
        };
        add_to(read_counter, read);
        add_to(sent_counter, sent);
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        self.count();
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut io = self.0.lock();
        let rd = &mut io.conn.rd;
        if rd.data().is_empty() {
            let filled = ready!(rd.poll_fill(cx));
            if io.first.is_none() {
                // A server begins with SETTINGS, which begin with their length.
                let begins = io.conn.rd.data().first() == Some(&0);
                io.first = Some(begins);
                if let Some(waits) = io.waits.take() {
                    waits.wake();
                }
            }
            if filled? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let rd = &mut io.conn.rd;
        let n = rd.data().len().min(buf.remaining());
        buf.put_slice(rd.data().get(..n).unwrap_or_default());
        rd.consume(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut io = self.0.lock();
        let total: usize = slices.iter().map(|s| s.len()).sum();
        if total < LARGE_WRITE {
            if io.gathered.data().len() + total > GATHER {
                ready!(io.poll_drain(cx))?;
            }
            for slice in slices {
                io.gathered.append(slice);
            }
            return Poll::Ready(Ok(total));
        }
        ready!(io.poll_drain(cx))?;
        let wr = &mut io.conn.wr;
        match slices {
            [] => Poll::Ready(Ok(0)),
            [one] => wr.poll_write(cx, one),
            [first, second, ..] => wr.poll_write2(cx, first, second),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing: see [`Outlet::end_turn`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut io = self.0.lock();
        ready!(io.poll_drain(cx))?;
        io.conn.wr.poll_shutdown(cx)
    }
}
