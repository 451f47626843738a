//! Which literals a match of a pattern must contain, derived from the pattern itself.
//!
//! A rule's regex runs only where one of these literals was seen. A prefilter that was written by
//! hand can disagree with its pattern, and then the pattern silently never matches; this one is
//! computed from the parsed pattern, and a property test holds it against the regex.

use regex_syntax::hir::{Class, Hir, HirKind};

/// At most this many literals for one pattern; a pattern that needs more has no literals.
const MAX_LITERALS: usize = 96;
/// Literals are cut to this many bytes. A prefix of a required literal is required, too.
pub(super) const MAX_LITERAL_LEN: usize = 24;
/// Classes with more members than this are not spelled out.
const MAX_CLASS: u32 = 16;

/// The literals of a pattern: every match contains at least one, ASCII case-insensitively.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Required {
    /// In lower case, sorted, without duplicates; none is shorter than two bytes.
    pub(super) literals: Vec<Vec<u8>>,
    /// The least number of bytes between the match's start and the literal's.
    pub(super) offset_min: usize,
    /// The greatest number, if the pattern bounds it.
    pub(super) offset_max: Option<usize>,
}

impl Required {
    /// Derives the literals of a pattern; `None` if it demands none of at least two bytes.
    pub(super) fn of(hir: &Hir) -> Option<Self> {
        let mut best = required(hir)?;
        for literal in &mut best.literals {
            literal.truncate(MAX_LITERAL_LEN);
        }
        best.literals.sort();
        best.literals.dedup();
        (best.shortest() >= 2).then_some(best)
    }

    fn shortest(&self) -> usize {
        self.literals.iter().map(Vec::len).min().unwrap_or(0)
    }

    /// How much better than another set this is to look for: long before few, near the start.
    fn rank(&self) -> (usize, bool, usize) {
        (
            self.shortest().min(6),
            self.offset_max == Some(self.offset_min),
            MAX_LITERALS.saturating_sub(self.literals.len()),
        )
    }
}

/// The best required set anywhere in the pattern.
fn required(hir: &Hir) -> Option<Required> {
    if let Some(literals) = exact(hir) {
        return usable(Required {
            literals,
            offset_min: 0,
            offset_max: Some(0),
        });
    }
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) | HirKind::Class(_) | HirKind::Literal(_) => None,
        HirKind::Capture(capture) => required(&capture.sub),
        HirKind::Repetition(repetition) => {
            if repetition.min == 0 {
                return None;
            }
            // `A{20,24}` demands twenty of them in a row.
            if let Some([only]) = exact(&repetition.sub).as_deref()
                && !only.is_empty()
            {
                let times = usize::try_from(repetition.min.min(8)).unwrap_or(1);
                return usable(Required {
                    literals: vec![only.repeat(times)],
                    offset_min: 0,
                    offset_max: Some(0),
                });
            }
            required(&repetition.sub)
        }
        HirKind::Alternation(branches) => {
            let mut all: Option<Required> = None;
            for branch in branches {
                let one = required(branch)?;
                all = Some(match all {
                    None => one,
                    Some(mut sum) => {
                        sum.literals.extend(one.literals);
                        sum.offset_min = sum.offset_min.min(one.offset_min);
                        sum.offset_max = match (sum.offset_max, one.offset_max) {
                            (Some(a), Some(b)) => Some(a.max(b)),
                            _ => None,
                        };
                        sum
                    }
                });
            }
            all.and_then(usable)
        }
        HirKind::Concat(parts) => concat(parts),
    }
}

fn concat(parts: &[Hir]) -> Option<Required> {
    let mut best: Option<Required> = None;
    let consider = |candidate: Option<Required>, best: &mut Option<Required>| {
        if let Some(candidate) = candidate.and_then(usable)
            && best
                .as_ref()
                .is_none_or(|old| candidate.rank() > old.rank())
        {
            *best = Some(candidate);
        }
    };
    // A run of neighbours whose strings can all be spelled out, and where it starts.
    let mut run: Option<Required> = None;
    let mut offset_min = 0_usize;
    let mut offset_max = Some(0_usize);
    for part in parts {
        let spelled = exact(part);
        match (&mut run, spelled) {
            (Some(open), Some(next)) if open.literals.len() * next.len() <= MAX_LITERALS => {
                open.literals = open
                    .literals
                    .iter()
                    .flat_map(|head| {
                        next.iter().map(|tail| {
                            let mut both = head.clone();
                            both.extend_from_slice(tail);
                            both
                        })
                    })
                    .collect();
            }
            (open, spelled) => {
                let mut closed = open.take();
                // A repetition starts with what it repeats: `SK[0-9a-f]{32}` demands one digit more.
                if spelled.is_none()
                    && let Some(run) = &mut closed
                    && let HirKind::Repetition(repetition) = part.kind()
                    && repetition.min >= 1
                    && let Some(next) = exact(&repetition.sub)
                    && run.shortest() < 4
                    && run.literals.len() * next.len() <= MAX_LITERALS
                {
                    run.literals = run
                        .literals
                        .iter()
                        .flat_map(|head| next.iter().map(|tail| [head.as_slice(), tail].concat()))
                        .collect();
                }
                consider(closed, &mut best);
                match spelled {
                    Some(literals) => {
                        *open = Some(Required {
                            literals,
                            offset_min,
                            offset_max,
                        });
                    }
                    None => {
                        let inner = required(part).map(|mut inner| {
                            inner.offset_min = inner.offset_min.saturating_add(offset_min);
                            inner.offset_max = match (inner.offset_max, offset_max) {
                                (Some(a), Some(b)) => a.checked_add(b),
                                _ => None,
                            };
                            inner
                        });
                        consider(inner, &mut best);
                    }
                }
            }
        }
        let properties = part.properties();
        offset_min = offset_min.saturating_add(properties.minimum_len().unwrap_or(0));
        offset_max = match (offset_max, properties.maximum_len()) {
            (Some(a), Some(b)) => a.checked_add(b),
            _ => None,
        };
    }
    consider(run, &mut best);
    best
}

