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
use super::composites;
use super::fit::{declaration, holds, may_be_null, renamed_type};
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
    let computed = wanted.values.iter().filter(|value| there(&value.column).is_none());
    let computed = computed.map(|value| alter(format!("ADD COLUMN {} text", quote_identifier(&value.column))));
    match evolve {
        Evolve::Off => Vec::new(),
        Evolve::Add => {
            let attributes = composites::additions(wanted, facts);
            attributes.into_iter().chain(missing.iter().map(add)).chain(computed).collect()
        }
        Evolve::Full => {
            let mut leaving: Vec<&ColumnFacts> =
                facts.columns.iter().filter(|column| is_left(&column.name, wanted, earlier)).collect();
            let mut steps = composites::additions(wanted, facts);
            let renamed = renames(wanted, facts, earlier);
            for (from, i) in &renamed {
                let (from, to) = (&from.name, &wanted.columns[*i].column.name);
                steps.push(alter(format!("RENAME COLUMN {} TO {}", quote_identifier(from), quote_identifier(to))));
                missing.retain(|place| place != i);
                leaving.retain(|column| column.name != *from);
            }
            steps.extend(missing.iter().map(add));
            steps.extend(computed);
            // A column of marks is the service's in its type.
            let told = wanted.columns.iter().enumerate().filter(|(i, _)| wanted.mark != Some(*i));
            for (i, column) in told.map(|(i, wanted)| (i, &wanted.column)) {
                let before = renamed.iter().find(|(_, place)| *place == i).map(|(from, _)| *from);
                let Some(sink) = before.or_else(|| there(&column.name)) else { continue };
                let name = quote_identifier(&column.name);
                if !holds(column, sink) && !sink.generated && renamed_type(column, sink).is_none() {
                    let declared = declaration(column);
                    steps.push(alter(format!("ALTER COLUMN {name} TYPE {declared} USING {name}::text::{declared}")));
                }
                if sink.not_null && column.nullable && column.key.is_none() {
                    let step = alter(may_be_null(&column.name, &sink.name, facts, &steps));
                    steps.push(step);
                }
            }
            steps.extend(leaving.iter().map(|column| alter(format!("DROP COLUMN {}", quote_identifier(&column.name)))));
            steps
        }
    }
}

/// A column that an earlier version had and this one has not. One that only is not told of any more is not the source's to drop;
/// where what is hidden now had another name in records, or is new, nobody can say which one that is.
fn is_left(name: &str, wanted: &WantedTable, earlier: &[WantedTable]) -> bool {
    let has = |version: &WantedTable, name: &str| version.columns.iter().any(|c| c.column.name == name);
    let known = |hidden: &String| earlier.iter().any(|before| has(before, hidden) || before.hidden.contains(hidden));
    let hidden = wanted.hidden.iter().any(|hidden| hidden == name || !known(hidden));
    let computed = wanted.values.iter().any(|value| value.column == name);
    !has(wanted, name) && !computed && !hidden && earlier.iter().any(|before| has(before, name))
}

/// Columns that only changed their name, judged against the largest of the earlier versions that the sink holds whole. It may
/// also be that one was dropped and another one of its type added; the rows are read again either way.
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

