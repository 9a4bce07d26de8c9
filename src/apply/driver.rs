//! A sink's loop: one worker, one connection to the sink, one consumer of the data topics, one of the ledger.
//!
//! After every connect the progress row is read again and the walk starts from it; nothing is remembered across connections.
//! The worker runs on a thread of its own; the records are read and decoded on another one (`apply::ahead`).

mod blocker;
mod foreign_keys;
mod held;
mod parked;
mod refused;
mod rows;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::blocker::Blocker;
use self::held::Held;
use self::parked::Parked;
use crate::apply::ahead::{Ahead, Next};
use crate::apply::decode::Needs;
use crate::apply::machine::{At, Interval, Item, Machine, existing_share};
use crate::apply::routes::{News, Routes, has_patterns};
use crate::apply::rows::floor::Floor;
use crate::apply::start::{
    Ledger, at, first_tables, fold_through, go_on_after_restart, identity, join, read_ledger, request, standing,
    take_over, taken,
};
use crate::apply::writer::Writer;
use crate::config::{self, Config, Consistency};
use crate::error::{Code, Error, Result};
use crate::http::metrics::{RowOp, SinkMetrics};
use crate::kafka::consumer::Tail;
use crate::kafka::groups::{self, Applied};
use crate::ledger::entry::{Assembler, Entry, Join, RequestKind};
use crate::ledger::state::State;
use crate::ledger::taken::{Otherwise, Taken};
use crate::ledger::topic::{self, Reading};
use crate::progress::Meters;
use crate::rate::Rates;
use crate::record::Kind;
use crate::relation::TableName;
use crate::sink::lease::Lease;
use crate::sink::progress::{Phase as RowPhase, ProgressRow, Standing};
use crate::sink::{Counts, Failure, Sink, for_engine, lacks};
use crate::status::{self, Phase, SinkReporter, TableStatus};

/// This process among the workers of its sinks: it takes over from itself at once.
static WORKER: LazyLock<Uuid> = LazyLock::new(Uuid::new_v4);

/// Intervals are gathered into one transaction up to this many records: beyond it the cost of a commit is nothing, and the
/// rows are held in memory.
const TRANSACTION_RECORDS_MAX: u64 = 10_000;

/// The same where they come to few rows: these cost little, but are a second's work to read, and are read anew after a failure.
const TRANSACTION_CHANGES_MAX: u64 = 160_000;

/// The first transactions after a start are smaller, so that a worker which is killed again and again gets on all the same.
const TRANSACTION_RECORDS_FIRST: u64 = 1_000;

/// Entries of the ledger read ahead of what is applied.
const ITEMS_MAX: usize = 1024;

/// An interval with nothing for this sink moves its progress at most this often.
const QUIET_INTERVAL: Duration = Duration::from_secs(1);

/// The loop looks around at least this often.
const TICK: Duration = Duration::from_millis(100);

/// How often members are looked after during a stop.
const SHARED_INTERVAL: Duration = Duration::from_millis(20);

/// How long a stop may go on applying what the ledger already holds.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(4);

/// How often the sink says in Kafka what it still needs: for trimming, which counts in days, and for lag tools.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// Records between two looks at the lease while records flow.
const LEASE_RECORDS: u32 = 512;

/// The role: runs until it is stopped or fails.
pub async fn run(
    config: Arc<Config>,
    name: String,
    reporter: SinkReporter,
    metrics: SinkMetrics,
    stop: CancellationToken,
) -> Result<()> {
    let sink = config.sinks.iter().find(|sink| sink.name == name).expect("roles name configured sinks").clone();
    if config.topics.is_some() {
        return super::foreign::run(config, sink, (reporter, metrics), stop).await;
    }
    let rows = sink.consistency == Consistency::Row;
    for_engine!(sink, S => match rows {
        true => super::rows::run::<S>(config, sink, (reporter, metrics), stop).await,
        false => apply::<S>(config, name, reporter, metrics, stop).await,
    })
}

pub(super) async fn apply<S: Sink>(
    config: Arc<Config>,
    name: String,
    reporter: SinkReporter,
    metrics: SinkMetrics,
    stop: CancellationToken,
) -> Result<()> {
    let started = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        worker = Worker::<S>::start(config, &name, &reporter, metrics, &stop) => worker?,
    };
    let Some(mut worker) = started else { return Ok(()) };
    tracing::info!(sink = name, position = %worker.row.standing.position, "applying");
    let (config, heard) = (worker.config.clone(), worker.writer.sink.heard());
    let (sink, owner) = (worker.sink.clone(), worker.row.owner.clone());
    let blocker = Blocker::new(reporter);
    tokio::select! {
        outcome = worker.run(&stop) => outcome.map_err(|error| for_sink(blocker.name(error), &name)),
        // The worker waits on a dead connection; only dropping it ends that.
        error = S::watch(&sink, &config.name, owner.clone(), heard.clone()) => Err(error),
        () = S::watch_locks(&sink, &config.name, owner, heard, |who| blocker.tell(who)) => {
            unreachable!("it looks for as long as it is polled")
        }
    }
}

