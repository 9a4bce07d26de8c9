//! Reading one chunk of a table by the visibility cut (docs/design.md section 4, step 2).
//!
//! One REPEATABLE READ READ ONLY transaction: lock the table, take the snapshot S, read the catalog, read the rows in key
//! order. Then [`mark`] puts a nonce into the log: where the stream shows it is H, and the reader overlays what streamed
//! before H and S does not see.
//!
//! Invariants:
//! - The lock comes before the snapshot. DDL that rewrites a table is not MVCC-safe: an older snapshot finds it empty.
//! - Where the relation version has a condition, rows that do not meet it are left out; then no sink takes the table.
//! - Rows, key and catalog facts are of one instant. The select list comes from the facts found inside, so rows never shift
//!   against their columns; the caller compares the facts with what it expected.
//! - The range returned holds exactly the rows returned: it ends at the last key read, or where the caller's range ends.
//! - A table without a key has one range, all of it, and nothing to cut it by.
//! - Row security errors instead of hiding rows, and `ONLY` keeps inheriting tables out, as in the stream. A partitioned table
//!   has no rows of its own: it is read, and locked, with its partitions.
//! - Memory: a chunk passes its limit of bytes by one row at most. What rows weigh is known only as they come, so one that
//!   reaches the limit is left in the middle and ends there; its connection, on which the rest is on its way, is given up
//!   ([`ChunkRead::severed`]). Who asks for as many rows as fit need not be afraid of it.
//! - Where somebody waits to read on behind the chunk, its border is found and told first, by the same snapshot.
//!
//! Deliberately not here: which snapshots are too old to use (the capture machine's rule), the overlay, and who reads beside.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, GenericClient, IsolationLevel, Transaction};

use super::catalog::{Kind, TableFacts, quoted_list, table_facts};
use super::copytext::{CopyError, CopyRows};
use super::failure::{failed, is_not_utf8, unreadable};
use super::filter::{condition, refused};
use super::row_key::row_key_of;
use super::slot::{holder, snapshot_now};
use super::snapshot::PgSnapshot;
use super::unserved::{self, Unserved};
use crate::error::{Code, Error, Result};
use crate::key::{Comparison, KeyColumn, KeyOrder, KeyRange, comparison, order_by, order_by_descending, predicate};
use crate::relation::{Relation, TableName, quote_literal};
use crate::value::RowBuf;

/// What part of the table to read.
#[derive(Clone, Debug)]
pub enum Extent {
    /// From the range's lower border on, until a limit or its upper border is reached.
    Range(KeyRange),
    /// One key, whether it is there or not. The range of the chunk then begins at the key before it.
    Key(Vec<String>),
}

/// What to read, and how much of it at most.
#[derive(Clone)]
pub struct ChunkRequest<'a> {
    /// The version whose key the extent speaks of.
    pub relation: &'a Relation,
    /// As [`super::catalog::RelationShape::key`].
    pub key: &'a [String],
    /// Only rows with this; the publication has the same.
    pub filter: Option<&'a str>,
    pub extent: Extent,
    pub rows_max: usize,
    pub bytes_max: usize,
    /// A table without a key is read whole whatever the limits, up to here.
    pub keyless_bytes_max: usize,
    pub lock_timeout: Duration,
    /// Wants to know, before anything is read, behind which key the chunk ends at the latest; `None`: with its range. Finding it
    /// walks over `rows_max` rows of the index.
    pub border: Option<&'a (dyn Fn(Option<Vec<String>>) + Sync)>,
    /// Where no index serves the key's order, the range is planned as a whole first.
    pub plan: Option<Plan<'a>>,
}

/// How to plan ranges, and who wants to know of them.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// A range has at least so many, if its bytes allow.
    pub rows: usize,
    /// Is told the borders within the range that was asked for, and of which table an index would make it unnecessary. The
    /// chunk ends with the first of them.
    pub tell: &'a (dyn Fn(Vec<Vec<String>>, Option<String>) + Sync),
}

/// Rows of a range that is planned: all.
pub const ROWS_ALL: usize = u32::MAX as usize;

