//! `lockstep.toml`: the process, its source, its Kafka and its sinks.
//!
//! Every default stands here once, at the call that reads its key, with the reason for its range; config/lockstep.toml repeats
//! defaults for people, and a test compares the two. A value that is refused is replaced by its default so that reading goes
//! on; nobody sees it, because findings keep the whole configuration back.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::connector::one_table;
use super::files::{self, Password};
use super::findings::{At, Report};
use super::names;
use super::parking;
use super::reader::{Section, Text};
use super::registry::{self, Registry};
use super::sqlite;
use super::topics::{Topics, topics};
use super::units::{self, GIB, KIB, MIB};
use super::url::{self, DatabaseUrl, Fault, RootCert};
use super::wire::wire;
use super::{
    Compression, Consistency, Database, Engine, ForeignKeys, Http, Kafka, Sasl, Security, Sink, Source, SourceSnapshot,
    Wire,
};
use crate::relation::Format;
use crate::relation::names::is_topic_char;

/// Longest topic name that Kafka takes (Topic.java, MAX_NAME_LENGTH).
pub(super) const TOPIC_BYTES_MAX: usize = 249;
/// Longest identifier that Postgres keeps (NAMEDATALEN - 1); it cuts longer ones silently.
pub(super) const IDENTIFIER_BYTES_MAX: usize = 63;
/// Leaves room in a slot's name for `lockstep_`, and in metrics and application names for more.
const NAME_BYTES_MAX: usize = 40;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86400);

/// What `lockstep.toml` says. `None` where a finding says why.
pub(super) struct Process {
    pub name: Option<String>,
    pub create: bool,
    pub reload: bool,
    /// Folder of the connectors, if named.
    pub connectors: Option<Text>,
    pub source: Option<Source>,
    /// In the place of a source.
    pub topics: Option<Topics>,
    pub kafka: Option<Kafka>,
    pub registry: Option<Registry>,
    pub http: Http,
    pub wire: Wire,
    /// In order of name.
    pub sinks: Vec<(Text, Option<Sink>)>,
}

/// Reads the whole file; `dir` is its folder.
pub(super) fn process(top: &mut Section<'_>, dir: &Path) -> Process {
    let name = top.required("name", "name = \"shop\"");
    let name = name.filter(|name| check_name(top, "name", name)).map(|name| name.value);
    // What only matters for defaults goes on with a stand-in.
    let stem = name.clone().unwrap_or_else(|| "name".into());
    let kafka = top.section("kafka", |section| kafka(section, dir, &stem));
    let prefix = kafka.as_ref().map_or(stem.clone(), |kafka| kafka.topic_prefix.clone());
    let delimiter = kafka.as_ref().map(|kafka| kafka.topic_delimiter.clone()).unwrap_or_default();
    let registry = top.section("registry", |section| registry::registry(section, dir));
    let (wire, format_at) =
        top.section("wire", |section| (wire(section, &prefix, &delimiter), section.place("format")));
    if let (Format::Avro, None, Some(at)) = (wire.tables.format, &registry, format_at) {
        without_registry(top.report(), &at);
    }
    let topics = top.section("topics", topics);
    let source = match topics {
        None => top.section("source", |section| source(section, dir, &stem)),
        Some(_) => {
            if let Some(at) = top.section("source", |section| section.there()) {
                let message =
                    "[source] and [topics]: a pipeline reads a database, or topics that another program writes";
                top.report().add(&at, message, "delete one of the two");
            }
            None
        }
    };
    Process {
        name,
        create: top.boolean("create", true),
        reload: top.boolean("reload", true),
        connectors: top.text("connectors"),
        source,
        topics,
        kafka,
        registry,
        http: top.section("http", |section| http(section, dir)),
        wire,
        sinks: top.each("sinks", |name, section| sink(name, section, dir, &stem)),
    }
}

/// Schemas are registered before records are written with them, so Avro needs a registry.
pub(super) fn without_registry(report: &Report, at: &At) {
    let hint = "write [registry] with url = \"https://HOST:8081\" into lockstep.toml";
    report.add(at, "format = \"avro\" needs a schema registry, and none is configured", hint);
}

fn check_name(section: &Section<'_>, what: &str, name: &Text) -> bool {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let value = &name.value;
    if !value.is_empty() && value.len() <= NAME_BYTES_MAX && value.chars().all(legal) {
        return true;
    }
    let message = format!("{what} takes 1 to {NAME_BYTES_MAX} of a-z, 0-9 and _, found {value:?}");
    let lower = value.to_lowercase();
    let mut near: String = lower.chars().map(|c| if legal(c) { c } else { '_' }).take(NAME_BYTES_MAX).collect();
    if near.is_empty() {
        near = "shop".into();
    }
    section.report().add(&name.at, message, format!("write {near}"));
    false
}

