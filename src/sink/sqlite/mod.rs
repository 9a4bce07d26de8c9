//! A SQLite sink: one file, written by one process at a time. The contract is [`Sink`].
//!
//! | what | where |
//! |---|---|
//! | what a value is here, and which columns keep it | `form`, `fit` |
//! | what the file says of its tables | `catalog` |
//! | the statements, a row each | `plan`, `write`, `range`, `park` |
//! | the file and its transaction, on a thread of its own | `file`, `link` |
//! | who owns the sink | `progress`, `alive` |
//! | what an error means | `refusal` |
//!
//! SQLite's only lock is that of the whole file, and one connection writes at a time. So a transaction is begun `IMMEDIATE`: it
//! waits for whoever writes, at most `lock_timeout`, and from then on nobody else does. The lock is the operating system's and ends
//! with its process; what a frozen process holds nobody can take away, so a standby waits for that one and says so.
//!
//! Foreign keys are on, and checked at the commit. The journal is as its owner set it.

mod alive;
mod catalog;
mod file;
mod fit;
mod form;
mod link;
mod park;
mod plan;
mod progress;
mod range;
mod refusal;
mod write;

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use self::alive::Alive;
use self::file::OpenFile;
use self::link::Link;
pub use self::plan::TablePlan;
use self::progress::{RowName, Us};
use self::refusal::{failure, is_busy};
use super::circles::Circles;
use super::confine::left;
use super::lacks;
use super::lease::{BEATS, Heard};
use super::park::Unread;
use super::progress::{Owner, ProgressRow, Standing, TakeOver};
use super::{Counts, Failure, Findings, Outcome, Sink, WantedTable};
use crate::apply::net::NetEffect;
use crate::config::{self, Engine};
use crate::error::{Code, Error, Halt, Result};
use crate::key::KeyRange;
use crate::relation::{TableName, quote_identifier};
use crate::value::RowBuf;

/// How often taking over looks again when another worker was quicker, before it leaves the field to them.
const TAKE_OVER_TRIES_MAX: usize = 3;

/// Between two tries for the file's lock, beside the time that SQLite itself waits.
const LOCK_NAP: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transaction {
    None,
    Open,
    /// A statement failed; only a rollback is left.
    Failed,
}

pub struct SqliteSink {
    link: Link,
    path: PathBuf,
    /// This worker: new with every process, kept over reconnects.
    worker: Uuid,
    /// Once we may own the sink.
    alive: Option<Alive>,
    transaction: Transaction,
    /// While parking: what is still to be read.
    unread: Option<Unread>,
    lock_timeout: Duration,
    lease_timeout: Duration,
    heard: Heard,
    beat_at: Instant,
}

impl SqliteSink {
    /// Runs a job on the file's thread, and counts on meanwhile: who works is not silent.
    async fn run<T: Send + 'static>(&mut self, job: impl FnOnce(&mut OpenFile) -> T + Send + 'static) -> T {
        let interval = self.beat_interval();
        let SqliteSink { link, alive, .. } = self;
        let mut answer = std::pin::pin!(link.run(job));
        loop {
            tokio::select! {
                answer = &mut answer => return answer,
                () = tokio::time::sleep(interval) => alive.iter_mut().for_each(Alive::beat),
            }
        }
    }

    /// The same of what the file's lock may refuse: tried until it is free, at most `lock_timeout`.
    async fn patiently<T: Send + 'static>(
        &mut self,
        doing: &'static str,
        job: impl Fn(&mut OpenFile) -> rusqlite::Result<T> + Clone + Send + 'static,
    ) -> Outcome<T> {
        let begun = Instant::now();
        loop {
            match self.run(job.clone()).await {
                Err(error) if is_busy(&error) && begun.elapsed() < self.lock_timeout => {
                    self.keep_lease().await?;
                    tokio::time::sleep(LOCK_NAP).await;
                }
                Err(error) if is_busy(&error) => {
                    let what = format!(
                        "{doing}: {} is locked by another program, for longer than lock_timeout (fuser '{0}' names it)",
                        self.path.display()
                    );
                    return Err(Failure::Error(Error::retry(what, error)));
                }
                outcome => return outcome.map_err(|error| failure(doing, None, error)),
            }
        }
    }

    fn us(&mut self) -> Result<Us> {
        let alive = match &mut self.alive {
            Some(alive) if alive.is_there() => alive,
            none => {
                let begun = Alive::begin(&self.path);
                none.insert(begun.map_err(|error| Error::retry("writing a file beside the sink's", error))?)
            }
        };
        Ok(Us { worker: self.worker, pid: alive.pid, start_us: alive.start_us })
    }

    fn assert_open(&self) {
        assert_eq!(self.transaction, Transaction::Open, "rows are written between begin and commit");
    }

    /// Runs a job of the open transaction; after a failure only a rollback is left.
    async fn write<T: Send + 'static>(
        &mut self,
        job: impl FnOnce(&mut OpenFile) -> Outcome<T> + Send + 'static,
    ) -> Outcome<T> {
        self.assert_open();
        let unread = self.unread.clone();
        let job = move |file: &mut OpenFile| {
            file.parking.unread = unread;
            job(file)
        };
        let outcome = self.run(job).await;
        match &outcome {
            Ok(_) => self.hear(),
            Err(_) => self.transaction = Transaction::Failed,
        }
        outcome
    }

    async fn facts(&mut self, wanted: &[WantedTable]) -> Result<(i64, Vec<Option<catalog::TableFacts>>)> {
        let names: Vec<String> = wanted.iter().map(|wanted| wanted.table.table.clone()).collect();
        let facts = self.patiently("looking at the sink's tables", move |file| file.facts(&names)).await;
        facts.map_err(Error::from)
    }
}

