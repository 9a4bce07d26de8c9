//! Servers and connections that die under load: nothing is lost, nothing doubled, and no hand is needed.
//!
//! The servers are shared, so these tests run one at a time; and they are in a file of their own, since cargo runs files one
//! after the other and nobody else's test should lose its server.

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use support::scene::{
    AUDIT_SCHEMA, EVENTS, EVENTS_SCHEMA, Events, PATIENCE, Scene, assert_once, text, wait_text, watch_whole,
};
use support::{Pipeline, Process, Status};
use tokio::sync::Mutex;
use tokio::time::sleep;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const QUICK: Duration = Duration::from_millis(2);

/// Of the source's server, once Kafka has been away for longer than the grace time.
const SHUTDOWN: Duration = Duration::from_secs(5);

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

async fn scene(hint: &str) -> (Scene, Process) {
    let scene = Scene::new(LOCKSTEP, hint, EVENTS_SCHEMA, &EVENTS).await;
    scene.orders().execute(AUDIT_SCHEMA).await.unwrap();
    let process = scene.start().await;
    (scene, process)
}

/// Load is running, and what was committed before `since` is through.
async fn more(load: &Events, since: i64) {
    let begun = std::time::Instant::now();
    while load.committed() < since + 50 {
        assert!(begun.elapsed() < PATIENCE, "the load stands still");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The sink's connection is cut at any moment, also between COMMIT and its answer.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_at_any_moment() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (scene, mut process) = scene("cut").await;
    let load = Events::on(&scene, QUICK);
    let (stop, watcher) = watch_whole(scene.orders());
    let (sink, source) = (scene.orders().superuser().await.unwrap(), scene.source.superuser().await.unwrap());
    let mut random = StdRng::seed_from_u64(17);
    for round in 0..9 {
        let server = if round % 3 == 2 { &source } else { &sink };
        cut(server, "true").await;
        sleep(Duration::from_millis(random.random_range(0..150))).await;
    }
    assert!(load.stop().await > 200);
    scene.equal(&mut process).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    watcher.await.unwrap();
    assert_once(scene.orders()).await;
}

/// Ends the pipeline's connections to a database as soon as there is one for which `when` holds. Pauses between attempts grow,
/// so it is waited for.
async fn cut(server: &tokio_postgres::Client, when: &str) {
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
          WHERE datname = current_database() AND application_name LIKE 'lockstep:%' AND {when}"
    );
    let begun = std::time::Instant::now();
    while server.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(begun.elapsed() < PATIENCE, "there is no connection with {when}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// The worst moment of all: the transaction is committed, and the connection ends before its answer. A commit that waits for a
/// standby that does not exist is in exactly that state when its backend is terminated.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_not_done_again() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (scene, mut process) = scene("unknown").await;
    let load = Events::on(&scene, QUICK);
    let sink = scene.orders().superuser().await.unwrap();
    sink.batch_execute("SET synchronous_commit = local").await.unwrap();
    let standby = async |name: &str| {
        sink.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'")).await.unwrap();
        sink.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    };
    for _ in 0..4 {
        let rows: i64 = sink.query_one("SELECT count(*) FROM audit", &[]).await.unwrap().get(0);
        standby("nobody").await;
        cut(&sink, "wait_event = 'SyncRep'").await;
        standby("").await;
        let begun = std::time::Instant::now();
        while sink.query_one("SELECT count(*) FROM audit", &[]).await.unwrap().get::<_, i64>(0) <= rows {
            assert!(begun.elapsed() < PATIENCE, "the sink stands still");
            sleep(Duration::from_millis(20)).await;
        }
        process.wait_until("the sink works again", PATIENCE, |s| s.sink_state("orders") == "streaming").await.unwrap();
    }
    sink.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
    sink.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    load.stop().await;
    scene.equal(&mut process).await;
    assert!(scene.log().contains("committing at the sink"), "the outcome of a commit was unknown\n{}", scene.log());
    assert_once(scene.orders()).await;
}

/// A frozen process loses source and sink to a second one, and what it still tries when it wakes up counts for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_process_wakes_up_as_a_standby() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let scene = Scene::new(LOCKSTEP, "frozen", EVENTS_SCHEMA, &EVENTS).await.configure(|p| {
        p.several().set("source", "sender_timeout = \"2s\"").set("sinks.orders", "lease_timeout = \"2s\"")
    });
    scene.orders().execute(AUDIT_SCHEMA).await.unwrap();
    let mut first = scene.start().await;
    let load = Events::on(&scene, QUICK);
    let mut second = scene.spawn(&[]);
    second.wait_until("a standby", PATIENCE, |s| s.source_state() == "standby").await.unwrap();
    more(&load, load.committed()).await;
    first.signal(Signal::STOP).unwrap();
    second.wait_until("the standby reads and writes", PATIENCE, |s| s.all_streaming()).await.unwrap();
    more(&load, load.committed()).await;
    first.signal(Signal::CONT).unwrap();
    more(&load, load.committed()).await;
    load.stop().await;
    first.wait_until("the reader that lost its slot waits", PATIENCE, |s| s.source_state() == "standby").await.unwrap();
    scene.equal(&mut second).await;
    first.ensure_running().unwrap();
    assert_once(scene.orders()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sinks_server_crashes() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (scene, mut process) = scene("sink_crash").await;
    let load = Events::on(&scene, QUICK);
    for _ in 0..2 {
        more(&load, load.committed()).await;
        scene.services.orders.crash().unwrap();
        more(&load, load.committed()).await;
        scene.services.orders.start().unwrap();
        process.wait_until("the sink works again", PATIENCE, |s| s.sink_state("orders") == "streaming").await.unwrap();
    }
    load.stop().await;
    scene.equal(&mut process).await;
    assert_once(scene.orders()).await;
}

