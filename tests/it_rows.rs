//! Row consistency: partitions of a sink's topics spread over processes, each key in order, each effect once, whoever dies, is
//! frozen or comes back.

mod support;
#[path = "support/sink.rs"]
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lockstep::config::Consistency;
use lockstep::sink::partition_progress::{Partition, PartitionMove, PartitionRow};
use lockstep::sink::postgres::PostgresSink;
use lockstep::sink::{Failure, Sink as _};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rustix::process::Signal;
use support::compare::TablePair;
use support::scene::{AUDIT_SCHEMA, EVENTS_SCHEMA, Events, PATIENCE, Scene, assert_once, halted, text, wait_text};
use support::{Pipeline, Process};
use tokio::time::sleep;
use uuid::Uuid;
use world::{World, in_database};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const QUICK: Duration = Duration::from_millis(3);

/// Rows that change: `v` only grows, whatever becomes of them.
const ITEMS_SCHEMA: &str = "
CREATE TABLE public.items (id bigint PRIMARY KEY, v bigint NOT NULL, note text);
CREATE SEQUENCE public.v;
";

/// At the sink: no value of a row comes twice, and a row's values come in their order.
const ITEMS_AUDIT: &str = "
CREATE TABLE public.items_audit (id bigint, v bigint, op text, PRIMARY KEY (id, v, op));
CREATE FUNCTION public.items_audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP = 'UPDATE' AND NEW.v <= OLD.v THEN RAISE 'v of % went from % to %', OLD.id, OLD.v, NEW.v; END IF;
    INSERT INTO public.items_audit VALUES (coalesce(NEW.id, OLD.id), coalesce(NEW.v, OLD.v), TG_OP); RETURN NULL; END $$;
CREATE TRIGGER items_audit AFTER INSERT OR UPDATE OR DELETE ON public.items FOR EACH ROW EXECUTE FUNCTION public.items_audit();
";

const PARTITIONS: usize = 4 + 3;

async fn scene(hint: &str) -> Scene {
    let scene = Scene::bare(LOCKSTEP, hint, &format!("{EVENTS_SCHEMA}{ITEMS_SCHEMA}"), 1).await;
    scene.orders().execute(AUDIT_SCHEMA).await.unwrap();
    scene.orders().execute(ITEMS_AUDIT).await.unwrap();
    // Some that are there before.
    scene.sql("INSERT INTO items SELECT i, nextval('v'), 'old' FROM generate_series(1, 500) i").await;
    let route = |p: Pipeline| {
        let p = p.several().set("source", "sender_timeout = \"2s\"");
        let p = p.set("sinks.orders", "lease_timeout = \"2s\"").set("sinks.orders", "consistency = \"row\"");
        let p = p.connector("public.items", "partitions = 4\n[sinks.orders]\n");
        p.connector("public.events", "partitions = 3\n[sinks.orders]\n")
    };
    let tables = vec![TablePair::same("public.items", &["id"]), TablePair::same("public.events", &["id"])];
    Scene { tables, ..scene.configure(route) }
}

/// Inserts, updates, deletes, key changes, and now and then a TRUNCATE, until it is dropped or stopped.
struct Items {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u64>,
}

impl Items {
    async fn on(scene: &Scene, seed: u64) -> Items {
        let client = scene.source.connect().await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut random, mut done) = (StdRng::seed_from_u64(seed), 0);
            while !stopped.load(Ordering::Relaxed) {
                let (id, to) = (random.random_range(1..600), random.random_range(600..100_000));
                let sql = match random.random_range(0..1000) {
                    0..600 => format!("UPDATE items SET v = nextval('v') WHERE id BETWEEN {id} AND {id} + 5"),
                    600..750 => format!("DELETE FROM items WHERE id BETWEEN {id} AND {id} + 3"),
                    750..990 => format!(
                        "INSERT INTO items SELECT i, nextval('v'), repeat('x', 10) FROM generate_series({id}, {id} + 9) i ON CONFLICT DO NOTHING"
                    ),
                    990..997 => format!(
                        "UPDATE items SET id = {to}, v = nextval('v') WHERE id = {id} AND NOT EXISTS (SELECT FROM items WHERE id = {to})"
                    ),
                    _ => "TRUNCATE items".to_owned(),
                };
                client.batch_execute(&sql).await.unwrap();
                done += 1;
                sleep(QUICK).await;
            }
            done
        });
        Items { stop, task }
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn owned(process: &Process) -> usize {
    let Ok(status) = process.status().await else { return 0 };
    status.0["sinks"]["orders"]["partitions"].as_array().map_or(0, Vec::len)
}

