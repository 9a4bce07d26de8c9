//! The progress row in a MariaDB: the columns of docs/protocol.md in `lockstep_progress`, a table of the database that the URL
//! names, so that whoever dumps and restores that database has rows and progress of one moment.
//!
//! It moves by compare-and-set like Postgres' row ([`crate::sink::progress`]). Who owns the sink and lives is told by a lock of the
//! server (`GET_LOCK`), which ends with the connection that has it. The lock elects, the compare-and-set makes safe.

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::fit::quote;
use super::link::{Link, Texts, text};
use super::refusal::classify;
use super::value::literal;
use crate::error::{Code, Error, Halt, Result};
use crate::lsn::Position;
use crate::record::Epoch;
use crate::sink::lease::Activity;
use crate::sink::progress::{FORMAT, GROUP, Owner, Phase, ProgressRow, Standing};

const TABLE: &str = "lockstep_progress";

/// Names the row, and where it is.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub pipeline: String,
    pub sink: String,
    pub database: String,
}

const COLUMNS: &str = "pipeline VARCHAR(64), sink VARCHAR(64), `group` VARCHAR(64), ledger_topic_id CHAR(36), \
    source_system_id DECIMAL(20,0), timeline INT, ledger_offset BIGINT, join_offset BIGINT, reader_epoch BIGINT, reader_nonce BIGINT, \
    commit_lsn VARCHAR(17), ordinal BIGINT, closed_lsn VARCHAR(17), commit_time DATETIME(6), phase VARCHAR(16), \
    worker_epoch BIGINT, worker_id CHAR(36), backend_pid BIGINT, backend_start DATETIME(6), format INT, updated_at DATETIME(6), \
    PRIMARY KEY (pipeline, sink, `group`)";

/// Times cross as microseconds.
const READ: &str = "ledger_topic_id, source_system_id, timeline, ledger_offset, join_offset, reader_epoch, reader_nonce, commit_lsn, \
    ordinal, closed_lsn, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', commit_time), phase, worker_epoch, worker_id, backend_pid, \
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', backend_start), TIMESTAMPDIFF(MICROSECOND, '1970-01-01', updated_at), format";

const NOW: &str = "UTC_TIMESTAMP(6)";

impl Name {
    fn table(&self) -> String {
        format!("{}.{}", quote(&self.database), quote(TABLE))
    }

    fn create(&self) -> String {
        format!(
            "CREATE TABLE {} ({COLUMNS}) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
            self.table()
        )
    }

    fn is_row(&self) -> String {
        format!(
            "pipeline = {} AND sink = {} AND `group` = {}",
            literal(&self.pipeline),
            literal(&self.sink),
            literal(GROUP)
        )
    }

    /// Of the lock, which is one of the whole server and has at most 64 characters.
    fn lock(&self) -> String {
        let named = format!("{}\0{}\0{}\0{GROUP}", self.database, self.pipeline, self.sink);
        format!("'lockstep:{}'", &hex::encode(Sha256::digest(named))[..32])
    }
}

/// What there is of the table: its engine.
async fn engine(link: &mut Link, name: &Name) -> Result<Option<String>> {
    let sql = format!(
        "SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {}",
        literal(&name.database),
        literal(TABLE)
    );
    let rows = link.rows(sql.as_bytes()).await.map_err(|error| classify("looking for the sink's progress", error))?;
    Ok(rows.first().map(|row| text(Some(row), 0)))
}

/// Makes the table if it is missing, or says what to type.
pub(super) async fn prepare(link: &mut Link, name: &Name, create: bool) -> Result<()> {
    match engine(link, name).await? {
        Some(engine) if engine.eq_ignore_ascii_case("InnoDB") => Ok(()),
        Some(engine) => Err(Error::halt(
            Code::SinkTable,
            format!("table {TABLE} at the sink is of the engine {engine}, which has no transactions"),
            format!("ALTER TABLE {} ENGINE = InnoDB", name.table()),
        )),
        None if create => {
            // Another worker may make it at the same moment.
            let sql = name.create().replacen("CREATE TABLE", "CREATE TABLE IF NOT EXISTS", 1);
            let hint = format!("GRANT CREATE ON {}.* TO …", quote(&name.database));
            link.run(sql.as_bytes()).await.map(drop).map_err(|error| {
                match classify("making the table of progress", error) {
                    Error::Halt(halt) if halt.code == Code::NoRight => Halt { hint, ..*halt }.into(),
                    error => error,
                }
            })
        }
        None => Err(Halt {
            code: Code::CreateOff,
            message: format!("create = false and the sink has no {TABLE}"),
            facts: vec![format!("{};", name.create())],
            hint: "run this statement at the sink".into(),
        }
        .into()),
    }
}

