//! The progress row: up to where this sink's database is the source, and who may move it.
//!
//! It moves in the same transaction as the data, by compare-and-set on (ledger offset, reader epoch and nonce, worker epoch,
//! worker), so a worker that lost the sink writes nothing, however late its statements arrive. Taking over bumps the worker
//! epoch, which waits for the predecessor's open transaction on the row's lock: when it is through, the row says what the
//! predecessor committed. Columns are fixed by docs/protocol.md, version 1.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::lease::Activity;
use super::partition_progress::{FORMAT_PARKED, FORMAT_PARTITIONED};
use crate::error::{Code, Error, Halt, Result};
use crate::lsn::{Lsn, Position};
use crate::record::Epoch;
use crate::relation::quote_identifier;
use crate::session;

/// Version of the row's columns.
pub const FORMAT: i32 = 1;

/// The group of a sink whose tables all move together, the only one there is so far.
pub const GROUP: &str = "default";

/// Where the sink stands in the ledger and in the source's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub ledger_topic_id: Uuid,
    pub source_system_id: u64,
    pub timeline: i32,
    /// Offset of the last checkpoint (or restart, or join's predecessor) that is in.
    pub ledger_offset: i64,
    /// Offset of the request by which the sink joined, while it still loads.
    pub join_offset: Option<i64>,
    /// The reader that wrote that checkpoint.
    pub reader: Epoch,
    pub position: Position,
    pub closed_lsn: Lsn,
    /// Of the last commit that is in; microseconds since 1970.
    pub commit_time_us: Option<i64>,
    pub phase: Phase,
}

/// Whether the sink is the source at its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A first load or a resync is under way: not the source yet.
    Snapshot,
    /// A table is read again after a change that sent no rows. Part of the format, not yet written.
    Reread,
    Streaming,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Snapshot => "snapshot",
            Phase::Reread => "reread",
            Phase::Streaming => "streaming",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Phase> {
        [Phase::Snapshot, Phase::Reread, Phase::Streaming].into_iter().find(|phase| phase.as_str() == text)
    }
}

/// Who may move the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Rises with every take-over.
    pub worker_epoch: i64,
    pub worker_id: Uuid,
    pub backend_pid: i32,
    /// With the pid it names one backend; microseconds since 1970.
    pub backend_start_us: i64,
}

/// The row as this worker read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgressRow {
    pub standing: Standing,
    pub owner: Owner,
    /// Microseconds since 1970.
    pub updated_at_us: i64,
}

impl ProgressRow {
    /// Refuses a row that was written against another source or another ledger than `expected`.
    pub fn check_identity(&self, expected: &Standing) -> Result<()> {
        let ours = &self.standing;
        let (code, what) = match () {
            () if ours.source_system_id != expected.source_system_id => (Code::ProgressMismatch, "source"),
            // The same source under the same name: the topic was deleted and made again.
            () if ours.ledger_topic_id != expected.ledger_topic_id => (Code::LedgerRecreated, "ledger"),
            () => return Ok(()),
        };
        let facts = [
            format!("row: source {}, ledger {}", ours.source_system_id, ours.ledger_topic_id),
            format!("here: source {}, ledger {}", expected.source_system_id, expected.ledger_topic_id),
        ];
        let halt = Halt {
            code,
            message: format!("the sink's progress was written against another {what}"),
            facts: facts.into(),
            hint: match code {
                Code::LedgerRecreated => "lockstep restart, unless the topic can be restored".into(),
                code => format!("lockstep explain {code}"),
            },
        };
        Err(halt.into())
    }
}

/// The answer to [`take_over`](super::Sink::take_over).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TakeOver {
    /// The row, owned by this worker from now on.
    Mine(Box<ProgressRow>),
    /// Another worker's connection is there and owns the row.
    Standby { owner: Owner, activity: Activity },
}

