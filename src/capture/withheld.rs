//! Tables whose existing rows can't be read at the moment, because a right is missing or somebody holds a lock.
//!
//! Nobody else waits for them: the stream goes on, theirs too, and so do loads of all tables but those that reference them,
//! whose rows no sink could take first. They are tried again until they can be read, and then go on by themselves. A right is
//! asked for only when rows are to be read, so that it may be taken away once they were.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::error::{Code, Error, Result};
use crate::postgres::catalog::TableFacts;
use crate::postgres::preflight;
use crate::relation::TableName;
use crate::session::Session;

/// Before somebody who may not read a table, or can't, tries again: a person acts meanwhile, and each try stands in the
/// server's log.
pub const PAUSE: Duration = Duration::from_secs(2);

/// Whether an error of reading rows is one of that table alone, which a grant or the end of somebody's transaction heals.
pub fn is_withheld(error: &Error) -> bool {
    error.code() == Some(Code::NoRight) || crate::postgres::failure::is_lock_timeout(error)
}

/// What a person must type before the table can be read.
pub async fn check_rights(session: &Session, facts: &TableFacts) -> Result<()> {
    if facts.may_select && facts.may_use_schema && !facts.rows_hidden {
        return Ok(());
    }
    let role = crate::postgres::catalog::source_facts(&**session).await?.role;
    preflight::unreadable_rows(&role, facts).into_iter().next().map_or(Ok(()), |halt| Err(halt.into()))
}

/// Why which tables wait.
#[derive(Debug, Default)]
pub struct Withheld {
    parents: HashMap<TableName, BTreeSet<TableName>>,
    why: BTreeMap<TableName, String>,
}

impl Withheld {
    pub fn new(parents: HashMap<TableName, BTreeSet<TableName>>) -> Withheld {
        Withheld { parents, why: BTreeMap::new() }
    }

    /// The table can't be read; those that must wait with it, itself among them.
    pub fn hold(&mut self, table: &TableName, error: &Error) -> BTreeSet<TableName> {
        let why = match error {
            Error::Halt(halt) => format!("{} ({})", halt.message, halt.hint),
            Error::Retry(retry) => retry.doing.clone(),
        };
        if self.why.get(table) != Some(&why) {
            tracing::warn!(%table, why, "existing rows can't be read; the rest goes on, and this is tried again");
        }
        self.why.insert(table.clone(), why);
        let mut waiting = BTreeSet::from([table.clone()]);
        loop {
            let references = |parents: &BTreeSet<TableName>| !parents.is_disjoint(&waiting);
            let found = self.parents.iter().filter(|(_, parents)| references(parents)).map(|(name, _)| name.clone());
            let found: Vec<TableName> = found.filter(|name| !waiting.contains(name)).collect();
            if found.is_empty() {
                return waiting;
            }
            waiting.extend(found);
        }
    }

    /// Rows of it were read.
    pub fn free(&mut self, table: &TableName) {
        if self.why.remove(table).is_some() {
            tracing::info!(%table, "existing rows can be read again");
        }
    }

    /// Nothing is to be read any more.
    pub fn free_all(&mut self) {
        self.why.clear();
    }

    pub fn count(&self) -> usize {
        self.why.len()
    }

    /// In words, why rows of this table can't be read now.
    pub fn of(&self, table: &TableName) -> Option<String> {
        if let Some(why) = self.why.get(table) {
            return Some(why.clone());
        }
        let mut above: Vec<&TableName> = self.parents.get(table).into_iter().flatten().collect();
        let mut met = BTreeSet::new();
        while let Some(parent) = above.pop() {
            if self.why.contains_key(parent) {
                return Some(format!("rows of {parent}, which its rows reference"));
            }
            if met.insert(parent) {
                above.extend(self.parents.get(parent).into_iter().flatten());
            }
        }
        None
    }

    /// In words, what a person or time must do.
    pub fn waiting_for(&self) -> Option<String> {
        let all: Vec<&str> = self.why.values().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(table: &str) -> TableName {
        TableName::new("s", table)
    }

    #[test]
    fn what_references_a_table_waits_with_it_and_nothing_else_does() {
        let of = |table: &str, parents: &[&str]| (name(table), parents.iter().map(|parent| name(parent)).collect());
        let mut withheld = Withheld::new([of("a", &[]), of("b", &["a"]), of("c", &["b", "d"]), of("d", &[])].into());
        let error = Error::halt(Code::NoRight, "role x may not read table s.a", "GRANT SELECT ON s.a TO x");
        let held = |withheld: &mut Withheld, table: &str| {
            let held = withheld.hold(&name(table), &error);
            held.into_iter().map(|name| name.table).collect::<Vec<_>>()
        };
        assert_eq!(held(&mut withheld, "a"), ["a", "b", "c"]);
        assert_eq!(held(&mut withheld, "d"), ["c", "d"]);
        let why = "role x may not read table s.a (GRANT SELECT ON s.a TO x)";
        assert_eq!((withheld.count(), withheld.waiting_for()), (2, Some(format!("{why}; {why}"))));
        assert_eq!(withheld.of(&name("a")).as_deref(), Some(why));
        assert_eq!(withheld.of(&name("b")).as_deref(), Some("rows of s.a, which its rows reference"));
        assert!(withheld.of(&name("c")).is_some_and(|why| why.starts_with("rows of s.")));
        withheld.free(&name("d"));
        withheld.free(&name("a"));
        assert_eq!(withheld.waiting_for(), None);
    }
}
