//! Rows that speak of labels which their version has not heard of: the catalog is looked at, and a version that has heard of them
//! is told before the row.
//!
//! The catalog is never behind a row whose transaction it shows, so a label that it lacks then was renamed since. Whoever saw the
//! label at an earlier look has asked for the table by now; where nobody did, this asks: the row's own text is not what the
//! source prints of it any more.

use std::sync::Arc;

use super::{Core, VISIBLE_TIMEOUT};
use crate::capture::emit::Version;
use crate::capture::heard;
use crate::codec;
use crate::error::{Error, Result};
use crate::postgres::{look, slot, types};
use crate::value::RowBuf;

impl Core {
    /// The version for rows of a transaction, of which one has this label that `version` has not heard of.
    pub(super) async fn catch_up(&mut self, xid: u32, version: Arc<Version>, label: &[u8]) -> Result<Arc<Version>> {
        let oid = version.relation.oid;
        if self.asked.0 != xid {
            self.asked = (xid, Vec::new());
        }
        if self.asked.1.contains(&oid) {
            return Ok(version);
        }
        slot::wait_visible(&*self.session, xid, VISIBLE_TIMEOUT).await?;
        // A renaming asks for the table before any row under the new label counts.
        let table = version.relation.name.clone();
        let found = look::looks(&*self.session, &self.config.source.publication, std::slice::from_ref(&table)).await?;
        let there = found.iter().any(Option::is_some) && !self.departures.has(&table);
        if there {
            self.look([table.clone()].into_iter().zip(found).collect()).await?;
        }
        let version = self.with_labels(version).await?;
        if there && !version.rows.heard.has(label) && self.looks.pass(&table, label) {
            let why =
                format!("label {:?} of an enum was renamed before anybody looked", String::from_utf8_lossy(label));
            self.reread(&[(table, why)])?;
        }
        self.asked.1.push(oid);
        self.streamed.insert(oid, version.clone());
        Ok(version)
    }

    /// The version for the rows of a chunk, whose labels may be younger than what was read of their types.
    pub(super) async fn chunk_version(&mut self, version: Arc<Version>, rows: &[RowBuf]) -> Result<Arc<Version>> {
        let unheard = |version: &Version| rows.iter().find_map(|row| version.rows.heard.unheard(row.row()));
        if unheard(&version).is_none() {
            return Ok(version);
        }
        let version = self.with_labels(version).await?;
        match unheard(&version) {
            None => Ok(version),
            Some(label) => Err(Error::retry_plain(format!(
                "label {:?} of an enum was renamed while table {} was read; a new start reads on",
                String::from_utf8_lossy(&label),
                version.relation.name
            ))),
        }
    }

    /// The same version with the labels that the catalog has now.
    async fn with_labels(&mut self, version: Arc<Version>) -> Result<Arc<Version>> {
        let types = types::types(&*self.session, &version.rows.heard.type_oids()).await?;
        let heard = version.rows.heard.renewed(&types);
        if heard == version.rows.heard {
            return Ok(version);
        }
        tracing::info!(table = %version.relation.name, "a row has a label that its enum was given lately");
        let relation = heard::relabelled(&version.relation, &types);
        let relation = codec::complete(relation, &self.config.kafka.topic_prefix)?;
        self.version(version.shaped_as(relation, heard)).await
    }
}
