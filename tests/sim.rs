//! The protocol under hostile schedules: the machines that ship, between a slot, a Kafka log and a sink that are made of vectors.
//!
//! One seed is a workload, a schedule and faults: readers that crash, or lose the slot without knowing; records and entries of
//! the dead that land late; a slot that forgets what was confirmed; sink workers that are frozen before their commit, and
//! commits whose answer is lost; tails of the log that vanish. After every commit at the sink the sink is a prefix of the
//! source, every record once and in order. When the faults end, it is the whole source, or it has halted by name because
//! something was lost.
//!
//! Simulated is only what is outside of this program; where a driver of ours does IO for a machine, the few lines here do the
//! same. [`Bug`]s are mistakes that such a driver could make; each must be found.
//!
//! Loads have a simulator of their own (`sim_loads`). Not here: restarts, trimming. `LOCKSTEP_SIM_SEED=N` runs one seed, `LOCKSTEP_LONG=1` many.

#![allow(clippy::cast_possible_truncation, reason = "offsets of a log in memory, partitions of a few")]

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use lockstep::apply::machine::{At, Item, Machine as Walk};
use lockstep::apply::span::{SpanCheck, Verdict};
use lockstep::capture::forgets::Forgets;
use lockstep::capture::machine::{Acked, Admit, Machine as Cutter, ReadBack};
use lockstep::ledger::entry::{Body, Checkpoint, Claim, Entry, SourceEntry, SourceIdentity};
use lockstep::ledger::state::State;
use lockstep::lsn::{Lsn, Position};
use lockstep::record::{Epoch, Header, Kind};
use lockstep::relation::Fingerprint;
use uuid::Uuid;

mod choices;

use choices::{Choices, shrink, tell};

const PARTITIONS: usize = 2;
const TOPIC: &str = "t";
const STEPS: u32 = 600;
/// Kinds of faults; the last ones are losses.
const FAULTS: usize = 7;
const LOSSES: usize = 2;
/// The slot's consistent point.
const BEGINNING: Lsn = Lsn(10);

/// A mistake that a driver could make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bug {
    None,
    /// The slot is confirmed when the append is acknowledged, without reading the ledger back.
    ConfirmOnAck,
    /// The slot is confirmed as soon as a commit was received.
    ConfirmOnReceive,
    /// A sink takes records whatever epoch they are of.
    NoEpochs,
    /// A sink's commit does not compare who owns the row and where it stood.
    NoCompare,
    /// A worker goes on from what it remembers after a commit whose answer was lost.
    Remembers,
    /// A sink takes what is in a span without counting.
    NoCount,
}

const BUGS: [Bug; 6] =
    [Bug::ConfirmOnAck, Bug::ConfirmOnReceive, Bug::NoEpochs, Bug::NoCompare, Bug::Remembers, Bug::NoCount];

/// A transaction of the source: the partition of each of its records.
struct Transaction {
    lsn: Lsn,
    end: Lsn,
    records: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Record {
    epoch: Epoch,
    position: Position,
}

struct Reader {
    nonce: u64,
    /// The server streams to it and takes its confirmations. It may not know that this is over.
    connected: bool,
    dead: bool,
    claim: Option<i64>,
    running: Option<Running>,
    /// Sent and not landed, by partition.
    flights: [VecDeque<(Record, u64)>; PARTITIONS],
    entry: Option<Entry>,
}

struct Running {
    machine: Cutter,
    state: State,
    /// The entry to read back next.
    next: i64,
    cursor: usize,
    open: Option<usize>,
    acks: [VecDeque<Acked>; PARTITIONS],
    last_ack: [i64; PARTITIONS],
    /// Number of the append and its offset.
    entry_acks: VecDeque<(u64, i64)>,
    appends: u64,
    last_entry: i64,
    received: Lsn,
    confirm: Lsn,
    now: Duration,
}

struct Worker {
    epoch: u64,
    row: At,
    walk: Walk,
    next: i64,
    /// Read and checked, not committed.
    ready: Option<(Vec<Position>, At)>,
}

/// The sink's database.
struct Sink {
    row: At,
    worker_epoch: u64,
    applied: Vec<Position>,
}

struct World {
    choices: Choices,
    readers_made: u64,
    bug: Bug,
    lossy: bool,
    /// How often each fault comes, different from seed to seed: what is rare in the mean is frequent somewhere.
    weights: [usize; FAULTS],
    /// In how many of a hundred steps the newest reader or worker is the one that moves.
    newest: usize,
    source: Vec<Transaction>,
    confirmed: Lsn,
    /// What of it a crash of the server does not undo.
    persisted: Lsn,
    readers: Vec<Reader>,
    /// Who has the slot.
    holder: Option<usize>,
    data: [Vec<Record>; PARTITIONS],
    ledger: Vec<Entry>,
    sink: Sink,
    workers: Vec<Worker>,
    /// The name of the halt that ended it.
    halted: Option<String>,
}

type Violation = String;

impl World {
    fn new(mut choices: Choices, bug: Bug) -> World {
        let lossy = choices.percent(40);
        let mut weights: [usize; FAULTS] = std::array::from_fn(|_| choices.below(4));
        if !lossy {
            weights[FAULTS - LOSSES..].fill(0);
        }
        weights[0] += 1;
        let newest = [90, 70, 50][choices.below(3)];
        let made = SourceIdentity {
            system_id: 1,
            timeline: 1,
            database: "d".into(),
            slot: "s".into(),
            consistent_point: BEGINNING,
        };
        World {
            choices,
            readers_made: 0,
            bug,
            lossy,
            weights,
            newest,
            source: Vec::new(),
            confirmed: BEGINNING,
            persisted: BEGINNING,
            readers: Vec::new(),
            holder: None,
            data: [Vec::new(), Vec::new()],
            ledger: vec![Entry::new(None, Body::Source(SourceEntry { intent: None, made: Some(made) }))],
            sink: Sink { row: At::ORIGIN, worker_epoch: 0, applied: Vec::new() },
            workers: Vec::new(),
            halted: None,
        }
    }

