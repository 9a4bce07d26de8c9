//! SQLite as a sink: the file alone, and behind a source and Kafka.

mod sqlite;
mod support;
#[path = "support/sink.rs"]
mod world;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use lockstep::error::Code;
use lockstep::key::KeyRange;
use lockstep::relation::TableName;
use lockstep::sink::park::Loaded;
use lockstep::sink::progress::TakeOver;
use lockstep::sink::{Failure, Sink};
use rusqlite::Connection;
use rustix::process::Signal;
use sqlite::{File, differential, halt_of};
use support::scene::{EVENTS_SCHEMA, Events, PATIENCE, Scene, text};
use support::{Pipeline, Process};
use tokio::time::sleep;
use uuid::Uuid;
use world::{after, first, mine, wanted};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const POLL: Duration = Duration::from_millis(20);

// ---- A file alone ----

#[tokio::test]
async fn changes_are_written_counted_and_seen_whole() {
    let file = File::new("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, n NUMERIC, own TEXT NOT NULL DEFAULT 'own')");
    let mut a = file.sink().await;
    let plan = a.plan(wanted("t", "id:int8! a:text n:int4")).await;
    let counts = a.ops(&plan, &["insert 1|a|1", "insert 2|b|~", "insert 3|c|3"]).await.unwrap();
    assert_eq!((counts.inserted, counts.overwritten), (3, 0));
    file.run("UPDATE t SET own = id");
    let counts = a.ops(&plan, &["update 1|-|7", "rekey 2|-|- -> 9|-|-", "delete 3|-|-", "insert 4|d|4"]).await.unwrap();
    assert_eq!((counts.updated, counts.moved, counts.deleted, counts.inserted), (1, 1, 1, 1));
    assert_eq!(
        file.rows("SELECT * FROM t ORDER BY id"),
        "1|a|7|1\n4|d|4|own\n9|b|~|2",
        "absent columns and own ones stay"
    );
    // Rows that are not there, and one that nobody but us should have written.
    for op in ["update 8|x|1", "delete 8|-|-", "rekey 8|-|- -> 7|-|-"] {
        assert_eq!(halt_of(a.ops(&plan, &["insert 5|e|5", op]).await).code, Code::SinkDiverged, "{op}");
    }
    assert_eq!(file.rows("SELECT count(*) FROM t"), "3", "nothing of a refused transaction stays");
    let counts = a.ops(&plan, &["insert 4|other|4"]).await.unwrap();
    assert_eq!((counts.inserted, counts.overwritten), (1, 1));
    assert_eq!(file.rows("SELECT a, own FROM t WHERE id = 4"), "other|own");
    // The progress row went along.
    let row = a.sink.found_progress().await.unwrap().unwrap();
    assert_eq!(row.standing, a.row.standing);
    assert_eq!(
        file.rows("SELECT closed_lsn, phase, commit_time FROM lockstep_progress"),
        "FFFFFFFF/1|streaming|2026-11-18T11:06:40.123456Z"
    );
    // A table without a key: n equal rows are n rows.
    file.run("CREATE TABLE k (a TEXT, n REAL)");
    let plan = a.plan(wanted("k", "a:text n:float8")).await;
    a.ops(&plan, &["insert x|1.5", "insert x|1.5", "insert x|1.5", "insert ~|~"]).await.unwrap();
    a.ops(&plan, &["delete x|1.5", "rekey x|1.5 -> y|2", "delete ~|~"]).await.unwrap();
    assert_eq!(file.rows("SELECT * FROM k ORDER BY a"), "x|1.5\ny|2");
    assert_eq!(halt_of(a.ops(&plan, &["delete X|1.5"]).await).code, Code::SinkDiverged);
    let counts = a.replace(&plan, &KeyRange::ALL, &["y|2", "y|2", "z|3"]).await.unwrap();
    assert_eq!((counts.deleted, counts.inserted), (1, 2));
    assert_eq!(file.rows("SELECT * FROM k ORDER BY a"), "y|2\ny|2\nz|3");
}

