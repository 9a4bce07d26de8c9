//! A Postgres sink: one connection, one transaction at a time. The contract is [`super::Sink`].
//!
//! Here: the session, the progress row's moves, begin and end of a transaction, statements prepared once. Writing rows is in
//! `write` and `range`.

mod blockers;
mod contract;
pub mod foreign;
mod letters;
mod partitions;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use super::catalog;
use super::evolve;
use super::fit;
use super::labels;
use super::lease::{Activity, BEATS, Heard, Probe};
use super::park::Parking;
use super::progress::{self, Cas, Owner, ProgressRow, RowName, Standing, TakeOver};
use super::refusal::{ended, failure};
use super::rows;
use super::soft;
use super::sql::SinkTablePlan;
use super::values;
use super::{Ahead, Failure, Findings, Outcome, WantedTable};
use crate::config::{self, Consistency, Database, Engine, Evolve};
use crate::error::{Code, Error, Halt, Result};
use crate::relation::quote_identifier;
use crate::session::{self, Session};

/// Prepared statements kept. Tables times presence masks; beyond it all are dropped and made again, since a sink with more
/// is not worth an eviction order.
const STATEMENTS_MAX: usize = 512;

/// How often taking over looks again when another worker was quicker, before it leaves the field to them.
const TAKE_OVER_TRIES_MAX: usize = 3;

