//! Replacing matches of a regular expression in a stream.
//!
//! A stream is cut anywhere, and what is replaced must not depend on where. So a byte goes on as soon as no match that
//! has begun can still reach it: a lazy DFA, anchored at each position that may begin one, tells whether it is alive at
//! the end of what is there. Text that has nothing to do with the pattern is never held back.

use std::sync::{Arc, Mutex, PoisonError};

use regex::bytes::Regex;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input};

use crate::template::{Template, TemplateError};

/// The most bytes that are held back for a match that isn't complete. A match that is longer is not found whole: what
/// is held is looked at as if the body ended there.
pub const REWRITE_WINDOW: usize = 1 << 20;

/// The cache of a lazy DFA: small patterns need a few KiB, and the others get slower.
const DFA_CACHE: usize = 256 << 10;

/// Caches that are kept for the next body.
const SPARE_CACHES: usize = 16;

/// Steps of the DFA for one byte, on average, after which the rest is held without looking.
const STEPS_PER_BYTE: usize = 8;

/// A pattern and what its matches are replaced by.
#[derive(Debug)]
pub(crate) struct Replace {
    regex: Regex,
    with: Template,
    /// `None` for a pattern that it can't be built for; then everything is held up to the window.
    dfa: Option<DFA>,
    /// Whether a match may begin with a byte.
    first: Box<[bool; 256]>,
    caches: Mutex<Vec<Cache>>,
}

impl Replace {
    /// # Errors
    /// A replacement that is none, or names a group that isn't there.
    pub fn new(regex: Regex, with: &[u8]) -> Result<Self, TemplateError> {
        let with = Template::parse(with, &regex)?;
        let dfa = DFA::builder()
            .configure(
                DFA::config()
                    .cache_capacity(DFA_CACHE)
                    .skip_cache_capacity_check(true),
            )
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .thompson(regex_automata::nfa::thompson::Config::new().utf8(false))
            .build(regex.as_str())
            .ok();
        let first = Box::new(first_bytes(dfa.as_ref()));
        Ok(Self {
            regex,
            with,
            dfa,
            first,
            caches: Mutex::default(),
        })
    }

    /// Replaces every match in a text that is there as a whole. `None` if there is none.
    pub fn all(&self, text: &[u8]) -> Option<Vec<u8>> {
        self.regex.find(text)?;
        let mut out = Vec::with_capacity(text.len() + 64);
        let mut at = 0;
        self.up_to(text, &mut at, text.len(), true, &mut out);
        Some(out)
    }

    /// Replaces the matches that begin before `end`, from `at` on, and moves `at` behind what was written.
    fn up_to(&self, text: &[u8], at: &mut usize, end: usize, last: bool, out: &mut Vec<u8>) {
        let copy = |out: &mut Vec<u8>, from: usize, to: usize| {
            out.extend_from_slice(text.get(from..to).unwrap_or_default());
        };
        while *at < end || last {
            let Some(found) = self.regex.captures_at(text, *at) else {
                break;
            };
            let Some(whole) = found.get(0) else { break };
            if whole.start() >= end && !(last && whole.start() == end) {
                break;
            }
            copy(out, *at, whole.start());
            self.with.expand(&found, out);
            *at = whole.end();
            if whole.is_empty() {
                if *at >= text.len() {
                    return;
                }
                copy(out, *at, *at + 1);
                *at += 1;
            } else if *at >= text.len() && !last {
                return;
            }
        }
        if *at < end {
            copy(out, *at, end);
            *at = end;
        }
    }

    fn cache(&self, dfa: &DFA) -> Cache {
        let spare = self
            .caches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        spare.unwrap_or_else(|| dfa.create_cache())
    }

    fn put_back(&self, cache: Cache) {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        if caches.len() < SPARE_CACHES {
            caches.push(cache);
        }
    }

    /// The first position from `at` on where a match may have begun that isn't complete at the end of the text.
    fn undecided(&self, text: &[u8], at: usize) -> usize {
        let Some(dfa) = &self.dfa else { return at };
        let mut cache = self.cache(dfa);
        let mut budget = text
            .len()
            .saturating_sub(at)
            .saturating_mul(STEPS_PER_BYTE)
            .saturating_add(64);
        let mut position = at;
        let undecided = loop {
            let rest = text.get(position..).unwrap_or_default();
            let Some(skip) = rest
                .iter()
                .position(|b| self.first.get(usize::from(*b)).copied().unwrap_or(true))
            else {
                break text.len();
            };
            position += skip;
            if is_alive(dfa, &mut cache, text, position, &mut budget) {
                break position;
            }
            position += 1;
        };
        self.put_back(cache);
        undecided
    }
}

/// Whether a match that begins at a position could go on behind the end of the text.
fn is_alive(dfa: &DFA, cache: &mut Cache, text: &[u8], at: usize, budget: &mut usize) -> bool {
    let input = Input::new(text).range(at..).anchored(Anchored::Yes);
    let Ok(mut state) = dfa.start_state_forward(cache, &input) else {
        return true;
    };
    for byte in text.get(at..).unwrap_or_default() {
        if *budget == 0 {
            return true;
        }
        *budget -= 1;
        match dfa.next_state(cache, state, *byte) {
            Ok(next) if next.is_dead() => return false,
            Ok(next) if !next.is_quit() => state = next,
            _ => return true,
        }
    }
    true
}