/// A table may say REPLACE of its own constraints, which deletes the other row.
#[tokio::test]
async fn no_row_is_deleted_for_another_ones_unique_value() {
    let file = File::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, u TEXT UNIQUE ON CONFLICT REPLACE, v INT NOT NULL, UNIQUE (v) ON CONFLICT IGNORE);
         CREATE TABLE own (id INTEGER REFERENCES t ON DELETE CASCADE);",
    );
    let mut a = file.sink().await;
    let plan = a.plan(wanted("t", "id:int8! u:text v:int4+")).await;
    a.ops(&plan, &["insert 1|a|1", "insert 2|b|2", "insert 3|c|3"]).await.unwrap();
    file.run("INSERT INTO own VALUES (1), (2), (3)");
    // A swap, a chain that closes, a hand-over to a new row: by NULL, and by a made-up value.
    a.ops(&plan, &["update 1|b|2", "update 2|a|1"]).await.unwrap();
    a.ops(&plan, &["update 1|c|3", "update 2|b|2", "update 3|a|1"]).await.unwrap();
    a.ops(&plan, &["insert 4|c|9", "update 1|x|3"]).await.unwrap();
    assert_eq!(file.rows("SELECT * FROM t ORDER BY id"), "1|x|3\n2|b|2\n3|a|1\n4|c|9");
    assert_eq!(file.rows("SELECT count(*) FROM own"), "3", "whoever hangs on a row that lives on stays");
    // What two rows hold in the end is refused, and each has what it had.
    let refused = a.ops(&plan, &["update 1|b|-"]).await.unwrap_err();
    assert!(
        matches!(&refused, Failure::Unique(halt) if halt.code == Code::ConstraintRefused && halt.message.contains("t.u")),
        "{refused:?}"
    );
    assert_eq!(file.rows("SELECT * FROM t ORDER BY id"), "1|x|3\n2|b|2\n3|a|1\n4|c|9");
    // Nothing can stand in: a trigger would hear of it, or the values are too few.
    file.run("CREATE TRIGGER hears AFTER UPDATE ON t BEGIN SELECT 1; END");
    let plan = a.plan(wanted("t", "id:int8! u:text v:int4+")).await;
    let halt = halt_of(a.ops(&plan, &["update 1|b|2", "update 2|x|3"]).await);
    assert!(halt.code == Code::UniqueHandover && halt.facts[0].contains("trigger hears"), "{halt}");
    // Stale rows of a table under load give way too; their own chunk is still to come.
    file.run("DROP TRIGGER hears");
    let plan = a.plan(wanted("t", "id:int8! u:text v:int4+")).await;
    let load = Loaded { ranges: vec![KeyRange { after: None, through: Some(vec!["2".into()]) }], ..Loaded::default() };
    let unread = HashMap::from([(TableName::new("public", "t"), vec![load])]);
    let net = |text: &str| {
        let mut fold = plan.fold();
        fold.fold(world::op(text)).unwrap();
        fold.drain()
    };
    assert!(matches!(a.apply(vec![(&plan, net("update 1|a|-"))], None).await, Err(Failure::Unique(_))));
    a.apply(vec![(&plan, net("update 1|a|-"))], Some(&unread)).await.unwrap();
    assert_eq!(file.rows("SELECT id, u FROM t ORDER BY id"), "1|a\n2|b\n3|~\n4|c");
    // A row that was read is not stale.
    assert!(matches!(a.apply(vec![(&plan, net("update 1|b|-"))], Some(&unread)).await, Err(Failure::Unique(_))));
}

#[tokio::test]
async fn foreign_keys_are_checked_at_the_end_of_a_transaction() {
    let file = File::new(
        "CREATE TABLE p (id INTEGER PRIMARY KEY, c INTEGER REFERENCES c DEFERRABLE);
         CREATE TABLE c (id INTEGER PRIMARY KEY, p INTEGER REFERENCES p (id) ON UPDATE CASCADE);
         CREATE TABLE own (id INTEGER PRIMARY KEY, p INTEGER REFERENCES p ON DELETE SET NULL ON UPDATE CASCADE);",
    );
    let mut a = file.sink().await;
    let (p, c) = (a.plan(wanted("p", "id:int8! c:int8")).await, a.plan(wanted("c", "id:int8! p:int8")).await);
    let net = |plan: &sqlite::Plan, ops: &[&str]| {
        let mut fold = plan.fold();
        ops.iter().for_each(|text| drop(fold.fold(world::op(text)).unwrap()));
        fold.drain()
    };
    // A circle, children first.
    a.apply(vec![(&c, net(&c, &["insert 1|1", "insert 2|1"])), (&p, net(&p, &["insert 1|2", "insert 5|~"]))], None)
        .await
        .unwrap();
    file.run("INSERT INTO own VALUES (1, 1), (5, 5)");
    // The children follow the key by the sink's own action, and by the stream.
    a.apply(vec![(&p, net(&p, &["rekey 1|- -> 3|-"])), (&c, net(&c, &["update 1|3", "update 2|3"]))], None)
        .await
        .unwrap();
    assert_eq!(file.rows("SELECT * FROM own ORDER BY id"), "1|3\n5|5");
    let refused = a.ops(&c, &["insert 7|70"]).await;
    assert!(matches!(&refused, Err(Failure::Reference(_))), "{refused:?}");
    let refused = a.ops(&p, &["delete 3|-"]).await;
    assert!(matches!(&refused, Err(Failure::Reference(_))), "{refused:?}");
    assert_eq!(file.rows("SELECT count(*) FROM own WHERE p IS NULL"), "0", "nothing of it stays");
    // A table of the service's own would lose what it holds: not by a TRUNCATE, unless it is asked for.
    let halt = halt_of(a.ops(&p, &["truncate"]).await);
    assert!(halt.code == Code::ConstraintRefused && halt.message.contains("rows of own"), "{halt}");
    let circles = a
        .sink
        .circles(&[TableName::new("public", "p"), TableName::new("x", "C"), TableName::new("public", "own")])
        .await;
    let circles = circles.unwrap();
    assert_eq!(circles.len(), 2, "{circles:?}");
    assert_eq!(circles[&TableName::new("x", "C")].len(), 2);
    let mut rows = wanted("p", "id:int8! c:int8");
    rows.truncate = lockstep::config::Truncate::Delete;
    let p = a.plan(rows).await;
    a.apply(vec![(&p, net(&p, &["truncate"])), (&c, net(&c, &["truncate"]))], None).await.unwrap();
    assert_eq!(
        file.rows("SELECT (SELECT count(*) FROM p), (SELECT count(*) FROM c), (SELECT count(p) FROM own)"),
        "0|0|0"
    );
}