/// One of two sinks is away for a while under load: it is probed and not stormed, the status says why, the other one goes on, and
/// when it is back it catches up by itself, soon.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_away_is_probed_and_holds_up_nobody() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let scene = Scene::two(LOCKSTEP, "away", EVENTS_SCHEMA, &EVENTS).await.configure(Pipeline::several);
    scene.orders().execute(AUDIT_SCHEMA).await.unwrap();
    let mut process = scene.start().await;
    let load = Events::on(&scene, QUICK);
    more(&load, load.committed()).await;
    scene.services.orders.stop().unwrap();
    let retry = |s: &Status| s.0["sinks"]["orders"]["retry"].clone();
    let status = process.wait_until("the breaker opens", PATIENCE, |s| retry(s)["breaker"] == "open").await.unwrap();
    assert_eq!(status.sink_state("orders"), "retrying", "{status}");
    let why = retry(&status)["error"].as_str().unwrap().to_owned();
    assert!(why.contains("connecting to") && why.contains("refused"), "{why}");
    assert_eq!(status.0["sinks"]["orders"]["waiting_for"], why.as_str());
    let (opened, failures) = (Instant::now(), retry(&status)["failures"].as_u64().unwrap());
    let cpu = cpu_seconds(&mut process).await;
    let metrics = process.get("/metrics").await.unwrap();
    assert!(metrics.contains("lockstep_sink_breaker_open{sink=\"orders\"} 1"), "{metrics}");
    let written = load.committed();
    sleep(Duration::from_secs(8)).await;
    let status = process.status().await.unwrap();
    let probes = retry(&status)["failures"].as_u64().unwrap() - failures;
    // The pauses are at least 0.8, 1.6, 3.2 and 5 seconds from there.
    assert!((1..=4).contains(&probes), "{probes} probes in {:?}: {status}", opened.elapsed());
    let next: jiff::Timestamp = retry(&status)["next_try"].as_str().unwrap().parse().unwrap();
    let wait = next.duration_since(jiff::Timestamp::now());
    assert!(wait <= jiff::SignedDuration::from_secs(10), "the next probe is {wait} away");
    let cpu = cpu_seconds(&mut process).await - cpu;
    assert!(cpu < 6.0, "{cpu} s of processor time in 8 s, of two sinks, a source, and a load");

    // The other one never noticed.
    assert!(load.committed() > written);
    assert_eq!((status.sink_state("inventory"), status.source_state()), ("streaming", "streaming"), "{status}");
    assert!(status.0["sinks"]["inventory"]["lag_seconds"].as_f64().unwrap() < 5.0, "{status}");

    scene.services.orders.start().unwrap();
    let (back, behind) = (Instant::now(), load.committed());
    let arrived = format!("SELECT EXISTS (SELECT FROM journal WHERE tx >= {behind})");
    wait_text(scene.orders(), &arrived, "true", &mut process).await;
    assert!(back.elapsed() < Duration::from_secs(20), "it took {:?} to be there again", back.elapsed());
    load.stop().await;
    scene.equal(&mut process).await;
    process.wait_until("the breaker is closed", PATIENCE, |s| retry(s).is_null()).await.unwrap();
    assert!(process.get("/metrics").await.unwrap().contains("lockstep_sink_breaker_open{sink=\"orders\"} 0"));
    assert_once(scene.orders()).await;
}

