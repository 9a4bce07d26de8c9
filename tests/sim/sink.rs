//! A sink: rows and a progress row that change in one transaction, which holds the row's lock until it ends, and workers that
//! walk along the ledger.

use std::collections::{BTreeMap, BTreeSet};

use lockstep::apply::machine::{At, Item, Machine};
use lockstep::apply::span::{SpanCheck, Verdict};
use lockstep::error::{Error, Result};
use lockstep::ledger::entry::{Anchor, Body, Checkpoint, Entry};
use lockstep::lsn::{Lsn, Position};
use lockstep::record::{Header, Kind};
use lockstep::relation::Fingerprint;

use super::choices::tell;
use super::kafka::Kafka;
use super::world::{Bug, Violation, World};

/// The sink's database.
#[derive(Clone, Debug)]
pub struct Sink {
    pub row: At,
    pub worker_epoch: u64,
    pub applied: Vec<Position>,
    /// A transaction that has the row's lock. It may outlive the worker that began it.
    open: Option<Open>,
    /// What a worker has said in Kafka that it still needs: the entry from here on.
    pub told: Option<i64>,
}

#[derive(Clone, Debug)]
struct Open {
    worker: u64,
    positions: Vec<Position>,
    to: At,
    /// The server was told to commit.
    ends: bool,
}

#[derive(Clone)]
pub struct Worker {
    epoch: u64,
    row: At,
    walk: Machine,
    next: i64,
    /// As they were read; entries may be lost since, and others stand there.
    checkpoints: BTreeMap<i64, Checkpoint>,
    /// Read and checked, not committed.
    ready: Option<(Vec<Position>, At)>,
}

/// Prints what differs in these worlds.
impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Worker { epoch, row, walk, next, ready, .. } = self;
        let items: Vec<&Item> = walk.items().collect();
        write!(f, "{:?}", (epoch, row, walk.state().claim, walk.state().last, walk.end(), items, next, ready))
    }
}

impl Sink {
    pub fn new() -> Sink {
        Sink { row: At::ORIGIN, worker_epoch: 0, applied: Vec::new(), open: None, told: None }
    }

    fn commit(&mut self) {
        let open = self.open.take().expect("called with something to commit");
        tell(format_args!("sink: {} from {:?} to {:?}: {:?}", open.worker, self.row, open.to, open.positions));
        self.applied.extend(open.positions);
        self.row = open.to;
    }
}

impl World {
    /// A worker takes the sink over: it bumps the row's epoch and walks from what the row says. A transaction that has the
    /// row is waited for, or its session ended, which may be too late to stop its commit.
    pub fn start_worker(&mut self) -> Result<(), Violation> {
        if let Some(open) = &self.sink.open {
            let ends = open.ends;
            if self.choices.percent(50) {
                return Ok(());
            }
            match ends && self.choices.percent(50) {
                true => self.sink.commit(),
                false => self.sink.open = None,
            }
            self.judge()?;
        }
        self.sink.worker_epoch += 1;
        let row = self.sink.row;
        let from = match self.kafka.fold_start(row.offset) {
            Ok(_) if self.bug == Bug::ResetsToLatest => self.kafka.ledger.end(),
            Ok(from) => from,
            Err(error) => return self.halt_for(&error),
        };
        let walk = Machine::new("p", "s", BTreeSet::new(), row, -1);
        let epoch = self.sink.worker_epoch;
        self.workers.push(Worker { epoch, row, walk, next: from, checkpoints: BTreeMap::new(), ready: None }.into());
        Ok(())
    }

    /// The server ends a transaction whose worker is gone: it hears of that, or gets to the commit that was on its way.
    pub fn end_transaction(&mut self) -> Result<(), Violation> {
        let Some(open) = &self.sink.open else { return Ok(()) };
        let worker = open.worker;
        match open.ends && self.choices.percent(50) {
            true => self.sink.commit(),
            false => self.sink.open = None,
        }
        self.workers.retain(|other| other.epoch != worker);
        self.judge()
    }

    pub fn has_open_transaction(&self) -> bool {
        self.sink.open.is_some()
    }

    /// Only whoever has the sink says that it halts.
    fn halt_worker(&mut self, i: usize, what: &Error) -> Result<(), Violation> {
        let worker = self.workers.remove(i);
        if worker.epoch != self.sink.worker_epoch {
            return Ok(());
        }
        self.halt_for(what)
    }

    /// One step of a worker: an entry, an interval, its transaction.
    pub fn work(&mut self, i: usize) -> Result<(), Violation> {
        if self.workers[i].ready.is_some() {
            return self.transact(i);
        }
        let worker: &mut Worker = &mut self.workers[i];
        if let Some(Item::Interval(interval)) = worker.walk.peek() {
            let (offset, at) = (interval.offset, interval.at(worker.row));
            return match fetch(&self.kafka, &worker.checkpoints[&offset], self.bug) {
                Ok(positions) => {
                    worker.checkpoints.remove(&offset);
                    worker.walk.pop();
                    worker.ready = Some((positions, at));
                    Ok(())
                }
                Err(error) => self.halt_worker(i, &error),
            };
        }
        self.walk(i)
    }

