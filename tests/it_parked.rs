//! Rows that a sink in row consistency refuses: parked, followed by what makes them right, put back, and never lost or guessed.

mod support;

use std::time::{Duration, Instant};

use support::compare::TablePair;
use support::scene::{PATIENCE, Scene, Seen, halted, read_topic, text, wait_text};
use support::{Pipeline, Process};
use tokio::time::sleep;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

/// A large note that an UPDATE does not touch is not sent.
const ITEMS: &str = "
CREATE TABLE public.items (id bigint PRIMARY KEY, v int NOT NULL, note text);
ALTER TABLE public.items ALTER note SET STORAGE EXTERNAL;
";

const FEW: &str = "ALTER TABLE items ADD CONSTRAINT few CHECK (v < 1000)";

async fn scene(hint: &str) -> Scene {
    let scene = Scene::bare(LOCKSTEP, hint, ITEMS, 1).await;
    scene.sql("INSERT INTO items SELECT i, i, repeat('x', 9000) FROM generate_series(1, 20) i").await;
    let route = |p: Pipeline| {
        let p = p.several().set("sinks.orders", "lease_timeout = \"2s\"").set("sinks.orders", "consistency = \"row\"");
        let p = p.set("sinks.orders", "on_refused = \"park\"").set("sinks.orders", "parked_max = 6");
        p.connector("public.items", "partitions = 2\n[sinks.orders]\n")
    };
    Scene { tables: vec![TablePair::same("public.items", &["id"])], ..scene.configure(route) }
}

/// Keys with what is parked of each.
const PARKED: &str = "SELECT string_agg(key || ':' || n, ' ' ORDER BY key) FROM \
    (SELECT key, count(*) n FROM lockstep.parked WHERE settled_at IS NULL GROUP BY key) p";

async fn wait_parked(scene: &Scene, wanted: &str, process: &mut Process) {
    // Nothing of it is there before the sink has streamed.
    wait_text(scene.orders(), PARKED, wanted, process).await;
}

/// What is in the dead-letter topic once so many records are.
async fn dead_letters(scene: &Scene, count: usize) -> Vec<Seen> {
    let topic = format!("lockstep.{}.orders.parked", scene.pipeline.name);
    let begun = Instant::now();
    loop {
        let seen = read_topic(&scene.services.kafka, &topic);
        if seen.len() >= count {
            return seen;
        }
        assert!(begun.elapsed() < PATIENCE, "{} of {count} letters are there", seen.len());
        sleep(Duration::from_millis(100)).await;
    }
}

fn said(seen: &Seen, name: &str) -> String {
    String::from_utf8(seen.header(&format!("lockstep.parked.{name}")).unwrap_or_default().to_vec()).unwrap()
}

