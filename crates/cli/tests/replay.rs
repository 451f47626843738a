//! Flow files as output and input: `-w`, `-r`, `-C`, `-S`, `--record`, `--replay`.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests assert as tests do"
)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Origin, Proxy, output, tollgate};
use tollgate_flow::mitm::{FlowReader, FlowWriter};

/// Records two requests, and gives the file.
fn recorded(origin: &Origin, dir: &Path, more: &[&str]) -> String {
    let file = dir.join("out.mitm").display().to_string();
    let ca = origin.ca();
    let arguments = [&["-w", &file, "--upstream-trusted-ca", &ca][..], more].concat();
    let mut proxy = Proxy::start(&arguments);
    proxy.curl(&origin.url("/first"), &["--http1.1"]);
    proxy.curl(
        &origin.url("/second"),
        &["--http1.1", "--data", "some=thing"],
    );
    proxy.signal("TERM");
    let (_, log) = proxy.wait();
    assert!(log.iter().any(|line| line.contains("to ")), "{log:?}");
    file
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn flows_are_written_as_they_end_and_read_again() {
    let origin = Origin::start();
    let dir = tempfile::tempdir().unwrap();
    let file = recorded(&origin, dir.path(), &[]);
    let read = output(&["-n", "-r", &file]);
    let shown = text(read.stdout);
    assert_eq!(read.status.code(), Some(0));
    assert!(
        shown.contains(&format!("GET {}", origin.url("/first"))) && shown.contains("POST"),
        "{shown}"
    );
    // A filter expression, as mitmdump takes it, and what it leaves in another file, behind what is there.
    let copy = dir.path().join("copy.mitm").display().to_string();
    for _ in 0..2 {
        let read = output(&["-nr", &file, "-w", &format!("+{copy}"), "~m post"]);
        let shown = text(read.stdout);
        assert!(
            !shown.contains("/first") && shown.contains("/second"),
            "{shown}"
        );
    }
    let count = output(&["filter", "-c", "~u /second", &copy]);
    assert_eq!(text(count.stdout), "2\n");
    // JSON, and HAR by the name of the file.
    let read = output(&["-nr", &file, "--json"]);
    let line: Value = serde_json::from_str(text(read.stdout).lines().next().unwrap()).unwrap();
    assert_eq!(line["url"], origin.url("/first"));
    let har = dir.path().join("out.har").display().to_string();
    output(&["-nr", &file, "--set", &format!("hardump={har}")]);
    let har: Value = serde_json::from_slice(&std::fs::read(har).unwrap()).unwrap();
    assert_eq!(har["log"]["entries"].as_array().unwrap().len(), 2);
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn what_is_shown_and_what_is_written_are_two_things() {
    let origin = Origin::start();
    let dir = tempfile::tempdir().unwrap();
    let file = recorded(&origin, dir.path(), &[]);
    let copy = dir.path().join("copy.mitm").display().to_string();
    let both = ["-nr", &file, "-w", &copy];
    let run = output(&[&both[..], &["--set", "dumper_filter=~m post"]].concat());
    let shown = text(run.stdout);
    assert!(!shown.contains("/first") && shown.contains("/second"));
    assert_eq!(text(output(&["filter", "-c", "~all", &copy]).stdout), "2\n");
    // Who reads the output may go; the file is whole all the same, and nothing is wrong.
    std::fs::write(&file, std::fs::read(&file).unwrap().repeat(200)).unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut reading = tollgate(home.path())
        .args(both)
        .args(["--flow-detail", "3"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(reading.stdout.take());
    assert_eq!(reading.wait().unwrap().code(), Some(0));
    assert_eq!(
        text(output(&["filter", "-c", "~all", &copy]).stdout),
        "400\n"
    );
}

#[test]
fn a_name_may_have_the_time() {
    let origin = Origin::start();
    let dir = tempfile::tempdir().unwrap();
    let file = recorded(&origin, dir.path(), &[]);
    let dated = dir.path().join("%Y").join("flows-%%.mitm");
    let run = output(&["-nr", &file, "-w", &dated.display().to_string()]);
    assert_eq!(run.status.code(), Some(0));
    let years: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    assert_eq!(years.len(), 1);
    let year = years[0].file_name().unwrap().to_str().unwrap();
    assert!(year.len() == 4 && year.starts_with("20"), "{year}");
    let whole = std::fs::read(years[0].join("flows-%.mitm")).unwrap();
    assert_eq!(whole, std::fs::read(file).unwrap());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_flows_and_no_traffic() {
    let origin = Origin::start();
    let mut proxy = Proxy::start(&["-w", "/dev/full", "--upstream-trusted-ca", &origin.ca()]);
    for path in ["/first", "/second"] {
        let got = proxy.curl(&origin.url(path), &["--http1.1"]);
        assert!(text(got.stdout).contains(path));
    }
    proxy.wait_for("/dev/full: can't write");
    proxy.signal("TERM");
    let (status, log) = proxy.wait();
    assert_eq!(status.code(), Some(1));
    let told = |what: &str| log.iter().filter(|line| line.contains(what)).count();
    assert_eq!(told("traffic goes on"), 1, "{log:?}");
    assert_eq!(told("2 flows could not be written to /dev/full"), 1);
}

#[test]
fn what_is_cut_or_missing_says_so() {
    let origin = Origin::start();
    let dir = tempfile::tempdir().unwrap();
    let file = recorded(&origin, dir.path(), &[]);
    let whole = std::fs::read(&file).unwrap();
    let cut = dir.path().join("cut.mitm").display().to_string();
    std::fs::write(&cut, &whole[..whole.len() - 10]).unwrap();
    let read = output(&["-nr", &cut]);
    assert_eq!(read.status.code(), Some(1));
    assert!(text(read.stdout).contains("/first"));
    // A recording that answers must be whole.
    let served = output(&["-S", &cut]);
    assert_eq!(served.status.code(), Some(1));
    assert!(text(served.stderr).contains("can't be read whole"));
    for (arguments, why) in [
        (&["-n"][..], "nothing to do"),
        (&["-nr", "/no/such/file"], "can't open /no/such/file"),
        (
            &["-w", "/no/such/folder/file"],
            "can't write /no/such/folder/file",
        ),
        (
            &["-C", "x", "--client-replay-concurrency", "0"],
            "1 or more",
        ),
        (
            &["-S", "x", "--server-replay-extra", "maybe"],
            "forward, kill or a status",
        ),
    ] {
        let run = output(arguments);
        let error = text(run.stderr);
        assert!(
            run.status.code() == Some(1) && error.contains(why),
            "{arguments:?}: {error}"
        );
    }
}

#[test]
fn requests_are_sent_again_and_differences_told() {
    let origin = Origin::start();
    let dir = tempfile::tempdir().unwrap();
    let file = recorded(&origin, dir.path(), &[]);
    let ca = origin.ca();
    let replay = |more: &[&str]| {
        let home = tempfile::tempdir().unwrap();
        let run = tollgate(home.path())
            .args(["-nC", &file, "--upstream-trusted-ca", &ca])
            .args(more)
            .output()
            .unwrap();
        (
            run.status.code().unwrap(),
            text(run.stdout),
            text(run.stderr),
        )
    };
    let (code, shown, said) = replay(&["--client-replay-concurrency", "4", "--replay-check"]);
    assert_eq!(code, 0, "{said}");
    assert!(
        shown.contains("/first") && shown.contains("/second"),
        "{shown}"
    );
    assert!(
        said.contains("2 requests replayed: 2 the same, 0 different, 0 failed"),
        "{said}"
    );
    // A rule makes an answer different.
    let rule = "/~s ~u second/received/got";
    let (code, _, said) = replay(&["-B", rule, "--replay-check"]);
    assert_eq!(code, 1);
    assert!(
        said.contains("/second: a body of") && said.contains("1 different"),
        "{said}"
    );
    let (code, shown, _) = replay(&["-B", rule, "--json", "--filter", "~u second", "-q"]);
    let _ = shown;
    assert_eq!(code, 2, "--json and -q contradict each other");
    let (code, shown, _) = replay(&["-B", rule, "--json", "--flow-detail", "0"]);
    assert_eq!(code, 0);
    let lines: Vec<Value> = shown
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["differences"].is_array())
        .collect();
    assert_eq!(lines.len(), 2);
}

/// Writes recorded flows again, changed.
fn rewrite(file: &str, change: impl Fn(usize, &mut tollgate_flow::record::Record)) {
    let recorded = std::fs::read(file).unwrap();
    let mut writer = FlowWriter::new(std::fs::File::create(file).unwrap());
    for (n, record) in FlowReader::new(&recorded[..]).enumerate() {
        let mut record = record.unwrap();
        change(n, &mut record);
        writer.write(&record).unwrap();
    }
}

#[test]
fn a_replay_keeps_the_pace_and_is_marked_as_one() {
    let origin = Origin::start();
    let dir = tempfile::tempdir().unwrap();
    let file = recorded(&origin, dir.path(), &[]);
    rewrite(&file, |n, record| {
        let request = &mut record.as_http_mut().unwrap().request;
        request.message.started = tollgate_flow::record::Timestamp::new(1000.0 + 2.0 * n as f64);
    });
    let again = dir.path().join("again.mitm").display().to_string();
    let ca = origin.ca();
    let begun = Instant::now();
    let run = output(&[
        "-nC",
        &file,
        "--replay-speed",
        "4",
        "-w",
        &again,
        "--upstream-trusted-ca",
        &ca,
    ]);
    let said = text(run.stderr);
    assert_eq!(run.status.code(), Some(0), "{said}");
    assert!(said.contains("2 requests replayed: 2 the same"), "{said}");
    // Two seconds between them, at four times the speed.
    assert!(begun.elapsed() >= Duration::from_millis(500));
    assert_eq!(
        text(output(&["filter", "-c", "~replayq", &again]).stdout),
        "2\n"
    );
    assert_eq!(
        text(output(&["filter", "-c", "~replays", &again]).stdout),
        "0\n"
    );
    for (arguments, why) in [
        (
            &["-C", "x", "--replay-speed", "0"][..],
            "must be more than 0",
        ),
        (&["-C", "x", "--replay-speed", "NaN"], "must be more than 0"),
    ] {
        let (code, error) = support::failure(arguments);
        assert!(code == 1 && error.contains(why), "{error}");
    }
}

#[test]
fn a_replay_is_stopped_by_a_signal_and_says_how_far_it_came() {
    let origin = Origin::start();
    let dir = tempfile::tempdir().unwrap();
    let file = recorded(&origin, dir.path(), &[]);
    // The second request is a day later.
    rewrite(&file, |n, record| {
        let request = &mut record.as_http_mut().unwrap().request;
        request.message.started = tollgate_flow::record::Timestamp::new(86_400.0 * n as f64);
    });
    for signal in ["INT", "TERM"] {
        let mut proxy = Proxy::start(&[
            "-C",
            &file,
            "--replay-speed",
            "1",
            "--upstream-trusted-ca",
            &origin.ca(),
        ]);
        // The first has passed.
        assert!(proxy.line().contains("/first"));
        proxy.signal(signal);
        let (status, log) = proxy.wait();
        assert_eq!(status.code(), Some(1));
        let summary =
            "1 request replayed: 1 the same, 0 different, 0 failed; stopped before the end";
        assert!(log.iter().any(|line| line == summary), "{log:?}");
    }
}

#[test]
fn flows_that_can_not_be_read_are_told_by_the_exit_code_of_a_replay() {
    let origin = Origin::start();
    let dir = tempfile::tempdir().unwrap();
    let file = recorded(&origin, dir.path(), &[]);
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 10]).unwrap();
    let run = output(&["-nC", &file, "--upstream-trusted-ca", &origin.ca()]);
    let said = text(run.stderr);
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(said.contains("1 request replayed: 1 the same"), "{said}");
    let (code, error) = support::failure(&["-nC", "/no/such/file"]);
    assert!(
        code == 1 && error.contains("can't open /no/such/file"),
        "{error}"
    );
}

#[test]
fn recordings_answer_without_an_origin() {
    let dir = tempfile::tempdir().unwrap();
    let (file, first, second) = {
        let origin = Origin::start();
        let file = recorded(&origin, dir.path(), &[]);
        (file, origin.url("/first"), origin.url("/second"))
    };
    // The origin's thread lives on: another port shows that nobody is asked.
    let moved = |url: &str| {
        let (before, path) = url.rsplit_once('/').unwrap();
        let host = before.rsplit_once(':').unwrap().0;
        format!("{host}:9/{path}")
    };
    let proxy = Proxy::start(&[
        "-S",
        &file,
        "--server-replay-extra",
        "404",
        "--set",
        "server_replay_ignore_port=true",
    ]);
    for version in ["--http1.1", "--http2"] {
        let get = |url: &str, more: &[&str]| {
            let run = proxy.curl(url, &[&[version][..], more].concat());
            text(run.stdout)
        };
        if version == "--http1.1" {
            assert_eq!(
                get(&moved(&first), &[]),
                r#"{"path":"/first","received":0}"#
            );
        } else {
            let body = get(&moved(&second), &["--data", "some=thing"]);
            assert_eq!(body, r#"{"path":"/second","received":10}"#);
        }
        let missing = get(&moved(&first), &[]);
        assert!(
            missing.contains("no recording answers GET"),
            "{version}: {missing}"
        );
    }
}

/// An origin without TLS that sends events one by one, each when the test says so, and trailers.
fn streaming_origin() -> (std::net::SocketAddr, std::sync::mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (next, wait) = channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        for event in EVENTS {
            wait.recv().unwrap();
            stream.write_all(event.as_bytes()).unwrap();
        }
        wait.recv().unwrap();
        stream.write_all(b"0\r\nX-Sum: 3\r\n\r\n").unwrap();
    });
    (address, next)
}

/// Two chunks in one write, and two that are one each.
const EVENTS: [&str; 3] = [
    "9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n",
    "9\r\ndata: 3\n\n\r\n",
    "9\r\ndata: 4\n\n\r\n",
];

/// Reads what comes until it ends in a certain way.
fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut got = Vec::new();
    while !got.ends_with(end.as_bytes()) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        got.push(byte[0]);
    }
    text(got)
}

