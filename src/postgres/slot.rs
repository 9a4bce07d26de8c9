//! The replication slot, and the transactions that one has to wait for.
//!
//! The slot is what keeps the source's log until we have published it. It is judged before streaming starts: a slot of
//! another plugin, database or kind is foreign, one whose log is gone is lost, and one that is still being made is waited
//! for. Views differ between Postgres 14 and 18, so rows are read through `to_jsonb`: a column that is not there is NULL.
//!
//! Deliberately not here: comparing the slot with the ledger (`SLOT_MOVED`, `capture::start`).

use std::time::Duration;

use tokio_postgres::GenericClient;
use tokio_postgres::error::SqlState;

use super::failure::{failed, unreadable};
use super::snapshot::PgSnapshot;
use crate::error::{Code, Error, Result};
use crate::lsn::Lsn;
use crate::relation::quote_literal;

/// The only output plugin that is read.
pub const PLUGIN: &str = "pgoutput";

/// A row of `pg_replication_slots`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotFacts {
    pub name: String,
    /// `None` for a physical slot, as is `database`.
    pub plugin: Option<String>,
    pub database: Option<String>,
    /// `logical` or `physical`.
    pub slot_type: String,
    pub temporary: bool,
    /// The backend that streams from it, or makes it.
    pub active_pid: Option<i32>,
    /// The log is kept from here.
    pub restart_lsn: Option<Lsn>,
    pub confirmed_flush: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes of log until the slot is in danger; `None` without max_slot_wal_keep_size.
    pub safe_wal_size: Option<i64>,
    pub two_phase: bool,
    /// Postgres 17; false before.
    pub failover: bool,
    /// Postgres 17: being synchronized from a primary.
    pub synced: bool,
    /// Postgres 17: why it can't be read any more.
    pub invalidation_reason: Option<String>,
}

/// The slot of that name, if there is one.
pub async fn slot_facts(client: &(impl GenericClient + Sync), name: &str) -> Result<Option<SlotFacts>> {
    const SQL: &str = "
        SELECT s.plugin::text, s.database::text, s.slot_type, s.temporary, s.active_pid, s.restart_lsn::text,
               s.confirmed_flush_lsn::text, s.wal_status, s.safe_wal_size, s.two_phase,
               coalesce((j->>'failover')::bool, false), coalesce((j->>'synced')::bool, false), j->>'invalidation_reason'
        FROM pg_replication_slots s, LATERAL (SELECT to_jsonb(s) AS j) AS x WHERE s.slot_name = $1";
    let Some(row) = client.query_opt(SQL, &[&name]).await.map_err(|e| failed("reading the slot", e))? else {
        return Ok(None);
    };
    let lsn = |i: usize| -> Result<Option<Lsn>> {
        let text: Option<String> = row.try_get(i).map_err(|e| unreadable("pg_replication_slots", e))?;
        text.map(|t| parse_lsn(&t)).transpose()
    };
    let (restart_lsn, confirmed_flush) = (lsn(5)?, lsn(6)?);
    let read = || -> Result<SlotFacts, tokio_postgres::Error> {
        Ok(SlotFacts {
            name: name.to_owned(),
            plugin: row.try_get(0)?,
            database: row.try_get(1)?,
            slot_type: row.try_get(2)?,
            temporary: row.try_get(3)?,
            active_pid: row.try_get(4)?,
            restart_lsn,
            confirmed_flush,
            wal_status: row.try_get(7)?,
            safe_wal_size: row.try_get(8)?,
            two_phase: row.try_get(9)?,
            failover: row.try_get(10)?,
            synced: row.try_get(11)?,
            invalidation_reason: row.try_get(12)?,
        })
    };
    read().map(Some).map_err(|e| unreadable("pg_replication_slots", e))
}

fn parse_lsn(text: &str) -> Result<Lsn> {
    text.parse().map_err(|e| unreadable("LSN", e))
}

