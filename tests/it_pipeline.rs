//! The main job, end to end: real servers, the real binary, every row compared.
//!
//! What is killed is this pipeline's own process; servers that crash are in `it_crashes`, refusals in `it_refusals`.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lockstep::record::{Header, Kind};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::scene::{
    AUDIT_SCHEMA, EVENTS, EVENTS_SCHEMA, Events, PATIENCE, Scene, assert_once, read_topic, text, wait_text, watch_whole,
};
use support::shop::{self, Load, Size};
use support::{Pipeline, Status, TablePair};
use tokio::time::sleep;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const QUICK: Duration = Duration::from_millis(2);

/// A first start on empty tables, then inserts, updates, a new key and a delete; the topic as a Debezium user knows it.
#[tokio::test(flavor = "multi_thread")]
async fn rows_arrive_and_topics_hold_debezium_envelopes() {
    let schema = "CREATE TABLE public.items (id int PRIMARY KEY, name text, price numeric(8,2))";
    let scene = Scene::new(LOCKSTEP, "items", schema, &[("public.items", &["id"])]).await;
    let mut process = scene.start().await;
    scene.sql("INSERT INTO items VALUES (1, 'one', 1.10), (2, 'two', NULL)").await;
    scene.sql("UPDATE items SET price = 1.20 WHERE id = 1").await;
    scene.sql("UPDATE items SET id = 3 WHERE id = 2").await;
    scene.sql("DELETE FROM items WHERE id = 1").await;
    scene.equal(&mut process).await;
    let phase = "SELECT phase || ' ' || (closed_lsn >= commit_lsn) FROM lockstep.progress";
    assert_eq!(text(scene.orders(), phase).await, "streaming true");

    let records = read_topic(&scene.services.kafka, &format!("{}.public.items", scene.pipeline.name));
    let shape: Vec<String> = records
        .iter()
        .map(|r| {
            let value = r.value.as_ref();
            format!(
                "{} {} {} {}",
                r.key.as_deref().unwrap(),
                value.map_or("tombstone", |v| v["op"].as_str().unwrap()),
                value.map_or("-".to_owned(), |v| v["before"].to_string()),
                value.map_or("-".to_owned(), |v| v["after"].to_string()),
            )
        })
        .collect();
    insta::assert_snapshot!(shape.join("\n"), @r#"
    {"id":1} c null {"id":1,"name":"one","price":"1.10"}
    {"id":2} c null {"id":2,"name":"two","price":null}
    {"id":1} u null {"id":1,"name":"one","price":"1.20"}
    {"id":2} d {"id":2,"name":null,"price":null} null
    {"id":2} tombstone - -
    {"id":3} c null {"id":3,"name":"two","price":null}
    {"id":1} d {"id":1,"name":null,"price":null} null
    {"id":1} tombstone - -
    "#);
    let kinds: Vec<Kind> = records.iter().map(|r| Header::decode(r.header("ls").unwrap()).unwrap().kind).collect();
    assert_eq!(
        kinds,
        [
            Kind::Change,
            Kind::Change,
            Kind::Change,
            Kind::KeyChangeDelete,
            Kind::Tombstone,
            Kind::KeyChangeCreate,
            Kind::Change,
            Kind::Tombstone
        ]
    );
    let positions: Vec<_> = records.iter().map(|r| Header::decode(r.header("ls").unwrap()).unwrap().position).collect();
    assert!(positions.is_sorted_by(|a, b| a < b), "{positions:?}");
    let header = |i: usize, name: &str| records[i].header(name).map(|h| String::from_utf8(h.to_vec()).unwrap());
    assert_eq!(header(3, "__debezium.newkey").as_deref(), Some("{\"id\":3}"));
    assert_eq!(header(5, "__debezium.oldkey").as_deref(), Some("{\"id\":2}"));
    assert_eq!(header(0, "__debezium.newkey"), None);
    let first = records[0].value.as_ref().unwrap();
    assert_eq!(first["source"]["table"], "items");
    assert_eq!(first["source"]["snapshot"], "false");
    for key in ["ts_ms", "ts_us", "ts_ns", "transaction"] {
        assert!(first.get(key).is_some(), "{key} in {first}");
    }
    process.ensure_running().unwrap();
}

/// Rows that are there before the first start are loaded in small chunks while everything that can happen to them happens.
#[tokio::test(flavor = "multi_thread")]
async fn existing_rows_are_loaded_under_a_hostile_load() {
    let scene = Scene::bare(LOCKSTEP, "loaded", "", 2).await;
    shop::create_source(&scene.source).await.unwrap();
    for (_, sink) in &scene.sinks {
        shop::create_sink(sink).await.unwrap();
    }
    shop::seed(&scene.source, Size { categories: 60, suppliers: 200, products: 2_000 }, 7).await.unwrap();
    let scene = scene.configure(|p| {
        let p = p.set("source.snapshot", "chunk_rows = 50");
        shop::TABLES.iter().fold(p, |p: Pipeline, (table, _)| p.table(table))
    });
    let scene = Scene { tables: shop::pairs(), ..scene };
    let load =
        Load { seed: 7, writers: 3, transactions_per_second: 150, truncate_after: Some(Duration::from_millis(2500)) };
    let running = load.start(&scene.source).await.unwrap();
    let mut process = scene.spawn(&[]);
    scene.streaming(&mut process).await;
    let report = running.stop().await.unwrap();
    assert!(report.committed() > 50, "{report}");
    scene.equal(&mut process).await;
}

/// A rate is kept, whatever a chunk could hold, and the status says what the rows wait for.
#[tokio::test(flavor = "multi_thread")]
async fn existing_rows_are_loaded_at_the_rate_that_is_set() {
    let scene = Scene::new(LOCKSTEP, "rate", EVENTS_SCHEMA, &EVENTS).await;
    let scene = scene.configure(|p| p.set("source.snapshot", "rows_per_second = 100"));
    scene.sql("INSERT INTO public.events SELECT i, i, 'there before' FROM generate_series(1, 300) AS i").await;
    let (mut process, started) = (scene.spawn(&[]), Instant::now());
    let is_held = |s: &Status| s.0["source"]["waiting_for"].as_str().is_some_and(|why| why.contains("rows_per_second"));
    // It may go on between the two questions.
    loop {
        process.wait_until("the load waits for its turn", Duration::from_secs(30), is_held).await.unwrap();
        if process.get("/metrics").await.unwrap().contains("lockstep_source_snapshot_held 1") {
            break;
        }
    }
    scene.equal(&mut process).await;
    // A second's worth goes at once, and nobody waits for what is owed in the end.
    assert!(started.elapsed() >= Duration::from_secs(1), "300 rows in {:?}", started.elapsed());
}

/// A sink that can't write holds up the load before much stands in the ledger for it, and is loaded when it can.
#[tokio::test(flavor = "multi_thread")]
async fn existing_rows_do_not_run_away_from_a_sink() {
    let scene = Scene::new(LOCKSTEP, "ahead", EVENTS_SCHEMA, &EVENTS).await;
    const ROWS: u64 = 30_000;
    let rows =
        format!("INSERT INTO public.events SELECT i, i, repeat(md5(i::text), 12) FROM generate_series(1, {ROWS}) AS i");
    scene.sql(&rows).await;
    let held = scene.sinks[0].1.connect().await.unwrap();
    held.batch_execute("BEGIN; LOCK TABLE public.events IN SHARE MODE").await.unwrap();
    let mut process = scene.spawn(&[]);
    let done = |s: &Status| s.0["tables"]["public.events"]["rows_done"].as_u64();
    process.wait_until("the load begins", Duration::from_secs(30), |s| done(s) > Some(0)).await.unwrap();
    // Until it stands still.
    let mut before = None;
    let stood = loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = done(&process.status().await.unwrap());
        if now == before {
            break now;
        }
        before = now;
    };
    assert!(stood.is_some_and(|rows| rows < ROWS / 2), "{stood:?} of {ROWS} rows were written for nobody");
    held.batch_execute("ROLLBACK").await.unwrap();
    scene.equal(&mut process).await;
}

