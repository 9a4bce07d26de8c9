//! A SQLite file and a sink that owns it, for the tests that drive it themselves: no server is needed.

pub mod differential;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockstep::apply::net::{Folded, NetEffect};
use lockstep::config::{self, Engine};
use lockstep::error::Halt;
use lockstep::key::KeyRange;
use lockstep::sink::park::Unread;
use lockstep::sink::progress::{ProgressRow, Standing};
use lockstep::sink::sqlite::{SqliteSink, TablePlan};
use lockstep::sink::{Counts, Failure, Sink, WantedTable};
use rusqlite::Connection;
use rusqlite::types::Value;
use uuid::Uuid;

use crate::world::{after, first, mine, op, row};

/// Its folder goes with it.
pub struct File {
    pub folder: tempfile::TempDir,
    pub path: PathBuf,
    pub admin: Connection,
}

impl File {
    pub fn new(ddl: &str) -> File {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edge.db");
        let admin = Connection::open(&path).unwrap();
        admin.busy_timeout(Duration::from_secs(10)).unwrap();
        admin.execute_batch(&format!("PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON; {ddl}")).unwrap();
        File { folder, path, admin }
    }

    pub fn run(&self, sql: &str) {
        self.admin.execute_batch(sql).unwrap();
    }

    /// One row per line, columns joined by `|`; `~` is NULL.
    pub fn rows(&self, sql: &str) -> String {
        let mut statement = self.admin.prepare(sql).unwrap();
        let columns = statement.column_count();
        let lines = statement.query_map([], |row| {
            let cells = (0..columns).map(|i| Ok(shown(&row.get(i)?))).collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(cells.join("|"))
        });
        lines.unwrap().collect::<rusqlite::Result<Vec<_>>>().unwrap().join("\n")
    }

    pub fn config(&self) -> config::Sink {
        config::Sink {
            name: "edge".into(),
            engine: Engine::Sqlite(self.path.clone()),
            batch_rows_max: 10_000,
            batch_bytes_max: 16 << 20,
            span_wait: Duration::from_secs(1),
            rows_per_second: None,
            bytes_per_second: None,
            lock_timeout: Duration::from_millis(300),
            lease_timeout: Duration::from_secs(1),
            foreign_keys: Default::default(),
            consistency: Default::default(),
            synchronous_commit: false,
            parking: Default::default(),
        }
    }

    pub async fn connect(&self, worker: Uuid) -> SqliteSink {
        SqliteSink::connect(&self.config(), "shop", worker).await.unwrap()
    }

    /// A sink that owns its progress row.
    pub async fn sink(&self) -> Owned {
        let mut sink = self.connect(Uuid::new_v4()).await;
        sink.progress(true).await.unwrap();
        let row = mine(sink.take_over(&first()).await.unwrap());
        Owned { sink, row }
    }

    /// What a start or `check` says against the table.
    pub async fn findings(&self, wanted: WantedTable) -> Vec<Halt> {
        self.connect(Uuid::new_v4()).await.preflight(&[wanted]).await.unwrap().halts
    }
}

/// As texts of Postgres, but for times and the like, which are texts already.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => "~".into(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => format!("{number}"),
        Value::Text(text) => text.clone(),
        Value::Blob(bytes) => format!("\\x{}", hex::encode(bytes)),
    }
}

pub type Plan = Arc<TablePlan>;

pub struct Owned {
    pub sink: SqliteSink,
    pub row: ProgressRow,
}

impl Owned {
    pub async fn plan(&mut self, wanted: WantedTable) -> Plan {
        self.sink.plan(&[wanted]).await.unwrap().remove(0)
    }

    pub async fn begin(&mut self) -> Standing {
        let to = after(&self.row);
        self.sink.begin(&self.row, &to).await.unwrap();
        to
    }

    pub async fn end(&mut self, to: Standing, outcome: Result<(), Failure>) -> Result<(), Failure> {
        let outcome = match outcome {
            Ok(()) => self.sink.commit().await,
            refused => refused,
        };
        match &outcome {
            Ok(()) => self.row.standing = to,
            Err(_) => self.sink.rollback().await.unwrap(),
        }
        outcome
    }

    /// One interval: `nets` one after the other in one transaction; `unread` as the driver says it once a try was refused.
    pub async fn apply(&mut self, nets: Vec<(&Plan, NetEffect)>, unread: Option<&Unread>) -> Result<Counts, Failure> {
        let to = self.begin().await;
        let mut counts = Counts::default();
        let mut outcome = Ok(());
        for net in nets {
            if let Some(unread) = unread {
                self.sink.park(unread.clone());
            }
            match self.sink.apply(&[net]).await {
                Ok(more) => counts += more,
                Err(failure) => {
                    outcome = Err(failure);
                    break;
                }
            }
        }
        self.end(to, outcome).await.map(|()| counts)
    }

    /// What changes written as `op` reads them come to, in one transaction.
    pub async fn ops(&mut self, plan: &Plan, ops: &[&str]) -> Result<Counts, Failure> {
        let mut fold = plan.fold();
        let mut nets = Vec::new();
        for text in ops {
            let mut next = op(text);
            while let Folded::FlushFirst(again) = fold.fold(next.clone()).unwrap() {
                nets.push((plan, fold.drain()));
                next = again;
            }
        }
        nets.push((plan, fold.drain()));
        self.apply(nets, None).await
    }

    pub async fn replace(&mut self, plan: &Plan, range: &KeyRange, rows: &[&str]) -> Result<Counts, Failure> {
        let rows: Vec<_> = rows.iter().map(|text| row(text)).collect();
        let to = self.begin().await;
        match self.sink.replace_range(plan, range, &rows, &[]).await {
            Ok(counts) => self.end(to, Ok(())).await.map(|()| counts),
            Err(failure) => self.end(to, Err(failure)).await.map(|()| Counts::default()),
        }
    }
}

pub fn halt_of<T: std::fmt::Debug>(outcome: Result<T, Failure>) -> Halt {
    match outcome.unwrap_err() {
        Failure::Unique(halt) => *halt,
        other => crate::world::halt(other),
    }
}
