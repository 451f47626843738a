//! mitmdump and Tollgate side by side, with the same options.

use std::net::SocketAddr;
use std::path::PathBuf;

use tempfile::TempDir;
use tollgate_e2e::{LIMIT, Process, Tollgate, binary, command, programs};

use crate::traffic::{Came, Client, Origin, Request, Transport, send};

/// Both proxies, in a folder of the test's own.
pub struct Pair {
    pub theirs: Theirs,
    pub ours: Tollgate,
}

/// A running mitmdump.
pub struct Theirs {
    process: Process,
    address: SocketAddr,
    confdir: TempDir,
}

/// mitmdump in its virtual environment.
pub fn mitmdump() -> String {
    programs::mitmproxy_venv()
        .with_file_name("mitmdump")
        .display()
        .to_string()
}

/// `--set` before each.
pub fn sets<S: AsRef<str>>(options: &[S]) -> Vec<String> {
    let each = |set: &S| ["--set".to_owned(), set.as_ref().to_owned()];
    options.iter().flat_map(each).collect()
}

/// Tollgate on a free port, where no mode among the arguments says another one.
pub fn tollgate(arguments: &[String]) -> Tollgate {
    let store = ["--store", "off"].map(str::to_owned);
    let arguments = arguments.iter().chain(&store);
    if arguments.clone().any(|one| one.starts_with("mode=")) {
        let mut tollgate = command(binary());
        tollgate.args(arguments);
        return Tollgate::launch(tollgate);
    }
    Tollgate::start(arguments)
}

impl Theirs {
    /// Starts it on a free port, and waits until it says which.
    pub fn start(arguments: &[String]) -> Self {
        let confdir = TempDir::new().unwrap();
        let mut mitmdump = command(&mitmdump());
        mitmdump
            .args(["--listen-host", "127.0.0.1", "-p", "0"])
            .arg("--set")
            .arg(format!("confdir={}", confdir.path().display()))
            .args(arguments);
        let process = Process::start(mitmdump);
        let address = process.wait_stdout(LIMIT, "where it listens", |text| {
            let (_, rest) = text.split_once(" listening at ")?;
            let (address, _) = rest.split_once('\n')?;
            address.trim_end_matches('.').parse().ok()
        });
        Self {
            process,
            address,
            confdir,
        }
    }

    /// The certificate of its authority.
    pub fn cert(&self) -> PathBuf {
        self.confdir.path().join("mitmproxy-ca-cert.pem")
    }

    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Ends it as one would; what it wrote.
    pub fn stop(self) -> String {
        self.process.signal("INT");
        self.process.finish(LIMIT).text()
    }
}

impl Pair {
    /// With the same arguments, trusting the origin.
    pub fn start(origin: &Origin, arguments: &[String]) -> Self {
        let trust = format!("ssl_verify_upstream_trusted_ca={}", origin.ca().display());
        let mut all = sets(&[trust.as_str()]);
        all.extend(arguments.iter().cloned());
        Self {
            theirs: Theirs::start(&all),
            ours: tollgate(&all),
        }
    }

    /// Who asks mitmdump, and who asks Tollgate.
    pub fn clients(&self) -> [Client; 2] {
        [
            self.theirs.client().trusting(&[self.theirs.cert()]),
            Client::new(self.ours.address()).trusting(&[self.ours.cert().to_owned()]),
        ]
    }
}

/// The same through both, with the same options, over every transport.
#[track_caller]
pub fn compare(origin: &Origin, options: &[String], requests: &[Request]) {
    let pair = Pair::start(origin, &sets(options));
    compare_over(&pair, &Transport::ALL, origin, requests, Clone::clone);
}

/// The same through both; `shown` says what of each is compared.
#[track_caller]
pub fn compare_over<T: PartialEq + std::fmt::Debug>(
    pair: &Pair,
    transports: &[Transport],
    origin: &Origin,
    requests: &[Request],
    shown: impl Fn(&Came) -> T,
) {
    let [theirs, ours] = pair.clients();
    for transport in transports {
        let theirs = send(&theirs, *transport, origin, requests);
        let ours = send(&ours, *transport, origin, requests);
        assert!(
            theirs.iter().any(|came| came.0.is_some()),
            "{transport:?}: nobody got an answer, so nothing is compared"
        );
        for ((request, theirs), ours) in requests.iter().zip(&theirs).zip(&ours) {
            assert_eq!(
                shown(ours),
                shown(theirs),
                "Tollgate (left) and mitmdump (right), {transport:?}: {request:?}"
            );
        }
    }
}
