//! Existing rows: the requests of the ledger become jobs of the loader, its questions go to the readers of chunks, and chunks
//! enter the stream at their messages.
//!
//! When a chunk is right is decided elsewhere (`snapshot`), as is which requests a job answers (`requests`).

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Core;
use crate::capture::answerable::{TOPICS, is_answerable};
use crate::capture::chunks::{Answer, Command, Watched};
use crate::capture::pace::{ChunkSize, Limits, Pace};
use crate::capture::requests::{answerable, plan, resumed, unasked, unwatched};
use crate::capture::snapshot::{Action, Extent, Job, Loader, Ready};
use crate::capture::start;
use crate::capture::withheld;
use crate::codec::{self, Snapshot};
use crate::config::{Snapshot as Mode, SourceSnapshot, Table};
use crate::error::Result;
use crate::ledger::entry::{Body, Chunk, Done, Forget, Request, RequestKind};
use crate::lsn::Lsn;
use crate::postgres::look;
use crate::postgres::snapshot::PgSnapshot;
use crate::relation::TableName;
use crate::value::RowBuf;

/// Requests that come close together are answered by one load: sinks that start at the same time share its chunks.
const GATHER_JOINS: Duration = Duration::from_millis(300);

/// The loader of a reader and its pace.
pub(super) fn loader(snapshot: &SourceSnapshot) -> (Loader<PgSnapshot>, Pace) {
    // Of what a second allows nobody reads more at once.
    let second = |limit: usize, rate: Option<usize>| rate.map_or(limit, |rate| rate.min(limit));
    let rows_max = second(snapshot.chunk_rows, snapshot.rows_per_second);
    let bytes_max = second(snapshot.chunk_bytes, snapshot.bytes_per_second);
    let limits = Limits {
        rows_per_second: snapshot.rows_per_second,
        bytes_per_second: snapshot.bytes_per_second,
        lag_bytes_max: snapshot.lag_bytes_max as u64,
    };
    // What several read at once would be known to be too much only afterwards.
    let is_limited = snapshot.rows_per_second.or(snapshot.bytes_per_second).is_some();
    let connections = if is_limited { 1 } else { snapshot.connections };
    (Loader::new(connections, ChunkSize::new(rows_max, bytes_max, snapshot.chunk_time)), Pace::new(&limits))
}

impl Core {
    /// Tables that no sink takes are loaded for their topics alone, once.
    pub(super) fn ask_for_topics(&mut self) -> Result<()> {
        let known = self.state.joined(TOPICS);
        let wanted = |table: &&Table| {
            let asked = known.contains(&table.name) || self.departures.has(&table.name);
            table.sinks.is_empty() && table.snapshot != Mode::Never && !asked
        };
        let tables: Vec<TableName> = self.config.tables.iter().filter(wanted).map(|table| table.name.clone()).collect();
        if tables.is_empty() {
            return Ok(());
        }
        let asked_by = start::application_name(&self.config);
        let request = Request::new(Uuid::new_v4(), RequestKind::Load, TOPICS, tables, asked_by);
        self.append(Body::Request(request))?;
        Ok(())
    }

    /// Goes on where the reader before this one was, before anything is streamed.
    pub(super) fn go_on_loading(&mut self) -> Result<()> {
        self.forgets.begin(&self.state.again);
        let goes_on = answerable(|request| self.answers(request), &self.state).any(|join| !join.loaded.is_empty());
        let job = goes_on.then(|| {
            let sinks_of = |table: &TableName| self.config.sinks_of(table);
            let job = plan(|request| self.answers(request), sinks_of, &self.order, &self.state);
            Job { resumed: resumed(&job, &self.state), ..job }
        });
        // Nobody watches the rest.
        let at = self.machine.position();
        for (table, request) in unwatched(job.as_ref(), &self.state) {
            let (table, request) = (Some(table), Some(request));
            self.forgets.push(Forget { table, request, at, ..Forget::default() });
        }
        if let Some(job) = job {
            self.start_job(job)?;
        }
        self.loader.pause(self.state.paused.is_some());
        Ok(())
    }

    /// Somebody wants existing rows not to be read, or to be read again.
    pub(super) fn steer(&mut self, request: &Request) {
        match request.kind {
            RequestKind::Pause | RequestKind::Resume => {
                let paused = self.state.paused.is_some();
                tracing::info!(asked_by = request.asked_by, paused, "the reading of existing rows");
                self.loader.pause(paused);
            }
            RequestKind::Stop => {
                for table in &request.tables {
                    let is_asked = self.state.open_joins().any(|join| join.request.reads(table));
                    if !is_asked && self.loader.remembers(table) {
                        tracing::info!(%table, asked_by = request.asked_by, "existing rows are not read to their end");
                        self.loader.let_go(table);
                    }
                }
            }
            _ => {}
        }
    }

