//! What may refuse a row of a sink's table beside its key: unique indexes and exclusion constraints, and which of their
//! columns can hold a value that stands in for a while, so that a row gets out of another one's way.
//!
//! Read only once such a constraint has refused something, so plans know nothing of it. The choice of a stand-in is pure:
//! - NULL where the column takes it and NULLs are told apart: it clashes with nothing.
//! - Else a made-up value of the type: random where the type is wide, beyond the lowest or highest value there where it is not.
//! - Never a column whose update is heard of elsewhere: by a trigger, or by a foreign key that acts on it. Nobody may see a
//!   stand-in, and these would.
//!
//! Whether a stand-in is free, and whether checks allow it, the server says; what it refuses is `UNIQUE_HANDOVER`.

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::catalog::{self, ColumnFacts};
use super::sql::{PlanColumn, SinkTablePlan};
use crate::error::{Code, Halt, Result};
use crate::relation::quote_identifier;
use crate::session;

/// A unique index or exclusion constraint.
#[derive(Clone, Debug, Default)]
pub(super) struct Unique {
    pub name: String,
    schema: String,
    /// Of a constraint; a mere index has none.
    definition: Option<String>,
    pub immediate: bool,
    exclusion: bool,
    /// NULLS NOT DISTINCT.
    pub nulls_equal: bool,
    pub predicate: Option<String>,
    pub terms: Vec<Term>,
    /// Every column that it depends on, also by expressions, predicate and generated columns.
    pub columns: Vec<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Term {
    /// Names columns without a table in front.
    pub sql: String,
    /// `None` for an expression.
    column: Option<String>,
    /// The operator that says that two values clash.
    pub clashes: String,
}

#[derive(Clone, Debug)]
struct Key {
    name: String,
    deferrable: bool,
    on_update: String,
    /// Columns of ours that reference, and that are referenced.
    referencing: Vec<String>,
    referenced: Vec<String>,
    /// The unique index that it references, the table that has it, quoted, and its definition.
    index: String,
    child: String,
    definition: String,
}

#[derive(Clone, Debug)]
struct Trigger {
    name: String,
    updates: bool,
    deletes_or_inserts: bool,
    /// `UPDATE OF …`; empty for all.
    columns: Vec<String>,
}

/// What there is to know about one table.
#[derive(Clone, Debug, Default)]
pub(super) struct Uniques {
    pub uniques: Vec<Unique>,
    pub columns: Vec<ColumnFacts>,
    /// Names and expressions of generated columns.
    pub generated: Vec<(String, String)>,
    keys: Vec<Key>,
    triggers: Vec<Trigger>,
}

const UNIQUES: &str = "
SELECT c.relname::text, n.nspname::text, pg_catalog.pg_get_constraintdef(x.oid), i.indimmediate, i.indisexclusion,
       coalesce((pg_catalog.to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false),
       pg_catalog.pg_get_expr(i.indpred, i.indrelid), k.terms, k.columns, k.operators,
       ARRAY(WITH plain AS (
           SELECT p.attnum::int FROM unnest(i.indkey) WITH ORDINALITY AS p(attnum, place)
            WHERE p.attnum > 0 AND p.place <= i.indnkeyatts
           UNION
           SELECT d.refobjsubid FROM pg_catalog.pg_depend d
            WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.indexrelid AND d.refobjid = i.indrelid AND d.refobjsubid > 0
              AND d.refobjsubid <> ALL (SELECT p.attnum FROM unnest(i.indkey) WITH ORDINALITY AS p(attnum, place)
                                         WHERE p.place > i.indnkeyatts))
         SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum IN (
           SELECT attnum FROM plain
           UNION
           SELECT d.refobjsubid FROM plain JOIN pg_catalog.pg_attrdef f ON f.adrelid = i.indrelid AND f.adnum = plain.attnum
             JOIN pg_catalog.pg_attribute g ON g.attrelid = i.indrelid AND g.attnum = plain.attnum AND g.attgenerated <> ''
             JOIN pg_catalog.pg_depend d ON d.refobjid = i.indrelid AND d.refobjsubid > 0 AND d.refobjsubid <> plain.attnum
              AND (d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = f.oid
                   OR d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.indrelid AND d.objsubid = plain.attnum))
         ORDER BY a.attnum)
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_constraint x ON x.conindid = i.indexrelid AND x.conrelid = i.indrelid AND x.contype IN ('p', 'u', 'x')
 CROSS JOIN LATERAL (
     SELECT pg_catalog.array_agg('(' || pg_catalog.pg_get_indexdef(i.indexrelid, p.place::int, false) || ')'
                || coalesce(' COLLATE ' || pg_catalog.quote_ident(ln.nspname) || '.' || pg_catalog.quote_ident(l.collname), '')
                ORDER BY p.place) AS terms,
            pg_catalog.array_agg(a.attname::text ORDER BY p.place) AS columns,
            pg_catalog.array_agg('OPERATOR(' || pg_catalog.quote_ident(e.nspname) || '.' || o.oprname || ')' ORDER BY p.place) AS operators
       FROM unnest(i.indkey, i.indclass, i.indcollation) WITH ORDINALITY AS p(attnum, opclass, colloid, place)
       LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = p.attnum AND p.attnum > 0
       LEFT JOIN pg_catalog.pg_collation l ON l.oid = p.colloid
       LEFT JOIN pg_catalog.pg_namespace ln ON ln.oid = l.collnamespace
       JOIN pg_catalog.pg_opclass s ON s.oid = p.opclass
       JOIN pg_catalog.pg_operator o ON o.oid = coalesce(x.conexclop[p.place],
                (SELECT m.amopopr FROM pg_catalog.pg_amop m WHERE m.amopfamily = s.opcfamily AND m.amoplefttype = s.opcintype
                    AND m.amoprighttype = s.opcintype AND m.amopstrategy = 3))
       JOIN pg_catalog.pg_namespace e ON e.oid = o.oprnamespace
      WHERE p.place <= i.indnkeyatts) AS k
 WHERE i.indrelid = $1::oid AND (i.indisunique OR i.indisexclusion) AND i.indisready
 ORDER BY c.relname";

const KEYS: &str = "
SELECT conname::text, condeferrable, confupdtype::text,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE conrelid = $1::oid AND a.attrelid = $1::oid AND a.attnum = ANY (conkey)),
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE confrelid = $1::oid AND a.attrelid = $1::oid AND a.attnum = ANY (confkey)),
       (SELECT c.relname::text FROM pg_catalog.pg_class c WHERE c.oid = conindid AND confrelid = $1::oid),
       conrelid::pg_catalog.regclass::text, pg_catalog.pg_get_constraintdef(oid)
  FROM pg_catalog.pg_constraint WHERE contype = 'f' AND (conrelid = $1::oid OR confrelid = $1::oid) ORDER BY conname";

