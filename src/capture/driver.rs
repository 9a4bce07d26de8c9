//! The reader's loop: one thread that owns the stream, the producer and the ledger's end.
//!
//! It moves bytes between the world and the pure rooms and decides nothing itself: [`machine`](super::machine) says what is a
//! checkpoint and what may be confirmed, [`snapshot`](super::snapshot) says what is read and when a chunk is right. Any error
//! ends the epoch; the next one starts from the ledger.

mod heard;
mod ledger;
mod loads;
mod report;
mod shapes;
mod signals;
mod sinks;
mod tables;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::capture::answerable::TOPICS;
use crate::capture::chunks::{Answer, ChunkReader};
use crate::capture::departures::Departures;
use crate::capture::emit::{Emitter, Streamed, Version};
use crate::capture::forgets::Forgets;
use crate::capture::looks::Looks;
use crate::capture::machine::{Admit, Machine};
use crate::capture::pace::{Hold, Pace};
use crate::capture::schemas;
use crate::capture::shape::Shaped;
use crate::capture::snapshot::Loader;
use crate::capture::start::{self, Started};
use crate::capture::withheld::Withheld;
use crate::change::Op;
use crate::codec::avro::SchemaIds;
use crate::codec::{self, Origin, Snapshot};
use crate::config::{Config, LeftOut};
use crate::error::{Code, Error, Halt, Result};
use crate::http::metrics::SourceMetrics;
use crate::kafka::consumer::{Entry as Record, Tail};
use crate::kafka::producer::{Producer, Purpose};
use crate::ledger::entry::{Assembler, Body, Forget, RelationEntry, TopicIdentity};
use crate::ledger::state::State;
use crate::ledger::topic::Appender;
use crate::look::Look;
use crate::lsn::{Lsn, Position};
use crate::postgres::catalog::{Identity, StreamedColumn, StreamedRelation};
use crate::postgres::chunk;
use crate::postgres::frame::Frame;
use crate::postgres::pgoutput::{self, Message, RelationBody, RelationColumn, ReplicaIdentity, Scratch};
use crate::postgres::snapshot::PgSnapshot;
use crate::postgres::stream::Stream;
use crate::postgres::timeline;
use crate::progress::Meters;
use crate::registry::Registry;
use crate::relation::{Fingerprint, Relation, TableName};
use crate::session::Session;
use crate::status::SourceReporter;
use crate::value::Row;
use signals::Signals;
use sinks::Sinks;

/// How long a stop may take to bring what was read into the ledger.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a commit may stand in the stream and not be visible yet; beyond it the epoch ends and the next one waits again.
const VISIBLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time left to a producer at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The loop looks around at least this often.
const TICK: Duration = Duration::from_millis(100);

/// How often status and gauges are renewed.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// Prefix of the logical messages that mark chunks.
pub const MESSAGE_PREFIX: &str = "lockstep";

/// The role: runs until it is stopped or fails.
pub async fn run(
    config: Arc<Config>,
    reporter: SourceReporter,
    metrics: SourceMetrics,
    stop: CancellationToken,
) -> Result<()> {
    let registry = config.registry.as_ref().map(Registry::open).transpose()?.map(Arc::new);
    let starting = async {
        let events = schemas::event_ids(registry.as_deref(), &config).await?;
        Ok::<_, Error>((events, start::start(&config, &reporter, &stop).await?))
    };
    let (events, started) = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        started = starting => started?,
    };
    let (mut reader, looks) = Reader::new(started, (registry, events), reporter, metrics)?;
    reader.begin(looks).await?;
    tracing::info!(epoch = %reader.core.machine.epoch(), position = %reader.core.machine.position(), "streaming");
    let outcome = reader.run(&stop).await;
    reader.close(outcome.is_ok()).await;
    outcome
}

struct Reader {
    stream: Stream,
    core: Core,
}

