//! The Postgres sink on a real server: `eval "$(scripts/services env)"` names it. Each test has a database of its own.

#[path = "support/sink.rs"]
mod world;

use std::time::Duration;

use lockstep::apply::net::Folded;
use lockstep::change::Op;
use lockstep::config::{self, Expression, Function, SinkTable, Truncate, Value};
use lockstep::error::{Code, Error};
use lockstep::key::KeyRange;
use lockstep::relation::TableName;
use lockstep::session;
use lockstep::sink::postgres::PostgresSink;
use lockstep::sink::progress::{Standing, TakeOver};
use lockstep::sink::sql::SinkTablePlan;
use lockstep::sink::{Counts, Failure, WantedTable};
use lockstep::value::{Cell, RowBuf};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use uuid::Uuid;
use world::*;

const ITEMS: &str = "CREATE TABLE items (id int PRIMARY KEY, a text, big text, n numeric)";
const ITEM_COLUMNS: &str = "id:int4! a:text big:text n:numeric";

// ---- Progress ----

#[test]
fn progress_moves_with_the_data_and_only_from_what_was_read() {
    in_database(|world| async move {
        let mut a = world.sink(ITEMS).await;
        assert_eq!((&a.row.standing, a.row.owner.worker_epoch), (&first(), 1));
        let plan = plan(&a.sink, "items", ITEM_COLUMNS).await;
        let stale = a.row.clone();
        a.apply(&[(&plan, net(&plan, &["insert 1|x|y|1.50"]))]).await.unwrap();
        assert_eq!(a.sink.progress(false).await.unwrap().unwrap().standing, a.row.standing);
        assert_eq!(
            world.rows("SELECT pipeline, sink, \"group\", source_system_id, commit_lsn, ordinal, closed_lsn, commit_time AT TIME ZONE 'UTC', phase, format FROM lockstep.progress").await,
            "shop|orders|default|18446744073709551615|0/10|1099511627777|FFFFFFFF/1|2026-11-18 11:06:40.123456|streaming|1"
        );

        let lost = a.sink.begin(&stale, &after(&stale)).await;
        assert!(matches!(lost, Err(Failure::OwnershipLost)), "{lost:?}");
        a.apply(&[(&plan, net(&plan, &["delete 1|-|-|-"]))]).await.unwrap();
        assert_eq!(world.rows("TABLE items").await, "");
    });
}

#[test]
fn commits_wait_for_the_disk_unless_that_is_asked_for() {
    in_database(|world| async move {
        let says = "CREATE TABLE said (how text); CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS $$ \
            BEGIN INSERT INTO public.said VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$; \
            CREATE TRIGGER say AFTER INSERT ON items FOR EACH STATEMENT EXECUTE FUNCTION say()";
        let mut a = world.sink(&format!("{ITEMS}; {says}")).await;
        let plan = plan(&a.sink, "items", ITEM_COLUMNS).await;
        a.apply(&[(&plan, net(&plan, &["insert 1|x|y|1"]))]).await.unwrap();
        let asked = config::Sink { synchronous_commit: false, ..world.sink_config() };
        let mut sink = PostgresSink::connect(&asked, "shop", a.row.owner.worker_id).await.unwrap();
        let row = mine(sink.take_over(&first()).await.unwrap());
        let mut again = Owned { sink, row };
        again.apply(&[(&plan, net(&plan, &["insert 2|x|y|1"]))]).await.unwrap();
        assert_eq!(world.rows("SELECT * FROM said").await, "on\noff");
    });
}

