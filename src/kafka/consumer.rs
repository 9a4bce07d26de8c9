//! Reads topics: [`Tail`] follows one partition, [`Pieces`] fetches pieces of one, [`Spans`] reads named offsets of many.
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

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc;
use tracing::{debug, warn};

pub use super::spans::{Part, Record, Spans};

use super::{Access, Health, Right, client, unmade};
use crate::config;
use crate::error::{Code, Error, Result};

/// Entries handed over and not yet received. Small: entries can be half a megabyte, and librdkafka has its own queue behind.
const TAIL_ENTRIES: usize = 256;
const TAIL_QUEUE_BYTES: usize = 4 << 20;
/// How long a drop of a `Tail` may wait for its thread.
const TAIL_POLL: Duration = Duration::from_millis(50);

/// librdkafka counts the bytes of records in a queue but not its own structures around them, some 350 bytes each.
const QUEUE_RECORDS: usize = 10_000;
/// A partition that was silent for so long from its assignment on is asked about once: librdkafka says nothing when it may
/// not even see the topic.
pub(super) const SILENCE: Duration = Duration::from_secs(2);

/// How long the first question about a topic may wait: without an answer the client finds out by itself within a second.
const FIRST_ANSWER: Duration = Duration::from_secs(1);

/// For questions that a leader must answer.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// [`Pieces`] gives up when nothing at all arrived for this long.
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

pub(super) fn timestamp_ms(message: &BorrowedMessage<'_>) -> i64 {
    message.timestamp().to_millis().unwrap_or(-1)
}

/// A consumer with what its errors need to become words.
pub(super) struct Reader {
    pub(super) consumer: Arc<BaseConsumer<Events>>,
    access: Access,
    pub(super) health: Health,
}

pub(super) struct Events(Health);

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

