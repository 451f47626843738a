//! TLS on both sides: the handshakes, what they are configured with, and how they fail.

pub(crate) mod client_side;
pub(crate) mod failure;
pub(crate) mod handshake;
pub(crate) mod record;
pub(crate) mod upstream;
