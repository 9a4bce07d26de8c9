//! Every row of a table in two databases, and in what they differ.
//!
//! Both servers send the rows as text, in the order of the key's bytes (a collation could order the two sides differently), and
//! the two streams are merged. So memory stays flat whatever the size of the table, and one pass finds rows that only one side
//! has as well as columns that differ. Sessions pin the settings that shape a value's text, as the product's own do.
//!
//! The source must be at rest and the sink level with it: each side is one snapshot, but not the same one.

use std::cmp::Ordering;
use std::fmt;
use std::pin::Pin;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use lockstep::session::settings::startup_options;
use tokio_postgres::{Row, RowStream};

use super::services::Database;

/// What is kept and printed; further differences are counted.
const DIFFERENCES_MAX: usize = 20;
/// Characters of a value that are printed.
const VALUE_CHARS_MAX: usize = 60;

/// A table at the source and its copy.
#[derive(Clone, Debug)]
pub struct TablePair {
    /// `schema.table`, quoted as SQL wants it.
    pub source: String,
    pub sink: String,
    /// Columns of the key, in the copy too; empty: rows are told apart by all they hold, and equal ones are counted.
    pub key: Vec<String>,
    /// What is compared; empty: every column of the source's table.
    pub columns: Vec<String>,
}

impl TablePair {
    /// A table that has the same name and columns on both sides.
    pub fn same(table: &str, key: &[&str]) -> TablePair {
        TablePair {
            source: table.to_owned(),
            sink: table.to_owned(),
            key: key.iter().map(|&k| k.to_owned()).collect(),
            columns: Vec::new(),
        }
    }
}

/// What a comparison found.
#[derive(Clone, Debug)]
pub struct Comparison {
    pub table: String,
    /// Rows at the source.
    pub rows: u64,
    pub differences_count: u64,
    /// The first of them.
    pub differences: Vec<Difference>,
}

impl Comparison {
    pub fn is_equal(&self) -> bool {
        self.differences_count == 0
    }

    fn note(&mut self, difference: Difference) {
        self.differences_count += 1;
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(difference);
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} rows, {} differ", self.table, self.rows, self.differences_count)?;
        for difference in &self.differences {
            write!(f, "\n  {difference}")?;
        }
        let more = self.differences_count.saturating_sub(self.differences.len() as u64);
        if more > 0 {
            write!(f, "\n  … and {more} more")?;
        }
        Ok(())
    }
}

/// One row in which two databases differ; `key` as `(1, EUR)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    OnlyAtSource { key: String },
    OnlyAtSink { key: String },
    Columns { key: String, columns: Vec<ColumnDifference> },
}

/// A column's text on both sides; `None` is NULL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnDifference {
    pub column: String,
    pub source: Option<String>,
    pub sink: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::OnlyAtSource { key } => write!(f, "{key} is missing at the sink"),
            Difference::OnlyAtSink { key } => write!(f, "{key} is only at the sink"),
            Difference::Columns { key, columns } => {
                write!(f, "{key} differs:")?;
                for ColumnDifference { column, source, sink } in columns {
                    write!(f, " {column}: source {}, sink {};", shown(source), shown(sink))?;
                }
                Ok(())
            }
        }
    }
}

fn shown(value: &Option<String>) -> String {
    let Some(text) = value else { return "NULL".into() };
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
    }
}

