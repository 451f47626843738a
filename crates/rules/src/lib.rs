//! Rules: what is configuration over filters. Block, map, modify, respond, hold, replay.
#![forbid(unsafe_code)]
