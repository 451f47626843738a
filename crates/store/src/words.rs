//! Words of flows: what full-text search finds.
//!
//! A word is a run of ASCII letters and digits, and of anything beyond ASCII; case of ASCII letters does not matter.
//! That is what SQLite's tokenizer `ascii` makes of a text, so that what is taken apart here stays so there.

use std::hash::BuildHasher;
use std::ops::ControlFlow;

use hashbrown::{DefaultHashBuilder, HashSet};
use tollgate_flow::record::{Content, HeaderFields, HttpMessage, Record};
use tollgate_wire::coding::{Decoder, OutputLimit};

/// How much of a body is searched, decoded.
pub const BODY_BYTES: usize = 16 * 1024;

/// How many messages of a flow are searched.
const MESSAGES: usize = 256;

/// The most of a word that counts.
const WORD_BYTES: usize = 64;

/// The words of a search: a flow must have them all.
///
/// A word that ends in `*` stands for all that begin so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words(Vec<Word>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    text: Vec<u8>,
    prefix: bool,
}

impl Words {
    /// Takes a text apart. `None` when there is no word in it.
    pub fn new(text: &str) -> Option<Self> {
        let mut words: Vec<Word> = Vec::new();
        for part in text.split_whitespace() {
            let before = words.len();
            let _ = each_word(part.as_bytes(), &mut |word| {
                words.push(Word {
                    text: word.to_vec(),
                    prefix: false,
                });
                ControlFlow::Continue(())
            });
            if part.ends_with('*')
                && words.len() > before
                && let Some(last) = words.last_mut()
            {
                last.prefix = true;
            }
        }
        (!words.is_empty()).then_some(Self(words))
    }

    /// As FTS5 wants it.
    pub(crate) fn expression(&self) -> String {
        let terms = self.0.iter().map(|word| {
            let star = if word.prefix { "*" } else { "" };
            // Words hold no quote.
            format!("\"{}\"{star}", String::from_utf8_lossy(&word.text))
        });
        terms.collect::<Vec<_>>().join(" AND ")
    }

