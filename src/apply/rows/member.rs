//! A member of a sink in row consistency: applies what is its partitions' and waits where they may not go on.
//!
//! It remembers nothing that could be wrong: what it owns it has taken at the sink, each transaction begins with the
//! compare-and-set of all partitions in it, and one that moves none of them wrote nothing. Whatever else goes wrong but its
//! connections is the owner's to judge: it leaves its partitions where they are until they are in another hand.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::apply::ahead::{Ahead, Next};
use crate::apply::decode::Needs;
use crate::apply::driver::count;
use crate::apply::machine::{Item, Machine};
use crate::apply::rows::window::{Chosen, Window};
use crate::apply::start::{at, taken};
use crate::apply::writer::Writer;
use crate::config::{self, Config};
use crate::error::{Code, Error, Result};
use crate::http::metrics::SinkMetrics;
use crate::kafka::consumer::{Entry as LedgerRecord, Tail};
use crate::kafka::members::{self, Member as Membership};
use crate::kafka::reread::Reread;
use crate::ledger::entry::{Assembler, Entry};
use crate::ledger::state::State as Ledger;
use crate::ledger::taken::{Otherwise, Taken};
use crate::ledger::topic::{self, Reading};
use crate::lsn::Position;
use crate::record::Kind;
use crate::relation::TableName;
use crate::sink::partition_progress::{Partition, PartitionRow};
use crate::sink::progress::{ProgressRow, Standing};
use crate::sink::{Failure, Sink};
use crate::status::{PartitionStatus, SinkReporter, State};

/// Records of one transaction: a partition that changes hands waits for its end.
const TRANSACTION_RECORDS_MAX: u64 = 5_000;

/// Intervals held that other partitions may still be behind of. Beyond it this member waits for them.
const WINDOW_INTERVALS_MAX: usize = 4_096;

/// How often the sink is asked who owns what, while there is something to wait for, and while there is nothing.
const LOOK_BUSY: Duration = Duration::from_millis(50);
const LOOK_IDLE: Duration = Duration::from_secs(1);

/// The loop looks around at least this often.
const TICK: Duration = Duration::from_millis(50);

/// Runs until it is stopped or a connection fails.
pub(super) async fn run<S: Sink>(
    config: Arc<Config>,
    sink: config::Sink,
    (reporter, metrics): (SinkReporter, SinkMetrics),
    stop: CancellationToken,
) -> Result<Ended> {
    let started = tokio::select! {
        () = stop.cancelled() => return Ok(Ended::Stopped),
        begun = Member::<S>::start(config.clone(), sink.clone(), (reporter, metrics)) => begun?,
    };
    let mut member = match started {
        Begun::Member(member) => member,
        Begun::Otherwise(why) => return Ok(Ended::Otherwise(why)),
    };
    let (owner, heard) = (member.writer.sink.member().await?, member.writer.sink.heard());
    tokio::select! {
        outcome = member.run(&stop) => outcome,
        // The member waits on a dead connection; only dropping it ends that.
        error = S::watch(&sink, &config.name, owner, heard) => Err(error),
    }
}

/// How a member ended that did not fail.
pub(super) enum Ended {
    Stopped,
    /// This process' configuration is another one than what the sink's owner asked for.
    Otherwise(String),
}

enum Begun<S: Sink> {
    Member(Box<Member<S>>),
    Otherwise(String),
}

struct Member<S: Sink> {
    sink: config::Sink,
    tables: BTreeSet<TableName>,
    /// How they are taken.
    takes: Vec<Taken>,
    /// Why that is not what the owner asked for.
    otherwise: Option<String>,
    /// Where the whole sink stood when it was looked at last.
    standing: Standing,
    machine: Machine,
    assembler: Assembler,
    tail: Tail,
    ahead: Ahead,
    writer: Writer<S>,
    window: Window,
    membership: Membership,
    owned: BTreeMap<Partition, PartitionRow>,
    /// All that the sink knows.
    known: BTreeSet<Partition>,
    /// Of each topic.
    counts: HashMap<String, i32>,
    /// What is owned can't be applied by a member: until somebody else has had it.
    stuck: bool,
    looked: Option<Instant>,
    reporter: SinkReporter,
    metrics: SinkMetrics,
}

/// What the sink's owner asked for last is what every process writes: a member that takes a table in another way would leave rows
/// which nobody writes again. Says why, if this one would.
fn otherwise(state: &Ledger, sink: &str, takes: &[Taken]) -> Option<String> {
    let Otherwise { moved, reshaped, begun } = Otherwise::of(state, sink, takes);
    let table = [&moved, &reshaped, &begun].into_iter().flatten().next()?;
    Some(format!(
        "the owner of sink {sink} takes table {table} in another way than the configuration of this process says"
    ))
}