/// SIGKILL again and again in the middle of a load: equal in the end, every effect once, no transaction seen in part.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_by_kills() {
    let scene = Scene::new(LOCKSTEP, "kills", EVENTS_SCHEMA, &EVENTS).await;
    scene.orders().execute(AUDIT_SCHEMA).await.unwrap();
    let mut process = scene.start().await;
    let load = Events::on(&scene, QUICK);
    let (stop, watcher) = watch_whole(scene.orders());
    let mut random = StdRng::seed_from_u64(3);
    for _ in 0..10 {
        sleep(Duration::from_millis(random.random_range(300..1500))).await;
        process.kill9().unwrap();
        process = scene.spawn(&[]);
    }
    assert!(load.stop().await > 200);
    scene.equal(&mut process).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(watcher.await.unwrap() > 10);
    assert_once(scene.orders()).await;
}

/// The same with a first load that is killed before it ends, over and over. Each reader goes on where the one before was.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_load_that_is_killed_goes_on() {
    const ROWS: usize = 30_000;
    let scene = Scene::new(LOCKSTEP, "load_kills", EVENTS_SCHEMA, &EVENTS).await;
    scene.sql(&format!("INSERT INTO events SELECT -i, i / 3, 'before' FROM generate_series(1, {ROWS}) i")).await;
    let scene = scene.configure(|p| p.set("source.snapshot", "chunk_rows = 100"));
    let load = Events::on(&scene, QUICK);
    let mut process = scene.spawn(&[]);
    let mut killed = 0;
    while killed < 5 {
        let begun = |s: &Status| s.0["tables"]["public.events"]["orders"]["rows_done"].as_u64() > Some(2_000);
        process.wait_until("some of the rows are in", PATIENCE, |s| begun(s) || s.all_streaming()).await.unwrap();
        if process.status().await.unwrap().all_streaming() {
            break;
        }
        process.kill9().unwrap();
        killed += 1;
        process = scene.spawn(&[]);
    }
    assert!(killed >= 3, "the load was over after {killed} kills");
    scene.streaming(&mut process).await;
    let live = usize::try_from(load.stop().await).unwrap() * 3;
    scene.equal(&mut process).await;
    let read = scene.rows_read("public.events");
    assert!(
        (ROWS..(ROWS + live) * 11 / 10).contains(&read),
        "{read} rows were read of {ROWS} and up to {live} new ones"
    );
}

