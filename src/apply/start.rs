//! How a worker finds its place: the ledger as it is, the row in the sink, who else may own it, and what is asked for before
//! the walk begins.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::apply::machine::{At, Machine};
use crate::apply::routes::{Routes, has_patterns};
use crate::config::{self, Config};
use crate::error::Result;
use crate::kafka::topics;
use crate::ledger::entry::{Body, Request, RequestKind};
use crate::ledger::state::State;
use crate::ledger::taken::Taken;
use crate::ledger::topic::{self, APPEND_TIMEOUT, Appender, Reading};
use crate::relation::TableName;
use crate::sink::Sink;
use crate::sink::lease::Lease;
use crate::sink::progress::{Phase as RowPhase, ProgressRow, Standing, TakeOver};
use crate::status::{self, SinkReporter};

/// How often a standby looks whether the owner is gone.
const STANDBY_INTERVAL: Duration = Duration::from_millis(500);

/// How often a sink that is earlier than the source role looks for the ledger.
const LEDGER_INTERVAL: Duration = Duration::from_millis(250);

/// Where the ledger is and for which source it is written.
pub(super) struct Ledger {
    pub id: Uuid,
    pub state: State,
}

pub(super) fn at(standing: &Standing) -> At {
    At {
        offset: standing.ledger_offset,
        epoch: standing.reader,
        position: standing.position,
        closed: standing.closed_lsn,
        commit_time: standing.commit_time_us.unwrap_or_default(),
    }
}

pub(super) fn standing(before: &Standing, at: At) -> Standing {
    Standing {
        ledger_offset: at.offset,
        reader: at.epoch,
        position: at.position,
        closed_lsn: at.closed,
        commit_time_us: (at.commit_time > 0).then_some(at.commit_time),
        ..before.clone()
    }
}

/// Tables that the sink takes.
pub(super) fn taken(config: &Config, sink: &str) -> HashMap<TableName, config::SinkTable> {
    let of = |table: &config::Table| {
        let target = table.sinks.iter().find(|target| target.sink == sink)?;
        Some((table.name.clone(), target.clone()))
    };
    config.tables.iter().filter_map(of).collect()
}

/// The ledger as it is now; it is the reader's to make. A sink that has followed another one waits for a restart that is asked
/// for: only its entry tells whether the sink may go on here.
pub(super) async fn read_ledger(
    config: &Arc<Config>,
    sink: &str,
    reporter: &SinkReporter,
    followed: Option<Uuid>,
) -> Result<Ledger> {
    let topic = &config.kafka.ledger;
    loop {
        if let Some(facts) = topics::describe(&config.kafka, &[topic.as_str()]).await?.remove(0) {
            let shared = config.clone();
            let state = topic::beside(move || Reading::open(&shared.kafka)?.fold_all()).await?;
            let another = followed.is_some_and(|id| id != facts.id);
            let begun = state.source.is_some() && !(another && state.asked.is_some());
            // What patterns come to is the reader's to say.
            if begun && (state.routed.is_some() || !has_patterns(config, sink)) {
                return Ok(Ledger { id: facts.id, state });
            }
        }
        let what = format!("the ledger {topic}, which the source role begins");
        reporter.update(|s| s.waiting_for = Some(what));
        tokio::time::sleep(LEDGER_INTERVAL).await;
    }
}

/// For a sink without a row: the ledger once there is a table for it.
pub(super) async fn first_tables(
    config: &Arc<Config>,
    sink: &str,
    reporter: &SinkReporter,
) -> Result<(Ledger, Routes)> {
    loop {
        let ledger = read_ledger(config, sink, reporter, None).await?;
        let routes = Routes::new(config, sink, &ledger.state, -1);
        if !taken(routes.config(), sink).is_empty() {
            return Ok((ledger, routes));
        }
        reporter.update(|s| s.waiting_for = Some("a table that its patterns match".to_owned()));
        tokio::time::sleep(LEDGER_INTERVAL).await;
    }
}

/// For `lockstep check`: whether a worker that finds this row could go on from it.
pub async fn check_progress(config: &Arc<Config>, sink: &str, row: &ProgressRow, id: Uuid, state: State) -> Result<()> {
    let ledger = Ledger { id, state };
    if standing_after_restart(row, &ledger).is_some() {
        return Ok(());
    }
    let row =
        &upgraded_row(row, &ledger).map_or_else(|| row.clone(), |standing| ProgressRow { standing, ..row.clone() });
    row.check_identity(&identity(&ledger))?;
    let (standing, shared) = (row.standing.clone(), config.clone());
    let at = at(&standing);
    let mut machine = Machine::new(&config.name, sink, BTreeSet::new(), at, -1);
    if at.offset < 0 {
        return Ok(());
    }
    let held = topic::beside(move || {
        let mut reading = Reading::open(&shared.kafka)?;
        reading.fold_start(standing.join_offset.map_or(at.offset, |join| join.min(at.offset)))?;
        let high = reading.bounds()?.1;
        Ok(reading.fold(high.min(at.offset + 1))?.0)
    });
    machine.begin_with(held.await?);
    machine.check_row()
}

/// What the row must agree with.
pub(super) fn identity(ledger: &Ledger) -> Standing {
    let source = ledger.state.source.as_ref().expect("a ledger without a source is not read");
    Standing {
        ledger_topic_id: ledger.id,
        source_system_id: source.system_id,
        timeline: i32::try_from(source.timeline).unwrap_or(i32::MAX),
        ..standing(&blank(ledger.id), At::end_of(&ledger.state))
    }
}