const CREATE_SCHEMA: &str = "CREATE SCHEMA lockstep";
// fillfactor: the row is rewritten with every interval; room on its page keeps that from growing the table or its index.
const CREATE_TABLE: &str = "CREATE TABLE lockstep.progress (\
    pipeline text, sink text, \"group\" text, ledger_topic_id uuid, source_system_id numeric(20), timeline int, \
    ledger_offset bigint, join_offset bigint, reader_epoch bigint, reader_nonce bigint, commit_lsn pg_lsn, ordinal bigint, \
    closed_lsn pg_lsn, commit_time timestamptz, phase text, worker_epoch bigint, worker_id uuid, backend_pid int, \
    backend_start timestamptz, format int, updated_at timestamptz, primary key (pipeline, sink, \"group\")) \
    WITH (fillfactor = 10)";

/// Makes what is missing of the schema and table, or says what to type.
pub(super) async fn prepare(client: &Client, create: bool) -> Result<()> {
    let failed =
        |error: tokio_postgres::Error| Error::from(super::refusal::failure("making lockstep.progress", None, error));
    let found = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'lockstep'),
                    EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                             WHERE n.nspname = 'lockstep' AND c.relname = 'progress')",
            &[],
        )
        .await
        .map_err(failed)?;
    let mut commands = Vec::new();
    if !found.get::<_, bool>(0) {
        commands.push(CREATE_SCHEMA);
    }
    if !found.get::<_, bool>(1) {
        commands.push(CREATE_TABLE);
    }
    if commands.is_empty() {
        return Ok(());
    }
    if create {
        return match client.batch_execute(&commands.join("; ")).await {
            Ok(()) => Ok(()),
            Err(error) => Err(creation_failed(client, error).await),
        };
    }
    let halt = Halt {
        code: Code::CreateOff,
        message: "create = false and the sink has no lockstep.progress".into(),
        facts: commands.iter().map(|command| format!("{command};")).collect(),
        hint: "run these statements at the sink".into(),
    };
    Err(halt.into())
}

/// Another worker may have made it at the same moment, which fails as a duplicate and is right after a pause.
async fn creation_failed(client: &Client, error: tokio_postgres::Error) -> Error {
    match error.code().map(|code| code.code().to_owned()).as_deref() {
        Some("23505" | "42P06" | "42P07") => {
            Error::retry("making lockstep.progress, at once with another worker", error)
        }
        Some("42501") => {
            let who = client.query_one("SELECT current_user::text, pg_catalog.current_database()::text", &[]).await;
            let hint = match who {
                Ok(row) => format!(
                    "GRANT CREATE ON DATABASE {} TO {}",
                    quote_identifier(row.get(1)),
                    quote_identifier(row.get(0))
                ),
                Err(_) => "GRANT CREATE ON DATABASE … TO …".to_owned(),
            };
            Error::halt(Code::NoRight, "the role may not make the schema lockstep at the sink", hint)
        }
        _ => super::refusal::failure("making lockstep.progress", None, error).into(),
    }
}

/// Names the row: (pipeline, sink, group).
#[derive(Clone, Debug)]
pub(super) struct RowName {
    pub pipeline: String,
    pub sink: String,
    /// Our role, for GRANTs.
    pub role: String,
}

impl RowName {
    /// Tells a table of another layout from a failure that may heal.
    fn failed(&self, error: tokio_postgres::Error) -> Error {
        match error.code().map(super::refusal::classify) {
            Some(super::refusal::Class::Table) => Error::halt(
                Code::ProgressMismatch,
                "lockstep.progress at the sink does not have the columns of this version",
                "TABLE lockstep.progress",
            ),
            Some(super::refusal::Class::Right) => {
                let role = quote_identifier(&self.role);
                Error::halt(
                    Code::NoRight,
                    "the role may not read and write lockstep.progress at the sink",
                    format!(
                        "GRANT USAGE ON SCHEMA lockstep TO {role}; GRANT SELECT, INSERT, UPDATE ON lockstep.progress TO {role}"
                    ),
                )
            }
            _ => session::classify("reading the sink's progress", error),
        }
    }
}

