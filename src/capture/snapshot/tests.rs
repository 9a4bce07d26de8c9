use std::collections::BTreeSet;

use super::*;
use crate::key::ranges::RangeSet;
use crate::value::Cell;

/// A snapshot that sees the transactions below a number.
#[derive(Clone)]
struct Below(u32);

impl Visibility for Below {
    fn sees(&self, xid: u32) -> bool {
        xid < self.0
    }
}

const VERSION: Fingerprint = Fingerprint(1);
const ALL_KEYLESS: Place<'_> = Place { range: &KeyRange::ALL, key: &[], orders: &[] };

fn table() -> TableName {
    TableName::new("public", "t")
}

fn row(cells: &[&str]) -> RowBuf {
    cells.iter().map(|text| if *text == "~" { Cell::Absent } else { Cell::Text(text.as_bytes()) }).collect()
}

fn new(connections: usize) -> Loader<Below> {
    Loader::new(connections, ChunkSize::new(1000, 1 << 20, Duration::from_secs(1)))
}

fn loader() -> Loader<Below> {
    let mut loader = new(1);
    loader.start(job(&[]));
    fence(&mut loader);
    loader
}

fn job(loaded: &[KeyRange]) -> Job {
    let cover =
        Cover { ranges: RangeSet::of(&[KeyOrder::Integer], loaded.iter().cloned()).unwrap(), again: BTreeSet::new() };
    let resumed = HashMap::from([(table(), Resumed { key: integer_key(), cover })]);
    let resumed = if loaded.is_empty() { HashMap::new() } else { resumed };
    Job { requests: vec![Uuid::nil()], only: None, tables: vec![table()], initial: true, resumed }
}

/// All that was asked for.
fn chunk(read: &Read, below: u32, rows: &[RowBuf]) -> ChunkRead<Below> {
    ChunkRead {
        nonce: read.nonce,
        table: read.table.clone(),
        snapshot: Below(below),
        relation: VERSION,
        key_columns: vec![0],
        key_orders: vec![KeyOrder::Integer],
        key: integer_key(),
        rows: rows.to_vec(),
        range: read.range.clone(),
        partial: false,
        took: Duration::from_millis(1),
    }
}

fn range(after: Option<&str>, through: Option<&str>) -> KeyRange {
    KeyRange { after: after.map(|key| vec![key.to_owned()]), through: through.map(|key| vec![key.to_owned()]) }
}

fn fence(loader: &mut Loader<Below>) {
    let name = Uuid::new_v4();
    assert_eq!(loader.next_action(name, true), Some(Action::Fence(name)));
    assert_eq!(loader.next_action(Uuid::new_v4(), true), None);
    loader.fenced(name);
}

fn read(loader: &mut Loader<Below>) -> Read {
    match loader.next_action(Uuid::new_v4(), true) {
        Some(Action::Read(read)) => read,
        other => panic!("expected a read, got {other:?}"),
    }
}

fn answer(loader: &mut Loader<Below>, sees_below: u32, rows: &[RowBuf], through: Option<&str>) -> Option<Ready> {
    answer_as(loader, sees_below, rows, through, VERSION)
}

fn answer_as(
    loader: &mut Loader<Below>,
    below: u32,
    rows: &[RowBuf],
    through: Option<&str>,
    relation: Fingerprint,
) -> Option<Ready> {
    let read = read(loader);
    let through = through.map(|t| vec![t.to_owned()]).or(read.range.through.clone());
    let range = KeyRange { after: read.range.after.clone(), through };
    loader.chunk(ChunkRead { relation, range, ..chunk(&read, below, rows) });
    mark(loader, read.nonce)
}

fn mark(loader: &mut Loader<Below>, nonce: Uuid) -> Option<Ready> {
    loader.mark(nonce);
    loader.take(usize::MAX, |_| Some(VERSION)).unwrap()
}

fn remember(loader: &mut Loader<Below>, xid: u32, op: Op) {
    loader.remember(xid, &table(), VERSION, &[(0, KeyOrder::Integer)], op).unwrap();
}

fn sorted(ready: Option<Ready>) -> Vec<String> {
    let text = |row: &RowBuf| {
        row.row()
            .iter()
            .map(|c| String::from_utf8_lossy(c.text().unwrap_or(b"~")).into_owned())
            .collect::<Vec<_>>()
            .join(",")
    };
    let mut rows: Vec<String> = ready.expect("the chunk is ready").rows.iter().map(text).collect();
    rows.sort();
    rows
}

