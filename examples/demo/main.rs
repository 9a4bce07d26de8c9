//! The demo: a shop's database is copied to two services while it changes and while Lockstep is killed; in the end every row
//! is compared.
//!
//! scripts/demo runs it: that one builds, starts the servers and hands over their addresses (`LOCKSTEP_TEST_*`). What happens
//! then stands in [`play`], act by act. Nothing here knows how Lockstep works: it starts the real binary, talks SQL to the
//! three databases and looks. The load, the verifier and the process's handling are the tests' own (tests/support).
//!
//! The last line of stdout says what was proved, and only a run that proved it prints it; any other exits with 1.

mod acts;
mod show;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use acts::Stage;
use show::{Show, grouped, millis};
use support::Services;

/// What the shell reports for a program that SIGINT ended.
const EXIT_INTERRUPTED: u8 = 130;

/// Copies a shop's database to two services while it changes and Lockstep is killed, then compares every row.
#[derive(Parser, Debug)]
struct Options {
    /// The binary to run.
    #[arg(long)]
    lockstep: PathBuf,
    /// State directory of the servers; the configuration is written there.
    #[arg(long)]
    dir: PathBuf,
    /// Seconds of live load with kills.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(5..=3600))]
    seconds: u64,
    /// How often lockstep is killed (SIGKILL).
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1000))]
    kills: u32,
    /// Chooses the rows, the transactions and the moments of the kills; by default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// The servers stay up in the end (scripts/demo sees to it).
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let show = Show::new();
    // Whoever loses is dropped, and with it the process that it started.
    let outcome = tokio::select! {
        outcome = play(&options, &show) => outcome,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("demo: interrupted");
            return ExitCode::from(EXIT_INTERRUPTED);
        }
    };
    match outcome {
        Ok(proved) => {
            println!("{proved}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("demo: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Every act in its order; the line to end with.
async fn play(options: &Options, show: &Show) -> Result<String> {
    let services = Services::from_env();
    let seed = options.seed.unwrap_or_else(|| rand::random_range(1..1_000_000));
    show.step("a shop's database (catalog) is copied to those of two services (orders, inventory), through Kafka");
    show.more(&format!("the same choices again: --seed {seed}"));

    let stage = Stage::set(&services, options, seed, show).await?;
    let mut process = stage.first_load(show).await?;
    stage.how_to_look(show);

    let load = stage.start_load(options, show).await?;
    let latency = stage.measure_latency(show).await?;
    let ordeal = stage.kill_and_restart(&mut process, options, show).await?;
    let report = load.stop().await?;
    show.step(&format!("the load ends: {report}"));

    let lsn = stage.catch_up(&mut process, show).await?;
    let rows = stage.compare(show).await?;
    let peak_bytes = ordeal.peak_rss_bytes.max(process.peak_rss_bytes()?);
    stage.terminate(&mut process, show).await?;

    show.step("in short");
    show.more(&format!(
        "commit to visible   p50 {}, p99 {}",
        millis(latency.percentile(50)),
        millis(latency.percentile(99))
    ));
    show.more(&format!("lockstep's memory   {} MB at most", peak_bytes / 1_000_000));
    show.more(&format!(
        "changed meanwhile   {} rows in {} transactions",
        grouped(report.rows),
        grouped(report.committed())
    ));
    stage.how_to_look_later(options, show);
    Ok(format!(
        "demo: {} tables, {rows} rows, {} sinks equal at LSN {lsn} after {} kills",
        support::shop::TABLES.len(),
        acts::SINKS,
        ordeal.kills
    ))
}

/// How long the whole load runs at most, for its one truncate to fall into the part with kills.
fn load_time(options: &Options) -> Duration {
    acts::QUIET_TIME + Duration::from_secs(options.seconds)
}