impl Sink for SqliteSink {
    type Plan = Arc<TablePlan>;

    async fn connect(sink: &config::Sink, pipeline: &str, worker: Uuid) -> Result<SqliteSink> {
        let Engine::Sqlite(path) = &sink.engine else { unreachable!("for_engine! tells engines apart") };
        let name = RowName { pipeline: pipeline.to_owned(), sink: sink.name.clone() };
        let (file, commit) = (path.clone(), sink.synchronous_commit);
        let link = Link::open(move || OpenFile::open(&file, name, commit)).await?;
        Ok(SqliteSink {
            link,
            path: path.clone(),
            worker,
            alive: None,
            transaction: Transaction::None,
            unread: None,
            lock_timeout: sink.lock_timeout,
            lease_timeout: sink.lease_timeout,
            heard: Rc::new(Cell::new(Instant::now())),
            beat_at: Instant::now(),
        })
    }

    async fn progress(&mut self, create: bool) -> Result<Option<ProgressRow>> {
        let doing = "looking for lockstep_progress";
        if !self.patiently(doing, |file| progress::is_there(&file.connection)).await? {
            if !create {
                return Err(progress::missing().into());
            }
            self.patiently("making lockstep_progress", |file| progress::make(&file.connection)).await?;
        }
        self.found_progress().await
    }

    async fn found_progress(&mut self) -> Result<Option<ProgressRow>> {
        let read = |file: &mut OpenFile| match progress::is_there(&file.connection)? {
            true => progress::read(&file.connection, &file.name),
            false => Ok(None),
        };
        self.patiently("reading the sink's progress", read).await?.transpose()
    }

    async fn take_over(&mut self, first: &Standing) -> Result<TakeOver> {
        assert_eq!(self.transaction, Transaction::None, "taking over is for new connections");
        let doing = "taking over the sink";
        for _ in 0..TAKE_OVER_TRIES_MAX {
            let Some(row) = self.found_progress().await? else {
                let (us, first) = (self.us()?, first.clone());
                self.patiently(doing, move |file| progress::seed(&file.connection, &file.name, &first, us)).await?;
                continue;
            };
            // Our own connection of before we have given up: it ends, and with it its lock.
            if row.owner.worker_id != self.worker
                && let Some(activity) = alive::look(&self.path, &row.owner)
            {
                return Ok(TakeOver::Standby { owner: row.owner, activity });
            }
            let (us, seen) = (self.us()?, row.owner.clone());
            let bump = move |file: &mut OpenFile| progress::bump(&file.connection, &file.name, &seen, us);
            if let Some(row) = self.patiently(doing, bump).await?.transpose()? {
                self.hear();
                return Ok(TakeOver::Mine(Box::new(row)));
            }
        }
        Err(Error::retry_plain("taking over the sink: other workers keep being quicker"))
    }

    /// Nobody can be told to end here: from now on it counts as gone, and what it still tries is refused by the row.
    async fn evict(&mut self, owner: &Owner) -> Result<bool> {
        Ok(alive::forget(&self.path, owner))
    }

    fn heard(&self) -> Heard {
        self.heard.clone()
    }

    fn hear(&mut self) {
        self.beat_at = Instant::now();
        self.heard.set(self.beat_at);
    }

