//! Records fetched and decoded ahead of what is written: while the sink's Postgres executes one interval, a thread reads the
//! next ones.
//!
//! The worker orders intervals in the order in which it will want them, and takes their records in just that order. An order is
//! a guess at what comes next, so nothing depends on it: [`Ahead::begin`] compares it with what is wanted indeed, and where that is
//! another interval, or the same one once more, everything fetched so far is discarded and reading begins there. What is
//! discarded was in no transaction. A failure waits in its place among the records, and counts when the worker comes to it.
//!
//! Memory is bounded in bytes of records: the thread waits while as much is fetched and not yet taken.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use metrics::Gauge;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::apply::decode::{Decoded, Decoders, Needs};
use crate::apply::machine::Interval;
use crate::apply::merge::{Merge, Patience};
use crate::config;
use crate::error::{Error, Result};
use crate::kafka::consumer::Spans;
use crate::ledger::entry::{Checkpoint, Span};
use crate::ledger::state::State;
use crate::relation::{Fingerprint, Relation, TableName};

/// What librdkafka may fetch ahead, all partitions together.
const PREFETCH_BYTES: usize = 16 * 1024 * 1024;

/// Fetched, decoded and not yet taken: one full transaction of rows of some hundred bytes, so that the next one is there when
/// the commit returns.
const AHEAD_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Records ordered ahead: two full transactions.
const AHEAD_RECORDS_MAX: u64 = 20_000;

/// Records are handed over in pieces of this size: a message costs as much as some records.
const PIECE_BYTES: usize = 64 * 1024;

/// The longest that the thread looks away while there is no room; being given some wakes it.
const ROOM_INTERVAL: Duration = Duration::from_millis(20);

/// A generation that never comes: the thread is to end.
const ENDED: u64 = u64::MAX;

struct Order {
    generation: u64,
    checkpoint: Checkpoint,
    relations: Vec<Arc<Relation>>,
}

enum Fetched {
    Records(Vec<Decoded>, usize),
    /// The interval's end, with the number of records without a header of ours.
    End(u64),
    /// Still the same interval, and this is waited for.
    Waiting(String),
    Failed(Error),
}

/// What comes next of the interval that was begun.
pub enum Next {
    Record(Decoded),
    End { foreign: u64 },
    Waiting(String),
}

/// What worker and thread both look at.
struct Shared {
    /// Orders of any other generation are void.
    generation: AtomicU64,
    /// Bytes fetched and not yet taken.
    held: AtomicUsize,
    /// The same for people.
    shown: Gauge,
}

impl Shared {
    fn new(shown: Gauge) -> Arc<Shared> {
        Arc::new(Shared { generation: AtomicU64::new(0), held: AtomicUsize::new(0), shown })
    }

    fn hold(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::AcqRel);
        self.shown.increment(bytes as f64);
    }

    fn let_go(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::AcqRel);
        self.shown.decrement(bytes as f64);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // What was never taken is gone with it.
        self.shown.decrement(*self.held.get_mut() as f64);
    }
}

/// What was ordered and not begun.
struct Ordered {
    offset: i64,
    spans: Vec<Span>,
    records: u64,
}

pub struct Ahead {
    orders: Option<std::sync::mpsc::Sender<Order>>,
    fetched: mpsc::UnboundedReceiver<(u64, Fetched)>,
    shared: Arc<Shared>,
    generation: u64,
    ordered: VecDeque<Ordered>,
    /// Offset of what was ordered last in this generation.
    last: i64,
    told: HashSet<Fingerprint>,
    /// Begun and not at its end.
    open: bool,
    piece: std::vec::IntoIter<Decoded>,
    piece_bytes: usize,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    /// For the records of `tables`, which may take `wait` to become readable. `held` shows how many bytes of them are held.
    pub fn open(
        kafka: &config::Kafka,
        tables: HashMap<TableName, Needs>,
        wait: Duration,
        stop: CancellationToken,
        held: Gauge,
    ) -> Result<Ahead> {
        let spans = Spans::open(kafka, PREFETCH_BYTES)?;
        let shared = Shared::new(held);
        let (orders, ordered) = std::sync::mpsc::channel();
        let (out, fetched) = mpsc::unbounded_channel();
        let told = RefCell::default();
        let waiting = Waiting { generation: 0, shared: shared.clone(), out, wait, stop, told };
        let fetch = Fetch { spans, decoders: Decoders::new(tables), orders: ordered, waiting };
        let thread = std::thread::Builder::new()
            .name("kafka-spans".into())
            .spawn(move || fetch.run())
            .map_err(|error| Error::retry("starting a thread to read from Kafka", error))?;
        Ok(Ahead::over(orders, fetched, shared, Some(thread)))
    }

