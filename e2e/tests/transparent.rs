//! Transparent mode in a network of its own: a client that knows of no proxy, and a gateway that hands its connections over.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, which fail by panicking"
)]

use tollgate_e2e::{End, LIMIT, Net, Origin, Process, Tollgate, binary, require};

/// Tollgate on the gateway, with the rules in force.
fn gateway(net: &Net, origin: &Origin, arguments: &[&str]) -> Tollgate {
    let mut tollgate = net.command(End::Gate, binary());
    tollgate
        .args(["--mode", "transparent@[::]:0", "--json"])
        .arg("--upstream-trusted-ca")
        .arg(origin.ca());
    let proxy = Tollgate::launch(tollgate);
    let (_, port) = proxy.at("transparent").rsplit_once(':').expect("a port");
    let mut rules = net.command(End::Gate, binary());
    rules
        .args(["transparent", "apply", "--port", port])
        .args(arguments);
    Process::run(rules, LIMIT).success();
    proxy
}

/// Gets a path from the origin's address, and looks whom Tollgate took the client for.
fn get(net: &Net, proxy: &Tollgate, address: &str, client: &str, path: &str) {
    for (scheme, version) in [("http", "HTTP/1.1"), ("https", "HTTP/2.0")] {
        let mut curl = net.command(End::Client, "curl");
        let path = format!("{path}-{scheme}");
        curl.args(["--disable", "--silent", "--show-error", "--cacert"])
            .arg(proxy.cert())
            .args(["--connect-to", &format!("::{address}:")])
            .arg(format!("{scheme}://localhost{path}"));
        let answer = Process::run(curl, LIMIT).success().text();
        assert_eq!(answer, version);
        let flow = proxy.wait_json(&path);
        assert_eq!(flow["mode"], "transparent", "{flow}");
        let from = flow["client"].as_str().unwrap_or_default();
        assert!(from.starts_with(client), "{flow}");
        let to = flow["upstream"]["address"].as_str().unwrap_or_default();
        assert!(to.starts_with(address), "{flow}");
    }
}

#[test]
fn redirected_connections_of_both_versions_of_ip_reach_their_origin() {
    require!("curl", "nginx", "openssl", "ip", "nft", "root");
    let net = Net::create();
    let origin = Origin::start_in(&net);
    let proxy = gateway(&net, &origin, &[]);
    four_and_six(&net, &proxy);
}

#[test]
fn connections_that_tproxy_hands_over_reach_their_origin() {
    require!("curl", "nginx", "openssl", "ip", "nft", "root");
    let net = Net::create();
    let origin = Origin::start_in(&net);
    let proxy = gateway(&net, &origin, &["--method", "tproxy"]);
    four_and_six(&net, &proxy);
}

fn four_and_six(net: &Net, proxy: &Tollgate) {
    get(net, proxy, Net::ORIGIN, "10.9.1.1:", "/protocol?four");
    let six = format!("[{}]", Net::ORIGIN_6);
    get(net, proxy, &six, "[fd09:1::1]:", "/protocol?six");
}

#[test]
fn http3_is_refused_at_once_and_rules_go_as_they_came() {
    require!("python3", "nginx", "openssl", "ip", "nft", "root");
    let net = Net::create();
    let origin = Origin::start_in(&net);
    let proxy = gateway(&net, &origin, &[]);
    // A datagram to port 443 comes back as an error, not as silence: that is what makes a client use TCP right away.
    let script = "
import socket, sys
knock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
knock.settimeout(60)
knock.connect((sys.argv[1], 443))
knock.send(b'hello')
try:
    knock.recv(1)
except ConnectionRefusedError:
    print('refused')
";
    let mut python = net.command(End::Client, "python3");
    python.args(["-c", script, Net::ORIGIN]);
    assert_eq!(Process::run(python, LIMIT).success().text(), "refused\n");
    drop(proxy);

    // Without the proxy nothing gets through; without the rules everything does.
    let get = |net: &Net| {
        let mut curl = net.command(End::Client, "curl");
        curl.args(["--disable", "--silent", "--show-error"])
            .arg(format!("http://{}/protocol", Net::ORIGIN));
        Process::run(curl, LIMIT)
    };
    assert!(!get(&net).status.success());
    let mut rules = net.command(End::Gate, binary());
    rules.args(["transparent", "remove"]);
    Process::run(rules, LIMIT).success();
    assert_eq!(get(&net).success().text(), "HTTP/1.1");
}
