//! Tables by pattern: what is made while everything runs arrives whole, what goes is followed to its end.

mod support;

use rustix::process::Signal;
use support::scene::{PATIENCE, Scene, text, wait_text};
use support::{Process, Status, TablePair};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

/// A name that needs quotes everywhere: a dot, a quote, a star that is a star, a capital beyond ASCII.
const ODD: &str = r#""Ör.d""er*s""#;
const SUM: &str = "SELECT md5(string_agg(t::text, '|' ORDER BY t.id)) FROM";

fn tenant(name: &str) -> String {
    format!("CREATE SCHEMA {name}; CREATE TABLE {name}.{ODD} (id int PRIMARY KEY, v text)")
}

/// Waits until the sink's table reads like the source's: it may not have been noticed yet.
async fn converge(scene: &Scene, process: &mut Process, table: &str) {
    let sql = format!("{SUM} {table} t");
    wait_text(scene.orders(), &sql, &text(&scene.source, &sql).await, process).await;
}

async fn published(scene: &Scene, tables: &str, process: &mut Process) {
    let sql = "SELECT string_agg(tablename, ',' ORDER BY schemaname, tablename) FROM pg_publication_tables";
    wait_text(&scene.source, sql, tables, process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_later_arrives_whole() {
    let schema = format!("{}; CREATE TABLE public.plain (id int PRIMARY KEY)", tenant("tenant_1"));
    let scene = Scene::bare(LOCKSTEP, "patterns_later", &schema, 1).await;
    for name in ["tenant_2", "tenant_3", "tenant_4"] {
        scene.orders().execute(&tenant(name)).await.unwrap();
    }
    let pattern = format!("tenant_*.{}*", &ODD.replace("s\"", "\""));
    let scene = scene.configure(|p| p.connector_file("tenants", &pattern, "[sinks.orders]\n").table("public.plain"));
    let scene = scene.configure(|p| p.connector_file("shaped", "shaped_*", "columns = ['id', 'v']\n"));
    scene.sql(&format!("INSERT INTO tenant_1.{ODD} SELECT i, 'v' || i FROM generate_series(1, 50) i")).await;
    let mut process = scene.start().await;
    converge(&scene, &mut process, &format!("tenant_1.{ODD}")).await;

    // What an open transaction has written before the table is published is in no stream.
    scene
        .sql(&format!(
            "{}; INSERT INTO tenant_2.{ODD} SELECT i, 'early' FROM generate_series(1, 50) i",
            tenant("tenant_2")
        ))
        .await;
    let older = scene.source.connect().await.unwrap();
    older.batch_execute(&format!("BEGIN; INSERT INTO tenant_2.{ODD} VALUES (100, 'open')")).await.unwrap();
    published(&scene, "plain,Ör.d\"er*s,Ör.d\"er*s", &mut process).await;
    drop(process);
    scene
        .sql(&format!(
            "INSERT INTO tenant_2.{ODD} VALUES (101, 'late'); UPDATE tenant_2.{ODD} SET v = 'changed' WHERE id < 9"
        ))
        .await;
    let mut process = scene.spawn(&[]);
    scene.sql(&format!("INSERT INTO plain VALUES (1); DELETE FROM tenant_2.{ODD} WHERE id = 10")).await;
    older.batch_execute("COMMIT").await.unwrap();
    converge(&scene, &mut process, &format!("tenant_2.{ODD}")).await;

    // One that can't be followed is named, holds up nobody, and is taken in once it can.
    scene.sql(&format!("CREATE SCHEMA tenant_3; CREATE TABLE tenant_3.{ODD} (id int, v text); INSERT INTO tenant_3.{ODD} VALUES (1, 'a')")).await;
    let named =
        |s: &Status| s.0["source"]["waiting_for"].as_str().is_some_and(|what| what.contains("has no primary key"));
    process.wait_until("the table is named", PATIENCE, named).await.unwrap();
    let check = scene.pipeline.command(&["check"]).unwrap();
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success() && said.contains("is left out: table tenant_3."), "{said}");
    scene
        .sql(&format!(
            "ALTER TABLE tenant_3.{ODD} ADD PRIMARY KEY (id); INSERT INTO tenant_1.{ODD} VALUES (900, 'meanwhile')"
        ))
        .await;
    converge(&scene, &mut process, &format!("tenant_3.{ODD}")).await;
    // One that lacks a column which its connector speaks of.
    scene.sql("CREATE TABLE shaped_1 (id int PRIMARY KEY)").await;
    let named = |s: &Status| s.0["source"]["waiting_for"].as_str().is_some_and(|what| what.contains("public.shaped_1"));
    process.wait_until("the table is named", PATIENCE, named).await.unwrap();
    scene.sql("ALTER TABLE shaped_1 ADD COLUMN v text").await;
    let taken = |s: &Status| !s.0["tables"]["public.shaped_1"].is_null();
    process.wait_until("the table is taken in", PATIENCE, taken).await.unwrap();

    // One that somebody holds locked is waited for by nobody.
    scene.sql(&tenant("hidden")).await;
    let holder = scene.source.connect().await.unwrap();
    holder.batch_execute(&format!("BEGIN; LOCK TABLE hidden.{ODD} IN SHARE MODE")).await.unwrap();
    scene.sql("ALTER SCHEMA hidden RENAME TO tenant_4").await;
    let locked = |s: &Status| s.0["source"]["waiting_for"].as_str().is_some_and(|what| what.contains("locked"));
    process.wait_until("the lock is named", PATIENCE, locked).await.unwrap();
    scene.sql(&format!("INSERT INTO tenant_1.{ODD} VALUES (901, 'meanwhile')")).await;
    converge(&scene, &mut process, &format!("tenant_1.{ODD}")).await;
    holder.batch_execute(&format!("INSERT INTO tenant_4.{ODD} VALUES (1, 'a'); COMMIT")).await.unwrap();
    converge(&scene, &mut process, &format!("tenant_4.{ODD}")).await;
    let tables = ["tenant_1", "tenant_2", "tenant_3", "tenant_4"]
        .map(|schema| TablePair::same(&format!("{schema}.{ODD}"), &["id"]));
    let scene =
        Scene { tables: tables.into_iter().chain([TablePair::same("public.plain", &["id"])]).collect(), ..scene };
    scene.equal(&mut process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_renamed_or_dropped_are_followed_to_their_ends() {
    let items = |name: &str| format!("CREATE TABLE public.{name} (id int PRIMARY KEY, v text);");
    let scene = Scene::bare(LOCKSTEP, "patterns_gone", &format!("{}{}", items("items_a"), items("items_z")), 1).await;
    scene.orders().execute(&format!("{}{}", items("items_b"), items("items_c"))).await.unwrap();
    let scene = scene.configure(|p| p.connector_file("items", "items_*", "[sinks.orders]\n"));
    scene.sql("INSERT INTO items_a SELECT i, 'a' FROM generate_series(1, 50) i").await;
    let mut process = scene.start().await;
    converge(&scene, &mut process, "items_a").await;

    // Each row belongs to the name that its table had then.
    scene
        .sql(
            "INSERT INTO items_a VALUES (100, 'before');
             BEGIN; UPDATE items_a SET v = 'same transaction' WHERE id = 1; ALTER TABLE items_a RENAME TO items_b;
             INSERT INTO items_b VALUES (101, 'after'); DELETE FROM items_b WHERE id = 2; COMMIT",
        )
        .await;
    converge(&scene, &mut process, "items_b").await;
    let has = |sql: &'static str| text(scene.orders(), sql);
    wait_text(scene.orders(), "SELECT v FROM items_a WHERE id = 1", "same transaction", &mut process).await;
    let left = "SELECT count(*) || ' ' || max(id) FROM items_a";
    assert_eq!(has(left).await, "51 100", "what was renamed stays as it was");

    // Dropped with a reader that has yet to read what came before.
    drop(process);
    scene.sql("INSERT INTO items_b VALUES (102, 'last'); INSERT INTO items_z VALUES (1, 'z')").await;
    scene.sql("DROP TABLE items_b; INSERT INTO items_z VALUES (2, 'z')").await;
    let mut process = scene.spawn(&[]);
    converge(&scene, &mut process, "items_z").await;
    wait_text(scene.orders(), "SELECT v FROM items_b WHERE id = 102", "last", &mut process).await;
    let gone = |s: &Status| s.0["tables"]["public.items_b"].is_null();
    process.wait_until("the table is let go of", PATIENCE, gone).await.unwrap();

    // Dropped while its rows are waited for: nobody waits on.
    let older = scene.source.connect().await.unwrap();
    older.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    scene.sql(&format!("{} INSERT INTO items_c VALUES (1, 'c')", items("items_c"))).await;
    let loading = |s: &Status| s.0["tables"]["public.items_c"]["orders"]["phase"] == "snapshot";
    process.wait_until("the load", PATIENCE, loading).await.unwrap();
    scene.sql("DROP TABLE items_c; INSERT INTO items_z VALUES (3, 'z')").await;
    let gone = |s: &Status| s.0["tables"]["public.items_c"].is_null() && s.all_streaming();
    process.wait_until("the table is let go of", PATIENCE, gone).await.unwrap();
    older.batch_execute("COMMIT").await.unwrap();

    // And made again it is another table.
    scene.sql(&format!("{} INSERT INTO items_b VALUES (7, 'new')", items("items_b"))).await;
    converge(&scene, &mut process, "items_b").await;
    let tables = ["items_b", "items_z"].map(|table| TablePair::same(&format!("public.{table}"), &["id"]));
    let scene = Scene { tables: tables.into(), ..scene };
    scene.equal(&mut process).await;

    // Under a name that no pattern means, somebody must say what is meant.
    scene.sql("ALTER TABLE items_b RENAME TO other").await;
    let halted = |s: &Status| s.halt_code(None) == Some("RELATION_CHANGED");
    let status = process.wait_until("the halt", PATIENCE, halted).await.unwrap();
    assert_eq!(status.0["source"]["halt"]["hint"], "ALTER TABLE \"public\".\"other\" RENAME TO \"items_b\"");
    drop(process);
    scene.sql("ALTER TABLE other RENAME TO items_b; INSERT INTO items_b VALUES (8, 'back')").await;
    let mut process = scene.spawn(&[]);
    scene.equal(&mut process).await;
    // Whoever asks for a table by its name knows it too.
    scene.orders().execute("DELETE FROM items_b WHERE id = 8").await.unwrap();
    let resync = scene.pipeline.command(&["resync", "public.items_b"]).unwrap();
    assert!(resync.status.success(), "{}", String::from_utf8_lossy(&resync.stderr));
    converge(&scene, &mut process, "items_b").await;
}

/// What becomes of a table is asked of the catalog, not of who happens to read its rows.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_go_in_the_middle_of_their_load() {
    let table = |name: &str| {
        format!(
            "CREATE TABLE public.{name} (id int PRIMARY KEY, v text); INSERT INTO {name} SELECT i, 'v' FROM generate_series(1, 1500) i;"
        )
    };
    let scene = Scene::bare(LOCKSTEP, "patterns_midway", "", 1).await;
    for database in [&scene.source, scene.orders()] {
        database.execute(&["items_a", "named"].map(table).concat()).await.unwrap();
    }
    scene.orders().execute("TRUNCATE items_a, named").await.unwrap();
    let scene = scene.configure(|p| {
        let p = p.connector_file("items", "items_*", "[sinks.orders]\n").table("public.named");
        p.set("source.snapshot", "rows_per_second = 400\nchunk_rows = 50")
    });
    let scene = Scene { tables: vec![TablePair::same("public.named", &["id"])], ..scene };
    let mut process = scene.spawn(&[]);
    let midway = async |process: &mut Process, table: &str| {
        let read = |_: &Status| (100..1400).contains(&scene.rows_read(table));
        process.wait_until("some rows are read", PATIENCE, read).await.unwrap();
    };
    midway(&mut process, "public.items_a").await;
    scene.sql("DROP TABLE items_a").await;
    midway(&mut process, "public.named").await;
    scene
        .sql(&format!("BEGIN; DROP TABLE named; {} UPDATE named SET v = 'of the new one'; COMMIT", table("named")))
        .await;
    converge(&scene, &mut process, "named").await;
    scene.equal(&mut process).await;
    let gone = |s: &Status| s.0["tables"]["public.items_a"].is_null();
    process.wait_until("the table is let go of", PATIENCE, gone).await.unwrap();

    let ask = scene.pipeline.command(&["resync", "public.named"]).unwrap();
    assert!(ask.status.success(), "{}", String::from_utf8_lossy(&ask.stderr));
    scene.sql("DROP TABLE named").await;
    let halted = |s: &Status| s.halt_code(None) == Some("TABLE_MISSING");
    process.wait_until("the halt", PATIENCE, halted).await.unwrap();
}

/// What a standby read of the catalog is as old as its waiting. Its list would tell sinks that newer tables are gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_learns_of_tables_that_came_while_it_waited() {
    let items = |name: &str| format!("CREATE TABLE public.{name} (id int PRIMARY KEY, v text);");
    let scene = Scene::bare(LOCKSTEP, "patterns_standby", &items("items_a"), 1).await;
    scene.orders().execute(&items("items_b")).await.unwrap();
    let scene = scene.configure(|p| p.several().connector_file("items", "items_*", "[sinks.orders]\n"));
    let (source, mut sink) = (scene.spawn(&["source"]), scene.spawn(&["sink:orders"]));
    sink.wait_until("the sink works", PATIENCE, |s| s.sink_state("orders") == "streaming").await.unwrap();
    let mut standby = scene.spawn(&["source"]);
    standby.wait_until("a standby", PATIENCE, |s| s.source_state() == "standby").await.unwrap();
    standby.signal(Signal::STOP).unwrap();
    scene.sql(&format!("{} INSERT INTO items_b VALUES (1, 'b')", items("items_b"))).await;
    converge(&scene, &mut sink, "items_b").await;
    drop(source);
    scene.sql("UPDATE items_b SET v = 'changed'; INSERT INTO items_b VALUES (2, 'later')").await;
    standby.signal(Signal::CONT).unwrap();
    let tables = ["items_a", "items_b"].map(|table| TablePair::same(&format!("public.{table}"), &["id"]));
    let scene = Scene { tables: tables.into(), ..scene };
    converge(&scene, &mut sink, "items_b").await;
    scene.equal(&mut sink).await;
    assert!(!scene.log().contains("gone at the source"), "{}", scene.log());
}