/// Runs `lockstep retry`; its exit code and what it printed.
fn retry(scene: &Scene, arguments: &[&str]) -> (i32, String) {
    let output = scene.pipeline.command(&[&["retry"], arguments].concat()).unwrap();
    (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// What is refused is left out and kept; everything else goes on, what makes a row right is applied, what stands on it waits
/// behind it, and `lockstep retry` writes what is left, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_row_is_parked_and_put_back() {
    let scene = scene("parked").await;
    scene.orders().execute(FEW).await.unwrap();
    // One that is there before.
    scene.sql("INSERT INTO items VALUES (7, 7000, 'old') ON CONFLICT (id) DO UPDATE SET v = excluded.v").await;
    let mut one = scene.start().await;
    wait_parked(&scene, r#"{"id":"7"}:1"#, &mut one).await;
    scene.sql("DELETE FROM items WHERE id = 7").await;
    wait_parked(&scene, "NULL", &mut one).await;
    let two = scene.spawn(&["sink:orders"]);
    scene
        .sql(
            "BEGIN; UPDATE items SET v = 5000 + id WHERE id <= 3; INSERT INTO items VALUES (100, 6000, 'new');
             UPDATE items SET v = v + 100 WHERE id > 3 AND v < 1000; COMMIT",
        )
        .await;
    wait_parked(&scene, r#"{"id":"1"}:1 {"id":"100"}:1 {"id":"2"}:1 {"id":"3"}:1"#, &mut one).await;
    wait_text(scene.orders(), "SELECT count(*) FROM items WHERE v > 100 AND v < 1000", "16", &mut one).await;
    let letters = dead_letters(&scene, 5).await;
    for letter in &letters {
        assert_eq!(said(letter, "code"), "CONSTRAINT_REFUSED");
        assert_eq!(said(letter, "sqlstate"), "23514");
        assert_eq!(said(letter, "reason"), "constraint few of public.items refuses the changes");
        assert!(letter.header("ls").is_some() && letter.value.is_some() && !said(letter, "offset").is_empty());
        assert!(
            said(letter, "retry").starts_with("lockstep retry --sink orders --table public.items --key '{\"id\":\"")
        );
    }
    let known = |status: &support::Status| {
        let sink = &status.0["sinks"]["orders"];
        sink["parked_rows"] == 4 && sink["halt"].is_null()
    };
    // Either process may own the sink.
    let owner = wait_known(&[&one, &two], known).await;
    let metrics = [&one, &two][owner].get("/metrics").await.unwrap();
    for line in ["lockstep_sink_parked_rows{sink=\"orders\"} 4", "lockstep_sink_tables_not_equal{sink=\"orders\"} 1"] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }

    assert_eq!(
        text(scene.orders(), "SELECT format FROM lockstep.progress").await,
        "3",
        "what knows of no letters stays away"
    );

    // A record without its note stands on what is parked; the others say all of their row.
    scene.sql("UPDATE items SET v = 8 WHERE id = 1; UPDATE items SET v = 9, note = 'short' WHERE id = 2").await;
    scene.sql("DELETE FROM items WHERE id = 3; UPDATE items SET v = 11 WHERE id = 100").await;
    wait_parked(&scene, r#"{"id":"1"}:2"#, &mut one).await;
    let rows = "SELECT string_agg(id || '=' || v, ' ' ORDER BY id) FROM items WHERE id IN (1, 2, 3, 100)";
    wait_text(scene.orders(), rows, "1=1 2=9 100=11", &mut one).await;
    let (code, told) = retry(&scene, &["--sink", "orders", "--list"]);
    assert!(code == 0 && told.contains("CONSTRAINT_REFUSED") && told.contains(r#"{"id":"1"}"#), "{told}");
    // In the end it is a row that the sink takes.
    let (code, told) = retry(&scene, &["--sink", "orders", "--all"]);
    assert!(code == 0 && told.contains("1 rows put back, 0 still parked"), "{told}");
    scene.equal(&mut one).await;

    // What is refused again stays, also where its table is read again, and so does the row that it changes.
    scene.sql("UPDATE items SET v = 9000 WHERE id = 4").await;
    wait_parked(&scene, r#"{"id":"4"}:1"#, &mut one).await;
    let changed = "SELECT \"offset\" FROM lockstep.parked WHERE settled_at IS NULL";
    let before = text(scene.orders(), changed).await;
    scene
        .orders()
        .execute("CREATE TABLE own (item bigint REFERENCES items ON DELETE CASCADE); INSERT INTO own VALUES (4)")
        .await
        .unwrap();
    assert!(scene.pipeline.command(&["resync", "public.items"]).unwrap().status.success());
    let again =
        format!("SELECT string_agg(key, '') FROM lockstep.parked WHERE settled_at IS NULL AND \"offset\" > {before}");
    wait_text(scene.orders(), &again, r#"{"id":"4"}"#, &mut one).await;
    wait_parked(&scene, r#"{"id":"4"}:1"#, &mut one).await;
    assert_eq!(text(scene.orders(), "SELECT count(*) FROM own").await, "1");
    let (code, told) = retry(&scene, &["--table", "public.items", "--key", "4"]);
    assert!(code == 1 && told.contains("0 rows put back, 1 still parked"), "{told}");
    scene.orders().execute("ALTER TABLE items DROP CONSTRAINT few").await.unwrap();
    let (code, told) = retry(&scene, &["--table", "public.items", "--key", "4"]);
    assert!(code == 0 && told.contains("1 rows put back, 0 still parked"), "{told}");
    scene.equal(&mut one).await;
    wait_text(scene.orders(), "SELECT count(*) FROM lockstep.parked", "0", &mut one).await;

    // A new history of the source reads all tables again: what was parked in the old one is settled, what is refused is parked anew.
    scene.sql("UPDATE items SET v = 4 WHERE id = 4").await;
    scene.equal(&mut one).await;
    scene.orders().execute(FEW).await.unwrap();
    scene.sql("UPDATE items SET v = 9000 WHERE id = 5").await;
    wait_parked(&scene, r#"{"id":"5"}:1"#, &mut one).await;
    let before = text(scene.orders(), changed).await;
    drop((one, two));
    assert!(scene.pipeline.command(&["restart"]).unwrap().status.success());
    let mut one = scene.spawn(&[]);
    let anew = "SELECT string_agg(key, '') FROM lockstep.parked WHERE settled_at IS NULL";
    wait_text(scene.orders(), &format!("{anew} AND \"offset\" > {before}"), r#"{"id":"5"}"#, &mut one).await;
    assert_eq!(text(scene.orders(), anew).await, r#"{"id":"5"}"#);
    scene.sql("UPDATE items SET v = 5, note = 'right' WHERE id = 5").await;
    wait_parked(&scene, "NULL", &mut one).await;
    scene.equal(&mut one).await;
}

/// The process that says it.
async fn wait_known(processes: &[&Process], known: impl Fn(&support::Status) -> bool) -> usize {
    let begun = Instant::now();
    loop {
        for (place, process) in processes.iter().enumerate() {
            if process.status().await.is_ok_and(|status| known(&status)) {
                return place;
            }
        }
        assert!(begun.elapsed() < PATIENCE, "nobody says so");
        sleep(Duration::from_millis(50)).await;
    }
}

/// What is parked stays so whoever dies, a barrier settles it, and a sink that refuses whole tables halts.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_outlives_deaths_and_ends_with_its_table() {
    let scene = scene("parked_deaths").await;
    let mut one = scene.start().await;
    scene.orders().execute(FEW).await.unwrap();
    scene.sql("UPDATE items SET v = 5000 + id WHERE id <= 2").await;
    let mut two = scene.spawn(&["sink:orders"]);
    wait_parked(&scene, r#"{"id":"1"}:1 {"id":"2"}:1"#, &mut two).await;
    dead_letters(&scene, 2).await;
    one.kill9().unwrap();
    two.kill9().unwrap();
    // As if they had died before they knew that the copies are there.
    scene.orders().execute("UPDATE lockstep.parked SET copied_at = NULL").await.unwrap();
    scene.sql("UPDATE items SET v = v + 1 WHERE id <= 2; UPDATE items SET v = 50 WHERE id = 3").await;
    let mut one = scene.spawn(&[]);
    wait_parked(&scene, r#"{"id":"1"}:2 {"id":"2"}:2"#, &mut one).await;
    wait_text(scene.orders(), "SELECT v FROM items WHERE id = 3", "50", &mut one).await;
    let letters = dead_letters(&scene, 6).await;
    let places: std::collections::BTreeSet<_> =
        letters.iter().map(|letter| (said(letter, "partition"), said(letter, "offset"))).collect();
    assert_eq!((letters.len(), places.len()), (6, 4), "a copy comes at least once, and says which record it is of");
    assert_eq!(letters.iter().filter(|letter| said(letter, "code") == "BEHIND").count(), 2);
    // Another key: what is parked of the old one is not lost on the way.
    scene.sql("UPDATE items SET id = 1001, v = 1, note = 'moved' WHERE id = 1").await;
    wait_parked(&scene, r#"{"id":"2"}:2"#, &mut one).await;
    wait_text(scene.orders(), "SELECT string_agg(note, '') FROM items WHERE id IN (1, 1001)", "moved", &mut one).await;
    scene.sql("TRUNCATE items; INSERT INTO items SELECT i, i, 'new' FROM generate_series(3, 7) i").await;
    wait_parked(&scene, "NULL", &mut one).await;
    scene.equal(&mut one).await;
    // A value that does not fit, among many that do.
    scene.orders().execute("ALTER TABLE items ALTER note TYPE varchar(9)").await.unwrap();
    scene.sql("UPDATE items SET note = CASE id WHEN 4 THEN 'a secret text' ELSE 'fits' END").await;
    wait_parked(&scene, r#"{"id":"4"}:1"#, &mut one).await;
    let letter = dead_letters(&scene, 7).await.pop().unwrap();
    let reason = ["code", "sqlstate", "column", "reason"].map(|name| said(&letter, name));
    let message = "a value does not fit column note of public.items";
    assert_eq!(reason, ["VALUE_REFUSED", "22001", "note", message]);
    wait_text(scene.orders(), "SELECT count(*) FROM items WHERE note = 'fits'", "4", &mut one).await;
    scene.orders().execute("ALTER TABLE items ALTER note TYPE text").await.unwrap();
    assert_eq!(retry(&scene, &["--table", "public.items"]).0, 0);
    scene.equal(&mut one).await;
    scene.sql("INSERT INTO items SELECT i, 1000 + i, 'bad' FROM generate_series(11, 30) i").await;
    let (message, hint) = halted(&mut one, "PARKED_FULL").await;
    assert!(message.contains("sink orders refuses more rows than may be parked of it"), "{message}");
    assert_eq!(hint, "lockstep retry --sink orders --list");
}
