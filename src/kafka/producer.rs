//! Writes records and says which offsets they got.
//!
//! One thread owns a [`Producer`] and calls [`Producer::send`]; acknowledgements come in on librdkafka's polling thread, are
//! merged there into runs and wait until the owner takes them. No allocation per record for bookkeeping: what an
//! acknowledgement needs to say (route and token) travels through librdkafka as one word.
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

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};
use tokio::sync::Notify;
use tracing::warn;

use super::health::ProducerId;
use super::{Access, Health, RECORD_OVERHEAD_BYTES, Right, client, codec, unmade};
use crate::config;
use crate::error::{Code, Error, Halt, Result};

/// Tokens are packed with the route into one 64-bit word.
const TOKEN_BITS: u32 = 48;
const ROUTES_MAX: usize = 1 << (64 - TOKEN_BITS);

/// Large enough that compression and requests are paid per thousand records; beyond it nothing was gained.
const BATCH_BYTES: usize = 1_000_000;

/// Memory of a record in flight besides its key and value: librdkafka's message and header structures and our headers.
const IN_FLIGHT_OVERHEAD_BYTES: usize = 256;

/// librdkafka's limits for message.max.bytes.
const MESSAGE_BYTES_RANGE: std::ops::RangeInclusive<usize> = 1000..=1_000_000_000;

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
pub struct Route(u16);

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
    pub headers: &'a [(&'a str, &'a [u8])],
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
    inner: ThreadedProducer<Reports>,
    reports: Reports,
    topics: Vec<Arc<str>>,
    in_flight_bytes_max: usize,
    record_bytes_max: usize,
}

impl Producer {
    /// Makes the client; connecting goes on in the background.
    pub fn open(kafka: &config::Kafka, purpose: Purpose) -> Result<Producer> {
        let reports = Reports::new(Access::new(kafka));
        let inner =
            settings(kafka, purpose).create_with_context::<_, ThreadedProducer<_>>(reports.clone()).map_err(unmade)?;
        Ok(Producer {
            inner,
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
            self.reports.lock().topics.push(Lane { topic, partitions: Vec::new() });
            self.topics.len() - 1
        });
        Route(u16::try_from(index).expect("checked against ROUTES_MAX"))
    }

    /// Queues a record. The bytes are copied, so the caller's buffers are free again.
    ///
    /// Fails once faulted, and for a record larger than `record_bytes_max`.
    pub fn send(&mut self, message: &Message<'_>) -> Result<Sent> {
        if self.reports.0.faulted.load(Ordering::Acquire) {
            return Err(self.reports.fault());
        }
        let bytes = in_flight_bytes(message.key, message.value);
        let before = self.reports.0.in_flight.fetch_add(bytes, Ordering::AcqRel);
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
            bytes += name.len() + value.len() + 10;
        }
        if bytes <= self.record_bytes_max {
            return Ok(());
        }
        let access = &self.reports.0.access;
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
        if !message.headers.is_empty() {
            let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
            for (key, value) in message.headers {
                headers = headers.insert(Header { key, value: Some(*value) });
            }
            record.headers = Some(headers);
        }
        let Err((error, _)) = self.inner.send(record) else { return Ok(Sent::Queued) };
        let access = &self.reports.0.access;
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => Ok(Sent::Full),
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => Err(too_large(access, topic, None)),
            // The fault's own words say more than "fatal".
            Some(RDKafkaErrorCode::Fatal) if self.reports.0.faulted.load(Ordering::Acquire) => {
                Err(self.reports.fault())
            }
            _ => Err(access.failed(error, "sending a record to", topic, Right::Write)),
        }
    }

    /// Keys and values sent and not yet acknowledged, with an estimate of what a record needs besides. When it is 0, the
    /// acknowledgements of everything sent are there to take.
    pub fn in_flight_bytes(&self) -> usize {
        self.reports.0.in_flight.load(Ordering::Acquire)
    }

    /// Connections, for the status page and metrics.
    pub fn health(&self) -> Health {
        self.reports.0.health.clone()
    }

    /// Resolves when acknowledgements are waiting or the producer has faulted; at once if so. Safe to drop and call again.
    pub async fn acked(&self) {
        while !self.reports.lock().news() {
            self.reports.0.notify.notified().await;
        }
    }

    /// Appends what was acknowledged since the last call. Fails once faulted.
    pub fn take_acks(&self, into: &mut Vec<Ack>) -> Result<()> {
        let mut state = self.reports.lock();
        into.append(&mut state.runs);
        state.round += 1;
        match &state.fault {
            None => Ok(()),
            Some(fault) => Err(fault.error()),
        }
    }

    /// Waits until all is acknowledged, a fault or the end of `timeout`; what is then unsent is thrown away. Blocks the
    /// calling thread for `timeout` at most.
    pub fn close(self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while self.in_flight_bytes() > 0 && !self.reports.0.faulted.load(Ordering::Acquire) && Instant::now() < deadline
        {
            // Not `flush`: librdkafka's event interface makes it poll in steps of 100 ms.
            std::thread::sleep(Duration::from_millis(2));
        }
        self.inner.purge(PurgeConfig::default().queue().inflight().non_blocking());
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
            tracing::debug!("the producer is being closed in the background");
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.reports.0.closing.store(true, Ordering::Release);
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

fn too_large(access: &Access, topic: &str, bytes: Option<usize>) -> Error {
    let found = bytes.map_or("a record".to_owned(), |bytes| format!("a record of {bytes} bytes"));
    let wanted = bytes.map_or("N".to_owned(), |bytes| bytes.next_power_of_two().to_string());
    Error::halt(
        Code::RecordTooLarge,
        format!("{found} is larger than topic {topic:?} may hold"),
        format!(
            "kafka-configs.sh --bootstrap-server {} --alter --entity-type topics --entity-name {topic} --add-config \
             max.message.bytes={wanted}, then record_bytes_max = {wanted} under [kafka] in lockstep.toml",
            access.brokers
        ),
    )
}

fn in_flight_bytes(key: Option<&[u8]>, value: Option<&[u8]>) -> usize {
    key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len) + IN_FLIGHT_OVERHEAD_BYTES
}

