//! Writes records and says which offsets they got.
//!
//! One thread owns a [`Producer`] and calls [`Producer::send`]; acknowledgements come in on the polling thread, are merged
//! there into runs and wait until the owner takes them (`reports`). No allocation per record for bookkeeping.
//!
//! Invariants:
//! - The acknowledged offsets of a partition rise, in the order of `send`. librdkafka's idempotent producer keeps the order;
//!   this room checks it, and a violation is a fault, as is an acknowledgement without an offset or a changed producer id: each
//!   means that Kafka lost something or that somebody else's records stand between.
//! - After a fault nothing is acknowledged any more: [`Producer::take_acks`] and [`Producer::send`] fail until the owner makes a
//!   new producer under a new epoch. There is no way to skip a failed record.
//! - What is in flight is limited here, by bytes, not by librdkafka's own queue limits: those are freed some time after the
//!   acknowledgement is seen, so waiting for them could wait for ever. They are set to what can never be reached.
//!
//! Deliberately not here: retries (librdkafka's, without end), checkpoints and epochs (capture's), serialisation.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, PurgeConfig};
use tracing::{debug, warn};

use super::reports::{ROUTES_MAX, Reports, in_flight_bytes, pack, too_large};
use super::{Access, Health, RECORD_OVERHEAD_BYTES, Right, client, codec, unmade};
use crate::config;
use crate::error::{Error, Result};

/// Large enough that compression and requests are paid per thousand records; beyond it nothing was gained.
const BATCH_BYTES: usize = 1_000_000;

/// librdkafka's limits for message.max.bytes.
const MESSAGE_BYTES_RANGE: std::ops::RangeInclusive<usize> = 1000..=1_000_000_000;

/// How long the polling thread takes at most to see that it shall stop. Events wake it at once. Not shorter: the crate rounds
/// what is left of it down to milliseconds and so spins through the last one, a share of a core for every producer.
const POLL: Duration = Duration::from_millis(100);

/// How long the polling thread may wait for a first broker before it polls.
const FIRST_ANSWER: Duration = Duration::from_secs(1);

/// The key of a record that is too large is shown up to here, so that its row can be found.
const KEY_SHOWN_BYTES: usize = 200;

/// What a producer is for: bulk waits a little for company, a checkpoint must go at once (its delay is paid twice otherwise).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Linger from the configuration, compressed.
    Data,
    /// No linger.
    Ledger,
}

/// A registered topic of one producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route(pub(super) u16);

impl Route {
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    pub route: Route,
    /// `None`: by the key, as Java's default does. Records without a key name their partition.
    pub partition: Option<i32>,
    pub key: Option<&'a [u8]>,
    /// `None`: a tombstone.
    pub value: Option<&'a [u8]>,
    /// A header without a value is one too.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
    /// Milliseconds since 1970; `None`: the moment of sending, which costs a look at the clock.
    pub timestamp_ms: Option<i64>,
    /// Comes back with the acknowledgement; below 2^48. The checkpoint interval that the record belongs to.
    pub token: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    Queued,
    /// Nothing was taken: wait for acknowledgements, then send again.
    Full,
}

/// A run of acknowledged records: every record of this token sent to the partition so far and not in an earlier run, in the
/// order they were sent. Offsets rise; `count` is smaller than `last - first + 1` where something else stands between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    pub route: Route,
    pub partition: i32,
    pub token: u64,
    pub first: i64,
    pub last: i64,
    pub count: u64,
}

pub struct Producer {
    inner: Arc<BaseProducer<Reports>>,
    polling: Option<JoinHandle<()>>,
    reports: Reports,
    topics: Vec<Arc<str>>,
    in_flight_bytes_max: usize,
    record_bytes_max: usize,
}

impl Producer {
    /// Makes the client; connecting goes on in the background.
    pub fn open(kafka: &config::Kafka, purpose: Purpose) -> Result<Producer> {
        let reports = Reports::new(Access::new(kafka));
        let inner: BaseProducer<_> =
            settings(kafka, purpose).create_with_context(reports.clone()).map_err(unmade(kafka))?;
        let inner = Arc::new(inner);
        let polled = inner.clone();
        let ledger = kafka.ledger.clone();
        let polling = std::thread::Builder::new()
            .name("kafka-producer".into())
            .spawn(move || poll(&polled, &ledger))
            .map_err(|error| Error::retry("starting a thread for the Kafka producer", error))?;
        Ok(Producer {
            inner,
            polling: Some(polling),
            reports,
            topics: Vec::new(),
            in_flight_bytes_max: kafka.in_flight_bytes_max,
            record_bytes_max: kafka.record_bytes_max,
        })
    }

