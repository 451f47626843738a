//! Recorded flows: kept on disk or in memory within bounds, listed, searched, followed, deleted.
//!
//! A [`Store`] records what comes through its [`FlowSink`], beside the wire: a thread of its own writes batches of
//! flows into append-only segments (compressed, checksummed), and rows about them into a SQLite database, with a filter
//! of the words that they have. [`Flows`] reads both, also from another process. A [`Capture`] is the interceptor that records what
//! passes.
//!
//! A crash costs at most the batch that was being written. The files hold what passed, secrets included: they are 0600,
//! in a folder that is 0700.

mod block;
mod capture;
mod codec;
mod config;
mod entry;
mod error;
mod flows;
mod follow;
mod link;
mod os;
mod peek;
mod schema;
mod segment;
mod sink;
mod store;
mod summary;
mod words;
mod writer;

pub use capture::{Capture, CaptureLimits, Ended};
pub use config::{Place, StoreConfig};
pub use error::StoreError;
pub use flows::{Flows, Query, Usage};
pub use follow::{Follow, Followed};
pub use sink::{Dropped, FlowSink, RecordSink};
pub use store::{Store, StoreStats};
pub use summary::Summary;
pub use words::Words;
pub use writer::State;