impl<S: Sink> Member<S> {
    async fn start(
        config: Arc<Config>,
        sink: config::Sink,
        (reporter, metrics): (SinkReporter, SinkMetrics),
    ) -> Result<Begun<S>> {
        // Another one with every connection, so that its name tells the connection, too.
        let mut database = S::connect_member(&sink, &config.name, Uuid::new_v4()).await?;
        let floor = wait_for_floor(&mut database).await?;
        let targets = taken(&config, &sink.name);
        let takes: Vec<Taken> = targets.iter().map(|(table, target)| Taken::of(table, target)).collect();
        let tables: BTreeSet<TableName> = targets.keys().cloned().collect();
        let standing = &floor.standing;
        let place = at(standing);
        let needed = standing.join_offset.map_or(place.offset, |join| join.min(place.offset));
        let shared = config.clone();
        let reading = topic::beside(move || Reading::open(&shared.kafka)?.fold_start(needed));
        let from = database.meanwhile(reading).await?;
        let tail = Tail::open(&config.kafka, &config.kafka.ledger, topic::PARTITION, from, Code::LedgerTrimmed)?;
        let joined = standing.join_offset.unwrap_or(-1);
        let mut machine = Machine::new(&config.name, &sink.name, tables.clone(), place, joined);
        let (mut assembler, mut tail) = (Assembler::default(), tail);
        let shared = config.clone();
        let bounds = topic::beside(move || Reading::open(&shared.kafka)?.bounds());
        let (_, high) = database.meanwhile(bounds).await?;
        if place.offset >= high {
            // The ledger lost its end: what the row names does not come.
            machine.check_row()?;
        }
        while place.offset >= 0 && machine.state().offset.is_none_or(|offset| offset < place.offset) {
            let record = database.meanwhile(tail.recv()).await?;
            entry(&mut assembler, &mut machine, &record)?;
            database.keep_lease().await?;
        }
        if place.offset >= 0 {
            machine.check_row()?;
        }
        if let Some(why) = otherwise(machine.state(), &sink.name, &takes) {
            return Ok(Begun::Otherwise(why));
        }
        let mut window = Window::new(&sink.name, tables.clone(), machine.loads());
        window.knows(machine.state().joined(&sink.name));
        let topics = config.tables.iter().filter(|table| tables.contains(&table.name));
        let topics: BTreeSet<String> = topics.map(|table| table.topic.clone()).collect();
        let group = members::group(&config.name, &sink.name);
        let membership = Membership::open(&config.kafka, &group, &topics, sink.lease_timeout)?;
        // Its own: what is fetched ahead is void with this member.
        let ended = CancellationToken::new();
        let wanted = targets.iter().map(|(name, target)| (name.clone(), Needs::of(target))).collect();
        let ahead = Ahead::open(&config.kafka, wanted, sink.span_wait, ended, metrics.ahead_bytes())?;
        let mut writer = Writer::new(database, &sink, targets);
        writer.again = Some(Reread::new(&config.kafka));
        let member = Member {
            sink,
            standing: floor.standing,
            tables,
            takes,
            otherwise: None,
            machine,
            assembler,
            tail,
            ahead,
            writer,
            window,
            membership,
            owned: BTreeMap::new(),
            known: BTreeSet::new(),
            counts: HashMap::new(),
            stuck: false,
            looked: None,
            reporter,
            metrics,
        };
        Ok(Begun::Member(Box::new(member)))
    }

    async fn run(&mut self, stop: &CancellationToken) -> Result<Ended> {
        while !stop.is_cancelled() {
            self.writer.sink.keep_lease().await?;
            self.read_ahead()?;
            if let Some(why) = self.otherwise.take() {
                return Ok(Ended::Otherwise(why));
            }
            let chosen = self.choose();
            self.look(chosen.intervals.is_empty()).await?;
            // What was looked at may have taken some of it away.
            let chosen = self.choose();
            if chosen.intervals.is_empty() {
                self.report();
                self.wait(stop).await?;
            } else {
                self.transaction(chosen).await?;
                self.report();
            }
        }
        Ok(Ended::Stopped)
    }

    fn choose(&self) -> Chosen {
        match self.stuck {
            true => Chosen::default(),
            false => self.window.choose(&self.owned, &self.known, TRANSACTION_RECORDS_MAX),
        }
    }

    fn read_ahead(&mut self) -> Result<()> {
        while self.window.len() < WINDOW_INTERVALS_MAX
            && let Some(record) = self.tail.try_recv()?
        {
            self.entry(&record)?;
        }
        Ok(())
    }