/// A hint to read a copy again means this sink's copy.
fn for_sink(error: Error, sink: &str) -> Error {
    match error {
        Error::Halt(mut halt) if halt.hint.starts_with("lockstep resync") && !halt.hint.contains("--sink") => {
            halt.hint.push_str(&format!(" --sink {sink}"));
            Error::Halt(halt)
        }
        other => other,
    }
}

struct Worker<S: Sink> {
    /// With every table by its name.
    config: Arc<Config>,
    routes: Routes,
    sink: config::Sink,
    machine: Machine,
    assembler: Assembler,
    tail: Tail,
    held: Held,
    ahead: Ahead,
    writer: Writer<S>,
    metrics: SinkMetrics,
    reporter: SinkReporter,
    /// The row as last written.
    row: ProgressRow,
    /// Where the sink stands, at or ahead of the row: intervals without anything for it are not written at once.
    at: At,
    wrote: Instant,
    level: Instant,
    /// Rows loaded of each table that is under load.
    loaded: HashMap<TableName, u64>,
    meters: Meters,
    /// Records gathered into one transaction at most.
    gather_records: u64,
    /// How much may be written in a second.
    rates: Rates,
    /// What `rates` counts from.
    begun: Instant,
    /// Bytes of records that were taken in by the open transaction.
    bytes: usize,
    /// Stopped within a transaction that could not end yet: what it took in is not applied.
    abandoned: bool,
    teller: groups::Teller,
    told: Option<(i64, Instant)>,
    /// Existing rows were applied, or passed over: whoever loads them waits to hear of it.
    rows_passed: bool,
    /// Time spent with existing rows.
    busy: Duration,
    /// Of a sink whose partitions may be ahead of it.
    floor: Option<Floor>,
    parked: Parked,
}

impl<S: Sink> Worker<S> {
    /// `None`: stopped while another worker owned the sink.
    async fn start(
        config: Arc<Config>,
        name: &str,
        reporter: &SinkReporter,
        metrics: SinkMetrics,
        stop: &CancellationToken,
    ) -> Result<Option<Worker<S>>> {
        let sink = config.sinks.iter().find(|sink| sink.name == name).expect("roles name configured sinks").clone();
        lacks::refuse::<S>(&sink, taken(&config, name).values())?;
        let mut database = S::connect(&sink, &config.name, *WORKER).await?;
        let found = database.progress(config.create).await?;
        let first = match &found {
            Some(row) => row.standing.clone(),
            None => {
                let (ledger, routes) = first_tables(&config, name, reporter).await?;
                join(&config, name, &taken(routes.config(), name), &ledger).await?
            }
        };
        let lease = Lease::new(sink.lease_timeout);
        let row = match take_over(&mut database, &first, lease, reporter, stop).await? {
            Some(row) => row,
            None => return Ok(None),
        };
        // Only now: a standby may have waited for months.
        let ledger =
            database.meanwhile(read_ledger(&config, name, reporter, Some(row.standing.ledger_topic_id))).await?;
        let row = go_on_after_restart(&mut database, row, &ledger).await?;
        row.check_identity(&identity(&ledger))?;
        let Ledger { mut state, .. } = ledger;
        let routes = Routes::new(&config, name, &state, row.standing.ledger_offset);
        for table in routes.left_out() {
            tracing::warn!(sink = name, "{table}");
        }
        let tables = taken(routes.config(), name);
        lacks::refuse::<S>(&sink, tables.values())?;
        let names: BTreeSet<TableName> = tables.keys().cloned().collect();
        let known = state.joined(name);
        let gone: BTreeSet<TableName> = known.difference(&names).cloned().collect();
        let missing: BTreeSet<TableName> = names.difference(&known).cloned().collect();
        let now: Vec<Taken> = tables.iter().map(|(table, target)| Taken::of(table, target)).collect();
        let Otherwise { moved, reshaped, begun } = Otherwise::of(&state, name, &now);
        // Should a table that is gone come back, it must be known that nothing of it was taken meanwhile. And tables that are
        // missing are under load from here on, wherever the row stands; so are those that are taken in another way now.
        let (left, joined) = (&gone | &moved, &(&missing | &moved) | &begun);
        for (kind, names) in [(RequestKind::Leave, left), (RequestKind::Join, joined), (RequestKind::Resync, reshaped)]
        {
            if !names.is_empty() {
                let asked = async {
                    let offset = request(&config, kind, name, (&names, &tables), state.base).await?;
                    fold_through(&config, offset).await
                };
                state = database.meanwhile(asked).await?;
            }
        }
        let mut worker = Worker::open(routes, sink, database, tables, row, (metrics, reporter.clone(), stop)).await?;
        worker.writer.prepare(&state).await?;
        worker.catch_up().await?;
        worker.look_ahead(&state).await?;
        worker.set_foreign_keys_aside().await?;
        worker.end_of_load().await?;
        worker.begin_rows().await?;
        Ok(Some(worker))
    }

