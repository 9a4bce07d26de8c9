//! The progress row in a SQLite file: `lockstep_progress`, with the columns that every engine has (docs/protocol.md).
//!
//! Types that SQLite does not have are texts as people read them: LSNs as Postgres writes them, times in ISO 8601 and UTC. u64
//! cross INTEGER bit by bit. The table is neither STRICT nor WITHOUT ROWID, so that old programs can go on opening the file.

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row};
use uuid::Uuid;

use crate::error::{Code, Error, Halt, Result};
use crate::lsn::Position;
use crate::record::Epoch;
use crate::sink::progress::{FORMAT, GROUP, Owner, Phase, ProgressRow, Standing};

const CREATE_TABLE: &str = "CREATE TABLE IF NOT EXISTS main.lockstep_progress (\
    pipeline TEXT NOT NULL, sink TEXT NOT NULL, \"group\" TEXT NOT NULL, ledger_topic_id TEXT, source_system_id TEXT, timeline INTEGER, \
    ledger_offset INTEGER, join_offset INTEGER, reader_epoch INTEGER, reader_nonce INTEGER, commit_lsn TEXT, ordinal INTEGER, \
    closed_lsn TEXT, commit_time TEXT, phase TEXT, worker_epoch INTEGER, worker_id TEXT, backend_pid INTEGER, \
    backend_start TEXT, format INTEGER, updated_at TEXT, PRIMARY KEY (pipeline, sink, \"group\"))";

const COLUMNS: &str = "ledger_topic_id, source_system_id, timeline, ledger_offset, join_offset, reader_epoch, reader_nonce, \
    commit_lsn, ordinal, closed_lsn, commit_time, phase, worker_epoch, worker_id, backend_pid, backend_start, format, updated_at";

const NAMED: &str = "pipeline = ?1 AND sink = ?2 AND \"group\" = ?3";

/// Parameters ?4 to ?15 are the standing's.
const STANDING: &str = "ledger_topic_id = ?4, source_system_id = ?5, timeline = ?6, ledger_offset = ?7, join_offset = ?8, \
    reader_epoch = ?9, reader_nonce = ?10, commit_lsn = ?11, ordinal = ?12, closed_lsn = ?13, commit_time = ?14, phase = ?15";

/// Names the row, beside the group.
#[derive(Clone, Debug)]
pub(super) struct RowName {
    pub pipeline: String,
    pub sink: String,
}

/// This connection, as the row says whose it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Us {
    pub worker: Uuid,
    pub pid: i32,
    pub start_us: i64,
}

pub(super) fn is_there(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = 'lockstep_progress')";
    connection.query_row(sql, [], |row| row.get(0))
}

pub(super) fn make(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(CREATE_TABLE)
}

pub(super) fn missing() -> Halt {
    Halt {
        code: Code::CreateOff,
        message: "create = false and the sink has no lockstep_progress".into(),
        facts: vec![format!("{};", CREATE_TABLE.replace("main.", ""))],
        hint: "run this statement at the sink".into(),
    }
}

pub(super) fn read(connection: &Connection, name: &RowName) -> rusqlite::Result<Option<Result<ProgressRow>>> {
    let sql = format!("SELECT {COLUMNS} FROM main.lockstep_progress WHERE {NAMED}");
    let named = (&name.pipeline, &name.sink, GROUP);
    connection.prepare_cached(&sql)?.query_row(named, |row| Ok(parse(row))).optional()
}

/// Writes the first row, owned by this worker, unless there is one.
pub(super) fn seed(connection: &Connection, name: &RowName, first: &Standing, us: Us) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT OR IGNORE INTO main.lockstep_progress (pipeline, sink, \"group\", {COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, \
         ?9, ?10, ?11, ?12, ?13, ?14, ?15, 0, ?16, ?17, ?18, {FORMAT}, ?19)"
    );
    let mut values = named(name);
    values.extend(standing(first));
    values.extend([text(us.worker), i64::from(us.pid).into(), time(us.start_us), now()]);
    connection.execute(&sql, rusqlite::params_from_iter(values)).map(drop)
}

