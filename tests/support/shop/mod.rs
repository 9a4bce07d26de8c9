//! Four tables of a shop, rows for them, and a load ([`load`]) that is as unkind as real ones are.
//!
//! | table | key | what it is there for |
//! |---|---|---|
//! | categories | smallint | a foreign key to itself, flags, plain timestamps |
//! | suppliers | integer | REPLICA IDENTITY FULL; jsonb, uuid, bytea, dates; numbers that are not numbers |
//! | products | bigint | foreign keys to both; descriptions stored out of line, so that most updates leave them out of the stream |
//! | prices | bigint and varchar | a key of two columns that also is a foreign key; numeric with and without a scale |
//!
//! Copies have the same foreign keys, deferrable: within one transaction of a sink the order of tables is the sink's business.

pub mod load;

use anyhow::{Context, Result};
use tokio_postgres::Client;

use super::compare::TablePair;
use super::services::Database;

pub use load::{Load, LoadReport};

/// In an order in which rows can be inserted.
pub const TABLES: [(&str, &[&str]); 4] = [
    ("public.categories", &["id"]),
    ("public.suppliers", &["id"]),
    ("public.products", &["id"]),
    ("public.prices", &["product_id", "currency"]),
];

/// The tables and their copies under the same names.
pub fn pairs() -> Vec<TablePair> {
    TABLES.iter().map(|(table, key)| TablePair::same(table, key)).collect()
}

/// The row that the latency probe updates; the load leaves it alone.
pub const PROBE_ID: i64 = 0;

/// Tables as the owning service has them. `{deferrable}` stands at the end of each foreign key.
const SCHEMA: &str = "
CREATE TABLE public.categories (
    id smallint PRIMARY KEY,
    parent_id smallint REFERENCES public.categories {deferrable},
    name varchar(80) NOT NULL,
    visible boolean NOT NULL DEFAULT true,
    created_at timestamp NOT NULL
);
CREATE TABLE public.suppliers (
    id integer PRIMARY KEY,
    code uuid NOT NULL UNIQUE,
    name varchar(120) NOT NULL,
    rating double precision,
    partner_since date,
    contact jsonb,
    logo bytea
);
CREATE TABLE public.products (
    id bigint PRIMARY KEY,
    sku varchar(40) NOT NULL UNIQUE,
    name text NOT NULL,
    description text,
    attributes jsonb,
    category_id smallint NOT NULL REFERENCES public.categories {deferrable},
    supplier_id integer REFERENCES public.suppliers {deferrable},
    weight double precision,
    stock integer NOT NULL DEFAULT 0,
    active boolean,
    released date,
    updated_at timestamptz NOT NULL
);
CREATE INDEX ON public.products (category_id);
CREATE INDEX ON public.products (supplier_id);
CREATE TABLE public.prices (
    product_id bigint REFERENCES public.products {deferrable},
    currency varchar(3),
    amount numeric(12,2) NOT NULL,
    factor numeric,
    valid_from timestamptz,
    valid_until timestamp,
    PRIMARY KEY (product_id, currency)
);
";

/// What only the source has. EXTERNAL keeps large descriptions out of line and uncompressed, so an update that does not touch
/// them leaves them out of the log. The FK of prices is deferrable there too, for the load changes ids of products.
const SOURCE_ONLY: &str = "
ALTER TABLE public.suppliers REPLICA IDENTITY FULL;
ALTER TABLE public.products ALTER COLUMN description SET STORAGE EXTERNAL;
";

/// How many rows a shop begins with.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub categories: i16,
    pub suppliers: i32,
    pub products: i64,
}

impl Size {
    /// Some thousand rows: loads in seconds.
    pub const DEMO: Size = Size { categories: 200, suppliers: 1_000, products: 8_000 };
    /// For tests that need rows, but not many.
    pub const SMALL: Size = Size { categories: 20, suppliers: 50, products: 300 };
}

/// Makes the tables at the source, empty.
pub async fn create_source(source: &Database) -> Result<()> {
    let sql = SCHEMA.replace("{deferrable}", "DEFERRABLE INITIALLY IMMEDIATE") + SOURCE_ONLY;
    source.execute(&sql).await.context("making the shop's tables")
}

/// Makes their copies at a sink.
pub async fn create_sink(sink: &Database) -> Result<()> {
    let sql = SCHEMA.replace("{deferrable}", "DEFERRABLE INITIALLY IMMEDIATE");
    sink.execute(&sql).await.context("making the copies' tables")
}

