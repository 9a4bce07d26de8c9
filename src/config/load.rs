//! From a folder to a [`Config`]: reads the files, compares them with each other, resolves what they leave out.
//!
//! Two passes. The first reads every file by itself, also when another has findings. The second checks what only shows
//! between files: a sink that exists, one table per topic, one writer per sink table. It skips what depends on a file that
//! could not be read, so that one typo is one finding.
//!
//! Not here: whether the databases have these tables. `check` asks them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::connector::{Connector, ConnectorSink, connector};
use super::constants::{self, mixed, mixed_records};
use super::files;
use super::findings::{At, File, Findings, Report};
use super::outbox;
use super::parking;
use super::process::{Process, TOPIC_BYTES_MAX, process, without_registry};
use super::reader::{Env, Text, nearest, read};
use super::records::{self as forms, Places};
use super::snapshot::{self, resolved};
use super::topics::{check_table, resolve_sink};
use super::{Config, Database, OnRefused, Read, Route, Sink, SinkTable, Snapshot, Table, Wire};
use crate::relation::names::topic_collision as collision;
use crate::relation::{Format, TableName};

/// The process's own file in the configuration's folder.
pub const FILE: &str = "lockstep.toml";
const CONNECTORS: &str = "connectors";

/// Reads `dir/lockstep.toml` and the connectors beside it. `env` looks up environment variables.
///
/// # Errors
/// Every finding of every file, in order of file and place.
pub fn load(dir: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Findings> {
    let report = Report::default();
    let main = dir.join(FILE);
    let process = read_process(dir, &main, env, &report);
    let connectors = read_connectors(dir, process.as_ref(), env, &report);
    let config = process.and_then(|process| resolve(process, connectors, &report));
    match config {
        Some(config) if report.is_empty() => Ok(config),
        _ => {
            assert!(!report.is_empty(), "what has no finding is a configuration");
            Err(report.into_findings(&main))
        }
    }
}

fn read_process(dir: &Path, path: &Path, env: &Env<'_>, report: &Report) -> Option<Process> {
    if dir.is_file() {
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let message = format!("the configuration is a folder that holds {FILE}, this is a file");
        report.add_file(dir, message, format!("lockstep run --config {}", parent.display()));
        return None;
    }
    if !path.exists() {
        let message = format!("there is no {FILE} in {}", dir.display());
        report.add_file(path, message, format!("lockstep run --config DIR, where DIR holds {FILE}"));
        return None;
    }
    let file = read_file(path, report)?;
    read(&file, env, report, |top| process(top, dir))
}

fn read_file(path: &Path, report: &Report) -> Option<Rc<File>> {
    match files::read(path) {
        Ok(text) => Some(Rc::new(File { path: path.to_owned(), text })),
        Err((message, hint)) => {
            report.add_file(path, message, hint);
            None
        }
    }
}

/// The connectors that could be read; `complete` if that is all of them.
struct Connectors {
    list: Vec<Connector>,
    complete: bool,
    folder: PathBuf,
}

fn read_connectors(dir: &Path, process: Option<&Process>, env: &Env<'_>, report: &Report) -> Connectors {
    let unread = || Connectors { list: Vec::new(), complete: false, folder: PathBuf::new() };
    let named = process.and_then(|process| process.connectors.as_ref());
    let Some(folder) = connectors_folder(dir, named) else {
        match (named, process) {
            (Some(text), _) => {
                let message = format!("connectors: {} is not a folder", dir.join(&text.value).display());
                report.add(&text.at, message, "write another path; relative ones begin at the folder of lockstep.toml");
            }
            (None, Some(_)) => no_connector(&dir.join(CONNECTORS), report),
            // Without its own file there may be no configuration here at all.
            (None, None) => {}
        }
        return unread();
    };
    let paths = match toml_files(&folder) {
        Ok(paths) => paths,
        Err(error) => {
            let hint = format!("ls -ld {}", folder.display());
            report.add_file(&folder, format!("the folder can't be read: {error}"), hint);
            return unread();
        }
    };
    if paths.is_empty() && process.is_some() {
        no_connector(&folder, report);
        return unread();
    }
    let wire = process.map(|process| process.wire.tables.clone()).unwrap_or_default();
    let read_one = |path: &PathBuf| {
        let file = read_file(path, report)?;
        read(&file, env, report, |top| connector(top, &wire))
    };
    let list: Vec<Connector> = paths.iter().filter_map(read_one).collect();
    Connectors { complete: list.len() == paths.len(), list, folder }
}

fn no_connector(folder: &Path, report: &Report) {
    let folder_shown = folder.display();
    let hint = format!("mkdir -p {folder_shown} && echo 'table = \"public.products\"' > {folder_shown}/products.toml");
    report.add_file(folder, "there is no connector: no table is named", hint);
}

/// `connectors/` inside the folder or else beside it, unless named.
fn connectors_folder(dir: &Path, named: Option<&Text>) -> Option<PathBuf> {
    let beside = match dir.file_name() {
        Some(_) => dir.with_file_name(CONNECTORS),
        // `.`, `..` and `/` have no name to replace.
        None => dir.join("..").join(CONNECTORS),
    };
    let candidates = match named {
        Some(text) => vec![dir.join(&text.value)],
        None => vec![dir.join(CONNECTORS), beside],
    };
    candidates.into_iter().find(|path| path.is_dir())
}

/// The content of every file that a configuration was read from: equal for as long as nobody edits one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files(BTreeMap<PathBuf, Option<Vec<u8>>>);

impl Files {
    /// `connectors` is the folder of connectors.
    pub fn read(dir: &Path, connectors: &Path) -> Files {
        let paths = toml_files(connectors).unwrap_or_default().into_iter().chain([dir.join(FILE)]);
        Files(paths.map(|path| (path.clone(), std::fs::read(path).ok())).collect())
    }
}

/// In order of name. Hidden files are left out: editors and mounts keep their own there.
fn toml_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.extension().is_some_and(|extension| extension == "toml") && !hidden && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// A table of a connector with what it leaves out filled in, and where things stand.
struct Routed {
    table: Table,
    at: At,
    topic_at: At,
    sinks_at: Vec<At>,
    places: Places,
}

fn resolve(process: Process, connectors: Connectors, report: &Report) -> Option<Config> {
    let Process { name, create, reload, connectors: _, source, topics: foreign, kafka, registry, http, wire, sinks } =
        process;
    let Connectors { list, complete, folder } = connectors;
    unused_sinks(&sinks, &list, complete, report);
    let names: Vec<&str> = sinks.iter().map(|(name, _)| name.value.as_str()).collect();
    unknown_sinks(&names, &list, report);
    // Topics are only comparable when their prefix is known; tables always are.
    let prefix = kafka.as_ref().map_or("prefix", |kafka| kafka.topic_prefix.as_str());
    for connector in list.iter().filter(|connector| registry.is_none() && connector.wire.format == Format::Avro) {
        // What lockstep.toml says for all has its finding.
        if let Some(at) = &connector.format_at {
            without_registry(report, at);
        }
    }
    let (mut routed, mut routes) = (Vec::new(), Vec::new());
    for (by_name, by_pattern) in list.into_iter().map(|connector| route(connector, prefix)) {
        routed.extend(by_name);
        routes.extend(by_pattern);
    }
    let mut routed = without_twins(routed, report);
    let signals = source.as_ref().and_then(|source| source.signal_table.as_ref());
    for entry in routed.iter().filter(|entry| Some(&entry.table.name) == signals) {
        let message = format!("table {} is source.signal_table: its rows are signals and no data", entry.table.name);
        report.add(&entry.at, message, format!("delete this connector, or name another signal_table in {FILE}"));
    }
    if let Some(kafka) = &kafka {
        let mut events = event_topics(&wire);
        let parks = |sink: &&Sink| sink.parking.on_refused == OnRefused::Park;
        let parking = sinks.iter().filter_map(|(_, sink)| sink.as_ref()).filter(parks);
        events.extend(parking.map(|sink| ("records that are parked", sink.parking.topic.as_str())));
        topics(&routed, &kafka.ledger, &events, report);
    }
    for Routed { table, at, sinks_at, places, .. } in routed.iter().chain(routes.iter().map(|(like, _)| like)) {
        forms::check(table, at, places, report);
        snapshot::check(table, at, sinks_at, report);
        parking::check(table, sinks_at, sinks.iter().filter_map(|(_, sink)| sink.as_ref()), report);
    }
    let outbox_at = |Routed { at, places, .. }: &Routed| places.get("outbox").unwrap_or(at).clone();
    for (like, _) in &routes {
        by_name_alone(like, &outbox_at(like), report);
    }
    let outboxes: Vec<(&Table, At)> = routed.iter().map(|routed| (&routed.table, outbox_at(routed))).collect();
    outbox::compare(outboxes.iter().map(|(table, at)| (*table, at)), report);
    let resolved: Vec<&Sink> = sinks.iter().filter_map(|(_, sink)| sink.as_ref()).collect();
    same_sink_tables(&routed, &resolved, report);
    loops(&routed, source.as_ref().map(|source| &source.database), &resolved, report);
    routed.sort_by(|a, b| a.table.name.cmp(&b.table.name));
    if foreign.is_some() {
        routed.iter().chain(routes.iter().map(|(like, _)| like)).for_each(|r| check_table(&r.table, &r.at, report));
    }
    let mut sinks = sinks.into_iter().map(|(_, sink)| sink).collect::<Option<Vec<Sink>>>()?;
    if foreign.is_some() {
        sinks = sinks.into_iter().map(resolve_sink).collect();
    }
    Some(Config {
        name: name?,
        create,
        reload,
        connectors: folder,
        source: if foreign.is_some() { Read(None) } else { Read(Some(source?)) },
        topics: foreign,
        kafka: kafka?,
        registry,
        http,
        wire,
        sinks,
        tables: routed.into_iter().map(|routed| routed.table).collect(),
        routes: routes.into_iter().map(|(_, route)| route).collect(),
    })
}

/// The tables that a connector names one by one, and its patterns with what every table of them is like.
fn route(connector: Connector, prefix: &str) -> (Vec<Routed>, Option<(Routed, Route)>) {
    let Connector {
        tables,
        patterns,
        exclude,
        topic,
        partitions,
        insert_only,
        shape,
        constants,
        skip_unchanged,
        snapshot,
        snapshot_order,
        mut wire,
        places,
        format_at: _,
        sinks,
    } = connector;
    let Some(first) = tables.iter().map(|(_, at)| at).chain(patterns.iter().map(|(_, at)| at)).next().cloned() else {
        return (Vec::new(), None);
    };
    let (topic, topic_at) = topic.unzip();
    let (mut targets, mut sinks_at) = (Vec::new(), Vec::new());
    let mode = resolved(snapshot, wire.snapshot, sinks.is_empty());
    if mode == Snapshot::Only && sinks.is_empty() {
        wire.skip_all();
    }
    let like_sink =
        |ConnectorSink { name: sink, table, columns, evolve, truncate, delete, values, on_missing }: ConnectorSink| {
            let (target, at) = table.unzip();
            targets.push(target);
            sinks_at.push(at.unwrap_or(sink.at));
            SinkTable {
                sink: sink.value,
                table: nameless(),
                columns,
                evolve,
                truncate,
                delete,
                values,
                on_missing,
                snapshot: mode,
            }
        };
    let sinks = sinks.into_iter().map(like_sink).collect();
    let (name, shape, topic_of_none) = (nameless(), shape.shape, String::new());
    let like = Table {
        name,
        by_pattern: true,
        topic: topic_of_none,
        partitions,
        insert_only,
        shape,
        skip_unchanged,
        snapshot: mode,
        snapshot_order,
        wire,
        sinks,
    };
    let file = first.file.path.clone();
    let include = patterns.into_iter().map(|(pattern, _)| pattern).collect();
    let constants = constants.columns;
    let route = Route { file, include, exclude, topic, targets, constants, like };
    let routed = |table: Table, at: At| {
        let (topic_at, sinks_at) = (topic_at.clone().unwrap_or_else(|| at.clone()), sinks_at.clone());
        Routed { table, at, topic_at, sinks_at, places: places.clone() }
    };
    let by_name = |(name, at): (TableName, At)| routed(Table { by_pattern: false, ..route.table(&name, prefix) }, at);
    let tables = tables.into_iter().map(by_name).collect();
    let like = routed(route.like.clone(), first);
    (tables, (!route.include.is_empty()).then_some((like, route)))
}

/// What a table has only in a connector that names it.
fn by_name_alone(like: &Routed, outbox_at: &At, report: &Report) {
    let hint = "name the table in a connector of its own";
    if like.table.wire.modes.outbox.is_some() {
        report.add(outbox_at, "an outbox is one table, and table is a pattern", hint);
    }
    if like.table.shape.filter.is_some() {
        let message = "where is published with its table, and tables that a pattern matches are published as they come";
        report.add(&like.at, message, hint);
    }
}

/// Filled in once it is known.
fn nameless() -> TableName {
    TableName::new("", "")
}

fn unused_sinks(sinks: &[(Text, Option<Sink>)], connectors: &[Connector], complete: bool, report: &Report) {
    let used: BTreeSet<&str> =
        connectors.iter().flat_map(|connector| &connector.sinks).map(|sink| sink.name.value.as_str()).collect();
    // A connector that could not be read may name it.
    for (name, _) in sinks.iter().filter(|(name, _)| complete && !used.contains(name.value.as_str())) {
        let sink = &name.value;
        let hint = format!("write [sinks.{sink}] into a connector, or delete it here");
        report.add(&name.at, format!("no connector names sink {sink:?}"), hint);
    }
}

fn unknown_sinks(names: &[&str], connectors: &[Connector], report: &Report) {
    for sink in connectors.iter().flat_map(|connector| &connector.sinks) {
        let name = sink.name.value.as_str();
        if names.contains(&name) {
            continue;
        }
        let hint = match nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean [sinks.{near}]?"),
            None if names.is_empty() => format!("add [sinks.{name}] with its url to {FILE}"),
            None => format!("add [sinks.{name}] with its url to {FILE}, which has: {}", names.join(", ")),
        };
        report.add(&sink.name.at, format!("there is no sink {name:?} in {FILE}"), hint);
    }
}

