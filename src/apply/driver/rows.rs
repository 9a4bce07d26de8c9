//! The owner of a sink in row consistency: it shares out what is plain, and applies by itself what is not
//! ([`crate::apply::rows`]).

use std::collections::BTreeSet;
use std::time::Instant;

use uuid::Uuid;

use crate::apply::driver::Worker;
use crate::apply::machine::{Interval, Item};
use crate::apply::rows::floor::{Floor, is_plain, next_offsets};
use crate::config::Consistency;
use crate::error::{Error, Result};
use crate::kafka::topics;
use crate::relation::TableName;
use crate::sink::partition_progress::Partition;
use crate::sink::progress::Phase;
use crate::sink::{Failure, Sink, WantedTable};

/// What partitions are held for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// What the sink knows of them is not known here, or not enough.
    Begin,
    Barrier,
    Stall,
}

impl<S: Sink> Worker<S> {
    /// From here on every partition is this worker's, for a sink in row consistency, or one that was.
    pub(super) async fn begin_rows(&mut self) -> Result<()> {
        let rows = self.sink.consistency == Consistency::Row;
        if rows || self.writer.sink.is_partitioned().await? {
            if rows {
                self.check_tables().await?;
            }
            self.begin_letters().await?;
            self.hold(Why::Begin).await?;
            if self.writer.loads.is_empty() {
                self.retry_letters().await?;
            }
            if !rows {
                self.refuse_letters()?;
            }
        }
        Ok(())
    }

    /// What is parked is put back by who has all partitions.
    pub(super) async fn hold_for_letters(&mut self) -> Result<()> {
        match self.floor.as_ref().is_some_and(Floor::is_shared) {
            true => self.hold(Why::Barrier).await,
            false => self.read_letters().await,
        }
    }

    /// All tables at once: what is between two of them no plan of one sees.
    async fn check_tables(&mut self) -> Result<()> {
        let (state, tables) = (self.machine.state(), self.writer.tables());
        let newest = |name: &TableName| {
            let versions = state.relations.values().filter(|relation| relation.name == *name);
            versions.max_by_key(|relation| state.relations_at.get(&relation.fingerprint).copied())
        };
        let wanted = tables.filter_map(|(name, target)| WantedTable::of(newest(name)?, target).ok());
        let wanted: Vec<WantedTable> = wanted.collect();
        let found = self.writer.sink.preflight(&wanted).await?;
        found.halts.into_iter().next().map_or(Ok(()), |halt| Err(halt.into()))
    }

    /// The partitions of the sink's topics as Kafka has them now, with the topics' ids.
    async fn ask_for_partitions(&mut self) -> Result<Vec<(Partition, Uuid)>> {
        let config = self.config.clone();
        let mine = config.tables.iter().filter(|table| table.sinks.iter().any(|target| target.sink == self.sink.name));
        let topics: BTreeSet<&str> = mine.map(|table| table.topic.as_str()).collect();
        let topics: Vec<&str> = topics.into_iter().collect();
        let facts = self.writer.sink.meanwhile(topics::describe(&config.kafka, &topics)).await?;
        let partitions = facts.into_iter().flatten().flat_map(|facts| {
            let partition = move |number| (Partition { topic: facts.name.clone(), number }, facts.id);
            (0..facts.partitions).map(partition)
        });
        Ok(partitions.collect())
    }

    /// Takes all partitions away from members. Where they stood still, the topics may have more of them by now.
    async fn hold(&mut self, why: Why) -> Result<()> {
        let known = match &self.floor {
            Some(floor) if why == Why::Barrier => floor.known.clone(),
            _ => self.ask_for_partitions().await?,
        };
        if self.at.offset != self.row.standing.ledger_offset {
            // Partitions that are new begin there.
            self.write_row(self.standing()).await?;
        }
        let rows = match self.writer.sink.hold_partitions(&self.row, &known, self.config.create).await {
            // Whoever sat in the way is gone by now.
            Err(Failure::Error(Error::Retry(_))) => {
                self.writer.sink.hold_partitions(&self.row, &known, self.config.create).await?
            }
            other => other?,
        };
        let held = Floor::held(rows, known, Instant::now());
        self.floor = Some(if why == Why::Stall { held.helping() } else { held });
        self.read_letters().await?;
        if why == Why::Stall {
            tracing::warn!(sink = self.sink.name, "partitions stand still, applying what is theirs");
        }
        Ok(())
    }

    fn is_plain(&self, interval: &Interval) -> bool {
        let floor = self.floor.as_ref().expect("asked of sinks with partitions");
        !interval.concerns || (is_plain(interval, &self.sink.name, |t| self.writer.takes(t)) && floor.knows(interval))
    }

