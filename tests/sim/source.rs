//! The source: timelines of transactions, and a slot that is held by one reader.

use lockstep::lsn::{Lsn, Position};
use lockstep::postgres::timeline::Switch;

use super::choices::Choices;
use super::kafka::{BEGINNING, PARTITIONS};

/// A transaction: the partition of each of its records.
#[derive(Clone, Debug)]
pub struct Transaction {
    pub lsn: Lsn,
    pub end: Lsn,
    pub records: Vec<usize>,
}

#[derive(Clone, Debug)]
pub struct Source {
    /// The server that is the primary has the last one; one that nobody stopped may still have an older one.
    pub timelines: Vec<Vec<Transaction>>,
    /// Where each timeline but the last was left.
    pub history: Vec<Switch>,
    /// `None`: somebody dropped the slot.
    pub confirmed: Option<Lsn>,
    /// What of it a crash of the server does not undo.
    pub persisted: Lsn,
}

fn end_of(timeline: &[Transaction]) -> Lsn {
    timeline.last().map_or(BEGINNING, |last| last.end)
}

impl Source {
    pub fn new() -> Source {
        let (timelines, history) = (vec![Vec::new()], Vec::new());
        Source { timelines, history, confirmed: Some(BEGINNING), persisted: BEGINNING }
    }

    /// With transactions whose records go to these partitions.
    pub fn of(transactions: &[&[usize]]) -> Source {
        let mut source = Source::new();
        transactions.iter().for_each(|records| source.commit_records(records.to_vec()));
        source
    }

    pub fn commit_records(&mut self, records: Vec<usize>) {
        let lsn = self.end();
        self.push(Transaction { lsn, end: Lsn(lsn.0 + 1), records });
    }

    fn push(&mut self, transaction: Transaction) {
        self.timelines.last_mut().expect("there is a first one").push(transaction);
    }

    /// Number of the primary's timeline.
    pub fn timeline(&self) -> u32 {
        self.timelines.len() as u32
    }

    pub fn now(&self) -> &[Transaction] {
        self.on(self.timeline())
    }

    pub fn on(&self, timeline: u32) -> &[Transaction] {
        &self.timelines[timeline as usize - 1]
    }

    /// The end of the primary's log.
    pub fn end(&self) -> Lsn {
        end_of(self.now())
    }

    /// The end of the log that a reader on this timeline is sent.
    pub fn end_on(&self, timeline: u32) -> Lsn {
        end_of(self.on(timeline))
    }

    pub fn commit(&mut self, choices: &mut Choices) {
        // The record of a commit may begin where the one before ends.
        let now = self.now();
        let lsn = Lsn(self.end().0 + choices.below(3) as u64 + u64::from(now.is_empty()));
        let lsn = Lsn(lsn.0.max(now.last().map_or(0, |last| last.lsn.0 + 1)));
        let end = Lsn(lsn.0 + 1 + choices.below(3) as u64);
        let count = choices.below(5);
        let records = (0..count).map(|_| choices.below(PARTITIONS)).collect();
        self.push(Transaction { lsn, end, records });
    }

    pub fn confirm(&mut self, upto: Lsn) {
        self.confirmed = self.confirmed.map(|confirmed| confirmed.max(upto));
    }

    /// The server crashes: what was confirmed since the last checkpoint is forgotten.
    pub fn crash(&mut self) {
        self.confirmed = self.confirmed.map(|_| self.persisted);
    }

    pub fn persist(&mut self) {
        self.persisted = self.confirmed.unwrap_or(self.persisted);
    }

    /// A standby that has not had the last so many transactions is promoted. Its slot stands where it last heard of it.
    pub fn fail_over(&mut self, missing: usize) {
        let now = self.now();
        let kept = now[..now.len().saturating_sub(missing)].to_vec();
        let switch = end_of(&kept);
        self.history.push(Switch { timeline: self.timeline(), switch });
        self.timelines.push(kept);
        self.persisted = self.persisted.min(switch);
        self.crash();
    }

    /// Every record of a timeline.
    pub fn records(&self, timeline: u32) -> impl Iterator<Item = Position> {
        let of = |t: &Transaction| {
            let lsn = t.lsn;
            (0..t.records.len() as u64).map(move |ordinal| Position::new(lsn, ordinal))
        };
        self.on(timeline).iter().flat_map(of)
    }
}
