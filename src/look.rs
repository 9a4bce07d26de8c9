//! What the source's catalog said of a table when it was last looked at, and what a difference means.
//!
//! Some statements change rows, or which rows are published, and write nothing into the stream: a column with a
//! default, a type changed in place, a partition attached, emptied or detached, an enum's label renamed,
//! a composite type altered, a table taken out of the publication and put back. All of them leave a trace in the catalog that stays, so comparing two
//! looks finds them however far apart the looks are, and whoever was not running in between.
//!
//! What leaves the same rows is no difference: VACUUM FULL, CLUSTER and others rewrite the table's file without
//! touching its columns, so a new file counts only together with a column's new row in `pg_attribute`. A column that
//! is dropped takes nothing from the others; one that was added since and is dropped already has left rows of its time in the
//! stream, with a default that no row event told of.
//!
//! Deliberately not here: asking the catalog (`postgres::look`), what is done about a difference (`capture::looks`).

use serde::{Deserialize, Serialize};

/// `varchar` and `text`: one can become the other without a value changing.
const SAME_TEXT: [u32; 2] = [25, 1043];

/// One table as the catalog had it at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    pub oid: u32,
    /// Where the rows lie (`pg_class.relfilenode`); 0 for a partitioned table.
    pub file: u32,
    /// Published columns in table order.
    pub columns: Vec<ColumnLook>,
    /// The highest number that a column ever had. `None`: an older build's look, which does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<i16>,
    /// Numbers of columns that were dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<i16>,
    /// Numbers of the columns that name a row, in key order.
    pub key: Vec<i16>,
    /// The partitions that hold rows, at any depth.
    pub leaves: Vec<Leaf>,
    /// The publication's row in the catalog and the table's among its tables; `None` where the table is not published.
    pub published: Option<String>,
    /// Of the enums that the columns' types are made of, at any depth: OID and label.
    pub labels: Vec<(u32, String)>,
    /// Composite types among them, which can be altered while tables have them. Looks of older builds have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub composites: Vec<Composite>,
    /// Not the catalog's: what the connector made of its rows, as [`crate::transform::Shape::digest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<String>,
    /// The same of its row filter, which the publication has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnLook {
    /// `pg_attribute.attnum`, never used twice within a table.
    pub number: i16,
    pub name: String,
    pub type_oid: u32,
    pub typmod: i32,
    /// `pg_attribute.xmin`: another one after every statement that altered the column.
    pub row: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    pub oid: u32,
    pub file: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Composite {
    /// Of its relation.
    pub oid: u32,
    /// Number and type of each attribute. Names stand in no value.
    pub attributes: Vec<(i16, u32)>,
}

/// What may have happened between two looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Rows may be others than the stream says; in words, why.
    Rows(String),
    /// Partitions came and nothing else happened. Rows that they held before are in no stream; empty ones change
    /// nothing.
    Leaves(Vec<u32>),
}

impl Look {
    /// Labels that have another name now.
    pub fn relabelled<'a>(&'a self, now: &'a Look) -> impl Iterator<Item = &'a str> {
        let renamed = |(oid, label): &&(u32, String)| now.labels.iter().any(|(o, l)| o == oid && l != label);
        self.labels.iter().filter(renamed).map(|(_, label)| label.as_str())
    }

    /// Composites that have other attributes now.
    pub fn reshaped<'a>(&'a self, now: &'a Look) -> impl Iterator<Item = &'a Composite> {
        let other = |before: &&Composite| {
            now.composites.iter().any(|n| n.oid == before.oid && n.attributes != before.attributes)
        };
        self.composites.iter().filter(other)
    }

    /// Whether a column came and went unseen: rows of that time hold its default, which no stream tells of.
    fn brief(&self, now: &Look) -> bool {
        self.last.is_some_and(|last| now.dropped.iter().any(|number| *number > last))
    }

