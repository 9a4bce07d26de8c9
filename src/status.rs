//! What each role says of itself, and the board where all of it is read.
//!
//! Every role owns a [`Reporter`] and writes its state, position and lag into it; whoever wants to know (`/status`, `/readyz`,
//! `/metrics`, the supervisor) holds the other end of a watch channel. A reader never waits for a role, a role never waits for
//! a reader, and the latest word replaces the one before.
//!
//! Invariants: the names that [`Board::status`] writes are a contract (docs/design.md section 8): users script against them, so
//! they are added to and never renamed. `null` means "not known yet", never 0: a lag that no one has measured is not no lag.
//!
//! Not here: HTTP, metrics, clocks. When something began is handed in by whoever saw it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::error::Halt;
use crate::lsn::Lsn;
use crate::relation::TableName;

/// What a role is doing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Connecting, checking, reading the ledger: nothing has moved yet.
    Starting,
    /// Existing rows are being copied; a sink is whole only when that ends.
    Snapshot,
    /// Changes flow.
    Streaming,
    /// Something failed that may heal; the next attempt is scheduled.
    Retrying,
    /// Stopped by a person. Part of the contract, not reached: no verb pauses a role, only the reading of existing rows.
    Paused,
    /// Another process has the role; this one takes over when that one goes.
    Standby,
    /// Stopped by a named error until a person acts and the process is started again.
    Halted,
}

impl State {
    pub const ALL: [State; 7] = [
        State::Starting,
        State::Snapshot,
        State::Streaming,
        State::Retrying,
        State::Paused,
        State::Standby,
        State::Halted,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Snapshot => "snapshot",
            State::Streaming => "streaming",
            State::Retrying => "retrying",
            State::Paused => "paused",
            State::Standby => "standby",
            State::Halted => "halted",
        }
    }

    /// The role does what it is there for, or would at once if it were its turn (standby) or allowed to (paused).
    pub fn able_to_move(self) -> bool {
        match self {
            State::Snapshot | State::Streaming | State::Paused | State::Standby => true,
            State::Starting | State::Retrying | State::Halted => false,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a role is halted, and what to type.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct HaltStatus {
    pub code: &'static str,
    /// What was found; further facts follow on lines of their own.
    pub message: String,
    pub hint: String,
    #[serde(serialize_with = "rfc3339")]
    pub since: Timestamp,
}

fn rfc3339<S: serde::Serializer>(time: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(time)
}

impl HaltStatus {
    pub fn new(halt: &Halt, since: Timestamp) -> HaltStatus {
        let mut message = halt.message.clone();
        for fact in &halt.facts {
            message.push('\n');
            message.push_str(fact);
        }
        HaltStatus { code: halt.code.as_str(), message, hint: halt.hint.clone(), since }
    }
}

/// How a role that failed is tried again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// After a short pause: it may be over already.
    Closed,
    /// It is an outage: nobody connects until the next probe.
    Open,
    /// A probe is under way.
    HalfOpen,
}

/// What a role that failed waits for: the facts of its pauses.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RetryStatus {
    /// Failures since the role last made progress.
    pub failures: u32,
    /// The last one.
    pub error: String,
    /// When the first of them was.
    #[serde(serialize_with = "rfc3339")]
    pub since: Timestamp,
    /// When it is, or was, tried again after the last one.
    #[serde(serialize_with = "rfc3339")]
    pub next_try: Timestamp,
    pub breaker: BreakerState,
}

/// Where a table stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its turn has not come.
    Waiting,
    /// Its rows are being copied for the first time.
    Snapshot,
    /// It was whole and its rows are being read again; until that ends the copy is not the source's state.
    Reread,
    Streaming,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Waiting => "waiting",
            Phase::Snapshot => "snapshot",
            Phase::Reread => "reread",
            Phase::Streaming => "streaming",
        }
    }
}

