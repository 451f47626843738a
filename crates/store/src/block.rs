//! Blocks: some flows, compressed together, as one frame of a segment.
//!
//! A frame is a header of 32 bytes and two payloads, each a zstd frame with a checksum: what lists need, and bodies. The
//! header: `TGB2`, then little-endian the length of the first payload and of what it expands to, those of the second,
//! the block's number, the seal. A frame whose block was deleted begins with `TGX2`, and its payloads are zeros.
//!
//! The [`Seal`] ties a frame to its segment and its place there: a recorded body may hold a frame byte for byte, and is
//! none where damage has to be passed over.
//!
//! What the first payload expands to (`n` is a number in LEB128, `sized` bytes behind their length as such a number):
//!
//! ```text
//! u64 the block's number
//! n certificate chains, and for each: n certificates, and for each: sized DER
//! n links, and for each: u8 unconnected, n chain + 1 (0: none), sized flow file
//! n texts, and for each: n length; then the texts
//! n bodies, and for each: n length; they are the second payload
//! n flows, and for each: n sequence number, counted from the one before, and
//!   u8 0, n chain + 1, n body, sized summary: the body is a flow file of mitmproxy (version 21) with one flow
//!   u8 1, an entry, whose texts and bodies are numbers
//! ```
//!
//! Traffic repeats itself: what stands in many flows of a block stands in it once.

use std::hash::BuildHasher;
use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use tollgate_flow::FlowId;
use tollgate_flow::filter::Filter;
use tollgate_flow::mitm::{FlowReader, FlowWriter};
use tollgate_flow::record::{Certificates, Record, Timestamp};
use zstd::zstd_safe::{CParameter, compress_bound};

use crate::codec::{Cursor, put_number, put_sized};
use crate::entry::{Entry, Whole};
use crate::error::StoreError;
use crate::link::{Context, WrittenLink};
use crate::peek;
use crate::summary::{Summary, micros};
use crate::words::WordSet;

/// The header of a frame.
pub(crate) const HEADER_BYTES: usize = 32;

pub(crate) const LIVE: &[u8; 4] = b"TGB2";
pub(crate) const WIPED: &[u8; 4] = b"TGX2";

/// No payload expands to more: a flow is bounded by its capture limits, and a block ends soon after [`FULL_BYTES`].
const MAX_RAW_BYTES: u32 = 1 << 30;

/// A block with so many flows is full.
const FULL_FLOWS: usize = 1024;

/// A block with so many bytes is full.
pub(crate) const FULL_BYTES: usize = 256 * 1024;

/// The memory of each kind that is kept from one block to the next: enough for a body of the usual limit.
const KEPT_BYTES: usize = 4 << 20;

const FILE: u8 = 0;
const ENTRY: u8 = 1;

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The number of the block; 0 for one that was deleted.
    pub block: u64,
    /// The length of the first payload, and of what it expands to.
    heads: [u32; 2],
    /// The same of the second.
    bodies: [u32; 2],
}

impl Header {
    /// Reads one. `None` when the bytes are none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let magic = cursor.take(4)?;
        let header = Self {
            heads: [cursor.u32()?, cursor.u32()?],
            bodies: [cursor.u32()?, cursor.u32()?],
            block: cursor.u64()?,
        };
        cursor.u32()?;
        let [.., heads] = header.heads;
        let [.., bodies] = header.bodies;
        if magic == LIVE {
            (heads.max(bodies) <= MAX_RAW_BYTES).then_some(header)
        } else {
            (magic == WIPED).then_some(Self { block: 0, ..header })
        }
    }

    /// The length of header and first payload.
    pub fn heads_bytes(self) -> u64 {
        let [length, _] = self.heads;
        u64::from(length) + HEADER_BYTES as u64
    }

    /// The whole length of the frame.
    pub fn frame_bytes(self) -> u64 {
        let [length, _] = self.bodies;
        self.heads_bytes() + u64::from(length)
    }

    fn write(self, magic: &[u8; 4], out: &mut Vec<u8>) {
        out.extend_from_slice(magic);
        for number in self.heads.into_iter().chain(self.bodies) {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.block.to_le_bytes());
        // Its place gives it its seal.
        out.extend_from_slice(&[0; 4]);
    }
}

