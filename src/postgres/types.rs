//! Types as `pg_type` has them, and what a DEFAULT says to consumers.
//!
//! Types are resolved by OID, with everything that they are made of: an array's element, a domain's base, an enum's labels. Of a
//! DEFAULT only literals have a value that a schema can show; Debezium shows a type's zero for calls and nothing for other
//! expressions, and so does this.

use std::collections::HashMap;

use tokio_postgres::{GenericClient, Row};

use super::failure::{failed, unreadable};
use crate::error::Result;
pub use crate::relation::type_names::join as type_name;
use crate::relation::{Attribute, ColumnDefault, Composite, TypeKind, TypeName};

/// Types that know no dimensions although they have elements: `int2vector` and `oidvector`.
const VECTORS: [u32; 2] = [22, 30];

/// The types with these OIDs; those that no longer exist are missing from the answer.
pub async fn types(client: &(impl GenericClient + Sync), oids: &[u32]) -> Result<HashMap<u32, TypeName>> {
    const SQL: &str = "
        WITH RECURSIVE wanted (oid) AS (
            SELECT unnest($1::oid[])
            UNION
            SELECT CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END
            FROM wanted JOIN pg_type t USING (oid)
            WHERE t.typtype = 'd' OR t.typcategory = 'A' AND t.typlen = -1 AND t.typelem <> 0)
        SELECT t.oid, n.nspname::text, t.typname::text, t.typtype, t.typcategory = 'A' AND t.typlen = -1, t.typelem,
               coalesce(element.typdelim, ','), t.typbasetype, t.typtypmod,
               ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder)
        FROM wanted JOIN pg_type t USING (oid) JOIN pg_namespace n ON n.oid = t.typnamespace
             LEFT JOIN pg_type element ON element.oid = t.typelem";
    let rows = client.query(SQL, &[&oids]).await.map_err(|e| failed("reading types from the source's catalog", e))?;
    let mut found: HashMap<u32, Found> = HashMap::new();
    for row in &rows {
        let read = || -> Result<_, tokio_postgres::Error> {
            let array: bool = row.try_get(4)?;
            let of = match row.try_get::<_, i8>(3)?.cast_unsigned() {
                b'e' => Made::Enum(row.try_get(9)?),
                b'd' => Made::Domain(row.try_get(7)?, row.try_get(8)?),
                b'c' => Made::Plain(TypeKind::Composite),
                b'r' => Made::Plain(TypeKind::Range),
                b'm' => Made::Plain(TypeKind::Multirange),
                _ if array => Made::Array(row.try_get(5)?, row.try_get::<_, i8>(6)?.cast_unsigned()),
                _ => Made::Plain(TypeKind::Base),
            };
            let name = type_name(row.try_get(1)?, row.try_get(2)?);
            Ok((row.try_get::<_, u32>(0)?, Found { name, of }))
        };
        let (oid, type_found) = read().map_err(|e| unreadable("pg_type", e))?;
        found.insert(oid, type_found);
    }
    let resolved = oids.iter().filter_map(|oid| Some((*oid, resolve(*oid, -1, &found)?)));
    Ok(resolved.collect())
}

