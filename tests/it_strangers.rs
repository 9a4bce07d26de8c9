//! Somebody else writes into our topics, or under our name: what is not ours is never applied, and where it stands among what
//! counts it is a named halt with the sink untouched. What the halt says makes the sink equal again.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep::kafka::topics;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use support::scene::{PATIENCE, Raw, Scene, read_raw, text, wait_text};
use support::server::OwnServer;
use support::{Pipeline, Services, Status};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const ITEMS: &str = "CREATE TABLE public.items (id int PRIMARY KEY, v text, n int)";
const TABLES: [support::scene::Keyed; 1] = [("public.items", &["id"])];

/// A program that has nothing to do with ours.
struct Stranger {
    producer: BaseProducer,
    topic: String,
}

impl Stranger {
    fn of(scene: &Scene, suffix: &str) -> Stranger {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &scene.services.kafka)
            .set("message.max.bytes", "8000000")
            .set("linger.ms", "0");
        Stranger { producer: config.create().unwrap(), topic: format!("{}.{suffix}", scene.pipeline.name) }
    }

    fn write(&self, raw: &Raw) {
        let headers = raw
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        let mut record = BaseRecord::<[u8], [u8]>::to(&self.topic).partition(0).headers(headers);
        record.key = raw.key.as_deref();
        record.payload = raw.value.as_deref();
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
        self.producer.flush(PATIENCE).unwrap();
    }

    /// The same again and again, until it is told to stop.
    fn keep_writing(self, raw: Raw) -> (Arc<AtomicBool>, std::thread::JoinHandle<()>) {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                self.write(&raw);
            }
        });
        (stop, thread)
    }
}

fn last(scene: &Scene) -> Raw {
    read_raw(&scene.services.kafka, &format!("{}.public.items", scene.pipeline.name)).pop().unwrap()
}

/// The record with our header changed.
fn with_header(raw: &Raw, change: impl Fn(&mut Vec<u8>)) -> Raw {
    let mut raw = raw.clone();
    raw.headers.iter_mut().filter(|(name, _)| name == "ls").for_each(|(_, value)| change(value));
    raw
}

