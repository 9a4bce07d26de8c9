//! The source room against a real Postgres: catalog facts, preflight, publication, slot and chunks.
//!
//! `eval "$(scripts/services env)"` names the server; any release from 14 on. Each test has its own database and drops it.

use std::cmp::Ordering;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use lockstep::error::{Code, Error};
use lockstep::key::{KeyColumn, KeyOrder, KeyRange, compare, order_by, predicate};
use lockstep::postgres::catalog::{self, Identity, RelationShape, StreamedColumn, StreamedRelation, TableFacts};
use lockstep::postgres::chunk::{self, ChunkRead, ChunkRequest, Extent, Plan};
use lockstep::postgres::publication::{self, PublicationState};
use lockstep::postgres::{preflight, slot, types};
use lockstep::relation::{Format, Modes, Relation, TableName};
use tokio_postgres::{Client, NoTls};

fn environment(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: eval \"$(scripts/services env)\" first"))
}

fn wanted(tables: &[TableName]) -> preflight::Wanted<'_> {
    preflight::Wanted { publication: "p", tables, insert_only: &[], create: true, reads: true }
}

/// A session with the settings that every session with values pins.
async fn connect(role: &str, database: &str) -> Client {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(environment("LOCKSTEP_TEST_CATALOG_PORT").parse().expect("a port"))
        .user(role)
        .password(role)
        .dbname(database)
        .application_name("it_source");
    let (client, connection) = config.connect(NoTls).await.expect("the test server answers");
    tokio::spawn(connection);
    client
        .batch_execute(
            "SET client_encoding = 'UTF8'; SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET timezone = 'UTC';
             SET extra_float_digits = 3; SET bytea_output = 'hex'; SET search_path = pg_catalog",
        )
        .await
        .unwrap();
    client
}

/// A database of one test. `ours` is the role lockstep, which owns the database; `admin` a superuser in it.
struct Database {
    name: String,
    ours: Client,
    admin: Client,
}

impl Database {
    async fn sql(&self, sql: &str) {
        self.ours.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {:?}", e.as_db_error()));
    }

    async fn admin(&self, sql: &str) {
        self.admin.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {:?}", e.as_db_error()));
    }

    async fn facts(&self, table: &str) -> TableFacts {
        catalog::table_facts(&self.ours, &[public(table)]).await.unwrap().pop().unwrap().expect("the table is there")
    }

    async fn relation(&self, table: &str) -> Relation {
        catalog::build_relation(&self.facts(table).await, shape()).unwrap()
    }

    /// A slot's name; slots are the whole server's.
    fn slot(&self) -> String {
        format!("s_{}", self.name)
    }

    async fn version(&self) -> i32 {
        catalog::source_facts(&self.ours).await.unwrap().version
    }
}

fn public(table: &str) -> TableName {
    TableName::new("public", table)
}

static MODES: std::sync::LazyLock<Modes> = std::sync::LazyLock::new(Modes::default);

fn shape() -> RelationShape<'static> {
    RelationShape {
        topic: "shop.public.t",
        partitions: 1,
        format: Format::Json,
        modes: &MODES,
        exact: |column, _| column.type_oid != 701,
        insert_only: false,
        key: &[],
    }
}

