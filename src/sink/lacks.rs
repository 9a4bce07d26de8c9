//! What a configuration can ask of a sink that not every engine can do. It is refused by name, at `lockstep check` and at every
//! start, before anything is written.

use super::Sink;
use crate::config::{self, Evolve, ForeignKeys};
use crate::error::{Code, Halt, Result};

/// All that is asked for of what an engine may do without.
pub fn all(sink: &config::Sink, tables: &[&config::SinkTable]) -> Vec<Halt> {
    let halt = |what: String, hint: String| Halt {
        code: Code::Config,
        message: format!("sink {} is {}, which can't {what}", sink.name, sink.engine.kind()),
        facts: vec![],
        hint,
    };
    let mut halts = Vec::new();
    if sink.foreign_keys != ForeignKeys::Always {
        let hint = format!("write foreign_keys = \"always\" under [sinks.{}]", sink.name);
        halts.push(halt("set foreign keys aside for a first copy".to_owned(), hint));
    }
    if !sink.synchronous_commit {
        let hint = format!("write synchronous_commit = true under [sinks.{}]", sink.name);
        halts.push(halt("be told to answer a commit before it is safe".to_owned(), hint));
    }
    for table in tables.iter().filter(|table| table.evolve != Evolve::Off) {
        let hint =
            format!("write evolve = \"off\" under [sinks.{}] of the connector, and alter the table there", sink.name);
        halts.push(halt(format!("let table {} follow the source's", table.table), hint));
    }
    halts
}

/// As a start has it: the first of what the engine lacks.
pub fn refuse<'a, S: Sink>(sink: &config::Sink, tables: impl Iterator<Item = &'a config::SinkTable>) -> Result<()> {
    let halts = S::lacks(sink, &tables.collect::<Vec<_>>());
    halts.into_iter().next().map_or(Ok(()), |halt| Err(halt.into()))
}
