//! The scanner: one pass over blocks of text, and what it remembers between them.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::assign;
use super::builtin::SHAPES;
use super::catalogue;
use super::command;
use super::finding::{Confidence, Finding, Kind, Range64};
use super::gitleaks::RulePack;
use super::injection;
use super::known::KnownSecrets;
use super::literals::MAX_LITERAL_LEN;
use super::multi::{Literal, Literals, in_word};
use super::rule::{Pattern, PatternError, Rule, RuleInfo};
use super::toolcall;
use super::url;
use super::verify::Verdict;
use crate::shell::{MAX_SCRIPT, Script};

/// Text is judged in blocks of this many bytes, at fixed offsets of the stream.
pub(crate) const BLOCK: usize = 1024;
/// A block is judged with this many bytes before it …
pub(crate) const BACK: usize = 512;
/// … and this many after it, or with what there is when the stream ends.
pub(crate) const AHEAD: usize = 1536;
/// How many recent findings are remembered so that none is told twice.
const RECENT: usize = 24;
/// How deep encodings are opened.
pub(super) const MAX_DEPTH: u8 = 3;

/// Compiled rules, shared by every stream. Cheap to clone.
///
/// ```
/// use tollgate_screen::scan::{Kind, Scanner};
///
/// let scanner = Scanner::builtin();
/// let mut state = scanner.start(Kind::Outbound);
/// let mut findings = Vec::new();
/// for piece in ["the key is AKIA", "Y3T6", "DKCNFLR2", "QWZ4, keep it"] {
///     scanner.feed(&mut state, piece.as_bytes(), &mut findings);
/// }
/// scanner.finish(&mut state, &mut findings);
/// assert_eq!(&*findings[0].rule, "aws-access-key-id");
/// ```
#[derive(Debug, Clone)]
pub struct Scanner {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    rules: Vec<Rule>,
    literals: Literals,
    /// What each literal brings into play.
    hooks: Vec<Vec<Hook>>,
    /// Rules whose patterns demand no literal and that have no keywords: they look at every block.
    everywhere: Vec<usize>,
    known: KnownSecrets,
    silent: HashSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    /// A literal of the rule's pattern, this far from where the match starts.
    Pattern {
        rule: usize,
        least: usize,
        most: usize,
    },
    /// A keyword of a rule whose pattern has no literal: it looks at the neighbourhood.
    Keyword { rule: usize },
    /// A word that names a secret: see [`assign`].
    Assign,
    /// The middle of an address: see [`url`].
    Url,
    /// A part of an order to a model: see [`injection`].
    Order,
    /// A key of a tool call's arguments: see [`toolcall`].
    CommandKey,
    /// As well.
    PathKey,
}

/// Builds a [`Scanner`].
#[derive(Debug)]
pub struct ScannerBuilder {
    builtin: bool,
    packs: Vec<RulePack>,
    known: KnownSecrets,
    silent: HashSet<String>,
}

/// Why a [`Scanner`] can't be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A rule of the built-in pack doesn't compile; a bug.
    #[error("built-in rule `{rule}`: {error}")]
    Builtin {
        /// The rule's id.
        rule: String,
        /// What is wrong with it.
        error: PatternError,
    },
}

impl Default for ScannerBuilder {
    fn default() -> Self {
        ScannerBuilder {
            builtin: true,
            packs: Vec::new(),
            known: KnownSecrets::new(),
            silent: HashSet::new(),
        }
    }
}

impl ScannerBuilder {
    /// Leaves the built-in rules for tokens out; scanners that are not patterns stay.
    #[must_use]
    pub fn without_builtin(mut self) -> Self {
        self.builtin = false;
        self
    }

    /// Adds a rule pack.
    #[must_use]
    pub fn pack(mut self, pack: RulePack) -> Self {
        self.packs.push(pack);
        self
    }

    /// Looks for these values, and for those given before no more.
    #[must_use]
    pub fn known(mut self, known: KnownSecrets) -> Self {
        self.known = known;
        self
    }

    /// Never reports this rule.
    #[must_use]
    pub fn allow(mut self, rule: impl Into<String>) -> Self {
        self.silent.insert(rule.into());
        self
    }