/// Runs a test in a database of its own, and removes database, slots and roles of that name whatever happens.
async fn with_database(test: impl AsyncFnOnce(&Database)) {
    let name = format!("it_source_{}", uuid::Uuid::new_v4().simple());
    let server = connect("postgres", "postgres").await;
    server.batch_execute(&format!("CREATE DATABASE {name} OWNER lockstep")).await.unwrap();
    let database = Database {
        ours: connect("lockstep", &name).await,
        admin: connect("postgres", &name).await,
        name: name.clone(),
    };
    database.admin("ALTER SCHEMA public OWNER TO lockstep").await;
    // A hang would keep transactions open that other tests' slots wait for.
    let limit = Duration::from_secs(60);
    let result = AssertUnwindSafe(tokio::time::timeout(limit, test(&database))).catch_unwind().await;
    drop(database);
    let backends = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    server.batch_execute(&backends).await.unwrap();
    // A slot is free only once the backend that held it is gone.
    let held = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name LIKE 's_{name}%' AND active");
    let begun = std::time::Instant::now();
    while !server.query(&held, &[]).await.unwrap().is_empty() && begun.elapsed() < limit {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let slots = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 's_{name}%'"
    );
    server.batch_execute(&slots).await.unwrap();
    server.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
    server.batch_execute(&format!("DROP ROLE IF EXISTS {name}")).await.unwrap();
    match result {
        Ok(in_time) => in_time.expect("the test ends within its limit"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn halted<T: std::fmt::Debug>(result: Result<T, Error>) -> lockstep::error::Halt {
    match result {
        Err(Error::Halt(halt)) => *halt,
        other => panic!("expected a halt, got {other:?}"),
    }
}

// ---- Orders ----

/// Values in no particular order, as SQL literals.
const CORPORA: &[(&str, &[&str])] = &[
    ("int8", &["0", "-1", "9", "10", "9223372036854775807", "-9223372036854775808", "100"]),
    ("int2", &["0", "-1", "9", "10", "32767", "-32768"]),
    ("oid", &["0", "1", "4294967295", "2147483648"]),
    (
        "numeric",
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "0",
            "-0.00000000000000000001",
            "0.00000000000000000001",
            "1.50",
            "1.4999",
            "-2",
            "-10",
            "9",
            "10",
            "12345678901234567890123456789.5",
            "1e20",
            "1e-19",
            "-1e30",
            "0.1",
            "0.09",
        ],
    ),
    ("date", &["2024-02-29", "infinity", "-infinity", "0044-03-15 BC", "4713-01-01 BC", "5874897-12-31", "0001-01-01"]),
    (
        "timestamp",
        &[
            "2024-02-29 12:00:00.1",
            "2024-02-29 12:00:00.09",
            "infinity",
            "-infinity",
            "0044-03-15 12:00 BC",
            "0044-03-15 13:00 BC",
            "0045-03-15 BC",
            "0001-01-01",
            "0001-12-31 BC",
            "294276-12-31 23:59:59.999999",
            "10000-01-01",
        ],
    ),
    (
        "timestamptz",
        &[
            "2024-01-01 00:00+05:30",
            "2024-01-01 00:00-08",
            "2024-01-01 00:00Z",
            "infinity",
            "-infinity",
            "0001-01-01 BC",
            "20000-01-01",
        ],
    ),
    (
        "uuid",
        &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "0a000000-0000-0000-0000-000000000000",
            "80000000-0000-0000-0000-000000000001",
        ],
    ),
    ("bytea", &["\\x", "\\x00", "\\x0001", "\\x01", "\\xff", "\\x7f80", "\\x5c5c"]),
    ("text", TEXTS),
    ("varchar(20)", TEXTS),
    ("char(6)", &["a", "a\tb", "ab", "A", "", "ä", "a b", "b"]),
    ("padded", &["a", "a\tb", "ab", "A", "", "b"]),
    ("bool", &["true", "false"]),
    ("inet", &["1.1.1.1", "1.1.1.1/24", "10.0.0.1", "2.2.2.2", "::1", "fe80::/10"]),
    ("float8", &["1e300", "-1.5", "0", "10", "9", "NaN", "Infinity", "0.1", "0.30000000000000004"]),
    ("mood", &["zen", "angry", "Happy"]),
    ("interval", &["1 day", "24 hours", "-1 month", "1 year 2 mons"]),
];

const TEXTS: &[&str] = &[
    "",
    " ",
    "a",
    "A",
    "b",
    "B",
    "ab",
    "a b",
    "a-b",
    "a_b",
    "résumé",
    "resume",
    "Résumé",
    "z",
    "ä",
    "你好",
    "\u{ffff}",
    "😀",
    "it's",
    "back\\slash",
    "tab\tnew\nline",
    "10",
    "9",
    "~",
];

#[tokio::test]
async fn orders_and_predicates_agree_with_postgres() {
    with_database(async |db| {
        db.sql("CREATE TYPE public.mood AS ENUM ('zen', 'angry', 'Happy'); CREATE DOMAIN public.padded AS char(6)")
            .await;
        let icu = db.ours.query_opt("SELECT 1 FROM pg_collation WHERE collname = 'en-x-icu'", &[]).await.unwrap();
        for (i, (declared, values)) in CORPORA.iter().enumerate() {
            let collate = if icu.is_some() && *declared == "text" { " COLLATE \"en-x-icu\"" } else { "" };
            let declared =
                if ["mood", "padded"].contains(declared) { format!("public.{declared}") } else { (*declared).into() };
            db.sql(&format!("CREATE TABLE public.t{i} (k {declared}{collate} NOT NULL)")).await;
            for value in *values {
                let literal = lockstep::relation::quote_literal(value);
                db.sql(&format!("INSERT INTO public.t{i} VALUES ({literal})")).await;
            }
            same_order(db, i, &declared).await;
        }
    })
    .await;
}

async fn same_order(db: &Database, table: usize, declared: &str) {
    let facts = db.facts(&format!("t{table}")).await;
    let column = &facts.columns[0];
    let orders = [KeyOrder::of(column.type_oid)];
    let columns = [KeyColumn::new("k", orders[0], &column.type_name)];
    let texts = async |condition: &str| -> Vec<String> {
        let sql = format!("SELECT concat(k) FROM public.t{table} WHERE {condition} ORDER BY {}", order_by(&columns));
        let rows = db.ours.query(&sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {:?}", e.as_db_error()));
        rows.iter().map(|row| row.get(0)).collect()
    };
    let sorted = texts("true").await;
    for (i, a) in sorted.iter().enumerate() {
        for (j, b) in sorted.iter().enumerate() {
            assert_eq!(compare(&orders, &[a], &[b]).unwrap(), i.cmp(&j), "{declared}: {a:?} against {b:?}");
        }
        let border = Some(vec![a.clone()]);
        for range in [KeyRange { after: border.clone(), through: None }, KeyRange { after: None, through: border }] {
            let inside: Vec<String> =
                sorted.iter().filter(|k| range.contains(&orders, &[k]).unwrap()).cloned().collect();
            assert_eq!(texts(&predicate(&columns, &range)).await, inside, "{declared}: {range:?}");
        }
    }
}

// ---- Catalog ----

#[tokio::test]
async fn a_relation_is_the_same_from_the_catalog_and_from_the_stream() {
    with_database(async |db| {
        db.sql(
            "CREATE TYPE public.mood AS ENUM ('zen');
             CREATE TABLE public.d (gone int, b varchar(7) NOT NULL, a numeric(10,2) NOT NULL DEFAULT 1, m public.mood,
                                    twice numeric GENERATED ALWAYS AS (a * 2) STORED, f float8[], PRIMARY KEY (a, b));
             ALTER TABLE public.d DROP COLUMN gone;
             CREATE TABLE public.f (id int PRIMARY KEY, v text); ALTER TABLE public.f REPLICA IDENTITY FULL;
             CREATE TABLE public.i (id int PRIMARY KEY, u uuid NOT NULL, w text NOT NULL);
             CREATE UNIQUE INDEX iu ON public.i (w, u) INCLUDE (id); ALTER TABLE public.i REPLICA IDENTITY USING INDEX iu",
        )
        .await;
        let tables = ["d", "f", "i"].map(public);
        publication::ensure_publication(&db.ours, "p", &tables, &[], true).await.unwrap();
        slot::create_slot(&db.ours, &db.slot(), db.version().await, false).await.unwrap();
        db.sql(
            "INSERT INTO public.d (b) VALUES ('x'); INSERT INTO public.f VALUES (1);
             INSERT INTO public.i VALUES (1, '00000000-0000-0000-0000-000000000000', 'w')",
        )
        .await;
        let messages = relation_messages(db).await;
        assert_eq!(messages.len(), 3);
        for (message, table) in messages.iter().zip(["d", "f", "i"]) {
            let facts = db.facts(table).await;
            let oids: Vec<u32> = message.columns.iter().map(|c| c.type_oid).collect();
            let types = types::types(&db.ours, &oids).await.unwrap();
            let streamed = catalog::build_streamed_relation(message, Some(&facts), &types, &[], shape()).unwrap();
            assert_eq!(streamed, catalog::build_relation(&facts, shape()).unwrap());
        }
        let d = db.relation("d").await;
        let columns: Vec<(&str, &str, bool, Option<u16>, bool)> =
            d.columns.iter().map(|c| (c.name.as_str(), c.type_name.as_str(), c.nullable, c.key, c.exact)).collect();
        assert_eq!(
            columns,
            [
                ("b", "varchar", false, Some(1), true),
                ("a", "numeric", false, Some(0), true),
                ("m", "public.mood", true, None, true),
                ("f", "_float8", true, None, true),
            ]
        );
        assert_eq!(db.relation("i").await.key_columns(), [2, 1]);
        stale_catalog(db, &messages[0]).await;
    })
    .await;
}

/// The stream is behind the catalog: the key's columns as flagged, types by OID, or texts.
async fn stale_catalog(db: &Database, message: &StreamedRelation) {
    let types = types::types(&db.ours, &[1043, 1700, 1022, message.columns[2].type_oid]).await.unwrap();
    let dropped = catalog::build_streamed_relation(message, None, &types, &[], shape()).unwrap();
    assert_eq!(dropped.key_columns(), [0, 1]);
    assert_eq!(dropped.columns[2].type_name, "public.mood");
    let gone = catalog::build_streamed_relation(message, None, &Default::default(), &[], shape()).unwrap();
    assert_eq!(gone.columns[2].type_name, "text", "a type that was dropped with its column");
}

/// The RELATION messages in the slot, read with SQL.
async fn relation_messages(db: &Database) -> Vec<StreamedRelation> {
    let sql = format!(
        "SELECT data FROM pg_logical_slot_peek_binary_changes('{}', NULL, NULL, 'proto_version', '1', 'publication_names', 'p')",
        db.slot()
    );
    let rows = db.ours.query(&sql, &[]).await.unwrap();
    rows.iter().filter_map(|row| read_relation(row.get(0))).collect()
}

fn read_relation(message: &[u8]) -> Option<StreamedRelation> {
    fn text<'a>(rest: &mut &'a [u8]) -> &'a str {
        let (text, tail) = rest.split_at(rest.iter().position(|&b| b == 0).unwrap());
        *rest = &tail[1..];
        std::str::from_utf8(text).unwrap()
    }
    fn number(rest: &mut &[u8], bytes: usize) -> u32 {
        let (number, tail) = rest.split_at(bytes);
        *rest = tail;
        number.iter().fold(0, |n, &b| n << 8 | u32::from(b))
    }
    let mut rest = message.strip_prefix(b"R")?;
    let oid = number(&mut rest, 4);
    let name = TableName::new(text(&mut rest), text(&mut rest));
    let identity = Identity::from_letter(u8::try_from(number(&mut rest, 1)).unwrap()).unwrap();
    let columns = (0..number(&mut rest, 2))
        .map(|_| StreamedColumn {
            key: number(&mut rest, 1) == 1,
            name: text(&mut rest).to_owned(),
            type_oid: number(&mut rest, 4),
            typmod: number(&mut rest, 4).cast_signed(),
        })
        .collect();
    Some(StreamedRelation { oid, name, identity, columns })
}

