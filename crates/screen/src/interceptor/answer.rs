//! The gate in what an origin sends: in a body, and in the messages of a WebSocket.

use std::collections::VecDeque;

use tollgate_wire::coding::{CodingError, Decoder};

use super::said::Said;
use crate::gate::{Gate, GateEvent, Messages};
use crate::redact::Restorer;

/// What a gate has said, and what its model has.
#[derive(Default)]
pub(super) struct Pending {
    /// What hasn't been looked at: behind a call that a person decides about.
    pub queue: VecDeque<GateEvent>,
    /// The texts that have been, as far as they came.
    pub said: Said,
}

/// A gate in the body of an answer.
pub(super) struct Gated {
    /// `None` where no model answers.
    pub gate: Option<Gate>,
    /// Puts back what was taken out of the request.
    pub restorer: Option<Restorer>,
    pub pending: Pending,
    /// What goes on.
    pub out: Vec<u8>,
    /// The body has ended.
    pub last: bool,
    pub decoder: Option<Decoder>,
    pub plain: Vec<u8>,
    /// It can't be decoded any further: what is left of it doesn't go on.
    pub broken: bool,
}

impl Gated {
    pub fn new(gate: Option<Gate>, restorer: Option<Restorer>, decoder: Option<Decoder>) -> Self {
        Self {
            gate,
            restorer,
            pending: Pending::default(),
            out: Vec::new(),
            last: false,
            decoder,
            plain: Vec::new(),
            broken: false,
        }
    }

    /// Decodes a piece into `plain`.
    pub fn decode(&mut self, data: &[u8], last: bool) -> Result<(), CodingError> {
        self.plain.clear();
        if self.broken {
            return Ok(());
        }
        match &mut self.decoder {
            Some(decoder) if last => decoder.finish(&mut self.plain),
            Some(decoder) => decoder.feed(data, &mut self.plain),
            None => {
                self.plain.extend_from_slice(data);
                Ok(())
            }
        }
    }
}

/// A gate in what an origin sends over a WebSocket.
pub(super) struct Socket {
    pub gate: Gate,
    pub out: Messages,
    pub restorer: Option<Restorer>,
    pub pending: Pending,
    /// Messages of ours that were queued, and haven't been sent.
    pub queued: usize,
}

impl Socket {
    pub fn new(gate: Gate) -> Self {
        Self {
            gate,
            out: Messages::default(),
            restorer: None,
            pending: Pending::default(),
            queued: 0,
        }
    }
}