/// One connector per table; what further ones say of it is not looked at.
fn without_twins(routed: Vec<Routed>, report: &Report) -> Vec<Routed> {
    let mut kept: Vec<Routed> = Vec::new();
    for entry in routed {
        match kept.iter().find(|first| first.table.name == entry.table.name) {
            Some(first) => {
                let message = format!("table {} has two connectors", entry.table.name);
                report.add(&entry.at, message, format!("delete this file or the other: {}", first.at.name()));
            }
            None => kept.push(entry),
        }
    }
    kept
}

/// Topics of records that belong to no table, and what they are of.
pub(super) fn event_topics(wire: &Wire) -> Vec<(&'static str, &str)> {
    let transactions = wire.transaction_topic.as_deref().map(|topic| ("transaction metadata", topic));
    let messages = wire.messages.as_ref().map(|messages| ("logical messages", messages.topic.as_str()));
    let heartbeats = wire.heartbeat.as_ref().map(|heartbeat| ("heartbeats", heartbeat.topic.as_str()));
    [transactions, messages, heartbeats].into_iter().flatten().collect()
}

fn topics(routed: &[Routed], ledger: &str, events: &[(&str, &str)], report: &Report) {
    let mut seen: BTreeMap<String, Vec<&Routed>> = BTreeMap::new();
    for entry in routed {
        let (topic, at) = (entry.table.topic.as_str(), &entry.topic_at);
        let hint = "write topic = \"…\" with another name into this file";
        if topic.len() > TOPIC_BYTES_MAX {
            let message = format!("topic {topic:?} has {} bytes, Kafka takes {TOPIC_BYTES_MAX}", topic.len());
            report.add(at, message, "write topic = \"…\" with a shorter name into this file");
        }
        if collides(topic, ledger) {
            report.add(
                at,
                format!("topic {topic:?} is the ledger's, {ledger:?}, or Kafka can't tell them apart"),
                hint,
            );
        }
        for (what, other) in events.iter().filter(|(_, other)| collides(other, topic)) {
            let message = format!("topic {topic:?} is that of {what}, {other:?}, or Kafka can't tell them apart");
            report.add(at, message, hint);
        }
        let others = seen.entry(collision(topic)).or_default();
        for first in others.iter() {
            let elsewhere = format!("{hint}, or into the other: {}", first.topic_at.name());
            let (a, b) = (&first.table, &entry.table);
            if a.topic != topic {
                let message = format!("Kafka can't tell topics {:?} and {topic:?} apart", a.topic);
                report.add(at, message, elsewhere);
                break;
            }
            if let Some(why) = mixed_records(a, b) {
                let message = format!("tables {} and {} share topic {topic:?}: {why}", a.name, b.name);
                report.add(at, message, format!("{elsewhere}; or {}", constants::HINT));
                break;
            }
        }
        others.push(entry);
    }
}

