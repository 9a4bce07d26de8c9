//! The contract of a sink, as the files beside this one keep it.

use std::time::Duration;

use uuid::Uuid;

use super::PostgresSink;
use crate::apply::net::NetEffect;
use crate::config::{self, Evolve};
use crate::error::{Error, Halt, Result};
use crate::key::KeyRange;
use crate::lsn::Position;
use crate::relation::TableName;
use crate::sink::circles::Circles;
use crate::sink::foreign_keys::{Found, SetAside, Sources};
use crate::sink::lease::{self, Heard};
use crate::sink::letters::{Held, Letter, LetterKey, Reason, Spot};
use crate::sink::park::Unread;
use crate::sink::partition_progress::{Partition, PartitionMove, PartitionRow};
use crate::sink::progress::{Owner, ProgressRow, Standing, TakeOver};
use crate::sink::sql::SinkTablePlan;
use crate::sink::{Ahead, Counts, Findings, Outcome, Sink, WantedTable};
use crate::value::RowBuf;

impl Sink for PostgresSink {
    type Plan = SinkTablePlan;

    async fn connect(sink: &config::Sink, pipeline: &str, worker: Uuid) -> Result<PostgresSink> {
        PostgresSink::connect(sink, pipeline, worker).await
    }

    async fn progress(&mut self, create: bool) -> Result<Option<ProgressRow>> {
        PostgresSink::progress(self, create).await
    }

    async fn found_progress(&mut self) -> Result<Option<ProgressRow>> {
        PostgresSink::found_progress(self).await
    }

    async fn take_over(&mut self, first: &Standing) -> Result<TakeOver> {
        PostgresSink::take_over(self, first).await
    }

    async fn evict(&mut self, owner: &Owner) -> Result<bool> {
        PostgresSink::evict(self, owner).await
    }

    fn heard(&self) -> Heard {
        self.heard.clone()
    }

    fn hear(&mut self) {
        PostgresSink::hear(self);
    }

    fn beat_interval(&self) -> Duration {
        PostgresSink::beat_interval(self)
    }

    async fn keep_lease(&mut self) -> Result<()> {
        PostgresSink::keep_lease(self).await
    }

    async fn watch(sink: &config::Sink, pipeline: &str, owner: Owner, heard: Heard) -> Error {
        lease::watch_link(&super::Watch { sink, pipeline }, sink, owner, heard).await
    }

    async fn watch_locks(
        sink: &config::Sink,
        pipeline: &str,
        owner: Owner,
        heard: Heard,
        tell: impl Fn(Option<String>),
    ) {
        let beat = super::beat_interval(sink.lease_timeout);
        super::blockers::watch(sink, pipeline, &owner, (heard, beat), tell).await;
    }

    async fn connect_member(sink: &config::Sink, pipeline: &str, worker: Uuid) -> Result<PostgresSink> {
        PostgresSink::connect_member(sink, pipeline, worker).await
    }

    async fn member(&mut self) -> Result<Owner> {
        PostgresSink::member(self).await
    }

    async fn is_partitioned(&mut self) -> Result<bool> {
        PostgresSink::is_partitioned(self).await
    }

    async fn hold_partitions(
        &mut self,
        owned: &ProgressRow,
        known: &[(Partition, Uuid)],
        create: bool,
    ) -> Outcome<Vec<PartitionRow>> {
        PostgresSink::hold_partitions(self, owned, known, create).await
    }

    async fn move_partitions(&mut self, to: Position, next: &[(Partition, i64)]) -> Outcome<()> {
        PostgresSink::move_partitions(self, to, next).await
    }

    async fn release_partitions(&mut self, owned: &ProgressRow) -> Outcome<()> {
        PostgresSink::release_partitions(self, owned).await
    }

    async fn forget_partitions(&mut self, owned: &ProgressRow) -> Outcome<()> {
        PostgresSink::forget_partitions(self, owned).await
    }

    async fn reset_partitions(&mut self, to: Position) -> Outcome<()> {
        PostgresSink::reset_partitions(self, to).await
    }

    async fn partitions(&mut self) -> Result<Vec<PartitionRow>> {
        PostgresSink::partitions(self).await
    }

    async fn take_partitions(&mut self, wanted: &[Partition]) -> Outcome<Vec<PartitionRow>> {
        PostgresSink::take_partitions(self, wanted).await
    }

    async fn begin_partitions(&mut self, moves: &[(PartitionRow, PartitionMove)]) -> Outcome<()> {
        PostgresSink::begin_partitions(self, moves).await
    }

    async fn has_letters(&mut self) -> Result<bool> {
        PostgresSink::has_letters(self).await
    }

    async fn prepare_letters(&mut self, create: bool) -> Result<()> {
        PostgresSink::prepare_letters(self, create).await
    }

    async fn held_letters(&mut self) -> Result<Vec<Held>> {
        PostgresSink::held_letters(self).await
    }

    async fn letters_of(&mut self, of: &LetterKey) -> Result<Vec<Letter>> {
        PostgresSink::letters_of(self, of).await
    }

    async fn uncopied_letters(&mut self, most: i64) -> Result<Vec<Letter>> {
        PostgresSink::uncopied_letters(self, most).await
    }

    async fn letters_copied(&mut self, spots: &[Spot]) -> Result<()> {
        PostgresSink::letters_copied(self, spots).await
    }