/// What a segment's frames have in their headers, so that nothing else is taken for one of them.
///
/// It is a matter of recognition, not of trust: who can read a segment can compute it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    /// A number of the segment's own, which nobody else knows, is mixed with the frame's place and header.
    Salt(u64),
    /// A segment of the time before seals: zeros.
    Zero,
}

impl Seal {
    /// Puts the seal of a frame at a place into its header.
    pub fn put(self, offset: u64, frame: &mut [u8]) {
        let Some((header, _)) = frame.split_first_chunk_mut::<HEADER_BYTES>() else {
            return;
        };
        let (rest, seal) = header.split_at_mut(HEADER_BYTES - 4);
        seal.copy_from_slice(&self.of(offset, rest).to_le_bytes());
    }

    /// Whether a header has the seal of this place.
    pub fn is_on(self, offset: u64, header: &[u8]) -> bool {
        header
            .split_at_checked(HEADER_BYTES - 4)
            .is_some_and(|(rest, seal)| seal == self.of(offset, rest).to_le_bytes())
    }

    fn of(self, offset: u64, header: &[u8]) -> u32 {
        let Self::Salt(salt) = self else { return 0 };
        let mut state = salt;
        // The steps of SplitMix64, for each part.
        let mut mix = |part: u64| {
            state = (state ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
            state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            state ^= state >> 31;
        };
        mix(offset);
        for word in header.chunks(8) {
            mix(word
                .iter()
                .rev()
                .fold(0, |all, byte| all << 8 | u64::from(*byte)));
        }
        (state >> 32) as u32
    }
}

/// What overwrites a frame of `length` bytes when its block is deleted.
pub(crate) fn wiped(length: u64) -> Vec<u8> {
    let payload = length.saturating_sub(HEADER_BYTES as u64);
    let header = Header {
        block: 0,
        heads: [u32::try_from(payload).unwrap_or(u32::MAX), 0],
        bodies: [0, 0],
    };
    let mut frame = Vec::new();
    header.write(WIPED, &mut frame);
    frame.resize(usize::try_from(length).unwrap_or(HEADER_BYTES), 0);
    frame
}

/// Different texts, each once, in the order in which they came.
#[derive(Default)]
struct Table {
    data: Vec<u8>,
    spans: Vec<(usize, usize)>,
    known: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Table {
    fn clear(&mut self) {
        self.data.clear();
        self.data.shrink_to(KEPT_BYTES);
        self.spans.clear();
        self.known.clear();
    }

    /// The number of a text.
    fn put(&mut self, text: &[u8]) -> u32 {
        let hash = self.hasher.hash_one(text);
        let found = self.known.find(hash, |at| self.get(*at) == text);
        if let Some(at) = found {
            return *at;
        }
        let at = self.put_new(text);
        let (data, spans, hasher) = (&self.data, &self.spans, &self.hasher);
        self.known.insert_unique(hash, at, |at| {
            let span = spans.get(*at as usize);
            let text = span.and_then(|(begin, end)| data.get(*begin..*end));
            hasher.hash_one(text.unwrap_or_default())
        });
        at
    }

    /// The number of a text that is unlike all others.
    fn put_new(&mut self, text: &[u8]) -> u32 {
        let begin = self.data.len();
        self.data.extend_from_slice(text);
        self.spans.push((begin, self.data.len()));
        u32::try_from(self.spans.len() - 1).unwrap_or(u32::MAX)
    }

    fn get(&self, at: u32) -> &[u8] {
        let span = self.spans.get(at as usize);
        let text = span.and_then(|(begin, end)| self.data.get(*begin..*end));
        text.unwrap_or_default()
    }

    fn write_lengths(&self, out: &mut Vec<u8>) {
        put_number(out, self.spans.len() as u64);
        for (begin, end) in &self.spans {
            put_number(out, (end - begin) as u64);
        }
    }
}

/// Flows on their way into a block.
pub(crate) struct BlockBuilder {
    chains: Vec<Arc<[Vec<u8>]>>,
    links: Vec<Arc<WrittenLink>>,
    texts: Table,
    bodies: Table,
    flows: Vec<u8>,
    known_links: HashMap<usize, u32>,
    files: FlowWriter<io::Sink>,
    /// The least and the greatest id of the entries.
    ids: Option<(FlowId, FlowId)>,
    words: WordSet,
    raw: Vec<u8>,
    facts: BlockFacts,
    seqs: Vec<u64>,
}

/// What the database knows of a block's flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockFacts {
    pub flows: u64,
    /// The numbers of its first and last flow.
    pub first: u64,
    pub last: u64,
    /// When its oldest and its newest flow were made, in microseconds since 1970.
    pub oldest: i64,
    pub newest: i64,
    /// The least and the greatest of its ids.
    pub least_id: String,
    pub greatest_id: String,
}

impl BlockFacts {
    fn add(&mut self, seq: u64, created: i64) {
        if self.flows == 0 {
            self.first = seq;
            self.oldest = created;
            self.newest = created;
        }
        self.flows += 1;
        self.last = seq;
        self.oldest = self.oldest.min(created);
        self.newest = self.newest.max(created);
    }

