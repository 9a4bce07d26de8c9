//! A MariaDB for tests: a database of one's own on the server that scripts/services runs, and a sink on it that a test drives itself.

#![allow(dead_code)] // each test uses what it needs

use std::time::Duration;

use lockstep::apply::net::{Folded, NetEffect};
use lockstep::config::{self, Database, Engine, Host, SinkTable, Tls};
use lockstep::key::KeyRange;
use lockstep::relation::TableName;
use lockstep::sink::mariadb::{MariaDbSink, Plan};
use lockstep::sink::progress::ProgressRow;
use lockstep::sink::{Counts, Failure, Findings, Sink, WantedTable};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder, Row, Value};
use uuid::Uuid;

use super::world;

pub struct Maria {
    pub name: String,
    port: u16,
}

impl Maria {
    pub async fn new() -> Maria {
        let port = std::env::var("LOCKSTEP_TEST_MARIADB_PORT").expect(
            "LOCKSTEP_TEST_MARIADB_PORT is not set: scripts/services up --mariadb, then eval \"$(scripts/services env)\"",
        );
        let maria = Maria { name: format!("it_{}", Uuid::new_v4().simple()), port: port.parse().expect("a port") };
        let mut admin = maria.connect("root", "").await;
        admin.query_drop(format!("CREATE DATABASE {}", maria.name)).await.unwrap();
        maria
    }

    pub async fn connect(&self, user: &str, database: &str) -> Conn {
        let database = Some(database.to_owned()).filter(|name| !name.is_empty());
        let options = OptsBuilder::default().ip_or_hostname("127.0.0.1").tcp_port(self.port);
        let options = options.user(Some(user)).pass(Some(user)).db_name(database).prefer_socket(false);
        Conn::new(options).await.unwrap()
    }

    /// Statements of the superuser's, in the database.
    pub async fn run(&self, sql: &str) {
        let mut admin = self.connect("root", &self.name).await;
        admin.query_drop(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let _ = admin.disconnect().await;
    }

    /// One row per line, columns joined by `|`, NULL as `~`.
    pub async fn rows(&self, sql: &str) -> String {
        let mut admin = self.connect("root", &self.name).await;
        admin.query_drop("SET time_zone = '+00:00', NAMES utf8mb4").await.unwrap();
        let rows: Vec<Row> = admin.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let _ = admin.disconnect().await;
        let cell = |value: Value| match value {
            Value::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Value::NULL => "~".to_owned(),
            other => other.as_sql(true),
        };
        let line = |row: Row| row.unwrap().into_iter().map(cell).collect::<Vec<_>>().join("|");
        rows.into_iter().map(line).collect::<Vec<_>>().join("\n")
    }

    pub fn url(&self) -> String {
        format!("mysql://lockstep:lockstep@127.0.0.1:{}/{}", self.port, self.name)
    }

    pub fn sink_config(&self) -> config::Sink {
        let database = Database {
            host: Host::Tcp("127.0.0.1".into()),
            port: self.port,
            user: "lockstep".into(),
            password: Some("lockstep".to_owned().into()),
            dbname: self.name.clone(),
            tls: Tls::Off,
            connect_timeout: Duration::from_secs(10),
        };
        config::Sink {
            name: "orders".into(),
            engine: Engine::MariaDb(database),
            batch_rows_max: 10_000,
            batch_bytes_max: 16 << 20,
            span_wait: Duration::from_secs(1),
            rows_per_second: None,
            bytes_per_second: None,
            lock_timeout: Duration::from_secs(1),
            lease_timeout: Duration::from_secs(1),
            foreign_keys: Default::default(),
            consistency: Default::default(),
            synchronous_commit: true,
            parking: Default::default(),
        }
    }

    pub async fn open(&self, worker: Uuid) -> MariaDbSink {
        let mut sink = <MariaDbSink as Sink>::connect(&self.sink_config(), "shop", worker).await.unwrap();
        sink.progress(true).await.unwrap();
        sink
    }

    /// A sink that owns its progress row, over the tables that `ddl` makes.
    pub async fn sink(&self, ddl: &str) -> Owned {
        if !ddl.is_empty() {
            self.run(ddl).await;
        }
        let mut sink = self.open(Uuid::new_v4()).await;
        let row = world::mine(sink.take_over(&world::first()).await.unwrap());
        Owned { sink, row }
    }

    /// Columns as in [`world::relation`].
    pub fn wanted(&self, table: &str, columns: &str) -> WantedTable {
        let target = SinkTable::new("orders", TableName::new(&self.name, table));
        WantedTable::of(&world::relation(table, columns), &target).unwrap()
    }

    pub async fn drop(self) {
        self.run(&format!("DROP DATABASE {}", self.name)).await;
    }
}

/// A sink that a test owns.
pub struct Owned {
    pub sink: MariaDbSink,
    pub row: ProgressRow,
}

/// A table as it is wanted, and how it is written.
pub struct Target {
    pub wanted: WantedTable,
    pub plan: Plan,
}

impl Owned {
    pub async fn target(&mut self, wanted: WantedTable) -> Target {
        let plan = self.sink.plan(std::slice::from_ref(&wanted)).await.unwrap().remove(0);
        Target { wanted, plan }
    }

