//! A MariaDB sink: one connection, one InnoDB transaction at a time. The contract is [`Sink`]; here are the session's transaction and
//! who owns the sink. Statements are made in `sql` and run in `write` and `range`.
//!
//! What is different from Postgres, and what follows:
//! - Constraints are checked with every row, never at the end. A hand-over of a unique value goes by way of NULL where a column of the
//!   index can hold it ([`write`]), else it is `UNIQUE_HANDOVER`.
//! - DDL ends a transaction. None is run here: a table is emptied by DELETE, and does not follow the source's ([`Sink::lacks`]).
//! - `INSERT … ON DUPLICATE KEY UPDATE` may change another row than the one with the key: see [`sql`].
//! - Values are changed with a warning at most: see [`value`].
//! - Transactions are READ COMMITTED: rows are found by their keys and locked one by one, and locks on gaps, which other levels take,
//!   would make the service's own inserts wait. Nothing here reads what it does not lock.

mod catalog;
mod fit;
mod link;
mod progress;
mod range;
mod refusal;
mod sql;
mod value;
mod write;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use uuid::Uuid;

pub use sql::Plan;

use self::link::Link;
use self::progress::Name;
use self::refusal::{class, classify};
use super::confine::left;
use super::lease::{self, Activity, BEATS, Heard, Probe};
use super::park::Unread;
use super::progress::{Owner, ProgressRow, Standing, TakeOver};
use super::{Counts, Failure, Findings, Outcome, Sink, WantedTable};
use crate::apply::net::NetEffect;
use crate::config::{self, Database, Engine};
use crate::error::{Code, Error, Halt, Result};
use crate::key::KeyRange;
use crate::relation::TableName;
use crate::value::RowBuf;

/// How often taking over looks again when another worker was quicker, before it leaves the field to them.
const TAKE_OVER_TRIES_MAX: usize = 3;

/// However long the lease, the owner speaks this often: well within what an idle transaction may last.
const BEAT_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// How long a connection of our own that was told to end may take to let go.
const LET_GO_SECONDS: u64 = 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transaction {
    None,
    Open,
    /// A statement failed; only a rollback is left.
    Failed,
}

pub struct MariaDbSink {
    link: Link,
    name: Name,
    /// This worker: new with every process, kept over reconnects.
    worker: Uuid,
    transaction: Transaction,
    /// Rows that are in the way of unique values are to get out of it.
    parking: bool,
    /// How long we may be silent before a standby takes the sink.
    lease_timeout: Duration,
    /// When the server last answered.
    heard: Heard,
    beat_at: Instant,
}

impl MariaDbSink {
    fn assert_open(&self) {
        assert_eq!(self.transaction, Transaction::Open, "rows are written between begin and commit");
    }

    /// From here on only a rollback is left.
    fn fail(&mut self) {
        self.transaction = Transaction::Failed;
    }

    /// Moves the progress row, in one packet with what comes before; the failure of a row that another worker has moved.
    async fn move_row(&mut self, before: &str, from: &ProgressRow, to: &Standing) -> Outcome<()> {
        let doing = "moving the sink's progress";
        let sql = format!("{before}{}", progress::cas(&self.name, from, to));
        let done = self.link.run(sql.as_bytes()).await.map_err(|error| classify(doing, error))?;
        match done.iter().map(|done| done.rows).sum::<u64>() {
            1 => Ok(()),
            0 => Err(Failure::OwnershipLost),
            more => unreachable!("the progress row's key is its primary key, {more} rows moved"),
        }
    }

    /// Whether the user may write the table, as the server judges statements that reach no row.
    async fn rights(&mut self, wanted: &WantedTable) -> Result<Option<Halt>> {
        let table = fit::quoted(&wanted.table);
        let name = fit::quote(&wanted.columns[0].column.name);
        let statements = [
            ("SELECT", format!("SELECT {name} FROM {table} WHERE FALSE")),
            ("UPDATE", format!("UPDATE {table} SET {name} = {name} WHERE FALSE")),
            ("DELETE", format!("DELETE FROM {table} WHERE FALSE")),
            ("INSERT", format!("INSERT INTO {table} ({name}) SELECT {name} FROM {table} WHERE FALSE")),
        ];
        let mut missing = Vec::new();
        for (right, sql) in statements {
            match self.link.rows(format!("EXPLAIN {sql}").as_bytes()).await {
                Ok(_) => {}
                Err(mysql_async::Error::Server(refusal))
                    if class(refusal.code, &refusal.state) == refusal::Class::Right =>
                {
                    missing.push(right);
                }
                Err(error) => return Err(classify("asking for rights at the sink", error)),
            }
        }
        Ok((!missing.is_empty()).then(|| Halt {
            code: Code::NoRight,
            message: format!("the user lacks {} on {} at the sink", missing.join(", "), wanted.table),
            facts: vec![],
            hint: format!("GRANT {} ON {table} TO …", missing.join(", ")),
        }))
    }
}