#[test]
fn a_live_owner_keeps_others_on_standby_and_a_killed_one_does_not() {
    in_database(|world| async move {
        let mut a = world.sink(ITEMS).await;
        let plan_a = plan(&a.sink, "items", ITEM_COLUMNS).await;
        let mut b = world.connect(Uuid::new_v4()).await;
        let TakeOver::Standby { owner, .. } = b.take_over(&first()).await.unwrap() else { panic!("A is alive") };
        assert_eq!(owner, a.row.owner);

        a.begin().await;
        a.sink.apply(&[(&plan_a, net(&plan_a, &["insert 1|x|y|1"]))]).await.unwrap();
        assert!(b.evict(&owner).await.unwrap());
        let row = loop {
            if let TakeOver::Mine(row) = b.take_over(&first()).await.unwrap() {
                break *row;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!((&row.standing, row.owner.worker_epoch), (&first(), 2));
        assert!(matches!(a.sink.commit().await, Err(Failure::OutcomeUnknown(_))));
        assert_eq!(world.rows("TABLE items").await, "", "nothing of A's transaction stays");

        // A comes back and finds B there; its old row opens nothing.
        let worker_a = a.row.owner.worker_id;
        let mut a_again = world.connect(worker_a).await;
        assert!(matches!(a_again.take_over(&first()).await.unwrap(), TakeOver::Standby { .. }));
        let lost = a_again.begin(&a.row, &after(&a.row)).await;
        assert!(matches!(lost, Err(Failure::OwnershipLost)), "{lost:?}");
    });
}

#[test]
fn a_worker_takes_over_from_itself_whatever_its_old_connection_does() {
    in_database(|world| async move {
        let mut a = world.sink(ITEMS).await;
        let worker = a.row.owner.worker_id;
        // The old connection sits in its transaction and holds the row: it is ended.
        a.begin().await;
        let mut again = world.connect(worker).await;
        // On a busy machine the old backend may take longer to end than a lock is waited for.
        let row = loop {
            match again.take_over(&first()).await {
                Ok(taken) => break mine(taken),
                Err(error) => assert!(matches!(error, Error::Retry(_)), "{error:?}"),
            }
        };
        assert_eq!((&row.standing, row.owner.worker_epoch), (&first(), 2));

        // A commit whose answer was lost shows in the row.
        let mut again = Owned { sink: again, row };
        let to = again.begin().await;
        again.sink.commit().await.unwrap();
        let mut third = world.connect(worker).await;
        assert_eq!(mine(third.take_over(&first()).await.unwrap()).standing, to);
    });
}

#[test]
fn progress_of_another_ledger_format_or_without_a_table_is_named() {
    in_database(|world| async move {
        let sink = world.connect(Uuid::new_v4()).await;
        let Err(Error::Halt(off)) = sink.progress(false).await else { panic!("there is no table") };
        assert_eq!((off.code, off.facts.len()), (Code::CreateOff, 2));
        world.run(&off.facts.join("\n")).await;
        assert_eq!(sink.progress(false).await.unwrap(), None);

        let mut sink = world.connect(Uuid::new_v4()).await;
        let row = mine(sink.take_over(&first()).await.unwrap());
        row.check_identity(&first()).unwrap();
        let other = Standing { ledger_topic_id: Uuid::from_u128(8), ..first() };
        assert_eq!(row.check_identity(&other).unwrap_err().code(), Some(Code::LedgerRecreated));
        world.run("UPDATE lockstep.progress SET format = 4").await;
        assert_eq!(sink.progress(false).await.unwrap_err().code(), Some(Code::ProgressMismatch));
    });
}

// ---- Rows ----

#[test]
fn every_kind_of_change_by_parameters_and_by_copy() {
    in_database(|world| async move {
        let mut a = world.sink(ITEMS).await;
        let plan = plan(&a.sink, "items", ITEM_COLUMNS).await;
        for n in [40, 2_500] {
            world.run(&format!("TRUNCATE items; INSERT INTO items SELECT i, 'old', 'big' || i, i FROM generate_series(1, {n} * 3) i")).await;
            let big = 10 * n;
            let ops: Vec<String> = (1..=n)
                .flat_map(|i| {
                    [
                        format!("insert {}|tab\tnewline\n\\N back\\slash|~|{i}.500", big + i),
                        format!("update {i}|new|-|NaN"),
                        format!("rekey {}|-|-|- -> {}|moved|-|-", n + i, 2 * big + i),
                        format!("delete {}|-|-|-", 2 * n + i),
                    ]
                })
                .collect();
            let ops: Vec<&str> = ops.iter().map(String::as_str).collect();
            let counts = a.apply(&[(&plan, net(&plan, &ops))]).await.unwrap();
            let n64 = u64::try_from(n).unwrap();
            assert_eq!(counts, Counts { inserted: n64, updated: n64, moved: n64, deleted: n64, ..Counts::default() });
            let check = format!(
                "SELECT count(*), min(id), max(id), bool_and(CASE \
                   WHEN a = 'new' THEN big = 'big' || id AND n = 'NaN' \
                   WHEN a = 'moved' THEN big = 'big' || n AND n = id - 2 * {big} + {n} \
                   ELSE a = E'tab\\tnewline\\n\\\\N back\\\\slash' AND big IS NULL AND n::text = (id - {big}) || '.500' \
                 END) FROM items"
            );
            assert_eq!(world.rows(&check).await, format!("{}|1|{}|t", 3 * n, 2 * big + n));
        }
    });
}

/// Says in `log` which statement brought rows into the table.
const LOGGED: &str = "CREATE TABLE log (statement text); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ \
    BEGIN INSERT INTO public.log VALUES (substr(current_query(), 1, 4)); RETURN NULL; END $$; \
    CREATE TRIGGER note AFTER INSERT ON items FOR EACH STATEMENT EXECUTE FUNCTION note()";

fn inserts(n: i32, row: impl Fn(i32) -> String) -> Vec<String> {
    (1..=n).map(|i| format!("insert {}", row(i))).collect()
}

async fn insert(a: &mut Owned, plan: &SinkTablePlan, ops: &[String]) -> Result<Counts, Failure> {
    let ops: Vec<&str> = ops.iter().map(String::as_str).collect();
    a.apply(&[(plan, net(plan, &ops))]).await
}

#[test]
fn new_rows_go_by_copy_into_the_table_itself_and_over_rows_that_are_there_after_all() {
    in_database(|world| async move {
        let mut a = world.sink(&format!("{ITEMS}; {LOGGED}")).await;
        let plan = plan(&a.sink, "items", ITEM_COLUMNS).await;
        let counts = insert(&mut a, &plan, &inserts(2_500, |i| format!("{i}|tab\tline\n|~|{i}.50"))).await.unwrap();
        assert_eq!(counts, Counts { inserted: 2_500, ..Counts::default() });
        assert_eq!(world.rows("SELECT * FROM log").await, "COPY");
        let right =
            "SELECT count(*), bool_and(a = E'tab\\tline\\n' AND big IS NULL AND n::text = id || '.50') FROM items";
        assert_eq!(world.rows(right).await, "2500|t");

        // Somebody else wrote two of the rows that come next: they become what the source has, and are counted.
        world.run("INSERT INTO items VALUES (3000, 'foreign', 'x', 1), (5000, 'foreign', 'x', 2)").await;
        world.run("TRUNCATE log").await;
        let next = inserts(2_500, |i| format!("{}|tab\tline\n|~|{}.50", 2_500 + i, 2_500 + i));
        let counts = insert(&mut a, &plan, &next).await.unwrap();
        assert_eq!(counts, Counts { inserted: 2_500, overwritten: 2, ..Counts::default() });
        assert_eq!(world.rows(right).await, "5000|t");
        assert_eq!(world.rows("SELECT * FROM log").await, "INSE");
    });
}

#[test]
fn a_copy_that_is_refused_or_falls_short_says_what_an_insert_would() {
    in_database(|world| async move {
        let mut a = world.sink(&format!("{ITEMS}; CREATE UNIQUE INDEX items_a ON items (a)")).await;
        let plan = plan(&a.sink, "items", ITEM_COLUMNS).await;
        world.run("INSERT INTO items VALUES (9000, '7', 'x', 1)").await;
        let rows = inserts(2_500, |i| format!("{i}|{i}|~|1"));
        let taken = insert(&mut a, &plan, &rows).await.unwrap_err();
        assert!(matches!(taken, Failure::Unique(_)), "{taken:?}");
        assert_eq!(world.rows("SELECT count(*) FROM items").await, "1", "nothing was written");

        world
            .run(
                "DROP INDEX items_a; CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ \
                 BEGIN IF new.id = 9 THEN RETURN NULL; END IF; RETURN new; END $$; \
                 CREATE TRIGGER skip BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION skip()",
            )
            .await;
        let short = halt(insert(&mut a, &plan, &rows).await.unwrap_err());
        assert_eq!(short.code, Code::SinkDiverged);
        assert!(short.message.contains("reached 2499 rows of the 2500"), "{short}");
        assert_eq!(world.rows("SELECT count(*) FROM items").await, "1", "nothing was written");
    });
}

#[test]
fn what_copy_would_store_in_another_way_goes_through_the_stage() {
    in_database(|world| async move {
        let mut a = world.sink(&format!("CREATE TABLE items (id int PRIMARY KEY); {LOGGED}")).await;
        let priced = |digits: &str| format!("CREATE TABLE items (id int PRIMARY KEY, a numeric{digits})");
        let price = 655_366; // numeric(10,2)
        let cases = [
            ("COPY", priced("(10,2)"), "numeric", price),
            ("COPY", priced(""), "numeric", price),
            ("INSE", priced("(12,4)"), "numeric", price),
            ("INSE", "CREATE TABLE items (id int PRIMARY KEY, a interval(3))".into(), "interval", 0x7FFF_0003),
            ("COPY", "CREATE TABLE items (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text)".into(), "text", -1),
            (
                "COPY",
                "CREATE TABLE items (own int NOT NULL DEFAULT 7, a text, twice int GENERATED ALWAYS AS (id * 2) STORED, \
                 id int PRIMARY KEY, CHECK (own = 7 AND twice = 2 * id))"
                    .into(),
                "text",
                -1,
            ),
            (
                "COPY",
                "CREATE TABLE items (id int PRIMARY KEY, a text) PARTITION BY RANGE (id); \
                 CREATE TABLE few PARTITION OF items FOR VALUES FROM (0) TO (100); CREATE TABLE more PARTITION OF items DEFAULT"
                    .into(),
                "text",
                -1,
            ),
        ];
        for (how, ddl, kind, typmod) in cases {
            world.run(&format!("DROP TABLE items, log; DROP FUNCTION note; {ddl}; {LOGGED}")).await;
            let mut wanted = wanted("items", &format!("id:int4! a:{kind}"));
            wanted.columns[1].column.typmod = typmod;
            let plan = a.sink.plan(&[wanted]).await.unwrap().remove(0);
            let value = if kind == "interval" { "00:00:01.5" } else { "1.50" };
            let counts = insert(&mut a, &plan, &inserts(2_500, |i| format!("{i}|{value}"))).await.unwrap();
            assert_eq!(counts.inserted, 2_500);
            assert_eq!(world.rows("SELECT * FROM log").await, how, "{ddl}");
            let same = format!("SELECT count(*) FROM items WHERE id BETWEEN 1 AND 2500 AND a = '{value}'");
            assert_eq!(world.rows(&same).await, "2500", "{ddl}");
        }
        // COPY would pass a rule by, which only a table without a key can have.
        world.run("DROP TABLE items, log; DROP FUNCTION note; CREATE TABLE items (id int, a text)").await;
        world.run("CREATE TABLE seen (id int); CREATE RULE seen AS ON INSERT TO items DO ALSO INSERT INTO public.seen VALUES (new.id)").await;
        let plan = plan(&a.sink, "items", "id:int4 a:text").await;
        insert(&mut a, &plan, &inserts(2_500, |i| format!("{i}|x"))).await.unwrap();
        assert_eq!(world.rows("SELECT count(*) FROM seen").await, "2500");
    });
}

#[test]
fn absent_columns_keep_what_they_hold_through_updates_and_key_changes() {
    in_database(|world| async move {
        let mut a = world.sink(ITEMS).await;
        let plan = plan(&a.sink, "items", ITEM_COLUMNS).await;
        world.run("INSERT INTO items SELECT i, 'a', repeat('big', 100000), i FROM generate_series(1, 2) i").await;
        let ops = ["rekey 1|-|-|- -> 10|-|-|-", "update 10|x|-|-", "update 2|-|-|7", "update 2|-|-|8"];
        a.apply(&[(&plan, net(&plan, &ops))]).await.unwrap();
        assert_eq!(
            world.rows("SELECT id, a, length(big), n FROM items ORDER BY id").await,
            "2|a|300000|8\n10|x|300000|1"
        );
    });
}

#[test]
fn columns_that_are_computed_follow_their_row() {
    let of = |function, columns: &[&str]| Expression::Of {
        function,
        columns: columns.iter().map(|column| (*column).to_owned()).collect(),
    };
    let values = [
        ("full_name", of(Function::Concat { separator: "'-".into() }, &["a", "big", "n"])),
        ("key_text", of(Function::Trim, &["id"])),
        ("low", of(Function::Lower, &["a"])),
        ("region", Expression::Constant("e'u\\".into())),
        ("shown", of(Function::Coalesce, &["big", "id"])),
    ];
    let values = values.map(|(column, expression)| Value { column: column.into(), expression });
    in_database(|world| async move {
        let ddl = "CREATE TABLE t (id int PRIMARY KEY, a text, big text, n numeric(10,2), region varchar(2) NOT NULL, full_name text NOT NULL,
                   key_text varchar, low int, own text DEFAULT 'mine')";
        let mut a = world.sink(ddl).await;
        let target = SinkTable { values: values.into(), ..SinkTable::new("orders", TableName::new("public", "t")) };
        let wanted = WantedTable::of(&relation("t", "id:int4! a:text big:text n:numeric"), &target).unwrap();
        let found = a.sink.preflight(std::slice::from_ref(&wanted)).await.unwrap().halts;
        let told: Vec<String> = found.iter().map(|halt| halt.message.clone()).collect();
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(
            told[0].contains("column n of public.t") && told[1].contains("column low of public.t is int4"),
            "{told:?}"
        );
        assert!(
            told[2].contains("no column shown") && told[3].contains("column region of public.t does not hold"),
            "{told:?}"
        );
        world.run(&found[1].hint).await;
        world.run(&found[2].hint).await;
        world.run("ALTER TABLE t ALTER region TYPE varchar(4), ALTER n TYPE numeric").await;
        let plan = a.sink.plan(std::slice::from_ref(&wanted)).await.unwrap().remove(0);
        let wrong = "SELECT * FROM t WHERE (region, full_name, key_text, low, shown, own) IS DISTINCT FROM
            ($$e'u\\$$, concat_ws($$'-$$, a, big, n), id::text, lower(a), coalesce(big, id::text), 'mine')";
        for ops in [
            &["insert 1|Ab|B|1.0", "insert 2|~|~|2", "insert 3|C|big|~"][..],
            &["update 1|X|-|-", "update 2|-|Now|-", "update 3|-|-|3.50"],
            &["rekey 1|-|-|- -> 11|Y|-|-", "rekey 2|-|-|- -> 12|-|~|-", "delete 3|-|-|-"],
        ] {
            a.apply(&[(&plan, net(&plan, ops))]).await.unwrap();
            assert_eq!(world.rows(wrong).await, "", "{ops:?}");
        }
        let many: Vec<String> = (100..2200).map(|i| format!("insert {i}|N{i}|~|1")).collect();
        insert(&mut a, &plan, &many).await.unwrap();
        let many: Vec<String> = (100..2200).map(|i| format!("update {i}|M{i}|-|-")).collect();
        insert(&mut a, &plan, &many).await.unwrap();
        assert_eq!(world.rows(wrong).await, "");
        // What is read again leaves right rows alone, and makes the others right.
        world.run("UPDATE t SET low = 'wrong' WHERE id = 11").await;
        let versions = "SELECT xmin FROM t WHERE id = 12";
        let before = world.rows(versions).await;
        let range = KeyRange { after: None, through: Some(vec!["99".into()]) };
        assert_eq!(a.replace(&plan, &range, &[row("11|Y|B|1.0"), row("12|~|~|2")]).await.inserted, 1);
        assert_eq!((world.rows(wrong).await, world.rows(versions).await), (String::new(), before));
        assert_eq!(world.rows("SELECT count(*) FROM t").await, "2102");
    });
}

