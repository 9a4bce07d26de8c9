//! When foreign keys of a sink are set aside and put back: `foreign_keys = "after_load"`.
//!
//! They are set aside before the first row of a first copy is written, and put back once nothing is under load any more, before the
//! row says so. Whether some are written down is asked of the sink at each of these moments, never remembered, so that whatever died, and
//! whatever the configuration says by then, they come back.

use super::Worker;
use crate::config::ForeignKeys;
use crate::error::{Error, Result};
use crate::relation::TableName;
use crate::sink::Sink;
use crate::sink::foreign_keys::Sources;

impl<S: Sink> Worker<S> {
    /// Before the first row is written: those between our tables, of which one is to get its first rows.
    pub(super) async fn set_foreign_keys_aside(&mut self) -> Result<()> {
        let (first, all) = self.writer.first_copies();
        if self.writer.loads.is_empty() {
            // A worker before this one did not come to it.
            return self.put_foreign_keys_back().await;
        }
        if first.is_empty() || self.sink.foreign_keys != ForeignKeys::AfterLoad {
            return Ok(());
        }
        let found = self.writer.sink.foreign_keys(&first, &all).await?;
        if found.is_empty() {
            return Ok(());
        }
        if let Some(halt) = self.writer.sink.foreign_key_findings(&found).into_iter().next() {
            return Err(halt.into());
        }
        self.writer.sink.prepare_foreign_keys(self.config.create).await?;
        let names: Vec<String> = found.iter().map(|key| format!("{} of {}", key.name, key.table)).collect();
        tracing::warn!(
            sink = self.sink.name,
            keys = names.join(", "),
            "foreign keys are set aside until all rows are there"
        );
        let standing = self.standing();
        let done = async {
            self.writer.sink.begin(&self.row, &standing).await?;
            self.writer.sink.set_aside(&found).await?;
            self.writer.sink.commit().await
        };
        done.await.map_err(Error::from)?;
        self.row.standing = standing;
        self.writer.forget_plans();
        Ok(())
    }

    /// Once every row is there: what was set aside is in force again, and holds.
    pub(super) async fn put_foreign_keys_back(&mut self) -> Result<()> {
        let aside = self.writer.sink.foreign_keys_aside().await?;
        if aside.is_empty() {
            return Ok(());
        }
        tracing::info!(sink = self.sink.name, keys = aside.len(), "foreign keys are put back");
        self.reporter.update(|s| s.waiting_for = Some("foreign keys that are put back and validated".to_owned()));
        let sources: Sources = self.writer.targets().map(|(source, target)| (target.clone(), source.clone())).collect();
        let standing = self.standing();
        let done = async {
            self.writer.sink.begin(&self.row, &standing).await?;
            self.writer.sink.put_back(&aside, &sources).await?;
            self.writer.sink.commit().await
        };
        done.await.map_err(Error::from)?;
        self.row.standing = standing.clone();
        self.writer.forget_plans();
        self.writer.sink.validate_foreign_keys(&sources).await.map_err(Error::from)?;
        let done = async {
            self.writer.sink.begin(&self.row, &standing).await?;
            self.writer.sink.forget_foreign_keys().await?;
            self.writer.sink.commit().await
        };
        done.await.map_err(Error::from)
    }
}

impl<S: Sink> crate::apply::writer::Writer<S> {
    /// The sink's tables that are to get their first rows, and all of them.
    fn first_copies(&self) -> (Vec<TableName>, Vec<TableName>) {
        let is_first = |source: &TableName| self.loads.is_loading(source) && !self.loads.is_reread(source);
        let first = self.targets().filter(|(source, _)| is_first(source)).map(|(_, target)| target.clone());
        (first.collect(), self.targets().map(|(_, target)| target.clone()).collect())
    }
}
