//! How fast a backlog that stands in Kafka gets into a database: inserts of new rows, then an update of each.
//!
//! The source role drains both into the topic first and ends. Then every round has a sink of its own, which applies the whole
//! backlog alone, and a reference: the same rows in their final text, handed to COPY into a temporary table and from there to
//! INSERT … ON CONFLICT DO UPDATE, 10 000 a commit, over one connection to the same server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt};
use lockstep::lsn::Lsn;
use tokio::time::sleep;

use crate::figure::Figure;
use crate::support::{Database, Pipeline, Process, Services};
use crate::{LOCKSTEP, Options, PATIENCE, proc, rows};

const EACH: i64 = 1_000;
/// Rows that the reference commits at once.
const REFERENCE_EACH: i64 = 10_000;
const REFERENCE: &str = "COPY and INSERT ON CONFLICT";
const POLL: Duration = Duration::from_millis(5);

/// What was measured, phase by phase.
#[derive(Default)]
struct Rounds {
    inserts: Vec<f64>,
    updates: Vec<f64>,
    both: Vec<f64>,
    cpu: Vec<f64>,
    peak: Vec<f64>,
}

/// The rows of one phase as COPY text, one commit after the other.
type Pieces = Vec<Bytes>;

pub async fn run(services: &Services, options: &Options) -> Result<()> {
    let rows = options.rows / 2;
    let (source, pipeline, sinks) = pipeline(services, options).await?;
    eprintln!("sink: putting {rows} inserts and {rows} updates into Kafka");
    let mut process = pipeline.spawn(&["source"])?;
    let inserted = rows::insert(&source, 0, rows, EACH).await?;
    let inserts = pieces(&source, rows).await?;
    let updated = rows::update(&source, 0, rows, EACH).await?;
    let updates = pieces(&source, rows).await?;
    drain_into_kafka(&mut process, updated).await?;

    let (mut ours, mut theirs) = (Rounds::default(), Rounds::default());
    for (round, sink) in sinks.iter().enumerate() {
        reference(services, [&inserts, &updates], rows, &mut theirs).await?;
        let watched = catch_up(&pipeline, round, sink, [inserted, updated]).await?;
        let updated = "SELECT count(*) FROM public.events WHERE version = 2";
        let there: i64 = sink.connect().await?.query_one(updated, &[]).await?.get(0);
        ensure!(there == rows, "{there} of {rows} rows are there and updated");
        ours.add(rows, watched.seconds);
        ours.cpu.push(watched.cpu_seconds / (2.0 * rows as f64 / 1e6));
        ours.peak.push(crate::source::megabytes(watched.peak_bytes));
        eprintln!("sink: lockstep {}, {:.2} CPU s/M", ours.last(), ours.cpu.last().copied().unwrap_or_default());
    }
    for (case, ours, theirs) in [
        ("inserts and updates", &ours.both, &theirs.both),
        ("inserts", &ours.inserts, &theirs.inserts),
        ("updates", &ours.updates, &theirs.updates),
    ] {
        Figure::new("sink", "upsert", "rows/s", ours).reference(REFERENCE, theirs, ours).case(case).print();
    }
    Figure::new("sink", "cpu_s_per_m", "s", &ours.cpu).print();
    Figure::new("memory", "peak_mb", "MB", &ours.peak).case("sink role, backlog").print();
    Ok(())
}

/// A source with the table, and for each round a sink that has joined on the empty table.
pub async fn pipeline(services: &Services, options: &Options) -> Result<(Database, Pipeline, Vec<Database>)> {
    let source = services.catalog.create_database("bench").await?;
    rows::create_table(&source).await?;
    let mut pipeline = Pipeline::new(LOCKSTEP, services, &source);
    let mut sinks = Vec::new();
    for round in 0..options.rounds {
        let database = services.orders.create_database("bench").await?;
        rows::create_table(&database).await?;
        pipeline = pipeline.sink(&format!("s{round}"), &database);
        sinks.push(database);
    }
    let pipeline = pipeline.table(rows::TABLE);
    join(&pipeline).await?;
    Ok((source, pipeline, sinks))
}

/// Waits until the source role has everything up to `end` in checkpoints, and ends it.
pub async fn drain_into_kafka(process: &mut Process, end: Lsn) -> Result<()> {
    let all_in = |s: &crate::support::Status| {
        s.0["source"]["position"].as_str().and_then(|lsn| lsn.parse::<Lsn>().ok()).is_some_and(|lsn| lsn >= end)
    };
    process.wait_until("every row is in a checkpoint", PATIENCE, all_in).await?;
    process.terminate(PATIENCE).await?;
    Ok(())
}

/// Lets every sink join on the empty table, so that what is applied later is the stream and not a first load.
async fn join(pipeline: &Pipeline) -> Result<()> {
    let mut process = pipeline.spawn(&[])?;
    process.wait_until("the sinks have joined", PATIENCE, crate::support::Status::all_streaming).await?;
    process.terminate(PATIENCE).await?;
    Ok(())
}

