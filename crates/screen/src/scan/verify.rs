//! Checks that a string is what its shape says: checksums, encodings, known structure.

use sha2::{Digest as _, Sha256};

/// What a verifier says about a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A checksum or an inner structure agrees.
    Sure,
    /// The shape is right; nothing speaks for or against it.
    Plausible,
    /// The shape is right, but a checksum doesn't agree: a placeholder or a fragment.
    Doubtful,
    /// Not what the rule names.
    No,
}

/// A verifier: gets the candidate's bytes.
pub(super) type Verify = fn(&[u8]) -> Verdict;

/// Shannon entropy in bits per byte.
pub(super) fn entropy(bytes: &[u8]) -> f64 {
    let mut counts = [0_u32; 256];
    for &byte in bytes {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
    }
    let len = bytes.len() as f64;
    let mut sum = 0.0;
    for count in counts {
        if count > 0 {
            let p = f64::from(count) / len;
            sum -= p * p.log2();
        }
    }
    sum
}

/// Whether a string looks drawn at random from its alphabet, whatever its length.
///
/// A plain entropy threshold can't be met by short strings or small alphabets (hex tops out at 4
/// bits), so the entropy is held against the most that this length and alphabet could show; on top
/// of that, letters must not run like words.
pub(super) fn random_looking(bytes: &[u8]) -> bool {
    if bytes.len() < 8 {
        return false;
    }
    let (mut lower, mut upper, mut digit, mut other) = (0_usize, 0_usize, 0_usize, 0_usize);
    let mut hex = true;
    for &byte in bytes {
        match byte {
            b'a'..=b'z' => lower += 1,
            b'A'..=b'Z' => upper += 1,
            b'0'..=b'9' => digit += 1,
            _ => other += 1,
        }
        hex &= byte.is_ascii_hexdigit();
    }
    let mut alphabet = 0.0_f64;
    if hex {
        alphabet = 16.0;
    } else {
        for (count, size) in [(lower, 26.0), (upper, 26.0), (digit, 10.0), (other, 6.0)] {
            if count > 0 {
                alphabet += size;
            }
        }
    }
    let ceiling = alphabet.min(bytes.len() as f64).log2();
    if entropy(bytes) < 0.72 * ceiling {
        return false;
    }
    let classes = [lower, upper, digit].iter().filter(|&&n| n > 0).count();
    if classes < 2 && !(hex && digit > 0) {
        // One case of letters and nothing else: only strings without a word's vowels count.
        return digit == 0 && bytes.len() >= 20 && unpronounceable(bytes);
    }
    if digit == 0 && words_like(bytes) {
        return false;
    }
    if hex {
        return digit * 5 >= bytes.len() && digit < bytes.len();
    }
    // At least one change of class for every six characters: Words-And-2024 don't have that.
    changes(bytes) * 6 >= bytes.len() && !dictionary_like(bytes)
}

/// Changes between lower case, upper case, digit and other.
fn changes(bytes: &[u8]) -> usize {
    let class = |byte: u8| match byte {
        b'a'..=b'z' => 0,
        b'A'..=b'Z' => 1,
        b'0'..=b'9' => 2,
        _ => 3,
    };
    bytes
        .iter()
        .zip(bytes.iter().skip(1))
        .filter(|&(&a, &b)| class(a) != class(b))
        .count()
}

/// CamelCase or snake_case of letters only, in pronounceable pieces.
fn words_like(bytes: &[u8]) -> bool {
    let mut pieces = 0;
    let mut good = 0;
    let mut piece = Vec::new();
    let mut close = |piece: &mut Vec<u8>| {
        if piece.len() >= 2 {
            pieces += 1;
            if !unpronounceable(piece) {
                good += 1;
            }
        } else if piece.len() == 1 {
            pieces += 1;
        }
        piece.clear();
    };
    let mut last_lower = false;
    for &byte in bytes {
        let upper = byte.is_ascii_uppercase();
        if !byte.is_ascii_alphabetic() || (upper && last_lower) {
            close(&mut piece);
        }
        if byte.is_ascii_alphabetic() {
            piece.push(byte.to_ascii_lowercase());
        }
        last_lower = byte.is_ascii_lowercase();
    }
    close(&mut piece);
    good * 3 >= pieces * 2
}