    fn add_id(&mut self, id: String) {
        if self.least_id.is_empty() || id < self.least_id {
            self.least_id.clone_from(&id);
        }
        if id > self.greatest_id {
            self.greatest_id = id;
        }
    }
}

/// A block that is ready to be written.
#[derive(Debug)]
pub(crate) struct Built {
    pub block: u64,
    pub frame: Vec<u8>,
    /// The length of its header and first payload.
    pub heads: u64,
    pub facts: BlockFacts,
    /// What words they may have.
    pub words: Vec<u8>,
    /// The numbers of its flows.
    pub seqs: Vec<u64>,
}

impl BlockBuilder {
    pub fn new() -> Self {
        Self {
            chains: Vec::new(),
            links: Vec::new(),
            known_links: HashMap::new(),
            texts: Table::default(),
            bodies: Table::default(),
            flows: Vec::new(),
            files: FlowWriter::new(io::sink()),
            ids: None,
            words: WordSet::default(),
            raw: Vec::new(),
            facts: BlockFacts::default(),
            seqs: Vec::new(),
        }
    }

    fn clear(&mut self) {
        self.chains.clear();
        self.links.clear();
        self.known_links.clear();
        self.texts.clear();
        self.bodies.clear();
        self.flows.clear();
        self.flows.shrink_to(KEPT_BYTES);
        self.ids = None;
        self.words.clear();
        self.raw.clear();
        self.raw.shrink_to(KEPT_BYTES);
        self.facts = BlockFacts::default();
        self.seqs.clear();
    }

    /// Adds a flow. Its server's certificates are taken out of it, and stand in the block.
    pub fn add_record(&mut self, seq: u64, mut record: Record) {
        let summary = Summary::of(seq, 0, &record);
        self.words.add(&record);
        let chain = match std::mem::take(&mut record.server.common.certificates) {
            Certificates::Der(chain) if !chain.is_empty() => self.chain(Some(&chain)),
            others => {
                record.server.common.certificates = others;
                0
            }
        };
        // Writing to nowhere can't fail.
        let _ = self.files.write(&record);
        let body = self.bodies.put_new(self.files.last());
        self.begin(seq, micros(record.created));
        self.facts.add_id(record.id);
        self.flows.push(FILE);
        put_number(&mut self.flows, chain);
        put_number(&mut self.flows, body.into());
        let mut row = Vec::new();
        summary.write(&mut row);
        put_sized(&mut self.flows, &row);
    }

    /// Adds a flow that this link carried.
    pub fn add_entry(&mut self, seq: u64, entry: &Entry<&[u8], &[u8]>, link: &Arc<WrittenLink>) {
        let number = self.link(link);
        let (texts, bodies) = (&mut self.texts, &mut self.bodies);
        let numbered = entry.map(&mut |text| Some(texts.put(text)), &mut |body| {
            Some(bodies.put(body))
        });
        let Some(numbered) = numbered else { return };
        let numbered = Entry {
            link: number,
            ..numbered
        };
        self.words.add_entry(entry, &numbered, link);
        self.begin(seq, micros(Timestamp::new(entry.started)));
        self.ids = Some(match self.ids {
            None => (entry.id, entry.id),
            Some((least, greatest)) => (least.min(entry.id), greatest.max(entry.id)),
        });
        self.flows.push(ENTRY);
        numbered.write(
            &mut self.flows,
            &mut |out, text| put_number(out, (*text).into()),
            &mut |out, body| put_number(out, (*body).into()),
        );
    }

    fn begin(&mut self, seq: u64, created: i64) {
        put_number(&mut self.flows, seq.wrapping_sub(self.facts.last));
        self.facts.add(seq, created);
        self.seqs.push(seq);
    }

