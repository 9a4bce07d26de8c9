//! Unique values that are handed over between rows: whoever holds a value that a written row is to hold gets out of its way
//! first, is parked. SQLite checks uniqueness with every row and knows no other way.
//!
//! As with Postgres ([`crate::sink::park`]) no row is deleted for it, a parked row owes the value that it held, a write of the
//! column pays the debt, and who still owes before the commit gets back what it held; if that is refused, the end itself is.
//! Here a refused row is met while it is written, so its way is made at once, and the transaction need not begin anew.
//!
//! Rows of a table under load that are still to be read are stale: they keep their stand-in until their chunk comes. Which
//! those are the driver says once a first try was refused.
//!
//! What can't be parked is `UNIQUE_HANDOVER`, with the reasons: expressions, columns that are not written, triggers and foreign
//! keys that would hear of a stand-in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, params_from_iter};
use uuid::Uuid;

use super::catalog::{UniqueFacts, same_name};
use super::form::{Form, Held, Image};
use super::plan::TablePlan;
use super::refusal::{failure, named};
use crate::error::{Code, Halt};
use crate::relation::quote_identifier;
use crate::sink::park::{Loaded, Unread};
use crate::sink::step::Verb;
use crate::sink::{Failure, Outcome};

/// A row that is about to be written.
#[derive(Clone, Copy)]
pub(super) struct NewRow<'a> {
    pub plan: &'a TablePlan,
    pub verb: Verb,
    /// Places in the plan's columns that are written, and what they are to hold.
    pub places: &'a [usize],
    pub new: &'a [Held<'a>],
    /// As the file has it; of an insert as it will be.
    pub key: &'a [Held<'a>],
}

/// Who owes what, from the begin of a transaction to its end.
#[derive(Default)]
pub(super) struct Parking {
    owing: HashMap<String, Table>,
    /// `None`: not known yet.
    pub unread: Option<Unread>,
}

struct Table {
    plan: Arc<TablePlan>,
    rows: HashMap<Image, Debt>,
}

struct Debt {
    key: Vec<Value>,
    /// By column, what it held.
    held: BTreeMap<String, Value>,
}

impl Parking {
    /// The row was written, or deleted: it owes no more what it carries. Who owed under a key that another row has come to is gone,
    /// by a TRUNCATE or by a foreign key's action.
    pub fn written(&mut self, row: &NewRow<'_>) {
        let Some(table) = self.owing.get_mut(&row.plan.facts.name) else { return };
        let debt = table.rows.remove(&Image::of(row.key.iter().map(Held::as_ref)));
        if matches!(row.verb, Verb::Insert | Verb::Delete) {
            return;
        }
        let mut key: Vec<Value> = row.key.iter().map(Held::to_value).collect();
        for (part, place) in key.iter_mut().zip(&row.plan.key) {
            if let Some(i) = row.places.iter().position(|written| written == place) {
                *part = row.new[i].to_value();
            }
        }
        let now = Image::of(key.iter().map(ValueRef::from));
        table.rows.remove(&now);
        let Some(mut debt) = debt else { return };
        for &place in row.places {
            debt.held.remove(&row.plan.columns[place].name);
        }
        // What a moved row still owes it owes under its new key.
        if !debt.held.is_empty() {
            table.rows.insert(now, Debt { key, ..debt });
        }
    }

    /// Parks every other row that holds the unique value by which `error` refused this one.
    pub fn make_way(&mut self, connection: &Connection, row: &NewRow<'_>, error: rusqlite::Error) -> Outcome<()> {
        let plan = row.plan;
        let uniques: Vec<&UniqueFacts> = refusing(plan, &error).filter(|unique| !is_key(plan, unique)).collect();
        let mut parked = 0;
        for unique in uniques {
            let failed = |error| failure(&format!("parking unique values of {}", plan.name()), Some(plan), error);
            let Some(holders) = holders(connection, row, unique).map_err(failed)? else {
                let reason = "it is over columns that are not written";
                return Err(handover(plan, unique, vec![reason.to_owned()]));
            };
            for holder in holders {
                self.park(connection, plan, unique, holder)?;
                parked += 1;
            }
        }
        match parked {
            0 if plan.facts.uniques.iter().any(|unique| is_named(&error, unique)) => {
                let unique = plan.facts.uniques.iter().find(|unique| is_named(&error, unique)).expect("just looked");
                Err(handover(plan, unique, vec!["it is over expressions".to_owned()]))
            }
            0 => Err(failure("writing rows", Some(plan), error)),
            _ => Ok(()),
        }
    }