/// Rows that move to keys that were read already can't be made by the sinks, which lack a column of them. Only such rows are
/// read a second time, and whoever comes after a kill goes on where the one before was.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_with_key_changes_ends_however_often_it_is_killed() {
    const ROWS: usize = 8_000;
    const BETWEEN_KILLS: usize = 1_200;
    let schema = "CREATE TABLE public.moved (id int PRIMARY KEY, n int DEFAULT 0, big text);
                  ALTER TABLE public.moved ALTER big SET STORAGE EXTERNAL";
    let scene = Scene::new(LOCKSTEP, "load_moves", schema, &[("public.moved", &["id"])]).await;
    let fill = "INSERT INTO moved SELECT i * 10, i, repeat(md5(i::text), 70) FROM generate_series(1, ";
    scene.sql(&format!("{fill}{ROWS}) i")).await;
    let scene = scene.configure(|p| p.set("source.snapshot", "chunk_rows = 40"));
    let moves = Moves::start(&scene, ROWS).await;
    let mut process = scene.spawn(&[]);
    let mut killed = 0;
    loop {
        let read = |s: &Status| s.0["tables"]["public.moved"]["orders"]["rows_done"].as_u64();
        let begun = |s: &Status| read(s) > Some(BETWEEN_KILLS as u64);
        process.wait_until("some of the rows are in", PATIENCE, |s| begun(s) || s.all_streaming()).await.unwrap();
        if process.status().await.unwrap().all_streaming() {
            break;
        }
        process.kill9().unwrap();
        killed += 1;
        assert!(killed <= 2 * ROWS / BETWEEN_KILLS, "the load does not end");
        process = scene.spawn(&[]);
    }
    let moved = moves.stop().await;
    assert!(killed >= 3 && moved > 50, "{killed} kills, {moved} rows moved");
    scene.equal(&mut process).await;
    let read = scene.rows_read("public.moved");
    println!("{killed} kills, {moved} rows moved, {read} rows read of {ROWS}");
    assert!((ROWS * 9 / 10..ROWS * 11 / 10 + moved).contains(&read), "{read} rows were read of {ROWS}, {moved} moved");
}

