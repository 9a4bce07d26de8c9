//! What sinks say of themselves while existing rows are loaded for them.

use std::time::Duration;

use super::Core;
use crate::capture::answerable::TOPICS;
use crate::error::Result;
use crate::kafka::groups::{self, Applied, Watch};

/// Sinks that are asked how far they are.
pub(super) struct Sinks {
    names: Vec<String>,
    watch: Watch,
}

/// One of them said something.
pub(super) type News = (usize, Option<Applied>);

impl Sinks {
    /// The next word, in time.
    pub(super) async fn recv(sinks: &mut Option<Sinks>) -> News {
        match sinks {
            Some(sinks) => sinks.watch.recv().await,
            None => std::future::pending().await,
        }
    }
}

impl Core {
    /// A load begins: from here on sinks are asked how far they are.
    pub(super) fn watch_sinks(&mut self) -> Result<()> {
        let joined = self.state.joins.iter().map(|join| join.request.sink.clone());
        let mut names: Vec<String> = joined.filter(|sink| sink != TOPICS).collect();
        names.sort();
        names.dedup();
        self.pace.ahead.watch(names.iter().cloned());
        if self.sinks.as_ref().is_none_or(|sinks| sinks.names != names) {
            self.sinks = None;
            let groups: Vec<String> = names.iter().map(|name| groups::of_sink(&self.config.name, name)).collect();
            if !groups.is_empty() {
                let watch = Watch::open(&self.config.kafka, &groups, &self.config.kafka.ledger)?;
                self.sinks = Some(Sinks { names, watch });
            }
        }
        Ok(())
    }

    /// What all say, and where the ledger has what was written for them.
    pub(super) fn hear_sinks(&mut self, first: Option<News>) {
        if let Some(anchor) = self.machine.anchor() {
            self.pace.ahead.appended(anchor.to, anchor.offset);
        }
        let Some(sinks) = &mut self.sinks else { return };
        let now = self.began.elapsed();
        let mut next = first;
        while let Some((sink, applied)) = next.take().or_else(|| sinks.watch.try_recv()) {
            let applied = applied.map(|said| (said.applied, Duration::from_micros(said.busy_us)));
            self.pace.ahead.heard(&sinks.names[sink], applied, now);
        }
    }
}
