//! Trimming the ledger: what no sink can need any more is deleted.
//!
//! The cut lies at a base that a later entry names, so that a start at the first entry kept knows everything. It is the newest
//! one that is older than the retention of the data topics (a sink that was restored from a backup of last week finds its
//! checkpoint) and not newer than what every joined sink still needs, by what they say of themselves in Kafka. A sink that has
//! said nothing yet holds everything; one that is gone for good is told so by `lockstep leave`.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::{Config, Kafka};
use crate::error::Result;
use crate::kafka::{groups, topics};
use crate::ledger::topic::{self, Reading};

/// Trims as far as `sinks` allow. `now_ms` is the broker's time, as a new entry has it. Gives the first entry kept, if any was
/// deleted.
pub async fn trim(config: Arc<Config>, sinks: BTreeSet<String>, now_ms: i64) -> Result<Option<i64>> {
    let shared = config.clone();
    let found = topic::beside(move || cut(&shared.kafka, &shared.name, &sinks, now_ms)).await?;
    match found {
        Some(cut) => topics::trim(&config.kafka, &config.kafka.ledger, cut).await.map(Some),
        None => Ok(None),
    }
}

/// Where to cut, if anywhere.
fn cut(kafka: &Kafka, pipeline: &str, sinks: &BTreeSet<String>, now_ms: i64) -> Result<Option<i64>> {
    let retention_ms = i64::try_from(kafka.retention.as_millis()).unwrap_or(i64::MAX);
    let mut needed = groups::first_since(kafka, &kafka.ledger, now_ms.saturating_sub(retention_ms).max(0))?;
    for sink in sinks {
        match groups::committed(kafka, &groups::of_sink(pipeline, sink), &kafka.ledger)? {
            Some(next) => needed = needed.min(next),
            None => return Ok(None),
        }
    }
    let mut reading = Reading::open(kafka)?;
    let (low, _) = reading.bounds()?;
    // The entry before the first that is needed: a sink that stands at it checks that it is there.
    if needed - 1 <= low {
        return Ok(None);
    }
    let cut = reading.fold_start(needed - 1)?;
    Ok((cut > low).then_some(cut))
}
