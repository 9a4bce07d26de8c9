//! Tables whose rows reference each other in a circle are copied in chunks all the same: what was there before, and under
//! changes, with foreign keys in force at the sink.

mod support;

use support::scene::{PATIENCE, Scene, halted, text, wait_text};
use support::{Status, TablePair};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

/// The source empties tables and changes their shape while their copy is half there, and its foreign keys can't hold yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_circle_is_emptied_and_gets_a_column_in_the_middle_of_its_copy() {
    let tables = [("public.parts", &["id"][..]), ("public.people", &["id"]), ("public.teams", &["id"])];
    let scene = Scene::bare(LOCKSTEP, "circles_ddl", SCHEMA, 1).await;
    let pairs = tables.iter().map(|(table, key)| TablePair::same(table, key)).collect();
    let scene = Scene { tables: pairs, ..scene };
    scene.sql(ROWS).await;
    let follow = "[sinks.orders]\nevolve = 'add'\n";
    let scene = scene.configure(|p| {
        let p = tables.iter().fold(p, |p, (table, _)| p.connector(table, follow));
        p.set("source.snapshot", "chunk_rows = 50\nrows_per_second = 1000")
    });
    let mut process = scene.spawn(&[]);
    let done = |s: &Status, table: &str| s.0["tables"][table]["rows_done"].as_u64().unwrap_or(0);
    let begun = |s: &Status| tables.iter().map(|(table, _)| done(s, table)).sum::<u64>() >= 200;
    process.wait_until("a part is read", PATIENCE, begun).await.unwrap();
    scene.sql("TRUNCATE parts; INSERT INTO parts SELECT i, 1, 'anew' FROM generate_series(1, 1000) i").await;
    scene.sql("ALTER TABLE parts ADD COLUMN price int DEFAULT 3; UPDATE parts SET price = id WHERE id < 20").await;
    scene
        .sql("TRUNCATE people, teams; INSERT INTO people VALUES (2, NULL, 'last'); INSERT INTO teams VALUES (1, 2)")
        .await;
    scene.streaming(&mut process).await;
    scene.equal(&mut process).await;
}

/// Every row of `parts` references one with a higher key; `people` and `teams` reference each other.
const SCHEMA: &str = "
CREATE TABLE public.parts (id int PRIMARY KEY, whole int REFERENCES public.parts DEFERRABLE, note text);
CREATE TABLE public.people (id int PRIMARY KEY, team int, note text);
CREATE TABLE public.teams (id int PRIMARY KEY, lead int NOT NULL REFERENCES public.people DEFERRABLE);
ALTER TABLE public.people ADD FOREIGN KEY (team) REFERENCES public.teams DEFERRABLE;
";

const ROWS: &str = "
BEGIN; SET CONSTRAINTS ALL DEFERRED;
INSERT INTO parts SELECT i, CASE WHEN i < 2000 THEN i + 1 END, 'before' FROM generate_series(1, 2000) i;
INSERT INTO people SELECT i, 601 - i, 'before' FROM generate_series(1, 600) i;
INSERT INTO teams SELECT i, i FROM generate_series(1, 600) i;
COMMIT;
";

const CHANGES: &str = "
BEGIN; SET CONSTRAINTS ALL DEFERRED;
UPDATE parts SET whole = 2000, note = 'during' WHERE id % 97 = 1 AND id < 2000;
DELETE FROM parts WHERE id = 1;
INSERT INTO parts VALUES (-1, 1999, 'new'), (3000, -1, 'new');
UPDATE teams SET lead = 601 - lead WHERE id % 50 = 0;
UPDATE people SET team = 1 WHERE id = 600;
COMMIT;
";

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_reference_each_other_are_copied_in_chunks() {
    let tables = [("public.parts", &["id"][..]), ("public.people", &["id"]), ("public.teams", &["id"])];
    let scene = Scene::new(LOCKSTEP, "circles", SCHEMA, &tables).await;
    scene.sql(ROWS).await;
    let scene = scene.configure(|p| p.set("source.snapshot", "chunk_rows = 50"));
    let mut process = scene.spawn(&[]);
    let loading = |s: &Status| s.sink_state("orders") == "snapshot" || s.all_streaming();
    process.wait_until("the sink is loading", PATIENCE, loading).await.unwrap();
    scene.sql(CHANGES).await;
    // Asked to stop in the middle, it leaves nothing half done behind and goes on.
    process.terminate(PATIENCE).await.unwrap();
    let dangling = "SELECT count(*)::text FROM parts p WHERE whole IS NOT NULL AND NOT EXISTS (SELECT FROM parts w WHERE w.id = p.whole)";
    assert_eq!(text(scene.orders(), dangling).await, "0");
    let mut process = scene.spawn(&[]);
    scene.streaming(&mut process).await;
    scene.equal(&mut process).await;
    // Once it is all there, changes are applied as ever; a copy made anew ends well too.
    scene.sql("UPDATE parts SET note = 'after' WHERE id % 2 = 0").await;
    scene.equal(&mut process).await;
    scene
        .orders()
        .execute("DELETE FROM parts WHERE id = -1 OR id = 3000; UPDATE people SET note = 'wrong'")
        .await
        .unwrap();
    let resync = scene.pipeline.command(&["resync", "--all", "--sink", "orders"]).unwrap();
    assert!(resync.status.success(), "{}", String::from_utf8_lossy(&resync.stderr));
    scene.equal(&mut process).await;
}

