//! Whether the sink's composite types have the source's attributes, each in its place.
//!
//! A composite's text is its attributes' texts in order, without names, so it parses whatever they are called: with other attributes
//! or another order values would land in the wrong ones. Names, order and types must be the source's. Pure; what a version of an
//! older build does not say is not compared.

use super::WantedTable;
use super::catalog::{ColumnFacts, CompositeFacts, TableFacts};
use super::fit::{declaration, holds};
use crate::key::type_sql;
use crate::relation::composites::innermost;
use crate::relation::{Column, Composite, quote_identifier};

/// A composite of the sink that is not the source's.
#[derive(Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// In words, what is wrong with which type.
    pub found: String,
    /// A statement that mends it; `None`: the types can't be made alike.
    pub hint: Option<String>,
    /// The hint only adds an attribute behind those that are alike.
    pub adds: bool,
}

/// A column's composite at both sides, if it is one.
fn both<'a>(
    wanted: &'a WantedTable,
    facts: &'a TableFacts,
    source: &Column,
    sink: &ColumnFacts,
) -> Option<(&'a Composite, &'a CompositeFacts)> {
    let oid = innermost(source.type_oid, &source.kind).filter(|_| sink.stored.kind == 'c')?;
    let from = wanted.composites.iter().find(|composite| composite.oid == oid)?;
    Some((from, facts.composites.iter().find(|composite| composite.name == sink.stored.name)?))
}

/// What keeps the sink's column from holding the source's composites, in the order in which it is to be mended.
pub fn mismatches(wanted: &WantedTable, facts: &TableFacts, source: &Column, sink: &ColumnFacts) -> Vec<Mismatch> {
    let Some((from, to)) = both(wanted, facts, source, sink) else { return Vec::new() };
    let alter = |what: String| Some(format!("ALTER TYPE {} {what}", type_sql(&to.name)));
    let wrong = |found: String, hint: Option<String>| Mismatch { found, hint, adds: false };
    let at_source = |name: &str| from.attributes.iter().any(|attribute| attribute.name == name);
    let at_sink = |name: &str| to.attributes.iter().any(|attribute| attribute.name == name);
    let mut all = Vec::new();
    for (place, attribute) in from.attributes.iter().enumerate() {
        let (column, name) = (attribute.column(), quote_identifier(&attribute.name));
        match to.attributes.get(place) {
            None => {
                let hint = alter(format!("ADD ATTRIBUTE {name} {}", declaration(&column)));
                all.push(Mismatch { found: format!("type {} lacks attribute {name}", to.name), hint, adds: true });
            }
            Some(other) if other.name != attribute.name => {
                let old = quote_identifier(&other.name);
                let hint = match (at_source(&other.name), at_sink(&attribute.name)) {
                    (false, false) => alter(format!("RENAME ATTRIBUTE {old} TO {name}")),
                    (false, true) => alter(format!("DROP ATTRIBUTE {old}")),
                    (true, _) => None,
                };
                let found = format!("type {} has attribute {old} in the place of {name}", to.name);
                return vec![wrong(found, hint)];
            }
            Some(other) if !holds(&column, other) => {
                let found = format!("attribute {name} of type {} is {} at the sink", to.name, other.declared_sql);
                return vec![wrong(found, None)];
            }
            Some(other) => all.extend(mismatches(wanted, facts, &column, other)),
        }
        if all.last().is_some_and(|last| !last.adds) {
            return all;
        }
    }
    if let Some(more) = to.attributes.get(from.attributes.len()) {
        let old = quote_identifier(&more.name);
        let found = format!("type {} has attribute {old} besides", to.name);
        all.push(wrong(found, alter(format!("DROP ATTRIBUTE {old}"))));
    }
    all
}

/// Statements that add the attributes which the source's types were given; none where more than that is different.
pub fn additions(wanted: &WantedTable, facts: &TableFacts) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for (column, sink) in columns(wanted, facts) {
        let found = mismatches(wanted, facts, column, sink);
        if found.iter().all(|mismatch| mismatch.adds) {
            let hints = found.into_iter().filter_map(|mismatch| mismatch.hint);
            all.extend(hints.filter(|hint| !all.contains(hint)).collect::<Vec<_>>());
        }
    }
    all
}

fn columns<'a>(wanted: &'a WantedTable, facts: &'a TableFacts) -> impl Iterator<Item = (&'a Column, &'a ColumnFacts)> {
    let find = |name: &str| facts.columns.iter().find(|facts| facts.name == name);
    wanted.columns.iter().filter_map(move |wanted| Some((&wanted.column, find(&wanted.column.name)?)))
}

