//! The rows that everything is measured with: ten columns, some 263 bytes in Postgres, 334 in the replication stream.

use anyhow::{Context, Result, ensure};
use lockstep::lsn::Lsn;

use crate::support::Database;

pub const TABLE: &str = "public.events";

/// A table of the same shape whose rows were there before.
pub const HISTORY: &str = "public.history";

/// The same table at the source and at the sinks.
const DDL: &str = "
CREATE TABLE TABLE_NAME (
    id bigint PRIMARY KEY,
    kind integer NOT NULL,
    amount integer NOT NULL,
    version integer NOT NULL,
    made_at timestamp NOT NULL,
    changed_at timestamptz NOT NULL,
    price numeric(12,2),
    active boolean NOT NULL,
    note text,
    attributes jsonb
)";

/// A row from its number `i`.
const VALUES: &str = "i, (i % 100)::int, (i * 7 % 100000)::int, 1, timestamp '2026-01-01' + i * interval '1 second', \
    clock_timestamp(), (i % 1000000) / 100.0, i % 3 = 0, left(repeat(md5(i::text), 5), 150), \
    jsonb_build_object('color', 'oak', 'weight', i % 50)";

pub async fn create_table(database: &Database) -> Result<()> {
    create(database, TABLE).await
}

pub async fn create(database: &Database, table: &str) -> Result<()> {
    database.execute(&DDL.replace("TABLE_NAME", table)).await
}

/// Fills a table in one go, as it stands when nobody has written to it for long: vacuumed, and its pages on disk.
pub async fn fill(database: &Database, table: &str, rows: i64) -> Result<()> {
    database
        .execute(&format!("INSERT INTO {table} SELECT {VALUES} FROM generate_series(0, {rows}::bigint - 1) AS i"))
        .await?;
    database.superuser().await?.batch_execute(&format!("VACUUM ANALYZE {table}")).await?;
    database.superuser().await?.batch_execute("CHECKPOINT").await.context("a checkpoint of the source")
}

/// Inserts the rows `from..from + rows` in transactions of `each`; the log's end after it.
pub async fn insert(database: &Database, from: i64, rows: i64, each: i64) -> Result<Lsn> {
    let sql = format!("INSERT INTO public.events SELECT {VALUES} FROM generate_series($1::bigint, $2::bigint) AS i");
    in_pieces(database, &sql, from, rows, each).await
}

/// Changes every row of `from..from + rows`, in transactions of `each`; the log's end after it.
pub async fn update(database: &Database, from: i64, rows: i64, each: i64) -> Result<Lsn> {
    let sql = "UPDATE public.events SET version = version + 1, changed_at = clock_timestamp(), amount = amount + 1 \
        WHERE id BETWEEN $1 AND $2";
    in_pieces(database, sql, from, rows, each).await
}

async fn in_pieces(database: &Database, sql: &str, from: i64, rows: i64, each: i64) -> Result<Lsn> {
    let client = database.connect().await?;
    let statement = client.prepare(sql).await?;
    let mut first = from;
    while first < from + rows {
        let last = (first + each).min(from + rows) - 1;
        let done = client.execute(&statement, &[&first, &last]).await.with_context(|| sql.to_owned())?;
        ensure!(i64::try_from(done)? == last - first + 1, "{done} rows instead of {first} to {last}");
        first = last + 1;
    }
    end_of_log(database).await
}

/// The end of what was written so far.
pub async fn end_of_log(database: &Database) -> Result<Lsn> {
    let end = database.wal_lsn().await?;
    let client = database.connect().await?;
    // The log must go on beyond the end, or on a quiet server nothing would ever say that it was passed.
    client.execute("SELECT pg_logical_emit_message(true, 'lockstep bench', '')", &[]).await?;
    Ok(end)
}

/// A single-row insert for the latency bench; the stamp is `changed_at`.
pub fn insert_one() -> String {
    format!("INSERT INTO public.events SELECT {VALUES} FROM (SELECT $1::bigint AS i) AS one")
}