/// Places of columns in two versions of which only the name differs. Tables keep the order of their columns and get new ones at
/// the end; so, key by key first and then in order between those that are known, a name that came stands for the first of its
/// type that went. `None`: the columns that kept their names did not keep their order, so this is another table.
fn renamed_places(before: &WantedTable, now: &WantedTable) -> Option<Vec<(usize, usize)>> {
    let place = |version: &WantedTable, name: &str| version.columns.iter().position(|c| c.column.name == name);
    let same_type = |i: usize, j: usize| {
        let (old, new) = (&before.columns[i].column, &now.columns[j].column);
        (old.type_oid, old.typmod) == (new.type_oid, new.typmod)
    };
    let kept = before.columns.iter().enumerate().filter_map(|(i, old)| Some((i, place(now, &old.column.name)?)));
    let mut known: Vec<(usize, usize)> = kept.collect();
    if !known.is_sorted_by_key(|(_, j)| *j) {
        return None;
    }
    let fits = |known: &[(usize, usize)], i: usize, j: usize| {
        same_type(i, j) && known.iter().all(|(a, b)| i.cmp(a) == j.cmp(b) && i != *a)
    };
    let mut renamed = Vec::new();
    let mut pair = |known: &mut Vec<(usize, usize)>, i, j| {
        if fits(known, i, j) {
            known.push((i, j));
            renamed.push((i, j));
        }
    };
    let key = |version: &WantedTable, ordinal| version.columns.iter().position(|c| c.column.key == Some(ordinal));
    for ordinal in 0.. {
        let (Some(i), Some(j)) = (key(before, ordinal), key(now, ordinal)) else { break };
        pair(&mut known, i, j);
    }
    for j in 0..now.columns.len() {
        for i in 0..before.columns.len() {
            pair(&mut known, i, j);
        }
    }
    Some(renamed)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::config::Truncate;
    use crate::relation::{Column, TableName};
    use crate::sink::WantedColumn;
    use crate::sink::stored::Stored;

    pub fn wanted(columns: &[(&str, &str)]) -> WantedTable {
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
        let columns = columns.iter().enumerate().map(column).collect();
        let (hidden, held, composites, truncate) = (vec![], vec![], vec![], Truncate::Truncate);
        let (source, skips_missing, mark, values) = (table.clone(), false, None, vec![]);
        WantedTable { source, table, columns, hidden, composites, held, truncate, skips_missing, mark, values }
    }

    pub fn facts(columns: &[(&str, &str)]) -> TableFacts {
        let column = |(name, base): &(&str, &str)| ColumnFacts {
            name: (*name).into(),
            declared: (*base).into(),
            base: (*base).into(),
            base_oid: 0,
            typmod: -1,
            stored: Stored { name: (*base).into(), typmod: -1, arrays: 0, kind: 'b', labels: vec![] },
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
            composites: vec![],
            foreign_keys: vec![],
            constraints: vec![],
            triggers: vec![],
            rules: false,
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
    fn what_is_only_hidden_is_never_dropped() {
        let hiding = WantedTable { hidden: vec!["a".into()], ..wanted(&[("id", "int4"), ("b", "int4")]) };
        let none: [&str; 0] = [];
        assert_eq!(steps(&hiding, &facts(OLD), &[wanted(OLD)], Evolve::Full), none);
        // Nor is it what another column was called before.
        // In records it had another name.
        let renamed = WantedTable { hidden: vec!["source_a".into()], ..wanted(&[("id", "int4"), ("b", "int4")]) };
        assert!(steps(&renamed, &facts(OLD), &[wanted(OLD)], Evolve::Full).is_empty());
        let other = WantedTable { hidden: vec!["a".into()], ..wanted(&[("id", "int4"), ("x", "text"), ("b", "int4")]) };
        let steps = steps(&other, &facts(OLD), &[wanted(OLD)], Evolve::Full);
        assert_eq!(steps, [r#"ALTER TABLE "public"."t" ADD COLUMN "x" text"#]);
    }

    #[test]
    fn a_rename_is_one_beside_drops_and_additions_too() {
        let added = full(&[("id", "int4"), ("x", "text"), ("b", "int4"), ("c", "text")], OLD);
        assert_eq!(added, [r#"RENAME COLUMN "a" TO "x""#, r#"ADD COLUMN "c" text"#]);
        let at_the_end = full(&[("id", "int4"), ("a", "text"), ("x", "int4"), ("c", "int4")], OLD);
        assert_eq!(at_the_end, [r#"RENAME COLUMN "b" TO "x""#, r#"ADD COLUMN "c" int4"#]);
        let key = full(&[("x", "int4"), ("b", "int4")], OLD);
        assert_eq!(key, [r#"RENAME COLUMN "id" TO "x""#, r#"DROP COLUMN "a""#]);
        let dropped = full(&[("id", "int4"), ("x", "int4"), ("c", "jsonb")], OLD);
        assert_eq!(dropped, [r#"RENAME COLUMN "b" TO "x""#, r#"ADD COLUMN "c" jsonb"#, r#"DROP COLUMN "a""#]);
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