/// Everything but the stream, which lends its frames.
struct Core {
    config: Arc<Config>,
    reporter: SourceReporter,
    metrics: SourceMetrics,
    session: Session,
    machine: Machine,
    loader: Loader<PgSnapshot>,
    pace: Pace,
    /// While something is loaded for them.
    sinks: Option<Sinks>,
    /// Why no existing rows are read at the moment.
    held: Option<Hold>,
    /// The status says why.
    told_held: bool,
    /// Of the last chunk whose message was met.
    marked: Lsn,
    emitter: Emitter,
    registry: Option<Arc<Registry>>,
    appender: Appender,
    tail: Tail,
    chunks: ChunkReader,
    state: State,
    assembler: Assembler,
    /// Tables, parents first.
    order: Vec<TableName>,
    /// Tables whose rows can't be read at the moment.
    withheld: Withheld,
    estimates: HashMap<TableName, u64>,
    topics: std::collections::BTreeMap<String, TopicIdentity>,
    /// The stream's version of each table, by OID, and that of the rows of each name.
    streamed: HashMap<u32, Arc<Version>>,
    names: HashMap<TableName, Fingerprint>,
    /// Relations, by OID, whose types were looked at for the rows of this transaction: all that can be said of them is said.
    asked: (u32, Vec<u32>),
    /// Versions that this reader writes records by, or did.
    told: HashSet<Fingerprint>,
    /// Messages of tables whose key only the catalog knows, by OID.
    whole: HashMap<u32, StreamedRelation>,
    /// Relations that the stream named and nobody routes: partitions of a routed root, tables on their way out.
    unrouted: HashSet<u32>,
    signals: Signals,
    /// In words, why none are read; the log says so.
    signals_unread: Option<String>,
    looks: Looks,
    /// Of tables whose filter in the publication is the connector's.
    marks: HashMap<TableName, String>,
    /// Tables without a relation of their name at the last look.
    gone: HashSet<TableName>,
    /// Tables of patterns that are gone for good.
    departures: Departures,
    /// Tables that patterns match and that can't be followed yet.
    left_out: Vec<LeftOut>,
    /// What is wrong with partitions that came.
    unfit: Vec<Halt>,
    /// In words, why this reader has other tables than the next one; it ends in order.
    rerouted: Option<String>,
    scratch: Scratch,
    transaction: Option<Transaction>,
    /// Where the transaction was before it came to the source.
    origin: Option<Arc<Origin>>,
    last_commit_end: Option<Lsn>,
    /// When the last burst was read. All its records say so: clocks were up to a twentieth of the reader's time.
    read_ns: i64,
    /// Number of the checkpoint's append in flight and when it was sent.
    appending: Option<(u64, Instant)>,
    sent_at: std::collections::VecDeque<(i64, Instant)>,
    /// Requests whose last chunk was placed at a position.
    done: Vec<(Position, Vec<Uuid>)>,
    joins_seen: Option<(usize, Instant)>,
    /// What was loaded and is to be read again, also by the next reader.
    forgets: Forgets,
    /// Of the base that is on its way.
    base_number: Option<u64>,
    /// Under way, and when the last one began.
    trimming: Option<AbortOnDropHandle<Result<Option<i64>>>>,
    trimmed_at: Option<Instant>,
    /// When Kafka acknowledged something last, or had nothing to.
    progressed: Instant,
    /// When a broker was up last.
    reached: Instant,
    entries_since_base: u64,
    /// Something happened that a base is to tell of before the next checkpoint.
    base_soon: bool,
    /// The base on its way tells of it.
    base_tells: bool,
    base_at: Instant,
    began: Instant,
    /// When the last heartbeat was written.
    beaten: Instant,
    reported: Instant,
    /// Of the stream, since the last report.
    bytes: u64,
    received: Lsn,
    /// May be confirmed to the slot, and was.
    confirm: Lsn,
    confirmed: Lsn,
    source_end: Lsn,
    rows_done: HashMap<TableName, u64>,
    meters: Meters,
}

/// Tables and what the catalog said of them.
type Looked = Vec<(TableName, Option<Look>)>;

/// The transaction that the stream is in.
#[derive(Clone, Copy)]
struct Transaction {
    take: bool,
    commit: Lsn,
    xid: u32,
    commit_time_us: i64,
    /// It has rows of ours.
    has_rows: bool,
}

enum Woke {
    Stopped,
    Read(Result<()>),
    Acked,
    Entry(Result<Record>),
    Answer(Result<Answer>),
    Sink(sinks::News),
    Tick,
}

