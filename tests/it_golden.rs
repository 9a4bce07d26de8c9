//! Recordings of real Debezium, replayed: the same SQL on a real Postgres, our binary in Debezium's place, the same records.
//!
//! tests/golden holds the cases: `connector.json` (options), `setup.sql`, `steps.sql`, `events.jsonl` (the recording). A case is
//! data: its connector's options become our configuration by one translation, its SQL is run as the recorder ran it, and what
//! stands in the topics then is compared with the recording after what is volatile is masked. A new case needs no code here.
//!
//! tests/golden/verdicts.toml lists the cases that differ on purpose (`better`, with the paths in which they differ), those that
//! are about Debezium's own mechanics (`not_applicable`) and those whose feature is missing. A case that is not listed must be
//! equal; a listed one must differ, in every path that is listed and in no other.
//!
//! LOCKSTEP_GOLDEN=NAME,… runs only those cases and prints every difference.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Deserialize;
use support::avro::Schemas;
use support::recording::{self, Difference, Json, Record, Topics};
use support::services::unique_name;
use support::shaping;
use support::{Database, Pipeline, Process, Services};
use tokio::sync::Semaphore;
use tokio_postgres::Client;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
/// Cases at the same time: each is mostly waiting.
const AT_ONCE: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);
/// Of one case, whatever hangs in it.
const CASE_TIMEOUT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);
const KAFKA_TIMEOUT: Duration = Duration::from_secs(30);
/// Of the differences that a failure prints.
const SHOWN: usize = 6;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Verdicts {
    #[serde(default)]
    better: BTreeMap<String, Better>,
    #[serde(default)]
    not_applicable: BTreeMap<String, String>,
    #[serde(default)]
    missing: BTreeMap<String, String>,
    /// Run where the server has that extension, else not.
    #[serde(default)]
    needs_extension: BTreeMap<String, String>,
    /// The first version of Postgres that takes the case's SQL.
    #[serde(default)]
    since_postgres: BTreeMap<String, u32>,
}

/// Equal but for these paths; each is a run of segments of a difference's path, joined by `/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Better {
    reason: String,
    #[serde(default)]
    differs: Vec<String>,
    /// The same for what differs in one run and not in another: when a look finds what the stream does not tell.
    #[serde(default)]
    may_differ: Vec<String>,
    /// Rows that ours reads again, which the recording does not, are not compared; there must be some.
    #[serde(default)]
    read_again: bool,
    /// Topics that are compared by the rows that they leave: which of their records are reads depends on when a look comes.
    #[serde(default)]
    same_rows: Vec<String>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy, Debug)]
enum Outcome {
    Equal,
    Better,
    NotApplicable,
    NoExtension,
    /// This server is older than what the case writes.
    NewerPostgres,
    Missing,
    Failed,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn recordings_of_debezium_are_replayed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let verdicts = std::fs::read_to_string(root.join("verdicts.toml")).unwrap();
    let verdicts: Arc<Verdicts> = Arc::new(toml::from_str(&verdicts).unwrap());
    let only: Option<BTreeSet<String>> =
        std::env::var("LOCKSTEP_GOLDEN").ok().map(|names| names.split(',').map(str::to_owned).collect());
    let mut names: Vec<String> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    let listed = verdicts.better.keys().chain(verdicts.not_applicable.keys()).chain(verdicts.missing.keys());
    for listed in listed.chain(verdicts.since_postgres.keys()).chain(verdicts.needs_extension.keys()) {
        assert!(names.contains(listed), "verdicts.toml lists {listed}, which is no case");
    }
    names.retain(|name| only.as_ref().is_none_or(|only| only.contains(name)));

