//! Rows of an outbox go into topics that nobody knew before: made before their first record, counted in checkpoints, known to the
//! ledger like any other, and never somebody else's.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lockstep::lsn::Lsn;
use serde_json::Value;
use support::scene::{PATIENCE, Scene, read_raw, read_topic, text};
use support::{Pipeline, Process};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const POLL: Duration = Duration::from_millis(50);
const SCHEMA: &str =
    "CREATE TABLE public.outbox (id int PRIMARY KEY, aggregatetype text, aggregateid text, payload jsonb)";

/// Waits until everything that is committed now is in the ledger.
async fn caught_up(scene: &Scene, process: &mut Process) {
    let lsn: Lsn = text(&scene.source, "SELECT pg_current_wal_lsn()").await.parse().unwrap();
    scene.sql("SELECT pg_logical_emit_message(true, 'lockstep test', '')").await;
    let reached = |status: &support::Status| {
        status.0["source"]["position"].as_str().is_some_and(|at| at.parse::<Lsn>().unwrap() >= lsn)
    };
    process.wait_until("catching up", PATIENCE, reached).await.unwrap();
}

/// The ledger's entries.
fn ledger(scene: &Scene) -> Vec<Value> {
    let output = scene.pipeline.command(&["ledger", "--json"]).unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["entry"].clone()).collect()
}

