//! What stands in the way at the source: every finding at once, each with the command that removes it.
//!
//! [`check_source`] asks the catalog; [`findings`] judges, purely, so that `check` and `run` say the same. Nothing is
//! changed here. The checks that protect the application come first in importance: a publication over a table without a
//! usable replica identity makes the application's own UPDATEs fail.
//!
//! Also here: in which order tables are loaded, since it is decided from the same facts.

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::GenericClient;

use super::catalog::{
    Identity, Kind, LeafFacts, Persistence, SourceFacts, TableFacts, quoted_list, source_facts, table_facts,
};
use super::failure::{failed, unreadable};
use super::publication::{self, PublicationFacts};
use super::row_key::{BREAKS_UPDATES, identity_finding, key_of};
use crate::error::{Code, Error, Halt, Result};
use crate::relation::{TableName, quote_identifier};

/// The oldest major release that is read: pgoutput's options and the views that we ask are all there from 14 on.
pub const VERSION_MIN: i32 = 140_000;

/// The first minor releases of 2025-05-08, which fixed a silent loss: changes of transactions that were open while a table
/// was added to a publication, or altered, were decoded with the old catalog. 18 and later never had it.
const MINORS_MIN: [i32; 4] = [140_018, 150_013, 160_009, 170_005];

/// Names compared for "did you mean"; a catalog of more tables gives no suggestion rather than a slow check.
const SUGGESTION_TABLES_MAX: i64 = 10_000;

/// What a configuration wants of a source.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub publication: &'a str,
    pub tables: &'a [TableName],
    /// Tables among them that need no replica identity.
    pub insert_only: &'a [TableName],
    /// We may make or extend the publication, and so need the rights for it.
    pub create: bool,
    /// Existing rows are to be read. Without that the stream alone needs no right to a table.
    pub reads: bool,
}

/// Every reason why this source can't be read as configured; empty when it can.
pub async fn check_source(client: &(impl GenericClient + Sync), wanted: Wanted<'_>) -> Result<Vec<Halt>> {
    let source = source_facts(client).await?;
    if source.version < VERSION_MIN {
        return Ok(findings(&source, wanted, None, &[], &[]));
    }
    let facts = table_facts(client, wanted.tables).await?;
    let publication = publication::publication_facts(client, wanted.publication).await?;
    let known = if facts.iter().any(Option::is_none) { known_tables(client).await? } else { Vec::new() };
    Ok(findings(&source, wanted, publication.as_ref(), &facts, &known))
}

async fn known_tables(client: &(impl GenericClient + Sync)) -> Result<Vec<TableName>> {
    const SQL: &str = "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%'
        ORDER BY 1, 2 LIMIT $1";
    let rows = client
        .query(SQL, &[&SUGGESTION_TABLES_MAX])
        .await
        .map_err(|e| failed("reading the names of the source's tables", e))?;
    rows.iter()
        .map(|row| Ok(TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?)))
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(|e| unreadable("pg_class", e))
}

/// The judgement over the facts. `facts` is parallel to the wanted tables, or empty for a server too old to be asked.
pub fn findings(
    source: &SourceFacts,
    wanted: Wanted<'_>,
    publication: Option<&PublicationFacts>,
    facts: &[Option<TableFacts>],
    known: &[TableName],
) -> Vec<Halt> {
    let mut found = Vec::new();
    server_findings(source, &mut found);
    for (name, facts) in wanted.tables.iter().zip(facts) {
        match facts {
            None => found.push(missing(name, &source.database, known)),
            Some(table) => table_findings(source, table, wanted, &mut found),
        }
    }
    for leaf in facts.iter().flatten() {
        if let Some(root) = facts.iter().flatten().find(|root| leaf.ancestors.contains(&root.oid)) {
            found.push(halt(
                Code::TableUnsupported,
                format!("{} is a partition of {}: its changes come under that name and no other", leaf.name, root.name),
                format!("delete the connector of {} or that of {}", leaf.name, root.name),
            ));
        }
    }
    // A command to publish never names a table whose own UPDATEs it would break.
    let unpublished: Vec<&TableFacts> = facts
        .iter()
        .flatten()
        .filter(|t| unsupported(t, wanted.insert_only).is_none() && identity_of(t, wanted.insert_only).is_ok())
        .filter(|t| publication.is_none_or(|p| !p.all_tables && p.table(&t.name).is_none()))
        .collect();
    if wanted.create && !source.superuser && !unpublished.is_empty() {
        publication_findings(source, wanted.publication, publication, &unpublished, &mut found);
    }
    found
}

