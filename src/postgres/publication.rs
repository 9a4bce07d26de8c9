//! The publication: exactly our tables, all columns, all operations; all rows, but of tables that [`super::filter`] has written.
//!
//! Partitioned tables are published under their root's name, partitions that are routed themselves under their own.
//!
//! Made before the slot (the other order wedges the slot for good), with `ONLY`, so that the list in the catalog is the list
//! that was asked for. Missing tables of ours are added and reported: the caller must read those with a snapshot younger than
//! the ALTER. A row filter that is not as the connector has it is written again ([`super::filter`]): the table leaves the
//! publication and comes back within one transaction. Anything else that differs was somebody's decision: it halts, with the
//! commands that undo it.
//!
//! Deliberately not here: dropping a publication, or taking a table out of one for good.

use tokio_postgres::GenericClient;
use tokio_postgres::error::SqlState;

use super::failure::{failed, unreadable};
use crate::error::{Code, Error, Halt, Result};
use crate::relation::{TableName, quote_identifier};

/// What to do about something that is missing and not ours to make.
pub const CREATE_OFF_HINT: &str = "type the command above at the source, or set create = true";

/// How long a table's lock is waited for beside a stream that flows.
const ADD_LOCK_TIMEOUT: &str = "1s";

const OPERATIONS: &str = "insert, update, delete, truncate";

/// A publication as the catalog has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicationFacts {
    pub name: String,
    /// Member of the owning role, as altering it needs.
    pub owned: bool,
    /// FOR ALL TABLES; then `tables` is empty.
    pub all_tables: bool,
    pub insert: bool,
    pub update: bool,
    pub delete: bool,
    pub truncate: bool,
    pub via_root: bool,
    /// Postgres 18: generated columns are published too.
    pub generated_columns: bool,
    /// Named one by one, in order of name; tables of a schema in `schemas` are not repeated.
    pub tables: Vec<PublishedTable>,
    /// FOR TABLES IN SCHEMA, Postgres 15 and newer.
    pub schemas: Vec<String>,
}

/// A table in a publication.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublishedTable {
    pub name: TableName,
    /// Column list; `None` is all columns.
    pub columns: Option<Vec<String>>,
    /// Row filter as SQL.
    pub filter: Option<String>,
    /// The root of partitions.
    pub partitioned: bool,
}

impl PublicationFacts {
    pub fn table(&self, name: &TableName) -> Option<&PublishedTable> {
        self.tables.iter().find(|t| t.name == *name)
    }
}

/// What [`ensure_publication`] found or did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PublicationState {
    Created,
    Unchanged,
    /// These tables were missing and are in it now.
    Added(Vec<TableName>),
}

/// The publication of that name, if there is one.
pub async fn publication_facts(client: &(impl GenericClient + Sync), name: &str) -> Result<Option<PublicationFacts>> {
    // pubgencols came with Postgres 18; through to_jsonb it is NULL before.
    const SQL: &str = "
        SELECT p.oid, pg_has_role(p.pubowner, 'USAGE'), p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate,
               p.pubviaroot, coalesce(to_jsonb(p)->>'pubgencols', 'n') <> 'n',
               current_setting('server_version_num')::int4 >= 150000
        FROM pg_publication p WHERE p.pubname = $1";
    let doing = "reading the publication";
    let Some(row) = client.query_opt(SQL, &[&name]).await.map_err(|e| failed(doing, e))? else {
        return Ok(None);
    };
    let read = || -> Result<(u32, bool, PublicationFacts), tokio_postgres::Error> {
        let facts = PublicationFacts {
            name: name.to_owned(),
            owned: row.try_get(1)?,
            all_tables: row.try_get(2)?,
            insert: row.try_get(3)?,
            update: row.try_get(4)?,
            delete: row.try_get(5)?,
            truncate: row.try_get(6)?,
            via_root: row.try_get(7)?,
            generated_columns: row.try_get(8)?,
            tables: Vec::new(),
            schemas: Vec::new(),
        };
        Ok((row.try_get(0)?, row.try_get(9)?, facts))
    };
    let (oid, since_15, mut facts) = read().map_err(|e| unreadable("pg_publication", e))?;
    facts.tables = published_tables(client, oid, since_15).await?;
    if since_15 {
        facts.schemas = published_schemas(client, oid).await?;
    }
    Ok(Some(facts))
}