/// Only the sink has these: one that can't be deferred, a circle, one that was never validated, and a comment.
const FOREIGN_KEYS: &str = "
ALTER TABLE parts ADD CONSTRAINT \"whole of\" FOREIGN KEY (whole) REFERENCES parts ON DELETE SET NULL;
ALTER TABLE people ADD CONSTRAINT in_team FOREIGN KEY (team) REFERENCES teams;
ALTER TABLE teams ADD CONSTRAINT led_by FOREIGN KEY (lead) REFERENCES people DEFERRABLE INITIALLY DEFERRED NOT VALID;
CREATE TABLE mine (id int REFERENCES teams, part int REFERENCES parts ON DELETE CASCADE);
COMMENT ON CONSTRAINT in_team ON people IS 'it''s mine';
";

const PLAIN: &str = "
CREATE TABLE public.parts (id int PRIMARY KEY, whole int, note text);
CREATE TABLE public.people (id int PRIMARY KEY, team int, note text);
CREATE TABLE public.teams (id int PRIMARY KEY, lead int NOT NULL);
";

/// Every foreign key as the catalog has it.
const KEYS: &str = "SELECT string_agg(concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated,
    obj_description(oid, 'pg_constraint')), E'\\n' ORDER BY conrelid::regclass::text, conname) FROM pg_constraint WHERE contype = 'f'";

const ASIDE: &str = "SELECT count(*) FROM lockstep.foreign_keys";

#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_that_are_set_aside_come_back_as_they_were() {
    let tables = [("public.parts", &["id"][..]), ("public.people", &["id"]), ("public.teams", &["id"])];
    let scene = Scene::new(LOCKSTEP, "aside", PLAIN, &tables).await;
    scene.orders().execute(FOREIGN_KEYS).await.unwrap();
    let before = text(scene.orders(), KEYS).await;
    scene.sql(ROWS).await;
    scene.sql("INSERT INTO parts VALUES (-7, 99999, 'dangling')").await;
    let scene = scene.configure(|p| {
        p.set("source.snapshot", "chunk_rows = 50").set("sinks.orders", "foreign_keys = \"after_load\"")
    });
    // A role that can't put them back leaves them alone.
    let superuser = scene.orders().superuser().await.unwrap();
    superuser.batch_execute("ALTER TABLE teams OWNER TO postgres; GRANT ALL ON teams TO lockstep").await.unwrap();
    scene.pipeline.write().unwrap();
    let check = scene.pipeline.command(&["check"]).unwrap();
    let said = String::from_utf8(check.stdout).unwrap();
    assert!(check.status.code() == Some(3) && said.contains("ALTER TABLE \"public\".\"teams\" OWNER TO"), "{said}");
    let mut process = scene.spawn(&[]);
    halted(&mut process, "NO_RIGHT").await;
    assert_eq!(text(scene.orders(), KEYS).await, before);
    process.kill9().unwrap();
    superuser.batch_execute("ALTER TABLE teams OWNER TO lockstep").await.unwrap();

    // Rows are visible long before all are there, and what is killed in the middle loses no constraint.
    let mut process = scene.spawn(&[]);
    wait_text(scene.orders(), "SELECT count(*) > 100 FROM parts", "true", &mut process).await;
    process.kill9().unwrap();
    assert_eq!(text(scene.orders(), "SELECT phase FROM lockstep.progress").await, "snapshot");
    assert_eq!(text(scene.orders(), ASIDE).await, "3");
    assert_eq!(
        text(scene.orders(), "SELECT count(*) FROM pg_constraint WHERE contype = 'f'").await,
        "2",
        "those of mine"
    );
    let mut process = scene.spawn(&[]);
    let (message, hint) = halted(&mut process, "FOREIGN_KEY_BROKEN").await;
    assert!(message.contains("\"whole of\"") || message.contains("whole of of public.parts"), "{message}");
    assert!(message.contains("id = (-7)") && !message.contains("dangling"), "{message}");
    assert_eq!(hint, "lockstep resync public.parts --sink orders");
    process.kill9().unwrap();
    // Mended at the source and read again; what the configuration says by then does not matter.
    scene.sql("UPDATE parts SET whole = NULL WHERE id = -7").await;
    let scene = scene.configure(|p| p.unset("sinks.orders"));
    let resync = scene.pipeline.command(&["resync", "public.parts", "--sink", "orders"]).unwrap();
    assert!(resync.status.success(), "{}", String::from_utf8_lossy(&resync.stderr));
    let mut process = scene.spawn(&[]);
    scene.streaming(&mut process).await;
    scene.equal(&mut process).await;
    assert_eq!(text(scene.orders(), KEYS).await, before);
    assert_eq!(text(scene.orders(), ASIDE).await, "0");
    // From here on they are in force.
    scene.sql("INSERT INTO parts VALUES (-8, 99999, 'dangling')").await;
    halted(&mut process, "CONSTRAINT_REFUSED").await;
}
