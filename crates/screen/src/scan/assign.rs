//! Secrets by their surroundings: a name that says "password", an operator, and a value that could
//! be one.

use std::ops::Range;

use super::catalogue::own;
use super::finding::{Confidence, Kind};
use super::scanner::{Pass, Report, Window, redact};
use super::verify::{self, placeholder, random_looking, variable, word_for_secret};

/// Words in whose neighbourhood a value is looked for, in lower case.
pub(super) const WORDS: &[&str] = &[
    "passw",
    "passphrase",
    "_pass",
    "pass=",
    "pass:",
    "pass\"",
    "pass'",
    "pwd",
    "secret",
    "token",
    "apikey",
    "api_key",
    "api-key",
    "api key",
    "accesskey",
    "access_key",
    "access-key",
    "access key",
    "privatekey",
    "private_key",
    "private-key",
    "authkey",
    "auth_key",
    "auth-key",
    "credential",
    "encryptionkey",
    "encryption_key",
    "encryption-key",
    "licensekey",
    "license_key",
    "license-key",
    "signingkey",
    "signing_key",
    "masterkey",
    "master_key",
    "accountkey",
    "account_key",
    "sharedkey",
    "shared_key",
    "secretkey",
    "sessionkey",
    "session_key",
    "storagekey",
    "storage_key",
    "servicekey",
    "service_key",
    "clientkey",
    "client_key",
    "appkey",
    "app_key",
    "insertkey",
    "querykey",
    "deploykey",
    "deploy_key",
    "webhook_key",
    "iokey",
    "io_key",
    "_api=",
    "_api'",
    "authorization",
    "consumerkey",
    "consumer_key",
    "postmark",
    "_auth",
    "_key=",
    "_key:",
    ".key=",
    ".key =",
    "_key\"",
    "_key'",
    "connectkey",
];

/// How long a name may be.
const MAX_NAME: usize = 64;
/// How long a value may be.
const MAX_VALUE: usize = 256;

/// What the name says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Says {
    /// People choose it: any string will do.
    Password,
    /// A machine drew it: it must look like that.
    Token,
}

/// Looks at the assignment around a word.
pub(super) fn look(pass: &mut Pass<'_>, window: Window<'_>, word: Range<usize>) {
    let text = window.text;
    let byte = |at: usize| text.get(at).copied().unwrap_or(0);
    let in_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');

    // The whole name around the word.
    let mut start = word.start;
    while start > 0 && word.start - start < MAX_NAME && in_name(byte(start - 1)) {
        start -= 1;
    }
    let mut end = word.start;
    while end < text.len()
        && end - word.start < MAX_NAME
        && (in_name(byte(end)) || (end < word.end && byte(end) == b' '))
    {
        end += 1;
    }
    let name = window.get(start..end);
    // The cheap question first.
    let Some((value, quoted, sure)) = value_after(window, start, end) else {
        return;
    };
    if value.len() < 4 {
        return;
    }
    let Some(says) = meaning(name) else {
        return;
    };
    let bytes = window.get(value.clone());
    let Some(confidence) = judge(says, name, bytes, quoted, sure) else {
        return;
    };
    // What documentation shows as an example is no secret where documentation comes from.
    if pass.kind == Kind::Inbound && verify::contains(bytes, b"EXAMPLE") {
        return;
    }
    if pass.told(window, &value) {
        return;
    }
    let rule = match says {
        Says::Password => own("assigned-password"),
        Says::Token => own("assigned-secret"),
    };
    pass.emit(
        window,
        &rule,
        value,
        Report {
            confidence,
            excerpt: redact(bytes),
            score: None,
        },
    );
}