    let services = Arc::new(Services::from_env());
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let verbose = only.is_some() || std::env::var_os("LOCKSTEP_GOLDEN_PROGRESS").is_some();
    let mut running = tokio::task::JoinSet::new();
    for name in names {
        let (services, turns, verdicts, dir) = (services.clone(), turns.clone(), verdicts.clone(), root.join(&name));
        running.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            let began = Instant::now();
            let (outcome, said) = judge(&name, &dir, &verdicts, &services, verbose).await;
            if std::env::var_os("LOCKSTEP_GOLDEN_PROGRESS").is_some() {
                println!("{name}: {outcome:?} after {:?} {said}", began.elapsed());
            }
            (name, outcome, said)
        });
    }
    let mut results = running.join_all().await;
    results.sort_by(|a, b| a.0.cmp(&b.0));
    let mut tally: BTreeMap<Outcome, usize> = BTreeMap::new();
    let mut failures = String::new();
    for (name, outcome, said) in &results {
        *tally.entry(*outcome).or_default() += 1;
        if *outcome == Outcome::Failed {
            let _ = writeln!(failures, "{name}: {said}");
        }
    }
    println!("{} cases: {tally:?}", results.len());
    assert!(failures.is_empty(), "{} cases: {tally:?}\n{failures}", results.len());
}

async fn judge(name: &str, dir: &Path, verdicts: &Verdicts, services: &Services, verbose: bool) -> (Outcome, String) {
    if verdicts.not_applicable.contains_key(name) {
        return (Outcome::NotApplicable, String::new());
    }
    if verdicts.since_postgres.get(name).is_some_and(|first| services.postgres_version < *first) {
        return (Outcome::NewerPostgres, String::new());
    }
    if let Some(extension) = verdicts.needs_extension.get(name)
        && !services.catalog.has_extension(extension).await.unwrap()
    {
        return (Outcome::NoExtension, String::new());
    }
    let missing = verdicts.missing.get(name);
    // What is known to be missing is tried again only when it is asked for: it mostly ends in a deadline.
    if missing.is_some() && !verbose {
        return (Outcome::Missing, String::new());
    }
    let better = verdicts.better.get(name);
    let found = match tokio::time::timeout(CASE_TIMEOUT, replay(dir, services)).await {
        Ok(Ok((recorded, ours))) => match compared(recorded, ours, better) {
            Ok(found) => found,
            Err(said) => return (Outcome::Failed, said),
        },
        Err(_) => return (Outcome::Failed, format!("not done within {CASE_TIMEOUT:?}")),
        Ok(Err(error)) => return (Outcome::Failed, format!("{error:#}")),
    };
    let patterns = better.map_or(&[][..], |better| better.differs.as_slice());
    let free = better.map_or(&[][..], |better| better.may_differ.as_slice());
    let listed = |difference: &&Difference| patterns.iter().chain(free).any(|pattern| matches(pattern, difference));
    let unexpected: Vec<&Difference> = found.iter().filter(|difference| !listed(difference)).collect();
    let equal_after_all: Vec<&String> =
        patterns.iter().filter(|pattern| !found.iter().any(|difference| matches(pattern, difference))).collect();
    if !unexpected.is_empty() {
        let mut said = format!("{} differences", unexpected.len());
        let shown = if verbose { usize::MAX } else { SHOWN };
        for difference in unexpected.iter().take(shown) {
            let _ = write!(said, "\n    {difference}");
        }
        return (Outcome::Failed, said);
    }
    if !equal_after_all.is_empty() {
        return (Outcome::Failed, format!("listed as different, but equal: {equal_after_all:?}"));
    }
    if missing.is_some() {
        return (Outcome::Failed, "listed as missing, but equal".to_owned());
    }
    match better {
        Some(Better { reason, .. }) if reason.is_empty() => (Outcome::Failed, "better without a reason".to_owned()),
        Some(_) => (Outcome::Better, String::new()),
        None => (Outcome::Equal, String::new()),
    }
}

/// The differences, but for what a verdict says is compared otherwise.
fn compared(mut recorded: Topics, mut ours: Topics, better: Option<&Better>) -> Result<Vec<Difference>, String> {
    let mut found = Vec::new();
    for topic in better.map_or(&[][..], |better| better.same_rows.as_slice()) {
        let left = |topics: &mut Topics| recording::rows_left(&topics.remove(topic).unwrap_or_default());
        found.extend(recording::row_differences(topic, &left(&mut recorded), &left(&mut ours)));
    }
    if better.is_some_and(|better| better.read_again) && recording::take_out_rereads(&recorded, &mut ours) == 0 {
        return Err("listed as read again, but nothing was".to_owned());
    }
    found.extend(recording::differences(&recorded, &ours));
    Ok(found)
}

