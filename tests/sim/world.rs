//! The world that readers and workers live in: what can happen in it, and what must be true whatever happens.

use std::collections::{BTreeMap, VecDeque};

use lockstep::error::Error;
use lockstep::lsn::Position;

use super::choices::{Choices, tell};
use super::kafka::{Kafka, PARTITIONS};
use super::reader::{Doing, Reader};
use super::shared::Shared;
use super::sink::{Sink, Worker};
use super::source::Source;

const STEPS: u32 = 800;

/// A mistake that a driver could make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    None,
    /// The slot is confirmed when the append is acknowledged, without reading the ledger back.
    ConfirmOnAck,
    /// The slot is confirmed as soon as a commit was received.
    ConfirmOnReceive,
    /// A sink takes records whatever epoch they are of.
    NoEpochs,
    /// A sink's commit does not compare who owns the row and where it stood.
    NoCompare,
    /// A worker does once more what it does not know to be committed.
    Remembers,
    /// A worker goes on behind what it does not know to be committed.
    SkipsUnknown,
    /// A sink takes what is in a span without counting.
    NoCount,
    /// A sink counts and compares no positions.
    CountOnly,
    /// A sink compares only the offset of the checkpoint that another one follows.
    ChainByOffset,
    /// A worker that starts begins at the ledger's end.
    ResetsToLatest,
    /// A base is named once it is acknowledged.
    NamesUnreadBase,
    /// The ledger is trimmed without regard to what the sink still needs.
    TrimsAhead,
    /// A reader takes a source that was promoted behind the ledger.
    NoHistory,
    /// A reader looks at the source's history before it claims, and not after.
    HistoryBeforeClaim,
}

/// What can go wrong. From `RecordsLost` on it is a loss, which may have to end in a halt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub enum Fault {
    /// What it sent may still land.
    ReaderDies,
    /// The server gives its slot to the next one, and it does not know.
    SlotTaken,
    SourceCrashes,
    Persists,
    WorkerDies,
    /// A standby that has everything is promoted. The old primary may live on, with its reader.
    FailsOver,
    RecordsLost,
    EntriesLost,
    /// Records that are too old are deleted.
    Expired,
    TopicMadeAgain,
    SlotDropped,
    SlotMoved,
    /// As `FailsOver`, and the standby lacks what came last.
    FailsOverBehind,
}

pub const FAULTS: [Fault; 13] = [
    Fault::ReaderDies,
    Fault::SlotTaken,
    Fault::SourceCrashes,
    Fault::Persists,
    Fault::WorkerDies,
    Fault::FailsOver,
    Fault::RecordsLost,
    Fault::EntriesLost,
    Fault::Expired,
    Fault::TopicMadeAgain,
    Fault::SlotDropped,
    Fault::SlotMoved,
    Fault::FailsOverBehind,
];

impl Fault {
    pub fn is_loss(self) -> bool {
        self >= Fault::RecordsLost
    }
}

/// One step of the world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Commit,
    Fault(Fault),
    Read(usize, Doing),
    TakeSlot,
    StartWorker,
    Work(usize),
    EndTransaction,
    Trim,
}

#[derive(Clone, Debug)]
pub struct World {
    pub choices: Choices,
    pub bug: Bug,
    /// Things are lost here, and a halt may be the right answer.
    pub lossy: bool,
    /// Bases that may still be written.
    pub bases: usize,
    /// How often each fault comes, different from seed to seed: what is rare in the mean is frequent somewhere.
    weights: [usize; FAULTS.len()],
    /// How often there is one where there could be, in percent.
    faults: usize,
    /// The same of commits: where there are few, readers keep up.
    writes: usize,
    /// In how many of a hundred steps the newest reader or worker is the one that moves.
    newest: usize,
    pub readers_made: u64,
    /// The timeline of each reader, by its nonce.
    pub read_on: BTreeMap<u64, u32>,
    pub source: Shared<Source>,
    pub readers: Vec<Shared<Reader>>,
    /// Who has the slot.
    pub holder: Option<usize>,
    pub kafka: Kafka,
    pub sink: Shared<Sink>,
    pub workers: Vec<Shared<Worker>>,
    /// The name of the halt that ended it.
    pub halted: Option<String>,
    pub trims: u64,
}

pub type Violation = String;

impl World {
    /// A world in which nothing has happened.
    pub fn new(choices: Choices, bug: Bug, source: Source) -> World {
        World {
            choices,
            bug,
            lossy: false,
            bases: 0,
            weights: [0; FAULTS.len()],
            faults: 0,
            writes: 0,
            newest: 100,
            readers_made: 0,
            read_on: BTreeMap::new(),
            source: source.into(),
            readers: Vec::new(),
            holder: None,
            kafka: Kafka::new(),
            sink: Sink::new().into(),
            workers: Vec::new(),
            halted: None,
            trims: 0,
        }
    }

