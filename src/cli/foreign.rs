//! `lockstep check` of a pipeline whose topics another program writes: Kafka, its topics, and the sinks that take them. Of records
//! nothing is read.

use std::sync::Arc;

use uuid::Uuid;

use super::check::{Finding, Part};
use crate::apply::foreign;
use crate::config::{Config, Engine, Sink, Topics};
use crate::error::{Code, Error, Halt, Result};
use crate::kafka::topics;
use crate::sink;
use crate::sink::postgres::PostgresSink;
use crate::sink::postgres::foreign::goes_by_a_ledger;

pub(super) async fn check(config: &Arc<Config>, _topics: &Topics) -> Vec<Part> {
    let mut parts = vec![check_kafka(config).await];
    for sink in &config.sinks {
        let mut findings: Vec<Finding> = foreign::refused(config, sink).into_iter().map(Finding::Halt).collect();
        if let Engine::Postgres(_) = sink.engine
            && let Err(error) = check_sink(config, sink, &mut findings).await
        {
            findings.push(error.into());
        }
        parts.push(Part { place: format!("sink {} {}", sink.name, sink::place(&sink.engine)), findings });
    }
    parts
}

async fn check_kafka(config: &Config) -> Part {
    let mut findings = Vec::new();
    let names: Vec<&str> = config.tables.iter().map(|table| table.topic.as_str()).collect();
    match topics::describe(&config.kafka, &names).await {
        Ok(facts) => {
            for name in names.iter().zip(&facts).filter(|(_, facts)| facts.is_none()).map(|(name, _)| name) {
                let what = format!("topic {name:?} is not there yet: Debezium makes it with the table's first record");
                findings.push(Finding::Warning(what));
            }
        }
        Err(error) => findings.push(error.into()),
    }
    Part { place: format!("kafka {}", config.kafka.brokers), findings }
}

async fn check_sink(config: &Config, sink: &Sink, findings: &mut Vec<Finding>) -> Result<()> {
    let targets: Vec<_> =
        config.tables.iter().flat_map(|table| &table.sinks).filter(|target| target.sink == sink.name).collect();
    let mut database = PostgresSink::connect(sink, &config.name, Uuid::new_v4()).await?;
    if database.found_progress().await?.is_some() {
        findings.push(Finding::from(Error::from(goes_by_a_ledger(&config.name, &sink.name))));
    }
    let tables: Vec<_> = targets.iter().map(|target| target.table.clone()).collect();
    let facts = database.own_tables(&tables).await?;
    for target in tables.iter().zip(&facts).filter(|(_, facts)| facts.is_none()).map(|(table, _)| table) {
        findings.push(Finding::Halt(Halt {
            code: Code::SinkTable,
            message: format!("there is no table {target} at the sink"),
            facts: vec![],
            hint: format!("create {target} with the columns of the source's table"),
        }));
    }
    Ok(())
}
