//! A sink on a real server for the tests that drive it themselves: `eval "$(scripts/services env)"` names the server. Each
//! test has a database of its own.

#![allow(dead_code)] // each test uses what it needs

use std::future::Future;
use std::time::Duration;

use lockstep::apply::net::{Folded, NetEffect};
use lockstep::change::Op;
use lockstep::config::{self, Database, Engine, Host, SinkTable, Tls};
use lockstep::error::{Error, Halt};
use lockstep::key::KeyRange;
use lockstep::lsn::{Lsn, Position};
use lockstep::record::Epoch;
use lockstep::relation::{Column, Fingerprint, Format, Modes, Relation, TableName, TypeKind};
use lockstep::session::{self, Session};
use lockstep::sink::postgres::PostgresSink;
use lockstep::sink::progress::{Phase, ProgressRow, Standing, TakeOver};
use lockstep::sink::sql::SinkTablePlan;
use lockstep::sink::{Counts, Failure, WantedTable};
use lockstep::value::{Cell, RowBuf};
use uuid::Uuid;

// ---- A database per test ----

pub fn database(user: &str, dbname: &str) -> Database {
    let port = std::env::var("LOCKSTEP_TEST_ORDERS_PORT")
        .expect("LOCKSTEP_TEST_ORDERS_PORT is not set: scripts/services up, then eval \"$(scripts/services env)\"");
    Database {
        host: Host::Tcp("127.0.0.1".into()),
        port: port.parse().expect("a port"),
        user: user.into(),
        password: Some(user.to_owned().into()),
        dbname: dbname.into(),
        tls: Tls::Off,
        connect_timeout: Duration::from_secs(10),
    }
}

pub struct World {
    pub name: String,
    /// As the owner of the tables, beside the sink.
    pub admin: Session,
}

impl World {
    pub fn sink_config(&self) -> config::Sink {
        config::Sink {
            name: "orders".into(),
            engine: Engine::Postgres(database("lockstep", &self.name)),
            batch_rows_max: 10_000,
            batch_bytes_max: 16 << 20,
            span_wait: Duration::from_secs(1),
            rows_per_second: None,
            bytes_per_second: None,
            lock_timeout: Duration::from_millis(300),
            lease_timeout: Duration::from_secs(1),
            foreign_keys: Default::default(),
            consistency: Default::default(),
            synchronous_commit: true,
            parking: Default::default(),
        }
    }

    pub async fn connect(&self, worker: Uuid) -> PostgresSink {
        PostgresSink::connect(&self.sink_config(), "shop", worker).await.unwrap()
    }

    /// A sink that owns its progress row, over the tables that `ddl` makes.
    pub async fn sink(&self, ddl: &str) -> Owned {
        self.run(ddl).await;
        let mut sink = self.connect(Uuid::new_v4()).await;
        sink.progress(true).await.unwrap();
        let row = mine(sink.take_over(&first()).await.unwrap());
        Owned { sink, row }
    }

    pub async fn run(&self, sql: &str) {
        self.admin.batch_execute(sql).await.unwrap();
    }