/// Whether the segments of the pattern stand in the difference's path in a row, the topic's name before them.
fn matches(pattern: &str, difference: &Difference) -> bool {
    let wanted: Vec<&str> = pattern.split('/').collect();
    let path: Vec<&str> =
        std::iter::once(difference.topic.as_str()).chain(difference.path.iter().map(String::as_str)).collect();
    path.windows(wanted.len()).any(|window| window == wanted.as_slice())
}

/// Runs a case: what was recorded, and what came of ours.
async fn replay(dir: &Path, services: &Services) -> Result<(Topics, Topics)> {
    let read =
        |file: &str| std::fs::read_to_string(dir.join(file)).with_context(|| format!("{}/{file}", dir.display()));
    let options: BTreeMap<String, serde_json::Value> = serde_json::from_str(&read("connector.json")?)?;
    let options = Options(options.into_iter().map(|(name, value)| (name, plain(&value))).collect());
    let settings = options.settings()?;
    let avro = options.is_avro().then(|| Schemas::recorded(&read("schemas.json")?)).transpose()?;
    let recorded = recording::recorded(&read("events.jsonl")?, avro)?;

    let database = services.catalog.create_database("golden").await?;
    let mut script = Script::new(&database);
    script.run(&read("setup.sql")?).await?;
    let roots = options.get("publish.via.partition.root") == Some("true");
    let tables = tables(&database, roots).await?;
    // Names of topics and schemas hold the prefix, and other cases have the same one at the same time.
    // Of letters and digits alone, which no mode adjusts.
    let prefix = unique_name("golden").replace('_', "x");
    let url = format!("postgres://postgres:postgres@127.0.0.1:{}/{}", database.server.port, database.name);
    let mut pipeline = Pipeline::new(LOCKSTEP, services, &database).source_url(url);
    pipeline = pipeline.set("kafka", &format!("topic_prefix = \"{prefix}\""));
    let delimiter = options.get("topic.delimiter").unwrap_or(".");
    pipeline = pipeline.set("kafka", &format!("topic_delimiter = \"{delimiter}\""));
    pipeline = settings.into_iter().fold(pipeline, |pipeline, line| pipeline.set("wire", &line));
    if options.is_avro() {
        pipeline = pipeline.set("registry", &format!("url = \"{}\"", services.registry));
    }
    let recorded_prefix = options.get("topic.prefix").context("a topic prefix")?.to_owned();
    let superuser = database.superuser().await?;
    let mut topics = BTreeSet::new();
    for (i, table) in tables.iter().enumerate() {
        let mut topic = table.topic(&prefix, delimiter);
        let mut text = String::new();
        // Two tables of one topic are refused: the second one gets a name of its own.
        if !topics.insert(topic.clone()) {
            topic.push_str("_2");
            let _ = writeln!(text, "topic = \"{topic}\"");
        }
        let shaping = shaping::shaping(&superuser, &table.name(), &options.0).await?;
        if table.insert_only || shaping.blind_key {
            text.push_str("insert_only = true\n");
        }
        text.push_str(&shaping.keys);
        text.push_str(&shaping.masks);
        text.push_str(&options.outbox()?);
        text.push_str(&options.snapshot(table)?);
        if !text.is_empty() {
            pipeline = pipeline.connector_file(&format!("table_{i}"), &table.quoted, &text);
        }
    }
    // A connector of Debezium's takes everything, also what is made later.
    let excluded = if roots { Vec::new() } else { partitioned(&database).await? };
    pipeline = pipeline.connector_file("all", "*.*", &format!("exclude = {}\n", toml::Value::from(excluded)));
    let topics = Leftovers { kafka: services.kafka.clone(), prefix: prefix.clone() };
    let mut process = pipeline.spawn(&["source"])?;
    let loads = options.get("snapshot.mode") == Some("initial");
    let played = async {
        started(&mut process, services, &prefix, loads).await?;
        script.run(&read("steps.sql")?).await?;
        if loads {
            let unread: Vec<&str> = tables.iter().filter(|t| !options.loads(t)).map(|t| t.table.as_str()).collect();
            settled(&mut process, &database, services, &prefix, &unread).await?;
        }
        caught_up(&mut process, &database).await?;
        let (kafka, registry, from) = (services.kafka.clone(), services.registry.clone(), prefix.clone());
        let ours = tokio::task::spawn_blocking(move || consume(&kafka, &registry, &from, &recorded_prefix)).await??;
        process.terminate(PATIENCE).await?;
        Ok((recorded, ours))
    };
    let played = played.await;
    drop((script, superuser));
    // Taking away blocks its thread, and with it what else runs there.
    tokio::task::spawn_blocking(move || drop((process, pipeline, topics, database))).await?;
    played
}

fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The connector's options.
struct Options(BTreeMap<String, String>);

impl Options {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn is_avro(&self) -> bool {
        self.get("value.converter").is_some_and(|converter| converter.ends_with("AvroConverter"))
    }

    fn is_string(&self) -> bool {
        self.get("value.converter").is_some_and(|converter| converter.ends_with("StringConverter"))
    }

    /// The section `[outbox]` of a table that is one; nothing without its transform.
    fn outbox(&self) -> Result<String> {
        if self.get("transforms") != Some("outbox") {
            return Ok(String::new());
        }
        let (prefix, quoted) = (self.get("topic.prefix").context("a prefix")?, |text: &str| toml::Value::from(text));
        let option = |name: &str| self.get(&format!("transforms.outbox.{name}"));
        let topic = option("route.topic.replacement").context("a topic")?;
        let topic = topic.replace(prefix, "{prefix}").replace("${routedByValue}", "{route}");
        let additional = option("table.fields.additional.placement").into_iter().flat_map(|list| list.split(','));
        let additional: Vec<toml::Value> = additional.map(quoted).collect();
        let lines = [
            "[outbox]".to_owned(),
            format!("topic = {}", quoted(&topic)),
            format!("additional_placement = {}", toml::Value::from(additional)),
            format!("expand_json_payload = {}", option("table.expand.json.payload").unwrap_or("false")),
            format!("tombstone_on_empty_payload = {}", option("route.tombstone.on.empty.payload").unwrap_or("false")),
            format!("format = \"{}\"", if self.is_string() { "string" } else { "json" }),
        ];
        Ok(lines.join("\n") + "\n")
    }

    /// Whether the rows of the table that are there at first are read.
    fn loads(&self, table: &CaseTable) -> bool {
        let list = self.get("snapshot.include.collection.list");
        list.is_none_or(|list| list.split(',').any(|one| one == table.name()))
    }

    /// The section `[wire]` of a table whose snapshot is said by itself.
    fn snapshot(&self, table: &CaseTable) -> Result<String> {
        let name = table.name();
        let mut lines = Vec::new();
        if !self.loads(table) {
            lines.push("snapshot = \"no_data\"".to_owned());
        }
        if let Some(statement) = self.get(&format!("snapshot.select.statement.overrides.{name}")) {
            let (_, condition) = statement.split_once(" WHERE ").context("a condition")?;
            let condition = condition.split(" ORDER BY ").next().unwrap_or(condition);
            lines.push(format!("snapshot_where = {}", toml::Value::from(condition)));
        }
        Ok(if lines.is_empty() { String::new() } else { format!("[wire]\n{}\n", lines.join("\n")) })
    }

