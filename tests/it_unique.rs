//! Unique values that rows hand over to each other, on a real server: parked, written, and no row deleted for it.

mod support;
#[path = "support/sink.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lockstep::apply::net::{Folded, NetEffect};
use lockstep::change::Op;
use lockstep::config::SinkTable;
use lockstep::error::Code;
use lockstep::key::{KeyOrder, KeyRange};
use lockstep::relation::{Relation, TableName};
use lockstep::sink::park::{Loaded, Unread};
use lockstep::sink::sql::SinkTablePlan;
use lockstep::sink::{Counts, Failure, WantedTable};
use lockstep::transform::Transform;
use lockstep::value::RowBuf;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::scene::{PATIENCE, Scene, text};
use world::*;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

// ---- One sink ----

/// As the driver does: plain first, then with parking on; `nets` one after the other in one transaction.
async fn parked(a: &mut Owned, nets: Vec<(&SinkTablePlan, NetEffect)>, unread: &Unread) -> Result<(), Failure> {
    let to = a.begin().await;
    let mut outcome = Ok(());
    for net in nets {
        a.sink.park(unread.clone());
        outcome = a.sink.apply(&[net]).await.map(drop);
        if outcome.is_err() {
            break;
        }
    }
    if outcome.is_ok() {
        outcome = a.sink.commit().await;
    }
    match &outcome {
        Ok(()) => a.row.standing = to,
        Err(_) => a.sink.rollback().await.unwrap(),
    }
    outcome
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, Failure>) -> lockstep::error::Halt {
    match outcome {
        Err(Failure::Unique(halt)) => *halt,
        other => panic!("not refused by a unique constraint: {other:?}"),
    }
}

/// Rows `TABLE t ORDER BY 1` of table `t (id int PRIMARY KEY, …)` after `ops`, which are refused without parking.
async fn handed_over(world: &World, columns: &str, ddl: &str, start: &str, ops: &[&str]) -> String {
    let mut a = world.sink(&format!("CREATE TABLE t (id int PRIMARY KEY, {ddl}")).await;
    world.run(start).await;
    let plan = plan(&a.sink, "t", columns).await;
    refusal(a.apply(&[(&plan, net(&plan, ops))]).await);
    parked(&mut a, vec![(&plan, net(&plan, ops))], &Unread::new()).await.unwrap();
    world.rows("SELECT * FROM t ORDER BY 1").await
}

/// What it shows; columns beside `id`, as `plan` and as CREATE TABLE take them; rows before, changes, rows after.
type Shape<'a> = (&'a str, &'a str, &'a str, &'a str, &'a [&'a str], &'a str);

const SHAPES: &[Shape<'_>] = &[
    (
        "a chain of three that closes",
        "u:text",
        "u text UNIQUE)",
        "(1, 'a'), (2, 'b'), (3, 'c')",
        &["update 1|b", "update 2|c", "update 3|a"],
        "1|b\n2|c\n3|a",
    ),
    (
        "handed over by way of another value",
        "u:text+",
        "u text NOT NULL UNIQUE)",
        "(1, 'a'), (2, 'b')",
        &["update 1|tmp", "update 2|a", "update 1|b"],
        "1|b\n2|a",
    ),
    (
        "composite, where one column stays",
        "u:int4+ w:int4+",
        "u int NOT NULL, w int NOT NULL, UNIQUE (u, w))",
        "(1, 1, 1), (2, 1, 2)",
        &["update 1|-|2", "update 2|-|1"],
        "1|1|2\n2|1|1",
    ),
    (
        "partial",
        "u:text+ on:bool+",
        "u text NOT NULL, \"on\" bool NOT NULL); CREATE UNIQUE INDEX partly ON t (u) WHERE \"on\"",
        "(1, 'a', true), (2, 'b', true), (3, 'b', false)",
        &["update 1|b|true", "update 2|a|true"],
        "1|b|t\n2|a|t\n3|b|f",
    ),
    (
        "expression",
        "u:text+",
        "u text NOT NULL); CREATE UNIQUE INDEX lowered ON t (lower(u))",
        "(1, 'a'), (2, 'b')",
        &["update 1|B", "update 2|A"],
        "1|B\n2|A",
    ),
    (
        "a generated column",
        "u:text",
        "u text, g text GENERATED ALWAYS AS (lower(u)) STORED UNIQUE)",
        "(1, 'a'), (2, 'b')",
        &["update 1|B", "update 2|A"],
        "1|B|b\n2|A|a",
    ),
    (
        "ranges that exclude each other",
        "u:int4range+",
        "u int4range NOT NULL, EXCLUDE USING gist (u WITH &&))",
        "(1, '[1,5)'), (2, '[5,9)')",
        &["update 1|[4,9)", "update 2|[1,4)"],
        "1|[4,9)\n2|[1,4)",
    ),
    (
        "no room below, so above",
        "u:int4+",
        "u int NOT NULL UNIQUE)",
        "(1, -2147483648), (2, 7)",
        &["update 1|7", "update 2|-2147483648"],
        "1|7\n2|-2147483648",
    ),
    (
        "no room at either end, so between",
        "u:int2+",
        "u int2 NOT NULL UNIQUE)",
        "(1, -32768), (2, 32767), (3, 5), (4, 6)",
        &["update 1|5", "update 2|6", "update 3|-32768", "update 4|32767"],
        "1|5\n2|6\n3|-32768\n4|32767",
    ),
];