#[test]
fn a_row_that_is_not_where_it_should_be_is_a_divergence() {
    in_database(|world| async move {
        let mut a = world.sink(ITEMS).await;
        let plan = plan(&a.sink, "items", ITEM_COLUMNS).await;
        world.run("INSERT INTO items VALUES (1, 'a', 'b', 1)").await;
        for change in ["update 2|x|-|-", "delete 2|-|-|-", "rekey 2|-|-|- -> 3|-|-|-"] {
            let halt = halt(a.apply(&[(&plan, net(&plan, &["update 1|lost|-|-", change]))]).await.unwrap_err());
            assert_eq!(
                (halt.code, halt.hint.as_str()),
                (Code::SinkDiverged, "lockstep resync public.items"),
                "{change}"
            );
            assert!(halt.message.contains("public.items reached"), "{halt}");
        }
        assert_eq!(world.rows("TABLE items").await, "1|a|b|1", "nothing was written");
    });
}

#[test]
fn a_value_that_does_not_fit_names_its_column_and_stays_secret() {
    in_database(|world| async move {
        let mut a = world.sink(ITEMS).await;
        let plan = plan(&a.sink, "items", ITEM_COLUMNS).await;
        // Changed behind the plan's back.
        world.run("ALTER TABLE items ALTER big TYPE varchar(5), ALTER n TYPE int, ALTER a SET NOT NULL").await;
        world.run("INSERT INTO items SELECT i, 'a' FROM generate_series(1, 3000) i").await;
        let cases = [
            ("update 1|-|secret|-", "big"),
            ("insert 9999|x|secret|-1", "big"),
            ("insert 9999|x|y|77777777777777", "n"),
            ("update 1|~|y|-", "a"),
            ("rekey 1|-|-|- -> 99999999999|-|-|-", "id"),
            ("delete 99999999999|-|-|-", "id"),
        ];
        for (change, column) in cases {
            for others in [0, 2_500] {
                let verb = change.split(' ').next().unwrap();
                let others: Vec<String> = (0..others)
                    .map(|i| match verb {
                        "insert" => format!("insert {}|x|y|1", 10_000 + i),
                        "update" if change.contains('~') => format!("update {}|x|y|-", 2 + i),
                        "update" => format!("update {}|-|y|-", 2 + i),
                        "rekey" => format!("rekey {}|-|-|- -> {}|-|-|-", 2 + i, 20_000 + i),
                        _ => format!("delete {}|-|-|-", 2 + i),
                    })
                    .collect();
                let mut ops: Vec<&str> = others.iter().map(String::as_str).collect();
                ops.push(change);
                let halt = halt(a.apply(&[(&plan, net(&plan, &ops))]).await.unwrap_err());
                assert_eq!(halt.code, Code::ValueRefused, "{change}: {halt}");
                assert_eq!(halt.message, format!("a value does not fit column {column} of public.items"), "{change}");
                let text = halt.to_string();
                assert!(!text.contains("secret") && !text.contains("7777") && !text.contains("9999"), "{text}");
            }
        }
        a.apply(&[(&plan, net(&plan, &["update 1|fine|-|-"]))]).await.unwrap();
    });
}