async fn wait_spread(processes: &[&Process], partitions: usize) {
    let begun = Instant::now();
    loop {
        let mut counts = Vec::new();
        for process in processes {
            counts.push(owned(process).await);
        }
        if counts.iter().sum::<usize>() == partitions && counts.iter().all(|count| *count > 0) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "partitions are not spread: {counts:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// A process whose files say otherwise than the owner's asked for writes nothing until they agree.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_another_configuration_waits() {
    let scene = scene("rows_otherwise").await;
    let _source = scene.spawn(&["source"]);
    let (one, two) = (scene.spawn(&["sink:orders"]), scene.spawn(&["sink:orders"]));
    wait_spread(&[&one, &two], PARTITIONS).await;
    drop(one);
    let scene =
        scene.configure(|p| p.connector("public.items", "partitions = 4\n[sinks.orders]\ncolumns = [\"id\", \"v\"]\n"));
    let three = scene.spawn(&["sink:orders"]);
    let begun = Instant::now();
    loop {
        let (mut counts, mut waits) = (Vec::new(), 0);
        for process in [&two, &three] {
            counts.push(owned(process).await);
            let status = process.status().await.map(|status| status.0["sinks"]["orders"].to_string());
            waits += usize::from(status.is_ok_and(|status| status.contains("in another way")));
        }
        counts.sort_unstable();
        if counts == [0, PARTITIONS] && waits == 1 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{counts:?}, {waits} waits");
        sleep(Duration::from_millis(50)).await;
    }
    drop(two);
    let begun = Instant::now();
    while owned(&three).await < PARTITIONS {
        assert!(begun.elapsed() < PATIENCE, "what waited goes on when it is alone");
        sleep(Duration::from_millis(50)).await;
    }
}

/// What several processes write is the source's state at the end, and every effect was one.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_spread_and_every_effect_comes_once() {
    let scene = scene("rows").await;
    let _source = scene.spawn(&["source"]);
    let (mut one, two) = (scene.spawn(&["sink:orders"]), scene.spawn(&["sink:orders"]));
    wait_spread(&[&one, &two], PARTITIONS).await;
    let (events, items) = (Events::on(&scene, QUICK), Items::on(&scene, 1).await);
    sleep(Duration::from_secs(3)).await;
    // In the middle of it.
    scene.sql("TRUNCATE items; INSERT INTO items SELECT i, nextval('v') FROM generate_series(1, 300) i").await;
    scene.sql("UPDATE items SET id = id + 1000000, v = nextval('v') WHERE id < 50").await;
    sleep(Duration::from_secs(1)).await;
    assert!(events.stop().await > 100 && items.stop().await > 100);
    scene.equal(&mut one).await;
    assert_once(scene.orders()).await;
    let writers = "SELECT count(DISTINCT worker_id) FROM lockstep.partition_progress";
    assert_eq!(text(scene.orders(), writers).await, "2");
    assert!(!scene.log().contains("stand still"), "nobody had to help");
    for process in [&one, &two] {
        let metrics = process.get("/metrics").await.unwrap();
        let value = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split(' ').next_back()?.parse::<f64>().ok()).unwrap_or_default()
        };
        assert!(value("lockstep_sink_transactions_total{") > 0.0, "{metrics}");
        assert!(value("lockstep_sink_partitions{") > 0.0, "{metrics}");
        assert!(metrics.contains("lockstep_sink_partition_lag_records{partition="), "{metrics}");
    }
    // Whole transactions again: the partitions are one once more, and nothing of them is left.
    drop((one, two));
    scene.sql("UPDATE items SET v = nextval('v'); INSERT INTO events VALUES (-1, -1)").await;
    let scene = scene.configure(|p| p.unset("sinks.orders"));
    let mut one = scene.spawn(&["sink:orders"]);
    scene.equal(&mut one).await;
    wait_text(scene.orders(), "SELECT count(*) FROM lockstep.partition_progress", "0", &mut one).await;
    assert_eq!(text(scene.orders(), "SELECT format FROM lockstep.progress").await, "1");
}

