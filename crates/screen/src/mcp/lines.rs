//! Lines of a stream, and what one says that is too long or too odd to be read.

/// Ids that are longer are not read.
const MAX_TOKEN: usize = 256;

/// Cuts a stream into lines, of which it keeps no more than a limit.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The beginning of a line.
    held: Vec<u8>,
    over: Over,
}

/// What becomes of a line that is over the limit.
#[derive(Debug, Default)]
enum Over {
    /// The line isn't.
    #[default]
    Not,
    /// It passes.
    Passing,
    /// It doesn't.
    Skipping(Box<Outline>),
}

/// A piece of a stream.
#[derive(Debug)]
pub(super) enum Item<'b> {
    /// A line with its line break.
    Line(Vec<u8>),
    /// A line goes over the limit, and passes: this is what there is of it.
    TooLong { begun: Vec<u8> },
    /// More of it.
    More(&'b [u8]),
    /// Its end.
    Passed(&'b [u8]),
    /// A line over the limit has ended, and didn't pass.
    Skipped(Box<Outline>),
}

impl Lines {
    /// The next piece; `None` when all of `input` was taken. `open`: lines over the limit pass.
    pub fn next<'b>(&mut self, input: &mut &'b [u8], limit: usize, open: bool) -> Option<Item<'b>> {
        if input.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', input).map(|at| at + 1);
        let (now, rest) = input.split_at_checked(end.unwrap_or(input.len()))?;
        *input = rest;
        match &mut self.over {
            Over::Not => {
                self.held.extend_from_slice(now);
                let length = self.held.len() - usize::from(end.is_some());
                if length <= limit {
                    return match end {
                        Some(_) => Some(Item::Line(std::mem::take(&mut self.held))),
                        None => None,
                    };
                }
                let begun = std::mem::take(&mut self.held);
                if open {
                    if end.is_none() {
                        self.over = Over::Passing;
                    }
                    return Some(Item::TooLong { begun });
                }
                let mut outline = Box::new(Outline::default());
                outline.feed(&begun);
                if end.is_some() {
                    return Some(Item::Skipped(outline));
                }
                self.over = Over::Skipping(outline);
                // All of the input was taken.
                None
            }
            Over::Passing if end.is_some() => {
                self.over = Over::Not;
                Some(Item::Passed(now))
            }
            Over::Passing => Some(Item::More(now)),
            Over::Skipping(outline) => {
                outline.feed(now);
                end?;
                match std::mem::take(&mut self.over) {
                    Over::Skipping(outline) => Some(Item::Skipped(outline)),
                    Over::Not | Over::Passing => None,
                }
            }
        }
    }

    /// The stream has ended: the last line has no line break. `TooLong` for one that was over the limit.
    pub fn end(&mut self) -> Option<Item<'static>> {
        let begun = std::mem::take(&mut self.held);
        match std::mem::take(&mut self.over) {
            Over::Not if begun.is_empty() => None,
            Over::Not => Some(Item::Line(begun)),
            Over::Passing | Over::Skipping(_) => Some(Item::TooLong { begun }),
        }
    }

    /// Whether the beginning of a line has passed, and not yet its end.
    pub fn is_passing(&self) -> bool {
        matches!(self.over, Over::Passing)
    }
}

/// The id and the kind of a message, read without keeping it: so that somebody can be told that it was refused.
#[derive(Debug, Default)]
pub(super) struct Outline {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The outermost value is an array.
    batch: bool,
    /// A string or a scalar of the outermost object, as it stands there.
    token: Vec<u8>,
    key: Vec<u8>,
    /// Behind the colon.
    in_value: bool,
    id: Option<Vec<u8>>,
    ids: u32,
    method: Option<Vec<u8>>,
    /// There is a result, or an error.
    answers: bool,
}

impl Outline {
    /// The outline of a whole text.
    pub fn of(text: &[u8]) -> Self {
        let mut outline = Self::default();
        outline.feed(text);
        outline
    }

