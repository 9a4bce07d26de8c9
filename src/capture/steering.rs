//! How people steer the reading of existing rows: all of it pauses and goes on, and what topics were to have once more is left
//! as it is.
//!
//! Each is a request in the ledger, so it outlives whoever asked and whoever reads: a pause lasts until somebody ends it, through
//! any number of starts. What a sink is to have can't be left in the middle: it takes no changes of these rows since it saw
//! that they come, so what it holds of them is stale, and it would be called equal.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::answerable::TOPICS;
use super::asks::refused;
use crate::config::Config;
use crate::error::Result;
use crate::ledger::entry::{Body, Request, RequestKind};
use crate::ledger::state::State;
use crate::ledger::topic::{self, APPEND_TIMEOUT, Appender, Reading};
use crate::relation::TableName;

/// All that was written was waited for.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Steer {
    Pause,
    Resume,
    /// Names of tables; none: all that are being read.
    Stop(Vec<String>),
}

/// Reads the ledger, makes the request and writes it; its entry.
pub async fn steer(config: &Arc<Config>, steer: &Steer, asked_by: &str) -> Result<(i64, Request)> {
    let shared = config.clone();
    let state = topic::beside(move || Reading::open(&shared.kafka)?.fold_all()).await?;
    let request = request(steer, &state, asked_by)?;
    let mut appender = Appender::open(&config.kafka)?;
    appender.base = state.base;
    let offset = appender.append_and_wait(Body::Request(request.clone()), APPEND_TIMEOUT).await?;
    appender.close(CLOSE_TIMEOUT);
    Ok((offset, request))
}

/// The request that it becomes.
pub fn request(steer: &Steer, state: &State, asked_by: &str) -> Result<Request> {
    let (kind, tables) = match steer {
        Steer::Pause => (RequestKind::Pause, Vec::new()),
        Steer::Resume => (RequestKind::Resume, Vec::new()),
        Steer::Stop(names) => (RequestKind::Stop, stopped(names, state)?),
    };
    Ok(Request::new(Uuid::new_v4(), kind, TOPICS, tables, asked_by))
}

/// The tables of these names that are to be read no further.
fn stopped(names: &[String], state: &State) -> Result<Vec<TableName>> {
    let mut found: Vec<TableName> = Vec::new();
    let mut open: Vec<(&str, &TableName)> = Vec::new();
    for join in state.open_joins() {
        open.extend(join.request.read().map(|table| (join.request.sink.as_str(), table)));
    }
    open.retain(|(_, table)| names.is_empty() || names.contains(&table.to_string()));
    if let Some(name) = names.iter().find(|name| !open.iter().any(|(_, table)| table.to_string() == **name)) {
        return Err(refused(format!("nothing of {name} is being read"), "name a table as schema.table"));
    }
    for (sink, table) in open {
        if sink != TOPICS {
            let what = format!("sink {sink} takes no changes of rows of {table} until they have come");
            return Err(refused(format!("{what}: it would never be equal again"), "lockstep snapshot pause"));
        }
        if !state.is_had(TOPICS, table) {
            let what = format!("rows of {table} are read for the first time");
            return Err(refused(what, "lockstep snapshot pause; or snapshot = \"never\" in its connector"));
        }
        if !found.contains(table) {
            found.push(table.clone());
        }
    }
    match found.is_empty() {
        true => Err(refused("nothing is being read", "lockstep status")),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::entry::Join;
    use crate::ledger::loaded::Loaded;

    fn join(number: u128, kind: RequestKind, sink: &str, tables: &[&str], done: bool) -> Join {
        let tables = tables.iter().map(|table| TableName::new("public", *table)).collect();
        let request = Request::new(Uuid::from_u128(number), kind, sink, tables, "");
        Join { offset: i64::try_from(number).unwrap(), request, loaded: Loaded::default(), done }
    }

    #[test]
    fn only_what_topics_have_is_left_in_the_middle() {
        let (load, resync) = (RequestKind::Load, RequestKind::Resync);
        let first = join(1, load, TOPICS, &["a", "b"], true);
        let stop = |names: &[&str], joins: &[Join]| {
            let state = State { joins: joins.to_vec(), ..State::default() };
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            request(&Steer::Stop(names), &state, "x").map(|request| request.tables).map_err(|e| e.to_string())
        };
        let again = [first.clone(), join(2, load, TOPICS, &["a"], false), join(3, load, TOPICS, &["a", "b"], false)];
        assert_eq!(stop(&[], &again).unwrap(), ["a", "b"].map(|table| TableName::new("public", table)));
        assert_eq!(stop(&["public.b"], &again).unwrap(), [TableName::new("public", "b")]);
        for (names, joins, why) in [
            (
                &["public.b"][..],
                vec![first.clone(), join(2, load, TOPICS, &["a"], false)],
                "nothing of public.b is being read",
            ),
            (&[], vec![first.clone()], "nothing is being read"),
            (
                &[],
                vec![first.clone(), join(2, load, TOPICS, &["c"], false)],
                "rows of public.c are read for the first time",
            ),
            (
                &[],
                vec![first.clone(), join(2, load, TOPICS, &["a"], false), join(3, resync, "orders", &["d"], false)],
                "sink orders takes no changes of rows of public.d until they have come",
            ),
        ] {
            let error = stop(names, &joins).unwrap_err();
            assert!(error.contains(why) && error.contains("REQUEST_REFUSED"), "{error}");
        }
    }
}
