//! What was decided about the calls of a stream.

use crate::llm::{Arguments, CallId, RunsAt};

/// The calls of a stream, by number.
#[derive(Debug, Default)]
pub(super) struct CallTable {
    /// The number of the first.
    base: u32,
    calls: Vec<Call>,
    /// Some call doesn't go on as it came.
    changed: bool,
}

#[derive(Debug)]
pub(super) struct Call {
    pub id: String,
    pub name: String,
    pub verdict: Verdict,
    pub choice: u32,
    pub free_text: bool,
    /// Its position among the calls of its choice that were delivered.
    pub position: Option<u32>,
    runs_at: RunsAt,
}

#[derive(Debug)]
pub(super) enum Verdict {
    Undecided,
    /// Needs no decision: by its name, or because it has run already.
    AtOnce,
    Allow,
    /// The text in its place.
    Block(String),
    Redact(Arguments),
}

impl Call {
    pub fn is_undecided(&self) -> bool {
        matches!(self.verdict, Verdict::Undecided)
    }

    pub fn is_blocked(&self) -> bool {
        matches!(self.verdict, Verdict::Block(_))
    }
}

impl CallTable {
    /// Calls of one stream; parts of a call beyond can't be judged.
    const MAX: usize = 4096;

    pub fn begin(&mut self, number: CallId, name: &str, verdict: Verdict, runs_at: RunsAt) {
        if self.calls.is_empty() {
            self.base = number.0;
        }
        if self.calls.len() < Self::MAX {
            self.calls.push(Call {
                id: String::new(),
                name: name.to_owned(),
                verdict,
                choice: 0,
                free_text: false,
                position: None,
                runs_at,
            });
        }
    }

    pub fn get(&self, number: CallId) -> Option<&Call> {
        let at = number.0.checked_sub(self.base)?;
        self.calls.get(usize::try_from(at).ok()?)
    }

    pub fn get_mut(&mut self, number: CallId) -> Option<&mut Call> {
        let at = number.0.checked_sub(self.base)?;
        self.calls.get_mut(usize::try_from(at).ok()?)
    }

    pub fn decide(&mut self, number: CallId, verdict: Verdict) {
        self.changed |= matches!(verdict, Verdict::Block(_) | Verdict::Redact(_));
        if let Some(call) = self.get_mut(number) {
            call.verdict = verdict;
        }
    }

    pub fn undecided(&self) -> Vec<CallId> {
        let undecided = |(at, call): (usize, &Call)| {
            let at = u32::try_from(at).ok()?;
            call.is_undecided()
                .then(|| CallId(self.base.wrapping_add(at)))
        };
        self.calls
            .iter()
            .enumerate()
            .filter_map(undecided)
            .collect()
    }

    /// Whether some call was refused or redacted.
    pub fn any_changed(&self) -> bool {
        self.changed
    }

    /// Gives a call that is delivered its position among those of its choice.
    pub fn number(&mut self, number: CallId) {
        let Some(call) = self.get(number).filter(|call| !call.is_blocked()) else {
            return;
        };
        if call.position.is_some() {
            return;
        }
        let choice = call.choice;
        let before = self
            .calls
            .iter()
            .filter(|call| call.choice == choice && call.position.is_some())
            .count();
        if let Some(call) = self.get_mut(number) {
            call.position = u32::try_from(before).ok();
        }
    }

    /// Whether calls of this choice were refused, and none is left for the client to run.
    pub fn none_left(&self, choice: u32) -> bool {
        let mut client = self
            .calls
            .iter()
            .filter(|call| call.choice == choice && call.runs_at == RunsAt::Client)
            .peekable();
        client.peek().is_some() && client.all(Call::is_blocked)
    }

    /// Whether a call of this choice was refused.
    pub fn any_blocked(&self, choice: u32) -> bool {
        self.calls
            .iter()
            .any(|call| call.choice == choice && call.is_blocked())
    }

    /// Forgets every call; numbers go on.
    pub fn forget(&mut self) {
        self.calls = Vec::new();
        self.changed = false;
    }
}
