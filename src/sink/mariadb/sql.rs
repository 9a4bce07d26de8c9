//! The statements that write one table of a MariaDB. Pure: rows in, texts out, each as long as the server takes them.
//!
//! No statement names a row by anything but the key. In particular `INSERT … ON DUPLICATE KEY UPDATE` changes whatever row has one of
//! the new row's unique values, so it is only written where the key is the table's only unique index ([`Plan::bulk`]).

use std::collections::HashSet;

use super::catalog::TableFacts;
use super::fit::{self, quote, quoted};
use super::refusal;
use super::value::{Beyond, Kind, quoted as quoted_text};
use crate::change::Key;
use crate::config::Truncate;
use crate::error::{Code, Halt};
use crate::key::{KeyOrder, KeyRange};
use crate::relation::TableName;
use crate::sink::WantedTable;
use crate::sink::confine::Held;
use crate::value::{Cell, RowBuf};

/// Keys in one condition: the optimizer looks each of them up, and beyond some thousands gives up and reads the table.
const KEYS_MAX: usize = 500;

/// Statements in one packet, each of which is answered by itself.
const STATEMENTS_MAX: usize = 500;

/// How one relation version is written into one table of the sink as its catalog now is.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) source: TableName,
    pub(super) table: TableName,
    /// With its database.
    pub(super) quoted: String,
    pub(super) columns: Vec<PlanColumn>,
    /// Places in `columns`, in key order.
    pub(super) key: Vec<usize>,
    pub(super) held: Vec<Held>,
    /// Name of the unique index over the key.
    pub(super) index: String,
    /// Nothing but the key is unique, and no trigger tells an insert from an update.
    pub(super) bulk: bool,
    pub(super) has_triggers: bool,
    /// Columns of other unique indexes that a row may hold NULL in for a moment, by index: see [`super::write`].
    pub(super) stand_ins: Vec<usize>,
    /// Tables that this one references, itself excluded.
    parents: HashSet<TableName>,
    /// Tables that reference this one, itself excluded.
    children: HashSet<TableName>,
    truncate: Truncate,
    references_itself: bool,
    /// Somebody references this table, so its deletes wait until nothing that lives on can hang on them.
    pub(super) deletes_last: bool,
    /// ON DELETE actions of a table that this one references may take rows of this table first.
    pub(super) deletes_short: bool,
    pub(super) skips_missing: bool,
}

#[derive(Clone, Debug)]
pub(super) struct PlanColumn {
    /// Place in the relation's rows.
    pub index: usize,
    pub name: String,
    pub quoted: String,
    pub kind: Kind,
    pub order: KeyOrder,
}

/// Statements for rows `from` to `through - 1` of what was given.
#[derive(Debug)]
pub(super) struct Batch {
    pub sql: Vec<u8>,
    pub rows: usize,
}

impl Plan {
    /// `facts` was judged to fit `wanted`.
    pub(super) fn compile(wanted: &WantedTable, facts: &TableFacts) -> Result<Plan, Halt> {
        let mut columns = Vec::with_capacity(wanted.columns.len());
        for column in &wanted.columns {
            let kind = fit::judge_column(wanted, column, facts)?;
            let found = fit::find(facts, &column.column.name).expect("judged: every column is there");
            columns.push(PlanColumn {
                index: column.index,
                name: found.name.clone(),
                quoted: quote(&found.name),
                kind,
                order: KeyOrder::of(column.column.type_oid),
            });
        }
        let index = fit::arbiter(wanted, facts).expect("judged: a unique index over the key is there").name.clone();
        let keys = &facts.foreign_keys;
        let (table, key) = (&wanted.table, wanted.key());
        let acts = |on_delete: &str| matches!(on_delete, "CASCADE" | "SET NULL" | "SET DEFAULT");
        let references = |one: &TableName, other: &TableName| one == table && other != table;
        Ok(Plan {
            source: wanted.source.clone(),
            table: table.clone(),
            quoted: quoted(table),
            held: wanted.held.clone(),
            bulk: facts.uniques.len() == 1 && facts.triggers.is_empty(),
            has_triggers: !facts.triggers.is_empty(),
            stand_ins: stand_ins(facts, &columns, &key, &index),
            children: keys.iter().filter(|f| references(&f.parent, &f.child)).map(|f| f.child.clone()).collect(),
            truncate: wanted.truncate,
            parents: keys.iter().filter(|f| references(&f.child, &f.parent)).map(|f| f.parent.clone()).collect(),
            references_itself: keys.iter().any(|f| f.child == *table && f.parent == *table),
            deletes_last: keys.iter().any(|f| f.parent == *table),
            deletes_short: keys.iter().any(|f| f.child == *table && acts(&f.on_delete)),
            skips_missing: wanted.skips_missing,
            columns,
            key,
            index,
        })
    }

