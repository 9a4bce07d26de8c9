//! The records of an interval, read from their partitions and merged by position: a stream, whatever the interval's size.
//!
//! Every record passes its span's checks before it is given out, so a gap is found before the interval can be committed.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::apply::span::{SpanCheck, Verdict};
use crate::error::{Code, Error, Result};
use crate::kafka::consumer::{Part, Record, Spans};
use crate::ledger::entry::Checkpoint;
use crate::record::{HEADER, Header, HeaderError};
use crate::status::{SinkReporter, State};

/// How long one poll of a partition blocks; between polls the stop is looked at.
const POLL: Duration = Duration::from_millis(100);

/// How long a broker may take to say how far a partition goes.
const WATERMARKS_TIMEOUT: Duration = Duration::from_secs(10);

/// After this long what is waited for shows in the status.
const TELL: Duration = Duration::from_secs(1);

/// A record and its header.
pub struct Head<'s> {
    pub record: Record<'s>,
    pub header: Header,
}

struct Lane<'s> {
    check: SpanCheck,
    part: Part,
    head: Option<Head<'s>>,
}

/// How records are waited for that the ledger counts and the topic does not give yet.
#[derive(Clone)]
pub struct Patience {
    /// How long they may take.
    pub wait: Duration,
    pub stop: CancellationToken,
    pub reporter: SinkReporter,
}

/// The merge of one checkpoint's spans.
pub struct Merge<'s> {
    spans: &'s Spans,
    lanes: Vec<Lane<'s>>,
    patience: Patience,
    /// Records without a header of ours.
    pub foreign: u64,
}

/// Partitions of the checkpoint's spans, standing at the spans' first offsets.
pub fn ready(spans: &mut Spans, checkpoint: &Checkpoint) -> Result<Vec<Part>> {
    checkpoint.spans.iter().map(|span| spans.ensure(&span.topic, span.partition, span.first)).collect()
}

impl<'s> Merge<'s> {
    /// `parts` are parallel to the checkpoint's spans.
    pub fn new(spans: &'s Spans, parts: &[Part], checkpoint: &Checkpoint, patience: Patience) -> Merge<'s> {
        let lane = |(span, part): (_, &Part)| Lane { check: SpanCheck::new(checkpoint, span), part: *part, head: None };
        let lanes = checkpoint.spans.iter().zip(parts).map(lane).collect();
        Merge { spans, lanes, patience, foreign: 0 }
    }

    /// The next record by position; `None` at the end, when every span was read whole. `idle` is called now and then while
    /// records are waited for.
    pub async fn take(&mut self, mut idle: impl AsyncFnMut() -> Result<()>) -> Result<Option<Head<'s>>> {
        for lane in &mut self.lanes {
            if lane.head.is_none() && !lane.check.is_done() {
                lane.head = fill(self.spans, lane, &self.patience, &mut self.foreign, &mut idle).await?;
            }
        }
        let position = |lane: &Lane<'_>| lane.head.as_ref().map(|head| head.header.position);
        let next = self.lanes.iter_mut().filter(|lane| lane.head.is_some()).min_by_key(|lane| position(lane));
        Ok(next.and_then(|lane| lane.head.take()))
    }
}

async fn fill<'s>(
    spans: &'s Spans,
    lane: &mut Lane<'_>,
    patience: &Patience,
    foreign: &mut u64,
    idle: &mut impl AsyncFnMut() -> Result<()>,
) -> Result<Option<Head<'s>>> {
    let began = Instant::now();
    while !lane.check.is_done() {
        let Some(record) = spans.poll(lane.part, POLL)? else {
            if patience.stop.is_cancelled() {
                return Err(Error::retry_plain("stopped while waiting for records"));
            }
            if began.elapsed() >= patience.wait {
                // Judged only by a broker that answers: without one the records may well be there.
                let span = lane.check.span();
                spans.watermarks(&span.topic, span.partition, WATERMARKS_TIMEOUT)?;
                lane.check.end()?;
            }
            if began.elapsed() >= TELL {
                let span = lane.check.span();
                let what = format!("topic {} partition {} up to offset {}", span.topic, span.partition, span.last);
                patience.reporter.update(|s| (s.state, s.waiting_for) = (State::Retrying, Some(what)));
            }
            // The role's thread has other things to do too, such as showing that it lives.
            tokio::task::yield_now().await;
            idle().await?;
            continue;
        };
        if record.offset() < lane.check.span().first {
            continue;
        }
        let header = match record.header(HEADER).map(Header::decode) {
            None => {
                *foreign += 1;
                None
            }
            Some(Ok(header)) => Some(header),
            Some(Err(error)) => return Err(unreadable(lane, record.offset(), &error)),
        };
        if let (Verdict::Take, Some(header)) = (lane.check.record(record.offset(), header.as_ref())?, header) {
            return Ok(Some(Head { record, header }));
        }
    }
    Ok(None)
}

fn unreadable(lane: &Lane<'_>, offset: i64, error: &HeaderError) -> Error {
    let span = lane.check.span();
    let message =
        format!("the record at {offset} of topic {} partition {} can't be read: {error}", span.topic, span.partition);
    Error::halt(Code::RecordInvalid, message, "run the newest lockstep on every machine of this pipeline")
}
