//! What changes requests and answers as they pass.

use tollgate_e2e::require;

use crate::pair::{Pair, compare, compare_over, sets};
use crate::traffic::{Came, Origin, Transport, get, post};
use crate::{at, site};

#[test]
fn block_list_answers_and_cuts() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let options = [
        "block_list=/~u blocked/403",
        "block_list=:~u cut:444",
        "block_list=/~u twice/404",
        "block_list=/~u twice/410",
        "block_list=|~m post & ~b forbidden|503",
    ];
    compare(
        &origin,
        &options.map(str::to_owned),
        &[
            get("/fine"),
            get("/blocked"),
            get("/blocked").method("HEAD"),
            get("/cut"),
            get("/twice"),
            post("/post", "allowed"),
            post("/post", "a forbidden word"),
            post("/post", "a forbidden word in chunks").chunked(),
        ],
    );
}

#[test]
fn map_remote_sends_elsewhere() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let other = Origin::start();
    let moved = |transport| {
        let from = origin.authority(transport);
        format!(
            "map_remote=|{from}/moved|{}/there",
            other.authority(transport)
        )
    };
    let mut options = vec![
        "map_remote=|/old/|/new/".to_owned(),
        r"map_remote=@~m get@/item/(\d+)@/thing?id=\1".to_owned(),
        r"map_remote=|/named/(?P<what>\w+)|/\g<what>/named".to_owned(),
        moved(Transport::Plain),
        moved(Transport::Tls),
        format!(
            "map_remote=|https://{}/plain|{}",
            origin.authority(Transport::Tls),
            other.url(Transport::Plain, "/open")
        ),
    ];
    // The other origin has a certificate that nobody vouches for.
    options.push("ssl_insecure".to_owned());
    let requests = [
        get("/old/a?b=c"),
        get("/item/42"),
        post("/item/42", "x"),
        get("/named/thing"),
        get("/untouched"),
        get("/moved"),
        get("/plain"),
    ];
    let pair = Pair::start(&origin, &sets(&options));
    for transport in Transport::ALL {
        compare_over(&pair, &[transport], &origin, &requests, Clone::clone);
        // Both have sent the last ones there, under its name. Before it goes down to HTTP/1.1, Tollgate asks whether
        // the other one speaks HTTP/2 without TLS.
        let mut seen = other.take();
        seen.retain(|lines| lines[0] != "PRI * HTTP/2.0" && lines[0] != "SM");
        let (theirs, ours) = seen.split_at(seen.len() / 2);
        assert_eq!(ours, theirs, "{transport:?}");
        let expected = if transport == Transport::Plain { 1 } else { 2 };
        assert_eq!(theirs.len(), expected, "{transport:?}: {seen:?}");
        assert!(theirs[0].iter().any(|line| line.contains("/there")));
    }
}

#[test]
fn map_local_answers_from_files() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let dir = site();
    let options = [
        format!("map_local=|/one$|{}", at(&dir, "one.txt")),
        format!("map_local=|~m get|/site|{}", at(&dir, "site")),
        format!(r"map_local=|/v\d/(.*)\?|{}", at(&dir, "site")),
    ];
    compare(
        &origin,
        &options,
        &[
            get("/one"),
            get("/site"),
            get("/site/"),
            get("/site/sub"),
            get("/site/data.json?x=y"),
            get("/site/a%20b.js"),
            get("/site/missing"),
            get("/site/../secret"),
            get("/site/%2e%2e/secret"),
            get("/v1/data.json?x"),
            post("/site/data.json", "x"),
            get("/elsewhere"),
        ],
    );
}

#[test]
fn modify_headers_both_ways() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let dir = site();
    let options = [
        "modify_headers=/~q/User-Agent/changed".to_owned(),
        "modify_headers=/~s/X-One/".to_owned(),
        "modify_headers=/~s/X-Two/new".to_owned(),
        "modify_headers=/~q & ~u twice/X-Both/first".to_owned(),
        "modify_headers=/~q & ~u twice/X-Both/second".to_owned(),
        r"modify_headers=/~q/X-Escaped/a\x41b".to_owned(),
        format!("modify_headers=|~q|X-File|@{}", at(&dir, "value")),
        "modify_headers=/X-Everywhere/yes".to_owned(),
        "block_list=/~u blocked/403".to_owned(),
    ];
    compare(
        &origin,
        &options,
        &[
            get("/"),
            get("/twice").with("X-Both", "old").with("X-Both", "older"),
            get("/").with("X-Everywhere", "no"),
            get("/blocked"),
        ],
    );
}

#[test]
fn modify_body_both_ways() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let dir = site();
    let options = [
        "modify_body=/~s/secret/[gone]".to_owned(),
        r"modify_body=/~q/(\w+)@(\w+)/\2 at \1".to_owned(),
        "modify_body=|~q & ~u lines|a.b|dot".to_owned(),
        format!("modify_body=|~q & ~u file|PLACE|@{}", at(&dir, "value")),
        "modify_body=/~u empty & ~s/x*/-".to_owned(),
        format!("map_local=|/local$|{}", at(&dir, "one.txt")),
        "modify_body=/~u local & ~s/one/changed".to_owned(),
    ];
    compare(
        &origin,
        &options,
        &[
            get("/plain"),
            get("/gzip"),
            get("/gzip/unsized"),
            get("/plain").method("HEAD"),
            post("/", "me@home and you@work"),
            post("/", "me@home and you@work, again").chunked(),
            post("/lines", "a\nb acb"),
            post("/file", "PLACE and PLACE"),
            post("/", "nothing to change"),
            get("/empty"),
            get("/local"),
        ],
    );
}

#[test]
fn sticky_cookies_and_credentials() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    compare(
        &origin,
        &["stickycookie=.".to_owned(), "stickyauth=~u want".to_owned()],
        &[
            get("/"),
            get("/"),
            get("/deep/er"),
            get("/").with("Cookie", "own=1"),
            get("/want"),
            get("/").with("Authorization", "Basic eDp5"),
            get("/want"),
            get("/"),
        ],
    );
}

#[test]
fn bodies_have_a_largest_size() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let pair = Pair::start(&origin, &sets(&["body_size_limit=200"]));
    let long = "x".repeat(300);
    // Each has its own words for it; the status, and what the origin sees, are the same.
    let status = |came: &Came| {
        let status = came
            .0
            .as_ref()
            .map(|lines| lines[0].split(' ').nth(1).unwrap_or_default().to_owned());
        (status, came.1.clone())
    };
    compare_over(
        &pair,
        &Transport::ALL,
        &origin,
        &[
            get("/"),
            post("/", "x".repeat(200)),
            post("/", long.as_str()),
            get(&format!("/{long}")),
            get("/"),
        ],
        status,
    );
}

#[test]
fn anticache_and_anticomp() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    compare(
        &origin,
        &["anticache=toggle".to_owned(), "anticomp".to_owned()],
        &[
            get("/"),
            get("/")
                .with("If-None-Match", "\"x\"")
                .with("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT")
                .with("If-Match", "\"y\""),
            get("/").with("Accept-Encoding", "gzip, br"),
        ],
    );
}