fn blank(ledger_topic_id: Uuid) -> Standing {
    Standing {
        ledger_topic_id,
        source_system_id: 0,
        timeline: 0,
        ledger_offset: -1,
        join_offset: None,
        reader: At::ORIGIN.epoch,
        position: At::ORIGIN.position,
        closed_lsn: At::ORIGIN.closed,
        commit_time_us: None,
        phase: RowPhase::Snapshot,
    }
}

/// A sink without a row joins: its row begins at the last valid checkpoint before its request.
pub(super) async fn join(
    config: &Arc<Config>,
    sink: &str,
    targets: &HashMap<TableName, config::SinkTable>,
    ledger: &Ledger,
) -> Result<Standing> {
    let tables: BTreeSet<TableName> = targets.keys().cloned().collect();
    // One that was asked for and could not be written down serves as well.
    let asked = |request: &Request| {
        request.sink == sink && request.tables.iter().collect::<BTreeSet<_>>() == tables.iter().collect()
    };
    let open = ledger.state.open_joins().filter(|join| asked(&join.request)).last().map(|join| join.offset);
    let offset = match open {
        Some(offset) => offset,
        None => request(config, RequestKind::Join, sink, (&tables, targets), ledger.state.base).await?,
    };
    let state = fold_through(config, offset).await?;
    let at = At::end_of(&state);
    Ok(Standing { join_offset: Some(offset), phase: RowPhase::Snapshot, ..standing(&identity(ledger), at) })
}

/// The ledger's state up to and with the entry at `offset`.
pub(super) async fn fold_through(config: &Arc<Config>, offset: i64) -> Result<State> {
    let shared = config.clone();
    topic::beside(move || Ok(Reading::open(&shared.kafka)?.fold(offset + 1)?.0)).await
}

/// Writes a request for tables of the sink, which takes them as `targets` say; gives its offset.
pub(super) async fn request(
    config: &Config,
    kind: RequestKind,
    sink: &str,
    (tables, targets): (&BTreeSet<TableName>, &HashMap<TableName, config::SinkTable>),
    base: Option<i64>,
) -> Result<i64> {
    let mut appender = Appender::open(&config.kafka)?;
    appender.base = base;
    let request = Request {
        id: Uuid::new_v4(),
        kind,
        sink: sink.to_owned(),
        tables: tables.iter().cloned().collect(),
        asked_by: format!("sink:{sink}"),
        old_ledger: None,
        taken: match kind {
            RequestKind::Leave => vec![],
            _ => tables.iter().filter_map(|table| Some(Taken::of(table, targets.get(table)?))).collect(),
        },
        within: None,
        signal: None,
    };
    let offset = appender.append_and_wait(Body::Request(request), APPEND_TIMEOUT).await?;
    appender.close(Duration::from_secs(1));
    Ok(offset)
}

/// A restart is the one legal jump: a row from before it goes on there, with every table still to be loaded. After an upgrade of
/// the source's server it goes on where it is.
pub(super) async fn go_on_after_restart(
    database: &mut impl Sink,
    row: ProgressRow,
    ledger: &Ledger,
) -> Result<ProgressRow> {
    let restarted = standing_after_restart(&row, ledger);
    let Some(to) = restarted.clone().or_else(|| upgraded_row(&row, ledger)) else { return Ok(row) };
    database.begin(&row, &to).await?;
    if restarted.is_some() {
        tracing::info!(entry = to.ledger_offset, "the source was begun anew: every table is loaded again");
        // After an upgrade partitions that are ahead stay so.
        database.reset_partitions(to.position).await?;
    }
    database.commit().await?;
    Ok(ProgressRow { standing: to, ..row })
}

/// What a row says of the source that pg_upgrade has made another server of since: it stands where it stood.
fn upgraded_row(row: &ProgressRow, ledger: &Ledger) -> Option<Standing> {
    let (at, now) = (&row.standing, identity(ledger));
    let known = at.ledger_topic_id == ledger.id && ledger.state.formerly.contains(&at.source_system_id);
    known.then(|| Standing { source_system_id: now.source_system_id, timeline: now.timeline, ..at.clone() })
}

/// Where a row from before the last restart goes on; `None` for one that is not.
fn standing_after_restart(row: &ProgressRow, ledger: &Ledger) -> Option<Standing> {
    let restarted = ledger.state.restarted.as_ref()?;
    let before = match row.standing.ledger_topic_id == ledger.id {
        true => at(&row.standing).is_before(restarted),
        false => restarted.old_ledger == Some(row.standing.ledger_topic_id),
    };
    before.then(|| standing(&identity(ledger), At::after(restarted)))
}

/// Waits while another worker that is alive owns the sink: a hot standby.
pub(super) async fn take_over(
    database: &mut impl Sink,
    first: &Standing,
    mut lease: Lease,
    reporter: &SinkReporter,
    stop: &CancellationToken,
) -> Result<Option<ProgressRow>> {
    loop {
        match database.take_over(first).await? {
            TakeOver::Mine(row) => return Ok(Some(*row)),
            TakeOver::Standby { owner, activity } => {
                if lease.is_over(&owner, activity, Instant::now()) {
                    tracing::warn!(worker = %owner.worker_id, "the worker that owns the sink is silent, taking over");
                    database.evict(&owner).await?;
                }
                reporter.update(|s| {
                    s.state = status::State::Standby;
                    s.waiting_for =
                        Some(format!("worker {} owns the sink (backend {})", owner.worker_id, owner.backend_pid));
                });
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(lease.look_interval(STANDBY_INTERVAL)) => {}
        }
    }
}
