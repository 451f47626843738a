//! TLS end to end: versions, large bodies, resumption, client certificates, key updates.

use std::sync::{Arc, Mutex};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{HandshakeKind, ProtocolVersion, ServerConfig, SupportedProtocolVersion};
use tollgate_engine::{Config, PoolMode};
use tollgate_flow::{Interest, TlsVersion};

use crate::support::*;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

const VERSIONS: [(TlsVersion, ProtocolVersion, &SupportedProtocolVersion); 2] = [
    (
        TlsVersion::Tls12,
        ProtocolVersion::TLSv1_2,
        &rustls::version::TLS12,
    ),
    (
        TlsVersion::Tls13,
        ProtocolVersion::TLSv1_3,
        &rustls::version::TLS13,
    ),
];

fn versions(client: TlsVersion, upstream: TlsVersion) -> Config {
    let mut config = config();
    (
        config.tls.client_versions.min,
        config.tls.client_versions.max,
    ) = (client, client);
    (
        config.tls.upstream_versions.min,
        config.tls.upstream_versions.max,
    ) = (upstream, upstream);
    config
}

/// An origin that speaks only these versions, and answers with what it received.
fn echo(versions: &[&'static SupportedProtocolVersion]) -> Origin {
    Origin::with_tls(server_config_with(Identity::Good, versions), |wire, _| {
        loop {
            let request = wire.read_request()?;
            wire.send(ok(&request.body))?;
        }
    })
}

#[test]
fn bodies_of_20_mib_pass_both_ways_in_every_combination_of_versions() {
    const SIZE: usize = 20 << 20;
    let body = pattern(SIZE);
    let head = format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {SIZE}\r\n\r\n");
    for (client_version, negotiated, _) in VERSIONS {
        for (upstream_version, _, _) in VERSIONS {
            let origin = echo(rustls::ALL_VERSIONS);
            let recorder = Recorder::new(Interest::END);
            let proxy = start_with(
                versions(client_version, upstream_version),
                [recorder.clone()],
            );
            // A client of TLS 1.3 alone can't be served when its origin speaks less: the cap of
            // what the client gets is what the origin has.
            let mut client = proxy.tls(&origin);
            assert_eq!(client.tls().protocol_version(), Some(negotiated));
            client.send(&head).unwrap();
            client.send(&body).unwrap();
            assert_same(&client.read_response("POST").unwrap().body, &body);
            let upstream = recorder.wait(1, |event| match event {
                Event::End(_, _, upstream) => upstream.clone(),
                _ => None,
            });
            assert_eq!(upstream[0].tls_version, Some(upstream_version));
        }
    }
}

#[test]
fn a_client_is_not_told_a_newer_version_than_the_origin_speaks() {
    for (_, negotiated, origin_version) in VERSIONS {
        let origin = echo(&[origin_version]);
        let proxy = start(config());
        let mut client = proxy.tls(&origin);
        assert_eq!(client.tls().protocol_version(), Some(negotiated));
        assert_eq!(client.exchange(get("/")).unwrap().status(), 200);
    }
}

#[test]
fn a_client_below_the_lowest_version_is_refused() {
    let origin = echo(rustls::ALL_VERSIONS);
    let proxy = start(versions(TlsVersion::Tls13, TlsVersion::Tls13));
    let trust = client_config_with(
        &[proxy.handle.authority().cert_der().clone()],
        &[&rustls::version::TLS12],
    );
    let wire = proxy.tunnel(&origin.authority());
    assert!(wire.tls_client(trust.into(), "localhost").is_err());
    wait_until("it is counted", || {
        proxy.metrics().tls_failures == [("client", "no_shared_parameters", 1)]
    });
}

#[test]
fn an_origin_below_the_lowest_version_is_a_502() {
    let origin = echo(&[&rustls::version::TLS12]);
    let proxy = start(versions(TlsVersion::Tls13, TlsVersion::Tls13));
    let response = proxy.tls(&origin).exchange(get("/")).unwrap();
    assert_eq!(response.status(), 502);
    assert!(
        response.text().contains("no TLS version"),
        "{}",
        response.text()
    );
}

#[test]
fn every_cipher_suite_passes_bytes() {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let body = pattern(100_000);
    for suite in provider.cipher_suites.clone() {
        let mut only = provider.clone();
        only.cipher_suites = vec![suite];
        // An ECDSA certificate can't serve RSA suites.
        if format!("{:?}", suite.suite()).contains("_RSA_") {
            continue;
        }
        let only = Arc::new(only);
        let resolver = server_config(Identity::Good).cert_resolver;
        let config_of_origin = ServerConfig::builder_with_provider(Arc::clone(&only))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        let reply = ok(&body);
        let origin = Origin::with_tls(config_of_origin, move |wire, _| {
            wire.read_request()?;
            wire.send(&reply)
        });
        let proxy = start(config());
        let mut trust = rustls::RootCertStore::empty();
        trust
            .add(proxy.handle.authority().cert_der().clone())
            .unwrap();
        let client = rustls::ClientConfig::builder_with_provider(only)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(trust)
            .with_no_client_auth();
        let mut client = proxy
            .tunnel(&origin.authority())
            .tls_client(client.into(), "localhost")
            .unwrap();
        assert_eq!(
            client.tls().negotiated_cipher_suite().unwrap().suite(),
            suite.suite()
        );
        assert_same(&client.exchange(get("/")).unwrap().body, &body);
    }
}

#[test]
fn upstream_sessions_are_resumed() {
    for (version, _, _) in VERSIONS {
        let kinds = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&kinds);
        let mut server = server_config(Identity::Good);
        server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        let origin = Origin::with_tls(server, move |wire, _| {
            keep.lock()
                .unwrap()
                .push(wire.tls().handshake_kind().unwrap());
            loop {
                let request = wire.read_request()?;
                wire.send(ok(request.path()))?;
            }
        });
        let mut config = versions(version, version);
        config.pool.mode = PoolMode::Mirror;
        let proxy = start(config);
        for _ in 0..3 {
            let mut client = proxy.tls(&origin);
            assert_eq!(client.exchange(get("/x")).unwrap().text(), "/x");
        }
        let metrics = proxy.metrics();
        assert_eq!(
            (metrics.upstream_handshakes, metrics.upstream_resumptions),
            (3, 2)
        );
        let kinds = kinds.lock().unwrap();
        assert_eq!(
            kinds
                .iter()
                .filter(|k| **k == HandshakeKind::Resumed)
                .count(),
            2
        );
    }
}

