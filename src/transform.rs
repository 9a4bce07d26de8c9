//! What a connector makes of its table's rows before records are written of them: columns left out or under other names, masks,
//! another key, a row filter, constant columns.
//!
//! A [`Shape`] is what the connector says, in names. [`Shape::compile`] lays it over a version of the table's rows, once for each
//! version: out of it come the relation version of the records and the [`Transformer`] that rows go through. Rows of the
//! stream and of chunks go through the same one, so a sink equals the source as it is shaped, whichever way a row came. A table
//! without a shape has no transformer and pays nothing.
//!
//! Invariants: what hides something is never passed over in silence. A column that is named and not there, a mask on a type that
//! has none, a mask on a key are errors, because the value would stand in the topic in clear; so is hiding what tells rows apart,
//! which the ledger's ranges hold. Columns that the catalog has forgotten (the stream is behind it) can't be told from hidden
//! ones that were renamed since, so a table that hides some leaves them out.
//!
//! A constant column stands in front of the row's own and, where rows have a key, in front of it too: rows of several tables with
//! equal keys are then told apart in one topic or table of a sink. What tells the rows of one table apart is still their own
//! key, which alone chunks' ranges speak of.
//!
//! Deliberately not here: whether a key names rows and comes with every change (`postgres::named_key`); what is compared at a
//! start to find that a shape was changed (`look`); the filter's SQL, which the server judges (`postgres::filter`).

mod glob;
mod mask;
mod names;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use glob::Glob;
pub use mask::{Algorithm, HashVersion, Mask, MaskMark};
pub use names::ColumnName;

use crate::error::{Code, Error, Result};
use crate::relation::{Column, Relation, TypeKind, composites};
use crate::value::{Cell, Row, RowBuf};

/// What relation versions say of a shape (docs/protocol.md, `transforms`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Transform {
    /// A column of the key that stands in no row.
    KeyOnly {
        column: String,
    },
    Mask {
        column: String,
        mask: MaskMark,
    },
    /// A column that the table does not have, with this value in every row.
    Constant {
        column: String,
        value: String,
    },
    /// Only rows with this condition.
    Where {
        sql: String,
    },
    /// Records have another key than rows: names and type OIDs of the columns that tell rows apart, in key order.
    RowsBy {
        columns: Vec<(String, u32)>,
    },
}

/// What a connector says of its table's columns.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    pub columns: Columns,
    /// Columns in front of the table's own.
    pub constants: Vec<Constant>,
    /// Columns that have another name in records, in order of their own.
    pub renames: Vec<(String, String)>,
    /// In the order of what they name.
    pub masks: Vec<(ColumnName, Mask)>,
    /// The columns of the record's key, in order; empty: those that name a row.
    pub key: Vec<String>,
    /// A condition in SQL that the source's server applies; it never sees the others' changes.
    pub filter: Option<String>,
}

/// A column of text that holds the same in every row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constant {
    pub column: String,
    pub value: String,
}

/// Which columns records have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Columns {
    #[default]
    All,
    Only(Vec<ColumnName>),
    Except(Vec<ColumnName>),
}

/// A version of a table's records, and how rows become them.
#[derive(Debug)]
pub struct Shaped {
    pub relation: Relation,
    /// `None`: rows are written as they come.
    pub transformer: Option<Transformer>,
}

impl Shape {
    /// Nothing is said: records hold what rows hold.
    pub fn is_plain(&self) -> bool {
        self.keeps_rows() && self.renames.is_empty() && self.filter.is_none()
    }

    /// Rows that come are written as they come.
    fn keeps_rows(&self) -> bool {
        self.columns == Columns::All && self.constants.is_empty() && self.masks.is_empty() && self.key.is_empty()
    }

    /// Tells shapes apart by what a sink would hold; `None` of a plain one.
    pub fn digest(&self) -> Option<String> {
        if self.is_plain() {
            return None;
        }
        let sorted = |names: &[ColumnName]| {
            names.iter().collect::<BTreeSet<&ColumnName>>().into_iter().map(ColumnName::mark).collect::<Vec<_>>()
        };
        let columns = match &self.columns {
            Columns::All => serde_json::Value::Null,
            Columns::Only(names) => serde_json::json!({ "only": sorted(names) }),
            Columns::Except(names) => serde_json::json!({ "except": sorted(names) }),
        };
        let masks: Vec<_> = self.masks.iter().map(|(column, mask)| (column.mark(), mask.mark())).collect();
        let mut json = serde_json::json!({ "columns": columns, "masks": masks, "key": self.key, "where": self.filter });
        if !self.constants.is_empty() {
            // Only where there are some, so that shapes that older builds knew are still the same ones.
            let constants: Vec<[&String; 2]> = self.constants.iter().map(|c| [&c.column, &c.value]).collect();
            json["constants"] = serde_json::json!(constants);
        }
        if !self.renames.is_empty() {
            json["renames"] = serde_json::json!(self.renames);
        }
        Some(hex::encode(&Sha256::digest(json.to_string())[..8]))
    }

