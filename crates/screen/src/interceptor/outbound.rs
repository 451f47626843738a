//! A request body that is scanned as it passes, and held as far as it isn't judged.

use std::collections::VecDeque;

use tollgate_flow::{Bytes, Piece, Step};
use tollgate_wire::coding::Decoder;

use crate::scan::{Finding, Kind, ScanState, Scanner};

/// Coded bytes that may wait for what they decode to. The text of an uncoded body waits for some
/// 3 KiB at most.
const MAX_HELD: usize = 1 << 20;

/// What waits for its judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holding {
    /// Nothing: somebody only watches.
    Nothing,
    /// Bytes that a finding could still begin in. They follow with what comes later, at the latest
    /// with the end of the body.
    Unjudged,
    /// Nothing, because the peer may wait for every message; each piece is judged by what there is
    /// when it comes.
    Interactive,
}

/// A body that is read as it passes.
pub(super) struct Stream {
    decoder: Option<Decoder>,
    text: ScanState,
    /// With a decoder: the coded bytes, too. Decoders pass over what follows the end of a coding.
    coded: Option<ScanState>,
    holding: Holding,
    /// The bytes that wait.
    held: Vec<u8>,
    /// How many bytes have come, and how many of them may go on.
    came: u64,
    free: u64,
    coding: Coding,
}

/// Which coded bytes belong to which text.
#[derive(Default)]
struct Coding {
    /// The coded bytes before this offset decode to settled text.
    free: u64,
    /// Where pieces ended, and where what they decode to ends, once that is known.
    marks: VecDeque<(u64, Option<u64>)>,
}

impl Coding {
    /// A piece has come: bytes up to `came`, which brought the text from `before` to `end`.
    fn piece(&mut self, came: u64, before: u64, end: u64, settled: u64) {
        // A piece may hold the beginning of what only later ones complete: its text ends where that
        // of the next piece with any ends.
        match self.marks.back_mut() {
            Some((at, None)) if end == before => *at = came,
            last => {
                if let Some((_, known @ None)) = last {
                    *known = Some(end);
                }
                self.marks.push_back((came, None));
            }
        }
        while let Some(&(at, Some(end))) = self.marks.front()
            && end <= settled
        {
            self.free = at;
            self.marks.pop_front();
        }
    }
}

/// Why a body can't be judged.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    #[error("{0}")]
    Coding(#[from] tollgate_wire::coding::CodingError),
    #[error("more than {MAX_HELD} bytes of it decode to nothing")]
    Held,
}

impl Stream {
    pub fn new(scanner: &Scanner, decoder: Option<Decoder>, holding: Holding) -> Self {
        Self {
            coded: decoder.as_ref().map(|_| scanner.start(Kind::Outbound)),
            decoder,
            text: scanner.start(Kind::Outbound),
            holding,
            held: Vec::new(),
            came: 0,
            free: 0,
            coding: Coding::default(),
        }
    }

    /// Scans a piece. What it finds is to be judged before anything of it goes on.
    pub fn scan(
        &mut self,
        scanner: &Scanner,
        piece: Piece<'_>,
        found: &mut Vec<Finding>,
    ) -> Result<(), Unread> {
        let read = self.read(scanner, piece, found);
        if piece.last {
            scanner.finish(&mut self.text, found);
            if let Some(coded) = &mut self.coded {
                scanner.finish(coded, found);
            }
        }
        read
    }

    fn read(
        &mut self,
        scanner: &Scanner,
        piece: Piece<'_>,
        found: &mut Vec<Finding>,
    ) -> Result<(), Unread> {
        self.came += piece.data.len() as u64;
        let (Some(decoder), Some(coded)) = (&mut self.decoder, &mut self.coded) else {
            scanner.feed(&mut self.text, piece.data, found);
            self.free = self.text.settled();
            return Ok(());
        };
        scanner.feed(coded, piece.data, found);
        let before = self.text.position();
        let mut plain = Vec::new();
        let decoded = if piece.last {
            decoder.finish(&mut plain)
        } else {
            decoder.feed(piece.data, &mut plain)
        };
        scanner.feed(&mut self.text, &plain, found);
        if self.holding == Holding::Unjudged {
            let (end, settled) = (self.text.position(), self.text.settled());
            self.coding.piece(self.came, before, end, settled);
            self.free = self.coding.free.min(coded.settled());
        }
        decoded?;
        let waits = self.came.saturating_sub(self.free);
        if self.holding == Holding::Unjudged && waits > MAX_HELD as u64 {
            return Err(Unread::Held);
        }
        Ok(())
    }

    /// What is found in the pieces so far, if nothing followed them; for
    /// [`Holding::Interactive`].
    pub fn so_far(&self, scanner: &Scanner) -> Vec<Finding> {
        let mut found = Vec::new();
        if self.holding == Holding::Interactive {
            scanner.finish(&mut self.text.clone(), &mut found);
        }
        found
    }

    /// From here on nothing waits, and what has waited goes on.
    pub fn let_go(&mut self) {
        self.free = self.came;
        self.holding = Holding::Nothing;
    }

    /// What goes on of a piece that was scanned and refuses nothing.
    pub fn release(&mut self, piece: Piece<'_>) -> Step {
        if piece.last {
            self.free = self.came;
        }
        let waits = match self.holding {
            Holding::Unjudged => self.came.saturating_sub(self.free),
            Holding::Nothing | Holding::Interactive => 0,
        };
        let waits = usize::try_from(waits).unwrap_or(usize::MAX);
        if self.held.is_empty() && waits == 0 {
            return Step::Continue;
        }
        self.held.extend_from_slice(piece.data);
        let free = self.held.len().saturating_sub(waits);
        if free == 0 {
            return Step::Drop;
        }
        let rest = self.held.split_off(free);
        Step::Replace(Bytes::from(std::mem::replace(&mut self.held, rest)))
    }
}