/// Why a table that is not in the publication can't be taken into it and followed; the first reason of several.
pub fn refusal(
    source: &SourceFacts,
    wanted: Wanted<'_>,
    publication: Option<&PublicationFacts>,
    table: &TableFacts,
) -> Option<Halt> {
    let mut found = Vec::new();
    table_findings(source, table, wanted, &mut found);
    if found.is_empty() && wanted.create && !source.superuser {
        publication_findings(source, wanted.publication, publication, &[table], &mut found);
    }
    if found.is_empty() && !wanted.create {
        let message = format!("it is not in publication {:?}, and create = false", wanted.publication);
        found.push(halt(Code::CreateOff, message, publication::add_tables_sql(wanted.publication, wanted.tables)));
    }
    found.into_iter().next()
}

fn halt(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Halt {
    Halt { code, message: message.into(), facts: Vec::new(), hint: hint.into() }
}

fn server_findings(source: &SourceFacts, found: &mut Vec<Halt>) {
    let (major, minor) = (source.version / 10_000, source.version % 10_000);
    if source.version < VERSION_MIN {
        let message =
            format!("the source is Postgres {}, older than 14", super::publication::version_text(source.version));
        found.push(halt(Code::ServerVersion, message, "pg_upgrade to Postgres 14 or newer"));
        return;
    }
    if let Some(first) = MINORS_MIN.into_iter().find(|first| first / 10_000 == major && source.version < *first) {
        let mut finding = halt(
            Code::ServerVersion,
            format!(
                "the source is Postgres {major}.{minor}, which loses changes when a table is altered or published meanwhile"
            ),
            format!("update the source to Postgres {major}.{} or newer", first % 10_000),
        );
        finding.facts.push("fixed on 2025-05-08 in 14.18, 15.13, 16.9 and 17.5".into());
        found.push(finding);
    }
    if source.in_recovery {
        found.push(halt(
            Code::SourceInRecovery,
            format!("database {:?} is on a standby (in recovery); only a primary can be read", source.database),
            "point source.url at the primary",
        ));
    }
    if source.wal_level != "logical" {
        found.push(halt(
            Code::WalLevel,
            format!("the source's wal_level is {}, so its log does not hold what changed", source.wal_level),
            "ALTER SYSTEM SET wal_level = logical; then restart the server",
        ));
    }
    if !source.replication {
        found.push(halt(
            Code::NoRight,
            format!("role {:?} has no right to replicate", source.role),
            format!("ALTER ROLE {} REPLICATION", quote_identifier(&source.role)),
        ));
    }
}

fn table_findings(source: &SourceFacts, table: &TableFacts, wanted: Wanted<'_>, found: &mut Vec<Halt>) {
    if let Some(finding) = unsupported(table, wanted.insert_only) {
        found.push(finding);
        return;
    }
    match identity_of(table, wanted.insert_only) {
        Err(Error::Halt(finding)) => found.push(*finding),
        Ok(_) | Err(Error::Retry(_)) => {}
    }
    if wanted.reads {
        found.extend(unreadable_rows(&source.role, table));
    }
}

/// Rights that are missing for reading the table's existing rows.
pub fn unreadable_rows(name: &str, table: &TableFacts) -> Vec<Halt> {
    let (role, mut found) = (quote_identifier(name), Vec::new());
    if !table.may_use_schema {
        found.push(halt(
            Code::NoRight,
            format!("role {name:?} may not use schema {:?}", table.name.schema),
            format!("GRANT USAGE ON SCHEMA {} TO {role}", quote_identifier(&table.name.schema)),
        ));
    }
    if !table.may_select {
        found.push(halt(
            Code::NoRight,
            format!("role {name:?} may not read table {}", table.name),
            format!("GRANT SELECT ON {} TO {role}", table.name.quoted()),
        ));
    }
    if table.rows_hidden {
        let mut finding = halt(
            Code::NoRight,
            format!("row level security hides rows of table {} from role {name:?}", table.name),
            format!("ALTER ROLE {role} BYPASSRLS"),
        );
        finding.facts.push("a snapshot would miss the hidden rows while the stream carries all".into());
        found.push(finding);
    }
    found
}

/// Whether rows of the table can be followed, and its owner still change them.
fn identity_of(table: &TableFacts, insert_only: &[TableName]) -> Result<()> {
    match identity_finding(table).filter(|_| !insert_only.contains(&table.name)) {
        Some(halt) => Err(halt.into()),
        None => key_of(table).map(drop),
    }
}

/// Kinds of relations whose changes can't be read as one table's, by name.
fn unsupported(table: &TableFacts, insert_only: &[TableName]) -> Option<Halt> {
    let name = &table.name;
    let finding = |what: &str, hint: String| Some(halt(Code::TableUnsupported, format!("{name} is {what}"), hint));
    if let Some(finding) = generated_in_identity(table) {
        return Some(finding);
    }
    let instead = |what: &str| format!("lockstep check, after routing {what} instead of {name} in connectors/");
    match (table.kind, table.persistence) {
        (Kind::Partitioned, _) => partition_findings(table, insert_only.contains(name)).into_iter().next(),
        (Kind::View, _) => finding("a view, which has no changes of its own", instead("the tables below it")),
        (Kind::MaterializedView, _) => {
            finding("a materialized view, whose refreshes are not in the stream", instead("the tables below it"))
        }
        (Kind::Foreign, _) => finding("a foreign table: its changes happen in another database", instead("nothing")),
        (Kind::Other, _) => finding("not a table", instead("a table")),
        (Kind::Table, Persistence::Unlogged) => {
            finding("unlogged: its changes are not in the log", format!("ALTER TABLE {} SET LOGGED", name.quoted()))
        }
        (Kind::Table, Persistence::Temporary) => finding("temporary", instead("a permanent table")),
        (Kind::Table, Persistence::Permanent) if table.children > 0 => finding(
            "a table that others inherit from; what it shows is not its own rows alone",
            instead("the inheriting tables"),
        ),
        (Kind::Table, Persistence::Permanent) => None,
    }
}

/// Postgres 18 refuses every UPDATE and DELETE of such a table from the moment that it is published without these columns.
fn generated_in_identity(table: &TableFacts) -> Option<Halt> {
    let leaf = table.leaves.iter().find(|leaf| leaf.identity == Identity::Full).map(|leaf| &leaf.name);
    let name = leaf.or_else(|| (table.identity == Identity::Full).then_some(&table.name))?;
    if !table.generated_refused {
        return None;
    }
    let message = format!(
        "{name} has generated columns and REPLICA IDENTITY FULL: once published, the server would refuse to change its rows"
    );
    let hint = format!("ALTER TABLE {} REPLICA IDENTITY DEFAULT", name.quoted());
    let mut finding = halt(Code::ReplicaIdentity, message, hint);
    finding.facts.push("generated columns are in no record, and Postgres 18 wants the whole identity published".into());
    finding
        .facts
        .push("without a primary key: a unique index over NOT NULL columns, and REPLICA IDENTITY USING INDEX".into());
    Some(finding)
}

/// What is wrong with each partition. Those that are made while everything runs are judged too: a replica identity is not passed
/// on to them, so under a root that needs FULL each new one begins with one that will not do.
pub fn partition_findings(root: &TableFacts, insert_only: bool) -> Vec<Halt> {
    root.leaves.iter().filter_map(|leaf| unfit_leaf(root, leaf, insert_only)).collect()
}

/// A partition whose changes would not come with its root's, or whose rows the application could not change any more.
fn unfit_leaf(root: &TableFacts, leaf: &LeafFacts, insert_only: bool) -> Option<Halt> {
    let name = leaf.name.quoted();
    let unfit = |code: Code, what: &str, hint: String| {
        Some(halt(code, format!("partition {} of {} {what}", leaf.name, root.name), hint))
    };
    if leaf.kind != Kind::Table {
        let hint = format!("ALTER TABLE {} DETACH PARTITION {name}", root.name.quoted());
        return unfit(Code::TableUnsupported, "is no table: its changes happen elsewhere", hint);
    }
    if leaf.persistence != Persistence::Permanent {
        return unfit(Code::TableUnsupported, "is not in the log", format!("ALTER TABLE {name} SET LOGGED"));
    }
    // The stream names old rows as the partition says, and we look for the key that the root has. DEFAULT names them by the
    // primary key that the partition has from its root; without one Postgres refuses to change them at all.
    let keyed = root.primary_key.as_ref().is_some_and(|index| index.immediate);
    let fits = match leaf.identity {
        Identity::Full => true,
        Identity::Nothing => false,
        Identity::Default => {
            root.identity != Identity::Index && (keyed || root.identity != Identity::Full || insert_only)
        }
        Identity::Index => root.identity == Identity::Index,
    };
    if fits {
        return None;
    }
    let hint = format!("ALTER TABLE {name} REPLICA IDENTITY FULL");
    let halt = unfit(Code::ReplicaIdentity, "has another replica identity than it", hint);
    let passed_on = "a replica identity is not passed on: each partition has its own, also one that is made later";
    let facts =
        if leaf.identity == Identity::Default && !keyed { vec![BREAKS_UPDATES, passed_on] } else { vec![passed_on] };
    halt.map(|halt| Halt { facts: facts.into_iter().map(str::to_owned).collect(), ..halt })
}

/// The rights to make the publication, or to add tables to it.
fn publication_findings(
    source: &SourceFacts,
    name: &str,
    publication: Option<&PublicationFacts>,
    unpublished: &[&TableFacts],
    found: &mut Vec<Halt>,
) {
    let role = quote_identifier(&source.role);
    let foreign: Vec<&TableFacts> = unpublished.iter().copied().filter(|t| !t.owned).collect();
    if !foreign.is_empty() {
        found.push(not_owner(source, name, publication.is_some(), unpublished, &foreign));
    }
    match publication {
        None if !source.may_create => found.push(halt(
            Code::NoRight,
            format!("role {:?} may not make a publication in database {:?}", source.role, source.database),
            format!("GRANT CREATE ON DATABASE {} TO {role}", quote_identifier(&source.database)),
        )),
        Some(publication) if !publication.owned => found.push(halt(
            Code::NoRight,
            format!("role {:?} does not own publication {name:?}, so it can't add tables to it", source.role),
            format!("ALTER PUBLICATION {} OWNER TO {role}", quote_identifier(name)),
        )),
        None | Some(_) => {}
    }
}

/// Membership in the owners is enough, unless that would make a superuser of us: then a superuser does it once by hand.
fn not_owner(
    source: &SourceFacts,
    publication: &str,
    exists: bool,
    unpublished: &[&TableFacts],
    foreign: &[&TableFacts],
) -> Halt {
    let tables: Vec<TableName> = unpublished.iter().map(|t| t.name.clone()).collect();
    let by_hand = if exists {
        publication::add_tables_sql(publication, &tables)
    } else {
        publication::create_sql(publication, &tables)
    };
    let names: Vec<String> = foreign.iter().map(|t| t.name.to_string()).collect();
    let message = format!("role {:?} does not own {}, so it can't publish them", source.role, names.join(", "));
    if foreign.iter().any(|t| t.owner_is_superuser) {
        let mut finding = halt(Code::NoRight, message, by_hand);
        finding
            .facts
            .push("typed by a superuser; a table's owner or a member of it could publish its tables too".into());
        return finding;
    }
    let owners: BTreeSet<&str> = foreign.iter().map(|t| t.owner.as_str()).collect();
    let grant = format!("GRANT {} TO {}", quoted_list(owners), quote_identifier(&source.role));
    let mut finding = halt(Code::NoRight, message, grant);
    finding.facts.push(format!("or let a superuser type: {by_hand}"));
    finding
}

fn missing(name: &TableName, database: &str, known: &[TableName]) -> Halt {
    let mut finding = halt(
        Code::TableMissing,
        format!("there is no table {name} in database {database:?}"),
        "CREATE TABLE it, or correct `table` in its connector",
    );
    let near = similar(name, known);
    if !near.is_empty() {
        let names: Vec<String> = near.iter().map(|n| n.to_string()).collect();
        finding.hint = format!("did you mean {}? correct `table` in its connector", names.join(" or "));
    }
    finding
}

/// Up to three tables whose names are near: the same table in another schema, or a few letters away.
fn similar<'a>(name: &TableName, known: &'a [TableName]) -> Vec<&'a TableName> {
    let wanted = name.to_string().to_lowercase();
    let letters_max = (wanted.chars().count() / 4).clamp(1, 3);
    let mut near: Vec<(usize, &TableName)> = known
        .iter()
        .filter_map(|candidate| {
            if candidate.table == name.table {
                return Some((0, candidate));
            }
            let distance = strsim::levenshtein(&wanted, &candidate.to_string().to_lowercase());
            (distance <= letters_max).then_some((distance, candidate))
        })
        .collect();
    near.sort();
    near.into_iter().take(3).map(|(_, candidate)| candidate).collect()
}