#[test]
fn identity_arrays_enums_domains_and_json_are_written_as_they_are() {
    in_database(|world| async move {
        let ddl = "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN price AS numeric(10,2) CHECK (value > 0); \
            CREATE TABLE odd (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, m mood, p price, l text[], j json, \
                b bytea, t timestamptz, c char(5), extra text DEFAULT 'kept')";
        let mut a = world.sink(ddl).await;
        let columns = "id:int8! m:public.mood p:public.price l:_text j:json b:bytea t:timestamptz c:bpchar";
        let plan = plan(&a.sink, "odd", columns).await;
        let first = "1|glad|1.50|{a,NULL,\"b c\"}|{\"a\" :1}|\\x00ff|infinity|ab   ";
        let second = "2|sad|7.00|{{1,2},{3,4}}|null|\\x|2026-01-01 00:00:00.000001+00|~";
        a.apply(&[(&plan, net(&plan, &[&format!("insert {first}"), &format!("insert {second}")]))]).await.unwrap();
        let update = second.replace("sad", "glad").replace("{1,2}", "{9,2}");
        a.apply(&[(&plan, net(&plan, &[&format!("update {update}")]))]).await.unwrap();
        assert_eq!(world.rows("TABLE odd ORDER BY id").await, format!("{first}|kept\n{update}|kept"));
        // The chunk says the same: nothing is written again, json or not.
        let counts = a.replace(&plan, &KeyRange::ALL, &[row(first), row(&update)]).await;
        assert_eq!(counts, Counts::default());
    });
}

