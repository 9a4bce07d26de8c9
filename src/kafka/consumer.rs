//! Reads topics: [`Tail`] follows one partition, [`read_all`] fetches a piece of one, [`Spans`] reads named offsets of many.
//!
//! Partitions are assigned by hand at offsets that the caller knows; there is no group, no committed offset and no reset: an
//! offset that is not there is an error with the caller's code, never a jump to the beginning or the end.
//!
//! Invariants:
//! - What a reader yields of one partition has rising offsets, none below the one asked for. Offsets need not be dense.
//! - Memory is bounded per partition, by bytes and by records: a partition that nobody polls is fetched up to its bound and no
//!   further, so the slowest reader decides (back-pressure), and nothing is dropped.
//! - Brokers that are away are waited for, without end: readers only fail where waiting can't help. [`Health`] says what
//!   is waited for.
//! - After an error a [`Tail`] is finished, and a partition of [`Spans`] begins anew at the next [`Spans::ensure`].
//!
//! Everything polls a `BaseConsumer` from an OS thread: the crate's asynchronous consumer loses wake-ups of split queues.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc;
use tracing::warn;

use super::{Access, Health, Right, client, raw, unmade};
use crate::config;
use crate::error::{Code, Error, Result};

/// Entries handed over and not yet received. Small: entries can be half a megabyte, and librdkafka has its own queue behind.
const TAIL_ENTRIES: usize = 256;
const TAIL_QUEUE_BYTES: usize = 4 << 20;
/// How long a drop of a `Tail` may wait for its thread.
const TAIL_POLL: Duration = Duration::from_millis(50);

/// librdkafka counts the bytes of records in a queue but not its own structures around them, some 350 bytes each.
const QUEUE_RECORDS: usize = 20_000;
/// A partition below this fetches in too small pieces.
const QUEUE_BYTES_MIN: usize = 1 << 20;
/// Partitions that are busy at once and still within the bytes given to [`Spans::open`]; each further one adds a share.
const BUSY_PARTITIONS: usize = 8;

/// A forward jump by this many offsets is read through: those records are most likely fetched already, and seeking would
/// throw them away.
const SKIP_OFFSETS_MAX: i64 = 10_000;

/// Records between two looks at the client's own events while records flow.
const SERVE_EVERY: u32 = 512;

/// For questions that a leader must answer.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// `read_all` gives up when nothing at all arrived for this long.
const READ_STALL: Duration = Duration::from_secs(30);

/// One record of a tail, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

impl Entry {
    fn of(message: &BorrowedMessage<'_>) -> Entry {
        Entry {
            offset: message.offset(),
            timestamp_ms: timestamp_ms(message),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
        }
    }
}

fn timestamp_ms(message: &BorrowedMessage<'_>) -> i64 {
    message.timestamp().to_millis().unwrap_or(-1)
}

/// A consumer with what its errors need to become words.
struct Reader {
    consumer: Arc<BaseConsumer<Events>>,
    access: Access,
    health: Health,
}

struct Events(Health);

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Health::log(level, facility, message);
    }

    fn stats_raw(&self, json: &[u8]) {
        self.0.read_statistics(json);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.note(&error, reason);
    }
}

impl ConsumerContext for Events {}

fn settings(kafka: &config::Kafka, purpose: &str, queue_bytes: usize) -> ClientConfig {
    let mut client = client(kafka, purpose);
    let queue_kbytes = (queue_bytes / 1024).clamp(1, 2_097_151);
    client
        .set("group.id", format!("lockstep.{purpose}"))
        .set("isolation.level", "read_uncommitted")
        .set("check.crcs", "true")
        .set("auto.offset.reset", "error")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("queued.max.messages.kbytes", queue_kbytes.to_string())
        .set("queued.min.messages", QUEUE_RECORDS.to_string())
        // The default waits a second with a full queue, however soon it drains.
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.error.backoff.ms", "100")
        // Data that arrives answers at once. This bounds how long an idle partition's request delays the fetch of another
        // one after a seek.
        .set("fetch.wait.max.ms", "100")
        .set("fetch.min.bytes", "1");
    client
}

