//! Leaves and files as other implementations see them: OpenSSL, Python, Java, Node, NSS, rustls-webpki.
//!
//! A client that is not installed is skipped with a message.
#![cfg(test)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tollgate_ca::{
    Authority, AuthorityParams, CaError, KeyKind, Leaf, LeafRequest, Naming, SanName,
};

const LONG: &str =
    "a-name-of-more-than-sixty-four-characters.which-is-legal-in-a-certificate.example.com";

/// What is asked for, and what a client verifies.
const HOSTS: [(&str, &str); 8] = [
    ("example.com", "example.com"),
    ("Sub.Example.COM", "sub.example.com"),
    ("*.wild.example.com", "any.wild.example.com"),
    ("192.0.2.7", "192.0.2.7"),
    ("[2001:db8::7]", "2001:db8::7"),
    ("bücher.example.com", "xn--bcher-kva.example.com"),
    ("my_host.example.com", "my_host.example.com"),
    (LONG, LONG),
];

#[test]
fn openssl_verifies_strictly() {
    if !installed("openssl", &["version"]) {
        return;
    }
    for authority in authorities() {
        for (host, verified) in HOSTS {
            let files = Files::new(
                &authority,
                &authority.mint(&LeafRequest::new(host)).unwrap(),
            );
            let purpose = if verified.parse::<std::net::IpAddr>().is_ok() {
                "-verify_ip"
            } else {
                "-verify_hostname"
            };
            let output = openssl(
                &[
                    "verify",
                    "-x509_strict",
                    "-purpose",
                    "sslserver",
                    purpose,
                    verified,
                    "-CAfile",
                ],
                &[&files.ca, &files.leaf],
            );
            assert!(output.status.success(), "{host}: {}", text(&output));
        }
    }
}

#[test]
fn webpki_verifies() {
    for authority in authorities() {
        for (host, verified) in HOSTS {
            // rustls takes host names with underscores too.
            let leaf = authority.mint(&LeafRequest::new(host)).unwrap();
            webpki_verify(&authority, &leaf, verified)
                .unwrap_or_else(|error| panic!("{host}: {error}"));
            assert!(webpki_verify(&authority, &leaf, "elsewhere.test").is_err());
        }
    }
}

/// Python 3.13 sets `VERIFY_X509_STRICT` by default; the flag is set here for every version.
#[test]
fn python_shakes_hands_strictly() {
    let script = r#"
import ssl, sys
ca, chain, key, host = sys.argv[1:5]
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); server.load_cert_chain(chain, key)
client = ssl.create_default_context(cafile=ca)
client.verify_flags |= ssl.VERIFY_X509_STRICT
a, b, c, d = ssl.MemoryBIO(), ssl.MemoryBIO(), ssl.MemoryBIO(), ssl.MemoryBIO()
one = client.wrap_bio(a, b, server_hostname=host); two = server.wrap_bio(c, d, server_side=True)
for _ in range(8):
    for side in (one, two):
        try: side.do_handshake()
        except ssl.SSLWantReadError: pass
        c.write(b.read()); a.write(d.read())
print(one.getpeercert()["subjectAltName"])
"#;
    if !installed("python3", &["-c", "import ssl"]) {
        return;
    }
    for authority in authorities() {
        for (host, verified) in HOSTS {
            let pem = authority.get_cert_for_host(host).unwrap();
            let files = Files::new(
                &authority,
                &authority.mint(&LeafRequest::new(host)).unwrap(),
            );
            let (chain, key) = (
                files.write("chain.pem", pem.chain_pem.as_bytes()),
                files.write("key.pem", pem.key_pem.as_bytes()),
            );
            let output = Command::new("python3")
                .args(["-c", script])
                .args([&files.ca, &chain, &key])
                .arg(verified)
                .output()
                .unwrap();
            assert!(output.status.success(), "{host}: {}", text(&output));
        }
    }
}

#[test]
fn node_verifies() {
    let script = r#"
const { X509Certificate } = require("crypto"), fs = require("fs"), [ca, leaf, host] = process.argv.slice(1);
const a = new X509Certificate(fs.readFileSync(ca)), l = new X509Certificate(fs.readFileSync(leaf));
const ok = l.checkIssued(a) && l.verify(a.publicKey) && (require("net").isIP(host) ? l.checkIP(host) : l.checkHost(host));
process.exit(ok ? 0 : 1);
"#;
    if !installed("node", &["--version"]) {
        return;
    }
    let authority = Authority::generate(&AuthorityParams::default()).unwrap();
    for (host, verified) in HOSTS {
        let files = Files::new(
            &authority,
            &authority.mint(&LeafRequest::new(host)).unwrap(),
        );
        let output = Command::new("node")
            .args(["-e", script])
            .args([&files.ca, &files.leaf])
            .arg(verified)
            .output()
            .unwrap();
        assert!(output.status.success(), "{host}: {}", text(&output));
    }
}

