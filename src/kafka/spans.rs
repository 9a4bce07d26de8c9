//! The data partitions of one sink, read on demand: [`Spans`]. Part of [`super::consumer`], whose rules hold here.
//!
//! Every partition has a queue of its own in librdkafka, which fetches ahead into it up to a bound and stops. So the caller can
//! merge partitions in any order, holding one record of each, and a partition that runs ahead waits.
//!
//! The queue is split off before the partition is assigned: librdkafka keeps the split when it starts fetching, so no record
//! goes into the common queue. A seek moves the queue's version, so nothing from before it comes out after it.

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::Offset;

use super::consumer::{Events, QUERY_TIMEOUT, Reader, SILENCE, Verdict, one_partition, settings, timestamp_ms};
use super::{Health, raw};
use crate::config;
use crate::error::{Code, Error, Result};

/// A partition below this fetches in too small pieces.
const QUEUE_BYTES_MIN: usize = 1 << 20;
/// Partitions that are busy at once and still within the bytes given to [`Spans::open`]; each further one adds a share.
const BUSY_PARTITIONS: usize = 8;

/// A forward jump by this many offsets is read through: those records are most likely fetched already, and seeking would
/// throw them away.
const SKIP_OFFSETS_MAX: i64 = 10_000;

/// Records between two looks at the client's own events while records flow.
const SERVE_EVERY: u32 = 512;

/// A partition known to one [`Spans`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Part(usize);

/// The data partitions of one sink, read on demand from one thread. Blocks.
pub struct Spans {
    reader: Reader,
    lanes: Vec<Lane>,
    /// Records since the client's own events were looked at.
    unserved: Cell<u32>,
}

struct Lane {
    topic: String,
    partition: i32,
    queue: PartitionQueue<Events>,
    /// What `poll` yields is at or above this.
    next: Cell<i64>,
    assigned: Cell<bool>,
    /// Whether the assignment is good. Not after an error.
    live: Cell<bool>,
    /// From the assignment until the first record came, or the silence was asked about.
    silent_since: Cell<Option<Instant>>,
}

/// One record, still in librdkafka's memory. Freed on drop.
pub struct Record<'a> {
    message: BorrowedMessage<'a>,
    /// Reading a header parses the headers in place, which two threads must not do at once.
    _not_sync: PhantomData<Cell<()>>,
}

impl Record<'_> {
    pub fn offset(&self) -> i64 {
        self.message.offset()
    }

    pub fn partition(&self) -> i32 {
        self.message.partition()
    }

    pub fn key(&self) -> Option<&[u8]> {
        self.message.key()
    }

    /// `None`: a tombstone.
    pub fn value(&self) -> Option<&[u8]> {
        self.message.payload()
    }

    /// Milliseconds since 1970, -1 if there is none.
    pub fn timestamp_ms(&self) -> i64 {
        timestamp_ms(&self.message)
    }

    /// The last header of that name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        raw::header(&self.message, name)
    }

    /// All of them, in order.
    pub fn headers(&self) -> Vec<(&str, Option<&[u8]>)> {
        raw::headers(&self.message)
    }
}

impl Spans {
    /// `bytes_max`: what may be fetched ahead, all partitions together, while no more than eight of them are busy.
    pub fn open(kafka: &config::Kafka, bytes_max: usize) -> Result<Spans> {
        Spans::isolated(kafka, bytes_max, "read_uncommitted")
    }

    /// Without the records of Kafka's transactions that were aborted: of writers that have such transactions.
    pub fn committed(kafka: &config::Kafka, bytes_max: usize) -> Result<Spans> {
        Spans::isolated(kafka, bytes_max, "read_committed")
    }

    fn isolated(kafka: &config::Kafka, bytes_max: usize, level: &str) -> Result<Spans> {
        let share = (bytes_max / BUSY_PARTITIONS).max(QUEUE_BYTES_MIN);
        let mut settings = settings(kafka, "spans", share);
        settings.set("isolation.level", level);
        let reader = Reader::open(kafka, &settings)?;
        Ok(Spans { reader, lanes: Vec::new(), unserved: Cell::new(0) })
    }

    /// Sees to it that the next [`Spans::poll`] of the partition yields the first record at or above `from`. Cheap if the
    /// partition stands there or a little before. An offset that is not there shows when polling.
    pub fn ensure(&mut self, topic: &str, partition: i32, from: i64) -> Result<Part> {
        let part = match self.find(topic, partition) {
            Some(part) => part,
            None => self.add(topic, partition)?,
        };
        let lane = &self.lanes[part.0];
        let near = (0..=SKIP_OFFSETS_MAX).contains(&from.saturating_sub(lane.next.get()));
        if lane.live.get() && (near || self.seek(lane, from).is_ok()) {
            lane.next.set(from);
        } else {
            self.assign(lane, from)?;
        }
        Ok(part)
    }

    fn find(&self, topic: &str, partition: i32) -> Option<Part> {
        self.lanes.iter().position(|lane| lane.partition == partition && lane.topic == topic).map(Part)
    }

