//! Signals: what people of the source ask for by a row in a table there, in Debezium's words.

mod support;

use std::time::Duration;

use support::scene::{PATIENCE, Scene, text, wait_text};
use support::{Pipeline, Process, Status};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const SIGNALS: &str = "CREATE TABLE public.signals (id varchar(42) PRIMARY KEY, type varchar(32) NOT NULL, data text)";
const ITEMS: &str = "CREATE TABLE public.items (id int PRIMARY KEY, v text, n int)";
const PAIRS: &str = "CREATE TABLE public.pairs (id text PRIMARY KEY, v text)";

async fn scene(hint: &str) -> Scene {
    let schema = format!("{SIGNALS}; {ITEMS}; {PAIRS}; CREATE TABLE public.alone (id int PRIMARY KEY, v text)");
    let scene = Scene::new(LOCKSTEP, hint, &schema, &[("public.items", &["id"]), ("public.pairs", &["id"])]).await;
    scene.configure(|p: Pipeline| p.set("source", "signal_table = \"public.signals\""))
}

/// The statement that writes a signal.
fn written(id: &str, kind: &str, data: &str) -> String {
    format!("INSERT INTO signals VALUES ('{id}', '{kind}', '{}')", data.replace('\'', "''"))
}

async fn signal(scene: &Scene, id: &str, kind: &str, data: &str) {
    scene.sql(&written(id, kind, data)).await;
}

