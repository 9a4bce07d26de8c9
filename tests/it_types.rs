//! What is special about some types, databases and tables: types made by the transaction that uses them, other encodings than
//! UTF-8, columns that a sink fills itself, roles with no more rights than they need.

mod support;

use lockstep::error::Code;
use lockstep::postgres::slot;
use support::scene::{PATIENCE, Scene, text};
use support::{Database, Pipeline, Services, Status, TablePair};

const LOCKSTEP: &str = env!("CARGO_BIN_EXE_lockstep");

/// The transaction is in the stream before its types are visible to anybody's snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn types_made_by_the_transaction_that_uses_them() {
    let scene =
        Scene::new(LOCKSTEP, "fresh", "CREATE TABLE public.t (id int PRIMARY KEY)", &[("public.t", &["id"])]).await;
    let types = |i: i32| {
        format!(
            "CREATE TYPE e{i} AS ENUM ('a', 'b {i}'); CREATE TYPE c{i} AS (e e{i}, l e{i}[]); CREATE DOMAIN d{i} AS c{i}[];
             ALTER TABLE t ADD e{i} e{i}, ADD d{i} d{i};"
        )
    };
    for i in 0..5 {
        scene.orders().execute(&types(i)).await.unwrap();
    }
    let mut process = scene.start().await;
    for i in 0..5 {
        let row = format!(
            "INSERT INTO t (id, e{i}, d{i}) VALUES ({i}, 'b {i}', ARRAY[ROW('a', '{{\"b {i}\",NULL}}')::c{i}])"
        );
        scene.sql(&format!("BEGIN; {} {row}; COMMIT", types(i))).await;
    }
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();

    let writer = scene.source.connect().await.unwrap();
    let ours = scene.source.connect().await.unwrap();
    writer.batch_execute("BEGIN").await.unwrap();
    let open = u32::try_from(slot::fresh_xid(&writer).await.unwrap() & 0xFFFF_FFFF).unwrap();
    let soon = std::time::Duration::from_millis(50);
    let waited = slot::wait_visible(&ours, open, soon).await.unwrap_err();
    assert!(waited.code().is_none() && waited.to_string().contains(&open.to_string()), "{waited}");
    let (waited, ended) = tokio::join!(slot::wait_visible(&ours, open, PATIENCE), writer.batch_execute("COMMIT"));
    ended.unwrap();
    waited.unwrap();
}

/// Made of Postgres' own functions; between its elements stands what is in other types' values.
const OWN_BASE: &str = "
CREATE TYPE public.own;
CREATE FUNCTION public.own_in(cstring) RETURNS public.own AS 'textin' LANGUAGE internal IMMUTABLE STRICT;
CREATE FUNCTION public.own_out(public.own) RETURNS cstring AS 'textout' LANGUAGE internal IMMUTABLE STRICT;
CREATE TYPE public.own (INPUT = public.own_in, OUTPUT = public.own_out, LIKE = text, DELIMITER = '|');
";

const CHANGING: &str = "
CREATE TYPE public.mood AS ENUM ('sad', 'ok');
CREATE TYPE public.pair AS (a int, b text);
CREATE TABLE public.changing (id int PRIMARY KEY, m mood, ms mood[], p pair, ps pair[], o own, os own[]);
INSERT INTO changing VALUES (1, 'sad', '{ok,NULL}', '(1,x)', ARRAY['(1,x)'::pair, NULL], 'a|b,c', '{\"a|b,c\"|NULL|\"\"}');
";

