//! Leaves, remembered.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use x509_parser::extensions::ParsedExtension;

use crate::authority::Authority;
use crate::error::CaError;
use crate::files;
use crate::leaf::{Identity, Leaf, LeafRequest, system_time, unix_now};
use crate::name::SanName;
use crate::{pem, x509};

/// A bounded cache of leaves in front of an [`Authority`], and the operator's own certificates.
///
/// Threads that ask for the same leaf at once sign it once: the first signs, the others wait for it. The lock on the
/// table is held for a lookup only. At the bound, a leaf that was not asked for lately makes room (the CLOCK algorithm).
///
/// The call blocks for the time of a signature at most (about 15 µs with a P-256 authority, 0.25 ms with RSA-2048).
pub struct LeafCache {
    authority: Arc<Authority>,
    table: Mutex<Table>,
    custom: RwLock<HashMap<String, Arc<Leaf>>>,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
}

/// Counters of a [`LeafCache`] since it was made, and its present size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheStats {
    /// Requests that found their leaf, or an operator's certificate.
    pub hits: u64,
    /// Requests that had a leaf signed, or failed to.
    pub misses: u64,
    /// Leaves that made room for others.
    pub evictions: u64,
    /// Leaves held now.
    pub len: usize,
}

impl LeafCache {
    /// Leaves a cache holds unless told otherwise. Each takes about 1 KiB, and up to 30 KiB when an origin has 100 names of
    /// the greatest length.
    pub const DEFAULT_CAPACITY: usize = 4096;

    /// An empty cache for at most `capacity` leaves (at least one).
    pub fn new(authority: Arc<Authority>, capacity: usize) -> Self {
        Self {
            authority,
            table: Mutex::new(Table::new(capacity.max(1))),
            custom: RwLock::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        }
    }

    /// The authority behind the cache.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// The operator's certificate for this name if there is one, else a leaf from the cache, else a new one.
    ///
    /// A leaf is made anew when less than a third of its life is left, or when the day of its key is over.
    ///
    /// # Errors
    /// As [`Authority::mint`]. Failures are not remembered.
    pub fn get_or_mint(&self, request: &LeafRequest) -> Result<Arc<Leaf>, CaError> {
        self.get_or_mint_at(request, unix_now())
    }

