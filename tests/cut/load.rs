//! One loader with its reader of chunks, what a sink would hold of them, and what is known of every chunk.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lockstep::capture::chunks::{Answer, ChunkReader, Command};
use lockstep::capture::pace::ChunkSize;
use lockstep::capture::snapshot::{Action, ChunkRead, Job, Loader, RangeKey, Ready, Resumed, Visibility};
use lockstep::change::Op;
use lockstep::config::Config;
use lockstep::key::{KeyOrder, KeyRange};
use lockstep::ledger::cover::Cover;
use lockstep::postgres::snapshot::PgSnapshot;
use lockstep::relation::{Fingerprint, TableName};
use lockstep::value::RowBuf;
use uuid::Uuid;

use super::copy::{Copy, Difference, Naming, Partial};

/// What is left out of the rules, to see that a test notices.
#[derive(Clone, Copy)]
pub struct Rule {
    /// Changes that the snapshot did not see are laid over the chunk.
    pub overlay: bool,
    pub fence: Fence,
}

#[derive(Clone, Copy)]
pub enum Fence {
    /// The product's.
    Own,
    /// Nothing is waited for.
    AtOnce,
    /// What is older than this transaction is waited for, and no other.
    Above(u64),
}

impl Rule {
    pub const ALL: Rule = Rule { overlay: true, fence: Fence::Own };
    pub const WITHOUT_OVERLAY: Rule = Rule { overlay: false, ..Rule::ALL };

    pub const fn fence(fence: Fence) -> Rule {
        Rule { overlay: true, fence }
    }
}

/// Reads at once, as the product has them by default.
const CONNECTIONS: usize = 2;

fn loader(rows_max: usize) -> Loader<Cut> {
    Loader::new(CONNECTIONS, ChunkSize::new(rows_max, 1 << 20, Duration::from_secs(1)))
}

/// A snapshot; without the overlay one that claims to show everything.
#[derive(Clone)]
pub struct Cut {
    snapshot: PgSnapshot,
    overlay: bool,
}

impl Visibility for Cut {
    fn sees(&self, xid: u32) -> bool {
        !self.overlay || Visibility::sees(&self.snapshot, xid)
    }
}

/// What was seen of a load.
#[derive(Clone, Copy, Default)]
pub struct Tally {
    pub jobs: u64,
    pub chunks: u64,
    pub rows: u64,
    /// Rows that are not as they were read.
    pub overlaid: u64,
    /// Chunks that came to their place and were read again.
    pub again: u64,
    pub deaths: u64,
    /// Chunks against the stream.
    pub chunk: Difference,
    /// What a sink holds in the end against the stream.
    pub sink: Difference,
    /// Changes that met no row at a sink.
    pub faults: u64,
}

impl Tally {
    pub fn is_clean(&self) -> bool {
        self.chunk == Difference::NONE && self.sink == Difference::NONE && self.faults == 0
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { stale, lost, phantom } = self.chunk;
        write!(f, "{} chunks in {} jobs, {} rows, {} overlaid, ", self.chunks, self.jobs, self.rows, self.overlaid)?;
        write!(f, "{} read again, {} deaths: {stale} stale, {lost} lost, {phantom} phantom", self.again, self.deaths)?;
        write!(f, "; at the sink {:?}, {} faults", self.sink, self.faults)
    }
}

/// A chunk as it was read.
struct AsRead {
    nonce: Uuid,
    table: TableName,
    range: KeyRange,
    rows: Vec<RowBuf>,
    naming: Naming,
    key: RangeKey,
}

pub struct Load {
    rule: Rule,
    rows_max: usize,
    tables: Vec<TableName>,
    loader: Loader<Cut>,
    reader: ChunkReader,
    /// Chunks as they were read, until their place comes.
    read: Vec<AsRead>,
    resumed: HashMap<TableName, Resumed>,
    sink: HashMap<TableName, Partial>,
    held_fence: Option<(Uuid, u64)>,
    /// After a job another one begins.
    pub repeat: bool,
    /// Nothing is asked for meanwhile.
    pub hold: bool,
    /// What a fence said that it waits for.
    pub waits_for: Option<String>,
    pub tally: Tally,
}

