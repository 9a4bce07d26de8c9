//! Random changes as their net effect, as the same changes one by one, and in a model of the source: the same state at the end of
//! each transaction, or the same refusal and nothing of it.
//!
//! Two tables, one of which references the other; unique values, with and without NULL, that are handed over, swapped and taken
//! back; keys that change, also to one that was just left; columns that were not sent; rows emptied away. Constraints are
//! those of a source that checks them at the end of a transaction, the hardest kind for a sink that checks with every row.

use std::collections::{BTreeMap, BTreeSet};

use lockstep::apply::net::Folded;
use lockstep::change::Op;
use lockstep::sink::Failure;
use lockstep::value::{Cell, RowBuf};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{File, Owned, Plan};
use crate::world::{row, wanted};

/// Key, then u (unique), v (unique, not null), n.
type Parent = BTreeMap<i64, [Option<i64>; 3]>;
/// Key, then the parent's.
type Child = BTreeMap<i64, Option<i64>>;

#[derive(Clone, Default, PartialEq, Debug)]
struct Model {
    parents: Parent,
    children: Child,
}

const DDL: &str = "
CREATE TABLE p (id INTEGER PRIMARY KEY, u INTEGER UNIQUE, v INTEGER NOT NULL, n TEXT, own TEXT DEFAULT 'kept', UNIQUE (v));
CREATE TABLE c (id INTEGER PRIMARY KEY, p INTEGER REFERENCES p (id));";

impl Model {
    fn holds(&self) -> bool {
        let unique = |i: usize| {
            let values: Vec<i64> = self.parents.values().filter_map(|row| row[i]).collect();
            values.iter().collect::<BTreeSet<_>>().len() == values.len()
        };
        unique(0) && unique(1) && self.children.values().flatten().all(|parent| self.parents.contains_key(parent))
    }

    /// As the tables show it.
    fn shown(&self) -> String {
        let cell = |value: &Option<i64>| value.map_or("~".to_owned(), |value| value.to_string());
        let parents =
            self.parents.iter().map(|(id, row)| format!("{id}|{}", row.iter().map(cell).collect::<Vec<_>>().join("|")));
        let children = self.children.iter().map(|(id, parent)| format!("c{id}|{}", cell(parent)));
        parents.chain(children).collect::<Vec<_>>().join("\n")
    }
}

fn found(file: &File) -> String {
    let parents = file.rows("SELECT id, u, v, n FROM p ORDER BY id");
    let children = file.rows("SELECT 'c' || id, p FROM c ORDER BY id");
    [parents, children].into_iter().filter(|rows| !rows.is_empty()).collect::<Vec<_>>().join("\n")
}

fn pick<T: Copy>(random: &mut StdRng, of: impl Iterator<Item = T>) -> Option<T> {
    let all: Vec<T> = of.collect();
    (!all.is_empty()).then(|| all[random.random_range(0..all.len())])
}

