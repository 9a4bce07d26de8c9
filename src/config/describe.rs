//! The configuration in force, as TOML: every value with its default filled in, every secret left out.
//!
//! For `check` and for support: it can be pasted into an issue. It is not read back; a test only makes sure that it is TOML
//! and that its keys are the ones that people write.

use std::fmt::Write;

use super::constants;
use super::outbox;
use super::pattern::TableTemplate;
use super::records;
use super::shape;
use super::sqlite;
use super::units::{show_duration, show_size};
use super::url;
use super::wire::{BINARIES, DECIMALS, FAILURES, FORMATS, HSTORES, INTERVALS, NAMES, TIMES, UNKNOWNS, word};
use super::{
    Compression, Config, Database, Engine, Registry, RegistryAuth, Route, Sink, SourceSnapshot, Table, TablePattern,
    TableWire, Tls,
};

/// Every value as it is in force, without secrets.
pub fn describe(config: &Config) -> String {
    let mut out = String::new();
    pair(&mut out, "name", text(&config.name));
    pair(&mut out, "create", config.create.to_string());
    pair(&mut out, "reload", config.reload.to_string());
    match &config.topics {
        Some(topics) => {
            out.push_str("\n[topics]\n");
            topics.pairs().into_iter().for_each(|(key, value)| pair(&mut out, key, value));
        }
        None => source(&mut out, config),
    }
    kafka(&mut out, config);
    if let Some(each) = &config.registry {
        registry(&mut out, each);
    }
    out.push_str("\n[http]\n");
    pair(&mut out, "listen", text(&config.http.listen.map_or("off".into(), |listen| listen.to_string())));
    if let Some(admin) = &config.http.admin {
        pair(&mut out, "admin", text(&admin.display().to_string()));
    }
    wire(&mut out, config);
    for each in &config.sinks {
        sink(&mut out, each);
    }
    for each in config.tables.iter().filter(|table| !table.by_pattern) {
        table(&mut out, each);
    }
    for each in &config.routes {
        route(&mut out, each);
    }
    out
}

fn source(out: &mut String, config: &Config) {
    let source = &config.source;
    out.push_str("\n[source]\n");
    database(out, &source.database, &source.database.to_string());
    pair(out, "slot", text(&source.slot));
    pair(out, "publication", text(&source.publication));
    pair(out, "failover", source.failover.to_string());
    pair(out, "receive_bytes", text(&show_size(source.receive_bytes)));
    pair(out, "receive_nap", text(&show_duration(source.receive_nap)));
    pair(out, "sender_timeout", text(&show_duration(source.sender_timeout)));
    if let Some(table) = &source.signal_table {
        pair(out, "signal_table", text(&table.quoted()));
    }
    out.push_str("\n[source.snapshot]\n");
    snapshot(out, &source.snapshot);
}

fn snapshot(out: &mut String, snapshot: &SourceSnapshot) {
    pair(out, "connections", snapshot.connections.to_string());
    pair(out, "chunk_rows", snapshot.chunk_rows.to_string());
    pair(out, "chunk_bytes", text(&show_size(snapshot.chunk_bytes)));
    pair(out, "chunk_time", text(&show_duration(snapshot.chunk_time)));
    pair(out, "keyless_bytes", text(&show_size(snapshot.keyless_bytes)));
    rates(out, snapshot.rows_per_second, snapshot.bytes_per_second);
    pair(out, "lag_bytes_max", text(&show_size(snapshot.lag_bytes_max)));
}

fn wire(out: &mut String, config: &Config) {
    let wire = &config.wire;
    out.push_str("\n[wire]\n");
    table_wire(out, &wire.tables);
    pair(out, "context_headers", wire.context_headers.to_string());
    pair(out, "transaction_metadata", wire.transaction_topic.is_some().to_string());
    if let Some(topic) = &wire.transaction_topic {
        pair(out, "transaction_topic", text(topic));
    }
    pair(out, "logical_messages", wire.messages.is_some().to_string());
    if let Some(messages) = &wire.messages {
        pair(out, "message_topic", text(&messages.topic));
        if let Some(include) = &messages.include {
            pair(out, "message_prefixes", list(include));
        }
        pair(out, "message_prefixes_excluded", list(&messages.exclude));
    }
    if let Some(heartbeat) = &wire.heartbeat {
        pair(out, "heartbeat_interval", text(&show_duration(heartbeat.interval)));
        pair(out, "heartbeat_topic", text(&heartbeat.topic));
        if let Some(query) = &heartbeat.query {
            pair(out, "heartbeat_query", text(query));
        }
    }
}

