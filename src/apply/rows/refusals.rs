//! What a configuration asks for that `consistency = "row"` does not go with: at `lockstep check` and at every start. What is in
//! the way at the sink's tables says [`crate::sink::rows`].

use crate::apply::routes::has_patterns;
use crate::config::{self, Config, Consistency, Evolve, ForeignKeys};
use crate::error::{Code, Halt};

/// All of it.
pub fn refusals(config: &Config, sink: &config::Sink) -> Vec<Halt> {
    if sink.consistency != Consistency::Row {
        return Vec::new();
    }
    let halt = |what: String, hint: String| Halt {
        code: Code::RowConsistency,
        message: format!("consistency = \"row\" of sink {} {what}", sink.name),
        facts: vec![],
        hint,
    };
    let mut halts = Vec::new();
    if sink.foreign_keys == ForeignKeys::AfterLoad {
        let hint =
            format!("write foreign_keys = \"always\" under [sinks.{}], and drop those between its tables", sink.name);
        halts.push(halt("leaves no foreign keys to set aside".to_owned(), hint));
    }
    if sink.rows_per_second.is_some() || sink.bytes_per_second.is_some() {
        let hint = format!("delete rows_per_second and bytes_per_second under [sinks.{}]", sink.name);
        halts.push(halt("is written by several processes, and a rate is kept by one".to_owned(), hint));
    }
    if has_patterns(config, &sink.name) {
        let hint = format!("name each table of sink {} in a connector of its own", sink.name);
        halts.push(halt("takes tables by their names, not by a pattern".to_owned(), hint));
    }
    let tables = config.tables.iter().flat_map(|table| &table.sinks).filter(|table| table.sink == sink.name);
    for table in tables.filter(|table| table.evolve != Evolve::Off) {
        let hint =
            format!("write evolve = \"off\" under [sinks.{}] of the connector, and alter the table there", sink.name);
        halts.push(halt(format!("can't let table {} follow the source's", table.table), hint));
    }
    halts
}