    /// The next entry of the ledger.
    fn walk(&mut self, i: usize) -> Result<(), Violation> {
        let (ledger, worker): (_, &mut Worker) = (&self.kafka.ledger, &mut self.workers[i]);
        let next = worker.next;
        if next < ledger.low {
            let trimmed = self.kafka.fold_start(next - 1).err();
            // What it had not read yet was trimmed, but not so far that it could not begin anew.
            return match trimmed {
                Some(error) => self.halt_worker(i, &error),
                None => {
                    self.workers.remove(i);
                    Ok(())
                }
            };
        }
        let Some(entry) = ledger.get(next).cloned() else {
            // The row names what the ledger does not hold.
            return match next > worker.row.offset {
                true => Ok(()),
                false => match worker.walk.check_row() {
                    Err(error) => self.halt_worker(i, &error),
                    Ok(()) => Ok(()),
                },
            };
        };
        worker.next += 1;
        if let Body::Checkpoint(checkpoint) = &entry.body {
            worker.checkpoints.insert(next, checkpoint.clone());
        }
        let entry = if self.bug == Bug::ChainByOffset { by_offset(entry, worker.walk.end()) } else { entry };
        let mut outcome = worker.walk.entry(next, entry);
        if outcome.is_ok() && next == worker.row.offset && self.bug != Bug::ChainByOffset {
            outcome = worker.walk.check_row();
        }
        outcome.or_else(|error| self.halt_worker(i, &error))
    }

    /// Rows and progress in one transaction: it begins with a look at the row, which is its own from there on.
    fn transact(&mut self, i: usize) -> Result<(), Violation> {
        let worker: &mut Worker = &mut self.workers[i];
        match &mut self.sink.open {
            None => {
                let owned = (worker.epoch, worker.row) == (self.sink.worker_epoch, self.sink.row);
                if !owned && self.bug != Bug::NoCompare {
                    self.workers.remove(i);
                    return Ok(());
                }
                let (positions, to) = worker.ready.clone().expect("called with something to commit");
                self.sink.open = Some(Open { worker: worker.epoch, positions, to, ends: false });
                Ok(())
            }
            Some(open) if open.worker == worker.epoch => {
                open.ends = true;
                self.commit_at_sink(i)
            }
            // It waits for the row.
            Some(_) => Ok(()),
        }
    }

    /// The answer comes, or is lost: then nobody knows whether the commit was made, was not, or is still to be.
    fn commit_at_sink(&mut self, i: usize) -> Result<(), Violation> {
        let worker: &mut Worker = &mut self.workers[i];
        let (positions, at) = worker.ready.take().expect("called with something to commit");
        if !self.choices.percent(15) {
            self.sink.commit();
            worker.row = at;
            if self.choices.percent(50) {
                self.sink.told = Some(at.offset + 1);
            }
            return self.judge();
        }
        let is_late = match self.choices.below(3) {
            0 => {
                self.sink.commit();
                false
            }
            1 => {
                self.sink.open = None;
                false
            }
            _ => true,
        };
        match self.bug {
            // It tries the same once more, from where it stands.
            Bug::Remembers if !is_late => {
                (worker.epoch, worker.row) = (self.sink.worker_epoch, self.sink.row);
                worker.ready = Some((positions, at));
            }
            // It takes the commit for made and goes on behind it.
            Bug::SkipsUnknown if !is_late => (worker.epoch, worker.row) = (self.sink.worker_epoch, self.sink.row),
            _ => drop(self.workers.remove(i)),
        }
        self.judge()
    }
}

/// The records of a checkpoint's spans by position, each span checked.
fn fetch(kafka: &Kafka, checkpoint: &Checkpoint, bug: Bug) -> Result<Vec<Position>> {
    let mut positions = Vec::new();
    let anywhere = Checkpoint { from: Position::ORIGIN, to: Position::new(Lsn(u64::MAX), 0), ..checkpoint.clone() };
    let counted = if bug == Bug::CountOnly { &anywhere } else { checkpoint };
    for span in &checkpoint.spans {
        let mut check = SpanCheck::new(counted, span);
        for (number, (offset, record)) in (1..).zip(kafka.data[span.partition as usize].since(span.first)) {
            if check.is_done() || offset > span.last {
                break;
            }
            let epoch = if bug == Bug::NoEpochs { checkpoint.epoch } else { record.epoch };
            // Rising, whatever is there.
            let position = if bug == Bug::CountOnly { Position::new(Lsn(number), 0) } else { record.position };
            let header = Header { kind: Kind::Change, epoch, position, relation: Fingerprint(0) };
            match check.record(offset, Some(&header)) {
                Ok(Verdict::Take) => positions.push(record.position),
                Ok(Verdict::Skip) => {}
                Err(_) if bug == Bug::NoCount => positions.push(record.position),
                Err(error) => return Err(error),
            }
        }
        if bug != Bug::NoCount {
            check.end()?;
        }
    }
    positions.sort_unstable();
    Ok(positions)
}

/// The entry as a sink sees it that compares nothing but the offset of the checkpoint before.
fn by_offset(entry: Entry, end: At) -> Entry {
    let body = match entry.body {
        Body::Checkpoint(c) if c.prev.is_some_and(|prev| prev.offset == end.offset) => {
            let prev = Some(Anchor { offset: end.offset, epoch: end.epoch, to: end.position });
            Body::Checkpoint(Checkpoint { prev, from: end.position, ..c })
        }
        other => other,
    };
    Entry { body, ..entry }
}

impl Worker {
    /// Whether there is more in the ledger than it has done.
    pub fn has_work(&self, world: &World) -> bool {
        self.ready.is_some() || self.walk.peek().is_some() || self.next < world.kafka.ledger.end()
    }
}
