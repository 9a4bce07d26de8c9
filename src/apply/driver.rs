//! A sink's loop: one worker, one connection to the sink, one consumer of the data topics, one of the ledger.
//!
//! After every connect the progress row is read again and the walk starts from it; nothing is remembered across connections.
//! The worker runs on a thread of its own, because reading a partition blocks.

mod foreign_keys;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::apply::machine::{At, Interval, Item, Machine};
use crate::apply::merge::{self, Merge, Patience};
use crate::apply::routes::{News, Routes, has_patterns};
use crate::apply::writer::Writer;
use crate::config::{self, Config};
use crate::error::{Code, Error, Result};
use crate::http::metrics::{RowOp, SinkMetrics};
use crate::kafka::consumer::{Spans, Tail};
use crate::kafka::groups;
use crate::kafka::topics;
use crate::ledger::entry::{Assembler, Body, Entry, Join, Request, RequestKind};
use crate::ledger::state::State;
use crate::ledger::taken::{Otherwise, Taken};
use crate::ledger::topic::{self, APPEND_TIMEOUT, Appender, Reading};
use crate::lsn::Position;
use crate::relation::TableName;
use crate::sink::lease::{Lease, watch_link};
use crate::sink::postgres::PostgresSink;
use crate::sink::progress::{Phase as RowPhase, ProgressRow, Standing, TakeOver};
use crate::sink::{Counts, Failure};
use crate::status::{self, Phase, SinkReporter, TableStatus};

/// This process among the workers of its sinks: it takes over from itself at once.
static WORKER: LazyLock<Uuid> = LazyLock::new(Uuid::new_v4);

/// Intervals are gathered into one transaction up to this many records: beyond it the cost of a commit is nothing, and the
/// rows are held in memory.
const TRANSACTION_RECORDS_MAX: u64 = 10_000;

/// The first transactions after a start are smaller, so that a worker which is killed again and again gets on all the same.
const TRANSACTION_RECORDS_FIRST: u64 = 1_000;

/// Entries of the ledger read ahead of what is applied.
const ITEMS_MAX: usize = 1024;

/// An interval with nothing for this sink moves its progress at most this often.
const QUIET_INTERVAL: Duration = Duration::from_secs(1);

/// The loop looks around at least this often.
const TICK: Duration = Duration::from_millis(100);

/// How often a standby looks whether the owner is gone.
const STANDBY_INTERVAL: Duration = Duration::from_millis(500);

/// What may be fetched ahead of what is applied, all partitions together.
const PREFETCH_BYTES: usize = 16 * 1024 * 1024;

/// How long a stop may go on applying what the ledger already holds.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(4);

/// How often a sink that is earlier than the source role looks for the ledger.
const LEDGER_INTERVAL: Duration = Duration::from_millis(250);

