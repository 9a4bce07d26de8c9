//! [`Sink`]: what a kind of database has to be able to do so that Lockstep can write it. An open set, hence a trait; which
//! kinds there are stands in `for_engine!` alone.
//!
//! The driver is compiled for each of them, so nothing here costs a call that it would not cost in place.

use std::future::Future;
use std::time::Duration;

use uuid::Uuid;

use super::circles::Circles;
use super::foreign_keys::{Found, SetAside, Sources};
use super::lacks;
use super::lease::Heard;
use super::letters::{Held, Letter, LetterKey, Reason, Spot};
use super::park::Unread;
use super::partition_progress::{Partition, PartitionMove, PartitionRow};
use super::progress::{Owner, ProgressRow, Standing, TakeOver};
use super::{Ahead, Counts, Findings, Outcome, WantedTable};
use crate::apply::net::NetEffect;
use crate::config::{self, Evolve};
use crate::error::{Error, Halt, Result};
use crate::key::KeyRange;
use crate::lsn::Position;
use crate::relation::TableName;
use crate::value::RowBuf;

/// One connection to a database that Lockstep writes, and what it promises its driver:
///
/// - **One transaction.** Between [`begin`](Sink::begin) and [`commit`](Sink::commit) everything written is one transaction of
///   the sink's database, together with the move of the progress row. It becomes visible whole or not at all.
/// - **Compare-and-set.** `begin` moves the progress row from exactly what the driver read. A row that says something else is
///   [`Failure::OwnershipLost`](super::Failure::OwnershipLost): another worker owns the sink, nothing was written.
/// - **Nothing is remembered across connections.** A new connection starts with [`take_over`](Sink::take_over), which waits for
///   a predecessor's open transaction and reads the row as it then is. That is also how an unknown outcome of a commit is
///   found out.
/// - **Rows are counted.** A statement that reaches fewer rows than it names is `SINK_DIVERGED`; nothing is repaired on the
///   quiet. Only a delete may come late, where an ON DELETE action of the sink could have taken the row. A new row that is there
///   already is overwritten, since what it then holds is the source's; where that shows, it is warned of and counted
///   ([`Counts::overwritten`]).
/// - **A row that lives on is never deleted**, since ON DELETE actions of the service's own tables would fire: a key that changes is
///   updated. And no statement ever reaches another row than the one that has the key, whatever else is unique.
/// - **Absent columns are never written**, and no row is made with one.
/// - **A value is stored exactly or refused.** What the column's type would round or cut is found by
///   [`preflight`](Sink::preflight) beforehand, or refused when the value comes.
/// - **Keys are told apart and ordered as at the source** ([`crate::key`]): a column whose equality or order is another one, by its
///   collation perhaps, is refused by `preflight`.
/// - **No value in an error.** Messages name table, column and constraint. Which row it was is found by the driver, which tells
///   its key where that is needed to type a command.
///
/// A plan is made from the sink's catalog as it then is. A column that its owner narrows later may round values without an
/// error, so the driver plans again every some seconds; [`plan`](Sink::plan) halts on what no longer fits.
///
/// What the driver promises: one owner per sink, calls one after the other, each awaited to its end. Dropping a call half way
/// leaves the transaction open; then the sink is to be dropped too. After any failure the transaction is over or is ended by
/// [`rollback`](Sink::rollback); `commit` after a failure is a bug and panics.
///
/// A table without a key is written by whole rows: n equal rows are n rows.
///
/// What an engine may do without has a default: either nothing is lost by it, or [`lacks`](Sink::lacks) refuses by name a
/// configuration that asks for it, at `check` and at every start.
// A sink lives on the thread of its role, so no future of it need be Send.
#[allow(async_fn_in_trait)]
pub trait Sink: Sized {
    /// How one relation version is written into one table, by the sink's catalog as it was when the plan was made.
    type Plan;

    // ---- The connection, and who owns the sink ----

    /// Connects. `worker` names this process and stays the same over its reconnects: with it a worker takes over from
    /// itself at once.
    async fn connect(sink: &config::Sink, pipeline: &str, worker: Uuid) -> Result<Self>;

    /// Makes the table of progress if it is missing and `create` allows it, and reads the row, if there is one. Any reader may.
    async fn progress(&mut self, create: bool) -> Result<Option<ProgressRow>>;

