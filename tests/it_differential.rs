//! Random tables and random transactions at the source, DDL among them, in random formats and modes; afterwards every row's text
//! is the same at the sink.
//!
//! A dozen seeds share one pipeline, some with rows from before its start, all writing at the same time; the process is killed
//! once on the way. With `LOCKSTEP_LONG=1` hundreds of seeds run, by the dozen, from `LOCKSTEP_TEST_FROM` on.
//! `LOCKSTEP_TEST_SEED=N` runs one by itself.
//!
//! When a dozen fails, its seeds run one by one, and of the first that fails alone statements are left out as long as it still
//! does. What is left is printed as SQL. Only for this are failures values and not panics.

mod differential;
mod support;

use std::env;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;

use differential::types::SETUP;
use differential::{Case, DOZEN, Transaction};
use support::scene::{PATIENCE, Scene};
use support::{Database, TablePair};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

/// The first is loaded before it changes, the second while it does.
const DOZENS: u64 = 2;
const LONG_DOZENS: u64 = 25;
/// Each attempt takes seconds; what is left after so many is small enough to be read.
const ATTEMPTS_MAX: usize = 40;

/// What a session prints by default here; ours pin theirs.
const ODD: [&str; 8] = [
    "bytea_output = escape",
    "DateStyle = 'SQL, DMY'",
    "IntervalStyle = sql_standard",
    "TimeZone = 'Asia/Kolkata'",
    "extra_float_digits = -5",
    "xmloption = document",
    "array_nulls = off",
    "default_transaction_isolation = serializable",
];
/// How the writers read what they write.
const WRITERS: &str = "-c xmloption=content -c array_nulls=on -c default_transaction_isolation=read\\ committed";

#[tokio::test(flavor = "multi_thread")]
async fn random_tables_under_random_transactions() {
    let seed = |name: &str| env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")));
    if let Some(seed) = seed("LOCKSTEP_TEST_SEED") {
        let case = Case::random(seed);
        eprintln!("{}", case.show());
        return judge(&[case]).await;
    }
    let dozens = if env::var_os("LOCKSTEP_LONG").is_some() { LONG_DOZENS } else { DOZENS };
    for dozen in seed("LOCKSTEP_TEST_FROM").unwrap_or(0) / DOZEN..dozens {
        let cases: Vec<Case> = (dozen * DOZEN..(dozen + 1) * DOZEN).map(Case::random).collect();
        judge(&cases).await;
        eprintln!("seeds {} to {} are equal", cases[0].seed, cases[cases.len() - 1].seed);
    }
}

async fn judge(cases: &[Case]) {
    let Err(error) = run(cases).await else { return };
    eprintln!("seeds {} to {} fail: {error:#}", cases[0].seed, cases[cases.len() - 1].seed);
    for case in cases {
        if let Err(error) = run(std::slice::from_ref(case)).await {
            eprintln!("seed {} fails alone: {error:#}", case.seed);
            let small = shrink(case.clone()).await;
            panic!("seed {} fails with:\n{}", case.seed, small.show());
        }
    }
    panic!("seeds {} to {} fail together, none alone: {error:#}", cases[0].seed, cases[cases.len() - 1].seed);
}

/// Leaves out statements, many at a time first, as long as the case still fails.
async fn shrink(mut case: Case) -> Case {
    let mut step = case.statements().div_ceil(2);
    let mut attempts = 0;
    while step > 0 && attempts < ATTEMPTS_MAX {
        let mut from = 0;
        while from < case.statements() && attempts < ATTEMPTS_MAX {
            attempts += 1;
            let smaller = case.without(from, from + step);
            match run(std::slice::from_ref(&smaller)).await {
                Err(_) => case = smaller,
                Ok(()) => from += step,
            }
        }
        step /= 2;
    }
    case
}