#[test]
fn values_are_handed_over_whatever_the_constraint() {
    for (what, columns, ddl, start, ops, expected) in SHAPES {
        in_database(|world| async move {
            let columns = format!("id:int4! {columns}");
            let insert = match ddl.contains("GENERATED") {
                true => format!("INSERT INTO t (id, u) VALUES {start}"),
                false => format!("INSERT INTO t VALUES {start}"),
            };
            assert_eq!(&handed_over(&world, &columns, ddl, &insert, ops).await, expected, "{what}");
        });
    }
}

#[test]
fn nulls_that_are_one_value_are_handed_over_too() {
    in_database(|world| async move {
        if world.rows("SHOW server_version_num").await.parse::<u32>().unwrap() < 150_000 {
            return; // NULLS NOT DISTINCT came with 15
        }
        let ddl = "u int UNIQUE NULLS NOT DISTINCT)";
        let start = "INSERT INTO t VALUES (1, NULL), (2, 5)";
        let rows = handed_over(&world, "id:int4! u:int4", ddl, start, &["update 1|5", "update 2|~"]).await;
        assert_eq!(rows, "1|5\n2|~");
    });
}

/// Types whose columns may hold no NULL, each with two values.
#[test]
fn every_type_with_free_values_has_one_that_stands_in() {
    in_database(|world| async move {
        world.run("CREATE EXTENSION citext; CREATE DOMAIN label AS text CHECK (length(VALUE) > 0)").await;
        let types = [
            ("int2", "int2", "1", "-32768"),
            ("int8", "int8", "1", "2"),
            ("oid", "oid", "0", "4294967295"),
            ("inet", "inet", "10.0.0.1", "::1"),
            ("cidr", "cidr", "10.0.0.0/8", "::/0"),
            ("macaddr", "macaddr", "08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"),
            ("macaddr8", "macaddr8", "08:00:2b:01:02:03:04:05", "00:00:00:00:00:00:00:00"),
            ("tsvector", "tsvector", "", "a:1"),
            ("float8", "float8", "-Infinity", "NaN"),
            ("name", "name", "a", "b"),
            ("jsonb", "jsonb", "null", "{}"),
            ("numeric", "numeric", "1.5", "NaN"),
            ("uuid", "uuid", "6f4c5d34-6f6b-4a46-8d0e-0d6c2f1d5a3e", "00000000-0000-0000-0000-000000000000"),
            ("text", "text", "", "b"),
            ("varchar", "varchar", "a", "b"),
            ("bpchar", "bpchar(5)", "a    ", "b    "),
            ("date", "date", "2024-02-29", "infinity"),
            ("timestamptz", "timestamptz", "2024-02-29 00:00:00+00", "-infinity"),
            ("timestamp", "timestamp", "2024-02-29 00:00:00", "2024-02-29 00:00:01"),
            ("bytea", "bytea", "\\x00", "\\x"),
            ("public.citext", "citext", "a", "B"),
            ("public.label", "label", "a", "b"),
        ];
        let mut a = world.sink("").await;
        for (name, declared, one, other) in types {
            world.run("DROP TABLE IF EXISTS t").await;
            world.run(&format!("CREATE TABLE t (id int PRIMARY KEY, u {declared} NOT NULL UNIQUE)")).await;
            world.run(&format!("INSERT INTO t VALUES (1, '{one}'), (2, '{other}')")).await;
            let plan = plan(&a.sink, "t", &format!("id:int4! u:{name}+")).await;
            let ops = [format!("update 1|{other}"), format!("update 2|{one}")];
            let ops: Vec<&str> = ops.iter().map(String::as_str).collect();
            parked(&mut a, vec![(&plan, net(&plan, &ops))], &Unread::new())
                .await
                .unwrap_or_else(|failure| panic!("{name}: {failure:?}"));
            let swapped =
                format!("SELECT bool_and(u = CASE id WHEN 1 THEN '{other}' ELSE '{one}' END::{declared}) FROM t");
            assert_eq!(world.rows(&swapped).await, "t", "{name}");
        }
    });
}

