//! What connectors make of their tables' rows: columns left out or under other names, masks, other keys. Sinks equal the source as it is shaped.

mod support;

use support::scene::{PATIENCE, Scene, read_raw, text, wait_text};
use support::{Pipeline, Process};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

async fn scene(hint: &str, source: &str, sink: &str, connector: &str) -> Scene {
    let scene = Scene::bare(LOCKSTEP, hint, source, 1).await;
    scene.orders().execute(&format!("DROP TABLE public.t; {sink}")).await.unwrap();
    scene.configure(|p: Pipeline| p.connector("public.t", connector))
}

/// Waits until the sink holds what the query makes of the source.
async fn shows(scene: &Scene, process: &mut Process, source: &str, sink: &str) {
    let list = |rows: &str| format!("SELECT string_agg(r::text, ' ' ORDER BY r) FROM ({rows}) r");
    let wanted = text(&scene.source, &list(source)).await;
    wait_text(scene.orders(), &list(sink), &wanted, process).await;
    scene.streaming(process).await;
    assert_eq!(text(scene.orders(), &list(sink)).await, wanted);
}

const PEOPLE: &str = "CREATE TABLE public.t (id int PRIMARY KEY, name text, ssn varchar(11), big text, secret text);
    ALTER TABLE t ALTER big SET STORAGE EXTERNAL";
