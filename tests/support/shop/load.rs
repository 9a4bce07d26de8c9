//! A live load on the shop: several writers at once, each committing, rolling back and colliding as services do.
//!
//! Every kind of thing that changes a table is in the mix ([`MIX`]), most of it over several tables in one transaction: new
//! products with prices, price lists, small updates beside large untouched values, changed keys (one of them with the rows that
//! refer to it), deletes, subtransactions that are given up, whole transactions that are given up. Once in a run all prices
//! are truncated, while the other writers go on.
//!
//! Writers are seeded: the same seed makes the same choices, as far as the server's scheduling lets it. They don't avoid each
//! other: a transaction that dies of a deadlock, or of a foreign key whose other end just went, is counted and forgotten; the
//! server rolled it back, and that it leaves no trace at a sink is a part of what is tested.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};

use super::super::services::Database;

const CURRENCIES: [&str; 6] = ["EUR", "USD", "GBP", "JPY", "CHF", "PLN"];
/// Prices come back after the truncate so many products at a time.
const REFILL_PRODUCTS: i64 = 500;

/// What a transaction may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    NewProduct,
    Reprice,
    /// Small columns of products, most of them with a description out of line that is not touched.
    Touch,
    Describe,
    SupplierAndCategory,
    /// A price gets another currency.
    MovePrice,
    /// A supplier that nobody refers to gets another id.
    MoveSupplier,
    /// A product gets another id, its prices follow in the same transaction.
    MoveProduct,
    DeletePrices,
    DeleteProduct,
    Savepoints,
    RolledBack,
    Truncate,
}

/// Out of 100. The truncate is not in it: it comes once.
const MIX: [(u32, Kind); 12] = [
    (15, Kind::NewProduct),
    (22, Kind::Reprice),
    (22, Kind::Touch),
    (5, Kind::Describe),
    (6, Kind::SupplierAndCategory),
    (5, Kind::MovePrice),
    (3, Kind::MoveSupplier),
    (4, Kind::MoveProduct),
    (5, Kind::DeletePrices),
    (5, Kind::DeleteProduct),
    (4, Kind::Savepoints),
    (4, Kind::RolledBack),
];

/// How much of it, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub seed: u64,
    pub writers: u32,
    /// Of all writers together.
    pub transactions_per_second: u32,
    /// Truncate all prices once, this long after the start.
    pub truncate_after: Option<Duration>,
}

/// What was committed.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    pub elapsed: Duration,
    /// Transactions by kind: committed, except for [`Kind::RolledBack`].
    pub transactions: BTreeMap<Kind, u64>,
    /// Rows inserted, updated or deleted by committed transactions.
    pub rows: u64,
    /// Transactions that the server refused because of another one.
    pub conflicts: u64,
}

impl LoadReport {
    pub fn committed(&self) -> u64 {
        self.transactions.iter().filter(|(kind, _)| **kind != Kind::RolledBack).map(|(_, count)| count).sum()
    }

    pub fn of(&self, kind: Kind) -> u64 {
        self.transactions.get(&kind).copied().unwrap_or_default()
    }

    fn add(&mut self, other: LoadReport) {
        for (kind, count) in other.transactions {
            *self.transactions.entry(kind).or_default() += count;
        }
        self.rows += other.rows;
        self.conflicts += other.conflicts;
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows_per_second = self.rows as f64 / self.elapsed.as_secs_f64().max(0.001);
        write!(
            f,
            "{} transactions committed, {} rows changed, {rows_per_second:.0} rows/s; {} rolled back, {} refused by the server",
            self.committed(),
            self.rows,
            self.of(Kind::RolledBack),
            self.conflicts
        )
    }
}

/// A load that runs. Dropping it ends it in the middle of whatever it does.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    started: Instant,
    /// Rows of committed transactions so far.
    rows: Arc<AtomicU64>,
    writers: JoinSet<Result<LoadReport>>,
}

impl Load {
    /// Connects the writers and lets them go.
    pub async fn start(self, source: &Database) -> Result<Running> {
        let client = source.connect().await?;
        let top = "SELECT (SELECT max(id) FROM public.products), (SELECT max(id)::bigint FROM public.suppliers),
                          (SELECT max(id)::bigint FROM public.categories)";
        let top = client.query_one(top, &[]).await.context("the shop is empty")?;
        let mut running =
            Running { stop: Arc::default(), started: Instant::now(), rows: Arc::default(), writers: JoinSet::new() };
        let shared = Arc::new(Ids {
            product: AtomicI64::new(top.get(0)),
            supplier: AtomicI64::new(top.get(1)),
            categories: top.get(2),
        });
        let truncated = Arc::new(AtomicBool::new(self.truncate_after.is_none()));
        for number in 0..self.writers {
            let writer = Writer {
                client: source.connect().await?,
                // A prime keeps the writers' sequences apart for seeds that are close.
                random: StdRng::seed_from_u64(self.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(number))),
                ids: shared.clone(),
                report: LoadReport::default(),
            };
            let (stop, rows, truncated) = (running.stop.clone(), running.rows.clone(), truncated.clone());
            running.writers.spawn(writer.run(self, stop, rows, truncated));
        }
        Ok(running)
    }
}

