//! Many literals at once, ASCII case-insensitively.
//!
//! Every literal is known by its rarest three bytes. The text is run over once with a rolling hash
//! of three bytes and a table of bits that stays in the first-level cache; only where a bit is set,
//! literals are compared. Ordinary text sets off a comparison every few hundred bytes, where an
//! automaton takes a step, and a load that misses, for every byte.

/// Bits of the hash.
const BITS: u32 = 15;
/// Words of the table of bits.
const WORDS: usize = 1 << (BITS - 6);
const MULTIPLIER: u32 = 0x9e37_79b1;

/// A literal in a bucket.
#[derive(Debug, Clone, Copy)]
struct Entry {
    literal: u32,
    /// Where the three bytes stand in it.
    offset: u32,
    /// One more of its bytes, the farthest from the three, and where it stands: most candidates
    /// end there.
    other: u8,
    other_at: u32,
}

/// A set of literals.
#[derive(Debug, Clone)]
pub(super) struct Literals {
    all: Vec<Vec<u8>>,
    bits: Box<[u64; WORDS]>,
    /// Where a hash's entries start in `entries`; one more than there are hashes.
    starts: Vec<u32>,
    entries: Vec<Entry>,
    /// Literals of two bytes, which have no three.
    short: Vec<u32>,
    /// For each literal: the farthest that its three bytes can be from its start.
    farthest: usize,
}

impl Literals {
    /// Takes literals in lower case.
    pub(super) fn new(all: Vec<Vec<u8>>) -> Self {
        let mut placed: Vec<(u32, Entry)> = Vec::with_capacity(all.len());
        let mut short = Vec::new();
        let mut farthest = 0;
        for (index, literal) in all.iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let best = literal
                .windows(3)
                .enumerate()
                .min_by_key(|(at, three)| (commonness(three), *at));
            match best {
                Some((offset, &[a, b, c])) => {
                    farthest = farthest.max(offset);
                    let last = literal.len().saturating_sub(1);
                    let other_at = if offset >= last - offset { 0 } else { last };
                    let entry = Entry {
                        literal: index,
                        offset: u32::try_from(offset).unwrap_or(0),
                        other: literal.get(other_at).copied().unwrap_or(0) | 0x20,
                        other_at: u32::try_from(other_at).unwrap_or(0),
                    };
                    placed.push((hash([a, b, c]), entry));
                }
                _ => short.push(index),
            }
        }
        placed.sort_by_key(|(hash, entry)| (*hash, entry.literal));
        let mut bits = Box::new([0_u64; WORDS]);
        let mut starts = vec![0_u32; (1 << BITS) + 1];
        for (hash, _) in &placed {
            if let Some(word) = bits.get_mut((hash >> 6) as usize) {
                *word |= 1 << (hash & 63);
            }
            if let Some(count) = starts.get_mut(*hash as usize + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        Literals {
            all,
            bits,
            starts,
            entries: placed.into_iter().map(|(_, entry)| entry).collect(),
            short,
            farthest,
        }
    }

    /// Calls `each` with every literal that starts in `from..to`, and with where it starts.
    #[expect(
        clippy::indexing_slicing,
        reason = "the index is masked to the table's size, in the hottest loop there is"
    )]
    pub(super) fn find(&self, text: &[u8], from: usize, to: usize, mut each: impl FnMut(u32, u32)) {
        // The three bytes of a literal that starts at the last place stand a little later.
        let end = text.len().min(to + self.farthest + 3);
        let block = text.get(from..end).unwrap_or_default();
        for (at, three) in block.array_windows::<3>().enumerate() {
            let hash = hash(*three);
            if self.bits[(hash >> 6) as usize & (WORDS - 1)] >> (hash & 63) & 1 != 0 {
                self.candidates(text, from, to, from + at, hash, &mut each);
            }
        }
        for &index in &self.short {
            let Some(literal) = self.all.get(index as usize) else {
                continue;
            };
            let Some(&first) = literal.first() else {
                continue;
            };
            let starts = text.get(from..to).unwrap_or_default();
            for at in memchr::memchr2_iter(first, first.to_ascii_uppercase(), starts) {
                let there = text.get(from + at..from + at + literal.len());
                if there.is_some_and(|there| there.eq_ignore_ascii_case(literal)) {
                    each(index, u32::try_from(from + at).unwrap_or(u32::MAX));
                }
            }
        }
    }

    #[cold]
    fn candidates(
        &self,
        text: &[u8],
        from: usize,
        to: usize,
        three: usize,
        hash: u32,
        each: &mut impl FnMut(u32, u32),
    ) {
        let first = self.starts.get(hash as usize).copied().unwrap_or(0) as usize;
        let last = self.starts.get(hash as usize + 1).copied().unwrap_or(0) as usize;
        for entry in self.entries.get(first..last).unwrap_or_default() {
            let Some(start) = three.checked_sub(entry.offset as usize) else {
                continue;
            };
            let other = text.get(start + entry.other_at as usize);
            if other.is_none_or(|other| other | 0x20 != entry.other) {
                continue;
            }
            let Some(literal) = self.all.get(entry.literal as usize) else {
                continue;
            };
            if start >= from
                && start < to
                && text
                    .get(start..start + literal.len())
                    .is_some_and(|there| there.eq_ignore_ascii_case(literal))
            {
                each(entry.literal, u32::try_from(start).unwrap_or(u32::MAX));
            }
        }
    }

    /// The length of a literal.
    pub(super) fn len_of(&self, literal: usize) -> usize {
        self.all.get(literal).map_or(0, Vec::len)
    }
}