#[test]
fn changes_that_the_snapshot_did_not_see_are_laid_over_it_and_those_it_saw_are_not() {
    let mut loader = loader();
    remember(&mut loader, 10, Op::Update(row(&["1", "seen already", "x"])));
    remember(&mut loader, 20, Op::Update(row(&["1", "new", "~"])));
    remember(&mut loader, 21, Op::Insert(row(&["4", "in", "big"])));
    remember(&mut loader, 22, Op::Delete(row(&["2", "~", "~"])));
    remember(&mut loader, 23, Op::Rekey { old: row(&["3", "~", "~"]), new: row(&["5", "moved", "~"]) });
    let rows = [row(&["1", "old", "big1"]), row(&["2", "gone", "big2"]), row(&["3", "old", "big3"])];
    let ready = answer(&mut loader, 15, &rows, None);
    assert_eq!(sorted(ready), ["1,new,big1", "4,in,big", "5,moved,big3"]);
    assert_eq!(loader.next_action(Uuid::new_v4(), true), Some(Action::Done(vec![Uuid::nil()])));
    assert!(loader.is_idle());
}

#[test]
fn rows_without_a_key_are_told_apart_by_all_they_hold() {
    let rows = ["a", "a", "b", "c"].map(|text| row(&["1", text]));
    let change = |op| Remembered { xid: 20, table: table(), relation: VERSION, op, bytes: 0 };
    let changes = [
        change(Op::Delete(row(&["1", "a"]))),
        change(Op::Rekey { old: row(&["1", "b"]), new: row(&["1", "a"]) }),
        change(Op::Insert(row(&["2", "c"]))),
    ];
    let held = |changes: &[&Remembered]| {
        let rows = overlay(rows.to_vec(), changes, ALL_KEYLESS, false).unwrap();
        sorted(rows.map(|rows| Ready {
            table: table(),
            relation: VERSION,
            range: KeyRange::ALL,
            rows,
            only: None,
            extent: None,
        }))
    };
    let changes: Vec<&Remembered> = changes.iter().collect();
    assert_eq!(held(&changes), ["1,a", "1,a", "1,c", "2,c"]);
    let truncate = change(Op::Truncate);
    assert_eq!(held(&[&truncate, changes[2]]), ["2,c"]);
    // A row that is not there: the chunk is read again.
    let gone = change(Op::Delete(row(&["9", "a"])));
    assert_eq!(overlay(rows.to_vec(), &[&gone], ALL_KEYLESS, false).unwrap(), None);
}

#[test]
fn a_change_stays_remembered_until_a_snapshot_sees_it() {
    let mut loader = loader();
    remember(&mut loader, 20, Op::Insert(row(&["9", "late", "x"])));
    assert_eq!(sorted(answer(&mut loader, 15, &[row(&["1", "a", "b"])], Some("5"))), ["1,a,b"]);
    assert_eq!(sorted(answer(&mut loader, 15, &[], None)), ["9,late,x"]);
}

#[test]
fn an_absent_column_without_a_base_is_read_again() {
    let mut loader = loader();
    remember(&mut loader, 20, Op::Rekey { old: row(&["90", "~", "~"]), new: row(&["3", "moved", "~"]) });
    assert_eq!(answer(&mut loader, 15, &[row(&["1", "a", "b"])], Some("5")), None);
    assert_eq!(sorted(answer(&mut loader, 30, &[row(&["3", "moved", "big"])], Some("5"))), ["3,moved,big"]);
}

fn moved(loader: &mut Loader<Below>, xid: u32, from: &str, to: &str, big: &str) -> Vec<String> {
    remember(loader, xid, Op::Rekey { old: row(&[from, "~", "~"]), new: row(&[to, "moved", big]) });
    loader.left_out().into_iter().map(|(_, key)| key.concat()).collect()
}

/// The single key that is read next, and its row.
fn answer_key(loader: &mut Loader<Below>, sees_below: u32, after: &str) -> String {
    let read = read(loader);
    let key = read.range.key().expect("a single key").concat();
    let range = range(Some(after), Some(&key));
    let chunk = ChunkRead { range: range.clone(), ..chunk(&read, sees_below, &[row(&[&key, "moved", "big"])]) };
    loader.chunk(chunk);
    let ready = mark(loader, read.nonce).unwrap();
    assert_eq!(ready.range, range);
    key
}