    /// Registers a topic; the same name gives the same route.
    pub fn route(&mut self, topic: &str) -> Route {
        let index = self.topics.iter().position(|known| &**known == topic).unwrap_or_else(|| {
            assert!(self.topics.len() < ROUTES_MAX, "more than {ROUTES_MAX} topics in one producer");
            let topic: Arc<str> = topic.into();
            self.topics.push(topic.clone());
            self.reports.add_route(topic);
            self.topics.len() - 1
        });
        Route(u16::try_from(index).expect("checked against ROUTES_MAX"))
    }

    /// Queues a record. The bytes are copied, so the caller's buffers are free again.
    ///
    /// Fails once faulted, and for a record larger than `record_bytes_max`.
    pub fn send(&mut self, message: &Message<'_>) -> Result<Sent> {
        if self.reports.faulted() {
            return Err(self.reports.fault());
        }
        let bytes = in_flight_bytes(message.key, message.value);
        let before = self.reports.reserve(bytes);
        // A record larger than the whole limit goes alone.
        if before > 0 && before + bytes > self.in_flight_bytes_max {
            self.reports.release(bytes);
            return Ok(Sent::Full);
        }
        let sent = self.check_size(message).and_then(|()| self.produce(message));
        if !matches!(sent, Ok(Sent::Queued)) {
            self.reports.release(bytes);
        }
        sent
    }

    fn check_size(&self, message: &Message<'_>) -> Result<()> {
        let mut bytes =
            RECORD_OVERHEAD_BYTES + message.key.map_or(0, <[u8]>::len) + message.value.map_or(0, <[u8]>::len);
        for (name, value) in message.headers {
            // Two lengths of at most five bytes each.
            bytes += name.len() + value.map_or(0, <[u8]>::len) + 10;
        }
        if bytes <= self.record_bytes_max {
            return Ok(());
        }
        let access = self.reports.access();
        let topic = &self.topics[message.route.index()];
        let error = too_large(access, topic, Some(bytes))
            .fact(format!("record_bytes_max = {} under [kafka] in lockstep.toml", self.record_bytes_max));
        Err(match message.key {
            None => error,
            Some(key) => {
                let shown = &key[..key.len().min(KEY_SHOWN_BYTES)];
                error.fact(format!("the record's key: {}", String::from_utf8_lossy(shown)))
            }
        })
    }

    fn produce(&self, message: &Message<'_>) -> Result<Sent> {
        let topic: &str = &self.topics[message.route.index()];
        let mut record = BaseRecord::with_opaque_to(topic, pack(message.route, message.token));
        record.partition = message.partition;
        record.key = message.key;
        record.payload = message.value;
        record.timestamp = message.timestamp_ms;
        if !message.headers.is_empty() {
            let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
            for (key, value) in message.headers {
                headers = headers.insert(Header { key, value: *value });
            }
            record.headers = Some(headers);
        }
        let Err((error, _)) = self.inner.send(record) else { return Ok(Sent::Queued) };
        let access = self.reports.access();
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => Ok(Sent::Full),
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => Err(too_large(access, topic, None)),
            // The fault's own words say more than "fatal".
            Some(RDKafkaErrorCode::Fatal) if self.reports.faulted() => Err(self.reports.fault()),
            _ => Err(access.failed(error, "sending a record to", topic, Right::Write)),
        }
    }

    /// Keys and values sent and not yet acknowledged, with an estimate of what a record needs besides. When it is 0, the
    /// acknowledgements of everything sent are there to take.
    pub fn in_flight_bytes(&self) -> usize {
        self.reports.in_flight()
    }

    /// Connections, for the status page and metrics.
    pub fn health(&self) -> Health {
        self.reports.health()
    }

    /// Resolves when acknowledgements are waiting or the producer has faulted; at once if so. Safe to drop and call again.
    pub async fn acked(&self) {
        self.reports.news().await;
    }

    /// Appends what was acknowledged since the last call. Fails once faulted.
    pub fn take_acks(&self, into: &mut Vec<Ack>) -> Result<()> {
        self.reports.take(into)
    }

    /// Waits until all is acknowledged, a fault or the end of `timeout`; what is then unsent is thrown away. Blocks the
    /// calling thread for `timeout` at most.
    pub fn close(self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while self.in_flight_bytes() > 0 && !self.reports.faulted() && Instant::now() < deadline {
            // Not `flush`: librdkafka's event interface makes it poll in steps of 100 ms.
            std::thread::sleep(Duration::from_millis(2));
        }
        self.reports.set_closing();
        // Destroying waits for librdkafka's threads, which can hang in name resolution. That must not hold a shutdown.
        let (done, destroyed) = std::sync::mpsc::channel::<()>();
        let reaper = std::thread::Builder::new().name("kafka-close".into()).spawn(move || {
            drop(self);
            drop(done);
        });
        if let Err(error) = reaper {
            warn!(%error, "no thread to close the producer, closed in place");
            return;
        }
        if destroyed.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            debug!("the producer is being closed in the background");
        }
    }
}

