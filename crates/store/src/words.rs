//! Words of flows: what full-text search finds.
//!
//! A word is a run of ASCII letters and digits, and of anything beyond ASCII; case of ASCII letters does not matter.
//! That is what SQLite's tokenizer `ascii` makes of a text, so that what is taken apart here stays so there.

use std::hash::BuildHasher;
use std::ops::ControlFlow;

use bytes::Bytes;
use hashbrown::{DefaultHashBuilder, HashSet};
use tollgate_flow::record::{Content, HeaderFields, HttpMessage, Record};
use tollgate_wire::coding::{Decoder, OutputLimit};

use crate::entry::{self, Entry, Fields, Line};
use crate::link::WrittenLink;

/// How much of a body is searched, decoded.
pub const BODY_BYTES: usize = 16 * 1024;

/// How many messages of a flow are searched.
const MESSAGES: usize = 256;

/// The memory that is kept from one block to the next.
const KEPT_BYTES: usize = 1 << 20;

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
    /// Entries that were there before, and parts of them, by the numbers of their texts.
    entries: HashSet<[u32; 8]>,
    parts: HashSet<[u32; 4]>,
}

/// What parts there are.
const URL: u32 = 0;
const FIELDS: u32 = 1;
const BODY: u32 = 2;

impl WordSet {
    pub fn clear(&mut self) {
        self.texts.clear();
        self.words.clear();
        self.joined.clear();
        self.joined.shrink_to(KEPT_BYTES);
        self.entries.clear();
        self.parts.clear();
    }

    /// Adds the words of a flow.
    pub fn add(&mut self, record: &Record) {
        let _ = each_text(record, &mut |text| self.add_text(text));
    }

    /// Adds the words of a flow whose texts have these numbers. They are those of its record.
    pub fn add_entry(
        &mut self,
        entry: &Entry<&[u8], &[u8]>,
        numbers: &Entry<u32, u32>,
        link: &WrittenLink,
    ) {
        let request = &numbers.request;
        let none = u32::MAX;
        let key = match &numbers.response {
            Some(answer) => [
                answer.message.headers,
                answer.message.trailers.unwrap_or(none),
                answer.message.body.unwrap_or(none),
            ],
            None => [none; 3],
        };
        let [headers, trailers, body] = key;
        let all = [
            numbers.line,
            request.headers,
            request.trailers.unwrap_or(none),
            request.body.unwrap_or(none),
            headers,
            trailers,
            body,
            numbers.link,
        ];
        if let Some((error, _)) = entry.error {
            let _ = self.add_text(error);
        }
        if !self.entries.insert(all) {
            return;
        }
        // The same line and headers on another connection may mean another host.
        if self
            .parts
            .insert([URL, numbers.line, request.headers, numbers.link])
            && let Some(line) = Line::read(entry.line)
        {
            let _ = self.add_text(line.method);
            let mut request = line.request(link.scheme, &link.host, link.port);
            for host in Fields::new(entry.request.headers).all("host") {
                request.message.headers.push("host", host.to_vec());
            }
            request.message.version = Bytes::from_static(entry.request.version.as_str().as_bytes());
            let _ = self.add_text(request.pretty_url().as_bytes());
        }
        self.add_message(&entry.request, request);
        if let (Some(answer), Some(numbers)) = (&entry.response, &numbers.response) {
            self.add_message(&answer.message, &numbers.message);
        }
    }

    fn add_message(
        &mut self,
        message: &entry::Message<&[u8], &[u8]>,
        numbers: &entry::Message<u32, u32>,
    ) {
        let fields = [
            Some((message.headers, numbers.headers)),
            message.trailers.zip(numbers.trailers),
        ];
        for (text, number) in fields.into_iter().flatten() {
            if self.parts.insert([FIELDS, number, 0, 0]) {
                for (name, value) in Fields::new(text) {
                    let _ = self.add_text(name);
                    let _ = self.add_text(value);
                }
            }
        }
        if let (Some(data), Some(number)) = (message.body, numbers.body)
            && self.parts.insert([BODY, numbers.headers, number, 0])
        {
            let all = Fields::new(message.headers);
            let media = all.all("content-type").next();
            let codings = || all.all("content-encoding");
            let _ = body_text(data, media, &codings, &mut |text| self.add_text(text));
        }
    }

    fn add_text(&mut self, text: &[u8]) -> ControlFlow<()> {
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
    let Some(data) = message.body.data.as_deref() else {
        return ControlFlow::Continue(());
    };
    let media = message.headers.get("content-type");
    let codings = || message.headers.get_all("content-encoding");
    body_text(data, media, &codings, found)
}

/// The beginning of a body without its codings, if it is text.
fn body_text<'a, I: Iterator<Item = &'a [u8]>>(
    data: &[u8],
    media: Option<&[u8]>,
    codings: &dyn Fn() -> I,
    found: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> ControlFlow<()> {
    if data.is_empty() || media.is_some_and(|media| !is_text_type(media)) {
        return ControlFlow::Continue(());
    }
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