    /// Uses a certificate of the operator for `pattern`: a host, `*.suffix` (which also stands for names more than one
    /// level below), or `*` for every host that has none of its own. Replaces an earlier one.
    ///
    /// # Errors
    /// [`CaError::InvalidName`] for the pattern; [`CaError::NoCertificate`] or [`CaError::Malformed`] for the certificate.
    pub fn insert_custom(
        &self,
        pattern: &str,
        certified: Arc<CertifiedKey>,
    ) -> Result<(), CaError> {
        let pattern = normal_pattern(pattern)?;
        let leaf = Arc::new(Leaf::custom(certified)?);
        self.custom
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pattern, leaf);
        Ok(())
    }

    /// Loads a certificate as mitmproxy's `--certs [domain=]path.pem` does: the file holds the certificate, its chain and
    /// its key, or no key if it was made for the authority's. It is used for `domain` (default `*`) and for its own
    /// common name and subject alternative names.
    ///
    /// # Errors
    /// [`CaError::Io`], or [`CaError::File`] around the reason; [`CaError::InvalidName`] for the domain.
    pub fn load_custom(&self, spec: &str) -> Result<(), CaError> {
        let (pattern, path) = spec.split_once('=').unwrap_or(("*", spec));
        let pattern = normal_pattern(pattern)?;
        let path = files::expand_home(Path::new(path));
        let text = files::read(&path)?;
        let leaf = self
            .read_custom(&text)
            .map_err(|error| error.in_file(&path))?;
        let own = own_names(&leaf).map_err(|error| error.in_file(&path))?;
        let leaf = Arc::new(leaf);
        let mut custom = self.custom.write().unwrap_or_else(PoisonError::into_inner);
        for name in own.into_iter().chain([pattern]) {
            custom.insert(name, Arc::clone(&leaf));
        }
        Ok(())
    }

    /// The counters.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
            len: self.table().slots.len(),
        }
    }

    /// Forgets all minted leaves. The operator's certificates and the counters stay.
    pub fn clear(&self) {
        let mut table = self.table();
        let empty = Table::new(table.capacity);
        let old = std::mem::replace(&mut *table, empty);
        drop(table);
        drop(old); // thousands of leaves, outside the lock
    }

    fn get_or_mint_at(&self, request: &LeafRequest, now: i64) -> Result<Arc<Leaf>, CaError> {
        let identity = request.identity()?;
        if let Some(leaf) = self.find_custom(&identity) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(leaf);
        }
        // Refused names must not push good leaves out.
        self.authority.check_identity(&identity)?;
        let key = Key {
            identity,
            origin: request.origin_digest(),
        };
        let (entry, evicted) = self.table().entry(&key);
        if evicted.is_some() {
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
        // Held while signing: that is what makes the others wait. A panic leaves either the old leaf or none.
        let mut leaf = entry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = leaf.as_ref()
            && self.is_fresh(leaf, now)?
        {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Arc::clone(leaf));
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let minted = Arc::new(self.authority.mint_at(&key.identity, request, now)?);
        *leaf = Some(Arc::clone(&minted));
        Ok(minted)
    }

    fn is_fresh(&self, leaf: &Leaf, now: i64) -> Result<bool, CaError> {
        let current = self.authority.leaf_key(now)?;
        if !leaf
            .key
            .as_ref()
            .is_some_and(|key| Arc::ptr_eq(key, &current))
        {
            return Ok(false);
        }
        let life = leaf
            .not_after
            .duration_since(leaf.not_before)
            .unwrap_or_default();
        let left = leaf
            .not_after
            .duration_since(system_time(now))
            .unwrap_or_default();
        // Close to the authority's own end a new leaf would live no longer.
        Ok(left > life / 3
            || (left > Duration::ZERO && leaf.not_after == self.authority.not_after()))
    }

    fn find_custom(&self, identity: &Identity) -> Option<Arc<Leaf>> {
        let custom = self.custom.read().unwrap_or_else(PoisonError::into_inner);
        if custom.is_empty() {
            return None;
        }
        identity
            .names()
            .find_map(|name| lookup(&custom, name))
            .or_else(|| custom.get("*"))
            .cloned()
    }

    fn read_custom(&self, text: &str) -> Result<Leaf, CaError> {
        let key = match pem::read_key(text)? {
            Some(key) => key,
            None => self.authority.key_der()?,
        };
        let chain = pem::read_certificates(text)?;
        let key = any_supported_type(&key).map_err(|_| CaError::UnsupportedKey)?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|_| CaError::KeyMismatch)?;
        Leaf::custom(Arc::new(certified))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change of the table is complete before the next call that could panic (an allocation).
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LeafCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeafCache")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    identity: Identity,
    origin: Option<[u8; 32]>,
}

/// A leaf, or the place where one is being made.
type Entry = Arc<Mutex<Option<Arc<Leaf>>>>;

/// CLOCK: the hand goes round the slots, spares each that was used since it last came by, and takes the first that was not.
struct Table {
    index: HashMap<Arc<Key>, usize>,
    slots: Vec<Slot>,
    hand: usize,
    capacity: usize,
}

struct Slot {
    key: Arc<Key>,
    entry: Entry,
    used: bool,
}

impl Table {
    fn new(capacity: usize) -> Self {
        Self {
            index: HashMap::new(),
            slots: Vec::new(),
            hand: 0,
            capacity,
        }
    }

