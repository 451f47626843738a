//! `Sec-WebSocket-Extensions` (RFC 6455 section 9.1) and the parameters of permessage-deflate
//! (RFC 7692 section 7.1).

use super::Sender;

/// The most extensions that one list may name; a longer one can't be read.
const MAX_EXTENSIONS: usize = 32;

/// One extension of a list, with its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extension<'a> {
    /// Its name.
    pub name: &'a str,
    /// The whole element as it stands in the header, for passing it on.
    pub text: &'a str,
}

impl<'a> Extension<'a> {
    /// Whether this is the compression of RFC 7692.
    #[must_use]
    pub fn is_permessage_deflate(&self) -> bool {
        self.name.eq_ignore_ascii_case("permessage-deflate")
    }

    /// Names and values of the parameters, quotes taken off.
    pub fn parameters(&self) -> impl Iterator<Item = (&'a str, Option<&'a str>)> {
        split(self.text, b';')
            .skip(1)
            .map(|parameter| match parameter.split_once('=') {
                None => (parameter, None),
                Some((name, value)) => {
                    let value = value.trim();
                    let unquoted = value
                        .strip_prefix('"')
                        .and_then(|v| v.strip_suffix('"'))
                        .unwrap_or(value);
                    (name.trim(), Some(unquoted))
                }
            })
    }
}

/// A list of extensions, offered or agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extensions<'a>(Vec<Extension<'a>>);

impl<'a> Extensions<'a> {
    /// Reads the values of all `Sec-WebSocket-Extensions` lines of a head. `None` where they are no
    /// list, or name more than 32.
    #[must_use]
    pub fn parse(values: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut list = Vec::new();
        for value in values {
            let value = std::str::from_utf8(value).ok()?;
            for element in split(value, b',').filter(|e| !e.is_empty()) {
                let name = split(element, b';').next().unwrap_or_default();
                if name.is_empty() || !name.bytes().all(is_token) || list.len() == MAX_EXTENSIONS {
                    return None;
                }
                list.push(Extension {
                    name,
                    text: element,
                });
            }
        }
        Some(Self(list))
    }

    /// The extensions in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Extension<'a>> {
        self.0.iter()
    }

    /// The list without what can't be read here: a value for an offer. `None` where nothing is left.
    #[must_use]
    pub fn only_supported(&self) -> Option<String> {
        let kept: Vec<&str> = self
            .0
            .iter()
            .filter(|e| e.is_permessage_deflate() && PermessageDeflate::of(e).is_some())
            .map(|e| e.text)
            .collect();
        (!kept.is_empty()).then(|| kept.join(", "))
    }

    /// Reads the list as a server's answer: what both sides do from here on.
    ///
    /// # Errors
    /// [`Unsupported`] where it agrees on an extension, or on parameters, that are not known here.
    pub fn negotiated(&self) -> Result<Negotiated, Unsupported> {
        match self.0.as_slice() {
            [] => Ok(Negotiated { deflate: None }),
            [only] if only.is_permessage_deflate() => PermessageDeflate::of(only)
                .map(|deflate| Negotiated {
                    deflate: Some(deflate),
                })
                .ok_or(Unsupported),
            _ => Err(Unsupported),
        }
    }
}

/// What a handshake agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Negotiated {
    /// The compression, where there is one.
    pub deflate: Option<PermessageDeflate>,
}

/// An extension, or one of its parameters, that is not known here: its frames can be forwarded but
/// not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a WebSocket extension that is not known")]
pub struct Unsupported;

/// The parameters of permessage-deflate (RFC 7692 section 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PermessageDeflate {
    /// The server forgets its window after each message.
    pub server_no_context_takeover: bool,
    /// The client forgets its window after each message.
    pub client_no_context_takeover: bool,
    /// The base-2 logarithm of the server's window, 8 to 15.
    pub server_max_window_bits: u8,
    /// The base-2 logarithm of the client's window, 8 to 15.
    pub client_max_window_bits: u8,
}

