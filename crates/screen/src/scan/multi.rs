//! Many literals at once, ASCII case-insensitively.
//!
//! Every second place of the text is asked. A literal that starts at such a place is known by the rarest three bytes
//! among those at even offsets in it, one that starts between two of them by the rarest at odd offsets; and either by
//! the byte behind the three. A hash of three bytes finds a byte in a table that stays in the first-level cache, and
//! the fourth byte one of its bits; only where that is set, literals are compared. Ordinary text sets off a comparison
//! every few hundred bytes, where an automaton takes a step, and a load that misses, for every byte.
//!
//! A literal of three bytes has too few at odd offsets. It is known by all of them and by what may stand before.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;

/// Bits of the hash.
const BITS: u32 = 15;
/// Bytes of the table.
const SLOTS: usize = 1 << BITS;
/// So many hashes are tried; the one that ordinary text sets off the least is taken.
const TRIED: u32 = 8;
/// Text of the kinds that pass most. It only tells what is common, and so has no influence on what is found.
const ORDINARY: &[u8] = include_bytes!("ordinary.txt");
/// The bit that tells the cases of a letter apart, in eight bytes.
const FOLD: u64 = 0x2020_2020_2020_2020;
/// The bit of what is beyond ASCII.
const HIGH: u64 = 0x8080_8080_8080_8080;

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Literal {
    /// In lower case, two bytes at least.
    pub(super) text: Vec<u8>,
    /// It begins with a letter, a digit or `_`, and may be overlooked where one of those stands before it.
    pub(super) starts_word: bool,
}

/// A literal in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    literal: u32,
    /// How far before the literal's start the three bytes stand: at most one …
    before: u8,
    /// … or how far behind it.
    offset: u8,
    starts_word: bool,
    /// One more of its bytes, the farthest from the three, and where it stands: most candidates
    /// end there.
    other: u8,
    other_at: u8,
}