    fn beat_interval(&self) -> Duration {
        self.lease_timeout / BEATS
    }

    async fn keep_lease(&mut self) -> Result<()> {
        if self.beat_at.elapsed() >= self.beat_interval() {
            self.alive.iter_mut().for_each(Alive::beat);
            self.hear();
        }
        Ok(())
    }

    fn lacks(sink: &config::Sink, tables: &[&config::SinkTable]) -> Vec<Halt> {
        // synchronous_commit = false is NORMAL in a write-ahead log: what a crash takes back are whole transactions, rows and
        // progress together.
        let lacks = lacks::foreign_keys_aside(sink).into_iter().chain(lacks::evolution(sink, tables));
        let lacks = lacks.chain(lacks::soft_deletes(sink, tables)).chain(lacks::values(sink, tables));
        lacks.chain(lacks::rows_apart(sink)).chain(one_table(sink, tables)).collect()
    }

    async fn preflight(&mut self, wanted: &[WantedTable]) -> Result<Findings> {
        let (_, facts) = self.facts(wanted).await?;
        let mut all = Findings::default();
        for (wanted, facts) in wanted.iter().zip(&facts) {
            let found = fit::judge(wanted, facts.as_ref());
            all.halts.extend(found.halts);
            all.notes.extend(found.notes);
        }
        all.notes.extend(self.patiently("looking at the sink's file", |file| file.notes()).await?);
        Ok(all)
    }

    async fn plan(&mut self, wanted: &[WantedTable]) -> Result<Vec<Arc<TablePlan>>> {
        let (version, facts) = self.facts(wanted).await?;
        let plan =
            |(wanted, facts): (&WantedTable, Option<catalog::TableFacts>)| match fit::judge(wanted, facts.as_ref())
                .halts
                .into_iter()
                .next()
            {
                Some(halt) => Err(halt.into()),
                None => Ok(Arc::new(TablePlan::compile(wanted, facts.expect("judged: the table is there"), version))),
            };
        wanted.iter().zip(facts).map(plan).collect()
    }

    async fn check_left(&mut self, wanted: &WantedTable, before: &[(String, String)]) -> Outcome<()> {
        let is = |(i, (column, _)): (usize, &(String, String))| {
            format!("CAST({} AS TEXT) = ?{} COLLATE BINARY", quote_identifier(column), i + 1)
        };
        let conditions: Vec<String> = before.iter().enumerate().map(is).collect();
        let rows = format!("FROM main.{} WHERE {}", quote_identifier(&wanted.table.table), conditions.join(" AND "));
        let sql = format!("SELECT EXISTS (SELECT 1 {rows})");
        let values: Vec<String> = before.iter().map(|(_, value)| value.clone()).collect();
        let look = move |file: &mut OpenFile| {
            file.connection.query_row(&sql, rusqlite::params_from_iter(&values), |row| row.get::<_, bool>(0))
        };
        if !self.patiently("looking for rows of before", look).await? {
            return Ok(());
        }
        let table = &wanted.table.table;
        let facts = before.iter().map(|(column, value)| format!("{column} = {value}")).collect();
        Err(left(wanted, table, facts, format!("delete those rows of {table}")).into())
    }

    async fn begin(&mut self, from: &ProgressRow, to: &Standing) -> Outcome<()> {
        assert_eq!(self.transaction, Transaction::None, "one transaction at a time");
        self.run(|file| file.check_identity()).await?;
        self.patiently("opening a transaction at the sink", OpenFile::begin).await?;
        self.transaction = Transaction::Open;
        self.unread = None;
        self.move_on(from, to).await
    }

    async fn move_on(&mut self, from: &ProgressRow, to: &Standing) -> Outcome<()> {
        let (from, to) = (from.clone(), to.clone());
        let moved = self.write(move |file| {
            let moved = progress::cas(&file.connection, &file.name, &from, &to);
            match moved.map_err(|error| failure("moving the sink's progress", None, error))? {
                1 => Ok(()),
                _ => Err(Failure::OwnershipLost),
            }
        });
        let outcome = moved.await;
        if let Err(Failure::OwnershipLost) = outcome {
            self.rollback().await?;
        }
        outcome
    }

    async fn apply(&mut self, batch: &[(&Arc<TablePlan>, NetEffect)]) -> Outcome<Counts> {
        let batch = batch.iter().map(|(plan, net)| ((*plan).clone(), net.clone())).collect();
        self.write(move |file| file.apply(&batch)).await
    }