impl Running {
    /// Rows of committed transactions so far.
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Lets every writer finish its transaction.
    pub async fn stop(mut self) -> Result<LoadReport> {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = LoadReport::default();
        while let Some(outcome) = self.writers.join_next().await {
            report.add(outcome.context("a writer panicked")??);
        }
        report.elapsed = self.started.elapsed();
        Ok(report)
    }
}

/// Ids that no row has had; shared by the writers.
#[derive(Debug)]
struct Ids {
    product: AtomicI64,
    supplier: AtomicI64,
    categories: i64,
}

impl Ids {
    fn new_product(&self) -> i64 {
        self.product.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn new_supplier(&self) -> i32 {
        let id = self.supplier.fetch_add(1, Ordering::Relaxed) + 1;
        i32::try_from(id).expect("a run makes thousands of suppliers, not billions")
    }
}

struct Writer {
    client: Client,
    random: StdRng,
    ids: Arc<Ids>,
    report: LoadReport,
}

impl Writer {
    async fn run(
        mut self,
        load: Load,
        stop: Arc<AtomicBool>,
        rows: Arc<AtomicU64>,
        truncated: Arc<AtomicBool>,
    ) -> Result<LoadReport> {
        let rate = f64::from(load.transactions_per_second.max(1)) / f64::from(load.writers.max(1));
        let mut beat = interval(Duration::from_secs_f64(1.0 / rate));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let started = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            beat.tick().await;
            let due = load.truncate_after.is_some_and(|after| started.elapsed() >= after);
            let kind = match due && !truncated.swap(true, Ordering::Relaxed) {
                true => Kind::Truncate,
                false => self.pick(),
            };
            let changed = self.transaction(kind).await?;
            rows.fetch_add(changed, Ordering::Relaxed);
        }
        Ok(self.report)
    }

    fn pick(&mut self) -> Kind {
        let mut left = self.random.random_range(0..MIX.iter().map(|(share, _)| share).sum());
        for (share, kind) in MIX {
            if left < share {
                return kind;
            }
            left -= share;
        }
        unreachable!("the shares add up")
    }

    /// One transaction to its end; the rows it changed for good.
    async fn transaction(&mut self, kind: Kind) -> Result<u64> {
        let outcome = self.attempt(kind).await;
        let rows = match outcome {
            Ok(rows) => rows,
            Err(error) if is_conflict(&error) => {
                self.report.conflicts += 1;
                return Ok(0);
            }
            Err(error) => return Err(error).with_context(|| format!("the load's {kind:?} failed")),
        };
        *self.report.transactions.entry(kind).or_default() += 1;
        self.report.rows += rows;
        Ok(rows)
    }

    async fn attempt(&mut self, kind: Kind) -> Result<u64, tokio_postgres::Error> {
        let tx = self.client.transaction().await?;
        let mut work = Work { tx: &tx, random: &mut self.random, ids: &self.ids };
        let rows = match kind {
            Kind::NewProduct => work.new_product().await?,
            Kind::Reprice => work.reprice().await?,
            Kind::Touch => work.touch().await?,
            Kind::Describe => work.describe().await?,
            Kind::SupplierAndCategory => work.supplier_and_category().await?,
            Kind::MovePrice => work.move_price().await?,
            Kind::MoveSupplier => work.move_supplier().await?,
            Kind::MoveProduct => work.move_product().await?,
            Kind::DeletePrices => work.delete_prices().await?,
            Kind::DeleteProduct => work.delete_product().await?,
            Kind::Savepoints => work.savepoints().await?,
            Kind::Truncate => work.truncate().await?,
            Kind::RolledBack => {
                work.new_product().await?;
                work.reprice().await?;
                tx.rollback().await?;
                return Ok(0);
            }
        };
        tx.commit().await?;
        Ok(rows)
    }
}

/// Another transaction was in the way; the server rolled this one back.
fn is_conflict(error: &tokio_postgres::Error) -> bool {
    let conflicts = [
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::FOREIGN_KEY_VIOLATION,
        SqlState::UNIQUE_VIOLATION,
        SqlState::T_R_SERIALIZATION_FAILURE,
    ];
    error.code().is_some_and(|code| conflicts.contains(code))
}

