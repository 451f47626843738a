//! An intercepting proxy that does nothing but pass on: `noop ADDR CA-CERT CA-KEY EXTRA-ROOT [TUNNELLED-HOST]`.
use std::sync::Arc;
use tollgate_engine::{Config, HostPattern, Listen, Proxy};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let arg = |i: usize| {
        args.get(i)
            .ok_or("usage: noop ADDR CA-CERT CA-KEY EXTRA-ROOT [HOST]")
    };
    let authority = tollgate_ca::Authority::from_files(arg(2)?.as_ref(), arg(3)?.as_ref())?;
    let mut config = Config::default();
    config.listen = vec![Listen::Tcp(arg(1)?.parse()?).into()];
    config.tls.extra_roots.push(arg(4)?.into());
    if let Some(host) = args.get(5) {
        config.policy.ignore.push(HostPattern::new(host)?);
    }
    if let Some(workers) = args.get(6) {
        config.workers = workers.parse()?;
    }
    tollgate_engine::raise_file_limit();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            Proxy::builder()
                .authority(Arc::new(authority))
                .config(config)
                .build()?
                .run()
                .await?;
            Ok(())
        })
}
