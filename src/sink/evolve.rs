//! How a sink's table follows the source's when that changes its shape: statements, as far as the connector's
//! `evolve` allows.
//!
//! Pure: what is wanted and what is there in, SQL out. Nothing here is needed for values: a table whose columns come,
//! change their name or their type is read again whatever the sink does, so a column that is made here is empty until
//! its rows come. What is left unfit is judged by [`super::fit`] afterwards, which halts by name.
//!
//! A column that no version of the source's table ever had is the service's own and is never touched.

use super::WantedTable;
use super::catalog::{ColumnFacts, TableFacts};
use super::fit::{declaration, holds};
use crate::config::Evolve;
use crate::relation::quote_identifier;

/// What to run at the sink, in order, before rows of `wanted` are written. `earlier` are the versions that the table
/// may hold now.
pub fn steps(wanted: &WantedTable, facts: &TableFacts, earlier: &[WantedTable], evolve: Evolve) -> Vec<String> {
    let there = |name: &str| facts.columns.iter().find(|column| column.name == name);
    let mut missing: Vec<usize> =
        (0..wanted.columns.len()).filter(|&i| there(&wanted.columns[i].column.name).is_none()).collect();
    let alter = |what: String| format!("ALTER TABLE {} {what}", wanted.table.quoted());
    let add = |&i: &usize| {
        let column = &wanted.columns[i].column;
        alter(format!("ADD COLUMN {} {}", quote_identifier(&column.name), declaration(column)))
    };
    match evolve {
        Evolve::Off => Vec::new(),
        Evolve::Add => missing.iter().map(add).collect(),
        Evolve::Full => {
            let mut leaving: Vec<&ColumnFacts> =
                facts.columns.iter().filter(|column| is_left(&column.name, wanted, earlier)).collect();
            let mut steps = Vec::new();
            let renamed = renames(wanted, facts, earlier);
            for (from, i) in &renamed {
                let (from, to) = (&from.name, &wanted.columns[*i].column.name);
                steps.push(alter(format!("RENAME COLUMN {} TO {}", quote_identifier(from), quote_identifier(to))));
                missing.retain(|place| place != i);
                leaving.retain(|column| column.name != *from);
            }
            steps.extend(missing.iter().map(add));
            for (i, column) in wanted.columns.iter().map(|wanted| &wanted.column).enumerate() {
                let before = renamed.iter().find(|(_, place)| *place == i).map(|(from, _)| *from);
                let Some(sink) = before.or_else(|| there(&column.name)) else { continue };
                let name = quote_identifier(&column.name);
                if !holds(column, sink) && !sink.generated {
                    let declared = declaration(column);
                    steps.push(alter(format!("ALTER COLUMN {name} TYPE {declared} USING {name}::text::{declared}")));
                }
                if sink.not_null && column.nullable && column.key.is_none() {
                    steps.push(alter(format!("ALTER COLUMN {name} DROP NOT NULL")));
                }
            }
            steps.extend(leaving.iter().map(|column| alter(format!("DROP COLUMN {}", quote_identifier(&column.name)))));
            steps
        }
    }
}

/// A column that an earlier version had and this one has not.
fn is_left(name: &str, wanted: &WantedTable, earlier: &[WantedTable]) -> bool {
    let has = |version: &WantedTable| version.columns.iter().any(|c| c.column.name == name);
    !has(wanted) && earlier.iter().any(has)
}

/// Columns that only changed their name, judged against the largest of the earlier versions that the sink holds whole. Tables
/// keep the order of their columns and get new ones at the end, so between two columns that have their names still, as many
/// as there were, of the same types, are the ones that there were; behind the last, new ones may follow. It may also be that one
/// was dropped and another one of its type added; the rows are read again either way.
fn renames<'a>(wanted: &WantedTable, facts: &'a TableFacts, earlier: &[WantedTable]) -> Vec<(&'a ColumnFacts, usize)> {
    let there = |name: &str| facts.columns.iter().find(|column| column.name == name);
    let of = |before: &WantedTable| -> Option<Vec<(&'a ColumnFacts, usize)>> {
        let whole = before.columns.iter().all(|old| there(&old.column.name).is_some());
        let pairs = if whole { renamed_places(before, wanted)? } else { return None };
        let pair = |(old, new): (usize, usize)| {
            let (old, now) = (&before.columns[old].column, &wanted.columns[new].column);
            let renamed = there(&now.name).is_none() && is_left(&old.name, wanted, earlier);
            there(&old.name).filter(|_| renamed).map(|from| (from, new))
        };
        Some(pairs.into_iter().filter_map(pair).collect())
    };
    let found = earlier.iter().filter_map(|before| Some((before.columns.len(), of(before)?)));
    let best = found.max_by_key(|(columns, renamed)| (*columns, std::cmp::Reverse(renamed.len())));
    best.map(|(_, renamed)| renamed).unwrap_or_default()
}

