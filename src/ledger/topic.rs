//! Where ledger entries are read and appended: the only IO of the room.
//!
//! A reader of the ledger begins at a base that later entries name (it was read back with no newer claim before it) or, where
//! none reaches far enough back, at the first entry kept.

use std::time::Duration;

use crate::config::Kafka;
use crate::error::{Code, Error, Result};
use crate::kafka::consumer::{Entry as Record, Pieces};
use crate::kafka::producer::{Ack, Message, Producer, Purpose, Route, Sent};
use crate::ledger::entry::{Assembler, Body, Entry, Piece};
use crate::ledger::start::{self, Start};
use crate::ledger::state::State;
use crate::record::Epoch;

/// The ledger's only partition.
pub const PARTITION: i32 = 0;

/// Entries read at once: some MiB at the most.
const PIECE_ENTRIES: i64 = 5_000;

/// How far back the first part of a base is looked for: half a gigabyte of parts.
const PARTS_LOOK: i64 = 1_000;

/// How long an append may take while nothing else flows: elections of a leader are over sooner.
pub const APPEND_TIMEOUT: Duration = Duration::from_secs(20);

/// Reads the ledger from where it must be read, over one connection. Blocks; for starts.
pub struct Reading {
    pieces: Pieces,
}

impl Reading {
    pub fn open(kafka: &Kafka) -> Result<Reading> {
        Ok(Reading { pieces: Pieces::open(kafka, &kafka.ledger, PARTITION)? })
    }

    /// First offset kept and the offset after the last entry.
    pub fn bounds(&self) -> Result<(i64, i64)> {
        self.pieces.watermarks()
    }

    fn read(&mut self, from: i64, to: i64) -> Result<Vec<Record>> {
        self.pieces.read(Some(from), to, Code::LedgerTrimmed)
    }

    /// Where a fold must begin so that its state is complete from the entry at `needed` on.
    pub fn fold_start(&mut self, needed: i64) -> Result<i64> {
        let bounds = self.bounds()?;
        let named = |at| {
            let entries = self.read(at, at + 1)?;
            let value = entries.first().and_then(|entry| entry.value.as_deref());
            value.map(|value| Entry::base_of(at, value)).transpose()
        };
        match start::before(needed, bounds, named)? {
            Start::Base(base) => self.start_of(base, bounds.0),
            Start::First => Ok(bounds.0),
        }
    }

    /// The first record of the base that stands at `base`: itself, unless it came in parts.
    fn start_of(&mut self, base: i64, low: i64) -> Result<i64> {
        let piece = |record: &Record| Entry::decode(record.offset, record.value.as_deref().unwrap_or_default());
        let entries = self.read(base, base + 1)?;
        let Some(last) = entries.first().map(piece).transpose()? else { return Ok(low) };
        let Piece::Part(last) = last else { return Ok(base) };
        // What others wrote between its parts is in it, or it would not be named.
        for record in self.read(low.max(base - PARTS_LOOK), base)?.iter().rev() {
            let first = matches!(piece(record)?, Piece::Part(part)
                if (part.epoch, part.number, part.part) == (last.epoch, last.number, 0));
            if first {
                return Ok(record.offset);
            }
        }
        Ok(low)
    }

    /// What is true before the entry at `to`.
    pub fn fold(&mut self, to: i64) -> Result<(State, Assembler)> {
        let from = self.fold_start(to - 1)?;
        let (mut state, mut assembler) = (State::default(), Assembler::default());
        let mut at = from;
        while at < to {
            // Piece by piece: a ledger without a base near its end can be long.
            let end = to.min(at + PIECE_ENTRIES);
            for record in self.read(at, end)? {
                let value = record.value.as_deref().unwrap_or_default();
                if let Some(entry) = assembler.push(record.offset, Entry::decode(record.offset, value)?)? {
                    state.apply(record.offset, entry);
                }
            }
            at = end;
        }
        Ok((state, assembler))
    }

    /// What is true at the end of the ledger.
    pub fn fold_all(&mut self) -> Result<State> {
        let (_, high) = self.bounds()?;
        Ok(self.fold(high)?.0)
    }
}

/// Runs reading that blocks beside the caller's runtime.
pub async fn beside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::retry("reading the ledger", e))?
}

/// Appends entries in order; owned by one thread.
pub struct Appender {
    producer: Producer,
    route: Route,
    /// Of the writer, for telling parts apart; before a claim, the one that is to be.
    pub epoch: Epoch,
    /// The newest base that was read back.
    pub base: Option<i64>,
    /// Appends so far; the number of one is its token.
    appends: u64,
    /// Parts not yet acknowledged, by append.
    open: std::collections::VecDeque<(u64, u64)>,
    acks: Vec<Ack>,
}

impl Appender {
    pub fn open(kafka: &Kafka) -> Result<Appender> {
        let mut producer = Producer::open(kafka, Purpose::Ledger)?;
        let route = producer.route(&kafka.ledger);
        let epoch = Epoch { offset: 0, nonce: rand::random() };
        let (base, appends, open, acks) = (None, 0, std::collections::VecDeque::new(), Vec::new());
        Ok(Appender { producer, route, epoch, base, appends, open, acks })
    }

    /// Sends an entry; the number tells it apart in [`Appender::take`].
    pub fn append(&mut self, body: Body) -> Result<u64> {
        let number = self.appends;
        self.appends += 1;
        let pieces = Entry::new(self.base, body).encode(self.epoch, number);
        self.open.push_back((number, pieces.len() as u64));
        for piece in &pieces {
            let message = Message {
                route: self.route,
                partition: Some(PARTITION),
                key: None,
                value: Some(piece),
                headers: &[],
                timestamp_ms: None,
                token: number,
            };
            if let Sent::Full = self.producer.send(&message)? {
                return Err(Error::retry_plain("appending to the ledger: the producer's queue is full"));
            }
        }
        Ok(number)
    }

    /// Resolves when entries were acknowledged or the producer failed.
    pub async fn acked(&self) {
        self.producer.acked().await;
    }

    /// Entries acknowledged since the last call: number and offset. An entry stands at its last part.
    pub fn take(&mut self) -> Result<Vec<(u64, i64)>> {
        self.producer.take_acks(&mut self.acks)?;
        let mut done = Vec::new();
        for ack in self.acks.drain(..) {
            let (number, open) = self.open.front_mut().expect("only what was sent is acknowledged");
            assert!(*number == ack.token && *open >= ack.count, "one partition is acknowledged in order");
            *open -= ack.count;
            if *open == 0 {
                done.push((*number, ack.last));
                self.open.pop_front();
            }
        }
        Ok(done)
    }

    /// Appends one entry and waits for its offset; nothing else may be in flight.
    pub async fn append_and_wait(&mut self, body: Body, timeout: std::time::Duration) -> Result<i64> {
        assert!(self.open.is_empty(), "one entry at a time");
        self.append(body)?;
        let wait = async {
            loop {
                if let Some((_, offset)) = self.take()?.pop() {
                    return Ok(offset);
                }
                self.acked().await;
            }
        };
        match tokio::time::timeout(timeout, wait).await {
            Ok(result) => result,
            Err(_) => Err(Error::retry_plain("appending to the ledger: no acknowledgement from Kafka")),
        }
    }

    pub fn close(self, timeout: std::time::Duration) {
        self.producer.close(timeout);
    }
}