/// Members are killed, frozen and added, faster than Kafka notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_storm_loses_and_doubles_nothing() {
    let long = std::env::var_os("LOCKSTEP_LONG").is_some();
    let storm = Duration::from_secs(if long { 600 } else { 20 });
    let scene = scene("rows_storm").await;
    let mut source = scene.spawn(&["source"]);
    let mut members: Vec<Process> = (0..3).map(|_| scene.spawn(&["sink:orders"])).collect();
    wait_spread(&members.iter().collect::<Vec<_>>(), PARTITIONS).await;
    let (events, items) = (Events::on(&scene, QUICK), Items::on(&scene, 2).await);
    let (mut random, begun) = (StdRng::seed_from_u64(7), Instant::now());
    let mut frozen: Vec<(Instant, Process)> = Vec::new();
    while begun.elapsed() < storm {
        sleep(Duration::from_millis(random.random_range(500..1500))).await;
        let (thawed, still): (Vec<_>, Vec<_>) = frozen.into_iter().partition(|(until, _)| *until <= Instant::now());
        frozen = still;
        for (_, process) in thawed {
            process.signal(Signal::CONT).unwrap();
            members.push(process);
        }
        match random.random_range(0..3) {
            0 if members.len() > 1 => {
                let index = random.random_range(0..members.len());
                members.swap_remove(index).kill9().unwrap();
            }
            1 if members.len() > 1 => {
                let index = random.random_range(0..members.len());
                let process = members.swap_remove(index);
                process.signal(Signal::STOP).unwrap();
                frozen.push((Instant::now() + Duration::from_millis(random.random_range(200..9000)), process));
            }
            _ if members.len() < 4 => members.push(scene.spawn(&["sink:orders"])),
            _ => {}
        }
        source.ensure_running().unwrap();
    }
    for (_, process) in frozen {
        process.signal(Signal::CONT).unwrap();
        members.push(process);
    }
    assert!(events.stop().await > 500 && items.stop().await > 500);
    let mut last = scene.spawn(&["sink:orders"]);
    scene.equal(&mut last).await;
    assert_once(scene.orders()).await;
    for member in &mut members {
        member.ensure_running().unwrap();
        member.ensure_not_halted().await.unwrap();
    }
}

fn part(number: i32) -> Partition {
    Partition { topic: "t".into(), number }
}

fn moved(row: &PartitionRow, to: u64) -> (PartitionRow, PartitionMove) {
    let position = lockstep::lsn::Position::new(lockstep::lsn::Lsn(to), 0);
    (row.clone(), PartitionMove { next_offset: 1, position })
}

async fn member(world: &World) -> PostgresSink {
    let config = lockstep::config::Sink { consistency: Consistency::Row, ..world.sink_config() };
    PostgresSink::connect_member(&config, "shop", Uuid::new_v4()).await.unwrap()
}

fn numbers(rows: &[PartitionRow]) -> BTreeSet<i32> {
    rows.iter().map(|row| row.partition.number).collect()
}

/// A partition has one writer: whoever has lost it writes nothing, in whatever moment it wakes up.
#[test]
fn a_member_that_lost_a_partition_can_not_write() {
    in_database(async |world| {
        let mut owner = world.sink("CREATE TABLE public.t (id int PRIMARY KEY)").await;
        let known: Vec<_> = [0, 1].map(|number| (part(number), Uuid::nil())).into();
        assert_eq!(owner.sink.hold_partitions(&owner.row, &known, true).await.unwrap().len(), 2);
        let (mut one, mut two) = (member(&world).await, member(&world).await);
        assert_eq!(one.take_partitions(&[part(0), part(1)]).await.unwrap(), [], "held");
        owner.sink.release_partitions(&owner.row).await.unwrap();
        let mine = one.take_partitions(&[part(0), part(1)]).await.unwrap();
        one.begin_partitions(&[moved(&mine[0], 10), moved(&mine[1], 10)]).await.unwrap();
        one.commit().await.unwrap();
        // Only one of two is lost: the transaction of both comes to nothing.
        let theirs = two.take_partitions(&[part(1)]).await.unwrap();
        assert_eq!(numbers(&theirs), [1].into());
        let rows = two.partitions().await.unwrap();
        let stale: Vec<_> =
            rows.iter().map(|row| PartitionRow { worker_epoch: mine[0].worker_epoch, ..row.clone() }).collect();
        let lost = one.begin_partitions(&[moved(&stale[0], 20), moved(&stale[1], 20)]).await;
        assert!(matches!(lost, Err(Failure::OwnershipLost)), "{lost:?}");
        // Its own one it still has, but only from where it is.
        let behind = one.begin_partitions(&[moved(&mine[0], 20)]).await;
        assert!(matches!(behind, Err(Failure::OwnershipLost)), "{behind:?}");
        one.begin_partitions(&[moved(&stale[0], 20)]).await.unwrap();
        // It is frozen in the middle of that transaction, and the sink's owner needs the partitions.
        let waits = owner.sink.hold_partitions(&owner.row, &known, true).await;
        assert!(waits.is_err(), "{waits:?}");
        let held = owner.sink.hold_partitions(&owner.row, &known, true).await.unwrap();
        assert_eq!(held[0].position, moved(&mine[0], 10).1.position, "what it had not committed");
        assert!(one.commit().await.is_err());
        let late = two.begin_partitions(&[moved(&theirs[0], 30)]).await;
        assert!(matches!(late, Err(Failure::OwnershipLost)), "{late:?}");
    });
}