    async fn open(
        routes: Routes,
        sink: config::Sink,
        mut database: S,
        tables: HashMap<TableName, config::SinkTable>,
        row: ProgressRow,
        (metrics, reporter, stop): (SinkMetrics, SinkReporter, &CancellationToken),
    ) -> Result<Worker<S>> {
        let config = routes.config().clone();
        let standing = &row.standing;
        let at = at(standing);
        let needed = standing.join_offset.map_or(at.offset, |join| join.min(at.offset));
        let shared = config.clone();
        let reading = topic::beside(move || Reading::open(&shared.kafka)?.fold_start(needed));
        let from = database.meanwhile(reading).await?;
        let tail = Tail::open(&config.kafka, &config.kafka.ledger, topic::PARTITION, from, Code::LedgerTrimmed)?;
        let names = tables.keys().cloned().collect();
        let machine = Machine::new(&config.name, &sink.name, names, at, standing.join_offset.unwrap_or(-1));
        let machine = if has_patterns(&config, &sink.name) { machine.telling_routes() } else { machine };
        let wanted = tables.iter().map(|(name, target)| (name.clone(), Needs::of(target))).collect();
        let ahead = Ahead::open(&config.kafka, wanted, sink.span_wait, stop.clone(), metrics.ahead_bytes())?;
        let writer = Writer::new(database, &sink, tables);
        let teller =
            groups::Teller::open(&config.kafka, &groups::of_sink(&config.name, &sink.name), &config.kafka.ledger)?;
        let (assembler, now) = (Assembler::default(), Instant::now());
        let rates = Rates::new(sink.rows_per_second, sink.bytes_per_second);
        Ok(Worker {
            config,
            routes,
            sink,
            machine,
            assembler,
            tail,
            held: Held::default(),
            ahead,
            writer,
            metrics,
            reporter,
            row,
            at,
            wrote: now,
            level: now,
            loaded: HashMap::new(),
            meters: Meters::default(),
            gather_records: TRANSACTION_RECORDS_FIRST,
            rates,
            begun: now,
            bytes: 0,
            abandoned: false,
            teller,
            told: None,
            rows_passed: false,
            busy: Duration::ZERO,
            floor: None,
            parked: Parked::default(),
        })
    }

    /// Reads the ledger up to the checkpoint that the row names: it must be there, and what was loaded by then is known.
    async fn catch_up(&mut self) -> Result<()> {
        if self.at.offset < 0 {
            return Ok(());
        }
        let shared = self.config.clone();
        let reading = topic::beside(move || Reading::open(&shared.kafka)?.bounds());
        let (_, high) = self.writer.sink.meanwhile(reading).await?;
        if self.at.offset >= high {
            return self.machine.check_row();
        }
        while self.machine.state().offset.is_none_or(|offset| offset < self.at.offset) {
            let record = self.writer.sink.meanwhile(self.tail.recv()).await?;
            self.entry(record.offset, record.value.as_deref())?;
            self.writer.sink.keep_lease().await?;
        }
        self.machine.check_row()?;
        self.writer.loads = self.machine.loads();
        Ok(())
    }

    /// Requests that stand ahead in the ledger count at once.
    async fn look_ahead(&mut self, state: &State) -> Result<()> {
        let mut last = self.row.standing.join_offset;
        let ahead = |join: &&Join| join.request.sink == self.sink.name && join.offset > self.at.offset;
        // Also those that are done: their chunks are still to come here.
        let mut phase = self.row.standing.phase;
        for join in state.joins.iter().filter(ahead) {
            self.writer.loads.joined(join.offset, &join.request);
            phase = loading(phase, join.request.kind);
            last = last.max(Some(join.offset));
        }
        if last != self.row.standing.join_offset {
            let standing = Standing { join_offset: last, phase, ..self.standing() };
            self.write_row(standing).await?;
            self.machine.knows(last.unwrap_or(-1));
        }
        Ok(())
    }

    fn entry(&mut self, offset: i64, value: Option<&[u8]>) -> Result<()> {
        let piece = Entry::decode(offset, value.unwrap_or_default())?;
        match self.assembler.push(offset, piece)? {
            Some(entry) => self.machine.entry(offset, entry),
            None => Ok(()),
        }
    }