fn typed(scene: &Scene, arguments: &[&str]) {
    let output = scene.pipeline.command(arguments).unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

async fn halts(scene: &Scene, role: &str, code: &str) {
    let before = scene.fingerprint("public.items").await;
    let mut process = scene.spawn(&[role]);
    assert_eq!(process.wait(PATIENCE).await.unwrap().code(), Some(3), "{}", scene.log());
    assert!(scene.log().lines().any(|line| line.contains("halted") && line.contains(code)), "{code}: {}", scene.log());
    assert_eq!(scene.fingerprint("public.items").await, before);
}

/// A transaction that takes the reader a while, while the stranger writes between its records.
async fn among_ours(scene: &Scene, mark: &str, written: impl Fn(&Raw) -> Raw) {
    let mut source = scene.spawn(&["source"]);
    source.wait_until("the reader reads", PATIENCE, |s| s.source_state() == "streaming").await.unwrap();
    // Of the epoch in force.
    let records = read_raw(&scene.services.kafka, &format!("{}.public.items", scene.pipeline.name)).len();
    scene.sql("UPDATE items SET n = n + 1 WHERE id = 1").await;
    while read_raw(&scene.services.kafka, &format!("{}.public.items", scene.pipeline.name)).len() == records {
        source.ensure_running().unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (stop, thread) = Stranger::of(scene, "public.items").keep_writing(written(&last(scene)));
    scene.sql(&format!("UPDATE items SET v = repeat('x', 300) || '{mark}'")).await;
    let end = scene.source.wal_lsn().await.unwrap();
    let passed = |s: &Status| {
        s.0["source"]["position"].as_str().is_some_and(|p| p.parse::<lockstep::lsn::Lsn>().unwrap() >= end)
    };
    source.wait_until("it is in the ledger", PATIENCE, passed).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    source.terminate(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_somebody_else_wrote_are_never_applied() {
    let scene = Scene::new(LOCKSTEP, "strangers", ITEMS, &TABLES).await.configure(Pipeline::several);
    scene.sql("INSERT INTO items SELECT i, 'v' || i, i FROM generate_series(1, 6000) i").await;
    let mut process = scene.start().await;
    scene.sql("UPDATE items SET n = 0 WHERE id < 9").await;
    scene.equal(&mut process).await;
    let ours = last(&scene);
    let foreign =
        Raw { headers: vec![("app".into(), b"x".to_vec())], value: Some(b"{\"not\": \"ours".to_vec()), ..ours.clone() };

    // Between spans: nothing of it is looked at.
    let stranger = Stranger::of(&scene, "public.items");
    let oversized = Raw { value: Some(vec![b'x'; 4_000_000]), ..foreign.clone() };
    let newer = |ours: &Raw| with_header(ours, |header| header[0] = 9);
    let cut = |ours: &Raw| with_header(ours, |header| header.truncate(7));
    for raw in [&foreign, &oversized, &ours, &newer(&ours), &cut(&ours)] {
        stranger.write(raw);
    }
    scene.sql("UPDATE items SET n = 1 WHERE id < 9; DELETE FROM items WHERE id = 6000").await;
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();

    // Among ours: what says nothing of us is passed over and counted.
    among_ours(&scene, "harmless", |_| foreign.clone()).await;
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    let metrics = process.get("/metrics").await.unwrap();
    let counted = metrics.lines().find(|line| line.starts_with("lockstep_sink_foreign_records_total")).unwrap();
    assert!(!counted.ends_with(" 0"), "{counted}");
    process.terminate(PATIENCE).await.unwrap();
    // What says that it is ours and is not.
    let twice: &dyn Fn(&Raw) -> Raw = &Raw::clone;
    for (written, code) in [(twice, "TOPIC_GAP"), (&newer, "RECORD_INVALID")] {
        among_ours(&scene, code, written).await;
        let mut sink = scene.spawn(&["sink:orders"]);
        assert_eq!(sink.wait(PATIENCE).await.unwrap().code(), Some(3), "{}", scene.log());
        let halted = scene.log().lines().rfind(|line| line.contains("\"code\"")).unwrap_or_default().to_owned();
        assert!(halted.contains(code), "{code}: {halted}");
        // Commits before it are there, of that one nothing is.
        let of_it = format!("SELECT count(*) FROM items WHERE v LIKE '%x{code}'");
        assert_eq!(text(scene.orders(), &of_it).await, "0");
        typed(&scene, &["resync", "--all"]);
        let mut process = scene.start().await;
        scene.equal(&mut process).await;
        process.terminate(PATIENCE).await.unwrap();
    }

    // In the ledger there is nothing that is nobody's.
    let entry = |value: &str| Raw { key: None, headers: vec![], value: Some(value.into()), ..ours.clone() };
    Stranger::of(&scene, "ledger").write(&entry(r#"{"v":2,"type":"checkpoint","base":null}"#));
    for role in ["source", "sink:orders"] {
        halts(&scene, role, "LEDGER_VERSION").await;
    }
    let config = lockstep::config::load(&scene.pipeline.dir, &|_| Some("0".to_owned())).unwrap();
    let ledger = format!("{}.ledger", scene.pipeline.name);
    topics::delete(&config.kafka, &[&ledger]).await.unwrap();
    while topics::describe(&config.kafka, &[&ledger]).await.unwrap()[0].is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    typed(&scene, &["restart"]);
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
}

/// A server that has nothing to do with the one before, and has a slot of our name and tables of ours.
#[tokio::test(flavor = "multi_thread")]
async fn another_source_under_the_same_name_is_refused() {
    let scene = Scene::new(LOCKSTEP, "another", ITEMS, &TABLES).await;
    scene.sql("INSERT INTO items SELECT i, 'v' || i, i FROM generate_series(1, 20) i").await;
    let mut process = scene.start().await;
    process.terminate(PATIENCE).await.unwrap();
    let other = OwnServer::start(&Services::from_env(), "another", &[]).await;
    let database = other.server.recreate_database(&scene.source.name).await.unwrap();
    let slot = scene.slot();
    database.execute(ITEMS).await.unwrap();
    database.execute("INSERT INTO items VALUES (1, 'another', 0), (77, 'another', 0)").await.unwrap();
    database
        .execute(&format!("CREATE PUBLICATION {slot} FOR TABLE items WITH (publish_via_partition_root = true)"))
        .await
        .unwrap();
    database.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await.unwrap();
    let url = format!("postgres://lockstep@127.0.0.1:{}/{}", other.server.port, database.name);
    let scene = scene.configure(|p| p.source_url(url));
    halts(&scene, "source", "SOURCE_MISMATCH").await;
    // That it is the old one made new by pg_upgrade is not true of it.
    let upgraded = scene.pipeline.command(&["restart", "--upgraded"]).unwrap();
    assert_eq!(upgraded.status.code(), Some(3), "{upgraded:?}");
    typed(&scene, &["restart"]);
    let mut process = scene.spawn(&[]);
    wait_text(scene.orders(), "SELECT string_agg(v, ',') FROM items", "another,another", &mut process).await;
}