    /// Takes more of it.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.byte(byte);
        }
    }

    fn byte(&mut self, byte: u8) {
        if self.in_string {
            self.keep(byte);
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                self.keep(byte);
            }
            b'{' | b'[' => {
                self.batch |= self.depth == 0 && byte == b'[';
                self.depth += 1;
                if self.depth == 2 {
                    // No id is an object.
                    self.token.clear();
                }
            }
            b'}' | b']' => {
                if self.depth == 1 {
                    self.member();
                }
                self.depth = self.depth.saturating_sub(1);
            }
            b':' if self.depth == 1 => {
                self.key = std::mem::take(&mut self.token).trim_ascii().to_vec();
                self.answers |= matches!(self.key.as_slice(), b"\"result\"" | b"\"error\"");
                self.in_value = true;
            }
            b',' if self.depth == 1 => self.member(),
            // In the middle of a token it shows that it is none.
            b' ' | b'\t' | b'\r' | b'\n' if self.token.is_empty() => {}
            _ => self.keep(byte),
        }
    }

    fn keep(&mut self, byte: u8) {
        // One byte more than is read shows that there are too many.
        if self.depth == 1 && self.token.len() <= MAX_TOKEN {
            self.token.push(byte);
        }
    }

    /// A member of the outermost object has ended.
    fn member(&mut self) {
        let value = std::mem::take(&mut self.token).trim_ascii().to_vec();
        if !self.in_value {
            return;
        }
        self.in_value = false;
        match self.key.as_slice() {
            b"\"id\"" => {
                self.ids += 1;
                self.id = Some(value);
            }
            b"\"method\"" => self.method = Some(value),
            _ => {}
        }
    }

    /// The id, if it has one that is sure: one string or number, in a message that is no batch.
    pub fn id(&self) -> Option<&str> {
        let id = self
            .id
            .as_deref()
            .filter(|_| self.ids == 1 && !self.batch)?;
        if id.len() > MAX_TOKEN {
            return None;
        }
        let value: serde_json::Value = serde_json::from_slice(id).ok()?;
        if !value.is_string() && !value.is_number() {
            return None;
        }
        std::str::from_utf8(id).ok()
    }

    /// Whether it asks something.
    pub fn is_request(&self) -> bool {
        self.method.is_some()
    }

    /// Whether it answers something.
    pub fn is_answer(&self) -> bool {
        self.answers && !self.is_request()
    }

    /// Whether it calls a tool.
    pub fn is_tool_call(&self) -> bool {
        let method = self.method.as_deref().unwrap_or_default();
        serde_json::from_slice::<String>(method).is_ok_and(|method| method == "tools/call")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outline_finds_the_id_wherever_it_stands() {
        for (text, id) in [
            (
                r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"id":8,"x":[1,{"id":9}]}}"#,
                Some("7"),
            ),
            (
                r#"{"method":"tools/call","params":{"a":"\"id\":1,{["},"id" : "a\"}b" }"#,
                Some(r#""a\"}b""#),
            ),
            (r#"{"params":[[[[["#, None),
            (r#"{"id":{"a":1}}"#, None),
            (r#"{"id":null}"#, None),
            (r#"{"id":1,"id":2}"#, None),
            (r#"[{"id":1}]"#, None),
            (r#"{"id":1 2}"#, None),
            ("log: \"id\": 5", None),
        ] {
            let outline = Outline::of(text.as_bytes());
            assert_eq!(outline.id(), id, "{text}");
        }
        let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(300));
        assert_eq!(Outline::of(long.as_bytes()).id(), None);
        assert!(Outline::of(br#"{"method":"tools\/call"}"#).is_tool_call());
        let answer = Outline::of(br#"{"result":{"method":"tools/call"}}"#);
        assert!(answer.is_answer() && !answer.is_request());
        assert!(!Outline::of(br#"{"params":{"result":1}}"#).is_answer());
    }
}
