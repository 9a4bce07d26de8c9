//! The owner's part in parking: what the sink refuses gets a letter, letters are copied to the dead-letter topic, and those that
//! somebody asked for are put back.
//!
//! Only the owner parks what the sink refused, and it does so while it holds all partitions: a member leaves what it can't apply,
//! as ever. So whoever takes a partition afterwards reads in the sink which rows have letters.

use std::time::{Duration, Instant};

use super::Worker;
use crate::apply::letters::At;
use crate::apply::parking::tell_parked;
use crate::apply::refused::refusal;
use crate::apply::writer::Refused;
use crate::config::{Consistency, OnRefused};
use crate::error::{Code, Error, Halt, Result};
use crate::kafka::producer::{Message, Producer, Purpose, Sent};
use crate::kafka::reread::Reread;
use crate::kafka::topics::{self, Kind, Wanted};
use crate::sink::letters::{Held, Letter, LetterKey, Reason, Spot};
use crate::sink::{Failure, Sink};

/// How often the table of letters is looked at: for those that members parked behind others, and for what is asked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Letters copied at once.
const COPIES_MAX: i64 = 100;

/// How long the brokers may take with them: nothing else is applied meanwhile.
const COPY_TIMEOUT: Duration = Duration::from_secs(5);

/// Copies are not what counts: where they fail nobody stops for it, and the next try is so much later.
const COPY_PAUSE: Duration = Duration::from_secs(60);

/// What the owner knows of letters.
#[derive(Default)]
pub(super) struct Parked {
    /// There may be some.
    pub known: bool,
    pub held: Vec<Held>,
    looked: Option<Instant>,
    producer: Option<Producer>,
    copies_failed: Option<Instant>,
}

impl Parked {
    /// Rows and their records.
    pub fn counts(&self) -> (u64, u64) {
        (self.held.len() as u64, self.held.iter().map(|held| held.letters).sum())
    }
}

impl<S: Sink> Worker<S> {
    /// Everything that parking needs is there; and a sink that writes whole transactions leaves nothing out.
    pub(super) async fn begin_letters(&mut self) -> Result<()> {
        let rows = self.sink.consistency == Consistency::Row;
        let parks = rows && self.sink.parking.on_refused == OnRefused::Park;
        if parks {
            self.writer.sink.prepare_letters(self.config.create).await?;
            let wanted = [Wanted { name: self.sink.parking.topic.clone(), partitions: 1, kind: Kind::Data }];
            let made = topics::ensure(&self.config.kafka, &wanted, self.config.create);
            self.writer.sink.meanwhile(made).await?;
        }
        self.parked.known = parks || self.writer.sink.has_letters().await?;
        if !self.parked.known {
            return Ok(());
        }
        self.writer.letters.parks = parks;
        self.writer.again = Some(Reread::new(&self.config.kafka));
        self.read_letters().await
    }

    /// As the sink has them now, which is to be while all partitions are held.
    pub(super) async fn read_letters(&mut self) -> Result<()> {
        if self.parked.known {
            self.parked.held = self.writer.sink.held_letters().await?;
            self.writer.letters.read(&self.parked.held);
        }
        Ok(())
    }

    /// Of a sink that is to write whole transactions again.
    pub(super) fn refuse_letters(&self) -> Result<()> {
        if self.parked.held.is_empty() {
            return Ok(());
        }
        let (name, rows) = (&self.sink.name, self.parked.held.len());
        let message =
            format!("{rows} rows of sink {name} are parked, and consistency = \"transaction\" leaves out none");
        let halt = Halt {
            code: Code::RowConsistency,
            message,
            facts: vec![format!("what is asked for is put back at the next start: lockstep retry --sink {name} --all")],
            hint: format!("write consistency = \"row\" for sink {name}, and lockstep retry --sink {name} --list"),
        };
        Err(halt.into())
    }

    /// Whether the row that was just refused is parked by the next try.
    pub(super) async fn parks(&mut self, failure: &Failure) -> Result<bool, Failure> {
        let held = self.floor.as_ref().is_some_and(|floor| !floor.is_shared());
        let Some(halt) = refusal(failure).filter(|_| held && self.writer.letters.parks) else { return Ok(false) };
        let refused = self.writer.refused.take();
        let at = match &refused {
            Some(Refused::Row(_, _, Some((version, change)))) => Some(version.at(&change.place)),
            Some(Refused::Chunk(chunk)) => {
                let place = self.place_in_chunk(chunk, failure).await;
                place.map(|place| chunk.version.at(&chunk.changes[place].place))
            }
            _ => None,
        };
        self.writer.refused = refused;
        let Some(at) = at else { return Ok(false) };
        self.park_next(at, Reason::of(halt), halt)?;
        Ok(true)
    }

    fn park_next(&mut self, at: At, reason: Reason, halt: &Halt) -> Result<(), Failure> {
        tell_parked(&self.sink.name, &at, &reason);
        self.writer.letters.refuse(at, reason).map_err(|mut full| {
            full.facts.push(format!("the next one: {}", halt.message));
            Failure::Error(Error::Halt(full))
        })
    }

    /// Now and then: copies letters, and puts back those that somebody asked for.
    pub(super) async fn look_after_letters(&mut self) -> Result<()> {
        let due = self.parked.looked.is_none_or(|looked| looked.elapsed() >= LOOK_INTERVAL);
        if !self.parked.known || !due {
            return Ok(());
        }
        self.parked.held = self.writer.sink.held_letters().await?;
        self.copy_letters().await?;
        self.writer.sink.forget_letters().await?;
        if self.parked.held.iter().any(|held| held.asked) && self.writer.loads.is_empty() {
            self.hold_for_letters().await?;
            self.retry_letters().await?;
        }
        self.parked.looked = Some(Instant::now());
        Ok(())
    }

