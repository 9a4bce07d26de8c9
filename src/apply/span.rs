//! Which records of a span count: the checks that make a loss in Kafka a mismatch instead of silence.
//!
//! A count alone proves nothing: after the loss of a tail, later records of the same epoch fill the same offsets
//! (models/loss.py). Records are accepted only if their epoch is the checkpoint's, every position lies in (from, to],
//! positions strictly rise within the partition, **and** their number is the count.

use crate::error::{Code, Error, Result};
use crate::ledger::entry::{Checkpoint, Span};
use crate::lsn::Position;
use crate::record::{Epoch, Header};

/// What to do with a record that was read at an offset of the span or beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Take,
    /// Not of this epoch: a dead reader's tail, a zombie's late write.
    Skip,
}

/// The state of reading one span.
#[derive(Debug, Clone)]
pub struct SpanCheck {
    span: Span,
    epoch: Epoch,
    from: Position,
    to: Position,
    seen: u64,
    last: Position,
    done: bool,
}

impl SpanCheck {
    pub fn new(checkpoint: &Checkpoint, span: &Span) -> SpanCheck {
        SpanCheck {
            span: span.clone(),
            epoch: checkpoint.epoch,
            from: checkpoint.from,
            to: checkpoint.to,
            seen: 0,
            last: checkpoint.from,
            done: false,
        }
    }

    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The span was read to its last offset.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// A record at `offset`, at or after the span's first. `header` is `None` for a record without one: nobody's.
    pub fn record(&mut self, offset: i64, header: Option<&Header>) -> Result<Verdict> {
        assert!(!self.done && offset >= self.span.first, "records of a span are read in order");
        if offset > self.span.last {
            return Err(
                self.gap(format!("the record at {} is missing, the next one stands at {offset}", self.span.last))
            );
        }
        let verdict = match header {
            Some(header) if header.epoch == self.epoch => {
                let position = header.position;
                if position <= self.last || position > self.to {
                    return Err(self.gap(format!(
                        "the record at {offset} has position {position}, which is not after {} and up to {}",
                        self.last, self.to
                    )));
                }
                self.last = position;
                self.seen += 1;
                Verdict::Take
            }
            _ => Verdict::Skip,
        };
        if offset == self.span.last {
            self.finish()?;
        }
        Ok(verdict)
    }

    /// The partition is known to hold nothing more at or below the span's last offset.
    pub fn end(&mut self) -> Result<()> {
        if self.done { Ok(()) } else { Err(self.gap(format!("the record at {} is missing", self.span.last))) }
    }

    fn finish(&mut self) -> Result<()> {
        if self.seen != self.span.count {
            return Err(self.gap(format!("it holds {} records of epoch {}", self.seen, self.epoch)));
        }
        self.done = true;
        Ok(())
    }

    fn gap(&self, what: String) -> Error {
        let Span { topic, partition, first, last, count } = &self.span;
        Error::halt(
            Code::TopicGap,
            format!("topic {topic} partition {partition} does not hold the {count} records that the ledger counts at {first}..{last}"),
            "lockstep resync --all",
        )
        .fact(what)
        .fact(format!("the checkpoint covers ({}, {}]", self.from, self.to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use crate::record::Kind;
    use crate::relation::Fingerprint;

    const EPOCH: Epoch = Epoch { offset: 1, nonce: 2 };

    fn check(count: u64, last: i64) -> SpanCheck {
        let span = Span { topic: "t".into(), partition: 0, first: 10, last, count };
        let checkpoint = Checkpoint {
            epoch: EPOCH,
            from: Position::new(Lsn(5), 0),
            to: Position::new(Lsn(9), 0),
            closed: Lsn(9),
            commit_time: 0,
            spans: vec![span.clone()],
            chunks: vec![],
            again: vec![],
            forget: None,
            barriers: None,
            prev: None,
        };
        SpanCheck::new(&checkpoint, &span)
    }

    fn record(lsn: u64, ordinal: u64) -> Header {
        let position = Position::new(Lsn(lsn), ordinal);
        Header { kind: Kind::Change, epoch: EPOCH, position, relation: Fingerprint(0) }
    }

    fn gap(result: Result<Verdict>) -> bool {
        result.unwrap_err().code() == Some(Code::TopicGap)
    }

    #[test]
    fn exactly_the_counted_records_of_the_epoch_pass() {
        let mut span = check(2, 13);
        let zombie = Header { epoch: Epoch { offset: 1, nonce: 3 }, ..record(6, 0) };
        assert_eq!(span.record(10, Some(&record(6, 0))).unwrap(), Verdict::Take);
        assert_eq!(span.record(11, Some(&zombie)).unwrap(), Verdict::Skip);
        assert_eq!(span.record(12, None).unwrap(), Verdict::Skip);
        assert!(!span.is_done());
        assert_eq!(span.record(13, Some(&record(9, 0))).unwrap(), Verdict::Take);
        assert!(span.is_done() && span.end().is_ok());
    }

    #[test]
    fn later_records_in_the_place_of_lost_ones_are_seen() {
        assert!(gap(check(1, 10).record(10, Some(&record(9, 1)))), "beyond the checkpoint");
        assert!(gap(check(1, 10).record(10, Some(&record(5, 0)))), "before it");
        let mut span = check(2, 11);
        span.record(10, Some(&record(6, 1))).unwrap();
        assert!(gap(span.record(11, Some(&record(6, 1)))), "not rising");
    }

    #[test]
    fn too_few_too_many_and_missing_offsets_are_seen() {
        assert!(gap(check(2, 10).record(10, Some(&record(6, 0)))));
        let mut span = check(1, 11);
        span.record(10, Some(&record(6, 0))).unwrap();
        assert!(gap(span.record(11, Some(&record(7, 0)))));
        assert!(gap(check(1, 11).record(12, Some(&record(6, 0)))));
        assert!(check(1, 11).end().is_err());
    }
}
