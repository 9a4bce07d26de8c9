//! Connectors that name tables by pattern, and what they come to for the tables that there are.
//!
//! Which tables a pattern means is not in the configuration: the reader asks the source's catalog, sinks read in the ledger
//! which tables the reader has. Both hand the names in here and get a configuration in which every table stands by its name, as
//! if it had a connector of its own; everything behind it knows no patterns.
//!
//! A table's own connector goes before every pattern. What can't be right is not guessed: a table that two connectors match, or
//! whose topic or sink table another one has, is left out and named, and the others go on. They are given with those first that
//! were routed before, so that a new table never takes the place of an older one.
//!
//! Deliberately not here: asking anybody for names.

use std::fmt;
use std::path::PathBuf;

use super::constants::{self, mixed, mixed_records};
use super::load::{FILE, collides, event_topics};
use super::names::outbox_topic;
use super::pattern::{TablePattern, TableTemplate, Template};
use super::process::{IDENTIFIER_BYTES_MAX, TOPIC_BYTES_MAX};
use super::{Config, Engine, SinkTable, Table};
use crate::relation::TableName;
use crate::relation::names::{legal_topic, topic_name};
use crate::transform::Shape;

/// A connector that names tables by pattern.
#[derive(Debug, Clone)]
pub struct Route {
    /// The connector's file.
    pub file: PathBuf,
    pub include: Vec<TablePattern>,
    pub exclude: Vec<TablePattern>,
    /// `None`: the default.
    pub(super) topic: Option<Template>,
    /// Of each sink's table; `None`: the same name.
    pub(super) targets: Vec<Option<TableTemplate>>,
    /// `[add_columns]`.
    pub(super) constants: Vec<(String, Template)>,
    /// What every table of it has alike; names are filled in.
    pub(super) like: Table,
}

impl Route {
    pub fn matches(&self, name: &TableName) -> bool {
        let any = |patterns: &[TablePattern]| patterns.iter().any(|pattern| pattern.matches(name));
        any(&self.include) && !any(&self.exclude)
    }

    /// Whether the sink takes its tables.
    pub fn is_for(&self, sink: &str) -> bool {
        self.like.sinks.iter().any(|target| target.sink == sink)
    }

    /// Nothing but INSERT and TRUNCATE ever happens to its tables.
    pub fn is_insert_only(&self) -> bool {
        self.like.insert_only
    }

    /// The table as a connector of its own would have it.
    pub(super) fn table(&self, name: &TableName, prefix: &str) -> Table {
        let topic = match &self.topic {
            Some(topic) => topic.fill(prefix, name, legal_topic),
            None => topic_name(prefix, &self.like.wire.modes.delimiter, name),
        };
        let mut wire = self.like.wire.clone();
        if let Some(outbox) = &mut wire.modes.outbox {
            outbox.topic = outbox_topic(&outbox.topic, prefix, name);
        }
        let sink = |(like, target): (&SinkTable, &Option<TableTemplate>)| {
            let table = target.as_ref().map_or_else(|| name.clone(), |target| target.fill(name));
            SinkTable { table, ..like.clone() }
        };
        let sinks = self.like.sinks.iter().zip(&self.targets).map(sink).collect();
        let shape = Shape {
            constants: constants::filled(&self.constants, self.include.iter().find(|p| p.matches(name)), name),
            ..self.like.shape.clone()
        };
        Table { name: name.clone(), topic, wire, shape, sinks, ..self.like.clone() }
    }
}

/// A table that a pattern matches and that is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    pub table: TableName,
    /// In words, lowercase.
    pub why: String,
    pub hint: String,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {} matches a pattern and is left out: {} (help: {})", self.table, self.why, self.hint)
    }
}

impl Config {
    /// Patterns of every connector, for asking a catalog.
    pub fn patterns(&self) -> impl Iterator<Item = &TablePattern> {
        self.routes.iter().flat_map(|route| &route.include)
    }

