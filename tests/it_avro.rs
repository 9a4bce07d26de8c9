//! Tables in Avro, end to end: real servers, a real schema registry, the real binary.
//!
//! What a plain consumer sees is read with the schemas that the registry gives for the ids in the records, by `apache-avro`.

mod support;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use support::Pipeline;
use support::scene::{
    AUDIT_SCHEMA, EVENTS, EVENTS_SCHEMA, Events, Keyed, PATIENCE, Raw, Scene, assert_once, read_raw, text,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

async fn scene(hint: &str, schema: &str, tables: &[Keyed]) -> Scene {
    let scene = Scene::new(LOCKSTEP, hint, schema, tables).await;
    let registry = scene.services.registry.clone();
    assert!(!registry.is_empty(), "no schema registry: run scripts/test, or scripts/services up --registry");
    scene.configure(|p| with_registry(p.set("wire", "format = \"avro\""), &registry))
}

fn with_registry(pipeline: Pipeline, url: &str) -> Pipeline {
    pipeline.unset("registry").set("registry", &format!("url = \"{url}\""))
}

fn ask(registry: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    support::avro::ask(registry, method, path, body).unwrap()
}

/// Reads records as a consumer with Confluent's deserializer does.
#[derive(Default)]
struct Consumer {
    registry: String,
    schemas: HashMap<u32, Schema>,
}

impl Consumer {
    fn read(&mut self, framed: &[u8]) -> Value {
        assert_eq!(framed[0], 0);
        let id = u32::from_be_bytes(framed[1..5].try_into().unwrap());
        let schema = self.schemas.entry(id).or_insert_with(|| {
            let (status, answer) = ask(&self.registry, "GET", &format!("/schemas/ids/{id}"), "");
            assert_eq!(status, 200, "{answer}");
            Schema::parse_str(answer["schema"].as_str().unwrap()).unwrap()
        });
        let mut datum = &framed[5..];
        let value = GenericDatumReader::builder(schema).build().unwrap().read_value(&mut datum).unwrap();
        assert!(datum.is_empty());
        value.try_into().unwrap()
    }

    /// `key op before after`.
    fn show(&mut self, record: &Raw) -> String {
        let key = record.key.as_ref().map_or(Value::Null, |key| self.read(key));
        match &record.value {
            None => format!("{key} tombstone"),
            Some(value) => {
                let value = self.read(value);
                format!("{key} {} {} {}", value["op"].as_str().unwrap(), value["before"], value["after"])
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_arrive_and_a_plain_consumer_reads_the_topic() {
    let schema =
        "CREATE TABLE public.items (id int PRIMARY KEY, \"the name\" text, price numeric(8,2), rating float8 NOT NULL)";
    let scene = scene("avro_items", schema, &[("public.items", &["id"])]).await;
    scene.sql("INSERT INTO items VALUES (0, 'zero', 0.10, 0.5)").await;
    let mut process = scene.start().await;
    scene.sql("INSERT INTO items VALUES (1, 'one', 1.10, 1.5), (2, 'two', NULL, -0.1)").await;
    scene.sql("UPDATE items SET price = 1.20 WHERE id = 1").await;
    scene.sql("UPDATE items SET id = 3 WHERE id = 2").await;
    scene.sql("DELETE FROM items WHERE id = 1").await;
    scene.equal(&mut process).await;

    let topic = format!("{}.public.items", scene.pipeline.name);
    let mut consumer = Consumer { registry: scene.services.registry.clone(), ..Consumer::default() };
    let records = read_raw(&scene.services.kafka, &topic);
    let shown: Vec<String> = records.iter().map(|record| consumer.show(record)).collect();
    insta::assert_snapshot!(shown.join("\n"), @r#"
    {"id":0} r null {"id":0,"price":"0.10","rating":0.5,"the_name":"zero"}
    {"id":1} c null {"id":1,"price":"1.10","rating":1.5,"the_name":"one"}
    {"id":2} c null {"id":2,"price":null,"rating":-0.1,"the_name":"two"}
    {"id":1} u null {"id":1,"price":"1.20","rating":1.5,"the_name":"one"}
    {"id":2} d {"id":2,"price":null,"rating":0.0,"the_name":null} null
    {"id":2} tombstone
    {"id":3} c null {"id":3,"price":null,"rating":-0.1,"the_name":"two"}
    {"id":1} d {"id":1,"price":null,"rating":0.0,"the_name":null} null
    {"id":1} tombstone
    "#);
    let header = |i: usize, name: &str| {
        let found = records[i].headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        found.map(|value| String::from_utf8(value).unwrap())
    };
    // As Connect's SimpleHeaderConverter, whatever the format.
    assert_eq!(header(4, "__debezium.newkey").as_deref(), Some("{\"id\":3}"));
    assert_eq!(header(6, "__debezium.oldkey").as_deref(), Some("{\"id\":2}"));
    let first = consumer.read(records[1].value.as_ref().unwrap());
    assert_eq!(first["source"]["table"], "items");
    assert_eq!(first["source"]["connector"], "postgresql");
    assert!(first["ts_ms"].as_i64().unwrap() > 1_700_000_000_000, "{first}");

    // One version of each subject, also after a start that registers them again.
    process.terminate(PATIENCE).await.unwrap();
    let mut process = scene.start().await;
    scene.sql("INSERT INTO items VALUES (9, 'nine', 9, 9)").await;
    scene.equal(&mut process).await;
    for subject in ["key", "value"] {
        let path = format!("/subjects/{topic}-{subject}/versions");
        assert_eq!(ask(&scene.services.registry, "GET", &path, "").1, json!([1]), "{subject}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_an_outbox_have_schemas_under_their_own_topics() {
    // One whose payload is all of the value, and one with a version and a column beside what its payload says.
    let schema = "CREATE TABLE public.plain (id int PRIMARY KEY, aggregatetype text, aggregateid text NOT NULL, payload jsonb);
        CREATE TABLE public.told (id int PRIMARY KEY, aggregatetype text, aggregateid int, payload jsonb, kind text, v int);";
    let scene = Scene::bare(LOCKSTEP, "avro_outbox", schema, 0).await;
    let registry = scene.services.registry.clone();
    let scene = scene.configure(|p| {
        let topic = "[outbox]\ntopic = \"{prefix}.{table}.{route}\"\n";
        let told =
            "expand_json_payload = true\nschema_version_field = \"v\"\nadditional_placement = [\"kind:envelope\"]\n";
        let p =
            p.connector("public.plain", topic).connector("public.told", &format!("{topic}format = \"avro\"\n{told}"));
        with_registry(p.set("wire", "format = \"avro\""), &registry)
    });
    let mut process = scene.spawn(&["source"]);
    // What is written before the first rows are read may come twice.
    let deadline = Instant::now() + PATIENCE;
    while !scene.log().contains("existing rows loaded") {
        assert!(Instant::now() < deadline, "{}", scene.log());
        sleep(Duration::from_millis(50)).await;
    }
    let sql = r#"INSERT INTO plain VALUES (1, 'Order', 'a', '{"n": 1}'), (2, 'Order', 'b', NULL), (3, 'Customer', 'c', '"é"');
        INSERT INTO told VALUES (1, 'Order', 7, '{"n": 1.5, "big": 3000000000, "none": null, "l": [{"a": 1}, {"b": true}]}', 'made', 3),
                                (2, 'Order', NULL, '"no object"', NULL, NULL), (3, 'Order', 8, NULL, 'gone', 3)"#;
    scene.sql(sql).await;
    let topic = |of: &str| format!("{}.{of}", scene.pipeline.name);
    let mut consumer = Consumer { registry: registry.clone(), ..Consumer::default() };
    let mut shown = |of: &str, count: usize| {
        let records = read_raw(&scene.services.kafka, &topic(of));
        let mut part =
            |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or("-".to_owned(), |bytes| consumer.read(bytes).to_string());
        let lines: Vec<String> = records.iter().map(|r| format!("{} {}", part(&r.key), part(&r.value))).collect();
        (lines.len() == count).then_some(lines)
    };
    let [told, order, customer] = loop {
        // Topics are made with their first record.
        let known = scene.log().matches("a topic that rows of an outbox name").count() == 3;
        let mut all = || Some([shown("told.Order", 3)?, shown("plain.Order", 2)?, shown("plain.Customer", 1)?]);
        if let Some(all) = known.then(&mut all).flatten() {
            break all;
        }
        assert!(Instant::now() < deadline, "{}", scene.log());
        sleep(Duration::from_millis(50)).await;
    };
    let object = r#"{"big":3000000000,"l":[{"a":1,"b":null},{"a":null,"b":true}],"n":1.5}"#;
    assert_eq!(told[0], format!(r#"7 {{"kind":"made","payload":{object}}}"#));
    assert_eq!(told[1..], [r#"- {"kind":null,"payload":"\"no object\""}"#, r#"8 {"kind":"gone","payload":null}"#]);
    assert_eq!(order, [r#""a" "{\"n\": 1}""#, r#""b" -"#]);
    assert_eq!(customer, [r#""c" "\"é\"""#]);

    // As Confluent's AvroConverter registers them.
    let newest = |of: &str| ask(&registry, "GET", &format!("/subjects/{}/versions/latest", topic(of)), "").1;
    assert_eq!(newest("plain.Order-key")["schema"], r#""string""#);
    let payload = r#"["null",{"type":"string","connect.version":1,"connect.name":"io.debezium.data.Json"}]"#;
    assert_eq!(newest("plain.Customer-value")["schema"], payload);
    assert_eq!(newest("told.Order-key")["schema"], r#"["null","int"]"#);
    let first = ask(&registry, "GET", &format!("/subjects/{}/versions/1", topic("told.Order-value")), "").1;
    let first: Value = serde_json::from_str(first["schema"].as_str().unwrap()).unwrap();
    let namespace = format!("{}.public.told.Order", scene.pipeline.name);
    assert_eq!(
        (&first["name"], &first["namespace"], &first["connect.version"]),
        (&json!("Value"), &json!(namespace), &json!(3))
    );
    // Nothing is registered for a topic that has no records.
    for of in ["public.plain-value", "public.told-value"] {
        assert_eq!(ask(&registry, "GET", &format!("/subjects/{}/versions", topic(of)), "").0, 404, "{of}");
    }
    process.terminate(PATIENCE).await.unwrap();
}

const MIXED_SCHEMA: &str = "
CREATE TYPE public.mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE public.mixed (id int, b text, v float8, f float4, n numeric, at timestamptz, day date, bits bit(5), tags text[],
    grid int[], j jsonb DEFAULT '{}', u uuid, m money, span interval, feeling mood, raw bytea, big text, PRIMARY KEY (id, b));
CREATE TABLE public.whole (id int PRIMARY KEY, v text, big text);
ALTER TABLE public.mixed ALTER big SET STORAGE EXTERNAL;
ALTER TABLE public.whole ALTER big SET STORAGE EXTERNAL;
ALTER TABLE public.whole REPLICA IDENTITY FULL;
";
const MIXED: [Keyed; 2] = [("public.mixed", &["id", "b"]), ("public.whole", &["id"])];

/// What is awkward to carry, each statement a transaction; the big columns are out of line and mostly not sent.
const STATEMENTS: [&str; 12] = [
    "INSERT INTO mixed SELECT i, 'k' || i, i / 3.0, i / 3.0, i / 7.0, now() - i * interval '1 day', date '2024-01-01' + i,
         i::bit(5), ARRAY['a' || i, NULL], ARRAY[[i, 2], [3, 4]], jsonb_build_object('n', i), md5(i::text)::uuid, i::text::money,
         i * interval '1 mon 2 days 3.5 s', 'ok', decode(md5(i::text), 'hex'), repeat(md5(i::text), 300) FROM generate_series(1, 40) i",
    "INSERT INTO whole SELECT i, 'v', repeat(md5(i::text), 300) FROM generate_series(1, 20) i",
    "UPDATE mixed SET v = v * 1.1, feeling = 'happy' WHERE id % 2 = 0",
    "UPDATE whole SET v = 'w' WHERE id % 3 = 0",
    "UPDATE mixed SET id = id + 1000 WHERE id % 5 = 0",
    "UPDATE whole SET id = -id WHERE id % 4 = 0",
    "UPDATE mixed SET v = 'NaN', f = '-Infinity', n = 'NaN', at = 'infinity', day = '-infinity' WHERE id < 4",
    "UPDATE mixed SET v = 9.999999999999999e+22, f = 1e-45, n = -0.00000000000000000001, day = '4713-01-01 BC', tags = '[3:4]={x,y}'
         WHERE id BETWEEN 4 AND 8",
    "UPDATE mixed SET b = b || '!' , big = NULL WHERE id = 1; UPDATE mixed SET big = 'short' WHERE id = 1",
    "DELETE FROM mixed WHERE id BETWEEN 10 AND 14; DELETE FROM whole WHERE id = 1",
    "INSERT INTO mixed (id, b) VALUES (-1, ''), (-2, 'é€😀')",
    "UPDATE whole SET big = repeat('é', 5000) WHERE id = 2; UPDATE whole SET v = NULL",
];

/// Every kind of change while the process is killed again and again; a truncate in the middle; equal in the end.
#[tokio::test(flavor = "multi_thread")]
async fn every_change_arrives_whatever_is_killed() {
    let scene = scene("avro_mixed", MIXED_SCHEMA, &MIXED).await;
    let mut process = scene.start().await;
    for statement in STATEMENTS {
        scene.sql(&format!("BEGIN; {statement}; COMMIT")).await;
    }
    scene.equal(&mut process).await;
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..3 {
        if round == 1 {
            scene.sql("TRUNCATE mixed, whole").await;
        } else {
            scene.sql("DELETE FROM mixed; DELETE FROM whole").await;
        }
        for (i, statement) in STATEMENTS.iter().enumerate() {
            scene.sql(&format!("BEGIN; {statement}; COMMIT")).await;
            if i % 4 == round {
                sleep(Duration::from_millis(random.random_range(0..400))).await;
                process.kill9().unwrap();
                process = scene.spawn(&[]);
            }
        }
        scene.equal(&mut process).await;
    }
}

/// Waits until more than so many records are there. Before the first start there is no topic.
async fn wait_more(process: &mut support::Process, before: usize, count: impl Fn() -> usize) {
    process.wait_until("a source that streams", PATIENCE, |s| !s.0["source"]["position"].is_null()).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while count() <= before {
        process.ensure_running().unwrap();
        assert!(Instant::now() < deadline, "nothing is written");
        sleep(Duration::from_millis(200)).await;
    }
}

/// Every effect once, with kills, an existing load and a new start in the other format.
#[tokio::test(flavor = "multi_thread")]
async fn effects_come_once_and_the_format_can_be_changed() {
    let scene = scene("avro_once", EVENTS_SCHEMA, &EVENTS).await;
    scene.orders().execute(AUDIT_SCHEMA).await.unwrap();
    scene.sql("INSERT INTO events SELECT i, i / 3, 'before' FROM generate_series(-3000, -1) i").await;
    let load = Events::on(&scene, Duration::from_millis(2));
    let mut process = scene.spawn(&[]);
    let mut random = StdRng::seed_from_u64(3);
    let mut scene = scene;
    let topic = format!("{}.public.journal", scene.pipeline.name);
    for (i, format) in ["avro", "avro", "json", "avro"].into_iter().enumerate() {
        // Until this start has written something, a kill would say nothing about its format.
        let written = || read_raw(&scene.services.kafka, &topic).len();
        wait_more(&mut process, if i == 0 { 0 } else { written() }, written).await;
        sleep(Duration::from_millis(random.random_range(0..400))).await;
        process.kill9().unwrap();
        let registry = scene.services.registry.clone();
        let line = format!("format = \"{format}\"");
        scene = scene.configure(|p| with_registry(p.unset("wire").set("wire", &line), &registry));
        process = scene.spawn(&[]);
    }
    assert!(load.stop().await > 100);
    scene.equal(&mut process).await;
    assert_once(scene.orders()).await;
    let raw = read_raw(&scene.services.kafka, &topic);
    let avro = raw.iter().filter(|record| record.value.as_ref().is_some_and(|value| value[0] == 0)).count();
    assert!(avro > 0 && avro < raw.len(), "{avro} of {}", raw.len());
}

/// A column more is a new version; one that the subject's level forbids halts the source where it is, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_refused_halts_before_its_first_record() {
    let schema = "CREATE TABLE public.items (id int PRIMARY KEY, n int)";
    let scene = scene("avro_refused", schema, &[("public.items", &["id"])]).await.configure(Pipeline::several);
    let registry = scene.services.registry.clone();
    let topic = format!("{}.public.items", scene.pipeline.name);
    let mut process = scene.start().await;
    scene.sql("INSERT INTO items VALUES (1, 1)").await;
    scene.equal(&mut process).await;
    let level = |level: &str| {
        let body = json!({ "compatibility": level }).to_string();
        assert_eq!(ask(&registry, "PUT", &format!("/config/{topic}-value"), &body).0, 200);
    };
    level("BACKWARD");
    scene.orders().execute("ALTER TABLE items ADD COLUMN note text").await.unwrap();
    scene.sql("ALTER TABLE items ADD COLUMN note text").await;
    scene.sql("INSERT INTO items VALUES (2, 2, 'second')").await;
    scene.equal(&mut process).await;
    let versions = format!("/subjects/{topic}-value/versions");
    assert_eq!(ask(&registry, "GET", &versions, "").1, json!([1, 2]));

    let change = "ALTER TABLE items DROP COLUMN n; ALTER TABLE items ADD COLUMN n text";
    scene.orders().execute(change).await.unwrap();
    let records = read_raw(&scene.services.kafka, &topic).len();
    let before = scene.source.wal_lsn().await.unwrap();
    scene.sql(change).await;
    scene.sql("INSERT INTO items VALUES (3, 'third', 'x')").await;
    let halted = |s: &support::Status| s.halt_code(None) == Some("SCHEMA_REFUSED");
    let status = process.wait_until("a refused schema", PATIENCE, halted).await.unwrap();
    let halt = status.0["source"]["halt"].to_string();
    assert!(halt.contains("table public.items") && halt.contains(&format!("{topic}-value")), "{halt}");
    assert_eq!(read_raw(&scene.services.kafka, &topic).len(), records, "a record was written with a refused schema");
    assert_eq!(text(scene.orders(), "SELECT count(*) FROM items WHERE id = 3").await, "0");
    process.kill9().unwrap();
    let commit =
        text(&scene.source, &format!("SELECT pg_wal_lsn_diff('{}', '{before}') > 400", scene.confirmed().await)).await;
    assert_eq!(commit, "false", "the slot was moved past a change that was not written");
    let (code, found) = check(&scene);
    assert!(code == 3 && found.contains("error[SCHEMA_REFUSED]") && found.contains("table public.items"), "{found}");
    assert_eq!(ask(&registry, "GET", &versions, "").1, json!([1, 2]), "check registers nothing");

    level("NONE");
    let (_, found) = check(&scene);
    assert!(found.contains(&format!("registry {registry}: ok")), "{found}");
    let mut process = scene.spawn(&[]);
    scene.equal(&mut process).await;
    assert_eq!(ask(&registry, "GET", &versions, "").1, json!([1, 2, 3]));
}

/// The exit code of `lockstep check`, and what it says.
fn check(scene: &Scene) -> (i32, String) {
    scene.pipeline.write().unwrap();
    let output = scene.pipeline.command(&["check"]).unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code().unwrap(), text)
}

/// A web server that is no registry: whatever it is asked, it welcomes.
async fn welcome(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            // One read: an answer is no answer to what is still on its way.
            let mut asked = vec![0; 1 << 16];
            let _ = stream.read(&mut asked).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 7\r\n\r\nwelcome").await;
        });
    }
}

/// What is no registry halts the source by name; one that is down is waited for, in words, and what happened meanwhile arrives once
/// it is back. `check` says either before a start.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_none_halts_and_one_that_is_down_is_waited_for() {
    let schema = "CREATE TABLE public.items (id int PRIMARY KEY, v text)";
    let scene = scene("avro_down", schema, &[("public.items", &["id"])]).await.configure(Pipeline::several);
    let real = scene.services.registry.clone();
    let (authority, base) = real.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let scene = scene.configure(|p| with_registry(p, &format!("http://127.0.0.1:{port}/{base}")));
    scene.sql("INSERT INTO items VALUES (1, 'one')").await;
    let nonsense = tokio::spawn(welcome(listener));
    let (code, found) = check(&scene);
    assert!(code == 3 && found.contains("error[REGISTRY_REFUSED]") && found.contains(&port.to_string()), "{found}");
    let mut process = scene.spawn(&[]);
    let halted = |s: &support::Status| s.halt_code(None) == Some("REGISTRY_REFUSED");
    process.wait_until("no registry", PATIENCE, halted).await.unwrap();
    process.kill9().unwrap();
    nonsense.abort();
    let _ = nonsense.await;

    let (code, found) = check(&scene);
    assert!(code == 1 && found.contains("error: asking the schema registry"), "{code} {found}");
    let mut process = scene.spawn(&[]);
    let waits = |s: &support::Status| {
        let waiting = s.0["source"]["waiting_for"].as_str().unwrap_or_default();
        s.source_state() == "retrying"
            && waiting.contains("asking the schema registry")
            && waiting.contains(&port.to_string())
    };
    process.wait_until("a registry that is waited for", PATIENCE, waits).await.unwrap();
    scene.sql("INSERT INTO items VALUES (2, 'two')").await;

    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let authority = authority.to_owned();
    let forward = tokio::spawn(async move {
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            let mut to = tokio::net::TcpStream::connect(&authority).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut from, &mut to).await });
        }
    });
    scene.equal(&mut process).await;
    forward.abort();
}