// ---- Preflight ----

#[tokio::test]
async fn preflight_names_every_table_that_can_not_be_read() {
    with_database(async |db| {
        db.sql(
            "CREATE TABLE public.fine (id int PRIMARY KEY);
             CREATE TABLE public.keyless (id int);
             CREATE TABLE public.full_keyless (id int); ALTER TABLE public.full_keyless REPLICA IDENTITY FULL;
             CREATE TABLE public.nothing (id int PRIMARY KEY); ALTER TABLE public.nothing REPLICA IDENTITY NOTHING;
             CREATE TABLE public.late (id int PRIMARY KEY DEFERRABLE);
             CREATE TABLE public.made (a int, id int GENERATED ALWAYS AS (a + 1) STORED PRIMARY KEY);
             CREATE UNLOGGED TABLE public.fast (id int PRIMARY KEY);
             CREATE VIEW public.looks AS SELECT 1 AS id;
             CREATE TABLE public.parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE public.leaf PARTITION OF public.parts DEFAULT;
             CREATE TABLE public.parent (id int PRIMARY KEY); CREATE TABLE public.child () INHERITS (public.parent)",
        )
        .await;
        let names = [
            "fine",
            "leaf",
            "keyless",
            "full_keyless",
            "nothing",
            "late",
            "made",
            "fast",
            "looks",
            "parts",
            "parent",
            "fin",
            "elsewhere",
        ];
        let tables = names.map(public);
        let found = preflight::check_source(&db.ours, wanted(&tables)).await.unwrap();
        let text: Vec<String> = found.iter().map(|h| h.to_string().replace(&db.name, "DATABASE")).collect();
        insta::assert_snapshot!(text.join("\n"));
    })
    .await;
}

