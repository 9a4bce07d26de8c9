//! What sinks say of themselves in Kafka: the offset that a consumer group has committed on the ledger.
//!
//! Nothing that must be right depends on it. A sink's own progress is in its database; this copy of it is for whoever trims the
//! ledger, who can't ask the sinks, and for the tools that show consumers' lag. A copy that is late or missing only keeps the
//! ledger longer. There are no members: partitions are never assigned through these groups.
//!
//! Beside the offset stands what the sink has applied ([`Applied`]), in the field that Kafka leaves to whoever commits: what it
//! still needs stands still while its tables are loaded, and a reader that loads them wants to know how far it is ([`Watch`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::consumer::{Reader, one_partition, settings};
use crate::config;
use crate::error::{Error, Result};

/// Partition 0: groups are for the ledger.
const PARTITION: i32 = 0;

/// Little is read with these clients: only offsets.
const QUEUE_BYTES: usize = 64 * 1024;

/// For a coordinator that is just being elected.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// The same while a load is held for the answer, which can do without it; a stop waits for no longer.
const WATCH_TIMEOUT: Duration = Duration::from_millis(500);

/// A pause between two questions of a [`Watch`]: a sink takes about as long for what it is held for.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);

/// What a sink says of itself beside the offset that it still needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The last entry of the ledger that is applied.
    pub applied: i64,
    /// Microseconds that its worker has spent with existing rows since it began.
    pub busy_us: u64,
}

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

    /// Says that `next` is the first entry that the group still needs, and what it has applied. Sent in the background; what
    /// becomes of it is not waited for, because the next one says more.
    pub fn tell(&self, next: i64, applied: Applied) -> Result<()> {
        while let Some(event) = self.reader.consumer.poll(Duration::ZERO) {
            drop(event);
        }
        let offsets = one_partition(&self.topic, PARTITION, next)?;
        let words = serde_json::to_string(&applied).expect("numbers are JSON");
        offsets.find_partition(&self.topic, PARTITION).expect("just added").set_metadata(words);
        if let Err(error) = self.reader.consumer.commit(&offsets, CommitMode::Async) {
            debug!(%error, next, "telling how far the sink is");
        }
        Ok(())
    }
}

/// Asks again and again what some groups have applied, on a thread of its own. Dropping stops it.
pub struct Watch {
    news: mpsc::Receiver<(usize, Option<Applied>)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Of these groups, which news name by their place.
    pub fn open(kafka: &config::Kafka, groups: &[String], topic: &str) -> Result<Watch> {
        let readers = groups.iter().map(|group| open(kafka, group)).collect::<Result<Vec<_>>>()?;
        // Whoever reads the news takes all there is; a thread that waits for it asks nothing meanwhile.
        let (sender, news) = mpsc::channel(groups.len().max(1));
        let (stop, topic) = (Arc::new(AtomicBool::new(false)), topic.to_owned());
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("kafka-groups".into())
            .spawn(move || watch(&readers, &topic, &stopped, &sender))
            .map_err(|error| Error::retry("starting a thread to ask Kafka how far sinks are", error))?;
        Ok(Watch { news, stop, thread: Some(thread) })
    }

    /// What a group says now and did not before; `None` of what it has applied where it says nothing of that.
    pub fn try_recv(&mut self) -> Option<(usize, Option<Applied>)> {
        self.news.try_recv().ok()
    }

    /// The same, once there is news. Safe to drop and call again.
    pub async fn recv(&mut self) -> (usize, Option<Applied>) {
        match self.news.recv().await {
            Some(news) => news,
            // The thread ends with this side alone.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Frees the thread if it waits for room.
        self.news.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the thread that asks how far sinks are had panicked");
        }
    }
}

fn watch(readers: &[Reader], topic: &str, stopped: &AtomicBool, sender: &mpsc::Sender<(usize, Option<Applied>)>) {
    let mut told: Vec<Option<Committed>> = vec![None; readers.len()];
    while !stopped.load(Ordering::Acquire) {
        for (group, reader) in readers.iter().enumerate() {
            if stopped.load(Ordering::Acquire) {
                return;
            }
            match ask(reader, topic, WATCH_TIMEOUT) {
                // One that has said nothing yet may be about to.
                Ok(Some(now)) if told[group] != Some(now) => {
                    told[group] = Some(now);
                    if sender.blocking_send((group, now.applied)).is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(error) => debug!(%error, group, "asking how far a sink is"),
            }
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Committed {
    next: i64,
    /// Older builds say nothing of it.
    applied: Option<Applied>,
}

fn ask(reader: &Reader, topic: &str, timeout: Duration) -> Result<Option<Committed>, KafkaError> {
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, PARTITION);
    let answer = reader.consumer.committed_offsets(asked, timeout)?;
    Ok(answer.find_partition(topic, PARTITION).and_then(|at| match at.offset() {
        Offset::Offset(next) => Some(Committed { next, applied: serde_json::from_str(at.metadata()).ok() }),
        _ => None,
    }))
}

/// The offset that a group has committed on a topic's only partition; `None` if it never did. Blocks.
pub fn committed(kafka: &config::Kafka, group: &str, topic: &str) -> Result<Option<i64>> {
    let reader = open(kafka, group)?;
    let answer = ask(&reader, topic, QUERY_TIMEOUT);
    let answer = answer.map_err(|error| Error::retry(format!("asking how far group {group} is"), error))?;
    Ok(answer.map(|committed| committed.next))
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
