//! Writers at the source: random transactions over all tables, chosen by the seed.
//!
//! Each transaction ends with a row of journal: the writer, the next number of that writer, and the highest number of every
//! writer that it saw. So a sink can be judged alone: numbers without a gap (nothing lost, nothing out of order within a
//! writer), nothing that is missing though a transaction that is there has seen it (order across writers).
//!
//! Writers outlive their server. After a lost connection the outcome of the last transaction is unknown to them too, so they ask
//! the source which number they stand at. Some transactions and savepoints are rolled back: what they wrote must be nowhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::RwLock;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_postgres::Client;

use super::support::Database;
use super::tables::{ACCOUNTS, DOCS, SEATS, SHAPES, TWINS};

pub const WRITERS: i64 = 4;
/// Between two transactions of a writer: some thirty transactions a second of all, which leaves the machine to faults.
const PAUSE_MS_MAX: u64 = 250;
const RECONNECT: Duration = Duration::from_millis(50);
/// A transaction with so many rows comes now and then.
const BULK_ROWS: i64 = 1_000;

#[derive(Debug)]
pub struct Workload {
    /// Held for reading by whoever is in a transaction.
    gate: Arc<RwLock<()>>,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    writers: Vec<JoinHandle<()>>,
}

impl Workload {
    pub fn start(source: &Database, seed: u64) -> Workload {
        let (gate, stop, committed) = (Arc::default(), Arc::default(), Arc::default());
        let writer = |number| Writer {
            number,
            seq: 0,
            random: StdRng::seed_from_u64(seed ^ (number.unsigned_abs() + 1) << 32),
            url: source.url(),
            gate: Arc::clone(&gate),
            stop: Arc::clone(&stop),
            committed: Arc::clone(&committed),
        };
        let writers = (0..WRITERS).map(|number| tokio::spawn(writer(number).run())).collect();
        Workload { gate, stop, committed, writers }
    }

    /// Nobody is in a transaction, and nobody begins one, until the guard is dropped.
    pub async fn rest(&self) -> impl Drop + use<> {
        Arc::clone(&self.gate).write_owned().await
    }

    pub async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await?;
        }
        Ok(self.committed.load(Ordering::Relaxed))
    }
}

struct Writer {
    number: i64,
    /// Of the last transaction that is known to be committed.
    seq: i64,
    random: StdRng,
    url: String,
    gate: Arc<RwLock<()>>,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
}

