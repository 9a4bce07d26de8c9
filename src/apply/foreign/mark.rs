//! How far a partition of another program's topic is, in the source's own order: which records are repetitions.
//!
//! Debezium delivers at least once. After a crash it goes on from an older place and writes again what it had written, in the
//! same order. Of one slot the pair (`source.sequence[0]`, `source.lsn`) only rises: transactions come in the order of
//! their commits, the first number is the end of the last commit before, and in a transaction changes come in the order of the log.
//! So a streamed record **below** the mark was seen. Dropping it keeps rows from going back in time.
//!
//! That holds for one server. Where positions are lower because it is another one (restored, moved by a dump, a standby that was
//! behind), a table that has no rows in the new snapshot keeps its mark, and new changes stand below it. But what is written again has
//! the commit time that it had: a record below the mark that was committed after everything seen is no repetition, and halts.
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
    /// It stands before what was seen, and was committed later: of another server, or of positions that began anew.
    Newer,
}

/// `None` where the source says no position that could be compared. `newest_us`: when the newest of what was seen was committed,
/// where that is known.
pub fn judge(mark: Position, newest_us: Option<i64>, source: &Source<'_>) -> Option<Verdict> {
    let is_newer = || source.time_us().zip(newest_us).is_some_and(|(time, newest)| time > newest);
    let position = || Some((source.last_commit()?, source.lsn()?.0));
    Some(match source.snapshot() {
        Snapshot::Incremental => Verdict::Apply(mark),
        Snapshot::Whole => Verdict::Apply(BEGINNING),
        Snapshot::No => match position()? {
            (None, lsn) => Verdict::Apply(Position::new(Lsn(0), lsn)),
            (Some(commit), lsn) => {
                let at = Position::new(commit, lsn);
                match at < mark {
                    true if is_newer() => Verdict::Newer,
                    true => Verdict::Drop,
                    false => Verdict::Apply(at),
                }
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
            match judge(mark, Some(5), &serde_json::from_str(&json).unwrap()) {
                Some(Verdict::Apply(to)) => {
                    mark = to;
                    said.push(format!("{}/{}", to.lsn.0, to.ordinal));
                }
                Some(Verdict::Drop) => said.push("-".to_owned()),
                Some(Verdict::Newer) => said.push("!".to_owned()),
                None => said.push("?".to_owned()),
            }
        }
        said.join(" ")
    }

    const NO: &str = "\"false\"";

    #[test]
    fn what_is_below_the_mark_and_newer_is_of_another_server() {
        let mark = Position::new(Lsn(30), 16);
        let at = |time: &str, newest| {
            let json = source(NO, r#""[\"10\",\"0\"]""#, "20").replacen('{', &format!("{{{time}"), 1);
            judge(mark, newest, &serde_json::from_str(&json).unwrap())
        };
        assert_eq!(at(r#""ts_us":7000,"#, Some(7000)), Some(Verdict::Drop));
        assert_eq!(at(r#""ts_us":7001,"ts_ms":7,"#, Some(7000)), Some(Verdict::Newer));
        assert_eq!(at(r#""ts_ms":8,"#, Some(7000)), Some(Verdict::Newer));
        assert_eq!(at(r#""ts_ms":8,"#, None), Some(Verdict::Drop));
        assert_eq!(at("", Some(7000)), Some(Verdict::Drop), "one that says no time");
    }

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