#[tokio::test]
async fn preflight_names_every_right_that_is_missing() {
    with_database(async |db| {
        db.admin(&format!(
            "CREATE ROLE {0} LOGIN PASSWORD '{0}'; CREATE SCHEMA hidden; CREATE TABLE hidden.t (id int PRIMARY KEY);
             ALTER TABLE hidden.t OWNER TO lockstep;
             CREATE TABLE public.guarded (id int PRIMARY KEY); ALTER TABLE public.guarded ENABLE ROW LEVEL SECURITY;
             GRANT SELECT ON public.guarded TO {0}; REVOKE CREATE ON DATABASE {0} FROM PUBLIC",
            db.name
        ))
        .await;
        let stranger = connect(&db.name, &db.name).await;
        let tables = [TableName::new("hidden", "t"), public("guarded")];
        let check = async |tables| preflight::check_source(&stranger, wanted(tables)).await.unwrap();
        let (owner_grants, superuser_helps) = (check(&tables[..1]).await, check(&tables).await);
        let found: Vec<_> = owner_grants.iter().chain(&superuser_helps).collect();
        assert!(found.iter().all(|h| h.code == Code::NoRight), "{found:?}");
        let text: Vec<String> = found.iter().map(|h| h.to_string().replace(&db.name, "NAME")).collect();
        insta::assert_snapshot!(text.join("\n"));
        // Typing the hints is enough, whichever of the two ways.
        for (findings, tables) in [(owner_grants, &tables[..1]), (superuser_helps, &tables[..])] {
            db.admin("BEGIN").await;
            for finding in &findings {
                db.admin(&finding.hint).await;
            }
            db.admin("COMMIT").await;
            assert_eq!(check(tables).await, []);
            publication::ensure_publication(&stranger, "p", tables, &[], true).await.unwrap();
            db.admin("DROP PUBLICATION p").await;
        }
        db.admin(&format!("DROP OWNED BY {}", db.name)).await;
    })
    .await;
}

#[tokio::test]
async fn preflight_names_a_server_that_can_not_be_read() {
    with_database(async |db| {
        let mut source = catalog::source_facts(&db.ours).await.unwrap();
        let codes = |source: &catalog::SourceFacts| -> Vec<Code> {
            preflight::findings(source, wanted(&[]), None, &[], &[]).iter().map(|h| h.code).collect()
        };
        assert_eq!(codes(&source), []);
        assert_eq!((source.database.as_str(), source.role.as_str()), (db.name.as_str(), "lockstep"));
        assert!(!source.superuser && source.replication && source.may_create && source.encoding == "UTF8");
        assert_eq!(source.synchronized_standby_slots.is_some(), source.version >= 170_000);
        (source.in_recovery, source.replication, source.wal_level) = (true, false, "replica".into());
        assert_eq!(codes(&source), [Code::SourceInRecovery, Code::WalLevel, Code::NoRight]);
        source.version = 130_020;
        assert_eq!(codes(&source), [Code::ServerVersion]);
        source.version = 150_012;
        assert_eq!(codes(&source)[0], Code::ServerVersion);
    })
    .await;
}

// ---- Publication ----

#[tokio::test]
async fn the_publication_is_made_extended_and_guarded() {
    with_database(async |db| {
        db.sql(
            "CREATE TABLE public.a (id int PRIMARY KEY); CREATE TABLE public.b (id int PRIMARY KEY, v text);
             CREATE TABLE public.\"c\"\"x\" (id int PRIMARY KEY)",
        )
        .await;
        let ours = [public("a"), public("b")];
        let ensure = async |tables: &[TableName], create| {
            publication::ensure_publication(&db.ours, "p", tables, &[], create).await
        };
        let off = halted(ensure(&ours[..1], false).await);
        assert_eq!(off.code, Code::CreateOff);
        assert!(off.facts[0].starts_with("CREATE PUBLICATION \"p\" FOR TABLE ONLY"), "{off}");
        assert_eq!(ensure(&ours[..1], true).await.unwrap(), PublicationState::Created);
        assert_eq!(
            halted(ensure(&ours, false).await).facts,
            ["ALTER PUBLICATION \"p\" ADD TABLE ONLY \"public\".\"b\";"]
        );
        assert_eq!(ensure(&ours, true).await.unwrap(), PublicationState::Added(vec![public("b")]));
        assert_eq!(ensure(&ours, false).await.unwrap(), PublicationState::Unchanged);

        let mut drifts =
            vec!["ALTER PUBLICATION p ADD TABLE public.\"c\"\"x\"", "ALTER PUBLICATION p SET (publish = 'insert')"];
        let version = db.version().await;
        if version >= 150_000 {
            drifts.push("ALTER PUBLICATION p SET TABLE public.a WHERE (id > 5), public.b (id)");
            drifts.push("ALTER PUBLICATION p ADD TABLES IN SCHEMA public");
        }
        if version >= 180_000 {
            drifts.push("ALTER PUBLICATION p SET (publish_generated_columns = stored)");
        }
        for drift in drifts {
            db.admin(drift).await;
            let halt = halted(ensure(&ours, true).await);
            assert_eq!(halt.code, Code::PublicationChanged, "{drift}");
            db.sql(&halt.hint).await;
            assert_eq!(ensure(&ours, false).await.unwrap(), PublicationState::Unchanged, "{drift}: {halt}");
        }
        // A root is published under its own name, also by a publication that was made without any.
        db.sql("CREATE TABLE public.parts (id int PRIMARY KEY) PARTITION BY RANGE (id)").await;
        db.sql("ALTER PUBLICATION p SET (publish_via_partition_root = false)").await;
        assert_eq!(ensure(&ours, false).await.unwrap(), PublicationState::Unchanged);
        let ours = [public("a"), public("b"), public("parts")];
        assert_eq!(ensure(&ours, true).await.unwrap(), PublicationState::Added(vec![public("parts")]));
        assert_eq!(ensure(&ours, false).await.unwrap(), PublicationState::Unchanged);
        db.sql("ALTER PUBLICATION p SET (publish_via_partition_root = false)").await;
        let halt = halted(ensure(&ours, true).await);
        assert!(halt.facts[0].contains("under the names of its partitions"), "{halt}");
        db.sql(&halt.hint).await;
        assert_eq!(ensure(&ours, false).await.unwrap(), PublicationState::Unchanged);
        db.admin("DROP PUBLICATION p; CREATE PUBLICATION p FOR ALL TABLES").await;
        let halt = halted(ensure(&ours, true).await);
        db.admin(&halt.hint).await;
        assert_eq!(ensure(&ours, false).await.unwrap(), PublicationState::Unchanged);
    })
    .await;
}

