//! TOML to a resolved configuration that cannot be wrong: all findings at once, each with file, line, column and a hint.
//!
//! The types here are the resolved ones: no `Option` means "default". Raw TOML shapes stay private to the room.
//!
//! The way from text to these types: `reader` walks a file and types its values, `process` and `connector` know the keys of the
//! two kinds of files, `wire`, `records`, `shape` and `outbox` those of their sections. `url` knows a database's address and
//! the TLS rule, `files` fetches passwords and certificates, `names` fills in names of topics, `load` compares files with each
//! other, `pattern` and `routes` know tables that are named by pattern. `describe` is the way back. Whatever is wrong on the
//! way becomes a [`Finding`]; nothing stops at the first.
//!
//! Invariant: no secret is ever shown, neither by `Debug` of these types nor by a finding.

mod connector;
mod constants;
mod delete;
mod describe;
mod files;
mod findings;
mod load;
mod names;
mod outbox;
mod parking;
mod pattern;
mod process;
mod reader;
mod records;
mod registry;
mod routes;
mod shape;
mod snapshot;
mod sqlite;
#[cfg(test)]
mod tests;
mod topics;
mod units;
mod url;
mod values;
mod wire;

pub use describe::describe;
pub use findings::{Finding, Findings, Place};
pub use load::{FILE, Files, load};
pub use pattern::TablePattern;
pub use records::Records;
pub use registry::{Endpoint, Registry, RegistryAuth};
pub use routes::{LeftOut, Route};
pub use snapshot::{OnMissing, Snapshot};
#[cfg(test)]
pub(crate) use tests::example;
pub use topics::{Start, Topics};
pub use url::UrlRefused;
pub use values::{Expression, Function, Value};

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use crate::relation::{Delimiter, Format, Modes, TableName};
use crate::transform::Shape;

/// A whole pipeline: one source, one Kafka, its tables and sinks.
#[derive(Debug, Clone)]
pub struct Config {
    /// Pipeline name, `[a-z0-9_]{1,40}`.
    pub name: String,
    /// May `run` create what is missing: publication, slot, topics, the `lockstep` schema in sinks.
    pub create: bool,
    /// Whether a running process takes what is edited in these files.
    pub reload: bool,
    /// The folder that the connectors were read from.
    pub connectors: PathBuf,
    pub source: Read,
    /// The topics are another program's; `None`: they are ours, and there is a source.
    pub topics: Option<Topics>,
    pub kafka: Kafka,
    /// `None`: no table is written in Avro.
    pub registry: Option<Registry>,
    pub http: Http,
    pub wire: Wire,
    /// In order of name.
    pub sinks: Vec<Sink>,
    /// In order of table name. Those of patterns are among them once they are known: [`Config::resolve`].
    pub tables: Vec<Table>,
    /// Connectors that name tables by pattern.
    pub routes: Vec<Route>,
}

impl Config {
    /// Tables of which only some rows are published.
    pub fn filtered(&self) -> Vec<TableName> {
        self.tables.iter().filter(|table| table.shape.filter.is_some()).map(|table| table.name.clone()).collect()
    }

    /// Names of the sinks that take a table.
    pub fn sinks_of(&self, table: &TableName) -> Vec<&str> {
        let routed = self.tables.iter().filter(|routed| routed.name == *table);
        routed.flat_map(|routed| &routed.sinks).map(|sink| sink.sink.as_str()).collect()
    }
}

/// The source of a pipeline that reads one. Whoever is asked to read refuses a pipeline of another program's topics before it
/// comes here.
#[derive(Debug, Clone)]
pub struct Read(Option<Source>);

impl std::ops::Deref for Read {
    type Target = Source;

    fn deref(&self) -> &Source {
        self.0.as_ref().expect("a pipeline whose topics another program writes is never read for")
    }
}

#[derive(Debug, Clone)]
pub struct Source {
    pub database: Database,
    pub slot: String,
    pub publication: String,
    /// `failover = true` on Postgres 17+.
    pub failover: bool,
    /// Receive window of the replication connection; small, so that the server sends large segments while we are behind.
    pub receive_bytes: usize,
    /// Nap while behind, so that the next read is a burst.
    pub receive_nap: Duration,
    /// `wal_sender_timeout` that our own connection sets.
    pub sender_timeout: Duration,
    /// Where people of the source write what they ask for; its rows are no data. `None`: nowhere.
    pub signal_table: Option<TableName>,
    pub snapshot: SourceSnapshot,
}

/// How rows that exist already are read.
#[derive(Debug, Clone)]
pub struct SourceSnapshot {
    /// Sessions that read at once.
    pub connections: usize,
    /// A chunk is held in memory; it ends at this many rows or bytes and aims at this time, whichever comes first.
    pub chunk_rows: usize,
    pub chunk_bytes: usize,
    pub chunk_time: Duration,
    /// A table without a key is one chunk; one of more bytes is refused.
    pub keyless_bytes: usize,
    /// No limit where there is none.
    pub rows_per_second: Option<usize>,
    pub bytes_per_second: Option<usize>,
    /// While the stream is further behind than this, nothing is read.
    pub lag_bytes_max: usize,
}