#[test]
fn a_row_that_moves_into_a_loaded_range_with_a_column_missing_is_read_again_alone() {
    let mut loader = loader();
    answer(&mut loader, 15, &[row(&["1", "a", "b"])], Some("5")).unwrap();
    assert_eq!(moved(&mut loader, 20, "7", "3", "~"), ["3"]);
    assert_eq!(moved(&mut loader, 21, "8", "9", "~"), [""; 0], "its range is still to be read");
    answer(&mut loader, 30, &[], None).unwrap();
    assert_eq!(answer_key(&mut loader, 30, "1"), "3");
    assert!(matches!(loader.next_action(Uuid::new_v4(), true), Some(Action::Done(_))));
}

#[test]
fn a_row_that_was_left_out_and_moves_on_is_read_again_at_its_new_key_too() {
    let mut loader = loader();
    answer(&mut loader, 15, &[row(&["1", "a", "b"])], Some("5")).unwrap();
    answer(&mut loader, 15, &[row(&["6", "a", "b"])], Some("8")).unwrap();
    assert_eq!(moved(&mut loader, 20, "9", "3", "~"), ["3"]);
    assert_eq!(moved(&mut loader, 21, "3", "7", "big"), ["7"]);
    answer(&mut loader, 30, &[], None).unwrap();
    assert_eq!((answer_key(&mut loader, 30, "1"), answer_key(&mut loader, 30, "6")), ("3".into(), "7".into()));
    assert_eq!(moved(&mut loader, 40, "3", "2", "~"), [""; 0], "by now the sinks have it");
    assert!(matches!(loader.next_action(Uuid::new_v4(), true), Some(Action::Done(_))));
}

#[test]
fn a_key_to_be_read_again_that_its_range_brings_is_not_read_by_itself() {
    let mut loader = new(1);
    let mut job = job(&[range(None, Some("5"))]);
    // In the order of their texts, so the lower one comes second.
    let again = BTreeSet::from([vec!["10".to_owned()], vec!["9".to_owned()]]);
    job.resumed.get_mut(&table()).unwrap().cover = Cover { ranges: vec![KeyRange::ALL].into(), again };
    loader.start(job);
    fence(&mut loader);
    assert_eq!(answer_key(&mut loader, 30, "7"), "10");
    assert!(matches!(loader.next_action(Uuid::new_v4(), true), Some(Action::Done(_))));
}

#[test]
fn a_load_goes_on_in_what_is_missing_and_still_knows_what_is_loaded() {
    let mut loader = new(1);
    loader.start(job(&[range(None, Some("5")), range(Some("9"), None), range(Some("5"), Some("7"))]));
    fence(&mut loader);
    // A row that nobody has moves into a range that an earlier incarnation loaded.
    assert_eq!(moved(&mut loader, 20, "8", "3", "~"), ["3"]);
    let asked = read(&mut loader);
    assert_eq!((asked.range, asked.key), (range(Some("7"), Some("9")), Some(integer_key())));
    loader.forget();
    fence(&mut loader);
    answer(&mut loader, 30, &[], None).unwrap();
    assert_eq!(answer_key(&mut loader, 30, "1"), "3");
    assert!(matches!(loader.next_action(Uuid::new_v4(), true), Some(Action::Done(_))));
}

