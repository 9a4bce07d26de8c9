//! Values and keys of many types on the whole way, loaded and streamed, and tables that change their shape.

mod support;

use std::time::Duration;

use support::scene::{Keyed, PATIENCE, Scene, text};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

const TYPES: &str = "
CREATE TYPE public.mood AS ENUM ('sad', 'ok', 'happy; \"very\"');
CREATE DOMAIN public.positive AS int CHECK (VALUE > 0);
CREATE TABLE public.v (id int PRIMARY KEY, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric, n2 numeric(20,5), b bool,
    t text, vc varchar(30), ch char(5), nm name, by bytea, d date, ts timestamp, ts3 timestamp(3), tz timestamptz, ti time, tt timetz,
    iv interval, u uuid, j json, jb jsonb, ia int[], ta text[][], na numeric[], inet inet, cidr cidr, mac macaddr, bits bit(5),
    vb bit varying, m public.mood, pos public.positive, r int4range, tr tstzrange, mr int4multirange, x xml, p point, o oid, ms public.mood[],
    money numeric(10,0), tsv tsvector, ba bytea[]);
";

/// Rows at the edges of their types.
const EDGES: &str = r#"
INSERT INTO v (id) VALUES (1);
INSERT INTO v VALUES (2, -32768, -2147483648, -9223372036854775808, 'NaN', '-Infinity', 'NaN', -0.00001, false,
    E'tab\t nl\n cr\r bs\\ "q" ''s'' \u2028 𝄞 \x01', 'é', 'ab', 'name', '\x00ff5c', '-infinity', '0044-03-15 12:00:00 BC', 'infinity',
    'infinity', '24:00', '23:59:59.999999+15:59', '-1 year 2 mons -3 days 04:05:06.000007', '00000000-0000-0000-0000-000000000000',
    '{"a" :  1.0, "a": 2}', '{"k": [1e400, null, "\\"], "z": -0.0}', '{}', '{{a,NULL},{"NULL","x,\"y\\"}}', '{NaN,Infinity,1.10}',
    '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03', B'10101', B'', 'happy; "very"', 7, 'empty', '[2024-01-01 00:00+02,)', '{[1,3),[7,9)}',
    '<a>&amp;</a>', '(1e-300,-0)', 4294967295, '{sad,NULL}', 1234567890, 'a:1 b:2A', '{"\\x00",NULL}');
INSERT INTO v VALUES (3, 32767, 2147483647, 9223372036854775807, 3.4028235e38, 5e-324,
    123456789012345678901234567890123456789.000000000000000000000000000001, 99999999999999.99999, true, '', '', '', '', '', 'infinity',
    '294276-12-31 23:59:59.999999', '2024-01-01 00:00:00.123', '4713-01-01 00:00:00 BC', '00:00', '00:00-15:59', '178000000 years',
    'ffffffff-ffff-ffff-ffff-ffffffffffff', '""', '""', '[5:7]={1,2,3}', '{}', '{}', '255.255.255.255', '::/0', 'ff:ff:ff:ff:ff:ff', B'00000',
    B'1', 'sad', 1, '(,)', 'empty', '{}', '', '(Infinity,NaN)', 0, '{}', 0, '', '{}');
INSERT INTO v (id, f4, f8, n, t) SELECT i, 0.1 * i, 0.1 * i + 1e-15, i / 7.0, repeat(chr(i), i) FROM generate_series(10, 400) i
"#;

#[tokio::test(flavor = "multi_thread")]
async fn values_at_the_edges_of_their_types() {
    let scene = Scene::new(LOCKSTEP, "edges", TYPES, &[("public.v", &["id"])]).await;
    scene.sql(EDGES).await;
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    // The same through the stream.
    scene.sql("TRUNCATE v").await;
    scene.sql(EDGES).await;
    scene.equal(&mut process).await;
    scene.sql("UPDATE v SET id = id + 1000, i2 = i2; UPDATE v SET f8 = -f8, n = -n, t = upper(t), tz = tz + '1 us' WHERE id > 1003").await;
    scene.sql("UPDATE v SET j = NULL, ta = '{x}', tt = NULL, iv = '1 mon' WHERE id = 1002").await;
    scene.equal(&mut process).await;
}

