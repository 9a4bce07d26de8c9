//! The Kafka room against a real broker: what is promised about offsets, limits, gaps and topic ids.
//!
//! Every test has topics of its own, named by a random word, and deletes them at the end.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use lockstep::config::{Compression, Kafka, Security};
use lockstep::error::{Code, Error};
use lockstep::kafka::consumer::{self, Record, Spans, Tail};
use lockstep::kafka::producer::{Ack, Message, Producer, Purpose, Route, Sent};
use lockstep::kafka::topics::{self, Kind, TopicFacts, Wanted};

const PATIENCE: Duration = Duration::from_secs(30);

fn brokers() -> String {
    std::env::var("LOCKSTEP_TEST_KAFKA").unwrap_or_else(|_| {
        panic!("LOCKSTEP_TEST_KAFKA is not set: scripts/services up, then eval \"$(scripts/services env)\"")
    })
}

fn config() -> Kafka {
    Kafka {
        brokers: brokers(),
        topic_prefix: "it".into(),
        topic_delimiter: Default::default(),
        ledger: "it.ledger".into(),
        compression: Compression::Lz4,
        retention: Duration::from_secs(7 * 86_400),
        replication_factor: None,
        record_bytes_max: 8 << 20,
        in_flight_bytes_max: 64 << 20,
        linger: Duration::from_millis(5),
        security: Security { tls: false, ca_file: None, sasl: None },
        checkpoint_interval: Duration::from_millis(20),
        base_entries: 1000,
        base_interval: Duration::from_secs(60),
        grace: Duration::from_secs(30),
    }
}

/// Tests that measure the process's memory run alone.
static MEMORY: RwLock<()> = RwLock::new(());

fn run<T>(test: impl Future<Output = T>) -> T {
    let _others = MEMORY.read().unwrap_or_else(PoisonError::into_inner);
    run_now(test)
}

fn run_alone<T>(test: impl Future<Output = T>) -> T {
    let _nobody = MEMORY.write().unwrap_or_else(PoisonError::into_inner);
    run_now(test)
}

/// Runs a test on a runtime with one thread, as librdkafka's callbacks come from threads that know no runtime.
fn run_now<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(2 * PATIENCE, test).await.expect("the test hangs") })
}

/// Topics that are deleted when the test ends well; a failed test leaves its topic for looking at.
struct Topics {
    kafka: Kafka,
    names: Vec<String>,
}

impl Topics {
    fn new(kafka: &Kafka) -> Topics {
        Topics { kafka: kafka.clone(), names: Vec::new() }
    }

    async fn make(&mut self, what: &str, partitions: i32) -> String {
        let name = format!("it.{what}.{:08x}", rand::random::<u32>());
        self.names.push(name.clone());
        let wanted = [Wanted { name: name.clone(), partitions, kind: Kind::Data }];
        topics::ensure(&self.kafka, &wanted, true).await.unwrap();
        name
    }

    async fn delete(self) {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        topics::delete(&self.kafka, &names).await.unwrap();
    }
}

fn message<'a>(route: Route, partition: i32, value: &'a [u8], token: u64) -> Message<'a> {
    Message {
        route,
        partition: Some(partition),
        key: None,
        value: Some(value),
        headers: &[],
        timestamp_ms: None,
        token,
    }
}

/// Sends, waiting for acknowledgements while full.
async fn send(producer: &mut Producer, message: &Message<'_>, acks: &mut Vec<Ack>) {
    while producer.send(message).unwrap() == Sent::Full {
        producer.acked().await;
        producer.take_acks(acks).unwrap();
    }
}

async fn drain(producer: &Producer, acks: &mut Vec<Ack>) {
    loop {
        let all = producer.in_flight_bytes() == 0;
        producer.take_acks(acks).unwrap();
        if all {
            return;
        }
        // What was acknowledged between the two looks has been taken and wakes nobody again.
        if producer.in_flight_bytes() > 0 {
            producer.acked().await;
        }
    }
}