/// Halts with the code; the source alone runs.
async fn refused(mut process: Process, scene: &Scene, code: &str) {
    let status = process.wait(PATIENCE).await.unwrap();
    assert_eq!(status.code(), Some(3), "{}", scene.log());
    assert!(scene.log().contains(&format!("\"code\":\"{code}\"")), "no {code} in the log:\n{}", scene.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_into_topics_that_the_ledger_knows() {
    let scene = Scene::bare(LOCKSTEP, "outbox", SCHEMA, 0).await;
    let scene = scene.configure(|p: Pipeline| p.connector("public.outbox", "[outbox]\n"));
    let topic = |route: &str| format!("{}.event.{route}", scene.pipeline.name);
    let keys = |route: &str| {
        let records = read_topic(&scene.services.kafka, &topic(route));
        records.into_iter().map(|record| record.key.unwrap()).collect::<Vec<_>>()
    };
    scene.sql("INSERT INTO outbox VALUES (1, 'Order', 'loaded', '{}')").await;
    let mut process = scene.spawn(&["source"]);
    process.wait_until("streaming", PATIENCE, |status| status.source_state() == "streaming").await.unwrap();
    scene.sql("INSERT INTO outbox VALUES (2, 'Order', 'a', '{}'), (3, 'Customer', 'b', NULL)").await;
    scene.sql("UPDATE outbox SET payload = '[]' WHERE id = 2; DELETE FROM outbox").await;
    caught_up(&scene, &mut process).await;
    process.kill9().unwrap();

    let mut process = scene.spawn(&["source"]);
    scene.sql("INSERT INTO outbox VALUES (4, 'Order', 'c', '{}'), (5, 'a.b', 'd', '{}')").await;
    caught_up(&scene, &mut process).await;
    // A stop takes along what was read, also into a topic that is new.
    scene.sql("INSERT INTO outbox VALUES (6, 'late', 'e', '{}')").await;
    process.terminate(PATIENCE).await.unwrap();
    let mut process = scene.spawn(&["source"]);
    caught_up(&scene, &mut process).await;
    assert_eq!(keys("Order").last().unwrap(), "\"c\"");
    assert_eq!((keys("Customer"), keys("a.b")), (vec!["\"b\"".to_owned()], vec!["\"d\"".to_owned()]));

    // Each record is counted, and a base knows the topic before a checkpoint counts the first of them.
    let (mut counted, mut known) = (BTreeMap::new(), BTreeSet::new());
    for entry in ledger(&scene) {
        if entry["type"] == "base" {
            known.extend(entry["topics"].as_object().unwrap().keys().cloned());
        }
        for span in entry["spans"].as_array().into_iter().flatten() {
            let name = span["topic"].as_str().unwrap().to_owned();
            assert!(known.contains(&name), "{name} is counted before a base knows it");
            *counted.entry(name).or_insert(0) += span["count"].as_u64().unwrap();
        }
    }
    // A stop that came between an event and its COMMIT leaves a record that no checkpoint counts; it is written again.
    assert_eq!(counted.remove(&topic("late")), Some(1));
    assert!(keys("late").iter().all(|key| key == "\"e\""));
    let records = ["Order", "Customer", "a.b"].map(|route| (topic(route), keys(route).len() as u64));
    assert_eq!(counted, BTreeMap::from(records));

    // What DDL does to its rows has nobody told of an event again.
    let told = keys("Order");
    scene.sql("ALTER TABLE outbox ADD COLUMN more int DEFAULT 1").await;
    let deadline = Instant::now() + PATIENCE;
    while !scene.log().contains("an outbox is not read again") {
        assert!(Instant::now() < deadline, "{}", scene.log());
        tokio::time::sleep(POLL).await;
    }
    caught_up(&scene, &mut process).await;
    assert_eq!(keys("Order"), told);

    scene.sql("INSERT INTO outbox VALUES (7, 'a_b', 'd', '{}')").await;
    refused(process, &scene, "TOPIC_REFUSED").await;

    support::pipeline::delete_topics(&scene.services.kafka, &topic("Customer")).await.unwrap();
    refused(scene.spawn(&["source"]), &scene, "TOPIC_MISSING").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_says_where_and_when_its_record_is() {
    let schema = SCHEMA.replace(')', ", at timestamptz, part smallint)");
    let scene = Scene::bare(LOCKSTEP, "outbox_placed", &schema, 0).await;
    let connector = "partitions = 3\n[outbox]\ntimestamp_field = \"at\"\nadditional_placement = [\"part:partition\"]\n";
    let scene = scene.configure(|p: Pipeline| p.connector("public.outbox", connector));
    let before = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    // One of before and one of far behind the clock, in partitions that no key of theirs has.
    scene.sql("INSERT INTO outbox VALUES (1, 'Order', 'a', '{}', '2001-09-09 01:46:40.007Z', 2)").await;
    let mut process = scene.spawn(&["source"]);
    process.wait_until("streaming", PATIENCE, |status| status.source_state() == "streaming").await.unwrap();
    scene.sql("INSERT INTO outbox VALUES (2, 'Order', 'a', '{}', '2002-01-01 00:00Z', 0), (3, 'Order', 'a', '{}', NULL, NULL)").await;
    caught_up(&scene, &mut process).await;
    let deadline = Instant::now() + PATIENCE;
    while !scene.log().contains("existing rows loaded") {
        assert!(Instant::now() < deadline, "{}", scene.log());
        tokio::time::sleep(POLL).await;
    }

    let topic = format!("{}.event.Order", scene.pipeline.name);
    let seen: Vec<(String, i32, i64)> = read_raw(&scene.services.kafka, &topic)
        .into_iter()
        .map(|raw| {
            let id = raw.headers.iter().find(|(name, _)| name == "id").unwrap().1.clone();
            (String::from_utf8(id).unwrap(), raw.partition, raw.timestamp_ms.unwrap())
        })
        .collect();
    let of =
        |id: &str| seen.iter().find(|(found, ..)| found == id).map(|(_, partition, at)| (*partition, *at)).unwrap();
    assert_eq!(of("1"), (2, 1_000_000_000_007));
    assert_eq!(of("2"), (0, 1_009_843_200_000));
    let (_, read_at) = of("3");
    assert!(read_at >= before, "without a time it is that of reading: {read_at}");

    // Nowhere is not somewhere else.
    scene.sql("INSERT INTO outbox VALUES (4, 'Order', 'a', '{}', NULL, 3)").await;
    refused(process, &scene, "RECORD_INVALID").await;
    assert!(scene.log().contains("an event for partition 3, which its topic does not have"), "{}", scene.log());
}
