//! Answering from files.

use std::path::{Component, Path, PathBuf};

use regex::bytes::Regex;
use tollgate_flow::filter::Filter;
use tollgate_flow::{Flow, Reply};

/// The largest file that is served.
pub(crate) const MAX_FILE: u64 = 64 << 20;

/// A part of a URL space that files answer for: mitmproxy's `map_local`.
#[derive(Clone, Debug)]
pub(crate) struct MapLocal {
    pub when: Option<Filter>,
    pub url: Regex,
    pub path: PathBuf,
}

/// Where the answer to a request may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Candidates {
    /// For each rule that applies, the files to look for, in order.
    pub files: Vec<PathBuf>,
}

impl MapLocal {
    /// The files that may answer a request; `None` where the rule doesn't apply to it.
    pub fn candidates(&self, flow: &Flow, url: &[u8]) -> Option<Vec<PathBuf>> {
        if !self.when.as_ref().is_none_or(|filter| filter.matches(flow)) {
            return None;
        }
        let found = self.url.captures(url)?;
        if !self.path.is_dir() {
            return Some(vec![self.path.clone()]);
        }
        let suffix = if found.len() > 1 {
            found.get(1).map(|m| m.as_bytes()).unwrap_or_default()
        } else {
            let end = found.get(0).map_or(0, |m| m.end());
            let rest = url.get(end..).unwrap_or_default();
            let rest = rest.split(|b| *b == b'?').next().unwrap_or_default();
            trim_slashes(rest)
        };
        if suffix.is_empty() {
            return Some(vec![self.path.join("index.html")]);
        }
        let decoded = percent_decoded(suffix);
        let escaped: String = decoded
            .chars()
            .map(|c| match c {
                '-' | '_' | '.' | '=' | '(' | ')' | ',' | '/' => c,
                c if c.is_ascii_alphanumeric() => c,
                _ => '_',
            })
            .collect();
        let mut names = vec![decoded.clone(), format!("{decoded}/index.html")];
        if escaped != decoded {
            names.push(escaped.clone());
            names.push(format!("{escaped}/index.html"));
        }
        let joined: Option<Vec<PathBuf>> = names
            .iter()
            .map(|name| safe_join(&self.path, name))
            .collect();
        Some(joined.unwrap_or_default())
    }
}

/// Reads the first of the files that exists, and makes an answer of it; 404 if there is none. Blocks.
pub(crate) fn answer(candidates: &Candidates) -> Option<Reply> {
    if candidates.files.is_empty() {
        return None;
    }
    let Some(file) = candidates.files.iter().find(|file| file.is_file()) else {
        return Some(Reply::new(404));
    };
    Some(serve(file))
}

fn serve(file: &Path) -> Reply {
    let failed = |why: String| {
        Reply::new(500).text(format!("Tollgate can't serve {}: {why}\n", file.display()))
    };
    let size = match std::fs::metadata(file) {
        Ok(metadata) => metadata.len(),
        Err(error) => return failed(error.to_string()),
    };
    if size > MAX_FILE {
        return failed(format!("it is larger than {} MiB", MAX_FILE >> 20));
    }
    let body = match std::fs::read(file) {
        Ok(body) => body,
        Err(error) => return failed(error.to_string()),
    };
    let reply = Reply::new(200).body(body);
    match mime_guess::from_path(file).first_raw() {
        Some(kind) => match reply.clone().header("Content-Type", kind) {
            Ok(typed) => typed,
            Err(_) => reply,
        },
        None => reply,
    }
}

/// A path below a folder; `None` for one that leads out of it.
fn safe_join(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut path = folder.to_path_buf();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!name.contains(['\0', '\\'])).then_some(path)
}

fn trim_slashes(mut path: &[u8]) -> &[u8] {
    while let Some(rest) = path.strip_prefix(b"/") {
        path = rest;
    }
    while let Some(rest) = path.strip_suffix(b"/") {
        path = rest;
    }
    path
}

fn percent_decoded(text: &[u8]) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%'
            && let Some((digits, after)) = after.split_at_checked(2)
            && digits.iter().all(u8::is_ascii_hexdigit)
            && let Ok(digits) = std::str::from_utf8(digits)
            && let Ok(code) = u8::from_str_radix(digits, 16)
        {
            out.push(code);
            rest = after;
            continue;
        }
        out.push(byte);
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::flow;

    fn rule(url: &str, path: &Path) -> MapLocal {
        MapLocal {
            when: None,
            url: Regex::new(url).unwrap(),
            path: path.to_owned(),
        }
    }

    fn names(rule: &MapLocal, url: &str) -> Option<Vec<String>> {
        let folder = rule.path.clone();
        let files = rule.candidates(&flow("GET", url), url.as_bytes())?;
        let name = |file: &PathBuf| file.strip_prefix(&folder).unwrap().display().to_string();
        Some(files.iter().map(name).collect())
    }

    #[test]
    fn files_are_looked_for_where_mitmproxy_does() {
        let dir = tempfile::tempdir().unwrap();
        let rule = rule("//example.com/static", dir.path());
        let at = |path: &str| names(&rule, &format!("https://example.com{path}"));
        assert_eq!(at("/other"), None);
        assert_eq!(at("/static").unwrap(), ["index.html"]);
        assert_eq!(at("/static/").unwrap(), ["index.html"]);
        assert_eq!(
            at("/static/a/b.js?x=y").unwrap(),
            ["a/b.js", "a/b.js/index.html"]
        );
        assert_eq!(
            at("/static/a%20b!.js").unwrap(),
            [
                "a b!.js",
                "a b!.js/index.html",
                "a_b_.js",
                "a_b_.js/index.html"
            ]
        );
        for path in [
            "/static/../secret",
            "/static/%2e%2e/secret",
            "/static/a%00b",
            "/static/..%5cx",
        ] {
            assert_eq!(at(path).unwrap(), Vec::<String>::new(), "{path}");
        }
    }

    #[test]
    fn a_group_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let rule = rule(r"/v\d/(.*)\.json", dir.path());
        assert_eq!(
            names(&rule, "http://h/v1/a/b.json").unwrap(),
            ["a/b", "a/b/index.html"]
        );
    }

    #[test]
    fn the_first_file_that_exists_is_served() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("x")).unwrap();
        std::fs::write(dir.path().join("x/index.html"), "hello").unwrap();
        let files = vec![dir.path().join("x"), dir.path().join("x/index.html")];
        let reply = answer(&Candidates { files }).unwrap();
        assert_eq!((reply.status, &reply.body[..]), (200, &b"hello"[..]));
        assert_eq!(reply.headers.get("content-type"), Some(&b"text/html"[..]));
        let missing = Candidates {
            files: vec![dir.path().join("none")],
        };
        assert_eq!(answer(&missing).unwrap().status, 404);
        assert!(answer(&Candidates::default()).is_none());
    }
}
