//! What a pipeline needs to live for years: a ledger that does not grow for ever, sinks that leave, and a way on after a loss
//! that no one can make good.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep::config::Config;
use lockstep::error::Code;
use lockstep::kafka::consumer::Pieces;
use lockstep::kafka::{groups, topics};
use lockstep::ledger::entry::{Body, Claim, Request, RequestKind, SourceEntry, SourceIdentity};
use lockstep::ledger::state::State;
use lockstep::ledger::topic::{APPEND_TIMEOUT, Appender, Reading, beside};
use lockstep::lsn::Lsn;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use support::scene::{PATIENCE, Scene, text};
use support::{Pipeline, Process, Status};
use tokio::time::sleep;
use uuid::Uuid;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const ITEMS: &str = "CREATE TABLE public.items (id int PRIMARY KEY, v text, n int)";
const POLL: Duration = Duration::from_millis(50);

fn config(scene: &Scene) -> Arc<Config> {
    scene.pipeline.write().unwrap();
    Arc::new(lockstep::config::load(&scene.pipeline.dir, &|_| None).unwrap())
}

/// Runs a verb: its exit code and what it printed.
fn verb(scene: &Scene, arguments: &[&str]) -> (i32, String) {
    scene.pipeline.write().unwrap();
    let output = scene.pipeline.command(arguments).unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code().unwrap(), text)
}

fn done(scene: &Scene, arguments: &[&str]) {
    let (code, text) = verb(scene, arguments);
    assert_eq!(code, 0, "{arguments:?}: {text}");
}

async fn state(scene: &Scene) -> State {
    let config = config(scene);
    beside(move || Reading::open(&config.kafka)?.fold_all()).await.unwrap()
}

/// First entry kept and the offset after the last.
async fn bounds(scene: &Scene) -> (i64, i64) {
    let config = config(scene);
    beside(move || Pieces::open(&config.kafka, &config.kafka.ledger, 0)?.watermarks()).await.unwrap()
}

async fn delete_topic(scene: &Scene, suffix: &str) {
    let (config, name) = (config(scene), format!("{}.{suffix}", scene.pipeline.name));
    topics::delete(&config.kafka, &[&name]).await.unwrap();
    let begun = Instant::now();
    while topics::describe(&config.kafka, &[&name]).await.unwrap()[0].is_some() {
        assert!(begun.elapsed() < PATIENCE, "{name} stays");
        sleep(POLL).await;
    }
}

async fn create_topic(scene: &Scene, suffix: &str, settings: &[(&str, &str)]) {
    let name = format!("{}.{suffix}", scene.pipeline.name);
    let admin: AdminClient<DefaultClientContext> =
        rdkafka::ClientConfig::new().set("bootstrap.servers", &scene.services.kafka).create().unwrap();
    let topic = NewTopic::new(&name, 1, TopicReplication::Fixed(1));
    let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
    for outcome in admin.create_topics(&[topic], &AdminOptions::new()).await.unwrap() {
        outcome.unwrap();
    }
}

