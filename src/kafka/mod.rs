//! The Kafka client, and the only room that imports it.
//!
//! [`producer`] writes records and says which offsets they got, [`consumer`] reads one partition as a tail or named spans of
//! many, [`topics`] creates and describes. Nothing here knows what a record or a ledger entry means.
//!
//! What every part relies on:
//! - librdkafka reconnects, retries and finds new leaders by itself, for ever. So a broker that is away is never an error here,
//!   only words for the status page ([`Health::last_error`]). What is an error is what waiting can't heal: refused
//!   credentials or rights, a missing topic, an offset that is not there, and everything that broke the producer's order.
//! - Refused credentials become an error only after [`REFUSED_PATIENCE`] without any broker up: a broker that restarts
//!   answers "authentication failed" until it has loaded its own credentials.
//! - Topics are never created by accident: automatic creation is off in every client, producers included.
//! - Consumers use `assign`, never group membership. librdkafka wants a `group.id` for that all the same; a refused group is
//!   ignored because nothing that must be right is kept in one ([`groups`]).
//!
//! Deliberately not here: transactions (why: docs/design.md section 2), consumer groups, `FutureProducer` (it reorders when its
//! queue is full) and `StreamConsumer` (its split queues lose wake-ups).

mod health;
mod raw;
mod reports;
mod spans;

pub mod consumer;
pub mod groups;
pub mod members;
pub mod murmur2;
pub mod producer;
pub mod reread;
pub mod topics;

use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use secrecy::ExposeSecret;

use crate::config::{self, Compression};
use crate::error::{Code, Error};

pub use health::Health;

/// How long refused credentials may last with no broker up before they are a halt. A KRaft broker loads its SCRAM users within
/// about a second of its start.
pub const REFUSED_PATIENCE: Duration = Duration::from_secs(10);

/// librdkafka's statistics: broker states and the producer's id. Its granularity is one second.
const STATISTICS_INTERVAL_MS: &str = "1000";

/// What a batch with one record has beyond the record's key, value and headers: 61 bytes of batch header, up to 35 of
/// varints and attributes, rounded up.
const RECORD_OVERHEAD_BYTES: usize = 128;

/// Settings that all clients share.
fn client(kafka: &config::Kafka, purpose: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &kafka.brokers);
    client.set("client.id", format!("lockstep.{}.{purpose}", kafka.ledger));
    client.set("allow.auto.create.topics", "false");
    client.set("socket.keepalive.enable", "true");
    // A link that is dead without a word is given up within half a minute. The default is a minute.
    client.set("socket.timeout.ms", "20000");
    // The default backs off to 10 s: a broker that is back after a minute would be found 10 s late.
    client.set("reconnect.backoff.max.ms", "1000");
    client.set("statistics.interval.ms", STATISTICS_INTERVAL_MS);
    // How long a topic that a broker does not know may be one that it does not know yet. The default is 30 s; a KRaft cluster
    // spreads a new topic in well under one.
    client.set("topic.metadata.propagation.max.ms", "10000");
    // An idle connection that the broker closes is no news.
    client.set("log.connection.close", "false");
    client.set_log_level(RDKafkaLogLevel::Info);
    security(&mut client, &kafka.security);
    client
}

fn security(client: &mut ClientConfig, security: &config::Security) {
    let protocol = match (security.tls, security.sasl.is_some()) {
        (false, false) => "plaintext",
        (false, true) => "sasl_plaintext",
        (true, false) => "ssl",
        (true, true) => "sasl_ssl",
    };
    client.set("security.protocol", protocol);
    if security.tls {
        client.set("ssl.endpoint.identification.algorithm", "https");
        client.set("enable.ssl.certificate.verification", "true");
        if let Some(file) = &security.ca_file {
            client.set("ssl.ca.location", file.to_string_lossy());
        }
    }
    if let Some(sasl) = &security.sasl {
        client.set("sasl.mechanism", &sasl.mechanism);
        client.set("sasl.username", &sasl.username);
        client.set("sasl.password", sasl.password.expose_secret());
    }
}

fn codec(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
        Compression::Snappy => "snappy",
        Compression::Gzip => "gzip",
    }
}

