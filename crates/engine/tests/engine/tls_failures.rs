//! Handshakes that fail, on either side: what the client is told, what the hook and the counters say.

use std::io::ErrorKind;
use std::time::Duration;

use tollgate_engine::HostPattern;
use tollgate_flow::{CertificateProblem, ErrorClass, Interest, Side, TlsDecision, TlsFailureKind};

use crate::support::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

const BAD: &[(Identity, CertificateProblem)] = &[
    (Identity::Expired, CertificateProblem::Expired),
    (Identity::NotYetValid, CertificateProblem::NotYetValid),
    (Identity::WrongHost, CertificateProblem::WrongHost),
    (Identity::SelfSigned, CertificateProblem::SelfSigned),
    (Identity::UnknownIssuer, CertificateProblem::UnknownIssuer),
];

#[test]
fn an_origin_that_does_not_verify_is_a_502_that_says_which_side_and_why() {
    for (identity, problem) in BAD {
        let origin = Origin::echo_path(*identity);
        let recorder = Recorder::new(Interest::END);
        let proxy = start_with(config(), [recorder.clone()]);
        // The client's own handshake succeeds: it is told in HTTP.
        let mut client = proxy.tls(&origin);
        for _ in 0..2 {
            let response = client.exchange(GET).unwrap();
            assert_eq!(response.status(), 502, "{identity:?}");
            let text = response.text();
            assert!(text.contains("upstream"), "{text}");
            assert!(text.contains(&problem.to_string()), "{text}");
            let status = response.header("proxy-status").unwrap();
            assert!(status.contains("tls_certificate_error"), "{status}");
        }
        for outcome in recorder.ends(2) {
            let error = outcome.error.unwrap();
            assert_eq!((error.side, error.class), (Side::Upstream, ErrorClass::Tls));
        }
        // Two requests, but one handshake, and one failure of it.
        let failures = recorder.tls_failures(1);
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].side, Side::Upstream);
        assert_eq!(
            failures[0].kind,
            TlsFailureKind::OriginCertificate(*problem)
        );
        assert_eq!(&*failures[0].host, "localhost");
        assert_eq!(
            proxy.metrics().tls_failures,
            [("upstream", problem.code(), 1)]
        );
        assert_eq!(origin.received_all(), b"");
    }
}

#[test]
fn an_exception_lets_a_bad_certificate_pass_and_reports_it() {
    for (identity, _) in BAD {
        for insecure in [false, true] {
            let origin = Origin::echo_path(*identity);
            let recorder = Recorder::new(Interest::END);
            let mut config = config();
            if insecure {
                config.tls.insecure = true;
            } else {
                config.tls.insecure_hosts = vec![HostPattern::new("localhost").unwrap()];
            }
            let proxy = start_with(config, [recorder.clone()]);
            let mut client = proxy.tls(&origin);
            assert_eq!(client.exchange(GET).unwrap().status(), 200);
            let upstream = recorder.wait(1, |event| match event {
                Event::End(_, _, upstream) => upstream.clone(),
                _ => None,
            });
            assert!(upstream[0].unverified, "{identity:?}");
            assert_eq!(proxy.metrics().unverified_upstreams, 1);
            assert_eq!(recorder.tls_failures(0).len(), 0);
        }
    }
}

#[test]
fn an_exception_for_another_host_is_none() {
    let origin = Origin::echo_path(Identity::SelfSigned);
    let mut config = config();
    config.tls.insecure_hosts = vec![HostPattern::new("*.example.com").unwrap()];
    let proxy = start(config);
    assert_eq!(proxy.tls(&origin).exchange(GET).unwrap().status(), 502);
}

#[test]
fn a_certificate_that_verifies_is_not_reported_as_unverified() {
    let origin = Origin::echo_path(Identity::Good);
    let recorder = Recorder::new(Interest::END);
    let mut config = config();
    config.tls.insecure = true;
    let proxy = start_with(config, [recorder.clone()]);
    proxy.tls(&origin).exchange(GET).unwrap();
    let upstream = recorder.wait(1, |event| match event {
        Event::End(_, _, upstream) => upstream.clone(),
        _ => None,
    });
    assert!(!upstream[0].unverified);
    assert_eq!(proxy.metrics().unverified_upstreams, 0);
}

