//! Sinks: databases that Lockstep writes. [`Sink`] is the contract. Here is what its calls speak of, whatever the engine: what is
//! wanted of a table, rows that were counted, why a call came to nothing.
//!
//! | engine | where |
//! |---|---|
//! | Postgres | [`postgres`] and the files beside this one that it names |
//! | MariaDB | [`mariadb`] |
//! | SQLite | [`sqlite`] |

pub mod catalog;
pub mod circles;
pub mod composites;
pub mod confine;
mod contract;
mod direct;
mod encode;
pub mod evolve;
pub mod fit;
pub mod foreign_keys;
mod keyless;
pub mod labels;
pub mod lacks;
pub mod lease;
pub mod letters;
pub mod mariadb;
pub mod park;
pub mod partition_progress;
pub mod postgres;
pub mod progress;
mod range;
pub mod refusal;
pub mod rows;
pub mod soft;
pub mod sql;
pub mod sqlite;
mod step;
pub mod stored;
mod uniques;
pub mod values;
mod write;

pub use contract::Sink;

use crate::apply::fold::Fold;
use crate::config::{self, Engine, OnMissing, Truncate};
use crate::error::{Code, Error, Halt};
use crate::relation::{Column, Composite, Relation, TableName};
use crate::session;

/// Runs the same for whatever engine a sink is of, under the name `S`: the one place that knows which there are.
macro_rules! for_engine {
    ($sink:expr, $S:ident => $run:expr) => {
        match $sink.engine {
            $crate::config::Engine::Postgres(_) => {
                type $S = $crate::sink::postgres::PostgresSink;
                $run
            }
            $crate::config::Engine::MariaDb(_) => {
                type $S = $crate::sink::mariadb::MariaDbSink;
                $run
            }
            $crate::config::Engine::Sqlite(_) => {
                type $S = $crate::sink::sqlite::SqliteSink;
                $run
            }
        }
    };
}
pub(crate) use for_engine;

/// Names a sink's database in messages. Never holds a secret.
pub fn place(engine: &Engine) -> String {
    match engine {
        Engine::Postgres(database) | Engine::MariaDb(database) => session::place(database),
        Engine::Sqlite(file) => sqlite::place(file),
    }
}

/// What `preflight` found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Each must be mended before anything is written.
    pub halts: Vec<Halt>,
    /// Worth knowing: triggers that will fire.
    pub notes: Vec<String>,
}

/// Why a call on a sink came to nothing. Whatever it is, nothing of the open transaction stays, except where the outcome is
/// unknown.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The progress row is not what this worker read or wrote last: another one owns the sink. Go to standby.
    #[error("another worker has taken over the sink")]
    OwnershipLost,
    /// The connection broke while the commit was under way: it may have happened. Connect again and take over.
    #[error("the outcome of the commit is unknown")]
    OutcomeUnknown(#[source] Error),
    /// A constraint refused the rows in the order in which the net effect writes them. Worth one more try with each change
    /// written by itself, in order; if that is refused too, it is this halt.
    #[error(transparent)]
    Constraint(Box<Halt>),
    /// A foreign key refused the changes. While tables are under load the rows that it misses, or that are in its way, may be
    /// among what is still to come.
    #[error(transparent)]
    Reference(Box<Halt>),
    /// The same of a unique or exclusion constraint. Worth a try with [`park`](Sink::park) first.
    #[error(transparent)]
    Unique(Box<Halt>),
    /// A table needs columns or attributes before the transaction begins: see [`circles`].
    #[error("the sink's table is given its columns ahead of the rows")]
    Ahead(Box<Ahead>),
    #[error(transparent)]
    Error(#[from] Error),
}

/// What is to be run before a transaction is tried again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ahead {
    pub wanted: WantedTable,
    pub steps: Vec<String>,
}

impl From<Halt> for Failure {
    fn from(halt: Halt) -> Failure {
        Failure::Error(halt.into())
    }
}

impl From<Failure> for Error {
    /// For callers that have no second way to try.
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::OwnershipLost => Error::retry_plain("another worker has taken over the sink"),
            Failure::Ahead(_) => Error::retry_plain("the sink's table is given its columns ahead of the rows"),
            Failure::OutcomeUnknown(error) | Failure::Error(error) => error,
            Failure::Constraint(halt) | Failure::Reference(halt) | Failure::Unique(halt) => Error::Halt(halt),
        }
    }
}

pub type Outcome<T> = std::result::Result<T, Failure>;

/// Rows written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub inserted: u64,
    pub updated: u64,
    pub moved: u64,
    pub deleted: u64,
    /// Tables emptied.
    pub truncated: u64,
    /// Of the inserted: rows that were there already, which nobody but us should have written.
    pub overwritten: u64,
    /// Changes left out, because the sink never had their rows.
    pub missing: u64,
    /// Records that were parked.
    pub parked: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Counts) {
        self.inserted += more.inserted;
        self.updated += more.updated;
        self.moved += more.moved;
        self.deleted += more.deleted;
        self.truncated += more.truncated;
        self.overwritten += more.overwritten;
        self.missing += more.missing;
        self.parked += more.parked;
    }
}