fn table_wire(out: &mut String, wire: &TableWire) {
    let modes = &wire.modes;
    pair(out, "format", text(word(&FORMATS, wire.format)));
    pair(out, "decimal_handling", text(word(&DECIMALS, modes.decimal)));
    pair(out, "time_precision", text(word(&TIMES, modes.time)));
    pair(out, "interval_handling", text(word(&INTERVALS, modes.interval)));
    pair(out, "binary_handling", text(word(&BINARIES, modes.binary)));
    pair(out, "hstore_handling", text(word(&HSTORES, modes.hstore)));
    pair(out, "unknown_types", text(word(&UNKNOWNS, modes.unknown)));
    pair(out, "conversion_failure", text(word(&FAILURES, modes.conversion_failure)));
    pair(out, "null_as_default", modes.null_as_default.to_string());
    pair(out, "schemas", modes.schemas.to_string());
    pair(out, "propagate_source_type", modes.source_types.to_string());
    pair(out, "unavailable_value_placeholder", text(&modes.placeholder.0));
    pair(out, "field_name_adjustment", text(word(&NAMES, modes.field_names)));
    pair(out, "schema_name_adjustment", text(word(&NAMES, modes.schema_names)));
    pair(out, "tombstones", wire.tombstones.to_string());
    for (key, value) in records::shown(&wire.records) {
        pair(out, key, value.to_string());
    }
    let skipped: Vec<String> = wire.skipped.iter().map(char::to_string).collect();
    pair(out, "skipped_operations", list(&skipped));
    pair(out, "snapshot", text(wire.snapshot.as_str()));
}

pub(super) fn list(items: &[String]) -> String {
    format!("[{}]", items.iter().map(|item| text(item)).collect::<Vec<_>>().join(", "))
}

fn kafka(out: &mut String, config: &Config) {
    let kafka = &config.kafka;
    let compression = match kafka.compression {
        Compression::None => "none",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
        Compression::Snappy => "snappy",
        Compression::Gzip => "gzip",
    };
    out.push_str("\n[kafka]\n");
    pair(out, "brokers", text(&kafka.brokers));
    pair(out, "topic_prefix", text(&kafka.topic_prefix));
    pair(out, "topic_delimiter", text(&kafka.topic_delimiter.0));
    pair(out, "ledger", text(&kafka.ledger));
    pair(out, "compression", text(compression));
    pair(out, "retention", text(&show_duration(kafka.retention)));
    if let Some(factor) = kafka.replication_factor {
        pair(out, "replication_factor", factor.to_string());
    }
    pair(out, "record_bytes_max", text(&show_size(kafka.record_bytes_max)));
    pair(out, "in_flight_bytes_max", text(&show_size(kafka.in_flight_bytes_max)));
    pair(out, "linger", text(&show_duration(kafka.linger)));
    pair(out, "checkpoint_interval", text(&show_duration(kafka.checkpoint_interval)));
    pair(out, "base_entries", kafka.base_entries.to_string());
    pair(out, "base_interval", text(&show_duration(kafka.base_interval)));
    pair(out, "grace", text(&show_duration(kafka.grace)));
    pair(out, "tls", kafka.security.tls.to_string());
    if let Some(ca_file) = &kafka.security.ca_file {
        pair(out, "ca_file", text(&ca_file.display().to_string()));
    }
    if let Some(sasl) = &kafka.security.sasl {
        pair(out, "sasl_mechanism", text(&sasl.mechanism));
        pair(out, "sasl_username", text(&sasl.username));
        out.push_str("# the SASL password is set\n");
    }
}

fn registry(out: &mut String, registry: &Registry) {
    let urls: Vec<String> = registry.endpoints.iter().map(ToString::to_string).collect();
    out.push_str("\n[registry]\n");
    pair(out, "url", text(&urls.join(",")));
    match &registry.auth {
        None => {}
        Some(RegistryAuth::Basic { username, .. }) => {
            pair(out, "username", text(username));
            out.push_str("# the password is set\n");
        }
        Some(RegistryAuth::Bearer(_)) => out.push_str("# the token is set\n"),
    }
    if let Some(ca_file) = &registry.ca_file {
        pair(out, "ca_file", text(&ca_file.display().to_string()));
    }
    pair(out, "timeout", text(&show_duration(registry.timeout)));
}

fn database(out: &mut String, database: &Database, url: &str) {
    let mode = match database.tls {
        Tls::Off => "disable",
        Tls::Verified { .. } => "verify-full",
    };
    let timeout = database.connect_timeout.as_secs();
    pair(out, "url", text(&format!("{url}?sslmode={mode}&connect_timeout={timeout}")));
    if let Tls::Verified { ca_file: Some(ca_file) } = &database.tls {
        pair(out, "ca_file", text(&ca_file.display().to_string()));
    }
    if database.password.is_some() {
        out.push_str("# the password is set\n");
    }
}