    /// Gives the row with that key a stand-in, and remembers what it held.
    fn park(
        &mut self,
        connection: &Connection,
        plan: &TablePlan,
        unique: &UniqueFacts,
        key: Vec<Value>,
    ) -> Outcome<()> {
        let mut reasons = Vec::new();
        for (place, stand_in) in stand_ins(plan, unique, &mut reasons) {
            let failed = |error| failure(&format!("parking unique values of {}", plan.name()), Some(plan), error);
            let mut select = connection.prepare_cached(&plan.select(&[place])).map_err(failed)?;
            let held: Value = select.query_row(params_from_iter(&key), |row| row.get(0)).map_err(failed)?;
            let values = std::iter::once(&stand_in).chain(&key);
            let parked =
                connection.prepare_cached(&plan.update(&[place])).map_err(failed)?.execute(params_from_iter(values));
            match parked {
                Ok(1) => {
                    self.owes(plan, place, key, held);
                    return Ok(());
                }
                Ok(_) => reasons.push(format!("column {}: the row could not be reached", plan.columns[place].name)),
                Err(error) if connection.is_autocommit() || !is_refusal(&error) => return Err(failed(error)),
                Err(_) => {
                    reasons.push(format!("column {}: a value that stands in is refused", plan.columns[place].name))
                }
            }
        }
        Err(handover(plan, unique, reasons))
    }

    fn owes(&mut self, plan: &TablePlan, place: usize, key: Vec<Value>, held: Value) {
        let new = || Table { plan: Arc::new(plan.clone()), rows: HashMap::new() };
        let table = self.owing.entry(plan.facts.name.clone()).or_insert_with(new);
        let image = Image::of(key.iter().map(ValueRef::from));
        let debt = table.rows.entry(image).or_insert_with(|| Debt { key, held: BTreeMap::new() });
        // One that is parked already owes what it held before.
        debt.held.entry(plan.columns[place].name.clone()).or_insert(held);
    }

    /// Whoever still owes gets back what it held, but for rows that are still to be read. Before a commit.
    pub fn settle(&mut self, connection: &Connection) -> Outcome<()> {
        for (_, Table { plan, rows }) in self.owing.drain() {
            for Debt { key, held } in rows.into_values() {
                let stale = self.unread.as_ref().is_some_and(|unread| is_unread(&plan, unread, &key));
                for (column, held) in held.into_iter().filter(|_| !stale) {
                    let place =
                        plan.columns.iter().position(|c| c.name == column).expect("a column of the plan was parked");
                    let values = std::iter::once(&held).chain(&key);
                    let restored = connection
                        .prepare_cached(&plan.update(&[place]))
                        .and_then(|mut s| s.execute(params_from_iter(values)));
                    // A row that is gone owes nothing.
                    restored.map_err(|error| failure("giving rows back what they held", Some(&plan), error))?;
                }
            }
        }
        Ok(())
    }
}

/// Whether the row with that key is of what is still to be read of its table.
fn is_unread(plan: &TablePlan, unread: &Unread, key: &[Value]) -> bool {
    let Some(loads) = unread.get(&plan.table) else { return false };
    let texts: Option<Vec<(usize, Vec<u8>)>> = plan
        .key
        .iter()
        .zip(key)
        .map(|(&place, value)| Some((place, plan.columns[place].form.text(ValueRef::from(value))?)))
        .collect();
    let Some(texts) = texts else { return false };
    let own = plan.own_key();
    let orders: Vec<_> = own.iter().map(|&place| plan.columns[place].order).collect();
    let own: Vec<&[u8]> =
        texts.iter().filter(|(place, _)| own.contains(place)).map(|(_, text)| text.as_slice()).collect();
    let of_load = |load: &&Loaded| {
        let is = |(column, value): &(String, String)| {
            let found = texts.iter().find(|(place, _)| same_name(&plan.columns[*place].name, column));
            found.is_some_and(|(_, text)| text == value.as_bytes())
        };
        load.constants.iter().all(is) && (load.constants.is_empty() || load.key == plan.range_key())
    };
    let read = |load: &Loaded| load.ranges.iter().any(|range| range.contains(&orders, &own).unwrap_or(true));
    loads.iter().filter(of_load).any(|load| !read(load))
}

/// What may refuse a stand-in: checks and the like.
fn is_refusal(error: &rusqlite::Error) -> bool {
    super::refusal::code(error) & 0xFF == rusqlite::ffi::SQLITE_CONSTRAINT
}

/// The unique indexes that the message of an error names, by their columns.
fn refusing<'a>(plan: &'a TablePlan, error: &'a rusqlite::Error) -> impl Iterator<Item = &'a UniqueFacts> {
    let table = &plan.facts.name;
    plan.facts.uniques.iter().filter(move |unique| {
        let columns: Option<Vec<String>> =
            unique.terms.iter().map(|term| Some(format!("{table}.{}", term.column.as_ref()?))).collect();
        columns.is_some_and(|columns| named(error) == Some(columns.join(", ").as_str()))
    })
}

/// One with an expression is called by its own name.
fn is_named(error: &rusqlite::Error, unique: &UniqueFacts) -> bool {
    named(error) == Some(format!("index '{}'", unique.name).as_str())
}

/// Over the key's columns alone it only tells what the key tells.
fn is_key(plan: &TablePlan, unique: &UniqueFacts) -> bool {
    let in_key = |column: &Option<String>| {
        column.as_ref().is_some_and(|column| plan.key.iter().any(|&place| same_name(&plan.columns[place].name, column)))
    };
    unique.terms.iter().all(|term| in_key(&term.column))
}