fn cells(id: i64, values: &[Option<Option<i64>>]) -> RowBuf {
    let texts: Vec<Option<Option<String>>> = std::iter::once(Some(Some(id)))
        .chain(values.iter().copied())
        .map(|v| v.map(|v| v.map(|v| v.to_string())))
        .collect();
    let cell = |text: &Option<Option<String>>| match text {
        None => row("-"),
        Some(None) => row("~"),
        Some(Some(text)) => row(text),
    };
    let rows: Vec<RowBuf> = texts.iter().map(cell).collect();
    rows.iter().map(|row| -> Cell<'_> { row.row().get(0) }).collect()
}

/// A change that is possible in the model, which takes it: 0 is the parents' table.
fn change(random: &mut StdRng, model: &mut Model) -> Option<(usize, Op)> {
    let value = |random: &mut StdRng| i64::from(random.random_range(0..6_u8));
    let free = |random: &mut StdRng, taken: &BTreeSet<i64>| {
        let all = (1..9).filter(|id| !taken.contains(id));
        pick(random, all)
    };
    let parents: BTreeSet<i64> = model.parents.keys().copied().collect();
    let children: BTreeSet<i64> = model.children.keys().copied().collect();
    let u = |random: &mut StdRng| (random.random_range(0..4) > 0).then(|| value(random));
    // Absent now and then.
    let columns = |random: &mut StdRng| {
        let (new_u, new_v, n) = (u(random), value(random), u(random));
        let mut sent = |value: Option<i64>| (random.random_range(0..3) > 0).then_some(value);
        [sent(new_u), sent(Some(new_v)), sent(n)]
    };
    let assign = |row: &mut [Option<i64>; 3], columns: &[Option<Option<i64>>; 3]| {
        row.iter_mut().zip(columns).for_each(|(held, new)| *held = new.unwrap_or(*held));
    };
    Some(match random.random_range(0..20) {
        0..=4 => {
            let id = free(random, &parents)?;
            let row = [u(random), Some(value(random)), None];
            model.parents.insert(id, row);
            (0, Op::Insert(cells(id, &row.map(Some))))
        }
        5..=9 => {
            let id = pick(random, parents.iter().copied())?;
            let columns = columns(random);
            assign(model.parents.get_mut(&id)?, &columns);
            (0, Op::Update(cells(id, &columns)))
        }
        10..=11 => {
            let id = pick(random, parents.iter().copied())?;
            model.parents.remove(&id);
            (0, Op::Delete(cells(id, &[None; 3])))
        }
        12..=14 => {
            let (id, to) = (pick(random, parents.iter().copied())?, free(random, &parents)?);
            let columns = columns(random);
            let mut row = model.parents.remove(&id)?;
            assign(&mut row, &columns);
            model.parents.insert(to, row);
            (0, Op::Rekey { old: cells(id, &[None; 3]), new: cells(to, &columns) })
        }
        15..=16 => {
            let id = free(random, &children)?;
            let parent = pick(random, parents.iter().copied());
            model.children.insert(id, parent);
            (1, Op::Insert(cells(id, &[Some(parent)])))
        }
        17 => {
            let id = pick(random, children.iter().copied())?;
            let parent = pick(random, parents.iter().copied());
            model.children.insert(id, parent);
            (1, Op::Update(cells(id, &[Some(parent)])))
        }
        18 => {
            let id = pick(random, children.iter().copied())?;
            model.children.remove(&id);
            (1, Op::Delete(cells(id, &[None])))
        }
        _ if random.random_range(0..3) == 0 => {
            let parents = random.random_bool(0.3);
            if parents {
                model.parents.clear()
            } else {
                model.children.clear()
            }
            (usize::from(!parents), Op::Truncate)
        }
        _ => return None,
    })
}

struct Sides {
    file: File,
    owned: Owned,
    plans: [Plan; 2],
}

impl Sides {
    async fn new() -> Sides {
        let file = File::new(DDL);
        let mut owned = file.sink().await;
        let parent = owned.plan(wanted("p", "id:int8! u:int8 v:int8+ n:text")).await;
        let child = owned.plan(wanted("c", "id:int8! p:int8")).await;
        Sides { file, owned, plans: [parent, child] }
    }

    /// Each change by itself, or what `batch` of them come to.
    async fn apply(&mut self, ops: &[(usize, Op)], batch: usize) -> Result<(), Failure> {
        let Sides { owned, plans, .. } = self;
        let to = owned.begin().await;
        let mut folds = [plans[0].fold(), plans[1].fold()];
        let mut outcome = Ok(());
        for (i, (table, op)) in ops.iter().enumerate() {
            let mut op = op.clone();
            while let Folded::FlushFirst(again) = folds[*table].fold(op).unwrap() {
                outcome = outcome.and(flush(owned, plans, &mut folds).await);
                op = again;
            }
            if (i + 1) % batch == 0 && outcome.is_ok() {
                outcome = flush(owned, plans, &mut folds).await;
            }
            if outcome.is_err() {
                break;
            }
        }
        if outcome.is_ok() {
            outcome = flush(owned, plans, &mut folds).await;
        }
        owned.end(to, outcome).await
    }
}

async fn flush(
    owned: &mut Owned,
    plans: &[Plan; 2],
    folds: &mut [lockstep::apply::fold::Fold; 2],
) -> Result<(), Failure> {
    use lockstep::sink::Sink;
    let nets = plans.iter().zip(folds).map(|(plan, fold)| (plan, fold.drain()));
    let batch: Vec<_> = nets.filter(|(_, net)| !net.is_empty()).collect();
    owned.sink.apply(&batch).await.map(drop)
}

/// What refused; both unique values and references may be wrong, and which is seen first depends on the order.
fn kind(outcome: &Result<(), Failure>) -> &'static str {
    match outcome {
        Ok(()) => "applied",
        Err(Failure::Unique(_) | Failure::Reference(_)) => "refused",
        Err(other) => panic!("neither a unique value nor a reference refuses: {other:?}"),
    }
}

/// How many transactions were applied, and how many refused.
pub async fn run(seeds: u64) -> (u64, u64) {
    let (mut applied, mut refused) = (0, 0);
    let mut sides = [Sides::new().await, Sides::new().await];
    for seed in 0..seeds {
        let mut random = StdRng::seed_from_u64(seed);
        let mut model = Model::default();
        for side in &sides {
            side.file.run("DELETE FROM c; DELETE FROM p");
        }
        for transaction in 0..8 {
            let (before, mut ops) = (model.clone(), Vec::new());
            for _ in 0..random.random_range(1..14) {
                ops.extend(change(&mut random, &mut model));
            }
            // The source takes no other transaction; here one is tried now and then.
            if !model.holds() && random.random_range(0..4) > 0 {
                model = before;
                continue;
            }
            let expected = if model.holds() { "applied" } else { "refused" };
            let batch = random.random_range(2..14);
            for (side, batch) in sides.iter_mut().zip([batch, 1]) {
                let outcome = side.apply(&ops, batch).await;
                let place = || format!("seed {seed}, transaction {transaction}, {batch} at once: {outcome:?}\n{ops:?}");
                assert_eq!(kind(&outcome), expected, "{}", place());
                let wanted = if outcome.is_ok() { &model } else { &before };
                assert_eq!(found(&side.file), wanted.shown(), "{}", place());
                assert_eq!(side.file.rows("SELECT count(*) FROM p WHERE own <> 'kept'"), "0");
            }
            if expected == "refused" {
                model = before;
                refused += 1;
            } else {
                applied += 1;
            }
        }
    }
    (applied, refused)
}
