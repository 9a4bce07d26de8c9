//! The stream, decoded and folded into a copy of every table, and the loads that go on meanwhile. One task does it all, as the
//! reader does.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_all;
use lockstep::capture::emit::Streamed;
use lockstep::capture::machine::{Admit, Machine};
use lockstep::capture::shape::{self, Rows};
use lockstep::change::Op;
use lockstep::config::Config;
use lockstep::ledger::entry::Chunk;
use lockstep::lsn::{Lsn, Position};
use lockstep::postgres::catalog::{self, Identity, StreamedColumn, StreamedRelation};
use lockstep::postgres::chunk::MESSAGE_PREFIX;
use lockstep::postgres::frame::Frame;
use lockstep::postgres::pgoutput::{self, Message, RelationBody, ReplicaIdentity, Scratch};
use lockstep::postgres::stream::{Start, Stream};
use lockstep::postgres::wire::Connection;
use lockstep::postgres::{slot, types};
use lockstep::record::Epoch;
use lockstep::relation::{Fingerprint, TableName};
use lockstep::session::{self, Session};
use lockstep::value::Row;
use uuid::Uuid;

use super::Load;
use super::bed::PATIENCE;
use super::copy::{Copy, Naming};

/// Between two looks at what nobody tells of.
const TICK: Duration = Duration::from_millis(5);

/// Of messages that say where the stream has come to.
const PREFIX: &str = "it_cut";

pub struct Follower {
    stream: Stream,
    confirmed: Instant,
    pub core: Core,
}

/// The LSN of a message, and the position of its chunk.
type Mark = (Lsn, Option<Position>);

pub struct Core {
    config: Arc<Config>,
    session: Session,
    scratch: Scratch,
    transaction: Option<u32>,
    /// The last RELATION message of each table. They come again with every invalidation, and mostly say nothing new.
    announced: HashMap<u32, RelationBody>,
    streamed: HashMap<u32, (TableName, Rows)>,
    names: HashMap<TableName, Fingerprint>,
    machine: Machine,
    received: Lsn,
    closed: Lsn,
    last_mark: Option<Mark>,
    /// The last message of our own.
    heard: Vec<u8>,
    pub model: HashMap<TableName, Copy>,
    pub loads: Vec<Load>,
    pub commits: u64,
    pub changes: u64,
    /// Messages whose LSN the next commit has too, and their chunks.
    pub twins: Vec<Mark>,
}

impl Follower {
    pub async fn start(config: Arc<Config>) -> Follower {
        let session = session::connect(&config.source.database, "it_cut").await.unwrap();
        let connection = Connection::open(&config.source, "it_cut").await.unwrap();
        let (slot, publication) = (&config.source.slot, &config.source.publication);
        let stream = connection.start_replication(slot, publication, Lsn::ZERO, &Start::default()).await.unwrap();
        let epoch = Epoch { offset: 0, nonce: 0 };
        let core = Core {
            config,
            session,
            scratch: Scratch::default(),
            transaction: None,
            announced: HashMap::new(),
            streamed: HashMap::new(),
            names: HashMap::new(),
            machine: Machine::new(epoch, None, Lsn::ZERO, Duration::ZERO),
            received: Lsn::ZERO,
            closed: Lsn::ZERO,
            last_mark: None,
            heard: Vec::new(),
            model: HashMap::new(),
            loads: Vec::new(),
            commits: 0,
            changes: 0,
            twins: Vec::new(),
        };
        Follower { stream, confirmed: Instant::now(), core }
    }

    /// Follows until the condition holds, which is looked at whenever something was read or answered.
    pub async fn until(&mut self, what: &str, condition: impl FnMut(&mut Core) -> bool) {
        self.until_in(what, PATIENCE, condition).await;
    }

    pub async fn until_in(&mut self, what: &str, patience: Duration, mut condition: impl FnMut(&mut Core) -> bool) {
        let begun = Instant::now();
        loop {
            self.core.pump().await;
            if condition(&mut self.core) {
                return;
            }
            assert!(begun.elapsed() < patience, "{what} does not come: {}", self.where_it_stands().await);
            self.step().await;
        }
    }

