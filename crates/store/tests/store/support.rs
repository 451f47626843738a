//! Flows to record.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tollgate_flow::record::{
    Body, HttpExchange, HttpRequest, HttpResponse, Record, RecordError, Timestamp,
};
use tollgate_store::{Place, Query, Store, StoreConfig};

pub fn config(folder: &Path) -> StoreConfig {
    StoreConfig::new(Place::Disk(folder.to_owned()))
}

pub fn open(folder: &Path) -> Store {
    Store::open(config(folder)).unwrap()
}

/// The flow of a number: always the same, and each different.
pub fn record(n: u64) -> Record {
    let method = ["GET", "POST", "PUT"][(n % 3) as usize];
    let host = ["a.example", "b.example", "c.test"][(n / 3 % 3) as usize];
    let path = format!("/items/{n}?q=word{}", n % 7);
    let mut request = HttpRequest::new(method, "https", host, 443, &path);
    let message = &mut request.message;
    message.headers.push("Host", host);
    message.headers.push("User-Agent", "test/1");
    message
        .headers
        .push("Authorization", format!("Bearer token{n}"));
    message.body = Body::whole(format!("{{\"number\":{n},\"parity\":\"p{}\"}}", n % 2));
    message.started = now();
    let mut exchange = HttpExchange::new(request);
    if n % 5 != 4 {
        let status = [200, 404, 500][(n % 4 % 3) as usize];
        let mut response = HttpResponse::new(status, "");
        response.message.headers.push("Content-Type", "text/plain");
        response.message.body = Body::kept(noise(n, 200), 200 + n % 2 * 1000);
        response.message.started = now();
        response.message.ended = Some(now());
        exchange.response = Some(response);
    }
    let mut record = Record::http(format!("00000000-0000-7000-8000-{n:012}"), exchange);
    record.created = now();
    if n % 5 == 4 {
        record.error = Some(RecordError {
            message: "upstream: reset".to_owned(),
            timestamp: Timestamp::new(1.5),
        });
    }
    record
}

/// The same for every call, so that records of one number are equal.
fn now() -> Timestamp {
    let day = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
        / 86_400;
    Timestamp::new((day * 86_400) as f64 + 0.25)
}

/// Text that doesn't compress.
pub fn noise(seed: u64, length: usize) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::with_capacity(length);
    while text.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push(char::from(b'a' + (state % 26) as u8));
    }
    text
}

pub fn fill(store: &Store, numbers: std::ops::Range<u64>) {
    let sink = store.sink();
    for n in numbers {
        sink.record(record(n)).unwrap();
        if n % 1000 == 999 {
            store.flush();
        }
    }
    store.flush();
}

/// Every flow, read whole.
pub fn everything(store: &Store) -> Vec<Record> {
    let rows = store.flows().list(&Query::all()).unwrap();
    rows.iter()
        .map(|row| store.flows().read(row).unwrap().unwrap())
        .collect()
}

/// Only those that can be read.
pub fn readable(store: &Store) -> Vec<Record> {
    let rows = store.flows().list(&Query::all()).unwrap();
    rows.iter()
        .filter_map(|row| store.flows().read(row).ok().flatten())
        .collect()
}

pub fn day() -> Duration {
    Duration::from_secs(86_400)
}