// ---- Slot ----

#[tokio::test]
async fn slots_are_made_and_judged() {
    with_database(async |db| {
        let (name, version) = (db.slot(), db.version().await);
        assert_eq!(slot::slot_facts(&db.ours, &name).await.unwrap(), None);
        let point = slot::create_slot(&db.ours, &name, version, true).await.unwrap();
        let facts = slot::slot_facts(&db.ours, &name).await.unwrap().unwrap();
        assert_eq!(facts.confirmed_flush, Some(point));
        assert_eq!(facts.failover, version >= 170_000);
        slot::check_slot(&facts, &db.name).unwrap();
        assert!(slot::retained_bytes(&db.ours, &name).await.unwrap().unwrap() < 1 << 30);
        assert_eq!(halted(slot::check_slot(&facts, "other")).code, Code::SlotForeign);
        assert_eq!(slot::retained_bytes(&db.ours, "no such slot").await.unwrap(), None);

        let code = async |name: &str, make: &str| {
            db.admin(make).await;
            halted(slot::check_slot(&slot::slot_facts(&db.ours, name).await.unwrap().unwrap(), &db.name)).code
        };
        let (physical, two_phase) = (format!("{name}_p"), format!("{name}_t"));
        let make = format!("SELECT pg_create_physical_replication_slot('{physical}')");
        assert_eq!(code(&physical, &make).await, Code::SlotForeign);
        let make = format!("SELECT pg_create_logical_replication_slot('{two_phase}', 'pgoutput', false, true)");
        assert_eq!(code(&two_phase, &make).await, Code::SlotTwoPhase);
    })
    .await;
}

#[tokio::test]
async fn a_slot_waits_for_open_transactions_and_says_for_which() {
    with_database(async |db| {
        let writer = connect("lockstep", &db.name).await;
        writer.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
        let xid: String = writer.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap().get(0);
        let (name, version) = (db.slot(), db.version().await);
        let maker = connect("postgres", &db.name).await;
        let making = slot::create_slot(&maker, &name, version, false);
        let watching = async {
            let facts = loop {
                match slot::slot_facts(&db.ours, &name).await.unwrap() {
                    Some(facts) if facts.active_pid.is_some() => break facts,
                    _ => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            };
            let waits = slot::check_slot(&facts, &db.name).unwrap_err();
            assert!(waits.code().is_none() && waits.to_string().contains("still being made"), "{waits}");
            let maker = slot::holder(&db.admin, facts.active_pid.unwrap()).await.unwrap().unwrap();
            assert_eq!((maker.application_name.as_str(), maker.role.as_str()), ("it_source", "postgres"));
            let blockers = slot::blockers(&db.ours).await.unwrap();
            let blocker = blockers.iter().find(|b| b.xid.to_string() == xid).expect("our writer is among them");
            assert_eq!((blocker.state.as_str(), blocker.name.as_str()), ("idle in transaction", "it_source"));
            writer.batch_execute("COMMIT").await.unwrap();
        };
        let (made, ()) = tokio::join!(making, watching);
        made.unwrap();
    })
    .await;
}

#[tokio::test]
async fn snapshots_see_what_has_ended() {
    with_database(async |db| {
        let writer = connect("lockstep", &db.name).await;
        let before = slot::fresh_xid(&db.ours).await.unwrap();
        writer.batch_execute("BEGIN").await.unwrap();
        let open = slot::fresh_xid(&writer).await.unwrap();
        let after = slot::fresh_xid(&db.ours).await.unwrap();
        let snapshot = slot::snapshot_now(&db.ours).await.unwrap();
        assert!(snapshot.sees(before) && !snapshot.sees(open) && snapshot.sees(after));
        assert!(snapshot.xmin <= open);
        for xid in [before, open, after] {
            assert_eq!(snapshot.widen(u32::try_from(xid & 0xFFFF_FFFF).unwrap()), xid);
        }
        writer.batch_execute("COMMIT").await.unwrap();
        assert!(slot::snapshot_now(&db.ours).await.unwrap().sees(open));
    })
    .await;
}

// ---- Chunks ----

fn request(relation: &Relation, extent: Extent, rows_max: usize) -> ChunkRequest<'_> {
    let lock_timeout = Duration::from_millis(200);
    ChunkRequest {
        relation,
        key: &[],
        filter: None,
        extent,
        rows_max,
        bytes_max: 1 << 20,
        keyless_bytes_max: 1 << 20,
        lock_timeout,
        border: None,
        plan: None,
    }
}