fn rates(out: &mut String, rows_per_second: Option<usize>, bytes_per_second: Option<usize>) {
    if let Some(rows) = rows_per_second {
        pair(out, "rows_per_second", rows.to_string());
    }
    if let Some(bytes) = bytes_per_second {
        pair(out, "bytes_per_second", text(&show_size(bytes)));
    }
}

fn sink(out: &mut String, sink: &Sink) {
    let _ = writeln!(out, "\n[sinks.{}]", sink.name);
    match &sink.engine {
        Engine::Postgres(each) => database(out, each, &each.to_string()),
        Engine::MariaDb(each) => database(out, each, &url::of_mariadb(each)),
        Engine::Sqlite(path) => pair(out, "url", text(&sqlite::url(path))),
    }
    pair(out, "batch_rows_max", sink.batch_rows_max.to_string());
    pair(out, "batch_bytes_max", text(&show_size(sink.batch_bytes_max)));
    rates(out, sink.rows_per_second, sink.bytes_per_second);
    pair(out, "span_wait", text(&show_duration(sink.span_wait)));
    pair(out, "lock_timeout", text(&show_duration(sink.lock_timeout)));
    pair(out, "lease_timeout", text(&show_duration(sink.lease_timeout)));
    pair(out, "foreign_keys", text(sink.foreign_keys.as_str()));
    pair(out, "consistency", text(sink.consistency.as_str()));
    pair(out, "synchronous_commit", sink.synchronous_commit.to_string());
    pair(out, "on_refused", text(sink.parking.on_refused.as_str()));
    pair(out, "parked_topic", text(&sink.parking.topic));
    pair(out, "parked_max", sink.parking.records_max.to_string());
}

fn table(out: &mut String, table: &Table) {
    // Connectors are files of their own; here they follow as one list.
    out.push_str("\n[[connectors]]\n");
    pair(out, "table", text(&table.name.quoted()));
    pair(out, "topic", text(&table.topic));
    let targets: Vec<String> = table.sinks.iter().map(|sink| sink.table.quoted()).collect();
    alike(out, table, &targets);
    constants::describe(out, table.shape.constants.iter().map(constants::shown));
}

fn route(out: &mut String, route: &Route) {
    out.push_str("\n[[connectors]]\n");
    let list = |patterns: &[TablePattern]| {
        toml::Value::from(patterns.iter().map(ToString::to_string).collect::<Vec<_>>()).to_string()
    };
    pair(out, "table", list(&route.include));
    pair(out, "exclude", list(&route.exclude));
    if let Some(topic) = &route.topic {
        pair(out, "topic", text(&topic.to_string()));
    }
    let named = |target: &Option<_>| target.as_ref().map_or_else(|| "{schema}.{table}".to_owned(), ToString::to_string);
    let targets: Vec<String> = route.targets.iter().map(|target: &Option<TableTemplate>| named(target)).collect();
    alike(out, &route.like, &targets);
    constants::describe(out, route.constants.iter().map(|(column, template)| (column, template.to_string())));
}

/// What a table has besides its name and its topic; `targets` are its sinks' tables.
fn alike(out: &mut String, table: &Table, targets: &[String]) {
    pair(out, "partitions", table.partitions.to_string());
    pair(out, "insert_only", table.insert_only.to_string());
    pair(out, "snapshot", text(table.snapshot.as_str()));
    pair(out, "snapshot_order", table.snapshot_order.to_string());
    shape::describe(out, table);
    out.push_str("\n[connectors.wire]\n");
    table_wire(out, &table.wire);
    if let Some(condition) = &table.wire.modes.snapshot_where {
        pair(out, "snapshot_where", text(condition));
    }
    if let Some(each) = &table.wire.modes.outbox {
        out.push_str("\n[connectors.outbox]\n");
        for (key, value) in outbox::shown(each) {
            pair(out, key, value.to_string());
        }
    }
    for (sink, target) in table.sinks.iter().zip(targets) {
        let _ = writeln!(out, "\n[connectors.sinks.{}]", sink.sink);
        pair(out, "table", text(target));
        if let Some(columns) = &sink.columns {
            pair(out, "columns", toml::Value::from(columns.clone()).to_string());
        }
        pair(out, "evolve", text(sink.evolve.as_str()));
        pair(out, "truncate", text(sink.truncate.as_str()));
        pair(out, "delete", text(sink.delete.as_str()));
        if let Some(column) = sink.delete.mark() {
            pair(out, "deleted_column", text(column));
        }
        pair(out, "on_missing", text(sink.on_missing.as_str()));
        for value in &sink.values {
            pair(out, &format!("values.{}", text(&value.column)), value.expression.to_string());
        }
    }
}

pub(super) fn pair(out: &mut String, key: &str, value: String) {
    let _ = writeln!(out, "{key} = {value}");
}

/// A TOML string.
pub(super) fn text(value: &str) -> String {
    toml::Value::from(value).to_string()
}