    /// Those that somebody asked for; all partitions are held.
    pub(super) async fn retry_letters(&mut self) -> Result<()> {
        let asked: Vec<LetterKey> =
            self.parked.held.iter().filter(|held| held.asked).map(|held| held.of.clone()).collect();
        for of in asked {
            let letters = self.writer.sink.letters_of(&of).await?;
            let outcome = self.put_back(&letters).await;
            let Err(failure) = outcome else {
                self.writer.letters.committed();
                let counts = std::mem::take(&mut self.writer.counts);
                super::count(&self.metrics, counts, 0, 0);
                tracing::info!(sink = self.sink.name, table = %of.table, "what was parked of a row is put back");
                continue;
            };
            let _ = self.abort().await;
            let refused = refusal(&failure).or(match &failure {
                Failure::Error(Error::Halt(halt)) if is_of_row(halt.code) => Some(halt),
                _ => None,
            });
            let Some(refused) = refused else { return Err(failure.into()) };
            let reason = Reason::of(refused);
            self.writer.sink.letters_refused(&of, &reason).await?;
            tracing::warn!(sink = self.sink.name, "what is parked of a row is refused again: {}", reason.message);
        }
        self.read_letters().await
    }

    async fn put_back(&mut self, letters: &[Letter]) -> Result<(), Failure> {
        let standing = self.standing();
        self.writer.begin_transaction();
        self.writer.sink.begin(&self.row, &standing).await?;
        self.writer.put_back(letters, self.machine.state()).await?;
        self.writer.sink.commit().await?;
        self.row.standing = standing;
        Ok(())
    }

    /// Copies what the topic does not have yet.
    async fn copy_letters(&mut self) -> Result<()> {
        if self.parked.copies_failed.is_some_and(|failed| failed.elapsed() < COPY_PAUSE) {
            return Ok(());
        }
        self.parked.copies_failed = None;
        loop {
            let letters = self.writer.sink.uncopied_letters(COPIES_MAX).await?;
            if letters.is_empty() {
                return Ok(());
            }
            let mut producer = match self.parked.producer.take() {
                Some(producer) => producer,
                None => Producer::open(&self.config.kafka, Purpose::Ledger)?,
            };
            let (config, sink) = (self.config.clone(), self.sink.clone());
            let sent = async {
                let sent = tokio::time::timeout(COPY_TIMEOUT, send(&mut producer, &config.name, &sink, &letters)).await;
                sent.map_err(|_| Error::retry_plain(format!("copying parked records to topic {}", sink.parking.topic)))?
            };
            // A failure of the sink, meanwhile, shows in the next statement.
            if let Err(error) = self.writer.sink.meanwhile(sent).await {
                self.parked.copies_failed = Some(Instant::now());
                let topic = &self.sink.parking.topic;
                tracing::warn!(sink = self.sink.name, topic, %error, "parked records are not copied to their topic, they stay in the sink");
                return Ok(());
            }
            self.parked.producer = Some(producer);
            let spots: Vec<Spot> = letters.into_iter().map(|letter| letter.spot).collect();
            self.writer.sink.letters_copied(&spots).await?;
        }
    }
}

/// Nothing but these rows is the matter.
fn is_of_row(code: Code) -> bool {
    // The last of a version of the table that the sink can't hold any more.
    let of_shape = matches!(code, Code::SinkTable | Code::Config | Code::RowConsistency);
    of_shape || matches!(code, Code::SinkDiverged | Code::AbsentBase | Code::ParkedKey | Code::RecordInvalid)
}

/// The record as it was, with what is known of it in headers.
async fn send(producer: &mut Producer, pipeline: &str, sink: &crate::config::Sink, letters: &[Letter]) -> Result<()> {
    let route = producer.route(&sink.parking.topic);
    for letter in letters {
        let Letter { spot, of, position, record, reason, parked_at } = letter;
        let again = format!("lockstep retry --sink {} --table {} --key '{}'", sink.name, of.table, of.key);
        let known = [
            ("lockstep.parked.pipeline", pipeline.to_owned()),
            ("lockstep.parked.sink", sink.name.clone()),
            ("lockstep.parked.topic", spot.topic.clone()),
            ("lockstep.parked.partition", spot.partition.to_string()),
            ("lockstep.parked.offset", spot.offset.to_string()),
            ("lockstep.parked.commit_lsn", position.lsn.to_string()),
            ("lockstep.parked.table", of.table.to_string()),
            ("lockstep.parked.key", of.key.clone()),
            ("lockstep.parked.code", reason.code.clone()),
            ("lockstep.parked.sqlstate", reason.sqlstate.clone().unwrap_or_default()),
            ("lockstep.parked.column", reason.column.clone().unwrap_or_default()),
            ("lockstep.parked.reason", reason.message.clone()),
            ("lockstep.parked.at", parked_at.to_string()),
            ("lockstep.parked.retry", again),
        ];
        let own = record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        let known = known.iter().filter(|(_, value)| !value.is_empty());
        let headers: Vec<_> = own.chain(known.map(|(name, value)| (*name, Some(value.as_bytes())))).collect();
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let message =
            Message { route, partition: Some(0), key, value, headers: &headers, timestamp_ms: None, token: 0 };
        while producer.send(&message)? == Sent::Full {
            acknowledged(producer).await?;
        }
    }
    while producer.in_flight_bytes() > 0 {
        acknowledged(producer).await?;
    }
    producer.take_acks(&mut Vec::new())
}

async fn acknowledged(producer: &Producer) -> Result<()> {
    producer.acked().await;
    producer.take_acks(&mut Vec::new())
}
