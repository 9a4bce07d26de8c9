//! What an error of SQLite means for the pipeline: one match from its result code to what now.
//!
//! SQLite's own messages name tables, columns and constraints, never values; but a trigger's RAISE says what its author made
//! it say, so that text is not passed on.

use rusqlite::ffi;

use super::plan::TablePlan;
use crate::error::{Code, Error, Halt};
use crate::sink::Failure;

/// The extended result code.
pub(super) fn code(error: &rusqlite::Error) -> i32 {
    match error {
        rusqlite::Error::SqliteFailure(error, _) | rusqlite::Error::SqlInputError { error, .. } => error.extended_code,
        _ => ffi::SQLITE_MISMATCH,
    }
}

/// Another connection is in the way, for a while.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(code(error) & 0xFF, ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED)
}

/// A unique constraint, the key's or another one, refuses the row.
pub(super) fn is_unique(error: &rusqlite::Error) -> bool {
    matches!(
        code(error),
        ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID
    )
}

/// `T.a, T.b` of `UNIQUE constraint failed: T.a, T.b`: what the message names.
pub(super) fn named(error: &rusqlite::Error) -> Option<&str> {
    let rusqlite::Error::SqliteFailure(_, Some(message)) = error else { return None };
    message.split_once(": ").map(|(_, named)| named)
}

/// A failed statement as what must happen now. `plan` is the table that it was about, if it was about one.
pub(super) fn failure(doing: &str, plan: Option<&TablePlan>, error: rusqlite::Error) -> Failure {
    let table = plan.map_or("a table of the sink", TablePlan::name);
    let halt = |code: Code, message: String, hint: String| Halt { code, message, facts: vec![], hint };
    let look = format!("sqlite3 FILE '.schema {table}'");
    let by_name = |what: &str| {
        let named = named(&error).map_or_else(String::new, |named| format!(" ({named})"));
        Box::new(halt(Code::ConstraintRefused, format!("{what}{named} of {table} refuses the changes"), look.clone()))
    };
    match code(&error) {
        ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID => {
            return Failure::Unique(by_name("a unique constraint"));
        }
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY => return Failure::Reference(by_name("a foreign key")),
        ffi::SQLITE_CONSTRAINT_CHECK => return Failure::Constraint(by_name("a check")),
        ffi::SQLITE_CONSTRAINT_NOTNULL | ffi::SQLITE_CONSTRAINT_DATATYPE => {
            let named = named(&error).map_or_else(|| format!("a column of {table}"), |named| format!("column {named}"));
            return halt(Code::ValueRefused, format!("a value does not fit {named}"), look).into();
        }
        _ => {}
    }
    match code(&error) & 0xFF {
        ffi::SQLITE_CONSTRAINT => {
            let message = format!("changes of {table} are refused by the sink: a trigger");
            Failure::Constraint(Box::new(halt(Code::ConstraintRefused, message, look)))
        }
        ffi::SQLITE_TOOBIG => {
            halt(Code::ValueRefused, format!("a value is too large for {table}: SQLite takes 1 GB"), look).into()
        }
        ffi::SQLITE_ERROR | ffi::SQLITE_MISMATCH | ffi::SQLITE_RANGE => halt(
            Code::SinkTable,
            format!("{table} is not the table that it was at the start, or a trigger of it needs what only its own program has: {}", told(&error)),
            "lockstep check".to_owned(),
        )
        .into(),
        ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB => halt(
            Code::SinkTable,
            format!("the sink's file is damaged or no SQLite database: {}", told(&error)),
            "sqlite3 FILE 'PRAGMA integrity_check'".to_owned(),
        )
        .into(),
        ffi::SQLITE_AUTH | ffi::SQLITE_PERM => {
            halt(Code::NoRight, format!("the sink's file may not be written: {doing}"), "chmod u+rw FILE".to_owned()).into()
        }
        _ => Failure::Error(Error::retry(doing, error)),
    }
}

/// What SQLite says, without the statement.
fn told(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(message)) | rusqlite::Error::SqlInputError { msg: message, .. } => {
            message.clone()
        }
        other => other.to_string(),
    }
}

/// A foreign key that is checked at the commit refuses it, and the transaction stays open.
pub(super) fn is_reference(error: &rusqlite::Error) -> bool {
    code(error) == ffi::SQLITE_CONSTRAINT_FOREIGNKEY
}