/// Writes `count` records into each partition: the value is the record's number in its partition.
async fn fill(kafka: &Kafka, topic: &str, partitions: i32, count: u32) {
    let mut producer = Producer::open(kafka, Purpose::Data).unwrap();
    let route = producer.route(topic);
    let mut acks = Vec::new();
    for number in 0..count {
        for partition in 0..partitions {
            send(&mut producer, &message(route, partition, number.to_string().as_bytes(), 0), &mut acks).await;
        }
    }
    drain(&producer, &mut acks).await;
    producer.close(PATIENCE);
}

fn number(bytes: Option<&[u8]>) -> i64 {
    std::str::from_utf8(bytes.unwrap()).unwrap().parse().unwrap()
}

fn halt_of<T>(outcome: Result<T, Error>) -> Error {
    match outcome {
        Ok(_) => panic!("a halt was expected"),
        Err(error) => error,
    }
}

/// Polls until something comes.
fn next<'a>(spans: &'a Spans, part: consumer::Part) -> Record<'a> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(record) = spans.poll(part, Duration::from_millis(200)).unwrap() {
            return record;
        }
    }
    panic!("no record");
}

#[test]
fn acknowledgements_give_dense_spans_per_token_over_several_partitions() {
    const TOKENS: u64 = 20;
    const RECORDS: usize = 500;
    run(async {
        let kafka = config();
        let mut made = Topics::new(&kafka);
        let (a, b) = (made.make("acks-a", 3).await, made.make("acks-b", 1).await);
        let mut producer = Producer::open(&kafka, Purpose::Data).unwrap();
        let routes = [producer.route(&a), producer.route(&b)];
        assert_eq!(producer.route(&a), routes[0]);

        let mut acks = Vec::new();
        let mut sent: HashMap<(Route, u64), u64> = HashMap::new();
        for token in 1..=TOKENS {
            for i in 0..RECORDS {
                let route = routes[usize::from(i % 5 == 0)];
                let key = (token * 1000 + i as u64).to_be_bytes();
                // By the key, over all partitions.
                let message = Message {
                    route,
                    partition: None,
                    key: Some(&key),
                    value: if i % 7 == 0 { None } else { Some(b"value") },
                    headers: &[("ls", Some(&key)), ("empty", Some(b"")), ("null", None)],
                    timestamp_ms: None,
                    token,
                };
                send(&mut producer, &message, &mut acks).await;
                *sent.entry((route, token)).or_default() += 1;
            }
        }
        drain(&producer, &mut acks).await;
        assert_eq!(producer.in_flight_bytes(), 0);

        // Joined over calls, the runs of a partition follow each other without a hole, tokens rising.
        let mut ends: HashMap<(Route, i32), (i64, u64)> = HashMap::new();
        let mut got: HashMap<(Route, u64), u64> = HashMap::new();
        for ack in &acks {
            assert_eq!(ack.last - ack.first + 1, i64::try_from(ack.count).unwrap(), "{ack:?}");
            let end = ends.entry((ack.route, ack.partition)).or_insert((0, 0));
            assert_eq!(ack.first, end.0, "{ack:?}");
            assert!(ack.token >= end.1, "{ack:?}");
            *end = (ack.last + 1, ack.token);
            *got.entry((ack.route, ack.token)).or_default() += ack.count;
        }
        assert_eq!(got, sent);
        assert_eq!(ends.len(), 4, "three partitions and one: {ends:?}");

        // What was written reads back, headers and tombstones included.
        let record = {
            let mut spans = Spans::open(&kafka, 8 << 20).unwrap();
            let part = spans.ensure(&b, 0, 0).unwrap();
            let record = next(&spans, part);
            assert_eq!(record.header("ls"), record.key());
            assert_eq!((record.header("empty"), record.header("none")), (Some(b"".as_slice()), None));
            assert!(record.timestamp_ms() > 1_600_000_000_000);
            (record.offset(), record.key().map(<[u8]>::to_vec), record.value().map(<[u8]>::to_vec))
        };
        assert_eq!(record, (0, Some(1000u64.to_be_bytes().to_vec()), None));
        producer.close(PATIENCE);
        made.delete().await;
    });
}

