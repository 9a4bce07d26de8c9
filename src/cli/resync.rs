//! `lockstep resync`: asks for a sink's copy to be read again.
//!
//! The request goes into the ledger, where the reader and the sink meet it; nothing else is touched. From the moment that the
//! sink sees it, changes of its tables, or of the rows that are named, are left out until their rows have come again, which is
//! also the way past a gap in a topic or a row that can't be applied.

use std::sync::Arc;

use clap::Args;
use tokio::sync::watch;

use super::{ConfigArgs, Failure};
use crate::capture::asks::{self, Ask};
use crate::capture::steering::{self, Steer};
use crate::config::Config;
use crate::error::{Code, Error};
use crate::http::admin::{Asked, Asking, Resync, Wanted};
use crate::ledger::entry::Request;

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
    let config = Arc::new(super::load_own(&args.config.config, "resync")?);
    let ask = Ask {
        table: args.table.clone(),
        sink: args.sink.clone(),
        condition: args.r#where.clone(),
        asked_by: "lockstep resync".to_owned(),
    };
    for (offset, request) in super::block_on(asks::ask(&config, &ask))? {
        let what = match &request.within {
            Some(_) => "a range asked for".to_owned(),
            None => format!("{} tables asked for", request.tables.len()),
        };
        let who = if request.sink.is_empty() { "topics".to_owned() } else { format!("sink {}", request.sink) };
        super::print(&format!("{who}: {what} (ledger entry {offset})\n"))?;
    }
    Ok(0)
}

/// The same for the admin socket, by the configuration that is in force when it is asked.
pub fn asking(config: watch::Receiver<Arc<Config>>) -> Asking {
    Arc::new(move |wanted: Wanted| {
        let config = config.borrow().clone();
        if config.topics.is_some() {
            let message = "the topics of this pipeline are another program's ([topics]): there is no ledger to ask in";
            return Err(Error::halt(Code::RequestRefused, message, "ask Debezium, with a signal of its own"));
        }
        let Resync { table, sink, r#where: condition, .. } = match wanted {
            Wanted::Resync(resync) => resync,
            Wanted::Pause => return steered(&config, &Steer::Pause),
            Wanted::Resume => return steered(&config, &Steer::Resume),
            Wanted::Stop(tables) => return steered(&config, &Steer::Stop(tables)),
        };
        let ask = Ask { table, sink, condition, asked_by: "admin socket".to_owned() };
        Ok(super::block_on(asks::ask(&config, &ask))?.into_iter().map(asked).collect())
    })
}

fn steered(config: &Arc<Config>, steer: &Steer) -> crate::error::Result<Vec<Asked>> {
    Ok(vec![asked(super::block_on(steering::steer(config, steer, "admin socket"))?)])
}

fn asked((ledger_entry, request): (i64, Request)) -> Asked {
    Asked {
        id: request.id.to_string(),
        sink: request.sink,
        tables: request.tables.iter().map(ToString::to_string).collect(),
        ledger_entry,
    }
}