#[test]
fn an_origin_that_hangs_up_in_its_handshake_is_a_502() {
    // It accepts, and closes as soon as it was greeted.
    let origin = Origin::script(Identity::Plain, |wire, _| {
        wire.fill()?;
        Ok(())
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let response = proxy.tls(&origin).exchange(GET).unwrap();
    assert_eq!(response.status(), 502);
    let failures = recorder.tls_failures(1);
    assert_eq!(
        (failures.len(), failures[0].side, failures[0].kind),
        (1, Side::Upstream, TlsFailureKind::Reset)
    );
}

#[test]
fn an_origin_that_does_not_speak_tls_is_a_502() {
    let origin = Origin::script(Identity::Plain, |wire, _| {
        wire.fill()?;
        wire.send("HTTP/1.1 400 Bad Request\r\n\r\n")?;
        wire.read_to_end();
        Ok(())
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let response = proxy.tls(&origin).exchange(GET).unwrap();
    assert_eq!(response.status(), 502);
    let failures = recorder.tls_failures(1);
    assert_eq!(
        (failures.len(), failures[0].kind),
        (1, TlsFailureKind::Protocol)
    );
}

#[test]
fn an_origin_that_is_silent_in_its_handshake_is_a_504() {
    let origin = Origin::script(Identity::Plain, |wire, _| {
        wire.read_to_end();
        Ok(())
    });
    let recorder = Recorder::new(Interest::END);
    let mut config = config();
    config.timeouts.handshake = SHORT;
    let proxy = start_with(config, [recorder.clone()]);
    let response = proxy.tls(&origin).exchange(GET).unwrap();
    assert_eq!(response.status(), 504);
    let failures = recorder.tls_failures(1);
    assert_eq!(
        (failures.len(), failures[0].side, failures[0].kind),
        (1, Side::Upstream, TlsFailureKind::Timeout)
    );
}

#[test]
fn a_client_that_does_not_trust_us_is_named_so() {
    let origin = Origin::echo_path(Identity::Good);
    for versions in [&[&rustls::version::TLS13], &[&rustls::version::TLS12]] {
        let recorder = Recorder::new(Interest::END);
        let proxy = start_with(config(), [recorder.clone()]);
        let foreign = origin_authority().authority.cert_der().clone();
        let trust = client_config_with(&[foreign], versions);
        let wire = proxy.tunnel(&origin.authority());
        assert!(wire.tls_client(trust.into(), "localhost").is_err());
        recorder.closed(1);
        let failures = recorder.tls_failures(1);
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].side, Side::Client);
        assert_eq!(failures[0].kind, TlsFailureKind::UnknownAuthority);
        assert_eq!(proxy.metrics().tls_failures, [("client", "unknown_ca", 1)]);
    }
}

#[test]
fn a_client_that_hangs_up_after_our_certificate_is_pinned() {
    let origin = Origin::echo_path(Identity::Good);
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut wire = proxy.tunnel(&origin.authority());
    wire.send(client_hello()).unwrap();
    wire.fill().unwrap();
    wire.finish();
    recorder.closed(1);
    let failures = recorder.tls_failures(1);
    assert_eq!(
        (failures.len(), failures[0].side, failures[0].kind),
        (1, Side::Client, TlsFailureKind::Pinned)
    );
}

#[test]
fn a_client_that_hangs_up_before_it_was_answered_is_not_pinned() {
    let origin = Origin::echo_path(Identity::Good);
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut wire = proxy.tunnel(&origin.authority());
    let hello = client_hello();
    wire.send(&hello[..hello.len() / 2]).unwrap();
    drop(wire);
    recorder.closed(1);
    let failures = recorder.tls_failures(1);
    assert_eq!(
        (failures.len(), failures[0].side, failures[0].kind),
        (1, Side::Client, TlsFailureKind::Reset)
    );
}

#[test]
fn a_client_that_stops_in_its_hello_is_let_go() {
    let origin = Origin::echo_path(Identity::Good);
    let recorder = Recorder::new(Interest::END);
    let mut config = config();
    config.timeouts.first_bytes = SHORT;
    let proxy = start_with(config, [recorder.clone()]);
    let mut wire = proxy.tunnel(&origin.authority());
    wire.send(&client_hello()[..40]).unwrap();
    assert_eq!(wire.read_to_end().0, b"");
    let failures = recorder.tls_failures(1);
    assert_eq!(failures[0].kind, TlsFailureKind::Timeout);
}

#[test]
fn a_client_that_stops_in_its_handshake_is_let_go() {
    let origin = Origin::echo_path(Identity::Good);
    let recorder = Recorder::new(Interest::END);
    let mut config = config();
    config.timeouts.handshake = Duration::from_millis(300);
    let proxy = start_with(config, [recorder.clone()]);
    let mut wire = proxy.tunnel(&origin.authority());
    wire.send(client_hello()).unwrap();
    wire.read_to_end();
    let failures = recorder.tls_failures(1);
    assert_eq!(
        (failures[0].side, failures[0].kind),
        (Side::Client, TlsFailureKind::Timeout)
    );
}

#[test]
fn a_hello_in_pieces_is_a_hello() {
    let origin = Origin::echo_path(Identity::Good);
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut wire = proxy.tunnel(&origin.authority());
    for byte in client_hello().chunks(1) {
        wire.send(byte).unwrap();
    }
    // A handshake record with a ServerHello.
    let answer = wire.read_exact(6).unwrap();
    assert_eq!((answer[0], answer[5]), (22, 2));
    recorder.wait(1, |event| matches!(event, Event::Tls).then_some(()));
}

#[test]
fn garbage_that_begins_like_a_hello_is_an_alert_and_a_failure() {
    let origin = Origin::echo_path(Identity::Good);
    let oversized = [&[22, 3, 1, 0xff, 0xff][..], &[0; 100]].concat();
    let not_a_hello = [22, 3, 1, 0, 5, 2, 0, 0, 1, 0];
    let lengths_that_lie = [22, 3, 1, 0, 10, 1, 0, 0, 6, 3, 3, 0, 0, 0, 0];
    for garbage in [&oversized[..], &not_a_hello, &lengths_that_lie] {
        let recorder = Recorder::new(Interest::END);
        let proxy = start_with(config(), [recorder.clone()]);
        let mut wire = proxy.tunnel(&origin.authority());
        wire.send(garbage).unwrap();
        let (answer, _) = wire.read_to_end();
        assert_eq!(
            answer.first_chunk::<6>(),
            Some(&[21, 3, 3, 0, 2, 2]),
            "{answer:?}"
        );
        recorder.closed(1);
        let failures = recorder.tls_failures(1);
        assert_eq!(
            (failures.len(), failures[0].side, failures[0].kind),
            (1, Side::Client, TlsFailureKind::Protocol)
        );
        assert_eq!(origin.handshakes(), 0);
    }
}

#[test]
fn a_block_by_hello_is_an_alert_and_the_origin_sees_no_tls() {
    let origin = Origin::echo_path(Identity::Good);
    let hook = Hook::new(Interest::NONE).on_tls(|hello, connection| {
        assert_eq!(hello.server_name.as_deref(), Some("localhost"));
        assert!(connection.tls().unwrap().version().is_none());
        TlsDecision::Block
    });
    let proxy = start_with(config(), [hook.shared()]);
    let wire = proxy.tunnel(&origin.authority());
    let error = wire
        .tls_client(proxy.client_config(), "localhost")
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    assert_eq!(origin.handshakes(), 0);
    assert_eq!(proxy.metrics().blocked_total, 1);
}

#[test]
fn a_host_that_no_certificate_can_name_is_a_failure_of_minting() {
    let origin = Origin::echo_path(Identity::Good);
    let recorder = Recorder::new(Interest::END);
    let only_example = tollgate_ca::Authority::generate(&tollgate_ca::AuthorityParams {
        permit: vec!["example.com".parse().unwrap()],
        ..Default::default()
    })
    .unwrap();
    let proxy = tollgate_engine::Proxy::builder()
        .config(config())
        .authority(std::sync::Arc::new(only_example))
        .shared_interceptor(recorder.clone());
    let proxy = TestProxy {
        handle: block_on(proxy.build().unwrap().start()).unwrap(),
    };
    let wire = proxy.tunnel(&origin.authority());
    assert!(wire.tls_client(proxy.client_config(), "localhost").is_err());
    let failures = recorder.tls_failures(1);
    assert_eq!(
        (failures.len(), failures[0].kind),
        (1, TlsFailureKind::Minting)
    );
}

/// The first flight of a real client.
fn client_hello() -> Vec<u8> {
    let name = "localhost".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(client_config(&[]), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}