pub(super) fn settings(kafka: &config::Kafka, purpose: &str, queue_bytes: usize) -> ClientConfig {
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
    pub(super) fn open(kafka: &config::Kafka, settings: &ClientConfig) -> Result<Reader> {
        let access = Access::new(kafka);
        let health = Health::new(access.clone());
        let consumer = settings.create_with_context(Events(health.clone())).map_err(unmade(kafka))?;
        Ok(Reader { consumer: Arc::new(consumer), access, health })
    }

    pub(super) fn watermarks(&self, topic: &str, partition: i32, timeout: Duration) -> Result<(i64, i64)> {
        self.consumer.fetch_watermarks(topic, partition, timeout).map_err(|error| {
            let refused = self.topic_refused(topic, timeout);
            refused.unwrap_or_else(|| self.access.failed(error, "asking for the offsets of topic", topic, Right::Read))
        })
    }

    /// Asking for offsets calls a topic that we may not see a missing partition; its metadata tells.
    fn topic_refused(&self, topic: &str, timeout: Duration) -> Option<Error> {
        let metadata = self.consumer.fetch_metadata(Some(topic), timeout).ok()?;
        let code = metadata.topics().first()?.error()?;
        self.access.refusal(code.into(), topic, Right::Read)
    }

    /// Makes the client ask for the topic's leaders now. By itself it looks once a second for those of topics that it has not
    /// met, so that the first record of each would come a second late.
    pub(super) fn acquaint(&self, topic: &str) {
        if let Err(error) = self.consumer.fetch_metadata(Some(topic), FIRST_ANSWER) {
            debug!(topic, %error, "no broker has told the topic's leaders yet");
        }
    }

    /// An error once waiting has become pointless.
    fn still_patient(&self, topic: &str, heard: Instant) -> Result<()> {
        if let Some(error) = self.health.verdict() {
            return Err(error);
        }
        if heard.elapsed() > READ_STALL {
            let why = self.health.last_error().unwrap_or_default();
            return Err(Error::retry_plain(format!("reading topic {topic:?}: nothing arrives {why}")));
        }
        Ok(())
    }

    /// What is behind the silence of a partition, if it is something that waiting can't heal.
    pub(super) fn ask_after_silence(&self, topic: &str, partition: i32) -> Result<()> {
        match self.watermarks(topic, partition, SILENCE) {
            Err(error @ Error::Halt(_)) => Err(error),
            Err(Error::Retry(_)) | Ok(_) => Ok(()),
        }
    }

    /// The one partition of a reader that has no others.
    fn assign(&self, topic: &str, partition: i32, from: i64) -> Result<()> {
        self.consumer
            .assign(&one_partition(topic, partition, from)?)
            .map_err(|error| Error::retry(format!("assigning topic {topic:?}"), error))
    }

    /// What an error of a partition means for a reader that stands at offset `at`.
    pub(super) fn judge(&self, error: KafkaError, topic: &str, partition: i32, at: i64, gap: Code) -> Verdict {
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

pub(super) enum Verdict {
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

pub(super) fn one_partition(topic: &str, partition: i32, offset: i64) -> Result<TopicPartitionList> {
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
        let (sender, entries) = mpsc::channel(TAIL_ENTRIES);
        let stop = Arc::new(AtomicBool::new(false));
        let follow = Follow {
            reader: reader.clone(),
            topic: topic.to_owned(),
            partition,
            next: from,
            silent_since: Some(Instant::now()),
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
    /// Until the first record came, or the silence was asked about.
    silent_since: Option<Instant>,
    gap: Code,
    stop: Arc<AtomicBool>,
    sender: mpsc::Sender<Result<Entry>>,
}

impl Follow {
    fn run(mut self) {
        // Here and not in `open`, which must not wait for a broker.
        self.reader.acquaint(&self.topic);
        if let Err(error) = self.reader.assign(&self.topic, self.partition, self.next) {
            // Refused only if nobody is left to tell.
            drop(self.sender.blocking_send(Err(error)));
            return;
        }
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
            None => {
                if self.silent_since.is_some_and(|since| since.elapsed() > SILENCE) {
                    self.silent_since = None;
                    self.reader.ask_after_silence(&self.topic, self.partition)?;
                }
                self.reader.health.verdict().map_or(Ok(None), Err)
            }
            // Read again after a change of leader.
            Some(Ok(message)) if message.offset() < self.next => Ok(None),
            Some(Ok(message)) => {
                self.next = message.offset() + 1;
                self.silent_since = None;
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

/// Reads pieces of one partition, one after the other, over one connection. Blocks; for starts, where the ends are known and
/// the pieces are small.
pub struct Pieces {
    reader: Reader,
    topic: String,
    partition: i32,
}

impl Pieces {
    pub fn open(kafka: &config::Kafka, topic: &str, partition: i32) -> Result<Pieces> {
        let mut settings = settings(kafka, "pieces", TAIL_QUEUE_BYTES);
        // The end of the partition is the only sign that offsets below `to` hold nothing more.
        settings.set("enable.partition.eof", "true");
        // Fetching ahead to the end must not hold up the next piece.
        settings.set("fetch.wait.max.ms", "5");
        Ok(Pieces { reader: Reader::open(kafka, &settings)?, topic: topic.to_owned(), partition })
    }

    /// Low and high watermark.
    pub fn watermarks(&self) -> Result<(i64, i64)> {
        self.reader.watermarks(&self.topic, self.partition, QUERY_TIMEOUT)
    }

    /// The entries at offsets from `from` (`None`: the first there is) up to and without `to`; `gap` is the code of the halt if
    /// either is not there.
    pub fn read(&mut self, from: Option<i64>, to: i64, gap: Code) -> Result<Vec<Entry>> {
        let Pieces { reader, topic, partition } = self;
        let (low, high) = reader.watermarks(topic, *partition, QUERY_TIMEOUT)?;
        let from = from.unwrap_or(low);
        if from < low || to > high {
            let at = if from < low { from } else { to };
            return Err(gap_error(topic, *partition, at, (low, high), gap));
        }
        let mut entries = Vec::new();
        if from >= to {
            return Ok(entries);
        }
        reader.assign(topic, *partition, from)?;
        let mut next = from;
        let mut heard = Instant::now();
        while next < to {
            match reader.consumer.poll(TAIL_POLL) {
                None => reader.still_patient(topic, heard)?,
                Some(Ok(message)) => {
                    heard = Instant::now();
                    if message.offset() >= next && message.offset() < to {
                        entries.push(Entry::of(&message));
                    }
                    next = next.max(message.offset() + 1);
                }
                // The end was at or beyond `to` before we began, so everything below it has been seen.
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error)) => match reader.judge(error, topic, *partition, next, gap) {
                    Verdict::Heals => {}
                    Verdict::Stopped => reader.assign(topic, *partition, next)?,
                    Verdict::Fails(error) => return Err(error),
                },
            }
        }
        Ok(entries)
    }
}

/// [`Pieces::read`] of one piece.
pub fn read_all(
    kafka: &config::Kafka,
    topic: &str,
    partition: i32,
    from: Option<i64>,
    to: i64,
    gap: Code,
) -> Result<Vec<Entry>> {
    Pieces::open(kafka, topic, partition)?.read(from, to, gap)
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