    fn add(&mut self, topic: &str, partition: i32) -> Result<Part> {
        if !self.lanes.iter().any(|lane| lane.topic == topic) {
            self.reader.acquaint(topic);
        }
        // Before the assignment: librdkafka keeps the split when it starts the partition, so no record takes the other way.
        let queue = self.reader.consumer.split_partition_queue(topic, partition).ok_or_else(|| {
            Error::retry_plain(format!("the Kafka client has no topic {topic:?} partition {partition}"))
        })?;
        let lane = Lane {
            topic: topic.to_owned(),
            partition,
            queue,
            next: Cell::new(0),
            assigned: Cell::new(false),
            live: Cell::new(false),
            silent_since: Cell::new(None),
        };
        self.lanes.push(lane);
        Ok(Part(self.lanes.len() - 1))
    }

    /// Waits until the client has taken it: a seek that it refuses (not started yet, stopped by an error) would otherwise be
    /// silently nothing.
    fn seek(&self, lane: &Lane, from: i64) -> KafkaResult<()> {
        self.reader.consumer.seek(&lane.topic, lane.partition, Offset::Offset(from), QUERY_TIMEOUT)
    }

    /// Assigns anew: after an error the client has stopped the partition and takes no seek.
    fn assign(&self, lane: &Lane, from: i64) -> Result<()> {
        let list = one_partition(&lane.topic, lane.partition, from)?;
        let failed = |error| Error::retry(format!("assigning topic {:?}", lane.topic), error);
        if lane.assigned.replace(false) {
            self.reader.consumer.incremental_unassign(&list).map_err(failed)?;
        }
        self.reader.consumer.incremental_assign(&list).map_err(failed)?;
        lane.assigned.set(true);
        lane.live.set(true);
        lane.silent_since.set(Some(Instant::now()));
        lane.next.set(from);
        Ok(())
    }

    /// Stops fetching a partition; [`Spans::ensure`] takes it up again.
    pub fn release(&mut self, part: Part) -> Result<()> {
        let lane = &self.lanes[part.0];
        lane.live.set(false);
        if lane.assigned.replace(false) {
            let list = one_partition(&lane.topic, lane.partition, lane.next.get())?;
            let failed = |error| Error::retry(format!("giving up topic {:?}", lane.topic), error);
            self.reader.consumer.incremental_unassign(&list).map_err(failed)?;
        }
        Ok(())
    }

    /// The next record of the partition in offset order; `None` if none came within `timeout` (some seconds
    /// more where no broker answers). Records of several partitions can be held at once.
    pub fn poll(&self, part: Part, timeout: Duration) -> Result<Option<Record<'_>>> {
        let lane = &self.lanes[part.0];
        if !lane.live.get() {
            // Left by an error, or by a record that took the wrong way: from where the last one was yielded.
            self.assign(lane, lane.next.get())?;
        }
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lane.queue.poll(left) {
                Some(Ok(message)) if message.offset() < lane.next.get() => {}
                Some(Ok(message)) => {
                    lane.next.set(message.offset() + 1);
                    lane.silent_since.set(None);
                    self.unserved.set(self.unserved.get() + 1);
                    if self.unserved.get() >= SERVE_EVERY {
                        self.serve()?;
                    }
                    return Ok(Some(Record { message, _not_sync: PhantomData }));
                }
                Some(Err(error)) => {
                    let at = lane.next.get();
                    match self.reader.judge(error, &lane.topic, lane.partition, at, Code::TopicGap) {
                        Verdict::Heals => {}
                        Verdict::Stopped => self.assign(lane, at)?,
                        Verdict::Fails(error) => {
                            lane.live.set(false);
                            return Err(error);
                        }
                    }
                }
                None => {
                    self.serve()?;
                    if lane.silent_since.get().is_some_and(|since| since.elapsed() > SILENCE) {
                        lane.silent_since.set(None);
                        self.reader.ask_after_silence(&lane.topic, lane.partition)?;
                    }
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Looks at the client's own events: errors, statistics, logs.
    fn serve(&self) -> Result<()> {
        self.unserved.set(0);
        while let Some(event) = self.reader.consumer.poll(Duration::ZERO) {
            match event {
                // Not seen to happen, as partitions are split before they start. If it did, the record would be missing in its
                // own queue, so that partition begins anew where it stands.
                Ok(message) => {
                    if let Some(part) = self.find(message.topic(), message.partition()) {
                        self.lanes[part.0].live.set(false);
                    }
                }
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) => {
                    return Err(Error::retry("reading from Kafka", error));
                }
                // Already noted by the callback.
                Err(_) => {}
            }
        }
        self.reader.health.verdict().map_or(Ok(()), Err)
    }

    /// The offset at or above which the next record of the partition will be.
    pub fn position(&self, topic: &str, partition: i32) -> Option<i64> {
        self.find(topic, partition).map(|part| self.lanes[part.0].next.get())
    }

    /// Low and high watermark of a partition.
    pub fn watermarks(&self, topic: &str, partition: i32, timeout: Duration) -> Result<(i64, i64)> {
        self.reader.watermarks(topic, partition, timeout)
    }

    pub fn health(&self) -> Health {
        self.reader.health.clone()
    }

    pub fn last_error(&self) -> Option<String> {
        self.reader.health.last_error()
    }
}