#[test]
fn several_texts_of_one_key_and_operators_of_extensions() {
    in_database(|world| async move {
        let postgres = session::connect(&database("postgres", &world.name), "it_sink").await.unwrap();
        postgres.batch_execute("CREATE EXTENSION citext SCHEMA public").await.unwrap();
        let ddl = "CREATE TABLE names (k public.citext PRIMARY KEY, v text); \
            CREATE TABLE uses (id int PRIMARY KEY, k public.citext REFERENCES names ON DELETE CASCADE)";
        let mut a = world.sink(ddl).await;
        let plan = plan(&a.sink, "names", "k:public.citext! v:text").await;
        world.run("INSERT INTO names VALUES ('Anna', 'x'); INSERT INTO uses VALUES (1, 'anna')").await;
        a.apply(&[(&plan, net(&plan, &["update anna|y"]))]).await.unwrap();
        assert_eq!(world.rows("TABLE names").await, "Anna|y", "found by citext's own equality");

        // Deletes come last here, so the new text of the same key must not be taken for the old row and deleted with it.
        let ops = ["delete Anna|-", "insert ANNA|z"];
        let clash = a.apply(&[(&plan, net(&plan, &ops))]).await;
        assert!(matches!(clash, Err(Failure::Unique(_))), "{clash:?}");
        let in_order: Vec<(usize, Op)> = ops.iter().map(|text| (0, op(text))).collect();
        a.apply_one_by_one(&[&plan], &in_order).await.unwrap();
        assert_eq!(world.rows("TABLE names").await, "ANNA|z");
    });
}

// ---- Constraints ----

const TREE: &str = "CREATE TABLE parent (id int PRIMARY KEY, v text); \
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ACTION, boss int REFERENCES child)";

#[test]
fn foreign_keys_hold_whatever_they_do_and_rows_that_live_on_survive() {
    for action in ["", "DEFERRABLE", "ON DELETE CASCADE", "ON DELETE SET NULL", "ON DELETE RESTRICT"] {
        in_database(|world| async move {
            let mut a = world.sink(&TREE.replace("ACTION", action)).await;
            let tables = [wanted("child", "id:int4! parent:int4 boss:int4"), wanted("parent", "id:int4! v:text")];
            let plans = a.sink.plan(&tables).await.unwrap();
            let (child, parent) = (&plans[0], &plans[1]);
            a.apply(&[
                (child, net(child, &["insert 1|1|2", "insert 2|2|~", "insert 3|2|1"])),
                (parent, net(parent, &["insert 1|x", "insert 2|x"])),
            ])
            .await
            .unwrap();
            // Child 1 leaves parent 1 for a new one before it goes; 3 goes with 2.
            a.apply(&[
                (parent, net(parent, &["insert 3|x", "delete 1|-", "delete 2|-"])),
                (child, net(child, &["update 1|3|~", "delete 3|-|-", "delete 2|-|-", "insert 4|3|1"])),
            ])
            .await
            .unwrap_or_else(|failure| panic!("{action}: {failure:?}"));
            assert_eq!(world.rows("TABLE child ORDER BY id").await, "1|3|~\n4|3|1", "{action}");
            assert_eq!(world.rows("TABLE parent").await, "3|x", "{action}");
        });
    }
}

#[test]
fn a_row_that_an_action_took_may_be_missing_for_its_delete() {
    in_database(|world| async move {
        let mut a = world.sink(&TREE.replace("ACTION", "ON DELETE CASCADE")).await;
        let tables = [wanted("child", "id:int4! parent:int4 boss:int4"), wanted("parent", "id:int4! v:text")];
        let plans = a.sink.plan(&tables).await.unwrap();
        world.run("INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 1), (2, 1)").await;
        let ops = [(1, op("delete 1|-")), (0, op("delete 1|-|-")), (0, op("delete 2|-|-"))];
        a.apply_one_by_one(&[&plans[0], &plans[1]], &ops).await.unwrap();
        assert_eq!(world.rows("TABLE child").await, "");
    });
}

#[test]
fn a_unique_value_handed_over_is_refused_at_once_and_works_one_by_one() {
    in_database(|world| async move {
        let ddl = "CREATE TABLE skus (id int PRIMARY KEY, sku text CONSTRAINT sku_once UNIQUE)";
        let mut a = world.sink(ddl).await;
        let plan = plan(&a.sink, "skus", "id:int4! sku:text").await;
        world.run("INSERT INTO skus VALUES (1, 'a'), (2, 'b')").await;
        let ops = ["update 1|tmp", "update 2|a", "update 1|b"];
        let refused = a.apply(&[(&plan, net(&plan, &ops))]).await;
        let Err(Failure::Unique(halt)) = refused else { panic!("{refused:?}") };
        assert_eq!(
            halt.to_string(),
            "error[CONSTRAINT_REFUSED]: constraint sku_once of public.skus refuses the changes\n  SQLSTATE 23505\n  \
             help: ALTER TABLE \"public\".\"skus\" DROP CONSTRAINT \"sku_once\", ADD CONSTRAINT \"sku_once\" UNIQUE (sku) DEFERRABLE"
        );
        let in_order: Vec<(usize, Op)> = ops.iter().map(|text| (0, op(text))).collect();
        a.apply_one_by_one(&[&plan], &in_order).await.unwrap();
        assert_eq!(world.rows("TABLE skus ORDER BY id").await, "1|b\n2|a");

        world.run(&halt.hint).await;
        a.apply(&[(&plan, net(&plan, &["update 1|tmp", "update 2|b", "update 1|a"]))]).await.unwrap();
        assert_eq!(world.rows("TABLE skus ORDER BY id").await, "1|a\n2|b", "the hint helps");
        // What is still wrong at the end is found by the commit, and nothing stays.
        let late = a.apply(&[(&plan, net(&plan, &["update 1|b"]))]).await;
        assert!(matches!(late, Err(Failure::Unique(_))), "{late:?}");
        assert_eq!(world.rows("TABLE skus ORDER BY id").await, "1|a\n2|b");
    });
}