/// Fills the source's tables; the number of rows. The same size and seed give the same rows.
pub async fn seed(source: &Database, size: Size, seed: u64) -> Result<u64> {
    let client = source.connect().await?;
    let seed = i32::try_from(seed % 1_000_000).expect("below a million");
    let mut rows = 0;
    rows += fill(&client, "categories", SEED_CATEGORIES, &[&size.categories]).await?;
    rows += fill(&client, "suppliers", SEED_SUPPLIERS, &[&size.suppliers, &seed]).await?;
    rows += fill(
        &client,
        "products",
        SEED_PRODUCTS,
        &[&size.products, &seed, &i32::from(size.categories), &size.suppliers],
    )
    .await?;
    rows += fill(&client, "prices", SEED_PRICES, &[&seed]).await?;
    client.batch_execute("ANALYZE").await?;
    Ok(rows)
}

async fn fill(
    client: &Client,
    table: &str,
    sql: &str,
    params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<u64> {
    client.execute(sql, params).await.with_context(|| format!("filling {table}"))
}

const SEED_CATEGORIES: &str = "
INSERT INTO public.categories
SELECT i, CASE WHEN i > 10 THEN 1 + i % 10 END, 'Category ' || i || ' – Größe', i % 7 <> 0,
       timestamp '2019-12-31 23:59:59.999999' + i * interval '1 hour 7 microseconds'
  FROM generate_series(1, $1::smallint) i";

/// Values that formats like to lose are among them: infinities, NaN, dates before our era, quotes, backslashes, NULLs.
const SEED_SUPPLIERS: &str = r#"
INSERT INTO public.suppliers
SELECT i, md5($2::int || 's' || i)::uuid, E'Supplier "' || i || E'" \\ 株式会社\n\t🙂',
       CASE i % 50 WHEN 0 THEN 'NaN' WHEN 1 THEN '-Infinity' WHEN 2 THEN NULL WHEN 3 THEN '-0' ELSE 0.1 * i + 1e-9 * $2 END,
       CASE i % 40 WHEN 0 THEN 'infinity' WHEN 1 THEN '0044-03-15 BC' WHEN 2 THEN NULL ELSE date '1999-12-31' + i END,
       CASE WHEN i % 9 <> 0 THEN jsonb_build_object('email', 's' || i || '@example.org', 'floors', jsonb_build_array(i, NULL, 1.50, 1e30),
            'note', E'a "quoted"\\ line\u2028é') END,
       CASE WHEN i % 5 <> 0 THEN decode(repeat(md5('l' || i), 1 + i % 8), 'hex') END
  FROM generate_series(1, $1::int) i"#;

/// One description in four is larger than a page's share and goes out of line: 3 to 20 kB.
const SEED_PRODUCTS: &str = "
INSERT INTO public.products
SELECT 0, 'PROBE', 'The row that measures latency', NULL, NULL, 1, NULL, NULL, 0, true, NULL, now()
 UNION ALL
SELECT i, 'SKU-' || $2::int || '-' || i, 'Product ' || i,
       CASE i % 4 WHEN 0 THEN repeat(md5($2 || 'd' || i) || ' – ', 80 + ((i * 7919) % 450)::int) WHEN 1 THEN NULL ELSE 'Short text ' || i END,
       CASE WHEN i % 6 <> 0 THEN jsonb_build_object('color', (ARRAY['red','grün','青'])[1 + i % 3], 'size', i % 50, 'tags', jsonb_build_array('a', i)) END,
       1 + i % $3::int, CASE WHEN i % 11 <> 0 THEN 1 + i % $4::int END,
       i / 7.0, i % 1000, CASE i % 3 WHEN 0 THEN true WHEN 1 THEN false END, date '2020-02-29' + (i % 2000)::int,
       timestamptz '2024-03-31 00:59:59.123456+00' + i * interval '1 second 1 microsecond'
  FROM generate_series(1, $1::bigint) i";

const SEED_PRICES: &str = "
INSERT INTO public.prices
SELECT p.id, c.currency, round(((p.id * 7919 + $1::int) % 1000000)::numeric / 100, 2),
       CASE p.id % 30 WHEN 0 THEN 'NaN' WHEN 1 THEN NULL WHEN 2 THEN 123456789012345678901234567890.123456789 ELSE p.id / 3.0 END,
       timestamptz '2024-01-01 00:00+00' + p.id * interval '1 minute',
       CASE WHEN p.id % 13 = 0 THEN timestamp 'infinity' WHEN p.id % 5 = 0 THEN timestamp '2030-06-15 12:00:00.000001' END
  FROM public.products p CROSS JOIN (VALUES ('EUR'), ('USD')) c (currency)
 WHERE p.id <> 0 AND (c.currency = 'EUR' OR p.id % 2 = 0)";

/// Rows in all tables of a database that holds the shop or a copy.
pub async fn rows(database: &Database) -> Result<u64> {
    let client = database.connect().await?;
    let mut rows = 0;
    for (table, _) in TABLES {
        let count: i64 = client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await?.get(0);
        rows += u64::try_from(count)?;
    }
    Ok(rows)
}
