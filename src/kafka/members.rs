//! A member of a consumer group: which partitions of some topics are this process's turn, by Kafka's word. Nothing is read and no
//! offset is committed through it.
//!
//! Kafka's word spreads work and nothing else. It comes late to a process that was frozen, and nobody waits with a partition until
//! its last member knows; who may write is said by the sink (`sink::partition_progress`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use tokio::sync::watch;
use tracing::{info, warn};

use super::consumer::settings;
use super::{Access, Health, unmade};
use crate::config;
use crate::error::{Error, Result};

/// The assigned partitions are paused at once, so this holds next to nothing.
const QUEUE_BYTES: usize = 64 * 1024;

/// Also how soon a stop is noticed, and how often Kafka hears that the process is alive.
const POLL: Duration = Duration::from_millis(50);

/// Brokers take no shorter one (`group.min.session.timeout.ms`).
const SESSION_TIMEOUT_MIN: Duration = Duration::from_secs(6);

/// Topic and number.
pub type Assigned = BTreeSet<(String, i32)>;

/// The group of a sink's members.
pub fn group(pipeline: &str, sink: &str) -> String {
    format!("lockstep.{pipeline}.{sink}.rows")
}

/// Being a member; dropping it leaves the group.
pub struct Member {
    assigned: watch::Receiver<Assigned>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Member {
    /// Joins in the background. `timeout`: how long a member may be silent before others have its partitions.
    pub fn open(kafka: &config::Kafka, group: &str, topics: &BTreeSet<String>, timeout: Duration) -> Result<Member> {
        let (sender, assigned) = watch::channel(Assigned::new());
        let mut settings = settings(kafka, "members", QUEUE_BYTES);
        let timeout_ms = timeout.max(SESSION_TIMEOUT_MIN).as_millis().to_string();
        settings
            .set("group.id", group)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", timeout_ms)
            .set("heartbeat.interval.ms", "1000")
            // Partitions that come to a topic are nobody's turn until a member has seen them.
            .set("topic.metadata.refresh.interval.ms", "5000")
            // Partitions are never read from here, so where they would begin is all the same.
            .set("auto.offset.reset", "latest");
        let events = Events { health: Health::new(Access::new(kafka)), sender };
        let consumer: BaseConsumer<Events> = settings.create_with_context(events).map_err(unmade(kafka))?;
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        let failed = |error| Error::retry(format!("joining group {group}"), error);
        consumer.subscribe(&names).map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("kafka-members".into())
            .spawn(move || {
                while !stopped.load(Ordering::Acquire) {
                    // Callbacks come through it; what else does is of no use here.
                    drop(consumer.poll(POLL));
                }
            })
            .map_err(|error| Error::retry("starting a thread to be a member of a group", error))?;
        Ok(Member { assigned, stop, thread: Some(thread) })
    }

    /// What is this process's turn now.
    pub fn assigned(&mut self) -> Assigned {
        self.assigned.borrow_and_update().clone()
    }

    /// Resolves once that is something else. Safe to drop and call again.
    pub async fn changed(&mut self) {
        if self.assigned.changed().await.is_err() {
            // The thread ends with this side alone.
            std::future::pending().await
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the thread that is a member of a group had panicked");
        }
    }
}

struct Events {
    health: Health,
    sender: watch::Sender<Assigned>,
}

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Health::log(level, facility, message);
    }

    fn stats_raw(&self, json: &[u8]) {
        self.health.read_statistics(json);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.health.note(&error, reason);
    }
}

impl ConsumerContext for Events {
    fn pre_rebalance(&self, _consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(list) = rebalance {
            self.sender.send_modify(|assigned| {
                for element in list.elements() {
                    assigned.remove(&(element.topic().to_owned(), element.partition()));
                }
            });
            info!(partitions = list.count(), "partitions are others' turn");
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                if let Err(error) = consumer.pause(list) {
                    warn!(%error, "partitions that are not to be read here can't be paused");
                }
                self.sender.send_modify(|assigned| {
                    assigned.extend(list.elements().iter().map(|e| (e.topic().to_owned(), e.partition())));
                });
                info!(partitions = list.count(), "partitions are this process's turn");
            }
            Rebalance::Revoke(_) => {}
            Rebalance::Error(error) => warn!(%error, "Kafka does not say whose turn partitions are"),
        }
    }
}
