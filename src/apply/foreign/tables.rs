//! The tables of a sink whose topics another program writes: what their records look like now, and rows out of records.
//!
//! There is no ledger that tells of versions. A version here is what records have: these fields, this key, this schema, and the
//! sink's columns of these names as its catalog had them when such a record came first. Columns that only the sink has are never
//! touched; a field that the sink has no column for halts, unless the connector says which columns are taken.

use std::sync::Arc;

use crate::change::Key;
use crate::codec::foreign::{Fields, Node, Placeholders, Reading, Unread, changes, encoding, plain_encoding, read};
use crate::codec::mapping::Encoding;
use crate::config::{SinkTable, Topics};
use crate::error::{Code, Error, Halt, Result};
use crate::postgres::catalog::{ColumnFacts, TableFacts};
use crate::relation::{Column, Fingerprint, NameMode, Relation, TableName};
use crate::sink::WantedTable;
use crate::sink::postgres::PostgresSink;
use crate::sink::sql::SinkTablePlan;
use crate::value::{Cell, RowBuf};

/// Of one table; records with another shape than these are the rare case.
const VERSIONS_MAX: usize = 16;

/// A table with its topic.
pub struct Table {
    pub name: TableName,
    pub topic: String,
    target: SinkTable,
    versions: Vec<Arc<Version>>,
}

/// Records of one shape.
pub struct Version {
    names: Vec<String>,
    key_names: Vec<String>,
    /// The text of the schema, where records have one.
    schema: Option<String>,
    /// By field: the column's place in rows and how it is written. `None`: not taken.
    fields: Vec<Option<(usize, Encoding)>>,
    key: Vec<usize>,
    columns: usize,
    pub plan: SinkTablePlan,
}

/// The shape of a record.
pub struct Shape<'a> {
    pub fields: Vec<&'a str>,
    pub key: Vec<&'a str>,
    /// The schema as it stands there, and the row's in it.
    pub schema: Option<(&'a str, &'a Node)>,
}

impl Version {
    fn is_of(&self, shape: &Shape<'_>) -> bool {
        self.schema.as_deref() == shape.schema.map(|(text, _)| text)
            && self.names.iter().eq(&shape.fields)
            && self.key_names.iter().eq(&shape.key)
    }

    /// The row that the fields of a record say. `partial`: it may be there already, and then not all of it was sent.
    /// `is_read`: it was read as it stood in the table, so that nothing is missing.
    pub fn row(
        &self,
        fields: &Fields<'_>,
        (partial, is_read): (bool, bool),
        unsent: &Placeholders,
    ) -> Result<RowBuf, (String, Unread)> {
        let mut cells: Vec<(Reading, Vec<u8>)> = vec![(Reading::Unsent, Vec::new()); self.columns];
        let named = |name: &str, unread| (name.to_owned(), unread);
        let taken = || fields.iter().zip(&self.fields).filter_map(|(field, taken)| Some((field, taken.as_ref()?)));
        let mut others = false;
        for ((name, raw), (place, encoding)) in taken() {
            let cell = &mut cells[*place];
            cell.0 = match raw.get() {
                "null" => Reading::Null,
                raw if !is_read && unsent.is(encoding, raw).map_err(|unread| named(name, unread))? => {
                    others = true;
                    Reading::Unsent
                }
                raw => {
                    read(encoding, raw, &mut cell.1).map_err(|unread| named(name, unread))?;
                    Reading::Text
                }
            };
        }
        if partial {
            for ((name, raw), (_, encoding)) in taken() {
                unsent.may_hide(encoding, raw.get(), others).map_err(|unread| named(name, unread))?;
            }
        }
        let cell = |(reading, text): &'_ (Reading, Vec<u8>)| match reading {
            Reading::Null => CellOf::Null,
            Reading::Unsent => CellOf::Absent,
            Reading::Text => CellOf::Text(text.clone()),
        };
        Ok(cells.iter().map(cell).collect::<Vec<_>>().iter().map(CellOf::cell).collect())
    }

    /// The key that a row has.
    pub fn key_of(&self, row: &RowBuf) -> Option<Key> {
        Key::of(row.row(), &self.key)
    }

    /// The key that a record's key says. Its fields are the version's, whatever row they are of.
    pub fn key(&self, fields: &Fields<'_>) -> Result<Option<Key>, (String, Unread)> {
        let mut row = RowBuf::with_capacity(self.key.len(), 0);
        for (name, raw) in fields {
            let known = self.names.iter().position(|known| known == name).and_then(|i| self.fields[i].as_ref());
            let Some((_, encoding)) = known else { return Err((name.to_string(), Unread::Unfit)) };
            if raw.get() == "null" {
                return Ok(None);
            }
            let mut text = Vec::new();
            read(encoding, raw.get(), &mut text).map_err(|unread| (name.to_string(), unread))?;
            row.push(Cell::Text(&text));
        }
        Ok(Key::of(row.row(), &(0..fields.len()).collect::<Vec<_>>()))
    }
}

