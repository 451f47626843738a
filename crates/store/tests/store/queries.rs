//! Lists, searches, following, deleting.

use std::time::Duration;

use proptest::prelude::*;
use tollgate_flow::filter::Filter;
use tollgate_flow::record::{
    Body, Content, HeaderFields, HttpExchange, HttpRequest, HttpResponse, Record, StreamMessage,
    Timestamp,
};
use tollgate_store::{Flows, Followed, Place, Query, Store, StoreConfig, StoreError, Words};

use crate::support::{everything, fill, open, record};

fn memory() -> Store {
    Store::open(StoreConfig::new(Place::Memory)).unwrap()
}

#[test]
fn what_was_recorded_is_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    for store in [memory(), open(folder.path())] {
        fill(&store, 0..500);
        let expected: Vec<_> = (0..500).map(record).collect();
        assert_eq!(everything(&store), expected);
        let usage = store.flows().usage().unwrap();
        assert_eq!(
            (usage.flows, usage.first, usage.last),
            (500, Some(1), Some(500))
        );
    }
    // And after it was closed.
    assert_eq!(everything(&open(folder.path())).len(), 500);
}

#[test]
fn filters_mean_the_same_as_on_the_records() {
    let store = memory();
    fill(&store, 0..400);
    for expression in [
        "~m POST",
        "~d b.example & ~c 404",
        "~u items/1",
        "~status 5xx | ~e",
        "~q & ~m PUT",
        "~bq number..7",
        "!~bq parity & ~all",
        "~hq token77",
        "~t plain & ~sizes >500",
        "~tcp",
    ] {
        let filter = Filter::new(expression).unwrap();
        let expected: Vec<_> = (0..400)
            .map(record)
            .filter(|record| filter.matches(record))
            .map(|record| record.id)
            .collect();
        let query = Query {
            filter: Some(filter),
            ..Query::all()
        };
        let rows = store.flows().list(&query).unwrap();
        let found: Vec<_> = rows.into_iter().map(|row| row.id).collect();
        assert_eq!(found, expected, "{expression}");
        // From the other end, and no more than asked for.
        let newest = Query {
            limit: Some(3),
            oldest_first: false,
            ..query
        };
        let rows = store.flows().list(&newest).unwrap();
        let found: Vec<_> = rows.into_iter().map(|row| row.id).collect();
        assert_eq!(
            found,
            expected.into_iter().rev().take(3).collect::<Vec<_>>()
        );
    }
}

#[test]
fn words_are_found_in_urls_headers_and_bodies() {
    let store = memory();
    fill(&store, 0..300);
    for (text, expected) in [
        ("token123", vec![123]),
        ("items 299", vec![299]),
        (
            "TOKEN29*",
            vec![299, 298, 297, 296, 295, 294, 293, 292, 291, 290, 29],
        ),
        (
            "word3 p0 b.example post",
            (0..300)
                .rev()
                .filter(|n| n % 7 == 3 && n % 2 == 0 && n % 3 == 1 && n / 3 % 3 == 1)
                .collect(),
        ),
        ("token123 token124", vec![]),
        ("nothing", vec![]),
    ] {
        let query = Query {
            words: Words::new(text),
            ..Query::default()
        };
        let rows = store.flows().list(&query).unwrap();
        let found: Vec<u64> = rows.iter().map(|row| row.seq - 1).collect();
        assert_eq!(found, expected, "{text}");
    }
    // Words and a filter together.
    let query = Query {
        words: Words::new("test"),
        filter: Some(Filter::new("~c 500").unwrap()),
        ..Query::default()
    };
    let found = store.flows().list(&query).unwrap();
    assert!(!found.is_empty() && found.iter().all(|row| row.status == Some(500)));
}

