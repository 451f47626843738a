//! mitmproxy's options that change traffic: the same option and the same traffic through real mitmdump and through
//! Tollgate, and the same at the client and at the origin.
//!
//! Left out of the comparison: framing (a changed body is chunked here, and has a length there) and `Connection`, which
//! belong to the hop; the case of field names; `Server`, where it names mitmproxy; the content coding of a changed body, which goes on uncoded
//! here (bodies are compared decoded); and the order of header fields.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests, which fail by panicking"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use tempfile::TempDir;
use tollgate_e2e::{ForwardProxy, LIMIT, Process, Tollgate, command, programs, require};
use tollgate_wire::coding::{Coding, Decoder, Encoder, OutputLimit};

/// A server that keeps what it gets, and answers with a text, two cookies and headers of its own.
struct Origin {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Origin {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = Arc::clone(&log);
                thread::spawn(move || serve(stream, &log));
            }
        });
        Self { address, seen }
    }

    fn take(&self) -> Vec<Vec<String>> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Vec<String>>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (lines, body) = message(&mut stream)?;
        let first = lines.first()?.clone();
        let mut seen = normalised(&lines);
        seen.push(String::from_utf8_lossy(&body).into_owned());
        log.lock().unwrap().push(seen);
        let path = first.split(' ').nth(1)?.to_owned();
        let mut answer = format!("one secret at {path}\nand another secret\n").into_bytes();
        let mut more = String::new();
        if path.contains("gzip") {
            let mut encoder = Encoder::new(Coding::Gzip)?;
            let mut packed = Vec::new();
            encoder.feed(&answer, &mut packed).ok()?;
            encoder.finish(&mut packed).ok()?;
            answer = packed;
            more.push_str("Content-Encoding: gzip\r\n");
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-One: 1\r\nX-Two: 2\r\n\
             Set-Cookie: a=1; Path=/\r\nSet-Cookie: b=\"x y\"; Path=/deep\r\n{more}Content-Length: {}\r\n\r\n",
            answer.len()
        );
        let out = stream.get_mut();
        out.write_all(head.as_bytes()).ok()?;
        out.write_all(&answer).ok()?;
    }
}

/// A message's lines, and its body without framing.
fn message(stream: &mut BufReader<TcpStream>) -> Option<(Vec<String>, Vec<u8>)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let field = |name: &str| {
        lines.iter().find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known
                .eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let mut body = Vec::new();
    if let Some(length) = field("content-length") {
        let length = length.parse().ok()?;
        stream.by_ref().take(length).read_to_end(&mut body).ok()?;
    } else if field("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok()?;
            let length = u64::from_str_radix(line.trim(), 16).ok()?;
            stream.by_ref().take(length).read_to_end(&mut body).ok()?;
            stream.read_line(&mut line).ok()?;
            if length == 0 {
                break;
            }
        }
    } else if lines.first()?.starts_with("HTTP/") {
        stream.read_to_end(&mut body).ok()?;
    }
    if let Some(coding) = field("content-encoding") {
        let limit = OutputLimit::default();
        let mut decoder = Decoder::new(std::iter::once(coding.as_bytes()), limit).ok()??;
        let mut out = Vec::new();
        decoder.feed(&body, &mut out).ok()?;
        decoder.finish(&mut out).ok()?;
        body = out;
    }
    Some((lines, body))
}

/// The first line, and the fields in order of their names.
fn normalised(lines: &[String]) -> Vec<String> {
    let hop = [
        "content-length",
        "transfer-encoding",
        "connection",
        "proxy-connection",
        "content-encoding",
        "server",
    ];
    let (first, fields) = lines.split_first().unwrap();
    let mut fields: Vec<String> = fields
        .iter()
        .filter(|line| {
            let name = line
                .split(':')
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase();
            !hop.contains(&&*name)
        })
        .map(|line| match line.split_once(':') {
            Some((name, value)) => format!("{}:{value}", name.to_ascii_lowercase()),
            None => line.clone(),
        })
        .collect();
    fields.sort();
    let mut out = vec![first.clone()];
    out.append(&mut fields);
    out
}

/// What a client gets for a request; nothing where it is cut off.
fn ask(proxy: SocketAddr, request: &str) -> Option<(Vec<String>, String)> {
    let mut stream = TcpStream::connect(proxy).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let (lines, body) = message(&mut BufReader::new(stream))?;
    Some((
        normalised(&lines),
        String::from_utf8_lossy(&body).into_owned(),
    ))
}

