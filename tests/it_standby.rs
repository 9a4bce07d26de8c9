//! Two instances of a role, and links that die without a word.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::proxy::Proxy;
use support::scene::{AUDIT_SCHEMA, EVENTS, EVENTS_SCHEMA, Events, PATIENCE, Scene, assert_once, text, wait_text};
use support::{Database, Pipeline, Process};
use tokio::time::sleep;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const QUICK: Duration = Duration::from_millis(2);
const WORKER_EPOCH: &str = "SELECT worker_epoch FROM lockstep.progress";

async fn scene(hint: &str) -> Scene {
    let scene = Scene::new(LOCKSTEP, hint, EVENTS_SCHEMA, &EVENTS).await;
    scene.orders().execute(AUDIT_SCHEMA).await.unwrap();
    scene.configure(|p: Pipeline| {
        let p = p.several().set("source", "sender_timeout = \"2s\"");
        p.set("sinks.orders", "lease_timeout = \"2s\"")
    })
}

/// Rows that were committed from now on are at the sink.
async fn flows(scene: &Scene, process: &mut Process) {
    let before: i64 = text(&scene.source, "SELECT coalesce(max(tx), 0) FROM events").await.parse().unwrap();
    let there = format!("SELECT count(*) > 0 FROM events WHERE tx > {before}");
    wait_text(scene.orders(), &there, "true", process).await;
}

/// The owner of a sink is frozen in the middle of its work, again and again. The standby takes over while it is frozen, it
/// becomes the standby when it wakes up, nothing that it still tries counts, and nobody takes the sink back.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_sink_worker_loses_the_sink_to_the_standby() {
    let scene = scene("frozen_sink").await;
    let mut source = scene.spawn(&["source"]);
    let mut owner = scene.spawn(&["sink:orders"]);
    owner.wait_until("the owner works", PATIENCE, |s| s.sink_state("orders") == "streaming").await.unwrap();
    let mut standby = scene.spawn(&["sink:orders"]);
    let load = Events::on(&scene, QUICK);
    for _ in 0..2 {
        standby.wait_until("a standby", PATIENCE, |s| s.sink_state("orders") == "standby").await.unwrap();
        flows(&scene, &mut owner).await;
        let epoch = text(scene.orders(), WORKER_EPOCH).await;
        owner.signal(Signal::STOP).unwrap();
        standby.wait_until("the standby works", PATIENCE, |s| s.sink_state("orders") == "streaming").await.unwrap();
        flows(&scene, &mut standby).await;
        let taken = text(scene.orders(), WORKER_EPOCH).await;
        assert_ne!(taken, epoch);
        owner.signal(Signal::CONT).unwrap();
        owner
            .wait_until("the owner has become the standby", PATIENCE, |s| s.sink_state("orders") == "standby")
            .await
            .unwrap();
        flows(&scene, &mut standby).await;
        assert_eq!(text(scene.orders(), WORKER_EPOCH).await, taken, "nobody took it back");
        std::mem::swap(&mut owner, &mut standby);
    }
    // A kill needs no lease.
    owner.kill9().unwrap();
    standby.wait_until("the standby works", PATIENCE, |s| s.sink_state("orders") == "streaming").await.unwrap();
    load.stop().await;
    scene.equal(&mut standby).await;
    source.ensure_running().unwrap();
    assert_once(scene.orders()).await;
}

/// An owner with nothing to do keeps its lease by speaking.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_owner_keeps_its_lease() {
    let scene = scene("idle").await;
    let mut owner = scene.start().await;
    let mut standby = scene.spawn(&["sink:orders"]);
    standby.wait_until("a standby", PATIENCE, |s| s.sink_state("orders") == "standby").await.unwrap();
    let epoch = text(scene.orders(), WORKER_EPOCH).await;
    let spoke = "SELECT a.state_change FROM pg_stat_activity a JOIN lockstep.progress p ON p.backend_pid = a.pid";
    let (mut seen, begun) = (BTreeSet::new(), Instant::now());
    // More than two leases' worth of beats.
    while seen.len() < 12 {
        seen.insert(text(scene.orders(), spoke).await);
        assert!(begun.elapsed() < PATIENCE, "the owner is silent: {seen:?}");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(text(scene.orders(), WORKER_EPOCH).await, epoch);
    owner.ensure_running().unwrap();
    standby.ensure_running().unwrap();
}

fn through(proxy: &Proxy, database: &Database) -> String {
    format!("postgres://lockstep:lockstep@127.0.0.1:{}/{}", proxy.port, database.name)
}

