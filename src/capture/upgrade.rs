//! pg_upgrade of the source's server: what must be true before, and what of it can be seen after.
//!
//! Since Postgres 17 pg_upgrade carries logical slots over. It refuses to unless the old server's slot has been read to its end, and
//! it lets the new log begin behind the old one. So positions go on, and with L1 (the slot is confirmed only up to what the ledger
//! has) every change that the old server had is in the ledger. The new server has another system id, which would be
//! `SOURCE_MISMATCH`: that it is the old one made new is said by a person, and checked as far as a server shows it. Its tables
//! have the OIDs that the ledger knows, its slot is not behind the ledger, and no row of its catalog about the publication is
//! newer than the slot.
//!
//! A slot that somebody made by hand on the new server, after changes, can't be told from one that was carried over.

use std::time::Duration;

use crate::capture::start::application_name;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::ledger::entry::{SourceIdentity, Upgraded};
use crate::ledger::state::State;
use crate::lsn::Lsn;
use crate::postgres::slot::SlotFacts;
use crate::postgres::wire::Connection;
use crate::postgres::{catalog, look, slot};
use crate::relation::TableName;
use crate::session::{self, Session};

/// The first that carries logical slots over.
const VERSION_MIN: i32 = 170_000;

/// How long a reader that is at work is waited for. On a quiet server it needs some seconds to say that nothing happened.
const DRAIN_WAIT: Duration = Duration::from_secs(20);

const DRAIN_POLL: Duration = Duration::from_millis(200);

/// That everything which was committed when this was asked is in the ledger, whether or not a reader is at work. Gives the end of
/// the log at that time.
///
/// # Errors
/// `SERVER_VERSION`, `SLOT_LOST`, `NOT_DRAINED`.
pub async fn drained(config: &Config) -> Result<Lsn> {
    let session = session::connect(&config.source.database, &format!("lockstep:{}:check", config.name)).await?;
    carries_slots(&session).await?;
    let end = slot::insert_lsn(&*session).await?;
    let deadline = tokio::time::Instant::now() + DRAIN_WAIT;
    loop {
        let slot = our_slot(config, &session).await?;
        if slot.confirmed_flush.is_some_and(|confirmed| confirmed >= end) {
            break;
        }
        if slot.active_pid.is_none() {
            if slot::has_changes(&*session, &slot.name, &config.source.publication).await? {
                return Err(not_drained(
                    &slot,
                    end,
                    "start lockstep run, end all writes, then lockstep check --upgrade",
                ));
            }
            break;
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(not_drained(
                &slot,
                end,
                "wait until lockstep status shows no lag, then lockstep check --upgrade",
            ));
        }
        tokio::time::sleep(DRAIN_POLL).await;
    }
    session.close().await;
    Ok(end)
}

/// What the ledger is to be told where pg_upgrade has made this server.
///
/// # Errors
/// `REQUEST_REFUSED` where nothing was upgraded, `SOURCE_MISMATCH` where it is another server than the old one made new.
pub async fn carried(config: &Config, state: &State) -> Result<Upgraded> {
    let refused = |what: &str, hint: &str| Error::halt(Code::RequestRefused, what, hint);
    let Some(source) = &state.source else {
        return Err(refused("the ledger knows no source yet", "lockstep run"));
    };
    if state.asked.is_some() {
        return Err(refused("a restart was asked for, which makes a slot of its own", "lockstep run"));
    }
    let mut replication = Connection::open(&config.source, &application_name(config)).await?;
    let system = replication.identify_system().await?;
    if system.system_id == source.system_id {
        let what =
            "the server is the one that the ledger is written for: it was not upgraded, or that is noted already";
        return Err(refused(what, "lockstep run"));
    }
    let session = session::connect(&config.source.database, &application_name(config)).await?;
    carries_slots(&session).await?;
    let slot = our_slot(config, &session).await?;
    if (&system.dbname, &slot.name) != (&source.database, &source.slot) {
        return Err(another(&format!("the ledger is of database {:?} and slot {:?}", source.database, source.slot)));
    }
    let point = slot.confirmed_flush.ok_or_else(|| Error::retry_plain("the slot is still being made"))?;
    let closed = state.last.map_or(source.consistent_point, |last| last.closed);
    if point < closed {
        return Err(another(&format!("its slot stands at {point}, the ledger at {closed}: its log does not go on")));
    }
    let to = SourceIdentity {
        system_id: system.system_id,
        timeline: system.timeline,
        consistent_point: point,
        ..source.clone()
    };
    let published = unchanged(config, &session, &slot, state).await?;
    session.close().await;
    Ok(Upgraded { from: source.system_id, to, published })
}

/// The tables that the ledger knows are the same ones, and published as they were when the slot was made.
async fn unchanged(
    config: &Config,
    session: &Session,
    slot: &SlotFacts,
    state: &State,
) -> Result<Vec<(TableName, String)>> {
    let publication = &config.source.publication;
    if slot::is_older_than_publication(&**session, &slot.name, publication).await? {
        return Err(another(&format!("publication {publication:?} was changed since it has its slot")));
    }
    let names: Vec<TableName> = state.catalog.keys().cloned().collect();
    let looks = look::looks(&**session, publication, &names).await?;
    let mut published = Vec::new();
    for (name, now) in names.into_iter().zip(looks) {
        let known = &state.catalog[&name];
        // One that is gone or new since is found by the reader, as always; pg_upgrade alone makes no table anew.
        let Some(now) = now else { continue };
        if known.oid != now.oid {
            return Err(another(&format!("table {name} has OID {}, the ledger knows it with {}", now.oid, known.oid)));
        }
        published.extend(now.published.map(|mark| (name, mark)));
    }
    Ok(published)
}

async fn carries_slots(session: &Session) -> Result<()> {
    let version = catalog::source_facts(&**session).await?.version;
    if version >= VERSION_MIN {
        return Ok(());
    }
    let message =
        format!("the source is Postgres {}: slots are carried over by pg_upgrade from 17 on", version / 10_000);
    let hint = "lockstep restart after the upgrade, which makes a new slot and reads every table again";
    Err(Error::halt(Code::ServerVersion, message, hint))
}

async fn our_slot(config: &Config, session: &Session) -> Result<SlotFacts> {
    let name = &config.source.slot;
    let Some(found) = slot::slot_facts(&**session, name).await? else {
        return Err(Error::halt(Code::SlotLost, format!("slot {name:?} does not exist"), "lockstep restart")
            .fact("pg_upgrade carries a slot over only with wal_level = logical and room in max_replication_slots"));
    };
    slot::check_slot(&found, &config.source.database.dbname)?;
    Ok(found)
}

fn not_drained(slot: &SlotFacts, end: Lsn, hint: &str) -> Error {
    let confirmed = slot.confirmed_flush.unwrap_or(Lsn::ZERO);
    let message =
        format!("slot {:?} is not read to its end: it stands at {confirmed}, the log ends at {end}", slot.name);
    Error::halt(Code::NotDrained, message, hint)
}

fn another(why: &str) -> Error {
    let hint = "lockstep restart, which makes a new slot and reads every table again";
    Error::halt(Code::SourceMismatch, format!("the source is not the old server made new by pg_upgrade: {why}"), hint)
}
