//! Foreign keys that are set aside while a sink's tables get their first rows (`foreign_keys = "after_load"`), and put back when all
//! of them are there.
//!
//! A foreign key that can't be deferred refuses rows that come before what they reference, and one within a circle holds only once
//! every row is there, which would make a first copy one transaction. Nothing but dropping the constraint has Postgres let such
//! rows stand between transactions without rights of a superuser. So what is dropped is written down first: its definition, its
//! comment and whether it was validated stand in `lockstep.foreign_keys` **in the transaction that drops it**, which is also the one in
//! which the sink's owner moves its progress, so that no worker that was left behind drops anything. The row goes only after the
//! constraint is back under its name and holds. Whatever dies in between, the next start finds the row.
//!
//! A constraint comes back `NOT VALID` first: from there on every change is checked again, and the rows that are there are checked under
//! a lock that lets others read and write. One that had not been validated stays so. Foreign keys of a partitioned table can't be
//! added that way, so they are checked where they are added.
//!
//! Left as they are: keys that reference the service's own tables or that those have, keys that are not enforced, and keys whose
//! triggers somebody has switched off, which could not be put back as they were.

use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::postgres::PostgresSink;
use super::refusal::failure;
use super::{Failure, Outcome};
use crate::error::{Code, Error, Halt, Result};
use crate::relation::{TableName, quote_identifier};
use crate::session;

/// Keys of rows that are named where a constraint does not hold.
const NAMED_MAX: i64 = 3;

const CREATE: &str = "CREATE TABLE IF NOT EXISTS lockstep.foreign_keys (pipeline text, sink text, table_oid oid, table_schema text, \
    table_name text, name text, definition text NOT NULL, comment text, validated boolean NOT NULL, set_aside_at timestamptz NOT NULL, \
    PRIMARY KEY (pipeline, sink, table_schema, table_name, name))";

/// Between tables that we write, where one of the two is to get its first rows. Of a partition's constraints the root's is the one.
const FOUND: &str = "
WITH w AS (SELECT c.oid, w.first FROM unnest($1::text[], $2::text[], $3::bool[]) AS w(schema, tab, first)
    JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.tab)
SELECT c.oid, n.nspname::text, c.relname::text, k.conname::text, pg_catalog.pg_get_constraintdef(k.oid),
       pg_catalog.obj_description(k.oid, 'pg_constraint'), k.convalidated,
       pg_catalog.pg_has_role(c.relowner, 'USAGE'),
       pg_catalog.has_table_privilege(p.oid, 'REFERENCES'), pn.nspname::text, p.relname::text
  FROM pg_catalog.pg_constraint k
  JOIN w child ON child.oid = k.conrelid JOIN w parent ON parent.oid = k.confrelid
  JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_class p ON p.oid = k.confrelid JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
 WHERE k.contype = 'f' AND k.conparentid = 0 AND (child.first OR parent.first)
   AND pg_catalog.pg_get_constraintdef(k.oid) NOT LIKE '%NOT ENFORCED%'
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgconstraint = k.oid AND t.tgenabled <> 'O')
 ORDER BY n.nspname, c.relname, k.conname";

/// A table may have got another name since; a database that was restored has other numbers.
const SET_ASIDE: &str = "
SELECT f.table_schema, f.table_name, f.name, f.definition, f.comment, f.validated,
       n.nspname::text, c.relname::text, c.relkind = 'p', k.convalidated
  FROM lockstep.foreign_keys f
  LEFT JOIN pg_catalog.pg_class c ON c.oid = coalesce(
       pg_catalog.to_regclass(pg_catalog.quote_ident(f.table_schema) || '.' || pg_catalog.quote_ident(f.table_name))::oid, f.table_oid)
  LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_constraint k ON k.conrelid = c.oid AND k.conname = f.name
 WHERE f.pipeline = $1 AND f.sink = $2 ORDER BY 1, 2, 3";

/// Tables at the source by what they are at the sink.
pub type Sources = HashMap<TableName, TableName>;