/// A client that could not even be made: a setting it refuses, or no more threads or file handles.
fn unmade(kafka: &config::Kafka) -> impl FnOnce(KafkaError) -> Error + '_ {
    move |error| match error {
        KafkaError::ClientConfig(_, why, key, value) if !key.starts_with("sasl.password") => Error::halt(
            Code::KafkaRefused,
            format!("the Kafka client refuses {key} = {value:?}: {why}"),
            entry_of(&key).map_or("report it: Lockstep sets this by itself".to_owned(), |entry| {
                format!("correct `{entry}` under [kafka] in lockstep.toml")
            }),
        ),
        KafkaError::ClientCreation(why) if why.contains("SASL mechanism") => Error::halt(
            Code::KafkaRefused,
            format!("the Kafka client can't sign in: {why}"),
            "sasl_mechanism = \"SCRAM-SHA-512\", \"SCRAM-SHA-256\" or \"PLAIN\" under [kafka] in lockstep.toml",
        ),
        // The file of certificates is read here, so a wrong path ends here too.
        KafkaError::ClientCreation(why) if why.contains("ssl.") => {
            let file = kafka.security.ca_file.as_ref().map_or("the system's".into(), |file| file.to_string_lossy());
            Error::halt(
                Code::TlsFailed,
                format!("TLS to Kafka could not be set up with certificates from {file}: {why}"),
                format!("openssl x509 -noout -subject -in {file}"),
            )
        }
        error => Error::retry("making a Kafka client", error),
    }
}

/// The entry of `[kafka]` that one of the client's keys comes from, `None` for what is ours alone.
fn entry_of(key: &str) -> Option<&'static str> {
    Some(match key {
        "bootstrap.servers" => "brokers",
        "client.id" => "ledger",
        "security.protocol" => "tls",
        "ssl.ca.location" => "ca_file",
        "sasl.mechanism" => "sasl_mechanism",
        "sasl.username" => "sasl_username",
        "message.max.bytes" => "record_bytes_max",
        "queue.buffering.max.kbytes" => "in_flight_bytes_max",
        "linger.ms" => "linger",
        "compression.type" => "compression",
        _ => return None,
    })
}

/// The crate's own method leaves out the codes of admin calls.
fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    }
}

/// What hints need to be commands that work as typed.
#[derive(Debug, Clone)]
struct Access {
    brokers: String,
    /// The SASL user, if there is one.
    user: Option<String>,
    mechanism: String,
}

/// The right that a refused call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Right {
    Write,
    Read,
    /// Describe, create and configure topics.
    Manage,
}

impl Access {
    fn new(kafka: &config::Kafka) -> Access {
        let sasl = kafka.security.sasl.as_ref();
        Access {
            brokers: kafka.brokers.clone(),
            user: sasl.map(|s| s.username.clone()),
            mechanism: sasl.map_or(String::new(), |s| s.mechanism.clone()),
        }
    }

    fn first_broker(&self) -> &str {
        self.brokers.split(',').next().unwrap_or(&self.brokers).trim()
    }

    fn principal(&self) -> &str {
        self.user.as_deref().unwrap_or("ANONYMOUS")
    }

