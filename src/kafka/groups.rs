//! What sinks say of themselves in Kafka: the offset that a consumer group has committed on the ledger.
//!
//! Nothing that must be right depends on it. A sink's own progress is in its database; this copy of it is for whoever trims the
//! ledger, who can't ask the sinks, and for the tools that show consumers' lag. A copy that is late or missing only keeps the
//! ledger longer. There are no members: partitions are never assigned through these groups.

use std::time::Duration;

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::debug;

use super::consumer::{Reader, one_partition, settings};
use crate::config;
use crate::error::{Error, Result};

/// Partition 0: groups are for the ledger.
const PARTITION: i32 = 0;

/// Little is read with these clients: only offsets.
const QUEUE_BYTES: usize = 64 * 1024;

/// For a coordinator that is just being elected.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// The group of a sink.
pub fn of_sink(pipeline: &str, sink: &str) -> String {
    format!("lockstep.{pipeline}.{sink}")
}

fn open(kafka: &config::Kafka, group: &str) -> Result<Reader> {
    let mut settings = settings(kafka, "groups", QUEUE_BYTES);
    settings.set("group.id", group);
    Reader::open(kafka, &settings)
}

/// Writes one group's offset.
pub struct Teller {
    reader: Reader,
    topic: String,
}

impl Teller {
    pub fn open(kafka: &config::Kafka, group: &str, topic: &str) -> Result<Teller> {
        Ok(Teller { reader: open(kafka, group)?, topic: topic.to_owned() })
    }

    /// Says that `next` is the first entry that the group still needs. Sent in the background; what becomes of it is not
    /// waited for, because the next one says more.
    pub fn tell(&self, next: i64) -> Result<()> {
        while let Some(event) = self.reader.consumer.poll(Duration::ZERO) {
            drop(event);
        }
        if let Err(error) =
            self.reader.consumer.commit(&one_partition(&self.topic, PARTITION, next)?, CommitMode::Async)
        {
            debug!(%error, next, "telling how far the sink is");
        }
        Ok(())
    }
}

/// The offset that a group has committed on a topic's only partition; `None` if it never did. Blocks.
pub fn committed(kafka: &config::Kafka, group: &str, topic: &str) -> Result<Option<i64>> {
    let reader = open(kafka, group)?;
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, PARTITION);
    let answer = reader
        .consumer
        .committed_offsets(asked, QUERY_TIMEOUT)
        .map_err(|error| Error::retry(format!("asking how far group {group} is"), error))?;
    Ok(answer.find_partition(topic, PARTITION).and_then(|at| match at.offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }))
}

/// The first offset of a topic's only partition whose record is from `time_ms` (since 1970) or later, or the end. Blocks.
pub fn first_since(kafka: &config::Kafka, topic: &str, time_ms: i64) -> Result<i64> {
    let reader = open(kafka, "lockstep.times")?;
    let mut asked = TopicPartitionList::new();
    let failed = |error| Error::retry(format!("asking topic {topic:?} for a time"), error);
    asked.add_partition_offset(topic, PARTITION, Offset::Offset(time_ms)).map_err(failed)?;
    let answer = reader.consumer.offsets_for_times(asked, QUERY_TIMEOUT).map_err(failed)?;
    match answer.find_partition(topic, PARTITION).map(|at| at.offset()) {
        Some(Offset::Offset(offset)) => Ok(offset),
        _ => Ok(reader.watermarks(topic, PARTITION, QUERY_TIMEOUT)?.1),
    }
}
