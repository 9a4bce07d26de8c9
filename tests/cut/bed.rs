//! A source of one's own: a database with its tables, publication and slot, and the configuration that names them.

use std::sync::Arc;
use std::time::Duration;

use lockstep::config::{self, Config};
use lockstep::postgres::{catalog, publication, slot};
use lockstep::relation::TableName;
use lockstep::session;
use tempfile::TempDir;

use super::{Follower, Load, Rule};
use crate::support::services::unique_name;
use crate::support::{Database, Pipeline, Server, Services};

pub struct Bed {
    pub database: Database,
    pub config: Arc<Config>,
    _dir: TempDir,
}

impl Bed {
    /// Empty tables and a slot that tells of everything that happens to them from here on. `unpublished` are in the
    /// configuration and not in the publication.
    pub async fn new(server: &Server, schema: &str, tables: &[&str], unpublished: &[&str]) -> Bed {
        let database = server.create_database("cut").await.unwrap();
        database.execute(schema).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let name = unique_name("cut");
        // Nobody connects to Kafka, nor to the sink.
        let pipeline = Pipeline::at(&name, dir.path().to_owned(), "", &Services::from_env(), &database);
        let pipeline = pipeline.sink("orders", &database).sink_url("orders", format!("{}_nobody", database.url()));
        let pipeline = tables.iter().chain(unpublished).fold(pipeline, |p, table| p.table(&format!("public.{table}")));
        pipeline.write().unwrap();
        let config = Arc::new(config::load(&pipeline.dir, &|_| None).unwrap());
        let session = session::connect(&config.source.database, "it_cut").await.unwrap();
        let version = catalog::source_facts(&*session).await.unwrap().version;
        let names: Vec<TableName> = tables.iter().map(|table| public(table)).collect();
        publication::ensure_publication(&*session, &config.source.publication, &names, &[], true).await.unwrap();
        slot::create_slot(&*session, &config.source.slot, version, false).await.unwrap();
        Bed { database, config, _dir: dir }
    }

    pub async fn sql(&self, sql: &str) {
        self.database.execute(sql).await.unwrap();
    }

    pub async fn follower(&self) -> Follower {
        Follower::start(self.config.clone()).await
    }

    /// Loads these tables by this rule, chunk by chunk of so many rows.
    pub fn load(&self, tables: &[&str], rows: usize, rule: Rule) -> Load {
        Load::new(&self.config, tables.iter().map(|table| public(table)).collect(), rows, rule)
    }
}

pub fn public(table: &str) -> TableName {
    TableName::new("public", table)
}

/// What anything here is waited for at most.
pub const PATIENCE: Duration = Duration::from_secs(60);
