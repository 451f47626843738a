//! Words of flows: what full-text search finds.
//!
//! A word is a run of ASCII letters and digits, and of anything beyond ASCII; case of ASCII letters does not matter.
//! The database has a filter for each block, which says what words its flows may have; the flows say whether they do.

use std::ops::ControlFlow;

use bytes::Bytes;
use hashbrown::HashSet;
use tollgate_flow::record::{Content, HeaderFields, HttpMessage, Record};
use tollgate_wire::coding::{Decoder, OutputLimit};

use crate::entry::{self, Entry, Fields, Line};
use crate::link::WrittenLink;

/// How much of a body is searched, decoded.
pub const BODY_BYTES: usize = 16 * 1024;

/// How many messages of a flow are searched.
const MESSAGES: usize = 256;

/// The most of a word that counts.
const WORD_BYTES: usize = 64;

/// The words of a search: a flow must have them all.
///
/// A word that ends in `*` stands for all that begin so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words(Vec<Word>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    text: Vec<u8>,
    prefix: bool,
}

impl Words {
    /// Takes a text apart. `None` when there is no word in it.
    pub fn new(text: &str) -> Option<Self> {
        let mut words: Vec<Word> = Vec::new();
        for part in text.split_whitespace() {
            let before = words.len();
            let _ = each_word(part.as_bytes(), &mut |word| {
                words.push(Word {
                    text: word.to_vec(),
                    prefix: false,
                });
                ControlFlow::Continue(())
            });
            if part.ends_with('*')
                && words.len() > before
                && let Some(last) = words.last_mut()
            {
                last.prefix = true;
            }
        }
        (!words.is_empty()).then_some(Self(words))
    }

    /// Whether a block with this filter may have them all. Most that don't are told from those that do.
    pub(crate) fn may_be_in(&self, filter: &[u8]) -> bool {
        self.0.iter().all(|word| {
            let text = &word.text[..];
            let whole = has(filter, hash_of(text));
            if !word.prefix {
                return whole;
            }
            let known = BEGINNINGS.into_iter().rev();
            let known = known.filter_map(|length| text.get(..length)).next();
            match known {
                // One letter says too little.
                None => true,
                Some(beginning) => {
                    has(filter, hash_of(beginning) ^ BEGINNING)
                        || (whole && beginning.len() == text.len())
                }
            }
        })
    }

    /// Whether a flow has them all.
    pub fn matches(&self, record: &Record) -> bool {
        let mut missing: Vec<&Word> = self.0.iter().collect();
        let _ = each_text(record, &mut |text| {
            each_word(text, &mut |word| {
                missing.retain(|wanted| {
                    if wanted.prefix {
                        !word.starts_with(&wanted.text)
                    } else {
                        word != wanted.text
                    }
                });
                if missing.is_empty() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
        });
        missing.is_empty()
    }
}

/// Buckets of the filter while a block is built: 64 KiB. A power of two.
const MOST_BUCKETS: usize = 4096;

/// How full a filter becomes, in bits of a hundred, before it is not made smaller any more. With six bits for a word,
/// about two of a thousand blocks are read in vain for a word that they don't have.
const FULL_PERCENT: usize = 30;

/// Longer words that were met lately, up to [`SHORT`] bytes, by their hashes. A power of two.
const RECENT: usize = 1024;

/// Words of up to three ASCII letters and digits, which are most words of many bodies, have a bit each until the block is
/// complete: six bits for each byte.
const TINY: usize = 3;
const TINY_WORDS: usize = (1 << (6 * TINY)) / 64;

/// Words of so many bytes at most have hashes of their own.
const SHORT: usize = 8;

/// The beginnings of longer words that are in the filter, too, by their lengths.
const BEGINNINGS: [usize; 3] = [2, 4, 8];

/// What makes a beginning another thing than the word that is spelt so.
const BEGINNING: u64 = 0x2545_f491_4f6c_dd1d;

/// What a word sets: three bits in either half.
type Bucket = [u64; 2];

/// So many bits are those of a word.
const WORD_BITS: usize = 6;

/// The words of a block of flows, as a filter: it tells blocks that lack a word from those that may have it.
///
/// It is a Bloom filter whose bits for a word stand together in a bucket of 16 bytes. It is built in its largest size, and
/// folded in half as often as it stays sparse. To put a word in costs some nanoseconds, and most words of a text are
/// repetitions, which cost less.
///
/// Traffic repeats itself: header fields, a URL or a body that were there before aren't taken apart again.
pub(crate) struct WordSet {
    buckets: Box<[Bucket]>,
    /// How often bits were set.
    set: usize,
    tiny: Box<[u64]>,
    recent: Box<[u64]>,
    /// Entries that were there before, and parts of them, by the numbers of their texts.
    entries: HashSet<[u32; 8]>,
    parts: HashSet<[u32; 4]>,
    /// The header fields that were asked last how a body is to be read, and what they said.
    reading: Option<(u32, Reading)>,
    /// The header fields that were asked last for hosts, and whether those are plain.
    hosts: Option<(u32, bool)>,
}

impl std::fmt::Debug for WordSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WordSet").finish_non_exhaustive()
    }
}