    fn below(&mut self, n: usize) -> usize {
        self.choices.below(n)
    }

    /// The end of the source's log.
    fn end(&self) -> Lsn {
        self.source.last().map_or(BEGINNING, |last| last.end)
    }

    fn run(&mut self) -> Result<(), Violation> {
        for _ in 0..STEPS {
            if self.halted.is_some() {
                return Ok(());
            }
            match self.below(100) {
                0 => {}
                1..9 => self.commit(),
                9..15 => self.fault(),
                15..70 => {
                    if !self.readers.is_empty() {
                        // The newest work most, the others now and then.
                        let n = self.readers.len();
                        let who = if self.choices.percent(self.newest) { n - 1 } else { self.below(n) };
                        self.read(who)?;
                    }
                }
                70..74 => self.take_slot(),
                74..78 => self.start_worker(),
                _ => {
                    if !self.workers.is_empty() {
                        let n = self.workers.len();
                        let who = if self.choices.percent(self.newest) { n - 1 } else { self.below(n) };
                        self.work(who)?;
                    }
                }
            }
        }
        self.settle()
    }

    fn commit(&mut self) {
        // The record of a commit may begin where the one before ends.
        let lsn = Lsn(self.end().0 + self.below(3) as u64 + u64::from(self.source.is_empty()));
        let lsn = Lsn(lsn.0.max(self.source.last().map_or(0, |last| last.lsn.0 + 1)));
        let end = Lsn(lsn.0 + 1 + self.below(3) as u64);
        let count = self.below(5);
        let records = (0..count).map(|_| self.below(PARTITIONS)).collect();
        self.source.push(Transaction { lsn, end, records });
    }

    fn fault(&mut self) {
        let total = self.weights.iter().sum();
        let mut drawn = self.below(total);
        let kind = self.weights.iter().position(|weight| match drawn.checked_sub(*weight) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        });
        tell(format_args!("fault {kind:?}"));
        match kind.expect("less than the sum was drawn") {
            // A reader dies; what it sent may still land.
            0 => {
                if let Some(i) = (!self.readers.is_empty()).then(|| self.below(self.readers.len())) {
                    self.die(i);
                }
            }
            // The server gives its slot to the next one, and it does not know.
            1 => {
                if let Some(i) = self.holder.take() {
                    self.readers[i].connected = false;
                }
            }
            // The source's server crashes: what was confirmed since the last checkpoint is forgotten.
            2 => {
                self.confirmed = self.persisted;
                if let Some(i) = self.holder.take() {
                    self.die(i);
                }
            }
            3 => self.persisted = self.confirmed,
            4 => {
                if let Some(i) = (!self.workers.is_empty()).then(|| self.below(self.workers.len())) {
                    self.workers.remove(i);
                }
            }
            // Kafka loses a tail that it had acknowledged.
            5 => {
                let partition = self.below(PARTITIONS);
                let lost = self.below(3).min(self.data[partition].len());
                let kept = self.data[partition].len() - lost;
                self.data[partition].truncate(kept);
            }
            _ => {
                let kept = self.ledger.len().saturating_sub(self.below(3)).max(1);
                self.ledger.truncate(kept);
            }
        }
    }

