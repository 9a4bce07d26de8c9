//! Creates topics, describes them, and refuses those whose settings would lose records.
//!
//! A topic is a name and an id: one that was deleted and made again has another id, and everything that was counted in the
//! old one is gone. So [`TopicFacts`] always has the id, and a broker that gives none is refused.
//!
//! What is refused (`TOPIC_SETTINGS`) is what loses records that somebody still counts on. What is merely weaker than it could
//! be is words ([`weaknesses`]) for `lockstep check`. Settings of existing topics are never changed here: the hint is the
//! command, the decision is the operator's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use uuid::Uuid;

use super::{Access, Right, client, code_of, consumer, raw, unmade};
use crate::config;
use crate::error::{Code, Error, Result};

/// One call, including finding a broker.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// A new topic has its leaders within a second; a busy controller takes longer.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
const READY_POLL: Duration = Duration::from_millis(50);
/// How long a failed call may look for the reason: refused credentials show within one connection attempt.
const DIAGNOSE_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicFacts {
    pub name: String,
    /// Another one after the topic was deleted and made again.
    pub id: Uuid,
    pub partitions: i32,
    pub replication_factor: i32,
    /// `delete`, `compact` or both with a comma.
    pub cleanup_policy: String,
    /// -1: for ever.
    pub retention_ms: i64,
    /// Per partition; -1: no limit.
    pub retention_bytes: i64,
    pub min_insync: i32,
    /// Of a batch as the broker gets it.
    pub max_message_bytes: i64,
    pub unclean_election: bool,
    /// `CreateTime` or `LogAppendTime`.
    pub timestamp_type: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Rows of one table; expires.
    Data,
    /// The same, whose records have times of their own.
    Timed,
    /// One partition, never expires by itself.
    Ledger,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub name: String,
    pub partitions: i32,
    pub kind: Kind,
}

/// Facts of each topic, `None` for one that does not exist.
pub async fn describe(kafka: &config::Kafka, names: &[&str]) -> Result<Vec<Option<TopicFacts>>> {
    let admin = Admin::open(kafka)?;
    let facts = admin.describe(names).await;
    admin.close(facts).await
}

/// Creates what is missing, if `create`, and waits until it can be used; checks what exists. Facts in the order asked for.
pub async fn ensure(kafka: &config::Kafka, wanted: &[Wanted], create: bool) -> Result<Vec<TopicFacts>> {
    let admin = Admin::open(kafka)?;
    let facts = admin.ensure(wanted, create).await;
    admin.close(facts).await
}

/// How many brokers the cluster has.
pub async fn brokers(kafka: &config::Kafka) -> Result<usize> {
    let admin = Admin::open(kafka)?;
    let count = admin.brokers().await;
    admin.close(count).await
}

/// Deletes the records of partition 0 below `before`; returns the low watermark. For trimming the ledger.
pub async fn trim(kafka: &config::Kafka, topic: &str, before: i64) -> Result<i64> {
    let admin = Admin::open(kafka)?;
    let low = admin.trim(topic, before).await;
    admin.close(low).await
}

/// Deletes topics; those that do not exist are none of its business. For `destroy` and tests.
pub async fn delete(kafka: &config::Kafka, names: &[&str]) -> Result<()> {
    let admin = Admin::open(kafka)?;
    let outcome = admin.delete(names).await;
    admin.close(outcome).await
}

/// What is weaker than Kafka could keep it, in words; nothing of it is refused.
pub fn weaknesses(facts: &TopicFacts, brokers: usize) -> Vec<String> {
    let TopicFacts { name, replication_factor, min_insync, .. } = facts;
    let mut found = Vec::new();
    let replicas = i32::try_from(brokers.min(3)).unwrap_or(3);
    if *replication_factor < replicas {
        found.push(format!(
            "topic {name:?} has replication factor {replication_factor} on {brokers} brokers: it is lost with its broker's disk"
        ));
    }
    if *min_insync < (*replication_factor).min(2) {
        found.push(format!(
            "topic {name:?} has min.insync.replicas {min_insync}: an acknowledged record can be on one broker alone"
        ));
    }
    if min_insync > replication_factor {
        found.push(format!(
            "topic {name:?} has min.insync.replicas {min_insync} with replication factor {replication_factor}: nothing can be written"
        ));
    }
    if facts.unclean_election {
        found.push(format!(
            "topic {name:?} has unclean.leader.election.enable=true: a replica that lags may take over and drop records"
        ));
    }
    if facts.timestamp_type != "LogAppendTime" {
        found.push(format!(
            "topic {name:?} has message.timestamp.type={}: retention goes by the clients' clocks",
            facts.timestamp_type
        ));
    }
    found
}