/// A chunk: the rows of a range as a snapshot sees them.
#[derive(Debug)]
pub struct ChunkRead {
    pub snapshot: PgSnapshot,
    /// The table inside the transaction. `rows` have its columns, in its order.
    pub facts: TableFacts,
    /// Indexes of the key's columns, in key order.
    pub key: Vec<usize>,
    /// In key order.
    pub rows: Vec<RowBuf>,
    /// Holds exactly `rows`.
    pub range: KeyRange,
    /// A limit was reached: more rows may follow after `range.through`.
    pub full: bool,
    /// Heap bytes of `rows`.
    pub bytes: usize,
    /// From the lock to the last row.
    pub took: Duration,
    /// More rows are on their way than were wanted: the connection is of no use any more.
    pub severed: bool,
}

/// Reads one chunk. Leaves the connection outside any transaction, on errors too, unless it is severed.
///
/// # Errors
/// A retry that names who holds the table if its lock does not come in time; `TABLE_MISSING` if it is gone, a retry if its key
/// is no longer the one that the extent speaks of, `TABLE_WITHOUT_KEY` if it has none and is too large to be read whole, and
/// what [`row_key_of`] says.
pub async fn read_chunk(client: &mut Client, request: &ChunkRequest<'_>) -> Result<ChunkRead> {
    assert!(request.rows_max > 0 && request.bytes_max > 0, "a chunk has room for a row");
    let relation = request.relation;
    let doing = || format!("reading a chunk of {}", relation.name);
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await
        .map_err(|e| failed(doing(), e))?;
    if let Err(error) = lock(&transaction, &relation.name, request.lock_timeout).await {
        transaction.rollback().await.map_err(|e| failed(doing(), e))?;
        return Err(not_locked(client, relation, request.lock_timeout, error).await);
    }
    let locked = Instant::now();
    match read_locked(&transaction, request).await {
        // Its end would come behind all that is on its way.
        Ok(chunk) if chunk.severed => Ok(ChunkRead { took: locked.elapsed(), ..chunk }),
        Ok(chunk) => {
            transaction.commit().await.map_err(|e| failed(doing(), e))?;
            Ok(ChunkRead { took: locked.elapsed(), ..chunk })
        }
        Err(error) => {
            if !is_too_large(&error) {
                transaction.rollback().await.map_err(|e| failed(doing(), e))?;
            }
            Err(error)
        }
    }
}

/// Neither SET nor LOCK takes a snapshot, so the first query after them does.
async fn lock(transaction: &Transaction<'_>, name: &TableName, timeout: Duration) -> Result<(), tokio_postgres::Error> {
    // 0 would wait for ever.
    let milliseconds = timeout.as_millis().clamp(1, 2_147_483_647);
    let sql = format!(
        "SET LOCAL lock_timeout = {milliseconds}; SET LOCAL row_security = off; LOCK TABLE {} IN ACCESS SHARE MODE",
        name.quoted()
    );
    transaction.batch_execute(&sql).await
}

async fn not_locked(client: &Client, relation: &Relation, timeout: Duration, error: tokio_postgres::Error) -> Error {
    match error.code() {
        Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            let by = lock_holder(client, relation.oid).await.unwrap_or_default();
            Error::retry(format!("waiting {timeout:?} to read table {}{by}", relation.name), error)
        }
        Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME) => table_missing(&relation.name),
        _ => failed(format!("locking table {}", relation.name), error),
    }
}

fn too_large(name: &TableName, bytes_max: usize) -> Error {
    let found =
        format!("table {name} has no key, so its rows are read and held in one piece; they are too many for that");
    Error::halt(Code::TableWithoutKey, found, format!("ALTER TABLE {} ADD PRIMARY KEY (…)", name.quoted()))
        .fact(format!("source.snapshot.keyless_bytes allows {bytes_max} bytes"))
}

/// Its table is left in the middle too.
fn is_too_large(error: &Error) -> bool {
    matches!(error, Error::Halt(halt) if halt.code == Code::TableWithoutKey)
}