/// Rows that get random new keys, one after the other, without their big column.
struct Moves {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<usize>,
}

impl Moves {
    async fn start(scene: &Scene, rows: usize) -> Moves {
        let client = scene.source.connect().await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(29);
            let mut moved = 0;
            while !stopped.load(Ordering::Relaxed) {
                // Between the keys that there were, so that it lies anywhere and is nobody's.
                let (from, to) =
                    (random.random_range(1..=rows) * 10, random.random_range(1..=rows) * 10 + 1 + moved % 9);
                let moves = format!(
                    "UPDATE moved SET id = {to} WHERE id = {from} AND NOT EXISTS (SELECT FROM moved WHERE id = {to})"
                );
                moved += usize::try_from(client.execute(&moves, &[]).await.unwrap()).unwrap();
                client.batch_execute(&format!("UPDATE moved SET n = -n WHERE id = {to}")).await.unwrap();
                sleep(Duration::from_millis(20)).await;
            }
            moved
        });
        Moves { stop, task }
    }

    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Every role in a process of its own, killed by itself.
#[tokio::test(flavor = "multi_thread")]
async fn roles_in_processes_of_their_own() {
    let scene = Scene::two(LOCKSTEP, "roles", EVENTS_SCHEMA, &EVENTS).await;
    for (_, sink) in &scene.sinks {
        sink.execute(AUDIT_SCHEMA).await.unwrap();
    }
    let scene = scene.configure(Pipeline::several);
    let roles = ["source", "sink:orders", "sink:inventory"];
    let spawn = |role: &str| scene.pipeline.spawn_with(&["--role", role], &[]).unwrap();
    let mut processes: Vec<_> = roles.iter().map(|role| spawn(role)).collect();
    scene.streaming(&mut processes[0]).await;
    let load = Events::on(&scene, QUICK);
    let mut random = StdRng::seed_from_u64(11);
    for round in 0..6 {
        sleep(Duration::from_millis(random.random_range(300..900))).await;
        let victim = round % roles.len();
        processes[victim].kill9().unwrap();
        processes[victim] = spawn(roles[victim]);
    }
    load.stop().await;
    scene.equal(&mut processes[0]).await;
    for (_, sink) in &scene.sinks {
        assert_once(sink).await;
    }
}

/// A sink and a table that come later are loaded while the others go on; the first sink is not loaded again.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_and_a_table_that_come_later() {
    let schema = format!("{EVENTS_SCHEMA}; CREATE TABLE public.late (id int PRIMARY KEY, v text)");
    let scene = Scene::bare(LOCKSTEP, "later", &schema, 1).await;
    scene.orders().execute(AUDIT_SCHEMA).await.unwrap();
    scene.sql("INSERT INTO events SELECT i, i / 3, 'before' FROM generate_series(-3000, -1) i").await;
    scene.sql("INSERT INTO late SELECT i, 'v' FROM generate_series(1, 2000) i").await;
    let pairs =
        |tables: &[support::scene::Keyed]| tables.iter().map(|(t, k)| TablePair::same(t, k)).collect::<Vec<_>>();
    let scene = scene.configure(|p| p.table("public.events").table("public.journal"));
    let mut scene = Scene { tables: pairs(&EVENTS), ..scene };
    let load = Events::on(&scene, QUICK);
    let mut process = scene.start().await;
    process.terminate(PATIENCE).await.unwrap();

    let inventory = scene.services.inventory.create_database("later").await.unwrap();
    inventory.execute(&schema).await.unwrap();
    scene.sinks.push(("inventory", inventory));
    let url = scene.sinks[1].1.url();
    let scene = scene.configure(|p| p.sink_url("inventory", url).table("public.events").table("public.journal"));
    let mut process = scene.start().await;
    process.kill9().unwrap();

    let mut scene = scene.configure(|p| p.table("public.late"));
    scene.tables.push(TablePair::same("public.late", &["id"]));
    let mut process = scene.start().await;
    scene.sql("UPDATE late SET v = 'w' WHERE id % 2 = 0").await;
    load.stop().await;
    scene.equal(&mut process).await;
    assert_once(scene.orders()).await;
}

