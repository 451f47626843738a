//! The surface of soth-mitm on HTTP/2: each stream is a connection of its own to the handler.
#![cfg(test)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use support::{Origin, Trace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tollgate::compat::soth_mitm::{
    ConnectionMeta, HandlerDecision, InterceptHandler, MitmConfig, MitmProxyBuilder, RawRequest,
    Uuid, generate_ca,
};

struct Refuse(Trace);

impl InterceptHandler for Refuse {
    fn on_connection_open(&self, connection: &ConnectionMeta) {
        self.0.add(format!("open {}", connection.connection_id));
    }

    async fn on_request(&self, request: &RawRequest) -> HandlerDecision {
        assert_eq!(request.headers["host"], "example.test");
        let id = request.connection_meta.connection_id;
        self.0.add(format!("request {id} {}", request.path));
        HandlerDecision::Block {
            status: 403,
            body: Bytes::from_static(b"no"),
        }
    }

    fn on_connection_close(&self, id: Uuid) {
        self.0.add(format!("close {id}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_blocked_before_the_origin_hears_of_them() {
    let origin = Origin::plain(|_, _| panic!("nothing was to come"));
    let trace = Trace::default();
    let mut config = MitmConfig {
        bind: "127.0.0.1:0".parse().unwrap(),
        ..MitmConfig::default()
    };
    config.interception.destinations = vec![origin.authority()];
    let handle = MitmProxyBuilder::new(config, Refuse(trace.clone()))
        .with_ca(generate_ca().unwrap())
        .build()
        .unwrap()
        .start()
        .await
        .unwrap();

    let mut stream = TcpStream::connect(handle.local_addr()).await.unwrap();
    let connect = format!(
        "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n",
        origin.authority()
    );
    stream.write_all(connect.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"));

    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut answers = Vec::new();
    for path in ["/1", "/2"] {
        let request = http::Request::post(format!("http://example.test{path}"));
        let (answer, mut body) = client
            .send_request(request.body(()).unwrap(), false)
            .unwrap();
        body.send_data(Bytes::from_static(b"secret"), true).unwrap();
        answers.push(answer);
    }
    for answer in answers {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 403);
        let mut body = answer.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "no");
    }
    drop(client);
    connection.abort();
    let calls = support::blocking(move || {
        trace.wait(|calls| calls.iter().filter(|c| c.starts_with("close")).count() == 3)
    })
    .await;
    assert_eq!(origin.requests(), []);

    let ids = |kind: &str| -> Vec<String> {
        let of_kind = calls.iter().filter(|call| call.starts_with(kind));
        let mut ids: Vec<_> = of_kind
            .map(|call| call.split(' ').nth(1).unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    };
    // The connection and two streams, each opened and closed once; requests are on the streams.
    let (opened, requests) = (ids("open"), ids("request"));
    assert_eq!(opened.len(), 3);
    assert_eq!(opened, ids("close"));
    assert_eq!(requests.len(), 2);
    assert_ne!(requests[0], requests[1]);
    assert!(requests.iter().all(|id| opened.contains(id)));
    let position = |call: String| calls.iter().position(|c| c.starts_with(&call)).unwrap();
    for id in requests {
        let order = ["open", "request", "close"].map(|kind| position(format!("{kind} {id}")));
        assert!(order.is_sorted(), "{calls:#?}");
    }
    handle.shutdown(Duration::from_secs(2)).await.unwrap();
}