/// A column that `target` names and none of the versions has.
pub fn missing<'a>(target: &'a config::SinkTable, versions: &[&Relation]) -> Option<&'a String> {
    let has = |name: &String| versions.iter().any(|version| version.columns.iter().any(|column| column.name == *name));
    target.columns.iter().flatten().find(|name| !has(name))
}

/// What a sink takes of one relation version, and into which table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedTable {
    /// The table at the source, for messages and hints.
    pub source: TableName,
    /// The table at the sink.
    pub table: TableName,
    /// In the relation's order; the key's are among them.
    pub columns: Vec<WantedColumn>,
    /// Columns that the source's table has and this version does not tell of.
    pub hidden: Vec<String>,
    /// What its columns' composite types are made of, as far as the version says.
    pub composites: Vec<Composite>,
    pub truncate: Truncate,
    /// Changes of rows that the sink does not have are left out.
    pub skips_missing: bool,
    /// What is the same in all of its rows, and tells them from those of other tables.
    pub held: Vec<confine::Held>,
    /// Place in `columns`, behind the relation's: deleted rows stay and are marked there.
    pub mark: Option<usize>,
    /// Columns of the table's that are computed of the others.
    pub values: Vec<values::WantedValue>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedColumn {
    /// Place of the column in the relation, and so in its rows.
    pub index: usize,
    pub column: Column,
}

impl WantedTable {
    /// Whether anything is written to the column of this name.
    pub fn writes(&self, name: &str) -> bool {
        self.columns.iter().any(|wanted| wanted.column.name == name)
            || self.values.iter().any(|value| value.column == name)
    }

    /// What `target` takes of `relation`. Refused: columns that the relation does not have, a subset without the key.
    pub fn of(relation: &Relation, target: &config::SinkTable) -> Result<WantedTable, Halt> {
        WantedTable::of_version(relation, target, &[relation])
    }

    /// The same of a version that others may have followed. A column that it lacks is missing only if all of the `newest` lack it too:
    /// before the column was made its rows could not have it, and they are read again for it.
    pub fn of_version(
        relation: &Relation,
        target: &config::SinkTable,
        newest: &[&Relation],
    ) -> Result<WantedTable, Halt> {
        let halt = |message: String, hint: String| Halt { code: Code::Config, message, facts: vec![], hint };
        let edit = || format!("edit columns under [sinks.{}] of the connector of {}", target.sink, relation.name);
        let wanted = |column: &Column| target.columns.as_ref().is_none_or(|names| names.contains(&column.name));
        if let Some(missing) = missing(target, &[newest, &[relation]].concat()) {
            return Err(halt(format!("table {} has no column {missing}", relation.name), edit()));
        }
        if let Some(key) = relation.columns.iter().find(|column| column.key.is_some() && !wanted(column)) {
            return Err(halt(
                format!("sink {} leaves out {}, a column of the key of {}", target.sink, key.name, relation.name),
                edit(),
            ));
        }
        let columns = relation.columns.iter().enumerate().filter(|(_, column)| wanted(column));
        let mut columns: Vec<_> =
            columns.map(|(index, column)| WantedColumn { index, column: column.clone() }).collect();
        let held = confine::held(relation, &target.table, &columns)?;
        let values = values::wanted(relation, target, &columns, &[newest, &[relation]].concat())?;
        let mark = soft::mark(relation, target, &mut columns)?;
        let (source, table) = (relation.name.clone(), target.table.clone());
        let (hidden, composites, truncate) = (relation.hidden.clone(), relation.composites.clone(), target.truncate);
        let skips_missing = target.on_missing == OnMissing::Skip;
        Ok(WantedTable { source, table, columns, hidden, composites, truncate, skips_missing, held, mark, values })
    }

    /// Nothing folded yet, for this table.
    pub fn fold(&self) -> Fold {
        let relation = |place: usize| self.columns[place].index;
        let all = (0..self.columns.len()).map(relation).collect();
        let key = self.key().into_iter().map(relation).collect();
        let exact = self.key().into_iter().all(|place| rows::has_one_text(&self.columns[place].column));
        let mark = self.mark.map(|mark| (relation(mark), exact));
        Fold::new(self.table.clone(), all, key, mark, self.skips_missing)
    }

    /// Which rows it is of: two with the same write the same rows.
    pub fn rows_of(&self) -> (&TableName, &[confine::Held]) {
        (&self.table, &self.held)
    }

    /// Rows are told apart by all they hold.
    pub fn is_keyless(&self) -> bool {
        self.columns.iter().all(|column| column.column.key.is_none())
    }

    /// Places in `columns` of the key's columns, in key order; empty for a table without a key.
    pub fn key(&self) -> Vec<usize> {
        let mut key: Vec<(u16, usize)> =
            self.columns.iter().enumerate().filter_map(|(i, c)| c.column.key.map(|ordinal| (ordinal, i))).collect();
        key.sort_unstable();
        key.into_iter().map(|(_, i)| i).collect()
    }
}

/// The example is compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../../docs/writing-a-sink.md")]
struct WritingASink;
