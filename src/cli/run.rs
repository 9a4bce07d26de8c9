//! `lockstep run`: the configuration to roles, signals to a stop.

use std::sync::Arc;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::log::{self, LogFormat};
use super::progress::{self, Progress};
use super::{ConfigArgs, Failure};
use crate::config::Config;
use crate::http;
use crate::http::metrics::Metrics;
use crate::run::{Exit, Limits, Role, RoleName, board, supervise};
use crate::{apply, capture};

/// Run the pipeline, or some of its roles, until SIGTERM or SIGINT
///
/// Creates what is missing and its own to create (publication, slot, topics, the schema "lockstep" in sinks) unless the
/// configuration says `create = false`. A failure that may heal is tried again for ever, with growing pauses. A failure that
/// needs a person halts its role with a named code and a command to type, while the other roles go on.
///
/// Roles may be spread over processes and machines. Two processes with one role are one at work and one hot standby.
///
/// SIGTERM or SIGINT stops in order, within 10 s: the source stops reading, what was read is written and confirmed, sinks
/// apply what is there. A second signal ends at once; nothing is lost by that either, the next start resumes from the ledger.
///
/// Exits with 0 after a stop, 1 when something did not stop in time, 2 when the configuration has findings, 3 when nothing
/// can move any more: every role is halted, or the source is halted and no sink has anything left to apply.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Which roles this process has: "source" or "sink:NAME"; may be given several times [default: all of them]
    #[arg(long, value_name = "ROLE")]
    role: Vec<RoleName>,
    /// How logs are written to standard error [default: text for a terminal, else json]
    #[arg(long, value_enum, value_name = "FORMAT", env = "LOCKSTEP_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

pub fn run(args: &RunArgs) -> Result<u8, Failure> {
    let config = super::load(&args.config.config)?;
    let names = selected(&config, &args.role)?;
    log::init(args.log_format)?;
    log::end_on_panic();
    let for_people = args.log_format.unwrap_or_else(log::detected) == LogFormat::Text;
    super::block_on(serve(Arc::new(config), &names, for_people)).map(Exit::code)
}

/// The roles of this process, distinct, the source first.
fn selected(config: &Config, asked: &[RoleName]) -> Result<Vec<RoleName>, Failure> {
    let sinks = config.sinks.iter().map(|sink| RoleName::Sink(sink.name.clone()));
    let all: Vec<RoleName> = std::iter::once(RoleName::Source).chain(sinks).collect();
    if let Some(unknown) = asked.iter().find(|name| !all.contains(name)) {
        let known: Vec<String> = all.iter().map(ToString::to_string).collect();
        return Err(Failure::Usage(format!(
            "there is no role {unknown} in this configuration; it has {}",
            known.join(", ")
        )));
    }
    Ok(all.into_iter().filter(|name| asked.is_empty() || asked.contains(name)).collect())
}

async fn serve(config: Arc<Config>, names: &[RoleName], for_people: bool) -> Result<Exit, Failure> {
    let mut signals = Signals::new()?;
    let listener = match config.http.listen {
        Some(listen) => Some(http::bind(listen).await?),
        None => None,
    };
    let admin = config.http.admin.as_deref().map(http::admin::bind).transpose()?;
    let metrics = Metrics::new();
    let roles: Vec<Role> = names.iter().map(|name| role(name, &config, &metrics)).collect();
    let listening =
        listener.as_ref().and_then(|listener| listener.local_addr().ok()).map(|address| address.to_string());
    info!(
        version = env!("CARGO_PKG_VERSION"),
        pipeline = config.name,
        roles = ?names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        http = listening.as_deref().unwrap_or("off"),
        "started"
    );
    let mut progress = Progress::new(board(&config.name, &roles), for_people);
    let shutdown = CancellationToken::new();
    let supervised = supervise(&config.name, roles, metrics, listener, Limits::default(), shutdown.clone());
    tokio::pin!(supervised);
    let asking = super::resync::asking(config.clone());
    let served = async {
        match admin {
            Some(admin) => admin.serve(asking, shutdown.clone()).await,
            None => shutdown.cancelled().await,
        }
        std::future::pending::<()>().await;
    };
    tokio::pin!(served);
    loop {
        tokio::select! {
            exit = &mut supervised => return Ok(exit),
            () = &mut served => {}
            () = tokio::time::sleep(progress::LOOK_INTERVAL) => progress.look(),
            name = signals.next() => {
                if shutdown.is_cancelled() {
                    warn!(signal = name, "asked to stop a second time: ending at once");
                    return Ok(Exit::Failed);
                }
                info!(signal = name, "asked to stop");
                shutdown.cancel();
            }
        }
    }
}

/// Where the engines are plugged in.
fn role(name: &RoleName, config: &Arc<Config>, metrics: &Metrics) -> Role {
    let config = config.clone();
    match name {
        RoleName::Source => Role::source(metrics, move |reporter, metrics, token| {
            capture::driver::run(config.clone(), reporter, metrics, token)
        }),
        RoleName::Sink(sink) => {
            let name = sink.clone();
            Role::sink(sink, metrics, move |reporter, metrics, token| {
                apply::driver::run(config.clone(), name.clone(), reporter, metrics, token)
            })
        }
    }
}

struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> Result<Signals, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::Other(format!("can't listen for signals: {error}")));
        Ok(Signals { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())? })
    }

    /// The next request to stop. Cancel-safe.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