    /// The same without making anything.
    async fn found_progress(&mut self) -> Result<Option<ProgressRow>>;

    /// Becomes the owner of the progress row, which is made from `first` if there is none. Waits for an open transaction of
    /// the owner before, at most `lock_timeout`; it is not waited for when the owner is another worker that is alive.
    async fn take_over(&mut self, first: &Standing) -> Result<TakeOver>;

    /// Ends the connection of a worker that [`TakeOver::Standby`] named, once its lease is over. True if it was told to end.
    async fn evict(&mut self, owner: &Owner) -> Result<bool>;

    /// When the database last answered, for [`watch`](Sink::watch).
    fn heard(&self) -> Heard;

    /// The database answered just now.
    fn hear(&mut self);

    /// The longest that the driver may be silent while it waits for something else.
    fn beat_interval(&self) -> Duration;

    /// Speaks on the connection if it was silent for a while, also inside a transaction, so that others see that we are alive.
    /// To be called whenever the driver waits for something else.
    async fn keep_lease(&mut self) -> Result<()>;

    /// Drives `work`, which needs no sink, and keeps the lease meanwhile.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                outcome = &mut work => return outcome,
                () = tokio::time::sleep(self.beat_interval()) => self.keep_lease().await?,
            }
        }
    }

    /// Watches the connection behind `owner` from beside it; resolves with the error once it is dead without anybody having said
    /// so. Never, where there is no link that could die.
    async fn watch(_sink: &config::Sink, _pipeline: &str, _owner: Owner, _heard: Heard) -> Error {
        std::future::pending().await
    }

    /// Tells who has the lock that the connection behind `owner` waits for, and `None` once it waits no more; for as long as it is
    /// polled. For people alone: where the database can't be asked, nobody is told.
    async fn watch_locks(
        _sink: &config::Sink,
        _pipeline: &str,
        _owner: Owner,
        _heard: Heard,
        _tell: impl Fn(Option<String>),
    ) {
        std::future::pending().await
    }

    // ---- `consistency = "row"`: see `super::partition_progress`. Of no use where `lacks` refuses it ----

    /// Connects as a member of the sink's group: the owner of partitions, never of the sink's own row.
    async fn connect_member(_sink: &config::Sink, _pipeline: &str, _worker: Uuid) -> Result<Self> {
        unreachable!("row consistency is refused")
    }

    /// This connection as [`watch`](Sink::watch) knows one.
    async fn member(&mut self) -> Result<Owner> {
        unreachable!("row consistency is refused")
    }

    /// Whether partitions may be ahead of the sink's own row.
    async fn is_partitioned(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// Takes every partition away from its owner and keeps it from others, as the owner of the sink's row, which is `owned`. Rows
    /// of partitions that are not known yet begin where the sink's row stands.
    async fn hold_partitions(
        &mut self,
        _owned: &ProgressRow,
        _known: &[(Partition, Uuid)],
        _create: bool,
    ) -> Outcome<Vec<PartitionRow>> {
        unreachable!("row consistency is refused")
    }

    /// Moves all that are held, and not ahead of it already, in the open transaction of the sink's row; `next` are offsets behind
    /// what was applied.
    async fn move_partitions(&mut self, _to: Position, _next: &[(Partition, i64)]) -> Outcome<()> {
        unreachable!("row consistency is refused")
    }

    /// Lets members take what is held.
    async fn release_partitions(&mut self, _owned: &ProgressRow) -> Outcome<()> {
        unreachable!("row consistency is refused")
    }

    /// The sink is one whole again: no partition is ahead of its row.
    async fn forget_partitions(&mut self, _owned: &ProgressRow) -> Outcome<()> {
        unreachable!("row consistency is refused")
    }

    /// In the open transaction: the source's history is another one from here on, which no partition is ahead of.
    async fn reset_partitions(&mut self, _to: Position) -> Outcome<()> {
        Ok(())
    }

    async fn partitions(&mut self) -> Result<Vec<PartitionRow>> {
        unreachable!("row consistency is refused")
    }

    /// Becomes the owner of those among `wanted` that are not held.
    async fn take_partitions(&mut self, _wanted: &[Partition]) -> Outcome<Vec<PartitionRow>> {
        unreachable!("row consistency is refused")
    }

    /// Opens a transaction and moves these partitions, each from what this member last read or wrote.
    async fn begin_partitions(&mut self, _moves: &[(PartitionRow, PartitionMove)]) -> Outcome<()> {
        unreachable!("row consistency is refused")
    }

    // ---- What is parked there: see `super::letters` ----

    /// Whether anything ever was.
    async fn has_letters(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// Makes the table of letters if it is missing and `create` allows it.
    async fn prepare_letters(&mut self, _create: bool) -> Result<()> {
        unreachable!("row consistency is refused")
    }

    /// What is parked, by its rows, in the order in which it was.
    async fn held_letters(&mut self) -> Result<Vec<Held>> {
        Ok(Vec::new())
    }

    /// All of a row, in the order in which they were parked.
    async fn letters_of(&mut self, _of: &LetterKey) -> Result<Vec<Letter>> {
        unreachable!("row consistency is refused")
    }

    /// Letters that the dead-letter topic does not have yet, settled ones too.
    async fn uncopied_letters(&mut self, _most: i64) -> Result<Vec<Letter>> {
        unreachable!("row consistency is refused")
    }

    async fn letters_copied(&mut self, _spots: &[Spot]) -> Result<()> {
        unreachable!("row consistency is refused")
    }

    /// Those that are settled and copied are gone.
    async fn forget_letters(&mut self) -> Result<()> {
        unreachable!("row consistency is refused")
    }

    /// In the open transaction.
    async fn keep_letter(&mut self, _letter: &Letter) -> Outcome<()> {
        unreachable!("row consistency is refused")
    }

    /// In the open transaction: the row is right again, or all rows of the table are.
    async fn settle_letters(&mut self, _table: &TableName, _key: Option<&str>) -> Outcome<()> {
        unreachable!("row consistency is refused")
    }

    /// They were to be put back, and this is why they were not.
    async fn letters_refused(&mut self, _of: &LetterKey, _reason: &Reason) -> Result<()> {
        unreachable!("row consistency is refused")
    }

    /// Asks the sink's owner to put the letters of a row back.
    async fn ask_letters(&mut self, _of: &LetterKey) -> Result<()> {
        unreachable!("row consistency is refused")
    }

    // ---- What can be written ----

    /// What a sink and its tables ask for that this engine can't do. By default all that it may do without.
    fn lacks(sink: &config::Sink, tables: &[&config::SinkTable]) -> Vec<Halt> {
        lacks::all(sink, tables)
    }

    /// Everything that would keep `wanted` from being written, all at once. Nothing is changed.
    async fn preflight(&mut self, wanted: &[WantedTable]) -> Result<Findings>;

    /// How to write `wanted`, by the sink's catalog as it is now; in their order. The first finding of a preflight is the
    /// error.
    async fn plan(&mut self, wanted: &[WantedTable]) -> Result<Vec<Self::Plan>>;

    /// Refuses a table that still holds rows under constants that a table of the source had before: no chunk of it replaces them.
    async fn check_left(&mut self, wanted: &WantedTable, before: &[(String, String)]) -> Outcome<()>;

    /// What [`evolve`](Sink::evolve) would run now, as far as that can be told without the versions before. Changes nothing.
    async fn steps(&mut self, _wanted: &WantedTable, _evolve: Evolve) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Makes the table fit `wanted` as far as `evolve` allows, in the open transaction; whether anything was done. `earlier` are
    /// versions that the table may hold. `half`: a circle is half loaded in the open transaction.
    async fn evolve(
        &mut self,
        _wanted: &WantedTable,
        _earlier: &[WantedTable],
        _evolve: Evolve,
        _half: bool,
    ) -> Outcome<bool> {
        Ok(false)
    }

    /// Runs what a transaction asked for before it could go on ([`Failure::Ahead`](super::Failure::Ahead)).
    async fn go_ahead(&mut self, _ahead: &Ahead) -> Outcome<()> {
        unreachable!("only an engine that asks for it is told to")
    }

    // ---- The transaction ----

    /// Opens a transaction and moves the progress row from `from`, as this worker last read or wrote it, to `to`.
    async fn begin(&mut self, from: &ProgressRow, to: &Standing) -> Outcome<()>;

    /// Moves the progress row of the open transaction on, from what it was moved to before.
    async fn move_on(&mut self, from: &ProgressRow, to: &Standing) -> Outcome<()>;

    /// Writes the net effects of some tables, each table at most once. Tables that are emptied first are emptied together.
    async fn apply(&mut self, batch: &[(&Self::Plan, NetEffect)]) -> Outcome<Counts>;

    /// What is written next is of a transaction that the source committed then. Told where tables mark deleted rows with it, before
    /// [`truncate`](Sink::truncate).
    fn committed(&mut self, _time_us: Option<i64>) {}

    /// Empties exactly these tables, never others that reference them.
    async fn truncate(&mut self, plans: &[&Self::Plan]) -> Outcome<()>;

    /// Makes a range hold exactly these rows, complete in the wanted columns; no key comes twice. Counts: rows of the range that
    /// are not among them (phantoms) as deleted, rows written as inserted.
    ///
    /// `blank` are tables under load of which nothing was loaded yet: rows there that reference a phantom go with it, since
    /// their own ranges are still to be replaced and would otherwise hold the phantom for ever.
    async fn replace_range(
        &mut self,
        plan: &Self::Plan,
        range: &KeyRange,
        rows: &[RowBuf],
        blank: &[TableName],
    ) -> Outcome<Counts>;

    /// In the open transaction: what is written from here on may be taken back by itself. What was so before stays.
    async fn save(&mut self) -> Outcome<()> {
        unreachable!("row consistency is refused")
    }

    /// Takes back what was written since [`save`](Sink::save), also after a failure. False: the whole transaction is gone.
    async fn take_back(&mut self) -> Result<bool> {
        unreachable!("row consistency is refused")
    }

    /// Rows with these keys (of the table's own key, as texts) stay as they are in the range that is replaced next: they belong there,
    /// and what they should be is parked.
    fn spare(&mut self, _keys: Vec<Vec<String>>) {
        unreachable!("row consistency is refused")
    }

    /// Makes everything since `begin` visible at once.
    async fn commit(&mut self) -> Outcome<()>;

    /// Ends the open transaction, if any, without a trace.
    async fn rollback(&mut self) -> Result<()>;

    // ---- Constraints that see more than one row ----

    /// Until the end of the open transaction rows that stand in the way of unique values get out of it ([`super::park`]), tried once
    /// a unique constraint has refused the changes. To be called again before each write: `unread` changes as ranges come.
    /// Without it the changes are written one by one, in order, and what is refused then is a halt.
    fn park(&mut self, _unread: Unread) {}

    /// The circles among these tables of the sink, which are loaded in one transaction. Of no use where foreign keys are never
    /// checked later than with the row.
    async fn circles(&mut self, _tables: &[TableName]) -> Outcome<Circles> {
        Ok(Circles::new())
    }

    /// Empties tables while a circle is half there.
    async fn truncate_half_loaded(&mut self, plans: &[&Self::Plan]) -> Outcome<()> {
        self.truncate(plans).await
    }

    // ---- `foreign_keys = "after_load"`: see `super::foreign_keys` ----

    /// Foreign keys to be set aside while these tables, of all that we write, get their first rows.
    async fn foreign_keys(&mut self, _first: &[TableName], _all: &[TableName]) -> Result<Vec<Found>> {
        Ok(Vec::new())
    }

    /// What keeps us from putting them back, and so from setting them aside.
    fn foreign_key_findings(&self, _found: &[Found]) -> Vec<Halt> {
        Vec::new()
    }

    /// Makes what they are written down in, if it is missing and `create` allows it.
    async fn prepare_foreign_keys(&mut self, _create: bool) -> Result<()> {
        Ok(())
    }

    /// Writes them down and drops them, in the open transaction.
    async fn set_aside(&mut self, _found: &[Found]) -> Outcome<()> {
        unreachable!("no foreign key was found to be set aside")
    }

    /// Those that are written down.
    async fn foreign_keys_aside(&mut self) -> Result<Vec<SetAside>> {
        Ok(Vec::new())
    }

    /// Makes them again in the open transaction.
    async fn put_back(&mut self, _aside: &[SetAside], _sources: &Sources) -> Outcome<()> {
        unreachable!("no foreign key was set aside")
    }

    /// Checks the rows that were there before they were made again.
    async fn validate_foreign_keys(&mut self, _sources: &Sources) -> Outcome<()> {
        unreachable!("no foreign key was set aside")
    }

    /// They are no longer written down, from the open transaction on.
    async fn forget_foreign_keys(&mut self) -> Outcome<()> {
        unreachable!("no foreign key was set aside")
    }
}