    fn die(&mut self, i: usize) {
        let reader = &mut self.readers[i];
        (reader.dead, reader.connected, reader.running) = (true, false, None);
        if self.holder == Some(i) {
            self.holder = None;
        }
    }

    fn take_slot(&mut self) {
        if self.holder.is_some() {
            return;
        }
        self.readers_made += 1;
        let nonce = self.readers_made;
        self.holder = Some(self.readers.len());
        let entry = Entry::new(
            None,
            Body::Claim(Claim {
                instance: Uuid::nil(),
                nonce,
                timeline: 1,
                host: String::new(),
                version: String::new(),
            }),
        );
        self.readers.push(Reader {
            nonce,
            connected: true,
            dead: false,
            claim: None,
            running: None,
            flights: Default::default(),
            entry: Some(entry),
        });
    }

    /// One step of a reader, dead or alive.
    fn read(&mut self, i: usize) -> Result<(), Violation> {
        match self.below(10) {
            0..3 => self.land(i),
            3 => self.land_entry(i),
            4 => self.take_acks(i),
            5 | 6 => self.read_back(i)?,
            7 => self.append(i),
            _ => self.stream(i),
        }
        Ok(())
    }

    /// A record arrives in its partition.
    fn land(&mut self, i: usize) {
        let partition = self.below(PARTITIONS);
        let reader = &mut self.readers[i];
        let Some((record, token)) = reader.flights[partition].pop_front() else { return };
        if reader.dead && self.choices.percent(30) {
            // Lost on the way, with everything behind it.
            reader.flights[partition].clear();
            return;
        }
        let offset = self.data[partition].len() as i64;
        self.data[partition].push(record);
        if let Some(running) = &mut reader.running {
            let (first, last, count) = (offset, offset, 1);
            running.acks[partition].push_back(Acked {
                route: 0,
                partition: partition as i32,
                token,
                first,
                last,
                count,
            });
        }
    }

    fn land_entry(&mut self, i: usize) {
        let reader = &mut self.readers[i];
        let Some(entry) = reader.entry.take() else { return };
        if reader.dead && self.choices.percent(30) {
            return;
        }
        let offset = self.ledger.len() as i64;
        tell(format_args!("ledger {offset}: {entry:?}"));
        self.ledger.push(entry);
        if reader.dead {
            return;
        }
        match &mut reader.running {
            // One at a time is sent, so it is the newest.
            Some(running) => running.entry_acks.push_back((running.appends, offset)),
            None => reader.claim = Some(offset),
        }
    }

    fn take_acks(&mut self, i: usize) {
        let (bug, holds) = (self.bug, self.holder == Some(i));
        let reader = &mut self.readers[i];
        let Some(running) = &mut reader.running else { return };
        let mut lost = false;
        for partition in 0..PARTITIONS {
            while let Some(ack) = running.acks[partition].pop_front() {
                // The producer ends the epoch when an offset does not rise: Kafka lost something.
                if ack.last <= running.last_ack[partition] {
                    lost = true;
                    break;
                }
                running.last_ack[partition] = ack.last;
                running.machine.acked(ack);
            }
        }
        while let Some((number, offset)) = running.entry_acks.pop_front() {
            // The same for the ledger.
            if lost || offset <= running.last_entry {
                lost = true;
                break;
            }
            running.last_entry = offset;
            // It may have been read back already, and another one be on its way.
            if number == running.appends && running.machine.is_appending() {
                running.machine.appended(offset);
                if bug == Bug::ConfirmOnAck
                    && holds
                    && let Some(Body::Checkpoint(checkpoint)) = self.ledger.get(offset as usize).map(|e| &e.body)
                {
                    self.confirmed = self.confirmed.max(checkpoint.closed.min(running.received));
                }
            }
        }
        if lost {
            self.die(i);
        }
    }