impl Default for WordSet {
    fn default() -> Self {
        Self {
            buckets: vec![[0; 2]; MOST_BUCKETS].into(),
            set: 0,
            tiny: vec![0; TINY_WORDS].into(),
            recent: vec![0; RECENT].into(),
            entries: HashSet::new(),
            parts: HashSet::new(),
            reading: None,
            hosts: None,
        }
    }
}

/// What parts there are.
const URL: u32 = 0;
const FIELDS: u32 = 1;
const BODY: u32 = 2;

/// How a body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// It is no text.
    Not,
    Plain,
    Coded,
}

impl WordSet {
    pub fn clear(&mut self) {
        self.buckets.fill([0; 2]);
        self.set = 0;
        self.tiny.fill(0);
        self.recent.fill(0);
        self.entries.clear();
        self.parts.clear();
        self.reading = None;
        self.hosts = None;
    }

    /// Adds the words of a flow.
    pub fn add(&mut self, record: &Record) {
        let _ = each_text(record, &mut |text| {
            self.add_text(text);
            ControlFlow::Continue(())
        });
    }

    /// Adds the words of a flow whose texts have these numbers. They are those of its record, and maybe others.
    pub fn add_entry(
        &mut self,
        entry: &Entry<&[u8], &[u8]>,
        numbers: &Entry<u32, u32>,
        link: &WrittenLink,
    ) {
        let request = &numbers.request;
        let none = u32::MAX;
        let key = match &numbers.response {
            Some(answer) => [
                answer.message.headers,
                answer.message.trailers.unwrap_or(none),
                answer.message.body.unwrap_or(none),
            ],
            None => [none; 3],
        };
        let [headers, trailers, body] = key;
        let all = [
            numbers.line,
            request.headers,
            request.trailers.unwrap_or(none),
            request.body.unwrap_or(none),
            headers,
            trailers,
            body,
            numbers.link,
        ];
        if let Some((error, _)) = entry.error {
            self.add_text(error);
        }
        if !self.entries.insert(all) {
            return;
        }
        // The same line and headers on another connection may mean another host.
        if self
            .parts
            .insert([URL, numbers.line, request.headers, numbers.link])
            && let Some(line) = Line::read(entry.line)
        {
            self.add_url(&line, entry, request.headers, link);
        }
        self.add_message(&entry.request, request);
        if let (Some(answer), Some(numbers)) = (&entry.response, &numbers.response) {
            self.add_message(&answer.message, &numbers.message);
        }
    }

    fn add_url(
        &mut self,
        line: &Line<'_>,
        entry: &Entry<&[u8], &[u8]>,
        headers: u32,
        link: &WrittenLink,
    ) {
        self.add_text(line.method);
        let hosts = || Fields::new(entry.request.headers).all("host");
        let is_plain = |text: &[u8]| text.is_ascii() && !is_coded_name(text);
        let has_plain_hosts = match self.hosts {
            Some((of, is_plain)) if of == headers => is_plain,
            _ => {
                let all = hosts().all(is_plain);
                self.hosts = Some((headers, all));
                all
            }
        };
        if has_plain_hosts
            && line.path.is_ascii()
            && is_plain(line.authority)
            && is_plain(link.host.as_bytes())
        {
            // The URL has none but the words of these; the header fields come by themselves.
            self.add_text(link.scheme.as_bytes());
            self.add_text(line.authority);
            self.add_text(link.host.as_bytes());
            let mut digits = [0; 5];
            self.add_text(decimal(link.port, &mut digits));
            self.add_text(line.path);
            return;
        }
        let mut request = line.request(link.scheme, &link.host, link.port);
        for host in hosts() {
            request.message.headers.push("host", host.to_vec());
        }
        request.message.version = Bytes::from_static(entry.request.version.as_str().as_bytes());
        self.add_text(request.pretty_url().as_bytes());
    }

