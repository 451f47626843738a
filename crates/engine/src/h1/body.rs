//! Bodies on their way: the client's, and the pumps that relay one without holding more than a piece.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tollgate_flow::{ErrorClass, FlowError, Side};
use tollgate_wire::http1::{self, Anomaly};

use crate::body::Body;
use crate::hooks::{BodyRun, Offered, PieceVerdict, Verdict};
use crate::io::{Conn, ReadHalf, WriteHalf};

/// The request's body on the client's connection.
pub(crate) struct ClientBody {
    pub body: Body,
    /// Bytes of the head that still stand at the start of the read buffer.
    pub head_len: usize,
    /// Bytes of the body that stand behind it: the request was here whole, and may be sent again.
    pub buffered: usize,
    /// Nothing of the request is lost yet.
    pub replayable: bool,
    /// The whole body, where an interceptor asked for it.
    pub collected: Option<Bytes>,
}

pub(crate) enum CollectError {
    TooLarge,
    Anomaly(Anomaly),
    Gone,
}

impl ClientBody {
    pub fn is_done(&self) -> bool {
        self.body.is_done()
    }

    /// Whether everything that is left of the request is in the buffer already: then an early
    /// answer needs no close. Moves the body to its end.
    pub(super) fn is_buffered(&mut self, client: &Conn) -> bool {
        if self.body.is_done() {
            return true;
        }
        let held = self.head_len + self.buffered;
        let data = client.rd.data().get(held..).unwrap_or_default();
        match self.body.advance(data, |_| {}) {
            Ok(n) => {
                self.buffered += n;
                self.body.is_done()
            }
            Err(_) => false,
        }
    }

    /// Drops what was held of the request in the buffer.
    pub fn consume(&mut self, client: &mut Conn) {
        client.rd.consume(self.head_len + self.buffered);
        self.head_len = 0;
        self.buffered = 0;
    }

    pub(super) async fn collect(
        &mut self,
        client: &mut Conn,
        limit: usize,
    ) -> Result<(), CollectError> {
        let mut whole = Vec::new();
        loop {
            let data = client.rd.data().get(self.head_len..).unwrap_or_default();
            let n = self
                .body
                .advance(data, |payload| whole.extend_from_slice(payload))
                .map_err(CollectError::Anomaly)?;
            self.consume(client);
            client.rd.consume(n);
            if whole.len() > limit {
                return Err(CollectError::TooLarge);
            }
            if self.body.is_done() {
                self.collected = Some(whole.into());
                return Ok(());
            }
            match client.rd.fill().await {
                Ok(n) if n > 0 => {}
                _ => return Err(CollectError::Gone),
            }
        }
    }

    /// Puts the framing headers right for a body that is sent whole.
    pub(super) fn put_framing(
        &mut self,
        request: &mut tollgate_flow::Request,
    ) -> Result<(), FlowError> {
        let edited = request.is_body_edited();
        let body = request.body().cloned().unwrap_or_default();
        let had_body = !self.collected.as_ref().is_some_and(Bytes::is_empty);
        self.collected = Some(body.clone());
        if !had_body && !edited {
            return Ok(());
        }
        let headers = &mut request.head.headers;
        let length = body.len().to_string();
        if headers.contains("transfer-encoding") || edited {
            headers.remove("transfer-encoding");
            headers
                .set(b"Content-Length", length.as_bytes())
                .map_err(|e| FlowError::new(Side::Proxy, ErrorClass::Interceptor, e.to_string()))?;
        }
        Ok(())
    }
}

pub(crate) enum PumpError {
    /// The side that sends ended or failed.
    Read,
    /// The side that receives failed.
    Write,
    Anomaly(Anomaly),
    Verdict(Verdict),
}