/// A range holds exactly what it is to hold, whatever the key is and however SQLite sorts it.
#[tokio::test]
async fn ranges_are_replaced_by_the_order_that_all_agree_on() {
    let range = |after: &str, through: &str| {
        let border = |text: &str| (!text.is_empty()).then(|| text.split('|').map(str::to_owned).collect::<Vec<_>>());
        KeyRange { after: border(after), through: border(through) }
    };
    let file = File::new(
        "CREATE TABLE i (k INTEGER PRIMARY KEY, a TEXT); CREATE TABLE x (k TEXT NOT NULL PRIMARY KEY, a TEXT) WITHOUT ROWID;
         CREATE TABLE n (k TEXT NOT NULL, i INT NOT NULL, a TEXT, PRIMARY KEY (k, i)) STRICT;
         CREATE TABLE ts (k TIMESTAMP NOT NULL PRIMARY KEY, a TEXT); CREATE TABLE log (id);
         CREATE TRIGGER hears AFTER UPDATE ON i BEGIN INSERT INTO log VALUES (new.k); END;",
    );
    let mut a = file.sink().await;
    let plan = a.plan(wanted("i", "k:int8! a:text")).await;
    file.run("INSERT INTO i VALUES (-3, 'x'), (2, 'b'), (9, 'phantom'), (10, 'same'), (11, 'stays')");
    let counts = a.replace(&plan, &range("2", "10"), &["3|c", "10|same"]).await.unwrap();
    assert_eq!((counts.deleted, counts.inserted), (1, 1));
    assert_eq!(file.rows("SELECT k FROM i"), "-3\n2\n3\n10\n11");
    assert_eq!(file.rows("SELECT count(*) FROM log"), "0", "what is right already is not written again");
    a.replace(&plan, &range("", ""), &["10|other"]).await.unwrap();
    assert_eq!(file.rows("SELECT * FROM i"), "10|other");
    // Text by its bytes: Z stands before a, and after that ä.
    let plan = a.plan(wanted("x", "k:text! a:text")).await;
    file.run("INSERT INTO x VALUES ('A', 1), ('Z', 1), ('a', 1), ('a ', 1), ('ä', 1)");
    a.replace(&plan, &range("Z", "b"), &["a|2"]).await.unwrap();
    assert_eq!(file.rows("SELECT * FROM x"), "A|1\nZ|1\na|2\nä|1");
    // Numbers and times are texts here, sorted as what they are.
    let plan = a.plan(wanted("n", "k:numeric! i:int4! a:text")).await;
    file.run("INSERT INTO n VALUES ('9.50', 1, 'x'), ('10', 2, 'x'), ('100', 1, 'x'), ('NaN', 1, 'x'), ('-1', 1, 'x')");
    let counts = a.replace(&plan, &range("9.50|1", "99|5"), &["10|1|new"]).await.unwrap();
    assert_eq!((counts.deleted, counts.inserted), (1, 1));
    assert_eq!(file.rows("SELECT k, i FROM n ORDER BY CAST(k AS REAL), k"), "-1|1\nNaN|1\n9.50|1\n10|1\n100|1");
    let plan = a.plan(wanted("ts", "k:timestamptz! a:text")).await;
    let times = "('0044-03-15 00:00:00+00 BC', 1), ('10000-01-01 00:00:00+00', 1), ('2024-01-01 00:00:00+00', 1), ('infinity', 1)";
    file.run(&format!("INSERT INTO ts VALUES {times}"));
    a.replace(&plan, &range("", "9999-01-01 00:00:00+00"), &[]).await.unwrap();
    assert_eq!(file.rows("SELECT k FROM ts"), "10000-01-01 00:00:00+00\ninfinity");
}

