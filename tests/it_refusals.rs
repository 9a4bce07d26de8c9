//! What breaks the promise, or would, is refused by name: a code, what was found, what to type; the sink untouched, the slot
//! where it was, exit code 3 where nothing can move any more.

mod support;

use std::time::Duration;

use lockstep::postgres::stream::Start;
use lockstep::postgres::wire::Connection;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigEntry, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;
use support::scene::{PATIENCE, Scene, text};
use support::{Pipeline, Process};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const KAFKA_TIMEOUT: Duration = Duration::from_secs(15);
const ITEMS: &str = "CREATE TABLE public.items (id int PRIMARY KEY, v text, n int)";

/// A pipeline that has streamed ten rows and was stopped in order.
async fn settled(hint: &str) -> Scene {
    let scene = Scene::new(LOCKSTEP, hint, ITEMS, &[("public.items", &["id"])]).await.configure(Pipeline::several);
    let mut process = scene.start().await;
    scene.sql("INSERT INTO items SELECT i, 'v' || i, i FROM generate_series(1, 10) i").await;
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();
    scene
}

/// What the log says of a halt.
#[derive(Debug)]
struct Refusal {
    message: String,
    facts: String,
    hint: String,
}

impl Refusal {
    fn find(scene: &Scene, code: &str) -> Refusal {
        let log = scene.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let Some(line) = lines.rfind(|line| line["code"] == code) else {
            panic!("no {code} in the log:\n{log}");
        };
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let refusal = Refusal { message: text("message"), facts: text("facts"), hint: text("hint") };
        assert!(!refusal.hint.is_empty() && !refusal.message.is_empty(), "{refusal:?}");
        refusal
    }
}

/// Starts some roles and waits for the exit with 3 that a refusal of all of them is.
async fn refused(scene: &Scene, roles: &[&str], code: &str) -> Refusal {
    let mut process = scene.spawn(roles);
    let status = process.wait(PATIENCE).await.unwrap();
    assert_eq!(status.code(), Some(3), "{}", scene.log());
    Refusal::find(scene, code)
}

/// The source refuses, moves no slot and touches no sink.
async fn source_refuses(scene: &Scene, code: &str) -> Refusal {
    let confirmed = "SELECT coalesce(string_agg(confirmed_flush_lsn::text, ','), 'none') FROM pg_replication_slots
                      WHERE database = current_database()";
    let before = (text(&scene.source, confirmed).await, scene.fingerprint("public.items").await);
    let refusal = refused(scene, &["source"], code).await;
    let after = (text(&scene.source, confirmed).await, scene.fingerprint("public.items").await);
    assert_eq!(before, after);
    refusal
}

/// A sink refuses and is as it was.
async fn sink_refuses(scene: &Scene, code: &str) -> Refusal {
    let before = scene.fingerprint("public.items").await;
    let refusal = refused(scene, &["sink:orders"], code).await;
    assert_eq!(scene.fingerprint("public.items").await, before);
    refusal
}

fn admin(scene: &Scene) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", &scene.services.kafka).create().unwrap()
}

