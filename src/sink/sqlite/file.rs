//! An open file and what is known of it, on the thread that its calls run on: settings, one transaction at a time.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, InterruptHandle, OpenFlags};

use super::catalog::{self, TableFacts};
use super::park::Parking;
use super::plan::TablePlan;
use super::progress::RowName;
use super::refusal::failure;
use crate::error::{Code, Error, Halt, Result};
use crate::sink::{Failure, Outcome};

/// How long SQLite itself waits for another connection. Short, so that whoever calls can be stopped; it tries again.
const BUSY_TIMEOUT: Duration = Duration::from_millis(100);

/// Prepared statements kept: tables times the columns that rows carry.
const STATEMENTS_MAX: usize = 256;

/// 16 MiB, in the pragma's KiB: what a transaction changes is in memory up to here.
const CACHE_KIB: i64 = 16 * 1024;

pub(super) struct OpenFile {
    pub connection: Connection,
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    pub name: RowName,
    pub parking: Parking,
    /// Of the file as the open transaction has it: another number after each change of a table.
    schema_version: i64,
    /// Plans by table and version that were seen to hold in this one.
    seen: HashSet<(String, i64)>,
}

impl OpenFile {
    pub fn open(path: &Path, name: RowName, synchronous_commit: bool) -> Result<OpenFile> {
        let place = path.display();
        let Ok(identity) = identity(path) else {
            let message = format!("the sink's file {place} does not exist");
            return Err(Error::halt(Code::DatabaseMissing, message, format!("sqlite3 '{place}' < SCHEMA.sql")));
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let failed = |error| Error::from(failure(&format!("opening {place}"), None, error));
        let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        settle(&connection).map_err(failed)?;
        if connection.is_readonly("main").map_err(failed)? {
            let message = format!("the sink's file {place} may not be written");
            return Err(Error::halt(Code::NoRight, message, format!("chmod u+rw '{place}'")));
        }
        let path = path.to_owned();
        let (parking, seen) = (Parking::default(), HashSet::new());
        let file = OpenFile { connection, path, identity, name, parking, schema_version: -1, seen };
        let encoding: String = file.pragma("encoding").map_err(failed)?;
        if encoding != "UTF-8" {
            let message =
                format!("the sink's file {place} keeps texts as {encoding}, which sort otherwise than at the source");
            return Err(Error::halt(Code::SinkTable, message, "make the file anew with PRAGMA encoding = 'UTF-8'"));
        }
        file.synchronous(synchronous_commit)?;
        Ok(file)
    }

    /// When a commit counts as safe. EXTRA is FULL, and in a rollback journal the end of the journal is safe too.
    fn synchronous(&self, commit: bool) -> Result<()> {
        let failed = |error| Error::from(failure("pinning the settings of the sink's file", None, error));
        let wal = self.is_wal().map_err(failed)?;
        if !commit && !wal {
            return Err(Error::halt(
                Code::Config,
                format!(
                    "sink {} has synchronous_commit = false, and its file no write-ahead log: a crash could damage it",
                    self.name.sink
                ),
                format!("sqlite3 '{}' 'PRAGMA journal_mode = WAL'", self.path.display()),
            ));
        }
        self.connection.pragma_update(None, "synchronous", if commit { "EXTRA" } else { "NORMAL" }).map_err(failed)
    }

    pub fn is_wal(&self) -> rusqlite::Result<bool> {
        Ok(self.pragma::<String>("journal_mode")? == "wal")
    }

    fn pragma<T: rusqlite::types::FromSql>(&self, name: &str) -> rusqlite::Result<T> {
        self.connection.pragma_query_value(None, name, |row| row.get(0))
    }

    pub fn interrupt(&self) -> InterruptHandle {
        self.connection.get_interrupt_handle()
    }

    /// Refuses a file that is no longer the one that its path names: what is written to it nobody would see.
    pub fn check_identity(&self) -> Result<()> {
        match identity(&self.path) {
            Ok(identity) if identity == self.identity => Ok(()),
            _ => Err(Error::retry_plain(format!("the sink's file {} was moved or replaced", self.path.display()))),
        }
    }

    /// Opens a transaction that nobody else writes beside.
    pub fn begin(&mut self) -> rusqlite::Result<()> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let prepared = self.prepare();
        if prepared.is_err() {
            self.rollback()?;
        }
        prepared
    }

    fn prepare(&mut self) -> rusqlite::Result<()> {
        let version = self.pragma("schema_version")?;
        if version != self.schema_version {
            self.seen.clear();
        }
        self.schema_version = version;
        // Holds until the transaction ends: what references what is checked at the commit.
        self.connection.pragma_update(None, "defer_foreign_keys", true)
    }

    pub fn is_open(&self) -> bool {
        !self.connection.is_autocommit()
    }

    /// What is written is whole from here on.
    pub fn settle(&mut self) -> Outcome<()> {
        self.parking.settle(&self.connection)
    }

    pub fn commit(&mut self) -> rusqlite::Result<()> {
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        self.parking = Parking::default();
        Ok(())
    }

    /// Some errors have rolled back by themselves.
    pub fn rollback(&mut self) -> rusqlite::Result<()> {
        self.parking = Parking::default();
        if self.is_open() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        Ok(())
    }

    /// What the file says of tables, with the version of it that says so.
    pub fn facts(&mut self, tables: &[String]) -> rusqlite::Result<(i64, Vec<Option<TableFacts>>)> {
        let begun = !self.is_open();
        if begun {
            self.connection.execute_batch("BEGIN")?;
        }
        let read = || {
            let facts = tables.iter().map(|table| catalog::read(&self.connection, table)).collect::<Result<_, _>>()?;
            Ok((self.pragma("schema_version")?, facts))
        };
        let read = read();
        if begun {
            self.rollback()?;
        }
        read
    }

    /// Refuses a plan of a table that its owner has altered since: within the transaction nobody can.
    pub fn check_plan(&mut self, plan: &TablePlan) -> Outcome<()> {
        let seen = (plan.facts.name.clone(), plan.schema_version);
        if plan.schema_version == self.schema_version || self.seen.contains(&seen) {
            return Ok(());
        }
        let facts = catalog::read(&self.connection, &plan.facts.name);
        match facts.map_err(|error| failure("looking at the sink's tables", Some(plan), error))? {
            Some(facts) if facts == plan.facts => {
                self.seen.insert(seen);
                Ok(())
            }
            _ => Err(Failure::Error(Error::retry_plain(format!(
                "table {} of the sink was altered just now",
                plan.name()
            )))),
        }
    }

    /// Worth knowing of the file itself.
    pub fn notes(&self) -> rusqlite::Result<Vec<String>> {
        Ok(match self.is_wal()? {
            true => vec![],
            false => vec![format!(
                "{} has no write-ahead log: its readers and the sink wait for each other (help: PRAGMA journal_mode = WAL)",
                self.path.display()
            )],
        })
    }
}

fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // A column that is gone would otherwise be a text, and every row be found by it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The sink is not the state that it claims.
pub(super) fn diverged(plan: &TablePlan, doing: &str, named: u64, affected: u64) -> Failure {
    Halt {
        code: Code::SinkDiverged,
        message: format!(
            "{doing} {} reached {affected} rows of the {named} that it names: the sink is not the state that it claims",
            plan.name()
        ),
        facts: vec![],
        hint: format!("lockstep resync {}", plan.source),
    }
    .into()
}
