//! What a sink takes and whether its tables can hold it: other columns and tables in a connector, types that are not the
//! source's own, and what is done at the source to what a type is made of.

mod support;

use support::scene::{PATIENCE, Scene, halted, text, wait_text};
use support::{Pipeline, Process};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

/// Starts with another connector of `public.t` and waits until the sinks stream.
async fn restarted(scene: Scene, mut process: Process, connector: &str) -> (Scene, Process) {
    process.terminate(PATIENCE).await.unwrap();
    let scene = scene.configure(|p: Pipeline| p.connector("public.t", connector));
    log_goes_on(&scene).await;
    let process = scene.start().await;
    (scene, process)
}

/// What the process before has told of is behind what the next one is waited for.
async fn log_goes_on(scene: &Scene) {
    scene.sql("SELECT pg_logical_emit_message(true, 'test', '')").await;
}

/// All rows of a query as one text.
async fn rows(database: &support::Database, query: &str) -> String {
    text(database, &format!("SELECT string_agg(r::text, ' ' ORDER BY r) FROM ({query}) r")).await
}

/// The rows that nobody touches are what tells: changes come with the new columns anyway.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_sink_takes_in_another_way_is_read_again() {
    let schema = "CREATE TABLE public.t (id int PRIMARY KEY, a text, b text); CREATE TABLE public.o (LIKE public.t INCLUDING ALL)";
    let scene = Scene::bare(LOCKSTEP, "fit_taken", schema, 2).await;
    let some = |columns: &str| format!("[sinks.inventory]\n[sinks.orders]\ncolumns = [{columns}]\n");
    let scene = scene.configure(|p| p.connector("public.t", &some("'id', 'a'")));
    scene.sql("INSERT INTO t SELECT i, 'a' || i, 'b' || i FROM generate_series(1, 30) i").await;
    let process = scene.start().await;
    let versions = "SELECT id, xmin FROM t";
    let untouched = rows(&scene.sinks[1].1, versions).await;
    assert_eq!(rows(scene.orders(), "SELECT DISTINCT b FROM t").await, "()");

    // One more, with a backlog from before.
    scene.sql("UPDATE t SET a = 'new' WHERE id = 1").await;
    let (scene, process) = restarted(scene, process, &some("'b', 'id', 'a'")).await;
    assert_eq!(rows(scene.orders(), "TABLE t").await, rows(&scene.source, "TABLE t").await);
    // One less, which stays as it is until it is taken again.
    let (scene, process) = restarted(scene, process, &some("'id', 'b'")).await;
    scene.sql("UPDATE t SET a = 'unseen' WHERE id = 2").await;
    let mut process = process;
    scene.streaming(&mut process).await;
    assert_eq!(text(scene.orders(), "SELECT a FROM t WHERE id = 2").await, "a2");
    let (scene, process) = restarted(scene, process, "[sinks.inventory]\n[sinks.orders]\n").await;
    assert_eq!(rows(scene.orders(), "TABLE t").await, rows(&scene.source, "TABLE t").await);

    // Another table there; the one before stays as it is.
    let other = "[sinks.inventory]\n[sinks.orders]\ntable = 'public.o'\n";
    let (scene, mut process) = restarted(scene, process, other).await;
    assert_eq!(rows(scene.orders(), "TABLE o").await, rows(&scene.source, "TABLE t").await);
    scene.sql("UPDATE t SET a = 'last' WHERE id = 3; DELETE FROM t WHERE id = 4").await;
    scene.streaming(&mut process).await;
    assert_eq!(rows(scene.orders(), "TABLE o").await, rows(&scene.source, "TABLE t").await);
    assert_eq!(text(scene.orders(), "SELECT count(*) || max(a) FILTER (WHERE id = 3) FROM t").await, "30a3");

    // The other sink was asked for nothing, and the same connector asks for nothing.
    let loads = || scene.log().matches("loading existing rows").count();
    let before = loads();
    let moved = "id NOT IN (1, 2, 3, 4)";
    let still = |versions: &str| format!("{versions} WHERE {moved}");
    process.terminate(PATIENCE).await.unwrap();
    log_goes_on(&scene).await;
    let mut process = scene.start().await;
    assert_eq!(loads(), before);
    let now = rows(&scene.sinks[1].1, &still(versions)).await;
    assert!(now.split(' ').all(|row| untouched.contains(row)), "{now}\n{untouched}");
    process.terminate(PATIENCE).await.unwrap();
}

