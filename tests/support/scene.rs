//! A source, one or two sinks with the same tables, and a pipeline between them: how most integration tests begin.
//!
//! Whatever fails here has nothing to say to a test but that it failed, so the functions panic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use lockstep::lsn::Lsn;
use lockstep::record::{Header, Kind};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::compare::TablePair;
use super::pipeline::{Pipeline, Process, Status};
use super::services::{Database, Server, Services, unique_name};

/// Everything here is done in a second or two on a machine with nothing else to do; tests share theirs.
pub const PATIENCE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(20);
const KAFKA_TIMEOUT: Duration = Duration::from_secs(15);

/// Dropped in this order: topics first, then the databases with their slots.
#[derive(Debug)]
pub struct Scene {
    pub pipeline: Pipeline,
    pub services: Services,
    pub source: Database,
    pub sinks: Vec<(&'static str, Database)>,
    pub tables: Vec<TablePair>,
}

/// A table and its key.
pub type Keyed = (&'static str, &'static [&'static str]);

impl Scene {
    /// Source and the sink `orders`, both with the schema; every table is routed whole.
    pub async fn new(binary: &str, hint: &str, schema: &str, tables: &[Keyed]) -> Scene {
        Scene::with_sinks(binary, hint, schema, tables, 1).await
    }

    /// The same with `orders` and `inventory`.
    pub async fn two(binary: &str, hint: &str, schema: &str, tables: &[Keyed]) -> Scene {
        Scene::with_sinks(binary, hint, schema, tables, 2).await
    }

    async fn with_sinks(binary: &str, hint: &str, schema: &str, tables: &[Keyed], count: usize) -> Scene {
        Scene::bare(binary, hint, schema, count).await.route(tables)
    }

    fn route(self, tables: &[Keyed]) -> Scene {
        let tables_of = tables.iter().map(|(table, key)| TablePair::same(table, key)).collect();
        let route = |pipeline| tables.iter().fold(pipeline, |p: Pipeline, (table, _)| p.table(table));
        Scene { tables: tables_of, ..self.configure(route) }
    }

    /// Databases with the schema, no table routed yet.
    pub async fn bare(binary: &str, hint: &str, schema: &str, sinks: usize) -> Scene {
        let services = Services::from_env();
        let source = services.catalog.create_database(hint).await.unwrap();
        Scene::of(binary, hint, schema, sinks, services, source).await
    }

    /// With one sink and a source on a server of the test's own, which may end before the scene does.
    pub async fn on(binary: &str, hint: &str, schema: &str, tables: &[Keyed], server: &Server) -> Scene {
        let source = server.recreate_database(&unique_name(hint)).await.unwrap();
        let scene = Scene::of(binary, hint, schema, 1, Services::from_env(), source).await;
        scene.route(tables)
    }

    async fn of(binary: &str, hint: &str, schema: &str, sinks: usize, services: Services, source: Database) -> Scene {
        source.execute(schema).await.unwrap();
        let mut pipeline = Pipeline::new(binary, &services, &source);
        let mut databases = Vec::new();
        for (name, server) in [("orders", &services.orders), ("inventory", &services.inventory)].into_iter().take(sinks)
        {
            let database = server.create_database(hint).await.unwrap();
            database.execute(schema).await.unwrap();
            pipeline = pipeline.sink(name, &database);
            databases.push((name, database));
        }
        Scene { pipeline, services, source, sinks: databases, tables: Vec::new() }
    }

    pub fn configure(self, change: impl FnOnce(Pipeline) -> Pipeline) -> Scene {
        Scene { pipeline: change(self.pipeline), ..self }
    }

    pub fn orders(&self) -> &Database {
        &self.sinks[0].1
    }

    /// Statements at the source, in one transaction if they don't say otherwise.
    pub async fn sql(&self, sql: &str) {
        self.source.execute(sql).await.unwrap();
    }

    pub fn spawn(&self, roles: &[&str]) -> Process {
        self.pipeline.spawn(roles).unwrap()
    }

    /// Starts every role and waits until all of them stream.
    pub async fn start(&self) -> Process {
        let mut process = self.spawn(&[]);
        self.streaming(&mut process).await;
        process
    }

    /// Waits until the sinks hold what is there now.
    pub async fn streaming(&self, process: &mut Process) {
        let sinks: Vec<(&str, &Database)> = self.sinks.iter().map(|(name, sink)| (*name, sink)).collect();
        self.pipeline.wait_caught_up(process, &self.source, &sinks, PATIENCE).await.unwrap();
    }

    /// Waits until the sinks have caught up with a source at rest, and compares every row.
    pub async fn equal(&self, process: &mut Process) {
        let sinks: Vec<(&str, &Database)> = self.sinks.iter().map(|(name, sink)| (*name, sink)).collect();
        self.pipeline.wait_equal(process, &self.source, &sinks, &self.tables, PATIENCE).await.unwrap();
    }

    pub fn slot(&self) -> String {
        format!("lockstep_{}", self.pipeline.name)
    }

    pub async fn confirmed(&self) -> Lsn {
        let sql =
            format!("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{}'", self.slot());
        text(&self.source, &sql).await.parse().unwrap()
    }

    /// What a sink holds of a table and of progress, to see that a refusal touched nothing.
    pub async fn fingerprint(&self, table: &str) -> String {
        let sql = format!(
            "SELECT coalesce((SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t), 'empty') || ' at ' ||
                    coalesce((SELECT string_agg(commit_lsn::text || ledger_offset, ',') FROM lockstep.progress), '-')"
        );
        text(self.orders(), &sql).await
    }

    /// Rows of the table that were read by chunks, as often as they were.
    pub fn rows_read(&self, table: &str) -> usize {
        let records = read_topic(&self.services.kafka, &format!("{}.{table}", self.pipeline.name));
        let headers = records.iter().filter_map(|seen| Header::decode(seen.header("ls")?).ok());
        headers.filter(|header| header.kind == Kind::ChunkRow).count()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.pipeline.log_path()).unwrap_or_default()
    }
}

/// Waits for the halt of the sink `orders`; its message and hint.
pub async fn halted(process: &mut Process, code: &'static str) -> (String, String) {
    let halted = |s: &Status| s.halt_code(Some("orders")) == Some(code);
    let status = process.wait_until("the halt", PATIENCE, halted).await.unwrap();
    let halt = &status.0["sinks"]["orders"]["halt"];
    (halt["message"].as_str().unwrap().to_owned(), halt["hint"].as_str().unwrap().to_owned())
}

/// The first column of the only row, as text.
pub async fn text(database: &Database, sql: &str) -> String {
    let client = database.connect().await.unwrap();
    let row = client.query_one(&format!("SELECT ({sql})::text"), &[]).await.unwrap();
    row.get::<_, Option<String>>(0).unwrap_or_else(|| "NULL".to_owned())
}

/// Waits until a query at a database gives that text.
pub async fn wait_text(database: &Database, sql: &str, wanted: &str, process: &mut Process) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = text(database, sql).await;
        if found == wanted {
            return;
        }
        process.ensure_running().unwrap();
        assert!(Instant::now() < deadline, "{sql}: {found}, not {wanted}");
        sleep(POLL).await;
    }
}