#[test]
fn a_stream_is_answered_in_the_pieces_and_at_the_times_that_it_had() {
    let (origin, next) = streaming_origin();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tape").display().to_string();
    let request = format!("GET http://{origin}/events HTTP/1.1\r\nHost: {origin}\r\n\r\n");
    let ask = |proxy: &Proxy| {
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        client.set_read_timeout(Some(support::PATIENCE)).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        client
    };
    let mut proxy = Proxy::start(&["--record", &folder]);
    let mut client = ask(&proxy);
    read_until(&mut client, "\r\n\r\n");
    for event in EVENTS {
        next.send(()).unwrap();
        read_until(&mut client, event);
    }
    next.send(()).unwrap();
    read_until(&mut client, "X-Sum: 3\r\n\r\n");
    proxy.signal("TERM");
    proxy.wait();
    let file = format!("{folder}/flows.mitm");
    // The recording has the pieces. Other times than ours, which depend on this machine, are put in.
    let recorded = std::fs::read(&file).unwrap();
    let mut records: Vec<_> = FlowReader::new(&recorded[..])
        .map(|record| record.unwrap())
        .collect();
    let pieces = &mut records[0].facts.response_pieces;
    let bytes: Vec<_> = pieces.iter().map(|piece| piece.bytes).collect();
    assert_eq!(bytes, [9, 9, 9, 9]);
    for (piece, n) in pieces.iter_mut().zip(1..) {
        piece.at = n * Duration::from_millis(100);
    }
    let mut writer = FlowWriter::new(std::fs::File::create(&file).unwrap());
    writer.write(&records[0]).unwrap();

    let whole = format!("{}0\r\nX-Sum: 3\r\n\r\n", EVENTS.concat());
    for timing in [false, true] {
        let more = if timing {
            &["--replay-timing"][..]
        } else {
            &[]
        };
        let proxy = Proxy::start(&[&["--replay", &folder][..], more].concat());
        let started = Instant::now();
        let mut client = ask(&proxy);
        let head = read_until(&mut client, "\r\n\r\n");
        assert!(head.contains("Transfer-Encoding: chunked\r\n"), "{head}");
        assert_eq!(read_until(&mut client, "X-Sum: 3\r\n\r\n"), whole);
        assert!(!timing || started.elapsed() >= Duration::from_millis(400));
    }
    // To a real client.
    let proxy = Proxy::start(&["-S", &file, "--server-replay-extra", "kill"]);
    let got = proxy.curl(&format!("http://{origin}/events"), &["--include"]);
    let got = text(got.stdout);
    assert!(
        got.contains("data: 4\n\n") && got.contains("X-Sum: 3"),
        "{got}"
    );
}