pub(super) async fn exists(link: &mut Link, name: &Name) -> Result<bool> {
    Ok(engine(link, name).await?.is_some())
}

pub(super) async fn read(link: &mut Link, name: &Name) -> Result<Option<ProgressRow>> {
    let sql = format!("SELECT {READ} FROM {} WHERE {}", name.table(), name.is_row());
    let rows = link.rows(sql.as_bytes()).await.map_err(|error| failed(name, error))?;
    rows.first().map(|row| parse(name, row)).transpose()
}

/// A table of another layout, or a failure that may heal.
fn failed(name: &Name, error: mysql_async::Error) -> Error {
    match &error {
        mysql_async::Error::Server(refusal) if refusal.code == 1054 => {
            mismatch(name, "does not have the columns of this version")
        }
        _ => classify("reading the sink's progress", error),
    }
}

fn mismatch(name: &Name, what: &str) -> Error {
    let hint = format!("SELECT * FROM {}", name.table());
    Error::halt(Code::ProgressMismatch, format!("{TABLE} at the sink {what}"), hint)
}

/// Writes the first row, owned by this worker, unless there is one.
pub(super) async fn seed(link: &mut Link, name: &Name, standing: &Standing, worker: Uuid) -> Result<()> {
    let sql = format!(
        "INSERT IGNORE INTO {} SET pipeline = {}, sink = {}, `group` = {}, {}, worker_epoch = 0, worker_id = '{worker}', \
         backend_pid = CONNECTION_ID(), backend_start = {NOW}, format = {FORMAT}, updated_at = {NOW}",
        name.table(),
        literal(&name.pipeline),
        literal(&name.sink),
        literal(GROUP),
        assignments(standing),
    );
    link.run(sql.as_bytes()).await.map(drop).map_err(|error| failed(name, error))
}

/// Bumps the worker epoch if the owner is still `seen`; false if another worker was quicker. Waits for the owner's open
/// transaction, at most the session's lock time-out.
pub(super) async fn bump(link: &mut Link, name: &Name, seen: &Owner, worker: Uuid) -> Result<bool> {
    let sql = format!(
        "UPDATE {} SET worker_epoch = worker_epoch + 1, worker_id = '{worker}', backend_pid = CONNECTION_ID(), \
         backend_start = {NOW}, updated_at = {NOW} WHERE {} AND worker_epoch = {} AND worker_id = '{}'",
        name.table(),
        name.is_row(),
        seen.worker_epoch,
        seen.worker_id,
    );
    let done = link.run(sql.as_bytes()).await.map_err(|error| failed(name, error))?;
    Ok(done.iter().any(|done| done.rows == 1))
}

/// The compare-and-set.
pub(super) fn cas(name: &Name, from: &ProgressRow, to: &Standing) -> String {
    let (standing, owner) = (&from.standing, &from.owner);
    format!(
        "UPDATE {} SET {}, updated_at = {NOW} WHERE {} AND ledger_offset = {} AND reader_epoch = {} AND reader_nonce = {} \
         AND worker_epoch = {} AND worker_id = '{}'",
        name.table(),
        assignments(to),
        name.is_row(),
        standing.ledger_offset,
        standing.reader.offset.cast_signed(),
        standing.reader.nonce.cast_signed(),
        owner.worker_epoch,
        owner.worker_id,
    )
}

