//! Recorded flows that answer, or are sent again.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;
use tollgate_e2e::{LIMIT, Process, binary, command, require};

use crate::pair::{Pair, compare_over, mitmdump, sets, tollgate};
use crate::traffic::{Came, Client, Lines, Origin, Request, Transport, get, post};
use crate::{at, site};

const FORM: &str = "application/x-www-form-urlencoded";
const PARTS: &str = "multipart/form-data; boundary=xx";

/// Requests, recorded over every transport.
fn record(origin: &Origin, tape: &str, requests: &[Request]) {
    let trust = format!("ssl_verify_upstream_trusted_ca={}", origin.ca().display());
    let mut arguments = sets(&[trust]);
    arguments.extend(["-w".to_owned(), tape.to_owned()]);
    let recorder = tollgate(&arguments);
    let client = Client::new(recorder.address()).trusting(&[recorder.cert()]);
    for transport in Transport::ALL {
        for request in requests {
            client.ask(transport, origin, request).unwrap();
        }
    }
    recorder.process().signal("TERM");
    recorder.finish();
    origin.take();
}

/// A moment as tens of minutes from now: proxies that are asked one after the other don't give the same second.
fn relative(lines: &[String]) -> Vec<String> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs() as f64;
    let minutes = |date: &str| {
        let at = httpdate::parse_http_date(date.trim()).ok()?;
        let at = at.duration_since(UNIX_EPOCH).ok()?.as_secs() as f64;
        let tens = ((at - now) / 600.0).round() as i64;
        Some(format!("{tens} times ten minutes from now"))
    };
    let each = lines.iter().map(|line| match line.split_once(": ") {
        Some((name @ ("date" | "expires" | "last-modified"), date)) => {
            format!(
                "{name}: {}",
                minutes(date).unwrap_or_else(|| date.to_owned())
            )
        }
        _ => line.clone(),
    });
    each.collect()
}

#[test]
fn server_replay_answers_the_same() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let dir = TempDir::new().unwrap();
    let tape = at(&dir, "tape.mitm");
    let form = |body: &str| post("/form", body).with("Content-Type", FORM);
    record(
        &origin,
        &tape,
        &[get("/a?x=1"), get("/a?x=1"), form("name=me&time=1")],
    );
    let requests = [
        get("/a?x=1"),
        get("/a?x=1"),
        get("/a?x=1"),
        get("/a?x=2"),
        form("name=me&time=1"),
        form("name=me&time=2"),
        get("/other"),
    ];
    let replay = format!("server_replay={tape}");
    for (more, requests) in [
        (&[][..], &requests[..]),
        // What an answer of ours says is ours.
        (&["server_replay_extra=404"], &requests[..2]),
        // Once all recordings have answered, mitmproxy forgets about it.
        (&["server_replay_extra=kill"], &requests[1..4]),
        (&["server_replay_reuse=true"], &requests),
        (&["server_replay_ignore_content=true"], &requests),
        (
            &["server_replay_ignore_params=x", "server_replay_reuse=true"],
            &requests,
        ),
    ] {
        let mut options = vec![replay.clone(), "keepserving=true".to_owned()];
        options.extend(more.iter().map(|set| (*set).to_owned()));
        let pair = Pair::start(&origin, &sets(&options));
        compare_over(&pair, &Transport::ALL, &origin, requests, Clone::clone);
    }
}