    /// Lays the shape over a version of the table's rows. `catalog`: the names that the catalog has by now, which may be ahead of
    /// these rows; `None` where it has no such table any more. `for_sinks`: a sink of ours reads the records.
    pub fn compile(&self, rows: Relation, catalog: Option<&[&str]>, for_sinks: bool) -> Result<Shaped> {
        if self.is_plain() {
            return Ok(Shaped { relation: rows, transformer: None });
        }
        self.check_names(&rows, catalog)?;
        self.check_constants(&rows, catalog)?;
        let key = self.key_of(&rows)?;
        let in_key = |at: usize| u16::try_from(at).expect("a table has at most 1600 columns");
        let keyed = if key.is_empty() { 0 } else { self.constants.len() };
        let (mut columns, mut picks, mut transforms) = (Vec::new(), Vec::new(), Vec::new());
        let mut hidden = Vec::new();
        for (i, Constant { column, value }) in self.constants.iter().enumerate() {
            columns.push(constant_column(column, (i < keyed).then(|| in_key(i))));
            picks.push(Pick::Constant(value.clone().into_bytes()));
            transforms.push(Transform::Constant { column: column.clone(), value: value.clone() });
        }
        for (i, column) in rows.columns.iter().enumerate() {
            let ordinal = key.iter().position(|k| *k == i);
            let known = catalog.is_none_or(|names| names.contains(&column.name.as_str()));
            let kept = self.keeps(&column.name) && (known || ordinal.is_some() || !self.hides());
            if !kept && ordinal.is_none() {
                // One that the catalog has forgotten is dropped, not hidden.
                hidden.extend((!self.keeps(&column.name)).then(|| column.name.clone()));
                continue;
            }
            if !kept && for_sinks {
                return Err(key_left_out(&rows, column));
            }
            let name = self.name_of(&column.name).to_owned();
            if !kept {
                transforms.push(Transform::KeyOnly { column: name.clone() });
            }
            let mask = self.mask_of(&rows, column)?;
            if let Some(mask) = &mask {
                check_mask(&rows, column, mask, ordinal.is_some(), for_sinks)?;
                transforms.push(Transform::Mask { column: name.clone(), mask: mask.mark() });
            }
            // A default is a value too, that of every row from before its column, and schemas and the ledger would show it.
            let default = column.default.clone().filter(|_| mask.is_none());
            picks.push(Pick::Row { from: i, mask: mask.map(|mask| (mask, length(column))) });
            columns.push(Column { name, default, key: ordinal.map(|at| in_key(keyed + at)), ..column.clone() });
        }
        check_twins(&rows, &columns)?;
        let bare = |pick: &Pick, i: usize| matches!(pick, Pick::Row { from, mask: None } if *from == i);
        let shown = |i: usize| key.contains(&i) || picks.iter().any(|pick| bare(pick, i));
        if let Some(hidden) = rows.key_columns().into_iter().find(|i| !shown(*i)) {
            return Err(row_key_hidden(&rows, &rows.columns[hidden]));
        }
        let renamed = key.iter().any(|&i| self.name_of(&rows.columns[i].name) != rows.columns[i].name);
        if renamed || key != rows.key_columns() {
            transforms.push(Transform::RowsBy { columns: rows.row_key() });
        }
        transforms.extend(self.filter.iter().map(|sql| Transform::Where { sql: sql.clone() }));
        let composites = composites::contained(&columns, &rows.composites);
        let relation = Relation { columns, transforms, hidden, composites, ..rows }.sealed();
        let transformer = (!self.keeps_rows()).then_some(Transformer { picks });
        Ok(Shaped { relation, transformer })
    }

    /// Whether records have the column, if there is one.
    pub fn keeps(&self, column: &str) -> bool {
        match &self.columns {
            Columns::All => true,
            Columns::Only(names) => names.iter().any(|name| name.matches(column)),
            Columns::Except(names) => !names.iter().any(|name| name.matches(column)),
        }
    }

    /// What the table's column is called in records.
    pub fn name_of<'a>(&'a self, column: &'a str) -> &'a str {
        self.renames.iter().find(|(from, _)| from == column).map_or(column, |(_, to)| to)
    }

    /// Whether records have a column of that name, if the table has the one that it stands for.
    pub fn has_record_column(&self, name: &str) -> bool {
        let added = self.constants.iter().any(|constant| constant.column == name);
        let own = self.renames.iter().find(|(_, to)| to == name).map_or(name, |(from, _)| from);
        added || (self.keeps(own) && self.name_of(own) == name)
    }