/// However long the lease, the owner speaks this often.
const BEAT_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Settings of a session that writes, beside those that every session pins.
const PINNED: &[(&str, &str)] = &[
    // Fail rather than write or see less than named.
    ("row_security", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    // A role's own time-out would cut a long interval short for ever.
    ("statement_timeout", "0"),
    // Since Postgres 17. Tables that reference each other in a circle are copied in one transaction.
    ("transaction_timeout", "0"),
    // Arrays of thousands of values are no reason to plan again, and the generic plan goes by the key's index.
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
    // A worker that is frozen or cut off must not hold the progress row for ever. Longer than span_wait, within which an
    // open transaction may wait for records; a server that gives up on it costs a retry, nothing else.
    ("idle_in_transaction_session_timeout", "10min"),
    // The server notices a vanished worker within half a minute. Nothing over a Unix socket.
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "4"),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transaction {
    None,
    Open,
    /// A statement failed; only a rollback is left.
    Failed,
}

pub struct PostgresSink {
    pub(super) client: Session,
    /// For connections beside this one.
    database: Database,
    lock_timeout: String,
    pub(super) name: RowName,
    /// This worker: new with every process, kept over reconnects.
    worker: Uuid,
    consistency: Consistency,
    transaction: Transaction,
    /// Rows were written in the open transaction, so constraint checks may be pending.
    pub(super) written: bool,
    statements: HashMap<String, Statement>,
    /// Stages that exist for good, and those made in the open transaction.
    stages: HashSet<String>,
    stages_new: HashSet<String>,
    /// Stages that hold rows of the open transaction.
    pub(super) stages_filled: HashSet<String>,
    /// When the transaction of the source was committed whose changes are written next, where rows go by it.
    pub(super) committed_us: Option<i64>,
    /// While rows are parked: to the end of the transaction.
    pub(super) parking: Option<Parking>,
    /// The stages made and filled before what may be taken back.
    pub(super) saved: Option<(HashSet<String>, HashSet<String>)>,
    /// Keys that the next range leaves as they are.
    pub(super) spared: Vec<Vec<String>>,
    /// How long we may be silent before a standby takes the sink.
    lease_timeout: Duration,
    /// When the server last answered.
    heard: Heard,
    beat_at: Instant,
}

impl PostgresSink {
    /// Connects. `worker` names this process and stays the same over its reconnects: with it a worker takes over from
    /// itself at once.
    pub async fn connect(sink: &config::Sink, pipeline: &str, worker: Uuid) -> Result<PostgresSink> {
        let database = database(sink);
        let client = session::connect(database, &application_name(pipeline, &sink.name)).await?;
        let lock_timeout = format!("{}ms", sink.lock_timeout.as_millis());
        pin(&client, &lock_timeout).await?;
        if !sink.synchronous_commit {
            let failed = |error| session::classify("pinning the sink session's settings", error);
            client.batch_execute("SET synchronous_commit = off").await.map_err(failed)?;
        }
        Ok(PostgresSink {
            client,
            database: database.clone(),
            lock_timeout,
            name: RowName { pipeline: pipeline.to_owned(), sink: sink.name.clone(), role: database.user.clone() },
            worker,
            consistency: sink.consistency,
            transaction: Transaction::None,
            written: false,
            statements: HashMap::new(),
            stages: HashSet::new(),
            stages_new: HashSet::new(),
            stages_filled: HashSet::new(),
            committed_us: None,
            parking: None,
            saved: None,
            spared: Vec::new(),
            lease_timeout: sink.lease_timeout,
            heard: Rc::new(Cell::new(Instant::now())),
            beat_at: Instant::now(),
        })
    }

    /// Everything that would keep `wanted` from being written, all at once. Nothing is changed.
    pub async fn preflight(&self, wanted: &[WantedTable]) -> Result<Findings> {
        let names: Vec<_> = wanted.iter().map(|w| &w.table).collect();
        let facts = catalog::read(&self.client, &names).await?;
        let row = self
            .client
            .query_one(
                "SELECT current_user::text, pg_catalog.current_database()::text, \
                 pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY')",
                &[],
            )
            .await
            .map_err(|error| session::classify("reading the sink's rights", error))?;
        let (role, database): (String, String) = (row.get(0), row.get(1));
        let mut all = Findings::default();
        if !row.get::<_, bool>(2) {
            all.halts.push(Halt {
                code: Code::NoRight,
                message: "the role may not make temporary tables at the sink, which bulk writes need".into(),
                facts: vec![],
                hint: format!(
                    "GRANT TEMPORARY ON DATABASE {} TO {}",
                    quote_identifier(&database),
                    quote_identifier(&role)
                ),
            });
        }
        for (wanted, facts) in wanted.iter().zip(&facts) {
            let found = fit::judge(wanted, facts.as_ref(), &role);
            all.halts.extend(found.halts);
            all.notes.extend(found.notes);
        }
        all.halts.extend(values::findings(&self.client, wanted, &facts).await?);
        all.halts.extend(soft::findings(&self.client, wanted, &facts).await?);
        if self.consistency == Consistency::Row {
            all.halts.extend(rows::findings(&self.client, wanted, &facts).await?);
        }
        Ok(all)
    }

    /// How to write `wanted`, by the sink's catalog as it is now; in their order. The first finding of a preflight is the
    /// error.
    pub async fn plan(&self, wanted: &[WantedTable]) -> Result<Vec<SinkTablePlan>> {
        if let Some(halt) = self.preflight(wanted).await?.halts.into_iter().next() {
            return Err(halt.into());
        }
        let names: Vec<_> = wanted.iter().map(|w| &w.table).collect();
        let facts = catalog::read(&self.client, &names).await?;
        let gone = || Error::retry_plain("planning: a table of the sink vanished just now");
        wanted
            .iter()
            .zip(&facts)
            .map(|(w, f)| Ok(SinkTablePlan::compile(w, f.as_ref().ok_or_else(gone)?, &self.name.role)))
            .collect()
    }

    /// What [`PostgresSink::evolve`] would run now, as far as that can be told without the versions before. Changes nothing.
    pub async fn steps(&self, wanted: &WantedTable, evolve: Evolve) -> Result<Vec<String>> {
        let facts = catalog::read(&self.client, &[&wanted.table]).await?.remove(0);
        let (Some(facts), true) = (facts, evolve != Evolve::Off) else { return Ok(Vec::new()) };
        let mut steps = labels::statements(wanted, &facts);
        steps.extend(evolve::steps(wanted, &facts, &[], evolve));
        Ok(steps)
    }

    /// Makes the table fit `wanted` as far as `evolve` allows, in the open transaction; whether anything was done. `earlier` are
    /// versions that the table may hold. `half`: a circle is half loaded in the open transaction.
    pub async fn evolve(
        &mut self,
        wanted: &WantedTable,
        earlier: &[WantedTable],
        evolve: Evolve,
        half: bool,
    ) -> Outcome<bool> {
        self.assert_open();
        let mut facts = catalog::read(&self.client, &[&wanted.table]).await?.remove(0);
        if let Some(before) = &facts
            && evolve != Evolve::Off
            && self.add_labels(wanted, before).await.inspect_err(|_| self.transaction = Transaction::Failed)?
        {
            facts = catalog::read(&self.client, &[&wanted.table]).await?.remove(0);
        }
        let of = |evolve| facts.as_ref().map_or_else(Vec::new, |facts| evolve::steps(wanted, facts, earlier, evolve));
        let steps = of(evolve);
        if steps.is_empty() {
            return Ok(false);
        }
        if half && steps == of(Evolve::Add) {
            self.fail();
            return Err(Failure::Ahead(Box::new(Ahead { wanted: wanted.clone(), steps })));
        }
        self.settle().await?;
        // Checks that are still pending would be in the way of an ALTER. What was written so far is whole: the source's own
        // ALTER stood at this place.
        let mut sql = if self.written { "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED" } else { "" };
        let mut next = steps.iter();
        loop {
            if let Err(error) = self.client.batch_execute(sql).await {
                self.fail();
                return Err(self.not_followed(wanted, sql, error));
            }
            let Some(step) = next.next() else { break };
            tracing::warn!(table = %wanted.table, sql = %step, "the sink's table follows the source's");
            sql = step;
        }
        // A column that has just come may be of a type that was there before, with fewer labels.
        if let Some(after) = catalog::read(&self.client, &[&wanted.table]).await?.remove(0) {
            self.add_labels(wanted, &after).await.inspect_err(|_| self.transaction = Transaction::Failed)?;
        }
        Ok(true)
    }

    /// Runs what a transaction asked for before it could go on. What is only added does no harm where it stays unused.
    pub async fn go_ahead(&mut self, ahead: &Ahead) -> Outcome<()> {
        assert_eq!(self.transaction, Transaction::None, "what goes ahead of a transaction is in none");
        let sql = ahead.steps.join("; ");
        tracing::warn!(table = %ahead.wanted.table, sql, "the sink's table follows the source's, ahead of the rows");
        let done = self.client.batch_execute(&sql).await;
        done.map_err(|error| self.not_followed(&ahead.wanted, &sql, error))
    }

    /// Another connection to the same database, as the same role and with the same settings.
    pub(super) async fn beside(&self) -> Result<Session> {
        let application = format!("{} beside", application_name(&self.name.pipeline, &self.name.sink));
        let session = session::connect(&self.database, &application).await?;
        pin(&session, &self.lock_timeout).await?;
        Ok(session)
    }

    pub(super) fn not_followed(&self, wanted: &WantedTable, sql: &str, error: tokio_postgres::Error) -> Failure {
        not_followed(wanted, sql, &self.name.role, error)
    }

    /// Makes `lockstep.progress` if it is missing and `create` allows it, and reads the row, if there is one. Any reader may.
    pub async fn progress(&self, create: bool) -> Result<Option<ProgressRow>> {
        progress::prepare(&self.client, create).await?;
        Ok(progress::read(&self.client, &self.name).await?.map(|(row, _)| row))
    }

    /// The same without making anything.
    pub async fn found_progress(&self) -> Result<Option<ProgressRow>> {
        let found = self.client.query_one("SELECT pg_catalog.to_regclass('lockstep.progress') IS NOT NULL", &[]).await;
        match found.map_err(|error| session::classify("looking for lockstep.progress", error))?.get(0) {
            true => Ok(progress::read(&self.client, &self.name).await?.map(|(row, _)| row)),
            false => Ok(None),
        }
    }

    /// Becomes the owner of the progress row, which is made from `first` if there is none. Waits for an open transaction of
    /// the owner before, at most `lock_timeout`; it is not waited for when the owner is another worker that is alive.
    pub async fn take_over(&mut self, first: &Standing) -> Result<TakeOver> {
        assert_eq!(self.transaction, Transaction::None, "taking over is for new connections");
        for _ in 0..TAKE_OVER_TRIES_MAX {
            // Read before writing: even an insert that will do nothing waits for an open transaction on the row.
            let Some((row, activity)) = progress::read(&self.client, &self.name).await? else {
                progress::seed(&self.client, &self.name, first, self.worker).await?;
                continue;
            };
            if let Some(activity) = activity {
                if row.owner.worker_id != self.worker {
                    return Ok(TakeOver::Standby { owner: row.owner, activity });
                }
                // Our own connection of before: we have given it up, and the server may not know for long.
                self.evict(&row.owner).await?;
            }
            let bumped = match progress::bump(&self.client, &self.name, &row.owner, self.worker).await {
                Ok(bumped) => bumped,
                Err(error) => {
                    // Our own earlier backend, or one whose worker is gone, still sits in its transaction.
                    progress::evict(&self.client, &self.name, &row.owner).await?;
                    return Err(error);
                }
            };
            if let Some(row) = bumped {
                return Ok(TakeOver::Mine(Box::new(row)));
            }
        }
        Err(Error::retry_plain("taking over the sink: other workers keep being quicker"))
    }

    /// Ends the connection of a worker that [`TakeOver::Standby`] named, once its lease is over.
    pub async fn evict(&self, owner: &Owner) -> Result<bool> {
        progress::evict(&self.client, &self.name, owner).await
    }

    /// The server answered just now.
    pub fn hear(&mut self) {
        self.beat_at = Instant::now();
        self.heard.set(self.beat_at);
    }

    fn beat_interval(&self) -> Duration {
        beat_interval(self.lease_timeout)
    }

    /// Speaks on the connection if it was silent for a while, also inside a transaction, so that others see that we are alive.
    /// To be called whenever the driver waits for something else.
    pub async fn keep_lease(&mut self) -> Result<()> {
        if self.beat_at.elapsed() < self.beat_interval() {
            return Ok(());
        }
        let doing = "keeping the lease on the sink";
        match tokio::time::timeout(self.lease_timeout, self.client.batch_execute("")).await {
            Ok(outcome) => outcome.map_err(|error| session::classify(doing, error))?,
            Err(_) => return Err(Error::retry_plain(format!("{doing}: no answer for {:?}", self.lease_timeout))),
        }
        self.hear();
        Ok(())
    }

    /// Opens a transaction and moves the progress row from `from`, as this worker last read or wrote it, to `to`.
    pub async fn begin(&mut self, from: &ProgressRow, to: &Standing) -> Outcome<()> {
        assert_eq!(self.transaction, Transaction::None, "one transaction at a time");
        let move_row = self.prepared(&progress::cas_sql(), None).await?;
        let cas = Cas::new(&self.name, from, to);
        let params = cas.params();
        self.transaction = Transaction::Failed;
        // Sent together: one round trip.
        let (begun, moved) = futures_util::future::join(
            self.client.batch_execute(progress::BEGIN),
            self.client.execute(&move_row, &params),
        )
        .await;
        let doing = "moving the sink's progress";
        begun.map_err(|error| failure("opening a transaction at the sink", None, error))?;
        match moved.map_err(|error| failure(doing, None, error))? {
            1 => {
                self.transaction = Transaction::Open;
                self.hear();
                Ok(())
            }
            0 => {
                self.rollback().await?;
                Err(Failure::OwnershipLost)
            }
            more => unreachable!("the progress row's key is its primary key, {more} rows moved"),
        }
    }

    /// Moves the progress row of the open transaction on, from what it was moved to before.
    pub async fn move_on(&mut self, from: &ProgressRow, to: &Standing) -> Outcome<()> {
        self.assert_open();
        let move_row =
            self.prepared(&progress::cas_sql(), None).await.inspect_err(|_| self.transaction = Transaction::Failed)?;
        let cas = Cas::new(&self.name, from, to);
        let moved = self.client.execute(&move_row, &cas.params()).await;
        match moved.map_err(|error| failure("moving the sink's progress", None, error)) {
            Ok(1) => Ok(()),
            other => {
                self.fail();
                other.and(Err(Failure::OwnershipLost))
            }
        }
    }

    /// Makes everything since `begin` visible at once.
    pub async fn commit(&mut self) -> Outcome<()> {
        assert_eq!(self.transaction, Transaction::Open, "commit follows begin and only successes");
        self.settle().await?;
        self.transaction = Transaction::Failed;
        let doing = "committing at the sink";
        match self.client.batch_execute("COMMIT").await {
            Ok(()) => {
                self.transaction = Transaction::None;
                self.stages.extend(self.stages_new.drain());
                self.forget_transaction();
                self.hear();
                Ok(())
            }
            // A deferred constraint, a deadlock …: the server says that it is rolled back.
            Err(error) if error.as_db_error().is_some_and(|server| !ended(server)) => {
                self.transaction = Transaction::None;
                self.forget_transaction();
                Err(failure(doing, None, error))
            }
            Err(error) => Err(Failure::OutcomeUnknown(Error::retry(doing, error))),
        }
    }

    /// Ends the open transaction, if any, without a trace.
    pub async fn rollback(&mut self) -> Result<()> {
        if self.transaction == Transaction::None {
            return Ok(());
        }
        self.transaction = Transaction::Failed;
        self.client
            .batch_execute("ROLLBACK")
            .await
            .map_err(|error| session::classify("rolling back at the sink", error))?;
        self.transaction = Transaction::None;
        self.forget_transaction();
        Ok(())
    }

    /// Ends the connection in order; an open transaction is rolled back.
    pub async fn close(self) {
        self.client.close().await;
    }

    /// Whether the connection is gone; then only a new sink helps.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    fn forget_transaction(&mut self) {
        self.written = false;
        self.stages_new.clear();
        self.stages_filled.clear();
        self.saved = None;
        self.parking = None;
    }

    pub(super) fn assert_open(&self) {
        assert_eq!(self.transaction, Transaction::Open, "rows are written between begin and commit");
    }

    /// From here on only a rollback is left.
    pub(super) fn fail(&mut self) {
        self.transaction = Transaction::Failed;
    }

    pub(super) async fn prepared(&mut self, sql: &str, plan: Option<&SinkTablePlan>) -> Outcome<Statement> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = match self.client.prepare(sql).await {
            Ok(statement) => statement,
            Err(error) => return Err(failure("preparing a statement at the sink", plan, error)),
        };
        if self.statements.len() >= STATEMENTS_MAX {
            self.statements.clear();
        }
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Makes the plan's stage exist and be empty.
    pub(super) async fn empty_stage(&mut self, plan: &SinkTablePlan) -> Outcome<()> {
        let sql = if !self.stages.contains(&plan.stage) && !self.stages_new.contains(&plan.stage) {
            plan.create_stage()
        } else if self.stages_filled.contains(&plan.stage) {
            format!("TRUNCATE {}", plan.stage)
        } else {
            return Ok(());
        };
        let doing = "making a temporary table at the sink";
        self.client.batch_execute(&sql).await.map_err(|error| failure(doing, Some(plan), error))?;
        if !self.stages.contains(&plan.stage) {
            self.stages_new.insert(plan.stage.clone());
        }
        self.stages_filled.remove(&plan.stage);
        Ok(())
    }
}