fn texts(chunk: &ChunkRead) -> Vec<Vec<Option<String>>> {
    let text = |t: &[u8]| String::from_utf8(t.to_vec()).unwrap();
    chunk.rows.iter().map(|row| row.row().iter().map(|cell| cell.text().map(text)).collect()).collect()
}

/// Reads a table chunk by chunk; every row lies in its chunk's range, and the ranges join.
async fn read_all(
    db: &Database,
    client: &mut Client,
    table: &str,
    rows_max: usize,
    bytes_max: usize,
) -> Vec<Vec<Option<String>>> {
    let relation = db.relation(table).await;
    let orders: Vec<KeyOrder> =
        relation.key_columns().iter().map(|&i| KeyOrder::of(relation.columns[i].type_oid)).collect();
    let mut rows = Vec::new();
    let mut rest = KeyRange::ALL;
    loop {
        let mut request = request(&relation, Extent::Range(rest.clone()), rows_max);
        request.bytes_max = bytes_max;
        let chunk = chunk::read_chunk(client, &request).await.unwrap();
        assert!(chunk.rows.len() <= rows_max && chunk.range.after == rest.after);
        for row in texts(&chunk) {
            let key: Vec<&str> = chunk.key.iter().map(|&i| row[i].as_deref().unwrap()).collect();
            assert!(chunk.range.contains(&orders, &key).unwrap(), "{key:?} in {:?}", chunk.range);
            rows.push(row);
        }
        if !chunk.full {
            assert_eq!(chunk.range.through, None);
            return rows;
        }
        rest.after = chunk.range.through.clone();
        let last = rows.last().unwrap();
        let key: Vec<&str> = chunk.key.iter().map(|&i| last[i].as_deref().unwrap()).collect();
        assert_eq!(compare(&orders, &key, chunk.range.through.as_deref().unwrap()), Ok(Ordering::Equal));
    }
}

#[tokio::test]
async fn chunks_hold_only_rows_that_meet_a_condition() {
    with_database(async |db| {
        db.sql(
            "CREATE TABLE public.t (id int PRIMARY KEY, v int); INSERT INTO public.t SELECT i, i % 3 FROM generate_series(1, 30) i;
             CREATE TABLE public.keyless (v int); ALTER TABLE public.keyless REPLICA IDENTITY FULL;
             INSERT INTO public.keyless VALUES (0), (1), (2), (1)",
        )
        .await;
        let mut client = connect("lockstep", &db.name).await;
        let only = async |table: &str, condition: &str, range: KeyRange, client: &mut Client| {
            let mut relation = db.relation(table).await;
            relation.modes.snapshot_where = Some(condition.to_owned());
            let request = request(&relation, Extent::Range(range), 4);
            chunk::read_chunk(client, &request).await.map(|chunk| (texts(&chunk).len(), chunk.range))
        };
        // The limit counts rows that meet it; the range ends at the last of them.
        let (rows, range) = only("t", "v = 1 OR v = 2 -- no end", KeyRange::ALL, &mut client).await.unwrap();
        assert_eq!((rows, range.through), (4, Some(vec!["5".to_owned()])));
        let rest = KeyRange { after: Some(vec!["27".to_owned()]), through: None };
        let (rows, range) = only("t", "v = 0", rest.clone(), &mut client).await.unwrap();
        assert_eq!((rows, range), (1, rest));
        assert_eq!(only("keyless", "v = 1", KeyRange::ALL, &mut client).await.unwrap().0, 2);
        for wrong in ["nothing = 1", "v =", "1 / (v - v) = 1"] {
            let error = only("t", wrong, KeyRange::ALL, &mut client).await.unwrap_err();
            assert_eq!(error.code(), Some(Code::Config), "{wrong}: {error}");
            let judged = chunk::check_condition(&client, &public("t"), wrong).await;
            // A plan divides by nothing.
            assert_eq!(judged.is_err(), !wrong.starts_with('1'), "{wrong}");
        }
        assert!(chunk::check_condition(&client, &public("t"), "v > 0").await.is_ok());
    })
    .await;
}

#[tokio::test]
async fn chunks_neither_skip_nor_repeat_rows() {
    with_database(async |db| {
        db.sql(
            "CREATE TABLE public.pair (v text, b text, a int, PRIMARY KEY (a, b));
             INSERT INTO public.pair SELECT repeat('x', i % 97), chr(33 + i % 90) || (i % 7), i / 50 - 5 FROM generate_series(1, 1000) i
               ON CONFLICT DO NOTHING;
             CREATE TABLE public.word (k text PRIMARY KEY, v text);
             CREATE TABLE public.empty (id int PRIMARY KEY)",
        )
        .await;
        for text in TEXTS {
            let literal = lockstep::relation::quote_literal(text);
            db.sql(&format!("INSERT INTO public.word VALUES ({literal}, nullif({literal}, 'a'))")).await;
        }
        let mut client = connect("lockstep", &db.name).await;
        for (table, list) in [("pair", "v, b, a"), ("word", "k, v"), ("empty", "id")] {
            let sql = format!("SELECT concat_ws('|', {list}) FROM public.{table} ORDER BY 1");
            let expected: Vec<String> = db.ours.query(&sql, &[]).await.unwrap().iter().map(|r| r.get(0)).collect();
            for (rows_max, bytes_max) in [(1, 1 << 20), (7, 1 << 20), (64, 1 << 20), (5_000, 1 << 20), (64, 1_000)] {
                let rows = read_all(db, &mut client, table, rows_max, bytes_max).await;
                let mut read: Vec<String> =
                    rows.iter().map(|r| r.iter().flatten().cloned().collect::<Vec<_>>().join("|")).collect();
                read.sort();
                let mut expected = expected.clone();
                expected.sort();
                assert_eq!(read, expected, "{table} by {rows_max} rows, {bytes_max} bytes");
            }
        }
    })
    .await;
}

