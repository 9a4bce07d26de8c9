//! What a version of a table's rows has heard of the types that somebody made, and whether a row speaks of more.
//!
//! `ALTER TYPE … ADD VALUE` and `RENAME VALUE` send no RELATION message, so the stream's version of a table can lack labels that
//! its next row has. The row shows it: an enum's text is a label. Whoever writes it then looks at the catalog and tells a version
//! that has heard of the label before the row. Pure; the looking is the driver's.
//!
//! Enums inside of ranges are not followed: their texts need not say where a label ends.

use std::collections::HashMap;

use crate::parts;
use crate::relation::{Column, Relation, TypeKind, TypeName};
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
    Array { element: Box<Made>, delimiter: u8 },
}

impl Heard {
    pub fn of(rows: &Relation) -> Heard {
        let known = |(index, column): (usize, &Column)| {
            Some(Known { index, type_oid: column.type_oid, made: Made::of(&column.kind)? })
        };
        Heard { columns: rows.columns.iter().enumerate().filter_map(known).collect() }
    }

    /// The first label of a row that is not known.
    pub fn unheard(&self, row: Row<'_>) -> Option<Vec<u8>> {
        self.columns.iter().find_map(|known| known.made.unheard(row.get(known.index).text()?))
    }

    /// Whether a label is one of the known, of whatever enum.
    pub fn has(&self, label: &[u8]) -> bool {
        self.columns.iter().any(|known| known.made.has(label))
    }

    pub fn type_oids(&self) -> Vec<u32> {
        self.columns.iter().map(|known| known.type_oid).collect()
    }

    /// The same columns with what the catalog says of their types now; of one that is gone nothing more is known.
    pub fn renewed(&self, types: &HashMap<u32, TypeName>) -> Heard {
        let renew = |known: &Known| {
            let found = types.get(&known.type_oid).and_then(|found| Made::of(&found.kind));
            Known { made: found.unwrap_or_else(|| known.made.clone()), ..known.clone() }
        };
        Heard { columns: self.columns.iter().map(renew).collect() }
    }
}

impl Made {
    fn of(kind: &TypeKind) -> Option<Made> {
        match kind {
            TypeKind::Enum { labels } => Some(Made::Enum(labels.clone())),
            TypeKind::Array { element, delimiter } => {
                let element = Box::new(Made::of(&element.kind)?);
                Some(Made::Array { element, delimiter: *delimiter })
            }
            TypeKind::Domain { base } => Made::of(&base.kind),
            TypeKind::Base | TypeKind::Composite | TypeKind::Range | TypeKind::Multirange => None,
        }
    }

    fn has(&self, label: &[u8]) -> bool {
        match self {
            Made::Enum(labels) => labels.iter().any(|known| known.as_bytes() == label),
            Made::Array { element, .. } => element.has(label),
        }
    }

    fn unheard(&self, text: &[u8]) -> Option<Vec<u8>> {
        match self {
            Made::Enum(_) if self.has(text) => None,
            Made::Enum(_) => Some(text.to_owned()),
            Made::Array { element, delimiter } => parts::find_element(text, *delimiter, |text| element.unheard(text)),
        }
    }
}

/// The version of records with what the catalog says of its types now: the same version but for labels, and without its format's
/// schemas.
pub fn relabelled(records: &Relation, types: &HashMap<u32, TypeName>) -> Relation {
    let renew = |column: &Column| match types.get(&column.type_oid) {
        Some(found) if Made::of(&column.kind).is_some() && Made::of(&found.kind).is_some() => {
            Column { kind: found.kind.clone(), ..column.clone() }
        }
        _ => column.clone(),
    };
    Relation { columns: records.columns.iter().map(renew).collect(), avro: None, ..records.clone() }.sealed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relation::tests::relation;
    use crate::value::{Cell, RowBuf};

    fn mood(labels: &[&str]) -> TypeName {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        TypeName { oid: 90, name: "public.mood".into(), typmod: -1, kind: TypeKind::Enum { labels } }
    }

    fn types(labels: &[&str]) -> HashMap<u32, TypeName> {
        let domain = TypeKind::Domain { base: Box::new(mood(labels)) };
        let domain = TypeName { oid: 91, name: "public.inner".into(), typmod: -1, kind: domain };
        let array = TypeKind::Array { element: Box::new(domain.clone()), delimiter: b',' };
        let array = TypeName { oid: 92, name: "public._inner".into(), typmod: -1, kind: array };
        [mood(labels), domain, array].map(|found| (found.oid, found)).into()
    }

    /// `a` is a plain integer, `b` a mood, `c` an array of a domain over moods.
    fn version(labels: &[&str]) -> Relation {
        let mut rows = relation();
        for (column, oid) in rows.columns.iter_mut().skip(1).zip([90, 92]) {
            column.type_oid = oid;
            column.kind = types(labels)[&oid].kind.clone();
        }
        rows.sealed()
    }

    fn unheard(heard: &Heard, cells: [Cell<'_>; 3]) -> Option<String> {
        let mut row = RowBuf::new();
        cells.into_iter().for_each(|cell| row.push(cell));
        heard.unheard(row.row()).map(|label| String::from_utf8(label).unwrap())
    }

    #[test]
    fn a_row_shows_that_its_version_is_behind() {
        let heard = Heard::of(&version(&["sad", "gl\"ad"]));
        let text = |text: &'static str| Cell::Text(text.as_bytes());
        assert_eq!(unheard(&heard, [text("blue"), text("sad"), text(r#"{sad,NULL,"gl\"ad"}"#)]), None);
        assert_eq!(unheard(&heard, [text("1"), Cell::Null, Cell::Absent]), None);
        assert_eq!(unheard(&heard, [text("1"), text("blue"), Cell::Null]).as_deref(), Some("blue"));
        assert_eq!(unheard(&heard, [text("1"), text("sad"), text("[0:0]={{sad,new}}")]).as_deref(), Some("new"));
        let now = heard.renewed(&types(&["sad", "gl\"ad", "blue"]));
        assert_eq!(unheard(&now, [text("1"), text("blue"), text("{blue}")]), None);
        assert_eq!(heard.renewed(&HashMap::new()), heard, "types that are gone");
    }

    #[test]
    fn only_labels_change_in_a_version() {
        let before = version(&["sad"]);
        let after = relabelled(&before, &types(&["sad", "blue"]));
        assert_eq!(after, version(&["sad", "blue"]));
        assert_eq!(relabelled(&before, &HashMap::new()), before);
        let mut masked = before.clone();
        masked.columns[1].kind = TypeKind::Base;
        assert_eq!(relabelled(&masked, &types(&["sad", "blue"])).columns[1], masked.columns[1]);
    }
}
