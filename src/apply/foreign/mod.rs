//! A sink of topics that another program writes: Debezium. There is no ledger, and nobody here to read the source; what its
//! records say is all there is.
//!
//! Each process is a member of a consumer group on the topics. It takes the rows of its partitions in
//! `lockstep.partition_progress` as in row consistency ([`super::rows`]), reads from where they say, and moves them in the
//! transaction of the records' rows, by compare-and-set. So from Kafka on each record counts once, whoever dies or is frozen; that
//! Debezium writes some twice is what the [`mark`] is for. Nobody is the owner of the whole: partitions of different tables have
//! nothing to do with each other, and what can't be told by one partition (a TRUNCATE in a topic with several) halts.
//!
//! What can't be read halts by name, with everything before it in its partition applied and nothing behind it; what the sink's database
//! refuses does so with nothing of its batch.

pub mod latest;
pub mod mark;
mod read;
mod tables;
mod worker;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::apply::rows::refusals;
use crate::apply::start::taken;
use crate::config::{self, Config, Engine, OnRefused};
use crate::error::{Code, Error, Halt, Result};
use crate::http::metrics::SinkMetrics;
use crate::sink::postgres::PostgresSink;
use crate::sink::{Sink, lacks};
use crate::status::SinkReporter;

/// What a configuration asks for that does not go with such topics: at `lockstep check` and at every start.
pub fn refused(config: &Config, sink: &config::Sink) -> Vec<Halt> {
    if !matches!(sink.engine, Engine::Postgres(_)) {
        let message = format!(
            "sink {} is {}, which does not take topics that another program writes",
            sink.name,
            sink.engine.kind()
        );
        let hint = "take a Postgres sink, or a [source] in the place of [topics]".to_owned();
        return vec![Halt { code: Code::Config, message, facts: vec![], hint }];
    }
    let mut halts = refusals(config, sink);
    if sink.parking.on_refused != OnRefused::Halt {
        let message = format!("sink {} does not park rows of topics that another program writes", sink.name);
        let hint = format!("write on_refused = \"halt\" under [sinks.{}]", sink.name);
        halts.push(Halt { code: Code::Config, message, facts: vec![], hint });
    }
    halts
}

/// The role of one process: runs until it is stopped or fails.
pub async fn run(
    config: Arc<Config>,
    sink: config::Sink,
    (reporter, metrics): (SinkReporter, SinkMetrics),
    stop: CancellationToken,
) -> Result<()> {
    if let Some(halt) = refused(&config, &sink).into_iter().next() {
        return Err(halt.into());
    }
    lacks::refuse::<PostgresSink>(&sink, taken(&config, &sink.name).values())?;
    let mut worker = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        worker = worker::Worker::start(config.clone(), sink.clone(), (reporter, metrics)) => worker?,
    };
    let (owner, heard) = (Sink::member(&mut worker.sink).await?, Sink::heard(&worker.sink));
    tracing::info!(sink = sink.name, "applying topics that Debezium writes");
    let outcome = tokio::select! {
        outcome = worker.run(&stop) => outcome,
        // The worker waits on a dead connection; only dropping it ends that.
        error = PostgresSink::watch(&sink, &config.name, owner, heard) => Err(error),
    };
    outcome.map_err(without_ledger)
}

/// A hint to read a copy again is for who has a ledger.
fn without_ledger(error: Error) -> Error {
    match error {
        Error::Halt(mut halt) if halt.code == Code::TopicGap => {
            halt.hint = "stop the sink, DELETE the topic's rows of lockstep.partition_progress, write start = \"kept\" under [topics], and have Debezium read the table again".into();
            Error::Halt(halt)
        }
        Error::Halt(mut halt) if halt.hint.contains("lockstep resync") => {
            halt.hint =
                "once the cause is gone, have Debezium read the table again (execute-snapshot in its signal table)"
                    .into();
            Error::Halt(halt)
        }
        other => other,
    }
}

/// Names the connection of one attempt.
fn worker_id() -> Uuid {
    Uuid::new_v4()
}
