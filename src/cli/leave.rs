//! `lockstep leave`: a sink that is gone is told to the ledger.
//!
//! The ledger keeps what any of its sinks may still need. One that will never come back would keep it for ever.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use uuid::Uuid;

use super::{ConfigArgs, Failure};
use crate::ledger::entry::{Body, Request, RequestKind};
use crate::ledger::topic::{APPEND_TIMEOUT, Appender, Reading};

/// Say that a sink is gone for good, so that the ledger keeps nothing for it any more
///
/// Take the sink out of the configuration first ([sinks.SINK] and the connectors' sections for it), stop the process that has
/// its role, then run this. What the sink's database holds is not touched. A sink that comes back under the name loads every
/// table again.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct LeaveArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The sink's name
    #[arg(value_name = "SINK")]
    sink: String,
}

pub fn run(args: &LeaveArgs) -> Result<u8, Failure> {
    let config = super::load_own(&args.config.config, "leave")?;
    let sink = &args.sink;
    if config.sinks.iter().any(|configured| configured.name == *sink) {
        let text = format!("sink {sink} is still in the configuration: take [sinks.{sink}] out first");
        return Err(Failure::Usage(text));
    }
    let state = Reading::open(&config.kafka)?.fold_all()?;
    let known = state.joins.iter().map(|join| join.request.sink.as_str());
    // Loads for topics alone are of no sink.
    let known: BTreeSet<&str> = known.filter(|name| !name.is_empty()).collect();
    if !known.contains(sink.as_str()) {
        let known: Vec<&str> = known.into_iter().collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(Failure::Usage(format!("the ledger knows no sink {sink}; it knows: {known}")));
    }
    let request = Request::new(Uuid::new_v4(), RequestKind::Leave, sink, Vec::new(), "lockstep leave");
    super::block_on(async {
        let mut appender = Appender::open(&config.kafka)?;
        appender.base = state.base;
        let offset = appender.append_and_wait(Body::Request(request), APPEND_TIMEOUT).await?;
        appender.close(Duration::from_secs(1));
        super::print(&format!("sink {sink} has left (ledger entry {offset})\n"))?;
        Ok(0)
    })
}