/// Bits of `tgtype`: 4 INSERT, 8 DELETE, 16 UPDATE.
const TRIGGERS: &str = "
SELECT tgname::text, tgtype & 16 <> 0, tgtype & 12 <> 0,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = tgrelid AND a.attnum = ANY (tgattr))
  FROM pg_catalog.pg_trigger WHERE tgrelid = $1::oid AND NOT tgisinternal AND tgenabled IN ('O', 'A') ORDER BY tgname";

const GENERATED: &str = "
SELECT a.attname::text, pg_catalog.pg_get_expr(d.adbin, d.adrelid)
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid = $1::oid AND a.attgenerated <> '' AND NOT a.attisdropped";

/// What the catalog says now about the plan's table, which exists.
pub(super) async fn read(client: &Client, plan: &SinkTablePlan) -> Result<Uniques> {
    let failed = |error| session::classify("reading the sink's unique indexes", error);
    let params: [&(dyn ToSql + Sync); 1] = [&plan.oid];
    let (uniques, keys, triggers, generated) = tokio::try_join!(
        client.query(UNIQUES, &params),
        client.query(KEYS, &params),
        client.query(TRIGGERS, &params),
        client.query(GENERATED, &params),
    )
    .map_err(failed)?;
    let facts = catalog::read(client, &[&plan.table]).await?.remove(0);
    Ok(Uniques {
        uniques: uniques.iter().map(unique).collect(),
        columns: facts.map(|facts| facts.columns).unwrap_or_default(),
        generated: generated.iter().map(|row| (row.get(0), row.get(1))).collect(),
        keys: keys.iter().map(key).collect(),
        triggers: triggers.iter().map(trigger).collect(),
    })
}

fn unique(row: &tokio_postgres::Row) -> Unique {
    let (terms, columns, operators): (Vec<String>, Vec<Option<String>>, Vec<String>) =
        (row.get(7), row.get(8), row.get(9));
    let terms = terms.into_iter().zip(columns).zip(operators);
    Unique {
        name: row.get(0),
        schema: row.get(1),
        definition: row.get(2),
        immediate: row.get(3),
        exclusion: row.get(4),
        nulls_equal: row.get(5),
        predicate: row.get(6),
        terms: terms.map(|((sql, column), clashes)| Term { sql, column, clashes }).collect(),
        columns: row.get(10),
    }
}