    /// Reads the next entry back; before that, its own claim.
    fn read_back(&mut self, i: usize) -> Result<(), Violation> {
        if self.readers[i].running.is_none() {
            return self.begin(i);
        }
        let holds = self.holder == Some(i);
        let Some(running) = &mut self.readers[i].running else { return Ok(()) };
        if running.next > self.ledger.len() as i64 {
            self.die(i);
            return Ok(());
        }
        let Some(entry) = self.ledger.get(running.next as usize) else { return Ok(()) };
        let event = running.state.apply(running.next, entry.clone());
        match running.machine.read_back(running.next, &event) {
            ReadBack::Nothing => {}
            ReadBack::Confirm(lsn) => running.confirm = running.confirm.max(lsn),
            ReadBack::Fenced(_) => {
                self.die(i);
                return Ok(());
            }
        }
        running.next += 1;
        if holds {
            self.confirmed = self.confirmed.max(running.confirm.min(running.received));
        }
        Ok(())
    }

    /// A claim that was acknowledged makes an epoch, if it is where it should be and the slot is not ahead.
    fn begin(&mut self, i: usize) -> Result<(), Violation> {
        let (nonce, connected) = (self.readers[i].nonce, self.readers[i].connected);
        let Some(claim) = self.readers[i].claim.filter(|_| !self.readers[i].dead) else { return Ok(()) };
        let epoch = Epoch { offset: claim as u64, nonce };
        let mut state = State::default();
        for (offset, entry) in (0..).zip(&self.ledger).take(claim as usize + 1) {
            state.apply(offset, entry.clone());
        }
        if state.claim != Some(epoch) {
            self.die(i);
            return Ok(());
        }
        let closed = state.last.map_or(BEGINNING, |last| last.closed);
        if connected && self.confirmed > closed {
            if self.lossy {
                self.halted = Some("SLOT_MOVED".into());
                return Ok(());
            }
            return Err(format!("L1: the slot is confirmed up to {}, the ledger closed {closed}", self.confirmed));
        }
        let confirmed = self.confirmed;
        let cursor = self.source.iter().position(|t| t.end > confirmed).unwrap_or(self.source.len());
        self.readers[i].running = Some(Running {
            machine: Cutter::new(epoch, state.last, closed, Duration::ZERO),
            state,
            next: claim + 1,
            cursor,
            open: None,
            acks: Default::default(),
            last_ack: [-1; PARTITIONS],
            entry_acks: VecDeque::new(),
            appends: 0,
            last_entry: claim,
            received: confirmed,
            confirm: Lsn::ZERO,
            now: Duration::ZERO,
        });
        Ok(())
    }

    fn append(&mut self, i: usize) {
        let reader = &mut self.readers[i];
        if reader.entry.is_some() {
            return;
        }
        let Some(running) = &mut reader.running else { return };
        running.now += Duration::from_millis(1);
        if let Some(checkpoint) =
            running.machine.next_append(running.now, &[TOPIC.to_owned()], &mut Forgets::default(), true)
        {
            running.appends += 1;
            reader.entry = Some(Entry::new(None, Body::Checkpoint(checkpoint)));
        }
    }

    /// The next message of the stream.
    fn stream(&mut self, i: usize) {
        let (bug, end) = (self.bug, self.end());
        let reader = &mut self.readers[i];
        let (true, Some(running)) = (reader.connected, &mut reader.running) else { return };
        let Some(transaction) = self.source.get(running.cursor) else {
            running.machine.keepalive(end);
            running.received = running.received.max(end);
            return;
        };
        match running.open {
            None => match running.machine.begin(transaction.lsn) {
                Admit::Take => running.open = Some(0),
                Admit::Drop => {
                    running.machine.dropped(transaction.end);
                    running.received = running.received.max(transaction.end);
                    running.cursor += 1;
                }
            },
            Some(n) if n < transaction.records.len() => {
                let (position, token) = running.machine.record();
                let record = Record { epoch: running.machine.epoch(), position };
                reader.flights[transaction.records[n]].push_back((record, token));
                running.open = Some(n + 1);
            }
            Some(_) => {
                running.machine.commit(transaction.end, 1);
                running.open = None;
                running.received = running.received.max(transaction.end);
                running.cursor += 1;
                if bug == Bug::ConfirmOnReceive {
                    self.confirmed = self.confirmed.max(transaction.end);
                }
            }
        }
    }

    /// A worker takes the sink over: it bumps the row's epoch and walks from what the row says.
    fn start_worker(&mut self) {
        self.sink.worker_epoch += 1;
        let row = self.sink.row;
        let walk = Walk::new("p", "s", BTreeSet::new(), row, -1);
        self.workers.push(Worker { epoch: self.sink.worker_epoch, row, walk, next: 0, ready: None });
    }