impl Load {
    pub fn new(config: &Arc<Config>, tables: Vec<TableName>, rows_max: usize, rule: Rule) -> Load {
        let watched = tables.clone();
        let mut load = Load {
            rule,
            rows_max,
            tables,
            loader: loader(rows_max),
            reader: ChunkReader::start(config.clone(), watched).unwrap(),
            read: Vec::new(),
            resumed: HashMap::new(),
            sink: HashMap::new(),
            held_fence: None,
            repeat: false,
            hold: false,
            waits_for: None,
            tally: Tally::default(),
        };
        load.start();
        load
    }

    pub fn repeated(self) -> Load {
        Load { repeat: true, ..self }
    }

    fn start(&mut self) {
        self.loader.start(Job {
            requests: vec![Uuid::new_v4()],
            only: None,
            tables: self.tables.clone(),
            initial: true,
            resumed: self.resumed.clone(),
        });
    }

    /// As after a kill of the reader: the next one knows what is loaded, which tables are to be read again, and no change.
    pub fn die(&mut self) {
        self.tell();
        self.loader = loader(self.rows_max);
        self.held_fence = None;
        self.tally.deaths += 1;
        self.start();
    }

    /// What a checkpoint says of keys that are to be read again.
    fn tell(&mut self) {
        for (table, key) in self.loader.left_out() {
            self.resumed.get_mut(&table).expect("something of it is loaded").cover.again.insert(key);
        }
    }

    pub fn is_idle(&self) -> bool {
        self.loader.is_idle()
    }

    /// What a sink holds of a table.
    pub fn sink(&self, table: &TableName) -> Partial {
        self.sink.get(table).cloned().unwrap_or_default()
    }

    pub fn change(&mut self, xid: u32, table: &TableName, version: Fingerprint, key: &[(usize, KeyOrder)], op: &Op) {
        if self.loader.remembers(table) {
            self.loader.remember(xid, table, version, key, op.clone()).unwrap();
            self.tell();
        }
        if let Some(partial) = self.sink.get_mut(table) {
            partial.apply(op);
        }
    }

    fn ask(&mut self) -> Option<Action> {
        if self.hold { None } else { self.loader.next_action(Uuid::new_v4(), true) }
    }

    /// Asks whatever the loader asks for.
    pub fn pump(&mut self, model: &HashMap<TableName, Copy>) {
        while let Some(action) = self.ask() {
            match (action, self.rule.fence) {
                (Action::Fence(asked), Fence::Own) => self.reader.send(Command::Fence(asked)).unwrap(),
                (Action::Fence(asked), Fence::AtOnce) => self.loader.fenced(asked),
                (Action::Fence(asked), Fence::Above(xid)) => self.held_fence = Some((asked, xid)),
                (Action::Read(read), _) => self.reader.send(Command::Read(read)).unwrap(),
                (Action::Done(_), _) => self.done(model),
            }
        }
    }

    /// A snapshot of now, for a fence of our own.
    pub fn saw(&mut self, snapshot: &PgSnapshot) {
        if let Some((asked, xid)) = self.held_fence
            && snapshot.xmin > xid
        {
            self.held_fence = None;
            self.loader.fenced(asked);
        }
    }

    pub fn holds_a_fence(&self) -> bool {
        self.held_fence.is_some()
    }

    /// Everything is loaded: the sink holds what the stream says, here and now.
    fn done(&mut self, model: &HashMap<TableName, Copy>) {
        self.tally.jobs += 1;
        let empty = Copy::default();
        for (table, partial) in &self.sink {
            self.tally.sink.add(partial.copy.against(model.get(table).unwrap_or(&empty)));
            self.tally.faults += partial.faults;
        }
        self.resumed.clear();
        if self.repeat {
            self.sink.clear();
            self.start();
        }
    }

