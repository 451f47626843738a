//! HAR 1.2 (HTTP Archive), as mitmproxy and browsers write it.
//!
//! Reading and writing take memory for one entry at a time.
//!
//! ```
//! use tollgate_flow::har::{HarWriter, read_har};
//! use tollgate_flow::record::{HttpExchange, HttpRequest, HttpResponse, Record};
//!
//! let mut exchange = HttpExchange::new(HttpRequest::new("GET", "https", "example.com", 443, "/"));
//! exchange.response = Some(HttpResponse::new(204, "No Content"));
//! let mut writer = HarWriter::new(Vec::new());
//! writer.write(&Record::http("id", exchange))?;
//! let file = writer.finish()?;
//!
//! let mut urls = Vec::new();
//! read_har(&file[..], |entry| {
//!     urls.extend(entry.map(|record| record.as_http().unwrap().request.pretty_url()));
//!     true
//! })?;
//! assert_eq!(urls, ["https://example.com/"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cookies;
mod json;
mod read;
mod time;
mod write;

pub use read::{HarEntryError, HarError, read_har};
pub use write::HarWriter;