    fn halt(&mut self, i: usize, what: &lockstep::error::Error) -> Result<(), Violation> {
        let worker = self.workers.remove(i);
        // One that has lost the sink says nothing of it.
        if worker.epoch != self.sink.worker_epoch {
            return Ok(());
        }
        let name = what.code().map_or_else(|| what.chain(), |code| code.to_string());
        if !self.lossy {
            return Err(format!("the sink halts with nothing lost: {what}"));
        }
        self.halted = Some(name);
        Ok(())
    }

    fn work(&mut self, i: usize) -> Result<(), Violation> {
        if self.workers[i].ready.is_some() {
            return self.commit_at_sink(i);
        }
        let worker = &mut self.workers[i];
        if let Some(Item::Interval(interval)) = worker.walk.peek() {
            let (offset, at) = (interval.offset, interval.at(worker.row));
            let Some(Body::Checkpoint(checkpoint)) = self.ledger.get(offset as usize).map(|entry| entry.body.clone())
            else {
                // The entry is gone again; a worker that starts anew sees what there is.
                self.workers.remove(i);
                return Ok(());
            };
            return match fetch(&self.data, &checkpoint, self.bug) {
                Ok(positions) => {
                    let worker = &mut self.workers[i];
                    worker.walk.pop();
                    worker.ready = Some((positions, at));
                    Ok(())
                }
                Err(error) => self.halt(i, &error),
            };
        }
        let next = worker.next;
        let caught_up = next > worker.row.offset;
        let Some(entry) = self.ledger.get(next as usize).cloned() else {
            // The row names what the ledger does not hold.
            return match caught_up {
                true => Ok(()),
                false => match worker.walk.check_row() {
                    Err(error) => self.halt(i, &error),
                    Ok(()) => Ok(()),
                },
            };
        };
        worker.next += 1;
        let mut outcome = worker.walk.entry(next, entry);
        if outcome.is_ok() && next == worker.row.offset {
            outcome = worker.walk.check_row();
        }
        outcome.or_else(|error| self.halt(i, &error))
    }

    /// Rows and progress in one transaction.
    fn commit_at_sink(&mut self, i: usize) -> Result<(), Violation> {
        let (answer_lost, remembers) = (self.choices.percent(10), self.bug == Bug::Remembers);
        let worker = &mut self.workers[i];
        let (positions, at) = worker.ready.take().expect("called with something to commit");
        let owned = (worker.epoch, worker.row) == (self.sink.worker_epoch, self.sink.row);
        if !owned && self.bug != Bug::NoCompare {
            self.workers.remove(i);
            return Ok(());
        }
        tell(format_args!("sink: {} from {:?} to {at:?}: {positions:?}", worker.epoch, worker.row));
        self.sink.applied.extend(&positions);
        self.sink.row = at;
        match answer_lost {
            false => worker.row = at,
            true if remembers => {
                // It tries the same once more, from where it stands.
                worker.epoch = self.sink.worker_epoch;
                worker.row = self.sink.row;
                worker.ready = Some((positions, at));
            }
            true => {
                self.workers.remove(i);
            }
        }
        self.judge()
    }

    /// What the sink must hold when it stands where its row says.
    fn judge(&self) -> Result<(), Violation> {
        let upto = self.sink.row.position.lsn;
        let due: Vec<Position> = self.records().filter(|position| position.lsn <= upto).collect();
        if self.sink.applied == due {
            return Ok(());
        }
        let differ = self.sink.applied.iter().zip(&due).position(|(a, b)| a != b);
        let at = differ.unwrap_or_else(|| self.sink.applied.len().min(due.len()));
        Err(format!(
            "the sink at {} differs from the source at record {at}: it has {:?}, the source {:?}",
            self.sink.row.position,
            self.sink.applied.get(at),
            due.get(at)
        ))
    }

    fn records(&self) -> impl Iterator<Item = Position> {
        let of = |t: &Transaction| {
            let lsn = t.lsn;
            (0..t.records.len() as u64).map(move |ordinal| Position::new(lsn, ordinal))
        };
        self.source.iter().flat_map(of)
    }

    /// The faults are over: one reader, one worker, and in the end everything is there.
    fn settle(&mut self) -> Result<(), Violation> {
        // Where choices are replayed and some left out, it must come to an end too.
        self.choices.write_no_more();
        (0..self.readers.len()).for_each(|i| self.die(i));
        self.workers.clear();
        self.start_worker();
        let total = self.records().count();
        for _ in 0..100_000 {
            if self.halted.is_some() {
                return Ok(());
            }
            if self.sink.applied.len() == total {
                return Ok(());
            }
            if self.holder.is_none() {
                self.take_slot();
            }
            if self.workers.is_empty() {
                self.start_worker();
            }
            let newest = self.readers.len() - 1;
            self.read(newest)?;
            self.work(self.workers.len() - 1)?;
        }
        Err(format!("the sink has {} of {total} records, and nothing moves", self.sink.applied.len()))
    }
}

