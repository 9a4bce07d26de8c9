//! Metrics: one table of what exists, handles that roles keep, and the Prometheus text.
//!
//! Looking a metric up by name costs more than the change that it counts, so handles are made once, at start-up, and a role
//! holds a struct of them with plain methods. There is no global recorder: what is not reached through [`Metrics`] does not
//! exist, which is what lets one test compare [`TABLE`] with docs/metrics.md and with what is really rendered.
//!
//! What a role already says in its status (position, lag, state) is not counted a second time by the role: [`Metrics::render`]
//! takes it from the [`Board`], so that a dashboard and `/status` cannot disagree. A value that is not known yet has no sample.
//!
//! Invariant: labels come from the configuration (table and sink names), never from data: they are few and hold no secrets.
//! Not here: HTTP, and any decision that depends on a number.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};

use crate::lsn::Lsn;
use crate::relation::TableName;
use crate::status::{Board, BreakerState, Copy, PartitionStatus, SinkStatus, SourceStatus, State};

/// Histograms keep single samples until someone drains them; so often is enough to keep them small at any rate that one
/// process reaches, and cheap enough not to matter.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// From a tenth of a millisecond (a broker on the same machine) to five minutes (a long catch-up).
const SECONDS_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0,
];
/// From a single row to the largest transactions that people run.
const ROWS_BUCKETS: &[f64] = &[1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5, 1e6, 1e7];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// One metric as docs/metrics.md lists it.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub unit: Option<Unit>,
    pub help: &'static str,
}

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    unit: Option<Unit>,
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, unit, help }
}

const SINK: &[&str] = &["sink"];
/// Of a topic of the sink's.
const PARTITION: &[&str] = &["partition", "sink", "topic"];
/// `source`, or the sink that writes it.
const COPY: &[&str] = &["at", "table"];
const BYTES: Option<Unit> = Some(Unit::Bytes);
const SECONDS: Option<Unit> = Some(Unit::Seconds);
const COUNT: Option<Unit> = Some(Unit::Count);