async fn delete_topic(scene: &Scene, suffix: &str) {
    let name = format!("{}.{suffix}", scene.pipeline.name);
    let outcome = admin(scene).delete_topics(&[&name], &AdminOptions::new()).await.unwrap();
    outcome.into_iter().for_each(|topic| drop(topic.unwrap()));
    let begun = std::time::Instant::now();
    loop {
        let metadata = admin(scene).inner().fetch_metadata(None, KAFKA_TIMEOUT).unwrap();
        if metadata.topics().iter().all(|topic| topic.name() != name) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{name} stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn create_topic(scene: &Scene, suffix: &str) {
    let name = format!("{}.{suffix}", scene.pipeline.name);
    let topic = NewTopic::new(&name, 1, TopicReplication::Fixed(1));
    let outcome = admin(scene).create_topics(&[topic], &AdminOptions::new()).await.unwrap();
    outcome.into_iter().for_each(|topic| drop(topic.unwrap()));
}

/// `max.message.bytes` of a topic as a new pipeline would make it.
async fn raise_record_limit(scene: &Scene, suffix: &str) {
    let name = format!("{}.{suffix}", scene.pipeline.name);
    // Settings that are not named fall back to the broker's: retention is among those that are asked about at a start.
    let mut topic = AlterConfig::new(ResourceSpecifier::Topic(&name)).set("max.message.bytes", "8388608");
    let kept = admin(scene).describe_configs([&ResourceSpecifier::Topic(&name)], &AdminOptions::new()).await.unwrap();
    let kept = kept.into_iter().next().unwrap().unwrap();
    let own = |entry: &&ConfigEntry| entry.source == ConfigSource::DynamicTopic && entry.name != "max.message.bytes";
    for entry in kept.entries.iter().filter(own) {
        topic = topic.set(&entry.name, entry.value.as_deref().unwrap_or_default());
    }
    let outcome = admin(scene).alter_configs([&topic], &AdminOptions::new()).await.unwrap();
    outcome.into_iter().for_each(|topic| drop(topic.unwrap()));
}

/// Kafka forgets everything that the topic holds.
async fn empty_topic(scene: &Scene, suffix: &str) {
    let name = format!("{}.{suffix}", scene.pipeline.name);
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &scene.services.kafka).set("group.id", "t").create().unwrap();
    let (_, high) = consumer.fetch_watermarks(&name, 0, KAFKA_TIMEOUT).unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&name, 0, Offset::Offset(high)).unwrap();
    admin(scene).delete_records(&list, &AdminOptions::new()).await.unwrap();
}

/// Runs the source until a change at the source is in the ledger, with the sinks away.
async fn publish_without_sinks(scene: &Scene, sql: &str) {
    let mut source = scene.spawn(&["source"]);
    scene.sql(sql).await;
    let end = scene.source.wal_lsn().await.unwrap();
    let passed = |s: &support::Status| {
        s.0["source"]["position"].as_str().is_some_and(|p| p.parse::<lockstep::lsn::Lsn>().unwrap() >= end)
    };
    source.wait_until("the change is published", PATIENCE, passed).await.unwrap();
    source.terminate(PATIENCE).await.unwrap();
}