/// Long stretches of one case that read like words, with a number attached.
fn dictionary_like(bytes: &[u8]) -> bool {
    let mut in_words = 0;
    for piece in bytes.split(|byte| !byte.is_ascii_alphabetic()) {
        let uniform = piece.iter().skip(1).all(u8::is_ascii_lowercase)
            || piece.iter().all(u8::is_ascii_uppercase);
        if piece.len() >= 4 && uniform && !unpronounceable(&piece.to_ascii_lowercase()) {
            in_words += piece.len();
        }
    }
    in_words * 10 >= bytes.len() * 6
}

/// Consonant runs and rare pairs that words of European languages don't have.
fn unpronounceable(lower: &[u8]) -> bool {
    let mut run = 0;
    let mut worst = 0;
    let mut vowels = 0;
    for &byte in lower {
        match byte.to_ascii_lowercase() {
            b'a' | b'e' | b'i' | b'o' | b'u' | b'y' => {
                vowels += 1;
                run = 0;
            }
            b'a'..=b'z' => {
                run += 1;
                worst = worst.max(run);
            }
            _ => run = 0,
        }
    }
    worst >= 5 || (lower.len() >= 3 && vowels * 6 < lower.len())
}

/// Placeholders and examples that are nobody's secret.
pub(super) fn placeholder(value: &[u8]) -> bool {
    let lower = value.to_ascii_lowercase();
    if let Some(&first) = lower.first()
        && lower.iter().filter(|&&byte| byte == first).count() * 10 >= lower.len() * 8
    {
        return true;
    }
    const PARTS: [&[u8]; 24] = [
        b"xxxx",
        b"****",
        b"....",
        b"your_",
        b"your-",
        b"yourp",
        b"yours",
        b"yourt",
        b"youra",
        b"<your",
        b"changeme",
        b"change_me",
        b"change-me",
        b"placeholder",
        b"redacted",
        b"insert",
        b"replace",
        b"dummy",
        b"todo",
        b"123456789",
        b"abcdefgh",
        b"_here",
        b"-here",
        b"sample",
    ];
    PARTS.iter().any(|part| contains(&lower, part))
}

/// Whether `needle` stands in `haystack`.
pub(super) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len().max(1)).any(|w| w == needle)
}