#[test]
fn a_table_that_changed_begins_anew_and_the_others_of_its_job_go_on() {
    let mut loader = new(1);
    let other = TableName::new("public", "u");
    let ids = HashMap::from([(table(), Uuid::nil()), (other.clone(), Uuid::nil())]);
    let only = Some(("x".to_owned(), ids));
    loader.start(Job { tables: vec![table(), other.clone()], only, ..job(&[]) });
    fence(&mut loader);
    answer(&mut loader, 15, &[row(&["1", "a", "b"])], Some("5")).unwrap();
    let late = read(&mut loader);
    let asked_since = Uuid::from_u128(7);
    loader.begin_anew(&table(), &[("y".to_owned(), Uuid::from_u128(8)), ("x".to_owned(), asked_since)]);
    loader.chunk(chunk(&late, 15, &[]));
    assert_eq!(mark(&mut loader, late.nonce), None, "it was read before");
    assert_eq!(moved(&mut loader, 20, "8", "3", "~"), [""; 0], "nothing of it is loaded any more");
    let ready = answer(&mut loader, 30, &[], None).unwrap();
    assert_eq!((ready.range, ready.only), (KeyRange::ALL, Some(("x".to_owned(), asked_since))));
    // Once the other one is being read too.
    let asked = read(&mut loader);
    assert_eq!((&asked.table, &asked.range), (&other, &KeyRange::ALL));
    let part = range(None, Some("5"));
    loader.chunk(ChunkRead { range: part.clone(), ..chunk(&asked, 30, &[]) });
    let ready = mark(&mut loader, asked.nonce).unwrap();
    assert_eq!(ready.only, Some(("x".to_owned(), Uuid::nil())));
    loader.begin_anew(&table(), &[]);
    answer(&mut loader, 30, &[], None).unwrap();
    let asked = read(&mut loader);
    assert_eq!((&asked.table, asked.range), (&other, range(Some("5"), None)), "it goes on where it was");
    loader.let_go(&other);
    let done = vec![Uuid::nil(), asked_since];
    assert_eq!(
        loader.next_action(Uuid::new_v4(), true),
        Some(Action::Done(done)),
        "a request of another sink is not answered"
    );
}

#[test]
fn nothing_is_read_of_a_table_that_is_loaded_whole() {
    let mut loader: Loader<Below> = new(1);
    loader.start(job(&[range(None, Some("5")), range(Some("5"), None)]));
    assert_eq!(loader.next_action(Uuid::new_v4(), true), Some(Action::Done(vec![Uuid::nil()])));
}

#[test]
fn a_late_answer_means_nothing() {
    let mut loader = loader();
    let first = read(&mut loader);
    loader.failed(first.nonce);
    let second = read(&mut loader);
    loader.failed(first.nonce);
    loader.fenced(first.nonce);
    assert_eq!(loader.next_action(Uuid::new_v4(), true), None, "the second read is still on its way");
    assert_eq!(mark(&mut loader, first.nonce), None);
    loader.failed(second.nonce);
    assert_eq!(read(&mut loader).range, second.range);
}

#[test]
fn another_version_of_the_table_is_read_again_once() {
    let mut loader = loader();
    let newer = Fingerprint(2);
    assert_eq!(answer_as(&mut loader, 15, &[], None, newer), None);
    assert_eq!(answer_as(&mut loader, 15, &[], None, newer).unwrap().relation, newer);
    let mut loader = self::loader();
    remember(&mut loader, 20, Op::Insert(row(&["9", "old shape"])));
    assert_eq!(answer_as(&mut loader, 15, &[], None, newer), None);
    assert_eq!(answer_as(&mut loader, 15, &[], None, newer), None, "a change of the old shape is not visible yet");
    assert!(answer_as(&mut loader, 21, &[], None, newer).is_some());
}

#[test]
fn a_range_is_of_the_key_that_its_table_was_read_by() {
    let mut loader = loader();
    assert_eq!(read(&mut loader).key, None);
    let mut loader = self::loader();
    answer(&mut loader, 15, &[row(&["1", "a", "b"])], Some("5")).unwrap();
    assert_eq!(read(&mut loader).key, Some(vec![("id".to_owned(), KeyOrder::Integer)]));
    assert!(loader.has_begun(&table()));
    loader.begin_anew(&table(), &[]);
    assert!(!loader.has_begun(&table()));
    assert_eq!(read(&mut loader).key, None, "whatever key it has now");
}

#[test]
fn what_the_chunk_shows_already_is_not_remembered_however_far_the_stream_lags() {
    let mut loader = loader();
    let big = "x".repeat(1 << 20);
    let read = read(&mut loader);
    loader.chunk(chunk(&read, 15, &[row(&["1", "shown"])]));
    for _ in 0..=REMEMBERED_BYTES_MAX >> 20 {
        remember(&mut loader, 10, Op::Update(row(&["1", &big])));
    }
    remember(&mut loader, 20, Op::Update(row(&["1", "newer"])));
    assert_eq!(sorted(mark(&mut loader, read.nonce)), ["1,newer"]);
}

