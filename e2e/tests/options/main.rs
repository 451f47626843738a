//! mitmproxy's options that change traffic: the same option and the same traffic through real mitmdump and through
//! Tollgate, over HTTP/1.1, the same within TLS, and HTTP/2, and the same at the client and at the origin.
//!
//! Left out of the comparison: framing (a changed body is chunked here, and has a length there) and `Connection`, which
//! belong to the hop; the case of field names; `Server`, where it names mitmproxy; the content coding of a changed
//! body, which goes on uncoded here (bodies are compared decoded); and the order of header fields.
//!
//! [`coverage`] says for every option of mitmdump which test that is, or why there is none.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests, which fail by panicking"
)]

mod changes;
mod coverage;
mod files;
mod pair;
mod replay;
mod traffic;
mod ways;

use std::fs;
use std::path::Path;

use tempfile::TempDir;

/// Files that options name.
fn site() -> TempDir {
    let dir = TempDir::new().unwrap();
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("one.txt", "the one file");
    write("site/index.html", "<h1>home</h1>");
    write("site/a b.js", "spaces()");
    write("site/sub/index.html", "<h1>sub</h1>");
    write("site/data.json", "{}");
    write("value", "from a file");
    write("secret", "not in the site");
    dir
}

fn at(dir: &TempDir, path: &str) -> String {
    Path::new(dir.path()).join(path).display().to_string()
}