/// A process that dies in the middle of applying a large transaction has applied nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn large_transactions_are_killed_in_the_middle() {
    let schema = "CREATE TABLE public.wide (id bigint PRIMARY KEY, a text, n int)";
    let scene = Scene::bare(LOCKSTEP, "large_kills", schema, 1)
        .await
        .configure(|p| p.connector("public.wide", "partitions = 3\n[sinks.orders]\n"));
    let scene = Scene { tables: vec![TablePair::same("public.wide", &["id"])], ..scene };
    let mut process = scene.start().await;
    let mut random = StdRng::seed_from_u64(23);
    for round in 0..4 {
        let sql = format!(
            "BEGIN; INSERT INTO wide SELECT i, md5(i::text), {round} FROM generate_series({round} * 30000, {round} * 30000 + 29999) i;
             UPDATE wide SET n = n + 1 WHERE id % 7 = 0; DELETE FROM wide WHERE id % 101 = {round}; COMMIT"
        );
        scene.sql(&sql).await;
        for _ in 0..2 {
            sleep(Duration::from_millis(random.random_range(200..1200))).await;
            process.kill9().unwrap();
            let parts = "SELECT count(*) FROM (SELECT id / 30000 FROM wide GROUP BY 1 HAVING count(*) < 29000) x";
            assert_eq!(text(scene.orders(), parts).await, "0", "a part of a transaction is there");
            process = scene.spawn(&[]);
        }
    }
    scene.equal(&mut process).await;
}

/// Two processes with the same roles: the second waits, says so, and takes over when the first one dies. It does not take the
/// roles from one that lives.
#[tokio::test(flavor = "multi_thread")]
async fn the_second_of_two_is_a_standby_that_takes_over() {
    let scene = Scene::new(LOCKSTEP, "standby", EVENTS_SCHEMA, &EVENTS).await.configure(Pipeline::several);
    scene.orders().execute(AUDIT_SCHEMA).await.unwrap();
    let mut first = scene.start().await;
    let load = Events::on(&scene, QUICK);
    let mut second = scene.spawn(&[]);
    let standby = |s: &support::Status| s.source_state() == "standby" && s.sink_state("orders") == "standby";
    let status = second.wait_until("a standby", PATIENCE, standby).await.unwrap();
    assert!(status.0["source"]["waiting_for"].as_str().unwrap().contains("is held by process"), "{status}");
    assert!(status.0["sinks"]["orders"]["waiting_for"].as_str().unwrap().contains("owns the sink"), "{status}");

    // Neither takes it from the other while both live.
    let owners = "SELECT worker_epoch FROM lockstep.progress";
    let owner = text(scene.orders(), owners).await;
    let looking = Instant::now();
    while looking.elapsed() < Duration::from_secs(2) {
        let (one, two) = (first.status().await.unwrap(), second.status().await.unwrap());
        assert!(one.all_streaming(), "{one}");
        assert!(standby(&two), "{two}");
        assert_eq!(text(scene.orders(), owners).await, owner);
        sleep(Duration::from_millis(100)).await;
    }
    for _ in 0..3 {
        first.kill9().unwrap();
        second.wait_until("the standby at work", PATIENCE, |s| s.all_streaming()).await.unwrap();
        first = scene.spawn(&[]);
        first.wait_until("a new standby", PATIENCE, standby).await.unwrap();
        std::mem::swap(&mut first, &mut second);
    }
    load.stop().await;
    scene.equal(&mut first).await;
    assert_once(scene.orders()).await;
}