/// Bumps the worker epoch if the owner is still `seen`; `None` if another worker was quicker.
pub(super) fn bump(
    connection: &Connection,
    name: &RowName,
    seen: &Owner,
    us: Us,
) -> rusqlite::Result<Option<Result<ProgressRow>>> {
    let sql = format!(
        "UPDATE main.lockstep_progress SET worker_epoch = worker_epoch + 1, worker_id = ?4, backend_pid = ?5, backend_start = ?6, \
         updated_at = ?7 WHERE {NAMED} AND worker_epoch = ?8 AND worker_id = ?9 RETURNING {COLUMNS}"
    );
    let mut values = named(name);
    values.extend([text(us.worker), i64::from(us.pid).into(), time(us.start_us), now()]);
    values.extend([seen.worker_epoch.into(), text(seen.worker_id)]);
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    let found = rows.next()?.map(parse);
    // To its end, or the statement has not happened.
    while rows.next()?.is_some() {}
    Ok(found)
}

/// The compare-and-set: how many rows were moved.
pub(super) fn cas(
    connection: &Connection,
    name: &RowName,
    from: &ProgressRow,
    to: &Standing,
) -> rusqlite::Result<usize> {
    let sql = format!(
        "UPDATE main.lockstep_progress SET {STANDING}, updated_at = ?16 WHERE {NAMED} AND ledger_offset = ?17 AND reader_epoch = ?18 \
         AND reader_nonce = ?19 AND worker_epoch = ?20 AND worker_id = ?21"
    );
    let mut values = named(name);
    values.extend(standing(to));
    let reader = from.standing.reader;
    values.push(now());
    values.extend([from.standing.ledger_offset.into(), bits(reader.offset), bits(reader.nonce)]);
    values.extend([from.owner.worker_epoch.into(), text(from.owner.worker_id)]);
    connection.prepare_cached(&sql)?.execute(rusqlite::params_from_iter(values))
}

fn named(name: &RowName) -> Vec<Value> {
    vec![name.pipeline.clone().into(), name.sink.clone().into(), GROUP.to_owned().into()]
}

fn standing(standing: &Standing) -> [Value; 12] {
    [
        text(standing.ledger_topic_id),
        text(standing.source_system_id),
        i64::from(standing.timeline).into(),
        standing.ledger_offset.into(),
        standing.join_offset.into(),
        bits(standing.reader.offset),
        bits(standing.reader.nonce),
        text(standing.position.lsn),
        bits(standing.position.ordinal),
        text(standing.closed_lsn),
        standing.commit_time_us.map_or(Value::Null, time),
        standing.phase.as_str().to_owned().into(),
    ]
}

fn text(value: impl ToString) -> Value {
    value.to_string().into()
}

fn bits(value: u64) -> Value {
    value.cast_signed().into()
}

fn time(us: i64) -> Value {
    text(Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH))
}

fn now() -> Value {
    time(Timestamp::now().as_microsecond())
}

fn mismatch(what: &str) -> Error {
    let message = format!("the sink's progress row {what}");
    Error::halt(Code::ProgressMismatch, message, "SELECT * FROM lockstep_progress")
}

fn parse(row: &Row<'_>) -> Result<ProgressRow> {
    match row.get::<_, i64>(16) {
        Ok(format) if format == i64::from(FORMAT) => {}
        Ok(other) => return Err(mismatch(&format!("has format {other}, this build knows {FORMAT}"))),
        Err(_) => return Err(mismatch("has no format")),
    }
    columns(row).ok_or_else(|| mismatch("has a column that can't be read"))
}

fn columns(row: &Row<'_>) -> Option<ProgressRow> {
    let text = |i: usize| row.get::<_, String>(i).ok();
    let bits = |i: usize| row.get::<_, i64>(i).ok().map(i64::cast_unsigned);
    let time = |i: usize| Some(text(i)?.parse::<Timestamp>().ok()?.as_microsecond());
    let commit_time = row.get::<_, Option<String>>(10).ok()?;
    let commit_time = commit_time.map(|text| text.parse::<Timestamp>()).transpose().ok()?;
    Some(ProgressRow {
        standing: Standing {
            ledger_topic_id: text(0)?.parse().ok()?,
            source_system_id: text(1)?.parse().ok()?,
            timeline: row.get(2).ok()?,
            ledger_offset: row.get(3).ok()?,
            join_offset: row.get(4).ok()?,
            reader: Epoch { offset: bits(5)?, nonce: bits(6)? },
            position: Position::new(text(7)?.parse().ok()?, bits(8)?),
            closed_lsn: text(9)?.parse().ok()?,
            commit_time_us: commit_time.map(|time| time.as_microsecond()),
            phase: Phase::parse(&text(11)?)?,
        },
        owner: Owner {
            worker_epoch: row.get(12).ok()?,
            worker_id: text(13)?.parse().ok()?,
            backend_pid: row.get(14).ok()?,
            backend_start_us: time(15)?,
        },
        updated_at_us: time(17)?,
    })
}
