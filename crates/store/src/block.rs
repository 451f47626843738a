//! Blocks: some flows, compressed together, as one frame of a segment.
//!
//! A frame is a header of 24 bytes (`TGB1`, the length of the payload, the length of what it expands to, the block's
//! number, four bytes of zero; little-endian) and the payload, a zstd frame with a checksum. A frame whose block was
//! deleted begins with `TGX1`, and its payload is zeros.
//!
//! What a payload expands to:
//!
//! ```text
//! u64 the block's number
//! u32 chains, and for each: u32 certificates, and for each: u32 length, DER
//! u32 flows, and for each: u64 sequence number, u32 chain + 1 (0: none), u32 length
//! the flows one after the other, as a flow file of mitmproxy (version 21)
//! ```
//!
//! Origins' certificates stand once in a block: in a flow file they would be most of a small flow.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use tollgate_flow::mitm::{FlowReader, FlowWriter};
use tollgate_flow::record::{Certificates, Record};

use crate::error::StoreError;

/// The header of a frame.
pub(crate) const HEADER_BYTES: usize = 24;

pub(crate) const LIVE: &[u8; 4] = b"TGB1";
pub(crate) const WIPED: &[u8; 4] = b"TGX1";

/// No block expands to more: a flow is bounded by its capture limits, and a block ends soon after [`FULL_BYTES`].
const MAX_RAW_BYTES: u32 = 1 << 30;

/// A block with so many flows is full.
const FULL_FLOWS: usize = 128;

/// A block with so many bytes is full.
const FULL_BYTES: u64 = 256 * 1024;

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The number of the block; 0 for one that was deleted.
    pub block: u64,
    /// The length of the payload.
    pub length: u32,
    /// The length of what it expands to.
    raw: u32,
}

impl Header {
    /// Reads one. `None` when the bytes are none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (raw, rest) = rest.split_first_chunk()?;
        let (block, _) = rest.split_first_chunk()?;
        let header = Self {
            block: u64::from_le_bytes(*block),
            length: u32::from_le_bytes(*length),
            raw: u32::from_le_bytes(*raw),
        };
        match magic {
            LIVE if header.raw <= MAX_RAW_BYTES => Some(header),
            WIPED => Some(Self { block: 0, ..header }),
            _ => None,
        }
    }

    /// The whole length of the frame.
    pub fn frame_bytes(self) -> u64 {
        u64::from(self.length) + HEADER_BYTES as u64
    }

    fn write(self, magic: &[u8; 4], out: &mut Vec<u8>) {
        out.extend_from_slice(magic);
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.raw.to_le_bytes());
        out.extend_from_slice(&self.block.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }
}

/// What overwrites a frame of `length` bytes when its block is deleted.
pub(crate) fn wiped(length: u64) -> Vec<u8> {
    let payload = length.saturating_sub(HEADER_BYTES as u64);
    let header = Header {
        block: 0,
        length: u32::try_from(payload).unwrap_or(u32::MAX),
        raw: 0,
    };
    let mut frame = Vec::new();
    header.write(WIPED, &mut frame);
    frame.resize(usize::try_from(length).unwrap_or(HEADER_BYTES), 0);
    frame
}

/// Flows on their way into a block.
pub(crate) struct BlockBuilder {
    flows: FlowWriter<Vec<u8>>,
    index: Vec<(u64, u32, u32)>,
    chains: Vec<Arc<[Vec<u8>]>>,
    bytes: u64,
}

impl BlockBuilder {
    pub fn new() -> Self {
        Self {
            flows: FlowWriter::new(Vec::with_capacity(64 * 1024)),
            index: Vec::new(),
            chains: Vec::new(),
            bytes: 0,
        }
    }

    /// Adds a flow. Its server's certificates are taken out of it, and stand in the block.
    pub fn add(&mut self, seq: u64, record: &mut Record) {
        let chain = match &record.server.common.certificates {
            Certificates::Der(chain) if !chain.is_empty() => {
                let known = self
                    .chains
                    .iter()
                    .position(|known| Arc::ptr_eq(known, chain) || known == chain);
                let at = known.unwrap_or_else(|| {
                    self.chains.push(Arc::clone(chain));
                    self.chains.len() - 1
                });
                record.server.common.certificates = Certificates::default();
                u32::try_from(at + 1).unwrap_or(0)
            }
            _ => 0,
        };
        // Writing to memory can't fail.
        let length = self.flows.write(record).unwrap_or(0);
        self.bytes += length;
        self.index
            .push((seq, chain, u32::try_from(length).unwrap_or(0)));
    }

