//! What a match of a pattern can begin with: a set of bytes for each of its first places.
//!
//! Most places where a rule's literal stands start no match, and the bytes around it say so at once, for a fraction of
//! what asking the regex costs.

use regex_syntax::hir::{Class, Hir, HirKind};

/// So many places are known at most.
const PLACES: usize = 24;

/// A pattern that takes more steps to look through has no sets: repetitions in one another multiply them.
const STEPS: u32 = 100_000;

/// A set of bytes.
type Set = [u64; 4];

/// The bytes that a match can begin with.
#[derive(Debug, Default)]
pub(super) struct Prefix {
    /// As many as the shortest match has bytes, or [`PLACES`].
    sets: Vec<Set>,
}

impl Prefix {
    /// Derives the sets from the pattern itself.
    pub(super) fn of(hir: &Hir) -> Self {
        let mut walk = Walk {
            sets: [Set::default(); PLACES],
            steps: STEPS,
        };
        if walk.through(hir, 1).is_none() {
            return Prefix::default();
        }
        let shortest = hir.properties().minimum_len().unwrap_or(0);
        Prefix {
            sets: walk.sets.into_iter().take(shortest).collect(),
        }
    }

    /// False if no match can begin at `at`.
    pub(super) fn allows(&self, text: &[u8], at: usize) -> bool {
        let rest = text.get(at..).unwrap_or_default();
        rest.len() >= self.sets.len()
            && self
                .sets
                .iter()
                .zip(rest)
                .all(|(set, &byte)| has(set, byte))
    }
}

/// A walk through a pattern.
struct Walk {
    sets: [Set; PLACES],
    /// How many are left.
    steps: u32,
}

impl Walk {
    /// Adds what a part of a pattern can match if it begins at some of the places, a bit for each; tells where it can
    /// end. `None` when the steps are used up.
    fn through(&mut self, hir: &Hir, from: u32) -> Option<u32> {
        self.steps = self.steps.checked_sub(1)?;
        Some(match hir.kind() {
            HirKind::Empty | HirKind::Look(_) => from,
            HirKind::Literal(literal) => literal.0.iter().fold(from, |from, &byte| {
                self.add(from, &set(byte, byte));
                from << 1
            }),
            HirKind::Class(class) => self.class(class, from),
            HirKind::Repetition(repetition) => {
                let mut now = from;
                for _ in 0..repetition.min {
                    now = self.through(&repetition.sub, now)?;
                    if now == 0 {
                        return Some(0);
                    }
                }
                let mut ends = now;
                let more = repetition.max.map_or(u32::MAX, |max| max - repetition.min);
                for _ in 0..more {
                    now = self.through(&repetition.sub, now)?;
                    if ends | now == ends {
                        break;
                    }
                    ends |= now;
                }
                ends
            }
            HirKind::Capture(capture) => self.through(&capture.sub, from)?,
            HirKind::Concat(parts) => parts
                .iter()
                .try_fold(from, |from, part| self.through(part, from))?,
            HirKind::Alternation(branches) => branches
                .iter()
                .try_fold(0, |ends, branch| Some(ends | self.through(branch, from)?))?,
        })
    }

    fn class(&mut self, class: &Class, from: u32) -> u32 {
        match class {
            Class::Bytes(class) => {
                let bytes = class.ranges().iter().fold(Set::default(), |all, range| {
                    union(all, &set(range.start(), range.end()))
                });
                self.add(from, &bytes);
                from << 1
            }
            Class::Unicode(class) => {
                let mut to = 0;
                for range in class.ranges() {
                    if let Ok(start) = u8::try_from(range.start())
                        && start < 0x80
                    {
                        let end = u8::try_from(range.end()).unwrap_or(0x7f).min(0x7f);
                        self.add(from, &set(start, end));
                        to |= from << 1;
                    }
                    if range.end() >= '\u{80}' {
                        for place in [from, from << 1, from << 2, from << 3] {
                            self.add(place, &set(0x80, u8::MAX));
                        }
                        to |= from << 2 | from << 3 | from << 4;
                    }
                }
                to
            }
        }
    }

