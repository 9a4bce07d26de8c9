//! The thread that looks at the source beside the stream, so that neither a slow read nor a lock it waits for holds up the
//! stream: existing rows are read by its [`lanes`](super::lanes), and a connection of its own watches how far the source is
//! ahead, and takes fences.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::capture::shape::Shaped;
use crate::capture::snapshot::{ChunkRead, RangeKey, Read, Visibility};
use crate::capture::{lanes, partitions, routing, signal_table};
use crate::config::{Config, LeftOut};
use crate::error::{Error, Halt, Result};
use crate::key::KeyOrder;
use crate::look::Look;
use crate::lsn::Lsn;
use crate::postgres::snapshot::PgSnapshot;
use crate::postgres::{look, publication, slot};
use crate::relation::{Relation, TableName};
use crate::session::{self, Session};

/// How often the source's position and the slot's retained bytes are asked for.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// How often a fence asks whether the older transactions have ended.
const FENCE_INTERVAL: Duration = Duration::from_millis(20);

/// A pause after a read that failed.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(500);

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
    /// Where the chunk asked for under this name ends at the latest, by a key.
    Border(Uuid, Option<Vec<String>>, RangeKey),
    /// The ranges that what was asked for under this name is read in: where they end, but for the last.
    Planned(Uuid, Vec<Vec<String>>, RangeKey),
    Chunk(Box<(ChunkRead<PgSnapshot>, Shaped)>),
    /// The table's key is no longer the one that the range asked for speaks of.
    Rekeyed(Uuid, TableName),
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
    /// What is wrong with partitions that came while everything runs.
    pub unfit: Vec<Halt>,
    /// Why no signals are read, if so.
    pub signals: Option<Halt>,
}

impl Visibility for PgSnapshot {
    fn sees(&self, xid: u32) -> bool {
        PgSnapshot::sees(self, self.widen(xid))
    }
}

/// The thread and the ways to it. Dropping stops it.
pub struct ChunkReader {
    fences: mpsc::UnboundedSender<Uuid>,
    reads: mpsc::UnboundedSender<Read>,
    answers: mpsc::UnboundedReceiver<Answer>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl ChunkReader {
    /// `watched` are the tables that are looked at.
    pub fn start(config: Arc<Config>, watched: Vec<TableName>) -> Result<ChunkReader> {
        // Unbounded, but at most one read for each connection and its answers are on their way, and a watch every few seconds.
        let (fences, fences_asked) = mpsc::unbounded_channel();
        let (reads, reads_asked) = mpsc::unbounded_channel();
        let (outbox, answers) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::retry("starting the chunk reader", e))?;
        let token = stop.clone();
        let body = move || {
            let lanes = lanes::run(config.clone(), outbox.clone(), reads_asked);
            let watcher = Watcher { config, watched, outbox, session: None, signals_seen: None };
            let both = async { tokio::join!(watcher.run(fences_asked), lanes) };
            runtime.block_on(token.run_until_cancelled(both));
        };
        let thread = std::thread::Builder::new()
            .name("lockstep-chunks".into())
            .spawn(body)
            .map_err(|e| Error::retry("starting the chunk reader", e))?;
        Ok(ChunkReader { fences, reads, answers, stop, thread: Some(thread) })
    }

    pub fn send(&self, command: Command) -> Result<()> {
        let sent = match command {
            Command::Fence(asked) => self.fences.send(asked).is_ok(),
            Command::Read(read) => self.reads.send(read).is_ok(),
        };
        if sent { Ok(()) } else { Err(Error::retry_plain("the chunk reader has ended")) }
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

struct Watcher {
    config: Arc<Config>,
    watched: Vec<TableName>,
    outbox: mpsc::UnboundedSender<Answer>,
    session: Option<Session>,
    /// The table of signals that was in the publication, by its OID.
    signals_seen: Option<u32>,
}

impl Watcher {
    async fn run(mut self, mut fences: mpsc::UnboundedReceiver<Uuid>) {
        loop {
            let asked = match tokio::time::timeout(WATCH_INTERVAL, fences.recv()).await {
                Ok(Some(asked)) => Some(asked),
                Ok(None) => return,
                Err(_) => None,
            };
            let answer = match asked {
                Some(asked) => self.fence().await.map(|()| Answer::Fenced(asked)),
                None => self.watch().await,
            };
            let answer = match answer {
                Ok(answer) => Some(answer),
                Err(halt @ Error::Halt(_)) => Some(Answer::Halted(halt)),
                Err(error) => {
                    self.session = None;
                    if asked.is_some() {
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                    // The stream's own connection tells of a source that is gone.
                    asked.map(|asked| Answer::Failed(asked, error))
                }
            };
            if answer.is_some_and(|answer| self.outbox.send(answer).is_err()) {
                return;
            }
        }
    }

    async fn session(&mut self) -> Result<&mut Session> {
        if self.session.as_ref().is_none_or(|session| session.is_closed()) {
            let name = format!("lockstep:{}:watch", self.config.name);
            self.session = Some(session::connect(&self.config.source.database, &name).await?);
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
        let unfit = partitions::unfit(session, &config, &looks).await?;
        let mut signals_seen = self.signals_seen;
        let session = self.session().await?;
        let signals = signal_table::publish(session, &config, &mut signals_seen).await?;
        let current = slot::current_lsn(&**session).await?;
        let retained = slot::retained_bytes(&**session, &slot).await?;
        self.signals_seen = signals_seen;
        let watched = Watched { current, retained, looks, published, rerouted, left_out, unfit, signals };
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
}

/// The key that ranges of this version speak of.
pub fn range_key(relation: &Relation) -> RangeKey {
    relation.row_key().into_iter().map(|(name, type_oid)| (name, KeyOrder::of(type_oid))).collect()
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
    let mut tables: Vec<TableName> = looks.iter().map(|(name, _)| name.clone()).collect();
    tables.extend(config.source.signal_table.clone());
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