fn table_missing(name: &TableName) -> Error {
    let hint = "lockstep check, after making it again or removing its connector";
    Error::halt(Code::TableMissing, format!("table {name} is gone from the source"), hint)
}

/// Only ACCESS EXCLUSIVE is in the way of a reader. One that waits itself is too: the queue is fair. Best effort, for a message.
async fn lock_holder(client: &Client, table: u32) -> Option<String> {
    const SQL: &str = "SELECT pid, granted FROM pg_locks
        WHERE locktype = 'relation' AND relation = $1 AND mode = 'AccessExclusiveLock' AND pid IS NOT NULL
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        ORDER BY granted DESC LIMIT 1";
    let row = client.query_opt(SQL, &[&table]).await.ok()??;
    let (pid, granted): (i32, bool) = (row.try_get(0).ok()?, row.try_get(1).ok()?);
    let who = holder(client, pid).await.ok()?.map_or_else(|| format!("process {pid}"), |h| h.to_string());
    Some(if granted { format!(", locked by {who}") } else { format!(", behind {who}, who waits to lock it") })
}

async fn read_locked(transaction: &Transaction<'_>, request: &ChunkRequest<'_>) -> Result<ChunkRead> {
    let name = &request.relation.name;
    let snapshot = snapshot_now(transaction).await?;
    let facts = table_facts(transaction, std::slice::from_ref(name)).await?.pop().flatten();
    let facts = facts.ok_or_else(|| table_missing(name))?;
    let key = row_key_of(&facts, request.key)?;
    let columns = key_columns(&facts, &key);
    same_key(request.relation, &facts, &key)?;
    let only = request.relation.modes.snapshot_where.as_deref();
    let filter = request.filter.map(|sql| format!(" AND {}", condition(sql))).unwrap_or_default();
    let reader = Reader { transaction, facts: &facts, key: &key, columns: &columns, filter, only };
    let (rows, range, ended) = match &request.extent {
        _ if key.is_empty() => {
            tell(request, None);
            (reader.whole(request.keyless_bytes_max).await?, KeyRange::ALL, Ended::WithRange)
        }
        Extent::Range(range) => match reader.planned(request, range).await? {
            Some(range) => reader.range((ROWS_ALL, request.bytes_max), &range).await?,
            None => {
                let range = reader.bordered(request, range).await?;
                reader.range((request.rows_max, request.bytes_max), &range).await?
            }
        },
        Extent::Key(wanted) => reader.key(wanted).await?,
    };
    let bytes = rows.iter().map(RowBuf::bytes).sum();
    let (full, severed) = (ended != Ended::WithRange, ended == Ended::AtBytes);
    Ok(ChunkRead { snapshot, facts, key, rows, range, full, bytes, took: Duration::ZERO, severed })
}

fn tell(request: &ChunkRequest<'_>, border: Option<Vec<String>>) {
    if let Some(tell) = request.border {
        tell(border);
    }
}

/// The key's columns as they enter SQL at the source.
pub fn key_columns(facts: &TableFacts, key: &[usize]) -> Vec<KeyColumn> {
    let column = |&i: &usize| {
        let column = &facts.columns[i];
        KeyColumn::new(&column.name, KeyOrder::of(column.type_oid), &column.type_name).in_encoding(&facts.encoding)
    };
    key.iter().map(column).collect()
}

/// A border is a tuple of the key that it was read with; under another key it would mean other rows.
fn same_key(relation: &Relation, facts: &TableFacts, key: &[usize]) -> Result<()> {
    let expected = relation.key_columns();
    let same = expected.len() == key.len()
        && expected.iter().zip(key).all(|(&a, &b)| {
            let (a, b) = (&relation.columns[a], &facts.columns[b]);
            a.name == b.name && KeyOrder::of(a.type_oid) == KeyOrder::of(b.type_oid)
        });
    if same {
        return Ok(());
    }
    // What the next look at the table shows has all of it read again.
    Err(Error::retry_plain(format!("the key of table {} changed while its rows were being read", relation.name)))
}

