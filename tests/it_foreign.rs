//! Topics that Debezium itself wrote, applied by our sink: the records of tests/golden, byte for byte, in a real Kafka, and the
//! tables at the sink against those that the case's SQL makes on a real Postgres.
//!
//! What Debezium has lost of a value is not in its records; each case names the columns where the two differ for that.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use support::scene::{PATIENCE, text};
use support::{Database, Pipeline, Process, Services};
use tokio::time::sleep;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");
/// Cases at the same time: each is mostly waiting.
const AT_ONCE: usize = 4;
const POLL: Duration = Duration::from_millis(50);

/// What Debezium writes by default, said as JSON without schemas needs it.
const PLAIN: &[&str] = &[
    "decimal_handling = \"precise\"",
    "time_precision = \"adaptive\"",
    "binary_handling = \"bytes\"",
    "same_types = true",
];
const SCHEMAS: &[&str] = &["schemas = true", "same_types = true"];
const STRINGS: &[&str] = &[
    "decimal_handling = \"string\"",
    "time_precision = \"adaptive\"",
    "binary_handling = \"bytes\"",
    "same_types = true",
];
const ISO: &[&str] = &[
    "decimal_handling = \"precise\"",
    "time_precision = \"isostring\"",
    "binary_handling = \"bytes\"",
    "same_types = true",
];
const HEX: &[&str] = &["schemas = true", "same_types = true", "binary_handling = \"hex\""];

/// One record of a recording.
#[derive(Clone, Debug)]
struct Recorded {
    topic: String,
    headers: Vec<(String, Option<String>)>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

impl Recorded {
    fn payload(&self) -> Value {
        let value: Value = self.value.as_ref().map_or(Value::Null, |v| serde_json::from_slice(v).unwrap_or_default());
        match value.get("payload") {
            Some(payload) => payload.clone(),
            None => value,
        }
    }
}

fn golden(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

/// Records of a case's tables, in the order of each topic. `prefix` takes the place of the recorded one.
fn recorded(case: &str, prefix: &str) -> Vec<Recorded> {
    #[derive(Deserialize)]
    struct Line<'a> {
        topic: String,
        #[serde(borrow)]
        headers: Vec<(String, Option<&'a RawValue>)>,
        #[serde(borrow, default)]
        key: Option<&'a RawValue>,
        #[serde(borrow, default)]
        value: Option<&'a RawValue>,
        #[serde(default)]
        key_hex: Option<String>,
        #[serde(default)]
        value_hex: Option<String>,
    }
    let events = std::fs::read_to_string(golden(case).join("events.jsonl")).unwrap();
    let bytes = |raw: Option<&RawValue>, digits: Option<String>| match (raw, digits) {
        (_, Some(digits)) => Some(hex::decode(digits).unwrap()),
        (Some(raw), None) if raw.get() != "null" => Some(raw.get().as_bytes().to_vec()),
        _ => None,
    };
    let header = |(name, value): (String, Option<&RawValue>)| {
        (name, value.map(|raw| serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_owned())))
    };
    let record = |line: &str| {
        let line: Line<'_> = serde_json::from_str(line).unwrap();
        let (_, rest) = line.topic.split_once('.').unwrap();
        // Of a table: a schema and a name.
        rest.contains('.').then(|| Recorded {
            topic: format!("{prefix}.{rest}"),
            headers: line.headers.into_iter().map(header).collect(),
            key: bytes(line.key, line.key_hex),
            value: bytes(line.value, line.value_hex),
        })
    };
    events.lines().filter(|line| !line.is_empty()).filter_map(record).collect()
}

/// Writes as Debezium's connector does.
struct Debezium {
    kafka: String,
    producer: BaseProducer,
}

impl Debezium {
    fn new(services: &Services) -> Debezium {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &services.kafka).set("linger.ms", "0").set("enable.idempotence", "true");
        Debezium { kafka: services.kafka.clone(), producer: config.create().unwrap() }
    }

    async fn make(&self, topic: &str, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.kafka).create().unwrap();
        let topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        made.into_iter().for_each(|made| drop(made.unwrap()));
    }

    fn write(&self, records: &[Recorded]) {
        for record in records {
            self.write_to(record, 0);
        }
        self.producer.flush(PATIENCE).unwrap();
    }

    fn write_to(&self, record: &Recorded, partition: i32) {
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: value.as_deref() }));
        let mut to = BaseRecord::<[u8], [u8]>::to(&record.topic).partition(partition).headers(headers);
        (to.key, to.payload) = (record.key.as_deref(), record.value.as_deref());
        self.producer.send(to).map_err(|(error, _)| error).unwrap();
    }
}