    /// Compiles.
    ///
    /// # Errors
    /// None today; the packs were checked when they were read.
    pub fn build(mut self) -> Result<Scanner, BuildError> {
        self.known.seal();
        let mut rules: Vec<Rule> = Vec::new();
        if self.builtin {
            for shape in SHAPES {
                let pattern =
                    Pattern::parse(shape.pattern).map_err(|error| BuildError::Builtin {
                        rule: shape.id.to_owned(),
                        error,
                    })?;
                rules.push(Rule {
                    info: RuleInfo {
                        id: shape.id.into(),
                        description: shape.description.into(),
                        category: shape.category,
                        severity: shape.severity,
                    },
                    pattern,
                    group: 0,
                    min_entropy: 0.0,
                    verify: shape.verify,
                    allow: Vec::new(),
                    keywords: Vec::new(),
                });
            }
        }
        rules.extend(self.packs.into_iter().flat_map(|pack| pack.rules));

        let mut table = Table::default();
        let mut everywhere = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            match rule.pattern.required() {
                Some(required) => {
                    let hook = Hook::Pattern {
                        rule: index,
                        least: required.offset_min,
                        most: required.offset_max.unwrap_or(BACK).min(BACK),
                    };
                    for literal in required.literals {
                        table.add(literal, hook);
                    }
                }
                None if rule.keywords.is_empty() => everywhere.push(index),
                None => {
                    for keyword in &rule.keywords {
                        let mut literal = keyword.clone();
                        literal.truncate(MAX_LITERAL_LEN);
                        table.add(literal, Hook::Keyword { rule: index });
                    }
                }
            }
        }
        for word in assign::WORDS {
            table.add(word.as_bytes().to_vec(), Hook::Assign);
        }
        table.add(b"://".to_vec(), Hook::Url);
        for anchor in injection::anchors() {
            table.add(anchor.as_bytes().to_vec(), Hook::Order);
        }
        for key in toolcall::COMMAND_KEYS {
            table.add(key.as_bytes().to_vec(), Hook::CommandKey);
        }
        for key in toolcall::PATH_KEYS {
            table.add(key.as_bytes().to_vec(), Hook::PathKey);
        }
        let literals = Literals::new(table.literals(&rules));
        Ok(Scanner {
            inner: Arc::new(Inner {
                rules,
                literals,
                hooks: table.hooks,
                everywhere,
                known: self.known,
                silent: self.silent,
            }),
        })
    }
}

#[derive(Default)]
struct Table {
    literals: Vec<Vec<u8>>,
    hooks: Vec<Vec<Hook>>,
    index: std::collections::HashMap<Vec<u8>, usize>,
}

impl Table {
    /// The literals. Where nothing is asked of one but to start a match that starts a word, it needn't be found inside.
    fn literals(&self, rules: &[Rule]) -> Vec<Literal> {
        let starts_word = |hook: &Hook| match *hook {
            Hook::Pattern { rule, most: 0, .. } => rules
                .get(rule)
                .is_some_and(|rule| rule.pattern.starts_at_word()),
            _ => false,
        };
        self.literals
            .iter()
            .zip(&self.hooks)
            .map(|(text, hooks)| Literal {
                text: text.clone(),
                starts_word: hooks.iter().all(starts_word)
                    && text.first().copied().is_some_and(in_word),
            })
            .collect()
    }

    fn add(&mut self, literal: Vec<u8>, hook: Hook) {
        let at = match self.index.get(&literal) {
            Some(&at) => at,
            None => {
                let at = self.literals.len();
                self.index.insert(literal.clone(), at);
                self.literals.push(literal);
                self.hooks.push(Vec::new());
                at
            }
        };
        if let Some(hooks) = self.hooks.get_mut(at)
            && !hooks.contains(&hook)
        {
            hooks.push(hook);
        }
    }
}

/// What one stream needs to remember: at most 4 KiB, whatever is fed; for [`Kind::Command`] the script as well, up to
/// [`MAX_SCRIPT`] bytes of it.
///
/// A clone is a snapshot: finishing it tells what would be found if the stream ended here, and
/// leaves the stream as it is.
#[derive(Debug, Clone)]
pub struct ScanState {
    kind: Kind,
    /// How many bytes were fed.
    fed: u64,
    /// Everything before this offset was judged. A multiple of [`BLOCK`].
    judged: u64,
    /// The bytes from `judged - BACK` (or the start) to `fed`.
    tail: Vec<u8>,
    /// Of a command, the beginning: a quoted string may be longer than a block, and what stands behind it is
    /// understood only with it.
    script: Vec<u8>,
    memo: Memo,
}