    /// The number of a chain, from 1; 0 for none.
    fn chain(&mut self, chain: Option<&Arc<[Vec<u8>]>>) -> u64 {
        let Some(chain) = chain else { return 0 };
        let known = |known: &Arc<[Vec<u8>]>| Arc::ptr_eq(known, chain) || known == chain;
        let at = self.chains.iter().position(known).unwrap_or_else(|| {
            self.chains.push(Arc::clone(chain));
            self.chains.len() - 1
        });
        at as u64 + 1
    }

    fn link(&mut self, link: &Arc<WrittenLink>) -> u32 {
        let next = u32::try_from(self.links.len()).unwrap_or(u32::MAX);
        // As long as the builder holds it, nothing else has its address.
        let at = self.known_links.entry(Arc::as_ptr(link) as usize);
        *at.or_insert_with(|| {
            self.links.push(Arc::clone(link));
            next
        })
    }

    pub fn is_full(&self) -> bool {
        let bytes = self.texts.data.len() + self.bodies.data.len() + self.flows.len();
        self.seqs.len() >= FULL_FLOWS || bytes >= FULL_BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    /// The block; the next one can be begun.
    ///
    /// # Errors
    /// What zstd says, which is that it has no memory.
    pub fn finish(&mut self, block: u64, compressor: &mut Compressor) -> Result<Built, StoreError> {
        let links = std::mem::take(&mut self.links);
        let chains: Vec<u64> = links
            .iter()
            .map(|link| self.chain(link.chain.as_ref()))
            .collect();
        let mut raw = std::mem::take(&mut self.raw);
        raw.extend_from_slice(&block.to_le_bytes());
        put_number(&mut raw, self.chains.len() as u64);
        for chain in &self.chains {
            put_number(&mut raw, chain.len() as u64);
            for certificate in chain.iter() {
                put_sized(&mut raw, certificate);
            }
        }
        put_number(&mut raw, links.len() as u64);
        for (link, chain) in links.iter().zip(chains) {
            raw.push(link.is_unconnected.into());
            put_number(&mut raw, chain);
            put_sized(&mut raw, &link.file);
        }
        self.texts.write_lengths(&mut raw);
        raw.extend_from_slice(&self.texts.data);
        self.bodies.write_lengths(&mut raw);
        put_number(&mut raw, self.facts.flows);
        raw.extend_from_slice(&self.flows);

        let mut frame = Vec::with_capacity(HEADER_BYTES + (raw.len() + self.bodies.data.len()) / 2);
        frame.resize(HEADER_BYTES, 0);
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let header = Header {
            block,
            heads: [compressor.heads(&raw, &mut frame)?, length(&raw)],
            bodies: [
                compressor.bodies(&self.bodies.data, &mut frame)?,
                length(&self.bodies.data),
            ],
        };
        let mut begin = Vec::with_capacity(HEADER_BYTES);
        header.write(LIVE, &mut begin);
        if let Some(slot) = frame.get_mut(..HEADER_BYTES) {
            slot.copy_from_slice(&begin);
        }
        let mut facts = std::mem::take(&mut self.facts);
        if let Some((least, greatest)) = self.ids {
            facts.add_id(least.to_string());
            facts.add_id(greatest.to_string());
        }
        let built = Built {
            block,
            heads: header.heads_bytes(),
            frame,
            facts,
            words: self.words.take_filter(),
            seqs: std::mem::take(&mut self.seqs),
        };
        self.raw = raw;
        self.clear();
        Ok(built)
    }
}

/// Compresses payloads, with a checksum.
///
/// zstd's level 1 spends most of its time on short repetitions. What repeats itself in traffic is long, so that at this
/// level shorter runs than seven bytes aren't looked for: blocks become up to a tenth larger, and take two thirds of the
/// time; the smaller table leaves the workers more of their cache. Where looking for repetitions gains little at all, as in
/// numbers, next to none is done.
pub(crate) struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    adapts: bool,
    /// How many bodies are compressed before it is found out again what helps.
    until_trial: u32,
    search: u32,
    compressed: Vec<u8>,
}

/// The sizes of zstd's table of what was seen: for most, and where repetitions hardly matter; logarithms.
const SEARCH: u32 = 12;
const HARDLY_SEARCH: u32 = 6;

/// How many blocks go by between two trials.
const BETWEEN_TRIALS: u32 = 31;

/// Smaller ones tell nothing about those to come.
const TRIAL_BYTES: usize = 64 * 1024;

impl Compressor {
    /// # Errors
    /// What zstd says of the level.
    pub fn new(level: i32) -> Result<Self, StoreError> {
        let mut zstd = zstd::bulk::Compressor::new(level)?;
        zstd.include_checksum(true)?;
        let adapts = level == 1;
        if adapts {
            zstd.set_parameter(CParameter::MinMatch(7))?;
        }
        Ok(Self {
            zstd,
            adapts,
            until_trial: 0,
            search: SEARCH,
            compressed: Vec::new(),
        })
    }

