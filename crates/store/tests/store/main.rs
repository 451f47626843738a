//! Stores from outside: what was recorded is what is read, whatever happens in between.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests assert as tests do"
)]

mod bounds;
mod crash;
mod damage;
mod queries;
mod support;
