//! Who looks while it runs.
//!
//! - **Prefix**: at each sink, in one snapshot, what is there is what the source held after some commit: the sum of the balances,
//!   the twins, the numbers of each writer without a gap, and nothing that a transaction saw is missing. The same at the source,
//!   where it must be true whatever Lockstep does: that judges the oracle. While tables are read again only journal is judged,
//!   which never is.
//! - **Slot**: `confirmed_flush_lsn` is never beyond the closed LSN of the last valid checkpoint in the ledger.
//! - **Bounds**: memory and descriptors of the processes, sessions at the servers, log that the slot retains.
//!
//! All of them look past the proxies, and wait for servers that are away.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep::config;
use lockstep::error::Code;
use lockstep::kafka::consumer::Pieces;
use lockstep::ledger::entry::{Assembler, Entry};
use lockstep::ledger::state::State;
use lockstep::ledger::topic::PARTITION;
use lockstep::lsn::Lsn;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_postgres::{Client, IsolationLevel};
use tokio_util::sync::CancellationToken;

use super::stage::{SINKS, Stage};
use super::tables::{ACCOUNTS, BALANCE};
use super::verdict::Verdict;
use super::workload::WRITERS;

const LOOK_PAUSE: Duration = Duration::from_millis(150);
const SLOT_PAUSE: Duration = Duration::from_millis(20);
const AWAY_PAUSE: Duration = Duration::from_millis(200);
/// Rows of journal per writer in which gaps are looked for while it runs; at rest all of them are.
const TAIL: i64 = 300;
/// The newest rows have seen the newest ones.
const SAW_TAIL: i64 = 20;
/// Entries of the ledger that are read at once.
const PIECE_ENTRIES: i64 = 5_000;

/// The looks that go on until they are stopped.
#[derive(Debug)]
pub struct Oracles {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    slot: std::thread::JoinHandle<()>,
}

impl Oracles {
    pub fn start(stage: &Stage, verdict: &Verdict) -> Result<Oracles> {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for (name, database) in SINKS.into_iter().zip(&stage.sinks) {
            tasks.spawn(prefix(name, database.url(), true, verdict.clone(), stop.clone()));
        }
        tasks.spawn(prefix("source", stage.source.url(), false, verdict.clone(), stop.clone()));
        let confirmed = Arc::new(std::sync::Mutex::new(None));
        tasks.spawn(sample_slot(stage.source.url(), stage.pipeline.name.clone(), confirmed.clone(), stop.clone()));
        let mut config = config::load(&stage.pipeline.dir, &|_| Some("0".to_owned())).expect("what runs");
        config.kafka.brokers.clone_from(&stage.services.kafka);
        let (verdict, stopped) = (verdict.clone(), stop.clone());
        let slot = std::thread::spawn(move || judge_slot(&config.kafka, &confirmed, &verdict, &stopped));
        Ok(Oracles { stop, tasks, slot })
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.join_all().await;
        self.slot.join().expect("the observer of the slot");
    }
}

// ---- Prefix ----

async fn prefix(name: &'static str, url: String, sink: bool, verdict: Verdict, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if let Ok((mut client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
            tokio::spawn(connection);
            while !stop.is_cancelled() {
                match look(&mut client, sink).await {
                    Ok(Look::Whole) => verdict.look("prefix"),
                    Ok(Look::Journal) => verdict.look("prefix_of_journal"),
                    Ok(Look::Nothing) => {}
                    Ok(Look::Wrong(what)) => verdict.violation(format!("{name}: {what}")),
                    Err(_) => break,
                }
                sleep(LOOK_PAUSE).await;
            }
        }
        sleep(AWAY_PAUSE).await;
    }
}

enum Look {
    /// The first load is not complete.
    Nothing,
    Journal,
    Whole,
    Wrong(String),
}