/// GitHub, npm: `prefix_` + 30 characters + CRC-32 of those in base 62, six digits.
pub(super) fn crc32_base62(token: &[u8]) -> Verdict {
    let Some(split) = token.iter().rposition(|&byte| byte == b'_') else {
        return Verdict::Plausible;
    };
    let body = token.get(split + 1..).unwrap_or_default();
    if low_variety(body) {
        return Verdict::No;
    }
    let Some((payload, check)) = body
        .len()
        .checked_sub(6)
        .and_then(|at| body.split_at_checked(at))
    else {
        return Verdict::Doubtful;
    };
    let mut value = 0_u64;
    for &byte in check {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'A'..=b'Z' => byte - b'A' + 10,
            b'a'..=b'z' => byte - b'a' + 36,
            _ => return Verdict::Doubtful,
        };
        value = value * 62 + u64::from(digit);
    }
    if value == u64::from(crc32(payload)) {
        Verdict::Sure
    } else {
        Verdict::Doubtful
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// A token whose body is one letter over and over, or a run of `x`, is a placeholder.
pub(super) fn varied(token: &[u8]) -> Verdict {
    if low_variety(token) {
        Verdict::No
    } else {
        Verdict::Plausible
    }
}

/// As [`varied`], and no word for a token inside.
pub(super) fn fragment(token: &[u8]) -> Verdict {
    let lower = token.to_ascii_lowercase();
    if [
        &b"token"[..],
        b"your",
        b"example",
        b"xxxx",
        b"personal",
        b"access",
    ]
    .iter()
    .any(|word| contains(&lower, word))
    {
        return Verdict::No;
    }
    varied(token)
}

/// As [`varied`], and random by its letters.
pub(super) fn random(token: &[u8]) -> Verdict {
    if !low_variety(token) && random_looking(token) {
        Verdict::Plausible
    } else {
        Verdict::No
    }
}

fn low_variety(bytes: &[u8]) -> bool {
    let mut seen = [false; 256];
    let mut distinct = 0;
    for &byte in bytes {
        if let Some(slot) = seen.get_mut(usize::from(byte))
            && !*slot
        {
            *slot = true;
            distinct += 1;
        }
    }
    distinct < 4 || (bytes.len() >= 16 && distinct * 8 < bytes.len().min(40))
}

/// An AWS access key id: base 32 after the prefix, and not all of one kind.
pub(super) fn aws_key_id(token: &[u8]) -> Verdict {
    let body = token.get(4..).unwrap_or_default();
    if low_variety(body) {
        return Verdict::No;
    }
    if body
        .iter()
        .all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'))
    {
        // Bits 1 to 40 are the number of the account, and that has twelve decimal digits.
        let mut bits = 0_u64;
        for &byte in body.iter().take(10) {
            let digit = match byte {
                b'A'..=b'Z' => byte - b'A',
                other => other - b'2' + 26,
            };
            bits = bits << 5 | u64::from(digit);
        }
        if bits >> 9 & 0xff_ffff_ffff < 1_000_000_000_000 {
            return Verdict::Sure;
        }
        return Verdict::Plausible;
    }
    Verdict::Doubtful
}

/// A JSON Web Token: the header decodes to a JSON object with `alg` or `typ`.
pub(super) fn jwt(token: &[u8]) -> Verdict {
    let header = token.split(|&byte| byte == b'.').next().unwrap_or_default();
    let Some(decoded) = base64(header) else {
        return Verdict::No;
    };
    if decoded.first() != Some(&b'{') {
        return Verdict::No;
    }
    if contains(&decoded, b"\"alg\"") {
        Verdict::Sure
    } else if contains(&decoded, b"\":") || contains(&decoded, b"\" :") {
        Verdict::Plausible
    } else {
        Verdict::No
    }
}

/// Decodes base64 of either alphabet, with or without padding; `None` if a byte doesn't belong.
pub(super) fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let mut bits = 0_u32;
    let mut count = 0;
    for &byte in text {
        if byte == b'=' {
            break;
        }
        bits = bits << 6 | u32::from(base64_digit(byte)?);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count & 0xff) as u8);
        }
    }
    Some(out)
}

/// The value of a base64 digit of the standard or the URL alphabet.
pub(super) fn base64_digit(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    }
}

/// The value of a hexadecimal digit.
pub(super) fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

/// A payment card: Luhn (ISO/IEC 7812-1), a length and a first digits that an issuer has.
pub(super) fn card(digits: &[u8]) -> bool {
    let number = |n: usize| {
        digits
            .iter()
            .take(n)
            .fold(0_u32, |sum, &d| sum * 10 + u32::from(d.wrapping_sub(b'0')))
    };
    let issuer = match digits.len() {
        13 | 16 | 19 if number(1) == 4 => true,
        16 => {
            (51..=55).contains(&number(2))
                || (2221..=2720).contains(&number(4))
                || number(4) == 6011
                || number(2) == 65
                || (644..=649).contains(&number(3))
                || (3528..=3589).contains(&number(4))
                || number(2) == 62
        }
        15 => matches!(number(2), 34 | 37),
        14 => matches!(number(2), 36 | 38 | 39) || (300..=305).contains(&number(3)),
        17..=19 => number(2) == 62,
        _ => false,
    };
    issuer && luhn(digits) && !low_variety_digits(digits)
}

