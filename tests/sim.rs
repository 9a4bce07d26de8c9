//! The protocol under hostile schedules: the machines that ship, between a slot, a Kafka log and a sink that are made of vectors.
//!
//! One seed is a workload, a schedule and faults: readers that crash, or lose the slot without knowing; records and entries of
//! the dead that land late; a slot that forgets what was confirmed; standbys that are promoted, with and without what came
//! last, while the old primary lives on; bases, and a ledger that is trimmed behind them; sink workers that are frozen while
//! they hold the row, and commits whose answer is lost or that are made later than anybody waits; tails, beginnings and whole
//! topics that vanish. After every commit at the sink the sink is a prefix of the source, every record once and in order. When
//! the faults end, it is the whole source, or it has halted by name because something was lost.
//!
//! Simulated is only what is outside of this program; where a driver of ours does IO for a machine, the few lines here do the
//! same. [`Bug`]s are mistakes that such a driver could make; each must be found.
//!
//! Loads and restarts have a simulator of their own (`sim_loads`). `LOCKSTEP_SIM_SEED=N` runs one seed, `LOCKSTEP_LONG=1` many.

#![allow(clippy::cast_possible_truncation, reason = "offsets of a log in memory, partitions of a few")]
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss, reason = "the same")]

use std::collections::BTreeSet;

mod choices;
#[path = "sim/kafka.rs"]
mod kafka;
#[path = "sim/reader.rs"]
mod reader;
#[path = "sim/search.rs"]
mod search;
#[path = "sim/shared.rs"]
mod shared;
#[path = "sim/sink.rs"]
mod sink;
#[path = "sim/source.rs"]
mod source;
#[path = "sim/world.rs"]
mod world;

use choices::{Choices, shrink};
use world::{Bug, Violation, World};

/// Each with the first seed that is tried: where it was found, for some are rare.
const BUGS: [(Bug, u64); 12] = [
    (Bug::ConfirmOnAck, 619),
    (Bug::ConfirmOnReceive, 0),
    (Bug::NoEpochs, 531),
    (Bug::NoCompare, 0),
    (Bug::Remembers, 0),
    (Bug::SkipsUnknown, 168),
    (Bug::NoCount, 45),
    (Bug::CountOnly, 84),
    (Bug::ChainByOffset, 1185),
    (Bug::TrimsAhead, 82),
    (Bug::ResetsToLatest, 0),
    (Bug::NoHistory, 25),
];

fn outcome(choices: Choices, bug: Bug) -> (World, Result<(), Violation>) {
    let mut world = World::drawn(choices, bug);
    let outcome = world.run();
    (world, outcome)
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("LOCKSTEP_SIM_SEED").map(|seed| seed.parse::<u64>().expect("LOCKSTEP_SIM_SEED is a number")) {
        Ok(seed) => seed..seed + 1,
        Err(_) if std::env::var_os("LOCKSTEP_LONG").is_some() => 0..10_000,
        Err(_) => 0..500,
    }
}

/// Every seed ends with the sink equal to the source, or halted by name after a loss; and what the schedules are meant to hit
/// is hit.
#[test]
fn whatever_happens_the_sink_is_a_prefix_of_the_source() {
    let begun = std::time::Instant::now();
    let (mut halts, mut readers, mut workers, mut applied, mut trims, mut promoted) = (0, 0, 0, 0, 0, 0);
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
        trims += world.trims;
        promoted += u64::from(world.source.timeline()) - 1;
    }
    let count = seeds.end - seeds.start;
    println!(
        "seeds {}..{}: {readers} readers, {workers} workers, {applied} records, {trims} trims, {promoted} standbys promoted, \
         {halts} halts {names:?}, {:.0} seeds and {:.0} crashes a second",
        seeds.start,
        seeds.end,
        count as f64 / begun.elapsed().as_secs_f64(),
        // Each but the last of a seed was ended by a fault, or by the next one.
        (readers as u64 + workers - 2 * count) as f64 / begun.elapsed().as_secs_f64()
    );
    if count > 1 {
        assert!(halts > 0 && u64::from(halts) < count / 2, "{halts} of {count} ended with a halt");
        assert!(readers as u64 > 3 * count && workers > 3 * count && applied as u64 > 10 * count);
        assert!(trims > count / 10 && promoted > count / 10, "{trims} trims, {promoted} promoted");
        let all = ["TOPIC_GAP", "LEDGER_LOST", "SLOT_MOVED", "SLOT_LOST", "TOPIC_RECREATED", "DIVERGED"];
        assert!(all.iter().all(|name| names.contains(*name)), "{names:?}");
    }
}

/// A simulator that finds nothing proves nothing: it finds each of these.
#[test]
fn every_bug_is_found() {
    let mut missed = Vec::new();
    for (bug, first) in BUGS {
        // A machine that refuses to go on has not been proven wrong.
        let found = (first..first + 5_000).find(|&seed| {
            std::panic::catch_unwind(|| outcome(Choices::of_seed(seed), bug).1.is_err()).unwrap_or(false)
        });
        println!("{bug:?}: seed {found:?}");
        missed.extend(found.is_none().then_some(bug));
    }
    assert!(missed.is_empty(), "{missed:?} are not found");
}

/// The same choices are the same run.
#[test]
fn a_seed_replays_exactly() {
    let fingerprint = |choices| {
        let (world, _) = outcome(choices, Bug::None);
        (world.sink.applied.clone(), world.kafka.ledger.end(), world.source.confirmed, world.halted)
    };
    for seed in 0..20 {
        let made = outcome(Choices::of_seed(seed), Bug::None).0.choices.made;
        assert_eq!(fingerprint(Choices::of_seed(seed)), fingerprint(Choices::replay(made)));
    }
}
