//! `lockstep ledger`: what the ledger holds, and which of it counts.
//!
//! The fold of reader and sinks ([`State`]) is run over the entries, so what is printed as superseded is what they ignore.

use std::fmt::Write;

use clap::Args;
use jiff::Timestamp;

use super::{ConfigArgs, Failure};
use crate::config::Kafka;
use crate::error::{Code, Result};
use crate::kafka::consumer;
use crate::ledger::entry::{Assembler, Body, Checkpoint, Entry};
use crate::ledger::state::{Event, State};
use crate::ledger::topic::{PARTITION, Reading};

/// Entries read at once: some MiB at the most.
const PIECE: i64 = 5_000;

/// Print the newest entries of the ledger, the topic that says which records count
///
/// One line an entry: offset, time, type and what it says. "superseded" marks entries of a reader that had lost its claim;
/// nobody acts on them.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct LedgerArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// How many of the newest entries
    #[arg(long, value_name = "N", default_value_t = 20)]
    last: u32,
    /// From this offset on, instead of the newest
    #[arg(long, value_name = "OFFSET", conflicts_with = "last")]
    from: Option<u32>,
    /// Print each entry's own JSON with its offset and time, one a line
    #[arg(long)]
    json: bool,
}

pub fn run(args: &LedgerArgs) -> Result<u8, Failure> {
    let config = super::load_own(&args.config.config, "ledger")?;
    let kafka = &config.kafka;
    let mut reading = Reading::open(kafka)?;
    let (low, high) = reading.bounds()?;
    let from = args.from.map_or(high - i64::from(args.last), i64::from).clamp(low, high);
    let mut reader = Printer { from, json: args.json, state: State::default(), assembler: Assembler::default() };
    // What an entry means depends on what stands before it.
    let mut at = reading.fold_start(from)?;
    while at < high {
        let to = high.min(at + PIECE);
        super::print(&reader.piece(kafka, at, to)?)?;
        at = to;
    }
    Ok(0)
}

struct Printer {
    from: i64,
    json: bool,
    state: State,
    assembler: Assembler,
}

impl Printer {
    /// The lines for the entries in `at..to`. Blocking.
    fn piece(&mut self, kafka: &Kafka, at: i64, to: i64) -> Result<String> {
        let mut out = String::new();
        for record in consumer::read_all(kafka, &kafka.ledger, PARTITION, Some(at), to, Code::LedgerTrimmed)? {
            let value = record.value.as_deref().unwrap_or_default();
            let Some(entry) = self.assembler.push(record.offset, Entry::decode(record.offset, value)?)? else {
                continue;
            };
            let time = Timestamp::from_millisecond(record.timestamp_ms).map(|t| t.to_string()).unwrap_or_default();
            let event = self.state.apply(record.offset, entry.clone());
            if record.offset < self.from {
                continue;
            }
            if self.json {
                let entry = serde_json::to_value(&entry.body).expect("an entry is plain data");
                let line = serde_json::json!({"offset": record.offset, "time": time, "entry": entry});
                let _ = writeln!(out, "{line}");
            } else {
                let _ = writeln!(out, "{:>8}  {time:<24}  {}", record.offset, line(&entry.body, &event));
            }
        }
        Ok(out)
    }
}

/// An entry in words.
fn line(body: &Body, event: &Event) -> String {
    let text = match body {
        Body::Source(source) => match (&source.made, &source.intent) {
            (Some(made), _) => format!(
                "source      system {} timeline {} database {} slot {} from {}",
                made.system_id, made.timeline, made.database, made.slot, made.consistent_point
            ),
            (None, intent) => format!("source      intent to make slot {}", intent.as_deref().unwrap_or("?")),
        },
        Body::Claim(claim) => {
            format!(
                "claim       {:016x} by {} ({}) timeline {}",
                claim.nonce, claim.host, claim.version, claim.timeline
            )
        }
        Body::Relation(entry) => {
            let relation = &entry.relation;
            format!(
                "relation    {} {} in {}, {} columns",
                relation.fingerprint,
                relation.name,
                relation.topic,
                relation.columns.len()
            )
        }
        Body::Checkpoint(checkpoint) => checkpoint_line(checkpoint),
        Body::Base(base) => format!("base        {} relations, {} topics", base.relations.len(), base.topics.len()),
        Body::Request(request) => {
            let tables: Vec<String> = request.tables.iter().map(ToString::to_string).collect();
            format!(
                "request     {} {:?} for sink {}: {} (by {})",
                request.id,
                request.kind,
                request.sink,
                tables.join(", "),
                request.asked_by
            )
        }
        Body::Done(done) => format!("done        {} {}", done.id, done.result),
        Body::Upgraded(upgraded) => {
            format!(
                "upgraded    system {} to {} from {}",
                upgraded.from, upgraded.to.system_id, upgraded.to.consistent_point
            )
        }
        Body::Restart(restart) => format!("restart     from {} ({})", restart.new, restart.reason),
    };
    match event {
        Event::Superseded(epoch) => format!("{text}  superseded (epoch {epoch})"),
        Event::Repeated => format!("{text}  repeated: its signal stands in the ledger before"),
        _ => text,
    }
}

fn checkpoint_line(checkpoint: &Checkpoint) -> String {
    let Checkpoint { from, to, closed, spans, chunks, forget, .. } = checkpoint;
    let mut text = format!("checkpoint  ({from}, {to}] closed {closed}");
    for span in spans {
        let _ = write!(text, " {}/{}={}..{}/{}", span.topic, span.partition, span.first, span.last, span.count);
    }
    for chunk in chunks {
        let _ = write!(text, " chunk {} rows {}", chunk.table, chunk.rows);
    }
    for forget in forget.iter().flatten() {
        let table = forget.table.as_ref().map_or_else(|| "every table".to_owned(), ToString::to_string);
        let key = forget.key.as_ref().map(|key| format!(" {key:?}")).unwrap_or_default();
        let _ = write!(text, " forget {table}{key} up to {}", forget.at);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::entry::{Claim, Span};
    use crate::lsn::{Lsn, Position};
    use crate::record::Epoch;
    use uuid::Uuid;

    #[test]
    fn entries_read_as_lines() {
        let claim = |nonce| {
            Body::Claim(Claim {
                instance: Uuid::nil(),
                nonce,
                timeline: 1,
                host: "db1".into(),
                version: "0.1.0".into(),
            })
        };
        let checkpoint = Body::Checkpoint(Checkpoint {
            epoch: Epoch { offset: 0, nonce: 1 },
            from: Position::ORIGIN,
            to: Position::new(Lsn(16), 2),
            closed: Lsn(24),
            commit_time: 0,
            spans: vec![Span { topic: "shop.public.t".into(), partition: 0, first: 0, last: 2, count: 3 }],
            chunks: vec![],
            again: vec![],
            forget: None,
            barriers: None,
            prev: None,
        });
        let mut state = State::default();
        let mut lines = Vec::new();
        for (offset, body) in (0..).zip([claim(1), checkpoint.clone(), claim(2), checkpoint]) {
            let event = state.apply(offset, Entry::new(None, body.clone()));
            lines.push(line(&body, &event));
        }
        insta::assert_snapshot!(lines.join("\n"), @r"
        claim       0000000000000001 by db1 (0.1.0) timeline 1
        checkpoint  (0/0+0, 0/10+2] closed 0/18 shop.public.t/0=0..2/3
        claim       0000000000000002 by db1 (0.1.0) timeline 1
        checkpoint  (0/0+0, 0/10+2] closed 0/18 shop.public.t/0=0..2/3  superseded (epoch 0:0000000000000001)
        ");
    }
}
