//! What a sink refuses while it runs, and what becomes of it: a row is found among thousands, a table that is no longer what it
//! was is named, and what may heal by itself is waited for, with words about who is in the way. Nothing is lost in any case.

mod support;

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use support::scene::{PATIENCE, Scene, halted, text};
use support::{Pipeline, Process, Status};
use tokio::time::sleep;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const ITEMS: &str = "CREATE TABLE public.items (id int PRIMARY KEY, v text, n int)";

/// Types a hint into a shell.
fn type_hint(scene: &Scene, hint: &str) {
    let function = format!("lockstep() {{ '{LOCKSTEP}' \"$@\" --config '{}'; }}\n{hint}", scene.pipeline.dir.display());
    let output = Command::new("sh").args(["-c", &function]).env("LOCKSTEP_TEST_HTTP_PORT", "1").output().unwrap();
    assert!(output.status.success(), "{hint}: {output:?}");
}

async fn anew(scene: &Scene, mut process: Process) -> Process {
    process.terminate(PATIENCE).await.unwrap();
    let mut process = scene.spawn(&[]);
    scene.equal(&mut process).await;
    process
}

/// The halt's message and hint: it names the row's key, and no value but that.
async fn halted_by_one_row(process: &mut Process, code: &'static str, what: &str, secret: &str) -> String {
    let (message, hint) = halted(process, code).await;
    let said = format!("{what}; it is one row, known by its key (id)");
    assert!(message.starts_with(&said) && !message.contains(secret), "{message}");
    hint
}

/// In a transaction of thousands, in existing rows, and where a row is to go; and each time what the hint says is the way past.
#[tokio::test(flavor = "multi_thread")]
async fn one_row_of_thousands_is_found_and_got_past_by_its_key() {
    let scene = Scene::new(LOCKSTEP, "one_row", ITEMS, &[("public.items", &["id"])]).await.configure(Pipeline::several);
    scene.sql("INSERT INTO items SELECT i, 'v' || i, i % 100 FROM generate_series(1, 6000) i").await;
    scene.orders().execute("ALTER TABLE items ADD CONSTRAINT few CHECK (n < 1000)").await.unwrap();
    let mut process = scene.start().await;
    scene.sql("UPDATE items SET n = CASE id WHEN 1234 THEN 5000 ELSE n + 1 END WHERE id BETWEEN 1 AND 4000; DELETE FROM items WHERE id > 5900").await;
    let what = "constraint few of public.items refuses the changes";
    let hint = halted_by_one_row(&mut process, "CONSTRAINT_REFUSED", what, "5000").await;
    assert_eq!(hint, "lockstep resync public.items --where \"id = 1234\" --sink orders");
    scene.sql("UPDATE items SET n = 50 WHERE id = 1234").await;
    type_hint(&scene, &hint);
    let mut process = anew(&scene, process).await;

    // A type that got narrower under a running sink.
    scene.orders().execute("ALTER TABLE items ALTER v TYPE varchar(9)").await.unwrap();
    scene.sql("UPDATE items SET v = CASE id WHEN 77 THEN 'a secret text' ELSE 'w' || id END WHERE id < 3000").await;
    let what = "a value does not fit column v of public.items";
    let hint = halted_by_one_row(&mut process, "VALUE_REFUSED", what, "secret").await;
    assert_eq!(hint, "lockstep resync public.items --where \"id = 77\" --sink orders");
    scene.orders().execute("ALTER TABLE items ALTER v TYPE text").await.unwrap();
    // Or the sink is mended.
    let mut process = anew(&scene, process).await;

    // An existing row, in a chunk.
    scene.orders().execute("ALTER TABLE items DROP CONSTRAINT few").await.unwrap();
    scene.sql("UPDATE items SET n = 5000 WHERE id = 42").await;
    scene.equal(&mut process).await;
    scene
        .orders()
        .execute("DELETE FROM items WHERE id BETWEEN 30 AND 60; ALTER TABLE items ADD CONSTRAINT few CHECK (n < 1000)")
        .await
        .unwrap();
    type_hint(&scene, "lockstep resync public.items");
    let what = "constraint few of public.items refuses the changes";
    let hint = halted_by_one_row(&mut process, "CONSTRAINT_REFUSED", what, "5000").await;
    // The chunk is there, and only another one takes its place.
    assert_eq!(hint, "lockstep resync public.items --sink orders");
    assert!(scene.log().contains("an existing one that is being read: id = 42"));
    scene.sql("UPDATE items SET n = 4 WHERE id = 42").await;
    type_hint(&scene, &hint);
    let mut process = anew(&scene, process).await;

    // A row that the service does not let go.
    let trigger = "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF OLD.id = 9 THEN RAISE EXCEPTION 'row % is mine', OLD.v; END IF; RETURN OLD; END $$;
        CREATE TRIGGER keep BEFORE DELETE ON items FOR EACH ROW EXECUTE FUNCTION keep()";
    scene.orders().execute(trigger).await.unwrap();
    scene.sql("DELETE FROM items WHERE id < 2000").await;
    let what = "changes of public.items are refused by the sink: a trigger or rule of the sink";
    let hint = halted_by_one_row(&mut process, "CONSTRAINT_REFUSED", what, "is mine").await;
    assert!(hint.ends_with("-- the row is gone at the source: id = 9"), "{hint}");
    assert_eq!(
        text(scene.orders(), "SELECT count(*) FROM items").await,
        "5900",
        "nothing of that transaction is there"
    );
    scene.orders().execute("DROP TRIGGER keep ON items").await.unwrap();
    anew(&scene, process).await.terminate(PATIENCE).await.unwrap();
}