fn source(section: &mut Section<'_>, dir: &Path, stem: &str) -> Option<Source> {
    let database = database(section, dir);
    let slot = slot(section).unwrap_or_else(|| format!("lockstep_{stem}"));
    let publication = publication(section).unwrap_or_else(|| format!("lockstep_{stem}"));
    let failover = section.boolean("failover", true);
    // Below a page a read is less than one change; far above, the server sends in small segments again.
    let receive_bytes = section.size("receive_bytes", 32 * KIB, 4 * KIB..=64 * MIB);
    // Zero never naps. A second would be a part of every commit's way.
    let receive_nap = section.duration("receive_nap", 2 * MS, Duration::ZERO..=SECOND);
    // Status goes out at a third of it; below a second a busy machine would look dead, above ten minutes a dead one alive.
    let sender_timeout = section.duration("sender_timeout", 10 * SECOND, SECOND..=10 * MINUTE);
    let signal_table = one_table(section, "signal_table", "public.lockstep_signal");
    let snapshot = section.section("snapshot", snapshot);
    Some(Source {
        database: database?,
        slot,
        publication,
        failover,
        receive_bytes,
        receive_nap,
        sender_timeout,
        signal_table,
        snapshot,
    })
}

fn snapshot(section: &mut Section<'_>) -> SourceSnapshot {
    let usize_of = |count: u32| usize::try_from(count).expect("usize has at least 32 bits");
    SourceSnapshot {
        // Two keep a reader busy that is not far away; each is a session and a core of the source.
        connections: usize_of(section.count("connections", 2, 1..=16)),
        // A chunk is held in memory; rows and time bound how long its snapshot is held, the bytes its size.
        chunk_rows: usize_of(section.count("chunk_rows", 10_000, 1..=1_000_000)),
        chunk_bytes: section.size("chunk_bytes", 8 * MIB, 64 * KIB..=GIB),
        chunk_time: section.duration("chunk_time", 250 * MS, 10 * MS..=MINUTE),
        // Nothing orders the rows of a table without a key, so they are one chunk.
        keyless_bytes: section.size("keyless_bytes", 256 * MIB, MIB..=16 * GIB),
        rows_per_second: rows_per_second(section),
        bytes_per_second: bytes_per_second(section),
        // More than a chunk's time leaves behind on a busy source, less than what fills its disk.
        lag_bytes_max: section.size("lag_bytes_max", 256 * MIB, MIB..=1024 * GIB),
    }
}

fn rows_per_second(section: &mut Section<'_>) -> Option<usize> {
    section.integer("rows_per_second", 1..=1_000_000_000).and_then(|n| usize::try_from(n).ok())
}

fn bytes_per_second(section: &mut Section<'_>) -> Option<usize> {
    section.optional_size("bytes_per_second", 64 * KIB..=16 * GIB)
}

/// Postgres takes only these characters in a slot's name (`ReplicationSlotValidateName`).
fn slot(section: &mut Section<'_>) -> Option<String> {
    let slot = section.text("slot")?;
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if slot.value.is_empty() || slot.value.len() > IDENTIFIER_BYTES_MAX || !slot.value.chars().all(legal) {
        let message =
            format!("Postgres takes 1 to {IDENTIFIER_BYTES_MAX} of a-z, 0-9 and _ for a slot, found {:?}", slot.value);
        section.report().add(&slot.at, message, "write slot = \"lockstep_…\", or delete the line for the default");
    }
    Some(slot.value)
}

fn publication(section: &mut Section<'_>) -> Option<String> {
    let publication = section.text("publication")?;
    check_identifier(section, "publication", &publication);
    Some(publication.value)
}

/// Says what an identifier can't be in Postgres.
pub(super) fn check_identifier(section: &Section<'_>, what: &str, name: &Text) {
    let (value, report) = (&name.value, section.report());
    if value.is_empty() {
        report.add(&name.at, format!("{what} is empty"), format!("write the name of the {what}"));
    } else if value.len() > IDENTIFIER_BYTES_MAX {
        let message = format!("{what} has {} bytes, Postgres keeps {IDENTIFIER_BYTES_MAX} of them", value.len());
        report.add(&name.at, message, "write the name as Postgres has it");
    }
}

