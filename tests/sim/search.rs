//! Small worlds, searched whole: every order of every step that can be made in them, over the machines that ship.
//!
//! Seeds find what is likely; here nothing is too unlikely. The worlds are those of the state searches in models/, which were
//! written before there was any code. A breadth-first search of our own rather than a crate's: the worlds are the simulator's,
//! with all of its steps, and need no more than to be cloned and told apart. Two worlds are one if they print the same.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lockstep::lsn::Lsn;

use super::choices::Choices;
use super::kafka::{BEGINNING, PARTITIONS};
use super::reader::Doing;
use super::shared::digest;
use super::source::Source;
use super::world::{Bug, Fault, Step, Violation, World};

/// What there is in a small world, and how much of it can happen.
struct Small {
    name: &'static str,
    transactions: &'static [&'static [usize]],
    readers: usize,
    workers: u64,
    bases: usize,
    /// Each may come once.
    faults: &'static [Fault],
    /// Mistakes that must be found here.
    bugs: &'static [Bug],
}

/// Readers that overtake each other (models/ledger.py). What a sink makes of it depends on nothing but the ledger's end, so it
/// is looked at instead of taking steps.
const READERS: Small = Small {
    name: "readers",
    transactions: &[&[0, 0], &[1]],
    readers: 2,
    workers: 0,
    bases: 0,
    faults: &[],
    bugs: &[Bug::ConfirmOnAck, Bug::ConfirmOnReceive, Bug::NoEpochs],
};

/// Kafka loses a tail of records, and the reader goes on (models/loss.py).
const RECORDS: Small = Small {
    name: "records",
    transactions: &[&[0], &[0]],
    readers: 1,
    workers: 1,
    bases: 0,
    faults: &[Fault::RecordsLost],
    bugs: &[Bug::CountOnly],
};

/// The same of the ledger.
const ENTRIES: Small = Small {
    name: "entries",
    transactions: &[&[0], &[0]],
    readers: 2,
    workers: 1,
    bases: 0,
    faults: &[Fault::EntriesLost],
    // One that compares offsets alone takes more worlds than fit here; seeds find it.
    bugs: &[],
};

/// Bases, and readers whose claims come between (models/base.py).
const BASES: Small = Small {
    name: "bases",
    transactions: &[&[0]],
    readers: 2,
    workers: 0,
    bases: 1,
    faults: &[],
    bugs: &[Bug::NamesUnreadBase],
};

/// A standby is promoted and the old primary lives on, with its reader.
const PROMOTED: Small = Small {
    name: "promoted",
    transactions: &[&[0], &[0]],
    readers: 2,
    workers: 0,
    bases: 0,
    faults: &[Fault::FailsOverBehind],
    bugs: &[Bug::NoHistory, Bug::HistoryBeforeClaim],
};

/// Workers that replace each other, and commits nobody hears of.
const WORKERS: Small = Small {
    name: "workers",
    transactions: &[&[0], &[1]],
    readers: 1,
    workers: 2,
    bases: 0,
    faults: &[],
    bugs: &[Bug::NoCompare, Bug::Remembers, Bug::SkipsUnknown],
};

/// Each mistake is found in fewer.
const BUG_WORLDS_MAX: usize = 100_000;

/// A world and what can still go wrong in it.
#[derive(Clone)]
struct Node {
    world: World,
    faults: Vec<Fault>,
}

/// How a world came to be: from which one, by which step and choices.
type Origin = Option<(u64, Step, Vec<u32>)>;

/// Steps from the first world on, with what was chosen in each.
type Path = Vec<(Step, Vec<u32>)>;

impl Node {
    fn of(small: &Small, bug: Bug) -> Node {
        let mut world = World::new(Choices::replay(Vec::new()), bug, Source::of(small.transactions));
        world.lossy = small.faults.iter().any(|fault| fault.is_loss());
        world.bases = small.bases;
        Node { world, faults: small.faults.to_vec() }
    }

    fn digest(&self) -> u64 {
        let w = &self.world;
        let of_readers = (&w.readers, w.holder, &w.source, w.bases);
        digest(format_args!(
            "{of_readers:?} {:?} {:?} {:?} {:?} {:?}",
            w.kafka, w.sink, w.workers, w.halted, self.faults
        ))
    }