/// A pipeline of topics that are Debezium's, its sink, and a database with what should be there.
struct World {
    debezium: Debezium,
    pipeline: Pipeline,
    sink: Database,
    truth: Database,
}

impl World {
    async fn new(services: &Services, hint: &str, topics: &[&str]) -> World {
        let sink = services.orders.create_database(hint).await.unwrap();
        let truth = services.catalog.create_database(hint).await.unwrap();
        let mut pipeline = Pipeline::new(LOCKSTEP, services, &truth).sink("orders", &sink).several();
        for line in [&["written_by = \"debezium\""][..], topics].concat() {
            pipeline = pipeline.set("topics", line);
        }
        let pipeline = pipeline.set("sinks.orders", "lease_timeout = \"2s\"");
        World { debezium: Debezium::new(services), pipeline, sink, truth }
    }

    /// The rows that a sink may have in the end.
    async fn run_sql(&self, database: &Database, sql: &str) {
        let client = database.superuser().await.unwrap();
        let mut statement = String::new();
        for line in sql.lines().filter(|line| !line.starts_with("-- @")) {
            statement.push_str(line);
            statement.push('\n');
            if line.trim_end().ends_with(';') {
                // As psql without ON_ERROR_STOP.
                drop(client.batch_execute(&statement).await);
                statement.clear();
            }
        }
    }

    /// Both databases by a case's SQL: the sink has its tables, empty.
    async fn prepare(&self, case: &str, keep: fn(&str) -> bool) {
        let read = |file: &str| std::fs::read_to_string(golden(case).join(file)).unwrap();
        let (setup, steps) = (read("setup.sql"), read("steps.sql"));
        let steps: Vec<&str> = steps.lines().filter(|line| keep(line)).collect();
        let steps = steps.join("\n");
        self.run_sql(&self.truth, &setup).await;
        self.run_sql(&self.truth, &steps).await;
        self.run_sql(&self.sink, &setup).await;
        let client = self.sink.superuser().await.unwrap();
        let empty = "DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
                     WHERE relkind = 'r' AND nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema' LOOP \
                     EXECUTE 'TRUNCATE ' || t || ' CASCADE'; EXECUTE 'ALTER TABLE ' || t || ' OWNER TO lockstep'; END LOOP; END $$";
        client.batch_execute(empty).await.unwrap();
        let schemas = "DO $$ DECLARE n name; BEGIN FOR n IN SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' \
                       AND nspname <> 'information_schema' LOOP EXECUTE format('GRANT ALL ON SCHEMA %I TO lockstep', n); END LOOP; END $$";
        client.batch_execute(schemas).await.unwrap();
    }

    fn tables(mut self, tables: &BTreeSet<String>, also: &str) -> World {
        for table in tables {
            self.pipeline = self.pipeline.connector(table, &format!("[sinks.orders]\n{also}"));
        }
        self
    }

    async fn start(&self) -> Process {
        self.pipeline.spawn(&[]).unwrap()
    }

    /// Until the sink has so many records of a topic.
    async fn applied(&self, process: &mut Process, records: usize) -> Result<(), String> {
        let sql = format!(
            "SELECT coalesce(sum(next_offset), 0)::text FROM lockstep.partition_progress WHERE pipeline = '{}'",
            self.pipeline.name
        );
        let begun = Instant::now();
        let client = self.sink.connect().await.map_err(|error| error.to_string())?;
        loop {
            process.ensure_running().map_err(|error| error.to_string())?;
            process.ensure_not_halted().await.map_err(|error| error.to_string())?;
            let there = client.query_one("SELECT to_regclass('lockstep.partition_progress') IS NOT NULL", &[]);
            if there.await.unwrap().get(0)
                && client.query_one(&sql, &[]).await.unwrap().get::<_, String>(0) == records.to_string()
            {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err("not applied in time".to_owned());
            }
            sleep(POLL).await;
        }
    }