#[test]
fn truncate_empties_exactly_the_tables_named() {
    in_database(|world| async move {
        let mut a = world.sink(&TREE.replace("ACTION", "DEFERRABLE")).await;
        let tables = [wanted("child", "id:int4! parent:int4 boss:int4"), wanted("parent", "id:int4! v:text")];
        let plans = a.sink.plan(&tables).await.unwrap();
        let (child, parent) = (&plans[0], &plans[1]);
        world.run("INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 1)").await;
        let halt = halt(a.apply(&[(parent, net(parent, &["truncate"]))]).await.unwrap_err());
        assert_eq!(halt.code, Code::ConstraintRefused, "never CASCADE");
        assert!(halt.hint.contains("truncate = \"delete\""), "{}", halt.hint);
        // Also where checks are pending in the same transaction.
        let to = a.begin().await;
        a.sink.apply(&[(child, net(child, &["insert 2|1|1"]))]).await.unwrap();
        let both = [(parent, net(parent, &["truncate", "insert 7|y"])), (child, net(child, &["truncate"]))];
        a.sink.apply(&both).await.unwrap();
        a.commit(to).await;
        assert_eq!((world.rows("TABLE parent").await, world.rows("TABLE child").await), ("7|y".into(), String::new()));
    });
}

#[test]
fn an_enum_that_lacks_a_label_says_what_to_type() {
    in_database(|world| async move {
        let mut a = world.sink("CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE t (id int PRIMARY KEY, m mood)").await;
        let plan = plan(&a.sink, "t", "id:int4! m:public.mood").await;
        let halt = halt(a.apply(&[(&plan, net(&plan, &["insert 1|new"]))]).await.unwrap_err());
        assert_eq!((halt.code, halt.message.contains("column m")), (Code::ValueRefused, true));
        assert!(halt.hint.starts_with("ALTER TYPE \"public\".\"mood\" ADD VALUE"), "{}", halt.hint);
    });
}

/// A table of the service's own would refuse TRUNCATE even while it is empty.
#[test]
fn a_table_that_others_reference_is_emptied_row_by_row_where_that_is_asked_for() {
    in_database(|world| async move {
        let own = "CREATE TABLE own (id int REFERENCES parent ON DELETE SET NULL)";
        let mut a = world.sink(&format!("{}; {own}", TREE.replace("ACTION", "DEFERRABLE"))).await;
        let by_delete = |table, columns| WantedTable { truncate: Truncate::Delete, ..wanted(table, columns) };
        let tables = [by_delete("child", "id:int4! parent:int4 boss:int4"), by_delete("parent", "id:int4! v:text")];
        let plans = a.sink.plan(&tables).await.unwrap();
        let (child, parent) = (&plans[0], &plans[1]);
        world
            .run("INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1, 1); INSERT INTO own VALUES (1)")
            .await;
        let both =
            [(parent, net(parent, &["truncate", "insert 2|y"])), (child, net(child, &["truncate", "insert 3|2|3"]))];
        a.apply(&both).await.unwrap();
        assert_eq!((world.rows("TABLE parent").await, world.rows("TABLE child").await), ("2|y".into(), "3|2|3".into()));
        assert_eq!(world.rows("SELECT count(*), count(id) FROM own").await, "1|0", "its ON DELETE action was heard");
    });
}

// ---- Ranges ----

#[test]
fn a_range_is_replaced_and_right_rows_are_left_alone() {
    in_database(|world| async move {
        let mut a = world.sink(ITEMS).await;
        let plan = plan(&a.sink, "items", ITEM_COLUMNS).await;
        world.run("INSERT INTO items SELECT i, 'a', 'b', 1.0 FROM generate_series(1, 9) i").await;
        let xmin = "SELECT id, xmin FROM items WHERE id IN (1, 3, 7, 8, 9) ORDER BY id";
        let before = world.rows(xmin).await;
        let range = KeyRange { after: Some(vec!["2".into()]), through: Some(vec!["6".into()]) };
        // 3 is right, 4 differs, 5 differs in its text alone, 6 is a phantom, as are all beyond; 2 is out of the range.
        let counts = a.replace(&plan, &range, &[row("3|a|b|1.0"), row("4|a|x|1.0"), row("5|a|b|1.00")]).await;
        assert_eq!(counts, Counts { inserted: 2, deleted: 1, ..Counts::default() });
        assert_eq!(world.rows(xmin).await, before);
        assert_eq!(
            world.rows("SELECT * FROM items WHERE id BETWEEN 2 AND 7 ORDER BY id").await,
            "2|a|b|1.0\n3|a|b|1.0\n4|a|x|1.0\n5|a|b|1.00\n7|a|b|1.0"
        );
        assert_eq!(a.replace(&plan, &KeyRange::ALL, &[]).await.deleted, 8);
        assert_eq!(world.rows("TABLE items").await, "");
    });
}