impl Default for PermessageDeflate {
    fn default() -> Self {
        Self {
            server_no_context_takeover: false,
            client_no_context_takeover: false,
            server_max_window_bits: 15,
            client_max_window_bits: 15,
        }
    }
}

impl PermessageDeflate {
    /// Whether the sender's window goes on from message to message.
    #[must_use]
    pub fn context_takeover(&self, sender: Sender) -> bool {
        match sender {
            Sender::Client => !self.client_no_context_takeover,
            Sender::Server => !self.server_no_context_takeover,
        }
    }

    /// The base-2 logarithm of the sender's window.
    #[must_use]
    pub fn window_bits(&self, sender: Sender) -> u8 {
        match sender {
            Sender::Client => self.client_max_window_bits,
            Sender::Server => self.server_max_window_bits,
        }
    }

    /// `None` for a parameter that is not known, comes twice or has a bad value.
    fn of(extension: &Extension<'_>) -> Option<Self> {
        let mut it = Self::default();
        let mut seen = Vec::new();
        for (name, value) in extension.parameters() {
            let name = name.to_ascii_lowercase();
            match (name.as_str(), value) {
                ("server_no_context_takeover", None) => it.server_no_context_takeover = true,
                ("client_no_context_takeover", None) => it.client_no_context_takeover = true,
                ("server_max_window_bits", Some(bits)) => {
                    it.server_max_window_bits = window_bits(bits)?;
                }
                // In an offer it may come without a value: the client can be told one.
                ("client_max_window_bits", None) => {}
                ("client_max_window_bits", Some(bits)) => {
                    it.client_max_window_bits = window_bits(bits)?;
                }
                _ => return None,
            }
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
        }
        Some(it)
    }
}

fn window_bits(text: &str) -> Option<u8> {
    match text.as_bytes() {
        [digit @ b'8'..=b'9'] => Some(digit - b'0'),
        [b'1', digit @ b'0'..=b'5'] => Some(10 + digit - b'0'),
        _ => None,
    }
}

/// Splits at a separator outside of quotes, and trims.
fn split(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c: char| {
        if c == '"' {
            quoted = !quoted;
        }
        !quoted && c == char::from(separator)
    })
    .map(str::trim)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Extensions<'_> {
        Extensions::parse([value.as_bytes()]).unwrap()
    }

    #[test]
    fn answers_are_read() {
        assert_eq!(parse("").negotiated(), Ok(Negotiated { deflate: None }));
        let answer =
            "permessage-deflate; server_no_context_takeover; client_max_window_bits=\"10\"";
        let deflate = parse(answer).negotiated().unwrap().deflate.unwrap();
        assert!(!deflate.context_takeover(Sender::Server));
        assert!(deflate.context_takeover(Sender::Client));
        assert_eq!(deflate.window_bits(Sender::Client), 10);
        assert_eq!(deflate.window_bits(Sender::Server), 15);
        for unsupported in [
            "x-webkit-deflate-frame",
            "permessage-deflate, permessage-deflate",
            "permessage-deflate; fast",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=08",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
        ] {
            assert_eq!(
                parse(unsupported).negotiated(),
                Err(Unsupported),
                "{unsupported}"
            );
        }
    }

    #[test]
    fn offers_are_cut_to_what_can_be_read() {
        let lines = [
            &b"bbf-usp-protocol; x=\"a,b\", permessage-deflate; client_max_window_bits"[..],
            b"permessage-bzip2, permessage-deflate",
        ];
        let offer = Extensions::parse(lines).unwrap();
        assert_eq!(offer.iter().count(), 4);
        assert_eq!(
            offer.only_supported().as_deref(),
            Some("permessage-deflate; client_max_window_bits, permessage-deflate")
        );
        assert_eq!(parse("foo, bar").only_supported(), None);
    }

    #[test]
    fn what_is_no_list_is_not_read() {
        assert_eq!(Extensions::parse([&b"a b"[..]]), None);
        assert_eq!(Extensions::parse([&b"\xff"[..]]), None);
        assert_eq!(Extensions::parse([&b"; x"[..]]), None);
        assert_eq!(Extensions::parse(vec![&b"a"[..]; 33]), None);
    }
}
