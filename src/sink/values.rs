//! Columns that only the sink's table has and that are computed of each row (`[sinks.NAME.values]`), at a Postgres.
//!
//! The server computes them, in the statement that writes the row: a column that was not sent is then read from the row itself, so
//! a value is right whatever was left out. An update computes those alone of which it writes an input; the others hold
//! what they held. All are functions of the row, so to apply or to read anything again makes the same of it.

use super::fit::modified;
use super::sql::{Rows, SinkTablePlan};
use super::{WantedColumn, WantedTable, catalog};
use crate::config::{self, Expression, Function};
use crate::error::{Code, Halt, Result};
use crate::relation::{Relation, quote_identifier, quote_literal};
use crate::session;

/// A column that is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedValue {
    pub column: String,
    pub expression: Expression,
    /// Places in the wanted columns of what it is made of.
    pub inputs: Vec<usize>,
}

/// The same in a plan.
#[derive(Clone, Debug)]
pub(super) struct PlanValue {
    pub quoted: String,
    /// The type to cast a constant to.
    cast: String,
    expression: Expression,
    inputs: Vec<usize>,
}

impl PlanValue {
    pub fn of(value: &WantedValue, column: &catalog::ColumnFacts) -> PlanValue {
        PlanValue {
            quoted: quote_identifier(&value.column),
            cast: column.base_sql.clone(),
            expression: value.expression.clone(),
            inputs: value.inputs.clone(),
        }
    }

    /// Whether an update of these places changes it.
    fn is_of(&self, written: &[usize]) -> bool {
        self.inputs.iter().any(|input| written.contains(input))
    }
}

/// What a sink's table is to have besides the relation's `columns`. A version that lacks what a value is made of leaves it alone: its
/// rows are read again once they have it.
pub(super) fn wanted(
    relation: &Relation,
    target: &config::SinkTable,
    columns: &[WantedColumn],
    newest: &[&Relation],
) -> std::result::Result<Vec<WantedValue>, Halt> {
    let halt = |message: String| Halt {
        code: Code::Config,
        message,
        facts: vec![],
        hint: format!("edit values under [sinks.{}] of the connector of {}", target.sink, relation.name),
    };
    if !target.values.is_empty() && columns.iter().all(|wanted| wanted.column.key.is_none()) {
        return Err(halt(format!("table {} has no key, so nothing can be computed for its rows", relation.name)));
    }
    let mut found = Vec::new();
    for config::Value { column, expression } in &target.values {
        if columns.iter().any(|wanted| wanted.column.name == *column) {
            return Err(halt(format!("table {} has a column {column}, which is to be computed", relation.name)));
        }
        let place = |name: &String| columns.iter().position(|wanted| wanted.column.name == *name);
        let inputs: Option<Vec<usize>> = expression.inputs().iter().map(place).collect();
        let known = |name: &&String| newest.iter().any(|version| version.columns.iter().any(|c| c.name == **name));
        match (inputs, expression.inputs().iter().find(|name| !known(name))) {
            (Some(inputs), _) => {
                found.push(WantedValue { column: column.clone(), expression: expression.clone(), inputs });
            }
            (None, None) => {}
            (None, Some(name)) => {
                return Err(halt(format!(
                    "table {} has no column {name}, of which {column} is to be made",
                    relation.name
                )));
            }
        }
    }
    Ok(found)
}

/// What keeps the table from holding a value.
pub(super) fn judge(wanted: &WantedTable, value: &WantedValue, facts: &catalog::TableFacts) -> Option<Halt> {
    let (name, table) = (&value.column, &wanted.table);
    let alter = |what: String| format!("ALTER TABLE {} {what}", table.quoted());
    let quoted = quote_identifier(name);
    let halt = |message: String, hint: String| Some(Halt { code: Code::SinkTable, message, facts: vec![], hint });
    let Some(column) = facts.columns.iter().find(|column| column.name == *name) else {
        let message = format!("table {table} has no column {name} at the sink, which is to be computed");
        return halt(message, alter(format!("ADD COLUMN {quoted} text")));
    };
    if column.generated {
        let message = format!("column {name} of {table} is generated at the sink and can't be written");
        return halt(message, alter(format!("ALTER COLUMN {quoted} DROP EXPRESSION")));
    }
    let takes_texts = column.base == "text" || (column.base == "varchar" && column.typmod == -1);
    if !takes_texts && !value.inputs.is_empty() {
        let declared = modified(&column.declared, column.typmod);
        let message =
            format!("column {name} of {table} is {declared}, which does not hold every text that is computed");
        return halt(message, alter(format!("ALTER COLUMN {quoted} TYPE text")));
    }
    let nullable = |input: &usize| wanted.columns[*input].column.nullable;
    let may_be_null = match &value.expression {
        Expression::Constant(_) | Expression::Of { function: Function::Concat { .. }, .. } => false,
        Expression::Of { .. } => value.inputs.iter().all(nullable),
    };
    if column.not_null && may_be_null {
        let message = format!("column {name} of {table} is not null at the sink, but what is computed may be NULL");
        return halt(message, alter(format!("ALTER COLUMN {quoted} DROP NOT NULL")));
    }
    None
}