/// What the sink's last failure was.
fn failed_with(status: &Status, words: &[&str]) -> bool {
    let error = status.0["sinks"]["orders"]["retry"]["error"].as_str().unwrap_or_default();
    words.iter().all(|word| error.contains(word))
}

/// What was read ahead for the sink.
async fn ahead_bytes(process: &Process) -> u64 {
    let metrics = process.get("/metrics").await.unwrap();
    let sample = |line: &str| line.strip_prefix("lockstep_sink_ahead_bytes{sink=\"orders\"} ").map(str::to_owned);
    metrics.lines().find_map(sample).unwrap().parse().unwrap()
}

/// Somebody's lock, another password, no connection left, a server that only reads, a full disk: nothing halts, the status says what
/// it is, and what was written meanwhile is there as soon as it is over.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_heal_is_waited_for_with_words_and_nothing_is_lost() {
    let scene = Scene::new(LOCKSTEP, "for_now", ITEMS, &[("public.items", &["id"])]).await;
    let (role, admin) = (format!("r_{}", scene.orders().name), scene.orders().superuser().await.unwrap());
    let run = async |sql: &str| admin.batch_execute(&sql.replace("ROLE", &role)).await.unwrap();
    run("CREATE role ROLE LOGIN PASSWORD 'first'; GRANT lockstep TO ROLE").await;
    let (port, name) = (scene.orders().server.port, scene.orders().name.clone());
    let url = |password: &str| format!("postgres://{role}:{password}@127.0.0.1:{port}/{name}");
    // What is made at a start is to belong to the role that the test looks with.
    scene.start().await.terminate(PATIENCE).await.unwrap();
    scene.sql("INSERT INTO items VALUES (-1, 'first', 0)").await;
    let scene = scene.configure(|p| {
        p.sink_url("orders", url("first")).set("sinks.orders", "lock_timeout = \"4s\"\nlease_timeout = \"2s\"")
    });
    let mut process = scene.start().await;

    let somebody = scene.orders().connect().await.unwrap();
    somebody.batch_execute("SET application_name = 'nightly'; BEGIN; LOCK TABLE items IN SHARE MODE").await.unwrap();
    for i in 0..20 {
        scene.sql(&format!("INSERT INTO items SELECT i, repeat('x', 1000), 0 FROM generate_series({i} * 1000 + 1, {i} * 1000 + 1000) i")).await;
    }
    let holder = "(\"nightly\" of role lockstep";
    let waits = |s: &Status| s.0["sinks"]["orders"]["waiting_for"].as_str().is_some_and(|why| why.contains(holder));
    process.wait_until("the status names who has the lock", PATIENCE, waits).await.unwrap();
    process
        .wait_until("so does the error", PATIENCE, |s| failed_with(s, &[holder, "has the lock", "55P03"]))
        .await
        .unwrap();
    // A sink that is stuck holds no more than so much of what there is to come.
    let mut ahead = 0;
    while ahead < 3 << 20 {
        ahead = ahead_bytes(&process).await;
        process.ensure_running().unwrap();
    }
    sleep(Duration::from_millis(500)).await;
    ahead = ahead.max(ahead_bytes(&process).await);
    assert!(ahead < 9 << 19, "{ahead} bytes were read ahead");
    somebody.batch_execute("ROLLBACK").await.unwrap();
    scene.equal(&mut process).await;

    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ROLE'";
    run(&format!("ALTER role ROLE PASSWORD 'second'; {cut}")).await;
    let refused = |s: &Status| failed_with(s, &["28P01", "this password was taken before", "SIGHUP"]);
    process.wait_until("the password is no longer taken", PATIENCE, refused).await.unwrap();
    scene.sql("UPDATE items SET n = 1 WHERE id < 10").await;
    let scene = scene.configure(|p| p.sink_url("orders", url("second")));
    scene.pipeline.write().unwrap();
    process.signal(Signal::HUP).unwrap();
    scene.equal(&mut process).await;

    run(&format!("ALTER role ROLE CONNECTION LIMIT 0; {cut}")).await;
    process
        .wait_until("no connection is left", PATIENCE, |s| failed_with(s, &["connecting to", "53300"]))
        .await
        .unwrap();
    scene.sql("UPDATE items SET n = 2 WHERE id < 10").await;
    run("ALTER role ROLE CONNECTION LIMIT -1").await;
    scene.equal(&mut process).await;

    // As the server says it: the words are its own.
    for (code, value) in [("25006", 3), ("53100", 4)] {
        let refuse = format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'for now' USING ERRCODE = '{code}'; END $$;
             CREATE TRIGGER refuse BEFORE UPDATE ON items FOR EACH ROW EXECUTE FUNCTION refuse()"
        );
        scene.orders().execute(&refuse).await.unwrap();
        scene.sql(&format!("UPDATE items SET n = {value} WHERE id < 10")).await;
        process.wait_until(code, PATIENCE, |s| failed_with(s, &["for now", code])).await.unwrap();
        scene.orders().execute("DROP FUNCTION refuse() CASCADE").await.unwrap();
        scene.equal(&mut process).await;
    }
    process.terminate(PATIENCE).await.unwrap();
    run("DROP role ROLE").await;
}

