//! The tables of the torture: each is there for one thing that goes wrong elsewhere.
//!
//! | table | what would be seen |
//! |---|---|
//! | account | half of a transfer: the sum of the balances is constant |
//! | twin_a, twin_b | half of a transaction over two tables: their rows come, change and go together |
//! | owner, item | order across tables: a foreign key |
//! | seat | unique values that rows hand over and swap |
//! | doc | rows that get other keys, swap them, and have a large column that most updates leave out of the stream |
//! | scratch | TRUNCATE |
//! | shape | DDL: its columns come, go and change their type |
//! | journal | one row for each transaction: its writer, its number among that writer's, and what it saw of the others |
//! | audit | at sinks only: every effect on journal |
//! | extra_N | made while all runs |

use anyhow::Result;

use super::support::{Database, TablePair};

pub const ACCOUNTS: i64 = 60;
pub const BALANCE: i64 = 1_000;
pub const TWINS: i64 = 40;
pub const SEATS: i64 = 30;
pub const DOCS: i64 = 60;
/// Enough for several chunks.
pub const SHAPES: i64 = 1_500;

const TABLES: &str = "
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, version int NOT NULL DEFAULT 0);
CREATE TABLE twin_a (id int PRIMARY KEY, n bigint NOT NULL);
CREATE TABLE twin_b (id int PRIMARY KEY, n bigint NOT NULL);
CREATE TABLE owner (id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE item (id bigint PRIMARY KEY, owner bigint NOT NULL REFERENCES owner DEFERRABLE, note text);
CREATE INDEX ON item (owner);
CREATE TABLE seat (id int PRIMARY KEY, holder int UNIQUE DEFERRABLE);
CREATE TABLE doc (id int PRIMARY KEY, small int NOT NULL, body text);
ALTER TABLE doc ALTER body SET STORAGE EXTERNAL;
CREATE TABLE scratch (id int PRIMARY KEY, v text);
CREATE TABLE shape (id int PRIMARY KEY, v int NOT NULL);
CREATE TABLE journal (writer int, seq bigint, saw bigint[] NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (writer, seq));
";

const AUDIT: &str = "
CREATE TABLE audit (n bigserial, writer int, seq bigint, op text);
CREATE INDEX ON audit (writer, seq);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN
    INSERT INTO audit (writer, seq, op) VALUES (coalesce(NEW.writer, OLD.writer), coalesce(NEW.seq, OLD.seq), TG_OP);
    RETURN NULL; END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON journal FOR EACH ROW EXECUTE FUNCTION audit();
";

/// Tables that are routed by their names, and their keys.
const ROUTED: [(&str, &[&str]); 10] = [
    ("public.account", &["id"]),
    ("public.twin_a", &["id"]),
    ("public.twin_b", &["id"]),
    ("public.owner", &["id"]),
    ("public.item", &["id"]),
    ("public.seat", &["id"]),
    ("public.doc", &["id"]),
    ("public.scratch", &["id"]),
    ("public.shape", &["id"]),
    ("public.journal", &["writer", "seq"]),
];
/// The one that follows its source's columns.
pub const EVOLVES: &str = "public.shape";
/// Tables to be: see [`extra`].
pub const EXTRA_PATTERN: &str = "public.extra_*";

/// What a sink may be asked to read again. Not journal: its effects are counted.
pub const READ_AGAIN: [&str; 7] =
    ["public.account", "public.twin_a", "public.item", "public.seat", "public.doc", "public.scratch", "public.shape"];

pub fn names() -> impl Iterator<Item = &'static str> {
    ROUTED.iter().map(|(name, _)| *name)
}

/// Every table, with so many that were made meanwhile.
pub fn pairs(extras: u32) -> Vec<TablePair> {
    let routed = ROUTED.iter().map(|(name, key)| TablePair::same(name, key));
    routed.chain((0..extras).map(|number| TablePair::same(&format!("public.extra_{number}"), &["id"]))).collect()
}

pub fn extra(number: u32) -> String {
    format!("CREATE TABLE public.extra_{number} (id int PRIMARY KEY, v text)")
}

pub async fn create_source(source: &Database) -> Result<()> {
    let rows = format!(
        "INSERT INTO account SELECT i, {BALANCE} FROM generate_series(0, {ACCOUNTS} - 1) i;
         INSERT INTO twin_a SELECT i, 0 FROM generate_series(0, {TWINS} - 1) i;
         INSERT INTO twin_b SELECT * FROM twin_a;
         INSERT INTO seat SELECT i, nullif(i, 0) FROM generate_series(0, {SEATS} - 1) i;
         INSERT INTO doc SELECT i, 0, repeat(md5(i::text), 100) FROM generate_series(1, {DOCS}) i;
         INSERT INTO shape SELECT i, 0 FROM generate_series(1, {SHAPES}) i"
    );
    source.execute(&format!("{TABLES}{rows}")).await
}

/// A sink's constraints may be checked late or at once; values handed over in any order must arrive either way.
pub async fn create_sink(sink: &Database, deferrable: bool) -> Result<()> {
    let tables = if deferrable { TABLES.to_owned() } else { TABLES.replace("UNIQUE DEFERRABLE", "UNIQUE") };
    sink.execute(&format!("{tables}{AUDIT}")).await
}