/// The ledger is deleted and made again with the same entries, all but the first offsets included.
async fn copy_ledger(scene: &Scene) {
    let (config, (low, high)) = (config(scene), bounds(scene).await);
    let kafka = config.kafka.clone();
    let read = move || Pieces::open(&kafka, &kafka.ledger, 0)?.read(Some(low), high, Code::LedgerTrimmed);
    let entries = beside(read).await.unwrap();
    delete_topic(scene, "ledger").await;
    let settings = [("retention.ms", "-1"), ("retention.bytes", "-1"), ("max.message.bytes", "8388608")];
    create_topic(scene, "ledger", &settings).await;
    let producer: BaseProducer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &scene.services.kafka)
        .set("enable.idempotence", "true")
        .create()
        .unwrap();
    for entry in (0..low).map(|_| None).chain(entries.into_iter().map(|entry| entry.value)) {
        // Something must stand where nothing was kept: offsets are the names of entries.
        let value = entry.unwrap_or_else(|| br#"{"v":1,"type":"source"}"#.to_vec());
        producer.send(BaseRecord::<(), _>::to(&config.kafka.ledger).partition(0).payload(&value)).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

/// Changes that no one will read, or that the sinks have and nobody can tell.
async fn change(scene: &Scene, round: i32) {
    scene.sql(&format!("INSERT INTO items VALUES ({}, 'missed', 0)", 100 + round)).await;
    scene.sql(&format!("DELETE FROM items WHERE id = {round}; UPDATE items SET n = n + 1")).await;
}

/// Starts the source role and waits for its refusal.
async fn refused(scene: &Scene, code: &str) {
    let (exit, text) = verb(scene, &["check"]);
    assert!(exit == 3 && text.contains(&format!("error[{code}]")), "check exits with {exit}: {text}");
    let mut process = scene.spawn(&["source"]);
    let halted = |s: &Status| s.halt_code(None) == Some(code);
    match process.wait_until("the halt", PATIENCE, halted).await {
        Ok(_) => process.kill9().unwrap(),
        // It ends by itself; the log says why.
        Err(_) => assert!(scene.log().contains(code), "{}", scene.log()),
    }
}

/// Each loss in turn on one pipeline: refused by name by `run` and `check`, then `restart`, and every sink is equal again.
#[tokio::test(flavor = "multi_thread")]
async fn after_every_loss_a_restart_makes_the_sinks_equal_again() {
    let scene = Scene::two(LOCKSTEP, "restart", ITEMS, &[("public.items", &["id"])]).await;
    scene.sql("INSERT INTO items SELECT i, 'v' || i, i FROM generate_series(1, 20) i").await;
    let mut process = scene.start().await;
    let slot = scene.slot();
    let codes = [
        "SLOT_LOST",
        "SLOT_MOVED",
        "LEDGER_LOST",
        "LEDGER_LOST",
        "TOPIC_MISSING",
        "TOPIC_RECREATED",
        "LEDGER_RECREATED",
    ];
    for (round, code) in (1..).zip(codes) {
        scene.sql(&format!("UPDATE items SET v = 'round {round}'")).await;
        scene.equal(&mut process).await;
        process.terminate(PATIENCE).await.unwrap();
        assert_eq!(verb(&scene, &["check"]).0, 0, "{}", verb(&scene, &["check"]).1);
        change(&scene, round).await;
        match round {
            1 => scene.sql(&format!("SELECT pg_drop_replication_slot('{slot}')")).await,
            2 => scene.sql(&format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())")).await,
            3 => delete_topic(&scene, "ledger").await,
            4 => {
                let (config, (_, high)) = (config(&scene), bounds(&scene).await);
                topics::trim(&config.kafka, &config.kafka.ledger, high).await.unwrap();
            }
            5 => delete_topic(&scene, "public.items").await,
            6 => {
                delete_topic(&scene, "public.items").await;
                create_topic(&scene, "public.items", &[("max.message.bytes", "8388608")]).await;
            }
            // What a tool that copies topics makes of it: the same entries under another id.
            _ => copy_ledger(&scene).await,
        }
        refused(&scene, code).await;
        done(&scene, &["restart", "--reason", code]);
        process = scene.spawn(&[]);
        scene.equal(&mut process).await;
    }
    let (code, text) = verb(&scene, &["ledger", "--last", "1000"]);
    assert!(code == 0 && text.contains("(TOPIC_RECREATED)"), "{text}");
    process.ensure_running().unwrap();
}

/// A restart that is asked for while everything runs; the halted and the running take it up alike.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_pipeline_takes_a_restart_up() {
    let scene = Scene::new(LOCKSTEP, "restart_live", ITEMS, &[("public.items", &["id"])]).await;
    scene.sql("INSERT INTO items SELECT i, 'v' || i, i FROM generate_series(1, 20) i").await;
    let mut process = scene.start().await;
    // What no change of the source would ever mend.
    scene.orders().execute("UPDATE items SET v = 'other' WHERE id = 6; DELETE FROM items WHERE id = 7").await.unwrap();
    done(&scene, &["restart"]);
    let begun = Instant::now();
    while state(&scene).await.restarted.is_none() {
        assert!(begun.elapsed() < PATIENCE, "{}", scene.log());
        process.ensure_running().unwrap();
        sleep(POLL).await;
    }
    scene.equal(&mut process).await;
}

/// A restart that dies between any two of its steps is gone on with by the next start, and asking again is safe everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_dies_between_two_steps_goes_on() {
    let scene = Scene::new(LOCKSTEP, "restart_dies", ITEMS, &[("public.items", &["id"])]).await;
    scene.sql("INSERT INTO items SELECT i, 'v' || i, i FROM generate_series(1, 40) i").await;
    let mut process = scene.start().await;
    let slot = scene.slot();
    // Request, intent, slot dropped, slot made, source, claim.
    for (round, (steps, again)) in (1..).zip((1..=6).map(|steps| (steps, false)).chain([(5, true)])) {
        scene.equal(&mut process).await;
        process.terminate(PATIENCE).await.unwrap();
        let before = state(&scene).await;
        let mut appender = Appender::open(&config(&scene).kafka).unwrap();
        appender.base = before.base;
        let intent = SourceEntry { intent: Some(slot.clone()), made: None };
        for step in 1..=steps {
            let body = match step {
                1 => Body::Request(Request::new(Uuid::new_v4(), RequestKind::Restart, "", vec![], "test")),
                2 => Body::Source(intent.clone()),
                3 => {
                    scene.sql(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
                    change(&scene, round).await;
                    continue;
                }
                4 => {
                    scene.sql(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
                    continue;
                }
                5 => {
                    let sql =
                        format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'");
                    let consistent_point: Lsn = text(&scene.source, &sql).await.parse().unwrap();
                    let made = SourceIdentity { consistent_point, ..before.source.clone().unwrap() };
                    Body::Source(SourceEntry { intent: None, made: Some(made) })
                }
                _ => Body::Claim(Claim {
                    instance: Uuid::new_v4(),
                    nonce: 7,
                    timeline: 1,
                    host: "test".into(),
                    version: "test".into(),
                }),
            };
            appender.append_and_wait(body, APPEND_TIMEOUT).await.unwrap();
        }
        appender.close(Duration::from_secs(1));
        if again {
            done(&scene, &["restart"]);
        }
        process = scene.spawn(&[]);
        let restarted = before.restarted.map_or(-1, |restarted| restarted.offset);
        let begun = Instant::now();
        while state(&scene).await.restarted.is_none_or(|now| now.offset <= restarted) {
            assert!(begun.elapsed() < PATIENCE, "after {steps} steps: {}", scene.log());
            process.ensure_running().unwrap();
            sleep(POLL).await;
        }
        scene.equal(&mut process).await;
    }
}

/// Writes transactions until the ledger begins later than `beyond`.
async fn until_trimmed(scene: &Scene, process: &mut Process, beyond: i64) {
    let begun = Instant::now();
    while bounds(scene).await.0 <= beyond {
        assert!(begun.elapsed() < PATIENCE, "the ledger still begins at {:?}\n{}", bounds(scene).await, scene.log());
        process.ensure_running().unwrap();
        write(scene).await;
    }
}

/// Some transactions, slowly enough that most have an entry of the ledger to themselves.
async fn write(scene: &Scene) {
    let some = "DO $$ BEGIN FOR i IN 1..20 LOOP
                  UPDATE public.items SET n = n + 1 WHERE id = 1; COMMIT; PERFORM pg_sleep(0.005);
                END LOOP; END $$";
    scene.sql(some).await;
}

/// The ledger is trimmed up to what its sinks still need; one that is away holds it, one that has left does not. Starts from a
/// trimmed ledger are like any other.
#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_is_trimmed_up_to_what_its_sinks_need() {
    let scene = Scene::two(LOCKSTEP, "trim", ITEMS, &[("public.items", &["id"])]).await.configure(|p: Pipeline| {
        p.set("kafka", "retention = \"1s\"").set("kafka", "base_entries = 10").set("kafka", "base_interval = \"1s\"")
    });
    // Its records stay: what is tried here is the ledger.
    create_topic(&scene, "public.items", &[("retention.ms", "-1"), ("max.message.bytes", "8388608")]).await;
    scene.sql("INSERT INTO items SELECT i, 'v', i FROM generate_series(1, 20) i").await;
    let mut process = scene.start().await;
    until_trimmed(&scene, &mut process, 0).await;
    process.kill9().unwrap();
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();

    // With one sink away nothing is lost that it needs, however much is written.
    let needed: i64 = text(&scene.sinks[1].1, "SELECT ledger_offset FROM lockstep.progress").await.parse().unwrap();
    let mut process = scene.spawn(&["source", "sink:orders"]);
    let begun = Instant::now();
    // The other one has told that it needs none of this.
    let orders = groups::of_sink(&scene.pipeline.name, "orders");
    loop {
        let (config, group) = (config(&scene), orders.clone());
        let told = beside(move || groups::committed(&config.kafka, &group, &config.kafka.ledger)).await.unwrap();
        if told.is_some_and(|next| next > needed + 50) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{told:?}\n{}", scene.log());
        write(&scene).await;
    }
    process.terminate(PATIENCE).await.unwrap();
    let mut process = scene.spawn(&["source", "sink:orders"]);
    until_trimmed(&scene, &mut process, 1).await;
    assert!(bounds(&scene).await.0 <= needed, "{:?} with {needed} needed", bounds(&scene).await);
    process.terminate(PATIENCE).await.unwrap();
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();

    // Gone for good: first out of the configuration, then out of the ledger.
    let (code, text) = verb(&scene, &["leave", "inventory"]);
    assert!(code == 2 && text.contains("[sinks.inventory]"), "{text}");
    let Scene { pipeline, services, source, mut sinks, tables } = scene;
    let inventory = sinks.pop().unwrap();
    let pipeline = pipeline.without_sink("inventory");
    let scene = Scene { pipeline, services, source, sinks, tables };
    let (code, text) = verb(&scene, &["leave", "nobody"]);
    assert!(code == 2 && text.contains("inventory, orders"), "{text}");
    done(&scene, &["leave", "inventory"]);
    let mut process = scene.start().await;
    let left = bounds(&scene).await.1;
    until_trimmed(&scene, &mut process, left).await;
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();

    // Back again it is told that what it needs is gone; without its row it begins like any other.
    let Scene { pipeline, services, source, mut sinks, tables } = scene;
    let pipeline = pipeline.sink("inventory", &inventory.1).table("public.items");
    sinks.push(inventory);
    let scene = Scene { pipeline, services, source, sinks, tables };
    let (code, text) = verb(&scene, &["check"]);
    assert!(code == 3 && text.contains("error[LEDGER_TRIMMED]"), "{text}");
    let mut process = scene.spawn(&[]);
    let halted = |s: &Status| s.halt_code(Some("inventory")) == Some("LEDGER_TRIMMED");
    process.wait_until("the halt", PATIENCE, halted).await.unwrap();
    process.terminate(PATIENCE).await.unwrap();
    scene.sinks[1].1.execute("DELETE FROM lockstep.progress").await.unwrap();
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
}

/// A table that a sink no longer takes and then takes again is loaded again: nobody knows what was missed meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_comes_back_to_a_sink_is_loaded_again() {
    let schema =
        "CREATE TABLE public.a (id int PRIMARY KEY, v text); CREATE TABLE public.b (id int PRIMARY KEY, v text)";
    let scene = Scene::new(LOCKSTEP, "back", schema, &[("public.a", &["id"]), ("public.b", &["id"])]).await;
    scene.sql("INSERT INTO a VALUES (1, 'a'); INSERT INTO b VALUES (1, 'b'), (2, 'b')").await;
    let mut process = scene.start().await;
    process.terminate(PATIENCE).await.unwrap();
    let scene = scene.configure(|p| p.connector("public.b", ""));
    let mut process = scene.start().await;
    scene.sql("DELETE FROM b WHERE id = 1; INSERT INTO b VALUES (3, 'missed'); INSERT INTO a VALUES (2, 'a')").await;
    scene.streaming(&mut process).await;
    assert_eq!(text(scene.orders(), "SELECT string_agg(id::text, ',' ORDER BY id) FROM b").await, "1,2");
    process.terminate(PATIENCE).await.unwrap();
    let scene = scene.configure(|p| p.table("public.b"));
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
}