    /// Appends what lists need; answers how long it became.
    fn heads(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<u32, StoreError> {
        self.compress(data, SEARCH)?;
        self.append(out)
    }

    /// The same for bodies.
    fn bodies(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<u32, StoreError> {
        if !self.adapts || data.len() < TRIAL_BYTES || self.until_trial > 0 {
            self.until_trial = self.until_trial.saturating_sub(1);
            self.compress(data, self.search)?;
            return self.append(out);
        }
        self.until_trial = BETWEEN_TRIALS;
        self.compress(data, HARDLY_SEARCH)?;
        let hardly = self.compressed.len();
        self.compress(data, SEARCH)?;
        self.search = match hardly <= self.compressed.len() / 10 * 11 {
            true => HARDLY_SEARCH,
            false => SEARCH,
        };
        self.append(out)
    }

    fn compress(&mut self, data: &[u8], search: u32) -> Result<(), StoreError> {
        if self.adapts {
            self.zstd.set_parameter(CParameter::HashLog(search))?;
        }
        self.compressed.clear();
        self.compressed.reserve(compress_bound(data.len()));
        self.zstd.compress_to_buffer(data, &mut self.compressed)?;
        Ok(())
    }

    fn append(&mut self, out: &mut Vec<u8>) -> Result<u32, StoreError> {
        out.extend_from_slice(&self.compressed);
        let length = u32::try_from(self.compressed.len()).unwrap_or(u32::MAX);
        self.compressed.clear();
        self.compressed.shrink_to(KEPT_BYTES);
        Ok(length)
    }
}

/// A block that was read: what lists need, and bodies where they were read, too.
#[derive(Debug)]
pub(crate) struct Block {
    number: u64,
    heads: Vec<u8>,
    bodies: Option<Vec<u8>>,
    chains: Vec<Arc<[Vec<u8>]>>,
    links: Vec<StoredLink>,
    texts: Vec<Span>,
    body_spans: Vec<Span>,
    /// Sequence numbers, and where the flows stand.
    flows: Vec<(u64, Span)>,
}

/// Begin and end.
type Span = (usize, usize);

#[derive(Debug)]
struct StoredLink {
    is_unconnected: bool,
    chain: Option<Arc<[Vec<u8>]>>,
    file: Span,
    context: OnceLock<Option<Context>>,
}

/// A flow as it stands in a block.
#[expect(
    clippy::large_enum_variant,
    reason = "most are entries, and none is kept"
)]
enum Stored<'a> {
    File {
        chain: Option<&'a Arc<[Vec<u8>]>>,
        body: usize,
        summary: &'a [u8],
    },
    Entry(Entry<&'a [u8], usize>),
}

impl Block {
    /// Reads a frame, whole or as far as the first payload.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn parse(frame: &[u8]) -> Result<Self, StoreError> {
        let header = Header::parse(frame).ok_or_else(|| damaged(0, "its header is none"))?;
        let number = header.block;
        if number == 0 {
            return Err(damaged(0, "it was deleted"));
        }
        let length = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let (heads_end, end) = (length(header.heads_bytes()), length(header.frame_bytes()));
        let [_, heads_raw] = header.heads;
        let [_, bodies_raw] = header.bodies;
        let cut_off = || damaged(number, "it is cut off");
        let heads = frame.get(HEADER_BYTES..heads_end).ok_or_else(cut_off)?;
        let heads = expand(heads, heads_raw).map_err(|problem| damaged(number, &problem))?;
        let bodies = match frame.len() {
            length if length == heads_end && end > heads_end => None,
            _ => {
                let bodies = frame.get(heads_end..end).ok_or_else(cut_off)?;
                Some(expand(bodies, bodies_raw).map_err(|problem| damaged(number, &problem))?)
            }
        };
        // The header itself has no checksum.
        if Cursor(&heads).u64() != Some(number) {
            return Err(damaged(number, "it is another block"));
        }
        let mut block = Self {
            number,
            heads: Vec::new(),
            bodies,
            chains: Vec::new(),
            links: Vec::new(),
            texts: Vec::new(),
            body_spans: Vec::new(),
            flows: Vec::new(),
        };
        block
            .index(&heads, bodies_raw as usize)
            .ok_or_else(|| damaged(number, "its index is none"))?;
        block.heads = heads;
        Ok(block)
    }