    pub fn is_full(&self) -> bool {
        self.index.len() >= FULL_FLOWS || self.bytes >= FULL_BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The frame.
    ///
    /// # Errors
    /// What zstd says, which is that it has no memory.
    pub fn finish(
        self,
        block: u64,
        compressor: &mut zstd::bulk::Compressor<'_>,
    ) -> Result<Vec<u8>, StoreError> {
        let flows = self.flows.into_inner();
        let mut raw = Vec::with_capacity(flows.len() + self.index.len() * 16 + 4096);
        let put = |raw: &mut Vec<u8>, number: usize| {
            raw.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
        };
        raw.extend_from_slice(&block.to_le_bytes());
        put(&mut raw, self.chains.len());
        for chain in &self.chains {
            put(&mut raw, chain.len());
            for certificate in chain.iter() {
                put(&mut raw, certificate.len());
                raw.extend_from_slice(certificate);
            }
        }
        put(&mut raw, self.index.len());
        for (seq, chain, length) in &self.index {
            raw.extend_from_slice(&seq.to_le_bytes());
            raw.extend_from_slice(&chain.to_le_bytes());
            raw.extend_from_slice(&length.to_le_bytes());
        }
        raw.extend_from_slice(&flows);
        let payload = compressor.compress(&raw)?;
        let header = Header {
            block,
            length: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            raw: u32::try_from(raw.len()).unwrap_or(u32::MAX),
        };
        let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
        header.write(LIVE, &mut frame);
        frame.extend_from_slice(&payload);
        Ok(frame)
    }
}

/// A compressor whose frames have a checksum.
///
/// # Errors
/// What zstd says of the level.
pub(crate) fn compressor(level: i32) -> Result<zstd::bulk::Compressor<'static>, StoreError> {
    let mut compressor = zstd::bulk::Compressor::new(level)?;
    compressor.include_checksum(true)?;
    Ok(compressor)
}

/// A block that was read.
#[derive(Debug)]
pub(crate) struct Block {
    number: u64,
    data: Bytes,
    chains: Vec<Arc<[Vec<u8>]>>,
    /// Sequence number, chain, begin and end in the data.
    index: Vec<(u64, u32, usize, usize)>,
}

impl Block {
    /// Reads a frame, whole.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn parse(frame: &[u8]) -> Result<Self, StoreError> {
        let damaged = |block, problem: &str| StoreError::Damaged {
            block,
            problem: problem.to_owned(),
        };
        let header = Header::parse(frame).ok_or_else(|| damaged(0, "its header is none"))?;
        let number = header.block;
        if number == 0 {
            return Err(damaged(0, "it was deleted"));
        }
        let payload = frame
            .get(HEADER_BYTES..)
            .and_then(|rest| rest.get(..usize::try_from(header.length).ok()?))
            .ok_or_else(|| damaged(number, "it is cut off"))?;
        let mut raw = Vec::new();
        // What the header claims is not reserved before the payload has shown it.
        zstd::stream::read::Decoder::with_buffer(payload)
            .and_then(|decoder| {
                decoder
                    .take(u64::from(header.raw) + 1)
                    .read_to_end(&mut raw)
            })
            .map_err(|error| damaged(number, &error.to_string()))?;
        if raw.len() as u64 != u64::from(header.raw) {
            return Err(damaged(number, "it is of another length"));
        }
        let mut cursor = Cursor(&raw);
        // The header itself has no checksum.
        if cursor.u64() != Some(number) {
            return Err(damaged(number, "it is another block"));
        }
        let parsed = cursor.chains().and_then(|chains| {
            let index = cursor.index(raw.len())?;
            Some((chains, index))
        });
        let (chains, index) = parsed.ok_or_else(|| damaged(number, "its index is none"))?;
        Ok(Self {
            number,
            data: Bytes::from(raw),
            chains,
            index,
        })
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    /// The sequence numbers of its flows, in order.
    pub fn seqs(&self) -> impl Iterator<Item = u64> {
        self.index.iter().map(|(seq, ..)| *seq)
    }

