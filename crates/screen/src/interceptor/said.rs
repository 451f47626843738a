//! What a model says to its client, scanned while it passes.
//!
//! Text isn't held, so that what is found is told when it has gone: at most 2.5 KiB after it, or when the answer ends.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use tollgate_flow::Flow;

use super::answer::Pending;
use super::ruling::{Act, Fate, Standing};
use super::{Place, Screen, Watch, lock};
use crate::llm::{BlockId, TextKind};
use crate::policy::Action;
use crate::redact::{LONGEST, Redactor};
use crate::scan::{Category, Confidence, Finding, Kind, ScanState, Scanner, Severity};

/// Texts of one answer that are open at once; of a further one, the one that was silent the longest ends.
const MAX_TEXTS: usize = 8;
/// Placeholders that are remembered of one text.
const MAX_OURS: usize = 8;
/// Longer identifiers of answers aren't remembered.
const MAX_ID: usize = 256;
/// What of a finding may stand outside of a placeholder that it is about: quotes, brackets.
const AROUND: u64 = 4;

/// The texts of an answer that is passing.
#[derive(Default)]
pub(super) struct Said {
    /// The one that spoke last is at the end.
    texts: VecDeque<Text>,
    /// The provider's identifier of the answer.
    id: Option<String>,
    /// Takes placeholders for what they are; `None` where there can be none.
    redactor: Option<Arc<Redactor>>,
}

struct Text {
    block: BlockId,
    state: ScanState,
    ours: Ours,
}

impl Said {
    /// An answer begins.
    pub fn begin(&mut self, id: Option<String>) {
        self.id = id.filter(|id| id.len() <= MAX_ID);
    }

    /// More of a text.
    pub fn hear(
        &mut self,
        scanner: &Scanner,
        block: BlockId,
        text: &str,
        found: &mut Vec<Finding>,
    ) {
        // Nearly always the one that spoke last goes on.
        if self.texts.back().is_none_or(|last| last.block != block) {
            let known = self.texts.iter().position(|open| open.block == block);
            let known = known.and_then(|at| self.texts.remove(at));
            if known.is_none()
                && self.texts.len() >= MAX_TEXTS
                && let Some(silent) = self.texts.pop_front()
            {
                silent.end(scanner, found);
            }
            self.texts.push_back(known.unwrap_or_else(|| Text {
                block,
                state: scanner.start(Kind::Inbound),
                ours: Ours::default(),
            }));
        }
        let Some(open) = self.texts.back_mut() else {
            return;
        };
        if let Some(redactor) = &self.redactor {
            open.ours.look(redactor, open.state.position(), text);
        }
        let mut now = Vec::new();
        scanner.feed(&mut open.state, text.as_bytes(), &mut now);
        if block.kind == TextKind::Unknown {
            // Each is a message of its own.
            scanner.feed(&mut open.state, b"\n", &mut now);
        }
        found.extend(now.into_iter().filter(|one| !open.ours.has(one)));
        open.ours.forget_before(open.state.settled());
    }

    /// The texts have ended.
    pub fn finish(&mut self, scanner: &Scanner, found: &mut Vec<Finding>) {
        for text in self.texts.drain(..) {
            text.end(scanner, found);
        }
    }

    /// Whether something taints the conversation in what was said and not judged yet, if nothing followed it.
    pub fn taints_so_far(&self, scanner: &Scanner) -> bool {
        self.texts.iter().any(|text| {
            let mut found = Vec::new();
            scanner.finish(&mut text.state.clone(), &mut found);
            found.iter().any(|one| taints(one) && !text.ours.has(one))
        })
    }

    #[cfg(test)]
    fn size(&self) -> usize {
        let of = |text: &Text| {
            text.state.size()
                + size_of::<Ours>()
                + text.ours.tail.capacity()
                + text.ours.ranges.capacity() * size_of::<Range<u64>>()
        };
        self.texts.iter().map(of).sum()
    }
}

impl Text {
    fn end(mut self, scanner: &Scanner, found: &mut Vec<Finding>) {
        let mut now = Vec::new();
        scanner.finish(&mut self.state, &mut now);
        found.extend(now.into_iter().filter(|one| !self.ours.has(one)));
    }
}

/// Placeholders in a text that comes in pieces.
#[derive(Default)]
struct Ours {
    /// The end of what came: a placeholder may begin there.
    tail: Vec<u8>,
    ranges: VecDeque<Range<u64>>,
}

impl Ours {
    /// Looks at the next piece, which begins at this offset.
    fn look(&mut self, redactor: &Redactor, at: u64, piece: &str) {
        let base = at.saturating_sub(self.tail.len() as u64);
        self.tail.extend_from_slice(piece.as_bytes());
        for range in redactor.placeholders(&self.tail) {
            let range = base + range.start as u64..base + range.end as u64;
            if self
                .ranges
                .back()
                .is_none_or(|last| last.end <= range.start)
            {
                if self.ranges.len() >= MAX_OURS {
                    self.ranges.pop_front();
                }
                self.ranges.push_back(range);
            }
        }
        let used = self.tail.len().saturating_sub(LONGEST);
        self.tail.drain(..used);
        self.tail.shrink_to(LONGEST);
    }