#[test]
fn thousands_of_rows_and_those_that_are_deleted_last() {
    in_database(|world| async move {
        // The service's own rows hang on ours: a row that lives on is not deleted, one that goes is deleted last.
        let ddl = "CREATE TABLE t (id int PRIMARY KEY, u int NOT NULL UNIQUE, own text DEFAULT 'own'); \
            CREATE TABLE theirs (t int REFERENCES t ON DELETE CASCADE)";
        let mut a = world.sink(ddl).await;
        world
            .run("INSERT INTO t SELECT i, i FROM generate_series(1, 3000) i; INSERT INTO theirs SELECT id FROM t")
            .await;
        let plan = plan(&a.sink, "t", "id:int4! u:int4+").await;
        let mut ops: Vec<String> = (1..3000).map(|i| format!("update {i}|{}", i % 2999 + 1)).collect();
        ops.extend(["delete 3000|-".to_owned(), "insert 3001|3000".to_owned()]);
        let ops: Vec<&str> = ops.iter().map(String::as_str).collect();
        parked(&mut a, vec![(&plan, net(&plan, &ops))], &Unread::new()).await.unwrap();
        let wrong =
            "SELECT count(*) FROM t WHERE u <> CASE WHEN id > 3000 THEN 3000 ELSE id % 2999 + 1 END OR own <> 'own'";
        assert_eq!(world.rows(wrong).await, "0");
        assert_eq!(world.rows("SELECT count(*) FROM t JOIN theirs ON t = id").await, "2999");
    });
}

#[test]
fn a_swap_may_be_written_in_parts_but_whoever_owes_is_found_out() {
    in_database(|world| async move {
        let mut a = world.sink("CREATE TABLE t (id int PRIMARY KEY, u text CONSTRAINT u_once UNIQUE, v text)").await;
        world.run("INSERT INTO t VALUES (1, 'a', 'x'), (2, 'b', 'y'), (3, 'c', 'z')").await;
        let plan = plan(&a.sink, "t", "id:int4! u:text v:text").await;
        let part = |ops: &[&str]| (&plan, net(&plan, ops));
        // The row that owes changes otherwise, and moves, before its value comes.
        let parts = vec![part(&["update 1|b|x"]), part(&["update 2|-|w"]), part(&["rekey 2|-|- -> 9|-|-"])];
        let late = parts.into_iter().chain([part(&["update 9|a|w"])]).collect();
        parked(&mut a, late, &Unread::new()).await.unwrap();
        assert_eq!(world.rows("TABLE t ORDER BY id").await, "1|b|x\n3|c|z\n9|a|w");
        for parts in [
            vec![part(&["update 1|a|x"])],
            vec![part(&["update 1|a|x", "update 9|-|y"])],
            vec![part(&["update 1|a|x"]), part(&["rekey 9|-|- -> 8|-|-"])],
            vec![part(&["insert 7|a|x"])],
        ] {
            let halt = refusal(parked(&mut a, parts, &Unread::new()).await);
            assert_eq!(halt.code, Code::ConstraintRefused);
            assert_eq!(halt.message, "constraint u_once of public.t refuses the changes");
        }
        // Another version of the table begins: places are others, and there nobody owes.
        let other = world::plan(&a.sink, "t", "id:int4! v:text u:text").await;
        let parts = vec![part(&["update 1|a|x"]), part(&["update 1|b|x"]), (&other, net(&other, &["update 9|w|-"]))];
        parked(&mut a, parts, &Unread::new()).await.unwrap();
        assert_eq!(world.rows("TABLE t ORDER BY id").await, "1|b|x\n3|c|z\n9|a|w");
        let parts = vec![part(&["update 1|a|x"]), part(&["truncate", "insert 1|a|x"])];
        parked(&mut a, parts, &Unread::new()).await.unwrap();
        assert_eq!(world.rows("TABLE t").await, "1|a|x", "a row that is gone owes nothing");
    });
}