    /// Whether new rows go in before others are updated: only where a row may reference a new one of its own table.
    pub(super) fn inserts_first(&self) -> bool {
        self.references_itself
    }

    pub(super) fn references(&self, other: &Plan) -> bool {
        self.parents.contains(&other.table)
    }

    /// Places in `columns` of the relation's columns `indexes`.
    pub(super) fn places(&self, indexes: &[usize]) -> Vec<usize> {
        let place = |index: &usize| self.columns.iter().position(|column| column.index == *index);
        indexes.iter().map(|index| place(index).expect("a net effect names wanted columns only")).collect()
    }

    pub(super) fn all(&self) -> Vec<usize> {
        (0..self.columns.len()).collect()
    }

    fn is_key(&self, place: usize) -> bool {
        self.key.contains(&place)
    }

    /// The key of a row, as cells.
    fn key_cells<'a>(&'a self, row: &'a RowBuf) -> impl Iterator<Item = Cell<'a>> {
        self.key.iter().map(|&place| row.row().get(self.columns[place].index))
    }

    fn write(&self, place: usize, cell: Cell<'_>, out: &mut Vec<u8>) -> Result<(), Halt> {
        let column = &self.columns[place];
        match cell {
            Cell::Null => out.extend_from_slice(b"NULL"),
            Cell::Text(text) => {
                let written = column.kind.write(text, out);
                written.map_err(|_| refusal::value(self, Some(&column.name), vec![]))?;
            }
            Cell::Absent => return Err(self.absent()),
        }
        Ok(())
    }

    pub(super) fn absent(&self) -> Halt {
        Halt {
            code: Code::AbsentBase,
            message: format!("a row of table {} would have to be made with a column that was never sent", self.table),
            facts: vec![],
            hint: format!("lockstep resync {}", self.source),
        }
    }

