//! Who may come, what is opened, and how the way out is gone.

use std::fs;

use tempfile::TempDir;
use tollgate_e2e::{LIMIT, Process, Tollgate, command, require};

use crate::at;
use crate::pair::{Pair, Theirs, compare_over, sets, tollgate};
use crate::traffic::{Came, Client, Origin, Request, Transport, get, post, send};

/// An answer of the proxy's own: what it says in words is its own affair.
fn without_words(came: &Came) -> Came {
    let (answer, seen) = came;
    let answer = answer.as_ref().map(|lines| {
        let status = lines[0].split(' ').nth(1).unwrap();
        match status {
            "401" | "407" | "413" | "502" => {
                let asks = |line: &&String| line.contains("-authenticate: Basic realm=");
                let asks = lines.iter().filter(asks).map(|line| {
                    let (name, _) = line.split_once(" realm=").unwrap();
                    name.to_owned()
                });
                std::iter::once(status.to_owned()).chain(asks).collect()
            }
            _ => lines.clone(),
        }
    });
    (answer, seen.clone())
}

/// Both as reverse proxies in front of an origin.
fn in_front(origin: &Origin, transport: Transport, options: &[&str]) -> [(Client, Side); 2] {
    let mode = format!("mode=reverse:{}@127.0.0.1:0", origin.url(transport, ""));
    let trust = format!("ssl_verify_upstream_trusted_ca={}", origin.ca().display());
    let mut arguments = sets(&[mode, trust]);
    arguments.extend(sets(options));
    let theirs = Theirs::start(&arguments);
    let ours = tollgate(&arguments);
    let their_client = theirs.client().trusting(&[theirs.cert()]).in_place();
    let address = ours.at("reverse").parse().unwrap();
    let our_client = Client::new(address).trusting(&[ours.cert()]).in_place();
    [
        (their_client, Side::Theirs(theirs)),
        (our_client, Side::Ours(Box::new(ours))),
    ]
}