/// `url` and the keys beside it: password, certificate authority.
fn database(section: &mut Section<'_>, dir: &Path) -> Option<Database> {
    let url = section.required("url", "url = \"postgres://USER@HOST:5432/DATABASE\"");
    database_at(section, dir, url, url::parse)
}

fn database_at(
    section: &mut Section<'_>,
    dir: &Path,
    url: Option<Text>,
    parse: fn(&str) -> Result<DatabaseUrl, Vec<Fault>>,
) -> Option<Database> {
    let password = files::password(section, "password_file", "password_env", dir);
    let ca_file = files::certificates(section, "ca_file", dir);
    let (url, report) = (url?, section.report());
    let mut parsed = match parse(&url.value) {
        Ok(parsed) => parsed,
        Err(faults) => {
            for fault in faults {
                report.add(&url.at, fault.message, fault.hint);
            }
            return None;
        }
    };
    if let (Some(_), Some(Password { key, .. })) = (&parsed.password, &password) {
        report.add(&key.at, "the password is given twice, here and in url", "delete it from url");
    }
    if let Some(RootCert::File(path)) = &mut parsed.root_cert {
        *path = dir.join(&path);
        files::check_certificates(report, "sslrootcert", &url, path);
    }
    let root_cert = match (parsed.root_cert.take(), ca_file) {
        (Some(_), Some((key, _))) => {
            let message = "the certificate authority is given twice, here and as sslrootcert in url";
            report.add(&key.at, message, "delete one of them");
            return None;
        }
        (root_cert, ca_file) => root_cert.or(ca_file.map(|(_, path)| RootCert::File(path))),
    };
    match url::tls(&parsed.host, parsed.sslmode, root_cert) {
        Ok(tls) => Some(parsed.with(tls, password.map(|password| password.secret))),
        Err(fault) => {
            report.add(&url.at, fault.message, fault.hint);
            None
        }
    }
}

fn kafka(section: &mut Section<'_>, dir: &Path, stem: &str) -> Option<Kafka> {
    let brokers = brokers(section);
    let (topic_prefix, ledger) = ledger(section, stem);
    let topic_delimiter = names::delimiter(section);
    let compressions = [
        ("none", Compression::None),
        ("lz4", Compression::Lz4),
        ("zstd", Compression::Zstd),
        ("snappy", Compression::Snappy),
        ("gzip", Compression::Gzip),
    ];
    let compression = section.choice("compression", &compressions).unwrap_or(Compression::Lz4);
    // Below minutes Kafka's own check interval decides; above a century it is a typo.
    let retention = section.duration("retention", 7 * DAY, SECOND..=36_500 * DAY);
    let replication_factor = section.integer("replication_factor", 1..=100);
    let replication_factor = replication_factor.map(|factor| i32::try_from(factor).expect("at most 100"));
    // Kafka's clients stop at 1 000 000 000 bytes (librdkafka, message.max.bytes).
    let record_bytes_max = section.size("record_bytes_max", 8 * MIB, 64 * KIB..=512 * MIB);
    let in_flight_bytes_max = in_flight_bytes_max(section, record_bytes_max);
    // A longer wait than a second is no batching, it is a stop.
    let linger = section.duration("linger", 5 * MS, Duration::ZERO..=SECOND);
    // A checkpoint's pause is part of every commit's way to a sink.
    let checkpoint_interval = section.duration("checkpoint_interval", 5 * MS, Duration::ZERO..=10 * SECOND);
    // Fewer entries than 10 between bases, and the ledger is mostly bases; a start reads at most this many after one.
    let base_entries = section.count("base_entries", 1_000, 10..=100_000);
    let base_interval = section.duration("base_interval", MINUTE, SECOND..=HOUR);
    // An election of a leader takes a few seconds; a source that can't be shut down for a minute is killed.
    let grace = section.duration("grace", 30 * SECOND, SECOND..=HOUR);
    let security = security(section, dir);
    Some(Kafka {
        brokers: brokers?,
        topic_prefix,
        topic_delimiter,
        ledger,
        compression,
        retention,
        replication_factor,
        record_bytes_max,
        in_flight_bytes_max,
        linger,
        security,
        checkpoint_interval,
        base_entries: u64::from(base_entries),
        base_interval,
        grace,
    })
}