/// Every metric there is.
#[rustfmt::skip]
pub const TABLE: &[Metric] = &[
    metric("lockstep_source_records_total", Kind::Counter, &["table"], COUNT, "Records handed to Kafka, by source table."),
    metric("lockstep_source_bytes_total", Kind::Counter, &[], BYTES, "Bytes received on the replication connection."),
    metric("lockstep_source_transactions_total", Kind::Counter, &[], COUNT, "Transactions read to their commit."),
    metric("lockstep_source_checkpoints_total", Kind::Counter, &[], COUNT, "Checkpoints that were read back and count."),
    metric("lockstep_source_in_flight_bytes", Kind::Gauge, &[], BYTES, "Bytes handed to Kafka and not yet acknowledged."),
    metric("lockstep_source_received_lsn", Kind::Gauge, &[], BYTES, "LSN up to which the log was received."),
    metric("lockstep_source_confirmed_lsn", Kind::Gauge, &[], BYTES, "LSN confirmed to the slot; the server may recycle the log before it."),
    metric("lockstep_source_position_lsn", Kind::Gauge, &[], BYTES, "Closed LSN of the last checkpoint that was read back."),
    metric("lockstep_source_lag_bytes", Kind::Gauge, &[], BYTES, "Bytes of log that the source wrote after position_lsn."),
    metric("lockstep_source_slot_retained_bytes", Kind::Gauge, &[], BYTES, "Bytes of log that the server keeps because of the slot."),
    metric("lockstep_source_ledger_appends_total", Kind::Counter, &[], COUNT, "Entries of any kind appended to the ledger."),
    metric("lockstep_source_ledger_round_trip_seconds", Kind::Histogram, &[], SECONDS, "From a checkpoint's append to having read it back."),
    metric("lockstep_source_tables_withheld", Kind::Gauge, &[], None, "Tables whose existing rows are wanted and can't be read: a right is missing, or somebody has a lock; /status says which."),
    metric("lockstep_source_snapshot_held", Kind::Gauge, &[], None, "1 while existing rows wait: for their rate, or for a stream that is far behind; /status says which."),
    metric("lockstep_source_snapshot_paused", Kind::Gauge, &[], None, "1 while somebody has paused the reading of existing rows."),
    metric("lockstep_source_snapshot_rows_total", Kind::Counter, &["table"], COUNT, "Existing rows read from the source's tables, as often as they were."),
    metric("lockstep_source_signals_total", Kind::Counter, &["outcome"], COUNT, "Rows of the signal table that asked for something: taken, or refused, which /status says why."),
    metric("lockstep_source_retries_total", Kind::Counter, &[], COUNT, "Times the reader failed and was started again."),
    metric("lockstep_source_standby", Kind::Gauge, &[], None, "1 while another process has the slot."),
    metric("lockstep_source_halted", Kind::Gauge, &[], None, "1 while halted by a named error; /status has the code and what to type."),
    metric("lockstep_sink_rows_total", Kind::Counter, &["op", "sink"], COUNT, "Rows written, by what was done: insert, update, delete, truncate (one a table), snapshot."),
    metric("lockstep_sink_transactions_total", Kind::Counter, SINK, COUNT, "Transactions committed at the sink."),
    metric("lockstep_sink_batch_rows", Kind::Histogram, SINK, COUNT, "Rows written by one transaction at the sink."),
    metric("lockstep_sink_commit_to_visible_seconds", Kind::Histogram, SINK, SECONDS, "From the commit at the source to the commit at the sink, by the two clocks. In row consistency of what the owner applies alone."),
    metric("lockstep_sink_position_lsn", Kind::Gauge, SINK, BYTES, "Commit LSN of the last transaction of the source that is in."),
    metric("lockstep_sink_closed_lsn", Kind::Gauge, SINK, BYTES, "Every commit that ends at or before this LSN is in."),
    metric("lockstep_sink_lag_bytes", Kind::Gauge, SINK, BYTES, "Bytes of log between closed_lsn and the newest checkpoint."),
    metric("lockstep_sink_lag_seconds", Kind::Gauge, SINK, SECONDS, "Seconds since the sink was level with the newest checkpoint; 0 while it is."),
    metric("lockstep_sink_ahead_bytes", Kind::Gauge, SINK, BYTES, "Bytes of records that were read and decoded ahead of what the sink has taken; no more are read from 4 MiB on."),
    metric("lockstep_sink_foreign_records_total", Kind::Counter, SINK, COUNT, "Records in our topics that no reader of ours wrote; never applied."),
    metric("lockstep_sink_overwritten_rows_total", Kind::Counter, SINK, COUNT, "New rows of the source that were there already at the sink, where rows go in by COPY; somebody else wrote to the table."),
    metric("lockstep_sink_missing_rows_total", Kind::Counter, SINK, COUNT, "Updates and deletes left out because the sink does not have their rows (on_missing = skip)."),
    metric("lockstep_sink_parked_records_total", Kind::Counter, SINK, COUNT, "Records parked: their rows were refused, or they stand on one that was (on_refused = park)."),
    metric("lockstep_sink_parked_rows", Kind::Gauge, SINK, COUNT, "Rows of the source that are not as they should be, because the sink refused them; lockstep retry puts them back. Only where this process owns the sink."),
    metric("lockstep_sink_tables_not_equal", Kind::Gauge, SINK, COUNT, "Tables that are not equal to the source's whatever is applied (snapshot = never, or rows that are parked)."),
    metric("lockstep_sink_retries_total", Kind::Counter, SINK, COUNT, "Times the sink failed and was started again."),
    metric("lockstep_sink_breaker_open", Kind::Gauge, SINK, None, "1 while the sink failed so often that it is only probed now and then; /status says why, and when next."),
    metric("lockstep_sink_breaker_openings_total", Kind::Counter, SINK, COUNT, "Times that this began."),
    metric("lockstep_sink_standby", Kind::Gauge, SINK, None, "1 while another process applies to this sink."),
    metric("lockstep_sink_halted", Kind::Gauge, SINK, None, "1 while halted by a named error; /status has the code and what to type."),
    metric("lockstep_sink_partitions", Kind::Gauge, SINK, COUNT, "Partitions that this process applies, of a sink in row consistency."),
    metric("lockstep_sink_partition_position_lsn", Kind::Gauge, PARTITION, BYTES, "Commit LSN of the last commit of which the partition's records are in; only where this process applies it."),
    metric("lockstep_sink_partition_lag_records", Kind::Gauge, PARTITION, COUNT, "Records of the partition that count and are not in; only where this process applies it."),
    metric("lockstep_copy_rows_done", Kind::Gauge, COPY, COUNT, "Rows of a running copy that are done since its role started: read at the source, or written at a sink; 0 once it has ended."),
    metric("lockstep_copy_rows_estimated", Kind::Gauge, COPY, COUNT, "Rows that the table has about, as estimated when its load began, and never fewer than are done."),
    metric("lockstep_copy_rows_per_second", Kind::Gauge, COPY, COUNT, "Rows of the copy a second, over the last seconds."),
    metric("lockstep_copy_seconds_left", Kind::Gauge, COPY, SECONDS, "Until the copy is complete, at that rate."),
    metric("lockstep_configuration_refused", Kind::Gauge, &[], None, "1 while the files of the configuration say what can't be taken, and what was before is in force; /status says why."),
    metric("lockstep_build_info", Kind::Gauge, &["version"], None, "Always 1; the label names the version."),
    metric("lockstep_process_start_time_seconds", Kind::Gauge, &[], SECONDS, "When the process started, in seconds since 1970."),
    metric("lockstep_process_resident_memory_bytes", Kind::Gauge, &[], BYTES, "Memory in use (RSS). Linux only."),
    metric("lockstep_process_cpu_seconds_total", Kind::Counter, &[], SECONDS, "User and system time used. Linux only."),
];

