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
//! - Memory: rows are asked for in steps sized by what the rows before them weighed, so a chunk passes its limit of bytes by
//!   one step's misjudgement at most.
//!
//! - Where somebody waits to read on behind the chunk, its border is found and told first, by the same snapshot.
//!
//! Deliberately not here: which snapshots are too old to use (the capture machine's rule), the overlay, and who reads beside.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, GenericClient, IsolationLevel, Transaction};

use super::catalog::{Kind, TableFacts, quoted_list, table_facts};
use super::copytext::CopyRows;
use super::failure::{failed, is_not_utf8, unreadable};
use super::filter::{condition, refused};
use super::row_key::row_key_of;
use super::slot::{holder, snapshot_now};
use super::snapshot::PgSnapshot;
use crate::error::{Code, Error, Result};
use crate::key::{Comparison, KeyColumn, KeyOrder, KeyRange, comparison, order_by, order_by_descending, predicate};
use crate::relation::{Relation, TableName, quote_literal};
use crate::value::RowBuf;

/// Rows asked for first when nothing is known of their size: 1 MiB each would be 64 MiB.
const PROBE_ROWS: usize = 64;

/// A step asks for at most this many times the rows already seen: their average says little about many more.
const STEP_GROWTH: usize = 32;

/// Of a table without a key, 2 MiB are read at a time, and what they hold out of line.
const STEP_BLOCKS: i64 = 256;

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
    /// Average of an earlier chunk; makes the first step fit.
    pub row_bytes: Option<usize>,
    pub lock_timeout: Duration,
    /// Wants to know, before anything is read, behind which key the chunk ends at the latest; `None`: with its range. Finding it
    /// walks over `rows_max` rows of the index.
    pub border: Option<&'a (dyn Fn(Option<Vec<String>>) + Sync)>,
}

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
}

