//! Both tiers of the scanners on clean text, whole and in the pieces of a stream.
#![allow(
    missing_docs,
    reason = "criterion's macros make public items without documentation"
)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tollgate_screen::scan::{Kind, Scanner};

/// Half code, half prose, a little JSON: what a model reads and writes.
fn text() -> Vec<u8> {
    let code = "    pub fn insert(&mut self, key: K, value: V) -> Option<V> {\n        let hash = self.hasher.hash_one(&key);\n        self.table.insert(hash, (key, value), |x| self.hash(&x.0))\n    }\n\n";
    let prose = "The proxy reads what arrives, decides where it goes, and passes it on. Where a message must be judged before it is released, only that message waits; everything else flows as it came.\n\n";
    let json = "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"Please summarise the report of the second quarter and list the open questions.\"}]}\n";
    let mut text = Vec::new();
    while text.len() < 1 << 20 {
        for (part, times) in [(code, 4), (prose, 4), (json, 2)] {
            text.extend_from_slice(part.repeat(times).as_bytes());
        }
    }
    text
}

fn clean(criterion: &mut Criterion) {
    let scanner = Scanner::builtin();
    let text = text();
    let mut group = criterion.benchmark_group("screen");
    group.throughput(Throughput::Bytes(text.len() as u64));
    for cut in [64, 2048, text.len()] {
        group.bench_function(format!("clean/{cut}"), |bench| {
            bench.iter(|| {
                let mut findings = Vec::new();
                let mut state = scanner.start(Kind::Outbound);
                for piece in text.chunks(cut) {
                    scanner.feed(&mut state, black_box(piece), &mut findings);
                }
                scanner.finish(&mut state, &mut findings);
                findings.len()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, clean);
criterion_main!(benches);