impl Reader {
    /// The reader, and what its tables looked like when it started.
    fn new(
        started: Started,
        (registry, events): (Option<Arc<Registry>>, Option<[SchemaIds; 3]>),
        reporter: SourceReporter,
        metrics: SourceMetrics,
    ) -> Result<(Reader, Looked)> {
        let Started {
            config,
            left_out,
            departures,
            session,
            stream,
            appender,
            tail,
            state,
            assembler,
            epoch,
            topics,
            closed,
            confirmed,
            order,
            parents,
            estimates,
            looks,
            marks,
            signals,
        } = started;
        let mut machine = Machine::new(epoch, state.last, closed, config.kafka.checkpoint_interval);
        machine.resume_from(confirmed);
        let producer = Producer::open(&config.kafka, Purpose::Data)?;
        let emitter = Emitter::new(producer, config.clone(), metrics.clone(), (registry.clone(), events), &topics);
        let (loader, pace) = loads::loader(&config.source.snapshot);
        let watched = looks.iter().map(|(table, _)| table.clone()).collect();
        let chunks = ChunkReader::start(config.clone(), watched)?;
        let known = Looks::new(state.catalog.clone());
        let now = Instant::now();
        let core = Core {
            config,
            reporter,
            metrics,
            session,
            machine,
            loader,
            pace,
            sinks: None,
            held: None,
            told_held: false,
            marked: Lsn::ZERO,
            emitter,
            registry,
            appender,
            tail,
            chunks,
            state,
            assembler,
            order,
            withheld: Withheld::new(parents),
            estimates,
            topics,
            streamed: HashMap::new(),
            names: HashMap::new(),
            asked: (0, Vec::new()),
            told: HashSet::new(),
            whole: HashMap::new(),
            unrouted: HashSet::new(),
            signals: Signals::default(),
            signals_unread: None,
            looks: known,
            marks,
            gone: HashSet::new(),
            departures,
            left_out: Vec::new(),
            unfit: Vec::new(),
            rerouted: None,
            scratch: Scratch::default(),
            transaction: None,
            origin: None,
            last_commit_end: None,
            read_ns: 0,
            appending: None,
            sent_at: std::collections::VecDeque::new(),
            done: Vec::new(),
            joins_seen: None,
            forgets: Forgets::default(),
            base_number: None,
            trimming: None,
            trimmed_at: None,
            progressed: now,
            reached: now,
            entries_since_base: 0,
            base_soon: false,
            base_tells: false,
            base_at: now,
            began: now,
            beaten: now,
            reported: now,
            bytes: 0,
            received: Lsn::ZERO,
            confirm: Lsn::ZERO,
            confirmed: Lsn::ZERO,
            source_end: Lsn::ZERO,
            rows_done: HashMap::new(),
            meters: Meters::default(),
        };
        let mut reader = Reader { stream, core };
        reader.core.note_left_out(left_out);
        reader.core.note_signal_table(signals.as_ref());
        Ok((reader, looks))
    }

    /// What happened to the tables while nobody looked is answered before anything is written.
    async fn begin(&mut self, looks: Looked) -> Result<()> {
        self.core.go_on_loading()?;
        self.core.look(looks).await?;
        self.core.write_base()?;
        self.core.ask_for_topics()?;
        self.core.report();
        Ok(())
    }

    async fn run(&mut self, stop: &CancellationToken) -> Result<()> {
        loop {
            match self.wait(stop).await {
                Woke::Stopped => return self.drain().await,
                Woke::Read(result) => {
                    result?;
                    self.frames().await?;
                }
                Woke::Entry(record) => self.core.ledger_record(record?)?,
                Woke::Answer(answer) => self.core.answer(answer?).await?,
                Woke::Sink(news) => self.core.hear_sinks(Some(news)),
                Woke::Acked | Woke::Tick => {}
            }
            if let Some(why) = self.core.rerouted.take() {
                self.drain().await?;
                return Err(Error::retry_plain(why));
            }
            self.core.emit_due().await?;
            self.core.beat().await?;
            self.core.pump(false)?;
            self.confirm();
        }
    }

