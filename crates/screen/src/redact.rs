//! Takes what was found out of a text, and puts it back.
//!
//! A secret leaves as `[tollgate:RULE:DIGEST]`. The digest is keyed, with a key that lives as long as the process: the
//! same secret has the same placeholder in every request, and nothing can be learnt from it. What stands in JSON or in
//! a form stays JSON or a form, whatever was escaped. What was seen only behind an encoding (base64, hexadecimal …)
//! can't be taken out; [`Redacted::left`] says so. So it does of a long secret that was found by its beginning and has an
//! end that can't be told.

mod restore;
mod text;

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

pub use self::restore::{MAX_RESTORED, Originals, Restorer};
pub use self::text::Shape;
use crate::gate::Splice;
use crate::llm::json::quoted;
use crate::scan::{Category, Finding, Kind, MAX_KNOWN_LEN, Scanner};

/// How a placeholder begins.
pub(crate) const OPENING: &str = "[tollgate:";
/// Longer names of rules are cut in a placeholder.
const MAX_RULE: usize = 64;
/// How many digits a digest has.
const DIGITS: usize = 8;
/// The longest placeholder, also in a form.
pub(crate) const LONGEST: usize = OPENING.len() + MAX_RULE + DIGITS + 16;
/// A longer secret than this may go on behind what was found of it.
const LONG: usize = 200;
/// A shorter line than this is none of wrapped base64, but for the last one.
const WRAPPED: usize = 16;
/// How deep JSON in strings of JSON is opened.
const MAX_NESTED: usize = 3;

/// Takes secrets out, under a key of its own.
///
/// ```
/// use tollgate_screen::redact::{Redactor, Shape};
/// use tollgate_screen::scan::Scanner;
///
/// let redactor = Redactor::new(Scanner::builtin());
/// let body = br#"{"note": "\u0041KIAY3T6DKCNFLR2QWZ4"}"#;
/// let keys = |_: &[u8], found: &tollgate_screen::scan::Finding| &*found.rule == "aws-access-key-id";
/// let redacted = redactor.redact(body, Shape::Json, &keys);
/// assert!(redacted.left.is_empty());
/// let note: serde_json::Value = serde_json::from_slice(&redacted.text)?;
/// assert!(note["note"].as_str().unwrap().starts_with("[tollgate:aws-access-key-id:"));
/// # Ok::<(), serde_json::Error>(())
/// ```
pub struct Redactor {
    scanner: Scanner,
    key: [u8; 32],
    /// The names of rules as placeholders have them.
    rules: HashSet<String>,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor").finish_non_exhaustive()
    }
}

/// A secret that stands behind a placeholder. Its `Debug` doesn't show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Replaced {
    /// What stands in its place.
    pub placeholder: String,
    /// What it was found as.
    pub finding: Finding,
    secret: Arc<[u8]>,
}

impl Replaced {
    /// What was taken out.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }
}

impl fmt::Debug for Replaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.placeholder)
    }
}

/// A text without what was to be taken out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Redacted {
    /// The text.
    pub text: Vec<u8>,
    /// What was taken out.
    pub replaced: Vec<Replaced>,
    /// What is still in it, and shouldn't be: found only behind an encoding, or without its end. Such a text is not to be
    /// sent.
    pub left: Vec<Finding>,
}

impl Redacted {
    /// Whether all was taken out; else why not.
    pub(crate) fn whole(&self) -> Result<(), String> {
        match self.left.first() {
            None => Ok(()),
            Some(left) if left.via.is_empty() => Err(cant_be_cut_out(left)),
            Some(left) => Err(format!(
                "{} stands only behind {}",
                left.rule,
                left.via.join(", ")
            )),
        }
    }
}

/// Why a text can't be sent in which this is left.
pub(crate) fn cant_be_cut_out(left: &Finding) -> String {
    format!("{} can't be cut out of the text around it", left.rule)
}

