//! The log: partitions and a ledger that keep what they took, until they lose a tail, let go of their beginning, or are made
//! again.

use lockstep::error::Result;
use lockstep::ledger::entry::{Entry, SourceEntry, SourceIdentity, TopicIdentity};
use lockstep::ledger::start::{self, Start};
use lockstep::ledger::state::State;
use lockstep::lsn::{Lsn, Position};
use lockstep::record::Epoch;
use uuid::Uuid;

use super::shared::Shared;

pub const PARTITIONS: usize = 2;
pub const TOPIC: &str = "t";
/// The slot's consistent point.
pub const BEGINNING: Lsn = Lsn(10);

#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub epoch: Epoch,
    pub position: Position,
}

#[derive(Clone, Debug)]
pub struct Log<T> {
    pub low: i64,
    kept: Vec<Shared<T>>,
}

impl<T> Default for Log<T> {
    fn default() -> Log<T> {
        Log { low: 0, kept: Vec::new() }
    }
}

impl<T> Log<T> {
    pub fn end(&self) -> i64 {
        self.low + self.kept.len() as i64
    }

    pub fn push(&mut self, what: T) -> i64 {
        self.kept.push(what.into());
        self.end() - 1
    }

    pub fn get(&self, offset: i64) -> Option<&T> {
        self.kept.get(usize::try_from(offset - self.low).ok()?).map(|what| &**what)
    }

    /// What is kept from an offset on.
    pub fn since(&self, offset: i64) -> impl Iterator<Item = (i64, &T)> {
        let kept = self.kept.iter().map(|what| &**what);
        (self.low..).zip(kept).skip(usize::try_from(offset - self.low).unwrap_or_default())
    }

    pub fn lose_tail(&mut self, count: usize) {
        self.kept.truncate(self.kept.len().saturating_sub(count));
    }

    pub fn trim(&mut self, low: i64) {
        let gone = usize::try_from(low - self.low).unwrap_or_default().min(self.kept.len());
        self.kept.drain(..gone);
        self.low += gone as i64;
    }
}

#[derive(Clone, Debug)]
pub struct Kafka {
    pub data: [Shared<Log<Record>>; PARTITIONS],
    pub ledger: Shared<Log<Entry>>,
    pub topic: TopicIdentity,
}

fn empty() -> [Shared<Log<Record>>; PARTITIONS] {
    std::array::from_fn(|_| Log::default().into())
}

impl Kafka {
    pub fn new() -> Kafka {
        use lockstep::ledger::entry::Body;
        let made = SourceIdentity {
            system_id: 1,
            timeline: 1,
            database: "d".into(),
            slot: "s".into(),
            consistent_point: BEGINNING,
        };
        let mut ledger = Log::default();
        ledger.push(Entry::new(None, Body::Source(SourceEntry { intent: None, made: Some(made) })));
        let topic = TopicIdentity { id: Uuid::from_u128(1), partitions: PARTITIONS as i32 };
        Kafka { data: empty(), ledger: ledger.into(), topic }
    }

    /// Somebody deletes the topic, and it is made again.
    pub fn make_topic_again(&mut self) {
        self.data = empty();
        self.topic.id = Uuid::from_u128(self.topic.id.as_u128() + 1);
    }

    pub fn fold_start(&self, needed: i64) -> Result<i64> {
        let bounds = (self.ledger.low, self.ledger.end());
        let named = |at| Ok(self.ledger.get(at).map(|entry| entry.base));
        Ok(match start::before(needed, bounds, named)? {
            Start::First => self.ledger.low,
            Start::Base(base) => base,
        })
    }

    /// What is true before the entry at `to`.
    pub fn fold(&self, to: i64) -> Result<State> {
        let mut state = State::default();
        for (offset, entry) in self.ledger.since(self.fold_start(to - 1)?).take_while(|(offset, _)| *offset < to) {
            state.apply(offset, entry.clone());
        }
        Ok(state)
    }
}