/// Room for two of the largest records, so that one is on its way while the next is written.
fn in_flight_bytes_max(section: &mut Section<'_>, record_bytes_max: usize) -> usize {
    let (key, least) = ("in_flight_bytes_max", 2 * record_bytes_max);
    // The client frees a batch as a whole, so twice as much can be held. 16 MiB are 50 ms of the fastest stream there is.
    let bytes = section.size(key, (16 * MIB).max(least), MIB..=16 * GIB);
    if bytes < least
        && let Some(at) = section.place(key)
    {
        let (found, record) = (units::show_size(bytes), units::show_size(record_bytes_max));
        let message = format!("{key} must be at least twice record_bytes_max ({record}), found {found}");
        section.report().add(&at, message, format!("write {key} = \"{}\"", units::show_size(least)));
    }
    bytes
}

/// `topic_prefix` and `ledger`.
fn ledger(section: &mut Section<'_>, stem: &str) -> (String, String) {
    let (prefix, ledger) = (section.text("topic_prefix"), section.text("ledger"));
    check_topic(section, "topic_prefix", prefix.as_ref());
    check_topic(section, "ledger", ledger.as_ref());
    let place = ledger.as_ref().or(prefix.as_ref()).map(|text| text.at.clone());
    let prefix = prefix.map_or_else(|| stem.to_owned(), |prefix| prefix.value);
    let ledger = ledger.map_or_else(|| format!("{prefix}.ledger"), |ledger| ledger.value);
    if let (Some(at), true) = (place, ledger.len() > TOPIC_BYTES_MAX) {
        let message = format!("the ledger's topic has {} bytes, Kafka takes {TOPIC_BYTES_MAX}", ledger.len());
        section.report().add(&at, message, "write a shorter name");
    }
    (prefix, ledger)
}

