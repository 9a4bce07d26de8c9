//! MariaDB as a sink, on a real server: `eval "$(scripts/services env)"` names it. Each test has a database of its own.

#[path = "support/mariadb.rs"]
mod maria;
mod support;
#[path = "support/sink.rs"]
mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lockstep::apply::net::Folded;
use lockstep::change::Op;
use lockstep::error::{Code, Error};
use lockstep::key::KeyRange;
use lockstep::lsn::Lsn;
use lockstep::sink::progress::TakeOver;
use lockstep::sink::{Counts, Failure, Sink};
use maria::{Maria, Owned, Target, net};
use mysql_async::prelude::Queryable;
use proptest::test_runner::{Config, TestRunner};
use rustix::process::Signal;
use support::scene::{EVENTS_SCHEMA, Events, PATIENCE};
use support::{Database, Pipeline, Process, Services};
use uuid::Uuid;
use world::{after, first, halt, mine};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

const ITEMS: &str = "CREATE TABLE items (id INT PRIMARY KEY, a VARCHAR(20) CHARACTER SET utf8mb4, big LONGTEXT CHARACTER SET utf8mb4, \
    n DECIMAL(10,2)) ENGINE = InnoDB";
const ITEM_COLUMNS: &str = "id:int4! a:text big:text n:numeric";

// ---- Progress and who owns the sink ----

#[tokio::test]
async fn progress_moves_with_the_data_and_one_worker_moves_it() {
    let maria = Maria::new().await;
    let mut a = maria.sink(ITEMS).await;
    let items = a.target(maria.wanted("items", ITEM_COLUMNS)).await;
    let stale = a.row.clone();
    a.apply(&items, &["insert 1|x|y|1.50"]).await.unwrap();
    assert_eq!(a.sink.progress(false).await.unwrap().unwrap().standing, a.row.standing);
    assert_eq!(
        maria.rows("SELECT pipeline, sink, `group`, source_system_id, commit_lsn, ordinal, closed_lsn, commit_time, phase, format FROM lockstep_progress").await,
        "shop|orders|default|18446744073709551615|0/10|1099511627777|FFFFFFFF/1|2026-11-18 11:06:40.123456|streaming|1"
    );
    let lost = a.sink.begin(&stale, &after(&stale)).await;
    assert!(matches!(lost, Err(Failure::OwnershipLost)), "{lost:?}");

    // Another worker waits as long as the owner lives, and knows a silent one from one that speaks.
    let mut b = maria.open(Uuid::new_v4()).await;
    let TakeOver::Standby { owner, activity } = b.take_over(&first()).await.unwrap() else { panic!("a lives") };
    assert_eq!((&owner, activity.waits), (&a.row.owner, true));
    tokio::time::sleep(Duration::from_millis(300)).await;
    a.sink.keep_lease().await.unwrap();
    let TakeOver::Standby { activity: later, .. } = b.take_over(&first()).await.unwrap() else { panic!("a lives") };
    assert_ne!(later, activity, "it has spoken");

    // The owner is ended in the middle of a transaction: nothing of it stays, and what it still tries fails.
    a.sink.begin(&a.row, &after(&a.row)).await.unwrap();
    a.sink.apply(&[(&items.plan, net(&items, &["insert 2|x|y|1"]))]).await.unwrap();
    assert!(b.evict(&owner).await.unwrap());
    let taken = wait_for_mine(&mut b).await;
    assert_eq!((taken.owner.worker_epoch, &taken.standing), (a.row.owner.worker_epoch + 1, &a.row.standing));
    assert!(a.sink.commit().await.is_err());
    assert_eq!(maria.rows("SELECT id FROM items").await, "1");
    maria.drop().await;
}