async fn pieces(source: &Database, rows: i64) -> Result<Pieces> {
    let client = source.connect().await?;
    let mut pieces = Vec::new();
    for from in (0..rows).step_by(usize::try_from(REFERENCE_EACH)?) {
        let to = (from + REFERENCE_EACH).min(rows);
        let sql = format!("COPY (SELECT * FROM public.events WHERE id >= {from} AND id < {to}) TO STDOUT");
        let chunks: Vec<Bytes> = client.copy_out(&sql).await?.try_collect().await?;
        pieces.push(Bytes::from(chunks.concat()));
    }
    Ok(pieces)
}

async fn reference(services: &Services, phases: [&Pieces; 2], rows: i64, into: &mut Rounds) -> Result<()> {
    let database = services.orders.create_database("bench_reference").await?;
    rows::create_table(&database).await?;
    let mut client = database.connect().await?;
    client.batch_execute("CREATE TEMPORARY TABLE staged (LIKE public.events) ON COMMIT DELETE ROWS").await?;
    let columns = "kind amount version made_at changed_at price active note attributes";
    let set: Vec<String> = columns.split(' ').map(|c| format!("{c} = excluded.{c}")).collect();
    let upsert =
        format!("INSERT INTO public.events SELECT * FROM staged ON CONFLICT (id) DO UPDATE SET {}", set.join(", "));
    let upsert = client.prepare(&upsert).await?;
    let mut seconds = [0.0; 2];
    for (phase, pieces) in phases.into_iter().enumerate() {
        let begun = Instant::now();
        for piece in pieces {
            let transaction = client.transaction().await?;
            let copy = transaction.copy_in("COPY staged FROM STDIN").await?;
            let mut copy = std::pin::pin!(copy);
            copy.send(piece.clone()).await?;
            copy.finish().await?;
            transaction.execute(&upsert, &[]).await?;
            transaction.commit().await?;
        }
        seconds[phase] = begun.elapsed().as_secs_f64();
    }
    into.add(rows, seconds);
    eprintln!("sink: reference {}", into.last());
    Ok(())
}

/// What was seen of a sink role that applied two phases of a backlog.
pub struct Watched {
    pub seconds: [f64; 2],
    pub cpu_seconds: f64,
    pub peak_bytes: u64,
}

/// Runs the round's sink role until everything up to both ends is in.
pub async fn catch_up(pipeline: &Pipeline, round: usize, sink: &Database, ends: [Lsn; 2]) -> Result<Watched> {
    let name = format!("s{round}");
    let client = sink.connect().await?;
    let mut process = pipeline.spawn(&[&format!("sink:{name}")])?;
    let (before, _) = pipeline.progress(&client, &name).await?.context("the sink has no progress row")?;
    // Its start (connecting, reading the ledger up to its place) is over when it first moves.
    let mut begun = (Instant::now(), 0.0);
    let mut seconds = [0.0; 2];
    let mut phase = 0;
    while phase < 2 {
        let (closed, _) = pipeline.progress(&client, &name).await?.context("the sink's progress row is gone")?;
        if closed == before && count(&client).await? == 0 {
            let streaming = process.status().await.is_ok_and(|s| s.sink_state(&name) == "streaming");
            if !streaming {
                begun = (Instant::now(), proc::cpu_seconds(process.pid())?);
            }
        }
        if closed >= ends[phase] {
            seconds[phase] = begun.0.elapsed().as_secs_f64() - seconds.iter().take(phase).sum::<f64>();
            phase += 1;
        }
        ensure_in_time(&mut process, begun.0)?;
        sleep(POLL).await;
    }
    let cpu_seconds = proc::cpu_seconds(process.pid())? - begun.1;
    let peak_bytes = process.peak_rss_bytes()?;
    process.terminate(PATIENCE).await?;
    Ok(Watched { seconds, cpu_seconds, peak_bytes })
}

/// 0 or 1: whether there is any row.
async fn count(client: &tokio_postgres::Client) -> Result<i64> {
    Ok(client.query_one("SELECT count(*) FROM (SELECT 1 FROM public.events LIMIT 1) AS one", &[]).await?.get(0))
}

fn ensure_in_time(process: &mut Process, begun: Instant) -> Result<()> {
    process.ensure_running()?;
    ensure!(begun.elapsed() < PATIENCE, "the sink has not applied the backlog within {PATIENCE:?}");
    Ok(())
}

impl Rounds {
    fn add(&mut self, rows: i64, [inserts, updates]: [f64; 2]) {
        self.inserts.push(rows as f64 / inserts);
        self.updates.push(rows as f64 / updates);
        self.both.push(2.0 * rows as f64 / (inserts + updates));
    }

    fn last(&self) -> String {
        let last = |rounds: &[f64]| rounds.last().copied().unwrap_or_default();
        let (both, inserts, updates) = (last(&self.both), last(&self.inserts), last(&self.updates));
        format!("{both:.0} rows/s (inserts {inserts:.0}, updates {updates:.0})")
    }
}
