//! Bodies as text: which charset, and what it says.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::bytes::Regex;

use crate::record::HttpMessage;

/// The body is not text in the charset that it claims, or that charset is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotText;

impl HttpMessage {
    /// The decoded body as UTF-8. `Ok(None)`: it was not kept.
    pub(crate) fn strict_text(&self) -> Result<Option<Cow<'_, [u8]>>, NotText> {
        let Some(content) = self.strict_content().map_err(|_| NotText)? else {
            return Ok(None);
        };
        self.to_utf8(content).map(Some)
    }

    /// The decoded body as UTF-8; where it is no text, the bytes as they are.
    pub(crate) fn lenient_text(&self) -> Option<Cow<'_, [u8]>> {
        let content = self.content()?;
        let charset = charset_of(&self.content_type(), &content);
        Some(match decode(&content, &charset) {
            Some(text) => Cow::Owned(text),
            None => content,
        })
    }

    /// `Content-Type`, all of them joined; empty for none.
    pub(crate) fn content_type(&self) -> String {
        let joined = self.headers.joined("content-type").unwrap_or_default();
        String::from_utf8_lossy(&joined).into_owned()
    }

    fn to_utf8<'a>(&self, content: Cow<'a, [u8]>) -> Result<Cow<'a, [u8]>, NotText> {
        let charset = charset_of(&self.content_type(), &content);
        decode(&content, &charset).map(Cow::Owned).ok_or(NotText)
    }
}

fn pattern(pattern: &str) -> Option<Regex> {
    Regex::new(pattern).ok()
}

