//! Flow files against what mitmproxy wrote: `data/flows.mitm`, made by `data/generate.py`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests assert as tests do"
)]

use tollgate_flow::mitm::{FlowReader, FlowWriter, ReadErrorKind};
use tollgate_flow::record::Record;

const FILE: &[u8] = include_bytes!("data/flows.mitm");

fn read(file: &[u8]) -> Vec<Record> {
    FlowReader::new(file).collect::<Result<_, _>>().unwrap()
}

fn written(records: &[Record]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut writer = FlowWriter::new(&mut file);
    for record in records {
        writer.write(record).unwrap();
    }
    file
}

#[test]
fn what_mitmproxy_wrote_is_written_back_byte_for_byte() {
    let flows = read(FILE);
    assert_eq!(flows.len(), 17);
    let again = written(&flows);
    if again != FILE {
        let at = again
            .iter()
            .zip(FILE)
            .position(|(a, b)| a != b)
            .unwrap_or(FILE.len());
        let show = |file: &[u8]| {
            let part = &file[at.saturating_sub(100)..(at + 60).min(file.len())];
            String::from_utf8_lossy(part).into_owned()
        };
        panic!(
            "from byte {at}:\n{}\nbut mitmproxy wrote\n{}",
            show(&again),
            show(FILE)
        );
    }
    assert_eq!(read(&again), flows);
}

#[test]
fn a_file_that_is_cut_anywhere_yields_its_good_flows_and_says_where_it_broke() {
    let first = &FILE[..ends_of_flows()[0]];
    let mut begin = 0;
    for end in ends_of_flows() {
        let flow = &FILE[begin..end];
        begin = end;
        for cut in 0..flow.len() {
            let file = [first, &flow[..cut]].concat();
            let mut reader = FlowReader::new(&file[..]);
            reader.next().unwrap().unwrap();
            if cut == 0 {
                assert!(reader.next().is_none());
                continue;
            }
            let error = reader.next().unwrap().unwrap_err();
            assert_eq!(
                (error.offset, error.flows),
                (first.len() as u64, 1),
                "cut at {cut}"
            );
            let file_end = file.len() as u64;
            assert!(
                matches!(error.kind, ReadErrorKind::Truncated { end } if end == file_end),
                "{error}"
            );
            assert!(!error.is_about_one_flow());
            assert!(reader.next().is_none());
        }
    }
}

fn ends_of_flows() -> Vec<usize> {
    let mut reader = FlowReader::new(FILE);
    let mut ends = Vec::new();
    while let Some(flow) = reader.next() {
        flow.unwrap();
        ends.push(reader.offset() as usize);
    }
    ends
}

/// Every byte of a flow changed, one by one: a flow, or a typed error, and never a panic.
#[test]
fn a_damaged_byte_is_never_more_than_an_error() {
    let ends = ends_of_flows();
    let rich = &FILE[ends[9]..ends[10]];
    for at in 0..rich.len() {
        for byte in [b'0', b'9', b':', b'}', b'~', 0, 0xff] {
            let mut damaged = rich.to_vec();
            damaged[at] = byte;
            damaged.extend_from_slice(&FILE[..ends[0]]);
            for flow in FlowReader::new(&damaged[..]).max_flow_bytes(1 << 20) {
                let _ = flow.map_err(|error| error.to_string());
            }
        }
    }
}

#[test]
fn other_files_are_told_apart() {
    let error = |file: &[u8]| {
        FlowReader::new(file)
            .next()
            .unwrap()
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(b"{\"log\": {}}"),
        "byte 0: this is not a flow file of mitmproxy"
    );
    assert_eq!(
        error(b"\x7fELF"),
        "byte 0: this is not a flow file of mitmproxy"
    );
    assert_eq!(error(b":"), "byte 0: this is not a flow file of mitmproxy");
    assert_eq!(
        error(b"1:1#"),
        "byte 0: what begins here is no flow, but something else that mitmproxy could have written"
    );
    assert_eq!(
        error(b"0:}"),
        "byte 0: what begins here is no flow: it has no format version"
    );
    assert_eq!(
        error(b"999999999999:"),
        "byte 0: the flow that begins here has 999999999999 bytes; the limit is 1073741824"
    );
    assert_eq!(
        error(b"10:3:abc,1:x?]"),
        "byte 11: the file is damaged here: a type is unknown"
    );
    assert!(FlowReader::new(&b""[..]).next().is_none());
    // mitmproxy 0.18 wrote tuples.
    let old = b"35:7:version;13:1:0#2:18#1:2#]4:type;4:http;}";
    let old = old.strip_prefix(b"35").unwrap();
    let old = [(old.len() - 2).to_string().as_bytes(), old].concat();
    assert_eq!(
        error(&old),
        "byte 0: the flow has format version 0.18.2; Tollgate reads versions 7 to 21 (mitmproxy 5 and later can upgrade it)"
    );
}

