//! `lockstep check`: what stands in the way of `run` in servers, rights, tables and settings, all at once, before anything is
//! started or changed.
//!
//! The ledger is among them: a slot that was moved, a topic made again, progress of another source.
//!
//! Each room says what it would refuse, with the same functions that `run` uses; here it is only asked, ordered and printed.

use std::fmt::Write;
use std::sync::Arc;

use clap::Args;
use uuid::Uuid;

use super::Failure;
use crate::apply::rows;
use crate::apply::start::check_progress;
use crate::capture::{routing, schemas, shape, signal_table, start, upgrade};
use crate::codec;
use crate::config::{Config, ForeignKeys, LeftOut, Sink, Table};
use crate::error::{Code, Error, Halt, Result};
use crate::kafka::topics::{self, Kind, Wanted};
use crate::ledger::state::State;
use crate::postgres::catalog::{SourceFacts, source_facts, table_facts};
use crate::postgres::chunk::check_condition;
use crate::postgres::preflight;
use crate::postgres::publication::{publication_facts, unrouted};
use crate::postgres::slot::{check_slot, slot_facts};
use crate::registry::Registry;
use crate::relation::{Format, Relation, TableName};
use crate::session;
use crate::sink::{self, WantedTable, for_engine};

/// What was found at one place.
pub(super) struct Part {
    /// `source postgres://…`, for the heading.
    pub place: String,
    pub findings: Vec<Finding>,
}

pub(super) enum Finding {
    /// `run` would halt with it.
    Halt(Halt),
    /// It could not be found out.
    Unknown(String),
    /// `run` goes on all the same.
    Warning(String),
}

impl From<Error> for Finding {
    fn from(error: Error) -> Finding {
        match error {
            Error::Halt(halt) => Finding::Halt(*halt),
            error => Finding::Unknown(error.chain()),
        }
    }
}

#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    config: super::ConfigArgs,
    /// Also whether the source's server may be upgraded by pg_upgrade (from 17 on): that its slot was read to its end
    #[arg(long)]
    upgrade: bool,
}

pub fn run(args: &CheckArgs) -> Result<u8, Failure> {
    let config = Arc::new(super::load(&args.config.config)?);
    if args.upgrade && config.topics.is_some() {
        return Err(Failure::Usage("--upgrade is about a source, and this pipeline has none ([topics])".to_owned()));
    }
    let parts = super::block_on(async {
        let mut parts = check(&config).await;
        if args.upgrade {
            parts.push(check_upgrade(&config).await);
        }
        parts
    });
    super::print(&report(&parts))?;
    Ok(exit_code(&parts))
}

/// Where something was found, and what `run` would halt with there; `None`: it could not be found out.
pub(super) type Found = (String, Option<String>);

/// What stands in the way of a configuration.
pub(super) async fn found(config: &Arc<Config>) -> Vec<Found> {
    let of_part = |part: Part| {
        let place = part.place;
        let text = |finding| match finding {
            Finding::Halt(halt) => Some(Some(halt.to_string())),
            Finding::Unknown(_) => Some(None),
            Finding::Warning(_) => None,
        };
        part.findings.into_iter().filter_map(text).map(move |text| (place.clone(), text)).collect::<Vec<_>>()
    };
    check(config).await.into_iter().flat_map(of_part).collect()
}

async fn check_upgrade(config: &Config) -> Part {
    match upgrade::drained(config).await {
        Ok(lsn) => Part {
            place: format!("upgrade, with all of the source's changes up to {lsn} in the ledger"),
            findings: vec![],
        },
        Err(error) => Part { place: "upgrade".to_owned(), findings: vec![error.into()] },
    }
}

async fn check(config: &Arc<Config>) -> Vec<Part> {
    if let Some(topics) = &config.topics {
        return super::foreign::check(config, topics).await;
    }
    // A source that can't be reached is said by its own part.
    let (config, left_out) = resolve(config).await.unwrap_or_else(|_| (config.clone(), Vec::new()));
    let config = &config;
    let ((mut source, relations), kafka) = tokio::join!(check_source_part(config), check_kafka(config));
    source.findings.extend(left_out.iter().map(|table| Finding::Warning(table.to_string())));
    let (ledger, told) = check_ledger_part(config).await;
    let mut parts = vec![source, kafka, ledger];
    parts.extend(check_registry(config, &relations).await);
    for sink in &config.sinks {
        parts.push(check_sink(config, sink, &relations, told.as_ref()).await);
    }
    parts
}

/// What patterns come to at the source.
async fn resolve(config: &Arc<Config>) -> Result<(Arc<Config>, Vec<LeftOut>)> {
    if config.routes.is_empty() {
        return Ok((config.clone(), Vec::new()));
    }
    let session = session::connect(&config.source.database, &format!("lockstep:{}:check", config.name)).await?;
    let found = routing::resolve(&session, config).await?;
    session.close().await;
    Ok((Arc::new(found.config), found.left_out))
}