/// Gives a topic more partitions: from then on keys are elsewhere.
async fn widen(scene: &Scene, table: &str, partitions: usize) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &scene.services.kafka).create().unwrap();
    let topic = format!("{}.{table}", scene.pipeline.name);
    let wider = NewPartitions::new(&topic, partitions);
    admin.create_partitions([&wider], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
}

/// A process that was frozen until others had its partitions goes on with what is its turn then, and has doubled nothing; nor does
/// a key come out of order that is in another partition from some moment on.
#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_that_comes_back_is_a_member_like_any_other() {
    let scene = scene("rows_zombie").await;
    let mut source = scene.spawn(&["source"]);
    let (mut one, two) = (scene.spawn(&["sink:orders"]), scene.spawn(&["sink:orders"]));
    wait_spread(&[&one, &two], PARTITIONS).await;
    let (events, items) = (Events::on(&scene, QUICK), Items::on(&scene, 3).await);
    sleep(Duration::from_secs(1)).await;
    two.signal(Signal::STOP).unwrap();
    widen(&scene, "public.items", 6).await;
    widen(&scene, "public.events", 5).await;
    // The next reader's client knows of them at once.
    source.kill9().unwrap();
    let _source = scene.spawn(&["source"]);
    let arrived = format!("SELECT EXISTS (SELECT FROM events WHERE tx > {})", events.committed());
    wait_text(scene.orders(), &arrived, "true", &mut one).await;
    two.signal(Signal::CONT).unwrap();
    events.stop().await;
    items.stop().await;
    scene.equal(&mut one).await;
    assert_once(scene.orders()).await;
    // By the number that it knew first it tells whose place a key's records are.
    let known = text(scene.orders(), "SELECT count(*) FROM lockstep.partition_progress").await;
    assert_eq!(known, PARTITIONS.to_string());
}

/// What sees several rows is refused by its name, before anything is written.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_about_several_rows_is_refused() {
    let schema = "
        CREATE TABLE public.parent (id bigint PRIMARY KEY);
        CREATE TABLE public.child (id bigint PRIMARY KEY, parent bigint REFERENCES public.parent, code text UNIQUE);
        CREATE TABLE public.price (amount numeric PRIMARY KEY);
        CREATE TABLE public.keyless (id bigint);
        ALTER TABLE public.keyless REPLICA IDENTITY FULL;
        CREATE TABLE public.plain (id bigint PRIMARY KEY, n numeric(10,2));
        CREATE UNIQUE INDEX wider ON public.plain (id, n);";
    let scene = Scene::bare(LOCKSTEP, "rows_refused", schema, 1).await;
    let scene = scene.configure(|p| {
        let p = ["parent", "child", "price", "keyless"].iter().fold(p, |p, table| p.table(&format!("public.{table}")));
        p.connector("public.plain", "[sinks.orders]\nevolve = \"add\"\n").set("sinks.orders", "consistency = \"row\"")
    });
    scene.pipeline.write().unwrap();
    let output = scene.pipeline.command(&["check"]).unwrap();
    let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(3), "{told}");
    for wanted in [
        "child_code_key of public.child compares rows of different keys",
        "foreign key child_parent_fkey of public.child",
        "column amount of the key of public.price is numeric",
        "table public.keyless has no key",
        "can't let table public.plain follow",
    ] {
        assert!(told.contains(wanted), "{wanted}\n{told}");
    }
    assert!(!told.contains("wider"), "{told}");
    // At a start, before anything is made there.
    let mut process = scene.spawn(&[]);
    halted(&mut process, "ROW_CONSISTENCY").await;
    assert_eq!(text(scene.orders(), "SELECT to_regclass('lockstep.partition_progress')").await, "NULL");
    assert_eq!(told.matches("error[ROW_CONSISTENCY]").count(), 5, "{told}");
    // An engine that can't, by its name.
    let scene = scene.configure(|p| p.sink_url("orders", "sqlite:nowhere.db".to_owned()));
    scene.pipeline.write().unwrap();
    let output = scene.pipeline.command(&["check"]).unwrap();
    let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(told.contains("which can't be written partition by partition"), "{told}");
}