    /// What `now` shows to have happened since, if it can matter.
    pub fn difference(&self, now: &Look) -> Option<Difference> {
        let rows = |why: String| Some(Difference::Rows(why));
        if self.oid != now.oid {
            return rows("the table was made again".to_owned());
        }
        if self.shape != now.shape {
            return rows("its connector makes other records of them".to_owned());
        }
        if self.published != now.published {
            return rows("its publication was changed".to_owned());
        }
        for column in &now.columns {
            let Some(before) = self.columns.iter().find(|before| before.number == column.number) else {
                return rows(format!("column {:?} was added", column.name));
            };
            if before.name != column.name {
                return rows(format!("column {:?} was renamed to {:?}", before.name, column.name));
            }
            let same_text = SAME_TEXT.contains(&before.type_oid) && SAME_TEXT.contains(&column.type_oid);
            if before.type_oid != column.type_oid && !same_text {
                return rows(format!("column {:?} has another type", column.name));
            }
        }
        if self.key != now.key {
            return rows("the key was changed".to_owned());
        }
        if self.brief(now) {
            return rows("a column was added and dropped again".to_owned());
        }
        if let Some(label) = self.relabelled(now).next() {
            return rows(format!("the enum's label {label:?} was renamed"));
        }
        if self.reshaped(now).next().is_some() {
            return rows("a composite type of its values was altered".to_owned());
        }
        let altered = |c: &&ColumnLook| self.columns.iter().any(|b| b.number == c.number && b.row != c.row);
        if self.file != now.file
            && let Some(column) = now.columns.iter().find(altered)
        {
            return rows(format!("the table was rewritten and column {:?} altered", column.name));
        }
        let find = |leaves: &[Leaf], oid: u32| leaves.iter().copied().find(|leaf| leaf.oid == oid);
        if self.leaves.iter().any(|leaf| find(&now.leaves, leaf.oid) != Some(*leaf)) {
            return rows("a partition was emptied, rewritten, detached or dropped".to_owned());
        }
        let came: Vec<u32> =
            now.leaves.iter().map(|l| l.oid).filter(|oid| find(&self.leaves, *oid).is_none()).collect();
        (!came.is_empty()).then_some(Difference::Leaves(came))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look() -> Look {
        let column = |number, name: &str, type_oid| ColumnLook {
            number,
            name: name.into(),
            type_oid,
            typmod: -1,
            row: "700".into(),
        };
        Look {
            oid: 1,
            file: 10,
            columns: vec![column(1, "id", 23), column(3, "v", 1043)],
            last: Some(3),
            dropped: vec![2],
            key: vec![1],
            leaves: vec![Leaf { oid: 5, file: 50 }],
            published: Some("2:600 3:601".into()),
            labels: vec![(8, "sad".into())],
            composites: vec![Composite { oid: 9, attributes: vec![(1, 23)] }],
            shape: None,
            filter: None,
        }
    }

    fn after(change: impl FnOnce(&mut Look)) -> Option<Difference> {
        let mut now = look();
        change(&mut now);
        look().difference(&now)
    }

    #[test]
    fn what_leaves_every_row_as_it_was_is_no_difference() {
        assert_eq!(after(|_| ()), None);
        assert_eq!(after(|now| now.file = 11), None, "VACUUM FULL, CLUSTER, TRUNCATE");
        assert_eq!(after(|now| now.columns[1].row = "701".into()), None, "GRANT on a column, SET STATISTICS");
        assert_eq!(after(|now| drop(now.columns.remove(1))), None, "DROP COLUMN");
        assert_eq!(after(|now| now.dropped.push(3)), None, "the same");
        assert_eq!(after(|now| now.columns[1].type_oid = 25), None, "varchar to text");
        assert_eq!(after(|now| now.columns[1].typmod = 24), None, "a varchar widened");
        assert_eq!(after(|now| now.labels.push((9, "glad".into()))), None, "ADD VALUE");
        assert_eq!(after(|now| now.composites[0].oid = 10), None, "another type, of a column that says so itself");
    }

    #[test]
    fn what_may_change_rows_is_named() {
        let why = |change: fn(&mut Look)| match after(change) {
            Some(Difference::Rows(why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(why(|now| now.oid = 2).contains("made again"));
        assert!(why(|now| now.shape = Some("5ac1".into())).contains("connector"));
        assert!(why(|now| now.published = Some("2:600 3:702".into())).contains("publication"));
        assert!(why(|now| now.columns[1].number = 4).contains("\"v\" was added"));
        assert!(why(|now| now.columns[1].name = "w".into()).contains("renamed to \"w\""));
        assert!(why(|now| now.columns[0].type_oid = 20).contains("another type"));
        assert!(why(|now| now.key = vec![3]).contains("key"));
        assert!(why(|now| now.dropped.push(4)).contains("added and dropped"));
        assert!(why(|now| now.labels[0].1 = "blue".into()).contains("\"sad\""));
        assert!(why(|now| now.composites[0].attributes.push((2, 23))).contains("composite"));
        assert!(why(|now| now.composites[0].attributes.clear()).contains("composite"));
        assert!(why(|now| now.leaves[0].file = 51).contains("partition"));
        assert!(why(|now| now.leaves.clear()).contains("partition"));
        let rewritten = why(|now| {
            now.file = 11;
            now.columns[1].row = "701".into();
        });
        assert!(rewritten.contains("rewritten"), "{rewritten}");
    }

    #[test]
    fn new_partitions_are_told_apart() {
        let came = after(|now| now.leaves.push(Leaf { oid: 6, file: 60 }));
        assert_eq!(came, Some(Difference::Leaves(vec![6])));
    }

    #[test]
    fn a_look_reads_back_from_json() {
        let json = serde_json::to_string(&look()).unwrap();
        assert_eq!(serde_json::from_str::<Look>(&json).unwrap(), look());
    }
}
