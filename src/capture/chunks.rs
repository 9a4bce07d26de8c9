//! The reader of existing rows: a thread with a connection of its own, so that neither a slow read nor a lock it waits for
//! holds up the stream.
//!
//! Order is what matters here: a chunk is handed over **before** its message is written into the source's log, so whoever
//! meets the message in the stream has the chunk. While idle it watches how far the source is ahead.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::capture::routing;
use crate::capture::shape::{Shaped, relation_shape, shaped};
use crate::capture::snapshot::{ChunkRead, RangeKey, Read, Visibility};
use crate::config::{Config, LeftOut, Table};
use crate::error::{Code, Error, Result};
use crate::key::KeyOrder;
use crate::look::Look;
use crate::lsn::Lsn;
use crate::postgres::catalog;
use crate::postgres::chunk::{self, ChunkRequest, Extent};
use crate::postgres::snapshot::PgSnapshot;
use crate::postgres::{look, publication, slot};
use crate::relation::{Relation, TableName};
use crate::session::{self, Session};

/// How often the source's position and the slot's retained bytes are asked for.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// How often a fence asks whether the older transactions have ended.
const FENCE_INTERVAL: Duration = Duration::from_millis(20);

/// How long a chunk waits for its table's lock before it is asked for again; longer would queue writers behind us.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// A pause after a read that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

pub enum Command {
    /// The fence asked for under this name.
    Fence(Uuid),
    Read(Read),
}

pub enum Answer {
    Fenced(Uuid),
    /// A snapshot taken meanwhile: what it sees need not be remembered.
    Saw(PgSnapshot),
    /// In words, what a fence or a read waits for.
    Waiting(String),
    Chunk(Box<(ChunkRead<PgSnapshot>, Shaped)>),
    /// The table's key is no longer the one that the range speaks of.
    Rekeyed(TableName),
    /// The read or its message failed in a way that heals.
    Failed(Uuid, Error),
    /// No later attempt can do better.
    Halted(Error),
    Watched(Box<Watched>),
}

/// What nobody tells of and is looked for.
pub struct Watched {
    /// The source's end of log.
    pub current: Lsn,
    /// Bytes that the slot retains.
    pub retained: Option<u64>,
    /// What the catalog says of our tables.
    pub looks: Vec<(TableName, Option<Look>)>,
    /// Whether the publication is what it must be.
    pub published: Result<()>,
    /// In words, what patterns mean now and did not when the reader started, or the other way round.
    pub rerouted: Option<String>,
    /// Tables that patterns match and that can't be followed yet.
    pub left_out: Vec<LeftOut>,
}

impl Visibility for PgSnapshot {
    fn sees(&self, xid: u32) -> bool {
        PgSnapshot::sees(self, self.widen(xid))
    }
}

/// The thread and the ways to it. Dropping stops it.
pub struct ChunkReader {
    commands: mpsc::UnboundedSender<Command>,
    answers: mpsc::UnboundedReceiver<Answer>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl ChunkReader {
    /// `watched` are the tables that are looked at.
    pub fn start(config: Arc<Config>, watched: Vec<TableName>) -> Result<ChunkReader> {
        // Unbounded, but at most one command and its answers are on their way, and a watch every few seconds.
        let (commands, inbox) = mpsc::unbounded_channel();
        let (outbox, answers) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::retry("starting the chunk reader", e))?;
        let token = stop.clone();
        let body = move || {
            let worker = Worker { config, watched, outbox, session: None, version: 0 };
            runtime.block_on(token.run_until_cancelled(worker.run(inbox)));
        };
        let thread = std::thread::Builder::new()
            .name("lockstep-chunks".into())
            .spawn(body)
            .map_err(|e| Error::retry("starting the chunk reader", e))?;
        Ok(ChunkReader { commands, answers, stop, thread: Some(thread) })
    }