    /// Starts loads, asks for chunks, tells requests that they are done.
    pub(super) fn load(&mut self) -> Result<()> {
        let appended = self.machine.appended_to();
        while let Some(index) = self.done.iter().position(|(at, _)| *at <= appended) {
            for id in self.done.swap_remove(index).1 {
                let epoch = self.machine.epoch();
                self.append(Body::Done(Done { id, epoch, result: "ok".to_owned() }))?;
                self.state.end(id);
                tracing::info!(request = %id, "existing rows loaded");
            }
        }
        if self.loader.is_idle() && self.done.is_empty() && self.state.paused.is_none() {
            self.withheld.free_all();
            self.start_load()?;
        }
        let (lag, now) = (self.source_end.max(self.received).bytes_since(self.received), self.began.elapsed());
        self.held = if self.loader.is_idle() { None } else { self.pace.hold(lag, now) };
        while let Some(action) = self.loader.next_action(Uuid::new_v4(), self.held.is_none()) {
            match action {
                Action::Fence(asked) => self.chunks.send(Command::Fence(asked))?,
                Action::Read(read) => self.chunks.send(Command::Read(read))?,
                Action::Done(requests) => {
                    // Its chunks can be others' too, also of requests that are still to be seen, and nobody watches them from
                    // here on.
                    let others = self.state.open_joins().filter(|join| !requests.contains(&join.request.id));
                    self.forgets.told_to_older(others.flat_map(|join| join.request.tables.iter().cloned()));
                    let at = self.machine.position();
                    self.forgets.push(Forget { at, besides: requests.clone(), ..Forget::default() });
                    self.joins_seen = None;
                    self.done.push((self.machine.position(), requests));
                }
            }
        }
        Ok(())
    }

    fn start_load(&mut self) -> Result<()> {
        let open = answerable(|request| self.answers(request), &self.state).count();
        if open == 0 {
            self.joins_seen = None;
            self.sinks = None;
            return Ok(());
        }
        match self.joins_seen {
            Some((seen, at)) if seen == open && at.elapsed() >= GATHER_JOINS => {}
            Some((seen, _)) if seen == open => return Ok(()),
            _ => {
                self.joins_seen = Some((open, Instant::now()));
                return Ok(());
            }
        }
        let job = plan(|request| self.answers(request), |table| self.config.sinks_of(table), &self.order, &self.state);
        let job = Job { resumed: unasked(&job, &self.state), ..job };
        self.start_job(job)
    }

    fn start_job(&mut self, job: Job) -> Result<()> {
        let (tables, requests, resumed) = (job.tables.len(), job.requests.len(), job.resumed.len());
        tracing::info!(tables, requests, resumed, "loading existing rows");
        self.rows_done = job.tables.iter().map(|table| (table.clone(), 0)).collect();
        self.loader.start(job);
        self.watch_sinks()
    }

    pub(super) fn answers(&self, request: &Request) -> bool {
        is_answerable(request, &self.config.tables, &self.order)
    }

    pub(super) async fn answer(&mut self, answer: Answer) -> Result<()> {
        match answer {
            Answer::Fenced(asked) => {
                self.estimate().await?;
                self.loader.fenced(asked);
            }
            Answer::Waiting(what) => self.reporter.update(|s| s.waiting_for = Some(what)),
            Answer::Saw(snapshot) => self.loader.saw(&snapshot),
            Answer::Border(asked, through, key) => self.loader.border(asked, through, key),
            Answer::Planned(asked, borders, key) => self.loader.planned(asked, borders, key),
            Answer::Chunk(chunk) => {
                let (chunk, shaped) = *chunk;
                self.withheld.free(&chunk.table);
                self.version(shaped).await?;
                let bytes = chunk.rows.iter().map(RowBuf::bytes).sum();
                self.pace.read(chunk.rows.len(), bytes, self.began.elapsed());
                self.metrics.snapshot_rows(&chunk.table, chunk.rows.len());
                self.loader.chunk(chunk);
            }
            Answer::Rekeyed(asked, _) if !self.loader.asks(asked) => {}
            Answer::Rekeyed(_, table) => {
                // The sinks forget their ranges with the request that this look leads to.
                let tables = vec![table];
                let found = look::looks(&*self.session, &self.config.source.publication, &tables).await?;
                self.look(tables.iter().cloned().zip(found).collect()).await?;
                // One that is not asked for again has begun under its old key still.
                for table in tables.iter().filter(|table| self.loader.has_begun(table)).cloned().collect::<Vec<_>>() {
                    self.begin_anew(&table, &[]);
                }
            }
            Answer::Failed(asked, error) if withheld::is_withheld(&error) => {
                let table = self.loader.table_asked(asked).cloned();
                self.loader.failed(asked);
                if let Some(table) = table {
                    self.loader.defer(&self.withheld.hold(&table, &error));
                }
            }
            Answer::Failed(asked, error) => {
                tracing::warn!(error = error.chain(), "reading existing rows failed, trying again");
                self.reporter.update(|s| s.waiting_for = Some(error.chain()));
                self.loader.failed(asked);
            }
            Answer::Halted(error) => return Err(error),
            Answer::Watched(watched) => {
                let Watched { current, retained, looks, published, rerouted, left_out, unfit, signals } = *watched;
                self.source_end = current;
                self.reporter.update(|s| s.slot_retained_bytes = retained);
                self.note_left_out(left_out);
                self.note_unfit(unfit);
                self.note_signal_table(signals.as_ref());
                if rerouted.is_some() {
                    self.rerouted = rerouted;
                    return Ok(());
                }
                self.look(looks).await?;
                // A table that is gone for a moment may be made again.
                if self.gone.is_empty() {
                    published?;
                }
            }
        }
        Ok(())
    }