    fn add_message(
        &mut self,
        message: &entry::Message<&[u8], &[u8]>,
        numbers: &entry::Message<u32, u32>,
    ) {
        let fields = [
            Some((message.headers, numbers.headers)),
            message.trailers.zip(numbers.trailers),
        ];
        for (text, number) in fields.into_iter().flatten() {
            if self.parts.insert([FIELDS, number, 0, 0]) {
                for (name, value) in Fields::new(text) {
                    self.add_text(name);
                    self.add_text(value);
                }
            }
        }
        let (Some(data), Some(number)) = (message.body, numbers.body) else {
            return;
        };
        if data.is_empty() || !self.parts.insert([BODY, numbers.headers, number, 0]) {
            return;
        }
        let fields = Fields::new(message.headers);
        let reading = match self.reading {
            Some((headers, reading)) if headers == numbers.headers => reading,
            _ => {
                let media = fields.all("content-type").next();
                let is_coded = fields.all("content-encoding").next().is_some();
                let reading = reading(media, is_coded);
                self.reading = Some((numbers.headers, reading));
                reading
            }
        };
        let codings = || fields.all("content-encoding");
        let _ = body_text(data, reading, &codings, &mut |text| {
            self.add_text(text);
            ControlFlow::Continue(())
        });
    }

    fn add_text(&mut self, text: &[u8]) {
        // The beginning of a word that reaches up to where the next piece begins.
        let mut open = None;
        for (piece, at) in text.chunks(PIECE).zip((0..).step_by(PIECE)) {
            let mut left = word_bytes(piece);
            if let Some(begin) = open {
                let length = left.trailing_ones() as usize;
                if length == PIECE {
                    continue;
                }
                self.add_word(text.get(begin..at + length).unwrap_or_default());
                left &= u64::MAX << length;
                open = None;
            }
            let length = left.leading_ones() as usize;
            if length > 0 {
                let begin = PIECE - length;
                open = Some(at + begin);
                left &= !(u64::MAX << begin);
            }
            let mut begins = left & !(left << 1);
            if piece.is_ascii() {
                let ends = left & !(left >> 1);
                let longer = begins & !ends;
                let tiny = [
                    begins & ends,
                    longer & (ends >> 1),
                    longer & !(ends >> 1) & (ends >> 2),
                ];
                for (which, length) in tiny.into_iter().zip(1..) {
                    begins &= !which;
                    let mut which = which;
                    while which != 0 {
                        let begin = which.trailing_zeros() as usize;
                        let bytes = first_bytes(text, at + begin);
                        self.put_tiny(first_of(fold(bytes), length));
                        which &= which - 1;
                    }
                }
            }
            while begins != 0 {
                let begin = begins.trailing_zeros() as usize;
                let length = (left >> begin).trailing_ones() as usize;
                if length <= SHORT {
                    self.add_short(first_bytes(text, at + begin), length);
                } else {
                    let end = at + begin + length;
                    self.add_word(text.get(at + begin..end).unwrap_or_default());
                }
                begins &= begins - 1;
            }
        }
        if let Some(begin) = open {
            self.add_word(text.get(begin..).unwrap_or_default());
        }
    }

    fn add_word(&mut self, word: &[u8]) {
        let first = first_bytes(word, 0);
        if word.len() <= SHORT {
            self.add_short(first, word.len());
            return;
        }
        self.set(hash_of(word));
        self.add_beginnings(first, word.len());
    }

    /// Adds a word that these bytes begin with.
    fn add_short(&mut self, bytes: u64, length: usize) {
        let hash = first_of(fold(bytes), length);
        if length <= TINY && hash & each(0x80) == 0 {
            self.put_tiny(hash);
            return;
        }
        // Nothing else has this hash, so that its beginnings are there as well.
        let at = (hash.wrapping_mul(SPREAD) >> 40) as usize;
        if let Some(recent) = self.recent.get_mut(at & (RECENT - 1))
            && *recent != hash
        {
            *recent = hash;
            self.set(hash);
            self.add_beginnings(hash, length);
        }
    }

