//! What a member of a sink in row consistency still has before it: intervals of the ledger from where the whole sink stands, and
//! which of them its partitions may have now.
//!
//! Pure: items of the walk in, intervals out that hold nothing but the member's own spans. A partition gets its spans in order. What
//! is a barrier stops every partition that is before it: whether it is past it says its position, which moves past barriers by
//! the hand of the sink's owner alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::apply::machine::{Interval, Item, Loads};
use crate::apply::rows::floor::{is_plain, partition};
use crate::lsn::Position;
use crate::relation::TableName;
use crate::sink::partition_progress::{Partition, PartitionMove, PartitionRow};

struct Step {
    interval: Interval,
    plain: bool,
}

pub struct Window {
    sink: String,
    tables: BTreeSet<TableName>,
    steps: VecDeque<Step>,
    /// As of the last step.
    loads: Loads,
    /// Offsets behind the last records that the ledger counts.
    ends: BTreeMap<Partition, i64>,
}

/// What one transaction of a member is to apply.
#[derive(Default, Debug, PartialEq)]
pub struct Chosen {
    pub intervals: Vec<Interval>,
    pub moves: BTreeMap<Partition, PartitionMove>,
}

impl Window {
    /// From where the sink stands, with what was under load there.
    pub fn new(sink: &str, tables: BTreeSet<TableName>, loads: Loads) -> Window {
        Window { sink: sink.to_owned(), tables, steps: VecDeque::new(), loads, ends: BTreeMap::new() }
    }

    /// Other tables that the sink takes.
    pub fn knows(&mut self, tables: BTreeSet<TableName>) {
        self.tables.extend(tables);
    }

    pub fn push(&mut self, item: Item) {
        match item {
            Item::Interval(interval) => {
                for span in &interval.checkpoint.spans {
                    self.ends.insert(partition(span), span.last + 1);
                }
                if interval.concerns {
                    let plain = self.loads.is_empty() && is_plain(&interval, &self.sink, |t| self.tables.contains(t));
                    self.steps.push_back(Step { interval: *interval, plain });
                }
            }
            Item::Joined(offset, request) => self.loads.joined(offset, &request),
            Item::Loaded(request) => self.loads.loaded(request),
            Item::Left(offset, request) => self.loads.left(offset, &request),
            Item::Routed(..) => {}
        }
    }

    /// The whole sink stands here.
    pub fn prune(&mut self, floor: Position) {
        while self.steps.front().is_some_and(|step| step.interval.checkpoint.to <= floor) {
            self.steps.pop_front();
        }
    }

    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Records of a partition that the ledger counts and that are not in.
    pub fn lag(&self, row: &PartitionRow) -> u64 {
        let end = self.ends.get(&row.partition).copied().unwrap_or(row.next_offset);
        u64::try_from(end - row.next_offset).unwrap_or_default()
    }