impl Reader {
    fn open(kafka: &config::Kafka, settings: &ClientConfig) -> Result<Reader> {
        let access = Access::new(kafka);
        let health = Health::new(access.clone());
        let consumer = settings.create_with_context(Events(health.clone())).map_err(unmade)?;
        Ok(Reader { consumer: Arc::new(consumer), access, health })
    }

    fn watermarks(&self, topic: &str, partition: i32, timeout: Duration) -> Result<(i64, i64)> {
        self.consumer
            .fetch_watermarks(topic, partition, timeout)
            .map_err(|error| self.access.failed(error, "asking for the offsets of topic", topic, Right::Read))
    }

    /// The one partition of a reader that has no others.
    fn assign(&self, topic: &str, partition: i32, from: i64) -> Result<()> {
        self.consumer
            .assign(&one_partition(topic, partition, from)?)
            .map_err(|error| Error::retry(format!("assigning topic {topic:?}"), error))
    }

    /// What an error of a partition means for a reader that stands at offset `at`.
    fn judge(&self, error: KafkaError, topic: &str, partition: i32, at: i64, gap: Code) -> Verdict {
        let Some(code) = error.rdkafka_error_code() else { return Verdict::Heals };
        match code {
            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => {
                self.judge_gap(topic, partition, at, gap)
            }
            RDKafkaErrorCode::BadMessage
            | RDKafkaErrorCode::InvalidMessage
            | RDKafkaErrorCode::BadCompression
            | RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::NotImplemented
            | RDKafkaErrorCode::UnsupportedFeature
            | RDKafkaErrorCode::Inconsistent
            | RDKafkaErrorCode::Fatal => Verdict::Fails(Error::retry(
                format!("reading topic {topic:?} partition {partition} at offset {at}"),
                error,
            )),
            // Their patience is kept by `Health`.
            RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => Verdict::Heals,
            _ => self.access.refusal(code, topic, Right::Read).map_or(Verdict::Heals, Verdict::Fails),
        }
    }

    /// An offset is not there, says the broker. A second question tells which side it fell off, and whether it is ours: the
    /// client fetches ahead of us and may report an offset that nobody wants any more.
    fn judge_gap(&self, topic: &str, partition: i32, at: i64, gap: Code) -> Verdict {
        match self.watermarks(topic, partition, QUERY_TIMEOUT) {
            Ok((low, high)) if at < low || at > high => {
                Verdict::Fails(gap_error(topic, partition, at, (low, high), gap))
            }
            Ok(_) => Verdict::Stopped,
            Err(error) => Verdict::Fails(error),
        }
    }
}

enum Verdict {
    /// librdkafka goes on by itself.
    Heals,
    /// librdkafka stopped fetching, but where we stand there is something to read: assign again.
    Stopped,
    Fails(Error),
}

fn gap_error(topic: &str, partition: i32, at: i64, (low, high): (i64, i64), code: Code) -> Error {
    let side = if at < low { "was deleted from it" } else { "is beyond its end" };
    Error::halt(code, format!("topic {topic:?} partition {partition}: offset {at} {side}"), "lockstep resync --all")
        .fact(format!("low watermark {low}"))
        .fact(format!("high watermark {high}"))
}

fn one_partition(topic: &str, partition: i32, offset: i64) -> Result<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))
        .map_err(|error| Error::retry(format!("assigning offset {offset} of topic {topic:?}"), error))?;
    Ok(list)
}