/// A table as one role sees it. The row counts are of the copy that is running; `None` outside of one or when unknown.
#[derive(Clone, PartialEq, Debug)]
pub struct TableStatus {
    pub phase: Phase,
    pub rows_done: Option<u64>,
    pub rows_estimated: Option<u64>,
    pub rows_per_second: Option<f64>,
    /// False: this copy is not the source's state whatever is applied, by what the connector says.
    pub equal: bool,
    /// In words, what keeps its existing rows from being read.
    pub waiting_for: Option<String>,
}

impl TableStatus {
    /// A table in `phase`, without row counts.
    pub fn new(phase: Phase) -> TableStatus {
        TableStatus {
            phase,
            rows_done: None,
            rows_estimated: None,
            rows_per_second: None,
            equal: true,
            waiting_for: None,
        }
    }
}

impl TableStatus {
    /// With the number of rows that somebody else estimates. One that was too small is known to be: never more is done than there is.
    fn estimated(self, known: Option<u64>) -> TableStatus {
        let estimated = self.rows_estimated.or(known);
        TableStatus { rows_estimated: estimated.map(|rows| rows.max(self.rows_done.unwrap_or_default())), ..self }
    }

    /// Until the copy is complete, at the rate of the last seconds.
    fn left(&self) -> Option<Duration> {
        let (done, estimated) = (self.rows_done?, self.rows_estimated?);
        let rate = self.rows_per_second.filter(|rate| *rate > 0.0)?;
        Duration::try_from_secs_f64((estimated - done) as f64 / rate).ok()
    }
}

/// A copy that is running.
#[derive(Clone, PartialEq, Debug)]
pub struct Copy {
    pub table: TableName,
    /// `source`, or the sink's name.
    pub place: String,
    pub done: u64,
    /// At least `done`.
    pub estimated: Option<u64>,
    pub per_second: Option<f64>,
    pub left: Option<Duration>,
}

/// The source reader.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SourceStatus {
    pub state: State,
    /// Closed LSN of the last checkpoint that was read back: everything up to here counts.
    pub position: Option<Lsn>,
    /// Bytes of the source's log written after `position`.
    pub lag_bytes: Option<u64>,
    /// Bytes of log that the server keeps because of our slot.
    pub slot_retained_bytes: Option<u64>,
    pub halt: Option<HaltStatus>,
    /// `None` once the reader has made progress after its last failure, or has worked for a while with nothing to do.
    pub retry: Option<RetryStatus>,
    /// In words, what keeps the reader from moving: a transaction at the source, a lease, the last failure.
    pub waiting_for: Option<String>,
    /// Who has paused the reading of existing rows; left out while nobody has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_paused: Option<String>,
    /// Left out where nobody reads any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signals: Option<SignalsStatus>,
    #[serde(skip)]
    pub tables: BTreeMap<TableName, TableStatus>,
}

/// What became of the rows of `source.signal_table` since this process started.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct SignalsStatus {
    pub taken: u64,
    pub refused: u64,
    /// The last one, and why.
    pub last_refused: Option<RefusedSignal>,
    /// In words, why none are read; `None` while they are.
    pub unread: Option<String>,
}

/// A signal that can't be done as it was written; its id and type are what somebody wrote.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RefusedSignal {
    pub id: String,
    pub r#type: String,
    /// Of its commit.
    pub position: Lsn,
    pub message: String,
    pub hint: String,
}

/// One sink.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SinkStatus {
    pub state: State,
    /// Commit LSN of the last transaction of the source that is in.
    pub position: Option<Lsn>,
    /// Every commit that ends at or before here is in.
    pub closed_lsn: Option<Lsn>,
    /// Bytes of the source's log between `closed_lsn` and the newest checkpoint in the ledger.
    pub lag_bytes: Option<u64>,
    /// Seconds since the sink was last level with the newest checkpoint; 0 while it is.
    pub lag_seconds: Option<f64>,
    pub halt: Option<HaltStatus>,
    /// `None` once the sink has made progress after its last failure, or has been level for a while.
    pub retry: Option<RetryStatus>,
    /// In words, what keeps the sink from moving: a partition, another process, the last failure.
    pub waiting_for: Option<String>,
    /// That this process has of a sink in row consistency; left out where it has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PartitionStatus>,
    /// Rows that the sink refused, which are left out until they are put back; left out where there are none.
    #[serde(skip_serializing_if = "is_none")]
    pub parked_rows: u64,
    /// Their records.
    #[serde(skip_serializing_if = "is_none")]
    pub parked_records: u64,
    #[serde(skip)]
    pub tables: BTreeMap<TableName, TableStatus>,
}