/// Kept until both have been asked.
enum Side {
    Theirs(#[expect(dead_code, reason = "it runs as long as it is held")] Theirs),
    Ours(#[expect(dead_code, reason = "it runs as long as it is held")] Box<Tollgate>),
}

#[test]
fn in_front_of_an_origin() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    for (transports, options, requests) in [
        (
            &[Transport::Plain][..],
            &["keep_host_header=true", "upstream_auth=anna:secret"][..],
            vec![get("/"), get("/").with("Host", "named.example:81")],
        ),
        (
            &[Transport::Tls, Transport::Http2],
            &["keep_host_header=true"],
            vec![get("/"), get("/a").with("Authorization", "Basic eDp5")],
        ),
        (
            &[Transport::Plain],
            &["keep_host_header=false", "proxyauth=anna:secret"],
            vec![
                get("/").with("Host", "named.example"),
                get("/").with("Authorization", "Basic YW5uYTpzZWNyZXQ="),
                get("/")
                    .with("Host", "named.example")
                    .with("Authorization", "Basic YW5uYTpzZWNyZXQ="),
                get("/").with("Authorization", "Basic YW5uYTp3cm9uZw=="),
            ],
        ),
        (
            &[Transport::Tls, Transport::Http2],
            &["upstream_auth=anna:secret"],
            vec![
                get("/"),
                get("/").with("Authorization", "Basic eDp5"),
                get("/").with("Host", "named.example"),
            ],
        ),
    ] {
        let [theirs, ours] = in_front(&origin, transports[0], options);
        for transport in transports {
            // Over HTTP/2, a name of one's own is the authority.
            let requests: Vec<Request> = requests
                .iter()
                .filter(|request| *transport != Transport::Http2 || !request.has("Host"))
                .cloned()
                .collect();
            let theirs = send(&theirs.0, *transport, &origin, &requests);
            let ours = send(&ours.0, *transport, &origin, &requests);
            for ((request, theirs), ours) in requests.iter().zip(&theirs).zip(&ours) {
                assert_eq!(
                    without_words(ours),
                    without_words(theirs),
                    "Tollgate (left) and mitmdump (right), {options:?} {transport:?}: {request:?}"
                );
            }
        }
    }
}

#[test]
fn hosts_are_left_alone_or_opened() {
    require!("mitmproxy-venv", "openssl");
    let origins = [Origin::start(), Origin::start(), Origin::start()];
    let [one, two, _] = &origins;
    let port = |origin: &Origin| origin.address(Transport::Tls).port();
    let plain = one.authority(Transport::Plain);
    for options in [
        vec![
            format!("ignore_hosts=^localhost:{}$", port(one)),
            format!("ignore_hosts={plain}"),
        ],
        vec![
            format!("allow_hosts=:{}$", port(one)),
            format!("allow_hosts=LOCALHOST:{}$", port(two)),
        ],
        vec![
            format!("allow_hosts=:({}|{})$", port(one), port(two)),
            format!("ignore_hosts=:{}$", port(two)),
        ],
    ] {
        let mut all = vec![
            "modify_headers=/~q/X-Opened/yes".to_owned(),
            "ssl_insecure".to_owned(),
        ];
        all.extend(options.iter().cloned());
        let arguments = sets(&all);
        let theirs = Theirs::start(&arguments);
        let ours = tollgate(&arguments);
        // The client takes the origins' certificates as well: the origin sees who has opened what.
        let cas: Vec<_> = origins.iter().map(Origin::ca).collect();
        let with = |cert: &std::path::Path| [&cas[..], &[cert.to_owned()]].concat();
        let theirs_client = theirs.client().trusting(&with(&theirs.cert()));
        let ours_client = Client::new(ours.address()).trusting(&with(ours.cert()));
        let mut opened = 0;
        for origin in &origins {
            for transport in Transport::ALL {
                let requests = [get("/")];
                let theirs = send(&theirs_client, transport, origin, &requests);
                let ours = send(&ours_client, transport, origin, &requests);
                assert_eq!(
                    ours, theirs,
                    "Tollgate (left) and mitmdump (right), {options:?} {transport:?}"
                );
                opened += usize::from(theirs[0].1[0].iter().any(|line| line == "x-opened: yes"));
            }
        }
        assert!(opened > 0 && opened < 9, "{options:?}: {opened}");
    }
}

#[test]
fn a_password_is_asked_for() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let dir = TempDir::new().unwrap();
    // What `htpasswd -s` makes of it.
    fs::write(
        dir.path().join("users"),
        "bert:{SHA}lS0vrzehCXIgQ2tOXSb4AWtTIEY=\n",
    )
    .unwrap();
    let given = [
        None,
        Some("Basic YW5uYTpzZWNyZXQ="),
        Some("basic YW5uYTpzZWNyZXQ="),
        Some("Basic YW5uYTp3cm9uZw=="),
        Some("Basic YmVydDpzaGEgc2VjcmV0"),
        Some("Basic !!!"),
        Some("Bearer YW5uYTpzZWNyZXQ="),
        Some("Basic"),
    ];
    for auth in [
        "anna:secret".to_owned(),
        "any".to_owned(),
        format!("@{}", at(&dir, "users")),
    ] {
        let pair = Pair::start(&origin, &sets(&[format!("proxyauth={auth}")]));
        for transport in [Transport::Plain, Transport::Tls] {
            let [theirs, ours] = pair.clients();
            for value in given {
                // Within a tunnel, what is there is the client's and the origin's.
                let request = match (transport, value) {
                    (Transport::Plain, Some(value)) => get("/").with("Proxy-Authorization", value),
                    _ => get("/"),
                };
                let asked = |client: &Client| {
                    let client = client.clone().authorized(value);
                    let came = send(&client, transport, &origin, std::slice::from_ref(&request));
                    without_words(&came[0])
                };
                assert_eq!(
                    asked(&ours),
                    asked(&theirs),
                    "Tollgate (left) and mitmdump (right), {auth} {transport:?}: {value:?}"
                );
            }
        }
    }
}

#[test]
fn proxies_on_the_way_get_the_same() {
    require!("mitmproxy-venv", "openssl");
    // Stands in the place of a proxy: it answers requests in absolute form, and refuses a CONNECT.
    let proxy = Origin::start();
    let origin = Origin::start();
    let mode = |scheme: &str, transport| {
        let authority = proxy.authority(transport);
        format!("mode=upstream:{scheme}://{authority}@127.0.0.1:0")
    };
    let arguments = sets(&[
        mode("http", Transport::Plain),
        "upstream_auth=anna:secret".to_owned(),
        "connection_strategy=eager".to_owned(),
    ]);
    let theirs = Theirs::start(&arguments);
    let ours = tollgate(&arguments);
    let address = ours.at("upstream").parse().unwrap();
    let ours_client = Client::new(address).trusting(&[ours.cert()]);
    let theirs_client = theirs.client().trusting(&[theirs.cert()]);
    for (transport, request) in [
        (Transport::Plain, get("/a?b")),
        (
            Transport::Plain,
            post("/", "x").with("Authorization", "Basic eDp5"),
        ),
        (Transport::Tls, get("/")),
    ] {
        let seen = |client: &Client| {
            let answer = client.ask(transport, &origin, &request);
            let mut asked = proxy.take();
            // Where a CONNECT was refused, mitmdump asks once more for the request.
            asked.dedup();
            (answer.map(|lines| lines[0].contains(" 200 ")), asked)
        };
        let theirs = seen(&theirs_client);
        assert_eq!(seen(&ours_client), theirs, "{transport:?}: {request:?}");
        assert!(
            theirs.1[0]
                .iter()
                .any(|line| line.contains("YW5uYTpzZWNyZXQ="))
        );
        assert!(origin.take().is_empty());
    }
}