/// Relays a body piece by piece: reads, offers, writes, and only then reads again.
pub(super) async fn pump(
    rd: &mut ReadHalf,
    wr: &mut WriteHalf,
    body: &mut Body,
    hooks: &mut BodyRun<'_, '_>,
    edits: bool,
    progress: &AtomicU64,
    size: &AtomicU64,
) -> Result<(), PumpError> {
    let mut pieces: Vec<(usize, usize)> = Vec::new();
    let mut out = Vec::new();
    loop {
        let data = rd.data();
        if !data.is_empty() {
            pieces.clear();
            let start = data.as_ptr().addr();
            let mut payload = 0;
            let n = body
                .advance(data, |piece| {
                    payload += piece.len() as u64;
                    pieces.push((piece.as_ptr().addr() - start, piece.len()));
                })
                .map_err(PumpError::Anomaly)?;
            size.fetch_add(payload, Ordering::Relaxed);
            if hooks.watched {
                out.clear();
                for (at, len) in &pieces {
                    let piece = data.get(*at..at + len).unwrap_or_default();
                    let mut offering = hooks.data(piece, false);
                    let verdict = loop {
                        match offering.next().await {
                            Offered::Verdict(verdict) => break verdict,
                            // Who leaves the framing as it is can add nothing.
                            Offered::Alive(_) if !edits => {}
                            Offered::Alive(bytes) => {
                                // With what goes before it.
                                http1::encode_chunk(&mut out, &bytes);
                                wr.write_all(&out).await.map_err(|_| PumpError::Write)?;
                                out.clear();
                            }
                        }
                    };
                    match verdict {
                        PieceVerdict::Pass => http1::encode_chunk(&mut out, piece),
                        PieceVerdict::Replace(bytes) => http1::encode_chunk(&mut out, &bytes),
                        PieceVerdict::End(verdict) => return Err(PumpError::Verdict(verdict)),
                    }
                }
            }
            let raw = data.get(..n).unwrap_or_default();
            wr.write_all(if edits { &out } else { raw })
                .await
                .map_err(|_| PumpError::Write)?;
            rd.consume(n);
            progress.fetch_add(1, Ordering::Relaxed);
        }
        if body.is_done() {
            break;
        }
        match rd.fill().await {
            Ok(n) if n > 0 => {}
            Ok(_) if body.end_of_stream() => break,
            _ => return Err(PumpError::Read),
        }
    }
    if hooks.watched {
        hooks.put_trailers(body.trailers());
        match hooks.data(&[], true).await {
            PieceVerdict::Pass => out.clear(),
            PieceVerdict::Replace(bytes) => {
                out.clear();
                http1::encode_chunk(&mut out, &bytes);
            }
            PieceVerdict::End(verdict) => return Err(PumpError::Verdict(verdict)),
        }
    }
    if edits {
        http1::encode_last(&mut out, body.trailers());
        wr.write_all(&out).await.map_err(|_| PumpError::Write)?;
    }
    Ok(())
}

/// Sends a body with a framing of our own: chunked, or up to the close for HTTP/1.0 clients.
pub(super) struct Reframed<'a> {
    pub(super) wr: &'a mut WriteHalf,
    pub(super) until_close: bool,
}

impl Reframed<'_> {
    pub(super) async fn start(
        &mut self,
        head: &[u8],
        prefix: &[u8],
        hooks: &mut BodyRun<'_, '_>,
    ) -> Result<(), PumpError> {
        self.wr
            .write_all(head)
            .await
            .map_err(|_| PumpError::Write)?;
        self.send(prefix, hooks).await
    }

    pub(super) async fn send(
        &mut self,
        piece: &[u8],
        hooks: &mut BodyRun<'_, '_>,
    ) -> Result<(), PumpError> {
        let mut replaced = None;
        if hooks.watched && !piece.is_empty() {
            let mut offering = hooks.data(piece, false);
            let verdict = loop {
                match offering.next().await {
                    Offered::Verdict(verdict) => break verdict,
                    Offered::Alive(bytes) => self.write(&bytes).await?,
                }
            };
            match verdict {
                PieceVerdict::Pass => {}
                PieceVerdict::Replace(bytes) => replaced = Some(bytes),
                PieceVerdict::End(verdict) => return Err(PumpError::Verdict(verdict)),
            }
        }
        self.write(replaced.as_deref().unwrap_or(piece)).await
    }

    async fn write(&mut self, piece: &[u8]) -> Result<(), PumpError> {
        if self.until_close {
            return self.wr.write_all(piece).await.map_err(|_| PumpError::Write);
        }
        let mut out = Vec::with_capacity(piece.len() + 16);
        http1::encode_chunk(&mut out, piece);
        self.wr.write_all(&out).await.map_err(|_| PumpError::Write)
    }

    pub(super) async fn relay(
        &mut self,
        rd: &mut ReadHalf,
        body: &mut Body,
        hooks: &mut BodyRun<'_, '_>,
        progress: &AtomicU64,
        size: &AtomicU64,
    ) -> Result<(), PumpError> {
        loop {
            let mut piece = Vec::new();
            let n = body
                .advance(rd.data(), |payload| piece.extend_from_slice(payload))
                .map_err(PumpError::Anomaly)?;
            rd.consume(n);
            size.fetch_add(piece.len() as u64, Ordering::Relaxed);
            progress.fetch_add(1, Ordering::Relaxed);
            self.send(&piece, hooks).await?;
            if body.is_done() {
                break;
            }
            match rd.fill().await {
                Ok(n) if n > 0 => {}
                Ok(_) if body.end_of_stream() => break,
                _ => return Err(PumpError::Read),
            }
        }
        let mut out = Vec::new();
        if hooks.watched {
            hooks.put_trailers(body.trailers());
            match hooks.data(&[], true).await {
                PieceVerdict::Pass => {}
                PieceVerdict::Replace(bytes) if self.until_close => out.extend_from_slice(&bytes),
                PieceVerdict::Replace(bytes) => http1::encode_chunk(&mut out, &bytes),
                PieceVerdict::End(verdict) => return Err(PumpError::Verdict(verdict)),
            }
        }
        if !self.until_close {
            http1::encode_last(&mut out, body.trailers());
        }
        self.wr.write_all(&out).await.map_err(|_| PumpError::Write)
    }
}