fn brokers(section: &mut Section<'_>) -> Option<String> {
    let brokers = section.required("brokers", "brokers = \"HOST:9092\"")?;
    let wrong = |broker: &&str| {
        let (host, port) = match broker.rsplit_once(':') {
            Some((host, port)) if !host.starts_with('[') || host.ends_with(']') => (host, port),
            _ => (*broker, "9092"),
        };
        let illegal = |c: char| c.is_whitespace() || c.is_control() || "/@?#".contains(c);
        host.is_empty() || host.contains(illegal) || !port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    let list: Vec<&str> = brokers.value.split(',').map(str::trim).collect();
    if let Some(broker) = list.iter().copied().find(wrong) {
        let message = format!("brokers takes HOST:PORT with commas between, found {broker:?}");
        section.report().add(&brokers.at, message, "write brokers = \"kafka1:9092,kafka2:9092\"");
        return None;
    }
    Some(list.join(","))
}

/// Says what Kafka doesn't take as a topic's name, or as the start of one.
pub(super) fn check_topic(section: &Section<'_>, what: &str, name: Option<&Text>) {
    let Some(Text { value, at }) = name else { return };
    if value.is_empty() || value == "." || value == ".." || value.chars().any(|c| !is_topic_char(c)) {
        let message = format!("{what} takes letters, digits, '.', '_' and '-', as Kafka does, found {value:?}");
        let near: String = value.chars().map(|c| if is_topic_char(c) { c } else { '_' }).collect();
        let near = if near.trim_matches('.').is_empty() { "shop" } else { near.as_str() };
        section.report().add(at, message, format!("write {what} = {near:?}"));
    }
}

fn security(section: &mut Section<'_>, dir: &Path) -> Security {
    let tls = section.boolean("tls", false);
    let ca_file = files::certificates(section, "ca_file", dir);
    if let (false, Some((key, _))) = (tls, &ca_file) {
        section.report().add(&key.at, "ca_file has no effect while TLS is off", "write tls = true beside it");
    }
    let sasl = sasl(section, dir);
    Security { tls, ca_file: ca_file.map(|(_, path)| path), sasl }
}

fn sasl(section: &mut Section<'_>, dir: &Path) -> Option<Sasl> {
    let mechanisms = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
    let mechanism = section.text("sasl_mechanism");
    let username = section.text("sasl_username");
    let password_at: Option<At> =
        ["sasl_password_file", "sasl_password_env"].into_iter().find_map(|key| section.place(key));
    let password = files::password(section, "sasl_password_file", "sasl_password_env", dir);
    let report = section.report();
    let Some(mechanism) = mechanism else {
        if let Some(at) = username.map(|username| username.at).or(password_at) {
            let hint = format!("write sasl_mechanism = \"SCRAM-SHA-512\" (or {})", mechanisms[..2].join(", "));
            report.add(&at, "sasl_mechanism is missing beside this", hint);
        }
        return None;
    };
    if !mechanisms.contains(&mechanism.value.as_str()) {
        let upper = mechanism.value.to_uppercase();
        let near = mechanisms.into_iter().find(|known| upper == *known || upper == known.replace('-', "_"));
        let message = format!("sasl_mechanism must be one of {}, found {:?}", mechanisms.join(", "), mechanism.value);
        report.add(&mechanism.at, message, format!("write sasl_mechanism = {:?}", near.unwrap_or("SCRAM-SHA-512")));
    }
    if username.is_none() {
        report.add(&mechanism.at, "sasl_username is missing beside sasl_mechanism", "write sasl_username = \"…\"");
    }
    if password_at.is_none() {
        let message = "the password is missing beside sasl_mechanism";
        report.add(&mechanism.at, message, "write sasl_password_file = \"…\" or sasl_password_env = \"NAME\"");
    }
    Some(Sasl { mechanism: mechanism.value, username: username?.value, password: password?.secret })
}

fn http(section: &mut Section<'_>, dir: &Path) -> Http {
    let listen = listen(section);
    // Relative ones begin where the configuration is, wherever the process was started.
    let admin = section.text("admin").map(|admin| dir.join(admin.value));
    Http { listen, admin }
}

fn listen(section: &mut Section<'_>) -> Option<SocketAddr> {
    let default = Some(SocketAddr::from(([127, 0, 0, 1], 9464)));
    let Some(listen) = section.text("listen") else { return default };
    if listen.value == "off" {
        return None;
    }
    match listen.value.parse::<SocketAddr>() {
        Ok(address) => Some(address),
        Err(_) => {
            let port = listen.value.rsplit(':').next().and_then(|port| port.parse::<u16>().ok()).unwrap_or(9464);
            let host = if listen.value.starts_with([':', '*']) { "0.0.0.0" } else { "127.0.0.1" };
            let message = format!("listen takes ADDRESS:PORT with a numeric address, or off, found {:?}", listen.value);
            section.report().add(&listen.at, message, format!("write listen = \"{host}:{port}\""));
            default
        }
    }
}

/// The scheme of its url says what kind of database a sink is.
fn engine(section: &mut Section<'_>, dir: &Path) -> Option<Engine> {
    let url = section.required("url", "url = \"postgres://USER@HOST:5432/DATABASE\"");
    if let Some(file) = url.as_ref().and_then(|url| sqlite::file(section.report(), url, dir)) {
        return file.map(Engine::Sqlite);
    }
    let mariadb = url.as_ref().is_some_and(|url| url::is_mariadb(&url.value));
    let parse = if mariadb { url::parse_mariadb } else { url::parse };
    let database = database_at(section, dir, url, parse)?;
    Some(if mariadb { Engine::MariaDb(database) } else { Engine::Postgres(database) })
}

fn sink(name: Text, section: &mut Section<'_>, dir: &Path, stem: &str) -> (Text, Option<Sink>) {
    check_name(section, "a sink's name", &name);
    let engine = engine(section, dir);
    // An interval is folded in memory up to these, then written into the open transaction.
    let batch_rows_max = section.count("batch_rows_max", 10_000, 1..=1_000_000);
    let batch_bytes_max = section.size("batch_bytes_max", 8 * MIB, 64 * KIB..=GIB);
    let (rows_per_second, bytes_per_second) = (rows_per_second(section), bytes_per_second(section));
    let span_wait = section.duration("span_wait", MINUTE, SECOND..=HOUR);
    // Below 100 ms ordinary readers of the sink would stop it.
    let lock_timeout = section.duration("lock_timeout", 30 * SECOND, 100 * MS..=HOUR);
    // The owner speaks five times as often. With less than a second a busy machine loses its lease again and again.
    let lease_timeout = section.duration("lease_timeout", 15 * SECOND, SECOND..=HOUR);
    let words = [ForeignKeys::Always, ForeignKeys::AfterLoad].map(|when| (when.as_str(), when));
    let foreign_keys = section.choice("foreign_keys", &words).unwrap_or_default();
    let words = [Consistency::Transaction, Consistency::Row].map(|what| (what.as_str(), what));
    let consistency = section.choice("consistency", &words).unwrap_or_default();
    let synchronous_commit = section.boolean("synchronous_commit", true);
    let parking = parking::parking(section, consistency, stem, &name.value);
    let sink = engine.map(|engine| Sink {
        name: name.value.clone(),
        engine,
        batch_rows_max: usize::try_from(batch_rows_max).expect("usize has at least 32 bits"),
        batch_bytes_max,
        rows_per_second,
        bytes_per_second,
        span_wait,
        lock_timeout,
        lease_timeout,
        foreign_keys,
        consistency,
        synchronous_commit,
        parking,
    });
    (name, sink)
}