fn database(sink: &config::Sink) -> &Database {
    match &sink.engine {
        Engine::MariaDb(database) => database,
        other => unreachable!("a sink of {} is not opened as a MariaDB", other.kind()),
    }
}

impl Sink for MariaDbSink {
    type Plan = Plan;

    async fn connect(sink: &config::Sink, pipeline: &str, worker: Uuid) -> Result<MariaDbSink> {
        let (database, application) = (database(sink), format!("lockstep:{pipeline}:{}", sink.name));
        Ok(MariaDbSink {
            link: Link::open(database, sink.lock_timeout, &application).await?,
            name: Name { pipeline: pipeline.to_owned(), sink: sink.name.clone(), database: database.dbname.clone() },
            worker,
            transaction: Transaction::None,
            parking: false,
            lease_timeout: sink.lease_timeout,
            heard: Rc::new(Cell::new(Instant::now())),
            beat_at: Instant::now(),
        })
    }

    async fn progress(&mut self, create: bool) -> Result<Option<ProgressRow>> {
        progress::prepare(&mut self.link, &self.name, create).await?;
        progress::read(&mut self.link, &self.name).await
    }

    async fn found_progress(&mut self) -> Result<Option<ProgressRow>> {
        match progress::exists(&mut self.link, &self.name).await? {
            true => progress::read(&mut self.link, &self.name).await,
            false => Ok(None),
        }
    }

    async fn take_over(&mut self, first: &Standing) -> Result<TakeOver> {
        assert_eq!(self.transaction, Transaction::None, "taking over is for new connections");
        for _ in 0..TAKE_OVER_TRIES_MAX {
            let Some(row) = progress::read(&mut self.link, &self.name).await? else {
                progress::seed(&mut self.link, &self.name, first, self.worker).await?;
                continue;
            };
            if !progress::take_lock(&mut self.link, &self.name, 0).await? {
                let Some(holder) = progress::lock_holder(&mut self.link, &self.name).await? else { continue };
                if row.owner.worker_id != self.worker || row.owner.backend_pid != holder {
                    let Some(activity) = progress::activity(&mut self.link, holder).await? else { continue };
                    // Whoever has the lock is who must end, also before it has come to the row.
                    let owner = Owner { backend_pid: holder, ..row.owner };
                    return Ok(TakeOver::Standby { owner, activity });
                }
                // Our own connection of before: we have given it up, and the server may not know for long.
                progress::kill(&mut self.link, holder).await?;
                if !progress::take_lock(&mut self.link, &self.name, LET_GO_SECONDS).await? {
                    return Err(Error::retry_plain("taking over the sink: our connection of before does not end"));
                }
            }
            if progress::bump(&mut self.link, &self.name, &row.owner, self.worker).await?
                && let Some(row) = progress::read(&mut self.link, &self.name).await?
            {
                return Ok(TakeOver::Mine(Box::new(row)));
            }
        }
        Err(Error::retry_plain("taking over the sink: other workers keep being quicker"))
    }

    async fn evict(&mut self, owner: &Owner) -> Result<bool> {
        match progress::lock_holder(&mut self.link, &self.name).await? {
            Some(holder) if holder == owner.backend_pid => progress::kill(&mut self.link, holder).await,
            _ => Ok(false),
        }
    }

    fn heard(&self) -> Heard {
        self.heard.clone()
    }

    fn hear(&mut self) {
        self.beat_at = Instant::now();
        self.heard.set(self.beat_at);
    }

    fn beat_interval(&self) -> Duration {
        (self.lease_timeout / BEATS).min(BEAT_INTERVAL_MAX)
    }

    async fn keep_lease(&mut self) -> Result<()> {
        if self.beat_at.elapsed() < self.beat_interval() {
            return Ok(());
        }
        let doing = "keeping the lease on the sink";
        match tokio::time::timeout(self.lease_timeout, self.link.run(b"DO 0")).await {
            Ok(outcome) => outcome.map_err(|error| classify(doing, error))?,
            Err(_) => return Err(Error::retry_plain(format!("{doing}: no answer for {:?}", self.lease_timeout))),
        };
        self.hear();
        Ok(())
    }

    async fn watch(sink: &config::Sink, pipeline: &str, owner: Owner, heard: Heard) -> Error {
        lease::watch_link(&Watch { sink, pipeline }, sink, owner, heard).await
    }