fn low_variety_digits(digits: &[u8]) -> bool {
    let first = digits.first();
    digits.iter().all(|digit| Some(digit) == first)
}

fn luhn(digits: &[u8]) -> bool {
    let mut sum = 0_u32;
    for (at, &byte) in digits.iter().rev().enumerate() {
        let digit = u32::from(byte.wrapping_sub(b'0'));
        sum += match (at % 2, digit) {
            (0, digit) => digit,
            (_, digit) if digit > 4 => digit * 2 - 9,
            (_, digit) => digit * 2,
        };
    }
    sum.is_multiple_of(10)
}

/// An IBAN (ISO 13616): the country's length and the remainder of 97.
pub(super) fn iban(compact: &[u8]) -> bool {
    const LENGTHS: [(&[u8; 2], usize); 78] = [
        (b"AD", 24),
        (b"AE", 23),
        (b"AL", 28),
        (b"AT", 20),
        (b"AZ", 28),
        (b"BA", 20),
        (b"BE", 16),
        (b"BG", 22),
        (b"BH", 22),
        (b"BR", 29),
        (b"BY", 28),
        (b"CH", 21),
        (b"CR", 22),
        (b"CY", 28),
        (b"CZ", 24),
        (b"DE", 22),
        (b"DK", 18),
        (b"DO", 28),
        (b"EE", 20),
        (b"EG", 29),
        (b"ES", 24),
        (b"FI", 18),
        (b"FO", 18),
        (b"FR", 27),
        (b"GB", 22),
        (b"GE", 22),
        (b"GI", 23),
        (b"GL", 18),
        (b"GR", 27),
        (b"GT", 28),
        (b"HR", 21),
        (b"HU", 28),
        (b"IE", 22),
        (b"IL", 23),
        (b"IQ", 23),
        (b"IS", 26),
        (b"IT", 27),
        (b"JO", 30),
        (b"KW", 30),
        (b"KZ", 20),
        (b"LB", 28),
        (b"LC", 32),
        (b"LI", 21),
        (b"LT", 20),
        (b"LU", 20),
        (b"LV", 21),
        (b"LY", 25),
        (b"MC", 27),
        (b"MD", 24),
        (b"ME", 22),
        (b"MK", 19),
        (b"MR", 27),
        (b"MT", 31),
        (b"MU", 30),
        (b"NL", 18),
        (b"NO", 15),
        (b"PK", 24),
        (b"PL", 28),
        (b"PS", 29),
        (b"PT", 25),
        (b"QA", 29),
        (b"RO", 24),
        (b"RS", 22),
        (b"SA", 24),
        (b"SC", 31),
        (b"SE", 24),
        (b"SI", 19),
        (b"SK", 24),
        (b"SM", 27),
        (b"ST", 25),
        (b"SV", 28),
        (b"TL", 23),
        (b"TN", 24),
        (b"TR", 26),
        (b"UA", 29),
        (b"VA", 22),
        (b"VG", 24),
        (b"XK", 20),
    ];
    let [a, b, c, d, ..] = compact else {
        return false;
    };
    let head = a.is_ascii_uppercase() && b.is_ascii_uppercase();
    if !head || !c.is_ascii_digit() || !d.is_ascii_digit() {
        return false;
    }
    let country = [*a, *b];
    if !LENGTHS
        .iter()
        .any(|(code, len)| **code == country && *len == compact.len())
    {
        return false;
    }
    let (head, rest) = compact.split_at(4);
    let mut remainder = 0_u32;
    for &byte in rest.iter().chain(head) {
        remainder = match byte {
            b'0'..=b'9' => (remainder * 10 + u32::from(byte - b'0')) % 97,
            b'A'..=b'Z' => (remainder * 100 + u32::from(byte - b'A') + 10) % 97,
            _ => return false,
        };
    }
    remainder == 1
}