fn key(row: &tokio_postgres::Row) -> Key {
    Key {
        name: row.get(0),
        deferrable: row.get(1),
        on_update: row.get(2),
        referencing: row.get(3),
        referenced: row.get(4),
        index: row.get::<_, Option<String>>(5).unwrap_or_default(),
        child: row.get(6),
        definition: row.get(7),
    }
}

fn trigger(row: &tokio_postgres::Row) -> Trigger {
    Trigger { name: row.get(0), updates: row.get(1), deletes_or_inserts: row.get(2), columns: row.get(3) }
}

/// What a row's column holds while the row is out of the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StandIn {
    /// In the plan's columns.
    pub place: usize,
    /// `p.i` numbers the rows that are parked, from 1 to `p.of`; `n` are the new rows, `{t}` is the table.
    pub sql: String,
}

impl Key {
    /// The same without an action on updates, checked at the end.
    fn make_deferrable(&self) -> String {
        let name = quote_identifier(&self.name);
        let definition = [
            " ON UPDATE CASCADE",
            " ON UPDATE SET NULL",
            " ON UPDATE SET DEFAULT",
            " ON UPDATE RESTRICT",
            " DEFERRABLE",
        ]
        .iter()
        .fold(self.definition.clone(), |definition, action| definition.replace(action, ""));
        format!("ALTER TABLE {} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} {definition} DEFERRABLE", self.child)
    }
}

impl Unique {
    fn term_of(&self, column: &str) -> Option<usize> {
        self.terms.iter().position(|term| term.column.as_deref() == Some(column))
    }

    /// Over the key's columns alone it only tells what the key tells.
    pub fn is_key(&self, plan: &SinkTablePlan) -> bool {
        let in_key = |term: &Term| plan.key.iter().any(|&k| term.column.as_ref() == Some(&plan.columns[k].name));
        self.predicate.is_none() && self.terms.len() == plan.key.len() && self.terms.iter().all(in_key)
    }

    /// Places in the plan's columns that it depends on.
    pub fn places(&self, plan: &SinkTablePlan) -> Vec<usize> {
        (0..plan.columns.len()).filter(|&place| self.columns.contains(&plan.columns[place].name)).collect()
    }

    fn drop_sql(&self, plan: &SinkTablePlan) -> String {
        match self.definition {
            Some(_) => format!("ALTER TABLE {} DROP CONSTRAINT {}", plan.table.quoted(), quote_identifier(&self.name)),
            None => format!("DROP INDEX {}.{}", quote_identifier(&self.schema), quote_identifier(&self.name)),
        }
    }

    fn make_deferrable(&self, plan: &SinkTablePlan) -> String {
        let (table, name) = (plan.table.quoted(), quote_identifier(&self.name));
        let Some(definition) = &self.definition else {
            // A mere index can't be checked later; the same as an exclusion constraint can.
            let clashes = self.terms.iter().map(|term| format!("{} WITH {}", term.sql, term.clashes));
            let clashes = clashes.collect::<Vec<_>>().join(", ");
            let predicate =
                self.predicate.as_ref().map_or_else(String::new, |predicate| format!(" WHERE ({predicate})"));
            let drop = self.drop_sql(plan);
            return format!(
                "{drop}; ALTER TABLE {table} ADD CONSTRAINT {name} EXCLUDE USING btree ({clashes}){predicate} DEFERRABLE"
            );
        };
        format!("ALTER TABLE {table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} {definition} DEFERRABLE")
    }
}

impl Uniques {
    /// Which column of `unique` a row can get out of the way by, and what it holds meanwhile; else why there is none. Rather
    /// one of those `written`; `seed` is random.
    pub fn stand_in(
        &self,
        plan: &SinkTablePlan,
        unique: &Unique,
        written: &[usize],
        seed: u64,
    ) -> std::result::Result<StandIn, Vec<String>> {
        let (mut found, mut reasons) = (Vec::new(), Vec::new());
        for place in unique.places(plan).into_iter().filter(|place| !plan.key.contains(place)) {
            match self.of_column(unique, place, &plan.columns[place], plan, seed) {
                Ok((rank, sql)) => found.push(((rank, !written.contains(&place)), StandIn { place, sql })),
                Err(reason) => reasons.push(format!("column {}: {reason}", plan.columns[place].name)),
            }
        }
        if reasons.is_empty() {
            reasons.push("it is over the key and columns that are not written".to_owned());
        }
        found.into_iter().min_by_key(|(rank, _)| *rank).map(|(_, stand_in)| stand_in).ok_or(reasons)
    }

