//! The source: transactions that lock the rows they write, a log in the order of their commits, snapshots that see a commit
//! only some time after it is in the log, and a slot.

use std::collections::{BTreeMap, BTreeSet};

use lockstep::capture::snapshot::Visibility;
use lockstep::change::Op;
use lockstep::ledger::entry::SourceIdentity;
use lockstep::lsn::Lsn;
use lockstep::value::{Cell, RowBuf};
use uuid::Uuid;

use super::choices::{Choices, tell};

/// Two tables; the second is of one sink only.
pub const TABLES: usize = 2;
pub const KEYS: usize = 20;
/// The slot's consistent point.
pub const BEGINNING: Lsn = Lsn(10);

/// A small column that every update sends, and a big one that most leave out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Values {
    pub small: u32,
    pub big: u32,
}

/// Rows by table and key.
pub type Rows = BTreeMap<(usize, usize), Values>;

/// What a transaction did, as it knows it.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    Insert { table: usize, key: usize, values: Values },
    Update { table: usize, key: usize, small: u32, big: Option<u32> },
    Delete { table: usize, key: usize },
    Rekey { table: usize, from: usize, to: usize, small: u32, big: Option<u32> },
    Truncate { table: usize },
}

impl Change {
    pub fn table(&self) -> usize {
        match *self {
            Change::Insert { table, .. }
            | Change::Update { table, .. }
            | Change::Delete { table, .. }
            | Change::Rekey { table, .. }
            | Change::Truncate { table } => table,
        }
    }

    /// As the stream tells it.
    pub fn op(&self) -> Op {
        match *self {
            Change::Insert { key, values, .. } => Op::Insert(row(key, Some(values.small), Some(values.big))),
            Change::Update { key, small, big, .. } => Op::Update(row(key, Some(small), big)),
            Change::Delete { key, .. } => Op::Delete(row(key, None, None)),
            Change::Rekey { from, to, small, big, .. } => {
                Op::Rekey { old: row(from, None, None), new: row(to, Some(small), big) }
            }
            Change::Truncate { .. } => Op::Truncate,
        }
    }

    pub fn apply(&self, rows: &mut Rows) {
        match *self {
            Change::Insert { table, key, values } => drop(rows.insert((table, key), values)),
            Change::Update { table, key, small, big } => {
                let row = rows.get_mut(&(table, key)).expect("an update of a row that is there");
                (row.small, row.big) = (small, big.unwrap_or(row.big));
            }
            Change::Delete { table, key } => drop(rows.remove(&(table, key))),
            Change::Rekey { table, from, to, small, big } => {
                let row = rows.remove(&(table, from)).expect("a row that is there gets another key");
                rows.insert((table, to), Values { small, big: big.unwrap_or(row.big) });
            }
            Change::Truncate { table } => rows.retain(|(of, _), _| *of != table),
        }
    }
}

/// A row as text; what is not told of is absent.
pub fn row(key: usize, small: Option<u32>, big: Option<u32>) -> RowBuf {
    let texts = [Some(key.to_string()), small.map(|v| v.to_string()), big.map(|v| v.to_string())];
    texts.iter().map(|text| text.as_ref().map_or(Cell::Absent, |text| Cell::Text(text.as_bytes()))).collect()
}

pub enum Message {
    Transaction {
        xid: u32,
        lsn: Lsn,
        end: Lsn,
        changes: Vec<Change>,
    },
    /// A logical message.
    Mark {
        end: Lsn,
        nonce: Uuid,
    },
}

impl Message {
    pub fn end(&self) -> Lsn {
        match self {
            Message::Transaction { end, .. } | Message::Mark { end, .. } => *end,
        }
    }
}

/// As `pg_snapshot`: what had not begun or was not visible yet.
#[derive(Clone, Debug)]
pub struct Snapshot {
    next: u32,
    running: BTreeSet<u32>,
}

impl Snapshot {
    /// Everything older has ended.
    pub fn oldest(&self) -> u32 {
        self.running.first().copied().unwrap_or(self.next)
    }
}

impl Visibility for Snapshot {
    fn sees(&self, xid: u32) -> bool {
        xid < self.next && !self.running.contains(&xid)
    }
}

struct Open {
    xid: u32,
    changes: Vec<Change>,
    locks: BTreeSet<(usize, usize)>,
}

pub struct Source {
    next_xid: u32,
    next_value: u32,
    open: Vec<Open>,
    /// Committed and in the log, not visible; its locks are held until it is.
    unseen: Vec<Open>,
    /// How seldom commits become visible: of a hundred times that one could.
    seen: usize,
    visible: Rows,
    pub log: Vec<Message>,
    /// Rows after each transaction of the log.
    pub history: Vec<(Lsn, Rows)>,
    pub confirmed: Lsn,
    /// What of it a crash of the server does not undo.
    pub persisted: Lsn,
    /// Somebody dropped the slot.
    pub is_slot_gone: bool,
}

impl Source {
    pub fn new(choices: &mut Choices) -> Source {
        let mut source = Source {
            next_xid: 100,
            next_value: 1,
            open: Vec::new(),
            unseen: Vec::new(),
            seen: [100, 50, 10][choices.below(3)],
            visible: Rows::new(),
            log: Vec::new(),
            history: Vec::new(),
            confirmed: BEGINNING,
            persisted: BEGINNING,
            is_slot_gone: false,
        };
        for table in 0..TABLES {
            for key in 0..KEYS {
                if choices.percent(60) {
                    let values = source.values();
                    source.visible.insert((table, key), values);
                }
            }
        }
        source.history.push((Lsn::ZERO, source.visible.clone()));
        source
    }

