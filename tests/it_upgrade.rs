//! pg_upgrade of the source's server from 17 to 18 with our slot carried over: everything goes on, and nothing is read again.

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use support::scene::{PATIENCE, Scene, text};
use support::server::OwnServer;
use support::services::unique_name;
use support::{Process, Status};
use tokio::time::sleep;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const SCHEMA: &str = "
    CREATE TYPE public.mood AS ENUM ('sad', 'glad');
    CREATE TABLE public.items (id int PRIMARY KEY, gone int, v text, n int, m mood);
    ALTER TABLE public.items DROP COLUMN gone";

/// Runs a verb: its exit code and what it printed.
fn verb(scene: &Scene, arguments: &[&str]) -> (i32, String) {
    scene.pipeline.write().unwrap();
    let output = scene.pipeline.command(arguments).unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code().unwrap(), text)
}

fn upgrade(own: &mut OwnServer) {
    let data = own.data.with_file_name(unique_name("upgraded"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/pg-upgrade");
    let output = Command::new(script).arg(own.binaries()).args([&own.data, &data]).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap()).concat()
    );
    let binaries = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    own.become_of(data, binaries);
}

async fn refused(scene: &Scene, code: &str) {
    let before = scene.fingerprint("public.items").await;
    let mut process = scene.spawn(&["source"]);
    assert_eq!(process.wait(PATIENCE).await.unwrap().code(), Some(3), "{}", scene.log());
    assert!(scene.log().contains(code), "{}", scene.log());
    assert_eq!(scene.fingerprint("public.items").await, before);
}

async fn confirmed_up_to(process: &mut Process, lsn: lockstep::lsn::Lsn) {
    let passed = |s: &Status| {
        s.0["source"]["position"].as_str().is_some_and(|p| p.parse::<lockstep::lsn::Lsn>().unwrap() >= lsn)
    };
    process.wait_until("the change is published", PATIENCE, passed).await.unwrap();
}

/// Long: it takes half a minute, and downloads a second Postgres the first time.
#[tokio::test(flavor = "multi_thread")]
async fn after_pg_upgrade_everything_goes_on_and_nothing_is_read_again() {
    let services = support::Services::from_env();
    if std::env::var_os("LOCKSTEP_LONG").is_none() || services.postgres_version != 17 {
        return;
    }
    let mut own = OwnServer::start(&services, "upgrade", &[]).await;
    let scene = Scene::on(LOCKSTEP, "upgrade", SCHEMA, &[("public.items", &["id"])], &own.server).await;
    let filled = "INSERT INTO items (id, v, n, m) SELECT i, repeat('v', 3000), i, 'glad' FROM generate_series(1, 50) i";
    scene.sql(filled).await;
    let mut process = scene.start().await;
    // With a reader at work it is waited for; without one what it has left is seen.
    scene.sql("UPDATE items SET n = n + 1 WHERE id < 9").await;
    let (code, said) = verb(&scene, &["check", "--upgrade"]);
    assert!(code == 0 && said.contains("upgrade, with all of the source's changes"), "{said}");
    process.terminate(PATIENCE).await.unwrap();
    scene.sql("DELETE FROM items WHERE id = 50").await;
    let (code, said) = verb(&scene, &["check", "--upgrade"]);
    assert!(code == 3 && said.contains("error[NOT_DRAINED]"), "{said}");
    let (code, said) = verb(&scene, &["restart", "--upgraded"]);
    assert!(code == 2 && said.contains("was not upgraded"), "{said}");
    // What a sink still lacks is in Kafka.
    let mut source = scene.spawn(&["source"]);
    scene.sql("INSERT INTO items (id, v, n, m) VALUES (51, 'the last', 0, 'sad')").await;
    confirmed_up_to(&mut source, scene.source.wal_lsn().await.unwrap()).await;
    assert_eq!(verb(&scene, &["check", "--upgrade"]).0, 0);
    // The reader is there until the server has told it everything.
    own.stop().await;
    source.kill9().unwrap();
    upgrade(&mut own);
    own.set(&[
        &format!("port = {}", own.server.port),
        "listen_addresses = '127.0.0.1'",
        "unix_socket_directories = ''",
    ]);
    own.run().await;
    assert!(text(&scene.source, "SELECT version()").await.starts_with("PostgreSQL 18"));
    // Whatever is written before anybody says so is in the slot.
    scene.sql("UPDATE items SET v = 'the first' WHERE id = 1").await;
    refused(&scene, "SOURCE_MISMATCH").await;
    assert!(scene.log().contains("lockstep restart --upgraded"), "{}", scene.log());
    let read = scene.rows_read("public.items");
    let (code, said) = verb(&scene, &["restart", "--upgraded"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(verb(&scene, &["check"]).0, 0, "{}", verb(&scene, &["check"]).1);
    let mut process = scene.start().await;
    scene.sql("UPDATE items SET m = 'sad', n = 7 WHERE id = 2").await;
    scene.equal(&mut process).await;
    // The looks of every 2 s have been taken, and a base after them.
    sleep(Duration::from_secs(5)).await;
    process.terminate(PATIENCE).await.unwrap();
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    assert_eq!(scene.rows_read("public.items"), read, "nothing was read again\n{}", scene.log());
    let (code, said) = verb(&scene, &["restart", "--upgraded"]);
    assert!(code == 2 && said.contains("noted already"), "{said}");
}