/// Whether the slot can be streamed from by us, in this database. Pure.
///
/// # Errors
/// `SLOT_FOREIGN`, `SLOT_TWO_PHASE` and `SLOT_LOST`; a retry while the slot is still being made.
pub fn check_slot(slot: &SlotFacts, database: &str) -> Result<()> {
    let name = &slot.name;
    let foreign = if slot.slot_type != "logical" {
        Some(format!("it is {}", slot.slot_type))
    } else if slot.plugin.as_deref() != Some(PLUGIN) {
        Some(format!("its plugin is {}, not {PLUGIN}", slot.plugin.as_deref().unwrap_or("none")))
    } else if slot.database.as_deref() != Some(database) {
        Some(format!("it is of database {:?}, not {database:?}", slot.database.as_deref().unwrap_or_default()))
    } else if slot.temporary {
        Some("it is temporary".to_owned())
    } else {
        None
    };
    if let Some(why) = foreign {
        let hint = format!("lockstep check, with another slot = \"…\" than {name:?} under [source]");
        return Err(Error::halt(Code::SlotForeign, format!("slot {name:?} is not ours: {why}"), hint));
    }
    if slot.two_phase {
        let message = format!("slot {name:?} was made with two_phase, so it sends transactions before they commit");
        let hint = format!(
            "SELECT pg_drop_replication_slot({}), then begin anew under another `name` in lockstep.toml",
            quote_literal(name)
        );
        return Err(Error::halt(Code::SlotTwoPhase, message, hint));
    }
    check_kept(slot)?;
    if slot.confirmed_flush.is_none() {
        let by = slot.active_pid.map_or_else(|| "nobody".to_owned(), |pid| format!("process {pid}"));
        return Err(Error::retry_plain(format!(
            "slot {name:?} is still being made by {by}: it waits for every transaction that was open when that began"
        )));
    }
    Ok(())
}

/// Whether the log that the slot stands for is still there. In the first instant of its making a slot has reserved none yet.
fn check_kept(slot: &SlotFacts) -> Result<()> {
    let why = match (&slot.invalidation_reason, slot.wal_status.as_deref(), slot.restart_lsn) {
        (Some(reason), _, _) => format!("it was invalidated ({reason})"),
        (None, Some("lost"), _) => "its log was removed (max_slot_wal_keep_size)".to_owned(),
        (None, _, None) if slot.active_pid.is_some() && slot.confirmed_flush.is_none() => return Ok(()),
        (None, _, None) => "the server keeps no log for it any more".to_owned(),
        (None, _, Some(_)) => return Ok(()),
    };
    let mut error = Error::halt(Code::SlotLost, format!("slot {:?} is lost: {why}", slot.name), "lockstep restart");
    if let Some(confirmed) = slot.confirmed_flush {
        error = error.fact(format!("changes after {confirmed} can't be read again; no sink was touched"));
    }
    Err(error)
}

/// Bytes of log that the server keeps for the slot; `None` if there is no such slot or it keeps nothing.
pub async fn retained_bytes(client: &(impl GenericClient + Sync), name: &str) -> Result<Option<u64>> {
    const SQL: &str = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8
        FROM pg_replication_slots WHERE slot_name = $1";
    let doing = "reading what the slot retains";
    let row = client.query_opt(SQL, &[&name]).await.map_err(|e| failed(doing, e))?;
    let bytes: Option<i64> =
        row.map(|r| r.try_get(0)).transpose().map_err(|e| unreadable("pg_replication_slots", e))?.flatten();
    Ok(bytes.map(|b| u64::try_from(b).unwrap_or(0)))
}

/// Whether a slot that nobody reads has anything to send of the publication. Leaves it where it is.
pub async fn has_changes(client: &(impl GenericClient + Sync), name: &str, publication: &str) -> Result<bool> {
    const SQL: &str = "SELECT count(*) > 0 FROM pg_logical_slot_peek_binary_changes($1, NULL, 1,
        'proto_version', '1', 'publication_names', quote_ident($2))";
    let doing = "looking at what the slot has to send";
    let row = client.query_one(SQL, &[&name, &publication]).await.map_err(|e| failed(doing, e))?;
    row.try_get(0).map_err(|e| unreadable("pg_logical_slot_peek_binary_changes", e))
}

/// Whether something in the catalog about the publication was written after a slot was made that nobody has read since.
pub async fn is_older_than_publication(
    client: &(impl GenericClient + Sync),
    name: &str,
    publication: &str,
) -> Result<bool> {
    const SQL: &str = "
        SELECT coalesce(bool_or(age(x) <= age(s.catalog_xmin)), true) FROM pg_replication_slots s, (
          SELECT xmin FROM pg_publication WHERE pubname = $2
          UNION ALL
          SELECT r.xmin FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $2) AS w (x)
        WHERE s.slot_name = $1";
    let doing = "comparing the publication with the slot";
    let row = client.query_one(SQL, &[&name, &publication]).await.map_err(|e| failed(doing, e))?;
    row.try_get(0).map_err(|e| unreadable("pg_publication", e))
}

/// Who sits in a backend, to name them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    pub pid: i32,
    pub role: String,
    pub application_name: String,
    /// `local` over a Unix socket.
    pub address: String,
    /// When it connected, as the session prints time.
    pub since: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Holder { pid, role, application_name, address, since } = self;
        write!(f, "process {pid} ({application_name:?} of role {role}, from {address}, since {since})")
    }
}