/// What a base58check string (Bitcoin) is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base58 {
    /// A private key in wallet import format.
    PrivateKey,
    /// An extended private key (BIP 32).
    ExtendedPrivateKey,
    /// A pay-to address.
    Address,
}

/// Decodes base58check and says what its version byte names.
pub(super) fn base58check(text: &[u8]) -> Option<Base58> {
    const ALPHABET: &[u8] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    if !(25..=112).contains(&text.len()) {
        return None;
    }
    // Little-endian bytes of the number.
    let mut number: Vec<u8> = Vec::with_capacity(82);
    for &byte in text {
        let digit = ALPHABET.iter().position(|&known| known == byte)?;
        let mut carry = digit;
        for slot in &mut number {
            carry += usize::from(*slot) * 58;
            *slot = (carry & 0xff) as u8;
            carry >>= 8;
        }
        while carry > 0 {
            number.push((carry & 0xff) as u8);
            carry >>= 8;
        }
    }
    let zeros = text.iter().take_while(|&&byte| byte == b'1').count();
    number.extend(std::iter::repeat_n(0, zeros));
    number.reverse();
    let (payload, check) = number.split_at_checked(number.len().checked_sub(4)?)?;
    if Sha256::digest(Sha256::digest(payload)).get(..4)? != check {
        return None;
    }
    match (payload.first()?, payload.len()) {
        (0x80 | 0xef | 0xb0, 33 | 34) => Some(Base58::PrivateKey),
        (0x00 | 0x05 | 0x6f | 0xc4 | 0x30 | 0x32, 21) => Some(Base58::Address),
        (0x04, 78) => Some(Base58::ExtendedPrivateKey),
        _ => None,
    }
}

/// A segwit address (BIP 173, BIP 350): human-readable part and checksum.
pub(super) fn bech32(text: &[u8]) -> bool {
    const ALPHABET: &[u8] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
    let lower = text.to_ascii_lowercase();
    let Some(split) = lower.iter().rposition(|&byte| byte == b'1') else {
        return false;
    };
    let (Some(hrp), Some(data)) = (lower.get(..split), lower.get(split + 1..)) else {
        return false;
    };
    if !matches!(hrp, b"bc" | b"tb" | b"ltc" | b"age-secret-key-" | b"nsec") || data.len() < 8 {
        return false;
    }
    let step = |chk: u32, value: u32| {
        const GENERATOR: [u32; 5] = [
            0x3b6a_57b2,
            0x2650_8e6d,
            0x1ea1_19fa,
            0x3d42_33dd,
            0x2a14_62b3,
        ];
        let top = chk >> 25;
        let mut next = (chk & 0x1ff_ffff) << 5 ^ value;
        for (bit, generator) in GENERATOR.iter().enumerate() {
            if top >> bit & 1 == 1 {
                next ^= generator;
            }
        }
        next
    };
    let mut chk = 1;
    for &byte in hrp {
        chk = step(chk, u32::from(byte >> 5));
    }
    chk = step(chk, 0);
    for &byte in hrp {
        chk = step(chk, u32::from(byte & 31));
    }
    for byte in data {
        let Some(value) = ALPHABET.iter().position(|known| known == byte) else {
            return false;
        };
        chk = step(chk, u32::try_from(value).unwrap_or(0));
    }
    matches!(chk, 1 | 0x2bc8_30a3)
}

/// A Grafana API key: base64 of JSON with a key in it.
pub(super) fn grafana(token: &[u8]) -> Verdict {
    if !token.starts_with(b"eyJ") {
        return varied(token);
    }
    match base64(token) {
        Some(json) if contains(&json, b"\"n\":") && contains(&json, b"\"id\":") => Verdict::Sure,
        _ => Verdict::No,
    }
}

/// An Okta token: any forty characters but zeros.
pub(super) fn okta(token: &[u8]) -> Verdict {
    if token.iter().filter(|&&byte| byte == b'0').count() * 2 > token.len() {
        Verdict::No
    } else {
        Verdict::Plausible
    }
}

