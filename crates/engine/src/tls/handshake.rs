//! Drives a handshake of rustls over a [`Conn`] and puts our record layer over it.

use std::io;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ExtractedSecrets, ProtocolVersion, ServerConfig};
use tollgate_flow::TlsVersion;

use crate::io::{Conn, Kernel};
use crate::tls::record::{RecordError, record_length};

/// Room for the largest flight that is plausible; grown on demand.
const FLIGHT: usize = 4096;
/// Most bytes that a peer may send before the handshake is over: certificate chains included.
const MAX_INCOMING: usize = 256 * 1024;

/// What was agreed.
#[derive(Clone, Debug)]
pub(crate) struct Agreed {
    pub version: TlsVersion,
    pub alpn: Option<Vec<u8>>,
    /// The peer's certificates, leaf first.
    pub certificates: Arc<[Vec<u8>]>,
    pub resumed: bool,
}

/// Why a handshake did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the peer closed the connection during the handshake")]
    Closed {
        /// We had already shown our certificate.
        after_flight: bool,
    },
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Makes the server's side of a handshake on a client's connection. The bytes that were peeked
/// must still be in the connection's buffer.
pub(crate) async fn accept(
    conn: &mut Conn,
    config: Arc<ServerConfig>,
) -> Result<Agreed, HandshakeError> {
    drive(conn, UnbufferedServerConnection::new(config)?, true).await
}

/// Makes the client's side of a handshake towards an origin.
pub(crate) async fn connect(
    conn: &mut Conn,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<Agreed, HandshakeError> {
    drive(conn, UnbufferedClientConnection::new(config, name)?, false).await
}

/// The two sides of rustls' unbuffered API.
trait Handshake: Sized {
    type Data;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn common(&self) -> &CommonState;
    fn into_kernel(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error>;
}

impl Handshake for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
    fn common(&self) -> &CommonState {
        self
    }
    fn into_kernel(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Server(kernel)))
    }
}

impl Handshake for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
    fn common(&self) -> &CommonState {
        self
    }
    fn into_kernel(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Client(kernel)))
    }
}

enum Next {
    Again,
    Read,
    Done,
    Fail(HandshakeError),
}

async fn drive<H: Handshake>(
    conn: &mut Conn,
    mut tls: H,
    server: bool,
) -> Result<Agreed, HandshakeError> {
    let mut outgoing = Outgoing::default();
    let mut early = Vec::new();
    let mut sent_flight = false;
    let mut received = conn.rd.data().len();
    // rustls is shown one record more at a time: what follows the handshake in the same read (a
    // key update, say) is for our record layer.
    let mut shown = 0;
    loop {
        let all = conn.rd.data_mut();
        let visible = all.get_mut(..shown).unwrap_or_default();
        let (discard, next) = step(&mut tls, visible, &mut outgoing, &mut early);
        conn.rd.consume(discard);
        shown = shown.saturating_sub(discard);
        match next {
            Next::Again => {}
            Next::Read => {
                let all = conn.rd.data();
                let hidden = all.get(shown..).unwrap_or_default();
                match record_length(hidden) {
                    Ok(Some(length)) if length <= hidden.len() => {
                        shown += length;
                        continue;
                    }
                    Ok(_) => {}
                    // Whatever it is, rustls finds the words for it.
                    Err(_) => {
                        shown = all.len();
                        continue;
                    }
                }
                if !outgoing.bytes().is_empty() {
                    conn.wr.write_all(outgoing.bytes()).await?;
                    outgoing.clear();
                    sent_flight = true;
                }
                match conn.rd.fill().await? {
                    0 => {
                        return Err(HandshakeError::Closed {
                            after_flight: sent_flight,
                        });
                    }
                    n => received += n,
                }
                if received > MAX_INCOMING {
                    return Err(rustls::Error::General("handshake too large".into()).into());
                }
            }
            Next::Done => break,
            Next::Fail(error) => {
                // The alert that says why, if it can still be delivered.
                let (_, _) = step(&mut tls, &mut [], &mut outgoing, &mut early);
                if !outgoing.bytes().is_empty() {
                    let _ = conn.wr.write_all(outgoing.bytes()).await;
                }
                return Err(error);
            }
        }
    }
    let tickets_only = server && tls.common().protocol_version() == Some(ProtocolVersion::TLSv1_3);
    if tickets_only {
        // All that is left are session tickets: they leave together with the first response.
        conn.wr.queue_raw(outgoing.bytes());
    } else if !outgoing.bytes().is_empty() {
        conn.wr.write_all(outgoing.bytes()).await?;
    }
    let common = tls.common();
    let agreed = Agreed {
        version: match common.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => TlsVersion::Tls13,
            _ => TlsVersion::Tls12,
        },
        alpn: common.alpn_protocol().map(<[u8]>::to_vec),
        certificates: common
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|c| c.as_ref().to_vec())
            .collect(),
        resumed: common.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
    };
    let (secrets, kernel) = tls.into_kernel()?;
    conn.start_tls(secrets, kernel, &early)?;
    Ok(agreed)
}

/// Takes one step; answers how many bytes of `incoming` are done with, and what to do next.
fn step<H: Handshake>(
    tls: &mut H,
    incoming: &mut [u8],
    outgoing: &mut Outgoing,
    early: &mut Vec<u8>,
) -> (usize, Next) {
    let UnbufferedStatus { discard, state } = tls.process(incoming);
    let next = match state {
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            match outgoing.encode(|out| data.encode(out)) {
                Ok(()) => Next::Again,
                Err(error) => Next::Fail(error.into()),
            }
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            // Collected; it leaves when we have to wait, or with the first application data.
            data.done();
            Next::Again
        }
        Ok(ConnectionState::BlockedHandshake) => Next::Read,
        Ok(ConnectionState::WriteTraffic(_)) => Next::Done,
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => early.extend_from_slice(record.payload),
                Some(Err(error)) => break Next::Fail(error.into()),
                None => break Next::Again,
            }
        },
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
            Next::Fail(HandshakeError::Closed { after_flight: true })
        }
        // Early data is never accepted (max_early_data_size is 0), so none can be read.
        Ok(_) => Next::Fail(rustls::Error::General("unexpected handshake state".into()).into()),
        Err(error) => Next::Fail(error.into()),
    };
    (discard, next)
}

/// Handshake records waiting to be sent.
#[derive(Default)]
struct Outgoing {
    memory: Vec<u8>,
    end: usize,
}

impl Outgoing {
    fn bytes(&self) -> &[u8] {
        self.memory.get(..self.end).unwrap_or_default()
    }

    fn clear(&mut self) {
        self.end = 0;
    }

    fn encode(
        &mut self,
        mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
    ) -> Result<(), rustls::Error> {
        if self.memory.is_empty() {
            self.memory.resize(FLIGHT, 0);
        }
        loop {
            let free = self.memory.get_mut(self.end..).unwrap_or_default();
            match encode(free) {
                Ok(n) => {
                    self.end += n;
                    return Ok(());
                }
                Err(EncodeError::InsufficientSize(size)) => {
                    self.memory.resize(self.end + size.required_size, 0);
                }
                Err(EncodeError::AlreadyEncoded) => {
                    return Err(rustls::Error::General("handshake out of order".into()));
                }
            }
        }
    }
}
