//! A disk that is full: said in the server's words, tried again, and nothing is lost or doubled.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::scene::{AUDIT_SCHEMA, EVENTS, EVENTS_SCHEMA, Events, PATIENCE, Scene, assert_once};
use support::server::{Ballast, OwnServer, mount};
use support::{Pipeline, Services, Status, TablePair};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const QUICK: Duration = Duration::from_millis(2);
/// A server needs some forty, and sixteen for each piece of its log.
const DISK_MEGABYTES: u32 = 160;

/// Whose disk is full is a sink's server; where a test may not mount a disk nothing is shown, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_whose_disk_is_full_goes_on_once_there_is_room() {
    let settings = ["min_wal_size = 32MB", "max_wal_size = 48MB", "shared_buffers = 16MB"];
    let Some(own) = OwnServer::start_on_disk(&Services::from_env(), "disk", &settings, DISK_MEGABYTES).await else {
        eprintln!("not shown: a disk of its own takes the right to mount one");
        return;
    };
    let scene = Scene::bare(LOCKSTEP, "disk", EVENTS_SCHEMA, 0).await;
    let sink = own.server.recreate_database(&scene.source.name).await.unwrap();
    sink.execute(EVENTS_SCHEMA).await.unwrap();
    sink.execute(AUDIT_SCHEMA).await.unwrap();
    let route = |p: Pipeline| EVENTS.iter().fold(p.sink("orders", &sink), |p, (table, _)| p.table(table));
    let tables = EVENTS.iter().map(|(table, key)| TablePair::same(table, key)).collect();
    let scene = scene.configure(route);
    let scene = Scene { sinks: vec![("orders", sink)], tables, ..scene };
    let mut process = scene.start().await;
    let load = Events::on(&scene, QUICK);
    for _ in 0..2 {
        let ballast = own.fill_disk();
        let full =
            |s: &Status| s.sink_state("orders") == "retrying" && s.to_string().contains("No space left on device");
        let status = process.wait_until("the server's words", PATIENCE, full).await.unwrap();
        assert_eq!((status.source_state(), status.halt_code(Some("orders"))), ("streaming", None), "{status}");
        drop(ballast);
        process.wait_until("it works again", PATIENCE, Status::all_streaming).await.unwrap();
    }
    assert!(load.stop().await > 0);
    scene.equal(&mut process).await;
    assert_once(scene.orders()).await;
    process.terminate(PATIENCE).await.unwrap();
}

/// A set of services whose broker has a small disk of its own.
struct SmallBroker {
    services: Services,
    disk: PathBuf,
}

impl SmallBroker {
    async fn start(dir: &Path, megabytes: u32) -> Option<SmallBroker> {
        let services = Services::start_set(&dir.to_owned()).unwrap();
        services.stop_kafka().unwrap();
        let server = services.catalog.superuser().await.unwrap();
        let row = server.query_one("SELECT setting FROM pg_settings WHERE name = 'data_directory'", &[]).await.unwrap();
        let disk = Path::new(row.get::<_, &str>(0)).with_file_name("kafka").join("data");
        let files = disk.with_file_name("files");
        std::fs::rename(&disk, &files).unwrap();
        let mounted = mount(&disk, &files, megabytes);
        let broker = SmallBroker { services, disk };
        mounted?;
        let copied = Command::new("cp").arg("-a").arg(files.join(".")).arg(&broker.disk).status().unwrap();
        assert!(copied.success());
        broker.services.start_kafka().unwrap();
        Some(broker)
    }
}

impl Drop for SmallBroker {
    fn drop(&mut self) {
        let _ = self.services.crash_kafka();
        let _ = Command::new("umount").arg(&self.disk).output();
        let _ = self.services.take_down();
    }
}

/// Long: it starts services of its own. A broker whose only disk is full ends; the person who makes room starts it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_disk_is_full_goes_on_once_there_is_room() {
    if std::env::var_os("LOCKSTEP_LONG").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(broker) = SmallBroker::start(&dir.path().join("set"), 200).await else {
        eprintln!("not shown: a disk of its own takes the right to mount one");
        return;
    };
    let services = broker.services.clone();
    let source = services.catalog.recreate_database("disk").await.unwrap();
    let sink = services.orders.recreate_database("disk").await.unwrap();
    for database in [&source, &sink] {
        database.execute(EVENTS_SCHEMA).await.unwrap();
    }
    sink.execute(AUDIT_SCHEMA).await.unwrap();
    let pipeline = Pipeline::new(LOCKSTEP, &services, &source).sink("orders", &sink);
    let pipeline = EVENTS.iter().fold(pipeline, |p, (table, _)| p.table(table));
    let tables = EVENTS.iter().map(|(table, key)| TablePair::same(table, key)).collect();
    let scene = Scene { pipeline, services, source, sinks: vec![("orders", sink)], tables };
    let mut process = scene.start().await;
    let load = Events::on(&scene, QUICK);
    for _ in 0..2 {
        let ballast = Ballast::fill(&broker.disk);
        let retries = |s: &Status| s.source_state() == "retrying" && s.sink_state("orders") != "halted";
        let status = process.wait_until("Kafka is gone", PATIENCE, retries).await.unwrap();
        assert_eq!((status.halt_code(None), status.halt_code(Some("orders"))), (None, None), "{status}");
        drop(ballast);
        // It may have ended, or be about to.
        let _ = scene.services.crash_kafka();
        scene.services.start_kafka().unwrap();
        process.wait_until("it works again", PATIENCE, Status::all_streaming).await.unwrap();
    }
    assert!(load.stop().await > 0);
    scene.equal(&mut process).await;
    assert_once(scene.orders()).await;
    process.terminate(PATIENCE).await.unwrap();
}
