//! The records of an interval, read from their partitions and merged by position: a stream, whatever the interval's size.
//!
//! Every record passes its span's checks before it is given out, so a gap is found before the interval can be committed. Each
//! is decoded where it is read, so that nothing of Kafka's memory is held.

use std::time::{Duration, Instant};

use crate::apply::decode::{Decoded, Decoders};
use crate::apply::span::{SpanCheck, Verdict};
use crate::error::{Code, Error, Result};
use crate::kafka::consumer::{Part, Spans};
use crate::ledger::entry::Checkpoint;
use crate::record::{HEADER, Header, HeaderError};

/// How long one poll of a partition blocks; between polls the stop is looked at.
const POLL: Duration = Duration::from_millis(100);

/// How long a broker may take to say how far a partition goes.
const WATERMARKS_TIMEOUT: Duration = Duration::from_secs(10);

/// After this long what is waited for is told.
const TELL: Duration = Duration::from_secs(1);

struct Lane {
    check: SpanCheck,
    part: Part,
    head: Option<Decoded>,
}

/// How records are waited for that the ledger counts and the topic does not give yet.
pub trait Patience {
    /// How long they may take.
    fn wait(&self) -> Duration;
    /// Why there is no point in waiting any more.
    fn given_up(&self) -> Option<Error>;
    /// This is being waited for.
    fn tell(&self, what: String);
}

/// The merge of one checkpoint's spans.
pub struct Merge {
    lanes: Vec<Lane>,
    /// Records without a header of ours.
    pub foreign: u64,
}

impl Merge {
    /// Sets the partitions of the checkpoint's spans to the spans' first offsets.
    pub fn new(spans: &mut Spans, checkpoint: &Checkpoint) -> Result<Merge> {
        let lanes = checkpoint.spans.iter().map(|span| {
            let part = spans.ensure(&span.topic, span.partition, span.first)?;
            Ok(Lane { check: SpanCheck::new(checkpoint, span), part, head: None })
        });
        Ok(Merge { lanes: lanes.collect::<Result<_>>()?, foreign: 0 })
    }

    /// The next record by position; `None` at the end, when every span was read whole. Blocks.
    pub fn take(
        &mut self,
        spans: &Spans,
        decoders: &mut Decoders,
        patience: &impl Patience,
    ) -> Result<Option<Decoded>> {
        for lane in &mut self.lanes {
            if lane.head.is_none() && !lane.check.is_done() {
                lane.head = fill(spans, decoders, lane, patience, &mut self.foreign)?;
            }
        }
        let position = |lane: &Lane| lane.head.as_ref().map(|head| head.header.position);
        let next = self.lanes.iter_mut().filter(|lane| lane.head.is_some()).min_by_key(|lane| position(lane));
        Ok(next.and_then(|lane| lane.head.take()))
    }
}

fn fill(
    spans: &Spans,
    decoders: &mut Decoders,
    lane: &mut Lane,
    patience: &impl Patience,
    foreign: &mut u64,
) -> Result<Option<Decoded>> {
    let began = Instant::now();
    while !lane.check.is_done() {
        let Some(record) = spans.poll(lane.part, POLL)? else {
            if let Some(error) = patience.given_up() {
                return Err(error);
            }
            if began.elapsed() >= patience.wait() {
                // Judged only by a broker that answers: without one the records may well be there.
                let span = lane.check.span();
                spans.watermarks(&span.topic, span.partition, WATERMARKS_TIMEOUT)?;
                lane.check.end()?;
            }
            if began.elapsed() >= TELL {
                let span = lane.check.span();
                patience.tell(format!("topic {} partition {} up to offset {}", span.topic, span.partition, span.last));
            }
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
            return Ok(Some(decoders.decode(&record, header)));
        }
    }
    Ok(None)
}

fn unreadable(lane: &Lane, offset: i64, error: &HeaderError) -> Error {
    let span = lane.check.span();
    let message =
        format!("the record at {offset} of topic {} partition {} can't be read: {error}", span.topic, span.partition);
    Error::halt(Code::RecordInvalid, message, "run the newest lockstep on every machine of this pipeline")
}