/// The composite types that these types contain, at any depth.
pub async fn composites(client: &(impl GenericClient + Sync), oids: &[u32]) -> Result<Vec<Composite>> {
    const SQL: &str = "
        WITH RECURSIVE inside (oid) AS (
            SELECT unnest($1::oid[])
            UNION
            SELECT part.oid FROM inside JOIN pg_type t USING (oid), LATERAL (
                SELECT t.typelem WHERE t.typcategory = 'A' AND t.typlen = -1
                UNION ALL SELECT t.typbasetype
                UNION ALL SELECT a.atttypid FROM pg_attribute a
                WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS part (oid)
            WHERE part.oid <> 0)
        SELECT t.oid, a.attname::text, a.atttypid, a.atttypmod
        FROM inside JOIN pg_type t USING (oid)
             LEFT JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE t.typtype = 'c' ORDER BY t.oid, a.attnum";
    let doing = "reading composite types from the source's catalog";
    let rows = client.query(SQL, &[&oids]).await.map_err(|e| failed(doing, e))?;
    type Found = (u32, Option<String>, Option<u32>, Option<i32>);
    let read = |row: &Row| -> Result<Found, tokio_postgres::Error> {
        Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
    };
    let rows = rows.iter().map(read).collect::<Result<Vec<_>, _>>().map_err(|e| unreadable("pg_attribute", e))?;
    let inner: Vec<u32> = rows.iter().filter_map(|(_, _, oid, _)| *oid).collect();
    let known = types(client, &inner).await?;
    let mut found: Vec<Composite> = Vec::new();
    for (oid, name, of, typmod) in rows {
        if found.last().is_none_or(|last| last.oid != oid) {
            found.push(Composite { oid, attributes: Vec::new() });
        }
        let named = of.and_then(|of| known.get(&of)).zip(name).zip(typmod);
        let attribute = named.map(|((of, name), typmod)| Attribute { name, of: TypeName { typmod, ..of.clone() } });
        found.last_mut().expect("just pushed").attributes.extend(attribute);
    }
    Ok(found)
}

struct Found {
    name: String,
    of: Made,
}

enum Made {
    Plain(TypeKind),
    Enum(Vec<String>),
    /// The base and its modifier.
    Domain(u32, i32),
    /// The element, and what stands between elements.
    Array(u32, u8),
}

fn resolve(oid: u32, typmod: i32, found: &HashMap<u32, Found>) -> Option<TypeName> {
    let Found { name, of } = found.get(&oid)?;
    let kind = match of {
        Made::Plain(kind) => kind.clone(),
        Made::Enum(labels) => TypeKind::Enum { labels: labels.clone() },
        Made::Array(..) if VECTORS.contains(&oid) => TypeKind::Base,
        Made::Array(element, delimiter) => {
            TypeKind::Array { element: Box::new(resolve(*element, -1, found)?), delimiter: *delimiter }
        }
        Made::Domain(base, typmod) => TypeKind::Domain { base: Box::new(resolve(*base, *typmod, found)?) },
    };
    Some(TypeName { oid, name: name.clone(), typmod, kind })
}

/// What `pg_get_expr` prints of a DEFAULT; `None` for one that a schema does not show.
pub fn column_default(expression: &str) -> Option<ColumnDefault> {
    let literal = |text: &str| Some(ColumnDefault::Literal(text.to_owned()));
    let quoted = expression.strip_prefix('B').filter(|rest| rest.starts_with('\'')).unwrap_or(expression);
    if let Some(inside) = quoted.strip_prefix('\'') {
        let (text, rest) = quoted_literal(inside)?;
        // A cast and nothing behind it.
        let casts = rest.is_empty() || rest.strip_prefix("::").is_some_and(is_type);
        return casts.then_some(ColumnDefault::Literal(text));
    }
    match expression {
        "true" => return literal("t"),
        "false" => return literal("f"),
        _ => {}
    }
    if expression.starts_with(|c: char| c.is_ascii_digit() || c == '-') && expression.parse::<f64>().is_ok() {
        return literal(expression);
    }
    is_call(expression).then_some(ColumnDefault::Call)
}

fn quoted_literal(inside: &str) -> Option<(String, &str)> {
    let (mut text, mut rest) = (String::new(), inside);
    loop {
        let (before, after) = rest.split_once('\'')?;
        text.push_str(before);
        match after.strip_prefix('\'') {
            Some(next) => {
                text.push('\'');
                rest = next;
            }
            None => return Some((text, after)),
        }
    }
}

fn is_type(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || matches!(c, ' ' | '_' | '.' | '"' | '(' | ')' | ',' | '[' | ']'))
}

/// `name(…)`, also at the beginning of an expression in parentheses, and SQL's calls without parentheses.
fn is_call(expression: &str) -> bool {
    const KEYWORDS: [&str; 8] = [
        "CURRENT_DATE",
        "CURRENT_TIME",
        "CURRENT_TIMESTAMP",
        "LOCALTIME",
        "LOCALTIMESTAMP",
        "CURRENT_USER",
        "SESSION_USER",
        "CURRENT_ROLE",
    ];
    let inside = expression.strip_prefix('(').unwrap_or(expression);
    let name = inside.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '"')));
    let called = name.is_some_and(|at| at > 0 && inside[at..].starts_with('('));
    called || KEYWORDS.iter().any(|keyword| expression.starts_with(keyword))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_that_a_schema_shows() {
        let literal = |text: &str| Some(ColumnDefault::Literal(text.into()));
        for (expression, found) in [
            ("'it''s \"q\"'::character varying", literal("it's \"q\"")),
            ("''::text", literal("")),
            ("'-7'::integer", literal("-7")),
            ("42", literal("42")),
            ("3.10", literal("3.10")),
            ("true", literal("t")),
            ("B'101'::\"bit\"", literal("101")),
            ("'ok'::public.mood", literal("ok")),
            ("'2024-02-29 00:00:00+00'::timestamp with time zone", literal("2024-02-29 00:00:00+00")),
            ("now()", Some(ColumnDefault::Call)),
            ("nextval('public.s'::regclass)", Some(ColumnDefault::Call)),
            ("CURRENT_DATE", Some(ColumnDefault::Call)),
            ("(lower('ABC'::text) || 'd'::text)", Some(ColumnDefault::Call)),
            ("(1 + 2)", None),
            ("(0)::money", None),
            ("NULL::text", None),
            ("'a'::text || 'b'::text", None),
            ("'unended", None),
        ] {
            assert_eq!(column_default(expression), found, "{expression}");
        }
    }
}
