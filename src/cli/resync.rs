//! `lockstep resync`: asks for a sink's copy to be read again.
//!
//! The request goes into the ledger, where the reader and the sink meet it; nothing else is touched. From the moment that the
//! sink sees it, changes of its tables are left out until their rows have come again, which is also the way past a gap in a
//! topic or a row that can't be applied.

use std::time::Duration;

use clap::Args;
use uuid::Uuid;

use super::{ConfigArgs, Failure};
use crate::config::{Config, Snapshot};
use crate::ledger::entry::{Body, Request, RequestKind};
use crate::ledger::topic::{APPEND_TIMEOUT, Appender, Reading};
use crate::relation::TableName;

/// Read a sink's copy of a table, or of all its tables, again while everything flows
///
/// Writes a request into the ledger. The source role answers it with the table's rows, the sink replaces what it has by them:
/// rows that are right are not rewritten, rows that should not be there go. A sink that is halted takes the request up when
/// its role is started again.
#[derive(Args)]
pub struct ResyncArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The table at the source, as schema.table
    #[arg(value_name = "TABLE", required_unless_present = "all", conflicts_with = "all")]
    table: Option<String>,
    /// Every table that the sink takes, but for those with snapshot = "never"
    #[arg(long)]
    all: bool,
    /// Only this sink [default: every sink that takes the table]
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
}

pub fn run(args: &ResyncArgs) -> Result<u8, Failure> {
    let config = super::load(&args.config.config)?;
    let state = Reading::open(&config.kafka)?.fold_all()?;
    let base = state.base;
    // What patterns come to is the reader's to say.
    let routed = state.routed.map(|routed| routed.tables).unwrap_or_default();
    let requests = requests(&config.resolve(&routed).0, args)?;
    super::block_on(async {
        let mut appender = Appender::open(&config.kafka)?;
        appender.base = base;
        for request in requests {
            let line = format!("sink {}: {} tables asked for", request.sink, request.tables.len());
            let offset = appender.append_and_wait(Body::Request(request), APPEND_TIMEOUT).await?;
            super::print(&format!("{line} (ledger entry {offset})\n"))?;
        }
        appender.close(Duration::from_secs(1));
        Ok(0)
    })
}

fn requests(config: &Config, args: &ResyncArgs) -> Result<Vec<Request>, Failure> {
    let sinks: Vec<&str> = config.sinks.iter().map(|sink| sink.name.as_str()).collect();
    if let Some(unknown) = args.sink.as_deref().filter(|name| !sinks.contains(name)) {
        return Err(Failure::Usage(format!("there is no sink {unknown}; the configuration has {}", sinks.join(", "))));
    }
    let tables: Vec<_> =
        config.tables.iter().filter(|t| args.table.as_ref().is_none_or(|name| t.name.to_string() == *name)).collect();
    if tables.is_empty() {
        let known: Vec<String> = config.tables.iter().map(|table| table.name.to_string()).collect();
        return Err(Failure::Usage(format!("no connector has this table; the configuration has {}", known.join(", "))));
    }
    let wanted = sinks.into_iter().filter(|name| args.sink.as_deref().is_none_or(|only| only == *name));
    let requests = wanted.map(|sink| {
        // What is never read is read for a person who says so by name.
        let all = tables.iter().filter(|table| args.table.is_some() || table.snapshot == Snapshot::Initial);
        let taken = all.filter(|table| table.sinks.iter().any(|target| target.sink == sink));
        let tables = taken.map(|table| TableName::clone(&table.name)).collect();
        Request::new(Uuid::new_v4(), RequestKind::Resync, sink, tables, "lockstep resync")
    });
    let requests: Vec<Request> = requests.filter(|request| !request.tables.is_empty()).collect();
    match requests.is_empty() {
        true => Err(Failure::Usage("the sink does not take this table".to_owned())),
        false => Ok(requests),
    }
}
