//! What is done in the demo, one function per act.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lockstep::lsn::Lsn;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use crate::show::{Show, grouped, millis, per_second, seconds};
use crate::support::latency::{self, Latency};
use crate::support::shop::load::{Load, Running};
use crate::support::shop::{self, Size};
use crate::support::{Database, Pipeline, Process, Services, compare};
use crate::{Options, load_time};

/// The pipeline: slot lockstep_demo, topics demo.*. One name, so that commands printed in one run still hold in the next.
const NAME: &str = "demo";
pub const SINKS: usize = 2;

/// The load that a shop on two cores shares with four servers, this program and Lockstep.
const WRITERS: u32 = 4;
const TRANSACTIONS_PER_SECOND: u32 = 300;

/// The part without kills, in which latency is measured.
pub const QUIET_TIME: Duration = Duration::from_secs(10);
const PROBES_PER_SECOND: u32 = 100;
/// After the first load, before latency is measured: connections are made, caches are filled.
const WARM_UP: Duration = Duration::from_secs(2);

/// No kill in the first and last moments of the load: those would hit nothing.
const KILL_MARGIN: Duration = Duration::from_secs(1);
const STATUS_POLL: Duration = Duration::from_millis(20);
/// A killed process's slot and leases must be free again by then.
const FIRST_LOAD_TIMEOUT: Duration = Duration::from_secs(120);
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(90);
/// Orchestrators kill after 10 s (Docker's default).
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(10);

/// The three databases, filled, and the pipeline over them.
pub struct Stage {
    services: Services,
    catalog: Database,
    orders: Database,
    inventory: Database,
    pipeline: Pipeline,
    dir: String,
    seed: u64,
}

/// What was done to the process.
pub struct Ordeal {
    pub kills: u32,
    /// The largest of all processes.
    pub peak_rss_bytes: u64,
}

impl Stage {
    /// Makes everything anew: databases, slot, topics, rows, configuration.
    pub async fn set(services: &Services, options: &Options, seed: u64, show: &Show) -> Result<Stage> {
        let (catalog, orders, inventory) = tokio::try_join!(
            services.catalog.recreate_database("catalog"),
            services.orders.recreate_database("orders"),
            services.inventory.recreate_database("inventory"),
        )?;
        let config = options.dir.join("config");
        let pipeline = Pipeline::at(NAME, config.clone(), &options.lockstep, services, &catalog)
            .sink("orders", &orders)
            .sink("inventory", &inventory);
        let pipeline = shop::TABLES.iter().fold(pipeline, |pipeline, (table, _)| pipeline.table(table));
        pipeline.delete_topics().await?;
        show.step("fresh databases; the slot and the topics of earlier runs are gone");

        shop::create_source(&catalog).await?;
        let rows = shop::seed(&catalog, Size::DEMO, seed).await?;
        tokio::try_join!(shop::create_sink(&orders), shop::create_sink(&inventory))?;
        show.step(&format!(
            "catalog holds {} rows in {} tables; the sinks' tables are empty",
            grouped(rows),
            shop::TABLES.len()
        ));

        remove_if_there(&pipeline.log_path())?;
        pipeline.write()?;
        let dir = shown_path(&options.dir);
        show.step(&format!(
            "configuration: {dir}/config/lockstep.toml, and a file per table in {dir}/config/connectors/"
        ));
        Ok(Stage { services: services.clone(), catalog, orders, inventory, pipeline, dir, seed })
    }

