//! First loads that are killed: two large tables, written to meanwhile, and SIGKILL to reader and sink in the middle of it.
//!
//! In the end both sides are equal, and the reader has not read much more than there is: whoever comes after a kill goes on
//! with what the ledger does not hold. What was read is the product's own count, taken from each process right before its kill.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use super::support::{Database, Pipeline, Process, Services, TablePair};
use super::verdict::{Report, Verdict};

const TABLES: [&str; 2] = ["public.big_a", "public.big_b"];
const SINK: &str = "orders";
const SINK_ROLE: &str = "sink:orders";
const POLL: Duration = Duration::from_millis(50);
/// A million rows take some seconds where there is nothing else to do.
const LOAD_TIME: Duration = Duration::from_secs(3_600);
/// Small enough that what a kill throws away is little beside the whole.
const CHUNKS_MIN: u64 = 100;
/// The default, and the most.
const CHUNK_ROWS: u64 = 10_000;
/// Rows read for each that is there.
const READ_MAX: f64 = 1.1;
const WRITE_PAUSE: Duration = Duration::from_millis(5);

/// A load to be.
#[derive(Clone, Debug)]
pub struct Options {
    pub lockstep: std::path::PathBuf,
    /// Of each table.
    pub rows: u64,
    pub kills: u64,
    pub seed: u64,
}

pub async fn run(options: &Options) -> Result<Report> {
    let begun = Instant::now();
    let (verdict, services) = (Verdict::default(), Services::from_env());
    let source = services.catalog.create_database("torture_load").await?;
    let sink = services.orders.create_database("torture_load").await?;
    for table in TABLES {
        let make = format!("CREATE TABLE {table} (id bigint PRIMARY KEY, n int NOT NULL, note text)");
        sink.execute(&make).await?;
        let rows = options.rows;
        let fill = format!("INSERT INTO {table} SELECT i, 0, 'row ' || i FROM generate_series(1, {rows}) i");
        source.execute(&format!("{make}; {fill}")).await?;
    }
    let chunk_rows = (options.rows / CHUNKS_MIN).clamp(100, CHUNK_ROWS);
    let pipeline = TABLES.iter().fold(
        Pipeline::new(&options.lockstep, &services, &source)
            .several()
            .sink(SINK, &sink)
            .set("source", "sender_timeout = \"2s\"")
            .set("source.snapshot", &format!("chunk_rows = {chunk_rows}")),
        |pipeline, table| pipeline.table(table),
    );
    let writes = Writes::start(&source, options);
    let outcome = loaded(options, &pipeline, (&source, &sink), &verdict, writes).await;
    let transactions = outcome.unwrap_or_else(|error| {
        verdict.violation(format!("{error:#}"));
        0
    });
    Ok(Report { verdict, seed: options.seed, time: begun.elapsed(), transactions })
}

/// Kills, waits for the end, and judges it; the number of transactions that were written meanwhile.
async fn loaded(
    options: &Options,
    pipeline: &Pipeline,
    (source, sink): (&Database, &Database),
    verdict: &Verdict,
    writes: Writes,
) -> Result<u64> {
    let mut random = StdRng::seed_from_u64(options.seed);
    let mut reader = pipeline.spawn(&["source"])?;
    let mut applier = pipeline.spawn(&[SINK_ROLE])?;
    let (total, mut before) = (options.rows * TABLES.len() as u64, 0);
    for kill in 0..options.kills {
        // Somewhere in its share of what is to be read.
        let at = total * kill / options.kills + random.random_range(0..(total / options.kills).max(1));
        let read = wait_read(&mut reader, before, at).await?;
        if random.random() {
            before = read.max(before + rows_read(&reader).await?);
            reader.kill9()?;
            reader = pipeline.spawn(&["source"])?;
            verdict.fault("source_kills", 1);
        } else {
            applier.kill9()?;
            applier = pipeline.spawn(&[SINK_ROLE])?;
            verdict.fault("sink_kills", 1);
        }
        eprintln!("torture: killed after {read} rows were read of {total}");
    }
    ensure!(!is_complete(sink).await?, "the load was over before the last kill: more rows are needed");
    pipeline.wait_caught_up(&mut applier, source, &[(SINK, sink)], LOAD_TIME).await?;
    let transactions = writes.stop().await?;
    let pairs = TABLES.map(|table| TablePair::same(table, &["id"]));
    pipeline.wait_equal(&mut applier, source, &[(SINK, sink)], &pairs, LOAD_TIME).await?;
    verdict.look("equal");
    let (read, rows) = (before + rows_read(&reader).await?, rows_there(source).await?);
    verdict.peak("rows", rows);
    verdict.peak("rows_read", read);
    let ratio = read as f64 / rows as f64;
    eprintln!("torture: {read} rows were read of {rows}: {ratio:.3}");
    ensure!(ratio <= READ_MAX, "{read} rows were read of {rows}: {ratio:.3} for each, not {READ_MAX}");
    ensure!(read >= options.rows * TABLES.len() as u64 * 9 / 10, "{read} rows were read, and {rows} are there");
    Ok(transactions)
}