async fn published_tables(
    client: &(impl GenericClient + Sync),
    publication: u32,
    since_15: bool,
) -> Result<Vec<PublishedTable>> {
    // Column lists and row filters came with Postgres 15.
    let details = if since_15 {
        "CASE WHEN r.prattrs IS NULL THEN NULL ELSE ARRAY(
           SELECT a.attname::text FROM pg_attribute a
           WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[]) ORDER BY a.attnum) END,
         pg_get_expr(r.prqual, r.prrelid)"
    } else {
        "NULL::text[], NULL::text"
    };
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text, {details}, c.relkind = 'p'
         FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE r.prpubid = $1 ORDER BY 1, 2"
    );
    let rows = client.query(&sql, &[&publication]).await.map_err(|e| failed("reading the publication's tables", e))?;
    rows.iter()
        .map(|row| {
            Ok(PublishedTable {
                name: TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?),
                columns: row.try_get(2)?,
                filter: row.try_get(3)?,
                partitioned: row.try_get(4)?,
            })
        })
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(|e| unreadable("pg_publication_rel", e))
}

async fn published_schemas(client: &(impl GenericClient + Sync), publication: u32) -> Result<Vec<String>> {
    const SQL: &str = "SELECT n.nspname::text FROM pg_publication_namespace s JOIN pg_namespace n ON n.oid = s.pnnspid
        WHERE s.pnpubid = $1 ORDER BY 1";
    let doing = "reading the publication's schemas";
    let rows = client.query(SQL, &[&publication]).await.map_err(|e| failed(doing, e))?;
    rows.iter()
        .map(|row| row.try_get(0))
        .collect::<Result<_, _>>()
        .map_err(|e| unreadable("pg_publication_namespace", e))
}

/// Makes the publication, or adds what is missing to it, or does nothing. `tables` have passed preflight; those of `filtered`
/// among them are added by [`super::filter::Filters::ensure`].
///
/// # Errors
/// `PUBLICATION_CHANGED` if it differs in anything but missing tables; `CREATE_OFF` if something is missing and `create` is
/// false, with the command as a fact.
pub async fn ensure_publication(
    client: &(impl GenericClient + Sync),
    name: &str,
    tables: &[TableName],
    filtered: &[TableName],
    create: bool,
) -> Result<PublicationState> {
    let whole: Vec<TableName> = tables.iter().filter(|table| !filtered.contains(table)).cloned().collect();
    let (state, sql) = match publication_facts(client, name).await? {
        None => (PublicationState::Created, create_sql(name, &whole)),
        Some(facts) => {
            check_publication(&facts, tables, filtered)?;
            let missing: Vec<TableName> = whole.iter().filter(|t| facts.table(t).is_none()).cloned().collect();
            if missing.is_empty() {
                return Ok(PublicationState::Unchanged);
            }
            let mut sql = add_tables_sql(name, &missing);
            if !facts.via_root && any_partitioned(client, &missing).await? {
                sql = format!("{}; {sql}", via_root_sql(name));
            }
            (PublicationState::Added(missing), sql)
        }
    };
    if !create {
        let what = match &state {
            PublicationState::Added(missing) => format!("publication {name:?} lacks {} tables of ours", missing.len()),
            PublicationState::Created | PublicationState::Unchanged => format!("there is no publication {name:?}"),
        };
        return Err(Error::halt(Code::CreateOff, format!("{what}, and create = false"), CREATE_OFF_HINT)
            .fact(format!("{sql};")));
    }
    // Two statements are one transaction.
    match client.batch_execute(&sql).await {
        Ok(()) => Ok(state),
        // Another instance was quicker; looking again finds its work.
        Err(e) if e.code() == Some(&SqlState::DUPLICATE_OBJECT) => Err(Error::retry("making the publication", e)),
        Err(e) => Err(failed("making the publication", e)),
    }
}

/// Adds a table to the publication, unless somebody holds it locked for longer than a moment: whoever waits here keeps every
/// other table waiting. The inner error is why it is not in, in words.
pub async fn add_table(
    client: &(impl GenericClient + Sync),
    name: &str,
    table: &TableName,
) -> Result<std::result::Result<(), String>> {
    let sql = add_tables_sql(name, std::slice::from_ref(table));
    let sql = format!("BEGIN; SET LOCAL lock_timeout = '{ADD_LOCK_TIMEOUT}'; {sql}; COMMIT");
    let error = match client.batch_execute(&sql).await {
        Ok(()) => return Ok(Ok(())),
        Err(error) => error,
    };
    let Some(db) = error.as_db_error() else { return Err(failed("adding a table to the publication", error)) };
    let why = match *db.code() {
        // Another instance was quicker.
        SqlState::DUPLICATE_OBJECT => Ok(()),
        SqlState::LOCK_NOT_AVAILABLE => Err("somebody holds it locked, so it can't be published yet".to_owned()),
        _ => Err(format!("it can't be published: {}", db.message())),
    };
    client.batch_execute("ROLLBACK").await.map_err(|e| failed("adding a table to the publication", e))?;
    Ok(why)
}