    /// As the choices have it.
    pub fn drawn(choices: Choices, bug: Bug) -> World {
        let mut world = World::new(choices, bug, Source::new());
        world.lossy = world.choices.percent(50);
        for (weight, fault) in world.weights.iter_mut().zip(FAULTS) {
            let drawn = world.choices.below(8);
            // Losses are few, and one kind alone now and then, or others would hide it.
            *weight = match fault {
                Fault::FailsOver => usize::from(drawn > 5),
                _ if fault.is_loss() => 2 * usize::from(world.lossy && drawn > 4),
                _ => 2 * drawn,
            };
        }
        world.weights[0] += 1;
        world.faults = [100, 30, 10][world.choices.below(3)];
        world.writes = [100, 30, 10][world.choices.below(3)];
        world.newest = [90, 70, 50][world.choices.below(3)];
        world.bases = [0, 100][world.choices.below(2)];
        world
    }

    pub fn run(&mut self) -> Result<(), Violation> {
        for _ in 0..STEPS {
            if self.halted.is_some() {
                return Ok(());
            }
            if let Some(step) = self.draw() {
                self.step(step)?;
            }
        }
        self.settle()
    }

    fn draw(&mut self) -> Option<Step> {
        Some(match self.choices.below(100) {
            1..9 if self.choices.percent(self.writes) => Step::Commit,
            9..15 if self.choices.percent(self.faults) => Step::Fault(self.draw_fault()),
            1..68 => {
                let who = self.one_of(self.readers.len())?;
                Step::Read(who, self.draw_doing())
            }
            68 | 69 => Step::Trim,
            70..74 => Step::TakeSlot,
            74..78 => Step::StartWorker,
            78 => Step::EndTransaction,
            79.. => Step::Work(self.one_of(self.workers.len())?),
            _ => return None,
        })
    }

    /// The newest mostly, the others now and then.
    fn one_of(&mut self, count: usize) -> Option<usize> {
        (count > 0).then(|| if self.choices.percent(self.newest) { count - 1 } else { self.choices.below(count) })
    }

    fn draw_fault(&mut self) -> Fault {
        let mut drawn = self.choices.below(self.weights.iter().sum());
        for (weight, fault) in self.weights.iter().zip(FAULTS) {
            match drawn.checked_sub(*weight) {
                Some(rest) => drawn = rest,
                None => return fault,
            }
        }
        unreachable!("less than the sum was drawn")
    }

    fn draw_doing(&mut self) -> Doing {
        match self.choices.below(20) {
            0..6 => Doing::Land(self.choices.below(PARTITIONS)),
            6 | 7 => Doing::LandEntry,
            8 => Doing::TakeEntryAcks,
            9 => Doing::TakeAcks(self.choices.below(PARTITIONS)),
            10..14 => Doing::ReadBack,
            14 | 15 if self.choices.percent(25) => Doing::BaseIsDue,
            14 | 15 => Doing::Append,
            _ => Doing::Stream,
        }
    }

    pub fn step(&mut self, step: Step) -> Result<(), Violation> {
        match step {
            Step::Commit => self.source.commit(&mut self.choices),
            Step::Fault(fault) => self.fault(fault)?,
            Step::Read(i, doing) => self.read(i, doing)?,
            Step::TakeSlot => self.take_slot()?,
            Step::StartWorker => self.start_worker()?,
            Step::Work(i) => self.work(i)?,
            Step::EndTransaction => self.end_transaction()?,
            Step::Trim => self.trim(),
        }
        Ok(())
    }