    async fn run(&mut self, stop: &CancellationToken) -> Result<()> {
        let mut stopped: Option<Instant> = None;
        loop {
            self.read_ahead()?;
            if stop.is_cancelled() && stopped.is_none() {
                stopped = Some(Instant::now());
            }
            let late = stopped.is_some_and(|at| at.elapsed() > DRAIN_TIMEOUT);
            self.writer.sink.keep_lease().await?;
            self.tell()?;
            Box::pin(self.look_after_letters()).await?;
            let shared = self.share().await?;
            let owes = self.machine.waiting() > 0 && self.rates.owes(self.begun.elapsed());
            if self.machine.waiting() == 0 || late || owes || (shared && stopped.is_none()) {
                self.quiet().await?;
                self.report(owes);
                if stopped.is_some() {
                    if self.machine.waiting() > 0 {
                        tracing::warn!(
                            items = self.machine.waiting(),
                            "stopping with a backlog; the next start goes on with it"
                        );
                    }
                    return self.finish().await;
                }
                match owes {
                    true => drop(stop.run_until_cancelled(tokio::time::sleep(TICK)).await),
                    false => self.wait(stop).await?,
                }
            } else if shared {
                tokio::time::sleep(SHARED_INTERVAL).await;
            } else {
                self.step(stop).await?;
                if self.abandoned {
                    return Ok(());
                }
                self.report(false);
            }
        }
    }

    async fn wait(&mut self, stop: &CancellationToken) -> Result<()> {
        tokio::select! {
            () = stop.cancelled() => {}
            record = self.tail.recv() => {
                let record = record?;
                self.entry(record.offset, record.value.as_deref())?;
            }
            () = tokio::time::sleep(TICK) => {}
        }
        Ok(())
    }

    /// Applies the next item, or as many intervals as fit into one transaction.
    async fn step(&mut self, stop: &CancellationToken) -> Result<()> {
        match self.machine.peek() {
            Some(Item::Interval(_)) => {
                let (intervals, begun) = (self.machine.gather(self.gather_max()), Instant::now());
                let intervals = self.leave_plain(intervals);
                let share = existing_share(&intervals);
                self.rows_passed |= intervals.iter().any(|interval| !interval.checkpoint.chunks.is_empty());
                let outcome = self.intervals(intervals, stop).await;
                self.busy += begun.elapsed().mul_f64(share);
                outcome
            }
            Some(Item::Joined(..)) => {
                let Some(Item::Joined(offset, request)) = self.machine.pop() else { unreachable!("just looked") };
                self.writer.loads.joined(offset, &request);
                self.loaded.retain(|table, _| !request.tables.contains(table));
                if self.machine.is_known(offset) {
                    return Ok(());
                }
                let phase = loading(self.row.standing.phase, request.kind);
                let standing = Standing { join_offset: Some(offset), phase, ..self.standing() };
                self.write_row(standing).await
            }
            Some(Item::Loaded(_)) => {
                let Some(Item::Loaded(id)) = self.machine.pop() else { unreachable!("just looked") };
                self.writer.loads.loaded(id);
                self.end_of_load().await
            }
            Some(Item::Left(..)) => {
                let Some(Item::Left(offset, leave)) = self.machine.pop() else { unreachable!("just looked") };
                self.writer.loads.left(offset, &leave);
                self.end_of_load().await
            }
            Some(Item::Routed(..)) => {
                let Some(Item::Routed(offset, tables)) = self.machine.pop() else { unreachable!("just looked") };
                self.routed(offset, &tables).await
            }
            None => Ok(()),
        }
    }

    /// The reader's tables are these now.
    async fn routed(&mut self, offset: i64, tables: &[TableName]) -> Result<()> {
        match self.routes.follow(offset, tables) {
            News::Nothing => Ok(()),
            News::Came(table) => {
                Err(Error::retry_plain(format!("table {table} matches a pattern; a new start asks for it")))
            }
            News::Gone(gone) => {
                let names: Vec<String> = gone.iter().map(ToString::to_string).collect();
                tracing::info!(
                    sink = self.sink.name,
                    tables = names.join(", "),
                    "gone at the source; what is here stays"
                );
                let (config, base) = (self.config.clone(), self.machine.state().base);
                let targets = HashMap::new();
                let asked = request(&config, RequestKind::Leave, &self.sink.name, (&gone, &targets), base);
                self.writer.sink.meanwhile(asked).await.map(drop)
            }
        }
    }

    /// Once nothing is under load any more, the row says so.
    async fn end_of_load(&mut self) -> Result<()> {
        if !self.writer.loads.is_empty() || self.row.standing.phase == RowPhase::Streaming {
            return Ok(());
        }
        self.put_foreign_keys_back().await?;
        tracing::info!(sink = self.sink.name, "existing rows are in; from here on the sink equals the source");
        let standing = Standing { join_offset: None, phase: RowPhase::Streaming, ..self.standing() };
        self.write_row(standing).await
    }