#[test]
fn words_are_found_in_what_an_older_schema_left() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    fill(&store, 0..300);
    drop(store);
    let database = rusqlite::Connection::open(folder.path().join("flows.db")).unwrap();
    database
        .execute_batch(
            "DROP TABLE word_filters; CREATE VIRTUAL TABLE words USING fts5(text, content=''); \
             PRAGMA user_version=2",
        )
        .unwrap();
    drop(database);
    let store = open(folder.path());
    fill(&store, 300..310);
    for n in [7, 299, 305] {
        let query = Query {
            words: Words::new(&format!("token{n}")),
            ..Query::default()
        };
        let rows = store.flows().list(&query).unwrap();
        assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [n + 1]);
    }
    assert!(store.stats().set_aside.is_empty());
}

#[test]
fn flows_are_found_by_number_and_by_id() {
    let store = memory();
    fill(&store, 0..30);
    let flows = store.flows();
    assert_eq!(flows.by_number(7).unwrap().unwrap().id, record(6).id);
    assert_eq!(flows.by_id(&record(6).id).unwrap().unwrap().seq, 7);
    assert_eq!(
        flows
            .by_id("00000000-0000-7000-8000-00000000001")
            .unwrap()
            .unwrap()
            .seq,
        20
    );
    assert_eq!(flows.by_id("1").unwrap(), None);
    assert_eq!(flows.by_number(31).unwrap(), None);
}

#[test]
fn a_reader_follows_while_flows_are_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    fill(&store, 0..10);
    let elsewhere = Flows::open(folder.path()).unwrap();
    std::thread::scope(|scope| {
        for flows in [store.flows(), &elsewhere] {
            scope.spawn(move || {
                let mut follow = flows.follow(5);
                for seq in 6..=2000 {
                    let next = follow.next(Duration::from_secs(60)).unwrap();
                    let Some(Followed::Flow(row)) = next else {
                        panic!("{next:?} in place of {seq}")
                    };
                    assert_eq!((row.seq, row.id), (seq, record(seq - 1).id));
                }
                assert_eq!(follow.position(), 2000);
                assert_eq!(follow.next(Duration::ZERO).unwrap(), None);
            });
        }
        fill(&store, 10..2000);
    });
}

#[test]
fn what_is_gone_is_a_gap_for_who_follows() {
    let store = memory();
    fill(&store, 0..20);
    let old = Query {
        before: Some(15),
        ..Query::all()
    };
    let mut follow = store.flows().follow(10);
    assert_eq!(store.flows().delete(&old).unwrap(), 14);
    assert_eq!(
        follow.next(Duration::ZERO).unwrap(),
        Some(Followed::Gap { missing: 4 })
    );
    let next = follow.next(Duration::ZERO).unwrap();
    assert!(matches!(next, Some(Followed::Flow(row)) if row.seq == 15));
}

#[test]
fn what_is_deleted_is_gone_from_lists_and_from_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    fill(&store, 0..300);
    let query = Query {
        filter: Some(Filter::new("~m POST").unwrap()),
        ..Query::all()
    };
    // By another process, as `tollgate flows` does.
    let elsewhere = Flows::open(folder.path()).unwrap();
    assert_eq!(elsewhere.delete(&query).unwrap(), 100);
    store.tidy();
    let rest: Vec<_> = (0..300).filter(|n| n % 3 != 1).map(record).collect();
    assert_eq!(everything(&store), rest);
    let words = |text| Query {
        words: Words::new(text),
        ..Query::default()
    };
    assert!(store.flows().list(&words("token1")).unwrap().is_empty());
    assert_eq!(store.flows().list(&words("token2")).unwrap().len(), 1);
    assert_eq!(store.flows().usage().unwrap().flows, 200);
    // What is left is what the segments hold, too: a new database is made of them.
    drop(store);
    std::fs::remove_file(folder.path().join("flows.db")).unwrap();
    let again = open(folder.path());
    assert_eq!(everything(&again), rest);
    assert_eq!(again.flows().delete(&Query::all()).unwrap(), 200);
    again.tidy();
    assert_eq!(again.flows().usage().unwrap().flows, 0);
    // Numbers are not given twice.
    fill(&again, 0..1);
    assert_eq!(again.flows().list(&Query::all()).unwrap()[0].seq, 301);
}