/// Where a chunk ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    WithRange,
    AtRows,
    AtBytes,
}

/// Rows as they come, up to a number of bytes.
struct Rows {
    rows: Vec<RowBuf>,
    bytes: usize,
    bytes_max: usize,
}

impl Rows {
    fn up_to(bytes_max: usize) -> Rows {
        Rows { rows: Vec::new(), bytes: 0, bytes_max }
    }

    /// Takes what came; whether that is all there is room for.
    fn take(&mut self, copy: &mut CopyRows, data: &[u8]) -> Result<bool, CopyError> {
        let before = self.rows.len();
        copy.feed(data, &mut self.rows)?;
        self.bytes += self.rows[before..].iter().map(RowBuf::bytes).sum::<usize>();
        Ok(self.bytes >= self.bytes_max)
    }
}

/// One chunk's transaction with what was found in it.
struct Reader<'a> {
    transaction: &'a Transaction<'a>,
    facts: &'a TableFacts,
    key: &'a [usize],
    columns: &'a [KeyColumn],
    /// Of the connector's rows, behind another condition.
    filter: String,
    /// Other rows are left out.
    only: Option<&'a str>,
}

impl Reader<'_> {
    async fn range(
        &self,
        (rows_max, bytes_max): (usize, usize),
        asked: &KeyRange,
    ) -> Result<(Vec<RowBuf>, KeyRange, Ended)> {
        let mut found = Rows::up_to(bytes_max);
        let select = self.select(&predicate(self.columns, asked), &order_by(self.columns), rows_max);
        let cut = self.copy(&select, &mut found).await?;
        let ended = match cut {
            true => Ended::AtBytes,
            false if found.rows.len() < rows_max => Ended::WithRange,
            false => Ended::AtRows,
        };
        let through = match (ended, found.rows.last()) {
            (Ended::AtRows | Ended::AtBytes, Some(last)) => Some(self.key_text(last)?),
            _ => asked.through.clone(),
        };
        Ok((found.rows, KeyRange { after: asked.after.clone(), through }, ended))
    }

    /// The first of the ranges that were planned, once they were told; `None`: none had to be.
    async fn planned(&self, request: &ChunkRequest<'_>, asked: &KeyRange) -> Result<Option<KeyRange>> {
        let Some(plan) = request.plan.filter(|_| self.columns.iter().any(KeyColumn::is_text)) else { return Ok(None) };
        let condition = format!("({}){}", predicate(self.columns, asked), self.and_where());
        let (name, from) = (&self.facts.name, self.from());
        let unserved = Unserved { name, columns: self.columns, from: &from, condition: &condition };
        if unserved.is_served(self.transaction).await? {
            return Ok(None);
        }
        let sql = unserved.borders((plan.rows, request.bytes_max / 4 * 3), self.facts.rows_estimate);
        let mut found = Rows::up_to(usize::MAX);
        self.copy_of(&sql, self.columns.len(), &mut found).await?;
        let texts = |row: &RowBuf| (0..self.columns.len()).map(|i| self.text_of(row, i, i)).collect::<Result<Vec<_>>>();
        let borders = found.rows.iter().map(texts).collect::<Result<Vec<_>>>()?;
        let first = borders.first().cloned().or_else(|| asked.through.clone());
        (plan.tell)(borders, unserved::advice(name, self.columns));
        Ok(Some(KeyRange { after: asked.after.clone(), through: first }))
    }

    /// The range up to the border that was asked for, once that was told.
    async fn bordered(&self, request: &ChunkRequest<'_>, asked: &KeyRange) -> Result<KeyRange> {
        if request.border.is_none() {
            return Ok(asked.clone());
        }
        let list = self.columns.iter().map(|column| column.sql.as_str()).collect::<Vec<_>>().join(", ");
        let (from, filter) = (self.from(), self.and_where());
        let (condition, order) = (predicate(self.columns, asked), order_by(self.columns));
        let behind = request.rows_max - 1;
        let sql = format!(
            "COPY (SELECT {list} FROM {from} WHERE ({condition}){filter} ORDER BY {order} OFFSET {behind} LIMIT 1) TO STDOUT"
        );
        let mut found = Rows::up_to(usize::MAX);
        self.copy_of(&sql, self.columns.len(), &mut found).await?;
        let texts = |row: &RowBuf| (0..self.columns.len()).map(|i| self.text_of(row, i, i)).collect::<Result<Vec<_>>>();
        let border = found.rows.first().map(texts).transpose()?;
        tell(request, border.clone());
        Ok(KeyRange { after: asked.after.clone(), through: border.or_else(|| asked.through.clone()) })
    }

    /// All rows, in no order.
    async fn whole(&self, bytes_max: usize) -> Result<Vec<RowBuf>> {
        // One byte more than is allowed.
        let mut found = Rows::up_to(bytes_max.saturating_add(1));
        for holder in self.holders() {
            if self.copy(&self.select_all(holder), &mut found).await? {
                return Err(too_large(&self.facts.name, bytes_max));
            }
        }
        Ok(found.rows)
    }

    /// What the rows lie in: the table, or its partitions.
    fn holders(&self) -> Vec<&TableName> {
        match self.facts.kind {
            Kind::Partitioned => self.facts.leaves.iter().map(|leaf| &leaf.name).collect(),
            _ => vec![&self.facts.name],
        }
    }

    /// The key alone has no range of its own, since borders below are exclusive; but between the key before it and itself
    /// there is nothing else in this snapshot.
    async fn key(&self, wanted: &[String]) -> Result<(Vec<RowBuf>, KeyRange, Ended)> {
        let below = comparison(self.columns, Comparison::Below, wanted);
        let mut before = Rows::up_to(usize::MAX);
        self.copy(&self.select(&below, &order_by_descending(self.columns), 1), &mut before).await?;
        let after = before.rows.pop().map(|row| self.key_text(&row)).transpose()?;
        let equal = comparison(self.columns, Comparison::Equal, wanted);
        // Two, so that a key that is none (a damaged index) shows.
        let mut found = Rows::up_to(usize::MAX);
        self.copy(&self.select(&equal, &order_by(self.columns), 2), &mut found).await?;
        if found.rows.len() > 1 {
            let message = format!("table {} has two rows with one key; its index is damaged", self.facts.name);
            let hint = format!("REINDEX TABLE {}", self.facts.name.quoted());
            return Err(Error::halt(Code::TableWithoutKey, message, hint));
        }
        Ok((found.rows, KeyRange { after, through: Some(wanted.to_vec()) }, Ended::WithRange))
    }

    fn list(&self) -> String {
        quoted_list(self.facts.columns.iter().map(|c| c.name.as_str()))
    }

    fn and_where(&self) -> String {
        let only = self.only.map(|only| format!(" AND (\n{only}\n)")).unwrap_or_default();
        format!("{}{only}", self.filter)
    }

    fn select_all(&self, holder: &TableName) -> String {
        let (list, table, filter) = (self.list(), holder.quoted(), self.and_where());
        format!("COPY (SELECT {list} FROM ONLY {table} WHERE true{filter}) TO STDOUT")
    }

    fn select(&self, condition: &str, order: &str, rows: usize) -> String {
        let (list, from, filter) = (self.list(), self.from(), self.and_where());
        format!("COPY (SELECT {list} FROM {from} WHERE ({condition}){filter} ORDER BY {order} LIMIT {rows}) TO STDOUT")
    }

    fn from(&self) -> String {
        let only = if self.facts.kind == Kind::Partitioned { "" } else { "ONLY " };
        format!("{only}{}", self.facts.name.quoted())
    }

    async fn copy(&self, sql: &str, into: &mut Rows) -> Result<bool> {
        self.copy_of(sql, self.facts.columns.len(), into).await
    }

    /// Whether the rows were left in the middle.
    async fn copy_of(&self, sql: &str, columns: usize, into: &mut Rows) -> Result<bool> {
        let doing = format!("reading rows of {}", self.facts.name);
        let failure = |e| {
            let unfit = self.only.and_then(|only| refused_condition(&self.facts.name, only, &e));
            unfit.unwrap_or_else(|| if self.filter.is_empty() { failed(&*doing, e) } else { refused(&doing, e) })
        };
        let mut stream = pin!(self.transaction.copy_out(sql).await.map_err(failure)?);
        let mut copy = CopyRows::new(columns);
        while let Some(data) = stream.next().await {
            if into.take(&mut copy, &data.map_err(failure)?).map_err(|e| unreadable("COPY data", e))? {
                return Ok(true);
            }
        }
        copy.finish().map_err(|e| unreadable("COPY data", e))?;
        Ok(false)
    }

    fn key_text(&self, row: &RowBuf) -> Result<Vec<String>> {
        self.key.iter().enumerate().map(|(part, &i)| self.text_of(row, i, part)).collect()
    }

    /// The text in column `i` of a row, which is a part of the key.
    fn text_of(&self, row: &RowBuf, i: usize, part: usize) -> Result<String> {
        let text = row.row().get(i).text().and_then(|t| std::str::from_utf8(t).ok()).map(str::to_owned);
        text.ok_or_else(|| {
            let name = &self.facts.columns[self.key[part]].name;
            unreadable("key", format!("column {name:?} is NULL or no UTF-8"))
        })
    }
}