// ---- No stand-in ----

#[test]
fn a_handover_without_a_stand_in_names_the_constraint_and_what_to_type() {
    let reasons = [
        (
            "u mood NOT NULL CONSTRAINT once UNIQUE",
            "",
            "column u: it is not null, and no value of public.mood is known to be free",
        ),
        (
            "u mood NOT NULL); CREATE UNIQUE INDEX once ON t (u",
            "",
            "column u: it is not null, and no value of public.mood is known to be free",
        ),
        (
            "u mood NOT NULL, own int DEFAULT 1); CREATE UNIQUE INDEX once ON t (u) WHERE (own > 0",
            "",
            "column u: it is not null, and no value of public.mood is known to be free",
        ),
        (
            "u mood CONSTRAINT once UNIQUE",
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
             CREATE TRIGGER hears AFTER UPDATE OF u ON t FOR EACH ROW EXECUTE FUNCTION f()",
            "column u: trigger hears fires for its updates",
        ),
        (
            "u mood CONSTRAINT once UNIQUE",
            "CREATE TABLE theirs (u mood CONSTRAINT follows REFERENCES t (u) ON UPDATE CASCADE)",
            "column u: foreign key follows acts on its updates",
        ),
        (
            "u mood CONSTRAINT once UNIQUE CONSTRAINT never_null CHECK (u IS NOT NULL)",
            "",
            "column u: a value that stands in is refused, SQLSTATE 23514 (never_null)",
        ),
    ];
    for (column, more, reason) in reasons {
        in_database(|world| async move {
            let ddl = format!(
                "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, {column}); {more}"
            );
            let mut a = world.sink(&ddl).await;
            world.run("INSERT INTO t (id, u) VALUES (1, 'sad'), (2, 'ok')").await;
            let old = plan(&a.sink, "t", "id:int4! u:public.mood+").await;
            let ops = ["update 1|ok", "update 2|sad"];
            let halt = refusal(parked(&mut a, vec![(&old, net(&old, &ops))], &Unread::new()).await);
            assert_eq!((halt.code, &halt.facts[..]), (Code::UniqueHandover, &[reason.to_owned()][..]));
            assert_eq!(
                halt.message,
                "rows of public.t hand over values of once, and nothing can stand in for them meanwhile"
            );
            assert_eq!(world.rows("SELECT id, u FROM t ORDER BY id").await, "1|sad\n2|ok");
            // Where nobody needs the value that stands in, nobody is in the way.
            let in_order = ["delete 1|-", "insert 3|sad"].map(|op| (&old, net(&old, &[op])));
            parked(&mut a, in_order.into(), &Unread::new()).await.unwrap();
            world.run(&halt.hint).await;
            let plan = plan(&a.sink, "t", "id:int4! u:public.mood+").await;
            parked(&mut a, vec![(&plan, net(&plan, &["update 3|ok", "update 2|sad"]))], &Unread::new()).await.unwrap();
            assert_eq!(world.rows("SELECT id, u FROM t ORDER BY id").await, "2|sad\n3|ok");
        });
    }
}

// ---- Ranges ----