    async fn wait(&mut self, stop: &CancellationToken) -> Woke {
        let core = &mut self.core;
        let due = core.machine.wake_at().map(|at| (core.began + at).saturating_duration_since(Instant::now()));
        let nap = due.unwrap_or(TICK).min(core.piece_nap()).min(TICK);
        tokio::select! {
            () = stop.cancelled() => Woke::Stopped,
            result = self.stream.read() => Woke::Read(result),
            () = core.emitter.acked_soon() => Woke::Acked,
            () = core.appender.acked() => Woke::Acked,
            record = core.tail.recv() => Woke::Entry(record),
            answer = core.chunks.recv() => Woke::Answer(answer),
            news = Sinks::recv(&mut core.sinks) => Woke::Sink(news),
            () = tokio::time::sleep(nap) => Woke::Tick,
        }
    }

    /// Handles everything that was read. Frames are lent by the stream, so what they ask of it is done after them.
    async fn frames(&mut self) -> Result<()> {
        let mut reply = false;
        self.core.read_ns = now_ns();
        // What is behind a reader's end is the next one's.
        while self.core.rerouted.is_none()
            && let Some(frame) = self.stream.next()?
        {
            match frame {
                Frame::XLogData { start, wal_end, data, .. } => {
                    self.core.received = self.core.received.max(start).max(wal_end);
                    self.core.bytes += data.len() as u64;
                    self.core.message(start, data).await?;
                }
                Frame::Keepalive { wal_end, reply: asked } => {
                    reply |= asked;
                    self.core.received = self.core.received.max(wal_end);
                    self.core.check_past(wal_end)?;
                    self.core.machine.keepalive(wal_end);
                }
            }
        }
        self.stream.received(self.core.received);
        if reply {
            self.stream.answer_keepalive();
        }
        Ok(())
    }

    fn confirm(&mut self) {
        // After a start the ledger can be ahead of what this connection has sent again.
        if self.core.confirm > self.core.confirmed && self.core.received > self.core.confirmed {
            let lsn = self.core.confirm.min(self.core.received);
            self.core.confirmed = lsn;
            self.stream.confirm(lsn);
        }
    }

    /// Stops reading; what was read goes into the ledger and is confirmed. A transaction of which only a part was read is the
    /// next reader's.
    async fn drain(&mut self) -> Result<()> {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        let is_drained = |machine: &Machine| machine.is_drained() || machine.is_drained_but_for_open();
        while !is_drained(&self.core.machine) && Instant::now() < deadline {
            self.core.pump(true)?;
            let core = &mut self.core;
            let woke = tokio::select! {
                () = core.emitter.acked() => Woke::Acked,
                () = core.appender.acked() => Woke::Acked,
                record = core.tail.recv() => Woke::Entry(record),
                () = tokio::time::sleep(Duration::from_millis(10)) => Woke::Tick,
            };
            if let Woke::Entry(record) = woke {
                self.core.ledger_record(record?)?;
            }
            self.confirm();
        }
        if !is_drained(&self.core.machine) {
            tracing::warn!("stopping with records that no checkpoint counts yet; the next start writes them again");
        }
        Ok(())
    }

    async fn close(self, in_order: bool) {
        let Reader { stream, core } = self;
        if in_order && let Err(error) = stream.close().await {
            tracing::debug!(error = error.chain(), "ending the stream");
        }
        let Core { emitter, appender, session, .. } = core;
        emitter.close(CLOSE_TIMEOUT);
        appender.close(CLOSE_TIMEOUT);
        session.close().await;
    }
}

impl Core {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The server has sent everything below this.
    fn check_past(&self, beyond: Lsn) -> Result<()> {
        self.machine.missed(beyond).map_or(Ok(()), |owed| Err(timeline::overwritten(owed, beyond)))
    }

