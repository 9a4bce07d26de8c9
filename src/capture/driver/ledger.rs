//! The ledger's end as this reader sees it: what it reads back, the bases it writes, what it has trimmed.
//!
//! A base says what is true so far, so that who starts reads no further back. While one is due or on its way nothing else is
//! appended that it would have to tell of.

use std::time::Instant;

use futures_util::FutureExt as _;
use tokio_util::task::AbortOnDropHandle;

use super::Core;
use crate::capture::answerable::TOPICS;
use crate::capture::machine::ReadBack;
use crate::capture::start;
use crate::capture::trim::trim;
use crate::error::{Error, Result};
use crate::kafka::consumer::Entry as Record;
use crate::ledger::entry::{Body, RequestKind};
use crate::ledger::state::Event;

impl Core {
    /// A record of the ledger was read back.
    pub(super) fn ledger_record(&mut self, record: Record) -> Result<()> {
        let Some(entry) = start::entry(&mut self.assembler, record.offset, record.value.as_deref())? else {
            return Ok(());
        };
        let event = self.state.apply(record.offset, entry);
        if matches!(&event, Event::Requested(request) if request.kind == RequestKind::Restart) {
            return Err(Error::retry_plain(format!("a restart was asked for (ledger entry {})", record.offset)));
        }
        if let Event::Requested(request) = &event {
            self.steer(request);
        }
        self.entries_since_base += 1;
        if event == Event::Base {
            // Ours, for it is valid. Something may have landed in front of it; then it is not named, and the next one is due
            // at once.
            self.base_number = None;
            if self.state.base == Some(record.offset) {
                self.appender.base = self.state.base;
                self.entries_since_base = 0;
                self.base_at = Instant::now();
                self.trim_if_due(record.timestamp_ms);
            } else {
                self.base_soon |= self.base_tells;
            }
        }
        match self.machine.read_back(record.offset, &event) {
            ReadBack::Nothing => {}
            ReadBack::Confirm(lsn) => {
                self.confirm = lsn;
                while let Some((offset, sent)) = self.sent_at.front().copied() {
                    if offset > record.offset {
                        break;
                    }
                    self.metrics.checkpoint(sent.elapsed());
                    self.sent_at.pop_front();
                }
            }
            ReadBack::Fenced(epoch) => {
                return Err(Error::retry_plain(format!(
                    "another reader claimed the ledger (epoch {epoch}); this one stops"
                )));
            }
        }
        Ok(())
    }

    /// Topics that rows have named stand in a base before a checkpoint counts their records.
    pub(super) fn note_topics(&mut self) {
        let opened = self.emitter.take_routed();
        self.base_soon |= !opened.is_empty();
        self.topics.extend(opened);
    }

    pub(super) fn base_if_due(&mut self) -> Result<()> {
        let due = self.is_base_due();
        let calm = !self.machine.is_appending() && self.machine.oldest_unread().is_none();
        if due && calm && !self.is_writing_base() {
            self.write_base()?;
        }
        Ok(())
    }

    pub(super) fn write_base(&mut self) -> Result<()> {
        let mut tables = self.routed();
        tables.retain(|table| !self.departures.is_over(table));
        self.state.prune_relations(&self.told, &tables);
        let base = self.state.as_base(self.machine.epoch(), self.topics.clone(), self.looks.known().clone(), tables);
        self.base_number = Some(self.append(Body::Base(Box::new(base)))?);
        self.base_tells = std::mem::take(&mut self.base_soon);
        Ok(())
    }

    /// While it is due nothing is appended, so that within one round trip nothing is in flight that it could not tell of.
    pub(super) fn is_base_due(&self) -> bool {
        self.base_soon
            || self.entries_since_base >= self.config.kafka.base_entries
            || (self.entries_since_base > 1 && self.base_at.elapsed() >= self.config.kafka.base_interval)
    }

    /// While a base is on its way nothing else is appended that it would have to tell of.
    pub(super) fn is_writing_base(&self) -> bool {
        self.base_number.is_some()
    }

    pub(super) fn append(&mut self, body: Body) -> Result<u64> {
        self.metrics.ledger_append();
        self.appender.append(body)
    }

    /// Beside the stream: Kafka is asked many questions.
    fn trim_if_due(&mut self, now_ms: i64) {
        let interval = self.config.kafka.base_interval;
        if self.trimming.is_some() || self.trimmed_at.is_some_and(|at| at.elapsed() < interval) {
            return;
        }
        self.trimmed_at = Some(Instant::now());
        let sinks = self.state.joins.iter().map(|join| join.request.sink.clone());
        let sinks = sinks.filter(|sink| sink != TOPICS).collect();
        self.trimming = Some(AbortOnDropHandle::new(tokio::spawn(trim(self.config.clone(), sinks, now_ms))));
    }

    pub(super) fn look_at_trimming(&mut self) {
        let Some(trimming) = self.trimming.take_if(|trimming| trimming.is_finished()) else { return };
        match trimming.now_or_never() {
            Some(Ok(Ok(Some(low)))) => tracing::info!(first = low, "the ledger was trimmed"),
            Some(Ok(Err(error))) => tracing::warn!("trimming the ledger, to be tried again: {}", error.chain()),
            _ => {}
        }
    }
}