/// Whether something that was found in a text is to be taken out.
pub type Wanted<'a> = &'a dyn Fn(&[u8], &Finding) -> bool;

/// What was taken out of a text, and what couldn't be.
#[derive(Default)]
struct Taken {
    replaced: Vec<Replaced>,
    left: Vec<Finding>,
}

/// Something to be taken out: where, and as what it was found.
#[derive(Clone, Debug)]
struct Span {
    range: Range<usize>,
    finding: Finding,
}

impl Redactor {
    /// With a key of its own.
    #[must_use]
    pub fn new(scanner: Scanner) -> Self {
        // The standard library's hash keys come from the system's random numbers.
        let random = || RandomState::new().hash_one(0_u64);
        let mut key = [0; 32];
        for chunk in key.chunks_exact_mut(8) {
            chunk.copy_from_slice(&random().to_le_bytes());
        }
        let rules = scanner.rules().map(|rule| named(&rule.id)).collect();
        Self {
            scanner,
            key,
            rules,
        }
    }

    /// What stands in the place of a secret.
    #[must_use]
    pub fn placeholder(&self, rule: &str, secret: &[u8]) -> String {
        let digest = Sha256::new()
            .chain_update(self.key)
            .chain_update(secret)
            .chain_update(self.key)
            .finalize();
        let mut digits = String::with_capacity(DIGITS);
        for byte in digest.iter().take(DIGITS / 2) {
            digits.push_str(&format!("{byte:02x}"));
        }
        format!("{OPENING}{}:{digits}]", named(rule))
    }

    /// Takes out of a text what is found in it and `wanted`.
    #[must_use]
    pub fn redact(&self, text: &[u8], shape: Shape, wanted: Wanted<'_>) -> Redacted {
        let spans = self.spans(text, wanted);
        let mut taken = Taken::default();
        let changed = self.rewrite(text, shape, &spans, wanted, MAX_NESTED, &mut taken);
        let text = changed.unwrap_or_else(|| text.to_vec());
        let mut left = self.scanner.scan(Kind::Outbound, &text);
        left.retain(|finding| wanted(&text, finding) && !self.is_ours(&text, finding));
        left.append(&mut taken.left);
        Redacted {
            text,
            replaced: taken.replaced,
            left,
        }
    }

    /// Whether what was found is a placeholder, and no secret.
    #[must_use]
    pub fn is_ours(&self, text: &[u8], finding: &Finding) -> bool {
        if !finding.via.is_empty() && !text.contains(&b'%') {
            return false;
        }
        let (Ok(start), Ok(end)) = (
            usize::try_from(finding.range.start),
            usize::try_from(finding.range.end),
        ) else {
            return false;
        };
        let end = end.min(text.len());
        // A finding may be a part of one.
        let from = start.saturating_sub(LONGEST);
        let around = text.get(from..(end + LONGEST).min(text.len()));
        let around = around.unwrap_or_default();
        let mut outside = Vec::new();
        let mut at = from;
        let mut any = false;
        for piece in self.placeholders(around) {
            let piece = piece.start + from..piece.end + from;
            if piece.end <= start || piece.start >= end {
                continue;
            }
            any = true;
            outside.extend_from_slice(
                text.get(at.max(start)..piece.start.max(start))
                    .unwrap_or_default(),
            );
            at = piece.end;
        }
        outside.extend_from_slice(
            text.get(at.max(start)..end.max(at.max(start)))
                .unwrap_or_default(),
        );
        any && outside.iter().filter(|b| b.is_ascii_alphanumeric()).count() < 4
    }