    async fn intervals(&mut self, intervals: Vec<Interval>, stop: &CancellationToken) -> Result<()> {
        if !self.wanted(&intervals).iter().any(|interval| interval.concerns) {
            self.at = intervals.iter().fold(self.at, |at, interval| interval.at(at));
            return Ok(());
        }
        let mut items: Vec<Item> = intervals.into_iter().map(|interval| Item::Interval(Box::new(interval))).collect();
        let outcome = self.until_not_refused(&mut items, stop).await;
        match outcome {
            Ok(()) => {
                if items.iter().any(|item| matches!(item, Item::Loaded(_) | Item::Left(..))) {
                    self.end_of_load().await?;
                }
                for item in items {
                    if let Item::Routed(offset, tables) = item {
                        self.routed(offset, &tables).await?;
                    }
                }
                Ok(())
            }
            Err(_) if self.abandoned => self.abort().await,
            Err(failure) => {
                // The connection is given up anyway; in order, so that the server does not wait for it.
                let _ = self.abort().await;
                if let Some(table) = self.writer.moved_in.take() {
                    // It counts from the next start on.
                    let (config, base) = (self.config.clone(), self.machine.state().base);
                    let (tables, targets) = (BTreeSet::from([table]), HashMap::new());
                    let asked = request(&config, RequestKind::Resync, &self.sink.name, (&tables, &targets), base);
                    self.writer.sink.meanwhile(asked).await?;
                }
                Err(failure.into())
            }
        }
    }

    /// One transaction: as the net effect; where a unique constraint refuses it, with rows that hold unique values of others
    /// parked; where a foreign key refuses while tables are under load, with all that is still to come of them; where that is
    /// refused too, or another constraint refuses, each change by itself, in order. What is refused in the end is told of its row.
    async fn until_not_refused(&mut self, items: &mut Vec<Item>, stop: &CancellationToken) -> Result<(), Failure> {
        let loads = self.writer.loads.clone();
        let (mut handover, mut value) = (None, None);
        let outcome = loop {
            let outcome = self.transaction(items, stop).await;
            let mut ahead = None;
            match &outcome {
                Err(Failure::Ahead(asked)) => ahead = Some(asked.clone()),
                Err(Failure::Unique(_)) if !self.writer.parking => {
                    self.writer.begin_parking(self.machine.state());
                }
                Err(Failure::Unique(halt)) if !self.writer.strict => {
                    handover = Some(halt.clone()).filter(|halt| halt.code == Code::UniqueHandover);
                    self.writer.strict = true;
                }
                Err(Failure::Reference(_)) if !self.writer.whole && !self.writer.loads.is_empty() => {
                    self.writer.whole = true;
                }
                Err(Failure::Constraint(_) | Failure::Reference(_)) if !self.writer.strict => self.writer.strict = true,
                // In pieces, so that the halt can say which row it is.
                Err(Failure::Error(Error::Halt(halt))) if halt.code == Code::ValueRefused && self.writer.narrow() => {
                    value.get_or_insert_with(|| halt.clone());
                }
                Err(failure) => match Box::pin(self.parks(failure)).await {
                    // What was refused before may have been for this row.
                    Ok(true) => (handover, value) = (None, None),
                    Ok(false) => break outcome,
                    Err(full) => break Err(full),
                },
                Ok(()) => break outcome,
            }
            let (parking, strict) = (self.writer.parking, self.writer.strict);
            tracing::debug!(sink = self.sink.name, parking, strict, "a constraint refused the changes; another way");
            self.abort().await?;
            self.writer.loads = loads.clone();
            if let Some(ahead) = ahead {
                self.writer.sink.go_ahead(&ahead).await?;
            }
            self.fewer(items);
        };
        (self.writer.parking, self.writer.strict, self.writer.whole) = (false, false, false);
        self.writer.pieces.clear();
        if outcome.is_err() {
            self.writer.letters.give_up();
        }
        let outcome = match outcome {
            Err(failure) => Err(self.told_of_its_row(failure).await),
            done => done,
        };
        // That no value can stand in says more than that one by one was refused as well. And in pieces another refusal may come
        // first that is none as a whole.
        match (outcome, handover, value) {
            (Err(Failure::Unique(_)), Some(handover), _) => Err(Failure::Unique(handover)),
            (Err(Failure::Unique(_) | Failure::Constraint(_) | Failure::Reference(_)), _, Some(value)) => {
                Err(Failure::Error(Error::Halt(value)))
            }
            (outcome, ..) => outcome,
        }
    }

    /// What is tried in another way, row by row perhaps, is tried with no more than one transaction's worth: what was taken in
    /// because it came to few rows goes back.
    fn fewer(&mut self, items: &mut Vec<Item>) {
        let mut records = 0;
        let mut fits = |item: &Item| match item {
            Item::Interval(interval) => {
                records += interval.records();
                records <= TRANSACTION_RECORDS_MAX
            }
            _ => true,
        };
        let keep = items.iter().take_while(|item| fits(item)).count().max(1);
        for item in items.drain(keep..).rev() {
            self.machine.put_back(item);
        }
    }

    /// Records that are gathered into one transaction: no more rows than a second may have.
    fn gather_max(&self) -> u64 {
        self.sink.rows_per_second.map_or(self.gather_records, |most| self.gather_records.min(most as u64))
    }

