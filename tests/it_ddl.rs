//! The source's tables change their shape while rows flow: rows are read as they were written, what leaves no trace in the
//! stream is read again, and sinks follow as far as they are told to.

mod support;

use std::time::{Duration, Instant};

use support::scene::{PATIENCE, Scene, text, wait_text};
use support::{Pipeline, Process, Status};
use tokio::time::sleep;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
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
    superuser
        .batch_execute(&format!(
            "SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('{origin}')"
        ))
        .await
        .unwrap();
}