    fn entry(&mut self, record: &LedgerRecord) -> Result<()> {
        entry(&mut self.assembler, &mut self.machine, record)?;
        // Whoever shares the sink may have a newer configuration than this process.
        self.window.knows(self.machine.state().joined(&self.sink.name));
        while let Some(item) = self.machine.pop() {
            if matches!(item, Item::Joined(..)) {
                self.otherwise = otherwise(self.machine.state(), &self.sink.name, &self.takes);
            }
            self.window.push(item);
        }
        Ok(())
    }

    async fn wait(&mut self, stop: &CancellationToken) -> Result<()> {
        let full = self.window.len() >= WINDOW_INTERVALS_MAX;
        tokio::select! {
            () = stop.cancelled() => {}
            record = self.tail.recv(), if !full => {
                let record = record?;
                self.entry(&record)?;
            }
            () = self.membership.changed() => self.looked = None,
            () = tokio::time::sleep(TICK) => {}
        }
        Ok(())
    }

    /// Asks the sink who owns what and how far it is as a whole, and takes what is this member's turn.
    async fn look(&mut self, idle: bool) -> Result<()> {
        let assigned = self.membership.assigned();
        let assigned: BTreeSet<Partition> =
            assigned.into_iter().map(|(topic, number)| Partition { topic, number }).collect();
        self.owned.retain(|partition, _| assigned.contains(partition));
        let lacks = assigned.len() > self.owned.len();
        let busy = lacks || self.stuck || (idle && self.window.len() > 0);
        let interval = if busy { LOOK_BUSY } else { LOOK_IDLE };
        if self.looked.is_some_and(|looked| looked.elapsed() < interval) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let rows = self.writer.sink.partitions().await?;
        let mine = |row: &PartitionRow| self.owned.get(&row.partition).is_some_and(|own| own == row);
        let kept: BTreeSet<Partition> = rows.iter().filter(|row| mine(row)).map(|row| row.partition.clone()).collect();
        if kept.len() < self.owned.len() {
            // Somebody has had them.
            self.owned.retain(|partition, _| kept.contains(partition));
            self.stuck = false;
        }
        self.known = rows.into_iter().map(|row| row.partition).collect();
        self.counts.clear();
        for partition in &self.known {
            *self.counts.entry(partition.topic.clone()).or_default() += 1;
        }
        let wanted = assigned.intersection(&self.known).filter(|partition| !self.owned.contains_key(partition));
        let wanted: Vec<Partition> = wanted.cloned().collect();
        if !wanted.is_empty() {
            match self.writer.sink.take_partitions(&wanted).await {
                Ok(taken) => {
                    // From here on nobody else parks for them.
                    if self.writer.sink.has_letters().await? {
                        self.writer.letters.read(&self.writer.sink.held_letters().await?);
                    }
                    self.owned.extend(taken.into_iter().map(|row| (row.partition.clone(), row)));
                }
                // Their last owner sat in a transaction, which is ended by now. Where it is the connection, the next call says so.
                Err(failure) => tracing::warn!(sink = self.sink.name, "taking partitions: {}", Error::from(failure)),
            }
        }
        if let Some(floor) = self.writer.sink.found_progress().await? {
            self.check_history(&floor.standing)?;
            self.window.prune(floor.standing.position);
            self.reporter.update(|status| {
                status.state = State::Streaming;
                status.position = Some(floor.standing.position.lsn);
                status.closed_lsn = Some(floor.standing.closed_lsn);
            });
        }
        Ok(())
    }

    /// What waits here is of the history that the sink went by when this member started.
    fn check_history(&mut self, now: &Standing) -> Result<()> {
        let of = |standing: &Standing| (standing.ledger_topic_id, standing.source_system_id);
        if of(now) != of(&self.standing) || now.position < self.standing.position {
            return Err(Error::retry_plain("the sink goes by another history of the source by now"));
        }
        self.standing = now.clone();
        Ok(())
    }

