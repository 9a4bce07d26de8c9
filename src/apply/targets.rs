//! Tables of a sink that several of the source's tables go into, as far as loads are concerned: what of such a table is still to
//! be read, and which hold nothing yet that counts.
//!
//! Pure. The tables of the sink come from its configuration, what tells rows apart from relation versions alone.

use std::collections::{BTreeSet, HashMap};

use crate::apply::machine::Loads;
use crate::config::{Delete, SinkTable};
use crate::key::KeyOrder;
use crate::ledger::state::State;
use crate::relation::{Relation, TableName};
use crate::sink::park::{Loaded, Unread};

/// What tells the rows of a table of the source apart, from each other and from those of other tables, at a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Apart {
    constants: Vec<(String, String)>,
    key: Vec<(String, KeyOrder)>,
}

impl Apart {
    fn of(relation: &Relation) -> Apart {
        let name = |i: usize| relation.columns[i].name.clone();
        let constants = relation.constants().into_iter().map(|(i, value)| (name(i), value.to_owned()));
        let key = relation.own_key().into_iter().map(|i| (name(i), KeyOrder::of(relation.columns[i].type_oid)));
        Apart { constants: constants.collect(), key: key.collect() }
    }
}

/// What rows of each table of the source are told apart by, as its versions say: one thing mostly.
#[derive(Debug, Default)]
pub struct Rows(HashMap<TableName, Vec<Apart>>);

impl Rows {
    pub fn of(state: &State, tables: &HashMap<TableName, SinkTable>) -> Rows {
        let mut rows: HashMap<TableName, Vec<Apart>> = HashMap::new();
        for relation in state.relations.values().filter(|relation| tables.contains_key(&relation.name)) {
            let (apart, known) = (Apart::of(relation), rows.entry(relation.name.clone()).or_default());
            if !known.contains(&apart) {
                known.push(apart);
            }
        }
        Rows(rows)
    }

    /// What is still to be read of the sink's tables. Rows that can't be told from those of other tables are left out: they are
    /// taken for rows that stay.
    pub fn unread(&self, tables: &HashMap<TableName, SinkTable>, loads: &Loads) -> Unread {
        let mut unread = Unread::new();
        for (source, target) in tables {
            let Some(ranges) = loads.loaded_ranges(source) else { continue };
            let alone = || tables.iter().all(|(other, into)| other == source || into.table != target.table);
            let apart = match self.0.get(source).map_or(&[][..], Vec::as_slice) {
                [apart] => apart.clone(),
                // With constants others may write into the table too, whom nobody here knows of.
                known if alone() && known.iter().all(|apart| apart.constants.is_empty()) => {
                    Apart { constants: Vec::new(), key: Vec::new() }
                }
                _ => continue,
            };
            let Apart { constants, key } = apart;
            unread.entry(target.table.clone()).or_default().push(Loaded { ranges, constants, key });
        }
        unread
    }
}

/// Constants that other versions of the relation's table have, where no table that goes into the same one has them now.
pub fn left_behind(
    relation: &Relation,
    state: &State,
    tables: &HashMap<TableName, SinkTable>,
) -> Vec<Vec<(String, String)>> {
    let into = |name: &TableName| tables.get(name).map(|target| &target.table);
    let now = Apart::of(relation).constants;
    let taken = |constants: &Vec<(String, String)>| {
        let others = state.relations.values().filter(|other| other.name != relation.name);
        let mut beside = others.filter(|other| into(&other.name) == into(&relation.name));
        *constants == now || beside.any(|other| Apart::of(other).constants == *constants)
    };
    let versions = state.relations.values().filter(|other| other.name == relation.name);
    let versions = versions.map(|other| Apart::of(other).constants);
    let mut left: Vec<_> = versions.filter(|constants| !constants.is_empty() && !taken(constants)).collect();
    left.sort();
    left.dedup();
    left
}

