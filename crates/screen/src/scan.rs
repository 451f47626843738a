//! Scanners: bytes of logical text in, [`Finding`]s out, the same for every way of cutting them.

mod finding;

pub use finding::{Category, Confidence, Finding, Kind, Range64, Severity};