/// A foreign key that can be set aside.
#[derive(Debug, Clone)]
pub struct Found {
    oid: u32,
    pub table: TableName,
    pub name: String,
    definition: String,
    comment: Option<String>,
    validated: bool,
    owned: bool,
    /// The referenced table, and whether we may reference it.
    parent: TableName,
    may_reference: bool,
}

/// One that was.
#[derive(Debug, Clone)]
pub struct SetAside {
    /// As it was called then.
    table: TableName,
    name: String,
    definition: String,
    comment: Option<String>,
    validated: bool,
    /// As it is called now; `None`: the table is gone, and the constraint with it.
    now: Option<TableName>,
    partitioned: bool,
    /// It is there again, and whether it is validated.
    back: Option<bool>,
}

impl SetAside {
    fn add(&self, table: &TableName) -> String {
        let not_valid = if self.partitioned || !self.validated { "" } else { " NOT VALID" };
        let name = quote_identifier(&self.name);
        format!("ALTER TABLE {} ADD CONSTRAINT {name} {}{not_valid}", table.quoted(), self.definition)
    }
}

impl PostgresSink {
    /// Foreign keys to be set aside while these tables, of all that we write, get their first rows.
    pub async fn foreign_keys(&self, first: &[TableName], all: &[TableName]) -> Result<Vec<Found>> {
        let schemas: Vec<&str> = all.iter().map(|table| table.schema.as_str()).collect();
        let names: Vec<&str> = all.iter().map(|table| table.table.as_str()).collect();
        let firsts: Vec<bool> = all.iter().map(|table| first.contains(table)).collect();
        let found = self.client.query(FOUND, &[&schemas, &names, &firsts]).await;
        let found = found.map_err(|error| session::classify("reading the sink's foreign keys", error))?;
        Ok(found.iter().map(found_of).collect())
    }

    /// What keeps us from putting them back, and so from setting them aside.
    pub fn foreign_key_findings(&self, found: &[Found]) -> Vec<Halt> {
        let role = quote_identifier(&self.name.role);
        let halt = |key: &Found, what: &str, hint: String| Halt {
            code: Code::NoRight,
            message: format!(
                "foreign_keys = \"after_load\": role {:?} {what}, so foreign key {} of {} can't be put back",
                self.name.role, key.name, key.table
            ),
            facts: vec!["nothing was changed".to_owned()],
            hint,
        };
        let judge = |key: &Found| {
            if !key.owned {
                let hint = format!("ALTER TABLE {} OWNER TO {role}", key.table.quoted());
                return Some(halt(key, &format!("does not own {}", key.table), hint));
            }
            let hint = format!("GRANT REFERENCES ON {} TO {role}", key.parent.quoted());
            (!key.may_reference).then(|| halt(key, &format!("may not reference {}", key.parent), hint))
        };
        found.iter().filter_map(judge).collect()
    }

    /// Makes the table in which they are written down, if it is missing and `create` allows it.
    pub async fn prepare_foreign_keys(&self, create: bool) -> Result<()> {
        let failed = |error| session::classify("making lockstep.foreign_keys", error);
        let there = "SELECT pg_catalog.to_regclass('lockstep.foreign_keys') IS NOT NULL";
        if self.client.query_one(there, &[]).await.map_err(failed)?.get(0) {
            return Ok(());
        }
        if !create {
            let message =
                "lockstep.foreign_keys does not exist, where foreign keys are written down that are set aside";
            return Err(Error::halt(Code::CreateOff, message, CREATE));
        }
        self.client.batch_execute(CREATE).await.map_err(failed)
    }

    /// Writes them down and drops them, in the open transaction. One that is written down already (its rows did not hold it) stays as it was
    /// at first.
    pub async fn set_aside(&mut self, found: &[Found]) -> Outcome<()> {
        self.assert_open();
        let insert = "INSERT INTO lockstep.foreign_keys VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now())
            ON CONFLICT DO NOTHING";
        let (pipeline, sink) = (self.name.pipeline.clone(), self.name.sink.clone());
        for key in found {
            let Found { oid, table, name, definition, comment, validated, .. } = key;
            let (schema, tab) = (&table.schema, &table.table);
            let written = self
                .client
                .execute(insert, &[&pipeline, &sink, oid, schema, tab, name, definition, comment, validated])
                .await;
            written.map(drop).map_err(|error| self.not_done("writing down a foreign key of the sink", error))?;
            let drop_sql = format!("ALTER TABLE {} DROP CONSTRAINT {}", table.quoted(), quote_identifier(name));
            self.alter(&drop_sql).await?;
        }
        Ok(())
    }