    async fn truncate(&mut self, plans: &[&Arc<TablePlan>]) -> Outcome<()> {
        let plans: Vec<Arc<TablePlan>> = plans.iter().map(|plan| (*plan).clone()).collect();
        self.write(move |file| file.truncate(&plans)).await
    }

    async fn replace_range(
        &mut self,
        plan: &Arc<TablePlan>,
        range: &KeyRange,
        rows: &[RowBuf],
        _blank: &[TableName],
    ) -> Outcome<Counts> {
        let (plan, range, rows) = (plan.clone(), range.clone(), rows.to_vec());
        self.write(move |file| file.replace_range(&plan, &range, &rows)).await
    }

    async fn commit(&mut self) -> Outcome<()> {
        assert_eq!(self.transaction, Transaction::Open, "commit follows begin and only successes");
        self.write(|file| file.settle()).await?;
        self.transaction = Transaction::Failed;
        let begun = Instant::now();
        let doing = "committing at the sink";
        loop {
            match self.run(OpenFile::commit).await {
                Ok(()) => {
                    self.transaction = Transaction::None;
                    self.hear();
                    return Ok(());
                }
                // Readers, in a file without a write-ahead log. The transaction is as it was.
                Err(error) if is_busy(&error) && begun.elapsed() < self.lock_timeout => {
                    self.keep_lease().await?;
                    tokio::time::sleep(LOCK_NAP).await;
                }
                // Foreign keys: refused, and still open.
                Err(error) if is_busy(&error) || refusal::is_reference(&error) => {
                    return Err(failure(doing, None, error));
                }
                Err(error) => return Err(Failure::OutcomeUnknown(Error::retry(doing, error))),
            }
        }
    }

    async fn rollback(&mut self) -> Result<()> {
        if self.transaction == Transaction::None {
            return Ok(());
        }
        let rolled_back = self.run(OpenFile::rollback).await;
        rolled_back.map_err(|error| Error::from(failure("rolling back at the sink", None, error)))?;
        self.transaction = Transaction::None;
        Ok(())
    }

    fn park(&mut self, unread: Unread) {
        self.assert_open();
        self.unread = Some(unread);
    }

    async fn circles(&mut self, tables: &[TableName]) -> Outcome<Circles> {
        let keys =
            self.patiently("reading the sink's foreign keys", |file| catalog::foreign_keys(&file.connection)).await?;
        let find = |name: &str| tables.iter().position(|table| catalog::same_name(&table.table, name));
        let edges = keys.iter().filter_map(|key| Some((find(&key.child)?, find(&key.parent)?)));
        Ok(circles(tables, edges.collect()))
    }
}

/// Tables that reference each other, be it by way of others.
fn circles(tables: &[TableName], edges: Vec<(usize, usize)>) -> Circles {
    let reach = |from: usize| {
        let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(child) = next.pop() {
            next.extend(
                edges.iter().filter(|(c, _)| *c == child).map(|(_, parent)| *parent).filter(|p| reached.insert(*p)),
            );
        }
        reached
    };
    let reached: Vec<BTreeSet<usize>> = (0..tables.len()).map(reach).collect();
    let mut circles: HashMap<TableName, BTreeSet<TableName>> = Circles::new();
    for (a, from_a) in reached.iter().enumerate() {
        for &b in from_a.iter().filter(|&&b| reached[b].contains(&a)) {
            circles.entry(tables[a].clone()).or_default().insert(tables[b].clone());
        }
    }
    circles
}

/// A file has no schemas, and no case in names: two tables of the configuration may be one there.
fn one_table(sink: &config::Sink, tables: &[&config::SinkTable]) -> Option<Halt> {
    let (i, table) = tables.iter().enumerate().find(|(i, table)| {
        tables[..*i]
            .iter()
            .any(|other| other.table != table.table && catalog::same_name(&other.table.table, &table.table.table))
    })?;
    let is_one = |other: &&&config::SinkTable| catalog::same_name(&other.table.table, &table.table.table);
    let other = tables[..i].iter().find(is_one)?;
    Some(Halt {
        code: Code::Config,
        message: format!(
            "{} and {} of sink {} are one table in SQLite, which has no schemas and no case",
            other.table, table.table, sink.name
        ),
        facts: vec![],
        hint: format!("write another table = \"…\" under [sinks.{}] of one of the connectors", sink.name),
    })
}

/// Names the file in messages.
pub fn place(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}