#[test]
fn nss_verifies_as_chromium_on_linux_and_firefox_do() {
    if !installed("certutil", &["-H"]) {
        return;
    }
    for authority in authorities() {
        let leaf = authority.mint(&LeafRequest::new("example.com")).unwrap();
        let files = Files::new(&authority, &leaf);
        let database = format!("sql:{}", files.dir.path().display());
        let certutil = |args: &[&str]| {
            let output = Command::new("certutil")
                .args(["-d", &database])
                .args(args)
                .output()
                .unwrap();
            assert!(output.status.success(), "{args:?}: {}", text(&output));
        };
        certutil(&["-N", "--empty-password"]);
        certutil(&[
            "-A",
            "-t",
            "C,,",
            "-n",
            "ca",
            "-a",
            "-i",
            files.ca.to_str().unwrap(),
        ]);
        certutil(&[
            "-A",
            "-t",
            ",,",
            "-n",
            "leaf",
            "-a",
            "-i",
            files.leaf.to_str().unwrap(),
        ]);
        certutil(&["-V", "-u", "V", "-e", "-n", "leaf"]);
    }
}

#[test]
fn name_constraints_bind_ourselves_and_are_read_by_others() {
    for (permit, good, bad) in [
        (
            vec!["example.com"],
            vec!["example.com", "a.example.com", "*.example.com"],
            vec!["example.org", "192.0.2.1", "::1"],
        ),
        (
            vec![".example.com"],
            vec!["a.example.com"],
            vec!["example.com", "192.0.2.1"],
        ),
        (
            vec!["10.0.0.0/8"],
            vec!["10.1.2.3"],
            vec!["example.com", "11.0.0.1", "::1"],
        ),
        (
            vec!["example.com", "10.0.0.0/8", "2001:db8::/32"],
            vec!["example.com", "10.1.2.3", "2001:db8::9"],
            vec!["example.org", "11.0.0.1", "::1"],
        ),
    ] {
        let constraints = permit.iter().map(|c| c.parse().unwrap()).collect();
        let params = AuthorityParams {
            permit: constraints,
            ..Default::default()
        };
        // Reading the constraints back must give the same as having written them.
        let made = Authority::generate(&params).unwrap();
        let read = Authority::from_pem(&(made.key_pem().unwrap() + &made.cert_pem())).unwrap();
        for authority in [&made, &read] {
            for host in &good {
                assert!(authority.permits(host), "{permit:?} {host}");
                let mut request = LeafRequest::new(*host);
                request.origin_sans = vec![
                    SanName::parse("dropped.test").unwrap(),
                    SanName::parse("203.0.113.1").unwrap(),
                ];
                request.common_name = Some("dropped.test".to_owned());
                let leaf = authority.mint(&request).unwrap();
                webpki_verify(authority, &leaf, &host.replace('*', "any")).unwrap();
                openssl_verify(&Files::new(authority, &leaf), &[]);
            }
            for host in &bad {
                assert!(!authority.permits(host), "{permit:?} {host}");
                assert!(matches!(
                    authority.mint(&LeafRequest::new(*host)),
                    Err(CaError::NotPermitted { .. })
                ));
            }
        }
    }
    let params = AuthorityParams {
        permit: vec!["example.com".parse().unwrap()],
        ..Default::default()
    };
    let authority = Authority::generate(&params).unwrap();
    let leaf = authority
        .mint(&LeafRequest::new("192.0.2.1").with_server_name("example.com"))
        .unwrap();
    assert_eq!(
        sans(&leaf),
        ["example.com"],
        "beside a good SNI a forbidden target is left out"
    );
}