    /// What comes next for these partitions, up to so many records. `known`: all partitions that the sink knows.
    pub fn choose(
        &self,
        owned: &BTreeMap<Partition, PartitionRow>,
        known: &BTreeSet<Partition>,
        records_max: u64,
    ) -> Chosen {
        let mut open: BTreeMap<&Partition, Position> =
            owned.values().map(|row| (&row.partition, row.position)).collect();
        let (mut chosen, mut records) = (Chosen::default(), 0);
        for Step { interval, plain } in &self.steps {
            let (to, spans) = (interval.checkpoint.to, &interval.checkpoint.spans);
            if !plain || !spans.iter().all(|span| known.contains(&partition(span))) {
                open.retain(|_, position| *position >= to);
                continue;
            }
            let mine = |span: &&_| open.get(&partition(span)).is_some_and(|position| *position < to);
            let mine: Vec<_> = spans.iter().filter(mine).cloned().collect();
            if mine.is_empty() {
                continue;
            }
            records += mine.iter().map(|span| span.count).sum::<u64>();
            if !chosen.intervals.is_empty() && records > records_max {
                break;
            }
            let moves =
                mine.iter().map(|span| (partition(span), PartitionMove { next_offset: span.last + 1, position: to }));
            chosen.moves.extend(moves);
            let mut narrowed = interval.clone();
            // Rows of chunks in these spans are for others.
            (narrowed.checkpoint.spans, narrowed.checkpoint.chunks) = (mine, Vec::new());
            chosen.intervals.push(narrowed);
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::machine::At;
    use crate::ledger::entry::{Checkpoint, Request, RequestKind, Span};
    use crate::lsn::Lsn;
    use uuid::Uuid;

    fn table() -> TableName {
        TableName::new("s", "t")
    }

    fn at(lsn: u64) -> Position {
        Position::new(Lsn(lsn), 0)
    }

    /// An interval that ends at `to`, with one record in each of these partitions at offset `to`.
    fn interval(to: u64, partitions: &[i32], barriers: Option<&[TableName]>) -> Item {
        let offset = i64::try_from(to).unwrap();
        let span = |&partition: &i32| Span { topic: "t".into(), partition, first: offset, last: offset, count: 1 };
        let checkpoint = Checkpoint {
            epoch: At::ORIGIN.epoch,
            from: at(to - 1),
            to: at(to),
            closed: Lsn(to),
            commit_time: 1,
            spans: partitions.iter().map(span).collect(),
            chunks: vec![],
            again: vec![],
            forget: None,
            barriers: barriers.map(<[_]>::to_vec),
            prev: None,
        };
        Item::Interval(Box::new(Interval { offset, checkpoint, concerns: true }))
    }

    fn part(number: i32) -> Partition {
        Partition { topic: "t".into(), number }
    }

    fn owned(rows: &[(i32, u64)]) -> BTreeMap<Partition, PartitionRow> {
        let row = |&(number, to): &(i32, u64)| {
            let row = PartitionRow { partition: part(number), next_offset: 0, position: at(to), worker_epoch: 1 };
            (part(number), row)
        };
        rows.iter().map(row).collect()
    }

    /// Ends of the chosen intervals with the partitions in them, and where it leaves each partition.
    fn choose(window: &Window, rows: &[(i32, u64)]) -> String {
        let chosen = window.choose(&owned(rows), &(0..3).map(part).collect(), 100);
        let of = |interval: &Interval| {
            let parts: Vec<String> = interval.checkpoint.spans.iter().map(|span| span.partition.to_string()).collect();
            format!("{}:{}", interval.checkpoint.to.lsn.0, parts.join("+"))
        };
        let intervals: Vec<String> = chosen.intervals.iter().map(of).collect();
        let moves = chosen.moves.iter().map(|(part, to)| format!("{}@{}", part.number, to.position.lsn.0));
        format!("{} -> {}", intervals.join(" "), moves.collect::<Vec<_>>().join(" "))
    }

    fn window() -> Window {
        Window::new("x", [table()].into(), Loads::none("x"))
    }

    #[test]
    fn each_partition_gets_what_it_does_not_have_and_nothing_of_others() {
        let mut window = window();
        for (to, parts) in [(1, &[0, 1][..]), (2, &[1]), (3, &[2]), (4, &[0, 1, 2])] {
            window.push(interval(to, parts, Some(&[])));
        }
        assert_eq!(choose(&window, &[(0, 0), (1, 0)]), "1:0+1 2:1 4:0+1 -> 0@4 1@4");
        assert_eq!(choose(&window, &[(0, 0), (1, 2)]), "1:0 4:0+1 -> 0@4 1@4");
        assert_eq!(choose(&window, &[(2, 4)]), " -> ");
        window.prune(at(2));
        assert_eq!((window.len(), choose(&window, &[(0, 0)])), (2, "4:0 -> 0@4".into()));
    }

    #[test]
    fn nobody_passes_a_barrier_by_himself() {
        let mut window = window();
        let other = [TableName::new("s", "other")];
        window.push(interval(1, &[0, 1], Some(&other)));
        window.push(interval(2, &[0], Some(&[table()])));
        window.push(interval(3, &[1], Some(&[])));
        assert_eq!(choose(&window, &[(0, 0), (1, 0)]), "1:0+1 -> 0@1 1@1");
        assert_eq!(choose(&window, &[(1, 1)]), " -> ", "it has no record in the barrier, and waits all the same");
        assert_eq!(choose(&window, &[(1, 2)]), "3:1 -> 1@3");
        // Of a table that only others are told to take.
        let mut behind = self::tests::window();
        behind.knows(other.into());
        behind.push(interval(1, &[0], Some(&[TableName::new("s", "other")])));
        assert_eq!(choose(&behind, &[(0, 0)]), " -> ");
        // A writer that does not say, and a partition that the sink does not know.
        window.push(interval(4, &[1], None));
        window.push(interval(5, &[1], Some(&[])));
        assert_eq!(choose(&window, &[(1, 3)]), " -> ");
        window.push(interval(6, &[7], Some(&[])));
        window.push(interval(7, &[1], Some(&[])));
        assert_eq!(choose(&window, &[(1, 4)]), "5:1 -> 1@5");
    }

    #[test]
    fn nothing_is_a_members_while_a_table_is_under_load() {
        let mut window = window();
        let request = Request::new(Uuid::from_u128(1), RequestKind::Join, "x", vec![table()], "");
        window.push(Item::Joined(0, request));
        window.push(interval(1, &[0], Some(&[])));
        window.push(Item::Loaded(Uuid::from_u128(1)));
        window.push(interval(2, &[0], Some(&[])));
        assert_eq!(choose(&window, &[(0, 0)]), " -> ");
        assert_eq!(choose(&window, &[(0, 1)]), "2:0 -> 0@2");
    }
}