    async fn where_it_stands(&self) -> String {
        let core = &self.core;
        let now = slot::current_lsn(&*core.session).await.unwrap();
        let mut text = format!("{} commits up to {}, received {} of {now}", core.commits, core.closed, core.received);
        for load in &core.loads {
            let _ = write!(text, "\n  {}; it waits for {:?}", load.tally, load.waits_for);
        }
        text
    }

    /// Until the stream has told of everything that is committed by now.
    pub async fn catch_up(&mut self) {
        let end = Uuid::new_v4().to_string();
        let sql = format!(
            "BEGIN; SET LOCAL synchronous_commit = local; SELECT pg_logical_emit_message(true, '{PREFIX}', '{end}'); COMMIT"
        );
        self.core.session.batch_execute(&sql).await.unwrap();
        self.until("the end of the log", |core| core.heard == end.as_bytes()).await;
    }

    async fn step(&mut self) {
        let loads = &mut self.core.loads;
        let answer = async {
            match loads.is_empty() {
                true => std::future::pending().await,
                false => {
                    let (answer, i, _) = select_all(loads.iter_mut().map(|load| Box::pin(load.recv()))).await;
                    (i, answer)
                }
            }
        };
        let answered = tokio::select! {
            read = self.stream.read() => {
                read.unwrap();
                None
            }
            answered = answer => Some(answered),
            () = tokio::time::sleep(TICK) => None,
        };
        if let Some((i, answer)) = answered {
            self.core.loads[i].answer(answer);
        }
        while let Some(frame) = self.stream.next().unwrap() {
            match frame {
                Frame::XLogData { start, wal_end, data, .. } => {
                    self.core.received = self.core.received.max(start).max(wal_end);
                    self.core.message(data).await;
                }
                Frame::Keepalive { wal_end, .. } => self.core.received = self.core.received.max(wal_end),
            }
        }
        self.stream.received(self.core.received);
        if self.confirmed.elapsed() > Duration::from_secs(1) {
            self.confirmed = Instant::now();
            self.stream.answer_keepalive();
            self.stream.confirm(self.core.closed.min(self.core.received));
        }
    }
}

impl Core {
    async fn pump(&mut self) {
        if self.loads.iter().any(Load::holds_a_fence) {
            let snapshot = slot::snapshot_now(&*self.session).await.unwrap();
            self.loads.iter_mut().for_each(|load| load.saw(&snapshot));
        }
        for load in &mut self.loads {
            load.pump(&self.model);
        }
    }

    async fn message(&mut self, data: &[u8]) {
        let mut scratch = std::mem::take(&mut self.scratch);
        match pgoutput::decode(data, &mut scratch).unwrap() {
            Message::Begin { final_lsn, xid, .. } => {
                self.twins.extend(self.last_mark.take().filter(|(lsn, _)| *lsn == final_lsn));
                assert_eq!(self.machine.begin(final_lsn), Admit::Take);
                self.transaction = Some(xid);
            }
            Message::Commit { end_lsn, commit_time_us, .. } => {
                self.transaction = None;
                self.machine.commit(end_lsn, commit_time_us);
                self.closed = end_lsn;
                self.commits += 1;
            }
            Message::Relation(body) => self.relation(body).await,
            Message::Insert { oid } => self.change(oid, Streamed::Insert(Row::new(data, &scratch.new))),
            Message::Update { oid, old } => {
                let (new, old) = (Row::new(data, &scratch.new), old.map(|kind| (kind, Row::new(data, &scratch.old))));
                // What was not sent of the new row is in the old one, where that was sent whole.
                let filled = old.filter(|_| new.has_absent()).map(|(_, old)| old.to_owned().merged(new));
                let new = filled.as_ref().map_or(new, |row| row.row());
                self.change(oid, Streamed::Update { old, new });
            }
            Message::Delete { oid, .. } => self.change(oid, Streamed::Delete { old: Row::new(data, &scratch.old) }),
            Message::Truncate { oids, .. } => {
                oids.iter().for_each(|oid| self.apply(*oid, &Op::Truncate));
            }
            Message::Message { transactional: false, prefix: MESSAGE_PREFIX, lsn, content } => self.mark(lsn, content),
            Message::Message { prefix: PREFIX, content, .. } => self.heard = content.to_vec(),
            Message::Message { .. } | Message::Origin { .. } | Message::Type { .. } => {}
        }
        self.scratch = scratch;
    }