/// A partition of a sink's topic that this process applies.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PartitionStatus {
    pub topic: String,
    pub partition: i32,
    /// Of the last commit of which the partition's records are in.
    pub position: Lsn,
    pub next_offset: i64,
    /// Records that count and are not in.
    pub lag_records: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

impl Default for SourceStatus {
    fn default() -> SourceStatus {
        SourceStatus {
            state: State::Starting,
            position: None,
            lag_bytes: None,
            slot_retained_bytes: None,
            halt: None,
            retry: None,
            waiting_for: None,
            snapshot_paused: None,
            signals: None,
            tables: BTreeMap::new(),
        }
    }
}

impl Default for SinkStatus {
    fn default() -> SinkStatus {
        SinkStatus {
            state: State::Starting,
            position: None,
            closed_lsn: None,
            lag_bytes: None,
            lag_seconds: None,
            halt: None,
            retry: None,
            waiting_for: None,
            partitions: Vec::new(),
            parked_rows: 0,
            parked_records: 0,
            tables: BTreeMap::new(),
        }
    }
}

/// The end that a role writes. Cloning gives a second pen for the same page, as the supervisor needs it.
#[derive(Debug)]
pub struct Reporter<S>(watch::Sender<S>);

pub type SourceReporter = Reporter<SourceStatus>;
pub type SinkReporter = Reporter<SinkStatus>;

impl<S> Clone for Reporter<S> {
    fn clone(&self) -> Reporter<S> {
        Reporter(self.0.clone())
    }
}

impl<S: Default> Default for Reporter<S> {
    fn default() -> Reporter<S> {
        Reporter(watch::Sender::new(S::default()))
    }
}

impl<S> Reporter<S> {
    /// Changes the status in place. Cheap (a lock that no reader holds for long), but meant for every checkpoint or batch,
    /// not for every record. The closure must not panic or read the status through another handle.
    pub fn update(&self, change: impl FnOnce(&mut S)) {
        self.0.send_modify(change);
    }

    pub fn watch(&self) -> watch::Receiver<S> {
        self.0.subscribe()
    }
}

impl SourceReporter {
    /// Moving again: nothing is waited for. The way out of `starting`.
    pub fn moving(&self, state: State) {
        self.update(|s| (s.state, s.waiting_for) = (state, None));
    }
}

impl SinkReporter {
    /// Moving again: nothing is waited for. The way out of `starting`.
    pub fn moving(&self, state: State) {
        self.update(|s| (s.state, s.waiting_for) = (state, None));
    }
}

/// The configuration that this process runs by.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ConfigurationStatus {
    /// When it was taken.
    #[serde(serialize_with = "rfc3339")]
    pub since: Timestamp,
    /// Why what the files say by now is not taken; `None` while it is.
    pub refused: Option<String>,
}

/// One role's state without what only its kind has.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RoleState {
    /// `source`, or `sink:NAME`.
    pub role: String,
    pub state: State,
    /// The halt's code and message, or what is waited for.
    pub reason: Option<String>,
}

/// Everything that this process can say of its pipeline. Roles that run in other processes are not on it.
#[derive(Clone, Debug)]
pub struct Board {
    pub pipeline: String,
    pub source: Option<watch::Receiver<SourceStatus>>,
    /// By sink name.
    pub sinks: BTreeMap<String, watch::Receiver<SinkStatus>>,
    /// `None` where nobody looks at the files.
    pub configuration: Option<watch::Receiver<ConfigurationStatus>>,
}