#[test]
fn server_replay_has_its_place_among_what_changes_traffic() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let dir = site();
    let tape = at(&dir, "tape.mitm");
    record(
        &origin,
        &tape,
        &[
            get("/a"),
            get("/gzip"),
            get("/head").method("HEAD"),
            post("/post", "name=me"),
            get("/tenant").with("X-Tenant", "one"),
            get("/coding").with("Accept-Encoding", "identity"),
        ],
    );
    let local = |pattern: &str| format!("map_local=|{pattern}|{}", at(&dir, "one.txt"));
    for (more, requests) in [
        // Looked up as it was asked, not as it was mapped.
        (
            vec!["map_remote=|/a$|/b".to_owned()],
            vec![get("/a"), get("/a?x")],
        ),
        (
            vec!["map_remote=|/c$|/a".to_owned()],
            vec![get("/a"), get("/c")],
        ),
        (
            vec![local("/a$"), local("/one$")],
            vec![get("/a"), get("/one")],
        ),
        (
            vec![local("/one$"), "server_replay_extra=204".to_owned()],
            vec![get("/a"), get("/one")],
        ),
        (
            vec!["modify_body=/~q/me/you".to_owned()],
            vec![
                post("/post", "name=me"),
                post("/post", "name=you"),
                post("/post", "other=me"),
            ],
        ),
        // What is changed as its head or as nothing but the coding comes before.
        (
            vec![
                "modify_headers=/~q/X-Tenant/one".to_owned(),
                "server_replay_use_headers=x-tenant".to_owned(),
            ],
            vec![get("/tenant"), get("/a")],
        ),
        (
            vec![
                "anticomp".to_owned(),
                "server_replay_use_headers=accept-encoding".to_owned(),
            ],
            vec![
                get("/coding"),
                get("/coding").with("Accept-Encoding", "gzip"),
                get("/a"),
            ],
        ),
        // A recorded answer is changed as any other.
        (
            vec![
                "modify_headers=/~s/X-Changed/yes".to_owned(),
                "modify_headers=/~s/Set-Cookie/".to_owned(),
                "modify_body=/~s/secret/public".to_owned(),
            ],
            vec![
                get("/a"),
                get("/gzip"),
                get("/head").method("HEAD"),
                get("/other"),
            ],
        ),
    ] {
        let mut options = vec![
            format!("server_replay={tape}"),
            "server_replay_reuse=true".to_owned(),
            "keepserving=true".to_owned(),
        ];
        options.extend(more);
        let pair = Pair::start(&origin, &sets(&options));
        compare_over(&pair, &Transport::ALL, &origin, &requests, Clone::clone);
    }
    // A body that is too large is refused whatever was recorded. What an answer of ours says is ours.
    let options = [
        format!("server_replay={tape}"),
        "server_replay_reuse=true".to_owned(),
        "keepserving=true".to_owned(),
        "body_size_limit=4".to_owned(),
    ];
    let pair = Pair::start(&origin, &sets(&options));
    let requests = [post("/post", "name=me")];
    compare_over(&pair, &Transport::ALL, &origin, &requests, |came| {
        let first = came.0.as_ref().map(|lines| lines[0].as_str());
        let status = first.and_then(|line| line.split(' ').nth(1));
        (status.map(str::to_owned), came.1.clone())
    });
}

/// A body of `multipart/form-data`.
fn parts(name: &str, time: &str) -> String {
    let part = |key: &str, value: &str| {
        format!("--xx\r\nContent-Disposition: form-data; name=\"{key}\"\r\n\r\n{value}\r\n")
    };
    format!("{}{}--xx--\r\n", part("name", name), part("time", time))
}

#[test]
fn server_replay_looks_at_what_it_was_told_to() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let dir = TempDir::new().unwrap();
    let tape = at(&dir, "tape.mitm");
    let of = |tenant: &str| get("/a").with("X-Tenant", tenant);
    let form = |body: &str| post("/form", body).with("Content-Type", FORM);
    let multipart =
        |name: &str, time: &str| post("/parts", parts(name, time)).with("Content-Type", PARTS);
    record(
        &origin,
        &tape,
        &[
            of("one"),
            form("name=me&time=1"),
            multipart("me", "1"),
            // Is never asked for: once all recordings have answered, mitmproxy forgets about them.
            get("/left"),
        ],
    );
    for (more, requests) in [
        (
            "server_replay_use_headers=x-tenant",
            &[of("two"), get("/a"), of("one")][..],
        ),
        (
            "server_replay_ignore_payload_params=time",
            &[
                form("name=you&time=1"),
                form("name=me&time=2"),
                multipart("you", "1"),
                multipart("me", "2"),
            ],
        ),
        ("server_replay_kill_extra=true", &[of("one"), get("/other")]),
    ] {
        // Each recording answers once, and those of TLS and HTTP/2 are of one address: no transport may ask for more than
        // it recorded, or the next has none left.
        let options = [
            format!("server_replay={tape}"),
            "keepserving=true".to_owned(),
            more.to_owned(),
        ];
        let pair = Pair::start(&origin, &sets(&options));
        compare_over(&pair, &Transport::ALL, &origin, requests, Clone::clone);
    }
}

