//! The replication client and the sessions against a real Postgres (`scripts/services up`), and against small servers of our own
//! where a real one would not misbehave.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use lockstep::config::{Database, Host, Source, Tls};
use lockstep::error::{Code, Error};
use lockstep::lsn::Lsn;
use lockstep::postgres::frame::Frame;
use lockstep::postgres::pgoutput::{self, Message, ReplicaIdentity, Scratch};
use lockstep::postgres::stream::{Start, Stream};
use lockstep::postgres::wire::Connection;
use lockstep::session::{self, Session};
use lockstep::value::{Cell, Row};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run: eval \"$(scripts/services env)\""))
}

fn port() -> u16 {
    env("LOCKSTEP_TEST_CATALOG_PORT").parse().expect("a port")
}

fn database(host: Host, user: &str, tls: Tls) -> Database {
    Database {
        host,
        port: port(),
        user: user.into(),
        password: Some(user.to_owned().into()),
        dbname: "catalog".into(),
        tls,
        connect_timeout: Duration::from_secs(10),
    }
}

fn tcp() -> Database {
    database(Host::Tcp("127.0.0.1".into()), "lockstep", Tls::Off)
}

fn tls(ca_file: PathBuf) -> Database {
    Database { tls: Tls::Verified { ca_file: Some(ca_file) }, ..tcp() }
}

fn unix() -> Database {
    Database { password: None, ..database(Host::Unix(env("LOCKSTEP_TEST_SOCKET_DIR").into()), "postgres", Tls::Off) }
}

fn source(database: Database) -> Source {
    Source {
        database,
        slot: String::new(),
        publication: String::new(),
        failover: false,
        receive_bytes: 32 << 10,
        receive_nap: Duration::from_millis(2),
        sender_timeout: Duration::from_secs(10),
        signal_table: None,
        snapshot: lockstep::config::SourceSnapshot {
            connections: 1,
            chunk_rows: 1000,
            chunk_bytes: 1 << 20,
            chunk_time: Duration::from_secs(1),
            keyless_bytes: 1 << 28,
            rows_per_second: None,
            bytes_per_second: None,
            lag_bytes_max: 1 << 28,
        },
    }
}

async fn open(database: Database) -> Result<Connection, Error> {
    Connection::open(&source(database), "it_wire").await
}

/// A table, a publication of it and a slot with one name of their own, gone again after the test however it ends.
struct Fixture {
    name: String,
    admin: Session,
    slot_start: Lsn,
}