/// However wide rows are, a chunk ends with the one that reaches its bytes, and a table without a key is given up there.
#[tokio::test]
async fn wide_rows_end_a_chunk_by_their_bytes() {
    with_database(async |db| {
        db.sql(
            "CREATE TABLE public.t (id int PRIMARY KEY, v text);
             INSERT INTO public.t SELECT i, repeat('x', 500000) FROM generate_series(1, 40) AS i;
             CREATE TABLE public.keyless (v text); ALTER TABLE public.keyless REPLICA IDENTITY FULL;
             INSERT INTO public.keyless SELECT v FROM public.t",
        )
        .await;
        let relation = db.relation("t").await;
        let mut client = connect("lockstep", &db.name).await;
        let chunk =
            chunk::read_chunk(&mut client, &request(&relation, Extent::Range(KeyRange::ALL), 1000)).await.unwrap();
        assert!(chunk.severed && chunk.full && chunk.bytes < (1 << 20) + 600_000, "{} bytes", chunk.bytes);
        assert_eq!((chunk.rows.len(), chunk.range.through), (3, Some(vec!["3".to_owned()])));
        let (relation, mut client) = (db.relation("keyless").await, connect("lockstep", &db.name).await);
        let all = request(&relation, Extent::Range(KeyRange::ALL), 1000);
        let error = chunk::read_chunk(&mut client, &all).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::TableWithoutKey), "{error}");
        let mut client = connect("lockstep", &db.name).await;
        let chunk = chunk::read_chunk(&mut client, &ChunkRequest { keyless_bytes_max: 1 << 28, ..all }).await.unwrap();
        assert_eq!((chunk.rows.len(), chunk.severed), (40, false));
    })
    .await;
}