/// One record as any consumer sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub partition: i32,
    pub key: Option<String>,
    pub value: Option<serde_json::Value>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_slice())
    }
}

/// Everything in a topic of JSON, partition by partition.
pub fn read_topic(brokers: &str, topic: &str) -> Vec<Seen> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let seen = |raw: Raw| Seen {
        partition: raw.partition,
        key: raw.key.map(text),
        value: raw.value.map(|value| serde_json::from_slice(&value).unwrap()),
        headers: raw.headers,
    };
    read_raw(brokers, topic).into_iter().map(seen).collect()
}

/// One record's own bytes.
#[derive(Clone, Debug)]
pub struct Raw {
    pub partition: i32,
    /// The client's or the broker's, by the topic's setting.
    pub timestamp_ms: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// A topic that was just made has no leader yet.
fn watermarks(consumer: &BaseConsumer, topic: &str, partition: i32) -> (i64, i64) {
    let deadline = Instant::now() + KAFKA_TIMEOUT;
    loop {
        match consumer.fetch_watermarks(topic, partition, KAFKA_TIMEOUT) {
            Ok(watermarks) => return watermarks,
            Err(error) => assert!(Instant::now() < deadline, "{topic}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Everything in a topic of any format, partition by partition.
pub fn read_raw(brokers: &str, topic: &str) -> Vec<Raw> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "lockstep-test")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), KAFKA_TIMEOUT).unwrap();
    let mut seen = Vec::new();
    for partition in metadata.topics()[0].partitions() {
        let (low, high) = watermarks(&consumer, topic, partition.id());
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition.id(), Offset::Offset(low)).unwrap();
        consumer.assign(&list).unwrap();
        let mut next = low;
        while next < high {
            let message = consumer.poll(KAFKA_TIMEOUT).expect("records that the watermark promises").unwrap();
            next = message.offset() + 1;
            let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
            seen.push(Raw {
                partition: partition.id(),
                timestamp_ms: message.timestamp().to_millis(),
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().map(<[u8]>::to_vec),
                headers: headers.map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect(),
            });
        }
    }
    seen
}