impl Writer {
    async fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let _ = self.session().await;
            sleep(RECONNECT).await;
        }
    }

    /// Until the connection fails.
    async fn session(&mut self) -> Result<(), tokio_postgres::Error> {
        let gate = Arc::clone(&self.gate);
        let client = {
            let _turn = gate.read().await;
            let (client, connection) = tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            let mine = "SELECT coalesce(max(seq), 0) FROM journal WHERE writer = $1::int8";
            self.seq = client.query_one(mine, &[&self.number]).await?.get(0);
            client
        };
        while !self.stop.load(Ordering::Relaxed) {
            {
                let _turn = gate.read().await;
                self.transaction(&client).await?;
            }
            let pause = Duration::from_millis(self.random.random_range(0..PAUSE_MS_MAX));
            sleep(pause).await;
        }
        Ok(())
    }

    async fn transaction(&mut self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let mut sql = String::from("BEGIN; ");
        for _ in 0..self.random.random_range(1..4) {
            let change = self.change();
            match self.random.random_range(0..20) {
                0 => sql += &format!("SAVEPOINT s; {change}; ROLLBACK TO s; "),
                1 => sql += &format!("SAVEPOINT s; {change}; RELEASE s; "),
                _ => sql += &format!("{change}; "),
            }
        }
        let number = self.number;
        sql += &format!(
            "INSERT INTO journal SELECT {number}, {}, ARRAY(SELECT coalesce((SELECT max(seq) FROM journal WHERE writer = w), 0)
             FROM generate_series(0, {WRITERS} - 1) w); ",
            self.seq + 1
        );
        let commits = !self.random.random_ratio(1, 15);
        sql += if commits { "COMMIT" } else { "ROLLBACK" };
        match client.batch_execute(&sql).await {
            Ok(()) if commits => {
                self.seq += 1;
                self.committed.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Ok(()) => Ok(()),
            // Two writers met in a deadlock, or DDL came between: the server is there, and nothing was done.
            Err(error) if error.as_db_error().is_some() && !client.is_closed() => {
                client.batch_execute("ROLLBACK").await
            }
            Err(error) => Err(error),
        }
    }

    /// What one piece of a transaction does.
    fn change(&mut self) -> String {
        match self.random.random_range(0..1_000) {
            0..250 => self.transfer(),
            250..450 => self.twins(),
            450..670 => self.family(),
            // Rare: a sink that checks at once does such a transaction twice.
            670..678 => self.seats(),
            678..900 => self.docs(),
            900..995 => format!("UPDATE shape SET v = v + 1 WHERE id = {}", self.random.random_range(1..=SHAPES)),
            995 => self.bulk(),
            _ => format!(
                "TRUNCATE scratch; INSERT INTO scratch SELECT i, 'v' FROM generate_series(1, {}) i",
                self.below(20)
            ),
        }
    }

    fn below(&mut self, end: i64) -> i64 {
        self.random.random_range(0..end)
    }

    fn transfer(&mut self) -> String {
        let (a, b, amount) = (self.below(ACCOUNTS), self.below(ACCOUNTS), self.below(50));
        format!(
            "UPDATE account SET version = version + 1, balance = balance - {amount} WHERE id = {a};
             UPDATE account SET version = version + 1, balance = balance + {amount} WHERE id = {b}"
        )
    }

    /// The row of twin_a is locked by whoever changes the two, so both always see the same.
    fn twins(&mut self) -> String {
        let id = self.below(TWINS);
        match self.below(4) {
            0 => format!(
                "DELETE FROM twin_a WHERE id = {id}; DELETE FROM twin_b WHERE id NOT IN (SELECT id FROM twin_a)"
            ),
            1 => format!(
                "INSERT INTO twin_a VALUES ({id}, {0}) ON CONFLICT (id) DO UPDATE SET n = excluded.n;
                 INSERT INTO twin_b SELECT * FROM twin_a WHERE id = {id} ON CONFLICT (id) DO UPDATE SET n = excluded.n",
                self.below(1_000_000)
            ),
            _ => format!(
                "UPDATE twin_a SET n = n + 1 WHERE id = {id};
                 UPDATE twin_b SET n = (SELECT n FROM twin_a WHERE id = {id}) WHERE id = {id}"
            ),
        }
    }

    /// A writer has owners of its own, so that it always knows what is there.
    fn family(&mut self) -> String {
        let owner = self.number * 1_000 + self.below(30);
        let (first, count) = (owner * 1_000 + self.below(900), self.below(6) + 1);
        match self.below(4) {
            0 => format!("DELETE FROM item WHERE owner = {owner}; DELETE FROM owner WHERE id = {owner}"),
            1 => format!("UPDATE item SET note = note || '.' WHERE owner = {owner}"),
            _ => format!(
                "INSERT INTO owner VALUES ({owner}, 'o') ON CONFLICT DO NOTHING;
                 INSERT INTO item SELECT i, {owner}, 'n' FROM generate_series({first}, {first} + {count}) i
                     ON CONFLICT (id) DO UPDATE SET note = 'again'"
            ),
        }
    }

    /// A swap in one statement, or a value handed to the seat that has none.
    fn seats(&mut self) -> String {
        let (a, b) = (self.below(SEATS), self.below(SEATS));
        match self.below(2) {
            0 => format!(
                "UPDATE seat s SET holder = o.holder FROM seat o
                 WHERE s.id IN ({a}, {b}) AND o.id IN ({a}, {b}) AND s.id <> o.id"
            ),
            _ => format!(
                "SET CONSTRAINTS ALL DEFERRED; UPDATE seat SET holder = (SELECT holder FROM seat WHERE id = {a})
                     WHERE id = (SELECT id FROM seat WHERE holder IS NULL LIMIT 1);
                 UPDATE seat SET holder = NULL WHERE id = {a}"
            ),
        }
    }

    /// Mostly the small column; now and then the large one, another key, or two keys swapped.
    fn docs(&mut self) -> String {
        let (a, b) = (self.below(DOCS) + 1, self.below(DOCS) + 1);
        match self.below(12) {
            0 => format!("UPDATE doc SET body = repeat(md5(random()::text), 100) WHERE id = {a}"),
            1 => format!("DELETE FROM doc WHERE id = {a}"),
            2 => format!("INSERT INTO doc VALUES ({a}, 1, repeat(md5('{b}'), 90)) ON CONFLICT DO NOTHING"),
            3 => format!(
                "UPDATE doc SET id = id + 1000 WHERE id = {a} AND NOT EXISTS (SELECT FROM doc WHERE id = {a} + 1000)"
            ),
            4 => {
                format!("UPDATE doc SET id = {a} WHERE id = {a} + 1000 AND NOT EXISTS (SELECT FROM doc WHERE id = {a})")
            }
            5 if a != b => format!(
                "UPDATE doc SET id = -{a} WHERE id = {a}; UPDATE doc SET id = {a} WHERE id = {b}; UPDATE doc SET id = {b} WHERE id = -{a}"
            ),
            _ => format!("UPDATE doc SET small = small + 1 WHERE id = {a}"),
        }
    }

    /// Larger than a batch: in, and out again later.
    fn bulk(&mut self) -> String {
        let (owner, first) = (self.number * 1_000 + 999, (self.number + 10) * 1_000_000);
        format!(
            "DELETE FROM item WHERE owner = {owner}; INSERT INTO owner VALUES ({owner}, 'bulk') ON CONFLICT DO NOTHING;
             INSERT INTO item SELECT i, {owner}, 'bulk' FROM generate_series({first}, {first} + {BULK_ROWS}) i"
        )
    }
}