/// In which order tables are filled, so that a referenced row is there first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadOrder {
    /// Indexes of the tables, referenced ones first.
    pub order: Vec<usize>,
    /// Groups that reference each other, or a table itself: no order helps them, only deferred constraints.
    pub cycles: Vec<Vec<TableName>>,
}

/// Tables that each table's rows reference, itself aside.
pub fn parents(tables: &[TableFacts]) -> HashMap<TableName, BTreeSet<TableName>> {
    let of = |table: &TableFacts| {
        let references = table.foreign_keys.iter().map(|key| key.references.clone());
        (table.name.clone(), references.filter(|name| *name != table.name).collect())
    };
    tables.iter().map(of).collect()
}

/// Orders tables by their foreign keys, and where those leave it open by `rank`: each comes, smaller ranks first, right behind what it
/// needs. References to tables that are not among them do not matter.
pub fn load_order(tables: &[TableFacts], rank: impl Fn(&TableName) -> i32) -> LoadOrder {
    let by_rank = |&i: &usize| (rank(&tables[i].name), i);
    let index: HashMap<&TableName, usize> = tables.iter().enumerate().map(|(i, t)| (&t.name, i)).collect();
    let parents_of = |t: &TableFacts| {
        let mut parents: Vec<usize> = t.foreign_keys.iter().filter_map(|f| index.get(&f.references).copied()).collect();
        parents.sort_by_key(by_rank);
        parents
    };
    let parents: Vec<Vec<usize>> = tables.iter().map(parents_of).collect();
    let mut ranked: Vec<usize> = (0..tables.len()).collect();
    ranked.sort_by_key(by_rank);
    let mut search = Components::new(&parents);
    for table in ranked {
        search.visit(table);
    }
    let mut order = Vec::with_capacity(tables.len());
    let mut cycles = Vec::new();
    for mut component in search.found {
        component.sort_by_key(by_rank);
        if component.len() > 1 || parents[component[0]].contains(&component[0]) {
            cycles.push(component.iter().map(|&i| tables[i].name.clone()).collect());
        }
        order.extend(component);
    }
    LoadOrder { order, cycles }
}

