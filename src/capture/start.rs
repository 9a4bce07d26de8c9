//! The start of a reader: everything that must be true before the first record is written.
//!
//! Order matters (docs/design.md section 2). What can't change while we wait is checked first. The publication is made before the slot:
//! a slot that has to decode what was written before its publication existed is stuck for good. Holding the slot is the lease;
//! only its holder appends a claim, and only a claim that was read back makes an epoch.
//!
//! A restart (`lockstep restart`) is a start that takes nothing over: whatever slot there is is dropped and made anew, topics may
//! be others, and after the claim the entry `restart` says so. Each step leaves an entry, so a start that dies goes on where it
//! was: the request, the intent, the new slot's `source`, the claim, the restart.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::capture::departures::Departures;
use crate::capture::{routing, shape, signal_table};
use crate::config::{Config, LeftOut, Table};
use crate::error::{Code, Error, Halt, Result};
use crate::kafka::consumer::Tail;
use crate::kafka::topics::{self, Kind, TopicFacts, Wanted};
use crate::ledger::entry::{
    Assembler, Body, Claim, Entry, Request, Restart, SourceEntry, SourceIdentity, TopicIdentity,
};
use crate::ledger::state::State;
use crate::ledger::topic::{self, APPEND_TIMEOUT, Appender, Reading};
use crate::look::Look;
use crate::lsn::Lsn;
use crate::postgres::filter::Filters;
use crate::postgres::slot::SlotFacts;
use crate::postgres::stream::{Start, Stream};
use crate::postgres::wire::{Connection, SystemIdentity};
use crate::postgres::{catalog, look, preflight, publication, slot, timeline};
use crate::record::Epoch;
use crate::relation::TableName;
use crate::session::{self, Session};
use crate::status::{self, SourceReporter};

/// How often the making of a slot says what it waits for.
const CREATE_TELL: Duration = Duration::from_secs(3);

/// How often a slot that another Lockstep holds is tried again.
const STANDBY_INTERVAL: Duration = Duration::from_millis(500);

/// How long a slot that somebody else holds is tried again: a program that just died may hold it for a moment.
const FOREIGN_HOLDER_WAIT: Duration = Duration::from_secs(15);

/// A reader that holds the slot and whose claim was read back.
pub struct Started {
    /// With every table by its name, also those that are leaving.
    pub config: Arc<Config>,
    /// Tables that patterns match and that can't be followed yet.
    pub left_out: Vec<LeftOut>,
    /// Tables that an earlier reader had and that are gone.
    pub departures: Departures,
    pub session: Session,
    pub stream: Stream,
    pub appender: Appender,
    pub tail: Tail,
    pub state: State,
    pub assembler: Assembler,
    pub epoch: Epoch,
    pub topics: BTreeMap<String, TopicIdentity>,
    /// Closed LSN to go on from.
    pub closed: Lsn,
    /// Where the slot stands; at most there.
    pub confirmed: Lsn,
    /// Tables in the order of their foreign keys, parents first.
    pub order: Vec<TableName>,
    /// Tables that each table references.
    pub parents: HashMap<TableName, BTreeSet<TableName>>,
    /// Rows of each table, as the last VACUUM or ANALYZE estimated them.
    pub estimates: HashMap<TableName, u64>,
    /// The tables as the catalog has them, but for those that are leaving.
    pub looks: Vec<(TableName, Option<Look>)>,
    /// The marks of tables whose filter is the connector's.
    pub marks: HashMap<TableName, String>,
    /// Why no signals are read, if so.
    pub signals: Option<Halt>,
}

