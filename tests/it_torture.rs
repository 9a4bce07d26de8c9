//! A small part of what scripts/torture does (docs/reliability.md): the same writers, oracles and faults, those that are over
//! within a second or two.
//!
//! In a file of its own: a server is crashed here, and cargo runs files one after the other.

mod support;
mod torture;

use std::time::Duration;

use support::scene::{AUDIT_SCHEMA, EVENTS, EVENTS_SCHEMA, Events, PATIENCE, Scene, assert_once, text};
use tokio::time::sleep;
use torture::Options;
use torture::faults::Kind;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const QUICK: Duration = Duration::from_millis(2);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "was red once on a busy machine: docs/reliability.md"]
async fn a_little_torture() {
    let kinds = vec![
        Kind::KillSource,
        Kind::KillSink,
        Kind::ZombieSink,
        Kind::SinkCrash,
        Kind::Reset,
        Kind::Cut,
        Kind::UnknownCommit,
        Kind::ProduceLost,
        Kind::LoadKilled,
    ];
    // Tests share their machine with others.
    let level_time = Duration::from_secs(180);
    let options =
        Options { lockstep: LOCKSTEP.into(), time: Duration::ZERO, seed: 7, kinds, faults_max: 2, level_time };
    let report = torture::run(&options).await.unwrap();
    println!("{report}");
    assert!(report.is_clean(), "{}", report.json());
}

/// A sink's progress goes back with its rows, and Kafka still has what came after.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_restored_from_an_older_backup_goes_on() {
    let scene = Scene::new(LOCKSTEP, "backup", EVENTS_SCHEMA, &EVENTS).await;
    scene.orders().execute(AUDIT_SCHEMA).await.unwrap();
    let mut process = scene.start().await;
    let load = Events::on(&scene, QUICK);
    while load.committed() < 50 {
        sleep(QUICK).await;
    }
    // A database with sessions can't be copied.
    let (admin, name) = (scene.orders().server.superuser().await.unwrap(), &scene.orders().name);
    process.terminate(PATIENCE).await.unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {name}_backup TEMPLATE {name}")).await.unwrap();
    let mut process = scene.spawn(&[]);
    scene.streaming(&mut process).await;
    let before: i64 = text(scene.orders(), "SELECT count(*) FROM events").await.parse().unwrap();
    process.terminate(PATIENCE).await.unwrap();
    admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
    admin.batch_execute(&format!("ALTER DATABASE {name}_backup RENAME TO {name}")).await.unwrap();
    let restored: i64 = text(scene.orders(), "SELECT count(*) FROM events").await.parse().unwrap();
    assert!(restored < before, "the backup is older");
    let mut process = scene.spawn(&[]);
    load.stop().await;
    scene.equal(&mut process).await;
    assert_once(scene.orders()).await;
}

/// Stale rows of a table that is read again may hang on what the stream of the other one deletes.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_is_read_again_while_its_parents_go() {
    let schema = "CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent DEFERRABLE)";
    let tables: [(&str, &[&str]); 2] = [("public.parent", &["id"]), ("public.child", &["id"])];
    let scene = Scene::new(LOCKSTEP, "hang", schema, &tables).await;
    scene.sql("INSERT INTO parent SELECT generate_series(1, 4000); INSERT INTO child SELECT id, id FROM parent").await;
    let scene = scene.configure(|p| p.set("source.snapshot", "chunk_rows = 50"));
    let mut process = scene.start().await;
    process.terminate(PATIENCE).await.unwrap();
    let output = scene.pipeline.command(&["resync", "public.child", "--sink", "orders"]).unwrap();
    assert!(output.status.success());
    scene.sql("DELETE FROM child WHERE id > 3990; DELETE FROM parent WHERE id > 3990").await;
    let mut process = scene.spawn(&[]);
    scene.equal(&mut process).await;
}
