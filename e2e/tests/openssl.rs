//! OpenSSL's own client, at its strictest, through Tollgate.
#![cfg(unix)]

use tollgate_e2e::{LIMIT, Origin, Process, Tollgate, command, require};

#[test]
fn s_client_verifies_the_leaf_strictly_with_tls_1_2() {
    require!("nginx", "openssl");
    talk("-tls1_2");
}

#[test]
fn s_client_verifies_the_leaf_strictly_with_tls_1_3() {
    require!("nginx", "openssl");
    talk("-tls1_3");
}

fn talk(version: &str) {
    let origin = Origin::start();
    let proxy = Tollgate::trusting(&origin.ca(), &[]);
    let mut openssl = command("openssl");
    openssl
        .args(["s_client", "-proxy", &proxy.address().to_string()])
        .args(["-connect", &origin.authority(), "-servername", "localhost"])
        .args(["-verify_hostname", "localhost", "-verify_return_error"])
        .args(["-x509_strict", "-purpose", "sslserver"])
        .args(["-ign_eof", version, "-no-CApath", "-no-CAstore", "-CAfile"])
        .arg(proxy.cert());
    let request = "GET /protocol HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let finished = Process::start_with_input(openssl, request.into())
        .finish(LIMIT)
        .success();
    let text = finished.text();
    assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
    assert!(text.contains("\r\n\r\nHTTP/1.1"), "{text}");
}