/// What the ledger's own topic is and says, where there is one to go by.
type Told = (Uuid, State);

async fn check_ledger_part(config: &Arc<Config>) -> (Part, Option<Told>) {
    let (told, findings) = match start::check_ledger(config).await {
        Ok((told, errors)) => (told, errors.into_iter().map(Finding::from).collect()),
        Err(error) => (None, vec![error.into()]),
    };
    (Part { place: format!("ledger {}", config.kafka.ledger), findings }, told)
}

/// The source's findings, and the relation of every table that could be read.
async fn check_source_part(config: &Config) -> (Part, Vec<Relation>) {
    let place = format!("source {}", session::place(&config.source.database));
    let mut findings = Vec::new();
    let relations = match source_findings(config, &mut findings).await {
        Ok(relations) => relations,
        Err(error) => {
            findings.push(error.into());
            Vec::new()
        }
    };
    (Part { place, findings }, relations)
}

async fn source_findings(config: &Config, findings: &mut Vec<Finding>) -> Result<Vec<Relation>> {
    let source = &config.source;
    let names: Vec<TableName> = config.tables.iter().map(|table| table.name.clone()).collect();
    let session = session::connect(&source.database, &format!("lockstep:{}:check", config.name)).await?;
    let publication = publication_facts(&*session, &source.publication).await?;
    let insert_only = shape::insert_only(config, publication.as_ref());
    let wanted = preflight::Wanted {
        publication: &config.source.publication,
        tables: &names,
        insert_only: &insert_only,
        create: config.create,
        reads: true,
    };
    let halts = preflight::check_source(&*session, wanted).await?;
    let too_old = halts.iter().any(|halt| halt.code == Code::ServerVersion);
    findings.extend(halts.into_iter().map(Finding::Halt));
    if too_old {
        return Ok(Vec::new());
    }
    let ours: Vec<TableName> = names.iter().chain(&source.signal_table).cloned().collect();
    findings.extend(publication.as_ref().and_then(|facts| unrouted(facts, &ours)).map(Finding::Halt));
    if source.failover {
        findings.extend(standby_warning(&source_facts(&*session).await?, &source.slot).map(Finding::Warning));
    }
    if source_facts(&*session).await?.encoding == "SQL_ASCII" {
        let what = "the database's encoding is SQL_ASCII: it takes any bytes for text, and one value that is not UTF-8 halts the source \
                    as SOURCE_ENCODING";
        findings.push(Finding::Warning(what.to_owned()));
    }
    match slot_facts(&*session, &source.slot).await? {
        Some(slot) => findings.extend(check_slot(&slot, &source.database.dbname).err().map(Finding::from)),
        None if config.create => {}
        None => findings.push(Finding::Halt(Halt {
            code: Code::CreateOff,
            message: format!("there is no slot {:?}, and create = false", source.slot),
            facts: vec![],
            hint: format!(
                "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
                source.slot.replace('\'', "''")
            ),
        })),
    }
    let facts = table_facts(&*session, &names).await?;
    for (table, _) in config.tables.iter().zip(&facts).filter(|(_, facts)| facts.is_some()) {
        if let Some(only) = &table.wire.modes.snapshot_where {
            findings.extend(check_condition(&*session, &table.name, only).await.err().map(Finding::from));
        }
    }
    // What keeps a relation from being built is among the findings already.
    let relation = |(table, facts): (&Table, &Option<_>)| shape::relation_of(table, facts.as_ref()?).ok();
    let mut relations = Vec::new();
    for relation in config.tables.iter().zip(&facts).filter_map(relation) {
        match codec::complete(relation, &config.kafka.topic_prefix) {
            Ok(relation) => relations.push(relation),
            Err(error) => findings.push(error.into()),
        }
    }
    findings.extend(signal_table::unfit(&session, config).await?.map(|halt| Finding::Warning(warned(&halt))));
    let facts: Vec<_> = facts.into_iter().flatten().collect();
    let version = source_facts(&*session).await?.version;
    findings.extend(shape::findings(&session, version, config, &facts).await?.into_iter().map(Finding::Halt));
    session.close().await;
    Ok(relations)
}

fn warned(halt: &Halt) -> String {
    format!("{} (help: {})", halt.message, halt.hint)
}

