//! Rules that are patterns: compiled, and with the literals that bring them into play.

use std::sync::{Arc, OnceLock};

use regex_automata::meta::Regex;
use regex_automata::util::captures::Captures;
use regex_automata::{Anchored, Input};
use regex_syntax::hir::{Hir, HirKind, Look};

use super::finding::{Category, Severity};
use super::literals::Required;
use super::prefix::Prefix;
use super::verify::{self, Verdict, Verify};

/// No compiled pattern may take more than this many bytes.
const SIZE_LIMIT: usize = 32 << 20;

/// What a rule is called and how much it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleInfo {
    /// The id that findings carry.
    pub id: Arc<str>,
    /// One line for people.
    pub description: Arc<str>,
    /// What its findings are.
    pub category: Category,
    /// How bad its findings are.
    pub severity: Severity,
}

/// Why a pattern is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// The pattern is not a regular expression that this engine knows.
    #[error("the pattern is invalid: {0}")]
    Syntax(String),
    /// The pattern compiles to more than 32 MiB.
    #[error("the pattern is too large when compiled")]
    TooLarge,
    /// `secretGroup` names a group that the pattern doesn't have.
    #[error("secretGroup is {group}, and the pattern has {groups} groups")]
    NoSuchGroup {
        /// The group asked for.
        group: usize,
        /// How many there are.
        groups: usize,
    },
}

/// A pattern that is compiled when it is first needed.
#[derive(Debug)]
pub(super) struct Pattern {
    hir: Hir,
    /// It starts with `\b`.
    at_word: bool,
    prefix: Prefix,
    /// The greatest length of a match, if the pattern bounds it.
    longest: Option<usize>,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    /// Parses a pattern. Unless it needs Unicode classes, `\w`, `\d`, `\s` and `\b` mean ASCII, as
    /// they do in RE2.
    pub(super) fn parse(pattern: &str) -> Result<Self, PatternError> {
        let parse = |unicode: bool| {
            regex_syntax::ParserBuilder::new()
                .unicode(unicode)
                .utf8(false)
                .build()
                .parse(pattern)
                .map_err(|error| one_line(&error.to_string()))
        };
        let hir = parse(false)
            .or_else(|_| parse(true))
            .map_err(PatternError::Syntax)?;
        let first = match hir.kind() {
            HirKind::Concat(parts) => parts.first().map(Hir::kind),
            kind => Some(kind),
        };
        let at_word = matches!(first, Some(HirKind::Look(Look::WordAscii)));
        Ok(Pattern {
            at_word,
            prefix: Prefix::of(&hir),
            longest: hir.properties().maximum_len(),
            hir,
            compiled: OnceLock::new(),
        })
    }

    /// Compiles now, so that a pattern that is too large is an error and not a rule that never
    /// matches.
    pub(super) fn compile(&self) -> Result<usize, PatternError> {
        match self.regex() {
            Some(regex) => Ok(regex.captures_len().saturating_sub(1)),
            None => Err(PatternError::TooLarge),
        }
    }

    pub(super) fn required(&self) -> Option<Required> {
        Required::of(&self.hir)
    }

    pub(super) fn regex(&self) -> Option<&Regex> {
        self.compiled
            .get_or_init(|| {
                Regex::builder()
                    .configure(
                        Regex::config()
                            .nfa_size_limit(Some(SIZE_LIMIT))
                            .onepass_size_limit(Some(1 << 16))
                            .hybrid_cache_capacity(1 << 20)
                            .utf8_empty(false),
                    )
                    .build_from_hir(&self.hir)
                    .ok()
            })
            .as_ref()
    }

    /// The greatest length of a match, if the pattern bounds it.
    pub(super) fn longest(&self) -> Option<usize> {
        self.longest
    }

    /// Whether a match has to start a word.
    pub(super) fn starts_at_word(&self) -> bool {
        self.at_word
    }

    pub(super) fn is_match(&self, text: &[u8]) -> bool {
        self.regex().is_some_and(|regex| regex.is_match(text))
    }
}

fn one_line(text: &str) -> String {
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    last.unwrap_or(text)
        .trim()
        .trim_start_matches("error: ")
        .to_owned()
}

/// What an allowlist of a rule pack lets pass.
#[derive(Debug, Default)]
pub(super) struct Allowlist {
    /// Every kind of check must agree, not just one.
    pub(super) all: bool,
    pub(super) target: Target,
    pub(super) regexes: Vec<Pattern>,
    /// Lower case.
    pub(super) stopwords: Vec<Vec<u8>>,
    /// It also demands a path or commit that text without a file can't meet.
    pub(super) needs_file: bool,
}