/// How often the sink says in Kafka how far it is: for trimming, which counts in days, and for lag tools.
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
    let started = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        worker = Worker::start(config, &name, &reporter, metrics, &stop) => worker?,
    };
    let Some(mut worker) = started else { return Ok(()) };
    tracing::info!(sink = name, position = %worker.row.standing.position, "applying");
    let (config, heard) = (worker.config.clone(), worker.writer.sink.heard());
    let (sink, owner) = (worker.sink.clone(), worker.row.owner.clone());
    tokio::select! {
        outcome = worker.run(&stop) => outcome.map_err(|error| for_sink(error, &name)),
        // The worker waits on a dead connection; only dropping it ends that.
        error = watch_link(&sink, &config.name, owner, heard) => Err(error),
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

struct Worker {
    /// With every table by its name.
    config: Arc<Config>,
    routes: Routes,
    sink: config::Sink,
    machine: Machine,
    assembler: Assembler,
    tail: Tail,
    spans: Spans,
    writer: Writer,
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
    /// Records gathered into one transaction at most.
    gather_records: u64,
    /// Stopped within a transaction that could not end yet: what it took in is not applied.
    abandoned: bool,
    teller: groups::Teller,
    told: Option<(i64, Instant)>,
}

/// Where the ledger is and for which source it is written.
struct Ledger {
    id: Uuid,
    state: State,
}

impl Worker {
    /// `None`: stopped while another worker owned the sink.
    async fn start(
        config: Arc<Config>,
        name: &str,
        reporter: &SinkReporter,
        metrics: SinkMetrics,
        stop: &CancellationToken,
    ) -> Result<Option<Worker>> {
        let sink = config.sinks.iter().find(|sink| sink.name == name).expect("roles name configured sinks").clone();
        let mut database = PostgresSink::connect(&sink, &config.name, *WORKER).await?;
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
        let mut worker = Worker::open(routes, sink, database, tables, row, (metrics, reporter.clone())).await?;
        worker.writer.prepare(&state).await?;
        worker.catch_up().await?;
        worker.look_ahead(&state).await?;
        worker.set_foreign_keys_aside().await?;
        worker.end_of_load().await?;
        Ok(Some(worker))
    }

    async fn open(
        routes: Routes,
        sink: config::Sink,
        mut database: PostgresSink,
        tables: HashMap<TableName, config::SinkTable>,
        row: ProgressRow,
        (metrics, reporter): (SinkMetrics, SinkReporter),
    ) -> Result<Worker> {
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
        let spans = Spans::open(&config.kafka, PREFETCH_BYTES)?;
        let writer = Writer::new(database, &sink, tables);
        let teller =
            groups::Teller::open(&config.kafka, &groups::of_sink(&config.name, &sink.name), &config.kafka.ledger)?;
        let (assembler, now) = (Assembler::default(), Instant::now());
        Ok(Worker {
            config,
            routes,
            sink,
            machine,
            assembler,
            tail,
            spans,
            writer,
            metrics,
            reporter,
            row,
            at,
            wrote: now,
            level: now,
            loaded: HashMap::new(),
            gather_records: TRANSACTION_RECORDS_FIRST,
            abandoned: false,
            teller,
            told: None,
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
            if self.machine.waiting() == 0 || late {
                self.quiet().await?;
                self.report();
                if stopped.is_some() {
                    if self.machine.waiting() > 0 {
                        tracing::warn!(
                            items = self.machine.waiting(),
                            "stopping with a backlog; the next start goes on with it"
                        );
                    }
                    return self.finish().await;
                }
                self.wait(stop).await?;
            } else {
                self.step(stop).await?;
                if self.abandoned {
                    return Ok(());
                }
                self.report();
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
                let intervals = self.gather();
                self.intervals(intervals, stop).await
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

    /// Intervals for one transaction.
    fn gather(&mut self) -> Vec<Interval> {
        let mut gathered: Vec<Interval> = Vec::new();
        let mut records = 0;
        while let Some(Item::Interval(next)) = self.machine.peek() {
            records += next.records();
            if !gathered.is_empty() && records > self.gather_records {
                break;
            }
            let Some(Item::Interval(next)) = self.machine.pop() else { unreachable!("just looked") };
            gathered.push(*next);
        }
        gathered
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
    /// parked; where that is refused too, or another constraint refuses, each change by itself, in order.
    async fn until_not_refused(&mut self, items: &mut Vec<Item>, stop: &CancellationToken) -> Result<(), Failure> {
        let loads = self.writer.loads.clone();
        let mut handover = None;
        let outcome = loop {
            let outcome = self.transaction(items, stop).await;
            let mut ahead = None;
            match &outcome {
                Err(Failure::Ahead(asked)) => ahead = Some(asked.clone()),
                Err(Failure::Unique(_)) if !self.writer.parking => self.writer.parking = true,
                Err(Failure::Unique(halt)) if !self.writer.strict => {
                    handover = Some(halt.clone()).filter(|halt| halt.code == Code::UniqueHandover);
                    self.writer.strict = true;
                }
                Err(Failure::Constraint(_)) if !self.writer.strict => self.writer.strict = true,
                _ => break outcome,
            }
            let (parking, strict) = (self.writer.parking, self.writer.strict);
            tracing::debug!(sink = self.sink.name, parking, strict, "a constraint refused the changes; another way");
            self.abort().await?;
            self.writer.loads = loads.clone();
            if let Some(ahead) = ahead {
                self.writer.sink.go_ahead(&ahead).await?;
            }
        };
        (self.writer.parking, self.writer.strict) = (false, false);
        // That no value can stand in says more than that one by one was refused as well.
        match (outcome, handover) {
            (Err(Failure::Unique(_)), Some(handover)) => Err(Failure::Unique(handover)),
            (outcome, _) => outcome,
        }
    }

    /// The intervals without the spans of tables of which nothing is there yet: their changes are not wanted, and they may be
    /// what can't be read. A chunk in an interval makes its table's span wanted.
    fn wanted(&self, intervals: &[Interval]) -> Vec<Interval> {
        let mut intervals = intervals.to_vec();
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

    async fn abort(&mut self) -> Result<()> {
        self.writer.reset();
        self.writer.sink.rollback().await
    }

    /// One transaction of the sink: progress, rows, commit. It takes in what follows until it can end.
    async fn transaction(&mut self, items: &mut Vec<Item>, stop: &CancellationToken) -> Result<(), Failure> {
        let first = self.after(items).1;
        self.writer.sink.begin(&self.row, &first).await?;
        let (mut done, mut foreign) = (0, 0);
        loop {
            for item in &items[done..] {
                foreign += self.apply(item, stop).await?;
            }
            self.writer.flush().await?;
            done = items.len();
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
    async fn apply(&mut self, item: &Item, stop: &CancellationToken) -> Result<u64, Failure> {
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
        let (wait, stop, reporter) = (self.sink.span_wait, stop.clone(), self.reporter.clone());
        let parts = merge::ready(&mut self.spans, &interval.checkpoint)?;
        let mut merge = Merge::new(&self.spans, &parts, &interval.checkpoint, Patience { wait, stop, reporter });
        let state = self.machine.state();
        self.writer.begin_interval(&interval);
        let mut records = 0u32;
        while let Some(head) = merge.take(async || self.writer.sink.keep_lease().await).await? {
            self.writer.record(&head, state).await?;
            records += 1;
            if records.is_multiple_of(LEASE_RECORDS) {
                self.writer.sink.keep_lease().await?;
            }
        }
        self.writer.end_interval(state).await?;
        Ok(merge.foreign)
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
                let intervals = self.gather().into_iter();
                return Ok(intervals.map(|interval| Item::Interval(Box::new(interval))).collect());
            }
            if let Some(item) = self.machine.pop() {
                return Ok(vec![item]);
            }
            self.writer.sink.keep_lease().await?;
            self.report();
            self.reporter.update(|s| {
                s.waiting_for = Some("the rest of tables that reference each other in a circle".to_owned());
            });
            self.wait(stop).await?;
        }
    }

    /// Takes in what there is of the ledger.
    fn read_ahead(&mut self) -> Result<()> {
        while self.machine.waiting() < ITEMS_MAX
            && let Some(record) = self.tail.try_recv()?
        {
            self.entry(record.offset, record.value.as_deref())?;
        }
        Ok(())
    }

    fn committed(&mut self, standing: Standing, end: At, (foreign, committed): (u64, bool)) {
        self.row.standing = standing;
        self.at = end;
        self.gather_records = (self.gather_records * 2).min(TRANSACTION_RECORDS_MAX);
        self.wrote = Instant::now();
        let counts: Counts = std::mem::take(&mut self.writer.counts);
        let mut snapshot = 0;
        for (table, rows) in std::mem::take(&mut self.writer.loaded) {
            snapshot += rows;
            *self.loaded.entry(table).or_default() += rows;
        }
        self.metrics.rows(RowOp::Insert, counts.inserted);
        self.metrics.rows(RowOp::Update, counts.updated + counts.moved);
        self.metrics.rows(RowOp::Delete, counts.deleted);
        self.metrics.rows(RowOp::Truncate, counts.truncated);
        self.metrics.rows(RowOp::Snapshot, snapshot);
        self.metrics.transaction(counts.inserted + counts.updated + counts.moved + counts.deleted + snapshot);
        self.metrics.missing_rows(counts.missing);
        self.metrics.foreign_records(foreign);
        self.metrics.overwritten(counts.overwritten);
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

    /// Says in Kafka from which entry on this sink still needs the ledger, now and then.
    fn tell(&mut self) -> Result<()> {
        let standing = &self.row.standing;
        let next = standing.join_offset.unwrap_or(i64::MAX).min(standing.ledger_offset) + 1;
        let due = self.told.is_none_or(|(told, at)| told != next && at.elapsed() >= TELL_INTERVAL);
        if due {
            self.teller.tell(next)?;
            self.told = Some((next, Instant::now()));
        }
        Ok(())
    }

    fn report(&mut self) {
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
            let equal = !self.writer.is_partial(&table.name, self.machine.state());
            (table.name.clone(), TableStatus { rows_done, equal, ..TableStatus::new(phase) })
        });
        let tables = tables.collect();
        let at = self.at;
        self.reporter.update(|s| {
            s.state = match away {
                Some(_) => status::State::Retrying,
                None if loading => status::State::Snapshot,
                None => status::State::Streaming,
            };
            s.waiting_for = away;
            s.position = Some(at.position.lsn);
            s.closed_lsn = Some(at.closed);
            s.lag_bytes = Some(lag_bytes);
            s.lag_seconds = Some(lag_seconds);
            s.tables = tables;
        });
    }
}

fn at(standing: &Standing) -> At {
    At {
        offset: standing.ledger_offset,
        epoch: standing.reader,
        position: standing.position,
        closed: standing.closed_lsn,
        commit_time: standing.commit_time_us.unwrap_or_default(),
    }
}

fn standing(before: &Standing, at: At) -> Standing {
    Standing {
        ledger_offset: at.offset,
        reader: at.epoch,
        position: at.position,
        closed_lsn: at.closed,
        commit_time_us: (at.commit_time > 0).then_some(at.commit_time),
        ..before.clone()
    }
}

/// The phase of a sink that was asked to load: one that was whole reads again, one that never was goes on with its first copy.
fn loading(before: RowPhase, kind: RequestKind) -> RowPhase {
    match (before, kind) {
        (RowPhase::Streaming | RowPhase::Reread, kind) if kind.is_resync() => RowPhase::Reread,
        _ => RowPhase::Snapshot,
    }
}

/// Tables that the sink takes.
fn taken(config: &Config, sink: &str) -> HashMap<TableName, config::SinkTable> {
    let of = |table: &config::Table| {
        let target = table.sinks.iter().find(|target| target.sink == sink)?;
        Some((table.name.clone(), target.clone()))
    };
    config.tables.iter().filter_map(of).collect()
}

/// The ledger as it is now; it is the reader's to make. A sink that has followed another one waits for a restart that is asked
/// for: only its entry tells whether the sink may go on here.
async fn read_ledger(
    config: &Arc<Config>,
    sink: &str,
    reporter: &SinkReporter,
    followed: Option<Uuid>,
) -> Result<Ledger> {
    let topic = &config.kafka.ledger;
    loop {
        if let Some(facts) = topics::describe(&config.kafka, &[topic.as_str()]).await?.remove(0) {
            let shared = config.clone();
            let state = topic::beside(move || Reading::open(&shared.kafka)?.fold_all()).await?;
            let another = followed.is_some_and(|id| id != facts.id);
            let begun = state.source.is_some() && !(another && state.asked.is_some());
            // What patterns come to is the reader's to say.
            if begun && (state.routed.is_some() || !has_patterns(config, sink)) {
                return Ok(Ledger { id: facts.id, state });
            }
        }
        let what = format!("the ledger {topic}, which the source role begins");
        reporter.update(|s| s.waiting_for = Some(what));
        tokio::time::sleep(LEDGER_INTERVAL).await;
    }
}

/// For a sink without a row: the ledger once there is a table for it.
async fn first_tables(config: &Arc<Config>, sink: &str, reporter: &SinkReporter) -> Result<(Ledger, Routes)> {
    loop {
        let ledger = read_ledger(config, sink, reporter, None).await?;
        let routes = Routes::new(config, sink, &ledger.state, -1);
        if !taken(routes.config(), sink).is_empty() {
            return Ok((ledger, routes));
        }
        reporter.update(|s| s.waiting_for = Some("a table that its patterns match".to_owned()));
        tokio::time::sleep(LEDGER_INTERVAL).await;
    }
}

/// For `lockstep check`: whether a worker that finds this row could go on from it.
pub async fn check_progress(config: &Arc<Config>, sink: &str, row: &ProgressRow, id: Uuid, state: State) -> Result<()> {
    let ledger = Ledger { id, state };
    if standing_after_restart(row, &ledger).is_some() {
        return Ok(());
    }
    row.check_identity(&identity(&ledger))?;
    let (standing, shared) = (row.standing.clone(), config.clone());
    let at = at(&standing);
    let mut machine = Machine::new(&config.name, sink, BTreeSet::new(), at, -1);
    if at.offset < 0 {
        return Ok(());
    }
    let held = topic::beside(move || {
        let mut reading = Reading::open(&shared.kafka)?;
        reading.fold_start(standing.join_offset.map_or(at.offset, |join| join.min(at.offset)))?;
        let high = reading.bounds()?.1;
        Ok(reading.fold(high.min(at.offset + 1))?.0)
    });
    machine.begin_with(held.await?);
    machine.check_row()
}

/// What the row must agree with.
fn identity(ledger: &Ledger) -> Standing {
    let source = ledger.state.source.as_ref().expect("a ledger without a source is not read");
    Standing {
        ledger_topic_id: ledger.id,
        source_system_id: source.system_id,
        timeline: i32::try_from(source.timeline).unwrap_or(i32::MAX),
        ..standing(&blank(ledger.id), At::end_of(&ledger.state))
    }
}

fn blank(ledger_topic_id: Uuid) -> Standing {
    Standing {
        ledger_topic_id,
        source_system_id: 0,
        timeline: 0,
        ledger_offset: -1,
        join_offset: None,
        reader: At::ORIGIN.epoch,
        position: At::ORIGIN.position,
        closed_lsn: At::ORIGIN.closed,
        commit_time_us: None,
        phase: RowPhase::Snapshot,
    }
}

/// A sink without a row joins: its row begins at the last valid checkpoint before its request.
async fn join(
    config: &Arc<Config>,
    sink: &str,
    targets: &HashMap<TableName, config::SinkTable>,
    ledger: &Ledger,
) -> Result<Standing> {
    let tables: BTreeSet<TableName> = targets.keys().cloned().collect();
    // One that was asked for and could not be written down serves as well.
    let asked = |request: &Request| {
        request.sink == sink && request.tables.iter().collect::<BTreeSet<_>>() == tables.iter().collect()
    };
    let open = ledger.state.open_joins().filter(|join| asked(&join.request)).last().map(|join| join.offset);
    let offset = match open {
        Some(offset) => offset,
        None => request(config, RequestKind::Join, sink, (&tables, targets), ledger.state.base).await?,
    };
    let state = fold_through(config, offset).await?;
    let at = At::end_of(&state);
    Ok(Standing { join_offset: Some(offset), phase: RowPhase::Snapshot, ..standing(&identity(ledger), at) })
}

/// The ledger's state up to and with the entry at `offset`.
async fn fold_through(config: &Arc<Config>, offset: i64) -> Result<State> {
    let shared = config.clone();
    topic::beside(move || Ok(Reading::open(&shared.kafka)?.fold(offset + 1)?.0)).await
}

/// Writes a request for tables of the sink, which takes them as `targets` say; gives its offset.
async fn request(
    config: &Config,
    kind: RequestKind,
    sink: &str,
    (tables, targets): (&BTreeSet<TableName>, &HashMap<TableName, config::SinkTable>),
    base: Option<i64>,
) -> Result<i64> {
    let mut appender = Appender::open(&config.kafka)?;
    appender.base = base;
    let request = Request {
        id: Uuid::new_v4(),
        kind,
        sink: sink.to_owned(),
        tables: tables.iter().cloned().collect(),
        asked_by: format!("sink:{sink}"),
        old_ledger: None,
        taken: match kind {
            RequestKind::Leave => vec![],
            _ => tables.iter().filter_map(|table| Some(Taken::of(table, targets.get(table)?))).collect(),
        },
        within: None,
    };
    let offset = appender.append_and_wait(Body::Request(request), APPEND_TIMEOUT).await?;
    appender.close(Duration::from_secs(1));
    Ok(offset)
}

/// A restart is the one legal jump: a row from before it goes on there, with every table still to be loaded.
async fn go_on_after_restart(database: &mut PostgresSink, row: ProgressRow, ledger: &Ledger) -> Result<ProgressRow> {
    let Some(to) = standing_after_restart(&row, ledger) else { return Ok(row) };
    tracing::info!(entry = to.ledger_offset, "the source was begun anew: every table is loaded again");
    database.begin(&row, &to).await?;
    database.commit().await?;
    Ok(ProgressRow { standing: to, ..row })
}

/// Where a row from before the last restart goes on; `None` for one that is not.
fn standing_after_restart(row: &ProgressRow, ledger: &Ledger) -> Option<Standing> {
    let restarted = ledger.state.restarted.as_ref()?;
    let at = &row.standing;
    let before = match at.ledger_topic_id == ledger.id {
        // Where the ledger lost its end, offsets alone do not tell.
        true => at.ledger_offset < restarted.offset || at.reader.offset < restarted.epoch.offset,
        false => restarted.old_ledger == Some(at.ledger_topic_id),
    };
    before.then(|| Standing {
        ledger_offset: restarted.offset,
        reader: restarted.epoch,
        position: Position::ORIGIN,
        closed_lsn: restarted.new,
        commit_time_us: None,
        ..identity(ledger)
    })
}

/// Waits while another worker that is alive owns the sink: a hot standby.
async fn take_over(
    database: &mut PostgresSink,
    first: &Standing,
    mut lease: Lease,
    reporter: &SinkReporter,
    stop: &CancellationToken,
) -> Result<Option<ProgressRow>> {
    loop {
        match database.take_over(first).await? {
            TakeOver::Mine(row) => return Ok(Some(*row)),
            TakeOver::Standby { owner, activity } => {
                if lease.is_over(&owner, activity, Instant::now()) {
                    tracing::warn!(worker = %owner.worker_id, "the worker that owns the sink is silent, taking over");
                    database.evict(&owner).await?;
                }
                reporter.update(|s| {
                    s.state = status::State::Standby;
                    s.waiting_for =
                        Some(format!("worker {} owns the sink (backend {})", owner.worker_id, owner.backend_pid));
                });
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(lease.look_interval(STANDBY_INTERVAL)) => {}
        }
    }
}