    /// The table of that name, if it is routed.
    pub fn table(&self, name: &TableName) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == *name)
    }

    /// Whether a pattern, and no connector of its own, is what routes a table of that name.
    pub fn is_by_pattern(&self, name: &TableName) -> bool {
        let own = self.tables.iter().any(|table| table.name == *name && !table.by_pattern);
        !own && self.routes_of(name).next().is_some()
    }

    /// Connectors whose patterns mean the table. None means that of signals, which is no data.
    pub fn routes_of(&self, name: &TableName) -> impl Iterator<Item = &Route> {
        let is_data = self.source.signal_table.as_ref() != Some(name);
        self.routes.iter().filter(move |route| is_data && route.matches(name))
    }

    /// This configuration with the tables among these that patterns match, and those that are left out.
    pub fn resolve<'n>(&self, names: impl IntoIterator<Item = &'n TableName>) -> (Config, Vec<LeftOut>) {
        let mut config = self.clone();
        config.tables.retain(|table| !table.by_pattern);
        let mut left_out = Vec::new();
        for name in names {
            if config.table(name).is_some() {
                continue;
            }
            match config.matched(name) {
                Some(Ok(table)) => config.tables.push(table),
                Some(Err((why, hint))) => left_out.push(LeftOut { table: name.clone(), why, hint }),
                None => {}
            }
        }
        config.tables.sort_by(|a, b| a.name.cmp(&b.name));
        (config, left_out)
    }

    /// The table of that name by its pattern; the error is why it is left out, and a hint.
    fn matched(&self, name: &TableName) -> Option<Result<Table, (String, String)>> {
        let mut routes = self.routes_of(name);
        let (route, other) = (routes.next()?, routes.next());
        if let Some(other) = other {
            let why = format!("{} and {} both match it", route.file.display(), other.file.display());
            return Some(Err((why, format!("write exclude = ['{}'] into one of them", name.quoted()))));
        }
        let table = route.table(name, &self.kafka.topic_prefix);
        Some(match self.clash(&table) {
            Some((why, what)) => Err((why, format!("write {what} into {}", route.file.display()))),
            None => Ok(table),
        })
    }

    /// What keeps a table from standing beside the others; in words, and what to write.
    fn clash(&self, table: &Table) -> Option<(String, String)> {
        let exclude = format!("exclude = ['{}']", table.name.quoted());
        let topic = table.topic.as_str();
        if topic.len() > TOPIC_BYTES_MAX {
            let why = format!("its topic {topic:?} has {} bytes, Kafka takes {TOPIC_BYTES_MAX}", topic.len());
            return Some((why, format!("topic = \"…\" with a shorter name, or {exclude},")));
        }
        let events = event_topics(&self.wire);
        let taken = std::iter::once(("the ledger".to_owned(), self.kafka.ledger.as_str()))
            .chain(events.into_iter().map(|(what, topic)| (what.to_owned(), topic)));
        let hint = format!("{exclude}, and a connector with topic = \"…\" for it,");
        for (whose, other) in taken {
            if collides(topic, other) {
                let why = format!("its topic {topic:?} is that of {whose}, {other:?}, or Kafka can't tell them apart");
                return Some((why, hint));
            }
        }
        for other in self.tables.iter().filter(|other| collides(topic, &other.topic)) {
            let (name, theirs) = (&other.name, &other.topic);
            let why = match mixed_records(table, other).filter(|_| other.topic == topic) {
                Some(why) => format!("its topic {topic:?} is that of table {name}: {why}"),
                None if other.topic == topic => continue,
                None => {
                    format!("its topic {topic:?} is that of table {name}, {theirs:?}, or Kafka can't tell them apart")
                }
            };
            return Some((why, hint));
        }
        table.sinks.iter().find_map(|target| Some((self.sink_clash(table, target)?, exclude.clone())))
    }

    fn sink_clash(&self, table: &Table, target: &SinkTable) -> Option<String> {
        let into = &target.table;
        if let Some(long) = [&into.schema, &into.table].into_iter().find(|part| part.len() > IDENTIFIER_BYTES_MAX) {
            return Some(format!(
                "{long:?} at sink {:?} has {} bytes, Postgres keeps {IDENTIFIER_BYTES_MAX}",
                target.sink,
                long.len()
            ));
        }
        let engine = self.engine(&target.sink);
        let same = |other: &SinkTable| {
            let both = self.engine(&other.sink).zip(engine);
            other.table == *into && (other.sink == target.sink || both.is_some_and(|(a, b)| a.is_same(b)))
        };
        for other in &self.tables {
            let Some(theirs) = other.sinks.iter().find(|other| same(other)) else { continue };
            let too = format!("table {} goes into {into} of sink {:?} too", other.name, target.sink);
            match mixed(table, other).filter(|_| theirs.sink == target.sink) {
                Some(why) => return Some(format!("{too}: {why}")),
                None if theirs.sink != target.sink => return Some(too),
                None => {}
            }
        }
        // Every change would come back for ever.
        let source = &self.source.database;
        let writes = |other: &SinkTable| self.engine(&other.sink).is_some_and(|sink| sink.is_source(source));
        let read = |name: &TableName| *name == table.name || self.table(name).is_some();
        if writes(target) && read(into) {
            return Some(format!("sink {:?} is the source's database and writes {into}, which is read", target.sink));
        }
        let written = |other: &&Table| other.sinks.iter().any(|sink| writes(sink) && sink.table == table.name);
        self.tables.iter().find(written).map(|other| {
            format!("a sink that is the source's database writes it, from table {} (see {FILE})", other.name)
        })
    }

    fn engine(&self, sink: &str) -> Option<&Engine> {
        self.sinks.iter().find(|known| known.name == sink).map(|known| &known.engine)
    }
}