/// Whether the server understands the condition of `snapshot_where`.
pub async fn check_condition(client: &impl GenericClient, name: &TableName, only: &str) -> Result<()> {
    let sql = format!("EXPLAIN SELECT FROM {} WHERE (\n{only}\n)", name.quoted());
    client.batch_execute(&sql).await.map_err(|e| {
        refused_condition(name, only, &e).unwrap_or_else(|| failed(format!("checking snapshot_where of {name}"), e))
    })
}

/// The server's refusal of the condition: it does not parse, names what is not there, or fails on a row.
fn refused_condition(name: &TableName, only: &str, error: &tokio_postgres::Error) -> Option<Error> {
    let refusal = error.as_db_error()?;
    let state = refusal.code();
    let text = is_not_utf8(state.code()) || *state == SqlState::INSUFFICIENT_PRIVILEGE;
    let ours = (state.code().starts_with("42") || state.code().starts_with("22")) && !text;
    ours.then(|| {
        let message = format!("snapshot_where of table {name} can't be evaluated: {}", refusal.message());
        let hint = format!("write another snapshot_where into [wire] of the connector of {name}, or delete it");
        Error::halt(Code::Config, message, hint).fact(format!("the condition: {only}"))
    })
}

/// Prefix of the logical message that marks H; its content is the nonce.
pub const MESSAGE_PREFIX: &str = "lockstep";