#[test]
fn clients_resume_their_sessions_with_us() {
    for (version, _, _) in VERSIONS {
        let origin = Origin::echo_path(Identity::Good);
        let proxy = start(versions(version, version));
        let trust = proxy.client_config();
        for n in 0..2 {
            let mut client = proxy
                .tunnel(&origin.authority())
                .tls_client(Arc::clone(&trust), "localhost")
                .unwrap();
            assert_eq!(client.exchange(get("/x")).unwrap().text(), "/x");
            let resumed = client.tls().handshake_kind() == Some(HandshakeKind::Resumed);
            assert_eq!(resumed, n == 1, "{version}");
        }
    }
}

#[test]
fn a_configured_client_certificate_is_shown_to_the_origin() {
    let (clients, clients_pem) = lax_authority("Clients of the tests");
    let identity = client_identity(&clients);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("localhost.pem");
    std::fs::write(&file, &identity).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(clients_pem.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .build()
            .unwrap();
    for (version, _, supported) in VERSIONS {
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[supported])
            .unwrap()
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_cert_resolver(server_config(Identity::Good).cert_resolver);
        let origin = Origin::with_tls(server, |wire, _| {
            wire.peer_certificate();
            let request = wire.read_request()?;
            wire.send(ok(request.path()))
        });
        // One file for all, or a folder with one for each host.
        for path in [&file, folder.path()] as [&std::path::Path; 2] {
            let mut config = versions(version, version);
            config.tls.client_certs = Some(path.to_owned());
            let proxy = start(config);
            assert_eq!(proxy.tls(&origin).exchange(get("/x")).unwrap().text(), "/x");
        }
        // Without one, the origin refuses.
        let proxy = start(versions(version, version));
        let response = proxy.tls(&origin).exchange(get("/x")).unwrap();
        assert_eq!(response.status(), 502, "{version}");
    }
}