    /// The lower the rank, the surer.
    fn of_column(
        &self,
        unique: &Unique,
        place: usize,
        column: &PlanColumn,
        plan: &SinkTablePlan,
        seed: u64,
    ) -> std::result::Result<(u8, String), String> {
        let name = &column.name;
        let hears =
            |trigger: &&Trigger| trigger.updates && (trigger.columns.is_empty() || trigger.columns.contains(name));
        if let Some(trigger) = self.triggers.iter().find(hears) {
            return Err(format!("trigger {} fires for its updates", trigger.name));
        }
        let acts = |key: &&Key| key.referenced.contains(name) && !matches!(key.on_update.as_str(), "a" | "r");
        if let Some(key) = self.keys.iter().find(acts) {
            return Err(format!("foreign key {} acts on its updates", key.name));
        }
        let Some(facts) = self.columns.iter().find(|facts| facts.name == *name && !facts.identity_always) else {
            return Err("it can't be updated".to_owned());
        };
        let term = unique.term_of(name);
        match (facts.not_null, term) {
            (false, Some(_)) if !unique.nulls_equal => return Ok((0, "NULL".to_owned())),
            // An expression may make something of NULL, a predicate seldom holds for it: the server will tell.
            (false, None) => return Ok((2, "NULL".to_owned())),
            _ => {}
        }
        let checked = |key: &&Key| key.referencing.contains(name) && !key.deferrable;
        if let Some(key) = self.keys.iter().find(checked) {
            return Err(format!("it is not null, and foreign key {} allows no other value", key.name));
        }
        let told_apart = |term: usize| !unique.exclusion || unique.terms[term].clashes.ends_with(".=)");
        let empty = || unique.exclusion && term.is_some() && facts.base.ends_with("range");
        let made_up = match term {
            Some(term) if !told_apart(term) => None,
            _ => made_up(facts, &column.quoted, term, plan.encoding() == "UTF8", seed),
        };
        match made_up {
            Some(sql) => Ok((if term.is_some() { 1 } else { 3 }, sql)),
            // Empty ranges meet nothing.
            None if empty() => Ok((1, "'empty'".to_owned())),
            None => Err(format!(
                "it is not null, and no value of {} is known to be free",
                plan.columns[place].stored.trim_start_matches("pg_catalog.")
            )),
        }
    }

    /// The halt for rows that can't get out of each other's way. `stale`: some of them are still to be read again, and
    /// checking later would not help.
    pub fn handover(&self, plan: &SinkTablePlan, unique: &Unique, reasons: Vec<String>, stale: bool) -> Halt {
        let hint = match self.keys.iter().find(|key| key.index == unique.name) {
            // A constraint that is referenced can't be deferrable; the foreign key can.
            Some(key) => key.make_deferrable(),
            None if stale => format!("{}, and make it again once the table is read", unique.drop_sql(plan)),
            None => unique.make_deferrable(plan),
        };
        let message = format!(
            "rows of {} hand over values of {}, and nothing can stand in for them meanwhile",
            plan.table, unique.name
        );
        Halt { code: Code::UniqueHandover, message, facts: reasons, hint }
    }

    /// Whether rows of the table may be deleted and made again, as a last resort: nothing hangs on them or hears of it, and
    /// they hold nothing but what is written.
    pub fn is_replaceable(&self, plan: &SinkTablePlan) -> bool {
        let ours = |facts: &ColumnFacts| facts.generated || plan.columns.iter().any(|column| column.name == facts.name);
        self.keys.iter().all(|key| key.referenced.is_empty())
            && !self.triggers.iter().any(|trigger| trigger.deletes_or_inserts)
            && self.columns.iter().all(ours)
    }
}

/// Private characters of Unicode, for texts too short for anything random: nobody's data.
const PRIVATE_FIRST: u64 = 0xE000;
const PRIVATE_COUNT: u64 = 6_400;

/// A text of fewer characters than this says too little to be random in hexadecimal digits.
const RANDOM_TEXT_MIN: i32 = 16;