/// The session of a backend; `None` when it is gone.
pub async fn holder(client: &(impl GenericClient + Sync), pid: i32) -> Result<Option<Holder>> {
    const SQL: &str = "SELECT coalesce(usename::text, ''), coalesce(application_name, ''),
        coalesce(host(client_addr), 'local'), coalesce(backend_start::text, '') FROM pg_stat_activity WHERE pid = $1";
    let row = client.query_opt(SQL, &[&pid]).await.map_err(|e| failed("reading who holds the slot", e))?;
    row.map(|row| {
        Ok(Holder {
            pid,
            role: row.try_get(0)?,
            application_name: row.try_get(1)?,
            address: row.try_get(2)?,
            since: row.try_get(3)?,
        })
    })
    .transpose()
    .map_err(|e: tokio_postgres::Error| unreadable("pg_stat_activity", e))
}

/// Makes the slot and returns its consistent point: every commit that ends after it will be streamed.
///
/// Waits for all transactions that are running anywhere in the cluster; [`blockers`], asked over another connection, names
/// them. Giving up needs a cancel request: the server goes on when only the future is dropped. Must not run inside a
/// transaction block that has written.
pub async fn create_slot(
    client: &(impl GenericClient + Sync),
    name: &str,
    server_version: i32,
    failover: bool,
) -> Result<Lsn> {
    // Named arguments would be clearer, but they were renamed between releases.
    let failover_argument = if server_version >= 170_000 { format!(", {failover}") } else { String::new() };
    let sql = format!(
        "SELECT lsn::text FROM pg_create_logical_replication_slot({}, '{PLUGIN}', false, false{failover_argument})",
        quote_literal(name).trim_start()
    );
    let doing = format!("making slot {name:?}");
    match client.query_one(&sql, &[]).await {
        Ok(row) => {
            let lsn: String = row.try_get(0).map_err(|e| unreadable("consistent point", e))?;
            parse_lsn(&lsn)
        }
        Err(e) if e.code() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) => {
            let hint = "ALTER SYSTEM SET wal_level = logical; then restart the server";
            let why = e.as_db_error().map_or_else(|| e.to_string(), |db| db.message().to_owned());
            Err(Error::halt(Code::WalLevel, format!("{doing}: {why}"), hint))
        }
        Err(e) if e.code() == Some(&SqlState::CONFIGURATION_LIMIT_EXCEEDED) => Err(Error::retry(
            format!(
                "{doing}: every slot is taken, ALTER SYSTEM SET max_replication_slots = … makes room after a restart"
            ),
            e,
        )),
        Err(e) => Err(failed(doing, e)),
    }
}

/// Drops the slot if it is there. One that somebody reads from is in use, which is tried again.
pub async fn drop_slot(client: &(impl GenericClient + Sync), name: &str) -> Result<()> {
    const SQL: &str = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
    client.execute(SQL, &[&name]).await.map(drop).map_err(|e| failed(format!("dropping slot {name:?}"), e))
}

/// A transaction that is open, and so holds up slots and snapshots.
#[derive(Clone, PartialEq, Debug)]
pub struct Blocker {
    /// 32 bit, as the server shows it.
    pub xid: u32,
    /// `None` for a prepared transaction.
    pub pid: Option<i32>,
    /// Of the session; for a prepared transaction its global identifier.
    pub name: String,
    /// `idle in transaction`, `active`, `prepared` …
    pub state: String,
    pub age_seconds: f64,
}

impl std::fmt::Display for Blocker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "transaction {} of process {pid} ({:?}, {})", self.xid, self.name, self.state)?,
            None => write!(f, "prepared transaction {} ({:?})", self.xid, self.name)?,
        }
        write!(f, ", open for {:.0} s", self.age_seconds)
    }
}

/// Blockers reported at once: enough to act on, few enough for a status line.
const BLOCKERS_MAX: i64 = 5;

/// The oldest open transactions of the whole cluster that have an id, oldest first, our own excepted.
///
/// Statements are not read: they can hold values. Another role's sessions show only their pid without `pg_read_all_stats`.
pub async fn blockers(client: &(impl GenericClient + Sync)) -> Result<Vec<Blocker>> {
    const SQL: &str = "
        SELECT b.xid::text::int8, b.pid, b.name, b.state, b.age_seconds FROM (
          SELECT backend_xid AS xid, pid, coalesce(application_name, '') AS name, coalesce(state, 'unknown') AS state,
                 coalesce(extract(epoch FROM clock_timestamp() - xact_start), 0)::float8 AS age_seconds
          FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
          UNION ALL
          SELECT transaction, NULL, gid, 'prepared', extract(epoch FROM clock_timestamp() - prepared)::float8
          FROM pg_prepared_xacts) AS b
        ORDER BY age(b.xid) DESC LIMIT $1";
    let doing = "reading which transactions are open";
    let rows = client.query(SQL, &[&BLOCKERS_MAX]).await.map_err(|e| failed(doing, e))?;
    rows.iter()
        .map(|row| {
            Ok(Blocker {
                xid: u32::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0),
                pid: row.try_get(1)?,
                name: row.try_get(2)?,
                state: row.try_get(3)?,
                age_seconds: row.try_get(4)?,
            })
        })
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(|e| unreadable("pg_stat_activity", e))
}

