//! The source's tables as they change under a reader: looked at, read again, followed to their ends.
//!
//! What a difference means is said elsewhere (`looks`, `departures`, `routing`); here it becomes requests in the ledger, or the
//! end of this reader where the next one has other tables.

use std::collections::HashMap;

use uuid::Uuid;

use super::{Core, Looked, TOPICS, VISIBLE_TIMEOUT};
use crate::capture::looks::Finding;
use crate::capture::{routing, start};
use crate::config::{LeftOut, Snapshot};
use crate::error::{Code, Error, Halt, Result};
use crate::ledger::entry::{Body, Request, RequestKind};
use crate::look::Look;
use crate::postgres::pgoutput::RelationBody;
use crate::postgres::{look, slot};
use crate::relation::{TableName, quote_identifier};
use crate::transform::Shape;

impl Core {
    /// The routed table that a RELATION message is of. Looks at it too: what its rows may no longer be is asked for before
    /// the first of the rows that follow counts.
    pub(super) async fn table_of(&mut self, body: &RelationBody) -> Result<Option<TableName>> {
        let routed = self.routed();
        let named = TableName::new(body.schema.clone(), body.table.clone());
        let mut candidates: Vec<TableName> = self.looks.of_oid(body.oid).cloned().chain([named.clone()]).collect();
        candidates.dedup();
        candidates.retain(|name| routed.contains(name) && !self.departures.has(name));
        let unknown = !routed.contains(&named) && self.config.is_by_pattern(&named);
        if let Some(transaction) =
            self.transaction.filter(|transaction| transaction.take && (unknown || !candidates.is_empty()))
        {
            // It may have changed the table, or made the very types of its rows.
            slot::wait_visible(&*self.session, transaction.xid, VISIBLE_TIMEOUT).await?;
        }
        if unknown && routing::resolve(&self.session, &self.config).await?.published().contains(&named) {
            // The rows that follow are not rows of the table that has had this OID until now.
            self.rerouted = Some(format!("table {named} matches a pattern; a new start reads it"));
            return Ok(None);
        }
        if !candidates.is_empty() {
            let found = look::looks(&*self.session, &self.config.source.publication, &candidates).await?;
            // One that is gone has its last rows in the stream.
            let there = candidates.into_iter().zip(found).filter(|(_, found)| found.is_some());
            self.look(there.collect()).await?;
        }
        if routed.contains(&named) && self.looks.of_oid(body.oid).any(|name| *name == named) {
            // Of several names that it has had, the one that it had then.
            return Ok(Some(named));
        }
        let by_oid = self.looks.of_oid(body.oid).find(|name| routed.contains(name)).cloned();
        Ok(by_oid.or_else(|| routed.contains(&named).then_some(named)))
    }

    pub(super) fn routed(&self) -> Vec<TableName> {
        self.config.tables.iter().map(|table| table.name.clone()).collect()
    }

    /// Compares tables with what was known of them.
    pub(super) async fn look(&mut self, looked: Looked) -> Result<()> {
        let mut due: Vec<(TableName, String)> = Vec::new();
        let looked = self.shaped(looked);
        let moved = |(name, now): &(TableName, Option<Look>)| {
            let (mark, found) = (self.marks.get(name)?, now.as_ref()?.published.as_ref()?);
            (mark != found).then(|| name.clone())
        };
        if let Some(name) = looked.iter().find_map(moved) {
            let what = format!("the publication of table {name} was changed; a new start writes its filter");
            return Err(Error::retry_plain(what));
        }
        for (table, now) in looked {
            if now.is_some() && self.departures.has(&table) {
                return Err(Error::retry_plain(format!(
                    "table {table} was made again; a new start publishes it and reads it"
                )));
            }
            match self.looks.compare(&table, now.as_ref()) {
                None => {}
                Some(Finding::Reread(_)) if self.lost_key(&table, now.as_ref()) => {
                    tracing::warn!(%table, "it has no key any more: its records have none, and its rows can only be inserted");
                }
                Some(Finding::Reread(why)) => due.push((table.clone(), why)),
                Some(Finding::Leaves(came)) if look::are_empty(&*self.session, &came).await? => {
                    tracing::info!(%table, partitions = came.len(), "new partitions, and empty: nothing to read");
                }
                Some(Finding::Leaves(_)) => due.push((table.clone(), "partitions with rows were attached".to_owned())),
                Some(Finding::Unpublished) => {
                    let what = format!("table {table} was made again; a new start publishes it and reads it");
                    return Err(Error::retry_plain(what));
                }
                Some(Finding::Gone(_)) if self.departures.has(&table) => continue,
                Some(Finding::Gone(oid)) => {
                    // Between a DROP and a CREATE there is a moment. The next look is soon.
                    if self.gone.insert(table.clone()) {
                        continue;
                    }
                    let name = look::name_of(&*self.session, oid).await?;
                    if !self.config.is_by_pattern(&table) {
                        return Err(gone(&table, name.as_ref()));
                    }
                    self.depart(&table, name).await?;
                }
            }
            self.gone.remove(&table);
            if let Some(now) = now {
                self.looks.see(table, now);
            }
        }
        self.reread(&due)
    }