impl ScanState {
    /// How many bytes were fed so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.fed
    }

    /// Everything before this offset is settled: it was judged, and no finding that is still to
    /// come begins there.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.judged.saturating_sub(BACK as u64)
    }

    /// The memory that this state takes, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        size_of::<Self>()
            + self.tail.capacity()
            + self.script.capacity()
            + self.memo.found.capacity() * size_of::<(u32, u32)>()
    }
}

/// What later blocks need to know of earlier ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Memo {
    recent: [(u32, u64, u64); RECENT],
    next: usize,
    /// How many bytes compressed stretches have become.
    pub(super) inflated: u64,
    /// Up to where orders to a model were weighed.
    pub(super) weighed: u64,
    /// Room for the literals of a block.
    found: Vec<(u32, u32)>,
}

/// A block with its surroundings. What is found in it depends on nothing else.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window<'t> {
    pub(super) text: &'t [u8],
    /// The offset of `text` in the stream.
    pub(super) base: u64,
    /// Where the block starts in `text` …
    pub(super) from: usize,
    /// … and where it ends.
    pub(super) to: usize,
}

impl<'t> Window<'t> {
    pub(super) fn get(&self, range: Range<usize>) -> &'t [u8] {
        self.text.get(range).unwrap_or_default()
    }
}

/// One pass over one window.
pub(super) struct Pass<'a> {
    pub(super) scanner: &'a Inner,
    pub(super) kind: Kind,
    pub(super) memo: &'a mut Memo,
    pub(super) out: &'a mut Vec<Finding>,
    /// For decoded text: where it came from, and through what.
    pub(super) origin: Option<(Range64, Vec<&'static str>)>,
    pub(super) depth: u8,
}

/// What is said about a place.
pub(super) struct Report {
    pub(super) confidence: Confidence,
    pub(super) excerpt: String,
    pub(super) score: Option<u8>,
}