/// Prefix of the message before Postgres 17 that only makes its transaction worth a flush. The stream's reader drops it.
pub const FLUSH_PREFIX: &str = "lockstep-flush";

/// Puts the nonce into the log, after the chunk's transaction has ended and the reader waits for the nonce, and flushes it: a
/// walsender sends flushed log only. Any role may write such messages, so the nonce must be random.
pub async fn mark(client: &(impl GenericClient + Sync), nonce: &str, server_version: i32) -> Result<()> {
    client.batch_execute(&mark_sql(nonce, server_version)).await.map_err(|e| failed("marking the end of a chunk", e))
}

fn mark_sql(nonce: &str, server_version: i32) -> String {
    let nonce = quote_literal(nonce);
    if server_version >= 170_000 {
        return format!("SELECT pg_logical_emit_message(false, '{MESSAGE_PREFIX}', {nonce}, true)");
    }
    // A transaction that wrote nothing flushes nothing; `local` because a role may have synchronous_commit off, and a
    // standby that does not answer must not hold up a snapshot.
    format!(
        "SELECT pg_logical_emit_message(false, '{MESSAGE_PREFIX}', {nonce});
         BEGIN; SET LOCAL synchronous_commit = local; SELECT pg_logical_emit_message(true, '{FLUSH_PREFIX}', ''); COMMIT"
    )
}
