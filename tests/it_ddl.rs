//! The source's tables change their shape while rows flow: rows are read as they were written, what leaves no trace in the
//! stream is read again, and sinks follow as far as they are told to.

mod support;

use std::time::{Duration, Instant};

use support::scene::{PATIENCE, Scene, Seen, halted, read_topic, text, wait_text};
use support::{Pipeline, Process, Status};
use tokio::time::sleep;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
/// Some chunks under writes take a second or two.
const BUSY_PATIENCE: Duration = Duration::from_secs(60);
const ITEMS: &str = "CREATE TABLE public.items (id int PRIMARY KEY, v text NOT NULL, n int)";
const FILL: &str = "INSERT INTO items SELECT i, 'v' || i, i FROM generate_series(1, 200) i";

/// A pipeline that streams 200 rows of `items`.
async fn flowing(hint: &str) -> (Scene, Process) {
    let scene = Scene::new(LOCKSTEP, hint, ITEMS, &[("public.items", &["id"])]).await;
    scene.sql(FILL).await;
    let process = scene.start().await;
    (scene, process)
}

/// How often the source asked for tables to be read again.
fn rereads(scene: &Scene) -> usize {
    scene.log().matches("reading the table again").count()
}

/// Waits until the sink's table reads like the source's: what has no row event is only seen by looking, now and then.
async fn converge(scene: &Scene, process: &mut Process, sql: &str) {
    let wanted = text(&scene.source, sql).await;
    wait_text(scene.orders(), sql, &wanted, process).await;
    scene.equal(process).await;
}

/// Kills the process without a word and starts it again.
async fn kill(scene: &Scene, process: Process) -> Process {
    drop(process);
    scene.spawn(&[])
}

const SUM: &str = "SELECT md5(string_agg(t::text, '|' ORDER BY t.id)) FROM items t";

// ---- Changes of values without row events ----