/// A slot that standbys take over promises nothing if we may read what no standby has yet: after a fail-over sinks would hold
/// commits that the source lost. Since Postgres 17 this setting makes the walsender wait for the standbys named in it.
fn standby_warning(facts: &SourceFacts, slot: &str) -> Option<String> {
    let unset = facts.synchronized_standby_slots.as_ref().is_some_and(|slots| slots.trim().is_empty());
    (facts.version >= 170_000 && unset).then(|| {
        format!(
            "slot {slot:?} is for fail-over, but synchronized_standby_slots is empty: sinks may get commits that no standby has \
             yet, and after a fail-over that loses them the source halts as DIVERGED; name the standbys' slots: ALTER SYSTEM SET \
             synchronized_standby_slots = 'SLOT, …'; or, without standbys, set failover = false under [source] in lockstep.toml"
        )
    })
}

async fn check_kafka(config: &Config) -> Part {
    let mut findings = Vec::new();
    if let Err(error) = kafka_findings(config, &mut findings).await {
        findings.push(error.into());
    }
    Part { place: format!("kafka {}", config.kafka.brokers), findings }
}

async fn kafka_findings(config: &Config, findings: &mut Vec<Finding>) -> Result<()> {
    let ledger = Wanted { name: config.kafka.ledger.clone(), partitions: 1, kind: Kind::Ledger };
    let wanted: Vec<Wanted> = start::table_topics(config).into_iter().chain([ledger]).collect();
    let names: Vec<&str> = wanted.iter().map(|topic| topic.name.as_str()).collect();
    let brokers = topics::brokers(&config.kafka).await?;
    let facts = topics::describe(&config.kafka, &names).await?;
    for (wanted, facts) in wanted.iter().zip(&facts) {
        if let Some(facts) = facts {
            findings.extend(topics::weaknesses(facts, brokers).into_iter().map(Finding::Warning));
        } else if config.create {
            continue;
        }
        // One by one, so that each one's refusal is seen. `false`: nothing is made.
        if let Err(error) = topics::ensure(&config.kafka, std::slice::from_ref(wanted), false).await {
            findings.push(error.into());
        }
    }
    Ok(())
}

/// Nothing where no table needs one. Of tables that could not be read at the source nothing is asked.
async fn check_registry(config: &Config, relations: &[Relation]) -> Option<Part> {
    let mut formats = config.tables.iter().map(|table| table.wire.format).chain([config.wire.tables.format]);
    formats.find(|format| *format == Format::Avro)?;
    let (place, errors) = match Registry::open(config.registry.as_ref()?) {
        Ok(registry) => (registry.place(), schemas::refusals(&registry, config, relations).await),
        Err(error) => ("registry".to_owned(), vec![error]),
    };
    Some(Part { place, findings: errors.into_iter().map(Finding::from).collect() })
}

async fn check_sink(config: &Arc<Config>, sink: &Sink, relations: &[Relation], told: Option<&Told>) -> Part {
    let mut findings = Vec::new();
    let found = for_engine!(sink, S => sink_findings::<S>(config, sink, relations, told, &mut findings).await);
    if let Err(error) = found {
        findings.push(error.into());
    }
    Part { place: format!("sink {} {}", sink.name, sink::place(&sink.engine)), findings }
}

async fn sink_findings<S: sink::Sink>(
    config: &Arc<Config>,
    sink: &Sink,
    relations: &[Relation],
    told: Option<&Told>,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let targets = config.tables.iter().flat_map(|table| &table.sinks).filter(|target| target.sink == sink.name);
    findings.extend(S::lacks(sink, &targets.collect::<Vec<_>>()).into_iter().map(Finding::Halt));
    findings.extend(rows::refusals(config, sink).into_iter().map(Finding::Halt));
    let mut database = S::connect(sink, &config.name, Uuid::new_v4()).await?;
    let row = database.found_progress().await;
    match (row, told) {
        (Ok(Some(row)), Some((id, state))) => {
            let checked = check_progress(config, &sink.name, &row, *id, state.clone()).await;
            findings.extend(checked.err().map(Finding::from));
        }
        (Ok(_), _) => {}
        (Err(error), _) => findings.push(error.into()),
    }
    let mut wanted = Vec::new();
    for table in &config.tables {
        let Some(target) = table.sinks.iter().find(|target| target.sink == sink.name) else { continue };
        match relations.iter().find(|relation| relation.name == table.name) {
            Some(relation) => match WantedTable::of(relation, target) {
                Ok(table) => {
                    let steps = database.steps(&table, target.evolve).await?;
                    if steps.is_empty() {
                        wanted.push(table);
                    } else {
                        let what = format!("table {} would follow the source's: {}", target.table, steps.join("; "));
                        findings.push(Finding::Warning(what));
                    }
                }
                Err(halt) => findings.push(Finding::Halt(halt)),
            },
            None => findings.push(Finding::Unknown(format!(
                "whether {} can hold {}: the source's table could not be read",
                target.table, table.name
            ))),
        }
    }
    let found = database.preflight(&wanted).await?;
    let mut halts: Vec<Halt> = Vec::new();
    for halt in found.halts {
        // Of tables that share one at the sink each finds the same.
        if !halts.contains(&halt) {
            halts.push(halt);
        }
    }
    findings.extend(halts.into_iter().map(Finding::Halt));
    findings.extend(found.notes.into_iter().map(Finding::Warning));
    if sink.foreign_keys == ForeignKeys::AfterLoad {
        let tables: Vec<TableName> = wanted.iter().map(|wanted| wanted.table.clone()).collect();
        let keys = database.foreign_keys(&tables, &tables).await?;
        findings.extend(database.foreign_key_findings(&keys).into_iter().map(Finding::Halt));
    }
    Ok(())
}