/// A transaction id of our own that has ended when this returns. Everything that began to write before it has a lower one.
/// Must not run inside a transaction block.
pub async fn fresh_xid(client: &(impl GenericClient + Sync)) -> Result<u64> {
    let text = one_text(client, "SELECT pg_current_xact_id()::text", "taking a transaction id").await?;
    text.parse().map_err(|e| unreadable("transaction id", e))
}

/// What is visible now. In a REPEATABLE READ transaction: what it sees throughout.
pub async fn snapshot_now(client: &(impl GenericClient + Sync)) -> Result<PgSnapshot> {
    let text = one_text(client, "SELECT pg_current_snapshot()::text", "taking a snapshot").await?;
    text.parse().map_err(|e| unreadable("snapshot", e))
}

/// How often [`wait_visible`] looks; mostly the first look is enough.
const VISIBLE_POLL: Duration = Duration::from_millis(5);

/// Waits until new snapshots see what the transaction (as BEGIN in the stream names it) did. The stream shows a commit before
/// they do, a little while mostly, and for as long as a synchronous standby takes.
///
/// # Errors
/// A retry when it takes longer than `timeout`.
pub async fn wait_visible(client: &(impl GenericClient + Sync), xid: u32, timeout: Duration) -> Result<()> {
    let deadline = tokio::time::Instant::now() + timeout;
    loop {
        let snapshot = snapshot_now(client).await?;
        if snapshot.sees(snapshot.widen(xid)) {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::retry_plain(format!(
                "waiting to see in the catalog what transaction {xid} did; is its commit held up by a synchronous standby?"
            )));
        }
        tokio::time::sleep(VISIBLE_POLL).await;
    }
}

/// The end of the server's log.
pub async fn current_lsn(client: &(impl GenericClient + Sync)) -> Result<Lsn> {
    let text = one_text(client, "SELECT pg_current_wal_lsn()::text", "reading the end of the log").await?;
    text.parse().map_err(|e| unreadable("LSN", e))
}

/// Where the next record of the source's log will stand: everything that is committed now stands before it, also what is not
/// written to disk yet.
pub async fn insert_lsn(client: &(impl GenericClient + Sync)) -> Result<Lsn> {
    let text = one_text(client, "SELECT pg_current_wal_insert_lsn()::text", "reading the end of the log").await?;
    text.parse().map_err(|e| unreadable("LSN", e))
}

async fn one_text(client: &(impl GenericClient + Sync), sql: &str, doing: &str) -> Result<String> {
    let row = client.query_one(sql, &[]).await.map_err(|e| failed(doing, e))?;
    row.try_get(0).map_err(|e| unreadable("answer", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> SlotFacts {
        SlotFacts {
            name: "s".into(),
            plugin: Some("pgoutput".into()),
            database: Some("d".into()),
            slot_type: "logical".into(),
            temporary: false,
            active_pid: None,
            restart_lsn: Some(Lsn(1)),
            confirmed_flush: Some(Lsn(2)),
            wal_status: Some("reserved".into()),
            safe_wal_size: None,
            two_phase: false,
            failover: false,
            synced: false,
            invalidation_reason: None,
        }
    }

    #[test]
    fn each_trouble_has_its_code() {
        let code = |change: &dyn Fn(&mut SlotFacts)| {
            let mut slot = slot();
            change(&mut slot);
            check_slot(&slot, "d").map_err(|e| e.code())
        };
        assert_eq!(code(&|_| {}), Ok(()));
        assert_eq!(code(&|s| s.wal_status = Some("unreserved".into())), Ok(()));
        let foreign = Err(Some(Code::SlotForeign));
        assert_eq!(code(&|s| s.plugin = Some("wal2json".into())), foreign);
        assert_eq!(code(&|s| s.database = Some("other".into())), foreign);
        assert_eq!(code(&|s| s.temporary = true), foreign);
        assert_eq!(code(&|s| (s.slot_type, s.plugin) = ("physical".into(), None)), foreign);
        assert_eq!(code(&|s| s.two_phase = true), Err(Some(Code::SlotTwoPhase)));
        let lost = Err(Some(Code::SlotLost));
        assert_eq!(code(&|s| s.wal_status = Some("lost".into())), lost);
        assert_eq!(code(&|s| s.restart_lsn = None), lost);
        assert_eq!(code(&|s| s.invalidation_reason = Some("idle_timeout".into())), lost);
        // Still being made: no code, so it is tried again.
        assert_eq!(code(&|s| s.confirmed_flush = None), Err(None));
    }
}
