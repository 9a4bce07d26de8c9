//! What a client knows about its brokers, from librdkafka's error and statistics callbacks.
//!
//! librdkafka heals connections by itself, so most errors are only words for the status page. The exceptions are kept as a
//! verdict: credentials or certificates that are refused for longer than a restarting broker needs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::{debug, warn};

use super::{Access, REFUSED_PATIENCE, Right};
use crate::error::{Code, Error, Halt};

/// The state of one client's connections. Cheap to clone; every clone shows the same client.
#[derive(Clone)]
pub struct Health(Arc<Shared>);

struct Shared {
    access: Access,
    brokers_up: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_error: Option<String>,
    /// Refused since when, and the halt that it becomes. Statistics that show a broker up clear it.
    refused: Option<(Instant, Halt)>,
}

/// The part of librdkafka's statistics that is of use here.
#[derive(serde::Deserialize)]
pub(super) struct Statistics {
    #[serde(default)]
    brokers: HashMap<String, Broker>,
    pub(super) eos: Option<ProducerId>,
}

#[derive(serde::Deserialize)]
struct Broker {
    state: String,
}

/// -1 until the broker has given one.
#[derive(serde::Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProducerId {
    pub(super) producer_id: i64,
    pub(super) producer_epoch: i64,
}

impl Health {
    pub(super) fn new(access: Access) -> Health {
        Health(Arc::new(Shared { access, brokers_up: AtomicUsize::new(0), state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest trouble since a broker was last seen up, for the status page.
    pub fn last_error(&self) -> Option<String> {
        self.state().last_error.clone()
    }

    /// Connections that are up, bootstrap connections included; a second old at most.
    pub fn brokers_up(&self) -> usize {
        self.0.brokers_up.load(Relaxed)
    }

    /// The halt, once refusal has outlasted [`REFUSED_PATIENCE`].
    pub(super) fn verdict(&self) -> Option<Error> {
        self.verdict_after(REFUSED_PATIENCE)
    }

    pub(super) fn verdict_after(&self, patience: Duration) -> Option<Error> {
        let state = self.state();
        let (since, halt) = state.refused.as_ref()?;
        (since.elapsed() >= patience).then(|| Error::from(halt.clone()))
    }

    pub(super) fn note(&self, error: &KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        // Nothing of ours is in a consumer group, so a refused one is no trouble.
        if matches!(code, Some(RDKafkaErrorCode::GroupAuthorizationFailed | RDKafkaErrorCode::PartitionEOF)) {
            return;
        }
        debug!(%error, reason, "Kafka client");
        let refused = code.and_then(|code| self.refused(code, reason));
        let mut state = self.state();
        state.last_error = Some(if reason.is_empty() { error.to_string() } else { reason.to_owned() });
        if let (None, Some(halt)) = (&state.refused, refused) {
            state.refused = Some((Instant::now(), halt));
        }
    }

    fn refused(&self, code: RDKafkaErrorCode, reason: &str) -> Option<Halt> {
        let access = &self.0.access;
        let error = match code {
            RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => {
                access.refusal(code, "", Right::Manage)?.fact(reason)
            }
            // Other TLS errors are connections that broke during the handshake.
            RDKafkaErrorCode::SSL if reason.contains("verify failed") => Error::halt(
                Code::TlsFailed,
                format!("Kafka's certificate is not trusted: {reason}"),
                format!("openssl s_client -connect {} -showcerts </dev/null", access.first_broker()),
            ),
            _ => return None,
        };
        match error {
            Error::Halt(halt) => Some(*halt),
            Error::Retry(_) => None,
        }
    }

    pub(super) fn read_statistics(&self, json: &[u8]) -> Option<Statistics> {
        let statistics: Statistics = match serde_json::from_slice(json) {
            Ok(statistics) => statistics,
            Err(error) => {
                warn!(%error, "librdkafka's statistics have another shape than expected");
                return None;
            }
        };
        let up = statistics.brokers.values().filter(|broker| broker.state == "UP").count();
        self.0.brokers_up.store(up, Relaxed);
        if up > 0 {
            *self.state() = State::default();
        }
        Some(statistics)
    }

    /// librdkafka's own log lines. What matters in them also arrives as an error, which is logged where it is handled, so all
    /// of them are for reading along.
    pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(?level, facility, "librdkafka: {message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        Health::new(Access { brokers: "b:1".into(), user: Some("u".into()), mechanism: "SCRAM-SHA-256".into() })
    }

    #[test]
    fn refused_credentials_are_a_halt_only_after_a_while_and_only_with_no_broker_up() {
        let health = health();
        let refused = KafkaError::Global(RDKafkaErrorCode::Authentication);
        health.note(&refused, "b:1: SASL authentication error");
        assert!(health.verdict().is_none());
        let halt = health.verdict_after(Duration::ZERO).unwrap();
        assert_eq!(halt.code(), Some(Code::KafkaRefused));
        assert!(halt.to_string().contains("--entity-name u --add-config 'SCRAM-SHA-256="), "{halt}");

        assert!(health.read_statistics(br#"{"brokers":{"b:1/1":{"state":"UP","nodeid":1}},"other":1}"#).is_some());
        assert!(health.verdict_after(Duration::ZERO).is_none());
        assert_eq!((health.brokers_up(), health.last_error()), (1, None));
    }

    #[test]
    fn an_outage_is_words_and_a_refused_group_is_nothing() {
        let health = health();
        health.note(&KafkaError::Global(RDKafkaErrorCode::GroupAuthorizationFailed), "group");
        assert_eq!(health.last_error(), None);
        health.note(&KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert_eq!(health.last_error().as_deref(), Some("1/1 brokers are down"));
        assert!(health.verdict_after(Duration::ZERO).is_none());
    }

    #[test]
    fn the_producers_id_is_in_the_statistics() {
        let json =
            br#"{"brokers":{},"eos":{"idemp_state":"Assigned","producer_id":7,"producer_epoch":0,"epoch_cnt":1}}"#;
        let id = health().read_statistics(json).unwrap().eos;
        assert_eq!(id, Some(ProducerId { producer_id: 7, producer_epoch: 0 }));
    }
}