impl Scanner {
    /// The built-in rules.
    ///
    /// # Panics
    /// Never: a test compiles every built-in rule.
    #[must_use]
    pub fn builtin() -> Self {
        #[expect(
            clippy::expect_used,
            reason = "nothing here depends on input; a test builds it"
        )]
        ScannerBuilder::default()
            .build()
            .expect("the built-in rules compile")
    }

    /// Starts with the built-in rules and adds to them.
    #[must_use]
    pub fn builder() -> ScannerBuilder {
        ScannerBuilder::default()
    }

    /// Every rule: patterns, built in and loaded, and those that are code. Some ids stand there
    /// more than once, for as many shapes.
    pub fn rules(&self) -> impl Iterator<Item = RuleInfo> {
        self.inner
            .rules
            .iter()
            .map(|rule| rule.info.clone())
            .chain(catalogue::all())
            .chain(command::all())
    }

    /// Whether this rule is never reported.
    pub(crate) fn is_allowed(&self, rule: &str) -> bool {
        self.inner.silent.contains(rule)
    }

    /// Begins a stream.
    #[must_use]
    pub fn start(&self, kind: Kind) -> ScanState {
        ScanState {
            kind,
            fed: 0,
            judged: 0,
            tail: Vec::new(),
            script: Vec::new(),
            memo: Memo::default(),
        }
    }

    /// Takes the next bytes of a stream. A finding is told as soon as the block it stands in and
    /// the text after it have arrived, at most 3 KiB later; [`finish`](Self::finish) tells the rest, and what a script
    /// as a whole would run.
    pub fn feed(&self, state: &mut ScanState, bytes: &[u8], out: &mut Vec<Finding>) {
        if state.kind == Kind::Command {
            let room = MAX_SCRIPT.saturating_sub(state.script.len());
            let beginning = bytes.get(..room.min(bytes.len())).unwrap_or_default();
            state.script.extend_from_slice(beginning);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            // Large pieces are judged where they are; only the seam is copied.
            if rest.len() >= 4 * (BACK + BLOCK + AHEAD) && state.tail.is_empty() {
                rest = self.judge_in_place(state, rest, out);
            }
            let held = usize::try_from(state.fed - state.judged).unwrap_or(usize::MAX);
            let room = (BLOCK + AHEAD).saturating_sub(held).min(rest.len());
            let (now, later) = rest.split_at_checked(room).unwrap_or((rest, &[]));
            if state.tail.capacity() == 0 {
                // Small texts don't pay for the whole window.
                state
                    .tail
                    .reserve_exact(now.len().min(BACK + BLOCK + AHEAD));
            } else if state.tail.capacity() < state.tail.len() + now.len() {
                let more = BACK + BLOCK + AHEAD - state.tail.len().min(BACK + BLOCK + AHEAD);
                state.tail.reserve_exact(more.max(now.len()));
            }
            state.tail.extend_from_slice(now);
            state.fed += now.len() as u64;
            rest = later;
            if state.fed - state.judged >= (BLOCK + AHEAD) as u64 {
                self.judge_block(state, BLOCK, out);
                // What follows may be large enough to be judged in place: then the tail, which a
                // large piece would need before it, is short work.
                if rest.len() >= 4 * (BACK + BLOCK + AHEAD) {
                    rest = self.bridge(state, rest, out);
                }
            }
        }
    }

    /// Ends a stream: what is left is judged. The state is as new afterwards.
    pub fn finish(&self, state: &mut ScanState, out: &mut Vec<Finding>) {
        while state.judged < state.fed {
            let left = usize::try_from(state.fed - state.judged).unwrap_or(usize::MAX);
            self.judge_block(state, left.min(BLOCK), out);
        }
        let script = std::mem::take(&mut state.script);
        if !script.is_empty() {
            let whole = Window {
                text: &script,
                base: 0,
                from: 0,
                to: script.len(),
            };
            self.pass(state.kind, &mut state.memo, out)
                .command(whole, 0..script.len());
        }
        *state = self.start(state.kind);
    }

    /// Scans a whole text.
    #[must_use]
    pub fn scan(&self, kind: Kind, text: &[u8]) -> Vec<Finding> {
        self.scan_from(kind, text, 0)
    }

    /// Scans a text from this offset on, a multiple of [`BLOCK`]: blocks that have their whole surroundings behind it are
    /// judged as if all had been scanned, and places are those of the whole text.
    pub(crate) fn scan_from(&self, kind: Kind, text: &[u8], from: usize) -> Vec<Finding> {
        let mut state = self.start(kind);
        (state.fed, state.judged) = (from as u64, from as u64);
        let mut out = Vec::new();
        let text = text.get(from..).unwrap_or_default();
        self.feed(&mut state, text, &mut out);
        self.finish(&mut state, &mut out);
        out.sort();
        out
    }

    /// Judges the block at `judged`, whose surroundings are all in the tail.
    fn judge_block(&self, state: &mut ScanState, len: usize, out: &mut Vec<Finding>) {
        let base = state.fed - state.tail.len() as u64;
        let from = usize::try_from(state.judged - base).unwrap_or(0);
        let to = from + len;
        let end = (to + AHEAD).min(state.tail.len());
        let window = Window {
            text: state.tail.get(..end).unwrap_or_default(),
            base,
            from,
            to,
        };
        self.pass(state.kind, &mut state.memo, out).judge(window);
        state.judged += len as u64;
        state.tail.drain(..to.saturating_sub(BACK));
    }

    /// Judges blocks of a large piece that starts where the stream is (the tail is empty).
    fn judge_in_place<'b>(
        &self,
        state: &mut ScanState,
        bytes: &'b [u8],
        out: &mut Vec<Finding>,
    ) -> &'b [u8] {
        self.blocks(state, bytes, 0, out)
    }

    /// With a tail held and a large piece to come: brings the tail to a place from where the blocks
    /// lie in the piece alone, and goes on there.
    fn bridge<'b>(
        &self,
        state: &mut ScanState,
        bytes: &'b [u8],
        out: &mut Vec<Finding>,
    ) -> &'b [u8] {
        let piece_at = state.fed;
        let mut taken = 0;
        // Until a block's back context begins inside the piece.
        while state.judged < piece_at + BACK as u64 {
            let Some(next) = bytes.get(taken..taken + BLOCK) else {
                break;
            };
            state.tail.extend_from_slice(next);
            state.fed += BLOCK as u64;
            taken += BLOCK;
            self.judge_block(state, BLOCK, out);
        }
        let judged_in_piece = usize::try_from(state.judged - piece_at).unwrap_or(0);
        if judged_in_piece < BACK {
            return bytes.get(taken..).unwrap_or_default();
        }
        state.tail = Vec::new();
        state.fed = piece_at;
        self.blocks(state, bytes, judged_in_piece, out)
    }

    /// Judges every block of `bytes` (which starts at `state.fed`) from `at` on that has its whole
    /// surroundings in it, and keeps the rest as the tail.
    fn blocks<'b>(
        &self,
        state: &mut ScanState,
        bytes: &'b [u8],
        mut at: usize,
        out: &mut Vec<Finding>,
    ) -> &'b [u8] {
        let base = state.fed;
        let mut pass = self.pass(state.kind, &mut state.memo, out);
        while at + BLOCK + AHEAD <= bytes.len() {
            let start = at.saturating_sub(BACK);
            pass.judge(Window {
                text: bytes.get(start..at + BLOCK + AHEAD).unwrap_or_default(),
                base: base + start as u64,
                from: at - start,
                to: at - start + BLOCK,
            });
            at += BLOCK;
        }
        state.judged = base + at as u64;
        let keep = at.saturating_sub(BACK);
        state.tail = Vec::with_capacity(BACK + BLOCK + AHEAD);
        state
            .tail
            .extend_from_slice(bytes.get(keep..).unwrap_or_default());
        state.fed = base + bytes.len() as u64;
        &[]
    }

    fn pass<'a>(&'a self, kind: Kind, memo: &'a mut Memo, out: &'a mut Vec<Finding>) -> Pass<'a> {
        Pass {
            scanner: &self.inner,
            kind,
            memo,
            out,
            origin: None,
            depth: 0,
        }
    }
}

