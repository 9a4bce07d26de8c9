//! What a version of a table's rows has heard of the types that somebody made, and whether a row speaks of more.
//!
//! `ALTER TYPE` sends no RELATION message, so the stream's version of a table can lack labels of enums and attributes of composites
//! that its next row has. The row shows it: an enum's text is a label, and a composite's has as many parts as attributes. Whoever
//! writes it then looks at the catalog and tells a version that has heard of them before the row. Pure; the looking is the driver's.
//!
//! Not seen in texts: an attribute that another one took the place of, which a look finds, and enums inside of ranges.

use std::collections::HashMap;
use std::fmt;

use crate::parts;
use crate::relation::{Column, Composite, Relation, TypeKind, TypeName, composites};
use crate::value::Row;

/// The columns of which a row can speak of more than is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    columns: Vec<Known>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    /// Its place in rows of the source.
    index: usize,
    type_oid: u32,
    made: Made,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Made {
    Enum(Vec<String>),
    Array {
        element: Box<Made>,
        delimiter: u8,
    },
    /// Attributes; `None` for one that says no more than it is.
    Composite(Vec<Option<Made>>),
}

/// What a row says that its version has not heard of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unheard {
    Label(String),
    /// So many attributes of a composite.
    Attributes(usize),
}

impl fmt::Display for Unheard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unheard::Label(label) => write!(f, "label {label:?} of an enum was renamed"),
            Unheard::Attributes(count) => write!(f, "a composite type that had {count} attributes was altered"),
        }
    }
}

/// What the catalog says of types.
pub struct Types {
    pub names: HashMap<u32, TypeName>,
    pub composites: Vec<Composite>,
}

impl Heard {
    pub fn of(rows: &Relation) -> Heard {
        let known = |(index, column): (usize, &Column)| {
            let made = Made::of(column.type_oid, &column.kind, &rows.composites)?;
            Some(Known { index, type_oid: column.type_oid, made })
        };
        Heard { columns: rows.columns.iter().enumerate().filter_map(known).collect() }
    }

    /// The first thing that a row says and that is not known.
    pub fn unheard(&self, row: Row<'_>) -> Option<Unheard> {
        self.columns.iter().find_map(|known| known.made.unheard(row.get(known.index).text()?))
    }

    /// Whether it is known of any of the types.
    pub fn has(&self, said: &Unheard) -> bool {
        self.columns.iter().any(|known| known.made.has(said))
    }

    pub fn type_oids(&self) -> Vec<u32> {
        self.columns.iter().map(|known| known.type_oid).collect()
    }

    /// The same columns with what the catalog says of their types now; of one that is gone nothing more is known.
    pub fn renewed(&self, types: &Types) -> Heard {
        let renew = |known: &Known| {
            let found = types.names.get(&known.type_oid);
            let found = found.and_then(|found| Made::of(found.oid, &found.kind, &types.composites));
            Known { made: found.unwrap_or_else(|| known.made.clone()), ..known.clone() }
        };
        Heard { columns: self.columns.iter().map(renew).collect() }
    }
}

impl Made {
    fn of(oid: u32, kind: &TypeKind, all: &[Composite]) -> Option<Made> {
        match kind {
            TypeKind::Enum { labels } => Some(Made::Enum(labels.clone())),
            TypeKind::Array { element, delimiter } => {
                let element = Box::new(Made::of(element.oid, &element.kind, all)?);
                Some(Made::Array { element, delimiter: *delimiter })
            }
            TypeKind::Domain { base } => Made::of(base.oid, &base.kind, all),
            // One that contains itself, which Postgres has none of, would have no end.
            TypeKind::Composite => {
                let (mut others, mut this) = (Vec::new(), None);
                for composite in all {
                    if composite.oid == oid { this = Some(composite) } else { others.push(composite.clone()) }
                }
                let attributes = &this?.attributes;
                let made = attributes.iter().map(|inner| Made::of(inner.of.oid, &inner.of.kind, &others));
                Some(Made::Composite(made.collect()))
            }
            TypeKind::Base | TypeKind::Range | TypeKind::Multirange => None,
        }
    }

    fn has(&self, said: &Unheard) -> bool {
        match (self, said) {
            (Made::Enum(labels), Unheard::Label(said)) => labels.contains(said),
            (Made::Enum(_), Unheard::Attributes(_)) => false,
            (Made::Array { element, .. }, _) => element.has(said),
            (Made::Composite(inner), _) => {
                *said == Unheard::Attributes(inner.len()) || inner.iter().flatten().any(|made| made.has(said))
            }
        }
    }

    /// What is no text of its type its encoder refuses by name, or the sink.
    fn unheard(&self, text: &[u8]) -> Option<Unheard> {
        match self {
            Made::Enum(labels) => {
                let known = labels.iter().any(|label| label.as_bytes() == text);
                (!known).then(|| Unheard::Label(String::from_utf8_lossy(text).into_owned()))
            }
            Made::Array { element, delimiter } => parts::find_element(text, *delimiter, |text| element.unheard(text)),
            Made::Composite(inner) => {
                let parts = parts::attributes(text)?;
                // None at all print like one that is NULL.
                if parts.len() != inner.len().max(1) {
                    return Some(Unheard::Attributes(parts.len()));
                }
                inner.iter().zip(&parts).find_map(|(made, part)| made.as_ref()?.unheard(part.as_deref()?))
            }
        }
    }
}