const _: () = assert!(usize::BITS == 64, "route and token travel in one pointer");

fn pack(route: Route, token: u64) -> usize {
    assert!(token < 1 << TOKEN_BITS, "token {token} has more than {TOKEN_BITS} bits");
    // 64 bits, asserted above.
    #[allow(clippy::cast_possible_truncation)]
    let word = (u64::from(route.0) << TOKEN_BITS | token) as usize;
    word
}

fn unpack(word: usize) -> (Route, u64) {
    let word = word as u64;
    let route = u16::try_from(word >> TOKEN_BITS).expect("16 bits are left");
    (Route(route), word & ((1 << TOKEN_BITS) - 1))
}

/// What librdkafka's polling thread reports and the owner takes.
#[derive(Clone)]
struct Reports(Arc<Shared>);

struct Shared {
    access: Access,
    health: Health,
    in_flight: AtomicUsize,
    /// Set with `State::fault`; looked at for every record, so outside the lock.
    faulted: AtomicBool,
    /// Being thrown away: failures are our own doing.
    closing: AtomicBool,
    notify: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    runs: Vec<Ack>,
    /// Counts the calls of `take_acks`: tells whether a run is still here.
    round: u64,
    topics: Vec<Lane>,
    fault: Option<Fault>,
    producer_id: Option<ProducerId>,
}

struct Lane {
    topic: Arc<str>,
    partitions: Vec<Partition>,
}

#[derive(Clone, Copy)]
struct Partition {
    /// Last acknowledged offset, -1 before the first.
    last: i64,
    /// The newest run of this partition is `runs[run]`, if its round is the current one.
    run: usize,
    round: u64,
}

#[derive(Debug, Clone)]
enum Fault {
    /// Ends the epoch.
    Broken(String),
    Halted(Halt),
}

impl Fault {
    fn error(&self) -> Error {
        match self {
            Fault::Broken(words) => Error::retry_plain(words.clone()),
            Fault::Halted(halt) => halt.clone().into(),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        match error {
            Error::Halt(halt) => Fault::Halted(*halt),
            error @ Error::Retry(_) => Fault::Broken(error.chain()),
        }
    }
}

impl State {
    fn news(&self) -> bool {
        !self.runs.is_empty() || self.fault.is_some()
    }