    /// The halt behind an error code that waiting can't heal, `None` for every other code.
    fn refusal(&self, code: RDKafkaErrorCode, topic: &str, right: Right) -> Option<Error> {
        let Access { brokers, .. } = self;
        let user = self.principal();
        let add = format!("kafka-acls.sh --bootstrap-server {brokers} --add --allow-principal User:{user}");
        let halt = match code {
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                let operations = match right {
                    Right::Write => "--operation Write --operation Describe",
                    Right::Read => "--operation Read --operation Describe",
                    Right::Manage => "--operation Create --operation Describe --operation DescribeConfigs",
                };
                Error::halt(
                    Code::KafkaRefused,
                    format!("Kafka does not let {user} use topic {topic:?}"),
                    format!("{add} {operations} --topic {topic}"),
                )
            }
            RDKafkaErrorCode::ClusterAuthorizationFailed => {
                let operation = if right == Right::Write { "IdempotentWrite" } else { "Create --operation Describe" };
                Error::halt(
                    Code::KafkaRefused,
                    format!("Kafka does not give {user} the right {operation} on the cluster"),
                    format!("{add} --operation {operation} --cluster"),
                )
            }
            RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition => Error::halt(
                Code::TopicMissing,
                format!("topic {topic:?} or a partition of it is missing in Kafka"),
                format!("kafka-topics.sh --bootstrap-server {brokers} --describe --topic {topic}"),
            ),
            RDKafkaErrorCode::InvalidTimestamp => Error::halt(
                Code::TopicSettings,
                format!("a record's time is further from now than topic {topic:?} may hold"),
                format!(
                    "kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name {topic} --add-config \
                     message.timestamp.after.max.ms={0},message.timestamp.before.max.ms={0}",
                    i64::MAX
                ),
            ),
            RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => Error::halt(
                Code::KafkaRefused,
                format!("Kafka refuses user {user} or the password"),
                self.credentials_hint(),
            ),
            _ => return None,
        };
        Some(halt)
    }

    fn credentials_hint(&self) -> String {
        let Access { brokers, mechanism, .. } = self;
        let user = self.principal();
        if mechanism.starts_with("SCRAM-") {
            return format!(
                "kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type users --entity-name {user} \
                 --add-config '{mechanism}=[password=...]'"
            );
        }
        format!("kafka-broker-api-versions.sh --bootstrap-server {brokers} --command-config client.properties")
    }

    /// An error of one call: a halt if waiting can't heal it, else a retry.
    fn failed(&self, error: KafkaError, doing: &str, topic: &str, right: Right) -> Error {
        code_of(&error)
            .and_then(|code| self.refusal(code, topic, right))
            .unwrap_or_else(|| Error::retry(format!("{doing} {topic}"), error))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{Kafka, Sasl, Security};

    /// A configuration with every field at a small, plain value.
    pub(crate) fn kafka(brokers: &str) -> Kafka {
        Kafka {
            brokers: brokers.to_owned(),
            topic_prefix: "test".into(),
            topic_delimiter: crate::relation::Delimiter::default(),
            ledger: "test.ledger".into(),
            compression: Compression::Lz4,
            retention: Duration::from_secs(7 * 86_400),
            replication_factor: None,
            record_bytes_max: 8 << 20,
            in_flight_bytes_max: 64 << 20,
            linger: Duration::from_millis(5),
            security: Security { tls: false, ca_file: None, sasl: None },
            checkpoint_interval: Duration::from_millis(20),
            base_entries: 1000,
            base_interval: Duration::from_secs(60),
            grace: Duration::from_secs(30),
        }
    }

    #[test]
    fn security_maps_to_the_clients_keys() {
        let mut config = kafka("a:1");
        config.security = Security {
            tls: true,
            ca_file: Some("/ca.pem".into()),
            sasl: Some(Sasl {
                mechanism: "SCRAM-SHA-512".into(),
                username: "u".into(),
                password: "p".to_owned().into(),
            }),
        };
        let client = client(&config, "x");
        for (key, value) in [
            ("security.protocol", "sasl_ssl"),
            ("ssl.ca.location", "/ca.pem"),
            ("ssl.endpoint.identification.algorithm", "https"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "u"),
            ("sasl.password", "p"),
            ("client.id", "lockstep.test.ledger.x"),
            ("allow.auto.create.topics", "false"),
        ] {
            assert_eq!(client.get(key), Some(value), "{key}");
        }
    }

    #[test]
    fn a_setting_that_the_client_refuses_names_its_entry() {
        let refused = |key: &str| {
            let error = KafkaError::ClientConfig(
                rdkafka::types::RDKafkaConfRes::RD_KAFKA_CONF_INVALID,
                "no".into(),
                key.into(),
                "v".into(),
            );
            unmade(&kafka("b:1"))(error).to_string()
        };
        assert_eq!(
            refused("linger.ms"),
            "error[KAFKA_REFUSED]: the Kafka client refuses linger.ms = \"v\": no\n  help: correct `linger` under [kafka] in \
             lockstep.toml"
        );
        assert!(refused("check.crcs").ends_with("help: report it: Lockstep sets this by itself"));
        // Every entry that a hint may name is one that exists.
        let documented = include_str!("../../docs/configuration.md");
        for key in client(&kafka("b:1"), "x").config_map().keys() {
            let entry = entry_of(key);
            assert!(entry.is_none_or(|entry| documented.contains(&format!("| `kafka.{entry}` |"))), "{key}: {entry:?}");
        }
    }

    #[test]
    fn a_refusal_is_a_command_and_an_outage_is_not_a_refusal() {
        let access = Access { brokers: "b:9092".into(), user: Some("shop".into()), mechanism: "PLAIN".into() };
        let error = access.refusal(RDKafkaErrorCode::TopicAuthorizationFailed, "shop.t", Right::Write).unwrap();
        assert_eq!(
            error.to_string(),
            "error[KAFKA_REFUSED]: Kafka does not let shop use topic \"shop.t\"\n  help: kafka-acls.sh --bootstrap-server \
             b:9092 --add --allow-principal User:shop --operation Write --operation Describe --topic shop.t"
        );
        let missing = access.refusal(RDKafkaErrorCode::UnknownTopicOrPartition, "t", Right::Read).unwrap();
        assert_eq!(missing.code(), Some(Code::TopicMissing));
        for code in [
            RDKafkaErrorCode::BrokerTransportFailure,
            RDKafkaErrorCode::AllBrokersDown,
            RDKafkaErrorCode::OperationTimedOut,
            RDKafkaErrorCode::GroupAuthorizationFailed,
        ] {
            assert!(access.refusal(code, "t", Right::Read).is_none(), "{code:?}");
        }
    }
}