#[test]
fn a_full_producer_takes_nothing_and_goes_on_after_acknowledgements() {
    run(async {
        let kafka = Kafka { in_flight_bytes_max: 64 << 10, linger: Duration::from_millis(50), ..config() };
        let mut made = Topics::new(&kafka);
        let topic = made.make("full", 1).await;
        let mut producer = Producer::open(&kafka, Purpose::Data).unwrap();
        let route = producer.route(&topic);
        let value = [7u8; 4000];
        let mut queued = 0;
        while producer.send(&message(route, 0, &value, 1)).unwrap() == Sent::Queued {
            queued += 1;
            assert!(queued < 100, "the limit does not hold");
        }
        assert!(producer.in_flight_bytes() <= 64 << 10);
        let mut acks = Vec::new();
        for _ in 0..200 {
            send(&mut producer, &message(route, 0, &value, 1), &mut acks).await;
        }
        // Larger than the whole limit: goes, alone.
        send(&mut producer, &message(route, 0, &vec![1; 100 << 10], 1), &mut acks).await;
        drain(&producer, &mut acks).await;
        assert_eq!(acks.iter().map(|ack| ack.count).sum::<u64>(), queued + 201);
        producer.close(PATIENCE);
        made.delete().await;
    });
}

#[test]
fn a_record_too_large_halts_before_it_is_sent_and_when_the_topic_takes_less() {
    run(async {
        let kafka = Kafka { record_bytes_max: 64 << 10, ..config() };
        let mut made = Topics::new(&kafka);
        let topic = made.make("large", 1).await;
        let mut producer = Producer::open(&kafka, Purpose::Data).unwrap();
        let route = producer.route(&topic);
        let value: Vec<u8> = (0..64 << 10).map(|_| rand::random()).collect();
        let large = Message { key: Some(b"the key"), ..message(route, 0, &value, 1) };
        let error = halt_of(producer.send(&large));
        assert_eq!(error.code(), Some(Code::RecordTooLarge));
        assert!(error.to_string().contains("the record's key: the key"), "{error}");
        // Nothing was taken, the producer is as good as before.
        assert_eq!(producer.in_flight_bytes(), 0);
        let mut acks = Vec::new();
        send(&mut producer, &message(route, 0, &value[..60_000], 1), &mut acks).await;
        drain(&producer, &mut acks).await;
        producer.close(PATIENCE);

        // Somebody lowered the topic's limit: only the broker knows.
        let generous = config();
        let mut producer = Producer::open(&generous, Purpose::Data).unwrap();
        let route = producer.route(&topic);
        assert_eq!(producer.send(&message(route, 0, &value, 1)).unwrap(), Sent::Queued);
        producer.acked().await;
        let error = halt_of(producer.take_acks(&mut Vec::new()));
        assert_eq!(error.code(), Some(Code::RecordTooLarge), "{error}");
        assert!(error.to_string().contains(&topic), "{error}");
        // For good.
        assert_eq!(halt_of(producer.send(&message(route, 0, b"small", 1))).code(), Some(Code::RecordTooLarge));
        producer.close(PATIENCE);
        let error = halt_of(
            topics::ensure(&generous, &[Wanted { name: topic.clone(), partitions: 1, kind: Kind::Data }], true).await,
        );
        assert_eq!(error.code(), Some(Code::TopicSettings), "{error}");
        made.delete().await;
    });
}

