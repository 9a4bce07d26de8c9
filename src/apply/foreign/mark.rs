//! How far a partition of another program's topic is, in the source's own order: which records are repetitions.
//!
//! Debezium delivers at least once. After a crash it goes on from an older place and writes again what it had written, in the
//! same order. Of one slot the pair (`source.sequence[0]`, `source.lsn`) only rises: transactions come in the order of
//! their commits, the first number is the end of the last commit before, and in a transaction changes come in the order of the log.
//! So a streamed record **below** the mark was seen. Dropping it keeps rows from going back in time.
//!
//! One **at** the mark is applied again. The rows of one multi-insert (COPY), both halves of a key change and the TRUNCATE of
//! several tables share one position, so that it says nothing of which of them was seen; each row stands there once, so that applying
//! all of them again ends in the same state.
//!
//! What has no place in that order is applied and never dropped:
//! - Rows of an incremental snapshot have no `lsn` of their own. They say what the row is by then, and leave the mark alone.
//! - Rows of any other snapshot were read by a connection of its own, possibly ahead of the stream, possibly from another server
//!   than before. What follows them may stand anywhere, so the mark goes back to the beginning.
//! - Records of the first transaction after such a snapshot, or after offsets were lost, have no commit before them (null): the
//!   mark begins anew there. It must: to apply a record and drop those that followed it once would leave its older row for good.

use crate::codec::foreign::{Snapshot, Source};
use crate::lsn::{Lsn, Position};

/// Nothing was seen, or what was seen does not count.
pub const BEGINNING: Position = Position::ORIGIN;

/// What becomes of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The partition is here behind it.
    Apply(Position),
    /// It was seen.
    Drop,
}

/// `None` where the source says no position that could be compared.
pub fn judge(mark: Position, source: &Source<'_>) -> Option<Verdict> {
    let position = || Some((source.last_commit()?, source.lsn()?.0));
    Some(match source.snapshot() {
        Snapshot::Incremental => Verdict::Apply(mark),
        Snapshot::Whole => Verdict::Apply(BEGINNING),
        Snapshot::No => match position()? {
            (None, lsn) => Verdict::Apply(Position::new(Lsn(0), lsn)),
            (Some(commit), lsn) => {
                let at = Position::new(commit, lsn);
                if at < mark { Verdict::Drop } else { Verdict::Apply(at) }
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(snapshot: &str, sequence: &str, lsn: &str) -> String {
        format!(
            r#"{{"connector":"postgresql","schema":"s","table":"t","snapshot":{snapshot},"sequence":{sequence},"lsn":{lsn}}}"#
        )
    }

    /// The mark behind each record, `-` for one that is dropped.
    fn walk(records: &[(&str, &str, &str)]) -> String {
        let mut mark = BEGINNING;
        let mut said = Vec::new();
        for (snapshot, sequence, lsn) in records {
            let json = source(snapshot, sequence, lsn);
            match judge(mark, &serde_json::from_str(&json).unwrap()) {
                Some(Verdict::Apply(to)) => {
                    mark = to;
                    said.push(format!("{}/{}", to.lsn.0, to.ordinal));
                }
                Some(Verdict::Drop) => said.push("-".to_owned()),
                None => said.push("?".to_owned()),
            }
        }
        said.join(" ")
    }

    const NO: &str = "\"false\"";

    #[test]
    fn a_suffix_that_is_written_again_is_dropped_up_to_the_mark_and_applied_at_it() {
        let seq = |n: &str| format!(r#""[\"{n}\",\"0\"]""#);
        let (ten, thirty) = (seq("10"), seq("30"));
        // A transaction that began early and committed late: its own log positions are lower.
        let once =
            [(NO, ten.as_str(), "20"), (NO, &ten, "21"), (NO, &thirty, "15"), (NO, &thirty, "16"), (NO, &thirty, "16")];
        assert_eq!(walk(&once), "10/20 10/21 30/15 30/16 30/16");
        let again: Vec<_> = once.iter().chain(&once[1..]).copied().chain([(NO, thirty.as_str(), "17")]).collect();
        assert_eq!(walk(&again), "10/20 10/21 30/15 30/16 30/16 - - 30/16 30/16 30/17");
    }

    #[test]
    fn what_has_no_place_in_the_order_is_never_dropped() {
        let null = r#""[null,\"5\"]""#;
        let seven = r#""[\"7\",\"9\"]""#;
        let walked = walk(&[
            ("\"first\"", null, "5"),
            (NO, null, "6"),
            (NO, seven, "9"),
            ("\"incremental\"", seven, "null"),
            (NO, seven, "8"),
            ("\"true\"", seven, "9"),
            (NO, seven, "8"),
            (NO, null, "6"),
            (NO, seven, "8"),
        ]);
        assert_eq!(walked, "0/0 0/6 7/9 7/9 - 0/0 7/8 0/6 7/8");
        assert_eq!(
            walk(&[(NO, "null", "6"), (NO, seven, "null"), (NO, "\"x\"", "6"), ("null", seven, "9")]),
            "? ? ? 7/9"
        );
    }
}
