//! A source, two sinks and Kafka, each behind a proxy, and two processes for every role.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::support::proxy::{Proxy, Speech};
use super::support::{Database, Pipeline, Process, Server, Services, Status};
use super::tables;

pub const SINKS: [&str; 2] = ["orders", "inventory"];
/// Of the leases of both roles: zombies are made by the dozen. On a machine that is so busy that nobody speaks for so long, readers
/// take the slot from each other in turns and little else happens.
const LEASE: &str = "4s";

#[derive(Debug)]
pub struct Stage {
    pub pipeline: Pipeline,
    pub services: Services,
    pub source: Database,
    pub sinks: [Database; 2],
    pub links: Links,
    /// In which sinks must be level again after a fault.
    pub level_time: Duration,
}

/// The ways that the product goes, and nobody else.
#[derive(Debug)]
pub struct Links {
    pub source: Proxy,
    pub sinks: [Proxy; 2],
    pub kafka: Proxy,
}

impl Links {
    pub fn all(&self) -> [(&'static str, &Proxy); 4] {
        [("source", &self.source), ("orders", &self.sinks[0]), ("inventory", &self.sinks[1]), ("kafka", &self.kafka)]
    }
}

impl Stage {
    pub async fn set(lockstep: &Path, level_time: Duration) -> Result<Stage> {
        let services = Services::from_env();
        let source = services.catalog.create_database("torture").await?;
        tables::create_source(&source).await?;
        let sinks =
            [services.orders.create_database("torture").await?, services.inventory.create_database("torture").await?];
        tables::create_sink(&sinks[0], true).await?;
        tables::create_sink(&sinks[1], false).await?;
        let broker = services.kafka.rsplit_once(':').context("the broker's port")?.1.parse()?;
        let links = Links {
            source: Proxy::start(source.server.port).await,
            sinks: [
                Proxy::speaking(sinks[0].server.port, Speech::Postgres).await,
                Proxy::speaking(sinks[1].server.port, Speech::Postgres).await,
            ],
            kafka: Proxy::speaking(broker, Speech::Kafka).await,
        };
        let through = Services { kafka: format!("127.0.0.1:{}", links.kafka.port), ..services.clone() };
        let pipeline = Pipeline::new(lockstep, &through, &source).source_url(url(&source, &links.source));
        let pipeline = configure(pipeline, &sinks, &links);
        Ok(Stage { pipeline, services, source, sinks, links, level_time })
    }

    pub fn server(&self, sink: usize) -> &Server {
        &self.sinks[sink].server
    }
}

fn url(database: &Database, proxy: &Proxy) -> String {
    let port = |port: u16| format!(":{port}/");
    database.url().replace(&port(database.server.port), &port(proxy.port))
}

/// Small limits, so that little data meets every path: several chunks a table, bases and trims now and then.
fn configure(pipeline: Pipeline, sinks: &[Database; 2], links: &Links) -> Pipeline {
    let mut pipeline = pipeline.several();
    for (name, (sink, link)) in SINKS.into_iter().zip(sinks.iter().zip(&links.sinks)) {
        pipeline = pipeline.sink(name, sink).sink_url(name, url(sink, link));
        pipeline = pipeline.set(&format!("sinks.{name}"), &format!("lease_timeout = \"{LEASE}\""));
    }
    pipeline = pipeline
        .set("source", &format!("sender_timeout = \"{LEASE}\""))
        .set("source.snapshot", "chunk_rows = 100")
        .set("kafka", "base_entries = 200")
        .set("kafka", "grace = \"5s\"");
    for table in tables::names().filter(|&name| name != tables::EVOLVES) {
        pipeline = pipeline.table(table);
    }
    let evolves: String = SINKS.iter().map(|sink| format!("[sinks.{sink}]\nevolve = \"full\"\n")).collect();
    pipeline.connector(tables::EVOLVES, &evolves).connector_file(
        "extra",
        tables::EXTRA_PATTERN,
        &SINKS.map(|sink| format!("[sinks.{sink}]\n")).concat(),
    )
}

/// A role and its two processes, of which one works and one waits. Which one is asked of them.
#[derive(Debug)]
pub struct Role {
    pub name: String,
    /// Place in [`SINKS`]; `None`: the source.
    pub sink: Option<usize>,
    pub processes: [Process; 2],
}

impl Role {
    pub fn start(stage: &Stage, sink: Option<usize>) -> Result<Role> {
        let name = sink.map_or("source".to_owned(), |sink| format!("sink:{}", SINKS[sink]));
        let processes = [stage.pipeline.spawn(&[&name])?, stage.pipeline.spawn(&[&name])?];
        Ok(Role { name, sink, processes })
    }

    /// What a process says of the role; empty: nothing.
    pub async fn state(&self, process: usize) -> String {
        let status = self.processes[process].status().await;
        let state = |status: &Status| match self.sink {
            None => status.source_state().to_owned(),
            Some(sink) => status.sink_state(SINKS[sink]).to_owned(),
        };
        status.as_ref().map(state).unwrap_or_default()
    }

    /// The process that works, if one says so.
    pub async fn active(&self) -> Option<usize> {
        for process in 0..self.processes.len() {
            if matches!(self.state(process).await.as_str(), "streaming" | "snapshot") {
                return Some(process);
            }
        }
        None
    }

    pub fn kill(&mut self, process: usize) -> Result<()> {
        self.processes[process].kill9()
    }

    pub fn spawn(&mut self, stage: &Stage, process: usize) -> Result<()> {
        self.processes[process] = stage.pipeline.spawn(&[&self.name])?;
        Ok(())
    }

    pub fn freeze(&self, process: usize) -> Result<()> {
        self.processes[process].signal(Signal::STOP)
    }

    pub fn thaw(&self, process: usize) -> Result<()> {
        self.processes[process].signal(Signal::CONT)
    }

    /// Fails if a process has ended by itself or says that it is halted: no fault here is one that needs a person.
    pub async fn ensure_alive(&mut self) -> Result<()> {
        for process in &mut self.processes {
            process.ensure_running()?;
            let Ok(status) = process.status().await else { continue };
            let code = status.halt_code(self.sink.map(|sink| SINKS[sink]));
            ensure!(code.is_none(), "{} is halted: {status}", self.name);
        }
        Ok(())
    }
}

/// How long to try for something that a busy machine does late.
pub const PATIENCE: Duration = Duration::from_secs(90);