/// Types that are altered between transactions and within one, a base type that only its database knows, negative scales.
#[tokio::test(flavor = "multi_thread")]
async fn types_that_change_and_types_of_one_s_own() {
    let scene = Scene::bare(LOCKSTEP, "changing", "", 1).await.configure(|p| p.table("public.changing"));
    let scene = Scene { tables: vec![TablePair::same("public.changing", &["id"])], ..scene };
    for database in [&scene.source, scene.orders()] {
        database.superuser().await.unwrap().batch_execute(OWN_BASE).await.unwrap();
        database.execute(CHANGING).await.unwrap();
    }
    let both = async |sql: &str| {
        scene.orders().execute(sql).await.unwrap();
        scene.sql(sql).await;
    };
    let mut process = scene.start().await;
    scene.sql("INSERT INTO changing SELECT 2, m, ms, p, ps, o, os FROM changing").await;
    scene.equal(&mut process).await;
    for (label, place) in [("be, {}", "BEFORE 'sad'"), ("back\\slash", ""), ("quo''ted \"", "AFTER 'sad'")] {
        both(&format!("ALTER TYPE mood ADD VALUE '{label}' {place}")).await;
        let row = format!("UPDATE changing SET m = '{label}', ms = ARRAY['{label}', 'ok', NULL]::mood[] WHERE id = 1");
        scene.sql(&row).await;
    }
    both("ALTER TYPE mood RENAME VALUE 'sad' TO 'glad'").await;
    scene.sql("UPDATE changing SET m = 'glad' WHERE id = 2").await;
    scene.equal(&mut process).await;
    both("ALTER TYPE pair ADD ATTRIBUTE c numeric").await;
    scene.sql("BEGIN; UPDATE changing SET p = '(2,y,1.0)', ps = ARRAY['(2,y,1.0)'::pair] WHERE id = 1; INSERT INTO changing (id, p) VALUES (3, '(,,)'); COMMIT").await;
    scene.equal(&mut process).await;
    both("ALTER TYPE pair DROP ATTRIBUTE b").await;
    scene.sql("INSERT INTO changing (id, p) VALUES (4, '(7,NaN)')").await;
    scene.equal(&mut process).await;
    if scene.services.postgres_version >= 15 {
        both("ALTER TABLE changing ADD n numeric(3,-2), ADD f numeric(2,5)").await;
        scene.sql("UPDATE changing SET n = 12345 * id, f = 0.00042; INSERT INTO changing (id, n) VALUES (5, 'NaN'), (6, -99900)").await;
        scene.equal(&mut process).await;
    }
    process.terminate(PATIENCE).await.unwrap();
}

/// An empty database in another encoding; dropped with the value.
async fn database(services: &Services, hint: &str, encoding: &str) -> Database {
    let database = services.catalog.create_database(hint).await.unwrap();
    let admin = services.catalog.superuser().await.unwrap();
    admin.batch_execute(&format!("DROP DATABASE {}", database.name)).await.unwrap();
    let create = format!(
        "CREATE DATABASE {} OWNER lockstep TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'",
        database.name
    );
    admin.batch_execute(&create).await.unwrap();
    database
}

const TEXTS: &str = "CREATE TABLE public.t (k text PRIMARY KEY, v text)";

async fn encoded(encoding: &str) -> Scene {
    let services = Services::from_env();
    let source = database(&services, "encoded", encoding).await;
    let sink = services.orders.create_database("encoded").await.unwrap();
    source.execute(TEXTS).await.unwrap();
    sink.execute(TEXTS).await.unwrap();
    let pipeline = Pipeline::new(LOCKSTEP, &services, &source).sink("orders", &sink).table("public.t");
    let pipeline = pipeline.set("source.snapshot", "chunk_rows = 10");
    let tables = vec![TablePair::same("public.t", &["k"])];
    Scene { pipeline, services, source, sinks: vec![("orders", sink)], tables }
}

/// Texts are converted, and keys are cut into chunks by their bytes in UTF-8 whatever the database's own are: in Windows 1252
/// the euro sign stands before é, in UTF-8 behind it.
#[tokio::test(flavor = "multi_thread")]
async fn databases_in_other_encodings() {
    for encoding in ["WIN1252", "LATIN1"] {
        let scene = encoded(encoding).await;
        let letters = if encoding == "LATIN1" { "ÿé~Aß" } else { "€é~Aÿ™ß" };
        let rows = format!(
            "INSERT INTO t SELECT c || i, c || c FROM unnest(string_to_array('{letters}', NULL)) c, generate_series(1, 30) i"
        );
        scene.sql(&rows).await;
        let mut process = scene.spawn(&[]);
        for round in 0..10 {
            scene.sql(&format!("UPDATE t SET v = v || 'ü' WHERE hashtext(k) % 10 = {round}; DELETE FROM t WHERE hashtext(k) % 30 = {round}")).await;
        }
        scene.equal(&mut process).await;
        // A copy over what is there, some of it wrong.
        process.terminate(PATIENCE).await.unwrap();
        scene.orders().execute("DELETE FROM lockstep.progress; INSERT INTO t SELECT k || '!', v FROM t").await.unwrap();
        let mut process = scene.start().await;
        scene.equal(&mut process).await;
        process.terminate(PATIENCE).await.unwrap();
    }
}