/// Runs the cases at the same time over one pipeline.
async fn run(cases: &[Case]) -> Result<()> {
    let scene = Scene::bare(LOCKSTEP, "differential", SETUP, 1).await;
    for database in [&scene.source, scene.orders()] {
        let settings = ODD.map(|setting| format!("ALTER DATABASE {} SET {setting};", database.name));
        database.execute(&settings.concat()).await?;
    }
    let mut tables = Vec::new();
    for case in cases {
        scene.source.execute(&case.source).await?;
        scene.orders().execute(&case.sink).await?;
        tables.extend(case.connectors.iter().map(|(table, _)| TablePair::same(table, &[])));
    }
    let registry = scene.services.registry.clone();
    ensure!(!registry.is_empty(), "no schema registry: run scripts/test, or scripts/services up --registry");
    let scene = scene.configure(|pipeline| {
        let connectors = cases.iter().flat_map(|case| &case.connectors);
        let route = connectors.fold(pipeline, |p, (table, text)| p.connector(table, text));
        let route = route.unset("registry").set("registry", &format!("url = \"{registry}\""));
        route.set("source.snapshot", "chunk_rows = 10").set("sinks.orders", "batch_rows_max = 50")
    });
    try_join_all(cases.iter().map(|case| execute(&scene.source, &case.before))).await?;
    let mut process = scene.pipeline.spawn(&[])?;
    let settled = cases[0].settled;
    let sinks = [("orders", scene.orders())];
    if settled {
        scene.pipeline.wait_caught_up(&mut process, &scene.source, &sinks, PATIENCE).await?;
    }
    let halves = |case: &Case| -> [Vec<Transaction>; 2] {
        let (first, second) = case.after.split_at(case.after.len() / 2);
        [first.to_vec(), second.to_vec()]
    };
    let halves: Vec<[Vec<Transaction>; 2]> = cases.iter().map(halves).collect();
    try_join_all(halves.iter().map(|[first, _]| execute(&scene.source, first))).await?;
    process.kill9()?;
    let mut process = scene.pipeline.spawn(&[])?;
    for table in cases.iter().filter_map(|case| case.resync.as_ref()).filter(|_| settled) {
        let output = scene.pipeline.command(&["resync", table, "--sink", "orders"])?;
        ensure!(output.status.success(), "resync {table}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let rivals = cases.iter().map(|case| execute(&scene.source, &case.rival));
    try_join_all(halves.iter().map(|[_, second]| execute(&scene.source, second)).chain(rivals)).await?;
    let equal = scene.pipeline.wait_equal(&mut process, &scene.source, &sinks, &tables, PATIENCE).await;
    if equal.is_ok() {
        process.terminate(Duration::from_secs(60)).await?;
    }
    equal
}

/// Runs transactions in order. A statement may fail for what it finds, never for how it is written.
async fn execute(source: &Database, transactions: &[Transaction]) -> Result<()> {
    let client = source.connect_with(WRITERS).await?;
    for transaction in transactions {
        client.batch_execute("BEGIN").await?;
        for statement in &transaction.statements {
            client.batch_execute("SAVEPOINT before").await?;
            match client.batch_execute(statement).await {
                Ok(()) => client.batch_execute("RELEASE before").await?,
                Err(error) => {
                    let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
                    // A key that is taken; a row to swap with that is not there; two sessions that wait for each other; a
                    // column of which another statement, that failed or was left out, made something else; a role as a default;
                    // a label of this very transaction, or of one that was left out.
                    let label = error.as_db_error().is_some_and(|error| {
                        error.message().contains("for enum") || error.message().contains("enum label")
                    });
                    assert!(
                        ["23505", "P0002", "40P01", "42703", "42701", "42804", "23502", "0A000", "55P04"]
                            .contains(&code.as_str())
                            || (["22P02", "22023"].contains(&code.as_str()) && label),
                        "the source refused: {statement}: {error:?}"
                    );
                    client.batch_execute("ROLLBACK TO before").await?;
                }
            }
        }
        client.batch_execute(if transaction.commits { "COMMIT" } else { "ROLLBACK" }).await?;
    }
    Ok(())
}

/// What is printed of a failing seed is all there is to it: the same seed gives the same case.
#[test]
fn a_seed_is_a_case() {
    let case = Case::random(7);
    assert_eq!(case.show(), Case::random(7).show());
    let less = case.without(0, case.statements() - 1);
    assert_eq!(less.statements(), 1);
}