/// The first flow with an edit; lengths are put right.
fn edited(from: &str, to: &str) -> Vec<u8> {
    let flow = &FILE[..ends_of_flows()[0]];
    let text = String::from_utf8(flow.to_vec()).unwrap();
    let (_, body) = text.split_once(':').unwrap();
    assert!(body.contains(from), "{from}");
    let body = body.replacen(from, to, 1);
    format!("{}:{body}", body.len() - 1).into_bytes()
}

#[test]
fn a_newer_version_is_an_error_about_one_flow() {
    let mut file = edited("7:version;2:21#", "7:version;2:22#");
    file.extend_from_slice(FILE);
    let mut reader = FlowReader::new(&file[..]);
    let error = reader.next().unwrap().unwrap_err();
    assert!(matches!(error.kind, ReadErrorKind::TooNew(22)));
    assert!(error.is_about_one_flow());
    assert_eq!(reader.filter(Result::is_ok).count(), 17);
}

#[test]
fn unknown_keys_are_passed_over_and_named() {
    let file = edited("7:version;2:21#", "5:extra;2:ab;7:version;2:21#");
    let mut reader = FlowReader::new(&file[..]);
    let flow = reader.next().unwrap().unwrap();
    assert_eq!(reader.unknown_keys().collect::<Vec<_>>(), ["extra"]);
    assert_eq!(flow, read(FILE)[0]);
}

#[test]
fn what_is_missing_or_wrong_is_named_by_its_path() {
    let error = |from: &str, to: &str| {
        let file = edited(from, to);
        let result = FlowReader::new(&file[..]).next().unwrap();
        result.unwrap_err().to_string()
    };
    assert_eq!(
        error("4:type;4:http;", ""),
        "byte 0: `type` in the flow: expected text, found nothing at all"
    );
    assert_eq!(
        error("4:type;4:http;", "4:type;4:smtp;"),
        "byte 0: the flow is of an unknown type, \"smtp\""
    );
    assert_eq!(
        error("4:port;2:22#", "4:port;2:no;"),
        "byte 0: `request.port` in the flow: expected an integer, found text"
    );
    assert_eq!(
        error("6:marked;0:;", "6:marked;0:~"),
        "byte 0: `marked` in the flow: expected text, found nothing"
    );
}

mod records {
    //! Records of any content come back as they were.

    use super::{read, written};
    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::option::of;
    use proptest::prelude::*;
    use std::time::Duration;
    use tollgate_flow::record::*;
    use tollgate_flow::{PieceMark, Value};

