//! Times every case of the list: `cargo bench -p tollgate-bench --bench cases [-- FILTER]`.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tollgate_bench::CASES;

fn cases(criterion: &mut Criterion) {
    for case in CASES {
        let (part, operation) = case.name.split_once('/').unwrap_or(("", case.name));
        let mut group = criterion.benchmark_group(part);
        if case.bytes > 0 {
            group.throughput(Throughput::Bytes(case.bytes));
        }
        group.bench_function(operation, |bencher| bencher.iter((case.prepare)()));
        group.finish();
    }
}

criterion_group!(benches, cases);
criterion_main!(benches);