const HARD_SCHEMA: &str = "
CREATE TABLE public.parent (id int PRIMARY KEY, code text UNIQUE, big text, n int DEFAULT 0);
CREATE TABLE public.child (id int PRIMARY KEY, parent_id int NOT NULL REFERENCES public.parent DEFERRABLE INITIALLY IMMEDIATE, v text);
CREATE TABLE public.pair (a int, b text, v text, big text, PRIMARY KEY (a, b));
ALTER TABLE public.parent ALTER big SET STORAGE EXTERNAL;
ALTER TABLE public.pair ALTER big SET STORAGE EXTERNAL;
";
const HARD: [support::scene::Keyed; 3] =
    [("public.parent", &["id"]), ("public.child", &["id"]), ("public.pair", &["a", "b"])];

/// Everything of a transaction that is awkward, one after the other; and all of it again in one interval.
const AWKWARD: [(&str, &str); 15] = [
    (
        "rows to begin with",
        "INSERT INTO parent SELECT i, 'c' || i, repeat(md5(i::text), 400) FROM generate_series(1, 20) i;
        INSERT INTO child SELECT i, 1 + i % 20, 'v' FROM generate_series(1, 60) i;
        INSERT INTO pair SELECT i, 'k', 'v', repeat(md5(i::text), 400) FROM generate_series(1, 20) i",
    ),
    ("an update that leaves the big column out", "UPDATE parent SET n = n + 1"),
    (
        "two updates of one row",
        "UPDATE parent SET n = n + 1 WHERE id < 5; UPDATE parent SET n = n * 7, big = 'short' WHERE id < 3",
    ),
    (
        "the big column to NULL and back",
        "UPDATE pair SET big = NULL WHERE a = 1; UPDATE pair SET big = repeat('x', 9000) WHERE a = 1",
    ),
    ("a key change without its big column", "UPDATE pair SET a = a + 100 WHERE a = 2"),
    (
        "a key change, then the row, then the key again",
        "UPDATE pair SET a = 200 WHERE a = 3; UPDATE pair SET v = 'w' WHERE a = 200; UPDATE pair SET b = 'q' WHERE a = 200",
    ),
    (
        "two keys swapped through a third",
        "UPDATE pair SET a = -1 WHERE a = 4; UPDATE pair SET a = 4 WHERE a = 5; UPDATE pair SET a = 5 WHERE a = -1",
    ),
    (
        "a chain of keys, each onto the place of the next",
        "UPDATE pair SET a = 300 WHERE a = 8; UPDATE pair SET a = 8 WHERE a = 7; UPDATE pair SET a = 7 WHERE a = 6",
    ),
    ("a row deleted and made again", "DELETE FROM child WHERE id = 7; INSERT INTO child VALUES (7, 9, 'again')"),
    (
        "a row made, changed and deleted",
        "INSERT INTO child VALUES (900, 1, 'x'); UPDATE child SET v = 'y' WHERE id = 900; DELETE FROM child WHERE id = 900",
    ),
    (
        "a unique value handed from one row to another",
        "UPDATE parent SET code = 'tmp' WHERE id = 1; UPDATE parent SET code = 'c1' WHERE id = 2; UPDATE parent SET code = 'c2' WHERE id = 1",
    ),
    (
        "a unique value of a deleted row",
        "DELETE FROM child WHERE parent_id = 20; DELETE FROM parent WHERE id = 20; INSERT INTO parent VALUES (21, 'c20', NULL, 1)",
    ),
    (
        "a savepoint given up",
        "SAVEPOINT s; UPDATE parent SET n = -1; DELETE FROM child; ROLLBACK TO s; UPDATE parent SET n = n + 1 WHERE id = 6",
    ),
    (
        "a parent's key with its children",
        "SET CONSTRAINTS ALL DEFERRED; UPDATE child SET parent_id = 500 WHERE parent_id = 10; UPDATE parent SET id = 500 WHERE id = 10",
    ),
    (
        "two tables truncated at once, and filled again",
        "TRUNCATE parent, child; INSERT INTO parent VALUES (1, 'c1', repeat('z', 9000), 0), (2, 'c2', NULL, 1); INSERT INTO child VALUES (1, 2, 'after')",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn awkward_transactions_one_by_one() {
    let scene = Scene::new(LOCKSTEP, "awkward", HARD_SCHEMA, &HARD).await;
    let mut process = scene.start().await;
    for (what, sql) in AWKWARD {
        scene.sql(&format!("BEGIN; {sql}; COMMIT")).await;
        println!("{what}");
        scene.equal(&mut process).await;
    }
}

/// The sink is away while everything happens, so that it meets all of it in one or few intervals, with three partitions.
#[tokio::test(flavor = "multi_thread")]
async fn awkward_transactions_folded_over_three_partitions() {
    let scene = Scene::bare(LOCKSTEP, "folded", HARD_SCHEMA, 1).await.configure(|p| {
        HARD.iter().fold(p, |p: Pipeline, (table, _)| p.connector(table, "partitions = 3\n[sinks.orders]\n"))
    });
    let tables = HARD.iter().map(|(table, key)| TablePair::same(table, key)).collect();
    let scene = Scene { tables, ..scene }.configure(Pipeline::several);
    let mut source = scene.spawn(&["source"]);
    let mut sink = scene.spawn(&["sink:orders"]);
    scene.streaming(&mut sink).await;
    for round in 0..2 {
        sink.terminate(PATIENCE).await.unwrap();
        let mut all = String::from("TRUNCATE parent, child, pair;");
        for (_, sql) in AWKWARD {
            all += &format!("BEGIN; {sql}; COMMIT;");
        }
        if round == 0 {
            // In between, another shape of the end: without the truncate that would hide the rest.
            let all = all.replace(AWKWARD[14].1, "SELECT 1");
            scene.source.execute(&all).await.unwrap();
        } else {
            scene.source.execute(&all).await.unwrap();
        }
        source.ensure_running().unwrap();
        sink = scene.spawn(&["sink:orders"]);
        scene.equal(&mut sink).await;
    }
    let topic = format!("{}.public.pair", scene.pipeline.name);
    let partitions: std::collections::BTreeSet<i32> =
        read_topic(&scene.services.kafka, &topic).iter().map(|r| r.partition).collect();
    assert_eq!(partitions.len(), 3);
}

/// A sink that takes some columns under another name, and has columns of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_subset_of_columns_beside_the_services_own() {
    let schema =
        "CREATE TABLE public.products (id bigint PRIMARY KEY, sku varchar(20) NOT NULL, secret text, name text)";
    let scene = Scene::bare(LOCKSTEP, "subset", "", 1).await.configure(|p| {
        p.connector("public.products", "[sinks.orders]\ntable = 'shared.items'\ncolumns = ['id', 'sku', 'name']\n")
    });
    scene.sql(schema).await;
    scene.sql("INSERT INTO products SELECT i, 'S' || i, 'hidden', 'n' FROM generate_series(1, 100) i").await;
    let own = "CREATE SCHEMA shared; CREATE TABLE shared.items (
        stock int NOT NULL DEFAULT 5, id bigint PRIMARY KEY, sku varchar(20) NOT NULL, name text, noted timestamptz DEFAULT now())";
    scene.orders().execute(own).await.unwrap();
    let table = TablePair {
        source: "public.products".into(),
        sink: "shared.items".into(),
        key: vec!["id".into()],
        columns: vec!["id".into(), "sku".into(), "name".into()],
    };
    let scene = Scene { tables: vec![table], ..scene };
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    scene.orders().execute("UPDATE shared.items SET stock = 77 WHERE id <= 50").await.unwrap();
    scene.sql("UPDATE products SET name = 'changed', secret = 'other' WHERE id % 2 = 0").await;
    scene.sql("UPDATE products SET id = id + 1000 WHERE id <= 10").await;
    scene.sql("INSERT INTO products VALUES (5000, 'new', NULL, NULL)").await;
    scene.equal(&mut process).await;
    let own = "SELECT count(*) FILTER (WHERE stock = 77) || ' ' || count(*) FILTER (WHERE stock = 5) FROM shared.items";
    assert_eq!(text(scene.orders(), own).await, "50 51", "what the service wrote itself stays, also under a new key");
}