fn request(origin: &Origin, method: &str, path: &str, more: &str, body: &str) -> String {
    let length = match body {
        "" => String::new(),
        body => format!("Content-Length: {}\r\n", body.len()),
    };
    format!(
        "{method} http://{}{path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: test\r\nAccept: */*\r\n{more}{length}Connection: close\r\n\r\n{body}",
        origin.address, origin.address
    )
}

/// The same through both, with the same options.
fn compare(origin: &Origin, options: &[String], requests: &[String]) {
    let dir = TempDir::new().unwrap();
    let sets: Vec<&str> = options.iter().flat_map(|set| ["--set", set]).collect();
    let at = ForwardProxy::free_address();
    let mut mitmdump = command(
        &programs::mitmproxy_venv()
            .with_file_name("mitmdump")
            .display()
            .to_string(),
    );
    mitmdump
        .args(["-q", "--listen-host", "127.0.0.1", "-p"])
        .arg(at.port().to_string())
        .arg("--set")
        .arg(format!("confdir={}", dir.path().display()))
        .args(&sets);
    let mut mitmdump = Process::start(mitmdump);
    assert!(
        mitmdump.becomes(|| TcpStream::connect(at).is_ok()),
        "mitmdump does not listen with {options:?}"
    );
    let ours = Tollgate::start(sets.iter().copied().chain(["--store", "off"]));
    origin.take();
    let run = |proxy: SocketAddr| -> Vec<_> {
        requests
            .iter()
            .map(|request| (ask(proxy, request), origin.take()))
            .collect()
    };
    let theirs = run(at);
    let ours = run(ours.address());
    for ((request, theirs), ours) in requests.iter().zip(&theirs).zip(&ours) {
        assert_eq!(ours, theirs, "{options:?}\n{request}");
    }
}

fn files() -> TempDir {
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

#[test]
fn block_list_answers_and_cuts() {
    require!("mitmproxy-venv");
    let origin = Origin::start();
    let get = |path: &str| request(&origin, "GET", path, "", "");
    let options = [
        "block_list=/~u blocked/403",
        "block_list=:~u cut:444",
        "block_list=/~u twice/404",
        "block_list=/~u twice/410",
        "block_list=|~m post & ~b forbidden|503",
    ];
    let post = |body: &str| request(&origin, "POST", "/post", "", body);
    compare(
        &origin,
        &options.map(str::to_owned),
        &[
            get("/fine"),
            get("/blocked"),
            get("/cut"),
            get("/twice"),
            post("allowed"),
            post("a forbidden word"),
        ],
    );
}

#[test]
fn map_remote_sends_elsewhere() {
    require!("mitmproxy-venv");
    let origin = Origin::start();
    let other = Origin::start();
    let options = [
        "map_remote=|/old/|/new/".to_owned(),
        r"map_remote=@~m get@/item/(\d+)@/thing?id=\1".to_owned(),
        r"map_remote=|/named/(?P<what>\w+)|/\g<what>/named".to_owned(),
        format!(
            "map_remote=|{}/moved|{}/there",
            origin.address, other.address
        ),
    ];
    let get = |path: &str| request(&origin, "GET", path, "", "");
    let requests = [
        get("/old/a?b=c"),
        get("/item/42"),
        request(&origin, "POST", "/item/42", "", "x"),
        get("/named/thing"),
        get("/untouched"),
        get("/moved"),
    ];
    compare(&origin, &options, &requests);
    // Both have sent the last one there, under its name.
    let seen = other.take();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0], seen[1]);
    assert!(seen[0].contains(&format!("host: {}", other.address)));
}

#[test]
fn map_local_answers_from_files() {
    require!("mitmproxy-venv");
    let origin = Origin::start();
    let dir = files();
    let options = [
        format!("map_local=|/one$|{}", at(&dir, "one.txt")),
        format!("map_local=|~m get|/site|{}", at(&dir, "site")),
        format!(r"map_local=|/v\d/(.*)\?|{}", at(&dir, "site")),
    ];
    let get = |path: &str| request(&origin, "GET", path, "", "");
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
            request(&origin, "POST", "/site/data.json", "", "x"),
            get("/elsewhere"),
        ],
    );
}

