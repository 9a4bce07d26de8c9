//! A connection to a MariaDB: the only file that speaks to the client library, beside the errors that `refusal` reads.
//!
//! Statements are whole texts (literals are [`super::value`]'s): several rows in one statement and several statements in one
//! packet cost one round trip, and the protocol has no other way to send ahead. Every session pins what shapes a value, an
//! identifier or a transaction, whatever the server, the user or a pooler has set, and reads it back.
//!
//! The server's count of affected rows is that of rows found, not of rows changed (`CLIENT_FOUND_ROWS`), since an update that finds
//! its row as it is to be has not missed it.

use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder, Row, SslOpts, Value};
use secrecy::ExposeSecret;

use super::refusal;
use crate::config::{Database, Host, Tls};
use crate::error::{Code, Error, Result};
use crate::session::{KEEPALIVE_IDLE, place, tls};

/// One statement at most, however much the server would take: beyond it nothing gets faster, and it is held in memory twice.
const STATEMENT_BYTES_MAX: usize = 1 << 20;

/// What the server may need of a packet beside the text.
const PACKET_RESERVE: usize = 1024;

/// Since this version a text can have a collation that tells `a` from `a ` (NOPAD), and INSERT … does what it is here to do; older
/// ones nobody maintains.
const VERSION_MIN: (u16, u16) = (10, 6);

/// What the session is to be, as SET takes it. Strict, so that what does not fit is an error and no warning; zero dates, and a 0 that
/// stands for the next number, are values of no source; a backslash in a literal is a backslash.
const SQL_MODE: &str = "STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_AUTO_VALUE_ON_ZERO,\
    NO_BACKSLASH_ESCAPES,NO_ENGINE_SUBSTITUTION";

/// The rest of it, with the reason.
const PINNED: &[(&str, &str)] = &[
    ("time_zone", "'+00:00'"),
    ("foreign_key_checks", "1"),
    ("unique_checks", "1"),
    ("check_constraint_checks", "1"),
    ("sql_safe_updates", "0"),
    ("sql_auto_is_null", "0"),
    ("autocommit", "1"),
    ("completion_type", "0"),
    ("sql_notes", "1"),
    // Names of constraints and columns are read out of messages, never values.
    ("lc_messages", "'en_US'"),
    // A list of a thousand keys would become a subquery, whose columns get types that keys are no longer compared by.
    ("in_predicate_conversion_threshold", "0"),
    ("explicit_defaults_for_timestamp", "1"),
    // A user's own time-out would cut a long interval short for ever.
    ("max_statement_time", "0"),
    ("wait_timeout", "28800"),
    ("net_read_timeout", "600"),
    ("net_write_timeout", "600"),
    // A worker that is frozen or cut off must not hold the progress row for ever. Longer than span_wait, within which an
    // open transaction may wait for records; a server that gives up on it costs a retry, nothing else.
    ("idle_transaction_timeout", "600"),
    ("idle_write_transaction_timeout", "600"),
];

/// What was pinned, as the server says it.
const ASSERTED: &str = "SELECT @@sql_mode, @@time_zone, @@collation_connection, @@tx_isolation, @@foreign_key_checks, \
    @@unique_checks, @@max_allowed_packet, @@version";

/// A session that writes, or looks on.
pub(super) struct Link {
    conn: Conn,
    /// Statements are at most this long.
    pub statement_bytes: usize,
    /// The longest text that the server takes at all.
    pub packet_bytes: usize,
}

/// What the server said of one statement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub rows: u64,
    pub warnings: bool,
}

/// A row of a text result.
pub(super) type Texts = Vec<Option<Vec<u8>>>;