/// Places of columns in two versions of which only the name differs. `None`: the columns that kept their names did not keep
/// their order, so this is another table.
fn renamed_places(before: &WantedTable, now: &WantedTable) -> Option<Vec<(usize, usize)>> {
    let name = |version: &WantedTable, i: usize| version.columns[i].column.name.clone();
    let kept = |version: &WantedTable, other: &WantedTable, from: usize| {
        let has = |i: &usize| other.columns.iter().any(|column| column.column.name == name(version, *i));
        (from..version.columns.len()).find(has).unwrap_or(version.columns.len())
    };
    let (mut pairs, mut i, mut j) = (Vec::new(), 0, 0);
    loop {
        let (old_end, new_end) = (kept(before, now, i), kept(now, before, j));
        let (old, new) = (old_end - i, new_end - j);
        let is_end = old_end == before.columns.len();
        if is_end != (new_end == now.columns.len()) || (!is_end && name(before, old_end) != name(now, new_end)) {
            return None;
        }
        let type_of = |version: &WantedTable, i: usize| {
            let column = &version.columns[i].column;
            (column.type_oid, column.typmod)
        };
        let same = (0..old.min(new)).all(|k| type_of(before, i + k) == type_of(now, j + k));
        if same && (old == new || (is_end && old < new)) {
            pairs.extend((0..old).map(|k| (i + k, j + k)));
        }
        if is_end {
            return Some(pairs);
        }
        (i, j) = (old_end + 1, new_end + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relation::{Column, TableName};
    use crate::sink::WantedColumn;

    fn wanted(columns: &[(&str, &str)]) -> WantedTable {
        let table = TableName::new("public", "t");
        let column = |(index, (name, type_name)): (usize, &(&str, &str))| WantedColumn {
            index,
            column: Column {
                name: (*name).into(),
                type_oid: u32::from(type_name.as_bytes()[0]),
                type_name: (*type_name).into(),
                typmod: -1,
                kind: crate::relation::TypeKind::Base,
                nullable: index > 0,
                default: None,
                key: (index == 0).then_some(0),
                exact: true,
            },
        };
        WantedTable { source: table.clone(), table, columns: columns.iter().enumerate().map(column).collect() }
    }

    fn facts(columns: &[(&str, &str)]) -> TableFacts {
        let column = |(name, base): &(&str, &str)| ColumnFacts {
            name: (*name).into(),
            declared: (*base).into(),
            base: (*base).into(),
            base_oid: 0,
            typmod: -1,
            base_sql: String::new(),
            declared_sql: String::new(),
            input: None,
            not_null: *name == "id",
            has_default: false,
            identity_always: false,
            generated: false,
            deterministic: true,
        };
        TableFacts {
            oid: 1,
            kind: "r".into(),
            encoding: "UTF8".into(),
            unlogged: false,
            columns: columns.iter().map(column).collect(),
            uniques: vec![],
            foreign_keys: vec![],
            constraints: vec![],
            triggers: vec![],
            row_security: false,
            rights_missing: vec![],
        }
    }

    const OLD: &[(&str, &str)] = &[("id", "int4"), ("a", "text"), ("b", "int4")];

    fn full(now: &[(&str, &str)], sink: &[(&str, &str)]) -> Vec<String> {
        let steps = steps(&wanted(now), &facts(sink), &[wanted(OLD)], Evolve::Full);
        steps.into_iter().map(|sql| sql.replace("ALTER TABLE \"public\".\"t\" ", "")).collect()
    }

    #[test]
    fn a_new_column_is_added_where_that_is_allowed() {
        let now = [("id", "int4"), ("a", "text"), ("b", "int4"), ("c", "numeric")];
        let steps = |evolve| steps(&wanted(&now), &facts(OLD), &[wanted(OLD)], evolve);
        assert!(steps(Evolve::Off).is_empty());
        let add = r#"ALTER TABLE "public"."t" ADD COLUMN "c" numeric"#;
        assert_eq!(steps(Evolve::Add), [add]);
        assert_eq!(steps(Evolve::Full), [add]);
    }

    #[test]
    fn full_follows_drops_renames_and_types_and_leaves_the_services_own_columns() {
        let own = |more: &[(&'static str, &'static str)]| [OLD, more].concat();
        assert_eq!(full(&[("id", "int4"), ("b", "int4")], &own(&[("own", "text")])), [r#"DROP COLUMN "a""#]);
        let renamed = full(&[("id", "int4"), ("x", "text"), ("b", "int4")], &own(&[("own", "text")]));
        assert_eq!(renamed, [r#"RENAME COLUMN "a" TO "x""#]);
    }

    #[test]
    fn a_rename_is_one_beside_drops_and_additions_too() {
        let added = full(&[("id", "int4"), ("x", "text"), ("b", "int4"), ("c", "text")], OLD);
        assert_eq!(added, [r#"RENAME COLUMN "a" TO "x""#, r#"ADD COLUMN "c" text"#]);
        let at_the_end = full(&[("id", "int4"), ("a", "text"), ("x", "int4"), ("c", "int4")], OLD);
        assert_eq!(at_the_end, [r#"RENAME COLUMN "b" TO "x""#, r#"ADD COLUMN "c" int4"#]);
        let dropped = full(&[("x", "int4"), ("b", "int4")], OLD);
        assert_eq!(
            dropped,
            [r#"ADD COLUMN "x" int4"#, r#"DROP COLUMN "id""#, r#"DROP COLUMN "a""#],
            "which one is it?"
        );
    }

    #[test]
    fn a_type_that_does_not_hold_is_changed() {
        let now = [("id", "int4"), ("a", "jsonb"), ("b", "int4")];
        let changed = full(&now, &[("id", "int4"), ("a", "int8"), ("b", "int4")]);
        assert_eq!(changed, [r#"ALTER COLUMN "a" TYPE jsonb USING "a"::text::jsonb"#]);
    }

    #[test]
    fn a_column_of_another_type_in_the_same_place_is_no_rename() {
        let changed = full(&[("id", "int4"), ("x", "jsonb"), ("b", "int4")], OLD);
        assert_eq!(changed, [r#"ADD COLUMN "x" jsonb"#, r#"DROP COLUMN "a""#]);
    }
}