    /// The lines of `[wire]` that mean the same; Debezium's own defaults where it says nothing.
    fn settings(&self) -> Result<Vec<String>> {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let or = |name: &str, default: &str| quoted(self.get(name).unwrap_or(default));
        let converter = self.get("value.converter").unwrap_or_default();
        let known = converter.ends_with("JsonConverter") || self.is_avro() || self.is_string();
        ensure!(known, "no counterpart of converter {converter}");
        let unknown = if self.get("include.unknown.datatypes") == Some("true") { "bytes" } else { "skip" };
        let snapshot = self.get("snapshot.mode").unwrap_or("initial");
        let flag = |name: &str, default: bool| self.get(name).map_or(default, |text| text == "true");
        let mut lines = vec![
            format!("format = \"{}\"", if self.is_avro() { "avro" } else { "json" }),
            "context_headers = true".to_owned(),
            "logical_messages = true".to_owned(),
            "conversion_failure = \"null\"".to_owned(),
            format!("decimal_handling = {}", or("decimal.handling.mode", "precise")),
            format!("time_precision = {}", or("time.precision.mode", "adaptive")),
            format!("interval_handling = {}", or("interval.handling.mode", "numeric")),
            format!("binary_handling = {}", or("binary.handling.mode", "bytes")),
            format!("hstore_handling = {}", or("hstore.handling.mode", "json")),
            format!("unknown_types = \"{unknown}\""),
            format!("snapshot = \"{snapshot}\""),
            format!("schemas = {}", flag("value.converter.schemas.enable", true)),
            format!("null_as_default = {}", flag("value.converter.replace.null.with.default", true)),
            format!("tombstones = {}", flag("tombstones.on.delete", true)),
            format!("transaction_metadata = {}", flag("provide.transaction.metadata", false)),
            format!("field_name_adjustment = {}", or("field.name.adjustment.mode", "none")),
            format!("schema_name_adjustment = {}", or("schema.name.adjustment.mode", "none")),
        ];
        let list = |text: &str| text.split(',').map(quoted).collect::<Vec<_>>().join(", ");
        let skipped = self.get("skipped.operations").unwrap_or("t");
        let skipped = if skipped == "none" { String::new() } else { list(skipped) };
        lines.push(format!("skipped_operations = [{skipped}]"));
        // Of all columns or of none.
        if self.get("column.propagate.source.type") == Some(".*") {
            lines.push("propagate_source_type = true".to_owned());
        }
        if self.get("transforms") == Some("unwrap") {
            lines.push("records = \"flat\"".to_owned());
            for (option, key) in [("add.fields", "add_fields"), ("add.headers", "add_headers")] {
                let added = self.get(&format!("transforms.unwrap.{option}")).map(list).unwrap_or_default();
                lines.push(format!("{key} = [{added}]"));
            }
            let deletes = or("transforms.unwrap.delete.tombstone.handling.mode", "tombstone");
            lines.push(format!("delete_tombstone_handling = {deletes}"));
        }
        if let Some(placeholder) = self.get("unavailable.value.placeholder") {
            lines.push(format!("unavailable_value_placeholder = {}", quoted(placeholder)));
        }
        if let Some(prefixes) = self.get("message.prefix.exclude.list") {
            lines.push(format!("message_prefixes_excluded = [{}]", list(prefixes)));
        }
        if let Some(interval) = self.get("heartbeat.interval.ms") {
            lines.push(format!("heartbeat_interval = \"{interval}ms\""));
        }
        if let Some(query) = self.get("heartbeat.action.query") {
            lines.push(format!("heartbeat_query = {}", quoted(query)));
        }
        self.all_known()?;
        Ok(lines)
    }

    fn all_known(&self) -> Result<()> {
        const KNOWN: &[&str] = &[
            "binary.handling.mode",
            "decimal.handling.mode",
            "field.name.adjustment.mode",
            "golden.quiet.s",
            "heartbeat.action.query",
            "heartbeat.interval.ms",
            "hstore.handling.mode",
            "include.unknown.datatypes",
            "interval.handling.mode",
            "key.converter",
            "key.converter.replace.null.with.default",
            "key.converter.schemas.enable",
            "message.prefix.exclude.list",
            "provide.transaction.metadata",
            "publication.autocreate.mode",
            "publish.via.partition.root",
            "schema.name.adjustment.mode",
            "skipped.operations",
            "snapshot.include.collection.list",
            "snapshot.mode",
            "snapshot.select.statement.overrides",
            "time.precision.mode",
            "tombstones.on.delete",
            "topic.delimiter",
            "topic.prefix",
            "transforms",
            "transforms.outbox.route.tombstone.on.empty.payload",
            "transforms.outbox.route.topic.replacement",
            "transforms.outbox.table.expand.json.payload",
            "transforms.outbox.table.fields.additional.placement",
            "transforms.outbox.type",
            "transforms.unwrap.add.fields",
            "transforms.unwrap.add.headers",
            "transforms.unwrap.delete.tombstone.handling.mode",
            "transforms.unwrap.type",
            "unavailable.value.placeholder",
            "value.converter",
            "value.converter.replace.null.with.default",
            "value.converter.schemas.enable",
        ];
        // In Avro names are always adjusted.
        let adjusts = |name: &str| self.is_avro() && name.ends_with(".name.adjustment.mode");
        let of_a_table = |name: &str| name.starts_with("snapshot.select.statement.overrides.");
        let known = |name: &str| KNOWN.contains(&name) || adjusts(name) || of_a_table(name) || shaping::is_known(name);
        match self.0.keys().find(|name| !known(name)) {
            Some(name) => bail!("no counterpart of option {name}"),
            None => Ok(()),
        }
    }
}