/// Settings of a new topic.
fn creation(kafka: &config::Kafka, kind: Kind, replicas: i32) -> Vec<(&'static str, String)> {
    let retention_ms = match kind {
        Kind::Data | Kind::Timed => i64::try_from(kafka.retention.as_millis()).unwrap_or(i64::MAX),
        Kind::Ledger => -1,
    };
    vec![
        ("cleanup.policy", "delete".to_owned()),
        ("retention.ms", retention_ms.to_string()),
        // Said aloud: the broker's default may be a limit.
        ("retention.bytes", "-1".to_owned()),
        ("message.timestamp.type", if kind == Kind::Timed { "CreateTime" } else { "LogAppendTime" }.to_owned()),
        ("min.insync.replicas", replicas.min(2).to_string()),
        ("unclean.leader.election.enable", "false".to_owned()),
        ("max.message.bytes", kafka.record_bytes_max.to_string()),
    ]
}

/// One way in which a topic's settings lose records, and the setting that mends it, if one does.
struct Loss {
    found: String,
    mend: Option<(&'static str, String)>,
}

fn losses(kafka: &config::Kafka, facts: &TopicFacts, kind: Kind) -> Vec<Loss> {
    let mut found = Vec::new();
    let mut loss = |words: String, mend: Option<(&'static str, String)>| found.push(Loss { found: words, mend });
    if facts.cleanup_policy != "delete" {
        let words = format!("cleanup.policy={} removes records that the ledger counts", facts.cleanup_policy);
        loss(words, Some(("cleanup.policy", "delete".to_owned())));
    }
    if usize::try_from(facts.max_message_bytes).is_ok_and(|bytes| bytes < kafka.record_bytes_max) {
        let words = format!(
            "max.message.bytes={} is below record_bytes_max = {} of lockstep.toml",
            facts.max_message_bytes, kafka.record_bytes_max
        );
        loss(words, Some(("max.message.bytes", kafka.record_bytes_max.to_string())));
    }
    match kind {
        Kind::Ledger => {
            if facts.retention_ms != -1 {
                let words = format!("retention.ms={} makes the ledger forget", facts.retention_ms);
                loss(words, Some(("retention.ms", "-1".to_owned())));
            }
            if facts.retention_bytes != -1 {
                let words = format!("retention.bytes={} makes the ledger forget", facts.retention_bytes);
                loss(words, Some(("retention.bytes", "-1".to_owned())));
            }
            if facts.partitions != 1 {
                let words =
                    format!("{} partitions have no order among each other, the ledger needs one", facts.partitions);
                loss(words, None);
            }
        }
        Kind::Data | Kind::Timed => {
            if kind == Kind::Timed && facts.timestamp_type != "CreateTime" {
                let words = format!(
                    "message.timestamp.type={} writes its own time over that of events (timestamp_field)",
                    facts.timestamp_type
                );
                loss(words, Some(("message.timestamp.type", "CreateTime".to_owned())));
            }
            // Somewhat less than configured is a choice; less than half is a default that nobody looked at.
            let wanted_ms = i64::try_from(kafka.retention.as_millis()).unwrap_or(i64::MAX);
            if facts.retention_ms != -1 && facts.retention_ms < wanted_ms / 2 {
                let words = format!(
                    "retention.ms={} is far below retention = {wanted_ms} ms of lockstep.toml: a sink that is away longer \
                     can't catch up",
                    facts.retention_ms
                );
                loss(words, Some(("retention.ms", wanted_ms.to_string())));
            }
        }
    }
    found
}

fn check_settings(kafka: &config::Kafka, facts: &TopicFacts, kind: Kind) -> Result<()> {
    let found = losses(kafka, facts, kind);
    if found.is_empty() {
        return Ok(());
    }
    let TopicFacts { name, .. } = facts;
    let mends: Vec<String> =
        found.iter().filter_map(|loss| loss.mend.as_ref()).map(|(key, value)| format!("{key}={value}")).collect();
    let tool = |tool: &str| format!("{tool} --bootstrap-server {}", kafka.brokers);
    let hint = if found.iter().any(|loss| loss.mend.is_none()) {
        format!(
            "{} --delete --topic {name}, if it is not in use, else another `ledger` under [kafka]",
            tool("kafka-topics.sh")
        )
    } else {
        format!(
            "{} --alter --entity-type topics --entity-name {name} --add-config {}",
            tool("kafka-configs.sh"),
            mends.join(",")
        )
    };
    let error = Error::halt(Code::TopicSettings, format!("the settings of topic {name:?} would lose records"), hint);
    Err(found.into_iter().fold(error, |error, loss| error.fact(loss.found)))
}

struct Admin<'a> {
    kafka: &'a config::Kafka,
    client: Arc<AdminClient<DefaultClientContext>>,
    access: Access,
}

impl<'a> Admin<'a> {
    fn open(kafka: &'a config::Kafka) -> Result<Admin<'a>> {
        let mut settings = client(kafka, "admin");
        // Nobody would look at them.
        settings.set("statistics.interval.ms", "0");
        let client = settings.create::<AdminClient<_>>().map_err(unmade(kafka))?;
        Ok(Admin { kafka, client: Arc::new(client), access: Access::new(kafka) })
    }

    /// Puts the client away, which joins a thread, and looks for the reason of a failure that may not be what it seems.
    async fn close<T>(self, outcome: Result<T>) -> Result<T> {
        let Admin { kafka, client, .. } = self;
        let kafka = kafka.clone();
        let failed = matches!(outcome, Err(Error::Retry(_)));
        let reason = tokio::task::spawn_blocking(move || {
            drop(client);
            failed.then(|| consumer::refusal(&kafka, DIAGNOSE_TIMEOUT)).flatten()
        })
        .await;
        match reason {
            Ok(Some(refusal)) => Err(refusal),
            _ => outcome,
        }
    }

    fn options() -> AdminOptions {
        AdminOptions::new().request_timeout(Some(CALL_TIMEOUT)).operation_timeout(Some(CALL_TIMEOUT))
    }

    fn failed(&self, error: KafkaError, doing: &str, topic: &str) -> Error {
        self.access.failed(error, doing, topic, Right::Manage)
    }

    /// A blocking question to the client, off the runtime's threads.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&AdminClient<DefaultClientContext>) -> T + Send + 'static,
    ) -> Result<T> {
        let client = self.client.clone();
        tokio::task::spawn_blocking(move || question(&client))
            .await
            .map_err(|error| Error::retry("asking Kafka about topics", error))
    }

