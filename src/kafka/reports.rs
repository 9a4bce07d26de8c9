//! What librdkafka's polling thread reports about sent records, and the owner of a producer takes.
//!
//! The only place where two threads of this room meet: a lock around what is waiting to be taken, held for some tens of
//! nanoseconds a record. What an acknowledgement needs to say (route and token) travels through librdkafka as one word.
//!
//! Invariants: the acknowledged offsets of a partition rise; room is free when its acknowledgement can be seen; after the first
//! fault nothing more is acknowledged, and the fault stays.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{DeliveryResult, ProducerContext};
use tokio::sync::Notify;

use super::health::ProducerId;
use super::producer::{Ack, Route};
use super::{Access, Health, Right};
use crate::error::{Code, Error, Halt, Result};

/// Tokens are packed with the route into one 64-bit word.
const TOKEN_BITS: u32 = 48;
pub(super) const ROUTES_MAX: usize = 1 << (64 - TOKEN_BITS);

/// Memory of a record in flight besides its key and value: librdkafka's message and header structures and our headers.
const IN_FLIGHT_OVERHEAD_BYTES: usize = 256;

pub(super) fn too_large(access: &Access, topic: &str, bytes: Option<usize>) -> Error {
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

pub(super) fn in_flight_bytes(key: Option<&[u8]>, value: Option<&[u8]>) -> usize {
    key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len) + IN_FLIGHT_OVERHEAD_BYTES
}

const _: () = assert!(usize::BITS == 64, "route and token travel in one pointer");

pub(super) fn pack(route: Route, token: u64) -> usize {
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
pub(super) struct Reports(Arc<Shared>);

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
    /// Records to this topic were thrown away, and nothing said why yet.
    swept: Option<Arc<str>>,
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

/// librdkafka's words for a code; the crate shows them as `Name (words)`.
fn words(code: RDKafkaErrorCode) -> String {
    let shown = code.to_string();
    match shown.split_once(" (").and_then(|(_, words)| words.strip_suffix(')')) {
        Some(words) => words.to_owned(),
        None => shown,
    }
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
    pub(super) fn new(access: Access) -> Reports {
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

    pub(super) fn access(&self) -> &Access {
        &self.0.access
    }

    pub(super) fn health(&self) -> Health {
        self.0.health.clone()
    }

    pub(super) fn add_route(&self, topic: Arc<str>) {
        self.lock().topics.push(Lane { topic, partitions: Vec::new() });
    }

    pub(super) fn in_flight(&self) -> usize {
        self.0.in_flight.load(Ordering::Acquire)
    }

    /// Takes room for a record; returns what was in flight before it.
    pub(super) fn reserve(&self, bytes: usize) -> usize {
        self.0.in_flight.fetch_add(bytes, Ordering::AcqRel)
    }

    pub(super) fn release(&self, bytes: usize) {
        let before = self.0.in_flight.fetch_sub(bytes, Ordering::AcqRel);
        assert!(before >= bytes, "more bytes acknowledged than sent");
    }

    /// From here on failures are our own doing.
    pub(super) fn set_closing(&self) {
        self.0.closing.store(true, Ordering::Release);
    }

    pub(super) fn closing(&self) -> bool {
        self.0.closing.load(Ordering::Acquire)
    }

    pub(super) fn faulted(&self) -> bool {
        self.0.faulted.load(Ordering::Acquire)
    }

    /// Resolves when there is something to take; at once if so.
    pub(super) async fn news(&self) {
        while !self.lock().news() {
            self.0.notify.notified().await;
        }
    }

    pub(super) fn take(&self, into: &mut Vec<Ack>) -> Result<()> {
        let mut state = self.lock();
        into.append(&mut state.runs);
        state.round += 1;
        match &state.fault {
            None => Ok(()),
            Some(fault) => Err(fault.error()),
        }
    }

    pub(super) fn fault(&self) -> Error {
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
            // Swept away by what happened to another record; that one's words, which come a little later, say more.
            Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) => {
                self.lock().swept.get_or_insert(topic);
                return;
            }
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => too_large(access, &topic, None).into(),
            _ => access.failed(error.clone(), "writing to topic", &topic, Right::Write).into(),
        });
    }

    /// librdkafka gave up for good. Its words name the reason, which can be one of those that waiting can't heal.
    pub(super) fn fatal(&self, reason: &str) {
        let access = &self.0.access;
        let names = |code: RDKafkaErrorCode| reason.contains(&words(code));
        // `ProduceRequest for TOPIC [0] with 1 message(s) failed: …`
        let topic = reason.split_once("ProduceRequest for ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or("");
        let halts = [
            RDKafkaErrorCode::TopicAuthorizationFailed,
            RDKafkaErrorCode::ClusterAuthorizationFailed,
            RDKafkaErrorCode::UnknownTopicOrPartition,
            RDKafkaErrorCode::InvalidTimestamp,
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
        let swept = self.lock().swept.clone();
        if let Some(topic) = swept {
            self.set_fault(Fault::Broken(format!("the Kafka client threw away records to topic {topic:?}")));
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // A fatal error comes under the code of its reason. These two are never anything else; the polling thread asks for
        // the others.
        if let Some(RDKafkaErrorCode::GaplessGuarantee | RDKafkaErrorCode::ClusterAuthorizationFailed) =
            error.rdkafka_error_code()
        {
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
    fn codes_are_found_in_librdkafkas_words() {
        assert_eq!(words(RDKafkaErrorCode::MessageSizeTooLarge), "Broker: Message size too large");
        assert_eq!(words(RDKafkaErrorCode::TopicAuthorizationFailed), "Broker: Topic authorization failed");
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
}
