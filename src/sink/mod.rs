//! Sinks: databases that Lockstep writes. This file is the contract; [`postgres::PostgresSink`] is the one engine there is.
//!
//! What a sink promises its driver:
//! - **One transaction.** Between [`begin`](postgres::PostgresSink::begin) and [`commit`](postgres::PostgresSink::commit)
//!   everything written is one transaction of the sink's database, together with the move of the progress row. It becomes
//!   visible whole or not at all.
//! - **Compare-and-set.** `begin` moves the progress row from exactly what the driver read. A row that says something else is
//!   [`Failure::OwnershipLost`]: another worker owns the sink, nothing was written.
//! - **Nothing is remembered across connections.** A new connection starts with
//!   [`take_over`](postgres::PostgresSink::take_over), which waits for a predecessor's open transaction and reads the row as
//!   it then is. That is also how an unknown outcome of a commit is found out.
//! - **Rows are counted.** A statement that reaches fewer rows than it names is `SINK_DIVERGED`; nothing is repaired on the
//!   quiet. Only a delete may come late, where an ON DELETE action of the sink could have taken the row. A new row that is there
//!   already is overwritten, since what it then holds is the source's; where new rows go by COPY that shows, and is warned of and
//!   counted ([`Counts::overwritten`]).
//! - **Absent columns are never written**, and no row is made with one.
//! - **A value is stored exactly or refused.** Values are cast to the column's type without its modifier, so that the
//!   assignment checks length and scale; what the type would round or cut is found by
//!   [`preflight`](postgres::PostgresSink::preflight) beforehand.
//! - **No value in an error.** Messages name table, column and constraint.
//!
//! A plan is made from the sink's catalog as it then is. A column that its owner narrows later may round values without an
//! error, so the driver plans again every some seconds; [`plan`](postgres::PostgresSink::plan) halts on what no longer fits.
//!
//! What the driver promises: one owner per sink, calls one after the other, each awaited to its end. Dropping a call half way
//! leaves the transaction open; then the sink is to be dropped too. After any failure the transaction is over or is ended by
//! [`rollback`](postgres::PostgresSink::rollback); `commit` after a failure is a bug and panics.
//!
//! A table without a key is written by whole rows (`keyless`): n equal rows are n rows.

pub mod catalog;
pub mod circles;
pub mod composites;
pub mod confine;
mod direct;
mod encode;
pub mod evolve;
pub mod fit;
pub mod foreign_keys;
mod keyless;
pub mod labels;
pub mod lease;
pub mod park;
pub mod postgres;
pub mod progress;
mod range;
pub mod refusal;
pub mod sql;
pub mod stored;
mod uniques;
mod write;

use crate::config::{self, OnMissing, Truncate};
use crate::error::{Code, Error, Halt};
use crate::relation::{Column, Composite, Relation, TableName};

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
    /// The same of a unique or exclusion constraint. Worth a try with [`park`](postgres::PostgresSink::park) first.
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
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedColumn {
    /// Place of the column in the relation, and so in its rows.
    pub index: usize,
    pub column: Column,
}

impl WantedTable {
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
        let columns: Vec<_> = columns.map(|(index, column)| WantedColumn { index, column: column.clone() }).collect();
        let held = confine::held(relation, &target.table, &columns)?;
        let (source, table) = (relation.name.clone(), target.table.clone());
        let (hidden, composites, truncate) = (relation.hidden.clone(), relation.composites.clone(), target.truncate);
        let skips_missing = target.on_missing == OnMissing::Skip;
        Ok(WantedTable { source, table, columns, hidden, composites, truncate, skips_missing, held })
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