/// Several statements in one snapshot.
async fn look(client: &mut Client, sink: bool) -> Result<Look, tokio_postgres::Error> {
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start().await?;
    let phase: String = match sink {
        true => match transaction.query_opt("SELECT phase FROM lockstep.progress", &[]).await? {
            Some(row) => row.get(0),
            None => return Ok(Look::Nothing),
        },
        false => "streaming".to_owned(),
    };
    if phase == "snapshot" {
        return Ok(Look::Nothing);
    }
    let gaps = "SELECT string_agg(format('writer %s: %s rows of journal in %s..%s', w, rows, first, last), ', ')
          FROM generate_series(0, $2::int8 - 1) w,
               LATERAL (SELECT max(seq) newest FROM journal WHERE writer = w) n,
               LATERAL (SELECT count(*) rows, min(seq) first, max(seq) last FROM journal
                         WHERE writer = w AND seq > newest - $1::int8) t
         WHERE rows <> least(newest, $1::int8)";
    if let Some(gaps) = transaction.query_one(gaps, &[&TAIL, &WRITERS]).await?.get::<_, Option<String>>(0) {
        return Ok(Look::Wrong(format!("gaps in {phase}: {gaps}")));
    }
    let unseen = "SELECT string_agg(format('%s of writer %s, seen by %s of writer %s', saw[o + 1], o, seq, w), ', ')
          FROM generate_series(0, $2::int8 - 1) w,
               LATERAL (SELECT seq, saw FROM journal WHERE writer = w ORDER BY seq DESC LIMIT $1::int8) t,
               generate_series(0, $2::int8 - 1) o
         WHERE saw[o + 1] > (SELECT coalesce(max(seq), 0) FROM journal WHERE writer = o)";
    if let Some(unseen) = transaction.query_one(unseen, &[&SAW_TAIL, &WRITERS]).await?.get::<_, Option<String>>(0) {
        return Ok(Look::Wrong(format!("out of order in {phase}: not there is {unseen}")));
    }
    if phase != "streaming" {
        return Ok(Look::Journal);
    }
    let row = transaction.query_one("SELECT coalesce(sum(balance), 0)::int8, count(*) FROM account", &[]).await?;
    let (sum, accounts): (i64, i64) = (row.get(0), row.get(1));
    if (sum, accounts) != (ACCOUNTS * BALANCE, ACCOUNTS) {
        return Ok(Look::Wrong(format!("torn: {accounts} accounts hold {sum}")));
    }
    let twins =
        "SELECT string_agg(format('%s: %s and %s', id, a.n, b.n), ', ') FROM twin_a a FULL JOIN twin_b b USING (id)
                  WHERE a.n IS DISTINCT FROM b.n";
    match transaction.query_one(twins, &[]).await?.get::<_, Option<String>>(0) {
        Some(twins) => Ok(Look::Wrong(format!("torn: twins {twins}"))),
        None => Ok(Look::Whole),
    }
}

// ---- Slot ----

type Confirmed = std::sync::Mutex<Option<Lsn>>;

async fn sample_slot(url: String, pipeline: String, confirmed: Arc<Confirmed>, stop: CancellationToken) {
    let sql =
        format!("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'lockstep_{pipeline}'");
    while !stop.is_cancelled() {
        if let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
            tokio::spawn(connection);
            while let Ok(row) = client.query_opt(&sql, &[]).await {
                let text: Option<String> = row.and_then(|row| row.get(0));
                *confirmed.lock().unwrap() = text.and_then(|text| text.parse().ok());
                if stop.is_cancelled() {
                    return;
                }
                sleep(SLOT_PAUSE).await;
            }
        }
        sleep(AWAY_PAUSE).await;
    }
}

/// Follows the ledger; after each reading compares with what the slot had confirmed before it. While the broker is away nothing
/// is appended, so what was confirmed meanwhile is judged by the ledger as it was.
fn judge_slot(kafka: &config::Kafka, confirmed: &Confirmed, verdict: &Verdict, stop: &CancellationToken) {
    let (mut state, mut assembler, mut next) = (State::default(), Assembler::default(), 0);
    while !stop.is_cancelled() {
        std::thread::sleep(AWAY_PAUSE);
        let Ok(mut pieces) = Pieces::open(kafka, &kafka.ledger, PARTITION) else { continue };
        while !stop.is_cancelled() {
            let sampled = *confirmed.lock().unwrap();
            if let Err(error) = follow(&mut pieces, &mut state, &mut assembler, &mut next) {
                match error.downcast_ref::<lockstep::error::Error>().and_then(lockstep::error::Error::code) {
                    None if error.is::<lockstep::error::Error>() => {}
                    _ => verdict.violation(format!("the ledger can't be read: {error:#}")),
                }
                break;
            }
            let closed = state.last.as_ref().map(|last| last.closed);
            if let (Some(sampled), Some(closed)) = (sampled, closed) {
                verdict.look("slot");
                if sampled > closed {
                    verdict.violation(format!(
                        "the slot has confirmed {sampled}, and the ledger is closed up to {closed}"
                    ));
                }
            }
            std::thread::sleep(SLOT_PAUSE);
        }
    }
}

fn follow(pieces: &mut Pieces, state: &mut State, assembler: &mut Assembler, next: &mut i64) -> Result<()> {
    let (low, high) = pieces.watermarks()?;
    ensure!(*next >= low, "entries from {next} on were trimmed before they were read: the ledger begins at {low}");
    while *next < high {
        let end = high.min(*next + PIECE_ENTRIES);
        for record in pieces.read(Some(*next), end, Code::LedgerTrimmed)? {
            let value = record.value.as_deref().unwrap_or_default();
            if let Some(entry) = assembler.push(record.offset, Entry::decode(record.offset, value)?)? {
                state.apply(record.offset, entry);
            }
        }
        *next = end;
    }
    Ok(())
}