    /// The rows of a table in both databases, with these columns.
    async fn rows(&self, table: &str, columns: &BTreeSet<String>) -> (Vec<String>, Vec<String>) {
        let columns: Vec<String> = columns.iter().map(|name| format!("{name:?}::text")).collect();
        let sql = format!("SELECT ROW({})::text FROM {table} ORDER BY 1", columns.join(", "));
        let mut both = Vec::new();
        for database in [&self.truth, &self.sink] {
            let rows = database.superuser().await.unwrap().query(&sql, &[]).await.unwrap();
            both.push(rows.iter().map(|row| row.get(0)).collect());
        }
        (both.remove(0), both.remove(0))
    }
}

/// On threads of its own: what a world does when it is dropped waits for sessions that somebody must drive meanwhile.
fn apart<T: Send + 'static>(work: impl AsyncFnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(2).enable_all().build().unwrap().block_on(work())
    })
}

/// A case and what is different at the sink, by table and column.
struct Case {
    name: &'static str,
    topics: &'static [&'static str],
    /// Columns that Debezium's records do not have as they were: lost there, not here.
    lost: &'static [&'static str],
    /// Tables that can't be taken: without a key.
    without: &'static [&'static str],
}

const fn case(name: &'static str, topics: &'static [&'static str], lost: &'static [&'static str]) -> Case {
    Case { name, topics, lost, without: &[] }
}

async fn run_case(services: &Services, case: &Case) -> Result<usize, String> {
    let world = World::new(services, "foreign", case.topics).await;
    world.prepare(case.name, |_| true).await;
    let mut records = recorded(case.name, &world.pipeline.name);
    let table = |record: &Recorded| {
        let source = &record.payload()["source"];
        Some(format!("{}.{}", source["schema"].as_str()?, source["table"].as_str()?))
    };
    let mut columns: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for record in &records {
        if let (Some(table), Some(row)) = (table(record), record.payload()["after"].as_object()) {
            columns.entry(table).or_default().extend(row.keys().cloned());
        }
    }
    columns.retain(|table, _| !case.without.contains(&&**table));
    let prefix = world.pipeline.name.clone();
    records.retain(|record| columns.contains_key(&record.topic[prefix.len() + 1..]));
    let mut world = world;
    for (table, columns) in &mut columns {
        columns.retain(|column| !case.lost.contains(&&**column));
        let list: Vec<String> = columns.iter().map(|column| format!("{column:?}")).collect();
        let taken = format!("[sinks.orders]\ncolumns = [{}]\n", list.join(", "));
        world.pipeline = world.pipeline.connector(table, &taken);
    }
    for table in columns.keys() {
        world.debezium.make(&format!("{prefix}.{table}"), 1).await;
    }
    world.debezium.write(&records);
    let mut process = world.start().await;
    world.applied(&mut process, records.len()).await.map_err(|error| {
        let log = std::fs::read_to_string(world.pipeline.log_path()).unwrap_or_default();
        let said = log.lines().find(|line| line.contains("halted: ")).unwrap_or(&error);
        format!("{}: {said}", case.name)
    })?;
    for (table, columns) in &mut columns {
        let (truth, sink) = world.rows(table, columns).await;
        if truth != sink {
            let mut differ = Vec::new();
            for column in columns.iter() {
                let (truth, sink) = world.rows(table, &[column.clone()].into()).await;
                if truth != sink {
                    let only = |a: &[String], b: &[String]| {
                        a.iter().filter(|x| !b.contains(x)).take(4).cloned().collect::<Vec<_>>()
                    };
                    differ.push(format!("{column}: truth {:?} sink {:?}", only(&truth, &sink), only(&sink, &truth)));
                }
            }
            return Err(format!(
                "{}: {table}: {} rows, {} at the sink\n    {}",
                case.name,
                truth.len(),
                sink.len(),
                differ.join("\n    ")
            ));
        }
    }
    Ok(records.len())
}

/// bit varying and intervals as numbers are refused, `name` is always null, the time zone of a timetz is turned to UTC, and a NULL where the column has
/// a default is that.
const SCALARS: &[&str] = &["vb", "iv", "nm", "tmtz", "b", "d", "i4", "i8", "tstz", "vc"];

/// Arrays that an UPDATE sets to NULL, which Debezium also writes for one that it was not sent; the zone of a timetz.
const TIMES: &[&str] = &["da", "ta", "sa", "wa", "z", "z3"];

const CASES: &[Case] = &[
    case("01-nulls-kept", PLAIN, &["vb"]),
    case("01-scalars", PLAIN, SCALARS),
    case("02-scalars-schemas", SCHEMAS, SCALARS),
    case("03-decimal-precise", PLAIN, &["na", "nfree", "n", "n52"]),
    case("03-decimal-precise-schemas", SCHEMAS, &["na", "nfree", "n", "n52"]),
    case("03-decimal-string", STRINGS, &["na", "nfree", "n52"]),
    case("04-time-adaptive", PLAIN, TIMES),
    case("04-time-adaptive-schemas", SCHEMAS, TIMES),
    case("04-time-isostring", ISO, &["da", "ta", "sa", "wa", "z", "z3", "t", "t3"]),
    case("05-interval-string", SCHEMAS, &[]),
    case("06-binary-bytes-schemas", SCHEMAS, &["v", "v5", "v20", "vd", "ba", "bita"]),
    case("06-binary-hex", HEX, &["v", "v5", "v20", "vd", "ba", "bita", "b"]),
    case("07-arrays-snapshot", PLAIN, &["n", "tm", "ttz", "td", "bt", "i4", "nf", "t"]),
    case("07-documents-map-schemas", SCHEMAS, &["x"]),
    case("07-geometry", PLAIN, &[]),
    case("07-net-ranges-unknown", SCHEMAS, &[]),
    case("09-toast", PLAIN, &["n"]),
    case("09-toast-schemas", SCHEMAS, &["n"]),
    Case { without: &["public.no_key"], ..case("11-truncate", PLAIN, &[]) },
    Case { without: &["public.keyless"], ..case("12-transactions-schemas", SCHEMAS, &[]) },
    Case { without: &["public.nokey"], ..case("14-snapshot", PLAIN, &[]) },
    Case { without: &["public.debezium_signal"], ..case("20-incremental-snapshot", PLAIN, &[]) },
];

/// Every case's tables are those of its SQL.
#[tokio::test(flavor = "multi_thread")]
async fn tables_are_what_the_sql_of_a_recording_makes() {
    let services = Services::from_env();
    let only = std::env::var("LOCKSTEP_GOLDEN").ok();
    let wanted = |case: &&Case| only.as_ref().is_none_or(|only| only.split(',').any(|name| name == case.name));
    let mut outcomes = Vec::new();
    for some in CASES.iter().filter(wanted).collect::<Vec<_>>().chunks(AT_ONCE) {
        let begin = |case: &'static Case| {
            let services = services.clone();
            apart(async move || run_case(&services, case).await)
        };
        let running: Vec<_> = some.iter().map(|case| begin(case)).collect();
        outcomes.extend(running.into_iter().map(|case| case.join().unwrap()));
    }
    let failed: Vec<String> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Debezium's placeholder, in every type that it has one for, through updates and a key change: each column keeps what it held.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_sent_is_left_as_it_is() {
    let services = Services::from_env();
    for (case, topics) in [("09-toast", PLAIN), ("09-toast-schemas", SCHEMAS)] {
        let world = World::new(&services, "foreign_toast", topics).await;
        world.prepare(case, |line| !line.starts_with("DELETE")).await;
        let topic = format!("{}.public.big_default", world.pipeline.name);
        let mut records = recorded(case, &world.pipeline.name);
        records.retain(|record| record.topic == topic);
        // But for the delete and its tombstone.
        records.truncate(8);
        let mut columns: BTreeSet<String> =
            records[0].payload()["after"].as_object().unwrap().keys().cloned().collect();
        columns.remove("n");
        let list: Vec<String> = columns.iter().map(|column| format!("{column:?}")).collect();
        let mut world = world;
        let taken = format!("[sinks.orders]\ncolumns = [{}]\n", list.join(", "));
        world.pipeline = world.pipeline.connector("public.big_default", &taken);
        world.debezium.make(&topic, 1).await;
        let mut process = world.start().await;
        // One by one, so that nothing is made up for by what is still in memory. The key change is written again, as its last
        // records are after a crash.
        let (all, change) = (records.len().min(7), records.len().min(4));
        for (i, record) in records[..all].iter().chain(&records[change..]).enumerate() {
            world.debezium.write(std::slice::from_ref(record));
            // The delete of the key change waits for its create.
            if !(4..6).contains(&i) && !(7..9).contains(&i) {
                world.applied(&mut process, i + 1).await.unwrap();
            }
        }
        let (truth, sink) = world.rows("public.big_default", &columns).await;
        assert_eq!((truth.len(), &truth), (1, &sink), "{case}");
    }
}

const ITEMS: &str = "CREATE TABLE public.items (id int PRIMARY KEY, v text, n numeric(10,2))";

/// A record of `items` as Debezium writes it. `after`: none deletes. `at`: the end of the commit before, and its own place.
fn item(topic: &str, op: &str, at: (Option<u64>, u64), id: i64, after: Option<&str>) -> Recorded {
    let sequence = format!("[{},\"{}\"]", at.0.map_or("null".into(), |commit| format!("\"{commit}\"")), at.1);
    let snapshot = if op == "r" { "true" } else { "false" };
    let row = |row: &str| serde_json::from_str::<Value>(row).unwrap();
    let value = serde_json::json!({
        "before": if op == "d" { serde_json::json!({"id": id, "v": null, "n": null}) } else { Value::Null },
        "after": after.map_or(Value::Null, row),
        "source": {"version": "3.6.3.Final", "connector": "postgresql", "name": "x", "snapshot": snapshot, "db": "d",
            "sequence": sequence, "schema": "public", "table": "items", "txId": 1, "lsn": at.1, "xmin": null,
            "ts_us": at.0.unwrap_or(at.1) * 1000},
        "transaction": null, "op": op, "ts_ms": 1
    });
    Recorded {
        topic: topic.to_owned(),
        headers: vec![],
        key: Some(format!("{{\"id\":{id}}}").into_bytes()),
        value: Some(value.to_string().into_bytes()),
    }
}

/// Whole rows whose value tells when they were written.
fn row(id: i64, v: &str) -> String {
    format!(r#"{{"id":{id},"v":"{v}","n":"bg=="}}"#)
}

async fn items(services: &Services, partitions: i32) -> (World, String) {
    let world = World::new(services, "foreign_items", PLAIN).await;
    for database in [&world.sink, &world.truth] {
        database.execute(ITEMS).await.unwrap();
    }
    let topic = format!("{}.public.items", world.pipeline.name);
    world.debezium.make(&topic, partitions).await;
    (world.tables(&["public.items".to_owned()].into(), ""), topic)
}

/// No value of a row is ever older than the one before.
const FORWARD: &str = "
CREATE FUNCTION public.forward() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.v::int < OLD.v::int THEN RAISE 'row % went back from % to %', OLD.id, OLD.v, NEW.v; END IF; RETURN NEW; END $$;
CREATE TRIGGER forward BEFORE UPDATE ON public.items FOR EACH ROW EXECUTE FUNCTION public.forward();
";

/// Debezium crashes again and again and writes again what it had written, from the middle of transactions; so does the sink. Rows
/// never go back, and in the end they are what the last records say.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_again_changes_nothing_and_no_kill_loses_or_repeats() {
    let services = Services::from_env();
    let (world, topic) = items(&services, 1).await;
    world.sink.execute(FORWARD).await.unwrap();
    // Transactions of three records; the last two of each stand at one position, as the rows of a COPY do.
    let mut once = Vec::new();
    for transaction in 1..=200u64 {
        let commit = Some(transaction * 100);
        for place in 0..3u64 {
            // Rows that many transactions change, and rows of one record each.
            let id = if place == 0 { transaction % 13 } else { 1000 + transaction * 3 + place };
            let id = i64::try_from(id).unwrap();
            let at = (commit, transaction * 100 + place.min(1));
            let after = row(id, &(transaction * 10 + place).to_string());
            once.push(item(&topic, if transaction % 5 == 0 { "c" } else { "u" }, at, id, Some(&after)));
        }
    }
    let mut process = world.start().await;
    // What a snapshot reads is there, whatever it looks like.
    let text_like_it = row(9999, "__debezium_unavailable_value");
    world.debezium.write(&[item(&topic, "r", (None, 5), 9999, Some(&text_like_it))]);
    let (mut written, mut to) = (1_usize, 0_usize);
    for piece in 1..=6 {
        // Each time from somewhere in what was written before: half of a transaction, and half of a position. In two halves, so that
        // nothing newer in the same batch hides them.
        let from = to.saturating_sub(50 + piece);
        for again in [&once[from..from + (to - from) / 2], &once[from + (to - from) / 2..to]] {
            world.debezium.write(again);
            written += again.len();
            world.applied(&mut process, written).await.unwrap();
        }
        let next = once.len() * piece / 6;
        world.debezium.write(&once[to..next]);
        written += next - to;
        to = next;
        if piece % 2 == 0 {
            process.kill9().unwrap();
            process = world.start().await;
        }
        world.applied(&mut process, written).await.unwrap();
    }
    let mut wanted: BTreeMap<i64, String> = BTreeMap::new();
    for record in &once {
        let after = &record.payload()["after"];
        wanted.insert(after["id"].as_i64().unwrap(), after["v"].as_str().unwrap().to_owned());
    }
    wanted.insert(9999, "__debezium_unavailable_value".to_owned());
    let wanted: Vec<String> = wanted.iter().map(|(id, v)| format!("{id}={v}")).collect();
    let found = text(&world.sink, "SELECT string_agg(id || '=' || v, ',' ORDER BY id) FROM items").await;
    assert_eq!(found, wanted.join(","));
    // The next one is of another server, whose positions are lower: it is told from a repetition after a restart, too.
    process.kill9().unwrap();
    let _process = world.start().await;
    world.debezium.write(&[later(&item(&topic, "u", (Some(150), 150), 1, Some(&row(1, "1"))), 99_000_000)]);
    let (code, ..) = halted(&world).await;
    assert_eq!(code, "FOREIGN_TOPIC");
}

/// The same record, committed then.
fn later(record: &Recorded, us: i64) -> Recorded {
    let mut value: Value = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
    value["source"]["ts_us"] = us.into();
    Recorded { value: Some(value.to_string().into_bytes()), ..record.clone() }
}

/// Partitions spread over two processes; the one that is killed leaves nothing half done.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_go_from_a_killed_process_to_another_with_their_place() {
    let services = Services::from_env();
    let (world, topic) = items(&services, 4).await;
    let write = |from: u64, to: u64| {
        for n in from..to {
            let id = i64::try_from(n % 97).unwrap();
            let record = item(&topic, "u", (Some(n * 10), n * 10), id, Some(&row(id, &n.to_string())));
            world.debezium.write_to(&record, i32::try_from(id % 4).unwrap());
        }
        world.debezium.producer.flush(PATIENCE).unwrap();
    };
    let mut first = world.start().await;
    write(0, 1000);
    let mut second = world.start().await;
    write(1000, 2000);
    first.kill9().unwrap();
    write(2000, 3000);
    world.applied(&mut second, 3000).await.unwrap();
    let last =
        text(&world.sink, "SELECT count(*) FILTER (WHERE v::int >= 3000 - 97) || '/' || count(*) FROM items").await;
    assert_eq!(last, "97/97");
}