/// How often source and sink were started again.
async fn retries(process: &Process) -> (u64, u64) {
    let metrics = process.get("/metrics").await.unwrap();
    let count = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0, |count| count.trim().parse().unwrap())
    };
    (count("lockstep_source_retries_total"), count("lockstep_sink_retries_total{sink=\"orders\"}"))
}

/// Both ways of a link swallow what is sent, and nobody closes it. Both roles notice by themselves and connect anew.
#[tokio::test(flavor = "multi_thread")]
async fn links_that_die_without_a_word() {
    let scene = scene("half_open").await;
    let to_source = Proxy::start(scene.source.server.port).await;
    let to_sink = Proxy::start(scene.orders().server.port).await;
    let (source, sink) = (through(&to_source, &scene.source), through(&to_sink, scene.orders()));
    let scene = scene.configure(|p| p.source_url(source).sink_url("orders", sink));
    let mut process = scene.start().await;
    let load = Events::on(&scene, QUICK);
    for proxy in [&to_sink, &to_source, &to_sink] {
        flows(&scene, &mut process).await;
        assert!(proxy.swallow() > 0, "there is a connection to swallow");
        flows(&scene, &mut process).await;
    }
    load.stop().await;
    scene.equal(&mut process).await;
    assert_once(scene.orders()).await;
    // With nothing to do, too.
    let (source, sink) = retries(&process).await;
    to_sink.swallow();
    to_source.swallow();
    let begun = Instant::now();
    loop {
        let now = retries(&process).await;
        if now.0 > source && now.1 > sink {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "the dead links are not noticed: {now:?} after {:?}", (source, sink));
        sleep(Duration::from_millis(100)).await;
    }
    scene.sql("INSERT INTO events VALUES (-3, -1), (-2, -1), (-1, -1); INSERT INTO journal VALUES (-1)").await;
    scene.equal(&mut process).await;
}

/// With the settings that everybody has: how long it takes at most until a standby does the work of one that was killed or
/// frozen, and until a link that died without a word is noticed.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_is_replaced_in_time() {
    // A reader waits for 30 s of silence; one second more is ours, for looking.
    let (killed, frozen, dead) = (Duration::from_secs(10), Duration::from_secs(30), Duration::from_secs(31));
    let scene = Scene::new(LOCKSTEP, "in_time", EVENTS_SCHEMA, &EVENTS).await;
    scene.orders().execute(AUDIT_SCHEMA).await.unwrap();
    let to_source = Proxy::start(scene.source.server.port).await;
    let to_sink = Proxy::start(scene.orders().server.port).await;
    let (source, sink) = (through(&to_source, &scene.source), through(&to_sink, scene.orders()));
    let scene = scene.configure(|p| p.several().source_url(source).sink_url("orders", sink));
    let mut first = scene.start().await;
    let mut second = scene.spawn(&[]);
    let load = Events::on(&scene, QUICK);
    both_wait(&mut second).await;
    let begun = Instant::now();
    first.kill9().unwrap();
    flows(&scene, &mut second).await;
    let took = [begun.elapsed(), Duration::ZERO, Duration::ZERO];

    let mut first = scene.spawn(&[]);
    both_wait(&mut first).await;
    let begun = Instant::now();
    second.signal(Signal::STOP).unwrap();
    flows(&scene, &mut first).await;
    let took = [took[0], begun.elapsed(), Duration::ZERO];
    second.kill9().unwrap();

    let before = retries(&first).await;
    let begun = Instant::now();
    assert!(to_source.swallow() > 0 && to_sink.swallow() > 0, "there are connections to swallow");
    loop {
        let now = retries(&first).await;
        if now.0 > before.0 && now.1 > before.1 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "the dead links are not noticed: {now:?} after {before:?}");
        sleep(Duration::from_millis(100)).await;
    }
    let took = [took[0], took[1], begun.elapsed()];
    flows(&scene, &mut first).await;
    load.stop().await;
    scene.equal(&mut first).await;
    assert_once(scene.orders()).await;
    eprintln!("killed, frozen, links dead: {took:?}");
    assert!(took[0] < killed && took[1] < frozen && took[2] < dead, "killed, frozen, links dead: {took:?}");
}

async fn both_wait(process: &mut Process) {
    let waits = |s: &support::Status| (s.source_state(), s.sink_state("orders")) == ("standby", "standby");
    process.wait_until("a standby of both roles", PATIENCE, waits).await.unwrap();
}
