//! The lanes that read existing rows: so many connections, each with one chunk at a time.
//!
//! Order is what matters here: a chunk is handed over **before** its message is written into the source's log, so whoever
//! meets the message in the stream has the chunk. Between lanes there is no order; the loader makes one (`snapshot`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::chunks::{Answer, RETRY_PAUSE, range_key};
use super::shape::{relation_shape, shaped};
use super::snapshot::{ChunkRead, Read};
use super::withheld;
use crate::config::{Config, Table};
use crate::error::{Code, Error, Result};
use crate::postgres::catalog::{self, TableFacts};
use crate::postgres::chunk::{self, ChunkRequest, Extent, Plan};
use crate::relation::{Relation, TableName};
use crate::session::{self, Session};

/// How long a chunk waits for its table's lock before it is asked for again; longer would queue writers behind us.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// Reads what is asked for until nobody asks any more.
pub(super) async fn run(
    config: Arc<Config>,
    outbox: mpsc::UnboundedSender<Answer>,
    mut asked: mpsc::UnboundedReceiver<Read>,
) {
    let count = config.source.snapshot.connections;
    let lane = |number| Lane {
        number,
        config: config.clone(),
        outbox: outbox.clone(),
        session: None,
        version: 0,
        known: None,
    };
    let mut idle: Vec<Lane> = (0..count).map(lane).collect();
    let (mut busy, mut waiting) = (FuturesUnordered::new(), VecDeque::new());
    loop {
        while !idle.is_empty()
            && let Some(read) = waiting.pop_front()
            && let Some(lane) = idle.pop()
        {
            busy.push(lane.answer(read));
        }
        tokio::select! {
            read = asked.recv() => match read {
                Some(read) => {
                    // Nobody asks for more at once than there are lanes: older ones were given up.
                    if waiting.len() == count
                        && let Some(Read { nonce, .. }) = waiting.pop_front()
                    {
                        let _ = outbox.send(Answer::Failed(nonce, Error::retry_plain("other reads came before it")));
                    }
                    waiting.push_back(read);
                }
                None => return,
            },
            Some(lane) = busy.next() => idle.push(lane),
        }
    }
}

struct Lane {
    number: usize,
    config: Arc<Config>,
    outbox: mpsc::UnboundedSender<Answer>,
    session: Option<Session>,
    version: i32,
    /// The table of the last chunk as its transaction had it. What became of it since shows within the next one's, which fails
    /// then, and the one after that looks again: a chunk's own transaction is what counts.
    known: Option<TableFacts>,
}

impl Lane {
    async fn answer(mut self, read: Read) -> Lane {
        if let Err(error) = self.read(&read).await {
            (self.session, self.known) = (None, None);
            let is_withheld = withheld::is_withheld(&error);
            tokio::time::sleep(if is_withheld { withheld::PAUSE } else { RETRY_PAUSE }).await;
            self.tell(match error {
                Error::Halt(_) if !is_withheld => Answer::Halted(error),
                error => Answer::Failed(read.nonce, error),
            });
        }
        self
    }

    /// A reader that is gone is told nothing: its lanes end with it.
    fn tell(&self, answer: Answer) {
        let _ = self.outbox.send(answer);
    }

    async fn session(&mut self) -> Result<&mut Session> {
        if self.session.as_ref().is_none_or(|session| session.is_closed()) {
            let name = format!("lockstep:{}:chunks:{}", self.config.name, self.number);
            let session = session::connect(&self.config.source.database, &name).await?;
            self.version = catalog::source_facts(&*session).await?.version;
            self.session = Some(session);
        }
        Ok(self.session.as_mut().expect("just connected"))
    }

    /// Reads a chunk, hands it over, then writes its message.
    async fn read(&mut self, read: &Read) -> Result<()> {
        let config = self.config.clone();
        let table = routed(&config, &read.table)?;
        let outbox = self.outbox.clone();
        let known = self.known.take().filter(|facts| facts.name == read.table);
        let session = self.session().await?;
        let facts = match known {
            Some(facts) => facts,
            None => {
                let facts = catalog::table_facts(&**session, std::slice::from_ref(&read.table)).await?.remove(0);
                let facts = facts.ok_or_else(|| dropped(&read.table))?;
                withheld::check_rights(session, &facts).await?;
                facts
            }
        };
        let relation = catalog::build_relation(&facts, relation_shape(table))?;
        if read.key.as_ref().is_some_and(|key| *key != range_key(&relation)) {
            self.tell(Answer::Rekeyed(read.nonce, read.table.clone()));
            return Ok(());
        }
        let border = |through| {
            let _ = outbox.send(Answer::Border(read.nonce, through, range_key(&relation)));
        };
        let told = outbox.clone();
        let planned = |borders: Vec<Vec<String>>, advice: Option<String>| {
            warn_unserved(&read.table, borders.len() + 1, advice);
            let _ = told.send(Answer::Planned(read.nonce, borders, range_key(&relation)));
        };
        let plan = read.plan_rows.map(|rows| Plan { rows, tell: &planned });
        let request = ChunkRequest {
            plan,
            border: read.border_wanted.then_some(&border),
            ..request(&config, table, &relation, read)
        };
        let found = chunk::read_chunk(session, &request).await;
        let is_missing = |error: &Error| error.code() == Some(Code::TableMissing);
        let found = found.map_err(|error| if is_missing(&error) { dropped(&read.table) } else { error })?;
        if found.severed {
            self.session = None;
        }
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
            took: found.took,
        };
        self.known = Some(found.facts);
        self.tell(Answer::Chunk(Box::new((chunk, shaped))));
        let version = self.version;
        chunk::mark(&**self.session().await?, &read.nonce.to_string(), version).await
    }
}

fn request<'a>(config: &Config, table: &'a Table, relation: &'a Relation, read: &Read) -> ChunkRequest<'a> {
    ChunkRequest {
        relation,
        key: relation_shape(table).key,
        filter: table.shape.filter.as_deref(),
        extent: read.range.key().map_or_else(|| Extent::Range(read.range.clone()), |key| Extent::Key(key.clone())),
        rows_max: read.rows_max,
        bytes_max: read.bytes_max,
        keyless_bytes_max: config.source.snapshot.keyless_bytes,
        lock_timeout: LOCK_TIMEOUT,
        border: None,
        plan: None,
    }
}

fn warn_unserved(table: &TableName, ranges: usize, advice: Option<String>) {
    let slow = "no index of the source serves the order of its key, so each range is a scan of the table";
    match advice {
        Some(advice) => tracing::warn!(%table, ranges, "{slow}; at the source: {advice}"),
        None => tracing::warn!(%table, ranges, "{slow}"),
    }
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

/// Whoever looks at the tables finds it gone too and knows what that means: one that was made again at once, one of a pattern
/// that is let go of, or one that a connector names.
fn dropped(name: &TableName) -> Error {
    Error::retry_plain(format!("table {name} was dropped while its rows were being read"))
}
