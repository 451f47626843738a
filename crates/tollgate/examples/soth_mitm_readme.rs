//! The code of soth-mitm's README with the crate name changed (and `pub(crate)`, so that
//! `tests/soth_mitm.rs` can run the same).

use std::time::Duration;

use bytes::Bytes;
use tollgate::compat::soth_mitm::{
    HandlerDecision, InterceptHandler, MitmConfig, MitmProxyBuilder, ProcessInfo, RawRequest,
};

pub(crate) struct Gate;

impl InterceptHandler for Gate {
    fn should_intercept_tls(&self, host: &str, process_info: Option<&ProcessInfo>) -> bool {
        let _ = host;
        process_info.and_then(|p| p.exe_name.as_deref()) != Some("trusted-local-agent")
    }

    async fn on_request(&self, request: &RawRequest) -> HandlerDecision {
        if request.path.contains("/blocked") {
            return HandlerDecision::Block {
                status: 403,
                body: Bytes::from_static(b"blocked by policy"),
            };
        }
        HandlerDecision::Allow
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = MitmConfig::default();
    config
        .interception
        .destinations
        .push("api.example.com:443".to_string());

    let proxy = MitmProxyBuilder::new(config, Gate).build()?;
    let handle = proxy.start().await?;

    let _metrics = handle.metrics();
    handle.shutdown(Duration::from_secs(2)).await?;
    Ok(())
}