/// Processor time that the process has used.
async fn cpu_seconds(process: &mut Process) -> f64 {
    let metrics = process.get("/metrics").await.unwrap();
    let sample = |line: &str| line.strip_prefix("lockstep_process_cpu_seconds_total ").map(str::to_owned);
    metrics.lines().find_map(sample).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sources_server_crashes() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (scene, mut process) = scene("source_crash").await;
    let load = Events::on(&scene, QUICK);
    for _ in 0..2 {
        more(&load, load.committed()).await;
        scene.services.catalog.crash().unwrap();
        scene.services.catalog.start().unwrap();
        process.wait_until("the source is read again", PATIENCE, |s| s.source_state() == "streaming").await.unwrap();
        more(&load, load.committed()).await;
    }
    load.stop().await;
    scene.equal(&mut process).await;
    assert_once(scene.orders()).await;
    assert_eq!(text(&scene.source, "SELECT count(*) * 3 = (SELECT count(*) FROM events) FROM journal").await, "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_crashes() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (scene, mut process) = scene("kafka_crash").await;
    let load = Events::on(&scene, QUICK);
    more(&load, load.committed()).await;
    scene.services.crash_kafka().unwrap();
    more(&load, load.committed()).await;
    process.ensure_running().unwrap();
    scene.services.start_kafka().unwrap();
    process.wait_until("both ends work again", PATIENCE, |s| s.all_streaming()).await.unwrap();
    more(&load, load.committed()).await;
    // A process that dies while Kafka is away, and one that starts meanwhile.
    scene.services.crash_kafka().unwrap();
    process.kill9().unwrap();
    let mut process = scene.spawn(&[]);
    more(&load, load.committed()).await;
    scene.services.start_kafka().unwrap();
    load.stop().await;
    scene.equal(&mut process).await;
    assert_once(scene.orders()).await;
}

/// A connected reader that confirms nothing would hold up the source's shutdown for ever. Without Kafka it gives its connection
/// up, whether it has something to write or not, and whether the broker is gone or only deaf; `scripts/services stop` fails if
/// the server does not end.
#[tokio::test(flavor = "multi_thread")]
async fn the_source_can_shut_down_while_kafka_is_away() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let scene = Scene::new(LOCKSTEP, "shutdown", EVENTS_SCHEMA, &EVENTS).await;
    scene.orders().execute(AUDIT_SCHEMA).await.unwrap();
    let scene = scene.configure(|p| p.set("kafka", "grace = \"1s\""));
    let mut process = scene.start().await;
    for deaf in [false, true] {
        let load = deaf.then(|| Events::on(&scene, QUICK));
        match deaf {
            true => scene.services.signal_kafka(Signal::STOP).unwrap(),
            false => scene.services.stop_kafka().unwrap(),
        }
        let held = "SELECT count(*) FROM pg_stat_replication WHERE application_name LIKE 'lockstep:%'";
        wait_text(&scene.source, held, "0", &mut process).await;
        let begun = std::time::Instant::now();
        scene.services.catalog.stop().unwrap();
        assert!(begun.elapsed() < SHUTDOWN, "stopping took {:?}", begun.elapsed());
        scene.services.catalog.start().unwrap();
        match deaf {
            true => scene.services.signal_kafka(Signal::CONT).unwrap(),
            false => scene.services.start_kafka().unwrap(),
        }
        process.wait_until("both ends work again", PATIENCE, |s| s.all_streaming()).await.unwrap();
        match load {
            Some(load) => assert!(load.stop().await > 0),
            None => {
                scene
                    .sql("INSERT INTO events VALUES (-1, -1), (-2, -1), (-3, -1); INSERT INTO journal VALUES (-1)")
                    .await
            }
        }
        scene.equal(&mut process).await;
    }
    assert_once(scene.orders()).await;
}

const ANOTHER: &str = "INSERT INTO journal SELECT coalesce(max(tx), 0) + 1 FROM journal";

/// A damaged file under `pg_logical`: some internal errors of a server heal, this one does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_can_not_decode_its_own_log() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (scene, mut process) = scene("undecodable").await;
    let superuser = scene.source.superuser().await.unwrap();
    // A transaction that is open where decoding begins: only with what the file holds does the server know what it saw.
    let open = scene.source.superuser().await.unwrap();
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    let begun = text(&scene.source, "SELECT pg_current_wal_lsn()").await;
    let slot = format!("SELECT restart_lsn > '{begun}' FROM pg_replication_slots WHERE slot_name = '{}'", scene.slot());
    let deadline = Instant::now() + PATIENCE;
    while text(&scene.source, &slot).await != "true" {
        assert!(Instant::now() < deadline, "the slot stays");
        superuser.batch_execute("CHECKPOINT").await.unwrap();
        scene.sql(ANOTHER).await;
        scene.equal(&mut process).await;
    }
    process.terminate(PATIENCE).await.unwrap();
    let damaged = damage_snapshots(&scene);
    let mut process = scene.spawn(&[]);
    let undecodable = |s: &Status| s.halt_code(None) == Some("SOURCE_UNDECODABLE");
    let status = process.wait_until("the halt", PATIENCE, undecodable).await.unwrap();
    assert!(status.0["source"]["halt"]["message"].as_str().unwrap().contains("SQLSTATE XX001"), "{status}");
    process.terminate(PATIENCE).await.unwrap();

    for (path, bytes) in damaged {
        std::fs::write(path, bytes).unwrap();
    }
    open.batch_execute("ROLLBACK").await.unwrap();
    scene.sql(ANOTHER).await;
    assert!(scene.pipeline.command(&["restart"]).unwrap().status.success());
    let mut process = scene.spawn(&[]);
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();
}

/// Overwrites what decoding at the source begins from, and gives it back.
fn damage_snapshots(scene: &Scene) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = scene.services.dir.join("data/catalog/pg_logical/snapshots");
    let paths = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let damaged: Vec<_> = paths.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    for (path, bytes) in &damaged {
        std::fs::write(path, vec![0; bytes.len()]).unwrap();
    }
    damaged
}