/// Where a Postgres is and how to get in.
#[derive(Debug, Clone)]
pub struct Database {
    pub host: Host,
    pub port: u16,
    pub user: String,
    pub password: Option<SecretString>,
    pub dbname: String,
    pub tls: Tls,
    pub connect_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Tcp(String),
    /// Folder of the server's unix socket.
    Unix(PathBuf),
}

/// TLS is verified or off, nothing in between. Off is the default only where traffic can't leave the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    Off,
    /// Certificate chain and host name are verified, against the file's certificates or else the system's.
    Verified {
        ca_file: Option<PathBuf>,
    },
}

#[derive(Debug, Clone)]
pub struct Kafka {
    pub brokers: String,
    pub topic_prefix: String,
    /// Between the parts of a topic's name.
    pub topic_delimiter: Delimiter,
    /// Ledger topic.
    pub ledger: String,
    pub compression: Compression,
    pub retention: Duration,
    /// `None`: min(3, brokers).
    pub replication_factor: Option<i32>,
    pub record_bytes_max: usize,
    /// Records sent and not yet acknowledged.
    pub in_flight_bytes_max: usize,
    pub linger: Duration,
    pub security: Security,
    /// At least this much time between two checkpoints while busy; at once when idle.
    pub checkpoint_interval: Duration,
    pub base_entries: u64,
    pub base_interval: Duration,
    /// How long Kafka may take nothing before the replication connection is dropped.
    pub grace: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Lz4,
    Zstd,
    Snappy,
    Gzip,
}

#[derive(Debug, Clone)]
pub struct Security {
    pub tls: bool,
    pub ca_file: Option<PathBuf>,
    pub sasl: Option<Sasl>,
}

#[derive(Debug, Clone)]
pub struct Sasl {
    /// PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
    pub mechanism: String,
    pub username: String,
    pub password: SecretString,
}

#[derive(Debug, Clone)]
pub struct Http {
    /// `None`: off.
    pub listen: Option<std::net::SocketAddr>,
    /// Where the admin socket is; `None`: off.
    pub admin: Option<PathBuf>,
}

/// What kind of database a sink is, and where.
#[derive(Debug, Clone)]
pub enum Engine {
    Postgres(Database),
    /// A Unix host is the server's socket.
    MariaDb(Database),
    /// The database's file.
    Sqlite(PathBuf),
}

impl Engine {
    /// As messages name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Engine::Postgres(_) => "Postgres",
            Engine::MariaDb(_) => "MariaDB",
            Engine::Sqlite(_) => "SQLite",
        }
    }

    /// Whether tables of the same name in both are one table, as far as text says.
    fn is_same(&self, other: &Engine) -> bool {
        match (self, other) {
            (Engine::Postgres(a), Engine::Postgres(b)) => a.is_same(b),
            // There a schema is a database: which one the connection is in says nothing of tables.
            (Engine::MariaDb(a), Engine::MariaDb(b)) => (&a.host, a.port) == (&b.host, b.port),
            (Engine::Sqlite(a), Engine::Sqlite(b)) => a == b,
            _ => false,
        }
    }

    /// Whether it is this database of a source.
    fn is_source(&self, source: &Database) -> bool {
        match self {
            Engine::Postgres(database) => database.is_same(source),
            Engine::MariaDb(_) => false,
            Engine::Sqlite(_) => false,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Sink {
    pub name: String,
    pub engine: Engine,
    /// Rows folded in memory before they are written into the open transaction.
    pub batch_rows_max: usize,
    pub batch_bytes_max: usize,
    /// Rows written in a second at most.
    pub rows_per_second: Option<usize>,
    /// The same in bytes of their records.
    pub bytes_per_second: Option<usize>,
    /// How long records that the ledger counts may take to become readable.
    pub span_wait: Duration,
    pub lock_timeout: Duration,
    /// How long the worker that owns the sink may be silent before a standby takes it.
    pub lease_timeout: Duration,
    pub foreign_keys: ForeignKeys,
    pub consistency: Consistency,
    /// False: a crash of the sink's server may take back what was committed there last, rows and progress together.
    pub synchronous_commit: bool,
    pub parking: Parking,
}

/// What becomes of a row that the sink refuses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parking {
    pub on_refused: OnRefused,
    /// Gets a copy of each record that is parked.
    pub topic: String,
    /// More than these are parked of no sink: it halts.
    pub records_max: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnRefused {
    #[default]
    Halt,
    /// Its record is kept in the sink, and what can be applied goes on.
    Park,
}

impl OnRefused {
    pub fn as_str(self) -> &'static str {
        match self {
            OnRefused::Halt => "halt",
            OnRefused::Park => "park",
        }
    }
}

/// What of the source becomes visible at a sink at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    #[default]
    Transaction,
    /// Each row by itself, in the order of its changes: partitions are spread over processes.
    Row,
}

impl Consistency {
    pub fn as_str(self) -> &'static str {
        match self {
            Consistency::Transaction => "transaction",
            Consistency::Row => "row",
        }
    }
}