/// A value of the type that no row holds, different for each row.
fn made_up(facts: &ColumnFacts, quoted: &str, term: Option<usize>, utf8: bool, seed: u64) -> Option<String> {
    let uuid = "pg_catalog.gen_random_uuid()";
    let digits = format!("pg_catalog.replace({uuid}::pg_catalog.text, '-', '')");
    let random = |range: u64| seed % range;
    let far = |bits: u32| format!("-{} - p.i", (1_u64 << bits) + random(1 << (bits - 1)));
    Some(match facts.base.as_str() {
        "uuid" => uuid.to_owned(),
        // 128 bits are an address of version 6.
        address @ ("inet" | "cidr") => {
            format!("pg_catalog.regexp_replace({digits}, '(....)(?!$)', '\\1:', 'g')::pg_catalog.{address}")
        }
        "macaddr" => format!("pg_catalog.left({digits}, 12)::pg_catalog.macaddr"),
        "macaddr8" => format!("pg_catalog.left({digits}, 16)::pg_catalog.macaddr8"),
        "tsvector" => format!("{digits}::pg_catalog.tsvector"),
        "bytea" => format!("pg_catalog.uuid_send({uuid})"),
        "jsonb" => format!("pg_catalog.to_jsonb({uuid})"),
        "int2" => free_integer(quoted, term, "-32768", "32767"),
        "int4" => free_integer(quoted, term, "-2147483648", "2147483647"),
        "oid" => free_integer(quoted, term, "0", "4294967295"),
        "int8" => far(62),
        // Whole numbers are exact up to 2^53.
        "float8" => far(52),
        "numeric" if facts.typmod == -1 => far(62),
        "numeric" => lower_number(quoted, term),
        "date" => format!("'200000-01-01'::pg_catalog.date + ({} + p.i)::pg_catalog.int4", random(1 << 29)),
        stamp @ ("timestamp" | "timestamptz") => {
            let seconds = random(1 << 42);
            format!("'100000-01-01'::pg_catalog.{stamp} + ({seconds} + p.i) * '1 second'::pg_catalog.interval")
        }
        "text" | "name" => format!("'lockstep ' || {uuid}"),
        "varchar" | "bpchar" => match facts.typmod - 4 {
            ..0 => format!("'lockstep ' || {uuid}"),
            chars @ RANDOM_TEXT_MIN.. => {
                format!("pg_catalog.left({digits}, {chars})")
            }
            chars if utf8 => {
                let digit = |place: u32| {
                    let digit = format!("({} + p.i) / {} % {PRIVATE_COUNT}", random(1 << 50), PRIVATE_COUNT.pow(place));
                    format!("pg_catalog.chr(({PRIVATE_FIRST} + {digit})::pg_catalog.int4)")
                };
                (0..u32::try_from(chars).unwrap_or(1).min(4)).map(digit).collect::<Vec<_>>().join(" || ")
            }
            _ => return None,
        },
        name if name.ends_with(".citext") => format!("'lockstep ' || {uuid}"),
        _ => return None,
    })
}

/// The lowest or highest value that the table holds or is to hold, which an index knows at once. `term`: the column is one of the
/// index by itself.
fn end_of(quoted: &str, term: Option<usize>, of: &str) -> String {
    let held = format!("(SELECT pg_catalog.{of}(e.{quoted}) FROM {{t}} AS e)");
    match (term, of) {
        (None, _) => held,
        (Some(term), "min") => format!("LEAST({held}, (SELECT pg_catalog.min(n.u{term}) FROM n))"),
        (Some(term), _) => format!("GREATEST({held}, (SELECT pg_catalog.max(n.u{term}) FROM n))"),
    }
}

/// Below what the table holds and is to hold, or above, or where it leaves the most room. Each is looked for only where the one
/// before does not do.
fn free_integer(quoted: &str, term: Option<usize>, least: &str, most: &str) -> String {
    let end = |of: &str| format!("{}::pg_catalog.int8", end_of(quoted, term, of));
    let (low, high) = (end("min"), end("max"));
    let new = term.map_or_else(String::new, |term| format!(" UNION ALL SELECT n.u{term}::pg_catalog.int8 FROM n"));
    let gap = format!(
        "(SELECT g.v FROM (SELECT a.v, pg_catalog.lead(a.v) OVER (ORDER BY a.v) - a.v AS room \
         FROM (SELECT e.{quoted}::pg_catalog.int8 FROM {{t}} AS e{new}) AS a(v)) AS g \
         WHERE g.room IS NOT NULL ORDER BY g.room DESC LIMIT 1)"
    );
    format!(
        "CASE WHEN {low} - p.of >= {least} THEN {low} - p.i WHEN {high} + p.of <= {most} THEN {high} + p.i ELSE {gap} + p.i END"
    )
}

/// Below what the table holds and is to hold; what has no room for it refuses it.
fn lower_number(quoted: &str, term: Option<usize>) -> String {
    format!("{} - p.i", end_of(quoted, term, "min"))
}