    fn bytes() -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..20).prop_map(Bytes::from)
    }

    fn moment() -> impl Strategy<Value = Timestamp> {
        prop_oneof![
            (0f64..2e9).prop_map(Timestamp::new),
            (0i64..2_000_000_000).prop_map(Timestamp::integer),
        ]
    }

    fn float() -> impl Strategy<Value = Timestamp> {
        (0f64..2e9).prop_map(Timestamp::new)
    }

    fn headers() -> impl Strategy<Value = HeaderFields> {
        vec((bytes(), bytes()), 0..4).prop_map(HeaderFields)
    }

    fn body() -> impl Strategy<Value = Body> {
        prop_oneof![
            bytes().prop_map(Body::whole),
            (bytes(), 21u64..9999).prop_map(|(data, size)| Body::kept(data, size)),
            (0u64..9999).prop_map(Body::not_kept),
        ]
    }

    fn message() -> impl Strategy<Value = HttpMessage> {
        (
            bytes(),
            headers(),
            body(),
            of(headers()),
            moment(),
            of(moment()),
        )
            .prop_map(
                |(version, headers, body, trailers, started, ended)| HttpMessage {
                    version,
                    headers,
                    body,
                    trailers,
                    started,
                    ended,
                },
            )
    }

    fn request() -> impl Strategy<Value = HttpRequest> {
        (
            bytes(),
            bytes(),
            bytes(),
            bytes(),
            "\\PC*",
            any::<u16>(),
            message(),
        )
            .prop_map(|(method, scheme, authority, path, host, port, message)| {
                HttpRequest {
                    method,
                    scheme,
                    authority,
                    path,
                    host,
                    port,
                    message,
                }
            })
    }

    fn response() -> impl Strategy<Value = HttpResponse> {
        (any::<u16>(), bytes(), message()).prop_map(|(status, reason, message)| HttpResponse {
            status,
            reason,
            message,
        })
    }

    fn websocket() -> impl Strategy<Value = WebSocketData> {
        let message = (
            any::<u8>(),
            any::<bool>(),
            bytes(),
            moment(),
            any::<bool>(),
            any::<bool>(),
        );
        let message = message.prop_map(
            |(opcode, from_client, content, timestamp, dropped, injected)| WebSocketMessage {
                opcode,
                from_client,
                content,
                timestamp,
                dropped,
                injected,
            },
        );
        (
            vec(message, 0..4),
            of(any::<bool>()),
            of(any::<u16>()),
            of("\\PC*"),
            of(float()),
        )
            .prop_map(
                |(messages, closed_by_client, close_code, close_reason, timestamp_end)| {
                    WebSocketData {
                        messages,
                        closed_by_client,
                        close_code,
                        close_reason,
                        timestamp_end,
                    }
                },
            )
    }

    fn stream() -> impl Strategy<Value = Vec<StreamMessage>> {
        let message = (any::<bool>(), bytes(), moment());
        let message = message.prop_map(|(from_client, content, timestamp)| StreamMessage {
            from_client,
            content,
            timestamp,
        });
        vec(message, 0..4)
    }

    fn dns() -> impl Strategy<Value = DnsMessage> {
        let question = ("\\PC*", any::<u16>(), any::<u16>());
        let question = question.prop_map(|(name, kind, class)| Question { name, kind, class });
        let record = ("\\PC*", any::<u16>(), any::<u16>(), any::<u32>(), bytes());
        let record = record.prop_map(|(name, kind, class, ttl, data)| ResourceRecord {
            name,
            kind,
            class,
            ttl,
            data,
        });
        (
            any::<[u16; 4]>(),
            any::<[bool; 5]>(),
            vec(question, 0..3),
            vec(record, 0..3),
            of(float()),
        )
            .prop_map(
                |(numbers, flags, questions, answers, timestamp)| DnsMessage {
                    id: numbers[0],
                    query: flags[0],
                    op_code: numbers[1],
                    authoritative_answer: flags[1],
                    truncation: flags[2],
                    recursion_desired: flags[3],
                    recursion_available: flags[4],
                    reserved: numbers[2],
                    response_code: numbers[3],
                    questions,
                    authorities: answers.iter().rev().cloned().collect(),
                    additionals: answers.iter().take(1).cloned().collect(),
                    answers,
                    timestamp,
                },
            )
    }

    fn content() -> impl Strategy<Value = Content> {
        prop_oneof![
            (request(), of(response()), of(websocket())).prop_map(
                |(request, response, websocket)| {
                    Content::Http(Box::new(HttpExchange {
                        request,
                        response,
                        websocket,
                    }))
                }
            ),
            stream().prop_map(Content::Tcp),
            stream().prop_map(Content::Udp),
            (dns(), of(dns())).prop_map(|(request, response)| {
                Content::Dns(Box::new(DnsExchange { request, response }))
            }),
        ]
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<u64>().prop_map(Value::from),
            (-1e300f64..1e300).prop_map(Value::Float),
            bytes().prop_map(Value::Bytes),
            "\\PC*".prop_map(Value::Str),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Value::List),
                vec(("[a-z]{1,3}".prop_map(Value::Str), inner), 0..4).prop_map(Value::Dict),
            ]
        })
    }

    fn address() -> impl Strategy<Value = Address> {
        (
            "\\PC*",
            any::<u16>(),
            prop_oneof![Just(vec![]), vec(any::<u32>(), 2)],
        )
            .prop_map(|(host, port, rest)| Address { host, port, rest })
    }

    fn connection() -> impl Strategy<Value = Connection> {
        let identity = (
            "\\PC*",
            of(address()),
            of(address()),
            any::<bool>(),
            of("\\PC*"),
        );
        let tls = (
            any::<bool>(),
            vec(bytes(), 0..2),
            of(bytes()),
            vec(bytes(), 0..3),
            of("[A-Z]*"),
            vec("[A-Z]*", 0..3),
            of("TLSv1.[23]"),
            of("\\PC*"),
        );
        (identity, tls, of(float()), of(float()), of(float())).prop_map(
            |((id, peername, sockname, udp, error), tls, start, setup, end)| Connection {
                id,
                peername,
                sockname,
                transport_protocol: if udp { Transport::Udp } else { Transport::Tcp },
                error,
                tls: tls.0,
                certificates: Certificates::Pem(tls.1),
                alpn: tls.2,
                alpn_offers: tls.3,
                cipher: tls.4,
                cipher_list: tls.5,
                tls_version: tls.6,
                sni: tls.7,
                timestamp_start: start,
                timestamp_tls_setup: setup,
                timestamp_end: end,
            },
        )
    }

    prop_compose! {
        fn record()(
            content in content(),
            client in connection(),
            server in connection(),
            address in of(address()),
            via in of(("[a-z]+", address())),
            error in of(("\\PC*", float())),
            flags in any::<(bool, u8)>(),
            words in ("[0-9a-f-]{36}", "\\PC*", "\\PC*"),
            metadata in vec(("[a-z]{4,8}".prop_map(Value::Str), value()), 0..3),
            backup in of(value().prop_filter("none is none", |value| *value != Value::Null)),
            ja4 in of("[a-z0-9_]+"),
            pieces in vec((any::<u32>(), any::<u32>()), 0..4),
            created in moment(),
        ) -> Record {
            let mut record = Record::new(words.0, created, content);
            record.marked = words.1;
            record.comment = words.2;
            record.client.common = client;
            record.server.common = server;
            record.server.address = address;
            record.server.via = via.map(|(scheme, address)| Via { scheme, address });
            record.error = error.map(|(message, timestamp)| RecordError { message, timestamp });
            record.intercepted = flags.0;
            record.replay = match flags.1 % 3 {
                0 => None,
                1 => Some(Replay::Request),
                _ => Some(Replay::Response),
            };
            record.metadata = Metadata(metadata);
            record.backup = backup.map(Box::new);
            record.facts.ja4 = ja4;
            record.facts.response_pieces = pieces
                .into_iter()
                .map(|(bytes, micros)| PieceMark {
                    bytes: bytes as usize,
                    at: Duration::from_micros(micros.into()),
                })
                .collect();
            record
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn come_back_as_they_were(records in vec(record(), 0..4)) {
            let file = written(&records);
            prop_assert_eq!(&read(&file), &records);
            prop_assert_eq!(written(&read(&file)), file);
        }
    }
}

