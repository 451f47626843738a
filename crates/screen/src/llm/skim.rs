//! Finds members of a JSON object without reading what is in them: strings are skipped from quote to quote.
//!
//! What isn't JSON ends the skimming; whoever wants to know what is wrong reads it with [`json`](super::json).

use std::ops::Range;

use memchr::memchr2;

/// The members of the object that a body is, in order: the name as it stands there, without quotes, and where the value
/// stands.
pub(crate) fn members(body: &[u8]) -> Members<'_> {
    let at = blanks(body, 0);
    let at = match body.get(at) {
        Some(b'{') => at + 1,
        _ => body.len(),
    };
    Members { body, at }
}

/// The string that a member of the object at the top is; the last one of that name, as in most readers.
pub(crate) fn text_of(body: &[u8], name: &str) -> Option<String> {
    let value = members(body)
        .filter(|(key, _)| is_named(key, name))
        .last()
        .and_then(|(_, value)| body.get(value))?;
    serde_json::from_slice(value).ok()
}

/// The object that a member of the object at the top is.
pub(crate) fn object_of<'a>(body: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let (_, value) = members(body)
        .filter(|(key, _)| is_named(key, name))
        .last()?;
    body.get(value).filter(|value| value.first() == Some(&b'{'))
}

fn is_named(key: &[u8], name: &str) -> bool {
    if !key.contains(&b'\\') {
        return key == name.as_bytes();
    }
    let quoted = [b"\"", key, b"\""].concat();
    serde_json::from_slice::<String>(&quoted).is_ok_and(|key| key == name)
}

/// The elements of a list from this offset on, where one begins or the list does, in order, and where they stand.
pub(crate) fn elements(body: &[u8], from: usize) -> impl Iterator<Item = Range<usize>> {
    let mut at = from;
    std::iter::from_fn(move || {
        let mut start = blanks(body, at);
        if body.get(start) == Some(&b',') {
            start = blanks(body, start + 1);
        }
        if body.get(start) == Some(&b']') {
            return None;
        }
        let end = value(body, start)?;
        at = end;
        Some(start..end)
    })
}

/// See [`members`].
pub(crate) struct Members<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Members<'a> {
    type Item = (&'a [u8], Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.step();
        if found.is_none() {
            self.at = self.body.len();
        }
        found
    }
}

impl<'a> Members<'a> {
    fn step(&mut self) -> Option<(&'a [u8], Range<usize>)> {
        let mut at = blanks(self.body, self.at);
        if self.body.get(at) == Some(&b',') {
            at = blanks(self.body, at + 1);
        }
        let end = string(self.body, at)?;
        let key = self.body.get(at + 1..end - 1)?;
        at = blanks(self.body, end);
        if self.body.get(at) != Some(&b':') {
            return None;
        }
        let start = blanks(self.body, at + 1);
        let end = value(self.body, start)?;
        self.at = end;
        Some((key, start..end))
    }
}

fn blanks(body: &[u8], from: usize) -> usize {
    let rest = body.get(from..).unwrap_or_default();
    let blank = |b: &u8| matches!(b, b' ' | b'\t' | b'\r' | b'\n');
    from + rest.iter().take_while(|b| blank(b)).count()
}

/// The end of the string that begins here.
fn string(body: &[u8], from: usize) -> Option<usize> {
    if body.get(from) != Some(&b'"') {
        return None;
    }
    let mut at = from + 1;
    loop {
        at += memchr2(b'"', b'\\', body.get(at..)?)?;
        match body.get(at)? {
            b'"' => return Some(at + 1),
            _ => at += 2,
        }
    }
}

/// The end of the value that begins here.
fn value(body: &[u8], from: usize) -> Option<usize> {
    match body.get(from)? {
        b'"' => string(body, from),
        b'{' | b'[' => {
            let mut depth = 0_usize;
            let mut at = from;
            loop {
                match body.get(at)? {
                    b'"' => {
                        at = string(body, at)?;
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => {
                        depth -= 1;
                        if depth == 0 {
                            return Some(at + 1);
                        }
                    }
                    _ => {}
                }
                at += 1;
            }
        }
        _ => {
            let rest = body.get(from..)?;
            let ends = |b: &u8| matches!(b, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n');
            let len = rest.iter().position(ends)?;
            (len > 0).then_some(from + len)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn members_are_found_where_they_stand() {
        let body = br#" {"a" : [1,{"model":"no"}], "b\"{":"}\\", "model" : "m\u00fc", "n":-1.5e3 ,"o":{}} "#;
        let all: Vec<(String, String)> = members(body)
            .map(|(key, at)| {
                let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
                (text(key), text(&body[at]))
            })
            .collect();
        let keys: Vec<&str> = all.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["a", "b\\\"{", "model", "n", "o"]);
        assert_eq!(all[3].1, "-1.5e3");
        assert_eq!(text_of(body, "model").as_deref(), Some("mü"));
        assert_eq!(object_of(body, "o"), Some(&b"{}"[..]));
        assert_eq!(object_of(body, "a"), None);
    }

    #[test]
    fn a_name_is_a_name_however_it_is_written_and_the_last_one_counts() {
        let body = br#"{"model":"cheap","m\u006fdel":"dear"}"#;
        assert_eq!(text_of(body, "model").as_deref(), Some("dear"));
    }

    #[test]
    fn elements_are_found_from_any_of_them_on() {
        let body = br#"{"messages": [ {"a":"]"} , 2,[[3]]],"x":[4]}"#;
        let all: Vec<&str> = elements(body, 14)
            .map(|at| std::str::from_utf8(&body[at]).unwrap())
            .collect();
        assert_eq!(all, [r#"{"a":"]"}"#, "2", "[[3]]"]);
        assert_eq!(elements(body, 27).count(), 2);
        assert_eq!(elements(b"[1,2", 1).count(), 1);
        assert_eq!(elements(b"", 7).count(), 0);
    }

    #[test]
    fn what_is_not_json_ends_it() {
        for body in [
            "",
            "[]",
            "{",
            "{\"a",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":[",
            "{\"a\":\"\\",
            "{a:1}",
            "{\"a\":}",
        ] {
            assert_eq!(members(body.as_bytes()).count(), 0, "{body}");
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_reader(names in prop::collection::vec(".{0,6}", 0..6), text in ".{0,40}") {
            let mut object = serde_json::Map::new();
            for name in &names {
                object.insert(name.clone(), serde_json::json!([{"x": text}, 1, null]));
            }
            object.insert("model".to_owned(), text.clone().into());
            let body = serde_json::Value::from(object.clone()).to_string();
            prop_assert_eq!(members(body.as_bytes()).count(), object.len());
            prop_assert_eq!(text_of(body.as_bytes(), "model"), Some(text));
        }

        #[test]
        fn any_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..200)) {
            for (_, at) in members(&body) {
                prop_assert!(at.end <= body.len());
            }
        }
    }
}
