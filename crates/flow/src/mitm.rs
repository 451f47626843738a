//! mitmproxy's flow files: versions 7 (mitmproxy 5, 2019) to 21 are read, 21 is written.
//!
//! A flow file is flow after flow, each a dictionary in the form of a *tnetstring*: `length:payload` and a tag for the
//! type. Reading and writing take memory for one flow at a time.
//!
//! ```
//! use tollgate_flow::mitm::{FlowReader, FlowWriter};
//! use tollgate_flow::record::{HttpExchange, HttpRequest, Record};
//!
//! let request = HttpRequest::new("GET", "https", "example.com", 443, "/");
//! let record = Record::http("01234567-89ab-7def-8123-456789abcdef", HttpExchange::new(request));
//!
//! let mut file = Vec::new();
//! FlowWriter::new(&mut file).write(&record)?;
//!
//! let flows: Result<Vec<Record>, _> = FlowReader::new(&file[..]).collect();
//! assert_eq!(flows?, [record]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What Tollgate knows and mitmproxy has no field for goes into the metadata, under `tollgate`: mitmproxy refuses a flow
//! with a key that it doesn't know, but keeps any metadata.

mod decode;
mod facts;
mod item;
mod read;
mod upgrade;
mod write;

pub use read::{DEFAULT_MAX_FLOW_BYTES, FlowReader, ReadError, ReadErrorKind};
pub use write::FlowWriter;

/// The version of the format that is written, and the newest that is read.
pub const FORMAT_VERSION: i64 = 21;

/// The oldest version that is read.
pub const OLDEST_VERSION: i64 = 7;