    /// The flow of a sequence number. `None` when it isn't in the block.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn record(&self, seq: u64) -> Result<Option<Record>, StoreError> {
        let Some((_, chain, begin, end)) = self.index.iter().find(|(found, ..)| *found == seq)
        else {
            return Ok(None);
        };
        let damaged = |problem: String| StoreError::Damaged {
            block: self.number,
            problem,
        };
        let flow = self.data.get(*begin..*end).unwrap_or_default();
        let mut record = match FlowReader::new(flow).next() {
            Some(Ok(record)) => record,
            Some(Err(error)) => return Err(damaged(error.to_string())),
            None => return Err(damaged("a flow is empty".to_owned())),
        };
        if let Some(at) = (*chain as usize).checked_sub(1) {
            let chain = self.chains.get(at);
            let chain = chain.ok_or_else(|| damaged("a chain is missing".to_owned()))?;
            record.server.common.certificates = Certificates::Der(Arc::clone(chain));
        }
        Ok(Some(record))
    }
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*bytes))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn chains(&mut self) -> Option<Vec<Arc<[Vec<u8>]>>> {
        let mut chains = Vec::new();
        for _ in 0..self.u32()? {
            let mut chain = Vec::new();
            for _ in 0..self.u32()? {
                chain.push(self.bytes()?.to_vec());
            }
            chains.push(Arc::from(chain));
        }
        Some(chains)
    }

    fn index(&mut self, end: usize) -> Option<Vec<(u64, u32, usize, usize)>> {
        let mut entries = Vec::new();
        for _ in 0..self.u32()? {
            entries.push((self.u64()?, self.u32()?, self.u32()?));
        }
        let mut at = end.checked_sub(self.0.len())?;
        let mut index = Vec::with_capacity(entries.len());
        for (seq, chain, length) in entries {
            let begin = at;
            at = at.checked_add(usize::try_from(length).ok()?)?;
            index.push((seq, chain, begin, at));
        }
        (at == end).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_flow::record::{Body, HttpExchange, HttpRequest};

    fn record(n: u64, chain: &Arc<[Vec<u8>]>) -> Record {
        let request = HttpRequest::new("GET", "https", "example.com", 443, &format!("/{n}"));
        let mut record = Record::http(format!("id-{n}"), HttpExchange::new(request));
        record.as_http_mut().unwrap().request.message.body = Body::kept("abc", 10);
        record.server.common.certificates = Certificates::Der(Arc::clone(chain));
        record
    }

    fn frame() -> (Vec<Record>, Vec<u8>) {
        let chain: Arc<[Vec<u8>]> = Arc::new([vec![1; 1000], vec![2, 3]]);
        let records: Vec<_> = (0..5).map(|n| record(n, &chain)).collect();
        let mut builder = BlockBuilder::new();
        for (n, record) in records.iter().enumerate() {
            builder.add(10 + n as u64, &mut record.clone());
        }
        let frame = builder.finish(7, &mut compressor(1).unwrap()).unwrap();
        (records, frame)
    }

    #[test]
    fn what_was_put_in_comes_out() {
        let (records, frame) = frame();
        let block = Block::parse(&frame).unwrap();
        assert_eq!(block.number(), 7);
        assert_eq!(block.seqs().collect::<Vec<_>>(), [10, 11, 12, 13, 14]);
        for (n, record) in records.iter().enumerate() {
            assert_eq!(block.record(10 + n as u64).unwrap().as_ref(), Some(record));
        }
        assert_eq!(block.record(9).unwrap(), None);
        // The chain is there once.
        assert!(frame.len() < 1000, "{}", frame.len());
    }

    #[test]
    fn no_flipped_byte_changes_a_flow_and_every_cut_is_noticed() {
        let (records, frame) = frame();
        for at in 0..frame.len() {
            // The last four bytes of the header mean nothing.
            if (20..24).contains(&at) {
                continue;
            }
            let mut flipped = frame.clone();
            flipped[at] ^= 0x40;
            // A bit that means nothing to zstd may stand either way.
            if let Ok(block) = Block::parse(&flipped) {
                for (n, record) in records.iter().enumerate() {
                    let found = block.record(10 + n as u64).unwrap();
                    assert_eq!(found.as_ref(), Some(record), "byte {at}");
                }
            }
            assert!(Block::parse(&frame[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_wiped_frame_keeps_its_length() {
        let (_, frame) = frame();
        let wiped = wiped(frame.len() as u64);
        assert_eq!(wiped.len(), frame.len());
        let header = Header::parse(&wiped).unwrap();
        assert_eq!(header.block, 0);
        assert_eq!(header.frame_bytes(), frame.len() as u64);
        assert!(Block::parse(&wiped).is_err());
    }
}
