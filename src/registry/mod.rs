//! The schema registry: the only room that speaks to it, in Confluent's API, which others (Apicurio, Karapace) speak too.
//!
//! One thing is asked of it: the id under which a subject knows a schema. Asking is registering, and asking again gives the same
//! id, so nothing is remembered across starts. A schema has its id before the first record that is written with it is produced.
//! `lockstep check` asks what that would come to ([`trial`]).
//!
//! What may heal is retried by the caller from the ledger: no connection, no answer in time, 5xx, 429. What needs a person halts
//! by name: a schema that the registry finds incompatible or invalid is SCHEMA_REFUSED; a registry that refuses us, sends us
//! elsewhere or answers something that is no answer is REGISTRY_REFUSED. Redirects are never followed: whoever can redirect
//! could point us, with our password, at any address that this machine reaches.
//!
//! Deliberately not here: looking schemas up by id (our sinks decode by the ledger's relation entries), settings of
//! compatibility, unverified TLS.

mod exchange;
#[cfg(test)]
mod tests;
mod trial;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;
use serde_json::json;

use crate::config;
use crate::error::{Code, Error, Result};
use exchange::{Answer, exchange};

/// What Confluent's own clients send and accept.
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// A way into the registry.
pub struct Registry {
    config: config::Registry,
    tls: Option<Arc<rustls::ClientConfig>>,
    /// Index of the address that answered last; the others are tried when it does not.
    answering: AtomicUsize,
}

#[derive(Deserialize)]
struct Registered {
    id: i32,
}

#[derive(Deserialize)]
struct Refusal {
    error_code: Option<i64>,
    message: Option<String>,
}

impl Registry {
    /// Connects only once something is asked.
    pub fn open(config: &config::Registry) -> Result<Registry> {
        let tls = match config.endpoints.iter().any(|endpoint| endpoint.tls) {
            true => Some(crate::session::tls::tls_config(config.ca_file.as_deref())?),
            false => None,
        };
        Ok(Registry { config: config.clone(), tls, answering: AtomicUsize::new(0) })
    }

    /// The id of a schema under a subject; registers it if the subject does not have it. `what` is whose records it is for, for
    /// the error.
    pub async fn register(&self, what: &str, subject: &str, schema: &str) -> Result<u32> {
        let path = format!("/subjects/{}/versions", escaped(subject));
        let body = json!({ "schema": schema }).to_string();
        let (endpoint, answer) = self.post(&path, &body).await?;
        match answer.status {
            200..=299 => match serde_json::from_str::<Registered>(&answer.body) {
                // Ids are an int in every API that there is, and 32 bits in front of every record.
                Ok(Registered { id }) if id >= 0 => Ok(id.unsigned_abs()),
                _ => Err(nonsense(&endpoint, "no schema id")),
            },
            _ => {
                let error = refusal(&endpoint, &answer, what, subject);
                Err(match error.code() {
                    Some(Code::SchemaRefused) => {
                        // The registry's words seldom say which part of it they mean.
                        tracing::warn!(subject, schema, "the schema registry refuses this schema");
                        error.fact("no record with this schema was written and the slot was not moved past it")
                    }
                    _ => error,
                })
            }
        }
    }

    /// The first answer that is one, from the address that answered last or else the others in order; and whose it is.
    async fn post(&self, path: &str, body: &str) -> Result<(String, Answer)> {
        let endpoints = &self.config.endpoints;
        let first = self.answering.load(Ordering::Relaxed);
        let mut failed = None;
        for index in (0..endpoints.len()).map(|i| (first + i) % endpoints.len()) {
            let endpoint = &endpoints[index];
            let asking = exchange(&self.config, endpoint, self.tls.as_ref(), path, body);
            let error = match tokio::time::timeout(self.config.timeout, asking).await {
                Ok(Ok(answer)) if answer.status < 500 && !matches!(answer.status, 408 | 429) => {
                    self.answering.store(index, Ordering::Relaxed);
                    return Ok((endpoint.to_string(), answer));
                }
                Ok(Ok(answer)) => unwell(endpoint, format!("it answers {}: {}", answer.status, reason(&answer))),
                // A certificate does not get better at the next address by itself, and a person should know.
                Ok(Err(error @ Error::Halt(_))) => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => unwell(endpoint, format!("no answer within {} s", self.config.timeout.as_secs_f32())),
            };
            tracing::debug!(error = error.chain(), "an address of the schema registry failed");
            failed = Some(error);
        }
        Err(failed.expect("a registry has an address"))
    }
}

/// An answer that is not the one that was asked for, by its status.
fn refusal(endpoint: &str, answer: &Answer, what: &str, subject: &str) -> Error {
    let refused = |found: String, hint: String| Error::halt(Code::RegistryRefused, found, hint);
    let ask = format!("curl -i {endpoint}/subjects");
    match answer.status {
        300..=399 => {
            let to = answer.location.as_deref().map_or_else(String::new, |to| format!(" to {}", shown(to)));
            refused(format!("{endpoint} redirects{to}; redirects are not followed"), ask)
        }
        409 | 422 => Error::halt(
            Code::SchemaRefused,
            format!("the schema registry refuses the schema of {what} under subject {subject:?}: {}", reason(answer)),
            if answer.status == 409 { compatibility_command(endpoint, subject) } else { ask },
        ),
        401 | 403 => {
            let hint =
                "correct username and password_file, or token_file, under [registry] in lockstep.toml".to_owned();
            refused(format!("{endpoint} lets us not in: {}", reason(answer)), hint)
        }
        status => refused(format!("{endpoint} answers {status} to the schema of {what}: {}", reason(answer)), ask),
    }
}

fn nonsense(endpoint: &str, missing: &str) -> Error {
    let found = format!("{endpoint} answers what no schema registry answers: {missing}");
    Error::halt(Code::RegistryRefused, found, format!("curl -i {endpoint}/subjects"))
}

fn unwell(endpoint: &config::Endpoint, found: String) -> Error {
    Error::retry(format!("asking the schema registry {endpoint}"), found)
}

/// What the registry says about its refusal, in one line that can't be long.
fn reason(answer: &Answer) -> String {
    match serde_json::from_str(&answer.body) {
        Ok(Refusal { error_code: Some(code), message: Some(message) }) => format!("{} (error {code})", shown(&message)),
        Ok(Refusal { message: Some(message), .. }) => shown(&message),
        _ => format!("status {} without a reason", answer.status),
    }
}

/// Somebody else's text for our messages: one line, no control characters, not long.
fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 600;
    let mut line: String = text.chars().take(CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        line.push('…');
    }
    line
}

fn compatibility_command(endpoint: &str, subject: &str) -> String {
    format!(
        "curl -X PUT -H 'Content-Type: {CONTENT_TYPE}' -d '{{\"compatibility\":\"NONE\"}}' '{endpoint}/config/{}', once its \
         consumers can read both",
        escaped(subject)
    )
}

/// A subject as one segment of a path. Topics are of letters, digits, '.', '_' and '-', so for them nothing changes.
fn escaped(subject: &str) -> String {
    const PLAIN: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    percent_encoding::utf8_percent_encode(subject, PLAIN).to_string()
}
