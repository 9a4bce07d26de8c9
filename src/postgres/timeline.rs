//! The source's history of timelines, and whether ours is part of it.
//!
//! A promoted standby, or a restore, starts a new timeline at a switch point. If every switch since the timeline that we
//! read lies at or above our closed LSN, all that was published is in the new history too. Otherwise the source forked below
//! it: what we published never happened there.
//!
//! A copy of the server's files that is put back starts no timeline: its log ends below what was published, or was written over since.
//! Then the commit that was published last is not where it was.
//!
//! Pure: the file's content comes from TIMELINE_HISTORY over the replication connection.

use crate::error::{Code, Error, Result};
use crate::lsn::Lsn;

/// One line of a history file: the timeline ended at `switch`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Switch {
    pub timeline: u32,
    pub switch: Lsn,
}

/// Why a history file can't be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line} of the timeline history is not a timeline, an LSN and a reason: {text:?}")]
pub struct HistoryError {
    pub line: usize,
    pub text: String,
}

/// Reads the content of `0000000N.history`: the ancestors of timeline N, oldest first.
pub fn parse_history(content: &str) -> Result<Vec<Switch>, HistoryError> {
    let mut history = Vec::new();
    for (i, text) in content.lines().enumerate() {
        if text.trim().is_empty() || text.trim_start().starts_with('#') {
            continue;
        }
        let mut words = text.split_whitespace();
        let switch = words
            .next()
            .and_then(|timeline| timeline.parse().ok())
            .zip(words.next().and_then(|switch| switch.parse().ok()))
            .map(|(timeline, switch)| Switch { timeline, switch })
            .filter(|s| history.last().is_none_or(|last: &Switch| last.timeline < s.timeline));
        history.push(switch.ok_or_else(|| HistoryError { line: i + 1, text: text.to_owned() })?);
    }
    Ok(history)
}

/// Whether a server on timeline `to`, with that timeline's history, continues what was read on timeline `from` up to `closed`.
pub fn check_timeline(history: &[Switch], from: u32, to: u32, closed: Lsn) -> Result<()> {
    if from == to {
        return Ok(());
    }
    let since: Vec<&Switch> = history.iter().filter(|s| s.timeline >= from).collect();
    let diverged = |message: String| {
        diverged(message).fact(format!("closed LSN {closed} on timeline {from}; the source is on timeline {to}"))
    };
    if since.first().is_none_or(|s| s.timeline != from) {
        return Err(diverged(format!(
            "the source's timeline {to} does not descend from timeline {from}, which was read"
        )));
    }
    match since.iter().find(|s| s.switch < closed) {
        None => Ok(()),
        Some(fork) => Err(diverged(format!(
            "the source's history forked at {}, {} bytes below what was published",
            fork.switch,
            closed.bytes_since(fork.switch)
        ))),
    }
}

/// Whether a server whose flushed log ends at `end` can be the one that everything up to `closed` was read of: only what is
/// flushed is sent, and a crash takes none of it away.
pub fn check_end(end: Lsn, closed: Lsn) -> Result<()> {
    if end >= closed {
        return Ok(());
    }
    let lost = closed.bytes_since(end);
    Err(diverged(format!("the source's log ends at {end}, {lost} bytes below what was published: it was restored")))
}

/// The server went on to `beyond` without the commit that was published last.
pub fn overwritten(owed: Lsn, beyond: Lsn) -> Error {
    diverged(format!(
        "the source has no commit at {owed} any more, which was published: it was restored and written to since"
    ))
    .fact(format!("its stream goes on at {beyond}"))
}

fn diverged(message: String) -> Error {
    Error::halt(Code::Diverged, message, "lockstep restart, once it is certain that the source is right as it is")
        .fact("transactions that were published may not exist at the source any more; no sink was touched")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTORY: &str =
        "1\t0/A000000\tno recovery target specified\n\n# a comment\n2\t0/B0000F0\tbefore 2026-01-01 00:00:00+00\n";

    #[test]
    fn reads_a_history_file() {
        let history = parse_history(HISTORY).unwrap();
        assert_eq!(
            history,
            [Switch { timeline: 1, switch: Lsn(0x0A00_0000) }, Switch { timeline: 2, switch: Lsn(0x0B00_00F0) }]
        );
        assert_eq!(parse_history(""), Ok(vec![]));
        for wrong in ["x\t0/1\tr", "1", "1\tzzz\tr", "2\t0/1\n1\t0/2"] {
            assert!(parse_history(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_switch_at_or_above_the_closed_lsn_loses_nothing() {
        let history = parse_history(HISTORY).unwrap();
        let check = |from, to, closed| check_timeline(&history, from, to, Lsn(closed)).map_err(|e| e.code());
        assert_eq!(check(3, 3, u64::MAX), Ok(()));
        assert_eq!(check(1, 3, 0x0A00_0000), Ok(()));
        assert_eq!(check(2, 3, 0x0B00_00F0), Ok(()));
        assert_eq!(check(1, 3, 0x0A00_0001), Err(Some(Code::Diverged)));
        assert_eq!(check(2, 3, 0x0B00_00F1), Err(Some(Code::Diverged)));
        // An older server came back, or one of another branch.
        assert_eq!(check(4, 3, 0), Err(Some(Code::Diverged)));
        assert_eq!(check_timeline(&[], 1, 2, Lsn::ZERO).map_err(|e| e.code()), Err(Some(Code::Diverged)));
    }

    #[test]
    fn a_log_that_ends_below_the_closed_lsn_is_an_older_one() {
        let check = |end, closed| check_end(Lsn(end), Lsn(closed)).map_err(|e| e.code());
        assert_eq!((check(9, 9), check(10, 9), check(8, 9)), (Ok(()), Ok(()), Err(Some(Code::Diverged))));
    }
}