async fn replace(
    a: &mut Owned,
    plan: &SinkTablePlan,
    (range, rows): (&KeyRange, &[RowBuf]),
    loaded: Option<&[KeyRange]>,
) -> Result<Counts, Failure> {
    let to = a.begin().await;
    a.sink.park(loaded.map(under_load).unwrap_or_default());
    let mut load = a.sink.begin_range(plan, range).await?;
    a.sink.push_range(&mut load, rows).await?;
    let outcome = match a.sink.end_range(load, &[]).await {
        Ok(counts) => a.sink.commit().await.map(|()| counts),
        Err(failure) => Err(failure),
    };
    match &outcome {
        Ok(_) => a.row.standing = to,
        Err(_) => a.sink.rollback().await.unwrap(),
    }
    outcome
}

/// Table `t` is under load, and of it these ranges are there.
fn under_load(ranges: &[KeyRange]) -> Unread {
    let loaded = Loaded { ranges: ranges.to_vec(), ..Loaded::default() };
    HashMap::from([(TableName::new("public", "t"), vec![loaded])])
}

fn range(after: Option<&str>, through: Option<&str>) -> KeyRange {
    let border = |border: Option<&str>| border.map(|key| vec![key.to_owned()]);
    KeyRange { after: border(after), through: border(through) }
}

#[test]
fn a_chunk_gets_its_unique_values_from_stale_rows_wherever_they_are() {
    for constraint in ["UNIQUE", "UNIQUE DEFERRABLE"] {
        in_database(|world| async move {
            let ddl = format!(
                "CREATE TABLE t (id int PRIMARY KEY, u text NOT NULL CONSTRAINT once {constraint}); \
                 CREATE TABLE theirs (t int REFERENCES t ON DELETE CASCADE)"
            );
            let mut a = world.sink(&ddl).await;
            world.run("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd'), (5, 'e'); INSERT INTO theirs SELECT id FROM t").await;
            let plan = plan(&a.sink, "t", "id:int4! u:text+").await;
            // 1 and 2 swapped; 3 has what 4 had, which lies behind the range.
            let (first, rest) = (range(None, Some("3")), range(Some("3"), None));
            let rows = [row("1|b"), row("2|a"), row("3|d")];
            let halt = refusal(replace(&mut a, &plan, (&first, &rows), None).await);
            assert_eq!(halt.code, Code::ConstraintRefused, "4 is not to be read again");
            let halt = refusal(replace(&mut a, &plan, (&first, &rows), Some(&[range(Some("3"), Some("4"))])).await);
            assert_eq!(halt.code, Code::ConstraintRefused, "4 was read again");
            replace(&mut a, &plan, (&first, &rows), Some(&[])).await.unwrap();
            assert_eq!(world.rows("SELECT * FROM t WHERE id <> 4 ORDER BY id").await, "1|b\n2|a\n3|d\n5|e");
            // A change of what is there takes what 5 holds, which is not there yet.
            let unread = under_load(std::slice::from_ref(&first));
            parked(&mut a, vec![(&plan, net(&plan, &["update 1|e"]))], &unread).await.unwrap();
            let rows = [row("4|b"), row("5|c")];
            replace(&mut a, &plan, (&rest, &rows), Some(std::slice::from_ref(&first))).await.unwrap();
            assert_eq!(world.rows("SELECT * FROM t ORDER BY id").await, "1|e\n2|a\n3|d\n4|b\n5|c");
            assert_eq!(world.rows("SELECT count(*) FROM theirs").await, "5", "no row was deleted");
        });
    }
}