/// Also well within `idle_in_transaction_session_timeout`, however long the lease is.
fn beat_interval(lease_timeout: Duration) -> Duration {
    (lease_timeout / BEATS).min(BEAT_INTERVAL_MAX)
}

/// The way to look at our own connection from beside it.
struct Watch<'a> {
    sink: &'a config::Sink,
    pipeline: &'a str,
}

impl Probe for Watch<'_> {
    type Session = Session;

    async fn connect(&self) -> Result<Session> {
        session::connect(database(self.sink), &format!("lockstep:{}:{}:watch", self.pipeline, self.sink.name)).await
    }

    async fn activity(session: &mut Session, owner: &Owner) -> Result<Option<Activity>> {
        progress::activity(session, owner).await
    }
}

/// A step that the server refused: of what may heal, a retry; of everything else, the step for somebody to type.
fn not_followed(wanted: &WantedTable, sql: &str, role: &str, error: tokio_postgres::Error) -> Failure {
    let doing = "letting a table of the sink follow the source's";
    let Some(server) = error.as_db_error() else { return failure(doing, None, error) };
    let state = format!("SQLSTATE {}", server.code().code());
    let halt = |code: Code, message: String, hint: String| Halt { code, message, facts: vec![state.clone()], hint };
    match &server.code().code()[..2] {
        // A lock, a deadlock, a server that goes or is full.
        "08" | "25" | "40" | "53" | "55" | "57" | "58" => failure(doing, None, error),
        // A value that does not fit the new type, or one that a deferred check refuses: never its text, which may quote it.
        "22" | "23" => halt(
            Code::SinkTable,
            format!("values of table {} at the sink do not follow the source's new shape", wanted.table),
            sql.to_owned(),
        )
        .into(),
        _ if server.code().code() == "42501" => halt(
            Code::NoRight,
            format!("role {role:?} may not alter table {} at the sink, as evolve asks for", wanted.table),
            format!("{sql}, or ALTER TABLE {} OWNER TO {}", wanted.table.quoted(), quote_identifier(role)),
        )
        .into(),
        _ => halt(
            Code::SinkTable,
            format!("table {} at the sink can't follow the source's: {}", wanted.table, server.message()),
            sql.to_owned(),
        )
        .into(),
    }
}

fn database(sink: &config::Sink) -> &Database {
    match &sink.engine {
        Engine::Postgres(database) => database,
        other => unreachable!("a sink of {} is not opened as a Postgres", other.kind()),
    }
}

/// The application name of a sink's connection: with pid and start of the backend it tells ours from any other.
fn application_name(pipeline: &str, sink: &str) -> String {
    format!("lockstep:{pipeline}:{sink}")
}

async fn pin(client: &Client, lock_timeout: &str) -> Result<()> {
    let failed = |error| session::classify("pinning the sink session's settings", error);
    let settings = || PINNED.iter().copied().chain([("lock_timeout", lock_timeout)]);
    let (names, values): (Vec<&str>, Vec<&str>) = settings().unzip();
    client
        .query(
            "SELECT pg_catalog.set_config(s.name, s.value, false) FROM unnest($1::text[], $2::text[]) AS s(name, value)
              WHERE s.name <> 'transaction_timeout' OR pg_catalog.current_setting('server_version_num')::int >= 170000",
            &[&names, &values],
        )
        .await
        .map_err(failed)?;
    Ok(())
}