    fn over(
        orders: std::sync::mpsc::Sender<Order>,
        fetched: mpsc::UnboundedReceiver<(u64, Fetched)>,
        shared: Arc<Shared>,
        thread: Option<JoinHandle<()>>,
    ) -> Ahead {
        Ahead {
            orders: Some(orders),
            fetched,
            shared,
            generation: 0,
            ordered: VecDeque::new(),
            last: -1,
            told: HashSet::new(),
            open: false,
            piece: Vec::new().into_iter(),
            piece_bytes: 0,
            thread,
        }
    }

    /// How many more records may be ordered.
    pub fn room(&self) -> u64 {
        AHEAD_RECORDS_MAX.saturating_sub(self.ordered.iter().map(|ordered| ordered.records).sum())
    }

    /// Whether the interval at this offset of the ledger was ordered, or one behind it.
    pub fn has_ordered(&self, offset: i64) -> bool {
        offset <= self.last
    }

    /// The interval is likely to be wanted next, after those that were ordered.
    pub fn order(&mut self, interval: &Interval, state: &State) {
        let relations: Vec<Arc<Relation>> =
            state.relations.values().filter(|relation| self.told.insert(relation.fingerprint)).cloned().collect();
        let checkpoint = interval.checkpoint.clone();
        let (offset, spans) = (interval.offset, checkpoint.spans.clone());
        self.last = offset;
        self.ordered.push_back(Ordered { offset, spans, records: interval.records() });
        let order = Order { generation: self.generation, checkpoint, relations };
        // Where the thread has ended, taking says so.
        let _ = self.orders.as_ref().expect("until it is dropped").send(order);
    }

    /// From here on [`Ahead::take`] gives the records of this interval.
    pub fn begin(&mut self, interval: &Interval, state: &State) {
        let expected = |next: &Ordered| next.offset == interval.offset && next.spans == interval.checkpoint.spans;
        if self.open || !self.ordered.front().is_some_and(expected) {
            self.discard();
            self.order(interval, state);
        }
        self.ordered.pop_front();
        self.open = true;
    }

    /// Forgets everything that was fetched or ordered.
    pub fn discard(&mut self) {
        self.generation += 1;
        self.shared.generation.store(self.generation, Ordering::Release);
        (self.last, self.open) = (-1, false);
        self.ordered.clear();
        self.release();
    }

    /// The next record, if it is there.
    pub fn ready(&mut self) -> Option<Decoded> {
        let next = self.piece.next();
        if next.is_none() {
            self.release();
        }
        next
    }

    /// The next record, or what else there is to say. Safe to drop and call again.
    pub async fn take(&mut self) -> Result<Next> {
        loop {
            if let Some(record) = self.ready() {
                return Ok(Next::Record(record));
            }
            let Some((generation, fetched)) = self.fetched.recv().await else {
                return Err(Error::retry_plain("the thread that reads records from Kafka has ended"));
            };
            if let Fetched::Records(records, bytes) = fetched {
                (self.piece, self.piece_bytes) = (records.into_iter(), bytes);
                if generation != self.generation {
                    self.release();
                }
                continue;
            }
            if generation != self.generation {
                continue;
            }
            match fetched {
                Fetched::End(foreign) => {
                    self.open = false;
                    return Ok(Next::End { foreign });
                }
                Fetched::Waiting(what) => return Ok(Next::Waiting(what)),
                Fetched::Failed(error) => return Err(error),
                Fetched::Records(..) => unreachable!("taken above"),
            }
        }
    }

    /// Gives back the room of the piece at hand.
    fn release(&mut self) {
        self.piece = Vec::new().into_iter();
        let bytes = std::mem::take(&mut self.piece_bytes);
        if bytes > 0 {
            self.shared.let_go(bytes);
            if let Some(thread) = &self.thread {
                thread.thread().unpark();
            }
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.shared.generation.store(ENDED, Ordering::Release);
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                warn!("the thread that reads records from Kafka had panicked");
            }
        }
    }
}