/// Splits a name into words and reads the last that matters.
fn meaning(name: &[u8]) -> Option<Says> {
    let mut words: Vec<Vec<u8>> = Vec::new();
    let mut word: Vec<u8> = Vec::new();
    let mut last_lower = false;
    for &byte in name {
        let boundary = !byte.is_ascii_alphanumeric() || (byte.is_ascii_uppercase() && last_lower);
        if boundary && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if byte.is_ascii_alphanumeric() {
            word.push(byte.to_ascii_lowercase());
        }
        last_lower = byte.is_ascii_lowercase() || byte.is_ascii_digit();
    }
    if !word.is_empty() {
        words.push(word);
    }
    // What may follow the noun without changing what it is.
    while words.len() > 1
        && words.last().is_some_and(|last| {
            last.iter().all(u8::is_ascii_digit)
                || matches!(
                    last.as_slice(),
                    b"value"
                        | b"val"
                        | b"b64"
                        | b"base64"
                        | b"base"
                        | b"raw"
                        | b"string"
                        | b"str"
                        | b"default"
                        | b"prod"
                        | b"production"
                        | b"dev"
                        | b"test"
                        | b"staging"
                        | b"live"
                        | b"sandbox"
                        | b"hex"
                        | b"plain"
                        | b"env"
                        | b"text"
                        | b"v1"
                        | b"v2"
                        | b"enc"
                )
        })
    {
        words.pop();
    }
    let last = words.last()?.as_slice();
    // One or two digits at the end don't matter: password1.
    let last = match last {
        [head @ .., b'0'..=b'9'] if head.len() >= 4 => head,
        other => other,
    };
    let ends = |tail: &[u8]| last.ends_with(tail);
    if ends(b"password")
        || ends(b"passwd")
        || ends(b"passphrase")
        || ends(b"passwort")
        || ends(b"pwd")
        || ends(b"passwordhash")
        || last == b"pass"
        || (ends(b"pass") && last.len() <= 8 && !matches!(last, b"bypass" | b"compass"))
    {
        return Some(Says::Password);
    }
    if ends(b"secret")
        || ends(b"secrets")
        || ends(b"token")
        || ends(b"apikey")
        || ends(b"secretkey")
        || ends(b"accesskey")
        || ends(b"privatekey")
        || ends(b"authkey")
        || ends(b"licensekey")
        || ends(b"masterkey")
        || ends(b"credential")
        || ends(b"credentials")
        || ends(b"accountkey")
        || ends(b"encryptionkey")
        || ends(b"signingkey")
        || ends(b"sharedkey")
        || ends(b"appkey")
        || ends(b"insertkey")
        || ends(b"querykey")
        || ends(b"servicekey")
        || ends(b"clientkey")
        || ends(b"deploykey")
        || ends(b"authorization")
        || ends(b"connectkey")
        || ends(b"iokey")
        || ends(b"postmark")
        || ends(b"api")
    {
        return Some(Says::Token);
    }
    if matches!(last, b"key" | b"keys" | b"auth") {
        return Some(Says::Token);
    }
    // token_id, secret_name and the like are something else.
    None
}

/// The value that follows a name: where, whether in quotes, and whether an operator of assignment
/// stood between.
fn value_after(
    window: Window<'_>,
    name_start: usize,
    name_end: usize,
) -> Option<(Range<usize>, bool, bool)> {
    let text = window.text;
    let byte = |at: usize| text.get(at).copied().unwrap_or(0);
    let mut at = name_end;
    // The name's own closing: quote, bracket, escaped quote, a closing XML quote.
    let mut closed = false;
    while matches!(byte(at), b'"' | b'\'' | b'`' | b']' | b')')
        || (byte(at) == b'\\' && matches!(byte(at + 1), b'"' | b'\''))
    {
        closed = true;
        at += 1;
        if at - name_end > 5 {
            return None;
        }
    }
    let spaces = |mut at: usize| {
        while matches!(byte(at), b' ' | b'\t') {
            at += 1;
        }
        at
    };
    let gap = spaces(at);
    let mut sure = true;
    let rest = window.get(gap..text.len().min(gap + 12));
    let mut after;
    if rest.starts_with(b"=>")
        || rest.starts_with(b":=")
        || rest.starts_with(b"==")
        || rest.starts_with(b"!=")
        || rest.starts_with(b"->")
        || rest.starts_with(b"?=")
        || rest.starts_with(b"+=")
        || rest.starts_with(b"||")
    {
        after = gap + 2;
        if byte(after) == b'=' {
            after += 1;
        }
    } else if rest.starts_with(b"=") || (rest.starts_with(b":") && !rest.starts_with(b"://")) {
        after = gap + 1;
        if rest.starts_with(b"::") {
            after += 1;
            if byte(after) == b'=' {
                after += 1;
            }
        }
    } else if closed && rest.starts_with(b",") {
        after = gap + 1;
    } else if closed && rest.starts_with(b" ") || rest.starts_with(b"value=") {
        after = gap;
    } else if byte(at) == b'>' || rest.starts_with(b">") {
        after = gap + 1;
    } else if rest.starts_with(b"(") {
        after = gap + 1;
        sure = false;
    } else if gap > at || closed {
        // `--password X`, `password X`, `password is X`, `password for the user X is Y`.
        return spoken(window, name_start, gap);
    } else {
        return None;
    }
    after = spaces(after);
    // `value="…"` of XML and HTML, `env(`, `new X(`: not assignments of a literal; the first is.
    let ahead = window.get(after..text.len().min(after + 16));
    if ahead.starts_with(b"value=") {
        after += 6;
    }
    // A line break between key and value: YAML lists and wrapped maps.
    if matches!(byte(after), b'\n' | b'\r') {
        let next = spaces(after + 1 + usize::from(byte(after + 1) == b'\n'));
        if matches!(byte(next), b'"' | b'\'') {
            after = next;
        } else {
            return None;
        }
    }
    literal(window, after).map(|(value, quoted)| (value, quoted, sure))
}