/// Rows from before the column are still on their way when the connector names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_was_just_made_may_be_taken_at_once() {
    let scene = Scene::bare(LOCKSTEP, "fit_new", "CREATE TABLE public.t (id int PRIMARY KEY, a text)", 1).await;
    let scene = scene.configure(|p| p.connector("public.t", "[sinks.orders]\ncolumns = ['id', 'a']\n"));
    scene.sql("INSERT INTO t VALUES (1, 'a')").await;
    let mut process = scene.start().await;
    process.terminate(PATIENCE).await.unwrap();
    scene
        .sql("INSERT INTO t VALUES (2, 'b'); ALTER TABLE t ADD b int DEFAULT 7; UPDATE t SET a = 'c' WHERE id = 1")
        .await;
    scene.orders().execute("ALTER TABLE t ADD b int").await.unwrap();
    let scene = scene.configure(|p| p.connector("public.t", "[sinks.orders]\ncolumns = ['id', 'a', 'b']\n"));
    let mut process = scene.start().await;
    assert_eq!(rows(scene.orders(), "TABLE t").await, "(1,c,7) (2,b,7)");
    process.terminate(PATIENCE).await.unwrap();
    // One that the table does not have is still told of.
    let scene = scene.configure(|p| p.connector("public.t", "[sinks.orders]\ncolumns = ['id', 'nme']\n"));
    let mut process = scene.spawn(&[]);
    let (message, _) = halted(&mut process, "CONFIG").await;
    assert!(message.contains("no column nme"), "{message}");
    wait_text(scene.orders(), "SELECT count(*) FROM t", "2", &mut process).await;
}

/// Made on both sides; what the sink's own types are made of comes from its owner.
const TYPES: &str = r#"CREATE SCHEMA "od d.S"; CREATE TYPE "od d.S"."mo.od" AS ENUM ('a.b', 'c');
CREATE TYPE public.mood AS ENUM ('sad', 'glad'); CREATE DOMAIN public.code AS varchar(5);
CREATE DOMAIN public.price AS numeric(10,2);
CREATE TABLE public.t (k "od d.S"."mo.od" PRIMARY KEY, p price, ps price[], c code, m mood, a text[])"#;