#[test]
fn stale_rows_of_one_table_are_no_other_table_s_in_the_same_one() {
    in_database(|world| async move {
        let ddl = "CREATE TABLE t (tenant text, id int, u text CONSTRAINT once UNIQUE, PRIMARY KEY (tenant, id))";
        let mut a = world.sink(ddl).await;
        world.run("INSERT INTO t VALUES ('a', 2, 'x'), ('b', 9, 'y')").await;
        let held = Transform::Constant { column: "tenant".into(), value: "a".into() };
        let relation = Relation { transforms: vec![held], ..relation("t", "tenant:text! id:int4! u:text") };
        let target = SinkTable::new("orders", TableName::new("public", "t"));
        let wanted = WantedTable::of(&relation, &target).unwrap();
        let plan = a.sink.plan(&[wanted]).await.unwrap().remove(0);
        let loaded = Loaded {
            ranges: vec![],
            constants: vec![("tenant".into(), "a".into())],
            key: vec![("id".into(), KeyOrder::Integer)],
        };
        let unread = HashMap::from([(TableName::new("public", "t"), vec![loaded])]);
        parked(&mut a, vec![(&plan, net(&plan, &["insert a|1|x"]))], &unread).await.unwrap();
        let rows = "a|1|x\na|2|~\nb|9|y";
        assert_eq!(world.rows("SELECT * FROM t ORDER BY 1, 2").await, rows);
        refusal(parked(&mut a, vec![(&plan, net(&plan, &["insert a|3|y"]))], &unread).await);
        assert_eq!(world.rows("SELECT * FROM t ORDER BY 1, 2").await, rows, "b's row is read, and keeps what it holds");
    });
}

#[test]
fn a_stale_row_without_a_stand_in_is_deleted_where_nothing_hangs_on_it() {
    for (more, goes) in
        [("", true), ("; CREATE TABLE theirs (t int REFERENCES t)", false), ("; ALTER TABLE t ADD own int", false)]
    {
        in_database(|world| async move {
            let ddl = format!(
                "CREATE TYPE mood AS ENUM ('a', 'b', 'c'); CREATE TABLE t (id int PRIMARY KEY, u mood NOT NULL CONSTRAINT once UNIQUE){more}"
            );
            let mut a = world.sink(&ddl).await;
            world.run("INSERT INTO t (id, u) VALUES (1, 'a'), (2, 'b'), (3, 'c')").await;
            let plan = plan(&a.sink, "t", "id:int4! u:public.mood+").await;
            let rows = [row("1|b"), row("2|c")];
            let outcome = replace(&mut a, &plan, (&range(None, Some("2")), &rows), Some(&[])).await;
            if goes {
                outcome.unwrap();
                assert_eq!(world.rows("SELECT id, u FROM t ORDER BY id").await, "1|b\n2|c", "3 comes with its chunk");
                return;
            }
            let halt = refusal(outcome);
            assert_eq!(halt.code, Code::UniqueHandover);
            assert_eq!(
                halt.hint,
                "ALTER TABLE \"public\".\"t\" DROP CONSTRAINT \"once\", and make it again once the table is read"
            );
        });
    }
}

// ---- Against the changes in order ----

type Raw = (u8, usize, i32, Option<u8>, u8);

/// A table in memory: key to the unique values.
type Model = BTreeMap<i32, (Option<i32>, i32)>;

fn number(text: Option<i32>) -> String {
    text.map_or_else(|| "~".to_owned(), |number| number.to_string())
}

/// A change that is possible, whatever it does to unique values.
fn change(model: &mut Model, kept: &mut BTreeSet<i32>, (kind, pick, free, u, w): Raw) -> Option<Op> {
    let u = u.filter(|u| *u > 0).map(i32::from);
    let w = i32::from(w);
    let taken = model.keys().copied().nth(pick % model.len().max(1));
    let free = (0..12).map(|i| (free + i) % 12).find(|key| !model.contains_key(key))?;
    Some(op(&match kind {
        0..=1 => {
            model.insert(free, (u, w));
            format!("insert {free}|{}|{w}", number(u))
        }
        2..=6 => {
            model.insert(taken?, (u, w));
            format!("update {}|{}|{w}", taken?, number(u))
        }
        7 => {
            model.remove(&taken?);
            kept.remove(&taken?);
            format!("delete {}|-|-", taken?)
        }
        _ => {
            model.remove(&taken?);
            model.insert(free, (u, w));
            if kept.remove(&taken?) {
                kept.insert(free);
            }
            format!("rekey {}|-|- -> {free}|{}|{w}", taken?, number(u))
        }
    }))
}