enum CellOf {
    Null,
    Absent,
    Text(Vec<u8>),
}

impl CellOf {
    fn cell(&self) -> Cell<'_> {
        match self {
            CellOf::Null => Cell::Null,
            CellOf::Absent => Cell::Absent,
            CellOf::Text(text) => Cell::Text(text),
        }
    }
}

impl Table {
    pub fn new(name: TableName, topic: String, target: SinkTable) -> Table {
        Table { name, topic, target, versions: Vec::new() }
    }

    pub fn target(&self) -> &SinkTable {
        &self.target
    }

    /// The version of a record.
    pub async fn version(
        &mut self,
        shape: &Shape<'_>,
        topics: &Topics,
        sink: &mut PostgresSink,
    ) -> Result<Arc<Version>> {
        if let Some(version) = self.versions.iter().find(|version| version.is_of(shape)) {
            return Ok(version.clone());
        }
        let facts = self.facts(sink).await?;
        let version = Arc::new(self.compile(shape, topics, &facts, sink).await?);
        if self.versions.len() >= VERSIONS_MAX {
            self.versions.remove(0);
        }
        self.versions.push(version.clone());
        Ok(version)
    }

    /// Any version, for what is about no row.
    pub async fn any_version(&mut self, topics: &Topics, sink: &mut PostgresSink) -> Result<Arc<Version>> {
        if let Some(version) = self.versions.last() {
            return Ok(version.clone());
        }
        let facts = self.facts(sink).await?;
        let key = facts.primary_key.as_ref().map(|key| key.columns.clone()).unwrap_or_default();
        let names: Vec<&str> = key.iter().map(String::as_str).collect();
        let shape = Shape { fields: names.clone(), key: names, schema: None };
        Ok(Arc::new(self.compile(&shape, topics, &facts, sink).await?))
    }

    async fn facts(&self, sink: &mut PostgresSink) -> Result<TableFacts> {
        let target = &self.target.table;
        let facts = sink.own_tables(std::slice::from_ref(target)).await?.remove(0);
        facts.ok_or_else(|| {
            let hint = format!("create {target} at the sink with the columns of {}", self.name);
            Error::halt(Code::SinkTable, format!("there is no table {target} at the sink"), hint)
        })
    }

    async fn compile(
        &self,
        shape: &Shape<'_>,
        topics: &Topics,
        facts: &TableFacts,
        sink: &mut PostgresSink,
    ) -> Result<Version> {
        let (mut columns, mut fields) = (Vec::new(), Vec::new());
        for name in &shape.fields {
            let taken = self.target.columns.as_ref().is_none_or(|taken| taken.iter().any(|taken| taken == name));
            if !taken {
                fields.push(None);
                continue;
            }
            let found = column_of(facts, name).ok_or_else(|| self.no_column(name))?;
            let ordinal = shape.key.iter().position(|key| key == name).and_then(|place| u16::try_from(place).ok());
            let column = wanted(found, ordinal);
            let node = shape.schema.map(|(_, row)| row.fields.iter().find(|node| node.field.as_deref() == Some(name)));
            let encoding = match node {
                Some(Some(node)) => encoding(node, &column, &topics.modes),
                Some(None) => Err(Unread::Unfit),
                None => plain_encoding(&column, &topics.modes),
            };
            let encoding = encoding.map_err(|unread| self.unread(name, unread))?;
            if !topics.same_types && changes(&encoding, &column, shape.schema.is_some()) {
                return Err(self.changes(&column).into());
            }
            fields.push(Some((columns.len(), encoding)));
            columns.push(column);
        }
        let relation = relation(&self.name, &self.topic, columns, facts);
        let table = WantedTable::of(&relation, &self.target)?;
        if let Some(missing) = shape.key.iter().find(|key| !shape.fields.contains(*key)) {
            return Err(self.invalid(format!("its key has {missing}, which no row has")).into());
        }
        let plan = sink.plan(std::slice::from_ref(&table)).await?.remove(0).repeatable();
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Ok(Version {
            names: owned(&shape.fields),
            key_names: owned(&shape.key),
            schema: shape.schema.map(|(text, _)| text.to_owned()),
            fields,
            key: relation.key_columns(),
            columns: relation.columns.len(),
            plan,
        })
    }