#[tokio::test(flavor = "multi_thread")]
async fn types_are_compared_by_what_they_are_made_of() {
    let scene = Scene::bare(LOCKSTEP, "fit_types", TYPES, 1).await;
    let own = "DROP TABLE t; DROP DOMAIN code; DROP DOMAIN price; CREATE DOMAIN price AS numeric(8,1);
        CREATE TABLE t (k \"od d.S\".\"mo.od\" PRIMARY KEY, p price, ps numeric(10,2)[], c varchar(5), m mood, a text[]);
        CREATE TABLE own (k \"od d.S\".\"mo.od\" REFERENCES t ON DELETE SET NULL)";
    scene.orders().execute(own).await.unwrap();
    let odd = format!("ALTER DATABASE {} SET array_nulls = off", scene.orders().name);
    scene.orders().execute(&odd).await.unwrap();
    let follow = "[sinks.orders]\nevolve = 'add'\ntruncate = 'delete'\n";
    let scene = scene.configure(|p| p.connector("public.t", follow));
    scene.sql("INSERT INTO t VALUES ('a.b', 1.25, '{1.25,NULL}', 'abc', 'sad', '{a,NULL}')").await;
    // A domain of the same name that would round.
    let mut process = scene.spawn(&[]);
    let (message, hint) = halted(&mut process, "SINK_TABLE").await;
    assert!(message.contains("column p of") && hint.ends_with("TYPE numeric(10,2)"), "{message} {hint}");
    process.terminate(PATIENCE).await.unwrap();
    scene.orders().execute(&hint).await.unwrap();
    let mut process = scene.start().await;
    let equal = async |scene: &Scene, process: &mut Process| {
        scene.streaming(process).await;
        assert_eq!(rows(scene.orders(), "TABLE t").await, rows(&scene.source, "TABLE t").await);
    };
    equal(&scene, &mut process).await;
    scene.sql("INSERT INTO t VALUES ('c', 2.25, '{2.25,NULL}', 'cde', 'glad', '{NULL,null}')").await;
    equal(&scene, &mut process).await;
    // A column of a type with a dot in its name, and an enum with the same labels under another one.
    scene.sql("ALTER TYPE mood RENAME TO humour; ALTER TABLE t ADD o \"od d.S\".\"mo.od\" DEFAULT 'a.b'").await;
    scene.sql("UPDATE t SET m = 'sad', o = 'c' WHERE k = 'c'").await;
    wait_text(
        scene.orders(),
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'o'",
        "1",
        &mut process,
    )
    .await;
    equal(&scene, &mut process).await;
    // A table of the sink's own references this one.
    scene.orders().execute("INSERT INTO own VALUES ('c')").await.unwrap();
    scene.sql("TRUNCATE t; INSERT INTO t (k, p) VALUES ('a.b', 3)").await;
    equal(&scene, &mut process).await;
    // Labels come with the first row that has one.
    scene.sql("ALTER TYPE humour ADD VALUE 'new' BEFORE 'sad'; ALTER TYPE humour ADD VALUE 'very' AFTER 'sad'").await;
    scene.sql("UPDATE t SET m = 'new'; INSERT INTO t (k, m) VALUES ('c', 'very')").await;
    equal(&scene, &mut process).await;
    assert_eq!(text(scene.orders(), "SELECT enum_range(NULL::mood)").await, "{new,sad,very,glad}");
}

/// What its connector hides may be the service's own by now; what the source drops goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_only_hidden_is_not_dropped() {
    let scene =
        Scene::bare(LOCKSTEP, "fit_hidden", "CREATE TABLE public.t (id int PRIMARY KEY, a text, b text)", 1).await;
    let follow = "[sinks.orders]\nevolve = 'full'\n";
    let scene = scene.configure(|p| p.connector("public.t", follow));
    scene.sql("INSERT INTO t VALUES (1, 'a', 'b')").await;
    let process = scene.start().await;
    let (scene, mut process) = restarted(scene, process, &format!("exclude_columns = ['a']\n{follow}")).await;
    scene.sql("INSERT INTO t VALUES (2, 'hidden', 'shown'); UPDATE t SET b = 'c' WHERE id = 1").await;
    scene.streaming(&mut process).await;
    assert_eq!(rows(scene.orders(), "SELECT id, a, b FROM t").await, "(1,a,c) (2,,shown)");
    scene.sql("ALTER TABLE t DROP b; UPDATE t SET a = 'x' WHERE id = 1; INSERT INTO t VALUES (3)").await;
    scene.streaming(&mut process).await;
    assert_eq!(rows(scene.orders(), "TABLE t").await, "(1,a) (2,) (3,)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_at_partitions_leaves_the_session_as_it_was() {
    let scene = Scene::bare(LOCKSTEP, "fit_session", "CREATE TABLE public.t (id int)", 0).await;
    let client = scene.source.connect().await.unwrap();
    client.batch_execute("SET lock_timeout = '0'").await.unwrap();
    let oid: u32 = client.query_one("SELECT 't'::regclass::oid", &[]).await.unwrap().get(0);
    assert!(lockstep::postgres::look::are_empty(&client, &[oid]).await.unwrap());
    let left: String = client.query_one("SHOW lock_timeout", &[]).await.unwrap().get(0);
    assert_eq!(left, "0");
}