#[test]
fn a_table_that_is_gone_leaves_the_job_and_the_rest_goes_on() {
    let (mut loader, other) = (new(1), TableName::new("public", "u"));
    let two = Job { tables: vec![table(), other.clone()], ..job(&[]) };
    loader.start(two);
    fence(&mut loader);
    let first = read(&mut loader);
    remember(&mut loader, 20, Op::Insert(row(&["1", "x"])));
    loader.let_go(&table());
    assert!(!loader.remembers(&table()) && loader.remembers(&other));
    assert_eq!(mark(&mut loader, first.nonce), None, "its chunk is late");
    assert_eq!(read(&mut loader).table, other);
    loader.let_go(&other);
    assert_eq!(loader.next_action(Uuid::new_v4(), true), Some(Action::Done(vec![Uuid::nil()])));
}

#[test]
fn a_table_that_is_gone_before_the_fence_leaves_it_standing() {
    let (mut loader, other) = (new(1), TableName::new("public", "u"));
    loader.start(Job { tables: vec![table(), other.clone()], ..job(&[]) });
    let name = Uuid::new_v4();
    assert_eq!(loader.next_action(name, true), Some(Action::Fence(name)));
    loader.let_go(&table());
    assert_eq!(loader.next_action(Uuid::new_v4(), true), None, "it is still asked for");
    loader.let_go(&other);
    assert_eq!(loader.next_action(Uuid::new_v4(), true), Some(Action::Done(vec![Uuid::nil()])), "for nobody");
}

#[test]
fn too_much_to_remember_means_a_new_fence_and_a_smaller_chunk() {
    let mut loader = loader();
    let first = read(&mut loader);
    let big = "x".repeat(REMEMBERED_BYTES_MAX / 2 + 1);
    for i in 0..2 {
        remember(&mut loader, 20 + i, Op::Insert(row(&["1", &big, ""])));
    }
    assert_eq!(mark(&mut loader, first.nonce), None);
    let name = Uuid::new_v4();
    assert_eq!(loader.next_action(name, true), Some(Action::Fence(name)));
    loader.fenced(name);
    assert!(read(&mut loader).rows_max < first.rows_max);
}

fn partial(key: &[usize], rows: &[RowBuf], ops: Vec<Op>) -> Option<Vec<String>> {
    let op = |op| Remembered { xid: 9, table: table(), relation: VERSION, op, bytes: 0 };
    let remembered: Vec<Remembered> = ops.into_iter().map(op).collect();
    let place = Place { range: &KeyRange::ALL, key, orders: &[KeyOrder::Integer][..key.len()] };
    let rows = overlay(rows.to_vec(), &remembered.iter().collect::<Vec<_>>(), place, true).unwrap()?;
    let text = |cell: Cell<'_>| String::from_utf8_lossy(cell.text().unwrap_or(b"~")).into_owned();
    let mut rows: Vec<String> =
        rows.iter().map(|row| row.row().iter().map(text).collect::<Vec<_>>().join(",")).collect();
    rows.sort_unstable();
    Some(rows)
}

#[test]
fn changes_of_rows_that_were_left_out_stand_in_the_stream_alone() {
    let ops = || {
        vec![
            Op::Update(row(&["2", "left out"])),
            Op::Update(row(&["1", "b"])),
            Op::Delete(row(&["3", "~"])),
            Op::Rekey { old: row(&["4", "~"]), new: row(&["5", "~"]) },
            Op::Insert(row(&["6", "new"])),
        ]
    };
    assert_eq!(partial(&[0], &[row(&["1", "a"])], ops()).unwrap(), ["1,b", "6,new"]);
    let whole = vec![
        Op::Delete(row(&["3", "c"])),
        Op::Rekey { old: row(&["4", "d"]), new: row(&["4", "e"]) },
        Op::Rekey { old: row(&["1", "a"]), new: row(&["1", "b"]) },
    ];
    assert_eq!(partial(&[], &[row(&["1", "a"])], whole).unwrap(), ["1,b"]);
}

/// What is asked for now, one after the other.
fn reads(loader: &mut Loader<Below>) -> Vec<Read> {
    let next = |loader: &mut Loader<Below>| loader.next_action(Uuid::new_v4(), true);
    std::iter::from_fn(|| match next(loader) {
        Some(Action::Read(read)) => Some(read),
        None => None,
        other => panic!("expected reads, got {other:?}"),
    })
    .collect()
}

/// The answer to a read, not yet met in the stream.
fn found(loader: &mut Loader<Below>, read: &Read, sees_below: u32, rows: &[RowBuf], through: Option<&str>) {
    let through = through.map(|t| vec![t.to_owned()]).or(read.range.through.clone());
    let range = KeyRange { after: read.range.after.clone(), through };
    loader.chunk(ChunkRead { range, ..chunk(read, sees_below, rows) });
}