/// A database without an encoding takes any bytes. What is UTF-8 arrives, what is not is refused by name, in a chunk as in the
/// stream, and the sink stays as it is.
#[tokio::test(flavor = "multi_thread")]
async fn texts_that_are_none() {
    let halted = |s: &Status| s.halt_code(None) == Some(Code::SourceEncoding.as_str());
    let bad = "INSERT INTO t VALUES ('bad', convert_from('\\xff', 'SQL_ASCII'))";
    for streamed in [false, true] {
        let scene = encoded("SQL_ASCII").await;
        scene.sql("INSERT INTO t VALUES ('é', '𝄞')").await;
        if streamed {
            let mut process = scene.start().await;
            scene.equal(&mut process).await;
            let confirmed = scene.confirmed().await;
            scene.sql(bad).await;
            let status = process.wait_until("the halt", PATIENCE, halted).await.unwrap();
            assert!(!status.to_string().contains("0xff"), "no value is shown: {status}");
            let before = scene.fingerprint("public.t").await;
            scene.sql("DELETE FROM t WHERE k = 'bad'").await;
            assert_eq!(scene.fingerprint("public.t").await, before);
            assert!(scene.confirmed().await >= confirmed, "the slot keeps what was not written");
        } else {
            scene.sql(bad).await;
            let mut process = scene.spawn(&[]);
            process.wait_until("the halt", PATIENCE, halted).await.unwrap();
            process.terminate(PATIENCE).await.unwrap();
            // What the documentation says of an existing row.
            scene.sql("UPDATE t SET v = 'good' WHERE k = 'bad'").await;
            let warned = scene.pipeline.command(&["check"]).unwrap();
            assert!(String::from_utf8_lossy(&warned.stdout).contains("SQL_ASCII"), "{warned:?}");
            let mut process = scene.start().await;
            scene.equal(&mut process).await;
            process.terminate(PATIENCE).await.unwrap();
        }
    }
}

const FILLED: &str = "
CREATE TABLE public.always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, size int GENERATED ALWAYS AS (length(v)) STORED);
CREATE TABLE public.by_default (k text PRIMARY KEY, n int GENERATED BY DEFAULT AS IDENTITY, s serial);
";

/// Columns that are generated on both sides, and identity columns, whose values come from the source.
#[tokio::test(flavor = "multi_thread")]
async fn generated_and_identity_columns() {
    let scene =
        Scene::new(LOCKSTEP, "filled", FILLED, &[("public.always", &["id"]), ("public.by_default", &["k"])]).await;
    scene.sql("INSERT INTO always (v) SELECT repeat('x', i) FROM generate_series(1, 30) i; DELETE FROM always WHERE id < 10").await;
    scene.sql("INSERT INTO by_default (k) SELECT i FROM generate_series(1, 30) i").await;
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    scene.sql("INSERT INTO always (v) VALUES ('new'), (NULL); UPDATE always SET v = v || 'y' WHERE id % 2 = 0").await;
    scene
        .sql("INSERT INTO by_default VALUES ('own', 1, 1); UPDATE by_default SET n = n + 100, s = DEFAULT WHERE s < 9")
        .await;
    scene.sql("INSERT INTO always OVERRIDING SYSTEM VALUE VALUES (-5, 'overridden')").await;
    scene.equal(&mut process).await;
    let differ = "SELECT count(*) FROM always WHERE size IS DISTINCT FROM length(v)";
    assert_eq!(text(scene.orders(), differ).await, "0");
    // Only the sink's own sequence could give such a row another number, so a key change can't be followed there.
    scene.sql("UPDATE always SET id = DEFAULT WHERE id = -5").await;
    let halted = |s: &Status| s.halt_code(Some("orders")) == Some("SINK_TABLE");
    let status = process.wait_until("the halt", PATIENCE, halted).await.unwrap();
    process.terminate(PATIENCE).await.unwrap();
    let hint = status.0["sinks"]["orders"]["halt"]["hint"].as_str().unwrap().to_owned();
    scene.orders().execute(&hint).await.unwrap();
    let mut process = scene.start().await;
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();
}