    /// Adds bytes at some places.
    fn add(&mut self, places: u32, bytes: &Set) {
        for (place, set) in self.sets.iter_mut().enumerate() {
            if places >> place & 1 != 0 {
                *set = union(*set, bytes);
            }
        }
    }
}

fn union(mut one: Set, other: &Set) -> Set {
    for (word, more) in one.iter_mut().zip(other) {
        *word |= more;
    }
    one
}

/// The bytes of a range.
fn set(first: u8, last: u8) -> Set {
    let mut set = Set::default();
    for byte in first..=last {
        if let Some(word) = set.get_mut(usize::from(byte >> 6)) {
            *word |= 1 << (byte & 63);
        }
    }
    set
}

fn has(set: &Set, byte: u8) -> bool {
    set.get(usize::from(byte >> 6))
        .is_some_and(|word| word >> (byte & 63) & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::builtin::SHAPES;
    use proptest::prelude::*;

    fn hir(pattern: &str) -> Hir {
        regex_syntax::ParserBuilder::new()
            .unicode(false)
            .utf8(false)
            .build()
            .parse(pattern)
            .unwrap()
    }

    fn allows(pattern: &str, text: &str) -> bool {
        Prefix::of(&hir(pattern)).allows(text.as_bytes(), 0)
    }

    #[test]
    fn what_cannot_begin_a_match_is_told() {
        let token = r"\bpat[A-Za-z0-9]{14}\.[a-f0-9]{64}";
        assert!(!allows(token, &format!("path {}", "a".repeat(90))));
        assert!(allows(
            token,
            &format!("patA0b1C2d3E4f5G6.{}", "a".repeat(64))
        ));
        // Too little is left.
        assert!(!allows(token, "patA0b1C2d3E4f5G6."));
    }

    #[test]
    fn an_optional_part_moves_what_follows() {
        for text in ["abc", "ac1", "abbb"] {
            assert!(allows("a(bb?)?c?", text), "{text}");
        }
        assert!(!allows("a(b|cd)e", "axe"));
        assert!(allows("a(b|cd)e", "acde"));
        assert!(allows("(a*)*b", "aab"));
        assert!(allows("", ""));
    }

    /// Repetitions of nothing, or in one another, would go on for hours.
    #[test]
    fn a_walk_has_an_end() {
        let deep = format!("{}a{}", "(".repeat(60), "+)".repeat(60));
        for pattern in ["(a?){4000000000}", deep.as_str()] {
            let prefix = Prefix::of(&hir(pattern));
            assert!(prefix.sets.is_empty() && prefix.allows(b"", 0));
        }
    }

    /// A pattern with everything that these have, as text.
    fn pattern() -> impl Strategy<Value = String> {
        let leaf = prop::sample::select(vec!["a", "b", "[ab]", "[^a]", "ab", r"\b", "c"]);
        leaf.prop_map(str::to_owned)
            .prop_recursive(4, 24, 4, |inner| {
                prop_oneof![
                    prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.concat()),
                    prop::collection::vec(inner.clone(), 1..4)
                        .prop_map(|parts| format!("(?:{})", parts.join("|"))),
                    (
                        inner,
                        prop::sample::select(vec!["*", "+", "?", "{2}", "{1,3}", "{0,30}"])
                    )
                        .prop_map(|(part, times)| format!("(?:{part}){times}")),
                ]
            })
    }

    proptest! {
        /// Wherever the regex finds a match, the sets allow one.
        #[test]
        fn no_match_is_overlooked(pattern in pattern(), text in "[abc ]{0,40}") {
            let hir = hir(&pattern);
            let prefix = Prefix::of(&hir);
            let regex = regex_automata::meta::Regex::builder().build_from_hir(&hir).unwrap();
            for found in regex.find_iter(&text) {
                prop_assert!(prefix.allows(text.as_bytes(), found.start()), "{}", found.start());
            }
        }
    }

    #[test]
    fn every_built_in_pattern_has_a_prefix() {
        for shape in SHAPES {
            let sets = Prefix::of(&hir(shape.pattern)).sets;
            assert!(sets.len() >= 2, "{}", shape.id);
            assert!(
                sets.iter().all(|set| *set != Set::default()),
                "{}",
                shape.id
            );
        }
    }
}