fn integer_key() -> RangeKey {
    vec![("id".to_owned(), KeyOrder::Integer)]
}

/// Two connections on `t`, of which the first reads up to 5 and the second what lies behind.
fn two() -> (Loader<Below>, Read, Read) {
    let mut loader = new(2);
    loader.start(job(&[]));
    fence(&mut loader);
    let first = reads(&mut loader);
    assert_eq!(first.len(), 1, "nobody knows yet what lies behind it");
    loader.border(first[0].nonce, Some(vec!["5".to_owned()]), integer_key());
    let second = reads(&mut loader);
    assert_eq!(second[0].range, range(Some("5"), None));
    assert_eq!(second[0].key, Some(integer_key()));
    let first = Read { range: range(None, Some("5")), ..first[0].clone() };
    (loader, first, second[0].clone())
}

#[test]
fn what_is_planned_once_is_read_range_by_range_and_not_planned_again() {
    let mut loader = new(2);
    loader.start(job(&[]));
    fence(&mut loader);
    let first = reads(&mut loader).remove(0);
    assert_eq!((first.plan_rows, first.border_wanted), (Some(1000), true));
    let borders = ["5", "8"].map(|key| vec![key.to_owned()]);
    loader.planned(first.nonce, borders.to_vec(), integer_key());
    let second = reads(&mut loader).remove(0);
    assert_eq!(
        (second.range.clone(), second.plan_rows, second.border_wanted),
        (range(Some("5"), Some("8")), None, false)
    );
    assert_eq!(second.rows_max, ROWS_ALL);
    let first = Read { range: range(None, Some("5")), ..first };
    found(&mut loader, &first, 15, &[row(&["1", "a"])], None);
    // It was too much for a chunk; the rest is a scan, and no plan.
    found(&mut loader, &second, 15, &[row(&["6", "b"])], Some("6"));
    let rest: Vec<_> = reads(&mut loader).into_iter().map(|read| (read.range, read.plan_rows)).collect();
    assert_eq!(rest, [(range(Some("6"), Some("8")), None), (range(Some("8"), None), None)]);
}

#[test]
fn the_next_chunk_is_read_while_one_waits_for_its_message_and_is_written() {
    let mut loader = loader();
    let first = reads(&mut loader);
    found(&mut loader, &first[0], 15, &[row(&["1", "a"])], Some("5"));
    let second = reads(&mut loader);
    assert_eq!(second[0].range, range(Some("5"), None));
    assert_eq!(reads(&mut loader), [], "one connection");
    found(&mut loader, &second[0], 15, &[row(&["6", "b"])], Some("8"));
    let third = reads(&mut loader);
    found(&mut loader, &third[0], 15, &[row(&["9", "c"])], Some("9"));
    assert_eq!(reads(&mut loader), [], "so many are held");
    assert_eq!(sorted(mark(&mut loader, first[0].nonce)), ["1,a"]);
    assert_eq!(reads(&mut loader).len(), 1);
}

#[test]
fn chunks_enter_in_order_whichever_message_comes_first() {
    let (mut loader, first, second) = two();
    found(&mut loader, &second, 15, &[row(&["6", "b"])], None);
    assert_eq!(mark(&mut loader, second.nonce), None, "the one before it is still being read");
    remember(&mut loader, 16, Op::Update(row(&["6", "newer"])));
    found(&mut loader, &first, 15, &[row(&["1", "a"])], None);
    assert!(!loader.is_due());
    let ready = mark(&mut loader, first.nonce).unwrap();
    assert_eq!(ready.extent.map(|e| (e.first, e.last)), Some((true, false)));
    assert!(loader.is_due(), "its message was met before");
    let ready = loader.take(usize::MAX, |_| Some(VERSION)).unwrap();
    assert_eq!(ready.as_ref().and_then(|ready| ready.extent).map(|e| (e.first, e.last)), Some((false, true)));
    assert_eq!(sorted(ready), ["6,newer"]);
}

