//! The TLS record layer after the handshake (RFC 8446 section 5, RFC 5246 section 6.2.3.3).
//!
//! rustls makes the handshake and keeps the key schedule; the records of application data are
//! sealed and opened here, straight between our buffers, with aws-lc's AEADs. A record costs one
//! pass over its bytes and no allocation, and an idle connection holds no buffers.
//! See `docs/adr/0003-own-record-layer.md`.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{ConnectionTrafficSecrets, ProtocolVersion};

/// Largest plaintext of one record.
pub(crate) const MAX_PLAINTEXT: usize = 16 * 1024;
/// Header, explicit nonce or inner content type, and tag: the most that sealing adds to a record.
pub(crate) const MAX_OVERHEAD: usize = HEADER + 8 + TAG + 1;
/// Largest record on the wire that a peer may send (RFC 8446: 2^14 + 256; TLS 1.2 allows 2048).
const MAX_RECORD: usize = MAX_PLAINTEXT + 2048;
const HEADER: usize = 5;
const TAG: usize = 16;

/// Records that one key may seal: RFC 8446 section 5.5 allows AES-GCM 2^24.5 full ones.
const MAX_RECORDS: u64 = 1 << 24;

pub(crate) const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;
pub(crate) const APPLICATION_DATA: u8 = 23;

/// Why a record could not be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("a TLS record failed authentication")]
    BadMac,
    #[error("a TLS record is larger than the protocol allows")]
    Oversized,
    #[error("a TLS record is malformed")]
    Malformed,
    #[error("the TLS keys are used up")]
    Exhausted,
    #[error("the cipher suite is not one that the record layer knows")]
    UnknownSuite,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Construction {
    Tls13,
    /// AES-GCM with an explicit nonce in each record (RFC 5288).
    Tls12Gcm,
    /// ChaCha20-Poly1305 (RFC 7905).
    Tls12Chacha,
}

struct Keys {
    key: LessSafeKey,
    iv: [u8; 12],
    seq: u64,
    construction: Construction,
}

impl Keys {
    fn new(
        version: ProtocolVersion,
        (seq, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (&aead::CHACHA20_POLY1305, key, iv)
            }
            _ => return Err(RecordError::UnknownSuite),
        };
        let construction = match version {
            ProtocolVersion::TLSv1_3 => Construction::Tls13,
            ProtocolVersion::TLSv1_2 if algorithm == &aead::CHACHA20_POLY1305 => {
                Construction::Tls12Chacha
            }
            ProtocolVersion::TLSv1_2 => Construction::Tls12Gcm,
            _ => return Err(RecordError::UnknownSuite),
        };
        let key =
            UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::UnknownSuite)?;
        let iv = iv
            .as_ref()
            .try_into()
            .map_err(|_| RecordError::UnknownSuite)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv,
            seq,
            construction,
        })
    }

    /// The nonce for the current sequence number: the IV with the number mixed into its end.
    fn nonce(&self) -> [u8; 12] {
        let mut nonce = self.iv;
        let seq = self.seq.to_be_bytes();
        for (n, s) in nonce.iter_mut().skip(4).zip(seq) {
            *n ^= s;
        }
        nonce
    }

    fn tls12_aad(&self, typ: u8, len: usize) -> [u8; 13] {
        let mut aad = [0; 13];
        let (seq, rest) = aad.split_at_mut(8);
        seq.copy_from_slice(&self.seq.to_be_bytes());
        let [l1, l2] = (len as u16).to_be_bytes();
        rest.copy_from_slice(&[typ, 3, 3, l1, l2]);
        aad
    }

    fn advance(&mut self) -> Result<(), RecordError> {
        self.seq = self.seq.checked_add(1).ok_or(RecordError::Exhausted)?;
        Ok(())
    }
}

/// Seals records for one direction.
pub(crate) struct Sealer(Keys);

