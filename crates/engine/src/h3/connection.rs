//! What a connection says beside its requests: the control stream, with SETTINGS and GOAWAY.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use quinn::{ConnectionError, RecvStream, SendStream};
use tokio::task::JoinSet;
use tollgate_wire::http3::{
    FrameDecoder, FrameKind, Settings, Step, code, frame_header, read_varint, stream_type,
    write_varint,
};
use tracing::debug;

use super::varint;

/// What one read takes of a stream.
const READ: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// What the peer has said.
#[derive(Default)]
pub(super) struct Peer {
    settings: OnceLock<Settings>,
    /// It takes no further requests.
    goaway: AtomicBool,
    has_control: AtomicBool,
    has_encoder: AtomicBool,
    has_decoder: AtomicBool,
}

impl Peer {
    pub(super) fn is_leaving(&self) -> bool {
        self.goaway.load(Ordering::Relaxed)
    }

    /// Whether it takes a field section of that size. It does until it says otherwise.
    pub(super) fn takes_section(&self, size: u64) -> bool {
        let limit = self.settings.get().and_then(|s| s.max_field_section_size);
        limit.is_none_or(|limit| size <= limit)
    }
}

/// Our control stream.
pub(super) struct Control(SendStream);

impl Control {
    /// Opens it and says what our limits are. QPACK's streams are left out, which RFC 9204 section
    /// 4.2 allows those who have no dynamic table.
    pub(super) async fn open(
        connection: &quinn::Connection,
        head_bytes: usize,
    ) -> Result<Self, ConnectionError> {
        let mut stream = connection.open_uni().await?;
        let mut out = Vec::new();
        write_varint(stream_type::CONTROL, &mut out);
        let mut payload = Vec::new();
        Settings::with_max_field_section_size(head_bytes as u64).write_to(&mut payload);
        frame_header(FrameKind::Settings, payload.len() as u64, &mut out);
        out.extend_from_slice(&payload);
        // What goes wrong here shows on the connection.
        let _ = stream.write_all(&out).await;
        Ok(Self(stream))
    }

    /// Says that no request from this id on is served.
    pub(super) async fn goaway(&mut self, id: u64) {
        let mut payload = Vec::new();
        write_varint(id, &mut payload);
        let mut out = Vec::new();
        frame_header(FrameKind::Goaway, payload.len() as u64, &mut out);
        out.extend_from_slice(&payload);
        let _ = self.0.write_all(&out).await;
    }
}

/// Reads the peer's unidirectional streams until the connection ends; closes it where the peer
/// breaks the rules.
pub(super) async fn mind(connection: quinn::Connection, role: Role, peer: Arc<Peer>) {
    let mut streams = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept_uni() => accepted,
            Some(_) = streams.join_next() => continue,
        };
        let Ok(stream) = accepted else { break };
        let (connection, peer) = (connection.clone(), Arc::clone(&peer));
        streams.spawn(async move {
            if let Err(violation) = read(stream, role, &peer).await {
                close(&connection, violation.code, violation.what);
            }
        });
    }
}

/// Closes a connection whose peer broke a rule.
pub(super) fn close(connection: &quinn::Connection, code: u64, what: &str) {
    debug!(peer = %connection.remote_address(), code, what, "an HTTP/3 connection is closed");
    connection.close(varint(code), what.as_bytes());
}

/// A rule that the peer broke.
struct Violation {
    code: u64,
    what: &'static str,
}

fn violation(code: u64, what: &'static str) -> Result<(), Violation> {
    Err(Violation { code, what })
}

async fn read(mut stream: RecvStream, role: Role, peer: &Peer) -> Result<(), Violation> {
    let mut start = Vec::new();
    let (kind, used) = loop {
        if let Some(kind) = read_varint(&start) {
            break kind;
        }
        match stream.read_chunk(READ, true).await {
            Ok(Some(chunk)) => start.extend_from_slice(&chunk.bytes),
            // A stream that says nothing is none.
            Ok(None) | Err(_) => return Ok(()),
        }
    };
    let rest = start.split_off(used);
    let first = |seen: &AtomicBool| match seen.swap(true, Ordering::Relaxed) {
        false => Ok(()),
        true => violation(code::STREAM_CREATION_ERROR, "a second stream of its kind"),
    };
    match kind {
        stream_type::CONTROL => {
            first(&peer.has_control)?;
            control(stream, rest, role, peer).await
        }
        stream_type::QPACK_ENCODER => {
            first(&peer.has_encoder)?;
            skip(stream).await
        }
        stream_type::QPACK_DECODER => {
            first(&peer.has_decoder)?;
            skip(stream).await
        }
        stream_type::PUSH if role == Role::Server => {
            violation(code::STREAM_CREATION_ERROR, "a client can't push")
        }
        stream_type::PUSH => violation(code::ID_ERROR, "a push that nobody allowed"),
        _ => {
            let _ = stream.stop(varint(code::STREAM_CREATION_ERROR));
            Ok(())
        }
    }
}

/// Follows QPACK's streams, which have nothing to say to us: what they could insert goes into a
/// table that we don't have, and a field section that refers to it is refused.
async fn skip(mut stream: RecvStream) -> Result<(), Violation> {
    loop {
        match stream.read_chunk(READ, true).await {
            Ok(Some(_)) => {}
            Ok(None) | Err(quinn::ReadError::Reset(_)) => {
                return violation(code::CLOSED_CRITICAL_STREAM, "a stream of QPACK was closed");
            }
            Err(_) => return Ok(()),
        }
    }
}

async fn control(
    mut stream: RecvStream,
    mut input: Vec<u8>,
    role: Role,
    peer: &Peer,
) -> Result<(), Violation> {
    let mut decoder = FrameDecoder::new(0);
    let unexpected = || violation(code::FRAME_UNEXPECTED, "a frame that does not belong there");
    loop {
        let step = decoder.next(&input).map_err(|e| Violation {
            code: e.code(),
            what: "a frame that can't be read",
        })?;
        match step {
            Step::More => match stream.read_chunk(READ, true).await {
                Ok(Some(chunk)) => input = chunk.bytes.to_vec(),
                Ok(None) | Err(quinn::ReadError::Reset(_)) => {
                    return violation(
                        code::CLOSED_CRITICAL_STREAM,
                        "the control stream was closed",
                    );
                }
                Err(_) => return Ok(()),
            },
            Step::Data { .. } => return unexpected(),
            Step::Frame {
                used,
                kind,
                payload,
            } => {
                input.drain(..used.min(input.len()));
                let first = peer.settings.get().is_none();
                match kind {
                    FrameKind::Settings if first => {
                        let settings = Settings::parse(&payload).map_err(|e| Violation {
                            code: e.code(),
                            what: "SETTINGS that can't be read",
                        })?;
                        let _ = peer.settings.set(settings);
                    }
                    _ if first => {
                        return violation(code::MISSING_SETTINGS, "SETTINGS come first");
                    }
                    FrameKind::Goaway | FrameKind::MaxPushId | FrameKind::CancelPush
                        if read_varint(&payload).is_none_or(|(_, n)| n != payload.len()) =>
                    {
                        return violation(code::FRAME_ERROR, "a frame with another length");
                    }
                    FrameKind::Goaway => peer.goaway.store(true, Ordering::Relaxed),
                    FrameKind::MaxPushId if role == Role::Server => {}
                    FrameKind::CancelPush => {
                        return violation(code::ID_ERROR, "a push that there is not");
                    }
                    _ => return unexpected(),
                }
            }
        }
    }
}
