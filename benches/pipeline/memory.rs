//! The most memory that a process with all roles and two sinks takes, and the databases that this and latency share.

use anyhow::{Result, ensure};

use crate::figure::Figure;
use crate::source::megabytes;
use crate::support::{Database, Pipeline, Process, Services, Status};
use crate::{LOCKSTEP, Options, PATIENCE, rows};

const EACH: i64 = 1_000;

/// A source, two sinks and the pipeline between them.
pub struct Set {
    pub pipeline: Pipeline,
    pub source: Database,
    pub sinks: Vec<Database>,
}

impl Set {
    pub async fn make(services: &Services) -> Result<Set> {
        let source = services.catalog.create_database("bench").await?;
        let orders = services.orders.create_database("bench").await?;
        let inventory = services.inventory.create_database("bench").await?;
        for database in [&source, &orders, &inventory] {
            rows::create_table(database).await?;
        }
        let pipeline = Pipeline::new(LOCKSTEP, services, &source)
            .sink("orders", &orders)
            .sink("inventory", &inventory)
            .table(rows::TABLE);
        Ok(Set { pipeline, source, sinks: vec![orders, inventory] })
    }

    /// All roles in one process, streaming.
    pub async fn start(&self) -> Result<Process> {
        let mut process = self.pipeline.spawn(&[])?;
        process.wait_until("everything streams", PATIENCE, Status::all_streaming).await?;
        Ok(process)
    }

    pub async fn caught_up(&self, process: &mut Process) -> Result<()> {
        let sinks = [("orders", &self.sinks[0]), ("inventory", &self.sinks[1])];
        self.pipeline.wait_caught_up(process, &self.source, &sinks, PATIENCE).await.map(|_| ())
    }

    pub async fn stop(&self, mut process: Process) -> Result<()> {
        let (status, _) = process.terminate(PATIENCE).await?;
        ensure!(status.success(), "lockstep ended with {status}");
        Ok(())
    }
}

pub async fn run(services: &Services, options: &Options) -> Result<()> {
    let set = Set::make(services).await?;
    let mut process = set.start().await?;
    print(&process, "all roles, 2 sinks, idle")?;
    set.stop(process).await?;

    rows::insert(&set.source, 0, options.rows, EACH).await?;
    process = set.pipeline.spawn(&[])?;
    set.caught_up(&mut process).await?;
    print(&process, "all roles, 2 sinks, drain")?;
    set.stop(process).await?;

    process = set.start().await?;
    rows::insert(&set.source, options.rows, options.rows, options.rows).await?;
    set.caught_up(&mut process).await?;
    print(&process, "all roles, 2 sinks, one transaction")?;
    for (sink, database) in [("orders", &set.sinks[0]), ("inventory", &set.sinks[1])] {
        let client = database.connect().await?;
        let there: i64 = client.query_one("SELECT count(*) FROM public.events", &[]).await?.get(0);
        ensure!(there == 2 * options.rows, "sink {sink} has {there} rows");
    }
    set.stop(process).await
}

fn print(process: &Process, case: &str) -> Result<()> {
    let peak = megabytes(process.peak_rss_bytes()?);
    eprintln!("memory: {case}: {peak:.0} MB");
    Figure::new("memory", "peak_mb", "MB", &[peak]).case(case).print();
    Ok(())
}