#[test]
fn modify_headers_both_ways() {
    require!("mitmproxy-venv");
    let origin = Origin::start();
    let dir = files();
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
    let get = |path: &str, more: &str| request(&origin, "GET", path, more, "");
    compare(
        &origin,
        &options,
        &[
            get("/", ""),
            get("/twice", "X-Both: old\r\nX-Both: older\r\n"),
            get("/", "X-Everywhere: no\r\n"),
            get("/blocked", ""),
        ],
    );
}

#[test]
fn modify_body_both_ways() {
    require!("mitmproxy-venv");
    let origin = Origin::start();
    let dir = files();
    let options = [
        "modify_body=/~s/secret/[gone]".to_owned(),
        r"modify_body=/~q/(\w+)@(\w+)/\2 at \1".to_owned(),
        "modify_body=|~q & ~u lines|a.b|dot".to_owned(),
        format!("modify_body=|~q & ~u file|PLACE|@{}", at(&dir, "value")),
        "modify_body=/~u empty & ~s/x*/-".to_owned(),
        format!("map_local=|/local$|{}", at(&dir, "one.txt")),
        "modify_body=/~u local & ~s/one/changed".to_owned(),
    ];
    let post = |path: &str, body: &str| request(&origin, "POST", path, "", body);
    let get = |path: &str| request(&origin, "GET", path, "", "");
    compare(
        &origin,
        &options,
        &[
            get("/plain"),
            get("/gzip"),
            post("/", "me@home and you@work"),
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
    require!("mitmproxy-venv");
    let origin = Origin::start();
    let get = |path: &str, more: &str| request(&origin, "GET", path, more, "");
    compare(
        &origin,
        &["stickycookie=.".to_owned(), "stickyauth=~u want".to_owned()],
        &[
            get("/", ""),
            get("/", ""),
            get("/deep/er", ""),
            get("/", "Cookie: own=1\r\n"),
            get("/want", ""),
            get("/", "Authorization: Basic eDp5\r\n"),
            get("/want", ""),
            get("/", ""),
        ],
    );
}

#[test]
fn anticache_and_anticomp() {
    require!("mitmproxy-venv");
    let origin = Origin::start();
    let get = |more: &str| request(&origin, "GET", "/", more, "");
    compare(
        &origin,
        &["anticache=true".to_owned(), "anticomp=true".to_owned()],
        &[
            get(""),
            get(
                "If-None-Match: \"x\"\r\nIf-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\nIf-Match: \"y\"\r\n",
            ),
            get("Accept-Encoding: gzip, br\r\n"),
        ],
    );
}

#[test]
fn server_replay_answers_the_same() {
    require!("mitmproxy-venv");
    let origin = Origin::start();
    let dir = TempDir::new().unwrap();
    let tape = at(&dir, "tape.mitm");
    {
        let recorder = Tollgate::start(["-w", &tape, "--store", "off"]);
        for (method, path, body) in [
            ("GET", "/a?x=1", ""),
            ("GET", "/a?x=1", ""),
            ("POST", "/form", "name=me&time=1"),
        ] {
            ask(
                recorder.address(),
                &request(&origin, method, path, "", body),
            )
            .unwrap();
        }
        recorder.process().signal("TERM");
        recorder.finish();
    }
    let replay = format!("server_replay={tape}");
    let get = |path: &str| request(&origin, "GET", path, "", "");
    let form = |body: &str| {
        let kind = "Content-Type: application/x-www-form-urlencoded\r\n";
        request(&origin, "POST", "/form", kind, body)
    };
    let requests = [
        get("/a?x=1"),
        get("/a?x=1"),
        get("/a?x=1"),
        get("/a?x=2"),
        form("name=me&time=1"),
        form("name=me&time=2"),
        get("/other"),
    ];
    for more in [
        &[][..],
        &["server_replay_extra=404"],
        &["server_replay_extra=kill"],
        &["server_replay_reuse=true"],
        &["server_replay_ignore_content=true"],
        &["server_replay_ignore_params=x", "server_replay_reuse=true"],
    ] {
        let mut options = vec![replay.clone()];
        options.extend(more.iter().map(|set| (*set).to_owned()));
        let requests = match more.first() {
            // What an answer of ours says is ours.
            Some(&"server_replay_extra=404") => &requests[..2],
            // Once all recordings have answered, mitmproxy forgets about it.
            Some(&"server_replay_extra=kill") => &requests[1..4],
            _ => &requests[..],
        };
        compare(&origin, &options, requests);
    }
}