impl Pass<'_> {
    /// Everything that looks at a block.
    pub(super) fn judge(&mut self, window: Window<'_>) {
        if !self.scanner.known.is_empty() {
            self.scanner.known.look(self, window);
        }
        self.literals(window);
        self.runs(window);
        self.numbers(window);
        self.escapes(window);
        self.unicode(window);
        if self.kind == Kind::Command {
            self.command_block(window);
        }
        for &rule in &self.scanner.everywhere {
            self.everywhere(window, rule);
        }
    }

    fn literals(&mut self, window: Window<'_>) {
        let scanner = self.scanner;
        // Collected first: what a literal brings into play needs the pass, too.
        let mut found = std::mem::take(&mut self.memo.found);
        found.clear();
        scanner
            .literals
            .find(window.text, window.from, window.to, |literal, start| {
                found.push((start, literal));
            });
        found.sort_unstable();
        for &(start, literal) in &found {
            let (start, literal) = (start as usize, literal as usize);
            let range = start..start + scanner.literals.len_of(literal);
            let hooks = scanner.hooks.get(literal);
            for hook in hooks.map(Vec::as_slice).unwrap_or_default() {
                match *hook {
                    Hook::Pattern { rule, least, most } => {
                        self.pattern(window, rule, range.clone(), least, most);
                    }
                    Hook::Keyword { rule } => self.keyword(window, rule, start),
                    Hook::Assign => assign::look(self, window, range.clone()),
                    Hook::Url => url::look(self, window, range.clone()),
                    Hook::Order => injection::look(self, window, range.clone()),
                    Hook::CommandKey => toolcall::command(self, window, range.clone()),
                    Hook::PathKey => toolcall::path(self, window, range.clone()),
                }
            }
        }
        found.clear();
        if found.capacity() > 32 {
            found = Vec::new();
        }
        self.memo.found = found;
    }

    /// A literal of a rule's pattern stands at `literal`.
    fn pattern(
        &mut self,
        window: Window<'_>,
        rule: usize,
        literal: Range<usize>,
        least: usize,
        most: usize,
    ) {
        let Some(which) = self.scanner.rules.get(rule) else {
            return;
        };
        if least == most {
            let Some(start) = literal.start.checked_sub(least) else {
                return;
            };
            match which.find(window.text, start, true) {
                Some(hit) => self.hit(window, rule, &hit),
                None => self.broken(window, rule, start, literal.end),
            }
            return;
        }
        let first = literal.start.saturating_sub(most);
        let last = literal.start.saturating_sub(least);
        if which.pattern.starts_at_word() && last - first <= 64 {
            // Few places can start a match; asking each is cheaper than a search that runs on to
            // the window's end when there is none.
            for start in first..=last {
                if let Some(hit) = which.find(window.text, start, true)
                    && hit.whole.end >= literal.end
                {
                    self.hit(window, rule, &hit);
                    return;
                }
            }
            return;
        }
        // Without a match, a search runs on to the end of what it is given.
        let text = window.text;
        let end = which
            .pattern
            .longest()
            .map_or(text.len(), |most| literal.start.saturating_add(most));
        let end = end.min(text.len());
        let mut from = first;
        while from <= end
            && let Some(hit) = which.find_within(text, from..end, false)
        {
            if hit.whole.start > literal.start {
                return;
            }
            if hit.whole.end >= literal.end {
                self.hit(window, rule, &hit);
                return;
            }
            from = hit.whole.end.max(from + 1);
        }
    }

    /// A token that line breaks cut into pieces, each alone on its line: as it would be in one.
    fn broken(&mut self, window: Window<'_>, rule: usize, start: usize, literal_end: usize) {
        const MOST: usize = 200;
        if self.kind != Kind::Outbound || literal_end < start + 3 {
            return;
        }
        let part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let text = window.get(start..window.text.len().min(start + MOST));
        // Nearly every failed candidate ends here: nothing cuts it.
        let first = text.iter().take_while(|byte| part(byte)).count();
        if first == 0 || text.get(first) != Some(&b'\n') {
            return;
        }
        let mut joined: Vec<u8> = Vec::new();
        let mut at = 0;
        let mut lines = 0;
        loop {
            let rest = text.get(at..).unwrap_or_default();
            let len = rest.iter().take_while(|byte| part(byte)).count();
            joined.extend_from_slice(rest.get(..len).unwrap_or_default());
            at += len;
            if len == 0 || text.get(at) != Some(&b'\n') {
                break;
            }
            at += 1;
            lines += 1;
        }
        if lines == 0 || lines > 4 {
            return;
        }
        let Some(which) = self.scanner.rules.get(rule) else {
            return;
        };
        if let Some(mut hit) = which.find(&joined, 0, true) {
            hit.secret = start..start + at;
            hit.whole = hit.secret.clone();
            self.hit(window, rule, &hit);
        }
    }

    /// A keyword stands at `at`: every match in its neighbourhood counts.
    fn keyword(&mut self, window: Window<'_>, rule: usize, at: usize) {
        let Some(which) = self.scanner.rules.get(rule) else {
            return;
        };
        let mut from = at.saturating_sub(BACK);
        while let Some(hit) = which.find(window.text, from, false) {
            self.hit(window, rule, &hit);
            from = hit.whole.end.max(from + 1);
        }
    }

    /// A rule without literals looks at the whole block.
    fn everywhere(&mut self, window: Window<'_>, rule: usize) {
        let Some(which) = self.scanner.rules.get(rule) else {
            return;
        };
        let mut from = window.from;
        while let Some(hit) = which.find(window.text, from, false) {
            if hit.whole.start >= window.to {
                return;
            }
            self.hit(window, rule, &hit);
            from = hit.whole.end.max(from + 1);
        }
    }

    fn hit(&mut self, window: Window<'_>, rule: usize, hit: &super::rule::Hit) {
        let confidence = match hit.verdict {
            Verdict::No => return,
            Verdict::Doubtful => Confidence::Low,
            Verdict::Plausible => Confidence::Medium,
            Verdict::Sure => Confidence::High,
        };
        let Some(which) = self.scanner.rules.get(rule) else {
            return;
        };
        let secret = window.get(hit.secret.clone());
        // What documentation shows as an example is no secret where documentation comes from.
        if self.kind == Kind::Inbound && super::verify::contains(secret, b"EXAMPLE") {
            return;
        }
        let report = Report {
            confidence,
            excerpt: redact(secret),
            score: None,
        };
        self.emit(window, &which.info, hit.secret.clone(), report);
    }

    /// Whether something of this category was already told at this place.
    pub(super) fn told(&self, window: Window<'_>, range: &Range<usize>) -> bool {
        let (start, end) = self.place(window, range);
        self.memo
            .recent
            .iter()
            .any(|&(rule, s, e)| rule != 0 && s < end && start < e)
    }

    fn place(&self, window: Window<'_>, range: &Range<usize>) -> (u64, u64) {
        (
            window.base + range.start as u64,
            window.base + range.end as u64,
        )
    }

    /// Tells a finding, unless its rule was told at an overlapping place.
    pub(super) fn emit(
        &mut self,
        window: Window<'_>,
        rule: &RuleInfo,
        range: Range<usize>,
        report: Report,
    ) {
        if self.scanner.silent.contains(&*rule.id) {
            return;
        }
        let (start, end) = self.place(window, &range);
        if !self.first(&rule.id, start, end) {
            return;
        }
        let (range, via) = match &self.origin {
            Some((range, via)) => (*range, via.clone()),
            None => (Range64 { start, end }, Vec::new()),
        };
        self.out.push(Finding {
            range,
            rule: Arc::clone(&rule.id),
            category: rule.category,
            severity: rule.severity,
            confidence: report.confidence,
            excerpt: report.excerpt,
            via,
            score: report.score,
        });
    }
}