/// Changes at the end of an interval after which no unique value is there twice.
fn mend(model: &mut Model, spare: &mut i32) -> Vec<Op> {
    let (mut us, mut ws, mut ops) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for (key, (u, w)) in model {
        let (old_u, old_w) = (*u, *w);
        if u.is_some_and(|u| !us.insert(u)) {
            *u = None;
        }
        if !ws.insert(*w) {
            *spare += 1;
            *w = *spare;
        }
        if (old_u, old_w) != (*u, *w) {
            ops.push(op(&format!("update {key}|{}|{w}", number(*u))));
        }
    }
    ops
}

#[test]
fn parked_or_not_the_end_is_that_of_the_changes_in_order() {
    in_database(|world| async move {
        let ddl = "CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, w int NOT NULL); CREATE UNIQUE INDEX ON t (w) WHERE w <> 7; \
            CREATE TABLE theirs (t int REFERENCES t ON DELETE CASCADE ON UPDATE CASCADE)";
        let mut owned = world.sink(ddl).await;
        let plan = plan(&owned.sink, "t", "id:int4! u:int4 w:int4+").await;
        let raw = (0..10_u8, any::<usize>(), 0..12_i32, prop::option::of(0..8_u8), 0..8_u8);
        let intervals = prop::collection::vec((prop::collection::vec(raw, 1..16), 1..16_usize), 1..5);
        let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
        let owned = std::cell::RefCell::new(&mut owned);
        let handle = tokio::runtime::Handle::current();
        let parkings = std::cell::Cell::new(0);
        let case = |intervals| {
            let count = handle.block_on(one_case(&world, &mut owned.borrow_mut(), &plan, intervals));
            parkings.set(parkings.get() + count);
            Ok(())
        };
        tokio::task::block_in_place(|| runner.run(&intervals, case)).unwrap();
        assert!(parkings.get() > 20, "hand-overs were met: {}", parkings.get());
    });
}

/// How many intervals needed parking.
async fn one_case(world: &World, a: &mut Owned, plan: &SinkTablePlan, intervals: Vec<(Vec<Raw>, usize)>) -> u32 {
    a.sink.rollback().await.unwrap();
    a.row = mine(a.sink.take_over(&first()).await.unwrap());
    world.run("TRUNCATE t, theirs").await;
    let (mut model, mut spare, mut parkings) = (Model::new(), 100, 0);
    for (raws, batch) in intervals {
        let mut kept: BTreeSet<i32> = model.keys().copied().collect();
        let mut ops: Vec<Op> = raws.into_iter().filter_map(|raw| change(&mut model, &mut kept, raw)).collect();
        ops.extend(mend(&mut model, &mut spare));
        world.run("TRUNCATE theirs; INSERT INTO theirs SELECT id FROM t").await;
        if interval(a, plan, &ops, batch, false).await.is_err() {
            parkings += 1;
            // Cut in the middle, a batch may hold two rows that are to be the same for a moment: one by one there is none.
            if interval(a, plan, &ops, batch, true).await.is_err() {
                interval(a, plan, &ops, 1, true).await.unwrap();
            }
        }
        let expected = model.iter().map(|(key, (u, w))| format!("{key}|{}|{w}", number(*u)));
        assert_eq!(world.rows("TABLE t ORDER BY id").await, expected.collect::<Vec<_>>().join("\n"));
        let theirs = world.rows("SELECT t FROM theirs").await;
        let theirs: BTreeSet<i32> = theirs.lines().map(|line| line.parse().unwrap()).collect();
        assert!(kept.is_subset(&theirs), "a row that lives on was deleted: {kept:?} {theirs:?}");
    }
    parkings
}

/// The changes in one transaction, written after every `batch` of them.
async fn interval(a: &mut Owned, plan: &SinkTablePlan, ops: &[Op], batch: usize, parking: bool) -> Result<(), Failure> {
    let to = a.begin().await;
    let outcome = async {
        let mut net = plan.fold();
        for (place, op) in ops.iter().enumerate() {
            let mut next = op.clone();
            while let Folded::FlushFirst(again) = net.fold(next).map_err(Failure::Error)? {
                write(a, plan, net.drain(), parking).await?;
                next = again;
            }
            if place % batch == batch - 1 {
                write(a, plan, net.drain(), parking).await?;
            }
        }
        write(a, plan, net.drain(), parking).await?;
        a.sink.commit().await
    }
    .await;
    match &outcome {
        Ok(()) => a.row.standing = to,
        Err(Failure::Unique(_)) => a.sink.rollback().await.unwrap(),
        Err(other) => panic!("{other:?}"),
    }
    outcome
}

