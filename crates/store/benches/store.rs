//! What recording costs, and what reading takes.
//!
//! `TOLLGATE_BENCH_FLOWS=1000000 cargo bench -p tollgate-store` lists and searches a store of a million flows; without
//! the variable it has 20 000. Making it takes a while, so it is kept in the target folder. Flows are recorded as the
//! proxy does it, through a capture.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark has nobody to report to"
)]

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tollgate_flow::filter::Filter;
use tollgate_flow::{
    ConnectionId, ConnectionInfo, Direction, Flow, FlowId, HttpVersion, Interceptor, Outcome,
    Piece, Response, Scheme, Target, TlsVersion, UpstreamInfo,
};
use tollgate_store::{Capture, CaptureLimits, Flows, Place, Query, Store, StoreConfig, Words};
use tollgate_wire::http1::{RequestHead, ResponseHead, Version};

/// Flows are ended one after the other, in so many connections at a time.
const CONNECTIONS: u64 = 24;

/// So many requests come over a connection.
const REQUESTS: u64 = 200;

/// So many flows are handed over before what waits is written: the queue has room for more.
const BATCH: u64 = 2048;

/// Makes flows as they are when a worker has ended them.
struct Traffic {
    next: u64,
    lines: Vec<Flow>,
}

impl Traffic {
    fn from(next: u64) -> Self {
        Self {
            next,
            lines: Vec::new(),
        }
    }

    /// The next flow, and the body of its response.
    fn flow(&mut self) -> (&mut Flow, String) {
        let n = self.next;
        self.next += 1;
        let line = (n % CONNECTIONS) as usize;
        if self.lines.is_empty() || n.is_multiple_of(CONNECTIONS * REQUESTS) {
            self.lines = (0..CONNECTIONS).map(|line| connection(n + line)).collect();
        }
        let flow = &mut self.lines[line];
        let host = flow.request.target.host.clone();
        let started = UNIX_EPOCH + Duration::from_millis(1_790_000_000_000 + n);
        flow.id = FlowId::new(started, u128::from(n));
        flow.timing.started = started;
        flow.timing.request_end = Some(Duration::from_micros(20));
        flow.timing.response_start = Some(Duration::from_micros(2000 + n % 500));
        flow.timing.response_end = Some(Duration::from_micros(3000 + n % 500));
        let target = format!("/api/v1/items/{n}?page={}", n % 9);
        flow.request.head = RequestHead::build(b"GET", target.as_bytes(), Version::Http11).unwrap();
        for (name, value) in [
            ("Host", &*host),
            (
                "User-Agent",
                "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
            ),
            ("Accept", "application/json, text/plain, */*"),
            ("Accept-Encoding", "gzip, deflate, br, zstd"),
            (
                "Authorization",
                "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
            ),
        ] {
            let list = flow.request.headers_mut();
            list.append(name.as_bytes(), value.as_bytes()).unwrap();
        }
        let mut response = Response::default();
        let status = if n.is_multiple_of(100) { 500 } else { 200 };
        response.head = ResponseHead::build(status, b"OK").unwrap();
        for (name, value) in [
            ("Content-Type", "application/json"),
            ("Server", "nginx"),
            ("Cache-Control", "no-store"),
        ] {
            let list = response.headers_mut();
            list.append(name.as_bytes(), value.as_bytes()).unwrap();
        }
        let mut body = format!("{{\"id\":{n},\"name\":\"item{n}\",\"values\":[");
        for i in 0..100 {
            body.push_str(&format!("{},", n.wrapping_mul(i + 7) % 1000));
        }
        body.push_str("0]}");
        response.body_size = body.len() as u64;
        flow.response = Some(Box::new(response));
        (flow, body)
    }
}