    /// Adds a word of up to [`TINY`] letters and digits by its hash.
    fn put_tiny(&mut self, hash: u64) {
        let at = tiny_of(hash);
        if let Some(tiny) = self.tiny.get_mut(at / 64) {
            *tiny |= 1 << (at % 64);
        }
    }

    /// Puts the words into the filter that have a bit.
    fn add_tiny(&mut self) {
        for at in 0..self.tiny.len() {
            let mut left = self.tiny.get(at).copied().unwrap_or_default();
            while left != 0 {
                let hash = of_tiny(at * 64 + left.trailing_zeros() as usize);
                let length = (u64::BITS - hash.leading_zeros()).div_ceil(8) as usize;
                self.set(hash);
                self.add_beginnings(hash, length);
                left &= left - 1;
            }
        }
    }

    fn add_beginnings(&mut self, first: u64, length: usize) {
        for beginning in BEGINNINGS {
            if length > beginning {
                self.set(first_of(fold(first), beginning) ^ BEGINNING);
            }
        }
    }

    fn set(&mut self, hash: u64) {
        self.set += 1;
        let (at, [one, other]) = place(hash);
        if let Some([first, second]) = self.buckets.get_mut(at & (MOST_BUCKETS - 1)) {
            *first |= one;
            *second |= other;
        }
    }

    /// The filter, for the database. What was added is gone.
    pub fn take_filter(&mut self) -> Vec<u8> {
        self.add_tiny();
        let mut size = self.buckets.len();
        while size > 1 {
            let (first, rest) = self.buckets.split_at_mut(size / 2);
            let bits = first.len() * 8 * size_of::<Bucket>();
            let is_sparse = |ones: usize| ones * 100 <= bits * FULL_PERCENT;
            // Only what may be too full is counted.
            if !is_sparse(self.set * WORD_BITS) {
                let both = first.iter().flatten().zip(rest.iter().flatten());
                let ones: u32 = both.map(|(one, other)| (one | other).count_ones()).sum();
                if !is_sparse(ones as usize) {
                    break;
                }
            }
            for (one, other) in first.iter_mut().flatten().zip(rest.iter().flatten()) {
                *one |= other;
            }
            size /= 2;
        }
        let halves = self.buckets.iter().take(size).flatten();
        let filter = halves.flat_map(|half| half.to_le_bytes()).collect();
        self.clear();
        filter
    }
}

/// What is searched for words at once, in bytes.
const PIECE: usize = 64;