/// One transaction of 200 000 rows: whole at the sink, and not in the memory of the process.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_in_flat_memory() {
    let schema = "CREATE TABLE public.wide (id bigint PRIMARY KEY, a text, b text, n int)";
    let scene = Scene::new(LOCKSTEP, "large", schema, &[("public.wide", &["id"])]).await;
    let mut process = scene.start().await;
    let rows = 200_000;
    let insert = format!(
        "INSERT INTO wide SELECT i, repeat(md5(i::text), 4), md5(i::text || 'b'), i FROM generate_series(1, {rows}) i;
         UPDATE wide SET n = -n WHERE id % 10 = 0"
    );
    scene.sql(&format!("BEGIN; {insert}; COMMIT")).await;
    let client = scene.orders().connect().await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let row = client.query_one("SELECT count(*), count(*) FILTER (WHERE n < 0) FROM wide", &[]).await.unwrap();
        match (row.get::<_, i64>(0), row.get::<_, i64>(1)) {
            (0, 0) => {}
            (200_000, 20_000) => break,
            other => panic!("a transaction was seen in part: {other:?}"),
        }
        process.ensure_running().unwrap();
        assert!(Instant::now() < deadline, "the transaction has not arrived");
        sleep(Duration::from_millis(100)).await;
    }
    scene.equal(&mut process).await;
    let peak = process.peak_rss_bytes().unwrap() >> 20;
    println!("peak {peak} MB");
    assert!(peak < 150, "{peak} MB");
}

