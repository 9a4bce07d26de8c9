//! What registering a schema would come to, found out without registering it: `lockstep check` asks this.
//!
//! Two questions, neither of which changes anything: whether the subject has the schema already, and if it has others, whether it
//! would take this one beside them. The second is not in every registry that has Confluent's API; where it is not, nobody can say.
//! That a user may read and not write shows only once something is registered.

use serde::Deserialize;
use serde_json::json;

use super::{Answer, Refusal, Registered, Registry, compatibility_command, escaped, nonsense, refusal, shown};
use crate::error::{Code, Error, Result};

/// Confluent's error codes behind a 404: without one it is the address that is not there.
const NO_SUBJECT: i64 = 40401;
const NO_SUCH_SCHEMA: i64 = 40403;

/// A subject that is nobody's: those of topics end in `-key` and `-value`.
const NOBODYS: &str = "lockstep-check";

#[derive(Deserialize)]
struct Compatibility {
    is_compatible: bool,
    /// Not in every registry.
    #[serde(default)]
    messages: Vec<String>,
}

impl Registry {
    /// Where it is, for a heading.
    pub fn place(&self) -> String {
        let endpoints: Vec<String> = self.config.endpoints.iter().map(ToString::to_string).collect();
        format!("registry {}", endpoints.join(", "))
    }

    /// Whether anybody there answers as a registry does, and answers us.
    pub async fn answers(&self) -> Result<()> {
        self.has("a check", NOBODYS, "\"string\"").await.map(drop)
    }

    /// What [`Registry::register`] would refuse, as far as it can be found out.
    pub async fn would_take(&self, what: &str, subject: &str, schema: &str) -> Result<()> {
        if self.has(what, subject, schema).await? != Found::OtherSchemas {
            return Ok(());
        }
        let path = format!("/compatibility/subjects/{}/versions?verbose=true", escaped(subject));
        let (endpoint, answer) = self.post(&path, &json!({ "schema": schema }).to_string()).await?;
        match answer.status {
            200..=299 => match serde_json::from_str::<Compatibility>(&answer.body) {
                Ok(Compatibility { is_compatible: true, .. }) => Ok(()),
                Ok(Compatibility { messages, .. }) => Err(incompatible(&endpoint, what, subject, &messages)),
                Err(_) => Err(nonsense(&endpoint, "no compatibility")),
            },
            404 | 405 | 501 => Ok(()),
            _ => Err(refusal(&endpoint, &answer, what, subject)),
        }
    }

    async fn has(&self, what: &str, subject: &str, schema: &str) -> Result<Found> {
        let path = format!("/subjects/{}", escaped(subject));
        let (endpoint, answer) = self.post(&path, &json!({ "schema": schema }).to_string()).await?;
        match (answer.status, error_code(&answer)) {
            (200..=299, _) => match serde_json::from_str::<Registered>(&answer.body) {
                Ok(_) => Ok(Found::Schema),
                Err(_) => Err(nonsense(&endpoint, "no schema id")),
            },
            (404, Some(NO_SUBJECT)) => Ok(Found::Nothing),
            (404, Some(NO_SUCH_SCHEMA)) => Ok(Found::OtherSchemas),
            _ => Err(refusal(&endpoint, &answer, what, subject)),
        }
    }
}

/// What a subject has.
#[derive(PartialEq, Eq)]
enum Found {
    Nothing,
    Schema,
    OtherSchemas,
}

fn error_code(answer: &Answer) -> Option<i64> {
    serde_json::from_str::<Refusal>(&answer.body).ok()?.error_code
}

fn incompatible(endpoint: &str, what: &str, subject: &str, messages: &[String]) -> Error {
    let found = format!(
        "the schema registry would refuse the schema of {what} under subject {subject:?} as incompatible with what stands there"
    );
    let error = Error::halt(Code::SchemaRefused, found, compatibility_command(endpoint, subject));
    messages.iter().take(MESSAGES_MAX).fold(error, |error, message| error.fact(shown(message)))
}

/// Confluent's says every difference, and the whole schemas after them.
const MESSAGES_MAX: usize = 3;
