//! Secrets that the scanner was told about, and canaries: found in every encoding, stored in none.
//!
//! A value is turned into needles (as it is, base64 in its three alignments, hexadecimal, percent,
//! base32, reversed), and of each needle only keyed fingerprints are kept: a hash of its first
//! bytes, which every position of the text is held against, and a keyed SHA-256 of the whole.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::catalogue::own;
use super::finding::Confidence;
use super::scanner::{Pass, Report, Window};

/// A shorter value than this can't be told from ordinary text.
pub const MIN_KNOWN_LEN: usize = 8;
/// Of a longer value than this, the beginning is looked for.
pub const MAX_KNOWN_LEN: usize = 512;
/// At most this many values.
pub const MAX_KNOWN: usize = 10_000;
/// How many bytes the first hash covers.
const GRAM: usize = 8;

/// Why a value can't be looked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KnownError {
    /// The value has fewer than [`MIN_KNOWN_LEN`] bytes, or hardly more than one distinct byte.
    #[error("the value of `{name}` is too short or too plain to look for")]
    TooPlain {
        /// What the value is called.
        name: String,
    },
    /// There are [`MAX_KNOWN`] values already.
    #[error("more than {MAX_KNOWN} known secrets")]
    TooMany,
}

#[derive(Clone, Copy)]
struct Needle {
    gram: u64,
    len: usize,
    mac: [u8; 32],
    name: usize,
    how: &'static str,
}

/// Fingerprints of values that must not leave.
#[derive(Clone)]
pub struct KnownSecrets {
    key: [u8; 32],
    multiplier: u64,
    mask: u64,
    /// Sorted by `gram`.
    needles: Vec<Needle>,
    names: Vec<(Arc<str>, bool)>,
    /// One bit per value of the gram's top 16 bits.
    seen: Vec<u64>,
}

impl fmt::Debug for KnownSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KnownSecrets")
            .field("values", &self.names.len())
            .finish_non_exhaustive()
    }
}

impl Default for KnownSecrets {
    fn default() -> Self {
        Self::new()
    }
}

impl KnownSecrets {
    /// None yet, under a key of its own that lives as long as the process.
    #[must_use]
    pub fn new() -> Self {
        // The standard library's hash keys come from the system's random numbers.
        let random = || RandomState::new().hash_one(0_u64);
        let mut key = [0; 32];
        for chunk in key.chunks_exact_mut(8) {
            chunk.copy_from_slice(&random().to_le_bytes());
        }
        KnownSecrets {
            key,
            multiplier: random() | 1,
            mask: random(),
            needles: Vec::new(),
            names: Vec::new(),
            seen: vec![0; 1024],
        }
    }

    /// Looks for a value from now on. `name` stands in findings; the value stands nowhere.
    ///
    /// # Errors
    /// [`KnownError::TooPlain`], [`KnownError::TooMany`].
    pub fn add(&mut self, name: &str, value: &[u8]) -> Result<(), KnownError> {
        self.insert(name, value, false)
    }

