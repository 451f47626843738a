//! ClientHellos assembled by hand, and what `tollgate_wire::tls` reads in them.

#[cfg(test)]
mod builder;
#[cfg(test)]
mod fingerprints;
#[cfg(test)]
mod framing;
#[cfg(test)]
mod meaning;