/// Files of old versions, each with what mitmproxy 12 makes of it: made by `data/generate_old.py`.
#[test]
fn old_versions_are_upgraded_as_mitmproxy_upgrades_them() {
    macro_rules! pair {
        ($version:literal) => {
            (
                $version,
                &include_bytes!(concat!("data/old-", $version, ".mitm"))[..],
                &include_bytes!(concat!("data/old-", $version, ".upgraded.mitm"))[..],
            )
        };
    }
    for (version, old, upgraded) in [
        pair!("7"),
        pair!("10"),
        pair!("14"),
        pair!("17"),
        pair!("18"),
        pair!("20"),
    ] {
        let mut reader = FlowReader::new(old);
        let ours: Vec<Record> = reader.by_ref().collect::<Result<_, _>>().unwrap();
        assert_eq!(
            reader.unknown_keys().collect::<Vec<_>>(),
            [""; 0],
            "version {version}"
        );
        let theirs = read(upgraded);
        // mitmproxy itself fails at TCP flows of format 11 and older, which come last.
        let readable = theirs.len();
        assert!(
            readable >= 4 && ours.len() - readable <= 1,
            "version {version}"
        );
        // mitmproxy turns the order of metadata round whenever it writes what it has read.
        let sorted = |record: &Record| {
            let mut record = record.clone();
            let key = |(key, _): &(tollgate_flow::Value, _)| format!("{key:?}");
            record.metadata.0.sort_by_key(key);
            record
        };
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(sorted(ours), sorted(theirs), "version {version}");
        }
        assert!(matches!(
            ours.last().unwrap().flow_type(),
            tollgate_flow::record::FlowType::Tcp
        ));
    }
}