/// Follows one partition from an offset, on a thread of its own.
pub struct Tail {
    entries: mpsc::Receiver<Result<Entry>>,
    reader: Arc<Reader>,
    topic: String,
    partition: i32,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tail {
    /// Begins at offset `from`, which is not below the low watermark and not above the high one; `gap` is the code of the halt
    /// if it is.
    pub fn open(kafka: &config::Kafka, topic: &str, partition: i32, from: i64, gap: Code) -> Result<Tail> {
        let reader = Arc::new(Reader::open(kafka, &settings(kafka, "tail", TAIL_QUEUE_BYTES))?);
        reader.assign(topic, partition, from)?;
        let (sender, entries) = mpsc::channel(TAIL_ENTRIES);
        let stop = Arc::new(AtomicBool::new(false));
        let follow = Follow {
            reader: reader.clone(),
            topic: topic.to_owned(),
            partition,
            next: from,
            gap,
            stop: stop.clone(),
            sender,
        };
        let thread = std::thread::Builder::new()
            .name("kafka-tail".into())
            .spawn(move || follow.run())
            .map_err(|error| Error::retry("starting a thread to read from Kafka", error))?;
        Ok(Tail { entries, reader, topic: topic.to_owned(), partition, stop, thread: Some(thread) })
    }

    /// The next entry. After an error the tail is finished. Safe to drop and call again.
    pub async fn recv(&mut self) -> Result<Entry> {
        match self.entries.recv().await {
            Some(entry) => entry,
            None => Err(self.finished()),
        }
    }

    /// The next entry, if one is there.
    pub fn try_recv(&mut self) -> Result<Option<Entry>> {
        match self.entries.try_recv() {
            Ok(entry) => entry.map(Some),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => Err(self.finished()),
        }
    }

    fn finished(&self) -> Error {
        Error::retry_plain(format!("the reader of topic {:?} has ended", self.topic))
    }

    /// Low and high watermark of the partition. Blocks.
    pub fn watermarks(&self, timeout: Duration) -> Result<(i64, i64)> {
        self.reader.watermarks(&self.topic, self.partition, timeout)
    }

    pub fn health(&self) -> Health {
        self.reader.health.clone()
    }

    pub fn last_error(&self) -> Option<String> {
        self.reader.health.last_error()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Frees the thread if it waits for room.
        self.entries.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!(topic = self.topic, "the reader's thread had panicked");
        }
    }
}

/// The thread behind a [`Tail`].
struct Follow {
    reader: Arc<Reader>,
    topic: String,
    partition: i32,
    next: i64,
    gap: Code,
    stop: Arc<AtomicBool>,
    sender: mpsc::Sender<Result<Entry>>,
}

impl Follow {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let Some(outcome) = self.step().transpose() else { continue };
            let last = outcome.is_err();
            if self.sender.blocking_send(outcome).is_err() || last {
                return;
            }
        }
    }

    fn step(&mut self) -> Result<Option<Entry>> {
        match self.reader.consumer.poll(TAIL_POLL) {
            None => self.reader.health.verdict().map_or(Ok(None), Err),
            // Read again after a change of leader.
            Some(Ok(message)) if message.offset() < self.next => Ok(None),
            Some(Ok(message)) => {
                self.next = message.offset() + 1;
                Ok(Some(Entry::of(&message)))
            }
            Some(Err(error)) => match self.reader.judge(error, &self.topic, self.partition, self.next, self.gap) {
                Verdict::Heals => Ok(None),
                Verdict::Stopped => self.reader.assign(&self.topic, self.partition, self.next).map(|()| None),
                Verdict::Fails(error) => Err(error),
            },
        }
    }
}