    /// All that can be done here.
    fn steps(&self, small: &Small) -> Vec<Step> {
        let world = &self.world;
        let mut steps = Vec::new();
        if world.halted.is_some() {
            return steps;
        }
        if world.readers.len() < small.readers {
            steps.push(if world.holder.is_some() { Step::Fault(Fault::SlotTaken) } else { Step::TakeSlot });
        }
        if world.readers.iter().any(|reader| !reader.dead) {
            steps.push(Step::Fault(Fault::ReaderDies));
        }
        let mut doings: Vec<Doing> = (0..PARTITIONS).map(Doing::Land).collect();
        doings.extend([Doing::LandEntry, Doing::ReadBack, Doing::Stream]);
        doings.extend((world.bases > 0).then_some(Doing::BaseIsDue));
        for (i, reader) in world.readers.iter().enumerate() {
            steps.extend(doings.iter().filter(|doing| reader.can(**doing)).map(|doing| Step::Read(i, *doing)));
        }
        if world.sink.worker_epoch < small.workers {
            steps.push(Step::StartWorker);
        }
        steps.extend((0..world.workers.len()).map(Step::Work));
        steps.extend(world.has_open_transaction().then_some(Step::EndTransaction));
        steps.extend(self.faults.iter().map(|fault| Step::Fault(*fault)));
        steps
    }

    /// What the step can come to, one for each way to answer what it asks.
    fn after(&self, step: Step) -> Vec<(Vec<u32>, Node, Result<(), Violation>)> {
        let mut outcomes = Vec::new();
        Choices::all(|choices| {
            let mut next = self.clone();
            next.world.choices = choices;
            // A machine that refuses to go on has not been proven wrong, where somebody made a mistake.
            let mut made = catch_unwind(AssertUnwindSafe(|| next.step(step)));
            if let (Err(panic), Bug::None) = (&made, self.world.bug) {
                made = Ok(Err(format!("a machine stops: {:?}", panic.downcast_ref::<String>())));
            }
            let choices = next.world.choices.clone();
            if let Ok(outcome) = made {
                outcomes.push((choices.made.clone(), next, outcome));
            }
            (choices, true)
        });
        outcomes
    }

    fn step(&mut self, step: Step) -> Result<(), Violation> {
        self.world.step(step)?;
        match step {
            Step::Fault(fault) => {
                if let Some(place) = self.faults.iter().position(|left| *left == fault) {
                    self.faults.remove(place);
                }
                if fault == Fault::FailsOverBehind {
                    // Where the transactions stood that are gone, there is another one now.
                    self.world.source.commit_records(vec![1, 1]);
                }
            }
            Step::Read(i, doing) => self.go_on(i, doing)?,
            _ => {}
        }
        self.world.forget_the_dead();
        Ok(())
    }

    /// What makes no difference when it happens happens at once: a transaction is sent whole, what has arrived is heard of, and
    /// what can be appended is on its way.
    fn go_on(&mut self, i: usize, doing: Doing) -> Result<(), Violation> {
        let world = &mut self.world;
        match doing {
            Doing::Land(partition) => world.read(i, Doing::TakeAcks(partition))?,
            Doing::LandEntry => world.read(i, Doing::TakeEntryAcks)?,
            Doing::Stream => {
                while world.readers[i].is_in_transaction() {
                    world.read(i, Doing::Stream)?;
                }
            }
            _ => {}
        }
        world.read(i, Doing::Append)
    }

    /// What must be true of every world: the slot is not ahead of the ledger, a start at a base knows what one at the first
    /// entry knows, and a sink that is made now becomes a prefix of the source.
    fn check(&self, small: &Small) -> Result<(), Violation> {
        let world = &self.world;
        if world.halted.is_some() {
            return Ok(());
        }
        let end = world.kafka.ledger.end();
        let state = world.kafka.fold(end).map_err(|e| e.to_string())?;
        let closed = state.last.map_or(BEGINNING, |last| last.closed);
        let confirmed = world.source.confirmed.unwrap_or(Lsn::ZERO);
        if confirmed > closed && !world.lossy {
            return Err(format!("L1: the slot is confirmed up to {confirmed}, the ledger closed {closed}"));
        }
        let mut all = lockstep::ledger::state::State::default();
        for (offset, entry) in world.kafka.ledger.since(0) {
            all.apply(offset, entry.clone());
        }
        if (state.claim, state.last, &state.source) != (all.claim, all.last, &all.source) && !world.lossy {
            return Err(format!(
                "a start sees {:?} {:?}, there is {:?} {:?}",
                state.claim, state.last, all.claim, all.last
            ));
        }
        if small.workers == 0 {
            let mut probe = world.clone();
            probe.start_worker()?;
            while probe.halted.is_none() && probe.workers.first().is_some_and(|worker| worker.has_work(&probe)) {
                probe.work(0)?;
            }
        }
        Ok(())
    }
}