    /// What was found, with the shapes that connectors lay over it.
    fn shaped(&self, looked: Looked) -> Looked {
        let shaped = self.config.tables.iter().filter(|table| !table.shape.is_plain());
        let shaped: HashMap<&TableName, &Shape> = shaped.map(|table| (&table.name, &table.shape)).collect();
        let with_shape = |(name, now): (TableName, Option<Look>)| {
            let shape = shaped.get(&name);
            let filter = shape.and_then(|shape| shape.filter.clone());
            let now = now.map(|now| Look { shape: shape.and_then(|shape| shape.digest()), filter, ..now });
            (name, now)
        };
        looked.into_iter().map(with_shape).collect()
    }

    /// Whether nothing happened to a table of a topic alone but that its key is gone, which changes no row.
    fn lost_key(&self, table: &TableName, now: Option<&Look>) -> bool {
        let alone = self.config.table(table).is_some_and(|table| table.sinks.is_empty());
        let (Some(known), Some(now)) = (self.looks.known().get(table), now) else { return false };
        let kept = Look { key: known.key.clone(), ..now.clone() };
        alone && now.key.is_empty() && known.difference(&kept).is_none()
    }

    /// A table of a pattern is gone. Under another name that no pattern means it would be published for nobody.
    async fn depart(&mut self, table: &TableName, renamed: Option<TableName>) -> Result<()> {
        if let Some(name) = renamed {
            let found =
                look::looks(&*self.session, &self.config.source.publication, std::slice::from_ref(&name)).await?;
            if found.iter().flatten().any(|look| look.published.is_some()) {
                return Err(renamed_away(table, &name, &self.config.source.publication));
            }
        }
        tracing::info!(%table, "the table is gone; it is followed to its end, copies of it stay as they are then");
        let end = slot::insert_lsn(&*self.session).await?;
        self.departures.leave(table.clone(), end);
        Ok(())
    }

    /// Lets go of tables of which everything is told.
    pub(super) fn let_go(&mut self) -> Result<()> {
        for table in self.departures.passed(self.machine.read_closed()) {
            tracing::info!(%table, "a table that is gone was followed to its end");
            self.order.retain(|name| *name != table);
            self.loader.let_go(&table);
            if self.state.joined(TOPICS).contains(&table) {
                let asked_by = start::application_name(&self.config);
                let request = Request::new(Uuid::new_v4(), RequestKind::Leave, TOPICS, vec![table], asked_by);
                self.append(Body::Request(request))?;
            }
            // The base says so to the sinks.
            self.base_soon = true;
        }
        Ok(())
    }

    /// Says of each table once that it is left out.
    pub(super) fn note_left_out(&mut self, left_out: Vec<LeftOut>) {
        for table in left_out.iter().filter(|table| !self.left_out.contains(table)) {
            tracing::warn!("{table}");
        }
        self.left_out = left_out;
    }

    /// Says of each partition once that the application can't change its rows.
    pub(super) fn note_unfit(&mut self, unfit: Vec<Halt>) {
        for halt in unfit.iter().filter(|halt| !self.unfit.contains(halt)) {
            tracing::warn!("{halt}");
        }
        self.unfit = unfit;
    }