/// A text key under a collation that is not that of ranges: one pass plans ranges that need no further one, and an index makes
/// it unnecessary.
#[tokio::test]
async fn ranges_that_no_index_serves_are_planned_once() {
    with_database(async |db| {
        db.sql(
            "CREATE TABLE public.t (k text COLLATE \"en-x-icu\" PRIMARY KEY, v text);
             INSERT INTO public.t SELECT chr(33 + i % 90) || i, repeat('x', 1000) FROM generate_series(1, 5000) AS i",
        )
        .await;
        let (relation, mut client) = (db.relation("t").await, connect("lockstep", &db.name).await);
        let told = std::sync::Mutex::new(Vec::new());
        let tell = |borders, advice| told.lock().unwrap().push((borders, advice));
        let plan = Some(Plan { rows: 100, tell: &tell });
        let ask = |extent| ChunkRequest { plan, bytes_max: 4 << 20, ..request(&relation, extent, 100) };
        let first = chunk::read_chunk(&mut client, &ask(Extent::Range(KeyRange::ALL))).await.unwrap();
        let (borders, advice) = told.lock().unwrap().remove(0);
        assert_eq!(borders.len(), 5000_usize.div_ceil(100) - 1);
        assert_eq!((first.rows.len(), first.range.through.as_ref()), (100, borders.first()));
        let last = KeyRange { after: borders.last().cloned(), through: None };
        let last = ChunkRequest { plan: None, ..ask(Extent::Range(last)) };
        assert_eq!(chunk::read_chunk(&mut client, &last).await.unwrap().rows.len(), 100);

        // A megabyte at most, so a few of them.
        let wide = ChunkRequest { bytes_max: 1 << 20, ..ask(Extent::Range(KeyRange::ALL)) };
        let wide = ChunkRequest { plan: Some(Plan { rows: 5000, tell: &tell }), ..wide };
        let first = chunk::read_chunk(&mut client, &wide).await.unwrap();
        assert!(first.bytes < 1 << 20 && !first.severed, "{} bytes", first.bytes);
        assert!((5..30).contains(&told.lock().unwrap().remove(0).0.len()));

        db.sql(&advice.unwrap()).await;
        let served = chunk::read_chunk(&mut client, &ask(Extent::Range(KeyRange::ALL))).await.unwrap();
        assert!(served.full && served.rows.len() == 100 && told.lock().unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn single_keys_and_bounded_ranges_are_read_again() {
    with_database(async |db| {
        db.sql("CREATE TABLE public.t (id int PRIMARY KEY, v text); INSERT INTO public.t SELECT i * 10, i FROM generate_series(1, 9) i")
            .await;
        let mut client = connect("lockstep", &db.name).await;
        let relation = db.relation("t").await;
        let key = |k: i32| vec![k.to_string()];
        let mut read = async |extent| chunk::read_chunk(&mut client, &request(&relation, extent, 100)).await.unwrap();
        for (wanted, after, rows) in [(30, Some(20), 1), (35, Some(30), 0), (5, None, 0), (10, None, 1)] {
            let chunk = read(Extent::Key(key(wanted))).await;
            assert_eq!(chunk.range, KeyRange { after: after.map(key), through: Some(key(wanted)) });
            assert_eq!(chunk.rows.len(), rows, "{wanted}");
        }
        let range = KeyRange { after: Some(key(20)), through: Some(key(55)) };
        let chunk = read(Extent::Range(range.clone())).await;
        assert_eq!((chunk.rows.len(), chunk.range, chunk.full), (3, range, false));
        assert_eq!(chunk.facts.oid, relation.oid);
    })
    .await;
}

#[tokio::test]
async fn a_chunk_says_why_it_can_not_be_read() {
    with_database(async |db| {
        db.sql("CREATE TABLE public.t (id int PRIMARY KEY, v int NOT NULL); INSERT INTO public.t VALUES (1, 2)").await;
        let mut client = connect("lockstep", &db.name).await;
        let relation = db.relation("t").await;
        let mut read = async || chunk::read_chunk(&mut client, &request(&relation, Extent::Range(KeyRange::ALL), 10)).await;

        let locker = connect("lockstep", &db.name).await;
        locker.batch_execute("BEGIN; LOCK TABLE public.t IN ACCESS EXCLUSIVE MODE").await.unwrap();
        let waited = read().await.unwrap_err();
        assert!(waited.code().is_none() && waited.to_string().contains("locked by process"), "{waited}");
        assert!(waited.to_string().contains("it_source"), "{waited}");
        locker.batch_execute("ROLLBACK").await.unwrap();
        // The connection is usable again at once.
        assert_eq!(read().await.unwrap().rows.len(), 1);

        db.admin("ALTER TABLE public.t OWNER TO postgres; GRANT SELECT ON public.t TO lockstep; ALTER TABLE public.t ENABLE ROW LEVEL SECURITY")
            .await;
        assert_eq!(read().await.unwrap_err().code(), Some(Code::NoRight));
        db.admin("ALTER TABLE public.t DISABLE ROW LEVEL SECURITY; REVOKE SELECT ON public.t FROM lockstep").await;
        assert_eq!(read().await.unwrap_err().code(), Some(Code::NoRight));
        db.admin("ALTER TABLE public.t OWNER TO lockstep; ALTER TABLE public.t DROP CONSTRAINT t_pkey").await;
        let keyless = read().await.unwrap_err();
        assert!(keyless.code().is_none() && keyless.to_string().contains("the key of table"), "{keyless}");
        db.admin("ALTER TABLE public.t ADD PRIMARY KEY (v)").await;
        let rekeyed = read().await.unwrap_err();
        assert!(rekeyed.code().is_none() && rekeyed.to_string().contains("the key of table"), "{rekeyed}");
        db.admin("DROP TABLE public.t").await;
        assert_eq!(read().await.unwrap_err().code(), Some(Code::TableMissing));
    })
    .await;
}

#[tokio::test]
async fn the_lock_comes_before_the_snapshot() {
    with_database(async |db| {
        db.sql("CREATE TABLE public.t (id int PRIMARY KEY, v int); INSERT INTO public.t SELECT i, i FROM generate_series(1, 100) i")
            .await;
        let mut client = connect("lockstep", &db.name).await;
        let relation = db.relation("t").await;
        let rewriter = connect("lockstep", &db.name).await;
        rewriter.batch_execute("BEGIN; ALTER TABLE public.t ALTER v TYPE int8").await.unwrap();
        let mut request = request(&relation, Extent::Range(KeyRange::ALL), 1_000);
        request.lock_timeout = Duration::from_secs(20);
        let finish = async {
            // The rewrite ends only once the chunk waits for it.
            let waits = "SELECT 1 FROM pg_locks WHERE relation = to_regclass('public.t') AND NOT granted";
            while db.ours.query(waits, &[]).await.unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            rewriter.batch_execute("COMMIT").await.unwrap();
        };
        let (chunk, ()) = tokio::join!(chunk::read_chunk(&mut client, &request), finish);
        let chunk = chunk.unwrap();
        // With a snapshot from before the rewrite the table is empty.
        assert_eq!(chunk.rows.len(), 100);
        assert_eq!(chunk.facts.columns[1].type_name, "int8");
    })
    .await;
}

#[tokio::test]
async fn a_mark_is_in_the_flushed_log() {
    with_database(async |db| {
        let version = db.version().await;
        db.sql("CREATE TABLE public.t (id int PRIMARY KEY)").await;
        publication::ensure_publication(&db.ours, "p", &[public("t")], &[], true).await.unwrap();
        slot::create_slot(&db.ours, &db.slot(), version, false).await.unwrap();
        db.sql("SET synchronous_commit = off").await;
        chunk::mark(&db.ours, "it's a nonce", version).await.unwrap();
        let insert: String = db.ours.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap().get(0);
        let sql = format!(
            "SELECT data FROM pg_logical_slot_peek_binary_changes('{}', NULL, NULL, 'proto_version', '1', 'publication_names', 'p',
               'messages', 'true')",
            db.slot()
        );
        let messages: Vec<Vec<u8>> = db.ours.query(&sql, &[]).await.unwrap().iter().map(|r| r.get(0)).collect();
        let marks: Vec<&Vec<u8>> = messages.iter().filter(|m| m[0] == b'M' && m.ends_with(b"it's a nonce")).collect();
        assert_eq!(marks.len(), 1, "{messages:?} up to {insert}");
        // Flags: not transactional. Then the LSN and the prefix.
        assert_eq!(marks[0][1], 0);
        assert_eq!(&marks[0][10..19], b"lockstep\0");
    })
    .await;
}
