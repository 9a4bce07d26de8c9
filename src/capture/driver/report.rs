//! What this reader says of itself: status and gauges.

use std::time::Instant;

use super::Core;
use crate::error::Result;
use crate::postgres::catalog;
use crate::relation::TableName;
use crate::status::{self, Phase, TableStatus};

impl Core {
    /// How many rows the tables of the load have, as it begins.
    pub(super) async fn estimate(&mut self) -> Result<()> {
        let tables = self.loader.tables().to_vec();
        let facts = catalog::table_facts(&*self.session, &tables).await?;
        self.estimates.extend(facts.into_iter().flatten().filter_map(|facts| Some((facts.name, facts.rows_estimate?))));
        Ok(())
    }

    pub(super) fn report(&mut self) {
        self.reported = Instant::now();
        self.metrics.received(std::mem::take(&mut self.bytes), self.received);
        self.metrics.in_flight(self.emitter.in_flight_bytes() as u64);
        self.metrics.confirmed(self.confirmed);
        let closed = self.machine.read_closed();
        let lag = self.source_end.max(self.received).bytes_since(closed);
        let loading = self.loader.table().cloned();
        let busy = !self.loader.is_idle();
        // Asked for by nobody who has yet to get it for the first time.
        let again = |name: &TableName| {
            let mut joins = self.state.open_joins().filter(|join| join.request.tables.contains(name));
            joins.all(|join| join.request.kind.is_resync())
        };
        let tables = self.config.tables.iter().filter(|table| !self.departures.is_over(&table.name)).map(|table| {
            let phase = match &loading {
                Some(name) if *name == table.name && again(name) => Phase::Reread,
                Some(name) if *name == table.name => Phase::Snapshot,
                _ if busy && self.loader.remembers(&table.name) && self.rows_done.get(&table.name) == Some(&0) => {
                    Phase::Waiting
                }
                _ => Phase::Streaming,
            };
            let rows_done = matches!(phase, Phase::Snapshot | Phase::Reread)
                .then(|| self.rows_done.get(&table.name).copied())
                .flatten();
            let rows_estimated = self.estimates.get(&table.name).copied().filter(|_| phase != Phase::Streaming);
            let rows_per_second = self.meters.rate(&table.name, rows_done, self.reported);
            let waiting_for = self.withheld.of(&table.name).filter(|_| self.loader.remembers(&table.name));
            let status =
                TableStatus { rows_done, rows_estimated, rows_per_second, waiting_for, ..TableStatus::new(phase) };
            (table.name.clone(), status)
        });
        let tables = tables.collect();
        let mut unanswered = self.state.open_joins().filter(|join| !self.answers(&join.request));
        let unanswered = unanswered.next().map(|join| {
            format!(
                "a connector for the tables that sink {} asks for in ledger entry {}, with all that it needs",
                join.request.sink, join.offset
            )
        });
        let paused = self.state.paused.clone();
        let resumed = self.state.open_joins().next().and(paused.as_ref());
        let resumed = resumed.map(|by| format!("lockstep snapshot resume: {by} paused the reading of existing rows"));
        let unanswered = resumed.clone().or(unanswered);
        let unanswered = unanswered.or_else(|| self.left_out.first().map(ToString::to_string));
        self.metrics.snapshot_held(self.held.is_some());
        self.metrics.snapshot_paused(paused.is_some());
        self.metrics.tables_withheld(self.withheld.count());
        let held = resumed.or_else(|| self.withheld.waiting_for()).or_else(|| self.held.map(|held| held.to_string()));
        let was_held = std::mem::replace(&mut self.told_held, held.is_some());
        self.reporter.update(|s| {
            s.state = if busy { status::State::Snapshot } else { status::State::Streaming };
            if !busy {
                s.waiting_for = unanswered;
            } else if held.is_some() || was_held {
                s.waiting_for = held;
            }
            s.snapshot_paused = paused;
            s.position = Some(closed);
            s.lag_bytes = Some(lag);
            s.tables = tables;
        });
    }
}
