//! Debezium's options about columns, as the keys of one table's connector.
//!
//! Debezium names columns by regular expressions over `schema.table.column`; the server matches them here, its dialect is near
//! enough. What a connector of ours refuses and Debezium passes over is left out: masks on columns that are no text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;

/// What one table's connector says.
pub struct Shaping {
    /// Lines above its sections.
    pub keys: String,
    /// Sections.
    pub masks: String,
    /// Debezium reads old rows whatever they lack. Ours come with the key or not at all.
    pub blind_key: bool,
}

struct Column {
    name: String,
    text: bool,
    carried: bool,
}

const HASH: &str = "column.mask.hash.";

/// Whether the option is one of these.
pub fn is_known(option: &str) -> bool {
    let exact = [
        "column.exclude.list",
        "column.include.list",
        "column.propagate.source.type",
        "datatype.propagate.source.type",
        "message.key.columns",
        "skip.messages.without.change",
    ];
    let begins = ["column.mask.", "column.truncate.to."];
    exact.contains(&option) || begins.iter().any(|begin| option.starts_with(begin))
}

/// `table` is `schema.table` without quotes.
pub async fn shaping(client: &Client, table: &str, options: &BTreeMap<String, String>) -> Result<Shaping> {
    let mut found = Shaping { keys: String::new(), masks: String::new(), blind_key: false };
    let relevant = options.keys().any(|option| is_known(option));
    if !relevant {
        return Ok(found);
    }
    let columns = columns(client, table).await?;
    let list = |names: &[String]| toml::Value::from(names.to_vec()).to_string();
    let names = |columns: &[Column]| columns.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    if let Some(patterns) = options.get("column.include.list") {
        let kept = matching(client, table, patterns, &names(&columns)).await?;
        match kept.len() {
            0 => writeln!(found.keys, "exclude_columns = {}", list(&names(&columns)))?,
            all if all == columns.len() => {}
            _ => writeln!(found.keys, "columns = {}", list(&kept))?,
        }
    }
    if let Some(patterns) = options.get("column.exclude.list") {
        let left_out = matching(client, table, patterns, &names(&columns)).await?;
        if !left_out.is_empty() {
            writeln!(found.keys, "exclude_columns = {}", list(&left_out))?;
        }
    }
    if options.get("skip.messages.without.change").is_some_and(|text| text == "true") {
        found.keys.push_str("skip_unchanged = true\n");
    }
    if let Some(keys) = options.get("message.key.columns") {
        for entry in keys.split(';') {
            let (pattern, key) = entry.rsplit_once(':').context("a key of a table")?;
            if !is_match(client, table, pattern).await? {
                continue;
            }
            let key: Vec<String> = key.split(',').map(str::to_owned).collect();
            found.blind_key = columns.iter().any(|column| key.contains(&column.name) && !column.carried);
            writeln!(found.keys, "key = {}", list(&key))?;
        }
    }
    let texts: Vec<String> = columns.iter().filter(|column| column.text).map(|column| column.name.clone()).collect();
    for (option, patterns) in options {
        let Some(mask) = mask(option)? else { continue };
        for column in matching(client, table, patterns, &texts).await? {
            writeln!(found.masks, "[masks.{}]\n{mask}", toml::Value::from(column))?;
        }
    }
    Ok(found)
}

/// The lines of a mask that an option stands for.
fn mask(option: &str) -> Result<Option<String>> {
    if let Some(rest) = option.strip_prefix(HASH) {
        let (rest, version) = rest.strip_prefix("v2.").map_or((rest, 1), |rest| (rest, 2));
        let (algorithm, salt) = rest.split_once(".with.salt.").context("a hash with its salt")?;
        return Ok(Some(format!("hash = \"{algorithm}\"\nsalt = \"{salt}\"\nhash_version = {version}")));
    }
    let number = |begin: &str| option.strip_prefix(begin).and_then(|rest| rest.strip_suffix(".chars"));
    if let Some(chars) = number("column.mask.with.") {
        return Ok(Some(format!("chars = {chars}")));
    }
    Ok(number("column.truncate.to.").map(|chars| format!("truncate = {chars}")))
}

async fn columns(client: &Client, table: &str) -> Result<Vec<Column>> {
    let sql = "SELECT a.attname::text, a.atttypid IN (25, 1042, 1043),
            c.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND a.attnum = ANY (i.indkey)
                AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname || '.' || c.relname = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        ORDER BY a.attnum";
    let rows = client.query(sql, &[&table]).await?;
    ensure!(!rows.is_empty(), "{table} has no columns");
    Ok(rows.iter().map(|row| Column { name: row.get(0), text: row.get(1), carried: row.get(2) }).collect())
}

async fn is_match(client: &Client, name: &str, pattern: &str) -> Result<bool> {
    let sql = "SELECT $1::text ~* ('^(?:' || $2 || ')$')";
    Ok(client.query_one(sql, &[&name, &pattern]).await?.get(0))
}

/// Those of the columns that one of the patterns, with commas between them, matches.
async fn matching(client: &Client, table: &str, patterns: &str, columns: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for column in columns {
        for pattern in patterns.split(',') {
            if is_match(client, &format!("{table}.{column}"), pattern).await? {
                found.push(column.clone());
                break;
            }
        }
    }
    Ok(found)
}