/// Constants that their columns would not hold as they are written.
pub(super) async fn findings(
    client: &tokio_postgres::Client,
    wanted: &[WantedTable],
    facts: &[Option<catalog::TableFacts>],
) -> Result<Vec<Halt>> {
    let mut halts = Vec::new();
    for (wanted, facts) in wanted.iter().zip(facts) {
        for value in &wanted.values {
            let column = facts.as_ref().and_then(|facts| facts.columns.iter().find(|c| c.name == value.column));
            let (Some(column), Expression::Constant(constant)) = (column, &value.expression) else { continue };
            let sql = format!("SELECT {}::{}::pg_catalog.text = $1", literal(constant), column.declared_sql);
            let held = match client.query_one(&sql, &[constant]).await {
                Ok(row) => row.get::<_, Option<bool>>(0) == Some(true),
                Err(error) if error.as_db_error().is_some_and(|server| server.code().code().starts_with("2")) => false,
                Err(error) => return Err(session::classify("trying a constant at the sink", error)),
            };
            if !held {
                let message =
                    format!("column {} of {} does not hold its constant as it is written", value.column, wanted.table);
                let hint = format!("write it into the connector as {} prints it", column.declared_sql);
                halts.push(Halt { code: Code::SinkTable, message, facts: vec![], hint });
            }
        }
    }
    Ok(halts)
}

fn literal(text: &str) -> String {
    quote_literal(text).trim_start().to_owned()
}

impl SinkTablePlan {
    /// `, NAME …` of all computed columns.
    pub(super) fn value_names(&self) -> String {
        self.values.iter().map(|value| format!(", {}", value.quoted)).collect()
    }

    /// `, EXPRESSION …` in the order of their names; `cell` says where a column of the row stands.
    pub(super) fn computed(&self, cell: impl Fn(usize) -> String) -> String {
        self.values.iter().map(|value| format!(", {}", self.compute(value, &cell))).collect()
    }

    /// `, NAME = EXPRESSION …` of those that an update of `written` changes; `present` is what the rows carry.
    pub(super) fn computed_anew(&self, rows: Rows, written: &[usize], present: &[usize]) -> String {
        let cell = |place: usize| match present.contains(&place) {
            true => self.value(rows, place),
            false => format!("t.{}", self.columns[place].quoted),
        };
        let changed = self.values.iter().filter(|value| value.is_of(written));
        changed.map(|value| format!(", {} = {}", value.quoted, self.compute(value, &cell))).collect()
    }

    fn compute(&self, value: &PlanValue, cell: &impl Fn(usize) -> String) -> String {
        let (function, inputs) = match &value.expression {
            Expression::Constant(constant) => return format!("{}::{}", literal(constant), value.cast),
            Expression::Of { function, .. } => (function, &value.inputs),
        };
        // As the column holds it, which may have a scale, and by one collation wherever it is read from.
        let text = |place: &usize| {
            let stored = &self.columns[*place].stored;
            format!("({})::{stored}::pg_catalog.text COLLATE pg_catalog.\"default\"", cell(*place))
        };
        let all = inputs.iter().map(text).collect::<Vec<_>>().join(", ");
        match function {
            Function::Lower => format!("pg_catalog.lower({all})"),
            Function::Upper => format!("pg_catalog.upper({all})"),
            Function::Trim => format!("pg_catalog.btrim({all})"),
            Function::Concat { separator } => format!("pg_catalog.concat_ws({}, {all})", literal(separator)),
            Function::Coalesce => format!("COALESCE({all})"),
        }
    }
}
