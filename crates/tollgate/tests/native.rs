//! The native surface through the facade, end to end over real TLS.
#![cfg(test)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::{Origin, TlsClient, Trace, blocking, root};
use tollgate::prelude::*;

struct Gate(Trace);

impl Interceptor for Gate {
    fn interest(&self, _: &Flow) -> Interest {
        Interest::HEADS
    }

    fn request(&self, flow: &mut Flow) -> Step {
        if flow.request.path().starts_with(b"/admin") {
            return Step::respond(Reply::new(403).text("no"));
        }
        Step::Continue
    }

    fn response(&self, flow: &mut Flow) -> Step {
        if let Some(response) = &mut flow.response {
            response.headers_mut().set(b"X-Seen", b"1").unwrap();
        }
        Step::Continue
    }

    fn end(&self, flow: &Flow, outcome: &Outcome) {
        self.0.add(format!("{} {:?}", flow.url(), outcome.kind));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_five_lines_work() {
    let origin = Origin::echo();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("roots.pem"),
        support::origin_authority_pem(),
    )
    .unwrap();
    let authority = Arc::new(CertificateAuthority::new(dir.path()).unwrap());
    let trace = Trace::default();
    let mut config = Config::default();
    config.listen = vec![Listen::Tcp("127.0.0.1:0".parse().unwrap()).into()];
    config.tls.extra_roots = vec![dir.path().join("roots.pem")];

    let handle = Proxy::builder()
        .config(config)
        .authority(Arc::clone(&authority))
        .interceptor(Gate(trace.clone()))
        .build()
        .unwrap()
        .start()
        .await
        .unwrap();
    let (address, name) = (handle.local_addr(), origin.authority());
    let (fine, blocked) = blocking(move || {
        let mut client = TlsClient::tls(address, &name, &root(authority.cert_pem().as_bytes()));
        (client.get("/fine"), client.get("/admin/x"))
    })
    .await;
    assert_eq!((fine.text(), fine.header("x-seen")), ("/fine", Some("1")));
    assert_eq!((blocked.status(), blocked.text()), (403, "no"));
    assert_eq!(origin.requests().len(), 1);
    let url = |path: &str| format!("https://{}{path}", origin.authority());
    assert_eq!(
        trace.wait(|calls| calls.len() == 2),
        [
            format!("{} Completed", url("/fine")),
            format!("{} Answered", url("/admin/x")),
        ]
    );
    let end = handle.shutdown(Duration::from_secs(1)).await;
    assert!(end.drained);
    assert_eq!(end.metrics.flows_total, 2);
}