#[tokio::test]
async fn tables_that_would_not_keep_the_rows_are_refused() {
    let refused = async |ddl: &str, columns: &str, said: &str| {
        let found = File::new(ddl).findings(wanted("t", columns)).await;
        let [halt] = &found[..] else { panic!("{ddl}: {found:?}") };
        assert!(halt.code == Code::SinkTable && halt.message.contains(said), "{ddl}: {halt}");
        halt.hint.clone()
    };
    let create = refused("", "id:int8! n:numeric b:bytea f:float8+", "does not exist").await;
    assert_eq!(
        create,
        "CREATE TABLE \"t\" (\"id\" INTEGER NOT NULL, \"n\" TEXT, \"b\" BLOB, \"f\" REAL NOT NULL, PRIMARY KEY (\"id\"))"
    );
    assert!(File::new(&create).findings(wanted("t", "id:int8! n:numeric b:bytea f:float8+")).await.is_empty());
    refused(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, n DECIMAL(10,2))",
        "id:int8! n:numeric",
        "n of t is declared DECIMAL(10,2)",
    )
    .await;
    refused("CREATE TABLE t (id INTEGER PRIMARY KEY, j JSON)", "id:int8! j:jsonb", "j of t is declared JSON").await;
    refused("CREATE TABLE t (id INTEGER PRIMARY KEY, a BLOB) STRICT", "id:int8! a:text", "a of t is declared BLOB")
        .await;
    refused("CREATE TABLE t (id INTEGER PRIMARY KEY)", "id:int8! a:text", "no column a").await;
    refused("CREATE TABLE t (id INTEGER PRIMARY KEY, g AS (id))", "id:int8! g:int8", "generated").await;
    refused("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT NOT NULL)", "id:int8! a:text", "not null at the sink")
        .await;
    refused("CREATE TABLE t (id INTEGER PRIMARY KEY, x NOT NULL)", "id:int8!", "is not written").await;
    refused("CREATE VIEW t AS SELECT 1 AS id", "id:int8!+", "a view").await;
    refused("CREATE TABLE t (id INTEGER NOT NULL)", "id:int8!", "no unique index").await;
    refused(
        "CREATE TABLE t (id INTEGER NOT NULL); CREATE UNIQUE INDEX i ON t (id) WHERE id > 0",
        "id:int8!",
        "no unique index",
    )
    .await;
    refused("CREATE TABLE t (id TEXT PRIMARY KEY)", "id:text!", "may be NULL").await;
    refused("CREATE TABLE t (id TEXT NOT NULL COLLATE NOCASE PRIMARY KEY)", "id:text!", "collation NOCASE").await;
    refused("CREATE TABLE t (a TEXT NOT NULL, b INT NOT NULL, PRIMARY KEY (a, b)); CREATE UNIQUE INDEX i ON t (a COLLATE RTRIM)", "a:text! b:int4!", "RTRIM").await;
    refused("CREATE TABLE t (id REAL NOT NULL PRIMARY KEY)", "id:float8!", "ordered").await;
    refused("CREATE TABLE t (a INT, rowid INT)", "a:int4 rowid:int4", "no rowid").await;
    refused("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)", "id:int8! a:text A:text", "knows no case").await;
    // A column of another collation is found by our own.
    let file =
        File::new("CREATE TABLE t (k TEXT COLLATE NOCASE NOT NULL); CREATE UNIQUE INDEX i ON t (k COLLATE BINARY)");
    let mut a = file.sink().await;
    let plan = a.plan(wanted("t", "k:text!")).await;
    a.ops(&plan, &["insert a", "insert A"]).await.unwrap();
    a.ops(&plan, &["delete A"]).await.unwrap();
    assert_eq!(file.rows("SELECT k FROM t"), "a");
    // Values that SQLite would not keep; the halt does not say them.
    let file =
        File::new("CREATE TABLE t (id INTEGER PRIMARY KEY, f REAL, c TEXT CHECK (c <> 'secret'), i INT NOT NULL)");
    let mut a = file.sink().await;
    let plan = a.plan(wanted("t", "id:int8! f:float8 c:text i:int4+")).await;
    for (row, code, said) in [
        ("1|NaN|a|1", Code::ValueRefused, "column f of t is to hold NaN"),
        ("1|-0|a|1", Code::ValueRefused, "negative zero"),
        ("1|1|secret|1", Code::ConstraintRefused, "a check (c <> 'secret')"),
        ("1|1|a|~", Code::ValueRefused, "column t.i"),
    ] {
        let halt = halt_of(a.ops(&plan, &[&format!("insert {row}")]).await);
        assert!(halt.code == code && halt.message.contains(said), "{row}: {halt}");
    }
    // Altered between the plan and the transaction: looked at again, nothing written.
    file.run("ALTER TABLE t ADD more TEXT");
    let again = a.ops(&plan, &["insert 1|1|a|1"]).await.unwrap_err();
    assert!(
        matches!(&again, Failure::Error(error) if error.code().is_none() && error.chain().contains("altered")),
        "{again:?}"
    );
    file.run("CREATE TABLE other (id)");
    let plan = a.plan(wanted("t", "id:int8! f:float8 c:text i:int4+")).await;
    file.run("CREATE TABLE another (id)");
    a.ops(&plan, &["insert 1|1|a|1"]).await.unwrap();
}

