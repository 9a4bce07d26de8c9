//! How fast a backlog of changes to the same few rows is worked off: what counts of it is its net effect.
//!
//! As in [`super::sink`], the backlog stands in Kafka before, and each round's sink applies it alone.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use crate::figure::Figure;
use crate::sink::{catch_up, drain_into_kafka, pipeline};
use crate::support::{Database, Services};
use crate::{Options, rows};

/// Rows that all changes go to.
const KEYS: i64 = 10_000;
/// Changes in a transaction of the source.
const EACH: i64 = 1_000;

pub async fn run(services: &Services, options: &Options) -> Result<()> {
    let (source, pipeline, sinks) = pipeline(services, options).await?;
    eprintln!("hot: putting {} changes of {KEYS} rows into Kafka", options.rows);
    let mut process = pipeline.spawn(&["source"])?;
    let inserted = rows::insert(&source, 0, KEYS, EACH).await?;
    let changed = change(&source, options.rows).await?;
    drain_into_kafka(&mut process, changed).await?;
    let (mut rates, mut peak) = (Vec::new(), Vec::new());
    for (round, sink) in sinks.iter().enumerate() {
        let watched = catch_up(&pipeline, round, sink, [inserted, changed]).await?;
        let sum = "SELECT sum(version)::bigint - count(*) FROM public.events";
        let done: i64 = sink.connect().await?.query_one(sum, &[]).await?.get(0);
        ensure!(done == options.rows, "{done} of {} changes are in", options.rows);
        rates.push(options.rows as f64 / watched.seconds[1]);
        peak.push(crate::source::megabytes(watched.peak_bytes));
        eprintln!("hot: {:.0} changes/s", rates.last().copied().unwrap_or_default());
    }
    Figure::new("sink", "hot_keys", "changes/s", &rates).print();
    Figure::new("memory", "peak_mb", "MB", &peak).case("sink role, hot keys").print();
    Ok(())
}

/// Each transaction changes rows that stand anywhere among the keys; the log's end after it.
async fn change(source: &Database, changes: i64) -> Result<lockstep::lsn::Lsn> {
    let client = source.connect().await?;
    client.batch_execute("SELECT setseed(0.5)").await?;
    let mut sql = String::new();
    write!(
        sql,
        "UPDATE public.events SET version = version + 1, changed_at = clock_timestamp(), amount = amount + 1 \
         WHERE id IN (SELECT id FROM (SELECT DISTINCT floor(random() * {KEYS})::bigint AS id FROM generate_series(1, 2 * $1::bigint)) AS d \
         ORDER BY random() LIMIT $1)"
    )?;
    let statement = client.prepare(&sql).await?;
    let mut left = changes;
    while left > 0 {
        let each = left.min(EACH);
        let done = client.execute(&statement, &[&each]).await?;
        ensure!(i64::try_from(done)? == each, "{done} rows changed instead of {each}");
        left -= each;
    }
    rows::end_of_log(source).await
}