#[test]
fn a_change_that_one_chunk_shows_and_another_does_not_is_kept_for_the_other() {
    let (mut loader, first, second) = two();
    remember(&mut loader, 20, Op::Update(row(&["1", "new", "~"])));
    remember(&mut loader, 21, Op::Update(row(&["6", "new", "~"])));
    // The second was asked for before, and its snapshot is older than that of the first.
    found(&mut loader, &first, 30, &[row(&["1", "new", "big"])], None);
    remember(&mut loader, 22, Op::Delete(row(&["7", "~", "~"])));
    found(&mut loader, &second, 15, &[row(&["6", "old", "big"]), row(&["7", "old", "big"])], None);
    assert_eq!(sorted(mark(&mut loader, first.nonce)), ["1,new,big"]);
    assert_eq!(sorted(mark(&mut loader, second.nonce)), ["6,new,big"]);
}

#[test]
fn a_chunk_that_is_held_has_changes_that_newer_snapshots_show() {
    let (mut loader, first, second) = two();
    found(&mut loader, &first, 15, &[row(&["1", "old", "big"])], None);
    remember(&mut loader, 20, Op::Update(row(&["1", "new", "~"])));
    found(&mut loader, &second, 30, &[], None);
    assert_eq!(sorted(mark(&mut loader, first.nonce)), ["1,new,big"]);
}

#[test]
fn a_row_that_moves_between_two_chunks_that_are_held_is_in_one_of_them() {
    let (mut loader, first, second) = two();
    found(&mut loader, &first, 30, &[], None);
    found(&mut loader, &second, 15, &[], None);
    // The first shows that it went; the second does not show that it came, and one column is nowhere.
    remember(&mut loader, 20, Op::Rekey { old: row(&["1", "~", "~"]), new: row(&["6", "moved", "~"]) });
    assert_eq!(sorted(mark(&mut loader, first.nonce)), Vec::<String>::new());
    assert_eq!(mark(&mut loader, second.nonce), None, "read again");
    let again = reads(&mut loader);
    found(&mut loader, &again[0], 30, &[row(&["6", "moved", "big"])], None);
    assert_eq!(sorted(mark(&mut loader, again[0].nonce)), ["6,moved,big"]);
}

#[test]
fn a_read_that_fails_is_asked_for_again_and_those_behind_it_wait() {
    let (mut loader, first, second) = two();
    found(&mut loader, &second, 15, &[row(&["6", "b"])], None);
    loader.failed(first.nonce);
    assert_eq!(mark(&mut loader, second.nonce), None);
    let again = reads(&mut loader);
    assert_eq!(again[0].range, range(None, Some("5")));
    found(&mut loader, &first, 15, &[row(&["1", "late"])], None);
    found(&mut loader, &again[0], 15, &[row(&["1", "a"])], None);
    assert_eq!(mark(&mut loader, first.nonce), None, "a late answer means nothing");
    assert_eq!(sorted(mark(&mut loader, again[0].nonce)), ["1,a"]);
    assert_eq!(sorted(loader.take(usize::MAX, |_| None).unwrap()), ["6,b"]);
}

#[test]
fn several_chunks_of_an_older_version_are_each_read_again() {
    let (mut loader, first, second) = two();
    found(&mut loader, &first, 15, &[], None);
    found(&mut loader, &second, 15, &[], None);
    let newer = |_: &TableName| Some(Fingerprint(2));
    loader.mark(first.nonce);
    loader.mark(second.nonce);
    assert_eq!(loader.take(usize::MAX, newer).unwrap(), None);
    let again = reads(&mut loader);
    found(&mut loader, &again[0], 20, &[], None);
    loader.mark(again[0].nonce);
    // It was read after the stream had said so: the stream is behind.
    assert_eq!(loader.take(usize::MAX, newer).unwrap().unwrap().range, range(None, Some("5")));
    assert_eq!(loader.take(usize::MAX, newer).unwrap(), None, "of the second nobody knows that yet");
    assert_eq!(reads(&mut loader)[0].range, range(Some("5"), None));
}

#[test]
fn too_much_to_remember_has_all_read_again_that_is_held() {
    let (mut loader, first, second) = two();
    found(&mut loader, &first, 15, &[row(&["1", "a"])], None);
    loader.forget();
    fence(&mut loader);
    let again = reads(&mut loader);
    loader.border(again[0].nonce, None, integer_key());
    assert_eq!(
        again.iter().chain(&reads(&mut loader)).map(|read| read.range.clone()).collect::<Vec<_>>(),
        [range(None, Some("5")), range(Some("5"), None)]
    );
    assert_eq!(mark(&mut loader, first.nonce), None);
    assert_eq!(mark(&mut loader, second.nonce), None);
}