    /// Columns are hidden by name, so one under another name would show.
    fn hides(&self) -> bool {
        matches!(self.columns, Columns::Except(_)) || !self.masks.is_empty()
    }

    /// One that is named has its own mask, whatever patterns say. Of two patterns neither is the right one.
    fn mask_of(&self, rows: &Relation, column: &Column) -> Result<Option<Mask>> {
        let mut matching = self.masks.iter().filter(|(name, _)| name.matches(&column.name));
        let Some((first, mask)) = matching.next() else { return Ok(None) };
        let named = self.masks.iter().find(|(name, _)| !name.is_pattern() && name.matches(&column.name));
        match (named, matching.next()) {
            (Some((_, named)), _) => Ok(Some(named.clone())),
            (None, None) => Ok(Some(mask.clone())),
            (None, Some((second, _))) => {
                let name = &column.name;
                let found = format!("masks {first} and {second} both match column {name:?}");
                Err(refused(rows, &found, format!("write [masks.{name:?}] with the one that it has")))
            }
        }
    }

    /// What is named, and by which key of the connector.
    fn names(&self) -> impl Iterator<Item = (&'static str, ColumnName)> {
        let (word, listed): (_, &[ColumnName]) = match &self.columns {
            Columns::All => ("columns", &[]),
            Columns::Only(names) => ("columns", names),
            Columns::Except(names) => ("exclude_columns", names),
        };
        let exactly = |name: &String| ColumnName::Exactly(name.clone());
        let masked = self.masks.iter().map(|(column, _)| ("masks", column.clone()));
        let renamed = self.renames.iter().map(move |(column, _)| ("rename_columns", exactly(column)));
        let key = self.key.iter().map(move |name| ("key", exactly(name)));
        listed.iter().map(move |name| (word, name.clone())).chain(masked).chain(renamed).chain(key)
    }

    fn check_names(&self, rows: &Relation, catalog: Option<&[&str]>) -> Result<()> {
        let Some(catalog) = catalog else { return self.check_hidden(rows) };
        match self.names().find(|(_, name)| !catalog.iter().any(|column| name.matches(column))) {
            None => Ok(()),
            Some((word, name)) => {
                let found = match name.is_pattern() {
                    true => format!("{word} names columns {name}, and the table has none that match"),
                    false => format!("{word} names column {:?}, which the table does not have", name.to_string()),
                };
                let hint = format!("write another name into {word}; its columns are {}", catalog.join(", "));
                Err(refused(rows, &found, hint)
                    .fact("generated columns are in no record; one that was renamed would show under its new name"))
            }
        }
    }

    /// Of a table that is gone nobody can say what a column was called before: one that is to be hidden must be there by its name.
    fn check_hidden(&self, rows: &Relation) -> Result<()> {
        let except: &[ColumnName] = if let Columns::Except(names) = &self.columns { names } else { &[] };
        let hidden = except.iter().map(|name| ("exclude_columns", name));
        let mut hidden = hidden.chain(self.masks.iter().map(|(name, _)| ("masks", name)));
        match hidden.find(|(_, name)| !rows.columns.iter().any(|column| name.matches(&column.name))) {
            None => Ok(()),
            Some((word, name)) => {
                let name = name.to_string();
                let found = format!("{word} names column {name:?}, which rows of a table that is gone do not have");
                let hint = format!("delete {name:?} from {word} if none of these rows' columns is to be hidden");
                let columns: Vec<&str> = rows.columns.iter().map(|column| column.name.as_str()).collect();
                Err(refused(rows, &found, hint)
                    .fact(format!("it may stand in them under another name; they have {}", columns.join(", "))))
            }
        }
    }

    /// A table that has a column of that name, be it since a moment ago, would have two.
    fn check_constants(&self, rows: &Relation, catalog: Option<&[&str]>) -> Result<()> {
        let there = |name: &str| {
            rows.columns.iter().any(|column| column.name == name) || catalog.is_some_and(|names| names.contains(&name))
        };
        match self.constants.iter().find(|constant| there(&constant.column)) {
            None => Ok(()),
            Some(Constant { column, .. }) => {
                let found = format!("add_columns names column {column:?}, which the table has");
                Err(refused(rows, &found, "write another name into [add_columns]".to_owned()))
            }
        }
    }

    /// Indexes of the record's own key in these rows.
    fn key_of(&self, rows: &Relation) -> Result<Vec<usize>> {
        if self.key.is_empty() {
            return Ok(rows.key_columns());
        }
        let position = |name: &String| {
            rows.columns.iter().position(|column| column.name == *name).ok_or_else(|| {
                let found = format!("rows from before key column {name:?} was added are still to be read");
                refused(rows, &found, "delete key = […] from the connector until they are".to_owned())
            })
        };
        self.key.iter().map(position).collect()
    }
}