    /// One acknowledged record. `Err` says what is wrong with it.
    fn acknowledge(&mut self, route: Route, partition: i32, token: u64, offset: i64) -> Result<(), String> {
        let lane = &mut self.topics[route.index()];
        let Ok(index) = usize::try_from(partition) else {
            return Err(format!("topic {:?}: acknowledged for partition {partition}", lane.topic));
        };
        if index >= lane.partitions.len() {
            lane.partitions.resize(index + 1, Partition { last: -1, run: 0, round: u64::MAX });
        }
        let seen = &mut lane.partitions[index];
        if offset <= seen.last {
            let Partition { last, .. } = *seen;
            return Err(format!(
                "topic {:?} partition {partition}: offset {offset} acknowledged after {last}, Kafka lost records",
                lane.topic
            ));
        }
        seen.last = offset;
        if seen.round == self.round {
            let run = &mut self.runs[seen.run];
            if run.token == token {
                run.last = offset;
                run.count += 1;
                return Ok(());
            }
        }
        (seen.run, seen.round) = (self.runs.len(), self.round);
        self.runs.push(Ack { route, partition, token, first: offset, last: offset, count: 1 });
        Ok(())
    }

    /// The id that Kafka knows this producer by must stay: a new one means that the old one's state was lost.
    fn see_producer_id(&mut self, id: ProducerId) -> Result<(), String> {
        if id.producer_id < 0 {
            return Ok(());
        }
        match self.producer_id.replace(id) {
            Some(before) if before != id => Err(format!(
                "Kafka gave this producer another id ({} instead of {}): it lost the old one's state",
                id.producer_id, before.producer_id
            )),
            _ => Ok(()),
        }
    }
}

impl Reports {
    fn new(access: Access) -> Reports {
        Reports(Arc::new(Shared {
            health: Health::new(access.clone()),
            access,
            in_flight: AtomicUsize::new(0),
            faulted: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            notify: Notify::new(),
            state: Mutex::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, bytes: usize) {
        let before = self.0.in_flight.fetch_sub(bytes, Ordering::AcqRel);
        assert!(before >= bytes, "more bytes acknowledged than sent");
    }

    fn fault(&self) -> Error {
        self.lock().fault.as_ref().map_or_else(|| Error::retry_plain("the producer has faulted"), Fault::error)
    }

    /// The first fault counts, except that a named halt says more than what follows from it.
    fn set_fault(&self, fault: Fault) {
        if self.0.closing.load(Ordering::Acquire) {
            return;
        }
        {
            let mut state = self.lock();
            match (&state.fault, &fault) {
                (None, _) | (Some(Fault::Broken(_)), Fault::Halted(_)) => state.fault = Some(fault),
                _ => return,
            }
        }
        self.0.faulted.store(true, Ordering::Release);
        self.0.notify.notify_one();
    }

    fn delivered(&self, route: Route, partition: i32, token: u64, offset: i64, bytes: usize) {
        let outcome = {
            let mut state = self.lock();
            // Under the lock: whoever takes this acknowledgement must find its room free, or would wait for one that never
            // comes.
            self.release(bytes);
            if state.fault.is_some() {
                return;
            }
            // Only the first news wakes: the owner takes all there is.
            let quiet = state.runs.is_empty();
            state.acknowledge(route, partition, token, offset).map(|()| quiet)
        };
        match outcome {
            Ok(true) => self.0.notify.notify_one(),
            Ok(false) => {}
            Err(words) => self.set_fault(Fault::Broken(words)),
        }
    }

    fn undelivered(&self, route: Route, error: &KafkaError) {
        let topic = self.lock().topics[route.index()].topic.clone();
        let access = &self.0.access;
        self.set_fault(match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => too_large(access, &topic, None).into(),
            // Swept away with the record that failed, or by us.
            Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) => {
                Fault::Broken(format!("records to topic {topic:?} were thrown away"))
            }
            _ => access.failed(error.clone(), "writing to topic", &topic, Right::Write).into(),
        });
    }

    /// librdkafka gave up for good. Its words name the reason, which can be one of those that waiting can't heal.
    fn fatal(&self, reason: &str) {
        let access = &self.0.access;
        let names = |code: RDKafkaErrorCode| reason.contains(&code.to_string());
        // `ProduceRequest for TOPIC [0] with 1 message(s) failed: …`
        let topic = reason.split_once("ProduceRequest for ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or("");
        let halts = [
            RDKafkaErrorCode::TopicAuthorizationFailed,
            RDKafkaErrorCode::ClusterAuthorizationFailed,
            RDKafkaErrorCode::UnknownTopicOrPartition,
        ];
        let halt = if names(RDKafkaErrorCode::MessageSizeTooLarge) {
            Some(too_large(access, topic, None))
        } else {
            halts.into_iter().filter(|code| names(*code)).find_map(|code| access.refusal(code, topic, Right::Write))
        };
        self.set_fault(match halt {
            Some(error) => error.fact(reason).into(),
            None => Fault::Broken(format!("the Kafka producer gave up: {reason}")),
        });
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Health::log(level, facility, message);
    }

    fn stats_raw(&self, json: &[u8]) {
        let id = self.0.health.read_statistics(json).and_then(|statistics| statistics.eos);
        if let Some(Err(words)) = id.map(|id| self.lock().see_producer_id(id)) {
            self.set_fault(Fault::Broken(words));
        }
        if let Some(error) = self.0.health.verdict() {
            self.set_fault(error.into());
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.fatal(reason);
        }
        self.0.health.note(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, word: usize) {
        let (route, token) = unpack(word);
        match result {
            Ok(message) => {
                let bytes = in_flight_bytes(message.key(), message.payload());
                self.delivered(route, message.partition(), token, message.offset(), bytes);
            }
            Err((error, message)) => {
                self.undelivered(route, error);
                self.release(in_flight_bytes(message.key(), message.payload()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(topics: usize) -> State {
        let lane = |i| Lane { topic: format!("t{i}").into(), partitions: Vec::new() };
        State { topics: (0..topics).map(lane).collect(), ..State::default() }
    }

    fn ack(route: u16, partition: i32, token: u64, first: i64, last: i64, count: u64) -> Ack {
        Ack { route: Route(route), partition, token, first, last, count }
    }

    #[test]
    fn route_and_token_travel_in_one_word() {
        for (route, token) in [(0, 0), (1, 7), (u16::MAX, (1 << 48) - 1)] {
            assert_eq!(unpack(pack(Route(route), token)), (Route(route), token));
        }
    }

    #[test]
    fn acknowledgements_merge_into_runs_of_one_token_even_when_partitions_alternate() {
        let mut state = state(2);
        for (route, partition, token, offset) in
            [(0, 0, 1, 10), (0, 1, 1, 5), (0, 0, 1, 11), (1, 0, 1, 0), (0, 1, 1, 8), (0, 0, 2, 12), (0, 0, 2, 13)]
        {
            state.acknowledge(Route(route), partition, token, offset).unwrap();
        }
        assert_eq!(
            state.runs,
            [ack(0, 0, 1, 10, 11, 2), ack(0, 1, 1, 5, 8, 2), ack(1, 0, 1, 0, 0, 1), ack(0, 0, 2, 12, 13, 2)]
        );
        state.runs.clear();
        state.round += 1;
        state.acknowledge(Route(0), 0, 2, 14).unwrap();
        assert_eq!(state.runs, [ack(0, 0, 2, 14, 14, 1)]);
    }

    #[test]
    fn an_offset_that_does_not_rise_or_is_missing_is_a_fault() {
        let mut state = state(1);
        state.acknowledge(Route(0), 0, 1, 10).unwrap();
        assert!(state.acknowledge(Route(0), 0, 1, 10).unwrap_err().contains("offset 10 acknowledged after 10"));
        assert!(state.acknowledge(Route(0), 0, 1, -1001).is_err());
        assert!(state.acknowledge(Route(0), -1, 1, 11).is_err());
        state.acknowledge(Route(0), 0, 1, 11).unwrap();
    }

    #[test]
    fn only_the_first_producer_id_is_welcome() {
        let id = |producer_id, producer_epoch| ProducerId { producer_id, producer_epoch };
        let mut state = state(0);
        for known in [id(-1, -1), id(7, 0), id(7, 0), id(-1, -1)] {
            state.see_producer_id(known).unwrap();
        }
        assert!(state.see_producer_id(id(8, 0)).is_err());
        assert!(state.see_producer_id(id(8, 1)).is_err());
    }

    #[test]
    fn a_named_halt_replaces_the_vague_fault_that_it_causes_and_nothing_else_does() {
        let access = Access { brokers: "b:1".into(), user: None, mechanism: String::new() };
        let reports = Reports::new(access);
        reports.set_fault(Fault::Broken("first".into()));
        reports.set_fault(Fault::Broken("second".into()));
        assert_eq!(reports.fault().to_string(), "first");
        reports.fatal("Fatal error: gapless: ProduceRequest for a.b [0] with 1 message(s) failed: Broker: Message size too large (broker 1)");
        let error = reports.fault();
        assert_eq!(error.code(), Some(Code::RecordTooLarge));
        assert!(error.to_string().contains("--entity-name a.b "), "{error}");
        reports.set_fault(Fault::Broken("third".into()));
        assert_eq!(reports.fault().code(), Some(Code::RecordTooLarge));
    }

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