#[tokio::test]
async fn the_sink_has_one_owner() {
    let file = File::new("CREATE TABLE t (id INTEGER PRIMARY KEY)");
    let mut a = file.sink().await;
    let plan = a.plan(wanted("t", "id:int8!")).await;
    a.ops(&plan, &["insert 1"]).await.unwrap();
    // Another worker sees that the first is alive, and that it speaks.
    let mut b = file.connect(Uuid::new_v4()).await;
    let seen = async |b: &mut lockstep::sink::sqlite::SqliteSink| match b.take_over(&first()).await.unwrap() {
        TakeOver::Standby { owner, activity } => (owner, activity),
        TakeOver::Mine(_) => panic!("the owner is alive"),
    };
    let before = seen(&mut b).await;
    sleep(Duration::from_millis(250)).await;
    a.sink.keep_lease().await.unwrap();
    assert_ne!(seen(&mut b).await, before);
    // Inside a transaction too, while a long statement of somebody else holds the file.
    let to = a.begin().await;
    let (owner, during) = seen(&mut b).await;
    sleep(Duration::from_millis(250)).await;
    a.sink.keep_lease().await.unwrap();
    assert_ne!(seen(&mut b).await.1, during);
    // It falls silent: from then on it is gone, but what it holds it holds.
    assert!(b.evict(&owner).await.unwrap());
    let held = b.take_over(&first()).await.unwrap_err();
    assert!(held.chain().contains("locked by another program"), "{}", held.chain());
    a.end(to, Ok(())).await.unwrap();
    let row = mine(b.take_over(&first()).await.unwrap());
    assert_eq!((row.owner.worker_epoch, &row.standing), (a.row.owner.worker_epoch + 1, &a.row.standing));
    // The first one's next step is refused, and nothing of it stays.
    let to = after(&a.row);
    assert!(matches!(a.sink.begin(&a.row, &to).await, Err(Failure::OwnershipLost)));
    // The end of an owner needs no lease, and a worker takes over from itself.
    drop(b);
    assert!(matches!(a.sink.take_over(&first()).await.unwrap(), TakeOver::Mine(_)));
    let left = || {
        std::fs::read_dir(file.folder.path())
            .unwrap()
            .filter(|f| f.as_ref().unwrap().path().to_string_lossy().contains("-lockstep-"))
            .count()
    };
    assert_eq!(left(), 1);
    drop(a);
    assert_eq!(left(), 0, "nothing is left beside the file");
    // A file that was replaced is not written.
    let mut a = file.sink().await;
    std::fs::rename(&file.path, file.folder.path().join("old.db")).unwrap();
    let to = after(&a.row);
    let moved = a.sink.begin(&a.row, &to).await.unwrap_err();
    assert!(matches!(&moved, Failure::Error(error) if error.chain().contains("moved or replaced")), "{moved:?}");
    let gone = lockstep::sink::sqlite::SqliteSink::connect(&file.config(), "shop", Uuid::new_v4()).await.err().unwrap();
    assert_eq!(gone.code(), Some(Code::DatabaseMissing));
}

#[tokio::test]
async fn the_net_effect_is_the_changes_in_order() {
    let begun = Instant::now();
    let (applied, refused) = differential::run(350).await;
    eprintln!("{applied} transactions applied and {refused} refused in {:?}", begun.elapsed());
    assert!(applied > 1_000 && refused > 200, "{applied} {refused}");
}

// ---- Behind a source and Kafka ----

/// The sink `edge`, a file beside the configuration.
struct Edge {
    scene: Scene,
    file: File,
}

impl Edge {
    async fn new(hint: &str, schema: &str, ddl: &str, tables: &[&str]) -> Edge {
        let file = File::new(ddl);
        let scene = Scene::bare(LOCKSTEP, hint, schema, 0).await;
        let scene = scene.configure(|p: Pipeline| {
            let p = p.set("sinks.edge", &format!("url = \"sqlite:{}\"", file.path.display()));
            let p = p.set("sinks.edge", "lease_timeout = \"2s\"").set("source.snapshot", "chunk_rows = 700");
            tables.iter().fold(p, |p, table| p.connector(table, "[sinks.edge]\n"))
        });
        Edge { scene, file }
    }