/// A PEM private key: something of the key follows the header.
pub(super) fn private_key(text: &[u8]) -> Verdict {
    let body = text
        .windows(8)
        .position(|window| window == b"KEY-----" || window == b"OCK-----")
        .and_then(|at| text.get(at + 8..))
        .unwrap_or_default();
    if low_variety(body) || contains(body, b"...") || contains(body, b"-----END") {
        Verdict::Doubtful
    } else if body
        .iter()
        .filter(|byte| byte.is_ascii_alphanumeric())
        .count()
        >= 16
    {
        Verdict::Sure
    } else {
        Verdict::No
    }
}

/// Anything.
pub(super) fn any(_token: &[u8]) -> Verdict {
    Verdict::Plausible
}

/// A password that somebody chose: not a placeholder, a variable or the word itself.
pub(super) fn password(value: &[u8]) -> Verdict {
    if value.len() < 3 || placeholder(value) || variable(value) || word_for_secret(value) {
        Verdict::No
    } else {
        Verdict::Plausible
    }
}

/// [`password`] after a colon.
pub(super) fn user_password(value: &[u8]) -> Verdict {
    let at = value.iter().position(|&byte| byte == b':').unwrap_or(0);
    password(value.get(at + 1..).unwrap_or_default())
}

/// [`password`] in a URL: there, percent-encoded templates are not passwords either.
pub(super) fn url_password(value: &[u8]) -> Verdict {
    // A port, as in `https://[::1]:8080/@scope`, is no password.
    if value.iter().all(u8::is_ascii_digit) && value.len() <= 5 {
        return Verdict::No;
    }
    password(value)
}

/// The part after the last separator is random.
pub(super) fn random_after_prefix(token: &[u8]) -> Verdict {
    let at = token
        .iter()
        .rposition(|&byte| byte == b'_' || byte == b'-')
        .unwrap_or(0);
    random(token.get(at + 1..).unwrap_or_default())
}

/// `$VAR`, `${VAR}`, `{{var}}`, `<var>`, `%VAR%`, `process.env.X`, `call(…)`: a reference.
pub(super) fn variable(value: &[u8]) -> bool {
    let Some(&first) = value.first() else {
        return true;
    };
    let referenced = match first {
        b'$' => value
            .get(1)
            .is_some_and(|&byte| byte.is_ascii_alphabetic() || matches!(byte, b'{' | b'(' | b'_')),
        b'<' | b'[' | b'{' | b'&' | b'(' => true,
        // A pointer's type.
        b'*' => value.starts_with(b"*const") || value.starts_with(b"*mut"),
        b'%' => value.len() > 1 && value.ends_with(b"%") || value.len() <= 3,
        b'@' => value.starts_with(b"@{") || value.starts_with(b"@("),
        _ => false,
    };
    if referenced {
        return true;
    }
    const PARTS: [&[u8]; 18] = [
        b"${",
        b"$(",
        b"{{",
        b"}}",
        b"<%",
        b"%(",
        b"process.env",
        b"environ",
        b"getenv",
        b"secrets.",
        b"env.",
        b"config.",
        b"settings.",
        b"os.env",
        b"vault:",
        b"file://",
        b"#{",
        b"%s",
    ];
    let lower = value.to_ascii_lowercase();
    PARTS.iter().any(|part| contains(&lower, part))
}

