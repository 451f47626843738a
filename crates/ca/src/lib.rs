//! The certificate authority of an intercepting proxy.
//!
//! * [`Authority`] holds the key and certificate that clients are told to trust: it is generated, loaded, kept in a
//!   folder (in mitmproxy's layout or ours), rotated and exported.
//! * [`Authority::mint`] signs a [`Leaf`] for one [`LeafRequest`]; [`LeafCache`] remembers leaves, signs each only once
//!   however many threads ask, and knows the operator's own certificates (`--certs`).
//! * [`trust`] puts the authority into the trust stores of this machine, and takes it out again.
//!
//! There is no global state: two authorities in one process share nothing.
//!
//! ```
//! use std::sync::Arc;
//! use tollgate_ca::{Authority, AuthorityParams, LeafCache, LeafRequest};
//!
//! # fn main() -> Result<(), tollgate_ca::CaError> {
//! let authority = Arc::new(Authority::generate(&AuthorityParams::default())?);
//! let leaves = LeafCache::new(authority, LeafCache::DEFAULT_CAPACITY);
//! let leaf = leaves.get_or_mint(&LeafRequest::new("example.com"))?;
//! assert_eq!(leaf.certified.cert.len(), 1); // ready for a rustls `ResolvesServerCert`
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod authority;
mod cache;
mod der;
mod error;
mod files;
mod key;
mod leaf;
mod name;
mod pem;
mod pkcs12;
pub mod trust;
mod x509;

pub use authority::{Authority, AuthorityParams};
pub use cache::{CacheStats, LeafCache};
pub use error::CaError;
pub use files::Naming;
pub use key::KeyKind;
pub use leaf::{HostCert, Leaf, LeafRequest};
pub use name::{NameConstraint, SanName};