    /// One transaction: partitions, rows, commit.
    async fn transaction(&mut self, chosen: Chosen) -> Result<()> {
        match self.apply(&chosen).await {
            Ok(foreign) => {
                for (partition, to) in chosen.moves {
                    let row = self.owned.get_mut(&partition).expect("only what is owned is chosen");
                    (row.position, row.next_offset) = (to.position, to.next_offset);
                }
                self.writer.letters.committed();
                let counts = std::mem::take(&mut self.writer.counts);
                count(&self.metrics, counts, 0, foreign);
                Ok(())
            }
            Err(failure) => {
                self.writer.reset();
                self.ahead.discard();
                match failure {
                    Failure::OwnershipLost => {
                        tracing::info!(sink = self.sink.name, "partitions are in another hand");
                        self.owned.clear();
                        self.looked = None;
                        Ok(())
                    }
                    Failure::OutcomeUnknown(error) => Err(error),
                    // A lock, mostly. Where it is the connection, this says so.
                    other => {
                        self.writer.sink.rollback().await?;
                        let why = Error::from(other);
                        tracing::warn!(sink = self.sink.name, "left to the sink's owner: {why}");
                        self.stuck = true;
                        Ok(())
                    }
                }
            }
        }
    }

    async fn apply(&mut self, chosen: &Chosen) -> Result<u64, Failure> {
        let moves: Vec<_> = chosen.moves.iter().map(|(partition, to)| (self.owned[partition].clone(), *to)).collect();
        self.writer.sink.begin_partitions(&moves).await?;
        let mut foreign = 0;
        for interval in &chosen.intervals {
            if !self.ahead.has_ordered(interval.offset) {
                self.ahead.order(interval, self.machine.state());
            }
        }
        for interval in &chosen.intervals {
            self.ahead.begin(interval, self.machine.state());
            self.writer.begin_interval(interval);
            foreign += self.records().await?;
            self.writer.end_interval(self.machine.state()).await?;
        }
        self.writer.flush().await?;
        self.writer.sink.commit().await?;
        Ok(foreign)
    }

    /// The records of the interval that was begun.
    async fn records(&mut self) -> Result<u64, Failure> {
        loop {
            let next = match self.ahead.ready() {
                Some(record) => Next::Record(record),
                None => self.writer.sink.meanwhile(self.ahead.take()).await?,
            };
            let record = match next {
                Next::Record(record) => record,
                Next::Waiting(_) => continue,
                Next::End { foreign } => return Ok(foreign),
            };
            let state = self.machine.state();
            let relation = state.relations.get(&record.header.relation);
            if let Some(relation) = relation.filter(|relation| self.tables.contains(&relation.name)) {
                let partitions = self.counts.get(&relation.topic).copied().unwrap_or_default();
                match record.header.kind {
                    Kind::ChunkRow | Kind::Foreign => continue,
                    Kind::Truncate | Kind::KeyChangeDelete | Kind::KeyChangeCreate => {
                        return Err(not_plain(&relation.name, record.header.position).into());
                    }
                    Kind::Change | Kind::Tombstone if !record.place.is_of(partitions) => {
                        return Err(misplaced(&relation.topic, partitions).into());
                    }
                    Kind::Change | Kind::Tombstone => {}
                }
            } else if relation.is_some() {
                continue;
            }
            self.writer.record(record, self.machine.state()).await?;
        }
    }

    fn report(&self) {
        let of = |row: &PartitionRow| PartitionStatus {
            topic: row.partition.topic.clone(),
            partition: row.partition.number,
            position: row.position.lsn,
            next_offset: row.next_offset,
            lag_records: self.window.lag(row),
        };
        let partitions: Vec<PartitionStatus> = self.owned.values().map(of).collect();
        self.reporter.update(|status| (status.partitions, status.waiting_for) = (partitions, None));
    }
}

fn entry(assembler: &mut Assembler, machine: &mut Machine, record: &LedgerRecord) -> Result<()> {
    let piece = Entry::decode(record.offset, record.value.as_deref().unwrap_or_default())?;
    match assembler.push(record.offset, piece)? {
        Some(entry) => machine.entry(record.offset, entry),
        None => Ok(()),
    }
}

/// The sink's own row, once its owner has made it and what is beside it.
async fn wait_for_floor<S: Sink>(database: &mut S) -> Result<ProgressRow> {
    loop {
        if let Some(row) = database.found_progress().await?
            && database.is_partitioned().await?
        {
            return Ok(row);
        }
        tokio::time::sleep(TICK).await;
        database.keep_lease().await?;
    }
}

/// Not an error of anybody but the reader, and the owner can apply it all the same.
fn not_plain(table: &TableName, position: Position) -> Error {
    let message =
        format!("the record of {table} at {position} is about several keys, and its checkpoint does not say so");
    Error::halt(Code::RecordInvalid, message, "run the newest lockstep on every machine of this pipeline")
}

/// The topic has another number of partitions by now: other records of this key may still be before another member.
fn misplaced(topic: &str, partitions: i32) -> Error {
    let message = format!("records of topic {topic} are not where {partitions} partitions have them");
    Error::halt(Code::RecordInvalid, message, "nothing: the sink's owner takes the partitions that came")
}