/// A table of the case.
struct CaseTable {
    /// As a connector names it.
    quoted: String,
    schema: String,
    table: String,
    /// Without a replica identity Debezium sees nothing but inserts, for nothing else can be published.
    insert_only: bool,
}

impl CaseTable {
    /// As Debezium's patterns match it.
    fn name(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }

    fn topic(&self, prefix: &str, delimiter: &str) -> String {
        let legal = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
        let name = [prefix, &self.schema, &self.table].join(delimiter);
        let plain = |unit: u16| u8::try_from(unit).ok().map(char::from).filter(legal);
        name.encode_utf16().map(|unit| plain(unit).unwrap_or('_')).collect()
    }
}

/// Every table that a publication can hold: partitions, or the tables that they are partitions of.
async fn tables(database: &Database, roots: bool) -> Result<Vec<CaseTable>> {
    let sql = "SELECT format('\"%s\".\"%s\"', replace(n.nspname, '\"', '\"\"'), replace(c.relname, '\"', '\"\"')),
            n.nspname, c.relname,
            c.relreplident = 'n' OR c.relreplident = 'd'
                AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE CASE WHEN $1 THEN c.relkind IN ('r', 'p') AND NOT c.relispartition ELSE c.relkind = 'r' END
            AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
        ORDER BY n.nspname, c.relname";
    let rows = database.superuser().await?.query(sql, &[&roots]).await?;
    Ok(rows
        .iter()
        .map(|row| CaseTable { quoted: row.get(0), schema: row.get(1), table: row.get(2), insert_only: row.get(3) })
        .collect())
}

/// Tables that rows are published for under the names of their partitions.
async fn partitioned(database: &Database) -> Result<Vec<String>> {
    let sql =
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'p'";
    let rows = database.superuser().await?.query(sql, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Sessions of a case, by name.
struct Script<'a> {
    database: &'a Database,
    sessions: BTreeMap<String, Client>,
}

impl Script<'_> {
    fn new(database: &Database) -> Script<'_> {
        Script { database, sessions: BTreeMap::new() }
    }

    /// As psql without ON_ERROR_STOP: each statement by itself, errors are passed over.
    async fn run(&mut self, sql: &str) -> Result<()> {
        let (mut session, mut statement) = ("main".to_owned(), String::new());
        for line in sql.lines() {
            if let Some(directive) = line.strip_prefix("-- @") {
                let (name, argument) = directive.split_once(' ').context("a directive without an argument")?;
                match name {
                    "session" => session = argument.trim().to_owned(),
                    "sleep" => tokio::time::sleep(Duration::from_millis(argument.trim().parse()?)).await,
                    other => bail!("no counterpart of directive @{other}"),
                }
                continue;
            }
            statement.push_str(line);
            statement.push('\n');
            let in_dollars = statement.matches("$$").count() % 2 == 1;
            if line.trim_end().ends_with(';') && !in_dollars {
                let client = self.session(&session).await?;
                let _ = client.simple_query(&std::mem::take(&mut statement)).await;
            }
        }
        ensure!(statement.trim().is_empty(), "a statement without an end: {statement}");
        Ok(())
    }

    async fn session(&mut self, name: &str) -> Result<&Client> {
        if !self.sessions.contains_key(name) {
            let client = self.database.superuser().await?;
            self.sessions.insert(name.to_owned(), client);
        }
        Ok(&self.sessions[name])
    }
}