impl Pass<'_> {
    /// Reads a block of a shell command that lies behind what is read as a whole, from the first line that starts in
    /// it or shortly before; or what was decoded.
    fn command_block(&mut self, window: Window<'_>) {
        let end = window.base + window.to as u64;
        if self.depth == 0 && end <= MAX_SCRIPT as u64 {
            return;
        }
        let start = if self.depth > 0 {
            window.from
        } else {
            let before = window.get(0..window.from);
            before
                .iter()
                .position(|&byte| byte == b'\n')
                .map_or(window.from, |at| at + 1)
        };
        self.command(window, start..window.text.len());
    }

    /// Judges a stretch of text as a shell script.
    pub(super) fn command(&mut self, window: Window<'_>, range: Range<usize>) {
        let text = String::from_utf8_lossy(window.get(range.clone()));
        for danger in command::judge(&Script::parse(&text)) {
            let rule = danger.info();
            let report = Report {
                confidence: Confidence::Medium,
                excerpt: danger.excerpt,
                score: None,
            };
            self.emit(window, &rule, range.clone(), report);
        }
    }

    /// Remembers a finding; false if its rule was told at an overlapping place.
    fn first(&mut self, rule: &str, start: u64, end: u64) -> bool {
        let key = key(rule);
        let end = end.max(start + 1);
        let recent = &self.memo.recent;
        if recent
            .iter()
            .any(|&(known, s, e)| known == key && s < end && start < e)
        {
            return false;
        }
        if let Some(slot) = self.memo.recent.get_mut(self.memo.next) {
            *slot = (key, start, end);
        }
        self.memo.next = (self.memo.next + 1) % RECENT;
        true
    }

    /// Takes over what was found in a decoded stretch.
    pub(super) fn adopt(&mut self, finding: Finding) {
        if self.first(&finding.rule, finding.range.start, finding.range.end) {
            self.out.push(finding);
        }
    }
}