    /// The intervals without the spans of tables of which nothing is there yet: their changes are not wanted, and they may be
    /// what can't be read. A chunk in an interval makes its table's span wanted.
    fn wanted(&self, intervals: &[Interval]) -> Vec<Interval> {
        let mut intervals = intervals.to_vec();
        if let Some(floor) = &self.floor {
            intervals.iter_mut().for_each(|interval| floor.narrow(interval));
        }
        if self.writer.loads.is_empty() {
            return intervals;
        }
        let mut begun: BTreeSet<TableName> = BTreeSet::new();
        for interval in &mut intervals {
            let chunks = interval.checkpoint.chunks.iter().filter(|chunk| chunk.is_for(&self.sink.name));
            begun.extend(chunks.map(|chunk| chunk.table.clone()));
            let relations = &self.machine.state().relations;
            let blank = |topic: &str| {
                let mut tables = relations.values().filter(|r| r.topic == topic).map(|r| &r.name);
                tables.all(|table| self.writer.loads.is_blank(table) && !begun.contains(table))
            };
            interval.checkpoint.spans.retain(|span| !blank(&span.topic));
            // A chunk for others goes with its rows: it is counted where they are read, and nowhere else.
            interval.checkpoint.chunks.retain(|chunk| {
                let topic = relations.get(&chunk.relation).map(|relation| relation.topic.as_str());
                chunk.is_for(&self.sink.name) || topic.is_none_or(|topic| !blank(topic))
            });
            interval.concerns &= !interval.checkpoint.spans.is_empty() || !interval.checkpoint.chunks.is_empty();
        }
        intervals
    }

    /// One interval more while changes come to few rows: what a transaction costs is its net effect, so that a backlog of
    /// changes to the same rows is worked off at the speed at which it is read.
    fn folding_on(&mut self, items: &[Item]) -> Result<Option<Item>> {
        let plain = |item: &Item| match item {
            Item::Interval(interval) => interval.records(),
            _ => TRANSACTION_CHANGES_MAX,
        };
        let changes: u64 = items.iter().map(plain).sum();
        let few = self.writer.unwritten().is_some_and(|rows| rows < self.gather_max() && 2 * rows <= changes);
        // What follows may be members'.
        let few = few && self.floor.is_none();
        let much =
            changes >= TRANSACTION_CHANGES_MAX || self.sink.bytes_per_second.is_some_and(|most| self.bytes >= most);
        if !few || much || !self.writer.loads.is_empty() {
            return Ok(None);
        }
        self.read_ahead()?;
        match self.machine.peek() {
            Some(Item::Interval(_)) => Ok(self.machine.pop()),
            _ => Ok(None),
        }
    }

    async fn abort(&mut self) -> Result<()> {
        self.writer.reset();
        self.ahead.discard();
        self.writer.sink.rollback().await
    }

    /// One transaction of the sink: progress, rows, commit. It takes in what follows until it can end.
    async fn transaction(&mut self, items: &mut Vec<Item>, stop: &CancellationToken) -> Result<(), Failure> {
        let first = self.after(items).1;
        self.bytes = 0;
        self.writer.begin_transaction();
        self.writer.sink.begin(&self.row, &first).await?;
        let (mut done, mut foreign) = (0, 0);
        loop {
            for (i, item) in items.iter().enumerate().skip(done) {
                self.order_ahead(&items[i..]);
                foreign += self.apply(item).await?;
            }
            done = items.len();
            if let Some(next) = self.folding_on(items)? {
                items.push(next);
                continue;
            }
            self.writer.flush().await?;
            if !self.writer.is_half_loaded().await? {
                break;
            }
            items.extend(self.more(stop).await?);
        }
        let (end, standing) = self.after(items);
        if standing != first {
            let moved = ProgressRow { standing: first, ..self.row.clone() };
            self.writer.sink.move_on(&moved, &standing).await?;
        }
        self.move_partitions(items).await?;
        self.writer.sink.commit().await?;
        let commits = items.iter().any(|item| matches!(item, Item::Interval(i) if i.checkpoint.commit_time > 0));
        self.committed(standing, end, (foreign, commits));
        Ok(())
    }

    /// Where the sink stands after these items.
    fn after(&self, items: &[Item]) -> (At, Standing) {
        let (mut at, mut join) = (self.at, self.row.standing.join_offset);
        for item in items {
            match item {
                Item::Interval(interval) => at = interval.at(at),
                Item::Joined(offset, _) => join = join.max(Some(*offset)),
                Item::Loaded(_) | Item::Left(..) | Item::Routed(..) => {}
            }
        }
        (at, Standing { join_offset: join, ..standing(&self.row.standing, at) })
    }