#[test]
fn a_range_without_a_row_is_filled_by_copy() {
    in_database(|world| async move {
        let mut a = world.sink(&format!("{ITEMS}; CREATE UNIQUE INDEX items_a ON items (a); {LOGGED}")).await;
        let plan = plan(&a.sink, "items", ITEM_COLUMNS).await;
        world.run("INSERT INTO items VALUES (5, 'five', 'x', 1), (9, 'nine', 'x', 1)").await;
        let range = |after: i32, through: i32| KeyRange {
            after: Some(vec![after.to_string()]),
            through: Some(vec![through.to_string()]),
        };
        // What is there, what comes, how, and what is there then.
        let cases = [
            (range(5, 8), vec!["6|six|~|1", "8|eight|~|1"], Ok((2, 0)), "COPY"),
            (range(5, 8), vec!["6|six|~|1", "7|seven|~|1"], Ok((1, 1)), "INSE"),
            (range(8, 10), vec![], Ok((0, 1)), ""),
            (range(9, 20), vec!["11|seven|~|1"], Err(()), ""),
        ];
        for (range, rows, expected, how) in cases {
            world.run("TRUNCATE log").await;
            let rows: Vec<RowBuf> = rows.into_iter().map(row).collect();
            let to = a.begin().await;
            match a.sink.replace_range(&plan, &range, &rows, &[]).await {
                Ok(counts) => {
                    assert_eq!(Ok((counts.inserted, counts.deleted)), expected, "{range:?}");
                    a.commit(to).await;
                }
                Err(failure) => {
                    assert!(expected.is_err() && matches!(failure, Failure::Unique(_)), "{failure:?}");
                    a.sink.rollback().await.unwrap();
                }
            }
            assert_eq!(world.rows("SELECT * FROM log").await, how, "{range:?}");
        }
        assert_eq!(world.rows("SELECT string_agg(a, ' ' ORDER BY id) FROM items").await, "five six seven");

        a.begin().await;
        let lacking = a.sink.replace_range(&plan, &range(20, 30), &[row("21|-|~|1")], &[]).await.unwrap_err();
        assert_eq!(halt(lacking).code, Code::AbsentBase);
        a.sink.rollback().await.unwrap();
    });
}

#[test]
fn two_ranges_and_a_net_effect_share_a_transaction() {
    in_database(|world| async move {
        let mut a = world.sink("CREATE TABLE t (r text, n int, v text, PRIMARY KEY (n, r))").await;
        let plan = plan(&a.sink, "t", "r:text! n:int4! v:text").await;
        let border = |r: &str, n: &str| Some(vec![r.to_owned(), n.to_owned()]);
        let to = a.begin().await;
        for (range, rows) in [
            (KeyRange { after: None, through: border("b", "5") }, [row("a|9|x"), row("b|5|x")]),
            (KeyRange { after: border("b", "5"), through: None }, [row("b|6|x"), row("Z|1|x")]),
        ] {
            let mut load = a.sink.begin_range(&plan, &range).await.unwrap();
            a.sink.push_range(&mut load, &rows).await.unwrap();
            a.sink.end_range(load, &[]).await.unwrap();
        }
        a.sink.apply(&[(&plan, net(&plan, &["update b|6|y"]))]).await.unwrap();
        a.commit(to).await;
        assert_eq!(world.rows("TABLE t ORDER BY r COLLATE \"C\", n").await, "Z|1|x\na|9|x\nb|5|x\nb|6|y");

        let to = a.begin().await;
        let mut load = a.sink.begin_range(&plan, &KeyRange::ALL).await.unwrap();
        let absent = a.sink.push_range(&mut load, &[row("a|1|-")]).await.unwrap_err();
        assert_eq!(halt(absent).code, Code::AbsentBase);
        drop((load, to));
        a.sink.rollback().await.unwrap();
    });
}

// ---- Preflight ----

#[test]
fn preflight_finds_everything_at_once_and_its_hints_mend_it() {
    in_database(|world| async move {
        world
            .run(
                "CREATE TABLE bad (id int, a varchar(3), gen int GENERATED ALWAYS AS (1) STORED, nn text NOT NULL, \
                     extra int NOT NULL, UNIQUE (id) DEFERRABLE); \
                 CREATE VIEW seen AS SELECT 1 AS id; CREATE UNLOGGED TABLE keyless (id int); \
                 CREATE FUNCTION noop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
                 CREATE TRIGGER fires BEFORE INSERT ON bad FOR EACH ROW EXECUTE FUNCTION noop(); \
                 CREATE TABLE good (id int PRIMARY KEY, a text)",
            )
            .await;
        let sink = world.connect(Uuid::new_v4()).await;
        let mut tables = vec![
            wanted("bad", "id:int8! a:text gen:int4 nn:text lacking:numeric"),
            wanted("none", "id:int4! a:timestamptz"),
            wanted("seen", "id:int4!"),
            wanted("keyless", "id:int4!"),
            wanted("good", "id:int4! a:text"),
        ];
        let found = sink.preflight(&tables).await.unwrap();
        let texts: Vec<String> = found.halts.iter().map(|halt| format!("{} {}", halt.code, halt.message)).collect();
        assert_eq!(
            texts,
            [
                "SINK_TABLE column id of public.bad is int4 at the sink, which is not known to hold every int8 of the source",
                "SINK_TABLE column a of public.bad is varchar(3) at the sink, which is not known to hold every text of the source",
                "SINK_TABLE column gen of public.bad is generated at the sink and can't be written",
                "SINK_TABLE column nn of public.bad is not null at the sink, but may be NULL at the source",
                "SINK_TABLE table public.bad has no column lacking at the sink",
                "SINK_TABLE column extra of public.bad is not null, has no default, and is not written",
                "SINK_TABLE the unique key (\"id\") of public.bad is deferrable, so rows can't be upserted by it",
                "SINK_TABLE table public.none does not exist at the sink",
                "SINK_TABLE public.seen is not a table but a view, foreign table or the like",
                "SINK_TABLE table public.seen has no unique index over the key (\"id\")",
                "SINK_TABLE table public.keyless is unlogged: a crash of the sink would empty it",
                "SINK_TABLE table public.keyless has no unique index over the key (\"id\")",
            ]
        );
        assert_eq!(found.notes, ["triggers of public.bad fire for what is applied: fires"]);
        assert!(matches!(sink.plan(&tables).await, Err(Error::Halt(_))));

        world.run("DROP VIEW seen").await;
        tables.remove(2);
        for halt in sink.preflight(&tables).await.unwrap().halts {
            world.run(&halt.hint).await;
        }
        let left = sink.preflight(&tables).await.unwrap().halts;
        assert!(left.is_empty(), "{left:#?}");
        assert_eq!(sink.plan(&tables).await.unwrap().len(), 4);
    });
}