/// Where all metrics of the process live.
#[derive(Clone)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    started: SystemTime,
    /// Copies that were rendered: a recorder forgets no gauge, so what has ended must be said to have.
    copies: Arc<Mutex<BTreeSet<(String, TableName)>>>,
    /// Partitions that were rendered, of the same reason: sink, topic and number.
    partitions: Arc<Mutex<BTreeSet<(String, String, i32)>>>,
}

/// The source reader's handles.
#[derive(Clone)]
pub struct SourceMetrics {
    metrics: Metrics,
    bytes: Counter,
    transactions: Counter,
    checkpoints: Counter,
    in_flight_bytes: Gauge,
    snapshot_held: Gauge,
    snapshot_paused: Gauge,
    tables_withheld: Gauge,
    received_lsn: Gauge,
    confirmed_lsn: Gauge,
    ledger_appends: Counter,
    ledger_round_trip: Histogram,
    signals_taken: Counter,
    signals_refused: Counter,
    retries: Counter,
}

/// One sink's handles.
#[derive(Clone)]
pub struct SinkMetrics {
    /// By [`RowOp`].
    rows: [Counter; RowOp::ALL.len()],
    transactions: Counter,
    batch_rows: Histogram,
    commit_to_visible: Histogram,
    ahead_bytes: Gauge,
    foreign_records: Counter,
    overwritten: Counter,
    missing_rows: Counter,
    parked: Counter,
    retries: Counter,
    breaker_openings: Counter,
}

/// What was done to rows at a sink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowOp {
    Insert,
    Update,
    Delete,
    Truncate,
    /// A row of a chunk, whether it was there already or not.
    Snapshot,
}

impl RowOp {
    pub const ALL: [RowOp; 5] = [RowOp::Insert, RowOp::Update, RowOp::Delete, RowOp::Truncate, RowOp::Snapshot];

    pub fn as_str(self) -> &'static str {
        match self {
            RowOp::Insert => "insert",
            RowOp::Update => "update",
            RowOp::Delete => "delete",
            RowOp::Truncate => "truncate",
            RowOp::Snapshot => "snapshot",
        }
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// An empty set, described. Counts the process as started now.
    pub fn new() -> Metrics {
        let builder = TABLE.iter().filter(|metric| metric.kind == Kind::Histogram).fold(
            PrometheusBuilder::new(),
            |builder, metric| {
                let buckets = if metric.unit == SECONDS { SECONDS_BUCKETS } else { ROWS_BUCKETS };
                builder
                    .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
                    .expect("the buckets are not empty")
            },
        );
        let recorder = builder.build_recorder();
        for metric in TABLE {
            let (name, help) = (metric.name.into(), metric.help.into());
            match metric.kind {
                Kind::Counter => recorder.describe_counter(name, metric.unit, help),
                Kind::Gauge => recorder.describe_gauge(name, metric.unit, help),
                Kind::Histogram => recorder.describe_histogram(name, metric.unit, help),
            }
        }
        Metrics {
            recorder: Arc::new(recorder),
            started: SystemTime::now(),
            copies: Arc::default(),
            partitions: Arc::default(),
        }
    }