/// Records for a topic.
type Write = fn(&str) -> Vec<Recorded>;

async fn halt_of(services: Services, partitions: i32, write: Write) -> (String, String, String) {
    let (world, topic) = items(&services, partitions).await;
    let good = item(&topic, "c", (Some(10), 10), 1, Some(&row(1, "good")));
    world.debezium.write(&[vec![good], write(&topic)].concat());
    let _process = world.start().await;
    let halt = halted(&world).await;
    // What came before it is there, unless it was the database that refused the batch.
    let is_read = halt.0 == "FOREIGN_RECORD";
    let found = text(&world.sink, "SELECT v FROM items WHERE id = 1").await;
    assert!(found == "good" || !is_read, "{found}");
    halt
}

/// Code, message and hint.
async fn halted(world: &World) -> (String, String, String) {
    let begun = Instant::now();
    loop {
        let log = std::fs::read_to_string(world.pipeline.log_path()).unwrap_or_default();
        if let Some(line) = log.lines().find(|line| line.contains("halted: ")) {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| line[name].as_str().unwrap().replace(&world.pipeline.name, "P");
            return (text("code"), text("message").replace("halted: ", ""), text("hint"));
        }
        assert!(begun.elapsed() < PATIENCE, "{log}");
        sleep(POLL).await;
    }
}