/// Waits until changes are streamed and, where there are rows to load, all are in their topics.
async fn started(process: &mut Process, services: &Services, prefix: &str, loads: bool) -> Result<()> {
    process.wait_until("streaming", PATIENCE, |status| status.source_state() == "streaming").await?;
    if !loads {
        return Ok(());
    }
    let deadline = Instant::now() + PATIENCE;
    let ledger = format!("{prefix}.ledger");
    loop {
        let kafka = services.kafka.clone();
        let topic = ledger.clone();
        let entries = tokio::task::spawn_blocking(move || read(&kafka, "", &[topic])).await??;
        let has =
            |kind: &str| entries.iter().any(|(_, record)| record.value.get("type").and_then(Json::text) == Some(kind));
        if has("done") {
            return Ok(());
        }
        process.ensure_running()?;
        ensure!(Instant::now() < deadline, "existing rows were not loaded within {PATIENCE:?}");
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until every table that has a key by now was asked for, but for those whose rows are not read, and everything that was
/// asked for is in its topic.
async fn settled(
    process: &mut Process,
    database: &Database,
    services: &Services,
    prefix: &str,
    unread: &[&str],
) -> Result<()> {
    let sql = "SELECT c.relname::text FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid";
    let unpublished = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
        WHERE c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_publication_rel r
            WHERE r.prrelid = c.oid OR r.prrelid IN (SELECT relid FROM pg_partition_ancestors(c.oid)))
          AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";
    let deadline = Instant::now() + PATIENCE;
    let client = database.superuser().await?;
    loop {
        let (kafka, topic) = (services.kafka.clone(), format!("{prefix}.ledger"));
        let entries = tokio::task::spawn_blocking(move || read(&kafka, "", &[topic])).await??;
        let of = |kind: &'static str| {
            entries.iter().filter(move |(_, r)| r.value.get("type").and_then(Json::text) == Some(kind))
        };
        let asked =
            of("request").map(|(_, record)| record.value.get("tables").map(Json::to_string).unwrap_or_default());
        let asked: String = asked.collect();
        let names = client.query(sql, &[]).await?;
        let mut names = names.iter().map(|row| row.get::<_, &str>(0)).filter(|name| !unread.contains(name));
        let all_asked = names.all(|name| asked.contains(&format!("{name:?}")));
        let unpublished: i64 = client.query_one(unpublished, &[]).await?.get(0);
        let done: Vec<Option<&Json>> = of("done").map(|(_, record)| record.value.get("id")).collect();
        // A table that was let go of while its rows were to be read is told of no more.
        let is_leave = |record: &Record| record.value.get("kind").and_then(Json::text) == Some("leave");
        let tables_of = |record: &Record| record.value.get("tables").map(Json::to_string);
        let left: Vec<_> = of("request").filter(|(_, r)| is_leave(r)).map(|(_, r)| tables_of(r)).collect();
        let mut loads = of("request").filter(|(_, r)| !is_leave(r) && !left.contains(&tables_of(r)));
        let all_done = loads.all(|(_, record)| done.contains(&record.value.get("id")));
        if unpublished == 0 && all_asked && all_done {
            return Ok(());
        }
        process.ensure_running()?;
        ensure!(
            Instant::now() < deadline,
            "not settled within {PATIENCE:?}: {unpublished} unpublished, asked: {asked}"
        );
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until everything that is committed now is in the ledger.
async fn caught_up(process: &mut Process, database: &Database) -> Result<()> {
    let lsn = database.wal_lsn().await?;
    // The log must go on beyond that point. Ours, so that it becomes no record.
    let client = database.superuser().await?;
    client.execute("SELECT pg_logical_emit_message(true, 'lockstep-flush', '')", &[]).await?;
    let reached = |status: &support::Status| {
        let position = status.0["source"]["position"].as_str().and_then(|text| text.parse().ok());
        position.is_some_and(|position: lockstep::lsn::Lsn| position >= lsn) || status.halt_code(None).is_some()
    };
    let status = process.wait_until("catching up", PATIENCE, reached).await?;
    ensure!(status.halt_code(None).is_none(), "halted: {}", status.0["source"]["halt"]);
    Ok(())
}

/// Everything in the topics of a prefix but the ledger, under the recorded prefix.
fn consume(kafka: &str, registry: &str, prefix: &str, recorded_prefix: &str) -> Result<Topics> {
    let consumer = consumer(kafka)?;
    let metadata = consumer.fetch_metadata(None, KAFKA_TIMEOUT)?;
    let names: Vec<String> = metadata.topics().iter().map(|topic| topic.name().to_owned()).collect();
    let heartbeat = format!("__debezium-heartbeat.{prefix}");
    let ledger = format!("{prefix}.ledger");
    // Another case's prefix can go on where this one ends.
    let begins = |name: &String| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(['.', '_']));
    let mine = |name: &String| (begins(name) && *name != ledger) || *name == heartbeat;
    let names: Vec<String> = names.into_iter().filter(mine).collect();
    let mut topics = Topics::new();
    for (topic, mut record) in read(kafka, registry, &names)? {
        record.headers.retain(|(name, _)| !name.starts_with("ls"));
        record.headers.iter_mut().for_each(|(_, value)| rename(value, prefix, recorded_prefix));
        rename(&mut record.key, prefix, recorded_prefix);
        rename(&mut record.value, prefix, recorded_prefix);
        topics.entry(topic.replace(prefix, recorded_prefix)).or_default().push(record);
    }
    Ok(topics)
}

fn rename(json: &mut Json, from: &str, to: &str) {
    match json {
        Json::Text(text) => *text = text.replace(from, to),
        Json::List(items) => items.iter_mut().for_each(|item| rename(item, from, to)),
        Json::Object(fields) => fields.iter_mut().for_each(|(_, value)| rename(value, from, to)),
        _ => {}
    }
}

fn consumer(kafka: &str) -> Result<BaseConsumer> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .set("group.id", "lockstep-golden")
        .set("enable.auto.commit", "false")
        .create()?)
}