    /// Foreign keys that are written down.
    pub async fn foreign_keys_aside(&self) -> Result<Vec<SetAside>> {
        let failed = |error| session::classify("reading lockstep.foreign_keys", error);
        let there = "SELECT pg_catalog.to_regclass('lockstep.foreign_keys') IS NOT NULL";
        if !self.client.query_one(there, &[]).await.map_err(failed)?.get::<_, bool>(0) {
            return Ok(Vec::new());
        }
        let found = self.client.query(SET_ASIDE, &[&self.name.pipeline, &self.name.sink]).await.map_err(failed)?;
        Ok(found.iter().map(set_aside_of).collect())
    }

    /// Adds those that are not there again, in the open transaction. From its end on every change is checked.
    pub async fn put_back(&mut self, aside: &[SetAside], sources: &Sources) -> Outcome<()> {
        self.assert_open();
        for key in aside.iter().filter(|key| key.back.is_none()) {
            let Some(table) = &key.now else {
                tracing::warn!(table = %key.table, name = key.name, "the table of a foreign key that was set aside is gone");
                continue;
            };
            if let Err(error) = self.client.batch_execute(&key.add(table)).await {
                self.fail();
                return Err(self.refused(key, (table, sources), error).await);
            }
            if let Some(comment) = &key.comment {
                let comment_sql = format!(
                    "COMMENT ON CONSTRAINT {} ON {} IS {}",
                    quote_identifier(&key.name),
                    table.quoted(),
                    quote_literal(comment)
                );
                self.alter(&comment_sql).await?;
            }
        }
        Ok(())
    }

    /// Has the server look whether the rows that are there hold them. Not in a transaction.
    pub async fn validate_foreign_keys(&mut self, sources: &Sources) -> Outcome<()> {
        for key in self.foreign_keys_aside().await? {
            let Some(table) = key.now.as_ref().filter(|_| key.validated && key.back == Some(false)) else { continue };
            let validate =
                format!("ALTER TABLE {} VALIDATE CONSTRAINT {}", table.quoted(), quote_identifier(&key.name));
            tracing::info!(%table, name = key.name, "validating a foreign key");
            if let Err(error) = self.client.batch_execute(&validate).await {
                return Err(self.refused(&key, (table, sources), error).await);
            }
            self.hear();
        }
        Ok(())
    }

    /// They are back and hold: nothing is written down any more, with the open transaction's end.
    pub async fn forget_foreign_keys(&mut self) -> Outcome<()> {
        self.assert_open();
        let delete = "DELETE FROM lockstep.foreign_keys WHERE pipeline = $1 AND sink = $2";
        let (pipeline, sink) = (self.name.pipeline.clone(), self.name.sink.clone());
        let done = self.client.execute(delete, &[&pipeline, &sink]).await;
        done.map(drop).map_err(|error| self.not_done("forgetting foreign keys of the sink", error))
    }

    async fn alter(&mut self, sql: &str) -> Outcome<()> {
        let done = self.client.batch_execute(sql).await;
        done.map_err(|error| self.not_done("setting foreign keys of the sink aside", error))
    }

    fn not_done(&mut self, doing: &str, error: tokio_postgres::Error) -> Failure {
        self.fail();
        failure(doing, None, error)
    }

