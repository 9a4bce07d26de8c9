//! A source that is not what it was: a standby that was promoted, files that somebody put back. It goes on without a row lost, or
//! halts by name with the sink untouched, and what the halt says to type makes the sink equal to the source as it is now.

mod support;

use support::scene::{PATIENCE, Scene, text, wait_text};
use support::server::OwnServer;
use support::{Process, Services};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const ITEMS: &str = "CREATE TABLE public.items (id int PRIMARY KEY, v text, n int)";
const TABLES: [support::scene::Keyed; 1] = [("public.items", &["id"])];
/// Since then slots go with a fail-over.
const CARRIES_SLOTS: u32 = 17;

/// A server, and a standby of it that is not running; `settings` are those of the first.
async fn pair(hint: &str, settings: &[&str]) -> (OwnServer, OwnServer) {
    let services = Services::from_env();
    let mut primary = OwnServer::start(&services, hint, settings).await;
    primary.superuser("SELECT pg_create_physical_replication_slot('standby', true)").await;
    primary.stop().await;
    let standby = primary.copy(hint);
    primary.run().await;
    standby.set(&[
        &format!("primary_conninfo = 'host=127.0.0.1 port={} user=postgres dbname=postgres'", primary.server.port),
        "primary_slot_name = 'standby'",
        "hot_standby_feedback = on",
    ]);
    if services.postgres_version >= CARRIES_SLOTS {
        standby.set(&["sync_replication_slots = on", "synchronized_standby_slots = ''"]);
    }
    std::fs::write(standby.data.join("standby.signal"), "").unwrap();
    (primary, standby)
}

/// The standby is the source from here on, at the address that the source had.
async fn promote(standby: &mut OwnServer, primary: &OwnServer) {
    standby.superuser("SELECT pg_promote(true, 60)").await;
    standby.stop().await;
    standby.server.port = primary.server.port;
    standby.run().await;
}