const SHAPED: &str =
    "SELECT id, left(name, 4), left(encode(sha256(convert_to('salty' || ssn, 'UTF8')), 'hex'), 11), big FROM t";

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_equals_the_source_as_it_is_shaped() {
    let sink = "CREATE TABLE public.t (\"the id\" int PRIMARY KEY, name text, ssn varchar(11), bulk text)";
    let renames = "[rename_columns]\nid = \"the id\"\nbig = \"bulk\"\n";
    let masks = "[masks]\nname.truncate = 4\nssn = { hash = \"SHA-256\", salt = \"salty\" }\n[sinks.orders]\n";
    let connector = format!("exclude_columns = [\"secret\"]\n{renames}{masks}");
    let scene = scene("shape", PEOPLE, sink, &connector).await;
    scene.sql("INSERT INTO t SELECT i, 'before ' || i, 'ssn-' || i, repeat('x', 5000), 'canary' FROM generate_series(1, 50) i").await;
    let mut process = scene.start().await;
    scene.sql("INSERT INTO t VALUES (60, NULL, 'canary', NULL, 'canary'), (61, 'canary', NULL, 'y', NULL)").await;
    // An unchanged big value is not sent, and stays.
    scene
        .sql("UPDATE t SET name = 'new', secret = 'canary 2' WHERE id < 10; UPDATE t SET id = 100 WHERE id = 11")
        .await;
    scene.sql("UPDATE t SET secret = 'canary 3' WHERE id = 12; DELETE FROM t WHERE id = 13").await;
    shows(&scene, &mut process, SHAPED, "SELECT * FROM t").await;
    for topic in ["public.t", "ledger"] {
        let topic = format!("{}.{topic}", scene.pipeline.name);
        let records = read_raw(&scene.services.kafka, &topic);
        assert!(!records.is_empty());
        let hidden = |bytes: &[u8]| !bytes.windows(6).any(|window| window == b"canary" || window == b"salty\"");
        for record in records {
            let parts = record.key.iter().chain(&record.value).chain(record.headers.iter().map(|(_, value)| value));
            parts.for_each(|part| assert!(hidden(part), "{topic}: {}", String::from_utf8_lossy(part)));
        }
    }
    // Under another shape the same rows are others: those that nobody touches too.
    drop(process);
    scene.sql("UPDATE t SET name = 'meanwhile' WHERE id = 14").await;
    let columns = "columns = [\"id\", \"ssn\", \"name\", \"big\"]\n";
    let otherwise = format!("{columns}{renames}[masks.ssn]\nchars = 3\n[sinks.orders]\n");
    let scene = scene.configure(|p| p.connector("public.t", &otherwise));
    let mut process = scene.spawn(&[]);
    shows(&scene, &mut process, "SELECT id, name, '***', big FROM t", "SELECT * FROM t").await;
    assert_eq!(scene.log().matches("its connector makes other records of them").count(), 1);
    // The same shape again reads nothing again.
    drop(process);
    let mut process = scene.spawn(&[]);
    scene.sql("INSERT INTO t VALUES (200, 'last')").await;
    shows(&scene, &mut process, "SELECT id, name, '***', big FROM t", "SELECT * FROM t").await;
    assert_eq!(scene.log().matches("its connector makes other records of them").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_hides_columns_that_come_later() {
    let schema = "CREATE TABLE public.t (id int PRIMARY KEY, secret_a text, pin text)";
    let scene = Scene::bare(LOCKSTEP, "shape_later", schema, 0).await;
    let connector = "exclude_columns = [\"*secret*\"]\n[masks.\"pin*\"]\nchars = 3\n";
    let scene = scene.configure(|p: Pipeline| p.connector("public.t", connector));
    scene.sql("INSERT INTO t VALUES (1, 'canary', 'canary')").await;
    let mut process = scene.spawn(&["source"]);
    process.wait_until("streaming", PATIENCE, |status| status.source_state() == "streaming").await.unwrap();
    let topic = format!("{}.public.t", scene.pipeline.name);
    let values = || -> Vec<String> {
        let records = read_raw(&scene.services.kafka, &topic);
        records.into_iter().filter_map(|record| String::from_utf8(record.value?).ok()).collect()
    };
    let until = async |parts: &[&str]| {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !parts.iter().all(|part| values().iter().any(|value| value.contains(part))) {
            assert!(std::time::Instant::now() < deadline, "no {parts:?} in {:?}\n{}", values(), scene.log());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    // With rows in the same transaction, and for those that are there, which the DDL has read again.
    let adding = |n: i32| {
        format!(
            "BEGIN; ALTER TABLE t ADD secret_{n} text DEFAULT 'canary', ADD pin_{n} text DEFAULT 'canary', ADD open_{n} int DEFAULT {n};
             INSERT INTO t (id, secret_a, pin) VALUES (10{n}, 'canary', 'canary'); UPDATE t SET secret_a = 'canary 2'; COMMIT"
        )
    };
    scene.sql(&adding(1)).await;
    until(&[
        r#""after":{"id":101,"pin":"***","pin_1":"***","open_1":1}"#,
        r#""after":{"id":1,"pin":"***","pin_1":"***","open_1":1}"#,
    ])
    .await;
    // While nobody looks, and by another name.
    process.kill9().unwrap();
    scene.sql(&adding(2)).await;
    scene.sql("ALTER TABLE t RENAME pin_2 TO more_secret; INSERT INTO t (id, more_secret) VALUES (7, 'canary')").await;
    let _process = scene.spawn(&["source"]);
    until(&[r#""after":{"id":7,"pin":"***","pin_1":"***","open_1":1,"open_2":2}"#, r#""after":{"id":102,"#]).await;
    for topic in [topic.clone(), format!("{}.ledger", scene.pipeline.name)] {
        for record in read_raw(&scene.services.kafka, &topic) {
            let parts = record.key.iter().chain(&record.value).chain(record.headers.iter().map(|(_, value)| value));
            let shown =
                parts.map(|part| String::from_utf8_lossy(part).into_owned()).find(|part| part.contains("canary"));
            assert_eq!(shown, None, "{topic}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_finds_rows_by_another_key() {
    let source = "CREATE TABLE public.t (id int PRIMARY KEY, sku text NOT NULL UNIQUE, v int); ALTER TABLE t REPLICA IDENTITY FULL";
    let sink = "CREATE TABLE public.t (code text PRIMARY KEY, v int)";
    let connector = "exclude_columns = [\"id\"]\nkey = [\"sku\"]\n[rename_columns]\nsku = \"code\"\n[sinks.orders]\n";
    let scene = scene("shape_key", source, sink, connector).await;
    let scene = scene.configure(|p| p.set("source.snapshot", "chunk_rows = 20"));
    scene.sql("INSERT INTO t SELECT i, 'sku ' || i * 7 % 101, i FROM generate_series(1, 100) i").await;
    let mut process = scene.start().await;
    scene
        .sql("UPDATE t SET v = 0 WHERE id < 10; UPDATE t SET sku = 'moved' WHERE id = 20; DELETE FROM t WHERE id = 30")
        .await;
    // Under its key this is a change of one row's id alone: nothing that the sink has.
    scene.sql("UPDATE t SET id = 1000 WHERE id = 40; INSERT INTO t VALUES (40, 'another', 1)").await;
    shows(&scene, &mut process, "SELECT sku, v FROM t", "SELECT * FROM t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_connector_can_not_ask_of_its_table_is_named() {
    let schema = "CREATE TABLE public.t (id int PRIMARY KEY, name text, n int NOT NULL, u int NOT NULL UNIQUE);
        CREATE TABLE public.full_t (LIKE public.t INCLUDING ALL); ALTER TABLE public.full_t REPLICA IDENTITY FULL";
    let mut scene = Scene::bare(LOCKSTEP, "shape_refused", schema, 1).await;
    for (table, connector, wanted) in [
        (
            "public.t",
            "exclude_columns = [\"nme\"]\n",
            "error[CONNECTOR_COLUMNS]: connector of table public.t: exclude_columns names",
        ),
        (
            "public.t",
            "exclude_columns = [\"secret*\"]\n",
            "exclude_columns names columns secret*, and the table has none that match",
        ),
        ("public.t", "exclude_columns = [\"id\"]\n", "\"id\" is left out, but is of the key"),
        ("public.t", "[masks.n]\nchars = 1\n", "but is int4 and no text"),
        (
            "public.t",
            "key = [\"u\"]\n",
            "error[REPLICA_IDENTITY]: the old row of an UPDATE or DELETE of table public.t lacks column \"u\"",
        ),
        ("public.full_t", "key = [\"name\"]\n", "column \"name\" of the key of table public.full_t may be NULL"),
        (
            "public.full_t",
            "key = [\"n\"]\n",
            "error[TABLE_WITHOUT_KEY]: the key (\"n\") of table public.full_t is not unique",
        ),
    ] {
        let said;
        (scene, said) = checked(scene, table, connector);
        assert!(said.contains(wanted), "{connector}{said}");
    }
    let (_scene, said) = checked(scene, "public.full_t", "key = [\"n\", \"u\"]\n");
    assert!(!said.contains("_KEY]") && !said.contains("REPLICA_IDENTITY"), "{said}");
}

/// What `lockstep check` says where this is the only connector.
fn checked(scene: Scene, table: &str, connector: &str) -> (Scene, String) {
    let text = format!("{connector}[sinks.orders]\n");
    let scene = scene.configure(|p| p.connector_file("only", table, &text));
    scene.pipeline.write().unwrap();
    let output = scene.pipeline.command(&["check"]).unwrap();
    (scene, String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_equals_the_rows_of_a_filter() {
    let table = "CREATE TABLE public.t (id int PRIMARY KEY, kind text, n int, big text)";
    let source = format!("{table}; ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE t ALTER big SET STORAGE EXTERNAL");
    let filter = |condition: &str| format!("where = \"{condition}\"\n[sinks.orders]\n");
    let scene =
        scene("shape_where", &source, table, &filter("kind = 'live' -- the others are nobody's business")).await;
    let scene = scene.configure(|p| p.set("source.snapshot", "chunk_rows = 20"));
    if scene.services.postgres_version < 15 {
        let mut process = scene.spawn(&["source"]);
        assert_eq!(process.wait(PATIENCE).await.unwrap().code(), Some(3));
        assert!(scene.log().contains("SERVER_VERSION"), "{}", scene.log());
        return;
    }
    scene
        .sql("INSERT INTO t SELECT i, CASE i % 3 WHEN 0 THEN 'draft' ELSE 'live' END, i, repeat('x', 5000) FROM generate_series(1, 100) i")
        .await;
    let mut process = scene.start().await;
    // Across the border, both ways, with a big value that is not sent again; keys too.
    scene.sql("UPDATE t SET kind = 'live' WHERE id IN (3, 6); UPDATE t SET kind = 'draft' WHERE id IN (4, 5)").await;
    scene
        .sql("UPDATE t SET id = 1003, kind = 'live' WHERE id = 9; UPDATE t SET id = 1004, kind = 'draft' WHERE id = 10")
        .await;
    scene
        .sql(
            "UPDATE t SET n = 0 WHERE id < 20; DELETE FROM t WHERE id IN (11, 12); INSERT INTO t VALUES (200, 'draft')",
        )
        .await;
    let live = "SELECT * FROM t WHERE kind = 'live'";
    shows(&scene, &mut process, live, "SELECT * FROM t").await;
    let topic = format!("{}.public.t", scene.pipeline.name);
    let draft = |record: &support::scene::Raw| {
        let value = record.value.as_deref().unwrap_or_default();
        value.windows(5).any(|window| window == b"draft")
    };
    assert!(!read_raw(&scene.services.kafka, &topic).iter().any(draft));
    // Somebody else's hand: what is written there is not what was asked for.
    let name = scene.slot();
    scene
        .sql(&format!("ALTER PUBLICATION {name} DROP TABLE t; ALTER PUBLICATION {name} ADD TABLE t WHERE (n > 50)"))
        .await;
    scene.sql("INSERT INTO t VALUES (300, 'live', 1), (301, 'draft', 100)").await;
    shows(&scene, &mut process, live, "SELECT * FROM t").await;
    // Another condition, also for rows that nobody touches.
    drop(process);
    scene.sql("UPDATE t SET n = 1 WHERE id = 3; UPDATE t SET kind = 'draft' WHERE id = 6").await;
    let scene = scene.configure(|p| p.connector("public.t", &filter("n < 30")));
    let mut process = scene.spawn(&[]);
    shows(&scene, &mut process, "SELECT * FROM t WHERE n < 30", "SELECT * FROM t").await;
    drop(process);
    let scene = scene.configure(|p| p.connector("public.t", "[sinks.orders]\n"));
    let mut process = scene.spawn(&[]);
    shows(&scene, &mut process, "SELECT * FROM t", "SELECT * FROM t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_goes_on_where_its_table_loses_its_key() {
    let scene = Scene::bare(LOCKSTEP, "shape_keys", "CREATE TABLE public.t (id int PRIMARY KEY, v text)", 0).await;
    let scene = scene.configure(|p| p.connector("public.t", ""));
    let topic = format!("{}.public.t", scene.pipeline.name);
    let keys = || -> Vec<Option<String>> {
        let text = |key: Option<Vec<u8>>| key.map(|key| String::from_utf8(key).unwrap());
        read_raw(&scene.services.kafka, &topic).into_iter().map(|record| text(record.key)).collect()
    };
    // Before the start, so that it is read once and streamed never.
    scene.sql("INSERT INTO t VALUES (1, 'a')").await;
    let process = scene.spawn(&["source"]);
    let streams = |status: &support::Status| status.source_state() == "streaming";
    let until = async |wanted: &[Option<&str>]| {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !wanted.iter().eq(keys().iter().map(Option::as_deref).collect::<Vec<_>>().iter()) {
            let late = std::time::Instant::now() >= deadline;
            assert!(!late, "{:?}, not {wanted:?}\n{}", keys(), scene.log());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    until(&[Some(r#"{"id":1}"#)]).await;
    scene.sql("ALTER TABLE t DROP CONSTRAINT t_pkey; INSERT INTO t VALUES (2, 'b')").await;
    until(&[Some(r#"{"id":1}"#), None]).await;
    drop(process);
    let mut process = scene.spawn(&["source"]);
    process.wait_until("streaming again", PATIENCE, streams).await.unwrap();
    scene.sql("INSERT INTO t VALUES (3, 'c')").await;
    until(&[Some(r#"{"id":1}"#), None, None]).await;
}