#[test]
fn what_is_offline_connects_to_nothing_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tape").display().to_string();
    let origin = Origin::start();
    let ca = origin.ca();
    let mut proxy = Proxy::start(&["--record", &folder, "--upstream-trusted-ca", &ca]);
    proxy.curl(&origin.url("/items/1"), &["--http1.1"]);
    proxy.signal("TERM");
    proxy.wait();
    let before = origin.accepted();
    let mut proxy = Proxy::start(&["--replay", &folder, "--tunnel-hosts", "127.0.0.1"]);
    // A protocol that is none of HTTP, and a host that is not to be opened.
    let port = origin.address.port();
    let connect = |host: &str| {
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        client.set_read_timeout(Some(support::PATIENCE)).unwrap();
        client
            .write_all(
                format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n").as_bytes(),
            )
            .unwrap();
        client
    };
    let mut other = connect("localhost");
    read_until(&mut other, "\r\n\r\n");
    other.write_all(b"SSH-2.0-test\r\n").unwrap();
    let mut rest = Vec::new();
    assert_eq!(other.read_to_end(&mut rest).unwrap_or(0), 0, "{rest:?}");
    let refused = read_until(&mut connect("127.0.0.1"), "\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    // A miss says on standard error, too, what is different.
    let missing = text(proxy.curl(&origin.url("/items/2"), &["--http1.1"]).stdout);
    assert!(
        missing.contains("- path: /items/2, recorded /items/1"),
        "{missing}"
    );
    proxy.wait_for("path: /items/2, recorded /items/1");
    assert_eq!(origin.accepted(), before);
    for (arguments, why) in [
        (&["--replay-timing"][..], "needs recordings"),
        (
            &["--replay", &folder, "--server-replay-extra", "forward"],
            "--replay connects to nothing",
        ),
        (
            &["--replay", &folder, "--set", "connection_strategy=eager"],
            "--replay connects to nothing",
        ),
    ] {
        let (code, error) = support::failure(arguments);
        assert!(code == 1 && error.contains(why), "{error}");
    }
}

#[test]
fn a_command_is_recorded_and_runs_again_without_a_network() {
    let origin = Origin::start();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tape").display().to_string();
    let url = origin.url("/api");
    let run = |more: &[&str], url: &str| {
        let home = tempfile::tempdir().unwrap();
        let output = tollgate(home.path())
            .args(["run", "--upstream-trusted-ca", &origin.ca()])
            .args(more)
            .args(["--", "curl", "-sS", "--http1.1", url])
            .output()
            .unwrap();
        (text(output.stdout), text(output.stderr))
    };
    let (recorded, _) = run(&["--record", &folder], &url);
    assert_eq!(recorded, r#"{"path":"/api","received":0}"#);
    let before = origin.accepted();
    let (replayed, said) = run(&["--replay", &folder], &url);
    assert_eq!(replayed, recorded, "{said}");
    let (missing, _) = run(&["--replay", &folder], &origin.url("/other"));
    assert!(
        missing.contains("no recording answers") && missing.contains("/api"),
        "{missing}"
    );
    assert_eq!(origin.accepted(), before);
}
