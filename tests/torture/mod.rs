//! The torture: real servers, the real binary in two processes a role, writers that never stop, one fault after the other, and
//! oracles that look all the time.
//!
//! | module | holds |
//! |---|---|
//! | [`tables`] | the tables, and what each would show |
//! | [`workload`] | random transactions from several connections |
//! | [`stage`] | servers, the proxies in front of them, the processes |
//! | [`faults`] | what is done to them |
//! | [`oracles`] | what is looked at while it runs |
//! | [`bounds`] | what may be held |
//! | [`load`] | first loads that are killed |
//! | [`verdict`] | violations, counts, and the report |
//!
//! A run is rounds: a fault or two, then both sinks must be level again within a minute while the writers go on. Now and then
//! the writers rest, and every row is compared and every effect counted. Faults are drawn from a shuffled deck, so a run that
//! went through the deck has had each; one that took no effect at all fails the run. A seed chooses transactions, faults and
//! pauses; which statement a kill falls into is the machine's choice, so a seed that failed is run some times.
//!
//! `scripts/torture` runs it as long as one likes (examples/torture), `it_torture` a small part of it.

// The test uses only a part of what the runner does.
#![allow(dead_code)]

pub mod bounds;
pub mod faults;
pub mod load;
pub mod oracles;
pub mod stage;
pub mod tables;
pub mod verdict;
pub mod workload;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::time::{sleep, timeout};

use super::support;
use faults::{Faults, Kind};
use oracles::Oracles;
use stage::{PATIENCE, Role, SINKS, Stage};
use support::compare;
use verdict::{Report, Verdict};
use workload::Workload;

/// After the last fault a sink must be that little behind …
const LAG: &str = "5 s";
/// A first load is no fault to recover from.
const LOAD_TIME: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(50);
/// Rounds between two comparisons of everything.
const ROUNDS_BETWEEN_RESTS: u32 = 8;

/// A run to be.
#[derive(Clone, Debug)]
pub struct Options {
    pub lockstep: PathBuf,
    /// At least this long, and at least once through the deck.
    pub time: Duration,
    pub seed: u64,
    /// The deck.
    pub kinds: Vec<Kind>,
    /// Before sinks must be level again there are so many at most: two mostly alone, more always together.
    pub faults_max: u32,
    /// … within this, a minute where the machine has nothing else to do.
    pub level_time: Duration,
}

/// Runs to the end, or to the first round after which something is wrong.
pub async fn run(options: &Options) -> Result<Report> {
    let begun = Instant::now();
    let verdict = Verdict::default();
    let stage = Stage::set(&options.lockstep, options.level_time).await?;
    let workload = Workload::start(&stage.source, options.seed);
    let mut roles = [Role::start(&stage, None)?, Role::start(&stage, Some(0))?, Role::start(&stage, Some(1))?];
    let outcome = tortured(options, &stage, &mut roles, &workload, &verdict).await;
    if let Err(error) = outcome {
        verdict.violation(format!("{error:#}"));
    }
    let transactions = workload.stop().await?;
    if !verdict.is_clean() {
        keep_log(&stage, options.seed);
    }
    Ok(Report { verdict, seed: options.seed, time: begun.elapsed(), transactions })
}

async fn tortured(
    options: &Options,
    stage: &Stage,
    roles: &mut [Role; 3],
    workload: &Workload,
    verdict: &Verdict,
) -> Result<()> {
    level_within(stage, roles, "the first load", LOAD_TIME).await?;
    let oracles = Oracles::start(stage, verdict)?;
    let outcome = rounds(options, stage, roles, workload, verdict).await;
    oracles.stop().await;
    outcome?;
    for kind in &options.kinds {
        if verdict.faults(kind.name()) == 0 {
            verdict.violation(format!("{} never took effect", kind.name()));
        }
    }
    Ok(())
}

async fn rounds(
    options: &Options,
    stage: &Stage,
    roles: &mut [Role; 3],
    workload: &Workload,
    verdict: &Verdict,
) -> Result<()> {
    let begun = Instant::now();
    let mut random = StdRng::seed_from_u64(options.seed);
    let (mut extras, mut alters) = (0, 0);
    let mut deck = Vec::new();
    let (mut decks, mut round) = (0, 0);
    while verdict.is_clean() && (begun.elapsed() < options.time || decks < 1 || !deck.is_empty() && decks == 1) {
        if deck.is_empty() {
            deck.clone_from(&options.kinds);
            deck.shuffle(&mut random);
            decks += 1;
        }
        let mut names = Vec::new();
        let alone = !random.random_ratio(1, 3) && options.faults_max <= 2;
        let faults = if alone { 1 } else { random.random_range(2..=options.faults_max.max(2)) };
        for _ in 0..faults {
            let Some(kind) = deck.pop() else { break };
            names.push(kind.name());
            let (random, extras, alters) = (&mut random, &mut extras, &mut alters);
            let mut faults = Faults { stage, roles, random, verdict, extras, alters };
            let struck = timeout(PATIENCE * 2, faults.strike(kind)).await;
            struck.with_context(|| format!("{} does not end", kind.name()))?.with_context(|| kind.name())?;
        }
        level(stage, roles, verdict, &names.join(" and ")).await?;
        bounds::look(stage, roles, verdict).await?;
        round += 1;
        if round % ROUNDS_BETWEEN_RESTS == 0 {
            rest(stage, roles, workload, verdict, extras).await?;
        }
    }
    rest(stage, roles, workload, verdict, extras).await
}