impl Drop for Producer {
    /// Throws away what is unsent and waits for librdkafka's threads.
    fn drop(&mut self) {
        self.reports.set_closing();
        self.inner.purge(PurgeConfig::default().queue().inflight().non_blocking());
        if let Some(thread) = self.polling.take()
            && thread.join().is_err()
        {
            warn!("the producer's polling thread had panicked");
        }
    }
}

/// The polling thread: everything in [`Reports`] is called from here.
fn poll(producer: &BaseProducer<Reports>, any_topic: &str) {
    // An answer about any topic makes librdkafka ask for its producer id, which no record leaves without. By itself it looks
    // once at the start, finds no connection yet, and looks again half a second later.
    if let Err(error) = producer.client().fetch_metadata(Some(any_topic), FIRST_ANSWER) {
        debug!(%error, "no broker has answered the producer yet");
    }
    let reports: &Reports = producer.client().context();
    while !reports.closing() {
        producer.poll(POLL);
        if !reports.faulted()
            && let Some((_, reason)) = producer.client().fatal_error()
        {
            reports.fatal(&reason);
        }
    }
}

fn settings(kafka: &config::Kafka, purpose: Purpose) -> rdkafka::ClientConfig {
    let mut client = client(kafka, if purpose == Purpose::Data { "data" } else { "ledger" });
    let message_bytes_max = (kafka.record_bytes_max + RECORD_OVERHEAD_BYTES)
        .clamp(*MESSAGE_BYTES_RANGE.start(), *MESSAGE_BYTES_RANGE.end());
    // A batch is freed as a whole after its last record is reported, so twice our own limit can be held, plus one record
    // that is larger than the limit.
    let queue_kbytes = (2 * kafka.in_flight_bytes_max + message_bytes_max) / 1024 + 1;
    // The broker measures a batch against the topic's max.message.bytes, which is record_bytes_max.
    let batch_bytes = BATCH_BYTES.min(kafka.record_bytes_max);
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("enable.gapless.guarantee", "true")
        .set("message.timeout.ms", "0")
        .set("partitioner", "murmur2_random")
        .set("message.max.bytes", message_bytes_max.to_string())
        .set("batch.size", batch_bytes.to_string())
        .set("queue.buffering.max.messages", "0")
        .set("queue.buffering.max.kbytes", queue_kbytes.min(i32::MAX as usize).to_string());
    match purpose {
        Purpose::Data => client
            .set("linger.ms", format!("{}", kafka.linger.as_secs_f64() * 1000.0))
            .set("compression.type", codec(kafka.compression)),
        Purpose::Ledger => client.set("linger.ms", "0"),
    };
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_producer_is_idempotent_and_never_gives_up() {
        let mut kafka = crate::kafka::tests::kafka("b:1");
        kafka.record_bytes_max = 64 << 10;
        let data = settings(&kafka, Purpose::Data);
        for (key, value) in [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("enable.gapless.guarantee", "true"),
            ("message.timeout.ms", "0"),
            ("partitioner", "murmur2_random"),
            ("linger.ms", "5"),
            ("compression.type", "lz4"),
            ("batch.size", "65536"),
            ("message.max.bytes", "65664"),
        ] {
            assert_eq!(data.get(key), Some(value), "{key}");
        }
        let ledger = settings(&kafka, Purpose::Ledger);
        assert_eq!((ledger.get("linger.ms"), ledger.get("compression.type")), (Some("0"), None));
    }
}