/// Tarjan's strongly connected components: they come out with everything that they point to before them.
struct Components<'a> {
    parents: &'a [Vec<usize>],
    /// Number at which a table was first seen; `None` before.
    number: Vec<Option<usize>>,
    /// Smallest number reachable.
    low: Vec<usize>,
    stack: Vec<usize>,
    on_stack: Vec<bool>,
    next: usize,
    found: Vec<Vec<usize>>,
}

impl<'a> Components<'a> {
    fn new(parents: &'a [Vec<usize>]) -> Components<'a> {
        let count = parents.len();
        Components {
            parents,
            number: vec![None; count],
            low: vec![0; count],
            stack: Vec::new(),
            on_stack: vec![false; count],
            next: 0,
            found: Vec::new(),
        }
    }

    /// Recursive: as deep as the longest chain of foreign keys among the routed tables, tens at most.
    fn visit(&mut self, table: usize) {
        if self.number[table].is_some() {
            return;
        }
        let number = self.next;
        self.next += 1;
        (self.number[table], self.low[table]) = (Some(number), number);
        self.stack.push(table);
        self.on_stack[table] = true;
        for &parent in &self.parents[table] {
            match self.number[parent] {
                None => {
                    self.visit(parent);
                    self.low[table] = self.low[table].min(self.low[parent]);
                }
                Some(seen) if self.on_stack[parent] => self.low[table] = self.low[table].min(seen),
                Some(_) => {}
            }
        }
        if self.low[table] == number {
            let start = self.stack.iter().rposition(|&t| t == table).expect("it was pushed above");
            let component = self.stack.split_off(start);
            component.iter().for_each(|&t| self.on_stack[t] = false);
            self.found.push(component);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::catalog::{ForeignKey, KeyIndex};

    fn table(name: &str, references: &[&str]) -> TableFacts {
        TableFacts {
            oid: 1,
            name: TableName::new("public", name),
            owner: "o".into(),
            owner_is_superuser: false,
            kind: Kind::Table,
            persistence: Persistence::Permanent,
            identity: Identity::Default,
            encoding: "UTF8".into(),
            is_partition: false,
            children: 0,
            ancestors: vec![],
            leaves: vec![],
            columns: vec![],
            composites: vec![],
            primary_key: None,
            identity_index: None,
            unique_keys: vec![],
            foreign_keys: references
                .iter()
                .map(|r| ForeignKey { name: "f".into(), references: TableName::new("public", *r), deferrable: false })
                .collect(),
            rows_estimate: None,
            bytes_estimate: 0,
            may_select: true,
            may_use_schema: true,
            owned: true,
            rows_hidden: false,
            generated_refused: false,
        }
    }

    #[test]
    fn a_table_that_would_refuse_changes_once_published_is_not_published() {
        let whole = TableFacts { identity: Identity::Full, ..table("t", &[]) };
        assert!(unsupported(&whole, &[]).is_none());
        let refused = TableFacts { generated_refused: true, ..whole };
        assert_eq!(unsupported(&refused, &[]).unwrap().code, Code::ReplicaIdentity);
        assert!(unsupported(&TableFacts { identity: Identity::Default, ..refused }, &[]).is_none());
    }

    #[test]
    fn referenced_tables_are_loaded_first() {
        let tables =
            [table("line", &["order", "product"]), table("order", &["customer"]), table("customer", &["gone"])];
        assert_eq!(load_order(&tables, |_| 0), LoadOrder { order: vec![2, 1, 0], cycles: vec![] });
        let tables = [table("child", &["a"]), table("a", &["b"]), table("b", &["a"]), table("tree", &["tree"])];
        let order = load_order(&tables, |_| 0);
        assert_eq!(order.order, [1, 2, 0, 3]);
        let name = |n: &str| TableName::new("public", n);
        assert_eq!(order.cycles, [vec![name("a"), name("b")], vec![name("tree")]]);
    }

    #[test]
    fn what_foreign_keys_leave_open_is_said_by_rank() {
        let tables = [table("a", &[]), table("b", &["d"]), table("c", &[]), table("d", &[])];
        let ranked = |ranks: [i32; 4]| {
            let rank = |name: &TableName| ranks[usize::from(name.table.as_bytes()[0] - b'a')];
            load_order(&tables, rank).order.into_iter().map(|i| tables[i].name.table.as_str()).collect::<String>()
        };
        assert_eq!(ranked([0, 0, 0, 0]), "adbc");
        assert_eq!(ranked([0, 0, -1, 0]), "cadb");
        assert_eq!(ranked([0, -1, 0, 9]), "dbac", "what it references comes with it");
        assert_eq!(ranked([3, 2, 1, 2]), "cdba");
    }

    #[test]
    fn partitions_name_old_rows_as_their_root_needs_it() {
        use Identity::{Default, Full, Index, Nothing};
        let key = |immediate| Some(KeyIndex { name: "k".into(), columns: vec!["id".into()], immediate });
        let unfit = |root: Identity, primary_key: Option<KeyIndex>, insert_only: bool| -> Vec<Identity> {
            let leaf = |identity| LeafFacts {
                name: TableName::new("public", "leaf"),
                kind: Kind::Table,
                persistence: Persistence::Permanent,
                identity,
            };
            let mut table = table("root", &[]);
            (table.kind, table.identity, table.primary_key) = (Kind::Partitioned, root, primary_key);
            let leaves = [Default, Full, Index, Nothing];
            leaves.into_iter().filter(|&identity| unfit_leaf(&table, &leaf(identity), insert_only).is_some()).collect()
        };
        assert_eq!(unfit(Default, key(true), false), [Index, Nothing]);
        assert_eq!(unfit(Full, key(true), false), [Index, Nothing]);
        assert_eq!(unfit(Full, key(false), false), [Default, Index, Nothing], "a deferrable key names no rows");
        assert_eq!(unfit(Full, None, false), [Default, Index, Nothing], "FULL is not passed on");
        assert_eq!(unfit(Full, None, true), [Index, Nothing]);
        assert_eq!(unfit(Index, key(true), false), [Default, Nothing]);
    }

    #[test]
    fn suggestions_are_near_names_only() {
        let known = ["public.products", "public.product_prices", "shop.product", "public.customers"]
            .map(|n| n.split_once('.').map(|(s, t)| TableName::new(s, t)).unwrap());
        let near = |schema, table| -> Vec<String> {
            similar(&TableName::new(schema, table), &known).iter().map(|n| n.to_string()).collect()
        };
        assert_eq!(near("public", "product"), ["shop.product", "public.products"]);
        assert_eq!(near("public", "Customers"), ["public.customers"]);
        assert!(near("public", "invoices").is_empty());
    }
}
