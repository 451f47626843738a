//! Cookies of a message, read as leniently as mitmproxy reads them: what is malformed is kept.

/// The cookies of a `Cookie` header.
pub(super) fn of_request(value: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut cursor = Cursor { text: value, at: 0 };
    let mut cookies = Vec::new();
    loop {
        let name = cursor.until(b";=").trim_ascii_start().to_vec();
        let value = if cursor.skip(b'=') {
            cursor.value(b";")
        } else {
            Vec::new()
        };
        if !name.is_empty() || !value.is_empty() {
            cookies.push((name, value));
        }
        if !cursor.next() {
            return cookies;
        }
    }
}

/// A cookie of a `Set-Cookie` header.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SetCookie {
    pub name: Vec<u8>,
    /// `None` where not even `=` stands behind the name.
    pub value: Option<Vec<u8>>,
    attributes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl SetCookie {
    /// The last attribute of a name: `Some(None)` for one without a value.
    pub fn attribute(&self, name: &str) -> Option<Option<&[u8]>> {
        let mut found = self.attributes.iter().rev();
        let attribute = found.find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes()))?;
        Some(attribute.1.as_deref())
    }
}

/// The cookies of a `Set-Cookie` header: mostly one, but a comma separates further ones.
pub(super) fn of_response(value: &[u8]) -> Vec<SetCookie> {
    let mut cursor = Cursor { text: value, at: 0 };
    let mut cookies = Vec::new();
    let mut pairs: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
    loop {
        let name = cursor.until(b";=,").trim_ascii_start().to_vec();
        if cursor.skip(b'=') {
            let mut value = cursor.value(b";,");
            // A date has a comma behind its weekday.
            if name.eq_ignore_ascii_case(b"expires")
                && cursor.peek() == Some(b',')
                && is_weekday(&value)
            {
                cursor.at += 1;
                value.push(b',');
                value.append(&mut cursor.value(b";,"));
            }
            pairs.push((name, Some(value)));
        } else if !name.is_empty() {
            pairs.push((name, None));
        }
        if cursor.peek() == Some(b',') {
            cookies.extend(cookie(std::mem::take(&mut pairs)));
        }
        if !cursor.next() {
            cookies.extend(cookie(pairs));
            return cookies;
        }
    }
}

fn cookie(pairs: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Option<SetCookie> {
    let mut pairs = pairs.into_iter();
    let (name, value) = pairs.next()?;
    Some(SetCookie {
        name,
        value,
        attributes: pairs.collect(),
    })
}

fn is_weekday(value: &[u8]) -> bool {
    const DAYS: [&str; 7] = [
        "monday",
        "tuesday",
        "wednesday",
        "thursday",
        "friday",
        "saturday",
        "sunday",
    ];
    let value = value.trim_ascii().to_ascii_lowercase();
    let is = |day: &&str| value == day.as_bytes() || Some(&value[..]) == day.as_bytes().get(..3);
    DAYS.iter().any(is)
}

struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn skip(&mut self, byte: u8) -> bool {
        let is = self.peek() == Some(byte);
        self.at += usize::from(is);
        is
    }

    /// Behind the separator; answers whether anything is left there.
    fn next(&mut self) -> bool {
        self.at += 1;
        self.at < self.text.len()
    }

    fn until(&mut self, ends: &[u8]) -> &'a [u8] {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let length = rest
            .iter()
            .position(|b| ends.contains(b))
            .unwrap_or(rest.len());
        self.at += length;
        rest.get(..length).unwrap_or_default()
    }

    /// A value, quoted or not. Behind a closing quote, nothing is skipped.
    fn value(&mut self, ends: &[u8]) -> Vec<u8> {
        if self.peek() != Some(b'"') {
            return self.until(ends).to_vec();
        }
        self.at += 1;
        let mut value = Vec::new();
        let mut is_escaped = false;
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                _ if is_escaped => {
                    value.push(byte);
                    is_escaped = false;
                }
                b'"' => break,
                b'\\' => is_escaped = true,
                _ => value.push(byte),
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_cookies_keep_what_is_malformed() {
        let read = |value: &str| {
            let show = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            let cookies = of_request(value.as_bytes()).into_iter();
            cookies
                .map(|(name, value)| (show(name), show(value)))
                .collect::<Vec<_>>()
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read("a=b; c=d"), [pair("a", "b"), pair("c", "d")]);
        assert_eq!(
            read("a=\"b;\\\"c\"; d"),
            [pair("a", "b;\"c"), pair("d", "")]
        );
        assert_eq!(read("=x;;a=b=c"), [pair("", "x"), pair("a", "b=c")]);
        assert_eq!(read(""), []);
    }

    #[test]
    fn set_cookies_have_attributes() {
        let header = b"a=b; Path=/x; HttpOnly; Expires=Wed, 21 Oct 2025 07:28:00 GMT; path=/y, c=d; Secure, e";
        let cookies = of_response(header);
        assert_eq!(cookies.len(), 3);
        assert_eq!(cookies[0].attribute("path"), Some(Some(&b"/y"[..])));
        assert_eq!(cookies[0].attribute("httponly"), Some(None));
        assert_eq!(
            cookies[0].attribute("expires"),
            Some(Some(&b"Wed, 21 Oct 2025 07:28:00 GMT"[..]))
        );
        assert_eq!(cookies[0].attribute("secure"), None);
        assert_eq!(cookies[1].attribute("secure"), Some(None));
        assert_eq!(
            (&cookies[2].name[..], &cookies[2].value),
            (&b"e"[..], &None)
        );
        assert!(of_response(b"").is_empty());
    }
}
