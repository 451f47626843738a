//! Refuses hosts and paths; what is refused never reaches an origin: `cargo run --example block`.

use std::sync::Arc;

use tollgate::prelude::*;

struct NoAdmin;

impl Interceptor for NoAdmin {
    fn interest(&self, _flow: &Flow) -> Interest {
        Interest::REQUEST
    }

    fn request(&self, flow: &mut Flow) -> Step {
        if flow.request.path().starts_with(b"/admin") {
            return Step::respond(Reply::new(403).text("blocked by policy"));
        }
        Step::Continue
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::default();
    // Refused before anything is dialled; a tunnel to a pinned client's host; everything else is opened.
    config.policy.block = vec![HostPattern::new("*.ads.example")?];
    config.policy.ignore = vec![HostPattern::new("pinned.example:443")?];

    let authority = CertificateAuthority::new("~/.tollgate")?;
    let proxy = Proxy::builder()
        .config(config)
        .authority(Arc::new(authority))
        .interceptor(NoAdmin)
        .build()?;
    proxy.run().await?;
    Ok(())
}