/// Tables for [`Events`]: every transaction writes three rows of `events` and one of `journal`.
pub const EVENTS_SCHEMA: &str = "
CREATE TABLE public.events (id bigint PRIMARY KEY, tx bigint NOT NULL, note text);
CREATE TABLE public.journal (tx bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp());
";
pub const EVENTS: [Keyed; 2] = [("public.events", &["id"]), ("public.journal", &["tx"])];

/// At a sink: every effect on `events` leaves a row of its own.
pub const AUDIT_SCHEMA: &str = "
CREATE TABLE public.audit (n bigserial, id bigint, op text);
CREATE FUNCTION public.audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO public.audit (id, op) VALUES (coalesce(NEW.id, OLD.id), TG_OP); RETURN NULL; END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON public.events FOR EACH ROW EXECUTE FUNCTION public.audit();
";

/// Writers that only insert, whole transactions of a known shape. They outlive the source server: after a lost connection
/// they come back, and what the source holds then is the truth.
#[derive(Debug)]
pub struct Events {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicI64>,
    task: JoinHandle<()>,
}

impl Events {
    pub fn start(port: u16, database: &str, pause: Duration) -> Events {
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new(AtomicI64::new(0));
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(port).user("lockstep").password("lockstep").dbname(database);
        config.connect_timeout(Duration::from_secs(5));
        let (stopped, count) = (stop.clone(), committed.clone());
        let task = tokio::spawn(async move {
            let mut tx = 0_i64;
            while !stopped.load(Ordering::Relaxed) {
                let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await else {
                    sleep(POLL).await;
                    continue;
                };
                let connection = tokio::spawn(connection);
                while !stopped.load(Ordering::Relaxed) {
                    // A number is never used twice, so an unknown outcome does not matter.
                    tx += 1;
                    let first = tx * 3;
                    let sql = format!(
                        "BEGIN; INSERT INTO public.events SELECT i, {tx}, 'note ' || i FROM generate_series({first}, {first} + 2) i;
                         INSERT INTO public.journal VALUES ({tx}); COMMIT"
                    );
                    if client.batch_execute(&sql).await.is_err() {
                        break;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    sleep(pause).await;
                }
                drop(client);
                let _ = connection.await;
            }
        });
        Events { stop, committed, task }
    }

    pub fn on(scene: &Scene, pause: Duration) -> Events {
        Events::start(scene.source.server.port, &scene.source.name, pause)
    }

    pub fn committed(&self) -> i64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// The number of transactions that were acknowledged.
    pub async fn stop(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.committed.load(Ordering::Relaxed)
    }
}

/// Every row of `events` took effect exactly once at the sink.
pub async fn assert_once(sink: &Database) {
    let doubled = "SELECT coalesce(string_agg(id || ' x' || c, ', '), 'none') FROM
                   (SELECT id, count(*) c FROM public.audit GROUP BY id HAVING count(*) > 1 LIMIT 20) d";
    assert_eq!(text(sink, doubled).await, "none", "effects that came more than once");
    let missed = "SELECT count(*) FROM public.events e WHERE NOT EXISTS (SELECT FROM public.audit a WHERE a.id = e.id)";
    assert_eq!(text(sink, missed).await, "0", "rows without an effect");
    let other = "SELECT count(*) FROM public.audit a WHERE op <> 'INSERT'";
    assert_eq!(text(sink, other).await, "0", "effects other than the insert");
}

/// A reader at a sink that never stops looking: each transaction is there whole or not at all. Gives the number of looks.
pub fn watch_whole(database: &Database) -> (Arc<AtomicBool>, JoinHandle<u64>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (port, name, stopped) = (database.server.port, database.name.clone(), stop.clone());
    let task = tokio::spawn(async move {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(port).user("lockstep").password("lockstep").dbname(&name);
        let mut looks = 0;
        while !stopped.load(Ordering::Relaxed) {
            let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await else {
                sleep(POLL).await;
                continue;
            };
            tokio::spawn(connection);
            let sql = "SELECT count(*) FROM (SELECT tx, count(*) c FROM public.events GROUP BY tx) e
                         FULL JOIN public.journal j USING (tx) WHERE e.c IS DISTINCT FROM 3 OR j.at IS NULL";
            while let Ok(row) = client.query_one(sql, &[]).await {
                assert_eq!(row.get::<_, i64>(0), 0, "a transaction was seen in part");
                looks += 1;
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                sleep(POLL * 5).await;
            }
        }
        looks
    });
    (stop, task)
}