/// Times cross as microseconds: extract gives numeric, which is exact.
const COLUMNS: &str = "p.ledger_topic_id, p.source_system_id::text, p.timeline, p.ledger_offset, p.join_offset, \
    p.reader_epoch, p.reader_nonce, p.commit_lsn::text, p.ordinal, p.closed_lsn::text, \
    (extract(epoch FROM p.commit_time) * 1000000)::int8, p.phase, p.worker_epoch, p.worker_id, p.backend_pid, \
    (extract(epoch FROM p.backend_start) * 1000000)::int8, (extract(epoch FROM p.updated_at) * 1000000)::int8, p.format";

/// Parameters $4 to $15 are the standing's, in this order.
const STANDING_COLUMNS: &str = "ledger_topic_id, source_system_id, timeline, ledger_offset, join_offset, reader_epoch, \
    reader_nonce, commit_lsn, ordinal, closed_lsn, commit_time, phase";
const STANDING_VALUES: &str = "$4::uuid, $5::text::numeric, $6::int4, $7::int8, $8::int8, $9::int8, $10::int8, \
    $11::text::pg_lsn, $12::int8, $13::text::pg_lsn, timestamptz 'epoch' + $14::int8 * interval '1 microsecond', $15::text";

const NAMED: &str = "p.pipeline = $1 AND p.sink = $2 AND p.\"group\" = $3";

/// This connection's backend, as pg_stat_activity has it.
const BACKEND_START: &str =
    "(SELECT a.backend_start FROM pg_catalog.pg_stat_activity a WHERE a.pid = pg_catalog.pg_backend_pid())";

/// What a backend does. Where the server tracks no activities it does not say, and the backend counts as busy.
const ACTIVITY: &str = "a.pid IS NOT NULL, coalesce(a.state LIKE 'idle%' \
    OR (a.state = 'active' AND a.wait_event_type = 'Client'), false), \
    coalesce((extract(epoch FROM a.state_change) * 1000000)::int8, 0)";

fn parse_activity(row: &Row, first: usize) -> Option<Activity> {
    row.get::<_, bool>(first).then(|| Activity { waits: row.get(first + 1), since_us: row.get(first + 2) })
}

/// The row, and what its owner's backend does, if it is there: same pid, same start, same application name. A backend of a
/// role whose sessions are hidden from ours counts as gone; the compare-and-set holds all the same.
pub(super) async fn read(client: &Client, name: &RowName) -> Result<Option<(ProgressRow, Option<Activity>)>> {
    let sql = format!(
        "SELECT {COLUMNS}, {ACTIVITY} FROM lockstep.progress p \
         LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = p.backend_pid AND a.backend_start = p.backend_start \
          AND a.application_name = pg_catalog.current_setting('application_name') WHERE {NAMED}"
    );
    let rows = client.query(&sql, &[&name.pipeline, &name.sink, &GROUP]).await.map_err(|error| name.failed(error))?;
    rows.first().map(|row| Ok((parse(row)?, parse_activity(row, 18)))).transpose()
}

/// What the owner's backend does; `None` when it is gone.
pub(super) async fn activity(client: &Client, owner: &Owner) -> Result<Option<Activity>> {
    let sql = format!(
        "SELECT {ACTIVITY} FROM pg_catalog.pg_stat_activity a \
         WHERE a.pid = $1 AND (extract(epoch FROM a.backend_start) * 1000000)::int8 = $2"
    );
    let rows = client
        .query(&sql, &[&owner.backend_pid, &owner.backend_start_us])
        .await
        .map_err(|error| session::classify("looking at our own connection", error))?;
    Ok(rows.first().and_then(|row| parse_activity(row, 0)))
}