    /// The message of a chunk: the chunk was handed over before it was written.
    pub(super) async fn mark(&mut self, start: Lsn, content: &[u8]) -> Result<()> {
        let Some(nonce) = std::str::from_utf8(content).ok().and_then(|text| Uuid::try_parse(text).ok()) else {
            return Ok(());
        };
        while let Some(answer) = self.chunks.try_recv() {
            self.answer(answer).await?;
        }
        self.loader.mark(nonce);
        self.marked = self.marked.max(start);
        self.emit_due().await
    }

    /// Writes what is due of existing rows, as far as others leave room for it. Between two transactions only.
    pub(super) async fn emit_due(&mut self) -> Result<()> {
        while self.transaction.is_none() && self.loader.is_due() {
            let Some(rows) = self.pace.piece(self.emitter.in_flight_bytes(), self.began.elapsed()) else { break };
            let names = &self.names;
            if let Some(ready) = self.loader.take(rows, |table| names.get(table).copied())? {
                self.emit_chunk(ready).await?;
            }
        }
        Ok(())
    }

    /// How long a chunk that is due may have to wait for nobody but the clock.
    pub(super) fn piece_nap(&self) -> Duration {
        let now = self.began.elapsed();
        let wake = self.pace.ahead.wake_at(now).filter(|_| self.loader.is_due() && self.transaction.is_none());
        wake.map_or(Duration::MAX, |at| at.saturating_sub(now))
    }

    async fn emit_chunk(&mut self, ready: Ready) -> Result<()> {
        let version = self.emitter.known(ready.relation).expect("a chunk's version came with it");
        let version = self.chunk_version(version, &ready.rows).await?;
        // Its rows are as they are here, which may be behind its message.
        let start = self.last_commit_end.map_or(self.marked, |end| end.max(self.marked));
        // What else it says of the rows that both have, the catalog knew before any row that is still to be streamed.
        if let Some(streamed) = self.streamed.get_mut(&version.relation.oid)
            && streamed.rows.fingerprint == version.rows.fingerprint
        {
            *streamed = version.clone();
        }
        let event = self.event(start, None);
        let at = self.machine.begin_chunk();
        for (i, row) in ready.rows.iter().enumerate() {
            let mark = snapshot_mark(ready.extent, i == 0, i + 1 == ready.rows.len());
            let event = codec::Event { snapshot: mark, ..event.clone() };
            self.emitter.chunk_row(&mut self.machine, &version, &event, row.row()).await?;
        }
        let (sinks, request) = match ready.only {
            Some((sink, request)) => (Some(vec![sink]), Some(request)),
            None => (None, None),
        };
        let (rows, bytes) = (ready.rows.len() as u64, ready.rows.iter().map(RowBuf::bytes).sum());
        let table = ready.table.clone();
        let relation = version.relation.fingerprint;
        self.machine.chunk(Chunk { relation, table, range: ready.range, at, rows, sinks, request });
        self.pace.wrote(self.machine.position(), bytes, self.began.elapsed());
        *self.rows_done.entry(ready.table).or_default() += rows;
        Ok(())
    }

    /// What was read of the table so far, also what is on its way, is of another one. `requests` were made for this.
    pub(super) fn begin_anew(&mut self, table: &TableName, requests: &[(String, Uuid)]) {
        self.loader.begin_anew(table, requests);
        let at = self.machine.position();
        self.forgets.push(Forget { table: Some(table.clone()), at, ..Forget::default() });
    }
}

/// Which part of a snapshot a chunk's row is. Only the row itself can be told from its chunk, so where the last tables are empty
/// no row is the last.
fn snapshot_mark(extent: Option<Extent>, first: bool, last: bool) -> Snapshot {
    let Some(extent) = extent else { return Snapshot::Incremental };
    match (first, last) {
        (_, true) if extent.last => Snapshot::Last,
        (true, _) if extent.first => Snapshot::First,
        (_, true) if extent.last_of_table => Snapshot::LastInDataCollection,
        (true, _) if extent.first_of_table => Snapshot::FirstInDataCollection,
        _ => Snapshot::True,
    }
}