#[test]
fn a_topic_made_again_has_another_id() {
    run(async {
        let kafka = config();
        let mut made = Topics::new(&kafka);
        let topic = made.make("again", 2).await;
        let describe = async || topics::describe(&kafka, &[&topic, "it.no.such"]).await.unwrap();
        let before: Vec<Option<TopicFacts>> = describe().await;
        assert_eq!(before[1], None);
        let facts = before[0].clone().unwrap();
        assert_eq!((facts.partitions, facts.cleanup_policy.as_str()), (2, "delete"));
        assert_eq!((facts.retention_ms, facts.timestamp_type.as_str()), (604_800_000, "LogAppendTime"));
        assert_eq!((facts.max_message_bytes, facts.unclean_election), (8 << 20, false));
        assert_eq!(topics::weaknesses(&facts, topics::brokers(&kafka).await.unwrap()), [""; 0]);

        topics::delete(&kafka, &[&topic]).await.unwrap();
        let gone = Instant::now() + PATIENCE;
        while describe().await[0].is_some() {
            assert!(Instant::now() < gone, "the topic stays");
        }
        let off = halt_of(
            topics::ensure(&kafka, &[Wanted { name: topic.clone(), partitions: 2, kind: Kind::Data }], false).await,
        );
        assert_eq!(off.code(), Some(Code::CreateOff));
        assert!(off.to_string().contains(&format!("--create --topic {topic} --partitions 2 ")), "{off}");

        let wanted = Wanted { name: topic.clone(), partitions: 2, kind: Kind::Data };
        let after = topics::ensure(&kafka, &[wanted], true).await.unwrap();
        assert_ne!(after[0].id, facts.id);
        assert_eq!(TopicFacts { id: facts.id, ..after[0].clone() }, facts);
        made.delete().await;
    });
}

/// The way of a table that is routed later: some topics are there, another one is not.
#[test]
fn a_topic_is_made_beside_others_without_delay() {
    run(async {
        let kafka = config();
        let mut made = Topics::new(&kafka);
        let (first, second) = (made.make("beside", 1).await, made.make("beside", 1).await);
        let third = format!("{first}.later");
        made.names.push(third.clone());
        let wanted = |name: &String| Wanted { name: name.clone(), partitions: 1, kind: Kind::Data };
        let begun = Instant::now();
        let facts = topics::ensure(&kafka, &[&first, &second, &third].map(wanted), true).await.unwrap();
        assert_eq!(facts.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), [&first, &second, &third]);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        made.delete().await;
    });
}

#[test]
fn a_topic_made_again_under_a_producer_is_a_fault() {
    run(async {
        let kafka = config();
        let mut made = Topics::new(&kafka);
        let topic = made.make("under", 1).await;
        let mut producer = Producer::open(&kafka, Purpose::Data).unwrap();
        let route = producer.route(&topic);
        let mut acks = Vec::new();
        for _ in 0..10 {
            send(&mut producer, &message(route, 0, b"x", 1), &mut acks).await;
        }
        drain(&producer, &mut acks).await;
        topics::delete(&kafka, &[&topic]).await.unwrap();
        let wanted = [Wanted { name: topic.clone(), partitions: 1, kind: Kind::Data }];
        while topics::describe(&kafka, &[&topic]).await.unwrap()[0].is_some() {}
        topics::ensure(&kafka, &wanted, true).await.unwrap();
        let error = loop {
            match producer.send(&message(route, 0, b"y", 2)) {
                Ok(_) => {}
                Err(error) => break error,
            }
            producer.acked().await;
            if let Err(error) = producer.take_acks(&mut Vec::new()) {
                break error;
            }
        };
        println!("{}", error.chain());
        producer.close(PATIENCE);
        made.delete().await;
    });
}