/// Writes the first row, owned by this worker, unless there is one.
pub(super) async fn seed(client: &Client, name: &RowName, standing: &Standing, worker: Uuid) -> Result<()> {
    let sql = format!(
        "INSERT INTO lockstep.progress (pipeline, sink, \"group\", {STANDING_COLUMNS}, worker_epoch, worker_id, \
         backend_pid, backend_start, format, updated_at) VALUES ($1::text, $2::text, $3::text, {STANDING_VALUES}, \
         0, $16::uuid, pg_catalog.pg_backend_pid(), {BACKEND_START}, {FORMAT}, clock_timestamp()) \
         ON CONFLICT (pipeline, sink, \"group\") DO NOTHING"
    );
    let values = StandingValues::new(standing);
    let mut params = values.params(name);
    params.push(&worker);
    client.execute(&sql, &params).await.map(drop).map_err(|error| name.failed(error))
}

/// Bumps the worker epoch if the owner is still `seen`; `None` if another worker was quicker. Waits for the owner's open
/// transaction, at most the session's lock_timeout.
pub(super) async fn bump(client: &Client, name: &RowName, seen: &Owner, worker: Uuid) -> Result<Option<ProgressRow>> {
    let sql = format!(
        "UPDATE lockstep.progress p SET worker_epoch = p.worker_epoch + 1, worker_id = $4, \
         backend_pid = pg_catalog.pg_backend_pid(), backend_start = {BACKEND_START}, updated_at = clock_timestamp() \
         WHERE {NAMED} AND p.worker_epoch = $5 AND p.worker_id = $6 RETURNING {COLUMNS}"
    );
    let rows = client
        .query(&sql, &[&name.pipeline, &name.sink, &GROUP, &worker, &seen.worker_epoch, &seen.worker_id])
        .await
        .map_err(|error| name.failed(error))?;
    rows.first().map(parse).transpose()
}

/// Ends the backend of `owner`, if it is still the one that the row names. True if it was told to end.
pub(super) async fn evict(client: &Client, name: &RowName, owner: &Owner) -> Result<bool> {
    let sql = "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a \
        WHERE a.pid = $1 AND a.pid <> pg_catalog.pg_backend_pid() \
          AND (extract(epoch FROM a.backend_start) * 1000000)::int8 = $2 \
          AND a.application_name = pg_catalog.current_setting('application_name')";
    let rows =
        client.query(sql, &[&owner.backend_pid, &owner.backend_start_us]).await.map_err(|error| name.failed(error))?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

/// Opens a transaction for a compare-and-set, which is sent together with this.
pub(super) const BEGIN: &str = "BEGIN; SET CONSTRAINTS ALL DEFERRED; SET LOCAL lockstep.begun = 'yes'";

/// Whether [`BEGIN`] was carried out. If it was not, cancelled perhaps, what was sent behind it is a transaction of its own, in
/// which progress must not move without rows.
pub(super) const BEGUN: &str = "pg_catalog.current_setting('lockstep.begun', true) = 'yes'";

/// The compare-and-set: parameters as [`cas_params`] gives them.
pub(super) fn cas_sql() -> String {
    format!(
        "UPDATE lockstep.progress p SET ({STANDING_COLUMNS}, updated_at) = ROW({STANDING_VALUES}, clock_timestamp()) \
         WHERE {NAMED} AND p.ledger_offset = $16::int8 AND p.reader_epoch = $17::int8 AND p.reader_nonce = $18::int8 \
           AND p.worker_epoch = $19::int8 AND p.worker_id = $20::uuid AND {BEGUN}"
    )
}

/// The values of one compare-and-set.
pub(super) struct Cas<'a> {
    name: &'a RowName,
    from: &'a ProgressRow,
    reader: [i64; 2],
    to: StandingValues<'a>,
}