/// A set of literals.
#[derive(Debug, Clone)]
pub(super) struct Literals {
    all: Vec<Literal>,
    /// What makes a hash of three bytes.
    multiplier: u32,
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
    /// Of words in lower case.
    pub(super) fn of<'t>(texts: impl Iterator<Item = &'t str>) -> Self {
        let literal = |text: &str| Literal {
            text: text.as_bytes().to_vec(),
            starts_word: false,
        };
        Literals::new(texts.map(literal).collect())
    }

    /// Takes literals in lower case.
    pub(super) fn new(all: Vec<Literal>) -> Self {
        let common = Common::get();
        let mut places: Vec<(Place, Entry)> = Vec::with_capacity(2 * all.len());
        let mut short = Vec::new();
        let mut farthest = 0;
        for (index, literal) in all.iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            if literal.text.len() < 3 {
                short.push(index);
                continue;
            }
            for parity in [0, 1] {
                let place = Place::of(literal, parity, common);
                let last = literal.text.len().saturating_sub(1);
                let other_at = if place.offset >= last.saturating_sub(place.offset) {
                    0
                } else {
                    last
                };
                farthest = farthest.max(place.offset);
                let entry = Entry {
                    literal: index,
                    before: place.before,
                    offset: u8::try_from(place.offset).unwrap_or(u8::MAX),
                    starts_word: literal.starts_word,
                    other: literal.text.get(other_at).copied().unwrap_or(0) | 0x20,
                    other_at: u8::try_from(other_at).unwrap_or(u8::MAX),
                };
                places.push((place, entry));
            }
        }
        let (_, multiplier, table) = (0..TRIED)
            .map(|attempt| 0x9e37_79b1_u32.wrapping_add(attempt.wrapping_mul(0x85eb_ca6a)) | 1)
            .map(|multiplier| {
                let table = table(&places, multiplier);
                let sets_off = |four: &u32| hit(&table, *four, multiplier);
                let set_off = common.fours.iter().filter(|(four, _)| sets_off(four));
                let often: u32 = set_off.map(|(_, times)| times).sum();
                (often, multiplier, table)
            })
            .min_by_key(|(often, ..)| *often)
            .unwrap_or_else(|| (0, 1, Box::new([0; SLOTS])));

        let mut placed: Vec<(usize, Entry)> = places
            .iter()
            .flat_map(|(place, entry)| place.slots(multiplier).map(|slot| (slot, *entry)))
            .collect();
        placed.sort_by_key(|(hash, entry)| (*hash, entry.literal, entry.before, entry.offset));
        // Two bytes that may stand before a literal can share a slot.
        placed.dedup();
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
            multiplier,
            table,
            starts,
            entries: placed.into_iter().map(|(_, entry)| entry).collect(),
            short,
            farthest,
        }
    }

    /// Calls `each` with every literal that starts in `from..to`, and with where it starts.
    pub(super) fn find(&self, text: &[u8], from: usize, to: usize, mut each: impl FnMut(u32, u32)) {
        // The three bytes of a literal that starts at the last place stand a little later.
        let end = text.len().min(to + self.farthest + 4);
        let (table, multiplier) = (&*self.table, self.multiplier);
        let mut at = match from.checked_sub(1) {
            Some(before) => before,
            // Nothing stands before the text: as if a space did.
            None => {
                if let Some(&[first, second]) = text.first_chunk::<2>() {
                    let hash = slot(fold_four([b' ', first, second, 0]), multiplier);
                    self.candidates(text, from..to, None, hash, &mut each);
                }
                1
            }
        };
        // Four places at once, for which ten bytes are read.
        let mut rest = text.get(at..end).unwrap_or_default();
        while let Some(&[first, second, third, fourth, ..]) = rest.first_chunk::<10>()
            && let Some(more) = rest.get(2..).and_then(<[u8]>::first_chunk::<8>)
        {
            let more = fold(u64::from_le_bytes(*more));
            let fours = [
                fold_four([first, second, third, fourth]),
                more as u32,
                (more >> 16) as u32,
                (more >> 32) as u32,
            ];
            let any = fours
                .iter()
                .fold(false, |any, &four| any | hit(table, four, multiplier));
            if any {
                for (place, &four) in fours.iter().enumerate() {
                    if hit(table, four, multiplier) {
                        let three = Some(at + 2 * place);
                        self.candidates(text, from..to, three, slot(four, multiplier), &mut each);
                    }
                }
            }
            at += 8;
            rest = rest.get(8..).unwrap_or_default();
        }
        // Of the last, whatever follows: it may be missing.
        while let Some(&[first, second, third]) = rest.first_chunk::<3>() {
            let hash = slot(fold_four([first, second, third, 0]), multiplier);
            if table.get(hash).is_some_and(|follow| *follow != 0) {
                self.candidates(text, from..to, Some(at), hash, &mut each);
            }
            at += 2;
            rest = rest.get(2..).unwrap_or_default();
        }
        for &index in &self.short {
            let Some(Literal { text: literal, .. }) = self.all.get(index as usize) else {
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

    /// Compares the literals of a hash whose three bytes stand at `three`; `None` is the place before the text.
    #[inline(never)]
    fn candidates(
        &self,
        text: &[u8],
        within: Range<usize>,
        three: Option<usize>,
        hash: usize,
        each: &mut impl FnMut(u32, u32),
    ) {
        let first = self.starts.get(hash).copied().unwrap_or(0) as usize;
        let last = self.starts.get(hash + 1).copied().unwrap_or(0) as usize;
        for entry in self.entries.get(first..last).unwrap_or_default() {
            let start = match three {
                None if entry.before == 1 => 0,
                None => continue,
                Some(three) => match (three + usize::from(entry.before))
                    .checked_sub(usize::from(entry.offset))
                {
                    Some(start) => start,
                    None => continue,
                },
            };
            let other = text.get(start + usize::from(entry.other_at));
            if other.is_none_or(|other| other | 0x20 != entry.other) {
                continue;
            }
            let Some(Literal { text: literal, .. }) = self.all.get(entry.literal as usize) else {
                continue;
            };
            let before = start.checked_sub(1).and_then(|at| text.get(at));
            if within.contains(&start)
                && !(entry.starts_word && before.is_some_and(|&before| in_word(before)))
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
        self.all
            .get(literal)
            .map_or(0, |literal| literal.text.len())
    }
}

/// Fills a table.
fn table(places: &[(Place, Entry)], multiplier: u32) -> Box<[u8; SLOTS]> {
    let mut table = Box::new([0; SLOTS]);
    for (place, _) in places {
        for slot in place.slots(multiplier) {
            if let Some(follow) = table.get_mut(slot) {
                *follow |= place.next.map_or(u8::MAX, |next| 1 << (next & 7));
            }
        }
    }
    table
}

/// Whether four bytes, folded, begin a comparison.
#[expect(
    clippy::indexing_slicing,
    reason = "the index is masked to the table's size, in the hottest loop there is"
)]
fn hit(table: &[u8; SLOTS], four: u32, multiplier: u32) -> bool {
    table[slot(four, multiplier) & (SLOTS - 1)] >> (four >> 24 & 7) & 1 != 0
}

/// The three bytes by which a literal is known, at every second offset.
struct Place {
    before: u8,
    offset: usize,
    /// What the first of them may be.
    firsts: Vec<u8>,
    more: [u8; 2],
    /// What stands behind them, if it is known.
    next: Option<u8>,
}

impl Place {
    /// The rarest at even offsets, or at odd ones.
    fn of(literal: &Literal, parity: usize, common: &Common) -> Self {
        let text = &literal.text;
        let rarest = text
            .windows(3)
            .enumerate()
            .skip(parity)
            .step_by(2)
            .map(|(at, three)| (at, three, text.get(at + 3).copied()))
            .min_by_key(|(at, three, next)| (common.worth(three, *next), *at));
        match rarest {
            Some((offset, &[first, second, third], next)) => Place {
                before: 0,
                offset,
                firsts: vec![first],
                more: [second, third],
                next,
            },
            // Too short: with what may stand before it.
            _ => Place {
                before: 1,
                offset: 0,
                firsts: (0..=u8::MAX)
                    .filter(|&first| !(literal.starts_word && in_word(first)))
                    .collect(),
                more: [
                    text.first().copied().unwrap_or(0),
                    text.get(1).copied().unwrap_or(0),
                ],
                next: text.get(2).copied(),
            },
        }
    }

    fn slots(&self, multiplier: u32) -> impl Iterator<Item = usize> {
        let [second, third] = self.more;
        let slot = move |&first: &u8| slot(fold_four([first, second, third, 0]), multiplier);
        self.firsts.iter().map(slot)
    }
}

/// How often four bytes, and three, stand in ordinary text.
struct Common {
    fours: HashMap<u32, u32>,
    threes: HashMap<u32, u32>,
}

impl Common {
    fn get() -> &'static Self {
        static COMMON: OnceLock<Common> = OnceLock::new();
        COMMON.get_or_init(Common::count)
    }

    fn count() -> Self {
        let mut common = Common {
            fours: HashMap::new(),
            threes: HashMap::new(),
        };
        for &four in ORDINARY.array_windows() {
            let four = fold_four(four);
            *common.fours.entry(four).or_default() += 1;
            *common.threes.entry(four & 0xff_ffff).or_default() += 1;
        }
        common
    }

    /// How common three bytes are in text, with what follows them; if anything may, they are as common as they can be.
    /// What ordinary text doesn't have is told apart by its letters.
    fn worth(&self, three: &[u8], next: Option<u8>) -> (u32, u32) {
        let &[first, second, third] = three else {
            return (u32::MAX, 0);
        };
        let four = fold_four([first, second, third, next.unwrap_or(0)]);
        let seen = match next {
            Some(_) => self.fours.get(&four),
            None => self.threes.get(&(four & 0xff_ffff)),
        };
        (seen.copied().unwrap_or(0), commonness(three, next))
    }
}

