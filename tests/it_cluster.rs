//! A cluster of three brokers that loses a leader: everything goes on without a hand, nothing is lost and nothing doubled.
//!
//! On a set with three brokers (`scripts/services up --brokers 3`, `scripts/test --long`); on another one nothing is done.

mod support;

use std::time::{Duration, Instant};

use lockstep::kafka::topics;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use support::scene::{AUDIT_SCHEMA, EVENTS, EVENTS_SCHEMA, Events, PATIENCE, Scene, assert_once, text, wait_text};
use support::{Pipeline, Services};
use tokio::time::sleep;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
const QUICK: Duration = Duration::from_millis(2);
const KAFKA_TIMEOUT: Duration = Duration::from_secs(15);

/// The node that leads the topic's partition, and how many hold all of it.
fn leader(scene: &Scene, suffix: &str) -> (i32, usize) {
    let topic = format!("{}.{suffix}", scene.pipeline.name);
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &scene.services.kafka).create().unwrap();
    let metadata = consumer.fetch_metadata(Some(&topic), KAFKA_TIMEOUT).unwrap();
    let partition = &metadata.topics()[0].partitions()[0];
    (partition.leader(), partition.isr().len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_loses_a_leader() {
    if Services::from_env().kafka.split(',').count() < 3 {
        return;
    }
    let scene = Scene::new(LOCKSTEP, "cluster", EVENTS_SCHEMA, &EVENTS).await.configure(Pipeline::several);
    scene.orders().execute(AUDIT_SCHEMA).await.unwrap();
    let mut process = scene.start().await;
    let config = lockstep::config::load(&scene.pipeline.dir, &|_| Some("0".to_owned())).unwrap();
    let names = ["ledger", "public.events"].map(|suffix| format!("{}.{suffix}", scene.pipeline.name));
    for facts in topics::describe(&config.kafka, &[&names[0], &names[1]]).await.unwrap() {
        let facts = facts.unwrap();
        assert_eq!((facts.replication_factor, facts.min_insync), (3, 2), "{}", facts.name);
    }
    let load = Events::on(&scene, QUICK);
    for suffix in ["ledger", "public.events", "ledger"] {
        let (node, _) = leader(&scene, suffix);
        scene.services.crash_broker(node).unwrap();
        // With the other two everything flows.
        let before: i64 = text(&scene.source, "SELECT max(tx) FROM journal").await.parse().unwrap();
        wait_text(scene.orders(), &format!("SELECT max(tx) > {before} FROM journal"), "true", &mut process).await;
        assert_ne!(leader(&scene, suffix).0, node);
        scene.services.start_broker(node).unwrap();
        let begun = Instant::now();
        while ["ledger", "public.events", "public.journal"].iter().any(|suffix| leader(&scene, suffix).1 < 3) {
            assert!(begun.elapsed() < PATIENCE, "node {node} does not catch up");
            sleep(Duration::from_millis(100)).await;
        }
    }
    load.stop().await;
    scene.equal(&mut process).await;
    assert_once(scene.orders()).await;
}
