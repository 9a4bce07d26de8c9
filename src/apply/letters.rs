//! Which rows of a sink have letters ([`crate::sink::letters`]), and what that means for the records that come next. Pure.
//!
//! The rule for a row with letters, whoever writes it:
//! - a record that says all of it (every column, or that it is gone) makes it right whatever was parked before: it is written, as
//!   the newest state of the row, and the letters are settled with it;
//! - a record without all columns stands on what was parked, so it is parked behind it, in order;
//! - a chunk of its range, and a TRUNCATE, settle them too.
//!
//! What is known here is what the sink's table of letters says, as of the moment at which the row's partition was taken or held, and
//! what this writer did since: nobody else parks for the partition meanwhile.

use std::collections::{HashMap, HashSet};

use crate::error::{Code, Halt};
use crate::relation::TableName;
use crate::sink::letters::{Held, LetterKey, Reason, columns_of, texts_of};

/// A record of a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct At {
    pub table: TableName,
    pub partition: i32,
    pub offset: i64,
}

#[derive(Debug)]
pub struct Letters {
    sink: String,
    /// What the sink refuses is parked.
    pub parks: bool,
    records_max: u64,
    held: HashMap<LetterKey, u64>,
    /// Before the open transaction changed it.
    before: Option<HashMap<LetterKey, u64>>,
    /// Records that the next try parks.
    refused: HashMap<At, Reason>,
    /// By which columns rows of each table are known; `None` until it is asked for, as most writers never do.
    known_by: Option<HashMap<TableName, HashSet<Vec<String>>>>,
}

impl Letters {
    /// None.
    pub fn of(sink: &str, records_max: u64) -> Letters {
        let (held, refused) = (HashMap::new(), HashMap::new());
        Letters { sink: sink.to_owned(), parks: false, records_max, held, before: None, refused, known_by: None }
    }

    /// What the sink says.
    pub fn read(&mut self, held: &[Held]) {
        self.held = held.iter().map(|held| (held.of.clone(), held.letters)).collect();
        (self.before, self.known_by) = (None, None);
    }

    /// Nothing has to be looked up.
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.refused.is_empty()
    }

    pub fn has(&self, of: &LetterKey) -> bool {
        self.held.contains_key(of)
    }

    /// Keys of the rows of a table that have letters.
    pub fn of_table(&self, table: &TableName) -> Vec<LetterKey> {
        self.held.keys().filter(|of| of.table == *table).cloned().collect()
    }

    /// Whether rows of the table have letters that know them by other columns than these: the key is another one by now.
    pub fn is_of_other_key(&mut self, table: &TableName, columns: &[String]) -> bool {
        let known_by = self.known_by.get_or_insert_with(|| {
            let mut known: HashMap<TableName, HashSet<Vec<String>>> = HashMap::new();
            for of in self.held.keys() {
                let names = columns_of(&of.key).into_iter().map(|(name, _)| name).collect();
                known.entry(of.table.clone()).or_default().insert(names);
            }
            known
        });
        known_by.get(table).is_some_and(|known| known.iter().any(|names| names != columns))
    }

    /// The sink refused it: the next try parks it. Refused itself where as much is parked as may be.
    pub fn refuse(&mut self, at: At, reason: Reason) -> Result<(), Box<Halt>> {
        // What the try that is over kept is to be kept by the next one again.
        self.check_room(self.before.as_ref().unwrap_or(&self.held), self.refused.len() as u64)?;
        self.refused.insert(at, reason);
        Ok(())
    }

    pub fn refused(&self, at: &At) -> Option<&Reason> {
        self.refused.get(at)
    }

    /// Whether one more may be parked.
    pub fn room(&self) -> Result<(), Box<Halt>> {
        self.check_room(&self.held, 0)
    }

    fn check_room(&self, held: &HashMap<LetterKey, u64>, more: u64) -> Result<(), Box<Halt>> {
        let held: u64 = held.values().sum();
        if held + more < self.records_max {
            return Ok(());
        }
        Err(Box::new(Halt {
            code: Code::ParkedFull,
            message: format!("sink {} refuses more rows than may be parked of it: {held} records are", self.sink),
            facts: vec![format!("parked_max = {} under [sinks.{}] in lockstep.toml", self.records_max, self.sink)],
            hint: format!("lockstep retry --sink {} --list", self.sink),
        }))
    }

    /// One more, in the open transaction.
    pub fn keep(&mut self, of: LetterKey) {
        self.remember();
        *self.held.entry(of).or_default() += 1;
    }

    /// In the open transaction.
    pub fn settle(&mut self, of: &LetterKey) {
        self.remember();
        self.held.remove(of);
    }

    fn remember(&mut self) {
        self.known_by = None;
        self.before.get_or_insert_with(|| self.held.clone());
    }

    /// The transaction has ended: what it parked is parked.
    pub fn committed(&mut self) {
        self.before = None;
        self.refused.clear();
    }

    /// The transaction came to nothing. What is to be parked by the next try stays.
    pub fn rolled_back(&mut self) {
        if let Some(before) = self.before.take() {
            (self.held, self.known_by) = (before, None);
        }
    }

    /// There is no next try.
    pub fn give_up(&mut self) {
        self.refused.clear();
    }
}