/// Starts a reader, or says why it can't be.
pub async fn start(config: &Arc<Config>, reporter: &SourceReporter, stop: &CancellationToken) -> Result<Started> {
    let session = session::connect(&config.source.database, &application_name(config)).await?;
    let resolved = routing::resolve(&session, config).await?;
    let (given, config) = (config, &resolved.config);
    let names: Vec<TableName> = config.tables.iter().map(|table| table.name.clone()).collect();
    let publication = publication::publication_facts(&*session, &config.source.publication).await?;
    let insert_only = shape::insert_only(config, publication.as_ref());
    let wanted = preflight::Wanted {
        publication: &config.source.publication,
        tables: &names,
        insert_only: &insert_only,
        create: config.create,
        // What was read once is read no more: whether a right is missing is known where rows are.
        reads: false,
    };
    first_of(preflight::check_source(&*session, wanted).await?)?;
    let version = catalog::source_facts(&*session).await?.version;
    let facts: Vec<_> = catalog::table_facts(&*session, &names).await?.into_iter().flatten().collect();
    first_of(shape::findings(&session, version, config, &facts).await?)?;
    let estimates = facts.iter().filter_map(|table| Some((table.name.clone(), table.rows_estimate?))).collect();
    let parents = preflight::parents(&facts);
    let rank = |table: &TableName| config.table(table).map_or(0, |table| table.snapshot_order);
    let order: Vec<TableName> =
        preflight::load_order(&facts, rank).order.into_iter().map(|i| facts[i].name.clone()).collect();

    let found = slot::slot_facts(&*session, &config.source.slot).await?;
    // Before the ledger is asked for: nobody should be told to drop a slot that was never ours.
    let lost = found.as_ref().and_then(|slot| slot::check_slot(slot, &config.source.database.dbname).err());
    let lost = match lost {
        Some(error) if error.code() == Some(Code::SlotLost) => Some(error),
        Some(error) => return Err(error),
        None => None,
    };
    let (ledger, told) = read_ledger(given, found.as_ref()).await?;
    let restart = told.asked.clone();
    if let (Some(error), None) = (lost, &restart) {
        return Err(error);
    }
    // A restart takes nothing over.
    let state = if restart.is_some() { State { base: told.base, ..State::default() } } else { told.clone() };
    // A reader writes its topics down once their tables are published.
    let seen = look::looks(&*session, &config.source.publication, &names).await?;
    // One that was dropped and made again left the publication with its predecessor; it comes back in and is read anew.
    let remade = |name: &TableName| {
        let now = names.iter().position(|n| n == name).and_then(|i| seen[i].as_ref());
        state.catalog.get(name).is_some_and(|known| now.is_some_and(|now| now.oid != known.oid))
    };
    // Of tables that share a topic each is known by itself.
    let known = |t: &&Table| t.shape.constants.is_empty() || state.catalog.contains_key(&t.name);
    let published = config.tables.iter().filter(|t| state.topics.contains_key(&t.topic)).filter(known);
    let published = published.map(|t| t.name.clone());
    let published: Vec<TableName> = published.filter(|name| !remade(name)).collect();
    let mut filters = shape::filters(config, &state.catalog);
    filters.ensure(&*session, &config.source.publication, config.create).await?;
    if !published.is_empty() {
        let (publication, filtered) = (&config.source.publication, config.filtered());
        let ours: Vec<TableName> = names.iter().chain(&config.source.signal_table).cloned().collect();
        let checked = publication::check_published(&*session, publication, &ours, &filtered, &published).await;
        checked.map_err(|error| routing::with_left_out(error, &resolved.left_out))?;
    }
    let routing::Resolved { config, left_out, .. } = routing::publish(&session, resolved).await?;
    let config = &Arc::new(config);
    let names: Vec<TableName> = config.tables.iter().map(|table| table.name.clone()).collect();
    let topics = ensure_topics(config, ledger, &state).await?;
    let mut appender = Appender::open(&config.kafka)?;
    appender.base = state.base;

    let replication = Connection::open(&config.source, &application_name(config)).await?;
    let slot = Slot { session: &session, version, found, reporter };
    let identity = match &restart {
        Some(_) => renew_slot(config, slot, replication, &told, &mut appender, &mut filters).await?,
        None => ensure_slot(config, slot, replication, &state, &mut appender, &mut filters).await?,
    };
    let ensured = publish(config, &session, &mut filters).await;
    ensured.map_err(|error| routing::with_left_out(error, &left_out))?;
    let signals = signal_table::publish(&session, config, &mut None).await?;

    let (stream, timeline) = take_slot(config, &session, &identity, &state, reporter, stop).await?;
    check_routes(config, &session).await?;
    // Whoever had the slot meanwhile may have gone on, on another timeline than the one that we are on now: what the ledger
    // says by now counts. A reader that would have to stop claims nothing.
    let mut asking = Connection::open(&config.source, &application_name(config)).await?;
    if restart.is_none() {
        let shared = config.clone();
        let now = topic::beside(move || Reading::open(&shared.kafka)?.fold_all()).await?;
        check_history(&mut asking, &now, timeline).await?;
    }
    let nonce = rand::random();
    let claim = Claim {
        instance: Uuid::new_v4(),
        nonce,
        timeline,
        host: hostname(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let offset = appender.append_and_wait(Body::Claim(claim), APPEND_TIMEOUT).await?;
    let epoch = Epoch { offset: offset.unsigned_abs(), nonce };
    appender.epoch = epoch;
    let (mut state, mut assembler) = read_back(config, epoch, offset).await?;
    let mut end = offset;
    // Up to the claim somebody on another timeline could go on, behind a primary that nobody has stopped.
    if state.asked.is_none() {
        check_history(&mut asking, &state, timeline).await?;
    }
    drop(asking);
    if let Some(asked) = &state.asked {
        let entry = restart_entry(&state, asked, epoch)?;
        end = appender.append_and_wait(Body::Restart(entry), APPEND_TIMEOUT).await?;
        (state, assembler) = read_back(config, epoch, end).await?;
        tracing::info!(entry = end, "begun anew: every table is read again");
    }
    let tail = Tail::open(&config.kafka, &config.kafka.ledger, topic::PARTITION, end + 1, Code::LedgerTrimmed)?;
    appender.base = state.base;
    let (closed, confirmed) = check_confirmed(config, &session, &state).await?;
    // The slot is ours, so what is compared with this was seen before.
    let looks = look::looks(&*session, &config.source.publication, &names).await?;
    let looks = names.into_iter().zip(looks).collect();
    let (config, departures) = departures(config, &session, &state).await?;
    let order = order.into_iter().filter(|table| config.table(table).is_some()).collect();
    Ok(Started {
        config,
        left_out,
        departures,
        session,
        stream,
        appender,
        tail,
        state,
        assembler,
        epoch,
        topics,
        closed,
        confirmed,
        order,
        parents,
        estimates,
        looks,
        marks: filters.marks,
        signals,
    })
}

/// While we waited for the slot its holder may have taken in tables that patterns match. It is ours now, and rows that we have
/// no table for would be passed over.
async fn check_routes(config: &Config, session: &Session) -> Result<()> {
    let now = routing::resolve(session, config).await?.published();
    match routing::difference(&routing::by_pattern(config), &now) {
        Some(why) => Err(Error::retry_plain(why)),
        None => Ok(()),
    }
}

/// Tables of patterns that the reader before had and that are gone: their last changes may be still to come. They stay routed
/// until then.
async fn departures(config: &Arc<Config>, session: &Session, state: &State) -> Result<(Arc<Config>, Departures)> {
    let had = state.routed.iter().flat_map(|routed| &routed.tables);
    let leaving: Vec<TableName> =
        had.filter(|table| config.table(table).is_none() && config.is_by_pattern(table)).cloned().collect();
    if leaving.is_empty() {
        return Ok((config.clone(), Departures::default()));
    }
    let now: Vec<TableName> = routing::by_pattern(config).into_iter().collect();
    let (config, _) = config.resolve(now.iter().chain(&leaving));
    let leaving = leaving.into_iter().filter(|table| config.table(table).is_some());
    let departures = Departures::of(leaving, slot::insert_lsn(&**session).await?);
    Ok((Arc::new(config), departures))
}

pub fn application_name(config: &Config) -> String {
    format!("lockstep:{}:source", config.name)
}

/// The first finding as an error; the others ride along as facts.
fn first_of(findings: Vec<Halt>) -> Result<()> {
    let mut findings = findings.into_iter();
    let Some(mut first) = findings.next() else { return Ok(()) };
    for other in findings {
        first.facts.push(format!("also [{}]: {} (help: {})", other.code, other.message, other.hint));
    }
    Err(first.into())
}

/// The ledger's topic, if there is one, and its state before our claim. A slot without a ledger is never a first start.
pub async fn read_ledger(config: &Arc<Config>, slot: Option<&SlotFacts>) -> Result<(Option<TopicFacts>, State)> {
    let ledger = &config.kafka.ledger;
    let facts = topics::describe(&config.kafka, &[ledger.as_str()]).await?.remove(0);
    let state = if facts.is_some() {
        let config = config.clone();
        topic::beside(move || Reading::open(&config.kafka)?.fold_all()).await?
    } else {
        State::default()
    };
    let known = state.source.is_some() || state.intent.is_some() || state.asked.is_some();
    match slot {
        Some(slot) if !known => {
            let message = format!(
                "slot \"{}\" exists but the ledger {ledger} {}: what was published up to the slot's position is not known",
                slot.name,
                if facts.is_some() { "is empty" } else { "does not exist" }
            );
            let hint =
                format!("lockstep restart; or, if it never was ours, SELECT pg_drop_replication_slot('{}')", slot.name);
            Err(Error::halt(Code::LedgerLost, message, hint))
        }
        _ => Ok((facts, state)),
    }
}

/// Topics that the ledger knows must be the same ones; those that it does not know are made.
async fn ensure_topics(
    config: &Config,
    ledger: Option<TopicFacts>,
    state: &State,
) -> Result<BTreeMap<String, TopicIdentity>> {
    check_topics(config, ledger, state).await?;
    let mut wanted = vec![Wanted { name: config.kafka.ledger.clone(), partitions: 1, kind: Kind::Ledger }];
    wanted.extend(table_topics(config));
    let foreign = foreign_topics(config);
    for name in &foreign {
        wanted.push(Wanted { name: name.clone(), partitions: 1, kind: Kind::Data });
    }
    let facts = topics::ensure(&config.kafka, &wanted, config.create).await?;
    let mut identities = state.topics.clone();
    // What is in no span may be deleted and made again.
    for facts in facts.into_iter().filter(|facts| !foreign.contains(&facts.name)) {
        identities.insert(facts.name, TopicIdentity { id: facts.id, partitions: facts.partitions });
    }
    Ok(identities)
}

/// The topics of tables, of which several may have one.
pub fn table_topics(config: &Config) -> Vec<Wanted> {
    let topics: BTreeMap<&str, i32> = config.tables.iter().map(|t| (t.topic.as_str(), t.partitions)).collect();
    let data = |(name, partitions): (&str, i32)| Wanted { name: name.to_owned(), partitions, kind: Kind::Data };
    topics.into_iter().map(data).collect()
}

/// Topics of records that are for other consumers only.
fn foreign_topics(config: &Config) -> Vec<String> {
    let wire = &config.wire;
    let messages = wire.messages.as_ref().map(|messages| messages.topic.clone());
    let heartbeat = wire.heartbeat.as_ref().map(|heartbeat| heartbeat.topic.clone());
    wire.transaction_topic.clone().into_iter().chain(messages).chain(heartbeat).collect()
}

/// Every topic is the one that the ledger knows, the ledger's own among them.
pub async fn check_topics(config: &Config, ledger: Option<TopicFacts>, state: &State) -> Result<()> {
    let ours = &config.kafka.ledger;
    if let (Some(known), Some(found)) = (state.topics.get(ours), ledger)
        && known.id != found.id
    {
        let message =
            format!("the ledger {ours} was deleted and made again: its id is {}, it says {}", found.id, known.id);
        return Err(Error::halt(Code::LedgerRecreated, message, "restore the topic, or lockstep restart")
            .fact("no sink was touched and the slot was not moved"));
    }
    let known: Vec<&str> = state.topics.keys().map(String::as_str).filter(|name| name != ours).collect();
    for (name, found) in known.iter().zip(topics::describe(&config.kafka, &known).await?) {
        check_topic(name, &state.topics[*name], found.as_ref())?;
    }
    Ok(())
}

fn check_topic(name: &str, known: &TopicIdentity, found: Option<&TopicFacts>) -> Result<()> {
    let (code, what) = match found {
        None => (Code::TopicMissing, "is gone".to_owned()),
        Some(found) if found.id != known.id => (
            Code::TopicRecreated,
            format!("was deleted and made again: its id is {}, the ledger knows {}", found.id, known.id),
        ),
        Some(_) => return Ok(()),
    };
    let message = format!("topic {name} {what}; the records that it held are lost");
    Err(Error::halt(code, message, "lockstep restart, unless the topic can be restored")
        .fact("no sink was touched and the slot was not moved"))
}

/// The source that the ledger is written for; on the first start, the slot is made and becomes it.
async fn ensure_slot(
    config: &Config,
    slot: Slot<'_>,
    mut replication: Connection,
    state: &State,
    appender: &mut Appender,
    filters: &mut Filters,
) -> Result<SourceIdentity> {
    let Slot { session, found, .. } = &slot;
    let system = replication.identify_system().await?;
    let (name, database) = (&config.source.slot, &system.dbname);
    if let Some(source) = &state.source {
        check_identity(source, system.system_id, database, name)?;
        let Some(found) = found else { return Err(slot_gone(name, state)) };
        slot::check_slot(found, database)?;
        check_lineage(&mut replication, state, &system).await?;
        return Ok(source.clone());
    }
    if !config.create && found.is_none() {
        return Err(create_off(name));
    }
    intend(config, session, state, appender, filters).await?;
    let consistent_point = match found {
        Some(found) => {
            slot::check_slot(found, database)?;
            found.confirmed_flush.ok_or_else(|| Error::retry_plain("the slot is still being made"))?
        }
        None => create_slot(config, &slot).await?,
    };
    made(config, &system, consistent_point, appender).await
}

/// A slot of its own for a restart: what an old one has passed is not known, or not to be trusted. One that was made in vain,
/// because its maker died before it could say so, is dropped like any other.
async fn renew_slot(
    config: &Config,
    slot: Slot<'_>,
    mut replication: Connection,
    told: &State,
    appender: &mut Appender,
    filters: &mut Filters,
) -> Result<SourceIdentity> {
    let Slot { session, found, .. } = &slot;
    let system = replication.identify_system().await?;
    let name = &config.source.slot;
    if let Some(next) = &told.next {
        check_identity(next, system.system_id, &system.dbname, name)?;
        let Some(found) = found else { return Err(slot_gone(name, told)) };
        slot::check_slot(found, &system.dbname)?;
        return Ok(next.clone());
    }
    if !config.create {
        return Err(create_off(name).fact("a restart needs a slot of its own, which takes create = true"));
    }
    intend(config, session, told, appender, filters).await?;
    if found.is_some() {
        slot::drop_slot(&***session, name).await?;
    }
    let consistent_point = create_slot(config, &slot).await?;
    made(config, &system, consistent_point, appender).await
}

/// Says that a slot will be made, and sees to the publication, which must be older.
async fn intend(
    config: &Config,
    session: &Session,
    state: &State,
    appender: &mut Appender,
    filters: &mut Filters,
) -> Result<()> {
    if state.intent.is_none() {
        let intent = SourceEntry { intent: Some(config.source.slot.clone()), made: None };
        appender.append_and_wait(Body::Source(intent), APPEND_TIMEOUT).await?;
    }
    publish(config, session, filters).await
}

/// Makes the publication what it must be.
async fn publish(config: &Config, session: &Session, filters: &mut Filters) -> Result<()> {
    let mut names: Vec<TableName> = config.tables.iter().map(|table| table.name.clone()).collect();
    names.extend(signal_table::published(session, config).await?);
    let (name, filtered) = (&config.source.publication, config.filtered());
    publication::ensure_publication(&**session, name, &names, &filtered, config.create).await?;
    filters.ensure(&**session, name, config.create).await
}

/// Says that the slot is made.
async fn made(config: &Config, system: &SystemIdentity, point: Lsn, appender: &mut Appender) -> Result<SourceIdentity> {
    let made = SourceIdentity {
        system_id: system.system_id,
        timeline: system.timeline,
        database: system.dbname.clone(),
        slot: config.source.slot.clone(),
        consistent_point: point,
    };
    let entry = SourceEntry { intent: None, made: Some(made.clone()) };
    appender.append_and_wait(Body::Source(entry), APPEND_TIMEOUT).await?;
    Ok(made)
}

fn create_off(name: &str) -> Error {
    let hint = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
    Error::halt(Code::CreateOff, format!("slot \"{name}\" does not exist"), hint)
}

/// What our claim is followed by where a restart was asked for.
fn restart_entry(state: &State, asked: &Request, epoch: Epoch) -> Result<Restart> {
    // Another one was asked for since we looked, or a slower reader's claim is older than its slot.
    let next = state.next.as_ref().ok_or_else(|| Error::retry_plain("a restart was asked for meanwhile"))?;
    Ok(Restart {
        epoch,
        request: asked.id,
        old: state.last.map(|last| last.closed),
        new: next.consistent_point,
        old_ledger: asked.old_ledger,
        reason: asked.asked_by.clone(),
    })
}

/// What making a slot needs to know.
struct Slot<'a> {
    session: &'a Session,
    version: i32,
    found: Option<SlotFacts>,
    reporter: &'a SourceReporter,
}

/// Making a slot waits for every running transaction of the server to end: says for which one.
async fn create_slot(config: &Config, slot: &Slot<'_>) -> Result<Lsn> {
    let Slot { session, version, reporter, .. } = *slot;
    let watch = session::connect(&config.source.database, &application_name(config)).await?;
    let create = slot::create_slot(&**session, &config.source.slot, version, config.source.failover);
    let mut create = std::pin::pin!(create);
    loop {
        tokio::select! {
            made = &mut create => return made,
            () = tokio::time::sleep(CREATE_TELL) => {}
        }
        if let Some(oldest) = slot::blockers(&*watch).await?.into_iter().next() {
            let what = format!("before the slot can be made, {oldest} must end");
            tracing::info!("{what}");
            reporter.update(|s| s.waiting_for = Some(what));
        }
    }
}

fn check_identity(source: &SourceIdentity, system_id: u64, database: &str, slot: &str) -> Result<()> {
    let same = (source.system_id, source.database.as_str(), source.slot.as_str()) == (system_id, database, slot);
    if same {
        return Ok(());
    }
    Err(Error::halt(
        Code::SourceMismatch,
        "the source is another one than the ledger was written for",
        "lockstep restart, if it is right as it is; otherwise point source.url back to the other",
    )
    .fact("if pg_upgrade made it of the other, with its slots: lockstep restart --upgraded, and nothing is read again")
    .fact(format!("ledger: system {}, database {}, slot {}", source.system_id, source.database, source.slot))
    .fact(format!("found: system {system_id}, database {database}, slot {slot}")))
}

fn slot_gone(name: &str, state: &State) -> Error {
    let closed = state.last.map_or(Lsn::ZERO, |last| last.closed);
    Error::halt(
        Code::SlotLost,
        format!("slot \"{name}\" does not exist any more: changes after {closed} can't be read"),
        "lockstep restart",
    )
    .fact("no sink was touched: each still equals the source as of its position")
}

/// All that was published is in the server's past.
async fn check_lineage(replication: &mut Connection, state: &State, system: &SystemIdentity) -> Result<()> {
    check_history(replication, state, system.timeline).await?;
    state.last.map_or(Ok(()), |last| timeline::check_end(system.wal_end, last.closed))
}

async fn check_history(replication: &mut Connection, state: &State, now: u32) -> Result<()> {
    let (Some(ours), Some(last)) = (state.read_on, state.last) else { return Ok(()) };
    if ours == now {
        return Ok(());
    }
    // The first one has no history, and no file of it.
    let content = if now == 1 { String::new() } else { replication.timeline_history(now).await? };
    let history = timeline::parse_history(&content).map_err(|e| {
        Error::halt(Code::SourceProtocol, format!("the source's timeline history: {e}"), "lockstep check")
    })?;
    timeline::check_timeline(&history, ours, now, last.closed)
}

/// Takes the slot, waiting while another Lockstep holds it: a hot standby.
async fn take_slot(
    config: &Config,
    session: &Session,
    identity: &SourceIdentity,
    state: &State,
    reporter: &SourceReporter,
    stop: &CancellationToken,
) -> Result<(Stream, u32)> {
    let name = &config.source.slot;
    let began = tokio::time::Instant::now();
    loop {
        let mut replication = Connection::open(&config.source, &application_name(config)).await?;
        let system = replication.identify_system().await?;
        check_identity(identity, system.system_id, &system.dbname, name)?;
        check_lineage(&mut replication, state, &system).await?;
        let error =
            match replication.start_replication(name, &config.source.publication, Lsn::ZERO, &Start::default()).await {
                Ok(stream) => return Ok((stream, system.timeline)),
                Err(error) if error.code() == Some(Code::SlotInUse) => error,
                Err(error) => return Err(error),
            };
        let pid = slot::slot_facts(&**session, name).await?.and_then(|slot| slot.active_pid);
        let holder = match pid {
            Some(pid) => slot::holder(&**session, pid).await?,
            None => None,
        };
        if let Some(holder) = holder {
            let ours = holder.application_name == application_name(config);
            if !ours && began.elapsed() > FOREIGN_HOLDER_WAIT {
                return Err(error.fact(format!("held by {holder}")));
            }
            reporter.update(|s| {
                s.state = status::State::Standby;
                s.waiting_for = Some(format!("slot {name} is held by {holder}"));
            });
        }
        tokio::select! {
            () = stop.cancelled() => return Err(Error::retry_plain("stopped while waiting for the slot")),
            () = tokio::time::sleep(STANDBY_INTERVAL) => {}
        }
    }
}

/// Reads the ledger up to and with an entry of our own, while our claim is in force.
async fn read_back(config: &Arc<Config>, epoch: Epoch, offset: i64) -> Result<(State, Assembler)> {
    let shared = config.clone();
    let (state, assembler) = topic::beside(move || Reading::open(&shared.kafka)?.fold(offset + 1)).await?;
    if state.claim != Some(epoch) {
        return Err(Error::retry_plain(
            "our claim is not in the ledger where it was acknowledged, or no longer in force",
        ));
    }
    Ok((state, assembler))
}

/// L1: the slot is not ahead of the ledger. Asked after the slot is ours, so nobody else can move it.
async fn check_confirmed(config: &Config, session: &Session, state: &State) -> Result<(Lsn, Lsn)> {
    let slot = slot::slot_facts(&**session, &config.source.slot).await?;
    judge_confirmed(&config.source.slot, slot.as_ref(), state)
}

/// Closed LSN and where the slot stands.
fn judge_confirmed(name: &str, slot: Option<&SlotFacts>, state: &State) -> Result<(Lsn, Lsn)> {
    let identity = state.source.as_ref().expect("a claim stands after the source entry");
    let closed = state.last.map_or(identity.consistent_point, |last| last.closed);
    let confirmed = slot.and_then(|slot| slot.confirmed_flush).ok_or_else(|| slot_gone(name, state))?;
    if confirmed > closed {
        let at = state.last.map_or(-1, |last| last.anchor.offset);
        return Err(Error::halt(
            Code::SlotMoved,
            format!("slot \"{name}\" is ahead of the ledger: someone advanced or recreated it"),
            "lockstep restart",
        )
        .fact(format!("slot confirmed {confirmed}, ledger {closed} (checkpoint {at})"))
        .fact(format!(
            "{} bytes of changes in between can't be read again; no sink was touched",
            confirmed.bytes_since(closed)
        )));
    }
    Ok((closed, confirmed))
}

/// For `lockstep check`: what the ledger says of slot, server and topics. Gives the ledger's id and state if there is one that
/// begins with a source, and all that a start would halt with.
pub async fn check_ledger(config: &Arc<Config>) -> Result<(Option<(Uuid, State)>, Vec<Error>)> {
    let session = session::connect(&config.source.database, &format!("lockstep:{}:check", config.name)).await?;
    // The slot before the ledger: a reader that is at work confirms only what the ledger has.
    let slot = slot::slot_facts(&*session, &config.source.slot).await?;
    session.close().await;
    let (facts, state) = match read_ledger(config, slot.as_ref()).await {
        Ok(read) => read,
        Err(error @ Error::Halt(_)) => return Ok((None, vec![error])),
        Err(error) => return Err(error),
    };
    let Some(facts) = facts else { return Ok((None, vec![])) };
    let Some(source) = state.source.clone().filter(|_| state.asked.is_none()) else { return Ok((None, vec![])) };
    let id = facts.id;
    let mut replication = Connection::open(&config.source, &application_name(config)).await?;
    let system = replication.identify_system().await?;
    let of_the_server = check_identity(&source, system.system_id, &system.dbname, &config.source.slot);
    let checks = [
        of_the_server,
        check_lineage(&mut replication, &state, &system).await,
        judge_confirmed(&config.source.slot, slot.as_ref(), &state).map(drop),
        check_topics(config, Some(facts), &state).await,
    ];
    let mut found = Vec::new();
    for check in checks {
        match check {
            Err(error @ Error::Halt(_)) => found.push(error),
            outcome => outcome?,
        }
    }
    Ok((Some((id, state)), found))
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

/// Reads one ledger record into its entry, if it is complete there.
pub fn entry(assembler: &mut Assembler, offset: i64, value: Option<&[u8]>) -> Result<Option<Entry>> {
    assembler.push(offset, Entry::decode(offset, value.unwrap_or_default())?)
}