    /// An empty set for roles that begin anew in the same process: what is no more leaves no value behind.
    pub fn anew(&self) -> Metrics {
        Metrics { started: self.started, ..Metrics::new() }
    }

    pub fn source(&self) -> SourceMetrics {
        let outcome = |outcome| self.counter("lockstep_source_signals_total", vec![Label::new("outcome", outcome)]);
        SourceMetrics {
            metrics: self.clone(),
            bytes: self.counter("lockstep_source_bytes_total", vec![]),
            transactions: self.counter("lockstep_source_transactions_total", vec![]),
            checkpoints: self.counter("lockstep_source_checkpoints_total", vec![]),
            in_flight_bytes: self.gauge("lockstep_source_in_flight_bytes", vec![]),
            snapshot_held: self.gauge("lockstep_source_snapshot_held", vec![]),
            snapshot_paused: self.gauge("lockstep_source_snapshot_paused", vec![]),
            tables_withheld: self.gauge("lockstep_source_tables_withheld", vec![]),
            received_lsn: self.gauge("lockstep_source_received_lsn", vec![]),
            confirmed_lsn: self.gauge("lockstep_source_confirmed_lsn", vec![]),
            ledger_appends: self.counter("lockstep_source_ledger_appends_total", vec![]),
            ledger_round_trip: self.histogram("lockstep_source_ledger_round_trip_seconds", vec![]),
            signals_taken: outcome("taken"),
            signals_refused: outcome("refused"),
            retries: self.counter("lockstep_source_retries_total", vec![]),
        }
    }

    pub fn sink(&self, sink: &str) -> SinkMetrics {
        let label = || vec![Label::new("sink", sink.to_owned())];
        let rows = |op: RowOp| {
            let labels = vec![Label::new("op", op.as_str()), Label::new("sink", sink.to_owned())];
            self.counter("lockstep_sink_rows_total", labels)
        };
        SinkMetrics {
            rows: RowOp::ALL.map(rows),
            transactions: self.counter("lockstep_sink_transactions_total", label()),
            batch_rows: self.histogram("lockstep_sink_batch_rows", label()),
            commit_to_visible: self.histogram("lockstep_sink_commit_to_visible_seconds", label()),
            ahead_bytes: self.gauge("lockstep_sink_ahead_bytes", label()),
            foreign_records: self.counter("lockstep_sink_foreign_records_total", label()),
            overwritten: self.counter("lockstep_sink_overwritten_rows_total", label()),
            missing_rows: self.counter("lockstep_sink_missing_rows_total", label()),
            parked: self.counter("lockstep_sink_parked_records_total", label()),
            retries: self.counter("lockstep_sink_retries_total", label()),
            breaker_openings: self.counter("lockstep_sink_breaker_openings_total", label()),
        }
    }