impl<'a> Cas<'a> {
    pub fn new(name: &'a RowName, from: &'a ProgressRow, to: &'a Standing) -> Cas<'a> {
        let reader = from.standing.reader;
        Cas {
            name,
            from,
            reader: [reader.offset.cast_signed(), reader.nonce.cast_signed()],
            to: StandingValues::new(to),
        }
    }

    pub fn params(&self) -> Params<'_> {
        let mut params = self.to.params(self.name);
        params.extend::<[&(dyn ToSql + Sync); 5]>([
            &self.from.standing.ledger_offset,
            &self.reader[0],
            &self.reader[1],
            &self.from.owner.worker_epoch,
            &self.from.owner.worker_id,
        ]);
        params
    }
}

type Params<'a> = Vec<&'a (dyn ToSql + Sync)>;

/// A standing as the types that cross the wire. u64 cross bigint bit by bit.
struct StandingValues<'a> {
    standing: &'a Standing,
    source_system_id: String,
    reader: [i64; 2],
    commit_lsn: String,
    ordinal: i64,
    closed_lsn: String,
    phase: &'static str,
}

impl<'a> StandingValues<'a> {
    fn new(standing: &'a Standing) -> StandingValues<'a> {
        StandingValues {
            standing,
            source_system_id: standing.source_system_id.to_string(),
            reader: [standing.reader.offset.cast_signed(), standing.reader.nonce.cast_signed()],
            commit_lsn: standing.position.lsn.to_string(),
            ordinal: standing.position.ordinal.cast_signed(),
            closed_lsn: standing.closed_lsn.to_string(),
            phase: standing.phase.as_str(),
        }
    }

    fn params<'b>(&'b self, name: &'b RowName) -> Params<'b> {
        vec![
            &name.pipeline,
            &name.sink,
            &GROUP,
            &self.standing.ledger_topic_id,
            &self.source_system_id,
            &self.standing.timeline,
            &self.standing.ledger_offset,
            &self.standing.join_offset,
            &self.reader[0],
            &self.reader[1],
            &self.commit_lsn,
            &self.ordinal,
            &self.closed_lsn,
            &self.standing.commit_time_us,
            &self.phase,
        ]
    }
}

fn parse(row: &Row) -> Result<ProgressRow> {
    let mismatch = |what: &str| {
        let message = format!("the sink's progress row {what}");
        Error::halt(Code::ProgressMismatch, message, "TABLE lockstep.progress")
    };
    match row.try_get::<_, i32>(17) {
        Ok(FORMAT | FORMAT_PARTITIONED | FORMAT_PARKED) => {}
        Ok(other) => return Err(mismatch(&format!("has format {other}, this build knows {FORMAT}"))),
        Err(_) => return Err(mismatch("has no format")),
    }
    read_columns(row).ok().flatten().ok_or_else(|| mismatch("has a column that can't be read"))
}

fn read_columns(row: &Row) -> std::result::Result<Option<ProgressRow>, tokio_postgres::Error> {
    let text = |i| row.try_get::<_, String>(i);
    let (Ok(source_system_id), Ok(lsn), Ok(closed_lsn), Some(phase)) =
        (text(1)?.parse(), text(7)?.parse(), text(9)?.parse(), Phase::parse(&text(11)?))
    else {
        return Ok(None);
    };
    let bits = |i| row.try_get::<_, i64>(i).map(i64::cast_unsigned);
    Ok(Some(ProgressRow {
        standing: Standing {
            ledger_topic_id: row.try_get(0)?,
            source_system_id,
            timeline: row.try_get(2)?,
            ledger_offset: row.try_get(3)?,
            join_offset: row.try_get(4)?,
            reader: Epoch { offset: bits(5)?, nonce: bits(6)? },
            position: Position::new(lsn, bits(8)?),
            closed_lsn,
            commit_time_us: row.try_get(10)?,
            phase,
        },
        owner: Owner {
            worker_epoch: row.try_get(12)?,
            worker_id: row.try_get(13)?,
            backend_pid: row.try_get(14)?,
            backend_start_us: row.try_get(15)?,
        },
        updated_at_us: row.try_get(16)?,
    }))
}