impl Board {
    /// The document of `/status`.
    pub fn status(&self) -> Value {
        let source = self.source.as_ref().map(|watch| watch.borrow().clone());
        let sinks: BTreeMap<&String, SinkStatus> =
            self.sinks.iter().map(|(name, watch)| (name, watch.borrow().clone())).collect();
        let mut status = json!({
            "pipeline": self.pipeline,
            "source": source,
            "sinks": sinks,
            "tables": tables(source.as_ref(), &sinks),
        });
        if let Some(configuration) = &self.configuration {
            status["configuration"] = json!(*configuration.borrow());
        }
        status
    }

    /// Every copy that is running, by table; what the source reads before what sinks write.
    pub fn copies(&self) -> Vec<Copy> {
        let source = self.source.as_ref().map(|watch| watch.borrow().tables.clone()).unwrap_or_default();
        let known = |table: &TableName| source.get(table).and_then(|status| status.rows_estimated);
        let copy = |table: &TableName, place: &str, status: TableStatus| {
            let status = status.estimated(known(table));
            let (table, place, left) = (table.clone(), place.to_owned(), status.left());
            let (estimated, per_second) = (status.rows_estimated, status.rows_per_second);
            Some(Copy { table, place, done: status.rows_done?, estimated, per_second, left })
        };
        let mut copies: Vec<Copy> =
            source.iter().filter_map(|(table, status)| copy(table, "source", status.clone())).collect();
        for (name, watch) in &self.sinks {
            let tables = watch.borrow().tables.clone();
            copies.extend(tables.into_iter().filter_map(|(table, status)| copy(&table, name, status)));
        }
        copies.sort_by(|a, b| a.table.cmp(&b.table));
        copies
    }

    /// Every role's state, the source first, then sinks by name.
    pub fn roles(&self) -> Vec<RoleState> {
        let role = |role: String, state, halt: &Option<HaltStatus>, waiting_for: &Option<String>| {
            let halt = halt.as_ref().map(|halt| format!("{}: {}", halt.code, halt.message));
            RoleState { role, state, reason: halt.or_else(|| waiting_for.clone()) }
        };
        let source = self.source.iter().map(|watch| {
            let s = watch.borrow();
            role("source".to_owned(), s.state, &s.halt, &s.waiting_for)
        });
        let sinks = self.sinks.iter().map(|(name, watch)| {
            let s = watch.borrow();
            role(format!("sink:{name}"), s.state, &s.halt, &s.waiting_for)
        });
        source.chain(sinks).collect()
    }
}

/// `{"public.products": {"phase": …, "orders": {"phase": …, "rows_done": …}}}`. The source alone knows how many rows there
/// are, so its estimate stands in where a sink that is copying has none.
fn tables(source: Option<&SourceStatus>, sinks: &BTreeMap<&String, SinkStatus>) -> Map<String, Value> {
    let mut out: BTreeMap<&TableName, Map<String, Value>> = BTreeMap::new();
    for (name, sink) in sinks {
        for (table, status) in &sink.tables {
            let copying = matches!(status.phase, Phase::Snapshot | Phase::Reread);
            let known = source.filter(|_| copying).and_then(|s| s.tables.get(table)?.rows_estimated);
            let status = status.clone().estimated(known);
            out.entry(table).or_default().insert((*name).clone(), Value::Object(table_keys(&status)));
        }
    }
    for (table, status) in source.iter().flat_map(|s| &s.tables) {
        // After the sinks: should one be called "phase", the contract's own key wins.
        out.entry(table).or_default().extend(table_keys(&status.clone().estimated(None)));
    }
    out.into_iter().map(|(table, keys)| (table.to_string(), Value::Object(keys))).collect()
}