    /// Where placeholders stand in a text, also those of forms.
    pub(crate) fn placeholders<'a>(
        &'a self,
        text: &'a [u8],
    ) -> impl Iterator<Item = Range<usize>> + 'a {
        let name = OPENING.trim_start_matches('[').trim_end_matches(':');
        memchr::memmem::find_iter(text, name).filter_map(move |at| {
            let (start, colon, closing): (usize, &[u8], &[u8]) = match text.get(..at)? {
                [.., b'['] => (at - 1, b":", b"]"),
                [.., b'%', b'5', b'B' | b'b'] => (at - 3, b"%3A", b"%5D"),
                _ => return None,
            };
            let rest = text.get(at + name.len()..)?.strip_prefix(colon)?;
            let end = memchr::memmem::find(rest.get(..MAX_RULE + 4).unwrap_or(rest), colon)?;
            let rule = std::str::from_utf8(rest.get(..end)?).ok()?;
            let digits = rest.get(end + colon.len()..)?;
            let (digits, behind) = digits.split_at_checked(DIGITS)?;
            behind.strip_prefix(closing)?;
            let known = self.rules.contains(rule) && digits.iter().all(u8::is_ascii_hexdigit);
            let end = at + name.len() + 2 * colon.len() + end + DIGITS + closing.len();
            known.then_some(start..end)
        })
    }

    /// What is to be taken out of a text as it stands.
    fn spans(&self, text: &[u8], wanted: Wanted<'_>) -> Vec<Span> {
        let found = self.scanner.scan(Kind::Outbound, text);
        found
            .into_iter()
            .filter(|f| f.via.is_empty() && wanted(text, f) && !self.is_ours(text, f))
            .filter_map(|finding| {
                let start = usize::try_from(finding.range.start).ok()?;
                let end = usize::try_from(finding.range.end).ok()?;
                (start < end && end <= text.len()).then_some(Span {
                    range: start..end,
                    finding,
                })
            })
            .collect()
    }

    /// The text with its spans replaced; `None` if nothing is.
    fn rewrite(
        &self,
        text: &[u8],
        shape: Shape,
        spans: &[Span],
        wanted: Wanted<'_>,
        depth: usize,
        taken: &mut Taken,
    ) -> Option<Vec<u8>> {
        let mut edits = Splice::default();
        text::leaves(text, shape, |leaf| {
            let raw = leaf.range();
            let mut inside: Vec<Span> = spans
                .iter()
                .filter(|span| span.range.start < raw.end && span.range.end > raw.start)
                .map(|span| Span {
                    range: leaf
                        .to_logical(span.range.start.max(raw.start)..span.range.end.min(raw.end)),
                    finding: span.finding.clone(),
                })
                .collect();
            if leaf.is_coded() {
                inside.extend(self.spans(leaf.logical(), wanted));
            }
            if inside.is_empty() && !leaf.is_nested() {
                return;
            }
            if leaf.is_nested() && depth > 0 {
                let logical = leaf.logical();
                let inner = self.rewrite(logical, Shape::Json, &inside, wanted, depth - 1, taken);
                if let Some(inner) = inner {
                    let inner = String::from_utf8_lossy(&inner);
                    let written = quoted(&inner);
                    // The quotes stay where they are.
                    let written = written.get(1..written.len().saturating_sub(1));
                    edits.replace(raw, written.unwrap_or_default());
                }
                return;
            }
            for span in &mut inside {
                match end_of(leaf.logical(), span) {
                    Some(end) => span.range.end = end.max(span.range.end),
                    None => taken.left.push(span.finding.clone()),
                }
            }
            for span in merged(inside) {
                let secret = leaf.logical().get(span.range.clone()).unwrap_or_default();
                let placeholder = self.placeholder(&span.finding.rule, secret);
                edits.replace(leaf.to_raw(span.range.clone()), leaf.written(&placeholder));
                let mut all = taken.replaced.iter();
                if !all.any(|one| one.placeholder == placeholder) {
                    taken.replaced.push(Replaced {
                        placeholder,
                        finding: span.finding,
                        secret: secret.into(),
                    });
                }
            }
        });
        (!edits.is_empty()).then(|| edits.apply(text))
    }
}