    fn no_column(&self, name: &str) -> Error {
        let target = &self.target;
        let message =
            format!("records of {} have {name}, and table {} at the sink has no such column", self.name, target.table);
        let hint = format!(
            "ALTER TABLE {} ADD COLUMN … at the sink, or columns = […] under [sinks.{}] of the connector",
            target.table.quoted(),
            target.sink
        );
        Error::halt(Code::SinkTable, message, hint)
    }

    fn changes(&self, column: &Column) -> Halt {
        let Column { name, type_name, .. } = column;
        let message = format!(
            "column {name} of table {} at the sink is {type_name}, and records do not say that values come out of it as they are at the source",
            self.target.table
        );
        Halt {
            code: Code::ForeignRecord,
            message,
            facts: vec!["scales, units and rounding go by the column's modifiers".into()],
            hint: "write same_types = true under [topics] if the sink's columns have the source's types with the same modifiers; or schemas = true and a column without modifiers".into(),
        }
    }

    fn invalid(&self, found: String) -> Halt {
        let message = format!("topic {} is not of table {}: {found}", self.topic, self.name);
        Halt {
            code: Code::ForeignRecord,
            message,
            facts: vec![],
            hint: "write topic = \"…\" as Debezium names it".into(),
        }
    }

    /// A value that can't be taken.
    pub fn unread(&self, column: &str, unread: Unread) -> Error {
        let (found, hint) = match unread {
            Unread::Unfit => (
                "is not what its schema or the sink's column says",
                format!(
                    "compare column {column} of {} with the source's, and [topics] with the options of Debezium's connector",
                    self.target.table
                ),
            ),
            Unread::Ambiguous(hint) => ("could mean more than one value", hint.to_owned()),
        };
        Error::halt(Code::ForeignRecord, format!("a value of {} for column {column} {found}", self.name), hint)
    }
}

/// By its name, or by what the converter to Avro makes of it.
fn column_of<'a>(facts: &'a TableFacts, name: &str) -> Option<&'a ColumnFacts> {
    let same = |column: &&ColumnFacts| column.name == name;
    let adjusted = |column: &&ColumnFacts| NameMode::Avro.field(&column.name) == name;
    facts.columns.iter().find(same).or_else(|| {
        let mut like = facts.columns.iter().filter(adjusted);
        let first = like.next();
        first.filter(|_| like.next().is_none())
    })
}

fn wanted(found: &ColumnFacts, key: Option<u16>) -> Column {
    Column {
        name: found.name.clone(),
        type_oid: found.type_oid,
        type_name: found.type_name.clone(),
        typmod: found.typmod,
        kind: found.kind.clone(),
        nullable: !found.not_null,
        default: None,
        key,
        exact: false,
    }
}

fn relation(name: &TableName, topic: &str, columns: Vec<Column>, facts: &TableFacts) -> Relation {
    Relation {
        fingerprint: Fingerprint(0),
        oid: facts.oid,
        name: name.clone(),
        topic: topic.to_owned(),
        partitions: 0,
        format: crate::relation::Format::Json,
        modes: crate::relation::Modes::default(),
        columns,
        avro: None,
        transforms: Vec::new(),
        hidden: Vec::new(),
        composites: facts.composites.clone(),
    }
}