    pub async fn recv(&mut self) -> Answer {
        self.reader.recv().await.unwrap()
    }

    /// What was answered before the message was written that the stream has reached.
    pub fn take_answers(&mut self) {
        while let Some(answer) = self.reader.try_recv() {
            self.answer(answer);
        }
    }

    pub fn answer(&mut self, answer: Answer) {
        let overlay = self.rule.overlay;
        match answer {
            Answer::Fenced(asked) => self.loader.fenced(asked),
            Answer::Saw(snapshot) => self.loader.saw(&Cut { snapshot, overlay }),
            Answer::Waiting(what) => self.waits_for = Some(what),
            Answer::Chunk(chunk) => {
                let (chunk, _) = *chunk;
                let naming = Naming { key: chunk.key_columns.clone(), orders: chunk.key_orders.clone() };
                self.read.push(AsRead {
                    nonce: chunk.nonce,
                    table: chunk.table.clone(),
                    range: chunk.range.clone(),
                    rows: chunk.rows.clone(),
                    naming,
                    key: chunk.key.clone(),
                });
                self.loader.chunk(ChunkRead {
                    snapshot: Cut { snapshot: chunk.snapshot, overlay },
                    nonce: chunk.nonce,
                    table: chunk.table,
                    relation: chunk.relation,
                    key_columns: chunk.key_columns,
                    key_orders: chunk.key_orders,
                    key: chunk.key,
                    rows: chunk.rows,
                    range: chunk.range,
                    partial: chunk.partial,
                    took: chunk.took,
                });
            }
            Answer::Failed(asked, error) => {
                self.waits_for = Some(error.to_string());
                self.loader.failed(asked);
            }
            Answer::Border(asked, through, key) => self.loader.border(asked, through, key),
            Answer::Planned(asked, borders, key) => self.loader.planned(asked, borders, key),
            Answer::Rekeyed(_, table) => panic!("{table} has another key"),
            Answer::Halted(error) => panic!("{error}"),
            Answer::Watched(_) => {}
        }
    }

    /// The stream reached a message. The chunks that enter here, judged.
    pub fn mark(
        &mut self,
        nonce: Uuid,
        names: &HashMap<TableName, Fingerprint>,
        model: &HashMap<TableName, Copy>,
    ) -> Vec<Ready> {
        self.take_answers();
        if self.read.iter().all(|read| read.nonce != nonce) {
            return Vec::new();
        }
        self.loader.mark(nonce);
        let mut entered = Vec::new();
        while self.loader.is_due() {
            match self.loader.take(usize::MAX, |table| names.get(table).copied()).unwrap() {
                Some(ready) => {
                    self.judge(&ready, model);
                    entered.push(ready);
                }
                None => self.tally.again += 1,
            }
        }
        entered
    }

    fn judge(&mut self, ready: &Ready, model: &HashMap<TableName, Copy>) {
        let is_it = |read: &AsRead| (&read.table, &read.range) == (&ready.table, &ready.range);
        let place = self.read.iter().rposition(is_it).expect("what enters was read");
        let AsRead { rows, naming, key, .. } = self.read.swap_remove(place);
        let now = Copy::of(naming.clone(), &ready.rows);
        let empty = Copy::default();
        let right = model.get(&ready.table).unwrap_or(&empty).within(&ready.range);
        self.tally.chunks += 1;
        self.tally.rows += ready.rows.len() as u64;
        let Difference { stale, lost, phantom } = now.against(&Copy::of(naming.clone(), &rows));
        self.tally.overlaid += stale + lost + phantom;
        self.tally.chunk.add(now.against(&right));
        let orders: Vec<KeyOrder> = key.iter().map(|(_, order)| *order).collect();
        let resumed =
            self.resumed.entry(ready.table.clone()).or_insert_with(|| Resumed { key, cover: Cover::default() });
        resumed.cover.emitted(&orders, &ready.range).unwrap();
        self.sink.entry(ready.table.clone()).or_default().chunk(&naming, &ready.range, &ready.rows);
    }
}