/// The columns that both sides have, and behind each the attributes that its composites have at both sides.
pub fn columns_and_attributes<'a>(wanted: &'a WantedTable, facts: &'a TableFacts) -> Vec<(Column, &'a ColumnFacts)> {
    let mut open: Vec<(Column, &ColumnFacts)> =
        columns(wanted, facts).map(|(column, sink)| (column.clone(), sink)).collect();
    let mut at = 0;
    while at < open.len() {
        let (column, sink) = &open[at];
        // Of a type that is there more than once its attributes are there already.
        let seen = open[..at]
            .iter()
            .any(|(before, _)| innermost(before.type_oid, &before.kind) == innermost(column.type_oid, &column.kind));
        let inner = both(wanted, facts, column, sink).filter(|_| !seen);
        let inner: Vec<(Column, &ColumnFacts)> = inner.map_or_else(Vec::new, |(from, to)| {
            let pair = |name: &str| to.attributes.iter().find(|facts| facts.name == name);
            from.attributes.iter().filter_map(|inner| Some((inner.column(), pair(&inner.name)?))).collect()
        });
        open.extend(inner);
        at += 1;
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relation::{Attribute, TypeKind, TypeName};
    use crate::sink::evolve::tests::{facts, wanted};
    use crate::sink::stored::Stored;

    fn composite(attributes: &[(&str, &str)]) -> Composite {
        let attribute = |(name, of): &(&str, &str)| {
            let kind = if *of == "public.inner" { TypeKind::Composite } else { TypeKind::Base };
            let oid = if *of == "public.inner" { 91 } else { u32::from(of.as_bytes()[0]) };
            Attribute { name: (*name).into(), of: TypeName { oid, name: (*of).into(), typmod: -1, kind } }
        };
        Composite { oid: 90, attributes: attributes.iter().map(attribute).collect() }
    }

    fn at_sink(name: &str, attributes: &[(&str, &str)]) -> CompositeFacts {
        let mut attributes = facts(attributes).columns;
        attributes.iter_mut().filter(|a| a.base == "public.inner").for_each(|a| a.stored.kind = 'c');
        CompositeFacts { name: name.into(), attributes }
    }

    type Attributes<'a> = &'a [(&'a str, &'a str)];

    fn found(source: (Attributes<'_>, Attributes<'_>), sink: (Attributes<'_>, Attributes<'_>)) -> Vec<Mismatch> {
        let mut wanted = wanted(&[("id", "int4"), ("p", "public.pair")]);
        let column = &mut wanted.columns[1].column;
        (column.type_oid, column.kind) = (90, TypeKind::Composite);
        wanted.composites = vec![composite(source.0), Composite { oid: 91, ..composite(source.1) }];
        let mut facts = facts(&[("id", "int4"), ("p", "shop.pair")]);
        facts.columns[1].stored = Stored { kind: 'c', ..facts.columns[1].stored.clone() };
        facts.composites = vec![at_sink("shop.pair", sink.0), at_sink("public.inner", sink.1)];
        mismatches(&wanted, &facts, &wanted.columns[1].column, &facts.columns[1])
    }

    fn hints(source: Attributes<'_>, sink: Attributes<'_>) -> Vec<Option<String>> {
        let short = |hint: String| hint.replace("ALTER TYPE \"shop\".\"pair\" ", "");
        found((source, &[]), (sink, &[])).into_iter().map(|mismatch| mismatch.hint.map(short)).collect()
    }

    #[test]
    fn attributes_are_the_same_in_the_same_places() {
        let (a, b, c) = (("a", "int4"), ("b", "text"), ("c", "numeric"));
        let some = |hint: &str| vec![Some(hint.to_owned())];
        assert!(hints(&[a, b], &[a, b]).is_empty());
        assert!(hints(&[a, b], &[("a", "int8"), b]).is_empty(), "a wider integer");
        assert_eq!(hints(&[a, b, c], &[a, b]), some(r#"ADD ATTRIBUTE "c" numeric"#));
        assert_eq!(hints(&[a, b], &[a, b, c]), some(r#"DROP ATTRIBUTE "c""#));
        assert_eq!(hints(&[a, c], &[a, b, c]), some(r#"DROP ATTRIBUTE "b""#));
        assert_eq!(hints(&[a, ("d", "text")], &[a, b]), some(r#"RENAME ATTRIBUTE "b" TO "d""#));
        assert_eq!(hints(&[b, a], &[a, b]), [None], "another order");
        assert_eq!(hints(&[a, ("b", "jsonb")], &[a, ("b", "int4")]), [None]);
    }

    #[test]
    fn types_inside_of_types_are_compared_too() {
        let (a, inner, more) = (("a", "int4"), ("i", "public.inner"), ("m", "text"));
        assert!(found((&[a, inner], &[a]), (&[a, inner], &[a])).is_empty());
        let lacks = found((&[a, inner, more], &[a, more]), (&[a, inner], &[a]));
        let hints: Vec<_> = lacks.iter().map(|mismatch| mismatch.hint.as_deref().unwrap()).collect();
        assert_eq!(
            hints,
            [
                r#"ALTER TYPE "public"."inner" ADD ATTRIBUTE "m" text"#,
                r#"ALTER TYPE "shop"."pair" ADD ATTRIBUTE "m" text"#
            ]
        );
        assert!(lacks.iter().all(|mismatch| mismatch.adds));
        assert!(!found((&[a, inner], &[more, a]), (&[a, inner], &[a, more]))[0].adds);
    }
}