#[test]
fn missing_rights_are_named_with_their_grants() {
    in_database(|world| async move {
        let postgres = session::connect(&database("postgres", &world.name), "it_sink").await.unwrap();
        let ddl = "CREATE SCHEMA theirs; CREATE TABLE theirs.t (id int PRIMARY KEY); GRANT SELECT ON theirs.t TO lockstep; \
            ALTER TABLE theirs.t ENABLE ROW LEVEL SECURITY";
        postgres.batch_execute(ddl).await.unwrap();
        let sink = world.connect(Uuid::new_v4()).await;
        let table = WantedTable { table: TableName::new("theirs", "t"), ..wanted("t", "id:int4!") };
        let hints: Vec<String> =
            sink.preflight(&[table]).await.unwrap().halts.into_iter().map(|halt| halt.hint).collect();
        assert_eq!(
            hints,
            [
                "GRANT USAGE ON SCHEMA theirs TO \"lockstep\"",
                "GRANT INSERT, UPDATE, DELETE, TRUNCATE ON \"theirs\".\"t\" TO \"lockstep\"",
                "ALTER ROLE \"lockstep\" BYPASSRLS"
            ]
        );
    });
}

// ---- The whole, against SQL row by row ----

/// What a generated change becomes, given which keys are there.
fn possible(there: &[i32], (kind, pick, free, a, big): (u8, usize, i32, Option<u8>, Option<u8>)) -> Option<Op> {
    let text = |value: Option<u8>| match value {
        None => "-".to_owned(),
        Some(0) => "~".to_owned(),
        Some(value) => format!("v{value}\\"),
    };
    let full = |value: Option<u8>| text(Some(value.unwrap_or(0)));
    let taken = || there.get(pick % there.len().max(1)).copied();
    let free = (0..20).map(|i| (free + i) % 20).find(|key| !there.contains(key))?;
    Some(op(&match kind {
        0..=2 => format!("insert {free}|{}|{}|{pick}.0", full(a), full(big)),
        3..=5 => format!("update {}|{}|{}|-", taken()?, text(a), text(big)),
        6..=7 => format!("delete {}|-|-|-", taken()?),
        8..=10 => format!("rekey {}|-|-|- -> {free}|{}|-|-", taken()?, text(a)),
        _ => "truncate".to_owned(),
    }))
}

fn key_of(row: &RowBuf) -> i32 {
    std::str::from_utf8(row.row().get(0).text().unwrap()).unwrap().parse().unwrap()
}

/// The change as one statement on one row of `model`.
fn in_sql(op: &Op) -> String {
    let literal = |cell: Cell<'_>| match cell {
        Cell::Text(text) => format!("'{}'", std::str::from_utf8(text).unwrap().replace('\'', "''")),
        Cell::Null | Cell::Absent => "NULL".to_owned(),
    };
    let names = ["id", "a", "big", "n"];
    let set = |row: &RowBuf| {
        let present = row.row().iter().zip(names).filter(|(cell, _)| !cell.is_absent());
        present.map(|(cell, name)| format!("{name} = {}", literal(cell))).collect::<Vec<_>>().join(", ")
    };
    match op {
        Op::Insert(row) => {
            format!("INSERT INTO model VALUES ({})", row.row().iter().map(literal).collect::<Vec<_>>().join(", "))
        }
        Op::Update(row) => format!("UPDATE model SET {} WHERE id = {}", set(row), key_of(row)),
        Op::Delete(row) => format!("DELETE FROM model WHERE id = {}", key_of(row)),
        Op::Rekey { old, new } => format!("UPDATE model SET {} WHERE id = {}", set(new), key_of(old)),
        Op::Truncate => "TRUNCATE model".to_owned(),
    }
}

fn follow(there: &mut Vec<i32>, op: &Op) {
    let mut leave = |row: &RowBuf| there.retain(|&key| key != key_of(row));
    match op {
        Op::Insert(row) => there.push(key_of(row)),
        Op::Update(_) => {}
        Op::Delete(row) => leave(row),
        Op::Rekey { old, new } => {
            leave(old);
            there.push(key_of(new));
        }
        Op::Truncate => there.clear(),
    }
}

#[test]
fn net_effects_on_a_real_server_equal_the_changes_row_by_row() {
    in_database(|world| async move {
        let mut owned = world.sink(&format!("{ITEMS}; {}", ITEMS.replace("items", "model"))).await;
        let plan = plan(&owned.sink, "items", ITEM_COLUMNS).await;
        let change = (0..12_u8, any::<usize>(), 0..20_i32, prop::option::of(0..4_u8), prop::option::of(0..4_u8));
        let intervals = prop::collection::vec(prop::collection::vec(change, 0..30), 1..6);
        let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
        let owned = std::cell::RefCell::new(&mut owned);
        let handle = tokio::runtime::Handle::current();
        let case = |intervals| {
            handle.block_on(one_case(&world, &mut owned.borrow_mut(), &plan, intervals));
            Ok(())
        };
        tokio::task::block_in_place(|| runner.run(&intervals, case)).unwrap();
    });
}

type RawChange = (u8, usize, i32, Option<u8>, Option<u8>);

/// Starts from empty tables, whatever a failed case before left.
async fn one_case(world: &World, a: &mut Owned, plan: &SinkTablePlan, intervals: Vec<Vec<RawChange>>) {
    a.sink.rollback().await.unwrap();
    a.row = mine(a.sink.take_over(&first()).await.unwrap());
    world.run("TRUNCATE items, model").await;
    let mut there = Vec::new();
    for changes in intervals {
        let (to, mut net) = (a.begin().await, plan.fold());
        for change in changes {
            let Some(op) = possible(&there, change) else { continue };
            follow(&mut there, &op);
            world.run(&in_sql(&op)).await;
            if let Folded::FlushFirst(op) = net.fold(op).unwrap() {
                a.sink.apply(&[(plan, net.drain())]).await.unwrap();
                assert_eq!(net.fold(op).unwrap(), Folded::Done);
            }
        }
        a.sink.apply(&[(plan, net.drain())]).await.unwrap();
        a.commit(to).await;
        let rows = async |table: &str| world.rows(&format!("SELECT * FROM {table} ORDER BY id")).await;
        assert_eq!(rows("items").await, rows("model").await);
    }
}
