//! How Tollgate ends.
#![cfg(unix)]

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tollgate_e2e::raw::{RawOrigin, read_head};
use tollgate_e2e::{LIMIT, Origin, Pki, Process, Tollgate, command, noise, require};

#[test]
fn sigterm_lets_a_download_finish() {
    require!("curl", "openssl");
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::create(dir.path());
    let content = noise(256 * 1024);
    let (first, second) = content.split_at(100_000);
    let (first, second) = (first.to_vec(), second.to_vec());
    let (go_on, wait) = mpsc::channel::<()>();
    let origin = RawOrigin::start(&pki, move |stream| {
        read_head(stream);
        let length = first.len() + second.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
        )
        .unwrap();
        stream.write_all(&first).unwrap();
        stream.flush().unwrap();
        wait.recv_timeout(LIMIT).unwrap();
        stream.write_all(&second).unwrap();
    });

    let mut proxy = Tollgate::trusting(&pki.ca(), &["--drain", "60"]);
    let mut curl = command("curl");
    curl.args(["--disable", "--silent", "--show-error", "--no-buffer"])
        .args(["--proxy", &proxy.url(), "--cacert"])
        .arg(proxy.cert())
        .arg(format!("https://{}/slow.bin", origin.authority()));
    let download = Process::start(curl);
    download.wait_stdout(LIMIT, "the first bytes", |text| {
        (!text.is_empty()).then_some(())
    });

    proxy.process().signal("TERM");
    // No new connections from here on, and the old one goes on.
    let deadline = Instant::now() + LIMIT;
    while TcpStream::connect(proxy.address()).is_ok() {
        assert!(Instant::now() < deadline, "still listens");
        assert!(!proxy.process_mut().has_ended(Duration::from_millis(10)));
    }
    go_on.send(()).unwrap();
    let downloaded = download.finish(LIMIT).success().stdout;
    assert!(downloaded == content, "the bytes differ");
    origin.finish();

    let finished = proxy.finish().success();
    let summary = finished.stderr.lines().last().unwrap_or_default();
    assert!(
        summary.contains("1 flow") && summary.contains("0 failed"),
        "{summary}"
    );
    assert!(finished.text().contains("/slow.bin"), "{}", finished.text());
}

#[test]
fn a_second_signal_does_not_wait() {
    require!("curl", "openssl");
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::create(dir.path());
    let (go_on, wait) = mpsc::channel::<()>();
    let origin = RawOrigin::start(&pki, move |stream| {
        read_head(stream);
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfirst").unwrap();
        stream.flush().unwrap();
        let _ = wait.recv_timeout(LIMIT);
    });
    // Longer than the test may take: only the second signal can end it.
    let mut proxy = Tollgate::trusting(&pki.ca(), &["--drain", "3600"]);
    let mut curl = command("curl");
    curl.args(["--disable", "--silent", "--show-error", "--no-buffer"])
        .args(["--proxy", &proxy.url(), "--cacert"])
        .arg(proxy.cert())
        .arg(format!("https://{}/stuck", origin.authority()));
    let download = Process::start(curl);
    download.wait_stdout(LIMIT, "the first bytes", |text| {
        (!text.is_empty()).then_some(())
    });

    proxy.process().signal("INT");
    let deadline = Instant::now() + LIMIT;
    while TcpStream::connect(proxy.address()).is_ok() {
        assert!(Instant::now() < deadline, "still listens");
        assert!(!proxy.process_mut().has_ended(Duration::from_millis(10)));
    }
    proxy.process().signal("INT");
    proxy.finish().success();
    // curl: "transfer closed with outstanding read data remaining".
    assert_eq!(download.finish(LIMIT).status.code(), Some(18));
    drop(go_on);
}

#[test]
fn without_traffic_it_ends_at_once() {
    require!("nginx", "openssl", "curl");
    let origin = Origin::start();
    let proxy = Tollgate::trusting(&origin.ca(), &["--drain", "3600"]);
    // A connection that is kept alive, and idle, must not keep it either.
    let mut curl = command("curl");
    curl.args([
        "--disable",
        "--silent",
        "--show-error",
        "--proxy",
        &proxy.url(),
        "--cacert",
    ])
    .arg(proxy.cert())
    .arg(origin.https("/protocol"));
    Process::run(curl, LIMIT).success();
    let _idle = TcpStream::connect(proxy.address()).unwrap();
    proxy.process().signal("TERM");
    let finished = proxy.finish().success();
    let summary = finished.stderr.lines().last().unwrap_or_default();
    assert!(summary.contains("1 flow"), "{summary}");
}