/// The entries of one partition at offsets from `from` (`None`: the first there is) up to and without `to`. Blocks; for
/// starts, where the end is known and the piece is small.
pub fn read_all(
    kafka: &config::Kafka,
    topic: &str,
    partition: i32,
    from: Option<i64>,
    to: i64,
    gap: Code,
) -> Result<Vec<Entry>> {
    let mut settings = settings(kafka, "read", TAIL_QUEUE_BYTES);
    // The end of the partition is the only sign that offsets below `to` hold nothing more.
    settings.set("enable.partition.eof", "true");
    let reader = Reader::open(kafka, &settings)?;
    let (low, high) = reader.watermarks(topic, partition, QUERY_TIMEOUT)?;
    let from = from.unwrap_or(low);
    if from < low || to > high {
        let at = if from < low { from } else { to };
        return Err(gap_error(topic, partition, at, (low, high), gap));
    }
    let mut entries = Vec::new();
    if from >= to {
        return Ok(entries);
    }
    reader.assign(topic, partition, from)?;
    let mut next = from;
    let mut heard = Instant::now();
    while next < to {
        match reader.consumer.poll(TAIL_POLL) {
            None => {
                if let Some(error) = reader.health.verdict() {
                    return Err(error);
                }
                if heard.elapsed() > READ_STALL {
                    let why = reader.health.last_error().unwrap_or_default();
                    return Err(Error::retry_plain(format!("reading topic {topic:?}: nothing arrives {why}")));
                }
            }
            Some(Ok(message)) => {
                heard = Instant::now();
                if message.offset() >= next && message.offset() < to {
                    entries.push(Entry::of(&message));
                }
                next = next.max(message.offset() + 1);
            }
            // The end was at or beyond `to` before we began, so everything below it has been seen.
            Some(Err(KafkaError::PartitionEOF(_))) => break,
            Some(Err(error)) => match reader.judge(error, topic, partition, next, gap) {
                Verdict::Heals => {}
                Verdict::Stopped => reader.assign(topic, partition, next)?,
                Verdict::Fails(error) => return Err(error),
            },
        }
    }
    Ok(entries)
}

/// Low and high watermark of a partition, over a connection of its own. Blocks.
pub fn watermarks(kafka: &config::Kafka, topic: &str, partition: i32, timeout: Duration) -> Result<(i64, i64)> {
    Reader::open(kafka, &settings(kafka, "watermarks", TAIL_QUEUE_BYTES))?.watermarks(topic, partition, timeout)
}

/// Connects to find out why a call failed: the halt, if Kafka refuses our credentials or we refuse its certificate. Blocks
/// until a broker is up, the answer is known, or `timeout`.
pub(super) fn refusal(kafka: &config::Kafka, timeout: Duration) -> Option<Error> {
    let reader = Reader::open(kafka, &settings(kafka, "probe", TAIL_QUEUE_BYTES)).ok()?;
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline && reader.health.brokers_up() == 0 {
        // Only for the callbacks.
        drop(reader.consumer.poll(TAIL_POLL));
        if let Some(refusal) = reader.health.verdict_after(Duration::ZERO) {
            return Some(refusal);
        }
    }
    None
}

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
}

impl Spans {
    /// `bytes_max`: what may be fetched ahead, all partitions together, while no more than eight of them are busy.
    pub fn open(kafka: &config::Kafka, bytes_max: usize) -> Result<Spans> {
        let share = (bytes_max / BUSY_PARTITIONS).max(QUEUE_BYTES_MIN);
        let reader = Reader::open(kafka, &settings(kafka, "spans", share))?;
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

    /// The next record of the partition in offset order; `None` if none came within `timeout`. Records of several partitions
    /// can be held at once.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_never_reset_commit_or_skip_checks() {
        let settings = settings(&crate::kafka::tests::kafka("b:1"), "spans", 2 << 20);
        for (key, value) in [
            ("group.id", "lockstep.spans"),
            ("isolation.level", "read_uncommitted"),
            ("check.crcs", "true"),
            ("auto.offset.reset", "error"),
            ("enable.auto.commit", "false"),
            ("allow.auto.create.topics", "false"),
            ("queued.max.messages.kbytes", "2048"),
        ] {
            assert_eq!(settings.get(key), Some(value), "{key}");
        }
    }

    #[test]
    fn a_gap_says_which_side_the_offset_fell_off() {
        let below = gap_error("t", 0, 4, (5, 9), Code::LedgerTrimmed);
        assert_eq!(
            below.to_string(),
            "error[LEDGER_TRIMMED]: topic \"t\" partition 0: offset 4 was deleted from it\n  low watermark 5\n  high \
             watermark 9\n  help: lockstep resync --all"
        );
        assert!(gap_error("t", 0, 10, (5, 9), Code::TopicGap).to_string().contains("is beyond its end"));
    }
}