    pub async fn judge(&mut self, wanted: &WantedTable) -> Findings {
        self.sink.preflight(std::slice::from_ref(wanted)).await.unwrap()
    }

    /// One interval: the net effect of these changes in one transaction.
    pub async fn apply(&mut self, target: &Target, ops: &[&str]) -> Result<Counts, Failure> {
        self.transaction(&[(target, net(target, ops))], false).await
    }

    pub async fn transaction(&mut self, nets: &[(&Target, NetEffect)], parking: bool) -> Result<Counts, Failure> {
        let to = world::after(&self.row);
        self.sink.begin(&self.row, &to).await?;
        if parking {
            self.sink.park(Default::default());
        }
        let mut counts = Counts::default();
        for (target, net) in nets {
            let net = NetEffect { ..copy(net) };
            match self.sink.apply(&[(&target.plan, net)]).await {
                Ok(more) => counts += more,
                Err(failure) => {
                    self.sink.rollback().await.unwrap();
                    return Err(failure);
                }
            }
        }
        self.sink.commit().await?;
        self.row.standing = to;
        Ok(counts)
    }

    pub async fn replace(&mut self, target: &Target, range: &KeyRange, rows: &[&str]) -> Result<Counts, Failure> {
        let to = world::after(&self.row);
        self.sink.begin(&self.row, &to).await?;
        let rows: Vec<_> = rows.iter().map(|text| world::row(text)).collect();
        match self.sink.replace_range(&target.plan, range, &rows, &[]).await {
            Ok(counts) => {
                self.sink.commit().await?;
                self.row.standing = to;
                Ok(counts)
            }
            Err(failure) => {
                self.sink.rollback().await.unwrap();
                Err(failure)
            }
        }
    }
}

fn copy(net: &NetEffect) -> NetEffect {
    use lockstep::apply::net::{Moves, Updates};
    let update = |u: &Updates| Updates { columns: u.columns.clone(), rows: u.rows.clone() };
    let moved = |m: &Moves| Moves { columns: m.columns.clone(), rows: m.rows.clone() };
    NetEffect {
        loading: net.loading,
        truncate: net.truncate,
        deletes: net.deletes.clone(),
        moves: net.moves.iter().map(moved).collect(),
        updates: net.updates.iter().map(update).collect(),
        inserts: net.inserts.clone(),
    }
}

pub fn net(target: &Target, ops: &[&str]) -> NetEffect {
    let mut fold = target.wanted.fold();
    for text in ops {
        assert_eq!(fold.fold(world::op(text)).unwrap(), Folded::Done, "{text}");
    }
    fold.drain()
}
