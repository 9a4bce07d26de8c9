//! How fast a table whose rows exist already is loaded, and what the stream feels of it.
//!
//! - **topic**: the source role alone copies the table to its topic. The clock runs between two lines of the reader's log:
//!   from "loading existing rows" until the request is answered, which is after the ledger has acknowledged the last rows.
//!   Two references: the product's own producer sends the same records (keys, values, headers) and nothing else; two `COPY` of
//!   one half each, thrown away.
//! - **database**: all roles, one sink with an empty table, until its progress says `streaming`. The reference is
//!   `psql COPY | psql COPY` into another empty database of the same server.
//! - **memory**: VmHWM of both, and of a load of which some rows are a megabyte wide.
//! - **latency**: rows of another table are written at a modest rate, while the load runs and after it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep::kafka::producer::{Message, Producer, Purpose, Sent};

use crate::figure::Figure;
use crate::latency::{self, percentile, sorted};
use crate::memory::Set;
use crate::source::megabytes;
use crate::support::scene::{Raw, read_raw};
use crate::support::{Database, Pipeline, Process, Services};
use crate::{LOCKSTEP, Options, PATIENCE, proc, rows};

/// Records that the producing loop holds and sends again and again.
const SAMPLE_RECORDS: usize = 100_000;
/// Transactions per second beside the load: enough to see every pause, too few to be a load themselves.
const RATE: u32 = 200;
/// Of a load that leaves the machine, and the sinks on it, something to spare.
const MODEST_ROWS_PER_SECOND: u32 = 5_000;
/// Of which three in ten have a megabyte.
const WIDE_ROWS: u32 = 1_000;
const POLL: Duration = Duration::from_millis(5);

const PRODUCING: &str = "producing the same records";
const COPYING: &str = "two COPY TO STDOUT";
const PIPING: &str = "psql COPY | psql COPY";
const ALONE: &str = "without a load";

/// As the producer takes it.
type Header<'a> = (&'a str, Option<&'a [u8]>);

#[derive(Default)]
struct Rounds {
    topic: Vec<f64>,
    producing: Vec<f64>,
    copying: Vec<f64>,
    database: Vec<f64>,
    piping: Vec<f64>,
    cpu: Vec<f64>,
    peak: Vec<f64>,
    peak_all: Vec<f64>,
}

pub async fn run(services: &Services, options: &Options) -> Result<()> {
    let source = services.catalog.create_database("bench").await?;
    rows::create_table(&source).await?;
    eprintln!("snapshot: writing {} rows", options.rows);
    rows::fill(&source, rows::TABLE, options.rows).await?;
    let mut rounds = Rounds::default();
    for _ in 0..options.rounds {
        copying(&source, options.rows, &mut rounds).await?;
        topic(services, &source, options.rows, &mut rounds).await?;
        piping(services, &source, options.rows, &mut rounds).await?;
        database(services, &source, options.rows, &mut rounds).await?;
    }
    let Rounds { topic, producing, copying, database, piping, cpu, peak, peak_all } = rounds;
    let to_topic = || Figure::new("snapshot", "topic", "rows/s", &topic);
    to_topic().reference(PRODUCING, &producing, &topic).print();
    to_topic().reference(COPYING, &copying, &topic).print();
    Figure::new("snapshot", "database", "rows/s", &database).reference(PIPING, &piping, &database).print();
    Figure::new("snapshot", "cpu_s_per_m", "s", &cpu).print();
    Figure::new("memory", "peak_mb", "MB", &peak).case("source role, first load").print();
    Figure::new("memory", "peak_mb", "MB", &peak_all).case("all roles, 1 sink, first load").print();
    wide(services).await?;
    meanwhile(services, options).await
}

/// The stream's latency while a table is loaded: as fast as it goes, and at a modest rate.
pub async fn meanwhile(services: &Services, options: &Options) -> Result<()> {
    beside_the_stream(services, options, None).await?;
    beside_the_stream(services, options, Some(MODEST_ROWS_PER_SECOND)).await
}

async fn topic(services: &Services, source: &Database, rows: i64, into: &mut Rounds) -> Result<()> {
    let pipeline = Pipeline::new(LOCKSTEP, services, source).table(rows::TABLE);
    let mut process = pipeline.spawn(&["source"])?;
    let seconds = loaded(&pipeline, &mut process).await?;
    into.topic.push(rows as f64 / seconds);
    into.cpu.push(proc::cpu_seconds(process.pid())? / (rows as f64 / 1e6));
    into.peak.push(megabytes(process.peak_rss_bytes()?));
    eprintln!("snapshot: to the topic {:.0} rows/s, {:.2} CPU s/M", last(&into.topic), last(&into.cpu));
    process.terminate(PATIENCE).await?;

    let name = format!("{}.{}", pipeline.name, rows::TABLE);
    let brokers = services.kafka.clone();
    let records = tokio::task::spawn_blocking(move || read_raw(&brokers, &name)).await?;
    ensure!(records.len() as i64 == rows, "{} records of {rows} rows", records.len());
    let seconds = produce(&pipeline, &records[..records.len().min(SAMPLE_RECORDS)], rows).await?;
    into.producing.push(rows as f64 / seconds);
    eprintln!("snapshot: {PRODUCING} {:.0} rows/s", last(&into.producing));
    Ok(())
}