/// The thread behind an [`Ahead`].
struct Fetch {
    spans: Spans,
    decoders: Decoders,
    orders: std::sync::mpsc::Receiver<Order>,
    waiting: Waiting,
}

struct Waiting {
    /// Of the order at hand.
    generation: u64,
    shared: Arc<Shared>,
    out: mpsc::UnboundedSender<(u64, Fetched)>,
    wait: Duration,
    stop: CancellationToken,
    /// What was told to be waited for.
    told: RefCell<String>,
}

impl Fetch {
    fn run(mut self) {
        while let Ok(order) = self.orders.recv() {
            self.decoders.learn(order.relations);
            self.waiting.generation = order.generation;
            self.waiting.told.take();
            if self.waiting.is_void() {
                continue;
            }
            let outcome = self.fetch(&order.checkpoint);
            match outcome {
                Ok(foreign) => self.waiting.send(Fetched::End(foreign)),
                Err(error) => self.waiting.send(Fetched::Failed(error)),
            }
        }
    }

    fn fetch(&mut self, checkpoint: &Checkpoint) -> Result<u64> {
        let mut merge = Merge::new(&mut self.spans, checkpoint)?;
        let (mut piece, mut bytes) = (Vec::new(), 0);
        while !self.waiting.is_void() {
            let next = merge.take(&self.spans, &mut self.decoders, &self.waiting);
            let end = match next {
                Ok(Some(record)) => {
                    bytes += record.bytes + size_of::<Decoded>();
                    piece.push(record);
                    None
                }
                Ok(None) => Some(Ok(merge.foreign)),
                Err(error) => Some(Err(error)),
            };
            if bytes >= PIECE_BYTES || (end.is_some() && bytes > 0) {
                self.waiting.hand_over(std::mem::take(&mut piece), std::mem::take(&mut bytes));
            }
            if let Some(end) = end {
                return end;
            }
        }
        Ok(0)
    }
}

impl Waiting {
    fn is_void(&self) -> bool {
        self.shared.generation.load(Ordering::Acquire) != self.generation
    }

    /// Waits for room. Where the order becomes void, the records are nobody's.
    fn hand_over(&self, records: Vec<Decoded>, bytes: usize) {
        while self.shared.held.load(Ordering::Acquire) > AHEAD_BYTES_MAX {
            if self.is_void() {
                return;
            }
            std::thread::park_timeout(ROOM_INTERVAL);
        }
        self.shared.hold(bytes);
        self.send(Fetched::Records(records, bytes));
    }

    fn send(&self, fetched: Fetched) {
        // A worker that is gone wants nothing.
        let _ = self.out.send((self.generation, fetched));
    }
}

impl Patience for Waiting {
    fn wait(&self) -> Duration {
        self.wait
    }

    fn given_up(&self) -> Option<Error> {
        let over = self.stop.is_cancelled() || self.is_void();
        over.then(|| Error::retry_plain("stopped while waiting for records"))
    }