/// Where a secret ends that was found at a span: of long ones, scanners see the beginning. `None` if that can't be told.
fn end_of(text: &[u8], span: &Span) -> Option<usize> {
    let rest = text.get(span.range.start..)?;
    let behind = |from: usize, marker: &[u8]| {
        let at = memchr::memmem::find(rest.get(from..)?, marker)?;
        Some(from + at + marker.len())
    };
    let count = |from: usize, is: fn(&u8) -> bool| {
        let rest = text.get(from..).unwrap_or_default();
        from + rest.iter().take_while(|byte| is(byte)).count()
    };
    if rest.starts_with(b"-----BEGIN ") {
        let end = behind(0, b"-----END ").and_then(|end| behind(end, b"-----"))?;
        return Some(span.range.start + end);
    }
    if rest.starts_with(b"PuTTY-User-Key-File-") {
        let mac = behind(0, b"Private-MAC: ")?;
        return Some(count(span.range.start + mac, u8::is_ascii_hexdigit));
    }
    if span.finding.category == Category::KnownSecret && span.range.len() >= MAX_KNOWN_LEN {
        return None;
    }
    let is_token: fn(&u8) -> bool = |b| {
        b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'_' | b'-' | b'.' | b'~')
    };
    let wraps = &*span.finding.rule == "private-key-base64";
    if !wraps && span.range.len() < LONG {
        return Some(span.range.end);
    }
    let mut end = count(span.range.end, is_token);
    while wraps && matches!(text.get(end), Some(b'\r' | b'\n')) {
        let next = count(end, u8::is_ascii_whitespace);
        let line = count(next, is_token);
        if line < next + WRAPPED {
            break;
        }
        end = line;
    }
    Some(end)
}

/// Spans that overlap or touch become one, as what the first was found.
fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.retain(|span| !span.range.is_empty());
    spans.sort_by_key(|span| (span.range.start, std::cmp::Reverse(span.range.end)));
    let mut out: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match out.last_mut() {
            Some(last) if span.range.start <= last.range.end => {
                last.range.end = last.range.end.max(span.range.end);
            }
            _ => out.push(span),
        }
    }
    out
}

/// A rule's name, as it can stand in any text.
fn named(rule: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    rule.chars()
        .take(MAX_RULE)
        .map(|c| if legal(c) { c } else { '-' })
        .collect()
}

/// Why a message's body can't be written anew: somebody has signed it, or told its digest. `None` if it can.
///
/// `fields` are the names and values of its header, `query` is that of its URL.
#[must_use]
pub fn signed_by<'a>(
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    query: &[u8],
) -> Option<String> {
    const SCHEMES: [&str; 9] = [
        "AWS4-",
        "AWS3",
        "AWS ",
        "SharedKey",
        "Signature",
        "OAuth ",
        "Hawk",
        "EG1-",
        "HMAC",
    ];
    for (name, value) in fields {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let value = String::from_utf8_lossy(value);
        let signs = match name.as_str() {
            "authorization" => SCHEMES.iter().any(|scheme| {
                value
                    .get(..scheme.len())
                    .is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
            }),
            "x-amz-content-sha256" => &*value != "UNSIGNED-PAYLOAD",
            "content-md5" => true,
            _ => name
                .split(['-', '_'])
                .any(|word| matches!(word, "signature" | "digest" | "hmac" | "sig")),
        };
        if signs {
            return Some(name);
        }
    }
    let query = String::from_utf8_lossy(query);
    let names = query.split('&').filter_map(|pair| pair.split('=').next());
    names
        .map(str::to_ascii_lowercase)
        .find(|name| {
            matches!(
                name.as_str(),
                "x-amz-signature" | "x-goog-signature" | "signature" | "sig" | "oauth_signature"
            )
        })
        .map(|name| format!("the parameter {name}"))
}

/// The logical text of a leaf, for those who need not write it.
fn as_text(bytes: &[u8]) -> Option<Cow<'_, str>> {
    std::str::from_utf8(bytes).ok().map(Cow::Borrowed)
}

#[cfg(test)]
mod tests;