/// Whether Kafka can't tell two topics apart.
pub(super) fn collides(a: &str, b: &str) -> bool {
    collision(a) == collision(b)
}

impl Database {
    /// Whether two addresses are the same database, as far as text says.
    pub(super) fn is_same(&self, other: &Database) -> bool {
        (&self.host, self.port, &self.dbname) == (&other.host, other.port, &other.dbname)
    }
}

fn same_sink_tables(routed: &[Routed], sinks: &[&Sink], report: &Report) {
    let engine = |name: &str| sinks.iter().find(|sink| sink.name == name).map(|sink| &sink.engine);
    let mut seen: Vec<(&Table, &SinkTable, &At)> = Vec::new();
    for entry in routed {
        for (sink, at) in entry.table.sinks.iter().zip(&entry.sinks_at) {
            let same = |other: &SinkTable| {
                other.table == sink.table
                    && (other.sink == sink.sink
                        || engine(&other.sink).zip(engine(&sink.sink)).is_some_and(|(a, b)| a.is_same(b)))
            };
            let clash = seen.iter().filter(|(_, other, _)| same(other)).find_map(|(table, other, first)| {
                let message = match other.sink == sink.sink {
                    true => {
                        let why = mixed(table, &entry.table)?;
                        format!("two tables go into {} of sink {:?}: {why}", sink.table, sink.sink)
                    }
                    false => format!(
                        "sinks {:?} and {:?} are one database, both write {}",
                        other.sink, sink.sink, sink.table
                    ),
                };
                Some((message, first, other.sink == sink.sink))
            });
            if let Some((message, first, one_sink)) = clash {
                let hint = format!("write table = \"…\" under [sinks.{}] here, or at {}", sink.sink, first.name());
                let hint = if one_sink { format!("{hint}; or {}", constants::HINT) } else { hint };
                report.add(at, message, hint);
                continue;
            }
            seen.push((&entry.table, sink, at));
        }
    }
}

/// A sink that writes a table which is read again: every change would come back for ever.
fn loops(routed: &[Routed], source: Option<&Database>, sinks: &[&Sink], report: &Report) {
    let Some(source) = source else { return };
    let read: BTreeSet<&TableName> = routed.iter().map(|entry| &entry.table.name).collect();
    for entry in routed {
        for (table, at) in entry.table.sinks.iter().zip(&entry.sinks_at) {
            let sink = sinks.iter().find(|sink| sink.name == table.sink);
            if sink.is_some_and(|sink| sink.engine.is_source(source)) && read.contains(&table.table) {
                let message =
                    format!("sink {:?} is the source's database and writes {}, which is read", table.sink, table.table);
                let hint = format!("write another url for [sinks.{}] in {FILE}, or table = \"…\" here", table.sink);
                report.add(at, message, hint);
            }
        }
    }
}