/// Whether the row is known by just these columns.
pub fn is_by(of: &LetterKey, columns: &[String]) -> bool {
    columns_of(&of.key).iter().map(|(name, _)| name).eq(columns)
}

/// The key's texts as ranges compare them.
pub fn key_of(of: &LetterKey) -> Vec<Vec<u8>> {
    texts_of(&of.key).into_iter().map(String::into_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(key: &str) -> LetterKey {
        LetterKey { table: TableName::new("s", "t"), key: key.to_owned() }
    }

    fn at(offset: i64) -> At {
        At { table: TableName::new("s", "t"), partition: 0, offset }
    }

    #[test]
    fn what_a_transaction_did_counts_once_it_is_in() {
        let mut letters = Letters::of("x", 3);
        assert!(letters.is_idle());
        letters.refuse(at(1), Reason::behind()).unwrap();
        letters.keep(of("{\"id\":\"1\"}"));
        letters.rolled_back();
        assert!(!letters.has(&of("{\"id\":\"1\"}")) && letters.refused(&at(1)).is_some(), "the next try parks it");
        letters.keep(of("{\"id\":\"1\"}"));
        letters.committed();
        assert!(letters.has(&of("{\"id\":\"1\"}")) && letters.refused(&at(1)).is_none());
        let (table, id) = (at(1).table, "id".to_owned());
        assert!(!letters.is_of_other_key(&table, std::slice::from_ref(&id)));
        assert!(letters.is_of_other_key(&table, &["code".to_owned()]));
        assert!(is_by(&of("{\"id\":\"1\"}"), std::slice::from_ref(&id)));
        assert!(
            !is_by(&of("{\"id\":\"1\"}"), &["code".to_owned()]) && !is_by(&of("{\"id\":\"1\"}"), &[id.clone(), id])
        );
        letters.settle(&of("{\"id\":\"1\"}"));
        letters.rolled_back();
        assert!(letters.has(&of("{\"id\":\"1\"}")));
        letters.settle(&of("{\"id\":\"1\"}"));
        letters.committed();
        assert!(letters.is_idle());
    }

    #[test]
    fn only_so_many_are_parked() {
        let mut letters = Letters::of("x", 3);
        letters.keep(of("{\"id\":\"1\"}"));
        letters.committed();
        letters.keep(of("{\"id\":\"1\"}"));
        letters.refuse(at(0), Reason::behind()).unwrap();
        letters.rolled_back();
        letters.refuse(at(1), Reason::behind()).unwrap();
        let full = letters.refuse(at(2), Reason::behind()).unwrap_err();
        assert_eq!(full.code, Code::ParkedFull);
        assert!(letters.refused(&at(2)).is_none());
    }
}
