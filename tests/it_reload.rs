//! A configuration that is edited while the process runs.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::compare::TablePair;
use support::scene::{PATIENCE, Scene, text, wait_text};
use support::{Process, Status};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

fn refused(status: &Status, what: &str) -> bool {
    status.0["configuration"]["refused"].as_str().is_some_and(|why| why.contains(what))
}

async fn taken(process: &mut Process) {
    let is = |s: &Status| s.0["configuration"].is_object() && s.0["configuration"]["refused"].is_null();
    process.wait_until("the edit is taken", PATIENCE, is).await.unwrap();
}

/// A table is added, a file is broken and mended, a sink is added; the other table's stream goes on meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_edited_is_taken_while_it_runs() {
    let schema = "CREATE TABLE public.first (id int PRIMARY KEY, v text); CREATE TABLE public.second (id int PRIMARY KEY, v text)";
    let scene = Scene::bare(LOCKSTEP, "reload", schema, 2).await;
    let inventory = scene.sinks[1].1.url();
    let scene = scene.configure(|p| p.without_sink("inventory").table("public.first").set("", "reload = true"));
    let mut scene = Scene { tables: vec![TablePair::same("public.first", &["id"])], ..scene };
    let late = scene.sinks.pop().unwrap();
    scene
        .sql("INSERT INTO first SELECT -i, 'old' FROM generate_series(1, 500) i; INSERT INTO second VALUES (1, 'a')")
        .await;
    let mut process = scene.start().await;
    let pid = process.pid();

    let (stop, database, sink) = (Arc::new(AtomicBool::new(false)), scene.source.url(), scene.orders().url());
    let stopped = stop.clone();
    // The longest time that the newest row took to arrive.
    let longest = tokio::spawn(async move {
        let (source, connection) = tokio_postgres::connect(&database, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let (sink, connection) = tokio_postgres::connect(&sink, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let (mut written, mut longest) = (0, Duration::ZERO);
        while !stopped.load(Ordering::Relaxed) {
            written += 1;
            source.execute("INSERT INTO first VALUES ($1, 'new')", &[&written]).await.unwrap();
            let since = Instant::now();
            while sink.query_one("SELECT coalesce(max(id), 0) FROM first", &[]).await.unwrap().get::<_, i32>(0)
                < written
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            longest = longest.max(since.elapsed());
        }
        longest
    });

    // Half an edit.
    let path = scene.pipeline.dir.join("connectors/second.toml");
    std::fs::write(&path, "table = \"public.second\"\n[sinks.order").unwrap();
    process.wait_until("it is named", PATIENCE, |s| refused(s, "second.toml:2")).await.unwrap();
    assert!(process.get("/metrics").await.unwrap().contains("lockstep_configuration_refused 1"));
    // A table that is not there yet.
    std::fs::write(&path, "table = \"public.third\"\n[sinks.orders]").unwrap();
    process.wait_until("it is not there", PATIENCE, |s| refused(s, "TABLE_MISSING")).await.unwrap();
    let status = scene.pipeline.command(&["status"]).unwrap();
    assert!(String::from_utf8_lossy(&status.stdout).contains("the edited configuration is not taken"), "{status:?}");
    std::fs::remove_file(&path).unwrap();
    let mut scene = scene.configure(|p| p.table("public.second"));
    scene.tables.push(TablePair::same("public.second", &["id"]));
    scene.pipeline.write().unwrap();
    wait_text(scene.orders(), "SELECT count(*) FROM second", "1", &mut process).await;
    taken(&mut process).await;
    assert!(process.get("/metrics").await.unwrap().contains("lockstep_configuration_refused 0"));

    let read = scene.rows_read("public.second");
    let both = |p: support::Pipeline| p.table("public.first").table("public.second");
    let mut scene = scene.configure(|p| both(p.sink_url("inventory", inventory)));
    scene.sinks.push(late);
    scene.pipeline.write().unwrap();
    let second = |s: &Status| s.sink_state("inventory") == "streaming";
    process.wait_until("the second sink streams", PATIENCE, second).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let longest = longest.await.unwrap();
    scene.equal(&mut process).await;
    assert_eq!(scene.rows_read("public.second") - read, 1, "once, for the new sink");
    assert_eq!(text(scene.orders(), "SELECT count(*) FROM first WHERE v = 'old'").await, "500");
    assert!(longest < Duration::from_secs(10), "a row took {longest:?} to arrive");

    // Nothing that a running process can't change.
    let scene = scene.configure(|p| p.set("http", "admin = \"other.sock\""));
    scene.pipeline.write().unwrap();
    process
        .wait_until("it is refused", PATIENCE, |s| refused(s, "http.admin is taken at a start alone"))
        .await
        .unwrap();
    assert_eq!(process.pid(), pid);
    process.ensure_running().unwrap();
    assert_eq!(scene.log().matches("\"started\"").count(), 1);
    process.terminate(PATIENCE).await.unwrap();
}

/// Whoever wants edits to be taken when they say so writes `reload = false`.
#[tokio::test(flavor = "multi_thread")]
async fn sighup_takes_an_edit_that_is_not_looked_for() {
    let schema = "CREATE TABLE public.first (id int PRIMARY KEY); CREATE TABLE public.second (id int PRIMARY KEY)";
    let scene = Scene::bare(LOCKSTEP, "sighup", schema, 1).await;
    let scene = scene.configure(|p| p.table("public.first").set("", "reload = false"));
    let mut scene = Scene { tables: vec![TablePair::same("public.first", &["id"])], ..scene };
    scene.sql("INSERT INTO first VALUES (1); INSERT INTO second VALUES (1)").await;
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    let pid = process.pid();

    scene = scene.configure(|p| p.table("public.second"));
    scene.pipeline.write().unwrap();
    process.signal(Signal::HUP).unwrap();
    wait_text(scene.orders(), "SELECT count(*) FROM second", "1", &mut process).await;
    taken(&mut process).await;
    assert_eq!(process.pid(), pid);
    process.terminate(PATIENCE).await.unwrap();
}

/// A sink that is to be written slowly is, from the edit on and until the next one; its rate says what it waits for.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_is_written_at_the_rate_that_is_set_while_it_runs() {
    let scene = Scene::two(
        LOCKSTEP,
        "sink_rate",
        "CREATE TABLE public.t (id int PRIMARY KEY, v text)",
        &[("public.t", &["id"])],
    )
    .await
    .configure(|p| p.set("", "reload = true"));
    scene.orders().execute("ALTER TABLE t ADD COLUMN written timestamptz DEFAULT clock_timestamp()").await.unwrap();
    let mut process = scene.start().await;
    let scene = scene.configure(|p| p.set("sinks.orders", "rows_per_second = 50"));
    scene.pipeline.write().unwrap();
    let taken = |log: String| log.matches("the edited configuration is in force").count();
    let first = |s: &Status| taken(scene.log()) == 1 && s.all_streaming();
    process.wait_until("the edit is taken", PATIENCE, first).await.unwrap();
    let source = scene.source.connect().await.unwrap();
    for id in 0..40 {
        let rows = format!("INSERT INTO t SELECT i, 'v' FROM generate_series({0}, {0} + 9) AS i", id * 10);
        source.batch_execute(&rows).await.unwrap();
        // What the reader has put into one checkpoint is one transaction at a sink.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let held =
        |s: &Status| s.0["sinks"]["orders"]["waiting_for"].as_str().is_some_and(|why| why.contains("rows_per_second"));
    let status = process.wait_until("the sink waits for its turn", PATIENCE, held).await.unwrap();
    assert_eq!(status.sink_state("orders"), "streaming", "{status}");
    wait_text(&scene.sinks[1].1, "SELECT count(*) FROM t", "400", &mut process).await;
    // By the sink's own clock; a burst goes ahead of its turn.
    let kept = "SELECT count(*) <= 50 * extract(epoch FROM max(written) - min(written)) + 110 FROM t";
    assert_eq!(text(scene.orders(), kept).await, "true");
    let scene = scene.configure(|p| p.unset("sinks.orders"));
    scene.pipeline.write().unwrap();
    process.wait_until("the edit is taken", PATIENCE, |_| taken(scene.log()) == 2).await.unwrap();
    wait_text(scene.orders(), "SELECT count(*) FROM t", "400", &mut process).await;
    scene.equal(&mut process).await;
}
