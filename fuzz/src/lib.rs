//! What the fuzz targets share: ways to cut an input into pieces.
//!
//! The cuts are derived from the input itself instead of being read from it, so that a corpus file is
//! the protocol's own bytes: a seed can be written by hand, and a finding can be sent to a socket as it is.
#![forbid(unsafe_code)]

pub mod split;

/// Inputs up to this length are also fed in every possible pair of pieces.
const EVERY_PAIR: usize = 96;

/// Inputs up to this length are also fed byte by byte.
const BY_THE_BYTE: usize = 4096;

/// Several ways to cut `input`: each is a list of pieces that join to it. Some pieces are empty.
pub fn cuts(input: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let mut random = Random::of(input);
    let pairs: Vec<usize> = match input.len() {
        len @ 0..=EVERY_PAIR => (0..=len).collect(),
        len => (0..8).map(|_| random.below(len)).collect(),
    };
    let by_the_byte = Some(input.chunks(1).collect()).filter(|_| input.len() <= BY_THE_BYTE);
    let in_pieces: Vec<_> = [3, 17, 200]
        .map(|most| random_pieces(input, most, &mut random))
        .into();
    pairs
        .into_iter()
        .map(move |at| Vec::from(<[&[u8]; 2]>::from(input.split_at(at))))
        .chain(by_the_byte)
        .chain(in_pieces)
}

/// Cuts `input` into pieces of 0 to `most` bytes.
fn random_pieces<'a>(input: &'a [u8], most: usize, random: &mut Random) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut rest = input;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(random.below(most + 1).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// A repeatable source of numbers: the same input is always cut the same way.
pub struct Random(u64);

impl Random {
    /// A source that depends on nothing but `input`.
    pub fn of(input: &[u8]) -> Self {
        // FNV-1a.
        let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Self(input.iter().fold(0xcbf2_9ce4_8422_2325, hash))
    }

    /// A number from 0 to `end - 1`; 0 when `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z % (end.max(1) as u64)) as usize
    }
}
