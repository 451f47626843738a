//! Prints every exchange: `cargo run --example inspect`, then `curl -x http://127.0.0.1:8080 --cacert
//! ~/.tollgate/tollgate-ca-cert.pem https://example.com/`.
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::sync::Arc;

use tollgate::prelude::*;

struct Inspect;

impl Interceptor for Inspect {
    fn interest(&self, _flow: &Flow) -> Interest {
        Interest::END
    }

    fn end(&self, flow: &Flow, outcome: &Outcome) {
        let method = String::from_utf8_lossy(flow.request.method());
        let end = match (&outcome.error, &flow.response) {
            (Some(error), _) => error.to_string(),
            (None, Some(response)) => {
                format!("{} {} bytes", response.status(), response.body_size)
            }
            (None, None) => "no response".to_owned(),
        };
        println!("{method} {} -> {end}", flow.url());
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let authority = CertificateAuthority::new("~/.tollgate")?;
    let proxy = Proxy::builder()
        .authority(Arc::new(authority))
        .interceptor(Inspect)
        .build()?;
    proxy.run().await?;
    Ok(())
}
