//! Sessions that change hot rows as fast as they can: some 200 rows of three tables, in short transactions.
//!
//! What a statement meets is left to chance. One that fails (a key that is taken, a row that is locked for long) ends its
//! transaction, and so there are aborted ones too.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use crate::support::Database;

/// Big values are kept out of line, and are not sent while they don't change.
pub const SCHEMA: &str = r#"
CREATE TABLE public.hot (id int PRIMARY KEY, v int NOT NULL, big text);
CREATE TABLE public.pair (v int NOT NULL, k text COLLATE "en-x-icu", big text, a int, PRIMARY KEY (k, a));
CREATE TABLE public.loose (v int, t text);
ALTER TABLE public.hot ALTER big SET STORAGE EXTERNAL;
ALTER TABLE public.pair ALTER big SET STORAGE EXTERNAL;
ALTER TABLE public.loose REPLICA IDENTITY FULL;
"#;
pub const TABLES: [&str; 3] = ["hot", "pair", "loose"];

const BIG: &str = "repeat(md5(random()::text), 80)";
/// Texts that a collation and their bytes order differently.
const TEXTS: &str = "(ARRAY['a', 'B', 'b', '_', 'Z', 'é', 'zz', '', '-a', '𝄞'])";
/// Half of the keys are there at a time.
const IDS: u32 = 200;
const NUMBERS: u32 = 20;

pub fn seed() -> String {
    format!(
        "INSERT INTO hot SELECT i * 2, 0, {BIG} FROM generate_series(0, {IDS} / 2 - 1) i;
         INSERT INTO pair SELECT 0, {TEXTS}[1 + i % 10], {BIG}, i / 10 FROM generate_series(0, 5 * {NUMBERS} - 1) i;
         INSERT INTO loose SELECT i % 5, 't' || i % 3 FROM generate_series(1, 20) i"
    )
}

/// What a row that is locked is waited for: deadlocks end by it too, long before they are looked for.
const LOCKED: &str = "-c lock_timeout=20ms";
/// A commit that waits for a standby is told to go on after at most so many milliseconds.
const STANDBY_MS: u64 = 60;

#[derive(Default, Clone, Copy)]
pub struct Written {
    pub committed: u64,
    pub failed: u64,
}

/// A transaction.
pub type Sql = fn(&mut StdRng) -> String;

pub struct Writers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Written>,
}

impl Writers {
    /// So many sessions, and so many more whose commits wait for a synchronous standby.
    pub async fn start(database: &Database, seed: u64, plain: u64, waiting: u64, sql: Sql) -> Writers {
        let (stop, mut tasks) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for writer in 0..plain + waiting {
            let waits = writer >= plain;
            let commit = if waits { "on" } else { "local" };
            let client = database.connect_with(&format!("{LOCKED} -c synchronous_commit={commit}")).await.unwrap();
            let random = StdRng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(writer));
            tasks.spawn(write(client, random, waits, sql, stop.clone()));
        }
        Writers { stop, tasks }
    }

    pub async fn stop(mut self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Written::default();
        while let Some(one) = self.tasks.join_next().await {
            let one = one.unwrap();
            all.committed += one.committed;
            all.failed += one.failed;
        }
        all
    }
}

async fn write(client: Client, mut random: StdRng, waits: bool, sql: Sql, stop: Arc<AtomicBool>) -> Written {
    let mut written = Written::default();
    let cancel = client.cancel_token();
    while !stop.load(Ordering::Relaxed) {
        let sql = sql(&mut random);
        let mut run = std::pin::pin!(client.batch_execute(&sql));
        let patience = Duration::from_millis(if waits { random.random_range(1..STANDBY_MS) } else { 60_000 });
        let outcome = loop {
            if let Ok(outcome) = tokio::time::timeout(patience, &mut run).await {
                break outcome;
            }
            // Ends the wait for the standby: the commit stands, and is visible from now on. One that came before there was
            // anything to end does nothing.
            let _ = cancel.cancel_query(NoTls).await;
        };
        match outcome {
            Ok(()) => written.committed += 1,
            Err(_) => {
                written.failed += 1;
                // A cancel that came late hits this.
                while client.batch_execute("ROLLBACK").await.is_err() {
                    assert!(!client.is_closed(), "the server is gone");
                }
            }
        }
    }
    written
}

/// One transaction of a few changes of any table.
pub fn transaction(random: &mut StdRng) -> String {
    if random.random_ratio(1, 1000) {
        return format!(
            "BEGIN; TRUNCATE pair; INSERT INTO pair SELECT -1, {TEXTS}[1 + i % 10], {BIG}, i / 10 FROM generate_series(0, 59) i; COMMIT"
        );
    }
    let mut sql = "BEGIN;".to_owned();
    for _ in 0..random.random_range(1..4) {
        let change = change(random);
        let _ = match random.random_range(0..20) {
            0 => write!(sql, "SAVEPOINT s;{change};ROLLBACK TO s;"),
            1 => write!(sql, "SAVEPOINT s;{change};RELEASE s;"),
            _ => write!(sql, "{change};"),
        };
    }
    sql.push_str(if random.random_ratio(1, 30) { "ROLLBACK" } else { "COMMIT" });
    sql
}

fn change(random: &mut StdRng) -> String {
    let (x, y) = (random.random_range(0..IDS), random.random_range(0..IDS));
    let pair =
        |random: &mut StdRng| (format!("{TEXTS}[{}]", random.random_range(1..11)), random.random_range(0..NUMBERS));
    let ((k, a), (l, b)) = (pair(random), pair(random));
    let loose = format!("ctid = (SELECT ctid FROM loose OFFSET {} LIMIT 1)", x % 30);
    match random.random_range(0..100) {
        0..24 => format!("UPDATE hot SET v = v + 1 WHERE id = {x}"),
        24..30 => format!("UPDATE hot SET big = {BIG} WHERE id = {x}"),
        30..38 => format!("INSERT INTO hot VALUES ({x}, 0, {BIG}) ON CONFLICT DO NOTHING"),
        38..46 => format!("DELETE FROM hot WHERE id = {x}"),
        46..52 => format!("UPDATE hot SET id = {y} WHERE id = {x} AND NOT EXISTS (SELECT FROM hot WHERE id = {y})"),
        52..74 => format!("UPDATE pair SET v = v + 1 WHERE k = {k} AND a = {a}"),
        74..78 => format!("INSERT INTO pair VALUES (0, {k}, {BIG}, {a}) ON CONFLICT DO NOTHING"),
        78..82 => format!("DELETE FROM pair WHERE k = {k} AND a = {a}"),
        82..90 => format!(
            "UPDATE pair SET k = {l}, a = {b} WHERE k = {k} AND a = {a}
               AND NOT EXISTS (SELECT FROM pair WHERE k = {l} AND a = {b})"
        ),
        90..94 => format!("UPDATE loose SET v = (v + 1) % 5 WHERE {loose}"),
        94..97 => {
            format!("INSERT INTO loose SELECT {}, 't' || {} WHERE (SELECT count(*) < 30 FROM loose)", x % 5, y % 3)
        }
        _ => format!("DELETE FROM loose WHERE {loose} AND (SELECT count(*) > 10 FROM loose)"),
    }
}
