//! What people ask to be read again while everything flows: ranges of a table, and nothing beside them.

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep::lsn::Lsn;
use support::scene::{PATIENCE, Scene, halted, text, wait_text};
use support::{Pipeline, Process, Status};
use tokio::task::JoinHandle;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const ITEMS: &str = "CREATE TABLE public.items (id int PRIMARY KEY, v text, n int)";
const PAIRS: &str = "CREATE TABLE public.pairs (a int, b text, v text, PRIMARY KEY (a, b))";
const PHASE: &str = "SELECT phase FROM lockstep.progress";
/// Of rows that nobody touches, in the range and beside it: a row that was rewritten has another.
const XMINS: &str = "SELECT md5(string_agg(id || ':' || xmin, ',' ORDER BY id)) FROM items
                      WHERE id % 4 <> 1 AND id <= 2000 AND id NOT BETWEEN 1110 AND 1114 AND id NOT BETWEEN 1310 AND 1314";

fn ask(scene: &Scene, arguments: &[&str]) -> String {
    let arguments: Vec<&str> = ["resync"].iter().chain(arguments).copied().collect();
    let output = scene.pipeline.command(&arguments).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn answered(scene: &Scene, process: &mut Process, query: &str, wanted: &str) {
    wait_text(scene.orders(), query, wanted, process).await;
    wait_text(scene.orders(), PHASE, "streaming", process).await;
}

/// Some rows change, come and go for as long as this runs.
fn writer(scene: &Scene) -> (Arc<AtomicBool>, JoinHandle<u32>) {
    let (stop, database) = (Arc::new(AtomicBool::new(false)), scene.source.url());
    let stopped = stop.clone();
    let task = tokio::spawn(async move {
        let (client, connection) = tokio_postgres::connect(&database, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let mut count = 0;
        while !stopped.load(Ordering::Relaxed) {
            count += 1;
            let sql = format!(
                "UPDATE items SET n = {count} WHERE id % 100 = {};
                 DELETE FROM items WHERE id = 50000 + {count} - 20; INSERT INTO items VALUES (50000 + {count}, 'new', 1)",
                4 * (count % 25) + 1
            );
            client.batch_execute(&sql).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        count
    });
    (stop, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_made_equal_while_everything_flows_and_nothing_beside_it_is_touched() {
    let schema = format!("{ITEMS}; {PAIRS}; CREATE TABLE public.bag (v text); ALTER TABLE bag REPLICA IDENTITY FULL");
    let tables: [(&str, &[&str]); 3] =
        [("public.items", &["id"]), ("public.pairs", &["a", "b"]), ("public.bag", &["v"])];
    let scene = Scene::new(LOCKSTEP, "range", &schema, &tables).await;
    // Numbers above 1000 are missing where they are divisible by 10.
    scene
        .sql("INSERT INTO items SELECT i, 'v' || i, -1 FROM generate_series(1, 2000) i WHERE i < 1000 OR i % 10 > 0")
        .await;
    scene.sql("INSERT INTO pairs SELECT a, b, a || b FROM generate_series(1, 5) a, unnest('{x,y,Z}'::text[]) b").await;
    let mut process = scene.start().await;
    scene.equal(&mut process).await;

    let planted = "INSERT INTO items VALUES (1110, 'phantom', -1), (1310, 'phantom', -1);
        DELETE FROM items WHERE id IN (1112, 1312); UPDATE items SET v = 'other' WHERE id IN (1114, 1314);
        UPDATE pairs SET v = 'other'; INSERT INTO pairs VALUES (3, 'w', 'phantom'), (4, 'w', 'phantom')";
    scene.orders().execute(planted).await.unwrap();
    let (stop, task) = writer(&scene);
    let (before, read) = (text(scene.orders(), XMINS).await, scene.rows_read("public.items"));
    ask(&scene, &["public.items", "--sink", "orders", "--where", "id >= 1100 and id < 1200"]);
    let rows =
        "SELECT string_agg(id || v, ',' ORDER BY id) FROM items WHERE id IN (1110, 1112, 1114, 1310, 1312, 1314)";
    answered(&scene, &mut process, rows, "1112v1112,1114v1114,1310phantom,1314other").await;
    assert_eq!(scene.rows_read("public.items") - read, 90);
    stop.store(true, Ordering::Relaxed);
    assert!(task.await.unwrap() > 20);
    assert_eq!(text(scene.orders(), XMINS).await, before, "a row that was right was written");
    for condition in ["id = 1310", "id = 1312", "id > 1313 and id <= 1314"] {
        ask(&scene, &["public.items", "--where", condition]);
    }
    answered(&scene, &mut process, rows, "1112v1112,1114v1114,1312v1312,1314v1314").await;

    // A key of several columns: one of them, the beginning, a part in the order of bytes, which is not that of words.
    let pairs =
        "SELECT string_agg(a || b, ',' ORDER BY a, b COLLATE \"C\") FROM pairs WHERE v = 'other' OR v = 'phantom'";
    ask(&scene, &["public.pairs", "--where", "b = 'y' and a = 5"]);
    answered(&scene, &mut process, pairs, "1Z,1x,1y,2Z,2x,2y,3Z,3w,3x,3y,4Z,4w,4x,4y,5Z,5x").await;
    ask(&scene, &["public.pairs", "--where", "a = 3"]);
    answered(&scene, &mut process, pairs, "1Z,1x,1y,2Z,2x,2y,4w,4x,4y,5Z,5x").await;
    ask(&scene, &["public.pairs", "--where", "(a, b) > (1, 'Z') and (a, b) < (2, 'x')"]);
    answered(&scene, &mut process, pairs, "1Z,2y,4w,4x,4y,5Z,5x").await;
    ask(&scene, &["public.pairs", "--where", "a >= 4"]);
    answered(&scene, &mut process, pairs, "1Z,2y").await;
    ask(&scene, &["public.pairs", "--where", "a < 3"]);
    scene.equal(&mut process).await;

    for (arguments, why) in [
        (["public.items", "--where", "n = 5"], "n is no column of the key (id)"),
        (["public.items", "--where", "id = 1 or id = 2"], "or makes no range of the key"),
        (["public.items", "--where", "id = 'x'"], "\"x\" is no value of id, which is int4"),
        (["public.items", "--where", "id > 5 and id <= 5"], "no key lies between the two ends"),
        (["public.bag", "--where", "v = 'x'"], "the table has no key"),
    ] {
        let output = scene.pipeline.command(&[&["resync"], &arguments[..]].concat()).unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("REQUEST_REFUSED") && error.contains(why) && error.contains("help: "), "{error}");
    }
}

/// A row that the sink refuses is put right at the source and read again by its key; a row that leaves the key that is read
/// again, without its big column, has the whole table read.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_row_is_got_past_by_its_key() {
    let scene = Scene::new(LOCKSTEP, "bad_row", ITEMS, &[("public.items", &["id"])]).await.configure(Pipeline::several);
    scene.sql("ALTER TABLE items ALTER v SET STORAGE EXTERNAL; INSERT INTO items SELECT i, repeat('v' || i, 1000), i FROM generate_series(1, 500) i").await;
    scene.orders().execute("ALTER TABLE items ADD CHECK (n < 1000)").await.unwrap();
    let mut process = scene.start().await;
    let read = scene.rows_read("public.items");
    scene.sql("UPDATE items SET n = 5000 WHERE id = 5").await;
    scene.sql("UPDATE items SET n = n + 1 WHERE id > 5 AND id < 300; DELETE FROM items WHERE id = 9").await;
    halted(&mut process, "CONSTRAINT_REFUSED").await;
    scene.sql("UPDATE items SET n = 50 WHERE id = 5").await;
    ask(&scene, &["public.items", "--where", "id = 5"]);
    process.terminate(PATIENCE).await.unwrap();
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    assert_eq!(scene.rows_read("public.items") - read, 1);

    // The sink is away: the row's way out of the range stands in the ledger behind the request, and nobody watched it.
    process.terminate(PATIENCE).await.unwrap();
    let mut source = scene.spawn(&["source"]);
    scene.sql("UPDATE items SET id = 7005 WHERE id = 5; UPDATE items SET n = 6000 WHERE id = 7; UPDATE items SET n = 70 WHERE id = 7").await;
    let end = scene.source.wal_lsn().await.unwrap();
    let told = |s: &Status| s.0["source"]["position"].as_str().is_some_and(|at| at.parse::<Lsn>().unwrap() >= end);
    source.wait_until("the update", PATIENCE, told).await.unwrap();
    for id in [5, 7] {
        ask(&scene, &["public.items", "--where", &format!("id = {id}")]);
    }
    let mut sink = scene.spawn(&["sink:orders"]);
    scene.equal(&mut sink).await;
    assert!(scene.log().contains("all of table public.items is asked for"), "{}", scene.log());
    drop(source);
}

/// What happens to the table while its range is read: the reader dies, rows move in and out, the table gets a column, it is
/// emptied.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_right_whatever_happens_meanwhile() {
    let scene = Scene::new(LOCKSTEP, "range_kill", ITEMS, &[("public.items", &["id"])]).await;
    let scene = scene.configure(|p| p.set("source.snapshot", "chunk_rows = 100"));
    scene.sql("INSERT INTO items SELECT i, 'v' || i, i FROM generate_series(1, 6000) i").await;
    let mut process = scene.start().await;
    let (stop, task) = writer(&scene);
    scene.orders().execute("UPDATE items SET v = 'other' WHERE id % 100 = 50").await.unwrap();
    let read = scene.rows_read("public.items");
    for round in 0..3 {
        ask(&scene, &["public.items", "--where", &format!("id > {} and id <= {}", round * 1500, round * 1500 + 1500)]);
        tokio::time::sleep(Duration::from_millis(150 * round)).await;
        process.kill9().unwrap();
        scene
            .sql(&format!("UPDATE items SET id = id + 10000 WHERE id BETWEEN {0} AND {0} + 9", round * 1500 + 700))
            .await;
        scene.sql(&format!("UPDATE items SET id = {} WHERE id = 5999 - {round}", round * 1500 + 705)).await;
        process = scene.spawn(&[]);
    }
    let left = "SELECT count(*) || ' ' || coalesce(min(id), 0) FROM items WHERE v = 'other'";
    answered(&scene, &mut process, left, "15 4550").await;
    // Three ranges that a reader in the middle of one took together, and what was on its way at a kill.
    let read = scene.rows_read("public.items") - read;
    assert!(read < 6000, "{read} rows were read, of 4500");
    ask(&scene, &["public.items", "--where", "id > 4500"]);
    answered(&scene, &mut process, left, "0 0").await;

    ask(&scene, &["public.items", "--where", "id <= 3000"]);
    scene.orders().execute("ALTER TABLE items ADD COLUMN extra int DEFAULT 7").await.unwrap();
    scene.sql("ALTER TABLE items ADD COLUMN extra int DEFAULT 7").await;
    scene.sql("UPDATE items SET extra = 8 WHERE id % 50 = 0").await;
    stop.store(true, Ordering::Relaxed);
    task.await.unwrap();
    scene.equal(&mut process).await;
    ask(&scene, &["public.items", "--where", "id <= 3000"]);
    scene.sql("TRUNCATE items; INSERT INTO items SELECT i, 'again', i, i FROM generate_series(1, 5000, 7) i").await;
    scene.equal(&mut process).await;
}

/// One table that can't be read holds up nobody but those that reference it, and goes on by itself; one that was read once is
/// read no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_can_not_be_read_waits_alone() {
    let schema = "CREATE TABLE public.closed (id int PRIMARY KEY, v text); CREATE TABLE public.open (id int PRIMARY KEY, v text);
                  CREATE TABLE public.child (id int PRIMARY KEY, closed int REFERENCES public.closed);
                  CREATE TABLE public.busy (id int PRIMARY KEY, v text)";
    let keyed = ["public.busy", "public.child", "public.closed", "public.open"].map(|table| (table, &["id"][..]));
    let scene = Scene::new(LOCKSTEP, "withheld", schema, &keyed).await;
    let scene = scene.configure(|p| p.set("http", "admin = \"admin.sock\""));
    let rows = "INSERT INTO closed VALUES (1, 'a'), (2, 'b'); INSERT INTO open VALUES (1, 'a');
                INSERT INTO child VALUES (1, 1); INSERT INTO busy VALUES (1, 'a')";
    scene.sql(&format!("{rows}; REVOKE SELECT ON closed FROM lockstep")).await;
    let mut process = scene.spawn(&[]);
    wait_text(scene.orders(), "SELECT count(*) FROM open", "1", &mut process).await;
    // The stream of everybody goes on.
    scene.sql("INSERT INTO open VALUES (2, 'b'); INSERT INTO closed VALUES (3, 'c')").await;
    wait_text(scene.orders(), "SELECT count(*) FROM open", "2", &mut process).await;
    let grant = "GRANT SELECT ON public.closed TO lockstep";
    process.wait_until("the grant is named", PATIENCE, |s| waits(s, &[grant])).await.unwrap();
    let metrics = process.get("/metrics").await.unwrap();
    assert!(metrics.contains("lockstep_source_tables_withheld 1"), "{metrics}");
    let tables = process.status().await.unwrap().0["tables"].clone();
    let why = |table: &str| tables[table]["waiting_for"].as_str().unwrap_or_default().to_owned();
    assert!(why("public.closed").contains("may not read table public.closed"), "{tables}");
    assert_eq!(why("public.child"), "rows of public.closed, which its rows reference");
    assert_eq!(why("public.open") + &why("public.busy"), "");
    assert_eq!(text(scene.orders(), "SELECT count(*) FROM child").await, "0");
    scene.sql(grant).await;
    scene.equal(&mut process).await;

    let mut locker = scene.source.connect().await.unwrap();
    locker.batch_execute("SET application_name = 'nightly job'").await.unwrap();
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE busy").await.unwrap();
    scene.orders().execute("UPDATE busy SET v = 'other'").await.unwrap();
    let (status, answer) = post(&scene, r#"{"table": "public.busy"}"#).await;
    assert_eq!((status, answer["requests"][0]["sink"].as_str()), (200, Some("orders")), "{answer}");
    process.wait_until("who is in the way", PATIENCE, |s| waits(s, &["nightly job"])).await.unwrap();
    scene.sql("INSERT INTO open VALUES (5, 'e')").await;
    wait_text(scene.orders(), "SELECT count(*) FROM open", "3", &mut process).await;
    lock.commit().await.unwrap();
    scene.equal(&mut process).await;

    // Nothing is to be read any more, and so nobody needs the right.
    scene.sql("REVOKE SELECT ON closed, open, child, busy FROM lockstep").await;
    process.terminate(PATIENCE).await.unwrap();
    let mut process = scene.start().await;
    scene.sql("INSERT INTO open VALUES (3, 'c'); INSERT INTO closed VALUES (4, 'd')").await;
    wait_text(scene.orders(), "SELECT count(*) FROM open", "4", &mut process).await;
    wait_text(scene.orders(), "SELECT count(*) FROM closed", "4", &mut process).await;
    // Until somebody asks for rows: a condition is answered at once, a table waits.
    let (status, answer) = post(&scene, r#"{"table": "public.closed", "sink": "orders"}"#).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer["requests"][0]["ledger_entry"].as_i64().unwrap() > 0, "{answer}");
    process.wait_until("the grant is named", PATIENCE, |s| waits(s, &[grant])).await.unwrap();
    for (body, why) in [
        (r#"{"table": "public.open", "where": "v = 1"}"#, "v is no column of the key (id)"),
        (r#"{"table": "public.nothing"}"#, "no connector has public.nothing"),
        (r#"{"tables": []}"#, "unknown field"),
        ("{}", "no table is named"),
    ] {
        let (status, answer) = post(&scene, body).await;
        assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("REQUEST_REFUSED")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(why), "{answer}");
    }
    let socket = scene.pipeline.dir.join("admin.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else may ask");
    scene.sql("GRANT SELECT ON closed, open, child, busy TO lockstep").await;
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();
    assert!(!socket.exists());
}

/// Whether the source says that it waits for all of this.
fn waits(status: &Status, whats: &[&str]) -> bool {
    let waiting = status.0["source"]["waiting_for"].as_str().unwrap_or_default().replace('"', "");
    whats.iter().all(|what| waiting.contains(what))
}

/// Asks on the admin socket.
async fn post(scene: &Scene, body: &str) -> (u16, serde_json::Value) {
    support::admin::post(&scene.pipeline.dir.join("admin.sock"), "/resync", body).await
}