/// When the sink's foreign keys between tables that we write are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForeignKeys {
    #[default]
    Always,
    /// From the end of a first copy on: until then they are set aside.
    AfterLoad,
}

impl ForeignKeys {
    pub fn as_str(self) -> &'static str {
        match self {
            ForeignKeys::Always => "always",
            ForeignKeys::AfterLoad => "after_load",
        }
    }
}

/// What records look like to consumers.
#[derive(Debug, Clone, Default)]
pub struct Wire {
    /// What a table does not say for itself.
    pub tables: TableWire,
    /// `__debezium.context.*` on every record, as Debezium writes them.
    pub context_headers: bool,
    /// BEGIN and END of every transaction, and the `transaction` block of its records.
    pub transaction_topic: Option<String>,
    /// `pg_logical_emit_message` as records of their own.
    pub messages: Option<Messages>,
    pub heartbeat: Option<Heartbeat>,
}

/// Records that say nothing but that the reader lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    pub interval: Duration,
    pub topic: String,
    /// Run at the source with each, for who wants it to write something.
    pub query: Option<String>,
}

/// Which logical messages become records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Messages {
    pub topic: String,
    /// `None`: every prefix that is not excluded.
    pub include: Option<Vec<String>>,
    pub exclude: Vec<String>,
}

/// What the records of one table look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableWire {
    pub format: Format,
    pub modes: Modes,
    /// A tombstone behind each delete.
    pub tombstones: bool,
    /// Letters of operations that are not written.
    pub skipped: Vec<char>,
    /// Of a table that no sink takes and that does not say so itself.
    pub snapshot: Snapshot,
    /// What `modes.flat` was made of.
    pub records: Records,
}

impl Default for TableWire {
    fn default() -> TableWire {
        TableWire {
            format: Format::Json,
            modes: Modes::default(),
            tombstones: true,
            skipped: Vec::new(),
            snapshot: Snapshot::Initial,
            records: Records::default(),
        }
    }
}

/// One routed table: a resolved connector file.
#[derive(Debug, Clone)]
pub struct Table {
    pub name: TableName,
    /// A pattern matched it; it may come and go while a process runs.
    pub by_pattern: bool,
    pub topic: String,
    pub partitions: i32,
    /// The application only inserts and truncates, so no replica identity is needed.
    pub insert_only: bool,
    /// Which columns records have, under which masks, by which key.
    pub shape: Shape,
    /// An UPDATE that changes nothing of what records have is no record.
    pub skip_unchanged: bool,
    pub snapshot: Snapshot,
    /// Tables with a smaller one are loaded earlier, as far as foreign keys allow.
    pub snapshot_order: i32,
    pub wire: TableWire,
    /// In order of sink name.
    pub sinks: Vec<SinkTable>,
}

/// What one sink takes of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkTable {
    pub sink: String,
    pub table: TableName,
    /// `None`: every column.
    pub columns: Option<Vec<String>>,
    pub evolve: Evolve,
    pub truncate: Truncate,
    pub delete: Delete,
    /// Columns that only the sink has, in order of name.
    pub values: Vec<Value>,
    pub on_missing: OnMissing,
    /// The table's: what the sink is to get of the rows that are there.
    pub snapshot: Snapshot,
}

impl SinkTable {
    /// All of a table, with everything as it is where nothing is said.
    pub fn new(sink: impl Into<String>, table: TableName) -> SinkTable {
        let (evolve, truncate, delete, values, on_missing, snapshot) = Default::default();
        SinkTable { sink: sink.into(), table, columns: None, evolve, truncate, delete, values, on_missing, snapshot }
    }
}

/// How a sink's table is emptied where the source's was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncate {
    #[default]
    Truncate,
    /// Row by row: other tables of the service may reference it, and who reads an older snapshot still sees the rows.
    Delete,
}

impl Truncate {
    pub fn as_str(self) -> &'static str {
        match self {
            Truncate::Truncate => "truncate",
            Truncate::Delete => "delete",
        }
    }
}

/// What becomes of a sink's row that is deleted at the source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Delete {
    /// It is deleted.
    #[default]
    Row,
    /// It stays and is marked in a column that only the sink has.
    Soft { column: String },
}

impl Delete {
    pub fn as_str(&self) -> &'static str {
        match self {
            Delete::Row => "row",
            Delete::Soft { .. } => "soft",
        }
    }

    /// The column of the mark.
    pub fn mark(&self) -> Option<&str> {
        match self {
            Delete::Row => None,
            Delete::Soft { column } => Some(column),
        }
    }
}

/// What a sink's table does when the source's changes its columns. Columns that only the sink has are never touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Evolve {
    /// The table is its owner's business; what no longer fits halts by name.
    #[default]
    Off,
    /// New columns are added.
    Add,
    /// Columns are added, renamed, dropped and given another type as at the source.
    Full,
}

impl Evolve {
    pub fn as_str(self) -> &'static str {
        match self {
            Evolve::Off => "off",
            Evolve::Add => "add",
            Evolve::Full => "full",
        }
    }
}