    fn index(&mut self, heads: &[u8], bodies: usize) -> Option<()> {
        let mut cursor = Cursor(heads);
        cursor.u64()?;
        for _ in 0..cursor.count()? {
            let mut chain = Vec::new();
            for _ in 0..cursor.count()? {
                chain.push(cursor.sized()?.to_vec());
            }
            self.chains.push(Arc::from(chain));
        }
        for _ in 0..cursor.count()? {
            let is_unconnected = cursor.u8()? != 0;
            let chain = chain_of(&self.chains, cursor.count()?)?.cloned();
            let length = cursor.sized()?.len();
            let end = heads.len() - cursor.0.len();
            self.links.push(StoredLink {
                is_unconnected,
                chain,
                file: (end - length, end),
                context: OnceLock::new(),
            });
        }
        let lengths = lengths(&mut cursor)?;
        let begin = heads.len() - cursor.0.len();
        self.texts = spans(lengths, begin)?;
        let end = self.texts.last().map_or(begin, |(_, end)| *end);
        cursor.take(end - begin)?;
        self.body_spans = spans(self::lengths(&mut cursor)?, 0)?;
        if self.body_spans.last().map_or(0, |(_, end)| *end) != bodies {
            return None;
        }
        let mut seq = 0_u64;
        for _ in 0..cursor.count()? {
            seq = seq.checked_add(cursor.number()?)?;
            let begin = heads.len() - cursor.0.len();
            let mut flow = Cursor(cursor.0);
            self.stored(&mut flow, None)?;
            let end = heads.len() - flow.0.len();
            cursor.take(end - begin)?;
            self.flows.push((seq, (begin, end)));
        }
        cursor.is_empty().then_some(())
    }