impl Link {
    /// Connects, pins the session and asserts it, all within `connect_timeout`.
    pub async fn open(database: &Database, lock_timeout: Duration, application: &str) -> Result<Link> {
        let doing = format!("connecting to {}", place(database));
        let attempt = async {
            let opts = options(database, application)?;
            let conn = Conn::new(opts).await.map_err(|error| refusal::of_connecting(&doing, error, database))?;
            let mut link = Link { conn, statement_bytes: 0, packet_bytes: 0 };
            link.pin(lock_timeout, database).await?;
            Ok(link)
        };
        match tokio::time::timeout(database.connect_timeout, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::retry_plain(format!("{doing}: no session after {:?}", database.connect_timeout))),
        }
    }

    async fn pin(&mut self, lock_timeout: Duration, database: &Database) -> Result<()> {
        let doing = "pinning the sink session's settings";
        let failed = |error| refusal::classify(doing, error);
        let version = self.rows(b"SELECT @@version").await.map_err(failed)?;
        check_version(&text(version.first(), 0), database)?;
        // A lock's time is in whole seconds here.
        let seconds = lock_timeout.as_secs() + u64::from(lock_timeout.subsec_nanos() > 0);
        let locks = format!("innodb_lock_wait_timeout = {seconds}, SESSION lock_wait_timeout = {seconds}");
        let pinned = PINNED.iter().map(|(name, value)| format!("SESSION {name} = {value}")).collect::<Vec<_>>();
        let sql = format!(
            "SET NAMES utf8mb4 COLLATE utf8mb4_nopad_bin; SET SESSION sql_mode = '{SQL_MODE}', {}, SESSION {locks}; \
             SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE",
            pinned.join(", ")
        );
        self.run(sql.as_bytes()).await.map_err(failed)?;
        let row = self.rows(ASSERTED.as_bytes()).await.map_err(failed)?;
        let mode = text(row.first(), 0);
        let modes: Vec<&str> = mode.split(',').collect();
        let has = |wanted: &str| modes.contains(&wanted);
        let expected = ["+00:00", "utf8mb4_nopad_bin", "READ-COMMITTED", "1", "1"];
        let held = SQL_MODE.split(',').all(has)
            && !["ANSI_QUOTES", "PAD_CHAR_TO_FULL_LENGTH"].iter().any(|other| has(other))
            && expected.iter().enumerate().all(|(i, wanted)| text(row.first(), i + 1) == *wanted);
        if !held {
            let message = "the sink's server did not take the session's settings, so values would be written wrongly; a \
                           pooler in between drops them";
            return Err(Error::halt(Code::Config, message, "name the server itself in url"));
        }
        self.packet_bytes = text(row.first(), 6).parse::<usize>().unwrap_or_default().saturating_sub(PACKET_RESERVE);
        self.statement_bytes = self.packet_bytes.min(STATEMENT_BYTES_MAX);
        Ok(())
    }

    /// Statements that give no rows, with `; ` between them, in one packet. The first that fails ends it; those before it are done.
    pub async fn run(&mut self, sql: &[u8]) -> Result<Vec<Done>, mysql_async::Error> {
        let mut result = self.conn.query_iter(sql).await?;
        let mut done = Vec::new();
        loop {
            done.push(Done { rows: result.affected_rows(), warnings: result.warnings() > 0 });
            if result.is_empty() {
                break;
            }
            result.next().await?;
        }
        result.drop_result().await?;
        Ok(done)
    }

    /// The rows of one statement, each value as the server prints it.
    pub async fn rows(&mut self, sql: &[u8]) -> Result<Vec<Texts>, mysql_async::Error> {
        let rows: Vec<Row> = self.conn.query(sql).await?;
        let value = |value: Value| match value {
            Value::Bytes(bytes) => Some(bytes),
            Value::NULL => None,
            // The text protocol has no other.
            other => Some(other.as_sql(true).into_bytes()),
        };
        Ok(rows.into_iter().map(|row| row.unwrap().into_iter().map(value).collect()).collect())
    }
}

/// A cell of a row as text; empty where there is none.
pub(super) fn text(row: Option<&Texts>, column: usize) -> String {
    let bytes = row.and_then(|row| row.get(column)?.as_deref()).unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

fn options(database: &Database, application: &str) -> Result<Opts> {
    let mut options = OptsBuilder::default()
        .user(Some(database.user.clone()))
        .pass(database.password.as_ref().map(|password| password.expose_secret().to_owned()))
        .db_name(Some(database.dbname.clone()))
        .client_found_rows(true)
        .prefer_socket(false)
        .stmt_cache_size(0)
        .tcp_keepalive(Some(KEEPALIVE_IDLE))
        .connect_attribute("program_name", application);
    match &database.host {
        Host::Tcp(host) => {
            options = options.ip_or_hostname(host.clone()).tcp_port(database.port);
            if let Tls::Verified { ca_file } = &database.tls {
                options = options.ssl_opts(Some(tls_options(ca_file.as_deref())?));
            }
        }
        Host::Unix(socket) => options = options.socket(Some(socket.display().to_string())),
    }
    Ok(options.into())
}

/// Certificate chain and name are verified, against the same certificates as everywhere.
fn tls_options(ca_file: Option<&std::path::Path>) -> Result<SslOpts> {
    let certificates = tls::certificates(ca_file)?.into_iter().map(Into::into).collect();
    Ok(SslOpts::default().with_disable_built_in_roots(true).with_root_certs(certificates))
}

fn check_version(version: &str, database: &Database) -> Result<()> {
    let mut numbers = version.split(['.', '-']).map_while(|part| part.parse::<u16>().ok());
    let found = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if version.contains("MariaDB") && found >= VERSION_MIN {
        return Ok(());
    }
    let (major, minor) = VERSION_MIN;
    Err(Error::halt(
        Code::ServerVersion,
        format!("{} runs {version}; of this kind of sink MariaDB {major}.{minor} and newer is known", place(database)),
        "SELECT version()",
    ))
}