    fn sinks(&self) -> [(&'static str, &Database); SINKS] {
        [("orders", &self.orders), ("inventory", &self.inventory)]
    }

    /// Starts Lockstep and waits until both sinks hold what was there.
    pub async fn first_load(&self, show: &Show) -> Result<Process> {
        let started = Instant::now();
        let mut process = self.pipeline.spawn(&[])?;
        show.step(&format!("lockstep run --config {}/config: pid {}", self.dir, process.pid()));
        self.pipeline.wait_caught_up(&mut process, &self.catalog, &self.sinks(), FIRST_LOAD_TIMEOUT).await?;
        let (took, rows) = (started.elapsed(), shop::rows(&self.catalog).await?);
        let rate = per_second(rows * SINKS as u64, took);
        show.step(&format!(
            "first load: {} rows are in both sinks after {} ({rate} rows/s written, start included)",
            grouped(rows),
            seconds(took)
        ));
        Ok(process)
    }

    /// Commands for another terminal, while everything runs.
    pub fn how_to_look(&self, show: &Show) {
        show.more("look for yourself, from another terminal:");
        self.show_reads(show);
        show.more(&format!("  curl -s http://127.0.0.1:{}/status", self.pipeline.http_port));
    }

    /// Commands for afterwards, when Lockstep has stopped, and the servers too unless they were to stay.
    pub fn how_to_look_later(&self, options: &Options, show: &Show) {
        let dir = &self.dir;
        show.more(match options.keep {
            true => "the servers still run; to look around:",
            false => "the servers stop now; to look around, begin with: scripts/services up --dir .services-demo",
        });
        self.show_reads(show);
        show.more(&format!("  {} run --config {dir}/config", shown_path(&options.lockstep)));
        show.more(&format!("  scripts/services down --dir {dir}"));
    }

    fn show_reads(&self, show: &Show) {
        let dir = &self.dir;
        show.more(&format!("  scripts/services sql --dir {dir} orders -xc 'SELECT * FROM lockstep.progress'"));
        show.more(&format!(
            "  kcat -C -e -q -b {} -t {NAME}.public.prices -o -1 -f 'key %k\\nvalue %s\\n'",
            self.services.kafka
        ));
    }

    pub async fn start_load(&self, options: &Options, show: &Show) -> Result<Running> {
        let load = Load {
            seed: self.seed,
            writers: WRITERS,
            transactions_per_second: TRANSACTIONS_PER_SECOND,
            // In the part with kills: whether a truncate and its copies survive one is the question.
            truncate_after: Some(load_time(options) / 2),
        };
        let running = load.start(&self.catalog).await?;
        show.step(&format!(
            "live load: {WRITERS} writers, {TRANSACTIONS_PER_SECOND} transactions/s over all tables: inserts, updates, deletes,"
        ));
        show.more("changed keys, large values left alone, rollbacks, savepoints, and a TRUNCATE");
        Ok(running)
    }

    /// Latency beside the load, while nothing is killed.
    pub async fn measure_latency(&self, show: &Show) -> Result<Latency> {
        sleep(WARM_UP).await;
        let sinks = [&self.orders, &self.inventory];
        let latency = latency::measure(&self.catalog, &sinks, PROBES_PER_SECOND, QUIET_TIME).await?;
        show.step(&format!(
            "commit to visible at a sink: p50 {}, p90 {}, p99 {} ({} commits at {SINKS} sinks, beside the load)",
            millis(latency.percentile(50)),
            millis(latency.percentile(90)),
            millis(latency.percentile(99)),
            grouped(latency.count() as u64 / SINKS as u64)
        ));
        Ok(latency)
    }

    /// Kills Lockstep at random moments and starts it again at once, until the load's time is over.
    pub async fn kill_and_restart(&self, process: &mut Process, options: &Options, show: &Show) -> Result<Ordeal> {
        let time = Duration::from_secs(options.seconds);
        show.step(&format!(
            "the load goes on for {}; lockstep is killed {} times (SIGKILL)",
            seconds(time),
            options.kills
        ));
        let began = Instant::now();
        let mut ordeal = Ordeal { kills: 0, peak_rss_bytes: 0 };
        let mut moments = moments(options.kills, time, self.seed).into_iter().peekable();
        while let Some(moment) = moments.next() {
            sleep(moment.saturating_sub(began.elapsed())).await;
            process.ensure_running()?;
            ordeal.peak_rss_bytes = ordeal.peak_rss_bytes.max(process.peak_rss_bytes()?);
            let killed = process.pid();
            process.kill9()?;
            ordeal.kills += 1;
            *process = self.pipeline.spawn(&[])?;
            let until = moments.peek().copied().unwrap_or(time).saturating_sub(began.elapsed());
            let recovery = recovery(process, until).await?;
            show.step(&format!("kill {}: pid {killed} is gone; pid {} {recovery}", ordeal.kills, process.pid()));
        }
        sleep(time.saturating_sub(began.elapsed())).await;
        Ok(ordeal)
    }

    /// Waits until both sinks are level with the source, which is at rest now.
    pub async fn catch_up(&self, process: &mut Process, show: &Show) -> Result<Lsn> {
        let started = Instant::now();
        let lsn = self.pipeline.wait_caught_up(process, &self.catalog, &self.sinks(), CATCH_UP_TIMEOUT).await?;
        show.step(&format!("both sinks are level with the source {} after the load's end", seconds(started.elapsed())));
        Ok(lsn)
    }

    /// Compares every row of every table; the number of rows at the source.
    pub async fn compare(&self, show: &Show) -> Result<u64> {
        let (mut rows, mut equal) = (0, true);
        show.step("every row of every table is compared:");
        for pair in shop::pairs() {
            let mut words = Vec::new();
            let mut count = 0;
            for (name, sink) in self.sinks() {
                let found = compare(&self.catalog, sink, &pair).await?;
                count = found.rows;
                words.push(format!("{name} {}", if found.is_equal() { "equal" } else { "DIFFERS" }));
                if !found.is_equal() {
                    equal = false;
                    println!("sink {name}, {found}");
                }
            }
            rows += count;
            show.more(&format!("{:18}  {:>7} rows  {}", pair.source, grouped(count), words.join(", ")));
        }
        ensure!(rows > 0, "the source is empty, so nothing was proved");
        if !equal {
            bail!("a sink differs from its source; log: {}", self.pipeline.log_path().display());
        }
        Ok(rows)
    }

    pub async fn terminate(&self, process: &mut Process, show: &Show) -> Result<()> {
        let (status, took) = process.terminate(TERMINATE_TIMEOUT).await?;
        ensure!(
            status.success(),
            "lockstep ended with {status} after SIGTERM; log: {}",
            self.pipeline.log_path().display()
        );
        show.step(&format!("SIGTERM: lockstep ends with 0 after {}", seconds(took)));
        Ok(())
    }
}

/// How long a new process takes until every role streams, in words; the next kill may come first.
async fn recovery(process: &mut Process, until: Duration) -> Result<String> {
    let started = Instant::now();
    while started.elapsed() < until {
        process.ensure_running()?;
        // Not answering yet is no failure.
        if process.status().await.is_ok_and(|status| status.all_streaming()) {
            return Ok(format!("streams after {}", seconds(started.elapsed())));
        }
        sleep(STATUS_POLL).await;
    }
    Ok("is still starting".into())
}

/// Random moments within `time`, in order. Two may be close: a start is killed as well as a stream.
fn moments(count: u32, time: Duration, seed: u64) -> Vec<Duration> {
    let mut random = StdRng::seed_from_u64(seed);
    let range = KILL_MARGIN..time.saturating_sub(KILL_MARGIN);
    let mut moments: Vec<Duration> = (0..count).map(|_| random.random_range(range.clone())).collect();
    moments.sort_unstable();
    moments
}

/// As the user would type it from the repository's root.
fn shown_path(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