    /// Waits until the file holds what is at the source now.
    async fn streaming(&self, process: &mut Process) {
        let lsn: lockstep::lsn::Lsn = text(&self.scene.source, "SELECT pg_current_wal_lsn()").await.parse().unwrap();
        self.scene.sql("SELECT pg_logical_emit_message(true, 'test', '')").await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let row = self.file.admin.query_row("SELECT closed_lsn, phase FROM lockstep_progress", [], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
            });
            if row.as_ref().is_ok_and(|(closed, phase)| {
                closed.parse().is_ok_and(|closed: lockstep::lsn::Lsn| closed >= lsn) && phase == "streaming"
            }) {
                return;
            }
            process.ensure_running().unwrap();
            let status = process.status().await.map(|status| status.to_string()).unwrap_or_default();
            assert!(!status.contains("\"halt\":{"), "{status}");
            assert!(Instant::now() < deadline, "{row:?} {status}");
            sleep(POLL).await;
        }
    }

    /// Every row, as the source prints it and as the file holds it.
    async fn equal(&self, table: &str, source: &str, sink: &str) {
        let there = text(
            &self.scene.source,
            &format!(
                "SELECT coalesce(string_agg(r, chr(10)), '') FROM (SELECT {source} AS r FROM {table} ORDER BY 1) s"
            ),
        )
        .await;
        let mut here: Vec<String> =
            self.file.rows(&format!("SELECT {sink} FROM {table}")).lines().map(str::to_owned).collect();
        let mut there: Vec<String> = there.lines().map(str::to_owned).collect();
        here.sort();
        there.sort();
        assert_eq!(here.len(), there.len(), "{table}");
        let other = here.iter().zip(&there).find(|(here, there)| here != there);
        assert_eq!(other, None, "{table}: here and there");
    }
}

const TYPES: &str = "CREATE TYPE public.mood AS ENUM ('sad', 'glad'); CREATE DOMAIN public.price AS numeric(10,2);
CREATE TABLE public.goods (id bigint PRIMARY KEY, n numeric, p price, f8 float8, f4 float4, b bool, by bytea, d date, ts timestamptz,
    j jsonb, u uuid, a text[], m mood, i interval, u1 text UNIQUE DEFERRABLE INITIALLY DEFERRED, big text);
ALTER TABLE public.goods ALTER big SET STORAGE EXTERNAL;
CREATE TABLE public.tags (name text PRIMARY KEY, good bigint REFERENCES goods DEFERRABLE INITIALLY DEFERRED);";

const GOODS: &str = "CREATE TABLE goods (id INTEGER PRIMARY KEY, n TEXT, p TEXT, f8 REAL, f4 TEXT, b BOOLEAN, by BLOB, d DATE, ts TIMESTAMP,
    j TEXT, u UUID, a TEXT, m TEXT, i TEXT, u1 TEXT UNIQUE, big TEXT, own TEXT DEFAULT 'own');
CREATE TABLE tags (name TEXT NOT NULL PRIMARY KEY, good INTEGER REFERENCES goods) WITHOUT ROWID;
INSERT INTO goods (id, big) VALUES (-7, 'phantom'), (5, 'stale'); INSERT INTO tags VALUES ('phantom', -7);";