    /// Whether a finding is a placeholder, and no secret.
    fn has(&self, finding: &Finding) -> bool {
        let (start, end) = (finding.range.start, finding.range.end);
        let inside = self.ranges.iter().map(|ours| {
            let inside = ours.start.max(start)..ours.end.min(end);
            inside.end.saturating_sub(inside.start)
        });
        let inside: u64 = inside.sum();
        finding.via.is_empty() && inside > 0 && end.saturating_sub(start) - inside <= AROUND
    }

    fn forget_before(&mut self, settled: u64) {
        self.ranges.retain(|range| range.end > settled);
    }
}

/// Whether it makes what the model does next doubtful.
fn taints(finding: &Finding) -> bool {
    let kind = matches!(
        finding.category,
        Category::Exfiltration | Category::HiddenText | Category::Injection
    );
    kind && finding.severity >= Severity::Medium && finding.confidence >= Confidence::Medium
}

impl Screen {
    /// For the texts of an answer.
    pub(super) fn listen(&self, standing: &Standing) -> Said {
        let redacts = |action| matches!(action, Action::Redact { .. });
        Said {
            redactor: standing
                .policy
                .any_action(redacts)
                .then(|| Arc::clone(&self.redactor)),
            ..Said::default()
        }
    }

    /// Judges what was found in the text of an answer. `Some`: the answer is refused, and why.
    pub(super) fn said(
        &self,
        flow: &mut Flow,
        standing: &mut Standing,
        said: &Said,
        mut found: Vec<Finding>,
    ) -> Option<String> {
        // A command in a text runs nothing.
        found.retain(|finding| finding.category != Category::Command);
        if found.is_empty() {
            return None;
        }
        if found.iter().any(taints) {
            self.taint(standing, said);
        }
        let ruling = self.weigh(flow, standing, Place::AnswerText, found, None, None);
        match self.act(flow, ruling, &mut Vec::new()) {
            Act::Pass => None,
            Act::Refuse(reason) => Some(reason),
            // No rule can say so of this place.
            Act::Redact(ruling) | Act::Ask(ruling) => {
                self.report(flow, &ruling, Fate::Refused, &ruling.what());
                Some(ruling.reason())
            }
        }
    }

    /// What was said last in an answer that nobody ended: a client that left, a connection that broke.
    pub(super) fn said_last(&self, flow: &Flow, watch: &mut Watch) {
        if watch.ended {
            return;
        }
        let gated = watch.gate.as_mut().map(|gated| &mut gated.pending);
        let socket = watch.socket.as_mut().map(|socket| &mut socket.pending);
        for Pending { said, .. } in gated.into_iter().chain(socket) {
            let mut found = Vec::new();
            said.finish(&self.scanner, &mut found);
            if !found.is_empty() {
                let mut flow = flow.clone();
                self.said(&mut flow, &mut watch.standing, said, found);
            }
        }
    }

    /// From here on the conversation is tainted, also where the provider keeps it.
    pub(super) fn taint(&self, standing: &mut Standing, said: &Said) {
        standing.tainted = true;
        if let Some(id) = &said.id {
            lock(&self.tainted).is_new(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(index: u32) -> BlockId {
        BlockId {
            choice: 0,
            index,
            kind: TextKind::Answer,
        }
    }

    fn listening(scanner: &Scanner) -> (Said, Arc<Redactor>) {
        let redactor = Arc::new(Redactor::new(scanner.clone()));
        let said = Said {
            redactor: Some(Arc::clone(&redactor)),
            ..Said::default()
        };
        (said, redactor)
    }

    #[test]
    fn what_is_kept_of_a_text_has_a_bound() {
        let scanner = Scanner::builtin();
        let (mut said, _) = listening(&scanner);
        let text = "password = [tollgate:x:00000000] AKIA https://a.example/?token=b ".repeat(700);
        let mut most = 0;
        for at in 0..100 {
            for piece in [text.split_at(3).0, text.split_at(2000).0, text.as_str()] {
                said.hear(&scanner, block(at), piece, &mut Vec::new());
                most = most.max(said.size());
            }
        }
        assert_eq!(said.texts.len(), MAX_TEXTS);
        assert!(most <= MAX_TEXTS * 4800, "{most}");
    }

    #[test]
    fn a_placeholder_is_no_secret_however_it_is_cut() {
        let scanner = Scanner::builtin();
        let (mut said, redactor) = listening(&scanner);
        let secret = "password = \"tr0ub4dor&3xPq\"";
        let taken = redactor.redact(secret.as_bytes(), crate::redact::Shape::Plain, &|_, _| true);
        let text = String::from_utf8(taken.text).unwrap();
        assert!(text.contains("[tollgate:"), "{text}");
        for cut in 0..text.len() {
            let mut found = Vec::new();
            let (before, behind) = text.split_at(cut);
            said.hear(&scanner, block(0), before, &mut found);
            said.hear(&scanner, block(0), behind, &mut found);
            said.finish(&scanner, &mut found);
            assert!(found.is_empty(), "{cut} {found:?}");
            let (before, behind) = secret.split_at(cut.min(20));
            said.hear(&scanner, block(0), before, &mut found);
            said.hear(&scanner, block(0), behind, &mut found);
            said.finish(&scanner, &mut found);
            assert!(!found.is_empty(), "{cut}");
        }
    }
}