#[test]
fn mitmproxy_s_own_file_is_taken_over() {
    if !installed("openssl", &["version"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    // As mitmproxy makes it: PKCS#1 RSA key, then a certificate with EKU and SKI and without a path length.
    let made = openssl(&["genrsa", "-traditional", "-out"], &[&path("key.pem")]);
    assert!(made.status.success(), "{}", text(&made));
    std::fs::write(
        path("ca.cnf"),
        "[req]\ndistinguished_name=dn\nprompt=no\nx509_extensions=v3\n[dn]\nCN=mitmproxy\nO=mitmproxy\n[v3]\nbasicConstraints=critical,CA:TRUE\nextendedKeyUsage=serverAuth\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n",
    )
    .unwrap();
    let output = Command::new("openssl")
        .args(["req", "-x509", "-new", "-sha256", "-days", "3650", "-key"])
        .arg(path("key.pem"))
        .arg("-config")
        .arg(path("ca.cnf"))
        .arg("-out")
        .arg(path("cert.pem"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let key = std::fs::read_to_string(path("key.pem")).unwrap();
    assert!(key.contains("BEGIN RSA PRIVATE KEY"));
    let cert = std::fs::read_to_string(path("cert.pem")).unwrap();
    std::fs::write(
        Naming::Mitmproxy.key_file(dir.path()),
        format!("{key}{cert}"),
    )
    .unwrap();

    let (authority, created) =
        Authority::open_or_create(dir.path(), Naming::Mitmproxy, &AuthorityParams::default())
            .unwrap();
    assert!(!created);
    assert_eq!(authority.cert_pem(), cert);
    let leaf = authority.mint(&LeafRequest::new("example.com")).unwrap();
    webpki_verify(&authority, &leaf, "example.com").unwrap();
    openssl_verify(&Files::new(&authority, &leaf), &[]);
    let split = Authority::from_files(&path("cert.pem"), &path("key.pem")).unwrap();
    assert_eq!(split.fingerprint_sha256(), authority.fingerprint_sha256());
}

#[test]
fn every_form_of_key_is_read_and_a_wrong_one_named() {
    if !installed("openssl", &["version"]) {
        return;
    }
    for (kind, arguments) in [
        (
            "EC PRIVATE KEY",
            &["ecparam", "-genkey", "-name", "prime256v1", "-out"][..],
        ),
        (
            "EC PRIVATE KEY",
            &["ecparam", "-genkey", "-name", "secp384r1", "-out"],
        ),
        (
            "PRIVATE KEY",
            &[
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                "ec_paramgen_curve:P-384",
                "-out",
            ],
        ),
        ("PRIVATE KEY", &["genpkey", "-algorithm", "RSA", "-out"]),
        ("RSA PRIVATE KEY", &["genrsa", "-traditional", "-out"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (key, cert) = (dir.path().join("key.pem"), dir.path().join("cert.pem"));
        assert!(openssl(arguments, &[&key]).status.success());
        assert!(
            std::fs::read_to_string(&key)
                .unwrap()
                .contains(&format!("BEGIN {kind}"))
        );
        // `openssl req -x509` writes a subject and an authority key identifier.
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-new",
                "-subj",
                "/CN=Loaded",
                "-addext",
                "keyUsage=critical,keyCertSign",
                "-days",
                "9",
                "-key",
            ])
            .arg(&key)
            .arg("-out")
            .arg(&cert)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", text(&made));
        let authority = Authority::from_files(&cert, &key).unwrap();
        let leaf = authority.mint(&LeafRequest::new("example.com")).unwrap();
        assert!(leaf.not_after <= authority.not_after());
        webpki_verify(&authority, &leaf, "example.com").unwrap();
        openssl_verify(&Files::new(&authority, &leaf), &[]);

        let other = Authority::generate(&AuthorityParams::default()).unwrap();
        std::fs::write(&key, other.key_pem().unwrap()).unwrap();
        let error = Authority::from_files(&cert, &key).unwrap_err();
        assert!(
            matches!(&error, CaError::File { cause, .. } if matches!(**cause, CaError::KeyMismatch)),
            "{error}"
        );
    }
}

#[test]
fn what_is_no_authority_is_refused() {
    let authority = Authority::generate(&AuthorityParams::default()).unwrap();
    let leaf = authority.get_cert_for_host("example.com").unwrap();
    let load = |text: String| Authority::from_pem(&text).unwrap_err();
    assert!(matches!(
        load(leaf.cert_pem.clone() + &leaf.key_pem),
        CaError::NotAnAuthority(_)
    ));
    assert!(matches!(load(String::new()), CaError::NoKey));
    assert!(matches!(load(authority.cert_pem()), CaError::NoKey));
    assert!(matches!(
        load(authority.key_pem().unwrap()),
        CaError::NoCertificate
    ));
    assert!(matches!(
        load(authority.cert_pem() + &leaf.key_pem),
        CaError::KeyMismatch
    ));
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n";
    assert!(matches!(
        load(authority.cert_pem() + encrypted),
        CaError::EncryptedKey
    ));
    assert!(!format!("{authority:?}").contains("PRIVATE"));
}

/// The authority is an intermediate, its key file holds the root as well: clients that trust the root get a full chain.
#[test]
fn an_intermediate_sends_its_chain() {
    if !installed("openssl", &["version"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let run = |command: &str| {
        let output = Command::new("openssl")
            .current_dir(dir.path())
            .args(command.split(' '))
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {}", text(&output));
    };
    std::fs::write(path("ext"), "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\nnameConstraints=critical,permitted;DNS:example.com\n").unwrap();
    run(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=Root -days 99 -addext keyUsage=critical,keyCertSign -keyout root.key -out root.pem",
    );
    run(
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=Intermediate -keyout int.key -out int.csr",
    );
    run(
        "x509 -req -in int.csr -CA root.pem -CAkey root.key -CAcreateserial -days 99 -extfile ext -out int.pem",
    );
    // The root stands before the intermediate, which belongs to the key.
    let all = ["int.key", "root.pem", "int.pem"]
        .map(|name| std::fs::read_to_string(path(name)).unwrap())
        .concat();
    let authority = Authority::from_pem(&all).unwrap();
    assert_eq!(authority.chain().len(), 1);
    assert!(!authority.permits("example.org"));
    let leaf = authority.mint(&LeafRequest::new("example.com")).unwrap();
    assert_eq!(leaf.certified.cert.len(), 3);
    let files = Files::new(&authority, &leaf);
    let output = openssl(
        &["verify", "-x509_strict", "-CAfile"],
        &[
            &path("root.pem"),
            Path::new("-untrusted"),
            &files.ca,
            &files.leaf,
        ],
    );
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_leaf_mirrors_its_origin() {
    let authority = Authority::generate(&AuthorityParams::default()).unwrap();
    let mut request = LeafRequest::new("origin.example");
    request.organization = Some("Örigin Ltd".to_owned());
    request.common_name = Some("cn.example".to_owned());
    request.origin_sans = (0..500)
        .map(|i| SanName::parse(&format!("h{i}.example")).unwrap())
        .collect();
    let origin = authority.mint(&request).unwrap();
    assert_eq!(
        sans(&origin).len(),
        102,
        "the origin's names are capped at 100"
    );
    let der = origin.cert_der().unwrap();

    let request = LeafRequest::new("198.51.100.1")
        .with_server_name("sni.example")
        .with_origin(der)
        .unwrap();
    assert_eq!(request.common_name.as_deref(), Some("cn.example"));
    assert_eq!(request.organization.as_deref(), Some("Örigin Ltd"));
    let leaf = authority.mint(&request).unwrap();
    assert_eq!(
        sans(&leaf)[..4],
        [
            "sni.example",
            "198.51.100.1",
            "cn.example",
            "origin.example"
        ]
    );
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf.cert_der().unwrap()).unwrap();
    assert_eq!(parsed.subject().to_string(), "O=Örigin Ltd, CN=cn.example");
    assert!(
        LeafRequest::new("x")
            .with_origin(&der[..der.len() - 1])
            .is_err()
    );
}

#[test]
fn a_leaf_has_the_promised_shape() {
    let authority = Authority::generate(&AuthorityParams::default()).unwrap();
    for (host, critical) in [("example.com", false), (LONG, true)] {
        let leaf = authority.mint(&LeafRequest::new(host)).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf.cert_der().unwrap()).unwrap();
        let san = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(
            (san.critical, parsed.subject().iter().count() == 0),
            (critical, critical)
        );
        leaf.certified.keys_match().unwrap();
        assert_eq!(parsed.raw_serial().len(), 16);
        assert!((0x40..0x80).contains(&parsed.raw_serial()[0]));
        let life =
            parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
        assert!(life < 90 * 86_400, "{life}");
        assert!(leaf.not_before <= SystemTime::now() - Duration::from_secs(47 * 3600));
    }
    let serial = |leaf: Leaf| {
        x509_parser::parse_x509_certificate(leaf.cert_der().unwrap())
            .unwrap()
            .1
            .raw_serial()
            .to_vec()
    };
    let [a, b] =
        [(); 2].map(|()| serial(authority.mint(&LeafRequest::new("example.com")).unwrap()));
    assert_ne!(a, b);
}

#[test]
fn pkcs12_files_are_read_by_openssl_and_java() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: Vec<u8>| {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        dir.path().join(name)
    };
    for authority in authorities() {
        let plain = write("plain.p12", authority.p12("").unwrap());
        let locked = write("locked.p12", authority.p12("pässword").unwrap());
        let cert = write("cert.p12", authority.cert_p12().unwrap());
        if installed("openssl", &["version"]) {
            for (file, password) in [(&plain, "pass:"), (&locked, "pass:pässword")] {
                let output = openssl(&["pkcs12", "-nodes", "-passin", password, "-in"], &[file]);
                assert!(output.status.success(), "{}", text(&output));
                let read = Authority::from_pem(&String::from_utf8(output.stdout).unwrap()).unwrap();
                assert_eq!(read.fingerprint_sha256(), authority.fingerprint_sha256());
            }
            assert!(
                !openssl(
                    &["pkcs12", "-nodes", "-passin", "pass:wrong", "-in"],
                    &[&locked]
                )
                .status
                .success()
            );
            let output = openssl(&["pkcs12", "-nodes", "-passin", "pass:", "-in"], &[&cert]);
            assert!(
                text(&output).contains("BEGIN CERTIFICATE")
                    && !text(&output).contains("PRIVATE KEY")
            );
        }
    }
    let authority = Authority::generate(&AuthorityParams::default()).unwrap();
    let store = write("java.p12", authority.p12("password").unwrap());
    if installed("keytool", &["-help"]) {
        let output = Command::new("keytool")
            .args(["-list", "-v", "-storepass", "password", "-keystore"])
            .arg(&store)
            .output()
            .unwrap();
        assert!(
            text(&output).contains("PrivateKeyEntry")
                && text(&output).contains(&authority.fingerprint_hex()),
            "{}",
            text(&output)
        );
    }
}

/// Java's own path validation, with the authority's PKCS#12 as the trust store.
#[test]
fn java_verifies() {
    let program = r#"
import java.io.*; import java.nio.file.*; import java.security.*; import java.security.cert.*; import java.util.*; import javax.net.ssl.*;
public class Check { public static void main(String[] a) throws Exception {
  X509TrustManager m = null;
  for (int i = 0; i < a.length; i++) {
    if (a[i].endsWith(".p12")) {
      KeyStore store = KeyStore.getInstance("PKCS12"); store.load(new FileInputStream(a[i]), new char[0]);
      TrustManagerFactory f = TrustManagerFactory.getInstance("PKIX"); f.init(store);
      m = (X509TrustManager) f.getTrustManagers()[0];
      if (m.getAcceptedIssuers().length != 1) throw new Exception("trust store is empty");
      continue;
    }
    X509Certificate c = (X509Certificate) CertificateFactory.getInstance("X.509").generateCertificate(new FileInputStream(a[i]));
    m.checkServerTrusted(new X509Certificate[] { c }, "ECDHE_ECDSA");
    if (c.getSubjectAlternativeNames().isEmpty()) throw new Exception("no names");
  } } }
"#;
    if !installed("java", &["-version"]) {
        return;
    }
    let constrained = AuthorityParams {
        permit: vec![
            "example.com".parse().unwrap(),
            "0.0.0.0/0".parse().unwrap(),
            "::/0".parse().unwrap(),
        ],
        ..Default::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("Check.java");
    std::fs::write(&source, program).unwrap();
    let mut command = Command::new("java");
    command.arg(&source);
    for (n, authority) in authorities()
        .into_iter()
        .chain([Authority::generate(&constrained).unwrap()])
        .enumerate()
    {
        let store = dir.path().join(format!("{n}.p12"));
        std::fs::write(&store, authority.cert_p12().unwrap()).unwrap();
        command.arg(store);
        // Java's certificate parser knows no underscore in a DNS name.
        for (i, (host, _)) in HOSTS
            .iter()
            .enumerate()
            .filter(|(_, (host, _))| !host.contains('_'))
        {
            let path = dir.path().join(format!("{n}-{i}.der"));
            std::fs::write(
                &path,
                authority
                    .mint(&LeafRequest::new(*host))
                    .unwrap()
                    .cert_der()
                    .unwrap(),
            )
            .unwrap();
            command.arg(path);
        }
    }
    let output = command.output().unwrap();
    if text(&output).contains("jdk.compiler") {
        println!("skipped: Java without a compiler");
        return;
    }
    assert!(output.status.success(), "{}", text(&output));
}

/// `cargo test --release -p tollgate-ca --test clients -- --ignored --nocapture mint_cost`
#[test]
#[ignore = "a measurement"]
fn mint_cost() {
    for key in [KeyKind::P256, KeyKind::Rsa2048] {
        let authority = Arc::new(
            Authority::generate(&AuthorityParams {
                key,
                ..Default::default()
            })
            .unwrap(),
        );
        let requests: Vec<_> = (0..5000)
            .map(|i| LeafRequest::new(format!("h{i}.example.com")))
            .collect();
        let time = |name: &str, work: &dyn Fn(&LeafRequest)| {
            let start = std::time::Instant::now();
            requests.iter().for_each(work);
            println!(
                "{key:?} {name}: {:.2} µs",
                start.elapsed().as_secs_f64() * 1e6 / requests.len() as f64
            );
        };
        time("warm-up", &|request| drop(authority.mint(request).unwrap()));
        time("mint", &|request| drop(authority.mint(request).unwrap()));
        let cache = tollgate_ca::LeafCache::new(Arc::clone(&authority), 10_000);
        time("cache miss", &|request| {
            drop(cache.get_or_mint(request).unwrap())
        });
        time("cache hit", &|request| {
            drop(cache.get_or_mint(request).unwrap())
        });
    }
}

/// One of each kind that clients meet.
fn authorities() -> Vec<Authority> {
    [KeyKind::P256, KeyKind::Rsa2048]
        .into_iter()
        .map(|key| {
            Authority::generate(&AuthorityParams {
                key,
                ..Default::default()
            })
            .unwrap()
        })
        .collect()
}

struct Files {
    dir: tempfile::TempDir,
    ca: PathBuf,
    leaf: PathBuf,
}

impl Files {
    fn new(authority: &Authority, leaf: &Leaf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Self {
            ca: PathBuf::new(),
            leaf: PathBuf::new(),
            dir,
        };
        files.ca = files.write("ca.pem", authority.cert_pem().as_bytes());
        files.leaf = files.write("leaf.der", leaf.cert_der().unwrap());
        let output = Command::new("openssl")
            .args(["x509", "-inform", "DER", "-in"])
            .arg(&files.leaf)
            .output();
        if let Ok(output) = output {
            files.leaf = files.write("leaf.pem", &output.stdout);
        }
        files
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn openssl_verify(files: &Files, extra: &[&str]) {
    if !installed("openssl", &["version"]) {
        return;
    }
    let mut arguments = vec!["verify", "-x509_strict", "-purpose", "sslserver"];
    arguments.extend(extra);
    arguments.push("-CAfile");
    let output = openssl(&arguments, &[&files.ca, &files.leaf]);
    assert!(output.status.success(), "{}", text(&output));
}

fn webpki_verify(authority: &Authority, leaf: &Leaf, host: &str) -> Result<(), webpki::Error> {
    let anchor = webpki::anchor_from_trusted_cert(authority.cert_der())?;
    let der: &CertificateDer<'_> = leaf.cert_der().unwrap();
    let certificate = webpki::EndEntityCert::try_from(der)?;
    let now = UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
    certificate.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &[anchor],
        &[],
        now,
        webpki::KeyUsage::server_auth(),
        None,
        None,
    )?;
    certificate.verify_is_valid_for_subject_name(&ServerName::try_from(host).unwrap())
}

fn sans(leaf: &Leaf) -> Vec<String> {
    use x509_parser::extensions::GeneralName;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf.cert_der().unwrap()).unwrap();
    let names = &parsed
        .subject_alternative_name()
        .unwrap()
        .unwrap()
        .value
        .general_names;
    names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(dns) => (*dns).to_owned(),
            GeneralName::IPAddress(bytes) => {
                std::net::Ipv4Addr::from(<[u8; 4]>::try_from(*bytes).unwrap()).to_string()
            }
            other => panic!("{other:?}"),
        })
        .collect()
}

fn openssl(arguments: &[&str], paths: &[&Path]) -> Output {
    Command::new("openssl")
        .args(arguments)
        .args(paths)
        .output()
        .unwrap()
}

fn installed(program: &str, arguments: &[&str]) -> bool {
    let found = Command::new(program)
        .args(arguments)
        .output()
        .is_ok_and(|output| output.status.success() || program == "certutil");
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