/// The whole way: existing rows, every kind of value, changes of every kind.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_follows_the_source() {
    let edge = Edge::new("sqlite_types", TYPES, GOODS, &["public.goods", "public.tags"]).await;
    let scene = &edge.scene;
    scene
        .sql(
            "INSERT INTO goods SELECT i, i / 7.0, i * 1.10, i / 3.0::float8, i / 3.0::float4, i % 2 = 0, decode(md5(i::text), 'hex'),
                 '2020-01-01'::date + i, '2020-01-01 00:00:00.5+00'::timestamptz + i * interval '1 hour', jsonb_build_object('a', 1.10, 'b', i),
                 md5(i::text)::uuid, ARRAY['x', NULL, i::text], 'sad', i * interval '1 minute', 'u' || i, repeat('x', 3000) || i
             FROM generate_series(1, 2000) i;
             INSERT INTO goods (id, n, f8, d, ts, a, u1) VALUES (9007199254740993, 'NaN', 'Infinity', 'infinity', '0044-03-15 BC', '[2:3]={1,2}', '1.10'),
                 (-9223372036854775808, '1.10', '-Infinity', '5874897-12-31', '-infinity', '{}', '1e5');
             INSERT INTO tags SELECT 'tag' || i, i FROM generate_series(1, 900) i;
             INSERT INTO tags VALUES ('Tag1', NULL), ('tag1 ', NULL)",
        )
        .await;
    let mut process = scene.spawn(&[]);
    edge.streaming(&mut process).await;
    let source = "concat_ws('|', id, coalesce(n::text, '~'), coalesce(p::text, '~'), coalesce(f4::text, '~'), coalesce(b::int::text, '~'), coalesce(by::text, '~'), \
        coalesce(d::text, '~'), coalesce((ts AT TIME ZONE 'UTC')::text, '~'), coalesce(j::text, '~'), coalesce(u::text, '~'), coalesce(a::text, '~'), coalesce(m::text, '~'), \
        coalesce(i::text, '~'), coalesce(u1, '~'), coalesce(md5(big), '~'))";
    let sink = "id, n, p, f4, b, by, d, replace(ts, '+00', ''), j, u, a, m, i, u1";
    let columns = source.replace(", coalesce(md5(big), '~')", "");
    let equal = async |edge: &Edge| {
        edge.equal("goods", &columns, sink).await;
        edge.equal("goods", "concat_ws('|', id, coalesce(big, '~'))", "id, big").await;
        edge.equal("tags", "concat_ws('|', name, coalesce(good::text, '~'))", "name, good").await;
        // Numbers as numbers: their texts are no business of SQLite's.
        let sum = |rows: String| rows.parse::<f64>().unwrap();
        let there =
            text(&edge.scene.source, "SELECT sum(f8) FROM goods WHERE f8 < 'Infinity' AND f8 > '-Infinity'").await;
        let here = edge.file.rows("SELECT sum(f8) FROM goods WHERE abs(f8) < 9e999");
        assert!((sum(here) - sum(there)).abs() < 1e-6);
    };
    equal(&edge).await;
    assert_eq!(edge.file.rows("SELECT f8 FROM goods WHERE id = 9007199254740993"), "inf");

    // Unique values swapped and handed over, keys that move with a big column that is not sent, references both ways.
    edge.file.run("UPDATE goods SET own = id");
    let own = "SELECT count(*) FROM goods WHERE own = CAST(id AS TEXT)";
    scene
        .sql(
            "BEGIN; UPDATE goods SET u1 = CASE id WHEN 1 THEN 'u2' ELSE 'u1' END WHERE id IN (1, 2);
             UPDATE goods SET n = 1.10, m = 'glad' WHERE id BETWEEN 3 AND 50; COMMIT;
             BEGIN; UPDATE tags SET good = 100001 WHERE good = 1; UPDATE goods SET id = 100001 WHERE id = 1; COMMIT;
             BEGIN; DELETE FROM goods WHERE id BETWEEN 1000 AND 1100; INSERT INTO goods (id, u1) VALUES (1000, 'u1001'), (3000, 'u1002'); COMMIT;
             DELETE FROM tags WHERE good > 800; INSERT INTO tags VALUES ('new', 3000)",
        )
        .await;
    edge.streaming(&mut process).await;
    equal(&edge).await;
    assert_eq!(edge.file.rows(own), "1901", "rows that live on were updated, 1000 among them; one moved");
    scene.sql("TRUNCATE tags; INSERT INTO tags VALUES ('only', 5)").await;
    edge.streaming(&mut process).await;
    equal(&edge).await;

    // A value that SQLite would not keep halts it by name, and nothing of its transaction is there.
    scene.sql("BEGIN; UPDATE goods SET n = 42 WHERE id = 5; UPDATE goods SET f8 = 'NaN' WHERE id = 6; COMMIT").await;
    let status =
        process.wait_until("the halt", PATIENCE, |s| s.halt_code(Some("edge")) == Some("VALUE_REFUSED")).await.unwrap();
    let halt = &status.0["sinks"]["edge"]["halt"];
    let message = halt["message"].as_str().unwrap();
    let said = "column f8 of goods is to hold NaN, which SQLite stores as NULL; it is one row, known by its key (id)";
    assert!(message.starts_with(said), "{status}");
    let hint = halt["hint"].as_str().unwrap();
    assert!(hint.ends_with("public.goods --where \"id = 6\" --sink edge"), "{status}");
    assert_eq!(edge.file.rows("SELECT count(*) FROM goods WHERE n = '42'"), "0");
    process.terminate(PATIENCE).await.unwrap();
}

const AUDIT: &str = "CREATE TABLE events (id INTEGER PRIMARY KEY, tx INTEGER NOT NULL, note TEXT);
CREATE TABLE journal (tx INTEGER PRIMARY KEY, at TEXT NOT NULL); CREATE TABLE audit (n INTEGER PRIMARY KEY AUTOINCREMENT, id INTEGER, op TEXT);
CREATE TRIGGER i AFTER INSERT ON events BEGIN INSERT INTO audit (id, op) VALUES (new.id, 'INSERT'); END;
CREATE TRIGGER u AFTER UPDATE ON events BEGIN INSERT INTO audit (id, op) VALUES (new.id, 'UPDATE'); END;
CREATE TRIGGER d AFTER DELETE ON events BEGIN INSERT INTO audit (id, op) VALUES (old.id, 'DELETE'); END;";

