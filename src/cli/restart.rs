//! `lockstep restart`: the way on after a loss that no one can make good, or after pg_upgrade of the source.
//!
//! The command only asks, by a request in the ledger; the source role does it at its next start: a new slot, then an entry that
//! every sink goes on from, then every table read again through the snapshot mechanism. Whatever dies meanwhile goes on where it
//! was, and asking again is always safe.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use uuid::Uuid;

use super::{ConfigArgs, Failure};
use crate::capture::upgrade;
use crate::config::Config;
use crate::kafka::topics::{self, Kind, Wanted};
use crate::ledger::entry::{Body, Request, RequestKind};
use crate::ledger::topic::{APPEND_TIMEOUT, Appender, Reading};
use crate::sink::{Sink, for_engine};

/// Begin anew with a new slot after a loss, and read every table again while the sinks stay in use
///
/// For SLOT_LOST, SLOT_MOVED, SOURCE_UNDECODABLE, LEDGER_LOST, LEDGER_RECREATED, TOPIC_MISSING and TOPIC_RECREATED; for
/// DIVERGED and SOURCE_MISMATCH once it is certain that the source is right as it is. Remove the cause first.
///
/// Writes a request into the ledger, which is made if it is gone. The source role carries it out when it is started the next
/// time: it drops its slot, makes a new one, and loads every table again. Sinks go on by themselves: rows that are right are not
/// rewritten, rows that should not be there go; until that ends their phase is "snapshot". Start roles that are halted again.
/// May be run again at any time.
///
/// After pg_upgrade (Postgres 17 and newer carry slots over) nothing is lost: `lockstep restart --upgraded` notes the new server in
/// the ledger, and every sink goes on where it stands. Before the upgrade ask `lockstep check --upgrade`.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct RestartArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Why, for whoever reads the ledger later
    #[arg(long, value_name = "TEXT", default_value = "lockstep restart")]
    reason: String,
    /// pg_upgrade made the source's server, and carried the slot over: go on with both, and read nothing again
    #[arg(long, conflicts_with = "reason")]
    upgraded: bool,
}

pub fn run(args: &RestartArgs) -> Result<u8, Failure> {
    let config = super::load_own(&args.config.config, "restart")?;
    if args.upgraded {
        return super::block_on(go_on_upgraded(&Arc::new(config)));
    }
    super::block_on(async {
        let wanted = Wanted { name: config.kafka.ledger.clone(), partitions: 1, kind: Kind::Ledger };
        let ledger = topics::ensure(&config.kafka, &[wanted], config.create).await?.remove(0);
        let kafka = config.kafka.clone();
        let state = crate::ledger::topic::beside(move || Reading::open(&kafka)?.fold_all()).await?;
        let old_ledger = old_ledger(&config, ledger.id, state.source.is_some()).await?;
        let request = Request::new(Uuid::new_v4(), RequestKind::Restart, "", Vec::new(), &args.reason);
        let request = Request { old_ledger, ..request };
        let mut appender = Appender::open(&config.kafka)?;
        appender.base = state.base;
        let offset = appender.append_and_wait(Body::Request(request), APPEND_TIMEOUT).await?;
        appender.close(Duration::from_secs(1));
        super::print(&format!(
            "a restart is asked for (ledger entry {offset}); roles that are halted take it up when they are started again\n"
        ))?;
        Ok(0)
    })
}

/// Slot, ledger and sinks stay as they are; only the server has another identity.
async fn go_on_upgraded(config: &Arc<Config>) -> Result<u8, Failure> {
    let kafka = config.kafka.clone();
    let state = crate::ledger::topic::beside(move || Reading::open(&kafka)?.fold_all()).await?;
    let upgraded = upgrade::carried(config, &state).await?;
    let point = upgraded.to.consistent_point;
    let mut appender = Appender::open(&config.kafka)?;
    appender.base = state.base;
    let offset = appender.append_and_wait(Body::Upgraded(upgraded), APPEND_TIMEOUT).await?;
    appender.close(Duration::from_secs(1));
    super::print(&format!(
        "the source goes on from {point} (ledger entry {offset}); roles that are halted take it up when they are started again\n"
    ))?;
    Ok(0)
}

/// The ledger that the sinks' progress names, if it is not the one that there is now. Only they know it.
async fn old_ledger(config: &Config, now: Uuid, intact: bool) -> Result<Option<Uuid>, Failure> {
    let mut found: Option<(Uuid, &str)> = None;
    for sink in &config.sinks {
        let progress = async {
            for_engine!(sink, S => <S as Sink>::connect(sink, &config.name, Uuid::new_v4()).await?.found_progress().await)
        };
        let row = match progress.await {
            Ok(row) => row,
            // In a ledger that is the old one there is nothing to tell.
            Err(_) if intact => continue,
            Err(error) => return Err(error.into()),
        };
        let Some(old) = row.map(|row| row.standing.ledger_topic_id).filter(|id| *id != now) else { continue };
        match found {
            Some((first, name)) if first != old => {
                return Err(Failure::Other(format!(
                    "sinks {name} and {} follow different ledgers, {first} and {old}: one of them must be copied anew\n  \
                     help: lockstep explain LEDGER_RECREATED",
                    sink.name
                )));
            }
            _ => found = Some((old, &sink.name)),
        }
    }
    Ok(found.map(|(old, _)| old))
}