#[test]
fn origins_are_dialled_when_they_are_needed_or_before() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    for (strategy, is_dialled) in [("eager", true), ("lazy", false)] {
        let pair = Pair::start(
            &origin,
            &sets(&[
                format!("connection_strategy={strategy}"),
                "block_list=/~u blocked/403".to_owned(),
            ]),
        );
        for transport in [Transport::Tls, Transport::Http2] {
            let [theirs, ours] = pair.clients().map(|client| {
                let came = send(&client, transport, &origin, &[get("/blocked")]);
                let dialled = !origin.peers().is_empty();
                // And a request that isn't blocked arrives.
                let passed = send(&client, transport, &origin, &[get("/")]);
                origin.peers();
                (came, dialled, passed)
            });
            assert_eq!(
                ours, theirs,
                "Tollgate (left) and mitmdump (right), {strategy} {transport:?}"
            );
            assert_eq!(theirs.1, is_dialled, "{strategy} {transport:?}");
        }
    }
}

// Elsewhere the loopback interface has one address.
#[cfg(target_os = "linux")]
#[test]
fn connections_come_from_the_address_that_was_asked_for() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let pair = Pair::start(&origin, &sets(&["connect_addr=127.0.0.2"]));
    for transport in Transport::ALL {
        let [theirs, ours] = pair.clients().map(|client| {
            let came = send(&client, transport, &origin, &[get("/")]);
            let mut peers = origin.peers();
            peers.dedup();
            (came, peers)
        });
        assert_eq!(
            ours, theirs,
            "Tollgate (left) and mitmdump (right), {transport:?}"
        );
        assert_eq!(theirs.1, [std::net::IpAddr::from([127, 0, 0, 2])]);
    }
}

#[test]
fn authorities_in_a_folder_are_trusted() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let other = Origin::start();
    for (trusted, status) in [(&origin, " 200"), (&other, " 502")] {
        let folder = TempDir::new().unwrap();
        fs::copy(trusted.ca(), folder.path().join("ca.pem")).unwrap();
        // OpenSSL finds a certificate there by the name that this makes.
        let mut rehash = command("openssl");
        rehash.arg("rehash").arg(folder.path());
        Process::run(rehash, LIMIT).success();
        let arguments = sets(&[format!(
            "ssl_verify_upstream_trusted_confdir={}",
            folder.path().display()
        )]);
        let pair = Pair {
            theirs: Theirs::start(&arguments),
            ours: tollgate(&arguments),
        };
        for transport in [Transport::Tls, Transport::Http2] {
            let [theirs, ours] = pair
                .clients()
                .map(|client| send(&client, transport, &origin, &[get("/")]));
            let first = theirs[0].0.as_ref().unwrap()[0].clone();
            assert!(first.contains(status), "{transport:?}: {first}");
            assert_eq!(
                without_words(&ours[0]),
                without_words(&theirs[0]),
                "Tollgate (left) and mitmdump (right), {transport:?}"
            );
        }
    }
}

#[test]
fn the_authority_is_as_large_as_was_asked_for() {
    require!("mitmproxy-venv", "openssl");
    let arguments = sets(&["key_size=3072"]);
    let (theirs, ours) = (Theirs::start(&arguments), tollgate(&arguments));
    for cert in [theirs.cert(), ours.cert().to_owned()] {
        let mut openssl = command("openssl");
        openssl.args(["x509", "-noout", "-text", "-in"]).arg(&cert);
        let text = Process::run(openssl, LIMIT).success().text();
        let key = text.lines().find(|line| line.contains("Public-Key: ("));
        assert!(
            key.is_some_and(|key| key.contains("(3072 bit)")),
            "{}: {text}",
            cert.display()
        );
    }
}

#[test]
fn http2_is_not_offered_where_it_is_switched_off() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let pair = Pair::start(&origin, &sets(&["http2=false"]));
    compare_over(
        &pair,
        &Transport::ALL,
        &origin,
        &[get("/"), post("/", "x")],
        |came| {
            assert!(came.1[0][0].ends_with(" HTTP/1.1"));
            came.clone()
        },
    );
}

#[test]
fn large_bodies_stream_and_are_the_same() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let pair = Pair::start(
        &origin,
        &sets(&[
            "stream_large_bodies=50k",
            "modify_headers=/~s/X-Two/streamed",
        ]),
    );
    let large: Vec<u8> = tollgate_e2e::noise(60_000);
    let requests = [
        get("/large"),
        get("/large/unsized"),
        get("/large/gzip"),
        get("/small"),
        post("/", large.clone()),
        post("/large", large).chunked(),
    ];
    compare_over(&pair, &Transport::ALL, &origin, &requests, Clone::clone);
}
