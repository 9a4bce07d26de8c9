//! Which of a table's rows are told of: `snapshot` of a connector. A sink that is never told of all is shown as not equal, and one that
//! is told of them later is equal from then on.

mod support;

use support::compare::TablePair;
use support::pipeline::Pipeline;
use support::scene::{Scene, Seen, read_topic, text, wait_text};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

const SCHEMA: &str = "CREATE TABLE public.whole (id int PRIMARY KEY, v text);
CREATE TABLE public.late (id int PRIMARY KEY, v text, big text);
ALTER TABLE public.late ALTER big SET STORAGE EXTERNAL;
CREATE TABLE public.log (id int PRIMARY KEY, v text);
CREATE TABLE public.zone (id int PRIMARY KEY);";

/// Rows that are there, ones that come, and changes of both; in one transaction, so that all is one net effect.
const CHANGES: &str = "BEGIN;
UPDATE late SET v = 'changed' WHERE id IN (1, 2);
DELETE FROM late WHERE id = 3;
INSERT INTO late VALUES (3, 'again', 'x');
UPDATE late SET id = 14 WHERE id = 4;
INSERT INTO late VALUES (4, 'four', 'x'), (20, 'new', repeat('b', 9000));
UPDATE late SET v = 'twice' WHERE id = 20;
UPDATE late SET id = 21 WHERE id = 20;
DELETE FROM late WHERE id = 5;
INSERT INTO log VALUES (9, 'new');
UPDATE whole SET v = 'changed' WHERE id = 1;
COMMIT;";

fn connector(pipeline: Pipeline, mode: &str, on_missing: &str) -> Pipeline {
    pipeline
        .connector("public.late", &format!("snapshot = \"{mode}\"\n[sinks.orders]\non_missing = \"{on_missing}\"\n"))
}

fn is_equal(status: &serde_json::Value, table: &str) -> bool {
    status["tables"][table]["orders"]["equal"] != false
}

fn reads(records: &[Seen]) -> usize {
    records.iter().filter(|seen| seen.value.as_ref().is_some_and(|value| value["op"] == "r")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_never_read_are_never_called_equal_until_they_are() {
    let scene = Scene::bare(LOCKSTEP, "modes", SCHEMA, 1).await;
    scene.sql("INSERT INTO whole SELECT i, 'old' FROM generate_series(1, 9) i").await;
    scene.sql("INSERT INTO late SELECT i, 'old', repeat('a', 9000) FROM generate_series(1, 9) i").await;
    scene.sql("INSERT INTO log VALUES (1, 'old'); INSERT INTO zone SELECT generate_series(1, 9)").await;
    // Of a foreign key that the sink alone has nobody knows which table comes first, but who says it.
    scene.orders().execute("ALTER TABLE whole ADD FOREIGN KEY (id) REFERENCES zone").await.unwrap();
    let log = "insert_only = true\nsnapshot = \"never\"\n[sinks.orders]\n";
    let scene = scene
        .configure(|p| p.connector("public.zone", "snapshot_order = -1\n[sinks.orders]\n"))
        .configure(|p| connector(p.table("public.whole").connector("public.log", log), "never", "skip"))
        .configure(|p| p.set("kafka", "base_interval = \"1s\""));
    let mut process = scene.start().await;
    scene.sql(CHANGES).await;
    scene.streaming(&mut process).await;
    let held = "SELECT string_agg(id || ' ' || v || ' ' || length(big), ', ' ORDER BY id) FROM late";
    assert_eq!(text(scene.orders(), held).await, "3 again 1, 4 four 1, 21 twice 9000");
    assert_eq!(text(scene.orders(), "SELECT string_agg(id::text, ',') FROM log").await, "9");
    assert_eq!(text(scene.orders(), "SELECT count(*) FROM whole WHERE v = 'changed'").await, "1");
    let status = process.status().await.unwrap().0;
    assert!(!is_equal(&status, "public.late") && !is_equal(&status, "public.log") && is_equal(&status, "public.whole"));
    let shown = String::from_utf8(scene.pipeline.command(&["status"]).unwrap().stdout).unwrap();
    assert!(shown.contains("streaming, not equal") && shown.contains("2 other tables streaming"), "{shown}");
    // Two updates, a delete of a row that was made again, one of a row that is gone, and a key change.
    let metrics = process.get("/metrics").await.unwrap();
    assert!(metrics.contains("lockstep_sink_missing_rows_total{sink=\"orders\"} 5"), "{metrics}");
    assert!(metrics.contains("lockstep_sink_tables_not_equal{sink=\"orders\"} 2"), "{metrics}");

    // A change without a trace has nothing read, nor has asking for everything again.
    scene.orders().execute("ALTER TABLE late ADD n int DEFAULT 1; DELETE FROM whole").await.unwrap();
    scene.sql("ALTER TABLE late ADD n int DEFAULT 1").await;
    scene.sql("INSERT INTO late VALUES (30, 'new', 'x', 2)").await;
    assert!(scene.pipeline.command(&["resync", "--all"]).unwrap().status.success());
    wait_text(scene.orders(), "SELECT count(*) FROM whole", "9", &mut process).await;
    scene.streaming(&mut process).await;
    assert_eq!(text(scene.orders(), "SELECT count(*) || ' ' || max(n) FROM late").await, "4 2");
    process.kill9().unwrap();

    // Once the rows are wanted they are read, and the sink is equal; it stays so when they are no longer.
    let scene = scene.configure(|p| connector(p, "initial", "halt"));
    let scene = Scene { tables: vec![TablePair::same("public.late", &["id"])], ..scene };
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    assert!(is_equal(&process.status().await.unwrap().0, "public.late"));
    process.kill9().unwrap();
    let scene = scene.configure(|p| connector(p, "never", "skip"));
    let mut process = scene.start().await;
    scene.sql("UPDATE late SET v = 'after'").await;
    scene.equal(&mut process).await;
    assert!(!is_equal(&process.status().await.unwrap().0, "public.late"), "a lost row would not be noticed");
    assert_eq!(scene.rows_read("public.late"), 11, "the rows that there were, once");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_table_that_is_told_of_once_no_change_is() {
    let scene = Scene::bare(LOCKSTEP, "modes_only", SCHEMA, 0).await;
    scene.sql("INSERT INTO whole SELECT i, 'old' FROM generate_series(1, 9) i").await;
    scene.sql("INSERT INTO late SELECT i, 'old' FROM generate_series(1, 9) i").await;
    let scene = scene.configure(|p| p.connector("public.whole", "snapshot = \"only\"\n"));
    // Debezium's name, where lockstep.toml says what holds for tables that no sink takes.
    let scene = scene.configure(|p| p.connector("public.late", "").set("wire", "snapshot = \"no_data\""));
    let mut process = scene.spawn(&[]);
    let records = |table: &str| read_topic(&scene.services.kafka, &format!("{}.{table}", scene.pipeline.name));
    let patience = support::scene::PATIENCE;
    process.wait_until("the source streams", patience, |s| s.source_state() == "streaming").await.unwrap();
    while reads(&records("public.whole")) < 9 {
        process.ensure_running().unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    scene.sql("UPDATE whole SET v = 'changed'; DELETE FROM whole WHERE id = 1; TRUNCATE whole; INSERT INTO late VALUES (50, 'new')").await;
    while records("public.late").is_empty() {
        process.ensure_running().unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!((records("public.whole").len(), records("public.late").len()), (9, 1));
    assert_eq!(reads(&records("public.late")), 0);
}