/// Every record of topics of one partition, in order.
fn read(kafka: &str, registry: &str, topics: &[String]) -> Result<Vec<(String, Record)>> {
    let consumer = consumer(kafka)?;
    let mut records = Vec::new();
    let mut schemas = Schemas::of_registry(registry);
    for topic in topics {
        let (low, high) = match consumer.fetch_watermarks(topic, 0, KAFKA_TIMEOUT) {
            Ok(watermarks) => watermarks,
            Err(error) => bail!("{topic}: {error}"),
        };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 0, Offset::Offset(low))?;
        consumer.assign(&list)?;
        let mut next = low;
        while next < high {
            let message = consumer.poll(KAFKA_TIMEOUT).context("records that the watermark promises")??;
            next = message.offset() + 1;
            let mut json = |bytes: Option<&[u8]>| match bytes {
                None => Ok(Json::Null),
                Some(bytes @ [0, ..]) => schemas.read(bytes),
                // As the recorder has it: what is no JSON stands as hex.
                Some(bytes) => {
                    let json = std::str::from_utf8(bytes).ok().and_then(|text| Json::parse(text).ok());
                    Ok(json.unwrap_or_else(|| Json::Text(hex::encode(bytes))))
                }
            };
            let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
            let text = |bytes: Option<&[u8]>| {
                bytes.map_or(Json::Null, |bytes| Json::Text(String::from_utf8_lossy(bytes).into_owned()))
            };
            let record = Record {
                headers: headers.map(|header| (header.key.to_owned(), text(header.value))).collect(),
                key: json(message.key())?,
                value: json(message.payload())?,
            };
            records.push((topic.clone(), record));
        }
    }
    Ok(records)
}

/// Topics of a prefix that is not the pipeline's name; deleted with the value.
struct Leftovers {
    kafka: String,
    prefix: String,
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        let (kafka, prefix) = (self.kafka.clone(), self.prefix.clone());
        let outcome = support::services::block_on_elsewhere(async move {
            for name in [format!("{prefix}."), format!("{prefix}_"), format!("__debezium-heartbeat.{prefix}")] {
                support::pipeline::delete_topics(&kafka, &name).await?;
            }
            Ok(())
        });
        if let Err(error) = outcome {
            eprintln!("left behind: {error:#}");
        }
    }
}