struct Found {
    states: usize,
    steps: usize,
    /// Worlds in which everything is at the sink.
    level: usize,
    violation: Option<(Violation, Path)>,
}

/// Every world that can come of the first one, up to so many.
fn search(small: &Small, bug: Bug, states_max: usize) -> Found {
    let first = Node::of(small, bug);
    let mut origins: HashMap<u64, Origin> = HashMap::from([(first.digest(), None)]);
    let mut checked = HashSet::new();
    let mut open = VecDeque::from([first]);
    let mut found = Found { states: 0, steps: 0, level: 0, violation: None };
    while let Some(node) = open.pop_front() {
        found.states += 1;
        found.level += usize::from(node.world.is_level());
        let from = node.digest();
        for step in node.steps(small) {
            for (choices, next, outcome) in node.after(step) {
                found.steps += 1;
                let to = next.digest();
                if outcome.is_ok() && origins.contains_key(&to) {
                    continue;
                }
                let judged = (&next.world.kafka, next.world.source.confirmed, &next.world.source.history);
                let fresh = checked.insert(digest(format_args!("{judged:?}")));
                let outcome = outcome.and_then(|()| if fresh { next.check(small) } else { Ok(()) });
                if let Err(violation) = outcome {
                    let mut path = vec![(step, choices)];
                    let mut at = from;
                    while let Some(Some((before, step, choices))) = origins.get(&at) {
                        path.push((*step, choices.clone()));
                        at = *before;
                    }
                    path.reverse();
                    found.violation = Some((violation, path));
                    return found;
                }
                if origins.len() < states_max {
                    origins.insert(to, Some((from, step, choices)));
                    open.push_back(next);
                }
            }
        }
    }
    found
}

fn story(path: &[(Step, Vec<u32>)]) -> String {
    path.iter().fold(String::new(), |mut told, (step, choices)| {
        let _ = write!(told, "\n  {step:?} {choices:?}");
        told
    })
}

fn holds(small: &Small) {
    let begun = std::time::Instant::now();
    let states_max = if std::env::var_os("LOCKSTEP_LONG").is_some() { 500_000 } else { 5_000 };
    let Found { states, steps, level, violation } = search(small, Bug::None, states_max);
    let seconds = begun.elapsed().as_secs_f64();
    let whole = if states < states_max { "all" } else { "the first" };
    println!(
        "{}: {whole} {states} worlds, {steps} steps, {level} level, {:.0} worlds a second",
        small.name,
        states as f64 / seconds
    );
    if let Some((violation, path)) = violation {
        panic!("{}: {violation}{}", small.name, story(&path));
    }
    for bug in small.bugs {
        let found = search(small, *bug, BUG_WORLDS_MAX);
        let (violation, path) = found.violation.unwrap_or_else(|| panic!("{}: {bug:?} is not found", small.name));
        println!("{}: {bug:?} after {} worlds, {} steps: {violation}", small.name, found.states, path.len());
    }
}

#[test]
fn readers_that_overtake_each_other_in_every_order() {
    holds(&READERS);
}

#[test]
fn records_lost_at_every_moment() {
    holds(&RECORDS);
}

#[test]
fn entries_lost_at_every_moment() {
    holds(&ENTRIES);
}

#[test]
fn bases_between_claims_in_every_order() {
    holds(&BASES);
}

#[test]
fn a_standby_promoted_at_every_moment() {
    holds(&PROMOTED);
}

#[test]
fn workers_that_replace_each_other_in_every_order() {
    holds(&WORKERS);
}