/// The rights that docs/configuration.md asks for, and no others, with settings of the roles' own that must change nothing.
#[tokio::test(flavor = "multi_thread")]
async fn roles_with_no_more_rights_than_they_need() {
    let schema =
        "CREATE TABLE public.t (id int PRIMARY KEY, b bytea, f float8, d timestamptz, i interval, m money, a text[])";
    let scene = Scene::new(LOCKSTEP, "least", schema, &[("public.t", &["id"])]).await;
    let (source, sink) = (scene.source.superuser().await.unwrap(), scene.orders().superuser().await.unwrap());
    let role = format!("poor_{}", scene.source.name);
    let odd = "SET bytea_output = escape; ALTER ROLE {role} SET extra_float_digits = -10; ALTER ROLE {role} SET TimeZone = 'Asia/Tokyo';
        ALTER ROLE {role} SET DateStyle = 'German'; ALTER ROLE {role} SET IntervalStyle = iso_8601;
        ALTER ROLE {role} SET statement_timeout = '1ms'; ALTER ROLE {role} SET idle_in_transaction_session_timeout = '1ms';
        ALTER ROLE {role} SET idle_session_timeout = '1ms'; ALTER ROLE {role} SET default_transaction_isolation = serializable; ALTER ROLE {role} SET search_path = nowhere;
        ALTER ROLE {role} SET array_nulls = off";
    let create =
        format!("CREATE ROLE {role} LOGIN PASSWORD '{role}'; ALTER ROLE {role} {}", odd.replace("{role}", &role));
    let publication = format!("CREATE PUBLICATION {} FOR TABLE ONLY public.t", scene.slot());
    let rights = format!(
        "{create}; ALTER ROLE {role} REPLICATION; ALTER ROLE {role} SET default_transaction_read_only = on;
         GRANT SELECT ON public.t TO {role}; {publication}"
    );
    source.batch_execute(&rights).await.unwrap();
    let rights = format!(
        "{create}; CREATE SCHEMA lockstep AUTHORIZATION {role}; GRANT USAGE ON SCHEMA lockstep TO lockstep;
         ALTER DEFAULT PRIVILEGES FOR ROLE {role} IN SCHEMA lockstep GRANT SELECT ON TABLES TO lockstep;
         GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON public.t TO {role}"
    );
    sink.batch_execute(&rights).await.unwrap();
    let url =
        |database: &Database| format!("postgres://{role}:{role}@127.0.0.1:{}/{}", database.server.port, database.name);
    let (source_url, sink_url) = (url(&scene.source), url(scene.orders()));
    let scene = scene.configure(|p| p.source_url(source_url).sink_url("orders", sink_url));
    let rows = |from: i32| {
        format!("INSERT INTO t SELECT i, decode(md5(i::text), 'hex'), 0.1 * i + 1e-15, timestamptz '2024-01-01 00:00:00.123456+00' + i * interval '1 hour',
                 i * interval '1 mon -1 day 1.5 sec', i::money * 1234.5, ARRAY['null', NULL] FROM generate_series({from}, {from} + 30) i")
    };
    scene.sql(&rows(0)).await;
    let mut process = scene.start().await;
    scene.sql(&rows(100)).await;
    scene.sql("UPDATE t SET f = -f WHERE id % 3 = 0; DELETE FROM t WHERE id % 3 = 1; UPDATE t SET id = id + 1000 WHERE id = 2").await;
    scene.equal(&mut process).await;
    scene.sql(&format!("TRUNCATE t; {}", rows(200))).await;
    scene.equal(&mut process).await;
    process.terminate(PATIENCE).await.unwrap();
    drop(scene);
    for client in [source, sink] {
        drop(client);
    }
    let services = Services::from_env();
    for server in [&services.catalog, &services.orders] {
        server.superuser().await.unwrap().batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
    }
}
