//! What becomes of the rows that a table has before it is followed: the connector's `snapshot` and a sink's `on_missing`.
//!
//! A sink of a table whose rows are never read is not equal to the source, whatever it is told afterwards: it must leave out
//! changes of rows that it never had, and say so (`on_missing = "skip"`), or there must be none (`insert_only`). Everywhere else
//! a missing row is a divergence and nothing to be passed over, so `skip` is refused there.
//!
//! Tables are loaded in the order of the source's foreign keys; `snapshot_order` decides where those leave it open.

use super::findings::{At, Report};
use super::reader::Section;
use super::{Delete, Table};

/// Which rows of a table are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Snapshot {
    /// Those that are there, and every change.
    #[default]
    Initial,
    /// Changes alone.
    Never,
    /// Those that are there, once, and no change.
    Only,
}

/// More steps than anybody has tables.
const ORDER_MOST: i64 = 1_000_000;

/// Debezium's words behind ours.
const WORDS: [(&str, Snapshot); 5] = [
    ("initial", Snapshot::Initial),
    ("never", Snapshot::Never),
    ("only", Snapshot::Only),
    ("no_data", Snapshot::Never),
    ("initial_only", Snapshot::Only),
];

impl Snapshot {
    pub fn as_str(self) -> &'static str {
        super::wire::word(&WORDS, self)
    }
}

/// What a sink does about a change of a row that it does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnMissing {
    /// The sink is not what it claims to be: `SINK_DIVERGED`.
    #[default]
    Halt,
    /// The change is left out and counted.
    Skip,
}

impl OnMissing {
    pub fn as_str(self) -> &'static str {
        match self {
            OnMissing::Halt => "halt",
            OnMissing::Skip => "skip",
        }
    }
}

pub(super) fn snapshot(section: &mut Section<'_>) -> Option<Snapshot> {
    section.choice("snapshot", &WORDS)
}

/// Where among the others the table is loaded.
pub(super) fn order(section: &mut Section<'_>) -> i32 {
    let order = section.integer("snapshot_order", -ORDER_MOST..=ORDER_MOST).unwrap_or_default();
    i32::try_from(order).expect("it is in the range")
}

pub(super) fn on_missing(section: &mut Section<'_>) -> OnMissing {
    let words = [OnMissing::Halt, OnMissing::Skip].map(|how| (how.as_str(), how));
    section.choice("on_missing", &words).unwrap_or_default()
}

/// What was said of the table, or else of all tables that no sink takes.
pub(super) fn resolved(said: Option<Snapshot>, of_topics: Snapshot, for_topic_alone: bool) -> Snapshot {
    said.unwrap_or(if for_topic_alone { of_topics } else { Snapshot::Initial })
}

/// What can't be together. `sinks_at` is where the table's sinks are named, `at` where the table is.
pub(super) fn check(table: &Table, at: &At, sinks_at: &[At], report: &Report) {
    if table.snapshot == Snapshot::Only
        && let Some(sink) = table.sinks.first()
    {
        let message = format!(
            "snapshot = \"only\" tells of no change, so sink {:?} would be equal to nothing that the source ever was",
            sink.sink
        );
        report.add(at, message, "write snapshot = \"initial\", or delete [sinks] from this connector");
    }
    for (sink, at) in table.sinks.iter().zip(sinks_at) {
        let name = &sink.sink;
        match (table.snapshot, sink.on_missing) {
            (Snapshot::Never, OnMissing::Halt) if !table.insert_only => {
                let message = format!(
                    "snapshot = \"never\": sink {name:?} never gets the rows that are there, and a change of one would halt it"
                );
                let hint = format!(
                    "write on_missing = \"skip\" under [sinks.{name}], or insert_only = true, or snapshot = \"initial\""
                );
                report.add(at, message, hint);
            }
            (Snapshot::Never, OnMissing::Skip) if sink.delete != Delete::Row => {
                let message = format!(
                    "on_missing = \"skip\" of sink {name:?} with delete = \"soft\": nobody could tell rows that were never read from rows that are marked"
                );
                report.add(at, message, "write delete = \"row\", or snapshot = \"initial\" above the sections");
            }
            (Snapshot::Initial, OnMissing::Skip) => {
                let message = format!(
                    "on_missing = \"skip\" would hide that sink {name:?}, which is copied whole, has lost rows"
                );
                report.add(at, message, "delete on_missing, or write snapshot = \"never\" above the sections");
            }
            _ => {}
        }
    }
}
