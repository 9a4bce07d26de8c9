//! A disk that is full: said in the server's words, tried again, and nothing is lost or doubled.

mod support;

use std::time::Duration;

use support::scene::{AUDIT_SCHEMA, EVENTS, EVENTS_SCHEMA, Events, PATIENCE, Scene, assert_once};
use support::server::OwnServer;
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