#[test]
fn a_client_certificate_that_cannot_be_read_is_an_error_of_build() {
    let mut config = config();
    config.tls.client_certs = Some("does/not/exist.pem".into());
    let error = try_start(config, []).err().unwrap().to_string();
    assert!(error.contains("does/not/exist.pem"), "{error}");
}

#[test]
fn a_client_that_updates_its_keys_is_understood_and_answered_in_kind() {
    let origin = echo(rustls::ALL_VERSIONS);
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    client.exchange(get("/")).unwrap();
    let body = pattern(200_000);
    for _ in 0..3 {
        client.refresh_traffic_keys();
        client
            .send(format!(
                "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
                body.len()
            ))
            .unwrap();
        client.send(&body[..100_000]).unwrap();
        client.refresh_traffic_keys();
        client.send(&body[100_000..]).unwrap();
        assert_same(&client.read_response("POST").unwrap().body, &body);
    }
}

#[test]
fn key_updates_one_after_the_other_are_answered() {
    let origin = echo(rustls::ALL_VERSIONS);
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n";
    let whole = format!("{head}hi");
    assert_eq!(client.exchange(whole).unwrap().text(), "hi");
    for _ in 0..3 {
        client.refresh_traffic_keys();
        client.send(head).unwrap();
        client.refresh_traffic_keys();
        client.send("hi").unwrap();
        assert_eq!(client.read_response("POST").unwrap().text(), "hi");
    }
}

#[test]

fn a_key_update_right_behind_the_handshake_is_answered() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    client.refresh_traffic_keys();
    assert_eq!(client.exchange(get("/x")).unwrap().text(), "/x");
}

#[test]
fn an_origin_that_updates_its_keys_is_understood_and_answered_in_kind() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        loop {
            let request = wire.read_request()?;
            wire.refresh_traffic_keys();
            let reply = ok(&request.body);
            let (start, rest) = reply.split_at(reply.len() / 2);
            wire.send(start)?;
            wire.refresh_traffic_keys();
            wire.send(rest)?;
        }
    });
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    let body = pattern(100_000);
    for _ in 0..3 {
        client
            .send(format!(
                "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
                body.len()
            ))
            .unwrap();
        client.send(&body).unwrap();
        assert_same(&client.read_response("POST").unwrap().body, &body);
    }
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn records_of_one_byte_and_of_the_greatest_size_pass() {
    let origin = echo(rustls::ALL_VERSIONS);
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    let body = pattern(16_384 * 3 + 5);
    client
        .send(format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ))
        .unwrap();
    for byte in body[..100].chunks(1) {
        client.send(byte).unwrap();
    }
    client.send(&body[100..]).unwrap();
    assert_same(&client.read_response("POST").unwrap().body, &body);
}

#[test]
fn a_leaf_carries_the_names_of_the_origins_certificate() {
    use x509_parser::prelude::FromDer;
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(config());
    let leaf = proxy.tls(&origin).peer_certificate();
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap().value;
    assert_eq!(names.general_names.len(), 2, "{names:?}");
    assert_eq!(leaf.issuer().to_string(), "O=Tollgate, CN=Tollgate CA");
}

#[test]
fn an_operators_own_certificate_is_shown_for_its_host() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.pem");
    let own = origin_authority()
        .authority
        .get_cert_for_host("localhost")
        .unwrap();
    std::fs::write(&file, [own.chain_pem, own.key_pem].concat()).unwrap();
    let origin = Origin::echo_path(Identity::Good);
    let mut config = config();
    config.tls.certs = vec![format!("localhost={}", file.display())];
    let proxy = start(config);
    // Trusts the one that signed the operator's certificate, not the proxy's authority.
    let foreign = origin_authority().authority.cert_der().clone();
    let mut client = proxy
        .tunnel(&origin.authority())
        .tls_client(client_config(&[foreign]), "localhost")
        .unwrap();
    assert_eq!(client.exchange(get("/x")).unwrap().text(), "/x");
    assert_eq!(proxy.metrics().tunnels_total, 0);
}

/// A certificate for a client, with its key, in PEM.
fn client_identity(authority: &rcgen::Issuer<'_, rcgen::KeyPair>) -> String {
    let mut params = rcgen::CertificateParams::new(["client".to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    [certificate.pem(), key.serialize_pem()].concat()
}