const KEYS: &str = "
CREATE COLLATION public.ci (provider = icu, locale = 'und');
CREATE TYPE public.size AS ENUM ('z', 'a', 'm');
CREATE TABLE public.k_numeric (k numeric PRIMARY KEY, v text);
CREATE TABLE public.k_uuid (k uuid PRIMARY KEY, v text);
CREATE TABLE public.k_text (k text COLLATE public.ci PRIMARY KEY, v text);
CREATE TABLE public.k_bytea (k bytea PRIMARY KEY, v text);
CREATE TABLE public.k_time (k timestamptz PRIMARY KEY, v text);
CREATE TABLE public.k_date (k date, e public.size, v text, PRIMARY KEY (k, e));
CREATE TABLE public.k_float (k float8 PRIMARY KEY, v text);
CREATE TABLE public.k_mixed (a varchar(20), b numeric(10,2), c bool, d int2, v text, PRIMARY KEY (b, a, c, d));
";
const KEYED: [Keyed; 8] = [
    ("public.k_numeric", &["k"]),
    ("public.k_uuid", &["k"]),
    ("public.k_text", &["k"]),
    ("public.k_bytea", &["k"]),
    ("public.k_time", &["k"]),
    ("public.k_date", &["k", "e"]),
    ("public.k_float", &["k"]),
    ("public.k_mixed", &["a", "b", "c", "d"]),
];

const KEY_ROWS: &str = r#"
INSERT INTO k_numeric SELECT (i - 200) * 1.10, 'v' FROM generate_series(1, 400) i;
INSERT INTO k_numeric VALUES ('NaN', 'v'), ('Infinity', 'v'), ('-Infinity', 'v'), (1e30, 'v'), (-1e30, 'v');
INSERT INTO k_uuid SELECT md5(i::text)::uuid, 'v' FROM generate_series(1, 400) i;
INSERT INTO k_text SELECT (ARRAY['a','B','é','Z','ß','_','𝄞','"',''])[1 + i % 9] || i, 'v' FROM generate_series(1, 400) i;
INSERT INTO k_bytea SELECT decode(md5(i::text), 'hex'), 'v' FROM generate_series(1, 400) i;
INSERT INTO k_time SELECT timestamptz '1999-12-31 23:00+00' + (i - 200) * interval '31 days 1 us', 'v' FROM generate_series(1, 400) i;
INSERT INTO k_time VALUES ('infinity', 'v'), ('-infinity', 'v'), ('4000-01-01 BC', 'v');
INSERT INTO k_date SELECT date '2000-01-01' + i / 3 - 60, (ARRAY['z','a','m'])[1 + i % 3]::size, 'v' FROM generate_series(1, 400) i;
INSERT INTO k_float SELECT (i - 200) * 0.1, 'v' FROM generate_series(1, 400) i;
INSERT INTO k_float VALUES ('NaN', 'v'), ('Infinity', 'v'), ('-Infinity', 'v'), (1e-320, 'v');
INSERT INTO k_mixed SELECT 'k' || i % 7, i % 50, i % 2 = 0, i / 2, 'v' FROM generate_series(1, 400) i
"#;