    /// Applies an item within the open transaction; gives the number of foreign records.
    async fn apply(&mut self, item: &Item) -> Result<u64, Failure> {
        let interval = match item {
            Item::Interval(interval) => self.wanted(std::slice::from_ref(interval)).remove(0),
            Item::Joined(offset, request) => {
                self.writer.loads.joined(*offset, request);
                return Ok(0);
            }
            Item::Loaded(request) => {
                self.writer.loads.loaded(*request);
                return Ok(0);
            }
            Item::Left(offset, request) => {
                self.writer.loads.left(*offset, request);
                return Ok(0);
            }
            // Once the transaction has ended.
            Item::Routed(..) => return Ok(0),
        };
        if !interval.concerns {
            return Ok(0);
        }
        let state = self.machine.state();
        self.ahead.begin(&interval, state);
        self.writer.begin_interval(&interval);
        let mut records = 0u32;
        loop {
            let next = match self.ahead.ready() {
                Some(record) => Next::Record(record),
                None => self.writer.sink.meanwhile(self.ahead.take()).await?,
            };
            match next {
                // Of a chunk for others, of which a part is in.
                Next::Record(record)
                    if record.header.kind == Kind::ChunkRow && interval.checkpoint.chunks.is_empty() => {}
                Next::Record(record) => {
                    self.bytes += record.bytes;
                    self.writer.record(record, state).await?;
                }
                Next::Waiting(what) => {
                    self.reporter.update(|s| (s.state, s.waiting_for) = (status::State::Retrying, Some(what)));
                    continue;
                }
                Next::End { foreign } => {
                    self.writer.end_interval(state).await?;
                    return Ok(foreign);
                }
            }
            records += 1;
            if records.is_multiple_of(LEASE_RECORDS) {
                self.writer.sink.keep_lease().await?;
            }
        }
    }

    /// Lets the records of what is likely to come next be fetched while the sink writes: of these items, and of what the ledger
    /// holds behind them.
    fn order_ahead(&mut self, items: &[Item]) {
        let (mut room, mut next) = (self.ahead.room(), Vec::new());
        for item in items.iter().chain(self.machine.items()) {
            // Anything else may change what is wanted.
            let Item::Interval(interval) = item else { break };
            if room == 0 {
                break;
            }
            if !self.ahead.has_ordered(interval.offset) {
                room = room.saturating_sub(interval.records());
                next.extend(self.wanted(std::slice::from_ref(interval)));
            }
        }
        for interval in next.iter().filter(|interval| interval.concerns) {
            self.ahead.order(interval, self.machine.state());
        }
    }

    /// What follows, waited for by a transaction that can't end yet.
    async fn more(&mut self, stop: &CancellationToken) -> Result<Vec<Item>> {
        loop {
            if stop.is_cancelled() {
                self.abandoned = true;
                return Err(Error::retry_plain("stopped in the middle of a load"));
            }
            self.read_ahead()?;
            if let Some(Item::Interval(_)) = self.machine.peek() {
                let intervals = self.machine.gather(self.gather_max()).into_iter();
                return Ok(intervals.map(|interval| Item::Interval(Box::new(interval))).collect());
            }
            if let Some(item) = self.machine.pop() {
                return Ok(vec![item]);
            }
            self.writer.sink.keep_lease().await?;
            self.report(false);
            self.reporter.update(|s| {
                s.waiting_for = Some("the rest of tables whose rows reference each other".to_owned());
            });
            self.wait(stop).await?;
        }
    }

    /// Takes in what there is of the ledger.
    fn read_ahead(&mut self) -> Result<()> {
        // Behind the last item may stand entries that make none.
        self.held.applied(if self.machine.waiting() == 0 { i64::MAX } else { self.at.offset });
        while self.machine.waiting() < ITEMS_MAX
            && !self.held.is_full()
            && let Some(record) = self.tail.try_recv()?
        {
            self.held.read(record.offset, record.value.as_deref().map_or(0, <[u8]>::len));
            self.entry(record.offset, record.value.as_deref())?;
        }
        Ok(())
    }

    fn committed(&mut self, standing: Standing, end: At, (foreign, committed): (u64, bool)) {
        self.row.standing = standing;
        self.at = end;
        self.partitions_moved();
        self.writer.letters.committed();
        self.gather_records = (self.gather_records * 2).min(TRANSACTION_RECORDS_MAX);
        self.wrote = Instant::now();
        let counts: Counts = std::mem::take(&mut self.writer.counts);
        let mut snapshot = 0;
        for (table, rows) in std::mem::take(&mut self.writer.loaded) {
            snapshot += rows;
            *self.loaded.entry(table).or_default() += rows;
        }
        let rows = count(&self.metrics, counts, snapshot, foreign);
        self.rates.spend(usize::try_from(rows).unwrap_or(usize::MAX), self.bytes, self.begun.elapsed());
        if committed {
            let now = jiff::Timestamp::now().as_microsecond();
            self.metrics
                .commit_to_visible(Duration::from_micros(u64::try_from(now - end.commit_time).unwrap_or_default()));
        }
    }

    /// The standing at `self.at`.
    fn standing(&self) -> Standing {
        standing(&self.row.standing, self.at)
    }

    /// Moves the row alone.
    async fn write_row(&mut self, standing: Standing) -> Result<()> {
        let moved = async {
            self.writer.sink.begin(&self.row, &standing).await?;
            self.writer.sink.commit().await
        }
        .await;
        moved.map_err(Error::from)?;
        self.row.standing = standing;
        self.wrote = Instant::now();
        Ok(())
    }