    /// `` `a` = 1 AND `b` = 'x' ``
    fn write_key<'a>(&self, cells: impl Iterator<Item = Cell<'a>>, out: &mut Vec<u8>) -> Result<(), Halt> {
        for (k, (&place, cell)) in self.key.iter().zip(cells).enumerate() {
            if k > 0 {
                out.extend_from_slice(b" AND ");
            }
            out.extend_from_slice(self.columns[place].quoted.as_bytes());
            out.extend_from_slice(b" = ");
            self.write(place, cell, out)?;
        }
        Ok(())
    }

    /// `(NULL,1,'x')`
    fn write_row(&self, row: &RowBuf, out: &mut Vec<u8>) -> Result<(), Halt> {
        for place in 0..self.columns.len() {
            out.push(if place == 0 { b'(' } else { b',' });
            self.write(place, row.row().get(self.columns[place].index), out)?;
        }
        out.push(b')');
        Ok(())
    }

    fn insert_head(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|column| column.quoted.as_str()).collect();
        format!("INSERT INTO {} ({}) VALUES ", self.quoted, names.join(","))
    }

    /// New rows, as many in a statement as go into it.
    pub(super) fn inserts(&self, rows: &[&RowBuf], bytes: usize) -> Result<Vec<Batch>, Halt> {
        self.gathered(rows, bytes, (&self.insert_head(), ","), "", |row, out| self.write_row(row, out))
    }

    /// Rows that are there, written whole. Only where [`Plan::bulk`] says so, and for rows that are known to be there.
    pub(super) fn overwrites(&self, rows: &[&RowBuf], bytes: usize) -> Result<Vec<Batch>, Halt> {
        assert!(self.bulk, "with another unique index it would write other rows");
        let set = self.all().into_iter().filter(|&place| !self.is_key(place)).map(|place| {
            let name = &self.columns[place].quoted;
            format!("{name}=VALUES({name})")
        });
        let tail = format!(" ON DUPLICATE KEY UPDATE {}", set.collect::<Vec<_>>().join(","));
        self.gathered(rows, bytes, (&self.insert_head(), ","), &tail, |row, out| self.write_row(row, out))
    }

    /// Counts and locks the rows with these rows' keys.
    pub(super) fn counts(&self, rows: &[&RowBuf], bytes: usize) -> Result<Vec<Batch>, Halt> {
        let cells = |row: &RowBuf| self.key_cells(row).map(|cell| cell.text().unwrap_or_default().to_vec()).collect();
        let keys: Vec<Vec<Vec<u8>>> = rows.iter().map(|row| cells(row)).collect();
        self.by_keys(&format!("SELECT COUNT(*) FROM {} WHERE ", self.quoted), &keys, " FOR UPDATE", bytes)
    }

    pub(super) fn deletes(&self, keys: &[Vec<Vec<u8>>], bytes: usize) -> Result<Vec<Batch>, Halt> {
        self.by_keys(&format!("DELETE FROM {} WHERE ", self.quoted), keys, "", bytes)
    }

    /// Statements about rows with these keys, some hundred keys in each.
    fn by_keys(&self, head: &str, keys: &[Vec<Vec<u8>>], tail: &str, bytes: usize) -> Result<Vec<Batch>, Halt> {
        let head = format!("{head}(");
        let mut batches = Vec::new();
        for keys in keys.chunks(KEYS_MAX) {
            batches.extend(self.gathered(keys, bytes, (&head, " OR "), &format!("){tail}"), |key, out| {
                self.write_key(key.iter().map(|text| Cell::Text(text)), out)
            })?);
        }
        Ok(batches)
    }

    /// An update of each row by its key, in packets. `present` are places; the key among them is not written.
    pub(super) fn updates(&self, rows: &[&RowBuf], present: &[usize], bytes: usize) -> Result<Vec<Batch>, Halt> {
        let mut set: Vec<usize> = present.iter().copied().filter(|&place| !self.is_key(place)).collect();
        if set.is_empty() {
            // A row that is all key is only looked for.
            set = self.key.clone();
        }
        self.each(rows, bytes, |row, out| {
            self.write_update(row, &set, out)?;
            self.write_key(self.key_cells(row), out)
        })
    }

    /// The same by the key that each row has so far.
    pub(super) fn moves(&self, rows: &[(Key, RowBuf)], present: &[usize], bytes: usize) -> Result<Vec<Batch>, Halt> {
        let rows: Vec<&(Key, RowBuf)> = rows.iter().collect();
        self.each(&rows, bytes, |(key, row), out| {
            self.write_update(row, present, out)?;
            self.write_key(key.cells(), out)
        })
    }

    /// NULL into these places of each row, by its key.
    pub(super) fn parks(&self, keys: &[Vec<Vec<u8>>], places: &[usize], bytes: usize) -> Result<Vec<Batch>, Halt> {
        let set: Vec<String> = places.iter().map(|&place| format!("{} = NULL", self.columns[place].quoted)).collect();
        self.by_keys(&format!("UPDATE {} SET {} WHERE ", self.quoted, set.join(", ")), keys, "", bytes)
    }

    fn write_update(&self, row: &RowBuf, set: &[usize], out: &mut Vec<u8>) -> Result<(), Halt> {
        out.extend_from_slice(format!("UPDATE {} SET ", self.quoted).as_bytes());
        for (i, &place) in set.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            out.extend_from_slice(self.columns[place].quoted.as_bytes());
            out.push(b'=');
            self.write(place, row.row().get(self.columns[place].index), out)?;
        }
        out.extend_from_slice(b" WHERE ");
        Ok(())
    }

    /// One statement for many items.
    fn gathered<T>(
        &self,
        items: &[T],
        bytes: usize,
        (head, separator): (&str, &str),
        tail: &str,
        write: impl Fn(&T, &mut Vec<u8>) -> Result<(), Halt>,
    ) -> Result<Vec<Batch>, Halt> {
        let mut batches: Vec<Batch> = Vec::new();
        let mut item_sql = Vec::new();
        let mut open: Option<Batch> = None;
        for item in items {
            item_sql.clear();
            write(item, &mut item_sql)?;
            let full = |open: &Batch| open.sql.len() + separator.len() + item_sql.len() + tail.len() > bytes;
            if open.as_ref().is_some_and(full) {
                batches.extend(open.take());
            }
            let batch = open.get_or_insert_with(|| Batch { sql: head.as_bytes().to_vec(), rows: 0 });
            if batch.rows > 0 {
                batch.sql.extend_from_slice(separator.as_bytes());
            }
            batch.sql.extend_from_slice(&item_sql);
            batch.rows += 1;
        }
        batches.extend(open);
        batches.iter_mut().for_each(|batch| batch.sql.extend_from_slice(tail.as_bytes()));
        Ok(batches)
    }

    /// One statement for each item, several in a packet.
    fn each<T>(
        &self,
        items: &[T],
        bytes: usize,
        write: impl Fn(&T, &mut Vec<u8>) -> Result<(), Halt>,
    ) -> Result<Vec<Batch>, Halt> {
        let mut batches: Vec<Batch> = Vec::new();
        let mut item_sql = Vec::new();
        for item in items {
            item_sql.clear();
            write(item, &mut item_sql)?;
            let fits =
                |batch: &&mut Batch| batch.rows < STATEMENTS_MAX && batch.sql.len() + 1 + item_sql.len() <= bytes;
            match batches.last_mut().filter(fits) {
                Some(batch) => {
                    batch.sql.push(b';');
                    batch.sql.extend_from_slice(&item_sql);
                    batch.rows += 1;
                }
                None => batches.push(Batch { sql: item_sql.clone(), rows: 1 }),
            }
        }
        Ok(batches)
    }

    /// A table that references this one and is not emptied along with it: what a TRUNCATE would be refused for, and a DELETE may take
    /// rows of.
    pub(super) fn left_behind(&self, emptied: &[&Plan]) -> Option<&TableName> {
        let stays = |child: &&TableName| emptied.iter().all(|other| other.table != **child);
        self.children.iter().find(stays).filter(|_| self.truncate == Truncate::Truncate)
    }

    /// Empties the table of the version's own rows.
    pub(super) fn delete_all(&self) -> Result<String, Halt> {
        Ok(format!("DELETE FROM {} WHERE TRUE{}", self.quoted, self.and_ours()?))
    }

    /// Keys of the rows in a range, in order, and locks them.
    pub(super) fn keys_of(&self, range: &KeyRange, rows: usize) -> Result<String, Halt> {
        let printed = |&place: &usize| self.columns[place].kind.printed(&self.columns[place].quoted);
        let names: Vec<&str> = self.own_key().iter().map(|&place| self.columns[place].quoted.as_str()).collect();
        Ok(format!(
            "SELECT {} FROM {} WHERE {}{} ORDER BY {} LIMIT {rows} FOR UPDATE",
            self.key.iter().map(printed).collect::<Vec<_>>().join(", "),
            self.quoted,
            self.in_range(range)?,
            self.and_ours()?,
            names.join(", "),
        ))
    }

    /// Places of the key's columns that tell the table's own rows apart: those that ranges speak of.
    pub(super) fn own_key(&self) -> Vec<usize> {
        self.key.iter().copied().filter(|place| self.held.iter().all(|held| held.place != *place)).collect()
    }

    fn and_ours(&self) -> Result<String, Halt> {
        let is = |held: &Held| {
            let mut out = format!(" AND {} = ", self.columns[held.place].quoted).into_bytes();
            self.write(held.place, Cell::Text(held.value.as_bytes()), &mut out)?;
            Ok(String::from_utf8_lossy(&out).into_owned())
        };
        self.held.iter().map(is).collect()
    }

    fn in_range(&self, range: &KeyRange) -> Result<String, Halt> {
        let place = self.own_key();
        let mut parts = Vec::new();
        for (border, above) in [(&range.after, true), (&range.through, false)] {
            if let Some(border) = border {
                assert_eq!(border.len(), place.len(), "a range is over the table's own key");
                parts.push(format!("({})", self.beside(&place, border, above)?));
            }
        }
        Ok(if parts.is_empty() { "TRUE".to_owned() } else { parts.join(" AND ") })
    }

    /// The condition that a key lies above a border, or below or at it. A row comparison would say the same and use no index.
    fn beside(&self, places: &[usize], border: &[String], above: bool) -> Result<String, Halt> {
        let column = &self.columns[places[0]];
        let (name, sign) = (&column.quoted, if above { '>' } else { '<' });
        if let Some(beyond) = column.kind.beyond(column.order, &border[0]) {
            return Ok(if (beyond == Beyond::Below) == above { "TRUE" } else { "FALSE" }.to_owned());
        }
        let literal = self.border(places[0], &border[0]);
        if places.len() == 1 {
            let or_equal = if above { "" } else { "=" };
            return Ok(format!("{name} {sign}{or_equal} {literal}"));
        }
        let rest = self.beside(&places[1..], &border[1..], above)?;
        Ok(format!("{name} {sign}= {literal} AND ({name} {sign} {literal} OR {rest})"))
    }

    /// A border is compared with, not stored, so it may have more digits than the column keeps.
    fn border(&self, place: usize, text: &str) -> String {
        let (mut out, column) = (Vec::new(), &self.columns[place]);
        let kind = match column.kind {
            Kind::Decimal { .. } => Kind::Decimal { whole: usize::MAX, scale: usize::MAX },
            Kind::Text { .. } => Kind::Text { chars: None, bytes: usize::MAX },
            Kind::Bytes { .. } => Kind::Bytes { bytes: usize::MAX },
            other => other,
        };
        if kind.write(text.as_bytes(), &mut out).is_err() {
            out.clear();
            quoted_text(text.as_bytes(), &mut out);
        }
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// For each unique index beside the key's: a column of ours that may be NULL, where no trigger and no foreign key hears of it.
fn stand_ins(facts: &TableFacts, columns: &[PlanColumn], key: &[usize], index: &str) -> Vec<usize> {
    let heard = facts.triggers.iter().any(|trigger| trigger.event == "UPDATE") || !facts.foreign_keys.is_empty();
    if heard {
        return Vec::new();
    }
    let may_be_null = |name: &String| {
        let place = columns.iter().position(|column| column.name == *name)?;
        let nullable = facts.columns.iter().any(|column| column.name == *name && column.nullable);
        (nullable && !key.contains(&place)).then_some(place)
    };
    let others = facts.uniques.iter().filter(|unique| unique.name != index);
    let mut places: Vec<usize> = others.filter_map(|unique| unique.columns.iter().find_map(may_be_null)).collect();
    places.sort_unstable();
    places.dedup();
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::mariadb::catalog::{ColumnFacts, UniqueFacts};

    fn plan(keys: usize) -> Plan {
        let column = |index: usize, name: &str, kind| PlanColumn {
            index,
            name: name.to_owned(),
            quoted: quote(name),
            kind,
            order: KeyOrder::Integer,
        };
        let text = Kind::Text { chars: None, bytes: 100 };
        Plan {
            source: TableName::new("public", "t"),
            table: TableName::new("d", "t"),
            quoted: "`d`.`t`".to_owned(),
            columns: vec![column(0, "a", Kind::Integer), column(1, "b`", text), column(2, "c", text)],
            key: (0..keys).collect(),
            held: vec![],
            index: "PRIMARY".to_owned(),
            bulk: true,
            has_triggers: false,
            stand_ins: vec![],
            parents: HashSet::new(),
            children: HashSet::new(),
            truncate: Truncate::Truncate,
            references_itself: false,
            deletes_last: false,
            deletes_short: false,
            skips_missing: false,
        }
    }

    fn row(cells: &[&str]) -> RowBuf {
        let cell = |text: &&'static str| -> Cell<'static> {
            match *text {
                "~" => Cell::Null,
                "-" => Cell::Absent,
                text => Cell::Text(text.as_bytes()),
            }
        };
        let cells: Vec<&'static str> = cells.iter().map(|text| &*String::leak((*text).to_owned())).collect();
        cells.iter().map(cell).collect()
    }

    fn texts(batches: Result<Vec<Batch>, Halt>) -> Vec<String> {
        batches
            .unwrap()
            .into_iter()
            .map(|batch| format!("{}: {}", batch.rows, String::from_utf8(batch.sql).unwrap()))
            .collect()
    }

    #[test]
    fn statements_name_rows_by_their_key_alone() {
        let (one, two) = (row(&["1", "x", "~"]), row(&["2", "y'", "z"]));
        let rows = [&one, &two];
        let plan = plan(1);
        assert_eq!(
            texts(plan.inserts(&rows, 1000)),
            ["2: INSERT INTO `d`.`t` (`a`,`b```,`c`) VALUES (1,'x',NULL),(2,'y''','z')"]
        );
        assert_eq!(texts(plan.inserts(&rows, 10)).len(), 2, "a row alone, however long");
        assert_eq!(
            texts(plan.overwrites(&rows[..1], 1000)),
            [
                "1: INSERT INTO `d`.`t` (`a`,`b```,`c`) VALUES (1,'x',NULL) ON DUPLICATE KEY UPDATE `b```=VALUES(`b```),`c`=VALUES(`c`)"
            ]
        );
        let part = row(&["1", "x", "-"]);
        assert_eq!(
            texts(plan.updates(&[&part, &two], &[0, 1], 1000)),
            ["2: UPDATE `d`.`t` SET `b```='x' WHERE `a` = 1;UPDATE `d`.`t` SET `b```='y''' WHERE `a` = 2"]
        );
        let key = Key::of(one.row(), &[0]).unwrap();
        assert_eq!(
            texts(plan.moves(&[(key, two.clone())], &[0, 1], 1000)),
            ["1: UPDATE `d`.`t` SET `a`=2,`b```='y''' WHERE `a` = 1"]
        );
        assert_eq!(
            texts(plan.deletes(&[vec![b"1".to_vec()], vec![b"2".to_vec()]], 1000)),
            ["2: DELETE FROM `d`.`t` WHERE (`a` = 1 OR `a` = 2)"]
        );
        let halt = plan.inserts(&[&part], 1000).unwrap_err();
        assert_eq!(halt.code, Code::AbsentBase);
        let halt = plan.inserts(&[&row(&["1 OR 1", "x", "~"])], 1000).unwrap_err();
        assert!(halt.code == Code::ValueRefused && halt.message.ends_with("column a of d.t"), "{halt}");
    }

    #[test]
    fn ranges_of_composite_keys_stay_on_the_index() {
        let border = |a: &str, b: &str| Some(vec![a.to_owned(), b.to_owned()]);
        let range = KeyRange { after: border("1", "it's"), through: border("9", "z") };
        assert_eq!(
            plan(2).in_range(&range).unwrap(),
            "(`a` >= 1 AND (`a` > 1 OR `b``` > 'it''s')) AND (`a` <= 9 AND (`a` < 9 OR `b``` <= 'z'))"
        );
        assert_eq!(plan(1).in_range(&KeyRange::ALL).unwrap(), "TRUE");
        let mut timed = plan(1);
        (timed.columns[0].kind, timed.columns[0].order) = (Kind::Date, KeyOrder::Micros);
        let range = KeyRange { after: Some(vec!["-infinity".into()]), through: Some(vec!["infinity".into()]) };
        assert_eq!(timed.in_range(&range).unwrap(), "(TRUE) AND (TRUE)");
    }

    #[test]
    fn only_a_column_that_nobody_hears_of_stands_in() {
        let unique = |name: &str, column: &str| UniqueFacts { name: name.into(), columns: vec![column.into()] };
        let column = |name: &str| ColumnFacts { name: name.into(), nullable: true, ..ColumnFacts::default() };
        let facts = TableFacts {
            columns: vec![column("a"), column("c")],
            uniques: vec![unique("PRIMARY", "a"), unique("u", "c")],
            ..TableFacts::default()
        };
        assert_eq!(stand_ins(&facts, &plan(1).columns, &[0], "PRIMARY"), [2]);
        let trigger = super::super::catalog::TriggerFacts { name: "x".into(), event: "UPDATE".into() };
        assert!(
            stand_ins(&TableFacts { triggers: vec![trigger], ..facts }, &plan(1).columns, &[0], "PRIMARY").is_empty()
        );
    }
}
