//! How fast a backlog leaves a slot.
//!
//! Every round has slots of its own, one of the product and one of pg_recvlogical, all made before the rows are written, so
//! each run decodes the same log from the same place. The product's clock runs from the moment it streams until its last
//! checkpoint that counts holds every row: produced, acknowledged, written to the ledger and read back. Status is renewed four
//! times a second, so up to 250 ms of its time are not its own. pg_recvlogical's clock runs over the whole process.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep::lsn::Lsn;

use crate::figure::Figure;
use crate::support::{Database, Pipeline, Services};
use crate::{LOCKSTEP, Options, PATIENCE, proc, rows};

/// Rows in a transaction of the backlog.
const EACH: i64 = 1_000;

const REFERENCE: &str = "pg_recvlogical";

#[derive(Default)]
struct Rounds {
    rate: Vec<f64>,
    cpu: Vec<f64>,
    walsender: Vec<f64>,
    peak: Vec<f64>,
}

pub async fn run(services: &Services, options: &Options) -> Result<()> {
    let source = services.catalog.create_database("bench").await?;
    rows::create_table(&source).await?;
    let mut pipelines = Vec::new();
    for round in 0..options.rounds {
        // A table that no sink takes would be copied to its topic besides.
        let pipeline =
            Pipeline::new(LOCKSTEP, services, &source).table(rows::TABLE).set("wire", "snapshot = \"no_data\"");
        make_slot(&pipeline).await?;
        let create = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";
        let slot = slot_of(&source, round);
        source.superuser().await?.execute(create, &[&slot]).await.context("making a slot for the reference")?;
        pipelines.push(pipeline);
    }
    eprintln!("source: writing {} rows", options.rows);
    let end = rows::insert(&source, 0, options.rows, EACH).await?;
    services.catalog.superuser().await?.batch_execute("CHECKPOINT").await?;

    let (mut ours, mut theirs) = (Rounds::default(), Rounds::default());
    for (round, pipeline) in pipelines.iter().enumerate() {
        reference(&source, &slot_of(&source, round), &pipeline.name, end, options.rows, &mut theirs).await?;
        product(&source, pipeline, end, options.rows, &mut ours).await?;
    }
    Figure::new("source", "drain", "rows/s", &ours.rate).reference(REFERENCE, &theirs.rate, &ours.rate).print();
    Figure::new("source", "cpu_s_per_m", "s", &ours.cpu).reference(REFERENCE, &theirs.cpu, &ours.cpu).print();
    Figure::new("source", "walsender_cpu_s_per_m", "s", &ours.walsender)
        .reference(REFERENCE, &theirs.walsender, &ours.walsender)
        .print();
    Figure::new("memory", "peak_mb", "MB", &ours.peak).case("source role, drain").print();
    Ok(())
}

/// Starts the reader once on the empty table: publication, slot, topics and ledger are there after it.
async fn make_slot(pipeline: &Pipeline) -> Result<()> {
    let mut process = pipeline.spawn(&["source"])?;
    process.wait_until("the reader streams", PATIENCE, |s| s.source_state() == "streaming").await?;
    let (status, _) = process.terminate(PATIENCE).await?;
    ensure!(status.success(), "lockstep ended with {status}");
    Ok(())
}

fn slot_of(source: &Database, round: usize) -> String {
    format!("reference_{round}_{}", source.name)
}

async fn product(source: &Database, pipeline: &Pipeline, end: Lsn, rows: i64, into: &mut Rounds) -> Result<()> {
    let spawned = Instant::now();
    let mut process = pipeline.spawn(&["source"])?;
    process.wait_until("the reader streams", PATIENCE, |s| s.source_state() == "streaming").await?;
    let (begun, cpu) = (Instant::now(), proc::cpu_seconds(process.pid())?);
    let walsender = walsender(source, &format!("lockstep_{}", pipeline.name)).await?;
    let all_in = |s: &crate::support::Status| {
        s.0["source"]["position"].as_str().and_then(|lsn| lsn.parse::<Lsn>().ok()).is_some_and(|lsn| lsn >= end)
    };
    process.wait_until("every row is in a checkpoint", PATIENCE, all_in).await?;
    let seconds = begun.elapsed().as_secs_f64();
    into.add(rows, seconds, proc::cpu_seconds(process.pid())? - cpu, proc::cpu_seconds(walsender)?);
    into.peak.push(megabytes(process.peak_rss_bytes()?));
    eprintln!(
        "source: lockstep {seconds:.2} s, {:.2} s from its start, {}",
        spawned.elapsed().as_secs_f64(),
        into.last()
    );
    process.terminate(PATIENCE).await?;
    Ok(())
}

async fn reference(
    source: &Database,
    slot: &str,
    publication: &str,
    end: Lsn,
    rows: i64,
    into: &mut Rounds,
) -> Result<()> {
    let begun = Instant::now();
    let mut child = Command::new("pg_recvlogical")
        .args(["--host=127.0.0.1", "--username=lockstep", "--start", "--no-loop", "--file=/dev/null"])
        .args(["--option=proto_version=1", &format!("--option=publication_names=lockstep_{publication}")])
        .args([format!("--port={}", source.server.port), format!("--dbname={}", source.name)])
        .args([format!("--slot={slot}"), format!("--endpos={end}")])
        .env("PGPASSWORD", "lockstep")
        // Ours asks for none either.
        .env("PGSSLMODE", "disable")
        .stdin(Stdio::null())
        .spawn()
        .context("pg_recvlogical is missing: apt-get install postgresql-client")?;
    let (mut ours, mut server, mut pid) = (0.0, 0.0, None);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        // Both are gone in the end: the last look counts.
        ours = proc::cpu_seconds(child.id()).unwrap_or(ours);
        pid = match pid {
            None => walsender(source, slot).await.ok(),
            pid => pid,
        };
        server = pid.and_then(|pid| proc::cpu_seconds(pid).ok()).unwrap_or(server);
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(status.success(), "pg_recvlogical ended with {status}");
    into.add(rows, seconds, ours, server);
    eprintln!("source: {REFERENCE} {seconds:.2} s, {}", into.last());
    Ok(())
}

/// The server process that serves a slot.
async fn walsender(source: &Database, slot: &str) -> Result<u32> {
    let sql = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
    let row = source.superuser().await?.query_one(sql, &[&slot]).await.with_context(|| format!("slot {slot}"))?;
    let pid: Option<i32> = row.get(0);
    Ok(u32::try_from(pid.context("nobody reads the slot")?)?)
}

pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

impl Rounds {
    fn add(&mut self, rows: i64, seconds: f64, cpu: f64, walsender: f64) {
        let millions = rows as f64 / 1e6;
        self.rate.push(rows as f64 / seconds);
        self.cpu.push(cpu / millions);
        self.walsender.push(walsender / millions);
    }

    fn last(&self) -> String {
        let last = |rounds: &[f64]| rounds.last().copied().unwrap_or_default();
        let (rate, cpu, walsender) = (last(&self.rate), last(&self.cpu), last(&self.walsender));
        format!("{rate:.0} rows/s, {cpu:.2} CPU s/M, walsender {walsender:.2} CPU s/M")
    }
}
