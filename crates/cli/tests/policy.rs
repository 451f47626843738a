//! A policy through the real command: what reaches the origin, what the client, and what the log says.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests assert as tests do"
)]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use support::{PATIENCE, Proxy, failure, has};

/// Put together here, so that nobody takes it for a real one.
fn key() -> String {
    format!("AK{}", "IAY3T6DKCNFLR2QWZ4")
}

/// A plain server that answers with the body that it got, and tells what came.
fn echo() -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, came) = channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tell = tell.clone();
            thread::spawn(move || answer(stream, &tell));
        }
    });
    (address, came)
}

fn answer(stream: TcpStream, tell: &Sender<String>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.trim_end().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            head.push_str(&line);
        }
        let mut body = Vec::new();
        stream.by_ref().take(length).read_to_end(&mut body).ok()?;
        let body = String::from_utf8(body).ok()?;
        tell.send(format!("{head}\n{body}")).ok()?;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let stream = stream.get_mut();
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body.as_bytes()).ok()?;
    }
}

#[test]
fn secrets_leave_as_placeholders_and_a_changed_policy_takes_effect() {
    if !has("curl") {
        return;
    }
    let (origin, came) = echo();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    let replace = |text: &str| {
        // As editors do: the file is whole at every moment.
        let new = file.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &file).unwrap();
    };
    replace(
        "[[rule]]\nname = \"keys\"\ncategory = \"secret\"\naction = \"redact\"\nrestore = true\n\
         [[rule]]\ncategory = \"personal-data\"\naction = \"warn\"\nmessage = \"cards\"\n",
    );
    let audit = dir.path().join("audit.jsonl");
    let mut proxy = Proxy::start(&[
        "--screen",
        "enforce",
        "--screen-policy",
        file.to_str().unwrap(),
        "--audit-log",
        audit.to_str().unwrap(),
    ]);
    let url = format!("http://{origin}/v1/x");
    let post = |proxy: &Proxy, body: &str| {
        let more = ["--include", "--json", body];
        String::from_utf8(proxy.curl(&url, &more).stdout).unwrap()
    };
    let key = key();
    let escaped = key.replacen('A', "\\u0041", 1);
    let got = post(&proxy, &format!("{{\"note\": \"use {escaped}!\"}}"));
    let sent = came.recv_timeout(PATIENCE).unwrap();
    assert!(
        sent.contains("{\"note\": \"use [tollgate:aws-access-key-id:"),
        "{sent}"
    );
    assert!(!sent.contains(&key) && !sent.contains(&escaped));
    assert!(
        got.ends_with(&format!("{{\"note\": \"use {key}!\"}}")),
        "{got}"
    );
    let line = proxy.wait_for("aws-access-key-id in the request body");
    assert!(
        line.contains("before \"keys\"") && !line.contains(&key),
        "{line}"
    );

    let card = format!("{{\"card\": \"4111 1111 1111 {}\"}}", 1111);
    let got = post(&proxy, &card);
    let sent = came.recv_timeout(PATIENCE).unwrap();
    assert!(
        got.contains("Tollgate-Warning: payment-card; place=\"the request body\""),
        "{got}"
    );
    assert!(!sent.to_ascii_lowercase().contains("tollgate"), "{sent}");

    replace("[[rule]]\nactoin = \"block\"\n");
    proxy.wait_for("policy.toml:2: unknown key 'actoin'; did you mean 'action'?");
    assert!(post(&proxy, &card).starts_with("HTTP/1.1 200 "));
    replace("[[rule]]\nname = \"no cards\"\nfinding = \"payment-card\"\naction = \"block\"\n");
    proxy.wait_for("policy reloaded: 1 rules in force");
    let got = post(&proxy, &card);
    assert!(
        got.starts_with("HTTP/1.1 403 ") && got.contains("payment-card"),
        "{got}"
    );

    proxy.signal("TERM");
    proxy.wait();
    let log = fs::read_to_string(&audit).unwrap();
    assert!(
        log.contains("\"action\":\"redact\"") && log.contains("\"rule\":\"no cards\""),
        "{log}"
    );
    assert!(!log.contains(&key));
}

/// A body whose length nobody tells is collected to be written anew, and there is an end to that.
#[test]
fn a_body_in_chunks_is_redacted_whole_or_refused() {
    let (origin, came) = echo();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    let policy = "[[rule]]\ncategory = \"secret\"\naction = \"redact\"\n";
    fs::write(&file, policy).unwrap();
    let proxy = Proxy::start(&[
        "--screen",
        "enforce",
        "--screen-policy",
        file.to_str().unwrap(),
    ]);
    let post = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "POST http://{origin}/x HTTP/1.1\r\nHost: {origin}\r\nContent-Type: text/plain\r\n\
             Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        for piece in pieces {
            let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
            if stream.write_all(&chunk).is_err() {
                // It is refused already.
                break;
            }
        }
        let _ = stream.write_all(b"0\r\n\r\n");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    let key = key();
    let (begin, end) = key.split_at(7);
    let got = post(&mut ["key=", begin, end].map(str::as_bytes).into_iter());
    assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
    let sent = came.recv_timeout(PATIENCE).unwrap();
    assert!(
        sent.contains("key=[tollgate:aws-access-key-id:") && !sent.contains(&key),
        "{sent}"
    );
    // One byte more than 32 MiB.
    let megabyte = vec![b'x'; 1 << 20];
    let last = &b"x"[..];
    let got = post(&mut std::iter::repeat_n(&megabyte[..], 32).chain([last]));
    assert!(got.starts_with("HTTP/1.1 413 "), "{got}");
    assert!(came.try_recv().is_err());
}

#[test]
fn a_wrong_policy_is_an_error_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    let file = file.to_str().unwrap();
    let arguments = ["--screen", "enforce", "--screen-policy", file];
    fs::write(
        file,
        "[[rule]]\nfinding = \"aws-acces-key-id\"\naction = \"warn\"\n",
    )
    .unwrap();
    let (code, text) = failure(&arguments);
    assert_eq!(code, 1);
    assert!(
        text.ends_with("policy.toml:1: no scanner has a rule 'aws-acces-key-id'; did you mean 'aws-access-key-id'?"),
        "{text}"
    );
    fs::write(file, "[[rule]]\n\naction = \"blok\"\n").unwrap();
    let (_, text) = failure(&arguments);
    assert!(
        text.ends_with("policy.toml:3: 'blok' is no action; did you mean 'block'?"),
        "{text}"
    );
}