/// `password`, `my-secret`, `api_token`: the value is the name of the thing.
pub(super) fn word_for_secret(value: &[u8]) -> bool {
    let mut letters: Vec<u8> = value
        .iter()
        .filter(|byte| byte.is_ascii_alphanumeric())
        .map(u8::to_ascii_lowercase)
        .collect();
    while letters.last().is_some_and(u8::is_ascii_digit) && letters.len() > 8 {
        letters.pop();
    }
    const WORDS: [&[u8]; 44] = [
        b"password",
        b"passwd",
        b"passphrase",
        b"pass",
        b"pwd",
        b"secret",
        b"token",
        b"key",
        b"apikey",
        b"apitoken",
        b"apisecret",
        b"accesskey",
        b"secretkey",
        b"accesstoken",
        b"authtoken",
        b"null",
        b"none",
        b"nil",
        b"undefined",
        b"true",
        b"false",
        b"string",
        b"username",
        b"user",
        b"value",
        b"mypassword",
        b"mysecret",
        b"mytoken",
        b"yourpassword",
        b"oldpassword",
        b"newpassword",
        b"userpassword",
        b"currentpassword",
        b"example",
        b"credentials",
        b"credential",
        b"privatekey",
        b"bearertoken",
        b"required",
        b"optional",
        b"stdin",
        b"clientsecret",
        b"passwordhere",
        b"rootpassword",
    ];
    WORDS.contains(&letters.as_slice())
}

/// `Basic` credentials: base64 of `user:password`.
pub(super) fn basic_credentials(value: &[u8]) -> Verdict {
    match base64(value) {
        Some(decoded)
            if decoded.contains(&b':')
                && decoded.len() >= 5
                && decoded
                    .iter()
                    .all(|byte| (0x20..0x7f).contains(byte) || *byte >= 0x80) =>
        {
            Verdict::Sure
        }
        _ => Verdict::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_need_luhn_and_an_issuer() {
        assert!(card(b"4111111111111111"));
        assert!(card(b"378282246310005"));
        assert!(card(b"5500000000000004"));
        assert!(!card(b"4111111111111112"));
        assert!(!card(b"9111111111111111"));
        assert!(!card(b"0000000000000000"));
    }

    #[test]
    fn ibans_need_length_and_remainder() {
        assert!(iban(b"GB82WEST12345698765432"));
        assert!(iban(b"DE89370400440532013000"));
        assert!(!iban(b"DE89370400440532013001"));
        assert!(!iban(b"DE8937040044053201300"));
        assert!(!iban(b"G"));
    }

    #[test]
    fn base58_names_what_it_holds() {
        assert_eq!(
            base58check(b"5HueCGU8rMjxEXxiPuD5BDku4MkFqeZyd4dZ1jvhTVqvbTLvyTJ"),
            Some(Base58::PrivateKey)
        );
        assert_eq!(
            base58check(b"1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
            Some(Base58::Address)
        );
        assert_eq!(base58check(b"1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNb"), None);
    }

    #[test]
    fn segwit_addresses_have_a_checksum() {
        assert!(bech32(b"bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"));
        assert!(!bech32(b"bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5"));
    }

    #[test]
    fn github_tokens_carry_a_crc() {
        let payload = "abcDEF123456abcDEF123456abcDEF";
        let mut sum = crc32(payload.as_bytes());
        let mut check = Vec::new();
        for _ in 0..6 {
            let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
            check.insert(0, digits[(sum % 62) as usize]);
            sum /= 62;
        }
        let mut token = format!("gh{}_{payload}", 'p').into_bytes();
        token.extend_from_slice(&check);
        assert_eq!(crc32_base62(&token), Verdict::Sure);
        token[10] ^= 1;
        assert_eq!(crc32_base62(&token), Verdict::Doubtful);
    }

    #[test]
    fn words_are_not_random() {
        for word in [
            "configuration",
            "getUserAccessTokenFromRequest",
            "my_database_password",
            "2024-11-26T10",
            "AuthenticationResults",
            "application-json-2024",
            "12345678901234567890",
        ] {
            assert!(!random_looking(word.as_bytes()), "{word}");
        }
        for word in [
            "wJalrXUtnFEMIK7MDENGbPxRfiCYzzaabb",
            "9f86d081884c7d659a2feaa0c55ad015",
            "x7Kp2mQ9vR4sL8nW1b",
            "52VeZqtHDCdAr5yM",
        ] {
            assert!(random_looking(word.as_bytes()), "{word}");
        }
    }
}