    /// Reads a flow; without `heads` its texts are empty.
    fn stored<'a>(
        &'a self,
        cursor: &mut Cursor<'a>,
        heads: Option<&'a [u8]>,
    ) -> Option<Stored<'a>> {
        match cursor.u8()? {
            FILE => {
                let chain = chain_of(&self.chains, cursor.count()?)?;
                let body = cursor.count()?;
                self.body_spans.get(body)?;
                Some(Stored::File {
                    chain,
                    body,
                    summary: cursor.sized()?,
                })
            }
            ENTRY => {
                let entry = Entry::read(
                    cursor,
                    &mut |cursor| {
                        let (begin, end) = self.texts.get(cursor.count()?)?;
                        match heads {
                            None => Some(&[][..]),
                            Some(heads) => heads.get(*begin..*end),
                        }
                    },
                    &mut |cursor| {
                        let body = cursor.count()?;
                        self.body_spans.get(body).map(|_| body)
                    },
                )?;
                self.links.get(entry.link as usize)?;
                Some(Stored::Entry(entry))
            }
            _ => None,
        }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether its bodies were read, too.
    pub fn has_bodies(&self) -> bool {
        self.bodies.is_some()
    }

    /// What the database is to know of it, with the filter of its words.
    pub fn facts(&self) -> (BlockFacts, Vec<u8>) {
        let mut facts = BlockFacts::default();
        let mut words = WordSet::default();
        for seq in self.seqs() {
            // What can't be read is as good as lost.
            if let Ok(Some(record)) = self.record(seq) {
                facts.add(seq, micros(record.created));
                words.add(&record);
                facts.add_id(record.id);
            }
        }
        (facts, words.take_filter())
    }

    /// The newest flow whose id is one that is wanted.
    pub fn find_id(&self, wanted: &dyn Fn(&str) -> bool) -> Option<u64> {
        let is_it = |seq: &u64| match self.find(*seq) {
            Ok(Some(Stored::Entry(entry))) => wanted(&entry.id.to_string()),
            Ok(Some(Stored::File { summary, .. })) => {
                Summary::read(summary, *seq, self.number).is_some_and(|row| wanted(&row.id))
            }
            _ => false,
        };
        self.seqs().rev().find(is_it)
    }

    /// Whether it has a flow.
    pub fn contains(&self, seq: u64) -> bool {
        self.flows
            .binary_search_by_key(&seq, |(seq, _)| *seq)
            .is_ok()
    }

    /// The sequence numbers of its flows, in order.
    pub fn seqs(&self) -> impl DoubleEndedIterator<Item = u64> {
        self.flows.iter().map(|(seq, _)| *seq)
    }

    /// What a list shows of a flow. `None` when it isn't in the block.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn summary(&self, seq: u64) -> Result<Option<Summary>, StoreError> {
        let Some(stored) = self.find(seq)? else {
            return Ok(None);
        };
        let summary = match stored {
            Stored::File { summary, .. } => Summary::read(summary, seq, self.number),
            Stored::Entry(entry) => self.context(entry.link).and_then(|context| {
                let sketch = entry.sketch(context, |body| self.body_size(*body))?;
                let answer = entry.response.as_ref();
                let cut = answer.and_then(|answer| answer.message.cut_from);
                let mut summary = Summary::of(seq, self.number, &sketch);
                summary.is_cut = entry.request.cut_from.is_some() || cut.is_some();
                Some(summary)
            }),
        };
        match summary {
            Some(summary) => Ok(Some(summary)),
            None => Err(damaged(self.number, "a flow can't be read")),
        }
    }

    /// Whether a filter means a flow; `None` when only the whole flow can tell.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn matches(&self, seq: u64, filter: &Filter) -> Result<Option<bool>, StoreError> {
        match self.find(seq)? {
            None => Ok(Some(false)),
            Some(Stored::File { summary, .. }) => match Summary::read(summary, seq, self.number) {
                Some(row) => Ok(row.matches(filter)),
                None => Err(damaged(self.number, "a flow can't be read")),
            },
            Some(Stored::Entry(entry)) => {
                let context = || self.context(entry.link);
                let size = |body| self.body_size(body);
                Ok(peek::matches(&entry, &context, &size, filter))
            }
        }
    }

    /// The flow of a sequence number. `None` when it isn't in the block.
    ///
    /// # Errors
    /// [`StoreError::Damaged`]; also where its bodies were not read.
    pub fn record(&self, seq: u64) -> Result<Option<Record>, StoreError> {
        match self.find(seq)? {
            None => Ok(None),
            Some(Stored::File { chain, body, .. }) => {
                let flow = self.body(body).unwrap_or_default();
                let mut record = match FlowReader::new(flow).next() {
                    Some(Ok(record)) => record,
                    Some(Err(error)) => return Err(damaged(self.number, &error.to_string())),
                    None => return Err(damaged(self.number, "a flow is empty")),
                };
                if let Some(chain) = chain {
                    record.server.common.certificates = Certificates::Der(Arc::clone(chain));
                }
                Ok(Some(record))
            }
            Some(Stored::Entry(entry)) => {
                let record = self
                    .whole(&entry)
                    .and_then(|(entry, context)| entry.record(context));
                match record {
                    Some(record) => Ok(Some(record)),
                    None => Err(damaged(self.number, "a flow can't be read")),
                }
            }
        }
    }

    /// Puts a flow into another block.
    ///
    /// # Errors
    /// [`StoreError::Damaged`]; also where its bodies were not read.
    pub fn copy(
        &self,
        seq: u64,
        links: &mut CopiedLinks,
        into: &mut BlockBuilder,
    ) -> Result<(), StoreError> {
        match self.find(seq)? {
            Some(Stored::Entry(entry)) => {
                let (entry, context) = self
                    .whole(&entry)
                    .ok_or_else(|| damaged(self.number, "a flow can't be read"))?;
                let link = links.0.entry(entry.link);
                let link = link.or_insert_with(|| Arc::new(context.clone().write()));
                into.add_entry(seq, &entry, link);
            }
            _ => {
                if let Some(record) = self.record(seq)? {
                    into.add_record(seq, record);
                }
            }
        }
        Ok(())
    }

    fn whole<'a>(&'a self, entry: &Entry<&'a [u8], usize>) -> Option<(Whole<'a>, &'a Context)> {
        let whole = entry.map(&mut |text| Some(*text), &mut |body| self.body(*body))?;
        Some((whole, self.context(entry.link)?))
    }

    fn body(&self, at: usize) -> Option<&[u8]> {
        let (begin, end) = self.body_spans.get(at)?;
        self.bodies.as_ref()?.get(*begin..*end)
    }

    fn body_size(&self, at: usize) -> u64 {
        let span = self.body_spans.get(at);
        span.map_or(0, |(begin, end)| (end - begin) as u64)
    }

    fn context(&self, link: u32) -> Option<&Context> {
        let link = self.links.get(link as usize)?;
        let read = || {
            let (begin, end) = link.file;
            let file = self.heads.get(begin..end)?;
            Context::read(link.is_unconnected, link.chain.clone(), file)
        };
        link.context.get_or_init(read).as_ref()
    }

    fn find(&self, seq: u64) -> Result<Option<Stored<'_>>, StoreError> {
        let Ok(at) = self.flows.binary_search_by_key(&seq, |(seq, _)| *seq) else {
            return Ok(None);
        };
        let stored = self.flows.get(at).and_then(|(_, (begin, end))| {
            let mut cursor = Cursor(self.heads.get(*begin..*end)?);
            self.stored(&mut cursor, Some(&self.heads))
        });
        match stored {
            Some(stored) => Ok(Some(stored)),
            None => Err(damaged(self.number, "a flow can't be read")),
        }
    }
}