#[test]
fn a_table_that_is_gone_takes_its_chunks_along_and_no_others() {
    let (mut loader, other) = (new(2), TableName::new("public", "u"));
    loader.start(Job { tables: vec![table(), other.clone()], ..job(&[]) });
    fence(&mut loader);
    let first = reads(&mut loader).remove(0);
    loader.border(first.nonce, None, integer_key());
    let second = reads(&mut loader).remove(0);
    assert_eq!(second.table, other, "the next table is begun while the last chunk of the first is read");
    found(&mut loader, &second, 15, &[row(&["1", "u"])], None);
    assert_eq!(mark(&mut loader, second.nonce), None, "parents come first");
    loader.let_go(&table());
    found(&mut loader, &first, 15, &[row(&["1", "t"])], None);
    assert_eq!(loader.take(usize::MAX, |_| None).unwrap().unwrap().table, other);
    assert!(matches!(loader.next_action(Uuid::new_v4(), false), Some(Action::Done(_))));
}

#[test]
fn a_chunk_enters_in_pieces_each_with_the_changes_until_then() {
    let mut loader = loader();
    let read = reads(&mut loader).remove(0);
    let rows: Vec<RowBuf> = (1..=5).map(|id| row(&[&id.to_string(), "old"])).collect();
    found(&mut loader, &read, 15, &rows, None);
    loader.mark(read.nonce);
    let piece = |loader: &mut Loader<Below>| loader.take(2, |_| Some(VERSION)).unwrap().unwrap();
    let first = piece(&mut loader);
    assert_eq!((&first.range, first.extent.map(|e| e.last)), (&range(None, Some("2")), Some(false)));
    assert_eq!(sorted(Some(first)), ["1,old", "2,old"]);
    remember(&mut loader, 20, Op::Update(row(&["4", "new"])));
    remember(&mut loader, 21, Op::Rekey { old: row(&["5", "~"]), new: row(&["1", "~"]) });
    let second = piece(&mut loader);
    assert_eq!(second.range, range(Some("2"), Some("4")));
    assert_eq!(sorted(Some(second)), ["3,old", "4,new"]);
    let third = piece(&mut loader);
    assert_eq!((&third.range, third.rows.len()), (&range(Some("4"), None), 0));
    let again = KeyRange::of_key(vec!["1".to_owned()]);
    assert_eq!(reads(&mut loader).remove(0).range, again, "it moved there with a column missing");
}

#[test]
fn nothing_is_read_while_reading_is_to_wait() {
    let mut loader = loader();
    assert_eq!(loader.next_action(Uuid::new_v4(), false), None);
    assert_eq!(reads(&mut loader).len(), 1);
}

#[test]
fn so_many_keys_that_are_to_be_read_again_that_the_table_is() {
    let mut loader = loader();
    answer(&mut loader, 15, &[row(&["1", "a", "b"])], Some("100000")).unwrap();
    for key in 0..=AGAIN_KEYS_MAX {
        assert!(!loader.is_torn(&table()), "{key}");
        let (from, to) = ((key + 200_000).to_string(), key.to_string());
        remember(&mut loader, 20, Op::Rekey { old: row(&[&from, "~", "~"]), new: row(&[&to, "moved", "~"]) });
    }
    assert!(loader.is_torn(&table()));
    loader.begin_anew(&table(), &[]);
    assert!(!loader.is_torn(&table()));
    assert_eq!(read(&mut loader).range, KeyRange::ALL);
}

#[test]
fn a_pause_remembers_nothing_and_ends_behind_a_fence() {
    let mut loader = loader();
    let held = read(&mut loader);
    loader.chunk(chunk(&held, 10, &[row(&["1", "old"])]));
    loader.pause(true);
    assert_eq!(
        (mark(&mut loader, held.nonce), loader.next_action(Uuid::new_v4(), true)),
        (None, None),
        "nothing enters"
    );
    for xid in 20..2000 {
        remember(&mut loader, xid, Op::Update(row(&["1", "meanwhile"])));
    }
    assert_eq!(loader.remembered.len(), 0);
    loader.pause(false);
    let name = Uuid::new_v4();
    assert_eq!(loader.next_action(name, true), Some(Action::Fence(name)), "none that began before is still to be seen");
    remember(&mut loader, 2000, Op::Update(row(&["1", "new"])));
    loader.fenced(name);
    assert_eq!(sorted(answer(&mut loader, 2000, &[row(&["1", "meanwhile"])], None)), ["1,new"]);
}