/// Nothing happens in our database and much in another one of the same server: its log is let go all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_database_keeps_no_log_for_a_busy_neighbour() {
    let scene = Scene::new(LOCKSTEP, "quiet", ITEMS, &[("public.items", &["id"])]).await;
    let neighbour = scene.services.catalog.create_database("neighbour").await.unwrap();
    let mut process = scene.start().await;
    let slot = scene.slot();
    let retained = async || -> u64 {
        let sql = format!(
            "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8 FROM pg_replication_slots
              WHERE slot_name = '{slot}'"
        );
        text(&scene.source, &sql).await.parse().unwrap()
    };
    let before = neighbour.wal_lsn().await.unwrap();
    neighbour.execute("CREATE TABLE busy (v text)").await.unwrap();
    for _ in 0..10 {
        let some = "INSERT INTO busy SELECT repeat(md5(i::text), 32) FROM generate_series(1, 10000) i";
        neighbour.execute(some).await.unwrap();
    }
    assert!(neighbour.wal_lsn().await.unwrap().bytes_since(before) > 100 << 20);
    let begun = Instant::now();
    while retained().await >= 32 << 20 {
        assert!(begun.elapsed() < PATIENCE, "{} bytes are kept\n{}", retained().await, scene.log());
        process.ensure_running().unwrap();
        sleep(POLL).await;
    }
}