    pub fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| Error::retry_plain("the chunk reader has ended"))
    }

    pub async fn recv(&mut self) -> Result<Answer> {
        self.answers.recv().await.ok_or_else(|| Error::retry_plain("the chunk reader has ended"))
    }

    pub fn try_recv(&mut self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

impl Drop for ChunkReader {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    config: Arc<Config>,
    watched: Vec<TableName>,
    outbox: mpsc::UnboundedSender<Answer>,
    session: Option<Session>,
    version: i32,
}

impl Worker {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let mut watched = Instant::now();
        loop {
            let command = match tokio::time::timeout(WATCH_INTERVAL, inbox.recv()).await {
                Ok(Some(command)) => Some(command),
                Ok(None) => return,
                Err(_) => None,
            };
            let asked = match &command {
                Some(Command::Fence(asked)) => *asked,
                Some(Command::Read(read)) => read.nonce,
                None => Uuid::nil(),
            };
            if command.is_some() && watched.elapsed() >= WATCH_INTERVAL {
                // A long load must not keep us from seeing what happens to its tables.
                watched = Instant::now();
                if let Ok(answer) = self.watch().await
                    && self.outbox.send(answer).is_err()
                {
                    return;
                }
            }
            let answer = match command {
                Some(Command::Fence(asked)) => self.fence().await.map(|()| Some(Answer::Fenced(asked))),
                Some(Command::Read(read)) => self.read(&read).await.map(|()| None),
                None => match self.watch().await {
                    Ok(answer) => {
                        watched = Instant::now();
                        Ok(Some(answer))
                    }
                    Err(halt @ Error::Halt(_)) => Err(halt),
                    // The stream's own connection tells of a source that is gone.
                    Err(Error::Retry(_)) => {
                        self.session = None;
                        Ok(None)
                    }
                },
            };
            let sent = match answer {
                Ok(Some(answer)) => self.outbox.send(answer),
                Ok(None) => Ok(()),
                Err(error) => {
                    self.session = None;
                    tokio::time::sleep(RETRY_PAUSE).await;
                    match error {
                        Error::Halt(_) => self.outbox.send(Answer::Halted(error)),
                        Error::Retry(_) => self.outbox.send(Answer::Failed(asked, error)),
                    }
                }
            };
            if sent.is_err() {
                return;
            }
        }
    }

    async fn session(&mut self) -> Result<&mut Session> {
        if self.session.as_ref().is_none_or(|session| session.is_closed()) {
            let name = format!("lockstep:{}:chunks", self.config.name);
            let session = session::connect(&self.config.source.database, &name).await?;
            self.version = catalog::source_facts(&*session).await?.version;
            self.session = Some(session);
        }
        Ok(self.session.as_mut().expect("just connected"))
    }

    /// Looks at what nobody tells us of: how far the log is, and whether somebody changed the publication.
    async fn watch(&mut self) -> Result<Answer> {
        let config = self.config.clone();
        let slot = config.source.slot.clone();
        let watched = self.watched.clone();
        let session = self.session().await?;
        // Looked at before the publication: a table that was taken out after it shows in the next look.
        let looks = look::looks(&**session, &config.source.publication, &watched).await?;
        let looks: Vec<(TableName, Option<Look>)> = watched.into_iter().zip(looks).collect();
        let (rerouted, left_out) = rerouted(session, &config, &looks).await?;
        // With tables that the reader does not have yet it is not what this reader made of it.
        let published = match rerouted {
            Some(_) => Ok(()),
            None => {
                let judged = published(session, &config, &looks).await?;
                judged.map_err(|error| routing::with_left_out(error, &left_out))
            }
        };
        let current = slot::current_lsn(&**session).await?;
        let retained = slot::retained_bytes(&**session, &slot).await?;
        let watched = Watched { current, retained, looks, published, rerouted, left_out };
        Ok(Answer::Watched(Box::new(watched)))
    }

    /// Takes a transaction id and waits until every older transaction has ended.
    async fn fence(&mut self) -> Result<()> {
        let outbox = self.outbox.clone();
        let mine = slot::fresh_xid(&**self.session().await?).await?;
        let mut asked = 0u32;
        loop {
            let session = self.session().await?;
            let snapshot = slot::snapshot_now(&**session).await?;
            if snapshot.xmin > mine {
                return Ok(());
            }
            asked += 1;
            if asked.is_multiple_of(25) {
                let oldest = slot::blockers(&**session).await?.into_iter().next();
                let oldest = oldest.map_or_else(|| "an older transaction".to_owned(), |blocker| blocker.to_string());
                let _ = outbox.send(Answer::Waiting(format!("before existing rows can be read, {oldest} must end")));
                let _ = outbox.send(Answer::Saw(snapshot));
                let watched = self.watch().await?;
                let _ = outbox.send(watched);
            }
            tokio::time::sleep(FENCE_INTERVAL).await;
        }
    }

    /// Reads a chunk, hands it over, then writes its message.
    async fn read(&mut self, read: &Read) -> Result<()> {
        let config = self.config.clone();
        let table = routed(&config, &read.table)?;
        let outbox = self.outbox.clone();
        let session = self.session().await?;
        let facts = catalog::table_facts(&**session, std::slice::from_ref(&read.table)).await?.remove(0);
        let facts = facts.ok_or_else(|| gone(&config, &read.table))?;
        let relation = catalog::build_relation(&facts, relation_shape(table))?;
        if read.key.as_ref().is_some_and(|key| *key != range_key(&relation)) {
            let _ = outbox.send(Answer::Rekeyed(read.table.clone()));
            return Ok(());
        }
        let request = ChunkRequest {
            relation: &relation,
            key: relation_shape(table).key,
            filter: table.shape.filter.as_deref(),
            extent: read.range.key().map_or_else(|| Extent::Range(read.range.clone()), |key| Extent::Key(key.clone())),
            rows_max: read.rows_max,
            bytes_max: config.source.snapshot_chunk_bytes,
            keyless_bytes_max: config.source.snapshot_keyless_bytes,
            row_bytes: None,
            lock_timeout: LOCK_TIMEOUT,
        };
        let found = chunk::read_chunk(session, &request).await?;
        let relation = catalog::build_relation(&found.facts, relation_shape(table))?;
        let key_columns = relation.key_columns();
        let key = range_key(&relation);
        let key_orders = key.iter().map(|(_, order)| *order).collect();
        let shaped = shaped(table, relation, Some(&found.facts), &config.kafka.topic_prefix)?;
        let chunk = ChunkRead {
            nonce: read.nonce,
            table: read.table.clone(),
            snapshot: found.snapshot,
            relation: shaped.rows.fingerprint,
            key_columns,
            key_orders,
            key,
            rows: found.rows,
            range: found.range,
            partial: table.wire.modes.snapshot_where.is_some(),
        };
        if outbox.send(Answer::Chunk(Box::new((chunk, shaped)))).is_err() {
            return Ok(());
        }
        let version = self.version;
        chunk::mark(&**self.session().await?, &read.nonce.to_string(), version).await
    }
}