    async fn describe(&self, names: &[&str]) -> Result<Vec<Option<TopicFacts>>> {
        let described = self.described(names).await?;
        let existing: Vec<&str> =
            names.iter().zip(&described).filter(|(_, topic)| topic.is_some()).map(|(name, _)| *name).collect();
        let mut settings = self.settings(&existing).await?;
        let facts = names.iter().zip(described).map(|(name, topic)| {
            let (Some(topic), Some(settings)) = (topic, settings.remove(*name)) else { return Ok(None) };
            self.facts(name, &topic, &settings).map(Some)
        });
        facts.collect()
    }

    /// Ids and partitions; `None` for topics that do not exist.
    async fn described(&self, names: &[&str]) -> Result<Vec<Option<raw::Description>>> {
        let owned: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let answer = self
            .ask(move |admin| {
                let names: Vec<&str> = owned.iter().map(String::as_str).collect();
                raw::describe_topics(admin.inner(), &names, CALL_TIMEOUT)
            })
            .await?
            .map_err(|error| match self.access.refusal(error.code, "*", Right::Manage) {
                Some(refusal) => refusal,
                None => Error::retry("describing topics", error),
            })?;
        let topics = names.iter().zip(answer).map(|(name, topic)| match topic {
            Ok(topic) if topic.id.is_nil() => Err(Error::halt(
                Code::KafkaRefused,
                "Kafka gives no topic ids, so a topic that was deleted and made again can't be told (brokers before 2.8)",
                format!("kafka-broker-api-versions.sh --bootstrap-server {}", self.access.brokers),
            )),
            Ok(topic) => Ok(Some(topic)),
            Err(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(None),
            Err(code) => Err(self.failed(KafkaError::AdminOp(code), "describing topic", name)),
        });
        topics.collect()
    }

    /// Settings by topic; topics that are gone meanwhile are left out.
    async fn settings(&self, names: &[&str]) -> Result<HashMap<String, ConfigResource>> {
        let mut found = HashMap::new();
        if names.is_empty() {
            return Ok(found);
        }
        let asked: Vec<ResourceSpecifier<'_>> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let answer = self
            .client
            .describe_configs(&asked, &Self::options())
            .await
            .map_err(|error| self.failed(error, "reading the settings of topics", ""))?;
        for (name, resource) in names.iter().zip(answer) {
            match resource {
                Ok(resource) => match &resource.specifier {
                    OwnedResourceSpecifier::Topic(topic) => {
                        found.insert(topic.clone(), resource);
                    }
                    other => return Err(Error::retry_plain(format!("Kafka described {other:?} instead of a topic"))),
                },
                Err(RDKafkaErrorCode::UnknownTopicOrPartition) => {}
                Err(code) => return Err(self.failed(KafkaError::AdminOp(code), "reading the settings of topic", name)),
            }
        }
        Ok(found)
    }

    fn facts(&self, name: &str, topic: &raw::Description, settings: &ConfigResource) -> Result<TopicFacts> {
        let text = |key: &str| {
            settings
                .get(key)
                .and_then(|entry| entry.value.clone())
                .ok_or_else(|| Error::retry_plain(format!("Kafka does not say {key} of topic {name:?}")))
        };
        let number = |key: &str| {
            text(key)?
                .parse::<i64>()
                .map_err(|error| Error::retry(format!("Kafka says no number for {key} of topic {name:?}"), error))
        };
        Ok(TopicFacts {
            name: name.to_owned(),
            id: topic.id,
            partitions: i32::try_from(topic.partitions).unwrap_or(i32::MAX),
            replication_factor: i32::try_from(topic.replication_factor).unwrap_or(i32::MAX),
            cleanup_policy: text("cleanup.policy")?,
            retention_ms: number("retention.ms")?,
            retention_bytes: number("retention.bytes")?,
            min_insync: i32::try_from(number("min.insync.replicas")?).unwrap_or(i32::MAX),
            max_message_bytes: number("max.message.bytes")?,
            unclean_election: text("unclean.leader.election.enable")? == "true",
            timestamp_type: text("message.timestamp.type")?,
        })
    }

    async fn ensure(&self, wanted: &[Wanted], create: bool) -> Result<Vec<TopicFacts>> {
        let names: Vec<&str> = wanted.iter().map(|topic| topic.name.as_str()).collect();
        let found = self.describe(&names).await?;
        let missing: Vec<&Wanted> =
            wanted.iter().zip(&found).filter(|(_, facts)| facts.is_none()).map(|(topic, _)| topic).collect();
        let facts = if missing.is_empty() {
            found.into_iter().flatten().collect()
        } else {
            let replicas = self.replicas().await?;
            if !create {
                return Err(self.create_off(&missing, replicas));
            }
            self.create(&missing, replicas).await?;
            self.ready(&missing).await?;
            self.described_all(&names).await?
        };
        for (topic, facts) in wanted.iter().zip(&facts) {
            check_settings(self.kafka, facts, topic.kind)?;
        }
        Ok(facts)
    }

    async fn replicas(&self) -> Result<i32> {
        match self.kafka.replication_factor {
            Some(replicas) => Ok(replicas),
            None => Ok(i32::try_from(self.brokers().await?.clamp(1, 3)).expect("at most 3")),
        }
    }

    fn create_off(&self, missing: &[&Wanted], replicas: i32) -> Error {
        let names: Vec<&str> = missing.iter().map(|topic| topic.name.as_str()).collect();
        let error = Error::halt(
            Code::CreateOff,
            format!("topics are missing and create = false: {}", names.join(", ")),
            "the commands above, or create = true in lockstep.toml",
        );
        missing.iter().fold(error, |error, topic| {
            let settings: String = creation(self.kafka, topic.kind, replicas)
                .iter()
                .map(|(key, value)| format!(" --config {key}={value}"))
                .collect();
            error.fact(format!(
                "kafka-topics.sh --bootstrap-server {} --create --topic {} --partitions {} --replication-factor {replicas}{settings}",
                self.access.brokers, topic.name, topic.partitions
            ))
        })
    }

    async fn create(&self, missing: &[&Wanted], replicas: i32) -> Result<()> {
        let settings: Vec<Vec<(&str, String)>> =
            missing.iter().map(|topic| creation(self.kafka, topic.kind, replicas)).collect();
        let topics: Vec<NewTopic<'_>> = missing
            .iter()
            .zip(&settings)
            .map(|(topic, settings)| {
                settings.iter().fold(
                    NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(replicas)),
                    |new, (key, value)| new.set(key, value),
                )
            })
            .collect();
        let answer = self
            .client
            .create_topics(&topics, &Self::options())
            .await
            .map_err(|error| self.failed(error, "creating topics", ""))?;
        for outcome in answer {
            match outcome {
                // Another instance was faster: its settings are checked like those of any topic.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((
                    topic,
                    code @ (RDKafkaErrorCode::InvalidReplicationFactor | RDKafkaErrorCode::PolicyViolation),
                )) => {
                    return Err(Error::halt(
                        Code::KafkaRefused,
                        format!("Kafka does not create topic {topic:?} with replication factor {replicas}: {code}"),
                        format!(
                            "replication_factor = N under [kafka] in lockstep.toml; kafka-topics.sh --bootstrap-server {} \
                             --create --topic {topic} shows Kafka's own words",
                            self.access.brokers
                        ),
                    ));
                }
                Err((topic, code)) => return Err(self.failed(KafkaError::AdminOp(code), "creating topic", &topic)),
            }
        }
        Ok(())
    }

    /// Waits until every partition answers: a topic is described some time before its leaders take records.
    async fn ready(&self, topics: &[&Wanted]) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        for topic in topics {
            for partition in 0..topic.partitions {
                loop {
                    let name = topic.name.clone();
                    // The client remembers of its first look that the topic is unknown, and would ask for no leader before
                    // somebody makes it look again.
                    let asked = self
                        .ask(move |admin| {
                            admin.inner().fetch_metadata(Some(&name), CALL_TIMEOUT)?;
                            admin.inner().fetch_watermarks(&name, partition, CALL_TIMEOUT)
                        })
                        .await?;
                    let Err(error) = asked else { break };
                    let waiting = !matches!(code_of(&error), Some(RDKafkaErrorCode::TopicAuthorizationFailed));
                    if !waiting || Instant::now() >= deadline {
                        return Err(self.failed(error, "waiting for new topic", &topic.name));
                    }
                    tokio::time::sleep(READY_POLL).await;
                }
            }
        }
        Ok(())
    }

    /// Facts of topics that exist for certain; a broker may be behind in knowing so.
    async fn described_all(&self, names: &[&str]) -> Result<Vec<TopicFacts>> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let found = self.describe(names).await?;
            if let Some(missing) = found.iter().position(Option::is_none) {
                if Instant::now() >= deadline {
                    return Err(Error::retry_plain(format!("topic {:?} was created and is not there", names[missing])));
                }
                tokio::time::sleep(READY_POLL).await;
                continue;
            }
            return Ok(found.into_iter().flatten().collect());
        }
    }

    async fn brokers(&self) -> Result<usize> {
        // Asking for one topic keeps the answer small; every answer lists the brokers.
        let ledger = self.kafka.ledger.clone();
        let metadata = self.ask(move |admin| {
            admin.inner().fetch_metadata(Some(&ledger), CALL_TIMEOUT).map(|metadata| metadata.brokers().len())
        });
        metadata.await?.map_err(|error| self.failed(error, "counting the brokers for", &self.kafka.ledger))
    }

    async fn trim(&self, topic: &str, before: i64) -> Result<i64> {
        let failed = |error| self.failed(error, "trimming topic", topic);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 0, Offset::Offset(before)).map_err(failed)?;
        let answer = self.client.delete_records(&list, &Self::options()).await.map_err(failed)?;
        let partition = answer
            .find_partition(topic, 0)
            .ok_or_else(|| Error::retry_plain(format!("Kafka says nothing about trimming topic {topic:?}")))?;
        partition.error().map_err(failed)?;
        match partition.offset() {
            Offset::Offset(low) => Ok(low),
            other => Err(Error::retry_plain(format!("Kafka trimmed topic {topic:?} to {other:?}"))),
        }
    }

    async fn delete(&self, names: &[&str]) -> Result<()> {
        let answer = self
            .client
            .delete_topics(names, &Self::options())
            .await
            .map_err(|error| self.failed(error, "deleting topics", ""))?;
        for outcome in answer {
            match outcome {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                Err((topic, code)) => return Err(self.failed(KafkaError::AdminOp(code), "deleting topic", &topic)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> TopicFacts {
        TopicFacts {
            name: "t".into(),
            id: Uuid::from_u128(1),
            partitions: 1,
            replication_factor: 3,
            cleanup_policy: "delete".into(),
            retention_ms: -1,
            retention_bytes: -1,
            min_insync: 2,
            max_message_bytes: 8 << 20,
            unclean_election: false,
            timestamp_type: "LogAppendTime".into(),
        }
    }

    fn refused(facts: &TopicFacts, kind: Kind) -> String {
        let kafka = crate::kafka::tests::kafka("b:1");
        check_settings(&kafka, facts, kind).map_or_else(|error| error.to_string(), |()| "fine".into())
    }

    #[test]
    fn settings_that_lose_records_are_refused_with_the_command_that_mends_them() {
        assert_eq!((refused(&facts(), Kind::Data), refused(&facts(), Kind::Ledger)), ("fine".into(), "fine".into()));
        let day = TopicFacts { retention_ms: 86_400_000, ..facts() };
        let halt = refused(&day, Kind::Data);
        assert!(
            halt.starts_with("error[TOPIC_SETTINGS]") && halt.ends_with("--add-config retention.ms=604800000"),
            "{halt}"
        );
        assert!(refused(&day, Kind::Ledger).ends_with("--entity-name t --add-config retention.ms=-1"));
        let compacted = TopicFacts { cleanup_policy: "compact,delete".into(), max_message_bytes: 1 << 20, ..facts() };
        let halt = refused(&compacted, Kind::Data);
        assert!(halt.ends_with("--add-config cleanup.policy=delete,max.message.bytes=8388608"), "{halt}");
        let halt = refused(&facts(), Kind::Timed);
        assert!(halt.ends_with("--add-config message.timestamp.type=CreateTime"), "{halt}");
        assert_eq!(refused(&TopicFacts { timestamp_type: "CreateTime".into(), ..facts() }, Kind::Timed), "fine");
        let wide = TopicFacts { partitions: 3, ..facts() };
        assert_eq!(refused(&wide, Kind::Data), "fine");
        assert!(refused(&wide, Kind::Ledger).contains("kafka-topics.sh --bootstrap-server b:1 --delete --topic t"));
    }

    #[test]
    fn weaknesses_are_words() {
        assert!(weaknesses(&facts(), 3).is_empty());
        let weak = TopicFacts {
            replication_factor: 1,
            min_insync: 1,
            unclean_election: true,
            timestamp_type: "CreateTime".into(),
            ..facts()
        };
        assert_eq!(weaknesses(&weak, 3).len(), 3);
        assert_eq!(weaknesses(&TopicFacts { min_insync: 1, ..facts() }, 3).len(), 1);
        assert!(weaknesses(&TopicFacts { min_insync: 4, ..facts() }, 3)[0].contains("nothing can be written"));
    }
}
