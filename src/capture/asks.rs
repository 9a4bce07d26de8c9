//! What people ask to be read again, and the requests that it becomes: the same whether it comes from the command line, over
//! HTTP or from the signal table.
//!
//! A table that sinks take is asked for by each of them; one that none takes and that is named, for its topic. A condition is made a range of
//! the key here, against the source as it is and the newest version that the ledger knows: where the two differ the table is
//! about to be read again anyway.
//!
//! Deliberately not here: what a request means behind others (`ledger::within`).

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::answerable::TOPICS;
use super::shape::relation_shape;
use crate::config::{Config, Snapshot, Table};
use crate::error::{Code, Error, Result};
use crate::key::condition::{Bounds, NoRange};
use crate::ledger::entry::{Body, Request, RequestKind};
use crate::ledger::state::State;
use crate::ledger::topic::{self, APPEND_TIMEOUT, Appender, Reading};
use crate::ledger::within::Within;
use crate::postgres::row_key::row_key_of;
use crate::postgres::{borders, catalog};
use crate::relation::TableName;
use crate::session::{self, Session};

/// All that was written was waited for.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads the ledger, makes the requests and writes them; each with its entry.
pub async fn ask(config: &Arc<Config>, ask: &Ask) -> Result<Vec<(i64, Request)>> {
    let shared = config.clone();
    let state = topic::beside(move || Reading::open(&shared.kafka)?.fold_all()).await?;
    // What patterns come to is the reader's to say.
    let routed = state.routed.as_ref().map(|routed| routed.tables.clone()).unwrap_or_default();
    let requests = requests(&config.resolve(&routed).0, &state, ask).await?;
    let mut appender = Appender::open(&config.kafka)?;
    appender.base = state.base;
    let mut written = Vec::new();
    for request in requests {
        written.push((appender.append_and_wait(Body::Request(request.clone()), APPEND_TIMEOUT).await?, request));
    }
    appender.close(CLOSE_TIMEOUT);
    Ok(written)
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// `None`: every table.
    pub table: Option<String>,
    /// `None`: every sink that takes it.
    pub sink: Option<String>,
    /// Only rows with such keys.
    pub condition: Option<String>,
    pub asked_by: String,
}

pub fn refused(message: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::halt(Code::RequestRefused, message, hint)
}

/// The requests, one for each sink; `config` has every table by its name.
async fn requests(config: &Config, state: &State, ask: &Ask) -> Result<Vec<Request>> {
    let (tables, requests) = whole(config, ask)?;
    let (Some(condition), [table]) = (&ask.condition, &tables[..]) else { return Ok(requests) };
    let within = within(config, state, table, condition).await?;
    let narrowed =
        |request: Request| Request { kind: RequestKind::ResyncRange, within: Some(within.clone()), ..request };
    Ok(requests.into_iter().map(narrowed).collect())
}

fn whole<'a>(config: &'a Config, ask: &Ask) -> Result<(Vec<&'a Table>, Vec<Request>)> {
    let sinks: Vec<&str> = config.sinks.iter().map(|sink| sink.name.as_str()).collect();
    if let Some(unknown) = ask.sink.as_deref().filter(|name| !sinks.contains(name)) {
        return Err(refused(format!("there is no sink {unknown}"), format!("one of {}", sinks.join(", "))));
    }
    let is_meant = |table: &&Table| ask.table.as_ref().is_none_or(|name| table.name.to_string() == *name);
    let tables: Vec<&Table> = config.tables.iter().filter(is_meant).collect();
    if tables.is_empty() {
        let known: Vec<String> = config.tables.iter().map(|table| table.name.to_string()).collect();
        let what = ask.table.as_deref().unwrap_or("any table");
        return Err(refused(format!("no connector has {what}"), format!("one of {}", known.join(", "))));
    }
    if ask.condition.is_some() && ask.table.is_none() {
        return Err(refused("a condition speaks of one table's key", "name the table, or leave the condition out"));
    }
    let id = Uuid::new_v4;
    let wanted = sinks.into_iter().filter(|name| ask.sink.as_deref().is_none_or(|only| only == *name));
    let requests = wanted.map(|sink| {
        // What is never read is read for a person who says so by name.
        let meant = tables.iter().filter(|table| ask.table.is_some() || table.snapshot == Snapshot::Initial);
        let taken = meant.filter(|table| table.sinks.iter().any(|target| target.sink == sink));
        let tables = taken.map(|table| TableName::clone(&table.name)).collect();
        Request::new(id(), RequestKind::Resync, sink, tables, &ask.asked_by)
    });
    let mut requests: Vec<Request> = requests.filter(|request| !request.tables.is_empty()).collect();
    // An outbox's rows are events, and who was told of them is told again of nothing.
    let is_alone = |table: &&&Table| table.sinks.is_empty() && table.wire.modes.outbox.is_none();
    let alone = tables.iter().filter(|_| ask.table.is_some() && ask.sink.is_none()).filter(is_alone);
    let alone: Vec<TableName> = alone.map(|table| table.name.clone()).collect();
    if !alone.is_empty() {
        requests.push(Request::new(id(), RequestKind::Load, TOPICS, alone, &ask.asked_by));
    }
    match requests.is_empty() {
        true => {
            Err(refused("no sink that was asked for takes this table", "name a sink that takes it, or another table"))
        }
        false => Ok((tables, requests)),
    }
}

/// The range of the table's key that a condition means.
async fn within(config: &Config, state: &State, table: &Table, condition: &str) -> Result<Within> {
    let name = &table.name;
    let all = format!("ask for all of {name}");
    let Some(known) = state.newest_of(name) else {
        return Err(refused(format!("nothing of table {name} was read yet"), all));
    };
    let session = session::connect(&config.source.database, &format!("lockstep:{}:ask", config.name)).await?;
    let found = range(&session, table, condition).await;
    session.close().await;
    let (oid, key, range) = found?;
    if (oid, &key) != (known.oid, &known.row_key()) {
        return Err(refused(format!("the key of table {name} is another one than when it was read last"), all));
    }
    let types = key.into_iter().map(|(_, type_oid)| type_oid).collect();
    Ok(Within { relation: known.fingerprint, types, ranges: vec![range] })
}

/// The table's OID, its key by name and type, and the range.
async fn range(
    session: &Session,
    table: &Table,
    condition: &str,
) -> Result<(u32, Vec<(String, u32)>, crate::key::KeyRange)> {
    let name = &table.name;
    let facts = catalog::table_facts(&**session, std::slice::from_ref(name)).await?.remove(0);
    let facts = facts.ok_or_else(|| refused(format!("table {name} is not there"), "lockstep check"))?;
    let key = row_key_of(&facts, relation_shape(table).key)?;
    let columns = key.iter().map(|&i| &facts.columns[i]);
    let names: Vec<&str> = columns.clone().map(|column| column.name.as_str()).collect();
    let no_range = |NoRange(why): NoRange| {
        let (what, hint) = why.split_once("; ").unwrap_or((&why, "ask for all of the table"));
        refused(format!("{condition:?} is no range of the key of {name}: {what}"), hint)
    };
    let bounds = Bounds::parse(condition, &names).map_err(no_range)?;
    let range = borders::key_range(&**session, &facts, &key, &bounds).await?.map_err(no_range)?;
    Ok((facts.oid, columns.map(|column| (column.name.clone(), column.type_oid)).collect(), range))
}
