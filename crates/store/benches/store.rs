//! What recording costs, and what reading takes.
//!
//! `TOLLGATE_BENCH_FLOWS=1000000 cargo bench -p tollgate-store` lists and searches a store of a million flows; without
//! the variable it has 20 000. Making it takes a while, so it is kept in the target folder.
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
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tollgate_flow::filter::Filter;
use tollgate_flow::record::{Body, HttpExchange, HttpRequest, HttpResponse, Record, Timestamp};
use tollgate_store::{Flows, Place, Query, Store, StoreConfig, Words};

fn flow(n: u64) -> Record {
    let host = format!("host{}.example.com", n % 50);
    let mut request = HttpRequest::new(
        "GET",
        "https",
        &host,
        443,
        &format!("/api/v1/items/{n}?page={}", n % 9),
    );
    for (name, value) in [
        ("Host", host.as_str()),
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
        request
            .message
            .headers
            .push(name.to_owned(), value.to_owned());
    }
    request.message.started = Timestamp::new(1_790_000_000.0 + n as f64 / 1000.0);
    let mut response = HttpResponse::new(if n.is_multiple_of(100) { 500 } else { 200 }, "OK");
    for (name, value) in [
        ("Content-Type", "application/json"),
        ("Server", "nginx"),
        ("Cache-Control", "no-store"),
    ] {
        response.message.headers.push(name, value);
    }
    let mut body = format!("{{\"id\":{n},\"name\":\"item{n}\",\"values\":[");
    for i in 0..100 {
        body.push_str(&format!("{},", n.wrapping_mul(i + 7) % 1000));
    }
    body.push_str("0]}");
    response.message.body = Body::whole(body);
    response.message.ended = Some(request.message.started.after(Duration::from_millis(3)));
    let mut exchange = HttpExchange::new(request);
    exchange.response = Some(response);
    Record::http(
        format!("0190{:04x}-{:04x}-7000-8000-{n:012x}", n >> 16, n & 0xffff),
        exchange,
    )
}

fn unbounded(place: Place) -> StoreConfig {
    StoreConfig {
        max_bytes: 1 << 40,
        max_age: None,
        ..StoreConfig::new(place)
    }
}

fn fill(store: &Store, flows: impl Iterator<Item = Record>) {
    let sink = store.sink();
    for record in flows {
        let mut record = Some(record);
        while let Some(one) = record.take() {
            if sink.record(one.clone()).is_err() {
                store.flush();
                record = Some(one);
            }
        }
    }
    store.flush();
}

/// The time of a whole batch, from the first push until all is written, for each flow.
fn insert(criterion: &mut Criterion) {
    let flows: Vec<Record> = (0..10_000).map(flow).collect();
    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Elements(1));
    group.bench_function("disk", |bencher| {
        bencher.iter_custom(|iterations| {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(unbounded(Place::Disk(folder.path().into()))).unwrap();
            let begin = Instant::now();
            let all = flows.iter().cycle().take(iterations as usize);
            fill(&store, all.cloned());
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
    fill(&store, (there..flows).map(flow));
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
    let filter = Query {
        filter: Some(Filter::new("~c 500 & ~d host0").unwrap()),
        ..Query::newest(50)
    };
    search("filter, newest 50", filter, 50);
    group.finish();
}

criterion_group!(benches, insert, read);
criterion_main!(benches);
