//! What becomes of a row that a sink refuses: `on_refused` and what goes with it under `[sinks.NAME]`.

use super::findings::{At, Report};
use super::load::FILE;
use super::process::check_topic;
use super::reader::Section;
use super::{Consistency, Delete, OnRefused, Parking, Sink, Table};

/// More are a mistake of the table and not of its rows, most likely.
const RECORDS_MAX: u32 = 1_000;

/// `[sinks.NAME]` as far as it says something of rows that are refused. `stem`: what topics of this pipeline begin with.
pub(super) fn parking(section: &mut Section<'_>, consistency: Consistency, stem: &str, sink: &str) -> Parking {
    let words = [OnRefused::Halt, OnRefused::Park].map(|fate| (fate.as_str(), fate));
    let on_refused = section.choice("on_refused", &words).unwrap_or_default();
    let topic = section.text("parked_topic");
    check_topic(section, "parked_topic", topic.as_ref());
    let topic = topic.map_or_else(|| format!("lockstep.{stem}.{sink}.parked"), |topic| topic.value);
    let records_max = section.count("parked_max", RECORDS_MAX, 1..=1_000_000);
    if on_refused == OnRefused::Park
        && consistency != Consistency::Row
        && let Some(at) = section.place("on_refused")
    {
        let message = "on_refused = \"park\" leaves a row out of its transaction, and consistency = \"transaction\" leaves out none";
        let hint = "write consistency = \"row\" beside it, or on_refused = \"halt\"";
        section.report().add(&at, message, hint);
    }
    Parking { on_refused, topic, records_max: u64::from(records_max) }
}

/// What can't be together with a sink that parks. `sinks_at` is where the table's sinks are named.
pub(super) fn check<'a>(table: &Table, sinks_at: &[At], sinks: impl Iterator<Item = &'a Sink>, report: &Report) {
    let parking: Vec<&str> =
        sinks.filter(|sink| sink.parking.on_refused == OnRefused::Park).map(|sink| sink.name.as_str()).collect();
    for (target, at) in table.sinks.iter().zip(sinks_at) {
        let name = &target.sink;
        if target.delete != Delete::Row && parking.contains(&name.as_str()) {
            let message =
                format!("delete = \"soft\" at sink {name:?}, which parks rows: what is put back is not marked yet");
            let hint = format!("write delete = \"row\", or on_refused = \"halt\" under [sinks.{name}] of {FILE}");
            report.add(at, message, hint);
        }
    }
}