#[tokio::test(flavor = "multi_thread")]
async fn a_type_changed_in_place_is_read_again() {
    let (scene, mut process) = flowing("ddl_using").await;
    // The sink's columns are its own; they fit before and after.
    scene.sql("ALTER TABLE items ALTER COLUMN v TYPE text USING upper(v)").await;
    converge(&scene, &mut process, SUM).await;
    assert_eq!(rereads(&scene), 1);
    // While nobody looks, and with a death in between.
    drop(process);
    scene
        .sql("ALTER TABLE items ALTER COLUMN v TYPE text USING v || '!'; INSERT INTO items VALUES (900, 'new', 1)")
        .await;
    let process = scene.spawn(&[]);
    let mut process = kill(&scene, process).await;
    converge(&scene, &mut process, SUM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rewriting_a_table_without_changing_it_reads_nothing_again() {
    let (scene, mut process) = flowing("ddl_vacuum").await;
    scene.orders().execute("ALTER TABLE items ALTER COLUMN n TYPE numeric").await.unwrap();
    // After each lot a difference that counts: once it is seen, so is the lot.
    for (number, (lot, counts)) in [
        (vec!["VACUUM FULL items", "CLUSTER items USING items_pkey", "TRUNCATE items"], "bigint"),
        (
            vec!["ALTER TABLE items ALTER v SET STATISTICS 10", "GRANT SELECT (v) ON items TO PUBLIC", "ANALYZE"],
            "numeric",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        for sql in lot {
            scene.sql(sql).await;
        }
        scene
            .sql("INSERT INTO items SELECT i + 1000, 'a', 1 FROM generate_series(1, 9) i ON CONFLICT DO NOTHING")
            .await;
        scene.equal(&mut process).await;
        scene.sql(&format!("ALTER TABLE items ALTER COLUMN n TYPE {counts}")).await;
        let begun = Instant::now();
        while scene.log().matches("has another type").count() <= number {
            assert!(begun.elapsed() < PATIENCE, "{}", scene.log());
            sleep(Duration::from_millis(50)).await;
        }
        scene.equal(&mut process).await;
        assert_eq!(rereads(&scene), number + 1, "{}", scene.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_changed_and_changed_back_is_noticed() {
    let (scene, mut process) = flowing("ddl_republished").await;
    let publication = scene.slot();
    let without = |change: &str, back: &str| {
        format!(
            "ALTER PUBLICATION {publication} {change}; COMMIT; UPDATE items SET v = v || '{back}'; COMMIT;
             ALTER PUBLICATION {publication} {back}"
        )
    };
    for (change, back) in [
        ("DROP TABLE items", "ADD TABLE ONLY items"),
        ("SET (publish = 'insert')", "SET (publish = 'insert, update, delete, truncate')"),
    ] {
        let sql = without(change, back).replace("|| 'SET (publish = 'insert, update, delete, truncate')'", "|| 's'");
        let client = scene.source.connect().await.unwrap();
        for statement in sql.split("COMMIT;") {
            client.batch_execute(statement).await.unwrap();
        }
        converge(&scene, &mut process, SUM).await;
    }
    // Nobody looks meanwhile.
    drop(process);
    scene.sql(&format!("ALTER PUBLICATION {publication} DROP TABLE items")).await;
    scene.sql("DELETE FROM items WHERE id < 50").await;
    scene.sql(&format!("ALTER PUBLICATION {publication} ADD TABLE ONLY items")).await;
    let mut process = scene.spawn(&[]);
    converge(&scene, &mut process, SUM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_of_an_enum_is_renamed() {
    let schema = "CREATE TYPE public.mood AS ENUM ('sad', 'glad');
                  CREATE TABLE public.items (id int PRIMARY KEY, v public.mood)";
    let scene = Scene::new(LOCKSTEP, "ddl_enum", schema, &[("public.items", &["id"])]).await;
    scene.sql("INSERT INTO items SELECT i, 'sad' FROM generate_series(1, 20) i").await;
    scene.orders().execute("ALTER TYPE mood ADD VALUE 'blue'").await.unwrap();
    let mut process = scene.start().await;
    scene.sql("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'").await;
    converge(&scene, &mut process, SUM).await;
}

/// No RELATION message tells of a label; the first row that has it does, and sinks hear of it before the row.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_has_a_label_that_nothing_told_of() {
    let schema = "CREATE TYPE public.mood AS ENUM ('sad', 'glad'); CREATE DOMAIN public.inner_mood AS public.mood;
                  CREATE TYPE public.unused AS ENUM ('early');
                  CREATE TABLE public.items (id int PRIMARY KEY, v public.mood, l public.inner_mood[], n text)";
    let scene = Scene::bare(LOCKSTEP, "ddl_label", schema, 2).await;
    let connector = "[sinks.orders]\n[sinks.inventory]\nevolve = 'add'\n";
    let scene = scene.configure(|p| p.connector("public.items", connector));
    let scene = Scene { tables: vec![support::TablePair::same("public.items", &["id"])], ..scene };
    let inventory = &scene.sinks[1].1;
    scene.sql("INSERT INTO items SELECT i, 'sad', '{glad,NULL}' FROM generate_series(1, 20) i").await;
    let mut process = scene.start().await;
    scene.sql("UPDATE items SET n = 'streamed' WHERE id = 1").await;
    scene.streaming(&mut process).await;
    let labels = "SELECT enum_range(NULL::mood)";
    for (label, row, place, all) in [
        ("new", "'new', '{sad}'", "BEFORE 'sad'", "{new,sad,glad}"),
        ("very", "'sad', '{{NULL,very}}'", "AFTER 'sad'", "{new,sad,very,glad}"),
    ] {
        scene.sql(&format!("ALTER TYPE mood ADD VALUE '{label}' {place}")).await;
        scene.sql(&format!("INSERT INTO items SELECT max(id) + 1, {row} FROM items")).await;
        let (_, hint) = halted(&mut process, "VALUE_REFUSED").await;
        assert_eq!(hint, format!("ALTER TYPE \"public\".\"mood\" ADD VALUE IF NOT EXISTS '{label}' {place}"));
        wait_text(inventory, labels, all, &mut process).await;
        scene.orders().execute(&hint).await.unwrap();
        process = kill(&scene, process).await;
        scene.equal(&mut process).await;
    }
    assert_eq!(rereads(&scene), 0, "{}", scene.log());
    // What a row had when nobody looked has another name by now; its text is the source's no more.
    drop(process);
    scene.sql("ALTER TYPE mood ADD VALUE 'brief'").await;
    scene.sql("UPDATE items SET v = 'brief' WHERE id = 2").await;
    scene.sql("ALTER TYPE mood RENAME VALUE 'brief' TO 'lasting'").await;
    scene.orders().execute("ALTER TYPE mood ADD VALUE 'lasting'").await.unwrap();
    let mut process = scene.spawn(&[]);
    converge(&scene, &mut process, SUM).await;
    assert_eq!(rereads(&scene), 1, "{}", scene.log());
    assert_eq!(text(inventory, labels).await, "{new,sad,very,glad,lasting}");
    // A column that comes with a type which no column of the table had until then.
    let (label, column) = ("ALTER TYPE unused ADD VALUE 'late'", "ALTER TABLE items ADD COLUMN o unused");
    for sql in [label, column] {
        scene.orders().execute(sql).await.unwrap();
        scene.sql(sql).await;
    }
    scene.sql("UPDATE items SET o = 'late' WHERE id = 1").await;
    converge(&scene, &mut process, SUM).await;
    wait_text(inventory, "SELECT o FROM items WHERE id = 1", "late", &mut process).await;
}

/// A composite's text has no names, so only a type with the same attributes in the same places takes it.
#[tokio::test(flavor = "multi_thread")]
async fn composites_have_the_same_attributes_at_sinks() {
    let schema = "CREATE TYPE public.mood AS ENUM ('sad'); CREATE TYPE public.part AS (m public.mood, n int);
        CREATE TYPE public.pair AS (a int, b text, i public.part);
        CREATE TABLE public.items (id int PRIMARY KEY, p public.pair, l public.part[])";
    let scene = Scene::bare(LOCKSTEP, "ddl_composite", schema, 2).await;
    scene.orders().execute("ALTER TYPE pair RENAME ATTRIBUTE b TO z; ALTER TYPE mood ADD VALUE 'new'").await.unwrap();
    let connector = "[sinks.orders]\n[sinks.inventory]\nevolve = 'add'\n";
    let scene = scene.configure(|p| p.connector("public.items", connector));
    let scene = Scene { tables: vec![support::TablePair::same("public.items", &["id"])], ..scene };
    scene.sql("INSERT INTO items SELECT i, ROW(i, 'x', ROW('sad', i))::pair, ARRAY[ROW('sad', 1)::part] FROM generate_series(1, 9) i").await;
    let mut process = scene.spawn(&[]);
    let (message, hint) = halted(&mut process, "SINK_TABLE").await;
    assert_eq!(hint, r#"ALTER TYPE "public"."pair" RENAME ATTRIBUTE "z" TO "b""#, "{message}");
    scene.orders().execute(&hint).await.unwrap();
    process = kill(&scene, process).await;
    scene.equal(&mut process).await;
    // Nothing in the stream tells of an attribute but the row that has it.
    scene.sql("ALTER TYPE pair ADD ATTRIBUTE c numeric(5,2)").await;
    scene.sql("UPDATE items SET p = ROW(1, 'y', ROW('sad', 2), 2.5) WHERE id = 1").await;
    let (message, hint) = halted(&mut process, "SINK_TABLE").await;
    assert_eq!(hint, r#"ALTER TYPE "public"."pair" ADD ATTRIBUTE "c" numeric(5,2)"#, "{message}");
    scene.orders().execute(&hint).await.unwrap();
    process = kill(&scene, process).await;
    converge(&scene, &mut process, SUM).await;
    // Neither of a label inside of them.
    scene.sql("ALTER TYPE mood ADD VALUE 'new'").await;
    scene.sql("UPDATE items SET l = ARRAY[NULL, ROW('new', 1)::part] WHERE id = 2").await;
    converge(&scene, &mut process, SUM).await;
    assert_eq!(rereads(&scene), 1, "{}", scene.log());
}

/// Types deep inside of a column's: what is renamed or altered there changes rows, and no row tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_type_inside_a_type_is_altered() {
    let schema = "CREATE TYPE public.mood AS ENUM ('sad', 'glad'); CREATE DOMAIN public.inner_mood AS public.mood;
        CREATE DOMAIN public.outer_mood AS public.inner_mood; CREATE TYPE public.pair AS (m public.mood, n int);
        CREATE TABLE public.items (id int PRIMARY KEY, o public.outer_mood, l public.inner_mood[], p public.pair[])";
    let scene = Scene::new(LOCKSTEP, "ddl_nested", schema, &[("public.items", &["id"])]).await;
    let row = |i: &str| {
        format!(
            "SELECT {i}, 'sad', '{{sad,NULL}}', ARRAY[ROW('glad', {i})::pair, ROW('sad', 0)::pair] FROM generate_series(1, 20) i"
        )
    };
    scene.sql(&format!("INSERT INTO items {}", row("i"))).await;
    // There the texts stay what they were until they are read again.
    scene.orders().execute("ALTER TABLE items ALTER p TYPE text").await.unwrap();
    let mut process = scene.start().await;
    for (change, at_sink) in [
        ("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", "ALTER TYPE mood ADD VALUE 'blue'"),
        ("ALTER TYPE pair ADD ATTRIBUTE t text", "SELECT"),
        ("ALTER TYPE pair DROP ATTRIBUTE n", "SELECT"),
    ] {
        scene.orders().execute(at_sink).await.unwrap();
        scene.sql(change).await;
        converge(&scene, &mut process, SUM).await;
    }
    assert_eq!(rereads(&scene), 3, "{}", scene.log());
}

/// The stream says nothing of labels that come and types that are renamed, while what is read has them.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_ends_though_the_stream_has_not_heard_of_a_type() {
    let schema = "CREATE TYPE public.mood AS ENUM ('sad', 'glad');
                  CREATE TABLE public.items (id int PRIMARY KEY, v public.mood, n int)";
    let scene = Scene::new(LOCKSTEP, "ddl_busy", schema, &[("public.items", &["id"])]).await;
    let scene = scene.configure(|p| p.set("source.snapshot", "chunk_rows = 10"));
    scene.sql("INSERT INTO items SELECT i, 'sad' FROM generate_series(1, 100) i").await;
    let mut process = scene.start().await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let writer = scene.source.connect().await.unwrap();
    let writing = tokio::spawn(async move {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            // Never at rest: there is always a change that a chunk's snapshot does not see.
            writer.batch_execute("UPDATE public.items SET n = coalesce(n, 0) + 1 WHERE id = 7").await.unwrap();
            sleep(Duration::from_millis(2)).await;
        }
    });
    let loaded = |scene: &Scene| scene.log().matches("existing rows loaded").count();
    for (change, at_sink) in [
        ("ALTER TYPE mood ADD VALUE 'new'", "ALTER TYPE mood ADD VALUE 'new'"),
        ("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", "ALTER TYPE mood ADD VALUE 'blue'"),
        // A sink's type of another name is not known to hold it.
        ("ALTER TYPE mood RENAME TO humour", "ALTER TABLE items ALTER v TYPE text"),
    ] {
        let before = loaded(&scene);
        scene.orders().execute(at_sink).await.unwrap();
        scene.sql(change).await;
        if !change.contains("VALUE 'sad'") {
            assert!(scene.pipeline.command(&["resync", "--all"]).unwrap().status.success());
        }
        let begun = Instant::now();
        while loaded(&scene) == before {
            process.ensure_running().unwrap();
            assert!(begun.elapsed() < BUSY_PATIENCE, "{change}: the load does not end: {}", scene.log());
            sleep(Duration::from_millis(20)).await;
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writing.await.unwrap();
    converge(&scene, &mut process, SUM).await;
    assert_eq!(text(scene.orders(), "SELECT count(*) FROM items WHERE v = 'blue'").await, "100");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_table_is_read_again_the_sink_says_so() {
    let (scene, mut process) = flowing("ddl_phase").await;
    // Whoever wrote before must have ended, so the reading waits for this one.
    let older = scene.source.connect().await.unwrap();
    older.batch_execute("BEGIN; CREATE TABLE elsewhere (); SELECT pg_current_xact_id()").await.unwrap();
    scene.sql("ALTER TABLE items ALTER COLUMN v TYPE text USING upper(v)").await;
    let phase = "SELECT phase FROM lockstep.progress";
    wait_text(scene.orders(), phase, "reread", &mut process).await;
    let shown = |s: &Status| s.0["tables"]["public.items"]["orders"]["phase"] == "reread";
    process.wait_until("the table's phase", PATIENCE, shown).await.unwrap();
    let mut process = kill(&scene, process).await;
    wait_text(scene.orders(), phase, "reread", &mut process).await;
    older.batch_execute("COMMIT").await.unwrap();
    converge(&scene, &mut process, SUM).await;
}

// ---- Tables ----

#[tokio::test(flavor = "multi_thread")]
async fn a_table_dropped_and_made_again() {
    let (scene, mut process) = flowing("ddl_again").await;
    scene.sql(&format!("DROP TABLE items; {ITEMS}; INSERT INTO items VALUES (7, 'of the new one', 0)")).await;
    converge(&scene, &mut process, SUM).await;
    scene.sql("UPDATE items SET v = 'changed'; INSERT INTO items VALUES (8, 'x', 0)").await;
    scene.equal(&mut process).await;
    // The old one's last rows are still in the stream when the reader comes back, and so are the new one's first.
    drop(process);
    scene.sql("INSERT INTO items VALUES (9, 'lost with its table', 0)").await;
    scene
        .sql(&format!(
            "BEGIN; ALTER TABLE items REPLICA IDENTITY FULL; UPDATE items SET v = 'once more'; DROP TABLE items; {ITEMS};
             INSERT INTO items VALUES (1, 'a', 0); ALTER PUBLICATION {} ADD TABLE ONLY items;
             INSERT INTO items VALUES (2, 'b', 0); UPDATE items SET v = v || '!'; COMMIT; UPDATE items SET n = 5",
            scene.slot()
        ))
        .await;
    let mut process = scene.spawn(&[]);
    converge(&scene, &mut process, SUM).await;
    assert_eq!(text(scene.orders(), "SELECT string_agg(v, ',' ORDER BY id) FROM items").await, "a!,b!");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_put_in_the_place_of_another() {
    let (scene, mut process) = flowing("ddl_swapped").await;
    scene
        .sql(
            "CREATE TABLE items_new (LIKE items INCLUDING ALL); INSERT INTO items_new SELECT id, 'new ' || v, n FROM items WHERE id > 9;
             BEGIN; ALTER TABLE items RENAME TO items_old; ALTER TABLE items_new RENAME TO items; COMMIT;
             INSERT INTO items_old VALUES (500, 'nobody wants this', 0); INSERT INTO items VALUES (501, 'not published yet', 0)",
        )
        .await;
    let halted = |s: &Status| s.halt_code(None) == Some("PUBLICATION_CHANGED");
    let status = process.wait_until("the halt", PATIENCE, halted).await.unwrap();
    let halt = &status.0["source"]["halt"];
    assert!(halt["message"].as_str().unwrap().contains("is not the one"), "{status}");
    drop(process);
    scene.sql(halt["hint"].as_str().unwrap()).await;
    scene.sql("UPDATE items SET n = -1 WHERE id < 20").await;
    let mut process = scene.spawn(&[]);
    converge(&scene, &mut process, SUM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_renamed_is_followed_by_either_name() {
    let (scene, mut process) = flowing("ddl_renamed").await;
    // There and back within a transaction and across two: rows are rows of that table all the time.
    scene
        .sql(
            "BEGIN; INSERT INTO items VALUES (301, 'before', 0); ALTER TABLE items RENAME TO goods;
             INSERT INTO goods VALUES (302, 'between', 0); ALTER TABLE goods RENAME TO items;
             INSERT INTO items VALUES (303, 'after', 0); COMMIT",
        )
        .await;
    scene.equal(&mut process).await;
    scene.sql("ALTER TABLE items RENAME TO goods; INSERT INTO goods VALUES (304, 'away', 0)").await;
    let halted = |s: &Status| s.halt_code(None) == Some("RELATION_CHANGED");
    let status = process.wait_until("the halt", PATIENCE, halted).await.unwrap();
    let hint = status.0["source"]["halt"]["hint"].as_str().unwrap().to_owned();
    assert!(hint.contains("public.goods"), "{status}");
    drop(process);
    scene
        .sql("UPDATE goods SET v = 'x' WHERE id < 5; ALTER TABLE goods RENAME TO items; DELETE FROM items WHERE id = 6")
        .await;
    let mut process = scene.spawn(&[]);
    scene.equal(&mut process).await;
    assert_eq!(rereads(&scene), 0, "nothing was lost, so nothing is read again");
    // The other way: the connector follows, topic and sink stay.
    drop(process);
    scene.sql("INSERT INTO items VALUES (305, 'old name', 0); ALTER TABLE items RENAME TO goods").await;
    scene.sql("INSERT INTO goods VALUES (306, 'new name', 0)").await;
    let topic = format!("topic = '{}.public.items'\n[sinks.orders]\ntable = 'public.items'\n", scene.pipeline.name);
    let scene = scene.configure(|p: Pipeline| p.without("public.items").connector("public.goods", &topic));
    let mut process = scene.spawn(&[]);
    let count = "SELECT count(*) || ':' || max(id) FROM";
    let wanted = text(&scene.source, &format!("{count} goods")).await;
    wait_text(scene.orders(), &format!("{count} items"), &wanted, &mut process).await;
}

// ---- What sinks make of it ----

/// `items` with more of its connector's text for the sink, 200 rows, streaming.
async fn evolving(hint: &str, evolve: &str) -> (Scene, Process) {
    let scene = Scene::bare(LOCKSTEP, hint, ITEMS, 1).await;
    let text = format!("[sinks.orders]\nevolve = '{evolve}'\n");
    let scene = scene.configure(|p| p.connector("public.items", &text));
    let scene = Scene { tables: vec![support::TablePair::same("public.items", &["id"])], ..scene };
    scene.sql(FILL).await;
    let process = scene.start().await;
    (scene, process)
}

const COLUMNS: &str = "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attname)
    FROM pg_attribute WHERE attrelid = 'public.items'::regclass AND attnum > 0 AND NOT attisdropped";

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_adds_columns() {
    let (scene, mut process) = evolving("ddl_add", "add").await;
    scene
        .sql(
            "BEGIN; INSERT INTO items VALUES (301, 'before', 0);
             ALTER TABLE items ADD COLUMN price numeric(10,2) NOT NULL DEFAULT 9.50, ADD COLUMN \"odd \"\"name\" text[];
             INSERT INTO items VALUES (302, 'after', 0, 1.25, '{a,NULL}'); UPDATE items SET n = 7 WHERE id < 10; COMMIT",
        )
        .await;
    scene.equal(&mut process).await;
    assert_eq!(text(scene.orders(), COLUMNS).await, text(&scene.source, COLUMNS).await);
    // With nothing behind it in the stream, and a death before anybody can look.
    drop(process);
    scene.sql("ALTER TABLE items ADD COLUMN volatile double precision DEFAULT random()").await;
    let process = scene.spawn(&[]);
    let mut process = kill(&scene, process).await;
    wait_text(scene.orders(), COLUMNS, &text(&scene.source, COLUMNS).await, &mut process).await;
    scene.equal(&mut process).await;
    // What is dropped at the source stays as it is, and takes no part any more.
    scene.sql("ALTER TABLE items DROP COLUMN n; INSERT INTO items VALUES (303, 'without n')").await;
    scene.equal(&mut process).await;
    assert_eq!(text(scene.orders(), "SELECT n FROM items WHERE id = 5").await, "7");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_follows_in_everything() {
    let (scene, mut process) = evolving("ddl_full", "full").await;
    scene
        .orders()
        .execute("ALTER TABLE items ADD COLUMN own text DEFAULT 'ours'; CREATE INDEX ON items (v)")
        .await
        .unwrap();
    scene
        .sql(
            "BEGIN; INSERT INTO items VALUES (301, 'a', 0);
             ALTER TABLE items RENAME COLUMN v TO title; INSERT INTO items VALUES (302, 'b', 0);
             ALTER TABLE items ALTER COLUMN n TYPE text USING 'n' || n; INSERT INTO items VALUES (303, 'c', 'text');
             ALTER TABLE items ALTER COLUMN title DROP NOT NULL; INSERT INTO items VALUES (304, NULL, 'null');
             ALTER TABLE items ADD COLUMN more int DEFAULT 5; INSERT INTO items VALUES (305, 'd', 'more');
             ALTER TABLE items DROP COLUMN n; INSERT INTO items VALUES (306, 'e'); UPDATE items SET more = 6 WHERE id < 5;
             COMMIT",
        )
        .await;
    scene.equal(&mut process).await;
    let columns = text(scene.orders(), COLUMNS).await;
    assert_eq!(columns, "id integer, more integer, own text, title text", "its own column stays");
    let index = "SELECT count(*) FROM pg_index WHERE indrelid = 'public.items'::regclass";
    assert_eq!(text(scene.orders(), index).await, "2", "a renamed column keeps its index");
    assert_eq!(text(scene.orders(), "SELECT own FROM items WHERE id = 5").await, "ours");
    // There and back while the sink is away: each row is read as it was written.
    drop(process);
    let mut source = scene.spawn(&["source"]);
    scene.sql("ALTER TABLE items ADD COLUMN brief text; INSERT INTO items VALUES (310, 'x', 1, 'brief')").await;
    scene.sql("ALTER TABLE items DROP COLUMN brief; INSERT INTO items VALUES (311, 'y', 2)").await;
    scene.sql("ALTER TABLE items RENAME COLUMN title TO v; UPDATE items SET v = upper(v)").await;
    let end = scene.source.wal_lsn().await.unwrap();
    let passed = |s: &Status| {
        s.0["source"]["position"].as_str().is_some_and(|p| p.parse::<lockstep::lsn::Lsn>().unwrap() >= end)
    };
    source.wait_until("everything is published", PATIENCE, passed).await.unwrap();
    drop(source);
    let mut process = scene.spawn(&[]);
    scene.equal(&mut process).await;
    let columns = text(scene.orders(), COLUMNS).await;
    assert_eq!(columns, "id integer, more integer, own text, v text");
    // Its key is given up, and NULL comes where that was.
    let none = "ALTER TABLE items DROP CONSTRAINT items_pkey, ALTER COLUMN id DROP NOT NULL, REPLICA IDENTITY FULL";
    scene.sql(&format!("BEGIN; {none}; INSERT INTO items (id, v) VALUES (NULL, 'none'), (400, 'more'); COMMIT")).await;
    scene.equal(&mut process).await;
    let rows = "SELECT count(*) || ' of ' || count(id) FROM items WHERE id = 400 OR id IS NULL";
    assert_eq!(text(scene.orders(), rows).await, "2 of 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_whose_columns_are_its_own_halts_and_takes_the_hint() {
    let (scene, mut process) = flowing("ddl_off").await;
    scene.sql("ALTER TABLE items ADD COLUMN price int DEFAULT 3; INSERT INTO items VALUES (301, 'x', 1, 4)").await;
    let (message, hint) = halted(&mut process, "SINK_TABLE").await;
    assert!(message.contains("price"), "{message}");
    drop(process);
    scene.orders().execute(&hint).await.unwrap();
    let mut process = scene.spawn(&[]);
    scene.equal(&mut process).await;
    // One that was there before with other ideas about old rows.
    scene.orders().execute("ALTER TABLE items ADD COLUMN stock int DEFAULT 99").await.unwrap();
    scene.sql("ALTER TABLE items ADD COLUMN stock int").await;
    wait_text(scene.orders(), "SELECT count(stock) FROM items", "0", &mut process).await;
    scene.equal(&mut process).await;
    scene.sql("ALTER TABLE items DROP COLUMN n; INSERT INTO items VALUES (302, 'y', 5, 6)").await;
    scene.equal(&mut process).await;
    // The catalog has forgotten that this column is never NULL, while its last rows are still on their way.
    drop(process);
    scene.sql("INSERT INTO items VALUES (303, 'last of its kind', 5, 6); ALTER TABLE items DROP COLUMN v").await;
    let mut process = scene.spawn(&[]);
    wait_text(scene.orders(), "SELECT v FROM items WHERE id = 303", "last of its kind", &mut process).await;
    scene.equal(&mut process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_can_not_follow_halts_and_the_other_goes_on() {
    let scene = Scene::bare(LOCKSTEP, "ddl_refused", ITEMS, 2).await;
    let evolve = "[sinks.orders]\nevolve = 'full'\n[sinks.inventory]\nevolve = 'full'\n";
    let scene = scene.configure(|p| p.connector("public.items", evolve));
    let scene = Scene { tables: vec![support::TablePair::same("public.items", &["id"])], ..scene };
    scene.sql(FILL).await;
    let mut process = scene.start().await;
    scene.orders().execute("CREATE VIEW names AS SELECT v FROM items").await.unwrap();
    let before = scene.fingerprint("public.items").await;
    scene.sql("BEGIN; INSERT INTO items VALUES (301, 'x', 1); ALTER TABLE items DROP COLUMN v; INSERT INTO items VALUES (302, 1); COMMIT").await;
    let (message, hint) = halted(&mut process, "SINK_TABLE").await;
    assert!(hint.contains("DROP COLUMN \"v\""), "{message} {hint}");
    let rows = |fingerprint: &str| fingerprint.split(" at ").next().unwrap().to_owned();
    assert_eq!(rows(&scene.fingerprint("public.items").await), rows(&before), "nothing of the transaction is there");
    let inventory = &scene.sinks[1].1;
    wait_text(inventory, "SELECT max(id) FROM items", "302", &mut process).await;
    drop(process);
    scene.orders().execute("DROP VIEW names").await.unwrap();
    let mut process = scene.spawn(&[]);
    scene.equal(&mut process).await;
    // The right to alter is the owner's.
    let superuser = scene.orders().superuser().await.unwrap();
    superuser
        .batch_execute("ALTER TABLE public.items OWNER TO postgres; GRANT ALL ON public.items TO lockstep")
        .await
        .unwrap();
    scene.sql("ALTER TABLE items ADD COLUMN extra int; INSERT INTO items VALUES (303, 1, 2)").await;
    let (message, hint) = halted(&mut process, "NO_RIGHT").await;
    assert!(message.contains("evolve") && hint.contains("OWNER TO"), "{message} {hint}");
    drop(process);
    superuser.batch_execute("ALTER TABLE public.items OWNER TO lockstep").await.unwrap();
    let mut process = scene.spawn(&[]);
    scene.equal(&mut process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_that_are_pending_do_not_stand_in_the_way() {
    let schema = "CREATE TABLE public.a (id int PRIMARY KEY);
                  CREATE TABLE public.b (id int PRIMARY KEY, x int, y int, a int REFERENCES public.a DEFERRABLE)";
    let scene = Scene::bare(LOCKSTEP, "ddl_pending", schema, 1).await;
    let follow = "[sinks.orders]\nevolve = 'full'\n";
    let scene = scene.configure(|p| p.connector("public.a", follow).connector("public.b", follow));
    let tables = ["public.a", "public.b"].map(|table| support::TablePair::same(table, &["id"]));
    let scene = Scene { tables: tables.to_vec(), ..scene };
    let mut process = scene.start().await;
    // A dropped column is nothing to read again for: all of it goes through one transaction of the sink.
    scene
        .sql(
            "BEGIN; INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1, 1, 1, 1); ALTER TABLE b DROP COLUMN x;
             INSERT INTO b VALUES (2, 2, 2); UPDATE b SET y = 3 WHERE id = 1; ALTER TABLE b DROP COLUMN y;
             INSERT INTO b VALUES (3, 2); COMMIT",
        )
        .await;
    scene.equal(&mut process).await;
    assert_eq!(rereads(&scene), 0);
    let columns = "SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute
                    WHERE attrelid = 'public.b'::regclass AND attnum > 0 AND NOT attisdropped";
    assert_eq!(text(scene.orders(), columns).await, "id,a");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key() {
    let (scene, mut process) = flowing("ddl_key").await;
    scene.orders().execute("ALTER TABLE items ADD UNIQUE (v)").await.unwrap();
    let rekey = "ALTER TABLE items DROP CONSTRAINT items_pkey, ADD PRIMARY KEY (v)";
    scene
        .sql(&format!(
            "BEGIN; UPDATE items SET n = 1 WHERE id = 1; {rekey}; UPDATE items SET n = 2 WHERE id = 2;
             UPDATE items SET v = 'moved' WHERE id = 3; DELETE FROM items WHERE id = 4; INSERT INTO items VALUES (301, 'x', 0); COMMIT"
        ))
        .await;
    scene.equal(&mut process).await;
    // Without anybody there, and while rows are about to be read.
    drop(process);
    scene.sql("ALTER TABLE items DROP CONSTRAINT items_pkey, ADD PRIMARY KEY (id); UPDATE items SET n = n + 1 WHERE id < 50").await;
    let scene = scene.configure(|p| p.set("source.snapshot", "chunk_rows = 10"));
    scene.pipeline.write().unwrap();
    assert!(scene.pipeline.command(&["resync", "--all"]).unwrap().status.success());
    let mut process = scene.spawn(&[]);
    scene.sql(rekey).await;
    scene.sql("UPDATE items SET n = n + 1 WHERE id > 50; DELETE FROM items WHERE id = 60").await;
    converge(&scene, &mut process, SUM).await;
}

/// Ranges that were read by one key mean nothing under another.
#[tokio::test(flavor = "multi_thread")]
async fn another_key_in_the_middle_of_a_load() {
    let schema = format!("{ITEMS}; CREATE TABLE public.before (id int PRIMARY KEY)");
    let scene =
        Scene::new(LOCKSTEP, "ddl_key_load", &schema, &[("public.before", &["id"]), ("public.items", &["id"])]).await;
    let scene = scene.configure(|p| p.set("source.snapshot", "chunk_rows = 10"));
    scene.orders().execute("ALTER TABLE items ADD UNIQUE (v, id)").await.unwrap();
    scene.sql("INSERT INTO before SELECT generate_series(1, 300)").await;
    scene.sql("INSERT INTO items SELECT i, 'v' || i % 7, i FROM generate_series(1, 6000) i").await;
    let mut process = scene.spawn(&[]);
    wait_text(scene.orders(), "SELECT count(*) > 50 FROM items", "true", &mut process).await;
    scene.sql("ALTER TABLE items DROP CONSTRAINT items_pkey, ADD PRIMARY KEY (v, id)").await;
    let there: i64 = text(scene.orders(), "SELECT count(*) FROM items").await.parse().unwrap();
    assert!(there < 6000, "the load was over too early");
    // Nothing in the stream tells of it: the next chunk does.
    converge(&scene, &mut process, SUM).await;
    scene.sql("UPDATE items SET n = 0 WHERE id % 100 = 0; UPDATE items SET v = 'w' WHERE id = 7").await;
    scene.equal(&mut process).await;
    assert_eq!(scene.rows_read("public.before"), 300, "what was loaded of other tables is not read again");
}

// ---- Truncates, partitions, generated and identity columns, subtransactions, origins ----

#[tokio::test(flavor = "multi_thread")]
async fn truncates_of_several_tables() {
    let schema = "CREATE TABLE public.a (id int PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY, v text);
                  CREATE TABLE public.b (id int PRIMARY KEY, a int REFERENCES public.a);
                  CREATE TABLE public.c (id int PRIMARY KEY, b int REFERENCES public.b, v text)";
    let tables: [support::scene::Keyed; 3] = [("public.a", &["id"]), ("public.b", &["id"]), ("public.c", &["id"])];
    let scene = Scene::new(LOCKSTEP, "ddl_truncate", schema, &tables).await;
    let fill = "INSERT INTO a (v) VALUES ('x'), ('y'); INSERT INTO b SELECT id, id FROM a; INSERT INTO c SELECT id, id, 'c' FROM b";
    scene.sql(fill).await;
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    for truncate in ["TRUNCATE c", "TRUNCATE b, c", "TRUNCATE a CASCADE", "TRUNCATE a, b, c RESTART IDENTITY"] {
        scene
            .sql(&format!(
                "BEGIN; UPDATE a SET v = v || '.'; {truncate}; INSERT INTO a VALUES (1000, 'behind it'); COMMIT"
            ))
            .await;
        scene.equal(&mut process).await;
        assert_eq!(text(scene.orders(), "SELECT count(*) FROM c").await, "0");
        scene.sql(&format!("TRUNCATE a, b, c; {fill}")).await;
    }
    let mut process = kill(&scene, process).await;
    scene.sql("BEGIN; TRUNCATE a CASCADE; INSERT INTO a VALUES (5, 'rolled back'); ROLLBACK").await;
    scene.equal(&mut process).await;
}

const PARTS: &str = "
CREATE TABLE public.parts (id int, region text, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE public.parts_eu PARTITION OF public.parts FOR VALUES IN ('eu', 'uk');
CREATE TABLE public.parts_us PARTITION OF public.parts FOR VALUES IN ('us') PARTITION BY RANGE (id);
CREATE TABLE public.parts_us_1 PARTITION OF public.parts_us FOR VALUES FROM (0) TO (1000);
CREATE TABLE public.parts_us_2 PARTITION OF public.parts_us FOR VALUES FROM (1000) TO (2000)";
const PLAIN: &str = "CREATE TABLE public.parts (id int, region text, v text, PRIMARY KEY (id, region))";

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_by_its_root() {
    // One sink with partitions of its own, one without any.
    let scene = Scene::bare(LOCKSTEP, "ddl_parts", "", 2).await;
    scene.source.execute(PARTS).await.unwrap();
    scene.sinks[0].1.execute(PLAIN).await.unwrap();
    scene.sinks[1].1.execute(PARTS).await.unwrap();
    let scene = scene.configure(|p| p.table("public.parts").set("source.snapshot", "chunk_rows = 50"));
    let scene = Scene { tables: vec![support::TablePair::same("public.parts", &["id", "region"])], ..scene };
    scene
        .sql(
            "INSERT INTO parts SELECT i, (ARRAY['eu', 'uk', 'us'])[1 + i % 3], 'v' || i FROM generate_series(1, 300) i",
        )
        .await;
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    // Rows that move between partitions, and a statement on a partition itself.
    scene
        .sql(
            "BEGIN; UPDATE parts SET region = 'us' WHERE id < 30 AND region = 'eu'; UPDATE parts_eu SET v = 'leaf' WHERE id < 60;
             UPDATE parts SET id = id + 1500 WHERE region = 'us' AND id < 90; DELETE FROM parts WHERE id BETWEEN 100 AND 120;
             INSERT INTO parts VALUES (500, 'us', 'new'); COMMIT",
        )
        .await;
    scene.equal(&mut process).await;
    assert_eq!(rereads(&scene), 0);
    // A new partition has nothing to be read for; its rows come like all others.
    let asia = "CREATE TABLE parts_asia PARTITION OF parts FOR VALUES IN ('jp')";
    scene.sql(asia).await;
    scene.sinks[1].1.execute(asia).await.unwrap();
    let begun = Instant::now();
    while !scene.log().contains("new partitions, and empty") {
        assert!(begun.elapsed() < PATIENCE && rereads(&scene) == 0, "{}", scene.log());
        sleep(Duration::from_millis(50)).await;
    }
    scene.sql("ALTER TABLE parts_us ALTER COLUMN v SET STATISTICS 10").await;
    let sum = "SELECT count(*) || md5(string_agg(id || region || v, '|' ORDER BY id, region)) FROM parts";
    // Nothing of this is in the stream.
    for silent in [
        "TRUNCATE parts_us_1",
        "CREATE TABLE more (LIKE parts INCLUDING ALL); INSERT INTO more VALUES (7000, 'xx', 'there before');
         ALTER TABLE parts ATTACH PARTITION more FOR VALUES IN ('xx')",
        "ALTER TABLE parts DETACH PARTITION parts_eu",
        "DROP TABLE parts_us_2",
        "ALTER TABLE parts ALTER COLUMN v TYPE text USING upper(v)",
    ] {
        if silent.contains("ATTACH") {
            scene.sinks[1].1.execute("CREATE TABLE more PARTITION OF parts FOR VALUES IN ('xx')").await.unwrap();
        }
        scene.sql(silent).await;
        scene.sql("INSERT INTO parts VALUES (601, 'us', 'more') ON CONFLICT (id, region) DO UPDATE SET v = parts.v || '!'").await;
        scene.sql("UPDATE parts SET v = v || '.' WHERE region = 'xx'").await;
        converge(&scene, &mut process, sum).await;
    }
    let before = rereads(&scene);
    assert_eq!(before, 5, "{}", scene.log());
    scene.sql("TRUNCATE parts; INSERT INTO parts VALUES (1, 'jp', 'x')").await;
    let mut process = kill(&scene, process).await;
    converge(&scene, &mut process, sum).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_one_by_one() {
    let scene = Scene::bare(LOCKSTEP, "ddl_leaves", PARTS, 1).await;
    let scene = scene.configure(|p| p.table("public.parts_eu").table("public.parts_us_1").table("public.parts"));
    let mut process = scene.spawn(&["source"]);
    assert_eq!(process.wait(PATIENCE).await.unwrap().code(), Some(3));
    assert!(scene.log().contains("is a partition of public.parts"), "{}", scene.log());
    let scene = scene.configure(|p| p.without("public.parts"));
    let key: &[&str] = &["id", "region"];
    let tables = ["public.parts_eu", "public.parts_us_1"].map(|table| support::TablePair::same(table, key));
    let scene = Scene { tables: tables.to_vec(), ..scene };
    scene
        .sql("INSERT INTO parts SELECT i, (ARRAY['eu', 'us'])[1 + i % 2], 'v' || i FROM generate_series(1, 99) i")
        .await;
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    scene.sql("BEGIN; UPDATE parts SET region = 'us' WHERE id < 9; DELETE FROM parts WHERE id = 40; INSERT INTO parts VALUES (1500, 'us', 'unrouted'); COMMIT").await;
    scene.equal(&mut process).await;
    scene.sql("TRUNCATE parts; INSERT INTO parts VALUES (1, 'uk', 'x'), (2, 'us', 'y')").await;
    scene.equal(&mut process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_and_identity_columns() {
    let schema = "CREATE TABLE public.items (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text,
                    twice text GENERATED ALWAYS AS (v || v) STORED, n int GENERATED BY DEFAULT AS IDENTITY)";
    let scene = Scene::new(LOCKSTEP, "ddl_generated", schema, &[("public.items", &["id"])]).await;
    scene.sql("INSERT INTO items (v) VALUES ('a'), ('b')").await;
    let mut process = scene.start().await;
    scene.sql("INSERT INTO items (v) VALUES ('c'); UPDATE items SET v = v || '.' WHERE id < 3; UPDATE items SET n = DEFAULT").await;
    scene.equal(&mut process).await;
    let all = "SELECT string_agg(t::text, ',' ORDER BY id) FROM items t";
    assert_eq!(text(scene.orders(), all).await, text(&scene.source, all).await, "generated ones too");
    // From here on it is a column like others, and has values that were never sent.
    scene
        .orders()
        .execute("ALTER TABLE items ALTER COLUMN twice DROP EXPRESSION; UPDATE items SET twice = NULL")
        .await
        .unwrap();
    scene.sql("ALTER TABLE items ALTER COLUMN twice DROP EXPRESSION").await;
    converge(&scene, &mut process, all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subtransactions_and_rows_of_another_origin() {
    let (scene, mut process) = flowing("ddl_subs").await;
    scene
        .sql(
            "BEGIN; INSERT INTO items VALUES (301, 'kept', 0); SAVEPOINT a; INSERT INTO items VALUES (302, 'gone', 0);
             ALTER TABLE items ADD COLUMN gone int DEFAULT 1; INSERT INTO items VALUES (303, 'gone', 0, 1); ROLLBACK TO a;
             SAVEPOINT b; INSERT INTO items VALUES (304, 'kept', 0); RELEASE b; UPDATE items SET n = 9 WHERE id = 304; COMMIT;
             BEGIN; TRUNCATE items; INSERT INTO items VALUES (1, 'gone', 0); ROLLBACK",
        )
        .await;
    scene.equal(&mut process).await;
    assert_eq!(
        text(scene.orders(), "SELECT string_agg(v, ',' ORDER BY id) FROM items WHERE id > 300").await,
        "kept,kept"
    );
    let superuser = scene.source.superuser().await.unwrap();
    let origin = &scene.source.name;
    superuser
        .batch_execute(&format!(
            "SELECT pg_replication_origin_create('{origin}'); SELECT pg_replication_origin_session_setup('{origin}')"
        ))
        .await
        .unwrap();
    superuser
        .batch_execute(
            "BEGIN; SELECT pg_replication_origin_xact_setup('0/ABCD', '2020-01-01'); INSERT INTO public.items VALUES (401, 'from elsewhere', 0);
             UPDATE public.items SET n = 5 WHERE id = 401; COMMIT",
        )
        .await
        .unwrap();
    scene.sql("INSERT INTO items VALUES (402, 'from here', 0)").await;
    let mut process = kill(&scene, process).await;
    scene.equal(&mut process).await;
    let seen = read_topic(&scene.services.kafka, &format!("{}.public.items", scene.pipeline.name));
    for (id, name, lsn) in [(401, Some(origin), Some(0xABCD)), (402, None, None)] {
        let of_row = |seen: &&Seen| seen.value.as_ref().is_some_and(|value| value["after"]["id"] == id);
        let found = seen.iter().filter(of_row).map(|seen| &seen.value.as_ref().unwrap()["source"]);
        let wanted = serde_json::json!([name, lsn]);
        let found: Vec<_> = found.map(|source| serde_json::json!([source["origin"], source["origin_lsn"]])).collect();
        assert!(!found.is_empty() && found.iter().all(|found| *found == wanted), "{id}: {found:?}");
    }
    superuser
        .batch_execute(&format!(
            "SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('{origin}')"
        ))
        .await
        .unwrap();
}

// ---- All of it together ----

/// Statements in random order over a table that changes its shape, with deaths in between: in the end the sink has the
/// source's columns and rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_shapes_with_deaths() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    let seed: u64 = std::env::var("LOCKSTEP_TEST_SEED").map_or(5, |seed| seed.parse().unwrap());
    let mut random = StdRng::seed_from_u64(seed);
    let (scene, mut process) = evolving("ddl_storm", "full").await;
    // Loads of several chunks, so that shapes change between them.
    let scene = scene.configure(|p| p.set("source.snapshot", "chunk_rows = 20"));
    let mut next = 1000;
    let mut extras: Vec<String> = Vec::new();
    for round in 0..40 {
        let mut sql = String::from("BEGIN;");
        for _ in 0..random.random_range(1..6) {
            next += 1;
            let pick = random.random_range(0..14);
            sql += &match (pick, extras.is_empty()) {
                (0, _) | (1..=3, true) => {
                    let name = format!("c{next}");
                    let kind = [
                        "int DEFAULT 7",
                        "text",
                        "numeric NOT NULL DEFAULT 1.5",
                        "text DEFAULT clock_timestamp()::text",
                    ];
                    let column =
                        format!("ALTER TABLE items ADD COLUMN {name} {};", kind[random.random_range(0..kind.len())]);
                    extras.push(name);
                    column
                }
                (1, _) => format!(
                    "ALTER TABLE items DROP COLUMN {};",
                    extras.swap_remove(random.random_range(0..extras.len()))
                ),
                (2, _) => {
                    let place = random.random_range(0..extras.len());
                    let old = std::mem::replace(&mut extras[place], format!("r{next}"));
                    format!("ALTER TABLE items RENAME COLUMN {old} TO r{next};")
                }
                (3, _) => {
                    let name = &extras[random.random_range(0..extras.len())];
                    format!(
                        "ALTER TABLE items ALTER COLUMN {name} DROP DEFAULT, ALTER COLUMN {name} DROP NOT NULL, ALTER COLUMN {name} TYPE text USING {name}::text || '~';"
                    )
                }
                (4, _) => format!("DELETE FROM items WHERE id % 50 = {};", next % 50),
                (5, _) => format!("UPDATE items SET id = {next} + 100000 WHERE id = (SELECT min(id) FROM items);"),
                (6, _) => "UPDATE items SET n = n + 1 WHERE id % 7 = 0;".to_owned(),
                (7, _) if random.random_bool(0.2) => "TRUNCATE items;".to_owned(),
                _ => format!("INSERT INTO items (id, v, n) VALUES ({next}, 'row {next}', {round});"),
            };
        }
        // A column that lost its default and is not null refuses rows; then nothing of the transaction was.
        let client = scene.source.connect().await.unwrap();
        if client.batch_execute(&format!("{sql} COMMIT")).await.is_err() {
            let there = "SELECT coalesce(string_agg(attname, ','), '') FROM pg_attribute
                          WHERE attrelid = 'public.items'::regclass AND attnum > 3 AND NOT attisdropped";
            let names = text(&scene.source, there).await;
            extras = names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        }
        if random.random_bool(0.3) {
            process = kill(&scene, process).await;
        }
    }
    eprintln!("seed {seed}");
    wait_columns(&scene, &mut process).await;
    scene.equal(&mut process).await;
}

/// The sink has the source's columns, in whatever order.
async fn wait_columns(scene: &Scene, process: &mut Process) {
    let names = "SELECT string_agg(attname, ',' ORDER BY attname) FROM pg_attribute
                  WHERE attrelid = 'public.items'::regclass AND attnum > 0 AND NOT attisdropped";
    // A shape shows with the first row behind it.
    scene.sql("INSERT INTO items (id, v, n) VALUES (-1, 'last', 0)").await;
    wait_text(scene.orders(), names, &text(&scene.source, names).await, process).await;
}