async fn any_partitioned(client: &(impl GenericClient + Sync), tables: &[TableName]) -> Result<bool> {
    const SQL: &str = "SELECT EXISTS (
        SELECT FROM unnest($1::text[], $2::text[]) AS w (nsp, rel) JOIN pg_namespace n ON n.nspname = w.nsp
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.rel WHERE c.relkind = 'p')";
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables.iter().map(|t| (t.schema.as_str(), t.table.as_str())).unzip();
    let row = client.query_one(SQL, &[&schemas, &names]).await;
    row.and_then(|row| row.try_get(0)).map_err(|e| failed("looking for partitioned tables", e))
}

/// Whether the tables that were published before still are, whole. One that was left out meanwhile is not simply added again:
/// its changes in between are in no stream, and nothing would ever show that they are missing.
pub async fn check_published(
    client: &(impl GenericClient + Sync),
    name: &str,
    routed: &[TableName],
    filtered: &[TableName],
    before: &[TableName],
) -> Result<()> {
    let facts = publication_facts(client, name).await?;
    if let Some(facts) = &facts {
        check_publication(facts, routed, filtered)?;
    }
    let is_in = |table: &&TableName| facts.as_ref().is_some_and(|facts| facts.table(table).is_some());
    let gone: Vec<TableName> = before.iter().filter(|table| !is_in(table)).cloned().collect();
    let Some(first) = gone.first() else { return Ok(()) };
    let (message, sql) = match facts {
        Some(_) => (format!("table {first} was taken out of publication {name:?}"), add_tables_sql(name, &gone)),
        None => (format!("publication {name:?} was dropped"), create_sql(name, &gone)),
    };
    let resyncs: Vec<String> = gone.iter().map(|table| format!("lockstep resync {table}")).collect();
    let hint = format!("{sql}; then {}", resyncs.join("; "));
    Err(Error::halt(Code::PublicationChanged, message, hint)
        .fact("changes that were committed meanwhile are in no stream; no sink was touched"))
}

/// Halts if the publication is not ours plus or minus missing tables. Tables of `filtered` have a filter. Pure.
pub fn check_publication(facts: &PublicationFacts, tables: &[TableName], filtered: &[TableName]) -> Result<()> {
    let name = quote_identifier(&facts.name);
    let mut differs = Vec::new();
    let mut commands = Vec::new();
    if facts.all_tables {
        differs.push("it is FOR ALL TABLES, so tables that nobody routed are published".to_owned());
        commands.push(format!("DROP PUBLICATION {name}; {}", create_sql(&facts.name, tables)));
    } else {
        let list_differs = differs.len();
        list_differences(facts, tables, filtered, &mut differs);
        if differs.len() > list_differs {
            commands.push(format!("ALTER PUBLICATION {name} SET TABLE {}", only_list(tables)));
        }
        if !(facts.insert && facts.update && facts.delete && facts.truncate) {
            differs.push(format!("not all of {OPERATIONS} are published"));
            commands.push(format!("ALTER PUBLICATION {name} SET (publish = '{OPERATIONS}')"));
        }
        // On, it means nothing where no root is published.
        let root = facts.tables.iter().find(|table| table.partitioned);
        if let Some(root) = root.filter(|_| !facts.via_root) {
            differs.push(format!("changes of {} come under the names of its partitions", root.name));
            commands.push(via_root_sql(&facts.name));
        }
        if facts.generated_columns {
            differs.push("generated columns are published".to_owned());
            commands.push(format!("ALTER PUBLICATION {name} SET (publish_generated_columns = none)"));
        }
    }
    if differs.is_empty() {
        return Ok(());
    }
    let message = format!("publication {:?} is not the one that was made", facts.name);
    let mut error = Error::halt(Code::PublicationChanged, message, commands.join("; "));
    for difference in differs {
        error = error.fact(difference);
    }
    Err(error
        .fact("changes of a table that was filtered or left out meanwhile are lost: lockstep resync TABLE afterwards"))
}

/// What is published and none of `tables`: somebody must take it out, as a start would say.
pub fn unrouted(facts: &PublicationFacts, tables: &[TableName]) -> Option<Halt> {
    let table = facts.tables.iter().find(|table| !tables.contains(&table.name))?;
    let (name, table) = (quote_identifier(&facts.name), &table.name);
    Some(Halt {
        code: Code::PublicationChanged,
        message: format!("publication {:?} has table {table}, which no connector names", facts.name),
        facts: vec!["while it runs a reader that has the table halts as soon as it is taken out".to_owned()],
        hint: format!("ALTER PUBLICATION {name} DROP TABLE ONLY {}", table.quoted()),
    })
}