    /// One row per line, columns joined by `|`.
    pub async fn rows(&self, sql: &str) -> String {
        let messages = self.admin.simple_query(sql).await.unwrap();
        let lines = messages.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                let cells: Vec<&str> = (0..row.len()).map(|i| row.get(i).unwrap_or("~")).collect();
                Some(cells.join("|"))
            }
            _ => None,
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Runs a test in a database of its own, which is dropped whatever happens.
pub fn in_database<F: Future<Output = ()>>(test: impl FnOnce(World) -> F) {
    let name = format!("it_sink_{}", Uuid::new_v4().simple());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let postgres = session::connect(&database("postgres", "postgres"), "it_sink").await.unwrap();
        postgres.batch_execute(&format!("CREATE DATABASE {name} OWNER lockstep")).await.unwrap();
    });
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.block_on(async {
            let admin = session::connect(&database("lockstep", &name), "it_sink").await.unwrap();
            admin.batch_execute("SET search_path = public").await.unwrap();
            test(World { name: name.clone(), admin }).await;
        });
    }));
    runtime.block_on(async {
        let postgres = session::connect(&database("postgres", "postgres"), "it_sink").await.unwrap();
        postgres.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

// ---- A sink that a test owns ----

pub struct Owned {
    pub sink: PostgresSink,
    pub row: ProgressRow,
}

pub fn first() -> Standing {
    Standing {
        ledger_topic_id: Uuid::from_u128(7),
        source_system_id: u64::MAX,
        timeline: 1,
        ledger_offset: 5,
        join_offset: Some(6),
        reader: Epoch { offset: 3, nonce: u64::MAX - 1 },
        position: Position::ORIGIN,
        closed_lsn: Lsn::ZERO,
        commit_time_us: None,
        phase: Phase::Snapshot,
    }
}

pub fn after(row: &ProgressRow) -> Standing {
    let standing = row.standing.clone();
    Standing {
        ledger_offset: standing.ledger_offset + 1,
        position: Position::new(Lsn(standing.position.lsn.0 + 16), (1 << 40) + 1),
        closed_lsn: Lsn(0xFFFF_FFFF_0000_0001),
        commit_time_us: Some(1_795_000_000_123_456),
        phase: Phase::Streaming,
        ..standing
    }
}

pub fn mine(answer: TakeOver) -> ProgressRow {
    match answer {
        TakeOver::Mine(row) => *row,
        TakeOver::Standby { .. } => panic!("another worker owns the row"),
    }
}

impl Owned {
    pub async fn begin(&mut self) -> Standing {
        let to = after(&self.row);
        self.sink.begin(&self.row, &to).await.unwrap();
        to
    }

    pub async fn commit(&mut self, to: Standing) {
        self.sink.commit().await.unwrap();
        self.row.standing = to;
    }

    /// One interval: `nets` in one transaction.
    pub async fn apply(&mut self, nets: &[(&SinkTablePlan, NetEffect)]) -> Result<Counts, Failure> {
        let to = self.begin().await;
        let outcome = match self.sink.apply(nets).await {
            Ok(counts) => self.sink.commit().await.map(|()| counts),
            Err(failure) => Err(failure),
        };
        match &outcome {
            Ok(_) => self.row.standing = to,
            Err(_) => self.sink.rollback().await.unwrap(),
        }
        outcome
    }

    /// One interval in which every change is written by itself, in order.
    pub async fn apply_one_by_one(&mut self, plans: &[&SinkTablePlan], ops: &[(usize, Op)]) -> Result<(), Failure> {
        let to = self.begin().await;
        for (table, op) in ops {
            let plan = plans[*table];
            let mut net = plan.fold();
            assert_eq!(net.fold(op.clone()).unwrap(), Folded::Done);
            if let Err(failure) = self.sink.apply(&[(plan, net.drain())]).await {
                self.sink.rollback().await.unwrap();
                return Err(failure);
            }
        }
        self.commit(to).await;
        Ok(())
    }

    pub async fn replace(&mut self, plan: &SinkTablePlan, range: &KeyRange, rows: &[RowBuf]) -> Counts {
        let to = self.begin().await;
        let mut load = self.sink.begin_range(plan, range).await.unwrap();
        for rows in rows.chunks(2) {
            self.sink.push_range(&mut load, rows).await.unwrap();
        }
        let counts = self.sink.end_range(load, &[]).await.unwrap();
        self.commit(to).await;
        counts
    }
}

// ---- Relations and rows ----

/// `name:type`, `name:type!` for a key column, `name:type+` for another one that is not null.
pub fn relation(table: &str, columns: &str) -> Relation {
    let oid = |name: &str| match name {
        "int4" => 23,
        "int2" => 21,
        "int8" => 20,
        "numeric" => 1700,
        "timestamptz" => 1184,
        "text" => 25,
        "uuid" => 2950,
        _ => 70_000,
    };
    let mut key = 0..;
    let columns = columns.split(' ').map(|column| {
        let (name, kind) = column.split_once(':').unwrap();
        let kind_name = kind.trim_end_matches(['!', '+']);
        Column {
            name: name.into(),
            type_oid: oid(kind_name),
            type_name: kind_name.into(),
            typmod: if kind_name == "bpchar" { 5 + 4 } else { -1 },
            kind: TypeKind::Base,
            nullable: !kind.ends_with(['!', '+']),
            default: None,
            key: kind.ends_with('!').then(|| key.next().unwrap()),
            exact: true,
        }
    });
    Relation {
        fingerprint: Fingerprint(0),
        oid: 1,
        name: TableName::new("public", table),
        topic: format!("shop.public.{table}"),
        partitions: 1,
        format: Format::Json,
        modes: Modes::default(),
        columns: columns.collect(),
        avro: None,
        transforms: vec![],
        hidden: vec![],
        composites: vec![],
    }
    .sealed()
}

pub fn wanted(table: &str, columns: &str) -> WantedTable {
    let target = SinkTable::new("orders", TableName::new("public", table));
    WantedTable::of(&relation(table, columns), &target).unwrap()
}

pub async fn plan(sink: &PostgresSink, table: &str, columns: &str) -> SinkTablePlan {
    sink.plan(&[wanted(table, columns)]).await.unwrap().remove(0)
}

/// `1|x|~|-`: cells; `~` is NULL, `-` absent.
pub fn row(text: &str) -> RowBuf {
    text.split('|')
        .map(|cell| match cell {
            "~" => Cell::Null,
            "-" => Cell::Absent,
            text => Cell::Text(text.as_bytes()),
        })
        .collect()
}

/// `insert ROW`, `update ROW`, `delete ROW`, `rekey ROW -> ROW`, `truncate`.
pub fn op(text: &str) -> Op {
    let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
    match verb {
        "insert" => Op::Insert(row(rest)),
        "update" => Op::Update(row(rest)),
        "delete" => Op::Delete(row(rest)),
        "rekey" => {
            let (old, new) = rest.split_once(" -> ").unwrap();
            Op::Rekey { old: row(old), new: row(new) }
        }
        "truncate" => Op::Truncate,
        other => panic!("no such verb: {other}"),
    }
}

pub fn net(plan: &SinkTablePlan, ops: &[&str]) -> NetEffect {
    let mut net = plan.fold();
    for text in ops {
        assert_eq!(net.fold(op(text)).unwrap(), Folded::Done, "{text}");
    }
    net.drain()
}

pub fn halt(failure: Failure) -> Halt {
    match failure {
        Failure::Error(Error::Halt(halt)) | Failure::Constraint(halt) | Failure::Reference(halt) => *halt,
        other => panic!("not a halt: {other:?}"),
    }
}
