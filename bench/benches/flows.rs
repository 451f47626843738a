//! Recorded flows: filters on a head, flow files in and out.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros make items without comments; a benchmark that can't be set up has no result"
)]

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tollgate_flow::filter::Filter;
use tollgate_flow::mitm::{FlowReader, FlowWriter};
use tollgate_flow::record::{Body, Record};
use tollgate_flow::{ConnectionId, ConnectionInfo, Flow, FlowId, Scheme, Target};
use tollgate_wire::http1::{HeadLimits, RequestHead};

const REQUEST: &[u8] = b"GET /api/v1/users?page=2&limit=50 HTTP/1.1\r\nHost: api.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: application/json, text/plain, */*\r\nAccept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\nAuthorization: Bearer 0123456789abcdef0123456789abcdef\r\n\
    Content-Type: application/json\r\nCookie: session=0123456789abcdef; theme=dark\r\n\r\n";

fn flow() -> Flow {
    let address = "127.0.0.1:50000".parse().unwrap();
    let connection = ConnectionInfo::new(ConnectionId(1), address, address, None);
    let mut flow = Flow::new(Arc::new(connection));
    flow.id = FlowId::new(SystemTime::now(), 1);
    flow.timing.started = SystemTime::now();
    let mut head = RequestHead::new();
    head.parse(REQUEST, &HeadLimits::default()).unwrap();
    flow.request.head = head;
    flow.request.target = Target::new("api.example.com", 443);
    flow.request.scheme = Scheme::Https;
    flow
}

fn filters(criterion: &mut Criterion) {
    let flow = flow();
    let mut group = criterion.benchmark_group("filter");
    for (name, expression) in [
        ("typical", "~m post | ~d example.com & ~u /api/"),
        ("url", "~u /users"),
        ("miss", "~d ads & ~m get"),
        ("header", "~hq '^authorization: bearer'"),
        ("type", "~t json & !~a"),
    ] {
        let filter = Filter::new(expression).unwrap();
        group.bench_function(name, |b| b.iter(|| filter.matches(black_box(&flow))));
    }
    group.bench_function("compile", |b| {
        b.iter(|| Filter::new(black_box("~m post | ~d example.com & ~u /api/")).unwrap());
    });
    group.finish();
}

fn record(body: usize) -> Record {
    let mut record = Record::from_flow(&flow(), None);
    if let Some(http) = record.as_http_mut() {
        http.request.message.body = Body::whole(vec![b'x'; body]);
    }
    record
}

fn files(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow-file");
    for (name, body) in [("no-body", 0), ("16KiB", 16 << 10), ("1MiB", 1 << 20)] {
        let record = record(body);
        let mut file = Vec::new();
        let mut writer = FlowWriter::new(&mut file);
        for _ in 0..(4 << 20) / (body + 4096) + 1 {
            writer.write(&record).unwrap();
        }
        group.throughput(Throughput::Bytes(file.len() as u64));
        group.bench_function(format!("read/{name}"), |b| {
            b.iter(|| {
                FlowReader::new(black_box(&file[..]))
                    .map(Result::unwrap)
                    .count()
            });
        });
        let count = FlowReader::new(&file[..]).count();
        group.bench_function(format!("write/{name}"), |b| {
            b.iter(|| {
                let mut writer = FlowWriter::new(io::sink());
                for _ in 0..count {
                    writer.write(black_box(&record)).unwrap();
                }
            });
        });
    }
    group.bench_function("record", |b| {
        let flow = flow();
        b.iter(|| Record::from_flow(black_box(&flow), None));
    });
    group.finish();
}

criterion_group!(benches, filters, files);
criterion_main!(benches);
