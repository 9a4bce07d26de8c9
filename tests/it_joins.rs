//! Sinks that join while others are in the middle of something.

mod support;

use support::Pipeline;
use support::scene::{PATIENCE, Scene, text, wait_text};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

/// A sink joins between two chunks of another sink's load. The chunks that follow are not meant for it, and of their tables
/// it has nothing yet, so it does not fetch their rows either: that none are there is no gap.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_joins_in_the_middle_of_anothers_load() {
    let schema =
        "CREATE TABLE public.a (id int PRIMARY KEY, v text); CREATE TABLE public.b (id int PRIMARY KEY, v text)";
    let scene = Scene::two(LOCKSTEP, "joins", schema, &[("public.a", &["id"]), ("public.b", &["id"])]).await;
    let scene = scene.configure(|p: Pipeline| p.several().set("source.snapshot", "chunk_rows = 50"));
    scene.sql("INSERT INTO a SELECT i, repeat('x', 100) FROM generate_series(1, 12000) i").await;
    scene.sql("INSERT INTO b SELECT i, repeat('y', 100) FROM generate_series(1, 2000) i").await;
    let mut first = scene.pipeline.spawn_with(&["--role", "source", "--role", "sink:orders"], &[]).unwrap();
    wait_text(scene.orders(), "SELECT count(*) > 0 FROM public.a", "true", &mut first).await;
    let mut second = scene.spawn(&["sink:inventory"]);
    let joined = |status: &support::Status| !matches!(status.sink_state("inventory"), "" | "starting" | "retrying");
    second.wait_until("the second sink has joined", PATIENCE, joined).await.unwrap();
    let phase = text(scene.orders(), "SELECT phase FROM lockstep.progress").await;
    assert_eq!(phase, "snapshot", "the first load is over, so there was no middle to join in");
    scene.equal(&mut second).await;
}