type Rows = Result<u64, tokio_postgres::Error>;

/// What writers do inside a transaction. Rows are chosen by the server, near a random id, so ids that went leave no hole.
struct Work<'t> {
    tx: &'t Transaction<'t>,
    random: &'t mut StdRng,
    ids: &'t Ids,
}

impl Work<'_> {
    fn near(&mut self) -> i64 {
        self.random.random_range(1..=self.ids.product.load(Ordering::Relaxed))
    }

    fn number(&mut self) -> i32 {
        self.random.random_range(0..1_000_000)
    }

    /// Half of them short, half of them 3 to 20 kB.
    fn description(&mut self) -> String {
        let number = self.number();
        match self.random.random_bool(0.5) {
            true => format!("short {number}"),
            false => format!("{number:08x} «é» \"\\ ").repeat(self.random.random_range(160..1000)),
        }
    }

    async fn new_product(&mut self) -> Rows {
        let id = self.ids.new_product();
        let (description, number) = (self.description(), self.number());
        let category = i16::try_from(self.random.random_range(1..=self.ids.categories)).expect("a smallint");
        let insert = "
            INSERT INTO public.products
            VALUES ($1, 'NEW-' || $1::bigint, 'New ' || $2::int, $3, jsonb_build_object('n', $2::int, 'x', '[1, 2.50, null]'::jsonb), $4,
                    (SELECT min(id) FROM public.suppliers WHERE id >= $2 % 1000), $2 / 13.0, $2 % 100, $2 % 2 = 0,
                    date '2000-01-01' + $2 % 10000, clock_timestamp())";
        let mut rows = self.tx.execute(insert, &[&id, &number, &description, &category]).await?;
        let prices = "
            INSERT INTO public.prices
            SELECT $1, c, ($2::int % 100000)::numeric / 100, $2::numeric / 7, clock_timestamp(), NULL FROM unnest($3::text[]) c";
        let currencies = &CURRENCIES[..self.random.random_range(1..=CURRENCIES.len())];
        rows += self.tx.execute(prices, &[&id, &number, &currencies]).await?;
        Ok(rows)
    }

    async fn reprice(&mut self) -> Rows {
        let (near, number, many) = (self.near(), self.number(), self.random.random_range(1..40_i64));
        let sql = "
            UPDATE public.prices SET amount = ($2::int % 500000)::numeric / 100 + product_id % 10, valid_from = clock_timestamp()
             WHERE (product_id, currency) IN
                   (SELECT product_id, currency FROM public.prices WHERE product_id >= $1 ORDER BY 1, 2 LIMIT $3)";
        self.tx.execute(sql, &[&near, &number, &many]).await
    }

    async fn touch(&mut self) -> Rows {
        let (near, number, many) = (self.near(), self.number(), self.random.random_range(1..10_i64));
        let sql = "
            UPDATE public.products SET stock = $2::int, active = NOT active, updated_at = clock_timestamp()
             WHERE id IN (SELECT id FROM public.products WHERE id >= $1 ORDER BY id LIMIT $3)";
        let mut rows = self.tx.execute(sql, &[&near, &number, &many]).await?;
        if self.random.random_bool(0.3) {
            rows += self.reprice().await?;
        }
        Ok(rows)
    }

    async fn describe(&mut self) -> Rows {
        let (near, description) = (self.near(), self.description());
        let sql = "
            UPDATE public.products SET description = $2, attributes = coalesce(attributes, '{}') || jsonb_build_object('d', length($2::text))
             WHERE id IN (SELECT id FROM public.products WHERE id >= $1 ORDER BY id LIMIT 2)";
        self.tx.execute(sql, &[&near, &description]).await
    }

    async fn supplier_and_category(&mut self) -> Rows {
        let (supplier, number) = (self.ids.new_supplier(), self.number());
        let insert = "INSERT INTO public.suppliers VALUES ($1, gen_random_uuid(), 'New supplier ' || $2::int, $2 / 3.0,
                      date '2010-01-01' + $2 % 5000, jsonb_build_object('n', $2), decode(md5($2::int::text), 'hex'))";
        let mut rows = self.tx.execute(insert, &[&supplier, &number]).await?;
        let update = "UPDATE public.suppliers SET rating = $2::int / 7.0, logo = NULL
                       WHERE id IN (SELECT id FROM public.suppliers WHERE id >= $1 ORDER BY id LIMIT 3)";
        rows += self.tx.execute(update, &[&(number % 1000), &number]).await?;
        let category = i16::try_from(self.random.random_range(1..=self.ids.categories)).expect("a smallint");
        let update = "UPDATE public.categories SET name = 'Renamed ' || $2::int, visible = NOT visible WHERE id = $1";
        rows += self.tx.execute(update, &[&category, &number]).await?;
        Ok(rows)
    }

    async fn move_price(&mut self) -> Rows {
        let (near, to) = (self.near(), CURRENCIES[self.random.random_range(0..CURRENCIES.len())]);
        let sql = "
            UPDATE public.prices p SET currency = $2
             WHERE (product_id, currency) = (SELECT product_id, currency FROM public.prices WHERE product_id >= $1 ORDER BY 1, 2 LIMIT 1)
               AND NOT EXISTS (SELECT FROM public.prices o WHERE o.product_id = p.product_id AND o.currency = $2)";
        self.tx.execute(sql, &[&near, &to]).await
    }

    async fn move_supplier(&mut self) -> Rows {
        let (to, number) = (self.ids.new_supplier(), self.number());
        let sql = "
            UPDATE public.suppliers SET id = $1
             WHERE id = (SELECT id FROM public.suppliers s
                          WHERE id >= $2 AND NOT EXISTS (SELECT FROM public.products WHERE supplier_id = s.id)
                          ORDER BY id LIMIT 1)";
        self.tx.execute(sql, &[&to, &(number % 2000)]).await
    }

    async fn move_product(&mut self) -> Rows {
        let (near, to) = (self.near(), self.ids.new_product());
        self.tx.batch_execute("SET CONSTRAINTS ALL DEFERRED").await?;
        let find = "SELECT min(id) FROM public.products WHERE id >= $1";
        let Some(from) = self.tx.query_one(find, &[&near]).await?.get::<_, Option<i64>>(0) else {
            return Ok(0);
        };
        let mut rows = self.tx.execute("UPDATE public.products SET id = $2 WHERE id = $1", &[&from, &to]).await?;
        let follow = "UPDATE public.prices SET product_id = $2 WHERE product_id = $1";
        rows += self.tx.execute(follow, &[&from, &to]).await?;
        Ok(rows)
    }

    async fn delete_prices(&mut self) -> Rows {
        let near = self.near();
        let sql = "DELETE FROM public.prices WHERE (product_id, currency) IN
                   (SELECT product_id, currency FROM public.prices WHERE product_id >= $1 ORDER BY 1, 2 LIMIT 3)";
        self.tx.execute(sql, &[&near]).await
    }

    async fn delete_product(&mut self) -> Rows {
        let near = self.near();
        let find = "SELECT min(id) FROM public.products WHERE id >= $1";
        let Some(id) = self.tx.query_one(find, &[&near]).await?.get::<_, Option<i64>>(0) else {
            return Ok(0);
        };
        let mut rows = self.tx.execute("DELETE FROM public.prices WHERE product_id = $1", &[&id]).await?;
        rows += self.tx.execute("DELETE FROM public.products WHERE id = $1", &[&id]).await?;
        if self.random.random_bool(0.2) {
            // The same key again in the same transaction, as another product.
            let again = "INSERT INTO public.products (id, sku, name, description, category_id, updated_at)
                         VALUES ($1, 'AGAIN-' || $1::bigint || '-' || txid_current(), 'Again', $2, 1, clock_timestamp())";
            rows += self.tx.execute(again, &[&id, &self.description()]).await?;
        }
        Ok(rows)
    }

    /// Rows before, in and after a savepoint; what was in it is given up.
    async fn savepoints(&mut self) -> Rows {
        let mut rows = self.touch().await?;
        self.tx.batch_execute("SAVEPOINT given_up").await?;
        self.new_product().await?;
        self.delete_prices().await?;
        self.tx.batch_execute("ROLLBACK TO SAVEPOINT given_up; SAVEPOINT kept").await?;
        rows += self.new_product().await?;
        self.tx.batch_execute("RELEASE SAVEPOINT kept").await?;
        rows += self.reprice().await?;
        Ok(rows)
    }

    /// All prices go and some come back, in one transaction.
    async fn truncate(&mut self) -> Rows {
        self.tx.batch_execute("TRUNCATE public.prices").await?;
        let refill =
            "INSERT INTO public.prices SELECT id, 'EUR', (id % 10000)::numeric / 100, NULL, clock_timestamp(), NULL
                        FROM public.products WHERE id > 0 ORDER BY id LIMIT $1";
        self.tx.execute(refill, &[&REFILL_PRODUCTS]).await
    }
}