/// Chunks are cut by key, in an order that the source's server, the reader and the sink must agree on.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_many_types_are_loaded_in_chunks_under_changes() {
    let scene =
        Scene::new(LOCKSTEP, "keys", KEYS, &KEYED).await.configure(|p| p.set("source.snapshot", "chunk_rows = 20"));
    scene.sql(KEY_ROWS).await;
    let changes = async {
        for round in 0..25 {
            for (table, _) in KEYED {
                // Rows anywhere: changed, deleted and made again, so that every chunk meets some.
                let sql = format!(
                    "UPDATE {table} x SET v = v || '{round}' WHERE hashtext(x::text) % 25 = {round};
                     DELETE FROM {table} x WHERE hashtext(x::text) % 101 = {round};
                     BEGIN;
                     CREATE TEMP TABLE was ON COMMIT DROP AS SELECT * FROM {table} x WHERE hashtext(x::text) % 17 = {round} % 17;
                     DELETE FROM {table} x USING was WHERE x::text = was::text;
                     INSERT INTO {table} SELECT * FROM was;
                     COMMIT"
                );
                scene.sql(&sql).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut process = scene.spawn(&[]);
    changes.await;
    scene.equal(&mut process).await;
}

/// A column that both sides get, first the sink; then one that only the source gets.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_gets_columns() {
    let scene =
        Scene::new(LOCKSTEP, "columns", "CREATE TABLE public.c (id int PRIMARY KEY, v text)", &[("public.c", &["id"])])
            .await;
    let mut process = scene.start().await;
    scene.sql("INSERT INTO c SELECT i, 'v' FROM generate_series(1, 50) i").await;
    scene.equal(&mut process).await;
    scene.orders().execute("ALTER TABLE c ADD more int").await.unwrap();
    scene.sql("ALTER TABLE c ADD more int").await;
    scene.sql("UPDATE c SET more = id WHERE id < 20; INSERT INTO c VALUES (51, 'w', 7)").await;
    scene.equal(&mut process).await;
    let rows = "SELECT md5(string_agg(c::text, '|' ORDER BY id)) FROM c";
    let before = text(scene.orders(), rows).await;
    scene.sql("ALTER TABLE c ADD only_here text").await;
    scene.sql("UPDATE c SET only_here = 'x'").await;
    let halted = |s: &support::Status| s.halt_code(Some("orders")) == Some("SINK_TABLE");
    let status = process.wait_until("the halt", PATIENCE, halted).await.unwrap();
    let hint = status.0["sinks"]["orders"]["halt"]["hint"].as_str().unwrap().to_owned();
    assert_eq!(text(scene.orders(), rows).await, before);
    assert_eq!(status.halt_code(None), None, "{status}");
    // What it says, typed at the sink, is enough.
    process.terminate(PATIENCE).await.unwrap();
    scene.orders().execute(&hint).await.unwrap();
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
}

/// Old rows whole, or the key of another index than the primary key: unchanged big values, key changes and swaps arrive whole.
#[tokio::test(flavor = "multi_thread")]
async fn replica_identities_full_and_using_index() {
    let schema = "CREATE TABLE public.f (a int, b text, big text, v int, PRIMARY KEY (b, a));
        CREATE TABLE public.i (id int PRIMARY KEY, code text NOT NULL, big text, v int);
        CREATE UNIQUE INDEX i_code ON public.i (code);
        ALTER TABLE public.f REPLICA IDENTITY FULL; ALTER TABLE public.f ALTER big SET STORAGE EXTERNAL;
        ALTER TABLE public.i REPLICA IDENTITY USING INDEX i_code; ALTER TABLE public.i ALTER big SET STORAGE EXTERNAL;";
    let scene = Scene::new(LOCKSTEP, "identities", schema, &[("public.f", &["b", "a"]), ("public.i", &["code"])]).await;
    scene.sql("INSERT INTO f SELECT i, 'k' || i, repeat(md5(i::text), 300), i FROM generate_series(1, 20) i").await;
    scene.sql("INSERT INTO i SELECT i, 'k' || i, repeat(md5(i::text), 300), i FROM generate_series(1, 20) i").await;
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    for (table, key) in [("f", "b"), ("i", "code")] {
        scene.sql(&format!("UPDATE {table} SET v = v + 100 WHERE v < 5; DELETE FROM {table} WHERE v = 7")).await;
        scene.sql(&format!("UPDATE {table} SET {key} = 'moved' || v WHERE v BETWEEN 10 AND 12")).await;
        scene
            .sql(&format!("UPDATE {table} SET big = NULL, v = -v WHERE v = 15; UPDATE {table} SET v = 0 WHERE v = -15"))
            .await;
        scene
            .sql(&format!(
                "BEGIN; UPDATE {table} SET {key} = 'park' WHERE v = 18; UPDATE {table} SET {key} = 'k18' WHERE v = 19;
                 UPDATE {table} SET {key} = 'k19' WHERE {key} = 'park'; COMMIT"
            ))
            .await;
    }
    // The primary key is an ordinary column where another index is the identity.
    scene.sql("UPDATE i SET id = id + 1000 WHERE id < 4").await;
    scene.equal(&mut process).await;
}

/// What was deleted at the source while a sink had no progress goes there too, also where rows of another table hold it.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_made_anew_loses_rows_that_others_reference() {
    let schema = "CREATE TABLE public.a (id int PRIMARY KEY, v text);
        CREATE TABLE public.b (id int PRIMARY KEY, a int REFERENCES public.a);
        CREATE TABLE public.c (id int PRIMARY KEY, b int REFERENCES public.b);";
    let tables: [(&str, &[&str]); 3] = [("public.a", &["id"]), ("public.b", &["id"]), ("public.c", &["id"])];
    let scene = Scene::new(LOCKSTEP, "anew", schema, &tables).await;
    scene.sql("INSERT INTO a SELECT i, 'v' FROM generate_series(1, 30) i").await;
    scene.sql("INSERT INTO b SELECT i, i FROM generate_series(1, 30) i; INSERT INTO c SELECT i, i FROM generate_series(1, 30) i").await;
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();
    scene.sql("DELETE FROM c WHERE id > 20; DELETE FROM b WHERE id > 20; DELETE FROM a WHERE id > 20").await;
    scene.orders().execute("DELETE FROM lockstep.progress").await.unwrap();
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
}