#[test]
fn a_reader_that_outlives_the_store_sees_what_the_next_one_records() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    fill(&store, 0..3);
    let elsewhere = Flows::open(folder.path()).unwrap();
    let ids = || -> Vec<String> {
        let rows = elsewhere.list(&Query::all()).unwrap();
        rows.into_iter().map(|row| row.id).collect()
    };
    assert_eq!(ids().len(), 3);
    assert_eq!(store.flows().delete(&Query::all()).unwrap(), 3);
    store.tidy();
    drop(store);
    // Its first block has the number of the one that the reader has still at hand.
    let store = open(folder.path());
    fill(&store, 10..12);
    assert_eq!(ids(), [record(10).id, record(11).id]);
}

#[test]
fn a_folder_has_one_recorder_and_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("a/b");
    assert!(matches!(Flows::open(&inside), Err(StoreError::Missing(_))));
    let store = open(&inside);
    fill(&store, 0..3);
    assert!(matches!(
        Store::open(crate::support::config(&inside)),
        Err(StoreError::InUse(_))
    ));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&inside), 0o700);
        let mut files = 0;
        for entry in std::fs::read_dir(&inside).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            files += 1;
        }
        assert!(files >= 4, "{files}");
    }
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Body::whole),
        (prop::collection::vec(any::<u8>(), 0..50), 51..9999u64)
            .prop_map(|(data, size)| Body::kept(data, size)),
        (1..9999u64).prop_map(Body::not_kept),
    ]
}

fn fields() -> impl Strategy<Value = HeaderFields> {
    let part = || prop::collection::vec(any::<u8>(), 0..20);
    prop::collection::vec((part(), part()), 0..4).prop_map(|list| {
        let mut fields = HeaderFields::new();
        for (name, value) in list {
            fields.push(name, value);
        }
        fields
    })
}

fn any_record() -> impl Strategy<Value = Record> {
    let http = (
        fields(),
        body(),
        prop::option::of((fields(), body(), 100..600u16)),
        "[a-zé/?%]{0,20}",
    )
        .prop_map(|(headers, body, response, path)| {
            let mut request = HttpRequest::new("GET", "https", "héhé.example", 443, &path);
            request.message.headers = headers;
            request.message.body = body;
            let mut exchange = HttpExchange::new(request);
            exchange.response = response.map(|(headers, body, status)| {
                let mut response = HttpResponse::new(status, "Fine");
                response.message.headers = headers;
                response.message.body = body;
                response
            });
            Content::Http(Box::new(exchange))
        });
    let message = (
        any::<bool>(),
        prop::collection::vec(any::<u8>(), 0..50),
        any::<i32>(),
    );
    let tcp = prop::collection::vec(message, 0..5).prop_map(|messages| {
        let message = |(from_client, content, time): (bool, Vec<u8>, i32)| StreamMessage {
            from_client,
            content: content.into(),
            timestamp: Timestamp::new(f64::from(time) / 64.0),
        };
        Content::Tcp(messages.into_iter().map(message).collect())
    });
    (prop_oneof![3 => http, 1 => tcp], 0..u32::MAX, ".{0,10}").prop_map(
        |(content, time, comment)| {
            let now = std::time::SystemTime::now();
            let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as f64;
            let created = Timestamp::new(now - f64::from(time) / f64::from(u32::MAX));
            let mut record = Record::new("an id", created, content);
            record.comment = comment;
            record
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_record_comes_back(records in prop::collection::vec(any_record(), 1..40)) {
        let store = memory();
        for record in &records {
            store.sink().record(record.clone()).unwrap();
        }
        store.flush();
        prop_assert_eq!(everything(&store), records);
    }
}