/// A set that can serve: not too many, none empty.
fn usable(set: Required) -> Option<Required> {
    (set.literals.len() <= MAX_LITERALS && set.shortest() >= 1).then_some(set)
}

/// Every string the pattern matches, in lower case, if they can be spelled out.
fn exact(hir: &Hir) -> Option<Vec<Vec<u8>>> {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Some(vec![Vec::new()]),
        HirKind::Literal(literal) => Some(vec![literal.0.to_ascii_lowercase()]),
        HirKind::Class(class) => spell(class),
        HirKind::Capture(capture) => exact(&capture.sub),
        HirKind::Repetition(repetition) => {
            let once = exact(&repetition.sub)?;
            let exactly = repetition.max == Some(repetition.min);
            if once.len() == 1 && exactly && repetition.min <= 8 {
                let times = usize::try_from(repetition.min).ok()?;
                return Some(once.iter().map(|one| one.repeat(times)).collect());
            }
            if repetition.min == 0 && repetition.max == Some(1) {
                let mut with_none = once;
                with_none.push(Vec::new());
                with_none.sort();
                with_none.dedup();
                return Some(with_none);
            }
            None
        }
        HirKind::Alternation(branches) => {
            let mut all = Vec::new();
            for branch in branches {
                all.extend(exact(branch)?);
            }
            all.sort();
            all.dedup();
            (all.len() <= MAX_LITERALS).then_some(all)
        }
        HirKind::Concat(parts) => {
            let mut all = vec![Vec::new()];
            for part in parts {
                let next = exact(part)?;
                if all.len() * next.len() > MAX_LITERALS {
                    return None;
                }
                all = all
                    .iter()
                    .flat_map(|head: &Vec<u8>| {
                        next.iter().map(|tail| {
                            let mut both = head.clone();
                            both.extend_from_slice(tail);
                            both
                        })
                    })
                    .collect();
            }
            all.sort();
            all.dedup();
            Some(all)
        }
    }
}

fn spell(class: &Class) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    match class {
        Class::Bytes(bytes) => {
            let size: u32 = bytes
                .ranges()
                .iter()
                .map(|range| u32::from(range.end()) - u32::from(range.start()) + 1)
                .sum();
            if size > MAX_CLASS {
                return None;
            }
            for range in bytes.ranges() {
                for byte in range.start()..=range.end() {
                    all.push(vec![byte.to_ascii_lowercase()]);
                }
            }
        }
        Class::Unicode(chars) => {
            let size: u32 = chars
                .ranges()
                .iter()
                .map(|range| u32::from(range.end()) - u32::from(range.start()) + 1)
                .sum();
            if size > MAX_CLASS {
                return None;
            }
            for range in chars.ranges() {
                for c in range.start()..=range.end() {
                    let mut utf8 = [0; 4];
                    all.push(c.encode_utf8(&mut utf8).as_bytes().to_ascii_lowercase());
                }
            }
        }
    }
    all.sort();
    all.dedup();
    (!all.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pattern: &str) -> Option<Required> {
        let hir = regex_syntax::ParserBuilder::new()
            .unicode(false)
            .utf8(false)
            .build()
            .parse(pattern)
            .unwrap();
        Required::of(&hir)
    }

    fn literals(pattern: &str) -> Vec<String> {
        let set = of(pattern).map(|r| r.literals).unwrap_or_default();
        set.into_iter()
            .map(|l| String::from_utf8_lossy(&l).into_owned())
            .collect()
    }

    #[test]
    fn an_alternation_at_the_top_gives_every_branch() {
        assert_eq!(literals(r"acmea_\d{10}|acmeb_\d{10}"), ["acmea_", "acmeb_"]);
    }

    #[test]
    fn an_optional_last_letter_is_not_required() {
        assert_eq!(literals(r"zedkeys?_[0-9]+"), ["zedkey_", "zedkeys_"]);
        assert_eq!(literals(r"abc[0-9]*d?"), ["abc"]);
    }

    #[test]
    fn small_classes_are_spelled_out() {
        assert_eq!(
            literals(r"gh[pousr]_[0-9A-Za-z]{36}"),
            ["gho_", "ghp_", "ghr_", "ghs_", "ghu_"]
        );
    }

    #[test]
    fn case_does_not_matter() {
        assert_eq!(literals(r"(?i)AdaFruit"), ["adafruit"]);
    }

    #[test]
    fn a_literal_in_the_middle_knows_its_distance() {
        let set = of(r"[\w.-]{0,50}?(?:discord)[0-9]+").unwrap();
        assert_eq!((set.offset_min, set.offset_max), (0, Some(50)));
        let set = of(r"\b(AKIA[A-Z2-7]{16})\b").unwrap();
        assert_eq!((set.offset_min, set.offset_max), (0, Some(0)));
    }

    #[test]
    fn no_literal_is_said_so() {
        assert_eq!(of(r"[0-9a-f]{32}"), None);
        assert_eq!(of(r"abc|[0-9]+"), None);
        assert_eq!(of(r"(abc)?[0-9]"), None);
    }
}