#[test]
fn server_replay_at_other_places_and_times() {
    require!("mitmproxy-venv", "openssl");
    let recorded = Origin::start();
    let origin = Origin::start();
    let dir = TempDir::new().unwrap();
    let tape = at(&dir, "tape.mitm");
    record(&recorded, &tape, &[get("/a"), get("/dated")]);
    // As if it had been recorded an hour ago.
    let older = at(&dir, "older.mitm");
    age(&tape, &older);
    let requests = [get("/a"), get("/dated")];
    for more in [
        &["server_replay_ignore_port=true"][..],
        &[
            "server_replay_ignore_port=true",
            "server_replay_refresh=false",
        ],
        &["server_replay_ignore_host=true"],
        &[
            "server_replay_ignore_host=true",
            "server_replay_ignore_port=true",
        ],
    ] {
        let mut options = vec![
            format!("server_replay={older}"),
            "keepserving=true".to_owned(),
        ];
        options.extend(more.iter().map(|set| (*set).to_owned()));
        let pair = Pair::start(&origin, &sets(&options));
        compare_over(&pair, &Transport::ALL, &origin, &requests, |came: &Came| {
            (came.0.as_deref().map(relative), came.1.clone())
        });
    }
}

/// Moves the times of a flow file an hour back.
fn age(from: &str, to: &str) {
    use tollgate_flow::mitm::{FlowReader, FlowWriter};
    use tollgate_flow::record::Timestamp;

    let mut writer = FlowWriter::new(fs::File::create(to).unwrap());
    for record in FlowReader::new(fs::File::open(from).unwrap()) {
        let mut record = record.unwrap();
        let http = record.as_http_mut().unwrap();
        let response = &mut http.response.as_mut().unwrap().message;
        response.started = Timestamp::new(response.started.seconds() - 3600.0);
        writer.write(&record).unwrap();
    }
}

/// A request that was sent again, in the form of HTTP/1.1. mitmproxy sends what came through a proxy to origins in
/// absolute form, and keeps to HTTP/2; here both go as HTTP/1.1 has it.
fn again(lines: &Lines) -> Lines {
    let mut words = lines[0].split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (host, path) = match target.split_once("://") {
        Some((_, rest)) => {
            let (host, path) = rest.split_once('/').unwrap();
            (Some(host.to_owned()), format!("/{path}"))
        }
        None => (None, target.to_owned()),
    };
    let named = lines.iter().find_map(|line| line.strip_prefix("host: "));
    let host = named.map(str::to_owned).or(host).unwrap();
    let fields = lines[1..].iter().filter(|line| !line.starts_with("host: "));
    let first = format!("{method} {host}{path}");
    std::iter::once(first).chain(fields.cloned()).collect()
}

#[test]
fn client_replay_sends_the_same() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let dir = TempDir::new().unwrap();
    let tape = at(&dir, "tape.mitm");
    record(
        &origin,
        &tape,
        &[
            get("/a?x=1").with("X-Case", "Kept").with("X-Case", "twice"),
            post("/form", "name=me").with("Content-Type", FORM),
            post("/chunks", "in pieces").chunked(),
            get("/a").method("DELETE"),
            get("/a").method("HEAD"),
        ],
    );
    let trust = format!("ssl_verify_upstream_trusted_ca={}", origin.ca().display());
    for more in [
        &[][..],
        &["modify_headers=/~q/X-Again/yes", "modify_body=/~q/me/you"],
        &[
            "anticomp",
            "stickyauth=.",
            "map_remote=|/a$|/b",
            "block_list=|~u chunks|403",
        ],
        // Who replays is no client that has to say who it is.
        &["proxyauth=anna:secret"],
        &["server=false", "client_replay_concurrency=1"],
    ] {
        let mut options = vec![trust.clone(), format!("client_replay={tape}")];
        options.extend(more.iter().map(|set| (*set).to_owned()));
        let confdir = TempDir::new().unwrap();
        let mut theirs = command(&mitmdump());
        theirs
            .args(["-q", "--listen-host", "127.0.0.1", "-p", "0", "--set"])
            .arg(format!("confdir={}", confdir.path().display()))
            .args(sets(&options));
        Process::run(theirs, LIMIT).success();
        let theirs: Vec<_> = origin.take().iter().map(again).collect();
        let mut ours = command(binary());
        ours.args([
            "-q",
            "--listen",
            "127.0.0.1:0",
            "--store",
            "off",
            "--data-dir",
        ])
        .arg(confdir.path())
        .args(sets(&options));
        Process::run(ours, LIMIT).success();
        let ours: Vec<_> = origin.take().iter().map(again).collect();
        assert_eq!(
            ours, theirs,
            "Tollgate (left) and mitmdump (right), {more:?}"
        );
        assert!(ours.len() >= 12, "{more:?}: {}", ours.len());
    }
    assert!(Path::new(&tape).is_file());
}