/// Tables of the sink of which nothing is loaded yet, but for the one that this table of the source goes into.
pub fn blank(tables: &HashMap<TableName, SinkTable>, loads: &Loads, but: &TableName) -> Vec<TableName> {
    // Rows that are only marked go with nothing.
    let is_blank = |source, target: &SinkTable| loads.is_blank(source) && target.delete == Delete::Row;
    let (blank, begun): (Vec<_>, Vec<_>) =
        tables.iter().partition(|(source, target)| *source != but && is_blank(source, target));
    let begun: BTreeSet<&TableName> = begun.into_iter().map(|(_, target)| &target.table).collect();
    let blank: BTreeSet<&TableName> = blank.into_iter().map(|(_, target)| &target.table).collect();
    blank.difference(&begun).map(|table| (*table).clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;

    use super::*;
    use crate::key::KeyRange;
    use crate::ledger::entry::{Request, RequestKind};
    use crate::relation::{Column, Fingerprint, Format, Modes, TypeKind};
    use crate::transform::Transform;

    fn name(table: &str) -> TableName {
        TableName::new("s", table)
    }

    /// Tables `a1`, `a2` go into `a`, `b1` into `b`.
    fn tables() -> HashMap<TableName, SinkTable> {
        let target = |table: &str| SinkTable::new("x", name(&table[..1]));
        ["a1", "a2", "b1"].map(|table| (name(table), target(table))).into()
    }

    fn loads(of: &[&str]) -> Loads {
        let tables = of.iter().map(|table| name(table)).collect();
        let mut loads = Loads::none("x");
        loads.joined(1, &Request::new(Uuid::nil(), RequestKind::Join, "x", tables, ""));
        loads
    }

    fn relation(table: &str, tenant: &str, number: u64) -> Arc<Relation> {
        let column = |name: &str, type_oid, key| Column {
            name: name.to_owned(),
            type_oid,
            type_name: "x".to_owned(),
            typmod: -1,
            kind: TypeKind::Base,
            nullable: false,
            default: None,
            key: Some(key),
            exact: true,
        };
        Arc::new(Relation {
            fingerprint: Fingerprint(number),
            oid: 1,
            name: name(table),
            topic: "t".to_owned(),
            partitions: 1,
            format: Format::Json,
            modes: Modes::default(),
            columns: vec![column("tenant", 25, 0), column("id", 23, 1)],
            avro: None,
            transforms: vec![Transform::Constant { column: "tenant".to_owned(), value: tenant.to_owned() }],
            hidden: vec![],
            composites: vec![],
        })
    }

    fn state(relations: &[Arc<Relation>]) -> State {
        let relations = relations.iter().map(|relation| (relation.fingerprint, relation.clone())).collect();
        State { relations, ..State::default() }
    }

    #[test]
    fn a_shared_table_is_blank_once_all_that_go_into_it_are() {
        assert_eq!(blank(&tables(), &loads(&["a1", "b1"]), &name("x1")), [name("b")]);
        assert_eq!(blank(&tables(), &loads(&["a1", "a2"]), &name("b1")), [name("a")]);
        assert_eq!(blank(&tables(), &loads(&["a1", "a2", "b1"]), &name("a1")), [name("b")], "its own table is not");
    }

    #[test]
    fn what_is_to_be_read_of_a_shared_table_is_one_tables_rows() {
        let (one, two) = (relation("a1", "one", 1), relation("a2", "two", 2));
        let rows = Rows::of(&state(&[one.clone(), two]), &tables());
        let loaded = |tenant: &str| Loaded {
            ranges: Vec::<KeyRange>::new(),
            constants: vec![("tenant".to_owned(), tenant.to_owned())],
            key: vec![("id".to_owned(), KeyOrder::Integer)],
        };
        assert_eq!(rows.unread(&tables(), &loads(&["a1"])), Unread::from([(name("a"), vec![loaded("one")])]));
        // A table whose column holds something else by now, and one that nobody has told of.
        let other = relation("a1", "other", 3);
        let left = |relations: &[Arc<Relation>]| left_behind(&other, &state(relations), &tables());
        assert_eq!(left(&[one.clone(), other.clone()]), [[("tenant".to_owned(), "one".to_owned())]]);
        assert!(left(&[one.clone(), relation("a2", "one", 4), other.clone()]).is_empty(), "the rows are a2's by now");
        let rows = Rows::of(&state(&[one, other]), &tables());
        let alone = Unread::from([(name("b"), vec![Loaded::default()])]);
        assert_eq!(rows.unread(&tables(), &loads(&["a1", "a2", "b1"])), alone);
    }
}