impl Sealer {
    pub(crate) fn new(
        version: ProtocolVersion,
        secrets: (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, RecordError> {
        Keys::new(version, secrets).map(Self)
    }

    /// True once the key has sealed so many records that it should be replaced (RFC 8446 section
    /// 5.5: 2^24.5 full records for AES-GCM; well before that here).
    pub(crate) fn wants_new_key(&self) -> bool {
        self.0.seq >= 1 << 23
    }

    /// True when only TLS 1.3 can bring a new key.
    pub(crate) fn is_tls13(&self) -> bool {
        self.0.construction == Construction::Tls13
    }

    /// Seals one record holding `data` (at most [`MAX_PLAINTEXT`]) into the start of `out`, and
    /// answers the record's length. `out` must have room for `data` and [`MAX_OVERHEAD`].
    pub(crate) fn seal(
        &mut self,
        typ: u8,
        data: &[u8],
        out: &mut [u8],
    ) -> Result<usize, RecordError> {
        let keys = &mut self.0;
        // TLS 1.3 gets a new key long before; TLS 1.2 has no way to.
        if keys.seq >= MAX_RECORDS {
            return Err(RecordError::Exhausted);
        }
        let nonce = keys.nonce();
        let (header, rest) = out
            .split_first_chunk_mut::<HEADER>()
            .ok_or(RecordError::Oversized)?;
        let length = match keys.construction {
            Construction::Tls13 => {
                let length = data.len() + 1 + TAG;
                let [l1, l2] = (length as u16).to_be_bytes();
                *header = [APPLICATION_DATA, 3, 3, l1, l2];
                let (body, end) = split_two(rest, data.len(), 1 + TAG)?;
                keys.key
                    .seal_out_of_place_scatter(
                        Nonce::assume_unique_for_key(nonce),
                        Aad::from(*header),
                        data,
                        body,
                        &[typ],
                        end,
                    )
                    .map_err(|_| RecordError::Exhausted)?;
                length
            }
            Construction::Tls12Gcm => {
                let length = 8 + data.len() + TAG;
                let [l1, l2] = (length as u16).to_be_bytes();
                *header = [typ, 3, 3, l1, l2];
                let aad = keys.tls12_aad(typ, data.len());
                let (explicit, rest) = rest
                    .split_first_chunk_mut::<8>()
                    .ok_or(RecordError::Oversized)?;
                if let Some((_, last)) = nonce.split_last_chunk::<8>() {
                    *explicit = *last;
                }
                let (body, end) = split_two(rest, data.len(), TAG)?;
                keys.key
                    .seal_out_of_place_scatter(
                        Nonce::assume_unique_for_key(nonce),
                        Aad::from(aad),
                        data,
                        body,
                        &[],
                        end,
                    )
                    .map_err(|_| RecordError::Exhausted)?;
                length
            }
            Construction::Tls12Chacha => {
                let length = data.len() + TAG;
                let [l1, l2] = (length as u16).to_be_bytes();
                *header = [typ, 3, 3, l1, l2];
                let aad = keys.tls12_aad(typ, data.len());
                let (body, end) = split_two(rest, data.len(), TAG)?;
                keys.key
                    .seal_out_of_place_scatter(
                        Nonce::assume_unique_for_key(nonce),
                        Aad::from(aad),
                        data,
                        body,
                        &[],
                        end,
                    )
                    .map_err(|_| RecordError::Exhausted)?;
                length
            }
        };
        keys.advance()?;
        Ok(HEADER + length)
    }
}

/// Opens records of one direction.
pub(crate) struct Opener(Keys);

/// What [`Opener::open`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// The content type.
    pub typ: u8,
    /// The plaintext's length: it stands at the start of the output.
    pub len: usize,
}

impl Opener {
    pub(crate) fn new(
        version: ProtocolVersion,
        secrets: (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, RecordError> {
        Keys::new(version, secrets).map(Self)
    }

    /// Opens one whole record (as [`record_length`] measured it) into the start of `out`, which
    /// must be at least as long as the record.
    pub(crate) fn open(&mut self, record: &[u8], out: &mut [u8]) -> Result<Opened, RecordError> {
        let keys = &mut self.0;
        let (header, body) = record
            .split_first_chunk::<HEADER>()
            .ok_or(RecordError::Malformed)?;
        let [outer, ..] = *header;
        match keys.construction {
            Construction::Tls13 => {
                // A change_cipher_spec for middleboxes may still arrive here; it carries nothing.
                if outer == 20 {
                    return if body == [1] {
                        Ok(Opened { typ: 20, len: 0 })
                    } else {
                        Err(RecordError::Malformed)
                    };
                }
                if outer != APPLICATION_DATA {
                    return Err(RecordError::Malformed);
                }
                let (ciphertext, tag) = split_tag(body)?;
                let plain = out
                    .get_mut(..ciphertext.len())
                    .ok_or(RecordError::Oversized)?;
                keys.key
                    .open_separate_gather(
                        Nonce::assume_unique_for_key(keys.nonce()),
                        Aad::from(*header),
                        ciphertext,
                        tag,
                        plain,
                    )
                    .map_err(|_| RecordError::BadMac)?;
                keys.advance()?;
                // The content type is the last byte that isn't padding.
                let end = plain
                    .iter()
                    .rposition(|&b| b != 0)
                    .ok_or(RecordError::Malformed)?;
                let typ = plain.get(end).copied().ok_or(RecordError::Malformed)?;
                if end > MAX_PLAINTEXT {
                    return Err(RecordError::Oversized);
                }
                Ok(Opened { typ, len: end })
            }
            Construction::Tls12Gcm => {
                let (explicit, body) = body
                    .split_first_chunk::<8>()
                    .ok_or(RecordError::Malformed)?;
                let mut nonce = keys.iv;
                if let Some((_, last)) = nonce.split_last_chunk_mut::<8>() {
                    *last = *explicit;
                }
                Self::open_tls12(keys, outer, body, nonce, out)
            }
            Construction::Tls12Chacha => {
                let nonce = keys.nonce();
                Self::open_tls12(keys, outer, body, nonce, out)
            }
        }
    }

    fn open_tls12(
        keys: &mut Keys,
        typ: u8,
        body: &[u8],
        nonce: [u8; 12],
        out: &mut [u8],
    ) -> Result<Opened, RecordError> {
        let (ciphertext, tag) = split_tag(body)?;
        let len = ciphertext.len();
        if len > MAX_PLAINTEXT {
            return Err(RecordError::Oversized);
        }
        let plain = out.get_mut(..len).ok_or(RecordError::Oversized)?;
        let aad = keys.tls12_aad(typ, len);
        keys.key
            .open_separate_gather(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                ciphertext,
                tag,
                plain,
            )
            .map_err(|_| RecordError::BadMac)?;
        keys.advance()?;
        Ok(Opened { typ, len })
    }
}

/// The length on the wire of the record at the start of `input`, header included; `None` while its
/// header isn't complete.
pub(crate) fn record_length(input: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some(&[typ, major, _, l1, l2]) = input.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([l1, l2]));
    if !(20..=23).contains(&typ) || major != 3 {
        return Err(RecordError::Malformed);
    }
    if length > MAX_RECORD {
        return Err(RecordError::Oversized);
    }
    Ok(Some(HEADER + length))
}

fn split_tag(body: &[u8]) -> Result<(&[u8], &[u8]), RecordError> {
    let at = body.len().checked_sub(TAG).ok_or(RecordError::Malformed)?;
    body.split_at_checked(at).ok_or(RecordError::Malformed)
}

fn split_two(
    out: &mut [u8],
    first: usize,
    second: usize,
) -> Result<(&mut [u8], &mut [u8]), RecordError> {
    let (a, rest) = out
        .split_at_mut_checked(first)
        .ok_or(RecordError::Oversized)?;
    let b = rest.get_mut(..second).ok_or(RecordError::Oversized)?;
    Ok((a, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::cipher::{AeadKey, Iv};

    fn secrets(kind: u8) -> ConnectionTrafficSecrets {
        let key = AeadKey::from([7; 32]);
        let iv = Iv::from([9; 12]);
        match kind {
            0 => ConnectionTrafficSecrets::Aes256Gcm { key, iv },
            _ => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
        }
    }

    #[test]
    fn every_construction_opens_what_it_sealed() {
        for version in [ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3] {
            for kind in [0, 1] {
                let mut sealer = Sealer::new(version, (0, secrets(kind))).unwrap();
                let mut opener = Opener::new(version, (0, secrets(kind))).unwrap();
                for len in [0, 1, 100, MAX_PLAINTEXT] {
                    let data = vec![0xa5; len];
                    let mut wire = vec![0; len + MAX_OVERHEAD];
                    let n = sealer.seal(APPLICATION_DATA, &data, &mut wire).unwrap();
                    assert_eq!(record_length(&wire).unwrap(), Some(n));
                    let mut plain = vec![0; n];
                    let opened = opener.open(&wire[..n], &mut plain).unwrap();
                    assert_eq!((opened.typ, opened.len), (APPLICATION_DATA, len));
                    assert_eq!(&plain[..len], &data[..]);
                }
            }
        }
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        for version in [ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3] {
            let mut wire = vec![0; 100];
            let n = Sealer::new(version, (0, secrets(0)))
                .unwrap()
                .seal(APPLICATION_DATA, b"attack at dawn", &mut wire)
                .unwrap();
            for at in HEADER..n {
                let mut bad = wire[..n].to_vec();
                bad[at] ^= 1;
                let mut opener = Opener::new(version, (0, secrets(0))).unwrap();
                assert_eq!(opener.open(&bad, &mut [0; 100]), Err(RecordError::BadMac));
            }
        }
    }

    #[test]
    fn hostile_headers_are_errors() {
        assert_eq!(
            record_length(&[23, 3, 3, 0xff, 0xff]),
            Err(RecordError::Oversized)
        );
        assert_eq!(record_length(b"GET /"), Err(RecordError::Malformed));
        assert_eq!(record_length(&[23, 3, 3]), Ok(None));
        let mut opener = Opener::new(ProtocolVersion::TLSv1_3, (0, secrets(0))).unwrap();
        for len in 0..TAG {
            let mut short = vec![23, 3, 3, 0, len as u8];
            short.resize(HEADER + len, 0);
            assert!(opener.open(&short, &mut [0; 64]).is_err());
        }
    }
}