/// A rule's id as a number other than zero (FNV-1a).
fn key(id: &str) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    for byte in id.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    hash.max(1)
}

/// The public prefix of a token, if it has one and is long enough to hide the rest, and its length.
pub(super) fn redact(secret: &[u8]) -> String {
    let prefix = if secret.len() >= 20 {
        let head = secret.get(..12).unwrap_or_default();
        let cut = head
            .iter()
            .rposition(|&byte| matches!(byte, b'_' | b'-' | b'.'))
            .map_or(0, |at| at + 1);
        let shown = head.get(..cut.max(4)).unwrap_or_default();
        if shown.iter().all(|byte| byte.is_ascii_graphic()) && cut > 0 {
            String::from_utf8_lossy(shown).into_owned()
        } else {
            String::new()
        }
    } else {
        String::new()
    };
    format!("{prefix}…({} bytes)", secret.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Short literals are looked for one by one, and rules without any at every block: neither is
    /// for the built-in rules.
    #[test]
    fn built_in_literals_are_long_enough() {
        for shape in SHAPES {
            let required = Pattern::parse(shape.pattern).unwrap().required();
            let shortest =
                required.map_or(0, |r| r.literals.iter().map(Vec::len).min().unwrap_or(0));
            assert!(shortest >= 3, "{}: {shortest}", shape.id);
        }
    }

    #[test]
    fn every_built_in_rule_compiles() {
        for rule in &Scanner::builtin().inner.rules {
            assert!(rule.pattern.compile().is_ok(), "{}", rule.info.id);
        }
    }

    #[test]
    fn every_rule_has_a_description() {
        for rule in Scanner::builtin().rules() {
            assert!(
                !rule.id.is_empty() && !rule.description.is_empty(),
                "{rule:?}"
            );
        }
    }
}
