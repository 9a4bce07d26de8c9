//! The reader's protocol as scripts: what happens to a reader, and below it what it does.

use std::fmt::Write as _;
use std::time::Duration;

use insta::assert_snapshot;

use super::forgets::Forgets;
use super::machine::*;
use crate::key::KeyRange;
use crate::ledger::entry::{Anchor, Checkpoint, Chunk, LastCheckpoint};
use crate::ledger::state::Event;
use crate::lsn::{Lsn, Position};
use crate::record::Epoch;
use crate::relation::{Fingerprint, TableName};

const EPOCH: Epoch = Epoch { offset: 5, nonce: 7 };

/// Runs a script against one reader, one command a line, and writes down what came of it.
struct Script {
    machine: Machine,
    now: Duration,
    offset: i64,
    sent: Option<Checkpoint>,
    out: String,
}

impl Script {
    fn new(last: Option<LastCheckpoint>) -> Script {
        let machine = Machine::new(EPOCH, last, Lsn(1), Duration::from_millis(5));
        Script { machine, now: Duration::from_secs(10), offset: 5, sent: None, out: String::new() }
    }

    fn run(script: &str) -> String {
        let mut run = Script::new(None);
        script.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).for_each(|line| run.line(line));
        run.out
    }

    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |i: usize| words[i].parse::<u64>().unwrap();
        match words[0] {
            "begin" => {
                let admit = self.machine.begin(Lsn(number(1)));
                self.say(line, &format!("{admit:?}"));
            }
            "record" => {
                let (position, token) = self.machine.record();
                self.say(line, &format!("{position} interval {token}"));
            }
            "commit" => self.machine.commit(Lsn(number(1)), 99),
            "keepalive" => self.machine.keepalive(Lsn(number(1))),
            // ack PARTITION INTERVAL FIRST COUNT
            "ack" => {
                let (first, count) = (number(3).cast_signed(), number(4));
                let last = first + count.cast_signed() - 1;
                let partition = i32::try_from(number(1)).unwrap();
                self.machine.acked(Acked { route: 0, partition, token: number(2), first, last, count });
            }
            "chunk" => {
                let at = self.machine.begin_chunk();
                let rows = number(1);
                for _ in 0..rows {
                    self.machine.chunk_record();
                }
                let table = TableName::new("public", "t");
                let (sinks, request, relation) = (None, None, Fingerprint(1));
                self.machine.chunk(Chunk { relation, table, range: KeyRange::ALL, at, rows, sinks, request });
                self.say(line, &format!("at {at}"));
            }
            "wait" => self.now += Duration::from_millis(number(1)),
            "append?" => {
                let next = self.machine.next_append(
                    self.now,
                    &["t".to_owned()],
                    &mut Forgets::default(),
                    words.get(1) == Some(&"flush"),
                );
                self.say(line, &next.as_ref().map_or("nothing".to_owned(), summary));
                self.sent = next.or(self.sent.take());
            }
            "appended" => {
                self.offset += 1;
                self.machine.appended(self.offset);
            }
            "read-back" => {
                let event = Event::Valid(self.sent.take().unwrap());
                let outcome = self.machine.read_back(self.offset, &event);
                self.say(line, &format!("{outcome:?}"));
            }
            "claimed" => {
                let event = Event::Claimed(Epoch { offset: number(1), nonce: 1 });
                let outcome = self.machine.read_back(number(1).cast_signed(), &event);
                self.say(line, &format!("{outcome:?}"));
            }
            other => panic!("no such command: {other}"),
        }
    }

    fn say(&mut self, line: &str, what: &str) {
        writeln!(self.out, "{line:<18} {what}").unwrap();
    }
}

fn summary(c: &Checkpoint) -> String {
    let spans: Vec<String> =
        c.spans.iter().map(|s| format!("p{}={}..{}/{}", s.partition, s.first, s.last, s.count)).collect();
    let prev = c.prev.map_or("origin".to_owned(), |prev| prev.offset.to_string());
    format!("({}, {}] closed {} {} after {prev}, {} chunks", c.from, c.to, c.closed, spans.join(" "), c.chunks.len())
}