/// 3 when `run` would halt, 1 when that could not be found out everywhere, else 0.
fn exit_code(parts: &[Part]) -> u8 {
    let all = || parts.iter().flat_map(|part| &part.findings);
    if all().any(|finding| matches!(finding, Finding::Halt(_))) {
        3
    } else if all().any(|finding| matches!(finding, Finding::Unknown(_))) {
        1
    } else {
        0
    }
}

fn report(parts: &[Part]) -> String {
    let (mut out, mut errors, mut warnings) = (String::new(), 0, 0);
    for part in parts {
        let verdict = if part.findings.is_empty() { "ok" } else { "" };
        let _ = writeln!(out, "{}", format!("{}: {verdict}", part.place).trim_end());
        for finding in &part.findings {
            let text = match finding {
                Finding::Halt(halt) => halt.to_string(),
                Finding::Unknown(text) => format!("error: {text}"),
                Finding::Warning(text) => format!("warning: {text}"),
            };
            if matches!(finding, Finding::Warning(_)) {
                warnings += 1
            } else {
                errors += 1
            }
            let _ = writeln!(out, "{text}\n");
        }
    }
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let advice =
        if errors == 0 { "nothing stands in the way of lockstep run" } else { "lockstep explain CODE says more" };
    // One empty line before the verdict, whatever came last.
    out.truncate(out.trim_end().len());
    let _ = writeln!(out, "\n\n{}, {}; {advice}", count(errors, "error"), count(warnings, "warning"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(place: &str, findings: Vec<Finding>) -> Part {
        Part { place: place.to_owned(), findings }
    }

    fn halt() -> Finding {
        Error::halt(Code::WalLevel, "wal_level is replica", "ALTER SYSTEM SET wal_level = logical")
            .fact("a restart is needed")
            .into()
    }

    #[test]
    fn the_report_shows_every_place_and_every_finding() {
        let warning = Finding::Warning("topic \"t\" has min.insync.replicas 1".to_owned());
        let unknown = Error::retry("connecting to the sink", "connection refused").into();
        let parts = [
            part("source s", vec![halt()]),
            part("kafka k", vec![warning]),
            part("sink o", vec![unknown]),
            part("sink i", vec![]),
        ];
        insta::assert_snapshot!(report(&parts), @r#"
        source s:
        error[WAL_LEVEL]: wal_level is replica
          a restart is needed
          help: ALTER SYSTEM SET wal_level = logical

        kafka k:
        warning: topic "t" has min.insync.replicas 1

        sink o:
        error: connecting to the sink: connection refused

        sink i: ok

        2 errors, 1 warning; lockstep explain CODE says more
        "#);
    }

    #[test]
    fn a_slot_for_failover_without_named_standbys_is_warned_of() {
        let facts = |version: i32, slots: Option<&str>| SourceFacts {
            version,
            database: "shop".into(),
            role: "lockstep".into(),
            superuser: false,
            replication: true,
            may_create: true,
            in_recovery: false,
            wal_level: "logical".into(),
            encoding: "UTF8".into(),
            max_replication_slots: 10,
            replication_slots: 0,
            max_slot_wal_keep_size: "-1".into(),
            synchronized_standby_slots: slots.map(str::to_owned),
        };
        let warning = |version, slots| standby_warning(&facts(version, slots), "lockstep_shop");
        assert!(warning(170_005, Some("")).unwrap().contains("synchronized_standby_slots is empty"));
        assert_eq!(warning(170_005, Some("standby_1")), None);
        assert_eq!(warning(160_009, None), None);
    }

    #[test]
    fn the_exit_code_tells_halts_from_what_is_unknown() {
        let unknown = || Finding::Unknown("connecting".to_owned());
        assert_eq!(exit_code(&[part("a", vec![unknown()]), part("b", vec![halt()])]), 3);
        assert_eq!(exit_code(&[part("a", vec![unknown()])]), 1);
        assert_eq!(exit_code(&[part("a", vec![Finding::Warning(String::new())])]), 0);
    }
}