/// Seconds that the product's own producer takes for `rows` records like these, into the same topic.
async fn produce(pipeline: &Pipeline, records: &[Raw], rows: i64) -> Result<f64> {
    let config = lockstep::config::load(&pipeline.dir, &|name| std::env::var(name).ok());
    let config = config.map_err(|findings| anyhow::anyhow!("{findings}"))?;
    let headers: Vec<Vec<Header<'_>>> = records
        .iter()
        .map(|record| record.headers.iter().map(|(name, value)| (name.as_str(), Some(value.as_slice()))).collect())
        .collect();
    let mut producer = Producer::open(&config.kafka, Purpose::Data)?;
    let route = producer.route(&format!("{}.{}", pipeline.name, rows::TABLE));
    let mut acks = Vec::new();
    let begun = Instant::now();
    for number in 0..usize::try_from(rows)? {
        let record = &records[number % records.len()];
        let message = Message {
            route,
            partition: Some(record.partition),
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers[number % records.len()],
            timestamp_ms: Some(0),
            token: 0,
        };
        while let Sent::Full = producer.send(&message)? {
            producer.acked().await;
            acks.clear();
            producer.take_acks(&mut acks)?;
        }
    }
    while producer.in_flight_bytes() > 0 {
        producer.acked().await;
        acks.clear();
        producer.take_acks(&mut acks)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    producer.close(PATIENCE);
    Ok(seconds)
}

/// Seconds between the reader's lines about its load.
async fn loaded(pipeline: &Pipeline, process: &mut Process) -> Result<f64> {
    let begun = Instant::now();
    while said(pipeline, "existing rows loaded")?.is_none() {
        ensure!(begun.elapsed() < PATIENCE, "the load does not end");
        process.ensure_running()?;
        tokio::time::sleep(POLL).await;
    }
    let (from, to) = (said(pipeline, "loading existing rows")?, said(pipeline, "existing rows loaded")?);
    Ok((to.context("no end")? - from.context("no beginning")?) as f64 / 1e6)
}

/// When the log has a line first, in microseconds since 1970.
fn said(pipeline: &Pipeline, what: &str) -> Result<Option<i64>> {
    let log = std::fs::read_to_string(pipeline.log_path())?;
    let Some(line) = log.lines().find(|line| line.contains(what)) else { return Ok(None) };
    let line: serde_json::Value = serde_json::from_str(line).context("a line of the log")?;
    let stamp = line["timestamp"].as_str().context("a line without a time")?;
    Ok(Some(stamp.parse::<jiff::Timestamp>()?.as_microsecond()))
}

async fn copying(source: &Database, rows: i64, into: &mut Rounds) -> Result<()> {
    let half = rows / 2;
    let copy = |condition: String| {
        psql(source, &format!("COPY (SELECT * FROM {} WHERE {condition}) TO STDOUT", rows::TABLE))
            .stdout(Stdio::null())
            .spawn()
    };
    let begun = Instant::now();
    let both = [copy(format!("id < {half}"))?, copy(format!("id >= {half}"))?];
    for mut child in both {
        ensure!(tokio::task::spawn_blocking(move || child.wait()).await??.success(), "psql failed");
    }
    into.copying.push(rows as f64 / begun.elapsed().as_secs_f64());
    eprintln!("snapshot: {COPYING} {:.0} rows/s", last(&into.copying));
    Ok(())
}

async fn piping(services: &Services, source: &Database, rows: i64, into: &mut Rounds) -> Result<()> {
    let sink = services.orders.create_database("bench").await?;
    rows::create_table(&sink).await?;
    let begun = Instant::now();
    let mut from = psql(source, &format!("COPY {} TO STDOUT", rows::TABLE)).stdout(Stdio::piped()).spawn()?;
    let out = from.stdout.take().context("psql has a standard output")?;
    let mut to = psql(&sink, &format!("COPY {} FROM STDIN", rows::TABLE)).stdin(out).stdout(Stdio::null()).spawn()?;
    let ended = tokio::task::spawn_blocking(move || Ok::<_, std::io::Error>([from.wait()?, to.wait()?])).await??;
    ensure!(ended.iter().all(std::process::ExitStatus::success), "psql failed");
    into.piping.push(rows as f64 / begun.elapsed().as_secs_f64());
    eprintln!("snapshot: {PIPING} {:.0} rows/s", last(&into.piping));
    Ok(())
}

fn psql(database: &Database, sql: &str) -> Command {
    let mut command = Command::new("psql");
    command
        .args(["--host=127.0.0.1", "--username=lockstep", "--no-psqlrc", "--command", sql])
        .args([format!("--port={}", database.server.port), format!("--dbname={}", database.name)])
        .env("PGPASSWORD", "lockstep")
        .env("PGSSLMODE", "disable")
        .stdin(Stdio::null());
    command
}

async fn database(services: &Services, source: &Database, rows: i64, into: &mut Rounds) -> Result<()> {
    let sink = services.orders.create_database("bench").await?;
    rows::create_table(&sink).await?;
    let pipeline = Pipeline::new(LOCKSTEP, services, source).sink("orders", &sink).table(rows::TABLE);
    let mut process = pipeline.spawn(&[])?;
    let client = sink.connect().await?;
    loaded(&pipeline, &mut process).await?;
    while !matches!(pipeline.progress(&client, "orders").await?, Some((_, phase)) if phase == "streaming") {
        process.ensure_running()?;
        tokio::time::sleep(POLL).await;
    }
    let from = said(&pipeline, "loading existing rows")?.context("no beginning")?;
    let seconds = (jiff::Timestamp::now().as_microsecond() - from) as f64 / 1e6;
    into.database.push(rows as f64 / seconds);
    into.peak_all.push(megabytes(process.peak_rss_bytes()?));
    let there: i64 = client.query_one("SELECT count(*) FROM public.events", &[]).await?.get(0);
    ensure!(there == rows, "{there} of {rows} rows are there");
    eprintln!("snapshot: into a database {:.0} rows/s", last(&into.database));
    process.terminate(PATIENCE).await?;
    Ok(())
}

/// The most memory that a load of wide rows takes, between first rows that are not.
async fn wide(services: &Services) -> Result<()> {
    const DDL: &str = "CREATE TABLE public.wide (id bigint PRIMARY KEY, data text)";
    let source = services.catalog.create_database("bench").await?;
    let sink = services.orders.create_database("bench").await?;
    source.execute(DDL).await?;
    sink.execute(DDL).await?;
    let rows = format!(
        "INSERT INTO public.wide SELECT i, repeat(md5(i::text), CASE WHEN i % 1000 < 700 THEN 1 ELSE 31250 END)
         FROM generate_series(1, {WIDE_ROWS}) AS i"
    );
    source.execute(&rows).await?;
    let pipeline = Pipeline::new(LOCKSTEP, services, &source).sink("orders", &sink).table("public.wide");
    let mut process = pipeline.spawn(&[])?;
    loaded(&pipeline, &mut process).await?;
    process.wait_until("everything streams", PATIENCE, crate::support::Status::all_streaming).await?;
    let peak = megabytes(process.peak_rss_bytes()?);
    eprintln!("snapshot: peak with rows of 1 MB {peak:.0} MB");
    Figure::new("memory", "peak_mb", "MB", &[peak]).case("all roles, 1 sink, first load of 1 MB rows").print();
    process.terminate(PATIENCE).await?;
    Ok(())
}

/// Latency of one table's rows while another is loaded, and after.
async fn beside_the_stream(services: &Services, options: &Options, limit: Option<u32>) -> Result<()> {
    let mut set = Set::make(services).await?;
    for database in [&set.source, &set.sinks[0], &set.sinks[1]] {
        rows::create(database, rows::HISTORY).await?;
    }
    // A load that is limited need only last as long as it is measured.
    let seconds = i64::try_from(options.seconds)? + 5;
    let rows = limit.map_or(options.rows, |limit| options.rows.min(i64::from(limit) * seconds));
    rows::fill(&set.source, rows::HISTORY, rows).await?;
    set.pipeline = set.pipeline.table(rows::HISTORY);
    if let Some(limit) = limit {
        set.pipeline = set.pipeline.set("source.snapshot", &format!("rows_per_second = {limit}"));
    }
    let mut process = set.pipeline.spawn(&[])?;
    let begun = Instant::now();
    while said(&set.pipeline, "loading existing rows")?.is_none() {
        ensure!(begun.elapsed() < PATIENCE, "no load begins");
        process.ensure_running()?;
        tokio::time::sleep(POLL).await;
    }
    let (next, mut during) = latency::round(&set, 0, RATE, options.seconds).await?;
    let seconds = loaded(&set.pipeline, &mut process).await?;
    let until = said(&set.pipeline, "existing rows loaded")?.context("no end")?;
    during.retain(|(stamp, _)| *stamp < until);
    process.wait_until("everything streams", PATIENCE, crate::support::Status::all_streaming).await?;
    let (_, alone) = latency::round(&set, next, RATE, options.seconds).await?;
    ensure!(!during.is_empty(), "the load took {seconds:.1} s, too short to measure beside it: more --rows");
    eprintln!("snapshot: {} samples within a load of {seconds:.1} s", during.len());
    for (share, name) in [(50, "latency_p50_ms"), (90, "latency_p90_ms"), (99, "latency_p99_ms")] {
        let (during, alone) = ([percentile(&sorted(&during), share)], [percentile(&sorted(&alone), share)]);
        eprintln!("snapshot: {name} {:.1}, {ALONE} {:.1}", during[0], alone[0]);
        let case = limit.map_or_else(|| "as fast as it goes".to_owned(), |limit| format!("{limit} rows/s"));
        Figure::new("snapshot", name, "ms", &during).reference(ALONE, &alone, &during).case(&case).print();
    }
    set.stop(process).await
}

fn last(rounds: &[f64]) -> f64 {
    rounds.last().copied().unwrap_or_default()
}