static META: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r#"(?i-u)<meta[^>]+charset=['"]?([^'">]+)"#));
static XML: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r#"(?i-u)<\?xml[^?>]+encoding=['"]([^'"?>]+)"#));
static CSS: LazyLock<Option<Regex>> = LazyLock::new(|| pattern(r#"(?i-u)\A@charset "([^"]+)";"#));

/// The charset, in mitmproxy's order: byte order mark, `Content-Type`, what the content says of itself, what its type
/// implies, and at last Latin-1.
pub(crate) fn charset_of(content_type: &str, content: &[u8]) -> String {
    for (mark, charset) in [
        (&b"\x00\x00\xfe\xff"[..], "utf-32be"),
        (b"\xff\xfe\x00\x00", "utf-32le"),
        (b"\xfe\xff", "utf-16be"),
        (b"\xff\xfe", "utf-16le"),
        (b"\xef\xbb\xbf", "utf-8-sig"),
    ] {
        if content.starts_with(mark) {
            return charset.to_owned();
        }
    }
    if let Some(charset) = parameter(content_type, "charset").filter(|charset| !charset.is_empty())
    {
        return charset.to_owned();
    }
    let within = |regex: &Option<Regex>| {
        let found = regex.as_ref()?.captures(content)?.get(1)?.as_bytes();
        let ascii: String = found
            .iter()
            .filter(|b| b.is_ascii())
            .map(|b| char::from(*b))
            .collect();
        Some(ascii).filter(|charset| !charset.is_empty())
    };
    let utf8 = || "utf8".to_owned();
    if content_type.contains("json") {
        utf8()
    } else if content_type.contains("html") {
        within(&META).unwrap_or_else(utf8)
    } else if content_type.contains("xml") {
        within(&XML).unwrap_or_else(utf8)
    } else if content_type.contains("javascript") || content_type.contains("ecmascript") {
        utf8()
    } else if content_type.contains("text/css") {
        within(&CSS).unwrap_or_else(utf8)
    } else {
        "latin-1".to_owned()
    }
}

/// A parameter of a media type.
fn parameter<'a>(content_type: &'a str, name: &str) -> Option<&'a str> {
    let (kind, parameters) = content_type.split_once(';')?;
    kind.contains('/').then_some(())?;
    let pairs = parameters
        .split(';')
        .filter_map(|clause| clause.split_once('='));
    let mut found = pairs.rev();
    found
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

/// Text in a charset as UTF-8; `None` where it is not text in it, or the charset is unknown.
pub(crate) fn decode(content: &[u8], charset: &str) -> Option<Vec<u8>> {
    let name = charset.to_ascii_lowercase().replace('_', "-");
    let wide = |unit: usize, read: &dyn Fn(&[u8]) -> u32| {
        let whole = content.len().is_multiple_of(unit);
        whole.then(|| content.chunks(unit).map(read).collect::<Vec<u32>>())
    };
    match name.as_str() {
        "utf8" | "utf-8" => std::str::from_utf8(content)
            .ok()
            .map(|text| text.as_bytes().to_vec()),
        "utf-8-sig" => {
            let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
            std::str::from_utf8(content)
                .ok()
                .map(|text| text.as_bytes().to_vec())
        }
        "latin-1" | "latin1" | "iso-8859-1" | "iso8859-1" | "l1" => Some(
            content
                .iter()
                .map(|b| char::from(*b))
                .collect::<String>()
                .into_bytes(),
        ),
        "ascii" | "us-ascii" => content.is_ascii().then(|| content.to_vec()),
        "utf-32be" | "utf-32le" | "utf-32-be" | "utf-32-le" => {
            let units = wide(4, &|unit| {
                let bytes = unit.iter().map(|b| u32::from(*b));
                if name.ends_with("be") {
                    bytes.fold(0, |value, byte| value << 8 | byte)
                } else {
                    bytes.rev().fold(0, |value, byte| value << 8 | byte)
                }
            })?;
            let text: Option<String> = units.into_iter().map(char::from_u32).collect();
            text.map(String::into_bytes)
        }
        // Python means the superset.
        "gb2312" | "gbk" => by_label(content, "gb18030"),
        "utf-16be" | "utf-16-be" => by_label(content, "utf-16be"),
        "utf-16le" | "utf-16-le" | "utf-16" => by_label(content, "utf-16le"),
        _ => by_label(content, &name),
    }
}

fn by_label(content: &[u8], label: &str) -> Option<Vec<u8>> {
    let encoding = encoding_rs::Encoding::for_label_no_replacement(label.as_bytes())?;
    let text = encoding.decode_without_bom_handling_and_without_replacement(content)?;
    Some(text.into_owned().into_bytes())
}

/// Text in a charset; `None` where the charset can't say it, or is unknown.
pub(crate) fn encode(text: &str, charset: &str) -> Option<Vec<u8>> {
    let name = charset.to_ascii_lowercase().replace('_', "-");
    match name.as_str() {
        "utf8" | "utf-8" => Some(text.as_bytes().to_vec()),
        "utf-8-sig" => Some([&b"\xef\xbb\xbf"[..], text.as_bytes()].concat()),
        "latin-1" | "latin1" | "iso-8859-1" | "iso8859-1" | "l1" => text
            .chars()
            .map(|c| u8::try_from(u32::from(c)).ok())
            .collect(),
        "ascii" | "us-ascii" => text.is_ascii().then(|| text.as_bytes().to_vec()),
        "utf-16be" | "utf-16-be" => Some(text.encode_utf16().flat_map(u16::to_be_bytes).collect()),
        "utf-16le" | "utf-16-le" => Some(text.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        _ => {
            let label = match name.as_str() {
                "gb2312" | "gbk" => "gb18030",
                other => other,
            };
            let encoding = encoding_rs::Encoding::for_label_no_replacement(label.as_bytes())?;
            let (bytes, used, unmappable) = encoding.encode(text);
            (used == encoding && !unmappable).then(|| bytes.into_owned())
        }
    }
}

/// Whether content looks binary: mitmproxy's rule over its first hundred bytes.
pub(crate) fn is_mostly_binary(content: &[u8]) -> bool {
    let mut start = content;
    if content.len() > 100 {
        // Not in the middle of a UTF-8 sequence.
        let boundary = (100..content.len().min(104))
            .find(|at| content.get(*at).is_some_and(|b| b >> 6 != 0b10))
            .unwrap_or(100);
        start = content.get(..boundary).unwrap_or(content);
    }
    if start.is_empty() {
        return false;
    }
    let low = start
        .iter()
        .filter(|b| **b < 9 || (14..32).contains(*b))
        .count();
    let high = start.iter().filter(|b| **b > 126).count();
    let ascii = start.len() - low - high;
    let share = |count: usize| count as f64 / start.len() as f64;
    if share(ascii) > 0.7 {
        return false;
    }
    !(share(ascii + high) > 0.95 && std::str::from_utf8(start).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charsets_are_found_as_mitmproxy_finds_them() {
        for (content_type, content, charset) in [
            ("text/plain", &b"x"[..], "latin-1"),
            ("text/plain; charset=UTF-8", b"x", "UTF-8"),
            ("text/plain; charset=", b"x", "latin-1"),
            ("application/json", b"{}", "utf8"),
            ("text/html", b"<meta charset=\"gbk\">", "gbk"),
            ("text/html", b"<p>", "utf8"),
            (
                "text/xml",
                b"<?xml version='1.0' encoding='latin1'?>",
                "latin1",
            ),
            ("text/css", b"@charset \"ascii\";", "ascii"),
            ("text/css", b"a", "utf8"),
            ("", b"\xff\xfea\x00", "utf-16le"),
            ("application/json", b"\xef\xbb\xbf{}", "utf-8-sig"),
        ] {
            assert_eq!(charset_of(content_type, content), charset, "{content_type}");
        }
    }

    #[test]
    fn text_is_decoded_or_it_is_none() {
        let text = |content: &[u8], charset| {
            decode(content, charset).map(|t| String::from_utf8(t).unwrap())
        };
        assert_eq!(text(b"\xe4", "latin-1").as_deref(), Some("ä"));
        assert_eq!(text(b"\xe4", "utf8"), None);
        assert_eq!(text(b"\xc4\xe3", "gbk").as_deref(), Some("你"));
        assert_eq!(text(b"\x82\xa0", "shift_jis").as_deref(), Some("あ"));
        assert_eq!(text(b"a\x00", "utf-16le").as_deref(), Some("a"));
        assert_eq!(text(b"\x00\x00\x00a", "utf-32be").as_deref(), Some("a"));
        assert_eq!(text(b"\x00\x00a", "utf-32be"), None);
        assert_eq!(text(b"x", "no-such-charset"), None);
        assert_eq!(encode("ä€", "latin-1"), None);
        assert_eq!(encode("ä", "latin-1").as_deref(), Some(&b"\xe4"[..]));
        assert_eq!(encode("你", "gb2312").as_deref(), Some(&b"\xc4\xe3"[..]));
    }

    #[test]
    fn binary_is_told_from_text() {
        assert!(!is_mostly_binary(b""));
        assert!(!is_mostly_binary(b"hello"));
        assert!(!is_mostly_binary("äöü".repeat(100).as_bytes()));
        assert!(is_mostly_binary(&[0, 1, 2, 255]));
        assert!(is_mostly_binary(&[0xff; 200]));
    }
}
