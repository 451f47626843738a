//! A browser through Tollgate.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, which fail by panicking"
)]

use std::fs;
use std::path::Path;
use std::process::Command;

use tollgate_e2e::{LIMIT, Origin, Process, Tollgate, command, require};

/// The page and what it loads: the last one by `fetch`.
const PAGE: [(&str, &str, &str); 5] = [
    ("/index.html", "text/html", include_str!("page/index.html")),
    ("/style.css", "text/css", include_str!("page/style.css")),
    (
        "/picture.svg",
        "image/svg+xml",
        include_str!("page/picture.svg"),
    ),
    ("/app.js", "text/javascript", include_str!("page/app.js")),
    (
        "/data.json",
        "application/json",
        include_str!("page/data.json"),
    ),
];

#[test]
fn a_page_with_its_sub_resources_works() {
    require!("chromium", "certutil", "nginx", "openssl");
    let origin = page();
    let proxy = Tollgate::trusting(&origin.ca(), &["--json"]);
    let home = origin.scratch().join("home");
    trust(&home, proxy.cert());

    let page = Process::run(chromium(&home, &proxy, &origin), LIMIT)
        .success()
        .text();
    assert!(
        page.contains("fetched through the proxy; rgb(1, 2, 3); 31x17; h2"),
        "{page}"
    );
    for (path, media_type, content) in PAGE {
        let flow = proxy.wait_json(path);
        assert_eq!(flow["outcome"], "completed", "{flow}");
        assert_eq!(flow["status"], 200, "{flow}");
        assert_eq!(flow["version"], "HTTP/2.0", "{flow}");
        assert_eq!(flow["content_type"], media_type, "{flow}");
        assert_eq!(flow["response_bytes"], content.len(), "{flow}");
        assert_eq!(flow["tls"]["sni"], "localhost", "{flow}");
    }
}

#[test]
fn a_browser_that_does_not_trust_the_authority_shows_nothing() {
    require!("chromium", "certutil", "nginx", "openssl");
    let origin = page();
    let proxy = Tollgate::trusting(&origin.ca(), &[]);
    let home = origin.scratch().join("home");
    fs::create_dir(&home).unwrap();

    let page = Process::run(chromium(&home, &proxy, &origin), LIMIT).text();
    assert!(!page.contains("fetched through the proxy"), "{page}");
    proxy.wait_log("TLS handshake with the client failed (localhost)");
}

fn page() -> Origin {
    let origin = Origin::start();
    for (path, _, content) in PAGE {
        origin.write(path, content);
    }
    origin
}

/// Makes a certificate database for a user with this home, who trusts one authority.
fn trust(home: &Path, authority: &Path) {
    let database = home.join(".pki/nssdb");
    fs::create_dir_all(&database).unwrap();
    let database = format!("sql:{}", database.display());
    let certutil = || {
        let mut certutil = command("certutil");
        certutil.args(["-d", &database]);
        certutil
    };
    let mut create = certutil();
    create.args(["-N", "--empty-password"]);
    Process::run(create, LIMIT).success();
    let mut add = certutil();
    add.args(["-A", "-n", "Tollgate", "-t", "C,,", "-i"])
        .arg(authority);
    Process::run(add, LIMIT).success();
}

/// Loads the page through the proxy, waits for its scripts, and prints its DOM.
fn chromium(home: &Path, proxy: &Tollgate, origin: &Origin) -> Command {
    let mut chromium = command("chromium");
    chromium
        .env("HOME", home)
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_DATA_HOME")
        .env_remove("XDG_CACHE_HOME")
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
        ])
        .args(["--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync"])
        // Its shared memory may not fit where /dev/shm is small.
        .arg("--disable-dev-shm-usage")
        .arg(format!(
            "--user-data-dir={}",
            home.join("profile").display()
        ))
        .arg(format!("--proxy-server={}", proxy.url()))
        // By default, it goes past a proxy for this machine's own names.
        .arg("--proxy-bypass-list=<-loopback>")
        // A clock of its own that stands still while something is loading.
        .args(["--virtual-time-budget=20000", "--dump-dom"])
        .arg(origin.https("/index.html"));
    chromium
}