/// A new connection, and what it shows of itself in each of its flows.
fn connection(n: u64) -> Flow {
    let client = format!("127.0.0.1:{}", 20_000 + n % 40_000)
        .parse()
        .unwrap();
    let local = "127.0.0.1:8080".parse().unwrap();
    let mut flow = Flow::new(Arc::new(ConnectionInfo::new(
        ConnectionId(n),
        client,
        local,
        None,
    )));
    flow.request.target = Target::new(&format!("host{}.example.com", n % 50), 443);
    flow.request.scheme = Scheme::Https;
    flow.request.version = HttpVersion::Http11;
    flow.upstream = Some(Arc::new(UpstreamInfo {
        address: "192.0.2.1:443".parse().unwrap(),
        via: None,
        local: client,
        tls_version: Some(TlsVersion::Tls13),
        alpn: Some(b"http/1.1".to_vec()),
        certificates: Arc::new([vec![n as u8; 1200], vec![2; 1100]]),
        unverified: false,
        connected: SystemTime::now(),
        connect_time: Duration::from_millis(5),
        handshake_time: Duration::from_millis(7),
    }));
    flow
}

/// Ends flows, as workers do, until there are so many.
fn record(store: &Store, traffic: &mut Traffic, until: u64) {
    let capture = Capture::new(store.sink(), CaptureLimits::default());
    while traffic.next < until {
        let (flow, body) = traffic.flow();
        let _ = capture.data(
            flow,
            Piece {
                direction: Direction::Response,
                data: body.as_bytes(),
                last: true,
            },
        );
        capture.end(flow, &Outcome::COMPLETED);
        if traffic.next.is_multiple_of(BATCH) {
            store.flush();
        }
    }
    store.flush();
    assert_eq!(store.stats().dropped_behind, 0);
}

fn unbounded(place: Place) -> StoreConfig {
    StoreConfig {
        max_bytes: 1 << 40,
        max_age: None,
        ..StoreConfig::new(place)
    }
}

/// The time of a batch, from the first flow that ends until all is written, for each flow. Making it counts, too.
fn insert(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Elements(1));
    group.bench_function("disk", |bencher| {
        bencher.iter_custom(|iterations| {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(unbounded(Place::Disk(folder.path().into()))).unwrap();
            let mut traffic = Traffic::from(0);
            let begin = Instant::now();
            record(&store, &mut traffic, iterations);
            begin.elapsed()
        });
    });
    group.bench_function("nothing", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut traffic = Traffic::from(0);
            let begin = Instant::now();
            for _ in 0..iterations {
                black_box(traffic.flow());
            }
            begin.elapsed()
        });
    });
    group.finish();
}

fn read(criterion: &mut Criterion) {
    let flows = std::env::var("TOLLGATE_BENCH_FLOWS").ok();
    let flows: u64 = flows.and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("flows-{flows}"));
    let store = Store::open(unbounded(Place::Disk(folder.clone()))).unwrap();
    let there = store.flows().last_number().unwrap();
    record(&store, &mut Traffic::from(there), flows);
    drop(store);
    let reader = Flows::open(&folder).unwrap();
    println!("{:?}", reader.usage().unwrap());

    let mut group = criterion.benchmark_group(format!("read/{flows}"));
    group.sample_size(20);
    group.bench_function("newest 100", |bencher| {
        bencher.iter(|| {
            let rows = reader.list(&Query::newest(100)).unwrap();
            assert_eq!(rows.len(), 100);
            black_box(rows)
        });
    });
    let mut search = |name: &str, query: Query, expected: usize| {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let rows = reader.list(&query).unwrap();
                assert_eq!(rows.len(), expected);
                black_box(rows)
            });
        });
    };
    let words = |text: &str| Query {
        words: Words::new(text),
        ..Query::newest(50)
    };
    let middle = flows / 2;
    search("words, one flow", words(&format!("item{middle}")), 1);
    search("words, many flows", words("host7 items gecko"), 50);
    search("words, none", words("nowhere"), 0);
    let filter = |text: &str, limit| Query {
        filter: Some(Filter::new(text).unwrap()),
        limit,
        ..Query::default()
    };
    search(
        "filter, newest 50",
        filter("~c 500 & ~d host0", Some(50)),
        50,
    );
    // These look at everything.
    for (name, text, expected) in [
        ("filter, by status", "~c 404", 0),
        ("filter, by host", "~d nowhere.example", 0),
        ("filter, by URL", "~u items/17[?]", 1),
        ("filter, by header", "~hs 'x-nothing: 1'", 0),
        ("filter, by body", "~bs item17,", 0),
    ] {
        search(name, filter(text, None), expected);
    }
    group.finish();
}

criterion_group!(benches, insert, read);
criterion_main!(benches);