/// Both sinks stream, have what was committed after this was called, and are less than [`LAG`] behind writers that go on.
pub async fn level(stage: &Stage, roles: &mut [Role; 3], verdict: &Verdict, after: &str) -> Result<()> {
    verdict.recovered(level_within(stage, roles, after, stage.level_time).await?);
    Ok(())
}

async fn level_within(stage: &Stage, roles: &mut [Role; 3], after: &str, time: Duration) -> Result<Duration> {
    let (begun, since) = (Instant::now(), jiff::Timestamp::now());
    for (sink, name) in SINKS.into_iter().enumerate() {
        loop {
            let behind = behind(stage, sink, since).await.unwrap_or_else(|error| Some(format!("{error:#}")));
            let Some(behind) = behind else { break };
            for role in roles.iter_mut() {
                role.ensure_alive().await?;
            }
            if begun.elapsed() > time {
                let mut states = String::new();
                for role in roles.iter() {
                    states += &format!("\n{}: {}, {}", role.name, role.state(0).await, role.state(1).await);
                }
                bail!("after {after}, sink {name} is not level within {time:?}: {behind}{states}");
            }
            sleep(POLL).await;
        }
    }
    eprintln!("torture: {after}: level after {} ms", begun.elapsed().as_millis());
    Ok(begun.elapsed())
}

/// In what a sink is not level, if it is not.
async fn behind(stage: &Stage, sink: usize, since: jiff::Timestamp) -> Result<Option<String>> {
    let client = stage.sinks[sink].connect().await?;
    let there = client.query_one("SELECT to_regclass('lockstep.progress') IS NOT NULL", &[]).await?;
    if !there.get::<_, bool>(0) {
        return Ok(Some("no progress".to_owned()));
    }
    let sql = format!(
        "SELECT phase, coalesce((clock_timestamp() - max(at))::text, 'no row'),
                coalesce(clock_timestamp() - max(at) < '{LAG}' AND max(at) > '{since}', false)
           FROM lockstep.progress LEFT JOIN journal ON true GROUP BY phase"
    );
    let Some(row) = client.query_opt(&sql, &[]).await? else { return Ok(Some("no progress".to_owned())) };
    let (phase, lag, near): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
    Ok((phase != "streaming" || !near).then(|| format!("{phase}, {lag} behind")))
}

/// The writers rest: every row is compared, every effect counted.
async fn rest(stage: &Stage, roles: &mut [Role; 3], workload: &Workload, verdict: &Verdict, extras: u32) -> Result<()> {
    let resting = workload.rest().await;
    let sinks: Vec<_> = SINKS.into_iter().zip(&stage.sinks).collect();
    stage.pipeline.wait_caught_up(&mut roles[0].processes[0], &stage.source, &sinks, PATIENCE).await?;
    for (name, sink) in sinks {
        for pair in tables::pairs(extras) {
            // What DDL did is noticed within some seconds, and nothing says that it was not noticed yet.
            let late = pair.source == tables::EVOLVES || pair.source.starts_with("public.extra_");
            let begun = Instant::now();
            loop {
                match compare(&stage.source, sink, &pair).await {
                    Ok(found) if found.is_equal() => break,
                    found if late && begun.elapsed() < stage.level_time => {
                        drop(found);
                        sleep(POLL).await;
                    }
                    found => bail!("sink {name} at rest: {}", found?),
                }
            }
        }
        if let Some(wrong) = effects(sink).await? {
            bail!("sink {name} at rest: {wrong}");
        }
        verdict.look("equal");
    }
    drop(resting);
    Ok(())
}

/// Each transaction has left one row of journal, and that has had one effect.
async fn effects(sink: &support::Database) -> Result<Option<String>> {
    let sql = "SELECT format('effects of transactions: %s doubled, %s missing, %s others',
            (SELECT count(*) FROM (SELECT FROM audit GROUP BY writer, seq HAVING count(*) > 1) d),
            (SELECT count(*) FROM journal j WHERE NOT EXISTS (SELECT FROM audit a WHERE (a.writer, a.seq) = (j.writer, j.seq))),
            (SELECT count(*) FROM audit a WHERE op <> 'INSERT' OR NOT EXISTS
                (SELECT FROM journal j WHERE (a.writer, a.seq) = (j.writer, j.seq))))";
    let text: String = sink.connect().await?.query_one(sql, &[]).await?.get(0);
    Ok((text != "effects of transactions: 0 doubled, 0 missing, 0 others").then_some(text))
}

/// What the product said goes with its folder; this stays.
fn keep_log(stage: &Stage, seed: u64) {
    let kept = std::env::temp_dir().join(format!("lockstep-torture-{seed}.log"));
    match std::fs::copy(stage.pipeline.log_path(), &kept) {
        Ok(_) => eprintln!("torture: the log of the processes is kept at {}", kept.display()),
        Err(error) => eprintln!("torture: the log is lost: {error}"),
    }
}
