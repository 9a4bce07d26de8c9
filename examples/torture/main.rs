//! The torture runner: `scripts/torture` builds, starts the servers and hands their addresses over (`LOCKSTEP_TEST_*`).
//!
//! stderr says what happens, stdout gets the report as one line of JSON and a summary line. Exit code 0: everything that was
//! promised was kept, and every kind of fault took effect.

#[path = "../../tests/support/mod.rs"]
mod support;
#[path = "../../tests/torture/mod.rs"]
mod torture;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use torture::faults::Kind;

/// What the shell reports for a program that SIGINT ended.
const EXIT_INTERRUPTED: u8 = 130;

/// Tortures Lockstep with faults on real servers, and judges what the sinks hold.
#[derive(Parser, Debug)]
struct Args {
    /// The binary to run.
    #[arg(long)]
    lockstep: PathBuf,
    /// At least this long, and at least once through all faults.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Chooses transactions, faults and pauses; by default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Only these kinds of faults, by the names in the report, with commas between them.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Two tables are loaded and killed in the middle of it, instead.
    #[arg(long)]
    load: bool,
    /// Of each of the two.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    #[arg(long, default_value_t = 10)]
    kills: u64,
    /// Seconds in which sinks must be level again after a fault. More than a minute is for machines that do other things too.
    #[arg(long, default_value_t = 60)]
    level: u64,
    /// Up to so many faults before sinks must be level again.
    #[arg(long, default_value_t = 2)]
    faults: u32,
}

#[tokio::main]
async fn main() -> ExitCode {
    // Whoever loses is dropped, and with it the processes that it started.
    let outcome = tokio::select! {
        outcome = played(Args::parse()) => outcome,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("torture: interrupted");
            return ExitCode::from(EXIT_INTERRUPTED);
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("torture: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn played(args: Args) -> Result<bool> {
    let seed = args.seed.unwrap_or_else(|| rand::random_range(1..1_000_000));
    let time = Duration::from_secs(args.minutes * 60);
    eprintln!("torture: the same choices again: --seed {seed}");
    let named = |name: &String| {
        let kind = Kind::ALL.iter().find(|kind| kind.name() == name);
        kind.copied().with_context(|| format!("no kind of fault is called {name}"))
    };
    let kinds = match args.only.is_empty() {
        true => Kind::ALL.to_vec(),
        false => args.only.iter().map(named).collect::<Result<_>>()?,
    };
    let (lockstep, level_time) = (args.lockstep, Duration::from_secs(args.level));
    let report = match args.load {
        true => {
            let (rows, kills) = (args.rows, args.kills);
            torture::load::run(&torture::load::Options { lockstep, rows, kills, seed }).await?
        }
        false => {
            torture::run(&torture::Options { lockstep, time, seed, kinds, faults_max: args.faults, level_time }).await?
        }
    };
    println!("{}", report.json());
    println!("{report}");
    Ok(report.is_clean())
}