fn list_differences(facts: &PublicationFacts, tables: &[TableName], filtered: &[TableName], differs: &mut Vec<String>) {
    for schema in &facts.schemas {
        differs.push(format!("all tables of schema {schema:?} are published"));
    }
    for table in &facts.tables {
        if !tables.contains(&table.name) {
            differs.push(format!("table {} is in it and not routed", table.name));
        }
        if let Some(columns) = &table.columns {
            differs.push(format!("only columns {} of table {} are published", columns.join(", "), table.name));
        }
        match (&table.filter, filtered.contains(&table.name)) {
            (Some(filter), false) => {
                differs.push(format!("only rows of table {} with {filter} are published", table.name));
            }
            (None, true) => {
                differs.push(format!("all rows of table {} are published, not those of its where", table.name))
            }
            _ => {}
        }
    }
}

/// The statement that makes the publication.
pub fn create_sql(name: &str, tables: &[TableName]) -> String {
    let name = quote_identifier(name);
    let list = if tables.is_empty() { String::new() } else { format!(" FOR TABLE {}", only_list(tables)) };
    format!("CREATE PUBLICATION {name}{list} WITH (publish = '{OPERATIONS}', publish_via_partition_root = true)")
}

fn via_root_sql(name: &str) -> String {
    format!("ALTER PUBLICATION {} SET (publish_via_partition_root = true)", quote_identifier(name))
}

/// The statement that adds tables to it.
pub fn add_tables_sql(name: &str, tables: &[TableName]) -> String {
    format!("ALTER PUBLICATION {} ADD TABLE {}", quote_identifier(name), only_list(tables))
}

/// `ONLY` before each: it holds for one name, and without it inheriting tables would come along.
fn only_list(tables: &[TableName]) -> String {
    tables.iter().map(|t| format!("ONLY {}", t.quoted())).collect::<Vec<_>>().join(", ")
}

/// `170010` as `17.10`, `90624` as `9.6.24`.
pub fn version_text(version: i32) -> String {
    if version >= 100_000 {
        format!("{}.{}", version / 10_000, version % 10_000)
    } else {
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(tables: &[&str]) -> PublicationFacts {
        PublicationFacts {
            name: "p".into(),
            owned: true,
            all_tables: false,
            insert: true,
            update: true,
            delete: true,
            truncate: true,
            via_root: true,
            generated_columns: false,
            tables: tables
                .iter()
                .map(|t| PublishedTable {
                    name: TableName::new("s", *t),
                    columns: None,
                    filter: None,
                    partitioned: false,
                })
                .collect(),
            schemas: vec![],
        }
    }

    #[test]
    fn missing_tables_are_no_drift() {
        let ours = [TableName::new("s", "a"), TableName::new("s", "b")];
        assert!(check_publication(&facts(&["a", "b"]), &ours, &[]).is_ok());
        assert!(check_publication(&facts(&["a"]), &ours, &[]).is_ok());
    }

    #[test]
    fn every_drift_is_named_with_the_command_that_undoes_it() {
        let ours = [TableName::new("s", "a")];
        let mut changed = facts(&["a", "x"]);
        changed.tables[0].columns = Some(vec!["id".into()]);
        changed.tables[0].filter = Some("(id > 1)".into());
        changed.truncate = false;
        changed.via_root = false;
        changed.tables[0].partitioned = true;
        insta::assert_snapshot!(check_publication(&changed, &ours, &[]).unwrap_err(), @r#"
        error[PUBLICATION_CHANGED]: publication "p" is not the one that was made
          only columns id of table s.a are published
          only rows of table s.a with (id > 1) are published
          table s.x is in it and not routed
          not all of insert, update, delete, truncate are published
          changes of s.a come under the names of its partitions
          changes of a table that was filtered or left out meanwhile are lost: lockstep resync TABLE afterwards
          help: ALTER PUBLICATION "p" SET TABLE ONLY "s"."a"; ALTER PUBLICATION "p" SET (publish = 'insert, update, delete, truncate'); ALTER PUBLICATION "p" SET (publish_via_partition_root = true)
        "#);
        let mut all = facts(&[]);
        all.all_tables = true;
        let text = check_publication(&all, &ours, &[]).unwrap_err().to_string();
        assert!(
            text.contains("DROP PUBLICATION \"p\"; CREATE PUBLICATION \"p\" FOR TABLE ONLY \"s\".\"a\" WITH"),
            "{text}"
        );
    }

    #[test]
    fn a_filter_is_ours_or_drift() {
        let ours = [TableName::new("s", "a")];
        let mut filtered = facts(&["a"]);
        assert!(check_publication(&filtered, &ours, &ours).unwrap_err().to_string().contains("all rows of table s.a"));
        filtered.tables[0].filter = Some("(id > 1)".into());
        assert!(check_publication(&filtered, &ours, &ours).is_ok());
    }

    #[test]
    fn versions_print_as_postgres_does() {
        assert_eq!((version_text(170_010), version_text(90_624)), ("17.10".to_owned(), "9.6.24".to_owned()));
    }
}