// ---- The slot ----

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_gone() {
    let scene = settled("slot_lost").await;
    scene.sql(&format!("SELECT pg_drop_replication_slot('{}')", scene.slot())).await;
    source_refuses(&scene, "SLOT_LOST").await;
    // With its sinks the process stays, for they may have something to apply, and says what to do.
    let mut process = scene.spawn(&[]);
    let halted = |s: &support::Status| s.halt_code(None) == Some("SLOT_LOST") && s.sink_state("orders") == "streaming";
    process.wait_until("the halt is shown", PATIENCE, halted).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_someone_moved() {
    let scene = settled("slot_moved").await;
    scene.sql("INSERT INTO items VALUES (11, 'skipped', 0)").await;
    scene.sql(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", scene.slot())).await;
    let refusal = source_refuses(&scene, "SLOT_MOVED").await;
    assert!(refusal.facts.contains("can't be read again"), "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_someone_made_again() {
    let scene = settled("slot_again").await;
    let slot = scene.slot();
    scene.sql(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    scene.sql("INSERT INTO items VALUES (11, 'skipped', 0)").await;
    scene.sql(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    source_refuses(&scene, "SLOT_MOVED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_another_plugin_kind_or_making() {
    let scene = Scene::new(LOCKSTEP, "slot_foreign", ITEMS, &[("public.items", &["id"])]).await;
    let slot = scene.slot();
    for (make, code) in [
        (format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"), "SLOT_FOREIGN"),
        (format!("SELECT pg_create_physical_replication_slot('{slot}')"), "SLOT_FOREIGN"),
        (format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput', false, true)"), "SLOT_TWO_PHASE"),
        // Nobody knows what was published up to its position.
        (format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"), "LEDGER_LOST"),
    ] {
        scene.sql(&make).await;
        let refusal = refused(&scene, &["source"], code).await;
        let drops = refusal.hint.contains("pg_drop_replication_slot");
        assert_eq!(drops, code != "SLOT_FOREIGN", "nobody is told to drop what is not ours: {refusal:?}");
        scene.sql(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_another_program_reads() {
    let scene = settled("slot_in_use").await;
    let config = lockstep::config::load(&scene.pipeline.dir, &|_| Some("0".to_owned())).unwrap();
    let connection = Connection::open(&config.source, "somebody else").await.unwrap();
    let start = Start::default();
    let stream =
        connection.start_replication(&scene.slot(), &scene.slot(), lockstep::lsn::Lsn::ZERO, &start).await.unwrap();
    let pid =
        text(&scene.source, "SELECT active_pid FROM pg_replication_slots WHERE database = current_database()").await;
    let refusal = source_refuses(&scene, "SLOT_IN_USE").await;
    assert!(refusal.message.contains(&pid), "{pid} in {refusal:?}");
    assert!(refusal.facts.contains("somebody else"), "{refusal:?}");
    drop(stream);
}

// ---- The ledger and the topics ----

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_gone() {
    let scene = settled("ledger_lost").await;
    delete_topic(&scene, "ledger").await;
    source_refuses(&scene, "LEDGER_LOST").await;
    // Begun anew, it is another ledger than the sink's row names.
    scene.sql(&format!("SELECT pg_drop_replication_slot('{}')", scene.slot())).await;
    let mut source = scene.spawn(&["source"]);
    source.wait_until("a new ledger", PATIENCE, |s| s.source_state() == "streaming").await.unwrap();
    let refusal = sink_refuses(&scene, "LEDGER_RECREATED").await;
    assert!(refusal.message.contains("another ledger"), "{refusal:?}");
    // Which a restart knows how to go on from: it asks the sinks.
    source.terminate(PATIENCE).await.unwrap();
    typed(&scene, "restart", &[]);
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_lost_its_records() {
    let scene = settled("ledger_emptied").await;
    empty_topic(&scene, "ledger").await;
    source_refuses(&scene, "LEDGER_LOST").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_progress_row_of_another_source() {
    let scene = settled("mismatch").await;
    scene.orders().execute("UPDATE lockstep.progress SET source_system_id = 42").await.unwrap();
    sink_refuses(&scene, "PROGRESS_MISMATCH").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_progress_row_that_the_ledger_does_not_know() {
    let scene = settled("ahead").await;
    scene.orders().execute("UPDATE lockstep.progress SET ledger_offset = ledger_offset + 1000").await.unwrap();
    sink_refuses(&scene, "LEDGER_LOST").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_gone_or_made_again() {
    let scene = settled("topic_again").await;
    publish_without_sinks(&scene, "UPDATE items SET n = 0").await;
    delete_topic(&scene, "public.items").await;
    source_refuses(&scene, "TOPIC_MISSING").await;
    create_topic(&scene, "public.items").await;
    source_refuses(&scene, "TOPIC_RECREATED").await;
    // The sink alone sees it too: what the ledger counts is not there.
    sink_refuses(&scene, "TOPIC_GAP").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_kafka_no_longer_has() {
    let scene = settled("gap").await;
    publish_without_sinks(&scene, "UPDATE items SET n = 0").await;
    empty_topic(&scene, "public.items").await;
    sink_refuses(&scene, "TOPIC_GAP").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_too_large() {
    let scene = Scene::new(LOCKSTEP, "too_large", ITEMS, &[("public.items", &["id"])])
        .await
        .configure(|p| p.set("kafka", "record_bytes_max = \"64KiB\""));
    let mut process = scene.start().await;
    scene.sql("INSERT INTO items VALUES (1, 'small', 1)").await;
    scene.equal(&mut process).await;
    let before = scene.source.wal_lsn().await.unwrap();
    scene.sql("INSERT INTO items VALUES (2, repeat('x', 200000), 1)").await;
    scene.sql("INSERT INTO items VALUES (3, 'behind it', 1)").await;
    let halted = |s: &support::Status| s.halt_code(None) == Some("RECORD_TOO_LARGE");
    let status = process.wait_until("the halt", PATIENCE, halted).await.unwrap();
    assert!(status.0["source"]["halt"]["hint"].as_str().unwrap().contains("record_bytes_max"), "{status}");
    assert_eq!(text(scene.orders(), "SELECT string_agg(id::text, ',') FROM items").await, "1");
    assert!(scene.confirmed().await <= before);
    // The configuration alone is not enough: the topic would refuse what the reader then sends.
    process.terminate(PATIENCE).await.unwrap();
    let scene = scene.configure(|p| p.unset("kafka"));
    let hint = refused(&scene, &["source"], "TOPIC_SETTINGS").await.hint;
    assert!(hint.contains("max.message.bytes"), "{hint}");
    // With both raised it goes on at that very commit.
    for topic in ["public.items", "ledger"] {
        raise_record_limit(&scene, topic).await;
    }
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    assert_eq!(text(scene.orders(), "SELECT string_agg(id::text, ',' ORDER BY id) FROM items").await, "1,2,3");
}

/// What the refusals tell to type, typed.
fn resync(scene: &Scene, arguments: &[&str]) {
    typed(scene, "resync", arguments);
}

fn typed(scene: &Scene, verb: &str, arguments: &[&str]) {
    // The configuration takes the port from the environment, which another verb has not.
    let output = std::process::Command::new(LOCKSTEP)
        .args([verb, "--config"])
        .arg(&scene.pipeline.dir)
        .args(arguments)
        .env("LOCKSTEP_TEST_HTTP_PORT", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_gap_a_resync_makes_the_sink_equal_again() {
    let scene = settled("gap_resync").await;
    publish_without_sinks(&scene, "UPDATE items SET n = 0; DELETE FROM items WHERE id = 3").await;
    empty_topic(&scene, "public.items").await;
    let hint = sink_refuses(&scene, "TOPIC_GAP").await.hint;
    assert!(hint.starts_with("lockstep resync --all"), "{hint}");
    resync(&scene, &["--all"]);
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    scene.sql("UPDATE items SET n = 5 WHERE id < 4").await;
    scene.equal(&mut process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_divergence_a_resync_makes_the_sink_equal_again() {
    let scene = settled("diverged_resync").await;
    let tampered = "DELETE FROM items WHERE id = 5; INSERT INTO items VALUES (77, 'foreign', 1); UPDATE items SET v = 'other' WHERE id = 6";
    scene.orders().execute(tampered).await.unwrap();
    scene.sql("UPDATE items SET n = n + 1").await;
    let mut process = scene.spawn(&[]);
    let halted = |s: &support::Status| s.halt_code(Some("orders")) == Some("SINK_DIVERGED");
    process.wait_until("the halt", PATIENCE, halted).await.unwrap();
    process.terminate(PATIENCE).await.unwrap();
    resync(&scene, &["public.items"]);
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_unpublished_is_published_and_read_again() {
    let scene = settled("unpublished").await;
    scene.sql(&format!("ALTER PUBLICATION {} DROP TABLE items", scene.slot())).await;
    scene.sql("INSERT INTO items VALUES (11, 'x', 1); DELETE FROM items WHERE id = 1").await;
    let hint = source_refuses(&scene, "PUBLICATION_CHANGED").await.hint;
    let (sql, command) = hint.split_once("; then ").unwrap();
    scene.sql(sql).await;
    assert_eq!(command, "lockstep resync public.items");
    resync(&scene, &["public.items"]);
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
}

// ---- The source's tables and rights ----

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_can_not_be_followed() {
    let schema = "CREATE TABLE public.items (id int PRIMARY KEY, v text); CREATE TABLE public.keyless (id int);
                  CREATE TABLE public.nothing (id int PRIMARY KEY); ALTER TABLE public.nothing REPLICA IDENTITY NOTHING";
    for (table, code, hint) in [
        ("public.keyless", "TABLE_WITHOUT_KEY", "ADD PRIMARY KEY"),
        ("public.nothing", "REPLICA_IDENTITY", "REPLICA IDENTITY DEFAULT"),
        ("public.itemz", "TABLE_MISSING", "public.items"),
    ] {
        let scene = Scene::new(LOCKSTEP, "tables", schema, &[(table, &["id"])]).await;
        let refusal = refused(&scene, &["source"], code).await;
        assert!(refusal.hint.contains(hint), "{refusal:?}");
        let made = "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())";
        assert_eq!(text(&scene.source, made).await, "0", "nothing was made");
        // The application's own updates still work.
        scene.sql("UPDATE keyless SET id = 1; DELETE FROM nothing").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_someone_changed() {
    let newer = support::Services::from_env().postgres_version >= 15;
    for (change, undo, is_there) in [
        ("SET (publish = 'insert')", "SET (publish = 'insert, update, delete, truncate')", true),
        ("SET TABLE items WHERE (id < 5)", "SET TABLE ONLY", newer),
        ("SET TABLE items (id, v)", "SET TABLE ONLY", newer),
        ("DROP TABLE items", "ADD TABLE ONLY", true),
    ] {
        if !is_there {
            continue;
        }
        let scene = settled("publication").await;
        scene.sql(&format!("ALTER PUBLICATION {} {change}", scene.slot())).await;
        scene.sql("INSERT INTO items VALUES (11, 'x', 1); DELETE FROM items WHERE id = 1").await;
        let refusal = source_refuses(&scene, "PUBLICATION_CHANGED").await;
        assert!(refusal.hint.contains(undo), "{change}: {refusal:?}");
    }
}

/// While it runs nobody tells us, so it is looked at; before the sinks are far, and before anything is confirmed for long.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_someone_changes_under_us() {
    let scene = Scene::new(LOCKSTEP, "publication_live", ITEMS, &[("public.items", &["id"])]).await;
    let mut process = scene.start().await;
    scene.sql(&format!("ALTER PUBLICATION {} DROP TABLE items", scene.slot())).await;
    let halted = |s: &support::Status| s.halt_code(None) == Some("PUBLICATION_CHANGED");
    process.wait_until("the halt", PATIENCE, halted).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_without_rights() {
    let scene = Scene::new(LOCKSTEP, "rights", ITEMS, &[("public.items", &["id"])]).await;
    let role = format!("poor_{}", scene.source.name);
    let superuser = scene.source.superuser().await.unwrap();
    superuser.batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'poor'")).await.unwrap();
    let url = |user: &str, password: &str, database: &support::Database| {
        format!("postgres://{user}:{password}@127.0.0.1:{}/{}", database.server.port, database.name)
    };
    let (poor, wrong) = (url(&role, "poor", &scene.source), url("lockstep", "wrong", &scene.source));
    let wrong_sink = url("lockstep", "wrong", scene.orders());
    let right = scene.source.url();
    let scene = scene.configure(|p| p.source_url(poor));
    let refusal = refused(&scene, &["source"], "NO_RIGHT").await;
    superuser.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
    assert!(refusal.hint.contains("REPLICATION"), "{refusal:?}");
    let scene = scene.configure(|p| p.source_url(wrong));
    refused(&scene, &["source"], "AUTH_FAILED").await;
    let scene = scene.configure(|p| p.source_url(right).sink_url("orders", wrong_sink));
    let refusal = refused(&scene, &["sink:orders"], "AUTH_FAILED").await;
    assert!(!format!("{refusal:?}").contains("wrong"), "no secret is shown: {refusal:?}");
}

/// The sinks' servers of scripts/services have the default wal_level.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_logical_decoding() {
    let scene = Scene::new(LOCKSTEP, "wal_level", ITEMS, &[("public.items", &["id"])]).await;
    let source = scene.services.inventory.create_database("wal_level").await.unwrap();
    source.execute(ITEMS).await.unwrap();
    let url = source.url();
    let scene = scene.configure(|p| p.source_url(url));
    let refusal = refused(&scene, &["source"], "WAL_LEVEL").await;
    assert!(refusal.hint.contains("wal_level = logical"), "{refusal:?}");
}

// ---- The sink ----

#[tokio::test(flavor = "multi_thread")]
async fn sink_tables_that_do_not_fit() {
    for (sink, named) in [
        ("DROP TABLE items", "public.items"),
        ("ALTER TABLE items DROP COLUMN n", "n"),
        ("ALTER TABLE items ALTER v TYPE int USING 0", "v"),
        ("ALTER TABLE items ALTER v TYPE varchar(5)", "v"),
        ("ALTER TABLE items ALTER n TYPE smallint", "n"),
        ("ALTER TABLE items DROP CONSTRAINT items_pkey", "items"),
    ] {
        let scene = Scene::new(LOCKSTEP, "sink_table", ITEMS, &[("public.items", &["id"])]).await;
        scene.sql("INSERT INTO items VALUES (1, 'one', 1)").await;
        scene.orders().execute(sink).await.unwrap();
        let mut process = scene.spawn(&[]);
        let halted = |s: &support::Status| s.halt_code(Some("orders")) == Some("SINK_TABLE");
        let status = process.wait_until(sink, PATIENCE, halted).await.unwrap();
        let halt = &status.0["sinks"]["orders"]["halt"];
        assert!(halt["message"].as_str().unwrap().contains(named), "{status}");
        assert!(!halt["hint"].as_str().unwrap().is_empty(), "{status}");
        assert_eq!(status.halt_code(None), None, "the source goes on: {status}");
        process.terminate(PATIENCE).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_too_long_and_then_is_not() {
    let scene = Scene::new(LOCKSTEP, "long", ITEMS, &[("public.items", &["id"])]).await;
    let mut process = scene.start().await;
    scene.sql("INSERT INTO items VALUES (1, 'fits', 1)").await;
    scene.equal(&mut process).await;
    // Under a running sink: at a start the narrower column would be SINK_TABLE.
    scene.orders().execute("ALTER TABLE items ALTER v TYPE varchar(5)").await.unwrap();
    let before = scene.fingerprint("public.items").await;
    scene
        .sql("BEGIN; INSERT INTO items VALUES (2, 'fits', 2); INSERT INTO items VALUES (3, 'does not fit', 3); COMMIT")
        .await;
    let refused = |s: &support::Status| s.halt_code(Some("orders")) == Some("VALUE_REFUSED");
    let status = process.wait_until("the halt", PATIENCE, refused).await.unwrap();
    assert!(status.0["sinks"]["orders"]["halt"]["message"].as_str().unwrap().contains("column v"), "{status}");
    assert_eq!(scene.fingerprint("public.items").await, before, "nothing of that transaction is there");
    process.terminate(PATIENCE).await.unwrap();
    scene.orders().execute("ALTER TABLE items ALTER v TYPE text").await.unwrap();
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
}

/// One sink is no longer the copy that it claims to be; it halts, the other one goes on, the source too.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_someone_deleted_at_one_sink() {
    let scene = Scene::two(LOCKSTEP, "diverged", ITEMS, &[("public.items", &["id"])]).await;
    let mut process = scene.start().await;
    scene.sql("INSERT INTO items SELECT i, 'v', i FROM generate_series(1, 10) i").await;
    scene.equal(&mut process).await;
    scene.orders().execute("DELETE FROM items WHERE id = 5").await.unwrap();
    let before = scene.fingerprint("public.items").await;
    scene.sql("BEGIN; UPDATE items SET n = n + 1; COMMIT").await;
    let halted = |s: &support::Status| s.halt_code(Some("orders")) == Some("SINK_DIVERGED");
    let status = process.wait_until("the halt", PATIENCE, halted).await.unwrap();
    let hint = status.0["sinks"]["orders"]["halt"]["hint"].as_str().unwrap();
    assert!(hint.contains("lockstep resync"), "{status}");
    assert_eq!(scene.fingerprint("public.items").await, before);
    other_goes_on(&scene, &mut process).await;
    let status = process.status().await.unwrap();
    assert_eq!((status.source_state(), status.sink_state("inventory")), ("streaming", "streaming"), "{status}");
    assert_eq!(scene.fingerprint("public.items").await, before);
}

async fn other_goes_on(scene: &Scene, process: &mut Process) {
    scene.sql("INSERT INTO items VALUES (100, 'later', 0)").await;
    let inventory = &scene.sinks[1].1;
    let sinks = [("inventory", inventory)];
    scene.pipeline.wait_equal(process, &scene.source, &sinks, &scene.tables, PATIENCE).await.unwrap();
}

// ---- The configuration ----

#[tokio::test(flavor = "multi_thread")]
async fn unknown_keys_of_the_configuration() {
    let scene = Scene::new(LOCKSTEP, "config", ITEMS, &[("public.items", &["id"])])
        .await
        .configure(|p| p.set("kafka", "brokerz = \"x\"").set("source", "snapshot_rows = 1"));
    let mut process = scene.spawn(&[]);
    assert_eq!(process.wait(PATIENCE).await.unwrap().code(), Some(2));
    let log = scene.log();
    for found in ["brokerz", "snapshot_rows", "lockstep.toml:"] {
        assert!(log.contains(found), "{found} in {log}");
    }
}