    /// Looks for a canary: a value that is of no use to anybody, planted to see who takes it.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_canary(&mut self, name: &str, value: &[u8]) -> Result<(), KnownError> {
        self.insert(name, value, true)
    }

    /// How many values are looked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn insert(&mut self, name: &str, value: &[u8], canary: bool) -> Result<(), KnownError> {
        if self.names.len() >= MAX_KNOWN {
            return Err(KnownError::TooMany);
        }
        let value = value.get(..MAX_KNOWN_LEN).unwrap_or(value);
        let mut distinct = value.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        if value.len() < MIN_KNOWN_LEN || distinct.len() < 4 {
            return Err(KnownError::TooPlain {
                name: name.to_owned(),
            });
        }
        let index = self.names.len();
        self.names.push((name.into(), canary));
        let mut forms: Vec<(&'static str, Vec<u8>)> = vec![
            ("", value.to_vec()),
            ("reversed", value.iter().rev().copied().collect()),
            ("hex", hex(value, b"0123456789abcdef")),
            ("hex", hex(value, b"0123456789ABCDEF")),
            ("base32", base32(value)),
            ("percent", percent(value, false)),
            ("percent", percent(value, true)),
        ];
        for alphabet in [STANDARD, URL_SAFE] {
            for lead in 0..3 {
                forms.push(("base64", base64_inside(value, lead, alphabet)));
            }
        }
        forms.sort_by(|a, b| a.1.cmp(&b.1));
        forms.dedup_by(|a, b| a.1 == b.1);
        for (how, form) in forms {
            let Some(gram) = form.get(..GRAM).and_then(|head| head.try_into().ok()) else {
                continue;
            };
            let gram = self.gram(gram);
            let needle = Needle {
                gram,
                len: form.len(),
                mac: self.mac(&form),
                name: index,
                how,
            };
            self.needles.push(needle);
            if let Some(word) = self.seen.get_mut((gram >> 54) as usize) {
                *word |= 1 << (gram >> 48 & 63);
            }
        }
        Ok(())
    }

    /// Puts the needles in order, once all are there: they are looked up by bisection.
    pub(super) fn seal(&mut self) {
        self.needles.sort_by_key(|needle| needle.gram);
    }

    fn gram(&self, bytes: [u8; GRAM]) -> u64 {
        let mixed = (u64::from_le_bytes(bytes) ^ self.mask).wrapping_mul(self.multiplier);
        (mixed ^ mixed >> 29).wrapping_mul(self.multiplier.rotate_left(23) | 1)
    }

    fn mac(&self, bytes: &[u8]) -> [u8; 32] {
        let inner = Sha256::new()
            .chain_update(self.key)
            .chain_update(bytes)
            .finalize();
        Sha256::new()
            .chain_update(inner)
            .chain_update(self.key)
            .finalize()
            .into()
    }

    /// Looks at every position of a block.
    pub(super) fn look(&self, pass: &mut Pass<'_>, window: Window<'_>) {
        let text = window.get(window.from..window.text.len().min(window.to + GRAM - 1));
        for (at, bytes) in text.windows(GRAM).enumerate() {
            let Ok(bytes) = bytes.try_into() else {
                continue;
            };
            let gram = self.gram(bytes);
            let word = self.seen.get((gram >> 54) as usize).copied().unwrap_or(0);
            if word >> (gram >> 48 & 63) & 1 == 0 {
                continue;
            }
            let first = self.needles.partition_point(|known| known.gram < gram);
            let same = self.needles.get(first..).unwrap_or_default();
            for needle in same.iter().take_while(|needle| needle.gram == gram) {
                let start = window.from + at;
                let range = start..start + needle.len;
                let Some(candidate) = window.text.get(range.clone()) else {
                    continue;
                };
                if self.mac(candidate) != needle.mac {
                    continue;
                }
                let Some((name, canary)) = self.names.get(needle.name) else {
                    continue;
                };
                let rule = if *canary {
                    own("canary")
                } else {
                    own("known-secret")
                };
                let how = if needle.how.is_empty() {
                    String::new()
                } else {
                    format!(", {}", needle.how)
                };
                pass.emit(
                    window,
                    &rule,
                    range,
                    Report {
                        confidence: Confidence::High,
                        excerpt: format!("{name}…({} bytes{how})", needle.len),
                        score: None,
                    },
                );
            }
        }
    }
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The base64 digits that depend on `value` alone if `lead` bytes of something else come before it.
fn base64_inside(value: &[u8], lead: usize, alphabet: &[u8; 64]) -> Vec<u8> {
    let mut padded = vec![0; lead];
    padded.extend_from_slice(value);
    let mut digits = Vec::with_capacity(padded.len() * 4 / 3 + 4);
    for chunk in padded.chunks(3) {
        let mut three = [0; 3];
        if let Some(slots) = three.get_mut(..chunk.len()) {
            slots.copy_from_slice(chunk);
        }
        let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
        for shift in [18, 12, 6, 0] {
            digits.extend(alphabet.get((bits >> shift & 63) as usize));
        }
    }
    // Digits that share bits with what comes before or after say nothing.
    let first = (lead * 8).div_ceil(6);
    let last = padded.len() * 8 / 6;
    digits.get(first..last).unwrap_or_default().to_vec()
}

fn hex(value: &[u8], alphabet: &[u8; 16]) -> Vec<u8> {
    value
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| alphabet.get(usize::from(digit)).copied())
        .collect()
}

fn base32(value: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut out = Vec::new();
    let mut bits = 0_u64;
    let mut count = 0;
    for &byte in value {
        bits = (bits << 8 | u64::from(byte)) & 0xffff;
        count += 8;
        while count >= 5 {
            count -= 5;
            out.extend(ALPHABET.get((bits >> count & 31) as usize));
        }
    }
    out
}

fn percent(value: &[u8], everything: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for &byte in value {
        if !everything
            && (byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~'))
        {
            out.push(byte);
        } else {
            out.push(b'%');
            out.extend(hex(&[byte], b"0123456789ABCDEF"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Scanner};
    use super::*;

    fn scanner(value: &str) -> Scanner {
        let mut known = KnownSecrets::new();
        known.add("DB_PASSWORD", value.as_bytes()).unwrap();
        Scanner::builder().known(known).build().unwrap()
    }

    fn found(scanner: &Scanner, text: &[u8]) -> bool {
        let findings = scanner.scan(Kind::Outbound, text);
        for finding in &findings {
            assert!(!finding.excerpt.contains("correct horse"), "{finding:?}");
        }
        findings
            .iter()
            .any(|finding| &*finding.rule == "known-secret")
    }

    #[test]
    fn a_known_value_is_found_in_every_encoding() {
        let value = "correct horse/battery+staple";
        let scanner = scanner(value);
        let b64 = |lead: usize| {
            let mut bytes = vec![b'!'; lead];
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"...");
            base64_inside(&bytes, 0, STANDARD)
        };
        let reversed: String = value.chars().rev().collect();
        for text in [
            value.as_bytes().to_vec(),
            b64(0),
            b64(1),
            b64(2),
            hex(value.as_bytes(), b"0123456789abcdef"),
            base32(value.as_bytes()),
            percent(value.as_bytes(), false),
            percent(value.as_bytes(), true),
            reversed.into_bytes(),
        ] {
            let mut whole = b"x = \"".to_vec();
            whole.extend_from_slice(&text);
            whole.extend_from_slice(b"\" and so on");
            assert!(
                found(&scanner, &whole),
                "{}",
                String::from_utf8_lossy(&whole)
            );
        }
        assert!(!found(&scanner, b"correct horse/battery+stapl3 and so on"));
    }

    #[test]
    fn plain_values_are_refused() {
        let mut known = KnownSecrets::new();
        assert!(matches!(
            known.add("A", b"short"),
            Err(KnownError::TooPlain { .. })
        ));
        assert!(matches!(
            known.add("A", b"aaaaaaaaaaaa"),
            Err(KnownError::TooPlain { .. })
        ));
        assert!(known.is_empty());
    }
}