/// SIGTERM under load: out with 0 in time, the slot confirmed up to what the sinks hold, and the next start goes on there.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_order_leaves_nothing_to_do_again() {
    let scene = Scene::new(LOCKSTEP, "stop", EVENTS_SCHEMA, &EVENTS).await;
    let mut process = scene.start().await;
    let load = Events::on(&scene, QUICK);
    while load.committed() < 300 {
        sleep(Duration::from_millis(20)).await;
    }
    let (status, took) = process.terminate(Duration::from_secs(15)).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", scene.log());
    assert!(took < Duration::from_secs(10), "{took:?}");
    load.stop().await;

    // At rest the slot stands at the end of the last commit.
    let mut process = scene.start().await;
    scene.sql("INSERT INTO journal VALUES (-1)").await;
    let last = scene.source.wal_lsn().await.unwrap();
    scene.equal(&mut process).await;
    let (status, _) = process.terminate(Duration::from_secs(15)).await.unwrap();
    assert_eq!(status.code(), Some(0));
    let confirmed = scene.confirmed().await;
    let commit = text(scene.orders(), "SELECT commit_lsn FROM lockstep.progress").await.parse().unwrap();
    assert!(confirmed >= last && confirmed > commit, "confirmed {confirmed}, last commit {commit}, written {last}");
    let topic = format!("{}.public.events", scene.pipeline.name);
    let before = read_topic(&scene.services.kafka, &topic).len();
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    assert_eq!(read_topic(&scene.services.kafka, &topic).len(), before, "nothing was read again");
}

/// Nothing changes in the published tables while a neighbour fills the server's log: none of that log is kept for us.
#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_database_retains_nothing() {
    let scene = Scene::new(LOCKSTEP, "quiet", EVENTS_SCHEMA, &EVENTS).await;
    let neighbour = scene.services.catalog.create_database("neighbour").await.unwrap();
    neighbour.execute("CREATE TABLE noise (v text)").await.unwrap();
    let mut process = scene.start().await;
    neighbour.execute("INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 20000)").await.unwrap();
    let end = neighbour.wal_lsn().await.unwrap();
    let passed =
        format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{}'", scene.slot());
    wait_text(&scene.source, &passed, "true", &mut process).await;
    let closed = format!("SELECT closed_lsn >= '{end}' FROM lockstep.progress");
    wait_text(scene.orders(), &closed, "true", &mut process).await;
    scene.equal(&mut process).await;
}