/// The links of a block of which flows are copied.
#[derive(Debug, Default)]
pub(crate) struct CopiedLinks(HashMap<u32, Arc<WrittenLink>>);

fn damaged(block: u64, problem: &str) -> StoreError {
    StoreError::Damaged {
        block,
        problem: problem.to_owned(),
    }
}

fn expand(payload: &[u8], raw: u32) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    // What the header claims is not reserved before the payload has shown it.
    zstd::stream::read::Decoder::with_buffer(payload)
        .and_then(|decoder| decoder.take(u64::from(raw) + 1).read_to_end(&mut out))
        .map_err(|error| error.to_string())?;
    if out.len() as u64 != u64::from(raw) {
        return Err("it is of another length".to_owned());
    }
    Ok(out)
}

/// The chain of a number, from 1. The outer `None`: there is none of this number.
fn chain_of(chains: &[Arc<[Vec<u8>]>], number: usize) -> Option<Option<&Arc<[Vec<u8>]>>> {
    match number.checked_sub(1) {
        None => Some(None),
        Some(at) => chains.get(at).map(Some),
    }
}

fn lengths(cursor: &mut Cursor<'_>) -> Option<Vec<usize>> {
    let mut lengths = Vec::new();
    for _ in 0..cursor.count()? {
        lengths.push(cursor.count()?);
    }
    Some(lengths)
}

fn spans(lengths: Vec<usize>, begin: usize) -> Option<Vec<Span>> {
    let mut at = begin;
    let mut spans = Vec::with_capacity(lengths.len());
    for length in lengths {
        let end = at.checked_add(length)?;
        spans.push((at, end));
        at = end;
    }
    Some(spans)
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
            builder.add_record(10 + n as u64, record.clone());
        }
        let built = builder.finish(7, &mut Compressor::new(1).unwrap()).unwrap();
        (records, built.frame)
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
            if (28..32).contains(&at) {
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
            let heads = Header::parse(&frame).unwrap().heads_bytes();
            match Block::parse(&frame[..at]) {
                Ok(block) if at as u64 == heads => {
                    assert!(!block.has_bodies());
                    assert!(block.summary(10).unwrap().is_some());
                    assert!(block.record(10).is_err());
                }
                result => assert!(result.is_err(), "cut at {at}"),
            }
        }
    }

    #[test]
    fn a_seal_belongs_to_one_segment_one_place_and_one_header() {
        let (_, mut frame) = frame();
        let seal = Seal::Salt(0x12_3456_789a);
        seal.put(8, &mut frame);
        assert!(seal.is_on(8, &frame[..HEADER_BYTES]));
        assert!(!seal.is_on(9, &frame[..HEADER_BYTES]));
        assert!(!Seal::Salt(0x12_3456_789b).is_on(8, &frame[..HEADER_BYTES]));
        assert!(!Seal::Zero.is_on(8, &frame[..HEADER_BYTES]));
        for at in 0..HEADER_BYTES {
            let mut header = frame[..HEADER_BYTES].to_vec();
            header[at] ^= 1;
            assert!(!seal.is_on(8, &header), "byte {at}");
        }
        assert_eq!(Block::parse(&frame).unwrap().number(), 7);
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
