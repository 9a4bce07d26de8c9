//! Loads under hostile schedules: the loader, the machines and the ledger that ship, between a source, a Kafka log and two
//! sinks in memory.
//!
//! One seed is transactions that become visible after they are in the log, key changes and rows with a big column that is not
//! sent, requests of sinks and of people, restarts, tables that a sink leaves and joins again, readers and workers that die or
//! are replaced without knowing, bases and a ledger that is trimmed behind them, and a schedule of all their steps.
//!
//! Nobody may halt but for what was lost; after every commit at a sink what is loaded there equals the source as of that commit,
//! and when the faults end every load ends and everything is equal.
//!
//! [`Bug`]s are mistakes that a driver could make; each must be found.
//! `LOCKSTEP_SIM_SEED=N` runs one seed, `LOCKSTEP_LONG=1` many. A failing seed is shrunk to the choices that matter.

#![allow(clippy::cast_possible_truncation, reason = "offsets of a log in memory, partitions of a few")]
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss, reason = "the same")]

use std::collections::BTreeSet;

mod choices;
#[path = "sim_loads/kafka.rs"]
mod kafka;
#[path = "sim_loads/reader.rs"]
mod reader;
#[path = "sim_loads/sink.rs"]
mod sink;
#[path = "sim_loads/source.rs"]
mod source;

use choices::{Choices, shrink, tell};
use kafka::Kafka;
use reader::{Reader, Totals, World};
use sink::{Sink, Trouble};
use source::Source;

const STEPS: usize = 4000;
const SETTLE_STEPS: usize = 60_000;

/// A mistake that a driver could make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    None,
    /// Changes are not remembered.
    NoOverlay,
    /// Nobody waits for transactions that are older than the load.
    NoFence,
    /// A chunk's message is written before the chunk was read.
    MarkFirst,
    /// Nobody is told of rows that the sinks had to leave out.
    NoForgets,
    /// A request is told that it is done before the last chunk is in a checkpoint.
    DoneEarly,
    /// A sink takes changes of what is not loaded.
    AdmitsAll,
    /// Changes are remembered only from the moment on that the first rows were read.
    LateOverlay,
    /// A chunk is what it was where its message stood, wherever it enters the stream.
    AtItsMessage,
    /// The ledger is trimmed without regard to what sinks still need.
    TrimsAhead,
    /// What was not sent of a row is written as if it had been.
    WritesPlaceholder,
    /// Of what is applied together deletes come last.
    DeletesLast,
    /// Changes are ordered by LSN alone, of which all of a transaction have the same.
    OrderByLsn,
}

/// Each with the first seed that is tried: where it was found, for some are rare.
const BUGS: [(Bug, u64); 12] = [
    (Bug::NoOverlay, 0),
    (Bug::NoFence, 0),
    (Bug::MarkFirst, 0),
    (Bug::NoForgets, 0),
    (Bug::DoneEarly, 1413),
    (Bug::AdmitsAll, 0),
    (Bug::LateOverlay, 0),
    (Bug::AtItsMessage, 0),
    (Bug::TrimsAhead, 0),
    (Bug::WritesPlaceholder, 0),
    (Bug::DeletesLast, 97),
    (Bug::OrderByLsn, 111),
];

struct Run {
    choices: Choices,
    bug: Bug,
    source: Source,
    kafka: Kafka,
    readers: Vec<Reader>,
    /// Who has the slot.
    holder: Option<usize>,
    sinks: [Sink; 2],
    totals: Totals,
    /// In a thousand steps, different from run to run.
    faults: usize,
    resyncs: usize,
    restarts: usize,
    /// Kafka and the source lose things here.
    lossy: bool,
    /// A halt that nobody has dealt with yet, and whose it is.
    halted: Option<String>,
    halts: BTreeSet<String>,
    trims: u64,
}