/// A literal at `at`: in quotes, or up to what ends a word.
fn literal(window: Window<'_>, at: usize) -> Option<(Range<usize>, bool)> {
    let text = window.text;
    let byte = |at: usize| text.get(at).copied().unwrap_or(0);
    let mut start = at;
    let mut escaped = false;
    while byte(start) == b'\\' && start - at < 4 {
        escaped = true;
        start += 1;
    }
    if matches!(byte(start), b'r' | b'b' | b'f' | b'u' | b'@' | b'L')
        && matches!(byte(start + 1), b'"' | b'\'')
    {
        start += 1;
    }
    let quote = byte(start);
    if matches!(quote, b'"' | b'\'' | b'`') {
        start += 1;
        // "'value'" and the like.
        if matches!(byte(start), b'"' | b'\'') && byte(start) != quote {
            start += 1;
        }
        let mut end = start;
        while end < text.len() && end - start < MAX_VALUE {
            match byte(end) {
                b'\n' | b'\r' => return None,
                b'\\' if escaped || byte(end + 1) != quote => {
                    if escaped && byte(end + 1) == quote {
                        break;
                    }
                    end += 1;
                }
                b'\\' => end += 2,
                b if b == quote => break,
                b'"' | b'\''
                    if matches!(byte(start.wrapping_sub(1)), b'"' | b'\'')
                        && byte(end) == byte(start.wrapping_sub(1)) =>
                {
                    break;
                }
                _ => end += 1,
            }
        }
        return (end > start && end < text.len()).then_some((start..end, true));
    }
    if escaped {
        start = at;
    }
    let mut end = start;
    while end < text.len() && end - start <= MAX_VALUE {
        match byte(end) {
            b' ' | b'\t' | b'\n' | b'\r' | b'"' | b'\'' | b'`' | b',' | b';' | b'<' | b'>'
            | b'|' => break,
            b'&' | b')' | b'}' | b']' if end > start => break,
            b'\\' if matches!(byte(end + 1), b'n' | b'r' | b't' | b'"' | b'\'' | b'\\') => break,
            _ => end += 1,
        }
    }
    (end > start && end - start <= MAX_VALUE).then_some((start..end, false))
}

/// Without an operator: an option's argument, or English.
fn spoken(window: Window<'_>, name_start: usize, at: usize) -> Option<(Range<usize>, bool, bool)> {
    let text = window.text;
    let byte = |at: usize| text.get(at).copied().unwrap_or(0);
    let before = window.get(name_start.saturating_sub(1)..name_start);
    let option = before == b"-" || before == b"/" || window.get(name_start..name_start + 1) == b"-";
    if option {
        return literal(window, at).map(|(value, quoted)| (value, quoted, true));
    }
    if matches!(byte(at), b'"' | b'\'') {
        // password 'x' (Gradle, SQL: IDENTIFIED BY is elsewhere).
        return literal(window, at).map(|(value, quoted)| (value, quoted, true));
    }
    // " is ", within the sentence, then something in quotes.
    let sentence = window.get(at..text.len().min(at + 60));
    let line = sentence.split(|&b| b == b'\n').next().unwrap_or_default();
    let is = line
        .windows(4)
        .position(|w| w == b" is " || w == b" to ")
        .map(|p| p + 4)
        .or_else(|| line.starts_with(b"is ").then_some(3))?;
    let quote = at + is;
    if matches!(byte(quote), b'"' | b'\'' | b'`') {
        return literal(window, quote).map(|(value, quoted)| (value, quoted, true));
    }
    // Without quotes: only what looks random or mixed.
    literal(window, quote).map(|(value, quoted)| (value, quoted, false))
}