/// The bytes that a match may begin with.
fn first_bytes(dfa: Option<&DFA>) -> [bool; 256] {
    let mut first = [true; 256];
    let Some(dfa) = dfa else { return first };
    let mut cache = dfa.create_cache();
    // What stands before decides about assertions: nothing, a word, no word, the end of a line.
    let contexts: [&[u8]; 4] = [b"", b"a", b" ", b"\n"];
    for (byte, may) in (0..=u8::MAX).zip(&mut first) {
        *may = contexts.iter().any(|before| {
            let input = Input::new(before)
                .range(before.len()..)
                .anchored(Anchored::Yes);
            let Ok(start) = dfa.start_state_forward(&mut cache, &input) else {
                return true;
            };
            !dfa.next_state(&mut cache, start, byte)
                .is_ok_and(|next| next.is_dead())
        });
    }
    first
}

/// One body's way through a [`Replace`].
#[derive(Debug)]
pub(crate) struct Rewriter {
    replace: Arc<Replace>,
    held: Vec<u8>,
    /// How much of `held` has been written already: kept for assertions that look behind.
    written: usize,
    window: usize,
}

impl Rewriter {
    pub fn new(replace: Arc<Replace>) -> Self {
        Self::with_window(replace, REWRITE_WINDOW)
    }

    fn with_window(replace: Arc<Replace>, window: usize) -> Self {
        Self {
            replace,
            held: Vec::new(),
            written: 0,
            window,
        }
    }

    /// Takes a piece, and appends what can go on.
    pub fn feed(&mut self, data: &[u8], out: &mut Vec<u8>) {
        self.held.extend_from_slice(data);
        let mut at = self.written;
        let mut end = self.replace.undecided(&self.held, at);
        if self.held.len().saturating_sub(end) > self.window {
            end = self.held.len();
        }
        self.replace.up_to(&self.held, &mut at, end, false, out);
        // One byte stays for what looks behind.
        let keep = at.saturating_sub(1);
        self.held.drain(..keep);
        self.written = at - keep;
    }

    /// The body has ended: appends the rest.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let mut at = self.written;
        self.replace
            .up_to(&self.held, &mut at, self.held.len(), true, out);
        self.held = Vec::new();
        self.written = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tollgate_flow::filter::python_regex;

    use super::*;

    fn replace(pattern: &str, with: &str) -> Arc<Replace> {
        let regex = python_regex(pattern, true, true).unwrap();
        Arc::new(Replace::new(regex, with.as_bytes()).unwrap())
    }

    fn whole(replace: &Replace, text: &[u8]) -> Vec<u8> {
        replace.all(text).unwrap_or_else(|| text.to_vec())
    }

    fn cut(replace: &Arc<Replace>, text: &[u8], sizes: &[usize]) -> Vec<u8> {
        let mut rewriter = Rewriter::new(Arc::clone(replace));
        let mut out = Vec::new();
        let mut rest = text;
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*size).clamp(1, rest.len()));
            rewriter.feed(piece, &mut out);
            rest = after;
        }
        rewriter.finish(&mut out);
        out
    }

    const PATTERNS: [(&str, &str); 12] = [
        ("secret", "[x]"),
        ("a+b", r"<\g<0>>"),
        ("(a)(b)?", r"\2\1"),
        (r"\bab\b", "W"),
        ("^a", "^"),
        ("b$", "$"),
        ("x*", "-"),
        ("a.*b", "@"),
        ("a|ab|abc", "|"),
        ("", "e"),
        ("(?i)AB", "i"),
        ("[^a]b", "n"),
    ];

    #[test]
    fn a_text_is_replaced_as_python_does() {
        for (pattern, with, text, expected) in [
            ("secret", "[x]", "a secret secrets", "a [x] [x]s"),
            ("a+b", r"<\g<0>>", "aab ab b", "<aab> <ab> b"),
            ("x*", "-", "abd", "-a-b-d-"),
            ("^a", "^", "aa", "^a"),
            ("b$", "$", "bb\n", "b$"),
            ("", "e", "ab", "eaebe"),
        ] {
            let replace = replace(pattern, with);
            let got = String::from_utf8(whole(&replace, text.as_bytes())).unwrap();
            assert_eq!(got, expected, "{pattern}");
        }
    }

    #[test]
    fn nothing_waits_that_no_match_has_begun_in() {
        let replace = replace("secret", "x");
        let mut rewriter = Rewriter::new(replace);
        let mut out = Vec::new();
        rewriter.feed(b"data: hello\n\n", &mut out);
        assert_eq!(out, b"data: hello\n\n");
        out.clear();
        rewriter.feed(b"data: sec", &mut out);
        assert_eq!(out, b"data: ");
        out.clear();
        rewriter.feed(b"ond\n\n", &mut out);
        assert_eq!(out, b"second\n\n");
    }

    #[test]
    fn what_never_ends_is_held_up_to_the_window() {
        let replace = replace("a.*b", "x");
        let mut rewriter = Rewriter::with_window(replace, 64);
        let mut out = Vec::new();
        for _ in 0..100 {
            rewriter.feed(b"aaaaaaaaaa", &mut out);
            assert!(rewriter.held.len() <= 64 + 11);
        }
        rewriter.finish(&mut out);
        assert_eq!(out, [b'a'; 1000]);
    }

    proptest! {
        #[test]
        fn the_cut_does_not_matter(
            text in "[abxc \nsecrt]{0,80}",
            sizes in prop::collection::vec(1_usize..9, 1..6),
        ) {
            for (pattern, with) in PATTERNS {
                let replace = replace(pattern, with);
                let in_pieces = cut(&replace, text.as_bytes(), &sizes);
                let at_once = whole(&replace, text.as_bytes());
                prop_assert_eq!(
                    String::from_utf8_lossy(&in_pieces),
                    String::from_utf8_lossy(&at_once),
                    "{}", pattern
                );
            }
        }
    }
}