async fn write(a: &mut Owned, plan: &SinkTablePlan, net: NetEffect, parking: bool) -> Result<(), Failure> {
    if parking {
        a.sink.park(Unread::new());
    }
    if net.is_empty() { Ok(()) } else { a.sink.apply(&[(plan, net)]).await.map(drop) }
}

// ---- The whole way ----

const SCHEMA: &str = "
CREATE TABLE public.skus (id int PRIMARY KEY, sku text NOT NULL CONSTRAINT once UNIQUE DEFERRABLE, note text);
INSERT INTO public.skus SELECT i, 's' || i FROM generate_series(1, 400) i;
";

/// At the sink the constraint is checked at once, and a table of the service's own hangs on the rows.
const SINK: &str = "
ALTER TABLE skus DROP CONSTRAINT once, ADD CONSTRAINT once UNIQUE (sku);
CREATE TABLE theirs (sku_id int REFERENCES skus ON DELETE CASCADE);
";

const HEARS: &str = "
CREATE FUNCTION hears() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER hears AFTER UPDATE ON skus FOR EACH ROW EXECUTE FUNCTION hears();
";

#[tokio::test(flavor = "multi_thread")]
async fn swaps_and_stale_copies_on_the_whole_way() {
    let scene = Scene::new(LOCKSTEP, "unique", SCHEMA, &[("public.skus", &["id"])]).await;
    scene.orders().execute(SINK).await.unwrap();
    let scene =
        scene.configure(|p| p.set("source.snapshot", "chunk_rows = 50").set("sinks.orders", "batch_rows_max = 70"));
    let mut process = scene.spawn(&[]);
    scene.streaming(&mut process).await;
    scene.orders().execute("INSERT INTO theirs SELECT id FROM skus").await.unwrap();
    // Every row takes what the next one holds, in one statement.
    scene.sql("UPDATE skus SET sku = 's' || (id % 400 + 1)").await;
    scene.equal(&mut process).await;
    // A copy in which every value is another row's, also of rows beyond the chunk.
    scene.orders().execute("ALTER TABLE skus DROP CONSTRAINT once; UPDATE skus SET sku = 's' || (401 - id); ALTER TABLE skus ADD CONSTRAINT once UNIQUE (sku)").await.unwrap();
    let resync = scene.pipeline.command(&["resync", "public.skus", "--sink", "orders"]).unwrap();
    assert!(resync.status.success(), "{}", String::from_utf8_lossy(&resync.stderr));
    process
        .wait_until("the copy is read again", PATIENCE, |s| s.sink_state("orders") == "snapshot" || s.all_streaming())
        .await
        .unwrap();
    scene.sql("UPDATE skus SET sku = 's' || (id % 400 + 1), note = 'again' WHERE id % 3 = 0").await;
    scene.streaming(&mut process).await;
    scene.equal(&mut process).await;
    assert_eq!(text(scene.orders(), "SELECT count(*)::text FROM theirs").await, "400");
    // A trigger would hear of stand-ins, and one by one a swap is refused as well.
    scene.orders().execute(HEARS).await.unwrap();
    scene.sql("UPDATE skus SET sku = CASE id WHEN 1 THEN 'two' ELSE 'one' END WHERE id IN (1, 2)").await;
    scene.equal(&mut process).await;
    scene.sql("UPDATE skus SET sku = CASE id WHEN 1 THEN 'one' ELSE 'two' END WHERE id IN (1, 2)").await;
    let halted =
        process.wait_until("the sink halts", PATIENCE, |s| s.halt_code(Some("orders")).is_some()).await.unwrap();
    let halt = &halted.0["sinks"]["orders"]["halt"];
    assert_eq!(halt["code"], "UNIQUE_HANDOVER", "{halt}");
    scene.orders().execute(halt["hint"].as_str().unwrap()).await.unwrap();
    drop(process);
    scene.equal(&mut scene.start().await).await;
}