/// The records of a checkpoint's spans by position, each span checked.
fn fetch(data: &[Vec<Record>], checkpoint: &Checkpoint, bug: Bug) -> Result<Vec<Position>, lockstep::error::Error> {
    let mut positions = Vec::new();
    for span in &checkpoint.spans {
        let mut check = SpanCheck::new(checkpoint, span);
        for (offset, record) in (0..).zip(&data[span.partition as usize]).skip(span.first as usize) {
            if check.is_done() || offset > span.last {
                break;
            }
            let epoch = if bug == Bug::NoEpochs { checkpoint.epoch } else { record.epoch };
            let header = Header { kind: Kind::Change, epoch, position: record.position, relation: Fingerprint(0) };
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

fn outcome(choices: Choices, bug: Bug) -> (World, Result<(), Violation>) {
    let mut world = World::new(choices, bug);
    let outcome = world.run();
    (world, outcome)
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("LOCKSTEP_SIM_SEED").map(|seed| seed.parse::<u64>().expect("LOCKSTEP_SIM_SEED is a number")) {
        Ok(seed) => seed..seed + 1,
        Err(_) if std::env::var_os("LOCKSTEP_LONG").is_some() => 0..20_000,
        Err(_) => 0..500,
    }
}

/// Every seed ends with the sink equal to the source, or halted by name after a loss; and what the schedules are meant to hit
/// is hit.
#[test]
fn whatever_happens_the_sink_is_a_prefix_of_the_source() {
    let begun = std::time::Instant::now();
    let (mut halts, mut readers, mut workers, mut applied) = (0, 0, 0, 0);
    let mut names = BTreeSet::new();
    let seeds = seeds();
    for seed in seeds.clone() {
        let (world, outcome) = outcome(Choices::of_seed(seed), Bug::None);
        if let Err(violation) = outcome {
            let again = |made: &[u32]| self::outcome(Choices::replay(made.to_vec()), Bug::None).1;
            let made = shrink(world.choices.made, |made| again(made).is_err());
            choices::TELLING.store(true, std::sync::atomic::Ordering::Relaxed);
            panic!("LOCKSTEP_SIM_SEED={seed}: {violation}\nshrunk to {} choices: {:?}", made.len(), again(&made));
        }
        halts += u32::from(world.halted.is_some());
        names.extend(world.halted);
        readers += world.readers.len();
        workers += world.sink.worker_epoch;
        applied += world.sink.applied.len();
    }
    let count = seeds.end - seeds.start;
    println!(
        "seeds {}..{}: {readers} readers, {workers} workers, {applied} records, {halts} halts {names:?}, {:.0} seeds a second",
        seeds.start,
        seeds.end,
        count as f64 / begun.elapsed().as_secs_f64()
    );
    if count > 1 {
        assert!(halts > 0 && u64::from(halts) < count / 2, "{halts} of {count} ended with a halt");
        assert!(readers as u64 > 3 * count && workers > 3 * count && applied as u64 > 10 * count);
        assert!(["TOPIC_GAP", "LEDGER_LOST", "SLOT_MOVED"].iter().all(|name| names.contains(*name)), "{names:?}");
    }
}

/// A simulator that finds nothing proves nothing: it finds each of these.
#[test]
fn every_bug_is_found() {
    for bug in BUGS {
        // A machine that refuses to go on has not been proven wrong.
        let found = (0..5_000).find(|&seed| {
            std::panic::catch_unwind(|| outcome(Choices::of_seed(seed), bug).1.is_err()).unwrap_or(false)
        });
        println!("{bug:?}: seed {found:?}");
        assert!(found.is_some(), "{bug:?} is not found");
    }
}

/// The same choices are the same run.
#[test]
fn a_seed_replays_exactly() {
    let fingerprint = |choices| {
        let (world, _) = outcome(choices, Bug::None);
        (world.sink.applied, world.ledger.len(), world.confirmed, world.halted)
    };
    for seed in 0..20 {
        let made = outcome(Choices::of_seed(seed), Bug::None).0.choices.made;
        assert_eq!(fingerprint(Choices::of_seed(seed)), fingerprint(Choices::replay(made)));
    }
}