    /// Rows that reference nothing halt by name; so does a definition that no longer fits.
    async fn refused(
        &mut self,
        key: &SetAside,
        (table, sources): (&TableName, &Sources),
        error: tokio_postgres::Error,
    ) -> Failure {
        let doing = format!("putting back foreign key {} of {table}", key.name);
        let Some(server) = error.as_db_error() else { return failure(&doing, None, error) };
        let kind = &server.code().code()[..2];
        if matches!(kind, "08" | "25" | "40" | "53" | "55" | "57" | "58") {
            return failure(&doing, None, error);
        }
        let (broken, why) = (*server.code() == SqlState::FOREIGN_KEY_VIOLATION, server.message().to_owned());
        let forget = format!(
            "DELETE FROM lockstep.foreign_keys WHERE table_schema = {} AND table_name = {} AND name = {}",
            quote_literal(&key.table.schema),
            quote_literal(&key.table.table),
            quote_literal(&key.name)
        );
        if !broken {
            return Error::halt(Code::ForeignKeyBroken, format!("{doing}: {why}"), key.add(table))
                .fact(format!("or, to go on without it: {forget}"))
                .into();
        }
        // The rollback leaves the constraint as it was before; only who looks for the rows needs a transaction that works.
        let named = match self.rollback().await {
            Ok(()) => self.dangling(key, table).await,
            Err(_) => None,
        };
        let rows = named.map_or_else(String::new, |keys| format!(": {keys}"));
        let message = format!(
            "every row is there, and foreign key {} of {table} does not hold: rows reference what is not there{rows}",
            key.name
        );
        let source = sources.get(table).unwrap_or(table);
        Error::halt(Code::ForeignKeyBroken, message, format!("lockstep resync {source}"))
            .fact(format!("its definition: {}", key.definition))
            .fact("mend the rows at the source first, then have them read again and start the sink")
            .fact(format!("or, to go on without it: drop it if it is there, and {forget}"))
            .into()
    }

    /// Keys of some rows that reference nothing; `None` where nobody can say.
    async fn dangling(&self, key: &SetAside, table: &TableName) -> Option<String> {
        // Not in the definition's words: its constraint may not be there. The lists of columns stand in parentheses.
        let (child, rest) = key.definition.strip_prefix("FOREIGN KEY (")?.split_once(") REFERENCES ")?;
        let (parent, rest) = rest.split_once('(')?;
        let (referenced, _) = rest.split_once(')')?;
        let columns = |list: &'static str, alias: &'static str, names: &str| {
            let names: Vec<String> = names.split(", ").map(|name| format!("{alias}.{name}")).collect();
            names.join(list)
        };
        let primary = "SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY k.n)
              FROM pg_catalog.pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(attnum, n)
              JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE i.indisprimary AND i.indrelid = pg_catalog.to_regclass($1)";
        let primary: Option<String> = self.client.query_one(primary, &[&table.quoted()]).await.ok()?.get(0);
        let primary = primary?;
        let sql = format!(
            "SELECT ROW({})::text FROM {} AS c WHERE {} IS NOT NULL AND NOT EXISTS
               (SELECT FROM {parent} AS p WHERE ROW({}) = ROW({})) LIMIT {NAMED_MAX}",
            columns(", ", "c", &primary),
            table.quoted(),
            columns(" IS NOT NULL AND ", "c", child),
            columns(", ", "p", referenced),
            columns(", ", "c", child),
        );
        let rows = self.client.query(&sql, &[]).await.ok()?;
        let keys: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        Some(format!("{primary} = {}", keys.join(", ")))
    }
}

fn found_of(row: &Row) -> Found {
    Found {
        oid: row.get(0),
        table: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        name: row.get(3),
        definition: row.get(4),
        comment: row.get(5),
        validated: row.get(6),
        owned: row.get(7),
        may_reference: row.get(8),
        parent: TableName::new(row.get::<_, String>(9), row.get::<_, String>(10)),
    }
}

fn set_aside_of(row: &Row) -> SetAside {
    let now: Option<(String, String)> = row.get::<_, Option<String>>(6).zip(row.get(7));
    SetAside {
        table: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        name: row.get(2),
        definition: row.get(3),
        comment: row.get(4),
        validated: row.get(5),
        now: now.map(|(schema, table)| TableName::new(schema, table)),
        partitioned: row.get::<_, Option<bool>>(8).unwrap_or_default(),
        back: row.get(9),
    }
}

/// standard_conforming_strings is on wherever a session is ours.
fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
