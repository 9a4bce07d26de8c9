//! What is done to the product and its servers, one fault after the other, as the seed has it.
//!
//! A fault ends with everything back in its place: processes run, servers are up, links are whole. What it left the product to
//! deal with is still there, and the next fault may come into the middle of that. None of them needs a person.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::level;
use super::stage::{PATIENCE, Role, SINKS, Stage};
use super::tables::{READ_AGAIN, extra};
use super::verdict::Verdict;

const POLL: Duration = Duration::from_millis(20);
/// How long an armed trap waits for what it is there for.
const TRAP_TIME: Duration = Duration::from_secs(30);
/// Each of these tables costs a start of the reader and a comparison.
const EXTRAS_MAX: u32 = 6;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// A kind of fault. The text names its count in reports.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[doc = $doc])* $name,)* }

        impl Kind {
            pub const ALL: &[Kind] = &[$(Kind::$name,)*];

            pub fn name(self) -> &'static str {
                match self { $(Kind::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// SIGKILL to processes of the source role, mostly the one that reads.
    KillSource = "source_kills",
    /// The same to a sink role.
    KillSink = "sink_kills",
    /// SIGKILL to all processes of all roles.
    KillAll = "kills_of_all",
    /// The reader is frozen until another one has its place, then it goes on.
    ZombieSource = "source_zombies",
    ZombieSink = "sink_zombies",
    /// The source's server ends at once and comes back.
    SourceCrash = "source_crashes",
    SinkCrash = "sink_crashes",
    BrokerKill = "broker_kills",
    /// Links are reset.
    Reset = "links_reset",
    /// Links are reset in the middle of what the server says.
    Cut = "links_cut",
    /// Links swallow everything.
    Blackhole = "links_deaf",
    /// Links swallow one direction.
    HalfOpen = "links_half_open",
    /// Everything takes longer.
    Delay = "links_delayed",
    Throttle = "links_throttled",
    /// Links are reset, and no new ones are let in.
    Refuse = "links_refused",
    /// The sink has committed, and the answer is lost.
    UnknownCommit = "unknown_commits",
    /// The broker has taken records, and the answer is lost.
    ProduceLost = "produce_answers_lost",
    /// Somebody holds a lock at the sink.
    SlowSink = "sink_locks",
    /// A table is read again.
    Resync = "resyncs",
    /// A table is read again, and who reads and who writes are killed.
    LoadKilled = "loads_killed",
    /// A table that a pattern matches is made.
    NewTable = "new_tables",
    /// The columns of a table change.
    Alter = "alters",
}

/// Who does it.
pub struct Faults<'a> {
    pub stage: &'a Stage,
    pub roles: &'a mut [Role; 3],
    pub random: &'a mut StdRng,
    pub verdict: &'a Verdict,
    /// Tables made so far.
    pub extras: &'a mut u32,
    /// Columns added so far.
    pub alters: &'a mut u32,
}

impl Faults<'_> {
    /// Does it, and counts what took effect.
    pub async fn strike(&mut self, kind: Kind) -> Result<()> {
        let times = match kind {
            Kind::KillSource => self.kill(None).await?,
            Kind::KillSink => {
                let sink = self.sink();
                self.kill(Some(sink)).await?
            }
            Kind::KillAll => self.kill_all().await?,
            Kind::ZombieSource => self.zombie(None).await?,
            Kind::ZombieSink => {
                let sink = self.sink();
                self.zombie(Some(sink)).await?
            }
            Kind::SourceCrash | Kind::SinkCrash => self.crash(kind).await?,
            Kind::BrokerKill => self.kill_broker().await?,
            Kind::Reset
            | Kind::Cut
            | Kind::Blackhole
            | Kind::HalfOpen
            | Kind::Delay
            | Kind::Throttle
            | Kind::Refuse => self.link(kind).await?,
            Kind::UnknownCommit | Kind::ProduceLost => self.lose_answers(kind).await?,
            Kind::SlowSink => self.lock().await?,
            Kind::Resync => self.resync(None)?,
            Kind::LoadKilled => self.kill_load().await?,
            Kind::NewTable => self.new_table().await?,
            Kind::Alter => self.alter().await?,
        };
        self.verdict.fault(kind.name(), times);
        Ok(())
    }

    fn sink(&mut self) -> usize {
        self.random.random_range(0..SINKS.len())
    }

    async fn pause(&mut self, max_ms: u64) {
        let pause = self.random.random_range(0..=max_ms);
        sleep(Duration::from_millis(pause)).await;
    }

    /// Place of a role among the roles.
    fn place(sink: Option<usize>) -> usize {
        sink.map_or(0, |sink| sink + 1)
    }

    // ---- Processes ----

    /// Some kills in a row, each somewhere in the start or the work of whoever took over.
    async fn kill(&mut self, sink: Option<usize>) -> Result<u64> {
        let place = Self::place(sink);
        let times = self.random.random_range(1..=4);
        for _ in 0..times {
            self.pause(700).await;
            let any = self.random.random_range(0..2);
            let process = self.roles[place].active().await.unwrap_or(any);
            self.roles[place].kill(process)?;
            self.roles[place].spawn(self.stage, process)?;
        }
        Ok(times)
    }

    async fn kill_all(&mut self) -> Result<u64> {
        self.pause(700).await;
        for role in self.roles.iter_mut() {
            for process in 0..role.processes.len() {
                role.kill(process)?;
            }
        }
        for sink in [None, Some(0), Some(1)] {
            self.verdict.fault(if sink.is_none() { Kind::KillSource } else { Kind::KillSink }.name(), 2);
        }
        self.pause(500).await;
        for role in self.roles.iter_mut() {
            for process in 0..role.processes.len() {
                role.spawn(self.stage, process)?;
            }
        }
        Ok(1)
    }

    async fn zombie(&mut self, sink: Option<usize>) -> Result<u64> {
        let place = Self::place(sink);
        self.pause(500).await;
        let Some(frozen) = self.active(place).await else { return Ok(0) };
        self.roles[place].freeze(frozen)?;
        let taken = self.taken_over(place, 1 - frozen).await;
        // The one that has its place does something before it wakes up.
        self.pause(1_000).await;
        self.roles[place].thaw(frozen)?;
        ensure!(taken, "{}: nobody took the place of a frozen process within {PATIENCE:?}", self.roles[place].name);
        Ok(1)
    }

    /// The process of a role that works, as soon as one does.
    async fn active(&self, place: usize) -> Option<usize> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(active) = self.roles[place].active().await {
                return Some(active);
            }
            sleep(POLL).await;
        }
        None
    }

    async fn taken_over(&self, place: usize, by: usize) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if matches!(self.roles[place].state(by).await.as_str(), "streaming" | "snapshot") {
                return true;
            }
            sleep(POLL).await;
        }
        false
    }

    // ---- Servers ----

    async fn crash(&mut self, kind: Kind) -> Result<u64> {
        let server = match kind {
            Kind::SourceCrash => self.stage.source.server.clone(),
            _ => self.stage.server(self.sink()).clone(),
        };
        self.pause(500).await;
        let crashed = server.clone();
        spawn_blocking(move || crashed.crash()).await??;
        self.pause(1_000).await;
        spawn_blocking(move || server.start()).await??;
        Ok(1)
    }

    async fn kill_broker(&mut self) -> Result<u64> {
        self.pause(500).await;
        let services = self.stage.services.clone();
        let killed = services.clone();
        spawn_blocking(move || killed.crash_kafka()).await??;
        self.pause(1_500).await;
        spawn_blocking(move || services.start_kafka()).await??;
        Ok(1)
    }

    async fn lock(&mut self) -> Result<u64> {
        let sink = self.sink();
        let client = self.stage.sinks[sink].connect().await?;
        client.batch_execute("BEGIN; LOCK TABLE account, journal IN EXCLUSIVE MODE").await?;
        self.pause(2_500).await;
        client.batch_execute("ROLLBACK").await?;
        Ok(1)
    }

    // ---- Links ----

    async fn link(&mut self, kind: Kind) -> Result<u64> {
        let links = self.stage.links.all();
        let (_, link) = links.choose(self.random).expect("four links");
        self.pause(300).await;
        let struck = match kind {
            Kind::Reset => link.reset(),
            Kind::Cut => link.cut_after(self.random.random_range(1..20_000)),
            Kind::Blackhole => link.swallow(),
            Kind::HalfOpen => link.half_open(self.random.random()),
            Kind::Delay => {
                link.delay(Duration::from_millis(self.random.random_range(10..150)));
                1
            }
            Kind::Throttle => {
                link.throttle(self.random.random_range(10_000..200_000));
                1
            }
            _ => {
                link.refuse();
                link.reset()
            }
        };
        self.pause(2_500).await;
        // A link that is dead without a word must be noticed as well, which takes longer.
        let deaf = matches!(kind, Kind::Blackhole | Kind::HalfOpen);
        if deaf && self.random.random_ratio(1, 3) {
            level(self.stage, self.roles, self.verdict, kind.name()).await?;
        }
        link.mend();
        Ok(u64::from(struck > 0))
    }

    async fn lose_answers(&mut self, kind: Kind) -> Result<u64> {
        let sink = self.sink();
        let link = if kind == Kind::ProduceLost { &self.stage.links.kafka } else { &self.stage.links.sinks[sink] };
        let (before, count) = (link.lost(), self.random.random_range(1..=4));
        link.lose_answers(count);
        let begun = Instant::now();
        while link.lost() < before + count && begun.elapsed() < TRAP_TIME {
            sleep(POLL).await;
        }
        link.mend();
        Ok(link.lost() - before)
    }

    // ---- Tables ----

    fn resync(&mut self, table: Option<&str>) -> Result<u64> {
        let table = table.unwrap_or_else(|| READ_AGAIN.choose(self.random).expect("tables"));
        let sink = SINKS[self.sink()];
        let arguments = ["resync", table, "--sink", sink];
        let output = tokio::task::block_in_place(|| self.stage.pipeline.command(&arguments))?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {}\n{text}", output.status);
        Ok(1)
    }

    async fn kill_load(&mut self) -> Result<u64> {
        self.resync(Some("public.shape"))?;
        for sink in [None, Some(0), Some(1)] {
            self.pause(250).await;
            let place = Self::place(sink);
            if let Some(process) = self.roles[place].active().await {
                self.roles[place].kill(process)?;
                self.roles[place].spawn(self.stage, process)?;
                let kind = if sink.is_none() { Kind::KillSource } else { Kind::KillSink };
                self.verdict.fault(kind.name(), 1);
            }
        }
        Ok(1)
    }

    async fn new_table(&mut self) -> Result<u64> {
        if *self.extras == EXTRAS_MAX {
            return Ok(0);
        }
        let number = *self.extras;
        let table = extra(number);
        for sink in &self.stage.sinks {
            sink.execute(&table).await?;
        }
        let rows = format!("INSERT INTO extra_{number} SELECT i, 'v' || i FROM generate_series(1, 250) i");
        self.stage.source.execute(&format!("{table}; {rows}")).await?;
        *self.extras += 1;
        self.pause(1_000).await;
        let changes =
            format!("UPDATE extra_{number} SET v = 'new' WHERE id < 9; DELETE FROM extra_{number} WHERE id > 240");
        self.stage.source.execute(&changes).await?;
        Ok(1)
    }

    /// In turn: a column more, another type with other values, a column less.
    async fn alter(&mut self) -> Result<u64> {
        let (round, turn) = (*self.alters / 3, *self.alters % 3);
        let change = match turn {
            0 => format!("ADD COLUMN c{round} int DEFAULT {round}"),
            1 => format!("ALTER COLUMN v TYPE {} USING v + 1", if round % 2 == 0 { "bigint" } else { "int" }),
            _ => format!("DROP COLUMN c{round}"),
        };
        *self.alters += 1;
        self.stage.source.execute(&format!("ALTER TABLE shape {change}")).await?;
        Ok(1)
    }
}