/// The version of records with what the catalog says of its types now: the same version but for labels and attributes, and
/// without its format's schemas.
pub fn retyped(records: &Relation, types: &Types) -> Relation {
    let renew = |column: &Column| match types.names.get(&column.type_oid) {
        Some(found) if !column.kind.is_base() => Column { kind: found.kind.clone(), ..column.clone() },
        _ => column.clone(),
    };
    let columns: Vec<Column> = records.columns.iter().map(renew).collect();
    // Of types that are gone what was known.
    let gone = records.composites.iter().filter(|known| types.composites.iter().all(|c| c.oid != known.oid));
    let all: Vec<Composite> = types.composites.iter().chain(gone).cloned().collect();
    let composites = composites::contained(&columns, &all);
    Relation { columns, composites, avro: None, ..records.clone() }.sealed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relation::Attribute;
    use crate::relation::tests::relation;
    use crate::value::{Cell, RowBuf};

    fn mood(labels: &[&str]) -> TypeName {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        TypeName { oid: 90, name: "public.mood".into(), typmod: -1, kind: TypeKind::Enum { labels } }
    }

    fn types(labels: &[&str]) -> Types {
        let domain = TypeKind::Domain { base: Box::new(mood(labels)) };
        let domain = TypeName { oid: 91, name: "public.inner".into(), typmod: -1, kind: domain };
        let array = TypeKind::Array { element: Box::new(domain.clone()), delimiter: b',' };
        let array = TypeName { oid: 92, name: "public._inner".into(), typmod: -1, kind: array };
        let pair = TypeName { oid: 93, name: "public.pair".into(), typmod: -1, kind: TypeKind::Composite };
        let attribute = |name: &str, of: TypeName| Attribute { name: name.into(), of };
        let number = TypeName { oid: 23, name: "int4".into(), typmod: -1, kind: TypeKind::Base };
        let attributes = vec![attribute("m", mood(labels)), attribute("n", number)];
        let names = [mood(labels), domain, array, pair].map(|found| (found.oid, found)).into();
        Types { names, composites: vec![Composite { oid: 93, attributes }] }
    }

    /// `a` is a pair of a mood and a number, `b` a mood, `c` an array of a domain over moods.
    fn version(labels: &[&str]) -> Relation {
        let mut rows = relation();
        let Types { names, composites } = types(labels);
        for (column, oid) in rows.columns.iter_mut().zip([93, 90, 92]) {
            column.type_oid = oid;
            column.kind = names[&oid].kind.clone();
        }
        Relation { composites, ..rows }.sealed()
    }

    fn unheard(heard: &Heard, cells: [Cell<'_>; 3]) -> Option<Unheard> {
        let mut row = RowBuf::new();
        cells.into_iter().for_each(|cell| row.push(cell));
        heard.unheard(row.row())
    }

    #[test]
    fn a_row_shows_that_its_version_is_behind() {
        let heard = Heard::of(&version(&["sad", "gl\"ad"]));
        let text = |text: &'static str| Cell::Text(text.as_bytes());
        let label = |label: &str| Some(Unheard::Label(label.into()));
        assert_eq!(unheard(&heard, [text("(sad,1)"), text("sad"), text(r#"{sad,NULL,"gl\"ad"}"#)]), None);
        assert_eq!(unheard(&heard, [text("(,)"), Cell::Null, Cell::Absent]), None);
        assert_eq!(unheard(&heard, [Cell::Null, text("blue"), Cell::Null]), label("blue"));
        assert_eq!(unheard(&heard, [Cell::Null, text("sad"), text("[0:0]={{sad,new}}")]), label("new"));
        assert_eq!(unheard(&heard, [text("(\"so so\",1)"), Cell::Null, Cell::Null]), label("so so"));
        for (pair, count) in [("(sad)", 1), ("(sad,1,)", 3), ("()", 1)] {
            assert_eq!(unheard(&heard, [text(pair), Cell::Null, Cell::Null]), Some(Unheard::Attributes(count)));
        }
        let now = heard.renewed(&types(&["sad", "gl\"ad", "blue"]));
        assert_eq!(unheard(&now, [text("(blue,1)"), text("blue"), text("{blue}")]), None);
        let gone = Types { names: HashMap::new(), composites: vec![] };
        assert_eq!(heard.renewed(&gone), heard, "types that are gone");
        assert!(now.has(&Unheard::Label("blue".into())) && !heard.has(&Unheard::Label("blue".into())));
        assert!(heard.has(&Unheard::Attributes(2)) && !heard.has(&Unheard::Attributes(3)));
        // An older build's.
        let silent = Heard::of(&Relation { composites: vec![], ..version(&["sad"]) });
        assert_eq!(unheard(&silent, [text("(1,2,3)"), Cell::Null, Cell::Null]), None);
    }

    #[test]
    fn only_types_change_in_a_version() {
        let before = version(&["sad"]);
        assert_eq!(retyped(&before, &types(&["sad", "blue"])), version(&["sad", "blue"]));
        assert_eq!(retyped(&before, &Types { names: HashMap::new(), composites: vec![] }), before);
        let mut masked = before.clone();
        masked.columns[1].kind = TypeKind::Base;
        assert_eq!(retyped(&masked, &types(&["sad", "blue"])).columns[1], masked.columns[1]);
    }
}