/// Whether a value can be the secret that the name announces.
fn judge(says: Says, name: &[u8], value: &[u8], quoted: bool, sure: bool) -> Option<Confidence> {
    if value.len() < 4 || placeholder(value) || variable(value) || word_for_secret(value) {
        return None;
    }
    if value.iter().any(|byte| byte.is_ascii_control())
        || value.ends_with(b":")
        || value == b"not-set"
    {
        return None;
    }
    let lower = value.to_ascii_lowercase();
    if !quoted && (verify::contains(&lower, b"password") || verify::contains(&lower, b"passwd")) {
        return None;
    }
    // The name again: `api_key = "api_key"`.
    let compact = |bytes: &[u8]| -> Vec<u8> {
        bytes
            .iter()
            .filter(|byte| byte.is_ascii_alphanumeric())
            .map(u8::to_ascii_lowercase)
            .collect()
    };
    let (compact_name, compact_value) = (compact(name), compact(value));
    if compact_value.is_empty()
        || compact_name.ends_with(&compact_value)
        || compact_value.ends_with(&compact_name)
    {
        return None;
    }
    let random = random_looking(value) || uuid(value);
    match says {
        Says::Password => {
            if value.contains(&b' ') || call(value) {
                return None;
            }
            if random {
                return Some(Confidence::Medium);
            }
            let mixed = mixed(value);
            let plain_word = value
                .iter()
                .all(|byte| byte.is_ascii_alphabetic() || *byte == b'_');
            let ok = if quoted {
                sure && !path_or_selector(value) && !(verify::contains(value, b"assword"))
            } else {
                mixed && !path_or_selector(value) && !code(value)
                    || (sure && plain_word && value.len() >= 6 && shell_style(name))
            };
            ok.then_some(Confidence::Low)
        }
        Says::Token => {
            if value.contains(&b' ') || call(value) || path_or_selector(value) {
                return None;
            }
            if random && value.len() >= 12 {
                return Some(Confidence::Medium);
            }
            // Shorter or wordier ones only in quotes, after an operator, with both kinds of characters.
            let name_secret = verify::contains(&compact_name, b"secret")
                || verify::contains(&compact_name, b"token");
            (quoted && sure && name_secret && mixed(value) && value.len() >= 8 && !code(value))
                .then_some(Confidence::Low)
        }
    }
}

/// `PASSWORD=word`, as in environment files: the name is in capitals.
fn shell_style(name: &[u8]) -> bool {
    name.iter().any(u8::is_ascii_uppercase) && !name.iter().any(u8::is_ascii_lowercase)
}

/// Letters with digits or punctuation, as passwords are.
fn mixed(value: &[u8]) -> bool {
    let letters = value.iter().any(u8::is_ascii_alphabetic);
    let digits = value.iter().any(u8::is_ascii_digit);
    let marks = value.iter().any(|byte| {
        byte.is_ascii_punctuation() && !matches!(byte, b'_' | b'-' | b'.' | b':' | b'/')
    });
    letters && (digits || marks)
}

/// `a.b.c`, `getToken()`, `$x->y`, `foo[bar]`.
fn code(value: &[u8]) -> bool {
    call(value)
        || verify::contains(value, b"->")
        || verify::contains(value, b"::")
        || value.contains(&b'[')
        || value.contains(&b'{')
        || (value.contains(&b'.')
            && value.split(|&byte| byte == b'.').all(|part| {
                part.first()
                    .is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_')
                    && part.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
                    && !random_looking(part)
            }))
}

fn call(value: &[u8]) -> bool {
    value.ends_with(b"(")
        || verify::contains(value, b"()")
        || (value.contains(&b'(') && !value.contains(&b'@'))
}

fn path_or_selector(value: &[u8]) -> bool {
    let first = value.first().copied().unwrap_or(0);
    if verify::contains(value, b"://") {
        return true;
    }
    matches!(first, b'/' | b'.' | b'~')
        || (matches!(first, b'#' | b'-')
            && value
                .iter()
                .skip(1)
                .all(|b| b.is_ascii_lowercase() || *b == b'-'))
        || verify::contains(value, b"/path")
        || (value.contains(&b'/')
            && value.iter().all(|b| {
                b.is_ascii_lowercase()
                    || b.is_ascii_digit()
                    || matches!(b, b'/' | b'-' | b'_' | b'.')
            }))
        || value.ends_with(b".txt")
        || value.ends_with(b".json")
        || value.ends_with(b".pem")
        || value.ends_with(b".key")
}

/// A UUID that isn't a placeholder.
fn uuid(value: &[u8]) -> bool {
    value.len() == 36
        && value.iter().enumerate().all(|(at, byte)| {
            if matches!(at, 8 | 13 | 18 | 23) {
                *byte == b'-'
            } else {
                byte.is_ascii_hexdigit()
            }
        })
        && verify::entropy(value) > 2.8
}
