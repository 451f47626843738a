//! Many literals at once, ASCII case-insensitively.
//!
//! Every literal is known by its rarest three bytes, and by the one behind them. The text is run over once: a hash of
//! three bytes finds a byte in a table that stays in the first-level cache, and the fourth byte one of its bits; only
//! where that is set, literals are compared. Ordinary text sets off a comparison every few hundred bytes, where an
//! automaton takes a step, and a load that misses, for every byte.

/// Bits of the hash.
const BITS: u32 = 14;
/// Bytes of the table.
const SLOTS: usize = 1 << BITS;
const MULTIPLIER: u32 = 0x9e37_79b1;
/// The bit that tells the cases of a letter apart, in eight bytes.
const FOLD: u64 = 0x2020_2020_2020_2020;

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
    /// For each hash of three bytes, which bytes may follow: a bit for each value of their three lowest bits.
    table: Box<[u8; SLOTS]>,
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
        let mut table = Box::new([0_u8; SLOTS]);
        let mut placed: Vec<(usize, Entry)> = Vec::with_capacity(all.len());
        let mut short = Vec::new();
        let mut farthest = 0;
        for (index, literal) in all.iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let best = literal
                .windows(3)
                .enumerate()
                .map(|(at, three)| (at, three, literal.get(at + 3).copied()))
                .min_by_key(|(at, three, next)| (commonness(three, *next), *at));
            match best {
                Some((offset, &[a, b, c], next)) => {
                    farthest = farthest.max(offset);
                    let last = literal.len().saturating_sub(1);
                    let other_at = if offset >= last - offset { 0 } else { last };
                    let entry = Entry {
                        literal: index,
                        offset: u32::try_from(offset).unwrap_or(0),
                        other: literal.get(other_at).copied().unwrap_or(0) | 0x20,
                        other_at: u32::try_from(other_at).unwrap_or(0),
                    };
                    let hash = slot(u32::from_le_bytes([a, b, c, 0]) | FOLD as u32);
                    if let Some(follow) = table.get_mut(hash) {
                        *follow |= next.map_or(u8::MAX, |next| 1 << (next & 7));
                    }
                    placed.push((hash, entry));
                }
                _ => short.push(index),
            }
        }
        placed.sort_by_key(|(hash, entry)| (*hash, entry.literal));
        let mut starts = vec![0_u32; SLOTS + 1];
        for (hash, _) in &placed {
            if let Some(count) = starts.get_mut(*hash + 1) {
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
            table,
            starts,
            entries: placed.into_iter().map(|(_, entry)| entry).collect(),
            short,
            farthest,
        }
    }

    /// Whether four bytes, of which case is folded, begin a comparison.
    #[expect(
        clippy::indexing_slicing,
        reason = "the index is masked to the table's size, in the hottest loop there is"
    )]
    fn hit(&self, four: u32) -> bool {
        self.table[slot(four) & (SLOTS - 1)] >> (four >> 24 & 7) & 1 != 0
    }

    /// Calls `each` with every literal that starts in `from..to`, and with where it starts.
    pub(super) fn find(&self, text: &[u8], from: usize, to: usize, mut each: impl FnMut(u32, u32)) {
        // The three bytes of a literal that starts at the last place stand a little later.
        let end = text.len().min(to + self.farthest + 4);
        let mut at = from;
        let mut rest = text.get(from..end).unwrap_or_default();
        // Eight places at once, for which twelve bytes are read.
        while let Some(low) = rest.first_chunk::<8>()
            && let Some(high) = rest.get(4..).and_then(<[u8]>::first_chunk::<8>)
        {
            let low = u64::from_le_bytes(*low) | FOLD;
            let high = u64::from_le_bytes(*high) | FOLD;
            let fours = [
                low,
                low >> 8,
                low >> 16,
                low >> 24,
                high,
                high >> 8,
                high >> 16,
                high >> 24,
            ]
            .map(|bytes| bytes as u32);
            let any = fours.iter().fold(false, |any, &four| any | self.hit(four));
            if any {
                for (place, &four) in fours.iter().enumerate() {
                    if self.hit(four) {
                        self.candidates(text, from, to, at + place, slot(four), &mut each);
                    }
                }
            }
            at += 8;
            rest = rest.get(8..).unwrap_or_default();
        }
        // Of the last, whatever follows: it may be missing.
        while let Some(&[a, b, c]) = rest.first_chunk::<3>() {
            let hash = slot(u32::from_le_bytes([a, b, c, 0]) | FOLD as u32);
            if self.table.get(hash).is_some_and(|follow| *follow != 0) {
                self.candidates(text, from, to, at, hash, &mut each);
            }
            at += 1;
            rest = rest.get(1..).unwrap_or_default();
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

    #[inline(never)]
    fn candidates(
        &self,
        text: &[u8],
        from: usize,
        to: usize,
        three: usize,
        hash: usize,
        each: &mut impl FnMut(u32, u32),
    ) {
        let first = self.starts.get(hash).copied().unwrap_or(0) as usize;
        let last = self.starts.get(hash + 1).copied().unwrap_or(0) as usize;
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

/// The place of three bytes in the table, the lowest of four; the same for both cases of a letter if case is folded
/// (and for a few other pairs, which the comparison tells apart).
fn slot(four: u32) -> usize {
    ((four & 0xff_ffff).wrapping_mul(MULTIPLIER) >> (32 - BITS)) as usize
}

/// How common three bytes are in text, roughly: the sum of what each letter is worth. What follows them counts as well;
/// if anything may, it is worth most.
fn commonness(three: &[u8], next: Option<u8>) -> u32 {
    let worth = |byte: &u8| match byte {
        b'e' | b't' | b' ' | b'a' | b'o' | b'i' | b'n' | b's' | b'r' => 10,
        b'h' | b'l' | b'd' | b'c' | b'u' | b'm' => 7,
        b'f' | b'p' | b'g' | b'w' | b'y' | b'b' => 5,
        b'/' | b':' | b'-' | b'_' | b'.' | b'=' | b'"' => 6,
        b'v' | b'k' => 3,
        _ => 1,
    };
    let next = next.as_ref().map_or(20, worth);
    let letters: u32 = three.iter().map(worth).sum::<u32>() + next;
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
