//! What people ask to be read again, and the requests that it becomes: the same whether it comes from the command line, over
//! HTTP or from the signal table.
//!
//! A table that sinks take is asked for by each of them; one that none takes and that is named, for its topic. A condition is made a range of
//! the key here, against the source as it is and the newest version that the ledger knows: where the two differ the table is
//! about to be read again anyway.
//!
//! Deliberately not here: what a request means behind others (`ledger::within`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::answerable::TOPICS;
use super::shape::relation_shape;
use super::signals::Execute;
use crate::config::{Config, Snapshot, Table};
use crate::error::{Code, Error, Result};
use crate::key::condition::{Bounds, NoRange};
use crate::ledger::entry::{Body, Request, RequestKind};
use crate::ledger::state::State;
use crate::ledger::topic::{self, APPEND_TIMEOUT, Appender, Reading};
use crate::ledger::within::Within;
use crate::postgres::row_key::row_key_of;
use crate::postgres::{borders, catalog, named};
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
    let session = session::connect(&config.source.database, &format!("lockstep:{}:ask", config.name)).await?;
    let within = within(&session, state, table, condition).await;
    session.close().await;
    let within = within?;
    Ok(requests.into_iter().map(|request| narrowed(request, &within)).collect())
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
    // What is never read is read for a person who says so by name, and so is what no sink takes.
    let is_named = ask.table.is_some();
    let meant = tables.iter().copied().filter(|table| is_named || is_read(table));
    let meant: Vec<&Table> =
        meant.filter(|table| !table.sinks.is_empty() || (is_named && ask.sink.is_none())).collect();
    let requests = each_once(config, &meant, ask.sink.as_deref(), &ask.asked_by);
    match requests.is_empty() {
        true => {
            Err(refused("no sink that was asked for takes this table", "name a sink that takes it, or another table"))
        }
        false => Ok((tables, requests)),
    }
}

/// A request for each sink that takes some of the tables, and one for the topics of those that none takes.
fn each_once(config: &Config, tables: &[&Table], only: Option<&str>, asked_by: &str) -> Vec<Request> {
    let wanted =
        config.sinks.iter().map(|sink| sink.name.as_str()).filter(|name| only.is_none_or(|only| only == *name));
    let of_sink = |sink: &str| {
        let taken = tables.iter().filter(|table| table.sinks.iter().any(|target| target.sink == sink));
        let tables = taken.map(|table| table.name.clone()).collect();
        Request::new(Uuid::new_v4(), RequestKind::Resync, sink, tables, asked_by)
    };
    // An outbox's rows are events, and who was told of them is told again of nothing.
    let alone = tables.iter().filter(|table| table.sinks.is_empty() && table.wire.modes.outbox.is_none());
    let alone = alone.map(|table| table.name.clone()).collect();
    let topics = Request::new(Uuid::new_v4(), RequestKind::Load, TOPICS, alone, asked_by);
    wanted.map(of_sink).chain([topics]).filter(|request| !request.tables.is_empty()).collect()
}

/// Its existing rows are read without anybody asking for them.
fn is_read(table: &Table) -> bool {
    table.snapshot == Snapshot::Initial
}

/// The requests that a signal of the source asks for: all that can be done of it, or none. `session` is the reader's own, `there`
/// are the tables that the source has.
pub async fn of_signal(
    session: &Session,
    config: &Config,
    there: &[TableName],
    state: &State,
    asked: &Execute,
    asked_by: &str,
) -> Result<Vec<Request>> {
    let known: Vec<&Table> = config.tables.iter().filter(|table| there.contains(&table.name)).collect();
    let mut tables: Vec<&Table> = Vec::new();
    for name in &asked.tables {
        for table in meant(session, &known, name).await? {
            if !tables.iter().any(|known| known.name == table.name) {
                tables.push(table);
            }
        }
    }
    let mut conditions: BTreeMap<&TableName, &str> = BTreeMap::new();
    for condition in &asked.conditions {
        for table in meant(session, &known, &condition.table).await? {
            if !tables.iter().any(|known| known.name == table.name) {
                let what =
                    format!("additional-conditions speak of {}, which is not among its data-collections", table.name);
                return Err(refused(what, "name it there too"));
            }
            if conditions.insert(&table.name, &condition.filter).is_some() {
                let what = format!("additional-conditions speak of {} twice", table.name);
                return Err(refused(what, "write one condition for each table"));
            }
        }
    }
    let whole: Vec<&Table> = tables.iter().copied().filter(|table| !conditions.contains_key(&table.name)).collect();
    let mut requests = each_once(config, &whole, None, asked_by);
    for table in tables.iter().filter(|table| conditions.contains_key(&table.name)) {
        let within = within(session, state, table, conditions[&table.name]).await?;
        requests
            .extend(each_once(config, &[table], None, asked_by).into_iter().map(|request| narrowed(request, &within)));
    }
    match requests.is_empty() {
        true => Err(refused("nobody is to have rows of these tables again", "name a table that is no outbox")),
        false => Ok(requests),
    }
}

/// What a name means: the table of that name, or those whose whole names it matches as a regular expression.
async fn meant<'c>(session: &Session, known: &[&'c Table], name: &str) -> Result<Vec<&'c Table>> {
    if let Some(table) = known.iter().find(|table| table.name.to_string() == *name) {
        return Ok(vec![table]);
    }
    let names: Vec<String> = known.iter().map(|table| table.name.to_string()).collect();
    let found = named::matching(&**session, &names, name).await?;
    let found =
        found.map_err(|why| refused(format!("{name:?} is no regular expression: {why}"), "write schema.table"))?;
    let tables = known.iter().copied().filter(|table| found.contains(&table.name.to_string()) && is_read(table));
    let tables: Vec<&Table> = tables.collect();
    match tables.is_empty() {
        true => Err(refused(format!("no connector has {name}"), format!("one of {}", names.join(", ")))),
        false => Ok(tables),
    }
}

fn narrowed(request: Request, within: &Within) -> Request {
    Request { kind: RequestKind::ResyncRange, within: Some(within.clone()), ..request }
}

/// The range of the table's key that a condition means.
async fn within(session: &Session, state: &State, table: &Table, condition: &str) -> Result<Within> {
    let name = &table.name;
    let all = format!("ask for all of {name}");
    let Some(known) = state.newest_of(name) else {
        return Err(refused(format!("nothing of table {name} was read yet"), all));
    };
    let (oid, key, range) = range(session, table, condition).await?;
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
