//! The figures of the whole product, each beside a reference measured in the same run on the same servers.
//!
//! scripts/bench runs it: that one builds, starts the servers and hands over their addresses (`LOCKSTEP_TEST_*`). The real
//! binary is run as anybody would run it; what is measured is read from outside (its status page, /proc, the databases).
//!
//! | bench | figures | reference |
//! |---|---|---|
//! | [`source`] | rows per second from a slot into valid checkpoints, CPU seconds per million rows | `pg_recvlogical -f /dev/null` |
//! | [`sink`] | rows per second from the topic into a database | COPY to a temporary table and an upsert, 10 000 rows a commit |
//! | [`hot`] | changes per second of a backlog that goes to the same few rows again and again | |
//! | [`batch`] | rows per second of each way to write a batch, by its size; only when named | |
//! | [`latency`] | from just before COMMIT to visible in a sink, at 1 000 transactions a second | |
//! | [`snapshot`] | rows per second of a first load into the topic and into a database, latency of the stream meanwhile | a loop that produces the same records; two `COPY TO STDOUT`; `COPY \| COPY`; the stream alone |
//! | [`snapshot::meanwhile`] | that latency by itself; only when named | the stream alone |
//! | [`memory`] | peak resident set with all roles and two sinks | |
//!
//! Rounds of product and reference alternate and medians are taken: machines are noisy, and a ratio within one run means more
//! than a rate. stdout gets one JSON line per figure, stderr the progress. Nothing here judges a figure.

mod batch;
mod figure;
mod hot;
mod latency;
mod memory;
mod proc;
mod rows;
mod sink;
mod snapshot;
mod source;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use support::Services;

/// The binary under test; cargo builds it before a bench.
const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
/// Longer than any step takes on a machine that is worth measuring.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Bench {
    Source,
    Sink,
    Batch,
    Latency,
    Snapshot,
    Meanwhile,
    Memory,
}

/// Measures the release build on real servers; see scripts/bench.
#[derive(Parser, Debug)]
struct Options {
    /// All, if none is named.
    benches: Vec<Bench>,
    /// Rows of the source's backlog and of the one large transaction; the sink's backlog has half as many, twice.
    #[arg(long, default_value_t = 1_000_000)]
    rows: i64,
    /// Rounds of product and reference.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of one round of the latency bench.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Transactions per second of the latency bench.
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// Threads that take the cores from everything that is measured, as a busy machine would.
    #[arg(long, default_value_t = 0)]
    busy: usize,
    /// cargo bench says this to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<()> {
    let services = Services::from_env();
    for _ in 0..options.busy {
        std::thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
    }
    let wanted = |bench| options.benches.is_empty() || options.benches.contains(&bench);
    if wanted(Bench::Source) {
        source::run(&services, options).await?;
    }
    if wanted(Bench::Sink) {
        sink::run(&services, options).await?;
        hot::run(&services, options).await?;
    }
    // A question of tuning, not a figure of the product: only where it is asked for.
    if options.benches.contains(&Bench::Batch) {
        batch::run(&services, options).await?;
    }
    if wanted(Bench::Latency) {
        latency::run(&services, options).await?;
    }
    if wanted(Bench::Snapshot) {
        snapshot::run(&services, options).await?;
    } else if options.benches.contains(&Bench::Meanwhile) {
        snapshot::meanwhile(&services, options).await?;
    }
    if wanted(Bench::Memory) {
        memory::run(&services, options).await?;
    }
    Ok(())
}
