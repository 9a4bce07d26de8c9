//! `lockstep run`: the configuration to roles, signals to a stop.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::log::{self, LogFormat};
use super::progress::{self, Progress};
use super::reload::{Reload, Taken};
use super::{ConfigArgs, Failure};
use crate::config::Config;
use crate::http;
use crate::http::metrics::Metrics;
use crate::run::{Exit, Limits, Role, RoleName, board, supervise_as};
use crate::status::Board;
use crate::{apply, capture};

/// Run the pipeline, or some of its roles, until SIGTERM or SIGINT
///
/// Creates what is missing and its own to create (publication, slot, topics, the schema "lockstep" in sinks) unless the
/// configuration says `create = false`. A failure that may heal is tried again for ever, with growing pauses. A failure that
/// needs a person halts its role with a named code and a command to type, while the other roles go on.
///
/// Roles may be spread over processes and machines. Two processes with one role are one at work and one hot standby.
///
/// What is edited in the configuration is taken while it runs, unless it says reload = false: once it is read without a finding
/// and `check` finds nothing new in its way, the roles stop in order and begin anew by it; until then what was before is in
/// force, and /status says why. SIGHUP looks at once.
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
    let files = (args.config.config.clone(), args.role.clone());
    super::block_on(serve(files, Taken { config: Arc::new(config), names }, for_people)).map(Exit::code)
}

/// The roles of this process, distinct, the source first.
pub(super) fn selected(config: &Config, asked: &[RoleName]) -> Result<Vec<RoleName>, Failure> {
    let sinks = config.sinks.iter().map(|sink| RoleName::Sink(sink.name.clone()));
    // Topics that another program writes are read from no source here.
    let source = config.topics.is_none().then_some(RoleName::Source);
    let all: Vec<RoleName> = source.into_iter().chain(sinks).collect();
    if let Some(unknown) = asked.iter().find(|name| !all.contains(name)) {
        let known: Vec<String> = all.iter().map(ToString::to_string).collect();
        return Err(Failure::Usage(format!(
            "there is no role {unknown} in this configuration; it has {}",
            known.join(", ")
        )));
    }
    Ok(all.into_iter().filter(|name| asked.is_empty() || asked.contains(name)).collect())
}

/// The roles run by one configuration after another, for as long as somebody edits it.
async fn serve((dir, asked): (PathBuf, Vec<RoleName>), mut taken: Taken, for_people: bool) -> Result<Exit, Failure> {
    let mut signals = Signals::new()?;
    let listener = match taken.config.http.listen {
        Some(listen) => Some(http::bind(listen).await?),
        None => None,
    };
    let listening =
        listener.as_ref().and_then(|listener| listener.local_addr().ok()).map(|address| address.to_string());
    // Kept for as long as the process lives: who asks between two configurations waits for the next one's answer.
    let listener = listener.map(TcpListener::into_std).transpose().map_err(no_listener)?;
    let admin = taken.config.http.admin.as_deref().map(http::admin::bind).transpose()?;
    let mut metrics = Metrics::new();
    let mut reload = Reload::new(dir, asked, &taken.config)?;
    let stop = CancellationToken::new();
    let (in_force, shown) = watch::channel(taken.config.clone());
    let asking = super::resync::asking(shown);
    let served = async {
        match admin {
            Some(admin) => admin.serve(asking, stop.clone()).await,
            None => stop.cancelled().await,
        }
        std::future::pending::<()>().await;
    };
    tokio::pin!(served);
    info!(
        version = env!("CARGO_PKG_VERSION"),
        pipeline = taken.config.name,
        roles = ?taken.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        http = listening.as_deref().unwrap_or("off"),
        "started"
    );
    loop {
        let Taken { config, names } = &taken;
        let roles: Vec<Role> = names.iter().map(|name| role(name, config, &metrics)).collect();
        let board = Board { configuration: Some(reload.watch()), ..board(&config.name, &roles) };
        let mut progress = Progress::new(board.clone(), for_people);
        let listener = listener.as_ref().map(std::net::TcpListener::try_clone).transpose().map_err(no_listener)?;
        let listener = listener.map(TcpListener::from_std).transpose().map_err(no_listener)?;
        let end = CancellationToken::new();
        let supervised = supervise_as(board, roles, metrics.clone(), listener, Limits::default(), end.clone());
        tokio::pin!(supervised);
        let mut next = None;
        let exit = {
            let edited = reload.next();
            tokio::pin!(edited);
            loop {
                tokio::select! {
                    exit = &mut supervised => break exit,
                    () = &mut served => {}
                    changed = &mut edited, if next.is_none() => {
                        next = Some(changed);
                        end.cancel();
                    }
                    () = tokio::time::sleep(progress::LOOK_INTERVAL) => progress.look(),
                    name = signals.next() => {
                        if stop.is_cancelled() {
                            warn!(signal = name, "asked to stop a second time: ending at once");
                            return Ok(Exit::Failed);
                        }
                        info!(signal = name, "asked to stop");
                        stop.cancel();
                        end.cancel();
                    }
                }
            }
        };
        match next {
            Some(changed) if exit == Exit::Drained && !stop.is_cancelled() => taken = changed,
            _ => {
                // Its file goes with it.
                stop.cancel();
                return Ok(exit);
            }
        }
        info!("the edited configuration is in force");
        in_force.send_replace(taken.config.clone());
        metrics = metrics.anew();
    }
}

fn no_listener(error: std::io::Error) -> Failure {
    Failure::Other(format!("can't listen on: {error}"))
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