    /// One pgoutput message.
    async fn message(&mut self, start: Lsn, data: &[u8]) -> Result<()> {
        match pgoutput::decode(data, &mut self.scratch)? {
            Message::Begin { final_lsn, commit_time_us, xid } => {
                self.check_past(final_lsn)?;
                let take = self.machine.begin(final_lsn) == Admit::Take;
                self.transaction = Some(Transaction { take, commit: final_lsn, xid, commit_time_us, has_rows: false });
                self.origin = None;
            }
            Message::Commit { end_lsn, commit_time_us, .. } => {
                let transaction = self.transaction.take().ok_or_else(out_of_place)?;
                if transaction.take {
                    let xid = transaction.xid;
                    self.emitter.commit(&mut self.machine, xid, end_lsn, commit_time_us).await?;
                    self.machine.commit(end_lsn, commit_time_us);
                    self.metrics.transactions(1);
                } else {
                    self.machine.dropped(end_lsn);
                }
                self.last_commit_end = Some(end_lsn);
                if transaction.has_rows {
                    self.pace.committed(self.began.elapsed());
                }
                self.emit_due().await?;
            }
            Message::Relation(body) => self.relation(body).await?,
            Message::Insert { oid } => self.change(start, data, oid, ChangeKind::Insert).await?,
            Message::Update { oid, old } => self.change(start, data, oid, ChangeKind::Update(old)).await?,
            Message::Delete { oid, .. } => self.change(start, data, oid, ChangeKind::Delete).await?,
            Message::Truncate { oids, .. } => self.truncate(start, &oids).await?,
            Message::Message { transactional: false, prefix: MESSAGE_PREFIX, content, .. } => {
                self.mark(start, content).await?
            }
            Message::Message { transactional, prefix, content, .. } if !is_ours(prefix) => {
                self.logical_message(start, transactional, prefix, content).await?;
            }
            // Stands behind BEGIN, if at all.
            Message::Origin { commit_lsn: lsn, name } => {
                self.origin = Some(Arc::new(Origin { name: name.to_owned(), lsn }))
            }
            Message::Message { .. } | Message::Type { .. } => {}
        }
        Ok(())
    }

    /// A message that somebody else wrote. One that is not transactional stands outside every transaction, wherever it is met.
    async fn logical_message(&mut self, start: Lsn, transactional: bool, prefix: &str, content: &[u8]) -> Result<()> {
        let transaction = self.transaction.filter(|_| transactional);
        if transaction.is_some_and(|transaction| !transaction.take) || self.config.wire.messages.is_none() {
            return Ok(());
        }
        let event = codec::Event { snapshot: Snapshot::False, ..self.event(start, transaction) };
        self.emitter.message(&mut self.machine, &event, prefix, content).await
    }

    /// Writes a heartbeat if one is due.
    async fn beat(&mut self) -> Result<()> {
        let config = self.config.clone();
        let Some(heartbeat) = &config.wire.heartbeat else { return Ok(()) };
        if self.beaten.elapsed() < heartbeat.interval {
            return Ok(());
        }
        self.beaten = Instant::now();
        if let Some(query) = &heartbeat.query
            && let Err(error) = self.session.batch_execute(query).await
        {
            tracing::warn!(error = %error, "wire.heartbeat_query failed at the source");
        }
        self.emitter.heartbeat(&mut self.machine, &heartbeat.topic, now_ns() / 1_000_000).await
    }

    fn event(&self, lsn: Lsn, transaction: Option<Transaction>) -> codec::Event {
        let now_ns = if transaction.is_some() { self.read_ns } else { now_ns() };
        codec::Event {
            last_commit_lsn: self.last_commit_end,
            lsn,
            xid: transaction.map(|t| u64::from(t.xid)),
            commit_time_us: transaction.map_or(now_ns / 1000, |t| t.commit_time_us),
            snapshot: if transaction.is_some() { Snapshot::False } else { Snapshot::Incremental },
            now_ns,
            block: None,
            origin: transaction.and(self.origin.as_ref()).cloned(),
        }
    }

    async fn change(&mut self, start: Lsn, data: &[u8], oid: u32, kind: ChangeKind) -> Result<()> {
        let transaction = self.transaction.ok_or_else(out_of_place)?;
        if !transaction.take {
            return Ok(());
        }
        let event = self.event(start, Some(transaction));
        let mut version = match self.streamed.get(&oid) {
            Some(version) => version.clone(),
            None if self.signals.is_of(oid) => return self.signal(transaction, data, kind).await,
            None if self.unrouted.contains(&oid) => return Ok(()),
            None => return Err(out_of_place()),
        };
        if self.is_older_than_its_key(oid, &version, data, kind) {
            version = self.without_key(oid, version).await?;
        }
        let columns = version.rows.width;
        self.transaction = Some(Transaction { has_rows: true, ..transaction });
        if streamed(&self.scratch, data, kind).rows().any(|row| row.len() != columns) {
            return Err(out_of_place());
        }
        let unheard = streamed(&self.scratch, data, kind).rows().find_map(|row| version.rows.heard.unheard(row));
        if let Some(said) = unheard {
            version = self.catch_up(transaction.xid, version, said).await?;
        }
        let change = streamed(&self.scratch, data, kind);
        let keep = self.loader.remembers(&version.relation.name);
        let op = self.emitter.change(&mut self.machine, &version, &event, change, keep).await?;
        if let Some(op) = op {
            self.remember(transaction.xid, &version, op)?;
        }
        Ok(())
    }