/// Modes that lose much on the wire: what our sinks get is exact all the same, keys too.
const LOSSY: [&str; 9] = [
    "decimal_handling = \"double\"",
    "time_precision = \"connect\"",
    "interval_handling = \"numeric\"",
    "binary_handling = \"hex\"",
    "unknown_types = \"skip\"",
    "conversion_failure = \"null\"",
    "null_as_default = true",
    "schemas = true",
    "transaction_metadata = true",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_mode_that_loses_on_the_wire_loses_nothing_at_a_sink() {
    let schema = format!("{TYPES}{KEYS}ALTER TABLE v ALTER t SET DEFAULT 'dflt', ALTER i8 SET DEFAULT 7;");
    let tables: Vec<Keyed> = KEYED.into_iter().chain([("public.v", &["id"][..])]).collect();
    let lossy = |p: support::Pipeline| LOSSY.into_iter().fold(p, |p, line| p.set("wire", line));
    let scene = Scene::new(LOCKSTEP, "lossy", &schema, &tables).await.configure(lossy);
    scene.sql(EDGES).await;
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    scene.sql("TRUNCATE v").await;
    scene.sql(EDGES).await;
    scene.sql(KEY_ROWS).await;
    scene
        .sql("UPDATE k_time SET k = k + '1 us'; UPDATE k_numeric SET k = k + 0.01; UPDATE k_float SET k = k + 0.05 WHERE abs(k) > 0.01")
        .await;
    scene.sql("DELETE FROM k_time WHERE k > '2001-01-01'; DELETE FROM k_date WHERE e = 'z'; DELETE FROM k_bytea").await;
    scene.equal(&mut process).await;
    // The sink reads what is waiting by the entries of its time, whatever the configuration says by then.
    process.kill9().unwrap();
    let mut source = scene.spawn(&["source"]);
    scene.sql("UPDATE v SET ts = ts + '1 us', iv = iv * 2 WHERE id > 3; UPDATE k_time SET v = 'waiting'").await;
    settled(&scene, &mut source).await;
    drop(source);
    let scene = scene.configure(|p| p.unset("wire").set("wire", "time_precision = \"isostring\""));
    let mut source = scene.spawn(&["source"]);
    scene.sql("UPDATE v SET ts = ts - interval '1 us', n = -n WHERE id > 3; UPDATE k_time SET v = 'behind it'").await;
    settled(&scene, &mut source).await;
    drop(source);
    let scene = scene.configure(|p| p.unset("wire"));
    let mut process = scene.start().await;
    scene.sql("UPDATE v SET ts = ts + '2 us' WHERE id > 3").await;
    scene.equal(&mut process).await;
}

/// What a mode has no form for halts the source before it: nothing behind it is confirmed, and another mode gets past it.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_its_mode_has_no_form_for_halts_the_source() {
    let schema = "CREATE TABLE public.p (id int PRIMARY KEY, n numeric, at timestamp)";
    let scene = Scene::new(LOCKSTEP, "no_form", schema, &[("public.p", &["id"])]).await;
    let mut scene = scene.configure(|p| p.set("wire", "decimal_handling = \"precise\""));
    scene.sql("INSERT INTO p SELECT i, i, now() FROM generate_series(1, 10) i").await;
    drop(scene.start().await);
    for (wire, value, column) in [
        ("decimal_handling = \"precise\"", "n = 'NaN'", "n"),
        ("time_precision = \"nanoseconds\"", "at = '2300-01-01'", "at"),
    ] {
        scene = scene.configure(|p| p.unset("wire").set("wire", wire));
        let mut process = scene.start().await;
        let before = scene.source.wal_lsn().await.unwrap();
        scene
            .sql(&format!("BEGIN; UPDATE p SET n = n + 1 WHERE id = 1; UPDATE p SET {value} WHERE id = 2; COMMIT"))
            .await;
        scene.sql("DELETE FROM p WHERE id = 3").await;
        let halted = |s: &support::Status| s.halt_code(None) == Some("RECORD_INVALID");
        let status = process.wait_until("the halt", PATIENCE, halted).await.unwrap();
        let message = status.0["source"]["halt"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("public.p") && message.contains(&format!("{column:?}")), "{message}");
        assert!(scene.confirmed().await <= before, "what was not written is not confirmed");
        drop(process);
        // Not even a part of the transaction was applied.
        assert_eq!(text(scene.orders(), "SELECT count(*) FROM p WHERE id = 3").await, "1");
        scene = scene.configure(|p| p.unset("wire").set("wire", wire).set("wire", "conversion_failure = \"null\""));
        let mut process = scene.start().await;
        scene.equal(&mut process).await;
        scene.sql("DELETE FROM p WHERE id < 4; INSERT INTO p VALUES (1, 1, now()), (2, 2, now()), (3, 3, now())").await;
        scene.equal(&mut process).await;
    }
}

/// Waits until the reader has written everything that is committed.
async fn settled(scene: &Scene, process: &mut support::Process) {
    let lsn = scene.source.wal_lsn().await.unwrap();
    scene.sql("SELECT pg_logical_emit_message(true, 'lockstep test', '')").await;
    let reached = |status: &support::Status| {
        let position = status.0["source"]["position"].as_str().and_then(|text| text.parse().ok());
        position.is_some_and(|position: lockstep::lsn::Lsn| position >= lsn)
    };
    process.wait_until("everything is in the ledger", PATIENCE, reached).await.unwrap();
}