#[test]
fn a_ledger_topic_never_expires_and_is_trimmed_by_hand() {
    run(async {
        let kafka = config();
        let name = format!("it.ledger.{:08x}", rand::random::<u32>());
        let wanted = [Wanted { name: name.clone(), partitions: 1, kind: Kind::Ledger }];
        let facts = topics::ensure(&kafka, &wanted, true).await.unwrap().remove(0);
        assert_eq!((facts.retention_ms, facts.retention_bytes, facts.partitions), (-1, -1, 1));
        assert_eq!(topics::ensure(&kafka, &wanted, false).await.unwrap(), [facts]);
        fill(&kafka, &name, 1, 10).await;
        assert_eq!(topics::trim(&kafka, &name, 4).await.unwrap(), 4);

        let entries = blocking(&kafka, move |kafka| {
            let begun = Instant::now();
            let entries = consumer::read_all(kafka, &name, 0, None, 8, Code::LedgerTrimmed).unwrap();
            println!("reading a piece over a connection of its own: {:?}", begun.elapsed());
            assert_eq!(consumer::watermarks(kafka, &name, 0, PATIENCE).unwrap(), (4, 10));
            assert!(consumer::read_all(kafka, &name, 0, Some(10), 10, Code::LedgerTrimmed).unwrap().is_empty());
            let below = halt_of(consumer::read_all(kafka, &name, 0, Some(3), 8, Code::LedgerTrimmed));
            assert_eq!(below.code(), Some(Code::LedgerTrimmed));
            let above = halt_of(consumer::read_all(kafka, &name, 0, Some(4), 11, Code::LedgerLost));
            assert_eq!(above.code(), Some(Code::LedgerLost));
            let mut pieces = consumer::Pieces::open(kafka, &name, 0).unwrap();
            assert_eq!(pieces.watermarks().unwrap(), (4, 10));
            let begun = Instant::now();
            for from in [9, 4, 8, 5, 5, 9, 4] {
                let piece = pieces.read(Some(from), from + 1, Code::LedgerTrimmed).unwrap();
                assert_eq!(piece.iter().map(|entry| entry.offset).collect::<Vec<_>>(), [from]);
            }
            println!("reading a piece over one connection: {:?}", begun.elapsed() / 7);
            (name, entries)
        })
        .await;
        let offsets: Vec<i64> = entries.1.iter().map(|entry| entry.offset).collect();
        assert_eq!(offsets, [4, 5, 6, 7]);
        assert_eq!(number(entries.1[0].value.as_deref()), 4);

        let mut tail = Tail::open(&kafka, &entries.0, 0, 3, Code::LedgerTrimmed).unwrap();
        let error = halt_of(tail.recv().await);
        assert_eq!(error.code(), Some(Code::LedgerTrimmed), "{error}");
        assert!(error.to_string().contains("low watermark 4\n  high watermark 10"), "{error}");
        assert!(tail.recv().await.is_err() && tail.try_recv().is_err());
        drop(tail);
        topics::delete(&kafka, &[&entries.0]).await.unwrap();
    });
}

async fn blocking<T: Send + 'static>(kafka: &Kafka, work: impl FnOnce(&Kafka) -> T + Send + 'static) -> T {
    let kafka = kafka.clone();
    tokio::task::spawn_blocking(move || work(&kafka)).await.unwrap()
}