async fn wait_for_mine(sink: &mut lockstep::sink::mariadb::MariaDbSink) -> lockstep::sink::progress::ProgressRow {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match sink.take_over(&first()).await.unwrap() {
            TakeOver::Mine(row) => return *row,
            TakeOver::Standby { .. } => assert!(Instant::now() < deadline, "the evicted one still lives"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The connection is cut while the commit is on its way: whichever way it went, the next connection of the same worker knows.
#[tokio::test]
async fn a_worker_takes_over_from_itself_whatever_became_of_its_commit() {
    let maria = Maria::new().await;
    let worker = Uuid::new_v4();
    maria.run(ITEMS).await;
    for round in 0..6 {
        let mut sink = maria.open(worker).await;
        let row = mine(sink.take_over(&first()).await.unwrap());
        let mut a = Owned { sink, row };
        let items = a.target(maria.wanted("items", ITEM_COLUMNS)).await;
        let to = after(&a.row);
        a.sink.begin(&a.row, &to).await.unwrap();
        let insert = format!("insert {round}|x|y|1");
        a.sink.apply(&[(&items.plan, net(&items, &[insert.as_str()]))]).await.unwrap();
        let mut admin = maria.connect("root", "").await;
        let kill = format!("KILL CONNECTION {}", a.row.owner.backend_pid);
        let (committed, _) = match round % 3 {
            // Left open: the next connection ends this one.
            0 => (Err(Failure::OwnershipLost), Ok(())),
            1 => {
                admin.query_drop(&kill).await.unwrap();
                (a.sink.commit().await, Ok(()))
            }
            _ => tokio::join!(a.sink.commit(), admin.query_drop(&kill)),
        };
        let mut again = maria.open(worker).await;
        let row = mine(again.take_over(&first()).await.unwrap());
        let there = maria.rows(&format!("SELECT COUNT(*) FROM items WHERE id = {round}")).await;
        assert_eq!(row.standing == to, there == "1", "row and progress say the same, round {round}");
        assert!(committed.is_err() || there == "1", "what was said to be committed is there");
        if let Err(failure) = committed {
            let unknown = matches!(failure, Failure::OutcomeUnknown(Error::Retry(_)) | Failure::OwnershipLost);
            assert!(unknown, "{failure:?}");
        }
    }
    maria.drop().await;
}

// ---- Rows ----

#[tokio::test]
async fn rows_are_found_by_their_key_and_absent_columns_are_kept() {
    let maria = Maria::new().await;
    let mut a = maria.sink(ITEMS).await;
    let items = a.target(maria.wanted("items", ITEM_COLUMNS)).await;
    let counts =
        a.apply(&items, &["insert 1|one|b1|1.5", "insert 2|it's \\|~|~", "insert 3|😀|b3|-0.10"]).await.unwrap();
    assert_eq!(counts, Counts { inserted: 3, ..Counts::default() });
    let all = "SELECT * FROM items ORDER BY id";
    assert_eq!(maria.rows(all).await, "1|one|b1|1.50\n2|it's \\|~|~\n3|😀|b3|-0.10");
    a.apply(&items, &["update 1|uno|-|2", "rekey 3|-|-|- -> 30|x|-|3", "delete 2|-|-|-"]).await.unwrap();
    assert_eq!(maria.rows(all).await, "1|uno|b1|2.00\n30|x|b3|3.00");
    // Keys are swapped by way of a third, as at the source.
    a.apply(&items, &["rekey 1|-|-|- -> -1|uno|-|2"]).await.unwrap();
    a.apply(&items, &["rekey 30|-|-|- -> 1|x|-|3"]).await.unwrap();
    a.apply(&items, &["rekey -1|-|-|- -> 30|uno|-|2"]).await.unwrap();
    assert_eq!(maria.rows(all).await, "1|x|b3|3.00\n30|uno|b1|2.00");
    // Many at once, with and without what the bulk path needs, and a truncate that others' locks would have stopped.
    let inserts: Vec<String> = (100..200).map(|i| format!("insert {i}|a{i}|b|{i}")).collect();
    a.apply(&items, &inserts.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
    let updates: Vec<String> = (100..200).map(|i| format!("update {i}|c{i}|d|{i}")).collect();
    let counts = a.apply(&items, &updates.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(counts, Counts { updated: 100, ..Counts::default() });
    assert_eq!(maria.rows("SELECT COUNT(*) FROM items WHERE a = CONCAT('c', id) AND big = 'd'").await, "100");
    a.apply(&items, &["truncate", "insert 7|t|~|~"]).await.unwrap();
    assert_eq!(maria.rows(all).await, "7|t|~|~");
    maria.drop().await;
}

#[tokio::test]
async fn a_row_that_is_not_where_it_should_be_is_a_divergence() {
    let maria = Maria::new().await;
    let mut a = maria.sink(ITEMS).await;
    let items = a.target(maria.wanted("items", ITEM_COLUMNS)).await;
    a.apply(&items, &["insert 1|x|y|1"]).await.unwrap();
    let many: Vec<String> = (1..20).map(|i| format!("update {i}|x|y|2")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for ops in [&["update 5|x|y|1"][..], &["delete 5|-|-|-"], &["rekey 5|-|-|- -> 6|x|y|1"], &many] {
        let refused = halt(a.apply(&items, ops).await.unwrap_err());
        assert_eq!(refused.code, Code::SinkDiverged, "{ops:?}: {refused}");
        assert_eq!(refused.hint, "lockstep resync public.items");
        assert_eq!(maria.rows("SELECT * FROM items").await, "1|x|y|1.00", "nothing stays of it");
    }
    // A new row that is there already is overwritten, and counted.
    let counts = a.apply(&items, &["insert 1|new|z|2", "insert 2|x|y|3"]).await.unwrap();
    assert_eq!(counts, Counts { inserted: 2, overwritten: 1, ..Counts::default() });
    assert_eq!(maria.rows("SELECT * FROM items ORDER BY id").await, "1|new|z|2.00\n2|x|y|3.00");
    maria.drop().await;
}

/// `INSERT … ON DUPLICATE KEY UPDATE` would update row 1 here, whose key is another.
#[tokio::test]
async fn a_value_that_another_row_has_never_leads_to_that_row() {
    let maria = Maria::new().await;
    let ddl = "CREATE TABLE codes (id INT PRIMARY KEY, code VARCHAR(10) CHARACTER SET utf8mb4 UNIQUE, must INT NOT NULL UNIQUE) ENGINE = InnoDB";
    let mut a = maria.sink(ddl).await;
    let codes = a.target(maria.wanted("codes", "id:int4! code:text must:int4+")).await;
    a.apply(&codes, &["insert 1|x|1", "insert 2|y|2"]).await.unwrap();
    let all = "SELECT * FROM codes ORDER BY id";
    for ops in [&["insert 3|x|3"][..], &["update 2|x|2"]] {
        let refused = a.apply(&codes, ops).await.unwrap_err();
        let Failure::Unique(refused) = refused else { panic!("{refused:?}") };
        assert!(refused.code == Code::ConstraintRefused && refused.message.contains("code"), "{refused}");
        assert!(!refused.to_string().contains("'x'"), "no value: {refused}");
        assert_eq!(maria.rows(all).await, "1|x|1\n2|y|2");
    }
    // Handed over between rows: refused as it is, done by way of NULL.
    let swap = net(&codes, &["update 1|y|1", "update 2|x|2"]);
    assert!(matches!(a.transaction(&[(&codes, swap)], false).await, Err(Failure::Unique(_))));
    let swap = net(&codes, &["update 1|y|1", "update 2|x|2"]);
    a.transaction(&[(&codes, swap)], true).await.unwrap();
    assert_eq!(maria.rows(all).await, "1|y|1\n2|x|2");
    // No value can stand in for one that is not null.
    let swap = net(&codes, &["update 1|y|2", "update 2|x|1"]);
    let refused = a.transaction(&[(&codes, swap)], true).await.unwrap_err();
    let Failure::Unique(refused) = refused else { panic!("{refused:?}") };
    assert!(refused.code == Code::UniqueHandover && refused.message.contains("must"), "{refused}");
    assert_eq!(maria.rows(all).await, "1|y|1\n2|x|2");
    maria.drop().await;
}

#[tokio::test]
async fn foreign_keys_are_borne_and_rows_that_live_on_survive() {
    let maria = Maria::new().await;
    let ddl = "CREATE TABLE shops (id INT PRIMARY KEY, v INT) ENGINE = InnoDB";
    let mut a = maria.sink(ddl).await;
    maria.run("CREATE TABLE goods (id INT PRIMARY KEY, shop INT, FOREIGN KEY (shop) REFERENCES shops (id) ON DELETE CASCADE) ENGINE = InnoDB").await;
    maria.run("CREATE TABLE own (shop INT PRIMARY KEY, FOREIGN KEY (shop) REFERENCES shops (id) ON DELETE CASCADE) ENGINE = InnoDB").await;
    let goods = a.target(maria.wanted("goods", "id:int4! shop:int4")).await;
    let shops = a.target(maria.wanted("shops", "id:int4! v:int4")).await;
    let to = after(&a.row);
    a.sink.begin(&a.row, &to).await.unwrap();
    let batch = [
        (&goods.plan, net(&goods, &["insert 1|10", "insert 2|20"])),
        (&shops.plan, net(&shops, &["insert 10|1", "insert 20|2"])),
    ];
    a.sink.apply(&batch).await.unwrap();
    a.sink.commit().await.unwrap();
    a.row.standing = to;
    maria.run("INSERT INTO own VALUES (20)").await;
    // A child leaves its parent before that goes; a row that is deleted and made again lives on.
    let to = after(&a.row);
    a.sink.begin(&a.row, &to).await.unwrap();
    let batch = [
        (&shops.plan, net(&shops, &["delete 10|-", "delete 20|-", "insert 20|3"])),
        (&goods.plan, net(&goods, &["update 1|20"])),
    ];
    a.sink.apply(&batch).await.unwrap();
    a.sink.commit().await.unwrap();
    a.row.standing = to;
    assert_eq!(maria.rows("SELECT * FROM goods ORDER BY id").await, "1|20\n2|20");
    assert_eq!(maria.rows("SELECT * FROM own").await, "20");
    // What is not emptied along with it would lose rows.
    let refused = a.apply(&shops, &["truncate"]).await.unwrap_err();
    let Failure::Constraint(refused) = refused else { panic!("{refused:?}") };
    assert!(refused.hint.contains("truncate = \"delete\""), "{refused}");
    assert_eq!(maria.rows("SELECT * FROM own").await, "20");
    let refused = a.apply(&goods, &["insert 3|99"]).await.unwrap_err();
    let Failure::Reference(refused) = refused else { panic!("{refused:?}") };
    assert!(refused.message.contains("goods_ibfk_1"), "{refused}");
    maria.drop().await;
}

// ---- Ranges ----

#[tokio::test]
async fn a_range_holds_exactly_its_rows_in_the_order_of_the_source() {
    let maria = Maria::new().await;
    let ddl = "CREATE TABLE words (k VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin, n DECIMAL(6,2), b BINARY(16), \
               v INT, PRIMARY KEY (k, n, b)) ENGINE = InnoDB";
    let mut a = maria.sink(ddl).await;
    let words = a.target(maria.wanted("words", "k:text! n:numeric! b:uuid! v:int4")).await;
    let uuid = |n: u8| format!("00000000-0000-0000-0000-0000000000{n:02x}");
    let row = |k: &str, n: &str, b: u8, v: u8| format!("{k}|{n}|{}|{v}", uuid(b));
    let old = [
        row("A", "1", 1, 1),
        row("a", "1", 1, 1),
        row("a", "1.50", 1, 1),
        row("a ", "1", 1, 1),
        row("ä", "1", 255, 1),
        row("😀", "1", 1, 1),
    ];
    let inserts: Vec<String> = old.iter().map(|row| format!("insert {row}")).collect();
    a.apply(&words, &inserts.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
    let key = |k: &str, n: &str, b: u8| Some(vec![k.to_owned(), n.to_owned(), uuid(b)]);
    // Above (a, 1), through (ä, NaN): a/1.5 is right, "a " is a phantom, ä gets another value, b is new.
    let range = KeyRange { after: key("a", "1", 1), through: key("ä", "NaN", 0) };
    let rows = [row("a", "1.5", 1, 1), row("b", "-3", 7, 5), row("ä", "1", 255, 9)];
    let counts = a.replace(&words, &range, &rows.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(counts.deleted, 1);
    assert_eq!(
        maria.rows("SELECT CONCAT('<', k, '>'), n, LOWER(HEX(b)) LIKE '%ff', v FROM words ORDER BY k, n").await,
        "<A>|1.00|0|1\n<a>|1.00|0|1\n<a>|1.50|0|1\n<b>|-3.00|0|5\n<ä>|1.00|1|9\n<😀>|1.00|0|1"
    );
    a.replace(&words, &KeyRange::ALL, &[]).await.unwrap();
    assert_eq!(maria.rows("SELECT COUNT(*) FROM words").await, "0");
    maria.drop().await;
}

// ---- Refusals ----

#[tokio::test]
async fn what_a_table_can_not_hold_is_refused_and_the_hint_mends_it() {
    let maria = Maria::new().await;
    let mut a = maria.sink("").await;
    let key = "id INT PRIMARY KEY";
    for (table, columns, ddl, said) in [
        ("missing", "id:int4! t:text d:date n:numeric", "", "does not exist"),
        ("engine", "id:int4!", &*format!("({key}) ENGINE = MyISAM"), "no transactions"),
        (
            "padded",
            "k:text!",
            "(k VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PRIMARY KEY)",
            "does not tell keys apart",
        ),
        (
            "folded",
            "k:text!",
            "(k VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci PRIMARY KEY)",
            "does not tell keys apart",
        ),
        ("swapped", "k:uuid!", "(k UUID PRIMARY KEY)", "not known to hold"),
        ("narrow", "id:int8!", "(id INT PRIMARY KEY)", "not known to hold"),
        ("latin", "id:int4! t:text", &*format!("({key}, t TEXT CHARACTER SET latin1)"), "not known to hold"),
        ("zone", "id:int4! t:timestamptz", &*format!("({key}, t DATETIME(3))"), "not known to hold"),
        (
            "touched",
            "id:int4! t:timestamptz",
            &*format!("({key}, t TIMESTAMP(6) NULL ON UPDATE CURRENT_TIMESTAMP(6))"),
            "changes by itself",
        ),
        ("made", "id:int4! v:int4", &*format!("({key}, v INT AS (id + 1))"), "is generated"),
        ("lacking", "id:int4! v:int4", &*format!("({key})"), "has no column v"),
        ("strict", "id:int4! v:int4", &*format!("({key}, v INT NOT NULL)"), "is not null at the sink"),
        ("extra", "id:int4!", &*format!("({key}, own INT NOT NULL)"), "is not written"),
        ("unkeyed", "id:int4! v:int4", "(id INT NOT NULL, v INT)", "no unique index"),
    ] {
        if !ddl.is_empty() {
            maria.run(&format!("CREATE TABLE {table} {ddl}")).await;
        }
        let wanted = maria.wanted(table, columns);
        let found = a.judge(&wanted).await.halts;
        assert_eq!(found.len(), 1, "{table}: {found:?}");
        assert!(found[0].code == Code::SinkTable && found[0].message.contains(said), "{}", found[0]);
        assert!(a.sink.plan(std::slice::from_ref(&wanted)).await.is_err(), "{table}");
        maria.run(&found[0].hint).await;
        let found = a.judge(&wanted).await.halts;
        assert!(found.is_empty(), "{table}: {found:?}");
    }
    let keyless = a.judge(&maria.wanted("lacking", "id:int4 v:int4")).await.halts;
    assert!(keyless[0].message.contains("has no key"), "{keyless:?}");
    maria.drop().await;
}

#[tokio::test]
async fn values_that_do_not_fit_are_refused_by_the_name_of_their_column_and_never_changed() {
    let maria = Maria::new().await;
    let ddl = "CREATE TABLE tight (id INT PRIMARY KEY, s VARCHAR(3) CHARACTER SET utf8mb4, n DECIMAL(4,1), t TIMESTAMP(6) NULL, y TINYTEXT CHARACTER SET utf8mb4)";
    let mut a = maria.sink(ddl).await;
    let tight = a.target(maria.wanted("tight", "id:int4! s:text n:numeric t:timestamptz y:text")).await;
    let long = "x".repeat(256);
    for (row, column) in [
        ("1|abcd|~|~|~", "s"),
        ("1|abc |~|~|~", "s"),
        ("1|~|1.25|~|~", "n"),
        ("1|~|1000|~|~", "n"),
        ("1|~|NaN|~|~", "n"),
        ("1|~|~|infinity|~", "t"),
        ("1|~|~|2039-01-01 00:00:00+00|~", "t"),
        ("1|~|~|0044-03-15 00:00:00+00 BC|~", "t"),
        (&*format!("1|~|~|~|{long}"), "y"),
        ("99999999999|~|~|~|~", "id"),
    ] {
        let refused = halt(a.apply(&tight, &[&format!("insert {row}")]).await.unwrap_err());
        assert_eq!(refused.code, Code::ValueRefused, "{row}: {refused}");
        let said = format!("a value does not fit column {column} of {}.tight", maria.name);
        assert_eq!(refused.message, said, "{row}");
    }
    a.apply(&tight, &["insert 1|äöü|999.9|2038-01-19 03:14:07+00|~"]).await.unwrap();
    assert_eq!(maria.rows("SELECT * FROM tight").await, "1|äöü|999.9|2038-01-19 03:14:07.000000|~");
    maria.drop().await;
}

/// Somebody holds a row: after the lock time-out the transaction is tried again, and nothing of it stays.
#[tokio::test]
async fn a_lock_that_somebody_holds_is_waited_for_and_then_retried() {
    let maria = Maria::new().await;
    let mut a = maria.sink(ITEMS).await;
    let items = a.target(maria.wanted("items", ITEM_COLUMNS)).await;
    a.apply(&items, &["insert 1|x|y|1"]).await.unwrap();
    let mut other = maria.connect("root", &maria.name).await;
    other.query_drop("START TRANSACTION").await.unwrap();
    other.query_drop("UPDATE items SET a = 'theirs' WHERE id = 1").await.unwrap();
    let failure = a.apply(&items, &["update 1|ours|y|1"]).await.unwrap_err();
    assert!(matches!(failure, Failure::Error(Error::Retry(_))), "{failure:?}");
    other.query_drop("ROLLBACK").await.unwrap();
    a.apply(&items, &["update 1|ours|y|1"]).await.unwrap();
    assert_eq!(maria.rows("SELECT a FROM items").await, "ours");
    maria.drop().await;
}

// ---- Against the changes one by one ----

/// Per key: a unique value that may be missing, one that may not, and another column.
type Model = BTreeMap<u8, (Option<u8>, u8, u8)>;

/// What a source with constraints that are checked at once can do with what it has.
fn change(model: &mut Model, (kind, k, u, m): (u8, u8, u8, u8)) -> Option<String> {
    let key = model.keys().copied().nth(usize::from(k) % model.len().max(1));
    let u = Some(u).filter(|u| *u > 0);
    let free_u = |but: Option<u8>| u.is_none() || model.iter().all(|(k, row)| Some(*k) == but || row.0 != u);
    let free_m = |but: Option<u8>| model.iter().all(|(k, row)| Some(*k) == but || row.1 != m);
    let shown = |u: Option<u8>| u.map_or_else(|| "~".to_owned(), |u| u.to_string());
    match (kind, key) {
        (0..=2, _) if !model.contains_key(&k) && free_u(None) && free_m(None) => {
            model.insert(k, (u, m, kind));
            Some(format!("insert {k}|{}|{m}|{kind}", shown(u)))
        }
        (3..=5, Some(key)) if free_u(Some(key)) && free_m(Some(key)) => {
            model.insert(key, (u, m, kind));
            Some(format!("update {key}|{}|{m}|{kind}", shown(u)))
        }
        (6, Some(key)) if free_u(Some(key)) => {
            let row = model.get_mut(&key)?;
            row.0 = u;
            Some(format!("update {key}|{}|-|-", shown(u)))
        }
        (7, Some(key)) => {
            model.remove(&key);
            Some(format!("delete {key}|-|-|-"))
        }
        (8, Some(key)) if !model.contains_key(&k) => {
            let row = model.remove(&key)?;
            model.insert(k, row);
            Some(format!("rekey {key}|-|-|- -> {k}|-|-|-"))
        }
        (9, _) if k == 0 => {
            model.clear();
            Some("truncate".to_owned())
        }
        _ => None,
    }
}

/// One transaction as the driver has it: the net effect; then with parking; then each change by itself.
async fn apply_as_the_driver(a: &mut Owned, target: &Target, ops: &[String]) -> Result<(), Failure> {
    let mut outcome = Ok(());
    for (parking, strict) in [(false, false), (true, false), (true, true)] {
        let mut nets = Vec::new();
        let mut fold = target.wanted.fold();
        for text in ops {
            let mut op: Op = world::op(text);
            while let Folded::FlushFirst(again) = fold.fold(op).unwrap() {
                nets.push((target, fold.drain()));
                op = again;
            }
            if strict {
                nets.push((target, fold.drain()));
            }
        }
        nets.push((target, fold.drain()));
        outcome = a.transaction(&nets, parking).await.map(drop);
        if !matches!(outcome, Err(Failure::Unique(_) | Failure::Constraint(_) | Failure::Reference(_))) {
            return outcome;
        }
    }
    outcome
}

#[test]
fn whatever_the_source_can_do_in_order_ends_the_same_here() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let maria = runtime.block_on(Maria::new());
    let ddl = "CREATE TABLE d (k INT PRIMARY KEY, u INT UNIQUE, m INT NOT NULL UNIQUE, v INT) ENGINE = InnoDB";
    let mut a = runtime.block_on(maria.sink(ddl));
    let target = runtime.block_on(async { a.target(maria.wanted("d", "k:int4! u:int4 m:int4+ v:int4")).await });
    let owned = tokio::sync::Mutex::new(a);
    let changes = proptest::collection::vec((0..10u8, 0..8u8, 0..6u8, 0..8u8), 1..60);
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&(changes, 1..12usize), |(raws, batch)| {
            runtime.block_on(async {
                let (mut model, mut a) = (Model::new(), owned.lock().await);
                a.apply(&target, &["truncate"]).await.unwrap();
                let ops: Vec<String> = raws.into_iter().filter_map(|raw| change(&mut model, raw)).collect();
                for ops in ops.chunks(batch) {
                    apply_as_the_driver(&mut a, &target, ops)
                        .await
                        .unwrap_or_else(|failure| panic!("{ops:?}: {failure:?}"));
                }
                let shown = |u: Option<u8>| u.map_or_else(|| "~".to_owned(), |u| u.to_string());
                let expected: Vec<String> =
                    model.iter().map(|(k, (u, m, v))| format!("{k}|{}|{m}|{v}", shown(*u))).collect();
                assert_eq!(maria.rows("SELECT * FROM d ORDER BY k").await, expected.join("\n"), "{ops:?}");
            });
            Ok(())
        })
        .unwrap();
    runtime.block_on(maria.drop());
}

// ---- Pipelines ----

/// A source, a MariaDB and a pipeline between them.
struct Line {
    pipeline: Pipeline,
    source: Database,
    maria: Maria,
}

impl Line {
    async fn new(hint: &str, schema: &str, tables: &[&str], ddl: &[&str]) -> Line {
        let services = Services::from_env();
        let source = services.catalog.create_database(hint).await.unwrap();
        source.execute(schema).await.unwrap();
        let maria = Maria::new().await;
        for ddl in ddl {
            maria.run(ddl).await;
        }
        let pipeline = Pipeline::new(LOCKSTEP, &services, &source).sink_url("orders", maria.url());
        let into = |table: &&str| format!("[sinks.orders]\ntable = \"{}.{table}\"\n", maria.name);
        let pipeline = tables.iter().fold(pipeline, |p, table| p.connector(&format!("public.{table}"), &into(table)));
        Line { pipeline, source, maria }
    }

    async fn sql(&self, sql: &str) {
        self.source.execute(sql).await.unwrap();
    }

    /// Waits until the sink holds what the source has committed by now, and streams.
    async fn caught_up(&self, process: &mut Process) {
        let lsn = self.source.wal_lsn().await.unwrap();
        self.sql("SELECT pg_logical_emit_message(true, 'lockstep test', '')").await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            process.ensure_running().unwrap();
            process.ensure_not_halted().await.unwrap();
            let there = "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'lockstep_progress'";
            if self.maria.rows(there).await == "1" {
                let row = self.maria.rows("SELECT closed_lsn, phase FROM lockstep_progress").await;
                let (closed, phase) = row.split_once('|').unwrap_or(("0/0", ""));
                if phase == "streaming" && closed.parse::<Lsn>().unwrap() >= lsn {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "the sink has not caught up: {:?}", process.status().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

const THINGS: &str = "
CREATE TYPE mood AS ENUM ('sad', 'so-so');
CREATE TABLE things (id bigint PRIMARY KEY, i2 smallint, b bool, n numeric(12,3), nn numeric, f4 real, f8 double precision, d date, t time,
    ts timestamp, tz timestamptz, u uuid, y bytea, vc varchar(10), tx text, js jsonb, e mood, ia int[], iv interval, r int4range, big text);
ALTER TABLE things ALTER big SET STORAGE EXTERNAL;
CREATE FUNCTION fill(a int, z int) RETURNS void LANGUAGE sql AS $$
    INSERT INTO things SELECT i, i - 200, i % 2 = 0, i / 7.0, round(-i / 3.0, 10), i / 3.0, i * 1e15 / 7, date '2024-02-29' + i, time '23:59:59.999999' - i * interval '1 s',
    timestamp '0001-01-01 00:00:00' + i * interval '20 years 1 us', timestamptz '1999-12-31 23:59:59.5+00' + i * interval '1 day',
    md5(i::text)::uuid, decode(md5(i::text), 'hex'), 'v' || i, E'it''s \\\\ \"é😀\" ' || i || E'\\n\\t ', jsonb_build_object('i', i, 'a', '[1, null]'::jsonb),
    'so-so', ARRAY[i, NULL], i * interval '1 mon -1 day', int4range(i, i + 5), repeat(md5(i::text), 200) FROM generate_series(a, z) i $$;
CREATE TABLE words (k text PRIMARY KEY, v int);
INSERT INTO words VALUES ('a', 1), ('A', 2), ('a ', 3), ('', 4), ('ä', 5);
";

const THINGS_THERE: [&str; 2] = [
    "CREATE TABLE things (id BIGINT PRIMARY KEY, i2 SMALLINT, b BOOLEAN, n DECIMAL(12,3), nn DECIMAL(40,10), f4 FLOAT, f8 DOUBLE, d DATE, t TIME(6),
     ts DATETIME(6), tz TIMESTAMP(6) NULL, u BINARY(16), y VARBINARY(100), vc VARCHAR(10) CHARACTER SET utf8mb4, tx TEXT CHARACTER SET utf8mb4, js JSON,
     e VARCHAR(20) CHARACTER SET utf8mb4, ia TEXT CHARACTER SET utf8mb4, iv TEXT CHARACTER SET utf8mb4, r TEXT CHARACTER SET utf8mb4,
     big LONGTEXT CHARACTER SET utf8mb4, own INT DEFAULT 7) ENGINE = InnoDB",
    "CREATE TABLE words (k VARCHAR(50) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin PRIMARY KEY, v INT) ENGINE = InnoDB",
];

/// Each column as the sink prints it.
const THINGS_AT_SOURCE: [&str; 21] = [
    "id",
    "i2",
    "b::int",
    "n",
    "round(nn, 10)",
    "f4::float8",
    "f8",
    "d",
    "t",
    "to_char(ts, 'YYYY-MM-DD HH24:MI:SS.US')",
    "to_char(tz AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')",
    "replace(u::text, '-', '')",
    "encode(y, 'hex')",
    "vc",
    "encode(convert_to(tx, 'UTF8'), 'hex')",
    "js",
    "e",
    "ia",
    "iv",
    "r",
    "md5(big)",
];
const THINGS_AT_SINK: &str = "SELECT id, i2, b, n, nn, f4 * 1e0, f8, d, TRIM(TRAILING '.' FROM TRIM(TRAILING '0' FROM t)), ts, tz, LOWER(HEX(u)), LOWER(HEX(y)), vc, LOWER(HEX(tx)), js, e, ia, iv, r, MD5(big) FROM things ORDER BY id";

/// Numbers compare as numbers: the two print them differently.
fn comparable(text: &str) -> Vec<Vec<String>> {
    let number = |cell: &str| match cell.parse::<f64>() {
        Ok(number) if cell.contains(['.', 'e']) && !cell.contains(':') => format!("{number:e}"),
        _ => cell.to_owned(),
    };
    text.lines().map(|line| line.split('|').map(number).collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_from_postgres_keeps_a_mariadb_equal() {
    let line = Line::new("maria", THINGS, &["things", "words"], &THINGS_THERE).await;
    line.sql("SELECT fill(1, 250)").await;
    let line = Line { pipeline: line.pipeline.set("source.snapshot", "chunk_rows = 100"), ..line };
    line.pipeline.write().unwrap();
    let checked = line.pipeline.command(&["check"]).unwrap();
    assert!(checked.status.success(), "{checked:?}");
    let mut process = line.pipeline.spawn(&[]).unwrap();
    let cells = THINGS_AT_SOURCE.map(|cell| format!("({cell})::text")).join(", ");
    let things =
        format!("SELECT string_agg(array_to_string(ARRAY[{cells}], '|', '~'), E'\\n' ORDER BY id) FROM things");
    let equal = async |process: &mut Process| {
        line.caught_up(process).await;
        let source = line.source.connect().await.unwrap();
        let there: String = source.query_one(&things, &[]).await.unwrap().get(0);
        let here = line.maria.rows(THINGS_AT_SINK).await;
        let (there, here) = (comparable(&there), comparable(&here));
        assert_eq!(there.len(), here.len());
        for (there, here) in there.iter().zip(&here) {
            assert_eq!(there, here);
        }
        let words: String = source.query_one("SELECT coalesce(string_agg(concat_ws('|', '<' || k || '>', v), E'\\n' ORDER BY k COLLATE \"C\"), '') FROM words", &[]).await.unwrap().get(0);
        assert_eq!(line.maria.rows("SELECT CONCAT('<', k, '>'), v FROM words ORDER BY k").await, words);
    };
    equal(&mut process).await;
    // New rows, whole and partial updates (big is not sent), deletes, moved and swapped keys.
    line.sql("SELECT fill(300, 400); UPDATE things SET i2 = i2 + 1, tx = 'new' WHERE id % 3 = 0; DELETE FROM things WHERE id % 7 = 0").await;
    line.sql("UPDATE things SET id = id + 10000 WHERE id % 5 = 0; UPDATE words SET k = 'b' WHERE k = 'a'; UPDATE words SET k = 'a' WHERE k = 'a '; UPDATE words SET k = 'a ' WHERE k = 'b'").await;
    line.sql("INSERT INTO things (id) VALUES (-1), (0); UPDATE things SET f8 = '-1e-300', n = 0, tx = '' WHERE id = 0")
        .await;
    equal(&mut process).await;
    line.sql("TRUNCATE words; INSERT INTO words VALUES ('new', 1)").await;
    equal(&mut process).await;
    assert_eq!(
        line.maria.rows("SELECT COUNT(*) FROM things WHERE own IS NULL OR own <> 7").await,
        "0",
        "the service's own"
    );
    // A value that does not fit halts by its column, and the sink stays as it is.
    line.sql("INSERT INTO words VALUES ('x', 1); INSERT INTO things (id, f8) VALUES (5, 'NaN')").await;
    let halted = |s: &support::Status| s.halt_code(Some("orders")) == Some("VALUE_REFUSED");
    let status = process.wait_until("the halt", PATIENCE, halted).await.unwrap();
    let message = &status.0["sinks"]["orders"]["halt"]["message"];
    assert!(message.as_str().unwrap().contains("column f8 of"), "{message}");
    let hint = status.0["sinks"]["orders"]["halt"]["hint"].as_str().unwrap();
    assert_eq!(hint, "lockstep resync public.things --where \"id = 5\" --sink orders", "{message}");
    assert_eq!(line.maria.rows("SELECT k FROM words").await, "new");
    process.terminate(PATIENCE).await.unwrap();
    line.maria.drop().await;
}

const EVENTS_THERE: [&str; 6] = [
    "CREATE TABLE events (id BIGINT PRIMARY KEY, tx BIGINT NOT NULL, note TEXT CHARACTER SET utf8mb4) ENGINE = InnoDB",
    "CREATE TABLE journal (tx BIGINT PRIMARY KEY, at DATETIME(6) NOT NULL) ENGINE = InnoDB",
    "CREATE TABLE audit (n BIGINT AUTO_INCREMENT PRIMARY KEY, id BIGINT, op VARCHAR(10)) ENGINE = InnoDB",
    "CREATE TRIGGER ai AFTER INSERT ON events FOR EACH ROW INSERT INTO audit (id, op) VALUES (NEW.id, 'INSERT')",
    "CREATE TRIGGER au AFTER UPDATE ON events FOR EACH ROW INSERT INTO audit (id, op) VALUES (NEW.id, 'UPDATE')",
    "CREATE TRIGGER ad AFTER DELETE ON events FOR EACH ROW INSERT INTO audit (id, op) VALUES (OLD.id, 'DELETE')",
];

/// The worker is killed again and again, frozen while another waits, and woken up: every row takes effect once, and no reader ever
/// sees a part of a transaction.
#[tokio::test(flavor = "multi_thread")]
async fn effects_come_exactly_once_whatever_happens_to_the_worker() {
    let line = Line::new("maria_kills", EVENTS_SCHEMA, &["events", "journal"], &EVENTS_THERE).await;
    let pipeline = line.pipeline.several().set("sinks.orders", "lease_timeout = \"2s\"");
    let line = Line { pipeline, ..line };
    let mut source = line.pipeline.spawn(&["source"]).unwrap();
    let load = Events::start(line.source.server.port, &line.source.name, Duration::from_millis(3));
    let streaming = |s: &support::Status| s.sink_state("orders") == "streaming";
    let mut worker = line.pipeline.spawn(&["sink:orders"]).unwrap();
    for pause in [150, 10] {
        worker.wait_until("the worker works", PATIENCE, streaming).await.unwrap();
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let parts = "SELECT COUNT(*) FROM (SELECT tx FROM events GROUP BY tx HAVING COUNT(*) <> 3) p";
        assert_eq!(line.maria.rows(parts).await, "0", "transactions are seen whole");
        worker.kill9().unwrap();
        worker = line.pipeline.spawn(&["sink:orders"]).unwrap();
    }
    worker.wait_until("the worker works", PATIENCE, streaming).await.unwrap();
    let mut standby = line.pipeline.spawn(&["sink:orders"]).unwrap();
    standby.wait_until("a standby", PATIENCE, |s| s.sink_state("orders") == "standby").await.unwrap();
    worker.signal(Signal::STOP).unwrap();
    standby.wait_until("the standby works", PATIENCE, streaming).await.unwrap();
    worker.signal(Signal::CONT).unwrap();
    worker
        .wait_until("the owner has become the standby", PATIENCE, |s| s.sink_state("orders") == "standby")
        .await
        .unwrap();
    let committed = load.stop().await;
    line.caught_up(&mut standby).await;
    source.ensure_running().unwrap();
    assert!(committed > 100, "{committed} transactions are no load");
    let there = support::scene::text(&line.source, "SELECT count(*) || '|' || sum(id) FROM events").await;
    assert_eq!(line.maria.rows("SELECT COUNT(*), SUM(id) FROM events").await, there);
    let once = "SELECT COUNT(*), SUM(id), COUNT(DISTINCT id), SUM(op <> 'INSERT') FROM audit";
    let rows = there.split('|').next().unwrap();
    assert_eq!(line.maria.rows(once).await, format!("{there}|{rows}|0"), "every effect once");
    line.maria.drop().await;
}

/// What this kind of sink can't do is said by `lockstep check` and at a start, before anything is written.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_engine_can_not_do_is_refused_before_anything_is_written() {
    let line = Line::new(
        "maria_lacks",
        "CREATE TABLE t (id int PRIMARY KEY)",
        &["t"],
        &["CREATE TABLE t (id INT PRIMARY KEY) ENGINE = InnoDB"],
    )
    .await;
    let into = format!("[sinks.orders]\ntable = \"{}.t\"\nevolve = \"add\"\ndelete = \"soft\"\n", line.maria.name);
    let pipeline = line.pipeline.connector("public.t", &into).set("sinks.orders", "foreign_keys = \"after_load\"");
    pipeline.write().unwrap();
    let checked = pipeline.command(&["check"]).unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(3), "{said}");
    assert!(
        ["is MariaDB, which can't set foreign keys aside", "can't let table", "can't keep deleted rows"]
            .iter()
            .all(|what| said.contains(what)),
        "{said}"
    );
    let mut process = pipeline.spawn(&["sink:orders"]).unwrap();
    let status = process.wait(PATIENCE).await.unwrap();
    assert_eq!(status.code(), Some(3));
    assert_eq!(
        line.maria.rows("SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()").await,
        "1"
    );
    drop(pipeline);
    line.maria.drop().await;
}