/// Killed again and again, frozen once: a standby takes over, and every row takes effect once.
#[tokio::test(flavor = "multi_thread")]
async fn effects_are_counted_once_whoever_owns_the_file() {
    let edge = Edge::new("sqlite_once", EVENTS_SCHEMA, AUDIT, &["public.events", "public.journal"]).await;
    let edge = Edge { scene: edge.scene.configure(Pipeline::several), ..edge };
    let scene = &edge.scene;
    let mut source = scene.spawn(&["source"]);
    let mut owner = scene.spawn(&["sink:edge"]);
    owner.wait_until("the owner works", PATIENCE, |s| s.sink_state("edge") == "streaming").await.unwrap();
    let load = Events::on(scene, Duration::from_millis(1));
    let mut epoch = 0;
    for round in 0..4 {
        let mut standby = scene.spawn(&["sink:edge"]);
        standby.wait_until("a standby", PATIENCE, |s| s.sink_state("edge") == "standby").await.unwrap();
        sleep(Duration::from_millis(300)).await;
        if round == 2 {
            // Frozen within a transaction it holds the file's lock, so it is let on until it is outside of one.
            freeze_outside(&owner, &edge.file).await;
        } else {
            owner.kill9().unwrap();
        }
        standby.wait_until("the standby works", PATIENCE, |s| s.sink_state("edge") == "streaming").await.unwrap();
        edge.streaming(&mut standby).await;
        let now: i64 = edge.file.rows("SELECT worker_epoch FROM lockstep_progress").parse().unwrap();
        assert!(now > epoch);
        epoch = now;
        if round == 2 {
            owner.signal(Signal::CONT).unwrap();
            owner
                .wait_until("it has become the standby", PATIENCE, |s| s.sink_state("edge") == "standby")
                .await
                .unwrap();
            assert_eq!(
                edge.file.rows("SELECT worker_epoch FROM lockstep_progress"),
                epoch.to_string(),
                "nobody took it back"
            );
            owner.terminate(PATIENCE).await.unwrap();
        }
        owner = standby;
    }
    load.stop().await;
    edge.streaming(&mut owner).await;
    edge.equal("events", "concat_ws('|', id, tx, note)", "id, tx, note").await;
    edge.equal("journal", "tx::text", "tx").await;
    assert_eq!(
        edge.file.rows("SELECT id, count(*) FROM audit GROUP BY id HAVING count(*) > 1 LIMIT 5"),
        "",
        "effects that came twice"
    );
    assert_eq!(
        edge.file.rows("SELECT count(*) FROM events WHERE id NOT IN (SELECT id FROM audit)"),
        "0",
        "rows without an effect"
    );
    assert_eq!(edge.file.rows("SELECT count(*) FROM audit WHERE op <> 'INSERT'"), "0");
    source.ensure_running().unwrap();
    owner.terminate(PATIENCE).await.unwrap();
    let left = std::fs::read_dir(edge.file.folder.path())
        .unwrap()
        .filter(|f| f.as_ref().unwrap().path().to_string_lossy().contains("-lockstep-"))
        .count();
    assert_eq!(left, 0, "nothing is left beside the file");
}

async fn freeze_outside(process: &Process, file: &File) {
    loop {
        process.signal(Signal::STOP).unwrap();
        let other = Connection::open(&file.path).unwrap();
        if other.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok() {
            return;
        }
        process.signal(Signal::CONT).unwrap();
        sleep(Duration::from_millis(7)).await;
    }
}

/// `check` and a start say the same, and nothing is touched.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_by_check_and_start() {
    let schema = "CREATE TABLE public.t (k text PRIMARY KEY, n numeric)";
    let edge = Edge::new(
        "sqlite_check",
        schema,
        "CREATE TABLE t (k TEXT NOT NULL COLLATE NOCASE PRIMARY KEY, n NUMERIC)",
        &["public.t"],
    )
    .await;
    let scene = edge.scene.configure(|p| p.connector("public.t", "[sinks.edge]\nevolve = 'add'\ndelete = 'soft'\n"));
    scene.sql("INSERT INTO t VALUES ('a', 1.10), ('A', 2)").await;
    let mut process = scene.spawn(&[]);
    let halt = process.wait_until("the halt", PATIENCE, |s| s.halt_code(Some("edge")) == Some("CONFIG")).await.unwrap();
    assert!(halt.to_string().contains("sink edge is SQLite, which can't let table"), "{halt}");
    let said = String::from_utf8(scene.pipeline.command(&["check"]).unwrap().stdout).unwrap();
    assert!(said.contains("sink edge is SQLite, which can't keep deleted rows of table"), "{said}");
    process.terminate(PATIENCE).await.unwrap();
    let scene = scene.configure(|p| p.connector("public.t", "[sinks.edge]\n"));
    let mut process = scene.spawn(&[]);
    process.wait_until("the halt", PATIENCE, |s| s.halt_code(Some("edge")) == Some("SINK_TABLE")).await.unwrap();
    let said = String::from_utf8(scene.pipeline.command(&["check"]).unwrap().stdout).unwrap();
    assert!(said.contains("collation NOCASE") && said.contains("column n of t is declared NUMERIC"), "{said}");
    assert_eq!(edge.file.rows("SELECT count(*) FROM t"), "0");
    // The table is made anew, as the hint says, and the start that waits goes on by itself.
    edge.file.run("DROP TABLE t; CREATE TABLE t (k TEXT NOT NULL PRIMARY KEY, n TEXT)");
    process.terminate(PATIENCE).await.unwrap();
    let edge = Edge { scene, file: edge.file };
    let mut process = edge.scene.spawn(&[]);
    edge.streaming(&mut process).await;
    assert_eq!(edge.file.rows("SELECT * FROM t ORDER BY k"), "A|2\na|1.10");
}