/// Compares one table.
pub async fn compare(source: &Database, sink: &Database, table: &TablePair) -> Result<Comparison> {
    let columns = match table.columns.is_empty() {
        true => columns(source, &table.source).await?,
        false => table.columns.clone(),
    };
    let key = match table.key.is_empty() {
        true => vec![format!("ROW({})", columns.join(", "))],
        false => table.key.clone(),
    };
    let (mut left, mut right) = tokio::try_join!(
        Rows::open(source, &table.source, &key, &columns),
        Rows::open(sink, &table.sink, &key, &columns),
    )?;
    let mut found = Comparison { table: table.source.clone(), rows: 0, differences_count: 0, differences: Vec::new() };
    loop {
        let order = match (&left.row, &right.row) {
            (None, None) => return Ok(found),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(l), Some(r)) => left.key(l).cmp(&right.key(r)),
        };
        if order != Ordering::Greater {
            found.rows += 1;
        }
        match (order, &left.row, &right.row) {
            (Ordering::Less, Some(l), _) => found.note(Difference::OnlyAtSource { key: left.key_shown(l) }),
            (Ordering::Greater, _, Some(r)) => found.note(Difference::OnlyAtSink { key: right.key_shown(r) }),
            (_, Some(l), Some(r)) => {
                if let Some(difference) = differing(&left, l, r, &columns) {
                    found.note(difference);
                }
            }
            _ => unreachable!("a side that is first has a row"),
        }
        if order != Ordering::Greater {
            left.advance().await?;
        }
        if order != Ordering::Less {
            right.advance().await?;
        }
    }
}

fn differing(left: &Rows, l: &Row, r: &Row, columns: &[String]) -> Option<Difference> {
    let keys = left.keys;
    let text = |row: &Row, i: usize| row.get::<_, Option<&str>>(keys + i).map(str::to_owned);
    let differing: Vec<ColumnDifference> = (0..columns.len())
        .filter(|&i| l.get::<_, Option<&str>>(keys + i) != r.get::<_, Option<&str>>(keys + i))
        .map(|i| ColumnDifference { column: columns[i].clone(), source: text(l, i), sink: text(r, i) })
        .collect();
    (!differing.is_empty()).then(|| Difference::Columns { key: left.key_shown(l), columns: differing })
}

/// The columns of a table that hold values of their own; generated ones are the sink's own business.
async fn columns(database: &Database, table: &str) -> Result<Vec<String>> {
    let client = database.connect().await?;
    let sql = "SELECT quote_ident(attname) FROM pg_attribute
                WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
                ORDER BY attnum";
    let rows = client.query(sql, &[&table]).await.with_context(|| format!("reading the columns of {table}"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// One side: a stream of rows and the row at its head. First the key's columns, then those that are compared, all as text.
struct Rows {
    keys: usize,
    stream: Pin<Box<RowStream>>,
    row: Option<Row>,
    // The stream ends when its client does.
    _client: tokio_postgres::Client,
}

impl Rows {
    async fn open(database: &Database, table: &str, key: &[String], columns: &[String]) -> Result<Rows> {
        let client = database.connect_with(&startup_options(&[])).await?;
        let keys = key.iter().map(|column| format!("{column}::text"));
        // What the type's output function prints, which is what travels. A cast can be something else: `true` for `t`, char(n)
        // without its padding, xml with a declaration that Postgres never prints. IS NULL is true of a row of NULLs.
        let values = columns.iter().map(|column| format!("CASE num_nulls({column}) WHEN 0 THEN concat({column}) END"));
        let texts = keys.chain(values);
        // By bytes in UTF-8, whatever the database's encoding.
        let order = key.iter().map(|column| format!("convert_to({column}::text, 'UTF8')"));
        let sql = format!(
            "SELECT {} FROM {table} ORDER BY {}",
            texts.collect::<Vec<_>>().join(", "),
            order.collect::<Vec<_>>().join(", ")
        );
        let none: [&str; 0] = [];
        let stream = client.query_raw(&sql, none).await.with_context(|| format!("{}: {sql}", database.name))?;
        let mut rows = Rows { keys: key.len(), stream: Box::pin(stream), row: None, _client: client };
        rows.advance().await?;
        Ok(rows)
    }

    async fn advance(&mut self) -> Result<()> {
        self.row = self.stream.try_next().await?;
        Ok(())
    }

    fn key<'r>(&self, row: &'r Row) -> Vec<&'r [u8]> {
        (0..self.keys).map(|i| row.get::<_, Option<&str>>(i).unwrap_or_default().as_bytes()).collect()
    }

    fn key_shown(&self, row: &Row) -> String {
        let parts: Vec<&str> = (0..self.keys).map(|i| row.get::<_, Option<&str>>(i).unwrap_or("NULL")).collect();
        format!("({})", parts.join(", "))
    }
}