/// The hash of three bytes, the same for both cases of a letter (and for a few other pairs, which
/// the comparison tells apart).
fn hash(three: [u8; 3]) -> u32 {
    let [a, b, c] = three;
    (u32::from_le_bytes([a, b, c, 0]) | 0x20_2020).wrapping_mul(MULTIPLIER) >> (32 - BITS)
}

/// How common three bytes are in text, roughly: the sum of what each letter is worth.
fn commonness(three: &[u8]) -> u32 {
    let letters: u32 = three
        .iter()
        .map(|byte| match byte {
            b'e' | b't' | b' ' | b'a' | b'o' | b'i' | b'n' | b's' | b'r' => 10,
            b'h' | b'l' | b'd' | b'c' | b'u' | b'm' => 7,
            b'f' | b'p' | b'g' | b'w' | b'y' | b'b' => 5,
            b'/' | b':' | b'-' | b'_' | b'.' | b'=' | b'"' => 6,
            b'v' | b'k' => 3,
            _ => 1,
        })
        .sum();
    const FREQUENT: [&[u8; 3]; 20] = [
        b"the", b"ing", b"and", b"ion", b"tio", b"ent", b"for", b"ate", b"ter", b"res", b"con",
        b"ers", b"pro", b"com", b"ret", b"str", b"est", b"int", b"all", b"://",
    ];
    letters
        + if FREQUENT.iter().any(|known| known.as_slice() == three) {
            15
        } else {
            0
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every occurrence is told, and nothing else.
        #[test]
        fn finds_what_a_plain_search_finds(
            literals in prop::collection::btree_set("[abk_]{2,6}", 1..12),
            text in "[abkABK_x]{0,200}",
            from in 0_usize..100,
            len in 1_usize..120,
        ) {
            let literals: Vec<Vec<u8>> = literals.into_iter().map(String::into_bytes).collect();
            let text = text.as_bytes();
            let from = from.min(text.len());
            let to = (from + len).min(text.len());
            let mut found = Vec::new();
            Literals::new(literals.clone()).find(text, from, to, |literal, at| found.push((literal as usize, at as usize)));
            found.sort_unstable();
            let mut wanted = Vec::new();
            for (index, literal) in literals.iter().enumerate() {
                for at in from..to {
                    if text[at..].get(..literal.len()).is_some_and(|there| there.eq_ignore_ascii_case(literal)) {
                        wanted.push((index, at));
                    }
                }
            }
            prop_assert_eq!(found, wanted);
        }
    }
}