/// Waits until so many signals were taken, and so many refused.
async fn judged(process: &mut Process, taken: u64, refused: u64) -> Status {
    let is = |s: &Status| {
        let signals = &s.0["source"]["signals"];
        (signals["taken"].as_u64(), signals["refused"].as_u64()) == (Some(taken), Some(refused))
    };
    process.wait_until(&format!("{taken} taken and {refused} refused"), PATIENCE, is).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_the_signal_table_asks_for_rows_and_is_no_data() {
    let scene = scene("signals").await.configure(|p| p.connector("public.alone", ""));
    scene.sql("INSERT INTO items SELECT i, 'v' || i, i FROM generate_series(1, 500) i").await;
    scene.sql("INSERT INTO pairs VALUES ('1', 'a'), ('2', 'b'); INSERT INTO alone VALUES (1, 'x'), (2, 'y')").await;
    let all = r#"{"data-collections": ["public.items"]}"#;
    signal(&scene, "before the first start", "execute-snapshot", all).await;
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    assert_eq!(scene.rows_read("public.items"), 500, "what was written before is no signal");

    let planted = "INSERT INTO items VALUES (1100, 'phantom', 1), (2100, 'phantom', 1); UPDATE pairs SET v = 'other'";
    scene.orders().execute(planted).await.unwrap();
    let ranged = r#"{"data-collections": ["public.items"], "type": "incremental",
        "additional-conditions": [{"data-collection": "public.items", "filter": "id >= 1000 and id < 2000"}]}"#;
    signal(&scene, "range", "execute-snapshot", ranged).await;
    let phantoms = "SELECT string_agg(id::text, ',') FROM items WHERE v = 'phantom'";
    wait_text(scene.orders(), phantoms, "2100", &mut process).await;
    assert_eq!(scene.rows_read("public.items"), 500, "nobody else's rows were read");
    // By an expression, and of a table that is nobody's but its topic's.
    let several = r#"{"data-collections": ["public\\.(item|pair)s", "public.alone"], "type": "BLOCKING"}"#;
    signal(&scene, "several", "execute-snapshot", several).await;
    signal(&scene, "note", "log", r#"{"message": "noted at {}"}"#).await;
    scene.equal(&mut process).await;
    judged(&mut process, 3, 0).await;
    assert!(scene.log().contains("a signal says: noted at "), "{}", scene.log());
    let again =
        |s: &Status| s.0["tables"]["public.alone"]["phase"] == "streaming" && scene.rows_read("public.alone") == 4;
    process.wait_until("the topic has the rows again", PATIENCE, again).await.unwrap();
    assert_eq!((scene.rows_read("public.items"), scene.rows_read("public.pairs")), (1000, 4));

    // What can't be done as it is written is refused by name, and nothing else hears of it.
    let condition = r#"{"data-collections": ["public.items", "public.pairs"],
        "additional-conditions": [{"data-collection": "public.items", "filter": "n = 5"}]}"#;
    for (i, (kind, data, why)) in [
        ("execute-snapshot", condition, "n is no column of the key (id)"),
        (
            "execute-snapshot",
            r#"{"data-collections": ["public.items", "public.nothing"]}"#,
            "no connector has public.nothing",
        ),
        ("execute-snapshot", r#"{"data-collections": ["public.(items"]}"#, "is no regular expression"),
        ("execute-snapshot", r#"{"data-collections": ["public.signals"]}"#, "no connector has public.signals"),
        ("execute-snapshot", "{", "its data can't be read"),
        ("no-such-type", "{}", "\"no-such-type\" is no type of a signal"),
    ]
    .into_iter()
    .enumerate()
    {
        signal(&scene, &format!("bad-{i}"), kind, data).await;
        let status = judged(&mut process, 3, i as u64 + 1).await;
        let last = &status.0["source"]["signals"]["last_refused"];
        assert_eq!((last["id"].as_str(), last["type"].as_str()), (Some(&*format!("bad-{i}")), Some(kind)), "{last}");
        assert!(last["message"].as_str().unwrap().contains(why) && last["hint"].is_string(), "{last}");
    }
    let metrics = process.get("/metrics").await.unwrap();
    assert!(metrics.contains("lockstep_source_signals_total{outcome=\"refused\"} 6"), "{metrics}");
    // A table that somebody holds locked can't be looked at, and the stream does not wait for it.
    let mut locker = scene.source.connect().await.unwrap();
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE pairs").await.unwrap();
    let held = r#"{"data-collections": ["public.pairs"], "additional-conditions": [{"data-collection": "public.pairs", "filter": "id >= '1'"}]}"#;
    signal(&scene, "held", "execute-snapshot", held).await;
    judged(&mut process, 3, 7).await;
    scene.sql("UPDATE items SET n = n + 1; DELETE FROM signals; UPDATE signals SET id = id; TRUNCATE signals").await;
    lock.commit().await.unwrap();
    scene.equal(&mut process).await;
    assert_eq!((scene.rows_read("public.items"), scene.rows_read("public.pairs")), (1000, 4));
    assert_eq!(text(scene.orders(), "SELECT count(*) FROM signals").await, "0", "it is no data");

    // It goes and comes back.
    scene.sql("DROP TABLE signals").await;
    let unread =
        |s: &Status| s.0["source"]["signals"]["unread"].as_str().is_some_and(|why| why.contains("CREATE TABLE"));
    process.wait_until("that it is gone is said", PATIENCE, unread).await.unwrap();
    scene.sql("UPDATE items SET n = n + 1").await;
    scene.sql(SIGNALS).await;
    let read = |s: &Status| s.0["source"]["signals"]["unread"].is_null();
    process.wait_until("it is back", PATIENCE, read).await.unwrap();
    signal(&scene, "back", "execute-snapshot", r#"{"data-collections": ["public.pairs"]}"#).await;
    judged(&mut process, 4, 7).await;
    scene.equal(&mut process).await;
    assert_eq!(scene.rows_read("public.pairs"), 6);
    // Who takes it out wants no signals, and nobody puts it back.
    scene.sql(&format!("ALTER PUBLICATION {} DROP TABLE signals", scene.slot())).await;
    let out = |s: &Status| s.0["source"]["signals"]["unread"].as_str().is_some_and(|why| why.contains("was taken out"));
    process.wait_until("that it was taken out is said", PATIENCE, out).await.unwrap();
    let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'signals'";
    assert_eq!(text(&scene.source, published).await, "0");
    scene.sql("UPDATE items SET n = n + 1").await;
    scene.equal(&mut process).await;
}

/// Requests in the ledger by signal, as often as they count.
fn asked(scene: &Scene, id: &str) -> (usize, usize) {
    let output = scene.pipeline.command(&["ledger", "--last", "100000"]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let of_signal = |line: &&str| line.contains("  request ") && line.contains(&format!("signal {id} at"));
    let lines: Vec<&str> = text.lines().filter(of_signal).collect();
    let repeated = lines.iter().filter(|line| line.contains("repeated")).count();
    (lines.len() - repeated, repeated)
}

/// A reader that dies at any moment behind a signal leaves it neither lost nor asked for twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_counts_once_whenever_its_reader_dies() {
    let scene = scene("signals_kill").await;
    scene.sql("INSERT INTO items SELECT i, 'v' || i, i FROM generate_series(1, 300) i").await;
    let mut process = scene.start().await;
    let ids: Vec<String> = (0..8).map(|i| format!("kill-{i}")).collect();
    for (i, id) in ids.iter().enumerate() {
        let both = r#"{"data-collections": ["public.items", "public.pairs"],
            "additional-conditions": [{"data-collection": "public.items", "filter": "id < 100"}]}"#;
        // Alone in its transaction, and beside rows.
        let beside = format!("INSERT INTO pairs VALUES ('{i}', 'beside')");
        let rows = if i % 2 == 0 { "SELECT 1" } else { &beside };
        scene.sql(&format!("BEGIN; {rows}; {}; COMMIT", written(id, "execute-snapshot", both))).await;
        tokio::time::sleep(Duration::from_millis(40 * i as u64)).await;
        process.kill9().unwrap();
        process = scene.spawn(&[]);
        if i % 3 == 0 {
            scene.streaming(&mut process).await;
        }
    }
    scene.equal(&mut process).await;
    let mut again = 0;
    for id in &ids {
        let (counts, repeated) = asked(&scene, id);
        assert_eq!(counts, 2, "{id}: once for the table, once for the range of the other");
        again += repeated;
    }
    assert!(again > 0, "no reader met a signal that the one before it had told of");
    process.terminate(PATIENCE).await.unwrap();
}

fn snapshot(scene: &Scene, arguments: &[&str]) -> (i32, String) {
    let output = scene.pipeline.command(&[&["snapshot"], arguments].concat()).unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

/// Waits for the word of the status on who has paused the reading of rows.
async fn paused(process: &mut Process, by: Option<&str>) {
    let is = |s: &Status| match (s.0["source"]["snapshot_paused"].as_str(), by) {
        (Some(found), Some(by)) => found.contains(by),
        (found, by) => found.is_none() && by.is_none(),
    };
    process.wait_until("the pause", PATIENCE, is).await.unwrap();
}

/// Whether no rows of the table are read for a while.
async fn rests(scene: &Scene, table: &str) -> bool {
    // What was on its way to Kafka.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = scene.rows_read(table);
    tokio::time::sleep(Duration::from_millis(700)).await;
    scene.rows_read(table) == before
}

/// A pause may come too late for a load so often.
const PAUSES_MAX: u32 = 5;

/// Pauses the reading of a table of 1200 rows; whether that was in the middle of it. Where it was not, it goes on.
async fn paused_midway(scene: &Scene, process: &mut Process, table: &str) -> bool {
    let read = scene.rows_read(table);
    let begun = |_: &Status| scene.rows_read(table) >= read + 150;
    process.wait_until("the load has begun", PATIENCE, begun).await.unwrap();
    assert_eq!(post(scene, "/snapshot/pause", "").await.0, 200);
    paused(process, Some("admin socket")).await;
    if rests(scene, table).await && !scene.rows_read(table).is_multiple_of(1200) {
        return true;
    }
    assert_eq!(post(scene, "/snapshot/resume", "").await.0, 200);
    scene.streaming(process).await;
    false
}

/// Reading pauses and goes on, through a kill too; what streams does not notice. What topics were to have once more is left.
#[tokio::test(flavor = "multi_thread")]
async fn the_reading_of_rows_pauses_until_somebody_resumes_it() {
    let scene = scene("steered").await.configure(|p| {
        let p = p.connector("public.alone", "").set("http", "admin = \"admin.sock\"");
        p.set("source.snapshot", "rows_per_second = 400\nchunk_rows = 50")
    });
    for table in ["items", "alone"] {
        scene.sql(&format!("INSERT INTO {table} SELECT i, 'v' || i FROM generate_series(1, 1200) i")).await;
    }
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    scene.orders().execute("UPDATE items SET v = 'other' WHERE id % 10 = 0").await.unwrap();
    signal(&scene, "pause", "pause-snapshot", "").await;
    paused(&mut process, Some("signal pause at")).await;
    assert!(process.get("/metrics").await.unwrap().contains("lockstep_source_snapshot_paused 1"));
    let output = scene.pipeline.command(&["resync", "public.items"]).unwrap();
    assert!(output.status.success());
    process.kill9().unwrap();
    let mut process = scene.spawn(&[]);
    let waits = |s: &Status| {
        s.0["source"]["waiting_for"].as_str().is_some_and(|what| what.contains("lockstep snapshot resume"))
    };
    process.wait_until("what is waited for", PATIENCE, waits).await.unwrap();
    scene.sql("INSERT INTO pairs VALUES ('1', 'streamed')").await;
    wait_text(scene.orders(), "SELECT count(*) FROM pairs", "1", &mut process).await;
    assert!(rests(&scene, "public.items").await && scene.rows_read("public.items") == 1200);
    assert_eq!(text(scene.orders(), "SELECT phase FROM lockstep.progress").await, "reread", "it is not equal");
    let (code, error) = snapshot(&scene, &["stop"]);
    assert!(code == 2 && error.contains("sink orders takes no changes of rows of public.items"), "{error}");

    let (status, answer) = post(&scene, "/snapshot/resume", "").await;
    assert_eq!((status, answer["requests"].as_array().map(Vec::len)), (200, Some(1)), "{answer}");
    scene.equal(&mut process).await;
    paused(&mut process, None).await;

    // In the middle of a load, and all that it has read so far changes meanwhile.
    let mut attempts = 1..=PAUSES_MAX;
    loop {
        assert!(attempts.next().is_some(), "each load of items was over before its pause");
        scene.pipeline.command(&["resync", "public.items"]).unwrap();
        if paused_midway(&scene, &mut process, "public.items").await {
            break;
        }
    }
    scene.sql("UPDATE items SET n = 1; DELETE FROM items WHERE id % 7 = 0; UPDATE items SET id = id + 5000 WHERE id % 11 = 0").await;
    assert!(rests(&scene, "public.items").await);
    signal(&scene, "resume", "resume-snapshot", r#"{"type": "incremental"}"#).await;
    scene.equal(&mut process).await;

    let again = r#"{"data-collections": ["public.alone"]}"#;
    let mut attempts = 1..=PAUSES_MAX;
    loop {
        let number = attempts.next().expect("one of the loads of alone is paused before it is over");
        signal(&scene, &format!("again {number}"), "execute-snapshot", again).await;
        if paused_midway(&scene, &mut process, "public.alone").await {
            break;
        }
    }
    let (code, said) = snapshot(&scene, &["stop", "public.alone"]);
    assert!(code == 0 && said.contains("not read to the end: public.alone"), "{said}");
    assert_eq!(snapshot(&scene, &["resume"]).0, 0);
    paused(&mut process, None).await;
    let streams = |s: &Status| s.0["source"]["state"] == "streaming";
    process.wait_until("the load is over", PATIENCE, streams).await.unwrap();
    assert!(rests(&scene, "public.alone").await);
    process.terminate(PATIENCE).await.unwrap();
    let mut process = scene.start().await;
    assert!(rests(&scene, "public.alone").await);
    let read = scene.rows_read("public.alone");
    assert!(read % 1200 > 0, "{read}");
    signal(&scene, "once more", "execute-snapshot", again).await;
    let whole = |_: &Status| scene.rows_read("public.alone") == read + 1200;
    process.wait_until("all of it", PATIENCE, whole).await.unwrap();
    let (code, error) = snapshot(&scene, &["stop", "public.pairs"]);
    assert!(code == 2 && error.contains("nothing of public.pairs is being read"), "{error}");
}

/// Asks on the admin socket.
async fn post(scene: &Scene, path: &str, body: &str) -> (u16, serde_json::Value) {
    let socket = scene.pipeline.dir.join("admin.sock");
    support::admin::post(&socket, path, body).await
}
