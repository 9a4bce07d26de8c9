//! What a server's error means for the pipeline: one match from SQLSTATE to what now.
//!
//! Messages of servers quote values ("invalid input syntax for type integer: …", "Key (sku)=(…) already exists"). So nothing
//! of a refusal's text is passed on, only names and the SQLSTATE, but for [`Class::Table`]: "column … does not exist" and its
//! like name things of the schema. Texts of failures that may heal carry no user data.

use tokio_postgres::error::{DbError, Severity, SqlState};

use super::Failure;
use super::sql::SinkTablePlan;
use crate::error::{Code, Halt};
use crate::relation::quote_identifier;
use crate::session;

/// What kind of refusal an error of the server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// A value does not fit its column.
    Value,
    /// A constraint, or a trigger, refuses the rows.
    Constraint,
    /// The sink's tables are not what the plan was made for.
    Table,
    Right,
    /// Another order or another moment may do: deadlocks, restarts, full disks.
    Retry,
}

/// The class of a SQLSTATE.
pub fn classify(code: &SqlState) -> Class {
    match code.code() {
        "23502" => Class::Value,
        "42501" => Class::Right,
        // Truncating a table that another one references, and the like.
        "0A000" => Class::Constraint,
        // An index or constraint that a statement relied on is gone or deferrable.
        "55000" | "428C9" => Class::Table,
        code => match &code[..2] {
            "22" => Class::Value,
            // 27 is a trigger in the way of an action, 44 a view's check, P0 an exception raised by a trigger.
            "23" | "27" | "44" | "09" | "P0" => Class::Constraint,
            "42" | "3F" => Class::Table,
            _ => Class::Retry,
        },
    }
}

/// A failed statement on the sink as what must happen now. `plan` is the table it was about, if it was about one.
pub fn failure(doing: &str, plan: Option<&SinkTablePlan>, error: tokio_postgres::Error) -> Failure {
    let Some(server) = error.as_db_error() else {
        return Failure::Error(session::classify(doing, error));
    };
    let class = classify(server.code());
    let table = match (server.table(), plan) {
        (Some(table), _) => format!("{}.{table}", server.schema().unwrap_or("?")),
        (None, Some(plan)) => plan.table.to_string(),
        (None, None) => "a table of the sink".to_owned(),
    };
    let state = format!("SQLSTATE {}", server.code().code());
    let halt = |code: Code, message: String, hint: String| Halt { code, message, facts: vec![state.clone()], hint };
    match class {
        Class::Retry => Failure::Error(session::classify(doing, error)),
        Class::Value => {
            let column = server.column().or_else(|| copied_column(server, plan?));
            halt(Code::ValueRefused, value_message(&table, column), value_hint(plan)).into()
        }
        Class::Right => {
            halt(Code::NoRight, format!("the role may not do this at the sink: {doing}"), right_hint(plan)).into()
        }
        Class::Table => halt(
            Code::SinkTable,
            format!("{table} is not the table that it was at the start: {}", server.message()),
            "lockstep check".to_owned(),
        )
        .into(),
        Class::Constraint => Failure::Constraint(Box::new(refused(server, &table, plan, halt))),
    }
}

/// COPY says in its context which column of the stage did not parse: `COPY stage, line 7, column c2: "…"`.
pub(super) fn copied_column<'a>(server: &DbError, plan: &'a SinkTablePlan) -> Option<&'a str> {
    let (_, rest) = server.where_()?.strip_prefix("COPY ")?.split_once(", column ")?;
    let (column, _) = rest.split_once(':')?;
    let place = match column.split_at_checked(1)? {
        ("c", place) => place.parse().ok()?,
        ("o", k) => *plan.key.get(k.parse::<usize>().ok()?)?,
        _ => return None,
    };
    Some(plan.columns.get::<usize>(place)?.name.as_str())
}

pub(super) fn value_message(table: &str, column: Option<&str>) -> String {
    match column {
        Some(column) => format!("a value does not fit column {column} of {table}"),
        None => format!("a value does not fit a column of {table}"),
    }
}

fn value_hint(plan: Option<&SinkTablePlan>) -> String {
    match plan {
        Some(plan) => format!("psql -c '\\d {}'", plan.table),
        None => "lockstep check".to_owned(),
    }
}

fn right_hint(plan: Option<&SinkTablePlan>) -> String {
    match plan {
        Some(plan) => {
            let (table, role) = (plan.table.quoted(), quote_identifier(&plan.role));
            format!("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {table} TO {role}")
        }
        None => "lockstep check".to_owned(),
    }
}

/// Whether the server itself has ended: then nothing is known of what it was doing.
pub(super) fn ended(server: &DbError) -> bool {
    matches!(server.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
}

fn refused(
    server: &DbError,
    table: &str,
    plan: Option<&SinkTablePlan>,
    halt: impl Fn(Code, String, String) -> Halt,
) -> Halt {
    let Some(name) = server.constraint() else {
        let what = match server.code() {
            &SqlState::FEATURE_NOT_SUPPORTED => "another table references it, which is not emptied along with it",
            _ => "a trigger or rule of the sink",
        };
        return halt(
            Code::ConstraintRefused,
            format!("changes of {table} are refused by the sink: {what}"),
            format!("psql -c '\\d {table}'"),
        );
    };
    let quoted = quote_identifier(name);
    let known = plan.and_then(|plan| plan.constraints.iter().find(|constraint| constraint.name == name));
    let target = match (server.schema(), server.table(), plan) {
        (Some(schema), Some(table), _) => format!("{}.{}", quote_identifier(schema), quote_identifier(table)),
        (_, _, Some(plan)) => plan.table.quoted(),
        _ => "…".to_owned(),
    };
    let definition = known.map_or("UNIQUE (…)", |constraint| constraint.definition.as_str());
    let hint = match (server.code(), known.is_some_and(|constraint| constraint.deferrable)) {
        (&SqlState::FOREIGN_KEY_VIOLATION, false) => {
            format!("ALTER TABLE {target} ALTER CONSTRAINT {quoted} DEFERRABLE")
        }
        (&SqlState::UNIQUE_VIOLATION | &SqlState::EXCLUSION_VIOLATION, false) => {
            format!("ALTER TABLE {target} DROP CONSTRAINT {quoted}, ADD CONSTRAINT {quoted} {definition} DEFERRABLE")
        }
        _ => format!("ALTER TABLE {target} DROP CONSTRAINT {quoted}"),
    };
    halt(Code::ConstraintRefused, format!("constraint {name} of {table} refuses the changes"), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlstate_has_a_class() {
        for (code, class) in [
            ("22001", Class::Value),
            ("22003", Class::Value),
            ("22P02", Class::Value),
            ("22P05", Class::Value),
            ("23502", Class::Value),
            ("23505", Class::Constraint),
            ("23503", Class::Constraint),
            ("23514", Class::Constraint),
            ("23P01", Class::Constraint),
            ("P0001", Class::Constraint),
            ("42P01", Class::Table),
            ("42703", Class::Table),
            ("42P10", Class::Table),
            ("42501", Class::Right),
            ("40P01", Class::Retry),
            ("40001", Class::Retry),
            ("55P03", Class::Retry),
            ("57P01", Class::Retry),
            ("08006", Class::Retry),
            ("53100", Class::Retry),
            ("25006", Class::Retry),
            ("XX000", Class::Retry),
        ] {
            assert_eq!(classify(&SqlState::from_code(code)), class, "{code}");
        }
    }
}