/// A table that goes, or gets another shape, under a running sink: a halt that names it, and the way back.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_no_longer_what_it_was_is_named() {
    let scene =
        Scene::new(LOCKSTEP, "no_longer", ITEMS, &[("public.items", &["id"])]).await.configure(Pipeline::several);
    scene.sql("INSERT INTO items SELECT i, 'v' || i, i FROM generate_series(1, 100) i").await;
    let mut process = scene.start().await;
    for (i, (change, named, back)) in [
        ("DROP TABLE items", "public.items", ITEMS),
        ("ALTER TABLE items DROP COLUMN n", "n", "ALTER TABLE items ADD COLUMN n int"),
        ("ALTER TABLE items ALTER n TYPE bool USING true", "n", "ALTER TABLE items ALTER n TYPE int USING 0"),
    ]
    .into_iter()
    .enumerate()
    {
        scene.orders().execute(change).await.unwrap();
        scene
            .sql(&format!(
                "UPDATE items SET n = n + 7 WHERE id % 3 = {i}; INSERT INTO items VALUES (200 + {i}, 'new', 5)"
            ))
            .await;
        let (message, hint) = halted(&mut process, "SINK_TABLE").await;
        assert!(message.contains(named) && !hint.is_empty(), "{change}: {message} {hint}");
        scene.orders().execute(back).await.unwrap();
        type_hint(&scene, "lockstep resync public.items --sink orders");
        process = anew(&scene, process).await;
    }
    process.terminate(PATIENCE).await.unwrap();
}
