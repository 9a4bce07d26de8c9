//! `lockstep retry`: has what a sink refused, and parked, put back.
//!
//! What is parked stands in the sink, and so does the request: the process that owns the sink finds it there within a second, or
//! when it starts. So this needs the sink's database alone.

use std::time::{Duration, Instant};

use clap::Args;
use uuid::Uuid;

use super::{ConfigArgs, Failure};
use crate::config::{self, Config, Consistency};
use crate::relation::TableName;
use crate::sink::letters::{Held, texts_of};
use crate::sink::{Sink, for_engine};

/// How long whoever owns the sink may take before we leave the request to it.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// Put back what a sink refused and parked, or list it
///
/// With on_refused = "park" a row that the sink refuses is left out, and its records are parked: in lockstep.parked at the sink, with a
/// copy in the dead-letter topic. Once the row fits (the sink was mended), this has the sink's owner write the records of each row in
/// their order. What is refused again stays parked, with the new reason.
///
/// A row that gets right at the source needs none of it: the next record with all of its columns, its deletion, a TRUNCATE and
/// `lockstep resync` make it right at the sink too, and what was parked of it is settled.
///
/// Exits with 1 while anything that was asked for stays parked.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct RetryArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only this sink [default: every sink in row consistency]
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
    /// Rows of this table at the source, as schema.table
    #[arg(long, value_name = "TABLE", required_unless_present_any = ["all", "list"])]
    table: Option<String>,
    /// Only the row with this key, as --list prints it; of a key of one column its value will do
    #[arg(long, value_name = "KEY", requires = "table", conflicts_with = "all")]
    key: Option<String>,
    /// Everything that is parked
    #[arg(long)]
    all: bool,
    /// Print what is parked and why, and ask for nothing
    #[arg(long, conflicts_with = "all")]
    list: bool,
}

/// What is meant of a sink's parked rows.
struct Which {
    table: Option<TableName>,
    key: Option<String>,
}

impl Which {
    fn of(args: &RetryArgs) -> Result<Which, Failure> {
        let table = args.table.as_deref().map(|name| match name.split_once('.') {
            Some((schema, table)) => Ok(TableName::new(schema, table)),
            None => Err(Failure::Usage(format!("--table takes schema.table, found {name:?}"))),
        });
        Ok(Which { table: table.transpose()?, key: args.key.clone() })
    }

    fn has(&self, held: &Held) -> bool {
        self.table.as_ref().is_none_or(|table| held.of.table == *table)
            && self.key.as_ref().is_none_or(|key| held.of.key == *key || texts_of(&held.of.key) == [key.as_str()])
    }
}

pub fn run(args: &RetryArgs) -> Result<u8, Failure> {
    let config = super::load_own(&args.config.config, "retry")?;
    let which = Which::of(args)?;
    let sinks: Vec<&config::Sink> = match &args.sink {
        Some(name) => config.sinks.iter().filter(|sink| sink.name == *name).collect(),
        None => config.sinks.iter().filter(|sink| sink.consistency == Consistency::Row).collect(),
    };
    if sinks.is_empty() {
        let what = args.sink.as_ref().map_or("no sink has consistency = \"row\"".to_owned(), |name| {
            format!("the configuration has no sink {name}")
        });
        return Err(Failure::Usage(what));
    }
    super::block_on(async {
        let mut left = 0;
        for sink in sinks {
            let sink = sink.clone();
            left += for_engine!(sink, S => of_sink::<S>(&config, &sink, &which, args.list).await?);
        }
        Ok(u8::from(left > 0 && !args.list))
    })
}

/// How many rows of what is meant are parked in the end.
async fn of_sink<S: Sink>(config: &Config, sink: &config::Sink, which: &Which, list: bool) -> Result<usize, Failure> {
    let mut database = S::connect(sink, &config.name, Uuid::new_v4()).await?;
    let mut held = if database.has_letters().await? { meant(&mut database, which).await? } else { Vec::new() };
    if held.is_empty() {
        super::print(&format!("sink {}: nothing of it is parked\n", sink.name))?;
        return Ok(0);
    }
    if list {
        super::print(&listed(&sink.name, &held))?;
        return Ok(held.len());
    }
    let (asked, begun) = (held.len(), Instant::now());
    for held in &held {
        database.ask_letters(&held.of).await?;
    }
    loop {
        held = meant(&mut database, which).await?;
        let waiting = held.iter().any(|held| held.asked);
        if !waiting || begun.elapsed() > PATIENCE {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    let back = asked.saturating_sub(held.len());
    super::print(&format!("sink {}: {back} rows put back, {} still parked\n", sink.name, held.len()))?;
    if held.iter().any(|held| held.asked) {
        let text = format!(
            "sink {}: nobody who owns it took this up within {} s; it stands, and is done once `lockstep run --role sink:{}` does",
            sink.name,
            PATIENCE.as_secs(),
            sink.name
        );
        return Err(Failure::Other(text));
    }
    if !held.is_empty() {
        super::print(&listed(&sink.name, &held))?;
    }
    Ok(held.len())
}

async fn meant<S: Sink>(database: &mut S, which: &Which) -> Result<Vec<Held>, Failure> {
    let mut held = database.held_letters().await?;
    held.retain(|held| which.has(held));
    Ok(held)
}

fn listed(sink: &str, held: &[Held]) -> String {
    let head = ["SINK", "TABLE", "KEY", "RECORDS", "SINCE", "CODE", "SQLSTATE", "REASON"].map(str::to_owned).to_vec();
    let line = |held: &Held| {
        let since = jiff::Timestamp::from_second(held.parked_at).map(|at| at.to_string()).unwrap_or_default();
        let reason = &held.reason;
        vec![
            sink.to_owned(),
            held.of.table.to_string(),
            held.of.key.clone(),
            held.letters.to_string(),
            since,
            reason.code.clone(),
            reason.sqlstate.clone().unwrap_or_else(|| "-".to_owned()),
            reason.message.clone(),
        ]
    };
    super::columns(&std::iter::once(head).chain(held.iter().map(line)).collect::<Vec<_>>())
}