/// Letters, digits and `_`, in ASCII.
pub(super) fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Eight bytes as they are looked up: without case, and what is beyond ASCII as if it were a sign or a digit. Comparing
/// tells apart what is the same here.
fn fold(bytes: u64) -> u64 {
    let high = bytes & HIGH;
    bytes & !(high | high >> 1) | FOLD
}

fn fold_four(four: [u8; 4]) -> u32 {
    let bytes = u32::from_le_bytes(four);
    let high = bytes & HIGH as u32;
    bytes & !(high | high >> 1) | FOLD as u32
}

/// The place of three bytes in the table, the lowest of four; the same for both cases of a letter if case is folded
/// (and for a few other pairs, which the comparison tells apart).
fn slot(four: u32, multiplier: u32) -> usize {
    ((four & 0xff_ffff).wrapping_mul(multiplier) >> (32 - BITS)) as usize
}

/// How common the letters of three bytes are in text, roughly. What follows them counts as well; if anything may, it is
/// worth most.
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
    three.iter().map(worth).sum::<u32>() + next
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
            let given = literals.iter().map(|text| Literal { text: text.clone(), starts_word: false }).collect();
            Literals::new(given).find(text, from, to, |literal, at| found.push((literal as usize, at as usize)));
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

        /// What starts a word is told wherever one starts, and nothing else is.
        #[test]
        fn finds_what_starts_a_word(
            literals in prop::collection::btree_set("[abk_]{2,6}", 1..12),
            text in prop::collection::vec(prop::sample::select(b"abkABK_x0 .@[\x10\x7f\x80\xc3\xe2\xff".to_vec()), 0..200),
            from in 0_usize..100,
            len in 1_usize..120,
        ) {
            let literals: Vec<Vec<u8>> = literals.into_iter().map(String::into_bytes).collect();
            let from = from.min(text.len());
            let to = (from + len).min(text.len());
            let mut found = Vec::new();
            let given = literals.iter().map(|text| Literal { text: text.clone(), starts_word: true }).collect();
            Literals::new(given).find(&text, from, to, |literal, at| {
                let short = literals[literal as usize].len() < 3;
                let inside = at > 0 && in_word(text[at as usize - 1]);
                if !(short && inside) {
                    found.push((literal as usize, at as usize));
                }
            });
            found.sort_unstable();
            let mut wanted = Vec::new();
            for (index, literal) in literals.iter().enumerate() {
                for at in from..to {
                    if (at == 0 || !in_word(text[at - 1]))
                        && text[at..].get(..literal.len()).is_some_and(|there| there.eq_ignore_ascii_case(literal))
                    {
                        wanted.push((index, at));
                    }
                }
            }
            prop_assert_eq!(found, wanted);
        }
    }
}
