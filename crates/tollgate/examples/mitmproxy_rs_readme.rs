//! The code of mitmproxy-rs's README with the crate name changed (and `pub(crate)`, so that
//! `tests/mitmproxy_rs.rs` can run the same).
#![allow(clippy::print_stdout, reason = "the README prints")]

use tollgate::compat::mitmproxy_rs::{HTTPFlow, ProxyBuilder, ResponseInterceptor};

pub(crate) struct MyInterceptor;

impl ResponseInterceptor for MyInterceptor {
    fn on_response(&self, flow: &mut HTTPFlow) {
        // Inspect/modify response
        if let Some(body) = &flow.response.content {
            println!("Response: {} bytes", body.len());
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proxy = ProxyBuilder::new()
        .listen_port(8080)
        .interceptor(MyInterceptor)
        .build()?;

    proxy.run().await
}