impl Run {
    fn new(mut choices: Choices, bug: Bug) -> Run {
        let source = Source::new(&mut choices);
        let (faults, resyncs) = ([1, 3, 8][choices.below(3)], [0, 1, 3][choices.below(3)]);
        let (restarts, lossy) = ([0, 0, 1][choices.below(3)], choices.percent(30));
        Run {
            choices,
            bug,
            source,
            kafka: Kafka::new(),
            readers: Vec::new(),
            holder: None,
            sinks: [Sink::new("a"), Sink::new("b")],
            totals: Totals::default(),
            faults,
            resyncs,
            restarts,
            lossy,
            halted: None,
            halts: BTreeSet::new(),
            trims: 0,
        }
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            if self.choices.below(1000) >= 1000 - self.faults {
                self.fault();
            }
            if self.choices.below(1000) >= 1000 - self.resyncs {
                self.kafka.resync(&mut self.choices);
            }
            if self.choices.below(2000) >= 2000 - self.restarts {
                self.kafka.restart();
            }
            self.heed()?;
            match self.choices.below(100) {
                0..5 => {}
                5..16 => self.source.write(&mut self.choices),
                16..70 => {
                    if let Some(who) = self.one_of(self.readers.len()) {
                        self.read(who)?;
                    }
                }
                70..73 => {
                    if self.holder.is_none() {
                        self.take_slot();
                    }
                }
                73 => self.trim(),
                74..77 => {
                    let sink = self.choices.below(2);
                    if self.sinks[sink].workers.is_empty() || self.choices.percent(20) {
                        self.start(sink)?;
                    }
                }
                _ => self.work()?,
            }
        }
        self.settle()
    }

    /// Mostly the newest, the others now and then.
    fn one_of(&mut self, count: usize) -> Option<usize> {
        (count > 0).then(|| if self.choices.percent(20) { self.choices.below(count) } else { count - 1 })
    }

    fn read(&mut self, who: usize) -> Result<(), String> {
        let mut world = World {
            source: &mut self.source,
            kafka: &mut self.kafka,
            choices: &mut self.choices,
            totals: &mut self.totals,
            bug: self.bug,
            holds: self.holder == Some(who),
            halted: &mut self.halted,
        };
        self.readers[who].step(&mut world)?;
        if self.readers[who].dead && self.holder == Some(who) {
            self.holder = None;
        }
        Ok(())
    }

    fn take_slot(&mut self) {
        let state = self.kafka.fold(self.kafka.ledger.len());
        let anew = state.asked.is_some() && state.next.is_none();
        if self.source.is_slot_gone && !anew {
            self.halted = Some("SLOT_LOST".to_owned());
            return;
        }
        let nonce = self.readers.len() as u64 + 1;
        self.holder = Some(self.readers.len());
        let made = anew.then(|| self.source.renew_slot());
        self.readers.push(Reader::new(nonce, made));
    }

    fn work(&mut self) -> Result<(), String> {
        let sink = self.choices.below(2);
        let Some(who) = self.one_of(self.sinks[sink].workers.len()) else { return Ok(()) };
        self.step(sink, who)
    }

    fn step(&mut self, sink: usize, who: usize) -> Result<(), String> {
        let outcome = self.sinks[sink].step(who, &self.source, &mut self.kafka, &mut self.choices, self.bug);
        self.heed_sink(sink, outcome)
    }

    fn start(&mut self, sink: usize) -> Result<(), String> {
        let outcome = self.sinks[sink].start(&mut self.kafka);
        self.heed_sink(sink, outcome)
    }

    /// What a sink that halts says is done: without its row it joins anew, and what Kafka lost takes a restart.
    fn heed_sink(&mut self, sink: usize, outcome: Result<(), Trouble>) -> Result<(), String> {
        match outcome {
            Ok(()) => {}
            Err(Trouble::Wrong(what)) => return Err(what),
            Err(Trouble::MovedIn(_)) => unreachable!("asked for where it is found"),
            Err(Trouble::Halt(error)) => {
                let code = error.code().map_or_else(|| error.chain(), |code| code.to_string());
                tell(format_args!("sink {} halts: {error}", self.sinks[sink].name));
                if code.starts_with("LEDGER") {
                    self.sinks[sink].row = None;
                    self.may_halt(&code)?;
                } else {
                    self.halted = Some(code);
                }
            }
        }
        Ok(())
    }

    /// A person reads what halted and types what it says.
    fn heed(&mut self) -> Result<(), String> {
        let Some(name) = self.halted.take() else { return Ok(()) };
        tell(format_args!("halt {name}: lockstep restart"));
        self.may_halt(&name)?;
        self.kafka.restart();
        Ok(())
    }

    /// Where nothing is lost, only a restart that was cut short may leave a slot behind that the ledger does not know.
    fn may_halt(&mut self, name: &str) -> Result<(), String> {
        self.halts.insert(name.to_owned());
        let of_a_restart = self.restarts > 0 && ["SLOT_MOVED", "LEDGER_TRIMMED"].contains(&name);
        if self.lossy || of_a_restart { Ok(()) } else { Err(format!("it halts with nothing lost: {name}")) }
    }

    fn trim(&mut self) {
        let old = self.choices.below(self.kafka.ledger.len() + 1) as i64;
        let joined: BTreeSet<String> =
            self.kafka.fold(self.kafka.ledger.len()).joins.iter().map(|join| join.request.sink.clone()).collect();
        let told: Vec<Option<i64>> = match self.bug {
            Bug::TrimsAhead => Vec::new(),
            _ => self.sinks.iter().filter(|sink| joined.contains(sink.name)).map(|sink| sink.told).collect(),
        };
        self.trims += u64::from(self.kafka.trim(&told, old));
    }

    fn fault(&mut self) {
        match self.choices.below(if self.lossy { 11 } else { 7 }) {
            0 => {}
            1 => {
                if let Some(who) = self.one_of(self.readers.len()) {
                    self.readers[who].die();
                    self.holder = self.holder.filter(|holder| *holder != who);
                }
            }
            // The server gives its slot to the next one, and it does not know.
            2 => {
                if let Some(who) = self.holder.take() {
                    self.readers[who].connected = false;
                }
            }
            // The source's server crashes: what was confirmed since the last checkpoint is forgotten.
            3 => {
                self.source.confirmed = self.source.persisted;
                if let Some(who) = self.holder.take() {
                    self.readers[who].die();
                }
            }
            4 => self.source.persisted = self.source.confirmed,
            5 => {
                let sink = self.choices.below(2);
                if let Some(who) = self.one_of(self.sinks[sink].workers.len()) {
                    self.sinks[sink].workers.remove(who);
                }
            }
            // A connector is edited: the first sink has its second table, or has it no more.
            6 => {
                let child = kafka::table(1);
                let tables = &mut self.sinks[0].tables;
                if !tables.remove(&child) {
                    tables.insert(child);
                }
            }
            7 => {
                let partition = self.choices.below(kafka::PARTITIONS);
                let kept = self.kafka.data[partition].len().saturating_sub(1 + self.choices.below(2));
                self.kafka.data[partition].truncate(kept);
            }
            8 => {
                // What says which source it is of stays; without it there is no ledger.
                let least = (self.kafka.low as usize + 1).max(1 + source::TABLES);
                let kept = (self.kafka.ledger.len() - 1 - self.choices.below(3)).max(least);
                self.kafka.ledger.truncate(kept);
            }
            9 => {
                self.source.is_slot_gone = true;
                if let Some(who) = self.holder.take() {
                    self.readers[who].die();
                }
            }
            _ => self.source.confirmed = self.source.end(),
        }
    }

    /// Nobody writes and nothing fails any more: every load ends, and everything is equal.
    fn settle(&mut self) -> Result<(), String> {
        self.source.quiet();
        // Where choices are replayed and some left out, it must come to an end too.
        self.choices.write_no_more();
        if self.choices.percent(50) || self.lossy {
            self.readers.iter_mut().for_each(Reader::die);
            self.holder = None;
        }
        if self.lossy {
            // A worker whose request the ledger lost waits for it; one that starts asks again.
            self.sinks.iter_mut().for_each(|sink| sink.workers.clear());
        }
        for step in 0..SETTLE_STEPS {
            if self.holder.is_none() {
                self.take_slot();
            }
            if let Some(newest) = self.holder {
                self.read(newest)?;
            }
            for sink in 0..self.sinks.len() {
                match self.sinks[sink].has_worker() {
                    true => self.step(sink, self.sinks[sink].workers.len() - 1)?,
                    false => self.start(sink)?,
                }
            }
            self.heed()?;
            if step % 50 == 0
                && self.sinks.iter().all(|sink| sink.is_level(&self.source))
                && self.kafka.fold(self.kafka.ledger.len()).open_joins().count() == 0
            {
                return Ok(());
            }
        }
        let level: Vec<bool> = self.sinks.iter().map(|sink| sink.is_level(&self.source)).collect();
        Err(format!("it does not end: sinks that are level {level:?}"))
    }
}