fn table_keys(status: &TableStatus) -> Map<String, Value> {
    let mut keys = Map::new();
    keys.insert("phase".to_owned(), json!(status.phase));
    if !status.equal {
        keys.insert("equal".to_owned(), json!(false));
    }
    for (key, value) in [("rows_done", status.rows_done), ("rows_estimated", status.rows_estimated)] {
        if let Some(value) = value {
            keys.insert(key.to_owned(), json!(value));
        }
    }
    if let Some(what) = &status.waiting_for {
        keys.insert("waiting_for".to_owned(), json!(what));
    }
    if let Some(rate) = status.rows_per_second {
        keys.insert("rows_per_second".to_owned(), json!((rate * 10.0).round() / 10.0));
    }
    if let Some(left) = status.left() {
        keys.insert("eta_seconds".to_owned(), json!(left.as_secs()));
    }
    keys
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::error::{Code, Error};

    /// The situation of docs/design.md section 8's example.
    pub fn board() -> (Board, SourceReporter, SinkReporter) {
        let (source, sink) = (SourceReporter::default(), SinkReporter::default());
        let products = TableName::new("public", "products");
        source.update(|s| {
            s.state = State::Streaming;
            s.position = Some("0/1A2B3C8".parse().unwrap());
            s.lag_bytes = Some(0);
            s.slot_retained_bytes = Some(4096);
            let rows = TableStatus { rows_estimated: Some(90_000), ..TableStatus::new(Phase::Streaming) };
            s.tables.insert(products.clone(), rows);
        });
        let Error::Halt(halt) =
            Error::halt(Code::TopicGap, "2 records are missing", "lockstep resync --all --sink orders")
                .fact("topic shop.public.products, partition 0, offsets 17..18")
        else {
            unreachable!("made as a halt")
        };
        sink.update(|s| {
            s.state = State::Halted;
            s.position = Some("0/1A2B000".parse().unwrap());
            s.closed_lsn = Some("0/1A2B000".parse().unwrap());
            s.lag_bytes = Some(968);
            s.lag_seconds = Some(241.5);
            s.halt = Some(HaltStatus::new(&halt, "2026-01-01T00:00:00Z".parse().unwrap()));
            let rows = TableStatus { rows_done: Some(12_000), ..TableStatus::new(Phase::Snapshot) };
            s.tables.insert(products, rows);
        });
        let board = Board {
            pipeline: "shop".to_owned(),
            source: Some(source.watch()),
            sinks: BTreeMap::from([("orders".to_owned(), sink.watch())]),
            configuration: None,
        };
        (board, source, sink)
    }

    #[test]
    fn the_status_document_has_the_promised_shape() {
        let (board, _source, _sink) = board();
        insta::assert_snapshot!(serde_json::to_string_pretty(&board.status()).unwrap(), @r#"
        {
          "pipeline": "shop",
          "sinks": {
            "orders": {
              "closed_lsn": "0/1A2B000",
              "halt": {
                "code": "TOPIC_GAP",
                "hint": "lockstep resync --all --sink orders",
                "message": "2 records are missing\ntopic shop.public.products, partition 0, offsets 17..18",
                "since": "2026-01-01T00:00:00Z"
              },
              "lag_bytes": 968,
              "lag_seconds": 241.5,
              "position": "0/1A2B000",
              "retry": null,
              "state": "halted",
              "waiting_for": null
            }
          },
          "source": {
            "halt": null,
            "lag_bytes": 0,
            "position": "0/1A2B3C8",
            "retry": null,
            "slot_retained_bytes": 4096,
            "state": "streaming",
            "waiting_for": null
          },
          "tables": {
            "public.products": {
              "orders": {
                "phase": "snapshot",
                "rows_done": 12000,
                "rows_estimated": 90000
              },
              "phase": "streaming",
              "rows_estimated": 90000
            }
          }
        }
        "#);
    }

    /// The example of docs/design.md section 8, as far as it is a contract: each key there is a key here, of the same type.
    #[test]
    fn every_key_of_the_design_is_there() {
        let promised = json!({
            "pipeline": "shop",
            "source": {"state": "streaming", "position": "0/1A2B3C8", "lag_bytes": 0, "slot_retained_bytes": 4096, "halt": null},
            "sinks": {"orders": {
                "state": "halted", "position": "0/1A2B000", "closed_lsn": "0/1A2B000", "lag_bytes": 968, "lag_seconds": 241.5,
                "halt": {"code": "TOPIC_GAP", "message": "…", "hint": "lockstep resync --all --sink orders",
                         "since": "2026-01-01T00:00:00Z"}}},
            "tables": {"public.products": {
                "phase": "streaming", "orders": {"phase": "snapshot", "rows_done": 12000, "rows_estimated": 90000}}}
        });
        fn contains(actual: &Value, promised: &Value, path: &str) {
            match promised {
                Value::Object(keys) => {
                    for (key, value) in keys {
                        let found = actual.get(key).unwrap_or_else(|| panic!("{path}.{key} is missing"));
                        contains(found, value, &format!("{path}.{key}"));
                    }
                }
                Value::String(text) if text == "…" => assert!(actual.is_string(), "{path}"),
                _ => assert_eq!(actual, promised, "{path}"),
            }
        }
        let (board, _source, _sink) = board();
        contains(&board.status(), &promised, "");
    }

    #[test]
    fn what_is_not_known_is_null_and_roles_elsewhere_are_not_invented() {
        let sink = SinkReporter::default();
        let board = Board {
            pipeline: "shop".to_owned(),
            source: None,
            sinks: BTreeMap::from([("orders".to_owned(), sink.watch())]),
            configuration: None,
        };
        let status = board.status();
        assert_eq!(status["source"], Value::Null);
        assert_eq!(status["sinks"]["orders"]["lag_bytes"], Value::Null);
        assert_eq!(status["sinks"]["orders"]["state"], "starting");
        assert_eq!(status["tables"], json!({}));
    }

    #[test]
    fn a_copy_says_how_far_it_is_and_is_never_beyond_its_end() {
        let (board, source, sink) = board();
        let products = TableName::new("public", "products");
        sink.update(|s| s.tables.get_mut(&products).unwrap().rows_per_second = Some(1_500.04));
        let shown = board.status()["tables"]["public.products"]["orders"].clone();
        let promised = json!({"phase": "snapshot", "rows_done": 12_000, "rows_estimated": 90_000, "rows_per_second": 1_500.0, "eta_seconds": 51});
        assert_eq!(shown, promised);
        let copies = board.copies();
        assert_eq!((copies.len(), copies[0].place.as_str(), copies[0].left.unwrap().as_secs()), (1, "orders", 51));
        // Too small an estimate is known to be one; what stands still has no end in sight.
        source.update(|s| s.tables.get_mut(&products).unwrap().rows_estimated = Some(100));
        assert_eq!(board.status()["tables"]["public.products"]["orders"]["rows_estimated"], 12_000);
        assert_eq!(board.copies()[0].left.unwrap().as_secs(), 0);
        sink.update(|s| s.tables.get_mut(&products).unwrap().rows_per_second = Some(0.0));
        assert_eq!(board.copies()[0].left, None);
    }

    #[test]
    fn states_and_phases_have_one_spelling() {
        for state in State::ALL {
            assert_eq!(json!(state), state.as_str());
        }
        for phase in [Phase::Waiting, Phase::Snapshot, Phase::Reread, Phase::Streaming] {
            assert_eq!(json!(phase), phase.as_str());
        }
    }

    #[test]
    fn a_role_gives_its_halt_or_what_it_waits_for_as_the_reason() {
        let (board, source, _sink) = board();
        source.update(|s| (s.state, s.waiting_for) = (State::Retrying, Some("connecting to the source".to_owned())));
        let roles = board.roles();
        assert_eq!(roles[0].reason.as_deref(), Some("connecting to the source"));
        assert!(roles[1].reason.as_deref().unwrap().starts_with("TOPIC_GAP: 2 records are missing\n"));
    }
}