/// Takes rows as they come to rows as they are written.
#[derive(Clone, Debug)]
pub struct Transformer {
    picks: Vec<Pick>,
}

/// One column of a written row.
#[derive(Clone, Debug)]
enum Pick {
    Row {
        from: usize,
        /// With the column's length in characters, if it has one.
        mask: Option<(Mask, Option<usize>)>,
    },
    Constant(Vec<u8>),
}

impl Transformer {
    /// Writes the row into `out`, which is cleared first.
    pub fn apply(&self, row: Row<'_>, out: &mut RowBuf) {
        out.clear();
        let mut text = Vec::new();
        for pick in &self.picks {
            out.push(match pick {
                Pick::Row { from, mask: None } => row.get(*from),
                Pick::Row { from, mask: Some((mask, length)) } => mask.apply(row.get(*from), *length, &mut text),
                Pick::Constant(value) => Cell::Text(value),
            });
        }
    }
}

/// Another name may be that of a column that the table has, be it since a moment ago.
fn check_twins(rows: &Relation, columns: &[Column]) -> Result<()> {
    let twin = columns.iter().enumerate().find(|(i, column)| columns[..*i].iter().any(|c| c.name == column.name));
    match twin {
        None => Ok(()),
        Some((_, Column { name, .. })) => {
            let found = format!("rename_columns gives two columns the name {name:?}");
            Err(refused(rows, &found, "write another name into [rename_columns]".to_owned()))
        }
    }
}

fn constant_column(name: &str, key: Option<u16>) -> Column {
    Column {
        name: name.to_owned(),
        type_oid: TEXT,
        type_name: "text".to_owned(),
        typmod: -1,
        kind: TypeKind::Base,
        nullable: false,
        default: None,
        key,
        // Every format carries text.
        exact: true,
    }
}

const TEXT: u32 = 25;

/// The length that a text type declares, behind any domains; the outer `None`: it is no text.
fn text_length(oid: u32, name: &str, typmod: i32, kind: &TypeKind) -> Option<Option<usize>> {
    const BPCHAR: u32 = 1042;
    const VARCHAR: u32 = 1043;
    match (kind, oid) {
        (TypeKind::Domain { base }, _) => text_length(base.oid, &base.name, base.typmod, &base.kind),
        (TypeKind::Base, TEXT) => Some(None),
        // The modifier counts the four bytes of a header too.
        (TypeKind::Base, BPCHAR | VARCHAR) => Some(usize::try_from(typmod - 4).ok()),
        (TypeKind::Base, _) if name.ends_with(".citext") => Some(None),
        _ => None,
    }
}

fn length(column: &Column) -> Option<usize> {
    text_length(column.type_oid, &column.type_name, column.typmod, &column.kind).flatten()
}

fn check_mask(rows: &Relation, column: &Column, mask: &Mask, in_key: bool, for_sinks: bool) -> Result<()> {
    let name = &column.name;
    if in_key {
        let found = format!("column {name:?} has a mask and is of the key, which would no longer name the row");
        let hint = "delete the mask, or write key = […] with other columns into the connector";
        return Err(refused(rows, &found, hint.to_owned()));
    }
    let Some(length) = text_length(column.type_oid, &column.type_name, column.typmod, &column.kind) else {
        let found = format!("column {name:?} has a mask, but is {} and no text", column.type_name);
        return Err(refused(rows, &found, format!("write exclude_columns = [{name:?}] into the connector instead")));
    };
    match (mask, length) {
        (Mask::Fixed { chars }, Some(length)) if for_sinks && *chars as usize > length => {
            let found = format!("column {name:?} has a mask of {chars} characters, and room for {length} at a sink");
            Err(refused(rows, &found, format!("write chars = {length} under [masks.{name}]")))
        }
        _ => Ok(()),
    }
}

fn key_left_out(rows: &Relation, column: &Column) -> Error {
    let found = format!("column {:?} is left out, but is of the key, by which sinks find the row", column.name);
    refused(rows, &found, format!("leave {:?} in columns, out of exclude_columns", column.name))
}

fn row_key_hidden(rows: &Relation, column: &Column) -> Error {
    let found = format!(
        "column {:?} tells rows apart, so the ledger shows it where it says what was read; it can't be hidden",
        column.name
    );
    refused(rows, &found, format!("leave {:?} in the records or in key, without a mask", column.name))
}

fn refused(rows: &Relation, found: &str, hint: String) -> Error {
    Error::halt(Code::ConnectorColumns, format!("connector of table {}: {found}", rows.name), hint)
}

#[cfg(test)]
mod tests;
