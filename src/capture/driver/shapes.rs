//! What a RELATION message makes of the rows behind it.
//!
//! The message is older than the catalog, which completes it. Where old rows come whole (REPLICA IDENTITY FULL) it does not even
//! say which columns are the key: that of the catalog may be younger than the rows. A primary key is never NULL, so a row with a
//! NULL in it shows that it was none then. Whole rows need no key: from there on, until the stream names the table's shape again,
//! they are told apart by all that they hold. Nothing is lost by either: a key that moved has the table read again anyway.

use std::sync::Arc;

use super::{ChangeKind, Core};
use crate::capture::emit::Version;
use crate::capture::shape::{self, Shaped};
use crate::config::Table;
use crate::error::Result;
use crate::postgres::catalog::{self, Identity, StreamedRelation, TableFacts};
use crate::postgres::types;
use crate::relation::Relation;
use crate::value::{Cell, Row};

impl Core {
    /// The version of the rows behind a message. `keyed`: the catalog's key may be theirs.
    pub(super) async fn shape_of(&self, table: &Table, message: &StreamedRelation, keyed: bool) -> Result<Shaped> {
        let facts = catalog::table_facts(&*self.session, std::slice::from_ref(&table.name)).await?.remove(0);
        // A table of that name that was made since is not the one whose rows are in the stream.
        let facts = facts.filter(|facts| facts.oid == message.oid);
        let facts = if keyed { facts } else { facts.map(|facts| TableFacts { primary_key: None, ..facts }) };
        let oids: Vec<u32> = message.columns.iter().map(|column| column.type_oid).collect();
        let types = types::types(&*self.session, &oids).await?;
        let rows = shape::relation_shape(table);
        // A catalog that is ahead has forgotten what the message leaves out; the ledger has not.
        let ahead = keyed && !facts.as_ref().is_some_and(|facts| message.is_within(facts));
        let plain = table.shape.is_plain();
        let known = if keyed { self.state.versions_of(message.oid) } else { Vec::new() };
        let mut told = known.iter().filter(|_| ahead);
        if let Some(known) = told.clone().find(|known| plain && message.is_of(known, rows)) {
            return Ok(shape::plain(Relation::clone(known)));
        }
        let key = |known: &Arc<Relation>| known.row_key().into_iter().map(|(name, _)| name).collect();
        let keys: Vec<Vec<String>> = known.iter().map(key).collect();
        let rows = catalog::build_streamed_relation(message, facts.as_ref(), &types, &keys, rows)?;
        let shaped = shape::shaped(table, rows, facts.as_ref(), &self.config.kafka.topic_prefix)?;
        Ok(match told.find(|known| !plain && shape::resembles(&shaped.relation, known)) {
            Some(known) => Shaped { relation: Relation::clone(known), ..shaped },
            None => shaped,
        })
    }

    /// Notes whether the rows behind a message have a key that only the catalog knows.
    pub(super) fn note_whole(&mut self, table: &Table, message: StreamedRelation, version: &Version) {
        let named = !shape::relation_shape(table).key.is_empty();
        if message.identity == Identity::Full && !named && !version.rows.key.is_empty() {
            self.whole.insert(message.oid, message);
        } else {
            self.whole.remove(&message.oid);
        }
    }

    /// Whether a change is older than the key that it was to have.
    pub(super) fn is_older_than_its_key(&self, oid: u32, version: &Version, data: &[u8], kind: ChangeKind) -> bool {
        if self.whole.is_empty() || !self.whole.contains_key(&oid) {
            return false;
        }
        let unnamed = |row: Row<'_>| version.rows.key.iter().any(|&i| i < row.len() && row.get(i) == Cell::Null);
        let (new, old) = (Row::new(data, &self.scratch.new), Row::new(data, &self.scratch.old));
        match kind {
            ChangeKind::Insert | ChangeKind::Update(None) => unnamed(new),
            ChangeKind::Update(Some(_)) => unnamed(new) || unnamed(old),
            ChangeKind::Delete => unnamed(old),
        }
    }

    /// The version without a key, for this row and those behind it.
    pub(super) async fn without_key(&mut self, oid: u32, version: Arc<Version>) -> Result<Arc<Version>> {
        let config = self.config.clone();
        let Some(message) = self.whole.remove(&oid) else { return Ok(version) };
        let Some(table) = config.table(&message.name) else { return Ok(version) };
        tracing::info!(table = %message.name, "rows that are older than their table's key are told apart by all that they hold");
        let shaped = self.shape_of(table, &message, false).await?;
        let version = self.version(shaped).await?;
        self.names.insert(message.name, version.rows.fingerprint);
        self.streamed.insert(oid, version.clone());
        Ok(version)
    }
}