    fn tell(&self, what: String) {
        // Once: nobody may be listening for long.
        if *self.told.borrow() != what {
            self.told.replace(what.clone());
            self.send(Fetched::Waiting(what));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::decode::{Content, Place};
    use crate::apply::machine::At;
    use crate::record::{Header, Kind};

    /// An interval of ten records that ends at this offset of the ledger.
    fn interval(offset: i64) -> Interval {
        let span = Span { topic: "t".into(), partition: 0, first: offset * 10, last: offset * 10 + 9, count: 10 };
        let checkpoint = Checkpoint {
            epoch: At::ORIGIN.epoch,
            from: At::ORIGIN.position,
            to: At::ORIGIN.position,
            closed: At::ORIGIN.closed,
            commit_time: 0,
            spans: vec![span],
            chunks: vec![],
            again: vec![],
            forget: None,
            barriers: None,
            prev: None,
        };
        Interval { offset, checkpoint, concerns: true }
    }

    fn records(n: usize) -> Fetched {
        let header = |_| Header {
            kind: Kind::Tombstone,
            epoch: At::ORIGIN.epoch,
            position: At::ORIGIN.position,
            relation: Fingerprint(0),
        };
        let record = |i| Decoded {
            header: header(i),
            content: Ok(Content::Nothing),
            commit_time_us: None,
            bytes: 100,
            place: Place { partition: 0, offset: 0, hash: None },
        };
        Fetched::Records((0..n).map(record).collect(), 100 * n)
    }

    struct Bed {
        ahead: Ahead,
        orders: std::sync::mpsc::Receiver<Order>,
        out: mpsc::UnboundedSender<(u64, Fetched)>,
        state: State,
    }

    impl Bed {
        fn new() -> Bed {
            let (sender, orders) = std::sync::mpsc::channel();
            let (out, fetched) = mpsc::unbounded_channel();
            let shared = Shared::new(Gauge::noop());
            Bed { ahead: Ahead::over(sender, fetched, shared, None), orders, out, state: State::default() }
        }

        /// What the thread has been told since: generation and first offset.
        fn told(&self) -> Vec<(u64, i64)> {
            self.orders.try_iter().map(|order| (order.generation, order.checkpoint.spans[0].first)).collect()
        }

        fn fetch(&self, generation: u64, fetched: Fetched) {
            self.ahead
                .shared
                .held
                .fetch_add(if let Fetched::Records(_, bytes) = &fetched { *bytes } else { 0 }, Ordering::AcqRel);
            self.out.send((generation, fetched)).unwrap();
        }

        /// Records until the end, or the failure.
        async fn drain(&mut self) -> Result<usize> {
            let mut seen = 0;
            loop {
                match self.ahead.take().await? {
                    Next::Record(_) => seen += 1,
                    Next::End { .. } => return Ok(seen),
                    Next::Waiting(_) => {}
                }
            }
        }

        fn held(&self) -> usize {
            self.ahead.shared.held.load(Ordering::Acquire)
        }
    }

    #[tokio::test]
    async fn what_was_ordered_is_taken_and_nothing_is_ordered_twice() {
        let mut bed = Bed::new();
        for offset in [1, 2] {
            bed.ahead.order(&interval(offset), &bed.state);
        }
        assert!(bed.ahead.has_ordered(2) && !bed.ahead.has_ordered(3));
        assert_eq!(bed.ahead.room(), AHEAD_RECORDS_MAX - 20);
        for n in [3, 4] {
            bed.fetch(0, records(n));
            bed.fetch(0, Fetched::End(0));
        }
        bed.ahead.begin(&interval(1), &bed.state);
        assert_eq!(bed.drain().await.unwrap(), 3);
        bed.ahead.begin(&interval(2), &bed.state);
        assert_eq!(bed.drain().await.unwrap(), 4);
        assert_eq!((bed.told(), bed.held()), (vec![(0, 10), (0, 20)], 0));
    }

    #[tokio::test]
    async fn after_another_turn_what_was_fetched_is_discarded_even_its_failures() {
        let mut bed = Bed::new();
        for offset in [1, 2] {
            bed.ahead.order(&interval(offset), &bed.state);
        }
        bed.ahead.begin(&interval(1), &bed.state);
        bed.fetch(0, records(2));
        assert!(matches!(bed.ahead.take().await, Ok(Next::Record(_))));
        // The transaction is tried once more, from the same interval.
        bed.ahead.discard();
        bed.fetch(0, records(1));
        bed.fetch(0, Fetched::Failed(Error::retry_plain("of the interval behind")));
        bed.ahead.begin(&interval(1), &bed.state);
        let again = bed.ahead.generation;
        bed.fetch(again, records(5));
        bed.fetch(again, Fetched::End(0));
        assert_eq!(bed.drain().await.unwrap(), 5);
        assert_eq!(bed.told(), [(0, 10), (0, 20), (again, 10)]);
        // Another interval than the one that was guessed, or the same with another span.
        bed.ahead.order(&interval(2), &bed.state);
        let mut narrower = interval(2);
        narrower.checkpoint.spans[0].first += 1;
        bed.ahead.begin(&narrower, &bed.state);
        let other = bed.ahead.generation;
        assert!(other > again);
        assert_eq!(bed.told(), [(again, 20), (other, 21)]);
        bed.fetch(other, Fetched::Failed(Error::retry_plain("in its place")));
        assert!(bed.drain().await.is_err());
        assert_eq!(bed.held(), 0);
    }
}
