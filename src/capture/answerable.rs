//! Which requests this reader answers.
//!
//! A request waits for a reader that can answer it in full: an answer without its rows, or with records that no sink can read,
//! would tell the sink that it is whole.

use crate::config::Table;
use crate::ledger::entry::Request;
use crate::relation::TableName;

/// Who asks where no sink does; no sink can have this name.
pub const TOPICS: &str = "";

/// Whether a reader of these connectors has every table of the request, in the form that its asker needs. `there` are the tables
/// that the source has.
pub fn is_answerable(request: &Request, tables: &[Table], there: &[TableName]) -> bool {
    let reads = |name: &TableName| tables.iter().any(|table| table.name == *name && table.wire.is_whole());
    request.tables.iter().all(|name| there.contains(name) && (request.sink == TOPICS || reads(name)))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::config::{Records, Snapshot, TableWire};
    use crate::ledger::entry::RequestKind;
    use crate::transform::Shape;

    #[test]
    fn sinks_get_no_records_that_they_can_not_read() {
        let table = |name: &str, wire: TableWire| Table {
            name: TableName::new("public", name),
            by_pattern: false,
            topic: String::new(),
            partitions: 1,
            insert_only: false,
            shape: Shape::default(),
            skip_unchanged: false,
            snapshot: Snapshot::Initial,
            snapshot_order: 0,
            wire,
            sinks: vec![],
        };
        let flat = TableWire { records: Records { flat: true, ..Records::default() }, ..TableWire::default() };
        let thin = TableWire { skipped: vec!['d'], ..TableWire::default() };
        let tables = [table("whole", TableWire::default()), table("flat", flat), table("thin", thin)];
        let there: Vec<TableName> = tables.iter().map(|table| table.name.clone()).collect();
        let asks = |sink: &str, names: &[&str]| {
            let tables_asked = names.iter().map(|name| TableName::new("public", *name)).collect();
            let request = Request::new(Uuid::nil(), RequestKind::Join, sink, tables_asked, "");
            is_answerable(&request, &tables, &there)
        };
        assert!(asks("orders", &["whole"]));
        assert!(asks(TOPICS, &["whole", "flat", "thin"]));
        assert!(!asks("orders", &["whole", "flat"]));
        assert!(!asks("orders", &["thin"]));
        assert!(!asks("orders", &["elsewhere"]) && !asks(TOPICS, &["elsewhere"]));
    }
}
