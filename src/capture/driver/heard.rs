//! Rows that speak of labels or attributes which their version has not heard of: the catalog is looked at, and a version that has
//! heard of them is told before the row.
//!
//! The catalog is never behind a row whose transaction it shows, so what it lacks then was altered again since. Whoever saw it at
//! an earlier look has asked for the table by now; where nobody did, this asks: the row's own text is not what the source prints
//! of it any more.

use std::sync::Arc;

use super::{Core, VISIBLE_TIMEOUT};
use crate::capture::emit::Version;
use crate::capture::heard::{self, Types, Unheard};
use crate::codec;
use crate::error::{Error, Result};
use crate::postgres::{look, slot, types};
use crate::value::RowBuf;

impl Core {
    /// The version for rows of a transaction, of which one says something that `version` has not heard of.
    pub(super) async fn catch_up(&mut self, xid: u32, version: Arc<Version>, said: Unheard) -> Result<Arc<Version>> {
        let oid = version.relation.oid;
        if self.asked.0 != xid {
            self.asked = (xid, Vec::new());
        }
        if self.asked.1.contains(&oid) {
            return Ok(version);
        }
        slot::wait_visible(&*self.session, xid, VISIBLE_TIMEOUT).await?;
        // What changes rows asks for the table before any row of the newer version counts.
        let table = version.relation.name.clone();
        let found = look::looks(&*self.session, &self.config.source.publication, std::slice::from_ref(&table)).await?;
        let there = found.iter().any(Option::is_some) && !self.departures.has(&table);
        if there {
            self.look([table.clone()].into_iter().zip(found).collect()).await?;
        }
        let version = self.retyped(version).await?;
        if there && !version.rows.heard.has(&said) && self.looks.pass(&table, said.clone()) {
            self.reread(&[(table, format!("{said} before anybody looked"))])?;
        }
        self.asked.1.push(oid);
        self.streamed.insert(oid, version.clone());
        Ok(version)
    }

    /// The version for the rows of a chunk, which may be younger than what was read of their types.
    pub(super) async fn chunk_version(&mut self, version: Arc<Version>, rows: &[RowBuf]) -> Result<Arc<Version>> {
        let unheard = |version: &Version| rows.iter().find_map(|row| version.rows.heard.unheard(row.row()));
        if unheard(&version).is_none() {
            return Ok(version);
        }
        let version = self.retyped(version).await?;
        match unheard(&version) {
            None => Ok(version),
            Some(said) => {
                let table = &version.relation.name;
                Err(Error::retry_plain(format!("{said} while table {table} was read; a new start reads on")))
            }
        }
    }

    /// The same version with what the catalog says of its types now.
    async fn retyped(&mut self, version: Arc<Version>) -> Result<Arc<Version>> {
        let oids = version.rows.heard.type_oids();
        let names = types::types(&*self.session, &oids).await?;
        let types = Types { names, composites: types::composites(&*self.session, &oids).await? };
        let heard = version.rows.heard.renewed(&types);
        if heard == version.rows.heard {
            return Ok(version);
        }
        tracing::info!(table = %version.relation.name, "a row has labels or attributes that its types were given lately");
        let relation = heard::retyped(&version.relation, &types);
        let relation = codec::complete(relation, &self.config.kafka.topic_prefix)?;
        self.version(version.shaped_as(relation, heard)).await
    }
}