/// Where records do not say what a value is, the configuration has to.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_columns_modifiers_decide_is_asked_for() {
    let services = Services::from_env();
    for topics in [&PLAIN[..PLAIN.len() - 1], PLAIN] {
        let world = World::new(&services, "foreign_modifiers", topics).await;
        world.sink.execute("CREATE TABLE public.items (id int PRIMARY KEY, v text, n numeric(12,4))").await.unwrap();
        let topic = format!("{}.public.items", world.pipeline.name);
        world.debezium.make(&topic, 1).await;
        let world = world.tables(&["public.items".to_owned()].into(), "");
        world.debezium.write(&[item(&topic, "c", (Some(10), 10), 1, Some(&row(1, "x")))]);
        let mut process = world.start().await;
        if topics == PLAIN {
            world.applied(&mut process, 1).await.unwrap();
            continue;
        }
        let (code, message, hint) = halted(&world).await;
        assert!(code == "FOREIGN_RECORD" && message.contains("column n of table public.items"), "{code} {message}");
        assert!(hint.contains("same_types = true"), "{hint}");
    }
}

/// Nothing that can't be read is passed over: what was before it is applied, and nothing behind it.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_taken_halts_by_name() {
    let services = Services::from_env();
    const AT: (Option<u64>, u64) = (Some(20), 20);
    fn with(topic: &str, value: &str) -> Vec<Recorded> {
        vec![Recorded { value: Some(value.as_bytes().to_vec()), ..item(topic, "c", AT, 2, Some(&row(2, "x"))) }]
    }
    /// Of another server, whose positions are lower.
    fn moved(topic: &str) -> Vec<Recorded> {
        vec![later(&item(topic, "c", (Some(5), 5), 2, Some(&row(2, "x"))), 10_001)]
    }
    let writes: [(i32, Write); 9] = [
        (1, |topic| with(topic, "nonsense")),
        (1, |topic| with(topic, r#"{"id":2,"v":"flat","n":"bg=="}"#)),
        (1, |topic| with(topic, r#"{"schema":{},"payload":{}}"#)),
        (1, |topic| vec![Recorded { key: None, ..item(topic, "c", AT, 2, Some(&row(2, "x"))) }]),
        (1, |topic| vec![item(topic, "c", AT, 2, Some(r#"{"id":2,"v":"x","n":"bg==","more":1}"#))]),
        (1, |topic| vec![item(topic, "c", AT, 2, Some(r#"{"id":2,"v":"x","n":"12.34"}"#))]),
        // Debezium's placeholder, for a row that is not there.
        (1, |topic| vec![item(topic, "u", AT, 2, Some(r#"{"id":2,"v":"__debezium_unavailable_value","n":"bg=="}"#))]),
        (2, |topic| vec![Recorded { key: None, ..item(topic, "t", AT, 2, None) }]),
        (1, moved),
    ];
    let mut halts = Vec::new();
    for some in writes.chunks(AT_ONCE) {
        let begin = |(partitions, write): (i32, Write)| {
            let services = services.clone();
            apart(async move || halt_of(services, partitions, write).await)
        };
        let running: Vec<_> = some.iter().map(|how| begin(*how)).collect();
        halts.extend(running.into_iter().map(|halt| halt.join().unwrap()));
    }
    let said: Vec<String> = halts.iter().map(|(code, message, _)| format!("{code} {message}")).collect();
    assert_eq!(
        said,
        [
            "FOREIGN_RECORD the record at offset 1 of P.public.items/0 is not JSON",
            "FOREIGN_RECORD the record at offset 1 of P.public.items/0 is no envelope of Debezium's (op, before, after, source)",
            "FOREIGN_RECORD the record at offset 1 of P.public.items/0 has a schema",
            "FOREIGN_RECORD the record at offset 1 of P.public.items/0 has no key",
            "SINK_TABLE records of public.items have more, and table public.items at the sink has no such column",
            "FOREIGN_RECORD a value of public.items for column n is not what its schema or the sink's column says",
            "SINK_DIVERGED updating rows of public.items reached 0 rows of the 1 that it names: the sink is not the state that it claims: it came without all of its columns (Debezium's placeholder)",
            "FOREIGN_RECORD the record at offset 1 of P.public.items/0 is a TRUNCATE in a topic of several partitions, where nothing says which rows of the others came before it",
            "FOREIGN_TOPIC the record at offset 1 of P.public.items/0 stands before what was applied, and was committed after it: Debezium reads another server, or its positions began anew",
        ]
    );
    assert!(halts.iter().all(|(_, _, hint)| !hint.is_empty() && !hint.contains("resync")), "{halts:?}");
}