    fn remember(&mut self, xid: u32, version: &Version, op: Op) -> Result<()> {
        let relation = &version.relation;
        self.loader.remember(xid, &relation.name, version.rows.fingerprint, &version.rows.key_orders, op)?;
        for (table, key) in self.loader.left_out() {
            let at = self.machine.position();
            self.forgets.push(Forget { table: Some(table), key: Some(key), at, ..Forget::default() });
        }
        if self.loader.is_torn(&relation.name) {
            tracing::warn!(table = %relation.name, "many rows moved to keys that were read already; reading the table again");
            self.begin_anew(&relation.name, &[]);
        }
        Ok(())
    }

    async fn truncate(&mut self, start: Lsn, oids: &[u32]) -> Result<()> {
        let transaction = self.transaction.ok_or_else(out_of_place)?;
        if !transaction.take {
            return Ok(());
        }
        let event = self.event(start, Some(transaction));
        for oid in oids {
            let version = match self.streamed.get(oid) {
                Some(version) => version.clone(),
                None if self.unrouted.contains(oid) => continue,
                None => return Err(out_of_place()),
            };
            self.emitter.truncate(&mut self.machine, &version, &event).await?;
            if self.loader.remembers(&version.relation.name) {
                self.remember(transaction.xid, &version, Op::Truncate)?;
            }
        }
        Ok(())
    }

    /// The stream names a table's shape: the version of every row of it from here on.
    async fn relation(&mut self, body: RelationBody) -> Result<()> {
        if self.is_signal_table(&body) {
            return Ok(());
        }
        let config = self.config.clone();
        let Some(table) = self.table_of(&body).await?.and_then(|name| config.tables.iter().find(|t| t.name == name))
        else {
            self.streamed.remove(&body.oid);
            self.unrouted.insert(body.oid);
            return Ok(());
        };
        let name = table.name.clone();
        let message = announced(&body, &name);
        let shaped = self.shape_of(table, &message, true).await?;
        let oid = body.oid;
        let version = self.version(shaped).await?;
        self.note_whole(table, message, &version);
        self.names.insert(name, version.rows.fingerprint);
        self.unrouted.remove(&oid);
        self.streamed.insert(oid, version);
        Ok(())
    }

    /// A relation version, told to the ledger before the first checkpoint that needs it.
    async fn version(&mut self, shaped: Shaped) -> Result<Arc<Version>> {
        let known = self.emitter.known(shaped.rows.fingerprint);
        let same = |known: &Arc<Version>| {
            (known.relation.fingerprint, &known.rows.heard) == (shaped.relation.fingerprint, &shaped.rows.heard)
        };
        let version = match known.filter(same) {
            Some(version) => version,
            None => {
                let ids = schemas::relation_ids(self.registry.as_deref(), &shaped.relation).await?;
                self.emitter.version(shaped, ids)?
            }
        };
        let fingerprint = version.relation.fingerprint;
        self.told.insert(fingerprint);
        if !self.state.relations.contains_key(&fingerprint) {
            let relation = Relation::clone(&version.relation);
            // One producer, one partition: it stands before every checkpoint that is appended later.
            self.append(Body::Relation(Box::new(RelationEntry { relation })))?;
            self.state.relations.insert(fingerprint, version.relation.clone());
        }
        Ok(version)
    }