/// Reads one chunk. Leaves the connection outside any transaction, on errors too.
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
        Ok(chunk) => {
            transaction.commit().await.map_err(|e| failed(doing(), e))?;
            Ok(ChunkRead { took: locked.elapsed(), ..chunk })
        }
        Err(error) => {
            transaction.rollback().await.map_err(|e| failed(doing(), e))?;
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
    let (rows, range, full) = match &request.extent {
        _ if key.is_empty() => {
            tell(request, None);
            (reader.whole(request.keyless_bytes_max).await?, KeyRange::ALL, false)
        }
        Extent::Range(range) => reader.range(request, &reader.bordered(request, range).await?).await?,
        Extent::Key(wanted) => reader.key(wanted).await?,
    };
    let bytes = rows.iter().map(RowBuf::bytes).sum();
    Ok(ChunkRead { snapshot, facts, key, rows, range, full, bytes, took: Duration::ZERO })
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

/// How many rows to ask for next. Pure.
fn step_rows(read: usize, bytes: usize, request: &ChunkRequest<'_>) -> usize {
    let room = request.rows_max - read;
    let average = bytes.checked_div(read).or(request.row_bytes);
    let Some(average) = average else {
        return PROBE_ROWS.min(room);
    };
    let growth = if read > 0 { read.saturating_mul(STEP_GROWTH) } else { room };
    let fitting = request.bytes_max.saturating_sub(bytes) / average.max(1);
    fitting.min(growth).clamp(1, room)
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
    async fn range(&self, request: &ChunkRequest<'_>, asked: &KeyRange) -> Result<(Vec<RowBuf>, KeyRange, bool)> {
        let mut rows: Vec<RowBuf> = Vec::new();
        let mut bytes = 0;
        let mut rest = asked.clone();
        let full = loop {
            let step = step_rows(rows.len(), bytes, request);
            let before = rows.len();
            let select = self.select(&predicate(self.columns, &rest), &order_by(self.columns), step);
            self.copy(&select, &mut rows).await?;
            bytes += rows[before..].iter().map(RowBuf::bytes).sum::<usize>();
            if rows.len() - before < step {
                break false;
            }
            rest.after = Some(self.key_text(rows.last().expect("a step has rows"))?);
            if rows.len() >= request.rows_max || bytes >= request.bytes_max {
                break true;
            }
        };
        let through = if full { rest.after } else { asked.through.clone() };
        Ok((rows, KeyRange { after: asked.after.clone(), through }, full))
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
        let mut found = Vec::new();
        self.copy_of(&sql, self.columns.len(), &mut found).await?;
        let texts = |row: &RowBuf| (0..self.columns.len()).map(|i| self.text_of(row, i, i)).collect::<Result<Vec<_>>>();
        let border = found.first().map(texts).transpose()?;
        tell(request, border.clone());
        Ok(KeyRange { after: asked.after.clone(), through: border.or_else(|| asked.through.clone()) })
    }

    /// All rows, in no order: by the blocks that they lie in, so that a limit is seen before too much is held. Rows that the
    /// snapshot sees lie in blocks that were there when it was taken.
    async fn whole(&self, bytes_max: usize) -> Result<Vec<RowBuf>> {
        let size =
            "SELECT pg_catalog.pg_relation_size($1::text::regclass) / pg_catalog.current_setting('block_size')::int8";
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for holder in self.holders() {
            let row = self.transaction.query_one(size, &[&holder.quoted()]).await;
            let row = row.map_err(|e| failed(format!("reading the size of {holder}"), e))?;
            let blocks: i64 = row.try_get(0).map_err(|e| unreadable("pg_relation_size", e))?;
            let mut from = 0;
            while from < blocks {
                let (before, to) = (rows.len(), from + STEP_BLOCKS);
                self.copy(&self.select_blocks(holder, from, to), &mut rows).await?;
                bytes += rows[before..].iter().map(RowBuf::bytes).sum::<usize>();
                if bytes > bytes_max {
                    return Err(too_large(&self.facts.name, bytes_max));
                }
                from = to;
            }
        }
        Ok(rows)
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
    async fn key(&self, wanted: &[String]) -> Result<(Vec<RowBuf>, KeyRange, bool)> {
        let mut rows = Vec::new();
        let below = comparison(self.columns, Comparison::Below, wanted);
        self.copy(&self.select(&below, &order_by_descending(self.columns), 1), &mut rows).await?;
        let after = rows.pop().map(|row| self.key_text(&row)).transpose()?;
        let equal = comparison(self.columns, Comparison::Equal, wanted);
        // Two, so that a key that is none (a damaged index) shows.
        self.copy(&self.select(&equal, &order_by(self.columns), 2), &mut rows).await?;
        if rows.len() > 1 {
            let message = format!("table {} has two rows with one key; its index is damaged", self.facts.name);
            let hint = format!("REINDEX TABLE {}", self.facts.name.quoted());
            return Err(Error::halt(Code::TableWithoutKey, message, hint));
        }
        Ok((rows, KeyRange { after, through: Some(wanted.to_vec()) }, false))
    }

    fn list(&self) -> String {
        quoted_list(self.facts.columns.iter().map(|c| c.name.as_str()))
    }

    fn and_where(&self) -> String {
        let only = self.only.map(|only| format!(" AND (\n{only}\n)")).unwrap_or_default();
        format!("{}{only}", self.filter)
    }

    fn select_blocks(&self, holder: &TableName, from: i64, to: i64) -> String {
        let (list, table, filter) = (self.list(), holder.quoted(), self.and_where());
        format!(
            "COPY (SELECT {list} FROM ONLY {table} WHERE ctid >= '({from},0)' AND ctid < '({to},0)'{filter}) TO STDOUT"
        )
    }

    fn select(&self, condition: &str, order: &str, rows: usize) -> String {
        let (list, from, filter) = (self.list(), self.from(), self.and_where());
        format!("COPY (SELECT {list} FROM {from} WHERE ({condition}){filter} ORDER BY {order} LIMIT {rows}) TO STDOUT")
    }

    fn from(&self) -> String {
        let only = if self.facts.kind == Kind::Partitioned { "" } else { "ONLY " };
        format!("{only}{}", self.facts.name.quoted())
    }

    async fn copy(&self, sql: &str, rows: &mut Vec<RowBuf>) -> Result<()> {
        self.copy_of(sql, self.facts.columns.len(), rows).await
    }

    async fn copy_of(&self, sql: &str, columns: usize, rows: &mut Vec<RowBuf>) -> Result<()> {
        let doing = format!("reading rows of {}", self.facts.name);
        let failure = |e| {
            let unfit = self.only.and_then(|only| refused_condition(&self.facts.name, only, &e));
            unfit.unwrap_or_else(|| if self.filter.is_empty() { failed(&*doing, e) } else { refused(&doing, e) })
        };
        let mut stream = pin!(self.transaction.copy_out(sql).await.map_err(failure)?);
        let mut copy = CopyRows::new(columns);
        while let Some(data) = stream.next().await {
            copy.feed(&data.map_err(failure)?, rows).map_err(|e| unreadable("COPY data", e))?;
        }
        copy.finish().map_err(|e| unreadable("COPY data", e))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relation::{Fingerprint, Format, Modes};

    #[test]
    fn steps_fit_the_bytes_that_are_left() {
        let relation = Relation {
            fingerprint: Fingerprint(0),
            oid: 1,
            name: TableName::new("s", "t"),
            topic: String::new(),
            partitions: 1,
            format: Format::Json,
            modes: Modes::default(),
            columns: vec![],
            avro: None,
            transforms: vec![],
            hidden: vec![],
            composites: vec![],
        };
        let mut request = ChunkRequest {
            relation: &relation,
            key: &[],
            filter: None,
            extent: Extent::Range(KeyRange::ALL),
            rows_max: 10_000,
            bytes_max: 1_000_000,
            keyless_bytes_max: 1_000_000,
            row_bytes: None,
            lock_timeout: Duration::from_secs(1),
            border: None,
        };
        assert_eq!(step_rows(0, 0, &request), PROBE_ROWS);
        // 100 bytes a row: growth is the limit, then the bytes, then one row at least.
        assert_eq!(step_rows(64, 6_400, &request), 64 * STEP_GROWTH);
        assert_eq!(step_rows(9_000, 900_000, &request), 1_000);
        assert_eq!(step_rows(10, 999_999, &request), 1);
        request.row_bytes = Some(500);
        assert_eq!(step_rows(0, 0, &request), 2_000);
        request.rows_max = 5;
        assert_eq!(step_rows(0, 0, &request), 5);
        assert_eq!(step_rows(4, 0, &request), 1);
    }
}