    fn value(&mut self) -> u32 {
        self.next_value += 1;
        self.next_value
    }

    fn values(&mut self) -> Values {
        Values { small: self.value(), big: self.value() }
    }

    pub fn end(&self) -> Lsn {
        self.log.last().map_or(BEGINNING, Message::end)
    }

    /// Rows as of a commit.
    pub fn as_of(&self, lsn: Lsn) -> &Rows {
        let behind = self.history.partition_point(|(at, _)| *at <= lsn);
        &self.history[behind - 1].1
    }

    /// A slot that begins where the log ends.
    pub fn renew_slot(&mut self) -> SourceIdentity {
        let end = self.end();
        (self.confirmed, self.persisted, self.is_slot_gone) = (end, end, false);
        SourceIdentity { system_id: 1, timeline: 1, database: "d".into(), slot: "s".into(), consistent_point: end }
    }

    pub fn snapshot(&self) -> (Snapshot, Rows) {
        let running = self.open.iter().chain(&self.unseen).map(|open| open.xid).collect();
        (Snapshot { next: self.next_xid, running }, self.visible.clone())
    }

    /// An id of a transaction that ends at once.
    pub fn xid(&mut self) -> u32 {
        self.next_xid += 1;
        self.next_xid - 1
    }

    /// One step of those who write.
    pub fn write(&mut self, choices: &mut Choices) {
        match choices.below(10) {
            0 | 1 if choices.percent(self.seen) => self.see(choices),
            0 | 1 => {}
            2 if self.open.len() < 4 => {
                let xid = self.xid();
                self.open.push(Open { xid, changes: Vec::new(), locks: BTreeSet::new() });
            }
            3 => {
                if choices.percent(30)
                    && let Some(place) = pick(&self.open, choices)
                {
                    self.open.remove(place);
                }
            }
            4 | 5 => {
                if let Some(place) = pick(&self.open, choices) {
                    self.commit(place);
                }
            }
            _ => {
                if let Some(place) = pick(&self.open, choices) {
                    self.change(place, choices);
                }
            }
        }
    }

    /// A commit becomes visible.
    fn see(&mut self, choices: &mut Choices) {
        if let Some(place) = pick(&self.unseen, choices) {
            let seen = self.unseen.remove(place);
            tell(format_args!("source: {} is visible", seen.xid));
            seen.changes.iter().for_each(|change| change.apply(&mut self.visible));
        }
    }

    fn commit(&mut self, place: usize) {
        let committed = self.open.remove(place);
        if committed.changes.is_empty() {
            return;
        }
        // It may begin where what is before it ends.
        let lsn = Lsn(self.end().0 + u64::from(committed.xid % 2));
        let end = Lsn(lsn.0 + 1);
        tell(format_args!("source: {} commits at {lsn}: {:?}", committed.xid, committed.changes));
        let mut rows = self.history.last().expect("there is a beginning").1.clone();
        committed.changes.iter().for_each(|change| change.apply(&mut rows));
        self.history.push((lsn, rows));
        self.log.push(Message::Transaction { xid: committed.xid, lsn, end, changes: committed.changes.clone() });
        self.unseen.push(committed);
    }

    /// Nobody writes from here on, and everything is visible.
    pub fn quiet(&mut self) {
        while !self.open.is_empty() {
            self.commit(0);
        }
        for seen in std::mem::take(&mut self.unseen) {
            seen.changes.iter().for_each(|change| change.apply(&mut self.visible));
        }
    }

    pub fn mark(&mut self, nonce: Uuid) {
        let end = Lsn(self.end().0 + 1);
        self.log.push(Message::Mark { end, nonce });
    }

    fn is_locked(&self, by_others_than: u32, row: (usize, usize)) -> bool {
        let others = self.open.iter().chain(&self.unseen).filter(|open| open.xid != by_others_than);
        others.into_iter().any(|open| open.locks.contains(&row))
    }

    fn change(&mut self, place: usize, choices: &mut Choices) {
        let xid = self.open[place].xid;
        let mut rows = self.visible.clone();
        self.open[place].changes.iter().for_each(|change| change.apply(&mut rows));
        let (table, key, to) = (choices.below(TABLES), choices.below(KEYS), choices.below(KEYS));
        let (is_there, kind) = (rows.contains_key(&(table, key)), choices.below(20));
        let (small, big) = (self.value(), self.value());
        let big_sent = choices.percent(20).then_some(big);
        let (change, locks) = match (is_there, kind) {
            (_, 19) if choices.percent(25) => (Change::Truncate { table }, (0..KEYS).map(|key| (table, key)).collect()),
            (false, _) => (Change::Insert { table, key, values: Values { small, big } }, vec![(table, key)]),
            (true, 0..5) => (Change::Update { table, key, small, big: big_sent }, vec![(table, key)]),
            (true, 5..7) => (Change::Delete { table, key }, vec![(table, key)]),
            (true, _) if rows.contains_key(&(table, to)) => return,
            (true, _) => {
                (Change::Rekey { table, from: key, to, small, big: big_sent }, vec![(table, key), (table, to)])
            }
        };
        if locks.iter().any(|row| self.is_locked(xid, *row)) {
            return;
        }
        self.open[place].locks.extend(locks);
        self.open[place].changes.push(change);
    }
}

fn pick<T>(of: &[T], choices: &mut Choices) -> Option<usize> {
    (!of.is_empty()).then(|| choices.below(of.len()))
}