/// u64 cross BIGINT bit by bit.
fn assignments(to: &Standing) -> String {
    let or_null = |number: Option<i64>| number.map_or_else(|| "NULL".to_owned(), |number| number.to_string());
    let time = to.commit_time_us.map_or_else(
        || "NULL".to_owned(),
        |us| format!("TIMESTAMPADD(MICROSECOND, {us}, '1970-01-01 00:00:00.000000')"),
    );
    format!(
        "ledger_topic_id = '{}', source_system_id = {}, timeline = {}, ledger_offset = {}, join_offset = {}, reader_epoch = {}, \
         reader_nonce = {}, commit_lsn = '{}', ordinal = {}, closed_lsn = '{}', commit_time = {time}, phase = '{}'",
        to.ledger_topic_id,
        to.source_system_id,
        to.timeline,
        to.ledger_offset,
        or_null(to.join_offset),
        to.reader.offset.cast_signed(),
        to.reader.nonce.cast_signed(),
        to.position.lsn,
        to.position.ordinal.cast_signed(),
        to.closed_lsn,
        to.phase.as_str(),
    )
}

fn parse(name: &Name, row: &Texts) -> Result<ProgressRow> {
    match text(Some(row), 17).parse::<i32>() {
        Ok(FORMAT) => {}
        Ok(other) => return Err(mismatch(name, &format!("has format {other}, this build knows {FORMAT}"))),
        Err(_) => return Err(mismatch(name, "has a row without a format")),
    }
    columns(row).ok_or_else(|| mismatch(name, "has a row that can't be read"))
}

fn columns(row: &Texts) -> Option<ProgressRow> {
    let at = |i: usize| text(Some(row), i);
    let number = |i: usize| at(i).parse::<i64>().ok();
    let or_null = |i: usize| if row.get(i)?.is_some() { number(i).map(Some) } else { Some(None) };
    Some(ProgressRow {
        standing: Standing {
            ledger_topic_id: at(0).parse().ok()?,
            source_system_id: at(1).parse().ok()?,
            timeline: at(2).parse().ok()?,
            ledger_offset: number(3)?,
            join_offset: or_null(4)?,
            reader: Epoch { offset: number(5)?.cast_unsigned(), nonce: number(6)?.cast_unsigned() },
            position: Position::new(at(7).parse().ok()?, number(8)?.cast_unsigned()),
            closed_lsn: at(9).parse().ok()?,
            commit_time_us: or_null(10)?,
            phase: Phase::parse(&at(11))?,
        },
        owner: Owner {
            worker_epoch: number(12)?,
            worker_id: at(13).parse().ok()?,
            backend_pid: i32::try_from(number(14)?).ok()?,
            backend_start_us: number(15)?,
        },
        updated_at_us: number(16)?,
    })
}

/// Takes the lock of the sink's owner, for as long as the connection lives; false if another connection has it.
pub(super) async fn take_lock(link: &mut Link, name: &Name, wait_seconds: u64) -> Result<bool> {
    let rows = link.rows(format!("SELECT GET_LOCK({}, {wait_seconds})", name.lock()).as_bytes()).await;
    let rows = rows.map_err(|error| classify("taking the sink's lock", error))?;
    Ok(text(rows.first(), 0) == "1")
}

/// The connection that has the lock.
pub(super) async fn lock_holder(link: &mut Link, name: &Name) -> Result<Option<i32>> {
    let rows = link.rows(format!("SELECT IS_USED_LOCK({})", name.lock()).as_bytes()).await;
    let rows = rows.map_err(|error| classify("looking who has the sink's lock", error))?;
    Ok(text(rows.first(), 0).parse().ok())
}

/// What a connection does; `None` when it is gone. A connection that speaks has another query each time.
pub(super) async fn activity(link: &mut Link, pid: i32) -> Result<Option<Activity>> {
    let sql = format!("SELECT COMMAND, QUERY_ID FROM information_schema.PROCESSLIST WHERE ID = {pid}");
    let rows = link.rows(sql.as_bytes()).await.map_err(|error| classify("looking at a worker's connection", error))?;
    Ok(rows.first().map(|row| Activity {
        waits: text(Some(row), 0) == "Sleep",
        since_us: text(Some(row), 1).parse().unwrap_or_default(),
    }))
}

/// Ends a connection; false if it is gone already.
pub(super) async fn kill(link: &mut Link, pid: i32) -> Result<bool> {
    match link.run(format!("KILL CONNECTION {pid}").as_bytes()).await {
        Ok(_) => Ok(true),
        // Unknown thread.
        Err(mysql_async::Error::Server(refusal)) if refusal.code == 1094 => Ok(false),
        Err(error) => Err(classify("ending a worker's connection", error)),
    }
}