    /// Everything in Prometheus' text format 0.0.4, gauges freshly taken from the board and the process.
    pub fn render(&self, board: &Board) -> String {
        if let Some(watch) = &board.source {
            self.take_source(&watch.borrow().clone());
        }
        for (name, watch) in &board.sinks {
            self.take_sink(name, &watch.borrow().clone());
        }
        self.take_copies(&board.copies());
        let refused = board.configuration.as_ref().is_some_and(|watch| watch.borrow().refused.is_some());
        self.gauge("lockstep_configuration_refused", vec![]).set(flag(refused));
        self.gauge("lockstep_build_info", vec![Label::new("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.gauge("lockstep_process_start_time_seconds", vec![]).set(started.as_secs_f64());
        let usage = Usage::read();
        if let Some(bytes) = usage.resident_bytes {
            self.gauge("lockstep_process_resident_memory_bytes", vec![]).set(float(bytes));
        }
        let mut text = self.recorder.handle().render();
        if let Some(seconds) = usage.cpu_seconds {
            cpu_sample(&mut text, seconds);
        }
        text
    }

    /// Folds the samples of histograms so that they do not pile up where nobody scrapes. Every [`UPKEEP_INTERVAL`].
    pub fn upkeep(&self) {
        self.recorder.handle().run_upkeep();
    }

    fn take_source(&self, status: &SourceStatus) {
        self.known("lockstep_source_position_lsn", vec![], status.position.map(lsn));
        self.known("lockstep_source_lag_bytes", vec![], status.lag_bytes.map(float));
        self.known("lockstep_source_slot_retained_bytes", vec![], status.slot_retained_bytes.map(float));
        self.known("lockstep_source_standby", vec![], Some(flag(status.state == State::Standby)));
        self.known("lockstep_source_halted", vec![], Some(flag(status.state == State::Halted)));
    }

    fn take_sink(&self, sink: &str, status: &SinkStatus) {
        let label = || vec![Label::new("sink", sink.to_owned())];
        self.known("lockstep_sink_position_lsn", label(), status.position.map(lsn));
        self.known("lockstep_sink_closed_lsn", label(), status.closed_lsn.map(lsn));
        self.known("lockstep_sink_lag_bytes", label(), status.lag_bytes.map(float));
        self.known("lockstep_sink_lag_seconds", label(), status.lag_seconds);
        let not_equal = status.tables.values().filter(|table| !table.equal).count();
        self.known("lockstep_sink_tables_not_equal", label(), Some(float(not_equal as u64)));
        let parked = (status.state != State::Standby).then(|| float(status.parked_rows));
        self.known("lockstep_sink_parked_rows", label(), parked);
        let is_open = status.retry.as_ref().is_some_and(|retry| retry.breaker != BreakerState::Closed);
        self.known("lockstep_sink_breaker_open", label(), Some(flag(is_open)));
        self.known("lockstep_sink_standby", label(), Some(flag(status.state == State::Standby)));
        self.known("lockstep_sink_halted", label(), Some(flag(status.state == State::Halted)));
        self.known("lockstep_sink_partitions", label(), Some(float(status.partitions.len() as u64)));
        self.take_partitions(sink, &status.partitions);
    }

    /// One that is another process' by now lags no more here.
    fn take_partitions(&self, sink: &str, partitions: &[PartitionStatus]) {
        let mut known = self.partitions.lock().expect("nobody panics with it");
        known.extend(partitions.iter().map(|at| (sink.to_owned(), at.topic.clone(), at.partition)));
        for (of, topic, number) in known.iter().filter(|(of, ..)| of == sink) {
            let at = partitions.iter().find(|at| at.topic == *topic && at.partition == *number);
            let labels = || {
                let (number, of, topic) = (number.to_string(), of.clone(), topic.clone());
                vec![Label::new("partition", number), Label::new("sink", of), Label::new("topic", topic)]
            };
            self.known("lockstep_sink_partition_position_lsn", labels(), at.map(|at| lsn(at.position)));
            self.known(
                "lockstep_sink_partition_lag_records",
                labels(),
                Some(at.map_or(0.0, |at| float(at.lag_records))),
            );
        }
    }

    fn take_copies(&self, copies: &[Copy]) {
        let mut known = self.copies.lock().expect("nobody panics with it");
        known.extend(copies.iter().map(|copy| (copy.place.clone(), copy.table.clone())));
        for (place, table) in known.iter() {
            let copy = copies.iter().find(|copy| copy.place == *place && copy.table == *table);
            let label = || vec![Label::new("at", place.clone()), Label::new("table", table.to_string())];
            let of = |value: Option<f64>| copy.map_or(Some(0.0), |_| value);
            self.known("lockstep_copy_rows_done", label(), of(copy.map(|copy| float(copy.done))));
            let estimated = copy.and_then(|copy| copy.estimated);
            self.known("lockstep_copy_rows_estimated", label(), of(estimated.map(float)));
            self.known("lockstep_copy_rows_per_second", label(), of(copy.and_then(|copy| copy.per_second)));
            let left = copy.and_then(|copy| copy.left);
            self.known("lockstep_copy_seconds_left", label(), of(left.map(|left| left.as_secs_f64())));
        }
    }

    /// Sets a gauge, or leaves it without a sample as long as the value is not known.
    fn known(&self, name: &'static str, labels: Vec<Label>, value: Option<f64>) {
        if let Some(value) = value {
            self.gauge(name, labels).set(value);
        }
    }

    fn counter(&self, name: &'static str, labels: Vec<Label>) -> Counter {
        self.recorder.register_counter(&key(name, labels, Kind::Counter), &METADATA)
    }

    fn gauge(&self, name: &'static str, labels: Vec<Label>) -> Gauge {
        self.recorder.register_gauge(&key(name, labels, Kind::Gauge), &METADATA)
    }

    fn histogram(&self, name: &'static str, labels: Vec<Label>) -> Histogram {
        self.recorder.register_histogram(&key(name, labels, Kind::Histogram), &METADATA)
    }
}

impl SourceMetrics {
    /// The counter of records of one table. Keep it: looking it up again costs more than counting.
    pub fn records(&self, table: &TableName) -> Counter {
        self.metrics.counter("lockstep_source_records_total", vec![Label::new("table", table.to_string())])
    }

    /// A chunk of a table was read.
    pub fn snapshot_rows(&self, table: &TableName, rows: usize) {
        let labels = vec![Label::new("table", table.to_string())];
        self.metrics.counter("lockstep_source_snapshot_rows_total", labels).increment(rows as u64);
    }

    pub fn received(&self, bytes: u64, up_to: Lsn) {
        self.bytes.increment(bytes);
        self.received_lsn.set(lsn(up_to));
    }

    pub fn transactions(&self, count: u64) {
        self.transactions.increment(count);
    }

    pub fn in_flight(&self, bytes: u64) {
        self.in_flight_bytes.set(float(bytes));
    }

    pub fn tables_withheld(&self, count: usize) {
        self.tables_withheld.set(count as f64);
    }

    /// A signal was met.
    pub fn signal(&self, is_taken: bool) {
        if is_taken { &self.signals_taken } else { &self.signals_refused }.increment(1);
    }

    pub fn snapshot_held(&self, held: bool) {
        self.snapshot_held.set(if held { 1.0 } else { 0.0 });
    }

    pub fn snapshot_paused(&self, paused: bool) {
        self.snapshot_paused.set(flag(paused));
    }

    /// An entry of any kind was appended.
    pub fn ledger_append(&self) {
        self.ledger_appends.increment(1);
    }

    /// A checkpoint was read back with no newer claim before it, so long after its append.
    pub fn checkpoint(&self, round_trip: Duration) {
        self.checkpoints.increment(1);
        self.ledger_round_trip.record(round_trip);
    }

    pub fn confirmed(&self, up_to: Lsn) {
        self.confirmed_lsn.set(lsn(up_to));
    }

    pub fn retry(&self) {
        self.retries.increment(1);
    }
}

impl SinkMetrics {
    pub fn rows(&self, op: RowOp, count: u64) {
        self.rows[op as usize].increment(count);
    }

    /// A transaction with so many rows was committed at the sink.
    pub fn transaction(&self, rows: u64) {
        self.transactions.increment(1);
        self.batch_rows.record(float(rows));
    }

    /// So long after its commit at the source a transaction became visible here. Clocks may differ: below zero counts as 0.
    pub fn commit_to_visible(&self, latency: Duration) {
        self.commit_to_visible.record(latency);
    }

    /// The gauge of what was read ahead. Whoever adds to it takes the same away again.
    pub fn ahead_bytes(&self) -> Gauge {
        self.ahead_bytes.clone()
    }

    /// Changes were left out, because the sink does not have their rows.
    pub fn parked(&self, count: u64) {
        self.parked.increment(count);
    }

    pub fn missing_rows(&self, count: u64) {
        self.missing_rows.increment(count);
    }

    pub fn foreign_records(&self, count: u64) {
        self.foreign_records.increment(count);
    }

    pub fn overwritten(&self, rows: u64) {
        self.overwritten.increment(rows);
    }

    /// The sink failed. `opened`: and was not known to be out of order before.
    pub fn retry(&self, opened: bool) {
        self.retries.increment(1);
        self.breaker_openings.increment(u64::from(opened));
    }
}

/// What the recorder does not look at.
static METADATA: Metadata<'static> = Metadata::new("lockstep", Level::INFO, None);

/// A key, of a metric that is in the table with these labels: a typo must not become an undocumented metric.
fn key(name: &'static str, labels: Vec<Label>, kind: Kind) -> Key {
    let listed = TABLE.iter().find(|metric| metric.name == name).expect("every metric is in TABLE");
    assert!(listed.kind == kind, "{name} is not a {}", kind.as_str());
    assert!(labels.iter().map(Label::key).eq(listed.labels.iter().copied()), "{name} has other labels");
    Key::from_parts(name, labels)
}

fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

/// Prometheus knows floats only: exact below 2^53, that is 8 PiB of log.
fn float(value: u64) -> f64 {
    value as f64
}

fn lsn(lsn: Lsn) -> f64 {
    float(lsn.0)
}

/// The one sample that the recorder can't hold: its counters are integers.
fn cpu_sample(text: &mut String, seconds: f64) {
    let name = "lockstep_process_cpu_seconds_total";
    let help = TABLE.iter().find(|metric| metric.name == name).expect("it is in TABLE").help;
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {seconds:.2}\n\n");
}

/// What the kernel says of this process; nothing where there is no /proc.
struct Usage {
    resident_bytes: Option<u64>,
    cpu_seconds: Option<f64>,
}

/// Ticks per second in /proc/PID/stat: USER_HZ, 100 on every architecture that Linux runs on (proc(5), `man 2 times`).
const USER_HZ: f64 = 100.0;

impl Usage {
    fn read() -> Usage {
        let file = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        Usage { resident_bytes: resident_bytes(&file("status")), cpu_seconds: cpu_seconds(&file("stat")) }
    }
}

/// `VmRSS:     1234 kB` of /proc/self/status.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// utime and stime, fields 14 and 15 of /proc/self/stat. The second field is the program's name and may hold spaces and
/// parentheses, so counting begins after the last `)`.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_ascii_whitespace().skip(11).map(|field| field.parse::<u64>().ok());
    Some(float(fields.next()?? + fields.next()??) / USER_HZ)
}

/// Name and kind of every metric in a rendered text.
pub fn rendered(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Phase, SinkReporter, SourceReporter, TableStatus};

    fn board(source: &SourceReporter, sink: &SinkReporter) -> Board {
        let sinks = BTreeMap::from([("orders".to_owned(), sink.watch())]);
        Board { pipeline: "shop".to_owned(), source: Some(source.watch()), sinks, configuration: None }
    }

    /// A process in which everything has happened once.
    fn busy() -> (Metrics, Board) {
        let (metrics, source, sink) = (Metrics::new(), SourceReporter::default(), SinkReporter::default());
        let (reader, applier) = (metrics.source(), metrics.sink("orders"));
        reader.records(&TableName::new("public", "we\"ird\n")).increment(3);
        reader.snapshot_rows(&TableName::new("public", "products"), 5);
        reader.checkpoint(Duration::from_micros(600));
        applier.rows(RowOp::Snapshot, 7);
        applier.transaction(7);
        applier.commit_to_visible(Duration::from_millis(4));
        source.update(|s| (s.position, s.lag_bytes, s.slot_retained_bytes) = (Some(Lsn(9)), Some(0), Some(4096)));
        let copying = TableStatus {
            rows_done: Some(5),
            rows_estimated: Some(9),
            rows_per_second: Some(2.0),
            ..TableStatus::new(Phase::Snapshot)
        };
        sink.update(|s| {
            s.tables.insert(TableName::new("public", "t"), copying);
            (s.state, s.position, s.closed_lsn) = (State::Halted, Some(Lsn(8)), Some(Lsn(8)));
            (s.lag_bytes, s.lag_seconds) = (Some(1), Some(0.5));
            let (topic, position) = ("shop.public.t".to_owned(), Lsn(8));
            s.partitions = vec![PartitionStatus { topic, partition: 0, position, next_offset: 3, lag_records: 1 }];
        });
        let board = board(&source, &sink);
        (metrics, board)
    }

    #[test]
    fn a_copy_that_has_ended_is_no_longer_under_way() {
        let (metrics, source, sink) = (Metrics::new(), SourceReporter::default(), SinkReporter::default());
        let table = TableName::new("public", "t");
        let rows = TableStatus { rows_done: Some(5), rows_per_second: Some(2.0), ..TableStatus::new(Phase::Snapshot) };
        sink.update(|s| _ = s.tables.insert(table.clone(), rows));
        let board = board(&source, &sink);
        let text = metrics.render(&board);
        assert!(text.contains("lockstep_copy_rows_done{at=\"orders\",table=\"public.t\"} 5"), "{text}");
        assert!(!text.contains("lockstep_copy_rows_estimated{"), "nobody knows");
        sink.update(|s| _ = s.tables.insert(table, TableStatus::new(Phase::Streaming)));
        let text = metrics.render(&board);
        assert!(text.contains("lockstep_copy_rows_done{at=\"orders\",table=\"public.t\"} 0"), "{text}");
        assert!(text.contains("lockstep_copy_rows_per_second{at=\"orders\",table=\"public.t\"} 0"), "{text}");
    }

    #[test]
    fn what_is_rendered_is_what_the_table_lists() {
        let (metrics, board) = busy();
        let text = metrics.render(&board);
        let listed: BTreeMap<&str, &str> = TABLE.iter().map(|metric| (metric.name, metric.kind.as_str())).collect();
        assert_eq!(rendered(&text), listed);
        for metric in TABLE {
            assert!(
                text.contains(&format!("# HELP {} {}", metric.name, metric.help)),
                "{} lacks its help",
                metric.name
            );
        }
    }

    #[test]
    fn docs_list_every_metric_with_kind_and_labels() {
        let docs = include_str!("../../docs/metrics.md");
        let listed: Vec<String> =
            docs.lines().filter(|line| line.starts_with("| `lockstep_")).map(str::to_owned).collect();
        let expected: Vec<String> = TABLE
            .iter()
            .map(|m| format!("| `{}` | {} | {} | {} |", m.name, m.kind.as_str(), m.labels.join(", "), m.help))
            .collect();
        assert_eq!(listed.join("\n"), expected.join("\n"), "docs/metrics.md and TABLE differ");
    }

    #[test]
    fn samples_carry_their_labels_escaped() {
        let (metrics, board) = busy();
        let text = metrics.render(&board);
        for line in [
            r#"lockstep_source_records_total{table="public.we\"ird\n"} 3"#,
            r#"lockstep_sink_rows_total{op="snapshot",sink="orders"} 7"#,
            r#"lockstep_sink_rows_total{op="insert",sink="orders"} 0"#,
            r#"lockstep_sink_halted{sink="orders"} 1"#,
            r#"lockstep_sink_batch_rows_bucket{sink="orders",le="10"} 1"#,
            r#"lockstep_source_ledger_round_trip_seconds_bucket{le="0.001"} 1"#,
            "lockstep_source_position_lsn 9",
        ] {
            assert!(text.lines().any(|l| l == line), "missing {line} in\n{text}");
        }
    }

    #[test]
    fn what_nobody_measured_has_no_sample() {
        let (metrics, source, sink) = (Metrics::new(), SourceReporter::default(), SinkReporter::default());
        metrics.source();
        let text = metrics.render(&board(&source, &sink));
        assert!(!text.contains("lockstep_source_lag_bytes"), "{text}");
        assert!(!text.contains("lockstep_sink_lag_seconds"), "{text}");
        assert!(text.contains("lockstep_sink_halted{sink=\"orders\"} 0"), "{text}");
    }

    #[test]
    fn two_sets_share_nothing() {
        let (one, two) = (Metrics::new(), Metrics::new());
        one.source().transactions(5);
        two.source();
        let none = Board { pipeline: "shop".to_owned(), source: None, sinks: BTreeMap::new(), configuration: None };
        assert!(one.render(&none).contains("lockstep_source_transactions_total 5"));
        assert!(two.render(&none).contains("lockstep_source_transactions_total 0"));
    }

    #[test]
    fn the_kernel_is_read_correctly() {
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    12 kB\n"), Some(12_288));
        assert_eq!(resident_bytes("Name:\tx\n"), None);
        let stat = "7 (a) (b c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (short) S 1"), None);
        let usage = Usage::read();
        if cfg!(target_os = "linux") {
            assert!(usage.resident_bytes.unwrap() > 1 << 20 && usage.cpu_seconds.is_some());
        }
    }
}