/// Keys of other rows that hold what the index is to hold of the new row; `None`: that is not known.
fn holders(
    connection: &Connection,
    row: &NewRow<'_>,
    unique: &UniqueFacts,
) -> rusqlite::Result<Option<Vec<Vec<Value>>>> {
    let plan = row.plan;
    let (mut conditions, mut values) = (Vec::new(), Vec::new());
    for term in &unique.terms {
        let Some(column) = &term.column else { return Ok(None) };
        let place = plan.columns.iter().position(|known| same_name(&known.name, column));
        let written = place.and_then(|place| row.places.iter().position(|written| *written == place));
        let value: Value = match written {
            Some(i) => row.new[i].to_value(),
            // Its default, perhaps a call.
            None if row.verb == Verb::Insert => return Ok(None),
            None => {
                let sql = plan.select(&[]).replacen("SELECT ", &format!("SELECT {}", quote_identifier(column)), 1);
                connection.prepare_cached(&sql)?.query_row(params_from_iter(row.key), |row| row.get(0))?
            }
        };
        values.push(value);
        let collation = quote_identifier(&term.collation);
        conditions.push(format!("{} = ?{} COLLATE {collation}", quote_identifier(column), values.len()));
    }
    let own = plan
        .key
        .iter()
        .enumerate()
        .map(|(k, &place)| format!("{} IS ?{}", plan.columns[place].compared(), values.len() + 1 + k));
    let own: Vec<String> = own.collect();
    let sql = format!(
        "SELECT {} FROM {} WHERE {} AND NOT ({})",
        plan.names(&plan.key),
        plan.quoted,
        conditions.join(" AND "),
        own.join(" AND ")
    );
    values.extend(row.key.iter().map(Held::to_value));
    let mut statement = connection.prepare_cached(&sql)?;
    let key = |row: &rusqlite::Row<'_>| (0..plan.key.len()).map(|k| row.get(k)).collect();
    statement.query_map(params_from_iter(values), key)?.collect::<rusqlite::Result<_>>().map(Some)
}

/// Columns by which a row gets out of the way, and what they hold meanwhile, the surest first; why others can't.
fn stand_ins(plan: &TablePlan, unique: &UniqueFacts, reasons: &mut Vec<String>) -> Vec<(usize, Value)> {
    if let Some(trigger) = plan.facts.triggers.iter().find(|trigger| trigger.updates) {
        reasons.push(format!("trigger {} would hear of a value that stands in", trigger.name));
        return Vec::new();
    }
    let mut found = Vec::new();
    for term in &unique.terms {
        let place = plan.columns.iter().position(|c| term.column.as_ref().is_some_and(|name| same_name(&c.name, name)));
        let Some(place) = place.filter(|place| !plan.key.contains(place)) else { continue };
        let column = &plan.columns[place];
        let acts = plan.facts.referenced_by().find(|key| {
            key.on_update != "NO ACTION" && key.referenced.as_ref().is_none_or(|name| same_name(name, &column.name))
        });
        if let Some(key) = acts {
            reasons.push(format!("column {}: a foreign key of {} acts on its updates", column.name, key.child));
            continue;
        }
        let not_null = plan.facts.column(&column.name).is_some_and(|column| column.not_null);
        match (not_null, made_up(column.form)) {
            (false, _) => found.insert(0, (place, Value::Null)),
            (true, Some(value)) => found.push((place, value)),
            (true, None) => reasons.push(format!("column {}: it has too few values and no NULL", column.name)),
        }
    }
    if reasons.is_empty() && found.is_empty() {
        reasons.push("it is over the key and columns that are not written".to_owned());
    }
    found
}

/// A value that no row holds.
fn made_up(form: Form) -> Option<Value> {
    let random = Uuid::new_v4();
    match form {
        Form::Text => Some(random.to_string().into()),
        Form::Blob => Some(random.as_bytes().to_vec().into()),
        // Far below what anybody counts to.
        Form::Integer => Some((i64::MIN + (random.as_u64_pair().0 >> 2).cast_signed()).into()),
        Form::Double | Form::Single => Some(Value::Real(-1e300 - 1e290 * f64::from(random.as_fields().0))),
        Form::Bool => None,
    }
}

fn handover(plan: &TablePlan, unique: &UniqueFacts, reasons: Vec<String>) -> Failure {
    let terms: Vec<&str> = unique.terms.iter().map(|term| term.column.as_deref().unwrap_or("(…)")).collect();
    let terms = terms.join(", ");
    let message =
        format!("rows of {} hand over values of ({terms}), and nothing can stand in for them meanwhile", plan.name());
    let hint = match unique.of_table {
        true => format!("make {} without UNIQUE ({terms}): SQLite has no constraint that waits", plan.name()),
        false => format!("DROP INDEX {}", quote_identifier(&unique.name)),
    };
    Failure::Unique(Box::new(Halt { code: Code::UniqueHandover, message, facts: reasons, hint }))
}