#[test]
fn one_transaction_is_one_checkpoint_confirmed_only_when_read_back() {
    assert_snapshot!(Script::run("
        begin 16
        record
        record
        append?
        commit 32
        append?
        ack 0 0 0 1
        append?
        ack 1 0 0 1
        append?
        append?
        appended
        read-back
        append?
    "), @r"
    begin 16           Take
    record             0/10+0 interval 0
    record             0/10+1 interval 0
    append?            nothing
    append?            nothing
    append?            nothing
    append?            (0/0+0, 0/10+1] closed 0/20 p0=0..0/1 p1=0..0/1 after origin, 0 chunks
    append?            nothing
    read-back          Confirm(0/20)
    append?            nothing
    ");
}

#[test]
fn while_an_append_is_in_flight_ripe_intervals_wait_and_are_merged() {
    assert_snapshot!(Script::run("
        begin 16
        record
        commit 20
        ack 0 0 0 1
        append?
        begin 30
        record
        commit 34
        begin 40
        record
        record
        commit 44
        ack 0 1 1 1
        ack 0 2 2 2
        append?
        appended
        append?
        wait 5
        append?
    "), @r"
    begin 16           Take
    record             0/10+0 interval 0
    append?            (0/0+0, 0/10+0] closed 0/14 p0=0..0/1 after origin, 0 chunks
    begin 30           Take
    record             0/1E+0 interval 1
    begin 40           Take
    record             0/28+0 interval 2
    record             0/28+1 interval 2
    append?            nothing
    append?            nothing
    append?            (0/10+0, 0/28+1] closed 0/2C p0=1..3/3 after 6, 0 chunks
    ");
}

#[test]
fn no_cut_lies_inside_a_transaction() {
    assert_snapshot!(Script::run("
        begin 16
        record
        ack 0 0 0 1
        append? flush
        keepalive 99
        append? flush
        commit 20
        append?
    "), @r"
    begin 16           Take
    record             0/10+0 interval 0
    append? flush      nothing
    append? flush      nothing
    append?            (0/0+0, 0/10+0] closed 0/14 p0=0..0/1 after origin, 0 chunks
    ");
}

#[test]
fn a_quiet_source_moves_the_closed_lsn_now_and_then_and_at_once_to_end() {
    assert_snapshot!(Script::run("
        keepalive 50
        append?
        appended
        read-back
        keepalive 60
        append?
        append? flush
        appended
        read-back
        wait 2000
        append?
    "), @r"
    append?            (0/0+0, 0/0+0] closed 0/32  after origin, 0 chunks
    read-back          Confirm(0/32)
    append?            nothing
    append? flush      (0/0+0, 0/0+0] closed 0/3C  after 6, 0 chunks
    read-back          Confirm(0/3C)
    append?            nothing
    ");
}

#[test]
fn chunk_rows_stand_after_the_last_commit_and_go_on_over_chunks() {
    assert_snapshot!(Script::run("
        chunk 2
        chunk 0
        begin 16
        record
        commit 20
        chunk 1
        ack 0 0 0 2
        append?
        appended
        ack 0 2 2 1
        ack 0 3 3 1
        wait 5
        append?
    "), @r"
    chunk 2            at 0/0+1099511627776
    chunk 0            at 0/0+1099511627778
    begin 16           Take
    record             0/10+0 interval 2
    chunk 1            at 0/10+1099511627776
    append?            (0/0+0, 0/0+1099511627778] closed 0/1 p0=0..1/2 after origin, 2 chunks
    append?            (0/0+1099511627778, 0/10+0] closed 0/14 p0=2..2/1 after 6, 0 chunks
    ");
}

#[test]
fn what_is_committed_stands_in_no_checkpoint_with_rows_behind_it() {
    assert_snapshot!(Script::run("
        begin 16
        record
        commit 20
        chunk 1
        begin 30
        record
        commit 34
        chunk 1
        ack 0 0 0 1
        ack 0 1 1 1
        ack 0 2 2 1
        ack 0 3 3 1
        append?
        appended
        wait 5
        append?
        appended
        wait 5
        append?
    "), @r"
    begin 16           Take
    record             0/10+0 interval 0
    chunk 1            at 0/10+1099511627776
    begin 30           Take
    record             0/1E+0 interval 2
    chunk 1            at 0/1E+1099511627776
    append?            (0/0+0, 0/10+0] closed 0/14 p0=0..0/1 after origin, 0 chunks
    append?            (0/10+0, 0/1E+0] closed 0/22 p0=1..2/2 after 6, 1 chunks
    append?            (0/1E+0, 0/1E+1099511627776] closed 0/22 p0=3..3/1 after 7, 1 chunks
    ");
}

#[test]
fn a_reader_that_reads_of_a_newer_claim_stops() {
    assert_snapshot!(Script::run("
        claimed 5
        claimed 9
    "), @r"
    claimed 5          Fenced(Epoch { offset: 5, nonce: 1 })
    claimed 9          Fenced(Epoch { offset: 9, nonce: 1 })
    ");
}

#[test]
fn what_is_in_the_ledger_is_dropped_and_chunk_positions_go_on_after_a_restart() {
    let to = Position::new(Lsn(16), (1 << 40) + 4);
    let anchor = Anchor { offset: 3, epoch: Epoch { offset: 1, nonce: 1 }, to };
    let last = LastCheckpoint { anchor, closed: Lsn(20), commit_time: 1 };
    let mut script = Script::new(Some(last));
    assert_eq!(script.machine.begin(Lsn(16)), Admit::Drop);
    script.machine.dropped(Lsn(20));
    assert_eq!(script.machine.chunk_at(), Position::new(Lsn(16), (1 << 40) + 5));
    assert_eq!(script.machine.begin(Lsn(17)), Admit::Take);
    assert_eq!(script.machine.record().0, Position::new(Lsn(17), 0));
}

#[test]
fn a_server_that_does_not_send_the_last_commit_again_never_had_it() {
    let to = Position::new(Lsn(16), 3);
    let anchor = Anchor { offset: 3, epoch: Epoch { offset: 1, nonce: 1 }, to };
    let machine = |confirmed| {
        let last = LastCheckpoint { anchor, closed: Lsn(20), commit_time: 1 };
        let mut machine = Script::new(Some(last)).machine;
        machine.resume_from(Lsn(confirmed));
        machine
    };
    for confirmed in [9, 16] {
        let mut machine = machine(confirmed);
        assert_eq!((machine.missed(Lsn(16)), machine.missed(Lsn(17))), (None, Some(Lsn(16))));
        assert_eq!(machine.begin(Lsn(12)), Admit::Drop);
        machine.dropped(Lsn(13));
        assert_eq!(machine.missed(Lsn(17)), Some(Lsn(16)), "another one says nothing");
        assert_eq!(machine.begin(Lsn(16)), Admit::Drop);
        machine.dropped(Lsn(20));
        assert_eq!(machine.missed(Lsn(40)), None);
    }
    assert_eq!(machine(17).missed(Lsn(40)), None, "it has been confirmed: nobody sends it again");
}