    /// Writes progress that no rows went with, now and then.
    async fn quiet(&mut self) -> Result<()> {
        let ahead = self.at.offset != self.row.standing.ledger_offset;
        if ahead && self.wrote.elapsed() >= QUIET_INTERVAL {
            return self.write_row(self.standing()).await;
        }
        Ok(())
    }

    /// The last word of a stop in order.
    async fn finish(&mut self) -> Result<()> {
        if self.at.offset != self.row.standing.ledger_offset {
            self.write_row(self.standing()).await?;
        }
        self.told = None;
        self.tell()
    }

    /// Says in Kafka from which entry on this sink still needs the ledger, now and then, and how far it is, at once where
    /// existing rows were on the way. What is sent can get lost, and while rows are on the way somebody waits for it.
    fn tell(&mut self) -> Result<()> {
        let standing = &self.row.standing;
        let next = standing.join_offset.unwrap_or(i64::MAX).min(standing.ledger_offset) + 1;
        let loading = !self.writer.loads.is_empty();
        let due = self.told.is_none_or(|(told, at)| (told != next || loading) && at.elapsed() >= TELL_INTERVAL);
        if due || std::mem::take(&mut self.rows_passed) {
            let busy_us = u64::try_from(self.busy.as_micros()).unwrap_or(u64::MAX);
            self.teller.tell(next, Applied { applied: self.at.offset, busy_us })?;
            self.told = Some((next, Instant::now()));
        }
        Ok(())
    }

    /// `owes`: what there is to apply waits for its turn.
    fn report(&mut self, owes: bool) {
        let newest = self.machine.end();
        let now = Instant::now();
        // Without a broker nothing is known of what there is to apply. A client that has just begun knows of no trouble.
        let trouble = self.tail.last_error().filter(|_| self.tail.health().brokers_up() == 0);
        let away = trouble.map(|trouble| format!("Kafka: {trouble}"));
        if self.machine.waiting() == 0 && away.is_none() {
            self.level = now;
        }
        let lag_bytes = newest.closed.bytes_since(self.at.closed);
        let lag_seconds = now.duration_since(self.level).as_secs_f64();
        let loading = !self.writer.loads.is_empty();
        let tables = self.config.tables.iter().filter(|table| table.sinks.iter().any(|s| s.sink == self.sink.name));
        let tables = tables.filter(|table| !self.routes.is_gone(&table.name));
        let tables = tables.map(|table| {
            let loads = &self.writer.loads;
            let phase = match loads.is_loading(&table.name) {
                true if loads.is_reread(&table.name) => Phase::Reread,
                true => Phase::Snapshot,
                false => Phase::Streaming,
            };
            let rows_done = self.loaded.get(&table.name).copied().filter(|_| phase != Phase::Streaming);
            let whole = !self.parked.held.iter().any(|held| held.of.table == table.name);
            let equal = whole && !self.writer.is_partial(&table.name, self.machine.state());
            let rows_per_second = self.meters.rate(&table.name, rows_done, now);
            (table.name.clone(), TableStatus { rows_done, rows_per_second, equal, ..TableStatus::new(phase) })
        });
        let tables = tables.collect();
        let (at, name) = (self.at, &self.sink.name);
        let (rows, records) = self.parked.counts();
        let turn =
            owes.then(|| format!("its turn: at most sinks.{name}.rows_per_second or bytes_per_second are written"));
        self.reporter.update(|s| {
            s.state = match away {
                Some(_) => status::State::Retrying,
                None if loading => status::State::Snapshot,
                None => status::State::Streaming,
            };
            s.waiting_for = away.or(turn);
            s.position = Some(at.position.lsn);
            s.closed_lsn = Some(at.closed);
            s.lag_bytes = Some(lag_bytes);
            s.lag_seconds = Some(lag_seconds);
            s.tables = tables;
            s.parked_rows = rows;
            s.parked_records = records;
        });
    }
}

/// Counts what a transaction wrote; gives its rows.
pub(super) fn count(metrics: &SinkMetrics, counts: Counts, snapshot: u64, foreign: u64) -> u64 {
    metrics.rows(RowOp::Insert, counts.inserted);
    metrics.rows(RowOp::Update, counts.updated + counts.moved);
    metrics.rows(RowOp::Delete, counts.deleted);
    metrics.rows(RowOp::Truncate, counts.truncated);
    metrics.rows(RowOp::Snapshot, snapshot);
    let rows = counts.inserted + counts.updated + counts.moved + counts.deleted + snapshot;
    metrics.transaction(rows);
    metrics.missing_rows(counts.missing);
    metrics.foreign_records(foreign);
    metrics.overwritten(counts.overwritten);
    metrics.parked(counts.parked);
    rows
}

/// The phase of a sink that was asked to load: one that was whole reads again, one that never was goes on with its first copy.
fn loading(before: RowPhase, kind: RequestKind) -> RowPhase {
    match (before, kind) {
        (RowPhase::Streaming | RowPhase::Reread, kind) if kind.is_resync() => RowPhase::Reread,
        _ => RowPhase::Snapshot,
    }
}