/// The same bit of each byte.
const fn each(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// The bytes with small letters in the place of capital ones. Other bytes of words may become each other.
fn fold(bytes: u64) -> u64 {
    bytes | each(0x20)
}

/// The highest bit of each byte that belongs to a word.
fn in_words(bytes: u64) -> u64 {
    let low = bytes & each(0x7f);
    let small = low | each(0x20);
    let digits = (low + each(0x80 - b'0')) & !(low + each(0x7f - b'9'));
    let letters = (small + each(0x80 - b'a')) & !(small + each(0x7f - b'z'));
    (bytes | digits | letters) & each(0x80)
}

/// Which bytes of up to 64 belong to words, the first in the lowest bit.
fn word_bytes(piece: &[u8]) -> u64 {
    let (eights, rest) = piece.as_chunks();
    let gathered = |bytes: u64| (in_words(bytes) >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    let mut all = 0;
    let mut at = 0;
    for eight in eights {
        all |= gathered(u64::from_le_bytes(*eight)) << at;
        at += 8;
    }
    if !rest.is_empty() {
        all |= gathered(first_bytes(rest, 0)) << at;
    }
    all
}

/// Eight bytes from a place on, the first in the lowest ones; zeros behind the end.
fn first_bytes(text: &[u8], at: usize) -> u64 {
    let rest = text.get(at..).unwrap_or_default();
    match rest.first_chunk() {
        Some(bytes) => u64::from_le_bytes(*bytes),
        None => rest
            .iter()
            .rev()
            .fold(0, |all, byte| all << 8 | u64::from(*byte)),
    }
}

/// The first bytes of eight at most, and zeros for the others.
fn first_of(bytes: u64, length: usize) -> u64 {
    match length {
        0 => 0,
        length => bytes & (u64::MAX >> (64 - 8 * length.min(8))),
    }
}

/// The number of up to three small letters and digits: a byte without what letters, or digits, have in common.
fn tiny_of(bytes: u64) -> usize {
    let six = (bytes & each(0x1f)) | ((bytes >> 1) & each(0x20));
    ((six & 0x3f) | (six >> 2 & 0xfc0) | (six >> 4 & 0x3_f000)) as usize
}

/// The bytes of such a number.
fn of_tiny(number: usize) -> u64 {
    let byte = |at: usize| {
        let six = (number >> (6 * at) & 0x3f) as u64;
        match six {
            0 => 0,
            1..0x20 => (six | 0x20) << (8 * at),
            _ => (six & 0x1f | 0x60) << (8 * at),
        }
    };
    (0..TINY).map(byte).sum()
}

/// The hash of a word: up to [`SHORT`] bytes, the word itself. Longer ones may share theirs. It stands for the word in
/// files: it never changes.
fn hash_of(word: &[u8]) -> u64 {
    let word = word.get(..WORD_BYTES).unwrap_or(word);
    word.chunks(8).fold(0, |hash: u64, eight| {
        let bytes = first_of(fold(first_bytes(eight, 0)), eight.len());
        hash.wrapping_mul(SPREAD).rotate_left(29) ^ bytes
    })
}

const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads a hash over all bits.
fn mixed(hash: u64) -> u64 {
    let hash = hash.wrapping_mul(SPREAD);
    (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// The bucket of a hash, of which as many low bits count as there are buckets, and its bits.
fn place(hash: u64) -> (usize, Bucket) {
    let hash = mixed(hash);
    let bits = |from: u32| {
        let bit = |at: u32| 1 << ((hash >> at) & 63);
        bit(from) | bit(from + 6) | bit(from + 12)
    };
    ((hash >> 40) as usize, [bits(0), bits(18)])
}

/// Whether a filter has a hash. One of another form has all.
fn has(filter: &[u8], hash: u64) -> bool {
    let (at, [one, other]) = place(hash);
    let buckets = filter.len() / size_of::<Bucket>();
    let begin = (at & buckets.wrapping_sub(1)).saturating_mul(size_of::<Bucket>());
    let end = begin.saturating_add(size_of::<Bucket>());
    let Some(bucket) = filter.get(begin..end) else {
        return true;
    };
    let half = |bytes: &[u8]| {
        let bytes = bytes.iter().rev();
        bytes.fold(0, |half: u64, byte| half << 8 | u64::from(*byte))
    };
    let (first, second) = bucket.split_at(bucket.len() / 2);
    half(first) & one == one && half(second) & other == other
}

fn decimal(number: u16, digits: &mut [u8; 5]) -> &[u8] {
    let mut rest = number;
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        used += 1;
        if rest == 0 {
            break;
        }
    }
    digits.get(digits.len() - used..).unwrap_or_default()
}

fn is_coded_name(text: &[u8]) -> bool {
    text.windows(4)
        .any(|window| window.eq_ignore_ascii_case(b"xn--"))
}

fn each_word(text: &[u8], found: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> ControlFlow<()> {
    let mut lower = [0; WORD_BYTES];
    for run in text.split(|byte| !is_word_byte(*byte)) {
        if run.is_empty() {
            continue;
        }
        let length = run.len().min(WORD_BYTES);
        for (slot, byte) in lower.iter_mut().zip(run) {
            *slot = byte.to_ascii_lowercase();
        }
        found(lower.get(..length).unwrap_or_default())?;
    }
    ControlFlow::Continue(())
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80
}

/// Every text of a flow that is searched: what a person would look for.
fn each_text(record: &Record, found: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> ControlFlow<()> {
    match &record.content {
        Content::Http(http) => {
            found(&http.request.method)?;
            found(http.request.pretty_url().as_bytes())?;
            message(&http.request.message, found)?;
            if let Some(response) = &http.response {
                message(&response.message, found)?;
            }
            let messages = http.websocket.iter().flat_map(|socket| &socket.messages);
            for message in messages.filter(|message| message.is_text()).take(MESSAGES) {
                found(beginning(&message.content))?;
            }
        }
        Content::Tcp(messages) | Content::Udp(messages) => {
            if let Some(address) = &record.server.address {
                found(address.host.as_bytes())?;
            }
            for message in messages.iter().take(MESSAGES) {
                let text = beginning(&message.content);
                if looks_like_text(text) {
                    found(text)?;
                }
            }
        }
        Content::Dns(dns) => {
            for question in &dns.request.questions {
                found(question.name.as_bytes())?;
            }
        }
    }
    if let Some(error) = &record.error {
        found(error.message.as_bytes())?;
    }
    found(record.comment.as_bytes())
}

fn message(
    message: &HttpMessage,
    found: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> ControlFlow<()> {
    fields(&message.headers, found)?;
    if let Some(trailers) = &message.trailers {
        fields(trailers, found)?;
    }
    let Some(data) = message.body.data.as_deref() else {
        return ControlFlow::Continue(());
    };
    let media = message.headers.get("content-type");
    let codings = || message.headers.get_all("content-encoding");
    body_text(
        data,
        reading(media, codings().next().is_some()),
        &codings,
        found,
    )
}

fn reading(media: Option<&[u8]>, is_coded: bool) -> Reading {
    match (media, is_coded) {
        (Some(media), _) if !is_text_type(media) => Reading::Not,
        (_, true) => Reading::Coded,
        (_, false) => Reading::Plain,
    }
}

/// The beginning of a body without its codings, if it is text.
fn body_text<'a, I: Iterator<Item = &'a [u8]>>(
    data: &[u8],
    reading: Reading,
    codings: &dyn Fn() -> I,
    found: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let decoded;
    let text = match reading {
        Reading::Not => return ControlFlow::Continue(()),
        Reading::Plain => beginning(data),
        Reading::Coded => {
            decoded = decoded_beginning(data, codings());
            beginning(&decoded)
        }
    };
    if looks_like_text(text) {
        found(text)?;
    }
    ControlFlow::Continue(())
}

fn fields(
    fields: &HeaderFields,
    found: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for (name, value) in fields.iter() {
        found(name)?;
        found(value)?;
    }
    ControlFlow::Continue(())
}

/// As much of a coded body as is searched; nothing of one that is not what its header says.
fn decoded_beginning<'a>(data: &[u8], codings: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let limit = OutputLimit {
        total: 1 << 20,
        per_feed: 1 << 20,
    };
    let mut out = Vec::new();
    let Ok(Some(mut decoder)) = Decoder::new(codings, limit) else {
        return out;
    };
    for piece in data.chunks(4096) {
        if decoder.feed(piece, &mut out).is_err() || out.len() >= BODY_BYTES {
            return out;
        }
    }
    // A body that was cut gives what came out of it.
    let _ = decoder.finish(&mut out);
    out
}

fn beginning(data: &[u8]) -> &[u8] {
    data.get(..BODY_BYTES).unwrap_or(data)
}

fn looks_like_text(data: &[u8]) -> bool {
    let head = data.get(..512).unwrap_or(data);
    !head.contains(&0)
}

fn is_text_type(media: &[u8]) -> bool {
    const PARTS: [&[u8]; 8] = [
        b"text",
        b"json",
        b"xml",
        b"javascript",
        b"urlencoded",
        b"multipart",
        b"graphql",
        b"yaml",
    ];
    let media = media.split(|byte| *byte == b';').next().unwrap_or(media);
    PARTS.iter().any(|part| {
        media
            .windows(part.len())
            .any(|window| window.eq_ignore_ascii_case(part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_flow::record::{Body, HttpExchange, HttpRequest, HttpResponse};

    fn record() -> Record {
        let mut request = HttpRequest::new(
            "POST",
            "https",
            "api.example.com",
            443,
            "/v1/Users?q=K%C3%B6ln",
        );
        request
            .message
            .headers
            .push("Authorization", "Bearer abc-123");
        let mut response = HttpResponse::new(200, "OK");
        response
            .message
            .headers
            .push("Content-Type", "application/json");
        response.message.body = Body::whole("{\"city\":\"Köln\",\"n\":7}");
        let mut exchange = HttpExchange::new(request);
        exchange.response = Some(response);
        Record::http("x", exchange)
    }

    #[test]
    fn words_are_found_whole_or_by_their_beginning() {
        let record = record();
        let found = |text: &str| Words::new(text).unwrap().matches(&record);
        for text in [
            "users",
            "USERS",
            "api.example.com",
            "bearer abc-123",
            "Köln city",
            "auth*",
            "exam*",
            "7",
        ] {
            assert!(found(text), "{text}");
        }
        for text in ["user", "berlin", "users berlin", "xample*"] {
            assert!(!found(text), "{text}");
        }
        assert_eq!(Words::new(" -- * "), None);
    }

    #[test]
    fn what_is_no_text_is_not_searched() {
        let mut record = record();
        let http = record.as_http_mut().unwrap();
        let message = &mut http.response.as_mut().unwrap().message;
        message.headers.set("Content-Type", "image/png");
        assert!(!Words::new("city").unwrap().matches(&record));
        let http = record.as_http_mut().unwrap();
        let message = &mut http.response.as_mut().unwrap().message;
        message.headers.remove("Content-Type");
        message.body = Body::whole(&b"city\0\0"[..]);
        assert!(!Words::new("city").unwrap().matches(&record));
    }

    /// The filter of some flows.
    fn filter(records: &[Record]) -> Vec<u8> {
        let mut set = WordSet::default();
        records.iter().for_each(|record| set.add(record));
        set.take_filter()
    }

    fn with_body(body: &[u8]) -> Record {
        let mut record = record();
        let http = record.as_http_mut().unwrap();
        http.response.as_mut().unwrap().message.body = Body::whole(body.to_vec());
        record
    }

    #[test]
    fn bytes_of_words_are_told_from_others() {
        for byte in 0..=u8::MAX {
            for at in 0..PIECE {
                let mut piece = [b' '; PIECE];
                piece[at] = byte;
                assert_eq!(word_bytes(&piece), u64::from(is_word_byte(byte)) << at);
            }
            if byte.is_ascii_alphanumeric() {
                assert_eq!(fold(byte.into()) as u8, byte.to_ascii_lowercase());
            }
        }
        assert_eq!(word_bytes(b"ab 1"), 0b1011);
        for word in [
            "a", "z", "0", "9", "ab", "z9", "000", "999", "zzz", "a1p", "p0",
        ] {
            let bytes = fold(first_bytes(word.as_bytes(), 0));
            let bytes = first_of(bytes, word.len());
            assert_eq!(of_tiny(tiny_of(bytes)), bytes, "{word}");
            assert!(tiny_of(bytes) / 64 < TINY_WORDS);
        }
    }

    #[test]
    fn a_filter_tells_what_is_not_there() {
        let mut numbers: Vec<_> = (0..200)
            .map(|n| with_body(format!("{{\"id\":{n},\"long\":\"identifier{n:09}\"}}").as_bytes()))
            .collect();
        numbers.push(record());
        let filter = filter(&numbers);
        let may_have = |text: &str| Words::new(text).unwrap().may_be_in(&filter);
        for text in [
            "users",
            "Köln city",
            "auth*",
            "au*",
            "a*",
            "exam*",
            "7",
            "199 identifier000000199",
            "identifier000*",
            "identifier*",
            "identifi*",
            "id*",
            "iden*",
            "ide*",
        ] {
            assert!(may_have(text), "{text}");
        }
        let absent = (0..5000).filter(|n| may_have(&format!("nowhere{n}")));
        assert!(absent.count() < 50);
        let absent = (0..500).filter(|n| may_have(&format!("z{n}x*")));
        assert!(absent.count() < 10);
        // Little was put in: it is small.
        let mut set = WordSet::default();
        set.add(&record());
        assert!(set.take_filter().len() <= 512);
        // What is left of a filter is empty, and has nothing.
        assert!(!Words::new("users").unwrap().may_be_in(&set.take_filter()));
        // One that is none has everything.
        assert!(Words::new("users").unwrap().may_be_in(&[]));
    }

    proptest::proptest! {
        #[test]
        fn what_a_flow_has_its_filter_has(
            body in proptest::collection::vec(proptest::prop_oneof![
                proptest::sample::select(&b"aAzZ09 -\xc3\xb6\xff"[..]),
                proptest::num::u8::ANY,
            ], 0..400),
            begin in 0..400_usize,
            length in 1..80_usize,
            star in proptest::bool::ANY,
        ) {
            let record = with_body(&body);
            let begin = begin.min(body.len());
            let end = (begin + length).min(body.len());
            let text = String::from_utf8_lossy(&body[begin..end]);
            let text = if star { format!("{text}*") } else { text.into_owned() };
            if let Some(words) = Words::new(&text) && words.matches(&record) {
                let flows = [record, with_body(b"another")];
                proptest::prop_assert!(words.may_be_in(&filter(&flows)));
            }
        }
    }
}