    /// The entry of a key, made if need be; and the entry that had to go for it, for the caller to drop without the lock.
    fn entry(&mut self, key: &Key) -> (Entry, Option<Entry>) {
        if let Some(slot) = self.index.get(key).and_then(|at| self.slots.get_mut(*at)) {
            slot.used = true;
            return (Arc::clone(&slot.entry), None);
        }
        let (key, entry) = (Arc::new(key.clone()), Entry::default());
        let new = Slot {
            key: Arc::clone(&key),
            entry: Arc::clone(&entry),
            used: false,
        };
        if self.slots.len() < self.capacity {
            self.index.insert(key, self.slots.len());
            self.slots.push(new);
            return (entry, None);
        }
        while let Some(slot) = self.slots.get_mut(self.hand).filter(|slot| slot.used) {
            slot.used = false;
            self.hand = (self.hand + 1) % self.capacity;
        }
        let evicted = self
            .slots
            .get_mut(self.hand)
            .map(|slot| std::mem::replace(slot, new));
        if let Some(old) = &evicted {
            self.index.remove(&old.key);
        }
        self.index.insert(key, self.hand);
        self.hand = (self.hand + 1) % self.capacity;
        (entry, evicted.map(|slot| slot.entry))
    }
}

/// Exact, then `*.rest` for each label taken away (mitmproxy's order).
fn lookup<'a>(custom: &'a HashMap<String, Arc<Leaf>>, name: &SanName) -> Option<&'a Arc<Leaf>> {
    let text = name.to_string();
    if let Some(leaf) = custom.get(&text) {
        return Some(leaf);
    }
    let mut rest = name.as_dns()?;
    while let Some((_, parent)) = rest.split_once('.') {
        if let Some(leaf) = custom.get(&format!("*.{parent}")) {
            return Some(leaf);
        }
        rest = parent;
    }
    None
}

fn normal_pattern(pattern: &str) -> Result<String, CaError> {
    if pattern == "*" {
        Ok(pattern.to_owned())
    } else {
        SanName::parse(pattern).map(|name| name.to_string())
    }
}

