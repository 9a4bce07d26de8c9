//! Errors that answer "what now?".
//!
//! Every failure of a role is one of two: [`Error::Retry`] (the world may heal: connections, restarts, time-outs) or
//! [`Error::Halt`] (going on would break the promise or needs a person). A halt has a stable code that users script against,
//! what was found, and a hint that is a command to type. Errors are logged once, where they are handled.

use std::fmt;

/// The outcome of everything that can fail while a pipeline runs.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What must happen after a failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Retry(Retry),
    #[error(transparent)]
    Halt(Box<Halt>),
}

/// Something that may heal by itself; the caller backs off and begins again from the ledger.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct Retry {
    /// What was being done, lowercase: `connecting to the source`.
    pub doing: String,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// What it is if attempt after attempt fails with it at the same place; else it is tried for ever.
    pub if_it_stays: Option<Box<Halt>>,
}

/// A named halt: nothing more moves until a person acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halt {
    pub code: Code,
    /// One line: what was found and why it matters.
    pub message: String,
    /// Further lines of facts, if any.
    pub facts: Vec<String>,
    /// A command to type.
    pub hint: String,
}

impl Error {
    /// A failure that may heal by itself.
    pub fn retry(doing: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Retry(Retry { doing: doing.into(), source: Some(source.into()), if_it_stays: None })
    }

    /// A failure that may heal by itself, with no deeper cause.
    pub fn retry_plain(doing: impl Into<String>) -> Error {
        Error::Retry(Retry { doing: doing.into(), source: None, if_it_stays: None })
    }

    pub fn halt(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Error {
        Halt { code, message: message.into(), facts: Vec::new(), hint: hint.into() }.into()
    }

    /// Names what a retry comes to if it does not help; a halt stays as it is.
    pub fn if_it_stays(mut self, halt: Halt) -> Error {
        if let Error::Retry(retry) = &mut self {
            retry.if_it_stays = Some(Box::new(halt));
        }
        self
    }

    /// Adds a fact to a halt; a retry stays as it is.
    pub fn fact(mut self, fact: impl Into<String>) -> Error {
        if let Error::Halt(halt) = &mut self {
            halt.facts.push(fact.into());
        }
        self
    }

    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Retry(_) => None,
            Error::Halt(halt) => Some(halt.code),
        }
    }

    /// The message with every cause behind it, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let next = error.to_string();
            if !text.ends_with(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            cause = error.source();
        }
        text
    }
}

impl From<Halt> for Error {
    fn from(halt: Halt) -> Error {
        Error::Halt(Box::new(halt))
    }
}

impl std::error::Error for Halt {}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        for fact in &self.facts {
            write!(f, "\n  {fact}")?;
        }
        write!(f, "\n  help: {}", self.hint)
    }
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// Codes of named halts. Users script against the text; docs/errors.md lists them all.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Code { $($(#[doc = $doc])* $name,)* }

        impl Code {
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// What the code means, for docs/errors.md and `--help`.
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$name => concat!($($doc),*).trim_ascii_start(),)* }
            }
        }
    };
}

