use lockstep::run::{Limits, Role, supervise};
use std::path::Path;
use std::sync::Arc;
fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("LOCKSTEP_LOG").unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .init();
    let dir = std::env::args().nth(3).unwrap();
    let config = match lockstep::config::load(Path::new(&dir), &|n| std::env::var(n).ok()) {
        Ok(c) => Arc::new(c),
        Err(f) => {
            eprintln!("{f}");
            std::process::exit(2)
        }
    };
    let rt = tokio::runtime::Runtime::new().unwrap();
    let code = rt.block_on(async {
        let metrics = lockstep::http::metrics::Metrics::new();
        let mut roles = vec![];
        let c = config.clone();
        roles.push(Role::source(&metrics, move |r, m, t| lockstep::capture::driver::run(c.clone(), r, m, t)));
        for s in &config.sinks {
            let c = config.clone();
            let n = s.name.clone();
            roles.push(Role::sink(&s.name, &metrics, move |r, m, t| {
                lockstep::apply::driver::run(c.clone(), n.clone(), r, m, t)
            }));
        }
        let token = tokio_util::sync::CancellationToken::new();
        let t2 = token.clone();
        tokio::spawn(async move {
            let mut s = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
            tokio::select! {_ = s.recv() => {}, _ = tokio::signal::ctrl_c() => {}};
            t2.cancel();
        });
        let l = match config.http.listen {
            Some(a) => Some(lockstep::http::bind(a).await.unwrap()),
            None => None,
        };
        supervise(&config.name, roles, metrics, l, Limits::default(), token).await.code()
    });
    std::process::exit(code.into());
}