#[test]
fn a_tail_begins_at_its_offset_and_follows_within_milliseconds() {
    run(async {
        let kafka = config();
        let mut made = Topics::new(&kafka);
        let topic = made.make("tail", 1).await;
        fill(&kafka, &topic, 1, 2000).await;
        let begun = Instant::now();
        let mut tail = Tail::open(&kafka, &topic, 0, 5, Code::TopicGap).unwrap();
        println!("a tail opens in {:?}", begun.elapsed());
        for offset in 5..2000 {
            if offset == 6 {
                println!("its first entry after {:?}", begun.elapsed());
            }
            let entry = tail.recv().await.unwrap();
            assert_eq!((entry.offset, number(entry.value.as_deref())), (offset, offset));
        }
        assert_eq!(tail.try_recv().unwrap(), None);

        let mut producer = Producer::open(&kafka, Purpose::Ledger).unwrap();
        let route = producer.route(&topic);
        let mut times = Vec::new();
        for i in 0..100u64 {
            let value = i.to_string();
            let begun = Instant::now();
            assert_eq!(producer.send(&message(route, 0, value.as_bytes(), i)).unwrap(), Sent::Queued);
            let entry = tail.recv().await.unwrap();
            times.push(begun.elapsed());
            assert_eq!(number(entry.value.as_deref()), i64::try_from(i).unwrap());
        }
        times.sort();
        println!("sent to received: p50 {:?}, p90 {:?}, max {:?}", times[50], times[90], times[99]);

        // Not waited for long when dropped, even with a reader that lags.
        fill(&kafka, &topic, 1, 5000).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let begun = Instant::now();
        drop(tail);
        println!("drop of a tail: {:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(5));
        producer.close(PATIENCE);
        made.delete().await;
    });
}

#[test]
fn spans_of_three_partitions_are_read_on_demand_with_seeks() {
    run(async {
        let kafka = config();
        let mut made = Topics::new(&kafka);
        let topic = made.make("spans", 3).await;
        fill(&kafka, &topic, 3, 30_000).await;
        blocking(&kafka, move |kafka| {
            let mut spans = Spans::open(kafka, 8 << 20).unwrap();
            let parts: Vec<_> = (0..3).map(|partition| spans.ensure(&topic, partition, 10).unwrap()).collect();
            // Heads of all partitions at once, as a merge holds them.
            let heads: Vec<_> = parts.iter().map(|part| next(&spans, *part)).collect();
            assert!(heads.iter().all(|head| head.offset() == 10 && number(head.value()) == 10));
            drop(heads);
            assert_eq!(spans.position(&topic, 1), Some(11));
            let expect = |spans: &mut Spans, partition: usize, from: i64| {
                let part = spans.ensure(&topic, i32::try_from(partition).unwrap(), from).unwrap();
                assert_eq!(part, parts[partition]);
                for offset in from..from + 50 {
                    let record = next(spans, part);
                    assert_eq!((record.offset(), number(record.value())), (offset, offset), "partition {partition}");
                }
            };
            // Where it stands, a little ahead (read through), back, far ahead, back again.
            for from in [60, 200, 0, 25_000, 100, 29_900, 29_950, 0] {
                for partition in [0, 2, 1] {
                    expect(&mut spans, partition, from);
                }
            }
            // Many seeks, back and forth.
            let begun = Instant::now();
            for i in 0..100 {
                expect(&mut spans, 0, (i * 7919) % 29_000);
            }
            println!("100 seeks with 50 records each: {:?}", begun.elapsed());
            // Given up and taken up again, at another place.
            spans.release(parts[2]).unwrap();
            expect(&mut spans, 2, 77);
            // The end: nothing, for as long as asked.
            let end = spans.ensure(&topic, 1, 30_000).unwrap();
            let begun = Instant::now();
            assert!(spans.poll(end, Duration::from_millis(150)).unwrap().is_none());
            assert!(begun.elapsed() >= Duration::from_millis(150));
            assert_eq!(spans.watermarks(&topic, 1, PATIENCE).unwrap(), (0, 30_000));
            assert_eq!(spans.last_error(), None);
        })
        .await;
        made.delete().await;
    });
}

#[test]
fn an_offset_that_is_not_there_is_a_gap_and_the_partition_can_be_taken_up_again() {
    run(async {
        let kafka = config();
        let mut made = Topics::new(&kafka);
        let topic = made.make("gap", 2).await;
        fill(&kafka, &topic, 2, 20_000).await;
        assert_eq!(topics::trim(&kafka, &topic, 100).await.unwrap(), 100);
        blocking(&kafka, move |kafka| {
            let mut spans = Spans::open(kafka, 8 << 20).unwrap();
            let other = spans.ensure(&topic, 1, 0).unwrap();
            for (from, side) in [(99, "was deleted"), (20_001, "beyond its end"), (0, "was deleted")] {
                let part = spans.ensure(&topic, 0, from).unwrap();
                let error = gap(&spans, part);
                assert_eq!(error.code(), Some(Code::TopicGap));
                let text = error.to_string();
                assert!(text.contains(side) && text.contains("low watermark 100\n  high watermark 20000"), "{text}");
                // Unharmed beside it.
                next(&spans, other);
                // And well again, at once.
                let part = spans.ensure(&topic, 0, 100).unwrap();
                for offset in 100..200 {
                    assert_eq!(next(&spans, part).offset(), offset);
                }
            }
            assert_eq!(spans.position(&topic, 1), Some(3));
            // A topic that does not exist.
            let missing = spans.ensure("it.no.such.topic", 0, 0).unwrap();
            assert_eq!(gap(&spans, missing).code(), Some(Code::TopicMissing));
        })
        .await;
        made.delete().await;
    });
}

fn gap(spans: &Spans, part: consumer::Part) -> Error {
    let deadline = Instant::now() + 2 * PATIENCE;
    while Instant::now() < deadline {
        match spans.poll(part, Duration::from_millis(200)) {
            Ok(None) => {}
            Ok(Some(record)) => panic!("offset {} instead of a gap", record.offset()),
            Err(error) => return error,
        }
    }
    panic!("no gap is seen");
}

#[test]
fn prefetching_stops_at_its_limit() {
    run_alone(async {
        let kafka = config();
        let mut made = Topics::new(&kafka);
        let topic = made.make("limit", 1).await;
        let mut producer = Producer::open(&kafka, Purpose::Data).unwrap();
        let route = producer.route(&topic);
        // Does not compress: 100 MB on the wire.
        let value: Vec<u8> = (0..100_000).map(|_| rand::random()).collect();
        let mut acks = Vec::new();
        for _ in 0..1000 {
            send(&mut producer, &message(route, 0, &value, 1), &mut acks).await;
        }
        drain(&producer, &mut acks).await;
        producer.close(PATIENCE);
        blocking(&kafka, move |kafka| {
            let before = memory_bytes();
            let mut spans = Spans::open(kafka, 8 << 20).unwrap();
            let part = spans.ensure(&topic, 0, 0).unwrap();
            next(&spans, part);
            std::thread::sleep(Duration::from_secs(1));
            let grown = memory_bytes().saturating_sub(before);
            println!("fetched ahead: {} KiB", grown >> 10);
            assert!(grown > 0, "nothing is fetched ahead");
            assert!(grown < 40 << 20, "{grown} bytes fetched ahead");
            let begun = Instant::now();
            for offset in 1..1000 {
                assert_eq!(next(&spans, part).offset(), offset);
            }
            println!("read 100 MB through a queue of 1 MiB: {:?}", begun.elapsed());
        })
        .await;
        made.delete().await;
    });
}

fn memory_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn describing_topics_frees_what_it_takes() {
    run_alone(async {
        let kafka = config();
        let mut made = Topics::new(&kafka);
        let topic = made.make("leak", 50).await;
        let round = async || {
            for _ in 0..20 {
                let facts = topics::describe(&kafka, &[&topic, "it.no.such"]).await.unwrap();
                assert!(facts[0].is_some() && facts[1].is_none());
            }
        };
        round().await;
        let before = memory_bytes();
        round().await;
        round().await;
        let grown = memory_bytes().saturating_sub(before);
        println!("40 descriptions of 50 partitions: {} KiB more", grown >> 10);
        assert!(grown < 8 << 20, "{grown} bytes more");
        made.delete().await;
    });
}

#[test]
fn waiting_for_acknowledgements_can_be_dropped_and_a_closed_producer_does_not_linger() {
    run(async {
        let kafka = Kafka { linger: Duration::from_millis(300), ..config() };
        let mut made = Topics::new(&kafka);
        let topic = made.make("wait", 1).await;
        let mut producer = Producer::open(&kafka, Purpose::Data).unwrap();
        let route = producer.route(&topic);
        assert_eq!(producer.send(&message(route, 0, b"x", 1)).unwrap(), Sent::Queued);
        let mut dropped = 0;
        loop {
            let acked = pin!(producer.acked());
            match tokio::time::timeout(Duration::from_millis(5), acked).await {
                Ok(()) => break,
                Err(_) => dropped += 1,
            }
        }
        assert!(dropped > 10, "{dropped}");
        let mut acks = Vec::new();
        producer.take_acks(&mut acks).unwrap();
        assert_eq!(acks.len(), 1);

        producer.close(PATIENCE);

        // Thrown away rather than waited for: it would leave only after the linger, far beyond the limit below.
        let mut producer = Producer::open(&Kafka { linger: PATIENCE, ..config() }, Purpose::Data).unwrap();
        let route = producer.route(&topic);
        assert_eq!(producer.send(&message(route, 0, b"y", 1)).unwrap(), Sent::Queued);
        let begun = Instant::now();
        producer.close(Duration::from_millis(20));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        made.delete().await;
    });
}

#[test]
fn nobody_home_is_a_retry_with_words() {
    run(async {
        // Bound and not listening: every connection is refused.
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        drop(socket);
        let kafka = Kafka { brokers: address.to_string(), ..config() };
        let mut producer = Producer::open(&kafka, Purpose::Ledger).unwrap();
        let route = producer.route("it.nobody");
        assert_eq!(producer.send(&message(route, 0, b"x", 1)).unwrap(), Sent::Queued);
        let tail = Tail::open(&kafka, "it.nobody", 0, 0, Code::TopicGap).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while producer.health().last_error().is_none() || tail.last_error().is_none() {
            assert!(Instant::now() < deadline, "no words");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        println!("producer: {:?}, tail: {:?}", producer.health().last_error(), tail.last_error());
        producer.take_acks(&mut Vec::new()).unwrap();
        let begun = Instant::now();
        producer.close(Duration::from_millis(100));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        drop(tail);
    });
}

fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[test]
#[ignore = "a measurement: cargo test --test it_kafka throughput -- --ignored --nocapture"]
fn throughput() {
    const RECORDS: u64 = 300_000;
    run(async {
        let kafka = config();
        let mut made = Topics::new(&kafka);
        let topic = made.make("speed", 1).await;
        let mut producer = Producer::open(&kafka, Purpose::Data).unwrap();
        let route = producer.route(&topic);
        let mut value = b"{\"before\":null,\"after\":{\"id\":1,\"name\":\"something\",\"price\":\"12.50\"}}".repeat(11);
        value.truncate(780);
        let header = [1u8; 42];
        let (mut acks, begun, cpu) = (Vec::new(), Instant::now(), thread_cpu());
        for i in 0..RECORDS {
            let key = i.to_be_bytes();
            let message = Message {
                route,
                partition: None,
                key: Some(&key),
                value: Some(&value),
                headers: &[("ls", Some(&header))],
                timestamp_ms: None,
                token: i / 1000,
            };
            send(&mut producer, &message, &mut acks).await;
        }
        let cpu = thread_cpu() - cpu;
        drain(&producer, &mut acks).await;
        println!(
            "{:.0} records/s acknowledged; {} ns of CPU a record in the sending thread; {} runs",
            RECORDS as f64 / begun.elapsed().as_secs_f64(),
            cpu.as_nanos() / u128::from(RECORDS),
            acks.len()
        );
        producer.close(PATIENCE);
        blocking(&kafka, move |kafka| {
            let mut spans = Spans::open(kafka, 64 << 20).unwrap();
            let part = spans.ensure(&topic, 0, 0).unwrap();
            let begun = Instant::now();
            for offset in 0..RECORDS {
                let record = next(&spans, part);
                assert_eq!(record.offset(), i64::try_from(offset).unwrap());
                assert_eq!(record.header("ls").unwrap().len(), 42);
            }
            println!("{:.0} records/s read", RECORDS as f64 / begun.elapsed().as_secs_f64());
        })
        .await;
        made.delete().await;
    });
}