    /// Whether a flow has them all.
    pub fn matches(&self, record: &Record) -> bool {
        let mut missing: Vec<&Word> = self.0.iter().collect();
        let _ = each_text(record, &mut |text| {
            each_word(text, &mut |word| {
                missing.retain(|wanted| {
                    if wanted.prefix {
                        !word.starts_with(&wanted.text)
                    } else {
                        word != wanted.text
                    }
                });
                if missing.is_empty() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
        });
        missing.is_empty()
    }
}

/// The different words of a block of flows.
///
/// Traffic repeats itself: a header line, a URL or a body that was there before isn't taken apart again.
#[derive(Debug, Default)]
pub(crate) struct WordSet {
    hasher: DefaultHashBuilder,
    texts: HashSet<u64>,
    words: HashSet<u64>,
    joined: Vec<u8>,
}

impl WordSet {
    pub fn clear(&mut self) {
        self.texts.clear();
        self.words.clear();
        self.joined.clear();
    }

    /// Adds the words of a flow.
    pub fn add(&mut self, record: &Record) {
        let _ = each_text(record, &mut |text| {
            if self.texts.insert(self.hasher.hash_one(text)) {
                let _ = each_word(text, &mut |word| {
                    // Two words of one hash among 2^64 would hide one of them: not in the life of a disk.
                    if self.words.insert(self.hasher.hash_one(word)) {
                        self.joined.extend_from_slice(word);
                        self.joined.push(b' ');
                    }
                    ControlFlow::Continue(())
                });
            }
            ControlFlow::Continue(())
        });
    }

    /// All words, as text for the index.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.joined).into_owned()
    }
}

fn each_word(text: &[u8], found: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> ControlFlow<()> {
    let mut lower = [0; WORD_BYTES];
    for run in text.split(|byte| !is_word_byte(*byte)) {
        if run.is_empty() {
            continue;
        }
        let length = run.len().min(WORD_BYTES);
        for (slot, byte) in lower.iter_mut().zip(run) {
            *slot = byte.to_ascii_lowercase();
        }
        found(lower.get(..length).unwrap_or_default())?;
    }
    ControlFlow::Continue(())
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80
}

/// Every text of a flow that is searched: what a person would look for.
fn each_text(record: &Record, found: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> ControlFlow<()> {
    match &record.content {
        Content::Http(http) => {
            found(&http.request.method)?;
            found(http.request.pretty_url().as_bytes())?;
            message(&http.request.message, found)?;
            if let Some(response) = &http.response {
                message(&response.message, found)?;
            }
            let messages = http.websocket.iter().flat_map(|socket| &socket.messages);
            for message in messages.filter(|message| message.is_text()).take(MESSAGES) {
                found(beginning(&message.content))?;
            }
        }
        Content::Tcp(messages) | Content::Udp(messages) => {
            if let Some(address) = &record.server.address {
                found(address.host.as_bytes())?;
            }
            for message in messages.iter().take(MESSAGES) {
                let text = beginning(&message.content);
                if looks_like_text(text) {
                    found(text)?;
                }
            }
        }
        Content::Dns(dns) => {
            for question in &dns.request.questions {
                found(question.name.as_bytes())?;
            }
        }
    }
    if let Some(error) = &record.error {
        found(error.message.as_bytes())?;
    }
    found(record.comment.as_bytes())
}

fn message(
    message: &HttpMessage,
    found: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> ControlFlow<()> {
    fields(&message.headers, found)?;
    if let Some(trailers) = &message.trailers {
        fields(trailers, found)?;
    }
    let Some(data) = message.body.data.as_deref().filter(|data| !data.is_empty()) else {
        return ControlFlow::Continue(());
    };
    if message
        .headers
        .get("content-type")
        .is_some_and(|media| !is_text_type(media))
    {
        return ControlFlow::Continue(());
    }
    let codings = || message.headers.get_all("content-encoding");
    if codings().next().is_none() {
        let text = beginning(data);
        return if looks_like_text(text) {
            found(text)
        } else {
            ControlFlow::Continue(())
        };
    }
    let text = decoded_beginning(data, codings());
    if looks_like_text(beginning(&text)) {
        found(beginning(&text))?;
    }
    ControlFlow::Continue(())
}

fn fields(
    fields: &HeaderFields,
    found: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for (name, value) in fields.iter() {
        found(name)?;
        found(value)?;
    }
    ControlFlow::Continue(())
}

/// As much of a coded body as is searched; nothing of one that is not what its header says.
fn decoded_beginning<'a>(data: &[u8], codings: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let limit = OutputLimit {
        total: 1 << 20,
        per_feed: 1 << 20,
    };
    let mut out = Vec::new();
    let Ok(Some(mut decoder)) = Decoder::new(codings, limit) else {
        return out;
    };
    for piece in data.chunks(4096) {
        if decoder.feed(piece, &mut out).is_err() || out.len() >= BODY_BYTES {
            return out;
        }
    }
    // A body that was cut gives what came out of it.
    let _ = decoder.finish(&mut out);
    out
}

fn beginning(data: &[u8]) -> &[u8] {
    data.get(..BODY_BYTES).unwrap_or(data)
}

fn looks_like_text(data: &[u8]) -> bool {
    let head = data.get(..512).unwrap_or(data);
    !head.contains(&0)
}

fn is_text_type(media: &[u8]) -> bool {
    const PARTS: [&[u8]; 8] = [
        b"text",
        b"json",
        b"xml",
        b"javascript",
        b"urlencoded",
        b"multipart",
        b"graphql",
        b"yaml",
    ];
    let media = media.split(|byte| *byte == b';').next().unwrap_or(media);
    let media = media.to_ascii_lowercase();
    PARTS
        .iter()
        .any(|part| media.windows(part.len()).any(|window| window == *part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_flow::record::{Body, HttpExchange, HttpRequest, HttpResponse};

    fn record() -> Record {
        let mut request = HttpRequest::new(
            "POST",
            "https",
            "api.example.com",
            443,
            "/v1/Users?q=K%C3%B6ln",
        );
        request
            .message
            .headers
            .push("Authorization", "Bearer abc-123");
        let mut response = HttpResponse::new(200, "OK");
        response
            .message
            .headers
            .push("Content-Type", "application/json");
        response.message.body = Body::whole("{\"city\":\"Köln\",\"n\":7}");
        let mut exchange = HttpExchange::new(request);
        exchange.response = Some(response);
        Record::http("x", exchange)
    }

    #[test]
    fn words_are_found_whole_or_by_their_beginning() {
        let record = record();
        let found = |text: &str| Words::new(text).unwrap().matches(&record);
        for text in [
            "users",
            "USERS",
            "api.example.com",
            "bearer abc-123",
            "Köln city",
            "auth*",
            "exam*",
            "7",
        ] {
            assert!(found(text), "{text}");
        }
        for text in ["user", "berlin", "users berlin", "xample*"] {
            assert!(!found(text), "{text}");
        }
        assert_eq!(Words::new(" -- * "), None);
    }

    #[test]
    fn what_is_no_text_is_not_searched() {
        let mut record = record();
        let http = record.as_http_mut().unwrap();
        let message = &mut http.response.as_mut().unwrap().message;
        message.headers.set("Content-Type", "image/png");
        assert!(!Words::new("city").unwrap().matches(&record));
        let http = record.as_http_mut().unwrap();
        let message = &mut http.response.as_mut().unwrap().message;
        message.headers.remove("Content-Type");
        message.body = Body::whole(&b"city\0\0"[..]);
        assert!(!Words::new("city").unwrap().matches(&record));
    }

    #[test]
    fn a_set_has_each_word_once() {
        let mut set = WordSet::default();
        set.add(&record());
        let once = set.text();
        set.add(&record());
        assert_eq!(set.text(), once);
        let mut words: Vec<&str> = once.split(' ').collect();
        let all = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), all);
        assert!(words.contains(&"authorization"));
    }
}