/// The key that ranges of this version speak of.
pub fn range_key(relation: &Relation) -> RangeKey {
    relation.row_key().into_iter().map(|(name, type_oid)| (name, KeyOrder::of(type_oid))).collect()
}

fn routed<'a>(config: &'a Config, name: &TableName) -> Result<&'a Table> {
    config.tables.iter().find(|table| table.name == *name).ok_or_else(|| {
        Error::halt(
            Code::TableMissing,
            format!("table {name} is in no connector"),
            format!("write a connector for {name}"),
        )
    })
}

/// What patterns mean now that is different, in words, and what they match and can't mean yet.
async fn rerouted(
    session: &Session,
    config: &Config,
    looks: &[(TableName, Option<Look>)],
) -> Result<(Option<String>, Vec<LeftOut>)> {
    if config.routes.is_empty() {
        return Ok((None, Vec::new()));
    }
    let mut found = routing::resolve(session, config).await?;
    // One of ours that somebody took out is not put back in.
    found.unpublished.retain(|table| looks.iter().all(|(name, _)| name != table));
    let found = routing::publish(session, found).await?;
    let (now, left_out) = (found.published(), found.left_out);
    let ours = looks.iter().filter(|(name, _)| config.is_by_pattern(name));
    // What is gone altogether leaves by itself.
    let ours = ours.filter(|(name, look)| look.is_some() || now.contains(name)).map(|(name, _)| name.clone()).collect();
    Ok((routing::difference(&ours, &now), left_out))
}

/// Judges the publication, as far as its tables are there.
async fn published(session: &Session, config: &Config, looks: &[(TableName, Option<Look>)]) -> Result<Result<()>> {
    let name = &config.source.publication;
    let tables: Vec<TableName> = looks.iter().map(|(name, _)| name.clone()).collect();
    let there: Vec<TableName> = looks.iter().filter(|(_, look)| look.is_some()).map(|(name, _)| name.clone()).collect();
    match publication::check_published(&**session, name, &tables, &config.filtered(), &there).await {
        Err(error @ Error::Retry(_)) => Err(error),
        Err(halt) => {
            // One that was dropped since we looked left the publication by that: the next look finds it gone.
            let again = look::looks(&**session, name, &there).await?;
            let dropped = again.iter().any(Option::is_none);
            Ok(if dropped { Ok(()) } else { Err(halt) })
        }
        Ok(()) => Ok(Ok(())),
    }
}

fn gone(config: &Config, name: &TableName) -> Error {
    if config.is_by_pattern(name) {
        // Whoever looks at the tables finds it gone too, and whoever asked for it lets go of it.
        return Error::retry_plain(format!("table {name} was dropped while its rows were being read"));
    }
    let hint = format!("create it again, or take the connector of {name} away");
    Error::halt(Code::TableMissing, format!("table {name} was dropped while its rows were being read"), hint)
}