    /// Asks for the tables on behalf of every sink that has them.
    pub(super) fn reread(&mut self, due: &[(TableName, String)]) -> Result<()> {
        // Its rows are events, and who was told of them is told again of nothing.
        let (due, outboxes): (Vec<_>, Vec<_>) = due.iter().cloned().partition(|(table, _)| !self.is_outbox(table));
        for (table, why) in &outboxes {
            tracing::info!(%table, why, "an outbox is not read again");
        }
        // Of what a person chose not to have read only what is just being read all the same begins anew.
        let (unread, due): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|(table, _)| self.is_read_once(table) && !self.loader.remembers(table));
        for (table, why) in &unread {
            tracing::warn!(%table, why, "rows may have changed without a trace in the stream; snapshot of its connector leaves them unread");
        }
        for (table, why) in &due {
            tracing::warn!(%table, why, "rows may have changed without a trace in the stream; reading the table again");
        }
        // What is being loaded is asked for by itself, so that its load answers that too.
        let (loading, others): (Vec<_>, Vec<_>) =
            due.iter().cloned().partition(|(table, _)| self.loader.remembers(table));
        self.ask_again(&others)?;
        let requests = self.ask_again(&loading)?;
        for (table, _) in &due {
            // What was read of it so far is of another table, or under another key.
            self.begin_anew(table, &requests);
        }
        if !due.is_empty() || !unread.is_empty() {
            // A base soon, so that a reader which dies does not leave the same difference to be found again.
            self.base_soon = true;
        }
        Ok(())
    }

    /// A request for each sink that has some of the tables: its sink and its id.
    fn ask_again(&mut self, due: &[(TableName, String)]) -> Result<Vec<(String, Uuid)>> {
        let tables: Vec<TableName> = due.iter().map(|(table, _)| table.clone()).collect();
        let mut asked = Vec::new();
        for (sink, tables) in self.state.sinks_of(&tables) {
            let whys = due.iter().filter(|(table, _)| tables.contains(table)).map(|(_, why)| why.as_str());
            let asked_by = format!("source: {}", whys.collect::<Vec<_>>().join("; "));
            let id = Uuid::new_v4();
            asked.push((sink.clone(), id));
            self.append(Body::Request(Request::new(id, RequestKind::Resync, sink, tables, asked_by)))?;
        }
        Ok(asked)
    }

    /// Its connector says that its rows are never read, or told of once.
    fn is_read_once(&self, table: &TableName) -> bool {
        self.config.table(table).is_some_and(|table| table.snapshot != Snapshot::Initial)
    }

    fn is_outbox(&self, table: &TableName) -> bool {
        self.config.table(table).is_some_and(|table| table.wire.modes.outbox.is_some())
    }
}

fn renamed_away(table: &TableName, name: &TableName, publication: &str) -> Error {
    let (quoted, publication) = (name.quoted(), quote_identifier(publication));
    Error::halt(
        Code::RelationChanged,
        format!("table {table} was renamed to {name}, which no pattern means"),
        format!("ALTER TABLE {quoted} RENAME TO {}", quote_identifier(&table.table)),
    )
    .fact(format!("or write table = '{name}' into a connector: it is another table then, and loaded as one"))
    .fact(format!("or let go of it: ALTER PUBLICATION {publication} DROP TABLE ONLY {quoted}; copies stay as they are"))
}

fn gone(table: &TableName, renamed: Option<&TableName>) -> Error {
    match renamed {
        Some(name) => Error::halt(
            Code::RelationChanged,
            format!("table {table} was renamed to {name}"),
            format!(
                "ALTER TABLE {} RENAME TO {}, or write table = '{name}' into its connector",
                name.quoted(),
                quote_identifier(&table.table)
            ),
        )
        .fact("its rows are followed by either way: those in between are not lost"),
        None => Error::halt(
            Code::TableMissing,
            format!("table {table} was dropped"),
            format!("make it again, or delete the connector of {table}"),
        )
        .fact("no sink was touched: each holds the rows that it had"),
    }
}
