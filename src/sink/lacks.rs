//! What a configuration can ask of a sink that not every engine can do. It is refused by name, at `lockstep check` and at every
//! start, before anything is written.

use super::Sink;
use crate::config::{self, Consistency, Delete, Evolve, ForeignKeys};
use crate::error::{Code, Halt, Result};

/// All that is asked for of what an engine may do without.
pub fn all(sink: &config::Sink, tables: &[&config::SinkTable]) -> Vec<Halt> {
    let of_sink = foreign_keys_aside(sink).into_iter().chain(early_answers(sink)).chain(rows_apart(sink));
    let of_tables = evolution(sink, tables).chain(soft_deletes(sink, tables)).chain(values(sink, tables));
    of_sink.chain(of_tables).collect()
}

/// Foreign keys that are set aside for a first copy.
pub fn foreign_keys_aside(sink: &config::Sink) -> Option<Halt> {
    let hint = || format!("write foreign_keys = \"always\" under [sinks.{}]", sink.name);
    (sink.foreign_keys != ForeignKeys::Always).then(|| halt(sink, "set foreign keys aside for a first copy", hint()))
}

/// Commits that are answered before they are safe.
pub fn early_answers(sink: &config::Sink) -> Option<Halt> {
    let hint = || format!("write synchronous_commit = true under [sinks.{}]", sink.name);
    (!sink.synchronous_commit).then(|| halt(sink, "be told to answer a commit before it is safe", hint()))
}

/// Partitions that are written each in its own time.
pub fn rows_apart(sink: &config::Sink) -> Option<Halt> {
    let hint = || format!("write consistency = \"transaction\" under [sinks.{}]", sink.name);
    (sink.consistency != Consistency::Transaction).then(|| halt(sink, "be written partition by partition", hint()))
}

/// Tables that follow the source's.
pub fn evolution<'a>(sink: &'a config::Sink, tables: &'a [&config::SinkTable]) -> impl Iterator<Item = Halt> + 'a {
    tables.iter().filter(|table| table.evolve != Evolve::Off).map(|table| {
        let hint =
            format!("write evolve = \"off\" under [sinks.{}] of the connector, and alter the table there", sink.name);
        halt(sink, &format!("let table {} follow the source's", table.table), hint)
    })
}

/// Rows that stay when they are deleted at the source.
pub fn soft_deletes<'a>(sink: &'a config::Sink, tables: &'a [&config::SinkTable]) -> impl Iterator<Item = Halt> + 'a {
    tables.iter().filter(|table| table.delete != Delete::Row).map(|table| {
        let hint = format!("write delete = \"row\" under [sinks.{}] of the connector", sink.name);
        halt(sink, &format!("keep deleted rows of table {} with a mark", table.table), hint)
    })
}

/// Columns that are computed.
pub fn values<'a>(sink: &'a config::Sink, tables: &'a [&config::SinkTable]) -> impl Iterator<Item = Halt> + 'a {
    tables.iter().filter(|table| !table.values.is_empty()).map(|table| {
        let hint =
            format!("delete values under [sinks.{}] of the connector, and make generated columns there", sink.name);
        halt(sink, &format!("be told what to compute for table {}", table.table), hint)
    })
}

fn halt(sink: &config::Sink, what: &str, hint: String) -> Halt {
    let message = format!("sink {} is {}, which can't {what}", sink.name, sink.engine.kind());
    Halt { code: Code::Config, message, facts: vec![], hint }
}

/// As a start has it: the first of what the engine lacks.
pub fn refuse<'a, S: Sink>(sink: &config::Sink, tables: impl Iterator<Item = &'a config::SinkTable>) -> Result<()> {
    let halts = S::lacks(sink, &tables.collect::<Vec<_>>());
    halts.into_iter().next().map_or(Ok(()), |halt| Err(halt.into()))
}