/// Waits until a query of the superuser's at a server gives that text.
async fn wait_at(server: &OwnServer, sql: &str, wanted: &str) {
    let begun = std::time::Instant::now();
    let session = server.server.superuser().await.unwrap();
    loop {
        let found: String = session.query_one(&format!("SELECT ({sql})::text"), &[]).await.unwrap().get(0);
        if found == wanted {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{sql}: {found}, not {wanted}\n{}", server.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// The standby has our slot, for good. It looks the less often the less happens.
async fn slot_is_there(standby: &OwnServer, primary: &OwnServer) {
    let there =
        "SELECT count(*) FROM pg_replication_slots WHERE synced AND NOT temporary AND invalidation_reason IS NULL";
    let session = standby.server.superuser().await.unwrap();
    let begun = std::time::Instant::now();
    while session.query_one(there, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(begun.elapsed() < PATIENCE, "{}", standby.log());
        primary.superuser("SELECT pg_log_standby_snapshot()").await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// The source role and `check` refuse; no sink is touched, and what the halt says is typed.
async fn refused_and_begun_anew(scene: &Scene, code: &str) -> Process {
    let before = scene.fingerprint("public.items").await;
    let mut process = scene.spawn(&["source"]);
    assert_eq!(process.wait(PATIENCE).await.unwrap().code(), Some(3), "{}", scene.log());
    assert!(scene.log().contains(code), "{}", scene.log());
    let check = scene.pipeline.command(&["check"]).unwrap();
    let said = String::from_utf8(check.stdout).unwrap();
    assert_eq!(check.status.code(), Some(if said.contains(code) { 3 } else { 0 }), "{said}");
    assert_eq!(scene.fingerprint("public.items").await, before);
    assert!(scene.log().contains("\"hint\":\"lockstep restart"), "{}", scene.log());
    let restart = scene.pipeline.command(&["restart"]).unwrap();
    assert!(restart.status.success(), "{restart:?}");
    let begun = "SELECT reader_epoch FROM lockstep.progress";
    let old = text(scene.orders(), begun).await;
    let mut process = scene.spawn(&[]);
    // Positions of the source as it is now may be below those that the sink has.
    wait_text(scene.orders(), &format!("SELECT ({begun}) <> {old}"), "true", &mut process).await;
    scene.equal(&mut process).await;
    process
}

/// The slot is on the standby too, and nothing is read that the standby has not: everything goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_with_the_slot_goes_on() {
    let carries = Services::from_env().postgres_version >= CARRIES_SLOTS;
    let waits: &[&str] = if carries { &["synchronized_standby_slots = 'standby'"] } else { &[] };
    let (mut primary, mut standby) = pair("failover", waits).await;
    let scene = Scene::on(LOCKSTEP, "failover", ITEMS, &TABLES, &primary.server).await;
    scene.sql("INSERT INTO items SELECT i, 'v' || i, i FROM generate_series(1, 50) i").await;
    // Nothing is read that the standby has not.
    let mut process = scene.spawn(&[]);
    standby.run().await;
    scene.streaming(&mut process).await;
    if carries {
        slot_is_there(&standby, &primary).await;
    }
    // What the standby's slot does not know yet is sent again.
    scene
        .sql("UPDATE items SET n = n + 1; DELETE FROM items WHERE id < 9; INSERT INTO items VALUES (99, 'last', 0)")
        .await;
    scene.streaming(&mut process).await;
    let (read, end) = (scene.rows_read("public.items"), scene.source.wal_lsn().await.unwrap());
    wait_at(&standby, &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"), "true").await;
    primary.crash().await;
    promote(&mut standby, &primary).await;
    if !carries {
        process.kill9().unwrap();
        refused_and_begun_anew(&scene, "SLOT_LOST").await;
        return;
    }
    scene.sql("UPDATE items SET v = 'on the new one' WHERE id = 20; INSERT INTO items VALUES (100, 'new', 0)").await;
    scene.equal(&mut process).await;
    assert_eq!(scene.rows_read("public.items"), read, "nothing was read again");
    assert_eq!(text(&scene.source, "SELECT timeline_id FROM pg_control_checkpoint()").await, "2");
}

/// A standby that lacks commits which sinks have, then copies of files that are older than what sinks have.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lacks_what_was_published_is_refused() {
    let (mut primary, mut standby) = pair("behind", &[]).await;
    let scene = Scene::on(LOCKSTEP, "behind", ITEMS, &TABLES, &primary.server).await;
    scene.sql("INSERT INTO items SELECT i, 'v' || i, i FROM generate_series(1, 50) i").await;
    let mut process = scene.start().await;
    standby.run().await;
    if scene.services.postgres_version >= CARRIES_SLOTS {
        slot_is_there(&standby, &primary).await;
    }
    let end = scene.source.wal_lsn().await.unwrap();
    wait_at(&standby, &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"), "true").await;
    standby.stop().await;
    scene.sql("UPDATE items SET v = 'nobody knows' WHERE id < 20; DELETE FROM items WHERE id > 40").await;
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();
    primary.crash().await;
    standby.run().await;
    promote(&mut standby, &primary).await;
    let carries = scene.services.postgres_version >= CARRIES_SLOTS;
    let mut process = refused_and_begun_anew(&scene, if carries { "DIVERGED" } else { "SLOT_LOST" }).await;

    // Its files as they were some commits ago, which is the same timeline.
    process.terminate(PATIENCE).await.unwrap();
    standby.stop().await;
    let backup = standby.copy("backup");
    standby.run().await;
    let mut process = scene.start().await;
    scene.sql("UPDATE items SET v = 'after the backup'; DELETE FROM items WHERE id = 1").await;
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();
    standby.stop().await;
    standby.restore(&backup);
    standby.run().await;
    let mut process = refused_and_begun_anew(&scene, "bytes below what was published").await;
    assert_ne!(text(scene.orders(), "SELECT min(v) FROM items").await, "after the backup");

    // The same, and its log has grown beyond what was published before anybody looks.
    process.terminate(PATIENCE).await.unwrap();
    standby.stop().await;
    let backup = standby.copy("backup");
    standby.run().await;
    let mut process = scene.start().await;
    scene.sql("UPDATE items SET v = 'after the second backup'").await;
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();
    let published = scene.source.wal_lsn().await.unwrap();
    standby.stop().await;
    standby.restore(&backup);
    standby.run().await;
    while scene.source.wal_lsn().await.unwrap() <= published {
        scene.sql("UPDATE items SET n = n + 1, v = repeat('x', 2000)").await;
    }
    let mut process = refused_and_begun_anew(&scene, "which was published: it was restored and written to since").await;
    scene.sql("UPDATE items SET v = 'in the end'").await;
    scene.equal(&mut process).await;
    process.ensure_running().unwrap();
}
