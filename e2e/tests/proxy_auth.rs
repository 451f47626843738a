//! Who may use the proxy, asked by curl in each of its ways; and who we are to a proxy on the way.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, which fail by panicking"
)]

use std::fs;
use std::io::Write as _;

use tollgate_e2e::{
    Finished, ForwardProxy, LIMIT, Origin, Process, RawOrigin, Tollgate, command, raw, require,
};

/// curl's exit code when a SOCKS proxy refuses.
const CURL_PROXY: i32 = 97;

/// Runs curl with Tollgate's authority; what was answered ends with the status, and that of a CONNECT.
fn curl(proxy: &Tollgate, arguments: &[&str]) -> Finished {
    let mut curl = command("curl");
    curl.args(["--disable", "--silent", "--show-error", "--cacert"])
        .arg(proxy.cert())
        .args(["--write-out", " %{http_code} %{http_connect}"])
        .args(arguments);
    Process::run(curl, LIMIT)
}

#[test]
fn an_http_proxy_asks_for_a_password_and_keeps_it_to_itself() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();
    let arguments = ["--proxyauth", "anna:se:cret", "--json"];
    let proxy = Tollgate::trusting(&origin.ca(), &arguments);
    let at = proxy.url();
    let (plain, secure) = (origin.http("/protocol"), origin.https("/protocol"));

    for user in [
        &[][..],
        &["--proxy-user", "anna:wrong"],
        &["--proxy-user", "eve:se:cret"],
    ] {
        let refused = curl(&proxy, &[&["--proxy", &at, &plain], user].concat()).success();
        assert!(refused.text().ends_with(" 407 000"), "{}", refused.text());
        let refused = curl(&proxy, &[&["--proxy", &at, &secure], user].concat());
        assert_eq!(refused.text(), " 000 407", "{}", refused.stderr);
    }
    for (url, status) in [(&plain, "HTTP/1.1 200 000"), (&secure, "HTTP/2.0 200 200")] {
        let user = ["--proxy", &at, "--proxy-user", "anna:se:cret"];
        let answer = curl(&proxy, &[&user[..], &[url]].concat()).success();
        assert_eq!(answer.text(), status);
    }
    assert_eq!(proxy.wait_json("/protocol")["status"], 407);

    let seen = RawOrigin::start_plain(|stream| {
        let head = raw::read_head(stream);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        String::from_utf8(head).unwrap().to_ascii_lowercase()
    });
    let url = format!("http://{}/", seen.authority());
    let user = ["--proxy", &at, "--proxy-user", "anna:se:cret", &url];
    curl(&proxy, &user).success();
    let head = seen.finish();
    assert!(!head.contains("authorization"), "{head}");
}

#[test]
fn a_socks_proxy_asks_for_a_password() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();
    let modes = ["socks5@127.0.0.1:0"];
    let arguments = ["--proxyauth", "anna:secret", "--json"];
    let proxy = Tollgate::with_modes(&origin.ca(), &modes, &arguments);
    let at = format!("socks5h://{}", proxy.at("socks5"));
    let url = origin.https("/protocol");
    for user in [&[][..], &["--proxy-user", "anna:wrong"]] {
        let refused = curl(&proxy, &[&["--proxy", &at, &url], user].concat());
        assert_eq!(
            refused.status.code(),
            Some(CURL_PROXY),
            "{}",
            refused.stderr
        );
    }
    let user = ["--proxy", &at, "--proxy-user", "anna:secret", &url];
    let answer = curl(&proxy, &user).success().text();
    assert_eq!(answer, "HTTP/2.0 200 000");
    assert_eq!(proxy.wait_json("/protocol")["user"], "anna");
}

#[test]
fn a_reverse_proxy_asks_like_a_server() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();
    let modes = [format!("reverse:{}@127.0.0.1:0", origin.https(""))];
    let arguments = ["--proxyauth", "anna:secret"];
    let proxy = Tollgate::with_modes(&origin.ca(), &modes, &arguments);
    let (_, port) = proxy.at("reverse").rsplit_once(':').expect("a port");
    let url = format!("https://localhost:{port}/protocol");
    let refused = curl(&proxy, &[&url]).success().text();
    assert!(refused.ends_with(" 401 000"), "{refused}");
    let answer = curl(&proxy, &["--user", "anna:secret", &url]).success();
    assert_eq!(answer.text(), "HTTP/2.0 200 000");
}

#[test]
fn passwords_stand_in_a_file_as_htpasswd_writes_it() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();
    let file = origin.scratch().join("users");
    // What `htpasswd -B` and `htpasswd -s` make of them.
    fs::write(
        &file,
        "# who may\n\
         anna:$2b$05$THPyNqgSq77Tl5YfzAMpWObVrYW7W.A6uQn0gEGBPRrMP7p9LEGnq\n\
         bert:{SHA}lS0vrzehCXIgQ2tOXSb4AWtTIEY=\n",
    )
    .unwrap();
    let auth = format!("@{}", file.display());
    let proxy = Tollgate::trusting(&origin.ca(), &["--proxyauth", &auth]);
    let (at, url) = (proxy.url(), origin.https("/protocol"));
    for (user, status) in [
        ("anna:pass:word", "HTTP/2.0 200 200"),
        ("bert:sha secret", "HTTP/2.0 200 200"),
        ("anna:sha secret", " 000 407"),
        ("carl:pass:word", " 000 407"),
        ("anna:", " 000 407"),
    ] {
        let answer = curl(&proxy, &["--proxy", &at, "--proxy-user", user, &url]);
        assert_eq!(answer.text(), status, "{user}: {}", answer.stderr);
    }
}

#[test]
fn proxies_on_the_way_are_told_who_we_are() {
    require!("curl", "nginx", "openssl", "tinyproxy", "microsocks");
    let origin = Origin::start();
    let http = ForwardProxy::tinyproxy("BasicAuth anna secret\n");
    let socks = ForwardProxy::microsocks(&["-u", "anna", "-P", "secret"]);
    for mode in [
        format!("upstream:http://{}@127.0.0.1:0", http.address()),
        format!("upstream:socks5://{}@127.0.0.1:0", socks.address()),
    ] {
        for (auth, works) in [
            (&["--upstream-auth", "anna:secret"][..], true),
            (&["--upstream-auth", "anna:wrong"], false),
            (&[], false),
        ] {
            let proxy = Tollgate::with_modes(&origin.ca(), &[&mode], auth);
            let at = format!("http://{}", proxy.at("upstream"));
            for (url, version) in [
                (origin.http("/protocol"), "HTTP/1.1 200 000"),
                (origin.https("/protocol"), "HTTP/2.0 200 200"),
            ] {
                let answer = curl(&proxy, &["--proxy", &at, &url]);
                let text = answer.text();
                assert_eq!(text == version, works, "{mode} {auth:?} {url}: {text}");
            }
        }
    }
}