/// Waits until so many rows were read by all readers together; how many there were.
async fn wait_read(reader: &mut Process, before: u64, wanted: u64) -> Result<u64> {
    let begun = Instant::now();
    loop {
        // One that starts does not answer yet.
        let read = before + rows_read(reader).await.unwrap_or_default();
        if read > wanted {
            return Ok(read);
        }
        reader.ensure_running()?;
        ensure!(begun.elapsed() < LOAD_TIME, "{read} rows were read, not {wanted}, within {LOAD_TIME:?}");
        sleep(POLL).await;
    }
}

async fn rows_read(reader: &Process) -> Result<u64> {
    let text = reader.get("/metrics").await?;
    let counts = text.lines().filter(|line| line.starts_with("lockstep_source_snapshot_rows_total{"));
    let count = |line: &str| line.rsplit_once(' ').and_then(|(_, count)| count.parse::<u64>().ok()).context("a count");
    counts.map(count).sum()
}

async fn is_complete(sink: &Database) -> Result<bool> {
    let sql = "SELECT coalesce(bool_and(phase = 'streaming'), false) FROM lockstep.progress";
    Ok(sink.connect().await?.query_one(sql, &[]).await?.get(0))
}

async fn rows_there(source: &Database) -> Result<u64> {
    let [a, b] = TABLES;
    let sql = format!("SELECT (SELECT count(*) FROM {a}) + (SELECT count(*) FROM {b})");
    let rows: i64 = source.connect().await?.query_one(&sql, &[]).await?.get(0);
    Ok(rows.unsigned_abs())
}

/// One writer to both tables: rows change, come and go, in what was read and in what was not.
struct Writes {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Writes {
    fn start(source: &Database, options: &Options) -> Writes {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count, url) = (stop.clone(), committed.clone(), source.url());
        let (rows, mut random) = (options.rows, StdRng::seed_from_u64(options.seed ^ 1));
        let task = tokio::spawn(async move {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            while !stopped.load(Ordering::Relaxed) {
                let (a, b, c) =
                    (random.random_range(1..=rows), random.random_range(1..=rows), random.random_range(1..=rows));
                let sql = format!(
                    "BEGIN; UPDATE big_a SET n = n + 1 WHERE id = {a}; UPDATE big_b SET n = n + 1 WHERE id = {a};
                     DELETE FROM big_a WHERE id = {b}; UPDATE big_b SET id = -{c} WHERE id = {c};
                     INSERT INTO big_a VALUES ({rows} + {c}, 0, 'new') ON CONFLICT DO NOTHING; COMMIT"
                );
                client.batch_execute(&sql).await?;
                count.fetch_add(1, Ordering::Relaxed);
                sleep(WRITE_PAUSE).await;
            }
            Ok(())
        });
        Writes { stop, committed, task }
    }

    async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.committed.load(Ordering::Relaxed))
    }
}