    async fn forget_letters(&mut self) -> Result<()> {
        PostgresSink::forget_letters(self).await
    }

    async fn keep_letter(&mut self, letter: &Letter) -> Outcome<()> {
        PostgresSink::keep_letter(self, letter).await
    }

    async fn settle_letters(&mut self, table: &TableName, key: Option<&str>) -> Outcome<()> {
        PostgresSink::settle_letters(self, table, key).await
    }

    async fn letters_refused(&mut self, of: &LetterKey, reason: &Reason) -> Result<()> {
        PostgresSink::letters_refused(self, of, reason).await
    }

    async fn ask_letters(&mut self, of: &LetterKey) -> Result<()> {
        PostgresSink::ask_letters(self, of).await
    }

    fn lacks(_sink: &config::Sink, _tables: &[&config::SinkTable]) -> Vec<Halt> {
        Vec::new()
    }

    async fn preflight(&mut self, wanted: &[WantedTable]) -> Result<Findings> {
        PostgresSink::preflight(self, wanted).await
    }

    async fn plan(&mut self, wanted: &[WantedTable]) -> Result<Vec<SinkTablePlan>> {
        PostgresSink::plan(self, wanted).await
    }

    async fn check_left(&mut self, wanted: &WantedTable, before: &[(String, String)]) -> Outcome<()> {
        PostgresSink::check_left(self, wanted, before).await
    }

    async fn steps(&mut self, wanted: &WantedTable, evolve: Evolve) -> Result<Vec<String>> {
        PostgresSink::steps(self, wanted, evolve).await
    }

    async fn evolve(
        &mut self,
        wanted: &WantedTable,
        earlier: &[WantedTable],
        evolve: Evolve,
        half: bool,
    ) -> Outcome<bool> {
        PostgresSink::evolve(self, wanted, earlier, evolve, half).await
    }

    async fn go_ahead(&mut self, ahead: &Ahead) -> Outcome<()> {
        PostgresSink::go_ahead(self, ahead).await
    }

    async fn begin(&mut self, from: &ProgressRow, to: &Standing) -> Outcome<()> {
        PostgresSink::begin(self, from, to).await
    }

    async fn move_on(&mut self, from: &ProgressRow, to: &Standing) -> Outcome<()> {
        PostgresSink::move_on(self, from, to).await
    }

    async fn apply(&mut self, batch: &[(&SinkTablePlan, NetEffect)]) -> Outcome<Counts> {
        PostgresSink::apply(self, batch).await
    }

    fn committed(&mut self, time_us: Option<i64>) {
        self.committed_us = time_us;
    }

    async fn truncate(&mut self, plans: &[&SinkTablePlan]) -> Outcome<()> {
        PostgresSink::truncate(self, plans).await
    }

    async fn replace_range(
        &mut self,
        plan: &SinkTablePlan,
        range: &KeyRange,
        rows: &[RowBuf],
        blank: &[TableName],
    ) -> Outcome<Counts> {
        PostgresSink::replace_range(self, plan, range, rows, blank).await
    }

    async fn save(&mut self) -> Outcome<()> {
        PostgresSink::save(self).await
    }

    async fn take_back(&mut self) -> Result<bool> {
        PostgresSink::take_back(self).await
    }

    fn spare(&mut self, keys: Vec<Vec<String>>) {
        self.spared = keys;
    }

    async fn commit(&mut self) -> Outcome<()> {
        PostgresSink::commit(self).await
    }

    async fn rollback(&mut self) -> Result<()> {
        PostgresSink::rollback(self).await
    }

    fn park(&mut self, unread: Unread) {
        PostgresSink::park(self, unread);
    }

    async fn circles(&mut self, tables: &[TableName]) -> Outcome<Circles> {
        PostgresSink::circles(self, tables).await
    }

    async fn truncate_half_loaded(&mut self, plans: &[&SinkTablePlan]) -> Outcome<()> {
        PostgresSink::truncate_half_loaded(self, plans).await
    }

    async fn foreign_keys(&mut self, first: &[TableName], all: &[TableName]) -> Result<Vec<Found>> {
        PostgresSink::foreign_keys(self, first, all).await
    }

    fn foreign_key_findings(&self, found: &[Found]) -> Vec<Halt> {
        PostgresSink::foreign_key_findings(self, found)
    }

    async fn prepare_foreign_keys(&mut self, create: bool) -> Result<()> {
        PostgresSink::prepare_foreign_keys(self, create).await
    }

    async fn set_aside(&mut self, found: &[Found]) -> Outcome<()> {
        PostgresSink::set_aside(self, found).await
    }

    async fn foreign_keys_aside(&mut self) -> Result<Vec<SetAside>> {
        PostgresSink::foreign_keys_aside(self).await
    }

    async fn put_back(&mut self, aside: &[SetAside], sources: &Sources) -> Outcome<()> {
        PostgresSink::put_back(self, aside, sources).await
    }

    async fn validate_foreign_keys(&mut self, sources: &Sources) -> Outcome<()> {
        PostgresSink::validate_foreign_keys(self, sources).await
    }

    async fn forget_foreign_keys(&mut self) -> Outcome<()> {
        PostgresSink::forget_foreign_keys(self).await
    }
}