/// Common name and subject alternative names, as far as they name hosts.
fn own_names(leaf: &Leaf) -> Result<Vec<String>, CaError> {
    let certificate = x509::parse(leaf.cert_der().ok_or(CaError::NoCertificate)?)?;
    let common_name = certificate
        .subject()
        .iter_common_name()
        .filter_map(|name| SanName::parse(name.as_str().ok()?).ok());
    let alternative =
        certificate
            .iter_extensions()
            .filter_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => Some(
                    names
                        .general_names
                        .iter()
                        .filter_map(SanName::from_general_name),
                ),
                _ => None,
            });
    Ok(common_name
        .chain(alternative.flatten())
        .map(|name| name.to_string())
        .collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::time::SystemTime;

    use super::*;
    use crate::authority::AuthorityParams;
    use crate::key::LeafKey;

    const DAY: i64 = 24 * 3600;

    fn cache(capacity: usize) -> LeafCache {
        LeafCache::new(
            Arc::new(Authority::generate(&AuthorityParams::default()).unwrap()),
            capacity,
        )
    }

    fn certified(host: &str) -> Arc<CertifiedKey> {
        let issuer = Authority::generate(&AuthorityParams::default()).unwrap();
        issuer.mint(&LeafRequest::new(host)).unwrap().certified
    }

    #[test]
    fn a_name_in_any_spelling_is_minted_once() {
        let cache = cache(8);
        let first = cache.get_or_mint(&LeafRequest::new("example.com")).unwrap();
        for request in [
            LeafRequest::new("EXAMPLE.com."),
            LeafRequest::new("example.com").with_server_name("Example.com"),
        ] {
            assert!(Arc::ptr_eq(&first, &cache.get_or_mint(&request).unwrap()));
        }
        assert_eq!(
            cache.stats(),
            CacheStats {
                hits: 2,
                misses: 1,
                evictions: 0,
                len: 1
            }
        );
        let other = LeafRequest {
            organization: Some("Example".into()),
            ..LeafRequest::new("example.com")
        };
        assert!(!Arc::ptr_eq(&first, &cache.get_or_mint(&other).unwrap()));
        cache.clear();
        assert_eq!(cache.stats().len, 0);
        assert!(!Arc::ptr_eq(
            &first,
            &cache.get_or_mint(&LeafRequest::new("example.com")).unwrap()
        ));
    }

    #[test]
    fn threads_that_ask_at_once_share_one_mint() {
        let (cache, barrier) = (cache(64), Barrier::new(8));
        for round in 0..20 {
            let request = LeafRequest::new(format!("host{round}.example"));
            let leaves: Vec<_> = std::thread::scope(|scope| {
                let ask = || {
                    barrier.wait();
                    cache.get_or_mint(&request).unwrap()
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .collect()
            });
            assert!(leaves.iter().all(|leaf| Arc::ptr_eq(leaf, &leaves[0])));
        }
        assert_eq!(
            cache.stats(),
            CacheStats {
                hits: 140,
                misses: 20,
                evictions: 0,
                len: 20
            }
        );
    }

    #[test]
    fn the_bound_holds_and_what_is_in_use_stays() {
        let cache = cache(4);
        let favourite = cache
            .get_or_mint(&LeafRequest::new("favourite.example"))
            .unwrap();
        for i in 0..50 {
            cache
                .get_or_mint(&LeafRequest::new(format!("h{i}.example")))
                .unwrap();
            assert!(Arc::ptr_eq(
                &favourite,
                &cache
                    .get_or_mint(&LeafRequest::new("favourite.example"))
                    .unwrap()
            ));
            assert!(cache.stats().len <= 4);
        }
        assert_eq!(cache.stats().evictions, 47);
        assert_eq!(cache.table().index.len(), 4);
    }

    #[test]
    fn a_new_leaf_comes_with_a_new_key_and_late_in_its_life() {
        let now = unix_now();
        let cache = cache(4);
        let request = LeafRequest::new("example.com");
        let first = cache.get_or_mint_at(&request, now).unwrap();
        assert!(Arc::ptr_eq(
            &first,
            &cache
                .get_or_mint_at(&request, now + LeafKey::LIFETIME - 60)
                .unwrap()
        ));
        let second = cache
            .get_or_mint_at(&request, now + LeafKey::LIFETIME + 60)
            .unwrap();
        assert!(!Arc::ptr_eq(
            first.key.as_ref().unwrap(),
            second.key.as_ref().unwrap()
        ));
        assert_eq!(cache.stats().misses, 2);
        let key = Some(
            cache
                .authority
                .leaf_key(now + LeafKey::LIFETIME + 60)
                .unwrap(),
        );
        let aged = Leaf {
            not_before: system_time(now - 80 * DAY),
            not_after: system_time(now + 10 * DAY),
            key,
            ..(*second).clone()
        };
        assert!(!cache.is_fresh(&aged, now + LeafKey::LIFETIME + 60).unwrap());
    }

    #[test]
    fn close_to_the_authority_s_end_leaves_are_still_cached() {
        let now = unix_now();
        let authority = Authority::generate_at(
            &AuthorityParams {
                validity_days: 1,
                ..Default::default()
            },
            now,
        )
        .unwrap();
        let cache = LeafCache::new(Arc::new(authority), 4);
        let request = LeafRequest::new("example.com");
        let late = now + DAY - 3600;
        let leaf = cache.get_or_mint_at(&request, late).unwrap();
        assert_eq!(leaf.not_after, cache.authority.not_after());
        assert!(Arc::ptr_eq(
            &leaf,
            &cache.get_or_mint_at(&request, late + 60).unwrap()
        ));
        assert!(matches!(
            cache.get_or_mint_at(&request, now + DAY + 1),
            Err(CaError::Expired { .. })
        ));
    }

    #[test]
    fn refused_names_take_no_room() {
        let params = AuthorityParams {
            permit: vec!["example.com".parse().unwrap()],
            ..Default::default()
        };
        let cache = LeafCache::new(Arc::new(Authority::generate(&params).unwrap()), 4);
        assert!(matches!(
            cache.get_or_mint(&LeafRequest::new("example.org")),
            Err(CaError::NotPermitted { .. })
        ));
        assert!(matches!(
            cache.get_or_mint(&LeafRequest::new("a b")),
            Err(CaError::InvalidName { .. })
        ));
        assert_eq!(cache.stats(), CacheStats::default());
    }

    #[test]
    fn the_operator_s_certificates_are_found_in_mitmproxy_s_order() {
        let cache = cache(4);
        let hosts = [
            "exact.a.example",
            "*.a.example",
            "*.example",
            "*",
            "10.0.0.1",
        ];
        let certificates: Vec<_> = hosts.iter().map(|_| certified("any.test")).collect();
        for (host, certificate) in hosts.iter().zip(&certificates) {
            cache.insert_custom(host, Arc::clone(certificate)).unwrap();
        }
        for (host, expected) in [
            ("EXACT.a.example", 0),
            ("b.a.example", 1),
            ("c.b.a.example", 1),
            ("a.example", 2),
            ("elsewhere.test", 3),
            ("10.0.0.1", 4),
            ("10.0.0.2", 3),
        ] {
            let leaf = cache.get_or_mint(&LeafRequest::new(host)).unwrap();
            assert!(
                Arc::ptr_eq(&leaf.certified, &certificates[expected]),
                "{host}"
            );
        }
        let by_target = LeafRequest::new("exact.a.example").with_server_name("elsewhere.test");
        assert!(Arc::ptr_eq(
            &cache.get_or_mint(&by_target).unwrap().certified,
            &certificates[0]
        ));
        assert_eq!(cache.stats().misses, 0);
    }

    #[test]
    fn a_custom_file_serves_its_domain_and_its_own_names() {
        let dir = tempfile::tempdir().unwrap();
        let host = Authority::generate(&AuthorityParams::default())
            .unwrap()
            .get_cert_for_host("own.example")
            .unwrap();
        let path = dir.path().join("own.pem");
        std::fs::write(&path, host.cert_pem.clone() + &host.key_pem).unwrap();
        let cache = cache(4);
        cache
            .load_custom(&format!("*.given.test={}", path.display()))
            .unwrap();
        let own = cache.get_or_mint(&LeafRequest::new("own.example")).unwrap();
        assert!(Arc::ptr_eq(
            &own,
            &cache
                .get_or_mint(&LeafRequest::new("a.given.test"))
                .unwrap()
        ));
        assert!(!Arc::ptr_eq(
            &own,
            &cache.get_or_mint(&LeafRequest::new("other.test")).unwrap()
        ));
        cache.load_custom(&path.display().to_string()).unwrap();
        assert_eq!(
            cache
                .get_or_mint(&LeafRequest::new("other.test"))
                .unwrap()
                .cert_der(),
            own.cert_der()
        );

        std::fs::write(&path, &host.cert_pem).unwrap();
        let error = cache.load_custom(&path.display().to_string()).unwrap_err();
        assert!(
            matches!(&error, CaError::File { cause, .. } if matches!(**cause, CaError::KeyMismatch)),
            "{error}"
        );
        assert!(matches!(
            cache.load_custom("a b=x.pem"),
            Err(CaError::InvalidName { .. })
        ));
        assert!(matches!(
            cache.load_custom("/nonexistent/x.pem"),
            Err(CaError::Io { .. })
        ));
    }

    #[test]
    fn not_before_lies_in_the_past() {
        let leaf = cache(1)
            .get_or_mint(&LeafRequest::new("example.com"))
            .unwrap();
        assert!(leaf.not_before < SystemTime::now());
        assert!(
            leaf.not_after.duration_since(leaf.not_before).unwrap()
                < Duration::from_secs(90 * 86_400)
        );
    }
}