    /// Of what was gathered while partitions are held, what is the owner's own; the rest is put back for members.
    pub(super) fn leave_plain(&mut self, mut intervals: Vec<Interval>) -> Vec<Interval> {
        let helps = self.floor.as_ref().is_none_or(Floor::is_helping);
        if helps || self.sink.consistency != Consistency::Row || !self.writer.loads.is_empty() {
            return intervals;
        }
        let keep = intervals.iter().take_while(|interval| !self.is_plain(interval)).count().max(1);
        for interval in intervals.drain(keep..).rev() {
            self.machine.put_back(Item::Interval(Box::new(interval)));
        }
        intervals
    }

    /// Shares what can be shared and counts what members have applied. Whether that is all there is to do for now.
    pub(super) async fn share(&mut self) -> Result<bool> {
        let Some(floor) = &self.floor else { return Ok(false) };
        let now = Instant::now();
        if self.sink.consistency != Consistency::Row {
            if floor.is_level(self.at.position) && self.at.offset == self.row.standing.ledger_offset {
                self.writer.sink.forget_partitions(&self.row).await?;
                self.floor = None;
            }
            return Ok(false);
        }
        if floor.is_shared() {
            return self.count_shared(now).await;
        }
        let next_is_plain = match self.machine.peek() {
            None => true,
            Some(Item::Interval(interval)) => self.is_plain(interval),
            Some(_) => false,
        };
        let whole = self.writer.loads.is_empty() && self.row.standing.phase == Phase::Streaming;
        if !(whole && next_is_plain && floor.may_share(self.machine.waiting() > 0, now)) {
            return Ok(false);
        }
        if self.at.offset != self.row.standing.ledger_offset {
            self.write_row(self.standing()).await?;
        }
        self.ahead.discard();
        self.writer.sink.release_partitions(&self.row).await?;
        self.floor.as_mut().expect("just looked").share(now);
        Ok(true)
    }

    async fn count_shared(&mut self, now: Instant) -> Result<bool> {
        let waiting = self.machine.waiting() > 0;
        if self.floor.as_ref().is_some_and(|floor| floor.should_look(waiting, now)) {
            let rows = self.writer.sink.partitions().await?;
            if let Some(floor) = &mut self.floor {
                floor.look(rows, now);
            }
        }
        if self.machine.waiting() == 0
            && let Some(floor) = &mut self.floor
        {
            floor.counted(now);
        }
        loop {
            let Some(floor) = &self.floor else { return Ok(false) };
            match self.machine.peek() {
                None => break,
                Some(Item::Interval(interval)) if self.is_plain(interval) => {
                    if floor.is_done(interval) {
                        self.at = interval.at(self.at);
                        self.machine.pop();
                        if let Some(floor) = &mut self.floor {
                            floor.counted(now);
                        }
                        continue;
                    }
                    if floor.is_stalled(interval, now) {
                        return self.help(now).await;
                    }
                    break;
                }
                Some(item) => {
                    let unknown = matches!(item, Item::Interval(interval) if !floor.knows(interval));
                    self.hold(if unknown { Why::Begin } else { Why::Barrier }).await?;
                    return Ok(false);
                }
            }
        }
        self.quiet().await?;
        Ok(true)
    }

    /// Partitions stand still. Whoever has them in a transaction and is alive works on something large, or waits for a lock, and
    /// is let be.
    async fn help(&mut self, now: Instant) -> Result<bool> {
        match self.hold(Why::Stall).await {
            Err(error @ Error::Retry(_)) => {
                tracing::warn!(sink = self.sink.name, "partitions stand still, and are in use: {}", error.chain());
                if let Some(floor) = &mut self.floor {
                    floor.counted(now);
                }
                self.quiet().await?;
                Ok(true)
            }
            held => held.map(|()| false),
        }
    }

    /// Moves the partitions of what is applied in the open transaction, which it belongs to.
    pub(super) async fn move_partitions(&mut self, items: &[Item]) -> Result<(), Failure> {
        let Some(floor) = &mut self.floor else { return Ok(()) };
        if floor.is_shared() {
            return Err(Error::retry_plain("rows were about to be written while partitions are shared").into());
        }
        let intervals = || {
            items.iter().filter_map(|item| match item {
                Item::Interval(interval) => Some(&**interval),
                _ => None,
            })
        };
        let Some(to) = intervals().map(|interval| interval.checkpoint.to).max() else { return Ok(()) };
        self.writer.sink.move_partitions(to, &next_offsets(intervals())).await
    }

    /// The transaction has ended.
    pub(super) fn partitions_moved(&mut self) {
        if let Some(floor) = &mut self.floor {
            floor.advance(self.at.position);
        }
    }
}