    async fn preflight(&mut self, wanted: &[WantedTable]) -> Result<Findings> {
        let mut all = Findings::default();
        for wanted in wanted {
            let facts = catalog::read(&mut self.link, &wanted.table).await?;
            let found = fit::judge(wanted, facts.as_ref());
            let fits = found.halts.is_empty();
            all.halts.extend(found.halts);
            all.notes.extend(found.notes);
            if fits {
                all.halts.extend(self.rights(wanted).await?);
            }
        }
        Ok(all)
    }

    async fn plan(&mut self, wanted: &[WantedTable]) -> Result<Vec<Plan>> {
        let mut plans = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            let facts = catalog::read(&mut self.link, &wanted.table).await?;
            if let Some(halt) = fit::judge(wanted, facts.as_ref()).halts.into_iter().next() {
                return Err(halt.into());
            }
            plans.push(Plan::compile(wanted, &facts.expect("judged: the table is there"))?);
        }
        Ok(plans)
    }

    async fn check_left(&mut self, wanted: &WantedTable, before: &[(String, String)]) -> Outcome<()> {
        let is = |(column, value): &(String, String)| format!("{} = {}", fit::quote(column), value::literal(value));
        let condition = before.iter().map(is).collect::<Vec<_>>().join(" AND ");
        let rows = format!("FROM {} WHERE {condition}", fit::quoted(&wanted.table));
        let found = self.link.rows(format!("SELECT 1 {rows} LIMIT 1").as_bytes()).await;
        if found.map_err(|error| classify("looking for rows of before", error))?.is_empty() {
            return Ok(());
        }
        Err(left(wanted, &wanted.table.to_string(), vec![], format!("DELETE {rows}")).into())
    }

    async fn begin(&mut self, from: &ProgressRow, to: &Standing) -> Outcome<()> {
        assert_eq!(self.transaction, Transaction::None, "one transaction at a time");
        self.transaction = Transaction::Failed;
        match self.move_row("START TRANSACTION;", from, to).await {
            Ok(()) => {
                self.transaction = Transaction::Open;
                self.hear();
                Ok(())
            }
            Err(Failure::OwnershipLost) => {
                self.rollback().await?;
                Err(Failure::OwnershipLost)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn move_on(&mut self, from: &ProgressRow, to: &Standing) -> Outcome<()> {
        self.assert_open();
        let moved = self.move_row("", from, to).await;
        moved.inspect_err(|_| self.fail())
    }

    async fn apply(&mut self, batch: &[(&Plan, NetEffect)]) -> Outcome<Counts> {
        self.write(batch).await
    }

    async fn truncate(&mut self, plans: &[&Plan]) -> Outcome<()> {
        self.empty(plans).await
    }

    async fn replace_range(
        &mut self,
        plan: &Plan,
        range: &KeyRange,
        rows: &[RowBuf],
        _blank: &[TableName],
    ) -> Outcome<Counts> {
        self.replace(plan, range, rows).await
    }

    async fn commit(&mut self) -> Outcome<()> {
        assert_eq!(self.transaction, Transaction::Open, "commit follows begin and only successes");
        self.transaction = Transaction::Failed;
        match self.link.run(b"COMMIT").await {
            Ok(_) => {
                (self.transaction, self.parking) = (Transaction::None, false);
                self.hear();
                Ok(())
            }
            // Also what the server says: whether it came before or after the commit is told by the row alone.
            Err(error) => Err(Failure::OutcomeUnknown(Error::retry("committing at the sink", error))),
        }
    }

    async fn rollback(&mut self) -> Result<()> {
        if self.transaction == Transaction::None {
            return Ok(());
        }
        self.transaction = Transaction::Failed;
        self.link.run(b"ROLLBACK").await.map_err(|error| classify("rolling back at the sink", error))?;
        (self.transaction, self.parking) = (Transaction::None, false);
        Ok(())
    }

    fn park(&mut self, _unread: Unread) {
        self.assert_open();
        self.parking = true;
    }
}

/// The way to look at our own connection from beside it.
struct Watch<'a> {
    sink: &'a config::Sink,
    pipeline: &'a str,
}

impl Probe for Watch<'_> {
    type Session = Link;

    async fn connect(&self) -> Result<Self::Session> {
        let application = format!("lockstep:{}:{}:watch", self.pipeline, self.sink.name);
        Link::open(database(self.sink), self.sink.lock_timeout, &application).await
    }

    async fn activity(session: &mut Link, owner: &Owner) -> Result<Option<Activity>> {
        progress::activity(session, owner.backend_pid).await
    }
}