fn outcome(choices: Choices, bug: Bug) -> (Run, Result<(), String>) {
    let mut run = Run::new(choices, bug);
    let outcome = run.run();
    (run, outcome)
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("LOCKSTEP_SIM_SEED").map(|seed| seed.parse::<u64>().expect("LOCKSTEP_SIM_SEED is a number")) {
        Ok(seed) => seed..seed + 1,
        Err(_) if std::env::var_os("LOCKSTEP_LONG").is_some() => 0..10_000,
        Err(_) => 0..250,
    }
}

#[test]
fn whatever_happens_what_is_loaded_equals_the_source() {
    let begun = std::time::Instant::now();
    let (mut totals, mut readers, mut commits, mut trims) = (Totals::default(), 0, 0, 0);
    let mut names = BTreeSet::new();
    let seeds = seeds();
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let (run, outcome) = outcome(Choices::of_seed(seed), Bug::None);
        if let Err(violation) = outcome {
            let made =
                shrink(run.choices.made, |made| self::outcome(Choices::replay(made.to_vec()), Bug::None).1.is_err());
            choices::TELLING.store(true, std::sync::atomic::Ordering::Relaxed);
            let shrunk = self::outcome(Choices::replay(made.clone()), Bug::None).1;
            panic!("LOCKSTEP_SIM_SEED={seed}: {violation}\nshrunk to {} choices: {shrunk:?}", made.len());
        }
        readers += run.readers.len();
        commits += run.sinks.iter().map(|sink| sink.commits).sum::<u64>();
        totals.chunks += run.totals.chunks;
        totals.rows += run.totals.rows;
        totals.loads += run.totals.loads;
        totals.resumed += run.totals.resumed;
        totals.again += run.totals.again;
        totals.bases += run.totals.bases;
        totals.restarts += run.totals.restarts;
        trims += run.trims;
        names.extend(run.halts);
    }
    let Totals { chunks, rows, loads, resumed, again, bases, restarts } = totals;
    println!(
        "{count} seeds: {readers} readers, {commits} commits, {chunks} chunks with {rows} rows for {loads} requests, {resumed} \
         loads gone on with, {again} rows left out, {bases} bases, {trims} trims, {restarts} restarts, halts {names:?}, \
         {:.0} seeds a second",
        count as f64 / begun.elapsed().as_secs_f64()
    );
    if count > 1 {
        let hit = [readers as u64, commits, chunks, loads, resumed * 3, again * 20, bases, trims * 4, restarts * 2];
        assert!(hit.iter().all(|times| *times > count), "the schedules do not hit what they are meant to: {hit:?}");
    }
}

/// A simulator that finds nothing proves nothing: it finds each of these.
#[test]
fn every_bug_is_found() {
    let mut missed = Vec::new();
    for (bug, first) in BUGS {
        // A machine that refuses to go on has not been proven wrong.
        let is_found = |seed: &u64| {
            let run = || outcome(Choices::of_seed(*seed), bug).1.is_err();
            std::panic::catch_unwind(run).unwrap_or(false)
        };
        let found = (first..first + 3_000).find(is_found);
        println!("{bug:?}: seed {found:?}");
        missed.extend(found.is_none().then_some(bug));
    }
    assert!(missed.is_empty(), "{missed:?} are not found");
}

/// The same choices are the same run.
#[test]
fn a_run_replays_exactly() {
    for seed in 0..10 {
        let (first, _) = outcome(Choices::of_seed(seed), Bug::None);
        let (second, _) = outcome(Choices::replay(first.choices.made.clone()), Bug::None);
        let end =
            |run: &Run| (run.kafka.ledger.len(), run.source.confirmed, run.sinks[0].rows.clone(), run.readers.len());
        assert_eq!(end(&first), end(&second));
    }
}
