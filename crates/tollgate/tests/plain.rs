//! Without `tls-intercept`: HTTP is relayed, TLS passes unopened whoever wants it otherwise.
#![cfg(test)]
#![cfg(not(feature = "tls-intercept"))]

mod support;

use std::time::Duration;

use support::{Client, Origin, TlsClient, blocking, root};
use tollgate::prelude::*;

struct Opens;

impl Interceptor for Opens {
    fn tls(&self, _: &ClientHello, _: &ConnectionInfo) -> TlsDecision {
        TlsDecision::Intercept
    }
}

fn config() -> Config {
    let mut config = Config::default();
    config.listen = vec![Listen::Tcp("127.0.0.1:0".parse().unwrap()).into()];
    config.policy.default = Action::Intercept;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_never_opened() {
    let tls = Origin::echo();
    let plain = Origin::plain(|_, out| support::reply(out, 200, &[], b"plain"));
    let handle = Proxy::builder()
        .config(config())
        .interceptor(Opens)
        .build()
        .unwrap()
        .start()
        .await
        .unwrap();
    for reloaded in [false, true] {
        if reloaded {
            handle.reload(config()).unwrap();
        }
        let (address, tls, plain) = (handle.local_addr(), tls.authority(), plain.authority());
        blocking(move || {
            let theirs = root(support::origin_authority_pem().as_bytes());
            assert_eq!(
                TlsClient::tls(address, &tls, &theirs).get("/x").text(),
                "/x"
            );
            let answer = Client::plain(address).get(&format!("http://{plain}/"));
            assert_eq!(answer.text(), "plain");
        })
        .await;
    }
    assert!(handle.shutdown(Duration::from_secs(5)).await.drained);
}