    fn fault(&mut self, fault: Fault) -> Result<(), Violation> {
        tell(format_args!("fault {fault:?}"));
        match fault {
            Fault::ReaderDies => {
                if let Some(i) = (!self.readers.is_empty()).then(|| self.choices.below(self.readers.len())) {
                    self.die(i);
                }
            }
            Fault::SlotTaken => {
                if let Some(i) = self.holder.take() {
                    self.readers[i].connected = false;
                    // Somebody may have waited for it.
                    if self.choices.percent(50) {
                        self.take_slot()?;
                    }
                }
            }
            Fault::SourceCrashes => {
                self.source.crash();
                if let Some(i) = self.holder.take() {
                    self.die(i);
                }
            }
            Fault::Persists => self.source.persist(),
            Fault::WorkerDies => {
                if let Some(i) = (!self.workers.is_empty()).then(|| self.choices.below(self.workers.len())) {
                    self.workers.remove(i);
                }
            }
            Fault::FailsOver => self.fail_over(0),
            Fault::FailsOverBehind => {
                let missing = 1 + self.choices.below(6);
                self.fail_over(missing);
            }
            Fault::RecordsLost => {
                let partition = self.choices.below(PARTITIONS);
                let count = 1 + self.choices.below(2);
                self.kafka.data[partition].lose_tail(count);
            }
            Fault::EntriesLost => {
                // The first one says which source it is of; without it there is no ledger.
                let count = (1 + self.choices.below(2)).min(self.kafka.ledger.end() as usize - 1);
                self.kafka.ledger.lose_tail(count);
            }
            Fault::Expired => {
                let partition = self.choices.below(PARTITIONS);
                let low = self.kafka.data[partition].low + 1 + self.choices.below(2) as i64;
                self.kafka.data[partition].trim(low);
            }
            Fault::TopicMadeAgain => self.kafka.make_topic_again(),
            Fault::SlotDropped => {
                self.source.confirmed = None;
                if let Some(i) = self.holder.take() {
                    self.die(i);
                }
            }
            Fault::SlotMoved => {
                let end = self.source.end();
                self.source.confirm(end);
            }
        }
        Ok(())
    }

    /// Whoever reads from the old primary goes on to, unless that is gone.
    fn fail_over(&mut self, missing: usize) {
        self.source.fail_over(missing);
        if let Some(i) = self.holder.take()
            && !self.choices.percent(50)
        {
            self.die(i);
        }
    }

    /// The ledger's beginning is deleted, as far as the sink and the time that entries are kept for let it.
    fn trim(&mut self) {
        let Some(told) = self.sink.told else { return };
        let old = self.choices.below(self.kafka.ledger.end() as usize + 1) as i64;
        let needed = if self.bug == Bug::TrimsAhead { old } else { old.min(told) };
        if needed - 1 <= self.kafka.ledger.low {
            return;
        }
        if let Ok(cut) = self.kafka.fold_start(needed - 1)
            && cut > self.kafka.ledger.low
        {
            tell(format_args!("the ledger is trimmed up to {cut}"));
            self.trims += 1;
            self.kafka.ledger.trim(cut);
        }
    }

    /// It ends with a named halt, which is right only where something was lost.
    pub fn halt(&mut self, name: &str) -> Result<(), Violation> {
        if !self.lossy {
            return Err(format!("it halts with nothing lost: {name}"));
        }
        tell(format_args!("halt: {name}"));
        self.halted = Some(name.to_owned());
        Ok(())
    }

    pub fn halt_for(&mut self, error: &Error) -> Result<(), Violation> {
        tell(format_args!("{error}"));
        self.halt(&error.code().map_or_else(|| error.chain(), |code| code.to_string()))
    }

    /// What the sink must hold when it stands where its row says: all of the source up to there, as it was on the timeline that
    /// was read last.
    pub fn judge(&self) -> Result<(), Violation> {
        let row = self.sink.row;
        let due = |timeline: u32| -> Vec<Position> {
            self.source.records(timeline).filter(|position| position.lsn <= row.position.lsn).collect()
        };
        let timeline = self.read_on.get(&row.epoch.nonce).copied().unwrap_or(1);
        let due = due(timeline);
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

    /// Everything of the primary is at the sink.
    pub fn is_level(&self) -> bool {
        self.sink.applied.iter().copied().eq(self.source.records(self.source.timeline()))
    }

    /// The faults are over: one reader, one worker, and in the end everything is there.
    fn settle(&mut self) -> Result<(), Violation> {
        // Where choices are replayed and some left out, it must come to an end too.
        self.choices.write_no_more();
        (0..self.readers.len()).for_each(|i| self.die(i));
        self.workers.clear();
        for _ in 0..100_000 {
            if self.halted.is_some() || (self.is_level() && !self.has_open_transaction()) {
                return Ok(());
            }
            if self.holder.is_none() {
                self.take_slot()?;
            }
            if self.workers.is_empty() {
                self.start_worker()?;
            }
            if self.halted.is_some() {
                return Ok(());
            }
            let doing = self.draw_doing();
            self.read(self.readers.len() - 1, doing)?;
            match self.workers.len() {
                0 => {}
                workers => self.work(workers - 1)?,
            }
        }
        let total = self.source.records(self.source.timeline()).count();
        Err(format!("the sink has {} of {total} records, and nothing moves", self.sink.applied.len()))
    }

    /// What has nothing left to do is forgotten: it makes no difference.
    pub fn forget_the_dead(&mut self) {
        for reader in self.readers.iter_mut().filter(|reader| reader.dead && reader.timeline > 0) {
            if reader.entry.is_none() && reader.flights.iter().all(VecDeque::is_empty) {
                (reader.nonce, reader.timeline) = (0, 0);
            }
        }
    }
}