impl Fixture {
    async fn new() -> Fixture {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("it_wire_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let admin = session::connect(&unix(), "it_wire admin").await.expect("the test's servers are up");
        let tables = format!(
            "CREATE TABLE public.{name} (id int PRIMARY KEY, body text, big text);
             ALTER TABLE public.{name} ALTER big SET STORAGE EXTERNAL;
             CREATE PUBLICATION {name} FOR TABLE public.{name}"
        );
        admin.batch_execute(&tables).await.unwrap();
        let slot = format!("SELECT lsn FROM pg_create_logical_replication_slot('{name}', 'pgoutput')");
        let start = first(&admin, &slot).await;
        Fixture { name, admin, slot_start: start.parse().unwrap() }
    }

    async fn run(&self, sql: &str) {
        self.admin.batch_execute(&sql.replace("$t", &format!("public.{}", self.name))).await.unwrap();
    }

    async fn stream(&self, source: &Source) -> Result<Stream, Error> {
        let connection = Connection::open(source, "it_wire").await?;
        connection.start_replication(&self.name, &self.name, Lsn::ZERO, &Start::default()).await
    }

    async fn confirmed_flush(&self) -> Lsn {
        let sql = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'", self.name);
        first(&self.admin, &sql).await.parse().unwrap()
    }

    async fn wal_end(&self) -> Lsn {
        first(&self.admin, "SELECT pg_current_wal_flush_lsn()").await.parse().unwrap()
    }
}

/// The first value of the last row that the SQL returns.
async fn first(session: &Session, sql: &str) -> String {
    let messages = session.simple_query(sql).await.unwrap();
    let value = messages.iter().rev().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    value.expect("a row").to_owned()
}

async fn with_fixture<F, T>(test: F)
where
    F: FnOnce(Arc<Fixture>) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let fixture = Arc::new(Fixture::new().await);
    let outcome = tokio::spawn(test(fixture.clone())).await;
    let name = &fixture.name;
    let sql = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{name}' AND active;
         DROP PUBLICATION {name}; DROP TABLE public.{name}"
    );
    fixture.admin.batch_execute(&sql).await.unwrap();
    let drop_slot = format!("SELECT pg_drop_replication_slot('{name}')");
    for _ in 0..100 {
        if fixture.admin.batch_execute(&drop_slot).await.is_ok() {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    if let Err(error) = outcome {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Reads until at least so many transactions with changes have ended; hands every message to `see`. Returns the end of the last
/// commit. Postgres 14 also sends transactions without changes of ours, so other tests' commits pass by here.
async fn read_commits(stream: &mut Stream, wanted: u32, mut see: impl FnMut(&Message<'_>, &[u8], &Scratch)) -> Lsn {
    let mut scratch = Scratch::default();
    let (mut commits, mut changed, mut end) = (0, false, Lsn::ZERO);
    while commits < wanted {
        timeout(Duration::from_secs(60), stream.read()).await.expect("changes within a minute").unwrap();
        while let Some(frame) = stream.next().unwrap() {
            let Frame::XLogData { data, .. } = frame else { continue };
            let message = pgoutput::decode(data, &mut scratch).unwrap();
            see(&message, data, &scratch);
            match message {
                Message::Begin { .. } => changed = false,
                Message::Commit { end_lsn, .. } => (commits, end) = (commits + u32::from(changed), end_lsn),
                Message::Relation(_) | Message::Type { .. } | Message::Origin { .. } => {}
                _ => changed = true,
            }
        }
        stream.received(end);
    }
    end
}

// ---- Entering ----

#[tokio::test]
async fn every_way_in_reaches_the_same_server() {
    let ca = PathBuf::from(env("LOCKSTEP_TEST_CA"));
    let mut identities = Vec::new();
    for (database, bound) in [(tcp(), false), (tls(ca), true), (unix(), false)] {
        let mut connection = open(database.clone()).await.unwrap();
        assert_eq!(connection.is_channel_bound(), bound);
        let mut identity = connection.identify_system().await.unwrap();
        assert_eq!(identity.dbname, "catalog");
        identity.wal_end = Lsn::ZERO;
        identities.push(identity);
        let timeout = connection.simple("SHOW wal_sender_timeout").await.unwrap();
        assert_eq!(timeout, [[Some("10s".to_owned())]]);

        let session = session::connect(&database, "it_wire").await.unwrap();
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        assert_eq!(first(&session, sql).await, if bound { "t" } else { "f" });
        assert_eq!(first(&session, "SELECT DATE '2020-12-31'").await, "2020-12-31");
        session.close().await;
    }
    assert!(identities.iter().all(|identity| *identity == identities[0]));
}

#[tokio::test]
async fn a_command_that_fails_leaves_the_connection_usable() {
    let mut connection = open(unix()).await.unwrap();
    let refusal = connection.try_simple("SELECT 1/0").await.unwrap().unwrap_err();
    assert_eq!(refusal.code, "22012");
    let error = connection.timeline_history(77).await.unwrap_err();
    assert!(error.code().is_none(), "{error}");
    assert_eq!(connection.simple("SELECT 1, NULL").await.unwrap(), [[Some("1".to_owned()), None]]);
}

#[tokio::test]
async fn an_abandoned_command_is_not_answered_with_another_ones_reply() {
    let mut connection = open(unix()).await.unwrap();
    let abandoned = timeout(Duration::from_millis(50), connection.simple("SELECT 1 FROM pg_sleep(1)")).await;
    assert!(abandoned.is_err());
    assert!(matches!(connection.simple("SELECT 2").await, Err(Error::Retry(_))));
}

async fn refusals(database: Database) -> [Error; 2] {
    let session = session::connect(&database, "it_wire").await.map(drop).expect_err("the session is refused");
    [session, open(database).await.map(drop).expect_err("the replication connection is refused")]
}

#[tokio::test]
async fn refusals_are_named_on_both_ways_in() {
    let with = |change: fn(&mut Database)| {
        let mut database = tcp();
        change(&mut database);
        database
    };
    for (database, code) in [
        (with(|db| db.password = Some("wrong".to_owned().into())), Code::AuthFailed),
        (with(|db| db.password = None), Code::AuthFailed),
        (with(|db| db.user = "nobody_at_all".into()), Code::AuthFailed),
        (with(|db| db.dbname = "no_such_database".into()), Code::DatabaseMissing),
    ] {
        for error in refusals(database).await {
            assert_eq!(error.code(), Some(code), "{error}");
        }
    }
    for error in refusals(with(|db| db.port = 1)).await {
        assert!(matches!(error, Error::Retry(_)), "{error}");
        assert!(error.chain().contains("refused"), "{}", error.chain());
    }
}

#[tokio::test]
async fn a_role_without_replication_is_told_the_command() {
    let admin = session::connect(&unix(), "it_wire admin").await.unwrap();
    let role = format!("it_wire_role_{}", std::process::id());
    admin.batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD '{role}'")).await.unwrap();
    let database = database(Host::Tcp("127.0.0.1".into()), &role, Tls::Off);
    let outcome = open(database).await.map(drop);
    admin.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
    let error = outcome.unwrap_err();
    assert_eq!(error.code(), Some(Code::NoRight), "{error}");
    assert!(error.to_string().contains(&format!("ALTER ROLE \"{role}\" LOGIN REPLICATION")), "{error}");
}

/// Whatever takes longer would be begun again for ever.
#[tokio::test]
async fn limits_of_a_role_do_not_hold_for_our_sessions() {
    let admin = session::connect(&unix(), "it_wire admin").await.unwrap();
    let role = format!("it_wire_limited_{}", std::process::id());
    let names =
        "'statement_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout'";
    let limit = format!(
        "CREATE ROLE {role} LOGIN PASSWORD '{role}';
         DO $$ DECLARE limited text; BEGIN
           FOR limited IN SELECT name FROM pg_settings WHERE name IN ({names}) LOOP
             EXECUTE format('ALTER ROLE {role} SET %I = %L', limited, '10s');
           END LOOP; END $$"
    );
    admin.batch_execute(&limit).await.unwrap();
    let session = session::connect(&database(Host::Tcp("127.0.0.1".into()), &role, Tls::Off), "it_wire").await.unwrap();
    let found = format!("SELECT string_agg(DISTINCT setting, ',') FROM pg_settings WHERE name IN ({names})");
    let found = first(&session, &found).await;
    session.close().await;
    admin.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
    assert_eq!(found, "0");
}

// ---- TLS that must not be trusted ----

/// Runs openssl in a folder of its own.
fn openssl(folder: &Path, arguments: &str) {
    let words = arguments.split_whitespace();
    let output = Command::new("openssl").current_dir(folder).args(words).output().expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Makes a self-signed certificate `name.crt` with its key.
fn self_signed(folder: &Path, name: &str, extensions: &str) {
    let key = format!("-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.crt");
    openssl(folder, &format!("req -x509 -days 2 -subj /CN={name} {key} {extensions}"));
}

/// A server that answers every request for TLS with `answer`, and shakes hands as `name` when that is yes.
async fn tls_server(folder: &Path, name: Option<&str>) -> u16 {
    let acceptor = name.map(|name| {
        let certificate = CertificateDer::from_pem_file(folder.join(format!("{name}.crt"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key"))).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        tokio_rustls::TlsAcceptor::from(Arc::new(config))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 8];
            stream.read_exact(&mut request).await.unwrap();
            match &acceptor {
                Some(acceptor) => {
                    stream.write_all(b"S").await.unwrap();
                    // The client hangs up; that is the test.
                    let _ = acceptor.accept(stream).await;
                }
                None => stream.write_all(b"N").await.unwrap(),
            }
        }
    });
    port
}

#[tokio::test]
async fn a_server_that_is_not_who_it_should_be_is_refused_with_words() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    self_signed(folder, "ca", "-addext subjectAltName=IP:127.0.0.1");
    self_signed(folder, "leaf", "-addext basicConstraints=critical,CA:FALSE -addext subjectAltName=IP:127.0.0.1");
    self_signed(folder, "elsewhere", "-addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:elsewhere");
    for (server, trusted, words) in [
        (None, "ca", "offers no TLS"),
        (Some("ca"), "ca", "CA's certificate as its own"),
        (Some("leaf"), "ca", "not signed by anyone in"),
        (Some("elsewhere"), "elsewhere", "not for the name 127.0.0.1"),
    ] {
        let port = tls_server(folder, server).await;
        let database = Database { port, ..tls(folder.join(format!("{trusted}.crt"))) };
        for error in refusals(database).await {
            assert_eq!(error.code(), Some(Code::TlsFailed), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }
    // What the hint for a CA's certificate says works: past the handshake the small server hangs up.
    let port = tls_server(folder, Some("leaf")).await;
    for error in refusals(Database { port, ..tls(folder.join("leaf.crt")) }).await {
        assert!(matches!(error, Error::Retry(_)), "{error}");
    }
    for error in refusals(tls(folder.join("missing.crt"))).await {
        assert_eq!(error.code(), Some(Code::TlsFailed), "{error}");
    }
    for error in refusals(tls(folder.join("leaf.crt"))).await {
        assert!(error.to_string().contains("not signed by anyone in"), "{error}");
    }
}

/// A server that sends `replies` one after the other, each after something was read.
async fn scripted_server(replies: &'static [&'static [u8]]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            for reply in replies {
                if stream.read(&mut request).await.unwrap_or(0) == 0 {
                    break;
                }
                stream.write_all(reply).await.unwrap();
            }
        }
    });
    port
}

#[tokio::test]
async fn a_server_that_skips_its_half_of_scram_is_not_believed() {
    const SASL: &[u8] = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0";
    const OK_AND_READY: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
    let port = scripted_server(&[SASL, OK_AND_READY]).await;
    let error = open(Database { port, ..tcp() }).await.map(drop).unwrap_err();
    assert_eq!(error.code(), Some(Code::AuthFailed), "{error}");
    assert!(error.to_string().contains("left the SCRAM exchange"), "{error}");
}

#[tokio::test]
async fn what_is_no_postgres_halts_and_reserves_nothing() {
    let port = scripted_server(&[b"HTTP/1.1 400 Bad Request\r\n\r\n"]).await;
    let error = open(Database { port, ..tcp() }).await.map(drop).unwrap_err();
    assert_eq!(error.code(), Some(Code::SourceProtocol), "{error}");
}

// ---- Streaming ----

#[tokio::test]
async fn changes_are_streamed_decoded_and_confirmed() {
    with_fixture(|f| async move {
        let mut stream = f.stream(&source(tls(env("LOCKSTEP_TEST_CA").into()))).await.unwrap();
        f.run("INSERT INTO $t VALUES (1, 'a', repeat('x', 5000)), (2, NULL, NULL)").await;
        f.run("UPDATE $t SET body = 'b' WHERE id = 1; UPDATE $t SET id = 3 WHERE id = 1; DELETE FROM $t WHERE id = 2")
            .await;
        f.run("ALTER TABLE $t REPLICA IDENTITY FULL; UPDATE $t SET body = 'c'; TRUNCATE $t").await;
        f.run("SELECT pg_logical_emit_message(true, 'prefix', 'content')").await;
        let mut seen = Vec::new();
        let see = |message: &Message<'_>, data: &[u8], scratch: &Scratch| {
            let show = |cells| {
                let cell = |cell: Cell<'_>| match cell {
                    Cell::Null => "-".into(),
                    Cell::Absent => "?".into(),
                    Cell::Text(text) if text.len() > 100 => format!("{}B", text.len()),
                    Cell::Text(text) => String::from_utf8_lossy(text).into_owned(),
                };
                Row::new(data, cells).iter().map(cell).collect::<Vec<String>>().join(",")
            };
            let (new, old) = (show(&scratch.new), show(&scratch.old));
            match message {
                Message::Relation(relation) => {
                    assert_eq!(relation.schema, "public");
                    let columns: Vec<_> =
                        relation.columns.iter().map(|c| (c.name.as_str(), c.key, c.type_oid)).collect();
                    let full = relation.replica_identity == ReplicaIdentity::Full;
                    assert_eq!(columns, [("id", true, 23), ("body", full, 25), ("big", full, 25)]);
                    seen.push(format!("relation {:?}", relation.replica_identity));
                }
                Message::Insert { .. } => seen.push(format!("insert {new}")),
                Message::Update { old: kind, .. } => seen.push(format!("update {kind:?} {old} to {new}")),
                Message::Delete { old: kind, .. } => seen.push(format!("delete {kind:?} {old}")),
                Message::Truncate { oids, cascade, restart_identity } => {
                    seen.push(format!("truncate {} {cascade} {restart_identity}", oids.len()));
                }
                Message::Message { transactional, prefix, content, .. } => {
                    seen.push(format!("message {transactional} {prefix} {}", String::from_utf8_lossy(content)));
                }
                Message::Begin { commit_time_us, .. } => {
                    assert!(*commit_time_us > 1_700_000_000_000_000, "microseconds since 1970");
                }
                Message::Commit { .. } | Message::Origin { .. } | Message::Type { .. } => {}
            }
        };
        let end = read_commits(&mut stream, 4, see).await;
        let wanted = [
            "insert 1,a,5000B",
            "insert 2,-,-",
            "update None  to 1,b,?",
            "update Some(Key) 1,?,? to 3,b,?",
            "delete Key 2,?,?",
            "update Some(Full) 3,b,5000B to 3,c,?",
            "truncate 1 false false",
            "message true prefix content",
        ];
        // Relations come again whenever the server's cache was invalidated, which other tests' tables do too.
        assert!(seen[0] == "relation Default" && seen.iter().any(|line| line == "relation Full"), "{seen:?}");
        seen.retain(|line| !line.starts_with("relation"));
        assert_eq!(seen, wanted);

        assert!(f.confirmed_flush().await <= f.slot_start);
        stream.confirm(end);
        stream.close().await.unwrap();
        assert_eq!(f.confirmed_flush().await, end);
        assert_eq!(
            first(&f.admin, &format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", f.name)).await,
            "f"
        );

        // What was confirmed is not sent again.
        f.run("INSERT INTO $t VALUES (9)").await;
        let mut stream = f.stream(&source(tcp())).await.unwrap();
        let mut inserts = Vec::new();
        let see = |message: &Message<'_>, data: &[u8], scratch: &Scratch| {
            if let Message::Insert { .. } = message {
                inserts.push(Row::new(data, &scratch.new).get(0).text().unwrap().to_vec());
            }
        };
        read_commits(&mut stream, 1, see).await;
        assert_eq!(inserts, [b"9"]);
    })
    .await;
}

#[tokio::test]
async fn a_confirmation_reaches_the_slot_without_a_close() {
    with_fixture(|f| async move {
        let mut stream = f.stream(&source(unix())).await.unwrap();
        f.run("INSERT INTO $t VALUES (1)").await;
        let end = read_commits(&mut stream, 1, |_, _, _| {}).await;
        stream.confirm(end);
        for _ in 0..100 {
            if f.confirmed_flush().await == end {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("the slot stands at {}, confirmed {end}", f.confirmed_flush().await);
    })
    .await;
}

#[tokio::test]
async fn a_request_brings_a_keepalive_with_the_servers_place() {
    with_fixture(|f| async move {
        let mut stream = f.stream(&source(tcp())).await.unwrap();
        let wanted = f.wal_end().await;
        let place = timeout(Duration::from_secs(10), async {
            loop {
                stream.request_reply();
                stream.read().await.unwrap();
                while let Some(frame) = stream.next().unwrap() {
                    if let Frame::Keepalive { wal_end, .. } = frame
                        && wal_end >= wanted
                    {
                        return wal_end;
                    }
                }
            }
        });
        let place = place.await.expect("a keepalive that has caught up");
        stream.received(place);
        stream.confirm(place);
        stream.close().await.unwrap();
        assert_eq!(f.confirmed_flush().await, place);
    })
    .await;
}

/// Also on one thread: `tokio::test` without a flavour runs on `current_thread`.
#[tokio::test]
async fn the_server_does_not_give_up_on_us_while_nobody_reads() {
    with_fixture(|f| async move {
        let source = Source { sender_timeout: Duration::from_secs(2), ..source(tcp()) };
        let mut stream = f.stream(&source).await.unwrap();
        // More than both sockets' queues hold, so that the server is blocked in the middle of it.
        f.run("INSERT INTO $t SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g").await;
        sleep(Duration::from_secs(6)).await;
        let mut rows = 0;
        let see =
            |message: &Message<'_>, _: &[u8], _: &Scratch| rows += u32::from(matches!(message, Message::Insert { .. }));
        read_commits(&mut stream, 1, see).await;
        assert_eq!(rows, 20000);
    })
    .await;
}

#[tokio::test]
async fn a_value_of_20_mb_passes_and_small_rows_after_it() {
    with_fixture(|f| async move {
        let mut stream = f.stream(&source(tls(env("LOCKSTEP_TEST_CA").into()))).await.unwrap();
        f.run("INSERT INTO $t VALUES (1, repeat('x', 20000000)); INSERT INTO $t SELECT g, 'y' FROM generate_series(2, 1000) g")
            .await;
        let (mut largest, mut rows) = (0, 0);
        let see = |message: &Message<'_>, data: &[u8], scratch: &Scratch| {
            if let Message::Insert { .. } = message {
                rows += 1;
                let body = Row::new(data, &scratch.new).get(1).text().unwrap();
                assert!(body.iter().all(|b| *b == if body.len() > 1 { b'x' } else { b'y' }));
                largest = largest.max(body.len());
            }
        };
        read_commits(&mut stream, 1, see).await;
        assert_eq!((largest, rows), (20_000_000, 1000));
    })
    .await;
}

#[tokio::test]
async fn a_close_in_the_middle_of_a_large_transaction_is_quick_and_keeps_the_confirmation() {
    with_fixture(|f| async move {
        f.run("INSERT INTO $t VALUES (0)").await;
        f.run("INSERT INTO $t SELECT g, repeat('x', 1000) FROM generate_series(1, 100000) g").await;
        let mut stream = f.stream(&source(tcp())).await.unwrap();
        let end = read_commits(&mut stream, 1, |_, _, _| {}).await;
        stream.confirm(end);
        stream.close().await.unwrap();
        assert_eq!(f.confirmed_flush().await, end);
    })
    .await;
}

#[tokio::test]
async fn a_slot_is_read_by_one_at_a_time_and_a_missing_one_is_lost() {
    with_fixture(|f| async move {
        let _holder = f.stream(&source(unix())).await.unwrap();
        let error = f.stream(&source(tcp())).await.map(drop).unwrap_err();
        assert_eq!(error.code(), Some(Code::SlotInUse), "{error}");
        let sql = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'", f.name);
        let pid = first(&f.admin, &sql).await;
        assert!(error.to_string().contains(&format!("WHERE pid = {pid}")), "{error}");

        let connection = open(tcp()).await.unwrap();
        let started = connection.start_replication("no_such_slot", &f.name, Lsn::ZERO, &Start::default()).await;
        assert_eq!(started.map(drop).unwrap_err().code(), Some(Code::SlotLost));
    })
    .await;
}

#[tokio::test]
async fn a_terminated_walsender_is_retried_after_what_it_sent_was_handed_out() {
    with_fixture(|f| async move {
        let mut stream = f.stream(&source(tcp())).await.unwrap();
        f.run("INSERT INTO $t VALUES (1)").await;
        read_commits(&mut stream, 1, |_, _, _| {}).await;
        let sql =
            format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}'", f.name);
        f.run(&sql).await;
        let ended = timeout(Duration::from_secs(10), async {
            loop {
                if let Err(error) = stream.read().await {
                    return error;
                }
                loop {
                    match stream.next() {
                        Ok(None) => break,
                        Ok(Some(_)) => {}
                        Err(error) => return error,
                    }
                }
            }
        });
        let error = ended.await.unwrap();
        assert!(matches!(error, Error::Retry(_)) && error.chain().contains("57P01"), "{}", error.chain());
        assert!(matches!(stream.read().await, Err(Error::Retry(_))), "an ended stream stays ended");
    })
    .await;
}

/// Forwards one connection to the real server until `cut` is set; then swallows everything, both ways.
async fn proxy(cut: Arc<AtomicBool>) -> u16 {
    async fn forward(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, cut: Arc<AtomicBool>) {
        let mut bytes = vec![0; 65536];
        while let Ok(len @ 1..) = from.read(&mut bytes).await {
            if !cut.load(Ordering::Relaxed) && to.write_all(&bytes[..len]).await.is_err() {
                return;
            }
        }
        if cut.load(Ordering::Relaxed) {
            // Swallows the end, too: `to` stays open.
            std::future::pending().await
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own_port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(("127.0.0.1", port())).await.unwrap();
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::join!(forward(from_client, to_server, cut.clone()), forward(from_server, to_client, cut));
    });
    own_port
}

#[tokio::test]
async fn a_link_that_swallows_everything_is_noticed_and_a_quiet_one_is_not() {
    with_fixture(|f| async move {
        let cut = Arc::new(AtomicBool::new(false));
        let database = Database { port: proxy(cut.clone()).await, ..tcp() };
        let source = Source { sender_timeout: Duration::from_secs(1), ..source(database) };
        let mut stream = f.stream(&source).await.unwrap();
        // Quiet for far longer than the limit of 3 s: only the answers to our questions arrive.
        let quiet = timeout(Duration::from_secs(5), async {
            loop {
                stream.read().await.unwrap();
                while stream.next().unwrap().is_some() {}
            }
        });
        assert!(quiet.await.is_err(), "a quiet stream goes on");
        cut.store(true, Ordering::Relaxed);
        let ended = timeout(Duration::from_secs(10), async {
            loop {
                if let Err(error) = stream.read().await {
                    return error;
                }
                while stream.next().unwrap().is_some() {}
            }
        });
        let error = ended.await.expect("noticed within three timeouts");
        assert!(matches!(error, Error::Retry(_)) && error.to_string().contains("not even an answer"), "{error}");
    })
    .await;
}