    fn change(&mut self, oid: u32, change: Streamed<'_>) {
        let op = change.op(&self.streamed[&oid].1.key);
        self.apply(oid, &op);
    }

    fn apply(&mut self, oid: u32, op: &Op) {
        let xid = self.transaction.expect("changes stand in transactions");
        let (table, rows) = &self.streamed[&oid];
        self.machine.record();
        self.changes += 1;
        for load in &mut self.loads {
            load.change(xid, table, rows.fingerprint, &rows.key_orders, op);
        }
        self.model.get_mut(table).expect("a relation came before").apply(op);
    }

    async fn relation(&mut self, body: RelationBody) {
        if self.announced.insert(body.oid, body.clone()).as_ref() == Some(&body) {
            return;
        }
        let name = TableName::new(&*body.schema, &*body.table);
        let config = self.config.clone();
        let table = config.tables.iter().find(|table| table.name == name).expect("only ours are published");
        let facts = catalog::table_facts(&*self.session, std::slice::from_ref(&name)).await.unwrap().remove(0);
        let oids: Vec<u32> = body.columns.iter().map(|column| column.type_oid).collect();
        let types = types::types(&*self.session, &oids).await.unwrap();
        let asked = shape::relation_shape(table);
        let relation = catalog::build_streamed_relation(&announced(&body), facts.as_ref(), &types, &[], asked).unwrap();
        let rows = shape::shaped(table, relation, facts.as_ref(), &config.kafka.topic_prefix).unwrap().rows;
        let orders = rows.key_orders.iter().map(|(_, order)| *order).collect();
        let naming = Naming { key: rows.key.clone(), orders };
        self.model.entry(name.clone()).or_insert_with(|| Copy::new(naming));
        self.names.insert(name.clone(), rows.fingerprint);
        self.streamed.insert(body.oid, (name, rows));
    }

    /// A chunk enters here, between two transactions.
    fn mark(&mut self, lsn: Lsn, content: &[u8]) {
        let nonce = Uuid::try_parse(std::str::from_utf8(content).unwrap()).unwrap();
        let ready: Vec<_> = self.loads.iter_mut().flat_map(|load| load.mark(nonce, &self.names, &self.model)).collect();
        let placed = ready.into_iter().map(|ready| {
            let at = self.machine.chunk_at();
            for _ in &ready.rows {
                self.machine.chunk_record();
            }
            self.machine.chunk(Chunk {
                relation: ready.relation,
                table: ready.table,
                range: ready.range,
                at,
                rows: ready.rows.len() as u64,
                sinks: None,
                request: None,
            });
            at
        });
        self.last_mark = Some((lsn, placed.last()));
    }
}

/// A RELATION message in the catalog's words.
fn announced(body: &RelationBody) -> StreamedRelation {
    let identity = match body.replica_identity {
        ReplicaIdentity::Default => Identity::Default,
        ReplicaIdentity::Nothing => Identity::Nothing,
        ReplicaIdentity::Full => Identity::Full,
        ReplicaIdentity::Index => Identity::Index,
    };
    let columns = body.columns.iter().map(|c| StreamedColumn {
        key: c.key,
        name: c.name.clone(),
        type_oid: c.type_oid,
        typmod: c.typmod,
    });
    let name = TableName::new(&*body.schema, &*body.table);
    StreamedRelation { oid: body.oid, name, identity, columns: columns.collect() }
}