/// What an allowlist's regexes look at.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    #[default]
    Secret,
    Match,
    Line,
}

impl Allowlist {
    fn allows(&self, secret: &[u8], whole: &[u8], line: &[u8]) -> bool {
        let text = match self.target {
            Target::Secret => secret,
            Target::Match => whole,
            Target::Line => line,
        };
        let by_regex = || self.regexes.iter().any(|regex| regex.is_match(text));
        let by_word = || {
            let lower = secret.to_ascii_lowercase();
            self.stopwords
                .iter()
                .any(|word| verify::contains(&lower, word))
        };
        if self.all {
            !self.needs_file
                && (self.regexes.is_empty() || by_regex())
                && (self.stopwords.is_empty() || by_word())
                && !(self.regexes.is_empty() && self.stopwords.is_empty())
        } else {
            by_regex() || by_word()
        }
    }
}

/// A rule that is a pattern.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) info: RuleInfo,
    pub(super) pattern: Pattern,
    /// Which group is the secret; 0 is: the first group that took part, or the whole match.
    pub(super) group: usize,
    pub(super) min_entropy: f64,
    pub(super) verify: Verify,
    pub(super) allow: Vec<Arc<Allowlist>>,
    /// What must stand in the neighbourhood if the pattern itself demands no literal.
    pub(super) keywords: Vec<Vec<u8>>,
}

/// A match of a rule, in offsets of the text that was searched.
pub(super) struct Hit {
    pub(super) whole: std::ops::Range<usize>,
    pub(super) secret: std::ops::Range<usize>,
    pub(super) verdict: Verdict,
}

impl Rule {
    /// Searches from `from`; `anchored` demands that the match starts right there.
    pub(super) fn find(&self, text: &[u8], from: usize, anchored: bool) -> Option<Hit> {
        self.find_within(text, from..text.len(), anchored)
    }

    /// The same for matches that lie within `range`; what is around it is known to the pattern.
    pub(super) fn find_within(
        &self,
        text: &[u8],
        range: std::ops::Range<usize>,
        anchored: bool,
    ) -> Option<Hit> {
        let from = range.start;
        // Cheaper than asking the regex: a match that has to start a word can't start inside one.
        if anchored && self.pattern.at_word {
            let word = |at: Option<usize>| {
                at.and_then(|at| text.get(at))
                    .is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
            };
            if word(from.checked_sub(1)) == word(Some(from)) {
                return None;
            }
        }
        if anchored && !self.pattern.prefix.allows(text, from) {
            return None;
        }
        let regex = self.pattern.regex()?;
        let input = Input::new(text).range(range).anchored(if anchored {
            Anchored::Yes
        } else {
            Anchored::No
        });
        // Most candidates fail, and without groups that is found out faster.
        regex.search_half(&input)?;
        let mut groups: Captures = regex.create_captures();
        regex.search_captures(&input, &mut groups);
        let whole = groups.get_match()?.range();
        let secret = if self.group > 0 {
            groups.get_group(self.group)
        } else {
            (1..regex.captures_len()).find_map(|group| groups.get_group(group))
        };
        let secret = secret.map_or(whole.clone(), |span| span.start..span.end);
        let verdict = self.judge(text, &whole, &secret);
        Some(Hit {
            whole,
            secret,
            verdict,
        })
    }

    fn judge(
        &self,
        text: &[u8],
        whole: &std::ops::Range<usize>,
        secret: &std::ops::Range<usize>,
    ) -> Verdict {
        let value = text.get(secret.clone()).unwrap_or_default();
        if self.min_entropy > 0.0 && verify::entropy(value) <= self.min_entropy {
            return Verdict::No;
        }
        let verdict = (self.verify)(value);
        if verdict == Verdict::No || self.allow.is_empty() {
            return verdict;
        }
        let matched = text.get(whole.clone()).unwrap_or_default();
        let start = text
            .get(..whole.start)
            .and_then(|head| head.iter().rposition(|&byte| byte == b'\n'))
            .map_or(0, |at| at + 1);
        let end = text
            .get(whole.end..)
            .and_then(|tail| tail.iter().position(|&byte| byte == b'\n'))
            .map_or(text.len(), |at| whole.end + at);
        let line = text.get(start..end).unwrap_or_default();
        if self
            .allow
            .iter()
            .any(|list| list.allows(value, matched, line))
        {
            return Verdict::No;
        }
        verdict
    }
}