    /// Whatever is due: acknowledgements, appends, loads, reports.
    fn pump(&mut self, flush: bool) -> Result<()> {
        let acked = self.emitter.take_acks(&mut self.machine)?;
        let appended = self.appender.take()?;
        if acked || !appended.is_empty() || (self.emitter.in_flight_bytes() == 0 && self.appending.is_none()) {
            self.progressed = Instant::now();
        }
        self.check_kafka()?;
        for (number, offset) in appended {
            if self.appending.is_some_and(|(appending, _)| appending == number) {
                let (_, sent) = self.appending.take().expect("just looked");
                // It may have been read back already.
                if self.machine.is_appending() {
                    self.machine.appended(offset);
                    self.sent_at.push_back((offset, sent));
                }
            }
        }
        // Between two appends, so that each piece is known by its own checkpoint.
        self.hear_sinks(None);
        self.note_topics();
        if !flush || self.base_soon {
            self.base_if_due()?;
        }
        let state = &self.state;
        self.forgets.retain(|table| state.open_joins().any(|join| join.request.tables.contains(table)));
        if !flush {
            self.let_go()?;
        }
        if !flush && !self.is_writing_base() {
            // Before the checkpoint of a job's last chunk: what the end of the job has to say stands in it.
            self.load()?;
        }
        let now = self.now();
        if !self.is_writing_base()
            && (!self.is_base_due() || (flush && !self.base_soon))
            && let Some(checkpoint) = self.machine.next_append(now, &self.emitter.topics, &mut self.forgets, flush)
        {
            let number = self.append(Body::Checkpoint(checkpoint))?;
            self.appending = Some((number, Instant::now()));
        }
        if self.reported.elapsed() >= REPORT_INTERVAL {
            self.look_at_trimming();
            self.report();
        }
        Ok(())
    }

    /// A connected reader that does not confirm holds up the source's shutdown, so without Kafka it must not stay connected;
    /// neither while it waits for acknowledgements nor while it has nothing to send: what a shutdown itself writes into the log
    /// must be confirmed too.
    fn check_kafka(&mut self) -> Result<()> {
        let grace = self.config.kafka.grace;
        let health = self.tail.health();
        if health.brokers_up() > 0 {
            self.reached = Instant::now();
        }
        if self.progressed.elapsed() > grace {
            return Err(Error::retry_plain(format!("writing to Kafka: nothing was acknowledged for {grace:?}")));
        }
        if self.reached.elapsed() > grace {
            let why = health.last_error().unwrap_or_default();
            return Err(Error::retry_plain(format!("no broker was there for {grace:?}: {why}")));
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum ChangeKind {
    Insert,
    Update(Option<pgoutput::OldKind>),
    Delete,
}

/// The change that was decoded.
fn streamed<'a>(scratch: &'a Scratch, data: &'a [u8], kind: ChangeKind) -> Streamed<'a> {
    let (new, old) = (Row::new(data, &scratch.new), Row::new(data, &scratch.old));
    match kind {
        ChangeKind::Insert => Streamed::Insert(new),
        ChangeKind::Update(kind) => Streamed::Update { old: kind.map(|kind| (kind, old)), new },
        ChangeKind::Delete => Streamed::Delete { old },
    }
}

/// A RELATION message in the catalog's words.
fn announced(body: &RelationBody, name: &TableName) -> StreamedRelation {
    let identity = match body.replica_identity {
        ReplicaIdentity::Default => Identity::Default,
        ReplicaIdentity::Nothing => Identity::Nothing,
        ReplicaIdentity::Full => Identity::Full,
        ReplicaIdentity::Index => Identity::Index,
    };
    let column = |c: &RelationColumn| StreamedColumn {
        key: c.key,
        name: c.name.clone(),
        type_oid: c.type_oid,
        typmod: c.typmod,
    };
    StreamedRelation { oid: body.oid, name: name.clone(), identity, columns: body.columns.iter().map(column).collect() }
}

/// Written by this program: the marks of chunks, and what flushes them on older servers.
fn is_ours(prefix: &str) -> bool {
    prefix == MESSAGE_PREFIX || prefix == chunk::FLUSH_PREFIX
}

fn now_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

fn out_of_place() -> Error {
    let message = "the source's stream names a table, a column or a transaction that it did not announce";
    Error::halt(Code::SourceProtocol, message, "SELECT plugin, two_phase FROM pg_replication_slots")
}