codes! {
    /// The configuration has findings; each names file, line, column and what to write instead.
    Config = "CONFIG",
    /// The source's wal_level is not logical.
    WalLevel = "WAL_LEVEL",
    /// The source is older than Postgres 14, or a minor release with a known loss of changes; or older than 17 where a slot is to outlive pg_upgrade; or the server of a sink is one that is not known.
    ServerVersion = "SERVER_VERSION",
    /// The source is in recovery (a standby); only a primary can be read.
    SourceInRecovery = "SOURCE_IN_RECOVERY",
    /// The role lacks a right that is needed; the hint is the GRANT or ALTER ROLE.
    NoRight = "NO_RIGHT",
    /// The server refused the role or password.
    AuthFailed = "AUTH_FAILED",
    /// TLS could not be set up or the server's certificate is not the expected one.
    TlsFailed = "TLS_FAILED",
    /// A database named in a URL does not exist.
    DatabaseMissing = "DATABASE_MISSING",
    /// The replication slot is missing, invalidated or lost, so changes are missing that no one can read again.
    SlotLost = "SLOT_LOST",
    /// The source's server can't decode its own log any more, however often it is asked to.
    SourceUndecodable = "SOURCE_UNDECODABLE",
    /// The slot belongs to another output plugin, database or kind.
    SlotForeign = "SLOT_FOREIGN",
    /// The slot was made with two_phase, whose prepared transactions this reader refuses.
    SlotTwoPhase = "SLOT_TWO_PHASE",
    /// Another program reads from the slot.
    SlotInUse = "SLOT_IN_USE",
    /// The slot is ahead of the ledger: someone advanced or recreated it.
    SlotMoved = "SLOT_MOVED",
    /// The server is another one than the ledger was written for.
    SourceMismatch = "SOURCE_MISMATCH",
    /// The slot has changes that are not in the ledger yet, so the source's server is not to be upgraded.
    NotDrained = "NOT_DRAINED",
    /// The source's history forked below what was already published (a fail-over lost commits, or a restore).
    Diverged = "DIVERGED",
    /// A routed table does not exist at the source.
    TableMissing = "TABLE_MISSING",
    /// A routed relation is of a kind whose changes can't be read: a view, an unlogged table, a partition of a routed root, an outbox without its columns.
    TableUnsupported = "TABLE_UNSUPPORTED",
    /// A routed table has no usable key and no other replica identity, or none and too many rows.
    TableWithoutKey = "TABLE_WITHOUT_KEY",
    /// The replica identity would make the application's own updates fail, or does not carry the key.
    ReplicaIdentity = "REPLICA_IDENTITY",
    /// The publication is not the one that was made: tables, columns, filters or operations differ.
    PublicationChanged = "PUBLICATION_CHANGED",
    /// A routed table has another name now.
    RelationChanged = "RELATION_CHANGED",
    /// A connector names a column that its table does not have, or asks of one what it can't do.
    ConnectorColumns = "CONNECTOR_COLUMNS",
    /// The server sent something that the protocol does not allow.
    SourceProtocol = "SOURCE_PROTOCOL",
    /// Kafka refuses us: authentication, authorization or a setting.
    KafkaRefused = "KAFKA_REFUSED",
    /// A record is larger than `record_bytes_max` or than the topic takes.
    RecordTooLarge = "RECORD_TOO_LARGE",
    /// A topic is missing that the ledger knows.
    TopicMissing = "TOPIC_MISSING",
    /// A topic was deleted and made again: what it held is gone.
    TopicRecreated = "TOPIC_RECREATED",
    /// A row of an outbox names a topic that it can't have: another's, one that is no name, or one too many.
    TopicRefused = "TOPIC_REFUSED",
    /// A topic's settings would lose records.
    TopicSettings = "TOPIC_SETTINGS",
    /// Records that the ledger counts are not in the topic, or are others than counted.
    TopicGap = "TOPIC_GAP",
    /// A text of the source is none in its own encoding, so it can't be written as UTF-8.
    SourceEncoding = "SOURCE_ENCODING",
    /// A record can't be read: no known header, another version, or values that do not fit its relation.
    RecordInvalid = "RECORD_INVALID",
    /// A record that another program wrote is none that can be read or applied as it is, or does not say what it means.
    ForeignRecord = "FOREIGN_RECORD",
    /// A topic that another program writes is not one whose records can be followed: more partitions than there were, its beginning gone, or records of another server.
    ForeignTopic = "FOREIGN_TOPIC",
    /// The schema registry refuses us, sends us elsewhere, or answers what no schema registry answers.
    RegistryRefused = "REGISTRY_REFUSED",
    /// The schema registry refuses a table's schema as incompatible with those before it, or as invalid.
    SchemaRefused = "SCHEMA_REFUSED",
    /// There is a slot but no ledger, or the ledger lost its end.
    LedgerLost = "LEDGER_LOST",
    /// The ledger topic is another one than the sink's progress was written against.
    LedgerRecreated = "LEDGER_RECREATED",
    /// Entries that are needed are no longer in the ledger.
    LedgerTrimmed = "LEDGER_TRIMMED",
    /// The ledger holds an entry of a type or version that this build does not know.
    LedgerVersion = "LEDGER_VERSION",
    /// The sink's progress row belongs to another source, ledger or format version.
    ProgressMismatch = "PROGRESS_MISMATCH",
    /// A table or column is missing at the sink, or has a type that can't hold the source's values.
    SinkTable = "SINK_TABLE",
    /// The sink is not the state it claims to be: a named row is missing or is there twice.
    SinkDiverged = "SINK_DIVERGED",
    /// A foreign key of a sink that was set aside for a first copy can't be put back, or does not hold.
    ForeignKeyBroken = "FOREIGN_KEY_BROKEN",
    /// A value does not fit the sink's column.
    ValueRefused = "VALUE_REFUSED",
    /// A constraint of the sink refuses the rows, in whatever order they are applied.
    ConstraintRefused = "CONSTRAINT_REFUSED",
    /// A sink refuses more rows than may be parked of it (`parked_max`).
    ParkedFull = "PARKED_FULL",
    /// What is parked of a row at a sink can't be put back, or what comes next of it can't be told apart from it.
    ParkedKey = "PARKED_KEY",
    /// A sink with `consistency = "row"` can't be written row by row: something there, or in its configuration, is about several rows.
    RowConsistency = "ROW_CONSISTENCY",
    /// Rows hand over a unique value at the sink, and no other value can stand in for it meanwhile.
    UniqueHandover = "UNIQUE_HANDOVER",
    /// A row would have to be made with a column whose value was never sent.
    AbsentBase = "ABSENT_BASE",
    /// What was asked for by the command line, over HTTP or in the signal table can't be done as it was written; nothing was begun.
    RequestRefused = "REQUEST_REFUSED",
    /// `create = false` and something that is ours to create is missing; the facts are the commands.
    CreateOff = "CREATE_OFF",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halt_reads_as_code_facts_and_a_command() {
        let error = Error::halt(Code::SlotMoved, "slot \"s\" is ahead of the ledger", "lockstep resync --all")
            .fact("slot confirmed 0/2, ledger 0/1");
        assert_eq!(
            error.to_string(),
            "error[SLOT_MOVED]: slot \"s\" is ahead of the ledger\n  slot confirmed 0/2, ledger 0/1\n  help: lockstep resync --all"
        );
    }

    #[test]
    fn codes_are_distinct_and_explained() {
        let texts: std::collections::HashSet<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|c| c.meaning().ends_with('.')));
    }
}
