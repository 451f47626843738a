//! Patterns of a policy: globs, and regular expressions where a glob won't do.

use regex_automata::meta;
use tollgate_flow::filter::python_regex;

/// What a glob is matched against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// A word: `*` is any run of characters.
    Text,
    /// A word whose case doesn't matter.
    Caseless,
    /// A path: `*` stays within a segment, `**` doesn't.
    Path,
}

/// One of several globs has to match the whole text.
#[derive(Clone, Debug)]
pub(super) struct Globs {
    sources: Vec<String>,
    regex: meta::Regex,
}

impl Globs {
    pub fn new(sources: &[String], over: Over) -> Result<Self, String> {
        if sources.is_empty() || sources.iter().any(String::is_empty) {
            return Err("there is no pattern in it".to_owned());
        }
        let any: Vec<String> = sources.iter().map(|glob| translate(glob, over)).collect();
        let flags = match over {
            Over::Caseless => "(?si)",
            Over::Text | Over::Path => "(?s)",
        };
        let pattern = format!("{flags}\\A(?:{})\\z", any.join("|"));
        let regex = meta::Regex::new(&pattern).map_err(|_| "the patterns are too long".to_owned());
        Ok(Self {
            sources: sources.to_vec(),
            regex: regex?,
        })
    }

    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// Those that are plain words.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        let plain = |glob: &&String| !glob.contains(['*', '?']);
        self.sources.iter().filter(plain).map(String::as_str)
    }
}

fn translate(glob: &str, over: Over) -> String {
    let mut out = String::with_capacity(glob.len() + 8);
    let mut rest = glob;
    while let Some(c) = rest.chars().next() {
        let path = over == Over::Path;
        let (taken, piece) = match c {
            // A folder's `/**` is the folder, too, and `**/` may be nothing.
            '/' if path && rest == "/**" => (3, "(?:/.*)?"),
            '*' if path && rest.starts_with("**/") => (3, "(?:.*/)?"),
            '*' if path && rest.starts_with("**") => (2, ".*"),
            '*' if path => (1, "[^/]*"),
            '?' if path => (1, "[^/]"),
            '*' => (1, ".*"),
            '?' => (1, "."),
            _ => {
                regex_syntax::escape_into(rest.get(..c.len_utf8()).unwrap_or_default(), &mut out);
                (c.len_utf8(), "")
            }
        };
        out.push_str(piece);
        rest = rest.get(taken..).unwrap_or_default();
    }
    out
}

/// What a value has to look like.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    Globs(Globs),
    Regex(regex::bytes::Regex),
}

impl Pattern {
    pub fn regex(pattern: &str) -> Result<Self, String> {
        python_regex(pattern, false, true)
            .map(Self::Regex)
            .map_err(|error| {
                format!(
                    "the pattern is no regular expression: {}",
                    error.pointed_at(pattern)
                )
            })
    }

    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Globs(globs) => globs.matches(text),
            Self::Regex(regex) => regex.is_match(text.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_texts() {
        let cases = [
            (Over::Text, "aws-*", "aws-access-key-id", true),
            (Over::Text, "aws-*", "my-aws-key", false),
            (Over::Text, "*.example", "a.b.example", true),
            (Over::Text, "*.example", "example", false),
            (Over::Text, "a.c", "abc", false),
            (Over::Text, "git push*", "git push\n--force", true),
            (Over::Caseless, "Bash", "bash", true),
            (Over::Text, "Bash", "bash", false),
            (Over::Path, "/etc/*", "/etc/passwd", true),
            (Over::Path, "/etc/*", "/etc/ssl/key", false),
            (Over::Path, "/etc/**", "/etc/ssl/key", true),
            (Over::Path, "/etc/**", "/etc", true),
            (Over::Path, "/etc/**", "/etcetera", false),
            (Over::Path, "**/.ssh/**", "~/.ssh/id", true),
            (Over::Path, "**/id_rsa", "id_rsa", true),
            (Over::Path, "src/?.rs", "src/a.rs", true),
        ];
        for (over, glob, text, expected) in cases {
            let globs = Globs::new(&[glob.to_owned()], over).unwrap();
            assert_eq!(globs.matches(text), expected, "{glob} {text}");
        }
        let two = Globs::new(&["a*".to_owned(), "b".to_owned()], Over::Text).unwrap();
        assert!(two.matches("abc") && two.matches("b") && !two.matches("bc"));
        assert_eq!(two.literals().collect::<Vec<_>>(), ["b"]);
        assert!(Globs::new(&[], Over::Text).is_err());
    }
}
