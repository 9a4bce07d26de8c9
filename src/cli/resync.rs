//! `lockstep resync`: asks for a sink's copy to be read again.
//!
//! The request goes into the ledger, where the reader and the sink meet it; nothing else is touched. From the moment that the
//! sink sees it, changes of its tables, or of the rows that are named, are left out until their rows have come again, which is
//! also the way past a gap in a topic or a row that can't be applied.

use std::time::Duration;

use clap::Args;

use super::{ConfigArgs, Failure};
use crate::capture::asks::{self, Ask};
use crate::ledger::entry::Body;
use crate::ledger::topic::{APPEND_TIMEOUT, Appender, Reading};

/// Read a sink's copy of a table, or of all its tables, again while everything flows
///
/// Writes a request into the ledger. The source role answers it with the table's rows, the sink replaces what it has by them:
/// rows that are right are not rewritten, rows that should not be there go. A sink that is halted takes the request up when
/// its role is started again.
///
/// With --where only rows with such keys are read, and everything else stays as it is: "id = 5", "id >= 100 and id < 200"; of
/// a key of several columns "a = 1 and b = 'x'", "(a, b) > (1, 'x') and (a, b) <= (5, 'y')". Texts compare by their bytes. While
/// something else of the table is still to be read for the sink, it is read as a whole.
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
    /// Only rows whose key lies in this range
    #[arg(long, value_name = "RANGE", conflicts_with = "all")]
    r#where: Option<String>,
}

pub fn run(args: &ResyncArgs) -> Result<u8, Failure> {
    let config = super::load(&args.config.config)?;
    let state = Reading::open(&config.kafka)?.fold_all()?;
    // What patterns come to is the reader's to say.
    let routed = state.routed.as_ref().map(|routed| routed.tables.clone()).unwrap_or_default();
    let config = config.resolve(&routed).0;
    let ask = Ask {
        table: args.table.clone(),
        sink: args.sink.clone(),
        condition: args.r#where.clone(),
        asked_by: "lockstep resync".to_owned(),
    };
    super::block_on(async {
        let requests = asks::requests(&config, &state, &ask).await?;
        let mut appender = Appender::open(&config.kafka)?;
        appender.base = state.base;
        for request in requests {
            let tables = request.tables.len();
            let what = match &request.within {
                Some(_) => "a range asked for".to_owned(),
                None => format!("{tables} tables asked for"),
            };
            let who = if request.sink.is_empty() { "topics".to_owned() } else { format!("sink {}", request.sink) };
            let offset = appender.append_and_wait(Body::Request(request), APPEND_TIMEOUT).await?;
            super::print(&format!("{who}: {what} (ledger entry {offset})\n"))?;
        }
        appender.close(Duration::from_secs(1));
        Ok(0)
    })
}
